"""Manifests, entries that cannot be read, and records at a place where they may not stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import dom, envelope, sha, vkey
from tests.verification.test_fsck_lies import dropper, lying
from tests.verification.test_fsck_rules import Record, failures
from tests.verification.test_fsck_state import State
from tests.verification.test_fsck_writer import Writer
from verification.fsck_findings import Report
from verification.fsck_rules import check_manifest, read_envelope

# --- the manifest, and the order of records: the one thing that is wrong ---


def manifest_failures(folder: Path, change: Any) -> list[str]:
    manifest = State(folder, script={}, silent={}).manifest
    change(manifest)
    report = Report()
    check_manifest(manifest, report)
    return [f.what for f in report.failures]


def named(part: str, at: int, name: str) -> Any:
    """A manifest whose data set, with the right root, has a shard of another name."""

    def change(manifest: Record) -> None:
        dataset = manifest["dataset"]
        dataset[part][at]["file"] = name
        dataset["root"] = dom("barnraise/dataset/v1", {k: v for k, v in dataset.items() if k != "root"})

    return change


def coded(k: int, chunk: int) -> Any:
    def change(manifest: Record) -> None:
        manifest["config"]["compression"].update(k=k, chunk=chunk)
        manifest["codec"] = f"topk{k}of{chunk}-eliasfano-2bit-e5m3-v1"

    return change


TWICE = ["the dataset names a file twice"]
SIZES = ["the codec's sizes are not allowed"]
UNSORTED = ["the arrays are not listed by name, each once"]


def micro(*sizes: int) -> Any:
    """The micro-batches of five contributors; one number is what each of them would have without any."""
    return lambda m: m["config"]["train"].update(micro_batch=list(sizes) * (5 if len(sizes) == 1 else 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: None, []),
        (named("train", 0, "other.arrow"), []),
        (named("train", 0, "t1.arrow"), TWICE),
        (named("validation", 0, "t1.arrow"), TWICE),
        (coded(8, 64), []),
        (coded(256, 1024), []),
        (coded(8, 48), SIZES),
        (coded(12, 64), SIZES),
        (coded(16, 32), SIZES),
        (lambda m: m.update(codec="none"), ["the codec's name does not fit the configuration"]),
        (lambda m: m["arrays"].reverse(), UNSORTED),
        (lambda m: m["arrays"].append(m["arrays"][1]), UNSORTED),
        (lambda m: m.update(log_vkey=vkey("ann")), ["log_vkey is not the coordinator's for this origin"]),
        (lambda m: m["dataset"].update(root=sha(b"")), ["the dataset's root is wrong"]),
        (
            lambda m: m["config"]["train"].update(steps=[]),
            ["the configuration has no contributor's steps"],
        ),
        (micro(2), []),
        (micro(1, 2, 2, 1, 2), []),
        *((micro(*sizes), ["the micro-batches are not allowed"]) for sizes in ((1, 1), (1,) * 6, (3,) * 5)),
        (lambda m: m.update(name=1), ["the manifest is malformed: manifest.name does not fit"]),
    ],
)
def test_a_manifest_with_one_thing_wrong(tmp_path: Path, change: Any, expected: list[str]) -> None:
    assert manifest_failures(tmp_path, change) == expected


STOPPED = " (the log's story is not followed from here on)"


@pytest.mark.parametrize("subject", [("dataset", "00" * 32), ("run", "")])
def test_a_manifest_of_another_subject(tmp_path: Path, subject: tuple[str, str]) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}).run(turns=0)
    name, digest = subject
    subject = (name, digest or writer.manifest["dataset"]["root"][7:])
    writer.entries[0] = envelope("manifest", writer.manifest, "coordinator", subject)
    assert failures(writer) == ["the manifest's subject is not its dataset"]


def test_an_entry_that_cannot_be_read(tmp_path: Path) -> None:
    report = Report()
    assert read_envelope(3, b"x", report) is None
    [failure] = report.failures
    assert failure.what.startswith("entry 3 of the log is malformed: ")
    assert failure.where == "log entry 3"
    writer = Writer(tmp_path / "run", script={}, silent={}).run(turns=0)
    last = len(writer.entries) - 1
    writer.entries[last] = b"x"
    what = [failure.what.replace("entry 3", f"entry {last}"), f"entry {last} could not be read{STOPPED}"]
    assert failures(writer) == what


@pytest.mark.parametrize("kind", ["draw", "round-close", "commitment", "manifest", "key-rotation"])
def test_what_may_not_come_after_the_enrolments(tmp_path: Path, kind: str) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}).run(turns=0)
    writer.entries.append(envelope(kind, {}, "coordinator", writer.run_subject))
    assert failures(writer) == [f"a record is out of order{STOPPED}"]


def test_a_record_that_comes_too_early_is_not_called_signed_twice(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}, lie=lying("draw", dropper)).run(turns=1)
    assert failures(writer) == [f"a record is out of order{STOPPED}"]
    lie = lying("draw", lambda r, _: [("draw", r, "coordinator")] * 2)
    writer = Writer(tmp_path / "again", script={}, silent={}, lie=lie).run(turns=1)
    assert failures(writer) == [f"a record is out of order: the draw of one turn is signed twice{STOPPED}"]


@pytest.mark.parametrize("kind", ["commitment", "appeal"])
def test_a_members_record_after_a_turn(tmp_path: Path, kind: str) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}).run(turns=1)
    writer.entries.append(envelope(kind, {}, "coordinator", writer.run_subject))
    assert failures(writer) == [f"a record is out of order{STOPPED}"]
