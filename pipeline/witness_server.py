"""How requests reach a witness: HTTP with bounds on everything, and a folder as a mailbox.

Owns the limits of the server and when a request counts as answered. Does not own any answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.witness_client import read_mail
from verification.durable import fsync_folder
from verification.errors import FormatError, StorageError, UsageError
from verification.witness import MAX_REQUEST_BYTES, Witness

THREADS = 32
READ_S = 10.0  # for each read of a request
CONNECTION_S = 60.0  # for a connection, however many requests it brings
POLL_S = 0.2
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):([0-9]{1,5})\Z")
_REQUEST = re.compile(r"([0-9a-f]{32})\.request\Z")
_LENGTH = re.compile(r"[0-9]{1,12}\Z")


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises UsageError."""
    found = _LISTEN.match(text)
    if not found or int(found[2]) > 65535:
        raise UsageError(
            "not a place to listen on", expected="HOST:PORT, e.g. 127.0.0.1:8787", got=repr(text)
        )
    return found[1].strip("[]"), int(found[2])


def serve_http(
    witness: Witness, host: str, port: int, stop: threading.Event, started: Callable[[str], None]
) -> None:
    """Answer over HTTP until `stop`; `started` is told the address.

    Raises UsageError when it cannot listen there.
    """
    try:
        server = _Server((host, port), witness)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}", got=error.strerror or str(error)) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    with server:
        thread.start()
        try:
            started(f"http://{host if ':' not in host else f'[{host}]'}:{server.server_address[1]}")
            stop.wait()
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """At most `THREADS` connections at a time; one more is closed at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        self.witness = witness
        self._free = threading.BoundedSemaphore(THREADS)
        self._since: dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._free.release()

    def service_actions(self) -> None:
        """Hang up on who has been connected too long, e.g. to send a byte now and then."""
        for request, since in list(self._since.items()):
            if time.monotonic() - since > CONNECTION_S:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    self._since.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a peer that went away is no error of ours
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "barnraise-witness"
    sys_version = ""
    timeout = READ_S
    server: _Server

    def do_GET(self) -> None:
        """The newest cosigned checkpoint of a log."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # its body is not read, so nothing after it can be
        self._answer(*self.server.witness.handle("GET", self.path, b""))

    def do_POST(self) -> None:
        """Everything else. The body is read only when its length is known and allowed."""
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or not _LENGTH.match(lengths[0]) or "Transfer-Encoding" in self.headers:
            self._refuse(411, "a request names its length, once, in Content-Length")
        elif int(lengths[0]) > MAX_REQUEST_BYTES:
            self._refuse(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
        elif len(body := self.rfile.read(int(lengths[0]))) == int(lengths[0]):
            self._answer(*self.server.witness.handle("POST", self.path, body))
        else:
            self._refuse(400, "the request ended early")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are not worth a line each."""

    def _refuse(self, status: int, text: str) -> None:
        self.close_connection = True
        self._answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def serve_mailbox(
    witness: Witness,
    folder: Path,
    stop: threading.Event,
    *,
    once: bool,
    notice: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer the requests in a folder until `stop`, or with `once` those that lie there now.

    Whoever shares the folder can spoil requests, not the service: `notice` is told a line. Raises UsageError
    when the folder is not there at the start, StorageError when it cannot be read at the start.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="Make it, where the coordinator can write too.")
    skipped: set[str] = set()
    answer_mail(witness, folder, skipped, notice)
    readable = True
    while not once and not stop.wait(POLL_S):
        try:
            answer_mail(witness, folder, skipped, notice)
            readable = True
        except StorageError as error:
            if readable:
                notice(str(error))
            readable = False


def answer_mail(
    witness: Witness, folder: Path, skipped: set[str], notice: Callable[[str], None] = lambda line: None
) -> int:
    """Answer every request of a mailbox that has no answer yet; how many those were.

    `skipped` are the requests that could not be answered: they are not tried again, and `notice` is told each
    once. Raises StorageError when the folder cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise StorageError(f"{folder} cannot be read", got=error.strerror) from None
    skipped &= names
    answered = 0
    for name in sorted(names - skipped):
        found = _REQUEST.match(name)
        if not found or f"{found[1]}.answer" in names:
            continue
        try:
            # More than a request may have: what is beyond is not read, and refused.
            data = read_mail(folder / name, MAX_REQUEST_BYTES + 256)
            if data is None:
                continue
            path, _, body = data.partition(b"\n")
            route = path.decode("ascii", "replace")
            method = "GET" if route.endswith("/checkpoint") and not body else "POST"
            status, _, answer = witness.handle(method, route, body)
            _put_mail(folder / f"{found[1]}.answer", b"%d\n" % status + answer)
        except (OSError, FormatError) as error:
            skipped.add(name)
            why = error.strerror if isinstance(error, OSError) else error
            notice(f"request {name} cannot be answered: {why}")
        else:
            answered += 1
    return answered


def _put_mail(path: Path, data: bytes) -> None:
    """Write an answer whole, under a name first that nobody can have taken before. Raises OSError.

    Others write to a mailbox: at a name they can guess may lie a pipe, or a second name of another file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(16)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - one system call, named as POSIX names it
        fsync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
