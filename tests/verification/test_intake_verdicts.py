"""Intake of verdicts on some segments: they state what the draw has looked into, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import Play, key, looked_at, sha, started, verdict
from verification.errors import BarnraiseError, ProtocolError
from verification.intake import check_verdict
from verification.judge import differences, trace_leaf_hash
from verification.records import SecondDraw, Verdict
from verification.rounds import apply
from verification.sealing import seal_record
from verification.segments import looked_into
from verification.state import RunState


@cache
def audited() -> RunState:
    """A turn that waits for verdicts of the second look; of slot 0 two of five segments are drawn.

    A run is chosen in which the lot has it that not all leaves are looked into, and fewer for one of the two.
    """
    return next(state for state in map(_audited, range(99)) if _leaves_some(state))


def _leaves_some(state: RunState) -> bool:
    drawn = state.open_turn.drawn_segments(0)
    return len(looked_into(drawn[:1], 5)) < len(looked_into(drawn, 5)) < 6


def _audited(number: int) -> RunState:
    audit = {"rate_ppm": 1_000_000, "probation_rounds": 0, "second_look_ppm": 1_000_000, "segments": 2}
    play = Play(started(train={"steps": [9, 2, 5, 1]}, audit=audit, run={"seed": number}))
    state = play.state
    play.turn({})
    for record in play.records:
        state = apply(state, record)
        if isinstance(record, SecondDraw):
            break
    return state


def auditor(look: int) -> str:
    turn = audited().open_turn
    items = turn.draw.drawn if look == 1 and turn.draw else turn.second.looks if turn.second else ()
    return next(item.auditors[0] for item in items if item.slot == 0)


def check(record: Verdict) -> Verdict:
    envelope = seal_record(record, key(record.auditor))
    return check_verdict(audited().open_turn, 0, record.look, record.auditor, envelope)


def honest(look: int = 1, outcome: str = "pass") -> Verdict:
    return verdict(audited(), 0, look, auditor(look), outcome)


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize("outcome", ["pass", "fail"])
def test_a_verdict_on_the_drawn_segments_is_taken_in_either_look(look: int, outcome: str) -> None:
    record = honest(look, outcome)
    assert check(record) == record
    assert record.outcome == outcome
    drawn = audited().open_turn.drawn_segments(0)
    assert len(drawn) == 2
    assert {i for i, leaf in enumerate(record.trace) if ":" in leaf} == looked_into(drawn, 5)
    # Hashes stand there too, or all below would be of whole audits only.
    assert len(looked_into(drawn, 5)) < len(record.trace) == 6


@pytest.mark.parametrize("outcome", ["pass", "fail"])
def test_a_verdict_on_other_segments_is_refused(outcome: str) -> None:
    turn = audited().open_turn
    entry, opening = turn.open.entry(0), turn.reveals[0].opening
    drawn = turn.drawn_segments(0)
    for segments in ((0, 1, 2, 3, 4), drawn[:1], (), tuple(sorted({0, 1, 2, 3, 4} - {*drawn}))):
        work = looked_at(turn.open, entry, segments, {"pass": "true", "fail": "other"}[outcome])
        assert bool(differences(opening, work)) == (outcome == "fail")
        record = replace(honest(1, outcome), trace=work.trace, loss_first=work.loss_first)
        with pytest.raises(ProtocolError, match="does not follow"):
            check(record)


def test_a_verdict_that_lacks_a_digest_or_has_one_too_many_is_refused() -> None:
    record, turn = honest(), audited().open_turn
    true = looked_at(turn.open, turn.open.entry(0), (0, 1, 2, 3, 4)).trace
    for place, leaf in enumerate(record.trace):
        other = trace_leaf_hash(leaf).hex() if ":" in leaf else true[place]
        with pytest.raises(ProtocolError, match="does not follow"):
            check(replace(record, trace=(*record.trace[:place], other, *record.trace[place + 1 :])))
    for trace in (record.trace[:-1], (*record.trace, record.trace[-1]), ()):
        changed: Any = {"trace": trace, "outcome": "fail", "differs": ("trace",)}
        with pytest.raises(ProtocolError, match="does not follow"):
            check(replace(record, **changed))


def test_the_first_loss_is_null_or_not_as_the_draw_has_it() -> None:
    record = honest()
    assert (record.loss_first is None) == (0 not in audited().open_turn.drawn_segments(0))
    other = 5_000_000 if record.loss_first is None else None
    with pytest.raises(ProtocolError, match="does not follow"):
        check(replace(record, loss_first=other))


leaves = st.one_of(
    st.sampled_from([sha("x"), "ab" * 32, "00" * 32]),
    st.sampled_from(honest().trace),
    st.text("ab:0sh256", max_size=80),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(leaves, max_size=8), st.none() | st.integers(-1, 2**53))
def test_any_other_trace_or_loss_is_refused_within_the_family(trace: list[str], loss: int | None) -> None:
    record = honest()
    if (tuple(trace), loss) == (record.trace, record.loss_first):
        return
    with pytest.raises(BarnraiseError):
        check(replace(record, trace=tuple(trace), loss_first=loss))
