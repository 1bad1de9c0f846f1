"""Seeded stories of the protocol: every invariant holds of thousands of them, and a seed replays exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assurance.simulation import EXPECTED, measure, simulate, tell, totals
from tests.simulator.setting import draw
from tests.simulator.tally import COMINGS, Result, run_seed

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(6))
def test_no_invariant_is_broken(seed: int) -> None:
    result = run_seed(seed)
    assert result.violations == []
    assert result.counts["run: turns"] > 0


def disturbed() -> int:
    """The first seed in which the coordinator and a member die on the way."""
    for seed in range(100):
        weather = draw(seed).weather
        if weather.coordinator_crash > 0.5 and weather.member_crash > 0.2:
            result = run_seed(seed)
            if result.counts["run: taken up after a crash"] and result.counts["fault: member crashed"]:
                return seed
    raise AssertionError("no such seed")


def test_a_seed_replays_to_the_byte_whatever_the_process() -> None:
    seed = disturbed()
    once, again = run_seed(seed), run_seed(seed)
    assert (once.log, once.counts) == (again.log, again.counts)
    assert once.log != run_seed(seed + 1).log
    code = f"from tests.simulator.tally import run_seed; print(run_seed({seed}).log)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": "12345", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == once.log


def test_a_seed_can_be_told_turn_by_turn(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(3) == 0
    told = capsys.readouterr().out
    assert told.startswith("seed 3: ")
    assert "turn 0 (round 1, attempt 0): drawn" in told
    assert f"log {run_seed(3).log}" in told
    assert "VIOLATION" not in told


def test_a_violation_is_told_and_counts_against_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [run_seed(0), Result(1, ["[lie] something is not named"], run_seed(1).counts, "")]
    monkeypatch.setattr("assurance.simulation.simulate", lambda seeds, **_: results)
    broken, missed, absent = measure(full=False)
    assert (broken.value, broken.holds, missed.value, missed.holds) == (1, False, 1, False)
    assert "seeds 1" in broken.note
    assert not absent.holds  # two seeds do not reach everything


@pytest.mark.slow
def test_a_thousand_seeds_break_nothing_and_reach_everything(tmp_path: Path) -> None:
    results = simulate(range(1000))
    assert [result.seed for result in results] == list(range(1000))
    (tmp_path / "counts.json").write_text(json.dumps(totals(results), indent=1, sort_keys=True))
    broken = {result.seed: result.violations for result in results if result.violations}
    assert broken == {}
    counts = totals(results)
    assert [what for what in (*EXPECTED, *COMINGS) if not counts[what]] == []
    lies = {what: count for what, count in counts.items() if what.startswith("lie: ")}
    assert len(lies) >= 14, lies
    assert sum(lies.values()) > 200
