"""Ed25519 keys: others' vectors, unacceptable public keys, key files, secrecy."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from verification.errors import BarnraiseError, FormatError, SignatureError, UsageError
from verification.keys import PrivateKey, check_public_key, public_bytes, verify

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wycheproof_ed25519.json").read_text())
CASES = [(group["publicKey"]["pk"], case) for group in VECTORS["testGroups"] for case in group["tests"]]

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
IDENTITY = (0, 1)


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Addition on the twisted Edwards curve, straight from its definition."""
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P
    return x, y


def point(y: int, sign: int) -> tuple[int, int] | None:
    """The curve point with that y, by RFC 8032, section 5.1.3; None when there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        return None
    return (x if x % 2 == sign else -x % P), y


def torsion() -> list[tuple[int, int]]:
    """All eight points whose order divides 8: multiples of L times some point."""
    order = 2**252 + 27742317777372353535851937790883648493
    for y in range(2, 50):
        base = point(y, 0)
        if base is None:
            continue
        result, power = IDENTITY, base
        for bit in range(order.bit_length()):
            if order >> bit & 1:
                result = add(result, power)
            power = add(power, power)
        points = [IDENTITY]
        while (following := add(points[-1], result)) != IDENTITY:
            points.append(following)
        if len(points) == 8:
            return points
    raise AssertionError


SMALL_ORDER_Y = {y for _, y in torsion()}


def text(y: int, sign: int) -> str:
    return "ed25519:" + (y | sign << 255).to_bytes(32, "little").hex()


def test_all_vectors_are_there() -> None:
    assert len(CASES) == VECTORS["numberOfTests"] == 151


@pytest.mark.parametrize(("pk", "case"), CASES, ids=[str(case["tcId"]) for _, case in CASES])
def test_wycheproof(pk: str, case: dict[str, Any]) -> None:
    arguments = (f"ed25519:{pk}", bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
    if case["result"] == "valid":
        verify(*arguments)
    else:
        with pytest.raises(SignatureError):
            verify(*arguments)


def test_golden_signature() -> None:
    # RFC 8032, section 7.1, test 1
    key = PrivateKey.from_seed(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert key.public == "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert public_bytes(key.public).hex() == key.public.removeprefix("ed25519:")


def test_the_identity_is_refused_though_the_library_accepts_it() -> None:
    identity = text(1, 0)
    forged = bytes.fromhex("01" + "00" * 31) + bytes(32)
    Ed25519PublicKey.from_public_bytes(public_bytes(identity)).verify(forged, b"any message")
    with pytest.raises(SignatureError, match="small order"):
        verify(identity, b"any message", forged)


def test_the_identity_is_refused_also_with_an_ordinary_r() -> None:
    """With the identity as key, S·B = R holds for every message: R is then anybody's public key."""
    seed = bytes(range(32))
    secret = bytearray(hashlib.sha512(seed).digest()[:32])
    secret[0] &= 248
    secret[31] = (secret[31] & 127) | 64
    s = int.from_bytes(secret, "little") % (2**252 + 27742317777372353535851937790883648493)
    forged = public_bytes(PrivateKey.from_seed(seed).public) + s.to_bytes(32, "little")
    identity = text(1, 0)
    Ed25519PublicKey.from_public_bytes(public_bytes(identity)).verify(forged, b"any message")
    with pytest.raises(SignatureError, match="small order"):
        verify(identity, b"any message", forged)


def test_a_signature_whose_r_is_the_identity_is_refused_though_the_library_accepts_it() -> None:
    key = PrivateKey.from_seed(bytes(range(32)))
    order = 2**252 + 27742317777372353535851937790883648493
    secret = bytearray(hashlib.sha512(bytes(range(32))).digest()[:32])
    secret[0] &= 248
    secret[31] = (secret[31] & 127) | 64
    r = (1).to_bytes(32, "little")
    h = int.from_bytes(hashlib.sha512(r + public_bytes(key.public) + b"message").digest(), "little")
    forged = r + (h * int.from_bytes(secret, "little") % order).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(public_bytes(key.public)).verify(forged, b"message")
    with pytest.raises(SignatureError, match="small order"):
        verify(key.public, b"message", forged)


