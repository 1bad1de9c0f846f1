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
from verification.tolerance import NO_SKETCH, SKETCH_NUMBERS, Sketch, Thresholds

if TYPE_CHECKING:
    from model.local_steps import Midpoint

OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "stamps.json"
STEPS = 400
PAIR = (EXACT.name, NATIVE.name)  # whose thresholds guesses are held against


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
        return Sketcher(self.plan.config.train, self.seed, 0).of(self.index, start.state, end.state)

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
    return tuple(round(1e4 * number) for number in dice.standard_normal(SKETCH_NUMBERS))


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


def distance(one: Sketch, other: Sketch) -> int:
    """The largest difference of two sketches, in ten-thousandths of the norm."""
    return max(abs(mine - yours) for mine, yours in zip(one, other, strict=True))


def measure(steps: int) -> dict[str, Any]:
    """Honest pairs and guesses at every step of a walk."""
    prepare("native", THREADS)
    plan = Plan.of(config(), steps)
    walk = Walk(plan)
    honest: dict[tuple[str, str], list[int]] = {}
    guessed: dict[str, list[int]] = {name: [] for name in GUESSES}
    with Crew((*FP32, *BF16[:1]), plan) as crew:
        names = [worker.environment.name for worker in crew.workers]
        point = plan.beginning()
        for walk.index in range(steps):
            walk.seed = sha256_digest(f"draw {walk.index}".encode())
            start, ends = plan.point(point), crew.step(point, walk.index)
            sketches = [walk.sketch(start, plan.point(end.point)) for end in ends]
            for one, two in itertools.combinations(range(len(ends)), 2):
                honest.setdefault((names[one], names[two]), []).append(distance(sketches[one], sketches[two]))
            if walk.before is not None:
                for name, guess in GUESSES.items():
                    guessed[name].append(distance(sketches[0], guess(walk, start)))
            walk.before, point = start, ends[walk.index % len(FP32)].point
            if walk.index % 100 == 0:
                print(f"step {walk.index}", file=sys.stderr)
    return {
        "machine": numerics_class("native", THREADS),
        "model": config().model.model_dump(),
        "steps": steps,
        "honest": list(_honest_rows(honest)),
        "guessed": list(_guessed_rows(guessed)),
    }


def _most(limits: Thresholds) -> int:
    """How far apart sketches may be: found by trying, so that the rule stands in one place."""
    zero = NO_SKETCH[1:]
    return next(n - 1 for n in range(1, 1 << 30) if not limits.covers((n, *zero), NO_SKETCH))


def _honest_rows(found: dict[tuple[str, str], list[int]]) -> Iterator[dict[str, Any]]:
    for (one, two), distances in found.items():
        limits = limits_of(one, two)
        most = _most(limits) if limits else None
        refused = None if most is None else sum(each > most for each in distances)
        row = {"pair": [one, two], "audits": len(distances), "largest": max(distances)}
        yield {**row, "allowed": most, "refused": refused}


def _guessed_rows(found: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    limits = limits_of(*PAIR)
    assert limits is not None
    most = _most(limits)
    for name, distances in found.items():
        caught = sum(each > most for each in distances)
        low, high = wilson(caught, len(distances))
        row = {"guess": name, "audits": len(distances), "least": min(distances), "allowed": most}
        yield {**row, "refused": caught, "low": low, "high": high}


def tables(answer: dict[str, Any]) -> Iterator[str]:
    """The tables of docs/benchmarks/tolerance.md."""
    yield "| what is told | audits | refused, 95 % interval | nearest | allowed |\n|---|---|---|---|---|"
    for row in answer["guessed"]:
        share = f"{row['refused']} ({row['low']:.3f} to {row['high']:.3f})"
        yield f"| {row['guess']} | {row['audits']} | {share} | {row['least']:,} | {row['allowed']} |"
    yield "\n| honest pair | audits | refused | farthest | allowed |\n|---|---|---|---|---|"
    for row in answer["honest"]:
        allowed = "no thresholds" if row["allowed"] is None else f"{row['allowed']:,}"
        refused = "" if row["refused"] is None else row["refused"]
        yield f"| {' – '.join(row['pair'])} | {row['audits']} | {refused} | {row['largest']:,} | {allowed} |"


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
