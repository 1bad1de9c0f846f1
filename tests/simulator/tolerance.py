"""Audits by tolerance from the records alone, written from docs/protocol.md, sections 6, 7 and 9.

Owns who may judge whom, what rests on tolerance, what deviations must come to, and the weights. Shares
nothing with verification.tolerance, judge or plans. Does not own who is honest (conduct.py).
"""

from __future__ import annotations

from collections import Counter

from tests.simulator.deviations import Limits, limits, sketches_of, too_far
from tests.simulator.sides import prevailing, side_of, voices
from tests.simulator.story import Scene, Story
from verification.records import AuditorEntry, Verdict
from verification.tolerance import Sketch

MILLION = 1_000_000


def items(story: Story) -> list[Limits]:
    """`audit.tolerance` of the manifest."""
    return list(story.manifest.config["audit"]["tolerance"])


def eligible(story: Story, scene: Scene, slot: int) -> list[str]:
    """Auditors that may judge a slot, in the order of the open: its class first, else what is covered."""
    return [auditor.member for auditor in _judges(story, scene, slot)]


def _judges(story: Story, scene: Scene, slot: int) -> list[AuditorEntry]:
    entry = scene.open.entry(slot)
    foreign = [judge for judge in scene.open.auditors if judge.operator != entry.operator]
    same = [judge for judge in foreign if judge.numerics_class == entry.numerics_class]
    if same:
        return same
    covered = items(story)
    return [j for j in foreign if limits(covered, j.numerics_class, entry.numerics_class) is not None]


def is_lax(story: Story, scene: Scene, slot: int) -> bool:
    """Whether a slot rests on tolerance: somebody may judge it, and nobody to the bit."""
    classes = {judge.numerics_class for judge in _judges(story, scene, slot)}
    return bool(classes) and scene.open.entry(slot).numerics_class not in classes


def contradict(verdicts: list[Verdict]) -> bool:
    """Whether two auditors of one class found different deviations: one of them did not do the work."""
    by_class: dict[str, set[object]] = {}
    for verdict in verdicts:
        by_class.setdefault(verdict.numerics_class, set()).add(verdict.deviations)
    return any(len(told) > 1 for told in by_class.values())


def tolerance_keeps_its_place(story: Story) -> list[str]:
    """Nothing goes by tolerance that need not; deviations decide as stated; weights are as capped."""
    found = list(story.ends)
    for scene in story.scenes:
        for verdict in scene.verdicts:
            found += _verdict_is_in_place(story, scene, verdict)
            found += _saw_the_gradients(story, scene, verdict)
        if scene.close is None:
            continue
        found += _nobody_alone_convicts(story, scene)
        found += _weights_are_right(story, scene)
    return found


def _verdict_is_in_place(story: Story, scene: Scene, verdict: Verdict) -> list[str]:
    entry, slot = scene.open.entry(verdict.slot), verdict.slot
    of = f"{scene.label}: the verdict of {verdict.auditor} on slot {slot}"
    judge = next(a for a in scene.open.auditors if a.member == verdict.auditor)
    found = []
    lax = is_lax(story, scene, slot)
    if verdict.numerics_class != judge.numerics_class:
        found.append(f"{of} is of another class than its auditor")
    if len(verdict.deviations) != (len(scene.segments[slot]) if lax else 0):
        found.append(f"{of} has {len(verdict.deviations)} deviations")
    exact = any(
        a.numerics_class == entry.numerics_class and a.operator != entry.operator for a in scene.open.auditors
    )
    if exact and (verdict.deviations or judge.numerics_class != entry.numerics_class):
        found.append(f"{of} is by tolerance, and somebody could judge it to the bit")
    allowed = limits(items(story), judge.numerics_class, entry.numerics_class)
    if lax and allowed is None:
        found.append(f"{of} is by tolerance, and none is allowed")
    elif ("deviation" in verdict.differs) != (allowed is not None and too_far(allowed, verdict.deviations)):
        found.append(f"{of} does not follow from its deviations")
    return found


