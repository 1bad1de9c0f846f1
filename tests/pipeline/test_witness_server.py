"""A mailbox whose folder is shared with somebody hostile: requests can be spoilt, the service cannot."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import witness_server
from pipeline.witness_server import answer_mail, serve_mailbox
from tests.verification.witness_world import PLACE, make

ID = f"{1:032x}"


def post(box: Path, number: int, path: str) -> Path:
    (box / f"{number:032x}.request").write_bytes(path.encode() + b"\n")
    return box / f"{number:032x}.answer"


@pytest.mark.parametrize("trap", ["pipe", "folder", "link"])
def test_a_guessed_temporary_name_spoils_nothing(tmp_path: Path, trap: str) -> None:
    witness = make(tmp_path / "witness")
    box = tmp_path / "box"
    box.mkdir()
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    guessed = box / f".{ID}.answer.tmp"
    if trap == "pipe":
        os.mkfifo(guessed)
        hold = os.open(guessed, os.O_RDWR | os.O_NONBLOCK)  # a reader, so that nothing hangs where it is used
    else:
        hold = -1
        guessed.mkdir() if trap == "folder" else os.link(mine, guessed)
    try:
        answer = post(box, 1, f"/{PLACE}/checkpoint")
        assert answer_mail(witness, box, set()) == 1
    finally:
        if hold >= 0:
            os.close(hold)
    assert stat.S_ISREG(answer.stat().st_mode)
    assert answer.read_bytes().startswith(b"404\n")
    assert mine.read_bytes() == b"mine"
    assert len(list(box.iterdir())) == 3


def test_a_request_that_cannot_be_answered_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "box"
    box.mkdir()
    first, second = (post(box, number, f"/{PLACE}/checkpoint") for number in (1, 2))
    real, tried = os.replace, []

    def replace(source: Path, target: Path) -> None:
        tried.append(target)
        if target == first:
            target.mkdir()  # as somebody else might, just before
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(witness_server, "POLL_S", 0.01)
    stop = threading.Event()
    notices: list[str] = []
    arguments = {"once": False, "notice": notices.append}
    witness = make(tmp_path / "witness")
    thread = threading.Thread(target=serve_mailbox, args=(witness, box, stop), kwargs=arguments)
    thread.start()
    try:
        wait_for(second.exists)
        first.rmdir()
        box.rename(tmp_path / "away")
        wait_for(lambda: len(notices) == 2)
        (tmp_path / "away").rename(box)
        third = post(box, 3, f"/{PLACE}/checkpoint")
        wait_for(third.exists)
    finally:
        stop.set()
        thread.join(5)
    assert tried == [first, second, third]
    assert notices[0] == f"request {ID}.request cannot be answered: Is a directory"
    assert "cannot be read" in notices[1]
    assert len(notices) == 2
    assert not list(box.glob(".*"))


def wait_for(what: Callable[[], bool]) -> None:
    stop = time.monotonic() + 5
    while not what():
        assert time.monotonic() < stop
        time.sleep(0.01)
