"""The shares of bench.whole_runs as a picture, and its tables in Markdown.

    python -m bench.whole_runs_plot

Reads docs/benchmarks/whole_runs.json; writes whole_runs.svg beside it and prints the tables for audits.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
WIDTH, HEIGHT, LEFT, TOP = 760, 400, 60, 78
STYLE = "font-family:system-ui,sans-serif;font-size:13px"
COLOURS = ("#b5482a", "#3b5fa8", "#2a7f62", "#8a5a9c")
NAMES = {
    "lazy-1": "lazy, 1 of 20 steps",
    "lazy-5": "lazy, 5 of 20 steps",
    "lazy-20": "lazy, 20 of 20 steps",
    "state-smuggler": "state smuggler",
}


def svg(answer: dict[str, Any]) -> str:
    """A panel a policy: found shares with their intervals, and lines of what is expected."""
    policies = sorted({(row["rate_ppm"], row["looked"]) for row in answer["points"]}, reverse=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        (
            f'<text x="12" y="22" font-weight="bold">Whole runs: cheats found within N rounds, '
            f"{answer['runs']} runs a policy</text>"
        ),
        '<text x="12" y="42" fill="#555">lines: 1 - (1 - p d)^N; dots: runs, with 95 % intervals</text>',
    ]
    wide = (WIDTH - LEFT - 60) / len(policies)
    for index, policy in enumerate(policies):
        rows = [row for row in answer["points"] if (row["rate_ppm"], row["looked"]) == policy]
        left = LEFT + index * (wide + 40)
        parts += _panel(rows, left, wide - 10, f"p = {policy[0] / 1e6:g}, {policy[1]} of 20 segments")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(rows: list[dict[str, Any]], left: float, wide: float, title: str) -> list[str]:
    high, rounds = HEIGHT - TOP - 90, len(rows[0]["found"])

    def at(n: float, share: float) -> tuple[float, float]:
        return left + wide * n / rounds, TOP + high * (1 - share)

    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(0, share)
        parts.append(f'<line x1="{x:.1f}" x2="{x + wide:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for n in range(rounds + 1):
        x, y = at(n, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{n}</text>')
    for index, row in enumerate(rows):
        colour, runs = COLOURS[index % len(COLOURS)], row["runs"]
        line = " ".join("{:.1f},{:.1f}".format(*at(n, e)) for n, e in enumerate([0, *row["expected"]]))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for n, (count, (low, top)) in enumerate(zip(row["found"], row["intervals"], strict=True), start=1):
            x, y = at(n + 0.08 * (index - 1.5), count / runs)
            bottom, up = at(0, low)[1], at(0, top)[1]
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{up:.1f}" stroke="{colour}"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        x, y = LEFT + 175 * index, HEIGHT - 16
        if left == LEFT:
            parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{NAMES[row["kind"]]}</text>')
    middle = left + wide / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{TOP + high + 42}" text-anchor="middle">rounds of cheating, N</text>'
    )
    return parts


def _share(count: int, tries: int, interval: list[float]) -> str:
    return f"{count / tries:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def tables(answer: dict[str, Any]) -> str:
    """Cheats, lying auditors and the honest, as Markdown."""
    shown = (1, 4, 8)
    lines = [
        "| cheat | p | k of 20 | p d | runs | "
        + " | ".join(f"within {n}, 95 % interval | expected" for n in shown)
        + " |",
        "|" + "---|" * (5 + 2 * len(shown)),
    ]
    for row in answer["points"]:
        cells = " | ".join(
            f"{_share(row['found'][n - 1], row['runs'], row['intervals'][n - 1])} "
            f"| {row['expected'][n - 1]:.3f}"
            for n in shown
        )
        lines.append(
            f"| {NAMES[row['kind']]} | {row['rate_ppm'] / 1e6:g} | {row['looked']} "
            f"| {row['caught_a_round']:.4f} | {row['runs']} | {cells} |"
        )
    agreed, all_runs = (sum(row[key] for row in answer["points"]) for key in ("found_as_drawn", "runs"))
    inside, cells_ = coverage(answer)
    lines += ["", f"Found in the round that the draw says, or not at all: {agreed} of {all_runs}."]
    lines += [f"Expected share inside the interval: {inside} of {cells_} (points times N = 1 to 8).", ""]
    lines += ["| auditor | runs | rounds | occasions | overruled | share | expected |", "|" + "---|" * 7]
    lines += [
        f"| {row['name']} | {row['runs']} | {row['rounds']} | {row['occasions']} | {row['overruled']} "
        f"| {_share(row['overruled'], row['occasions'], row['interval'])} | {row['expected']:.3f} |"
        for row in answer["liars"]
    ]
    for row in answer["liars"]:
        if "by_round" in row:
            told = row["by_round"]
            lines += ["", f"{row['name']} overruled within N rounds, {told['runs']} runs:"]
            lines += [
                f"N = {n}: {_share(told['found'][n - 1], told['runs'], told['intervals'][n - 1])}, "
                f"expected {told['expected'][n - 1]:.3f}"
                for n in shown
            ]
    lines += ["", json.dumps(answer["honest"])]
    return "\n".join(lines)


def coverage(answer: dict[str, Any]) -> tuple[int, int]:
    """In how many of all cells the expected share lies in the interval, and how many cells there are."""
    cells = [
        low <= expected <= high
        for row in answer["points"]
        for expected, (low, high) in zip(row["expected"], row["intervals"], strict=True)
    ]
    return sum(cells), len(cells)


def main() -> None:
    """Draw and print."""
    answer = json.loads((HERE / "whole_runs.json").read_text())
    (HERE / "whole_runs.svg").write_text(svg(answer))
    print(tables(answer))


if __name__ == "__main__":
    main()
