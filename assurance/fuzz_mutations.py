"""Inputs near sound ones: bytes, text and JSON changed by dice, for fuzzing.py.

Owns the changes. The same dice give the same inputs. Does not own what is done with them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from assurance.fuzz_targets import Target
from verification.errors import BarnraiseError

LONGEST = 1 << 16  # bytes of a mutated input, but for those that are long on purpose


class Raw(str):
    """Text that goes into JSON as it is."""

    __slots__ = ()


_NUMBERS = (
    *(0, -1, 1, 2, 255, 256, 65535, 65536, 2**31, 2**32),
    *(2**53 - 1, 2**53, -(2**53), 2**63, 2**64, 10**30),
)
_ODD: tuple[Any, ...] = (
    *_NUMBERS,
    *(None, True, False, "", "\x00", "\ud800", "é", "a" * 5000, "../../etc/passwd", "sha256:", "0x1p+0"),
    *([], {}, [[]], [None], {"": 0}, {"__class__": 1}, {"protocol": 1}, [0, 0], [5, 3]),
    *(Raw("1.0"), Raw("1e400"), Raw("NaN"), Raw("-Infinity"), Raw("-0"), Raw("1" * 5000), Raw('"\\ud800"')),
    *(Raw("0x10"), Raw('"\\u0041"'), Raw("nul"), Raw("01"), Raw("'a'"), Raw("")),
)
_NAMES = ("zz", "", "é", "\n", "class", "numerics_class", "a" * 300)


def deep(levels: int, *, objects: bool = False) -> bytes:
    """JSON nested so many levels deep."""
    return b'{"a":' * levels + b"1" + b"}" * levels if objects else b"[" * levels + b"]" * levels


class JsonSeed:
    """A sound JSON value, its text, and the paths to all its parts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.paths: list[tuple[Any, ...]] = []
        waiting: list[tuple[tuple[Any, ...], Any]] = [((0,), json.loads(data))]
        while waiting:
            path, value = waiting.pop()
            self.paths.append(path)
            inside = value if isinstance(value, dict) else dict(enumerate(value)) if _is_list(value) else {}
            waiting += [((*path, key), item) for key, item in inside.items()]

    def mutated(self, dice: random.Random) -> bytes:
        """JSON bytes near it: parts replaced, dropped, added, repeated or moved; mostly canonical."""
        top = [json.loads(self.data)]
        raw: list[str] = []
        for _ in range(dice.choice((1, 1, 1, 1, 2, 3))):
            with suppress(LookupError, TypeError):  # an earlier change took that part away
                _change(*_inside(top, dice.choice(self.paths)), top, self.paths, raw, dice)
        value = top[0] if top else None
        ordered = dice.random() < 0.96
        compact = (",", ":") if dice.random() < 0.98 else (", ", ":")
        text = json.dumps(value, ensure_ascii=False, sort_keys=ordered, separators=compact)
        for number, token in enumerate(raw):
            text = text.replace(f'"\\u0001{number}"', token)
        if dice.random() < 0.02 and text[:1] == "{" and len(text) > 2:
            text = text[:-1] + "," + text[1 : text.find(",") if "," in text else -1] + "}"  # a key twice
        return text.encode("utf-8", "surrogatepass")


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _inside(top: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    """The container and the key at the end of a path. LookupError or TypeError when it is gone."""
    for key in path[:-1]:
        top = top[key]
    top[path[-1]]
    return top, path[-1]


def _change(
    at: Any, key: Any, top: Any, paths: list[tuple[Any, ...]], raw: list[str], dice: random.Random
) -> None:
    """One change of the part `at[key]`."""

    def put(value: Any) -> None:
        if isinstance(value, Raw):
            raw.append(str(value))
            value = f"\u0001{len(raw) - 1}"
        at[key] = value

    how, part = dice.random(), at[key]
    if how < 0.4:
        odd = dice.choice(_ODD)
        put(json.loads(json.dumps(odd)) if isinstance(odd, (list, dict)) else odd)  # changed again later
    elif how < 0.5:
        other, other_key = _inside(top, dice.choice(paths))
        put(json.loads(json.dumps(other[other_key])))
    elif how < 0.58:
        del at[key]
    elif how < 0.62:
        put(Raw(deep(dice.choice((5, 31, 32, 33, 400)), objects=dice.random() < 0.5).decode()))
    elif isinstance(part, list):
        put(part * dice.choice((0, 2, 3, 20)) if dice.random() < 0.7 else [part])
    elif isinstance(part, dict):
        part[dice.choice(_NAMES)] = 1
    elif isinstance(part, str) and part:
        put(mutate_text(part, dice))
    elif type(part) is int:
        put(part + dice.choice((-2, -1, 1, 2, 2**31, -(2**31))))
    else:
        put([part])


def mutate_text(text: str, dice: random.Random) -> str:
    """Text near a text."""
    at = dice.randrange(len(text))
    letter = dice.choice(
        (" ", "0", "a", "A", "\n", "\x00", "é", "—", "=", "+", ":", "/", chr(dice.randrange(128)))
    )
    return dice.choice(
        (
            text[:at] + letter + text[at + 1 :],
            text[:at] + letter + text[at:],
            text[:at] + text[at + 1 :],
            text[:at],
        )
    )


def mutate_bytes(seed: bytes, other: bytes, dice: random.Random) -> bytes:
    """Bytes near a seed: bits, bytes, numbers, lengths, cuts, repeats, splices with another seed."""
    data = bytearray(seed)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        at = dice.randrange(len(data) + 1)
        span = min(len(data) - at, dice.choice((1, 1, 2, 4, 8, 32, 200)))
        how = dice.randrange(10)
        if how == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif how == 1 and at < len(data):
            data[at] = dice.randrange(256)
        elif how == 2:
            width = dice.choice((1, 2, 4, 8))
            number = dice.choice(_NUMBERS) % (1 << 8 * width)
            data[at : at + width] = number.to_bytes(width, dice.choice(("little", "big")))
        elif how == 3:
            del data[at : at + span]
        elif how == 4:
            data[at:at] = data[at : at + span] * dice.choice((1, 2, 20))
        elif how == 5:
            data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 100)))
        elif how == 6:
            del data[at:]
        elif how == 7:
            data += dice.choice((b"\0", b"\n", b" ", b"}", dice.randbytes(3), bytes(data[:50])))
        elif how == 8 and other:
            cut = dice.randrange(len(other))
            data[at : at + span] = other[cut : cut + dice.choice((1, 8, 64, len(other)))]
        elif how == 9 and len(data) > 1:
            back = dice.randrange(len(data))
            data[at : at + span] = data[back : back + span]
    return bytes(data[:LONGEST])


def inputs(target: Target, dice: random.Random) -> Iterator[bytes]:
    """Inputs for a target, without end: first a few that every parser must stand, then mutations."""
    for data in _inputs(target, dice):
        yield data[: target.longest]


def _inputs(target: Target, dice: random.Random) -> Iterator[bytes]:
    wrap = target.wrap or (lambda data: data)
    yield from (b"", b"\0", b"\xff" * 100, b"\n" * 3, b"0" * LONGEST, os.fsencode("é—"))
    for data in (deep(100_000), deep(100_000, objects=True), b"[" * 200_000, b"1" * 1_000_000, b'"' * 70_000):
        yield data
        with suppress(BarnraiseError):
            yield wrap(data)
    values = [JsonSeed(seed) for seed in target.seeds] if target.json else []
    while True:
        number = dice.randrange(len(target.seeds))
        way = dice.random()
        if values and way < 0.7:
            data = values[number].mutated(dice)
        else:
            data = mutate_bytes(target.seeds[number], dice.choice(target.seeds), dice)
        if target.wrap and dice.random() < 0.8:
            with suppress(BarnraiseError):
                data = target.wrap(data)
        elif target.wrap:
            data = mutate_bytes(target.wrap(target.seeds[number]), data, dice)
        yield data
