"""Checks on what members send, before any of it reaches the log.

Owns the acceptance of enrolments, commitments, reveals and verdicts against the turn in progress. Does not
own what the state becomes afterwards (rounds.py). Whatever bytes come in, only the error family goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verification.encoding import Json, blake3_digest, parse_canonical
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.identity import IdentityChange
from verification.judge import verdict_is_sound
from verification.records import (
    Appeal,
    Commitment,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Leave,
    Refusal,
    Return,
    Reveal,
    RosterEntry,
    RoundOpen,
    Verdict,
)
from verification.sealing import open_record, verified_record
from verification.segments import segment_count
from verification.state import RunState, Turn
from verification.tolerance import ServedStep, Sketch, check_sketch

MOST_TOLD_BYTES = 128  # of the sketch of one step, as JSON


def as_bytes(value: object) -> bytes:
    """A copy of what a member sent, when it is bytes at all; FormatError for any other type.

    What is hashed must be what is used, so it is copied once out of whatever memory the transport gave us.
    """
    if type(value) not in (bytes, bytearray, memoryview):
        raise FormatError("a member sent something that is not bytes", got=type(value).__name__)
    try:
        return bytes(value)  # type: ignore[call-overload, no-any-return]
    except ValueError as error:  # a memoryview that was released
        raise FormatError("a member sent bytes that cannot be read", got=str(error)) from None


def check_enrolment(state: RunState, data: bytes) -> Enrol:
    """A member's enrolment, signed by the very key it names (proof of possession)."""
    sealed = open_envelope(as_bytes(data))
    record = verified_record(Enrol, sealed, sealed.keyid)
    if record.key != sealed.keyid:
        raise SignatureError("an enrolment names another key than it is signed with", got=record.member)
    if record.run != state.run:
        raise ProtocolError("an enrolment is for another run", expected=state.run, got=record.run)
    return record


def check_identity_change(state: RunState, member: str, data: bytes) -> IdentityChange | None:
    """A member's own change, signed with its present key; None for a rotation that the log has already.

    Whether it may come now is for the state machine.
    """
    sealed, key = open_envelope(as_bytes(data)), state.member(member).key
    if sealed.peek().get("new_key") == key:
        return None
    kinds: dict[str, type[IdentityChange]] = {
        f"barnraise:{kind.kind}:v1": kind for kind in (KeyRotation, KeyRevocation, Leave, Return)
    }
    if sealed.predicate_type not in kinds:
        raise FormatError("not a change of identity", expected=sorted(kinds), got=sealed.predicate_type)
    record = verified_record(kinds[sealed.predicate_type], sealed, key)
    if record.member != member or (isinstance(record, KeyRevocation | Leave) and record.by != "member"):
        raise ProtocolError(
            "a change of identity is not the member's own", expected=member, got=record.member
        )
    return record


def check_commitment(open_: RoundOpen, slot: int, data: bytes) -> Commitment:
    """A commitment of the roster entry `slot` for this very turn."""
    entry = open_.entry(slot)
    record = open_record(Commitment, as_bytes(data), entry.key)
    _same_turn(open_, entry, record)
    return record


def check_reveal(turn: Turn, slot: int, data: bytes) -> Reveal:
    """A reveal that opens the logged commitment and claims what the open fixed."""
    open_, entry = turn.open, turn.open.entry(slot)
    record = open_record(Reveal, as_bytes(data), entry.key)
    _same_turn(open_, entry, record)
    if record.commitment != turn.commitments[slot].commitment:
        raise ProtocolError(
            "a reveal does not open its commitment", expected=turn.commitments[slot].commitment
        )
    for name, fixed in _fixed(open_, entry).items():
        if getattr(record.opening, name) != fixed:
            raise ProtocolError(
                f"a reveal claims another {name} than the open fixed",
                expected=fixed,
                got=getattr(record.opening, name),
            )
    return record


def _fixed(open_: RoundOpen, entry: RosterEntry) -> dict[str, object]:
    return {
        "base": open_.base,
        "positions": entry.positions,
        "numerics_class": entry.numerics_class,
        "start_state": entry.start_state,
    }


def _same_turn(open_: RoundOpen, entry: RosterEntry, record: Commitment | Reveal | Appeal) -> None:
    expected = (open_.run, open_.round, open_.attempt, entry.slot, entry.member, entry.key)
    got = (record.run, record.round, record.attempt, record.slot, record.member, record.key)
    if expected != got:
        raise ProtocolError(f"a {record.kind} belongs elsewhere", expected=expected, got=got)


@dataclass(frozen=True)
class RevealAnswer:
    """What a contributor sent at the reveal; `snapshot` only when one was due."""

    envelope: bytes
    payload: bytes
    snapshot: bytes | None


