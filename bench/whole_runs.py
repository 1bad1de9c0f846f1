"""Whole runs with somebody who lies in every round: how soon it is found, against what the lottery promises.

    python -m bench.whole_runs [--write] [--runs N]

Coordinator, members, lottery and audits as in `barnraise train`, all in this process, with a tiny model and
fresh keys and links in every run. Contributors: beside two honest ones each of four cheats in b of its n
segments; a share p of contributions is looked at in k segments, so that each cheat should be found within N
rounds with probability 1 - (1 - p d)^N, d = 1 - C(n-b,k)/C(n,k). Auditors: an accuser should be overruled for
(1 + s)/3 of the work that is drawn, where passes get a second look with probability s; a rubber stamp for s
of its first looks. A run ends when every liar is found. `--write` keeps docs/benchmarks/whole_runs.json after
every sweep through the points; bench.whole_runs_plot makes the tables and the picture of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from bench.audits import wilson
from bench.whole_runs_people import FRIEND, LIAR, Accuser, known, lying, skipping, stamp_and_friend
from data_prep.config import DataConfig
from data_prep.manifest import DatasetManifest
from data_prep.prepare import prepare as prepare_data
from model.numerics import THREADS, environment, numerics_class, prepare
from pipeline.auditor import Auditor
from pipeline.config import Config, parse_config
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run, create_run
from verification.records import RoundClose
from verification.state import Turn

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "whole_runs.json"
RUNS, ROUNDS, STEPS, AUDITORS = 40, 8, 20, 3
MILLION, SECOND_PPM = 1_000_000, 250_000
# Left-out steps by kind; None where the lie comes after the steps, so that every audit finds it.
KINDS = {"lazy-1": 1, "lazy-5": 5, "lazy-20": 20, "state-smuggler": None}
POLICIES = ((500_000, 2), (250_000, 1))
ACCUSED_PPM = 250_000
FRIENDS = 4


class _OverError(Exception):
    """The run has shown what it was made for."""


@dataclass
class Tally:
    """What became of the honest, over all runs."""

    contributions: int = 0  # by honest contributors, in closed turns
    refused: int = 0  # of these, not accepted, for whatever reason
    accused: int = 0  # of these, settled as a fault
    audits: int = 0  # of honest work, by honest auditors
    failed: int = 0  # of these, with a fail
    verdicts: int = 0  # by honest auditors
    overruled: int = 0  # of these

    def take(self, turn: Turn, close: RoundClose, liars: set[str]) -> None:
        """Count a closed turn."""
        members = {entry.slot: entry.member for entry in turn.open.roster}
        honest = {slot for slot, member in members.items() if member not in liars}
        self.contributions += len(honest)
        self.refused += sum(item.slot in honest for item in close.rejected)
        self.accused += sum(item.slot in honest and item.fault for item in close.rejected)
        mine = [verdict for verdict in turn.verdicts.values() if verdict.auditor not in liars]
        self.verdicts += len(mine)
        self.overruled += sum(item.auditor not in liars for item in close.overruled)
        about = [verdict for verdict in mine if verdict.slot in honest]
        self.audits += len(about)
        self.failed += sum(verdict.outcome == "fail" for verdict in about)


@dataclass(frozen=True)
class Place:
    """Scratch: a folder for runs, the prepared data that each gets a copy of, and the text they are of."""

    folder: Path
    data: Path
    text: Path
    manifest: DatasetManifest

    @classmethod
    def of(cls, folder: Path) -> Place:
        """Forty documents of a made-up language, prepared once."""
        dice, text = Random(7), folder / "text"
        text.mkdir()
        words = ["".join(dice.choice("abcdefghij") for _ in range(dice.randint(2, 6))) for _ in range(60)]
        for index in range(40):
            (text / f"{index:02d}.txt").write_text(" ".join(dice.choice(words) for _ in range(300)))
        manifest = prepare_data(config(text, [1], {}).data, folder / "data", _quiet)
        return cls(folder, folder / "data", text, manifest)

    def copied(self, settings: DataConfig, target: Path, tell: Any) -> DatasetManifest:
        """As data_prep's prepare: the data are the same in all runs."""
        del settings, tell
        shutil.copytree(self.data, target)
        return self.manifest


def _quiet(text: str) -> None:
    del text


