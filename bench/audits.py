"""What an audit of some segments finds, and what it costs, measured with the shipped audit.

    python -m bench.audits [--write]

Detection: a forger that keeps its trace consistent cheats in one of several ways; draws of the lottery
say which segments are looked into, and the shipped audit looks. Beside each share that was found stands the
power that follows from the number of false segments. Cost: processor time of an audit as a share of the
contribution's, both in this process, in turn. `--write` keeps the answer in docs/benchmarks/audits.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import comb, sqrt
from pathlib import Path
from typing import Any

from bench.audits_forger import CHEATS, Cheat, Forged, forge
from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest
from model.numerics import THREADS, environment, numerics_class, prepare
from pipeline.config import Config, parse_config
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run, create_run
from pipeline.segment_audit import Case, audit_segments
from pipeline.trace import read_trace
from pipeline.work import Job, do_work
from verification.fsck import check_run
from verification.judge import Audit, differences
from verification.lottery import PPM, draw_segments, uniform
from verification.records import Manifest, RoundOpen
from verification.sealing import parse_predicate
from verification.segments import opened_leaves

STEPS, DRAWS, REPEATS = 20, 400, 7
LOOKED = (1, 2, 5, STEPS)
HORIZONS = (5, 10, 20, 30, 50)
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "audits.json"
TINY = {
    "vocab_size": 512, "context": 32, "d_model": 48, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96,
}  # fmt: skip
DEMO = {
    "vocab_size": 2048, "context": 128, "d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
    "d_ff": 352,
}  # fmt: skip


def config(steps: int, size: dict[str, int], batch: int) -> Config:
    """One contributor of `steps` local steps, with a leaf after each."""
    data = {"source": "python-stdlib", "vocab_size": size["vocab_size"], "context": size["context"]}
    values: dict[str, Any] = {
        "run": {"rounds": 1, "seed": 1},
        "data": {**data, "max_bytes": 1_500_000},
        "model": {"rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02, **size},
        "train": {"batch": batch, "steps": [steps], "trace_every": 1},
        "audit": {"auditors": 1, "rate_ppm": 0, "segments": 1, "probation_rounds": 0},
    }
    return parse_config(values, "bench.audits")


def case_of(folder: Path, settings: Config) -> Case:
    """The first round of a run that was really made, up to what its only contributor is asked to do."""
    run = RunFolder(folder / "run")
    create_run(settings, run, folder / "home", _quiet, None, None, None)
    continue_run(run, folder / "home", View(_quiet, lambda *_: None))
    return case_at(folder)


def case_at(folder: Path) -> Case:
    """The same, of a run that was made in `folder` before."""
    run = RunFolder(folder / "run")
    findings = check_run(run.path)
    manifest = parse_predicate(Manifest, findings.manifest)
    job = Job.of(manifest)
    open_ = parse_predicate(RoundOpen, findings.turns[0].open)
    data = Dataset(run.data, DatasetManifest.from_json(manifest.dataset))
    weights = job.weights(run.checkpoint(0), open_.base.weights)
    start = job.state(job.zero_state, manifest.zero_state)
    return Case(job, data, open_, open_.roster[0], weights, start)


def _quiet(text: str) -> None:
    del text


@dataclass(frozen=True)
class Found:
    """How often audits of `looked` segments found a cheat, and what follows from its `false` segments."""

    cheat: str
    false: int
    looked: int
    draws: int
    found: int
    power: float

    def to_json(self) -> dict[str, Any]:
        """With the 95 % interval of the share (Wilson 1927)."""
        low, high = wilson(self.found, self.draws)
        return {**vars(self), "share": self.found / self.draws, "low": low, "high": high}


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 22, 1927)."""
    z, share = 1.959964, hits / tries
    middle = (share + z * z / (2 * tries)) / (1 + z * z / tries)
    half = z / (1 + z * z / tries) * sqrt(share * (1 - share) / tries + z * z / (4 * tries * tries))
    return max(0.0, middle - half), min(1.0, middle + half)


