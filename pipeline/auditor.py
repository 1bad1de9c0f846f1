"""An auditor: recomputes a contribution from the same bytes and signs what it found.

Owns the verdict. Does not own the work (work.py), who is drawn, or what a verdict leads to.
"""

from __future__ import annotations

from typing import Literal

from model.arrays import Arrays
from pipeline.member import Member
from pipeline.work import Work, do_work
from verification.errors import ProtocolError
from verification.judge import differences
from verification.records import PROTOCOL, Reveal, RosterEntry, RoundOpen, Verdict
from verification.sealing import open_record, seal_record


class Auditor(Member):
    """An honest auditor."""

    role = "auditor"

    def audit(
        self,
        open_envelope: bytes,
        slot: int,
        look: Literal[1, 2],
        reveal_envelope: bytes,
        checkpoint: bytes,
        state: bytes,
    ) -> bytes:
        """The signed verdict on a reveal, from the base checkpoint and the served start state.

        Raises ProtocolError when the pieces do not belong together; no verdict is better than one on
        other bytes than the contributor's. An open that names this auditor with another key than its present
        one gets none: a request that comes after a rotation must not bring about a second verdict.
        """
        open_ = self.opened(open_envelope)
        named = next((auditor.key for auditor in open_.auditors if auditor.member == self.name), "nobody")
        if named != self.key.public:
            raise ProtocolError(
                f"the open of turn {open_.turn} does not name {self.name} with its present key",
                expected=self.key.public,
                got=named,
            )
        entry = open_.entry(slot)
        reveal = open_record(Reveal, bytes(reveal_envelope), entry.key)
        place = (reveal.run, reveal.round, reveal.attempt, reveal.slot)
        if place != (open_.run, open_.round, open_.attempt, slot):
            raise ProtocolError("a reveal does not belong to the open it came with")
        weights = self.job.weights(checkpoint, open_.base.weights)
        start = self.job.state(bytes(state), entry.start_state)
        claims = self.compute(open_, entry, weights, start).claims
        differs = differences(reveal.opening, claims)
        verdict = Verdict(
            PROTOCOL,
            self.run,
            open_.round,
            open_.attempt,
            reveal.slot,
            look,
            self.name,
            self.key.public,
            "fail" if differs else "pass",
            differs,
            claims.payload,
            claims.next_state,
            claims.trace,
            claims.loss_first,
            claims.loss_last,
            self.numerics_class,
        )
        return seal_record(verdict, self.key)

    def compute(self, open_: RoundOpen, entry: RosterEntry, weights: Arrays, start: Arrays) -> Work:
        """The same arithmetic as a contributor's, on the same bytes."""
        return do_work(self.job, self.data, open_, entry, weights, start)
