"""The auditors of a simulated run: the shipped Auditor with its work stubbed, and those that are bad.

Owns how each kind judges falsely. A verdict's form is the shipped code's wherever a kind needs one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from model.arrays import Arrays
from pipeline.auditor import Auditor
from pipeline.work import Work
from tests.simulator.cheats import CHEATS
from tests.simulator.garbage import garbage
from tests.simulator.people import HonestContributor, Street, Stubbed
from tests.simulator.setting import Person
from tests.simulator.work import digest_of
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, ProtocolError
from verification.judge import Recomputed
from verification.log import Log
from verification.records import RosterEntry, RoundOpen, Verdict
from verification.sealing import open_record, parse_predicate, seal_record


class HonestAuditor(Stubbed, Auditor):
    """Everything as shipped, but for the arithmetic."""


class BadAuditor(Stubbed, Auditor):
    """Judges falsely in most turns."""

    look = 1
    turn = 0

    def dice(self, *place: object) -> random.Random:
        return random.Random(f"{self.street.seed}/{self.name}/{place}")

    def bad(self, slot: int) -> bool:
        return self.dice("bad", self.turn, slot, self.look).random() < 0.7

    def audit(self, open_envelope: bytes, slot: int, look: Any, *rest: Any) -> Any:
        self.turn, self.look = self.opened(open_envelope).turn, look
        true = super().audit(open_envelope, slot, look, *rest)
        return self.said(true, slot) if self.bad(slot) else true

    def compute(self, open_: RoundOpen, entry: RosterEntry, weights: Arrays, start: Arrays) -> Work:
        work = super().compute(open_, entry, weights, start)
        if not self.bad(entry.slot):
            return work
        return replace(work, claims=self.found(work.claims, open_, entry))

    def found(self, claims: Recomputed, open_: RoundOpen, entry: RosterEntry) -> Recomputed:
        """What it says that it computed."""
        del open_, entry
        return claims

    def said(self, verdict: bytes, slot: int) -> Any:
        """What it sends instead of the verdict."""
        del slot
        return verdict


class RubberStamp(BadAuditor):
    """Says what a cheat that it is friends with asked it to say."""

    def found(self, claims: Recomputed, open_: RoundOpen, entry: RosterEntry) -> Recomputed:
        return self.street.shop.told.get((open_.turn, entry.slot), claims)


class Accuser(BadAuditor):
    """Says of everybody that it found something else; each accuser something of its own."""

    def found(self, claims: Recomputed, open_: RoundOpen, entry: RosterEntry) -> Recomputed:
        place = (self.name, open_.turn, entry.slot)
        change: dict[str, Any] = self.dice("how", *place).choice(
            [
                {"payload": digest_of("blake3", *place)},
                {"next_state": digest_of("blake3", *place)},
                {"trace": (*claims.trace[:-1], digest_of("sha256", *place))},
                {"loss_first": claims.loss_first + 1},
            ]
        )
        return replace(claims, **change)


class Copier(BadAuditor):
    """At the second look, repeats the first verdict of the public log."""

    def found(self, claims: Recomputed, open_: RoundOpen, entry: RosterEntry) -> Recomputed:
        first = self._first(open_, entry) if self.look == 2 else None
        if first is None:
            return claims
        return Recomputed(first.payload, first.next_state, first.trace, first.loss_first, first.loss_last)

    def _first(self, open_: RoundOpen, entry: RosterEntry) -> Verdict | None:
        manifest = self.manifest
        log = Log.open(
            self.street.public / "log", manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys
        )
        for data in reversed(list(log.entries())):
            sealed = open_envelope(data)
            if sealed.predicate_type == "barnraise:verdict:v1":
                verdict = parse_predicate(Verdict, sealed.peek())
                if (verdict.round, verdict.attempt, verdict.slot) == (open_.round, open_.attempt, entry.slot):
                    return verdict
        return None


class GarbledAuditor(BadAuditor):
    def said(self, verdict: bytes, slot: int) -> Any:
        return garbage(self.dice("said", self.turn, slot, self.look), verdict, self.key)


class SilentAuditor(BadAuditor):
    def said(self, verdict: bytes, slot: int) -> Any:
        raise ProtocolError("no")


class Misplacer(BadAuditor):
    """Signs a verdict that belongs elsewhere, or whose outcome does not follow from its values."""

    def said(self, verdict: bytes, slot: int) -> Any:
        record = open_record(Verdict, verdict, self.key.public)
        changes: list[dict[str, Any]] = [
            {"slot": record.slot + 1},
            {"look": 3 - record.look},
            {"round": record.round + 1},
            {"attempt": record.attempt + 1},
            {"auditor": "a99"},
            {"run": digest_of("sha256", "another run")},
            {"numerics_class": "sim-z"},
            {"outcome": "pass" if record.outcome == "fail" else "fail"},
            {"differs": ("payload",), "outcome": "fail"},
        ]
        change = self.dice("change", self.turn, slot, self.look).choice(changes)
        try:
            return seal_record(replace(record, **change), self.key)
        except BarnraiseError:
            return verdict


JUDGES: dict[str, type[BadAuditor]] = {
    "rubber-stamp": RubberStamp, "accuse": Accuser, "copy-first": Copier, "garbage": GarbledAuditor,
    "silent": SilentAuditor, "misplace": Misplacer,
}  # fmt: skip


def make(person: Person, street: Street) -> Stubbed:
    """The member that a person is, from its private folder."""
    if person.role == "auditor":
        return (JUDGES[person.kind] if person.kind else HonestAuditor)(person, street)
    return (CHEATS[person.kind] if person.kind else HonestContributor)(person, street)
