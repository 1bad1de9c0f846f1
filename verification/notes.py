"""Signed notes: the log's checkpoints and its verifier key, as text.

Owns the C2SP signed-note and tlog-checkpoint formats, restricted to one Ed25519 signature and no
extension lines (docs/protocol.md, section 3). Does not own the tree behind a checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from verification.encoding import MAX_INTEGER, parse_base64
from verification.errors import FormatError, SignatureError
from verification.keys import SIGNATURE_BYTES, PrivateKey, check_public_key, public_bytes, verify
from verification.merkle import HASH_BYTES

_ED25519 = b"\x01"
_ID_BYTES = 4
_ORIGIN = re.compile(r"[!-*,-~]{1,128}\Z")
_NOTE = re.compile(r"([^\n]+)\n([0-9]{1,16})\n([^\n]+)\n\n— ([^ \n]+) ([^ \n]+)\n\Z")
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\Z")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: its name, its number of entries and the 32 bytes of its root hash."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        check_origin(self.origin)
        if not 0 <= self.size <= MAX_INTEGER:
            raise FormatError("a checkpoint's size is out of range", expected="0 to 2^53 - 1", got=self.size)
        if len(self.root) != HASH_BYTES:
            raise FormatError("a root hash has the wrong length", expected=HASH_BYTES, got=len(self.root))

    def text(self) -> str:
        """What is signed: origin, decimal size and base64 root, one a line."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def check_origin(origin: str) -> None:
    """Raise FormatError unless `origin` can name a log: 1 to 128 visible ASCII characters without `+`."""
    if not _ORIGIN.match(origin):
        raise FormatError(
            "not a log's origin", expected="1 to 128 visible ASCII characters, no +", got=repr(origin)[:140]
        )


def vkey(origin: str, public_key: str) -> str:
    """The verifier key of a log. Raises FormatError or SignatureError for an unusable part."""
    check_origin(origin)
    check_public_key(public_key)
    typed = base64.b64encode(_ED25519 + public_bytes(public_key)).decode()
    return f"{origin}+{_key_id(origin, public_key).hex()}+{typed}"


def parse_vkey(text: str) -> tuple[str, str]:
    """Origin and public key of a verifier key. Raises FormatError or SignatureError."""
    found = _VKEY.match(text)
    if not found:
        raise FormatError("not a verifier key", expected="ORIGIN+HEX+BASE64", got=repr(text)[:200])
    origin = found[1]
    typed = parse_base64(found[3], 33)
    if typed[:1] != _ED25519:
        raise FormatError("a verifier key is not Ed25519", expected="type 1", got=typed[0])
    public_key = f"ed25519:{typed[1:].hex()}"
    if vkey(origin, public_key) != text:
        raise FormatError("a verifier key's id is not its own", expected=vkey(origin, public_key), got=text)
    return origin, public_key


def sign_checkpoint(checkpoint: Checkpoint, key: PrivateKey) -> str:
    """The signed note of a checkpoint; the same text every time."""
    text = checkpoint.text()
    signature = _key_id(checkpoint.origin, key.public) + key.sign(text.encode())
    return f"{text}\n— {checkpoint.origin} {base64.b64encode(signature).decode()}\n"


def parse_checkpoint(text: str, log_vkey: str) -> Checkpoint:
    """The checkpoint of a note with exactly one signature, by `log_vkey`, which must hold.

    Raises FormatError for any text that `sign_checkpoint` would not write, SignatureError when another
    key or another log signed it.
    """
    origin, public_key = parse_vkey(log_vkey)
    found = _NOTE.match(text)
    if not found:
        raise FormatError(
            "not a signed checkpoint",
            expected="origin, size, root, an empty line, one signature line",
            got=repr(text)[:80],
        )
    checkpoint = Checkpoint(found[1], int(found[2]), parse_base64(found[3], HASH_BYTES))
    if str(checkpoint.size) != found[2]:
        raise FormatError("a checkpoint's size is not canonical", expected=checkpoint.size, got=found[2])
    if checkpoint.origin != origin or found[4] != origin:
        raise SignatureError(
            "a checkpoint is of another log",
            expected=origin,
            got=f"{found[1][:128]} signed by {found[4][:128]}",
        )
    signature = parse_base64(found[5], _ID_BYTES + SIGNATURE_BYTES)
    if signature[:_ID_BYTES] != _key_id(origin, public_key):
        raise SignatureError("a checkpoint is signed by another key", expected=log_vkey)
    verify(public_key, checkpoint.text().encode(), signature[_ID_BYTES:])
    return checkpoint


def _key_id(origin: str, public_key: str) -> bytes:
    return hashlib.sha256(origin.encode() + b"\n" + _ED25519 + public_bytes(public_key)).digest()[:_ID_BYTES]
