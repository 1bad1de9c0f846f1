"""Which files of a run folder may be missing (protocol, section 11, "Retention").

Owns what a manifest's retention allows, worked out as the log is told, and what is missing. Whether it is too
much is known only at the end: until then it is in the index. Looks at no file's content.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verification.errors import FormatError
from verification.fsck_findings import Dropped, Record, Report, Turn
from verification.fsck_index import Index
from verification.fsck_schema import integer, members

_MISSING, _GONE = "missing", "gone"
_SHAPE = members({"checkpoint_every": integer(), "payload_rounds": integer()}, others=True)


@dataclass(frozen=True)
class File:
    """A file named by its digest: its folder, the hex digits, and words for it."""

    folder: str
    digest: str
    what: str


class Missing:
    """Files that the log names and the folder lacks; hand it every turn, in order.

    `floor` is K of the specification, final after `end`.
    """

    def __init__(self, run: Path, manifest: Record, index: Index, report: Report) -> None:
        self.run = run
        self.index = index
        config = manifest["config"]
        self.every: int = config["checkpoint"]["every"]
        self.rounds, self.sparse = _policy(config, report)
        self.floor = 0
        self._payloads = 0
        self._last = 0
        """The last round of which a payload is missing, and may be as far as is known."""
        self._start = 0
        """The first checkpoint after that, where one is there; the same as `floor` or below."""
        # No more of them than this can lie above `floor`; where everything stays nothing has to.
        self._firm: deque[int] = deque(maxlen=self.rounds // self.every + 2 if self.rounds else 0)
        """Firm rounds with a checkpoint, above `floor`."""
        lag = config["audit"].get("lag", 0)
        self._lags = lag > 0
        self._settled: deque[bool] = deque(maxlen=lag + 1)
        """Of the last turns, whether they are settled and nothing was removed by it."""

    def take(self, file: File, number: int, *, first: bool) -> bool:
        """Whether a file that round `number` names is missing in a way that is judged at the end.

        `first`: no turn before named it.
        """
        gone = f"{file.folder}/{file.digest}".encode()
        if not self.rounds or (not first and not self.index.has(_GONE, gone)):
            return False
        if first:
            if os.path.lexists(self.run / file.folder / file.digest):
                return False
            self.index.add(_GONE, gone)
            self._payloads += file.folder == "payloads"
        if file.folder == "payloads":
            self._last = max(self._last, number)
        name = f"{file.folder}/{file.digest}/{file.what}".encode()
        self.index.add(_MISSING, number.to_bytes(8, "big") + name)
        return True

    def told(self, turn: Turn) -> None:
        """A turn, after its files: whether its round is firm."""
        close, settlement = turn.close, turn.settlement
        self._settled.append(not self._lags or (settlement is not None and not settlement["removed"]))
        if close is None or not close["accepted"]:
            return
        number: int = turn.open["round"]
        if number % self.every == 0 and all(self._settled):
            self._firm.append(number)
            if self._start < self._last and self._has_checkpoint(number):
                self._start = number
        self._raise_floor(number)

    def _raise_floor(self, closed: int) -> None:
        while self._firm and self._firm[0] <= closed - self.rounds:
            self.floor = self._firm.popleft()

    def _has_checkpoint(self, number: int) -> bool:
        name = f"checkpoints/round-{number:05d}"
        # Unlike Path's, this says no where the disk does not answer.
        return all(os.path.isfile(self.run / f"{name}.{kind}") for kind in ("safetensors", "outer"))  # noqa: PTH113

    def end(self, rounds: int) -> Iterator[File]:
        """What is missing and must not be, `rounds` being closed."""
        self._raise_floor(rounds)
        for name in self.index.names(_MISSING, (self.floor + 1).to_bytes(8, "big")):
            yield File(*name[8:].decode().split("/", 2))

    def dropped(self) -> Dropped | None:
        """What is missing and may be, as far as nothing else is; None where no payload is."""
        return Dropped(self._start, self._payloads) if self._payloads else None

    def may_be_thinned(self, number: int) -> bool:
        """Whether the checkpoint of a round need not be there, the schedule of new ones notwithstanding."""
        return self.sparse > 0 and 0 < number < self.floor and number % self.sparse > 0


def _policy(config: Record, report: Report) -> tuple[int, int]:
    """(payload_rounds, checkpoint_every) of a configuration; where they are not allowed, as if all stayed."""
    policy = config.get("retention", {"checkpoint_every": 0, "payload_rounds": 0})
    what, where = "the manifest's retention is not allowed", "log entry 0, manifest"
    try:
        _SHAPE(policy, "config.retention")
    except FormatError as error:
        report.add(what, where, error.expected, error.got)
        return 0, 0
    rounds, sparse = policy["payload_rounds"], policy["checkpoint_every"]
    if rounds:
        least = config["credit"]["vest_rounds"] + config["audit"]["lag"] + config["state"]["every"]
        if rounds < least:
            report.add(what, where, f"payload_rounds 0, or {least} and more", rounds)
            return 0, 0
    if sparse and (not rounds or sparse % config["checkpoint"]["every"]):
        report.add(
            what, where, "checkpoint_every 0, or with payload_rounds a multiple of checkpoint.every", sparse
        )
        return 0, 0
    return rounds, sparse
