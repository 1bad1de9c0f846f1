"""Signatures over JSON objects that stand inside records: the proofs of docs/protocol.md.

Owns their domain separation and their text. Does not own which proof a record needs or whose.
"""

from __future__ import annotations

import base64

from verification.encoding import Json, canonical_json, parse_base64
from verification.keys import SIGNATURE_BYTES, PrivateKey, verify


def sign_object(domain: str, value: Json, key: PrivateKey) -> str:
    """The proof of `value` within `domain`, in base64; the same text every time."""
    return base64.b64encode(key.sign(_message(domain, value))).decode()


def verify_object(domain: str, value: Json, proof: str, public_key: str) -> None:
    """Raise SignatureError unless `public_key` signed `value`, FormatError when `proof` is no signature."""
    verify(public_key, _message(domain, value), parse_base64(proof, SIGNATURE_BYTES))


def _message(domain: str, value: Json) -> bytes:
    return domain.encode() + b"\0" + canonical_json(value)
