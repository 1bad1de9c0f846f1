"""The log on disk: tiles, entry bundles, roots and the signed checkpoint (protocol, section 3).

Owns that every byte under `log/` is the one it must be. Goes through the log once and keeps no more of it
than one bundle and the tiles that are not full yet. What the entries mean is `fsck_rules`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from verification.errors import FormatError, StorageError
from verification.fsck_cosign import Cosignature, parse_cosigned
from verification.fsck_findings import Report
from verification.fsck_formats import MAX_ENTRY, Checkpoint, read_file

_WIDTH = 256
_DEEPEST = 12
"""More folders in each other than any name of this protocol has."""
_TILE = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """An RFC 6962 tree that grows leaf by leaf, of which only its right edge is kept.

    `tiles[k]` are the hashes of the tile of level k in progress; whoever compares a full one empties it.
    """

    def __init__(self) -> None:
        self.size = 0
        self.tiles: list[list[bytes]] = [[]]
        self._peaks: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Take the next leaf's hash."""
        node, height, size = leaf, 0, self.size
        self.tiles[0].append(leaf)
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            size >>= 1
            height += 1
            if height % 8 == 0:
                level = height // 8
                if level == len(self.tiles):
                    self.tiles.append([])
                self.tiles[level].append(node)
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root of the leaves so far: complete subtrees folded from the right."""
        return _fold(self._peaks)

    def root_after(self, leaf: bytes) -> bytes:
        """The root if this leaf came next."""
        peaks, node, size = list(self._peaks), leaf, self.size
        while size & 1:
            node = node_hash(peaks.pop(), node)
            size >>= 1
        return _fold([*peaks, node])


def _fold(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return hashlib.sha256(b"").digest()
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def _number(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def _tile_name(kind: str, index: int, width: int) -> str:
    return f"tile/{kind}/{_number(index)}" + ("" if width == _WIDTH else f".p/{width}")


def _belongs(name: str, size: int) -> bool:
    """Whether a log of this many entries has a file of this name."""
    if name == "checkpoint":
        return True
    tile = _TILE.fullmatch(name)
    if tile is None:
        return False
    kind, digits, partial = tile.groups()
    count = size if kind == "entries" else size >> (8 * int(kind))
    index = int(digits.replace("x", "").replace("/", ""))
    full, rest = divmod(count, _WIDTH)
    width = rest if partial else _WIDTH
    here = index == full if partial else index < full
    return here and name == _tile_name(kind, index, width)


def list_files(folder: Path, depth: int = _DEEPEST) -> Generator[str, None, None]:
    """Every name below a folder that is not a folder itself, links unfollowed, as the system lists them.

    A folder that cannot be listed, or lies deeper than any of a run, is given as it is, with a slash.
    """
    try:
        with os.scandir(folder) as inside:
            for item in inside:
                if not item.is_dir(follow_symlinks=False):
                    yield item.name
                elif depth:
                    with closing(list_files(folder / item.name, depth - 1)) as names:
                        for name in names:
                            yield f"{item.name}/{name}"
                else:
                    yield f"{item.name}/"
    except OSError:
        yield ""


def _split_bundle(data: bytes, width: int, first: int) -> list[bytes]:
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        if at + 2 > len(data) or len(entry) != length:
            raise FormatError(
                "an entry bundle is cut off", got=f"entry {first + len(entries)} runs past the end"
            )
        entries.append(entry)
        at += 2 + length
    if len(entries) != width:
        raise FormatError("an entry bundle holds another number of entries", expected=width, got=len(entries))
    return entries


class LogReader:
    """One reading of the log in `folder` (the run's `log/`), except for who signed the checkpoint.

    `tree` always holds the entries before the one that `entries` gave last. After the last one `complete`
    says whether they are as many as the checkpoint signs.
    """

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.tree = Tree()
        self.checkpoint: Checkpoint | None = None
        self.cosignatures: tuple[Cosignature, ...] = ()
        self.complete = False
        try:
            note = read_file(folder / "checkpoint", MAX_ENTRY)
            self.checkpoint, self.cosignatures = parse_cosigned(note.decode("utf-8"))
        except (FormatError, StorageError) as error:
            what, got = f"{error.what} (nothing in the log was checked)", error.got or "something else"
            report.add(what, "log/checkpoint", error.expected or "a signed checkpoint", got)
        except UnicodeDecodeError:
            what = "the checkpoint is not UTF-8 (nothing in the log was checked)"
            report.add(what, "log/checkpoint", "a signed checkpoint", "other bytes")

    def entries(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Index, bytes and leaf hash of each entry, up to the first bundle that cannot be read."""
        if self.checkpoint is None:
            return
        size = self.checkpoint.size
        for first in range(0, size, _WIDTH):
            for entry in self._bundle(first, min(_WIDTH, size - first)):
                leaf = leaf_hash(entry)
                yield self.tree.size, entry, leaf
                self.tree.add(leaf)
            if self.tree.size < min(first + _WIDTH, size):
                return
            self._compare_tiles(full=True)
        self.complete = True
        self._finish(self.checkpoint)

    def _bundle(self, first: int, width: int) -> list[bytes]:
        """The entries of one bundle; none, and a failure, when it cannot be read."""
        name = _tile_name("entries", first // _WIDTH, width)
        try:
            data = read_file(self.folder / name, width * (2 + MAX_ENTRY))
            return _split_bundle(data, width, first)
        except (FormatError, StorageError) as error:
            self.report.add(
                f"{error.what} (entries from {first} on are not checked)",
                f"log/{name}",
                error.expected or f"a bundle of {width} entries",
                error.what if error.got is None else error.got,
            )
            return []

    def _compare_tiles(self, *, full: bool) -> None:
        """Compare the tiles in progress that are full, or at the end those that are not, and forget them."""
        for level, tile in enumerate(self.tree.tiles):
            if tile and (len(tile) == _WIDTH) == full:
                count = self.tree.size >> (8 * level)
                self._compare_tile(level, count - len(tile), tile)
                tile.clear()

    def _compare_tile(self, level: int, first: int, want: list[bytes]) -> None:
        name, width = _tile_name(str(level), first // _WIDTH, len(want)), len(want)
        try:
            data = read_file(self.folder / name, 32 * width)
        except StorageError as error:
            expected = error.expected or f"a tile of {width} hashes"
            self.report.add("a hash tile cannot be read", f"log/{name}", expected, error.got or error.what)
            return
        if data == b"".join(want):
            return
        got = [data[i : i + 32] for i in range(0, len(data), 32)]
        bad = next(i for i in range(max(len(got), width)) if got[i : i + 1] != want[i : i + 1])
        covers = f"entry {first + bad}" if level == 0 else f"subtree {first + bad} of level {level}"
        self.report.add(f"a hash tile does not fit {covers}", f"log/{name}", want[bad:][:1], got[bad:][:1])

    def _finish(self, checkpoint: Checkpoint) -> None:
        self._compare_tiles(full=False)
        root, signed = self.tree.root().hex(), checkpoint.root.hex()
        self.report.equal("the signed root is not that of the entries", "log/checkpoint", root, signed)
        with closing(list_files(self.folder)) as names:
            for name in names:
                if not _belongs(name, checkpoint.size):
                    what = "an unexpected or stale file lies in the log"
                    self.report.add(what, f"log/{name}", "no such file", name)


@dataclass(frozen=True)
class LogView:
    """A whole log in memory: what could be read of it; `complete` as in `LogReader`."""

    checkpoint: Checkpoint | None
    entries: tuple[bytes, ...]
    complete: bool


def read_log(folder: Path, report: Report) -> LogView:
    """Read and check a log that fits into memory, as bytes alone."""
    reader = LogReader(folder, report)
    entries = tuple(entry for _, entry, _ in reader.entries())
    return LogView(reader.checkpoint, entries, reader.complete)
