"""Auditors that pass by tolerance without doing the work, and honest ones of other classes: their sketches.

    python -m bench.stamps [--write] [--steps N]

Owns the ways to guess, and docs/benchmarks/stamps.json. One walk of local steps, as bench/tolerance.py's: at
each step every environment starts from the same point, one of them serves where it came to, the others and
the guesses are compared with that as the coordinator does it (verification/tolerance.py), under the
thresholds that bench/tolerance.py found for the pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.audits import wilson
from bench.tolerance import OUTPUT as TOLERANCE
from bench.tolerance_honest import BF16, FP32, config
from model.numerics import THREADS, numerics_class, prepare
from pipeline.calibrate_points import Plan
from pipeline.calibrate_workers import EXACT, NATIVE, Crew
from pipeline.sketch import Sketcher
from verification.encoding import sha256_digest
from verification.tolerance import NO_SKETCH, SKETCH_NUMBERS, ServedStep, Sketch, Thresholds

if TYPE_CHECKING:
    from model.local_steps import Midpoint

OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "stamps.json"
STEPS = 400
PAIR = (EXACT.name, NATIVE.name)  # whose thresholds guesses are held against


@cache
def limits_of(one: str, other: str) -> Thresholds | None:
    """What bench/tolerance.py allows between two environments; None where it has none."""
    for row in json.loads(TOLERANCE.read_text())["honest"]["pairs"]:
        if sorted(row["pair"]) == sorted((one, other)):
            return Thresholds(**row["thresholds_of_first_half"])
    return None


class Walk:
    """The steps so far, and what a guesser could know at each of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seed = ""
        self.index = 0
        self.before: Midpoint | None = None  # the point before the step before

    def sketch(self, start: Midpoint, end: Midpoint) -> Sketch:
        """As an auditor tells it."""
        return self.served(start, end).sketch

    def served(self, start: Midpoint, end: Midpoint) -> ServedStep:
        """As the coordinator takes it of what was served."""
        return Sketcher(self.plan.config.train, self.seed, 0).served(self.index, start.state, end.state)

    def step(self, start: Midpoint, windows_BT: Any) -> Midpoint:
        """A local step on other windows, or from another point, than it should be."""
        from model.local_steps import local_steps  # noqa: PLC0415 - after prepare

        plan, rate = self.plan, [self.plan.rates[self.index]]
        return local_steps(plan.config.model, plan.spec, start, windows_BT[None], rate, first=1).end


Guess = Callable[[Walk, "Midpoint"], Sketch]


def nothing(walk: Walk, start: Midpoint) -> Sketch:
    """All zeros."""
    del walk, start
    return NO_SKETCH


def noise(walk: Walk, start: Midpoint) -> Sketch:
    """Numbers as they might be."""
    del start
    dice = np.random.default_rng(walk.index)
    return tuple(round(1e5 * number) for number in dice.standard_normal(SKETCH_NUMBERS))


def moment(walk: Walk, start: Midpoint) -> Sketch:
    """The gradients' running mean, which is served, for the gradient."""
    carrier = {name: np.zeros_like(array) for name, array in start.state.items()}
    return walk.sketch(type(start)(start.weights, carrier), start)


def other_windows(walk: Walk, start: Midpoint) -> Sketch:
    """The true step on another step's windows."""
    windows_SBT = walk.plan.windows_SBT
    return walk.sketch(start, walk.step(start, windows_SBT[walk.index - 1]))


def part_of_the_batch(walk: Walk, start: Midpoint) -> Sketch:
    """One window less than there are."""
    return walk.sketch(start, walk.step(start, walk.plan.windows_SBT[walk.index][:-1]))


def older_weights(walk: Walk, start: Midpoint) -> Sketch:
    """The right windows, on the weights of the step before."""
    assert walk.before is not None
    stale = type(start)(walk.before.weights, start.state)
    return walk.sketch(start, walk.step(stale, walk.plan.windows_SBT[walk.index]))


