"""The quick way of reading a record takes exactly what the strict way and the record's shape take."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import canon, envelope, key_text
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck_envelope import Envelope, parse_envelope
from verification.fsck_json import MAX_INTEGER, parse_strictly
from verification.fsck_shapes import RECORDS

Record = dict[str, Any]
RUN = "sha256:" + "5a" * 32
HEX = RUN[7:]
OF_MEMBER: dict[str, Any] = {"protocol": 1, "run": RUN, "member": "ada", "key": key_text("ada")}
MADE: dict[str, Any] = {
    "key-rotation": {**OF_MEMBER, "new_key": key_text("new"), "proof": "A"},
    "key-revocation": {**OF_MEMBER, "by": "member"},
    "leave": {**OF_MEMBER, "turn": 3, "by": "coordinator"},
    "return": {**OF_MEMBER, "turn": 3},
}
EDGES: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -1, 2, True, False, None, "", "x", "—", "\n", [], {}, 1.0, 1.5, MAX_INTEGER, MAX_INTEGER + 1,
     1_000_000, 1_000_001, [1, 2], [2, 2], [2, 1], [1], [1, 2, 3], [True, 2], "0x1.0p+0", "1.0", HEX, RUN,
     f"blake3:{HEX}", f"{RUN}\n", key_text("ada"), RUN.upper(), "pass", "late", "trace", [None], "a" * 65]
)  # fmt: skip


@cache
def predicates() -> dict[str, list[Any]]:
    """Predicates of every kind, as an honest run has them."""
    found: dict[str, list[Any]] = {kind: [value] for kind, value in MADE.items()}
    with TemporaryDirectory() as folder:
        settled = LateWriter(Path(folder) / "late", audit__rate_ppm=1_000_000).run(turns=3).records
        honest = Writer(Path(folder) / "run", appeals={(1, 2)}).run().records
        for kind, record, _ in [*honest, *(told for told in settled if told[0] == "settlement")]:
            found.setdefault(kind, []).append(record)
    return found


def statement(kind: str, predicate: bytes) -> bytes:
    """A statement's bytes around those of a predicate."""
    head = b'{"_type":"https://in-toto.io/Statement/v1","predicate":'
    tail = (
        f',"predicateType":"barnraise:{kind}:v1","subject":[{{"digest":{{"sha256":"{HEX}"}},"name":"run"}}]}}'
    )
    return head + predicate + tail.encode()


def entry(payload: bytes) -> bytes:
    text = base64.b64encode(payload).decode()
    sig = {"keyid": key_text("ada"), "sig": base64.b64encode(bytes(64)).decode()}
    return canon({"payload": text, "payloadType": "application/vnd.in-toto+json", "signatures": [sig]})


def ways(kind: str, payload: bytes) -> tuple[bool, bool]:
    """Whether the quick way takes a statement, and whether the strict way and the shape do.

    Fails where the quick way takes what is not right, or gives another value.
    """
    try:
        found = parse_envelope(entry(payload))
    except FormatError:
        return False, False
    try:
        strict = parse_strictly(payload)
        RECORDS[kind](strict["predicate"], kind)
    except FormatError:
        assert not found.fits
        return False, False
    if found.fits:
        assert json.dumps(found.predicate) == json.dumps(strict["predicate"])
        subject = (strict["subject"][0]["name"], strict["subject"][0]["digest"]["sha256"])
        assert (found.kind, found.subject, found.payload) == (kind, subject, payload)
    return found.fits, True


