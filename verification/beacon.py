"""A public randomness beacon of drand's kind: when its pulses come, and whether one is genuine.

Owns the manifest's and the draw's words on it (docs/protocol.md, section 6, "Beacon"). Does not own how a
pulse is got (pipeline.beacon_client), which one a turn waits for, nor the draw. Checking a signature takes
half a second and needs py_ecc, which is imported only then; form and number are checked without it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, Literal

from verification.encoding import MAX_INTEGER
from verification.errors import SignatureError, UsageError
from verification.fields import require

SCHEME: Final = "bls-unchained-g1-rfc9380"
DOMAIN = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
_KEY = re.compile(r"[0-9a-f]{192}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{96}\Z")


@dataclass(frozen=True)
class Beacon:
    """A beacon: pulse n comes at genesis + (n - 1)·period seconds since 1970, signed by the group's key.

    `public_key` is a compressed point of G2 of BLS12-381 in hex, 96 bytes.
    """

    genesis: int
    period: int
    public_key: str
    scheme: Literal["bls-unchained-g1-rfc9380"]

    def __post_init__(self) -> None:
        require(0 <= self.genesis <= MAX_INTEGER, "a beacon's genesis is out of range", self.genesis)
        require(1 <= self.period <= MAX_INTEGER, "a beacon's period is out of range", self.period)
        require(bool(_KEY.match(self.public_key)), "a beacon's key is 192 hex digits", self.public_key[:200])

    def published(self, number: int) -> int:
        """When a pulse comes, in seconds since 1970."""
        return self.genesis + (number - 1) * self.period

    def first_from(self, time: int) -> int:
        """The number of the first pulse published at `time`, in seconds since 1970, or later."""
        return max(1, -((self.genesis - time) // self.period) + 1)


QUICKNET = Beacon(
    1692803367,
    3,
    "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
    "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a",
    SCHEME,
)
"""drand's, of the League of Entropy."""


def described(beacon: Beacon) -> str:
    """Which beacon a manifest names, in words. All three of its numbers count: see docs/threat-model.md."""
    if beacon == QUICKNET:
        return "drand's quicknet"
    return (
        f"one with genesis {beacon.genesis}, period {beacon.period} s and key {beacon.public_key}: compare "
        "all three with what its operators publish"
    )


@dataclass(frozen=True)
class Pulse:
    """One pulse: its number, and its signature, a compressed point of G1 in hex, 48 bytes."""

    round: int
    signature: str

    def __post_init__(self) -> None:
        require(1 <= self.round <= MAX_INTEGER, "a pulse's number is out of range", self.round)
        require(
            bool(_SIGNATURE.match(self.signature)),
            "a pulse's signature is 96 hex digits",
            self.signature[:100],
        )

    @property
    def randomness(self) -> str:
        """SHA-256 of the signature, 64 hex digits."""
        return hashlib.sha256(bytes.fromhex(self.signature)).hexdigest()


def check_key(beacon: Beacon) -> None:
    """Raise SignatureError unless the beacon's key is usable; UsageError without py_ecc."""
    _key_point(_curve(), beacon.public_key)


def check_pulse(beacon: Beacon, pulse: Pulse) -> None:
    """Raise SignatureError unless the pulse is the beacon's.

    Takes most of a second. Raises UsageError without py_ecc.
    """
    curve = _curve()
    key_point = _key_point(curve, beacon.public_key)
    point = _signature_point(curve, pulse.signature)
    message = hashlib.sha256(pulse.round.to_bytes(8, "big")).digest()
    hashed = curve.hash_to_G1(message, DOMAIN, hashlib.sha256)
    # e(H(m), key)·e(-signature, generator) is one: one final exponentiation instead of two.
    product = curve.pairing(key_point, hashed, final_exponentiate=False)
    product *= curve.pairing(curve.G2, curve.neg(point), final_exponentiate=False)
    if curve.final_exponentiate(product) != curve.FQ12.one():
        raise SignatureError(
            f"the signature of pulse {pulse.round} does not hold",
            expected=f"the beacon's {beacon.public_key[:16]}…",
        )


def _key_point(curve: Any, text: str) -> Any:
    numbers = int(text[:96], 16), int(text[96:], 16)
    return _point(curve, "a beacon's key", curve.decompress_G2, curve.compress_G2, numbers)


def _signature_point(curve: Any, text: str) -> Any:
    return _point(curve, "a pulse's signature", curve.decompress_G1, curve.compress_G1, int(text, 16))


def _point(curve: Any, what: str, decompress: Any, compress: Any, given: Any) -> Any:
    """A point of the right subgroup from its one encoding; never the identity."""
    try:
        point = decompress(given)
    except (ValueError, AssertionError, ArithmeticError) as error:
        raise SignatureError(f"{what} is not a point of its curve", got=str(error)[:120]) from None
    if curve.is_inf(point):
        raise SignatureError(f"{what} is the identity")
    if compress(point) != given:
        raise SignatureError(f"{what} is not in its one encoding")
    if not curve.is_inf(curve.multiply(point, curve.curve_order)):
        raise SignatureError(f"{what} is not in the subgroup of prime order")
    return point


def _curve() -> Any:
    """What is used of py_ecc."""
    limit = sys.getrecursionlimit()
    try:
        from py_ecc import optimized_bls12_381 as curve  # noqa: PLC0415 - an extra, and slow to import
        from py_ecc.bls import hash_to_curve, point_compression  # noqa: PLC0415
        from py_ecc.optimized_bls12_381 import optimized_pairing  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "a run with a beacon needs py_ecc to check its pulses",
            got=str(error),
            hint="Install it: pip install 'barnraise[beacon]'.",
        ) from None
    finally:
        # py_ecc raises it to 100,000, at which too deep a recursion is a crash and no longer an error.
        sys.setrecursionlimit(limit)
    return SimpleNamespace(
        **{
            name: getattr(curve, name)
            for name in ("G2", "FQ12", "neg", "pairing", "is_inf", "multiply", "curve_order")
        },
        **{
            f"{what}_{group}": getattr(point_compression, f"{what}_{group}")
            for what in ("compress", "decompress")
            for group in ("G1", "G2")
        },
        hash_to_G1=hash_to_curve.hash_to_G1,
        final_exponentiate=optimized_pairing.final_exponentiate,
    )
