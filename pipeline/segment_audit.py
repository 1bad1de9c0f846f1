"""An audit's computation: all of a contribution's segments, or some of them from an opened trace.

Owns section 7 of docs/protocol.md as the auditor goes through it: which run starts where, what of an opened
leaf is not believed, and what is stated when a result is not finite. The work in a segment is work.py's, the
same that the contributor calls. Does not own the verdict (auditor.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data_prep.dataset import Windows
from model.arrays import Arrays, arrays_from_bytes, weight_specs
from model.hidden_state import midway_specs
from pipeline.trace import NOT_FINITE, OpenedLeaf, OpenedTrace
from pipeline.work import Job, finish_work, run_segments
from verification.errors import NotFiniteError, ProtocolError
from verification.judge import Recomputed
from verification.records import RosterEntry, RoundOpen
from verification.segments import segment_count, segment_steps, unbroken_runs

if TYPE_CHECKING:
    from model.local_steps import Midpoint

NO_DIGEST = "blake3:" + "0" * 64


@dataclass(frozen=True)
class Case:
    """What is audited: a job's data, the open and the entry, base weights and start state, all checked."""

    job: Job
    data: Windows
    open: RoundOpen
    entry: RosterEntry
    weights: Arrays
    start: Arrays

    @property
    def count(self) -> int:
        """How many segments the contribution has."""
        return segment_count(self.entry.steps, self.job.config.train.trace_every)

    def checked(self, segments: Sequence[int]) -> tuple[int, ...]:
        """`segments` as a draw names them; ProtocolError when no draw could."""
        drawn = tuple(segments) if isinstance(segments, list | tuple | range) else ()
        known = all(type(s) is int and 0 <= s < self.count for s in drawn)
        if not drawn or not known or list(drawn) != sorted(set(drawn)):
            raise ProtocolError(
                "an audit asks for segments that are none",
                expected=f"some of 0 to {self.count - 1}",
                got=segments,
            )
        return drawn

    def steps_at(self, leaf: int) -> int:
        """Local steps of the round up to a leaf."""
        return segment_steps(leaf, self.entry.steps, self.job.config.train.trace_every)[1]


@dataclass
class Found:
    """What an audit has found so far: the trace, first and last loss, and where the local steps ended.

    `points` are the opened leaves, as starts of further work.
    """

    trace: list[str]
    loss_first: int | None
    loss_last: int = 0
    end: Midpoint | None = None
    points: dict[int, Midpoint] = field(default_factory=dict)


def audit_segments(case: Case, segments: Sequence[int], opened: OpenedTrace | None) -> Recomputed:
    """Recompute `segments` and the boundary; `opened` is the trace, None when all of them are audited.

    What is not finite in it is a finding like any other. Raises ProtocolError as `do_work` does.
    """
    found = opened_points(case, segments, opened)
    for run in unbroken_runs(segments):
        _redo(case, run, start_of(case, run[0], found), found)
    return boundary(case, found)


def opened_points(case: Case, segments: Sequence[int], opened: OpenedTrace | None) -> Found:
    """What is known from the opened leaves alone: their digests, and the end of the work where it is one."""
    from model.local_steps import trace_leaf  # noqa: PLC0415 - imports torch

    leaves = opened.leaves if opened else {}
    found = Found(list(opened.hashes) if opened else [], 0 if 0 in segments else None)
    found.trace += [NOT_FINITE] * (case.count + 1 - len(found.trace))
    for index, leaf in leaves.items():
        found.points[index], changed = _point(case, leaf, index)
        known = None if changed or opened is None else opened.digests.get(index)
        found.trace[index] = known or trace_leaf(found.points[index], case.steps_at(index), leaf.losses)
    if case.count - 1 in leaves:
        found.end, found.loss_last = found.points[case.count - 1], leaves[case.count - 1].losses[-1]
    return found


def start_of(case: Case, segment: int, found: Found) -> Midpoint:
    """Where a segment starts: the base and the start state, or the opened leaf before it."""
    from model.local_steps import Midpoint  # noqa: PLC0415 - imports torch

    return found.points[segment - 1] if segment else Midpoint(case.weights, case.start)


def _point(case: Case, leaf: OpenedLeaf, index: int) -> tuple[Midpoint, bool]:
    """An opened leaf as a start, with what follows from the log put in its place; was that anything else?"""
    from model.local_steps import Midpoint  # noqa: PLC0415 - imports torch

    weights = arrays_from_bytes(leaf.weights, weight_specs(case.job.specs))
    state = arrays_from_bytes(leaf.state, midway_specs(case.job.specs, case.job.config.train.mode))
    step = np.array(int(case.start["step"]) + case.steps_at(index), np.int64)
    own = {"step": step, "error_feedback": case.start["error_feedback"]}
    unmoved = case.weights if case.job.config.train.mode == "gradient" else {}
    pairs = [(state[name], own[name]) for name in own] + [(weights[name], unmoved[name]) for name in unmoved]
    # Compared as bytes: zeros of either sign are equal numbers, and make other digests.
    changed = any(opened.tobytes() != known.tobytes() for opened, known in pairs)
    return Midpoint({**weights, **unmoved}, {**state, **own}), changed


def _redo(case: Case, run: tuple[int, int], start: Midpoint, found: Found) -> None:
    """One unbroken run of segments: its leaves, and what is known from it of losses and end."""
    first, last = run
    found.trace[first : last + 1] = [NOT_FINITE] * (last + 1 - first)
    try:
        done = run_segments(case.job, case.data, case.open, case.entry, start, run)
    except NotFiniteError:
        return
    found.trace[first : last + 1] = done.leaves
    if first == 0:
        found.loss_first = done.losses[0]
    if last == case.count - 1:
        found.end, found.loss_last = done.end, done.losses[-1]


def boundary(case: Case, found: Found) -> Recomputed:
    """From where the local steps ended to payload, next state and the last leaf."""
    from model.local_steps import update_of  # noqa: PLC0415 - imports torch

    payload = next_state = NO_DIGEST
    found.trace[-1] = NOT_FINITE
    if found.end is not None:
        update_P = update_of(case.job.spec, case.job.specs, case.weights, found.end, case.entry.steps)
        try:
            claims = finish_work(case.job, update_P, found.end.state, (), (0,)).claims
        except NotFiniteError:
            pass
        else:
            payload, next_state, found.trace[-1] = claims.payload, claims.next_state, claims.trace[-1]
    return Recomputed(payload, next_state, tuple(found.trace), found.loss_first, found.loss_last)
