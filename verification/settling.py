"""Late settling: what the audits of a turn that was closed provisionally come to, and what is taken out.

Owns the pure functions from a state in which a settlement is due to that record: section 4 of
docs/protocol.md under "settlement", "Late settling" in section 6, and the standings after it. Does not own
the checkpoints of an excision (pipeline/lineage.py), or settling without a lag (plans.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from verification.credits import LateResult, Standing, after_settlement
from verification.errors import ProtocolError
from verification.handout import give_back
from verification.judge import Outcome, settle
from verification.looks import missed_auditors, overruled_auditors
from verification.plans import earned_by_audits, place, weighed
from verification.records import PROTOCOL, Base, Credit, Removed, Settlement
from verification.state import RunState, Turn, Waiting

FOLLOWS = "follows"


def due_turn(state: RunState) -> Waiting:
    """The turn whose settlement is due; ProtocolError when there is none."""
    if state.due is None:
        raise ProtocolError("no settlement is due", got=f"{len(state.waiting)} turns wait")
    return state.due


def late_outcomes(state: RunState) -> tuple[Outcome, ...]:
    """The due turn's outcomes for what is still accepted of it, by slot; raises before its second draw."""
    waiting = due_turn(state)
    if waiting.turn.second is None:
        raise ProtocolError("a turn cannot be settled yet", expected="all records up to second-draw")
    return tuple(o for o in settle(waiting.turn.evidence) if o.entry.slot in waiting.slots)


def final_outcomes(state: RunState) -> tuple[Outcome, ...]:
    """The due turn's outcomes for its whole roster, as they are after the settlement."""
    turn = due_turn(state).turn
    late = {o.entry.slot: o for o in late_outcomes(state)}
    found = []
    for outcome in settle(replace(turn.evidence, second=None)):
        settled = late.get(outcome.entry.slot, outcome)
        gone = outcome.reason is None and outcome.entry.slot not in late
        found.append(replace(settled, reason=FOLLOWS) if gone else settled)
    return tuple(found)


def removals(state: RunState, evidence: Mapping[int, str | None]) -> tuple[Removed, ...]:
    """What the settlement takes out: of the due turn, and of later turns what follows from it.

    `evidence` are the digests of the due turn's cases by slot.
    """
    waiting = due_turn(state)
    _, round_, attempt = place(waiting.turn)
    removed = [
        Removed(round_, attempt, o.entry.slot, o.entry.member, o.reason, o.fault, evidence.get(o.entry.slot))
        for o in late_outcomes(state)
        if o.reason is not None
    ]
    members = {item.member for item in removed}
    for later in state.waiting[1:]:
        _, round_, attempt = place(later.turn)
        removed += [
            Removed(round_, attempt, item.slot, item.member, FOLLOWS, fault=False, evidence=None)
            for item in later.accepted
            if item.member in members
        ]
    return tuple(removed)


def still_accepted(state: RunState, removed: Sequence[Removed]) -> tuple[Waiting, ...]:
    """The turns that wait, with what is left of each, weighed anew where something was taken out."""
    gone = {(item.round, item.attempt, item.slot) for item in removed}
    return tuple(_without(state, waiting, gone) for waiting in state.waiting)


def _without(state: RunState, waiting: Waiting, gone: set[tuple[int, int, int]]) -> Waiting:
    turn = waiting.turn
    left = [slot for slot in waiting.slots if (*place(turn)[1:], slot) not in gone]
    if len(left) == len(waiting.accepted):
        return waiting
    entries = [entry for entry in turn.open.roster if entry.slot in left]
    return replace(waiting, accepted=weighed(state, turn, entries))


def plan_settlement(
    state: RunState, settled: Base, last: Base, evidence: Mapping[int, str | None]
) -> Settlement:
    """The settlement that is due. `settled` and `last` are the digests of section 9, "Excision"."""
    waiting = due_turn(state)
    turn = waiting.turn
    removed = removals(state, evidence)
    standings = standings_settled(state, removed)
    given_up = [_assignment(state, item) for item in removed]
    return Settlement(
        PROTOCOL,
        *place(turn),
        removed,
        tuple(m for m in missed_auditors(turn.evidence) if m.slot in waiting.slots),
        overruled_auditors(turn.evidence, evidence),
        settled,
        last.weights,
        last.outer,
        give_back(state.queue, given_up),
        tuple(Credit(name, s.earned, s.vested, s.forfeited) for name, s in sorted(standings.items())),
        tuple(sorted(name for name, s in standings.items() if s.quarantined)),
    )


def _turn_of(state: RunState, item: Removed) -> Turn:
    found = (w.turn for w in state.waiting if place(w.turn)[1:] == (item.round, item.attempt))
    return next(found)


def _assignment(state: RunState, item: Removed) -> tuple[str, Sequence[tuple[int, int]]]:
    entry = _turn_of(state, item).open.entry(item.slot)
    return entry.operator, entry.positions


def tokens_of(state: RunState, item: Removed) -> int:
    """Predicted positions of a contribution that is taken out."""
    return _turn_of(state, item).reveals[item.slot].opening.tokens


def standings_settled(state: RunState, removed: Sequence[Removed]) -> dict[str, Standing]:
    """Everyone's standing after the settlement (section 10)."""
    turn = due_turn(state).turn
    outcomes = late_outcomes(state)
    reasons = {o.entry.slot: o.reason for o in outcomes}
    overruled = {item.auditor for item in overruled_auditors(turn.evidence, {})}
    result = LateResult(
        turn.open.turn,
        [(item.member, _turn_of(state, item).open.turn, tokens_of(state, item)) for item in removed],
        earned_by_audits(state, turn, reasons),
        overruled | {o.entry.member for o in outcomes if o.fault},
        {o.entry.member for o in outcomes if o.reason is None and o.drawn},
    )
    return after_settlement(state.standings, result)


def lineage_settled(state: RunState, removed: Sequence[Removed]) -> dict[str, str]:
    """Where members start from after the settlement: before the first thing of theirs that was taken out.

    Unless the member's key was rotated since: then it starts from zero.
    """
    lineage = dict(state.lineage)
    keys = {member.member: member.key for member in state.members}
    waiting = due_turn(state)
    for item in removed:
        if item.reason == FOLLOWS:
            continue
        lineage.pop(item.member, None)
        rotated = waiting.turn.open.entry(item.slot).key != keys[item.member]
        if item.member in waiting.lineage and not rotated:
            lineage[item.member] = waiting.lineage[item.member]
    return lineage
