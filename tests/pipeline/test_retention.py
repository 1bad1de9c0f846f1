"""Runs that let go of old payloads: what goes, what verification then says, and what crashes make of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, records_table
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run
from pipeline.shelf import Shelf
from tests.pipeline.late_runs import ALWAYS
from tests.pipeline.verify_tools import asked, check
from tests.tiny import copy_run, make_run, quiet, run_to_end, tiny_config
from verification.errors import StorageError, UsageError
from verification.fsck import check_run
from verification.records import RoundClose

ROUNDS = 8


def config(lag: int = 0, **retention: int) -> Any:
    """Rounds of which the last four and some are kept; checkpoints and snapshots of every second."""
    return tiny_config(
        run={"rounds": ROUNDS + 2 * lag},
        audit={**ALWAYS, "lag": lag} if lag else {},
        credit={"vest_rounds": 1 + lag},
        retention={"payload_rounds": 4 + 2 * lag, **retention},
    )


def names(folder: Path, part: str) -> set[str]:
    return {path.name for path in (folder / part).iterdir()}


class Kept:
    """A run to its end, and a copy of all that ever lay in its folder."""

    def __init__(self, root: Path, lag: int = 0, drill: str = "", **retention: int) -> None:
        self.run, self.home, self.all = root / "run", root / "home", root / "all"
        self.said: list[str] = []
        drills = {"c03": drill} if drill else None
        make_run(self.run, self.home, config(lag, **retention))
        tidy = Shelf.tidy
        with pytest.MonkeyPatch.context() as patch:

            def copied(shelf: Shelf) -> None:
                shutil.copytree(self.run, self.all, dirs_exist_ok=True)
                tidy(shelf)

            patch.setattr(Shelf, "tidy", copied)
            self.coordinator = run_to_end(self.run, self.home, drills=drills, tell=self.said.append)

    def archived(self, target: Path, *parts: str) -> Path:
        """The run's folder with everything of these parts put back that ever lay there."""
        folder = copy_run(self.run, target)
        for part in parts:
            shutil.copytree(self.all / part, folder / part, dirs_exist_ok=True)
        return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Eight rounds, of which the payloads of the first four went; c03 is found lazy in the first."""
    return Kept(tmp_path_factory.mktemp("kept"), drill="lazy")


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("late"), lag=1, drill="lazy")


def payloads(run: Path, low: int, high: int) -> set[str]:
    """Payloads that valid reveals of these rounds name."""
    found = check_run(run)
    return {
        turn.reveals[slot]["opening"]["payload"][7:]
        for turn in found.turns
        if low <= turn.open["round"] <= high and turn.reveal_close
        for slot in turn.reveal_close["revealed"]
    }


def test_payloads_and_states_of_old_rounds_go(kept: Kept) -> None:
    assert names(kept.run, "payloads") == payloads(kept.run, 5, 8)
    assert names(kept.all, "payloads") == payloads(kept.run, 1, 8)
    assert len(names(kept.run, "state")) == 2 * 3  # rounds 5 and 7; those of 3 went
    assert names(kept.run, "state") < names(kept.all, "state")
    assert {int(name[6:11]) for name in names(kept.run, "checkpoints")} == {0, 2, 4, 6, 8}


def test_people_are_told(kept: Kept) -> None:
    told = [line for line in kept.said if line.startswith("payloads of rounds")]
    assert [line.split(" were")[0] for line in told] == [
        "payloads of rounds 1 to 2",
        "payloads of rounds 1 to 4",
    ]
    dropped = kept.coordinator.desk.ledger.retention.dropped
    assert told[1].endswith(f"{dropped} in all: the run keeps those of the last 4 rounds or more")


def test_it_holds_at_every_level_and_says_what_it_cannot_speak_of(
    kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = len(payloads(kept.run, 1, 4))
    for level in (1, 2, 3):
        answer = check(kept.run, level)
        assert (answer.ok, answer.complete, answer.failures) == (True, True, [])
        none = gone if level == 3 else 0
        assert answer.dropped == {"rounds": 4, "payloads": gone, "contributions": none}
    assert (answer.recomputed, answer.population) == (4 * 3, 4 * 3 + gone)
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["verify", str(kept.run), "--level", "3"]) == 0
    words = capsys.readouterr().out
    assert (
        "rounds 1 to 4: payloads dropped by the run's retention policy; "
        "their aggregation rests on what was verified before"
    ) in words
    assert f"{gone} contributions cannot be recomputed any more" in words
    assert cli.run(["verify", str(kept.run), "--level", "1"]) == 0
    assert "rests on" not in capsys.readouterr().out
    assert asked(capsys, str(kept.run))[1]["dropped"]["rounds"] == 4


def test_an_archive_is_replayed_from_the_seed_again(kept: Kept, tmp_path: Path) -> None:
    whole = check(kept.archived(tmp_path / "whole", "payloads", "state"), 3)
    assert (whole.ok, whole.dropped) == (True, None), whole.failures
    assert whole.recomputed == whole.population
    without = check(kept.archived(tmp_path / "payloads", "payloads"), 3)
    assert (without.ok, without.dropped) == (True, None), without.failures
    assert without.recomputed == without.population, "states follow from the lineage"


def test_part_of_an_archive_is_replayed_from_the_first_checkpoint_that_will_do(
    kept: Kept, tmp_path: Path
) -> None:
    folder = kept.archived(tmp_path / "run", "payloads", "state")
    (folder / "payloads" / min(payloads(folder, 2, 2))).unlink()
    answer = check(folder, 3)
    assert (answer.ok, answer.dropped) == (
        True,
        {"rounds": 2, "payloads": 1, "contributions": len(payloads(folder, 1, 2))},
    )


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[Callable[[Kept, Path], Any], str]] = {
    "a payload that must stay": (
        lambda kept, run: (run / "payloads" / min(payloads(run, 5, 5))).unlink(),
        "is missing or cannot be read",
    ),
    "the checkpoint it begins at": (
        lambda kept, run: flipped(run / "checkpoints" / "round-00004.safetensors"),
        "a checkpoint file is not what the payloads give",
    ),
    "its outer state": (
        lambda kept, run: flipped(run / "checkpoints" / "round-00004.outer"),
        "a checkpoint file is not what the payloads give",
    ),
    "a checkpoint before it": (
        lambda kept, run: flipped(run / "checkpoints" / "round-00002.safetensors"),
        "a checkpoint file is not what the payloads give",
    ),
    "a checkpoint after it": (
        lambda kept, run: flipped(run / "checkpoints" / "round-00006.safetensors"),
        "a checkpoint file is not what the payloads give",
    ),
    "the first checkpoint": (
        lambda kept, run: flipped(run / "checkpoints" / "round-00000.safetensors"),
        "a checkpoint file is not what the payloads give",
    ),
    "evidence": (
        lambda kept, run: shutil.rmtree(run / "evidence" / "r00001-a0-s3"),
        "is missing or cannot be read",
    ),
    "a checkpoint that is missing": (
        lambda kept, run: (run / "checkpoints" / "round-00004.outer").unlink(),
        "a checkpoint is missing or empty",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_nothing_else_may_be_missing_or_wrong(kept: Kept, tmp_path: Path, what: str) -> None:
    run = copy_run(kept.run, tmp_path / "run")
    damage, said = DAMAGE[what]
    damage(kept, run)
    answer = check(run)
    assert not answer.ok
    assert said in answer.failures[0]["what"]


def test_old_checkpoints_are_thinned(tmp_path: Path) -> None:
    kept = Kept(tmp_path, checkpoint_every=6)
    assert {int(name[6:11]) for name in names(kept.run, "checkpoints")} == {0, 4, 6, 8}
    assert check(kept.run).ok
    whole = check(kept.archived(tmp_path / "whole", "payloads"))
    assert (whole.ok, whole.dropped) == (True, None)


@pytest.mark.parametrize("group", [1, 7, 10_000])
def test_the_table_of_a_log_of_any_length_is_written_in_groups(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(records_table, "GROUP_ROWS", group)
    ledger = kept.coordinator.desk.ledger
    records_table.write_contributions(RunFolder(tmp_path), ledger.each_record(), 455)
    path = RunFolder(tmp_path).contributions_file
    rows = records_table.contribution_rows(ledger.records(), 455)
    assert records_table.read_contributions(path, len(rows)) == rows
    records_table.write_contributions(RunFolder(tmp_path), [ledger.manifest], 455)
    assert records_table.read_contributions(path, 0) == []


# --- members ---


def test_members_keep_all_receipts(kept: Kept) -> None:
    """A later one does not replace an earlier: no proof is shown that its head continues that one's."""
    [folder] = (kept.home / "runs").iterdir()
    receipts = sorted(path.name for path in (folder / "c00" / "receipts").glob("*.tlog-proof"))
    assert receipts == [f"r{number:05d}-a0.tlog-proof" for number in range(1, 9)]


