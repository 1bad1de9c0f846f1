"""What auditors told lies on disk until the audits of its turn are over."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.told import Question, ToldFiles
from tests.pipeline.segment_runs import turns
from tests.pipeline.tolerance_runs import tolerant_run
from verification.errors import StorageError

ONE = Question(turn=3, slot=1, auditor="a-1.x", wave=0)


def test_an_answer_is_had_again_for_its_question_alone(tmp_path: Path) -> None:
    told = ToldFiles(tmp_path / "told")
    assert told.get(ONE) is None
    told.put(ONE, b"[[1]]")
    assert ToldFiles(tmp_path / "told").get(ONE) == b"[[1]]"
    for name in ("turn", "slot", "wave"):
        assert told.get(replace(ONE, **{name: 7})) is None
    assert told.get(replace(ONE, auditor="a-1")) is None
    (file,) = (tmp_path / "told").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_turn_that_is_over_is_forgotten_with_what_a_kill_left_of_it(tmp_path: Path) -> None:
    told = ToldFiles(tmp_path)
    told.forget(9)
    for turn in (0, 2, 3, 10):
        told.put(replace(ONE, turn=turn), b"[]")
    (tmp_path / f".{ONE.name}.tmp").write_bytes(b"[")
    told.forget(3)
    assert [path.name for path in tmp_path.iterdir()] == [replace(ONE, turn=10).name]


def test_what_cannot_be_read_is_an_error_of_the_family(tmp_path: Path) -> None:
    (tmp_path / ONE.name).mkdir()
    with pytest.raises(StorageError):
        ToldFiles(tmp_path).get(ONE)
    with pytest.raises(StorageError):
        ToldFiles(tmp_path).forget(ONE.turn)


def test_after_a_run_there_is_nothing_left(tmp_path: Path) -> None:
    story = tolerant_run(tmp_path, run={"rounds": 1})
    assert turns(story)[0].rejected == {}
    kept = story.members / "coordinator" / "told"
    assert kept.is_dir()
    assert list(kept.iterdir()) == []
