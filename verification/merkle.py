"""RFC 6962 Merkle trees with SHA-256: roots, proofs, and their verification.

Owns sections 2.1, 2.1.1 and 2.1.2 of RFC 6962. Does not own storage or what a leaf means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from verification.errors import FormatError, ProtocolError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
Inclusion = tuple[int, list[bytes]]  # the index of an entry, and its proof


def leaf_hash(entry: bytes) -> bytes:
    """Hash of a leaf: SHA-256 of a zero byte and the entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256 of a one byte and both children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree that keeps the hash of every complete subtree: 64 bytes a leaf.

    `append` costs O(1) amortised, a root or a proof for any earlier size O(log^2 size).
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        # _levels[h] holds, one after another, the hashes of the complete subtrees of 2^h leaves.
        self._levels: list[bytearray] = [bytearray()]
        for hashed in leaf_hashes:
            self.append(hashed)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, hashed: bytes) -> None:
        """Add a leaf by its hash. Raises FormatError when it is not 32 bytes."""
        _check_hash(hashed, "a leaf hash")
        height, index = 0, self.size
        self._levels[0] += hashed
        while index % 2:
            hashed = node_hash(self.node(height, index - 1), hashed)
            height, index = height + 1, index // 2
            if height == len(self._levels):
                self._levels.append(bytearray())
            self._levels[height] += hashed

    def truncate(self, size: int) -> None:
        """Forget all leaves from number `size` on."""
        for height, level in enumerate(self._levels):
            del level[(size >> height) * HASH_BYTES :]

    def node(self, height: int, index: int) -> bytes:
        """Hash of the complete subtree over leaves `index * 2^height` up to the next 2^height."""
        return bytes(self._levels[height][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def nodes(self, height: int, start: int, stop: int) -> bytes:
        """Hashes of the complete subtrees `start` to `stop - 1` of that height, one after another."""
        level = self._levels[height] if height < len(self._levels) else b""
        return bytes(level[start * HASH_BYTES : stop * HASH_BYTES])

    def root(self, size: int | None = None) -> bytes:
        """Root over the first `size` leaves, by default all. Raises FormatError when there are fewer."""
        size = self._check_size(self.size if size is None else size)
        return self._range_hash(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Audit path of leaf `index` in the tree of `size` leaves, from the leaf up."""
        size = self._check_size(self.size if size is None else size)
        if not 0 <= index < size:
            raise FormatError("no such leaf", expected=f"0 <= index < {size}", got=index)
        proof: list[bytes] = []
        start, stop = 0, size
        while stop - start > 1:
            middle = start + _split(stop - start)
            if index < middle:
                proof.append(self._range_hash(middle, stop))
                stop = middle
            else:
                proof.append(self._range_hash(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """Proof that the tree of `old` leaves is a prefix of that of `new`; empty when either says so."""
        new = self._check_size(self.size if new is None else new)
        if not 0 <= old <= new:
            raise FormatError("no such earlier tree", expected=f"0 <= size <= {new}", got=old)
        if old in (0, new):
            return []
        proof: list[bytes] = []
        start, stop, whole = 0, new, True
        while old != stop:
            middle = start + _split(stop - start)
            if old <= middle:
                proof.append(self._range_hash(middle, stop))
                stop = middle
            else:
                proof.append(self._range_hash(start, middle))
                start, whole = middle, False
        if not whole:
            proof.append(self._range_hash(start, stop))
        return proof[::-1]

    def _range_hash(self, start: int, stop: int) -> bytes:
        """Hash over leaves start to stop - 1, a range that occurs in some tree (start on a boundary)."""
        count = stop - start
        if count & (count - 1) == 0:
            height = count.bit_length() - 1
            return self.node(height, start >> height)
        middle = start + _split(count)
        return node_hash(self._range_hash(start, middle), self._range_hash(middle, stop))

    def _check_size(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise FormatError("the tree has no such size", expected=f"0 to {self.size}", got=size)
        return size


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf hashes. Raises FormatError when one is not 32 bytes."""
    return Tree(leaf_hashes).root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path of a leaf, from the leaf up. Raises FormatError when there is no such leaf."""
    return Tree(leaf_hashes).inclusion_proof(index)


def consistency_proof(leaf_hashes: Sequence[bytes], old: int) -> list[bytes]:
    """Proof that the first `old` leaves are a prefix of all. Raises FormatError for an impossible size."""
    return Tree(leaf_hashes).consistency_proof(old)


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root_hash: bytes) -> None:
    """Check an audit path (RFC 9162, section 2.1.3.2).

    Raises FormatError for impossible numbers or hashes, ProtocolError when the proof does not hold.
    """
    if not 0 <= index < size:
        raise FormatError("no such leaf", expected=f"0 <= index < {size}", got=index)
    _check_hashes([leaf, root_hash, *proof])
    hashed, node, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            raise ProtocolError("an inclusion proof is too long", got=f"{len(proof)} hashes")
        if node % 2 or node == last:
            hashed = node_hash(sibling, hashed)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            hashed = node_hash(hashed, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProtocolError("an inclusion proof is too short", got=f"{len(proof)} hashes")
    _check_root(hashed, root_hash, "an inclusion proof leads to another root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that a tree of `old` leaves is a prefix of one of `new` (RFC 9162, section 2.1.4.2).

    The empty tree is a prefix of every tree; its proof is empty. Raises FormatError for impossible
    numbers or hashes, ProtocolError when the proof does not hold.
    """
    if not 0 <= old <= new:
        raise FormatError("impossible tree sizes", expected="0 <= old <= new", got=f"{old} and {new}")
    _check_hashes([old_root, new_root, *proof])
    if old in (0, new):
        if proof:
            raise ProtocolError("a consistency proof is too long", expected="no hashes", got=len(proof))
        _check_root(EMPTY_ROOT if old == 0 else new_root, old_root, "two trees of one size have two roots")
        if new == 0:
            _check_root(EMPTY_ROOT, new_root, "an empty tree has another root")
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise ProtocolError("a consistency proof is too short", got="no hashes")
    node, last = old - 1, new - 1
    while node % 2:
        node, last = node >> 1, last >> 1
    old_hash = new_hash = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProtocolError("a consistency proof is too long", got=f"{len(proof)} hashes")
        if node % 2 or node == last:
            old_hash, new_hash = node_hash(sibling, old_hash), node_hash(sibling, new_hash)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            new_hash = node_hash(new_hash, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProtocolError("a consistency proof is too short", got=f"{len(proof)} hashes")
    _check_root(old_hash, old_root, "a consistency proof leads to another old root")
    _check_root(new_hash, new_root, "a consistency proof leads to another new root")


def _split(count: int) -> int:
    """The largest power of two below `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_root(got: bytes, expected: bytes, what: str) -> None:
    if got != expected:
        raise ProtocolError(what, expected=expected.hex(), got=got.hex())


def _check_hashes(hashes: Iterable[bytes]) -> None:
    for hashed in hashes:
        _check_hash(hashed, "a hash of a proof")


def _check_hash(hashed: bytes, what: str) -> None:
    if len(hashed) != HASH_BYTES:
        raise FormatError(f"{what} has the wrong length", expected=HASH_BYTES, got=len(hashed))
