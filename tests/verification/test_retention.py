"""What the writer lets go of, against the specification's words said slowly over the whole log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import CHEAT, GOOD, LATE, Fate, Play, can_open, started
from tests.verification.late_play import ALL, UNAUDITED, UNCONFIRMED, LatePlay, late_start
from verification.records import Record, Reveal, RevealClose, RoundClose, RoundOpen, Settlement
from verification.retention import Retention, is_scheduled

ALL_LATE = dict.fromkeys(range(4), LATE)
SCRIPTS: list[dict[int, Fate]] = [
    {}, {}, {}, {0: UNAUDITED}, {2: UNCONFIRMED}, {1: LATE}, {3: CHEAT}, ALL_LATE
]  # fmt: skip


def played(lag: int, script: Sequence[dict[int, Fate]], rounds: int = 12) -> tuple[list[Record], Any]:
    """Records of a run and its configuration, without the sections that retention is about."""
    sections: dict[str, Any] = {"run": {"rounds": rounds, "max_void": 99}, "credit": {"strikes": 99}}
    audit = {**ALL, "second_look_ppm": 1_000_000}
    if lag:
        play: Play = LatePlay(
            late_start(lag, **{**sections, "audit": audit, "credit": {"vest_rounds": lag + 1}})
        )
    else:
        play = Play(started(**sections))
    for turn in script:
        if can_open(play.state):
            play.turn(turn, GOOD)
    return play.records, play.state.config


def kept(records: Sequence[Record], config: Any, rounds: int, every: int, sparse: int = 0) -> Retention:
    policy = {"payload_rounds": rounds, "checkpoint_every": sparse}
    found = Retention({**config, "retention": policy, "checkpoint": {"every": every}}, "zero")
    for record in records:
        found.see(record)
    return found


def firm(records: Sequence[Record], lag: int) -> list[int]:
    """Rounds that are firm, by the words of section 11."""
    closes = [record for record in records if isinstance(record, RoundClose)]
    settled = {(r.round, r.attempt): r for r in records if isinstance(r, Settlement)}
    found = []
    for at, close in enumerate(closes):
        if close.void:
            continue
        waits = [(c.round, c.attempt) for c in closes[max(0, at - lag) : at + 1]]
        if not lag or all(turn in settled and not settled[turn].removed for turn in waits):
            found.append(close.round)
    return found


def slowly(records: Sequence[Record], lag: int, rounds: int, every: int) -> tuple[int, set[str], set[str]]:
    """K, and the payloads and states that rounds above it name."""
    closed = max((r.round for r in records if isinstance(r, RoundClose) and not r.void), default=0)
    ready = [r for r in firm(records, lag) if r % every == 0 and r <= closed - rounds]
    floor = max(ready, default=0) if rounds else 0
    payloads, states = set[str](), set[str]()
    opened: RoundOpen | None = None
    reveals: dict[int, Reveal] = {}
    for record in records:
        if isinstance(record, RoundOpen):
            opened, reveals = record, {}
        elif isinstance(record, Reveal):
            reveals[record.slot] = record
        elif isinstance(record, RevealClose) and record.round > floor:
            openings = [reveals[slot].opening for slot in record.revealed]
            payloads |= {opening.payload for opening in openings}
            if opened and opened.snapshot:
                states |= {opening.start_state for opening in openings}
    return floor, payloads, states - {"zero"}


@settings(max_examples=60, deadline=None)
@given(
    lag=st.integers(0, 2),
    script=st.lists(st.sampled_from(SCRIPTS), max_size=14),
    rounds=st.integers(0, 6),
    every=st.integers(1, 3),
)
def test_what_stays_is_what_the_specification_says(
    lag: int, script: list[dict[int, Fate]], rounds: int, every: int
) -> None:
    """After every record: so after a crash at any place, too."""
    records, config = played(lag, script)
    found = kept([], config, rounds, every)
    before = 0
    for count, record in enumerate(records, 1):
        found.see(record)
        if isinstance(record, RevealClose | RoundClose | Settlement):
            assert (found.floor, found.payloads, found.states) == slowly(records[:count], lag, rounds, every)
            assert found.floor >= before, "K never falls"
            before = found.floor
    firm_here = [0, *(r for r in firm(records, lag) if r % every == 0)]
    assert found.firm == firm_here[-1]
    named = {r.opening.payload for r in records if isinstance(r, Reveal)}
    assert found.dropped == (len(named - found.payloads) if found.floor else 0)


def test_a_removal_makes_all_rounds_loose_that_were_closed_while_it_waited() -> None:
    script: list[dict[int, Fate]] = [{}, {}, {}, {0: UNAUDITED}, {}, {}, {}, {}, {}, {}]
    records, config = played(2, script)
    assert firm(records, 2) == [1, 2, 3, 7]
    assert kept(records, config, 1, 1).floor == 7
    assert kept(records, config, 4, 1).floor == 3


def test_without_a_policy_all_stays() -> None:
    records, config = played(0, [{}] * 8)
    found = kept(records, config, 0, 2)
    assert (found.floor, found.dropped, len(found.payloads), found.firm) == (0, 0, 32, 8)


@pytest.mark.parametrize(
    ("sparse", "stay"), [(0, [0, 2, 4, 6, 8, 10]), (4, [0, 4, 8, 10]), (6, [0, 6, 8, 10])]
)
def test_old_checkpoints_are_thinned(sparse: int, stay: list[int]) -> None:
    records, config = played(0, [{}] * 11)
    found = kept(records, config, 3, 2, sparse)
    assert found.floor == 8
    assert [round_ for round_ in range(12) if found.is_scheduled(round_)] == stay
    assert is_scheduled(8, every=2, floor=8, sparse=6)
    assert not is_scheduled(8, every=2, floor=9, sparse=6)


def test_memory_is_that_of_the_rounds_that_stay() -> None:
    records, config = played(0, [{}] * 12)
    assert len(kept(records, config, 4, 2)._named) == 4
    assert len(kept(records[:-200], config, 4, 2)._named) <= 6
