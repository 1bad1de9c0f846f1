"""The frozen records of a run, one dataclass for each predicate of docs/protocol.md, section 4.

Owns their fields, types and simple ranges. Does not own their envelopes (sealing.py), which record may
follow which (rounds.py) or how it travels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from verification.encoding import (
    Json,
    canonical_json,
    digest_hex,
    hash_object,
    parse_hex_float,
    sha256_digest,
    to_json,
)
from verification.errors import FormatError

PROTOCOL = 1
NAME = re.compile(r"[a-z0-9._-]{1,64}\Z")
CLASS = re.compile(r"[\x20-\x7e]{1,200}\Z")
HEX32 = re.compile(r"[0-9a-f]{64}\Z")

Range = tuple[int, int]
Claim = Literal["trace", "payload", "next_state", "loss"]


def _require(condition: bool, what: str, got: object) -> None:
    if not condition:
        raise FormatError(what, got=got)


def _digests(kind: Literal["sha256", "blake3"], *texts: str) -> None:
    # What members say must be of the very form that any checker asks for: a record that is in the log
    # cannot be taken back, and one that is malformed there spoils the run for everybody.
    for text in texts:
        digest_hex(text)
        if not text.startswith(f"{kind}:"):
            raise FormatError("a digest is of the wrong kind", expected=f"{kind}:", got=text)


def _counts(*numbers: int) -> None:
    for number in numbers:
        _require(number >= 0, "a number is negative", number)


def renamed(value: Json, old: str, new: str) -> Json:
    """`class` is a keyword of Python: the field is called numerics_class here and `class` on the wire."""
    if isinstance(value, dict):
        if new in value:
            raise FormatError("a record has an unknown key", expected=old, got=new)
        return {new if k == old else k: renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [renamed(item, old, new) for item in value]
    return value


@dataclass(frozen=True)
class Base:
    """Array digests of a checkpoint: the weights and the outer optimizer's state."""

    weights: str
    outer: str

    def __post_init__(self) -> None:
        digest_hex(self.weights)
        digest_hex(self.outer)


@dataclass(frozen=True)
class DrawChain:
    """The end and the length of the coordinator's hash chain."""

    end: str
    length: int


@dataclass(frozen=True)
class Manifest:
    """Entry 0: what the run is bound to. Its canonical JSON is manifest.json, its SHA-256 the run id."""

    kind: ClassVar[str] = "manifest"
    protocol: int
    name: str
    origin: str
    log_vkey: str
    coordinator: str
    draw_chain: DrawChain
    versions: Mapping[str, str]
    source: str
    dataset: dict  # type: ignore[type-arg]  # raw JSON, owned by data_prep.manifest
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    initial: Base
    zero_state: str
    objective: Literal["next-token-v1"]
    codec: str
    aggregation: Literal["median-clip-weighted-mean-v1"]
    config: dict  # type: ignore[type-arg]  # raw JSON of the resolved configuration

    def __post_init__(self) -> None:
        digest_hex(self.draw_chain.end)
        digest_hex(self.zero_state)

    @property
    def run_id(self) -> str:
        """`sha256:` of manifest.json."""
        return sha256_digest(canonical_json(to_json(self)))


@dataclass(frozen=True)
class Enrol:
    """A member's own statement that it takes part; signing it proves that it holds the key."""

    kind: ClassVar[str] = "enrol"
    protocol: int
    run: str
    member: str
    role: Literal["contributor", "auditor"]
    operator: str
    key: str
    numerics_class: str

    def __post_init__(self) -> None:
        _require(bool(NAME.match(self.member)), "a member's name must be 1 to 64 of [a-z0-9._-]", self.member)
        _require(bool(NAME.match(self.operator)), "an operator must be 1 to 64 of [a-z0-9._-]", self.operator)
        _require(
            bool(CLASS.match(self.numerics_class)),
            "a numerics class must be 1 to 200 printable ASCII characters",
            self.numerics_class[:80],
        )


@dataclass(frozen=True)
class RosterEntry:
    """One contributor's assignment in a turn. `positions` are ranges of the data order."""

    slot: int
    member: str
    key: str
    operator: str
    numerics_class: str
    steps: int
    positions: tuple[Range, ...]
    start_state: str
    audit_ppm: int


@dataclass(frozen=True)
class AuditorEntry:
    """One auditor that may be drawn in a turn."""

    member: str
    key: str
    operator: str
    numerics_class: str


@dataclass(frozen=True)
class RoundOpen:
    """Fixes everything about a turn before anyone starts to work."""

    kind: ClassVar[str] = "round-open"
    protocol: int
    run: str
    round: int
    attempt: int
    turn: int
    base: Base
    roster: tuple[RosterEntry, ...]
    auditors: tuple[AuditorEntry, ...]
    inner_lr: tuple[str, ...]
    outer_lr: str
    deadline_ms: int
    snapshot: bool

    def __post_init__(self) -> None:
        for text in (*self.inner_lr, self.outer_lr):
            parse_hex_float(text)

    def entry(self, slot: int) -> RosterEntry:
        """The roster entry of `slot`; FormatError when the slot is not in this turn."""
        for entry in self.roster:
            if entry.slot == slot:
                return entry
        raise FormatError("a slot is not in the roster", expected=[e.slot for e in self.roster], got=slot)


