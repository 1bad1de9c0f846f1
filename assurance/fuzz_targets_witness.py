"""Parsers of what witnesses and holders of receipts take, and sound inputs of each, for fuzz_targets.py.

Owns cosigned notes, witness keys and policies, receipts, requests to a witness. Does not own the table.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from assurance.fuzz_targets import (
    KEY,
    ORIGIN,
    VKEY,
    Parser,
    canon,
    records,
    sealed,
    signed_note,
    statement,
    target,
    text,
)
from verification import fsck_cosign, fsck_policy, fsck_receipt, notes, policy, tlog_proof
from verification.encoding import Json, parse_canonical
from verification.errors import FormatError
from verification.keys import PrivateKey
from verification.merkle import Tree, leaf_hash
from verification.statements import sign_object

WITNESS = PrivateKey.from_seed(b"\x02" * 32)
WITNESS_NAME = "example.org/witness"
WITNESS_VKEY = notes.witness_vkey(WITNESS_NAME, WITNESS.public)
TIME = 1_700_000_000


def cosigned(body: bytes) -> bytes:
    """A note with any text that the log and a witness signed."""
    public = bytes.fromhex(WITNESS.public.removeprefix("ed25519:"))
    key_id = hashlib.sha256(WITNESS_NAME.encode() + b"\n\x04" + public).digest()[:4]
    signature = WITNESS.sign(f"cosignature/v1\ntime {TIME}\n".encode() + body)
    blob = base64.b64encode(key_id + TIME.to_bytes(8, "big") + signature)
    return signed_note(body) + "— ".encode() + WITNESS_NAME.encode() + b" " + blob + b"\n"


def bodies() -> list[bytes]:
    """Texts of checkpoints."""
    sizes = (0, 1, 300, 2**53 - 1)
    return [notes.Checkpoint(ORIGIN, size, bytes([size % 256]) * 32).text().encode() for size in sizes]


@target("cosigned note", wrap=cosigned)
def _cosigned(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder

    def opened(data: bytes) -> None:
        notes.note_origin(data)
        notes.open_note(data, (VKEY,), (WITNESS_VKEY,))

    own = text(lambda note: notes.parse_cosigned(note, VKEY, (WITNESS_VKEY,)))
    return (own, text(fsck_cosign.parse_cosigned), opened), bodies()


@target("witness key")
def _witness_key(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    return (text(notes.parse_witness_vkey), text(fsck_cosign.parse_witness_key)), [WITNESS_VKEY.encode()]


@target("witness policy")
def _policy(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    keys = [PrivateKey.from_seed(bytes([number]) * 32) for number in (3, 4, 5)]
    vkeys = [notes.witness_vkey(f"w{number}.example", key.public) for number, key in enumerate(keys)]
    lines = [f"log {VKEY} https://log.example/"]
    lines += [f"witness w{number} {name} https://w.example" for number, name in enumerate(vkeys)]
    whole = "\n".join([*lines, "group some 2 w0 w1", "group all all some w2", "quorum all", ""])
    plain = f"# a comment\nlog {VKEY}\n\nwitness w {vkeys[0]}\nquorum w\n"
    return (policy.parse_policy, fsck_policy.parse_policy), (whole.encode(), plain.encode())


def _receipt_of(close: bytes) -> bytes:
    """A receipt for a round-close in whose log it is the fourth of five entries."""
    value = parse_canonical(close)
    rows = value.get("accepted") if isinstance(value, dict) else None
    row = rows[0] if isinstance(rows, list) and rows else None
    member = row.get("member") if isinstance(row, dict) else None
    run = value.get("run") if isinstance(value, dict) else None
    if not isinstance(member, str) or not isinstance(run, str):
        raise FormatError("not what a receipt can be made of")
    entry = sealed(statement("round-close", value, ("run", run)))
    tree = Tree(leaf_hash(data) for data in (b"a", b"b", b"c", entry, b"e"))
    note = cosigned(notes.Checkpoint(ORIGIN, 5, tree.root()).text().encode()).decode()
    return tlog_proof.write_receipt(entry, member, 3, tree.inclusion_proof(3), note).encode()


def _closes() -> list[Json]:
    return [record for kind, record in records() if kind == "round-close" and record["accepted"]]


def _receipt_parsers() -> tuple[Parser, ...]:
    rules = policy.parse_policy(f"log {VKEY}\nwitness w {WITNESS_VKEY}\nquorum w\n".encode())

    def own(data: bytes) -> None:
        tlog_proof.receipt_origin(data)
        tlog_proof.check_receipt(data, VKEY, (WITNESS_VKEY,), 1)

    def by_policy(data: bytes) -> None:
        tlog_proof.check_receipt_by_policy(data, rules)

    def independent(data: bytes) -> None:
        receipt = fsck_receipt.parse_receipt(data)
        fsck_receipt.round_close_of(receipt, KEY.public)

    return own, by_policy, independent


@target("receipt: close", json=True, wrap=_receipt_of, share=0.2, small=0.2)
def _receipt(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A receipt of the very form, whose round-close says anything, rightly signed."""
    del folder
    return _receipt_parsers(), [canon(record) for record in _closes()]


@target("receipt: file", share=0.8, small=0.3)
def _receipt_file(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The same receipts with any bytes of theirs changed, signatures and proofs too."""
    del folder
    return _receipt_parsers(), [_receipt_of(canon(record)) for record in _closes()]


def _request(folder: Path, path: str) -> Parser:
    """A witness that answers one kind of request, each time from the same memory."""
    from verification.witness import Witness
    from verification.witness_store import WitnessStore

    store = WitnessStore(folder)
    witness = Witness(WITNESS, WITNESS_NAME, store, lambda: TIME, None)
    witness.handle("POST", "barnraise/v1/chain", canon({"length": 8, "log_vkey": VKEY}))

    def handle(data: bytes) -> None:
        status, _, body = witness.handle("POST", path, data)
        if not 200 <= status < 600 or len(body) > 1 << 16:
            raise AssertionError(f"status {status}, {len(body)} bytes")
        if status != 200:
            raise FormatError(f"status {status}")

    return handle


def _add_request(body: bytes) -> bytes:
    """A request to cosign any checkpoint, signed by the log, after the one of size 9."""
    return b"old 9\n\n" + signed_note(body)


@target("witness request: checkpoint", wrap=_add_request, share=0.5)
def _add(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    tree = Tree(leaf_hash(bytes([number])) for number in range(9))
    body = notes.Checkpoint(ORIGIN, 9, tree.root()).text().encode()
    handle = _request(folder, "add-checkpoint")
    handle(b"old 0\n\n" + signed_note(body))
    return [handle], [body]


@target("witness request: chain", json=True, share=0.25)
def _chain(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    return [_request(folder, "barnraise/v1/chain")], [canon({"length": 8, "log_vkey": VKEY})]


@target("witness request: link", json=True, share=0.25)
def _link(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    tree = Tree([leaf_hash(b"x")])
    note = signed_note(notes.Checkpoint(ORIGIN, 1, tree.root()).text().encode())
    handle = _request(folder, "barnraise/v1/link")
    _request(folder, "add-checkpoint")(b"old 0\n\n" + note)
    asked: dict[str, Json] = {"number": 1, "origin": ORIGIN, "root": tree.root().hex(), "size": 1}
    proof = sign_object("barnraise/witness-link-request/v1", asked | {"witness": WITNESS_VKEY}, KEY)
    seed = {"checkpoint": note.decode(), "number": 1, "origin": ORIGIN, "proof": proof}
    return [handle], [canon(seed)]
