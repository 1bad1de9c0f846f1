"""The harm of `bench.adversaries` as a picture.

    python -m bench.adversaries --json | python -m bench.adversaries_plot docs/benchmarks/adversaries.svg

Bars: mean over the seeds with two of five liars and the check gone. Dots: each seed.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 290, 90, 26, 58
STYLE = "font-family:system-ui,sans-serif;font-size:13px"


def rows(answer: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """(label, harm by seed), the largest first; the run with all checks in place comes last."""
    found = [
        (f"{row['kind']}, without {' and '.join(row['without'])}", row["harm_two"])
        for row in answer["rows"]
        if row["harm_two"]
    ]
    found.sort(key=lambda item: -statistics.mean(item[1]))
    return [*found, ("all checks in place (random)", answer["kept_harm_two"])]


def svg(answer: dict[str, Any]) -> str:
    """The whole picture."""
    items = rows(answer)
    values = [value for _, harm in items for value in harm]
    low, high = min(0.0, *values), max(values)
    scale = (WIDTH - LEFT - RIGHT) / (high - low)

    def x(value: float) -> float:
        return round(LEFT + (value - low) * scale, 1)

    height = TOP + ROW * len(items) + 16
    seeds = ", ".join(map(str, answer["seeds"]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<text x="12" y="22" font-weight="bold">Harm of two liars among five, one check taken away</text>',
        '<text x="12" y="42" fill="#555">validation loss above the honest run of the same seed, nats; ',
        f"dots: seeds {seeds}</text>",
    ]
    for index, (label, harm) in enumerate(items):
        y, mean = TOP + ROW * index, statistics.mean(harm)
        colour = "#2a7f62" if index == len(items) - 1 else "#b5482a"
        start, stop = sorted((x(0), x(mean)))
        size = f'width="{max(1.0, stop - start):.1f}" height="{ROW - 9}"'
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{label}</text>',
            f'<rect x="{start}" y="{y + 4}" {size} fill="{colour}" fill-opacity="0.75"/>',
            *(f'<circle cx="{x(value)}" cy="{y + 12.5}" r="3" fill="#222"/>' for value in harm),
            f'<text x="{x(max(0.0, mean, *harm)) + 9}" y="{y + 16}">{mean:+.2f}</text>',
        ]
    parts.append(f'<path d="M{x(0)} {TOP - 4}V{height - 12}" stroke="#222"/>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Read the benchmark's JSON from standard input and write the picture."""
    Path(sys.argv[1]).write_text(svg(json.load(sys.stdin)), encoding="utf-8")


if __name__ == "__main__":
    main()
