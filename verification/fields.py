"""What fields of records have in common: their patterns, and the checks a record makes of itself.

Owns the protocol's version and the form of names, classes and digests in records. Does not own any record.
"""

from __future__ import annotations

import re
from typing import Literal

from verification.encoding import Json, digest_hex
from verification.errors import FormatError

PROTOCOL = 1
NAME = re.compile(r"[a-z0-9._-]{1,64}\Z")
CLASS = re.compile(r"[\x20-\x7e]{1,200}\Z")
HEX32 = re.compile(r"[0-9a-f]{64}\Z")


def require(condition: bool, what: str, got: object) -> None:
    """Raise FormatError unless `condition` holds."""
    if not condition:
        raise FormatError(what, got=got)


def require_digests(kind: Literal["sha256", "blake3"], *texts: str) -> None:
    """Raise FormatError unless every text is a digest of `kind`."""
    # What members say must be of the very form that any checker asks for: a record that is in the log
    # cannot be taken back, and one that is malformed there spoils the run for everybody.
    for text in texts:
        digest_hex(text)
        if not text.startswith(f"{kind}:"):
            raise FormatError("a digest is of the wrong kind", expected=f"{kind}:", got=text)


def require_counts(*numbers: int) -> None:
    """Raise FormatError for a negative number."""
    for number in numbers:
        require(number >= 0, "a number is negative", number)


def renamed(value: Json, old: str, new: str) -> Json:
    """`class` is a keyword of Python: the field is called numerics_class here and `class` on the wire."""
    if isinstance(value, dict):
        if new in value:
            raise FormatError("a record has an unknown key", expected=old, got=new)
        return {new if k == old else k: renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [renamed(item, old, new) for item in value]
    return value
