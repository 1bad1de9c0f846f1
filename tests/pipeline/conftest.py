"""Runs that several files look at and none changes: each is made once, when the first test asks for it.

What makes them is imported then, too: most tests here need no whole run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pipeline.witnessed import Played


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private folders of `run`."""
    return tmp_path_factory.mktemp("verify-home")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Three rounds, c03 found lazy in the first."""
    from tests.tiny import tiny_config, tiny_run

    folder = tmp_path_factory.mktemp("verify") / "run"
    tiny_run(folder, home, tiny_config(), drills={"c03": "lazy"})
    return folder


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A run to its end with everybody there, and audits left to lot at a rate of nothing."""
    from tests.pipeline.witnessed import NEVER, start

    played = start(tmp_path_factory.mktemp("witnessed"), audit=NEVER)
    played.go()
    return played
