"""A log written down naively, and ways to make the disk fail, for the tests of the log."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from verification.keys import PrivateKey
from verification.log import Log
from verification.merkle import leaf_hash
from verification.notes import Checkpoint, parse_checkpoint, vkey

KEY = PrivateKey.from_seed(bytes(range(32)))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, KEY.public)
CALLS = ["open", "write", "fsync", "replace", "unlink", "rmdir", "mkdir"]


class Crash(BaseException):
    """Stands for a lost process: no clean-up code for errors catches it."""


@contextmanager
def failing(name: str, at: int, error: BaseException) -> Iterator[None]:
    """Let the call number `at` of `os.<name>` raise, and with a crash every later one too."""
    real: Callable[..., Any] = getattr(os, name)
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at or (count > at and isinstance(error, Crash)):
            raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, call)
        yield


def calls_in(name: str, action: Callable[[], Any]) -> int:
    """How often `action` calls `os.<name>`."""
    real: Callable[..., Any] = getattr(os, name)
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, lambda *args, **kwargs: (calls.append(name), real(*args, **kwargs))[1])
        action()
    return len(calls)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def entry(number: int) -> bytes:
    return b"" if number == 1 else b"entry %d" % number


def batch(start: int, count: int) -> list[bytes]:
    return [entry(number) for number in range(start, start + count)]


def mth(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaf hashes."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else hashlib.sha256().digest()
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(hashes[:k]) + mth(hashes[k:])).digest()


def expected_files(entries: list[bytes]) -> dict[str, bytes]:
    """C2SP tlog-tiles written down naively: every file of a log but its checkpoint."""
    files: dict[str, bytes] = {}

    def add(folder: str, items: list[bytes]) -> None:
        for number in range(0, len(items), 256):
            part = items[number : number + 256]
            name = f"{number // 256:03d}" + ("" if len(part) == 256 else f".p/{len(part)}")
            files[f"tile/{folder}/{name}"] = b"".join(part)

    add("entries", [len(item).to_bytes(2, "big") + item for item in entries])
    hashes = [hashlib.sha256(b"\x00" + item).digest() for item in entries]
    level = 0
    while hashes:
        add(str(level), hashes)
        hashes = [mth(hashes[i : i + 256]) for i in range(0, len(hashes) - 255, 256)]
        level += 1
    return files


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def empty_folders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]


def check_folder(folder: Path, entries: list[bytes]) -> None:
    """The folder holds exactly the log of these entries."""
    files = files_of(folder)
    head = parse_checkpoint(files.pop("checkpoint").decode(), VKEY)
    assert head == Checkpoint(ORIGIN, len(entries), mth([leaf_hash(item) for item in entries]))
    assert files == expected_files(entries)
    assert empty_folders(folder) == []


def writer(folder: Path) -> Log:
    return Log.open(folder, ORIGIN, KEY, VKEY)


def reader(folder: Path) -> Log:
    return Log.open(folder, ORIGIN, None, VKEY)


def make(folder: Path, size: int) -> Log:
    log = Log.create(folder, ORIGIN, KEY)
    log.append(batch(0, size))
    return log
