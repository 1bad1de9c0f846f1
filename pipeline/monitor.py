"""What people and programs see while a run goes on: bars or JSON lines, wandb, metrics.jsonl.

Owns the views of a turn. The log is the truth; nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
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

from verification.errors import printable
from verification.records import Manifest, RoundClose, Settlement
from verification.state import RunState, Turn

MICRO = 1e6
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
    `settled` are the turns whose late audits were settled in it; its audits are theirs then.
    """
    verdicts = [v for one in (turn, *(late for late, _ in settled)) for v in one.verdicts.values()]
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
    }


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
    """One JSON line a turn on `write`; notes are left out, so that a program reads nothing else."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def turn(self, row: Row) -> None:  # noqa: D102
        self._write(json.dumps(row))

    def note(self, text: str) -> None:  # noqa: D102
        del text

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
            written = 0
            try:
                written = file.write(data)
            finally:
                if written < len(data):  # a full disk: a whole line or nothing of it
                    file.truncate(start)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


class Wandb:
    """One wandb run in the driver, with accepted tokens as the x-axis; offline unless a key is there."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        import wandb  # noqa: PLC0415 - only training needs it

        self._wandb = wandb
        self._folder = folder
        self._manifest = manifest
        self._run: Any = None

    def _start(self) -> Any:
        # At the first closed turn: a run that could not be taken up leaves nothing in its folder.
        logging.getLogger("wandb").setLevel(logging.ERROR)
        settings = self._wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        run = self._wandb.init(
            project="barnraise",
            name=self._manifest.name,
            id=self._manifest.run_id.removeprefix("sha256:")[:16],
            resume="allow",
            dir=str(self._folder),
            mode="online" if logged_in() else "offline",
            config={"run_id": self._manifest.run_id, **self._manifest.config},
            settings=settings,
        )
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        return run

    def turn(self, row: Row) -> None:  # noqa: D102
        self._run = self._run or self._start()
        values: dict[str, Any] = {
            "tokens": row["tokens"],
            "round": row["round"],
            "train/loss": row["loss"],
            "train/tokens_per_s": row["tokens_per_s"],
            "payload/bytes_per_token": row["payload_bytes"] / row["round_tokens"]
            if row["round_tokens"]
            else None,
            "contributors/accepted": len(row["accepted"]),
            "contributors/rejected": len(row["rejected"]),
            "contributors/removed": len(row["removed"]),
            "contributors/quarantined": len(row["quarantined"]),
            "audits/verdicts": row["audits"],
            "audits/passed": row["audits_passed"],
            "audits/overruled": len(row["overruled"]),
            "validation/loss": row["val_loss"],
        }
        values |= {f"credits/{member}": tokens for member, tokens in row["credits"].items()}
        self._run.log({name: value for name, value in values.items() if value is not None})

    def note(self, text: str) -> None:  # noqa: D102
        del text

    def close(self) -> None:  # noqa: D102
        if self._run:
            self._run.finish()


def logged_in() -> bool:
    """Whether wandb has a key: in its own environment variable, or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


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


class Monitor:
    """All sinks of a run at once."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def turn(self, row: Mapping[str, Any]) -> None:
        """Show a closed turn everywhere."""
        for sink in self._sinks:
            sink.turn(dict(row))

    def note(self, text: str) -> None:
        """Show a line for people."""
        for sink in self._sinks:
            sink.note(text)

    def close(self) -> None:
        """End every sink."""
        for sink in self._sinks:
            sink.close()
