"""What each kind of adversary does to a small run when the one check that stops it is taken away.

    python -m bench.adversaries [--json] [--seeds 1 2]

Every figure is of a real run: coordinator, members and log as in `barnraise train`, all in this process. A
check is taken away by replacing the function that makes it, here in the benchmark; the product has no switch
for it. Harm is the validation loss after the last round less that of the run of the same seed in which all
five contributors are honest, in nats. Credit is what the liars earned in the whole run, in tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from data_prep.config import DataConfig
from data_prep.manifest import DatasetManifest
from data_prep.prepare import prepare as prepare_data
from model.arrays import arrays_digest, arrays_from_bytes, arrays_to_bytes
from model.hidden_state import state_specs
from model.numerics import THREADS, environment
from model.numerics import prepare as prepare_numerics
from pipeline.adversaries import ADVERSARIES, Adversary
from pipeline.config import Config, parse_config
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run, create_run
from pipeline.work import Work
from verification import judge, plans
from verification.errors import BarnraiseError
from verification.intake import judge_reveal
from verification.records import RosterEntry, RoundClose, RoundOpen

CONTRIBUTORS, STEPS, BATCH, CONTEXT, ROUNDS = 5, 4, 8, 32, 40
SHORT = 4  # rounds of a run that only shows who is stopped, and how
SEEDS = (1, 2)
BACKED = (("duplicates",), ("decoding",))  # checks with another one behind them: a short run shows which
ONCE = "state-smuggler, once"
TOKENS = ROUNDS * STEPS * BATCH * CONTEXT  # what one contributor can earn


@dataclass(frozen=True)
class Row:
    """A kind, the check that stops it, and the checks to take away to see what it would do."""

    kind: str
    check: str
    without: tuple[str, ...]


ROWS = (
    Row("lazy", "audit", ("audit",)),
    Row("random", "audit", ("audit",)),
    Row("wrong-data", "audit", ("audit",)),
    Row("scaled", "audit", ("audit",)),
    Row("scaled", "audit, then the clip", ("audit", "clip")),
    Row("state-smuggler", "audit of the next state", ("next state",)),
    Row("copycat", "duplicate payload", ("duplicates",)),
    Row("copycat", "duplicate payload, then the audit", ("duplicates", "audit")),
    Row("stale", "duplicate payload", ("duplicates",)),
    Row("stale", "duplicate payload, then the audit", ("duplicates", "audit")),
    Row("nan", "the codec", ("decoding",)),
    Row("nan", "the codec, then the audit", ("decoding", "audit")),
    Row("silent", "no credit unrevealed, then strikes", ("strikes",)),
    Row("dodger", "no acceptance unserved", ("serving",)),
    Row(ONCE, "nothing, once it is not drawn", ("first draw",)),
)


def config(seed: int, rounds: int, *, audit: bool) -> Config:
    """Five equal contributors and two auditors; the audit covers everything or nothing."""
    values: dict[str, Any] = {
        "run": {"rounds": rounds, "seed": seed},
        "data": {
            "source": "python-stdlib",
            "vocab_size": 512,
            "context": CONTEXT,
            "max_bytes": 1_500_000,
        },
        "model": {
            "vocab_size": 512,
            "context": CONTEXT,
            "d_model": 48,
            "n_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_ff": 96,
            "rope_theta": 10000.0,
            "norm_eps": 1e-5,
            "init_std": 0.02,
        },
        "train": {
            "batch": BATCH,
            "steps": [STEPS] * CONTRIBUTORS,
            "trace_every": STEPS,
            "inner": {"lr": 4e-3, "warmup_steps": 10, "decay_rounds": ROUNDS * 2 // 5},
        },
        "compression": {"chunk": 1024, "k": 64},
        "audit": {"rate_ppm": 1_000_000 if audit else 0, "second_look_ppm": 0, "probation_rounds": 0},
        "eval": {"every": ROUNDS, "windows": 512},
        "checkpoint": {"every": ROUNDS},
        "state": {"every": 1000},  # no snapshot after the first round: not what is measured
    }
    return parse_config(values, "bench.adversaries")


class SmuggleOnce(Adversary):
    """Poisons its error feedback in the first turn, and from then on does exactly what is asked of it."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        honest = self.honest(open_, entry, checkpoint)
        if open_.turn:
            return honest
        state = arrays_from_bytes(honest.next_state, state_specs(self.job.specs, self.job.spec.mode))
        noise_P = np.random.default_rng(entry.slot).standard_normal(self.job.codec.length).astype(np.float32)
        poisoned = {**state, "error_feedback": np.float32(100) * noise_P}
        claims = replace(honest.claims, next_state=arrays_digest(poisoned))
        return replace(honest, next_state=arrays_to_bytes(poisoned), claims=claims)


