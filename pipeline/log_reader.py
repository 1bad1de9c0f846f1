"""Reading a run's log: each entry a record, signed by whoever may sign it.

Owns whose key an entry needs, by what the log said before it. Does not own whether a record may come where it
stands (verification.rounds) or where the entries lie (verification.log).
"""

from __future__ import annotations

from collections.abc import Iterator

from verification.envelope import Sealed, open_envelope
from verification.errors import FormatError, ProtocolError
from verification.log import Log
from verification.records import (
    Appeal,
    AuditorEntry,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Leave,
    Manifest,
    Record,
    RosterEntry,
    RoundClose,
    RoundOpen,
    Settlement,
    Verdict,
)
from verification.sealing import KINDS, verified_record

Entry = tuple[Record, bytes]


class LogReader:
    """Takes the entries of a log one by one, from the manifest on."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.size = 0
        self._keys: dict[str, str] = {}
        # By turn, the keys that its open names, as long as verdicts of the turn may still come.
        self._named: dict[tuple[int, int], dict[str, str]] = {}
        self._over = Settlement if manifest.config["audit"]["lag"] else RoundClose

    def read(self, data: bytes) -> Record:
        """The record in the next entry. Raises one of the family unless it is signed as it must be."""
        sealed = open_envelope(data)
        kind = KINDS.get(sealed.predicate_type)
        if kind is None or (kind is Manifest) != (self.size == 0):
            raise FormatError(f"log entry {self.size} is of an unknown kind", got=sealed.predicate_type)
        record: Record = verified_record(kind, sealed, self._signer(kind, sealed))
        if isinstance(record, Enrol):
            self._keys[record.member] = record.key
        elif isinstance(record, KeyRotation):
            self._keys[record.member] = record.new_key
        elif isinstance(record, RoundOpen):
            entries: list[AuditorEntry | RosterEntry] = [*record.auditors, *record.roster]
            self._named[record.round, record.attempt] = {entry.member: entry.key for entry in entries}
        elif isinstance(record, self._over):
            self._named.pop((record.round, record.attempt), None)
        elif self.size == 0 and record != self.manifest:
            raise ProtocolError("manifest.json disagrees with log entry 0")
        self.size += 1
        return record

    def _signer(self, kind: type[Record], sealed: Sealed) -> str:
        """Whose signature an entry needs, by what it says of itself and the members' present keys.

        A verdict or an appeal is signed with the key that the open of its turn names, rotated since or not.
        """
        said = sealed.peek()
        name = said.get("auditor", said.get("member"))
        if kind in (Verdict, Appeal):
            turn = (said.get("round"), said.get("attempt"))
            known = all(type(number) is int for number in turn)
            return self._named.get(turn, {}).get(str(name), "") if known else ""
        if kind is Enrol:
            return str(said.get("key", ""))  # its own, which it proves to hold
        if name is None or (kind in (KeyRevocation, Leave) and said.get("by") == "coordinator"):
            return self.manifest.coordinator
        return self._keys.get(str(name), "")


def read_entries(log: Log, manifest: Manifest) -> Iterator[Entry]:
    """Every record of a log with its envelope, each verified with the key of whoever may sign it."""
    reader = LogReader(manifest)
    for data in log.entries():
        yield reader.read(data), data
