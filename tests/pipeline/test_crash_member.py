"""A contributor that dies anywhere in a commit says one thing for a turn, and nothing else ever."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.pool import MemberDiedError
from pipeline.contributor import Contributor
from pipeline.folder import RunFolder
from pipeline.member import Place
from pipeline.source import source_digest
from tests.pipeline.crash_tools import Site, Steps, in_child, killed_at, records, scratch, small_config
from tests.tiny import corpus
from verification.errors import ProtocolError
from verification.keys import PrivateKey
from verification.records import Commitment, Reveal, RoundOpen
from verification.sealing import open_record, seal_record

DEATHS = st.lists(st.integers(0, 12), max_size=4)
CHANGES: list[dict[str, Any]] = [
    {"attempt": 1},
    {"round": 2},
    {"deadline_ms": 5},
    {"snapshot": False},
    {"outer_lr": (0.5).hex()},
    {"auditors": ()},
]


@dataclass
class Desk:
    """A run whose first open is logged and handed to nobody yet."""

    site: Site
    manifest: bytes
    open: RoundOpen
    key: PrivateKey
    checkpoint: bytes
    numbers: Iterator[int]

    @property
    def private(self) -> Path:
        (folder,) = (self.site.home / "runs").iterdir()
        return folder

    def vault(self) -> Path:
        """A copy of the first contributor's folder, for one example."""
        return Path(shutil.copytree(self.private / "c00", self.site.root / f"vault-{next(self.numbers)}"))

    def member(self, vault: Path) -> Contributor:
        return Contributor("c00", "op-c00", self.manifest, Place(vault, self.private / "data"))

    def seal(self, **changes: Any) -> bytes:
        return seal_record(replace(self.open, **changes), self.key)

    def dies_at(self, vault: Path, step: int, *, made_only: bool = False) -> bool:
        """Whether the member died before step `step` of being made and of a commit; if not it answered."""

        def before(number: int) -> None:
            if number == step:
                raise MemberDiedError

        steps = Steps(Site(vault), before)
        steps.install()
        try:
            member = self.member(vault)
            if not made_only:
                member.commit(self.seal(), self.checkpoint)
        except MemberDiedError:
            return True
        finally:
            steps.remove()
        return False


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    corpus()
    source_digest()
    with scratch() as root:
        fresh = Site(root / "fresh")
        in_child(lambda: fresh.create(small_config(), None))
        steps = killed_at(whole := fresh.copy(root / "whole"), None, whole.finish) or []
        first = next(i for i, step in enumerate(steps) if "/c00/states/" in step)
        site = fresh.copy(root / "site")
        assert killed_at(site, first, site.finish) is None
        folder = RunFolder(site.folder)
        open_ = records(site)[-1]
        assert isinstance(open_, RoundOpen)
        (private,) = (site.home / "runs").iterdir()
        key = PrivateKey.load(private / "coordinator" / "key")
        yield Desk(site, folder.manifest(), open_, key, folder.checkpoint(0), itertools.count())


@settings(max_examples=25, deadline=None)
@given(DEATHS, st.sampled_from(CHANGES))
def test_one_turn_one_commitment(desk: Desk, deaths: list[int], change: dict[str, Any]) -> None:
    vault = desk.vault()
    said: bytes | None = None
    for step in deaths:
        desk.dies_at(vault, step)
        stored = desk.member(vault).vault.committed(desk.open.turn)
        if stored:  # from the moment it is durable it is the only answer
            assert said in (None, stored.commitment)
            said = stored.commitment
    first = desk.member(vault).commit(desk.seal(), desk.checkpoint)
    assert said in (None, first)
    again = desk.member(vault)
    assert again.commit(desk.seal(), desk.checkpoint) == first
    with pytest.raises(ProtocolError, match="two different opens of turn 0"):
        again.commit(desk.seal(**change), desk.checkpoint)
    assert desk.member(vault).commit(desk.seal(), desk.checkpoint) == first

    committed = again.vault.committed(desk.open.turn)
    assert committed
    record = open_record(Commitment, first, again.key.public)
    assert open_record(Reveal, committed.reveal, again.key.public).commitment == record.commitment
    assert again.vault.get("payloads", committed.payload) is not None
    assert again.vault.get("states", committed.next_state) is not None
    assert not list(vault.rglob("*.tmp"))
    shutil.rmtree(vault)


def test_every_step_of_a_commit_can_be_the_last(desk: Desk) -> None:
    """What an example above may draw does happen: the member dies at each step there is."""
    died = [desk.dies_at(desk.vault(), step) for step in range(13)]
    assert died.index(False) >= 6
    assert not any(died[died.index(False) :])


def test_a_turn_that_is_over_is_not_opened_again(desk: Desk) -> None:
    vault = desk.vault()
    later = desk.seal(turn=3)
    first = desk.member(vault).commit(later, desk.checkpoint)
    with pytest.raises(ProtocolError, match="older than a commitment"):
        desk.member(vault).commit(desk.seal(), desk.checkpoint)
    assert desk.member(vault).commit(later, desk.checkpoint) == first


def test_a_key_is_made_whole_or_not_at_all(desk: Desk) -> None:
    """A member that dies while it makes its key has one afterwards, and keeps it."""
    died = []
    for step in range(12):
        vault = desk.site.root / f"new-{step}"
        vault.mkdir()
        died.append(desk.dies_at(vault, step, made_only=True))
        before = (vault / "key").read_bytes() if (vault / "key").exists() else None
        key = desk.member(vault).key.public
        assert before in (None, (vault / "key").read_bytes())
        assert desk.member(vault).key.public == key
        assert not list(vault.rglob("*.tmp"))
    assert 5 <= died.index(False) < 12


@pytest.mark.parametrize("name", ["key", "chain"])
def test_secrets_of_the_coordinator_are_private(desk: Desk, name: str) -> None:
    path = desk.private / "coordinator" / name
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
