"""Records in and out of their signed envelopes.

Owns the kinds of predicate, the names of fields on the wire, and that a record is believed only after its
signature and subject were checked. Does not own whose signature a record needs.
"""

from __future__ import annotations

from typing import TypeVar

from verification.encoding import Json, digest_hex, from_json, to_json
from verification.envelope import Sealed, open_envelope, seal
from verification.errors import FormatError
from verification.fields import PROTOCOL, renamed
from verification.keys import PrivateKey
from verification.records import (
    Appeal,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    FirstLooks,
    KeyRevocation,
    KeyRotation,
    Leave,
    Manifest,
    Record,
    Return,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Settlement,
    Verdict,
)

KINDS: dict[str, type[Record]] = {
    f"barnraise:{kind.kind}:v1": kind
    for kind in (
        Manifest,
        Enrol,
        KeyRotation,
        KeyRevocation,
        Leave,
        Return,
        RoundOpen,
        Commitment,
        CommitClose,
        Reveal,
        RevealClose,
        Draw,
        Served,
        FirstLooks,
        SecondDraw,
        Verdict,
        Appeal,
        RoundClose,
        Settlement,
        RunClose,
    )
}
R = TypeVar("R", bound=Record)


def predicate(record: Record) -> Json:
    """A record as the JSON object that is signed."""
    value = to_json(record)
    return value if isinstance(record, Manifest) else renamed(value, "numerics_class", "class")


def parse_predicate(kind: type[R], value: Json) -> R:
    """The record behind a signed JSON object; FormatError when a key, a type or the version is wrong."""
    if not isinstance(value, dict) or value.get("protocol") != PROTOCOL:
        got = value.get("protocol") if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{kind.kind} is of another protocol version", expected=PROTOCOL, got=got)
    return from_json(
        kind, value if kind is Manifest else renamed(value, "class", "numerics_class"), kind.kind
    )


def seal_record(record: Record, key: PrivateKey) -> bytes:
    """The signed envelope of a record, ready for the log."""
    if isinstance(record, Manifest):
        name, subject = "dataset", digest_hex(record.dataset["root"])
    else:
        name, subject = "run", digest_hex(record.run)
    return seal(f"barnraise:{record.kind}:v1", predicate(record), name, subject, key)


def open_record(kind: type[R], data: bytes, key: str) -> R:
    """Verify an envelope with `key` and parse it as `kind`. Raises FormatError or SignatureError."""
    sealed = open_envelope(data)
    return verified_record(kind, sealed, key)


def verified_record(kind: type[R], sealed: Sealed, key: str) -> R:
    """As `open_record`, for an envelope that was opened but not verified yet."""
    if sealed.predicate_type != f"barnraise:{kind.kind}:v1":
        raise FormatError("an envelope holds another record", expected=kind.kind, got=sealed.predicate_type)
    record = parse_predicate(kind, sealed.verified(key))
    if isinstance(record, Manifest):
        want = ("dataset", digest_hex(record.dataset.get("root", "")))
    else:
        want = ("run", digest_hex(record.run))
    if (sealed.subject_name, sealed.subject_sha256) != want:
        raise FormatError(
            "an envelope's subject is wrong", expected=want, got=(sealed.subject_name, sealed.subject_sha256)
        )
    return record
