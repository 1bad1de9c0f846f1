"""A witness: cosigns checkpoints that only ever grow, and shows links of its chain for heads it cosigned.

Owns C2SP tlog-witness (add-checkpoint and retrieval) and section 13 of docs/protocol.md, as a function from a
request to an answer: what is refused with which status, and that everything is durable before the answer.
Does not own how requests travel (HTTP, a folder), nor the files (`witness_store`).
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from verification.durable import present
from verification.encoding import Json, canonical_json, parse_base64, parse_canonical
from verification.errors import (
    BarnraiseError,
    FormatError,
    ProtocolError,
    SignatureError,
    StorageError,
    UsageError,
)
from verification.keys import PrivateKey
from verification.merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency
from verification.notes import OpenNote, cosign_text, note_origin, open_note, parse_vkey, witness_vkey
from verification.statements import sign_object, verify_object
from verification.witness_store import Shown, WitnessStore, origin_hash

MAX_REQUEST_BYTES = 65_536
MAX_PROOF_LINES = 63
MAX_LENGTH = 1 << 20  # of a chain; a link costs up to so many hashes
MAX_LOGS = 1024  # that a witness of any log admits
CHAIN_DOMAIN = "barnraise/witness-chain/v1"
LINK_DOMAIN = "barnraise/witness-link/v1"
LINK_REQUEST_DOMAIN = "barnraise/witness-link-request/v1"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
SIZE = "text/x.tlog.size"
_OLD = re.compile(rb"old (0|[1-9][0-9]{0,15})\Z")
_RETRIEVAL = re.compile(r"([0-9a-f]{64})/checkpoint\Z")

_PROVEN = """\
Both checkpoints are signed by the log, have the same size, and have different roots. A log that only
grows cannot sign both: this is proof of misbehaviour by itself, for anybody who has the log's key."""
_UNPROVEN = """\
Both checkpoints are signed by the log. Shown is that whoever sent the second did not show that the log
had only grown. Not shown is that the log itself is forked: an honest log's checkpoint with somebody's
wrong proof looks the same. Ask the log for a consistency proof between the two sizes: if it has none,
these two checkpoints together are proof that it was rewritten."""

Answer = tuple[int, str, bytes]


