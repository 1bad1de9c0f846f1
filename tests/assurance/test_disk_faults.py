"""Disk errors and kills: a sample under strace where there is one, and all of Python's own calls anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from assurance import disk_faults
from assurance.disk_faults import Tally, in_process, strace_refuses, traced, unflushed
from assurance.disk_faults_checks import problems
from assurance.disk_faults_child import OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_call_of_the_operating_system_may_fail(operation: str) -> None:
    tally = in_process(operation, {"append": 5, "ledger": 5, "recovery": 15}.get(operation, 1))
    assert tally.found == []
    assert tally.tried > 10
    assert tally.acknowledged >= 2  # at the least the undisturbed ones, once a fault


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_system_calls_may_fail_or_be_the_last(operation: str) -> None:
    refused = strace_refuses()
    if refused:
        pytest.skip(f"NOT CHECKED with strace: {refused}")
    tally, calls, late = traced(operation, {"append": 13, "ledger": 11, "recovery": 35}.get(operation, 7))
    assert tally.found == []
    assert late == []
    assert calls >= 10
    assert tally.tried >= 4


def careless(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """What write_atomic must not be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(handle, data[: len(data) // 2])
    os.write(handle, data[len(data) // 2 :])
    os.close(handle)


@pytest.mark.parametrize(
    ("operation", "module", "kinds"),
    [
        ("append", "verification.log", {"corrupt", "family"}),
        ("checkpoint", "pipeline.folder", {"between", "family"}),
        ("commit", "pipeline.vault", {"corrupt", "family"}),
    ],
)
def test_writing_in_place_is_found_out(
    monkeypatch: pytest.MonkeyPatch, operation: str, module: str, kinds: set[str]
) -> None:
    monkeypatch.setattr(f"{module}.write_atomic", careless)
    assert kinds <= set(in_process(operation, 1).wrong)


def test_an_acknowledged_append_that_is_not_there_is_found_out(tmp_path: Path) -> None:
    OPERATIONS["append"][0](tmp_path / "log")
    assert problems("append", tmp_path / "log", None) == []
    OPERATIONS["append"][0](tmp_path / "again")
    assert any(line.startswith("lost: 3") for line in problems("append", tmp_path / "again", "done it"))


def test_an_error_of_another_family_is_counted() -> None:
    tally = Tally()
    tally.add("here", "wrong OSError: 5", [])
    tally.add("there", "refused StorageError", [])
    tally.add("killed", None, [])
    assert (tally.tried, tally.wrong) == (3, {"family": 1})


def test_what_is_not_flushed_in_time_is_found_out() -> None:
    def lines(*calls: str) -> list[str]:
        return [f"17 {call} = 0" for call in calls]

    write, flush = 'write(3</d/.a.tmp>, "x", 1)', "fsync(3</d/.a.tmp>)"
    rename, folder = 'rename("/d/.a.tmp", "/d/a")', "fsync(3</d>)"
    assert unflushed(lines(write, flush, rename, folder)) == []
    assert unflushed(lines(write, rename, flush, folder)) == ["/d/.a.tmp before rename to /d/a"]
    assert unflushed(lines(write, flush, rename)) == ["/d at the end"]
    head = ('write(3</l/.c.tmp>, "x", 1)', "fsync(3</l/.c.tmp>)", 'rename("/l/.c.tmp", "/l/checkpoint")')
    done = (*head, "fsync(3</l>)")
    assert unflushed(lines(write, flush, rename, folder, *done)) == []
    assert unflushed(lines(write, flush, rename, *done)) == [
        "/d before rename to /l/checkpoint",
        "/d at the end",
    ]


def test_without_strace_the_figures_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(disk_faults.child, "OPERATIONS", {"key": OPERATIONS["key"]})
    figures = list(disk_faults.measure(full=False))
    assert figures[0].holds is False
    assert all(figure.holds for figure in figures[1:])
    assert "NOT MEASURED" in capsys.readouterr().err
