"""The witnesses of a simulated run: the shipped ones, on the same network, and some that are no good.

Owns how requests to them are lost, and that they die and come back from their folders. All answer one after
the other here, in their order. What the coordinator showed them is kept for the checks.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pipeline.http_client import Transport
from pipeline.witnessing import Enlisted
from tests.simulator.faults import Crash, Gate
from tests.simulator.setting import Setting
from verification.errors import StorageError
from verification.keys import PrivateKey
from verification.witness import Witness
from verification.witness_store import WitnessStore


class Watch:
    """The witnesses of a setting, each with its files under `folder`."""

    def __init__(self, setting: Setting, folder: Path, gate: Gate) -> None:
        self._folder, self._gate, self._setting = folder, gate, setting
        self._dice = random.Random(f"witnesses/{setting.seed}")
        self._hours = 0
        self.calm = True  # while the run is made, everybody answers
        self.counts: Counter[str] = Counter()
        self.shown: dict[str, None] = {}
        self._witnesses = {f"w.example/{n}": self._make(n) for n in range(len(setting.witnesses))}

    @property
    def enlisted(self) -> Enlisted | None:
        """As pipeline.run takes them; None for a run without."""
        if not self._witnesses:
            return None
        ways = tuple((w.vkey, self._way(name)) for name, w in self._witnesses.items())
        return Enlisted(self._setting.required, ways)

    def _make(self, number: int) -> Witness:
        seed = hashlib.sha256(f"{self._setting.seed}/witness/{number}".encode()).digest()
        store = WitnessStore(self._folder / str(number))
        return Witness(PrivateKey.from_seed(seed), f"w.example/{number}", store, self._clock, None)

    def _clock(self) -> int:
        self._hours += 1
        return 1_800_000_000 + 3600 * self._hours

    def _way(self, name: str) -> Transport:
        number = int(name.rsplit("/", 1)[1])
        kind = self._setting.witnesses[number]

        def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            if path == "/add-checkpoint":
                self.shown[body.decode().partition("\n\n")[2]] = None
            if self.calm:
                return self._asked(name, method, path, body)
            self._lose("request")
            if self._dice.random() < self._setting.weather.member_crash / 2:
                self._gate.armed[name] = self._dice.randrange(6)
            try:
                status, answer = self._asked(name, method, path, body)
            except Crash:
                self.counts["fault: witness crashed"] += 1
                self._witnesses[name] = self._make(number)
                raise StorageError(f"{name} has died") from None
            finally:
                self._gate.armed.pop(name, None)
            self._lose("answer")
            return self._bent(kind, path, status, answer)

        return ask

    def _asked(self, name: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with self._gate.as_actor(name):
            status, _, answer = self._witnesses[name].handle(method, path, body)
        return status, answer

    def _lose(self, what: str) -> None:
        if self._dice.random() < self._setting.weather.drop / 3:
            self.counts[f"fault: a witness's {what} dropped"] += 1
            raise StorageError("nothing came back")

    def _bent(self, kind: str | None, path: str, status: int, answer: bytes) -> tuple[int, bytes]:
        if kind is None or self._dice.random() < 0.5:
            return status, answer
        self.counts[f"witness: {kind}"] += 1
        if kind == "no-link":
            return (409, b"no\n") if path.endswith("/link") else (status, answer)
        if kind == "garbage":
            at = self._dice.randrange(len(answer) + 1)
            return status, answer[:at] + self._dice.randbytes(5) + answer[at + 1 :]
        raise StorageError("it does not answer")


class InOrder:
    """An executor that asks one after the other: threads would make chance of their own."""

    def __init__(self, max_workers: int) -> None:
        del max_workers

    def __enter__(self) -> InOrder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        return None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


def ask_in_order(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone."""
    patch.setattr("pipeline.witness_client.ThreadPoolExecutor", InOrder)
