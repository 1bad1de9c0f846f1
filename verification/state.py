"""The state of a run as it follows from its log.

Owns the frozen values `RunState` and `Turn` and simple questions to them. Does not own how they change
(rounds.py) or what comes next (plans.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verification.credits import Standing
from verification.errors import ProtocolError
from verification.judge import Audit, Look, TurnEvidence
from verification.records import (
    Accepted,
    Appeal,
    Base,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    FirstLooks,
    Manifest,
    Requeued,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    SecondDraw,
    Served,
    Verdict,
)
from verification.tolerance import Tolerances, rests_on_tolerance
from verification.witnessing import ShownLink


@dataclass(frozen=True)
class Turn:
    """The turn in progress: the records that are in the log so far."""

    open: RoundOpen
    commitments: Mapping[int, Commitment] = field(default_factory=dict)
    commit_close: CommitClose | None = None
    reveals: Mapping[int, Reveal] = field(default_factory=dict)
    reveal_close: RevealClose | None = None
    draw: Draw | None = None
    served: Served | None = None
    first_looks: FirstLooks | None = None
    second: SecondDraw | None = None
    verdicts: Mapping[Look, Verdict] = field(default_factory=dict)
    appeals: Mapping[int, Appeal] = field(default_factory=dict)
    lag: int = 0
    tolerances: Tolerances = ()

    def rests_on_tolerance(self, slot: int) -> bool:
        """Whether no auditor of the open is of the slot's class, but a tolerance covers one."""
        return rests_on_tolerance(self.tolerances, self.open.entry(slot), self.open.auditors)

    def audit_of(self, slot: int) -> Audit:
        """What an audit of a revealed slot looks into."""
        entry, segments = self.open.entry(slot), self.drawn_segments(slot)
        seed = self.draw.seed if self.draw else ""
        return Audit.of(self.tolerances, entry, self.open.auditors, segments, seed)

    def drawn_segments(self, slot: int) -> tuple[int, ...]:
        """The segments of a slot that the draw names; none when it is not drawn."""
        drawn = self.draw.drawn if self.draw else ()
        return next((item.segments for item in drawn if item.slot == slot), ())

    def segments(self, slot: int) -> int:
        """How many segments the revealed contribution of a slot has."""
        return self.reveals[slot].opening.trace_leaves - 1

    @property
    def evidence(self) -> TurnEvidence:
        """What settling needs; where audits lag, only provisionally before the second draw is in the log.

        ProtocolError when the turn is not as far as that.
        """
        settled = self.second or self.lag
        if not (self.commit_close and self.reveal_close and self.draw and self.served and settled):
            raise ProtocolError("a turn cannot be settled yet", expected="all records up to second-draw")
        return TurnEvidence(
            self.open,
            self.commit_close.committed,
            {refusal.slot: refusal.reason for refusal in self.reveal_close.refused},
            self.draw,
            self.served.unserved,
            self.verdicts,
            self.first_looks,
            self.second,
            self.appeals.keys(),
            self.tolerances,
        )


@dataclass(frozen=True)
class Waiting:
    """A closed turn that is not settled: what of it is accepted so far, and the lineage before it."""

    turn: Turn
    accepted: tuple[Accepted, ...]
    lineage: Mapping[str, str]

    @property
    def slots(self) -> frozenset[int]:
        """The slots that are still accepted."""
        return frozenset(item.slot for item in self.accepted)


@dataclass(frozen=True)
class RunState:
    """Everything that follows from the log.

    `members`: enrolments, each with the member's present key; `keys`: all keys that any member ever had;
    `away`: who left and did not return; `newcomers`: how many joined after the first open.
    `lineage`: member to the digest it must start from; `links`: the last link of each witness;
    `payloads`: digests of all valid reveals, `used`: those of accepted ones. `waiting`: closed turns that are
    not settled, the oldest first; `draws`: how many draws and second-draws there were.
    """

    manifest: Manifest
    run: str
    members: tuple[Enrol, ...] = ()
    keys: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    newcomers: int = 0
    turn: Turn | None = None
    waiting: tuple[Waiting, ...] = ()
    turns: int = 0
    draws: int = 0
    round: int = 1
    attempt: int = 0
    base: Base = field(default_factory=lambda: Base("sha256:" + "0" * 64, "sha256:" + "0" * 64))
    link: str = ""
    links: Mapping[str, ShownLink] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    standings: Mapping[str, Standing] = field(default_factory=dict)
    pace: Mapping[int, int] = field(default_factory=dict)
    cursor: int = 0
    queue: tuple[Requeued, ...] = ()
    payloads: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    tokens: int = 0
    last_close: RoundClose | None = None
    finished: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration as it stands in the manifest."""
        return self.manifest.config

    def by_role(self, role: str) -> tuple[Enrol, ...]:
        """Members of a role in log order; a contributor's index here is its slot."""
        return tuple(member for member in self.members if member.role == role)

    def takes_part(self, name: str) -> bool:
        """Whether a member is in rosters and lists of auditors: neither in quarantine nor away."""
        return name not in self.away and not self.standings[name].quarantined

    @property
    def is_deserted(self) -> bool:
        """Whether no contributor takes part though one that is away could."""
        here = [m.member for m in self.by_role("contributor") if not self.standings[m.member].quarantined]
        return bool(here) and self.away.issuperset(here)

    @property
    def between_turns(self) -> bool:
        """Whether the log stands where members may change keys, leave, return and join."""
        return bool(self.turns) and self.turn is None and self.due is None

    def member(self, name: str) -> Enrol:
        """An enrolled member with its present key; ProtocolError when there is none of that name."""
        for member in self.members:
            if member.member == name:
                return member
        raise ProtocolError("nobody of that name is enrolled", got=name)

    @property
    def rounds_done(self) -> int:
        """Rounds closed with something accepted."""
        return self.round - 1

    @property
    def due(self) -> Waiting | None:
        """The turn that must be settled before anything else may come; none opens while there is one."""
        if not self.waiting:
            return None
        over = self.rounds_done == self.config["run"]["rounds"]
        return self.waiting[0] if over or len(self.waiting) > self.config["audit"]["lag"] else None

    @property
    def bases_in_use(self) -> frozenset[int]:
        """Rounds whose checkpoints the turns that wait for their settlement started from."""
        return frozenset(waiting.turn.open.round - 1 for waiting in self.waiting)

    @property
    def open_turn(self) -> Turn:
        """The turn in progress, or the one whose settlement is due; ProtocolError when there is neither."""
        turn = self.turn or (self.due.turn if self.due else None)
        if turn is None:
            raise ProtocolError("no turn is open", expected="a turn in progress")
        return turn