def test_all_points_of_small_order_are_refused_in_every_encoding() -> None:
    points = torsion()
    assert len(set(points)) == 8
    for x, y in points:
        for sign in {x % 2, 1 if x == 0 else x % 2}:
            with pytest.raises(SignatureError, match="small order"):
                check_public_key(text(y, sign))
            if y < 19:
                with pytest.raises(SignatureError, match="not canonical"):
                    check_public_key(text(y + P, sign))


@pytest.mark.parametrize("y", range(P, 2**255))
@pytest.mark.parametrize("sign", [0, 1])
def test_encodings_beyond_the_field_are_refused(y: int, sign: int) -> None:
    with pytest.raises(SignatureError, match="not canonical"):
        check_public_key(text(y, sign))


# Hypothesis tries the constants of the module it tests, the ordinates of small order among them.
@given(st.integers(2, P - 2).filter(lambda y: y not in SMALL_ORDER_Y), st.integers(0, 1))
def test_exactly_the_points_of_the_curve_are_accepted(y: int, sign: int) -> None:
    if point(y, sign) is None:
        with pytest.raises(SignatureError, match="not a point"):
            check_public_key(text(y, sign))
    else:
        check_public_key(text(y, sign))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ed25519:",
        "ab" * 32,
        "ed25519:" + "ab" * 31,
        "ed25519:" + "ab" * 33,
        None,
        1,
        [],
        {},
        b"x",
        "Ed25519:" + "ab" * 32,
        "ed25519:" + "AB" * 32,
        "ed25519:" + "ab" * 32 + "\n",
        "ed25519: " + "ab" * 32,
    ],
)
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(SignatureError, match="not a public key"):
        check_public_key(key)


def test_every_changed_bit_breaks_a_signature() -> None:
    key = PrivateKey.from_seed(bytes(32))
    message = b"message"
    signature = key.sign(message)
    verify(key.public, message, signature)
    for bit in range(512):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify(key.public, message, bytes(changed))
    for bit in range(8 * len(message)):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify(key.public, bytes(changed), signature)
    for other in (b"", signature[:-1], signature + b"\0"):
        with pytest.raises(SignatureError, match="length"):
            verify(key.public, message, other)
    with pytest.raises(SignatureError):
        verify(PrivateKey.generate().public, message, signature)


def test_key_files_round_trip(tmp_path: Path) -> None:
    seed = bytes(range(32))
    path = tmp_path / "keys" / "me"
    PrivateKey.from_seed(seed).save(path)
    assert path.read_bytes() == b"barnraise-ed25519-v1\n" + seed.hex().encode() + b"\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert PrivateKey.load(path).public == PrivateKey.from_seed(seed).public
    with pytest.raises(UsageError, match="exists already"):
        PrivateKey.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner"):
        PrivateKey.load(path)


GOOD = b"barnraise-ed25519-v1\n" + b"ab" * 32 + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\n",
        GOOD.replace(b"v1", b"v2"),
        GOOD.replace(b"ab", b"AB"),
        GOOD[:-3] + b"\n",
        GOOD.replace(b"\n", b"\r\n"),
        b" " + GOOD,
        GOOD.replace(b"ab", b"xy"),
        bytes(86),
        b"\xff" * 86,
    ],
)
def test_a_key_file_has_one_form(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        PrivateKey.load(path)
    assert "abab" not in str(caught.value)


def test_the_secret_does_not_leave(tmp_path: Path) -> None:
    seed = bytes(range(32))
    key = PrivateKey.from_seed(seed)
    assert repr(key) == str(key) == f"PrivateKey(public='{key.public}')"
    assert seed.hex() not in f"{key!r} {key}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(UsageError):
            pickle.dumps(key, protocol)
    for copier in (copy.copy, copy.deepcopy):
        with pytest.raises(UsageError):
            copier(key)
    assert not hasattr(key, "__dict__")


def test_seeds_have_32_bytes_and_new_keys_differ() -> None:
    for length in (0, 31, 33):
        with pytest.raises(FormatError):
            PrivateKey.from_seed(bytes(length))
    assert PrivateKey.generate().public != PrivateKey.generate().public


@given(st.text(max_size=80), st.binary(max_size=10), st.binary(max_size=70))
def test_bad_input_stays_in_the_family(key: str, message: bytes, signature: bytes) -> None:
    with pytest.raises(BarnraiseError):
        verify(key, message, signature)