# Checks, taken away.


def _without_decoding(state: Any, slot: int, answer: Any, *, payload_bytes: int, decode: Any) -> Any:
    del decode
    return judge_reveal(state, slot, answer, payload_bytes=payload_bytes, decode=len)


def _without_duplicates(state: Any, slot: int, answer: Any, **others: Any) -> Any:
    return judge_reveal(replace(state, used=frozenset()), slot, answer, **others)


def _no_twins(_: Any) -> set[int]:
    return set()


def _first_draw(liars: Mapping[str, str]) -> list[Any]:
    def unlucky(state: Any) -> RoundOpen:
        open_ = PLAN_OPEN(state)
        if open_.turn:
            return open_
        roster = (replace(e, audit_ppm=0 if e.member in liars else e.audit_ppm) for e in open_.roster)
        return replace(open_, roster=tuple(roster))

    modules = ("pipeline.coordinator", "verification.rounds")
    return [patch(f"{module}.plan_open", unlucky) for module in modules]


def _without_next_state(opening: Any, done: Any) -> tuple[Any, ...]:
    return tuple(claim for claim in DIFFERENCES(opening, done) if claim != "next_state")


def _anything(*_: Any) -> bool:
    return True


def _without_serving(turn: Any, entry: RosterEntry, auditors: Any) -> str | None:
    reason = REASON(turn, entry, auditors)
    return None if reason == "unserved" else reason


PLAN_OPEN, DIFFERENCES, REASON = plans.plan_open, judge.differences, judge._reason  # noqa: SLF001


def removals(check: str, liars: Mapping[str, str]) -> list[Any]:
    """The patches that take a check away; the audit goes with its rate, that of twins beside it."""
    return {
        "audit": [patch("verification.plans._twins", _no_twins)],
        "clip": [patch("pipeline.aggregation.clip_factors", lambda norms: (1.0,) * len(norms))],
        "duplicates": [
            patch("pipeline.coordinator.judge_reveal", _without_duplicates),
            patch("verification.rounds._closes_reveals", _anything),
        ],
        "decoding": [patch("pipeline.coordinator.judge_reveal", _without_decoding)],
        "strikes": [patch("verification.credits.STRIKE_REASONS", frozenset())],
        "next state": [
            patch("pipeline.auditor.differences", _without_next_state),
            patch("verification.judge.differences", _without_next_state),
        ],
        "serving": [patch("verification.judge._reason", _without_serving)],
        "first draw": _first_draw(liars),
    }[check]


# Runs.


@dataclass(frozen=True)
class Run:
    """One run to make: the last `liars` contributors are of `kind`, and the checks in `without` are gone."""

    seed: int
    kind: str = ""
    liars: int = 0
    without: tuple[str, ...] = ()
    rounds: int = ROUNDS
    audit: bool = False


@dataclass(frozen=True)
class Result:
    """What came of it. `rejections`: (round, reason) of liars; `given`: tokens handed out to them."""

    run: Run
    val_loss: float | None
    stopped: str | None
    rejections: tuple[tuple[int, str], ...]
    quarantined: int | None
    earned: int
    given: int
    honest_rejected: int


