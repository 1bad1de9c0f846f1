"""Turns that come to a dispute: many auditors, what becomes of a slot, and states in the middle of them.

Two of the auditors, a4 and a5, are of one operator, so there are five that can be heard. Only slots 0 and 1
commit; both are drawn, and looked at twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.verification.fake_run import LATE, Fate, Play, started, verdict
from tests.verification.late_play import LatePlay
from verification.plans import plan_first_looks
from verification.records import FirstLooks, Record, SecondDraw, Verdict
from verification.rounds import apply
from verification.state import RunState

MANY = {"a0": "op-v", "a1": "op-w", "a2": "op-x", "a3": "op-y", "a4": "op-z", "a5": "op-z"}
EVERYTHING = {"rate_ppm": 1_000_000, "second_look_ppm": 1_000_000, "probation_rounds": 0, "segments": 0}

FALSE_ALARM = Fate(first="fail", further=("pass", "pass"))  # 3:1, and the first auditor is overruled
STAMPED = Fate(second="fail", further=("fail", "fail"))  # who passed it unseen is overruled
BOTH_LIE = Fate(first="fail", second="fail", appeals=True, further=("pass", "pass", "pass"))  # 3:2, appealed
IN_VAIN = Fate(first="fail", second="fail", appeals=True, further=("fail",))
LOST = Fate(lost=True, second="fail")


def many(lag: int = 0, classes: Mapping[str, str] | None = None, **audit: Any) -> RunState:
    """The state after all enrolments."""
    sections = {"audit": {**EVERYTHING, **audit, "lag": lag}, "credit": {"vest_rounds": lag + 1}}
    return started(MANY, classes=classes, **sections)


def two(slot_0: Fate | None = None, slot_1: Fate | None = None) -> dict[int, Fate]:
    """A script in which only slots 0 and 1 hand something in."""
    return {0: slot_0 or Fate(), 1: slot_1 or Fate(), 2: LATE, 3: LATE}


def disputed(slot_0: Fate | None = None, slot_1: Fate | None = None, lag: int = 0, **audit: Any) -> Play:
    """A turn in which the two slots fare so, closed, and settled where audits lag."""
    play = LatePlay(many(lag, **audit)) if lag else Play(many(**audit))
    play.turn(two(slot_0, slot_1))
    if isinstance(play, LatePlay):
        while not play.state.due:
            play.turn({})
        play.settle_due()
    return play


def until(play: Play, start: RunState, kind: type, number: int = 0) -> tuple[RunState, Any]:
    """The state before the record of this number of a kind, and that record."""
    state = start
    for record in play.records:
        if isinstance(record, kind):
            if not number:
                return state, record
            number -= 1
        state = apply(state, record)
    raise AssertionError(kind)


def at(
    kind: type,
    slot_0: Fate | None = None,
    slot_1: Fate | None = None,
    lag: int = 0,
    number: int = 0,
    **audit: Any,
) -> tuple[RunState, Any]:
    """The state before the first record of a kind in such a turn, and that record."""
    return until(disputed(slot_0, slot_1, lag, **audit), many(lag, **audit), kind, number)


def sealed(lag: int = 0, **audit: Any) -> tuple[RunState, dict[int, Verdict]]:
    """The state in which the seals are due, and a passing first verdict of each of the two slots."""
    state, _ = at(FirstLooks, lag=lag, **audit)
    orders = drawn(state)
    return state, {slot: verdict(state, slot, 1, order[0], "pass") for slot, order in orders.items()}


def drawn(state: RunState) -> dict[int, tuple[str, ...]]:
    """The auditors of each drawn slot, in their order."""
    draw = state.open_turn.draw
    assert draw
    return {item.slot: item.auditors for item in draw.drawn if item.slot in (0, 1)}


def heard(
    first: str = "fail",
    second: str = "pass",
    lag: int = 0,
    slots: tuple[int, ...] = (0,),
    silent: int = 0,
    **audit: Any,
) -> RunState:
    """The state after both looks at some slots; the other passed. `silent`: asked in vain in look 1."""
    torn, fine = Fate(first=first, second=second, silent=silent), Fate()
    fates = [torn if slot in slots else fine for slot in (0, 1)]
    state, _ = at(Verdict, *fates, lag=lag, **audit)
    for record in disputed(*fates, lag=lag, **audit).records:
        if isinstance(record, Verdict) and record.round == 1:
            state = apply(state, record)
    return state


def given(state: RunState, *verdicts: Record) -> RunState:
    """The state after some records."""
    for record in verdicts:
        state = apply(state, record)
    return state


def seals_of(state: RunState, *verdicts: Verdict) -> FirstLooks:
    """The seals of these verdicts."""
    return plan_first_looks(state, verdicts)


def second_draw(lag: int = 0) -> tuple[RunState, SecondDraw]:
    """The state before the second draw, and the draw."""
    return at(SecondDraw, lag=lag)


def failed_alike() -> RunState:
    """The state in which both slots' contributors may appeal."""
    return heard("fail", "fail", slots=(0, 1))
