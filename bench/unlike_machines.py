"""Machines at speeds 1 : 2 : 4, with equal work and with work by measured speed: tokens a second, idle time.

    python -m bench.unlike_machines [--rounds 16] [--write]

Three contributors on this machine, held to 100, 50 and 25 % of a core by stopping and continuing their
processes. Once each takes the same number of local steps (`timing.mode = fixed`), once the steps follow the
coordinator's own measurement (`measured`). The first rounds, in which steps find their size, do not count. A
contributor is idle from its commitment to the last one's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

from bench.kills import corpus, lock_holders

RESULTS = Path("docs/benchmarks/unlike_machines.json")
SHARES = {"c00": 1.0, "c01": 0.5, "c02": 0.25}
PERIOD_S = 0.04
WARM_UP = 6

CONFIG = """\
[run]
rounds = {rounds}
[data]
source = "file:{corpus}"
vocab_size = 512
context = 64
holdout_ppm = 100000
[model]
vocab_size = 512
context = 64
d_model = 64
n_layers = 2
n_heads = 4
n_kv_heads = 2
d_ff = 176
rope_theta = 10000.0
norm_eps = 1e-5
init_std = 0.02
[train]
steps = [12, 12, 12]
batch = 4
trace_every = 2
[audit]
auditors = 0
rate_ppm = 0
probation_rounds = 0
[eval]
every = 1000
windows = 4
[timing]
mode = "{mode}"
round_ms = {round_ms}
deadline_ms = 60000
max_steps = 64
"""


class Brakes:
    """Stops processes for a part of every period. Ends with `release`, all of them running."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._hold, args=(name, share), daemon=True)
            for name, share in SHARES.items()
            if share < 1
        ]
        for thread in self._threads:
            thread.start()

    def release(self) -> None:
        """End; nobody is stopped any more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _hold(self, name: str, share: float) -> None:
        while not self._over.is_set():
            pids = lock_holders(self._home).get(name, [])
            until = time.monotonic() + 2.0
            while pids and time.monotonic() < until and not self._over.is_set():
                if not all(_signal(pid, signal.SIGSTOP) for pid in pids):
                    break
                time.sleep(PERIOD_S * (1 - share))
                for pid in pids:
                    _signal(pid, signal.SIGCONT)
                time.sleep(PERIOD_S * share)
            if not pids:
                time.sleep(0.1)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def play(root: Path, mode: str, rounds: int, round_ms: int) -> list[dict[str, Any]]:
    """A run with the brakes on; its rows."""
    config = root / f"{mode}.toml"
    config.write_text(CONFIG.format(rounds=rounds, corpus=root / "corpus", mode=mode, round_ms=round_ms))
    run, home = root / mode, root / f"home-{mode}"
    command = [sys.executable, "-m", "pipeline.cli", "train", "--config", str(config), "--run", str(run)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    brakes = Brakes(home)
    try:
        subprocess.run(
            [*command, "--json", "--home", str(home), "--pool", "ray"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
            timeout=900,
        )
    finally:
        brakes.release()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens a second over work and waiting, idle shares, and the steps at the end."""
    rows = rows[WARM_UP:]
    longest = [max(row["work_ms"].values()) for row in rows]
    tokens = sum(row["round_tokens"] for row in rows)
    idle = {
        name: round(1 - mean(row["work_ms"][name] / most for row, most in zip(rows, longest, strict=True)), 3)
        for name in SHARES
    }
    return {
        "rounds": len(rows),
        "tokens_per_s_of_work": round(1000 * tokens / sum(longest), 1),
        "tokens_per_s_in_all": round(tokens / sum(row["seconds"] for row in rows), 1),
        "work_ms": round(mean(longest)),
        "idle": idle,
        "idle_mean": round(mean(idle.values()), 3),
        "tokens_by_contributor": {
            name: round(mean(row["contributors"][name]["tokens"] for row in rows)) for name in SHARES
        },
    }


def main() -> None:
    """Measure, print, and keep with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        corpus(root / "corpus")
        equal = play(root, "fixed", options.rounds, 1000)
        # As long a round as the slowest has with equal work, so that all can fill it.
        longest = mean(max(row["work_ms"].values()) for row in equal[WARM_UP:])
        adaptive = play(root, "measured", options.rounds, round(longest))
    found = {"equal": figures(equal), "measured": figures(adaptive)}
    result = {
        "command": f"python -m bench.unlike_machines --rounds {options.rounds} --write",
        "shares_of_a_core": SHARES,
        **found,
        "times_faster": round(
            found["measured"]["tokens_per_s_of_work"] / found["equal"]["tokens_per_s_of_work"], 2
        ),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
