"""Shapes: what a value of a record must be, said twice.

Owns the ways to make a shape. As a check it names what is wrong; as a type for msgspec, C code reads most
records in a third of the time. What records hold is in `fsck_shapes`, when which way is taken in
`fsck_envelope`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from verification.errors import FormatError
from verification.fsck_findings import shown
from verification.fsck_formats import parse_hex_float
from verification.fsck_json import MAX_INTEGER

At = str | tuple[Any, str | int]
"""A place in a record: its name, or the place it is in and a key or a number there."""
Check = Callable[[Any, At], None]
"""Takes a value and its place in the record; raises FormatError when the value does not fit."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value must be.

    `check` says all of it. `quick` says it as a type for msgspec, but for what `rest` checks, if anything;
    None where there is no such type. Keys that a `quick` object does not have are passed over.
    """

    check: Check
    quick: Any = None
    rest: Check | None = None

    def __call__(self, value: Any, at: At) -> None:
        """Raise FormatError when the value does not fit."""
        self.check(value, at)


def _named(at: At) -> str:
    if isinstance(at, str):
        return at
    inside, key = at
    return f"{_named(inside)}[{key}]" if isinstance(key, int) else f"{_named(inside)}.{key}"


def wrong(at: At, expected: str, value: object) -> FormatError:
    """The error for a value that does not fit at its place."""
    return FormatError(f"{_named(at)} does not fit", expected=expected, got=shown(value))


def integer(low: int = 0, high: int = MAX_INTEGER) -> Shape:
    """An integer in [low, high]; true and false are none."""

    def check(value: Any, at: At) -> None:
        if type(value) is not int or not low <= value <= high:
            raise wrong(at, f"an integer in [{low}, {high}]", value)

    return Shape(check, Annotated[int, Meta(ge=low, le=high)])


def pattern(expression: str, named: str) -> Shape:
    """Text that matches as a whole."""
    fits = re.compile(expression).fullmatch

    def check(value: Any, at: At) -> None:
        if not isinstance(value, str) or not fits(value):
            raise wrong(at, named, value)

    return Shape(check, Annotated[str, Meta(pattern=rf"\A(?:{expression})\Z")])


def choice(*options: object) -> Shape:
    """One of a few values, of the same type."""

    def check(value: Any, at: At) -> None:
        if not any(type(value) is type(option) and value == option for option in options):
            raise wrong(at, " or ".join(map(repr, options)), value)

    return Shape(check, Literal[options])


def list_of(shape: Shape, least: int = 0) -> Shape:
    """A list whose every element fits."""

    def check(value: Any, at: At) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise wrong(at, f"a list of at least {least}", value)
        for i, element in enumerate(value):
            shape.check(element, (at, i))

    rest = shape.rest

    def check_rest(value: Any, at: At) -> None:
        if rest is not None:
            for i, element in enumerate(value):
                rest(element, (at, i))

    quick = None if shape.quick is None else Annotated[list[shape.quick], Meta(min_length=least)]  # type: ignore[name-defined]
    return Shape(check, quick, check_rest if rest else None)


def pair(first: Shape, second: Shape) -> Shape:
    """A list of exactly two."""

    def check(value: Any, at: At) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise wrong(at, "a list of two", value)
        first.check(value[0], (at, 0))
        second.check(value[1], (at, 1))

    return Shape(check)


def exactly(count: int, shape: Shape) -> Shape:
    """A list of exactly so many of one shape, all of which its `quick` says."""

    def check(value: Any, at: At) -> None:
        if not isinstance(value, list) or len(value) != count:
            raise wrong(at, f"a list of {count}", value)
        for i, element in enumerate(value):
            shape.check(element, (at, i))

    quick = Annotated[list[shape.quick], Meta(min_length=count, max_length=count)]  # type: ignore[name-defined]
    return Shape(check, quick)


def members(table: Mapping[str, Shape], *, others: bool = False) -> Shape:
    """An object with exactly these keys (or, with `others`, at least these)."""

    keys = frozenset(table)
    checks = tuple((key, shape.check) for key, shape in table.items())
    rests = tuple((key, shape.rest) for key, shape in table.items() if shape.rest is not None)

    def check(value: Any, at: At) -> None:
        if not isinstance(value, dict):
            raise wrong(at, "an object", value)
        if keys != value.keys():
            missing = sorted(keys - value.keys())
            extra = [] if others else sorted(value.keys() - keys)
            if missing or extra:
                raise wrong(at, f"keys {', '.join(sorted(table))}", f"missing {missing}, unknown {extra}")
        for key, check_member in checks:
            check_member(value[key], (at, key))

    def check_rest(value: Any, at: At) -> None:
        for key, rest in rests:
            rest(value[key], (at, key))

    types = {key: shape.quick for key, shape in table.items()}
    if others or None in types.values():
        return Shape(check)
    # A functional TypedDict, whose keys may be any text.
    return Shape(check, TypedDict("Members", types), check_rest if rests else None)  # type: ignore[operator]


def nullable(shape: Shape) -> Shape:
    """null, or what fits."""

    return Shape(
        _if_not_null(shape.check),
        None if shape.quick is None else shape.quick | None,
        None if shape.rest is None else _if_not_null(shape.rest),
    )


def _if_not_null(check: Check) -> Check:
    def check_present(value: Any, at: At) -> None:
        if value is not None:
            check(value, at)

    return check_present


def _text(value: Any, at: At) -> None:
    if not isinstance(value, str):
        raise wrong(at, "text", value)


def _boolean(value: Any, at: At) -> None:
    if not isinstance(value, bool):
        raise wrong(at, "true or false", value)


def _hex_float(value: Any, at: At) -> None:
    if not isinstance(value, str):
        raise wrong(at, "a hex float", value)
    parse_hex_float(value)


def _strings(value: Any, at: At) -> None:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise wrong(at, "an object of strings", value)


def _span(value: Any, at: At) -> None:
    _TWO_NUMBERS(value, at)
    _ascending(value, at)


def _ascending(value: Any, at: At) -> None:
    if value[0] >= value[1]:
        raise wrong(at, "start < stop", value)


text = Shape(_text, str)
boolean = Shape(_boolean, bool)
hex_float = Shape(_hex_float, str, _hex_float)
strings = Shape(_strings)
_TWO_NUMBERS = pair(integer(), integer())
span = Shape(
    _span,
    Annotated[list[Annotated[int, Meta(ge=0, le=MAX_INTEGER)]], Meta(min_length=2, max_length=2)],
    _ascending,
)
"""A range `[start, stop]` of at least one position."""
