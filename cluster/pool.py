"""A pool of plain objects that answer calls, or are late, or die and come back.

Owns the interface and `LocalPool`, which keeps every object in this process. Does not know what the objects
are: the pipeline hands it factories. Ray stands behind the same interface in ray_pool.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from verification.durable import disk_is_full, storage_error
from verification.errors import BarnraiseError

REVIVALS = 3


@dataclass(frozen=True)
class Answer:
    """What came of one call. Exactly one of value, error and late says what happened; `ms` is our clock."""

    value: Any = None
    error: str | None = None
    late: bool = False
    ms: int = 0

    @property
    def ok(self) -> bool:
        """The call returned, in time."""
        return self.error is None and not self.late


@dataclass(frozen=True)
class Machine:
    """A machine that offers seats to members: how many by role, and whose it is, if it says so."""

    name: str
    seats: Mapping[str, int]
    operator: str | None = None


@dataclass(frozen=True)
class Seat:
    """One of a machine's seats. A member keeps it: its key lies on that machine."""

    machine: str
    role: str


class MemberDiedError(Exception):
    """The object behind a name is gone; the pool makes it anew from its factory and asks again."""


class Pool(Protocol):
    """Objects by name. A call to several of them returns when all answered or the deadline passed."""

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        """Call `method` of each named object; no deadline when 0. Never raises for what an object does."""
        ...

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        """Begin calls of (name, arguments), several to one object in order; each is waited for on its own.

        What is returned takes a deadline, counted from when it is called. An object that dies meanwhile is
        not asked again.
        """
        ...

    def machines(self) -> tuple[Machine, ...]:
        """The machines that are there now and offer seats; none where members can live anywhere."""
        ...

    def add(self, name: str, factory: Callable[[], object], seat: Seat | None = None) -> None:
        """One object more, in a seat of its own, or anywhere."""
        ...

    def usage(self) -> dict[str, dict[str, Any]]:
        """What members use by machine: `alive`, `members`, `memory_bytes`, `cpu_percent` since asked last."""
        ...

    def close(self) -> None:
        """End every object."""
        ...


class LocalPool:
    """All objects in this process, one call after the other. For tests and for small runs."""

    def __init__(self, factories: Mapping[str, Callable[[], object]]) -> None:
        self._factories = dict(factories)
        self._objects: dict[str, object] = {}

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        """As `Pool.call`, but a full disk is this machine's trouble, not the object's: StorageError.

        A call over its deadline runs to its end, as it would elsewhere, and is late.
        """
        return {name: self._one(name, method, args, deadline_ms) for name, args in arguments.items()}

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        """As `Pool.begin`; with one thread for all, a call is made when it is first waited for."""
        return [_Once(partial(self._one, name, method, args, 0)) for name, args in calls]

    def machines(self) -> tuple[Machine, ...]:
        """None: everybody lives here."""
        return ()

    def add(self, name: str, factory: Callable[[], object], seat: Seat | None = None) -> None:
        """As `Pool.add`."""
        del seat
        self._factories[name] = factory

    def usage(self) -> dict[str, dict[str, Any]]:
        """Nothing: what this process uses is everybody's."""
        return {}

    def close(self) -> None:
        """Forget every object."""
        self._objects.clear()

    def _one(self, name: str, method: str, args: tuple[Any, ...], deadline_ms: int) -> Answer:
        started = time.monotonic()
        for _ in range(REVIVALS):
            try:
                if name not in self._objects:
                    self._objects[name] = self._factories[name]()
                value = getattr(self._objects[name], method)(*args)
            except MemberDiedError:
                self._objects.pop(name, None)
                continue
            except BarnraiseError as error:
                if disk_is_full(error):
                    raise
                return Answer(error=str(error), ms=_since(started))
            except OSError as error:
                if disk_is_full(error):
                    raise storage_error(Path(error.filename or name), error) from error
                return Answer(error=f"{type(error).__name__}: {error}", ms=_since(started))
            except Exception as error:  # an object's bug must not end the round
                return Answer(error=f"{type(error).__name__}: {error}", ms=_since(started))
            ms = _since(started)
            return Answer(late=True, ms=ms) if 0 < deadline_ms < ms else Answer(value=value, ms=ms)
        return Answer(error=f"{name} died {REVIVALS} times", ms=_since(started))


class _Once:
    """A call that is made at the first wait, and whose answer is there at any other."""

    def __init__(self, act: Callable[[], Answer]) -> None:
        self._act = act
        self._answer: Answer | None = None

    def __call__(self, deadline_ms: int) -> Answer:
        if self._answer:
            return self._answer
        self._answer = answer = self._act()
        return Answer(late=True, ms=answer.ms) if 0 < deadline_ms < answer.ms and answer.ok else answer


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
