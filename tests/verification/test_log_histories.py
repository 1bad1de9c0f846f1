"""The log through crashes at every step, full disks and any history, against a list."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.verification.log_model import (
    CALLS,
    KEY,
    ORIGIN,
    VKEY,
    Crash,
    batch,
    calls_in,
    check_folder,
    expected_files,
    failing,
    files_of,
    full_disk,
    make,
    reader,
    writer,
)
from verification.errors import StorageError
from verification.log import Log
from verification.merkle import leaf_hash, verify_consistency, verify_inclusion
from verification.notes import parse_checkpoint


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether bytes reached the platter, only when they were asked to."""
    monkeypatch.setattr(os, "fsync", os.fstat)


# Crashes


def survive(folder: Path, name: str, at: int, error: BaseException, old: int, count: int) -> bool:
    """One append with a failure, then reopening. Returns whether the failure happened."""
    log = writer(folder)
    caught: BaseException | None = None
    try:
        with failing(name, at, error):
            text = log.append(batch(old, count))
    except (StorageError, Crash) as raised:
        caught = raised
    if caught is None:
        assert parse_checkpoint(text, VKEY).size == old + count
        return False
    assert isinstance(caught, Crash) or "disk is full" in str(caught)
    assert isinstance(caught, Crash) == isinstance(error, Crash)
    with pytest.raises(StorageError):
        log.append([b"not before it is opened again"])
    assert list(log.entries()) in (batch(0, old), batch(0, old + count))
    assert log.size == 0 or len(log.inclusion_proof(0)) == (log.size - 1).bit_length()
    size = reader(folder).size
    assert size in (old, old + count)
    again = writer(folder)
    check_folder(folder, batch(0, size))
    again.append(batch(size, old + count + 1 - size))
    check_folder(folder, batch(0, old + count + 1))
    return True


@pytest.mark.parametrize("crash", [False, True], ids=["full-disk", "crash"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("old", "count"), [(0, 1), (3, 2), (250, 10), (255, 258), (256, 1)])
def test_a_failure_at_every_step_leaves_the_old_log_or_the_new(
    tmp_path: Path, old: int, count: int, name: str, crash: bool
) -> None:
    make(tmp_path / "base", old)
    shutil.copytree(tmp_path / "base", tmp_path / "0")
    log = writer(tmp_path / "0")
    steps = calls_in(name, lambda: log.append(batch(old, count)))
    assert steps > 0 or name in ("unlink", "rmdir", "mkdir")
    for at in range(1, steps + 2):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "base", folder)
        assert survive(folder, name, at, Crash() if crash else full_disk(), old, count) == (at <= steps)


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("crash", [False, True])
def test_a_failure_while_creating_can_be_repeated(tmp_path: Path, name: str, crash: bool) -> None:
    for at in range(1, 10):
        folder = tmp_path / str(at)
        try:
            with failing(name, at, Crash() if crash else full_disk()):
                Log.create(folder, ORIGIN, KEY)
        except (StorageError, Crash):
            log = writer(folder) if (folder / "checkpoint").exists() else Log.create(folder, ORIGIN, KEY)
            log.append([b"x"])
            check_folder(folder, [b"x"])
        else:
            break
    assert 1 < at < 9


def test_a_failure_while_cleaning_up_can_be_repeated(tmp_path: Path) -> None:
    for name in ("unlink", "rmdir", "fsync"):
        for at in range(1, 10):
            folder = tmp_path / f"{name}{at}"
            make(folder, 2)
            for leftover in ("tile/0/000.p/1", "tile/0/000", "tile/1/000.p/1"):
                (folder / leftover).parent.mkdir(parents=True, exist_ok=True)
                (folder / leftover).touch()
            try:
                with failing(name, at, full_disk()):
                    writer(folder)
            except StorageError:
                writer(folder)
                check_folder(folder, batch(0, 2))
            else:
                break
        assert 1 < at < 9


