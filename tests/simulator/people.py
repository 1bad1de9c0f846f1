"""The members of a simulated run: the shipped Contributor with its work stubbed, and those that cheat.

Owns how each kind cheats. What is honest in a cheat is the shipped code. Whether it cheats in a turn
follows from the seed, its name and the turn, so that it tells the same story after a crash.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.dataset import Dataset
from model.arrays import Arrays
from pipeline.contributor import Contributor
from pipeline.member import Member, Place
from pipeline.vault import Committed
from pipeline.work import Job
from tests.simulator.setting import Person
from tests.simulator.work import Traced, Workshop
from verification.records import Reveal, RosterEntry, RoundOpen
from verification.sealing import open_record


@dataclass(frozen=True)
class Street:
    """What everybody can reach: the workshop, the run folder, the manifest; `seed` for their dice."""

    seed: int
    shop: Workshop
    public: Path
    manifest: bytes
    home: Path

    def place(self, name: str) -> Place:
        """A member's private folder; data files lie in one for all."""
        return Place(self.home / "members" / name, self.home / "data")


class Stubbed(Member):
    """A member whose machine is simulated: `spent` counts the milliseconds that it computed."""

    def __init__(self, person: Person, street: Street) -> None:
        self.person, self.street = person, street
        self.spent = 0
        super().__init__(person.name, person.operator, street.manifest, street.place(person.name))

    @cached_property
    def job(self) -> Job:
        return self.street.shop.job(self.run, self.manifest)

    def prepared(self, profile: str) -> str:
        del profile
        return self.person.numerics

    @cached_property
    def data(self) -> Dataset:
        """Nothing that is here reads any."""
        return None  # type: ignore[return-value]


class HonestContributor(Stubbed, Contributor):
    """Everything as shipped, but for the arithmetic."""

    def compute(self, open_: RoundOpen, entry: RosterEntry, weights: Arrays, start: Arrays) -> Traced:
        del weights, start  # they were checked to be the ones that the open names
        self.spent += entry.steps * self.person.speed
        work = self.made(open_, entry)
        self.street.shop.learn(work.next_state)
        audit = self.job.config.audit
        if audit.segments or audit.tolerance:
            for index, leaf in enumerate(work.points):
                self._keep(index, leaf)
        return work

    def made(self, open_: RoundOpen, entry: RosterEntry) -> Traced:
        """The work itself."""
        return self.street.shop.honest(self.job, open_.base, entry)


class Cheat(HonestContributor):
    """A contributor that cheats in most turns."""

    def dice(self, *place: object) -> random.Random:
        """Chance that is the same whenever it is asked for the same place."""
        return random.Random(f"{self.street.seed}/{self.name}/{place}")

    def cheats(self, turn: int) -> bool:
        """Whether it does in this turn."""
        return self.dice("cheats", turn).random() < 0.7

    def made(self, open_: RoundOpen, entry: RosterEntry) -> Traced:
        work = super().made(open_, entry)
        shop, place = self.street.shop, (open_.turn, entry.slot)
        if self.cheats(open_.turn):
            # Made again for an audit it is the same, whatever lies in the run folder by then.
            work = shop.made.get(place) or self.falsified(work, open_, entry)
        # Auditors that are bought are told what to say.
        shop.made[place], shop.told[place], shop.false[place] = work, work.claims, work.false
        return work

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        """The claims it makes instead of the true ones."""
        del open_, entry
        return work

    def stored(self, turn: int) -> tuple[Committed, Reveal]:
        """What it committed to."""
        stored = self._stored(turn)
        return stored, open_record(Reveal, stored.reveal, self.key.public)

    def reveals(self, turn: int) -> tuple[bytes, bytes]:
        """Its reveal without any of the checks."""
        stored = self._stored(turn)
        return stored.reveal, self.vault.get("payloads", stored.payload) or b""
