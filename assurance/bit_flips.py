"""Every single bit of a run folder flipped: `verify` must refuse each version.

Owns the smallest run there is, its copies and the flips. Uses the project's own verifier for every flip:
`verification.fsck.check_run` (level 1), and `pipeline.verify` (level 2) for what only that reads. With `full`
a level 1 check ends at the first failure that it notes, since none is ever taken back; but for every
WHOLE-th flip, which is checked whole both ways. Does not own damage of other kinds, which
tests/pipeline/test_flips.py has.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from assurance.figures import Figure, main
from verification.errors import UsageError
from verification.fsck import check_run
from verification.fsck_findings import Report

VIEWS = ("metrics.jsonl", "report.html", "wandb/*")
TABLE = "contributions.parquet"
WORKERS = 2
WHOLE = 50
_MOST_ROWS = 1000
_CHUNK = 500
_STEPS = {
    0: "every bit",
    1: "one bit of every byte, its place moving on",
    5: "one bit of every fifth byte, its place moving on",
}
_COMMAND = "python -m assurance.bit_flips"
# What keeps a log small: one of each, one step, a vocabulary hardly larger than the 256 bytes.
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "run": {"rounds": 1},
    "train": {"steps": [1], "batch": 1, "trace_every": 1},
    "audit": {"auditors": 1, "second_look_ppm": 0},
    "eval": {"every": 5, "windows": 1},
    "model": {"vocab_size": 260, "context": 4, "d_model": 4, "n_heads": 1, "n_kv_heads": 1, "d_ff": 4},
    "state": {"every": 1},
}


@dataclass(frozen=True)
class Group:
    """Files that are flipped alike.

    `level` is the lowest that reads them. `step` 0 flips every bit, else one bit of every `step`-th byte.
    `sample` is how many of these flips a quick measurement makes.
    """

    name: str
    pattern: str
    level: int
    step: int
    sample: int


SMALLEST = (
    Group("the log", "log/*", 1, 0, 300),
    Group("the manifest", "manifest.json", 1, 0, 80),
    Group("payloads", "payloads/*", 1, 0, 40),
    Group("data", "data/*", 1, 1, 40),
    Group("checkpoints", "checkpoints/*", 2, 1, 60),
    Group("the table", TABLE, 2, 1, 60),
)
JUDGED = (
    Group("hidden states", "state/*", 1, 5, 60),
    Group("evidence", "evidence/*", 1, 5, 60),
)
WITNESSED = (Group("a cosigned checkpoint", "log/checkpoint", 1, 0, 60),)


@dataclass
class Outcome:
    """What became of flips. `accepted` and `raised` name file and bit (bit 0 is the lowest of byte 0).

    `same`: flips of the table that change none of its values, which nothing can refuse.
    """

    tried: int = 0
    accepted: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    same: int = 0
    usage: int = 0
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Count another outcome into this one."""
        self.tried += other.tried
        self.accepted += other.accepted
        self.raised += other.raised
        self.same += other.same
        self.usage += other.usage


def smallest_run(folder: Path) -> Path:
    """Train the smallest run in the new `folder`: one contributor, one auditor, one round."""
    return _train(folder, _SMALL, {})


def judged_run(folder: Path) -> Path:
    """Two rounds with two contributors, one of whom does not do the work: hidden states and evidence."""
    sections = {**_SMALL, "run": {"rounds": 2}, "train": {**_SMALL["train"], "steps": [2, 1]}}
    return _train(folder, sections, {"c01": "lazy"})


def witnessed_run(folder: Path) -> Path:
    """The smallest run with three witnesses, whose cosignatures stand under its checkpoints."""
    return _train(folder, _SMALL, {}, witnessed=True)


