"""What auditors told of steps before they were shown where these end, on the coordinator's own disk.

Owns the files: whoever takes up a turn after a crash must not ask again, of somebody who may have been shown
the ends meanwhile. They lie among the coordinator's secrets, since another auditor could copy them. Does not
own what is told (sketch.py) or when (panel.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from verification.durable import storage_error, write_atomic


@dataclass(frozen=True)
class Question:
    """One wave of one auditor's audit of a slot. What it told stands for whatever look it is asked at."""

    turn: int
    slot: int
    auditor: str
    wave: int

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.turn}-{self.slot}-{self.wave}-{self.auditor}"


class ToldFiles:
    """The answers that were told, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, question: Question) -> bytes | None:
        """The answer to a question; None where there is none. Raises StorageError."""
        path = self._folder / question.name
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            raise storage_error(path, error) from error

    def put(self, question: Question, answer: bytes) -> None:
        """Keep an answer, durably, before the ends of its steps are served. Raises StorageError."""
        write_atomic(self._folder / question.name, answer, mode=0o600)

    def forget(self, turn: int) -> None:
        """Let go of what was told in a turn whose audits are over, and in those before it.

        Raises StorageError.
        """
        try:
            for path in self._folder.glob("*-*"):
                # What a kill left half-written has a dot before its name.
                if int(path.name.lstrip(".").split("-")[0]) <= turn:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self._folder, error) from error
