"""data_prep/assignment.py against docs/protocol.md, section 5, written again here from the page."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.assignment import window_at, windows_at
from verification.errors import FormatError, ProtocolError

ROOT = "sha256:" + "11" * 32


def reference(seed: int, root: str, position: int, windows: int) -> int:
    """The page, line by line, sharing no code with the module."""
    epoch, x = position // windows, position % windows
    body = json.dumps({"dataset": root, "epoch": epoch, "seed": seed}, separators=(",", ":"))
    key = hashlib.sha256(b"barnraise/assignment/v1\x00" + body.encode()).digest()
    b = 1
    while 2 ** (2 * b) < windows:
        b += 1
    while True:
        left, right = x // 2**b, x % 2**b
        for j in range(6):
            digest = hashlib.sha256(key + bytes([j]) + right.to_bytes(8, "big")).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "big") % 2**b)
        x = left * 2**b + right
        if x < windows:
            return x


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**40), st.binary(min_size=32, max_size=32), st.integers(0, 2**45), st.integers(1, 10**9)
)
def test_agrees_with_the_page(seed: int, root: bytes, position: int, windows: int) -> None:
    text = "sha256:" + root.hex()
    got = window_at(seed=seed, dataset_root=text, position=position, windows=windows)
    assert got == reference(seed, text, position, windows)
    assert 0 <= got < windows


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 300), st.integers(0, 2**20))
def test_every_epoch_is_a_permutation(seed: int, windows: int, epoch: int) -> None:
    positions = range(epoch * windows, (epoch + 1) * windows)
    got = windows_at(seed=seed, dataset_root=ROOT, positions=positions, windows=windows)
    assert sorted(got) == list(range(windows))


@pytest.mark.parametrize("windows", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025])
def test_permutation_around_powers_of_four(windows: int) -> None:
    got = windows_at(seed=0, dataset_root=ROOT, positions=range(windows), windows=windows)
    assert sorted(got) == list(range(windows))


def test_epochs_seeds_and_data_sets_differ() -> None:
    def order(seed: int, root: str, epoch: int) -> list[int]:
        return windows_at(
            seed=seed, dataset_root=root, positions=range(epoch * 500, (epoch + 1) * 500), windows=500
        )

    orders = [order(1, ROOT, 0), order(1, ROOT, 1), order(2, ROOT, 0), order(1, "sha256:" + "22" * 32, 0)]
    assert len({tuple(o) for o in orders}) == 4
    assert all(o != list(range(500)) for o in orders)


def test_golden_values() -> None:
    assert windows_at(seed=7, dataset_root=ROOT, positions=range(10), windows=10) == [
        *(8, 7, 3, 2, 6, 0, 4, 5, 1, 9),
    ]
    positions = [0, 1, 2, 26651, 10**12]
    assert windows_at(seed=7, dataset_root=ROOT, positions=positions, windows=26651) == [
        *(15540, 26289, 17501, 19995, 13957),
    ]


def test_one_position_of_many_windows_needs_no_table() -> None:
    tracemalloc.start()
    try:
        got = window_at(seed=3, dataset_root=ROOT, position=10**14 + 5, windows=10**12)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == reference(3, ROOT, 10**14 + 5, 10**12)
    assert peak < 100_000


def test_many_equals_one_by_one_in_order() -> None:
    positions = [900, 3, 3, 0, 10**6]
    got = windows_at(seed=1, dataset_root=ROOT, positions=iter(positions), windows=77)
    assert got == [window_at(seed=1, dataset_root=ROOT, position=p, windows=77) for p in positions]


def test_bad_input() -> None:
    with pytest.raises(ProtocolError, match=r"no training windows to assign; expected at least 1, got 0\."):
        window_at(seed=1, dataset_root=ROOT, position=0, windows=0)
    with pytest.raises(ProtocolError, match=r"position is negative; expected 0 or more, got -1\."):
        windows_at(seed=1, dataset_root=ROOT, positions=[0, -1], windows=5)
    with pytest.raises(FormatError, match="out of range"):
        window_at(seed=1, dataset_root=ROOT, position=2**60, windows=1)
