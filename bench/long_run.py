"""A run of a thousand rounds in one process: does memory, disk or the time of a round grow with the round?

    python -m bench.long_run [--rounds N] [--keep-all] [--trace] [--write]

Coordinator, members, lottery and audits as in `barnraise train`, all in this process, with a tiny model: its
own files are small beside what the protocol itself leaves. Every tenth round: resident memory, files by
folder, seconds a round by the clock and of this process's processor time. `--write` keeps
docs/benchmarks/long_run.json; bench.long_run_plot draws it. `--keep-all` is the same run without retention,
`--trace` lists what Python code holds more of at the end than after a fifth.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.numerics import THREADS, environment, prepare
from pipeline.config import Config, parse_config
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run, create_run
from verification.records import RoundClose

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "long_run.json"
ROUNDS, SAMPLE, KEPT = 1000, 10, 20
PAGE = os.sysconf("SC_PAGE_SIZE")


def config(text: Path, rounds: int, keep: int) -> Config:
    """Three contributors, two auditors, one local step each."""
    values: dict[str, Any] = {
        "run": {"rounds": rounds, "seed": 1},
        "data": {"source": f"file:{text}", "vocab_size": 300, "context": 16, "holdout_ppm": 200_000},
        "model": {
            "vocab_size": 300, "context": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
            "d_ff": 32, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
        },
        "train": {"steps": [1, 1, 1], "batch": 1, "trace_every": 1},
        "compression": {"chunk": 1024, "k": 64},
        "state": {"every": 10},
        "checkpoint": {"every": 10},
        "credit": {"vest_rounds": 5},
        "eval": {"every": 10, "windows": 4},
        "audit": {"auditors": 2, "probation_rounds": 1, "rate_ppm": 300_000},
        "retention": {"payload_rounds": keep, "checkpoint_every": 10 * keep},
    }  # fmt: skip
    return parse_config(values, "bench.long_run")


def corpus(folder: Path) -> Path:
    """Forty documents of a made-up language."""
    dice = random.Random(7)
    folder.mkdir()
    words = ["".join(dice.choice("abcdefghij") for _ in range(dice.randint(2, 6))) for _ in range(60)]
    for index in range(40):
        (folder / f"{index:02d}.txt").write_text(" ".join(dice.choice(words) for _ in range(300)))
    return folder


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def files(folder: Path) -> tuple[int, int]:
    """(number of files, their bytes) below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


@dataclass
class Watch:
    """Looks at the run every `SAMPLE` rounds, between turns and outside of their time."""

    run: Path
    home: Path
    write: Path | None
    about: dict[str, Any]
    points: list[dict[str, Any]] = field(default_factory=list)
    _spent: float = 0.0
    _turns: int = 0
    _cpu: float = field(default_factory=time.process_time)

    def turn(self, close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        """After a turn."""
        self._spent, self._turns = self._spent + seconds, self._turns + 1
        if close.round % SAMPLE:
            return
        cpu = time.process_time() - self._cpu
        parts = {part.name: part for part in sorted(self.run.iterdir()) if part.is_dir()}
        private = self.home / "runs"
        secrets = next(private.glob("*/coordinator"))
        receipts = [files(path) for path in private.glob("*/*/receipts")]
        found = {name: files(path) for name, path in parts.items()}
        found["coordinator"] = files(secrets)
        found["receipts"] = sum(n for n, _ in receipts), sum(size for _, size in receipts)
        rest = files(private)
        found["members"] = (
            rest[0] - found["coordinator"][0] - found["receipts"][0],
            rest[1] - found["coordinator"][1] - found["receipts"][1],
        )
        gc.collect()
        self.points.append(
            {
                "round": close.round,
                "turns": self._turns,
                "seconds": round(self._spent / self._turns, 4),
                "cpu_seconds": round(cpu / self._turns, 4),
                "resident_bytes": resident_bytes(),
                "log_entries": coordinator.desk.ledger.checkpoint.size,
                "bytes": {name: size for name, (_, size) in found.items()},
                "files": {name: number for name, (number, _) in found.items()},
            }
        )
        self._spent, self._turns, self._cpu = 0.0, 0, time.process_time()
        print(json.dumps(self.points[-1]), file=sys.stderr, flush=True)
        if self.write:
            self.write.write_text(json.dumps({**self.about, "points": self.points}, indent=1) + "\n")


@dataclass
class Growth:
    """What Python code holds more of at the end than after a fifth of the rounds."""

    rounds: int
    first: tracemalloc.Snapshot | None = None

    def turn(self, done: int) -> None:
        """After a round."""
        if done == self.rounds // 10:
            gc.collect()
            tracemalloc.start()
        if done == self.rounds // 5:
            gc.collect()
            self.first = tracemalloc.take_snapshot()
        if done == self.rounds and self.first:
            gc.collect()
            for line in tracemalloc.take_snapshot().compare_to(self.first, "lineno")[:25]:
                print(line, file=sys.stderr)


def measure(rounds: int, keep: int, write: Path | None, *, trace: bool = False) -> list[dict[str, Any]]:
    """The points of one run, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="barnraise-long-") as name:
        root = Path(name)
        settings = config(corpus(root / "text"), rounds, keep)
        folder, home = RunFolder(root / "run"), root / "home"
        about = {"rounds": rounds, "payload_rounds": keep, "checkpoint_every": 10 * keep}
        watch, growth = Watch(folder.path, home, write, about), Growth(rounds)

        def turn(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
            watch.turn(close, coordinator, seconds)
            if trace:
                growth.turn(close.round)

        create_run(settings, folder, home, lambda text: None)
        started = time.monotonic()
        continue_run(folder, home, View(lambda text: None, turn))
        print(f"{rounds} rounds in {time.monotonic() - started:.0f} s", file=sys.stderr)
        return watch.points


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep-all", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in environment("exact").items()):
        os.environ.update(environment("exact"))
        os.execv(sys.executable, [sys.executable, "-m", "bench.long_run", *sys.argv[1:]])
    prepare("exact", THREADS)
    keep, write = 0 if options.keep_all else KEPT, OUTPUT if options.write else None
    points = measure(options.rounds, keep, write, trace=options.trace)
    print(json.dumps(points[-1]))


if __name__ == "__main__":
    main()
