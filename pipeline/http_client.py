"""One bounded HTTP request at a time: to a witness, to a beacon.

Owns timeouts and the most that is read of an answer. Does not own what is asked or what an answer means.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from verification.errors import FormatError, StorageError

Transport = Callable[[str, str, bytes], tuple[int, bytes]]
"""Method, path after the prefix, and body, to status and body; raises StorageError when none comes back."""

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 1 << 17
_VISIBLE = re.compile(r"[!-~]+\Z")


def http_address(url: str) -> tuple[bool, str, int | None, str] | None:
    """Whether it is TLS, host, port and prefix of an address; None when it is not a plain http one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    odd = parts.query or parts.fragment or parts.username is not None or not _VISIBLE.match(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or odd:
        return None
    return parts.scheme == "https", parts.hostname, port, parts.path.rstrip("/")


def http_transport(
    who: str, address: tuple[bool, str, int | None, str], timeout_s: float = TIMEOUT_S
) -> Transport:
    """The way to `who`, e.g. "the witness". An answer raises FormatError when it is too long."""
    tls, host, port, prefix = address
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection

    def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = kind(host, port, timeout=timeout_s)
        hurry: threading.Timer | None = None
        late = threading.Event()
        try:
            connection.connect()  # a TLS handshake as a whole is bounded by the socket's timeout
            # For all else that timeout is for each read; a byte now and then must not hold a run.
            hurry = threading.Timer(timeout_s, _hang_up, [connection.sock, late])
            hurry.start()
            connection.request(method, prefix + path, body=body if method == "POST" else None)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            if answer.length and len(data) <= MAX_ANSWER_BYTES:  # a bounded read does not say so itself
                raise http.client.IncompleteRead(data, answer.length)
            if late.is_set():  # an answer of unknown length ends where it was cut off
                raise TimeoutError(f"the answer took more than {timeout_s:g} s")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StorageError(f"{who} at {host} does not answer", got=str(error)[:200]) from None
        finally:
            if hurry:
                hurry.cancel()
            connection.close()
        if len(data) > MAX_ANSWER_BYTES:
            raise FormatError(f"an answer of {who} is too long", expected=f"at most {MAX_ANSWER_BYTES} bytes")
        return answer.status, data

    return ask


def _hang_up(connected: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
