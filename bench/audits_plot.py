"""The curves of `bench.audits` as a picture, and its tables in Markdown.

    python -m bench.audits_plot

Reads docs/benchmarks/audits.json; writes audits.svg beside it and prints the tables for audits.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
WIDTH, HEIGHT, LEFT, TOP = 760, 380, 60, 56
STYLE = "font-family:system-ui,sans-serif;font-size:13px"
COLOURS = ("#2a7f62", "#b5482a", "#3b5fa8")


def svg(answer: dict[str, Any]) -> str:
    """Share of forgers found after n rounds: measured as dots, expected as a line."""
    curves = answer["detection"]["curves"]
    rounds = len(curves[0]["share"])
    wide, high = WIDTH - LEFT - 30, HEIGHT - TOP - 50

    def at(n: int, share: float) -> str:
        return f"{LEFT + wide * n / rounds:.1f},{TOP + high * (1 - share):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        '<text x="12" y="22" font-weight="bold">One false segment of twenty in every round</text>',
        '<text x="12" y="42" fill="#555">share found; lines: 1 - (1 - p d)^n; dots: shipped audits</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + high * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for n in range(0, rounds + 1, 10):
        x = LEFT + wide * n / rounds
        parts.append(f'<text x="{x}" y="{TOP + high + 20}" text-anchor="middle">{n}</text>')
    parts.append(
        f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle">rounds of cheating</text>'
    )
    for index, (curve, colour) in enumerate(zip(curves, COLOURS, strict=True)):
        line = " ".join(at(n, value) for n, value in enumerate([0, *curve["expected"]]))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for n in range(2, rounds + 1, 3):
            x, y = at(n, curve["share"][n - 1]).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        label = f"p = {curve['rate_ppm'] / 1e6:g}, {curve['looked']} of 20 segments"
        y = TOP + high - 70 + 20 * index
        parts.append(f'<text x="{WIDTH - 40}" y="{y}" text-anchor="end" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def tables(answer: dict[str, Any]) -> str:
    """Detection and cost as Markdown."""
    found = answer["detection"]
    lines = [
        "| cheat | false segments | looked at | found | share, 95 % interval | expected |",
        "|" + "---|" * 6,
    ]
    for row in found["table"]:
        share = f"{row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        false = row["false"] or "none, after the steps"
        lines.append(
            f"| {row['cheat']} | {false} | {row['looked']} of {found['steps']} "
            f"| {row['found']} of {row['draws']} | {share} | {row['power']:.3f} |"
        )
    lines += [
        "",
        f"Honest work, one segment: {found['honest_alarms']} of {found['table'][0]['draws']} found fault.",
        "",
    ]
    lines += [
        "| local steps | audit of a segment | trace and kept states add | opened, MB | weights, MB |",
        "|" + "---|" * 5,
    ]
    lines += [
        f"| {row['steps']} | {row['audit_of_one']:.1%} | {row['tracing']:.1%} "
        f"| {row['served_bytes'] / 1e6:.1f} | {row['weights_bytes'] / 1e6:.1f} |"
        for row in answer["cost"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Draw and print."""
    answer = json.loads((HERE / "audits.json").read_text())
    (HERE / "audits.svg").write_text(svg(answer))
    print(tables(answer))


if __name__ == "__main__":
    main()
