"""Contributors that come later and do not join as they should, or say odd things between turns.

Owns how. Does not own what becomes of their work, which is honest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.simulator.garbage import garbage
from tests.simulator.people import Cheat
from verification.errors import ProtocolError
from verification.records import PROTOCOL, Enrol, Leave, Return
from verification.sealing import open_record, seal_record


class OddEnrolment(Cheat):
    """Enrols as somebody or something else; once it is in, says what it may not say between two turns."""

    def cheats(self, turn: int) -> bool:
        return False

    def enrol(self) -> Any:
        true = super().enrol()
        dice = self.dice("enrol")
        record = open_record(Enrol, true, self.key.public)
        changes: list[dict[str, Any]] = [
            {"role": "auditor"},
            {"operator": "op-mine"},
            {"member": "c00"},
            {"key": self.manifest.coordinator},
            {"run": "sha256:" + "7" * 64},
            {},
            {},
            {},
            {},
        ]
        if dice.random() < 0.1:
            return garbage(dice, true, self.key)
        return seal_record(replace(record, **dice.choice(changes)), self.key)

    def identity_changes(self, present_key: str, turn: int = 0, away: bool = False) -> Any:
        true = super().identity_changes(present_key, turn, away)
        asked = self.street.shop.asked
        asked[self.name, "changes"] += 1
        dice, place = self.dice("changes", turn, asked[self.name, "changes"]), (PROTOCOL, self.run)
        odd: list[Any] = [
            true,
            [seal_record(Leave(*place, self.name, self.key.public, turn + 1, "member"), self.key)],
            [seal_record(Leave(*place, self.name, self.key.public, turn, "coordinator"), self.key)],
            [seal_record(Leave(*place, "c00", self.key.public, turn, "member"), self.key)],
            [seal_record(Return(*place, self.name, self.key.public, turn if not away else 0), self.key)],
            [super().enrol()],
            garbage(dice, super().enrol(), self.key) if dice.random() < 0.5 else [b""],
        ]
        return dice.choice(odd)


class NeverReady(Cheat):
    """Wants files that nobody has, takes none, or does not enrol: it never comes in."""

    def missing_files(self) -> Any:
        if self.dice("ready").random() < 0.5:
            return self.dice("files").choice(
                [["../secrets"], ["nothing.arrow"], "tokenizer.json", [7], ["a"] * 5]
            )
        return super().missing_files()

    def catch_up(self, *log: Any) -> Any:
        if self.dice("log").random() < 0.3:
            raise ProtocolError("I do not read that")
        return garbage(self.dice("size"), b"7", self.key)

    def enrol(self) -> bytes:
        raise ProtocolError("not now")


ODD_MEMBERS: dict[str, type[Cheat]] = {"odd-enrolment": OddEnrolment, "never-ready": NeverReady}
