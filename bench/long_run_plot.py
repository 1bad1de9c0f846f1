"""The points of bench.long_run as a picture, and its table in Markdown.

    python -m bench.long_run_plot

Reads docs/benchmarks/long_run.json; writes long_run.svg beside it and prints the table for long_run.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.long_run import SAMPLE

HERE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
WIDTH, HEIGHT, LEFT, TOP = 940, 380, 60, 78
STYLE = "font-family:system-ui,sans-serif;font-size:13px"
COLOURS = ("#b5482a", "#3b5fa8", "#2a7f62", "#8a5a9c", "#8c7a1f", "#777")
Point = dict[str, Any]


def in_folder(*names: str) -> Callable[[Point], float]:
    """Megabytes of some folders together."""
    return lambda point: sum(point["bytes"].get(name, 0) for name in names) / 1e6


PANELS: list[tuple[str, dict[str, Callable[[Point], float]]]] = [
    ("resident memory, MB", {"": lambda point: point["resident_bytes"] / 1e6}),
    (
        "files, MB",
        {
            "log": in_folder("log"),
            "receipts": in_folder("receipts"),
            "hidden states": in_folder("state"),
            "checkpoints": in_folder("checkpoints"),
            "payloads": in_folder("payloads"),
            "members": in_folder("members", "coordinator"),
        },
    ),
    (
        "seconds a round",
        {"processor": lambda point: point["cpu_seconds"], "clock": lambda point: point["seconds"]},
    ),
]


def svg(answer: dict[str, Any]) -> str:
    """Three panels over the rounds: memory, files, time."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="12" y="22" font-weight="bold">{answer["rounds"]} rounds in one process</text>',
        (
            f'<text x="12" y="42" fill="#555">payloads of the last {answer["payload_rounds"]} rounds kept, '
            f"older checkpoints every {answer['checkpoint_every']}</text>"
        ),
    ]
    wide = (WIDTH - LEFT) / len(PANELS)
    for index, (title, lines) in enumerate(PANELS):
        parts += _panel(answer["points"], lines, LEFT + index * wide, wide - 70, title)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    points: list[Point], lines: dict[str, Callable[[Point], float]], left: float, wide: float, title: str
) -> list[str]:
    high, last = HEIGHT - TOP - 100, points[-1]["round"]
    top = 1.15 * max(of(point) for of in lines.values() for point in points)

    def at(number: float, value: float) -> tuple[float, float]:
        return left + wide * number / last, TOP + high * (1 - value / top)

    parts = [f'<text x="{left:.0f}" y="{TOP - 12}" font-weight="bold">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(0, top * share)
        parts.append(f'<line x1="{x:.1f}" x2="{x + wide:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
    for number in (0, last // 2, last):
        x, y = at(number, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{number}</text>')
    for index, (name, of) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*at(point["round"], of(point))) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x, y = left + 105 * (index % 2), TOP + high + 44 + 17 * (index // 2)
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{name}</text>')
    return parts


def slope(points: list[Point], of: Callable[[Point], float]) -> float:
    """By how much a value grows a round: least squares over the second half of the run."""
    half = points[len(points) // 2 :]
    xs, ys = [point["round"] for point in half], [of(point) for point in half]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def table(answer: dict[str, Any]) -> str:
    """The run at some rounds, what grows a round in its second half, and least, median and most time."""
    points = answer["points"]
    shown = [points[len(points) // 10 - 1], points[len(points) // 2 - 1], points[-1]]
    rows: dict[str, Callable[[Point], float]] = {
        "resident memory": lambda point: point["resident_bytes"],
        **{
            f"`{name}`": lambda point, name=name: point["bytes"].get(name, 0)  # type: ignore[misc]
            for name in sorted(points[-1]["bytes"])
        },
    }
    heads = " | ".join(f"round {point['round']}" for point in shown)
    lines = [f"| bytes | {heads} | bytes a round, second half |", "|" + "---|" * (len(shown) + 2)]
    for name, of in rows.items():
        cells = " | ".join(f"{of(point):,.0f}" for point in shown)
        lines.append(f"| {name} | {cells} | {slope(points, of):,.0f} |")
    fifth = len(points) // 5
    parts = [points[at * fifth : (at + 1) * fifth] for at in range(5)]
    rounds = " | ".join(f"{part[0]['round'] - SAMPLE + 1} to {part[-1]['round']}" for part in parts)
    lines += ["", f"| a round | {rounds} |", "|" + "---|" * 6]
    for name, key in (("processor", "cpu_seconds"), ("clock", "seconds")):
        cells = " | ".join(_spread([point[key] for point in part]) for part in parts)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{min(values):.3f}, {median(values):.3f}, {max(values):.3f} s"


def main() -> None:
    """Draw and print."""
    answer = json.loads((HERE / "long_run.json").read_text())
    (HERE / "long_run.svg").write_text(svg(answer))
    print(table(answer))


if __name__ == "__main__":
    main()
