"""Where audits lag, each settlement has one place in the log, and nothing comes in its stead."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import LATE, b3, revocation, rotation, scripts, sha
from tests.verification.late_play import (
    ALL,
    LatePlay,
    chain_links,
    late_played,
    late_rich_run,
    late_start,
    links_shown,
)
from verification.errors import BarnraiseError, ProtocolError
from verification.plans import plan_open, plan_run_close
from verification.records import (
    Base,
    Commitment,
    Enrol,
    FirstLooks,
    KeyRevocation,
    KeyRotation,
    Manifest,
    Overruled,
    Record,
    Reveal,
    RoundClose,
    RunClose,
    SecondDraw,
    Settlement,
    Verdict,
)
from verification.rounds import OfTurn, apply, begin, replay
from verification.state import RunState

LAGS = (1, 2)
LATER = (FirstLooks, SecondDraw, Verdict, Settlement)


@cache
def rich(lag: int) -> tuple[Manifest, list[Record], list[RunState]]:
    """The rich run, and the state before each of its records and after the last."""
    records = late_rich_run(lag)
    config = {"probation_rounds": 9, "second_look_ppm": 1_000_000}
    manifest = late_start(lag, 3, audit=config, run={"rounds": 6}).manifest
    found = [begin(manifest)]
    for record in records:
        found.append(apply(found[-1], record))
    return manifest, records, found


def refuses(state: RunState, record: Record, words: str | None = None) -> None:
    before = copy.deepcopy(state)
    with pytest.raises(ProtocolError, match=words):
        apply(state, record)
    assert state == before


def shape(play: LatePlay) -> list[str]:
    """Closes and settlements in the order of the log, by turn's place."""
    found = []
    for record in play.records:
        if isinstance(record, (RoundClose, Settlement)):
            mark = "close" if isinstance(record, RoundClose) else "settle"
            found.append(f"{mark} {record.round}.{record.attempt}")
    return found


@pytest.mark.parametrize("lag", LAGS)
def test_the_rich_run_has_every_late_reason_in_it(lag: int) -> None:
    _, records, found = rich(lag)
    reasons = Counter(item.reason for r in records if isinstance(r, Settlement) for item in r.removed)
    assert set(reasons) == {"disputed", "unconfirmed", "unaudited", "failed-audit", "follows"}
    assert sum(close.void for close in records if isinstance(close, RoundClose)) == 1
    assert found[-1].finished
    assert found[-1].waiting == ()


def test_a_settlement_stands_right_after_the_close_of_its_lag_and_the_rest_at_the_end() -> None:
    one = ["close 1.0", "close 2.0", "settle 1.0", "close 3.0", "settle 2.0", "close 4.0"]
    assert shape(late_played([{}] * 4, late_start(1))) == [*one, "settle 3.0", "settle 4.0"]
    two = ["close 1.0", "close 2.0", "close 3.0", "settle 1.0", "close 4.0"]
    assert shape(late_played([{}] * 4, late_start(2))) == [*two, "settle 2.0", "settle 3.0", "settle 4.0"]
    long = shape(late_played([{}] * 4, late_start(7)))
    assert long == [f"{what} {n}.0" for what in ("close", "settle") for n in (1, 2, 3, 4)]


def test_void_turns_count_and_are_settled_too() -> None:
    void = dict.fromkeys(range(4), LATE)
    play = late_played([{}, void, void, {}, {}, {}], late_start(2))
    assert shape(play)[:8] == [
        "close 1.0", "close 2.0", "close 2.1", "settle 1.0",
        "close 2.2", "settle 2.0", "close 3.0", "settle 2.1",
    ]  # fmt: skip
    late = [r for r in play.records if isinstance(r, Settlement)]
    assert all(record.removed == () for record in late)
    assert play.state.finished


def may_stand(lag: int, i: int, j: int) -> bool:
    """Whether record j may also come where record i does: members' records of a phase may be missing."""
    _, records, found = rich(lag)
    here, there = records[i], records[j]
    if j <= i:
        return False
    if isinstance(there, (KeyRotation, KeyRevocation)):
        return found[i].turn is None and found[i].due is None and found[i].turns > 0
    if isinstance(there, RunClose):
        return isinstance(here, KeyRotation) and i == j - 1
    if isinstance(here, Verdict):  # a sealed one may be lost, and a second one not given
        return isinstance(there, Verdict) and (here.round, here.attempt) == (there.round, there.attempt)
    return type(here) is type(there) and isinstance(here, (Enrol, Commitment, Reveal))


