"""Honest audits on emulated processors: work computed here, audited there to the bit.

    python -m bench.exact_audits [--write]

A real run in this process: five honest contributors and one that smuggles state, everybody audited in
every round. What the auditor was handed in each audit is kept in a file. Then the same auditor, made by the
shipped factory from its own folder, takes all of it once more in an interpreter under qemu-user (see
bench.exact_cpus) and signs its verdicts; its audits are the shipped ones, of two segments of four out of an
opened trace. Every verdict on honest work that is no pass is a false accusation. Those on the smuggler show
that an emulated auditor can fail work at all. Some minutes a processor; the start of torch is paid once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.audits import TINY
from bench.exact_cpus import elsewhere, emulated
from model.numerics import THREADS, environment, numerics_class, prepare
from pipeline.auditor import Auditor
from pipeline.config import Config, parse_config
from pipeline.folder import RunFolder, member_folder
from pipeline.roster import Basis, MemberSpec, make_member
from pipeline.run import View, continue_run, create_run
from verification.envelope import open_envelope

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "exact_audits.json"
HONEST, ROUNDS, STEPS, SEGMENTS = 5, 4, 4, 2
SMUGGLER = f"c{HONEST:02d}"
TASK = "audits.pickle"


@dataclass(frozen=True)
class Task:
    """One audit as it was asked for: whose work, the arguments, and the verdict that was given here."""

    member: str
    round: int
    arguments: tuple[Any, ...]
    verdict: bytes


def config(rounds: int) -> Config:
    """Everybody is looked at once in every round; one auditor alone gets nobody thrown out."""
    values: dict[str, Any] = {
        "run": {"rounds": rounds, "seed": 1},
        "data": {
            "source": "python-stdlib", "vocab_size": TINY["vocab_size"], "context": TINY["context"],
            "max_bytes": 1_500_000,
        },
        "model": {"rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02, **TINY},
        "train": {"batch": 4, "steps": [STEPS] * (HONEST + 1), "trace_every": 1},
        "compression": {"chunk": 1024, "k": 64},
        "audit": {"auditors": 1, "rate_ppm": 1_000_000, "segments": SEGMENTS, "probation_rounds": 0},
        "eval": {"every": rounds, "windows": 4},
    }  # fmt: skip
    return parse_config(values, "bench.exact_audits")


def make_tasks(place: Path, rounds: int) -> None:
    """The run; its audits, in `place`, and all else that `repeat` takes."""
    settings, folder, home = config(rounds), RunFolder(place / "run"), place / "home"
    manifest = create_run(settings, folder, home, _quiet, {SMUGGLER: "state-smuggler"})
    tasks: list[Task] = []
    audit = Auditor.audit

    def noted(self: Auditor, *arguments: Any) -> bytes:
        verdict = audit(self, *arguments)
        open_ = self.opened(arguments[0])
        tasks.append(Task(open_.entry(arguments[1]).member, open_.round, arguments, verdict))
        return verdict

    with patch.object(Auditor, "audit", noted):
        continue_run(folder, home, View(_quiet, lambda *_: None))
    basis = Basis(settings, folder.manifest(), home, member_folder(manifest), folder.path, {})
    (place / TASK).write_bytes(pickle.dumps((basis.spec("a00", "auditor", "op-a00"), tasks)))


def _quiet(text: str) -> None:
    del text


def repeat(place: Path) -> list[dict[str, Any]]:
    """All audits of `place` once more, in this process; what came of each."""
    spec: MemberSpec
    tasks: list[Task]
    spec, tasks = pickle.loads((place / TASK).read_bytes())
    auditor = make_member(spec)
    assert isinstance(auditor, Auditor)
    rows = []
    for task in tasks:
        begun = time.monotonic()
        envelope = auditor.audit(*task.arguments)
        verdict = open_envelope(envelope).peek()
        rows.append(
            {
                "member": task.member, "round": task.round, "outcome": verdict["outcome"],
                "differs": verdict["differs"], "same_verdict": envelope == task.verdict,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def summary(processor: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One processor's audits: how many of honest work, how many accused it, and what became of the others."""
    honest = [row for row in rows if row["member"] != SMUGGLER]
    false = [row for row in rows if row["member"] == SMUGGLER]
    return {
        "processor": processor,
        "honest_audits": len(honest),
        "accused": sum(row["outcome"] != "pass" for row in honest),
        "false_audits": len(false),
        "found": sum(row["outcome"] == "fail" for row in false),
        "same_verdicts": sum(row["same_verdict"] for row in rows),
        "audit_seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def none_seen_bound(tries: int) -> float:
    """The rate above which none in `tries` would be seen in less than 5 % of cases ("rule of three": 3/n)."""
    return 1.0 - math.exp(math.log(0.05) / tries)


def measure(rounds: int, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The run here, then its audits again on this machine in another process, and on each emulated one.

    `keep` is given what is known after each of them.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own: members' folders stay locked until it ends.
        elsewhere([], "bench.exact_audits", "--make", name, "--rounds", str(rounds))
        for processor, command in [("this machine, another process", []), *emulated()]:
            text = elsewhere(command, "bench.exact_audits", "--repeat", name)
            rows.append(summary(processor, json.loads(text)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            keep(answer_of(rows))
    return answer_of(rows)


def answer_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All that is kept; `rows` begin with this machine's own."""
    away = rows[1:]
    audits = sum(row["honest_audits"] for row in away)
    contributions = rows[0]["honest_audits"]
    return {
        "command": "python -m bench.exact_audits --write",
        "class": numerics_class("exact", THREADS),
        "contributions": contributions,
        "steps": STEPS, "segments": SEGMENTS,
        "rows": rows,
        "emulated_audits": audits,
        "emulated_accused": sum(row["accused"] for row in away),
        "bound_by_audits": none_seen_bound(audits) if audits else None,
        "bound_by_contributions": none_seen_bound(contributions) if away else None,
    }  # fmt: skip


def table(answer: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| audited on | honest audits | accused | audits of the smuggler | found | equal verdicts |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {row['processor']} | {row['honest_audits']} | {row['accused']} | {row['false_audits']} "
        f"| {row['found']} | {row['same_verdicts']} of {row['honest_audits'] + row['false_audits']} |"
        for row in answer["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep the answer when asked; exit 1 when honest work was accused anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the answer in {OUTPUT.name}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{HONEST} honest contributions each")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in environment("exact").items()):
        os.environ.update(environment("exact"))
        os.execv(sys.executable, [sys.executable, "-m", "bench.exact_audits", *sys.argv[1:]])
    prepare("exact", THREADS)
    if options.make:
        make_tasks(options.make, options.rounds)
        return
    if options.repeat:
        print(json.dumps(repeat(options.repeat)))
        return

    def keep(answer: dict[str, Any]) -> None:
        if options.write:
            OUTPUT.write_text(json.dumps(answer, indent=1) + "\n")

    answer = measure(options.rounds, keep)
    print(table(answer))
    sys.exit(any(row["accused"] or row["found"] < row["false_audits"] for row in answer["rows"]))


if __name__ == "__main__":
    # Under its own name: what is pickled here is read there by a process that runs this module, too.
    from bench import exact_audits

    exact_audits.main()
