"""Small runs with chance held fixed, and their turns in a form that is easy to ask.

Keys, salts, the chain's secret and the clock are the same in every such run, so two of them can be compared
byte by byte. Nothing of this is a switch in the product: the tests put it there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.pool import LocalPool
from pipeline.config import Config
from pipeline.coordinator import Coordinator
from pipeline.run import member_folder
from tests.tiny import tiny_run
from verification.keys import PrivateKey
from verification.log import Log
from verification.lottery import HashChain
from verification.records import (
    Draw,
    Manifest,
    Record,
    Reveal,
    RosterEntry,
    RoundClose,
    RoundOpen,
    Verdict,
)


@dataclass
class Turn:
    """The records of one turn that these tests look at."""

    open: RoundOpen
    reveals: dict[str, Reveal] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)
    close: RoundClose | None = None

    @property
    def closed(self) -> RoundClose:
        assert self.close is not None
        return self.close

    @property
    def names(self) -> dict[int, str]:
        return {entry.slot: entry.member for entry in self.open.roster}

    @property
    def accepted(self) -> tuple[str, ...]:
        return tuple(item.member for item in self.closed.accepted)

    @property
    def rejected(self) -> dict[str, str]:
        return {item.member: item.reason for item in self.closed.rejected}

    def entry(self, name: str) -> RosterEntry:
        return next(entry for entry in self.open.roster if entry.member == name)


def turns_of(records: list[Record]) -> list[Turn]:
    turns: list[Turn] = []
    for record in records:
        match record:
            case RoundOpen():
                turns.append(Turn(record))
            case Reveal():
                turns[-1].reveals[record.member] = record
            case Verdict():
                turns[-1].verdicts.append(record)
            case Draw():
                turns[-1].drawn = {turns[-1].names[item.slot] for item in record.drawn}
            case RoundClose():
                turns[-1].close = record
    return turns


Calls = list[tuple[str, dict[str, tuple[Any, ...]]]]


@dataclass(frozen=True)
class Story:
    """A finished run, and every call that its members got."""

    folder: Path
    home: Path
    coordinator: Coordinator
    calls: Calls

    @cached_property
    def turns(self) -> list[Turn]:
        return turns_of(self.coordinator.desk.ledger.records())

    @property
    def manifest(self) -> Manifest:
        return self.coordinator.desk.ledger.manifest

    @property
    def members(self) -> Path:
        """Where the members' private folders lie."""
        return self.home / member_folder(self.manifest)

    def log(self) -> list[bytes]:
        """The envelopes of all entries."""
        log = Log.open(self.folder / "log", self.manifest.origin, None, self.manifest.log_vkey)
        return list(log.entries())


def fix_chance(patch: pytest.MonkeyPatch, seed: int = 0) -> None:
    """Same keys, salts, chain and clock in every run; draws still depend on the log's heads."""
    keys, salts = itertools.count(), itertools.count()

    def text(what: str, number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest()

    patch.setattr(PrivateKey, "generate", lambda: PrivateKey.from_seed(text("key", next(keys))))
    salt = SimpleNamespace(token_hex=lambda _: text("salt", next(salts)).hex())
    patch.setattr("pipeline.contributor.secrets", salt)
    patch.setattr(HashChain, "generate", lambda length: HashChain(text("chain", 0), length))
    patch.setattr("cluster.pool._since", lambda _: 1)


def tell(folder: Path, config: Config, drills: Mapping[str, str], *, seed: int = 0) -> Story:
    """Run to the end under fixed chance, noting all calls."""
    calls: Calls = []

    class Recording(LocalPool):
        def call(self, method: str, arguments: Any, *, deadline_ms: int = 0) -> Any:
            calls.append((method, dict(arguments)))
            return super().call(method, arguments, deadline_ms=deadline_ms)

    with pytest.MonkeyPatch.context() as patch:
        fix_chance(patch, seed)
        patch.setattr("pipeline.run.LocalPool", Recording)
        coordinator = tiny_run(folder / "run", folder / "home", config, drills=drills)
    return Story(folder / "run", folder / "home", coordinator, calls)
