"""Honest audits of one step between unlike environments of this machine, for bench/tolerance.py.

Owns the environments, the walk and the numbers of each audit. Does not own thresholds
(pipeline/calibrate_numbers.py) or what is concluded.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.calibrate_points import Plan
from pipeline.calibrate_workers import EXACT, NATIVE, Crew, Environment
from pipeline.config import Config, parse_config
from verification.tolerance import Deviation

_CHILD = "bench.tolerance_child"
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2"}
FP32 = (
    EXACT,
    NATIVE,
    Environment("native, 2 threads", "native", threads=2),
    Environment("native, AVX2", "native", variables=_AVX2),
    Environment("micro-batch", "native", experimental=True, module=_CHILD),
)
BF16 = (
    Environment("bf16", "native", experimental=True, module=_CHILD),
    Environment("bf16, AVX2", "native", variables=_AVX2, experimental=True, module=_CHILD),
)
SIZE = {
    "vocab_size": 320, "context": 32, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64,
    "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
}  # fmt: skip
Sample = tuple[str, str, Deviation]


def config(seed: int = 1) -> Config:
    """A model of some 30 thousand parameters, batches of four windows; `seed` makes its initial weights."""
    data = {"source": "python-stdlib", "vocab_size": SIZE["vocab_size"], "context": SIZE["context"]}
    values: dict[str, Any] = {
        "run": {"seed": seed},
        "data": data,
        "model": SIZE,
        "train": {"batch": 4, "steps": [1], "trace_every": 1},
    }
    return parse_config(values, "bench.tolerance")


def wanted(one: str, other: str) -> bool:
    """Pairs that are looked at: all of fp32, bf16 against bf16, and exact against bf16."""
    rough = {where.name for where in BF16}
    return len({one, other} & rough) != 1 or EXACT.name in (one, other)


def honest(steps: int, raw: Path, seed: int = 1) -> list[dict[str, Any]]:
    """Every audit of a walk of `steps`, one line each in `raw` as they come; those there are not repeated."""
    done = [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []
    if done and done[-1]["step"] == steps - 1:
        return done
    began = time.monotonic()
    with Crew((*FP32, *BF16), Plan.of(config(seed), steps)) as crew, raw.open("w") as file:
        print(crew.left_out, file=sys.stderr)
        start, found = crew.plan.beginning(), []
        for index in range(steps):
            ends = crew.step(start, index)
            for pair in itertools.combinations(range(len(ends)), 2):
                # Either of them serves, in turn.
                one, two = pair if index % 2 else pair[::-1]
                names = [crew.workers[i].environment.name for i in (one, two)]
                if wanted(*names):
                    deviation = crew.deviation(start, ends[one], ends[two], index)
                    numbers = {n: v for n, v in vars(deviation).items() if n not in ("own", "sketch")}
                    found.append({"step": index, "served": names[0], "own": names[1], **numbers})
                    file.write(json.dumps(found[-1]) + "\n")
            start = ends[index % len(FP32)].point
            if index % 50 == 0:
                print(f"step {index} after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found
