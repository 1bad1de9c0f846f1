"""The coordinator's log and the state that follows from it, moving together.

Owns the pairing of a record with its signed envelope, that nothing is appended which the state machine
refuses, and the journal, which keeps the coordinator from ever signing two different things for one place
in the log. Does not own the log's format or the rules.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.log_reader import Entry, read_entries
from verification.durable import present, write_atomic
from verification.encoding import Json, parse_base64, parse_canonical
from verification.envelope import open_envelope
from verification.errors import FormatError, ProtocolError, StorageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import Checkpoint, parse_checkpoint
from verification.records import (
    Manifest,
    Record,
    RoundOpen,
)
from verification.retention import Retention
from verification.rounds import apply, begin
from verification.sealing import open_record, parse_predicate, seal_record
from verification.state import RunState
from verification.statements import sign_object
from verification.tlog_proof import write_receipt

MOST_BYTES = 1 << 28  # of the journal: an append holds a few envelopes of 65,535 bytes for every member


class Ledger:
    """Append-only: every append is checked by the state machine, then durable, then visible in `state`."""

    def __init__(
        self,
        log: Log,
        key: PrivateKey,
        manifest: Manifest,
        state: RunState,
        journal: Journal,
        retention: Retention,
    ) -> None:
        self._log = log
        self._key = key
        self._journal = journal
        self.manifest = manifest
        self.state = state
        self.retention = retention

    @classmethod
    def create(cls, folder: Path, key: PrivateKey, manifest: Manifest) -> None:
        """Write a new log whose entry 0 is the manifest; `open` goes on with it."""
        log = Log.create(folder, manifest.origin, key, manifest.witness_vkeys)
        log.append([seal_record(manifest, key)])

    @classmethod
    def open(cls, folder: Path, key: PrivateKey, manifest_bytes: bytes, journal: Path) -> Ledger:
        """Continue a log, its entries verified and replayed, after finishing an append that was cut off.

        `journal` is a private file of the coordinator. Raises ProtocolError for another manifest,
        StorageError when this coordinator has already signed more than the log holds, or something else.
        """
        manifest = parse_predicate(Manifest, parse_canonical(manifest_bytes))
        log = Log.open(folder, manifest.origin, key, manifest.log_vkey, manifest.witness_vkeys)
        Journal(journal).finish(log)
        state: RunState | None = None
        retention = Retention(manifest.config, manifest.zero_state)
        for record, _ in read_entries(log, manifest):
            state = begin(manifest) if state is None else apply(state, record)
            retention.see(record)
        if state is None:
            raise ProtocolError("the log is empty", expected="the manifest as entry 0")
        return cls(log, key, manifest, state, Journal(journal), retention)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add records with their envelopes, durably, as one step."""
        state = self.state
        for record, _ in entries:
            state = apply(state, record)
        envelopes = [data for _, data in entries]
        self._journal.write(self._log.size, envelopes)
        self._log.append(envelopes)
        self.state = state
        for record, _ in entries:
            self.retention.see(record)

    def sign(self, record: Record) -> Entry:
        """One of the coordinator's own records, sealed."""
        return record, seal_record(record, self._key)

    def sign_link_request(self, request: Json) -> str:
        """The proof that the log itself asks a witness for a link (docs/protocol.md, section 13)."""
        return sign_object("barnraise/witness-link-request/v1", request, self._key)

    def each_record(self) -> Iterator[Record]:
        """Every record of the log, verified, the manifest first; memory does not grow with the log."""
        return (record for record, _ in read_entries(self._log, self.manifest))

    def records(self) -> list[Record]:
        """The same, all at once."""
        return list(self.each_record())

    def entries_from(self, index: int) -> list[bytes]:
        """The entries from `index` on, as they stand in the log."""
        return [self._log.entry(number) for number in range(index, self._log.size)]

    @property
    def head(self) -> str:
        """The signed checkpoint over everything appended so far, without cosignatures."""
        return self._log.checkpoint

    @property
    def cosigned(self) -> str:
        """The same with the cosignatures that were put to it."""
        return self._log.cosigned

    def put_cosigned(self, note: str) -> None:
        """Store the head with cosignatures. Raises one of the family unless it is the head and they hold."""
        self._log.put_cosigned(note)

    def consistency(self, old: int) -> list[bytes]:
        """Proof that the first `old` entries begin the log."""
        return list(self._log.consistency_proof(old))

    def receipts(self, note: str) -> tuple[int, dict[str, str]]:
        """(number of the last closed turn, receipt of each member of its roster) under the head `note`."""
        opened = open_record(RoundOpen, self.envelope("round-open")[1], self.manifest.coordinator)
        _, close = self.envelope("round-close")
        index, proof = self.inclusion("round-close")
        members = [entry.member for entry in opened.roster]
        return opened.turn, {name: write_receipt(close, name, index, proof, note) for name in members}

    @property
    def checkpoint(self) -> Checkpoint:
        """The same, parsed."""
        return parse_checkpoint(self.head, self.manifest.log_vkey)

    def envelope(
        self,
        kind: str,
        slot: int | None = None,
        look: int | None = None,
        turn: tuple[int, int] | None = None,
    ) -> tuple[int, bytes]:
        """(index, bytes) of the last entry of a kind, of `slot`, `look` and `turn` when given.

        `turn` is (round, attempt).
        """
        for index in range(self._log.size - 1, -1, -1):
            data = self._log.entry(index)
            sealed = open_envelope(data)
            if sealed.predicate_type != f"barnraise:{kind}:v1":
                continue
            record = sealed.peek()
            if turn is not None and turn != (record.get("round"), record.get("attempt")):
                continue
            if slot in (None, record.get("slot")) and look in (None, record.get("look")):
                return index, data
        raise ProtocolError(f"the log holds no {kind}", got=slot)

    def inclusion(self, kind: str, slot: int | None = None) -> tuple[int, list[bytes]]:
        """(index, inclusion proof under `head`) of the last entry of a kind, of `slot` when given."""
        index, _ = self.envelope(kind, slot)
        return index, list(self._log.inclusion_proof(index, self._log.size))


