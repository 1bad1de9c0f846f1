"""Every system call of a durable operation failed, and killed at, in turn; then what lies on disk is checked.

Owns the faults and the counting. What must hold after them is disk_faults_checks.py's, the operations are
disk_faults_child.py's. Two ways: strace disturbs the very system calls of a process; Python's own calls of
the operating system are disturbed in this one, anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assurance import disk_faults_child as child
from assurance.disk_faults_checks import problems, scratch
from assurance.figures import Figure, main
from verification.errors import BarnraiseError

FAULTS = ("EIO", "KILL")
TRIES = 3
WORKERS = 2
COMMAND = "python -m assurance.disk_faults --full"
# Calls that reach no file: an input/output error of these is none that a disk can give.
_NO_FILE = frozenset({"brk", "mmap", "mremap", "munmap", "mprotect", "getrandom", "futex", "rt_sigaction"})
_CALL = re.compile(r"\d+\s+([a-z_0-9]+)\((.*)")
_AT_HANDLE = re.compile(r"\d+<([^>]*)>")
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')
KINDS = {
    "lost": "acknowledged entries or files that were lost",
    "twice": "entries that stand in the log twice",
    "between": "heads, checkpoints or files that are neither the old nor the new",
    "corrupt": "logs or folders that a writer, a reader or the independent checker refuse afterwards",
    "elsewhere": "operations that lead elsewhere when they are done again",
    "family": "errors that are not of the project's family",
    "missed": "faults that did not hit the call they were meant for",
}


@dataclass
class Tally:
    """What came of some disturbed operations; `wrong` by kind (see `KINDS`), with where it was found."""

    tried: int = 0
    acknowledged: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)

    def add(self, where: str, outcome: str | None, problems: list[str]) -> None:
        """Count one operation; a problem's first word is its kind."""
        self.tried += 1
        self.acknowledged += (outcome or "").startswith("done")
        if outcome is not None and not outcome.startswith(("done ", "refused ")):
            problems = [*problems, f"family: {outcome}"]
        for problem in problems:
            self.wrong[problem.split(":")[0]] += 1
            self.found.append(f"{where}: {problem}")

    def merge(self, other: Tally) -> None:
        """Add another's counts."""
        self.tried += other.tried
        self.acknowledged += other.acknowledged
        self.wrong += other.wrong
        self.found += other.found


# --- with strace ---


@dataclass(frozen=True)
class Call:
    """The `place`-th call of a name in the operation, the `ordinal`-th of that name in the process."""

    name: str
    place: int
    ordinal: int


class Stage:
    """A template of the operation's folders, and copies of it in which the child runs under strace."""

    def __init__(self, root: Path, operation: str) -> None:
        self.root = root
        self.operation = operation
        (root / "template").mkdir()
        for name in ("site", "twin"):
            child.OPERATIONS[operation][0](root / "template" / name)
        self.spare = [f"copy{number}" for number in range(WORKERS)]

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """One of the folders in which a child may run, for one thread at a time."""
        name = self.spare.pop()
        try:
            yield self.root / name
        finally:
            self.spare.append(name)

    def run(self, place: Path, options: list[str]) -> tuple[list[str], str | None]:
        """(the trace's lines, what the child said: None when it was killed); the folder is place/site."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.root / "template", place)
        trace = place.with_suffix(".trace")
        script = [child.__file__, self.operation, str(place), *(path for path in sys.path if path)]
        python = [sys.executable, "-S", "-s", "-P", "-X", "frozen_modules=on"]
        ended = subprocess.run(
            ["strace", "-f", "-qq", "-y", "-s", "400", "-o", str(trace), *options, *python, *script],
            capture_output=True,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
            timeout=60,
        )
        said = ended.stdout.decode()
        if not said and "KILL" not in " ".join(options):
            raise RuntimeError(f"the child said nothing: {ended.stderr.decode()[-2000:]}")
        return trace.read_text().splitlines(), said or None

    def calls(self) -> tuple[list[Call], list[str]]:
        """The system calls of an undisturbed operation, and the part of the trace that shows them."""
        with self.place() as place:
            lines, said = self.run(place, [])
            wrong = problems(self.operation, place / "site", said)
        if wrong or not (said or "").startswith("done "):
            raise RuntimeError(f"undisturbed, {self.operation} ends so: {said}, {wrong}")
        return list(_window(lines)), _between(lines)

    def disturb(self, call: Call, fault: str) -> tuple[str | None, list[str]]:
        """(what the child said, what is wrong), or a problem `missed` when the fault fell elsewhere."""
        # A filter in the kernel makes errors quicker; signals it would not let strace send.
        what = ["--seccomp-bpf"] if fault == "EIO" else []
        what += [f"--trace={call.name},access"]
        kind = "error=EIO" if fault == "EIO" else "signal=KILL"
        ordinal = call.ordinal
        said: str | None = None
        for _ in range(TRIES):
            with self.place() as place:
                lines, said = self.run(place, [*what, f"--inject={call.name}:{kind}:when={ordinal}"])
                if _hit(lines, call, fault):
                    return said, problems(self.operation, place / "site", said)
            drifted = [c.ordinal for c in _window(lines) if (c.name, c.place) == (call.name, call.place)]
            ordinal = drifted[0] if drifted else ordinal
        return said, [f"missed: {call} {fault}"]


def _between(lines: list[str]) -> list[str]:
    marks = [n for n, line in enumerate(lines) if child.BEGIN in line or child.END in line]
    stop = marks[1] + 1 if len(marks) > 1 else len(lines)
    return lines[marks[0] + 1 : stop] if marks else []


def _window(lines: list[str]) -> Iterator[Call]:
    """Calls between the marks; the last one is the end's mark itself."""
    before: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    started = False
    for line in lines:
        found = _CALL.match(line)
        if not found:
            continue
        name = found[1]
        before[name] += 1
        if started:
            inside[name] += 1
            yield Call(name, inside[name], before[name])
        if child.BEGIN in line:
            started = True
        if child.END in line:
            return


