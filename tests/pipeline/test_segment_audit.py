"""An audit of some segments states what the whole work has, and finds what is false in what it looks into."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.segment_audit import NO_DIGEST, audit_segments
from pipeline.trace import NOT_FINITE
from pipeline.work import boundary_leaf, do_work
from tests.pipeline.segment_world import (
    STEPS,
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
from verification.errors import NotFiniteError, ProtocolError
from verification.judge import Recomputed, differences, trace_leaf_hash
from verification.segments import looked_into, opened_leaves

COUNT = 4  # seven steps, a leaf every two
MODES = ("local", "gradient")
ALL_SETS = [set(s) for s in chain.from_iterable(combinations(range(COUNT), n) for n in range(1, COUNT + 1))]
SOME_SETS = [{0}, {1}, {3}, {0, 2}, {1, 3}, {0, 1, 2}]  # each leaf drawn, opened and neither
sets = st.sampled_from(ALL_SETS)


def as_audited(told: Told, segments: set[int]) -> Recomputed:
    """What an auditor of true work has to state: its leaves where it looks, and hashes elsewhere."""
    claims = told.claims
    places = looked_into(sorted(segments), told.case.count)
    trace = tuple(
        leaf if place in places else trace_leaf_hash(leaf).hex() for place, leaf in enumerate(claims.trace)
    )
    first = claims.loss_first if 0 in segments else None
    return Recomputed(claims.payload, claims.next_state, trace, first, claims.loss_last)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_audit_of_any_segments_of_true_work_states_the_whole_works_digests(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(MODES))
    steps, every = data.draw(st.integers(1, STEPS)), data.draw(st.sampled_from((1, 2, 3)))
    told = honest(mode, steps, every)
    segments = data.draw(st.sets(st.integers(0, told.case.count - 1), min_size=1))
    assert told.audited(segments) == as_audited(told, segments)
    assert told.differs(segments) == ()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_work_done_in_segments_is_the_work_done_at_once(mode: str, every: int) -> None:
    told, case = honest(mode, STEPS, every), case_of(mode, STEPS, every)
    kept = {}
    work = do_work(
        case.job, case.data, case.open, case.entry, case.weights, case.start, keep=kept.__setitem__
    )
    assert work == told.work
    assert kept == told.leaves
    assert len(work.claims.trace) == -(-STEPS // every) + 1
    assert audit_segments(case, range(case.count), None) == work.claims


def test_the_boundary_is_what_was_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def noting(accumulated_P: np.ndarray) -> str:
        seen.append(accumulated_P.copy())
        return boundary_leaf(accumulated_P)

    monkeypatch.setattr("pipeline.work.boundary_leaf", noting)
    told = tell(case_of())
    (accumulated_P,) = seen
    codec = told.case.job.codec
    assert codec.encode(accumulated_P) == told.work.payload
    assert told.claims.trace[-1] == boundary_leaf(accumulated_P)
    other = accumulated_P.copy()
    other[-1] = np.nextafter(other[-1], np.float32(9))
    assert boundary_leaf(other) != told.claims.trace[-1]


# --- false work ---


summed = with_state(gradient_sum=lambda total: total + np.float32(1e-3))
FALSEHOODS = {
    "local": [moved, with_weights(7.0), with_state(adam_m=1e-3)],
    "gradient": [summed, with_state(gradient_sum=3), with_state(gradient_sum=-1)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("false", range(COUNT))
def test_a_false_segment_is_found_exactly_when_it_is_drawn(mode: str, false: int) -> None:
    """The trace holds together: what follows from the false point is true work."""
    told = tell(case_of(mode), {false: FALSEHOODS[mode][0]})
    assert told.claims.payload != honest(mode).claims.payload
    for segments in ALL_SETS:
        differs = told.differs(segments)
        assert ("trace" in differs) == bool(differs) == (false in segments), segments


@pytest.mark.parametrize("segments", SOME_SETS, ids=str)
def test_weights_that_move_in_gradient_mode_are_found_always(segments: set[int]) -> None:
    assert "trace" in tell(case_of("gradient"), {0: moved}).differs(segments)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MODES), st.sets(st.integers(0, COUNT - 1), min_size=1), sets, st.integers(0, 2))
def test_false_segments_are_found_exactly_when_one_is_drawn(
    mode: str, false: set[int], segments: set[int], which: int
) -> None:
    told = tell(case_of(mode), dict.fromkeys(false, FALSEHOODS[mode][which]))
    assert bool(told.differs(segments)) == bool(false & segments)


@pytest.mark.parametrize("false", range(COUNT))
def test_a_leaf_that_is_false_alone_is_found_whenever_it_is_looked_into(false: int) -> None:
    """Opened or recomputed: in either case what follows is not what was committed to."""
    told = tell(case_of(), {false: moved}, for_good=False)
    for segments in ALL_SETS:
        assert bool(told.differs(segments)) == (false in looked_into(sorted(segments), COUNT)), segments


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("segments", SOME_SETS, ids=str)
def test_a_poisoned_next_state_or_payload_is_found_always(mode: str, segments: set[int]) -> None:
    told, false = honest(mode), blake3_digest(b"poison")
    assert told.claiming(next_state=false).differs(segments) == ("next_state",)
    assert told.claiming(payload=false).differs(segments) == ("payload",)
    boundary = (*told.claims.trace[:-1], "sha256:" + "5" * 64)
    assert told.claiming(trace=boundary).differs(segments) == ("trace",)


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("local", with_state(error_feedback=lambda e: e + np.float32(0.01))),
        ("gradient", with_state(error_feedback=lambda e: e + np.float32(0.01))),
        ("local", with_state(error_feedback=np.nan)),
        ("local", with_state(step=lambda step: step + 1)),
        ("gradient", with_state(step=-5)),
        ("local", with_state(step=2**62)),
    ],
)
def test_an_error_feedback_or_step_in_a_leaf_is_not_believed(mode: str, change: Change) -> None:
    """Where a leaf is opened, they are the log's: nothing but the leaf itself comes out otherwise."""
    for false in range(COUNT):
        told = tell(case_of(mode), {false: change}, for_good=False)
        for segments in SOME_SETS:
            looked = false in looked_into(sorted(segments), COUNT)
            assert told.differs(segments) == (("trace",) if looked else ()), (false, segments)


