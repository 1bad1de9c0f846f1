"""Doctored stories that break what must hold of audits by tolerance, each in one place.

Owns the changes; the story that they are made to, and that they are found, is test_invariants.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.simulator.story import Scene, Story
from tests.simulator.tolerance import is_lax
from tests.simulator.world import Played
from verification.records import Deviation, Verdict

Doctor = Callable[[Story, Played], None]


def resting(story: Story) -> tuple[Scene, int]:
    """A turn, and a slot accepted in it that two looked at by tolerance."""
    return next(
        (scene, item.slot)
        for scene in story.scenes
        for item in (scene.close.accepted if scene.close else ())
        if is_lax(story, scene, item.slot) and len(scene.of(item.slot)) == 2
    )


def _verdicts(story: Story, change: Callable[[Verdict], Verdict], look: int = 0) -> None:
    scene, slot = resting(story)
    scene.verdicts = [change(v) if v.slot == slot and look in (0, v.look) else v for v in scene.verdicts]


def _first(verdict: Verdict, **changes: Any) -> tuple[Deviation, ...]:
    return (replace(verdict.deviations[0], **changes), *verdict.deviations[1:])


def weight_raised(story: Story, played: Played) -> None:
    scene, slot = resting(story)
    assert scene.close is not None
    items = [replace(i, weight=i.tokens) if i.slot == slot else i for i in scene.close.accepted]
    scene.close = replace(scene.close, accepted=tuple(items))


def somebody_of_its_class(story: Story, played: Played) -> None:
    scene, slot = resting(story)
    idle = {a.member for a in scene.open.auditors} - {v.auditor for v in scene.of(slot)}
    numerics = scene.open.entry(slot).numerics_class
    auditors = [replace(a, numerics_class=numerics) if a.member in idle else a for a in scene.open.auditors]
    scene.open = replace(scene.open, auditors=tuple(auditors))


def tolerance_withdrawn(story: Story, played: Played) -> None:
    config = copy.deepcopy(story.manifest.config)
    config["audit"]["tolerance"] = []
    story.manifest = replace(story.manifest, config=config)


def threshold_lowered(story: Story, played: Played) -> None:
    _verdicts(story, lambda v: replace(v, deviations=_first(v, norm_ppb=1 << 40)))


def deviation_unfounded(story: Story, played: Played) -> None:
    _verdicts(story, lambda v: replace(v, differs=("deviation",), outcome="fail"))


def deviations_contradict(story: Story, played: Played) -> None:
    _verdicts(story, lambda v: replace(v, deviations=_first(v, own="sha256:" + "7" * 64)), look=2)


def deviations_left_out(story: Story, played: Played) -> None:
    _verdicts(story, lambda v: replace(v, deviations=()))


def other_class_stated(story: Story, played: Played) -> None:
    numerics = resting(story)[0].open.entry(resting(story)[1]).numerics_class
    _verdicts(story, lambda v: replace(v, numerics_class=numerics))


def fault_by_one(story: Story, played: Played) -> None:
    scene = next(s for s in story.scenes if s.close and any(line.fault for line in s.close.rejected))
    scene.verdicts = [v for v in scene.verdicts if v.look == 1]


def fault_by_two_who_differ(story: Story, played: Played) -> None:
    scene = next(s for s in story.scenes if s.close and any(line.fault for line in s.close.rejected))
    scene.verdicts = [
        replace(v, payload="blake3:" + str(v.look) * 64) if v.look > 1 else v for v in scene.verdicts
    ]


def sketch_of_something_else(story: Story, played: Played) -> None:
    _verdicts(story, lambda v: replace(v, deviations=_first(v, sketch=(900_000,) * 8)))


def end_shown_too_early(story: Story, played: Played) -> None:
    story.ends = ["a00 was shown where step 1 of slot 0 in turn 0 ends before it told"]


def verdict_without_a_sketch_told(story: Story, played: Played) -> None:
    next(iter(story.told.values())).pop()


TOLERANCE_DOCTORS: list[tuple[str, Doctor]] = [
    ("tolerance", weight_raised),
    ("tolerance", somebody_of_its_class),
    ("tolerance", tolerance_withdrawn),
    ("tolerance", threshold_lowered),
    ("tolerance", deviation_unfounded),
    ("looks", deviations_contradict),
    ("unaudited work", deviations_contradict),
    ("tolerance", deviations_left_out),
    ("tolerance", sketch_of_something_else),
    ("tolerance", end_shown_too_early),
    ("tolerance", verdict_without_a_sketch_told),
    ("tolerance", other_class_stated),
    ("tolerance", fault_by_one),
    ("tolerance", fault_by_two_who_differ),
]
