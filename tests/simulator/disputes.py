"""Looks and disputes from the records alone, written from docs/protocol.md, sections 4 and 6.

Owns how a slot is settled by its verdicts, who had to be asked, who missed it and who was overruled, the
seals of first verdicts, and appeals. Shares nothing with verification.looks or judge. Does not own what
verdicts come to (sides.py), who is honest (conduct.py), nor credit (accounts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.simulator.draws import MILLION, uniform
from tests.simulator.sides import contested, lead, overruled, prevailing, side_of
from tests.simulator.story import Scene, Story
from verification.records import RoundClose, RoundOpen, Settlement, Verdict


def reason(scene: Scene, slot: int) -> str | None:
    """Section 6, settling, from "drawn and no look-1 verdict" on; None where the slot is accepted."""
    if slot not in scene.drawn:
        return None
    looks = {verdict.look: verdict for verdict in scene.of(slot)}
    again = scene.second is not None and any(item.slot == slot for item in scene.second.looks)
    if 1 not in looks:
        return "unaudited"
    if 2 not in looks:
        if looks[1].outcome == "fail":
            return "unconfirmed"
        return "unaudited" if again else None
    side = prevailing(scene.of(slot))
    if side is None:
        return "disputed"
    return None if side[0] == "pass" else "failed-audit"


def heard_for(story: Story, scene: Scene, slot: int, outcome: str, *, honest: bool) -> set[str]:
    """Operators of honest (or bent) auditors on the side that prevails at a slot, where it has `outcome`."""
    side = prevailing(scene.of(slot))
    return {
        story.people[v.auditor].operator
        for v in scene.of(slot)
        if side and side_of(v) == side and side[0] == outcome and story.honest(v.auditor) == honest
    }


# --- who had to be asked ---


@dataclass(frozen=True)
class Look:
    """A look at a slot: who had to be asked, in order, and who answered."""

    number: int
    asked: tuple[str, ...]
    by: str | None

    @property
    def missed(self) -> tuple[str, ...]:
        """Those who were asked in vain."""
        return self.asked if self.by is None else self.asked[: self.asked.index(self.by)]


def judged_slots(story: Story, scene: Scene) -> list[int]:
    """The served slots that no settlement of an earlier turn took out."""
    place = (scene.open.round, scene.open.attempt)
    gone = {
        item.slot
        for other in story.scenes
        if other.settlement and other.open.turn < scene.open.turn
        for item in other.settlement.removed
        if (item.round, item.attempt) == place
    }
    return [slot for slot in (scene.served.served if scene.served else ()) if slot not in gone]


def looks_due(scene: Scene, slot: int) -> tuple[list[Look], bool]:
    """The looks that there had to be at a slot, up to one that nobody answered; is it decided after them?

    Only those whose verdicts are by somebody who had to be asked are gone on from.
    """
    drawn, given = scene.drawn[slot], {v.look: v for v in scene.of(slot)}
    operators = {auditor.member: auditor.operator for auditor in scene.open.auditors}
    seal = next((s for s in (scene.first_looks.looks if scene.first_looks else ()) if s.slot == slot), None)
    known = drawn[: drawn.index(seal.auditor) + 1] if seal and seal.auditor in drawn else drawn
    looks = [Look(1, known, _by(given, 1, known))]
    second = {item.slot: item.auditors for item in scene.second.looks} if scene.second else {}
    if slot in second:
        looks.append(Look(2, second[slot], _by(given, 2, second[slot])))
    heard = [given[look.number] for look in looks if look.by]
    while len(heard) == looks[-1].number >= 2:
        appealed = slot in scene.appeals
        if not contested(heard, appealed=appealed) or lead(heard, appealed=appealed) >= 2:
            return looks, True
        vain = {name for look in looks for name in look.missed}
        spoken = {operators[verdict.auditor] for verdict in heard}
        left = tuple(n for n in drawn if operators[n] not in spoken and n not in vain)
        if not left:
            return looks, False
        number = looks[-1].number + 1
        looks.append(Look(number, left, _by(given, number, left)))
        if looks[-1].by:
            heard.append(given[number])
    return looks, len(heard) < 2  # of one verdict there is nothing to decide


def _by(given: dict[int, Verdict], look: int, asked: Sequence[str]) -> str | None:
    return given[look].auditor if look in given and given[look].auditor in asked else None


def looks_are_as_they_must(story: Story) -> list[str]:
    """Whoever had to be asked was, nobody else; missed, overruled and reasons are what the verdicts give."""
    found: list[str] = []
    for scene in story.scenes:
        slots = judged_slots(story, scene)
        found += [
            f"{scene.label}: there are verdicts on slot {slot}, which nobody is to judge"
            for slot in sorted({verdict.slot for verdict in scene.verdicts} - set(slots))
        ]
        for slot in slots:
            found += [f"{scene.label}, slot {slot}: {text}" for text in _looks_at(scene, slot)]
        found += [f"{scene.label}: {text}" for text in _second_draw(story, scene)]
    for scene, record in story.course():
        if isinstance(record, RoundOpen) or isinstance(record, Settlement) != bool(story.lag):
            continue
        found += [f"{scene.label}: {text}" for text in _told(story, scene, record)]
    return found


def _looks_at(scene: Scene, slot: int) -> Iterator[str]:
    operators = {auditor.member: auditor.operator for auditor in scene.open.auditors}
    verdicts = sorted(scene.of(slot), key=lambda verdict: verdict.look)
    looks, _ = looks_due(scene, slot)
    due = {look.number: look.asked for look in looks}
    for verdict in verdicts:
        if verdict.auditor not in due.get(verdict.look, ()):
            yield f"{verdict.auditor} gives a verdict at look {verdict.look}, which it had not to"
    judges = [operators[verdict.auditor] for verdict in verdicts]
    if len(set(judges)) != len(judges):
        yield f"an operator looks at it twice: {judges}"
    if len({verdict.look for verdict in verdicts}) != len(verdicts):
        yield "two verdicts are of one look"


def _second_draw(story: Story, scene: Scene) -> Iterator[str]:
    """Section 6, "Second look"."""
    if scene.second is None or scene.first_looks is None or scene.draw is None:
        return
    short = any(line.link is None for record in (scene.draw, scene.second) for line in record.links)
    rate = story.manifest.config["audit"]["second_look_ppm"]
    operators = {auditor.member: auditor.operator for auditor in scene.open.auditors}
    due = []
    for seal in scene.first_looks.looks:
        order = scene.drawn.get(seal.slot, ())
        later = order[order.index(seal.auditor) :] if seal.auditor in order else ()
        left = tuple(name for name in later if operators[name] != operators[seal.auditor])
        sure = short or seal.outcome == "fail"
        if left and (sure or uniform(scene.second.seed, f"second/{seal.slot}", MILLION) < rate):
            due.append((seal.slot, left))
    told = [(item.slot, item.auditors) for item in scene.second.looks]
    if told != due:
        yield f"to be looked at again are {due}, the log tells {told}"


def _told(story: Story, scene: Scene, record: RoundClose | Settlement) -> Iterator[str]:
    """What a turn's last record says of its audits."""
    slots = judged_slots(story, scene)
    missed = [
        (slot, look.number, name)
        for slot in slots
        for look in looks_due(scene, slot)[0]
        for name in look.missed
    ]
    said = [(item.slot, item.look, item.auditor) for item in record.missed]
    if said != missed:
        yield f"missed are {missed}, the {record.kind} tells {said}"
    out = [(v.slot, v.look, v.auditor) for slot in slots for v in overruled(scene.of(slot))]
    told = [(item.slot, item.look, item.auditor) for item in record.overruled]
    if told != out:
        yield f"overruled are {out}, the {record.kind} tells {told}"
    reasons = {line.slot: line.reason for line in story.rejected(scene)}
    for slot in slots:
        if reasons.get(slot) != reason(scene, slot):
            yield f"slot {slot} is {reasons.get(slot)}, by its verdicts {reason(scene, slot)}"
    for item in record.overruled:
        failed = any(verdict.outcome == "fail" for verdict in overruled(scene.of(item.slot)))
        if (item.slot in reasons or failed) != (item.evidence is not None):
            yield f"that {item.auditor} is overruled has evidence: {item.evidence}"


