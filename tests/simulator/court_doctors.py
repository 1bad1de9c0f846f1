"""Doctored stories in which auditors contradict one another, each broken in one place that disputes have.

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
from verification.records import Missed, Overruled, Rejected, RoundClose

Doctor = Callable[[Story, Played], None]
OTHER = "sha256:" + "7" * 64
# In the first turn of a story like this the two have to be first and second at somebody honest, which is for
# its draw to say: the first of these seeds in which they are.
COURT_SEEDS = range(50, 90)


def court(seed: int) -> Setting:
    """Fair weather, six auditors of whom two are of one mind, and one contributor of four that lies."""
    config = draw(0).config
    kinds = {"c03": "false-payload", "a00": "collude", "a01": "collude"}
    contributors, auditors = [f"c{n:02d}" for n in range(4)], [f"a{n:02d}" for n in range(6)]
    people = tuple(
        Person(name, role, f"op-{name}", "sim-a", kinds.get(name), 50)
        for role, names in (("contributor", contributors), ("auditor", auditors))
        for name in names
    )
    changes: dict[str, dict[str, Any]] = {
        "run": {"rounds": 2},
        "train": {"steps": [2, 3, 1, 2], "trace_every": 1},
        "audit": {
            "auditors": 6,
            "rate_ppm": 1_000_000,
            "second_look_ppm": 1_000_000,
            "segments": 0,
            "probation_rounds": 0,
        },
        "credit": {"vest_rounds": 1},
        "timing": {"mode": "fixed"},
    }
    config = {name: {**values, **changes.get(name, {})} for name, values in config.items()}
    return Setting(seed, people, Weather(), config)


def disputed(story: Story) -> tuple[Scene, int]:
    """A turn and an honest slot that two failed alike, whose contributor appealed, and that is accepted."""
    return disputes(story)[0]


def disputes(story: Story) -> list[tuple[Scene, int]]:
    """All of them."""
    return [
        (scene, slot)
        for scene in story.scenes
        for slot, appeal in scene.appeals.items()
        if story.honest(appeal.member) and slot in {item.slot for item in story.accepted(scene)}
    ]


def _close(story: Story) -> tuple[Scene, int, RoundClose]:
    scene, slot = disputed(story)
    assert scene.close is not None
    return scene, slot, scene.close


def _keep(story: Story, *looks: int) -> None:
    scene, slot = disputed(story)
    scene.verdicts = [v for v in scene.verdicts if v.slot != slot or v.look in looks]


def nobody_overruled(story: Story, played: Played) -> None:
    scene, _, close = _close(story)
    scene.close = replace(close, overruled=())


def honest_overruled(story: Story, played: Played) -> None:
    scene, slot, close = _close(story)
    verdict = next(v for v in scene.of(slot) if v.outcome == "pass")
    line = Overruled(slot, verdict.look, verdict.auditor, None)
    scene.close = replace(close, overruled=(*close.overruled, line))


def no_case(story: Story, played: Played) -> None:
    scene, _, close = _close(story)
    scene.close = replace(close, overruled=tuple(replace(i, evidence=None) for i in close.overruled))


def somebody_missed(story: Story, played: Played) -> None:
    scene, slot, close = _close(story)
    scene.close = replace(close, missed=(*close.missed, Missed(slot, 3, "a05")))


def look_left_out(story: Story, played: Played) -> None:
    _keep(story, 1, 2, 4, 5, 6)


def ended_too_early(story: Story, played: Played) -> None:
    _keep(story, 1, 2, 3, 4)


def asked_without_need(story: Story, played: Played) -> None:
    scene = disputed(story)[0]
    first = next(v for v in scene.verdicts if len(scene.of(v.slot)) == 2)
    spoken = {verdict.auditor for verdict in scene.of(first.slot)}
    name = next(name for name in scene.drawn[first.slot] if name not in spoken)
    scene.verdicts.append(replace(first, look=3, auditor=name))


def asked_one_operator_twice(story: Story, played: Played) -> None:
    scene, slot = disputed(story)
    names = {v.auditor for v in scene.of(slot)}
    auditors = [replace(a, operator="op-one") if a.member in names else a for a in scene.open.auditors]
    scene.open = replace(scene.open, auditors=tuple(auditors))


def not_looked_at_again(story: Story, played: Played) -> None:
    scene = disputed(story)[0]
    assert scene.second is not None
    scene.second = replace(scene.second, looks=scene.second.looks[1:])


def called_disputed(story: Story, played: Played) -> None:
    scene, slot, close = _close(story)
    line = Rejected(slot, scene.open.entry(slot).member, "disputed", fault=False, evidence=None)
    left = tuple(item for item in close.accepted if item.slot != slot)
    scene.close = replace(close, accepted=left, rejected=(*close.rejected, line))


def convicted_all_the_same(story: Story, played: Played) -> None:
    scene, slot, close = _close(story)
    line = Rejected(slot, scene.open.entry(slot).member, "failed-audit", fault=True, evidence=OTHER)
    left = tuple(item for item in close.accepted if item.slot != slot)
    scene.close = replace(close, accepted=left, rejected=(*close.rejected, line))


def accepted_by_one_of_three(story: Story, played: Played) -> None:
    _keep(story, 1, 2, 3)


def _sealed(story: Story, **changes: Any) -> None:
    scene, slot = disputed(story)
    assert scene.first_looks is not None
    looks = [replace(s, **changes) if s.slot == slot else s for s in scene.first_looks.looks]
    scene.first_looks = replace(scene.first_looks, looks=tuple(looks))


def other_seal(story: Story, played: Played) -> None:
    _sealed(story, verdict=OTHER)


def other_outcome_sealed(story: Story, played: Played) -> None:
    _sealed(story, outcome="pass")


def no_seal(story: Story, played: Played) -> None:
    scene, _ = disputed(story)
    assert scene.first_looks is not None
    scene.first_looks = replace(scene.first_looks, looks=())


def seals_out_of_order(story: Story, played: Played) -> None:
    scene, _ = disputed(story)
    assert scene.first_looks is not None
    scene.first_looks = replace(scene.first_looks, looks=scene.first_looks.looks[::-1])


def seen_too_early(story: Story, played: Played) -> None:
    story.peeked = ["a02, slot 0, look 2 of turn 0"]


def appeal_not_logged(story: Story, played: Played) -> None:
    scene, slot = disputed(story)
    scene.appeals = {}
    scene.verdicts = [v for v in scene.verdicts if v.slot != slot or v.look < 3]


def _appeals(story: Story, **changes: Any) -> None:
    scene, slot = disputed(story)
    scene.appeals[slot] = replace(scene.appeals[slot], **changes)


def appeal_by_another(story: Story, played: Played) -> None:
    _appeals(story, member="c99")


def appeal_against_others(story: Story, played: Played) -> None:
    scene, slot = disputed(story)
    _appeals(story, verdicts=scene.appeals[slot].verdicts[::-1])


def appeal_without_cause(story: Story, played: Played) -> None:
    scene, slot = disputed(story)
    passed = next(v.slot for v in scene.verdicts if all(o.outcome == "pass" for o in scene.of(v.slot)))
    scene.appeals[passed] = replace(scene.appeals[slot], slot=passed)


def overruled_paid(story: Story, played: Played) -> None:
    scene, _, close = _close(story)
    out = {item.auditor for item in close.overruled}
    told = [
        replace(c, earned=c.earned + 16, forfeited=c.forfeited + 16) if c.member in out else c
        for c in close.credits
    ]
    scene.close = replace(close, credits=tuple(told))


def overruled_not_quarantined(story: Story, played: Played) -> None:
    scene, _, close = _close(story)
    out = {item.auditor for item in close.overruled}
    scene.close = replace(close, quarantined=tuple(n for n in close.quarantined if n not in out))


def _kind(entry: bytes) -> tuple[str, dict[str, Any]]:
    statement = json.loads(base64.b64decode(json.loads(entry)["payload"]))
    return str(statement["predicateType"]).split(":")[1], statement["predicate"]


def _move(story: Story, what: Callable[[str, dict[str, Any]], bool], before: str) -> None:
    """An entry to before the first of another kind, or to its end of the turn."""
    entries = list(story.entries)
    at = next(n for n, entry in enumerate(entries) if what(*_kind(entry)))
    entry = entries.pop(at)
    to = next(n for n, other in enumerate(entries) if _kind(other)[0] == before)
    story.entries = [*entries[:to], entry, *entries[to:]]


def verdict_before_the_second_draw(story: Story, played: Played) -> None:
    _move(story, lambda kind, value: kind == "verdict" and value["look"] == 1, "second-draw")


def seals_after_the_second_draw(story: Story, played: Played) -> None:
    _move(story, lambda kind, value: kind == "second-draw", "first-looks")


def second_before_the_first(story: Story, played: Played) -> None:
    _move(story, lambda kind, value: kind == "verdict" and value["look"] == 2, "verdict")


def appeal_too_late(story: Story, played: Played) -> None:
    scene = disputed(story)[0]
    assert scene is story.scenes[0]
    _move(story, lambda kind, value: kind == "appeal", "round-close")


def verdicts_not_by_slot(story: Story, played: Played) -> None:
    _move(
        story, lambda kind, value: kind == "verdict" and value["look"] == 1 and value["slot"] > 0, "verdict"
    )


COURT_DOCTORS: list[tuple[str, Doctor]] = [
    *(("looks", doctor) for doctor in (
        nobody_overruled, honest_overruled, no_case, somebody_missed, look_left_out, ended_too_early,
        asked_without_need, asked_one_operator_twice, not_looked_at_again, called_disputed,
        convicted_all_the_same,
    )),
    *(("seals", doctor) for doctor in (
        other_seal, other_outcome_sealed, no_seal, seals_out_of_order, seen_too_early,
    )),
    *(("appeals", doctor) for doctor in (
        appeal_not_logged, appeal_by_another, appeal_against_others, appeal_without_cause,
    )),
    ("honest keys", honest_overruled),
    ("honest keys", convicted_all_the_same),
    ("false work", called_disputed),
    ("unaudited work", accepted_by_one_of_three),
    ("credit", overruled_paid),
    ("credit", overruled_not_quarantined),
    ("credit", nobody_overruled),
    *(("order", doctor) for doctor in (
        verdict_before_the_second_draw, seals_after_the_second_draw, second_before_the_first, appeal_too_late,
        verdicts_not_by_slot,
    )),
]  # fmt: skip
