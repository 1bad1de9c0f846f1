"""Whole tiny runs in which some segments are audited, and contributors that open their traces wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.adversaries import Adversary
from pipeline.config import Config
from pipeline.verify import Answer, VerifyOptions, verify
from tests.pipeline.adversary_runs import Story
from tests.tiny import tiny_config
from verification.errors import ProtocolError
from verification.records import Draw, Record, Reveal, RosterEntry, RoundClose, RoundOpen, Served, Verdict
from verification.segments import segment_count

LIAR, SLOT = "c03", 3


def config(**sections: Any) -> Config:
    """Every contribution is drawn from the start, two segments of it, and looked at twice."""
    fields: dict[str, Any] = {
        "run": {"rounds": 2},
        "train": {"steps": [6, 4, 5, 4], "trace_every": 1},
        "audit": {"probation_rounds": 0, "segments": 2, "second_look_ppm": 1_000_000},
    }
    for name, values in sections.items():
        fields[name] = {**fields.get(name, {}), **values}
    return tiny_config(**fields)


class Closed(Adversary):
    """Works honestly and opens nothing of it."""

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        raise ProtocolError("not mine to open")


class Skimpy(Adversary):
    """Opens a leaf less than is due."""

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        return super().serve_trace(turn, draw_envelope, checkpoint)

    def _due_leaves(self, open_: RoundOpen, entry: RosterEntry, envelope: bytes) -> tuple[int, ...]:
        return super()._due_leaves(open_, entry, envelope)[1:]


class Fickle(Adversary):
    """Opens other states than it committed to."""

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        data = super().serve_trace(turn, draw_envelope, checkpoint)
        return data[:-1] + bytes([data[-1] ^ 1])


class Garbled(Adversary):
    """Answers with something that is no bytes at all."""

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> Any:
        return {"trace": draw_envelope}


UNSERVED: dict[str, type[Adversary]] = {
    "closed": Closed,
    "skimpy": Skimpy,
    "fickle": Fickle,
    "garbled": Garbled,
}


class TurnRecords:
    """The records of one turn."""

    def __init__(self, open_: RoundOpen, records: list[Record]) -> None:
        self.open = open_
        self.draw = next(r for r in records if isinstance(r, Draw))
        self.served = next(r for r in records if isinstance(r, Served))
        self.close = next(r for r in records if isinstance(r, RoundClose))
        self.verdicts = [r for r in records if isinstance(r, Verdict)]
        self.openings = {r.slot: r.opening for r in records if isinstance(r, Reveal)}

    @property
    def drawn(self) -> dict[int, tuple[int, ...]]:
        """Segments by slot."""
        return {item.slot: item.segments for item in self.draw.drawn}

    def count(self, slot: int, every: int) -> int:
        return segment_count(self.open.entry(slot).steps, every)

    @property
    def rejected(self) -> dict[int, str]:
        return {item.slot: item.reason for item in self.close.rejected}


def turns(story: Story) -> list[TurnRecords]:
    """The closed turns of a finished run."""
    found: list[list[Record]] = []
    for record in story.coordinator.desk.ledger.records():
        if isinstance(record, RoundOpen):
            found.append([])
        if found:
            found[-1].append(record)
    return [TurnRecords(records[0], records) for records in found if isinstance(records[0], RoundOpen)]


def check(folder: Path, level: Any = 3) -> Answer:
    return verify(VerifyOptions(folder, level=level), lambda *_: None)
