"""Doctored stories of a run whose members come and go, each broken in one place that this has.

Owns the settings of such stories and the changes; that they are found is test_invariants.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.simulator.late_doctors import _kind
from tests.simulator.setting import Partition, Person, Setting, Weather, draw
from tests.simulator.story import Scene, Signed, Story
from tests.simulator.world import Played
from verification.records import AuditorEntry, Credit, Enrol, Leave, Return, RosterEntry

Doctor = Callable[[Story, Played], None]


def growing() -> Setting:
    """Fair weather, two contributors and two auditors, and one more of each before the second turn."""
    config = draw(0).config
    people = tuple(
        Person(name, "auditor" if name[0] == "a" else "contributor", f"op-{name}", "sim-a", None, 50, arrives)
        for name, arrives in (("c00", 0), ("c01", 0), ("a00", 0), ("a01", 0), ("c02", 1), ("a02", 1))
    )
    changes: dict[str, dict[str, Any]] = {
        "run": {"rounds": 4, "max_void": 3},
        "train": {"steps": [3, 2], "micro_batch": [], "trace_every": 1},
        "audit": {"auditors": 2, "rate_ppm": 1_000_000, "probation_rounds": 1},
        "timing": {"mode": "fixed"},
        "identity": {"newcomers": 2},
    }
    config = {name: {**config.get(name, {}), **changes.get(name, {})} for name in {**config, **changes}}
    return Setting(9, people, Weather(), config)


def coming(seed: int) -> Setting:
    """The same for longer, with owners who change their minds; a contributor and an auditor are cut off."""
    grown = growing()
    config = {**grown.config, "run": {**grown.config["run"], "rounds": 8}}
    cut_off = Partition(frozenset({"c01", "a01"}), 2, 3, "")
    weather = Weather(partitions=(cut_off,))
    return replace(grown, seed=seed, config=config, weather=weather, restless=0.15)


def is_rich(story: Story) -> bool:
    """Whether everything comes in it that the doctors change."""
    told = [record for scene in story.scenes for record, _ in scene.before]
    leaves = {record.by for record in told if isinstance(record, Leave)}
    back = any(isinstance(record, Return) for record in told)
    stays = any(_away_by_wish(story, scene) for scene in story.scenes)
    away = {record.member for record in told if isinstance(record, Leave)}
    return (
        leaves == {"member", "coordinator"} and back and stays and {"c01", "a01"} <= away and story.finished
    )


def _away(story: Story, scene: Scene) -> list[str]:
    """Who takes no part in a turn."""
    there = {entry.member for entry in (*scene.open.roster, *scene.open.auditors)}
    known = [record.member for record in story.first]
    for other in story.scenes[: story.scenes.index(scene) + 1]:
        known += [record.member for record, _ in other.before if isinstance(record, Enrol)]
    return [name for name in known if name not in there]


def _away_by_wish(story: Story, scene: Scene) -> list[str]:
    """Who is away since an earlier turn, by its owner's wish."""
    fresh = {record.member for record, _ in scene.before}
    wished = {name for name, turn in story.leaving if turn == scene.open.turn}
    return [name for name in _away(story, scene) if name in wished - fresh]


def _with_away(story: Story, role: str) -> tuple[Scene, str]:
    return next(
        (scene, name)
        for scene in story.scenes
        for name in _away(story, scene)
        if story.enrolled[name].role == role
    )


def _joining(story: Story) -> Scene:
    """The first turn of the newcomers."""
    return next(s for s in story.scenes if any(isinstance(record, Enrol) for record, _ in s.before))


def _change(story: Story, kind: type, **wanted: Any) -> tuple[Scene, int]:
    """A change of a kind with these values: its scene, and where it stands."""
    return next(
        (scene, at)
        for scene in story.scenes
        for at, (record, _) in enumerate(scene.before)
        if isinstance(record, kind) and all(getattr(record, k) == v for k, v in wanted.items())
    )


def _put(scene: Scene, at: int, *told: Signed) -> None:
    scene.before = (*scene.before[:at], *told, *scene.before[at + 1 :])


