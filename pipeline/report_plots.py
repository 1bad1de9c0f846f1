"""The report's plots, as inline SVG.

Owns scales, ticks and shapes. Colours are classes that the page's style sheet fills in, so that light and
dark need one drawing. Does not own what is plotted (report.py) or the page around it (report_page.py). Every
text goes through `_text` or `_title`, which escape it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import Protocol

from pipeline.report import Balance, ClosedTurn, RunStory, Work

WIDTH = 760
MOST_BARS = 150
MOST_POINTS = 400
# A grid with more cells than either has several turns in a column, and words only where something is wrong.
MOST_COLUMNS = 100
MOST_CELLS = 2500
STRIKES = ("unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved")
WORST_FIRST = ("fault", "strike", "lost", "audited", "accepted")
Point = tuple[float, float]


class Numbered(Protocol):
    """Something that belongs to an attempt at a round."""

    @property
    def round(self) -> int:
        """From 1."""

    @property
    def attempt(self) -> int:
        """From 0."""


def short_number(value: float) -> str:
    """12_300_000 as 12.3M: at most four characters and a letter."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten that lie between `low` and `high`."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def cell_class(work: Work) -> str:
    """Which colour a contribution has in the grid; also the keys of the page's legend."""
    if work.reason is None:
        return "audited" if work.verdicts else "accepted"
    if work.reason == "failed-audit":
        return "fault"
    return "strike" if work.reason in STRIKES else "lost"