# --- audits that lag ---


def test_where_audits_lag_the_floor_is_firm_and_it_holds(late: Kept, tmp_path: Path) -> None:
    """c03's second contribution was taken out unseen when its first was found lazy: nobody asks for it."""
    answer, gone = check(late.run, 3), len(payloads(late.run, 1, 4))
    expected = {"rounds": 4, "payloads": gone, "contributions": gone - 1}
    assert (answer.ok, answer.dropped) == (True, expected), answer.failures
    whole = check(late.archived(tmp_path / "whole", "payloads", "state"), 3)
    assert (whole.ok, whole.dropped) == (True, None), whole.failures


def test_where_audits_lag_a_round_is_not_firm_while_something_is_removed(tmp_path: Path) -> None:
    """Its checkpoint is not what it is settled as: a replay could not begin there."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, config(lag=1))
    floors: list[int] = []

    def seen(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        floors.append(coordinator.desk.ledger.retention.floor)

    continue_run(RunFolder(run), home, View(quiet, seen), drills={"c03": "lazy"})
    assert floors == [0] * 9 + [4]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4, 7, 9])
def test_where_audits_lag_a_resumed_run_needs_no_dropped_payload(tmp_path: Path, stop: int) -> None:
    """Stopped after every round: the lineage is taken up from the last firm checkpoint."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, config(lag=1))

    def halt(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        if close.round == stop:
            raise KilledError

    with pytest.raises(KilledError):
        continue_run(RunFolder(run), home, View(quiet, halt), drills={"c03": "lazy"})
    run_to_end(run, home, drills={"c03": "lazy"})
    answer = check(run)
    assert (answer.ok, answer.complete) == (True, True), answer.failures
    assert answer.dropped
    assert answer.dropped["rounds"] == 4


# --- crashes ---


class KilledError(Exception):
    """The coordinator's process is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 3, 5])
def test_a_kill_while_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Killed at the n-th file that goes for good: it holds as it is, and after it was taken up again."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, config())
    unlink, left = Path.unlink, [3 * calls]

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.parent in (run / "payloads", run / "state"):
            left[0] -= 1
            if not left[0]:
                raise KilledError
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KilledError):
        run_to_end(run, home)
    monkeypatch.undo()
    broken = check(run)
    assert (broken.ok, broken.complete) == (True, False), broken.failures
    run_to_end(run, home)
    assert names(run, "payloads") == payloads(run, 5, 8)
    answer = check(run)
    assert (answer.ok, answer.complete) == (True, True), answer.failures


def test_a_kill_between_the_close_and_what_goes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, config())
    tidy = Shelf.tidy

    def dies(shelf: Shelf) -> None:
        if shelf._ledger.state.rounds_done == 6:
            raise KilledError
        tidy(shelf)

    monkeypatch.setattr(Shelf, "tidy", dies)
    with pytest.raises(KilledError):
        run_to_end(run, home)
    monkeypatch.undo()
    assert names(run, "payloads") == payloads(run, 1, 6)
    assert check(run).dropped is None
    seen: list[set[str]] = []
    run_to_end(run, home, seen=lambda close: seen.append(names(run, "payloads")))
    assert seen[0] == payloads(run, 3, 7)
    assert check(run).ok


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, config())

    def refused(folder: RunFolder, part: str, digests: Any) -> None:
        raise OSError(5, "Input/output error", str(folder.path / part))

    monkeypatch.setattr(RunFolder, "keep_only", refused)
    with pytest.raises(StorageError):
        run_to_end(run, home)


# --- the configuration ---


@pytest.mark.parametrize(
    ("retention", "words"),
    [
        ({"payload_rounds": 2}, "at least credit.vest_rounds + audit.lag + state.every, which is 3"),
        ({"payload_rounds": 4, "checkpoint_every": 3}, "must be a multiple of checkpoint.every, 2"),
        ({"checkpoint_every": 4}, "needs retention.payload_rounds"),
        ({"payload_rounds": -1}, "retention.payload_rounds"),
    ],
)
def test_policies_that_drop_what_is_needed_are_refused(retention: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        tiny_config(retention=retention)
    assert words in str(caught.value)


def test_the_least_that_is_allowed() -> None:
    assert tiny_config(retention={"payload_rounds": 3}).retention.payload_rounds == 3
    assert tiny_config().retention.payload_rounds == 0
