"""The run as a state machine: which record may come next, and the state it leaves behind.

Owns legal transitions, so that a coordinator that was killed knows from the log where it was. Does no I/O and
draws nothing at random. What a member claims is checked before it gets here (intake.py); what the
coordinator writes must be what plans.py derives. Of a beacon's pulse it checks form and number; its
signature, which takes most of a second, is checked by who fetches the pulse and by the level 1 checker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from verification.encoding import MAX_INTEGER
from verification.errors import ProtocolError
from verification.identity import IdentityChange
from verification.judge import settle
from verification.looks import further_look, may_appeal
from verification.lottery import verify_link
from verification.membership import (
    apply_enrol,
    apply_leave,
    apply_return,
    apply_revocation,
    apply_rotation,
    check_complete,
)
from verification.notes import parse_checkpoint
from verification.plans import (
    link_number,
    pace_after,
    place,
    plan_close,
    plan_draw,
    plan_open,
    plan_run_close,
    plan_second_draw,
    standings_after,
)
from verification.records import (
    Appeal,
    Base,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    FirstLooks,
    KeyRevocation,
    KeyRotation,
    Leave,
    Manifest,
    Overruled,
    Record,
    Refusal,
    Return,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Settlement,
    Verdict,
)
from verification.settling import (
    FOLLOWS,
    lineage_settled,
    plan_settlement,
    standings_settled,
    still_accepted,
    tokens_of,
)
from verification.state import RunState, Turn, Waiting
from verification.witnessing import check_witnessing, first_links, given_links, links_after

Late = FirstLooks | SecondDraw | Verdict | Appeal | Settlement
Early = Commitment | CommitClose | Reveal | RevealClose | Draw | Served
OfTurn = Early | FirstLooks | SecondDraw | Verdict | Appeal


def begin(manifest: Manifest) -> RunState:
    """The state after entry 0. Raises one of the family when its witnesses are not as they must be."""
    check_witnessing(manifest)
    steps = manifest.config["train"]["steps"]
    return RunState(
        manifest,
        manifest.run_id,
        base=manifest.initial,
        link=manifest.draw_chain.end,
        links=first_links(manifest),
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
    if isinstance(record, Enrol | IdentityChange):
        return _membership(state, record)
    if isinstance(record, RoundOpen):
        return _open(state, record)
    if isinstance(record, RunClose):
        return _finish(state, record)
    if state.turn is None and not isinstance(record, Late):
        raise ProtocolError("no turn is open", expected="round-open or run-close", got=record.kind)
    turn = state.open_turn
    if place(turn)[1:] != (record.round, record.attempt):
        raise ProtocolError(
            "a record belongs to another turn", expected=place(turn)[1:], got=(record.round, record.attempt)
        )
    if isinstance(record, RoundClose):
        return _close(state, turn, record)
    if isinstance(record, Settlement):
        return _settle(state, record)
    return _advance(state, turn, record)


def _membership(state: RunState, record: Enrol | IdentityChange) -> RunState:
    match record:
        case Enrol():
            return apply_enrol(state, record)
        case KeyRotation():
            return apply_rotation(state, record)
        case KeyRevocation():
            return apply_revocation(state, record)
        case Leave():
            return apply_leave(state, record)
        case Return():
            return apply_return(state, record)
        case _:
            assert_never(record)


def _expect(condition: bool, record: Record) -> None:
    if not condition:
        raise ProtocolError(f"{record.kind} may not come at this point of the turn")


def _open(state: RunState, record: RoundOpen) -> RunState:
    _expect(state.turn is None and state.due is None, record)
    check_complete(state)
    settings = state.config["run"]
    if state.rounds_done >= settings["rounds"]:
        raise ProtocolError("the last round is closed already", expected="run-close", got=record.kind)
    if state.attempt >= settings["max_void"]:
        raise ProtocolError(
            f"round {state.round} was void {state.attempt} times in a row",
            hint="Nobody's work was accepted: the rejections say why.",
        )
    if record != plan_open(state, record.witnesses):
        raise ProtocolError("a round-open does not follow from the log", got=f"turn {record.turn}")
    audit = state.config["audit"]
    turn = Turn(record, lag=audit["lag"], tolerances=audit["tolerance"])
    return replace(state, turn=turn, turns=state.turns + 1)


def _by_its_owner(turn: Turn, record: Commitment | Reveal | Appeal) -> bool:
    who = (record.slot, record.member, record.key)
    return who in {(entry.slot, entry.member, entry.key) for entry in turn.open.roster}


def _closes_commitments(turn: Turn, record: CommitClose) -> bool:
    late = tuple(entry.slot for entry in turn.open.roster if entry.slot not in turn.commitments)
    told = (record.committed, record.late, len(record.ms))
    return told == (tuple(turn.commitments), late, len(turn.commitments)) and min(record.ms, default=0) >= 0


def _fits_its_reveal(item: Refusal, logged: bool) -> bool:
    return logged or item.reason in ("opening-mismatch", "unrevealed")


def _closes_reveals(state: RunState, turn: Turn, record: RevealClose) -> bool:
    refused = [item.slot for item in record.refused]
    fresh = [turn.reveals[slot].opening.payload for slot in record.revealed if slot in turn.reveals]
    return (
        _names_a_pulse(state, record)
        and len(fresh) == len(record.revealed)
        and not state.used.intersection(fresh)
        and list(record.revealed) == sorted(record.revealed)
        and refused == sorted(refused)
        and sorted([*record.revealed, *refused]) == sorted(turn.commitments)
        and all(_fits_its_reveal(item, item.slot in turn.reveals) for item in record.refused)
    )


def _names_a_pulse(state: RunState, record: RevealClose) -> bool:
    beacon = state.manifest.beacon
    if beacon is None or record.pulse is None:
        return beacon is None and record.pulse is None
    return beacon.published(record.pulse) <= MAX_INTEGER


def _settles_who_served(turn: Turn, record: Served) -> bool:
    if turn.draw is None:
        return False
    valid = turn.reveal_close.revealed if turn.reveal_close else ()
    owed = [item.slot for item in turn.draw.drawn if item.auditors and item.slot in valid]
    ascending = all(list(slots) == sorted(slots) for slots in (record.served, record.unserved))
    return ascending and sorted((*record.served, *record.unserved)) == owed


def _may_be_judged(state: RunState, turn: Turn, slot: int) -> bool:
    if slot not in (turn.served.served if turn.served else ()):
        return False
    # Where audits lag it may be too early, or a settlement took the contribution out.
    return not turn.lag or (state.due is not None and slot in state.due.slots)


def _seals(state: RunState, turn: Turn, record: FirstLooks) -> bool:
    orders = {item.slot: item.auditors for item in turn.draw.drawn} if turn.draw else {}
    slots = [look.slot for look in record.looks]
    return slots == sorted(set(slots)) and all(
        _may_be_judged(state, turn, look.slot) and look.auditor in orders[look.slot] for look in record.looks
    )


def _was_called(state: RunState, turn: Turn, record: Verdict) -> bool:
    if turn.second is None or not _may_be_judged(state, turn, record.slot):
        return False
    if record.look == 1:
        sealed = (record.slot, record.auditor, record.outcome, record.digest)
        looks = turn.first_looks.looks if turn.first_looks else ()
        return sealed in {(look.slot, look.auditor, look.outcome, look.verdict) for look in looks}
    if record.look == 2:
        looked = {name for item in turn.second.looks if item.slot == record.slot for name in item.auditors}
        return record.auditor in looked
    due = further_look(turn.evidence, record.slot)
    return due is not None and due.look == record.look and record.auditor in due.auditors


def _may_stand(turn: Turn, record: Appeal) -> bool:
    if turn.second is None or not may_appeal(turn.evidence, record.slot):
        return False
    return record.verdicts == tuple(turn.verdicts[record.slot, look].digest for look in (1, 2))


def _advance(state: RunState, turn: Turn, record: OfTurn) -> RunState:
    if isinstance(record, Early):
        return _early(state, turn, record)
    # Each arm says which record must be there already and which must not be there yet.
    match record:
        case FirstLooks():
            _expect(turn.served is not None and turn.first_looks is None, record)
            _expect(not turn.lag or state.due is not None, record)
            _expect(_seals(state, turn, record), record)
            turn = replace(turn, first_looks=record)
        case SecondDraw():
            _expect(turn.first_looks is not None and turn.second is None, record)
            planned_second = plan_second_draw(state, record.head, record.link, given_links(record.links))
            _expect(record == planned_second, record)
            turn, state = replace(turn, second=record), _link(state, record)
        case Verdict():
            last = max(((look, slot) for slot, look in turn.verdicts), default=(0, 0))
            _expect((record.look, record.slot) > last and _was_called(state, turn, record), record)
            _expect(record.look > 2 or not turn.appeals, record)
            turn = replace(turn, verdicts={**turn.verdicts, (record.slot, record.look): record})
        case Appeal():
            _expect(record.slot > max(turn.appeals, default=-1) and _by_its_owner(turn, record), record)
            _expect(_may_stand(turn, record), record)
            _expect(all(look <= 2 for _, look in turn.verdicts), record)
            turn = replace(turn, appeals={**turn.appeals, record.slot: record})
        case _:
            assert_never(record)
    if state.turn:
        return replace(state, turn=turn)
    return replace(state, waiting=(replace(state.waiting[0], turn=turn), *state.waiting[1:]))


def _early(state: RunState, turn: Turn, record: Early) -> RunState:
    match record:
        case Commitment():
            _expect(turn.commit_close is None and record.slot > max(turn.commitments, default=-1), record)
            _expect(_by_its_owner(turn, record), record)
            turn = replace(turn, commitments={**turn.commitments, record.slot: record})
        case CommitClose():
            _expect(turn.commit_close is None and _closes_commitments(turn, record), record)
            turn = replace(turn, commit_close=record)
        case Reveal():
            _expect(turn.commit_close is not None and turn.reveal_close is None, record)
            _expect(record.slot in turn.commitments and record.slot > max(turn.reveals, default=-1), record)
            _expect(_by_its_owner(turn, record), record)
            turn = replace(turn, reveals={**turn.reveals, record.slot: record})
        case RevealClose():
            _expect(turn.commit_close is not None and turn.reveal_close is None, record)
            _expect(_closes_reveals(state, turn, record), record)
            parse_checkpoint(record.head, state.manifest.log_vkey)
            turn = replace(turn, reveal_close=record)
            fresh = {turn.reveals[slot].opening.payload for slot in record.revealed}
            state = replace(state, payloads=state.payloads | fresh)
        case Draw():
            _expect(turn.reveal_close is not None and turn.draw is None, record)
            found = given_links(record.links)
            planned = plan_draw(state, record.head, record.link, found, record.beacon)
            _expect(record == planned, record)
            turn, state = replace(turn, draw=record), _link(state, record)
        case Served():
            _expect(turn.served is None and _settles_who_served(turn, record), record)
            turn = replace(turn, served=record)
        case _:
            assert_never(record)
    return replace(state, turn=turn)


def _link(state: RunState, record: Draw | SecondDraw) -> RunState:
    if not verify_link(record.link, state.link):
        raise ProtocolError("a link is not the next of the hash chain", got=record.link)
    shown = links_after(state.links, link_number(state), record.links)
    return replace(state, link="sha256:" + record.link, links=shown, draws=state.draws + 1)


def _cases(overruled: Iterable[Overruled]) -> dict[int, str | None]:
    """The digests of cases by slot; work that is accepted has one where an auditor was overruled on it."""
    return {item.slot: item.evidence for item in overruled}


def _close(state: RunState, turn: Turn, record: RoundClose) -> RunState:
    evidence = _cases(record.overruled) | {item.slot: item.evidence for item in record.rejected}
    planned = plan_close(
        state, Base(record.weights, record.outer), evidence=evidence, val_loss=record.val_loss
    )
    if record != planned or (record.void and Base(record.weights, record.outer) != state.base):
        raise ProtocolError("a round-close does not follow from the log", expected=planned, got=record)
    outcomes = settle(turn.evidence)
    accepted = {o.entry.slot for o in outcomes if o.reason is None}
    waiting = (*state.waiting, Waiting(turn, record.accepted, state.lineage)) if turn.lag else ()
    return replace(
        state,
        turn=None,
        waiting=waiting,
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
        used=state.used | {item.payload for item in record.accepted},
        tokens=state.tokens + sum(item.tokens for item in record.accepted),
        last_close=record,
    )


def _settle(state: RunState, record: Settlement) -> RunState:
    own = [item for item in record.removed if item.reason != FOLLOWS]
    evidence = _cases(record.overruled) | {item.slot: item.evidence for item in own}
    base = Base(record.weights, record.outer)
    if record != plan_settlement(state, record.settled, base, evidence):
        raise ProtocolError("a settlement does not follow from the log", got=f"round {record.round}")
    if not record.removed and base != state.base:
        raise ProtocolError("a settlement that removes nothing changes the weights", got=record.weights)
    return replace(
        state,
        waiting=still_accepted(state, record.removed)[1:],
        base=base,
        lineage=lineage_settled(state, record.removed),
        standings=standings_settled(state, record.removed),
        queue=record.requeued,
        tokens=state.tokens - sum(tokens_of(state, item) for item in record.removed),
    )


def _finish(state: RunState, record: RunClose) -> RunState:
    _expect(not state.waiting, record)
    _expect(state.turn is None and state.rounds_done == state.config["run"]["rounds"], record)
    if record != plan_run_close(state):
        raise ProtocolError(
            "run-close does not follow from the log", expected=plan_run_close(state), got=record
        )
    return replace(state, finished=True)