def test_the_checkpoint_is_written_last_and_stale_tiles_go_after_it(tmp_path: Path) -> None:
    log = make(tmp_path, 250)
    steps: list[str] = []

    def recording(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            target = args[-1] if name == "replace" else args[0]
            if name == "fsync":
                target = Path(f"/proc/self/fd/{target}").readlink()
            steps.append(f"{name} {Path(target).relative_to(tmp_path)}")
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, recording(name))
        log.append(batch(250, 7))
    commit = steps.index("replace checkpoint")
    assert steps[commit - 1 : commit + 2] == ["fsync .checkpoint.tmp", "replace checkpoint", "fsync ."]
    tiles = {name for name in expected_files(batch(0, 257)) if name not in expected_files(batch(0, 250))}
    assert {step.split()[1] for step in steps[:commit] if step.startswith("replace")} == tiles
    for place, step in enumerate(steps[:commit]):
        if step.startswith("replace"):
            target = Path(step.split()[1])
            assert steps[place - 1] == f"fsync {target.with_name(f'.{target.name}.tmp')}"
            assert steps[place + 1] == f"fsync {target.parent}"
    removed = [place for place, step in enumerate(steps) if step.startswith("unlink")]
    assert {steps[place] for place in removed} == {"unlink tile/0/000.p/250", "unlink tile/entries/000.p/250"}
    assert min(removed) > commit + 1


# Any history, against a list


class LogMachine(RuleBasedStateMachine):
    """A log and the list of entries that it should hold."""

    @initialize()
    def start(self) -> None:
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "log"
        self.log = Log.create(self.folder, ORIGIN, KEY)
        self.model: list[bytes] = []
        self.heads = [self.log.head]

    def settle(self, entries: list[bytes]) -> None:
        self.model = entries
        self.heads.append(self.log.head)

    @rule(entries=st.lists(st.binary(max_size=20), max_size=5))
    def append(self, entries: list[bytes]) -> None:
        self.log.append(entries)
        self.settle(self.model + entries)

    @precondition(lambda self: len(self.model) < 800)
    @rule(extra=st.integers(-2, 2))
    def fill_the_tile(self, extra: int) -> None:
        entries = batch(len(self.model), max(1, 256 - len(self.model) % 256 + extra))
        self.log.append(entries)
        self.settle(self.model + entries)

    @rule(
        entries=st.lists(st.binary(max_size=5), min_size=1, max_size=4),
        name=st.sampled_from(CALLS),
        at=st.integers(1, 15),
        crash=st.booleans(),
    )
    def fail_and_reopen(self, entries: list[bytes], name: str, at: int, crash: bool) -> None:
        try:
            with failing(name, at, Crash() if crash else full_disk()):
                self.log.append(entries)
        except (StorageError, Crash):
            self.log = writer(self.folder)
        assert self.log.size in (len(self.model), len(self.model) + len(entries))
        self.settle((self.model + entries)[: self.log.size])

    @rule()
    def reopen(self) -> None:
        self.log = writer(self.folder)

    @rule(data=st.data())
    def prove(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.heads))
        verify_consistency(
            old.size, self.log.size, self.log.consistency_proof(old.size), old.root, self.log.root
        )
        if self.model:
            index = data.draw(st.integers(0, len(self.model) - 1))
            leaf = leaf_hash(self.model[index])
            verify_inclusion(index, self.log.size, leaf, self.log.inclusion_proof(index), self.log.root)

    @invariant()
    def agrees(self) -> None:
        check_folder(self.folder, self.model)
        assert list(self.log.entries()) == self.model
        assert reader(self.folder).checkpoint == self.log.checkpoint

    def teardown(self) -> None:
        self.temporary.cleanup()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@pytest.mark.slow
def test_a_log_with_tiles_of_the_third_level(tmp_path: Path) -> None:
    log = make(tmp_path, 65_536 + 255)
    log.append(batch(log.size, 2))
    check_folder(tmp_path, batch(0, 65_793))
    assert "tile/2/000.p/1" in files_of(tmp_path)
    assert writer(tmp_path).root == log.root
