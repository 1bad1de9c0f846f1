"""What a stopped or unlucky run whose audits lag leaves in its folder, and what `verify` says of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.contributor import Contributor
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.verify import Answer, VerifyOptions, show, verify
from tests.pipeline.late_runs import LIAR, late_config, late_story, records_of, removed
from tests.tiny import make_run, run_to_end, tiny_config
from verification.errors import FormatError, ProtocolError, UsageError
from verification.records import RoundClose, Settlement


def checked(run: Path, level: int) -> Answer:
    return verify(VerifyOptions(run, level=level), lambda *_: None)  # type: ignore[arg-type]


def words(answer: Answer, run: Path) -> str:
    console = Console(file=io.StringIO(), width=300)
    show(answer, VerifyOptions(run, level=answer.level), console)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class StopError(BaseException):
    """A kill."""


@pytest.mark.parametrize("every", [1, 3])
def test_a_void_turn_before_a_settlement_that_cuts_out_keeps_the_folder_whole(
    tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Contributor.commit

    def away(self: Contributor, envelope: bytes, checkpoint: bytes) -> bytes:
        open_ = self.opened(envelope)
        if (open_.round, open_.attempt) == (2, 0):
            raise ProtocolError("away")
        return commit(self, envelope, checkpoint)

    monkeypatch.setattr(Contributor, "commit", away)
    story = late_story(tmp_path, 1, "lazy", checkpoint={"every": every})
    records = records_of(story)
    assert [record.round for record in records if isinstance(record, RoundClose) and record.void] == [2]
    assert [(item.round, item.member) for item in removed(records)] == [(1, LIAR)]
    for level in (1, 2, 3):
        assert checked(story.folder, level).failures == []


def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed between its first settlement and the checkpoint file that it changes."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, late_config(1))
    append, put = Coordinator._append, RunFolder.put_checkpoint
    last: list[str] = [""]

    def appending(self: Coordinator, record: Any, **more: Any) -> None:
        append(self, record, **more)
        last[0] = record.kind

    def putting(self: RunFolder, *arguments: Any) -> None:
        if last[0] == Settlement.kind:
            raise StopError
        put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "_append", appending)
        patch.setattr(RunFolder, "put_checkpoint", putting)
        with pytest.raises(StopError):
            run_to_end(run, home, drills={LIAR: "lazy"})
    return run


def test_a_kill_between_a_settlement_and_its_file_is_nobodys_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(tmp_path, monkeypatch)
    for level in (1, 2):
        answer = checked(run, level)
        assert (answer.failures, answer.complete, answer.waiting) == ([], False, 1)
        assert "1 turns wait for their audits, and the weights hold what nobody has judged yet" in words(
            answer, run
        )
    # Other bytes than those of before and after are.
    file = RunFolder(run).weights_file(2)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = checked(run, 2).failures
    assert [failure["where"] for failure in found] == ["checkpoints/round-00002.safetensors"]
    data[-1] ^= 1
    file.write_bytes(data)
    run_to_end(run, tmp_path / "home", drills={LIAR: "lazy"})
    ended = checked(run, 3)
    assert (ended.failures, ended.complete, ended.waiting) == ([], True, 0)


def test_level_3_says_that_an_audit_is_still_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, late_config(2))
    turn = Coordinator.run_turn

    def once(self: Coordinator) -> RoundClose:
        if self.state.rounds_done:
            raise StopError
        return turn(self)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "run_turn", once)
        with pytest.raises(StopError):
            run_to_end(run, home, drills={LIAR: "lazy"})
    answer = checked(run, 3)
    assert answer.waiting == 1
    assert answer.failures
    assert {"a contribution that still waits for its audit" in f["what"] for f in answer.failures} == {True}


def test_without_a_lag_nothing_waits(tmp_path: Path) -> None:
    story = late_story(tmp_path, 0, run={"rounds": 1})
    answer = checked(story.folder, 1)
    assert answer.waiting == 0
    assert "wait for their audits" not in words(answer, story.folder)


def test_a_settlement_must_fit_a_log_entry() -> None:
    assert late_config(8, train={"steps": [1] * 12})
    with pytest.raises(UsageError, match="settled 40 turns late, does not fit a log entry"):
        late_config(40, train={"steps": [1] * 12})
    assert tiny_config(train={"steps": [1] * 12})


@pytest.mark.parametrize("part", [None, ("x", []), (1, None), (True, []), [1], (1, [], 2)])
def test_proofs_of_other_parts_are_refused_in_words(tmp_path: Path, part: Any) -> None:
    from pipeline.contributor import _inclusion

    with pytest.raises(FormatError, match="a proof of inclusion has other parts"):
        _inclusion(part)
    with pytest.raises(FormatError, match="not bytes"):
        _inclusion((1, [1]))
    assert _inclusion([3, (b"a", b"b")]) == (3, [b"a", b"b"])
