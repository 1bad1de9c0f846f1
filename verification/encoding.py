"""Canonical bytes: JSON of records, digests, hex floats, and dataclasses to and from JSON.

Owns section 1 of docs/protocol.md except keys and arrays, and strict base64. Does not own what any
record means.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from blake3 import blake3

from verification.errors import FormatError

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32
_DIGEST = re.compile(r"(?:sha256|blake3):[0-9a-f]{64}\Z")
_ASCII_KEY = re.compile(r"[\x20-\x7e]*\Z")

Json = Any
R = TypeVar("R")


def canonical_json(value: Json) -> bytes:
    """RFC 8785 restricted to integers: sorted keys, no white space, UTF-8.

    Raises FormatError for floats, integers beyond 2^53 - 1, lone surrogates, keys that are not ASCII.
    """
    _check_json(value, 0)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _check_json(value: Json, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FormatError("JSON is nested too deeply", expected=f"at most {MAX_DEPTH} levels below the top")
    if value is None:
        return
    if isinstance(value, int):  # true and false too
        if abs(value) > MAX_INTEGER:
            raise FormatError("an integer is out of range", expected="|n| <= 2^53 - 1", got=value)
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise FormatError("a string holds a lone surrogate", got=ascii(value)) from None
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _ASCII_KEY.match(key):
                raise FormatError("an object key is not printable ASCII", got=ascii(key))
            _check_json(item, depth + 1)
    else:
        raise FormatError(
            "a value has no canonical JSON",
            expected="integers, text, lists, objects",
            got=type(value).__name__,
        )


def parse_canonical(data: bytes, *, max_bytes: int = 1 << 20) -> Json:
    """Parse bytes that must already be canonical JSON. Raises FormatError for anything else."""
    if len(data) > max_bytes:
        raise FormatError("JSON is too long", expected=f"at most {max_bytes} bytes", got=f"{len(data)} bytes")
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_bounded_int,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError("not JSON", got=str(error)) from None
    if canonical_json(value) != data:
        raise FormatError("JSON is not in canonical form", expected="the bytes that writing it again gives")
    return value


def _refuse_number(text: str) -> Json:
    raise FormatError("JSON holds a number that is not an integer", got=text[:40])


def _bounded_int(text: str) -> int:
    if len(text) > 17:
        raise FormatError("an integer is out of range", expected="|n| <= 2^53 - 1", got=text[:40])
    return int(text)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise FormatError("an object names a key twice", got=[key for key, _ in pairs][:8])
    return value


def sha256_digest(data: bytes) -> str:
    """`sha256:` text digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blake3_digest(data: bytes | bytearray | memoryview) -> str:
    """`blake3:` text digest."""
    return "blake3:" + blake3(data).hexdigest()


def hash_object(domain: str, value: Json) -> str:
    """SHA-256 of domain, a zero byte and the canonical JSON (docs/protocol.md, section 1)."""
    return sha256_digest(domain.encode("utf-8") + b"\0" + canonical_json(value))


def digest_hex(digest: str) -> str:
    """The 64 hex digits of a text digest. Raises FormatError when it is not one."""
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise FormatError(
            "not a digest", expected="sha256: or blake3: and 64 hex digits", got=repr(digest)[:80]
        )
    return digest.split(":", 1)[1]


def parse_base64(text: Json, length: int | None = None) -> bytes:
    """Bytes of padded standard base64, optionally of one length. Raises FormatError for any other text.

    Python's strict decoder ignores the spare bits before the padding, so the text is written again.
    """
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise FormatError("not canonical base64", got=repr(text)[:60])
    if length is not None and len(data) != length:
        raise FormatError("base64 of the wrong length", expected=f"{length} bytes", got=f"{len(data)} bytes")
    return data


def hex_float(value: float) -> str:
    """A float as exact hexadecimal text. Raises FormatError for NaN and infinities."""
    if not math.isfinite(value):
        raise FormatError("a real number must be finite", got=value)
    return float(value).hex()


def parse_hex_float(text: str) -> float:
    """The float behind `hex_float` text; FormatError unless printing it again gives the same text."""
    try:
        value = float.fromhex(text)
    except (ValueError, OverflowError, TypeError):
        raise FormatError("not a hexadecimal float", got=repr(text)[:60]) from None
    if hex_float(value) != text:
        raise FormatError("a hexadecimal float is not canonical", expected=hex_float(value), got=text[:60])
    return value


def to_json(record: object) -> Json:
    """A frozen dataclass (nested, with tuples) as plain JSON values."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, (list, tuple)):
        return [to_json(item) for item in record]
    if isinstance(record, Mapping):
        return {key: to_json(item) for key, item in record.items()}
    return record


def from_json(kind: type[R], value: Json, where: str = "") -> R:
    """Build the frozen dataclass `kind` from JSON values; every field must be there and no key besides.

    Raises FormatError naming the place. Supports int, str, bool, Literal, X | None, tuple[X, ...],
    fixed tuples, Mapping[str, X], plain `dict` (taken as it is) and nested dataclasses.
    """
    return cast("R", _build(kind, value, where or getattr(kind, "__name__", str(kind))))


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """Types of the fields alone: a class variable of a record is not part of its JSON."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _build(kind: Any, value: Json, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        fields = _field_types(cast("type", kind))
        if not isinstance(value, dict) or set(value) != set(fields):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise FormatError(f"{where} has the wrong keys", expected=sorted(fields), got=got)
        return cast("type", kind)(**{n: _build(t, value[n], f"{where}.{n}") for n, t in fields.items()})
    if kind in (int, str, bool, dict):
        if type(value) is not kind:
            raise FormatError(f"{where} has the wrong type", expected=kind.__name__, got=repr(value)[:80])
        return value
    if origin is typing.Literal:
        if value not in args or type(value) is not type(args[args.index(value)]):
            raise FormatError(f"{where} has an unknown value", expected=list(args), got=repr(value)[:80])
        return value
    if origin in (typing.Union, types.UnionType) and len(args) == 2 and type(None) in args:
        return None if value is None else _build(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise FormatError(f"{where} has the wrong type", expected="list", got=repr(value)[:80])
        if Ellipsis in args:
            return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise FormatError(f"{where} has the wrong length", expected=len(args), got=len(value))
        pairs = enumerate(zip(args, value, strict=True))
        return tuple(_build(a, item, f"{where}[{i}]") for i, (a, item) in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise FormatError(f"{where} has the wrong type", expected="object", got=repr(value)[:80])
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    raise FormatError(f"{where} has no record type", got=str(kind))
