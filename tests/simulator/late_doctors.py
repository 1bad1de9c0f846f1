"""Doctored stories of a run whose audits lag, each broken in one place that late settling has.

Owns the setting of the story and the changes; that they are found is test_invariants.py's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.simulator.setting import Person, Setting, Weather, draw
from tests.simulator.story import Scene, Story
from tests.simulator.world import Played
from verification.records import Base, Missed, Removed

Doctor = Callable[[Story, Played], None]
NOWHERE = Base("blake3:" + "5" * 64, "blake3:" + "6" * 64)


def late() -> Setting:
    """Fair weather, three auditors two turns behind, one of four whose work is false every other turn."""
    config = draw(0).config
    people = tuple(
        Person(name, role, f"op-{name}", "sim-a", "relapse" if name == "c03" else None, 50)
        for role, names in (("contributor", ("c00", "c01", "c02", "c03")), ("auditor", ("a00", "a01", "a02")))
        for name in names
    )
    changes: dict[str, dict[str, Any]] = {
        "run": {"rounds": 5},
        "train": {"steps": [2, 3, 1, 2], "trace_every": 1},
        "audit": {
            "auditors": 3,
            "rate_ppm": 1_000_000,
            "second_look_ppm": 700_000,
            "segments": 0,
            "probation_rounds": 0,
            "lag": 2,
        },
        "credit": {"vest_rounds": 3},
        "state": {"policy": "snapshot"},
        "timing": {"mode": "fixed"},
    }
    config = {name: {**values, **changes.get(name, {})} for name, values in config.items()}
    return Setting(7, people, Weather(), config)


def excising(story: Story) -> Scene:
    """The turn whose settlement takes false work out, and true work that followed."""
    return next(
        s for s in story.scenes if s.settlement and any(i.reason == "follows" for i in s.settlement.removed)
    )


def _settlement(scene: Scene, **changes: Any) -> None:
    assert scene.settlement is not None
    scene.settlement = replace(scene.settlement, **changes)


def _removed(scene: Scene) -> tuple[Removed, ...]:
    assert scene.settlement is not None
    return scene.settlement.removed


def nothing_removed(story: Story, played: Played) -> None:
    _settlement(excising(story), removed=())


def follower_kept(story: Story, played: Played) -> None:
    scene = excising(story)
    _settlement(scene, removed=tuple(i for i in _removed(scene) if i.reason != "follows"))


def _taken_too(story: Story, reason: str) -> None:
    scene = excising(story)
    item = story.accepted(scene)[0]
    place = (scene.open.round, scene.open.attempt)
    line = Removed(*place, item.slot, item.member, reason, fault=False, evidence=None)
    _settlement(scene, removed=(line, *_removed(scene)))


def true_work_removed(story: Story, played: Played) -> None:
    _taken_too(story, "disputed")


def bystander_removed(story: Story, played: Played) -> None:
    _taken_too(story, "follows")


def other_reason(story: Story, played: Played) -> None:
    scene = excising(story)
    first = replace(_removed(scene)[0], reason="disputed", fault=False)
    _settlement(scene, removed=(first, *_removed(scene)[1:]))


def no_evidence(story: Story, played: Played) -> None:
    scene = excising(story)
    _settlement(scene, removed=tuple(replace(item, evidence=None) for item in _removed(scene)))


def removed_again(story: Story, played: Played) -> None:
    scene = excising(story)
    later = next(s for s in story.scenes if s.open.turn > scene.open.turn and s.settlement)
    _settlement(later, removed=(*_removed(later), _removed(scene)[0]))


def _follower(story: Story) -> tuple[Scene, int]:
    item = next(item for item in _removed(excising(story)) if item.reason == "follows")
    return story.at(item.round, item.attempt), item.slot


def removed_judged(story: Story, played: Played) -> None:
    scene, slot = _follower(story)
    scene.verdicts.append(replace(scene.verdicts[0], slot=slot))


def removed_missed(story: Story, played: Played) -> None:
    scene, slot = _follower(story)
    _settlement(scene, missed=(Missed(slot, 1, "a00"),))


def missed_at_once(story: Story, played: Played) -> None:
    scene = story.scenes[0]
    assert scene.close is not None
    scene.close = replace(scene.close, missed=(Missed(0, 1, "a00"),))


def other_settled(story: Story, played: Played) -> None:
    _settlement(excising(story), settled=NOWHERE)


def other_weights(story: Story, played: Played) -> None:
    _settlement(excising(story), weights=NOWHERE.weights)


def removed_still_in_the_weights(story: Story, played: Played) -> None:
    """As the close said, from before anything was taken out."""
    scene = excising(story)
    last = next(s for s in story.scenes if s.open.turn == scene.open.turn + story.lag)
    assert last.close is not None
    _settlement(scene, weights=last.close.weights, outer=last.close.outer)


def other_base(story: Story, played: Played) -> None:
    scene = story.scenes[-1]
    scene.open = replace(scene.open, base=NOWHERE)


def other_close(story: Story, played: Played) -> None:
    scene = story.scenes[-1]
    assert scene.close is not None
    scene.close = replace(scene.close, outer=NOWHERE.outer)


def _starts(scene: Scene, name: str, state: str) -> None:
    roster = [replace(e, start_state=state) if e.member == name else e for e in scene.open.roster]
    scene.open = replace(scene.open, roster=tuple(roster))


def started_from_nothing(story: Story, played: Played) -> None:
    _starts(story.scenes[-1], "c00", story.manifest.zero_state)


def started_from_elsewhere(story: Story, played: Played) -> None:
    _starts(story.scenes[0], "c03", "blake3:" + "4" * 64)


def still_paid(story: Story, played: Played) -> None:
    scene = excising(story)
    assert scene.settlement is not None
    told = [replace(c, earned=c.earned + 16, forfeited=c.forfeited + 16) for c in scene.settlement.credits]
    _settlement(scene, credits=tuple(told))


def not_quarantined(story: Story, played: Played) -> None:
    _settlement(excising(story), quarantined=())


def honest_quarantined(story: Story, played: Played) -> None:
    _settlement(excising(story), quarantined=("c00", "c03"))


def handed_out_too_early(story: Story, played: Played) -> None:
    """Positions of what is removed later, in a turn before that."""
    scene = excising(story)
    positions = scene.open.entry(_removed(scene)[0].slot).positions
    later = story.scenes[story.scenes.index(scene) + 1]
    roster = [
        replace(entry, positions=positions) if entry.slot == 0 else entry for entry in later.open.roster
    ]
    later.open = replace(later.open, roster=tuple(roster))


def accepted_unjudged(story: Story, played: Played) -> None:
    scene = excising(story)
    slot = story.accepted(scene)[0].slot
    scene.verdicts = [verdict for verdict in scene.verdicts if verdict.slot != slot]


def _kind(entry: bytes) -> str:
    statement = json.loads(base64.b64decode(json.loads(entry)["payload"]))
    return str(statement["predicateType"]).split(":")[1]


def _at(story: Story, kind: str) -> int:
    return next(at for at, entry in enumerate(story.entries) if _kind(entry) == kind)


def settled_too_late(story: Story, played: Played) -> None:
    at = _at(story, "settlement")
    entries = story.entries
    story.entries = [*entries[:at], entries[at + 1], entries[at], *entries[at + 2 :]]


def never_settled(story: Story, played: Played) -> None:
    at = _at(story, "settlement")
    story.entries = [*story.entries[:at], *story.entries[at + 1 :]]


def judged_before_the_close(story: Story, played: Played) -> None:
    verdict, close = _at(story, "verdict"), _at(story, "round-close")
    entries = list(story.entries)
    entries.insert(close, entries.pop(verdict))
    story.entries = entries


def links_swapped(story: Story, played: Played) -> None:
    story.chain = type(story.chain)(b"\1" * 32, story.chain.length)


LATE_DOCTORS: list[tuple[str, Doctor]] = [
    *(("removed", doctor) for doctor in (
        nothing_removed, follower_kept, true_work_removed, bystander_removed, other_reason, no_evidence,
        removed_again, removed_judged, removed_missed, missed_at_once, accepted_unjudged,
    )),
    *(("weights", doctor) for doctor in (
        other_settled, other_weights, removed_still_in_the_weights, other_base, other_close, nothing_removed,
        follower_kept,
    )),
    ("lineage", started_from_nothing),
    ("lineage", started_from_elsewhere),
    ("credit", still_paid),
    ("credit", not_quarantined),
    ("credit", nothing_removed),
    ("honest keys", honest_quarantined),
    ("honest keys", true_work_removed),
    ("honest keys", bystander_removed),
    ("accepted once", handed_out_too_early),
    ("unaudited work", accepted_unjudged),
    ("false work", nothing_removed),
    ("order", settled_too_late),
    ("order", never_settled),
    ("order", judged_before_the_close),
    ("order", links_swapped),
]  # fmt: skip
