"""Asking witnesses: cosignatures for a head, links for a draw, chains for a new run.

Owns how requests reach a witness (HTTP, a folder, in this process) and that nothing a witness answers is
believed before its signature held. Does not own what is done with too few answers, nor whether a link belongs
to the witness's chain: the manifest's end and the links shown before say that.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.http_client import MAX_ANSWER_BYTES, TIMEOUT_S, Transport, http_address, http_transport
from verification.durable import write_atomic
from verification.encoding import Json, canonical_json, digest_hex, parse_canonical
from verification.errors import (
    BarnraiseError,
    FormatError,
    ProtocolError,
    SignatureError,
    StorageError,
    UsageError,
)
from verification.notes import (
    open_note,
    parse_checkpoint,
    parse_cosigned,
    parse_vkey,
    parse_witness_vkey,
    plain_note,
)
from verification.statements import verify_object
from verification.witness import CHAIN_DOMAIN, LINK_DOMAIN, MAX_REQUEST_BYTES, Witness
from verification.witness_store import origin_hash

_POLL_S = 0.05
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,15})\n\Z")
_STATUS = re.compile(rb"([1-5][0-9]{2})\n")
_LINK = re.compile(r"[0-9a-f]{64}\Z")
_VISIBLE = re.compile(r"[!-~]+\Z")
T = TypeVar("T")


def in_process(witness: Witness) -> Transport:
    """A witness in this process."""

    def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        status, _, answer = witness.handle(method, path, body)
        return status, answer

    return ask


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Transport:
    """The way to a witness: http://, https:// (its submission prefix) or file:///FOLDER (a mailbox).

    Raises UsageError for any other address. Nothing is sent yet.
    """
    if address := http_address(url):
        return http_transport("the witness", address, timeout_s)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    odd = parts.query or parts.fragment or not _VISIBLE.match(url)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc and not odd:
        return _mailbox(Path(unquote(parts.path)), timeout_s)
    raise UsageError(
        "not a witness's address",
        expected="http://HOST[:PORT][/PREFIX], https://… or file:///FOLDER",
        got=repr(url)[:200],
    )


def _mailbox(folder: Path, timeout_s: float) -> Transport:
    def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        name = secrets.token_hex(16)
        request, answer = folder / f"{name}.request", folder / f"{name}.answer"
        if not folder.is_dir():
            raise StorageError(f"the witness's folder {folder} is not there")
        write_atomic(request, path.encode() + b"\n" + body)
        stop = time.monotonic() + timeout_s
        try:
            while True:
                if (data := read_mail(answer, MAX_ANSWER_BYTES)) is not None:
                    return _parse_mail(data)
                if time.monotonic() >= stop:
                    raise StorageError(f"nobody answered in {folder} within {timeout_s:g} s")
                time.sleep(_POLL_S)
        except OSError as error:
            raise StorageError(f"the folder {folder} cannot be read", got=error.strerror) from None
        finally:  # the request first: a witness answers no request that has gone
            with contextlib.suppress(OSError):
                request.unlink(missing_ok=True)
                answer.unlink(missing_ok=True)

    return ask


def read_mail(path: Path, max_bytes: int) -> bytes | None:
    """A file of a mailbox, at most `max_bytes` + 1 of it; None when it is not there.

    Whoever shares the folder may put anything there: a pipe or a link is refused, not waited for. Raises
    OSError, or FormatError for what is not a file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FormatError(f"{path} is not a regular file")
        return file.read(max_bytes + 1)


def _parse_mail(data: bytes) -> tuple[int, bytes]:
    found = _STATUS.match(data)
    if not found or len(data) > MAX_ANSWER_BYTES:
        raise FormatError("not a witness's answer", expected="a status code and a body", got=repr(data)[:80])
    return int(found[1]), data[found.end() :]


