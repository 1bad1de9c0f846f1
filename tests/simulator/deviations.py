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

from pipeline.trace import OpenedLeaf, OpenedTrace
from tests.simulator.work import NO_LEAF, Point, Task, digest_of
from verification.judge import Recomputed
from verification.records import Deviation

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


def made_up(allowed: Limits, segments: Sequence[int], mode: str, *place: object) -> tuple[Deviation, ...]:
    """Deviations by somebody who did not do the work, and `place` is all that they depend on.

    Now and then one says that nothing finite came of the step, which takes other numbers.
    """
    dice = random.Random(repr(place))
    owns = [NO_LEAF if dice.random() < 0.1 else digest_of("sha256", *place, segment) for segment in segments]
    return tuple(Deviation(own=own, **numbers(allowed, dice, mode)) for own in owns)


def judged_steps(
    task: Task, segments: Sequence[int], opened: OpenedTrace, allowed: Limits, numerics: str
) -> Recomputed:
    """What an honest auditor of class `numerics` finds: each of `segments` by itself, and the boundary."""
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
    return replace(found, deviations=tuple(deviations))


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
