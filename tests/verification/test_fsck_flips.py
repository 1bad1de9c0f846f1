"""Damage: every flipped or cut byte is named and none raises, not even in bytes that were signed again."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import envelope, log_files
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_writer import Writer
from verification.errors import UsageError
from verification.fsck import check_run

COVERED = ("manifest.json", "log", "payloads", "state", "data", "evidence")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    over = {"audit__rate_ppm": 1_000_000, "audit__probation_rounds": 0, "audit__segments": 1}
    steps = [4, 6, 4, 8, 4]
    writer = Writer(tmp_path_factory.mktemp("fsck") / "run", train__steps=steps, **over).run(turns=2)
    writer.write()
    assert any(name.endswith("/trace") for name in writer.files)
    return writer


def covered(run: Path) -> list[Path]:
    return [p for p in sorted(run.rglob("*")) if p.is_file() and p.relative_to(run).parts[0] in COVERED]


def test_flipped_bytes_are_named(written: Writer) -> None:
    """A seeded sample over all covered files, each file at least three times."""
    random_ = random.Random(5)
    files = covered(written.folder)
    picks = [path for path in files for _ in range(3)] + random_.choices(files, k=100)
    for path in picks:
        data = path.read_bytes()
        at = random_.randrange(len(data))
        bad = bytearray(data)
        bad[at] ^= 1 << random_.randrange(8)
        path.write_bytes(bad)
        failures = check_run(written.folder).failures
        path.write_bytes(data)
        name = str(path.relative_to(written.folder))
        assert failures, (name, at)
        # A changed entry is told by its number, everything else by its file.
        entries = "tile/entries" in name
        assert any(f.where == name or (entries and f.where.startswith("log entry")) for f in failures), (
            name,
            at,
        )


def test_cut_and_lengthened_files_are_named(written: Writer) -> None:
    for path in covered(written.folder):
        data = path.read_bytes()
        for bad in (b"", data[:-1], data + b"\n", data + b"\0" * 70000):
            path.write_bytes(bad)
            assert check_run(written.folder).failures, (path, len(bad))
        path.write_bytes(data)


@pytest.mark.slow
def test_every_byte_of_manifest_and_checkpoint(written: Writer) -> None:
    for path in (written.folder / "log" / "checkpoint", written.folder / "manifest.json"):
        data = path.read_bytes()
        for at in range(0, len(data), 1 if path.name == "checkpoint" else 29):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert check_run(written.folder).failures, (path, at)
        path.write_bytes(data)


HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2**53 - 1, -(2**53) + 1, "", "x", "\x1b[2J", "sha256:" + "0" * 64,
    "blake3:" + "0" * 64, "ed25519:" + "0" * 64, "0" * 64, (1.5).hex(), "nan", [], {}, [[0, 1]], [0], [[]],
    [0, 2**53 - 1], [[0, 2**53 - 1]], {"slot": 0}, "ann", "pass", "../../etc/passwd", "a\x00b", "🦬", [{}],
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value, as a path."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [at, *(p for key, v in inside for p in places(v, (*at, key)))]


def damaged(value: Any, path: tuple[Any, ...], how: Any) -> Any:
    """A copy with one place changed: to another value, doubled, or removed."""
    value = copy.deepcopy(value)
    here = value
    for key in path[:-1]:
        here = here[key]
    if how == "double" and isinstance(here, list):
        here.append(copy.deepcopy(here[path[-1]]))
    elif how in ("double", "remove"):
        here.pop(path[-1])
    else:
        here[path[-1]] = how
    return value


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_records_signed_again_never_raise(written: Writer, data: st.DataObject) -> None:
    """Any place of any record changed, the entry and the log signed again."""
    index = data.draw(st.integers(0, len(written.records) - 1))
    kind, record, signer = written.records[index]
    path = data.draw(st.sampled_from(places(record)[1:]))
    how = data.draw(st.one_of(st.sampled_from(HOSTILE), st.sampled_from(["double", "remove"])))
    changed = damaged(record, path, how)
    subject = written.run_subject if index else ("dataset", written.manifest["dataset"]["root"][7:])
    entries = list(written.entries)
    entries[index] = envelope(kind, changed, signer, subject)
    for name, content in log_files(entries).items():
        (written.folder / name).write_bytes(content)
    try:
        found = check_run(written.folder)
    except UsageError as error:
        assert "protocol version" in error.what  # noqa: PT017
        return
    finally:
        written.write()
    # Only what comes after the last head inside the log can change without another record telling.
    assert found.failures or changed == record or kind in ("round-close", "verdict")
    assert all(
        isinstance(t, str) and t.isprintable() for f in found.failures for t in (f.what, f.where, f.got)
    )


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> LateWriter:
    over: dict[str, Any] = {"audit__rate_ppm": 1_000_000, "audit__probation_rounds": 0}
    over |= {"more": [(name, "auditor", name[0], "c1") for name in ("uma", "tom", "sam")]}
    over |= {"script": {(0, 2): "cheat"}, "appeals": {(0, 2)}, "sees": {(0, 1, 0): "!", (1, 1, 1): "!"}}
    writer = LateWriter(tmp_path_factory.mktemp("fsck") / "late", lag=1, silent={}, **over).run(turns=3)
    assert check_run(writer.write()).failures == ()
    return writer


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_late_records_signed_again_never_raise(late: LateWriter, data: st.DataObject) -> None:
    kinds = ("settlement", "round-close", "first-looks", "second-draw", "verdict", "appeal", "round-open")
    index = data.draw(st.sampled_from([i for i, r in enumerate(late.records) if r[0] in kinds]))
    kind, record, signer = late.records[index]
    path = data.draw(st.sampled_from(places(record)[1:]))
    how = data.draw(st.one_of(st.sampled_from(HOSTILE), st.sampled_from(["double", "remove"])))
    changed = damaged(record, path, how)
    entries = list(late.entries)
    entries[index] = envelope(kind, changed, signer, late.run_subject)
    for name, content in log_files(entries).items():
        (late.folder / name).write_bytes(content)
    found = check_run(late.folder)
    late.write()
    assert found.failures or changed == record or kind in ("settlement", "verdict")
    assert all(t.isprintable() for f in found.failures for t in (f.what, f.where, f.got))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["manifest.json", "log/checkpoint", "entries", "case"]),
    data=st.one_of(
        st.binary(max_size=200), st.sampled_from([b"[" * 60000, b'{"a":' * 9000, b"9" * 60000, b"1e5"])
    ),
)
def test_arbitrary_bytes_never_raise(written: Writer, name: str, data: bytes) -> None:
    run = written.folder
    path = run / name
    if name == "entries":
        path = next((run / "log/tile/entries").rglob("*.p/*"), run / "log/tile/entries/000")
    if name == "case":
        path = next((run / "evidence").rglob("case.json"))
    before = path.read_bytes()
    path.write_bytes(data)
    failures = check_run(run).failures
    path.write_bytes(before)
    assert failures
    assert check_run(run).failures == ()


def test_entries_that_are_not_envelopes_never_raise(written: Writer) -> None:
    random_ = random.Random(3)
    bad = [
        b"",
        b"{}",
        b"[]",
        b"[" * 60000,
        b'{"payload":1,"payloadType":"application/vnd.in-toto+json","signatures":[]}',
    ]
    bad += [
        written.entries[1].replace(b'"sig":"', b'"sig":"AAAA'),
        written.entries[1].replace(b'"payload":"', b'"payload":"!'),
    ]
    for entry in bad:
        entries = list(written.entries)
        at = random_.randrange(len(entries))
        entries[at] = entry
        for name, content in log_files(entries).items():
            (written.folder / name).write_bytes(content)
        failures = check_run(written.folder).failures
        assert any(f.where.startswith(f"log entry {at}") for f in failures)
    written.write()


def test_a_checkpoint_of_a_huge_size(written: Writer) -> None:
    path = written.folder / "log" / "checkpoint"
    before = path.read_bytes()
    path.write_bytes(before.replace(f"\n{len(written.entries)}\n".encode(), b"\n9007199254740991\n"))
    found = check_run(written.folder)
    path.write_bytes(before)
    assert found.log_size == 9007199254740991
    assert any("cannot be read" in f.what for f in found.failures)
