"""A forger whose trace always holds together: what an audit is up against when somebody tries hard.

Owns the ways to cheat that bench.audits measures. Each goes through the work segment by segment with the
shipped code, leaves some out or changes where they end, and commits to leaves of what it then has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.arrays import Arrays
from model.local_steps import Midpoint, trace_leaf, update_of
from pipeline.segment_audit import Case
from pipeline.trace import OpenedLeaf, open_trace
from pipeline.work import finish_work, run_segments
from verification.judge import trace_root
from verification.records import Opening, RosterEntry

Bend = Callable[[Case, int, Midpoint], Midpoint]


@dataclass(frozen=True)
class Cheat:
    """A way to cheat: how many segments it makes false, or that it comes `after` the last step.

    `skipped` last segments are left out; `bend` changes where a segment ends; `shifted` takes other windows.
    """

    name: str
    false: int
    after: bool = False
    skipped: int = 0
    bend: Bend | None = None
    shifted: bool = False


@dataclass(frozen=True)
class Forged:
    """What is handed in, and the points that the trace can be opened at."""

    opening: Opening
    leaves: tuple[str, ...]
    points: tuple[OpenedLeaf, ...]

    def serve(self, due: Sequence[int]) -> bytes:
        """The opened trace."""
        return open_trace(self.leaves, due, lambda index: self.points[index])


def forge(case: Case, cheat: Cheat) -> Forged:
    """The contribution that a cheat hands in for a case."""
    entry = _shifted(case) if cheat.shifted else case.entry
    point = Midpoint(case.weights, case.start)
    losses: tuple[int, ...] = ()
    every: list[tuple[int, ...]] = []
    points: list[OpenedLeaf] = []
    leaves: list[str] = []
    for segment in range(case.count):
        if segment >= case.count - cheat.skipped and segment:
            point = _stepped(point)
        else:
            done = run_segments(case.job, case.data, case.open, entry, point, (segment, segment))
            point, losses = done.end, done.losses
            if segment >= case.count - cheat.skipped:  # even the first is left out: only its loss is needed
                point = Midpoint(case.weights, _stepped(Midpoint({}, {**point.state, **case.start})).state)
        if cheat.bend:
            point = cheat.bend(case, segment, point)
        every.append(losses)
        points.append(OpenedLeaf.of(point, losses))
        leaves.append(trace_leaf(point, case.steps_at(segment), losses))
    update_P = update_of(case.job.spec, case.job.specs, case.weights, point, case.entry.steps)
    work = finish_work(case.job, update_P, point.state, tuple(leaves), (every[0][0], every[-1][-1]))
    claims = work.claims
    next_state = "blake3:" + "5" * 64 if cheat.after else claims.next_state
    batch, context = case.job.config.train.batch, case.job.model.context
    opening = Opening(
        case.open.base,
        case.entry.positions,
        case.entry.numerics_class,
        case.entry.steps * batch * context,
        case.entry.start_state,
        next_state,
        claims.payload,
        trace_root(claims.trace),
        len(claims.trace),
        every[0][0],
        every[-1][-1],
    )
    return Forged(opening, claims.trace, tuple(points))


def _shifted(case: Case) -> RosterEntry:
    """The same number of windows, from elsewhere."""
    wanted = sum(stop - start for start, stop in case.entry.positions)
    return replace(case.entry, positions=((7 * wanted, 8 * wanted),))


def _stepped(point: Midpoint) -> Midpoint:
    state = {**point.state, "step": np.array(int(point.state["step"]) + 1, np.int64)}
    return Midpoint(point.weights, state)


def _poisoned(case: Case, point: Midpoint, sigmas: float, share: float, seed: int) -> Arrays:
    """The weights with `sigmas` standard deviations of the update so far added to a `share` of them."""
    dice = np.random.default_rng(seed)
    weights = {}
    for name, array in point.weights.items():
        moved = array - case.weights[name]
        chosen = dice.random(array.shape) < share
        weights[name] = np.where(chosen, array + np.float32(sigmas * moved.std()), array).astype(np.float32)
    return weights


def _sparse(case: Case, segment: int, point: Midpoint) -> Midpoint:
    if segment != case.count // 2:
        return point
    # A tiny model has few coordinates: one in ten thousand of them, or one in all.
    share = max(1e-4, 1.5 / case.job.codec.length)
    return Midpoint(_poisoned(case, point, 3.0, share, 11), point.state)


def _drift(case: Case, segment: int, point: Midpoint) -> Midpoint:
    return Midpoint(_poisoned(case, point, 0.01, 0.1, segment), point.state)


def _moment(case: Case, segment: int, point: Midpoint) -> Midpoint:
    if segment != case.count // 3:
        return point
    return Midpoint(point.weights, {**point.state, "adam_m": point.state["adam_m"] + np.float32(1e-3)})


CHEATS = (
    Cheat("lazy, 1 of 20 steps", 1, skipped=1),
    Cheat("lazy, 5 of 20 steps", 5, skipped=5),
    Cheat("lazy, 20 of 20 steps", 20, skipped=20),
    Cheat("wrong data", 20, shifted=True),
    Cheat("sparse poison in one step", 1, bend=_sparse),
    Cheat("state smuggler, moments", 1, bend=_moment),
    Cheat("state smuggler, error feedback", 0, after=True),
    Cheat("slow drift", 20, bend=_drift),
)
