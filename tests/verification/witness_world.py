"""Logs that grow and logs that fork, and requests to a witness, for the tests of witnesses."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from verification.encoding import Json, canonical_json
from verification.keys import PrivateKey
from verification.merkle import Tree, leaf_hash
from verification.notes import Checkpoint, sign_checkpoint, vkey, witness_vkey
from verification.statements import sign_object
from verification.witness import Answer, Witness
from verification.witness_store import WitnessStore, origin_hash

LOG_KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER_KEY = PrivateKey.from_seed(bytes(32))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, LOG_KEY.public)
WITNESS_KEY = PrivateKey.from_seed(bytes([1]) * 32)
NAME = "witness.example/w1"
WITNESS_VKEY = witness_vkey(NAME, WITNESS_KEY.public)
PLACE = origin_hash(ORIGIN)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000

    def __call__(self) -> int:
        return self.now


def grown(size: int, branch: int = 0, fork: int = 0) -> Tree:
    """A log of `size` entries; entries from number `fork` on are those of `branch`."""
    return Tree(leaf_hash(b"%d of branch %d" % (i, branch if i >= fork else 0)) for i in range(size))


TEN = grown(10)
FORK = grown(10, branch=1, fork=4)


def status(answer: Answer) -> int:
    return answer[0]


def head(tree: Tree, size: int | None = None) -> Checkpoint:
    size = tree.size if size is None else size
    return Checkpoint(ORIGIN, size, tree.root(size))


def note(tree: Tree, size: int | None = None, key: PrivateKey = LOG_KEY) -> str:
    return sign_checkpoint(head(tree, size), key)


def add_body(old: int, proof: Sequence[bytes], text: str) -> bytes:
    lines = "".join(base64.b64encode(hashed).decode() + "\n" for hashed in proof)
    return f"old {old}\n{lines}\n{text}".encode()


def add(witness: Witness, tree: Tree, old: int, size: int | None = None) -> Answer:
    """Ask for a cosignature on the head of `tree`, with the honest proof from `old`."""
    size = tree.size if size is None else size
    proof = tree.consistency_proof(old, size) if old <= size else []
    return witness.handle("POST", "/add-checkpoint", add_body(old, proof, note(tree, size)))


def post(witness: Witness, what: str, value: Json) -> Answer:
    return witness.handle("POST", f"/barnraise/v1/{what}", canonical_json(value))


def ask_chain(witness: Witness, length: int = 8, log_vkey: str = VKEY) -> Answer:
    return post(witness, "chain", {"length": length, "log_vkey": log_vkey})


def sign_request(value: Json, key: PrivateKey = LOG_KEY) -> str:
    """The log's proof that it asks for a link itself."""
    return sign_object("barnraise/witness-link-request/v1", value, key)


def link_request(text: str, number: int, origin: str = ORIGIN) -> dict[str, Json]:
    """What the log asks for the head of a note; the proof is for what the note says, signed or not."""
    _, size, root = text.split("\n")[:3] if text.count("\n") > 2 else ("", "0", "")
    asked = {"number": number, "origin": origin, "root": base64.b64decode(root).hex(), "size": int(size)}
    proof = sign_request(asked | {"witness": WITNESS_VKEY})
    return {"checkpoint": text, "number": number, "origin": origin, "proof": proof}


def ask_link(witness: Witness, text: str, number: int, origin: str = ORIGIN) -> Answer:
    return post(witness, "link", link_request(text, number, origin))


def make(
    folder: Path, clock: Clock | None = None, logs: Sequence[str] | None = (VKEY,), **more: object
) -> Witness:
    return Witness(WITNESS_KEY, NAME, WitnessStore(folder), clock or Clock(), logs, **more)  # type: ignore[arg-type]