@pytest.mark.parametrize("lag", LAGS)
def test_every_record_out_of_its_place_is_refused(lag: int) -> None:
    manifest, records, found = rich(lag)
    late = 0
    for i, state in enumerate(found[:-1]):
        for j, record in enumerate(records):
            if i == j or may_stand(lag, i, j):
                continue
            with pytest.raises(ProtocolError):
                apply(state, record)
            late += isinstance(record, (FirstLooks, Verdict, SecondDraw, Settlement))
    assert late > 1000
    assert replay(manifest, records) == found[-1]


@pytest.mark.parametrize("lag", LAGS)
def test_a_record_repeated_missing_or_of_another_turn_is_refused(lag: int) -> None:
    manifest, records, found = rich(lag)
    for i, record in enumerate(records):
        refuses(found[i + 1], record)
        refuses(found[i], replace(record, run=sha("another run")))
        if hasattr(record, "attempt"):
            refuses(found[i], replace(record, round=record.round + 1))  # type: ignore[call-arg]
            refuses(found[i], replace(record, attempt=record.attempt + 1))  # type: ignore[call-arg]
        if i < len(records) - 2:  # what a rotation after the last turn did shows in no record that follows
            with pytest.raises(ProtocolError):
                replay(manifest, records[:i] + records[i + 1 :])


@pytest.mark.parametrize("lag", LAGS)
def test_while_a_settlement_is_due_nothing_else_may_come(lag: int) -> None:
    play = LatePlay(late_start(lag, audit=ALL))
    for _ in range(lag + 1):
        assert play.state.due is None
        play.turn({})
    state = play.state
    assert state.due
    assert state.due.turn.open.turn == 0
    for record in (
        rotation(state.run, "c1", "c1", "c1 again"),
        revocation(state.run, "c0"),
        revocation(state.run, "c0", "coordinator"),
        plan_open(state),
        plan_run_close(state),
        *play.records,
    ):
        refuses(state, record)
    play.settle_due()
    assert apply(play.state, rotation(state.run, "c1", "c1", "c1 again"))
    assert apply(play.state, plan_open(play.state))


@pytest.mark.parametrize("lag", LAGS)
def test_the_run_ends_when_the_last_turn_that_waits_is_settled(lag: int) -> None:
    play = late_played([{}] * 4, late_start(lag), to_the_end=False)
    left = 0
    while play.state.due:
        refuses(play.state, plan_run_close(play.state), "may not come")
        left += 1
        play.late_audit()
        refuses(play.state, plan_run_close(play.state), "may not come")
        play.settle()
    assert left == lag + 1
    assert apply(play.state, plan_run_close(play.state)).finished


@pytest.mark.parametrize("lag", LAGS)
def test_a_closed_turn_takes_what_settles_it_where_that_is_due_and_nothing_else(lag: int) -> None:
    play = late_played([{}] * 4, late_start(lag, audit=ALL), to_the_end=False)
    play.settle_due()
    of_turns = [r for r in play.records if isinstance(r, OfTurn | RoundClose | Settlement)]
    state = late_start(lag, audit=ALL)
    refused: dict[bool, set[type]] = {True: set(), False: set()}
    for record in play.records:
        if state.turn is None and state.waiting:
            closed, due = state.waiting[0].turn.open, state.due is not None
            for other in of_turns:
                if other.round == closed.round and not (due and isinstance(other, LATER)):
                    refuses(state, other, "no turn is open")
                    refused[due].add(type(other))
        state = apply(state, record)
    assert refused[False] == {type(record) for record in of_turns}
    assert refused[True] == refused[False] - {*LATER}


