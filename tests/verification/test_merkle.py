"""Merkle trees against others' vectors and against RFC 6962 written down naively."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.errors import BarnraiseError, FormatError, ProtocolError
from verification.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[1] / "vectors"
INCLUSION = json.loads((VECTORS / "merkle_inclusion.json").read_text())
CONSISTENCY = json.loads((VECTORS / "merkle_consistency.json").read_text())
DUMMY_ROOTS = "additional/sizes-are-equal-one-and-proof-is-empty"


def decode(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def hashes(case: dict[str, Any]) -> list[bytes]:
    return [decode(item) for item in case["proof"] or []]


# RFC 6962, section 2.1, as it is written there.


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(entries: list[bytes]) -> bytes:
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = split(len(entries))
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def entries_of(size: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(size)]


def test_all_vectors_are_there() -> None:
    for cases in (INCLUSION, CONSISTENCY):
        assert len(cases) == 98
        assert sum(not case["wantErr"] for case in cases) == 6


@pytest.mark.parametrize("case", INCLUSION, ids=[case["case"] for case in INCLUSION])
def test_inclusion_vectors(case: dict[str, Any]) -> None:
    arguments = (
        case["leafIdx"],
        case["treeSize"],
        decode(case["leafHash"]),
        hashes(case),
        decode(case["root"]),
    )
    if case["wantErr"]:
        with pytest.raises((FormatError, ProtocolError)):
            verify_inclusion(*arguments)
    else:
        verify_inclusion(*arguments)


@pytest.mark.parametrize("case", CONSISTENCY, ids=[case["case"] for case in CONSISTENCY])
def test_consistency_vectors(case: dict[str, Any]) -> None:
    arguments = (case["size1"], case["size2"], hashes(case), decode(case["root1"]), decode(case["root2"]))
    if case["case"] == DUMMY_ROOTS:
        with pytest.raises(FormatError, match="length"):
            verify_consistency(*arguments)
    elif case["wantErr"]:
        with pytest.raises((FormatError, ProtocolError)):
            verify_consistency(*arguments)
    else:
        verify_consistency(*arguments)


def test_hashes() -> None:
    assert leaf_hash(b"") == hashlib.sha256(b"\0").digest()
    assert node_hash(b"a", b"b") == hashlib.sha256(b"\x01ab").digest()
    assert root([]) == EMPTY_ROOT == hashlib.sha256().digest()


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 100])
def test_roots_and_proofs_equal_those_of_the_definition(size: int) -> None:
    entries = entries_of(size)
    leaves = [leaf_hash(entry) for entry in entries]
    assert root(leaves) == mth(entries)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert proof == path(index, entries)
        verify_inclusion(index, size, leaves[index], proof, root(leaves))
    for old in range(1, size + 1):
        proof = consistency_proof(leaves, old)
        assert proof == subproof(old, entries, True)
        verify_consistency(old, size, proof, mth(entries[:old]), mth(entries))
    assert consistency_proof(leaves, 0) == []
    verify_consistency(0, size, [], EMPTY_ROOT, mth(entries))


def test_a_tree_answers_for_every_earlier_size() -> None:
    entries = entries_of(40)
    leaves = [leaf_hash(entry) for entry in entries]
    tree = Tree(leaves)
    for size in range(41):
        assert tree.root(size) == mth(entries[:size])
        for index in range(0, size, 3):
            assert tree.inclusion_proof(index, size) == path(index, entries[:size])
        for old in range(1, size + 1, 3):
            assert tree.consistency_proof(old, size) == subproof(old, entries[:size], True)


@given(st.integers(0, 70), st.integers(0, 70), st.integers(0, 30))
def test_truncating_undoes_appending(size: int, cut: int, more: int) -> None:
    leaves = [leaf_hash(entry) for entry in entries_of(size + more)]
    tree = Tree(leaves[:size])
    tree.truncate(min(cut, size))
    for leaf in leaves[min(cut, size) :]:
        tree.append(leaf)
    assert tree.size == size + more
    assert tree.root() == root(leaves)
    for height in range(7):
        assert tree.nodes(height, 0, 1000) == Tree(leaves).nodes(height, 0, 1000)


@given(st.integers(1, 40), st.data())
def test_no_changed_inclusion_proof_holds(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries_of(size)]
    index = data.draw(st.integers(0, size - 1))
    proof, top = inclusion_proof(leaves, index), root(leaves)
    for other in range(size):
        if other != index:
            with pytest.raises(BarnraiseError):
                verify_inclusion(other, size, leaves[index], proof, top)
    changed = [leaves[index], top, *proof]
    which = data.draw(st.integers(0, len(changed) - 1))
    bit = data.draw(st.integers(0, 255))
    changed[which] = (int.from_bytes(changed[which], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(ProtocolError):
        verify_inclusion(index, size, changed[0], changed[2:], changed[1])
    for wrong in (proof[:-1], [*proof, bytes(32)], [bytes(32), *proof], proof[1:]):
        if wrong != proof:
            with pytest.raises(ProtocolError):
                verify_inclusion(index, size, leaves[index], wrong, top)


@given(st.integers(1, 40), st.data())
def test_no_changed_consistency_proof_holds(new: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries_of(new)]
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(leaves, old)
    changed = [root(leaves[:old]), root(leaves), *proof]
    which = data.draw(st.integers(0, len(changed) - 1))
    bit = data.draw(st.integers(0, 255))
    changed[which] = (int.from_bytes(changed[which], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(ProtocolError):
        verify_consistency(old, new, changed[2:], changed[0], changed[1])
    for wrong in (proof[:-1], [*proof, bytes(32)], [bytes(32), *proof], proof[1:]):
        if wrong != proof:
            with pytest.raises(ProtocolError):
                verify_consistency(old, new, wrong, root(leaves[:old]), root(leaves))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 3), (3, 7), (4, 8), (5, 8)])
def test_a_hash_beyond_the_top_is_refused_also_under_a_root_made_for_it(old: int, new: int) -> None:
    """Whoever names the root can put a level on top of it: only the length of the proof shows that."""
    leaves = [leaf_hash(bytes([number])) for number in range(new)]
    more = bytes(range(32))
    top = node_hash(more, root(leaves))
    for index in range(new):
        proof = inclusion_proof(leaves, index)
        with pytest.raises(ProtocolError, match="inclusion proof is too long"):
            verify_inclusion(index, new, leaves[index], [*proof, more], top)
    longer = [*consistency_proof(leaves, old), more]
    with pytest.raises(ProtocolError, match="consistency proof is too long"):
        verify_consistency(old, new, longer, node_hash(more, root(leaves[:old])), top)


def test_the_empty_tree_has_one_root() -> None:
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    for old, new in ((bytes(32), EMPTY_ROOT), (EMPTY_ROOT, bytes(32)), (bytes(32), bytes(32))):
        with pytest.raises(ProtocolError):
            verify_consistency(0, 0, [], old, new)
    with pytest.raises(ProtocolError):
        verify_consistency(0, 3, [], bytes(32), root([bytes(32)] * 3))
    with pytest.raises(ProtocolError):
        verify_consistency(0, 3, [bytes(32)], EMPTY_ROOT, root([bytes(32)] * 3))


def test_impossible_requests_are_refused() -> None:
    tree = Tree([bytes(32)] * 3)
    for index in (-1, 3):
        with pytest.raises(FormatError):
            tree.inclusion_proof(index)
        with pytest.raises(FormatError):
            verify_inclusion(index, 3, bytes(32), [], bytes(32))
    for size in (-1, 4):
        with pytest.raises(FormatError):
            tree.root(size)
        with pytest.raises(FormatError):
            tree.inclusion_proof(0, size)
        with pytest.raises(FormatError):
            tree.consistency_proof(size)
    with pytest.raises(FormatError):
        verify_consistency(3, 2, [], bytes(32), bytes(32))
    with pytest.raises(FormatError):
        tree.append(bytes(31))
    with pytest.raises(FormatError):
        verify_inclusion(0, 2, bytes(32), [bytes(31)], bytes(32))
