"""One tiny run, created but not trained, its members in this process, and opens signed as one likes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.folder import RunFolder
from pipeline.member import Place
from pipeline.run import member_folder
from tests.tiny import make_run, tiny_config
from verification.encoding import canonical_json
from verification.intake import check_enrolment
from verification.keys import PrivateKey
from verification.merkle import Tree, leaf_hash
from verification.notes import Checkpoint, sign_checkpoint
from verification.plans import plan_open
from verification.records import Draw, DrawnSlot, Manifest, RoundOpen
from verification.rounds import apply, begin
from verification.sealing import predicate, seal_record
from verification.state import RunState


@cache
def made() -> tuple[Path, Path]:
    """(run folder, private home) of a run that nobody has started."""
    root = Path(tempfile.mkdtemp(prefix="barnraise-world-"))
    make_run(root / "run", root / "home", tiny_config())
    return root / "run", root / "home"


@dataclass(frozen=True)
class World:
    """Members with vaults under `root`, and the coordinator's key."""

    root: Path
    folder: RunFolder
    manifest: Manifest
    key: PrivateKey
    c0: Contributor
    c1: Contributor
    a0: Auditor
    state: RunState

    @property
    def checkpoint(self) -> bytes:
        return self.folder.checkpoint(0)

    def open(self, **changes: Any) -> RoundOpen:
        return replace(plan_open(self.state, ()), **changes)

    def sealed(self, open_: RoundOpen, key: PrivateKey | None = None) -> bytes:
        return seal_record(open_, key or self.key)

    def drawn(self, open_: RoundOpen, segments: Sequence[int], slot: int = 0, **changes: Any) -> bytes:
        """A signed draw of the open's turn that looks into segments of one slot."""
        place = 1, open_.run, open_.round, open_.attempt
        looks = (DrawnSlot(slot, ("a0",), tuple(segments)),)
        draw = Draw(*place, self.head(b"")[0], "ab" * 32, (), "sha256:" + "0" * 64, looks, None)
        return seal_record(replace(draw, **changes), self.key)

    def revealed(self, open_: RoundOpen, mine: bytes) -> tuple[bytes, bytes]:
        """What c0 reveals once a head holds the open and its commitment."""
        head, tree = self.head(self.sealed(open_), mine)
        opened, committed = ((index, tree.inclusion_proof(index)) for index in (0, 1))
        return self.c0.reveal(open_.turn, head, opened, committed)

    def head(self, *entries: bytes, key: PrivateKey | None = None) -> tuple[str, Tree]:
        """A signed head over a small tree of entries."""
        tree = Tree([leaf_hash(entry) for entry in entries])
        checkpoint = Checkpoint(self.manifest.origin, len(entries), tree.root())
        return sign_checkpoint(checkpoint, key or self.key), tree


def world(root: Path, **manifest_changes: Any) -> World:
    """A world of its own; `manifest_changes` make it another run than the one on disk."""
    run, home = made()
    folder = RunFolder(run)
    manifest = replace(folder.parsed_manifest(), **manifest_changes)
    data = canonical_json(predicate(manifest))
    secrets = home / member_folder(folder.parsed_manifest()) / "coordinator"

    def place(name: str) -> Place:
        return Place(root / name, run / "data")

    c0, c1 = (Contributor(name, f"op-{name}", data, place(name)) for name in ("c0", "c1"))
    rest = [Contributor(name, f"op-{name}", data, place(name)) for name in ("c2", "c3")]
    a0 = Auditor("a0", "op-a0", data, place("a0"))
    state = begin(manifest)
    for member in (c0, c1, *rest, a0):
        state = apply(state, check_enrolment(state, member.enrol()))
    return World(root, folder, manifest, PrivateKey.load(secrets / "key"), c0, c1, a0, state)
