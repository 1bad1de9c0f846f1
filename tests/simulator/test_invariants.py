"""No invariant is vacuous: each is shown a story that breaks it, and says so, and only where it should.

A true story is doctored in one place. test_broken_product.py breaks the product instead.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.accounts import credit_is_accepted_tokens
from tests.simulator.coming_doctors import COMING_DOCTORS, coming, is_rich
from tests.simulator.court_doctors import COURT_DOCTORS, COURT_SEEDS, court, disputed, disputes
from tests.simulator.invariants import INVARIANTS, prefix_roots
from tests.simulator.late_doctors import LATE_DOCTORS, excising, late
from tests.simulator.setting import Person, Setting, Weather, draw
from tests.simulator.story import Scene, Story, key_of, read
from tests.simulator.tolerance_doctors import TOLERANCE_DOCTORS, resting
from tests.simulator.work import Falsehood
from tests.simulator.world import Played, play, scratch
from verification.merkle import Tree, leaf_hash
from verification.notes import Checkpoint, sign_checkpoint
from verification.records import Rejected

Doctor = Callable[[Story, Played], None]


def rich() -> Setting:
    """Fair weather, three auditors, one contributor of four whose work is false, and one of another class."""
    config = draw(0).config
    kinds = {"c03": "false-payload"}
    people = tuple(
        Person(name, role, f"op-{name}", "sim-b" if name == "c01" else "sim-a", kinds.get(name), 50)
        for role, names in (("contributor", ("c00", "c01", "c02", "c03")), ("auditor", ("a00", "a01", "a02")))
        for name in names
    )
    between = {"classes": ("sim-a", "sim-b"), "loss_ppm": 9, "norm_ppb": 9, "peak_ppm": 9, "step_milli": 9}
    changes: dict[str, dict[str, Any]] = {
        "run": {"rounds": 3},
        "train": {"steps": [2, 3, 1, 2], "trace_every": 1},
        "audit": {
            "auditors": 3,
            "rate_ppm": 1_000_000,
            "second_look_ppm": 700_000,
            "segments": 1,
            "probation_rounds": 0,
            "tolerance": [between],
            "tolerance_cap_ppm": 300_000,
        },
        "timing": {"mode": "fixed"},
    }
    config = {name: {**values, **changes.get(name, {})} for name, values in config.items()}
    return Setting(8, people, Weather(), config)


@pytest.fixture(scope="module")
def original() -> Iterator[tuple[Story, Played]]:
    with scratch() as root:
        played = play(rich(), root / "world")
        story = read(played)
        assert len(story.scenes) >= 2
        assert any(scene.verdicts for scene in story.scenes)
        assert in_part(story)
        assert resting(story)
        yield story, played


@pytest.fixture(scope="module")
def late_original() -> Iterator[tuple[Story, Played]]:
    with scratch() as root:
        played = play(late(), root / "world")
        story = read(played)
        assert story.finished
        assert excising(story)
        assert len(story.scenes) == sum(story.over(scene) for scene in story.scenes)
        yield story, played


@pytest.fixture(scope="module")
def court_original() -> Iterator[tuple[Story, Played]]:
    with scratch() as root:
        for seed in COURT_SEEDS:
            played = play(court(seed), root / f"world-{seed}")
            story = read(played)
            if disputes(story) and disputed(story)[0] is story.scenes[0]:
                break
        assert story.finished
        assert disputed(story)[0] is story.scenes[0]
        yield story, played


@pytest.fixture(scope="module")
def coming_original() -> Iterator[tuple[Story, Played]]:
    with scratch() as root:
        for seed in range(40):
            played = play(coming(seed), root / f"world-{seed}")
            story = read(played)
            if is_rich(story):
                break
        assert is_rich(story)
        yield story, played


def convicted(story: Story) -> Scene:
    """The turn in which the false work was found out."""
    return next(s for s in story.scenes if s.close and any(r.fault for r in s.close.rejected))


def last(story: Story) -> Scene:
    return [scene for scene in story.scenes if scene.close and scene.close.accepted][-1]


def accepted_slot(scene: Scene) -> int:
    assert scene.close is not None
    return scene.close.accepted[0].slot


def close(scene: Scene, **changes: Any) -> None:
    assert scene.close is not None
    scene.close = replace(scene.close, **changes)


# --- doctored stories ---


def audit_lost(story: Story, played: Played) -> None:
    scene = last(story)
    scene.verdicts = [v for v in scene.verdicts if v.slot != accepted_slot(scene)]


def second_look_failed(story: Story, played: Played) -> None:
    scene = last(story)
    slot = accepted_slot(scene)
    scene.verdicts = [replace(v, outcome="fail") if v.slot == slot else v for v in scene.verdicts]


def refused_accepted(story: Story, played: Played) -> None:
    scene = last(story)
    assert scene.reveal_close is not None
    scene.reveal_close = replace(scene.reveal_close, revealed=())


def honest_rejected(reason: str) -> Doctor:
    def doctor(story: Story, played: Played) -> None:
        scene = last(story)
        assert scene.close is not None
        item = scene.close.accepted[0]
        line = Rejected(item.slot, item.member, reason, reason == "failed-audit", None)
        close(scene, accepted=scene.close.accepted[1:], rejected=(*scene.close.rejected, line))

    return doctor


def honest_quarantined(story: Story, played: Played) -> None:
    close(last(story), quarantined=tuple(p.name for p in story.people.values() if p.kind is None)[:1])


def honest_refusal(story: Story, played: Played) -> None:
    story.refusals = ["c00 reveal in turn 0: StorageError"]


def accepted_twice(story: Story, played: Played) -> None:
    scene = last(story)
    assert scene.close is not None
    close(scene, accepted=(*scene.close.accepted, scene.close.accepted[0]))


def payload_again(story: Story, played: Played) -> None:
    story.scenes.append(copy.deepcopy(last(story)))


def other_payload(story: Story, played: Played) -> None:
    scene = last(story)
    assert scene.close is not None
    first = replace(scene.close.accepted[0], payload="blake3:" + "0" * 64)
    close(scene, accepted=(first, *scene.close.accepted[1:]))


def second_root(story: Story, played: Played) -> None:
    head = Checkpoint(story.manifest.origin, len(story.entries), b"\7" * 32)
    story.notes.append(sign_checkpoint(head, key_of(played)))


def longer_head(story: Story, played: Played) -> None:
    tree = Tree([leaf_hash(entry) for entry in (*story.entries, b"more")])
    head = Checkpoint(story.manifest.origin, tree.size, tree.root())
    story.notes.append(sign_checkpoint(head, key_of(played)))


def no_head(story: Story, played: Played) -> None:
    story.notes.append("nothing that anybody signed")


def richer(story: Story, played: Played) -> None:
    scene = last(story)
    assert scene.close is not None
    credits_ = [replace(c, earned=c.earned + 1) for c in scene.close.credits]
    close(scene, credits=tuple(credits_))


def pardoned(story: Story, played: Played) -> None:
    close(convicted(story), quarantined=())


def more_tokens(story: Story, played: Played) -> None:
    assert story.end is not None
    story.end = replace(story.end, tokens=story.end.tokens + 1)


def false_work_accepted(story: Story, played: Played) -> None:
    scene = convicted(story)
    assert scene.close is not None
    close(scene, rejected=tuple(line for line in scene.close.rejected if not line.fault))


def false_work_disputed(story: Story, played: Played) -> None:
    scene = convicted(story)
    assert scene.close is not None
    lines = [replace(r, reason="disputed") if r.fault else r for r in scene.close.rejected]
    close(scene, rejected=tuple(lines))


def blind_auditor(story: Story, played: Played) -> None:
    scene = convicted(story)
    scene.verdicts = [replace(v, outcome="pass") for v in scene.verdicts]


def elsewhere(story: Story, name: str, data: bytes) -> None:
    """The folder, copied, with a file in it that was not there."""
    copied = story.folder.parent / f"copy-{name}"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(story.folder, copied)
    (copied / name).write_bytes(data)
    story.folder = copied


def in_part(story: Story) -> tuple[Scene, int]:
    """A scene, and a slot of which not all segments were drawn and that was judged."""
    return next(
        (scene, slot)
        for scene in story.scenes
        for slot, segments in scene.segments.items()
        if len(segments) < story.segments_of(scene, slot) and scene.of(slot)
    )


def missed_segment(story: Story, played: Played) -> None:
    scene, slot = in_part(story)
    story.shop = copy.copy(story.shop)
    story.shop.false = {(scene.open.turn, slot): Falsehood(segments=frozenset(scene.segments[slot]))}


def unseen_segment(story: Story, played: Played) -> None:
    scene, slot = in_part(story)
    story.shop = copy.copy(story.shop)
    others = set(range(story.segments_of(scene, slot))) - set(scene.segments[slot])
    story.shop.false = {(scene.open.turn, slot): Falsehood(segments=frozenset(others))}


def false_opening(story: Story, played: Played) -> None:
    scene, slot = in_part(story)
    story.shop = copy.copy(story.shop)
    story.shop.shut = {(scene.open.turn, scene.open.entry(slot).member)}


def other_segments(story: Story, played: Played) -> None:
    scene, slot = in_part(story)
    assert scene.draw is not None
    drawn = [
        replace(item, segments=(item.segments[0] ^ 1,)) if item.slot == slot else item
        for item in scene.draw.drawn
    ]
    scene.draw = replace(scene.draw, drawn=tuple(drawn))


def other_auditors(story: Story, played: Played) -> None:
    scene, _ = in_part(story)
    assert scene.draw is not None
    drawn = [replace(item, auditors=item.auditors[::-1]) for item in scene.draw.drawn]
    scene.draw = replace(scene.draw, drawn=tuple(drawn))


def more_segments(story: Story, played: Played) -> None:
    scene = last(story)
    roster = [replace(entry, audit_segments=entry.audit_segments + 1) for entry in scene.open.roster]
    scene.open = replace(scene.open, roster=tuple(roster))


def leaf_unstated(story: Story, played: Played) -> None:
    scene, slot = in_part(story)
    scene.verdicts = [
        replace(v, trace=(*v.trace[:-1], "0" * 64)) if v.slot == slot else v for v in scene.verdicts
    ]


def first_loss_guessed(story: Story, played: Played) -> None:
    scene = next(s for s in story.scenes if any(v.loss_first is None for v in s.verdicts))
    scene.verdicts = [replace(v, loss_first=v.loss_first or 5) for v in scene.verdicts]


def leaked_key(story: Story, played: Played) -> None:
    elsewhere(story, "notes.txt", b"by the way " + story.secrets[-1].hex().encode())


def leaked_link(story: Story, played: Played) -> None:
    elsewhere(story, "link.bin", bytes.fromhex(story.chain.link(story.chain.length)))


def leaked_salt(story: Story, played: Played) -> None:
    salt = "ab" * 32
    story.salts.append(salt)
    elsewhere(story, "salt.txt", salt.encode())


def payload_lost(story: Story, played: Played) -> None:
    elsewhere(story, "x", b"")
    next(iter(sorted((story.folder / "payloads").iterdir()))).write_bytes(b"other")


def signed_twice(story: Story, played: Played) -> None:
    story.written.append(story.written[-1].replace(b'"sig":"', b'"sig":"A', 1))


def two_opens(story: Story, played: Played) -> None:
    story.opens[0] = {b"one", b"other"}


def two_answers(story: Story, played: Played) -> None:
    place = next(iter(story.said))
    story.said[place] = {b"yes", b"no"}


def other_word(story: Story, played: Played) -> None:
    scene = story.scenes[-1]
    name = next(c.member for c in scene.commitments.values() if story.honest(c.member))
    story.vaults = story.vaults.parent / "other-vaults"
    path = story.vaults / name / "turns" / f"{scene.open.turn}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"commitment":"something else"}')


def unfinished(story: Story, played: Played) -> None:
    story.finished = False


def trouble(story: Story, played: Played) -> None:
    story.trouble = ["the coordinator broke"]


DOCTORED: list[tuple[str, Doctor]] = [
    ("unaudited work", audit_lost),
    ("unaudited work", second_look_failed),
    ("unaudited work", refused_accepted),
    *(
        ("honest keys", honest_rejected(reason))
        for reason in (
            "late", "unrevealed", "unserved", "opening-mismatch", "malformed-payload", "duplicate-payload",
            "no-eligible-auditor", "unaudited", "unconfirmed", "disputed", "failed-audit",
        )
    ),
    ("honest keys", honest_quarantined),
    ("honest keys", honest_refusal),
    ("accepted once", accepted_twice),
    ("accepted once", payload_again),
    ("accepted once", other_payload),
    ("heads", second_root),
    ("heads", longer_head),
    ("heads", no_head),
    ("credit", richer),
    ("credit", pardoned),
    ("credit", more_tokens),
    ("false work", false_work_accepted),
    ("false work", false_work_disputed),
    ("false work", blind_auditor),
    ("false work", missed_segment),
    ("false work", unseen_segment),
    ("false work", false_opening),
    ("draws", other_segments),
    ("draws", other_auditors),
    ("draws", more_segments),
    ("draws", leaf_unstated),
    ("draws", first_loss_guessed),
    ("secrets", leaked_key),
    ("secrets", leaked_link),
    ("secrets", leaked_salt),
    ("said twice", signed_twice),
    ("said twice", two_opens),
    ("said twice", two_answers),
    ("said twice", other_word),
    ("level 1", payload_lost),
    ("level 1", unfinished),
    ("ends", trouble),
    *TOLERANCE_DOCTORS,
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(INVARIANTS))
def test_the_true_stories_break_none(
    original: tuple[Story, Played],
    late_original: tuple[Story, Played],
    court_original: tuple[Story, Played],
    coming_original: tuple[Story, Played],
    name: str,
) -> None:
    assert INVARIANTS[name](coming_original[0]) == []
    assert INVARIANTS[name](original[0]) == []
    assert INVARIANTS[name](late_original[0]) == []
    assert INVARIANTS[name](court_original[0]) == []


def test_every_invariant_is_shown_a_story_that_breaks_it() -> None:
    assert {name for name, _ in (*DOCTORED, *LATE_DOCTORS, *COURT_DOCTORS, *COMING_DOCTORS)} == set(
        INVARIANTS
    )


@pytest.mark.parametrize(("name", "doctor"), DOCTORED)
def test_a_doctored_story_is_found(original: tuple[Story, Played], name: str, doctor: Doctor) -> None:
    found(original, name, doctor)


@pytest.mark.parametrize(("name", "doctor"), LATE_DOCTORS)
def test_a_doctored_late_story_is_found(
    late_original: tuple[Story, Played], name: str, doctor: Doctor
) -> None:
    found(late_original, name, doctor)


@pytest.mark.parametrize(("name", "doctor"), COURT_DOCTORS)
def test_a_doctored_dispute_is_found(court_original: tuple[Story, Played], name: str, doctor: Doctor) -> None:
    found(court_original, name, doctor)


@pytest.mark.parametrize(("name", "doctor"), COMING_DOCTORS)
def test_a_doctored_story_of_comings_is_found(
    coming_original: tuple[Story, Played], name: str, doctor: Doctor
) -> None:
    found(coming_original, name, doctor)


def found(original: tuple[Story, Played], name: str, doctor: Doctor) -> None:
    true, played = original
    story = replace(
        true,
        scenes=copy.deepcopy(true.scenes),
        notes=list(true.notes),
        written=list(true.written),
        salts=list(true.salts),
        said=dict(true.said),
        opens=dict(true.opens),
    )
    doctor(story, played)
    assert INVARIANTS[name](story) != []


def test_prefix_roots_are_those_of_the_product() -> None:
    entries = [bytes([n]) * n for n in range(70)]
    tree = Tree()
    for size, root in enumerate(prefix_roots(entries)):
        assert root == tree.root()
        if size < len(entries):
            tree.append(leaf_hash(entries[size]))


def test_the_accounts_are_of_this_story_alone(original: tuple[Story, Played]) -> None:
    story = replace(original[0], scenes=original[0].scenes[:1], end=None)
    assert credit_is_accepted_tokens(story) == []


def test_the_paths_of_a_story_are_gone_afterwards(tmp_path: Path) -> None:
    with scratch() as root:
        play(draw(0), root / "world")
        assert (root / "world" / "run" / "manifest.json").is_file()
    assert not root.exists()
