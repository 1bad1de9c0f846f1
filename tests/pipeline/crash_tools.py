"""Killing a run at a chosen durable step, in a child process, and taking it up again in another.

A step is a call of the operating system that changes what lies on disk. Between two steps the disk does not
change, so a kill before each of them, and one after the last, leaves every state that a kill can leave.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import pool
from pipeline.config import Config
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.run import create_run
from pipeline.verify import Answer, VerifyOptions, verify
from tests.tiny import quiet, run_to_end, tiny_config
from verification.envelope import open_envelope
from verification.log import Log
from verification.notes import parse_checkpoint, plain_note

STEPS = ("write", "replace", "rename", "link", "unlink", "rmdir", "mkdir")
_REAL = {name: getattr(os, name) for name in STEPS}
_DRILLS_AT = 2  # the last of three contributors


def small_config(**sections: Any) -> Config:
    """Two honest contributors, a place for an adversary, two auditors, two rounds, snapshots in each."""
    values: dict[str, Any] = {
        "run": {"rounds": 2, "seed": 1},
        "model": {"d_model": 8, "d_ff": 16},
        "train": {"steps": [2, 1, 2]},
        "compression": {"chunk": 256, "k": 16},
        "state": {"every": 1},
        # Nothing is left to lot, so that every run of it takes the same steps.
        "audit": {"probation_rounds": 1, "second_look_ppm": 1_000_000},
        **sections,
    }
    return tiny_config(**values)


def drill(kind: str) -> dict[str, str]:
    """The last contributor cheats."""
    return {f"c{_DRILLS_AT:02d}": kind}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on a disk in memory, where a flush to disk costs nothing."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="barnraise-crash-", dir=where) as name:
        yield Path(name)


@dataclass(frozen=True)
class Site:
    """A run folder and the private home that belongs to it."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "run"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def copy(self, root: Path) -> Site:
        shutil.copytree(self.root, root)
        return Site(root)

    def create(self, config: Config, kind: str | None) -> None:
        create_run(config, RunFolder(self.folder), self.home, quiet, drill(kind) if kind else None)

    def finish(self) -> str:
        """Go on to the end, as `barnraise resume` does: nothing is said of who cheats."""
        coordinator = run_to_end(self.folder, self.home)
        return coordinator.state.base.weights

    def verified(self, level: int) -> Answer:
        return verify(VerifyOptions(self.folder, level=level), lambda *_: None)  # type: ignore[arg-type]


class Steps:
    """Counts steps under a folder while `on`, calling `before` with the number of each before it is taken.

    Whatever is written below run/ is kept in the site's file `written`, so that nothing signed is forgotten.
    """

    def __init__(self, site: Site, before: Callable[[int], None]) -> None:
        self.root = str(site.root)
        self.public = str(site.folder)
        self.written = site.root / "written"
        self.before = before
        self.done = 0
        self.on = True
        self.names: list[str] = []

    def install(self) -> None:
        for name in STEPS:
            setattr(os, name, self._counted(name))

    @staticmethod
    def remove() -> None:
        for name in STEPS:
            setattr(os, name, _REAL[name])

    def _counted(self, name: str) -> Callable[..., Any]:
        real = _REAL[name]

        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            path = _path(target, kwargs)
            if path.startswith(self.root) and self.on:
                self.before(self.done)
                self.done += 1
                self.names.append(f"{name} {path.removeprefix(self.root)}")
            done = real(target, *args, **kwargs)
            if name == "write" and path.startswith(self.public):
                with self.written.open("ab") as file:
                    pickle.dump((path, bytes(args[0][:done])), file)
            return done

        return call


def _path(target: Any, keywords: dict[str, Any]) -> str:
    handle = target if isinstance(target, int) else keywords.get("dir_fd")
    if handle is None:
        return os.fspath(target)
    try:
        folder = str(Path(f"/proc/self/fd/{handle}").readlink())
    except OSError:
        return ""
    return folder if isinstance(target, int) else f"{folder}/{os.fspath(target)}"


def kill() -> None:
    """What the kernel does when memory is short or a person is impatient."""
    os.kill(os.getpid(), signal.SIGKILL)


class ChildError(AssertionError):
    """The child ended with an error of its own."""


