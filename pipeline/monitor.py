"""What people and programs see while a run goes on: bars, JSON lines, metrics.jsonl, and views that may fail.

Owns the row of a turn, the sinks it goes to, and that no sink ends a run or holds it up. What is worth an
alert is in alerts.py, wandb in wandb_view.py. The log is the truth; nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.alerts import SEVERE, Watch
from verification.errors import printable
from verification.records import RoundClose, Settlement
from verification.state import RunState, Turn

MICRO = 1e6
# How far back `earlier_rows` looks: some hundreds of turns.
TAIL_BYTES = 1 << 20
Row = dict[str, Any]


def turn_row(
    close: RoundClose,
    turn: Turn,
    state: RunState,
    payload_bytes: int,
    seconds: float,
    settled: Sequence[tuple[Turn, Settlement]] = (),
) -> Row:
    """A turn as the machine-readable line of `barnraise train`.

    Losses in nats; `tokens` counts accepted tokens since the start, `round_tokens` those of this turn.
    `settled` are the turns whose late audits were settled in it; its audits are theirs then. `contributors`
    has what each one of the turn gave: tokens and the loss of its last step as it states them, None where it
    revealed nothing, and `outcome`, "accepted" or the reason why not. The coordinator's clocks are not known
    here; who has them adds fields.
    """
    turns = (turn, *(late for late, _ in settled))
    verdicts = [v for one in turns for v in one.verdicts.values()]
    removed = [item for _, record in settled for item in record.removed]
    overruled = [(item, close.round) for item in close.overruled]
    overruled += [(item, record.round) for _, record in settled for item in record.overruled]
    fresh = sum(item.tokens for item in close.accepted)
    return {
        "round": close.round,
        "attempt": close.attempt,
        "tokens": state.tokens,
        "round_tokens": fresh,
        "loss": _nats(close.train_loss),
        "val_loss": _nats(close.val_loss),
        "tokens_per_s": round(fresh / seconds, 1) if seconds > 0 else None,
        "seconds": round(seconds, 3),
        "payload_bytes": payload_bytes * len(close.accepted),
        "accepted": [item.member for item in close.accepted],
        "rejected": [{"contributor": item.member, "reason": item.reason} for item in close.rejected],
        "removed": [
            {"contributor": item.member, "round": item.round, "reason": item.reason} for item in removed
        ],
        "overruled": [{"auditor": item.auditor, "round": round_} for item, round_ in overruled],
        "audits": len(verdicts),
        "audits_passed": sum(verdict.outcome == "pass" for verdict in verdicts),
        "quarantined": list(close.quarantined),
        "credits": {item.member: item.earned - item.forfeited for item in close.credits},
        "contributors": _contributors(close, turn),
        "verdicts": [
            {
                "round": verdict.round,
                "contributor": one.open.entry(verdict.slot).member,
                "auditor": verdict.auditor,
                "look": verdict.look,
                "outcome": verdict.outcome,
            }
            for one in turns
            for verdict in one.verdicts.values()
        ],
    }


def _contributors(close: RoundClose, turn: Turn) -> dict[str, Row]:
    outcomes: dict[int, tuple[str, str]] = {item.slot: (item.member, "accepted") for item in close.accepted}
    outcomes |= {item.slot: (item.member, item.reason) for item in close.rejected}
    found = {}
    for slot, (member, outcome) in sorted(outcomes.items()):
        reveal = turn.reveals.get(slot)
        found[member] = {
            "tokens": reveal.opening.tokens if reveal else None,
            "loss": _nats(reveal.opening.loss_last) if reveal else None,
            "outcome": outcome,
        }
    return found


def _nats(micronats: int | None) -> float | None:
    return None if micronats is None else micronats / MICRO


class Sink(Protocol):
    """Something that shows a run."""

    def turn(self, row: Row) -> None:
        """A turn was closed."""
        ...

    def note(self, text: str) -> None:
        """A line for people."""
        ...

    def close(self) -> None:
        """The run ended, well or not."""
        ...


class JsonLines:
    """One JSON line a turn on `write`; notes go to `note`, so that a program reads nothing else."""

    def __init__(self, write: Callable[[str], None], note: Callable[[str], None] | None = None) -> None:
        self._write = write
        self._note = note

    def turn(self, row: Row) -> None:  # noqa: D102
        self._write(json.dumps(row))

    def note(self, text: str) -> None:  # noqa: D102
        if self._note:
            self._note(text)

    def close(self) -> None:  # noqa: D102
        return


class MetricsFile(JsonLines):
    """The same lines, appended to `metrics.jsonl` in the run folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(self._append)
        self._path = folder / "metrics.jsonl"

    def _append(self, line: str) -> None:
        # Opened for each line: there is no file before there is something to tell.
        data = line.encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            data = (b"" if self._ends_a_line(start) else b"\n") + data
            written = 0
            try:
                written = file.write(data)
            finally:
                if written < len(data):  # a full disk: a whole line or nothing of it
                    file.truncate(start)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _ends_a_line(self, size: int) -> bool:
        """Whether it is empty or ends with a whole line; a machine that went down may have left less."""
        if not size:
            return True
        with self._path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"


def earlier_rows(folder: Path) -> list[Row]:
    """What the end of `metrics.jsonl` holds, for views of a run that goes on; nothing where there is no file.

    At most `TAIL_BYTES` of it. Anybody may have written there: who takes a row must bear one that is none.
    """
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return rows


# Kinds of alert that bars have lines of their own for.
TOLD_ABOVE = frozenset({"fault", "cut", "overruled"})