def config(text: Path, steps: list[int], audit: dict[str, int]) -> Config:
    """A contributor for each of `steps`, with a leaf after every step."""
    values: dict[str, Any] = {
        "run": {"rounds": ROUNDS, "seed": 1},
        "data": {"source": f"file:{text}", "vocab_size": 300, "context": 16, "holdout_ppm": 200_000},
        "model": {
            "vocab_size": 300, "context": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
            "d_ff": 32, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
        },
        "train": {"steps": steps, "batch": 2, "trace_every": 1},
        "compression": {"chunk": 1024, "k": 64},
        "state": {"every": 1000},
        "checkpoint": {"every": ROUNDS},
        "eval": {"every": ROUNDS, "windows": 1},
        "audit": {"auditors": AUDITORS, "probation_rounds": 0, "second_look_ppm": SECOND_PPM, **audit},
    }  # fmt: skip
    return parse_config(values, "bench.whole_runs")


def run(
    place: Place, settings: Config, drills: dict[str, str], seen: Callable[[Turn, RoundClose], bool]
) -> None:
    """A run of the shipped coordinator, until `seen` says of a closed turn that it is enough."""

    def turn(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        del seconds
        assert coordinator.last_turn
        if seen(coordinator.last_turn, close):
            raise _OverError

    with tempfile.TemporaryDirectory(dir=place.folder) as name:
        folder, home = RunFolder(Path(name) / "run"), Path(name) / "home"
        with patch("pipeline.run.prepare_data", place.copied):
            create_run(settings, folder, home, _quiet, drills)
        with suppress(_OverError):
            continue_run(folder, home, View(_quiet, turn))


@dataclass
class Point:
    """One kind of cheat under one policy: in which round each run found it, None when in none."""

    kind: str
    rate_ppm: int
    looked: int
    found: list[int | None] = field(default_factory=list)
    drawn: list[int | None] = field(default_factory=list)  # the first round whose draw hits a false segment

    @property
    def power(self) -> float:
        """d: the chance that an audit looks at a false segment."""
        false = KINDS[self.kind]
        return 1.0 if false is None else 1 - comb(STEPS - false, self.looked) / comb(STEPS, self.looked)

    def begin(self) -> None:
        """Another run."""
        self.found.append(None)
        self.drawn.append(None)

    def take(self, turn: Turn, close: RoundClose, cheat: str) -> None:
        """What a closed turn shows of a cheat that was not found before it."""
        (slot,) = (entry.slot for entry in turn.open.roster if entry.member == cheat)
        looked, false = turn.drawn_segments(slot), KINDS[self.kind]
        if self.drawn[-1] is None and any(false is None or s >= STEPS - false for s in looked):
            self.drawn[-1] = close.round
        if any(item.slot == slot and item.fault for item in close.rejected):
            self.found[-1] = close.round

    def to_json(self) -> dict[str, Any]:
        """With the share found within each number of rounds, its interval, and what is expected."""
        caught = self.rate_ppm / MILLION * self.power
        return {
            "kind": self.kind, "false": KINDS[self.kind], "of": STEPS,
            "rate_ppm": self.rate_ppm, "looked": self.looked, "caught_a_round": caught,
            **within(self.found, caught),
            "found_as_drawn": sum(a == b for a, b in zip(self.found, self.drawn, strict=True)),
        }  # fmt: skip


def cheated_run(place: Place, points: list[Point], tally: Tally) -> None:
    """One run under one policy: two honest contributors beside a cheat of each point."""
    cheats = {f"c{slot:02d}": point for slot, point in enumerate(points, start=2)}
    for point in points:
        point.begin()

    def seen(turn: Turn, close: RoundClose) -> bool:
        tally.take(turn, close, set(cheats))
        left = {name: point for name, point in cheats.items() if point.found[-1] is None}
        for name, point in left.items():
            point.take(turn, close, name)
        return all(point.found[-1] for point in points)

    audit = {"rate_ppm": points[0].rate_ppm, "segments": points[0].looked}
    settings = config(place.text, [2, 2, *[STEPS] * len(points)], audit)
    with known({kind: skipping(left_out) for kind, left_out in KINDS.items() if left_out}):
        run(place, settings, {name: point.kind for name, point in cheats.items()}, seen)


def within(found: list[int | None], caught: float) -> dict[str, Any]:
    """How many of the runs found it within 1 to ROUNDS rounds, beside 1 - (1 - caught)^N."""
    counts = [sum(at is not None and at <= n for at in found) for n in range(1, ROUNDS + 1)]
    return {
        "runs": len(found),
        "found": counts,
        "intervals": [wilson(count, len(found)) for count in counts],
        "expected": [1 - (1 - caught) ** n for n in range(1, ROUNDS + 1)],
    }


@dataclass
class Liars:
    """Runs with an auditor that lies: when it is overruled, and for how many of its occasions."""

    name: str
    found: list[int | None] = field(default_factory=list)
    rounds: int = 0
    occasions: int = 0  # drawn work for the accuser; stamped first looks for the stamp
    overruled: int = 0  # of these

    def one(self, place: Place, tally: Tally) -> None:
        """One run; ends when the liar is overruled, or when no friend is left that it could stamp."""
        self.found.append(None)
        stamping = self.name == "stamp"
        friends = [f"c{slot:02d}" for slot in range(FRIENDS)] if stamping else []
        stamp, friend = stamp_and_friend()
        liars = {LIAR, *friends}

        def seen(turn: Turn, close: RoundClose) -> bool:
            tally.take(turn, close, liars)
            members = {entry.slot: entry.member for entry in turn.open.roster}
            drawn = {item.slot for item in turn.draw.drawn} if turn.draw else set()
            if stamping:
                first = {v.slot for (_, look), v in turn.verdicts.items() if look == 1 and v.auditor == LIAR}
                drawn &= {slot for slot in first if members[slot] in friends}
            gone = {item.slot for item in close.overruled if item.auditor == LIAR}
            self.rounds += 1
            self.occasions += len(drawn)
            self.overruled += len(drawn & gone)
            if gone:
                self.found[-1] = close.round
            caught = {members[item.slot] for item in close.rejected if item.fault}
            friends[:] = [name for name in friends if name not in caught]
            return bool(gone) or (stamping and not friends)

        # The accuser's work is cheap and seldom drawn; the stamp's friends are drawn in every round.
        audit = {"rate_ppm": MILLION, "segments": 0} if stamping else {"rate_ppm": ACCUSED_PPM, "segments": 1}
        steps = [2] * (FRIENDS + 2) if stamping else [2] * 3
        liar: type[Auditor] = stamp if stamping else Accuser
        with lying(liar), known({FRIEND: friend}) if stamping else nullcontext():
            run(place, config(place.text, steps, audit), dict.fromkeys(list(friends), FRIEND), seen)

    def to_json(self) -> dict[str, Any]:
        """With the share of occasions, its interval, and for the accuser the share of runs by round."""
        s = SECOND_PPM / MILLION
        expected = s if self.name == "stamp" else (1 + s) / AUDITORS
        told = {
            "name": self.name, "runs": len(self.found), "rounds": self.rounds, "second_look_ppm": SECOND_PPM,
            "occasions": self.occasions, "overruled": self.overruled, "expected": expected,
            "interval": wilson(self.overruled, self.occasions) if self.occasions else None,
            "runs_overruled": sum(at is not None for at in self.found),
        }  # fmt: skip
        if self.name == "accuser":
            a_round = 1 - (1 - ACCUSED_PPM / MILLION * expected) ** 3
            told |= {"rate_ppm": ACCUSED_PPM, "by_round": within(self.found, a_round)}
        return told


def measure(runs: int, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All points, one run each in turn, `runs` times; `keep` is given what is known after each sweep."""
    policies = [[Point(kind, rate, looked) for kind in KINDS] for rate, looked in POLICIES]
    liars = [Liars("accuser"), Liars("stamp")]
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        place = Place.of(Path(name))
        for index in range(runs):
            for points in policies:
                cheated_run(place, points, tally)
            for liar in liars:
                liar.one(place, tally)
            answer = {
                "command": "python -m bench.whole_runs --write",
                "class": numerics_class("exact", THREADS),
                "runs": index + 1, "rounds": ROUNDS, "auditors": AUDITORS,
                "points": [point.to_json() for points in policies for point in points],
                "liars": [liar.to_json() for liar in liars],
                "honest": vars(tally).copy(),
            }  # fmt: skip
            keep(answer)
            print(f"{index + 1} of {runs} runs of each point", file=sys.stderr, flush=True)
    return answer


def main() -> None:
    """Measure, print, and keep the answer when asked; exit 1 when anybody honest was accused or overruled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the answer in {OUTPUT.name}")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each point")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in environment("exact").items()):
        os.environ.update(environment("exact"))
        os.execv(sys.executable, [sys.executable, "-m", "bench.whole_runs", *sys.argv[1:]])
    prepare("exact", THREADS)
    # Each member's folder stays locked until this process ends, a file each.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def keep(answer: dict[str, Any]) -> None:
        if options.write:
            OUTPUT.write_text(json.dumps(answer, indent=1) + "\n")

    answer = measure(max(1, options.runs), keep)
    print(json.dumps(answer, indent=1))
    honest = answer["honest"]
    sys.exit(any(honest[name] for name in ("refused", "accused", "failed", "overruled")))


if __name__ == "__main__":
    main()
