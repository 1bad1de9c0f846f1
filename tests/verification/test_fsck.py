"""Level 1 as a whole: what stands in for a manifest or a checkpoint that is not there, and progress."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import (
    ORIGIN,
    canon,
    cosigned,
    envelope,
    key_of,
    log_files,
    note_of,
    tree_root,
    vkey,
    witness_vkey,
)
from tests.verification.test_fsck_writer import Writer
from verification.errors import UsageError
from verification.fsck import Findings, check_run

WITNESS = "w1.example"
POLICY = f"log {vkey()}\nwitness w1 {witness_vkey(WITNESS)}\nquorum w1\n"


@pytest.fixture
def run(tmp_path: Path) -> Writer:
    writer = Writer(tmp_path / "run", witnesses=[WITNESS], script={}, silent={}).run(turns=1)
    writer.write()
    (writer.folder / "log" / "checkpoint").write_text(cosigned(note_of(writer.entries), WITNESS))
    (tmp_path / "policy").write_text(POLICY)
    return writer


def anchored(writer: Writer) -> Findings:
    return check_run(writer.folder, vkey=vkey(), witness_policy=writer.folder.parent / "policy")


def whats(found: Findings) -> list[tuple[str, str]]:
    return [(failure.where, failure.what) for failure in found.failures]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "manifest.json cannot be read"),
        (b"{", "not JSON"),
        (b'{"a": 1}', "JSON is not canonical"),
        (b" " * 65_536, "manifest.json is too long"),
    ],
)
def test_a_manifest_file_that_cannot_be_read_is_all_that_is_wrong(
    run: Writer, data: bytes | None, words: str
) -> None:
    path = run.folder / "manifest.json"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert whats(anchored(run)) == [("manifest.json", f"manifest.json: {words}")]


def test_without_a_checkpoint_nothing_is_anchored(run: Writer) -> None:
    assert anchored(run).anchored == "vkey+witness-policy"
    (run.folder / "log" / "checkpoint").unlink()
    found = anchored(run)
    assert ("log/checkpoint", "checkpoint cannot be read (nothing in the log was checked)") in whats(found)
    assert found.anchored is None


def test_without_a_manifest_to_go_by_nothing_is_anchored(run: Writer) -> None:
    (run.folder / "manifest.json").write_bytes(canon({**run.manifest, "coordinator": "nobody"}))
    for name, data in log_files([b"x"], note_of([b"x"])).items():
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_bytes(data)
    found = anchored(run)
    assert found.anchored is None
    assert any(what.startswith("the manifest is malformed") for _, what in whats(found))
    assert any(what == "the log's key is not the one expected" for _, what in whats(found))
    assert any(what == "the log is none of the witness policy's" for _, what in whats(found))


@pytest.mark.parametrize("manifest", [{}, {"protocol": "1"}, {"protocol": True}, [], 1])
def test_an_empty_log_is_named_whatever_the_manifest_is(tmp_path: Path, manifest: Any) -> None:
    run = tmp_path / "run"
    for name, data in log_files([], note_of([])).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data)
    (run / "manifest.json").write_bytes(canon(manifest))
    assert ("log", "the log holds no entry") in whats(check_run(run))


def test_a_run_of_another_protocol_is_for_another_release(run: Writer) -> None:
    other = {**json.loads((run.folder / "manifest.json").read_bytes()), "protocol": 2}
    (run.folder / "manifest.json").write_bytes(canon(other))
    assert not anchored(run).ok
    run.entries[0] = b"no manifest"
    run.write()
    (run.folder / "manifest.json").write_bytes(canon(other))
    with pytest.raises(UsageError, match="another protocol version"):
        anchored(run)


def test_a_log_begins_with_a_record_of_the_kind_manifest(run: Writer) -> None:
    """What its first entry says is no manifest by its shape alone."""
    subject = ("dataset", run.manifest["dataset"]["root"][7:])
    run.entries = [envelope("enrol", run.manifest, "coordinator", subject)]
    run.records, run.files = run.records[:1], {}
    found = check_run(run.write())
    assert whats(found) == [("log entry 0", "the log does not begin with a manifest")]


KEPT, ASKED = "w2.example", "w3.example"
NOT_COVERED = "no head of the log satisfies the witness policy"


def with_checkpoint(folder: Path, make: Callable[[list[bytes]], str]) -> Findings:
    """Of a log of which the witness that the policy asks for has cosigned the checkpoint alone."""
    away = {(0, look): [ASKED] for look in (1, 2)}
    writer = Writer(folder / "run", witnesses=[KEPT, ASKED], script={}, silent={}, away=away).run(turns=1)
    writer.write()
    (writer.folder / "log" / "checkpoint").write_text(cosigned(make(writer.entries), ASKED))
    (folder / "policy").write_text(f"witness w {witness_vkey(ASKED)}\nquorum w\n")
    return check_run(writer.folder, witness_policy=folder / "policy")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (note_of, []),
        (
            lambda entries: note_of(entries, signer="eve"),
            ["the checkpoint is not signed with the log's key", NOT_COVERED],
        ),
        (
            lambda entries: note_of([*entries[:-1], b"other"]),
            ["the signed root is not that of the entries", NOT_COVERED],
        ),
    ],
)
def test_a_checkpoint_covers_the_log_when_it_is_signed_and_of_its_root(
    tmp_path: Path, make: Any, expected: list[str]
) -> None:
    found = with_checkpoint(tmp_path, make)
    assert [what for _, what in whats(found)] == expected
    assert found.anchored == (None if expected else "witness-policy")


def test_a_checkpoint_of_more_than_could_be_read_covers_nothing(tmp_path: Path) -> None:
    """Even if the log's key signs the root of what there is, here of no entry."""
    found = with_checkpoint(tmp_path, lambda _: note_with_root_of_nothing())
    assert ("log/tile/entries/000", "000 cannot be read (entries from 0 on are not checked)") in whats(found)
    assert whats(found)[-1] == ("log", NOT_COVERED)
    assert found.anchored is None


def note_with_root_of_nothing() -> str:
    """The log's key signs 256 entries more than there are, and the root of none."""
    text = f"{ORIGIN}\n256\n{base64.b64encode(tree_root([])).decode()}\n"
    key_id = bytes.fromhex(vkey().split("+")[1])
    blob = base64.b64encode(key_id + key_of("coordinator").sign(text.encode())).decode()
    return f"{text}\n— {ORIGIN} {blob}\n"


def test_progress_is_told_now_and_then(run: Writer) -> None:
    told: list[str] = []
    check_run(run.folder, progress=lambda what, done, of: told.append(f"{what} {done}/{of}"))
    size = len(run.entries)
    assert [text for text in told if text.startswith("records")] == [f"records {size}/{size}"]
