"""A coordinator that tells a finished story again with a lie about a settlement.

Owns which lies there are, and how the settlement is told: credit, queue and weights follow from the lie as
if it were true, and so does the run-close. What stands between them is told as it was. Level 1 must name the
lie, and level 2 where it takes arrays.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import pipeline.replay_aggregation
from pipeline.checkpoint import Aggregator
from pipeline.folder import RunFolder
from pipeline.lineage import Lineage, replayed
from pipeline.log_reader import Entry, read_entries
from tests.simulator.story import Scene, Story, key_of
from tests.simulator.tolerance import is_lax
from tests.simulator.world import Played
from verification.fsck import check_run
from verification.keys import PrivateKey
from verification.log import Log
from verification.records import PROTOCOL, Base, Overruled, Removed, RunClose, Settlement, Verdict
from verification.rounds import replay
from verification.sealing import seal_record
from verification.settling import plan_settlement
from verification.state import RunState

KINDS = ("first-looks", "second-draw", "verdict", "appeal", "settlement")
OTHER = {"unaudited": "disputed", "disputed": "unconfirmed", "unconfirmed": "unaudited"}


@dataclass(frozen=True)
class LateLie:
    """What is told, the entries that are logged instead, and what is said of it."""

    name: str
    tell: Callable[[], list[Entry]]
    named: str
    by_level_2: bool = False


class Retold:
    """A finished story, and what its coordinator needs to tell it otherwise."""

    def __init__(self, story: Story, played: Played) -> None:
        self.story, self.played, self.key = story, played, key_of(played)
        self.folder = RunFolder(story.folder)
        manifest = story.manifest
        log = Log.open(self.folder.log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
        self.entries = list(read_entries(log, manifest))

    def index(self, settlement: Settlement) -> int:
        return next(at for at, (record, _) in enumerate(self.entries) if record == settlement)

    def before(self, at: int) -> tuple[RunState, Lineage]:
        """State and checkpoints before entry `at`."""
        records = [record for record, _ in self.entries[:at]]
        aggregator = Aggregator.of(self.story.manifest.arrays, self.story.manifest.config)
        start = aggregator.load(self.folder.checkpoint(0), self.folder.outer_file(0).read_bytes())
        state = replay(self.story.manifest, records[1:])
        return state, replayed(self.folder, records, Lineage(aggregator, start))

    def removing(self, at: int, removed: Sequence[Removed], kept: Sequence[Removed] = ()) -> list[Entry]:
        """The settlement at `at` told with `removed`; in the weights `kept` are left all the same."""
        state, lineage = self.before(at)
        told = tuple(sorted(removed, key=lambda item: (item.round, item.attempt, item.slot)))
        lineage = lineage.settled_after(self.folder, state, [item for item in told if item not in kept])
        aggregator = lineage.aggregator
        settled, last = aggregator.digests(lineage.settled), aggregator.digests(lineage.current)
        evidence = {item.slot: item.evidence for item in told}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("verification.settling.removals", lambda *_: told)
            record = plan_settlement(state, settled, last, evidence)
        return self.instead(at, record)

    def instead(self, at: int, record: Settlement) -> list[Entry]:
        """Another settlement at `at`, and a run-close that fits it where nothing else comes between."""
        later = [r for r, _ in self.entries[at + 1 :]]
        told = [*self.entries[:at], (record, seal_record(record, self.key)), *self.entries[at + 1 :]]
        if len(later) == 1 and isinstance(later[0], RunClose):
            old = self.entries[at][0]
            assert isinstance(old, Settlement)
            tokens = later[0].tokens + self._tokens(old.removed) - self._tokens(record.removed)
            end = replace(later[0], weights=record.weights, outer=record.outer, tokens=tokens)
            told[-1] = (end, seal_record(end, self.key))
        return told

    def _tokens(self, removed: Sequence[Removed]) -> int:
        scenes = [(self.story.at(item.round, item.attempt), item.slot) for item in removed]
        return sum(scene.reveals[slot].opening.tokens for scene, slot in scenes)


def lie_about_settling(story: Story, played: Played, target: Path) -> tuple[str, list[str]] | None:
    """(the lie that was told, what the checker missed of it); None where there is nothing to lie about."""
    dice = random.Random(f"late lie/{played.setting.seed}")
    retold = Retold(story, played)
    settled = [scene for scene in story.scenes if scene.settlement]
    possible = [lie for scene in settled for lie in _possible(retold, scene)]
    if not possible:
        return None
    name = dice.choice(sorted({lie.name for lie in possible}))
    lie = dice.choice([lie for lie in possible if lie.name == name])
    shutil.copytree(story.folder, target)
    shutil.rmtree(target / "log")
    manifest = story.manifest
    log = Log.create(target / "log", manifest.origin, retold.key, manifest.witness_vkeys)
    log.append([data for _, data in lie.tell()])
    failures = _level_2(target) if lie.by_level_2 else _level_1(target)
    if any(re.search(lie.named, text) for text in failures):
        return name, []
    return name, [f"[lie] {name} is not named, but for {lie.named!r}: {failures[:4]}"]


def _level_1(target: Path) -> list[str]:
    return [f"{f.what} in {f.where}" for f in check_run(target).failures]


def _level_2(target: Path) -> list[str]:
    """What the replay of the aggregation finds; a simulated run's first weights are taken as they are."""
    failures: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.replay_aggregation, "_fits", lambda *_: True)
        patch.setattr(pipeline.replay_aggregation, "_start", _stored_start)
        steps = pipeline.replay_aggregation.replay_checkpoints(
            RunFolder(target),
            check_run(target),
            lambda failure: failures.append(f"{failure.what} in {failure.where}"),
            lambda *_: None,
        )
        list(steps)
    return failures