@dataclass(frozen=True)
class Commitment:
    """An opaque salted hash of everything a contributor claims."""

    kind: ClassVar[str] = "commitment"
    protocol: int
    run: str
    round: int
    attempt: int
    slot: int
    member: str
    key: str
    commitment: str

    def __post_init__(self) -> None:
        _digests("sha256", self.commitment)


@dataclass(frozen=True)
class CommitClose:
    """Who committed in time; `ms` is the coordinator's own timing, per committed slot."""

    kind: ClassVar[str] = "commit-close"
    protocol: int
    run: str
    round: int
    attempt: int
    committed: tuple[int, ...]
    late: tuple[int, ...]
    ms: tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """What a commitment hides until the reveal. Losses in micronats, tokens are predicted positions."""

    base: Base
    positions: tuple[Range, ...]
    numerics_class: str
    tokens: int
    start_state: str
    next_state: str
    payload: str
    trace_root: str
    trace_leaves: int
    loss_first: int
    loss_last: int

    def __post_init__(self) -> None:
        states = (self.start_state, self.next_state)
        _digests("blake3", *states, self.payload, self.base.weights, self.base.outer)
        _digests("sha256", self.trace_root)
        _counts(self.tokens, self.trace_leaves, self.loss_first, self.loss_last)
        for start, stop in self.positions:
            _require(0 <= start < stop, "a range is empty or reversed", (start, stop))


@dataclass(frozen=True)
class Reveal:
    """Salt and opening; the payload bytes travel beside it."""

    kind: ClassVar[str] = "reveal"
    protocol: int
    run: str
    round: int
    attempt: int
    slot: int
    member: str
    key: str
    salt: str
    opening: Opening

    def __post_init__(self) -> None:
        _require(bool(HEX32.match(self.salt)), "a salt is 64 hex digits", self.salt)

    @property
    def commitment(self) -> str:
        """The commitment that this reveal opens."""
        hashed = {
            "attempt": self.attempt,
            "key": self.key,
            "opening": renamed(to_json(self.opening), "numerics_class", "class"),
            "round": self.round,
            "run": self.run,
            "salt": self.salt,
            "slot": self.slot,
        }
        return hash_object("barnraise/commitment/v1", hashed)


@dataclass(frozen=True)
class Refusal:
    """A committed slot whose reveal is not valid."""

    slot: int
    reason: Literal["unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved"]


@dataclass(frozen=True)
class RevealClose:
    """Who revealed; `head` is checkpoint 1."""

    kind: ClassVar[str] = "reveal-close"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    revealed: tuple[int, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class SlotAuditors:
    """The auditors that may judge a slot, in the order in which they are asked."""

    slot: int
    auditors: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """The audit lottery; `head` is checkpoint 2."""

    kind: ClassVar[str] = "draw"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    link: str
    seed: str
    drawn: tuple[SlotAuditors, ...]


@dataclass(frozen=True)
class Served:
    """Who served the start state that the draw asked for."""

    kind: ClassVar[str] = "served"
    protocol: int
    run: str
    round: int
    attempt: int
    served: tuple[int, ...]
    unserved: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """What an auditor computed from the same start, and where it differs from the opening."""

    kind: ClassVar[str] = "verdict"
    protocol: int
    run: str
    round: int
    attempt: int
    slot: int
    look: Literal[1, 2]
    auditor: str
    key: str
    outcome: Literal["pass", "fail"]
    differs: tuple[Claim, ...]
    payload: str
    next_state: str
    trace: tuple[str, ...]
    loss_first: int
    loss_last: int
    numerics_class: str

    def __post_init__(self) -> None:
        _digests("blake3", self.payload, self.next_state)
        _digests("sha256", *self.trace)
        _counts(self.loss_first, self.loss_last)


@dataclass(frozen=True)
class SecondDraw:
    """Which verdicts get a second look; `head` is checkpoint 3."""

    kind: ClassVar[str] = "second-draw"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    link: str
    seed: str
    looks: tuple[SlotAuditors, ...]


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
    look: Literal[1, 2]
    auditor: str


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
    weights: str
    outer: str
    requeued: tuple[Requeued, ...]
    cursor: int
    credits: tuple[Credit, ...]
    quarantined: tuple[str, ...]
    train_loss: int | None
    val_loss: int | None


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


Record = (
    Manifest
    | Enrol
    | RoundOpen
    | Commitment
    | CommitClose
    | Reveal
    | RevealClose
    | Draw
    | Served
    | Verdict
    | SecondDraw
    | RoundClose
    | RunClose
)
