"""The form of a figure in docs/assurance.md, and how a measurement runs from the command line.

Owns words and exit codes. Does not own any measurement: each module beside this one has its own `measure`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number: `value` of `tried`, and whether it meets `target`, which is text such as `0`.

    `note` says what it was measured on, or what stopped it; `command` repeats it.
    """

    what: str
    value: float
    target: str
    holds: bool
    command: str
    tried: int | None = None
    note: str = ""

    def line(self) -> str:
        """The figure for people, on one line."""
        of = f" of {self.tried:,}" if self.tried is not None else ""
        mark = "holds" if self.holds else "MISSED"
        note = f"  ({self.note})" if self.note else ""
        return f"{mark:<6}  {self.what}: {self.value:,}{of}, target {self.target}{note}"


Measure = Callable[..., Iterator[Figure]]


def main(measure: Measure) -> None:
    """`python -m assurance.X [--full] [--json]`: print the figures; exit 0 when all of them hold, else 1."""
    parser = argparse.ArgumentParser(description=(measure.__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the amounts that docs/assurance.md reports")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    options = parser.parse_args()
    holds = True
    for figure in measure(full=options.full):
        holds = holds and figure.holds
        print(json.dumps(asdict(figure)) if options.json else figure.line(), flush=True)
    sys.exit(0 if holds else 1)
