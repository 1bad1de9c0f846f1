"""The records of audits: a verdict, how it is sealed until the second looks are over, and an appeal.

Owns their fields, types and simple ranges; records.py names them too. Does not own what follows from verdicts
(judge.py, disputes.py) or who gives them (lottery.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from verification.encoding import hash_object, to_json
from verification.fields import HEX32, renamed, require, require_counts, require_digests
from verification.tolerance import Deviation

Claim = Literal["trace", "payload", "next_state", "loss", "deviation"]


@dataclass(frozen=True)
class Verdict:
    """What an auditor computed from the same start, and where it differs from the opening.

    `trace` has a digest where the draw looked into the trace, and elsewhere a leaf hash as it was served.
    `loss_first` is None unless the first segment was drawn. `deviations`, one for each drawn segment, are
    there only where the slot rests on tolerance. Looks after the second are at what is contested.
    """

    kind: ClassVar[str] = "verdict"
    protocol: int
    run: str
    round: int
    attempt: int
    slot: int
    look: int
    auditor: str
    key: str
    outcome: Literal["pass", "fail"]
    differs: tuple[Claim, ...]
    payload: str
    next_state: str
    trace: tuple[str, ...]
    loss_first: int | None
    loss_last: int
    deviations: tuple[Deviation, ...]
    numerics_class: str

    def __post_init__(self) -> None:
        require_digests("blake3", self.payload, self.next_state)
        require_digests("sha256", *(leaf for leaf in self.trace if not HEX32.match(leaf)))
        require_counts(self.loss_first or 0, self.loss_last)
        require(self.look >= 1, "looks are counted from 1", self.look)

    @property
    def digest(self) -> str:
        """What `first-looks` and appeals name it by."""
        return hash_object("barnraise/sealed-verdict/v1", renamed(to_json(self), "numerics_class", "class"))


@dataclass(frozen=True)
class SealedLook:
    """A first verdict as it is known before the second ones are given; `verdict` is its digest."""

    slot: int
    auditor: str
    outcome: Literal["pass", "fail"]
    verdict: str

    def __post_init__(self) -> None:
        require_digests("sha256", self.verdict)


@dataclass(frozen=True)
class FirstLooks:
    """Who gave a first verdict and how it came out; the verdicts themselves follow the second draw."""

    kind: ClassVar[str] = "first-looks"
    protocol: int
    run: str
    round: int
    attempt: int
    looks: tuple[SealedLook, ...]


@dataclass(frozen=True)
class Appeal:
    """A contributor stands by work that two auditors failed alike; `verdicts` are the digests of theirs."""

    kind: ClassVar[str] = "appeal"
    protocol: int
    run: str
    round: int
    attempt: int
    slot: int
    member: str
    key: str
    verdicts: tuple[str, str]

    def __post_init__(self) -> None:
        require_digests("sha256", *self.verdicts)
