"""Where a turn's time goes, by the coordinator's monotonic clock.

Owns the stopwatch. What it shows is for people: nothing in a run depends on it.
"""

from __future__ import annotations

import time


class Laps:
    """Seconds by phase. A phase that comes twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, phase: str) -> None:
        """All the time since the last lap was this phase's."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now
