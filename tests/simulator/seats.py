"""Seats that appear while a run goes on, and owners who have members leave and return.

Owns who can be hired when, and what owners want, which it remembers for the checks. Does not own what the
coordinator makes of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.muster import Hire
from pipeline.vault import LEAVING
from tests.simulator.assembly import Allowed
from tests.simulator.network import Network
from tests.simulator.setting import Setting
from verification.durable import write_atomic


class Seats:
    """Hires people for seats that are there by now."""

    def __init__(self, setting: Setting, network: Network) -> None:
        self._setting, self._network = setting, network

    def hiring(self, enrolled: Collection[str]) -> Hire:
        """For a coordinator that was just taken up; these have a seat already."""
        taken = set(enrolled)

        def hire(room: int) -> Mapping[str, Allowed]:
            found: dict[str, Allowed] = {}
            for person in self._setting.later:
                free = person.name not in taken and person.arrives <= self._network.turn
                if free and len(found) < room:
                    found[person.name] = Allowed(person.role, person.operator)
            taken.update(found)
            self._network.counts["joining: newcomers hired"] += len(found)
            return found

        return hire


class Owners:
    """What owners do beside the run, as `barnraise keys leave` and `keys return` do it.

    `leaving` and `staying`: members and turns before which their owners wanted them away, or there, at least
    for a while.
    """

    def __init__(self, setting: Setting, network: Network, vaults: Path) -> None:
        self._setting, self._network, self._vaults = setting, network, vaults
        self._dice = random.Random(f"owners/{setting.seed}")
        self.leaving: set[tuple[str, int]] = set()
        self.staying: set[tuple[str, int]] = set()

    def change_their_minds(self, turn: int, tell: Callable[[str], None]) -> None:
        """Before the muster of a turn: some leave, some come back."""
        for name in self._setting.names:
            file = self._vaults / name / LEAVING
            if file.parent.is_dir() and self._dice.random() < self._setting.restless:
                if file.exists():
                    self._call_back(name)
                else:
                    write_atomic(file, b"", mode=0o600)
                tell(f"    the owner of {name} has it {'leave' if file.exists() else 'stay'}")
        self._note(turn)

    def call_all_back(self, turn: int) -> None:
        """Nobody is left to go on with: they all come back."""
        for name in self._setting.names:
            self._call_back(name)
        self._network.healed = True
        self._note(turn)

    def turn_off(self, away: Collection[str]) -> None:
        """Of those that are away by their own wish, some machines stand still until they are to come back."""
        for name in sorted(away):
            if (self._vaults / name / LEAVING).exists() and self._dice.random() < 0.5:
                self._network.off.add(name)
                self._network.objects.pop(name, None)

    def _call_back(self, name: str) -> None:
        (self._vaults / name / LEAVING).unlink(missing_ok=True)
        self._network.off.discard(name)

    def _note(self, turn: int) -> None:
        for name in self._setting.names:
            wish = self.leaving if (self._vaults / name / LEAVING).exists() else self.staying
            wish.add((name, turn))
