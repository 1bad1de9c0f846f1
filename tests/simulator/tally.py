"""One seed from its number to what was wrong and how often everything occurred.

Owns the counting, so that it shows what of the space thousands of seeds reach.
"""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.simulator.conduct import UNHEARD
from tests.simulator.deviations import NUMBERS
from tests.simulator.disputes import judged_slots, looks_due
from tests.simulator.invariants import violations
from tests.simulator.lies import lie_about
from tests.simulator.memory import remember
from tests.simulator.setting import Setting, draw
from tests.simulator.story import Scene, Story, read
from tests.simulator.tolerance import contradict, eligible, is_lax
from tests.simulator.world import play, scratch
from verification.records import Enrol, Leave, Return, RoundOpen

# What a thousand seeds must reach of members that come and go.
COMINGS = (
    *(f"membership: newcomer joined, {role}" for role in ("contributor", "auditor")),
    *(f"membership: newcomer joined, {kind}" for kind in ("honest", "cheat")),
    *(f"membership: {role} left, by coordinator" for role in ("contributor", "auditor")),
    *(f"membership: {role} left, by member" for role in ("contributor", "auditor")),
    *(f"membership: {role} returned" for role in ("contributor", "auditor")),
    "membership: returned before the turn that it had left before", "membership: newcomer left",
    "membership: turns that somebody was away from", "membership: turns that nobody was left for",
    "membership: joined after a turn passed on the way", "membership: newcomer's work accepted",
    "membership: newcomer convicted", "membership: newcomer audited others",
    "membership: owed a verdict when it left", "membership: credit vested while it was away",
    "membership: waits for somebody to return", "joining: newcomers hired",
    "joining: a log had to be read from the start again", "joining: not let in",
    "joining: a member died at a call that was begun",
)  # fmt: skip

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What came of a seed. `log` is SHA-256 over the log's entries: equal for equal stories."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    log: str


def run_seed(seed: int, tell: Tell | None = None) -> Result:
    """Play and check a seed; `tell` gets its story, line by line."""
    setting = draw(seed)
    if tell:
        _introduce(setting, tell)
    try:
        return _played(setting, tell)
    except Exception:  # the other seeds go on, and this one is found
        text = f"[simulator] the seed could not be played or checked: {traceback.format_exc()}"
        if tell:
            tell(f"VIOLATION {text}")
        return Result(seed, [text], Counter(), "")


def _played(setting: Setting, tell: Tell | None) -> Result:
    with scratch() as root, pytest.MonkeyPatch.context() as patch:
        remember(patch)
        played = play(setting, root / "world", tell)
        story = read(played)
        found = violations(story)
        counts = played.counts + count(story)
        counts["joining: not let in"] += sum("not let in" in line for line in played.told)
        counts["run: taken up after a crash"] += played.taken_up
        stops = {"witness": "too few witnesses", "weigh nothing": "no weight"}
        stop = next((why for word, why in stops.items() if word in played.stopped), "void turns")
        counts["run: finished" if played.finished else f"run: stopped, {stop}"] += 1
        if setting.lie and not found:
            told, missed = lie_about(story, played, root / "forged")
            counts[f"lie: {told}"] += 1
            found += missed
            if tell:
                tell(f"the coordinator tells it again and lies: {told}; {'MISSED' if missed else 'named'}")
    if tell:
        tell(f"{len(story.scenes)} turns, {len(story.entries)} entries; " + (played.stopped or "complete"))
        for text in found:
            tell(f"VIOLATION {text}")
    log = hashlib.sha256(b"".join(hashlib.sha256(entry).digest() for entry in story.entries)).hexdigest()
    return Result(setting.seed, found, counts, log)


def _introduce(setting: Setting, tell: Tell) -> None:
    config, weather = setting.config, setting.weather
    tell(f"seed {setting.seed}: {config['run']['rounds']} rounds, {config['timing']['mode']} timing")
    audit = config["audit"]
    late = f", {audit['lag']} turns late" if audit.get("lag") else ""
    tell(f"  audits {audit['rate_ppm']} ppm{late}, second looks {audit['second_look_ppm']} ppm")
    tell(f"  {audit['segments'] or 'all'} segments of {config['train']['trace_every']} steps an audit")
    for item in audit.get("tolerance", ()):
        told = ", ".join(f"{name} {item[name]}" for name in NUMBERS)
        tell(f"  between {' and '.join(item['classes'])}: {told}; at most {audit['tolerance_cap_ppm']} ppm")
    for person in setting.people:
        arrives = f", may join before turn {person.arrives}" if person.arrives else ""
        kind = f"{person.kind or 'honest'}{arrives}"
        tell(f"  {person.name} of {person.operator}, class {person.numerics}: {kind}")
    tell(
        f"  network: drops {weather.drop}, duplicates {weather.duplicate}, delays {weather.delay},"
        f" old requests {weather.stale}; crashes of members {weather.member_crash}, of the coordinator"
        f" {weather.coordinator_crash}"
    )
    for number, kind in enumerate(setting.witnesses):
        tell(f"  witness w.example/{number}, {setting.required} required: {kind or 'honest'}")
    for part in weather.partitions:
        whom = ", ".join(sorted(part.members))
        tell(f"  cut off in turns {part.first} to {part.last}: {whom} ({part.verb or 'everything'})")


