"""Level 1 on the files beside the log: missing, unexpected, linked, or not of their case."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, note_of, sha, vkey
from tests.verification.test_fsck_lies import lying, setter
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

Record = dict[str, Any]


def replaced(run: Path, name: str, data: bytes) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "log/tile/entries/000.p/3",
        "log/other",
        "payloads/" + "00" * 32,
        "payloads/x",
        "state/" + "00" * 32,
        "data/extra",
        "evidence/r00001-a0-s0/case.json",
        "evidence/r00002-a0-s2/more",
        "checkpoints/round-00001.outer",
    ],
)
def test_an_unexpected_file(tmp_path: Path, name: str) -> None:
    run = Writer(tmp_path / "run").run().write()
    replaced(run, name, b"stale")
    assert [f.where for f in check_run(run).failures] == [name]


@pytest.mark.parametrize("folder", ["log", "payloads", "state", "data", "evidence", "checkpoints"])
def test_every_missing_file_is_named(tmp_path: Path, folder: str) -> None:
    run = Writer(tmp_path / "run").run().write()
    for path in sorted((run / folder).rglob("*")):
        if path.is_file() and (folder != "payloads" or path.name < "8"):
            data = path.read_bytes()
            path.unlink()
            assert any(str(path.relative_to(run)) == f.where for f in check_run(run).failures), path
            path.write_bytes(data)
    shutil.rmtree(run / folder)
    assert check_run(run).failures


def test_links_and_odd_files_are_refused_not_followed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run()
    run = writer.write()
    payload = next((run / "payloads").iterdir())
    (tmp_path / "away").write_bytes(payload.read_bytes())
    payload.unlink()
    payload.symlink_to(tmp_path / "away")
    shard = run / "data" / "t0.arrow"
    shard.unlink()
    os.mkfifo(shard)
    case = run / "evidence" / "r00002-a0-s2" / "case.json"
    case.unlink()
    case.mkdir()
    where = {f.where for f in check_run(run).failures}
    assert where >= {str(p.relative_to(run)) for p in (payload, shard, case)}


def evidence_run(tmp_path: Path, change: Callable[[Record], None]) -> list[str]:
    """A run whose case.json says something else, with the digest in the close to fit."""

    class Framing(Writer):
        def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
            super().evidence(line, reason, reveals)
            name = f"evidence/r{self.round:05d}-a{self.attempt}-s{line['slot']}/case.json"
            if reason != "failed-audit":
                return sha(self.files[name]) if name in self.files else None
            case = json.loads(self.files[name])
            change(case)
            self.files[name] = canon(case)
            return sha(canon(case))

    return [f.what for f in check_run(Framing(tmp_path / "run").run().write()).failures]


def test_evidence_must_be_of_its_case(tmp_path: Path) -> None:
    assert evidence_run(tmp_path, lambda c: None) == []
    assert evidence_run(tmp_path, lambda c: c.update(slot=1)) == [
        "the slot in the evidence against slot 2 in round 2 is wrong"
    ]
    assert (
        "the files in the evidence"
        in evidence_run(tmp_path, lambda c: c["files"].update(payload=b3(b"x")))[0]
    )
    assert "malformed" in evidence_run(tmp_path, lambda c: c["files"].update({"../x": b3(b"x")}))[0]
    assert "malformed" in evidence_run(tmp_path, lambda c: c.update(more=1))[0]


def test_a_payload_of_the_wrong_length(tmp_path: Path) -> None:
    writer = Writer(
        tmp_path / "run", lie=lying("manifest", setter("arrays", [["a", [8, 32]]])), train__mode="gradient"
    )
    assert any("has the wrong length" in f.what for f in check_run(writer.run().write()).failures)


def test_the_log_key_of_another(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=1)
    run = writer.write()
    replaced(run, "log/checkpoint", note_of(writer.entries, signer="ann").encode())
    found = check_run(run, vkey=vkey())
    assert [f.where for f in found.failures] == ["log/checkpoint"]
    assert found.anchored is None
