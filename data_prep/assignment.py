"""Which window a position is: the keyed permutation of docs/protocol.md, section 5.

Pure and without state. Owns (seed, data set, position) -> window. Does not own who gets which positions,
nor what a window holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from verification.encoding import digest_hex, hash_object
from verification.errors import ProtocolError

ROUNDS = 6


def window_at(*, seed: int, dataset_root: str, position: int, windows: int) -> int:
    """The training window, 0 … windows - 1, that `position` stands for.

    Every epoch (a run of `windows` positions) visits each window once, in an order of its own. Computed
    for one position without a table. Raises ProtocolError for a negative position or no windows,
    FormatError for numbers beyond 2^53 - 1.
    """
    if windows < 1:
        raise ProtocolError("there are no training windows to assign", expected="at least 1", got=windows)
    if position < 0:
        raise ProtocolError("a position is negative", expected="0 or more", got=position)
    epoch, index = divmod(position, windows)
    prefixes = _round_prefixes(seed, dataset_root, epoch)
    half = _half_bits(windows)
    while True:
        index = _permute(index, prefixes, half)
        if index < windows:
            return index


def windows_at(*, seed: int, dataset_root: str, positions: Iterable[int], windows: int) -> list[int]:
    """`window_at` for many positions, in their order."""
    return [window_at(seed=seed, dataset_root=dataset_root, position=p, windows=windows) for p in positions]


@lru_cache(maxsize=1024)
def _round_prefixes(seed: int, dataset_root: str, epoch: int) -> tuple[bytes, ...]:
    """The bytes `K ‖ u8(j)` of each round of one epoch; cached, as an epoch's key serves many positions."""
    value = {"dataset": dataset_root, "epoch": epoch, "seed": seed}
    key = bytes.fromhex(digest_hex(hash_object("barnraise/assignment/v1", value)))
    return tuple(key + bytes([j]) for j in range(ROUNDS))


def _half_bits(windows: int) -> int:
    """The least b >= 1 with 2^(2b) >= windows."""
    return max(1, ((windows - 1).bit_length() + 1) // 2)


def _permute(index: int, prefixes: tuple[bytes, ...], half: int) -> int:
    """One pass of the balanced Feistel network over 2^(2·half) values."""
    mask = (1 << half) - 1
    left, right = index >> half, index & mask
    for prefix in prefixes:
        block = hashlib.sha256(prefix + right.to_bytes(8, "big")).digest()
        left, right = right, left ^ (int.from_bytes(block[:8], "big") & mask)
    return left << half | right
