"""`python -m assurance`: every measurement, and docs/assurance.md from their figures.

Owns the page. Does not own any measurement.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
from pathlib import Path

from assurance.figures import Figure

PARTS = {
    "vectors": "Others' test vectors",
    "go_log": "Go's own verifier on our log",
    "bit_flips": "Our verifier on flipped bits",
    "disk_faults": "Every system call failed in turn",
    "simulation": "The protocol, simulated",
    "fuzzing": "Malformed input",
    "mutations": "Every check taken out in turn",
    "level1": "Speed and memory of level 1",
}
PAGE = Path(__file__).parents[1] / "docs" / "assurance.md"
HEAD = """# Assurance

How hard the log and its verifiers are to fool. Every figure was printed by the command under it, on the
machine named below; `make assurance` repeats all of them and writes this page.

"""


def main() -> None:
    """Run the parts that are asked for; exit 0 when every figure holds, else 1."""
    parser = argparse.ArgumentParser(description="Measure how hard the log and its verifiers are to fool.")
    parser.add_argument("--full", action="store_true", help="the amounts that docs/assurance.md reports")
    parser.add_argument("--write", action="store_true", help="write docs/assurance.md")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all when none is named")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    holds, page = True, [HEAD, _machine()]
    for name in options.parts or PARTS:
        print(f"\n{PARTS[name]}", file=sys.stderr, flush=True)
        started = time.monotonic()
        figures = []
        for figure in importlib.import_module(f"assurance.{name}").measure(full=options.full):
            print(figure.line(), flush=True)
            figures.append(figure)
        holds = holds and all(figure.holds for figure in figures)
        page.append(section(PARTS[name], figures, time.monotonic() - started))
    if options.write:
        PAGE.write_text("\n".join(page))
        print(f"\nwritten: {PAGE}", file=sys.stderr)
    sys.exit(0 if holds else 1)


def section(title: str, figures: list[Figure], seconds: float) -> str:
    """One part of the page: a table of its figures."""
    lines = [f"## {title}", "", "| figure | value | target | holds |", "|---|---|---|---|"]
    for figure in figures:
        of = f" of {figure.tried:,}" if figure.tried is not None else ""
        holds = "yes" if figure.holds else "**no**"
        lines.append(f"| {figure.what} | {figure.value:,}{of} | {figure.target} | {holds} |")
    lines.append("")
    lines += [f"- {figure.what}: {figure.note}" for figure in figures if figure.note]
    commands = sorted({figure.command for figure in figures})
    lines += ["", *(f"    {command}" for command in commands), "", f"{seconds:.0f} s.", ""]
    return "\n".join(lines)


def _machine() -> str:
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    return f"Machine: {len(cpus) or '?'} x {name}, {platform.system()}, Python {platform.python_version()}.\n"


if __name__ == "__main__":
    main()