def _hit(lines: list[str], call: Call, fault: str) -> bool:
    inside = [line for line in _between(lines) if (found := _CALL.match(line)) and found[1] == call.name]
    if fault == "EIO":
        hits = [n for n, line in enumerate(inside, 1) if "(INJECTED)" in line]
        return hits == [call.place] and sum("(INJECTED)" in line for line in lines) == 1
    return len(inside) == call.place and any("killed by SIGKILL" in line for line in lines)


def traced(operation: str, every: int = 1) -> tuple[Tally, int, list[str]]:
    """Disturb every `every`-th system call of an operation, once with each fault.

    Returns what came of it, how many calls the operation has, and what it did not flush in time.
    """
    tally = Tally()
    with scratch() as root:
        stage = Stage(root, operation)
        calls, lines = stage.calls()
        late = unflushed(lines)
        # An error of the end's own mark is none of the operation.
        jobs = [(call, "KILL") for call in calls[::every]]
        jobs += [(call, "EIO") for call in calls[:-1][::every] if call.name not in _NO_FILE]
        with ThreadPoolExecutor(WORKERS) as threads:
            for job, (said, wrong) in zip(
                jobs, threads.map(lambda job: stage.disturb(*job), jobs), strict=True
            ):
                tally.add(f"{operation} {job[1]} at {job[0].name} {job[0].place}", said, wrong)
    return tally, len(calls) - 1, late


def unflushed(lines: list[str]) -> list[str]:
    """What a loss of power could undo although something later relies on it.

    A file must be flushed before it gets its name, its folder before the log's checkpoint gets its name, and
    everything before the operation is acknowledged.
    """
    dirty: set[str] = set()
    found: list[str] = []
    for line in lines:
        call = _CALL.match(line)
        if not call or " = -1 " in line:
            continue
        name, rest = call[1], call[2]
        paths = _PATHS.findall(rest)
        handle = _AT_HANDLE.match(rest)
        if name in ("write", "pwrite64") and handle:
            dirty.add(handle[1])
        elif name in ("fsync", "fdatasync") and handle:
            dirty.discard(handle[1])
        elif name in ("rename", "link"):
            source, target = paths[0], paths[1]
            # What lies there under its own name already, and the folder it lies in, is all that may wait.
            waiting = {path for path in dirty if path == source or target.endswith("/checkpoint")}
            found += [f"{path} before {name} to {target}" for path in sorted(waiting)]
            dirty.add(str(Path(target).parent))
        elif name in ("mkdir", "unlink"):
            dirty.add(str(Path(paths[0]).parent))
        elif name == "rmdir":
            dirty.discard(paths[0])  # an empty folder that comes back means nothing
    return found + [f"{path} at the end" for path in sorted(dirty)]


# --- without strace ---

