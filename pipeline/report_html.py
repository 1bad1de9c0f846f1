"""Pieces of HTML that several parts of the report are made of.

Owns tables, keys of colours, code, sizes in words, and links to evidence. Knows nothing of what a part says.
Whatever comes from a log or a file goes through `escape` here or in the part itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pipeline.report import Work

# Longer tables scroll.
LONG = 12


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def tall(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same, in a box of its own that scrolls when it is long."""
    found = table(head, rows)
    return found if len(rows) <= LONG else f'<div class="tall" tabindex="0">{found}</div>'


def caption(words: str) -> str:
    """Words below or above a plot or a table, already HTML."""
    return f'<p class="caption">{words}</p>'


def key(kind: str, words: str) -> str:
    """A colour and what it stands for."""
    return f'<span class="key"><i class="{kind}"></i>{escape(words)}</span>'


def code(text: str) -> str:
    """Something to copy or compare."""
    return f"<code>{escape(text)}</code>"


def size(count: float) -> str:
    """A number of bytes in three digits and a unit."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """A time in the two largest units that it has."""
    if seconds < 1:
        return f"{1000 * seconds:.0f}\u00a0ms"
    if seconds < 60:
        return f"{seconds:.3g}\u00a0s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def case(work: Work) -> str:
    """A link to the evidence on a piece of work, and whether it is there as the log says."""
    if not work.evidence:
        return '<span class="muted">the log itself</span>'
    state = f" <em>{escape(work.evidence_state)}</em>" if work.evidence_state else ""
    return f'<a href="{escape(work.evidence)}"><code>{escape(work.evidence)}</code></a>{state}'