class Bars:
    """A progress bar on a terminal, and a line wherever something happened that a person should know."""

    def __init__(self, console: Console, rounds: int, done: int) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task: TaskID = self._bar.add_task("", total=rounds, completed=done)
        self._val: float | None = None
        self._bar.start()

    def turn(self, row: Row) -> None:  # noqa: D102
        if row["val_loss"] is not None:
            self._val = row["val_loss"]
        for item in row["rejected"]:
            gone = "; quarantined" if item["contributor"] in row["quarantined"] else ""
            self._console.print(
                f"[yellow]round {row['round']}:[/] {item['contributor']} rejected: "
                f"[bold]{item['reason']}[/]{gone}"
            )
        for item in row["removed"]:
            self._console.print(
                f"[yellow]round {row['round']}:[/] {item['contributor']} taken out of round {item['round']}: "
                f"[bold]{item['reason']}[/]"
            )
        for item in row["overruled"]:
            self._console.print(
                f"[yellow]round {row['round']}:[/] {item['auditor']} [bold]overruled[/] by other auditors on "
                f"work of round {item['round']}; quarantined"
            )
        for alert in row.get("alerts", ()):
            if alert["kind"] not in TOLD_ABOVE:
                colour = "red" if alert["kind"] in SEVERE else "yellow"
                self._console.print(f"[{colour}]{alert['kind']}:[/] {escape(printable(alert['text']))}")
        self._bar.update(
            self._task,
            advance=1 if row["accepted"] else 0,
            description=(
                f"loss {_show(row['loss'])}  val {_show(self._val)}  "
                f"{row['tokens'] / 1000:.0f}k tokens {row['tokens_per_s'] or 0:.0f}/s  "
                f"{row['audits']} audits"
            ),
        )

    def note(self, text: str) -> None:  # noqa: D102
        # A note may quote a member's words: brackets in them are no markup, and no byte steers the terminal.
        self._console.print(f"[dim]{escape(printable(text))}[/]", highlight=False)

    def close(self) -> None:  # noqa: D102
        self._bar.stop()


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


class Fallible:
    """A view that may fail: at its first error it ends, `warn` is told once, and the run goes on."""

    def __init__(self, name: str, make: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        self._name = name
        self._warn = warn
        self._sink: Sink | None = None
        self._try(lambda: setattr(self, "_sink", make()))

    def turn(self, row: Row) -> None:  # noqa: D102
        if sink := self._sink:
            self._try(lambda: sink.turn(row))

    def note(self, text: str) -> None:  # noqa: D102
        if sink := self._sink:
            self._try(lambda: sink.note(text))

    def close(self) -> None:  # noqa: D102
        if sink := self._sink:
            self._try(sink.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a full disk, or whatever wandb raises: a view decides nothing
            failed, self._sink = self._sink, None
            what = (error.strerror if isinstance(error, OSError) else None) or (
                str(error).splitlines() or [type(error).__name__]
            )[0]
            self._warn(f"{self._name} stops here ({what}); the run goes on without it")
            if failed:
                with contextlib.suppress(Exception):
                    failed.close()


class Background:
    """A view with a thread of its own: whoever shows a turn never waits for it, and the end only for so long.

    `turn` and `close` raise what the view raised, and TimeoutError when it has been at one thing for
    `patience_s` or has not ended `finish_s` after it should. What is left of it then goes on by itself, is
    closed when it can be, and holds nobody up.
    """

    def __init__(self, sink: Sink, *, patience_s: float, finish_s: float) -> None:
        self._sink = sink
        self._patience_s, self._finish_s = patience_s, finish_s
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._error: Exception | None = None
        self._left = False
        self._thread = threading.Thread(target=self._work, name="barnraise-view", daemon=True)
        self._thread.start()

    def turn(self, row: Row) -> None:  # noqa: D102
        self._give(lambda: self._sink.turn(row))

    def note(self, text: str) -> None:  # noqa: D102
        self._give(lambda: self._sink.note(text))

    def close(self) -> None:  # noqa: D102
        if self._left:
            return
        self._leave()
        if self._error:
            raise self._error
        self._thread.join(self._finish_s)
        if self._thread.is_alive():
            raise TimeoutError(f"it was not done {self._finish_s:g} s after the end")
        if self._error:
            raise self._error

    def _give(self, act: Callable[[], None]) -> None:
        since = self._busy_since
        if self._error:
            self._leave()
            raise self._error
        if since is not None and time.monotonic() - since > self._patience_s:
            self._leave()
            raise TimeoutError(f"no answer for {self._patience_s:g} s")
        self._waiting.put(act)

    def _leave(self) -> None:
        self._left = True
        self._waiting.put(None)

    def _work(self) -> None:
        try:
            while act := self._waiting.get():
                self._busy_since = time.monotonic()
                act()
                self._busy_since = None
            self._sink.close()
        except Exception as error:  # told by the next call, in the thread that makes it
            self._error = error
            with contextlib.suppress(Exception):
                self._sink.close()
            self._busy_since = None


class Monitor:
    """All sinks of a run at once, and what in its rows is worth an alert.

    `earlier` are the rows of a run that goes on: what was told of them is not told again.
    """

    def __init__(self, sinks: list[Sink], earlier: Iterable[Row] = ()) -> None:
        self._sinks = sinks
        self._watch = Watch(earlier)

    def turn(self, row: Mapping[str, Any]) -> None:
        """Show a closed turn everywhere, with its `alerts`: a list of {"kind", "text"}."""
        alerts = [{"kind": alert.kind, "text": alert.text} for alert in self._watch.see(row)]
        for sink in self._sinks:
            sink.turn({**row, "alerts": alerts})

    def note(self, text: str) -> None:
        """Show a line for people."""
        for sink in self._sinks:
            sink.note(text)

    def close(self) -> None:
        """End every sink."""
        for sink in self._sinks:
            sink.close()
