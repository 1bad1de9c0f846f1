"""The log on disk: tiles, entry bundles, roots and the signed checkpoint (protocol, section 3).

Owns that every byte under `log/` is the one it must be. What the entries mean is `fsck_rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verification.errors import FormatError, StorageError
from verification.fsck_findings import Report
from verification.fsck_formats import MAX_ENTRY, Checkpoint, parse_checkpoint, read_file

_WIDTH = 256


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Hashes of all complete subtrees: element i of level k covers the 2^k leaves from i·2^k."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return levels


def _root(levels: list[list[bytes]], size: int) -> bytes:
    """The root of the first `size` leaves: complete subtrees folded from the right."""
    root: bytes | None = None
    for k, level in enumerate(levels):
        if size >> k & 1:
            peak = level[(size >> k) - 1]
            root = peak if root is None else node_hash(peak, root)
    return hashlib.sha256(b"").digest() if root is None else root


def merkle_root(entries: Sequence[bytes]) -> bytes:
    """RFC 6962 root over `entries`."""
    return _root(_levels([leaf_hash(entry) for entry in entries]), len(entries))


@dataclass(frozen=True)
class LogView:
    """What could be read of the log.

    `entries` are the first entries, as far as the bundles can be read; `complete` says that these are as
    many as the checkpoint signs. `roots[n]` is the root of the first n entries.
    """

    checkpoint: Checkpoint | None = None
    entries: tuple[bytes, ...] = ()
    roots: tuple[bytes, ...] = field(default=(), repr=False)
    complete: bool = False


def _number(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def _tile_names(kind: str, count: int) -> Iterator[tuple[str, int]]:
    """Names under log/ and widths of the tiles that hold `count` items."""
    full, rest = divmod(count, _WIDTH)
    for index in range(full):
        yield f"tile/{kind}/{_number(index)}", _WIDTH
    if rest:
        yield f"tile/{kind}/{_number(full)}.p/{rest}", rest


def list_files(folder: Path) -> Iterator[str]:
    """Every name below a folder that is not a folder itself, links unfollowed; "" if it cannot be listed."""
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        try:
            inside = sorted(here.iterdir())
        except OSError:
            yield prefix
            continue
        for path in inside:
            if path.is_dir() and not path.is_symlink():
                waiting.append((path, f"{prefix}{path.name}/"))
            else:
                yield f"{prefix}{path.name}"


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


def _read_entries(folder: Path, size: int, report: Report) -> list[bytes]:
    """Entries of the bundles, up to the first that cannot be read."""
    entries: list[bytes] = []
    for name, width in _tile_names("entries", size):
        try:
            data = read_file(folder / name, width * (2 + MAX_ENTRY))
            entries += _split_bundle(data, width, len(entries))
        except (FormatError, StorageError) as error:
            report.add(
                f"{error.what} (entries from {len(entries)} on are not checked)",
                f"log/{name}",
                error.expected or f"a bundle of {width} entries",
                error.what if error.got is None else error.got,
            )
            break
    return entries


def _check_tiles(folder: Path, levels: list[list[bytes]], size: int, report: Report) -> set[str]:
    """Compare every hash tile; the names that belong under log/."""
    names = {"checkpoint"} | {name for name, _ in _tile_names("entries", size)}
    for level in range(0, len(levels), 8):
        at = 0
        for name, width in _tile_names(str(level // 8), len(levels[level])):
            names.add(name)
            want = levels[level][at : at + width]
            at += width
            try:
                data = read_file(folder / name, 32 * width)
            except StorageError as error:
                expected = error.expected or f"a tile of {width} hashes"
                report.add("a hash tile cannot be read", f"log/{name}", expected, error.got or error.what)
                continue
            got = [data[i : i + 32] for i in range(0, len(data), 32)]
            bad = [i for i in range(max(len(got), width)) if got[i : i + 1] != want[i : i + 1]]
            if bad:
                first = at - width + bad[0]
                covers = f"entry {first}" if level == 0 else f"subtree {first} of level {level // 8}"
                report.add(
                    f"a hash tile does not fit {covers}", f"log/{name}", want[bad[0] :][:1], got[bad[0] :][:1]
                )
    return names


def read_log(folder: Path, report: Report) -> LogView:
    """Read and check the log in `folder` (the run's `log/`), except for who signed the checkpoint."""
    try:
        note = read_file(folder / "checkpoint", MAX_ENTRY)
        checkpoint = parse_checkpoint(note.decode("utf-8"))
    except (FormatError, StorageError) as error:
        what, got = f"{error.what} (nothing in the log was checked)", error.got or "something else"
        report.add(what, "log/checkpoint", error.expected or "a signed checkpoint", got)
        return LogView()
    except UnicodeDecodeError:
        what = "the checkpoint is not UTF-8 (nothing in the log was checked)"
        report.add(what, "log/checkpoint", "a signed checkpoint", "other bytes")
        return LogView()
    entries = _read_entries(folder, checkpoint.size, report)
    levels = _levels([leaf_hash(entry) for entry in entries])
    roots = tuple(_root(levels, size) for size in range(len(entries) + 1))
    complete = len(entries) == checkpoint.size
    if complete:
        root, signed = roots[-1].hex(), checkpoint.root.hex()
        report.equal("the signed root is not that of the entries", "log/checkpoint", root, signed)
        known = _check_tiles(folder, levels, checkpoint.size, report)
        for name in list_files(folder):
            if name not in known:
                report.add("an unexpected or stale file lies in the log", f"log/{name}", "no such file", name)
    return LogView(checkpoint, tuple(entries), roots, complete)