def memory() -> str | None:
    """A folder in memory where there is one, as thousands of small files are written and thrown away."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def changed(run: Run, liars: Mapping[str, str], corpus: Path) -> Iterator[None]:
    """The benchmark's own kind, the data in `corpus`, and the checks gone that the run is without."""

    def prepared(fields: DataConfig, folder: Path, tell: Callable[[str], None]) -> DatasetManifest:
        del fields, tell
        shutil.copytree(corpus, folder, dirs_exist_ok=True)
        return DatasetManifest.from_json(json.loads((folder / "dataset.json").read_bytes()))

    with ExitStack() as stack:
        stack.enter_context(patch.dict(ADVERSARIES, {ONCE: SmuggleOnce}))
        stack.enter_context(patch("pipeline.run.prepare_data", prepared))
        for check in run.without:
            for item in removals(check, liars):
                stack.enter_context(item)
        yield


def do(run: Run, corpus: Path) -> Result:
    """Make a run in a temporary folder and say what came of it."""
    liars = {f"c{CONTRIBUTORS - 1 - index:02d}": run.kind for index in range(run.liars)}
    closes: list[RoundClose] = []
    given: list[int] = []

    def turn(close: RoundClose, coordinator: Any, seconds: float) -> None:
        del seconds
        closes.append(close)
        roster = coordinator.last_turn.open.roster
        given.append(sum(e.steps * BATCH * CONTEXT for e in roster if e.member in liars))

    stopped = None
    with tempfile.TemporaryDirectory(dir=memory()) as name, changed(run, liars, corpus):
        folder, home = RunFolder(Path(name) / "run"), Path(name) / "home"
        create_run(config(run.seed, run.rounds, audit=run.audit), folder, home, lambda _: None)
        try:
            continue_run(folder, home, View(lambda _: None, turn), drills=liars)
        except BarnraiseError as error:
            stopped = f"round {len(closes) + 1}: {error.what}"
    losses = [close.val_loss for close in closes if close.val_loss is not None]
    rejected = [(close.round, item) for close in closes for item in close.rejected]
    out = [close.round for close in closes if set(liars) & set(close.quarantined)]
    return Result(
        run,
        losses[-1] / 1e6 if losses and not stopped else None,
        stopped,
        tuple(sorted({(round_, item.reason) for round_, item in rejected if item.member in liars})),
        out[0] if out else None,
        sum(item.earned for item in closes[-1].credits if item.member in liars) if closes else 0,
        sum(given),
        sum(item.member not in liars for _, item in rejected),
    )


def planned(seeds: tuple[int, ...]) -> list[Run]:
    """All runs of the table, the long ones first. One liar of five is tried with the first seed only."""
    runs = [Run(seed) for seed in seeds]
    pairs = [(seeds[0], 1), *((seed, 2) for seed in seeds)]
    runs += [Run(seed, "random", liars, audit=True) for seed, liars in pairs]
    for row in ROWS:
        rounds = SHORT if row.without in BACKED else ROUNDS
        audit = "audit" not in row.without
        runs += [
            Run(seed, row.kind, liars, row.without, rounds, audit)
            for seed, liars in pairs
            if rounds == ROUNDS or seed == seeds[0]
        ]
    kinds = dict.fromkeys(row.kind for row in ROWS if row.kind != ONCE)
    runs += [Run(seeds[0], kind, 1, (), SHORT, audit=True) for kind in kinds]
    return sorted(runs, key=lambda run: -run.rounds * (1 + run.audit))


