"""The encodings of the protocol, read strictly: section 1 and the notes of section 3.

Owns bytes in, values out, for files, keys, signatures, hex floats and signed notes; canonical JSON is
`fsck_json`'s, log entries are `fsck_envelope`'s, cosignatures are `fsck_cosign`'s. Written from the protocol
text alone; shares no code with what writes runs, nor its library for signatures. Everything here raises
FormatError (or SignatureError, StorageError) on hostile bytes and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import math
import os
import re
import stat
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from verification.errors import FormatError, SignatureError, StorageError
from verification.fsck_json import MAX_INTEGER, write_canonical

PROTOCOL = 1
MAX_ENTRY = 65_535

_KEY = re.compile(r"ed25519:[0-9a-f]{64}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")
_FIELD = 2**255 - 19
_CURVE_D = -121665 * pow(121666, -1, _FIELD) % _FIELD


# --- files ---


def _chunks(path: str) -> Generator[bytes, None, None]:
    """The bytes of a regular file, piece by piece. Links, pipes and devices are refused, not opened."""
    name = path.rpartition("/")[2]
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{name} cannot be read", expected="a regular file", got=reason) from None
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise StorageError(f"{name} is not a regular file")
        # Room is made for as much as is asked for, and most files are small.
        step = min(state.st_size + 1, 1 << 20)
        while piece := os.read(handle, step):
            yield piece
    except OSError as error:
        raise StorageError(f"{name} cannot be read", got=error.strerror) from None
    finally:
        os.close(handle)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    data = bytearray()
    for piece in _chunks(str(path)):
        data += piece
        if len(data) > limit:
            raise StorageError(f"{path.name} is too long", expected=f"at most {limit} bytes")
    return bytes(data)


def read_beginning(path: Path, length: int) -> bytes:
    """The first `length` bytes of a regular file, or all of a shorter one."""
    data = bytearray()
    with closing(_chunks(str(path))) as pieces:
        for piece in pieces:
            data += piece
            if len(data) >= length:
                break
    return bytes(data[:length])


def digest_file(path: str) -> tuple[str, int]:
    """BLAKE3 digest text and length in bytes of a regular file of any size.

    The path is plain text: a run has a file for each contribution, and a Path costs as much as opening one.
    """
    hasher = blake3.blake3()
    length = 0
    for piece in _chunks(path):
        hasher.update(piece)
        length += len(piece)
    return f"blake3:{hasher.hexdigest()}", length


# --- numbers and bytes as text ---


def parse_hex_float(text: str) -> float:
    """A finite f64 from its C99 hexadecimal text, which must be the one Python prints."""
    try:
        value = float.fromhex(text)
    except (ValueError, OverflowError):
        raise FormatError("not a hex float", got=text[:40]) from None
    if not math.isfinite(value) or value.hex() != text:
        raise FormatError("not the one form of a finite hex float", got=text[:40])
    return value


def parse_decimal(text: str) -> int:
    """A number of log entries: decimal, without leading zeros, at most 2^53 - 1."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_INTEGER:
        raise FormatError("not a decimal number up to 2^53 - 1", got=ascii(text[:40]))
    return int(text)


def parse_base64(text: str | bytes) -> bytes:
    """Bytes from standard base64 that encodes back to the same text."""
    try:
        given = text if isinstance(text, bytes) else text.encode("ascii")
        data = binascii.a2b_base64(given)
    except (binascii.Error, ValueError):
        raise FormatError("not base64", got=ascii(text[:40])) from None
    if binascii.b2a_base64(data, newline=False) != given:
        raise FormatError("not the one base64 form of its bytes", got=ascii(text[:40]))
    return data


# --- keys and signatures ---


