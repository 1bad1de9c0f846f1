"""What must hold of the records of every story: who is accepted, rejected, blamed, and by whose word.

Owns the properties that the log alone decides, with what is known of who is honest and who was unreachable.
Independent of verification.judge: they read the records. Does not own how a story is played.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tests.simulator.accounts import STRIKES
from tests.simulator.story import Scene, Story
from tests.simulator.tolerance import contradict, eligible, is_lax
from verification.records import Rejected, Removed, RoundClose, RoundOpen, Settlement

# What a call that an honest member did not answer may lead to, and which verb that is. `late` costs the
# round; the others are strikes, since the protocol cannot tell an unreachable member from an unwilling one.
UNHEARD = {"late": ("commit",), "unrevealed": ("reveal",), "unserved": ("serve_state", "serve_trace")}
UNCERTAIN = ("unaudited", "unconfirmed", "disputed")


def no_unaudited_work(story: Story) -> list[str]:
    """Drawn work is aggregated only when every look that was drawn at it passed."""
    found = []
    for scene in story.scenes:
        second = {look.slot for look in scene.second.looks} if scene.second else set()
        for item in scene.close.accepted if scene.close else ():
            valid = scene.reveal_close.revealed if scene.reveal_close else ()
            if item.slot not in valid:
                found.append(f"{scene.label}: slot {item.slot} is accepted without a valid reveal")
        for item in story.accepted(scene) if story.over(scene) else ():
            if item.slot in scene.drawn:
                passed = {v.look for v in scene.of(item.slot) if v.outcome == "pass"}
                needed = {1, 2} if item.slot in second else {1}
                if passed != needed or contradict(scene.of(item.slot)):
                    found.append(f"{scene.label}: slot {item.slot} is accepted, looks passed: {passed}")
    return found


def honest_keys_are_safe(story: Story) -> list[str]:
    """No honest member is at fault, struck or quarantined, but for calls that never reached it in time."""
    found = []
    excused: Counter[str] = Counter()
    strikes = story.manifest.config["credit"]["strikes"]
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            for name in scene.revoked:  # its owner's or the organiser's wish
                excused[name] += strikes
            continue
        for line in record.removed if isinstance(record, Settlement) else record.rejected:
            explained = (
                _fell_with_another(story, record, line)
                if line.reason == "follows"
                else _explained(story, scene, line.slot, line.reason)
            )
            if story.honest(line.member) and not explained:
                found.append(f"{scene.label}: honest {line.member} is rejected as {line.reason}")
            if line.reason in STRIKES:
                excused[line.member] += 1
            if line.reason == "failed-audit" and line.fault:
                excused[line.member] += strikes
        found += [
            f"{scene.label}: honest {name} is in quarantine"
            for name in record.quarantined
            if story.honest(name) and excused[name] < strikes
        ]
    return found + [f"an honest member refused a proper request: {text}" for text in story.refusals]


def _fell_with_another(story: Story, record: RoundClose | Settlement, line: Rejected | Removed) -> bool:
    """Whether a contribution is out because an earlier one of the member's is, which is looked at itself."""
    if not isinstance(record, Settlement) or not isinstance(line, Removed):
        return False
    first = (record.round, record.attempt)
    return (line.round, line.attempt) > first and any(
        item.member == line.member and (item.round, item.attempt) == first for item in record.removed
    )


def _explained(story: Story, scene: Scene, slot: int, reason: str) -> bool:
    name = scene.open.entry(slot).member
    verdicts = scene.of(slot)
    if reason in UNHEARD:
        return any((scene.open.turn, verb, name) in story.unheard for verb in UNHEARD[reason])
    if reason == "no-eligible-auditor":
        return not eligible(story, scene, slot)
    if reason == "unaudited":
        return any(missed == slot for missed, _, _ in story.missed(scene))
    bent = {v.auditor for v in verdicts if v.outcome == "fail" and not story.honest(v.auditor)}
    if reason == "disputed" and contradict(verdicts):  # of one class, who did all the work find the same
        return any(not story.honest(v.auditor) for v in verdicts)
    if reason in UNCERTAIN:
        return bool(bent)
    if reason == "failed-audit":  # two bent auditors of different operators: the protocol trusts one of two
        return len({story.people[name].operator for name in bent}) == 2
    return False


