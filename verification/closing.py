"""The records that close things: a turn, its late audits, the run; and the parts they have in common.

Owns their fields and types; records.py names them too. Does not own what follows from them (plans.py,
settling.py, rounds.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from verification.encoding import digest_hex

Range = tuple[int, int]


@dataclass(frozen=True)
class Base:
    """Array digests of a checkpoint: the weights and the outer optimizer's state."""

    weights: str
    outer: str

    def __post_init__(self) -> None:
        digest_hex(self.weights)
        digest_hex(self.outer)


@dataclass(frozen=True)
class Accepted:
    """A contribution that entered the aggregate with `weight`."""

    slot: int
    member: str
    tokens: int
    weight: int
    payload: str


@dataclass(frozen=True)
class Rejected:
    """A contribution that did not. `fault` is true only after two auditors agreed."""

    slot: int
    member: str
    reason: str
    fault: bool
    evidence: str | None


@dataclass(frozen=True)
class Missed:
    """An auditor that was asked in its order and gave no verdict."""

    slot: int
    look: int
    auditor: str


@dataclass(frozen=True)
class Overruled:
    """An auditor whose verdict on a slot others did not bear out; `evidence` is the slot's case."""

    slot: int
    look: int
    auditor: str
    evidence: str | None


@dataclass(frozen=True)
class Requeued:
    """A range of positions that waits for another operator than `operator`."""

    range: Range
    operator: str


@dataclass(frozen=True)
class Credit:
    """A member's balance, in tokens."""

    member: str
    earned: int
    vested: int
    forfeited: int


@dataclass(frozen=True)
class RoundClose:
    """The outcome of a turn and the state the run is left in."""

    kind: ClassVar[str] = "round-close"
    protocol: int
    run: str
    round: int
    attempt: int
    void: bool
    accepted: tuple[Accepted, ...]
    rejected: tuple[Rejected, ...]
    missed: tuple[Missed, ...]
    overruled: tuple[Overruled, ...]
    weights: str
    outer: str
    requeued: tuple[Requeued, ...]
    cursor: int
    credits: tuple[Credit, ...]
    quarantined: tuple[str, ...]
    train_loss: int | None
    val_loss: int | None


@dataclass(frozen=True)
class Removed:
    """A contribution that a settlement takes out again, of its own turn or of a later one."""

    round: int
    attempt: int
    slot: int
    member: str
    reason: str
    fault: bool
    evidence: str | None


@dataclass(frozen=True)
class Settlement:
    """The late outcome of a turn's audits, and the state that the run is left in.

    `settled` is the checkpoint after that turn, for good; `weights` and `outer` are of the last closed one.
    """

    kind: ClassVar[str] = "settlement"
    protocol: int
    run: str
    round: int
    attempt: int
    removed: tuple[Removed, ...]
    missed: tuple[Missed, ...]
    overruled: tuple[Overruled, ...]
    settled: Base
    weights: str
    outer: str
    requeued: tuple[Requeued, ...]
    credits: tuple[Credit, ...]
    quarantined: tuple[str, ...]


@dataclass(frozen=True)
class RunClose:
    """The last entry of a run that came to its end."""

    kind: ClassVar[str] = "run-close"
    protocol: int
    run: str
    rounds: int
    weights: str
    outer: str
    tokens: int