def _has_small_order(y: int) -> bool:
    """Whether eight times the point with ordinate `y` is the identity.

    On -x² + y² = 1 + d·x²·y² the ordinate of 2P depends on y alone: x² = (y² - 1)/(d·y² + 1) and
    y(2P) = (y² + x²)/(1 - d·x²·y²). The identity is the only point with y = 1.
    """
    for _ in range(3):
        y2 = y * y % _FIELD
        x2 = (y2 - 1) * pow(_CURVE_D * y2 + 1, _FIELD - 2, _FIELD) % _FIELD
        y = (y2 + x2) * pow(1 - _CURVE_D * x2 * y2, _FIELD - 2, _FIELD) % _FIELD
    return y == 1


@functools.lru_cache(maxsize=4096)
def parse_key(text: str) -> bytes:
    """The 32 bytes of an Ed25519 key text; non-canonical and small-order keys are refused."""
    if not _KEY.fullmatch(text):
        raise SignatureError("not a key", expected="ed25519: and 64 lower-case hex digits", got=text[:80])
    data = bytes.fromhex(text.removeprefix("ed25519:"))
    y = int.from_bytes(data, "little") & (2**255 - 1)
    if y >= _FIELD:
        raise SignatureError("a key's encoding is not canonical", got=text)
    if _has_small_order(y):
        raise SignatureError("a key has small order", got=text)
    return data


def signature_holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature verifies under a key that `parse_key` took.

    libsodium also refuses an R of small order and an S that is not reduced.
    """
    if len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True


def proof_holds(public: bytes, proof: str, domain: str, value: Any) -> bool:
    """Whether `proof` is sign_object(domain, value) by this key (section 1)."""
    try:
        signature = parse_base64(proof)
    except FormatError:
        return False
    return signature_holds(public, signature, domain.encode() + b"\0" + write_canonical(value))


# --- signed notes ---


@dataclass(frozen=True)
class VerifierKey:
    """A signed note's verifier key: who signs (`origin`) and with what."""

    origin: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes before every signature of this key."""
        return hashlib.sha256(self.origin.encode() + b"\n\x01" + self.public).digest()[:4]

    def __str__(self) -> str:
        data = base64.b64encode(b"\x01" + self.public).decode()
        return f"{self.origin}+{self.key_id.hex()}+{data}"


def make_verifier_key(origin: str, public: bytes) -> VerifierKey:
    """The verifier key of an origin; C2SP wants names without spaces and plus signs."""
    if not origin or "+" in origin or any(c.isspace() or not c.isprintable() for c in origin):
        raise FormatError("an origin must be printable, without spaces and plus signs", got=ascii(origin))
    return VerifierKey(origin, public)


@dataclass(frozen=True)
class Checkpoint:
    """A C2SP checkpoint with one signature and no extension lines."""

    origin: str
    size: int
    root: bytes
    key_id: bytes
    signature: bytes

    @property
    def text(self) -> str:
        """The signed text, with its last newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def signed_by(self, key: VerifierKey) -> bool:
        """Whether this key's holder signed this checkpoint of this key's log."""
        mine = self.origin == key.origin and self.key_id == key.key_id
        return mine and signature_holds(key.public, self.signature, self.text.encode())


def parse_checkpoint(note: str) -> Checkpoint:
    """A checkpoint in the strict form of section 3."""
    lines = note.split("\n")
    if len(lines) != 6 or lines[3] or lines[5]:
        raise FormatError("not a checkpoint", expected="origin, size, root, empty line, one signature")
    origin, size, root_text, _, signature_line, _ = lines
    root = parse_base64(root_text)
    prefix = f"— {origin} "
    if not origin or not signature_line.startswith(prefix):
        raise FormatError(
            "a checkpoint's signature is by another name", expected=prefix, got=signature_line[:80]
        )
    blob = parse_base64(signature_line.removeprefix(prefix))
    if len(root) != 32 or len(blob) != 68:
        raise FormatError("a checkpoint's root or signature has the wrong length")
    return Checkpoint(origin, parse_decimal(size), root, blob[:4], blob[4:])