# --- seals and appeals ---


def first_verdicts_are_sealed(story: Story) -> list[str]:
    """What is logged of a first look is what was sealed, and nobody judged anew could see it before."""
    found = [f"a first verdict was in the log before the second: {text}" for text in story.peeked]
    for scene in story.scenes:
        seals = scene.first_looks.looks if scene.first_looks else ()
        slots = [seal.slot for seal in seals]
        if slots != sorted(set(slots)) or not set(slots) <= set(judged_slots(story, scene)):
            found.append(f"{scene.label}: sealed are looks at {slots}")
        sealed = {(seal.slot, seal.auditor, seal.outcome, seal.verdict) for seal in seals}
        found += [
            f"{scene.label}: the first verdict of {v.auditor} on slot {v.slot} is not the one that was sealed"
            for v in scene.verdicts
            if v.look == 1 and (v.slot, v.auditor, v.outcome, scene.digests.get((v.slot, 1))) not in sealed
        ]
    return found


def appeals_are_in_place(story: Story) -> list[str]:
    """Who appeals was failed twice; no honest member that could be heard goes without."""
    found: list[str] = []
    for scene in story.scenes:
        label = scene.label
        able = {slot: _against(scene, slot) for slot in judged_slots(story, scene)}
        for slot, appeal in scene.appeals.items():
            entry = scene.open.entry(slot)
            if (appeal.member, appeal.key) != (entry.member, entry.key):
                found.append(f"{label}: {appeal.member} appeals for slot {slot}, which is {entry.member}'s")
            if able.get(slot) is None or appeal.verdicts != able[slot]:
                found.append(f"{label}: the appeal for slot {slot} is against other verdicts than its own")
        if story.over(scene):
            found += [f"{label}: {text}" for text in _unheard_appeals(story, scene, able)]
    return found


def _against(scene: Scene, slot: int) -> tuple[str, str] | None:
    """The digests of the two verdicts that fail a slot alike; None where there are none."""
    looks = {verdict.look: verdict for verdict in scene.of(slot)}
    if not {1, 2} <= looks.keys():
        return None
    side = prevailing([looks[1], looks[2]])
    if side is None or side[0] != "fail":
        return None
    return scene.digests[slot, 1], scene.digests[slot, 2]


def _unheard_appeals(story: Story, scene: Scene, able: dict[int, tuple[str, str] | None]) -> Iterator[str]:
    operators = {auditor.member: auditor.operator for auditor in scene.open.auditors}
    for slot, against in able.items():
        name = scene.open.entry(slot).member
        place = (scene.open.turn, "appeal", name)
        if against is None or not story.honest(name) or slot in scene.appeals or place in story.unheard:
            continue
        if any(name in after.rotated for after in story.scenes[story.scenes.index(scene) + 1 :]):
            continue  # where audits lag, who changed its key since cannot appeal: the specification says so
        looks, _ = looks_due(scene, slot)
        vain = {name for look in looks for name in look.missed}
        spoken = {operators[v.auditor] for v in scene.of(slot)}
        if any(operators[n] not in spoken and n not in vain for n in scene.drawn[slot]):
            yield f"honest {name} was failed twice, and could not appeal though others were left"
