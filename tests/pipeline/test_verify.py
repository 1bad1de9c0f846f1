"""The command `verify`: exit codes, the JSON answer, wrong use, incomplete runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.auditing import Hearing
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run
from tests.pipeline.verify_tools import asked, check, signed_manifest
from tests.tiny import copy_run, make_run, quiet, tiny_config
from verification.encoding import canonical_json, sha256_digest
from verification.fsck import check_run
from verification.records import RoundClose

FIELDS = {
    "ok",
    "complete",
    "anchored",
    "level",
    "run_id",
    "log_size",
    "log_head",
    "log_vkey",
    "rounds",
    "weights_digest",
    "recomputed",
    "failures",
}


# --- the answer ---


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_json_answer_has_the_documented_fields(
    run: Path, capsys: pytest.CaptureFixture[str], level: int
) -> None:
    code, answer = asked(capsys, str(run), "--level", str(level))
    assert code == 0
    assert set(answer) >= FIELDS
    manifest = (run / "manifest.json").read_bytes()
    assert answer["run_id"] == sha256_digest(manifest)
    assert answer["log_vkey"] == json.loads(manifest)["log_vkey"]
    assert (answer["ok"], answer["complete"], answer["anchored"]) == (True, True, None)
    assert (answer["level"], answer["rounds"], answer["failures"]) == (level, 3, [])
    size, root = (run / "log" / "checkpoint").read_text().splitlines()[1:3]
    assert answer["log_size"] == int(size)
    assert answer["log_head"] == "sha256:" + base64.b64decode(root).hex()
    assert answer["weights_digest"].startswith("blake3:")
    # 4 + 3 + 3 contributions, the lazy one among them: it must be rejected for a reason.
    assert answer["recomputed"] == (10 if level == 3 else 0)


def test_a_failure_has_four_words(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = copy_run(run, tmp_path / "damaged")
    payload = min((damaged / "payloads").iterdir())
    payload.write_bytes(payload.read_bytes()[:-1])
    code, answer = asked(capsys, str(damaged))
    assert (code, answer["ok"]) == (1, False)
    assert set(answer) >= FIELDS
    [failure] = answer["failures"]
    assert set(failure) == {"what", "where", "expected", "got"}
    assert failure["where"] == f"payloads/{payload.name}"
    assert failure["expected"] == f"blake3:{payload.name}"
    assert failure["got"].startswith("blake3:")


def test_the_answer_in_words(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["verify", str(run)]) == 0
    words = capsys.readouterr().out
    assert "holds at level 2: 3 rounds" in words
    assert "self-consistent, tied to nobody you named" in words
    assert f"Next: barnraise verify {run} --level 3" in words
    answer = check(run)
    assert cli.run(["verify", str(run), "--level", "3", "--vkey", answer.log_vkey]) == 0
    words = capsys.readouterr().out
    assert "10 contributions recomputed of 10" in words
    assert "anchored vkey" in words


def test_level_1_keeps_no_turns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def checked(*arguments: Any, **options: Any) -> Any:
        findings = check_run(*arguments, **options)
        found.append(len(findings.turns))
        return findings

    monkeypatch.setattr("pipeline.verify.check_run", checked)
    assert check(run, 1).ok
    assert check(run, 2).ok
    assert found == [0, 3]


# --- wrong use ---


def test_what_is_no_run_is_wrong_use(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", run / "manifest.json"):
        assert cli.run(["verify", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_a_run_of_another_protocol_is_wrong_use(
    run: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def newer(value: dict[str, Any]) -> None:
        value["protocol"] = 2

    folder = signed_manifest(run, home, tmp_path / "newer", newer)
    for level in ("1", "2", "3"):
        assert cli.run(["verify", str(folder), "--level", level]) == 2
        said = capsys.readouterr().err
        assert "another protocol version" in said
        assert "the release that made it" in said


def test_a_manifest_that_disagrees_about_the_protocol_is_a_failure(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """manifest.json says 2, the log 1: no other version's run, a damaged one."""
    folder = copy_run(run, tmp_path / "run")
    value = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(canonical_json({**value, "protocol": 2}))
    code, answer = asked(capsys, str(folder))
    assert code == 1
    assert answer["failures"][0]["what"] == "manifest.json is not the manifest of the log"


def test_a_sample_of_nothing_is_wrong_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", str(run), "--level", "3", "--sample", "0"]) == 2
    assert "--sample of 1 or more" in capsys.readouterr().err


def test_level_3_without_torch_says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    true_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pipeline.replay_work":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    code = cli.run(["verify", str(run), "--level", "3"])
    monkeypatch.undo()
    assert code == 2
    assert "barnraise[train]" in capsys.readouterr().err


# --- runs that have not ended ---


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_run_stopped_between_turns(tmp_path: Path, turns: int) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, tiny_config())
    copies: list[Path] = [copy_run(run, tmp_path / "after-0")]

    def seen(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        copies.append(copy_run(run, tmp_path / f"after-{close.round}"))

    if turns:
        continue_run(RunFolder(run), home, View(quiet, seen))
    for level in (1, 2, 3):
        answer = check(copies[turns], level)
        assert (answer.ok, answer.complete, answer.rounds) == (True, False, turns), answer.failures


class KilledError(Exception):
    """The coordinator's process is gone."""


@pytest.mark.parametrize(
    "step",
    [
        "collect_commitments",
        "collect_reveals",
        "draw",
        "collect_states",
        "first_looks",
        "draw_second_looks",
        "second_looks",
        "disputes",
        "close",
    ],
)
def test_a_run_killed_within_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """KilledError in round 2 before a step: an incomplete run that holds, at every level."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, tiny_config(run={"rounds": 2}))
    owner: Any = Coordinator if hasattr(Coordinator, step) else Hearing
    true_step = getattr(owner, step)

    def dies(self: Coordinator | Hearing) -> Any:
        if self.desk.ledger.state.round == 2:
            raise KilledError
        return true_step(self)

    monkeypatch.setattr(owner, step, dies)
    with pytest.raises(KilledError):
        continue_run(RunFolder(run), home, View(quiet, lambda *_: None))
    for level in (1, 2, 3):
        answer = check(run, level)
        assert (answer.ok, answer.complete, answer.rounds) == (True, False, 1), answer.failures
    (run / "payloads" / ("0" * 64)).write_bytes(b"not of this turn")
    assert not check(run).ok


def test_an_ended_run_needs_its_table(run: Path, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path / "run")
    (folder / "contributions.parquet").unlink()
    [failure] = check(folder).failures
    assert (failure["what"], failure["where"]) == (
        "the table of contributions is missing",
        "contributions.parquet",
    )
