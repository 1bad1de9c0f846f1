"""Envelopes: a predicate in an in-toto Statement v1 inside a DSSE 1.0 envelope, one signature.

Owns section 2 of docs/protocol.md. Does not own what a predicate means or whose signature it needs.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from verification.encoding import Json, canonical_json, parse_base64, parse_canonical
from verification.errors import FormatError, SignatureError
from verification.keys import SIGNATURE_BYTES, PrivateKey, check_public_key, verify

MAX_ENVELOPE_BYTES = 65_535
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = re.compile(r"barnraise:[a-z]+(?:-[a-z]+)*:v1\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_SUBJECTS = ("dataset", "run")


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """An envelope of the right form whose signature nobody has checked yet.

    `keyid` is a hint. `verified` is the way to the predicate; `peek` is for finding the key it needs.
    """

    keyid: str
    predicate_type: str
    subject_name: str
    subject_sha256: str
    _payload: bytes
    _signature: bytes

    def verify(self, key: str) -> None:
        """Raise SignatureError unless this envelope names `key` and its signature is by `key`."""
        if self.keyid != key:
            raise SignatureError("an envelope is signed by another key", expected=key, got=self.keyid)
        verify(key, _pae(self._payload), self._signature)

    def verified(self, key: str) -> Json:
        """The predicate, after `verify(key)`; parsed from the very bytes that were verified."""
        self.verify(key)
        return self.peek()

    def peek(self) -> Json:
        """The predicate, NOT verified: only to find out which key must have signed it."""
        return parse_canonical(self._payload)["predicate"]

    def __repr__(self) -> str:
        return f"Sealed({self.predicate_type}, keyid={self.keyid}, not verified)"


def seal(
    predicate_type: str, predicate: Json, subject_name: str, subject_sha256_hex: str, key: PrivateKey
) -> bytes:
    """The signed envelope's canonical bytes. Raises FormatError when a part or the size is not allowed."""
    payload = canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "predicate": predicate,
            "predicateType": predicate_type,
            "subject": [{"digest": {"sha256": subject_sha256_hex}, "name": subject_name}],
        }
    )
    _check_statement(parse_canonical(payload))
    signature = key.sign(_pae(payload))
    data = canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key.public, "sig": base64.b64encode(signature).decode()}],
        }
    )
    _check_size(data)
    return data


def open_envelope(data: bytes) -> Sealed:
    """Parse an envelope without trusting it. Raises FormatError, or SignatureError for a bad `keyid`."""
    _check_size(data)
    envelope = parse_canonical(data)
    _check_keys(envelope, {"payload", "payloadType", "signatures"}, "an envelope")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise FormatError("wrong payload type", expected=PAYLOAD_TYPE, got=repr(envelope["payloadType"])[:80])
    signature = _only(envelope["signatures"], "signatures")
    _check_keys(signature, {"keyid", "sig"}, "a signature")
    check_public_key(signature["keyid"])
    payload = parse_base64(envelope["payload"])
    statement = parse_canonical(payload)
    _check_statement(statement)
    return Sealed(
        keyid=signature["keyid"],
        predicate_type=statement["predicateType"],
        subject_name=statement["subject"][0]["name"],
        subject_sha256=statement["subject"][0]["digest"]["sha256"],
        _payload=payload,
        _signature=parse_base64(signature["sig"], SIGNATURE_BYTES),
    )


def _pae(payload: bytes) -> bytes:
    """DSSE 1.0 pre-authentication encoding: what is signed."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def _check_statement(statement: Json) -> None:
    _check_keys(statement, {"_type", "predicate", "predicateType", "subject"}, "a statement")
    if statement["_type"] != STATEMENT_TYPE:
        raise FormatError("wrong statement type", expected=STATEMENT_TYPE, got=repr(statement["_type"])[:80])
    kind = statement["predicateType"]
    if not isinstance(kind, str) or not _PREDICATE_TYPE.match(kind):
        raise FormatError("wrong predicate type", expected="barnraise:NAME:v1", got=repr(kind)[:80])
    if not isinstance(statement["predicate"], dict):
        raise FormatError("a predicate is not an object", got=type(statement["predicate"]).__name__)
    subject = _only(statement["subject"], "subjects")
    _check_keys(subject, {"digest", "name"}, "a subject")
    _check_keys(subject["digest"], {"sha256"}, "a subject's digest")
    if subject["name"] not in _SUBJECTS:
        raise FormatError("wrong subject name", expected=_SUBJECTS, got=repr(subject["name"])[:80])
    digest = subject["digest"]["sha256"]
    if not isinstance(digest, str) or not _HEX.match(digest):
        raise FormatError("wrong subject digest", expected="64 hex digits", got=repr(digest)[:80])


def _check_size(data: bytes) -> None:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise FormatError(
            "an envelope is too long",
            expected=f"at most {MAX_ENVELOPE_BYTES} bytes",
            got=f"{len(data)} bytes",
        )


def _check_keys(value: Json, keys: set[str], what: str) -> None:
    if not isinstance(value, dict) or set(value) != keys:
        got = sorted(value)[:8] if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{what} has the wrong keys", expected=sorted(keys), got=got)


def _only(value: Json, what: str) -> Json:
    if not isinstance(value, list) or len(value) != 1:
        raise FormatError(f"an envelope has the wrong number of {what}", expected="a list of exactly one")
    return value[0]
