"""One frame of `barnraise top`: lines of text that fit a terminal of a given size, and the same as JSON.

Owns words, colours and what is left out where there is little room. Does not own the numbers (top_watch.py)
or when a frame is drawn (top.py). Text goes into rich as `Text`, never as markup: names are other people's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report_html import duration
from pipeline.report_plots import short_number, thinned
from pipeline.top_watch import Member, Watch
from verification.errors import printable

BARS = "▁▂▃▄▅▆▇█"
PHASE_COLOURS = {
    "open": "yellow",
    "commit": "blue",
    "reveal": "magenta",
    "draw": "bright_yellow",
    "audit": "green",
    "close": "bright_black",
}
STANDING_COLOURS = {"good": "green", "probation": "yellow", "away": "bright_black", "quarantine": "red"}
STATES = {"running": "green", "finished": "cyan", "waiting": "yellow", "gone": "red"}
MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red")}
_LEAST_ROWS = 4


@dataclass(frozen=True)
class Frame:
    """What is shown: `state` of the folder, seconds since the log last grew, lines that could not be read."""

    run: Path
    state: str
    watch: Watch
    idle_s: float | None
    bad_lines: int
    log_entries: int
    payload_bytes: int | None = None


def as_json(frame: Frame) -> dict[str, Any]:
    """The frame for programs. Fields may be added, none renamed."""
    watch = frame.watch
    return {
        "run": str(frame.run),
        "state": frame.state,
        "run_id": watch.run_id,
        "name": watch.name,
        "round": watch.round,
        "attempt": watch.attempt,
        "rounds": watch.rounds,
        "rounds_closed": watch.closed,
        "phase": watch.phase,
        "eta_s": watch.eta_s,
        "idle_s": frame.idle_s,
        "tokens": watch.tokens,
        "tokens_per_s": watch.tokens_per_s,
        "loss": watch.training[-1][1] if watch.training else None,
        "val_loss": watch.validation[-1][1] if watch.validation else None,
        "verdicts": watch.verdicts,
        "failed": watch.failed,
        "overruled": watch.overruled,
        "rejected": watch.rejected,
        "phases": watch.phases,
        "members": [_member_json(watch, member) for member in watch.members.values()],
        "events": [{"round": r, "tone": tone, "text": text} for r, tone, text in watch.events],
        "log_entries": frame.log_entries,
        "unreadable_entries": watch.unreadable,
        "metrics_bad_lines": frame.bad_lines,
    }


def _member_json(watch: Watch, member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "role": member.role,
        "operator": member.operator,
        "machine": watch.machines.get(member.name),
        "steps": member.steps,
        "work_ms": member.work_ms,
        "standing": watch.standing(member),
        "credit": member.credit,
        "last_verdict": None if member.verdict is None else " ".join(member.verdict),
    }


def draw(frame: Frame, width: int, height: int) -> RenderableType:
    """The frame in at most `height` lines of at most `width` columns."""
    watch = frame.watch
    if frame.state in ("waiting", "gone") and not watch.members:
        return _nothing(frame)
    top = [_title(frame, width), _progress(watch, width), _losses(watch, width), _numbers(frame)]
    if watch.phases:
        top += [_phases(watch, width), _phase_names(watch)]
    foot = _foot(frame)
    room = max(_LEAST_ROWS + 4, height - len(top) - 4)  # heads of the table and of the events, blank, foot
    events = min(len(watch.events), max(3, room - len(watch.members)), max(3, room // 2))
    rows = max(_LEAST_ROWS, room - max(events, 1))
    lines: list[RenderableType] = [*top, Text(), _members(watch, width, rows)]
    lines += [_rule("events", width), *_events(watch, events, width), foot]
    return Group(*(_fitted(line, width) for line in lines))


def _fitted(line: RenderableType, width: int) -> RenderableType:
    if isinstance(line, Text):
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return line


def _nothing(frame: Frame) -> RenderableType:
    words = {
        "waiting": "waits for a run: nothing is logged there yet",
        "gone": "is gone: the folder is not there any more",
    }
    first = Text.assemble((printable(str(frame.run)), "bold"), " ", words[frame.state])
    return Group(first, Text(f"Next: barnraise train --run {printable(str(frame.run))}; q leaves", "dim"))


def _title(frame: Frame, width: int) -> Text:
    watch = frame.watch
    again = f", attempt {watch.attempt + 1}" if watch.attempt else ""
    said = "" if watch.finished else f"  round {watch.round} of {watch.rounds}{again}: {watch.phase}"
    idle = "" if frame.idle_s is None or watch.finished else f"log {_ago(frame.idle_s)}"
    line = Text.assemble((watch.name, "bold"), "  ", ("● " + frame.state, STATES[frame.state]), said)
    line.truncate(width - len(idle) - 1, overflow="ellipsis", pad=True)
    return line.append(" ").append(idle, "dim")


def _ago(seconds: float) -> str:
    return "just now" if seconds < 3 else f"{duration(seconds)} ago"


def _progress(watch: Watch, width: int) -> Text:
    share = watch.closed / watch.rounds if watch.rounds else 0.0
    left = "" if watch.eta_s is None else f"  about {duration(watch.eta_s)} to go"
    words = f" {watch.closed} of {watch.rounds} rounds closed{left}"
    room = max(10, width - len(words) - 1)
    full = round(room * min(share, 1.0))
    return Text.assemble(("━" * full, "green"), ("━" * (room - full), "bright_black"), words)


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` characters, the lowest value as the lowest bar."""
    if not values or width < 1:
        return ""
    means = [y for _, y in thinned([(0.0, value) for value in values], width)]
    low, high = min(means), max(means)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[min(len(BARS) - 1, round((value - low) / step))] for value in means)


