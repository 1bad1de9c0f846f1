"""The quick way of reading canonical JSON takes and refuses exactly what the strict one does."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verification.errors import FormatError
from verification.fsck_json import parse_canonical, parse_strictly, write_canonical

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=True)
    | st.text()
    | st.text('[]{},:"\\1e.5é—\n\x7f \t', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('az~ :"\\\x7fé\n1e,', max_size=4), inner, max_size=4)
    ),
)
PIECES = st.sampled_from(
    [b'"', b"\\", b'\\"', b'":', b",", b"[", b"]", b"{", b"}", b"1.5", b"1e5", b"-0", b"00", b"NaN", b" ",
     b"\x7f", b"\xc3\xa9", b"\xff", b'"a":1,', b"9007199254740992", b"9007199254740991", b"\\u0041",
     b"\\ud800", b"\xed\xa0\x80", b"null", b"-1", b"1E1", b'{"a":', b"\n", b'"\\\\":1']
)  # fmt: skip


def both(data: bytes) -> tuple[Any, Any]:
    """What the two ways say: the value, or the words of the refusal."""
    answers: list[Any] = []
    for way in (parse_canonical, parse_strictly):
        try:
            answers.append(("value", json.dumps(way(data))))
        except FormatError as error:
            answers.append(("refused", str(error)))
    return answers[0], answers[1]


@settings(max_examples=400, deadline=None)
@given(VALUES)
@example({"a": 1.5})
@example([1e16])
@example({"é": 1})
@example({'a"': 1})
@example({"\\": 1})
@example({"a\x7f": "—"})
@example({"a": "—", "b": 2**53})
@example([2**53 - 1, -(2**53) + 1, 2**53])
@example(1.5)
@example([[[]]] * 40)
def test_both_ways_agree_on_what_could_be_canonical(value: Any) -> None:
    try:
        data = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return
    quick, strict = both(data)
    assert quick == strict


@settings(max_examples=400, deadline=None)
@given(VALUES, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5), PIECES), min_size=1, max_size=4))
def test_both_ways_agree_on_mutated_bytes(value: Any, edits: list[tuple[int, int, bytes]]) -> None:
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    for at, length, piece in edits:
        at %= len(data) + 1  # noqa: PLW2901
        data = data[:at] + piece + data[at + length :]
    quick, strict = both(data)
    assert quick == strict


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=12).map(b"".join)))
def test_both_ways_agree_on_any_bytes(data: bytes) -> None:
    for wrapped in (data, b"[" + data + b"]", b'{"a":' + data + b"}"):
        quick, strict = both(wrapped)
        assert quick == strict


REFUSED = {
    b'{"a":1.5}': "a number is not an integer",
    b"[1e5]": "a number is not an integer",
    b'{"a":9007199254740992}': "an integer is out of range",
    b'{"a":1,"a":1}': "an object has a key twice",
    b'{"b":1,"a":1}': "JSON is not canonical",
    b'{"a": 1}': "JSON is not canonical",
    b'{"a":-0}': "JSON is not canonical",
    b'["\\u0041"]': "JSON is not canonical",
    '{"é":1}'.encode(): "a key is not printable ASCII",
    b'{"a\x7f":1}': "a key is not printable ASCII",
    b'{"\\n":1}': "a key is not printable ASCII",
    '{"é\\"":1}'.encode(): "a key is not printable ASCII",
    b'{"x":{"\\n":"y"},"z":"\\n"}': "a key is not printable ASCII",
    b'["\\ud800"]': "not JSON",
    b"[NaN]": "a number is not an integer",
    b"\xff": "not JSON",
    b"[" * 34 + b"]" * 34: "JSON is nested too deeply",
    b"[" * 60_000: "JSON is nested too deeply",
}


@pytest.mark.parametrize("data", REFUSED, ids=lambda d: repr(d[:20]))
def test_refusals(data: bytes) -> None:
    for way in (parse_canonical, parse_strictly):
        with pytest.raises(FormatError, match=REFUSED[data]):
            way(data)


def test_depth_is_counted_from_the_top() -> None:
    for brackets in (b"[]", b"{}"):
        deepest = b"[" * 32 + brackets + b"]" * 32
        assert write_canonical(parse_canonical(deepest)) == deepest
        with pytest.raises(FormatError, match="nested too deeply"):
            parse_canonical(b"[" + deepest + b"]")
    wide = b"[" + b",".join([b"[]"] * 100) + b"]"
    assert len(parse_canonical(wide)) == 100


@pytest.mark.parametrize("data", [b'["' + b"\xc3\xa9" * 200_000, b'["\x7f' + b'",""' * 100_000])
def test_hostile_bytes_take_no_longer_than_others(data: bytes) -> None:
    """Bytes with unusual characters, but no key, in a file of the greatest length that is read."""
    before = time.process_time()
    with pytest.raises(FormatError, match="not JSON"):
        parse_canonical(data)
    assert time.process_time() - before < 5


@pytest.mark.parametrize("value", [0, -5, "", "é", '"', "a:", "\\", "\x7f", None, True])
def test_a_value_alone_is_canonical_json_too(value: Any) -> None:
    data = write_canonical(value)
    assert parse_canonical(data) == parse_strictly(data) == value
