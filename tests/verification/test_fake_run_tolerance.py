"""Made-up runs by tolerance: each record is what the state machine takes, and settles as it must."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import CHEAT, GOOD, LATE, Fate, Play, can_open, started
from tests.verification.fake_tolerance import tolerance
from verification.records import RoundClose, Verdict
from verification.state import RunState

FAR = Fate(first="far", second="far")
UNLIKE = Fate(unlike=True)
TORN = Fate(first="pass", second="far")


def lone(*items: dict[str, Any], **audit: int) -> RunState:
    """c3 is of a class without auditors; `items` are the tolerances, for class of the others by default."""
    values = {"rate_ppm": 1_000_000, "second_look_ppm": 1_000_000, "probation_rounds": 0, "segments": 2}
    told = {**values, **audit, "tolerance": list(items or [tolerance("other", "class")])}
    return started(classes={"c3": "other"}, audit=told, train={"trace_every": 1, "steps": [4, 2, 3, 3]})


def reason(play: Play, slot: int = 3) -> str | None:
    close = play.state.last_close
    assert isinstance(close, RoundClose)
    return {item.slot: item.reason for item in close.rejected}.get(slot)


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (GOOD, None),
        (FAR, "failed-audit"),
        (CHEAT, "failed-audit"),
        (UNLIKE, "disputed"),
        (Fate(first="far", second="far", unlike=True), "disputed"),
        (TORN, "disputed"),
        (Fate(first="far", second="none"), "unconfirmed"),
        (Fate(serves=False), "unserved"),
        (LATE, "late"),
    ],
)
def test_how_a_slot_by_tolerance_settles(fate: Fate, expected: str | None) -> None:
    play = Play(lone())
    play.turn({3: fate})
    assert reason(play) == expected
    found = {r.slot: r for r in play.records if isinstance(r, Verdict)}
    assert [slot for slot, verdict in found.items() if verdict.deviations] == [s for s in found if s == 3]
    if fate == FAR:
        assert found[3].differs == ("deviation",)
        assert len(found[3].deviations) == 2


def test_without_a_tolerance_for_its_class_nobody_is_eligible() -> None:
    play = Play(lone(tolerance("other", "third")))
    play.turn({})
    assert reason(play) == "no-eligible-auditor"


@pytest.mark.parametrize(("cap", "weight"), [(1, 0), (200_000, 18), (250_000, 24), (1_000_000, 24)])
def test_the_weight_by_tolerance_is_capped(cap: int, weight: int) -> None:
    """c3 has 3 of 12 steps, of 8 tokens each: 24 beside 72."""
    play = Play(lone(tolerance_cap_ppm=cap))
    play.turn({})
    close = play.state.last_close
    assert close
    assert {item.slot: item.weight for item in close.accepted}[3] == weight


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from((GOOD, FAR, CHEAT, UNLIKE, TORN, LATE)), min_size=1, max_size=4))
def test_any_such_run_is_one(fates: list[Fate]) -> None:
    play = Play(lone())
    for fate in fates:
        if can_open(play.state):
            play.turn({3: fate})
    assert play.state.turns == len([r for r in play.records if isinstance(r, RoundClose)]) == len(fates)
