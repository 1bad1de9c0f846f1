"""The run folder: paths of section 11, content by digest, and what is removed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.folder import PARTS, RunFolder
from tests.verification.fake_run import manifest, started
from verification.encoding import blake3_digest, canonical_json, digest_hex, sha256_digest, to_json
from verification.errors import FormatError, StorageError, UsageError
from verification.plans import plan_open

OPEN = plan_open(started())
WEIGHTS = {"w": np.zeros((2, 3), dtype=np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    for part in PARTS:
        (tmp_path / part).mkdir()
    return RunFolder(tmp_path)


def test_paths_are_those_of_the_protocol(folder: RunFolder) -> None:
    root, digest = folder.path, blake3_digest(b"x")
    assert folder.payload_file(digest) == root / "payloads" / digest_hex(digest)
    assert folder.state_file(digest) == root / "state" / digest_hex(digest)
    assert folder.weights_file(7) == root / "checkpoints" / "round-00007.safetensors"
    assert folder.outer_file(12345) == root / "checkpoints" / "round-12345.outer"
    assert folder.evidence_folder(OPEN, 2) == root / "evidence" / "r00001-a0-s2"
    assert (folder.log, folder.manifest_file) == (root / "log", root / "manifest.json")


def test_payloads_are_stored_by_content_and_checked(folder: RunFolder) -> None:
    folder.put_payload(b"payload")
    digest = blake3_digest(b"payload")
    assert folder.payload(digest) == b"payload"
    folder.payload_file(digest).write_bytes(b"changed")
    with pytest.raises(StorageError, match="was changed"):
        folder.payload(digest)
    with pytest.raises(StorageError, match="cannot be read"):
        folder.payload(blake3_digest(b"none"))
    for wrong in ("../../etc/passwd", "blake3:../x", ""):
        with pytest.raises(FormatError):
            folder.payload_file(wrong)


def test_what_the_log_does_not_name_goes(folder: RunFolder) -> None:
    for data in (b"a", b"b", b"c"):
        folder.put_payload(data)
    folder.keep_only("payloads", [blake3_digest(b"a"), blake3_digest(b"gone")])
    assert [path.name for path in (folder.path / "payloads").iterdir()] == [digest_hex(blake3_digest(b"a"))]


def test_checkpoints_kept_are_the_start_every_nth_and_the_last(folder: RunFolder) -> None:
    for number in range(8):
        folder.put_checkpoint(number, WEIGHTS, {"momentum": WEIGHTS["w"].ravel()})
    assert folder.rounds_on_disk() == 7
    folder.keep_checkpoints(5, 3)
    left = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert left == [f"round-0000{n}.{kind}" for n in (0, 3, 5) for kind in ("outer", "safetensors")]
    with pytest.raises(StorageError, match="cannot be read"):
        folder.checkpoint(6)
    assert folder.checkpoint(5) == folder.checkpoint(0)


def test_evidence_is_closed_with_a_case_over_its_files(folder: RunFolder) -> None:
    assert folder.close_evidence(OPEN, 1, "late") is None
    folder.put_evidence(OPEN, 1, {"payload": b"p", "start_state": b"s"})
    digest = folder.close_evidence(OPEN, 1, "failed-audit")
    data = (folder.evidence_folder(OPEN, 1) / "case.json").read_bytes()
    assert digest == sha256_digest(data)
    case = {
        "attempt": 0,
        "files": {"payload": blake3_digest(b"p"), "start_state": blake3_digest(b"s")},
        "member": "c1",
        "reason": "failed-audit",
        "round": 1,
        "run": OPEN.run,
        "slot": 1,
    }
    assert data == canonical_json(case)
    assert (
        folder.close_evidence(OPEN, 1, "failed-audit") == digest
    )  # a crash before the close: again the same


def test_the_manifest_is_read_back_or_refused_in_words(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        folder.parsed_manifest()
    value = to_json(manifest())
    folder.manifest_file.write_bytes(canonical_json(value))
    assert folder.parsed_manifest() == manifest()
    folder.manifest_file.write_bytes(canonical_json({**value, "protocol": 2}))
    with pytest.raises(UsageError, match="another protocol version"):
        folder.parsed_manifest()
    for wrong in (b"", b"[]x", json.dumps(value).encode(), canonical_json({**value, "extra": 1})):
        folder.manifest_file.write_bytes(wrong)
        with pytest.raises(FormatError):
            folder.parsed_manifest()
    for wrong in (b"[]", b"3"):
        folder.manifest_file.write_bytes(wrong)
        with pytest.raises(UsageError):
            folder.parsed_manifest()


def test_the_name_is_the_folders_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path / "my-run")
    assert RunFolder(Path()).name == "my-run"
