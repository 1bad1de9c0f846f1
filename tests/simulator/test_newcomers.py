"""An honest newcomer and a coordinator that lies to it: another log, or an open that does not follow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.assembly import fix_source
from tests.simulator.coming_doctors import growing
from tests.simulator.judges import make
from tests.simulator.people import Street, Stubbed
from tests.simulator.story import Scene, Story, key_of, read
from tests.simulator.world import Played, play, scratch
from verification.encoding import parse_canonical
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, ProtocolError
from verification.log import Log
from verification.records import Base, Enrol, RoundClose, RoundOpen
from verification.sealing import open_record, seal_record

NEWCOMERS = ("c02", "a02")


@dataclass
class Town:
    """A story in which somebody joined, and what its coordinator needs to tell that newcomer another."""

    story: Story
    played: Played
    root: Path

    @property
    def scene(self) -> Scene:
        """The first turn of both newcomers."""
        return next(
            scene
            for scene in self.story.scenes
            if any(isinstance(record, Enrol) for record, _ in scene.before)
        )

    @property
    def open(self) -> bytes:
        """Its open, as it was signed."""
        return self.story.entries[self.size]

    @property
    def size(self) -> int:
        """Entries of the log before that open."""
        opens = [at for at, entry in enumerate(self.story.entries) if kind_of(entry) == "round-open"]
        return opens[self.scene.open.turn]

    def newcomer(self, name: str) -> Stubbed:
        """As it was before anybody said anything to it."""
        played, home = self.played, self.root / "anew"
        shutil.rmtree(home, ignore_errors=True)
        vault = home / "members" / name
        vault.mkdir(parents=True)
        shutil.copy(self.story.vaults / name / "key", vault / "key")
        street = Street(9, played.shop, self.story.folder, played.site.folder.manifest(), home)
        return make(self.story.people[name], street)

    def head(self, entries: Sequence[bytes]) -> str:
        """What the coordinator signs for these."""
        folder = self.root / "other-log"
        shutil.rmtree(folder, ignore_errors=True)
        manifest = self.story.manifest
        log = Log.create(folder, manifest.origin, key_of(self.played), manifest.witness_vkeys)
        log.append(list(entries))
        return log.checkpoint

    def open_with(self, **changes: Any) -> bytes:
        """The newcomers' first open with something else in it, signed."""
        return seal_record(replace(self.scene.open, **changes), key_of(self.played))

    @property
    def weights(self) -> bytes:
        """The checkpoint that the open starts from."""
        return self.played.site.folder.checkpoint(self.scene.open.round - 1)


def kind_of(entry: bytes) -> str:
    return open_envelope(entry).predicate_type.split(":")[1]


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with scratch() as root, pytest.MonkeyPatch.context() as patch:
        played = play(growing(), root / "world")
        story = read(played)
        assert story.finished
        fix_source(patch, 1 << 29)
        found = Town(story, played, root)
        joined = {record.member for record, _ in found.scene.before if isinstance(record, Enrol)}
        assert joined == set(NEWCOMERS)
        yield found


def first_call(member: Stubbed, town: Town, envelope: bytes) -> object:
    """What the open is shown with: a contributor does the work, an auditor reads it before it does any."""
    if member.role == "contributor":
        return member.commit(envelope, town.weights)  # type: ignore[attr-defined]
    return member.opened(envelope)


@pytest.mark.parametrize("name", NEWCOMERS)
def test_a_true_log_and_the_open_that_follows_it_are_taken(town: Town, name: str) -> None:
    member, entries = town.newcomer(name), town.story.entries[: town.size]
    assert member.catch_up(entries[:7], town.head(entries[:7])) == 7
    assert member.catch_up(entries[7:], town.head(entries)) == town.size
    assert first_call(member, town, town.open)


