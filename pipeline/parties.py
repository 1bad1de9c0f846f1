"""The members of a run as who asks them sees them, and for how long they are waited for.

Owns the two interfaces that stand between the pipeline and wherever members live (cluster.pool has the kinds
there are), and the deadlines. Does not own what is asked (crew.py, panel.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from verification.state import RunState, Turn

# Where no deadline is set nobody is late, but a member that never answers must not stop a run for ever.
PATIENCE_MS = 30 * 60 * 1000
# How long the run waits for what takes no work, and what it can do without.
BRIEF_MS = 30_000


class Answer(Protocol):
    """What came of asking a member: a `value` when `ok`, else an `error`; `ms` by our own clock."""

    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def value(self) -> Any: ...  # noqa: D102
    @property
    def error(self) -> str | None: ...  # noqa: D102
    @property
    def ms(self) -> int: ...  # noqa: D102


class Members(Protocol):
    """The members of a run, wherever they live; cluster.pool has the kinds there are."""

    def call(  # noqa: D102
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> Mapping[str, Answer]: ...
    def begin(self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Sequence[Begun]: ...  # noqa: D102


# A call that was begun: given a deadline in milliseconds, counted from now, it waits for the answer.
Begun = Callable[[int], Answer]


def brief(state: RunState) -> int:
    """Milliseconds to wait for what takes no work."""
    timing = state.config["timing"]
    return min(BRIEF_MS, timing["deadline_ms"]) if timing["mode"] == "measured" else BRIEF_MS


def deadline(turn: Turn) -> int:
    """Milliseconds to wait for work of a turn."""
    return turn.open.deadline_ms or PATIENCE_MS
