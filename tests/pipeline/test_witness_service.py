"""`barnraise witness` end to end: HTTP on loopback, a mailbox, a folder; its limits and its own folder."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import witness_server, witness_service
from pipeline.options import parse_options
from pipeline.witness_client import WitnessClient, connect
from pipeline.witness_server import answer_mail, parse_listen, serve_http, serve_mailbox
from pipeline.witness_service import COMMANDS, WitnessOptions, cosign_folder, own_identity
from tests.verification.log_model import batch
from tests.verification.witness_world import (
    LOG_KEY,
    NAME,
    ORIGIN,
    PLACE,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    add,
    add_body,
    ask_chain,
    grown,
    head,
    make,
    note,
    sign_request,
)
from verification.encoding import canonical_json
from verification.errors import FormatError, ProtocolError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import cosign, parse_cosigned, parse_witness_vkey, vkey, witness_vkey
from verification.witness import MAX_REQUEST_BYTES, Witness
from verification.witness_store import WitnessStore

TEN = grown(10)
Capture = pytest.CaptureFixture[str]


def barnraise(*arguments: str) -> int:
    options = parse_options(WitnessOptions, "witness", list(arguments))
    code: int = COMMANDS["witness"][1](options, Console(width=200))
    return code


@contextmanager
def serving(witness: Witness) -> Iterator[str]:
    """The address of a witness that listens on a free port of loopback."""
    stop, ready = threading.Event(), threading.Event()
    urls: list[str] = []

    def started(url: str) -> None:
        urls.append(url)
        ready.set()

    thread = threading.Thread(target=serve_http, args=(witness, "127.0.0.1", 0, stop, started))
    thread.start()
    assert ready.wait(5)
    try:
        yield urls[0]
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def raw(url: str, data: bytes) -> bytes:
    """Everything that comes back for bytes sent as they are."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65_536):
            found += more
        return found


# HTTP


def test_http_end_to_end(tmp_path: Path) -> None:
    with serving(make(tmp_path)) as url:
        client = WitnessClient([(WITNESS_VKEY, connect(url))], VKEY)
        name = parse_witness_vkey(WITNESS_VKEY)[0]
        assert client.present() == (name,)
        assert client.chains(4)[0][2] == 4
        text = client.cosign(note(TEN, 4), lambda old: TEN.consistency_proof(old, 4))
        assert parse_cosigned(text, VKEY, [WITNESS_VKEY]).names == (name,)
        assert list(client.links(text, 1, None, sign_request)) == [name]
        text = client.cosign(note(TEN), TEN.consistency_proof)
        assert parse_cosigned(text, VKEY, [WITNESS_VKEY]).checkpoint == head(TEN)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        for _ in range(2):  # one connection, kept
            connection.request("GET", f"/{PLACE}/checkpoint")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Content-Type")) == (200, "text/plain; charset=utf-8")
            assert answer.read().decode() == text
        connection.request("POST", "/add-checkpoint", add_body(3, TEN.consistency_proof(3), note(TEN)))
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (409, "text/x.tlog.size")
        assert answer.read() == b"10\n"
        connection.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /add-checkpoint HTTP/1.1\r\nHost: h\r\n\r\n", 411),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1 2\r\n\r\n12", 411),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", 411),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1", 411),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_REQUEST_BYTES + 1), 413),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 10\r\n\r\nold 0\n", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 4\r\n\r\njunk", 400),
        (b"PUT /add-checkpoint HTTP/1.1\r\nContent-Length: 4\r\n\r\njunk", 501),
        (b"GET /add-checkpoint HTTP/1.1\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /nothing HTTP/1.1\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\n\r\n", 404),
        (b"GET /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nGET /x HTTP/1.1\r\n\r\n", 404),
        (b"GET " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"junk\r\n\r\n", 400),
        (b"\xff\xff\r\n\r\n", 400),
    ],
)
def test_requests_that_are_refused(tmp_path: Path, request_: bytes, status: int) -> None:
    with serving(make(tmp_path)) as url:
        answer = raw(url, request_)
        assert (
            f" {status} ".encode() in answer.split(b"\r\n")[0] or f"Error code: {status}".encode() in answer
        )
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert connect(url)("GET", f"/{PLACE}/checkpoint", b"")[0] == 404


def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_server, "THREADS", 2)
    monkeypatch.setattr(witness_server, "CONNECTION_S", 1.0)
    with serving(make(tmp_path)) as url:
        host, port = url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(2)]
        time.sleep(0.2)
        with socket.create_connection((host, int(port)), timeout=5) as third:
            third.settimeout(0.7)
            try:
                assert third.recv(10) == b""  # hung up at once
            except ConnectionError:
                third.close()
        start = time.monotonic()
        for connection in idle:
            connection.sendall(b"POST /add-")  # a byte now and then keeps nobody's place
            assert connection.recv(10) == b""
            connection.close()
        assert time.monotonic() - start < 4
        time.sleep(0.2)
        assert connect(url)("GET", f"/{PLACE}/checkpoint", b"")[0] == 404


