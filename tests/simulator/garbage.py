"""Bytes and other things that no member should send.

Owns their many kinds. Does not own who sends them.
"""

from __future__ import annotations

import base64
import random
from typing import Any

from verification.envelope import seal
from verification.keys import PrivateKey


class Odd(bytes):
    """Bytes of a type of its own."""


def garbage(dice: random.Random, true: bytes, key: PrivateKey) -> Any:
    """Something instead of `true`, which is what an honest member would have sent."""
    at = dice.randrange(max(1, len(true)))
    kind = dice.randrange(20)
    if kind == 0:
        raise dice.choice(
            [ValueError("x" * 9_999), RecursionError(), KeyError(b"\xff"), OSError(5, "\ud800")]
        )
    made: list[Any] = [
        b"",
        dice.randbytes(dice.randrange(1, 300)),
        true[:at],
        true[:at] + bytes([true[at] ^ (1 << dice.randrange(8))]) + true[at + 1 :] if true else b"\0",
        true + b"\n",
        true * 40,
        None,
        dice.randrange(-5, 5),
        true.decode("latin-1"),
        [true],
        {"value": true},
        Odd(true),
        memoryview(true + b" "),
        b"[" * 50_000,
        b'{"payload":"","payloadType":"","signatures":[]}',
        _sealed(dice, "barnraise:surprise:v1", {"protocol": 1}, key),
        _sealed(dice, "barnraise:reveal:v1", {"protocol": 2, "run": "sha256:" + "0" * 64}, key),
        _sealed(dice, "barnraise:commitment:v1", _deep(30), key),
        b'{"payload":"' + base64.b64encode(dice.randbytes(40)) + b'","payloadType":"x","signatures":[{}]}',
    ]
    return made[kind - 1]


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


def _sealed(dice: random.Random, kind: str, predicate: Any, key: PrivateKey) -> bytes:
    return seal(kind, predicate, "run", dice.randbytes(32).hex(), key)