def judge_reveal(
    state: RunState,
    slot: int,
    answer: RevealAnswer | None,
    *,
    payload_bytes: int,
    decode: Callable[[bytes], object],
) -> tuple[Reveal | None, Refusal | None]:
    """(the reveal to log, if its envelope is genuine; the first reason to refuse it, if any).

    `payload_bytes` is the length every payload has; `decode` raises FormatError for bad ones.
    """
    turn = state.open_turn
    if answer is None:
        return None, Refusal(slot, "unrevealed")
    try:
        reveal = check_reveal(turn, slot, answer.envelope)
    except BarnraiseError:
        return _genuine(turn, slot, answer.envelope), Refusal(slot, "opening-mismatch")
    opening = reveal.opening
    if (opening.tokens, opening.trace_leaves) != _sizes(state, turn.open.entry(slot)):
        return reveal, Refusal(slot, "opening-mismatch")
    # The length goes first: nobody hashes or keeps what has no right to be that long.
    if len(answer.payload) != payload_bytes or blake3_digest(answer.payload) != opening.payload:
        return reveal, Refusal(slot, "unrevealed")
    if not _decodes(answer.payload, decode):
        return reveal, Refusal(slot, "malformed-payload")
    if opening.payload in state.used:
        return reveal, Refusal(slot, "duplicate-payload")
    if snapshot_due(state, slot) and (
        answer.snapshot is None or blake3_digest(answer.snapshot) != opening.start_state
    ):
        return reveal, Refusal(slot, "unserved")
    return reveal, None


def tokens_of(state: RunState, entry: RosterEntry) -> int:
    """Predicted positions of an assignment."""
    return int(entry.steps * state.config["train"]["batch"] * state.manifest.dataset["context"])


def _sizes(state: RunState, entry: RosterEntry) -> tuple[int, int]:
    """What an opening must say of its length: predicted positions, and leaves of the trace."""
    return tokens_of(state, entry), segment_count(entry.steps, state.config["train"]["trace_every"]) + 1


def snapshot_due(state: RunState, slot: int) -> bool:
    """Whether a contributor must hand in its start state with this turn's reveal."""
    open_ = state.open_turn.open
    return open_.snapshot and open_.entry(slot).start_state != state.manifest.zero_state


def _genuine(turn: Turn, slot: int, envelope: bytes) -> Reveal | None:
    """A reveal that is wrong but signed by its key: it is logged, so that anyone sees what was wrong."""
    entry = turn.open.entry(slot)
    try:
        record = open_record(Reveal, as_bytes(envelope), entry.key)
        _same_turn(turn.open, entry, record)
    except BarnraiseError:
        return None
    return record


def _decodes(payload: bytes, decode: Callable[[bytes], object]) -> bool:
    try:
        decode(payload)
    except FormatError:
        return False
    return True


def check_appeal(turn: Turn, slot: int, data: bytes) -> Appeal:
    """An appeal of the roster entry `slot` against the two verdicts of this turn that failed it."""
    entry = turn.open.entry(slot)
    record = open_record(Appeal, as_bytes(data), entry.key)
    _same_turn(turn.open, entry, record)
    against = tuple(turn.verdicts[slot, look].digest for look in (1, 2))
    if record.verdicts != against:
        raise ProtocolError("an appeal is against other verdicts", expected=against, got=record.verdicts)
    return record


def check_told(data: bytes, count: int) -> list[Sketch]:
    """What an auditor told of `count` steps before it was served where they end."""
    told = parse_canonical(as_bytes(data), max_bytes=MOST_TOLD_BYTES * (count + 1))
    if not isinstance(told, list) or len(told) != count:
        raise FormatError("an auditor told sketches of other steps than it was asked for", expected=count)
    return [_sketch(numbers) for numbers in told]


def _sketch(numbers: Json) -> Sketch:
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise FormatError("a sketch is no list of integers", got=repr(numbers)[:80])
    check_sketch(tuple(numbers))
    return tuple(numbers)


def check_sketches(
    turn: Turn, verdict: Verdict, told: Sequence[Sketch], served: Sequence[ServedStep]
) -> None:
    """A verdict by tolerance states the sketches that were told before, and they are of what it passes.

    `served` are those of the steps as the contributor served them. All are by segment.
    """
    stated = [deviation.sketch for deviation in verdict.deviations]
    if stated != list(told):
        what = "a verdict states other sketches than were told before the steps' ends were served"
        raise ProtocolError(what, expected=list(told), got=stated)
    if turn.audit_of(verdict.slot).is_hollow(verdict, served):
        what = "a verdict passes steps whose gradients its auditor has not seen"
        raise ProtocolError(what, expected=[step.sketch for step in served], got=stated)


def check_verdict(turn: Turn, slot: int, look: int, auditor: str, data: bytes) -> Verdict:
    """A verdict by the auditor that was asked, whose outcome follows from the values it states."""
    judge = next((entry for entry in turn.open.auditors if entry.member == auditor), None)
    if judge is None:
        raise ProtocolError("a verdict comes from nobody who may judge", got=auditor)
    record = open_record(Verdict, as_bytes(data), judge.key)
    expected = (turn.open.run, turn.open.round, turn.open.attempt, slot, look, auditor, judge.key)
    got = (
        record.run,
        record.round,
        record.attempt,
        record.slot,
        record.look,
        record.auditor,
        record.key,
    )
    if expected != got:
        raise ProtocolError("a verdict belongs elsewhere", expected=expected, got=got)
    if record.numerics_class != judge.numerics_class:
        raise ProtocolError("a verdict was computed in another numerics class", got=record.numerics_class)
    if not verdict_is_sound(record, turn.reveals[slot], turn.audit_of(slot)):
        raise ProtocolError("a verdict's outcome does not follow from its values", got=record.differs)
    return record
