"""A contribution of several segments, told step by step, true or with lies in it, and audits of it.

Seven local steps at most, of a contributor of tests.pipeline.tiny_world, in both train modes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import arrays_digest
from model.hidden_state import zero_state
from model.local_steps import Midpoint, trace_leaf, update_of
from pipeline.segment_audit import Case
from pipeline.step_audit import recompute
from pipeline.trace import OpenedLeaf, open_trace, read_trace
from pipeline.work import Work, finish_work, run_segments
from tests.pipeline.tiny_world import World, world
from verification.judge import Audit, Recomputed, differences, trace_root
from verification.records import Opening

STEPS = 7
Change = Callable[[Midpoint], Midpoint]


def segmented(mode: str = "local", every: int = 2, wanted: int = 2) -> dict[str, Any]:
    """The configuration of a run in which `wanted` segments of `every` steps are audited, from the start."""
    plain = world(Path(tempfile.mkdtemp(prefix="barnraise-plain-"))).manifest.config
    config: dict[str, Any] = {name: dict(fields) for name, fields in plain.items()}  # type: ignore[call-overload]
    config["train"] |= {"mode": mode, "steps": [STEPS, 4, 4, 4], "trace_every": every}
    config["outer"] |= {"optimizer": "adamw" if mode == "gradient" else "nesterov"}
    config["audit"] |= {"segments": wanted, "probation_rounds": 0}
    return config


def segment_world(root: Path, mode: str = "local", every: int = 2) -> World:
    """Members of such a run, with vaults of their own."""
    here = world(root / "plain")
    zero = arrays_digest(zero_state(here.c0.job.specs, mode))  # type: ignore[arg-type]
    return world(root, config=segmented(mode, every), zero_state=zero)


@cache
def _world(mode: str, every: int) -> World:
    return segment_world(Path(tempfile.mkdtemp(prefix="barnraise-segments-")), mode, every)


@cache
def case_of(mode: str = "local", steps: int = STEPS, every: int = 2) -> Case:
    """The first contribution of c0, of `steps` local steps with a leaf every `every`."""
    here = _world(mode, every)
    job, open_ = here.c0.job, here.open()
    entry = replace(open_.roster[0], steps=steps, positions=((0, 2 * steps),))
    start = job.state(job.zero_state, entry.start_state)
    # As after a round: nothing of a start state is zero, or what is taken from it would not show.
    rng = np.random.default_rng(1)
    for name, array in start.items():
        if array.shape:
            array[...] = np.abs(rng.normal(size=array.shape)) * 1e-4
        else:
            start[name] = np.array(11, np.int64)
    return Case(job, here.c0.data, open_, entry, job.weights(here.checkpoint, open_.base.weights), start)


@dataclass(frozen=True)
class Told:
    """What a contributor says of its work: claims, and a point for each segment's end."""

    case: Case
    work: Work
    leaves: Mapping[int, OpenedLeaf]

    @property
    def claims(self) -> Recomputed:
        return self.work.claims

    @property
    def opening(self) -> Opening:
        """What it commits to."""
        case, claims = self.case, self.claims
        assert claims.loss_first is not None
        return Opening(
            case.open.base,
            case.entry.positions,
            case.entry.numerics_class,
            case.entry.steps * 2 * 16,
            case.entry.start_state,
            claims.next_state,
            claims.payload,
            trace_root(claims.trace),
            len(claims.trace),
            claims.loss_first,
            claims.loss_last,
        )

    def audit(self, segments: Iterable[int], *, tolerant: bool = False) -> Audit:
        """An audit of `segments`, to the bit or by tolerance."""
        return Audit(self.case.checked(sorted(segments)), self.case.entry.numerics_class, tolerant)

    def opened(self, segments: Iterable[int], *, tolerant: bool = False) -> bytes:
        """Its trace as it serves it for an audit of `segments`."""
        due = self.audit(segments, tolerant=tolerant).opened_leaves(self.case.count)
        return open_trace(self.claims.trace, due, lambda index: self.leaves[index])

    def audited(self, segments: Iterable[int], *, tolerant: bool = False) -> Recomputed:
        """What an honest auditor of `segments` finds."""
        audit = self.audit(segments, tolerant=tolerant)
        if not audit.opens_a_trace(self.case.count):
            return recompute(self.case, audit, None, {})
        data = self.opened(segments, tolerant=tolerant)
        opened = read_trace(self.case.job, self.opening, self.case.entry.steps, audit, data)
        return recompute(self.case, audit, opened, {})

    def differs(self, segments: Iterable[int]) -> tuple[str, ...]:
        """What a verdict on `segments` says."""
        return differences(self.opening, self.audited(segments))

    def claiming(self, **claims: Any) -> Told:
        """The same with other claims."""
        return replace(self, work=replace(self.work, claims=replace(self.claims, **claims)))


def tell(case: Case, changes: Mapping[int, Change] | None = None, *, for_good: bool = True) -> Told:
    """Work segment by segment, the point at the end of some changed.

    It goes on from a changed point as if it were true, or, unless `for_good`, from the true one, and only
    the leaf is false. Whatever the changes, what is told holds together.
    """
    changes = changes or {}
    at = Midpoint(case.weights, case.start)
    digests, losses, leaves = [], [], {}
    for index in range(case.count):
        done = run_segments(case.job, case.data, case.open, case.entry, at, (index, index))
        said = changes[index](done.end) if index in changes else done.end
        at = said if for_good else done.end
        digests.append(trace_leaf(said, case.steps_at(index), done.losses))
        leaves[index] = OpenedLeaf.of(said, done.losses)
        losses += done.losses
    update_P = update_of(case.job.spec, case.job.specs, case.weights, at, case.entry.steps)
    return Told(case, finish_work(case.job, update_P, at.state, tuple(digests), tuple(losses)), leaves)


@cache
def honest(mode: str = "local", steps: int = STEPS, every: int = 2) -> Told:
    """True work."""
    return tell(case_of(mode, steps, every))


def moved(point: Midpoint) -> Midpoint:
    """Weights a little off, as after other windows."""
    weights = {name: array + np.float32(1e-3) for name, array in point.weights.items()}
    return replace(point, weights=weights)


def with_state(**arrays: Any) -> Change:
    """A point with other arrays in its state: what a function makes of them, or a value in all places."""

    def change(point: Midpoint) -> Midpoint:
        changed = {
            name: np.asarray(
                value(point.state[name]) if callable(value) else np.full_like(point.state[name], value)
            )
            for name, value in arrays.items()
        }
        return replace(point, state={**point.state, **changed})

    return change


def with_weights(value: float) -> Change:
    """A point with one value in a place of each array."""

    def change(point: Midpoint) -> Midpoint:
        weights = {name: array.copy() for name, array in point.weights.items()}
        for array in weights.values():
            array.reshape(-1)[0] = value
        return replace(point, weights=weights)

    return change
