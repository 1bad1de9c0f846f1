"""Proofs inside records: by whom, over what, in which domain."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.errors import FormatError, SignatureError
from verification.keys import PrivateKey
from verification.statements import sign_object, verify_object

KEY = PrivateKey.from_seed(bytes(range(32)))
VALUE = {"log_vkey": "x", "length": 3}


def test_a_proof_holds_for_its_domain_value_and_key_only() -> None:
    proof = sign_object("barnraise/test/v1", VALUE, KEY)
    verify_object("barnraise/test/v1", VALUE, proof, KEY.public)
    other = PrivateKey.from_seed(bytes(32))
    for domain, value, key in (
        ("barnraise/test/v2", VALUE, KEY.public),
        ("barnraise/test/v1", {**VALUE, "length": 4}, KEY.public),
        ("barnraise/test/v1", VALUE, other.public),
    ):
        with pytest.raises(SignatureError):
            verify_object(domain, value, proof, key)


def test_the_bytes_signed_are_those_of_the_protocol() -> None:
    message = b'barnraise/test/v1\0{"length":3,"log_vkey":"x"}'
    assert base64.b64decode(sign_object("barnraise/test/v1", VALUE, KEY)) == KEY.sign(message)


@given(st.text(max_size=100))
def test_other_text_is_no_proof(text: str) -> None:
    with pytest.raises((FormatError, SignatureError)):
        verify_object("barnraise/test/v1", VALUE, text, KEY.public)