@pytest.mark.parametrize("lag", LAGS)
def test_seals_verdicts_and_second_draws_before_a_turn_is_due_are_refused(lag: int) -> None:
    """In the turn itself, between two turns, and in the middle of the next ones."""
    play = late_played([{}] * 4, late_start(lag, audit=ALL), to_the_end=False)
    kinds = (FirstLooks, SecondDraw, Verdict)
    first = [r for r in play.records if isinstance(r, kinds) and r.round == 1]
    assert {type(record) for record in first} == {*kinds}
    state = late_start(lag, audit=ALL)
    seen = 0
    for record in play.records:
        if isinstance(record, FirstLooks):
            break
        for early in first:
            refuses(state, early)
        state = apply(state, record)
        seen += 1
    assert seen > 10 * lag
    assert state.due


def test_the_audits_of_a_later_turn_wait_until_the_earlier_one_is_settled() -> None:
    play = late_played([{}] * 4, late_start(3, audit=ALL), to_the_end=False)
    play.settle_due()
    at = [r.kind for r in play.records].index("settlement")
    state = late_start(3, audit=ALL)
    for record in play.records[:at]:
        state = apply(state, record)
    for record in play.records[at + 1 :]:
        refuses(state, record)


@pytest.mark.parametrize("field", [f for f in Settlement.__dataclass_fields__ if f not in ("kind", "run")])
def test_a_settlement_that_does_not_follow_from_the_log_is_refused(field: str) -> None:
    lag = 1
    _, records, found = rich(lag)
    at = next(i for i, r in enumerate(records) if isinstance(r, Settlement) and len(r.removed) > 1)
    plain = next(i for i, r in enumerate(records) if isinstance(r, Settlement) and not r.removed)
    record: Any = records[at]
    other: dict[str, Any] = {
        "protocol": 2,
        "round": record.round + 1,
        "attempt": record.attempt + 1,
        "removed": record.removed[:-1],
        "missed": (*record.missed, *record.missed, "x"),
        "overruled": (*record.overruled, Overruled(0, 1, "a0", None)),
        "requeued": record.requeued[:-1],
        "credits": record.credits[:-1],
        "quarantined": (*record.quarantined, "c3"),
    }
    if field in other:
        refuses(found[at], replace(record, **{field: other[field]}))
        return
    # What the checkpoints are is level 2's to know; but where nothing is removed, the last one stays.
    base = Base(b3("x"), b3("y"))
    assert apply(found[at], replace(record, **{field: base if field == "settled" else b3("x")}))
    if field in ("weights", "outer"):
        refuses(found[plain], replace(records[plain], **{field: b3("x")}))


@pytest.mark.parametrize("change", [{"fault": True}, {"reason": "unaudited"}, {"slot": 3}, {"member": "c2"}])
def test_a_removed_item_changed_is_refused(change: dict[str, Any]) -> None:
    _, records, found = rich(1)
    at = next(i for i, r in enumerate(records) if isinstance(r, Settlement) and len(r.removed) > 1)
    record = records[at]
    assert isinstance(record, Settlement)
    item = next(item for item in record.removed if item.reason == "disputed")
    changed = tuple(replace(one, **change) if one == item else one for one in record.removed)
    assert changed != record.removed
    refuses(found[at], replace(record, removed=changed))


@settings(max_examples=30, deadline=None)
@given(scripts, st.integers(1, 4))
def test_links_are_numbered_by_draws_and_every_turn_is_settled_once_in_order(script: Any, lag: int) -> None:
    play = late_played(script, late_start(lag))
    shown = links_shown(play.records)
    assert shown == chain_links(len(shown))
    assert play.state.draws == len(shown)
    places = {mark: [p for p in shape(play) if p.startswith(mark)] for mark in ("close", "settle")}
    closed = [place.split()[1] for place in places["close"]]
    settled = [place.split()[1] for place in places["settle"]]
    assert settled == closed[: len(settled)]
    if play.state.finished:
        assert settled == closed
        assert len(shown) == 2 * len(closed)
    # A turn waits for its lag and no longer: its settlement is the next record but the audits themselves.
    waited: list[str] = []
    for place in shape(play):
        kind, name = place.split()
        waited = [*waited, name] if kind == "close" else waited[1:]
        assert len(waited) <= lag + 1


def test_a_run_without_a_lag_takes_no_settlement() -> None:
    play = LatePlay(late_start(1, audit=ALL))
    play.turn({})
    play.turn({})
    play.settle_due()
    settlement = play.records[-1]
    assert isinstance(settlement, Settlement)
    with pytest.raises(BarnraiseError):
        apply(late_start(0), settlement)