def _losses(watch: Watch, width: int) -> Text:
    if not watch.training:
        return Text("no round is closed yet", "dim")
    line = Text.assemble("loss ", (f"{watch.training[-1][1]:.3f}", "bold"), " ")
    parts = [f"{watch.training[-1][1]:.3f}"]
    val = ""
    if watch.validation:
        round_, nats = watch.validation[-1]
        val = f"  validation {nats:.3f} after {round_} "
    room = max(6, (width - len(val) - len(parts[0]) - 8) // (2 if len(watch.validation) > 1 else 1))
    line.append(sparkline([nats for _, nats in watch.training], min(room, 60)), "bright_black")
    if watch.validation:
        line.append("  validation ").append(f"{nats:.3f}", "bold cyan").append(f" after {round_} ")
        line.append(sparkline([one for _, one in watch.validation], min(room, 30)), "cyan")
    return line


def _numbers(frame: Frame) -> Text:
    watch = frame.watch
    speed = "" if watch.tokens_per_s is None else f" at {short_number(watch.tokens_per_s)}/s"
    line = Text.assemble((short_number(watch.tokens), "bold"), f" tokens{speed}  ")
    line.append(f"{watch.verdicts:,} verdicts")
    for count, word, style in (
        (watch.failed, "failed", "red"),
        (watch.overruled, "overruled", "red"),
        (watch.rejected, "rejected", "yellow"),
    ):
        line.append(", ").append(f"{count:,} {word}", style if count else "")
    return line


def _phases(watch: Watch, width: int) -> Text:
    phases, room = watch.phases, max(10, width - 8)
    total = sum(phases.values())
    line, drawn, reached = Text("phases "), 0, 0.0
    for name, seconds in phases.items():
        reached += seconds
        upto = round(room * reached / total)
        line.append("█" * (upto - drawn), PHASE_COLOURS[name])
        drawn = upto
    return line


def _phase_names(watch: Watch) -> Text:
    phases = watch.phases
    total = sum(phases.values())
    line = Text("       ")
    for name, seconds in phases.items():
        line.append("■", PHASE_COLOURS[name]).append(f"{name} {100 * seconds / total:.0f}% ")
    return line.append(f"of {duration(total)}", "dim")


def _members(watch: Watch, width: int, rows: int) -> Table:
    """Those that take part before those that do not; what does not fit is counted in a last row."""
    order = {"quarantine": 2, "away": 1}
    members = sorted(watch.members.values(), key=lambda member: order.get(watch.standing(member), 0))
    cut = len(members) - rows if len(members) > rows else 0
    shown = members[: rows - 1] if cut else members
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="dim", pad_edge=False)
    table.add_column("member", width=min(20, max([6, *(len(member.name) for member in shown)])), no_wrap=True)
    if watch.machines:
        table.add_column("machine", ratio=3, no_wrap=True)
    table.add_column("role", width=11, no_wrap=True)
    table.add_column("steps", justify="right", width=5, no_wrap=True)
    table.add_column("work", justify="right", width=9, no_wrap=True)
    table.add_column("standing", width=10, no_wrap=True)
    table.add_column("credit", justify="right", width=7, no_wrap=True)
    table.add_column("last verdict", ratio=4, no_wrap=True)
    for member in shown:
        standing = watch.standing(member)
        cells = [Text(member.name, "bold")]
        if watch.machines:
            cells.append(Text(watch.machines.get(member.name, "–")))
        cells += [
            Text(member.role),
            Text("–" if member.steps is None else f"{member.steps}"),
            Text("–" if member.work_ms is None else duration(member.work_ms / 1000)),
            Text(standing, STANDING_COLOURS[standing]),
            Text(short_number(member.credit)),
            _verdict(member),
        ]
        table.add_row(*cells, style="dim" if standing in order else "")
    if cut:
        table.add_row(Text(f"and {len(members) - len(shown)} more", "dim"))
    return table


def _verdict(member: Member) -> Text:
    if member.verdict is None:
        return Text("–", "dim")
    mark, colour = MARKS[member.verdict[0]]
    return Text.assemble((mark, colour), " ", member.verdict[1])


def _rule(title: str, width: int) -> Text:
    return Text(f"── {title} ".ljust(width, "─"), "bright_black")


def _events(watch: Watch, most: int, width: int) -> list[Text]:
    """The newest last, as in a log."""
    del width
    if not watch.events:
        return [Text("nothing worth telling yet", "dim")]
    colours = {"bad": "yellow", "note": ""}
    newest = list(watch.events)[-most:]
    return [Text.assemble((f"round {r:<5} ", "dim"), (text, colours[tone])) for r, tone, text in newest]


def _foot(frame: Frame) -> Text:
    bad = frame.watch.unreadable + frame.bad_lines
    unread = f"{bad:,} entries or lines could not be read; " if bad else ""
    run = printable(str(frame.run))
    follow = f"barnraise report {run}" if frame.watch.finished else f"barnraise verify {run}"
    words = f"q leaves. Next: {follow}   {unread}{frame.log_entries:,} log entries, not checked here"
    return Text(words, "dim")
