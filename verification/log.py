"""The append-only log on disk: an RFC 6962 tree in C2SP tlog-tiles layout with a signed checkpoint.

Owns section 3 of docs/protocol.md up to the checkpoint's text. The checkpoint is the commit point: bundles
and tiles are durable before it, stale partial tiles go after it, and what a crash left beyond it is
removed when a writer opens the log. Does not own what entries mean. One writer at a time.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from verification.durable import fsync_folder, storage_error, write_atomic
from verification.envelope import MAX_ENVELOPE_BYTES
from verification.errors import BarnraiseError, FormatError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.merkle import HASH_BYTES, Tree, leaf_hash
from verification.notes import (
    MAX_LINE_BYTES,
    Checkpoint,
    parse_cosigned,
    plain_note,
    sign_checkpoint,
    vkey,
)

_HEIGHT = 8
_WIDTH = 1 << _HEIGHT
_ENTRIES = -1
_MAX_CHECKPOINT_BYTES = 1024
_LEFTOVER = re.compile(
    r"\.checkpoint\.tmp|tile/(?:entries|[0-9]{1,2})(?:/x[0-9]{3})*/"
    r"(?:[0-9]{3}(?:\.p/[1-9][0-9]{0,2})?|\.[0-9]{3}\.tmp|[0-9]{3}\.p/\.[1-9][0-9]{0,2}\.tmp)\Z"
)


class Log:
    """A log that is open for reading, and for appending when it was given the key."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        text: str,
        key: PrivateKey | None,
        witness_vkeys: Sequence[str] = (),
    ) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._head = checkpoint
        self._text = text  # with the cosignatures, as it lies on disk
        self._key = key
        self._witness_vkeys = tuple(witness_vkeys)
        self._tree = Tree()
        self._tail: list[bytes] = []
        self._broken = False

    @classmethod
    def create(cls, folder: Path, origin: str, key: PrivateKey, witness_vkeys: Sequence[str] = ()) -> Log:
        """A new, empty log with a signed checkpoint of size 0, which no witness cosigned yet.

        Raises UsageError when something lies in `folder`, StorageError when it cannot be written.
        """
        try:
            found = {path.name for path in folder.iterdir()} if folder.exists() else set()
        except OSError as error:
            raise storage_error(folder, error) from error
        if found - {".checkpoint.tmp"}:
            raise UsageError(f"{folder} is not empty", hint="A new log needs a folder of its own.")
        checkpoint = Checkpoint(origin, 0, Tree().root())
        text = sign_checkpoint(checkpoint, key)
        write_atomic(folder / "checkpoint", text.encode())
        return cls(folder, checkpoint, text, key, witness_vkeys)

    @classmethod
    def open(
        cls,
        folder: Path,
        origin: str,
        key: PrivateKey | None,
        log_vkey: str,
        witness_vkeys: Sequence[str] = (),
    ) -> Log:
        """Open a log and check every file of the signed size against the checkpoint.

        The checkpoint may be cosigned by `witness_vkeys`, in that order, and by nobody else.

        With `key` (the writer) what a crash left beyond the checkpoint is removed; without it nothing is
        written, and a log that is appended to at the same time may be read.
        Raises StorageError when a file is missing or differs, FormatError or SignatureError for the
        checkpoint, UsageError when `key` or `origin` is not the one of `log_vkey`.
        """
        if key is not None and vkey(origin, key.public) != log_vkey:
            raise UsageError("the key is not this log's", expected=log_vkey, got=vkey(origin, key.public))
        limit = _checkpoint_bytes(witness_vkeys)
        text = _read_checkpoint(folder, limit)
        while True:
            checkpoint = parse_cosigned(text, log_vkey, witness_vkeys).checkpoint
            if checkpoint.origin != origin:
                raise UsageError("the log has another origin", expected=origin, got=checkpoint.origin)
            log = cls(folder, checkpoint, text, key, witness_vkeys)
            try:
                log._load()
                break
            except BarnraiseError:
                # A reader may lose a partial tile to the writer; then there is a newer checkpoint.
                if key is not None or (newer := _read_checkpoint(folder, limit)) == text:
                    raise
                text = newer
        if key is not None:
            log._discard_leftovers()
        return log

    @property
    def size(self) -> int:
        """Number of entries under the checkpoint."""
        return self._head.size

    @property
    def root(self) -> bytes:
        """The 32-byte root hash under the checkpoint."""
        return self._head.root

    @property
    def head(self) -> Checkpoint:
        """The checkpoint, parsed."""
        return self._head

    @property
    def checkpoint(self) -> str:
        """The checkpoint, as the text of its note with the log's signature alone."""
        return plain_note(self._text)

    @property
    def cosigned(self) -> str:
        """The checkpoint with the cosignatures that were put to it: the file as it lies there."""
        return self._text

    def root_at(self, size: int) -> bytes:
        """The root hash over the first `size` entries. Raises FormatError when there are fewer."""
        return self._tree.root(size)

    def entry(self, index: int) -> bytes:
        """Entry number `index`. Raises FormatError when there is none, StorageError when its file changed."""
        if not 0 <= index < self.size:
            raise FormatError("no such log entry", expected=f"0 <= index < {self.size}", got=index)
        return self._checked(index, self._bundle(index // _WIDTH)[index % _WIDTH])

    def entries(self) -> Iterator[bytes]:
        """All entries of the present size, in order. Raises StorageError when a file changed."""
        size = self.size
        for start in range(0, size, _WIDTH):
            bundle = self._bundle(start // _WIDTH)
            for index in range(start, min(start + _WIDTH, size)):
                yield self._checked(index, bundle[index - start])

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Audit path of an entry in the log's first `size` entries. Raises FormatError when impossible."""
        return self._tree.inclusion_proof(index, size)

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """Proof that the first `old` entries begin the first `new`. Raises FormatError when impossible."""
        return self._tree.consistency_proof(old, new)

    def append(self, entries: Sequence[bytes]) -> str:
        """Add entries and return the new checkpoint's text; all of them are in the log, or none.

        Raises FormatError for an entry that is too long, UsageError without the key, StorageError when
        the disk refuses. After a StorageError nothing can be appended until the log is opened again,
        which finds either the old checkpoint or the new one.
        """
        if self._key is None:
            raise UsageError("the log is open for reading only", hint="Open it with the coordinator's key.")
        for entry in entries:
            if len(entry) > MAX_ENVELOPE_BYTES:
                raise FormatError(
                    "a log entry is too long", expected=f"at most {MAX_ENVELOPE_BYTES}", got=len(entry)
                )
        self._check_undisturbed()
        if not entries:
            return self.checkpoint
        self._broken = True
        old = self.size
        try:
            tail = self._write_tiles(entries)
            head = Checkpoint(self._head.origin, self._tree.size, self._tree.root())
            text = sign_checkpoint(head, self._key)
            write_atomic(self._folder / "checkpoint", text.encode())
        except BaseException as error:
            grown = self._tree.size
            self._tree.truncate(old)
            if isinstance(error, StorageError):
                self._take_back(old, grown)
            raise
        self._head, self._text, self._tail = head, text, tail
        try:
            self._remove(_partial(old) - _partial(head.size))
        except OSError as error:
            raise storage_error(self._folder, error) from error
        self._broken = False
        return text

    def put_cosigned(self, text: str) -> None:
        """Replace the checkpoint on disk by the same one with cosignatures, atomically.

        Raises FormatError or SignatureError unless `text` is this very note and lines of the log's witnesses,
        UsageError without the key, StorageError as `append` does.
        """
        if self._key is None:
            raise UsageError("the log is open for reading only", hint="Open it with the coordinator's key.")
        log_vkey = vkey(self._head.origin, self._key.public)
        found = parse_cosigned(text, log_vkey, self._witness_vkeys)
        if found.checkpoint != self._head:
            raise FormatError(
                "a cosigned checkpoint is not the log's head",
                expected=f"size {self.size}, root {self.root.hex()}",
                got=f"size {found.checkpoint.size}, root {found.checkpoint.root.hex()}",
            )
        self._check_undisturbed()
        self._broken = True
        write_atomic(self._folder / "checkpoint", text.encode())
        self._text = text
        self._broken = False

    def _check_undisturbed(self) -> None:
        if self._broken or self._on_disk() != self._text:
            raise StorageError(
                "the log on disk is not what this writer last wrote",
                hint="Stop any other writer, then open the log again.",
            )

    def _on_disk(self) -> str:
        return _read_checkpoint(self._folder, _checkpoint_bytes(self._witness_vkeys))

    def _write_tiles(self, entries: Sequence[bytes]) -> list[bytes]:
        """Grow the tree and write every bundle and tile that changes. Returns the new partial bundle."""
        old = self.size
        for entry in entries:
            self._tree.append(leaf_hash(entry))
        size = self._tree.size
        pending = [*self._tail, *entries]
        for path, level, tile, width in _changed(old, size):
            if level == _ENTRIES:
                start = (tile - old // _WIDTH) * _WIDTH
                data = _pack(pending[start : start + width])
            else:
                data = self._tile(level, tile, width)
            write_atomic(self._folder / path, data)
        return pending[len(pending) - size % _WIDTH :]

    def _take_back(self, old: int, grown: int) -> None:
        """After a full disk: remove what was written beyond the checkpoint, so that readers find no more."""
        with contextlib.suppress(OSError, BarnraiseError):
            if self._on_disk() == self._text:
                written = {path for path, *_ in _changed(old, grown)}
                self._remove(sorted(path for path in written if (self._folder / path).exists()))
                for path in written:  # a folder of a file that could not be made
                    with contextlib.suppress(OSError):
                        (self._folder / path).parent.rmdir()

    def _tile(self, level: int, tile: int, width: int) -> bytes:
        return self._tree.nodes(_HEIGHT * level, tile * _WIDTH, tile * _WIDTH + width)

    def _bundle(self, tile: int) -> list[bytes]:
        """The entries of a bundle; the last, partial one is kept in memory."""
        if tile == self.size // _WIDTH:
            return self._tail
        return _unpack(self._folder / _path(_ENTRIES, tile, _WIDTH), _WIDTH)

    def _checked(self, index: int, entry: bytes) -> bytes:
        if leaf_hash(entry) != self._tree.node(0, index):
            raise _damaged(self._folder / _path(_ENTRIES, index // _WIDTH, _WIDTH))
        return entry

    def _load(self) -> None:
        """Read and check all bundles and tiles of the signed size. Raises StorageError."""
        for path, level, tile, width in _changed(0, self.size):
            file = self._folder / path
            if level == _ENTRIES:  # these come first, so the tree is complete when the tiles follow
                entries = _unpack(file, width)
                for entry in entries:
                    self._tree.append(leaf_hash(entry))
                self._tail = entries if width < _WIDTH else []
            elif _read(file, width * HASH_BYTES) != self._tile(level, tile, width):
                raise _damaged(file)
        if self._tree.root() != self.root:
            raise StorageError(
                f"the entries in {self._folder} are not those of its checkpoint",
                expected=f"root {self.root.hex()}",
                got=self._tree.root().hex(),
            )

    def _discard_leftovers(self) -> None:
        """Remove what an interrupted append left behind. Raises StorageError for a file of another kind."""
        keep = {"checkpoint", *(path for path, *_ in _changed(0, self.size))}
        try:
            found = sorted(self._folder.rglob("*"), reverse=True)
            folders = [path for path in found if path.is_dir() and not path.is_symlink()]
            files = {str(path.relative_to(self._folder)) for path in found} - {
                str(path.relative_to(self._folder)) for path in folders
            }
            extra = sorted(files - keep)
            for path in extra:
                if not _LEFTOVER.match(path):
                    raise StorageError(
                        f"{self._folder / path} does not belong in a log",
                        hint="Move it elsewhere, then try again.",
                    )
            self._remove(extra)
            for folder in folders:  # deepest first
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise storage_error(self._folder, error) from error

    def _remove(self, paths: Iterable[str]) -> None:
        """Delete files, and folders that this emptied, durably. Raises OSError."""
        for path in paths:
            file = self._folder / path
            file.unlink()
            if any(file.parent.iterdir()):
                fsync_folder(file.parent)
            else:
                file.parent.rmdir()
                fsync_folder(file.parent.parent)


def _counts(size: int) -> Iterator[tuple[int, int]]:
    """Levels of a log of that size, the bundles first, and how many entries or hashes each holds."""
    level = _ENTRIES
    while count := size >> (_HEIGHT * max(level, 0)):
        yield level, count
        level += 1


def _changed(old: int, new: int) -> Iterator[tuple[str, int, int, int]]:
    """Path, level, number and width of each bundle and tile that growth from size `old` to `new` writes."""
    for level, count in _counts(new):
        before = old >> (_HEIGHT * max(level, 0))
        if count > before:
            for tile in range(before // _WIDTH, (count - 1) // _WIDTH + 1):
                width = min(_WIDTH, count - tile * _WIDTH)
                yield _path(level, tile, width), level, tile, width


def _partial(size: int) -> set[str]:
    """Paths of the partial bundle and the partial tiles of a log of that size."""
    return {_path(level, count // _WIDTH, count % _WIDTH) for level, count in _counts(size) if count % _WIDTH}


def _path(level: int, tile: int, width: int) -> str:
    """C2SP tlog-tiles path: the number in groups of three digits, `x` before all but the last."""
    groups = [f"{tile % 1000:03d}"]
    while tile := tile // 1000:
        groups.insert(0, f"x{tile % 1000:03d}")
    partial = f".p/{width}" if width < _WIDTH else ""
    return f"tile/{'entries' if level == _ENTRIES else level}/{'/'.join(groups)}{partial}"


def _pack(entries: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def _unpack(path: Path, width: int) -> list[bytes]:
    """Read a bundle of exactly `width` entries. Raises StorageError."""
    data = _read(path, width * (2 + MAX_ENVELOPE_BYTES))
    entries, position = [], 0
    for _ in range(width):
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        entries.append(data[start:position])
    if position != len(data):
        raise _damaged(path)
    return entries


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise StorageError(f"{path} cannot be read", got=error.strerror or str(error)) from error


def _checkpoint_bytes(witness_vkeys: Sequence[str]) -> int:
    """How long a checkpoint with all its cosignatures can be."""
    return _MAX_CHECKPOINT_BYTES + MAX_LINE_BYTES * len(witness_vkeys)


def _read_checkpoint(folder: Path, max_bytes: int) -> str:
    path = folder / "checkpoint"
    try:
        return _read(path, max_bytes).decode()
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not text") from None


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} was changed after it was written", hint="Restore the run folder from a copy that verifies."
    )
