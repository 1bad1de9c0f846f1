"""`python -m assurance`: every measurement, and docs/assurance.md from their figures.

Owns the page, and the results it is made from: docs/assurance/PART.json, one for each part, with the commit
it was measured at. Does not own any measurement.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "assurance"
HEAD = """# Assurance

How hard the log and its verifiers are to fool. Every figure was printed by the command under it and is kept
in [assurance/](assurance/); `make assurance` measures all of them again and writes this page. A part that
has no figures here was not measured whole yet.
"""


def main() -> None:
    """Run the parts that are asked for; exit 0 when every figure holds, else 1."""
    parser = argparse.ArgumentParser(description="Measure how hard the log and its verifiers are to fool.")
    parser.add_argument("--full", action="store_true", help="the amounts that docs/assurance.md reports")
    parser.add_argument("--write", action="store_true", help="keep the results and write docs/assurance.md")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all when none is named")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    holds = True
    for name in options.parts or PARTS:
        print(f"\n{PARTS[name]}", file=sys.stderr, flush=True)
        started = time.monotonic()
        figures = []
        for figure in importlib.import_module(f"assurance.{name}").measure(full=options.full):
            print(figure.line(), flush=True)
            figures.append(figure)
        holds = holds and all(figure.holds for figure in figures)
        if options.write:
            keep(name, figures, time.monotonic() - started)
    if options.write:
        page = ROOT / "docs" / "assurance.md"
        page.write_text(written())
        print(f"\nwritten: {page}", file=sys.stderr)
    sys.exit(0 if holds else 1)


def keep(name: str, figures: list[Figure], seconds: float) -> None:
    """Store the results of a part."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "commit": commit,
        "figures": [asdict(figure) for figure in figures],
        "machine": machine(),
        "seconds": round(seconds),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def written() -> str:
    """The page, from the results that are kept."""
    parts = [HEAD]
    for name, title in PARTS.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append(section(title, json.loads(file.read_text())))
        else:
            parts.append(
                f"## {title}\n\nNot measured whole yet: `python -m assurance --full --write {name}`.\n"
            )
    return "\n".join(parts)


def section(title: str, result: dict[str, Any]) -> str:
    """One part of the page: a table of its figures."""
    figures = [Figure(**figure) for figure in result["figures"]]
    lines = [f"## {title}", "", "| figure | value | target | holds |", "|---|---|---|---|"]
    for figure in figures:
        of = f" of {figure.tried:,}" if figure.tried is not None else ""
        holds = "yes" if figure.holds else "**no**"
        lines.append(f"| {figure.what} | {figure.value:,}{of} | {figure.target} | {holds} |")
    lines.append("")
    lines += [f"- {figure.what}: {figure.note}" for figure in figures if figure.note]
    commands = sorted({figure.command for figure in figures})
    lines += ["", *(f"    {command}" for command in commands), ""]
    took = f", {result['seconds']:,} s" if result["seconds"] is not None else ""
    lines += [f"At {result['commit']}{took}, {result['machine']}.", ""]
    return "\n".join(lines)


def machine() -> str:
    """What this was measured on."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    return f"{len(cpus) or '?'} x {name}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
