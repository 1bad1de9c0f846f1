"""What a witness remembers: before it answers, through damage and full disks, of which logs, in races."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.verification.log_model import Crash, failing, full_disk
from tests.verification.witness_world import (
    LOG_KEY,
    NAME,
    ORIGIN,
    OTHER_KEY,
    PLACE,
    TEN,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    Clock,
    add,
    ask_chain,
    ask_link,
    head,
    make,
    note,
    status,
)
from verification import witness as module
from verification.errors import FormatError, StorageError, UsageError
from verification.notes import cosign, vkey
from verification.witness import Witness
from verification.witness_store import WitnessStore


def test_nothing_is_cosigned_when_the_disk_refuses(tmp_path: Path) -> None:
    witness = make(tmp_path)
    add(witness, TEN, 0, 5)
    for call in ("open", "write", "fsync", "replace"):
        with failing(call, 1, full_disk()):
            code, _, text = add(witness, TEN, 5)
        assert code == 503
        assert b"full" in text
    assert add(witness, TEN, 0) == (409, "text/x.tlog.size", b"5\n")


@pytest.mark.parametrize("name", ["checkpoint", "vkey", "chain", "shown"])
def test_a_damaged_memory_is_never_an_empty_one(tmp_path: Path, name: str) -> None:
    witness = make(tmp_path, logs=None)
    ask_chain(witness)
    add(witness, TEN, 0, 5)
    ask_link(witness, note(TEN, 5), 1)
    path = tmp_path / "logs" / PLACE / name
    good = path.read_bytes()
    for bad in (b"", b"\xff", good[:-2], good + b"x"):
        path.write_bytes(bad)
        if name in ("chain", "shown"):
            assert status(ask_link(witness, note(TEN, 5), 2)) == 503
        else:
            assert status(add(witness, TEN, 0, 9)) == status(add(witness, TEN, 5, 9)) == 503
    path.write_bytes(good)
    assert status(add(witness, TEN, 5, 9)) == 200


def test_a_chain_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    (tmp_path / "logs" / PLACE / "chain").chmod(0o644)
    assert status(ask_chain(witness)) == 503


def test_a_checkpoint_of_another_witness_is_no_memory(tmp_path: Path) -> None:
    witness = make(tmp_path)
    add(witness, TEN, 0, 5)
    path = tmp_path / "logs" / PLACE / "checkpoint"
    path.write_text(note(TEN, 5) + cosign(head(TEN, 5), NAME, OTHER_KEY, 7))
    with pytest.raises(StorageError, match="not one that this witness"):
        witness.newest(ORIGIN)
    assert status(witness.handle("GET", f"/{PLACE}/checkpoint", b"")) == 503


def test_a_link_is_remembered_before_it_is_shown(tmp_path: Path) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    add(witness, TEN, 0, 6)
    for call in ("open", "write", "fsync", "replace"):
        with failing(call, 1, full_disk()):
            assert status(ask_link(witness, note(TEN, 6), 3)) == 503
    assert not (tmp_path / "logs" / PLACE / "shown").exists()
    with failing("fsync", 2, Crash()), pytest.raises(Crash):
        ask_link(witness, note(TEN, 6), 3)
    assert status(ask_link(make(tmp_path), note(TEN, 6), 2)) == 409


def test_a_chain_is_durable_before_its_end_is_shown(tmp_path: Path) -> None:
    for at in range(1, 12):
        folder = tmp_path / str(at)
        witness = make(folder, logs=None)
        try:
            with failing("fsync", at, Crash()):
                body = ask_chain(witness)[2]
        except Crash:
            assert status(ask_chain(make(folder, logs=None))) == 200
        else:
            assert ask_chain(make(folder))[2] == body
            return
    pytest.fail("there are more writes than that")


# Which logs


def test_logs_that_are_admitted(tmp_path: Path) -> None:
    shed = vkey("example.org/shed", LOG_KEY.public)
    chosen = make(tmp_path / "a", logs=[VKEY])
    assert status(ask_chain(chosen)) == 200
    assert status(ask_chain(chosen, log_vkey=shed)) == 404
    assert status(ask_chain(chosen, log_vkey=vkey(ORIGIN, OTHER_KEY.public))) == 404
    anyone = make(tmp_path / "b", logs=None)
    assert status(add(anyone, TEN, 0)) == 404
    assert status(ask_chain(anyone, log_vkey=shed)) == 200
    assert status(ask_chain(anyone, log_vkey=vkey("example.org/shed", OTHER_KEY.public))) == 404
    assert status(add(anyone, TEN, 0)) == 404
    assert status(ask_chain(anyone)) == 200
    assert status(add(anyone, TEN, 0)) == 200
    later = make(tmp_path / "b", logs=())
    assert status(add(later, TEN, 10)) == 200
    assert later.log_vkey("example.org/shed") == shed
    with pytest.raises(UsageError, match="another key"):
        make(tmp_path / "b", logs=[vkey(ORIGIN, OTHER_KEY.public)])
    with pytest.raises(UsageError, match="another key"):
        make(tmp_path / "c", logs=[VKEY, vkey(ORIGIN, OTHER_KEY.public)])
    with pytest.raises(FormatError):
        make(tmp_path / "c", logs=[WITNESS_VKEY])


def test_a_witness_of_any_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGS", 2)
    witness = make(tmp_path, logs=None)
    codes = [status(ask_chain(witness, log_vkey=vkey(f"log{i}", LOG_KEY.public))) for i in (1, 2, 3, 1)]
    assert codes == [200, 200, 503, 200]


# Races


@pytest.mark.parametrize("first", [0, 1])
def test_two_requests_at_a_time(tmp_path: Path, first: int) -> None:
    """The race of the specification: whichever comes second is refused, and nothing is rolled back."""
    held, go = threading.Event(), threading.Event()
    clock = Clock()

    class Slow(WitnessStore):
        def put_newest(self, origin: str, text: str) -> None:
            if not held.is_set():
                held.set()
                go.wait(5)
            super().put_newest(origin, text)

    store = WitnessStore(tmp_path)
    add(Witness(WITNESS_KEY, NAME, store, clock, [VKEY]), TEN, 0, 2)
    witness = Witness(WITNESS_KEY, NAME, Slow(tmp_path), clock, [VKEY])
    sizes = (5, 9) if first else (9, 5)
    answers: dict[int, tuple[int, str, bytes]] = {}

    def ask(size: int) -> None:
        answers[size] = add(witness, TEN, 2, size)

    threads = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    threads[0].start()
    assert held.wait(5)
    threads[1].start()
    threads[1].join(0.2)
    go.set()
    for thread in threads:
        thread.join(5)
    assert status(answers[sizes[0]]) == 200
    assert answers[sizes[1]] == (409, "text/x.tlog.size", b"%d\n" % sizes[0])
    assert witness.newest(ORIGIN).checkpoint == head(TEN, sizes[0])  # type: ignore[union-attr]
