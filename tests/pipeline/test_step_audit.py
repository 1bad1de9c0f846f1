"""An audit by tolerance repeats single steps between served points: what it states, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import arrays_from_bytes, weight_specs
from model.hidden_state import midway_specs
from model.local_steps import Midpoint, trace_leaf
from pipeline import step_audit
from pipeline.segment_audit import NO_DIGEST, Case
from pipeline.step_audit import recompute
from pipeline.trace import NOT_FINITE
from pipeline.work import run_segments
from tests.pipeline.segment_world import (
    Change,
    Told,
    case_of,
    honest,
    moved,
    tell,
    with_state,
    with_weights,
)
from verification.encoding import blake3_digest
from verification.errors import ProtocolError
from verification.judge import Recomputed, judged
from verification.segments import looked_into
from verification.tolerance import NO_BOUND, Deviation, Thresholds

STEPS = 4
MODES = ("local", "gradient")
ALL_SETS = [set(s) for s in chain.from_iterable(combinations(range(STEPS), n) for n in range(1, STEPS + 1))]
TIGHT = {"loss_ppm": 0, "norm_ppb": 1_000, "peak_ppm": 100, "step_milli": 1_000}
HERE = "elsewhere"  # the auditor's class


def true(mode: str = "local") -> Told:
    return honest(mode, STEPS, 1)


def a_case(mode: str = "local") -> Case:
    return case_of(mode, STEPS, 1)


def differs(told: Told, segments: set[int], **limits: int) -> tuple[str, ...]:
    """What a verdict of another class says."""
    mine = told.case.entry.numerics_class
    tolerances = [{"classes": [mine, HERE], **TIGHT, **limits}]
    audit = replace(told.audit(segments, tolerant=True), tolerances=tolerances)
    return judged(audit, HERE, told.opening, told.audited(segments, tolerant=True))


def point_of(told: Told, index: int) -> Midpoint:
    """Where a segment begins: the served end of the one before."""
    case = told.case
    if index == 0:
        return Midpoint(case.weights, case.start)
    leaf, specs = told.leaves[index - 1], case.job.specs
    state = arrays_from_bytes(leaf.state, midway_specs(specs, case.job.spec.mode))
    return Midpoint(arrays_from_bytes(leaf.weights, weight_specs(specs)), state)


def numbers(found: Deviation) -> tuple[int, int, int, int]:
    return found.loss_ppm, found.norm_ppb, found.peak_ppm, found.step_milli


# --- true work ---


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(MODES), st.sampled_from(ALL_SETS))
def test_true_work_of_the_same_class_has_no_deviation_and_the_served_leaves(
    mode: str, segments: set[int]
) -> None:
    told = true(mode)
    found = told.audited(segments, tolerant=True)
    for segment, deviation in zip(sorted(segments), found.deviations, strict=True):
        assert numbers(deviation)[:3] == (0, 0, 0)
        assert deviation.step_milli <= (1_000 if mode == "local" else 0)
        assert deviation.own == told.claims.trace[segment]
    places = {place for place, leaf in enumerate(found.trace) if ":" in leaf}
    assert places == looked_into(sorted(segments), STEPS)
    assert all(found.trace[place] == told.claims.trace[place] for place in places)
    assert (found.payload, found.next_state) == (told.claims.payload, told.claims.next_state)
    assert found.loss_first == (told.claims.loss_first if 0 in segments else None)
    assert found.loss_last == told.claims.loss_last
    assert differs(told, segments) == ()


def test_without_a_trace_nothing_is_audited_by_tolerance() -> None:
    told = true()
    for segments in ({1}, set(range(STEPS))):
        with pytest.raises(ProtocolError, match="needs an opened trace"):
            recompute(told.case, told.audit(segments, tolerant=True), None, {})


def nudged(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Steps as another class takes them: a little off in what carries the gradient, and in the loss."""

    def off(*arguments: Any) -> Any:
        done = run_segments(*arguments)
        carrier = "gradient_sum" if "gradient_sum" in done.end.state else "adam_m"
        state = {**done.end.state, carrier: done.end.state[carrier] * np.float32(1 + by)}
        end = replace(done.end, state=state)
        losses = tuple(loss + 50 for loss in done.losses)
        leaf = trace_leaf(end, arguments[-1][0] + 1, losses)
        return replace(done, end=end, leaves=(leaf,), losses=losses)

    monkeypatch.setattr(step_audit, "run_segments", off)


