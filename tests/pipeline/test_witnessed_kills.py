"""Runs with witnesses, killed at any step: the same weights, nothing signed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.folder import RunFolder
from pipeline.run import create_run
from tests.pipeline.crash_tools import Site, killed_at, records, scratch, signed_twice, small_config
from tests.pipeline.witnessed import of
from tests.tiny import TinyWitnesses, quiet, run_to_end
from verification.records import RoundClose
from verification.rounds import replay


@dataclass(frozen=True)
class Watched(Site):
    """A site with its witnesses, which are killed with it."""

    def make(self) -> None:
        witnesses = TinyWitnesses(self.root / "w")
        folder = RunFolder(self.folder)
        create_run(small_config(), folder, self.home, quiet, None, witnesses.enlisted)

    def finish(self) -> str:
        witnesses = TinyWitnesses(self.root / "w")
        return run_to_end(self.folder, self.home, witnesses=witnesses).state.base.weights


def survives(steps: Callable[[list[str]], list[int]]) -> int:
    """Kill at chosen steps of a run with witnesses; what is left goes on to the same weights each time."""
    with scratch() as root:
        made = Watched(root / "made")
        made.make()
        clean = Watched(made.copy(root / "clean").root)
        names = killed_at(clean, None, clean.finish)
        assert names
        weights = of(RoundClose, records(clean))[-1].weights
        chosen = steps(names)
        for step in chosen:
            site = Watched(made.copy(root / f"at-{step}").root)
            assert killed_at(site, step, site.finish) is None, names[step]
            assert killed_at(site, None, site.finish)
            found = records(site)
            assert of(RoundClose, found)[-1].weights == weights, names[step]
            assert replay(found[0], found[1:]).finished  # type: ignore[arg-type]
            assert signed_twice(site) == [], names[step]
            assert not list((site.root / "w").rglob("forks")), names[step]
        return len(chosen)


def test_a_kill_around_a_cosigned_draw_changes_nothing() -> None:
    def steps(names: list[str]) -> list[int]:
        own = [i for i, name in enumerate(names) if name.startswith("replace /w/")]
        assert len(own) >= 15
        return [own[i] for i in (3, 5, 8)]

    assert survives(steps) == 3


@pytest.mark.slow
def test_a_kill_at_any_step_of_witnesses_log_journal_and_receipts_changes_nothing() -> None:
    def steps(names: list[str]) -> list[int]:
        places = ("/w/", "/run/log/.checkpoint", "/journal", "/receipts")
        return [i for i, name in enumerate(names) if any(place in name for place in places)][::5]

    assert survives(steps) > 20