def _saw_the_gradients(story: Story, scene: Scene, verdict: Verdict) -> list[str]:
    """Who passes steps told sketches of them, as near as its norm allows, before it was shown them."""
    slot = verdict.slot
    entry, of = scene.open.entry(slot), f"{scene.label}: the verdict of {verdict.auditor} on slot {slot}"
    allowed = limits(items(story), verdict.numerics_class, entry.numerics_class)
    if not is_lax(story, scene, slot) or allowed is None or scene.draw is None:
        return []
    segments = scene.segments[slot]
    told = story.told.get((verdict.auditor, scene.open.turn, slot), set())
    if not told >= set(segments):
        return [f"{of} is by somebody who told of {sorted(told)} of {segments}"]
    task = story.shop.task(story.job, scene.open.base, entry)
    true = sketches_of(task, slot, segments, story.made(scene, slot).points, scene.draw.seed)
    most = 100 + 8 * allowed["norm_ppb"] // 10_000  # 100 for the rounding of moments
    pairs = zip(true, verdict.deviations, strict=False)
    far = [s for s, (one, d) in zip(segments, pairs, strict=False) if _distance(one, d.sketch) > most]
    return [f"{of} passes steps {far} that it has not seen"] if far and verdict.outcome == "pass" else []


def _distance(one: Sketch, other: Sketch) -> int:
    return max(abs(mine - yours) for mine, yours in zip(one, other, strict=True))


def _nobody_alone_convicts(story: Story, scene: Scene) -> list[str]:
    """A fault takes two who found the same, of unlike operators, and no more who found otherwise."""
    found = []
    operators = {auditor.member: auditor.operator for auditor in scene.open.auditors}
    for line in story.rejected(scene):
        if line.reason == "failed-audit":
            side = prevailing(scene.of(line.slot))
            verdicts = [verdict for verdict in scene.of(line.slot) if side and side_of(verdict) == side]
            judges = {operators[verdict.auditor] for verdict in verdicts if verdict.outcome == "fail"}
            if side is None or len(judges) < 2 or voices(scene.of(line.slot))[side] < 2:
                found.append(f"{scene.label}: {line.member} is convicted by {judges or 'nobody'}")
    return found


def weights(story: Story, scene: Scene) -> dict[int, int]:
    """What section 9, 1 gives each slot that the close accepts."""
    assert scene.close is not None
    tokens = {item.slot: item.tokens for item in scene.close.accepted}
    total, operators = sum(tokens.values()), Counter[str]()
    for slot, count in tokens.items():
        operators[scene.open.entry(slot).operator] += count
    config = story.manifest.config
    of_operator = config["credit"]["operator_cap_ppm"] * total
    cap = config["audit"]["tolerance_cap_ppm"]
    found = {}
    for slot, count in tokens.items():
        share = operators[scene.open.entry(slot).operator]
        found[slot] = count if share * MILLION <= of_operator else count * of_operator // (MILLION * share)
    lax = {slot: weight for slot, weight in found.items() if is_lax(story, scene, slot)}
    exact, resting = sum(found.values()) - sum(lax.values()), sum(lax.values())
    if exact and resting * (MILLION - cap) > cap * exact:
        found |= {slot: weight * cap * exact // ((MILLION - cap) * resting) for slot, weight in lax.items()}
    return found


def _weights_are_right(story: Story, scene: Scene) -> list[str]:
    assert scene.close is not None
    found = []
    told = {item.slot: item.weight for item in scene.close.accepted}
    if told != weights(story, scene):
        found.append(f"{scene.label}: the weights are {weights(story, scene)}, the close tells {told}")
    lax = sum(weight for slot, weight in told.items() if is_lax(story, scene, slot))
    whole = sum(told.values())
    if 0 < lax < whole and lax * MILLION > story.manifest.config["audit"]["tolerance_cap_ppm"] * whole:
        found.append(f"{scene.label}: {lax} of a weight of {whole} rest on tolerance alone")
    audited = {entry.slot for entry in scene.open.roster if entry.audit_ppm} | set(scene.drawn)
    found += [
        f"{scene.label}: slot {slot} counts, and nobody may judge it"
        for slot, weight in told.items()
        if weight and slot in audited and not eligible(story, scene, slot)
    ]
    return found