def _alter(story: Story, kind: type, changes: Mapping[str, Any], **wanted: Any) -> None:
    scene, at = _change(story, kind, **wanted)
    record, signer = scene.before[at]
    _put(scene, at, (replace(record, **changes), signer))


def away_contributor_works(story: Story, played: Played) -> None:
    scene, name = _with_away(story, "contributor")
    entry = next(e for other in story.scenes for e in other.open.roster if e.member == name)
    roster = sorted((*scene.open.roster, entry), key=lambda e: e.slot)
    scene.open = replace(scene.open, roster=tuple(roster))


def away_auditor_listed(story: Story, played: Played) -> None:
    scene, name = _with_away(story, "auditor")
    member = story.enrolled[name]
    line = AuditorEntry(name, member.key, member.operator, member.numerics_class)
    scene.open = replace(scene.open, auditors=(*scene.open.auditors, line))


def present_left_off(story: Story, played: Played) -> None:
    scene = story.scenes[-1]
    scene.open = replace(scene.open, roster=scene.open.roster[1:])


def auditor_left_off(story: Story, played: Played) -> None:
    scene = story.scenes[0]
    scene.open = replace(scene.open, auditors=scene.open.auditors[1:])


def _newcomer(story: Story, **changes: Any) -> None:
    """Its first entry in a roster, changed."""
    scene = _joining(story)

    def changed(entry: RosterEntry) -> RosterEntry:
        return replace(entry, **changes) if entry.member == "c02" else entry

    scene.open = replace(scene.open, roster=tuple(map(changed, scene.open.roster)))


def other_slot(story: Story, played: Played) -> None:
    _newcomer(story, slot=3)


def more_steps(story: Story, played: Played) -> None:
    _newcomer(story, steps=3)


def started_from_something(story: Story, played: Played) -> None:
    _newcomer(story, start_state="blake3:" + "4" * 64)


def no_probation(story: Story, played: Played) -> None:
    _newcomer(story, audit_ppm=1)


def no_room(story: Story, played: Played) -> None:
    config = {**story.manifest.config, "identity": {"allow": {}, "newcomers": 1}}
    story.manifest = replace(story.manifest, config=config)


def nobody_let_it_in(story: Story, played: Played) -> None:
    story.people = {name: person for name, person in story.people.items() if name != "a02"}


def no_seat_yet(story: Story, played: Played) -> None:
    story.people = {**story.people, "c02": replace(story.people["c02"], arrives=3)}


def key_of_another(story: Story, played: Played) -> None:
    scene, at = _change(story, Enrol)
    record, _ = scene.before[at]
    key = story.first[0].key
    _put(scene, at, (replace(record, key=key), key))


def enrolment_signed_by_another(story: Story, played: Played) -> None:
    scene, at = _change(story, Enrol)
    _put(scene, at, (scene.before[at][0], story.manifest.coordinator))


def leave_signed_by_nobody(story: Story, played: Played) -> None:
    scene, at = _change(story, Leave, by="coordinator")
    _put(scene, at, (scene.before[at][0], "ed25519:" + "0" * 64))


def return_signed_by_the_coordinator(story: Story, played: Played) -> None:
    scene, at = _change(story, Return)
    _put(scene, at, (scene.before[at][0], story.manifest.coordinator))


def leave_kept_for_later(story: Story, played: Played) -> None:
    scene, _ = _change(story, Leave)
    _alter(story, Leave, {"turn": scene.open.turn - 1})


def leave_of_another_key(story: Story, played: Played) -> None:
    _alter(story, Leave, {"key": "ed25519:" + "0" * 64}, by="coordinator")


def leave_told_twice(story: Story, played: Played) -> None:
    scene, at = _change(story, Leave)
    _put(scene, at, scene.before[at], scene.before[at])


def leave_dropped(story: Story, played: Played) -> None:
    _put(*_change(story, Leave))


def return_dropped(story: Story, played: Played) -> None:
    _put(*_change(story, Return))


def return_of_one_that_is_there(story: Story, played: Played) -> None:
    scene, at = _change(story, Return)
    _put(scene, at, scene.before[at], scene.before[at])