def count(story: Story) -> Counter[str]:
    """Outcomes, verdicts, kinds of people, and the costs that honest members bore."""
    counts: Counter[str] = Counter()
    for person in story.people.values():
        counts[f"{person.role}: {person.kind or 'honest'}"] += 1
    counts["identity: key rotated"] += story.rotations
    for scene in story.scenes:
        counts["run: turns"] += 1
        counts["identity: key revoked"] += len(scene.revoked)
        if scene.close is None:
            continue
        counts["run: void turns"] += scene.close.void
        _count_slots(story, scene, counts)
        counts["verdict: missed"] += len(story.missed(scene))
        for verdict in scene.verdicts:
            counts[f"verdict: {verdict.outcome}, look {verdict.look}"] += 1
        _count_segments(story, scene, counts)
        _count_tolerance(story, scene, counts)
        _count_disputes(story, scene, counts)
    _count_late(story, counts)
    _count_comings(story, counts)
    records = [record for _, record in story.course() if not isinstance(record, RoundOpen)]
    for name in records[-1].quarantined if records else ():
        counts[f"quarantine: {'honest' if story.honest(name) else 'cheat'}"] += 1
    return +counts


def _count_comings(story: Story, counts: Counter[str]) -> None:
    """Who came, left and returned, and what that met."""
    away: set[str] = set()
    left_at: dict[str, int] = {}
    first = {record.member for record in story.first}
    vested: dict[str, int] = {}
    for scene in story.scenes:
        turn = scene.open.turn
        for record, _ in scene.before:
            if not isinstance(record, Enrol | Leave | Return):
                continue
            name, role = record.member, story.enrolled[record.member].role
            if isinstance(record, Enrol):
                counts[f"membership: newcomer joined, {role}"] += 1
                counts[f"membership: newcomer joined, {'honest' if story.honest(name) else 'cheat'}"] += 1
                passed = turn > story.people[name].arrives
                counts["membership: joined after a turn passed on the way"] += passed
            elif isinstance(record, Leave):
                counts[f"membership: {role} left, by {record.by}"] += 1
                counts["membership: newcomer left"] += name not in first
                away.add(name)
                left_at[name] = turn
            else:
                counts[f"membership: {role} returned"] += 1
                same = left_at.get(name) == turn
                counts["membership: returned before the turn that it had left before"] += same
                away.discard(name)
        counts["membership: turns that somebody was away from"] += bool(away)
        counts["membership: turns that nobody was left for"] += not scene.open.roster
        _count_away(story, scene, away, left_at, counts)
        for line in scene.close.credits if scene.close else ():
            grown = line.vested > vested.get(line.member, 0)
            counts["membership: credit vested while it was away"] += grown and line.member in away
            vested[line.member] = line.vested
        judges = {verdict.auditor for verdict in scene.verdicts}
        counts["membership: newcomer audited others"] += len(judges - first)
        for item in story.accepted(scene):
            counts["membership: newcomer's work accepted"] += item.member not in first
        for line in story.rejected(scene):
            convicted = line.reason == "failed-audit" and line.member not in first
            counts["membership: newcomer convicted"] += convicted


def _count_away(
    story: Story, scene: Scene, away: set[str], left_at: dict[str, int], counts: Counter[str]
) -> None:
    """Auditors that missed a look that came due after they had left."""
    for earlier in story.scenes:
        if earlier.open.turn < scene.open.turn <= earlier.open.turn + story.lag and earlier.settlement:
            missed = {item.auditor for item in earlier.settlement.missed}
            owed = [name for name in missed & away if left_at[name] == scene.open.turn]
            counts["membership: owed a verdict when it left"] += len(owed)


def _count_late(story: Story, counts: Counter[str]) -> None:
    """Where audits lag, what came of them."""
    if not story.lag:
        return
    counts[f"lag: runs with audits {story.lag} turns late"] += 1
    for scene in story.scenes:
        counts["lag: turns settled"] += story.over(scene)
        counts["lag: turns that stayed unsettled"] += scene.close is not None and not story.over(scene)
        if scene.close is None or scene.settlement is None:
            continue
        removed = scene.settlement.removed
        counts["lag: settlements that take something out"] += bool(removed)
        counts["lag: turns of which nothing is left"] += bool(removed) and not story.accepted(scene)
        for item in removed:
            counts[f"lag: removed, {item.reason}"] += 1
            of = story.at(item.round, item.attempt)
            if item.reason == "follows":
                counts["lag: true work that fell with false"] += not story.lies(of, item.slot)
            elif item.reason == "unaudited" and story.lies(of, item.slot):
                counts["lag: false work that nobody judged taken out"] += 1


