"""Receipts' bytes at level 1: one receipt by hand, and each part of it wrong."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import (
    ORIGIN,
    b3,
    canon,
    cosignature,
    envelope,
    key_text,
    note_of,
    public,
    sha,
    tree_root,
    witness_vkey,
)
from verification.errors import FormatError
from verification.fsck_formats import VerifierKey
from verification.fsck_policy import parse_policy
from verification.fsck_receipt import inclusion_root, parse_receipt, round_close_of, signers_of

HASH = base64.b64encode(bytes(32)).decode()
ENTRIES = [b"one", b"two"]
SIGNATURE = note_of(ENTRIES).splitlines()[4]
EXTRA = {"entry": base64.b64encode(b"entry").decode(), "member": "ann"}
KEY = VerifierKey(ORIGIN, public("coordinator"))


def encoded(value: Any) -> str:
    return base64.b64encode(canon(value)).decode()


def receipt(**parts: Any) -> bytes:
    """A receipt made of its lines, some of them others."""
    lines: dict[str, Any] = {
        "first": "c2sp.org/tlog-proof@v1",
        "extra": f"extra {encoded(EXTRA)}",
        "index": "index 1",
        "hashes": [HASH, HASH],
        "end": "",
        "origin": ORIGIN,
        "size": "2",
        "root": base64.b64encode(tree_root(ENTRIES)).decode(),
        "empty": "",
        "signatures": [SIGNATURE],
        "last": "",
    }
    assert parts.keys() <= lines.keys()
    found: list[str] = []
    for part in (lines | parts).values():
        found += part if isinstance(part, list) else [part]
    return "\n".join(found).encode("utf-8", "surrogateescape")


def test_a_receipt() -> None:
    found = parse_receipt(receipt())
    assert (found.index, found.hashes, found.entry, found.member) == (1, (bytes(32),) * 2, b"entry", "ann")
    assert (found.size, found.root, found.origin) == (2, tree_root(ENTRIES), ORIGIN)
    assert found.signatures == ((ORIGIN, base64.b64decode(SIGNATURE.split()[2])),)
    assert found.head == f"2:{tree_root(ENTRIES).hex()}"
    assert parse_receipt(receipt(hashes=[])).hashes == ()


NO_CHECKPOINT = "a receipt holds no checkpoint"


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"first": "c2sp.org/tlog-proof@v2"}, "not a receipt"),
        ({"last": []}, "not a receipt"),
        ({"last": ["more"]}, "not a receipt"),
        ({"extra": encoded(EXTRA)}, "not a receipt"),
        ({"index": "1"}, "not a receipt"),
        ({"extra": "index 1", "index": f"extra {encoded(EXTRA)}"}, "not a receipt"),
        ({"member": 1}, "extra.member does not fit"),
        ({"entry": 1}, "extra.entry does not fit"),
        ({"more": 1}, "extra does not fit"),
        ({"entry": "A"}, "not base64"),
        ({"extra": "extra A"}, "not base64"),
        ({"index": "index 01"}, "not a decimal number up to 2^53 - 1"),
        ({"hashes": [HASH, "AAAA"]}, "a receipt's proof is malformed"),
        ({"hashes": ["A"]}, "not base64"),
        ({"origin": ""}, NO_CHECKPOINT),
        ({"empty": "extension"}, NO_CHECKPOINT),
        ({"empty": ["extension", ""]}, NO_CHECKPOINT),
        ({"signatures": []}, NO_CHECKPOINT),
        ({"signatures": [], "empty": []}, NO_CHECKPOINT),
        ({"size": "02"}, "not a decimal number up to 2^53 - 1"),
        ({"root": base64.b64encode(bytes(31)).decode()}, "a checkpoint's root has the wrong length"),
        ({"root": base64.b64encode(bytes(33)).decode()}, "a checkpoint's root has the wrong length"),
        ({"signatures": [SIGNATURE, SIGNATURE.replace("—", "-")]}, "not a signature line"),
        ({"signatures": [f"—  {SIGNATURE.split()[2]}"]}, "not a signature line"),
        ({"signatures": ["— w AAAAAA=="]}, "a signature line is too short"),
        ({"signatures": ["— w"]}, "a signature line is too short"),
        ({"signatures": ["— w A"]}, "not base64"),
        ({"origin": "\udcff"}, "a receipt is not UTF-8"),
    ],
)
def test_a_receipt_with_one_part_wrong(parts: dict[str, Any], what: str) -> None:
    if parts.keys() & {"member", "entry", "more"}:
        parts = {"extra": f"extra {encoded(EXTRA | parts)}"}
    with pytest.raises(FormatError) as caught:
        parse_receipt(receipt(**parts))
    assert caught.value.what == what


@pytest.mark.parametrize("length", range(1, 10))
def test_a_receipt_that_is_cut_off(length: int) -> None:
    lines = receipt(hashes=[]).split(b"\n")
    assert len(lines) == 10
    for end in ([], [b""]):
        with pytest.raises(FormatError):
            parse_receipt(b"\n".join([*lines[: length - len(end)], *end]))


def test_the_shortest_of_all() -> None:
    for data in (b"", b"\n", b"c2sp.org/tlog-proof@v1", b"c2sp.org/tlog-proof@v1\n"):
        with pytest.raises(FormatError, match="not a receipt"):
            parse_receipt(data)


# --- what it shows ---


@pytest.mark.parametrize(
    ("index", "size", "count"), [(0, 1, 0), (0, 2, 1), (1, 2, 1), (2, 3, 1), (0, 3, 2), (4, 7, 3)]
)
def test_a_proof_has_one_number_of_hashes(index: int, size: int, count: int) -> None:
    for given in range(5):
        found = inclusion_root(bytes(32), index, size, (bytes(32),) * given)
        assert (found is not None) == (given == count)
    assert inclusion_root(bytes(32), size, size, ()) is None


WITNESS = f"witness w {witness_vkey('w.example')}\nquorum w\n"


def test_signers() -> None:
    note = note_of(ENTRIES)
    line = cosignature(note, "w.example").strip()
    stranger = cosignature(note, "eve").strip()
    other = note_of(ENTRIES, signer="ann").splitlines()[4]
    forged = SIGNATURE[:-8] + "AAAAAA=="
    policy = parse_policy(WITNESS.encode())

    def signers(*lines: str, asked: bool = True) -> list[str]:
        found = parse_receipt(receipt(signatures=list(lines)))
        return [name for name, _ in signers_of(found, KEY, policy if asked else None)]

    assert signers(SIGNATURE, line) == ["w.example"]
    assert signers(line, stranger, SIGNATURE, other) == ["w.example"]
    assert signers(SIGNATURE, line, asked=False) == []
    assert signers(SIGNATURE, stranger) == []
    for lines, what in (
        ((line,), "the receipt's checkpoint is not signed with the log's key"),
        ((other,), "the receipt's checkpoint is not signed with the log's key"),
        ((SIGNATURE, forged), "the log's signature on the receipt's checkpoint does not hold"),
        (
            (SIGNATURE, cosignature(note_of(ENTRIES[:1]), "w.example").strip()),
            "a cosignature on the receipt's checkpoint does not hold",
        ),
    ):
        with pytest.raises(FormatError) as caught:
            signers(*lines)
        assert caught.value.what == what


CLOSE: dict[str, Any] = {
    "protocol": 1,
    "run": sha(b"run"),
    "round": 1,
    "attempt": 0,
    "void": False,
    "accepted": [{"member": "ann", "payload": b3(b""), "slot": 0, "tokens": 1, "weight": 1}],
    "rejected": [{"evidence": None, "fault": False, "member": "bob", "reason": "late", "slot": 1}],
    "missed": [],
    "overruled": [],
    "weights": b3(b""),
    "outer": b3(b""),
    "requeued": [],
    "cursor": 0,
    "credits": [],
    "quarantined": [],
    "train_loss": 1,
    "val_loss": None,
}


def test_the_close_that_a_receipt_is_of() -> None:
    def close(
        member: str = "ann", signer: str = "coordinator", kind: str = "round-close", **over: Any
    ) -> Any:
        entry = envelope(kind, {**CLOSE, **over}, signer, ("run", "00" * 32))
        extra = {"entry": base64.b64encode(entry).decode(), "member": member}
        found = parse_receipt(receipt(extra=f"extra {encoded(extra)}"))
        return round_close_of(found, key_text("coordinator"))

    assert close() == close("bob") == CLOSE
    for changes, what in (
        ({"member": "cid"}, "the receipt's round-close does not settle its member"),
        ({"signer": "ann"}, "the receipt's entry is not signed by the coordinator"),
        ({"kind": "draw"}, "the receipt is not of a round-close"),
        ({"void": 1}, "round-close.void does not fit"),
    ):
        with pytest.raises(FormatError) as caught:
            close(**changes)
        assert caught.value.what == what
