"""What may become of a slot in a turn of a made-up run, and strategies of such scripts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

STRIKES = ("unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved")


@dataclass(frozen=True)
class Fate:
    """What becomes of a slot in a turn. `silent` auditors are asked in vain before one answers.

    `logged`: an unrevealed slot's envelope came all the same. `copies`: the slot of the same turn whose
    payload it hands in as its own; honest auditors then find another one. Where a slot rests on tolerance,
    `far` is an outcome too: a deviation above its threshold. `unlike`: no two auditors find the same.
    `lost`: the first verdict is sealed and never logged. `appeals`: where it may, its contributor does.
    `further`: outcomes of the looks from the third on; for those that are missing, nobody answers.
    """

    commit: bool = True
    refused: str | None = None
    logged: bool = False
    copies: int | None = None
    serves: bool = True
    first: str = "pass"
    second: str = "pass"
    silent: int = 0
    ms: int = 700
    unlike: bool = False
    lost: bool = False
    appeals: bool = False
    further: tuple[str, ...] = ()


GOOD = Fate()
LATE = Fate(commit=False)
CHEAT = Fate(first="fail", second="fail")

fates = st.one_of(
    st.just(GOOD),
    st.just(LATE),
    st.builds(Fate, refused=st.sampled_from(STRIKES)),
    st.just(Fate(refused="unrevealed", logged=True)),
    st.builds(Fate, copies=st.integers(0, 3)),
    st.builds(
        Fate,
        serves=st.booleans(),
        first=st.sampled_from(("pass", "fail", "none")),
        second=st.sampled_from(("pass", "fail", "differ", "none")),
        silent=st.integers(0, 2),
        ms=st.integers(0, 5000),
        lost=st.sampled_from((False, False, False, True)),
        appeals=st.booleans(),
        further=st.lists(st.sampled_from(("pass", "fail", "differ", "none")), max_size=2).map(tuple),
    ),
)
scripts = st.lists(st.dictionaries(st.integers(0, 3), fates), min_size=1, max_size=9)
