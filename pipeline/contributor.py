"""A contributor: takes an assignment, commits, reveals, serves its state and its trace.

Owns the order in which things become durable before they are said, and the refusal to say two things in one
turn. Does not own the work (work.py) or transport. It trusts nobody: opens and heads are checked with the
coordinator's key, and nothing is revealed before the commitment is proven to be in the log.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from model.arrays import Arrays
from pipeline.member import Member, Place
from pipeline.trace import OpenedLeaf, open_trace
from pipeline.vault import Committed
from pipeline.work import Work, do_work
from verification.encoding import sha256_digest
from verification.envelope import open_envelope
from verification.errors import FormatError, ProtocolError, StorageError
from verification.intake import as_bytes
from verification.judge import Audit, trace_root
from verification.merkle import Inclusion, leaf_hash, verify_inclusion
from verification.notes import parse_checkpoint
from verification.records import (
    PROTOCOL,
    Appeal,
    Commitment,
    Draw,
    Opening,
    Reveal,
    RosterEntry,
    RoundOpen,
    Verdict,
)
from verification.sealing import open_record, seal_record
from verification.segments import segment_count

# As much of a turn's trace is kept in memory for audits; what does not fit is computed again if it is drawn.
KEPT_BYTES = 1 << 29


class Contributor(Member):
    """An honest contributor."""

    role = "contributor"

    def __init__(self, name: str, operator: str, manifest: bytes, place: Place) -> None:
        super().__init__(name, operator, manifest, place)
        self._trace: tuple[int, tuple[str, ...]] = (-1, ())  # turn, leaf digests
        self._points: dict[int, OpenedLeaf] = {}
        self._due: Collection[int] = ()

    def commit(self, open_envelope: bytes, checkpoint: bytes) -> bytes:
        """Do the assigned work on `checkpoint` and return the signed commitment.

        Asked again for the same open, gives the same answer. Raises ProtocolError for a different open of a
        turn it has committed to, or for an earlier turn.
        """
        open_envelope = bytes(open_envelope)
        open_ = self.opened(open_envelope)
        entry = self._entry(open_)
        before = self.vault.committed(open_.turn)
        if before is not None:
            if before.open != open_envelope:
                raise ProtocolError(
                    f"two different opens of turn {open_.turn}",
                    expected=sha256_digest(before.open),
                    got=sha256_digest(open_envelope),
                )
            return before.commitment
        if open_.turn < self.vault.last_turn():
            raise ProtocolError(
                "an open is older than a commitment", expected=self.vault.last_turn(), got=open_.turn
            )
        work = self._traced_work(open_, entry, checkpoint)
        return self._remember(open_, open_envelope, entry, work)

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        """The contribution itself."""
        weights = self.job.weights(checkpoint, open_.base.weights)
        start = self.job.state(self._state_bytes(entry.start_state), entry.start_state)
        return self.compute(open_, entry, weights, start)

    def compute(self, open_: RoundOpen, entry: RosterEntry, weights: Arrays, start: Arrays) -> Work:
        """The arithmetic of a contribution, from checked weights and state."""
        audit = self.job.config.audit
        keep = self._keep if audit.segments or audit.tolerance else None
        return do_work(self.job, self.data, open_, entry, weights, start, keep)

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        """(signed reveal, payload), once `head` proves that the log has the open and the commitment.

        The open too: work that was done for another one than the log has could only be found false.
        """
        stored = self._stored(turn)
        checkpoint = parse_checkpoint(head, self.manifest.log_vkey)
        for entry, inclusion in ((stored.open, opened), (stored.commitment, committed)):
            index, proof = _inclusion(inclusion)
            verify_inclusion(index, checkpoint.size, leaf_hash(entry), proof, checkpoint.root)
        payload = self.vault.get("payloads", stored.payload)
        if payload is None:
            raise StorageError("the committed payload is gone", expected=stored.payload)
        return stored.reveal, payload

    def serve_state(self, turn: int) -> bytes:
        """The canonical bytes of the hidden state that the turn started from."""
        return self._state_bytes(self._entry_of(self._stored(turn)).start_state)

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        """The trace of a turn with the leaves opened that its draw looks into, and no others.

        Where the points of the work are not in memory any more they are computed again from `checkpoint`.
        Raises one of the family for a draw that the coordinator did not sign for this turn and member.
        """
        stored = self._stored(turn)
        open_, entry = self.opened(stored.open), self._entry_of(stored)
        due = self._due_leaves(open_, entry, draw_envelope)
        if self._trace[0] != turn or not self._points.keys() >= set(due):
            self._due = due
            self._traced_work(open_, entry, checkpoint)
            self._due = ()
        missing = set(due) - self._points.keys()
        if missing:
            raise ProtocolError("this run opens no traces", got=sorted(missing))
        return open_trace(self._trace[1], due, lambda index: self._points[index])

    def appeal(self, turn: int, verdicts: list[bytes]) -> bytes:
        """The signed appeal against two verdicts that failed the work of a turn; it stands by what it did.

        Raises one of the family unless they are a first and a second one on that work, by auditors of its
        open: the appeal is against these and no others.
        """
        stored = self._stored(turn)
        open_, entry = self.opened(stored.open), self._entry_of(stored)
        if entry.key != self.key.public:
            raise ProtocolError(f"{self.name} has another key since", expected=entry.key, got=self.key.public)
        keys = {auditor.member: auditor.key for auditor in open_.auditors}
        if type(verdicts) not in (list, tuple) or len(verdicts) != 2:
            raise FormatError("an appeal is against two verdicts", got=repr(verdicts)[:80])
        digests = []
        for look, envelope in enumerate(verdicts, start=1):
            data = as_bytes(envelope)
            verdict = open_record(Verdict, data, keys.get(str(open_envelope(data).peek().get("auditor")), ""))
            place = (verdict.run, verdict.round, verdict.attempt, verdict.slot, verdict.look, verdict.outcome)
            expected = (self.run, open_.round, open_.attempt, entry.slot, look, "fail")
            if place != expected:
                raise ProtocolError("a verdict is none against this work", expected=expected, got=place)
            digests.append(verdict.digest)
        against = (digests[0], digests[1])
        record = Appeal(
            PROTOCOL, self.run, open_.round, open_.attempt, entry.slot, self.name, entry.key, against
        )
        return seal_record(record, self.key)

    def _due_leaves(self, open_: RoundOpen, entry: RosterEntry, envelope: bytes) -> tuple[int, ...]:
        draw = open_record(Draw, as_bytes(envelope), self.manifest.coordinator)
        if (draw.run, draw.round, draw.attempt) != (self.run, open_.round, open_.attempt):
            place = (open_.round, open_.attempt)
            raise ProtocolError("a draw is of another turn", expected=place, got=(draw.round, draw.attempt))
        count = segment_count(entry.steps, self.job.config.train.trace_every)
        segments = next((item.segments for item in draw.drawn if item.slot == entry.slot), ())
        if not segments or not all(0 <= segment < count for segment in segments):
            raise ProtocolError(
                "a draw looks into no segments of this work",
                expected=f"some of 0 to {count - 1}",
                got=segments,
            )
        tolerances = self.manifest.config["audit"]["tolerance"]
        return Audit.of(tolerances, entry, open_.auditors, segments).opened_leaves(count)

    def _traced_work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        self._points = {}
        work = self.work(open_, entry, checkpoint)
        self._trace = (open_.turn, work.claims.trace)
        return work

    def _keep(self, index: int, leaf: OpenedLeaf) -> None:
        held = sum(len(point.weights) + len(point.state) for point in self._points.values())
        if index in self._due or held < KEPT_BYTES:
            self._points[index] = leaf

    def _entry(self, open_: RoundOpen) -> RosterEntry:
        for entry in open_.roster:
            if entry.key == self.key.public:
                return entry
        raise ProtocolError(f"{self.name} is not in the roster of turn {open_.turn}")

    def _entry_of(self, stored: Committed) -> RosterEntry:
        """The assignment of a turn that was committed to, whose key may have been rotated since."""
        return next(entry for entry in self.opened(stored.open).roster if entry.member == self.name)

    def _stored(self, turn: int) -> Committed:
        stored = self.vault.committed(turn)
        if stored is None:
            raise ProtocolError(f"{self.name} committed to nothing in turn {turn}")
        return stored

    def _state_bytes(self, digest: str) -> bytes:
        if digest == self.manifest.zero_state:
            return self.job.zero_state
        data = self.vault.get("states", digest)
        if data is None:
            raise StorageError("the hidden state of this contributor is lost", expected=digest)
        return data

    def _remember(self, open_: RoundOpen, envelope: bytes, entry: RosterEntry, work: Work) -> bytes:
        # States and payload first, the turn's file last: it is the commit point.
        claims = work.claims
        next_state = self.vault.put("states", work.next_state)
        payload = self.vault.put("payloads", work.payload)
        assert claims.loss_first is not None  # noqa: S101 - narrows the type; whole work has its first loss
        batch, context = self.job.config.train.batch, self.job.model.context
        opening = Opening(
            open_.base,
            entry.positions,
            entry.numerics_class,
            entry.steps * batch * context,
            entry.start_state,
            claims.next_state,
            claims.payload,
            trace_root(claims.trace),
            len(claims.trace),
            claims.loss_first,
            claims.loss_last,
        )
        place = (PROTOCOL, self.run, open_.round, open_.attempt, entry.slot, self.name, self.key.public)
        reveal = Reveal(*place, secrets.token_hex(32), opening)
        commitment = seal_record(Commitment(*place, reveal.commitment), self.key)
        sealed = seal_record(reveal, self.key)
        self.vault.commit(open_.turn, Committed(envelope, commitment, sealed, payload, next_state))
        self._forget(open_, entry, payload, next_state)
        return commitment

    def _forget(self, open_: RoundOpen, entry: RosterEntry, payload: str, next_state: str) -> None:
        """Let go of what no turn can ask for any more: with audits that lag, that is later."""
        first = open_.turn - self.job.config.audit.lag
        waiting = [self._stored(turn) for turn in self.vault.turns() if first <= turn < open_.turn]
        rounds = [self.opened(stored.open).round for stored in waiting]
        self.vault.forget_turns_before(first)
        self.vault.keep("payloads", [payload])
        if not any(map(self._restarts, [*rounds, open_.round])):
            starts = [self._entry_of(stored).start_state for stored in waiting]
            self.vault.keep("states", [*starts, entry.start_state, next_state])

    def _restarts(self, round_: int) -> bool:
        # After a reset round that was not accepted, the next one starts from the state before the reset.
        state = self.job.config.state
        return state.policy == "reset" and state.every > 1 and (round_ - 1) % state.every == 0


def _inclusion(value: Any) -> Inclusion:
    """A peer's (index, proof), of these types; FormatError for any other."""
    if type(value) in (tuple, list) and len(value) == 2:
        index, proof = value
        if type(index) is int and type(proof) in (tuple, list):
            return index, [as_bytes(part) for part in proof]
    raise FormatError(
        "a proof of inclusion has other parts", expected="index and hashes", got=repr(value)[:80]
    )
