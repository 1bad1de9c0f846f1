"""`barnraise rerun`: a case stands alone, says the same anywhere, and hides no exchanged part."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from pipeline import rerun as rerun_module
from pipeline.auditor import Auditor
from pipeline.evidence import CASE, _reason, rerun_files
from pipeline.rerun import Rerun, RerunOptions, command, rerun
from tests.pipeline.adversary_runs import tell
from tests.pipeline.segment_runs import LIAR, SLOT, check, config
from verification.encoding import blake3_digest, canonical_json
from verification.errors import BarnraiseError, ProtocolError, UsageError
from verification.records import Verdict

WHOLE = {"audit": {"segments": 0}}


def one_case(folder: Path, kind: str, **sections: Any) -> Path:
    """The only case of a run with one liar, copied away from its run."""
    story = tell(folder, config(**sections), {LIAR: kind} if kind else {})
    (case,) = sorted((story.folder / "evidence").iterdir())[:1]
    away = folder / "away"
    shutil.copytree(case, away)
    return away


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Two of its four segments are false, so three drawn ones hit one, however the draw falls.
    return one_case(tmp_path_factory.mktemp("lazy"), "lazy", audit={"segments": 3})


def words(folder: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = command(RerunOptions(folder), console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_fault_is_borne_out_from_its_case_alone(lazy: Path) -> None:
    answer = rerun(lazy)
    assert (answer.member, answer.slot, answer.round, answer.reason) == (LIAR, SLOT, 1, "failed-audit")
    assert len(answer.segments) == 3
    assert answer.differs
    assert [(said.look, said.outcome, said.same) for said in answer.verdicts] == [
        (1, "fail", True),
        (2, "fail", True),
    ]
    assert answer.borne_out is True
    code, text = words(lazy)
    assert code == 0
    assert "c03 in round 1, slot 3: rejected as failed-audit" in text
    assert "borne out: the contribution differs in trace" in text
    assert "Next: " in text


@pytest.mark.parametrize("kind", ["wrong-data", "state-smuggler", "random"])
@pytest.mark.parametrize("sections", [{}, WHOLE], ids=["some segments", "all segments"])
def test_other_faults_are_borne_out_too(kind: str, sections: dict[str, Any], tmp_path: Path) -> None:
    away = one_case(tmp_path, kind, **sections)
    assert rerun(away).borne_out is True
    assert (away / "trace").exists() == (sections != WHOLE)


def test_a_payload_that_the_codec_refuses(tmp_path: Path) -> None:
    away = one_case(tmp_path, "nan")
    answer = rerun(away)
    assert (answer.reason, answer.differs, answer.borne_out) == ("malformed-payload", ("payload",), True)
    assert "the codec refuses the payload" in words(away)[1]


def _accuse(self: Auditor, *arguments: Any) -> Any:
    found = _compute(self, *arguments)
    if arguments[0].entry.slot != SLOT:
        return found
    return replace(found, payload=blake3_digest(b"something else"))


_compute = Auditor.compute


def test_two_auditors_that_lie_alike_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Auditor, "compute", _accuse)
    away = one_case(tmp_path, "", run={"rounds": 1})
    answer = rerun(away)
    assert answer.reason == "failed-audit"
    assert answer.differs == ()
    assert [said.same for said in answer.verdicts] == [False, False]
    assert answer.borne_out is False
    code, text = words(away)
    assert code == 1
    assert "NOT what this machine finds" in text
    assert "NOT borne out: the contribution is as it was claimed" in text


def test_a_machine_of_another_class_says_that_it_cannot_tell(
    lazy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerun_module, "numerics_class", lambda *_: "exact-avx2.v2/x86-64/torch-9")
    answer = rerun(lazy)
    assert answer.borne_out is None
    assert answer.differs is None
    code, text = words(lazy)
    assert code == 1
    assert "cannot tell here" in text
    assert "exact-avx2.v2/x86-64/torch-9" in text


def test_json_has_every_field(lazy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(RerunOptions(lazy, json=True), Console(file=io.StringIO())) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == Rerun.__dataclass_fields__.keys()
    assert told["borne_out"] is True


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != CASE)


def put(folder: Path, name: str, data: bytes) -> None:
    """Exchange a file of a case, and tell its digest rightly."""
    (folder / name).write_bytes(data)
    case = json.loads((folder / CASE).read_bytes())
    case["files"][name] = blake3_digest(data)
    (folder / CASE).write_bytes(canonical_json(case))


def test_a_case_has_all_it_takes(lazy: Path) -> None:
    assert files_of(lazy) == [
        "draw", "manifest", "open", "payload", "reveal", "start_state", "trace", "verdict-1", "verdict-2",
        "weights", "windows",
    ]  # fmt: skip


def test_a_changed_file_is_refused_by_its_digest(lazy: Path, tmp_path: Path) -> None:
    for name in files_of(lazy):
        shutil.copytree(lazy, tmp_path / name)
        data = (lazy / name).read_bytes()
        (tmp_path / name / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ProtocolError, match="is not the case's"):
            rerun(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["manifest", "open", "reveal", "draw", "verdict-1", "weights", "start_state", "trace"]
)
def test_a_changed_file_with_its_digest_told_rightly_is_refused(
    name: str, lazy: Path, tmp_path: Path
) -> None:
    """The windows are not signed by anybody: level 3 compares them with the run's."""
    shutil.copytree(lazy, tmp_path / "case")
    data = (lazy / name).read_bytes()
    for at in (0, len(data) // 2, len(data) - 1):
        put(tmp_path / "case", name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BarnraiseError):
            rerun(tmp_path / "case")


@pytest.mark.parametrize(
    "name", ["manifest", "open", "reveal", "draw", "weights", "windows", "start_state", "trace"]
)
def test_a_case_that_lacks_a_part_is_refused_by_its_name(name: str, lazy: Path, tmp_path: Path) -> None:
    shutil.copytree(lazy, tmp_path / "case")
    case = json.loads((lazy / CASE).read_bytes())
    del case["files"][name]
    (tmp_path / "case" / CASE).write_bytes(canonical_json(case))
    with pytest.raises(BarnraiseError, match=name):
        rerun(tmp_path / "case")


def test_verdicts_cannot_change_places(lazy: Path, tmp_path: Path) -> None:
    shutil.copytree(lazy, tmp_path / "case")
    put(tmp_path / "case", "verdict-1", (lazy / "verdict-2").read_bytes())
    with pytest.raises(ProtocolError, match="another look"):
        rerun(tmp_path / "case")


@pytest.mark.parametrize(
    "change",
    [
        {"round": 2},
        {"attempt": 1},
        {"run": "sha256:" + "0" * 64},
        {"slot": 0},
        {"files": 7},
        {"files": {"../x": 1}},
    ],
    ids=str,
)
def test_a_case_about_something_else_is_refused(change: dict[str, Any], lazy: Path, tmp_path: Path) -> None:
    shutil.copytree(lazy, tmp_path / "case")
    case = json.loads((lazy / CASE).read_bytes())
    (tmp_path / "case" / CASE).write_bytes(canonical_json({**case, **change}))
    with pytest.raises(BarnraiseError):
        rerun(tmp_path / "case")


def test_what_is_no_case_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"evidence/"):
        rerun(tmp_path)
    (tmp_path / CASE).write_bytes(b"[]")
    with pytest.raises(BarnraiseError, match="is not a case"):
        rerun(tmp_path)