class Witness:
    """A witness of one key. One request at a time: checking and remembering are one step.

    `logs` are the verifier keys of the logs to cosign; None admits any log whose chain is asked for, by the
    first key that comes for its origin. `clock` gives seconds since 1970. `on_fork` is told the file and the
    text of each new piece of evidence that a log is not append-only; proof is told even when it could not be
    kept, with None for the file. `on_cosigned` is told origin and size of each larger head it cosigned.
    """

    def __init__(
        self,
        key: PrivateKey,
        name: str,
        store: WitnessStore,
        clock: Callable[[], int],
        logs: Collection[str] | None,
        on_fork: Callable[[Path | None, str], None] = lambda path, text: None,
        on_cosigned: Callable[[str, int], None] = lambda origin, size: None,
    ) -> None:
        """Raises FormatError for an unusable key of a log, UsageError for two keys of one origin."""
        self.vkey = witness_vkey(name, key.public)
        self._key = key
        self._name = name
        self._store = store
        self._clock = clock
        self._any = logs is None
        self._logs: dict[str, str] = {}
        self._on_fork = on_fork
        self._on_cosigned = on_cosigned
        self._ends: dict[str, str] = {}
        self._lock = threading.Lock()
        for log_vkey in logs or ():
            origin, _ = parse_vkey(log_vkey)
            known = self.log_vkey(origin)
            if known not in (None, log_vkey):
                raise UsageError(
                    f"the witness knows another key of the log {origin}",
                    expected=known,
                    got=log_vkey,
                    hint="One origin has one key; a log with a new key needs a new origin.",
                )
            self._logs[origin] = log_vkey

    def handle(self, method: str, path: str, body: bytes) -> Answer:
        """Status, content type and body of the answer to a request; `path` is what follows the prefix.

        Never raises anything of the error family: what is wrong becomes a status and a line of text.
        """
        if len(body) > MAX_REQUEST_BYTES:
            return _say(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
        posts = {
            "add-checkpoint": self._add_checkpoint,
            "barnraise/v1/chain": self._chain,
            "barnraise/v1/link": self._link,
        }
        route = path.removeprefix("/")
        found = _RETRIEVAL.match(route)
        if not found and route not in posts:
            return _say(404, "no such address")
        if method != ("GET" if found else "POST"):
            return _say(405, f"{route} takes {'GET' if found else 'POST'}")
        try:
            with self._lock:
                return self._retrieve(found[1]) if found else posts[route](body)
        except SignatureError as error:
            return _say(403, str(error))
        except StorageError as error:
            return _say(503, str(error))
        except BarnraiseError as error:
            return _say(400, str(error))

    def newest(self, origin: str) -> OpenNote | None:
        """The newest checkpoint of a log that this witness cosigned. Raises StorageError."""
        log_vkey = self.log_vkey(origin)
        text = self._store.newest(origin_hash(origin))
        if text is None or log_vkey is None:
            return None
        try:
            note = open_note(text, (log_vkey,), (self.vkey,))
            if note.cosigners:
                return note
        except StorageError:
            raise
        except BarnraiseError:
            pass
        raise StorageError(
            f"the checkpoint of {origin} in {self._store.folder} is not one that this witness cosigned",
            hint="A witness that forgot what it cosigned must not go on: take a new key and a new folder.",
        )

    def log_vkey(self, origin: str) -> str | None:
        """The verifier key this witness knows for a log; None for a log it does not know."""
        return self._logs.get(origin) or self._store.vkey(origin)

    def _retrieve(self, place: str) -> Answer:
        text = self._store.newest(place)
        if text is None or self.newest(note_origin(text)) is None:
            return _say(404, "never cosigned a checkpoint of that log")
        return 200, TEXT, text.encode()

    def _add_checkpoint(self, body: bytes) -> Answer:
        old, proof, data = _parse_add(body)
        origin = note_origin(data)
        if (log_vkey := self.log_vkey(origin)) is None:
            return _say(404, "unknown log")
        new = open_note(data, (log_vkey,))
        size, root = new.checkpoint.size, new.checkpoint.root
        if old > size:
            return _say(400, f"the old size {old} is above the checkpoint's, {size}")
        last = self.newest(origin)
        self._watch(last, new)
        if old != (last.checkpoint.size if last else 0):
            return 409, SIZE, f"{last.checkpoint.size if last else 0}\n".encode()
        try:
            verify_consistency(old, size, proof, last.checkpoint.root if last else EMPTY_ROOT, root)
        except ProtocolError as error:
            if last and old < size:
                self._keep_fork(last, new, proof, f"The proof does not hold: {error}")
            return _say(422, str(error))
        time = max(self._clock(), last.times[0] if last else 1)
        line = cosign_text(new.text, self._name, self._key, time)
        if self._store.vkey(origin) is None:
            self._store.pin(origin, log_vkey)
        self._store.put_newest(origin, new.note + line)
        if last is None or size > last.checkpoint.size:
            self._on_cosigned(origin, size)
        return 200, TEXT, line.encode()

    def _chain(self, body: bytes) -> Answer:
        asked = _parse_object(body, {"length": int, "log_vkey": str})
        length, log_vkey = asked["length"], asked["log_vkey"]
        origin, _ = parse_vkey(log_vkey)
        if not 1 <= length <= MAX_LENGTH:
            return _say(400, f"a chain has 1 to {MAX_LENGTH} links")
        known = self.log_vkey(origin)
        if known != log_vkey and (known is not None or not self._any):
            return _say(404, "unknown log")
        if self._store.vkey(origin) is None:
            if self._any and len(self._store.vkeys()) >= MAX_LOGS:
                return _say(503, f"this witness knows {MAX_LOGS} logs and takes no more")
            self._store.pin(origin, log_vkey)
        chain = self._store.chain(origin) or self._store.make_chain(origin, length)
        if chain.length != length:
            return _say(409, f"the chain for this log has {chain.length} links")
        end = self._ends.setdefault(origin, chain.end)
        statement = {"end": end, "length": length, "log_vkey": log_vkey, "witness": self.vkey}
        return _json(
            {
                "chain": {"end": end, "length": length},
                "proof": sign_object(CHAIN_DOMAIN, statement, self._key),
                "vkey": self.vkey,
            }
        )

    def _link(self, body: bytes) -> Answer:
        fields = {"checkpoint": str, "number": int, "origin": str, "proof": str}
        asked = _parse_object(body, fields, {"proof": ""})
        origin, number = asked["origin"], asked["number"]
        log_vkey = self.log_vkey(origin)
        chain = self._store.chain(origin)
        if log_vkey is None or chain is None:
            return _say(404, "no chain for this log; ask for it first")
        head = open_note(asked["checkpoint"], (log_vkey,))
        self._check_asker(log_vkey, number, head, asked["proof"])
        if not 1 <= number <= chain.length:
            return _say(400, f"the chain for this log has links 1 to {chain.length}")
        last = self.newest(origin)
        self._watch(last, head)
        if last is None or last.checkpoint != head.checkpoint:
            return _say(409, "not the newest checkpoint that this witness cosigned")
        wanted = Shown(number, head.checkpoint.size, head.checkpoint.root.hex())
        shown = self._store.shown(origin)
        if shown != wanted:
            if shown and (number <= shown.number or wanted.size <= shown.size):
                return _say(409, f"link {shown.number} was shown for size {shown.size}; only later ones now")
            self._store.put_shown(origin, wanted)
        link = chain.link(number)
        statement = {
            "link": link,
            "log_vkey": log_vkey,
            "number": number,
            "root": wanted.root,
            "size": wanted.size,
            "witness": self.vkey,
        }
        return _json({"link": link, "proof": sign_object(LINK_DOMAIN, statement, self._key)})

    def _check_asker(self, log_vkey: str, number: int, head: OpenNote, proof: str) -> None:
        """Raise SignatureError unless the log itself asks: heads are public, and links get used up."""
        origin, public_key = parse_vkey(log_vkey)
        size, root = head.checkpoint.size, head.checkpoint.root.hex()
        wanted = {"number": number, "origin": origin, "root": root, "size": size, "witness": self.vkey}
        try:
            verify_object(LINK_REQUEST_DOMAIN, wanted, proof, public_key)
        except BarnraiseError:
            raise SignatureError(
                "the proof of this request does not hold",
                expected=f"the log's signature of the request, within {LINK_REQUEST_DOMAIN}",
            ) from None

    def _watch(self, last: OpenNote | None, new: OpenNote) -> None:
        """Two roots for one size, both signed by the log, are proof of themselves."""
        if last and last.checkpoint.size == new.checkpoint.size and last.checkpoint != new.checkpoint:
            self._keep_fork(last, new, (), "")

    def _keep_fork(self, last: OpenNote, new: OpenNote, proof: Sequence[bytes], problem: str) -> None:
        old, size = last.checkpoint.size, new.checkpoint.size
        roots = f"{last.checkpoint.root.hex()[:16]}-{new.checkpoint.root.hex()[:16]}"
        text = _fork_text(self.vkey, last, new, proof, problem)
        proven = not problem
        path = self._store.fork_file(new.checkpoint.origin, f"{old}-{size}-{roots}", proven=proven)
        if present(path):
            return
        kept = False
        try:
            kept = self._store.put_fork(path, text)
        finally:  # proof is told even when the disk is full
            if kept or proven:
                self._on_fork(path if kept else None, text)


def _parse_add(body: bytes) -> tuple[int, list[bytes], bytes]:
    """Old size, proof and note of an add-checkpoint request. Raises FormatError."""
    head, separator, note = body.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    found = _OLD.match(first)
    if not found or not separator:
        raise FormatError(
            "not an add-checkpoint request",
            expected="old SIZE, proof lines, an empty line, a checkpoint",
            got=repr(first)[:80],
        )
    if len(lines) > MAX_PROOF_LINES:
        raise FormatError(
            "a consistency proof is too long", expected=f"at most {MAX_PROOF_LINES}", got=len(lines)
        )
    return int(found[1]), [parse_base64(line.decode("latin-1"), HASH_BYTES) for line in lines], note


def _parse_object(
    body: bytes, fields: dict[str, type], absent: Mapping[str, Json] | None = None
) -> dict[str, Json]:
    """The members of a request, with those of `absent` that it lacks. Raises FormatError."""
    value = parse_canonical(body)
    if isinstance(value, dict):
        value = {**(absent or {}), **value}
    if not isinstance(value, dict) or {key: type(item) for key, item in value.items()} != fields:
        raise FormatError(
            "a request has other members",
            expected=", ".join(f"{key} ({kind.__name__})" for key, kind in fields.items()),
        )
    found: dict[str, Json] = value
    return found


def _fork_text(own: str, last: OpenNote, new: OpenNote, proof: Sequence[bytes], problem: str) -> str:
    """Both notes whole, so that whoever has the log's key can check them, and what they show."""
    lines = "".join(base64.b64encode(hashed).decode() + "\n" for hashed in proof) or "(none)\n"
    shows = f"{problem}\n{_UNPROVEN}" if problem else _PROVEN
    return (
        "Two checkpoints of one log that do not agree.\n\n"
        f"log      {new.log_vkey}\nwitness  {own}\n\n{shows}\n"
        f"\n--- The first, which the witness cosigned:\n\n{last.note}"
        f"\n--- The second, which it refused:\n\n{new.note}"
        f"\n--- Proof lines that came with the second, from size {last.checkpoint.size}:\n\n{lines}"
    )


def _say(status: int, text: str) -> Answer:
    return status, TEXT, f"{text}\n".encode()


def _json(value: Json) -> Answer:
    return 200, JSON, canonical_json(value)
