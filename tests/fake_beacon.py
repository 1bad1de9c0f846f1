"""A beacon of drand's kind with a key of its own, and its HTTP interface on the loopback, for tests.

Used as `from tests.fake_beacon import ...`. Needs py_ecc.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from verification.beacon import DOMAIN, SCHEME, Beacon, Pulse, _curve

SECRET = 0x1234567890ABCDEF1234567890ABCDEF


@cache
def public_key(secret: int = SECRET) -> str:
    curve = _curve()
    halves = curve.compress_G2(curve.multiply(curve.G2, secret))
    return "".join(f"{half:096x}" for half in halves)


@cache
def signature(number: int, secret: int = SECRET) -> str:
    curve = _curve()
    message = hashlib.sha256(number.to_bytes(8, "big")).digest()
    point = curve.multiply(curve.hash_to_G1(message, DOMAIN, hashlib.sha256), secret)
    return f"{curve.compress_G1(point):096x}"


def beacon(genesis: int = 1_700_000_000, period: int = 3) -> Beacon:
    return Beacon(genesis, period, public_key(), SCHEME)


def pulse(number: int) -> Pulse:
    return Pulse(number, signature(number))


class FakeBeacon:
    """What the server says; `asked` are the paths that came. `change` may answer otherwise, or with None."""

    def __init__(self, told: Beacon, clock: Callable[[], float] = time.time) -> None:
        self.told = told
        self.clock = clock
        self.asked: list[str] = []
        self.change: Callable[[str], tuple[int, bytes] | None] = lambda path: None

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        if (other := self.change(path)) is not None:
            return other
        if path == "/info":
            return 200, self.json(
                public_key=self.told.public_key,
                period=self.told.period,
                genesis_time=self.told.genesis,
                schemeID=self.told.scheme,
                hash="52db",
            )
        number = int(path.removeprefix("/public/"))
        if self.clock() < self.told.published(number):
            return 425, b"too early"
        found = pulse(number)
        return 200, self.json(round=number, signature=found.signature, randomness=found.randomness)

    @staticmethod
    def json(**fields: Any) -> bytes:
        return json.dumps(fields).encode()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its base URL, for as long as it is there."""
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = fake.answer(self.path.removeprefix("/chain"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                del args

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/chain"
            finally:
                server.shutdown()
                thread.join()
