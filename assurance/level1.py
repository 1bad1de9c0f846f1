"""How fast level 1 reads a long log on one core, and how much memory it takes.

Owns the targets. Does not own the log or the measuring, which are bench/level1.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from assurance.figures import Figure, main

COMMAND = "python -m bench.level1 --json --entries"
TARGET = 5_000
MORE_MIB = 4.0


def measure(*, full: bool) -> Iterator[Figure]:
    """Check made-up logs of two sizes, each in a process of its own on one core."""
    sizes = ("5000", "50000") if full else ("500", "2000")
    done = subprocess.run(
        [sys.executable, "-m", "bench.level1", "--json", "--entries", *sizes],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    *_, small, large = json.loads(done.stdout)["rows"]
    command = f"{COMMAND} {' '.join(sizes)}"
    speed = max(small["entries_per_cpu_s"], large["entries_per_cpu_s"])
    yield Figure(
        "log entries checked in a second of one core",
        speed,
        f"{TARGET:,} or more",
        speed >= TARGET,
        command,
        note=f"{small['bytes_per_entry']} bytes an entry; the faster of both sizes",
    )
    more = round(large["peak_rss_mib"] - small["peak_rss_mib"], 1)
    yield Figure(
        "MiB that a log ten times as long takes more",
        more,
        f"at most {MORE_MIB}",
        more <= MORE_MIB,
        command,
        note=f"{small['peak_rss_mib']} and {large['peak_rss_mib']} MiB at most in all",
    )


if __name__ == "__main__":
    main(measure)