class Journal:
    """What is about to be appended, durable in private before a byte of it is written where others read.

    Asked again after a crash, members may answer otherwise and clocks have moved. Without the journal the
    coordinator would then sign a second record for the same place, and a second checkpoint of the same size:
    to anyone who copied the folder in between, that is a forked log.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, size: int, envelopes: Sequence[bytes]) -> None:
        """Note what follows entry `size` - 1. Raises StorageError."""
        value = {"size": size, "entries": [base64.b64encode(data).decode() for data in envelopes]}
        write_atomic(self._file, json.dumps(value).encode(), mode=0o600)

    def _read(self) -> tuple[int, list[bytes]]:
        """What was noted last. Raises StorageError when the disk changed it."""
        try:
            with self._file.open("rb") as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    raise ValueError
                value = json.loads(file.read())
            size, texts = value["size"], value["entries"]
            if type(size) is not int or size < 0 or not isinstance(texts, list):
                raise ValueError
            return size, [parse_base64(text) for text in texts]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, FormatError):
            raise StorageError(
                f"{self._file} was damaged", hint="Restore the coordinator's private folder from a copy."
            ) from None

    def finish(self, log: Log) -> None:
        """Append what was noted, unless the log has it. StorageError when the log cannot be its sequel."""
        if not present(self._file):
            return
        size, envelopes = self._read()
        if log.size == size:
            log.append(envelopes)
        there = [log.entry(index) for index in range(size, min(size + len(envelopes), log.size))]
        if there != envelopes:
            raise StorageError(
                "the log is not the one this coordinator last wrote",
                expected=f"at least {size + len(envelopes)} entries, the last of them as signed",
                got=f"{log.size} entries",
                hint="Restore the newest copy of the run folder: an older one cannot be signed again.",
            )
