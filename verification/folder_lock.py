"""One process at a time in a private folder.

Owns the lock that keeps a restarted member, or a second coordinator, from working beside one that is
still alive: two of them could say two things in one turn. The lock ends with its process. Does not own what
lies in the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from verification.errors import StorageError

PAUSE_S = 0.05
# By folder, with the process that took it: a forked child does not own its parent's lock.
_held: dict[Path, tuple[int, int]] = {}


def lock_folder(folder: Path, *, wait_s: float) -> None:
    """Take `folder` for this process until it ends; taking it again in the same process is nothing.

    Waits up to `wait_s` seconds for another process to go away. Raises StorageError when it does not.
    """
    path = folder.resolve() / "lock"
    owner, _ = _held.get(path, (0, 0))
    if owner == os.getpid():
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stop = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= stop:
                os.close(handle)
                raise StorageError(
                    f"another process is at work in {folder}",
                    hint="Wait until it has ended, or end it; then try again.",
                ) from None
            time.sleep(PAUSE_S)
        else:
            _held[path] = (os.getpid(), handle)
            return