def loss_chart(story: RunStory, over: str = "tokens", *, narrow: bool = False) -> str:
    """Training and validation loss in nats, with the unigram cross-entropy.

    `over` is what has grown by then: accepted "tokens", or "bytes" of updates received. `narrow` is for a
    phone, without the names at the lines' ends.
    """
    sent = list(itertools.accumulate(turn.payloads * story.payload_bytes for turn in story.turns))
    at = sent if over == "bytes" else [turn.total for turn in story.turns]
    pairs = list(zip(story.turns, at, strict=True))
    series: list[tuple[str, str, list[Point]]] = [
        ("training", "train", [(x, t.train_loss) for t, x in pairs if t.train_loss is not None]),
        ("validation", "val", [(x, t.val_loss) for t, x in pairs if t.val_loss is not None]),
    ]
    losses = [nats for _, _, points in series for _, nats in points]
    if not losses:
        return '<p class="empty">No round is closed yet.</p>'
    reference = [] if story.unigram is None else [story.unigram]
    low, high = min(losses + reference), max(losses + reference)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    wide = 376 if narrow else WIDTH
    left, right, top, bottom = 46, wide - (10 if narrow else 128), 12, 262
    end = max(at[-1], 1)

    def x(value: float) -> float:
        return left + (right - left) * value / end

    def y(nats: float) -> float:
        return bottom - (bottom - top) * (nats - low) / (high - low)

    parts = [_y_axis(ticks(low, high, 6), y, left, right, _nats)]
    parts.append(_x_axis(ticks(0, end, 4 if narrow else 6), x, bottom))
    unit = "bytes of updates received" if over == "bytes" else "accepted tokens"
    parts.append(_text((left + right) / 2, bottom + 34, unit, "axis", "middle"))
    labels: list[tuple[float, str, str]] = []
    if story.unigram is not None:
        parts.append(_line((left, y(story.unigram)), (right, y(story.unigram)), "unigram"))
        labels.append((y(story.unigram), "muted", f"unigram {story.unigram:.3f}"))
    for name, kind, points in series:
        if points:
            drawn = [(x(value), y(nats)) for value, nats in thinned(points, MOST_POINTS)]
            parts.append(_series(drawn, kind, dots=kind == "val"))
            labels.append((y(points[-1][1]), f"label-{kind}", f"{name} {points[-1][1]:.3f}"))
    if not narrow:
        parts += [
            _text(right + 8, height + 4, words, kind) for height, kind, words in spread(labels, 16, bottom)
        ]
    return _svg(wide, 300, f"Loss in nats over {unit}", parts)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: each the mean of as many neighbours; the last stands for fewer."""
    each = -(-len(points) // most)
    if each < 2:
        return list(points)
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def _nats(value: float) -> str:
    return f"{value:.4g}"


def spread(labels: Sequence[tuple[float, str, str]], gap: float, most: float) -> list[tuple[float, str, str]]:
    """The labels from top to bottom, moved so that they lie `gap` apart and the last not below `most`."""
    placed: list[tuple[float, str, str]] = []
    for at, kind, words in sorted(labels):
        lowest = placed[-1][0] + gap if placed else at
        placed.append((max(at, lowest), kind, words))
    limit = most
    for index in range(len(placed) - 1, -1, -1):
        at, kind, words = placed[index]
        placed[index] = (min(at, limit), kind, words)
        limit = placed[index][0] - gap
    return placed


def _series(points: Sequence[Point], kind: str, *, dots: bool) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline class="line {kind}" points="{path}"/>']
    if dots or len(points) == 1:
        radius = 3.2 if len(points) <= 40 else 1.6
        parts += [f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in points]
    return "".join(parts)


def tokens_chart(turns: Sequence[ClosedTurn]) -> str:
    """Tokens of every turn: accepted, and on top of them what was handed in or promised and not accepted."""
    taken = [turn.tokens for turn in turns]
    refused = [sum(work.tokens for work in turn.work if work.reason) for turn in turns]
    return bars(turns, [("accepted", taken), ("fault", refused)], "tokens", ("accepted", "rejected"))


def bytes_chart(turns: Sequence[ClosedTurn], payload_bytes: int) -> str:
    """Bytes of updates received in every turn."""
    received = [turn.payloads * payload_bytes for turn in turns]
    return bars(turns, [("bytes", received)], "bytes", ("received",))


def bars(
    turns: Sequence[Numbered],
    stacks: Sequence[tuple[str, Sequence[float]]],
    unit: str,
    words: Sequence[str],
    *,
    rate: bool = False,
) -> str:
    """A bar a turn, or for several turns their mean: the `stacks` (colour, value of each turn) piled up.

    What a pointer finds of several turns is their sum, of a `rate` their mean.
    """
    if not turns:
        return '<p class="empty">No round is closed yet.</p>'
    each = -(-len(turns) // MOST_BARS)
    starts = range(0, len(turns), each)
    # A bar of several turns is their mean, so that the last bar, of fewer turns, is not lower for that.
    counts = [min(each, len(turns) - start) for start in starts]
    columns = [[sum(values[s : s + each]) for _, values in stacks] for s in starts]
    left, right, top, bottom = 46, 366, 10, 148
    highest = max([sum(column) / count for column, count in zip(columns, counts, strict=True)]) or 1
    width = (right - left) / len(columns)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / (highest * 1.04)

    parts = [_y_axis(ticks(0, highest, 4), y, left, right, short_number)]
    for index, (start, column) in enumerate(zip(starts, columns, strict=True)):
        below = 0.0
        last = turns[start + counts[index] - 1]
        where = turn_name(turns[start]) + (f" to {last.round}" if each > 1 else "")
        for (kind, _), value, word in zip(stacks, column, words, strict=True):
            mean = value / counts[index]
            if value:
                parts.append(
                    f'<rect class="fill-{kind}" x="{left + index * width + min(1, width / 8):.1f}" '
                    f'y="{y(below + mean):.1f}" width="{max(width - min(2, width / 4), 0.5):.1f}" '
                    f'height="{y(below) - y(below + mean):.1f}">'
                    f"{_title(f'{where}: {_amount(mean if rate else value)} {unit} {word}')}</rect>"
                )
            below += mean
    for index in _marked(len(columns), right - left, turns[-1].round):
        middle = left + (index + 0.5) * width
        parts.append(_text(middle, bottom + 16, str(turns[index * each].round), "tick", "middle"))
    parts.append(_text((left + right) / 2, bottom + 32, "round", "axis", "middle"))
    return _svg(376, 186, f"{unit} per round", parts)


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def _marked(count: int, room: float, largest: int) -> list[int]:
    """Indices of the columns that get a number: every so many, and the first where there is room for it."""
    wide = 8 + 7 * len(str(largest))
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1 << 30) if room * s / count >= wide)
    first = [0] if step > count or room * (step - 1) / count >= wide else []
    return first + [index for index in range(count) if (index + 1) % step == 0]


def turn_name(turn: Numbered) -> str:
    """The round, and which attempt when it is not the first."""
    return f"round {turn.round}" + (f", attempt {turn.attempt + 1}" if turn.attempt else "")


def grid(story: RunStory) -> str:
    """Contributors down, turns across, a cell each; of a long run several turns share a column.

    Drawn at its own size, since it may be wide.
    """
    if not story.turns:
        return '<p class="empty">No round is closed yet.</p>'
    names = [member.member for member in story.contributors]
    left = 14 + 7.2 * min(max(map(len, names), default=1), 16)
    each = -(-len(story.turns) // MOST_COLUMNS)
    columns = [story.turns[start : start + each] for start in range(0, len(story.turns), each)]
    side = max(7.0, min(26.0, (WIDTH - left) // len(columns)))
    high = 24
    parts = [
        _text(left - 10, slot * high + 17, _cut(name), "name", "end", title=name)
        for slot, name in enumerate(names)
    ]
    coarse = each > 1 or len(columns) * len(names) > MOST_CELLS
    cells = _coarse_cells if coarse else _cells
    parts += cells(names, columns, (left, side, high))
    base = len(names) * high
    last = [column[-1].round for column in columns]
    for index in _marked(len(columns), side * len(columns), last[-1]):
        parts.append(_text(left + (index + 0.5) * side, base + 15, str(last[index]), "tick", "middle"))
    width = left + max(len(columns) * side + 16, 40)
    return _svg(width, base + 22, "Contributors and rounds", parts, fixed=True)


def _cells(
    names: Sequence[str], columns: Sequence[Sequence[ClosedTurn]], place: tuple[float, float, float]
) -> list[str]:
    """A cell for every contributor in every turn, with what happened in words."""
    left, side, high = place
    parts = []
    for index, (turn,) in enumerate(columns):
        slots = {work.entry.slot: work for work in turn.work}
        for slot, name in enumerate(names):
            work = slots.get(slot)
            at = (left + index * side, slot * high)
            parts.append(_cell(at, side, high, work, _cell_words(turn, name, work)))
    return parts


def _coarse_cells(
    names: Sequence[str], columns: Sequence[Sequence[ClosedTurn]], place: tuple[float, float, float]
) -> list[str]:
    """One path for all cells of a colour; a cell has the worst that happened in its turns, and then words."""
    left, side, high = place
    quiet: dict[str, list[str]] = {}
    parts = []
    for index, turns in enumerate(columns):
        found: dict[int, list[Work]] = {}
        for turn in turns:
            for work in turn.work:
                found.setdefault(work.entry.slot, []).append(work)
        for slot, name in enumerate(names):
            kinds = Counter(cell_class(work) for work in found.get(slot, ()))
            kind = next((kind for kind in WORST_FIRST if kinds[kind]), "absent")
            x, y = left + index * side + 0.5, slot * high + 2
            box = f"M{x:.1f} {y:.0f}h{side - 1:.1f}v{high - 4:.0f}h-{side - 1:.1f}z"
            if kind in ("fault", "strike", "lost"):
                reasons = Counter(work.reason for work in found[slot] if work.reason)
                said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
                where = f"{name}, rounds {turns[0].round} to {turns[-1].round}: {said}"
                parts.append(f'<path class="fill-{kind}" d="{box}">{_title(where)}</path>')
            elif kind != "absent":
                quiet.setdefault(kind, []).append(box)
    return [f'<path class="fill-{kind}" d="{"".join(boxes)}"/>' for kind, boxes in quiet.items()] + parts


def _cut(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _cell(at: Point, side: float, high: float, work: Work | None, words: str) -> str:
    x, y = at[0] + 1, at[1] + 2
    kind = cell_class(work) if work else "absent"
    box = (
        f'<rect class="cell fill-{kind}" x="{x:.1f}" y="{y:.1f}" width="{side - 2:.1f}" '
        f'height="{high - 4:.1f}" rx="3">{_title(words)}</rect>'
    )
    if work is None or side < 12:
        return box
    middle, centre = x + side / 2 - 1, y + high / 2 - 2
    if kind in ("fault", "strike", "lost"):
        mark = {"fault": "×", "strike": "!", "lost": "–"}[kind]
        return box + _text(middle, centre + 4.5, mark, f"mark on-{kind}", "middle")
    looks = len(work.verdicts)
    return box + "".join(
        f'<circle class="look" cx="{middle + (look - (looks - 1) / 2) * 6:.1f}" cy="{centre:.1f}" r="2"/>'
        for look in range(looks)
    )


def _cell_words(turn: ClosedTurn, name: str, work: Work | None) -> str:
    where = f"{name}, {turn_name(turn)}"
    if work is None:
        return f"{where}: not in the roster (in quarantine, away, or not there yet)"
    audits = ", ".join(f"{verdict.auditor}: {verdict.outcome}" for verdict in work.verdicts) or "not audited"
    loss = "" if work.loss is None else f", loss {work.loss:.3f}"
    return f"{where}: {work.reason or 'accepted'}, {work.tokens:,} tokens{loss}; {audits}"


def credits_chart(balances: Sequence[Balance]) -> str:
    """A bar a member: vested, unvested, forfeited tokens, one after the other."""
    left = 14 + 7.2 * min(max((len(b.member.member) for b in balances), default=1), 16)
    right, high = WIDTH - 170, 26
    most = max((balance.earned for balance in balances), default=0) or 1
    parts = []
    for row, balance in enumerate(balances):
        name, y, x = balance.member.member, row * high, left
        parts.append(_text(left - 10, y + 17, _cut(name), "name", "end", title=name))
        pieces = (
            ("vested", balance.vested),
            ("unvested", balance.unvested),
            ("forfeited", balance.forfeited),
        )
        for kind, tokens in pieces:
            width = (right - left) * tokens / most
            if tokens:
                parts.append(
                    f'<rect class="fill-{kind}" x="{x:.1f}" y="{y + 4}" width="{max(width, 0.8):.1f}" '
                    f'height="{high - 8}">{_title(f"{name}: {tokens:,} tokens {kind}")}</rect>'
                )
            x += width
        gone = ", quarantined" if balance.quarantined else ""
        parts.append(_text(x + 8, y + 17, f"{balance.earned:,}{gone}", "tick"))
    return _svg(WIDTH, len(balances) * high + 4, "Credit by member, in tokens", parts)


def _y_axis(
    values: Sequence[float],
    y: Callable[[float], float],
    left: float,
    right: float,
    form: Callable[[float], str],
) -> str:
    return "".join(
        _line((left, y(v)), (right, y(v)), "rule") + _text(left - 8, y(v) + 4, form(v), "tick", "end")
        for v in values
    )


def _x_axis(values: Sequence[float], x: Callable[[float], float], bottom: float) -> str:
    return "".join(_text(x(value), bottom + 17, short_number(value), "tick", "middle") for value in values)


def _line(start: Point, stop: Point, kind: str) -> str:
    (x1, y1), (x2, y2) = start, stop
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start", *, title: str = "") -> str:
    inside = (_title(title) if title else "") + escape(words)
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{inside}</text>'


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>"


def _svg(width: float, height: float, label: str, parts: Sequence[str], *, fixed: bool = False) -> str:
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else ""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