@pytest.mark.parametrize("mode", MODES)
def test_an_error_feedback_that_is_carried_to_the_end_is_found_always(mode: str) -> None:
    told = tell(case_of(mode), {1: with_state(error_feedback=lambda e: e + np.float32(0.01))})
    assert told.claims.payload != honest(mode).claims.payload
    for segments in ALL_SETS:
        assert {"trace", "payload", "next_state"} <= set(told.differs(segments)), segments


def test_what_is_said_of_losses() -> None:
    told = honest()
    first, last = told.claims.loss_first, told.claims.loss_last
    assert first is not None
    for segments in ALL_SETS:
        lied = told.claiming(loss_first=first + 1).differs(segments)
        assert lied == (("loss",) if 0 in segments else ())
        assert told.claiming(loss_last=last + 1).differs(segments) == ("loss",)


# --- what is not finite ---


def false_leaves(change: Change, mode: str = "local") -> list[tuple[int, Told]]:
    return [(false, tell(case_of(mode), {false: change}, for_good=False)) for false in range(COUNT)]


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e38])
@pytest.mark.parametrize("part", ["weights", "adam_m", "adam_v"])
def test_an_opened_leaf_of_any_numbers_fails_and_is_no_exception(part: str, value: float) -> None:
    change = with_weights(value) if part == "weights" else with_state(**{part: value})
    for false, told in false_leaves(change):
        for segments in SOME_SETS:
            looked, opened = looked_into(sorted(segments), COUNT), opened_leaves(sorted(segments), COUNT)
            found = told.audited(segments)
            assert bool(differences(told.opening, found)) == (false in looked), segments
            assert {place for place, leaf in enumerate(found.trace) if ":" in leaf} == looked
            if false in opened and false + 1 in segments and part == "weights":
                assert found.trace[false + 1] == NOT_FINITE
            if false in opened and false == COUNT - 1 and part == "weights" and not np.isfinite(value):
                assert (found.payload, found.next_state) == (NO_DIGEST, NO_DIGEST)
                assert found.trace[-1] == NOT_FINITE


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_gradient_sum_of_any_numbers_fails_and_is_no_exception(value: float) -> None:
    for false, told in false_leaves(with_state(gradient_sum=value), "gradient"):
        for segments in SOME_SETS:
            looked = false in looked_into(sorted(segments), COUNT)
            assert bool(told.differs(segments)) == looked, (false, segments)


def test_a_negative_second_moment_fails_and_is_no_exception() -> None:
    for false, told in false_leaves(with_state(adam_v=-1.0)):
        for segments in SOME_SETS:
            found = told.audited(segments)
            looked = false in looked_into(sorted(segments), COUNT)
            assert bool(differences(told.opening, found)) == looked
            if false in opened_leaves(sorted(segments), COUNT) and false + 1 in segments:
                assert found.trace[false + 1] == NOT_FINITE


def test_a_run_that_is_not_finite_leaves_the_other_runs_stated() -> None:
    told = tell(case_of(), {1: with_weights(np.nan)}, for_good=False)
    true = told.claims.trace
    found = told.audited({0, 2})  # from the start, and from leaf 1; leaf 3 is opened for the boundary
    assert found.trace[0] == true[0]
    assert found.trace[1] == true[1]
    assert found.trace[2] == NOT_FINITE
    assert found.trace[3:] == true[3:]
    assert (found.payload, found.next_state) == (told.claims.payload, told.claims.next_state)
    assert found.loss_first == told.claims.loss_first
    last = told.audited({0, 2, 3})  # now the boundary hangs on it
    assert last.trace == (true[0], true[1], NOT_FINITE, NOT_FINITE, NOT_FINITE)
    assert (last.payload, last.next_state, last.loss_last) == (NO_DIGEST, NO_DIGEST, 0)


def test_an_assignment_that_gives_nothing_finite_is_a_finding_when_it_is_audited() -> None:
    """Nobody honest commits to it; who commits to something all the same is judged."""
    case = case_of()
    wild = replace(case, open=replace(case.open, inner_lr=((1e38).hex(),) * STEPS))
    with pytest.raises(NotFiniteError):
        do_work(wild.job, wild.data, wild.open, wild.entry, wild.weights, wild.start)
    found = audit_segments(wild, range(COUNT), None)
    assert found == Recomputed(NO_DIGEST, NO_DIGEST, (NOT_FINITE,) * (COUNT + 1), 0, 0)


# --- what is asked for ---


@pytest.mark.parametrize(
    "segments", [[], [4], [-1], [0, 4], [1, 0], [1, 1], [True], ["0"], [0.0], [[0]], [2**70]]
)
def test_segments_that_no_draw_names_are_refused(segments: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="segments that are none"):
        case_of().checked(segments)


def test_an_audit_leaves_what_it_was_given_alone() -> None:
    case = case_of()
    before = {
        **{n: a.copy() for n, a in case.weights.items()},
        **{n: a.copy() for n, a in case.start.items()},
    }
    honest().audited({0, 2})
    after = {**case.weights, **case.start}
    assert all(np.array_equal(before[name], after[name]) for name in before)
