"""What the exact profile costs: local steps a second under it and under the native one, one and two threads.

    python -m bench.exact_speed [--write] [--repeats N]

Every figure is of a process of its own, which takes its steps and is gone; within a repeat the two profiles
take turns, so that a machine that slows down slows both. The ratio is worked out within each repeat; the
median of the repeats is reported, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.config import PRESETS, ModelConfig
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from model.numerics import environment, numerics_class, prepare

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "benchmarks" / "exact_speed.json"
Profile = Literal["exact", "native"]
DEMO = {
    "vocab_size": 2048, "context": 128, "d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
    "d_ff": 352, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "0.63m": (DEMO, 24),
    "5m": (dict(PRESETS["5m"]), 6),
}  # and steps
BATCH = 4


def tokens_per_second(profile: Profile, threads: int, name: str) -> tuple[float, str]:
    """Of local steps in this process, after two to warm up; and the numerics class."""
    prepare(profile, threads)
    # Only now, under the profile: it imports torch.
    from model.local_steps import Midpoint, WorkSpec, local_steps  # noqa: PLC0415

    fields, steps = MODELS[name]
    model = ModelConfig(**fields)
    specs, spec = array_specs(model), WorkSpec("local", 1 << 20, 0.9, 0.95, 1e-8, 0.1, 1.0)
    dice = np.random.default_rng(0)
    batches_SBT = dice.integers(model.vocab_size, size=(steps, BATCH, model.context + 1), dtype=np.int64)
    start = Midpoint(initial_weights(model, 0), zero_state(specs, "local"))
    local_steps(model, spec, start, batches_SBT[:2], [1e-3] * 2)
    begun = time.perf_counter()
    local_steps(model, spec, start, batches_SBT, [1e-3] * steps)
    return steps * BATCH * model.context / (time.perf_counter() - begun), numerics_class(profile, threads)


def one(profile: Profile, threads: int, name: str) -> dict[str, Any]:
    """The same in another process."""
    pinned = environment("exact")
    inherited = {key: value for key, value in os.environ.items() if key not in pinned}
    done = subprocess.run(
        [sys.executable, "-m", "bench.exact_speed", "--one", profile, str(threads), name],
        env=inherited | environment(profile), cwd=ROOT,
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(repeats: int) -> dict[str, Any]:
    """All settings, in turn."""
    rows, classes = [], set()
    for name in MODELS:
        for threads in (1, 2):
            speeds: dict[str, list[float]] = {"exact": [], "native": []}
            for repeat in range(repeats):
                order: tuple[Profile, ...] = ("exact", "native") if repeat % 2 else ("native", "exact")
                for profile in order:
                    found = one(profile, threads, name)
                    speeds[profile].append(found["tokens_per_s"])
                    classes.add(found["class"])
                print(
                    name, threads, {key: round(found[-1]) for key, found in speeds.items()}, file=sys.stderr
                )
            ratios = [n / e for n, e in zip(speeds["native"], speeds["exact"], strict=True)]
            rows.append(
                {
                    "model": name,
                    "threads": threads,
                    "exact": round(statistics.median(speeds["exact"])),
                    "native": round(statistics.median(speeds["native"])),
                    "times_slower": round(statistics.median(ratios), 3),
                    "lowest": round(min(ratios), 3),
                    "highest": round(max(ratios), 3),
                }
            )
    return {
        "command": "python -m bench.exact_speed --write",
        "repeats": repeats,
        "classes": sorted(classes),
        "rows": rows,
    }


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | threads | exact, tokens/s | native, tokens/s | exact is slower by, times |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['threads']} | {r['exact']:,} | {r['native']:,} | "
        f"{r['times_slower']} ({r['lowest']} to {r['highest']}) |"
        for r in found["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and keep the figures when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures in docs/benchmarks")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        profile, threads, name = options.one
        speed, numerics = tokens_per_second(profile, int(threads), name)
        print(json.dumps({"tokens_per_s": speed, "class": numerics}))
        return
    found = measure(options.repeats)
    if options.write:
        OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
