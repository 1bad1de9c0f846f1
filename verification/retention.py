"""What a run may let go of: payloads, start states and checkpoints that nothing needs any more.

Owns "Retention" in section 11 of docs/protocol.md for who writes a run, as a fold over the records of a log.
Its memory is that of the rounds that are kept. Does not own the files, or records that the rules refuse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verification.records import Record, Reveal, RevealClose, RoundClose, RoundOpen, Settlement


def is_scheduled(round_: int, *, every: int, floor: int = 0, sparse: int = 0) -> bool:
    """Whether the checkpoint of a round stays by the schedule, a sparser one below `floor`, if any."""
    return round_ % (sparse if sparse and round_ < floor else every) == 0


@dataclass(frozen=True)
class Named:
    """What the valid reveals of a turn name: digests of payloads, and of start states that are kept."""

    round: int
    payloads: tuple[str, ...]
    states: tuple[str, ...]


class Retention:
    """Hand it every record of a log, in order.

    `floor` is K of the specification: payloads and states that only rounds up to it name may go. `firm` is
    the last firm round with a checkpoint of the schedule, from which a lineage can be taken up; `dropped`
    counts the payloads that may be gone.
    """

    def __init__(self, config: Mapping[str, Any], zero_state: str) -> None:
        # A configuration may lack the sections: then everything stays.
        policy = config.get("retention", {"payload_rounds": 0, "checkpoint_every": 0})
        self.rounds: int = policy["payload_rounds"]
        self.sparse: int = policy["checkpoint_every"]
        self.every: int = config.get("checkpoint", {"every": 1})["every"]
        self.floor = self.firm = self.dropped = 0
        self._lags = config["audit"]["lag"] > 0
        self._zero_state = zero_state
        self._closed = 0
        self._snapshot = False  # whether the turn in progress is one
        self._reveals: dict[int, tuple[str, str]] = {}  # by slot: payload and start state
        self._named: deque[Named] = deque()
        self._to_settle: deque[tuple[int, int]] = (
            deque()
        )  # (round, attempt) whose checkpoints may become firm
        self._ready: deque[int] = deque()  # firm rounds above the floor

    @property
    def payloads(self) -> set[str]:
        """Digests of the payloads that must stay."""
        return {digest for turn in self._named for digest in turn.payloads}

    @property
    def states(self) -> set[str]:
        """Digests of the start states that must stay."""
        return {digest for turn in self._named for digest in turn.states}

    def is_scheduled(self, round_: int) -> bool:
        """Whether the checkpoint of a round stays by the schedule."""
        return is_scheduled(round_, every=self.every, floor=self.floor, sparse=self.sparse)

    def see(self, record: Record) -> None:
        """Take the next record of the log, which the rules have passed."""
        match record:
            case RoundOpen():
                self._snapshot, self._reveals = record.snapshot, {}
            case Reveal():
                self._reveals[record.slot] = record.opening.payload, record.opening.start_state
            case RevealClose():
                self._name(record)
            case RoundClose():
                self._close(record)
            case Settlement():
                self._settle(record)
            case _:
                return

    def _name(self, record: RevealClose) -> None:
        pairs = [self._reveals[slot] for slot in record.revealed]
        kept = pairs if self._snapshot else []
        states = {state for _, state in kept} - {self._zero_state}
        payloads = {payload for payload, _ in pairs}
        self._named.append(Named(record.round, tuple(sorted(payloads)), tuple(sorted(states))))
        self._reveals = {}

    def _close(self, record: RoundClose) -> None:
        if record.void:
            return
        self._closed = record.round
        if record.round % self.every == 0:
            if self._lags:
                self._to_settle.append((record.round, record.attempt))
            else:
                self._is_firm(record.round)
        self._let_go()

    def _settle(self, record: Settlement) -> None:
        if record.removed:
            self._to_settle.clear()  # of all that waited when these were closed, something is taken out
        elif self._to_settle and self._to_settle[0] == (record.round, record.attempt):
            self._to_settle.popleft()
            self._is_firm(record.round)
        self._let_go()

    def _is_firm(self, round_: int) -> None:
        self.firm = round_
        self._ready.append(round_)

    def _let_go(self) -> None:
        floor = self.floor
        while self._ready and (not self.rounds or self._ready[0] <= self._closed - self.rounds):
            found = self._ready.popleft()
            self.floor = found if self.rounds else 0
        if self.floor == floor:
            return
        gone: set[str] = set()
        while self._named and self._named[0].round <= self.floor:
            gone |= set(self._named.popleft().payloads)
        self.dropped += len(gone - self.payloads)
