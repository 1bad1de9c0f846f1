"""The coordinator's log and the state that follows from it, moving together.

Owns the pairing of a record with its signed envelope, and that nothing is appended which the state
machine refuses. Does not own the log's format or the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from verification.encoding import parse_canonical
from verification.envelope import open_envelope
from verification.errors import FormatError, ProtocolError
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import Checkpoint, parse_checkpoint
from verification.records import (
    KINDS,
    Enrol,
    Manifest,
    Record,
    parse_predicate,
    seal_record,
    verified_record,
)
from verification.rounds import apply, begin
from verification.state import RunState

Entry = tuple[Record, bytes]


class Ledger:
    """Append-only: every append is checked by the state machine, then durable, then visible in `state`."""

    def __init__(self, log: Log, key: PrivateKey, manifest: Manifest, state: RunState) -> None:
        self._log = log
        self._key = key
        self.manifest = manifest
        self.state = state

    @classmethod
    def create(cls, folder: Path, key: PrivateKey, manifest: Manifest) -> Ledger:
        """A new log whose entry 0 is the manifest."""
        log = Log.create(folder, manifest.origin, key)
        log.append([seal_record(manifest, key)])
        return cls(log, key, manifest, begin(manifest))

    @classmethod
    def open(cls, folder: Path, key: PrivateKey, manifest_bytes: bytes) -> Ledger:
        """Continue a log, its entries verified and replayed. ProtocolError for another manifest."""
        manifest = parse_predicate(Manifest, parse_canonical(manifest_bytes))
        log = Log.open(folder, manifest.origin, key, manifest.log_vkey)
        state: RunState | None = None
        for record, _ in read_entries(log, manifest):
            state = begin(manifest) if state is None else apply(state, record)
        if state is None:
            raise ProtocolError("the log is empty", expected="the manifest as entry 0")
        return cls(log, key, manifest, state)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add records with their envelopes, durably, as one step."""
        state = self.state
        for record, _ in entries:
            state = apply(state, record)
        self._log.append([data for _, data in entries])
        self.state = state

    def sign(self, record: Record) -> Entry:
        """One of the coordinator's own records, sealed."""
        return record, seal_record(record, self._key)

    def records(self) -> list[Record]:
        """Every record of the log, verified, the manifest first."""
        return [record for record, _ in read_entries(self._log, self.manifest)]

    @property
    def head(self) -> str:
        """The signed checkpoint over everything appended so far."""
        return self._log.checkpoint

    @property
    def checkpoint(self) -> Checkpoint:
        """The same, parsed."""
        return parse_checkpoint(self.head, self.manifest.log_vkey)

    def envelope(self, kind: str, slot: int | None = None) -> tuple[int, bytes]:
        """(index, bytes) of the last entry of a kind in the turn in progress, of `slot` when given."""
        for index in range(self._log.size - 1, -1, -1):
            data = self._log.entry(index)
            sealed = open_envelope(data)
            if sealed.predicate_type == f"barnraise:{kind}:v1" and slot in (None, sealed.peek().get("slot")):
                return index, data
        raise ProtocolError(f"the log holds no {kind}", got=slot)

    def inclusion(self, kind: str, slot: int) -> tuple[int, list[bytes]]:
        """(index, inclusion proof under `head`) of an entry of the turn in progress."""
        index, _ = self.envelope(kind, slot)
        return index, list(self._log.inclusion_proof(index, self._log.size))


def read_entries(log: Log, manifest: Manifest) -> Iterator[Entry]:
    """Every record of a log with its envelope, each verified with the key of whoever may sign it."""
    keys: dict[str, str] = {}
    for index, data in enumerate(log.entries()):
        sealed = open_envelope(data)
        kind = KINDS.get(sealed.predicate_type)
        if kind is None or (kind is Manifest) != (index == 0):
            raise FormatError(f"log entry {index} is of an unknown kind", got=sealed.predicate_type)
        name = sealed.peek()
        if kind is Enrol:
            record: Record = verified_record(Enrol, sealed, sealed.keyid)
            keys[record.member] = record.key  # type: ignore[union-attr]
        else:
            signer = name.get("auditor", name.get("member"))
            key = keys.get(str(signer), "") if signer is not None else manifest.coordinator
            record = verified_record(kind, sealed, key)
        if index == 0 and record != manifest:
            raise ProtocolError("manifest.json disagrees with log entry 0")
        yield record, data
