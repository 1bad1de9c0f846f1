"""An auditor: recomputes a contribution, or segments of it, from the same bytes and signs what it found.

Owns the verdict. Does not own the work (work.py), who is drawn, or what a verdict leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pipeline.member import Member
from pipeline.segment_audit import Case
from pipeline.step_audit import Repeated, recompute, repeat_steps
from pipeline.trace import OpenedTrace, read_leaves, read_trace
from pipeline.work import check_assignment
from verification.encoding import canonical_json, to_json
from verification.errors import ProtocolError
from verification.intake import as_bytes
from verification.judge import Audit, Recomputed, judged
from verification.records import PROTOCOL, Draw, Opening, Reveal, Verdict
from verification.sealing import open_record, seal_record
from verification.segments import waves
from verification.tolerance import Sketch

# Of steps that were told of and wait for their ends, so much is kept in memory; others are repeated then.
KEPT_BYTES = 512 << 20


class Auditor(Member):
    """An honest auditor."""

    role = "auditor"

    @cached_property
    def _repeated(self) -> dict[tuple[int, int], dict[int, Repeated]]:
        """Steps that were told of, by (turn, slot) and segment."""
        return {}

    def tell(
        self,
        open_envelope: bytes,
        slot: int,
        draw_envelope: bytes,
        reveal_envelope: bytes,
        checkpoint: bytes,
        state: bytes,
        wave: int,
        trace: bytes,
    ) -> bytes:
        """By tolerance: repeat one wave of the steps that are drawn, and tell sketches of what they came to.

        `trace` opens the points before these steps and no others, so what is told cannot be made from what
        the contributor says. The answer is canonical JSON, a list of the wave's sketches. Raises as `audit`.
        """
        case, audit, reveal = self._case(
            open_envelope, slot, draw_envelope, reveal_envelope, checkpoint, state
        )
        told = waves(audit.segments)
        if not audit.tolerant or type(wave) is not int or not 0 <= wave < len(told):
            raise ProtocolError("sketches are told of the waves of an audit by tolerance", got=wave)
        before = [segment - 1 for segment in told[wave] if segment > 0]
        opened = read_leaves(self.job, reveal.opening, case.entry.steps, before, as_bytes(trace))
        return canonical_json(to_json(self.sketches(case, audit, told[wave], opened)))

    def sketches(
        self, case: Case, audit: Audit, segments: Sequence[int], opened: OpenedTrace
    ) -> Sequence[Sketch]:
        """Of the steps, which are kept for the verdict as far as there is room."""
        place = case.open.turn, case.entry.slot
        for old in [old for old in self._repeated if old[0] < place[0] - self._lag]:
            del self._repeated[old]
        held = sum(step.nbytes for steps in self._repeated.values() for step in steps.values())
        found = []
        for segment, step in zip(segments, repeat_steps(case, audit, segments, opened), strict=True):
            found.append(step.sketch)
            if held + step.nbytes <= KEPT_BYTES:
                held += step.nbytes
                self._repeated.setdefault(place, {})[segment] = step
        return found

    @property
    def _lag(self) -> int:
        return int(self.manifest.config["audit"]["lag"])

    def audit(
        self,
        open_envelope: bytes,
        slot: int,
        look: int,
        draw_envelope: bytes,
        reveal_envelope: bytes,
        checkpoint: bytes,
        state: bytes,
        trace: bytes | None,
    ) -> bytes:
        """The signed verdict on what was revealed, from base checkpoint and served start state.

        The segments are those that the draw names, by which the coordinator is held to what it asks. `trace`
        is what the contributor opened of its trace, None when all segments are to be looked into to the bit.
        Whether it is to the bit or by tolerance follows from the open.
        Raises ProtocolError when the pieces do not belong together; no verdict is better than one on
        other bytes than the contributor's. An open that names this auditor with another key than its present
        one gets none: a request that comes after a rotation must not bring about a second verdict.
        """
        case, audit, reveal = self._case(
            open_envelope, slot, draw_envelope, reveal_envelope, checkpoint, state
        )
        opened = self._opened(reveal.opening, case, audit, trace)
        return self._verdict(look, reveal, audit, self.compute(case, audit, opened))

    def _case(
        self,
        open_envelope: bytes,
        slot: int,
        draw_envelope: bytes,
        reveal_envelope: bytes,
        checkpoint: bytes,
        state: bytes,
    ) -> tuple[Case, Audit, Reveal]:
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
        draw = open_record(Draw, as_bytes(draw_envelope), self.manifest.coordinator)
        if (draw.run, draw.round, draw.attempt) != place[:3]:
            raise ProtocolError("a draw is of another turn", expected=place[:3], got=draw.round)
        segments = next((item.segments for item in draw.drawn if item.slot == slot), ())
        tolerances = self.manifest.config["audit"]["tolerance"]
        audit = Audit.of(tolerances, entry, open_.auditors, case.checked(segments), draw.seed)
        return case, audit, reveal

    def compute(self, case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
        """The same arithmetic as a contributor's, on the same bytes."""
        return recompute(case, audit, opened, self._repeated.pop((case.open.turn, case.entry.slot), {}))

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
        return read_trace(self.job, opening, case.entry.steps, audit, as_bytes(trace))

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