def sent_away_though_there(story: Story, played: Played) -> None:
    story.silent = set()


def sent_away_though_not_late(story: Story, played: Played) -> None:
    scene, _ = _change(story, Leave, member="c01", by="coordinator")
    before = story.scenes[story.scenes.index(scene) - 1]
    assert before.close is not None
    lines = tuple(line for line in before.close.rejected if line.member != "c01")
    before.close = replace(before.close, rejected=lines)


def leave_that_nobody_wants(story: Story, played: Played) -> None:
    story.leaving = set()


def return_that_nobody_wants(story: Story, played: Played) -> None:
    story.staying = set()


def kept_away(story: Story, played: Played) -> None:
    """Its owner wants it back, and it is heard."""
    scene = next(scene for scene in story.scenes if _away_by_wish(story, scene))
    place = (_away_by_wish(story, scene)[0], scene.open.turn)
    story.leaving, story.staying = story.leaving - {place}, story.staying | {place}
    story.unheard = {at: why for at, why in story.unheard.items() if at[1] != "identity_changes"}


def not_let_go(story: Story, played: Played) -> None:
    place = ("c00", next(s.open.turn for s in story.scenes[1:] if "c00" not in _away(story, s)))
    story.leaving, story.staying = story.leaving | {place}, story.staying - {place}


def rich_from_the_start(story: Story, played: Played) -> None:
    scene = _joining(story)
    assert scene.close is not None
    told = [
        replace(line, earned=line.earned + 16) if line.member == "a02" else line
        for line in scene.close.credits
    ]
    scene.close = replace(scene.close, credits=tuple(told))


def paid_before_it_came(story: Story, played: Played) -> None:
    close = story.scenes[0].close
    assert close is not None
    line = Credit("c02", earned=0, vested=0, forfeited=0)
    story.scenes[0].close = replace(close, credits=(*close.credits, line))


def forfeited_by_leaving(story: Story, played: Played) -> None:
    scene, at = _change(story, Leave, by="coordinator")
    name, close = scene.before[at][0].member, scene.close
    assert close is not None
    told = [
        replace(line, forfeited=line.forfeited + 16) if line.member == name else line
        for line in close.credits
    ]
    scene.close = replace(close, credits=tuple(told))


def out_by_leaving(story: Story, played: Played) -> None:
    scene, at = _change(story, Leave)
    assert scene.close is not None
    scene.close = replace(scene.close, quarantined=(scene.before[at][0].member,))


def _moved(kind: str) -> Doctor:
    """Such a record stands two places later, within the turn."""

    def doctor(story: Story, played: Played) -> None:
        opened = next(at for at, entry in enumerate(story.entries) if _kind(entry) == "round-open")
        at = next(n for n, e in enumerate(story.entries) if n > opened and _kind(e) == kind)
        inside = next(n for n, e in enumerate(story.entries) if n > at and _kind(e) == "commit-close")
        entries = list(story.entries)
        entries.insert(inside, entries.pop(at))
        story.entries = entries

    return doctor


COMING_DOCTORS: list[tuple[str, Doctor]] = [
    *(("membership", doctor) for doctor in (
        away_contributor_works, away_auditor_listed, present_left_off, auditor_left_off, other_slot,
        more_steps, started_from_something, no_room, nobody_let_it_in, no_seat_yet, key_of_another,
        enrolment_signed_by_another, leave_signed_by_nobody, return_signed_by_the_coordinator,
        leave_kept_for_later, leave_of_another_key, leave_told_twice, leave_dropped, return_dropped,
        return_of_one_that_is_there, sent_away_though_there, sent_away_though_not_late,
        leave_that_nobody_wants, return_that_nobody_wants, kept_away, not_let_go,
    )),
    ("lineage", started_from_something),
    ("draws", no_probation),
    ("credit", rich_from_the_start),
    ("credit", paid_before_it_came),
    ("credit", forfeited_by_leaving),
    ("credit", out_by_leaving),
    ("honest keys", out_by_leaving),
    ("order", _moved("leave")),
    ("order", _moved("return")),
    ("order", _moved("enrol")),
]  # fmt: skip
