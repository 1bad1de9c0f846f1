"""What auditors by tolerance are shown of steps, and when: of none its end before they told what they got.

Owns the bookkeeping, from the calls alone; it reads opened traces by their bytes (section 7 of
docs/protocol.md, "Segments"). Does not own who is honest, or the calls (network.py).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

_START = len(b"barnraise-trace-v1\n")
Place = tuple[str, int, int]  # auditor, turn, slot


def opened_in(trace: bytes) -> set[int]:
    """Which leaves are opened in the bytes of a trace."""
    (count,) = struct.unpack_from("<I", trace, _START)
    at, found = _START + 4 + 32 * count, set()
    while at < len(trace):
        index, losses = struct.unpack_from("<II", trace, at)
        found.add(index)
        at += 8 + 8 * losses
        for _ in range(2):
            at += 8 + struct.unpack_from("<Q", trace, at)[0]
    return found


def drawn(envelope: bytes, slot: int) -> list[int]:
    """The segments of a slot that a signed draw names."""
    told = json.loads(base64.b64decode(json.loads(envelope)["payload"]))["predicate"]["drawn"]
    found: list[int] = next(item["segments"] for item in told if item["slot"] == slot)
    return found


def of_wave(segments: Sequence[int], wave: int) -> set[int]:
    """Those that stand `wave` places behind the first of their unbroken run."""
    run = {s for s in segments if {s - i for i in range(wave + 1)} <= set(segments)}
    return {s for s in run if s - wave - 1 not in segments}


class Shown:
    """By auditor, turn and slot: the leaves that it was shown, and the steps that it has `told` of."""

    def __init__(self) -> None:
        self._leaves: dict[Place, set[int]] = {}
        self.told: dict[Place, set[int]] = {}

    def tell(self, name: str, turn: int, args: tuple[Any, ...]) -> list[str]:
        """A call of `tell`, with its arguments: what is wrong with it."""
        slot, segments, wave, trace = args[1], drawn(args[2], args[1]), args[6], args[7]
        leaves, told = (by.setdefault((name, turn, slot), set()) for by in (self._leaves, self.told))
        leaves |= opened_in(trace)
        of_these = of_wave(segments, wave)
        told |= of_these
        return [
            f"{name} was shown where step {segment} of slot {slot} in turn {turn} ends before it told"
            for segment in sorted(of_these & leaves)
        ]

    def audit(self, name: str, turn: int, args: tuple[Any, ...]) -> None:
        """A call of `audit`."""
        if args[7] is not None:
            self._leaves.setdefault((name, turn, args[1]), set()).update(opened_in(args[7]))
