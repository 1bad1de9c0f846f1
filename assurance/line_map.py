"""Which test runs which line, so that a mutant is judged first by the tests that can notice it.

Owns the tracing. Does not own what becomes of a mutant (mutations.py). A line counts as *fired* by a test
when it raised, or when a finding was reported from it; those tests are the likely killers.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any

Line = tuple[str, int]
"""File name below verification/ and line."""


class Tracer:
    """A pytest plugin: lines of `folder` that each test runs, those it fires, and its seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder) + "/"
        self.ran: dict[Line, set[str]] = defaultdict(set)
        self.fired: dict[Line, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self._test = ""
        self._started = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._test, self._started = nodeid, time.monotonic()
        sys.settrace(self._call)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        sys.settrace(None)
        self.seconds[nodeid] = time.monotonic() - self._started

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        name = frame.f_code.co_filename
        if not name.startswith(self.folder):
            return None
        if frame.f_code.co_name == "add" and name.endswith("/fsck_findings.py"):
            self._reported(frame)
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        where = (frame.f_code.co_filename.removeprefix(self.folder), frame.f_lineno)
        if event == "line":
            self.ran[where].add(self._test)
        elif event == "exception":
            self.fired[where].add(self._test)
        return self._line

    def _reported(self, frame: FrameType) -> None:
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename.startswith(self.folder):
            where = (caller.f_code.co_filename.removeprefix(self.folder), caller.f_lineno)
            self.fired[where].add(self._test)
            caller = caller.f_back

    def judges(self, file: str, first: int, last: int, most: float) -> list[str]:
        """Tests of the lines `first` to `last`: those that fire one, then the others.

        As many of either as would take `most` seconds: those of files that are named after this one first,
        where there are any, then the quickest.
        """
        lines = [(file, line) for line in range(first, last + 1)]
        fired = {test for line in lines for test in self.fired.get(line, ())}
        ran = {test for line in lines for test in self.ran.get(line, ())} - fired
        own = f"/test_{file.removesuffix('.py')}"
        return [*self._likeliest(fired, own, most), *self._likeliest(ran, own, most)]

    def _likeliest(self, tests: Iterable[str], own: str, most: float) -> list[str]:
        ordered = sorted(tests, key=lambda test: (own not in test, self._cost(test)))
        until = accumulate(map(self._cost, ordered))
        return [test for test, seconds in zip(ordered, until, strict=True) if seconds <= most]

    def _cost(self, test: str) -> float:
        return self.seconds.get(test, 1.0)
