"""Asking witnesses: honest ones, and each way in which one can lie, stall or be away."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import witness_client
from pipeline.witness_client import Transport, WitnessClient, connect, in_process, read_mail
from pipeline.witness_server import answer_mail
from tests.verification.witness_world import ORIGIN, PLACE, VKEY, Clock, add, grown, head, note, sign_request
from verification.encoding import Json, canonical_json
from verification.errors import BarnraiseError, FormatError, ProtocolError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.merkle import Tree
from verification.notes import cosign, parse_cosigned, witness_vkey
from verification.witness import Witness
from verification.witness_store import WitnessStore

TEN = grown(10)
KEYS = [PrivateKey.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
NAMES = ("w0", "w1", "w2")
VKEYS = tuple(witness_vkey(name, key.public) for name, key in zip(NAMES, KEYS, strict=True))
Answer = tuple[int, bytes]


def witness(folder: Path, number: int) -> Witness:
    return Witness(KEYS[number], NAMES[number], WitnessStore(folder / NAMES[number]), Clock(), [VKEY])


def client(*transports: Transport, notices: list[str] | None = None) -> WitnessClient:
    tell = notices.append if notices is not None else (lambda line: None)
    return WitnessClient(list(zip(VKEYS, transports, strict=False)), VKEY, tell)


def proofs(tree: Tree, size: int) -> Callable[[int], list[bytes]]:
    return lambda old: tree.consistency_proof(old, size)


def always(status: int, body: bytes) -> Transport:
    return lambda method, path, sent: (status, body)


def away(method: str, path: str, body: bytes) -> Answer:
    raise StorageError("nobody is there")


def test_all_honest(tmp_path: Path) -> None:
    witnesses = [witness(tmp_path, number) for number in range(3)]
    asked = client(*map(in_process, witnesses))
    assert asked.present() == NAMES
    chains = asked.chains(6)
    assert [chain[0] for chain in chains] == list(VKEYS)
    assert {chain[2] for chain in chains} == {6}
    assert asked.chains(6) == chains
    text = asked.cosign(note(TEN, 4), proofs(TEN, 4))
    assert parse_cosigned(text, VKEY, VKEYS).cosigners == VKEYS
    links = asked.links(text, 2, None, sign_request)
    assert list(links) == list(NAMES)
    assert links == asked.links(note(TEN, 4), 2, names=None, sign=sign_request)
    text = asked.cosign(text, proofs(TEN, 4), ["w2", "w0"])
    assert parse_cosigned(text, VKEY, VKEYS).names == ("w0", "w2")
    text = asked.cosign(note(TEN), proofs(TEN, 10), ["w1"])
    assert parse_cosigned(text, VKEY, VKEYS).names == ("w1",)
    assert list(asked.links(note(TEN), 3, None, sign_request)) == ["w1"]
    assert list(asked.links(note(TEN), 3, ["w0"], sign_request)) == []
    assert asked.present() == NAMES
    assert asked.cosign(note(TEN), proofs(TEN, 10), []) == note(TEN)


def test_a_size_that_was_told_is_used(tmp_path: Path) -> None:
    one = witness(tmp_path, 0)
    add(one, TEN, 0, 6)
    sent: list[bytes] = []

    def spy(method: str, path: str, body: bytes) -> Answer:
        sent.append(body)
        return in_process(one)(method, path, body)

    asked = client(spy)
    assert parse_cosigned(asked.cosign(note(TEN), proofs(TEN, 10)), VKEY, VKEYS).names == ("w0",)
    assert [body.split(b"\n")[0] for body in sent] == [b"old 0", b"old 6"]
    sent.clear()
    asked.cosign(note(grown(12)), proofs(grown(12), 12))
    assert [body.split(b"\n")[0] for body in sent] == [b"old 10"]
    sent.clear()
    fresh = client(spy)
    assert fresh.present() == ("w0",)
    fresh.cosign(note(grown(14)), proofs(grown(14), 14))
    assert [body.split(b"\n")[0] for body in sent[1:]] == [b"old 12"]


def test_a_witness_that_is_ahead_gives_nothing(tmp_path: Path) -> None:
    notices: list[str] = []
    one = witness(tmp_path, 0)
    add(one, TEN, 0, 8)
    asked = client(in_process(one), notices=notices)
    assert asked.cosign(note(TEN, 5), proofs(TEN, 5)) == note(TEN, 5)
    assert "later checkpoint" in notices[0]
    assert notices[0].startswith("witness w0: ")


LATE = cosign(head(TEN), "w0", KEYS[0], 9)
BAD_COSIGNATURES: dict[str, Transport] = {
    "away": away,
    "error": always(500, b"oops\n"),
    "redirect": always(302, LATE.encode()),
    "empty": always(200, b""),
    "junk": always(200, b"\xff\x00"),
    "stranger": always(200, cosign(head(TEN), "w9", KEYS[0], 9).encode()),
    "other key": always(200, cosign(head(TEN), "w0", KEYS[1], 9).encode()),
    "other head": always(200, cosign(head(TEN, 9), "w0", KEYS[0], 9).encode()),
    "cut": always(200, LATE[:-8].encode()),
    "conflict for ever": always(409, b"3\n"),
    "conflict, no size": always(409, b"three\n"),
    "conflict, odd size": always(409, b"03\n"),
    "long": always(200, LATE.encode() + b"x" * 70_000),
    "hidden": always(200, b"x\n" * 16 + LATE.encode()),
}


@pytest.mark.parametrize("how", BAD_COSIGNATURES)
def test_a_bad_witness_costs_its_own_line(tmp_path: Path, how: str) -> None:
    notices: list[str] = []
    asked = client(BAD_COSIGNATURES[how], in_process(witness(tmp_path, 1)), notices=notices)
    text = asked.cosign(note(TEN), proofs(TEN, 10))
    assert parse_cosigned(text, VKEY, VKEYS).names == ("w1",)
    assert [line[:12] for line in notices] == ["witness w0: "]


def test_lines_that_do_not_hold_are_passed_over(tmp_path: Path) -> None:
    bad = cosign(head(TEN, 9), "w0", KEYS[0], 9)
    answer = f"x\n{cosign(head(TEN), 'w9', KEYS[2], 9)}{bad}{LATE}{cosign(head(TEN), 'w0', KEYS[0], 10)}"
    text = client(always(200, answer.encode())).cosign(note(TEN), proofs(TEN, 10))
    assert text == note(TEN) + LATE


def test_a_time_that_a_run_folder_cannot_hold_is_no_cosignature() -> None:
    key_id = base64.b64decode(LATE.split()[2])[:4]
    signature = KEYS[0].sign(f"cosignature/v1\ntime {2**60}\n{head(TEN).text()}".encode())
    raw = key_id + (2**60).to_bytes(8, "big") + signature
    line = f"— w0 {base64.b64encode(raw).decode()}\n"
    assert client(always(200, line.encode())).cosign(note(TEN), proofs(TEN, 10)) == note(TEN)


def test_a_note_of_another_log_is_not_sent() -> None:
    with pytest.raises(BarnraiseError):
        client(away).cosign(note(TEN, key=KEYS[0]), proofs(TEN, 10))
    with pytest.raises(BarnraiseError):
        client(away).links("x", 1, None, sign_request)


def changed(answer: bytes, **values: object) -> bytes:
    return canonical_json(json.loads(answer) | values)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: (404, a),
        lambda a: (200, b""),
        lambda a: (200, b"[]"),
        lambda a: (200, changed(a, more=1)),
        lambda a: (200, changed(a, link="0" * 64)),
        lambda a: (200, changed(a, link="0" * 63)),
        lambda a: (200, changed(a, link=json.loads(a)["link"].upper())),
        lambda a: (200, changed(a, link=None)),
        lambda a: (200, changed(a, proof="AAAA")),
        lambda a: (200, changed(a, proof=None)),
        lambda a: (200, a + b"\n"),
    ],
)
def test_a_link_is_believed_only_with_its_proof(tmp_path: Path, change: Callable[[bytes], Answer]) -> None:
    one, two = witness(tmp_path, 0), witness(tmp_path, 1)
    honest = client(in_process(one), in_process(two))
    honest.chains(4)
    text = honest.cosign(note(TEN), proofs(TEN, 10))
    notices: list[str] = []

    def lying(method: str, path: str, body: bytes) -> Answer:
        return change(in_process(one)(method, path, body)[1])

    assert list(client(lying, in_process(two), notices=notices).links(text, 1, None, sign_request)) == ["w1"]
    assert len(notices) == 1
    assert list(honest.links(text, 1, None, sign_request)) == ["w0", "w1"]


def test_a_link_is_asked_for_with_the_proof_of_the_log(tmp_path: Path) -> None:
    signed: list[Json] = []
    sent: list[Json] = []

    def sign(value: Json) -> str:
        signed.append(value)
        return sign_request(value)

    def spy(method: str, path: str, body: bytes) -> Answer:
        sent.append(json.loads(body))
        return 500, b""

    client(spy, spy, spy).links(note(TEN), 7, ["w0", "w2"], sign)
    asked = {"number": 7, "origin": ORIGIN, "root": TEN.root().hex(), "size": 10}
    assert signed == [asked | {"witness": VKEYS[0]}, asked | {"witness": VKEYS[2]}]
    assert sorted(value["proof"] for value in sent) == sorted(map(sign_request, signed))
    assert all(set(value) == {"checkpoint", "number", "origin", "proof"} for value in sent)
    one = client(in_process(witness(tmp_path, 0)))
    one.chains(4)
    one.cosign(note(TEN), proofs(TEN, 10))
    assert one.links(note(TEN), 4, None, lambda value: sign_request(value, KEYS[0])) == {}
    assert list(one.links(note(TEN), 1, None, sign_request)) == ["w0"]


def test_a_link_of_another_number_or_head_or_witness_is_not_believed(tmp_path: Path) -> None:
    one = in_process(witness(tmp_path, 0))
    honest = client(one)
    honest.chains(4)
    honest.cosign(note(TEN, 5), proofs(TEN, 5))
    sent: list[Answer] = []

    def spy(method: str, path: str, body: bytes) -> Answer:
        sent.append(one(method, path, body))
        return sent[-1]

    client(spy).links(note(TEN, 5), 1, None, sign_request)
    stale = sent[0]
    assert stale[0] == 200
    assert client(lambda *_: stale).links(note(TEN, 5), 2, None, sign_request) == {}
    assert client(lambda *_: stale).links(note(TEN, 6), 1, None, sign_request) == {}
    assert (
        WitnessClient([(VKEYS[1], lambda *_: stale)], VKEY).links(note(TEN, 5), 1, None, sign_request) == {}
    )
    assert list(client(lambda *_: stale).links(note(TEN, 5), 1, None, sign_request)) == ["w0"]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: (404, a),
        lambda a: (409, a),
        lambda a: (200, b"{}"),
        lambda a: (200, changed(a, chain={"end": json.loads(a)["chain"]["end"], "length": 7})),
        lambda a: (200, changed(a, chain={"end": "sha256:" + "0" * 64, "length": 4})),
        lambda a: (200, changed(a, chain={"end": None, "length": 4})),
        lambda a: (200, changed(a, chain={"length": 4})),
        lambda a: (200, a.replace(b"sha256:", b"blake3:")),
        lambda a: (200, changed(a, vkey=VKEYS[1])),
        lambda a: (200, changed(a, proof="AAAA")),
    ],
)  # fmt: skip
def test_a_chain_is_believed_only_with_its_proof(tmp_path: Path, change: Callable[[bytes], Answer]) -> None:
    one = in_process(witness(tmp_path, 0))
    notices: list[str] = []
    asked = client(lambda *sent: change(one(*sent)[1]), in_process(witness(tmp_path, 1)), notices=notices)
    with pytest.raises(ProtocolError, match="not every witness") as caught:
        asked.chains(4)
    assert caught.value.got == "none from w0"
    assert len(notices) == 1


def test_who_is_present(tmp_path: Path) -> None:
    one, two = witness(tmp_path, 0), witness(tmp_path, 1)
    add(two, TEN, 0)
    other = in_process(two)("GET", f"/{PLACE}/checkpoint", b"")
    assert client(in_process(one), in_process(two)).present() == ("w0", "w1")
    assert client(away, in_process(two)).present() == ("w1",)
    assert client(always(500, b""), away).present() == ()
    notices: list[str] = []
    assert client(lambda *_: other, notices=notices).present() == ()
    assert "did not cosign" in notices[0]
    assert client(always(200, b"junk")).present() == ()


def test_witnesses_are_asked_at_the_same_time(tmp_path: Path) -> None:
    meet = threading.Barrier(3)

    def waiting(method: str, path: str, body: bytes) -> Answer:
        meet.wait(5)
        return 404, b""

    assert client(waiting, waiting, waiting).present() == NAMES


# Addresses


@pytest.mark.parametrize(
    "url",
    ["", "w1", "ftp://h/", "http://", "http:///x", "http://h:99999", "http://h:x", "http://u:p@h/", "http://h/?q",
     "http://h/#f", "http://h/a b", "file://host/x", "file:x", "file://", "http://h/\r\nx", "http://[::1"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="not a witness's address"):
        connect(url)


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of one connection that says whatever a test wants."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                try:
                    answer(connection)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/some/prefix/"
        thread.join(5)


def test_http_answers() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                seen.append(connection.recv(65_536))
                connection.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n7\n")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/some/prefix/"
        assert connect(url)("POST", "/add-checkpoint", b"body") == (409, b"7\n")
        thread.join(5)
    assert seen[0].startswith(b"POST /some/prefix/add-checkpoint HTTP/1.1\r\n")
    assert b"Content-Length: 4\r\n" in seen[0]


def test_http_answers_are_bounded_in_size_and_time() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65_536))

    with server(endless) as url, pytest.raises(FormatError, match="too long"):
        connect(url)("GET", "/x", b"")

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)

    start = time.monotonic()
    with server(trickle) as url, pytest.raises(StorageError, match="does not answer"):
        connect(url, timeout_s=0.5)("GET", "/x", b"")
    with (
        server(lambda connection: time.sleep(0.8)) as url,
        pytest.raises(StorageError, match="does not answer"),
    ):
        connect(url, timeout_s=0.3)("GET", "/x", b"")
    assert time.monotonic() - start < 8
    nonsense = server(lambda connection: connection.sendall(b"nonsense\r\n\r\n"))
    with nonsense as url, pytest.raises(StorageError, match="does not answer"):
        connect(url)("GET", "/x", b"")
    with pytest.raises(StorageError, match="does not answer"):
        connect("http://127.0.0.1:1")("GET", "/x", b"")


def test_a_tls_handshake_is_bounded_in_time() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")
        for _ in range(60):
            connection.sendall(b"\x02")
            time.sleep(0.1)

    start = time.monotonic()
    with server(trickle) as url, pytest.raises(StorageError, match="does not answer"):
        connect(url.replace("http:", "https:"), timeout_s=0.5)("GET", "/x", b"")
    assert time.monotonic() - start < 4


# Mailboxes


def test_a_mailbox(tmp_path: Path) -> None:
    one = witness(tmp_path, 0)
    box = tmp_path / "a box"
    box.mkdir()
    ask = connect(box.as_uri())
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            answer_mail(one, box, set())
            time.sleep(0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asked = client(ask)
        assert asked.present() == ("w0",)
        assert asked.chains(4)[0][0] == VKEYS[0]
        text = asked.cosign(note(TEN), proofs(TEN, 10))
        assert parse_cosigned(text, VKEY, VKEYS).names == ("w0",)
        assert list(asked.links(text, 1, None, sign_request)) == ["w0"]
        assert asked.present() == ("w0",)
    finally:
        stop.set()
        thread.join(5)
    assert list(box.iterdir()) == []


def answering(box: Path, name_to: Callable[[Path], None]) -> threading.Thread:
    def serve() -> None:
        stop = time.monotonic() + 5
        while time.monotonic() < stop:
            for path in box.glob("*.request"):
                name_to(path.with_suffix(".answer"))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def write_whole(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    "data", [b"", b"200", b"20\nx", b"2000\nx", b"600\nx", b"ok\n", b"200\n" + bytes(1 << 18)]
)
def test_mail_that_is_no_answer(tmp_path: Path, data: bytes) -> None:
    thread = answering(tmp_path, lambda path: write_whole(path, data))
    with pytest.raises(FormatError, match="not a witness's answer"):
        connect(tmp_path.as_uri())("GET", "/x", b"")
    thread.join(5)


def test_pipes_and_links_are_not_read(tmp_path: Path) -> None:
    thread = answering(tmp_path, os.mkfifo)
    with pytest.raises(FormatError, match="not a regular file"):
        connect(tmp_path.as_uri())("GET", "/x", b"")
    thread.join(5)
    (tmp_path / "secret").write_text("200\nsecret")
    thread = answering(tmp_path, lambda path: path.symlink_to(tmp_path / "secret"))
    with pytest.raises(StorageError):
        connect(tmp_path.as_uri())("GET", "/x", b"")
    thread.join(5)
    assert read_mail(tmp_path / "nothing", 10) is None
    assert read_mail(tmp_path / "secret", 4) == b"200\ns"


def test_a_mailbox_that_nobody_reads(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nobody answered"):
        connect(tmp_path.as_uri(), timeout_s=0.1)("GET", "/x", b"")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="not there"):
        connect((tmp_path / "none").as_uri())("GET", "/x", b"")


def test_the_form_of_a_request(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes]] = []

    def answer(path: Path) -> None:
        request = path.with_suffix(".request")
        seen.append((request.name, request.read_bytes()))
        write_whole(path, b"409\n7\n")

    thread = answering(tmp_path, answer)
    assert connect(tmp_path.as_uri())("POST", "/add-checkpoint", b"old 0\n\nnote") == (409, b"7\n")
    thread.join(5)
    (name, data) = seen[0]
    assert data == b"/add-checkpoint\nold 0\n\nnote"
    assert len(name) == 40
    assert set(name[:32]) <= set("0123456789abcdef")
    assert witness_client.MAX_ANSWER_BYTES >= 65_536
