"""The log on disk: layout against its definition, who may open it, every changed byte."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.verification.log_model import (
    KEY,
    ORIGIN,
    VKEY,
    Crash,
    batch,
    check_folder,
    entry,
    expected_files,
    failing,
    files_of,
    full_disk,
    make,
    mth,
    reader,
    writer,
)
from verification import log as log_module
from verification.errors import BarnraiseError, FormatError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.merkle import leaf_hash, verify_consistency, verify_inclusion
from verification.notes import Checkpoint, cosign, sign_checkpoint, vkey, witness_vkey

# Layout and reading


@pytest.mark.parametrize(
    "steps", [[1], [5], [255, 1], [256], [257], [3, 250, 300], [512], [200, 56, 256, 1], []]
)
def test_files_are_those_of_the_layout(tmp_path: Path, steps: list[int]) -> None:
    log = Log.create(tmp_path / "log", ORIGIN, KEY)
    entries: list[bytes] = []
    check_folder(tmp_path / "log", entries)
    for step in steps:
        new = batch(len(entries), step)
        entries += new
        text = log.append(new)
        assert text == log.checkpoint == (tmp_path / "log" / "checkpoint").read_text()
        check_folder(tmp_path / "log", entries)
    for other in (log, writer(tmp_path / "log"), reader(tmp_path / "log")):
        assert list(other.entries()) == entries
        for index in range(0, len(entries), 51):
            assert other.entry(index) == entries[index]
        assert (other.size, other.root) == (other.head.size, other.head.root)
        assert other.checkpoint == log.checkpoint


def test_golden_log(tmp_path: Path) -> None:
    log = Log.create(tmp_path, ORIGIN, KEY)
    text = log.append([b"one", b"two", b"three"])
    root = "Wqx3HImawpLnS/Gv4ubjAvi1WIOy0b8Ze0amvqbavKk="
    assert text.startswith(f"example.org/barn\n3\n{root}\n\n— example.org/barn ")
    assert files_of(tmp_path)["tile/entries/000.p/3"] == b"\0\3one\0\3two\0\5three"
    assert set(files_of(tmp_path)) == {"checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3"}


def test_numbers_are_written_in_groups_of_three() -> None:
    path = log_module._path
    assert path(0, 0, 256) == "tile/0/000"
    assert path(1, 999, 256) == "tile/1/999"
    assert path(2, 1000, 7) == "tile/2/x001/000.p/7"
    assert path(-1, 1_234_067, 256) == "tile/entries/x001/x234/067"


def test_proofs_hold(tmp_path: Path) -> None:
    log = make(tmp_path, 300)
    for size in (1, 2, 255, 256, 257, 300):
        root = mth([leaf_hash(item) for item in batch(0, size)])
        for index in {0, size // 2, size - 1}:
            verify_inclusion(index, size, leaf_hash(entry(index)), log.inclusion_proof(index, size), root)
        verify_consistency(size, 300, log.consistency_proof(size), root, log.root)
        verify_consistency(1, size, log.consistency_proof(1, size), leaf_hash(entry(0)), root)
    verify_inclusion(7, 300, leaf_hash(entry(7)), log.inclusion_proof(7), log.root)


def test_impossible_reads_are_refused(tmp_path: Path) -> None:
    log = make(tmp_path, 3)
    for request in (lambda: log.entry(3), lambda: log.entry(-1), lambda: log.inclusion_proof(3)):
        with pytest.raises(FormatError):
            request()
    for proof in (lambda: log.inclusion_proof(0, 4), lambda: log.consistency_proof(4)):
        with pytest.raises(FormatError):
            proof()


def test_appending_costs_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(tmp_path, 3 * 256 + 5)
    reads: list[Path] = []
    real_read = log_module._read
    monkeypatch.setattr(
        log_module, "_read", lambda path, most: (reads.append(path), real_read(path, most))[1]
    )
    written: list[str] = []
    real_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        written.append(str(Path(target).relative_to(tmp_path)))
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    log.append([b"x"])
    assert written == ["tile/entries/003.p/6", "tile/0/003.p/6", "checkpoint"]
    assert reads == [tmp_path / "checkpoint"]


def test_an_entry_has_at_most_65535_bytes(tmp_path: Path) -> None:
    log = Log.create(tmp_path, ORIGIN, KEY)
    log.append([b"a" * 65_535])
    with pytest.raises(FormatError, match="too long"):
        log.append([b"fine", b"a" * 65_536])
    check_folder(tmp_path, [b"a" * 65_535])
    log.append([b"b"])
    assert list(writer(tmp_path).entries()) == [b"a" * 65_535, b"b"]


def test_appending_nothing_changes_nothing(tmp_path: Path) -> None:
    log = make(tmp_path, 3)
    before = files_of(tmp_path)
    assert log.append([]) == log.checkpoint
    assert files_of(tmp_path) == before


# Who may open what


def test_only_the_key_of_the_log_appends(tmp_path: Path) -> None:
    make(tmp_path, 2)
    with pytest.raises(UsageError, match="reading only"):
        reader(tmp_path).append([b"x"])
    other = PrivateKey.from_seed(bytes(32))
    with pytest.raises(UsageError, match="not this log's"):
        Log.open(tmp_path, ORIGIN, other, VKEY)
    with pytest.raises(BarnraiseError):
        Log.open(tmp_path, ORIGIN, other, vkey(ORIGIN, other.public))
    with pytest.raises(UsageError, match="origin"):
        Log.open(tmp_path, "shed", None, VKEY)
    check_folder(tmp_path, batch(0, 2))


def test_creating_needs_an_empty_folder(tmp_path: Path) -> None:
    make(tmp_path / "log", 1)
    with pytest.raises(UsageError, match="not empty"):
        Log.create(tmp_path / "log", ORIGIN, KEY)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Log.create(tmp_path / "file", ORIGIN, KEY)
    with pytest.raises(StorageError):
        reader(tmp_path / "nowhere")


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first = make(tmp_path, 2)
    second = writer(tmp_path)
    second.append([b"second"])
    with pytest.raises(StorageError, match="other writer"):
        first.append([b"first"])
    check_folder(tmp_path, [*batch(0, 2), b"second"])


def test_a_reader_opens_while_the_log_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(tmp_path, 250)
    stale = [log.checkpoint]
    log.append(batch(250, 20))
    real = log_module._read_checkpoint
    monkeypatch.setattr(log_module, "_read_checkpoint", lambda *a: stale.pop() if stale else real(*a))
    assert list(reader(tmp_path).entries()) == batch(0, 270)
    assert stale == []


def test_a_writer_does_not_open_while_the_log_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(tmp_path, 250)
    stale = [log.checkpoint]
    log.append(batch(250, 20))
    real = log_module._read_checkpoint
    monkeypatch.setattr(log_module, "_read_checkpoint", lambda *a: stale.pop() if stale else real(*a))
    with pytest.raises(StorageError):
        writer(tmp_path)
    check_folder(tmp_path, batch(0, 270))


def test_a_reader_keeps_its_size_while_the_log_grows(tmp_path: Path) -> None:
    log = make(tmp_path, 250)
    old = reader(tmp_path)
    log.append(batch(250, 20))
    assert list(old.entries()) == batch(0, 250)
    assert old.size == 250
    check_folder(tmp_path, batch(0, 270))


# Damage


def damaged(folder: Path) -> None:
    for opening in (reader, writer):
        with pytest.raises(BarnraiseError):
            opening(folder)


def test_every_flipped_bit_of_a_small_log_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 2)
    files = files_of(tmp_path)
    assert len(files) == 3
    for name, data in files.items():
        for place in range(len(data)):
            # of the checkpoint one bit a byte; the tests of notes flip them all
            for bit in [place % 8] if name == "checkpoint" else range(8):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                (tmp_path / name).write_bytes(changed)
                with pytest.raises(BarnraiseError):
                    reader(tmp_path)
        (tmp_path / name).write_bytes(data)
    check_folder(tmp_path, list(reader(tmp_path).entries()))


def test_damage_in_a_log_of_several_tiles_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 258)
    files = files_of(tmp_path)
    assert len(files) == 6
    for name, data in files.items():
        for position in {*range(0, len(data), 61), len(data) - 1}:
            changed = bytearray(data)
            changed[position] ^= 1
            (tmp_path / name).write_bytes(changed)
            damaged(tmp_path)
        for other in (b"", data[:-1], data + b"\0", data + data):
            (tmp_path / name).write_bytes(other)
            damaged(tmp_path)
        (tmp_path / name).unlink()
        damaged(tmp_path)
        (tmp_path / name).write_bytes(data)
    check_folder(tmp_path, batch(0, 258))
    assert list(reader(tmp_path).entries()) == batch(0, 258)


def test_damage_after_opening_is_noticed(tmp_path: Path) -> None:
    log = make(tmp_path, 300)
    bundle = tmp_path / "tile" / "entries" / "000"
    bundle.write_bytes(bundle.read_bytes().replace(b"entry 9", b"entry X"))
    for index in (9, 90, 99):
        with pytest.raises(StorageError, match="changed"):
            log.entry(index)
    with pytest.raises(StorageError, match="changed"):
        list(log.entries())
    bundle.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(StorageError, match="changed"):
        log.entry(0)
    assert log.entry(256) == entry(256)


def test_a_signed_checkpoint_of_other_entries_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 3)
    for size in (2, 3, 4, 2**53 - 1):
        text = sign_checkpoint(Checkpoint(ORIGIN, size, bytes(32)), KEY)
        (tmp_path / "checkpoint").write_text(text)
        damaged(tmp_path)


def test_leftovers_are_removed_by_a_writer_only(tmp_path: Path) -> None:
    make(tmp_path, 258)
    leftovers = ["tile/0/000.p/7", "tile/0/001.p/3", "tile/0/002", "tile/entries/001", "tile/1/000.p/2"]
    leftovers += ["tile/entries/x001/004.p/1", "tile/2/000", ".checkpoint.tmp", "tile/0/.001.tmp"]
    leftovers += ["tile/0/001.p/.3.tmp", "tile/entries/000.p/255"]
    for name in leftovers:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"leftover")
    (tmp_path / "tile" / "7" / "x001").mkdir(parents=True)
    before = files_of(tmp_path)
    assert reader(tmp_path).size == 258
    assert files_of(tmp_path) == before
    assert writer(tmp_path).size == 258
    check_folder(tmp_path, batch(0, 258))


@pytest.mark.parametrize(
    "name", ["notes.txt", "tile/0/1", "tile/0/0000", "tile/x/000", "tile/0/000.p/0", "x/y"]
)
def test_a_file_that_does_not_belong_is_left_alone(tmp_path: Path, name: str) -> None:
    make(tmp_path, 2)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(StorageError, match="does not belong"):
        writer(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


# Cosigned checkpoints

WITNESSES = [PrivateKey.from_seed(bytes([number]) * 32) for number in (1, 2)]
WITNESS_VKEYS = [witness_vkey(f"w{i}", key.public) for i, key in enumerate(WITNESSES)]


def lines(log: Log, *which: int) -> str:
    return "".join(cosign(log.head, f"w{i}", WITNESSES[i], 100 + i) for i in which)


def watched(folder: Path, size: int = 3) -> Log:
    log = Log.create(folder, ORIGIN, KEY, WITNESS_VKEYS)
    log.append(batch(0, size))
    return log


def test_a_cosigned_checkpoint_is_the_same_head(tmp_path: Path) -> None:
    log = watched(tmp_path)
    plain = log.checkpoint
    assert log.cosigned == plain
    for which in ((0,), (0, 1), (1,), ()):
        text = plain + lines(log, *which)
        log.put_cosigned(text)
        assert (tmp_path / "checkpoint").read_text() == text
        for other in (log, *(Log.open(tmp_path, ORIGIN, key, VKEY, WITNESS_VKEYS) for key in (KEY, None))):
            assert (other.checkpoint, other.cosigned) == (plain, text)
    log.put_cosigned(plain + lines(log, 0, 1))
    check_folder_but_checkpoint(tmp_path, batch(0, 3))
    text = log.append([entry(3)])
    assert text == log.checkpoint == log.cosigned == (tmp_path / "checkpoint").read_text()
    check_folder(tmp_path, batch(0, 4))
    again = Log.open(tmp_path, ORIGIN, KEY, VKEY, WITNESS_VKEYS)
    again.put_cosigned(again.checkpoint + lines(again, 1))
    assert again.append([]) == again.checkpoint
    assert again.append([entry(4)]) == again.cosigned


def check_folder_but_checkpoint(folder: Path, entries: list[bytes]) -> None:
    files = files_of(folder)
    del files["checkpoint"]
    assert files == expected_files(entries)


def test_no_other_text_is_put_to_the_head(tmp_path: Path) -> None:
    log = watched(tmp_path)
    old, old_lines = log.checkpoint, lines(log, 0)
    log.append([entry(3)])
    for text in (
        old + old_lines,
        log.checkpoint + old_lines,
        log.checkpoint + lines(log, 1, 0),
        log.checkpoint + lines(log, 0, 0),
        log.checkpoint + cosign(log.head, "w2", WITNESSES[0], 5),
        log.checkpoint + "x\n",
        sign_checkpoint(log.head, WITNESSES[0]) + lines(log, 0),
        sign_checkpoint(Checkpoint(ORIGIN, 4, bytes(32)), KEY),
        "",
    ):
        with pytest.raises(BarnraiseError):
            log.put_cosigned(text)
        assert (tmp_path / "checkpoint").read_text() == log.checkpoint
    assert log.append([entry(4)]) == log.checkpoint


def test_only_the_writer_puts_cosignatures(tmp_path: Path) -> None:
    log = watched(tmp_path)
    reading = Log.open(tmp_path, ORIGIN, None, VKEY, WITNESS_VKEYS)
    with pytest.raises(UsageError, match="reading only"):
        reading.put_cosigned(log.checkpoint + lines(log, 0))
    second = Log.open(tmp_path, ORIGIN, KEY, VKEY, WITNESS_VKEYS)
    second.put_cosigned(second.checkpoint + lines(second, 0))
    for action in (lambda: log.put_cosigned(log.checkpoint), lambda: log.append([entry(3)])):
        with pytest.raises(StorageError, match="not what this writer last wrote"):
            action()


def test_a_log_opens_only_with_its_witnesses(tmp_path: Path) -> None:
    log = watched(tmp_path)
    log.put_cosigned(log.checkpoint + lines(log, 0, 1))
    for vkeys in ((), WITNESS_VKEYS[:1], WITNESS_VKEYS[::-1]):
        for key in (KEY, None):
            with pytest.raises(FormatError, match="no witness"):
                Log.open(tmp_path, ORIGIN, key, VKEY, vkeys)


def test_many_witnesses_fit(tmp_path: Path) -> None:
    keys = [PrivateKey.from_seed(number.to_bytes(32, "big")) for number in range(40)]
    names = [f"{number:02d}".rjust(128, "n") for number in range(40)]
    vkeys = [witness_vkey(name, key.public) for name, key in zip(names, keys, strict=True)]
    log = Log.create(tmp_path, ORIGIN, KEY, vkeys)
    both = zip(names, keys, strict=True)
    text = log.checkpoint + "".join(cosign(log.head, name, key, 2**53 - 1) for name, key in both)
    log.put_cosigned(text)
    assert Log.open(tmp_path, ORIGIN, KEY, VKEY, vkeys).cosigned == text


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
def test_a_failed_cosigning_leaves_one_of_two_checkpoints(tmp_path: Path, name: str) -> None:
    for error in (full_disk(), Crash()):
        for at in (1, 2):
            folder = tmp_path / f"{type(error).__name__}{at}"
            log = watched(folder)
            text = log.checkpoint + lines(log, 0)
            with contextlib.suppress(StorageError, Crash), failing(name, at, error):
                log.put_cosigned(text)
            again = Log.open(folder, ORIGIN, KEY, VKEY, WITNESS_VKEYS)
            assert again.cosigned in (text, log.checkpoint)
            if log.cosigned != text:
                with pytest.raises(StorageError, match="not what this writer"):
                    log.append([entry(3)])
            again.append([entry(3)])
            check_folder(folder, batch(0, 4))


def test_earlier_roots(tmp_path: Path) -> None:
    log = make(tmp_path, 5)
    for size in range(6):
        assert log.root_at(size) == mth([leaf_hash(item) for item in batch(0, size)])
    with pytest.raises(FormatError):
        log.root_at(6)
