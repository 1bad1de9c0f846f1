"""A verifier needs no framework: what importing each module of `verification` loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "verification"
MODULES = sorted(f"verification.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__")
HEAVY = ("torch", "ray", "wandb", "numpy", "pyarrow", "safetensors", "pydantic")


def loaded(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after running `code`."""
    show = f"\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + show], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_probe_sees_a_heavy_package() -> None:
    assert len(MODULES) >= 9
    assert loaded("import numpy") == {"numpy"}


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_no_array_and_no_framework(module: str) -> None:
    assert loaded(f"import {module}") == set()