def _train(
    folder: Path,
    sections: Mapping[str, Mapping[str, Any]],
    drills: Mapping[str, str],
    *,
    witnessed: bool = False,
) -> Path:
    from model.numerics import THREADS, prepare

    prepare("exact", THREADS)
    from tests.tiny import TinyWitnesses, make_run, run_to_end, tiny_config

    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    dice = random.Random(7)
    for index in range(6):
        words = ["".join(dice.choice("abc") for _ in range(dice.randint(1, 3))) for _ in range(60)]
        (corpus / f"doc{index}.txt").write_text(" ".join(words))
    data = {"source": f"file:{corpus}", "vocab_size": 260, "context": 4, "holdout_ppm": 300_000}
    run, home = folder / "run", folder / "home"
    witnesses = TinyWitnesses(folder / "witnesses") if witnessed else None
    make_run(run, home, tiny_config(**sections, data=data), witnesses=witnesses)
    run_to_end(run, home, drills=drills, witnesses=witnesses)
    return run


def files(run: Path, pattern: str = "*") -> list[str]:
    """Names of the run's files that match; `*` matches folders' borders too. Views are left out."""
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return [n for n in names if fnmatchcase(n, pattern) and not any(fnmatchcase(n, v) for v in VIEWS)]


def bits_of(length: int, step: int) -> Sequence[int]:
    """Which bits of a file of `length` bytes are flipped: all of them, or one of every `step`-th byte.

    That one moves on by a bit with each flip and by another with each eighth, so that 64 flips at an odd
    step have every bit in every place of a little-endian number.
    """
    if step == 0:
        return range(8 * length)
    return [8 * at + (count + count // 8) % 8 for count, at in enumerate(range(0, length, step))]


def try_flips(run: Path, name: str, bits: Sequence[int], level: int, *, hasty: bool = False) -> Outcome:
    """Flip each of these bits of a file in place, alone, verify, and put it back. The run must hold.

    `hasty` ends checks of level 1 at their first failure, except one in WHOLE.
    """
    found = Outcome()
    path = run / name
    before = path.read_bytes()
    rows = _rows(path) if name == TABLE else None
    with path.open("r+b", buffering=0) as file:
        for count, bit in enumerate(bits):
            at = bit // 8
            try:
                _put(file, at, before[at] ^ 1 << bit % 8)
                first = _first_answer(run) if hasty and level == 1 else ""
                answer = first if first and count % WHOLE else _answer(run, level)
                if first and (first == "accepted") != (answer == "accepted"):
                    answer = f"{first} at first, {answer} on the whole"
                same = name == TABLE and answer == "accepted" and _rows(path) == rows
            except Exception as error:  # whatever a verifier raises is a finding
                answer, same = repr(error)[:200], False
            finally:
                _put(file, at, before[at])
            found.tried += not same
            found.same += same
            found.usage += answer == "usage"
            if answer == "accepted" and not same:
                found.accepted.append(f"{name} bit {bit}")
            elif answer not in {"accepted", "refused", "usage"}:
                found.raised.append(f"{name} bit {bit}: {answer}")
    if path.read_bytes() != before:
        raise UsageError(f"{path} was changed by something else", hint="Measure on a folder of its own.")
    return found


def _put(file: Any, at: int, value: int) -> None:
    file.seek(at)
    file.write(bytes([value]))


def _answer(run: Path, level: int) -> str:
    """`accepted`, `refused`, or `usage` where the command would say that this is no run it can check."""
    try:
        if level == 1:
            return "refused" if check_run(run).failures else "accepted"
        from pipeline.verify import VerifyOptions, verify

        return "accepted" if verify(VerifyOptions(run, level=2), _silent).ok else "refused"
    except UsageError:
        return "usage"


class _Refused(BaseException):
    """A failure was noted. Not an Exception, so that no check takes it for an error of its own."""


def _refuse(*args: object, **named: object) -> None:
    raise _Refused


def _first_answer(run: Path) -> str:
    """As `_answer` at level 1, as soon as it is known: nothing takes a noted failure back."""
    with patch.object(Report, "add", _refuse):
        try:
            return _answer(run, 1)
        except _Refused:
            return "refused"


def _silent(*args: object) -> None:
    del args


def _rows(path: Path) -> Any:
    from pipeline.records_table import read_contributions

    return read_contributions(path, _MOST_ROWS)


def plan(run: Path, group: Group, *, full: bool) -> list[tuple[str, list[int]]]:
    """The flips of a group, by file, in pieces; a seeded sample of them unless `full`."""
    every = [
        (name, bit)
        for name in files(run, group.pattern)
        for bit in bits_of((run / name).stat().st_size, group.step)
    ]
    if not full:
        every = sorted(random.Random(group.name).sample(every, min(group.sample, len(every))))
    pieces: list[tuple[str, list[int]]] = []
    for name, bit in every:
        if not pieces or pieces[-1][0] != name or len(pieces[-1][1]) == _CHUNK:
            pieces.append((name, []))
        pieces[-1][1].append(bit)
    return pieces


_copies: dict[str, Path] = {}


def _start(run: str, scratch: str) -> None:
    """In a worker: a copy of the run of its own."""
    _copies[run] = Path(shutil.copytree(run, Path(scratch) / f"{os.getpid()}"))


def _work(run: str, name: str, bits: list[int], level: int) -> Outcome:
    return try_flips(_copies[run], name, bits, level, hasty=True)


def flip_group(run: Path, group: Group, *, full: bool) -> Outcome:
    """All flips of a group: in this process for a sample, in WORKERS others when `full`.

    Raises UsageError when the run does not hold to begin with.
    """
    start = time.monotonic()
    total = Outcome()
    pieces = plan(run, group, full=full)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="barnraise-flips-", dir=memory if os.access(memory, os.W_OK) else None
    ) as scratch:
        if not full:
            copy = shutil.copytree(run, Path(scratch) / "copy")
            _check_honest(copy, group.level)
            for name, bits in pieces:
                total.add(try_flips(copy, name, bits, group.level))
        else:
            _check_honest(run, group.level)
            with ProcessPoolExecutor(
                WORKERS, get_context("spawn"), initializer=_start, initargs=(str(run), scratch)
            ) as pool:
                jobs = [pool.submit(_work, str(run), name, bits, group.level) for name, bits in pieces]
                for count, job in enumerate(jobs, 1):
                    total.add(job.result())
                    _tell(f"{group.name}: {count} of {len(jobs)} pieces, {time.monotonic() - start:.0f} s")
    total.seconds = time.monotonic() - start
    return total


def _check_honest(run: Path, level: int) -> None:
    if _answer(run, level) != "accepted":
        raise UsageError(f"{run} does not hold before any flip", hint="Run `barnraise verify` on it.")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def figure(run: Path, group: Group, *, full: bool) -> Figure:
    """Flip a group of files and say what was accepted, or raised instead of refused."""
    found = flip_group(run, group, full=full)
    names = files(run, group.pattern)
    length = sum((run / name).stat().st_size for name in names)
    what = f"{len(names)} files" if len(names) > 1 else "1 file"
    how = _STEPS[group.step]
    notes = [f"level {group.level} on {what}, {length:,} bytes", how if full else f"a sample of {how}"]
    if group.pattern == TABLE:
        notes.append(f"{found.same:,} more flips changed bytes but no value and are not counted")
    if found.usage:
        notes.append(f"{found.usage:,} refused as no run of this protocol")
    notes += [f"ACCEPTED {', '.join(found.accepted[:10])}"] if found.accepted else []
    notes += [f"RAISED {', '.join(found.raised[:5])}"] if found.raised else []
    if full and group.level == 1:
        notes.append(f"checks end at the first failure, one in {WHOLE} goes on to the end as well")
    notes.append(f"{found.seconds:.0f} s")
    wrong = len(found.accepted) + len(found.raised)
    return Figure(
        f"single-bit flips of {group.name} that verify did not refuse",
        wrong,
        "0",
        wrong == 0 and found.tried > 0,
        f"{_COMMAND} --full" if full else _COMMAND,
        tried=found.tried,
        note="; ".join(notes),
    )


def measure(*, full: bool) -> Iterator[Figure]:
    """Flip the bits of a small run one at a time; verify must refuse every version.

    Not flipped, because no digest covers them by design: wandb/, report.html and metrics.jsonl.
    """
    with tempfile.TemporaryDirectory(prefix="barnraise-runs-") as name:
        runs = ((smallest_run, SMALLEST), (judged_run, JUDGED), (witnessed_run, WITNESSED))
        for made, groups in runs:
            run = made(Path(name) / made.__name__)
            for group in groups:
                yield figure(run, group, full=full)


if __name__ == "__main__":
    main(measure)
