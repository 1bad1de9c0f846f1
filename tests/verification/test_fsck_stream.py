"""Level 1 keeps of a log only what it needs: turns as they come, bounded sets, bounded failures."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import key_of, key_text, log_files, public, tree_root
from tests.verification.test_fsck_writer import Writer
from verification.errors import StorageError
from verification.fsck import Turn, check_run
from verification.fsck_findings import MOST_FAILURES, Report
from verification.fsck_formats import signature_holds
from verification.fsck_index import Index
from verification.fsck_ledger import Ledger
from verification.fsck_log import Tree, leaf_hash, list_files, read_log

QUIET: dict[str, Any] = {"script": {}, "silent": {}}


def test_turns_are_handed_over_as_they_come(tmp_path: Path) -> None:
    run = Writer(tmp_path / "run").run(turns=3).write()
    turns: list[Turn] = []
    found = check_run(run, turns=turns.append)
    kept = check_run(run)
    assert (found.failures, found.turns, kept.failures) == ((), (), ())
    assert tuple(turns) == kept.turns
    assert [turn.open["turn"] for turn in turns] == [0, 1, 2]


def test_a_turn_in_progress_is_handed_over_at_the_end(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", **QUIET).run(turns=2)
    at = next(i for i, (kind, r, _) in enumerate(writer.records) if kind == "draw" and r["round"] == 2)
    turns: list[Turn] = []
    check_run(writer.write(at), turns=turns.append)
    assert [turn.open["turn"] for turn in turns] == [0, 1]
    assert turns[1].reveal_close is not None
    assert turns[1].draw is None


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    peaks: list[int] = []
    sizes: list[int] = []
    for turns in (14, 29):
        run = Writer(tmp_path / str(turns), run__rounds=29, **QUIET).run(turns=turns).write()
        check_run(run, turns=lambda turn: None)
        tracemalloc.start()
        found = check_run(run, turns=lambda turn: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.failures == ()
        assert found.log_size > 256
        sizes.append(sum(path.stat().st_size for path in (run / "log" / "tile" / "entries").rglob("*.*")))
        sizes[-1] += sum(path.stat().st_size for path in (run / "log" / "tile" / "entries").glob("???"))
    # One bundle of 256 entries, in pieces, and the machinery; what else may grow is caches that have a bound.
    assert sizes[1] - sizes[0] > 300_000
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 2


def test_no_more_failures_than_a_person_can_use(tmp_path: Path) -> None:
    report = Report()
    for _ in range(MOST_FAILURES + 10):
        report.add("wrong", "here")
    assert len(report.failures) == MOST_FAILURES + 1
    assert report.failures[-1].what == "there are more failures than are listed"
    assert tmp_path


def test_the_index_remembers_kinds_apart() -> None:
    with Index() as index:
        assert index.add("a", b"x")
        assert not index.add("a", b"x")
        assert index.add("b", b"x")
        assert index.has("a", b"x")
        assert not index.has("a", b"y")
        for number in range(5000):
            index.add("many", hashlib.sha256(bytes([number % 256, number // 256])).digest())
        assert index.has("many", hashlib.sha256(bytes([7, 9])).digest())
    with pytest.raises(StorageError, match="no room"):
        index.add("a", b"z")
    with pytest.raises(StorageError, match="no room"):
        index.has("a", b"z")


def test_no_index_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(StorageError, match="no room"):
        Index()


@given(st.lists(st.binary(max_size=3), max_size=40))
def test_the_tree_grows_leaf_by_leaf(entries: list[bytes]) -> None:
    tree = Tree()
    for number, entry in enumerate(entries):
        assert tree.root() == tree_root(entries[:number])
        assert tree.root_after(leaf_hash(entry)) == tree_root(entries[: number + 1])
        tree.add(leaf_hash(entry))
    assert tree.root() == tree_root(entries)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 70_000])
def test_every_file_of_a_log_and_no_other(tmp_path: Path, size: int) -> None:
    entries = [b"%d" % number for number in range(size)]
    files = log_files(entries)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    report = Report()
    view = read_log(tmp_path / "log", report)
    assert (report.failures, view.entries, view.complete) == ([], tuple(entries), True)
    wrong = ["checkpoint2", "tile/0/999", "tile/entries/999.p/1", "tile/9/000", "tile/0/x000/000"]
    wrong += [
        "tile/00/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/1/000.p/200",
        "tile/entries/000/x",
        "a/b",
    ]
    for name in wrong:
        path = tmp_path / "log" / name
        if path.parent.is_file():
            continue
        made = [p for p in path.parents if not p.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        report = Report()
        read_log(tmp_path / "log", report)
        assert [f.where for f in report.failures] == [f"log/{name}"], name
        path.unlink()
        for folder in made:
            folder.rmdir()


def test_folders_in_folders_are_not_followed_for_ever(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    names = set(list_files(tmp_path))
    assert names == {"link", "d/" * 13}
    assert list(list_files(tmp_path / "none")) == [""]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=25))
def test_positions_accepted_twice_are_found(pieces: list[tuple[int, int]]) -> None:
    ledger = Ledger.__new__(Ledger)
    ledger._taken = []
    seen: set[int] = set()
    for start, length in pieces:
        positions = set(range(start, start + length))
        twice = {
            p for low, high in ledger.accept_positions([(start, start + length)]) for p in range(low, high)
        }
        assert twice == positions & seen
        seen |= positions
    assert all(a[1] < b[0] for a, b in zip(ledger._taken, ledger._taken[1:], strict=False))
    assert {p for low, high in ledger._taken for p in range(low, high)} == seen


# --- signatures ---

ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = b"\x01" + bytes(31)


def scalar(name: str) -> int:
    """RFC 8032, 5.1.5: the secret scalar."""
    seed = hashlib.sha256(b"key of " + name.encode()).digest()
    data = bytearray(hashlib.sha512(seed).digest()[:32])
    data[0] &= 248
    data[31] = data[31] & 127 | 64
    return int.from_bytes(data, "little")


def test_a_signature_with_a_point_of_small_order_is_refused() -> None:
    """S·B = R + h·A holds with R the identity and S = h·a; the other library takes that."""
    message = b"any"
    h = int.from_bytes(hashlib.sha512(IDENTITY + public("ann") + message).digest(), "little")
    forged = IDENTITY + (h * scalar("ann") % ORDER).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(public("ann")).verify(forged, message)
    assert not signature_holds(public("ann"), forged, message)
    assert key_text("ann").endswith(public("ann").hex())


def test_signatures() -> None:
    message = os.urandom(100)
    good = key_of("ann").sign(message)
    assert signature_holds(public("ann"), good, message)
    assert not signature_holds(public("bob"), good, message)
    assert not signature_holds(public("ann"), good, message + b"x")
    # The bytes of a longer signature must not pass for the beginning of the message.
    assert not signature_holds(public("ann"), good + message[:1], message[1:])
    assert not signature_holds(public("ann"), good[:63], message)
    unreduced = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    assert not signature_holds(public("ann"), good[:32] + unreduced, message)
