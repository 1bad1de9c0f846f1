"""Whether the exact profile gives equal bits on other processors: one to four threads here, and emulated.

    python -m bench.exact_cpus [--write]

The same two local steps, error feedback and payload of a model of 0.14 million parameters everywhere.
Emulation is qemu-user's (Debian: apt-get install qemu-user): it shows another vendor and instruction set to
every library, and rounds as IEEE 754 says; it is not the other vendor's silicon. Three minutes a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import arrays_digest
from model.config import ModelConfig
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from model.numerics import environment, numerics_class, prepare
from verification.encoding import blake3_digest, hash_object

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "benchmarks" / "exact_cpus.json"
CPUS = ("Haswell", "EPYC-Rome", "EPYC-Milan")
THREADS = (1, 2, 3, 4)
MOST_S = 7200  # of one process; emulation is slow
MODEL = ModelConfig(
    vocab_size=512, context=64, d_model=80, n_layers=2, n_heads=5, n_kv_heads=1, d_ff=150,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.05,
)  # fmt: skip


def digest(threads: int) -> str:
    """Digest of what the work gives in this process, under the exact profile."""
    prepare("exact", threads)
    # Only now, under the profile: these import torch.
    from model.local_steps import Midpoint, WorkSpec, local_steps, update_of  # noqa: PLC0415
    from pipeline.compression import Codec, accumulate, encode_with_residue  # noqa: PLC0415

    specs, spec = array_specs(MODEL), WorkSpec("local", 1, 0.9, 0.95, 1e-8, 0.1, 1.0)
    p_SBT = np.arange(2 * 2 * (MODEL.context + 1), dtype=np.int64).reshape(2, 2, -1)
    start = Midpoint(initial_weights(MODEL, 0), zero_state(specs, "local"))
    done = local_steps(MODEL, spec, start, (p_SBT * 7919 + p_SBT**2 * 31) % MODEL.vocab_size, [0.01] * 2)
    update_P = update_of(spec, specs, start.weights, done.end, 2)
    codec = Codec(1024, 64, len(update_P))
    payload, residue_P = encode_with_residue(codec, accumulate(codec, update_P, update_P, 0.95))
    found = {"leaves": list(done.leaves), "losses": list(done.losses), "payload": blake3_digest(payload)}
    return hash_object("bench/exact-cpus/v1", {**found, "residue": arrays_digest({"residue": residue_P})})


def emulated() -> list[tuple[str, list[str]]]:
    """Each emulated processor by name, and what to put before a command to have it run there."""
    qemu = shutil.which("qemu-x86_64")
    if not qemu:
        print("qemu-x86_64 is not here: emulated processors are left out", file=sys.stderr)
        return []
    return [(f"emulated {cpu}", [qemu, "-cpu", cpu]) for cpu in CPUS]


def elsewhere(command: list[str], module: str, *arguments: str) -> str:
    """What a module prints when it is run behind `command`; CalledProcessError when it fails."""
    done = subprocess.run(
        [*command, sys.executable, "-m", module, *arguments],
        env={**os.environ, **environment("exact"), "MKL_DYNAMIC": "FALSE"},
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=MOST_S,
    )  # fmt: skip
    return done.stdout.strip()


def run(command: list[str], threads: int) -> dict[str, Any]:
    """The digest that another process gives, and how long it took."""
    begun = time.monotonic()
    try:
        answer = elsewhere(command, "bench.exact_cpus", "--one", str(threads))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        answer = f"failed: {error}"
    return {"threads": threads, "digest": answer, "seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    """Run everywhere, print, and keep the answer when asked; exit 1 when bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the answer in docs/benchmarks")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(digest(options.one))
        return
    rows = []
    places: list[tuple[str, list[str], int]] = [("this machine", [], threads) for threads in THREADS]
    places += [(name, command, 1) for name, command in emulated()]
    for name, command, threads in places:
        rows.append({"processor": name, **run(command, threads)})
        print(json.dumps(rows[-1]), flush=True)
    answer = {"class": numerics_class("exact", 1), "rows": rows}
    if options.write:
        OUTPUT.write_text(json.dumps(answer, indent=1) + "\n")
    sys.exit(len({row["digest"] for row in rows}) != 1)


if __name__ == "__main__":
    main()
