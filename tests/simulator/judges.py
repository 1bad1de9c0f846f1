"""The auditors of a simulated run: the shipped Auditor with its work stubbed, and those that are bad.

Owns how each kind judges falsely. A verdict's form is the shipped code's wherever a kind needs one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from pipeline.auditor import Auditor
from pipeline.segment_audit import Case
from pipeline.trace import OpenedTrace
from tests.simulator.cheats import CHEATS
from tests.simulator.garbage import garbage
from tests.simulator.people import HonestContributor, Street, Stubbed
from tests.simulator.setting import Person
from tests.simulator.work import digest_of, looked_into
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, ProtocolError
from verification.judge import Recomputed, trace_leaf_hash
from verification.log import Log
from verification.records import Verdict
from verification.sealing import open_record, parse_predicate, seal_record


class HonestAuditor(Stubbed, Auditor):
    """Everything as shipped, but for the arithmetic."""

    def compute(self, case: Case, segments: tuple[int, ...], opened: OpenedTrace | None) -> Recomputed:
        task = self.street.shop.task(self.job, case.open.base, case.entry)
        before = {segment: task.steps_at(segment - 1) if segment else 0 for segment in segments}
        self.spent += sum(task.steps_at(s) - before[s] for s in segments) * self.person.speed
        return task.audited(segments, opened)


class BadAuditor(HonestAuditor):
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

    def compute(self, case: Case, segments: tuple[int, ...], opened: OpenedTrace | None) -> Recomputed:
        claims = super().compute(case, segments, opened)
        return self.found(claims, case, segments) if self.bad(case.entry.slot) else claims

    def found(self, claims: Recomputed, case: Case, segments: tuple[int, ...]) -> Recomputed:
        """What it says that it computed."""
        del case, segments
        return claims

    def said(self, verdict: bytes, slot: int) -> Any:
        """What it sends instead of the verdict."""
        del slot
        return verdict


class RubberStamp(BadAuditor):
    """Says what a cheat that it is friends with asked it to say."""

    def found(self, claims: Recomputed, case: Case, segments: tuple[int, ...]) -> Recomputed:
        told = self.street.shop.told.get((case.open.turn, case.entry.slot))
        if told is None:
            return claims
        looked = looked_into(segments, len(told.trace) - 1)
        trace = tuple(
            leaf if at in looked else trace_leaf_hash(leaf).hex() for at, leaf in enumerate(told.trace)
        )
        return replace(told, trace=trace, loss_first=told.loss_first if 0 in segments else None)


class Accuser(BadAuditor):
    """Says of everybody that it found something else; each accuser something of its own."""

    def found(self, claims: Recomputed, case: Case, segments: tuple[int, ...]) -> Recomputed:
        place = (self.name, case.open.turn, case.entry.slot)
        change: dict[str, Any] = self.dice("how", *place).choice(
            [
                {"payload": digest_of("blake3", *place)},
                {"next_state": digest_of("blake3", *place)},
                {"trace": (*claims.trace[:-1], digest_of("sha256", *place))},
                {"trace": _instead(claims.trace, segments[0], digest_of("sha256", *place))},
                {"loss_last": claims.loss_last + 1},
            ]
        )
        return replace(claims, **change)


class Copier(BadAuditor):
    """At the second look, repeats the first verdict of the public log."""

    def found(self, claims: Recomputed, case: Case, segments: tuple[int, ...]) -> Recomputed:
        first = self._first(case) if self.look == 2 else None
        if first is None:
            return claims
        return Recomputed(first.payload, first.next_state, first.trace, first.loss_first, first.loss_last)

    def _first(self, case: Case) -> Verdict | None:
        manifest, place = self.manifest, (case.open.round, case.open.attempt, case.entry.slot)
        log = Log.open(
            self.street.public / "log", manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys
        )
        for data in reversed(list(log.entries())):
            sealed = open_envelope(data)
            if sealed.predicate_type == "barnraise:verdict:v1":
                verdict = parse_predicate(Verdict, sealed.peek())
                if (verdict.round, verdict.attempt, verdict.slot) == place:
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
            {"loss_first": 7 if record.loss_first is None else None},
            {"trace": tuple(_hash(leaf) for leaf in record.trace)},  # as if nothing had been looked into
            {"trace": tuple(_leaf(leaf) for leaf in record.trace)},  # as if all of it had
            {"trace": record.trace[:-1]},
        ]
        change = self.dice("change", self.turn, slot, self.look).choice(changes)
        try:
            return seal_record(replace(record, **change), self.key)
        except BarnraiseError:
            return verdict


def _instead(trace: tuple[str, ...], at: int, leaf: str) -> tuple[str, ...]:
    return (*trace[:at], leaf, *trace[at + 1 :])


def _hash(leaf: str) -> str:
    return trace_leaf_hash(leaf).hex()


def _leaf(leaf: str) -> str:
    return leaf if ":" in leaf else f"sha256:{leaf}"


JUDGES: dict[str, type[BadAuditor]] = {
    "rubber-stamp": RubberStamp, "accuse": Accuser, "copy-first": Copier, "garbage": GarbledAuditor,
    "silent": SilentAuditor, "misplace": Misplacer,
}  # fmt: skip


def make(person: Person, street: Street) -> Stubbed:
    """The member that a person is, from its private folder."""
    if person.role == "auditor":
        return (JUDGES[person.kind] if person.kind else HonestAuditor)(person, street)
    return (CHEATS[person.kind] if person.kind else HonestContributor)(person, street)
