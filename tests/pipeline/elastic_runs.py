"""Whole small runs whose members come and go: machines with seats, all of them in this process.

A machine that goes takes its members' calls with it, a member in `silent` cannot be made where it lives. Both
outlast a coordinator, as the world does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Answer, LocalPool, Machine, Seat
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder, member_folder
from pipeline.verify import VerifyOptions, verify
from tests.pipeline.crash_tools import Site, records
from tests.tiny import make_run, run_to_end, tiny_config
from verification.records import Record, RoundClose, RoundOpen
from verification.rounds import replay

AUDIT = {"rate_ppm": 0, "probation_rounds": 1, "second_look_ppm": 0}


@dataclass
class Village:
    """The machines that are there, and who lives where. `asked` notes who was asked for what."""

    machines: list[Machine] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    seats: dict[str, Seat | None] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    pool: LocalPool | None = None

    def silence(self, name: str) -> None:
        """Its process ends, and cannot be made again."""
        self.silent.add(name)
        if self.pool:
            self.pool._objects.pop(name, None)

    def move_in(self, patch: pytest.MonkeyPatch) -> None:
        """Runs of this process have their members here."""
        village = self

        class InVillage(LocalPool):
            def machines(self) -> tuple[Machine, ...]:
                return tuple(village.machines)

            def add(self, name: str, factory: Callable[[], object], seat: Seat | None = None) -> None:
                def made() -> object:
                    if name in village.silent:
                        raise OSError("nobody is there")
                    return factory()

                village.seats[name], village.pool = seat, self
                super().add(name, made, seat)

            def _one(self, name: str, method: str, args: tuple[Any, ...], deadline_ms: int) -> Answer:
                village.asked.append((name, method))
                seat = village.seats.get(name)
                if seat and seat.machine not in {machine.name for machine in village.machines}:
                    self._objects.pop(name, None)
                    return Answer(error=f"{name} cannot be reached")
                return super()._one(name, method, args, deadline_ms)

        patch.setattr("pipeline.run.LocalPool", InVillage)
        patch.setattr("pipeline.muster.DESERTED_S", 0.0)


class Run:
    """A run folder and its private home; `wishes` are called when so many turns are closed."""

    def __init__(self, root: Path, **sections: Any) -> None:
        self.root = root
        self.folder = RunFolder(root / "run")
        self.home = root / "home"
        self.notices: list[str] = []
        make_run(root / "run", root / "home", tiny_config(**{"audit": AUDIT, **sections}))

    def go(self, wishes: dict[int, Callable[[], object]] | None = None) -> Coordinator:
        def seen(close: RoundClose) -> None:
            turn = len(of(RoundClose, self.records(ended=False)))
            if wish := (wishes or {}).pop(turn, None):
                wish()

        return run_to_end(self.root / "run", self.home, seen=seen, tell=self.notices.append)

    def private(self, name: str) -> Path:
        return self.home / member_folder(self.folder.parsed_manifest()) / name

    def records(self, *, ended: bool = True) -> list[Record]:
        """Every record, signed and where it may stand."""
        found = records(Site(self.root))
        manifest: Any = found[0]
        assert replay(manifest, found[1:]).finished == ended
        return found

    def verified(self, level: int) -> list[Any]:
        """What is wrong with it."""
        answer = verify(VerifyOptions(self.folder.path, level=level), lambda *_: None)
        assert answer.complete
        return list(answer.failures)


def of(kind: type[Any], found: list[Record]) -> list[Any]:
    return [record for record in found if isinstance(record, kind)]


def rosters(found: list[Record]) -> list[str]:
    """Who was in each open, contributors first."""
    return [
        " ".join([*(e.member for e in o.roster), *(a.member for a in o.auditors)])
        for o in of(RoundOpen, found)
    ]
