"""The run as a state machine: which record may come next, and the state it leaves behind.

Owns legal transitions, so that a coordinator that was killed knows from the log where it was. Does no I/O and
draws nothing at random. What a member claims is checked before it gets here (intake.py); what the
coordinator writes must be what plans.py derives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from verification.credits import Standing
from verification.errors import ProtocolError
from verification.judge import settle
from verification.lottery import verify_link
from verification.notes import parse_checkpoint
from verification.plans import (
    pace_after,
    plan_close,
    plan_draw,
    plan_open,
    plan_run_close,
    plan_second_draw,
    standings_after,
)
from verification.records import (
    Base,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    Manifest,
    Record,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Verdict,
)
from verification.state import RunState, Turn


def begin(manifest: Manifest) -> RunState:
    """The state after entry 0."""
    steps = manifest.config["train"]["steps"]
    return RunState(
        manifest,
        manifest.run_id,
        base=manifest.initial,
        link=manifest.draw_chain.end,
        pace=dict(enumerate(steps)),
    )


def replay(manifest: Manifest, records: Iterable[Record]) -> RunState:
    """The state after a whole log."""
    state = begin(manifest)
    for record in records:
        state = apply(state, record)
    return state


def apply(state: RunState, record: Record) -> RunState:
    """The state after `record`; ProtocolError when it may not come here."""
    if isinstance(record, Manifest):
        raise ProtocolError("a manifest stands only in entry 0")
    if state.finished:
        raise ProtocolError("a record follows run-close", got=record.kind)
    if record.run != state.run:
        raise ProtocolError("a record belongs to another run", expected=state.run, got=record.run)
    if isinstance(record, Enrol):
        return _enrol(state, record)
    if isinstance(record, RoundOpen):
        return _open(state, record)
    if isinstance(record, RunClose):
        return _finish(state, record)
    if state.turn is None:
        raise ProtocolError("no turn is open", expected="round-open or run-close", got=record.kind)
    place = (record.round, record.attempt)
    if place != (state.round, state.attempt):
        raise ProtocolError(
            "a record belongs to another turn", expected=(state.round, state.attempt), got=place
        )
    if isinstance(record, RoundClose):
        return _close(state, state.turn, record)
    return _advance(state, state.turn, record)


def _expect(condition: bool, record: Record) -> None:
    if not condition:
        raise ProtocolError(f"{record.kind} may not come at this point of the turn")


def _enrol(state: RunState, record: Enrol) -> RunState:
    _expect(state.turns == 0, record)
    for member in state.members:
        if record.member == member.member or record.key == member.key:
            raise ProtocolError("a member or key is enrolled twice", got=record.member)
    return replace(
        state,
        members=(*state.members, record),
        standings={**state.standings, record.member: Standing()},
    )


def _open(state: RunState, record: RoundOpen) -> RunState:
    _expect(state.turn is None, record)
    if record != plan_open(state):
        raise ProtocolError("a round-open does not follow from the log", got=f"turn {record.turn}")
    return replace(state, turn=Turn(record), turns=state.turns + 1)


def _advance(state: RunState, turn: Turn, record: Record) -> RunState:
    # Each arm says which record must be there already and which must not be there yet.
    match record:
        case Commitment():
            _expect(turn.commit_close is None and record.slot not in turn.commitments, record)
            turn = replace(turn, commitments={**turn.commitments, record.slot: record})
        case CommitClose():
            _expect(turn.commit_close is None and set(record.committed) == set(turn.commitments), record)
            turn = replace(turn, commit_close=record)
        case Reveal():
            _expect(turn.commit_close is not None and turn.reveal_close is None, record)
            _expect(record.slot in turn.commitments and record.slot not in turn.reveals, record)
            turn = replace(turn, reveals={**turn.reveals, record.slot: record})
        case RevealClose():
            _expect(turn.commit_close is not None and turn.reveal_close is None, record)
            _expect(set(record.revealed) <= set(turn.reveals), record)
            turn = replace(turn, reveal_close=record)
            fresh = {turn.reveals[slot].opening.payload for slot in record.revealed}
            state = replace(state, payloads=state.payloads | fresh)
        case Draw():
            _expect(turn.reveal_close is not None and turn.draw is None, record)
            head = parse_checkpoint(record.head, state.manifest.log_vkey)
            _expect(record == plan_draw(state, head, record.head, record.link), record)
            turn, state = replace(turn, draw=record), _link(state, record.link)
        case Served():
            _expect(turn.draw is not None and turn.served is None, record)
            turn = replace(turn, served=record)
        case Verdict():
            look = (record.slot, record.look)
            ready = turn.served is not None if record.look == 1 else turn.second is not None
            _expect(ready and (record.look == 2 or turn.second is None), record)
            _expect(look not in turn.verdicts, record)
            turn = replace(turn, verdicts={**turn.verdicts, look: record})
        case SecondDraw():
            _expect(turn.served is not None and turn.second is None, record)
            head = parse_checkpoint(record.head, state.manifest.log_vkey)
            _expect(record == plan_second_draw(state, head, record.head, record.link), record)
            turn, state = replace(turn, second=record), _link(state, record.link)
        case _:
            _expect(False, record)
    return replace(state, turn=turn)


def _link(state: RunState, link: str) -> RunState:
    if not verify_link(link, state.link):
        raise ProtocolError("a link is not the next of the hash chain", got=link)
    return replace(state, link="sha256:" + link)


def _close(state: RunState, turn: Turn, record: RoundClose) -> RunState:
    evidence = {item.slot: item.evidence for item in record.rejected}
    planned = plan_close(
        state, Base(record.weights, record.outer), evidence=evidence, val_loss=record.val_loss
    )
    if record != planned:
        raise ProtocolError("a round-close does not follow from the log", expected=planned, got=record)
    outcomes = settle(turn.evidence)
    accepted = {o.entry.slot for o in outcomes if o.reason is None}
    return replace(
        state,
        turn=None,
        round=state.round + (not record.void),
        attempt=state.attempt + 1 if record.void else 0,
        base=Base(record.weights, record.outer),
        lineage={
            **state.lineage,
            **{turn.open.entry(s).member: turn.reveals[s].opening.next_state for s in accepted},
        },
        standings=standings_after(state, turn, outcomes),
        pace=pace_after(state, turn, accepted),
        cursor=record.cursor,
        queue=record.requeued,
        tokens=state.tokens + sum(item.tokens for item in record.accepted),
        last_close=record,
    )


def _finish(state: RunState, record: RunClose) -> RunState:
    _expect(state.turn is None, record)
    if record != plan_run_close(state):
        raise ProtocolError(
            "run-close does not follow from the log", expected=plan_run_close(state), got=record
        )
    return replace(state, finished=True)
