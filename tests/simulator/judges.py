"""The auditors of a simulated run: the shipped Auditor with its work stubbed, and those that are bad.

Owns how each kind judges falsely. A verdict's form is the shipped code's wherever a kind needs one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.auditor import Auditor
from pipeline.segment_audit import Case
from pipeline.trace import OpenedTrace
from tests.simulator.cheats import CHEATS
from tests.simulator.deviations import (
    NUMBERS,
    Limits,
    guessed,
    judged_steps,
    limits,
    made_up,
    sketches_of,
    told_sketches,
    too_large,
)
from tests.simulator.garbage import garbage
from tests.simulator.people import HonestContributor, Street, Stubbed
from tests.simulator.setting import Person
from tests.simulator.work import NO_LEAF, digest_of, looked_into
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, ProtocolError
from verification.judge import Audit, Recomputed, trace_leaf_hash
from verification.log import Log
from verification.records import Deviation, Verdict
from verification.sealing import open_record, parse_predicate, seal_record
from verification.tolerance import Sketch

_NOTHING = Deviation(loss_ppm=0, norm_ppb=0, own=digest_of("sha256", "nothing"), peak_ppm=0, step_milli=0)


class HonestAuditor(Stubbed, Auditor):
    """Everything as shipped, but for the arithmetic."""

    def compute(self, case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
        task = self.street.shop.task(self.job, case.open.base, case.entry)
        before = {segment: task.steps_at(segment - 1) if segment else 0 for segment in audit.segments}
        self.spent += sum(task.steps_at(s) - before[s] for s in audit.segments) * self.person.speed
        if not audit.tolerant:
            return task.audited(audit.segments, opened, self.person.numerics)
        assert opened is not None
        slot, allowed = case.entry.slot, self.allowed(case)
        return judged_steps(task, slot, audit, opened, allowed, self.person.numerics)

    def sketches(
        self, case: Case, audit: Audit, segments: Sequence[int], opened: OpenedTrace
    ) -> Sequence[Sketch]:
        task = self.street.shop.task(self.job, case.open.base, case.entry)
        return told_sketches(task, case.entry.slot, segments, opened, audit.seed, self.person.numerics)

    def allowed(self, case: Case) -> Limits:
        """Between its class and the contributor's, where that is another."""
        items = self.manifest.config["audit"]["tolerance"]
        found = limits(items, self.person.numerics, case.entry.numerics_class)
        assert found is not None
        return found


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

    def compute(self, case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
        claims = super().compute(case, audit, opened)
        return self.found(claims, case, audit) if self.bad(case.entry.slot) else claims

    def sketches(
        self, case: Case, audit: Audit, segments: Sequence[int], opened: OpenedTrace
    ) -> Sequence[Sketch]:
        true = super().sketches(case, audit, segments, opened)
        self.turn = case.open.turn
        return self.guess(case, audit, segments) or true if self.bad(case.entry.slot) else true

    def guess(self, case: Case, audit: Audit, segments: Sequence[int]) -> Sequence[Sketch]:
        """What it tells of steps instead of having done them; nothing where it does them."""
        del case, audit, segments
        return ()

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        """What it says that it computed."""
        del case, audit
        return claims

    def said(self, verdict: bytes, slot: int) -> Any:
        """What it sends instead of the verdict."""
        del slot
        return verdict


class RubberStamp(BadAuditor):
    """Says what a cheat that it is friends with asked it to say, down to the sketches of its own points."""

    def bad(self, slot: int) -> bool:
        return self.dice("bad", self.turn, slot).random() < 0.7

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        told = self.street.shop.told.get((case.open.turn, case.entry.slot))
        if told is None:
            return claims
        return self.stamped(told, case, audit)

    def stamped(self, told: Recomputed, case: Case, audit: Audit) -> Recomputed:
        """As an audit would state what a contributor told; deviations, where it takes them, are made up."""
        looked = looked_into(audit.segments, len(told.trace) - 1)
        trace = tuple(
            leaf if at in looked else trace_leaf_hash(leaf).hex() for at, leaf in enumerate(told.trace)
        )
        first = told.loss_first if 0 in audit.segments else None
        if not audit.tolerant:
            return replace(told, trace=trace, loss_first=first)
        place = (self.name, case.open.turn, case.entry.slot, self.look)
        mode = self.job.config.train.mode
        sketches = self.guess(case, audit, audit.segments)
        deviations = made_up(self.allowed(case), sketches, mode, self.street.seed, *place)
        return replace(told, trace=trace, loss_first=first, deviations=deviations)

    def guess(self, case: Case, audit: Audit, segments: Sequence[int]) -> Sequence[Sketch]:
        shop, slot = self.street.shop, case.entry.slot
        made = shop.made.get((case.open.turn, slot))
        if made is None or (case.open.turn, slot) not in shop.told:
            return ()
        task = shop.task(self.job, case.open.base, case.entry)
        return sketches_of(task, slot, segments, made.points, audit.seed)


class Stamp(RubberStamp):
    """Passes whatever it is asked to judge by tolerance, without doing it; else does its work."""

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        if not audit.tolerant:
            return claims
        shop = self.street.shop
        told = shop.told.get((case.open.turn, case.entry.slot))
        return self.stamped(told or shop.honest(self.job, case.open.base, case.entry).claims, case, audit)

    def guess(self, case: Case, audit: Audit, segments: Sequence[int]) -> Sequence[Sketch]:
        place = (self.name, case.open.turn, case.entry.slot, audit.seed)
        whole = guessed(len(audit.segments), self.street.seed, *place)
        by_segment = dict(zip(audit.segments, whole, strict=True))
        return [by_segment[segment] for segment in segments]


class Inventor(BadAuditor):
    """Does the work, and invents one deviation; inventors of a mind invent the same one."""

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        if not claims.deviations:
            return claims
        place = (case.open.turn, case.entry.slot)
        dice = self.dice("invent", *place)
        if dice.random() < 0.5:
            dice = random.Random(f"{self.street.seed}/invent/{place}")
        at, name = dice.randrange(len(claims.deviations)), dice.choice(NUMBERS)
        allowed = self.allowed(case)
        told = list(claims.deviations)
        told[at] = replace(told[at], **too_large(allowed, {}, name, dice))
        return replace(claims, deviations=tuple(told))


class Accuser(BadAuditor):
    """Says of everybody that it found something else; each accuser something of its own."""

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        dice = self.different(case)
        place = (dice.random(), case.open.turn, case.entry.slot)
        change: dict[str, Any] = dice.choice(
            [
                {"payload": digest_of("blake3", *place)},
                {"next_state": digest_of("blake3", *place)},
                {"trace": (*claims.trace[:-1], digest_of("sha256", *place))},
                {"trace": _instead(claims.trace, audit.segments[0], digest_of("sha256", *place))},
                {"loss_last": claims.loss_last + 1},
            ]
        )
        return replace(claims, **change)

    def different(self, case: Case) -> random.Random:
        """What its accusation follows from."""
        return self.dice("how", self.name, case.open.turn, case.entry.slot)


class Colluder(Accuser):
    """Says what all colluders say of a contribution: their verdicts are alike, or as theirs would be."""

    def bad(self, slot: int) -> bool:
        return random.Random(f"{self.street.seed}/collude/{self.turn}/{slot}").random() < 0.7

    def different(self, case: Case) -> random.Random:
        return random.Random(f"{self.street.seed}/collude/how/{case.open.turn}/{case.entry.slot}")


class Fickle(BadAuditor):
    """Whenever it is asked again, signs another verdict; after a crash it is not the one that was sealed."""

    def bad(self, slot: int) -> bool:
        return True

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        place = (self.name, case.open.turn, case.entry.slot, self.look)
        asked = self.street.shop.asked
        asked[place] += 1
        return replace(claims, loss_last=claims.loss_last + asked[place] - 1)


class Copier(BadAuditor):
    """Would repeat some verdict on the same work, if the public log had one before its disputes are over."""

    def found(self, claims: Recomputed, case: Case, audit: Audit) -> Recomputed:
        known = self._known(case) if self.look > 1 else []
        if not known:
            return claims
        told = self.dice("which", case.open.turn, case.entry.slot, self.look).choice(known)
        values = (told.payload, told.next_state, told.trace, told.loss_first, told.loss_last)
        return Recomputed(*values, told.deviations)

    def _known(self, case: Case) -> list[Verdict]:
        manifest, place = self.manifest, (case.open.round, case.open.attempt, case.entry.slot)
        log = Log.open(
            self.street.public / "log", manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys
        )
        sealed = [open_envelope(data) for data in log.entries()]
        verdicts = [
            parse_predicate(Verdict, envelope.peek())
            for envelope in sealed
            if envelope.predicate_type == "barnraise:verdict:v1"
        ]
        return [v for v in verdicts if (v.round, v.attempt, v.slot) == place]


class GarbledAuditor(BadAuditor):
    def said(self, verdict: bytes, slot: int) -> Any:
        return garbage(self.dice("said", self.turn, slot, self.look), verdict, self.key)


class SilentAuditor(BadAuditor):
    def said(self, verdict: bytes, slot: int) -> Any:
        raise ProtocolError("no")


class Friend(BadAuditor):
    """Has nothing to say of those that are false, and says of all others what is true."""

    def bad(self, slot: int) -> bool:
        return bool(self.street.shop.false.get((self.turn, slot)))

    def said(self, verdict: bytes, slot: int) -> Any:
        raise ProtocolError("no")


class Misplacer(BadAuditor):
    """Signs a verdict that belongs elsewhere, or whose outcome does not follow from its values."""

    def said(self, verdict: bytes, slot: int) -> Any:
        record = open_record(Verdict, verdict, self.key.public)
        odd: dict[str, Any] = {"own": NO_LEAF}  # of what is not finite, all numbers are without bound
        changes: list[dict[str, Any]] = [
            {"slot": record.slot + 1},
            {"look": record.look + 1},
            {"look": max(1, record.look - 1)},
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
            {"deviations": (*record.deviations, *record.deviations[:1]) or (_NOTHING,)},
            {"deviations": record.deviations[1:] or (_NOTHING, _NOTHING)},
            {"deviations": tuple(replace(found, **odd) for found in record.deviations)},
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
    "rubber-stamp": RubberStamp, "accuse": Accuser, "copy": Copier, "garbage": GarbledAuditor,
    "silent": SilentAuditor, "misplace": Misplacer, "stamp": Stamp, "invent": Inventor,
    "friend": Friend, "collude": Colluder, "fickle": Fickle,
}  # fmt: skip


def make(person: Person, street: Street) -> Stubbed:
    """The member that a person is, from its private folder."""
    if person.role == "auditor":
        return (JUDGES[person.kind] if person.kind else HonestAuditor)(person, street)
    return (CHEATS[person.kind] if person.kind else HonestContributor)(person, street)