def in_child(work: Callable[[], Any]) -> tuple[bool, Any]:
    """(whether it was killed, what it returned). The child is a fork: torch has one thread here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            try:
                answer = ("ok", work())
            except BaseException:
                answer = ("error", traceback.format_exc())
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True, None
    kind, value = pickle.loads(data)
    if kind == "error":
        raise ChildError(value)
    return False, value


def killed_at(site: Site, step: int | None, work: Callable[[], Any]) -> list[str] | None:
    """Do `work` in a child that dies before step number `step`; None when it did, else the steps it took."""

    def before(number: int) -> None:
        if number == step:
            kill()

    _, names = in_child(lambda: watched(site, before, work))
    return names


def watched(site: Site, before: Callable[[int], None], work: Callable[[], Any]) -> list[str]:
    """Do `work` with `before` called at every step; the steps it took. Only in a child."""
    # The coordinator's clock is part of what it signs: here no two measurements are alike.
    pool._since = lambda started: random.SystemRandom().randrange(10_000)
    steps = Steps(site, before)
    steps.install()
    try:
        work()
    finally:
        steps.remove()
    return steps.names


def states_of(site: Site, root: Path, work: Callable[[], Any]) -> list[Site]:
    """Do `work`, and copy what a kill would leave before each of its steps, and after the last."""

    def before(number: int) -> None:
        Steps.remove()
        site.copy(root / str(number))
        steps.install()

    def child() -> int:
        nonlocal steps
        pool._since = lambda started: random.SystemRandom().randrange(10_000)
        steps = Steps(site, before)
        steps.install()
        work()
        Steps.remove()
        site.copy(root / str(steps.done))
        return steps.done + 1

    steps = Steps(site, before)
    _, count = in_child(child)
    return [Site(root / str(number)) for number in range(count)]


def in_parallel(tasks: list[Callable[[], list[str]]]) -> list[str]:
    """What each task, in a child of its own, found wrong. Two at a time."""

    def one(task: Callable[[], list[str]]) -> list[str]:
        killed, found = in_child(task)
        assert not killed
        return list(found)

    with ThreadPoolExecutor(2) as threads:
        return [line for lines in threads.map(one, tasks) for line in lines]


# What a kill may leave for level 1 to name: a file under its temporary name, and the log's new tiles before
# their checkpoint, or its old partial ones after it.
_IN_PROGRESS = re.compile(
    r"(payloads|state|checkpoints|evidence/[^/]+|log(/.+)?)/\.[^/]+\.tmp|log/tile/(entries|\d+)/[^.]*(\.p/\d+)?"
)
_STRAY = {"an unexpected file lies in the run folder", "an unexpected or stale file lies in the log"}


def in_progress_only(answer: Answer) -> list[str]:
    """Failures of level 1 that a kill does not explain."""
    return [
        f"{failure['what']}: {failure['where']} ({failure['expected']}, {failure['got']})"
        for failure in answer.failures
        if failure["what"] not in _STRAY or not _IN_PROGRESS.fullmatch(failure["where"])
    ]


def leftovers(site: Site) -> list[str]:
    """Temporary files anywhere."""
    return [str(path) for path in site.root.rglob(".*") if path.suffix in (".tmp", ".partial")]


def wrong_at_the_end(site: Site, digest: str) -> list[str]:
    """What is wrong with a run that was taken up again and ended."""
    found = []
    answer = site.verified(2)
    found += [f"level {answer.level}: {json.dumps(failure)}" for failure in answer.failures]
    if not answer.complete:
        found.append("not complete")
    if answer.weights_digest != digest:
        found.append(f"weights {answer.weights_digest}, undisturbed {digest}")
    found += signed_twice(site)
    return found + [f"left over: {path}" for path in leftovers(site)]


def records(site: Site) -> list[Any]:
    """Every record of the log, verified."""
    folder = RunFolder(site.folder)
    manifest = folder.parsed_manifest()
    log = Log.open(folder.log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
    return [record for record, _ in read_entries(log, manifest)]


def signed_twice(site: Site) -> list[str]:
    """Of everything that was ever written below run/: sizes with two roots, places with two records."""
    folder = RunFolder(site.folder)
    manifest = folder.parsed_manifest()
    roots: dict[int, set[bytes]] = {}
    said: dict[tuple[str, ...], set[bytes]] = {}
    for path, data in _written(site):
        if "checkpoint.tmp" in path:
            head = parse_checkpoint(plain_note(data.decode()), manifest.log_vkey)
            roots.setdefault(head.size, set()).add(head.root)
        elif "/log/tile/entries/" in path:
            for envelope in _entries(data):
                sealed = open_envelope(envelope)
                value = sealed.peek()
                if sealed.keyid == manifest.coordinator:
                    place = (sealed.predicate_type, str(value.get("round")), str(value.get("attempt")))
                    said.setdefault(place, set()).add(envelope)
    assert len(roots) > 10
    assert len(said) > 10
    found = [f"{len(many)} checkpoints of size {size}" for size, many in roots.items() if len(many) > 1]
    return found + [f"{len(many)} records {place}" for place, many in said.items() if len(many) > 1]


def _written(site: Site) -> Iterator[tuple[str, bytes]]:
    with (site.root / "written").open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return


def _entries(bundle: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(bundle):
        stop = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        yield bundle[at + 2 : stop]
        at = stop
