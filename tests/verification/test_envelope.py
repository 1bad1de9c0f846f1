"""Envelopes: golden bytes, one accepted form, nothing usable before it is verified."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.encoding import canonical_json, parse_canonical
from verification.envelope import MAX_ENVELOPE_BYTES, open_envelope, seal
from verification.errors import BarnraiseError, FormatError, SignatureError
from verification.keys import PrivateKey

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(32))
DIGEST = "5e" * 32
PREDICATE = {"protocol": 1, "member": "ada"}
ENVELOPE = seal("barnraise:enrol:v1", PREDICATE, "run", DIGEST, KEY)
STATEMENT = (
    '{"_type":"https://in-toto.io/Statement/v1","predicate":{"member":"ada","protocol":1},'
    '"predicateType":"barnraise:enrol:v1","subject":[{"digest":{"sha256":"' + DIGEST + '"},"name":"run"}]}'
)


def signed(statement: Any, key: PrivateKey = KEY, **changes: Any) -> bytes:
    """An envelope around any statement, its signature right; written here, not by the module."""
    payload = statement if isinstance(statement, bytes) else canonical_json(statement)
    encoding = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": key.public, "sig": base64.b64encode(key.sign(encoding)).decode()}],
    }
    return canonical_json({**envelope, **changes})


def test_golden_bytes() -> None:
    assert signed(STATEMENT.encode()) == ENVELOPE
    assert ENVELOPE.decode() == (
        '{"payload":"' + base64.b64encode(STATEMENT.encode()).decode() + '",'
        '"payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":'
        '"ed25519:03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8","sig":'
        '"GGYTwn5UDQMqxMmxhUkXcKhfQph8qvnNoDrA1G4abEhokBYA01iphi+2SkW36oS67tD+gmK2bibhdJkeC+MQAA=="}]}'
    )


def test_opens_and_verifies() -> None:
    sealed = open_envelope(ENVELOPE)
    assert sealed.keyid == KEY.public
    assert sealed.predicate_type == "barnraise:enrol:v1"
    assert (sealed.subject_name, sealed.subject_sha256) == ("run", DIGEST)
    assert sealed.peek() == PREDICATE
    sealed.verify(KEY.public)
    assert sealed.verified(KEY.public) == PREDICATE


def test_the_predicate_is_not_at_hand_before_it_is_verified() -> None:
    sealed = open_envelope(ENVELOPE)
    assert not hasattr(sealed, "predicate")
    assert "ada" not in repr(sealed)
    assert "not verified" in repr(sealed)
    sealed.peek()["member"] = "eve"
    assert sealed.verified(KEY.public)["member"] == "ada"


def test_another_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="another key"):
        open_envelope(ENVELOPE).verified(OTHER.public)
    renamed = ENVELOPE.replace(KEY.public.encode(), OTHER.public.encode())
    for key in (KEY, OTHER):
        with pytest.raises(SignatureError):
            open_envelope(renamed).verified(key.public)


def test_the_signature_covers_type_and_length() -> None:
    payload = STATEMENT.encode()
    for encoding in (
        payload,
        b"DSSEv1 28 application/vnd.in-toto+json  " + payload,
        b"DSSEv1 16 application/json %d %s" % (len(payload), payload),
    ):
        sig = base64.b64encode(KEY.sign(encoding)).decode()
        data = signed(payload, signatures=[{"keyid": KEY.public, "sig": sig}])
        with pytest.raises(SignatureError):
            open_envelope(data).verify(KEY.public)


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(ENVELOPE)):
        changed = bytearray(ENVELOPE)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BarnraiseError):
            open_envelope(bytes(changed)).verified(KEY.public)


def test_every_cut_or_longer_envelope_is_refused() -> None:
    for length in range(len(ENVELOPE)):
        with pytest.raises(FormatError):
            open_envelope(ENVELOPE[:length])
    for data in (ENVELOPE + b"\n", b" " + ENVELOPE, ENVELOPE + ENVELOPE):
        with pytest.raises(FormatError):
            open_envelope(data)


def test_padding_bits_of_base64_are_refused() -> None:
    sig = json.loads(ENVELOPE)["signatures"][0]["sig"]
    assert sig.endswith("==")
    spare = sig[:-3] + chr(ord(sig[-3]) + 1) + "=="
    assert base64.b64decode(spare, validate=True) == base64.b64decode(sig)
    with pytest.raises(FormatError, match="base64"):
        open_envelope(ENVELOPE.replace(sig.encode(), spare.encode()))


GOOD = json.loads(STATEMENT)
SUBJECT = GOOD["subject"][0]


@pytest.mark.parametrize(
    "statement",
    [
        STATEMENT.replace(":1}", ":1 }").encode(),
        STATEMENT.replace('"member":"ada",', '"member":"ada","member":"ada",').encode(),
        {**GOOD, "_type": "https://in-toto.io/Statement/v0.1"},
        {**GOOD, "predicate": [1]},
        {**GOOD, "predicate": None},
        {**GOOD, "predicateType": "barnraise:enrol:v2"},
        {**GOOD, "predicateType": "enrol"},
        {**GOOD, "predicateType": "barnraise:Enrol:v1"},
        {**GOOD, "predicateType": "barnraise:enrol:v1\n"},
        {**GOOD, "predicateType": None},
        {**GOOD, "extra": 1},
        {key: value for key, value in GOOD.items() if key != "subject"},
        {**GOOD, "subject": []},
        {**GOOD, "subject": {}},
        {**GOOD, "subject": [SUBJECT, SUBJECT]},
        {**GOOD, "subject": [None]},
        {**GOOD, "subject": [{**SUBJECT, "name": "model"}]},
        {**GOOD, "subject": [{**SUBJECT, "name": []}]},
        {**GOOD, "subject": [{**SUBJECT, "uri": "x"}]},
        {**GOOD, "subject": [{**SUBJECT, "digest": {}}]},
        {**GOOD, "subject": [{**SUBJECT, "digest": {"sha256": DIGEST.upper()}}]},
        {**GOOD, "subject": [{**SUBJECT, "digest": {"sha256": 1}}]},
        {**GOOD, "subject": [{**SUBJECT, "digest": {"sha256": DIGEST, "sha512": DIGEST}}]},
        [],
        None,
        7,
    ],
)
def test_a_signed_statement_of_another_form_is_refused(statement: Any) -> None:
    with pytest.raises(FormatError):
        open_envelope(signed(statement))


SIGNATURE = json.loads(ENVELOPE)["signatures"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"payloadType": "application/json"},
        {"payloadType": None},
        {"payload": None},
        {"payload": ""},
        {"payload": "e30"},
        {"extra": 1},
        {"signatures": []},
        {"signatures": SIGNATURE},
        {"signatures": {"only": SIGNATURE}},
        {"signatures": [SIGNATURE, SIGNATURE]},
        {"signatures": [None]},
        {"signatures": [{"sig": SIGNATURE["sig"]}]},
        {"signatures": [{**SIGNATURE, "cert": "x"}]},
        {"signatures": [{**SIGNATURE, "sig": None}]},
        {"signatures": [{**SIGNATURE, "sig": ""}]},
        {"signatures": [{**SIGNATURE, "sig": "AAAA"}]},
        {"signatures": [{**SIGNATURE, "keyid": ""}]},
        {"signatures": [{**SIGNATURE, "keyid": []}]},
        {"signatures": [{**SIGNATURE, "keyid": "ed25519:01" + "00" * 31}]},
    ],
)
def test_an_envelope_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((FormatError, SignatureError)):
        open_envelope(signed(GOOD, **changes))


def test_size_limit() -> None:
    fixed = len(seal("barnraise:enrol:v1", {"x": ""}, "run", DIGEST, KEY))
    most = (MAX_ENVELOPE_BYTES - fixed) // 4 * 3
    data = seal("barnraise:enrol:v1", {"x": "a" * most}, "run", DIGEST, KEY)
    assert MAX_ENVELOPE_BYTES - 8 < len(data) <= MAX_ENVELOPE_BYTES
    assert open_envelope(data).verified(KEY.public) == {"x": "a" * most}
    with pytest.raises(FormatError, match="too long"):
        seal("barnraise:enrol:v1", {"x": "a" * (most + 6)}, "run", DIGEST, KEY)
    with pytest.raises(FormatError, match="too long"):
        open_envelope(signed({**GOOD, "predicate": {"x": "a" * (most + 6)}}))


@pytest.mark.parametrize(
    "arguments",
    [
        ("enrol", PREDICATE, "run", DIGEST),
        ("barnraise:enrol:v1", [], "run", DIGEST),
        ("barnraise:enrol:v1", {"x": 1.5}, "run", DIGEST),
        ("barnraise:enrol:v1", PREDICATE, "walk", DIGEST),
        ("barnraise:enrol:v1", PREDICATE, "run", "sha256:" + DIGEST),
    ],
)
def test_what_would_not_open_is_not_sealed(arguments: tuple[str, Any, str, str]) -> None:
    with pytest.raises(FormatError):
        seal(*arguments, KEY)


@given(st.binary(max_size=200))
def test_bad_bytes_stay_in_the_family(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_envelope(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["payload", "signatures", "sig", "keyid", "name"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_predicate_round_trips_and_any_json_stays_in_the_family(value: Any) -> None:
    data = seal("barnraise:round-open:v1", {"x": value}, "dataset", DIGEST, KEY)
    assert open_envelope(data).verified(KEY.public) == {"x": value}
    assert canonical_json(parse_canonical(data)) == data
    with pytest.raises(FormatError):
        open_envelope(canonical_json(value))
    with pytest.raises(FormatError):
        open_envelope(signed(value))