class WitnessClient:
    """The witnesses of a run, in the order of the manifest, as the run's coordinator asks them.

    What one witness does wrong costs that witness's answer and nothing else; `notice` is told a line about
    it. All are asked at the same time; `notice` is called on the caller's thread.
    """

    def __init__(
        self,
        witnesses: Sequence[tuple[str, Transport]],
        log_vkey: str,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Raises FormatError or SignatureError for an unusable verifier key."""
        self._witnesses = [(vkey, *parse_witness_vkey(vkey), transport) for vkey, transport in witnesses]
        self._log_vkey = log_vkey
        self._origin, _ = parse_vkey(log_vkey)
        self._notice = notice
        self._sizes: dict[str, int] = {}  # by name: the size a witness last cosigned or told

    def present(self) -> tuple[str, ...]:
        """Names of the witnesses that answer, in order."""

        def probe(vkey: str, name: str, key: str, ask: Transport) -> bool:
            status, body = ask("GET", f"/{origin_hash(self._origin)}/checkpoint", b"")
            if status == 404:
                return True
            _expect_ok(status, body)
            note = open_note(body, (self._log_vkey,), (vkey,))
            if not note.cosigners:
                raise SignatureError("it shows a checkpoint that it did not cosign")
            self._sizes[name] = note.checkpoint.size
            return True

        return tuple(self._each(probe, None))

    def cosign(
        self, note: str, consistency: Callable[[int], list[bytes]], names: Collection[str] | None = None
    ) -> str:
        """`note` with the cosignature lines that came, in order; `names` are asked, or all.

        `consistency` gives the proof from an earlier size to the note's. Raises FormatError or SignatureError
        when `note` is not a checkpoint of the log.
        """
        plain = plain_note(note)
        size = parse_checkpoint(plain, self._log_vkey).size
        lock = threading.Lock()

        def submit(vkey: str, name: str, key: str, ask: Transport) -> str:
            for _ in range(2):
                old = min(self._sizes.get(name, 0), size)
                with lock:
                    proof = consistency(old) if old else []
                lines = "".join(base64.b64encode(hashed).decode() + "\n" for hashed in proof)
                status, body = ask("POST", "/add-checkpoint", f"old {old}\n{lines}\n{plain}".encode())
                if status != 409:
                    break
                self._sizes[name] = _parse_size(body, size)
            _expect_ok(status, body)
            line = _own_line(plain, body, self._log_vkey, vkey)
            self._sizes[name] = size
            return line

        return plain + "".join(self._each(submit, names).values())

    def links(
        self, note: str, number: int, names: Collection[str] | None, sign: Callable[[Json], str]
    ) -> dict[str, tuple[str, str]]:
        """Link and proof of each witness of `names` (or all) that shows its link `number` for this head.

        `sign` gives the log's proof of an object within barnraise/witness-link-request/v1; it is called on
        the caller's thread. The proofs that come back hold. Whether SHA-256 leads from the link to the one
        before is the caller's to check.
        Raises FormatError or SignatureError when `note` is not a checkpoint of the log.
        """
        plain = plain_note(note)
        head = parse_checkpoint(plain, self._log_vkey)
        root, size = head.root.hex(), head.size
        asked = {"number": number, "origin": self._origin, "root": root, "size": size}
        own = {w[0]: sign(asked | {"witness": w[0]}) for w in self._chosen(names)}

        def show(vkey: str, name: str, key: str, ask: Transport) -> tuple[str, str]:
            request = {"checkpoint": plain, "number": number, "origin": self._origin, "proof": own[vkey]}
            answer = ask("POST", "/barnraise/v1/link", canonical_json(request))
            found = _parse_answer(*answer, {"link": str, "proof": str})
            if not _LINK.match(found["link"]):
                raise FormatError("it shows no link", expected="64 hex digits", got=found["link"][:80])
            statement = {
                "link": found["link"],
                "log_vkey": self._log_vkey,
                "number": number,
                "root": root,
                "size": size,
                "witness": vkey,
            }
            verify_object(LINK_DOMAIN, statement, found["proof"], key)
            return found["link"], found["proof"]

        return self._each(show, names)

    def chains(self, length: int) -> tuple[tuple[str, str, int, str], ...]:
        """(verifier key, end, length, proof) of every witness's chain for this log, for the manifest.

        Raises ProtocolError when a witness gives none: a run does not start without one of its witnesses.
        """
        asked = canonical_json({"length": length, "log_vkey": self._log_vkey})

        def make(vkey: str, name: str, key: str, ask: Transport) -> tuple[str, str, int, str]:
            fields: dict[str, type] = {"chain": dict, "proof": str, "vkey": str}
            found = _parse_answer(*ask("POST", "/barnraise/v1/chain", asked), fields)
            end, proof = found["chain"].get("end"), found["proof"]
            if (
                found["chain"] != {"end": end, "length": length}
                or not digest_hex(end)
                or end[:7] != "sha256:"
            ):
                raise FormatError("it gives no chain of this length", expected=length, got=found["chain"])
            if found["vkey"] != vkey:
                raise SignatureError("another witness answers", expected=vkey, got=found["vkey"][:200])
            statement = {"end": end, "length": length, "log_vkey": self._log_vkey, "witness": vkey}
            verify_object(CHAIN_DOMAIN, statement, proof, key)
            return vkey, end, length, proof

        found = self._each(make, None)
        missing = [name for _, name, _, _ in self._witnesses if name not in found]
        if missing:
            raise ProtocolError(
                "not every witness gave its chain for this log",
                expected=f"all {len(self._witnesses)}",
                got=f"none from {', '.join(missing)}",
                hint="Start the witnesses (`barnraise witness --listen HOST:PORT`), or leave them out.",
            )
        return tuple(found.values())

    def _chosen(self, names: Collection[str] | None) -> list[tuple[str, str, str, Transport]]:
        return [witness for witness in self._witnesses if names is None or witness[1] in names]

    def _each(
        self, ask: Callable[[str, str, str, Transport], T], names: Collection[str] | None
    ) -> dict[str, T]:
        """What `ask` gives for each chosen witness by name, in order, without those where it failed."""
        chosen = self._chosen(names)
        if not chosen:
            return {}

        def tried(witness: tuple[str, str, str, Transport]) -> T | BarnraiseError:
            try:
                return ask(*witness)
            except BarnraiseError as error:
                return error

        with ThreadPoolExecutor(max_workers=min(16, len(chosen))) as pool:
            answers = list(pool.map(tried, chosen))
        found: dict[str, T] = {}
        for (_, name, _, _), answer in zip(chosen, answers, strict=True):
            if isinstance(answer, BarnraiseError):
                self._notice(f"witness {name}: {answer}")
            else:
                found[name] = answer
        return found


def _own_line(plain: str, body: bytes, log_vkey: str, vkey: str) -> str:
    """The first line of an answer that is this witness's cosignature and holds; others are ignored."""
    name, _ = parse_witness_vkey(vkey)
    if len(body) > MAX_REQUEST_BYTES:
        raise FormatError("a witness's answer is too long", expected=f"at most {MAX_REQUEST_BYTES} bytes")
    problem: BarnraiseError | None = None
    for line in body.decode("utf-8", "replace").split("\n")[:16]:
        if not line.startswith(f"— {name} "):
            continue
        try:
            parse_cosigned(f"{plain}{line}\n", log_vkey, (vkey,))
        except BarnraiseError as error:
            problem = error
        else:
            return f"{line}\n"
    raise problem or SignatureError("it gives no cosignature of its key", expected=vkey, got=repr(body)[:80])


def _parse_size(body: bytes, size: int) -> int:
    """The size a witness tells with status 409. Raises ProtocolError when it is ahead of the note."""
    found = _SIZE.match(body)
    if not found:
        raise FormatError("it tells no size", expected="a decimal number", got=repr(body)[:80])
    if int(found[1]) > size:
        raise ProtocolError(
            "it has cosigned a later checkpoint of this log",
            expected=f"at most size {size}",
            got=f"size {int(found[1])}",
            hint="Was the run folder restored from an older copy, or is another coordinator at work?",
        )
    return int(found[1])


def _parse_answer(status: int, body: bytes, fields: dict[str, type]) -> dict[str, Json]:
    _expect_ok(status, body)
    value = parse_canonical(body)
    if not isinstance(value, dict) or {key: type(item) for key, item in value.items()} != fields:
        raise FormatError("its answer has other members", expected=sorted(fields), got=repr(body)[:80])
    found: dict[str, Json] = value
    return found


def _expect_ok(status: int, body: bytes) -> None:
    if status != 200:
        said = body.decode("utf-8", "replace").strip()
        raise ProtocolError("it refuses", got=f"status {status}: {ascii(said)[1:-1][:300]}")
