"""Code in an interpreter of its own, before anything has imported torch."""

import os
import subprocess
import sys
from pathlib import Path

from model import numerics

ROOT = Path(__file__).resolve().parents[1]


def run_fresh(code, **variables):
    """Standard output of `code` in a new interpreter without the profile's variables."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in numerics.environment("exact")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": str(ROOT)} | variables,
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.strip()
