"""A step's windows in parts: what comes of them to the bit, and that the parts make no other step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from model.hidden_state import zero_state
from tests.model.test_local_steps import (
    BATCHES_SBT,
    GRADIENT,
    LOCAL,
    RATES,
    SPECS,
    WEIGHTS,
    gradient_of,
    started_state,
    update,
    work,
)

BATCH_BT = BATCHES_SBT[0]


def in_parts(micro_batch: int) -> tuple[np.ndarray, int]:
    result = work(
        GRADIENT, WEIGHTS, zero_state(SPECS, "gradient"), BATCH_BT[None], [], micro_batch=micro_batch
    )
    return update(GRADIENT, result), result.losses[0]


@pytest.mark.parametrize(
    ("micro_batch", "cuts"), [(1, (0, 1, 2, 3)), (2, (0, 2, 3)), (3, (0, 3)), (9, (0, 3))]
)
def test_a_gradient_is_the_sum_of_its_parts_in_their_order(micro_batch: int, cuts: tuple[int, ...]) -> None:
    total = None
    for start, stop in pairwise(cuts):
        part_P = gradient_of(WEIGHTS, BATCH_BT[start:stop])[0] * np.float32((stop - start) / 3)
        total = part_P if total is None else total + part_P
    got_P, micronats = in_parts(micro_batch)
    assert total is not None
    assert got_P.tobytes() == total.tobytes()
    parts = [gradient_of(WEIGHTS, BATCH_BT[a:b])[1] * (b - a) / 3 for a, b in pairwise(cuts)]
    assert abs(micronats - sum(parts)) < len(parts)


def test_parts_come_to_the_same_but_for_the_last_bits() -> None:
    whole_P, _ = in_parts(3)
    for micro_batch in (1, 2):
        parts_P, _ = in_parts(micro_batch)
        assert parts_P.tobytes() != whole_P.tobytes()
        assert np.linalg.norm(parts_P - whole_P) < 1e-5 * np.linalg.norm(whole_P)


def test_all_windows_at_once_is_what_is_done_without_a_number() -> None:
    plain = work(LOCAL, WEIGHTS, started_state(), BATCHES_SBT, RATES)
    at_once = work(LOCAL, WEIGHTS, started_state(), BATCHES_SBT, RATES, micro_batch=3)
    one_by_one = work(LOCAL, WEIGHTS, started_state(), BATCHES_SBT, RATES, micro_batch=1)
    assert at_once.leaves == plain.leaves
    assert one_by_one.leaves != plain.leaves
