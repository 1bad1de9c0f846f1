"""Witnesses' keys and cosigned checkpoints (protocol, section 3; C2SP tlog-cosignature).

Owns their bytes. Which witnesses may sign what is `fsck_witness`'s, and outside a folder `fsck_anchor`'s.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from verification.errors import FormatError
from verification.fsck_formats import Checkpoint, parse_base64, parse_checkpoint, parse_key, signature_holds
from verification.fsck_json import MAX_INTEGER

WITNESS_ALGORITHM = 4
_NAME = re.compile(r"[!-*,-~]{1,128}")


@dataclass(frozen=True)
class WitnessKey:
    """Who cosigns (`name`) and with what."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes before every cosignature of this key."""
        return hashlib.sha256(self.name.encode() + b"\n\x04" + self.public).digest()[:4]

    @property
    def key(self) -> str:
        """The key as records write keys."""
        return f"ed25519:{self.public.hex()}"

    def __str__(self) -> str:
        data = base64.b64encode(bytes([WITNESS_ALGORITHM]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{data}"


def parse_witness_key(text: str) -> WitnessKey:
    """A witness's verifier key, in its one form.

    Raises FormatError for another form, SignatureError for a key that section 1 refuses.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise FormatError("not a witness's verifier key", expected="NAME+HEX+BASE64", got=text[:200])
    data = parse_base64(parts[2])
    if len(data) != 33 or data[0] != WITNESS_ALGORITHM:
        raise FormatError("a witness's verifier key is not Ed25519 for cosignatures", got=text[:200])
    key = WitnessKey(parts[0], data[1:])
    parse_key(key.key)
    if str(key) != text:
        raise FormatError("a witness's verifier key has another key id", expected=str(key), got=text[:200])
    return key


@dataclass(frozen=True)
class Cosignature:
    """One cosignature line; nothing is said about whether it holds. `time` is in seconds since 1970."""

    name: str
    key_id: bytes
    time: int
    signature: bytes

    def holds(self, key: WitnessKey, checkpoint: Checkpoint) -> bool:
        """Whether this key's holder cosigned this checkpoint."""
        if (self.name, self.key_id) != (key.name, key.key_id):
            return False
        message = f"cosignature/v1\ntime {self.time}\n{checkpoint.text}"
        return signature_holds(key.public, self.signature, message.encode())


def parse_cosignature(name: str, blob: bytes) -> Cosignature:
    """What follows a witness's name on a signature line, decoded."""
    time = int.from_bytes(blob[4:12], "big")
    if len(blob) != 76 or not 1 <= time <= MAX_INTEGER:
        raise FormatError(
            "not a cosignature", expected="76 bytes, a time from 1 to 2^53 - 1", got=f"{len(blob)} bytes"
        )
    return Cosignature(name, blob[:4], time, blob[12:])


def parse_cosigned(note: str) -> tuple[Checkpoint, tuple[Cosignature, ...]]:
    """A checkpoint in the strict form of section 3 and the cosignature lines after the log's."""
    lines = note.split("\n")
    if lines[-1]:
        raise FormatError("not a checkpoint", expected="origin, size, root, empty line, signatures")
    checkpoint = parse_checkpoint("\n".join([*lines[:5], ""]))
    cosignatures: list[Cosignature] = []
    for line in lines[5:-1]:
        mark, _, rest = line.partition(" ")
        name, _, blob = rest.partition(" ")
        if mark != "—" or not _NAME.fullmatch(name):
            raise FormatError("not a cosignature line", expected="— NAME BASE64", got=line[:80])
        cosignatures.append(parse_cosignature(name, parse_base64(blob)))
    return checkpoint, tuple(cosignatures)
