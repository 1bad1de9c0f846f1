"""A coordinator that tells a finished story again with one random lie about one record, all signed anew.

Owns the choice of lies for a story; how a lie is told is tests.pipeline.forger's: all that follows from it is
told as if it were true. Level 1 must name it.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint
from tests.pipeline.forger import Entry, Forger
from tests.pipeline.lie_changes import entries, fields, item, plus, settled, without
from tests.simulator.assembly import validation_loss
from tests.simulator.coming_lies import lie_about_coming
from tests.simulator.late_lies import lie_about_settling
from tests.simulator.story import Scene, Story, key_of
from tests.simulator.tolerance import eligible
from tests.simulator.world import Played
from verification.envelope import open_envelope
from verification.fsck import check_run
from verification.log import Log

# Phases whose record the coordinator signs once a turn; a second round-close is an entry told twice.
PHASES = ("round-open", "commit-close", "reveal-close", "draw", "served", "first-looks", "second-draw")


@dataclass(frozen=True)
class Lie:
    """What is told, how, and what level 1 says of it."""

    name: str
    tell: Callable[[Forger], None]
    named: str


class SimulatedForger(Forger):
    """A forger of a run without a model."""

    def val_loss(self, after: Checkpoint) -> int:
        return validation_loss(self.aggregator.arrays(after))


def lie_about(story: Story, played: Played, target: Path) -> tuple[str, list[str]]:
    """(the lie that was told, what the checker missed of it)."""
    dice = random.Random(f"lie/{played.setting.seed}")
    moving = bool(story.manifest.config["identity"]["newcomers"]) or any(
        scene.before for scene in story.scenes
    )
    if moving and random.Random(f"coming lies/{played.setting.seed}").random() < 0.6:
        told = lie_about_coming(story, played, target)
        if told:
            return told
    if story.lag:
        late = lie_about_settling(story, played, target) if dice.random() < 0.8 else None
        return late or _shuffle_log(story, played, target, dice)
    whole = story.scenes[-1].close is not None  # no run that stopped because a turn has no weight
    steady = not story.after and not any(scene.before for scene in story.scenes)
    told_by_forger = whole and not story.manifest.witnessing.witnesses and steady
    if dice.random() < 0.25 or not told_by_forger:
        return _shuffle_log(story, played, target, dice)
    possible = list(_possible(story, dice))
    names = sorted({lie.name for lie in possible})
    name = dice.choice(names)
    lie = dice.choice([lie for lie in possible if lie.name == name])
    forger = SimulatedForger(story.folder, target, key_of(played), story.chain)
    lie.tell(forger)
    forger.tell(end=story.end is not None)
    return _named(name, lie.named, target)


def _named(name: str, words: str, target: Path) -> tuple[str, list[str]]:
    failures = check_run(target).failures
    if any(re.search(words, f"{f.what} in {f.where}") for f in failures):
        return name, []
    return name, [f"[lie] {name} is not named: {[f'{f.what} in {f.where}' for f in failures[:3]]}"]


def _last_close(story: Story) -> int:
    kinds = [open_envelope(entry).predicate_type for entry in story.entries]
    return max((at for at, kind in enumerate(kinds) if kind == "barnraise:round-close:v1"), default=0)


def _shuffle_log(story: Story, played: Played, target: Path, dice: random.Random) -> tuple[str, list[str]]:
    """The log's entries with one dropped, told twice, or two swapped; nothing that follows is told anew.

    Up to the last close: an entry from which nothing follows yet can be left out, and the history is whole.
    """
    told, at = list(story.entries), dice.randrange(1, max(2, _last_close(story)))
    name = dice.choice(("an entry dropped", "an entry told twice", "two entries swapped"))
    if name == "an entry dropped":
        told.pop(at)
    elif name == "an entry told twice":
        told.insert(at, told[at])
    else:
        told[at], told[at + 1] = told[at + 1], told[at]
    shutil.copytree(story.folder, target)
    shutil.rmtree(target / "log")
    manifest = story.manifest
    Log.create(target / "log", manifest.origin, key_of(played), manifest.witness_vkeys).append(told)
    return _named(name, "", target)


def _possible(story: Story, dice: random.Random) -> Iterator[Lie]:
    for number, scene in enumerate(story.scenes):
        if scene.close is None:
            continue
        yield from _about_draws(story, number)
        yield from _about_outcomes(story, number)
        yield from _about_looks(story, number)
        yield from _about_roster(story, number, dice)
        names = [line.member for line in scene.close.credits]
        name = dice.choice(sorted(names))
        at = names.index(name)
        amount = dice.choice((1, 16, 1000))
        for field in ("earned", "vested", "forfeited"):
            yield Lie(
                "a credit changed",
                fields("round-close", number, credits=item("credits", at, **{field: plus(amount)})),
                f"the {field} credit of {name} after {_round(scene)} is wrong",
            )
        for kind in PHASES:
            yield Lie(
                "a phase signed twice", _told_twice(kind, number), "out of order|twice|already|unexpected"
            )
        for kind, many in (("commitment", scene.commitments), ("reveal", scene.reveals)):
            if len(many) > 1:
                yield Lie(
                    f"{kind}s reordered", entries(kind, number, lambda found: found[::-1]), "out of order"
                )


def _round(scene: Scene) -> str:
    """The turn as level 1 calls it."""
    attempt = f" attempt {scene.open.attempt}" if scene.open.attempt else ""
    return f"round {scene.open.round}{attempt}"


def _told_twice(kind: str, number: int) -> Callable[[Forger], None]:
    def twice(found: list[Entry], forger: Forger) -> list[Entry]:
        del forger
        return [found[0], found[0]]

    return lambda forger: forger.lie(kind, number, twice)


def _about_draws(story: Story, number: int) -> Iterator[Lie]:
    scene = story.scenes[number]
    assert scene.draw is not None
    where = _round(scene)
    for at, drawn in enumerate(scene.draw.drawn):
        yield Lie(
            "a drawn audit skipped",
            fields("draw", number, drawn=without("drawn", at)),
            f"the drawn slots of {where} do not follow from the seed",
        )
        count = story.segments_of(scene, drawn.slot)
        every = tuple(range(count))
        told = every if drawn.segments != every else every[1:]
        if count > 1:
            yield Lie(
                "other segments drawn",
                fields("draw", number, drawn=item("drawn", at, segments=told)),
                f"the segments of slot {drawn.slot} in {where} do not follow from the seed",
            )
        others = drawn.auditors[::-1]
        if others != drawn.auditors:
            yield Lie(
                "somebody else drawn",
                fields("draw", number, drawn=item("drawn", at, auditors=others)),
                f"the auditors of slot {drawn.slot} in {where} do not follow from the seed",
            )


def _about_outcomes(story: Story, number: int) -> Iterator[Lie]:
    scene = story.scenes[number]
    assert scene.close is not None
    where = _round(scene)
    valid = scene.reveal_close.revealed if scene.reveal_close else ()
    for line in scene.close.rejected:
        if line.slot in valid:
            yield Lie(
                "a rejected contribution accepted",
                settled(number, line.slot, None),
                f"slot {line.slot} is (settled wrongly|accepted) in {where}",
            )
    for at, accepted in enumerate(scene.close.accepted):
        yield Lie(
            "a weight changed",
            fields("round-close", number, accepted=item("accepted", at, weight=plus(1))),
            f"the weight of slot {accepted.slot} in {where} is wrong",
        )
        yield Lie(
            "an accepted contribution rejected",
            settled(number, accepted.slot, "unaudited"),
            f"slot {accepted.slot} is settled wrongly in {where}",
        )


def _about_looks(story: Story, number: int) -> Iterator[Lie]:
    scene = story.scenes[number]
    assert scene.close is not None
    assert scene.first_looks is not None
    where = _round(scene)
    for at, overruled in enumerate(scene.close.overruled):
        of = f"look {overruled.look} of slot {overruled.slot} in {where}"
        yield Lie(
            "an overruled auditor spared",
            fields("round-close", number, overruled=without("overruled", at)),
            f"{overruled.auditor} is not listed as overruled for {of}",
        )
    for at, seal in enumerate(scene.first_looks.looks):
        if (seal.slot, 1) in scene.digests:
            yield Lie(
                "another verdict sealed",
                fields("first-looks", number, looks=item("looks", at, verdict="sha256:" + "7" * 64)),
                f"the verdict of look 1 of slot {seal.slot} in {where} is not the one that first-looks tells",
            )


def _about_roster(story: Story, number: int, dice: random.Random) -> Iterator[Lie]:
    scene = story.scenes[number]
    where = _round(scene)
    for at, entry in enumerate(scene.open.roster):
        changes: dict[str, Any] = {
            "steps": entry.steps + 1,
            "micro_batch": entry.micro_batch + 1,
            "audit_ppm": entry.audit_ppm // 2 + 2,
            "audit_segments": entry.audit_segments + 1,
            "operator": "op-mine",
            "positions": tuple((start + 7, stop + 7) for start, stop in entry.positions),
        }
        name = dice.choice(sorted(changes))
        yield Lie(
            f"a roster's {name} changed",
            fields("round-open", number, roster=item("roster", at, **{name: changes[name]})),
            f"the {name} of slot {entry.slot} in the roster of {where} is wrong",
        )
    if len(scene.open.roster) > 1:
        yield Lie(
            "a contributor left off the roster",
            fields("round-open", number, roster=without("roster", 0)),
            f"the roster of {where} has the wrong slots",
        )
    if any(eligible(story, scene, entry.slot) for entry in scene.open.roster):
        yield Lie(
            "an auditor left off the list",
            fields("round-open", number, auditors=without("auditors", 0)),
            f"the auditors of {where} are wrong",
        )
