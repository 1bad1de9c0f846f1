"""Canonical JSON and the hashes over it, read strictly (protocol, section 1).

Owns bytes in, values out. There are two ways to the same answer: a strict one that looks at every key, and a
quick one, in which C code alone sees the objects, where the bytes show that no key is unusual. Whatever the
quick way does not take goes the strict one, so what is refused, and for what reason, is the strict one's to
say.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

import msgspec

from verification.errors import FormatError

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32

# A key with a character that a key may not have. Where a quote is escaped it does not say. A match starts at
# a quote and is sought no further than the next, so hostile bytes take time in proportion to their length.
_UNUSUAL_KEY = re.compile(rb'"[ -!#-\[\]-~]*+[^ -!#-\[\]-~"][^"]*+":')


def _refuse(text: str) -> NoReturn:
    raise FormatError("a number is not an integer", got=text[:40])


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if not all(" " <= c <= "~" for c in key):
            raise FormatError("a key is not printable ASCII", got=ascii(key))
    if len(dict(pairs)) != len(pairs):
        raise FormatError("an object has a key twice")
    return dict(pairs)


def _integer(text: str) -> int:
    value = int(text) if len(text) < 20 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise FormatError("an integer is out of range", expected="at most 2^53 - 1", got=text[:40])
    return value


_encode = msgspec.json.Encoder(order="sorted").encode
# Numbers are looked at one by one, and only they: looking at objects too is what makes the strict way slow.
_decode = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse, parse_int=_integer).decode


def write_canonical(value: Any) -> bytes:
    """Canonical JSON of a value that holds no floats (section 1)."""
    return _encode(value)


def _check_depth(value: Any) -> None:
    """No value lies deeper than `MAX_DEPTH` levels below `value`; goes level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        lists = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [inner for inside in lists for inner in inside]
        if not level:
            return
    raise FormatError("JSON is nested too deeply", expected=f"at most {MAX_DEPTH} levels below the top")


def parse_strictly(data: bytes) -> Any:
    """What `parse_canonical` gives or raises, the strict way alone."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members,
            parse_float=_refuse,
            parse_constant=_refuse,
            parse_int=_integer,
        )
        _check_depth(value)
        again = write_canonical(value)
    except RecursionError:
        raise FormatError("JSON is nested too deeply") from None
    except ValueError as error:
        raise FormatError("not JSON", got=str(error)) from None
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), len(again))
        raise FormatError("JSON is not canonical", got=f"a difference at byte {at}")
    return value


def _has_plain_keys(data: bytes) -> bool:
    """Whether all keys are surely printable ASCII without escapes, if this is canonical JSON.

    So of the rules on keys only order and repetition are left, which show when the value is written again.
    """
    if data.isascii() and b"\\" not in data and b"\x7f" not in data:
        return True
    return b'\\"' not in data and _UNUSUAL_KEY.search(data) is None


def parse_canonical(data: bytes) -> Any:
    """The value whose canonical JSON is exactly `data`; at most `MAX_DEPTH` levels below the top."""
    if _has_plain_keys(data):
        try:
            value = _decode(data.decode("utf-8"))
            if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
                _check_depth(value)
            if write_canonical(value) == data:
                return value
        except (FormatError, RecursionError, ValueError):
            pass  # for the strict way to name
    return parse_strictly(data)


def sha256_text(data: bytes) -> str:
    """`sha256:` digest text."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hash_object(domain: str, value: Any) -> str:
    """The protocol's hash of a value within a domain (section 1)."""
    return sha256_text(domain.encode() + b"\0" + write_canonical(value))
