"""The coordinator's turn: open, commit, reveal, draw, audit, close; where audits lag, they come last.

Owns the order of a turn and nothing else: what may be written is decided by the state machine
(verification.rounds, plans), what is acceptable by intake and judge, what the new weights are by
aggregation, who is asked by the crew. Each step first looks whether the log already holds its result, so
that a killed coordinator goes on where it was and never signs a phase twice. Knows neither Ray nor wandb.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from data_prep.dataset import Windows
from model.arrays import Arrays
from pipeline.checkpoint import Aggregator, Checkpoint
from pipeline.config import Config
from pipeline.crew import Allowed, AuditCase, Begun, Crew
from pipeline.evidence import rerun_files
from pipeline.folder import RunFolder
from pipeline.ledger import Entry, Ledger
from pipeline.lineage import Lineage, turn_work
from pipeline.trace import read_trace
from pipeline.witnessing import Notary
from pipeline.work import Job
from verification.intake import judge_reveal
from verification.judge import settle
from verification.lottery import HashChain
from verification.plans import (
    accepted_contributions,
    link_number,
    place,
    plan_close,
    plan_draw,
    plan_open,
    plan_run_close,
    plan_second_draw,
)
from verification.records import (
    PROTOCOL,
    CommitClose,
    Draw,
    KeyRevocation,
    Record,
    Refusal,
    RevealClose,
    RoundClose,
    SecondDraw,
    Served,
    Settlement,
)
from verification.settling import FOLLOWS, due_turn, plan_settlement, removals
from verification.state import RunState, Turn


@dataclass(frozen=True)
class Desk:
    """What the coordinator works with.

    `revoked` names members whose keys the organiser revokes; `data` has the windows, for evidence; `validate`
    gives a validation loss in micronats.
    """

    config: Config
    folder: RunFolder
    ledger: Ledger
    chain: HashChain
    crew: Crew
    notary: Notary
    revoked: Callable[[], Iterable[str]]
    aggregator: Aggregator
    data: Windows
    validate: Callable[[Arrays], int]


@dataclass
class _Held:
    """What contributors served for the audits of a turn, by slot, and the audits that were begun."""

    states: dict[int, bytes] = field(default_factory=dict)
    traces: dict[int, bytes] = field(default_factory=dict)
    begun: Mapping[int, Begun] = field(default_factory=dict)


class Coordinator:
    """Runs turns until the run is complete."""

    def __init__(self, desk: Desk, lineage: Lineage) -> None:
        self.desk = desk
        self.lineage = lineage
        self._held: dict[int, _Held] = {}
        self._job = Job.of(self.state.manifest)
        self.last_turn: Turn | None = None
        self.settled: list[tuple[Turn, Settlement]] = []
        self._taken_up = self.state.turn.open.turn if self.state.turn else None

    @property
    def state(self) -> RunState:
        """What follows from the log so far."""
        return self.desk.ledger.state

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint after the last closed turn."""
        return self.lineage.current

    def run_turn(self) -> RoundClose:
        """One turn, from its open to its close; one that a crash interrupted is taken up where it was.

        Where audits lag, those of an earlier turn are settled first, and this one's begin after its close;
        with the last round all that are left are settled.
        """
        self.settled = []
        self.settle_late()
        self.change_identities()
        self.open()
        self.collect_commitments()
        self.collect_reveals()
        self.draw()
        self.collect_states()
        if not self.state.open_turn.lag:
            self.audit_drawn()
        close = self.close()
        self.publish()
        self.begin_audits()
        if self.state.rounds_done == self.state.config["run"]["rounds"]:
            self.settle_late()  # in the last turn, so that what is seen of it has these too
        return close

    def audit_drawn(self) -> None:
        """The first look at what was drawn, and a second one where that is drawn or due."""
        self.audit(1)
        self.draw_second_looks()
        self.audit(2)

    def settle_late(self) -> None:
        """Log what audits of earlier turns came to, and take out of the weights what they do not bear out."""
        while self.state.due:
            self.audit_drawn()
            self.settle()

    def enrol(self, allowed: Mapping[str, Allowed]) -> None:
        """Enter the members into the log, in the order given, in one step: these and nobody else."""
        if not self.state.members:
            self.desk.ledger.append(self.desk.crew.enrolments(self.state, allowed))

    def change_identities(self) -> None:
        """Between two turns, log whose key was revoked or replaced."""
        state = self.state
        if state.turn or state.due or not state.turns:
            return
        keys = {m.member: m.key for m in state.members if not state.standings[m.member].quarantined}
        for name in sorted(keys.keys() & set(self.desk.revoked())):
            self._append(KeyRevocation(PROTOCOL, state.run, name, keys[name], "coordinator"))
        if entries := self.desk.crew.identity_changes(self.state):
            self.desk.ledger.append(entries)

    def open(self) -> None:
        """Fix roster, base, windows, steps and learning rates, and the witnesses: those that answer now."""
        if self.state.turn is None:
            self._append(plan_open(self.state, self.desk.notary.present()))

    def collect_commitments(self) -> None:
        """Hand out the work and log who committed. Head 1 is the checkpoint over it."""
        turn = self.state.open_turn
        if turn.commit_close:
            return
        _, envelope = self.desk.ledger.envelope("round-open")
        base = self.desk.folder.checkpoint(self.state.rounds_done)
        done = self.desk.crew.commitments(turn, envelope, base)
        late = tuple(entry.slot for entry in turn.open.roster if entry.slot not in done.entries)
        # Answers to a turn that was taken up again say how fast a member remembers, not how fast it works.
        ms = tuple(0 if self._taken_up == turn.open.turn else max(1, ms) for ms in done.ms.values())
        closing = CommitClose(*self._place, tuple(done.entries), late, ms)
        self._append(closing, after=done.entries.values())

    def collect_reveals(self) -> None:
        """Prove that the log has open and commitments, log the reveals, keep payloads and snapshots."""
        state, desk = self.state, self.desk
        turn = state.open_turn
        if turn.reveal_close or not turn.commit_close:
            return
        proofs = {slot: desk.ledger.inclusion("commitment", slot) for slot in turn.commit_close.committed}
        entries: list[Entry] = []
        revealed: list[int] = []
        refused: list[Refusal] = []
        opened = desk.ledger.inclusion("round-open")
        for slot, answer in desk.crew.reveals(state, desk.ledger.head, opened, proofs).items():
            codec = desk.aggregator.codec
            reveal, refusal = judge_reveal(
                state, slot, answer, payload_bytes=codec.payload_bytes, decode=codec.decode
            )
            if reveal and answer:
                entries.append((reveal, answer.envelope))
            if refusal:
                refused.append(refusal)
                if answer and refusal.reason == "malformed-payload":
                    desk.folder.put_evidence(turn.open, slot, {"payload": answer.payload})
            elif answer:
                revealed.append(slot)
                desk.folder.put_payload(answer.payload)
                if answer.snapshot is not None:
                    desk.folder.put_state(answer.snapshot)
        # Named last, when all have answered: the pulse comes soon after, and the witnesses cosign before it.
        pulse = desk.notary.next_pulse()
        closing = RevealClose(*self._place, desk.ledger.head, tuple(revealed), tuple(refused), pulse)
        self._append(closing, after=entries)

    def draw(self) -> None:
        """Only now, with head 2 durable and cosigned, show the turn's links, get the pulse and draw."""
        turn = self.state.open_turn
        if turn.draw is None:
            head, links = self.desk.notary.attest(Draw.kind)
            link = self.desk.chain.link(link_number(self.state))
            self._append(plan_draw(self.state, head, link, links, self.desk.notary.pulse()))

    def collect_states(self) -> None:
        """Ask every drawn contributor for the state it started from, and its trace; log who served them."""
        turn = self.state.open_turn
        if turn.served or not turn.draw or not turn.reveal_close:
            return
        owed = [d.slot for d in turn.draw.drawn if d.auditors and d.slot in turn.reveal_close.revealed]
        self._fetch(turn, owed)
        held = self._held_of(turn).states
        unserved = tuple(slot for slot in owed if slot not in held)
        self._append(Served(*self._place, tuple(s for s in owed if s in held), unserved))

    def _held_of(self, turn: Turn) -> _Held:
        return self._held.setdefault(turn.open.turn, _Held())

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
        """Whether what a first look failed on is at hand; after a crash nobody need be asked for it again."""
        kept = self.desk.folder.evidence_folder(turn.open, slot)
        if (slot, 1) not in turn.verdicts or not (kept / "start_state").is_file():
            return False
        state = (kept / "start_state").read_bytes()
        self._job.state(state, turn.open.entry(slot).start_state)
        held = self._held_of(turn)
        if (kept / "trace").is_file():
            held.traces[slot] = (kept / "trace").read_bytes()
            self._read_trace(turn, slot, held.traces[slot])
        held.states[slot] = state
        return True

    def _read_trace(self, turn: Turn, slot: int, data: bytes) -> None:
        steps, opening = turn.open.entry(slot).steps, turn.reveals[slot].opening
        read_trace(self._job, opening, steps, turn.audit_of(slot), data)

    def audit(self, look: Literal[1, 2]) -> None:
        """Collect the verdicts of a look; keep what a contributor needs to rerun one that went against it."""
        turn, desk = self.state.open_turn, self.desk
        if not turn.draw or not turn.served or any(done == look for _, done in turn.verdicts):
            return
        if look == 1 and turn.second:  # nobody answered, and that is settled: too late to ask again
            return
        drawn = turn.draw.drawn if look == 1 else (turn.second.looks if turn.second else ())
        served = set(turn.served.served)
        if self.state.due:  # of what a settlement took out, nobody is asked
            served &= self.state.due.slots
        orders = {item.slot: item.auditors for item in drawn if item.slot in served}
        cases = self._cases(turn, orders)
        held = self._held_of(turn)
        begun = held.begun if look == 1 else {}
        found = desk.crew.verdicts(turn, look, {slot: orders[slot] for slot in cases}, cases, begun)
        for (slot, _), (verdict, _) in found.items():
            if getattr(verdict, "outcome", "") == "fail":
                payload = desk.folder.payload(turn.reveals[slot].opening.payload)
                files = {"start_state": held.states[slot], "payload": payload}
                if slot in held.traces:
                    files["trace"] = held.traces[slot]
                desk.folder.put_evidence(turn.open, slot, files)
        if found:
            desk.ledger.append([found[key] for key in sorted(found)])

    def begin_audits(self) -> None:
        """Where audits lag, have those of the turn that was just closed begin while the next one trains."""
        if not self.state.waiting or self.state.turn:
            return
        waiting = self.state.waiting[-1]
        turn, held = waiting.turn, self._held_of(waiting.turn)
        drawn = turn.draw.drawn if turn.draw else ()
        orders = {
            item.slot: item.auditors for item in drawn if item.slot in waiting.slots & held.states.keys()
        }
        held.begun = self.desk.crew.begin_verdicts(orders, self._cases(turn, orders))

    def _cases(self, turn: Turn, slots: Collection[int]) -> dict[int, AuditCase]:
        """What auditors need for the slots of a turn that were served."""
        ledger, held = self.desk.ledger, self._held_of(turn)
        missing = [slot for slot in slots if slot not in held.states]
        if missing:  # only after a crash: the log says it was served, so it is asked for again
            self._fetch(turn, missing)
        _, opened = ledger.envelope("round-open", turn=place(turn)[1:])
        base = self.desk.folder.checkpoint(turn.open.round - 1)
        return {
            slot: AuditCase(
                opened,
                turn.drawn_segments(slot),
                ledger.envelope("reveal", slot, turn=place(turn)[1:])[1],
                base,
                held.states[slot],
                held.traces.get(slot),
            )
            for slot in slots
            if slot in held.states
        }

    def draw_second_looks(self) -> None:
        """With the first verdicts under head 3, show the next links and draw who is looked at twice."""
        turn = self.state.open_turn
        if turn.second is None:
            head, links = self.desk.notary.attest(SecondDraw.kind)
            link = self.desk.chain.link(link_number(self.state))
            self._append(plan_second_draw(self.state, head, link, links))

    def close(self) -> RoundClose:
        """Aggregate what was accepted, take the outer step, store the checkpoint, log the outcome."""
        state, desk = self.state, self.desk
        turn, number = state.open_turn, state.round
        accepted = accepted_contributions(state)
        work = turn_work(desk.folder, accepted, turn.open.outer_lr)
        lineage = self.lineage.closed(work, lags=bool(turn.lag))
        after = lineage.current
        weights = desk.aggregator.arrays(after)
        if accepted:
            desk.folder.put_checkpoint(number, weights, dict(after.outer))
        val_loss = desk.validate(weights) if accepted and self._validates(number) else None
        rejected = {o.entry.slot: o.reason for o in settle(turn.evidence) if o.reason}
        evidence = {slot: self._close_evidence(slot, why) for slot, why in rejected.items()}
        record = plan_close(state, desk.aggregator.digests(after), evidence=evidence, val_loss=val_loss)
        self._append(record)
        self.lineage, self.last_turn = lineage, turn
        if not turn.lag:
            self._held.pop(turn.open.turn, None)
        self._keep_checkpoints()
        return record

    def settle(self) -> None:
        """Log the settlement that is due, after an excision where something does not hold."""
        state, desk = self.state, self.desk
        turn = due_turn(state).turn
        reasons = {item.slot: item.reason for item in removals(state, {}) if item.reason != FOLLOWS}
        evidence = {slot: self._close_evidence(slot, why) for slot, why in reasons.items()}
        removed = removals(state, evidence)
        lineage = self.lineage.settled_after(desk.folder, state, removed)
        settled, last = desk.aggregator.digests(lineage.settled), desk.aggregator.digests(lineage.current)
        record = plan_settlement(state, settled, last, evidence)
        self._append(record)
        self.settled.append((turn, record))
        if removed:
            weights = desk.aggregator.arrays(lineage.current)
            desk.folder.put_checkpoint(state.rounds_done, weights, dict(lineage.current.outer))
        self.lineage = lineage
        self._held.pop(turn.open.turn, None)
        self._keep_checkpoints()

    def _keep_checkpoints(self) -> None:
        state = self.state
        every = state.config["checkpoint"]["every"]
        self.desk.folder.keep_checkpoints(state.rounds_done, every, state.bases_in_use)

    def _close_evidence(self, slot: int, reason: str) -> str | None:
        """Beside what the contributor sent, put what a rerun takes; the case's digest, None without one."""
        desk, open_ = self.desk, self.state.open_turn.open
        if not desk.folder.has_evidence(open_, slot):
            return None
        base = desk.folder.checkpoint(open_.round - 1)
        desk.folder.put_evidence(open_, slot, rerun_files(desk.ledger, desk.data, base, slot))
        return desk.folder.close_evidence(open_, slot, reason)

    def publish(self) -> None:
        """Between two turns, have the newest head cosigned, and give all of the last turn their receipts."""
        if self.state.last_close and not self.state.turn:
            note = self.desk.notary.publish()
            self.desk.crew.give_receipts(self.state, *self.desk.ledger.receipts(note))

    def finish(self) -> None:
        """What audits are left, then the last entry of the log, and the cosignatures of its head."""
        self.settle_late()
        if not self.state.finished:
            self._append(plan_run_close(self.state))
        self.desk.notary.publish()

    def _append(self, record: Record, *, after: Iterable[Entry] = ()) -> None:
        self.desk.ledger.append([*after, self.desk.ledger.sign(record)])

    @property
    def _place(self) -> tuple[int, str, int, int]:
        return PROTOCOL, self.state.run, self.state.round, self.state.attempt

    def _validates(self, number: int) -> bool:
        config = self.state.config
        return number in (1, config["run"]["rounds"]) or number % config["eval"]["every"] == 0
