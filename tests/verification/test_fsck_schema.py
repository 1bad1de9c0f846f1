"""Each way to make a shape: what its check takes and refuses, and that the quick way agrees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from verification.errors import FormatError
from verification.fsck_json import MAX_INTEGER, write_canonical
from verification.fsck_schema import (
    Shape,
    boolean,
    choice,
    exactly,
    hex_float,
    integer,
    list_of,
    members,
    nullable,
    pair,
    pattern,
    span,
    strings,
    text,
)

NAME = pattern("[a-z]{1,3}|x+", "a name")
FLOAT, OTHER_FLOAT = (0.5).hex(), "0x1p-1"
POINT = members({"x": integer(1, 3), "y-": text})
OPEN = members({"x": integer()}, others=True)
FLOATS = members({"a": text, "lr": hex_float})
MANY = members({"x": integer(), "more": text})

# (shape, whether there is a quick way, fits, does not fit: (value, what, expected))
SHAPES: dict[str, tuple[Shape, bool, list[Any], list[tuple[Any, str, str]]]] = {
    "integer": (
        integer(2, 4),
        True,
        [2, 3, 4],
        [(value, "at does not fit", "an integer in [2, 4]") for value in (1, 5, True, "3", None, [3])],
    ),
    "any integer": (
        integer(),
        True,
        [0, MAX_INTEGER],
        [(value, "at does not fit", f"an integer in [0, {MAX_INTEGER}]") for value in (-1, False, True)],
    ),
    "pattern": (
        NAME,
        True,
        ["a", "abc", "xxxx"],
        [(value, "at does not fit", "a name") for value in ("", "abcd", "a\n", "ax ", 1, None, ["a"])],
    ),
    "choice of numbers": (
        choice(1, 2),
        True,
        [1, 2],
        [(value, "at does not fit", "1 or 2") for value in (0, True, "1", None)],
    ),
    "choice of words": (
        choice("a", "b"),
        True,
        ["a", "b"],
        [(value, "at does not fit", "'a' or 'b'") for value in ("c", "", 1, None)],
    ),
    "list": (
        list_of(integer(0, 9), 2),
        True,
        [[0, 9], [1, 1, 1]],
        [
            *((value, "at does not fit", "a list of at least 2") for value in ([], [1], {}, "ab", 2, None)),
            ([1, 10], "at[1] does not fit", "an integer in [0, 9]"),
            ([1, 2, "3"], "at[2] does not fit", "an integer in [0, 9]"),
        ],
    ),
    "list of any length": (
        list_of(text),
        True,
        [[], ["a"]],
        [(value, "at does not fit", "a list of at least 0") for value in ({}, "", 0, None)],
    ),
    "list of floats": (
        list_of(hex_float),
        True,
        [[], [FLOAT]],
        [([FLOAT, 1], "at[1] does not fit", "a hex float"), ([OTHER_FLOAT], "not the one form", "")],
    ),
    "pair": (
        pair(text, integer(1)),
        False,
        [["a", 1]],
        [
            *((v, "at does not fit", "a list of two") for v in ([], ["a"], ["a", 1, 1], "ab", 2, {}, None)),
            ({"0": "a", "1": 1}, "at does not fit", "a list of two"),
            ([1, 1], "at[0] does not fit", "text"),
            (["a", 0], "at[1] does not fit", f"an integer in [1, {MAX_INTEGER}]"),
        ],
    ),
    "two": (
        exactly(2, NAME),
        True,
        [["a", "xxxx"], ["a", "a"]],
        [
            *((v, "at does not fit", "a list of 2") for v in ([], ["a"], ["a", "b", "c"], "ab", {}, None)),
            (["a", 1], "at[1] does not fit", "a name"),
            (["", "a"], "at[0] does not fit", "a name"),
        ],
    ),
    "list of pairs": (
        list_of(pair(text, text)),
        False,
        [[["a", "b"]]],
        [([["a", 1]], "at[0][1] does not fit", "text")],
    ),
    "members": (
        POINT,
        True,
        [{"x": 1, "y-": ""}],
        [
            *((value, "at does not fit", "an object") for value in ([], "x", 1, None)),
            *((value, "at does not fit", "keys x, y-") for value in ({}, {"x": 1}, {"y-": "", "z": 1})),
            ({"x": 1, "y-": "", "z": 1}, "at does not fit", "keys x, y-"),
            ({"x": 4, "y-": ""}, "at.x does not fit", "an integer in [1, 3]"),
            ({"x": 1, "y-": 1}, "at.y- does not fit", "text"),
        ],
    ),
    "members and others": (
        OPEN,
        False,
        [{"x": 0}, {"x": 0, "z": None}],
        [
            *((value, "at does not fit", "an object") for value in ([], None)),
            *((value, "at does not fit", "keys x") for value in ({}, {"z": 1})),
            ({"x": "", "z": 1}, "at.x does not fit", f"an integer in [0, {MAX_INTEGER}]"),
        ],
    ),
    "members, one without a quick way": (
        members({"x": text, "y": strings}),
        False,
        [{"x": "", "y": {}}],
        [({"x": "", "y": 1}, "at.y does not fit", "an object of strings")],
    ),
    "members with a float": (
        FLOATS,
        True,
        [{"a": "", "lr": FLOAT}],
        [({"a": "", "lr": OTHER_FLOAT}, "not the one form", "")],
    ),
    "nullable": (
        nullable(integer(1, 2)),
        True,
        [None, 1, 2],
        [(value, "at does not fit", "an integer in [1, 2]") for value in (0, False, "")],
    ),
    "nullable float": (nullable(hex_float), True, [None, FLOAT], [(OTHER_FLOAT, "not the one form", "")]),
    "nullable pair": (
        nullable(pair(text, text)),
        False,
        [None, ["a", "b"]],
        [(["a"], "at does not fit", "a list of two")],
    ),
    "text": (text, True, ["", "a"], [(value, "at does not fit", "text") for value in (1, None, ["a"])]),
    "boolean": (
        boolean,
        True,
        [True, False],
        [(value, "at does not fit", "true or false") for value in (0, 1, "true", None)],
    ),
    "float": (
        hex_float,
        True,
        [FLOAT, "0x0.0p+0"],
        [
            *((value, "at does not fit", "a hex float") for value in (1, None)),
            *((value, "not a hex float", "") for value in ("", "one", "0x1p9999")),
            *((value, "not the one form", "") for value in (OTHER_FLOAT, "inf", "nan", "1")),
        ],
    ),
    "strings": (
        strings,
        False,
        [{}, {"a": "b"}],
        [
            (value, "at does not fit", "an object of strings")
            for value in ([], "a", 1, None, {"a": 1}, {"a": "b", "c": None})
        ],
    ),
    "span": (
        span,
        True,
        [[0, 1], [5, MAX_INTEGER]],
        [
            *((value, "at does not fit", "start < stop") for value in ([1, 1], [2, 1])),
            *((value, "at does not fit", "a list of two") for value in ([], [1], [1, 2, 3], "12", None)),
            ([-1, 1], "at[0] does not fit", f"an integer in [0, {MAX_INTEGER}]"),
            ([0, True], "at[1] does not fit", f"an integer in [0, {MAX_INTEGER}]"),
        ],
    ),
    "list of spans": (
        list_of(span, 1),
        True,
        [[[0, 1]]],
        [([[0, 1], [1, 1]], "at[1] does not fit", "start < stop")],
    ),
}


def quickly(shape: Shape, value: Any) -> bool:
    """Whether the quick way takes a value, given in canonical JSON, as it is."""
    try:
        found = msgspec.json.decode(write_canonical(value), type=shape.quick)
        if shape.rest is not None:
            shape.rest(found, "at")
    except (msgspec.ValidationError, FormatError):
        return False
    return bool(write_canonical(found) == write_canonical(value))


@pytest.mark.parametrize("name", SHAPES)
def test_what_fits(name: str) -> None:
    shape, quick, good, _ = SHAPES[name]
    assert (shape.quick is not None) == quick
    for value in good:
        shape(value, "at")
        assert not quick or quickly(shape, value)


@pytest.mark.parametrize("name", SHAPES)
def test_what_does_not_fit(name: str) -> None:
    shape, quick, _, bad = SHAPES[name]
    for value, what, expected in bad:
        with pytest.raises(FormatError) as caught:
            shape(value, "at")
        assert caught.value.what.startswith(what)
        assert not expected or caught.value.expected == expected
        assert not quick or not quickly(shape, value)


def test_what_msgspec_says_all_of_has_no_rest() -> None:
    plain = {"integer", "pattern", "list", "members", "nullable", "text", "boolean"}
    assert {name for name in plain if SHAPES[name][0].rest is not None} == set()
    partly = {"list of floats", "members with a float", "nullable float", "float", "span", "list of spans"}
    assert {name for name in partly if SHAPES[name][0].rest is None} == set()


def test_keys_that_are_missing_or_unknown_are_named() -> None:
    for value, got in (
        ({"more": "", "z": 1}, "missing ['x'], unknown ['z']"),
        ({"x": 1}, "missing ['more'], unknown []"),
        ({"more": "", "x": 1, "z": 1}, "missing [], unknown ['z']"),
    ):
        with pytest.raises(FormatError) as caught:
            MANY(value, "at")
        assert caught.value.got == got


def test_objects_that_msgspec_would_not_give_whole_have_no_quick_way() -> None:
    for table, others, quick in (
        ({"x": text}, False, True),
        ({"x": text}, True, False),
        ({"x": text, "y": strings}, False, False),
        ({"x": text, "y": pair(text, text)}, True, False),
    ):
        shape = members(table, others=others)
        assert (shape.quick is not None) == quick
        assert shape.rest is None