@pytest.mark.parametrize("name", NEWCOMERS)
@pytest.mark.parametrize("what", ["weights", "outer", "round", "attempt"])
def test_an_open_that_does_not_follow_from_the_log_is_refused(town: Town, name: str, what: str) -> None:
    member, open_ = town.newcomer(name), town.scene.open
    entries = town.story.entries[: town.size]
    member.catch_up(entries, town.head(entries))
    changes: dict[str, dict[str, Any]] = {
        "weights": {"base": Base("blake3:" + "5" * 64, open_.base.outer)},
        "outer": {"base": Base(open_.base.weights, "blake3:" + "5" * 64)},
        "round": {"round": open_.round + 1},
        "attempt": {"attempt": open_.attempt + 1},
    }
    with pytest.raises(ProtocolError, match="does not follow from the log"):
        first_call(member, town, town.open_with(**changes[what]))
    assert not list((member.vault.folder / "turns").iterdir())  # it committed to nothing


def test_a_log_with_an_entry_left_out_or_told_twice_is_refused(town: Town) -> None:
    """Any up to the last close: what stands between turns may be left out of a log that is whole."""
    true = town.story.entries[: town.size]
    last = max(at for at, entry in enumerate(true) if kind_of(entry) == "round-close")
    for at in range(last):
        for told in ([*true[:at], *true[at + 1 :]], [*true[: at + 1], *true[at:]]):
            with pytest.raises(BarnraiseError):
                town.newcomer("c02").catch_up(told, town.head(told))


def test_a_log_under_another_head_is_refused(town: Town) -> None:
    true = town.story.entries[: town.size]
    for told, headed in ((true, true[:-1]), (true[:-1], true), (true[:-2], [*true[:-2], true[0]])):
        with pytest.raises(BarnraiseError, match="signed head"):
            town.newcomer("c02").catch_up(told, town.head(headed))


def test_another_past_with_weights_of_its_own_is_refused(town: Town) -> None:
    """The coordinator signs other weights for a close: that log holds, but the true open does not follow."""
    true = town.story.entries[: town.size]
    at = max(n for n, entry in enumerate(true) if kind_of(entry) == "round-close")
    close = open_record(RoundClose, true[at], town.story.manifest.coordinator)
    other = seal_record(replace(close, weights="blake3:" + "6" * 64), key_of(town.played))
    told = [*true[:at], other, *true[at + 1 :]]
    member = town.newcomer("c02")
    assert member.catch_up(told, town.head(told)) == town.size
    with pytest.raises(ProtocolError, match="does not follow from the log"):
        first_call(member, town, town.open)


def test_another_past_whose_rules_are_broken_is_refused(town: Town) -> None:
    """Credit that nobody earned, and somebody else in quarantine."""
    true = town.story.entries[: town.size]
    at = max(n for n, entry in enumerate(true) if kind_of(entry) == "round-close")
    close = open_record(RoundClose, true[at], town.story.manifest.coordinator)
    richer = tuple(replace(line, earned=line.earned + 1) for line in close.credits)
    for changed in (replace(close, credits=richer), replace(close, quarantined=("c00",))):
        told = [*true[:at], seal_record(changed, key_of(town.played)), *true[at + 1 :]]
        with pytest.raises(ProtocolError, match="does not follow"):
            town.newcomer("c02").catch_up(told, town.head(told))


def test_a_log_signed_by_somebody_else_is_refused(town: Town) -> None:
    stranger = town.newcomer("c02").key
    true = town.story.entries[: town.size]
    opens = [at for at, entry in enumerate(true) if kind_of(entry) == "round-open"]
    open_ = open_record(RoundOpen, true[opens[0]], town.story.manifest.coordinator)
    told = [*true[: opens[0]], seal_record(open_, stranger), *true[opens[0] + 1 :]]
    with pytest.raises(BarnraiseError):
        town.newcomer("c02").catch_up(told, town.head(told))


def test_the_story_of_the_town_is_one_of_growth(town: Town) -> None:
    """Newcomers start from nothing and take part in all that follows."""
    scenes = town.story.scenes[town.scene.open.turn :]
    assert all("c02" in {entry.member for entry in scene.open.roster} for scene in scenes)
    first = next(entry for entry in scenes[0].open.roster if entry.member == "c02")
    assert (first.slot, first.steps, first.audit_ppm) == (2, 2, 1_000_000)
    assert first.start_state == town.story.manifest.zero_state
    manifest = parse_canonical(town.played.site.folder.manifest())
    assert isinstance(manifest, dict)
    assert any("c02" in {item.member for item in town.story.accepted(scene)} for scene in scenes)
