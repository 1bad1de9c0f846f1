"""A run folder that somebody else writes, read as it grows: what is new in the log and in metrics.jsonl.

Owns reading without locking, changing or trusting anything: no signature, no hash is checked, which is what
`barnraise verify` is for. Does not own what the entries mean (top_watch.py).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.report_metrics import MOST_LINE_BYTES, TurnTimes, parse_line

_WIDTH = 256  # entries in a full bundle (C2SP tlog-tiles)
_MOST_ENTRY = 2 + 65_535
_MOST_CHECKPOINT = 1 << 16
_MOST_MANIFEST = 1 << 20
_MOST_ENTRIES = 1 << 40
# So much of metrics.jsonl is read in one go; the rest at the next look.
_MOST_AT_ONCE = 8 << 20

Entry = tuple[str, dict[str, Any]]


class LogFollower:
    """The entries of a log that no earlier call has given."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "log"
        self._first = b""
        self.size = 0

    def new_entries(self) -> Iterator[Entry | None]:
        """(kind, predicate) of each entry since the last call, None for one that cannot be read.

        Ends early where the writer was in between, and goes on there at the next call. Raises OSError when
        there is no log.
        """
        wanted = self._signed_size()
        while self.size < wanted:
            tile, start = divmod(self.size, _WIDTH)
            width = min(_WIDTH, wanted - tile * _WIDTH)
            bundle = self._bundle(tile, width)
            if bundle is None:  # a partial bundle that has grown meanwhile: there is a newer checkpoint
                newer = self._signed_size()
                if newer <= wanted:
                    return
                wanted = newer
                continue
            for data in bundle[start:]:
                self.size += 1
                yield read_entry(data)

    def replaced(self) -> bool:
        """Whether another log lies there than the one followed. Raises OSError when there is none."""
        manifest = _read(self._folder.parent / "manifest.json", _MOST_MANIFEST)
        first, self._first = self._first or manifest, manifest
        return first != manifest or self._signed_size() < self.size

    def idle_since(self) -> float | None:
        """When the checkpoint was last written, in seconds since 1970."""
        try:
            return (self._folder / "checkpoint").stat().st_mtime
        except OSError:
            return None

    def _signed_size(self) -> int:
        lines = _read(self._folder / "checkpoint", _MOST_CHECKPOINT).split(b"\n", 2)
        text = lines[1] if len(lines) > 1 else b""
        return int(text) if text.isdigit() and len(text) < 14 else 0

    def _bundle(self, tile: int, width: int) -> list[bytes] | None:
        groups = [f"{tile % 1000:03d}"]
        while tile := tile // 1000:
            groups.insert(0, f"x{tile % 1000:03d}")
        name = "/".join(groups) + (f".p/{width}" if width < _WIDTH else "")
        try:
            data = _read(self._folder / "tile" / "entries" / name, width * _MOST_ENTRY)
        except OSError:
            return None
        entries, at = [], 0
        for _ in range(width):
            start = at + 2
            at = start + int.from_bytes(data[at:start], "big")
            entries.append(data[start:at])
        return entries


def read_entry(data: bytes) -> Entry | None:
    """Kind and predicate of an envelope whose signature nobody checks here; None for other bytes."""
    try:
        statement = json.loads(base64.b64decode(json.loads(data)["payload"]))
        _, kind, version = statement["predicateType"].split(":")
        predicate = statement["predicate"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (kind, predicate) if version == "v1" and isinstance(predicate, dict) else None


class MetricsFollower:
    """The whole lines of metrics.jsonl that no earlier call has given."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._offset = 0
        self._rest = b""
        self._skip = False
        self.bad_lines = 0

    def new_turns(self) -> list[TurnTimes]:
        """What new whole lines say; the file need not be there. Raises nothing."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:  # another file, or one that was cut
                    self._offset, self._rest, self._skip = 0, b"", False
                file.seek(self._offset)
                data = file.read(_MOST_AT_ONCE)
        except OSError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._skip and lines:  # the end of a line that was too long
            lines, self._skip = lines[1:], False
        if len(self._rest) > MOST_LINE_BYTES:
            self.bad_lines += not self._skip
            self._rest, self._skip = b"", True
        turns = [parse_line(line) for line in lines if line.strip()]
        self.bad_lines += sum(turn is None for turn in turns)
        return [turn for turn in turns if turn]


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)
