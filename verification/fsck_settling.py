"""The settlement: what the late audits of a closed turn come to, and what is taken out again.

Owns the checks of that one record (protocol, sections 4, 6, 9 and 10), and what of it later records are held
against. What the weights become without what is removed takes arrays: that is level 2's.
"""

from __future__ import annotations

from typing import NamedTuple

from verification.fsck_audit import expected_missed, settled_by_verdicts
from verification.fsck_close import (
    check_missed,
    check_overruled,
    check_queue,
    overruled_members,
    paid_verdicts,
    take_over,
)
from verification.fsck_findings import Record
from verification.fsck_ledger import Removal
from verification.fsck_shapes import CASE_FILES, FOLLOWS
from verification.fsck_turn import Entry, Run, TurnState, place


class _Taken(NamedTuple):
    """A slot that a settlement removes from the turn it was accepted in."""

    turn: TurnState
    slot: int
    reason: str

    @property
    def member(self) -> str:
        name: str = self.turn.roster[self.slot]["member"]
        return name


def check_settlement(run: Run, turn: TurnState, entry: Entry) -> None:
    """All of a settlement of `turn`, the oldest that waits; the run goes on from what it says."""
    record, where = entry.record, place(entry)
    check_missed(run, turn, record, expected_missed(turn, turn.served & turn.standing), where)
    taken = _check_removed(run, turn, record, where)
    reasons = {item.slot: item.reason for item in taken if item.turn is turn}
    place_of = (turn.open["round"], turn.open["attempt"])
    evidence = {
        line["slot"]: line["evidence"]
        for line in record["removed"]
        if (line["round"], line["attempt"]) == place_of
    }
    check_overruled(run, turn, record, evidence, where)
    for item in taken:
        item.turn.standing.discard(item.slot)
    run.ledger.settle(
        turn.open["turn"],
        [_removal(item) for item in taken],
        paid_verdicts(run, turn, record, reasons),
        at_fault={item.member for item in taken if item.reason == "failed-audit"}
        | overruled_members(turn, record),
        cleared={turn.roster[slot]["member"] for slot in turn.standing & turn.drawn.keys()},
    )
    after = f"the settlement of {turn.name}"
    check_queue(run, record, after, where)
    take_over(run, record, after, where)
    _check_checkpoints(run, turn, record, bool(taken), where)
    turn.settlement = record


def _removal(item: _Taken) -> Removal:
    line = item.turn.roster[item.slot]
    pieces = tuple((start, stop) for start, stop in line["positions"])
    tokens = item.turn.valid[item.slot]["tokens"]
    return Removal(item.turn.open["turn"], item.member, line["operator"], pieces, tokens)


def _check_removed(run: Run, turn: TurnState, record: Record, where: str) -> list[_Taken]:
    """What is removed: by the rules, and where the settlement says otherwise, as the settlement says."""
    by = f"by the settlement of {turn.name}"
    keys = [(line["round"], line["attempt"], line["slot"]) for line in record["removed"]]
    run.report.equal(f"what is removed {by} is not in order, each once", where, sorted(set(keys)), keys)
    said = dict(zip(keys, record["removed"], strict=True))
    known = {
        (waiting.open["round"], waiting.open["attempt"], slot): waiting
        for waiting in run.waiting
        for slot in sorted(waiting.standing)
    }
    for number, attempt, slot in sorted(said.keys() - known.keys()):
        what = f"slot {slot} of round {number} attempt {attempt} is removed {by} though it is not accepted"
        run.report.add(what, where, "what is accepted of turns that wait", said[number, attempt, slot])
    taken: list[_Taken] = []
    fallen: set[str] = set()
    for key, waiting in known.items():
        slot, line = key[2], said.get(key)
        if waiting is turn:
            want = settled_by_verdicts(turn, slot)
        else:
            want = FOLLOWS if waiting.roster[slot]["member"] in fallen else None
        got = None if line is None else line["reason"]
        what = f"slot {slot} of {waiting.name} is settled wrongly {by}"
        run.report.equal(what, where, want or "accepted", got or "accepted")
        if line is None:
            continue
        item = _Taken(waiting, slot, line["reason"])
        taken.append(item)
        if waiting is turn:
            fallen.add(item.member)
        waiting.removed[slot] = line["fault"]
        _check_line(run, item, line, where)
    return taken


def _check_line(run: Run, item: _Taken, line: Record, where: str) -> None:
    """One line of `removed`, but for whether it is due."""
    report, reason = run.report, item.reason
    of = f"of removed slot {item.slot} of {item.turn.name}"
    report.equal(f"the member {of} is wrong", where, item.member, line["member"])
    report.equal(f"the fault {of} is wrong", where, reason == "failed-audit", line["fault"])
    if reason in CASE_FILES and line["evidence"] is None:
        report.add(f"the evidence {of} is missing", where, "a digest of its case.json", "null")
    if reason == FOLLOWS and line["evidence"] is not None:
        report.add(f"there is evidence {of}, which only follows", where, "null", line["evidence"])


def _check_checkpoints(run: Run, turn: TurnState, record: Record, removes: bool, where: str) -> None:
    """The digests that a settlement tells, as far as they follow without arrays (section 9, excision)."""
    report, of = run.report, f"of the settlement of {turn.name}"
    says = {key: record[key] for key in ("outer", "weights")}
    later = run.waiting[1:]
    if not removes:
        report.equal(f"the checkpoint {of}, which removes nothing, is another", where, run.base, says)
    elif not any(waiting.standing for waiting in later):
        what = f"the last checkpoint {of} is not the settled one though nothing after it is accepted"
        report.equal(what, where, record["settled"], says)
    if not turn.standing:
        what = f"the settled checkpoint {of} is not the one before, though nothing of the turn is accepted"
        report.equal(what, where, run.settled, record["settled"])
    elif not removes and turn.after is not None:
        what = f"the settled checkpoint {of} is not the one after that turn"
        report.equal(what, where, turn.after, record["settled"])
    run.base, run.settled = says, record["settled"]
    if removes:
        for waiting in later:
            waiting.after = None
        for waiting in later[-1:]:
            waiting.after = says