def accepted_once(story: Story) -> list[str]:
    """One acceptance a slot and turn, no payload twice over the turns, no position twice at all."""
    found = []
    payloads: set[str] = set()
    ranges: list[tuple[int, int]] = []
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            continue
        if isinstance(record, Settlement):
            found += _taken_out(story, scene, record, ranges)
            continue
        accepted = record.accepted
        slots = [item.slot for item in accepted]
        settled = slots + [line.slot for line in record.rejected]
        if sorted(settled) != [entry.slot for entry in scene.open.roster]:
            found.append(f"{scene.label}: not every slot is settled once: {settled}")
        for item in accepted:
            reveal = scene.reveals.get(item.slot)
            if reveal is None or reveal.opening.payload != item.payload:
                found.append(f"{scene.label}: what is accepted of slot {item.slot} was not revealed")
            if item.payload in payloads:
                found.append(f"{scene.label}: a payload is accepted again")
            ranges += scene.open.entry(item.slot).positions
        payloads |= {item.payload for item in accepted}
        ranges.sort()
        found += [f"positions {a} and {b} overlap" for a, b in pairwise(ranges) if a[1] > b[0]]
    return found


def _taken_out(story: Story, scene: Scene, record: Settlement, ranges: list[tuple[int, int]]) -> list[str]:
    """What a settlement removes was accepted, and its positions are free from then on."""
    found = []
    for item in record.removed:
        of = story.at(item.round, item.attempt)
        positions = of.open.entry(item.slot).positions
        if not set(positions) <= set(ranges):
            found.append(f"{scene.label}: slot {item.slot} of {of.label} is removed, and was not accepted")
        ranges[:] = [piece for piece in ranges if piece not in positions]
    return found


def false_work_is_stopped(story: Story) -> list[str]:
    """No work whose falsehood an honest auditor's segments hold is accepted; two such verdicts: a fault."""
    found = []
    for scene in story.scenes:
        reasons = {line.slot: line.reason for line in story.rejected(scene)}
        for slot in scene.reveals:
            judged = [v for v in scene.of(slot) if story.honest(v.auditor)]
            false = story.shows(scene, slot)
            if scene.of(slot) and story.lies(scene, slot) != bool(story.admitted(scene, slot)):
                found.append(f"{scene.label}: slot {slot} is false elsewhere than it admits")
            found += [
                f"{scene.label}: honest {v.auditor} gives {v.outcome} to slot {slot}"
                for v in judged
                if (v.outcome == "fail") != false
            ]
            if not false or not story.over(scene):
                continue
            if slot not in reasons and slot in scene.drawn and (judged or not scene.of(slot)):
                found.append(f"{scene.label}: false work of slot {slot} is accepted")
            convicted = len({story.people[v.auditor].operator for v in judged}) == 2
            if convicted and reasons.get(slot) != "failed-audit":
                found.append(f"{scene.label}: two honest auditors, slot {slot} is {reasons.get(slot)}")
            if slot not in reasons and not _escaped(story, scene, slot):
                found.append(f"{scene.label}: slot {slot} met two honest auditors and is accepted")
        found += _served_falsely(story, scene)
    return found


def _served_falsely(story: Story, scene: Scene) -> list[str]:
    """A trace that is not opened as it was committed to, where one is due, is not served."""
    return [
        f"{scene.label}: slot {slot} counts as served, with a trace that it did not commit to"
        for slot in (scene.served.served if scene.served else ())
        if (is_lax(story, scene, slot) or len(scene.segments[slot]) < story.segments_of(scene, slot))
        and (scene.open.turn, scene.open.entry(slot).member) in story.shop.shut
    ]


def _escaped(story: Story, scene: Scene, slot: int) -> bool:
    """Whether false work may be accepted: it was not drawn, or whoever was first to judge it is bent."""
    first = next((v for v in scene.of(slot) if v.look == 1), None)
    return slot not in scene.drawn or (first is not None and not story.honest(first.auditor))
