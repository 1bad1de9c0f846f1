"""The report's part on where time went: from metrics.jsonl, which nothing in the log bears out.

Owns that part's words, tables and plots, and that they are left out where there is nothing to say. Does not
own what is taken from the file (report_metrics.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median

from pipeline.report_html import caption, code, duration, key, size, tall
from pipeline.report_metrics import PHASES, Metrics, TurnTimes
from pipeline.report_plots import bars

PHASE_WORDS = {
    "open": "hand out the work",
    "commit": "wait for contributors to train",
    "reveal": "collect the updates",
    "draw": "draw the audits",
    "audit": "wait for auditors",
    "close": "add up, validate, write",
    "other": "none of these",
}
# A phase that the clocks of a file do not account for is shown from this share on.
_LEAST_OTHER = 0.005
MOST_MEMBERS = 200


def where_time_went(metrics: Metrics | None) -> str | None:
    """The part's HTML; None where the file is not there or says nothing of time."""
    turns = [turn for turn in metrics.turns if turn.seconds or turn.phases] if metrics else []
    if metrics is None or not turns:
        return None
    bad = ""
    if metrics.bad_lines:
        bad = f" {metrics.bad_lines:,} line{'s' if metrics.bad_lines > 1 else ''} of it could not be read."
    total = sum(map(_seconds, turns))
    words = caption(
        "<strong>The coordinator’s word.</strong> These times are its own clock’s, from "
        f"{code('metrics.jsonl')}: nothing of this part is in the log or can be checked.{bad} "
        f"It has {len(turns):,} rounds, in all {duration(total)}."
    )
    return words + _plots(turns) + _phases(turns, total) + _members(turns) + _machines(turns)


def _seconds(turn: TurnTimes) -> float:
    return max(turn.seconds or 0.0, sum(turn.phases.values()))


def _parts(turn: TurnTimes) -> dict[str, float]:
    """Seconds by phase, with what none of them accounts for."""
    parts = {name: turn.phases.get(name, 0.0) for name in PHASES}
    return {**parts, "other": _seconds(turn) - sum(parts.values())}


def _shown(turns: Sequence[TurnTimes]) -> list[str]:
    """The phases that have any time, in the order of a turn."""
    total = sum(map(_seconds, turns))
    spent = {name: sum(_parts(turn)[name] for turn in turns) for name in (*PHASES, "other")}
    return [n for n, seconds in spent.items() if seconds > (_LEAST_OTHER * total if n == "other" else 0)]


def _plots(turns: Sequence[TurnTimes]) -> str:
    if any(turn.phases for turn in turns):
        names = _shown(turns)
        stacks = [(f"phase-{name}", [_parts(turn)[name] for turn in turns]) for name in names]
        keys = "".join(key(f"phase-{name}", name) for name in names)
        seconds = bars(turns, stacks, "seconds", names)
    else:
        keys, seconds = "", bars(turns, [("bytes", list(map(_seconds, turns)))], "seconds", ("",))
    rates = [turn.tokens_per_s or 0.0 for turn in turns]
    speed = bars(turns, [("accepted", rates)], "tokens", ("a second",), rate=True)
    return (
        f'<div class="two"><figure><figcaption>seconds a round</figcaption>{seconds}</figure>'
        f"<figure><figcaption>accepted tokens a second</figcaption>{speed}</figure></div>"
        + (f'<p class="keys">{keys}</p>' if keys else "")
    )


def _phases(turns: Sequence[TurnTimes], total: float) -> str:
    if not any(turn.phases for turn in turns) or total <= 0:
        return ""
    rows = []
    for name in _shown(turns):
        spent = [_parts(turn)[name] for turn in turns]
        share = sum(spent) / total
        bar = f'<i class="bar phase-{name}" style="width:{100 * share:.1f}%"></i>'
        rows.append(
            (
                f'{escape(name)} <span class="muted">{PHASE_WORDS[name]}</span>',
                duration(sum(spent)),
                duration(median(spent)),
                f'<span class="share">{bar}</span>{100 * share:.1f} %',
            )
        )
    return tall(("phase", "in all", "median round", "share"), rows)


def _members(turns: Sequence[TurnTimes]) -> str:
    """How long each contributor took from question to commitment, the slowest first."""
    took: dict[str, list[float]] = {}
    late: dict[str, int] = {}
    for turn in turns:
        for name, ms in turn.work_ms.items():
            took.setdefault(name, []).append(ms / 1000)
        for name in turn.late:
            late[name] = late.get(name, 0) + 1
    found = {name: took.get(name, []) for name in sorted({*took, *late})}
    if not found:
        return ""
    order = sorted(found, key=lambda name: -median(found[name] or [0.0]))
    rows = [
        (
            escape(name),
            f"{len(found[name]):,}",
            duration(median(found[name])) if found[name] else "–",
            duration(max(found[name])) if found[name] else "–",
            f'<span class="fail">{late[name]:,}</span>' if name in late else "0",
        )
        for name in order[:MOST_MEMBERS]
    ]
    head = ("contributor", "answers", "median work", "longest", "late")
    return f"<h3>Who took how long</h3>{tall(head, rows)}"


def _machines(turns: Sequence[TurnTimes]) -> str:
    last = {name: (turn.round, node) for turn in turns for name, node in turn.nodes.items()}
    if not last:
        return ""
    peak: dict[str, int] = {}
    down: dict[str, int] = {}
    for turn in turns:
        for name, node in turn.nodes.items():
            peak[name] = max(peak.get(name, 0), node.memory_bytes or 0)
            down[name] = down.get(name, 0) + (not node.alive)
    rows = [
        (
            escape(name),
            "up" if node.alive else f'<span class="fail">down</span> at round {round_}',
            escape(", ".join(node.members)) or "–",
            size(peak[name]) if peak[name] else "–",
            "–" if node.cpu_percent is None else f"{node.cpu_percent:.0f} %",
            f"{down[name]:,}",
        )
        for name, (round_, node) in sorted(last.items())[:MOST_MEMBERS]
    ]
    head = ("machine", "last seen", "members", "most memory", "processor", "rounds down")
    return f"<h3>Machines</h3>{tall(head, rows)}"