@pytest.mark.parametrize("mode", MODES)
def test_another_class_finds_a_little_and_states_its_own_leaves(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, plain = true(mode), true(mode).audited({1, 2}, tolerant=True)
    nudged(monkeypatch, 2.0**-16)
    found = told.audited({1, 2}, tolerant=True)
    assert replace(found, deviations=()) == replace(
        plain, deviations=()
    )  # the boundary is of what was served
    for segment, deviation in zip((1, 2), found.deviations, strict=True):
        # Losses are near 5.7 * 10^6 micronats, so 50 of them are 9 millionths, or a little less.
        assert 8 <= deviation.loss_ppm <= 10
        assert 1_000 < deviation.norm_ppb < 10**6
        assert deviation.peak_ppm > 0
        assert deviation.own != told.claims.trace[segment]
    assert differs(told, {1, 2}) == ("deviation",)
    wide = {"loss_ppm": 10, "norm_ppb": 10**6, "peak_ppm": 10**5}
    assert differs(told, {1, 2}, **wide) == ()


# --- false work ---


def skipped(mode: str, false: int) -> Change:
    """A step that was not taken, and is only counted."""
    before = point_of(true(mode), false)

    def change(point: Midpoint) -> Midpoint:
        state = {**point.state, **before.state, "step": point.state["step"]}
        return Midpoint(before.weights, state)

    return change


def elsewhere(mode: str, false: int) -> Change:
    """A step on the windows of another position."""
    case = a_case(mode)
    entry = replace(case.entry, positions=((2 * STEPS, 4 * STEPS),))
    done = run_segments(case.job, case.data, case.open, entry, point_of(true(mode), false), (false, false))
    return lambda _: done.end


LIES: dict[str, dict[str, Callable[[str, int], Change]]] = {
    "local": {
        "weights": lambda *_: moved,
        "one weight": lambda *_: with_weights(0.7),
        "adam_m": lambda *_: with_state(adam_m=lambda m: m + np.float32(1e-4)),
        "adam_v": lambda *_: with_state(adam_v=lambda v: v * np.float32(1.001)),
        "skipped": skipped,
        "other windows": elsewhere,
    },
    "gradient": {
        "sum": lambda *_: with_state(gradient_sum=lambda s: s + np.float32(1e-3)),
        "skipped": skipped,
        "other windows": elsewhere,
    },
}
# Nothing is summed before the first step, so in gradient mode there is none to leave out.
CASES = [
    (mode, name, false)
    for mode in MODES
    for name in LIES[mode]
    for false in (0, 1, STEPS - 1)
    if (mode, name, false) != ("gradient", "skipped", 0)
]


@pytest.mark.parametrize(("mode", "name", "false"), CASES)
def test_a_false_step_is_found_exactly_when_it_is_drawn(mode: str, name: str, false: int) -> None:
    """What follows is true work from the false point, so nothing but that one step deviates."""
    told = tell(a_case(mode), {false: LIES[mode][name](mode, false)})
    assert told.claims.trace[false] != true(mode).claims.trace[false]
    others = {(false + 1) % STEPS, (false + 2) % STEPS}
    for segments in ({false}, {false, *others}, others):
        assert differs(told, segments) == (("deviation",) if false in segments else ()), segments
    found = told.audited({false, *others}, tolerant=True).deviations
    for segment, deviation in zip(sorted({false, *others}), found, strict=True):
        assert Thresholds(**TIGHT).exceeded_by(deviation) is (segment == false)


def test_which_number_a_lie_shows_in() -> None:
    """Of the gradient or of the optimizer: each finds what the other cannot."""

    def found(change: Change, mode: str = "local") -> Deviation:
        (deviation,) = tell(a_case(mode), {1: change}).audited({1}, tolerant=True).deviations
        return deviation

    for change in (moved, with_weights(0.7), with_state(adam_v=lambda v: v * np.float32(1.001))):
        assert numbers(found(change))[:3] == (0, 0, 0)
        assert found(change).step_milli > 2_000
    windows = found(elsewhere("local", 1))
    assert windows.norm_ppb > 10**8
    assert windows.peak_ppm > 10**5
    assert windows.step_milli <= 1_000  # an optimizer's honest step, of another gradient
    summed = found(elsewhere("gradient", 1), "gradient")
    assert summed.norm_ppb > 10**8
    assert summed.step_milli == 0


def test_weights_that_move_in_gradient_mode_are_found_always() -> None:
    told = tell(a_case("gradient"), {0: moved})
    for segments in ({0}, {1}, {3}):
        assert "trace" in differs(told, segments)


def with_losses(told: Told, index: int, loss: int) -> Told:
    """A leaf with another loss, in a trace that holds together."""
    leaf = replace(told.leaves[index], losses=(loss,))
    digest = leaf.digest(told.case.steps_at(index))
    trace = (*told.claims.trace[:index], digest, *told.claims.trace[index + 1 :])
    return replace(told.claiming(trace=trace), leaves={**told.leaves, index: leaf})


@pytest.mark.parametrize("mode", MODES)
def test_a_false_loss_is_found_when_its_step_is_drawn(mode: str) -> None:
    told = true(mode)
    loss = told.leaves[1].losses[0]
    lied = with_losses(told, 1, loss + loss // 100)
    assert differs(lied, {2, 3}) == differs(lied, {1}, loss_ppm=10_000) == ()
    assert differs(lied, {1}) == differs(lied, {1, 2}) == ("deviation",)
    (deviation,) = lied.audited({1}, tolerant=True).deviations
    assert numbers(deviation)[:3] == (10_000, 0, 0)


def test_first_and_last_loss_are_those_of_the_served_leaves() -> None:
    told = true()
    first, last = told.claims.loss_first, told.claims.loss_last
    assert first is not None
    for segments in ALL_SETS:
        lied = told.claiming(loss_first=first + 1)
        assert differs(lied, segments) == (("loss",) if 0 in segments else ())
        assert differs(told.claiming(loss_last=last + 1), segments) == ("loss",)
    lied = with_losses(with_losses(told, 0, 7), STEPS - 1, 9).claiming(loss_first=7, loss_last=9)
    assert "loss" not in differs(lied, {0, STEPS - 1})
    assert lied.audited({0}, tolerant=True).loss_first == 7
    assert lied.audited({1}, tolerant=True).loss_last == 9


# --- the boundary ---


@pytest.mark.parametrize("mode", MODES)
def test_what_was_sent_has_to_follow_from_the_served_last_leaf(mode: str) -> None:
    told, false = true(mode), blake3_digest(b"poison")
    boundary = (*told.claims.trace[:-1], "sha256:" + "5" * 64)
    for segments in ({0}, {1}, {STEPS - 1}, set(range(STEPS))):
        assert differs(told.claiming(next_state=false), segments) == ("next_state",)
        assert differs(told.claiming(payload=false), segments) == ("payload",)
        assert differs(told.claiming(trace=boundary), segments) == ("trace",)


@pytest.mark.parametrize("mode", MODES)
def test_a_last_leaf_that_is_false_alone_is_found_though_it_is_not_drawn(mode: str) -> None:
    change = LIES[mode]["weights" if mode == "local" else "sum"](mode, STEPS - 1)
    told = tell(a_case(mode), {STEPS - 1: change}, for_good=False)
    assert told.claims.payload == true(mode).claims.payload
    found = differs(told, {0})
    assert "payload" in found
    assert "deviation" not in found
    assert "deviation" in differs(told, {STEPS - 1})


@pytest.mark.parametrize("false", range(STEPS))
def test_a_leaf_that_is_false_alone_is_found_whenever_it_is_looked_into(false: int) -> None:
    told = tell(a_case(), {false: moved}, for_good=False)
    for segments in ALL_SETS:
        assert bool(differs(told, segments)) == (false in looked_into(sorted(segments), STEPS)), segments


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("local", with_state(error_feedback=lambda e: e + np.float32(0.01))),
        ("gradient", with_state(error_feedback=np.nan)),
        ("local", with_state(step=lambda step: step + 1)),
        ("gradient", with_state(step=-5)),
        ("local", with_state(step=2**62)),
    ],
)
def test_an_error_feedback_or_step_in_a_leaf_is_not_believed(mode: str, change: Change) -> None:
    for false in range(STEPS):
        told = tell(a_case(mode), {false: change}, for_good=False)
        for segments in ({0}, {1}, {3}, {0, 2}):
            looked = false in looked_into(sorted(segments), STEPS)
            assert differs(told, segments) == (("trace",) if looked else ()), (false, segments)


