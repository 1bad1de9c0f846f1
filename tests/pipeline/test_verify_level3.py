"""Level 3 of `verify`: samples, what is recomputed, machines that cannot."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import replay_work
from pipeline.verify import Answer
from tests.pipeline.verify_tools import asked, check


def recomputed_by(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[Answer, list[str]]:
    """The answer, and the contributions that were recomputed."""
    done: list[str] = []
    true_work = replay_work.do_work

    def noting(job: Any, data: Any, open_: Any, entry: Any, *rest: Any) -> Any:
        done.append(f"{open_.round}/{entry.slot}")
        return true_work(job, data, open_, entry, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(replay_work, "do_work", noting)
        folder, options = arguments
        answer = check(folder, 3, **options)
    return answer, done


def test_a_sample_can_be_drawn_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, done = recomputed_by(monkeypatch, run, {"sample": 3})
    assert first.ok
    assert first.sample_seed is not None
    assert first.population == 10
    # the sampled ones and what leads to them from a known state
    assert 3 <= first.recomputed == len(done) <= 10
    again, same = recomputed_by(monkeypatch, run, {"sample": 3, "sample_seed": first.sample_seed})
    assert (again.sample_seed, same) == (first.sample_seed, done)
    others = {
        tuple(recomputed_by(monkeypatch, run, {"sample": 3, "sample_seed": seed})[1]) for seed in range(4)
    }
    assert len(others) > 1


def test_a_sample_larger_than_the_run_is_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(capsys, str(run), "--level", "3", "--sample", "99", "--sample-seed", "5")
    assert (code, answer["recomputed"], answer["population"], answer["sample_seed"]) == (0, 10, 10, 5)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_reading_the_table_leaves_no_thread_behind(run: Path) -> None:
    """A thread of pyarrow's that still holds a Python object as the process ends aborts it."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.records_table import read_contributions\n"
        "before = os.listdir('/proc/self/task')\n"
        "assert read_contributions(Path(sys.argv[1]), 1000)\n"
        "assert os.listdir('/proc/self/task') == before\n"
    )
    command = [sys.executable, "-c", code, str(run / "contributions.parquet")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_sample_no_seed_is_drawn(run: Path) -> None:
    assert check(run, 3).sample_seed is None


def test_another_numerics_class_cannot_recompute(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_work, "numerics_class", lambda profile, threads: "another-machine")
    code, answer = asked(capsys, str(run), "--level", "3")
    assert code == 1
    said = {f["what"] for f in answer["failures"] if f["got"] == "another-machine"}
    assert said == {"this machine cannot recompute that numerics class"}
    assert all(re.match(r"round \d, attempt 0, slot \d", f["where"]) for f in answer["failures"])
    assert check(run, 2).ok
