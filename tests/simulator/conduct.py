"""What must hold of the records of every story: who is accepted, rejected, blamed, and by whose word.

Owns the properties that the log alone decides, with what is known of who is honest and who was unreachable.
Independent of verification.judge: they read the records. Does not own how a story is played.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tests.simulator.accounts import STRIKES
from tests.simulator.disputes import heard_for, judged_slots, reason
from tests.simulator.story import Scene, Story
from tests.simulator.tolerance import eligible, is_lax
from verification.records import Rejected, Removed, RoundClose, RoundOpen, Settlement

# What a call that an honest member did not answer may lead to, and which verb that is. `late` costs the
# round; the others are strikes, since the protocol cannot tell an unreachable member from an unwilling one.
UNHEARD = {"late": ("commit",), "unrevealed": ("reveal",), "unserved": ("serve_state", "serve_trace")}


def no_unaudited_work(story: Story) -> list[str]:
    """Drawn work is aggregated only when a first look, or the side that prevails, passed it."""
    found = []
    for scene in story.scenes:
        for item in scene.close.accepted if scene.close else ():
            valid = scene.reveal_close.revealed if scene.reveal_close else ()
            if item.slot not in valid:
                found.append(f"{scene.label}: slot {item.slot} is accepted without a valid reveal")
        for item in story.accepted(scene) if story.over(scene) else ():
            if item.slot in scene.drawn and reason(scene, item.slot) is not None:
                looks = {v.look: v.outcome for v in scene.of(item.slot)}
                found.append(f"{scene.label}: slot {item.slot} is accepted, its looks: {looks}")
    return found


def honest_keys_are_safe(story: Story) -> list[str]:
    """No honest member is at fault, struck, overruled or quarantined, but for calls it never heard in time.

    Two bent auditors of different operators on the side that prevails can: the protocol trusts one of two.
    """
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
        for item in record.overruled:
            excused[item.auditor] += strikes
            if story.honest(item.auditor) and not _outvoted(story, scene, item.slot):
                found.append(f"{scene.label}: honest {item.auditor} is overruled")
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


def _explained(story: Story, scene: Scene, slot: int, why: str) -> bool:
    name = scene.open.entry(slot).member
    verdicts = scene.of(slot)
    if why in UNHEARD:
        return any((scene.open.turn, verb, name) in story.unheard for verb in UNHEARD[why])
    if why == "no-eligible-auditor":
        return not eligible(story, scene, slot)
    if why == "unaudited":
        return any(missed == slot for missed, _, _ in story.missed(scene))
    bent = [v for v in verdicts if not story.honest(v.auditor)]
    if why == "unconfirmed":
        return any(verdict.outcome == "fail" for verdict in bent)
    if why == "disputed":  # whoever did all the work finds the same
        return bool(bent)
    return why == "failed-audit" and _outvoted(story, scene, slot)


def _outvoted(story: Story, scene: Scene, slot: int) -> bool:
    """Whether bent auditors of two operators or more are on the side that prevails at a slot."""
    sides = [heard_for(story, scene, slot, outcome, honest=False) for outcome in ("pass", "fail")]
    return max(map(len, sides)) >= 2


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
    """Honest auditors judge truly; where they outnumber bent ones, two or more, a slot is as they say.

    No false work that an honest auditor's segments hold is accepted unless more bent ones passed it.
    """
    found = []
    for scene in story.scenes:
        settled = set(judged_slots(story, scene)) if story.over(scene) else set()
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
            due = "failed-audit" if false else None
            many = slot in settled and 2 <= len(judged) > len(scene.of(slot)) - len(judged)
            if many and reasons.get(slot) != due:
                found.append(
                    f"{scene.label}: {len(judged)} honest auditors, slot {slot} is {reasons.get(slot)}"
                )
            accepted = story.over(scene) and slot not in reasons
            if false and accepted and not _escaped(story, scene, slot):
                found.append(f"{scene.label}: false work of slot {slot} is accepted")
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
    """Whether drawn false work may be accepted: the one who looked is bent, or two who prevail are."""
    verdicts = scene.of(slot)
    if len(verdicts) == 1:
        return not story.honest(verdicts[0].auditor)
    return len(heard_for(story, scene, slot, "pass", honest=False)) >= 2
