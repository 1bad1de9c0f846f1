"""Durable writes: a file is there whole, or not at all.

Owns the order write, fsync file, rename, fsync folder, and files that hold a secret (0600, never
overwritten). Does not own what is written or where.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from verification.errors import FormatError, StorageError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` so that after a crash `path` holds either its old content or all of `data`.

    Raises StorageError, with the disk's own words, when the bytes cannot be stored; nothing half-written
    is left under `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make_folder(path.parent)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        _write_synced(handle, data, mode)
        os.replace(temporary, path)  # noqa: PTH105 - one system call, named as POSIX names it
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def present(path: Path) -> bool:
    """Whether something lies at `path`. StorageError when the disk does not say."""
    try:
        return path.exists()
    except OSError as error:
        raise storage_error(path, error) from error


def write_secret(path: Path, data: bytes) -> None:
    """Create `path`, mode 0600, durably and whole, or not at all.

    Raises UsageError when it exists, StorageError on a full disk.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already", hint="A secret is never overwritten: name another file.")
    # A name of its own, and a link: a rename would overwrite what another process made meanwhile.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    linked = False
    try:
        make_folder(path.parent)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        _write_synced(handle, data, 0o600)
        os.link(temporary, path)
        linked = True
        os.unlink(temporary)  # noqa: PTH108 - like the link, one system call
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            if linked:
                path.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def read_secret(path: Path, max_bytes: int) -> bytes:
    """Bytes of a file that only its owner may read.

    Raises UsageError when it is not there or not a file, or when group or others may touch it, FormatError
    when it is longer than `max_bytes`. No error quotes the content.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{path} cannot be opened", got=error.strerror, hint="Is the path right?") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file")
        if status.st_mode & 0o077:
            raise UsageError(
                f"{path} may be used by others than its owner",
                expected="mode 0600",
                got=f"{stat.S_IMODE(status.st_mode):04o}",
                hint=f"Run `chmod 600 {path}`; if others could read it, make a new one instead.",
            )
        data = os.read(handle, max_bytes + 1)
    finally:
        os.close(handle)
    if len(data) > max_bytes:
        raise FormatError(f"{path} is too long for a secret", expected=f"at most {max_bytes} bytes")
    return data


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, each durable in its own parent. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(handle: int, data: bytes, mode: int) -> None:
    try:
        os.fchmod(handle, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError) -> StorageError:
    """An operating system error as one of the family, with what to do."""
    if error.errno in _FULL:
        return StorageError(
            f"the disk is full: {path} could not be written",
            hint="Make room, then `barnraise resume` goes on from the last durable step.",
        )
    return StorageError(f"{path} could not be written", got=error.strerror or str(error))


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error says, itself or by its cause, that no room is left on a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False
