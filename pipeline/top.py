"""`barnraise top`: a live view of a run in the terminal, from its folder alone.

Owns the options, the loop and the keyboard. Reads and never writes, locks or asks: the run, which may be
another process's or another user's, does not notice. Does not own what is shown (top_view.py, top_watch.py).
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.live import Live

from pipeline.top_follow import LogFollower, MetricsFollower
from pipeline.top_view import Frame, as_json, draw
from pipeline.top_watch import Watch

REFRESH_S = 0.5
# Lines of a printed frame beside those of the members.
PRINTED = 22


@dataclass(frozen=True)
class TopOptions:
    """Watch a run in the terminal, from its folder; q or Ctrl-C leaves, and the run goes on."""

    run: tyro.conf.Positional[Path]
    """The run folder; it need not be there yet."""
    once: bool = False
    """Print what is there now, and end. So it does too when it does not print to a terminal."""
    json: bool = False
    """One JSON object of what is there now."""


class Follower:
    """A run folder as a frame, again and again; each `look` reads what is new."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._begin()
        self._seen = False

    def _begin(self) -> None:
        self._log = LogFollower(self._run)
        self._metrics = MetricsFollower(self._run)
        self._watch = Watch()

    def look(self) -> Frame:
        """What the folder shows now. Raises nothing that a folder can bring about."""
        there = True
        try:
            if self._log.replaced():
                self._begin()
            for entry in self._log.new_entries():
                self._watch.entry(entry)
            self._seen = True
        except OSError:
            there = False
        for turn in self._metrics.new_turns():
            self._watch.times(turn)
        since = self._log.idle_since() if there else None
        return Frame(
            run=self._run,
            state=self._state(there=there),
            watch=self._watch,
            idle_s=None if since is None else round(max(0.0, time.time() - since), 1),
            bad_lines=self._metrics.bad_lines,
            log_entries=self._log.size,
        )

    def _state(self, *, there: bool) -> str:
        if not there:
            return "gone" if self._seen else "waiting"
        return "finished" if self._watch.finished else "running"


def command(options: TopOptions, console: Console) -> int:
    """`barnraise top`."""
    follower = Follower(options.run)
    if options.json:
        print(jsonlib.dumps(as_json(follower.look())))  # noqa: T201
        return 0
    if options.once or not console.is_terminal:
        frame = follower.look()
        console.print(draw(frame, console.width, len(frame.watch.members) + PRINTED))
        return 0
    # Leaving a view ends nothing else: what Ctrl-C says elsewhere would be wrong here.
    with contextlib.suppress(KeyboardInterrupt), _keys() as pressed:
        watch(follower, console, pressed)
    return 0


def watch(follower: Follower, console: Console, pressed: Callable[[float], str]) -> None:
    """Draw until somebody presses q. `pressed` waits so many seconds for a key; "" when none came."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(draw(follower.look(), console.width, console.height), refresh=True)
            if pressed(REFRESH_S) == "q":
                return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Keys as they are pressed, where standard input is a terminal; else only the time passes."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios  # noqa: PLC0415 - not on every system
    import tty  # noqa: PLC0415

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            return ""
        keys = os.read(descriptor, 64)
        # The terminal has gone away, and so has everybody who looks.
        return "q" if not keys or b"q" in keys.lower() else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


COMMANDS: dict[str, tuple[type[Any], Callable[[Any, Console], int]]] = {"top": (TopOptions, command)}
