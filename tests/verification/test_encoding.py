"""Canonical JSON, digests, hex floats, base64, and records to and from JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verification.encoding import (
    MAX_DEPTH,
    MAX_INTEGER,
    blake3_digest,
    canonical_json,
    digest_hex,
    from_json,
    hash_object,
    hex_float,
    parse_base64,
    parse_canonical,
    parse_hex_float,
    sha256_digest,
    to_json,
)
from verification.errors import FormatError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_json_round_trips(value: Any) -> None:
    data = canonical_json(value)
    assert parse_canonical(data) == value
    assert json.loads(data) == value
    assert canonical_json(parse_canonical(data)) == data


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789-eE.\\u tfalsn', max_size=40).map(str.encode)
)
@settings(max_examples=500)
def test_arbitrary_bytes_parse_to_themselves_or_raise_format_error(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except FormatError:
        return
    assert canonical_json(value) == data


@given(VALUES, st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_never_gives_the_same_value(value: Any, position: int, byte: int) -> None:
    data = bytearray(canonical_json(value))
    position %= len(data)
    if data[position] == byte:
        return
    data[position] = byte
    try:
        other = parse_canonical(bytes(data))
    except FormatError:
        return
    assert canonical_json(other) != canonical_json(value)


def test_golden_canonical_json() -> None:
    value = {"b": [1, -0, True, None], "a": {"": "é\u007f\u2028", "~": '"\\/\b\t\n\f\r\x00\x1f'}}
    expected = '{"a":{"":"é\u007f\u2028","~":"\\"\\\\/\\b\\t\\n\\f\\r\\u0000\\u001f"},"b":[1,0,true,null]}'
    assert canonical_json(value) == expected.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" 1",
        b"1 ",
        b"1\n",
        b"-0",
        b"01",
        b"1.0",
        b"1e3",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'"\\u0041"',
        b'"\\/"',
        b'"\\u001F"',
        b'"\\u000a"',
        b'"\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\n"',
        b"\xef\xbb\xbf1",
        b'{"\xc3\xa9":1}',
        b'{"\\n":1}',
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[1,]",
        b"1 2",
        "1".encode("utf-16"),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_any_other_form_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_canonical(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"1.0", "a number that is not an integer"),
        (b"[NaN]", "a number that is not an integer"),
        (b"9007199254740992", "an integer is out of range"),
        (b"1" * 18, "an integer is out of range"),
        (b"1" * 100_000, "an integer is out of range"),  # more digits than Python turns into a number
        (b'{"a":1,"a":1}', "names a key twice"),
        (b"1 ", "not in canonical form"),
        (b"[", "not JSON"),
        (b"[" * 70 + b"]" * 70, "nested too deeply"),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_the_error_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_canonical(data)


def test_a_limit_on_length() -> None:
    assert parse_canonical(b'"aa"', max_bytes=4) == "aa"
    with pytest.raises(FormatError, match="too long"):
        parse_canonical(b'"aaa"', max_bytes=4)


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        math.nan,
        MAX_INTEGER + 1,
        -MAX_INTEGER - 1,
        "\ud800",
        {1: 2},
        {"é": 1},
        {"\x7f": 1},
        {1, 2},
        b"bytes",
        object(),
        MappingProxyType({"a": 1}),
        [[1.5]],
        {"a": {"b": 2.5}},
    ],
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        canonical_json(value)


def test_depth_at_the_limit_is_accepted() -> None:
    data = b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)
    assert canonical_json(parse_canonical(data)) == data


def test_digests() -> None:
    assert sha256_digest(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert blake3_digest(b"") == "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3_digest(memoryview(b"")) == blake3_digest(bytearray())
    assert digest_hex(sha256_digest(b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "a" * 64,
        "md5:" + "a" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        None,
        3,
        ["sha256"],
    ],
)
def test_what_is_no_digest_is_refused(digest: Any) -> None:
    with pytest.raises(FormatError):
        digest_hex(digest)


def test_golden_hash_object() -> None:
    # SHA-256 of b'barnraise/test/v1\x00{"a":[1,"x"],"b":null}', by sha256sum
    digest = "sha256:34affef7f5b9bc2a44dbbc5651f9cad5c6bb1cf0d2004039aad26857644c716f"
    assert hash_object("barnraise/test/v1", {"b": None, "a": [1, "x"]}) == digest
    assert hash_object("barnraise/test/v2", {"b": None, "a": [1, "x"]}) != digest


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_hex_floats_round_trip(value: float) -> None:
    back = parse_hex_float(hex_float(value))
    assert back == value
    assert math.copysign(1, back) == math.copysign(1, value)


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "inf",
        "-inf",
        "0x1p+0",
        "0x1.0000000000000P+0",
        " 0x1.0000000000000p+0",
        "1.0",
        "0.1",
        "",
        "x",
        "0x1.0000000000000p+0\n",
        "0X1.0000000000000p+0",
        "0x2.0000000000000p+0",
        "0x1.8p+0",
        "0x1p+99999",
        "\ud800",
        "é",
        None,
        1,
        True,
        [],
        "0x1.00000000000000p+0",
        "+0x1.0000000000000p+0",
    ],
)
def test_other_forms_of_a_float_are_refused(text: Any) -> None:
    with pytest.raises(FormatError):
        parse_hex_float(text)


def test_golden_hex_float() -> None:
    assert hex_float(0.1) == "0x1.999999999999ap-4"
    assert parse_hex_float("0x1.999999999999ap-4") == 0.1
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FormatError):
            hex_float(value)


@given(st.binary(max_size=80))
def test_base64_round_trips_and_has_one_form(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert parse_base64(text, len(data)) == parse_base64(text) == data
    with pytest.raises(FormatError):
        parse_base64(text, len(data) + 1)
    for other in (text + "=", text + "\n", " " + text, text + "A", text.rstrip("=") + "!"):
        with pytest.raises(FormatError):
            parse_base64(other)


@pytest.mark.parametrize(
    "text", ["AB==", "AAB=", "A", "AA", "AAA", "é===", "_-__", None, 1, b"AAAA", ["AAAA"]]
)
def test_other_forms_of_base64_are_refused(text: Any) -> None:
    with pytest.raises(FormatError):
        parse_base64(text)


@dataclass(frozen=True)
class Inner:
    name: str
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    kind: ClassVar[str] = "outer"
    version: Literal[1]
    look: Literal["a", "b"]
    flag: bool
    maybe: int | None
    inner: Inner
    many: tuple[Inner, ...]
    names: Mapping[str, int]
    free: dict  # type: ignore[type-arg]


OUTER = Outer(
    1, "b", True, None, Inner("x", (1, "y")), (Inner("z", (2, "")),), {"k": 3}, {"a": [1, {"b": None}]}
)


def test_records_round_trip() -> None:
    data = canonical_json(to_json(OUTER))
    assert from_json(Outer, parse_canonical(data)) == OUTER
    assert set(to_json(OUTER)) == {f.name for f in dataclasses.fields(Outer)}
    some = dataclasses.replace(OUTER, maybe=7, many=())
    assert from_json(Outer, parse_canonical(canonical_json(to_json(some)))) == some


INNERS = st.builds(Inner, TEXT, st.tuples(st.integers(-MAX_INTEGER, MAX_INTEGER), TEXT))
OUTERS = st.builds(
    Outer,
    version=st.just(1),
    look=st.sampled_from(["a", "b"]),
    flag=st.booleans(),
    maybe=st.none() | st.integers(0, 9),
    inner=INNERS,
    many=st.lists(INNERS, max_size=3).map(tuple),
    names=st.dictionaries(KEYS, st.integers(0, 9), max_size=3),
    free=st.dictionaries(KEYS, VALUES, max_size=2),
)


@given(OUTERS)
def test_any_record_round_trips(record: Outer) -> None:
    assert from_json(Outer, parse_canonical(canonical_json(to_json(record)))) == record


@given(VALUES)
def test_any_value_is_a_record_or_a_format_error(value: Any) -> None:
    with pytest.raises(FormatError):
        from_json(Outer, value)


@given(st.sampled_from([f.name for f in dataclasses.fields(Outer)]), VALUES)
def test_any_member_is_right_or_a_format_error(name: str, value: Any) -> None:
    json_value = {**to_json(OUTER), name: value}
    try:
        record = from_json(Outer, json_value)
    except FormatError:
        return
    assert canonical_json(to_json(record)) == canonical_json(json_value)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": True}, "Outer.version"),
        ({"version": 2}, "Outer.version"),
        ({"look": "c"}, "Outer.look"),
        ({"look": []}, "Outer.look"),
        ({"flag": 1}, "Outer.flag"),
        ({"maybe": False}, "Outer.maybe"),
        ({"maybe": "1"}, "Outer.maybe"),
        ({"inner": None}, "Outer.inner"),
        ({"inner": {"name": "x"}}, "Outer.inner"),
        ({"inner": {"name": 1, "pair": [1, "y"]}}, "Outer.inner.name"),
        ({"inner": {"name": "x", "pair": [1]}}, "Outer.inner.pair"),
        ({"inner": {"name": "x", "pair": [1, 2]}}, r"Outer.inner.pair\[1\]"),
        ({"inner": {"name": "x", "pair": {"0": 1}}}, "Outer.inner.pair"),
        ({"many": {}}, "Outer.many"),
        ({"many": [None]}, r"Outer.many\[0\]"),
        ({"names": []}, "Outer.names"),
        ({"names": {"k": None}}, "Outer.names.k"),
        ({"free": []}, "Outer.free"),
        ({"extra": 1}, "Outer has the wrong keys"),
        ({"kind": "outer"}, "Outer has the wrong keys"),
    ],
)
def test_a_wrong_member_is_named(change: dict[str, Any], place: str) -> None:
    with pytest.raises(FormatError, match=place):
        from_json(Outer, {**to_json(OUTER), **change})


def test_every_member_must_be_there() -> None:
    for name in to_json(OUTER):
        value = to_json(OUTER)
        del value[name]
        with pytest.raises(FormatError, match="wrong keys"):
            from_json(Outer, value)


def test_a_type_that_no_record_has_is_an_error_even_for_null() -> None:
    for kind in (float, int | str, int | str | None, list[int]):
        for value in (None, 1, [1]):
            with pytest.raises(FormatError, match="no record type"):
                from_json(kind, value, "x")  # type: ignore[arg-type]


def test_only_an_optional_member_can_be_null() -> None:
    with pytest.raises(FormatError, match="wrong type"):
        from_json(tuple[int, NoneType], None, "x")  # type: ignore[arg-type]


def test_a_class_is_no_record() -> None:
    assert to_json(Inner) is Inner
