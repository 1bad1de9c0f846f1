"""Log entries: DSSE envelopes around in-toto statements, read strictly (protocol, section 2).

Owns bytes in, envelope out, and both ways to a predicate: C code takes the statements that are as they should
be, with their shape, and everything else goes the strict way, which names what is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from verification.errors import FormatError, SignatureError
from verification.fsck_formats import parse_base64, parse_key, signature_holds
from verification.fsck_json import parse_canonical, write_canonical
from verification.fsck_shapes import RECORDS

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PREDICATE_TYPE = re.compile(r"barnraise:([a-z][a-z-]*):v1")
_ENVELOPE_HEAD = b'{"payload":"'
_ENVELOPE_REST = re.compile(
    rb'","payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[\{"keyid":"(ed25519:[0-9a-f]{64})","sig":"([A-Za-z0-9+/=]*)"\}\]\}'
)
"""With base64 between them the one form of an envelope with a key as its hint; others are read as JSON."""
_STATEMENT_KEYS = frozenset({"_type", "predicate", "predicateType", "subject"})
_STATEMENT_HEAD = f'{{"_type":"{_STATEMENT_TYPE}","predicate":'.encode()
_STATEMENT_TAIL = b',"predicateType":"'
_STATEMENT_REST = re.compile(
    rb',"predicateType":"barnraise:([a-z][a-z-]*):v1",'
    rb'"subject":\[\{"digest":\{"sha256":"([0-9a-f]{64})"\},"name":"run"\}\]\}'
)


@dataclass(slots=True)
class Envelope:
    """A DSSE envelope around an in-toto statement; nothing is said about who signed it.

    `fits` is true where the predicate is known to have the shape of its kind already.
    """

    payload: bytes
    keyid: str
    signature: bytes
    kind: str
    subject: tuple[str, str]
    predicate: Any
    fits: bool = False

    def signed_by(self, key: str) -> bool:
        """Whether the key's holder signed this, and the envelope says so."""
        if self.keyid != key:
            return False
        head = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(self.payload)} "
        try:
            public = parse_key(key)
        except SignatureError:
            return False
        return signature_holds(public, self.signature, head.encode() + self.payload)


def _exactly(value: Any, what: str, *keys: str) -> list[Any]:
    if not isinstance(value, dict) or {*keys} != value.keys():
        raise FormatError(f"{what} has other members", expected=", ".join(sorted(keys)))
    return [value[key] for key in keys]


def _only(value: Any, what: str) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        raise FormatError(f"{what} is not a list of one")
    return value[0]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{what} is not text")
    return value


def _open_envelope(data: bytes) -> tuple[bytes, str, bytes]:
    """Payload, key id and signature."""
    if data.startswith(_ENVELOPE_HEAD):
        start = len(_ENVELOPE_HEAD)
        end = data.find(b'"', start)
        rest = _ENVELOPE_REST.fullmatch(data, max(end, start))
        if rest is not None:
            # What is base64 in its one form holds nothing that JSON would write in another way.
            return parse_base64(data[start:end]), rest[1].decode(), parse_base64(rest[2])
    payload_any, payload_type, signatures = _exactly(
        parse_canonical(data), "the envelope", "payload", "payloadType", "signatures"
    )
    if payload_type != _PAYLOAD_TYPE:
        raise FormatError("the envelope holds another type", expected=_PAYLOAD_TYPE, got=str(payload_type))
    keyid_any, sig_any = _exactly(_only(signatures, "signatures"), "the signature", "keyid", "sig")
    signature = parse_base64(_text(sig_any, "sig"))
    return parse_base64(_text(payload_any, "payload")), _text(keyid_any, "keyid"), signature


_QUICK = {
    kind: (msgspec.json.Decoder(shape.quick).decode, shape.rest)
    for kind, shape in RECORDS.items()
    if shape.quick is not None
}


def _read_quickly(payload: bytes) -> tuple[str, tuple[str, str], Any] | None:
    """Kind, subject and predicate of a statement on a run; None where it is for the strict way to say.

    Head and tail of such a statement have one form, so what lies between is canonical JSON exactly when the
    whole is. A key that is unknown, or given twice, shows when the predicate is written again.
    """
    end = payload.rfind(_STATEMENT_TAIL)
    tail = _STATEMENT_REST.fullmatch(payload, max(end, 0))
    if tail is None or not payload.startswith(_STATEMENT_HEAD):
        return None
    kind, given = tail[1].decode(), payload[len(_STATEMENT_HEAD) : end]
    decode, rest = _QUICK.get(kind, (None, None))
    if decode is None:
        return None
    try:
        predicate = decode(given)
        if write_canonical(predicate) != given:
            return None
        if rest is not None:
            rest(predicate, kind)
    except (FormatError, RecursionError, ValueError):  # msgspec's errors are ValueErrors
        return None
    return kind, ("run", tail[2].decode()), predicate


def parse_envelope(data: bytes) -> Envelope:
    """One log entry as an envelope around a statement of this protocol (section 2)."""
    payload, keyid, signature = _open_envelope(data)
    quick = _read_quickly(payload)
    if quick is not None:
        return Envelope(payload, keyid, signature, *quick, fits=True)
    statement = parse_canonical(payload)
    if not isinstance(statement, dict) or statement.keys() != _STATEMENT_KEYS:
        raise FormatError("the statement has other members", expected=", ".join(sorted(_STATEMENT_KEYS)))
    kind_of, predicate_type, subjects = statement["_type"], statement["predicateType"], statement["subject"]
    if kind_of != _STATEMENT_TYPE:
        raise FormatError("the statement has another type", expected=_STATEMENT_TYPE, got=str(kind_of))
    kind = _PREDICATE_TYPE.fullmatch(_text(predicate_type, "predicateType"))
    if kind is None:
        raise FormatError("unknown predicate type", expected="barnraise:NAME:v1", got=str(predicate_type))
    digest, name = _exactly(_only(subjects, "subject"), "the subject", "digest", "name")
    (subject_hex,) = _exactly(digest, "the subject's digest", "sha256")
    subject = (_text(name, "the subject's name"), _text(subject_hex, "the subject's digest"))
    return Envelope(payload, keyid, signature, kind.group(1), subject, statement["predicate"])
