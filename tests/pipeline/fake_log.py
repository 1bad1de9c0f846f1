"""The log of a made-up run as envelopes under a signed head, each sealed by who must have signed it."""

from __future__ import annotations

from collections.abc import Iterable

from tests.verification.fake_run import ORIGIN, Play, enrolments, key
from verification.identity import Enrol, KeyRevocation, KeyRotation, Leave, Return
from verification.keys import PrivateKey
from verification.merkle import Tree, leaf_hash
from verification.notes import Checkpoint, sign_checkpoint
from verification.records import Record
from verification.sealing import seal_record

BY_ITSELF = (Enrol, KeyRotation, Return)


def writer(record: Record) -> str:
    """Of what the key is made that signs a record, where nobody's was changed."""
    if isinstance(record, BY_ITSELF) or (isinstance(record, Leave | KeyRevocation) and record.by == "member"):
        return record.member
    if record.kind in ("commitment", "reveal", "appeal"):
        return str(record.member)  # type: ignore[union-attr]
    return str(record.auditor) if record.kind == "verdict" else "coordinator"  # type: ignore[union-attr]


def sealed(records: Iterable[Record]) -> list[bytes]:
    return [seal_record(record, key(writer(record))) for record in records]


def log_of(play: Play) -> list[bytes]:
    """A play from its manifest on."""
    manifest = play.state.manifest
    return sealed([manifest, *enrolments(play.state.run), *play.records])


def note(entries: list[bytes], signer: PrivateKey | None = None, origin: str = ORIGIN) -> str:
    """A signed head over entries."""
    tree = Tree([leaf_hash(entry) for entry in entries])
    checkpoint = Checkpoint(origin, len(entries), tree.root())
    return sign_checkpoint(checkpoint, signer or key("coordinator"))
