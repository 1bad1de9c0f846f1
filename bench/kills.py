"""Kill members, machines and the coordinator of one run at random; its weights must be those of a quiet run.

    python -m bench.kills [--kills 50] [--seed N] [--write]

Three nodes of a Ray cluster on this machine, each a machine with seats; the run is the command line's, with
`timing = fixed` and the exact profile. SIGKILL goes to processes of contributors, of auditors, of a node's
raylet (all members there die; the node joins again under its name) and of the coordinator (`barnraise resume`
goes on). At the end the weights' digest is compared with an undisturbed run's of the same configuration,
and the log is verified.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this process alone, gone with it

from ray.cluster_utils import Cluster

RESULTS = Path("docs/benchmarks/kills.json")
SEATS: dict[str, dict[str, float]] = {
    "head": {"auditor": 1},
    "one": {"contributor": 2, "auditor": 1},
    "two": {"contributor": 2, "auditor": 1},
}
WEIGHTS = {"contributor": 20, "auditor": 14, "raylet": 6, "coordinator": 10}
LONGEST_S = 1500.0

CONFIG = """\
[run]
rounds = {rounds}
[data]
source = "file:{corpus}"
vocab_size = 300
context = 16
holdout_ppm = 200000
[model]
vocab_size = 300
context = 16
d_model = 16
n_layers = 1
n_heads = 2
n_kv_heads = 1
d_ff = 32
rope_theta = 10000.0
norm_eps = 1e-5
init_std = 0.02
[train]
steps = [6, 4, 2, 4]
batch = 2
trace_every = 2
[compression]
chunk = 1024
[audit]
auditors = 3
probation_rounds = 1
rate_ppm = 500000
second_look_ppm = 200000
[eval]
every = 10
windows = 4
"""


@dataclass
class Run:
    """One run of the command line beside this process."""

    folder: Path
    home: Path
    address: str
    config: Path
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin it, or go on with it."""
        there = (self.folder / "manifest.json").exists()
        verb = ["resume", str(self.folder)] if there else ["train", "--config", str(self.config)]
        rest = [] if there else ["--run", str(self.folder)]
        command = [sys.executable, "-m", "pipeline.cli", *verb, *rest, "--json", "--home", str(self.home)]
        self.process = subprocess.Popen(
            [*command, "--pool", "ray", "--address", self.address],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder.parent / "stderr").open("a"),
            text=True,
            start_new_session=True,
        )

    @property
    def rounds(self) -> int:
        """Rounds in metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0


class Machines:
    """The cluster; nodes by machine name."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.nodes: dict[str, Any] = {}
        for name in SEATS:
            self.add(name)

    def add(self, name: str) -> None:
        """A node of this name joins."""
        self.nodes[name] = self.cluster.add_node(
            num_cpus=1,
            resources=SEATS[name],
            labels={"barnraise-machine": name},
            object_store_memory=100 << 20,
            include_dashboard=False,
        )

    def kill(self, name: str) -> None:
        """Its raylet dies, and all workers with it; then it joins again."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)
        self.add(name)


def lock_holders(home: Path) -> dict[str, list[int]]:
    """Process ids of members by name: each holds the lock of its private folder under `home`."""
    found: dict[str, list[int]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it may end while it is looked at
            if b"ray::" not in (process / "cmdline").read_bytes():
                continue
            held = {str(link.readlink()) for link in (process / "fd").iterdir()}
            for name in {Path(path).parent.name for path in held if path.startswith(f"{home}/")}:
                found.setdefault(name, []).append(int(process.name))
    return found


def corpus(folder: Path) -> None:
    """Small documents of a made-up language."""
    dice = random.Random(7)
    words = ["".join(dice.choice("abcdefghij") for _ in range(dice.randint(2, 6))) for _ in range(60)]
    folder.mkdir()
    for index in range(40):
        (folder / f"doc{index:02d}.txt").write_text(" ".join(dice.choice(words) for _ in range(300)))


def play(machines: Machines, root: Path, rounds: int, kills: int, seed: int) -> dict[str, Any]:
    """One run with so many kills, to its end; what was killed, and what `barnraise verify` says."""
    root.mkdir()
    config = root / "config.toml"
    config.write_text(CONFIG.format(rounds=rounds, corpus=root.parent / "corpus"))
    run = Run(root / "run", root / "home", machines.cluster.address, config)
    dice = random.Random(seed)
    run.start()
    try:
        return _watch(machines, run, rounds, kills, dice)
    finally:
        if run.process and run.process.poll() is None:
            run.process.kill()
            run.process.wait(timeout=30)


def _watch(machines: Machines, run: Run, rounds: int, kills: int, dice: random.Random) -> dict[str, Any]:
    done, kinds, due = Counter[str](), list(WEIGHTS), list(range(kills))
    stop = time.monotonic() + LONGEST_S
    while time.monotonic() < stop:
        assert run.process is not None
        if run.process.poll() is not None:
            if run.process.returncode != 0:
                raise SystemExit(f"the run stopped: {(run.folder.parent / 'stderr').read_text()[-2000:]}")
            break
        # Kills are spread over the rounds, so that all are over before the run is.
        if due and run.rounds >= 1 + (kills - len(due)) * (rounds - 2) // kills:
            kind = dice.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
            time.sleep(dice.uniform(0.0, 1.0))
            if kill(kind, machines, run, dice):
                due.pop()
                done[kind] += 1
        time.sleep(0.1)
    else:
        raise SystemExit(f"not over after {LONGEST_S:.0f} s, with {run.rounds} of {rounds} rounds")
    verify = [sys.executable, "-m", "pipeline.cli", "verify", str(run.folder), "--level", "2", "--json"]
    answer = json.loads(subprocess.run(verify, capture_output=True, text=True, check=False).stdout)
    return {
        "kills": dict(sorted(done.items())),
        "all_kills": sum(done.values()),
        "ok": answer["ok"],
        "complete": answer["complete"],
        "failures": answer["failures"],
        "weights_digest": answer["weights_digest"],
        "rounds": answer["rounds"],
    }


def kill(kind: str, machines: Machines, run: Run, dice: random.Random) -> bool:
    """Kill one of a kind, by its process id; False where there is none now."""
    if kind == "coordinator":
        assert run.process is not None
        run.process.send_signal(signal.SIGKILL)
        run.process.wait(timeout=30)
        run.start()
        return True
    if kind == "raylet":
        machines.kill(dice.choice(["one", "two"]))
        return True
    pids = [pid for name, found in lock_holders(run.home).items() if name[0] == kind[0] for pid in found]
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(sorted(pids)), signal.SIGKILL)
            return True
    return False


def main() -> None:
    """Measure, print, and keep with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    machines = Machines()
    try:
        with tempfile.TemporaryDirectory() as place:
            corpus(Path(place) / "corpus")
            started = time.monotonic()
            quiet = play(machines, Path(place) / "quiet", options.rounds, 0, 0)
            between = time.monotonic()
            disturbed = play(machines, Path(place) / "disturbed", options.rounds, options.kills, options.seed)
            seconds = (round(between - started), round(time.monotonic() - between))
    finally:
        machines.cluster.shutdown()
    result = {
        "command": f"python -m bench.kills --kills {options.kills} --rounds {options.rounds} "
        f"--seed {options.seed}",
        "equal": quiet["weights_digest"] == disturbed["weights_digest"],
        "seconds": {"undisturbed": seconds[0], "disturbed": seconds[1]},
        "undisturbed": quiet,
        "disturbed": disturbed,
    }
    print(json.dumps(result, indent=1))
    if options.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if result["equal"] and disturbed["ok"] else 1)


if __name__ == "__main__":
    main()
