"""Intake of what auditors tell of steps before they are shown where these end, and of verdicts after it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import Play, started, verdict
from tests.verification.fake_tolerance import tolerance
from verification.encoding import canonical_json
from verification.errors import BarnraiseError, FormatError, ProtocolError
from verification.intake import check_sketches, check_told
from verification.records import FirstLooks, Verdict
from verification.rounds import apply
from verification.state import RunState
from verification.tolerance import NO_SKETCH, ServedStep, Sketch

SKETCHES = [tuple(range(8)), tuple(range(-8, 0))]
numbers = st.integers(-(10**7), 10**7)


@given(st.lists(st.lists(numbers, min_size=8, max_size=8), max_size=4))
def test_sketches_are_told_as_lists_of_eight_integers(told: list[list[int]]) -> None:
    assert check_told(canonical_json(told), len(told)) == [tuple(sketch) for sketch in told]
    with pytest.raises(FormatError):
        check_told(canonical_json(told), len(told) + 1)


@given(
    st.one_of(
        st.none(),
        st.text(),
        st.binary(),
        st.integers(),
        st.lists(st.integers()),
        st.recursive(numbers, lambda inner: st.lists(inner, max_size=9), max_leaves=20).map(canonical_json),
    )
)
def test_whatever_an_auditor_answers_is_sketches_or_an_error_of_the_family(answer: Any) -> None:
    try:
        found = check_told(answer, 2)
    except BarnraiseError:
        return
    assert [len(sketch) for sketch in found] == [8, 8]


@pytest.mark.parametrize(
    "odd", [[10**7 + 1] * 8, [-(10**7) - 1] * 8, [True] + [0] * 7, ["0"] * 8, [None] * 8, [[0]] * 8, 8, {}]
)
def test_what_is_no_sketch(odd: Any) -> None:
    with pytest.raises(FormatError, match="sketch"):
        check_told(canonical_json([[0] * 8, odd]), 2)


def test_an_answer_that_is_too_long_is_not_read() -> None:
    with pytest.raises(FormatError, match="too long"):
        check_told(b"[" * 100_000, 2)


# --- verdicts ---


@cache
def judged() -> RunState:
    """A turn that waits for first looks; slot 3 rests on tolerance, and two of its segments are drawn."""
    values = {"rate_ppm": 1_000_000, "second_look_ppm": 1_000_000, "probation_rounds": 0, "segments": 2}
    told = {**values, "tolerance": [tolerance("other", "class", norm_ppb=2_000_000)]}
    train = {"trace_every": 1, "steps": [4, 2, 3, 3]}
    play = Play(started(classes={"c3": "other"}, audit=told, train=train))
    state = play.state
    play.turn({})
    for record in play.records:
        if isinstance(record, FirstLooks):
            break
        state = apply(state, record)
    return state


def said(outcome: str = "pass", sketches: list[Sketch] = SKETCHES) -> Verdict:
    turn = judged().open_turn
    assert turn.draw
    auditor = next(item.auditors[0] for item in turn.draw.drawn if item.slot == 3)
    record = verdict(judged(), 3, 1, auditor, outcome)
    pairs = zip(record.deviations, sketches, strict=True)
    return replace(record, deviations=tuple(replace(d, sketch=sketch) for d, sketch in pairs))


ROUNDING = 40
MOST = 8 * 2_000_000 // 10_000 + 2 + ROUNDING


def served(sketches: list[Sketch]) -> list[ServedStep]:
    return [ServedStep(sketch, ROUNDING) for sketch in sketches]


def off(by: int) -> list[Sketch]:
    """The sketches, with one number of the second off by something."""
    return [SKETCHES[0], (*SKETCHES[1][:5], SKETCHES[1][5] + by, *SKETCHES[1][6:])]


@pytest.mark.parametrize("by", [0, MOST, -MOST])
def test_a_pass_whose_sketches_are_near_what_was_served_is_taken(by: int) -> None:
    check_sketches(judged().open_turn, said(), SKETCHES, served(off(by)))


@pytest.mark.parametrize("by", [MOST + 1, -MOST - 1, 10**6])
def test_a_pass_of_a_step_that_was_not_seen_is_refused(by: int) -> None:
    with pytest.raises(ProtocolError, match="has not seen"):
        check_sketches(judged().open_turn, said(), SKETCHES, served(off(by)))


def test_nobody_passes_a_step_that_has_no_gradient() -> None:
    """Else zeros would be where a lazy contributor and a lazy auditor meet."""
    nothing = [SKETCHES[0], NO_SKETCH]
    with pytest.raises(ProtocolError, match="has not seen"):
        check_sketches(judged().open_turn, said(sketches=nothing), nothing, served(nothing))


def test_who_fails_a_step_need_not_be_near_it() -> None:
    record = replace(said(), outcome="fail", differs=("deviation",))
    check_sketches(judged().open_turn, record, SKETCHES, served(off(10**6)))


@pytest.mark.parametrize("outcome", ["pass", "fail"])
@pytest.mark.parametrize("told", [off(1), SKETCHES[::-1], SKETCHES[:1], []])
def test_a_verdict_states_what_was_told_before(told: list[Sketch], outcome: Any) -> None:
    """Else it could be written from what was served since."""
    record = replace(said(), outcome=outcome)
    with pytest.raises(ProtocolError, match="other sketches than were told"):
        check_sketches(judged().open_turn, record, told, served(SKETCHES))


def test_what_is_judged_to_the_bit_has_no_sketches() -> None:
    turn = judged().open_turn
    assert turn.draw
    auditor = next(item.auditors[0] for item in turn.draw.drawn if item.slot == 0)
    check_sketches(turn, verdict(judged(), 0, 1, auditor, "pass"), [], [])
