"""What audits by tolerance find of the cheats of bench/audits.py, from another numerics class.

    python -m bench.tolerant_audits [--write]

Owns the measurement and docs/benchmarks/tolerant_audits.json. The forger works under the exact profile, in
this process; the auditor under the native one, in another. Limits between the two are fitted by the shipped
calibration on honest steps of the same model. By tolerance a step is judged by itself, between two served
points: each step of each forged contribution is audited once, by the shipped code, and an audit of several
finds what any of them does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

from bench.audits import DRAWS, LOOKED, STEPS, TINY, case_at, case_of, config, wilson
from bench.audits_forger import CHEATS, Cheat, forge
from model.numerics import THREADS, environment, numerics_class, prepare
from pipeline.calibrate_numbers import fit
from pipeline.calibrate_points import Plan
from pipeline.calibrate_workers import EXACT, NATIVE, Crew
from pipeline.segment_audit import Case
from pipeline.step_audit import recompute
from pipeline.trace import read_leaves, read_trace
from verification.encoding import from_json, to_json
from verification.judge import Audit, judged
from verification.lottery import draw_segments
from verification.records import Opening
from verification.tolerance import Tolerances

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "tolerant_audits.json"
CALIBRATION = 200  # honest steps that the limits are fitted on
RATE = 1e-6  # of false alarms in an audit, as fitted
HONEST = Cheat("honest", 0)
Item = dict[str, Any]


def limits() -> Item:
    """An item of `audit.tolerance` between the two profiles of this machine."""
    plan = Plan.of(config(STEPS, TINY, 4), CALIBRATION)
    found = []
    with Crew((EXACT, NATIVE), plan) as crew:
        classes = crew.workers[0].numerics_class, crew.workers[1].numerics_class
        start = plan.beginning()
        for index in range(CALIBRATION):
            ends = crew.step(start, index)
            found.append(crew.deviation(start, ends[0], ends[1], index))
            start = ends[index % 2].point
    return {"classes": list(classes), **vars(fit(classes, found, RATE).thresholds)}


def hand_in(case: Case, cheat: Cheat, folder: Path) -> None:
    """What a cheat hands in: claims, and its trace with all leaves opened."""
    forged = forge(case, cheat)
    folder.mkdir()
    (folder / "opening").write_text(json.dumps(to_json(forged.opening)))
    (folder / "trace").write_bytes(forged.serve(range(case.count)))


def audit(case: Case, folder: Path, tolerances: Tolerances, here: str) -> list[list[str]]:
    """By segment: what an audit of it alone says is wrong, nothing where it passes."""
    opening = from_json(Opening, json.loads((folder / "opening").read_text()))
    steps, whole = case.entry.steps, range(case.count)
    everything = read_leaves(case.job, opening, steps, whole, (folder / "trace").read_bytes())
    found = []
    for segment in whole:
        one = Audit((segment,), case.entry.numerics_class, True, tolerances)
        served = everything.only(one.opened_leaves(case.count)).to_bytes()
        opened = read_trace(case.job, opening, steps, one, served)
        found.append(list(judged(one, here, opening, recompute(case, one, opened, {}))))
    return found


def audit_all(folder: Path) -> None:
    """In a process of the native profile: all that was handed in."""
    prepare("native", THREADS)
    here = numerics_class("native", THREADS)
    case = case_at(folder)
    tolerances = json.loads((folder / "tolerance").read_text())
    for each in sorted((folder / "work").iterdir()):
        (each / "found").write_text(json.dumps(audit(case, each, tolerances, here)))


def measure(folder: Path) -> dict[str, Any]:
    """Forge, audit, and draw."""
    item = limits()
    case = case_of(folder, config(STEPS, TINY, 4))
    (folder / "tolerance").write_text(json.dumps([item]))
    (folder / "work").mkdir()
    cheats = (HONEST, *CHEATS)
    for index, cheat in enumerate(cheats):
        hand_in(case, cheat, folder / "work" / f"{index:02d}")
    command = [sys.executable, "-m", "bench.tolerant_audits", "--audit", str(folder)]
    free = {name: value for name, value in os.environ.items() if name not in environment("exact")}
    subprocess.run(command, check=True, env=free)
    rows = []
    for index, cheat in enumerate(cheats):
        found = json.loads((folder / "work" / f"{index:02d}" / "found").read_text())
        rows += [_row(cheat, found, looked) for looked in LOOKED]
    return {"tolerance": item, "steps": STEPS, "table": rows}


def _row(cheat: Cheat, found: Sequence[Sequence[str]], looked: int) -> dict[str, Any]:
    seeds = (f"sha256:{index:064x}" for index in range(DRAWS))
    hits = sum(any(found[s] for s in draw_segments(seed, 0, looked, len(found))) for seed in seeds)
    power = 1.0 if cheat.after else 1 - comb(STEPS - cheat.false, looked) / comb(STEPS, looked)
    low, high = wilson(hits, DRAWS)
    seen = sum(bool(each) for each in found)
    what = {"cheat": cheat.name, "false": cheat.false, "after": cheat.after, "seen": seen}
    return {**what, "looked": looked, "draws": DRAWS, "found": hits, "low": low, "high": high, "power": power}


def table(answer: dict[str, Any]) -> str:
    """The table of docs/benchmarks/audits.md."""
    head = (
        "cheat",
        "false segments",
        "seen by tolerance",
        "looked at",
        "found",
        "share, 95 % interval",
        "expected",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in answer["table"]:
        share = f"{row['found'] / row['draws']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        false = "none, after the steps" if row["after"] else row["false"]
        looked, found = f"{row['looked']} of {STEPS}", f"{row['found']} of {row['draws']}"
        cells = row["cheat"], false, row["seen"], looked, found, share, f"{row['power']:.3f}"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; with --write, keep the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--audit", type=Path, help="the part of the other process")
    options = parser.parse_args()
    if options.audit:
        audit_all(options.audit)
        return
    if any(os.environ.get(name) != value for name, value in environment("exact").items()):
        os.environ.update(environment("exact"))
        os.execv(sys.executable, [sys.executable, "-m", "bench.tolerant_audits", *sys.argv[1:]])
    prepare("exact", THREADS)
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(Path(folder))
    print(table(answer))
    if options.write:
        OUTPUT.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
