"""An auditor: recomputes a contribution, or segments of it, from the same bytes and signs what it found.

Owns the verdict. Does not own the work (work.py), who is drawn, or what a verdict leads to.
"""

from __future__ import annotations

from pipeline.member import Member
from pipeline.segment_audit import Case
from pipeline.step_audit import recompute
from pipeline.trace import OpenedTrace, read_trace
from pipeline.work import check_assignment
from verification.errors import ProtocolError
from verification.judge import Audit, Recomputed, judged
from verification.records import PROTOCOL, Opening, Reveal, Verdict
from verification.sealing import open_record, seal_record


class Auditor(Member):
    """An honest auditor."""

    role = "auditor"

    def audit(
        self,
        open_envelope: bytes,
        slot: int,
        look: int,
        segments: list[int],
        reveal_envelope: bytes,
        checkpoint: bytes,
        state: bytes,
        trace: bytes | None,
    ) -> bytes:
        """The signed verdict on `segments` of what was revealed, from base checkpoint and served start state.

        `trace` is what the contributor opened of its trace, None when all segments are to be looked into to
        the bit. Whether it is to the bit or by tolerance follows from the open.
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
        check_assignment(self.job, entry)
        reveal = open_record(Reveal, bytes(reveal_envelope), entry.key)
        place = (reveal.run, reveal.round, reveal.attempt, reveal.slot)
        if place != (open_.run, open_.round, open_.attempt, slot):
            raise ProtocolError("a reveal does not belong to the open it came with")
        weights = self.job.weights(checkpoint, open_.base.weights)
        start = self.job.state(bytes(state), entry.start_state)
        case = Case(self.job, self.data, open_, entry, weights, start)
        tolerances = self.manifest.config["audit"]["tolerance"]
        audit = Audit.of(tolerances, entry, open_.auditors, case.checked(segments))
        opened = self._opened(reveal.opening, case, audit, trace)
        return self._verdict(look, reveal, audit, self.compute(case, audit, opened))

    def compute(self, case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
        """The same arithmetic as a contributor's, on the same bytes."""
        return recompute(case, audit, opened)

    def _opened(self, opening: Opening, case: Case, audit: Audit, trace: bytes | None) -> OpenedTrace | None:
        if opening.trace_leaves != case.count + 1:
            raise ProtocolError(
                "a trace is too long or short", expected=case.count + 1, got=opening.trace_leaves
            )
        if (trace is None) == audit.opens_a_trace(case.count):
            raise ProtocolError(
                "a trace is opened exactly when not all segments are drawn, or by tolerance",
                got=list(audit.segments),
            )
        if trace is None:
            return None
        return read_trace(self.job, opening, case.entry.steps, audit, bytes(trace))

    def _verdict(self, look: int, reveal: Reveal, audit: Audit, found: Recomputed) -> bytes:
        differs = judged(audit, self.numerics_class, reveal.opening, found)
        verdict = Verdict(
            PROTOCOL,
            self.run,
            reveal.round,
            reveal.attempt,
            reveal.slot,
            look,
            self.name,
            self.key.public,
            "fail" if differs else "pass",
            differs,
            found.payload,
            found.next_state,
            found.trace,
            found.loss_first,
            found.loss_last,
            found.deviations,
            self.numerics_class,
        )
        return seal_record(verdict, self.key)
