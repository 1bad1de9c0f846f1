"""A newcomer reads the run's log from the start before it takes part: it need believe nobody.

Owns the reading: signatures, rules and the tree up to a signed head. Does not repeat aggregation or work,
and does not check a beacon's signatures; `barnraise verify` does, with the run folder.
"""

from __future__ import annotations

from pipeline.log_reader import LogReader
from verification.errors import FormatError, ProtocolError
from verification.intake import as_bytes
from verification.merkle import Tree, leaf_hash
from verification.notes import parse_checkpoint
from verification.records import Manifest, RoundOpen
from verification.rounds import apply, begin
from verification.state import RunState


class LogSoFar:
    """The log as far as it was read, and the state that follows from it."""

    def __init__(self, manifest: Manifest) -> None:
        self._reader = LogReader(manifest)
        self._tree = Tree()
        self._state: RunState | None = None

    @property
    def size(self) -> int:
        """How many entries were read."""
        return self._reader.size

    def take(self, entries: list[bytes], note: str) -> None:
        """Read the entries that follow, up to the signed head `note`.

        Raises one of the family when one is not signed as it must be, may not come where it stands, or when
        the head is not of these entries; then nothing more can be read.
        """
        if type(entries) is not list or type(note) is not str:
            raise FormatError(
                "a log is shown as a list of entries and a signed head", got=type(entries).__name__
            )
        for value in entries:
            data = as_bytes(value)
            record = self._reader.read(data)
            self._state = begin(self._reader.manifest) if self._state is None else apply(self._state, record)
            self._tree.append(leaf_hash(data))
        if self._state is None:
            raise ProtocolError("a log begins with its manifest", got="no entry")
        head = parse_checkpoint(note, self._reader.manifest.log_vkey)
        found = (self._tree.size, self._tree.root().hex())
        if (head.size, head.root.hex()) != found:
            raise ProtocolError(
                "the log that was shown is not its signed head's",
                expected=(head.size, head.root.hex()),
                got=found,
            )

    def before(self, open_: RoundOpen) -> LogSoFar | None:
        """This again while it may be of use; ProtocolError when the open that follows it does not fit."""
        state = self._state
        if state is None or open_.turn != state.turns:
            return None
        expected = (state.round, state.attempt, state.base)
        got = (open_.round, open_.attempt, open_.base)
        if got != expected:
            raise ProtocolError("an open does not follow from the log", expected=expected, got=got)
        return self
