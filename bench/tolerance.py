"""Audits by tolerance, measured: honest spread, sparse poison, and what a forger can hide.

    python -m bench.tolerance [--write] [--steps N] [--work FOLDER]

Honest: a walk of local steps in unlike environments of this machine; thresholds are fitted on its first half
and tried on the second. Poison: three standard deviations on one coordinate in ten thousand. Headroom: the
largest change of every gradient that stays below the thresholds, at every step. `--write` keeps the answer in
docs/benchmarks/tolerance.json; the honest audits lie in FOLDER one by one, and are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.tolerance_attack import Direction, against_gradient, bent, likeness, poisoned, towards
from bench.tolerance_honest import BF16, EXACT, FP32, NATIVE, config, honest
from model.numerics import THREADS, numerics_class, prepare
from pipeline.calibrate_numbers import STEP_MILLI, Fit, fit, threshold
from pipeline.calibrate_points import Plan, library_tokens
from pipeline.calibrate_workers import Crew, End
from pipeline.deviation import step_deviation
from verification.tolerance import Deviation, Thresholds

STEPS, FRESH, FORGED, RATE = 500, 200, 40, 1e-6
PLACES = ("gradient", "weights", "adam_m")
NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
PAIRS = {
    "fp32": (EXACT.name, NATIVE.name),
    "bf16": (BF16[0].name, BF16[1].name),
    "bf16 against fp32": (BF16[0].name, EXACT.name),
}
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "tolerance.json"
Pair = tuple[str, str]
Sample = tuple[int, Deviation]


def by_pair(audits: Sequence[Mapping[str, Any]]) -> dict[Pair, list[Sample]]:
    """Step and deviation of every audit, by environments; the second of two that never differ is left out."""
    found: dict[Pair, list[Sample]] = {}
    for audit in audits:
        one, other = sorted((audit["served"], audit["own"]))
        numbers = {name: audit[name] for name in NUMBERS}
        found.setdefault((one, other), []).append(
            (audit["step"], Deviation(own="sha256:" + "0" * 64, **numbers))
        )
    twins = {pair[1] for pair, samples in found.items() if not any(each.norm_ppb for _, each in samples)}
    return {pair: samples for pair, samples in found.items() if not twins & {*pair}}


def halves(samples: Sequence[Sample], steps: int, pair: Pair) -> tuple[Fit, list[Deviation]]:
    """Thresholds from the first half of the walk, and the deviations of the second."""
    first = [deviation for step, deviation in samples if step < steps // 2]
    return fit(pair, first, RATE), [deviation for step, deviation in samples if step >= steps // 2]


def honest_part(pairs: Mapping[Pair, Sequence[Sample]], steps: int) -> dict[str, Any]:
    """By pair: spread, thresholds, and how many of the other half they would accuse."""
    rows, rough = [], {where.name for where in BF16}
    tried = accused = by_normal = 0
    for pair, samples in pairs.items():
        found, rest = halves(samples, steps, pair)
        false = sum(found.thresholds.exceeded_by(each) for each in rest)
        normal = replace(found.thresholds, **_normal([each for step, each in samples if step < steps // 2]))
        if not rough & set(pair):
            by_normal += sum(normal.exceeded_by(each) for each in rest)
        everything = fit(pair, [deviation for _, deviation in samples], RATE)
        spreads = {name: asdict(getattr(everything, name)) for name in NUMBERS}
        if not rough & set(pair):
            tried, accused = tried + len(rest), accused + false
        rows.append(
            {
                "pair": pair, "audits": len(samples), **spreads,
                "thresholds_of_first_half": asdict(found.thresholds),
                "tried": len(rest), "accused": false, "can_be_hidden": found.hidden_share,
            }
        )  # fmt: skip
    bound = 3 / tried if tried and not accused else None
    audits = sum(row["audits"] for row in rows if not rough & set(row["pair"]))
    counts = {"fp32_audits": audits, "fp32_tried": tried, "fp32_accused": accused}
    return {"pairs": rows, **counts, "fp32_accused_by_normal_alone": by_normal, "bound_95": bound}


def _normal(deviations: Sequence[Deviation]) -> dict[str, int]:
    """Thresholds of norm and peak from a normal distribution of the logarithms and nothing else."""
    names = ("norm_ppb", "peak_ppm")
    return {n: threshold([getattr(each, n) for each in deviations], RATE / 3, extreme=False) for n in names}


def fresh_part(pairs: Mapping[Pair, Sequence[Sample]], steps: int, again: Sequence[Any]) -> dict[str, Any]:
    """Another walk, from other weights, under the thresholds of the first half of the first one."""
    rough = {where.name for where in BF16}
    tried = accused = 0
    for pair, samples in by_pair(again).items():
        if pair in pairs and not rough & set(pair):
            limits = halves(pairs[pair], steps, pair)[0].thresholds
            tried += len(samples)
            accused += sum(limits.exceeded_by(deviation) for _, deviation in samples)
    return {"tried": tried, "accused": accused, "bound_95": 3 / tried if tried and not accused else None}


def tightest(found: Fit) -> Thresholds:
    """The largest seen and no margin at all: below these an honest member would be accused."""
    return Thresholds(**{name: getattr(found, name).largest for name in NUMBERS[:3]}, step_milli=STEP_MILLI)


def poison_part(fits: Mapping[str, Fit]) -> list[dict[str, Any]]:
    """Sparse poison in every step of a walk: how often thresholds see it, and what likeness says."""
    dice = np.random.default_rng(1)
    rows = []
    plan = Plan.of(config(), FORGED)
    with Crew((*FP32[:2], *BF16), plan) as crew:
        names = [worker.environment.name for worker in crew.workers]
        start = plan.beginning()
        found: dict[tuple[str, str], list[tuple[Deviation, tuple[float, float]]]] = {}
        for index in range(FORGED):
            ends = dict(zip(names, crew.step(start, index), strict=True))
            for kind, (one, two) in PAIRS.items():
                for place in (*PLACES, "honest"):
                    served = _served(crew, start, ends[one], place, index, dice)
                    deviation = crew.deviation(start, served, ends[two], index)
                    points = [plan.point(data) for data in (start, served.point, ends[two].point)]
                    found.setdefault((kind, place), []).append((deviation, likeness(plan, *points)))
            start = ends[EXACT.name].point
    for (kind, place), samples in found.items():
        limits = fits[kind].thresholds
        cosines, overlaps = zip(*(alike for _, alike in samples), strict=True)
        least = {name: min(getattr(each, name) for each, _ in samples) for name in NUMBERS}
        rows.append(
            {
                "arithmetic": kind, "poison": place, "steps": len(samples),
                "found": sum(limits.exceeded_by(each) for each, _ in samples),
                "found_by_tightest": sum(tightest(fits[kind]).exceeded_by(each) for each, _ in samples),
                "least_seen": least,
                "cosine": [min(cosines), max(cosines)], "top_overlap": [min(overlaps), max(overlaps)],
            }
        )  # fmt: skip
    return rows


def _served(crew: Crew, start: bytes, end: End, place: str, index: int, dice: Any) -> End:
    if place == "honest":
        return end
    plan = crew.plan
    forged = poisoned(plan, plan.point(start), plan.point(end.point), plan.rates[index], place, dice)
    return End(plan.to_bytes(forged), end.leaf, end.loss)


def headroom_part(fits: Mapping[str, Fit]) -> list[dict[str, Any]]:
    """What 40 poisoned steps in a row do, each just below the thresholds; beside it what honest ones do."""
    prepare("native", THREADS)
    from model.local_steps import evaluate, local_steps  # noqa: PLC0415 - after prepare

    plan = Plan.of(config(), 2 * FORGED)
    size = plan.config.model
    held_NT = library_tokens((2 * FORGED + 16, 4, size.context + 1), size.vocab_size)[-16:].reshape(64, -1)
    phrase_NT = np.resize(np.arange(8, dtype=np.int64) * 37 % size.vocab_size, (4, size.context + 1))
    warm, rest = plan.windows_SBT[:FORGED], plan.windows_SBT[FORGED:]
    begin = plan.point(plan.beginning())
    begin.state.pop("gradient_sum", None)
    start = local_steps(size, plan.spec, begin, warm, plan.rates).end
    limits = {kind: found.thresholds for kind, found in fits.items()}
    limits |= {f"{kind}, largest seen": tightest(found) for kind, found in fits.items()}
    rows = []
    for kind, limit in limits.items():
        share, peak = 0.95 * limit.norm_ppb / 1e9, 0.95 * limit.peak_ppm / 1e6
        if share > 1:
            continue  # nothing to measure: any gradient passes
        attacks: dict[str, Direction | None] = {
            "honest": None,
            "against the gradient": against_gradient(share),
            "towards a phrase": towards(plan, phrase_NT, share, peak),
        }
        for name, direction in attacks.items():
            with bent(direction, rough=kind.startswith("bf16")):
                end = local_steps(size, plan.spec, start, rest, plan.rates[FORGED:]).end
                one = local_steps(size, plan.spec, start, rest[:1], plan.rates[FORGED:])
            with bent(None, rough=kind.startswith("bf16")):
                own = local_steps(size, plan.spec, start, rest[:1], plan.rates[FORGED:])
            deviation = step_deviation(
                plan.spec, plan.specs, start, one.end, own.end,
                lr=plan.rates[FORGED], losses=(one.losses[0], own.losses[0]), own_leaf=own.leaves[0],
            )  # fmt: skip
            text, phrase = (evaluate(size, end.weights, tokens, 4) / 1e6 for tokens in (held_NT, phrase_NT))
            numbers = {each: getattr(deviation, each) for each in NUMBERS}
            rows.append(
                {
                    "arithmetic": kind,
                    "attack": name,
                    "share": share,
                    "text": text,
                    "phrase": phrase,
                    **numbers,
                }
            )
    return rows


def measure(steps: int, work: Path) -> dict[str, Any]:
    """All three parts."""
    prepare("native", THREADS)
    pairs = by_pair(honest(steps, work / "honest.jsonl"))
    fits = {kind: halves(pairs[min(pair), max(pair)], steps, pair)[0] for kind, pair in PAIRS.items()}
    print("honest audits are there", file=sys.stderr)
    answer: dict[str, Any] = {
        "machine": numerics_class("native", THREADS),
        "model": config().model.model_dump(),
        "steps": steps,
        "false_alarm_per_audit": RATE,
        "honest": honest_part(pairs, steps),
        "fresh": fresh_part(pairs, steps, honest(FRESH, work / "fresh.jsonl", seed=2)),
    }
    answer["headroom"] = headroom_part(fits)
    print("headroom is there", file=sys.stderr)
    answer["poison"] = poison_part(fits)
    return answer


def main() -> None:
    """Print the answer as JSON; with --write, keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "barnraise-bench-tolerance"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measure(options.steps, options.work), indent=1) + "\n"
    print(text)
    if options.write:
        OUTPUT.write_text(text)


if __name__ == "__main__":
    main()
