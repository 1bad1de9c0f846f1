"""What a witness must not forget, on disk: pinned keys, newest checkpoints, chains, links shown, forks.

Owns the files of a witness's folder and that each write is durable when it returns. Does not own what may be
written when; nor the key of the witness, nor the lock that keeps a second witness out of the folder.

    logs/HASH/vkey        the log's verifier key; HASH is the SHA-256 of the origin in hex
    logs/HASH/checkpoint  the newest checkpoint that the witness cosigned, with its cosignature
    logs/HASH/chain       the secret chain for this log, mode 0600
    logs/HASH/shown       the number and the head of the last link shown, canonical JSON
    forks/HASH-proven-NAME.txt    two roots for one size, both signed by the log
    forks/HASH-unproven-NAME.txt  two checkpoints of one log with a proof between them that does not hold
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from verification.durable import present, storage_error, write_atomic
from verification.encoding import canonical_json, from_json, parse_canonical, to_json
from verification.errors import BarnraiseError, StorageError
from verification.lottery import HashChain
from verification.notes import MAX_NOTE_BYTES, parse_vkey

MAX_FORKS = 10  # of one log; proven ones and others are counted apart


@dataclass(frozen=True, slots=True)
class Shown:
    """The last link shown: its number, and size and root (hex) of the head it was shown for."""

    number: int
    size: int
    root: str


def origin_hash(origin: str) -> str:
    """SHA-256 of an origin in lower-case hex: a log's place in a witness's folder and addresses."""
    return hashlib.sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()


class WitnessStore:
    """The folder of one witness. Nothing is kept in memory: what the disk holds is what the witness knows.

    Every method raises StorageError when the disk refuses or holds something else than was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def vkeys(self) -> tuple[str, ...]:
        """Verifier keys of all logs known here."""
        return tuple(_checked_vkey(path) for path in _files(self.folder / "logs", "*/vkey"))

    def vkey(self, origin: str) -> str | None:
        """The key pinned for a log; None when the witness never heard of it."""
        path = self._file(origin, "vkey")
        return _checked_vkey(path) if present(path) else None

    def pin(self, origin: str, log_vkey: str) -> None:
        """Remember a log's key for good."""
        write_atomic(self._file(origin, "vkey"), f"{log_vkey}\n".encode())

    def newest(self, place: str) -> str | None:
        """The newest cosigned checkpoint of the log whose origin hash is `place`."""
        data = _read(self.folder / "logs" / place / "checkpoint", MAX_NOTE_BYTES)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise _damaged(self.folder / "logs" / place / "checkpoint") from None

    def put_newest(self, origin: str, note: str) -> None:
        """Make a cosigned checkpoint the newest."""
        write_atomic(self._file(origin, "checkpoint"), note.encode())

    def chain(self, origin: str) -> HashChain | None:
        """The chain for a log, None before it was asked for."""
        path = self._file(origin, "chain")
        if not present(path):
            return None
        try:
            return HashChain.load(path)
        except StorageError:
            raise
        except BarnraiseError as error:
            raise StorageError(f"{path} cannot be used", got=str(error)) from None

    def make_chain(self, origin: str, length: int) -> HashChain:
        """A new chain for a log, durable before anybody sees its end."""
        chain = HashChain.generate(length)
        chain.save(self._file(origin, "chain"))
        return chain

    def shown(self, origin: str) -> Shown | None:
        """The last link shown for a log."""
        path = self._file(origin, "shown")
        data = _read(path, 1024)
        if data is None:
            return None
        try:
            return from_json(Shown, parse_canonical(data))
        except BarnraiseError:
            raise _damaged(path) from None

    def put_shown(self, origin: str, shown: Shown) -> None:
        """Remember a link before it is shown."""
        write_atomic(self._file(origin, "shown"), canonical_json(to_json(shown)))

    def fork_file(self, origin: str, name: str, *, proven: bool) -> Path:
        """Where evidence lies: what anybody can make takes no place of proof, nor one log another's."""
        kind = "proven" if proven else "unproven"
        return self.folder / "forks" / f"{origin_hash(origin)}-{kind}-{name}.txt"

    def put_fork(self, path: Path, text: str) -> bool:
        """Keep evidence in its `fork_file`; False when there is too much of that kind of that log."""
        kind = "-".join(path.name.split("-")[:2])
        if len(_files(path.parent, f"{kind}-*.txt")) >= MAX_FORKS:
            return False
        write_atomic(path, text.encode())
        return True

    def forks(self) -> tuple[Path, ...]:
        """Files of evidence so far."""
        return _files(self.folder / "forks", "[!.]*.txt")

    def _file(self, origin: str, name: str) -> Path:
        return self.folder / "logs" / origin_hash(origin) / name


def _files(folder: Path, pattern: str) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.glob(pattern)))
    except OSError as error:
        raise storage_error(folder, error) from error


def _checked_vkey(path: Path) -> str:
    try:
        text = (_read(path, 1024) or b"").decode().removesuffix("\n")
        parse_vkey(text)
    except (UnicodeDecodeError, BarnraiseError):
        raise _damaged(path) from None
    return text


def _read(path: Path, max_bytes: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read", got=error.strerror or str(error)) from error


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} was changed after it was written",
        hint="A witness that forgot what it cosigned must not go on: take a new key and a new folder.",
    )
