"""What auditors of a simulated run state of single steps, where they judge by tolerance.

Owns the stub of a deviation: numbers within what is allowed of a step that was done, above it of one that was
not, and made-up ones. An auditor knows a false step by doing it in the contributor's own class, which a stub
can. Does not own the rules by which deviations judge (tolerance.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.sketch import Sketcher
from pipeline.trace import OpenedLeaf, OpenedTrace
from tests.simulator.work import NO_LEAF, Point, Task, digest_of
from verification.judge import Audit, Recomputed
from verification.records import Deviation
from verification.tolerance import NO_SKETCH, Sketch

NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
NO_BOUND = (1 << 53) - 1
Limits = Mapping[str, Any]  # an item of `audit.tolerance`


def limits(items: Iterable[Limits], one: str, other: str) -> Limits | None:
    """What is allowed between two classes; None where nothing is said of them."""
    return next((item for item in items if set(item["classes"]) == {one, other}), None)


def too_far(allowed: Limits, deviations: Iterable[Deviation]) -> bool:
    """Whether any number of any of them is above what is allowed."""
    return any(getattr(found, name) > allowed[name] for found in deviations for name in NUMBERS)


def numbers(allowed: Limits, dice: random.Random, mode: str) -> dict[str, int]:
    """Numbers that an honest step may show; in `gradient` mode there is no optimizer step."""
    found = {name: dice.choice((allowed[name], dice.randint(0, allowed[name]))) for name in NUMBERS}
    return found if mode == "local" else {**found, "step_milli": 0}


def too_large(allowed: Limits, found: Mapping[str, int], name: str, dice: random.Random) -> dict[str, int]:
    """The same with one of them above its threshold, by little, by much or without bound."""
    return {**found, name: dice.choice((allowed[name] + 1, allowed[name] + 999_999, NO_BOUND))}


def made_up(allowed: Limits, sketches: Sequence[Sketch], mode: str, *place: object) -> tuple[Deviation, ...]:
    """Deviations by somebody who did not do the work, beside sketches; the rest depends on `place` alone.

    Now and then one says that nothing finite came of the step, which takes other numbers.
    """
    dice = random.Random(repr(place))
    owns = [NO_LEAF if dice.random() < 0.1 else digest_of("sha256", *place, s) for s in sketches]
    return tuple(
        Deviation(own=own, sketch=sketch, **numbers(allowed, dice, mode))
        for own, sketch in zip(owns, sketches, strict=True)
    )


def guessed(count: int, *place: object) -> list[Sketch]:
    """Sketches by somebody who has not seen the gradients: as they might be, or nothing at all."""
    dice = random.Random(repr(place))
    kind = dice.choice(("normal", "normal", "none", "large"))
    scale = {"normal": 1e5, "none": 0.0, "large": 2e6}[kind]
    return [tuple(round(dice.gauss(0, scale)) for _ in range(8)) for _ in range(count)]


def told_sketches(
    task: Task, slot: int, segments: Sequence[int], opened: OpenedTrace, seed: str, numerics: str
) -> list[Sketch]:
    """What an honest auditor of class `numerics` tells of `segments`, from the points before them."""
    at = {-1: task.first, **{index: task.believed(index, leaf) for index, leaf in opened.leaves.items()}}
    ends = [task.advance(at[segment - 1], segment, numerics) for segment in segments]
    return [_sketch(task, slot, s, at[s - 1], end, seed) for s, end in zip(segments, ends, strict=True)]


def sketches_of(
    task: Task, slot: int, segments: Sequence[int], leaves: Sequence[OpenedLeaf], seed: str
) -> list[Sketch]:
    """Of a contributor's own points, who tells its friends."""
    at = {-1: task.first, **{index: task.believed(index, leaf) for index, leaf in enumerate(leaves)}}
    return [_sketch(task, slot, s, at[s - 1], leaves[s], seed) for s in segments]


def _sketch(task: Task, slot: int, segment: int, start: Point, end: OpenedLeaf | None, seed: str) -> Sketch:
    if end is None:
        return NO_SKETCH
    after = task.believed(segment, end)
    return Sketcher(task.job.config.train, seed, slot).of(segment, start.state, after.state)


def judged_steps(
    task: Task, slot: int, audit: Audit, opened: OpenedTrace, allowed: Limits, numerics: str
) -> Recomputed:
    """What an honest auditor of class `numerics` finds: each segment by itself, and the boundary."""
    segments = audit.segments
    trace = list(opened.hashes)
    points = {-1: task.first}
    for index, leaf in opened.leaves.items():
        points[index] = task.believed(index, leaf)
        trace[index] = task.leaf(index, points[index], leaf.losses)
    last = opened.leaves[task.count - 1].losses[-1]
    first = opened.leaves[0].losses[0] if 0 in segments else None
    found = task.ended(points[task.count - 1], trace, first, last)
    deviations = [
        _deviation(task, s, points[s - 1], points[s], opened.leaves[s], allowed, numerics) for s in segments
    ]
    sketches = told_sketches(task, slot, segments, opened, audit.seed, numerics)
    told = [replace(d, sketch=sketch) for d, sketch in zip(deviations, sketches, strict=True)]
    return replace(found, deviations=tuple(told))


def _deviation(
    task: Task, segment: int, start: Point, served: Point, leaf: OpenedLeaf, allowed: Limits, numerics: str
) -> Deviation:
    own, true = task.advance(start, segment, numerics), task.advance(start, segment)
    if own is None or true is None:
        return Deviation(own=NO_LEAF, **dict.fromkeys(NUMBERS, NO_BOUND))
    digest = own.digest(task.steps_at(segment))
    mode = task.job.config.train.mode
    told = task.leaf(segment, served, leaf.losses)
    dice = random.Random(f"{told}/{digest}/{numerics}")
    found = numbers(allowed, dice, mode)
    if leaf.losses != true.losses:
        found = too_large(allowed, found, "loss_ppm", dice)
    if told != task.leaf(segment, task.believed(segment, true), leaf.losses):
        names = NUMBERS[1:] if mode == "local" else NUMBERS[1:3]
        found = too_large(allowed, found, dice.choice(names), dice)
    return Deviation(own=digest, **found)
