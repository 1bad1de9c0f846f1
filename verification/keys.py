"""Ed25519 keys: signing, strict verification, key files.

Owns the text form of keys, which public keys are acceptable (RFC 8032 encodings, no small order), and
the file that holds a private key. Does not own who may sign what.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from verification.durable import read_secret, write_secret
from verification.errors import FormatError, SignatureError, UsageError

SIGNATURE_BYTES = 64
_PREFIX = "ed25519:"
_KEY = re.compile(r"ed25519:[0-9a-f]{64}\Z")
_FILE = re.compile(rb"barnraise-ed25519-v1\n([0-9a-f]{64})\n\Z")
_FILE_BYTES = 21 + 64 + 1

# The curve -x^2 + y^2 = 1 + D x^2 y^2 over the integers modulo P (RFC 8032, section 5.1).
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
# The y coordinate of a point of order 8; 0, 1 and -1 are those of order 4, 1 and 2.
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


class PrivateKey:
    """A signing key. It never shows its secret and cannot be pickled, so it cannot leave by accident."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: str = _PREFIX + key.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """The key of a 32-byte seed (RFC 8032). Raises FormatError for another length."""
        if len(seed) != 32:
            raise FormatError(
                "a key seed has the wrong length", expected="32 bytes", got=f"{len(seed)} bytes"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read a key file. Raises UsageError as `read_secret` does, FormatError for other content."""
        found = _FILE.match(read_secret(path, _FILE_BYTES))
        if not found:
            raise FormatError(f"{path} is not a key file", expected="barnraise-ed25519-v1 and 64 hex digits")
        return cls.from_seed(bytes.fromhex(found[1].decode()))

    def save(self, path: Path) -> None:
        """Create a key file, mode 0600. Raises UsageError when it exists, StorageError on a full disk."""
        seed = self._key.private_bytes_raw().hex()
        write_secret(path, f"barnraise-ed25519-v1\n{seed}\n".encode())

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`; the same bytes every time."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            "a private key cannot be pickled or copied", hint="Pass the path of its file instead."
        )


def verify(key: str, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature by the public key `key`. Raises SignatureError when it does not hold."""
    check_public_key(key)
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(
            "a signature has the wrong length",
            expected=f"{SIGNATURE_BYTES} bytes",
            got=f"{len(signature)} bytes",
        )
    if int.from_bytes(signature[:32], "little") & (2**255 - 1) in _SMALL_ORDER_Y:
        # Libraries disagree on these; a record that some checkers refuse must not get into a log.
        raise SignatureError("a signature's R is of small order")
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes(key)).verify(signature, message)
    except InvalidSignature:
        raise SignatureError("a signature does not hold", expected=f"one by {key}") from None


def check_public_key(key: str) -> None:
    """Raise SignatureError unless `key` is the one text of a curve point that is not of small order.

    With a point of small order, such as the identity, one signature holds for any message.
    """
    if not isinstance(key, str) or not _KEY.match(key):
        raise SignatureError("not a public key", expected="ed25519: and 64 hex digits", got=repr(key)[:90])
    _check_point(key)


def public_bytes(key: str) -> bytes:
    """The 32 bytes behind the text of a key that `check_public_key` accepts."""
    return bytes.fromhex(key.removeprefix(_PREFIX))


@lru_cache(maxsize=4096)
def _check_point(key: str) -> None:
    y = int.from_bytes(public_bytes(key), "little") & (2**255 - 1)
    if y >= _P:
        raise SignatureError("a public key's encoding is not canonical", got=key)
    # x = 0, the one case in which the sign bit has only one canonical value, occurs only for these y.
    if y in _SMALL_ORDER_Y:
        raise SignatureError("a public key is of small order", got=key)
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P)
    if pow(x_squared, (_P - 1) // 2, _P) != 1:
        raise SignatureError("a public key is not a point of the curve", got=key)
