"""Parsers of what comes over a network or through a mailbox, and sound inputs of each, for fuzz_targets.py.

Owns HTTP requests to a witness and answers to us, answers of witnesses and beacons, mail. Nothing is sent:
sockets are stood in for by bytes in memory. Does not own the table, nor requests behind HTTP
(fuzz_targets_witness.py).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from assurance.fuzz_targets import KEY, ORIGIN, VKEY, Parser, canon, signed_note, target, text
from assurance.fuzz_targets_witness import TIME, WITNESS, WITNESS_NAME, WITNESS_VKEY, cosigned
from verification import notes
from verification.errors import FormatError
from verification.merkle import Tree, leaf_hash
from verification.statements import sign_object


class Wire:
    """A socket from which given bytes come and into which anything goes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str, buffering: int | None = None) -> io.BytesIO:
        """What comes."""
        del mode, buffering
        return io.BytesIO(self._data)

    def sendall(self, data: bytes) -> None:
        """What goes is lost."""

    def settimeout(self, seconds: float | None) -> None:
        """Nothing has to be waited for."""

    def close(self) -> None:
        """Nothing is held."""


# --- witnesses ---


def _witness(folder: Path) -> Any:
    from verification.witness import Witness
    from verification.witness_store import WitnessStore

    return Witness(WITNESS, WITNESS_NAME, WitnessStore(folder / "memory"), lambda: TIME, None)


def _note(size: int) -> str:
    tree = Tree(leaf_hash(bytes([number])) for number in range(size))
    return signed_note(notes.Checkpoint(ORIGIN, size, tree.root()).text().encode()).decode()


