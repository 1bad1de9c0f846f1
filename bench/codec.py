"""Speed of the codec on one thread, beside torch.topk in the same process.

    python -m bench.codec [--json]

The input is a heavy-tailed f32 vector (Student t, 3 degrees of freedom) of 2^24 elements, top 64 of 4096.
GB/s are of that f32 input, the best of several repeats, for decode up to and including the dense vector.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compression import Codec

LENGTH, CHUNK, K, SEED = 2**24, 4096, 64, 0
SECONDS_EACH = 2.5  # per measured thing; three of them, so the whole stays near ten seconds


def best_seconds(work: Callable[[], object]) -> tuple[float, int]:
    """Shortest time of one call and the number of calls, after one call to warm up."""
    work()
    best, calls, stop = float("inf"), 0, time.perf_counter() + SECONDS_EACH
    while calls < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best, calls


def measure_torch(vector_P: np.ndarray) -> dict[str, Any]:
    """torch.topk of magnitudes on rows of 4096, or null and the reason."""
    try:
        import torch  # noqa: PLC0415 - the peer is optional
    except ImportError as error:
        return {"torch_topk_gbs": None, "torch_topk_reason": f"torch is not installed ({error})"}
    torch.set_num_threads(1)
    rows = torch.from_numpy(vector_P).reshape(-1, CHUNK)
    seconds, calls = best_seconds(lambda: torch.topk(rows.abs(), K, dim=1))
    return {
        "torch_topk_gbs": vector_P.nbytes / seconds / 1e9,
        "torch_topk_calls": calls,
        "torch_version": torch.__version__,
    }


def cpu_model() -> str:
    """What the kernel calls the processor."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def measure() -> dict[str, Any]:
    """All fields of the benchmark."""
    vector_P = (np.random.default_rng(SEED).standard_t(3, size=LENGTH) * 1e-3).astype(np.float32)
    codec = Codec(CHUNK, K, LENGTH)
    payload = codec.encode(vector_P)
    encode_s, encode_calls = best_seconds(lambda: codec.encode(vector_P))
    decode_s, decode_calls = best_seconds(lambda: codec.decode(payload).dense(LENGTH))
    return {
        "codec": codec.name,
        "ratio_fp32": vector_P.nbytes / len(payload),
        "encode_gbs": vector_P.nbytes / encode_s / 1e9,
        "decode_gbs": vector_P.nbytes / decode_s / 1e9,
        **measure_torch(vector_P),
        "length": LENGTH,
        "input": "student-t, 3 degrees of freedom, seed 0",
        "threads": 1,
        "statistic": "best of the calls",
        "encode_calls": encode_calls,
        "decode_calls": decode_calls,
        "numpy_version": np.__version__,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Print one `name value` a line, or one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench.codec", description="Speed of the codec.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    json_wanted = parser.parse_args().json
    fields = measure()
    if json_wanted:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:18} {value:.3f}" if isinstance(value, float) else f"{name:18} {value}")


if __name__ == "__main__":
    main()
