"""Receipts: what the log says of one member in one round, as a file that can be checked offline.

Owns the C2SP tlog-proof text format and section 12 of docs/protocol.md: what a receipt shows and everything
that must hold. Does not own run folders: whoever makes one hands in the entry and its proof. Of a round-close
it reads the few fields that it shows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verification.encoding import (
    MAX_INTEGER,
    Json,
    canonical_json,
    digest_hex,
    parse_base64,
    parse_canonical,
)
from verification.envelope import MAX_ENVELOPE_BYTES, open_envelope
from verification.errors import FormatError, ProtocolError, UsageError
from verification.merkle import HASH_BYTES, leaf_hash, verify_inclusion
from verification.notes import Checkpoint, note_origin, open_note, parse_vkey
from verification.policy import Policy

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES = 1 << 20
MAX_HASHES = 63
CLOSE = "barnraise:round-close:v1"
_PROTOCOL = 1
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,15})\Z")
_MEMBER = re.compile(r"[a-z0-9._-]{1,64}\Z")
_REASON = re.compile(r"[a-z]+(?:-[a-z]+)*\Z")
_CLOSE_KEYS = frozenset(
    {
        "accepted",
        "attempt",
        "credits",
        "cursor",
        "missed",
        "outer",
        "overruled",
        "protocol",
        "quarantined",
        "rejected",
    }
    | {"requeued", "round", "run", "train_loss", "val_loss", "void", "weights"}
)
_ACCEPTED_KEYS = frozenset({"member", "payload", "slot", "tokens", "weight"})
_REJECTED_KEYS = frozenset({"evidence", "fault", "member", "reason", "slot"})
_CREDIT_KEYS = frozenset({"earned", "forfeited", "member", "vested"})


@dataclass(frozen=True, slots=True)
class Proof:
    """The parts of a tlog-proof. `extra` is empty where the file has none, `note` the checkpoint's text."""

    extra: bytes
    index: int
    hashes: tuple[bytes, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receipt that holds shows of `member`, and who stands behind it.

    `tokens` and `weight` are None unless `accepted`; `reason` is None then, and `fault` false. `earned`,
    `vested` and `forfeited` are tokens after this round. `cosigners` are verifier keys, `times` in seconds
    since 1970.
    """

    member: str
    run: str
    round: int
    attempt: int
    slot: int
    accepted: bool
    tokens: int | None
    weight: int | None
    reason: str | None
    fault: bool
    earned: int
    vested: int
    forfeited: int
    quarantined: bool
    weights: str
    index: int
    checkpoint: Checkpoint
    log_vkey: str
    cosigners: tuple[str, ...]
    times: tuple[int, ...]


def write_proof(extra: bytes, index: int, hashes: Sequence[bytes], note: str) -> str:
    """The text of a tlog-proof; without `extra` its line is left out.

    Raises FormatError when the parts make no proof that `parse_proof` reads.
    """
    lines = [HEADER]
    if extra:
        lines.append(f"extra {base64.b64encode(extra).decode()}")
    lines.append(f"index {index}")
    lines += [base64.b64encode(hashed).decode() for hashed in hashes]
    text = "\n".join([*lines, "", note])
    parse_proof(text)
    return text


def parse_proof(data: str | bytes) -> Proof:
    """The parts of a tlog-proof. Raises FormatError for anything but its one form. Checks no signature."""
    if len(data) > MAX_PROOF_BYTES:
        raise FormatError("a proof is too long", expected=f"at most {MAX_PROOF_BYTES} bytes", got=len(data))
    try:
        text = data.decode() if isinstance(data, bytes) else data.encode().decode()
    except UnicodeError:
        raise FormatError("a proof is not UTF-8") from None
    head, separator, note = text.partition("\n\n")
    lines = head.split("\n")
    if lines.pop(0) != HEADER or not separator:
        raise FormatError(
            "not a tlog-proof", expected=f"{HEADER}, an empty line, a note", got=repr(text)[:80]
        )
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = parse_base64(lines.pop(0).removeprefix("extra "))
        if not extra:
            raise FormatError("a proof's extra line is empty", expected="no line when there is no extra data")
    found = _INDEX.match(lines.pop(0)) if lines else None
    if not found or int(found[1]) > MAX_INTEGER:
        raise FormatError("a proof has no index", expected="index and a decimal number up to 2^53 - 1")
    if len(lines) > MAX_HASHES:
        raise FormatError("a proof has too many hashes", expected=f"at most {MAX_HASHES}", got=len(lines))
    return Proof(extra, int(found[1]), tuple(parse_base64(line, HASH_BYTES) for line in lines), note)


def write_receipt(entry: bytes, member: str, index: int, proof: Sequence[bytes], note: str) -> str:
    """A member's receipt. `entry` is the logged round-close, `proof` its path under the checkpoint `note`.

    Raises FormatError when the parts cannot stand in one; whether it holds is for `check_receipt`.
    """
    extra = canonical_json({"entry": base64.b64encode(entry).decode(), "member": member})
    return write_proof(extra, index, proof, note)


def check_receipt(
    data: str | bytes, log_vkey: str, witness_vkeys: Sequence[str] = (), required: int = 0
) -> Receipt:
    """What a receipt shows, when all of it holds: for who knows the log's key and its witnesses.

    Raises FormatError, SignatureError or ProtocolError: for the form, for a signature of the log or of one
    of `witness_vkeys` that does not hold, for the inclusion proof, for fewer than `required` cosignatures,
    for an entry that is no round-close of the log's signer, or one that the member has no part in.
    """

    def enough(cosigners: tuple[str, ...]) -> bool:
        return len(cosigners) >= required

    return _check(data, (log_vkey,), witness_vkeys, enough, f"{required} of {len(witness_vkeys)} witnesses")


def check_receipt_by_policy(data: str | bytes, policy: Policy, log_vkey: str | None = None) -> Receipt:
    """`check_receipt` for who has a policy. Of its logs one must be the receipt's; without any, `log_vkey`.

    Raises UsageError besides when neither names a log, or when the policy does not list `log_vkey`.
    """
    logs = policy.log_vkeys
    if log_vkey is not None:
        if logs and log_vkey not in logs:
            raise UsageError("the policy lists other logs", expected=" or ".join(logs), got=log_vkey)
        logs = (log_vkey,)
    if not logs:
        raise UsageError(
            "nothing says which log to trust",
            hint="Add a `log VKEY` line to the policy, or give the log's verifier key with --vkey.",
        )
    return _check(
        data, logs, policy.witness_vkeys, policy.satisfied_by, f"the policy's quorum {policy.quorum!a}"
    )


def receipt_origin(data: str | bytes) -> str:
    """Which log a receipt claims to be of, unverified. Raises FormatError."""
    return note_origin(parse_proof(data).note)


def _check(
    data: str | bytes,
    log_vkeys: tuple[str, ...],
    witness_vkeys: Sequence[str],
    enough: Callable[[tuple[str, ...]], bool],
    rule: str,
) -> Receipt:
    proof = parse_proof(data)
    entry, member = _parse_extra(proof.extra)
    note = open_note(proof.note, log_vkeys, witness_vkeys)
    if note.extensions:
        raise FormatError("a log of this protocol has no extension lines", got=repr(note.extensions[0])[:80])
    if not enough(note.cosigners):
        raise ProtocolError(
            "too few known witnesses cosigned a receipt's checkpoint",
            expected=rule,
            got=", ".join(note.cosigners) or "none",
        )
    verify_inclusion(proof.index, note.checkpoint.size, leaf_hash(entry), proof.hashes, note.checkpoint.root)
    close = _open_close(entry, parse_vkey(note.log_vkey)[1])
    credit = _row(close["credits"], member, _CREDIT_KEYS, "credits")
    taken = _row(close["accepted"], member, _ACCEPTED_KEYS, "accepted")
    refused = _row(close["rejected"], member, _REJECTED_KEYS, "rejected")
    settled = [row for row in (taken, refused) if row is not None]
    if len(settled) != 1 or credit is None:
        raise ProtocolError(
            "a receipt's round-close does not settle this member once",
            expected="one row under accepted or rejected, and one under credits",
            got=member,
        )
    return Receipt(
        member=member,
        run=close["run"],
        round=_count(close, "round"),
        attempt=_count(close, "attempt"),
        slot=_count(settled[0], "slot"),
        accepted=taken is not None,
        tokens=_count(taken, "tokens") if taken else None,
        weight=_count(taken, "weight") if taken else None,
        reason=_reason(refused) if refused else None,
        fault=_flag(refused, "fault") if refused else False,
        earned=_count(credit, "earned"),
        vested=_count(credit, "vested"),
        forfeited=_count(credit, "forfeited"),
        quarantined=member in _list(close, "quarantined"),
        weights=_digest(close, "weights"),
        index=proof.index,
        checkpoint=note.checkpoint,
        log_vkey=note.log_vkey,
        cosigners=note.cosigners,
        times=note.times,
    )


def _parse_extra(extra: bytes) -> tuple[bytes, str]:
    """Entry and member of a receipt's extra data, which nothing signs."""
    value = parse_canonical(extra)
    _check_keys(value, frozenset({"entry", "member"}), "a receipt's extra data")
    member = _text(value, "member")
    if not _MEMBER.match(member):
        raise FormatError(
            "a receipt names no member", expected="1 to 64 characters of [a-z0-9._-]", got=repr(member)[:90]
        )
    entry = parse_base64(value["entry"])
    if len(entry) > MAX_ENVELOPE_BYTES:
        raise FormatError("a log entry is too long", expected=f"at most {MAX_ENVELOPE_BYTES}", got=len(entry))
    return entry, member


def _open_close(entry: bytes, coordinator: str) -> dict[str, Json]:
    """The round-close in an entry, signed by the coordinator."""
    sealed = open_envelope(entry)
    if sealed.predicate_type != CLOSE:
        raise ProtocolError("a receipt's entry is no round-close", expected=CLOSE, got=sealed.predicate_type)
    close = sealed.verified(coordinator)
    _check_keys(close, _CLOSE_KEYS, "a round-close")
    if type(close["protocol"]) is not int or close["protocol"] != _PROTOCOL:
        raise FormatError(
            "a receipt is of another protocol version", expected=_PROTOCOL, got=repr(close["protocol"])[:40]
        )
    if sealed.subject_name != "run" or close["run"] != f"sha256:{sealed.subject_sha256}":
        raise ProtocolError(
            "a round-close is about another run than its envelope",
            expected=f"run sha256:{sealed.subject_sha256}",
            got=f"{sealed.subject_name} {close['run']!r}"[:100],
        )
    found: dict[str, Json] = close
    return found


def _row(rows: Json, member: str, keys: frozenset[str], what: str) -> dict[str, Json] | None:
    """The one row about a member, or None. Raises FormatError for rows of another form or two of them."""
    if not isinstance(rows, list):
        raise FormatError(f"{what} of a round-close is no list", got=type(rows).__name__)
    for row in rows:
        _check_keys(row, keys, f"a row of {what}")
    found = [row for row in rows if row["member"] == member]
    if len(found) > 1:
        raise FormatError(f"{what} of a round-close names a member twice", got=member)
    return found[0] if found else None


def _check_keys(value: Json, keys: frozenset[str], what: str) -> None:
    if not isinstance(value, dict) or set(value) != keys:
        got = sorted(value)[:20] if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{what} has the wrong keys", expected=sorted(keys), got=got)


def _count(value: dict[str, Json], key: str) -> int:
    found = value[key]
    if type(found) is not int or found < 0:
        raise FormatError(f"{key} in a round-close is no count", got=repr(found)[:80])
    return found


def _text(value: dict[str, Json], key: str) -> str:
    found = value[key]
    if not isinstance(found, str):
        raise FormatError(f"{key} is no text", got=repr(found)[:80])
    return found


def _reason(value: dict[str, Json]) -> str:
    found = _text(value, "reason")
    if not _REASON.match(found):
        raise FormatError(
            "reason in a round-close is none", expected="words such as late", got=repr(found)[:80]
        )
    return found


def _digest(value: dict[str, Json], key: str) -> str:
    found = _text(value, key)
    digest_hex(found)
    return found


def _flag(value: dict[str, Json], key: str) -> bool:
    found = value[key]
    if not isinstance(found, bool):
        raise FormatError(f"{key} in a round-close is neither true nor false", got=repr(found)[:80])
    return found


def _list(value: dict[str, Json], key: str) -> list[Json]:
    found = value[key]
    if not isinstance(found, list):
        raise FormatError(f"{key} in a round-close is no list", got=type(found).__name__)
    return found
