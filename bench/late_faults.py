"""How far a run from which late faults were cut out lies from one in which they were never accepted.

    python -m bench.late_faults [--write] [--rounds N]

Real runs, as in `barnraise train`, all in this process. One of five contributors turns false in the middle;
with `audit.lag` L its work counts until the settlement takes it out. The clean rerun is the same run with
`audit.lag` 0, which rejects it at once. Distances are of the weights, relative to how far the clean run has
moved from its start: just before the settlement that takes the fault out, just after it, and at the end. The
scale for these is how far the clean rerun lies from a run in which all five stay honest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from bench.adversaries import config as base_config
from model.numerics import THREADS, environment
from model.numerics import prepare as prepare_numerics
from pipeline.adversaries import ADVERSARIES, Adversary
from pipeline.config import Config, parse_config
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run, create_run
from pipeline.work import Work
from verification.records import RosterEntry, RoundOpen

ROUNDS, FIRST, LAGS = 20, 8, (1, 2, 4)
KINDS = ("lazy", "random", "scaled", "wrong-data")
CHEAT = "c04"
OUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "late_faults.json"
Vector = npt.NDArray[np.float32]


@dataclass
class Told:
    """What is seen of a run: weights after each closed round, around the first excision, and losses."""

    start: Vector
    rounds: dict[int, Vector] = field(default_factory=dict)
    excision: tuple[int, Vector, Vector] | None = None
    removed: int = 0
    val_loss: float = 0.0


@dataclass(frozen=True)
class Row:
    """One kind of cheat under one lag; distances relative to the clean run's way from its start."""

    kind: str
    lag: int
    removed: int
    before: float
    after: float
    end: float
    clean_loss: float
    loss: float


def turned(kind: str) -> type[Adversary]:
    """A contributor that is honest before turn FIRST, and from then on of a kind."""
    false: Any = ADVERSARIES[kind]

    class Turned(false):  # type: ignore[misc]
        def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
            if open_.turn < FIRST:
                return self.honest(open_, entry, checkpoint)
            work: Work = super().work(open_, entry, checkpoint)
            return work

    return Turned


def settings(lag: int, rounds: int) -> Config:
    """The run of bench.adversaries with audits of everybody, that lag."""
    values = json.loads(base_config(1, rounds, audit=True).model_dump_json())
    values["audit"]["lag"], values["credit"]["vest_rounds"] = lag, lag + 10
    values["eval"]["every"] = rounds
    return parse_config(values, "bench.late_faults")


def tell(place: Path, config: Config, kind: str | None) -> Told:
    """One run, with CHEAT of a kind, or all honest."""
    folder, home = RunFolder(place / "run"), place / "home"
    create_run(config, folder, home, lambda _: None)
    told: list[Told] = []
    settle = Coordinator.settle

    def settled(self: Coordinator) -> None:
        before = self.checkpoint.weights_P.copy()
        settle(self)
        _, record = self.settled[-1]
        if record.removed and told:
            told[0].removed += len(record.removed)
            if told[0].excision is None:
                told[0].excision = (self.state.rounds_done, before, self.checkpoint.weights_P.copy())

    def turn(close: Any, coordinator: Coordinator, seconds: float) -> None:
        del seconds
        if not told:
            aggregator = coordinator.desk.aggregator
            first = aggregator.load(folder.checkpoint(0), folder.outer_file(0).read_bytes())
            told.append(Told(first.weights_P))
        told[0].rounds[close.round] = coordinator.checkpoint.weights_P.copy()
        if close.val_loss is not None:
            told[0].val_loss = close.val_loss / 1e6

    drills = {CHEAT: "turned"} if kind else {}
    known = {**ADVERSARIES, **({"turned": turned(kind)} if kind else {})}
    with patch.dict(ADVERSARIES, known), patch.object(Coordinator, "settle", settled):
        coordinator = continue_run(folder, home, View(lambda _: None, turn), drills=drills)
    # What was settled after the last round is in the end, and in its loss.
    (found,) = told
    found.rounds[config.run.rounds] = coordinator.checkpoint.weights_P.copy()
    found.val_loss = (
        coordinator.desk.validate(coordinator.desk.aggregator.arrays(coordinator.checkpoint)) / 1e6
    )
    shutil.rmtree(place)
    return found


def far(one: Vector, other: Vector, start: Vector) -> float:
    """The distance of two points, relative to how far the other is from the start."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other - start))


def measure(rounds: int) -> dict[str, Any]:
    """All of it; progress goes to stderr."""
    prepare_numerics("exact", THREADS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:

        def run(lag: int, kind: str | None) -> Told:
            print(f"lag {lag}, {kind or 'all honest'}", file=sys.stderr, flush=True)
            return tell(Path(scratch) / "one", settings(lag, rounds), kind)

        honest = run(0, None)
        for kind in KINDS:
            clean = run(0, kind)
            without_it = far(honest.rounds[rounds], clean.rounds[rounds], clean.start)
            for lag in LAGS:
                late = run(lag, kind)
                if late.excision is None:
                    raise SystemExit(f"{kind} was not caught under lag {lag}")
                at, before, after = late.excision
                rows.append(
                    Row(
                        kind, lag, late.removed,
                        far(before, clean.rounds[at], clean.start), far(after, clean.rounds[at], clean.start),
                        far(late.rounds[rounds], clean.rounds[rounds], clean.start),
                        clean.val_loss, late.val_loss,
                    )
                )  # fmt: skip
    return {
        "command": "python -m bench.late_faults --write",
        "rounds": rounds,
        "first_false_turn": FIRST,
        "honest_loss": honest.val_loss,
        "honest_distance": without_it,
        "rows": [asdict(row) for row in rows],
    }


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| cheat | lag | taken out | distance before | after | at the end | loss, clean rerun | loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['kind']} | {r['lag']} | {r['removed']} | {r['before']:.3f} | {r['after']:.3f} | "
        f"{r['end']:.3f} | {r['clean_loss']:.4f} | {r['loss']:.4f} |"
        for r in found["rows"]
    ]
    away = f"{found['honest_distance']:.3f} from the clean rerun"
    lines.append(f"\nAll honest: loss {found['honest_loss']:.4f}, {away}.")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and keep the figures when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {OUT.name}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of a run")
    options = parser.parse_args()
    # In a process of its own: what is imported above has imported torch, and the profile comes before that.
    os.environ.update(environment("exact"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(measure, options.rounds).result()
    if options.write:
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