def test_two_coordinators_at_a_time(tmp_path: Path) -> None:
    """Threads race over HTTP: one head per size, every other request is refused."""
    witness = make(tmp_path)
    trees = [grown(20, branch=branch, fork=3) for branch in range(4)]
    assert add(witness, trees[0], 0, 3)[0] == 200
    codes: list[tuple[int, int]] = []
    with serving(witness) as url:
        go = threading.Barrier(4)

        def ask(number: int) -> None:
            go.wait(5)
            tree = trees[number]
            for size in (8, 12, 20):
                for old in (3, 8, 12):
                    if old < size:
                        body = add_body(old, tree.consistency_proof(old, size), note(tree, size))
                        codes.append((number, connect(url)("POST", "/add-checkpoint", body)[0]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    winners = {number for number, code in codes if code == 200}
    assert len(winners) == 1
    assert {code for _, code in codes} <= {200, 409, 422}
    found = witness.newest(ORIGIN)
    assert found is not None
    assert found.checkpoint.root == trees[winners.pop()].root(found.checkpoint.size)


def test_places_to_listen_on() -> None:
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:8787") == ("::1", 8787)
    assert parse_listen("witness.example:65535") == ("witness.example", 65535)
    for text in ("", "8787", ":8787", "h:", "h:65536", "h:x", "::1:80", "h:1:2", "h/x:1", "h :1", "h:1 "):
        with pytest.raises(UsageError, match="not a place"):
            parse_listen(text)
    with pytest.raises(UsageError, match="cannot listen"):
        serve_http(None, "192.0.2.1", 1, threading.Event(), print)  # type: ignore[arg-type]


# Mailbox


def post(box: Path, number: int, path: str, body: bytes = b"") -> Path:
    (box / f"{number:032x}.request").write_bytes(path.encode() + b"\n" + body)
    return box / f"{number:032x}.answer"


def test_a_mailbox_is_answered_once(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    witness = make(tmp_path / "witness")
    first = post(box, 1, "/add-checkpoint", add_body(0, (), note(TEN, 4)))
    second = post(box, 2, f"/{PLACE}/checkpoint")
    third = post(box, 3, f"/{PLACE}/checkpoint", b"body")
    fourth = post(box, 4, "/barnraise/v1/chain", canonical_json({"length": 3, "log_vkey": VKEY}))
    assert answer_mail(witness, box, set()) == 4
    line = cosign(head(TEN, 4), NAME, WITNESS_KEY, 1_700_000_000)
    assert first.read_bytes() == b"200\n" + line.encode()
    assert second.read_bytes() == b"200\n" + note(TEN, 4).encode() + line.encode()
    assert third.read_bytes().startswith(b"405\n")
    assert fourth.read_bytes() == b"200\n" + ask_chain(witness, 3)[2]
    before = {path.name: path.stat().st_mtime_ns for path in box.iterdir()}
    assert answer_mail(witness, box, set()) == answer_mail(make(tmp_path / "witness"), box, set()) == 0
    assert {path.name: path.stat().st_mtime_ns for path in box.iterdir()} == before


def test_mail_that_is_none(tmp_path: Path) -> None:
    witness = make(tmp_path / "witness")
    box = tmp_path / "box"
    box.mkdir()
    for name in (
        *("x.request", "0" * 31 + ".request", "A" * 32 + ".request", "0" * 32 + ".answer"),
        *(f".{'0' * 32}.request", "1" * 32 + ".request.tmp"),
    ):
        (box / name).write_bytes(b"/add-checkpoint\n")
    os.mkfifo(box / ("2" * 32 + ".request"))
    (box / ("3" * 32 + ".request")).symlink_to(box / "x.request")
    (box / ("4" * 32 + ".request")).mkdir()
    before = sorted(path.name for path in box.iterdir())
    assert answer_mail(witness, box, set()) == 0
    assert sorted(path.name for path in box.iterdir()) == before
    long = post(box, 5, "/add-checkpoint", bytes(MAX_REQUEST_BYTES + 1000))
    odd = post(box, 6, "\x00\x01")
    empty = box / f"{7:032x}.request"
    empty.touch()
    assert answer_mail(witness, box, set()) == 3
    assert long.read_bytes().startswith(b"413\n")
    assert odd.read_bytes().startswith(b"404\n")
    assert empty.with_suffix(".answer").read_bytes().startswith(b"404\n")
    with pytest.raises(UsageError, match="not a folder"):
        serve_mailbox(witness, tmp_path / "none", threading.Event(), once=True)
    with pytest.raises(StorageError):
        answer_mail(witness, tmp_path / "none", set())


def test_the_mailbox_command(tmp_path: Path, capsys: Capture) -> None:
    box = tmp_path / "box"
    box.mkdir()
    answer = post(box, 1, "/barnraise/v1/chain", canonical_json({"length": 3, "log_vkey": VKEY}))
    arguments = ["--mailbox", str(box), "--once", "--home", str(tmp_path / "home"), "--name", "w1"]
    assert barnraise(*arguments, "--any-log") == 0
    assert answer.read_bytes().startswith(b"200\n")
    said = capsys.readouterr().out
    assert f"witness w1 answers at {box.as_uri()}" in said
    assert "Next: " in said


# The command


def test_the_first_start_makes_an_identity(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no witness"):
        own_identity(tmp_path / "w", None)
    with pytest.raises(FormatError):
        own_identity(tmp_path / "w", "a name")
    assert not (tmp_path / "w").exists()
    key, name = own_identity(tmp_path / "w", "w1")
    assert name == "w1"
    assert stat.S_IMODE((tmp_path / "w" / "key").stat().st_mode) == 0o600
    assert own_identity(tmp_path / "w", None)[0].public == key.public
    assert own_identity(tmp_path / "w", "w1")[0].public == key.public
    with pytest.raises(UsageError, match="another name"):
        own_identity(tmp_path / "w", "w2")
    (tmp_path / "w" / "name").unlink()
    with pytest.raises(StorageError):
        own_identity(tmp_path / "w", None)


def test_show(tmp_path: Path, capsys: Capture) -> None:
    assert barnraise("--show", "--home", str(tmp_path), "--name", "w1") == 0
    said = capsys.readouterr().out
    key, _ = own_identity(tmp_path / "witness", None)
    own = witness_vkey("w1", key.public)
    assert f"witness w1 {own}" in said
    make(tmp_path / "witness")
    store = WitnessStore(tmp_path / "witness")
    evidence = store.fork_file(ORIGIN, "x", proven=True)
    assert store.put_fork(evidence, "text")
    assert barnraise("--show", "--home", str(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "name": "w1", "vkey": own, "policy": f"witness w1 {own}", "logs": [],
        "forks": [str(evidence)],
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--show", "--listen", "127.0.0.1:0"],
        ["--listen", "127.0.0.1:0", "--any-log", "--log", VKEY],
        ["--listen", "127.0.0.1:0"],
        ["--listen", "nowhere", "--any-log"],
        ["--show", "--out", "x"],
        ["--show", "--once"],
        ["--listen", "127.0.0.1:0", "--once", "--any-log"],
        ["--cosign", "nothing-is-here"],
    ],
)
def test_wrong_use(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        barnraise(*arguments, "--name", "w1", "--home", str(tmp_path))


def test_listening_ends_cleanly_with_a_signal(tmp_path: Path, capsys: Capture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    arguments = ["--listen", "127.0.0.1:0", "--any-log", "--name", "w1", "--home", str(tmp_path)]
    assert barnraise(*arguments, "--json") == 0
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is before
    started = json.loads(capsys.readouterr().out)
    assert started["url"].startswith("http://127.0.0.1:")
    assert started["vkey"].startswith("w1+")


def test_a_fork_is_told_loudly(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    box = tmp_path / "box"
    box.mkdir()
    fork = grown(10, branch=1, fork=4)
    post(box, 1, "/add-checkpoint", add_body(0, (), note(TEN)))
    post(box, 2, "/add-checkpoint", add_body(10, (), note(fork)))
    arguments = ["--mailbox", str(box), "--once", "--log", VKEY, "--name", "w1"]
    assert barnraise(*arguments, "--home", str(tmp_path / "a")) == 0
    said = capsys.readouterr().out
    assert f"\ncosigned {ORIGIN} at 10 entries\n" in said
    assert "A log that this witness cosigns is not what it was" in said
    assert note(TEN).split("\n")[2] in said
    assert note(fork).split("\n")[2] in said
    for path in box.glob("*.answer"):
        path.unlink()
    assert barnraise(*arguments, "--home", str(tmp_path / "b"), "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["url", "vkey"], ["cosigned", "size"], ["fork"]]
    assert lines[1] == {"cosigned": ORIGIN, "size": 10}
    assert Path(lines[2]["fork"]).read_text().startswith("Two checkpoints")
    assert Path("~/.barnraise") == witness_service.HOME


# A folder


def write_log(folder: Path, size: int, *, other: int | None = None) -> Log:
    entries = batch(0, size)
    if other is not None:
        entries[other:] = [b"another %d" % i for i in range(other, size)]
    log = Log.create(folder, ORIGIN, LOG_KEY)
    log.append(entries)
    return log


def cosign_once(tmp_path: Path, folder: Path, *more: str) -> int:
    return barnraise("--cosign", str(folder), "--home", str(tmp_path / "home"), "--name", "w1", *more)


def test_a_folder_is_cosigned(tmp_path: Path, capsys: Capture) -> None:
    log = write_log(tmp_path / "log", 5)
    with pytest.raises(UsageError, match="which key the log"):
        cosign_once(tmp_path, tmp_path / "log")
    assert cosign_once(tmp_path, tmp_path / "log", "--log", VKEY) == 0
    key, _ = own_identity(tmp_path / "home" / "witness", None)
    own = witness_vkey("w1", key.public)
    found = parse_cosigned(capsys.readouterr().out, VKEY, [own])
    assert (found.checkpoint, found.cosigners) == (log.head, (own,))
    log.append([b"more"])
    out = tmp_path / "cosigned"
    assert cosign_once(tmp_path, tmp_path / "log", "--out", str(out)) == 0
    assert "cosigned" in capsys.readouterr().out
    assert parse_cosigned(out.read_text(), VKEY, [own]).checkpoint == log.head
    assert cosign_once(tmp_path, tmp_path / "log", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["size"], answer["vkey"]) == (True, 6, own)
    assert parse_cosigned(answer["checkpoint"], VKEY, [own]).times == (answer["time"],)


def test_a_run_folder_names_its_key_and_its_witnesses(tmp_path: Path, capsys: Capture) -> None:
    strange = PrivateKey.from_seed(bytes([9]) * 32)
    vkeys = [witness_vkey("s", strange.public)]
    run = tmp_path / "run"
    log = Log.create(run / "log", ORIGIN, LOG_KEY, vkeys)
    log.append(batch(0, 3))
    log.put_cosigned(log.checkpoint + cosign(log.head, "s", strange, 5))
    manifest = {"log_vkey": VKEY, "witnessing": {"required": 1, "witnesses": [{"vkey": vkeys[0]}]}}
    (run / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(UsageError, match="does not know yet which key") as refused:
        cosign_once(tmp_path, run)
    assert VKEY in str(refused.value)
    assert "published" in str(refused.value)
    assert WitnessStore(tmp_path / "home" / "witness").vkeys() == ()
    assert cosign_once(tmp_path, run, "--log", VKEY) == 0
    assert cosign_once(tmp_path, run) == 0
    assert capsys.readouterr().out.startswith(log.checkpoint + "— w1 ")
    other = vkey(ORIGIN, strange.public)
    (run / "manifest.json").write_bytes(canonical_json(manifest | {"log_vkey": other}))
    with pytest.raises(ProtocolError, match="names another key"):
        cosign_once(tmp_path, run)
    (run / "manifest.json").write_bytes(b"[]")
    with pytest.raises(FormatError, match="no manifest"):
        cosign_once(tmp_path, run)


def test_a_fork_of_a_folder_is_shown_with_both_heads(tmp_path: Path) -> None:
    old = write_log(tmp_path / "a", 5)
    store = WitnessStore(tmp_path / "w")
    witness = make(tmp_path / "w")
    cosign_folder(witness, store, tmp_path / "a")
    for number, (size, at) in enumerate(((9, 2), (5, 4), (300, 0))):
        fork = write_log(tmp_path / f"fork{number}", size, other=at)
        with pytest.raises(ProtocolError, match="is a fork") as caught:
            cosign_folder(witness, store, tmp_path / f"fork{number}")
        assert old.checkpoint in str(caught.value)
        assert fork.checkpoint in str(caught.value)
        assert (caught.value.expected, caught.value.got) == (old.root.hex(), fork.root_at(5).hex())
        assert len(store.forks()) == number + 1
    write_log(tmp_path / "short", 3)
    with pytest.raises(ProtocolError, match="is behind a head") as caught:
        cosign_folder(witness, store, tmp_path / "short")
    assert (caught.value.expected, caught.value.got) == ("at least 5 entries", 3)
    grown_log = write_log(tmp_path / "grown", 300)
    assert cosign_folder(witness, store, tmp_path / "grown").startswith(grown_log.checkpoint)
    (tmp_path / "grown" / "tile" / "entries" / "000").write_bytes(b"x")
    with pytest.raises(StorageError):
        cosign_folder(witness, store, tmp_path / "grown")