def _stored_start(folder: RunFolder, config: object, aggregator: Aggregator, *_: object) -> object:
    del config
    return aggregator.load(folder.checkpoint(0), folder.outer_file(0).read_bytes())


def _possible(retold: Retold, scene: Scene) -> Iterator[LateLie]:
    settlement = scene.settlement
    assert settlement is not None
    at = retold.index(settlement)
    yield from _about_removed(retold, scene, settlement, at)
    yield from _about_checkpoints(retold, scene, settlement, at)
    yield from _about_order(retold, scene, at)
    yield from _verdicts_on_removed(retold, scene)
    yield from _about_looks(retold, scene, settlement, at)


def _name(scene: Scene) -> str:
    """The turn as level 1 calls it."""
    attempt = f" attempt {scene.open.attempt}" if scene.open.attempt else ""
    return f"round {scene.open.round}{attempt}"


def _wrongly(slot: int, of: Scene, by: Scene) -> str:
    return f"slot {slot} of {_name(of)} is settled wrongly by the settlement of {_name(by)}"


def _about_removed(retold: Retold, scene: Scene, settlement: Settlement, at: int) -> Iterator[LateLie]:
    story, removed = retold.story, settlement.removed
    here = (scene.open.round, scene.open.attempt)
    for item in removed:
        of = story.at(item.round, item.attempt)
        named = _wrongly(item.slot, of, scene)
        if item.reason == "follows":
            left = [other for other in removed if other != item]
            yield LateLie("what follows is kept", lambda left=left: retold.removing(at, left), named)
            continue
        left = [other for other in removed if other.member != item.member]
        yield LateLie("something is kept", lambda left=left: retold.removing(at, left), named)
        reason = OTHER.get(item.reason, "unaudited")
        changed = replace(item, reason=reason, fault=False, evidence=None)
        told = [changed if other == item else other for other in removed]
        yield LateLie("another reason", lambda told=told: retold.removing(at, told), named)
    fallen = {item.member for item in removed}
    for item in story.accepted(scene):
        gone = Removed(*here, item.slot, item.member, "unaudited", fault=False, evidence=None)
        told = [*removed, gone]
        named = _wrongly(item.slot, scene, scene)
        yield LateLie("true work is taken out", lambda told=told: retold.removing(at, told), named)
    for later in _waiting(story, scene):
        for item in story.accepted(later):
            if item.member not in fallen:
                place = (later.open.round, later.open.attempt)
                told = [
                    *removed,
                    Removed(*place, item.slot, item.member, "follows", fault=False, evidence=None),
                ]
                named = _wrongly(item.slot, later, scene)
                yield LateLie("a bystander falls", lambda told=told: retold.removing(at, told), named)


def _waiting(story: Story, scene: Scene) -> list[Scene]:
    """Turns that were closed and not settled when this one was settled."""
    number = story.scenes.index(scene)
    last = [s for s in story.scenes if s.close]
    return last[number + 1 : number + 1 + story.lag]


def _about_checkpoints(retold: Retold, scene: Scene, settlement: Settlement, at: int) -> Iterator[LateLie]:
    story, removed = retold.story, settlement.removed
    other = Base("blake3:" + "7" * 64, settlement.settled.outer)
    told = replace(settlement, settled=other)
    # Level 1 knows the checkpoint after a turn as long as nothing was taken out of one before it.
    number = story.scenes.index(scene) + 1
    known = not story.accepted(scene) or not any(
        earlier.settlement.removed for earlier in story.scenes[:number] if earlier.settlement
    )
    named = f"the settled checkpoint of the settlement of {_name(scene)}"
    if not known:
        named = f"settlement of round {scene.open.round}, attempt {scene.open.attempt}, settled"
    yield LateLie("another settled", lambda: retold.instead(at, told), named, by_level_2=not known)
    if removed:
        named = f"settlement of round {scene.open.round}, attempt {scene.open.attempt}"
        kept = [removed[0]]
        weights = {item.slot: item.weight for item in scene.close.accepted} if scene.close else {}
        if story.accepted(scene) and weights[removed[0].slot]:
            yield LateLie(
                "removed work keeps its weight",
                lambda: retold.removing(at, removed, kept),
                named,
                by_level_2=True,
            )


