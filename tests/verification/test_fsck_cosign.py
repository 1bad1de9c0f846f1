"""Bytes of witnesses' keys and cosigned checkpoints: each rule refuses by its own words."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.verification.test_fsck_bytes import cosignature, cosigned, note_of, public, vkey, witness_vkey
from verification.errors import FormatError, SignatureError
from verification.fsck_cosign import parse_cosignature, parse_cosigned, parse_witness_key

NAME = "w1.example"


def key_text(name: str = NAME, algorithm: int = 4, key: bytes = public(NAME)) -> str:
    """A verifier key whose key id is right for what it says."""
    data = bytes([algorithm]) + key
    key_id = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4].hex()
    return f"{name}+{key_id}+{base64.b64encode(data).decode()}"


def test_the_one_form_of_a_key() -> None:
    assert key_text() == witness_vkey(NAME)
    assert str(parse_witness_key(key_text())) == key_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{NAME}+00000000", "not a witness's verifier key"),
        (key_text(name="a b"), "not a witness's verifier key"),
        (key_text(name="é"), "not a witness's verifier key"),
        (key_text(name="n" * 129), "not a witness's verifier key"),
        (key_text(key=public(NAME)[1:]), "a witness's verifier key is not Ed25519 for cosignatures"),
        (key_text(key=public(NAME) + b"\0"), "a witness's verifier key is not Ed25519 for cosignatures"),
        (key_text(algorithm=1), "a witness's verifier key is not Ed25519 for cosignatures"),
        (vkey(), "a witness's verifier key is not Ed25519 for cosignatures"),
        (f"{NAME}+00000000+", "a witness's verifier key is not Ed25519 for cosignatures"),
        (key_text().replace(NAME, "w2.example"), "a witness's verifier key has another key id"),
    ],
)
def test_what_is_no_key_of_a_witness(text: str, words: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_witness_key(text)
    assert refused.value.what == words


def test_a_key_of_small_order() -> None:
    with pytest.raises(SignatureError) as refused:
        parse_witness_key(key_text(key=b"\1" + bytes(31)))
    assert refused.value.what == "a key has small order"


@pytest.mark.parametrize(
    ("length", "time", "fits"),
    [
        (76, 1, True),
        (76, 2**53 - 1, True),
        (75, 1, False),
        (77, 1, False),
        (76, 0, False),
        (76, 2**53, False),
    ],
)
def test_the_length_and_time_of_a_cosignature(length: int, time: int, fits: bool) -> None:
    blob = (b"keyi" + time.to_bytes(8, "big") + bytes(65))[:length]
    if fits:
        read = parse_cosignature(NAME, blob)
        assert (read.name, read.key_id, read.time, read.signature) == (NAME, b"keyi", time, bytes(64))
    else:
        with pytest.raises(FormatError, match="not a cosignature"):
            parse_cosignature(NAME, blob)


NOTE = note_of([b"a", b"b"])
BLOB = cosignature(NOTE, NAME).rsplit(" ", 1)[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"- {NAME} {BLOB}", "not a cosignature line"),
        (f"— é {BLOB}", "not a cosignature line"),
        (f"— {'n' * 129} {BLOB}", "not a cosignature line"),
        (f"—  {BLOB}", "not a cosignature line"),
        ("\n", "not a cosignature line"),
        (f"— {NAME} {BLOB[:-1]}", "not a checkpoint"),
        (f"— {NAME} ?\n", "not the one base64 form of its bytes"),
        (f"— {NAME} AAAA\n", "not a cosignature"),
    ],
)
def test_what_is_no_line_of_a_witness(line: str, words: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_cosigned(NOTE + line)
    assert refused.value.what == words


def test_a_note_that_is_cut_off_is_no_checkpoint() -> None:
    """With any number of lines left out at its end."""
    assert parse_cosigned(NOTE)[0].size == 2
    lines = cosigned(NOTE, NAME).splitlines(keepends=True)
    for kept in range(5):
        with pytest.raises(FormatError):
            parse_cosigned("".join(lines[:kept]))
        with pytest.raises(FormatError) as refused:
            parse_cosigned("".join(lines[: kept + 1])[:-1] + "x")
        assert refused.value.what == "not a checkpoint"
