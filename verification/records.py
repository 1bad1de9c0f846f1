"""The frozen records of a run, one dataclass for each predicate of docs/protocol.md, section 4.

Owns their fields, types and simple ranges. Those that bind keys to names are in identity.py, a beacon's words
in beacon.py, verdicts in verdicts.py, what closes things in closing.py; all are named here too. Does not own
their envelopes (sealing.py), which record may follow which (rounds.py) or how it travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from verification.beacon import Beacon as Beacon  # noqa: PLC0414 - named here too
from verification.beacon import Pulse as Pulse  # noqa: PLC0414 - named here too
from verification.closing import Accepted as Accepted  # noqa: PLC0414 - named here too
from verification.closing import Base as Base  # noqa: PLC0414 - named here too
from verification.closing import Credit as Credit  # noqa: PLC0414 - named here too
from verification.closing import Missed as Missed  # noqa: PLC0414 - named here too
from verification.closing import Overruled as Overruled  # noqa: PLC0414 - named here too
from verification.closing import Range as Range  # noqa: PLC0414 - named here too
from verification.closing import Rejected as Rejected  # noqa: PLC0414 - named here too
from verification.closing import Removed as Removed  # noqa: PLC0414 - named here too
from verification.closing import Requeued as Requeued  # noqa: PLC0414 - named here too
from verification.closing import RoundClose as RoundClose  # noqa: PLC0414 - named here too
from verification.closing import RunClose as RunClose  # noqa: PLC0414 - named here too
from verification.closing import Settlement as Settlement  # noqa: PLC0414 - named here too
from verification.encoding import (
    MAX_INTEGER,
    canonical_json,
    digest_hex,
    hash_object,
    parse_hex_float,
    sha256_digest,
    to_json,
)
from verification.errors import FormatError
from verification.fields import HEX32, renamed, require, require_counts, require_digests
from verification.fields import PROTOCOL as PROTOCOL  # noqa: PLC0414 - named here too
from verification.identity import Enrol as Enrol  # noqa: PLC0414 - named here too
from verification.identity import KeyRevocation as KeyRevocation  # noqa: PLC0414 - named here too
from verification.identity import KeyRotation as KeyRotation  # noqa: PLC0414 - named here too
from verification.identity import Leave as Leave  # noqa: PLC0414 - named here too
from verification.identity import Return as Return  # noqa: PLC0414 - named here too
from verification.tolerance import Deviation as Deviation  # noqa: PLC0414 - named here too
from verification.verdicts import Appeal as Appeal  # noqa: PLC0414 - named here too
from verification.verdicts import Claim as Claim  # noqa: PLC0414 - named here too
from verification.verdicts import FirstLooks as FirstLooks  # noqa: PLC0414 - named here too
from verification.verdicts import SealedLook as SealedLook  # noqa: PLC0414 - named here too
from verification.verdicts import Verdict as Verdict  # noqa: PLC0414 - named here too


@dataclass(frozen=True)
class DrawChain:
    """The end and the length of a hash chain: the coordinator's, or a witness's."""

    end: str
    length: int

    def __post_init__(self) -> None:
        require_digests("sha256", self.end)


@dataclass(frozen=True)
class Witness:
    """A witness of the run: its verifier key, and its hash chain, which `proof` binds to this log."""

    chain: DrawChain
    proof: str
    vkey: str


@dataclass(frozen=True)
class Witnessing:
    """Who watches the log, and how many of them must cosign the head of a draw."""

    required: int
    witnesses: tuple[Witness, ...]


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
    witnessing: Witnessing
    codec: str
    aggregation: Literal["median-clip-weighted-mean-v1"]
    config: dict  # type: ignore[type-arg]  # raw JSON of the resolved configuration
    beacon: Beacon | None = None

    def __post_init__(self) -> None:
        digest_hex(self.zero_state)

    @property
    def witness_vkeys(self) -> tuple[str, ...]:
        """The witnesses' verifier keys, in their order."""
        return tuple(witness.vkey for witness in self.witnessing.witnesses)

    @property
    def run_id(self) -> str:
        """`sha256:` of manifest.json."""
        return sha256_digest(canonical_json(to_json(self)))


@dataclass(frozen=True)
class RosterEntry:
    """One contributor's assignment in a turn. `positions` are ranges of the data order.

    `micro_batch` windows go through the model at once; the numerics class and it decide the bits.
    """

    slot: int
    member: str
    key: str
    operator: str
    numerics_class: str
    micro_batch: int
    steps: int
    positions: tuple[Range, ...]
    start_state: str
    audit_ppm: int
    audit_segments: int


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
    witnesses: tuple[str, ...]

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
        require_digests("sha256", self.commitment)


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
        require_digests("blake3", *states, self.payload, self.base.weights, self.base.outer)
        require_digests("sha256", self.trace_root)
        require_counts(self.tokens, self.trace_leaves, self.loss_first, self.loss_last)
        for start, stop in self.positions:
            require(0 <= start < stop, "a range is empty or reversed", (start, stop))


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
        require(bool(HEX32.match(self.salt)), "a salt is 64 hex digits", self.salt)

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
    """Who revealed; `head` is checkpoint 1, `pulse` the number of the pulse that the draw waits for."""

    kind: ClassVar[str] = "reveal-close"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    revealed: tuple[int, ...]
    refused: tuple[Refusal, ...]
    pulse: int | None = None

    def __post_init__(self) -> None:
        if self.pulse is not None:
            require(1 <= self.pulse <= MAX_INTEGER, "a pulse's number is out of range", self.pulse)


@dataclass(frozen=True)
class SlotAuditors:
    """The auditors that may judge a slot, in the order in which they are asked."""

    slot: int
    auditors: tuple[str, ...]


@dataclass(frozen=True)
class DrawnSlot:
    """A drawn slot: its segments to look into, ascending, and its auditors in the order they are asked."""

    slot: int
    auditors: tuple[str, ...]
    segments: tuple[int, ...]


@dataclass(frozen=True)
class WitnessLink:
    """A witness's link for a draw, with its proof that it is for this head; null for both when none came."""

    link: str | None
    proof: str | None
    witness: str


@dataclass(frozen=True)
class Draw:
    """The audit lottery; `head` is checkpoint 2, with its cosignatures, `beacon` the pulse that came."""

    kind: ClassVar[str] = "draw"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    link: str
    links: tuple[WitnessLink, ...]
    seed: str
    drawn: tuple[DrawnSlot, ...]
    beacon: Pulse | None = None


@dataclass(frozen=True)
class Served:
    """Who served what the draw asked for: the start state, and a trace opened where segments are drawn."""

    kind: ClassVar[str] = "served"
    protocol: int
    run: str
    round: int
    attempt: int
    served: tuple[int, ...]
    unserved: tuple[int, ...]


@dataclass(frozen=True)
class SecondDraw:
    """Which verdicts get a second look; `head` is checkpoint 3, with its cosignatures."""

    kind: ClassVar[str] = "second-draw"
    protocol: int
    run: str
    round: int
    attempt: int
    head: str
    link: str
    links: tuple[WitnessLink, ...]
    seed: str
    looks: tuple[SlotAuditors, ...]


Record = (
    Manifest
    | Enrol
    | KeyRotation
    | KeyRevocation
    | Leave
    | Return
    | RoundOpen
    | Commitment
    | CommitClose
    | Reveal
    | RevealClose
    | Draw
    | Served
    | FirstLooks
    | SecondDraw
    | Verdict
    | Appeal
    | RoundClose
    | Settlement
    | RunClose
)
