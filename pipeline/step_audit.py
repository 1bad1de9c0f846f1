"""An audit by tolerance: single local steps, each between two points that the contributor opened.

Owns section 7 of docs/protocol.md, "Tolerance" and "Sketches", as the auditor goes through it, and which of
the two kinds of audit a case takes. The work in a step is work.py's, the arithmetic of a deviation
deviation.py's, of a sketch sketch.py's. Does not own thresholds or the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.deviation import not_finite_deviation, step_deviation
from pipeline.segment_audit import Case, Found, audit_segments, boundary, opened_points, start_of
from pipeline.sketch import Sketcher
from pipeline.trace import NOT_FINITE, OpenedTrace
from pipeline.work import run_segments
from verification.encoding import parse_hex_float
from verification.errors import NotFiniteError, ProtocolError
from verification.judge import Audit, Recomputed
from verification.records import RoundOpen
from verification.tolerance import NO_SKETCH, Deviation, Sketch

if TYPE_CHECKING:
    from model.local_steps import Midpoint


Origin = tuple[RoundOpen, str, str]  # the turn, the draw's seed, and the digest of the point before a step


@dataclass(frozen=True)
class Repeated:
    """A step as the auditor took it: where it came to, its loss in micronats, its leaf, and its sketch.

    `end` is None where nothing finite came of it; `origin` is all that a step follows from.
    """

    origin: Origin
    end: Midpoint | None = None
    loss: int = 0
    leaf: str = NOT_FINITE
    sketch: Sketch = NO_SKETCH

    @property
    def nbytes(self) -> int:
        """What its arrays take up."""
        arrays = [*self.end.weights.values(), *self.end.state.values()] if self.end else []
        return sum(array.nbytes for array in arrays)


def recompute(
    case: Case, audit: Audit, opened: OpenedTrace | None, repeated: Mapping[int, Repeated]
) -> Recomputed:
    """What an audit finds, by digest or by tolerance. Raises ProtocolError as `do_work` does.

    `repeated` are steps that were repeated already, by segment; what is missing or of another origin is
    repeated now.
    """
    if not audit.tolerant:
        return audit_segments(case, audit.segments, opened)
    if opened is None:
        raise ProtocolError("an audit by tolerance needs an opened trace")
    return audit_steps(case, audit, opened, repeated)


def audit_steps(
    case: Case, audit: Audit, opened: OpenedTrace, repeated: Mapping[int, Repeated]
) -> Recomputed:
    """Compare each of the segments, single steps, with what the auditor itself got; and take the boundary."""
    found = opened_points(case, audit.segments, opened)
    if 0 in audit.segments:
        found.loss_first = opened.leaves[0].losses[0]
    deviations = tuple(
        _deviation(case, segment, found, opened, _known(case, audit, segment, opened, repeated))
        for segment in audit.segments
    )
    return replace(boundary(case, found), deviations=deviations)


def _known(
    case: Case, audit: Audit, segment: int, opened: OpenedTrace, repeated: Mapping[int, Repeated]
) -> Repeated:
    """A step that was repeated before, where that is still at hand; else it is repeated."""
    known = repeated.get(segment)
    if known is not None and known.origin == _origin(case, audit, segment, opened):
        return known
    return next(repeat_steps(case, audit, [segment], opened))


def repeat_steps(
    case: Case, audit: Audit, segments: Sequence[int], opened: OpenedTrace
) -> Iterator[Repeated]:
    """Take some of an audit's steps, from the opened points before them; those after them may be shut.

    One after the other as they are asked for: where they come to takes as much memory as weights and state.
    """
    found = opened_points(case, segments, opened)
    sketcher = Sketcher(case.job.config.train, audit.seed, case.entry.slot)
    for segment in segments:
        origin, start = _origin(case, audit, segment, opened), start_of(case, segment, found)
        try:
            step = run_segments(case.job, case.data, case.open, case.entry, start, (segment, segment))
        except NotFiniteError:
            yield Repeated(origin)
            continue
        sketch = sketcher.of(segment, start.state, step.end.state)
        yield Repeated(origin, step.end, step.losses[0], step.leaves[0], sketch)


def _origin(case: Case, audit: Audit, segment: int, opened: OpenedTrace) -> Origin:
    return case.open, audit.seed, opened.digests[segment - 1] if segment else case.entry.start_state


def _deviation(case: Case, segment: int, found: Found, opened: OpenedTrace, own: Repeated) -> Deviation:
    if own.end is None:
        return not_finite_deviation()
    rates = case.open.inner_lr
    deviation = step_deviation(
        case.job.spec,
        case.job.specs,
        start_of(case, segment, found),
        found.points[segment],
        own.end,
        lr=parse_hex_float(rates[segment]) if rates else 0.0,
        losses=(opened.leaves[segment].losses[0], own.loss),
        own_leaf=own.leaf,
    )
    return replace(deviation, sketch=own.sketch)
