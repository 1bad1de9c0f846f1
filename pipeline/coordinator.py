"""The coordinator's turn: muster, open, commit, reveal, draw, audit, close; where audits lag, they come last.

Owns the order of a turn and nothing else: what may be written is decided by the state machine
(verification.rounds, plans), what is acceptable by intake and judge, what the new weights are by
aggregation, who is asked by the crew. Each step first looks whether the log already holds its result, so
that a killed coordinator goes on where it was and never signs a phase twice. Knows neither Ray nor wandb.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.auditing import Hearing
from pipeline.checkpoint import Checkpoint
from pipeline.crew import Allowed
from pipeline.desk import Desk
from pipeline.laps import Laps
from pipeline.lineage import Lineage, turn_work
from pipeline.log_reader import Entry
from pipeline.muster import Muster
from pipeline.shelf import Shelf
from verification.intake import judge_reveal
from verification.judge import settle
from verification.looks import overruled_auditors
from verification.plans import (
    accepted_contributions,
    link_number,
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
    Record,
    Refusal,
    RevealClose,
    RoundClose,
    SecondDraw,
    Settlement,
)
from verification.settling import FOLLOWS, due_turn, plan_settlement, removals
from verification.state import RunState, Turn


class Coordinator:
    """Runs turns until the run is complete."""

    def __init__(self, desk: Desk, lineage: Lineage, muster: Muster) -> None:
        self.desk = desk
        self.muster = muster
        self.lineage = lineage
        self.hearing = Hearing(desk)
        self.shelf = Shelf(desk.folder, desk.ledger, desk.notice)
        self.last_turn: Turn | None = None
        self.settled: list[tuple[Turn, Settlement]] = []
        self.laps = Laps()
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
        self.settled, laps = [], Laps()
        self.laps = laps
        self.settle_late()
        laps.lap("audit")
        self.muster.hold()
        self.open()
        laps.lap("open")
        self.collect_commitments()
        laps.lap("commit")
        self.collect_reveals()
        laps.lap("reveal")
        self.draw()
        laps.lap("draw")
        self.hearing.collect_states()
        if not self.state.open_turn.lag:
            self.audit_drawn()
        laps.lap("audit")
        close = self.close()
        self.publish()
        laps.lap("close")
        self.hearing.begin()
        if self.state.rounds_done == self.state.config["run"]["rounds"]:
            self.settle_late()  # in the last turn, so that what is seen of it has these too
        laps.lap("audit")
        return close

    def audit_drawn(self) -> None:
        """A first look at what was drawn, a second one where that is drawn or due, and what they dispute."""
        self.hearing.first_looks()
        self.draw_second_looks()
        self.hearing.second_looks()
        self.hearing.disputes()

    def settle_late(self) -> None:
        """Log what audits of earlier turns came to, and take out of the weights what they do not bear out."""
        while self.state.due:
            self.audit_drawn()
            self.settle()

    def enrol(self, allowed: Mapping[str, Allowed]) -> None:
        """Enter the members into the log, in the order given, in one step: these and nobody else."""
        if not self.state.members:
            self.desk.ledger.append(self.desk.crew.enrolments(self.state, allowed))

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

    def draw_second_looks(self) -> None:
        """With the first verdicts sealed under head 3, show the next links; draw who is looked at twice."""
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
        evidence = self._evidence(rejected)
        record = plan_close(state, desk.aggregator.digests(after), evidence=evidence, val_loss=val_loss)
        self._append(record)
        self.lineage, self.last_turn = lineage, turn
        if not turn.lag:
            self.hearing.forget(turn)
        self._keep_checkpoints()
        return record

    def settle(self) -> None:
        """Log the settlement that is due, after an excision where something does not hold."""
        state, desk = self.state, self.desk
        turn = due_turn(state).turn
        reasons = {item.slot: item.reason for item in removals(state, {}) if item.reason != FOLLOWS}
        evidence = self._evidence(reasons)
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
        self.hearing.forget(turn)
        self._keep_checkpoints()

    def _keep_checkpoints(self) -> None:
        self.shelf.tidy()

    def _evidence(self, rejected: Mapping[int, str]) -> dict[int, str | None]:
        """The digests of the turn's cases by slot: of what is rejected, and of what was wrongly failed.

        A failure that nobody outvoted on work that is accepted leaves none.
        """
        turn = self.state.open_turn
        overruled = overruled_auditors(turn.evidence, {})
        wronged = {item.slot for item in overruled if turn.verdicts[item.slot, item.look].outcome == "fail"}
        due = {**dict.fromkeys(wronged, "overruled"), **rejected}
        for slot in set(turn.served.served if turn.served else ()) - due.keys():
            self.desk.folder.drop_evidence(turn.open, slot)
        return {slot: self.hearing.close_evidence(slot, why) for slot, why in sorted(due.items())}

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