# --- what is not finite ---


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e38])
@pytest.mark.parametrize("part", ["weights", "adam_m", "adam_v", "gradient_sum"])
def test_opened_leaves_of_any_numbers_fail_and_are_no_exception(part: str, value: float) -> None:
    mode = "gradient" if part == "gradient_sum" else "local"
    change = with_weights(value) if part == "weights" else with_state(**{part: value})
    for false in (0, STEPS - 1):
        told = tell(a_case(mode), {false: change}, for_good=False)
        for segments in ({false}, {1}, {2}, {0, 3}):
            looked = looked_into(sorted(segments), STEPS)
            found: Recomputed = told.audited(segments, tolerant=True)
            assert bool(differs(told, segments)) is (false in looked), (false, segments)
            if false in segments:
                deviation = found.deviations[sorted(segments).index(false)]
                assert max(numbers(deviation)) >= 10**9
                assert np.isfinite(value) or NO_BOUND in numbers(deviation)


def test_what_the_auditor_gets_that_is_not_finite_has_no_bound_in_anything() -> None:
    told = tell(a_case(), {1: with_weights(np.nan)}, for_good=False)
    found = told.audited({0, 1, 2}, tolerant=True)
    after = found.deviations[2]
    assert after == Deviation(NO_BOUND, NO_BOUND, NOT_FINITE, NO_BOUND, NO_BOUND)
    assert found.deviations[0] == true().audited({0}, tolerant=True).deviations[0]
    # From a true start the auditor's own leaf is the true one, whatever was served.
    assert found.deviations[1].own == true().claims.trace[1]
    assert (found.payload, found.next_state) == (told.claims.payload, told.claims.next_state)


def test_a_last_leaf_that_is_not_finite_has_no_payload() -> None:
    told = tell(a_case(), {STEPS - 1: with_weights(np.nan)}, for_good=False)
    found = told.audited({0}, tolerant=True)
    assert (found.payload, found.next_state, found.trace[-1]) == (NO_DIGEST, NO_DIGEST, NOT_FINITE)
    assert differs(told, {0}) == ("trace", "payload", "next_state")


def test_a_negative_second_moment_has_no_bound() -> None:
    told = tell(a_case(), {1: with_state(adam_v=-1.0)}, for_good=False)
    (deviation,) = told.audited({1}, tolerant=True).deviations
    assert deviation.step_milli == NO_BOUND
    (deviation,) = told.audited({2}, tolerant=True).deviations
    assert deviation.own == NOT_FINITE