_PATCHED = (
    *("open", "read", "write", "fsync", "close", "fchmod", "stat", "lstat", "fstat", "listdir", "scandir"),
    *("replace", "rename", "link", "unlink", "mkdir", "rmdir"),
)


class Crash(BaseException):
    """Stands for a lost process: no clean-up code for errors catches it, and no further call is made."""


class _Disturbed:
    """Python's calls of the operating system, of which number `at` fails."""

    def __init__(self, at: int, fault: str) -> None:
        self.at = at
        self.fault = fault
        self.count = 0
        self.dead = False

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            hit = self.count == self.at
            if self.dead or hit:
                if name == "close":
                    real(*args)  # the handle is gone either way
                if self.fault == "EIO":
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self.dead = True
                raise Crash
            return real(*args, **kwargs)

        return call


@contextlib.contextmanager
def _patched(faults: _Disturbed) -> Iterator[None]:
    kept = {name: getattr(os, name) for name in _PATCHED}
    opened = io.open
    try:
        for name, real in kept.items():
            setattr(os, name, faults.wrap(name, real))
        io.open = faults.wrap("io.open", opened)
        yield
    finally:
        for name, real in kept.items():
            setattr(os, name, real)
        io.open = opened


def in_process(operation: str, every: int = 1) -> Tally:
    """Disturb every `every`-th call that Python makes of the operating system in it, once with each fault."""
    tally = Tally()
    prepare, start = child.OPERATIONS[operation]
    with scratch() as root:
        prepare(root / "template")
        for fault in FAULTS:
            at = 1
            while True:
                site = root / f"{fault}{at}"
                shutil.copytree(root / "template", site)
                do = start(site)
                faults = _Disturbed(at, fault)
                outcome: str | None
                try:
                    with _patched(faults):
                        outcome = f"done {do()}"
                except Crash:
                    outcome = None
                except BarnraiseError as error:
                    outcome = f"refused {type(error).__name__}"
                except Exception as error:
                    outcome = f"wrong {type(error).__name__}: {error}"
                reached = faults.count >= at
                wrong = problems(operation, site, outcome)
                if not reached and not (outcome or "").startswith("done "):
                    wrong.append(f"missed: undisturbed it ends so: {outcome}")
                tally.add(f"{operation} {fault} at call {at}", outcome, wrong)
                shutil.rmtree(site)
                if not reached:
                    break
                at += every
    return tally


# --- figures ---


def strace_refuses() -> str | None:
    """Why system calls cannot be disturbed here; None when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with scratch() as folder:
        order = ["strace", "-f", "-o", str(folder / "trace"), "--seccomp-bpf"]
        order += ["--inject=chdir:error=EIO:when=1", "--trace=chdir", "true"]
        tried = subprocess.run(order, capture_output=True, check=False)
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.decode()[-200:]}"


def measure(*, full: bool) -> Iterator[Figure]:
    """Disk errors and kills at every system call of the durable operations."""
    refused = strace_refuses()
    if refused is None:
        total = Tally()
        calls: dict[str, int] = {}
        late: list[str] = []
        for operation in child.OPERATIONS:
            tally, calls[operation], unsynced = traced(operation, 1 if full else 7)
            total.merge(tally)
            late += [f"{operation}: {line}" for line in unsynced]
            print(f"{operation}: {calls[operation]} calls, {tally.tried} disturbed", file=sys.stderr)
        share = "all" if full else "every 7th"
        listed = ", ".join(f"{name} {count}" for name, count in calls.items())
        yield from _figures(total, f"system calls failed with EIO and SIGKILL, {share} of: {listed}")
        yield Figure(
            "files and folders not flushed before something relied on them",
            len(late),
            "0",
            not late,
            COMMAND,
            tried=len(calls),
            note="; ".join(late[:3]),
        )
    else:
        print(f"NOT MEASURED with strace: {refused}", file=sys.stderr)
        yield Figure("system calls disturbed by strace", 0, "all", False, COMMAND, note=refused)
    total = Tally()
    for operation in child.OPERATIONS:
        total.merge(in_process(operation))
    yield from _figures(total, "Python's calls failed with EIO and a crash, in one process")


def _figures(total: Tally, note: str) -> Iterator[Figure]:
    for line in total.found[:20]:
        print(line, file=sys.stderr)
    for kind, what in KINDS.items():
        count = total.wrong[kind]
        yield Figure(what, count, "0", count == 0, COMMAND, tried=total.tried, note=note)


if __name__ == "__main__":
    main(measure)