def _about_order(retold: Retold, scene: Scene, at: int) -> Iterator[LateLie]:
    entries, scenes = retold.entries, retold.story.scenes
    start = at
    while entries[start - 1][0].kind in KINDS[:-1]:
        start -= 1
    block, rest = entries[start : at + 1], [*entries[:start], *entries[at + 1 :]]
    named = "a record is out of order"
    last = scene.open.turn + retold.story.lag  # after whose close it stands
    if last < len(scenes):
        early = next(n for n, (record, _) in enumerate(entries) if record == scenes[last].open)
        yield LateLie("a settlement too early", lambda: [*rest[:early], *block, *rest[early:]], named)
    after = [n for n, (record, _) in enumerate(entries) if record.kind == "round-close" and n > at]
    if after:
        late = after[0] + 1 - len(block)
        yield LateLie("a settlement too late", lambda: [*rest[:late], *block, *rest[late:]], named)
    if len(rest) > start:  # else the log breaks off before it
        # Where the settlement of the next turn stands there, its records are taken for the missing ones.
        either = f"{named}|is not that of its round-open"
        yield LateLie("a settlement missing", lambda: rest, either)
    for kind in KINDS[:2]:
        told = _without(entries, start, at, kind)
        yield LateLie(f"a settlement without its {kind}", lambda told=told: told, named)


def _without(entries: list[Entry], start: int, at: int, kind: str) -> list[Entry]:
    return [
        entry for number, entry in enumerate(entries) if not (start <= number <= at and entry[0].kind == kind)
    ]


def _about_looks(retold: Retold, scene: Scene, settlement: Settlement, at: int) -> Iterator[LateLie]:
    """Who was overruled; and a look more or less, with nothing that follows told anew."""
    entries, told, where = retold.entries, settlement.overruled, _name(scene)
    for item in told:
        left = replace(settlement, overruled=tuple(other for other in told if other != item))
        named = (
            f"{item.auditor} is not listed as overruled for look {item.look} of slot {item.slot} in {where}"
        )
        yield LateLie("an overruled auditor spared", lambda left=left: retold.instead(at, left), named)
    for verdict in scene.verdicts:
        if (verdict.slot, verdict.look) in {(item.slot, item.look) for item in told}:
            continue
        line = Overruled(verdict.slot, verdict.look, verdict.auditor, None)
        lines = tuple(sorted((*told, line), key=lambda item: (item.slot, item.look)))
        more = replace(settlement, overruled=lines)
        named = f"{line.auditor} is listed as overruled for look {line.look} of slot {line.slot} in {where}"
        yield LateLie("an auditor overruled for nothing", lambda more=more: retold.instead(at, more), named)
    last = {verdict.slot: verdict for verdict in scene.verdicts if verdict.look > 2}
    for verdict in last.values():
        rest = [entry for entry in entries if entry[0] != verdict]
        named = f"look {verdict.look} of slot {verdict.slot} in {where}|{where}|out of order"
        yield LateLie("a further look left out", lambda rest=rest: rest, named)


def _verdicts_on_removed(retold: Retold, scene: Scene) -> Iterator[LateLie]:
    """By an auditor that is a friend of the coordinator's: on what an earlier settlement took out."""
    story, entries = retold.story, retold.entries
    second = next((n for n, (record, _) in enumerate(entries) if record == scene.second), None)
    early = [item for item in story.removed(scene) if item.reason == "follows"]
    served = scene.served.served if scene.served else ()
    for item in early:
        slot = item.slot
        whole = slot in served and len(scene.segments[slot]) == story.segments_of(scene, slot)
        if second is None or not whole or is_lax(story, scene, slot) or story.lies(scene, slot):
            continue
        name = scene.drawn[slot][0]
        judge = next(auditor for auditor in scene.open.auditors if auditor.member == name)
        key = PrivateKey.load(story.vaults / name / "key")
        if key.public != judge.key:
            continue
        true = story.truth(scene, slot)
        told = (true.payload, true.next_state, true.trace, true.loss_first, true.loss_last, ())
        place = (PROTOCOL, story.manifest.run_id, scene.open.round, scene.open.attempt, slot, 1)
        verdict = Verdict(*place, name, key.public, "pass", (), *told, judge.numerics_class)
        where = second + 1
        while _look(entries[where]) == 1 and _slot(entries[where]) < slot:
            where += 1
        entry: Entry = (verdict, seal_record(verdict, key))
        yield LateLie(
            "a verdict on a removed slot",
            lambda where=where, entry=entry: [*entries[:where], entry, *entries[where:]],
            f"{name} was not to give a verdict for look 1 of slot {slot} in {_name(scene)}",
        )


def _slot(entry: Entry) -> int:
    return int(getattr(entry[0], "slot", -1))


def _look(entry: Entry) -> int:
    return entry[0].look if isinstance(entry[0], Verdict) else 0