GUESSES: dict[str, Guess] = {
    "all zeros": nothing,
    "random numbers": noise,
    "the gradients' running mean": moment,
    "another step's windows": other_windows,
    "one window of four left out": part_of_the_batch,
    "the weights of the step before": older_weights,
}


@dataclass
class Count:
    """Of comparisons: how many, how many refused, the least and the largest difference, what was allowed."""

    audits: int = 0
    refused: int = 0
    least: int = 1 << 60
    largest: int = 0
    allowed: int = 0

    def add(self, limits: Thresholds, served: ServedStep, told: Sketch) -> None:
        """Compare what was told with what was served."""
        far = max(abs(mine - yours) for mine, yours in zip(served.sketch, told, strict=True))
        self.audits, self.refused = self.audits + 1, self.refused + (not limits.covers(served, told))
        self.least, self.largest = min(self.least, far), max(self.largest, far)
        self.allowed = max(self.allowed, _most(limits, served))


def _most(limits: Thresholds, served: ServedStep) -> int:
    """How far a number may be off: found by trying, so that the rule stands in one place."""
    first, *rest = served.sketch
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        covers = limits.covers(served, (first + middle, *rest))
        low, high = (middle, high) if covers else (low, middle)
    return low


def measure(steps: int) -> dict[str, Any]:
    """Honest pairs and guesses at every step of a walk."""
    prepare("native", THREADS)
    plan = Plan.of(config(), steps)
    walk = Walk(plan)
    honest: dict[tuple[str, str], Count] = {}
    guessed = {name: Count() for name in GUESSES}
    strictest = limits_of(*PAIR)
    assert strictest is not None
    with Crew((*FP32, *BF16[:1]), plan) as crew:
        names = [worker.environment.name for worker in crew.workers]
        point = plan.beginning()
        for walk.index in range(steps):
            walk.seed = sha256_digest(f"draw {walk.index}".encode())
            start, ends = plan.point(point), crew.step(point, walk.index)
            served = [walk.served(start, plan.point(end.point)) for end in ends]
            for one, two in itertools.combinations(range(len(ends)), 2):
                if limits := limits_of(names[one], names[two]):
                    count = honest.setdefault((names[one], names[two]), Count())
                    count.add(limits, served[one], served[two].sketch)
            if walk.before is not None:
                for name, guess in GUESSES.items():
                    guessed[name].add(strictest, served[0], guess(walk, start))
            walk.before, point = start, ends[walk.index % len(FP32)].point
            if walk.index % 100 == 0:
                print(f"step {walk.index}", file=sys.stderr)
    return {
        "machine": numerics_class("native", THREADS),
        "model": config().model.model_dump(),
        "steps": steps,
        "honest": [{"pair": list(pair), **vars(count)} for pair, count in honest.items()],
        "guessed": [_with_interval({"guess": name, **vars(count)}) for name, count in guessed.items()],
    }


def _with_interval(row: dict[str, Any]) -> dict[str, Any]:
    low, high = wilson(row["refused"], row["audits"])
    return {**row, "low": low, "high": high}


def tables(answer: dict[str, Any]) -> Iterator[str]:
    """The tables of docs/benchmarks/tolerance.md."""
    yield "| what is told | audits | refused, 95 % interval | nearest | allowed |\n|---|---|---|---|---|"
    for row in answer["guessed"]:
        share = f"{row['refused']} ({row['low']:.3f} to {row['high']:.3f})"
        yield f"| {row['guess']} | {row['audits']} | {share} | {row['least']:,} | {row['allowed']:,} |"
    yield "\n| honest pair | audits | refused | farthest | allowed |\n|---|---|---|---|---|"
    for row in answer["honest"]:
        cells = row["audits"], row["refused"], f"{row['largest']:,}", f"{row['allowed']:,}"
        yield f"| {' – '.join(row['pair'])} | {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the tables; with --write, keep the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    answer = measure(options.steps)
    print("\n".join(tables(answer)))
    if options.write:
        OUTPUT.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
