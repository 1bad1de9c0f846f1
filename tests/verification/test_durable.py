"""Atomic writes under injected failures, and files that hold a secret."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verification.durable import make_folder, read_secret, write_atomic, write_secret
from verification.errors import FormatError, StorageError, UsageError

CALLS = ["open", "write", "fsync", "replace", "fchmod", "mkdir"]


class Crash(BaseException):
    """Stands for a lost process: no clean-up code for errors catches it."""


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: BaseException) -> None:
    real: Callable[..., Any] = getattr(os, name)
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


def test_writes_whole_files_with_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"old" * 100_000)
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_order_is_write_fsync_rename_fsync_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            folder = name == "fsync" and Path(f"/proc/self/fd/{args[0]}").is_dir()
            calls.append(f"{name} folder" if folder else name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "replace", "mkdir"):
        record(name)
    write_atomic(tmp_path / "new" / "file", b"data")
    assert calls == ["mkdir", "fsync folder", "write", "fsync", "replace", "fsync folder"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_after_a_failure_the_file_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, crash: bool, existing: bool
) -> None:
    failed = 0
    for at in range(1, 20):
        path = tmp_path / str(at) / "file"
        if existing:
            write_atomic(path, b"old")
        error: BaseException = Crash() if crash else OSError(errno.ENOSPC, "No space left on device")
        caught: BaseException | None = None
        with monkeypatch.context() as patch:
            failing(patch, name, at, error)
            try:
                write_atomic(path, b"new")
            except (StorageError, Crash) as raised:
                caught = raised
        if caught is None:
            break
        failed += 1
        assert isinstance(caught, Crash) == crash
        assert crash or "disk is full" in str(caught)
        content = path.read_bytes() if path.exists() else None
        assert content in ((b"old" if existing else None), b"new")
        if not crash:
            assert not list(tmp_path.rglob("*.tmp"))
        write_atomic(path, b"again")
        assert path.read_bytes() == b"again"
    assert failed > 0 or (name == "mkdir" and existing)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:3])))
    write_atomic(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    for path in (tmp_path / "x" / "file", tmp_path / "x" / "y" / "file"):
        with pytest.raises(StorageError, match="could not be written"):
            write_atomic(path, b"")
        with pytest.raises(StorageError, match="could not be written"):
            write_secret(path, b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "folder", b"")


def test_make_folder_is_idempotent(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_secret_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret"
    old = os.umask(0)
    try:
        write_secret(path, b"secret")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secret(path, 6) == b"secret"
    with pytest.raises(UsageError, match="exists already"):
        write_secret(path, b"other")
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists already"):
        write_secret(dangling, b"other")
    assert path.read_bytes() == b"secret"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_a_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"hunter2")
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600") as caught:
        read_secret(path, 100)
    assert "hunter2" not in str(caught.value)


def test_what_is_no_readable_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"hunter2")
    with pytest.raises(FormatError) as caught:
        read_secret(path, 6)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError):
        read_secret(tmp_path / "nowhere", 10)
    with pytest.raises(UsageError, match="regular file"):
        read_secret(tmp_path, 10)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(UsageError, match="regular file"):
        read_secret(tmp_path / "fifo", 10)


@pytest.mark.parametrize("name", ["write", "fsync", "fchmod"])
def test_a_secret_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, name, 1, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(StorageError, match="disk is full"):
            write_secret(tmp_path / "secret", b"x")
    assert not (tmp_path / "secret").exists()
    write_secret(tmp_path / "secret", b"x")
    assert read_secret(tmp_path / "secret", 1) == b"x"