def _answers(
    folder: Path, ask: Callable[[Any], object], *, first: Iterable[bytes] = ()
) -> tuple[Parser, list[bytes]]:
    """A run's client, to which one witness answers as in a mailbox: a status, the end of its line, a body.

    And the bodies of what a real one answers that has cosigned three entries. When there is a `first`, that
    is a sound first answer, and a real witness gives all after it.
    """
    from pipeline.witness_client import WitnessClient, _parse_mail, in_process

    witness, said = _witness(folder), []

    def honest(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        status, answer = in_process(witness)(method, path, body)
        said.append(answer)
        return status, answer

    def asked(transport: Any) -> list[str]:
        told: list[str] = []
        ask(WitnessClient([(WITNESS_VKEY, transport)], VKEY, told.append))
        return told

    witness.handle("POST", "barnraise/v1/chain", canon({"length": 8, "log_vkey": VKEY}))
    witness.handle("POST", "add-checkpoint", f"old 0\n\n{_note(3)}".encode())
    if told := asked(honest):
        raise AssertionError(told)

    def parse(data: bytes) -> None:
        came = iter((data,))

        def hostile(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            if first and (left := next(came, None)) is None:
                return in_process(witness)(method, path, body)
            return _parse_mail(data if not first else left)

        if asked(hostile):
            raise FormatError("refused")

    return parse, [*first] or said[-1:]


def _consistency(old: int) -> list[bytes]:
    tree = Tree(leaf_hash(bytes([number])) for number in range(5))
    return tree.consistency_proof(old, 5)


def _asked(asked: Any) -> str:
    return sign_object("barnraise/witness-link-request/v1", asked, KEY)


def _ok(body: bytes) -> bytes:
    return b"200\n" + body


def _cosigned_answer(body: bytes) -> bytes:
    """A note with any text that the log and the witness signed."""
    return _ok(cosigned(body))


@target("witness answer: checkpoint", wrap=_cosigned_answer, share=0.2, small=0.1)
def _answer_present(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    parse, _ = _answers(folder, lambda client: client.present())
    return [parse], [notes.Checkpoint(ORIGIN, size, bytes(32)).text().encode() for size in (1, 300)]


@target("witness answer: cosignature", wrap=_ok, share=0.2, small=0.1)
def _answer_cosign(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    note = _note(5)
    parse, seeds = _answers(folder, lambda client: client.cosign(note, _consistency))
    return [parse], seeds


@target("witness answer: size", share=0.2, small=0.1)
def _answer_size(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The answer to a checkpoint after a size that the witness does not have; then it answers rightly."""
    note = _note(5)
    parse, seeds = _answers(folder, lambda client: client.cosign(note, _consistency), first=[b"409\n5\n"])
    return [parse], seeds


@target("witness answer: link", json=True, wrap=_ok, share=0.2, small=0.1)
def _answer_link(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    note = _note(3)
    parse, seeds = _answers(folder, lambda client: client.links(note, 1, None, _asked))
    return [parse], seeds


@target("witness answer: chain", json=True, wrap=_ok, share=0.2, small=0.1)
def _answer_chain(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    parse, seeds = _answers(folder, lambda client: client.chains(8))
    return [parse], seeds


@target("HTTP request to a witness", small=0.3)
def _http_request(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """All that a connection brings, as the server's own handler reads it; whatever comes is answered."""
    from pipeline.witness_server import _Handler
    from verification.witness_store import origin_hash

    witness = _witness(folder)
    chain = canon({"length": 8, "log_vkey": VKEY})
    witness.handle("POST", "barnraise/v1/chain", chain)
    witness.handle("POST", "add-checkpoint", f"old 0\n\n{_note(3)}".encode())
    served: Any = SimpleNamespace(witness=witness)

    class Recorded(Wire):
        """The status of each answer is kept."""

        def sendall(self, data: bytes) -> None:
            if found := re.match(rb"HTTP/1\.[01] ([0-9]{3})", bytes(data)):
                statuses.append(int(found[1]))

    statuses: list[int] = []

    def handle(data: bytes) -> None:
        statuses.clear()
        _Handler(Recorded(data), ("127.0.0.1", 1), served)  # type: ignore[arg-type]
        if statuses and (bad := [status for status in statuses if status != 200]):
            raise FormatError(f"status {bad[0]}")
        if not statuses:
            raise FormatError("no answer")

    path, head = origin_hash(ORIGIN).encode(), b"HTTP/1.1\r\nHost: w.example\r\nAccept: */*\r\n"
    get = b"GET /%s/checkpoint %s\r\n" % (path, head)
    post = b"POST /barnraise/v1/chain %sContent-Length: %d\r\n\r\n%s" % (head, len(chain), chain)
    return [handle], [post, get, get + post]


@target("mail to a witness", small=0.3)
def _mail(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A request as a file of a mailbox, answered as the service does."""
    from pipeline.witness_server import answer_mail
    from verification.witness_store import origin_hash

    witness, box = _witness(folder), folder / "box"
    box.mkdir()
    chain = canon({"length": 8, "log_vkey": VKEY})
    witness.handle("POST", "barnraise/v1/chain", chain)
    witness.handle("POST", "add-checkpoint", f"old 0\n\n{_note(3)}".encode())
    name = "0" * 32
    answer = box / f"{name}.answer"

    def handle(data: bytes) -> None:
        (box / f"{name}.request").write_bytes(data)
        answer_mail(witness, box, set())
        said = answer.read_bytes()
        answer.unlink()
        if not said.startswith(b"200\n"):
            raise FormatError(said[:80].decode("utf-8", "replace"))

    return [handle], [b"/barnraise/v1/chain\n" + chain, f"/{origin_hash(ORIGIN)}/checkpoint\n".encode()]


# --- HTTP answers, beacons ---


def _http_from(data: list[bytes]) -> Any:
    """The package's own HTTP, whose every connection brings the newest of `data`."""
    from http.client import HTTPConnection

    from pipeline import http_client

    class Connection(HTTPConnection):
        """Is connected to bytes."""

        def connect(self) -> None:
            self.sock = Wire(data[-1])  # type: ignore[assignment]

    plain = http_client.http.client.HTTPConnection
    http_client.http.client.HTTPConnection = Connection  # type: ignore[misc]
    try:
        address = http_client.http_address("http://answers.example/prefix")
        if address is None:
            raise AssertionError("that is an address")
        return http_client.http_transport("the witness", address)
    finally:
        http_client.http.client.HTTPConnection = plain  # type: ignore[misc]


def _http_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@target("HTTP answer", small=0.3)
def _answer(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """All that a connection of ours brings, from its first byte."""
    del folder
    came: list[bytes] = [b""]
    ask = _http_from(came)

    def read(data: bytes) -> None:
        came[0] = data
        ask("POST", "/add-checkpoint", b"old 0\n")

    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    return [read], [_http_answer(b"body"), chunked, b"HTTP/1.0 409 Conflict\r\n\r\n3\n"]


def _genuine() -> tuple[Any, Any]:
    """A beacon and its pulse 5, whose key is made up."""
    from tests.verification.test_fsck_bytes import beacon_key, pulse_signature
    from verification.records import Beacon, Pulse

    return Beacon(1_700_000_000, 3, beacon_key(), "bls-unchained-g1-rfc9380"), Pulse(5, pulse_signature(5))


def _once(module: Any, name: str) -> Callable[[Callable[[], object]], object]:
    """Call something while a slow check of `module` remembers what held for the very same values."""
    plain = getattr(module, name)
    known = lru_cache(maxsize=64)(plain)

    def call(inner: Callable[[], object]) -> object:
        setattr(module, name, known)
        try:
            return inner()
        finally:
            setattr(module, name, plain)

    return call


def _from_wire(module: Any, came: list[bytes]) -> Callable[[Callable[[], object]], object]:
    """Call something while `module` reaches its beacon by the bytes in `came`, and no pulse but 5 is out."""
    plain, ask = module._transport, _http_from(came)  # noqa: SLF001

    def one(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return ask(method, path, body) if path in ("/info", "/public/5") else (425, b"too early")

    def call(inner: Callable[[], object]) -> object:
        module._transport = lambda url: one  # noqa: SLF001
        try:
            return inner()
        finally:
            module._transport = plain  # noqa: SLF001

    return call


@target("beacon answer: info", wrap=_http_answer, json=True, untraced=True, share=0.2, small=0.02)
def _info(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """What a beacon says it is, over HTTP. A key that held once is not computed again."""
    del folder
    from pipeline import beacon_client

    came = [b""]
    beacon, _ = _genuine()
    wired, once = _from_wire(beacon_client, came), _once(beacon_client, "check_key")

    def read(data: bytes) -> None:
        came[0] = data
        wired(lambda: once(lambda: beacon_client.read_beacon("http://beacon.example")))

    value = {"genesis_time": beacon.genesis, "hash": "ab", "period": 3, "public_key": beacon.public_key}
    seed = canon({**value, "schemeID": beacon.scheme, "metadata": {"beaconID": "quicknet"}})
    read(_http_answer(seed))
    return [read], [seed]


@target("beacon answer: pulse", wrap=_http_answer, json=True, untraced=True, share=0.8, small=0.08)
def _pulse(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """Pulse 5, over HTTP. A pulse that held once is not computed again: that takes half a second."""
    del folder
    from pipeline import beacon_client

    came = [b""]
    beacon, pulse = _genuine()
    wired, once = _from_wire(beacon_client, came), _once(beacon_client, "check_pulse")
    ticks = iter(range(0, 1 << 62, 1000))  # so that patience ends at once

    def read(data: bytes) -> None:
        came[0] = data

        def ask() -> None:
            client = beacon_client.BeaconClient(
                "http://beacon.example",
                beacon,
                clock=lambda: 2e9,
                ticks=lambda: next(ticks),
                sleep=lambda seconds: None,
            )
            client.pulse(5)

        wired(lambda: once(ask))

    seed = canon({"randomness": pulse.randomness, "round": 5, "signature": pulse.signature})
    read(_http_answer(seed))
    return [read], [seed]


_KEY_FORM = re.compile(r"[0-9a-f]{192}")
_PULSE_FORM = re.compile(r"[0-9a-f]{96}")


def _hex_points(length: int) -> Callable[[bytes], bytes]:
    """Any bytes as the hex of so many, so that what lies behind the form is reached."""
    return lambda data: data[:length].ljust(length, b"\0").hex().encode()


@target(
    "beacon answer: any key",
    agree=True,
    wrap=_hex_points(96),
    untraced=True,
    share=0.004,
    why="up to 0.1 s each",
)
def _beacon_key(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A compressed point of G2, as both readers take it: what holds takes them 0.1 s, so it is few."""
    del folder
    from dataclasses import replace

    from verification import beacon, fsck_beacon

    sound, _ = _genuine()

    def independent(key: str) -> None:
        if not _KEY_FORM.fullmatch(key):
            raise FormatError("not its form")
        fsck_beacon.parse_beacon_key(key)

    own = text(lambda key: beacon.check_key(replace(sound, public_key=key)))
    return (own, text(independent)), [bytes.fromhex(sound.public_key)]


@target(
    "beacon answer: any pulse",
    agree=True,
    wrap=_hex_points(48),
    untraced=True,
    share=0.001,
    why="up to 0.5 s each",
)
def _beacon_pulse(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A compressed point of G1 as a signature of pulse 5, as both readers take it: 0.5 s, so it is few."""
    del folder
    from verification import beacon, fsck_beacon
    from verification.records import Pulse

    sound, pulse = _genuine()
    kept = lru_cache(maxsize=64)(lambda signature: beacon.check_pulse(sound, Pulse(5, signature)))

    def independent(signature: str) -> None:
        if not _PULSE_FORM.fullmatch(signature):
            raise FormatError("not its form")
        if not fsck_beacon.pulse_holds(sound.public_key, 5, signature):
            raise FormatError("does not hold")

    for warm in (kept, independent):  # half a second each, and not for tracing
        warm(pulse.signature)
    return (text(kept), text(independent)), [bytes.fromhex(pulse.signature)]


@target("kept beacon address", small=0.3)
def _address(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The file that a resumed run finds its beacon by."""
    from pipeline import beacon_client

    def read(data: bytes) -> None:
        (folder / beacon_client.ADDRESS_FILE).write_bytes(data)
        beacon_client._transport(beacon_client.kept_address(folder))  # noqa: SLF001

    return [read], [b"https://api.drand.sh/v2\n", b"http://127.0.0.1:8080/prefix\n"]
