"""Chance held fixed, and crashes at durable steps.

Owns the gate in front of the calls by which a disk changes: it can end whoever is at work before any of
them (a write may be torn), and it remembers what the coordinator ever wrote into the log, signed. Does not
own when crashes come: world.py and network.py arm them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verification import folder_lock
from verification.keys import PrivateKey
from verification.lottery import HashChain

# What changes a disk; the same calls as tests.pipeline.crash_tools counts.
STEPS = ("write", "replace", "rename", "link", "unlink", "rmdir", "mkdir")
COORDINATOR = "coordinator"
LOG = "log"  # the coordinator, counting only the steps it takes in its log


class Crash(BaseException):
    """The end of a process. No error of the product's, so that nothing in it can catch it."""

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.who = who


class Gate:
    """Stands before every durable step. `armed`: steps left, by who is at work."""

    def __init__(self) -> None:
        self.actor = COORDINATOR
        self.armed: dict[str, int] = {}
        self.crashes: Counter[str] = Counter()
        self.notes: dict[str, None] = {}
        self.entries: dict[bytes, None] = {}

    @contextmanager
    def as_actor(self, name: str) -> Iterator[None]:
        """Whatever is written meanwhile is written by `name`."""
        before, self.actor = self.actor, name
        try:
            yield
        finally:
            self.actor = before

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the gate in place until `patch` is undone; flushes to disk cost nothing meanwhile."""
        for name in STEPS:
            patch.setattr(os, name, self._guarded(name, getattr(os, name)))
        patch.setattr(os, "fsync", lambda handle: None)

    def _guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **keywords: Any) -> Any:
            self._count(self.actor, name, real, target, args)
            if LOG in self.armed and self.actor == COORDINATOR and "/log/" in _path(target):
                self._count(LOG, name, real, target, args)
            done = real(target, *args, **keywords)
            if name == "write" and self.actor == COORDINATOR:
                self._note(target, bytes(args[0][:done]))
            return done

        return call

    def _count(self, whose: str, name: str, real: Callable[..., Any], target: Any, args: Any) -> None:
        left = self.armed.get(whose)
        if left is None:
            return
        self.armed[whose] = left - 1
        if left <= 0:
            del self.armed[whose]
            who = "coordinator" if self.actor == COORDINATOR else "member"
            self.crashes[f"{who} at {name}"] += 1
            if name == "write":  # a torn one
                real(target, bytes(args[0])[: len(args[0]) // 2])
            raise Crash(self.actor)

    def _note(self, handle: int, data: bytes) -> None:
        """Keep what is signed the moment it is written: whoever copies the folder may have it."""
        path = _path(handle)
        if path.endswith("/log/.checkpoint.tmp"):
            self.notes[data.decode()] = None
        elif "/log/tile/entries/" in path:
            for entry in unpacked(data):
                self.entries[entry] = None


def _path(target: Any) -> str:
    return str(Path(f"/proc/self/fd/{target}").readlink()) if isinstance(target, int) else os.fspath(target)


def unpacked(bundle: bytes) -> Iterator[bytes]:
    """The entries of a bundle."""
    at = 0
    while at < len(bundle):
        stop = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        yield bundle[at + 2 : stop]
        at = stop


class Chance:
    """Keys and salts that follow from the seed, and a list of those that were made."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.secrets: list[bytes] = []
        self.salts: list[str] = []

    def text(self, what: str, number: int) -> bytes:
        """32 bytes."""
        return hashlib.sha256(f"{self._seed}/{what}/{number}".encode()).digest()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Fix what the product draws from the operating system, until `patch` is undone."""
        numbers = itertools.count()

        def generate() -> PrivateKey:
            secret = self.text("key", next(numbers))
            self.secrets.append(secret)
            return PrivateKey.from_seed(secret)

        def token_hex(_: int) -> str:
            self.salts.append(self.text("salt", next(numbers)).hex())
            return self.salts[-1]

        def chain(length: int) -> HashChain:
            self.secrets.append(self.text("chain", next(numbers)))
            return HashChain(self.secrets[-1], length)

        patch.setattr(HashChain, "generate", staticmethod(chain))
        patch.setattr(PrivateKey, "generate", staticmethod(generate))
        patch.setattr("pipeline.contributor.secrets", SimpleNamespace(token_hex=token_hex))


def release_locks(root: Path) -> None:
    """Close the locks that this process took under `root`: thousands of seeds would use up all handles."""
    for path in [path for path in folder_lock._held if path.is_relative_to(root)]:
        _, handle = folder_lock._held.pop(path)
        os.close(handle)
