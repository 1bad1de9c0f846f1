"""What was seen, for logs of any length, in memory of a fixed size.

Owns a private database that SQLite keeps in a temporary file of its own once it outgrows the cache; nobody
else can open it and it is gone when it is closed. Knows nothing of what the names mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from verification.errors import StorageError

_CACHE_KIB = 16_384


class Index:
    """A set of (kind, name). Raises StorageError when the machine has no room for it."""

    def __init__(self) -> None:
        try:
            self._database = sqlite3.connect("", isolation_level=None)
            for command in (
                "PRAGMA journal_mode=OFF",
                "PRAGMA synchronous=OFF",
                f"PRAGMA cache_size=-{_CACHE_KIB}",
                "CREATE TABLE seen (kind TEXT, name BLOB, PRIMARY KEY (kind, name)) WITHOUT ROWID",
                "BEGIN",
            ):
                self._database.execute(command)
        except sqlite3.Error as error:
            raise _trouble(error) from None

    def add(self, kind: str, name: bytes) -> bool:
        """Take a name; False when it was there already."""
        try:
            return (
                self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (kind, name)).rowcount == 1
            )
        except sqlite3.Error as error:
            raise _trouble(error) from None

    def has(self, kind: str, name: bytes) -> bool:
        """Whether a name was taken."""
        try:
            found = self._database.execute("SELECT 1 FROM seen WHERE kind = ? AND name = ?", (kind, name))
            return found.fetchone() is not None
        except sqlite3.Error as error:
            raise _trouble(error) from None

    def names(self, kind: str, start: bytes = b"") -> Iterator[bytes]:
        """What was taken of a kind, in order, from `start` on."""
        try:
            yield from (
                bytes(name)
                for (name,) in self._database.execute(
                    "SELECT name FROM seen WHERE kind = ? AND name >= ? ORDER BY name", (kind, start)
                )
            )
        except sqlite3.Error as error:
            raise _trouble(error) from None

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _trouble(error: sqlite3.Error) -> StorageError:
    return StorageError(
        "no room for the index of what was seen", got=str(error), hint="Give TMPDIR a folder with free space."
    )
