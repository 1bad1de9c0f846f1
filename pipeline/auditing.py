"""The audits of a turn: what contributors serve for them, who looks, and what becomes of disputes.

Owns the way from a draw to all the verdicts that it takes: looks 1 and 2, appeals, the looks that a dispute
takes, and the evidence that a verdict against a contribution leaves. Does not own who is drawn, whether a
slot is contested (verification.looks), or what the verdicts come to. Like the coordinator it first looks
whether the log already holds a step's result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.desk import Desk
from pipeline.evidence import rerun_files
from pipeline.log_reader import Entry
from pipeline.panel import AuditCase, Judged, Wave
from pipeline.parties import Begun
from pipeline.sketch import served_sketches
from pipeline.trace import OpenedTrace, read_trace
from pipeline.work import Job
from verification.judge import verdicts_on
from verification.looks import further_look, may_appeal
from verification.plans import place, plan_first_looks
from verification.records import PROTOCOL, Served, Verdict
from verification.rounds import apply
from verification.segments import waves
from verification.state import RunState, Turn
from verification.tolerance import ServedStep

_LookAt = tuple[int, int]  # (look, slot)
# By tolerance: what is drawn, in waves, and the sketches of it as it was served.
_Steps = tuple[tuple[Wave, ...], tuple[ServedStep, ...]]


@dataclass
class _Held:
    """Of a turn, by slot: what contributors served, audits that were begun, and first verdicts under seal.

    `given` are first and second verdicts in the order of the log.
    """

    states: dict[int, bytes] = field(default_factory=dict)
    traces: dict[int, bytes] = field(default_factory=dict)
    steps: dict[int, _Steps] = field(default_factory=dict)
    begun: Mapping[int, Begun] = field(default_factory=dict)
    first: dict[int, Judged] = field(default_factory=dict)
    given: list[Judged] = field(default_factory=list)


class Hearing:
    """Has what was drawn looked at, and logs what auditors found."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._held: dict[int, _Held] = {}
        self._job = Job.of(self._state.manifest)

    @property
    def _state(self) -> RunState:
        return self.desk.ledger.state

    def collect_states(self) -> None:
        """Ask every drawn contributor for the state it started from, and its trace; log who served them."""
        turn = self._state.open_turn
        if turn.served or not turn.draw or not turn.reveal_close:
            return
        owed = [d.slot for d in turn.draw.drawn if d.auditors and d.slot in turn.reveal_close.revealed]
        self._fetch(turn, owed)
        held = self._held_of(turn).states
        unserved = tuple(slot for slot in owed if slot not in held)
        run, round_, attempt = place(turn)
        record = Served(PROTOCOL, run, round_, attempt, tuple(s for s in owed if s in held), unserved)
        self.desk.ledger.append([self.desk.ledger.sign(record)])

    def begin(self) -> None:
        """Where audits lag, have those of the turn that was just closed begin while the next one trains.

        Those by tolerance are over before it begins: what a contributor starts from then says where its last
        step ended, and an auditor's key may have changed between two of the questions.
        """
        if not self._state.waiting or self._state.turn:
            return
        waiting = self._state.waiting[-1]
        turn, held = waiting.turn, self._held_of(waiting.turn)
        drawn = turn.draw.drawn if turn.draw else ()
        orders = {
            item.slot: item.auditors for item in drawn if item.slot in waiting.slots & held.states.keys()
        }
        lax = {slot: names for slot, names in orders.items() if turn.rests_on_tolerance(slot)}
        exact = {slot: names for slot, names in orders.items() if slot not in lax}
        panel = self.desk.crew.panel
        held.begun = panel.begin_verdicts(exact, self._cases(turn, exact))
        cases = self._cases(turn, lax)
        held.first |= panel.verdicts(turn, 1, {slot: lax[slot] for slot in cases}, cases, {})

    def first_looks(self) -> None:
        """Have the drawn work looked at once. The log gets no more than seals of it, for nobody to copy."""
        turn = self._state.open_turn
        if turn.first_looks or not turn.draw or not turn.served:
            return
        orders = {item.slot: item.auditors for item in turn.draw.drawn}
        held, judged = self._held_of(turn), self._judged(turn)
        early = {slot: held.first[slot] for slot in judged if slot in held.first}
        self._keep_evidence(turn, early)
        left = {slot: names for slot, names in orders.items() if slot not in early}
        held.first = dict(sorted({**early, **self._verdicts(turn, 1, left, held.begun)}.items()))
        record = plan_first_looks(self._state, [verdict for verdict, _ in held.first.values()])
        self.desk.ledger.append([self.desk.ledger.sign(record)])

    def second_looks(self) -> None:
        """Have what is drawn or due for it looked at again. Nothing is logged yet, for nobody to copy."""
        turn = self._state.open_turn
        if not turn.second or turn.verdicts:
            return
        second = self._verdicts(turn, 2, {item.slot: item.auditors for item in turn.second.looks})
        self._held_of(turn).given = [*self._unsealed(turn), *second.values()]

    def _unsealed(self, turn: Turn) -> list[Judged]:
        """The first verdicts behind the seals; after a crash the same auditors sign the same again."""
        held = self._held_of(turn)
        sealed = {look.slot: look for look in turn.first_looks.looks} if turn.first_looks else {}
        lost = {slot: (look.auditor,) for slot, look in sealed.items() if slot not in held.first}
        held.first |= self._verdicts(turn, 1, lost)
        return [
            entry
            for slot, entry in sorted(held.first.items())
            if slot in sealed and entry[0].digest == sealed[slot].verdict
        ]

    def disputes(self) -> None:
        """Where auditors contradict one another, or a contributor both of them, let others decide.

        All the verdicts of a turn are logged when its disputes are over, in one step: whoever is asked late
        must not find in the log what others have said.
        """
        turn = self._state.open_turn
        if not turn.second or turn.verdicts:
            return
        entries: list[Entry] = [*self._held_of(turn).given]
        state = _after(self._state, entries)
        appeals = self._appeals(state, entries)
        entries, state = [*entries, *appeals], _after(state, appeals)
        in_vain: set[tuple[int, int]] = set()
        while due := self._due(state, in_vain):
            number = min(number for number, _ in due)
            orders = {slot: names for (look, slot), names in due.items() if look == number}
            found = [*self._verdicts(state.open_turn, number, orders).values()]
            in_vain |= {(number, slot) for slot in orders}
            entries, state = [*entries, *found], _after(state, found)
        if entries:
            self.desk.ledger.append(entries)

    def _due(self, state: RunState, in_vain: Collection[tuple[int, int]]) -> dict[_LookAt, tuple[str, ...]]:
        """Whom to ask next, by (look, slot)."""
        turn = state.open_turn
        last = max(((look, slot) for slot, look in turn.verdicts), default=(0, 0))
        due = [(slot, further_look(turn.evidence, slot)) for slot in self._judged(turn)]
        # One that nobody answered stays due, but a later verdict closes it.
        return {
            (look.look, slot): look.auditors
            for slot, look in due
            if look and (look.look, slot) > last and (look.look, slot) not in in_vain
        }

    def _appeals(self, state: RunState, given: Sequence[Entry]) -> list[Entry]:
        """Ask those whose work was failed twice whether they stand by it, where others are left to judge."""
        turn = state.open_turn
        accused = [slot for slot in self._judged(turn) if may_appeal(turn.evidence, slot)]
        able = [s for s in accused if further_look(replace(turn.evidence, appeals=(s,)), s)]
        shown = {
            slot: [data for record, data in given if isinstance(record, Verdict) and record.slot == slot]
            for slot in able
        }
        return [*self.desk.crew.appeals(state, shown).values()] if shown else []

    def _judged(self, turn: Turn) -> list[int]:
        """The served slots that may still be judged: of what a settlement took out, nobody is asked."""
        served = set(turn.served.served) if turn.served else set()
        return sorted(served & self._state.due.slots if self._state.due else served)

    def _verdicts(
        self,
        turn: Turn,
        look: int,
        orders: Mapping[int, tuple[str, ...]],
        begun: Mapping[int, Begun] | None = None,
    ) -> dict[int, Judged]:
        """Collect the verdicts of a look; keep what a contributor needs to rerun one that went against it."""
        judged = self._judged(turn)
        wanted = {slot: orders[slot] for slot in judged if slot in orders}
        if not wanted:
            return {}
        cases = self._cases(turn, wanted)
        orders = {slot: wanted[slot] for slot in cases}
        found = self.desk.crew.panel.verdicts(turn, look, orders, cases, begun or {})
        self._keep_evidence(turn, found)
        return dict(sorted(found.items()))

    def _keep_evidence(self, turn: Turn, found: Mapping[int, Judged]) -> None:
        held = self._held_of(turn)
        for slot, (verdict, _) in found.items():
            if verdict.outcome == "fail":
                payload = self.desk.folder.payload(turn.reveals[slot].opening.payload)
                files = {"start_state": held.states[slot], "payload": payload}
                if slot in held.traces:
                    files["trace"] = held.traces[slot]
                self.desk.folder.put_evidence(turn.open, slot, files)

    def _held_of(self, turn: Turn) -> _Held:
        return self._held.setdefault(turn.open.turn, _Held())

    def forget(self, turn: Turn) -> None:
        """Let go of what was held for a turn whose audits are over."""
        self._held.pop(turn.open.turn, None)
        self.desk.told.forget(turn.open.turn)

    def _fetch(self, turn: Turn, slots: Iterable[int]) -> None:
        """Ask for what audits of `slots` need. What is incomplete counts as not served."""
        crew, held = self.desk.crew, self._held_of(turn)
        slots = [slot for slot in slots if not self._take_from_evidence(turn, slot)]
        states = crew.states(turn, slots)
        partial = [slot for slot in states if turn.audit_of(slot).opens_a_trace(turn.segments(slot))]
        base = self.desk.folder.checkpoint(turn.open.round - 1) if partial else b""
        draw = self.desk.ledger.envelope("draw", turn=place(turn)[1:])[1] if partial else b""
        traces = crew.traces(turn, partial, draw, base, lambda slot, data: self._read_trace(turn, slot, data))
        held.traces |= traces
        held.states |= {slot: data for slot, data in states.items() if slot in traces or slot not in partial}

    def _take_from_evidence(self, turn: Turn, slot: int) -> bool:
        """Whether what a look failed on is at hand; after a crash nobody need be asked for it again.

        It may also be of a look that the crash kept from the log.
        """
        kept = self.desk.folder.evidence_folder(turn.open, slot)
        if not turn.served or slot not in turn.served.served:
            return False
        opens = turn.audit_of(slot).opens_a_trace(turn.segments(slot))
        if not all((kept / name).is_file() for name in ("start_state", "trace")[: 1 + opens]):
            return False
        state = (kept / "start_state").read_bytes()
        self._job.state(state, turn.open.entry(slot).start_state)
        held = self._held_of(turn)
        if (kept / "trace").is_file():
            held.traces[slot] = (kept / "trace").read_bytes()
            self._read_trace(turn, slot, held.traces[slot])
        held.states[slot] = state
        return True

    def _read_trace(self, turn: Turn, slot: int, data: bytes) -> OpenedTrace:
        steps, opening = turn.open.entry(slot).steps, turn.reveals[slot].opening
        return read_trace(self._job, opening, steps, turn.audit_of(slot), data)

    def _cases(self, turn: Turn, slots: Collection[int]) -> dict[int, AuditCase]:
        """What auditors need for the slots of a turn that were served."""
        ledger, held = self.desk.ledger, self._held_of(turn)
        missing = [slot for slot in slots if slot not in held.states]
        if missing:  # only after a crash: the log says it was served, so it is asked for again
            self._fetch(turn, missing)
        opened, draw = (ledger.envelope(kind, turn=place(turn)[1:])[1] for kind in ("round-open", "draw"))
        base = self.desk.folder.checkpoint(turn.open.round - 1)
        return {
            slot: AuditCase(
                opened,
                draw,
                ledger.envelope("reveal", slot, turn=place(turn)[1:])[1],
                base,
                held.states[slot],
                held.traces.get(slot),
                *self._steps(turn, slot),
            )
            for slot in slots
            if slot in held.states
        }

    def _steps(self, turn: Turn, slot: int) -> _Steps:
        """By tolerance: the drawn steps in waves, and the sketches of them as they were served."""
        audit, held = turn.audit_of(slot), self._held_of(turn)
        if not audit.tolerant:
            return (), ()
        if slot in held.steps:
            return held.steps[slot]
        opened = self._read_trace(turn, slot, held.traces[slot])
        parts = [
            Wave(part, opened.only([segment - 1 for segment in part if segment > 0]).to_bytes())
            for part in waves(audit.segments)
        ]
        start = self._job.state(held.states[slot], turn.open.entry(slot).start_state)
        held.steps[slot] = tuple(parts), served_sketches(self._job, audit, slot, start, opened.leaves)
        return held.steps[slot]

    def close_evidence(self, slot: int, reason: str) -> str | None:
        """Beside what the contributor sent, put what a rerun takes; the case's digest, None without one."""
        desk, turn = self.desk, self._state.open_turn
        open_, verdicts = turn.open, verdicts_on(turn.evidence, slot)
        failed = 1 in verdicts and any(verdict.outcome == "fail" for verdict in verdicts.values())
        if not failed and reason != "malformed-payload":  # of verdicts that a crash lost
            desk.folder.drop_evidence(open_, slot)
        if not desk.folder.has_evidence(open_, slot):
            return None
        base = desk.folder.checkpoint(open_.round - 1)
        desk.folder.put_evidence(open_, slot, rerun_files(desk.ledger, desk.data, base, slot))
        return desk.folder.close_evidence(open_, slot, reason)


def _after(state: RunState, entries: Sequence[Entry]) -> RunState:
    """The state once these are in the log."""
    for record, _ in entries:
        state = apply(state, record)
    return state