@pytest.mark.parametrize("name", ["windows", "weights"])
def test_level_3_compares_windows_and_weights_with_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that puts others into a case, and names the case in the log, is found out."""

    def spoiled(*arguments: Any) -> dict[str, bytes]:
        files = rerun_files(*arguments)
        data = files[name]
        return {**files, name: data[:-1] + bytes([data[-1] ^ 1])}

    monkeypatch.setattr("pipeline.auditing.rerun_files", spoiled)
    story = tell(tmp_path, config(audit={"segments": 3}), {LIAR: "lazy"})
    told = [failure["what"] for failure in check(story.folder).failures]
    assert told == [f"the {name} in the evidence are not the run's"]


# --- forged cases ---


def forged(folder: Path, source: Path, keep: set[str], **told: Any) -> Path:
    """A case of some files of another, that says of itself what it likes."""
    shutil.copytree(source, folder)
    case = json.loads((folder / CASE).read_bytes())
    case["files"] = {name: digest for name, digest in case["files"].items() if name in keep}
    (folder / CASE).write_bytes(canonical_json({**case, **told}))
    return folder


RECORDS = {"manifest", "open", "reveal"}


def test_junk_is_not_what_a_member_revealed(lazy: Path, tmp_path: Path) -> None:
    case = forged(tmp_path / "case", lazy, {*RECORDS, "payload"}, reason="malformed-payload")
    assert rerun(case).borne_out is False, "the codec takes it"
    put(case, "payload", b"junk")
    with pytest.raises(ProtocolError, match="not the one that was revealed"):
        rerun(case)


REASONS: list[Any] = ["failed-audit", "caught stealing", "disputed", 7, None, ["failed-audit"]]


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_the_reason_is_what_the_verdicts_come_to(reason: Any, lazy: Path, tmp_path: Path) -> None:
    case = forged(tmp_path / "case", lazy, {*RECORDS, "payload"}, reason=reason)
    with pytest.raises(BarnraiseError, match="reason"):
        rerun(case)


def test_one_verdict_is_not_two(lazy: Path, tmp_path: Path) -> None:
    fewer = {*files_of(lazy)} - {"verdict-2"}
    with pytest.raises(ProtocolError, match="reason"):
        rerun(forged(tmp_path / "fault", lazy, fewer))
    answer = rerun(forged(tmp_path / "alone", lazy, fewer, reason="unconfirmed"))
    assert (answer.reason, answer.borne_out) == ("unconfirmed", True)
    assert "not decided in the run" in words(tmp_path / "alone")[1]
    with pytest.raises(ProtocolError, match="each another operator's"):
        rerun(forged(tmp_path / "second", lazy, {*files_of(lazy)} - {"verdict-1"}, reason="unconfirmed"))


def test_what_is_no_plain_file_is_not_opened(lazy: Path, tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(lazy, case)
    (case / "windows").unlink()
    (case / "windows").symlink_to("/dev/zero")
    with pytest.raises(BarnraiseError, match="no plain file"):
        rerun(case)
    (case / "windows").unlink()
    os.mkfifo(case / "windows")
    with pytest.raises(BarnraiseError, match="no plain file"):
        rerun(case)
    (case / "windows").unlink()
    with (case / "windows").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(BarnraiseError, match="too long"):
        rerun(case)


def test_work_that_two_of_another_class_passed_is_no_case_of_an_overruled_auditor() -> None:
    """Whoever failed it is of a class of its own: nobody is overruled, so there is nothing to bear out."""

    def told(outcome: Literal["pass", "fail"], numerics_class: str) -> Verdict:
        place = (1, "sha256:" + "00" * 32, 1, 0, 0, 1, "a0", "")
        zero = "blake3:" + "00" * 32
        return Verdict(*place, outcome, (), zero, zero, (), None, 0, (), numerics_class)

    with pytest.raises(ProtocolError, match="nobody who failed it was overruled"):
        _reason([told("fail", "x"), told("pass", "y"), told("pass", "y")])
    assert _reason([told("fail", "y"), told("pass", "y"), told("pass", "y")]) == "overruled"