def table(results: list[Result], seeds: tuple[int, ...]) -> dict[str, Any]:
    """The answer: settings, what honest runs reach, and one row for each kind and check taken away."""
    by_run = {result.run: result for result in results}
    honest = {seed: by_run[Run(seed)].val_loss for seed in seeds}

    def harm(run: Run) -> list[float] | None:
        found = [by_run.get(replace(run, seed=seed)) for seed in seeds]
        values = [(r.val_loss, honest[r.run.seed]) for r in found if r and r.val_loss is not None]
        pairs = [round(loss - base, 3) for loss, base in values if base is not None]
        return pairs if run.rounds == ROUNDS and pairs else None

    rows = []
    for row in ROWS:
        rounds = SHORT if row.without in BACKED else ROUNDS
        runs = [Run(seeds[0], row.kind, n, row.without, rounds, "audit" not in row.without) for n in (1, 2)]
        with_it = by_run.get(Run(seeds[0], row.kind, 1, (), SHORT, audit=True))
        rows.append(
            {
                **asdict(row),
                "with_check": asdict(with_it) if with_it else None,
                "harm_one": harm(runs[0]),
                "harm_two": harm(runs[1]),
                "without_one": asdict(by_run[runs[0]]),
                "without_two": asdict(by_run[runs[1]]),
            }
        )
    return {
        "seeds": list(seeds),
        "rounds": ROUNDS,
        "contributors": CONTRIBUTORS,
        "tokens_each": TOKENS,
        "honest": [honest[seed] for seed in seeds],
        "kept_harm_one": harm(Run(seeds[0], "random", 1, audit=True)),
        "kept_harm_two": harm(Run(seeds[0], "random", 2, audit=True)),
        "honest_rejected": sum(result.honest_rejected for result in results),
        "rows": rows,
    }


def show(answer: Mapping[str, Any]) -> None:
    """The table in Markdown."""
    loss = ", ".join(f"{value:.3f}" for value in answer["honest"])
    print(f"validation loss, all five honest, seeds {answer['seeds']}: {loss}")
    print(f"checks in place, one and two of five liars: {_nats(answer['kept_harm_one'])}, ", end="")
    print(f"{_nats(answer['kept_harm_two'])}; honest contributions rejected: {answer['honest_rejected']}")
    print("| kind | check | with it | without | harm, 1 of 5 | harm, 2 of 5 | credit, 1 of 5 |")
    print("|---|---|---|---|---|---|---|")
    for row in answer["rows"]:
        kept, gone = row["with_check"], row["without_one"]
        stopped = "-"
        if kept:
            reasons = ", ".join(f"{round_} {reason}" for round_, reason in kept["rejections"])
            stopped = f"{reasons}; out after {kept['quarantined']}"
        what = ", ".join(row["without"])
        if gone["stopped"]:
            what += f": run stops, {gone['stopped']}"
        elif gone["rejections"]:
            what += f": {gone['rejections'][0][1]} in {len(gone['rejections'])} rounds"
        share = gone["earned"] / (gone["run"]["rounds"] * STEPS * BATCH * CONTEXT)
        print(
            f"| {row['kind']} | {row['check']} | {stopped} | {what} | {_nats(row['harm_one'])} "
            f"| {_nats(row['harm_two'])} | {gone['earned']} ({share:.0%}) |"
        )


def _nats(values: list[float] | None) -> str:
    return "-" if not values else f"{statistics.mean(values):+.3f} ({', '.join(f'{v:+.3f}' for v in values)})"


def main() -> None:
    """Make all runs in two processes and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.adversaries", description="Cheats and checks.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds of the runs")
    options = parser.parse_args()
    runs = planned(tuple(options.seeds))
    results: list[Result] = []
    os.environ.update(environment("exact"))  # for the two processes, which import torch as they start
    with tempfile.TemporaryDirectory(dir=memory()) as corpus:
        prepare_data(config(runs[0].seed, ROUNDS, audit=False).data, Path(corpus), lambda _: None)
        with ProcessPoolExecutor(
            2, get_context("spawn"), initializer=prepare_numerics, initargs=("exact", THREADS)
        ) as pool:
            for result in pool.map(partial(do, corpus=Path(corpus)), runs):
                results.append(result)
                print(f"\r{len(results)} of {len(runs)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    answer = table(results, tuple(options.seeds))
    if options.json:
        print(json.dumps(answer))
    else:
        show(answer)


if __name__ == "__main__":
    main()
