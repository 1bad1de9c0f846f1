"""metrics.jsonl, read as what it is: lines that a coordinator wrote, of no known honesty or form.

Owns which lines are taken and what of them: each field by its type and range, everything else left out. A
file may be torn, grow while it is read, or have been written by somebody unkind. Does not own who writes it
(monitor.py), and nothing of it is in the log: what it says of times is the coordinator's word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

PHASES = ("open", "commit", "reveal", "draw", "audit", "close")
MOST_LINE_BYTES = 1 << 20
MOST_FILE_BYTES = 256 << 20
MOST_NAMES = 10_000
_LONGEST_NAME = 64
_MOST = 1e15

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A machine of a cluster in one turn. Memory in bytes, processor in percent of one core or more."""

    alive: bool
    members: tuple[str, ...]
    memory_bytes: int | None
    cpu_percent: float | None


@dataclass(frozen=True)
class TurnTimes:
    """What one line says. Seconds by phase; `work_ms` from question to commitment, by contributor."""

    round: int
    attempt: int
    tokens: int | None
    round_tokens: int | None
    seconds: float | None
    phases: Mapping[str, float] = field(default_factory=dict)
    work_ms: Mapping[str, float] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float | None:
        """Accepted tokens a second of the turn, None where one of them is not known."""
        return self.round_tokens / self.seconds if self.seconds and self.round_tokens is not None else None


@dataclass(frozen=True)
class Metrics:
    """The lines of a file that could be read, the last for each turn, and how many could not."""

    turns: tuple[TurnTimes, ...]
    bad_lines: int


def read_metrics(path: Path) -> Metrics | None:
    """The file, or None where there is none that can be read. Raises nothing."""
    try:
        with path.open("rb") as file:
            lines = list(_lines(file.readline))
    except OSError:
        return None
    turns: dict[tuple[int, int], TurnTimes] = {}
    bad = 0
    for line in lines:
        turn = parse_line(line) if line is not None else None
        if turn is None:
            bad += 1
        else:  # a turn that a restart told again counts once
            turns[turn.round, turn.attempt] = turn
    return Metrics(tuple(turns[key] for key in sorted(turns)), bad)


def _lines(readline: Callable[[int], bytes]) -> Iterator[bytes | None]:
    """Each line, None in place of one that is too long; empty ones are left out."""
    total = 0
    while (line := readline(MOST_LINE_BYTES)) and total < MOST_FILE_BYTES:
        total += len(line)
        if line.endswith(b"\n") or len(line) < MOST_LINE_BYTES:
            if line.strip():
                yield line
            continue
        while (rest := readline(MOST_LINE_BYTES)) and not rest.endswith(b"\n"):
            total += len(rest)
        yield None


def parse_line(line: bytes) -> TurnTimes | None:
    """A line as far as it can be used; None when it is no turn's. Raises nothing."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    round_, attempt = _count(value.get("round")), _count(value.get("attempt", 0))
    if not round_ or attempt is None:
        return None
    phases = {k: v for k, v in _named(value.get("phases"), _number).items() if k in PHASES}
    return TurnTimes(
        round=round_,
        attempt=attempt,
        tokens=_count(value.get("tokens")),
        round_tokens=_count(value.get("round_tokens")),
        seconds=_number(value.get("seconds")),
        phases=phases,
        work_ms=_named(value.get("work_ms"), _number),
        late=_names(value.get("late")),
        nodes=_named(value.get("nodes"), _node),
    )


def _number(value: Any) -> float | None:
    """A finite number from 0 up, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value[:MOST_NAMES] if _name(name)) if isinstance(value, list) else ()


def _named(value: Any, read: Callable[[Any], T | None]) -> dict[str, T]:
    """Those of an object's members that have a name and a value that `read` takes."""
    if not isinstance(value, dict) or len(value) > MOST_NAMES:
        return {}
    found = {name: read(item) for name, item in value.items() if _name(name)}
    return {name: item for name, item in found.items() if item is not None}


def _node(value: Any) -> Node | None:
    if not isinstance(value, dict):
        return None
    return Node(
        alive=value.get("alive") is True,
        members=_names(value.get("members")),
        memory_bytes=_count(value.get("memory_bytes")),
        cpu_percent=_number(value.get("cpu_percent")),
    )