def _count_segments(story: Story, scene: Scene, counts: Counter[str]) -> None:
    """Draws of some segments, and what came of them."""
    for slot, segments in scene.segments.items():
        if len(segments) == story.segments_of(scene, slot):
            continue
        counts["segments: some drawn"] += 1
        if scene.served and slot in scene.served.unserved:
            counts["segments: a trace or state unserved"] += 1
        verdicts = scene.of(slot)
        for verdict in verdicts:
            counts[f"segments: {verdict.outcome} on some"] += 1
        if any(verdict.outcome == "fail" for verdict in verdicts) and story.shows(scene, slot):
            where = "boundary" if story.admitted(scene, slot).boundary else "one"
            counts[f"segments: {where} found"] += 1


def _count_disputes(story: Story, scene: Scene, counts: Counter[str]) -> None:
    """What auditors, and contributors, contradicted one another in, and what came of it."""
    out = {item.slot for item in story.overruled(scene)}
    for item in story.overruled(scene):
        counts[f"dispute: auditor overruled, {story.people[item.auditor].kind or 'honest'}"] += 1
    for appeal in scene.appeals.values():
        true = not story.shows(scene, appeal.slot)
        counts[f"dispute: appeal logged, {'true' if true else 'false'} work"] += 1
    reasons = {line.slot: line.reason for line in story.rejected(scene)}
    sealed = {seal.slot for seal in scene.first_looks.looks} if scene.first_looks else set()
    for slot in judged_slots(story, scene) if story.over(scene) else ():
        looks, decided = looks_due(scene, slot)
        false, reason = story.shows(scene, slot), reasons.get(slot)
        counts["dispute: nobody left to decide"] += not decided
        counts["dispute: sealed verdict lost"] += slot in sealed and looks[0].by is None
        counts["dispute: honest work accepted in spite of an accuser"] += (
            slot in out and not false and not reason
        )
        counts["dispute: false work failed in spite of a stamp"] += (
            slot in out and false and reason == "failed-audit"
        )
        if len(looks) > 2:
            counts[f"dispute: looks at a slot, {len(looks)}"] += 1
            counts[
                f"dispute: {'false' if false else 'true'} work looked at again, {reason or 'accepted'}"
            ] += 1


def _count_tolerance(story: Story, scene: Scene, counts: Counter[str]) -> None:
    """What rested on tolerance, and what came of it."""
    assert scene.close is not None
    reasons = {line.slot: line.reason for line in story.rejected(scene)}
    for entry in scene.open.roster:
        if not is_lax(story, scene, entry.slot):
            continue
        counts["tolerance: slots that rest on it"] += 1
        verdicts, reason = scene.of(entry.slot), reasons.get(entry.slot, "accepted")
        for verdict in verdicts:
            counts[f"tolerance: {verdict.outcome}, look {verdict.look}"] += 1
        if contradict(verdicts):
            counts["tolerance: deviations that contradict one another"] += 1
        found = [v for v in verdicts if "deviation" in v.differs]
        if any(story.honest(v.auditor) for v in found):
            counts[f"tolerance: a false step found, {reason}"] += 1
        elif found:
            counts[f"tolerance: a deviation invented, {reason}"] += 1
        if len({verdict.numerics_class for verdict in verdicts}) > 1:
            counts[f"tolerance: judged by two classes, {reason}"] += 1
    tokens = {item.slot: item.tokens for item in scene.close.accepted}
    lax = [slot for slot in tokens if is_lax(story, scene, slot)]
    cap = story.manifest.config["audit"]["tolerance_cap_ppm"]
    if len(lax) < len(tokens) and sum(tokens[slot] for slot in lax) * 1_000_000 > cap * sum(tokens.values()):
        counts["tolerance: turns with the cap in force"] += 1


def _count_slots(story: Story, scene: Scene, counts: Counter[str]) -> None:
    assert scene.close is not None
    for item in story.accepted(scene):
        counts["outcome: accepted"] += 1
        if story.over(scene) and story.lies(scene, item.slot):
            drawn = item.slot in scene.drawn and story.shows(scene, item.slot)
            why = "the false segment not drawn" if item.slot in scene.drawn else "not drawn"
            counts[f"outcome: false work accepted, {'passed by bent auditors' if drawn else why}"] += 1
            able = {
                story.people[name].operator
                for name in eligible(story, scene, item.slot)
                if story.honest(name)
            }
            if drawn and len(able) >= 2:
                counts["outcome: false work accepted though two honest auditors were eligible"] += 1
    for line in story.rejected(scene):
        counts[f"outcome: {line.reason}"] += 1
        if story.honest(line.member) and line.reason in UNHEARD and line.reason != "late":
            places = [(scene.open.turn, verb, line.member) for verb in UNHEARD[line.reason]]
            why = next(story.unheard[place] for place in places if place in story.unheard)
            counts[f"cost: an honest member struck as {line.reason}, {why}"] += 1
        if story.honest(line.member) and line.reason == "failed-audit":
            counts["cost: an honest member convicted by two bent auditors"] += 1


def run_seeds(first: int, last: int) -> list[Result]:
    """Seeds from `first` to `last` - 1; for a process of its own."""
    return [run_seed(seed) for seed in range(first, last)]
