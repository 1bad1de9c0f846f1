"""A public randomness beacon at level 1: its key, its pulses, and when they make a draw short (section 6).

Owns BLS12-381: keys in G2, signatures in G1, both compressed. Only runs that name a beacon need the library
for it, so it is imported where it is used. Where a pulse stands in a log is for `fsck_turn` and `fsck_audit`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from verification.errors import FormatError, SignatureError, UsageError
from verification.fsck_findings import Record, Report
from verification.fsck_json import MAX_INTEGER

BEACON_SCHEME = "bls-unchained-g1-rfc9380"
_DOMAIN = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"


class _Bls(NamedTuple):
    """What is used of py_ecc."""

    curve: Any
    points: Any
    hash_to_g1: Any


def _bls() -> _Bls:
    """Raises UsageError where py_ecc is not installed: a pulse is never taken without a look at it."""
    limit = sys.getrecursionlimit()
    try:
        from py_ecc import optimized_bls12_381  # noqa: PLC0415 - only runs with a beacon need it
        from py_ecc.bls import hash_to_curve, point_compression  # noqa: PLC0415
    except ImportError:
        raise UsageError(
            "this run names a public beacon, and what checks its signatures is not installed",
            expected="the package py_ecc",
            got="none",
            hint='Install it with: pip install "barnraise[beacon]"',
        ) from None
    finally:
        # py_ecc raises it a hundredfold as it is imported; then what nests too deep ends the interpreter.
        sys.setrecursionlimit(limit)
    return _Bls(optimized_bls12_381, point_compression, hash_to_curve.hash_to_G1)


def _is_of_the_group(bls: _Bls, point: Any) -> bool:
    """Whether a point of the curve is in the subgroup of prime order, and not the identity."""
    return not bls.curve.is_inf(point) and bls.curve.is_inf(bls.curve.multiply(point, bls.curve.curve_order))


@functools.lru_cache(maxsize=16)
def parse_beacon_key(text: str) -> Any:
    """The point of G2 of 192 lower-case hex digits, which are its one compressed form.

    Raises FormatError for other bytes, SignatureError for the identity or a point outside the subgroup,
    UsageError without py_ecc.
    """
    bls = _bls()
    halves = int(text[:96], 16), int(text[96:], 16)
    try:
        point = bls.points.decompress_G2(halves)
    except ValueError:
        raise FormatError(
            "a beacon's key is no point", expected="a compressed point of G2", got=text
        ) from None
    if not _is_of_the_group(bls, point):
        raise SignatureError("a beacon's key is not of the group of prime order", got=text)
    return point


@functools.lru_cache(maxsize=256)
def pulse_holds(key: str, number: int, signature: str) -> bool:
    """Whether `signature`, 96 lower-case hex digits, is the beacon's on pulse `number` (1 to 2^53 - 1).

    `key` is one that `parse_beacon_key` takes. A BLS signature of the kind with short signatures
    (draft-irtf-cfrg-bls-signature), without a chain to the pulse before. Takes most of a second.
    """
    bls, public = _bls(), parse_beacon_key(key)
    try:
        point = bls.points.decompress_G1(int(signature, 16))
    except ValueError:
        return False
    if not _is_of_the_group(bls, point):
        return False
    message = hashlib.sha256(number.to_bytes(8, "big")).digest()
    hashed = bls.hash_to_g1(message, _DOMAIN, hashlib.sha256)
    curve = bls.curve
    # e(key, hash) = e(generator, signature), with one final exponentiation for both sides.
    both = curve.pairing(public, hashed, final_exponentiate=False)
    both *= curve.pairing(curve.G2, curve.neg(point), final_exponentiate=False)
    return bool(curve.final_exponentiate(both) == curve.FQ12.one())


def pulse_in_seed(pulse: Record | None) -> Record | None:
    """What the seed of a draw takes of the pulse in its record."""
    if pulse is None:
        return None
    randomness = hashlib.sha256(bytes.fromhex(pulse["signature"])).hexdigest()
    return {"randomness": randomness, "round": pulse["round"]}


def is_short_of_pulse(beacon: Record | None, pulse: Record | None, times: Iterable[int]) -> bool:
    """Whether a draw of a run with a beacon shows no pulse, or one that may have been known too early.

    `beacon` is the manifest's, `pulse` the draw's; `times` are those of the cosignatures on the draw's head,
    in seconds since 1970.
    """
    if beacon is None:
        return False
    if pulse is None:
        return True
    return any(time >= _published(beacon, pulse["round"]) for time in times)


def in_time(beacon: Record, number: int) -> bool:
    """Whether a pulse comes within the range of a clock."""
    return _published(beacon, number) <= MAX_INTEGER


def _published(beacon: Record, number: int) -> int:
    when: int = beacon["genesis"] + (number - 1) * beacon["period"]
    return when


def check_beacon(manifest: Record, report: Report) -> None:
    """The manifest's beacon, if it names one. Raises as `parse_beacon_key` does."""
    if manifest["beacon"] is None:
        return
    parse_beacon_key(manifest["beacon"]["public_key"])
    required = manifest["witnessing"]["required"]
    if required < 1:
        what = "a beacon is named and no witness is required"
        report.add(what, "log entry 0, manifest", "at least 1", required)