class Bench:
    """One contribution, forged in many ways, and audits of it. An audit of the same segments is done once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._verdicts: dict[tuple[str, tuple[int, ...]], bool] = {}
        self._forged: dict[str, Forged] = {}

    def forged(self, cheat: Cheat) -> Forged:
        """What the forger hands in."""
        if cheat.name not in self._forged:
            self._forged[cheat.name] = forge(self.case, cheat)
        return self._forged[cheat.name]

    def fails(self, cheat: Cheat, segments: tuple[int, ...]) -> bool:
        """Whether an audit of these segments finds anything."""
        key = cheat.name, segments
        if key not in self._verdicts:
            self._verdicts[key] = bool(self._look(self.forged(cheat), segments))
        return self._verdicts[key]

    def _look(self, forged: Forged, segments: tuple[int, ...]) -> Collection[str]:
        case, opening = self.case, forged.opening
        opened = None
        if len(segments) < case.count:
            served = forged.serve(opened_leaves(segments, case.count))
            audit = Audit(segments, case.entry.numerics_class)
            opened = read_trace(case.job, opening, case.entry.steps, audit, served)
        return differences(opening, audit_segments(case, segments, opened))

    def detection(self, cheat: Cheat, looked: int, draws: int) -> Found:
        """Audits of `looked` segments, drawn by the lottery with a seed for each."""
        count = self.case.count
        found = 0
        for index in range(draws):
            seed = f"sha256:{index:064x}"
            found += self.fails(cheat, draw_segments(seed, 0, looked, count))
        power = 1.0 if cheat.after else 1 - comb(count - cheat.false, looked) / comb(count, looked)
        return Found(cheat.name, cheat.false, looked, draws, found, power)

    def rounds_until(self, cheat: Cheat, looked: int, rate_ppm: int, tries: int, most: int) -> list[float]:
        """Share of forgers found after 1 … most rounds of the same cheat, when `rate_ppm` are drawn."""
        caught = [0] * (most + 1)
        for forger in range(tries):
            for turn in range(most):
                seed = f"sha256:{forger * most + turn:064x}"
                drawn = uniform(seed, "audit/0", PPM) < rate_ppm
                if drawn and self.fails(cheat, draw_segments(seed, 0, looked, self.case.count)):
                    caught[turn + 1] += 1
                    break
        return [sum(caught[: n + 1]) / tries for n in range(1, most + 1)]


def honest_alarms(bench: Bench, draws: int) -> int:
    """Audits of honest work, one segment each, that find something."""
    honest = Cheat("honest", 0)
    return sum(
        bench.fails(honest, draw_segments(f"sha256:{i:064x}", 0, 1, bench.case.count)) for i in range(draws)
    )


def detection(folder: Path) -> dict[str, Any]:
    """The table of shares found, and the curves over rounds."""
    bench = Bench(case_of(folder, config(STEPS, TINY, 4)))
    table = [bench.detection(cheat, looked, DRAWS).to_json() for cheat in CHEATS for looked in LOOKED]
    curves = []
    one = next(cheat for cheat in CHEATS if cheat.false == 1)
    for rate_ppm, looked in ((1_000_000, 1), (200_000, STEPS), (500_000, 2)):
        share = bench.rounds_until(one, looked, rate_ppm, DRAWS, 60)
        pd = rate_ppm / PPM * looked / STEPS
        curves.append(
            {
                "cheat": one.name, "rate_ppm": rate_ppm, "looked": looked, "share": share,
                "expected": [1 - (1 - pd) ** n for n in range(1, 61)],
            }
        )  # fmt: skip
    return {"steps": STEPS, "table": table, "curves": curves, "honest_alarms": honest_alarms(bench, DRAWS)}


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def cost(folder: Path, steps: int) -> dict[str, Any]:
    """Processor time of audits of one contribution of the demo's model, against its own, interleaved."""
    case = case_of(folder, config(steps, DEMO, 4))
    bench = Bench(case)
    forged = bench.forged(Cheat("honest", 0))
    whole, one, plain = [], [], []
    for index in range(REPEATS):
        segments = draw_segments(f"sha256:{index:064x}", 0, 1, case.count)
        served = forged.serve(opened_leaves(segments, case.count))
        whole.append(_seconds(lambda: _contribute(case, traced=True)))
        plain.append(_seconds(lambda: _contribute(case, traced=False)))
        one.append(_seconds(lambda segments=segments, served=served: _audit(case, forged, segments, served)))
    bare = statistics.median(plain)
    return {
        "steps": steps,
        "audit_of_one": statistics.median(one) / statistics.median(whole),
        "tracing": statistics.median(whole) / bare - 1,
        "served_bytes": len(forged.serve(opened_leaves((steps // 2,), case.count))),
        "weights_bytes": 4 * case.job.codec.length,
        "step_ms": 1000 * bare / steps,
    }


def _contribute(case: Case, *, traced: bool) -> None:
    kept: list[Any] = []
    job = case.job
    if not traced:
        inner = job.config.model_copy(
            update={"train": job.config.train.model_copy(update={"trace_every": 10**6})}
        )
        job = replace(job, config=inner)
    keep = (lambda index, leaf: kept.append(leaf)) if traced else None
    do_work(job, case.data, case.open, case.entry, case.weights, case.start, keep)


def _audit(case: Case, forged: Forged, segments: tuple[int, ...], served: bytes) -> None:
    audit = Audit(segments, case.entry.numerics_class)
    opened = read_trace(case.job, forged.opening, case.entry.steps, audit, served)
    if differences(forged.opening, audit_segments(case, segments, opened)):
        raise AssertionError("an audit of honest work found something")


def main() -> None:
    """Measure, print, and keep the answer when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the answer in docs/benchmarks/audits.json")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in environment("exact").items()):
        os.environ.update(environment("exact"))
        os.execv(sys.executable, [sys.executable, "-m", "bench.audits", *sys.argv[1:]])
    prepare("exact", THREADS)
    with tempfile.TemporaryDirectory() as name:
        answer = {"class": numerics_class("exact", THREADS), "detection": detection(Path(name) / "detection")}
        answer["cost"] = [cost(Path(name) / f"cost-{steps}", steps) for steps in HORIZONS]
    text = json.dumps(answer, indent=1)
    if options.write:
        OUTPUT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
