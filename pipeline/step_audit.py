"""An audit by tolerance: single local steps, each between two points that the contributor opened.

Owns section 7 of docs/protocol.md, "Tolerance", as the auditor goes through it, and which of the two kinds
of audit a case takes. The work in a step is work.py's, the arithmetic of a deviation deviation.py's. Does not
own thresholds or the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.deviation import not_finite_deviation, step_deviation
from pipeline.segment_audit import Case, Found, audit_segments, boundary, opened_points, start_of
from pipeline.trace import OpenedTrace
from pipeline.work import run_segments
from verification.encoding import parse_hex_float
from verification.errors import NotFiniteError, ProtocolError
from verification.judge import Audit, Recomputed
from verification.tolerance import Deviation


def recompute(case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
    """What an audit finds, by digest or by tolerance. Raises ProtocolError as `do_work` does."""
    if not audit.tolerant:
        return audit_segments(case, audit.segments, opened)
    if opened is None:
        raise ProtocolError("an audit by tolerance needs an opened trace")
    return audit_steps(case, audit.segments, opened)


def audit_steps(case: Case, segments: Sequence[int], opened: OpenedTrace) -> Recomputed:
    """Repeat each of `segments`, single steps, from the served point before it; and take the boundary."""
    found = opened_points(case, segments, opened)
    if 0 in segments:
        found.loss_first = opened.leaves[0].losses[0]
    deviations = tuple(_deviation(case, segment, found, opened) for segment in segments)
    return replace(boundary(case, found), deviations=deviations)


def _deviation(case: Case, segment: int, found: Found, opened: OpenedTrace) -> Deviation:
    start, served = start_of(case, segment, found), found.points[segment]
    try:
        done = run_segments(case.job, case.data, case.open, case.entry, start, (segment, segment))
    except NotFiniteError:
        return not_finite_deviation()
    rates = case.open.inner_lr
    return step_deviation(
        case.job.spec,
        case.job.specs,
        start,
        served,
        done.end,
        lr=parse_hex_float(rates[segment]) if rates else 0.0,
        losses=(opened.leaves[segment].losses[0], done.losses[0]),
        own_leaf=done.leaves[0],
    )
