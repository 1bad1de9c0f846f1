"""A slow account of a log whose audits lag, straight from docs/protocol.md, to compare the state with.

It keeps every contribution that was ever accepted, and what became of it; everything is added up anew at
each look. Who is at fault it takes from verification.judge, which has tests of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from verification.judge import bears_out, settle
from verification.records import (
    KeyRevocation,
    KeyRotation,
    Record,
    Reveal,
    RoundClose,
    RoundOpen,
    Settlement,
    Verdict,
)
from verification.settling import due_turn
from verification.state import RunState


@dataclass
class Kept:
    """A contribution that a close accepted."""

    turn: int
    place: tuple[int, int, int]  # round, attempt, slot
    member: str
    tokens: int
    next_state: str
    positions: tuple[tuple[int, int], ...]
    rotations: int
    removed: bool = False


class SlowRun:
    """Records in the order of the log."""

    def __init__(self, zero: str) -> None:
        self.zero = zero
        self.kept: list[Kept] = []
        self.opens: dict[tuple[int, int], RoundOpen] = {}
        self.reveals: dict[tuple[int, int, int], Reveal] = {}
        self.verdicts: dict[tuple[int, int], list[Verdict]] = {}
        self.paid: list[tuple[str, int]] = []
        self.rotations: dict[str, int] = {}

    def add(self, record: Record) -> None:
        match record:
            case RoundOpen():
                self.opens[record.round, record.attempt] = record
            case Reveal():
                self.reveals[record.round, record.attempt, record.slot] = record
            case Verdict():
                self.verdicts.setdefault((record.round, record.attempt), []).append(record)
            case KeyRotation():
                self.rotations[record.member] = self.rotations.get(record.member, 0) + 1
            case RoundClose():
                self._close(record)
            case Settlement():
                self._settle(record)
            case KeyRevocation():
                pass

    def _close(self, record: RoundClose) -> None:
        open_ = self.opens[record.round, record.attempt]
        for item in record.accepted:
            place = record.round, record.attempt, item.slot
            self.kept.append(
                Kept(
                    open_.turn,
                    place,
                    item.member,
                    item.tokens,
                    self.reveals[place].opening.next_state,
                    open_.entry(item.slot).positions,
                    self.rotations.get(item.member, 0),
                )
            )

    def _settle(self, record: Settlement) -> None:
        gone = {(item.round, item.attempt, item.slot) for item in record.removed}
        reasons = {item.slot: item.reason for item in record.removed if item.reason != "follows"}
        for one in self.kept:
            one.removed = one.removed or one.place in gone
        overruled = {(item.slot, item.look) for item in record.overruled}
        open_ = self.opens[record.round, record.attempt]
        for verdict in self.verdicts.get((record.round, record.attempt), []):
            if (verdict.slot, verdict.look) in overruled:
                continue
            if bears_out(reasons.get(verdict.slot), verdict.outcome):
                # Every segment is drawn in these runs, or one of two steps.
                self.paid.append((verdict.auditor, open_.entry(verdict.slot).steps * 2 * 4))

    def expected_removals(self, state: RunState, record: Settlement) -> set[tuple[int, int, int, str]]:
        """By the rules: what the due turn's verdicts do not bear out, and later turns of these members."""
        turn = due_turn(state).turn
        reasons = {o.entry.slot: o.reason for o in settle(turn.evidence)}
        here = [one for one in self.kept if one.turn == turn.open.turn and not one.removed]
        found = {(*one.place, str(reasons[one.place[2]])) for one in here if reasons[one.place[2]]}
        fallen = {one.member for one in here if reasons[one.place[2]]}
        later = [one for one in self.kept if one.turn > turn.open.turn and not one.removed]
        assert (record.round, record.attempt) == (turn.open.round, turn.open.attempt)
        return found | {(*one.place, "follows") for one in later if one.member in fallen}

    def check(self, state: RunState) -> None:
        """Compare everything that can be added up."""
        live = [one for one in self.kept if not one.removed]
        assert state.tokens == sum(one.tokens for one in live)
        self._check_positions(state, live)
        for name, standing in state.standings.items():
            earned = sum(one.tokens for one in live if one.member == name)
            if not name.startswith("a"):
                assert standing.earned == earned
            elif state.config["audit"]["segments"] == 0:
                assert standing.earned == sum(tokens for who, tokens in self.paid if who == name)
            assert standing.earned == standing.vested + standing.pending + standing.forfeited
            assert min(standing.earned, standing.vested, standing.forfeited, standing.pending) >= 0
            assert not (standing.quarantined and standing.pending)
            since = [
                one.next_state
                for one in live
                if one.member == name and one.rotations == self.rotations.get(name, 0)
            ]
            assert state.lineage.get(name, self.zero) == (since[-1] if since else self.zero)
        waiting = [(w.turn.open.turn, w.slots) for w in state.waiting]
        for number, slots in waiting:
            assert slots == {one.place[2] for one in live if one.turn == number}

    @staticmethod
    def _check_positions(state: RunState, live: list[Kept]) -> None:
        """Every position that was ever given out is accepted once, waits in the queue, or is at work now."""
        done = [n for one in live for start, stop in one.positions for n in range(start, stop)]
        assert len(done) == len(set(done))
        if state.turn is None:
            queued = [n for item in state.queue for n in range(*item.range)]
            assert sorted([*done, *queued]) == list(range(state.cursor))