KINDS = sorted(set(RECORDS) - {"manifest"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_honest_record_is_taken_quickly(kind: str) -> None:
    for value in predicates()[kind]:
        assert ways(kind, statement(kind, canon(value))) == (True, True)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below this one."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_both_ways_agree_on_changed_records(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    value = json.loads(json.dumps(data.draw(st.sampled_from(predicates()[kind]))))
    container, key = data.draw(st.sampled_from(places(value)))
    match data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
        case "replace":
            container[key] = data.draw(EDGES)
        case "remove":
            del container[key]
        case _ if isinstance(container, dict):
            container[data.draw(st.sampled_from(["extra", "é", ""]))] = data.draw(EDGES)
        case _:
            container.append(data.draw(EDGES))
    written = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert ways(kind, statement(kind, written)) in ((True, True), (False, False))


PIECES = st.sampled_from(
    [b'"', b"\\", b",", b"[", b"]", b"{", b"}", b"1.0", b"1e0", b"-0", b"0", b" ", b"\xff", b'"slot":1,',
     b"\\u0041", b',"predicateType":"barnraise:served:v1"', b"null", b"true", b"\n", b"\\n"]
)  # fmt: skip


@settings(max_examples=800, deadline=None)
@given(st.data())
def test_both_ways_agree_on_changed_bytes(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    payload = statement(kind, canon(data.draw(st.sampled_from(predicates()[kind]))))
    at, length = data.draw(st.integers(0, len(payload))), data.draw(st.integers(0, 5))
    changed = payload[:at] + data.draw(PIECES) + payload[at + length :]
    # Another kind of record can come out of it, which has its own shape.
    if f'"barnraise:{kind}:v1"'.encode() in changed and changed.count(b'"predicateType"') == 1:
        ways(kind, changed)


def test_a_key_given_twice_or_out_of_order_is_not_taken() -> None:
    value = canon(predicates()["served"][0])
    assert ways("served", statement("served", value)) == (True, True)
    for wrong in (
        value[:-1] + b',"unserved":[]}',
        value.replace(b'{"attempt"', b'{"attempt":0,"attempt"'),
        value.replace(b'"protocol":1,', b"").replace(b'"run"', b'"run"', 1)[:-1] + b',"protocol":1}',
        value + b" ",
    ):
        assert wrong != value
        assert ways("served", statement("served", wrong)) == (False, False)


def test_other_statements_go_the_strict_way() -> None:
    record = predicates()["served"][0]
    plain = envelope("served", record, "coordinator", ("run", HEX))
    assert parse_envelope(plain).fits
    other = envelope("served", record, "coordinator", ("runs", HEX))
    found = parse_envelope(other)
    assert not found.fits
    assert (found.subject, found.predicate) == (("runs", HEX), record)
    unknown = parse_envelope(envelope("unheard-of", record, "coordinator", ("run", HEX)))
    assert not unknown.fits


# --- one wrong thing at a time ---

STATEMENT: Record = {
    "_type": "https://in-toto.io/Statement/v1",
    "predicate": {},
    "predicateType": "barnraise:served:v1",
    "subject": [{"digest": {"sha256": HEX}, "name": "run"}],
}
SIGNATURE: Record = {"keyid": "a hint", "sig": ""}
ENVELOPE: Record = {
    "payload": base64.b64encode(canon(STATEMENT)).decode(),
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [SIGNATURE],
}


def test_the_plainest_envelope_is_taken_the_strict_way() -> None:
    found = parse_envelope(canon(ENVELOPE))
    assert found == Envelope(canon(STATEMENT), "a hint", b"", "served", ("run", HEX), {})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "the envelope has other members"),
        ({**ENVELOPE, "more": 1}, "the envelope has other members"),
        ({"payload": ENVELOPE["payload"]}, "the envelope has other members"),
        ({**ENVELOPE, "payloadType": "text/plain"}, "the envelope holds another type"),
        ({**ENVELOPE, "signatures": {"a": SIGNATURE}}, "signatures is not a list of one"),
        ({**ENVELOPE, "signatures": []}, "signatures is not a list of one"),
        ({**ENVELOPE, "signatures": [SIGNATURE, SIGNATURE]}, "signatures is not a list of one"),
        ({**ENVELOPE, "signatures": ["keyid and sig"]}, "the signature has other members"),
        ({**ENVELOPE, "signatures": [{**SIGNATURE, "cert": ""}]}, "the signature has other members"),
        ({**ENVELOPE, "signatures": [{**SIGNATURE, "sig": 1}]}, "sig is not text"),
        ({**ENVELOPE, "signatures": [{**SIGNATURE, "keyid": None}]}, "keyid is not text"),
        ({**ENVELOPE, "payload": None}, "payload is not text"),
    ],
)
def test_what_is_no_envelope_is_named(value: Any, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_envelope(canon(value))
    assert caught.value.what == words


SUBJECT: Record = STATEMENT["subject"][0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "the statement has other members"),
        ({**STATEMENT, "more": 1}, "the statement has other members"),
        ({"_type": STATEMENT["_type"]}, "the statement has other members"),
        ({**STATEMENT, "_type": "https://in-toto.io/Statement/v2"}, "the statement has another type"),
        ({**STATEMENT, "predicateType": 1}, "predicateType is not text"),
        ({**STATEMENT, "predicateType": "barnraise:served:v2"}, "unknown predicate type"),
        ({**STATEMENT, "subject": []}, "subject is not a list of one"),
        ({**STATEMENT, "subject": [{**SUBJECT, "uri": ""}]}, "the subject has other members"),
        ({**STATEMENT, "subject": [{**SUBJECT, "digest": {}}]}, "the subject's digest has other members"),
        ({**STATEMENT, "subject": [{**SUBJECT, "name": 1}]}, "the subject's name is not text"),
        (
            {**STATEMENT, "subject": [{**SUBJECT, "digest": {"sha256": 1}}]},
            "the subject's digest is not text",
        ),
    ],
)
def test_what_is_no_statement_is_named(value: Any, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_envelope(entry(canon(value)))
    assert caught.value.what == words


def test_the_quick_way_looks_at_a_statements_head() -> None:
    payload = statement("served", canon(predicates()["served"][0]))
    assert parse_envelope(entry(payload)).fits
    other = payload.replace(b"Statement/v1", b"Statement/v2")
    with pytest.raises(FormatError, match="the statement has another type"):
        parse_envelope(entry(other))


def test_who_signed() -> None:
    """Whoever the envelope names as its signer, with a key that is one, and a signature over these bytes."""
    data = envelope("served", {}, "ada", ("run", HEX))
    found = parse_envelope(data)
    assert found.signed_by(key_text("ada"))
    assert not found.signed_by(key_text("bob"))
    found.keyid = key_text("bob")
    assert not found.signed_by(key_text("ada"))
    assert not found.signed_by(key_text("bob"))
    for no_key in ("nobody", "ed25519:" + "00" * 32):
        found.keyid = no_key
        assert not found.signed_by(no_key)
