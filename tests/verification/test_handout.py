"""Handing out positions, pace, and learning rates, each against a plain second version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import config
from verification.encoding import hex_float
from verification.handout import Need, give_back, hand_out, learning_rates, next_steps, steps_when_late
from verification.records import Requeued

OPERATORS = st.sampled_from("abc")
needs = st.lists(st.builds(Need, OPERATORS, st.integers(0, 12)), max_size=6)


@st.composite
def queues(draw: st.DrawFn) -> tuple[tuple[Requeued, ...], int]:
    """Disjoint ranges in order, below a cursor."""
    start, found = 0, []
    for _ in range(draw(st.integers(0, 5))):
        start += draw(st.integers(0, 3))
        stop = start + draw(st.integers(1, 6))
        found.append(Requeued((start, stop), draw(OPERATORS)))
        start = stop
    return tuple(found), start + draw(st.integers(0, 4))


def one_by_one(
    queue: tuple[Requeued, ...], cursor: int, wanted: list[Need]
) -> tuple[list[list[int]], list[tuple[int, str]], int]:
    """The same rule a position at a time."""
    left = [(position, item.operator) for item in queue for position in range(*item.range)]
    given_out = []
    for need in wanted:
        mine: list[int] = []
        for position, operator in list(left):
            if len(mine) < need.positions and operator != need.operator:
                mine.append(position)
                left.remove((position, operator))
        while len(mine) < need.positions:
            mine.append(cursor)
            cursor += 1
        given_out.append(mine)
    return given_out, left, cursor


@given(queues(), needs)
def test_handing_out_is_the_rule_a_position_at_a_time(
    start: tuple[tuple[Requeued, ...], int], wanted: list[Need]
) -> None:
    queue, cursor = start
    pieces, left, after = hand_out(queue, cursor, wanted)
    flat = [[p for a, b in ranges for p in range(a, b)] for ranges in pieces]
    rest = [(p, item.operator) for item in left for p in range(*item.range)]
    assert (flat, rest, after) == one_by_one(queue, cursor, wanted)
    assert all(a < b for ranges in pieces for a, b in ranges)
    assert all(item.range[0] < item.range[1] for item in left)


def test_pieces_keep_their_bounds() -> None:
    queue = (Requeued((0, 4), "a"), Requeued((4, 6), "b"), Requeued((9, 12), "a"))
    pieces, left, cursor = hand_out(queue, 20, [Need("b", 5), Need("a", 4)])
    assert pieces == (((0, 4), (9, 10)), ((4, 6), (20, 22)))
    assert left == (Requeued((10, 12), "a"),)
    assert cursor == 22


@given(queues(), st.lists(st.tuples(OPERATORS, st.integers(0, 30)), max_size=4))
def test_what_comes_back_is_sorted_and_whole(
    start: tuple[tuple[Requeued, ...], int], failed: list[tuple[str, int]]
) -> None:
    queue, cursor = start
    ranges = [
        (operator, [(cursor + 40 * i, cursor + 40 * i + 1 + n)]) for i, (operator, n) in enumerate(failed)
    ]
    after = give_back(queue, ranges[::-1])
    assert [item.range for item in after] == sorted(item.range for item in after)
    assert set(after) == {*queue, *(Requeued(r, o) for o, pieces in ranges for r in pieces)}


@given(
    st.integers(1, 100), st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 64), st.integers(1, 9)
)
def test_steps_at_most_double_and_stay_whole_leaves(
    steps: int, ms: int, round_ms: int, most: int, every: int
) -> None:
    after = next_steps(steps, ms, {"round_ms": round_ms, "max_steps": most}, every)
    if ms == 0:  # nobody measured
        assert after == steps
        return
    assert after % every == 0
    assert after >= every
    assert after <= max(every, min(2 * steps, most))
    if every == 1:
        assert after == max(1, min(steps * round_ms // ms, 2 * steps, most))


def test_steps_in_numbers() -> None:
    timing = {"round_ms": 5000, "max_steps": 64}
    assert next_steps(8, 1, timing, 4) == 16
    assert next_steps(8, 0, timing, 4) == 8  # not measured
    assert next_steps(100, 0, timing, 3) == 100
    assert next_steps(8, 5000, timing, 4) == 8
    assert next_steps(8, 3000, timing, 4) == 12  # 13 down to a multiple of 4
    assert next_steps(8, 60_000, timing, 4) == 4
    assert next_steps(60, 1, timing, 4) == 64


def test_a_late_slot_gets_half_in_whole_leaves() -> None:
    cases = {(16, 4): 8, (12, 4): 4, (8, 4): 4, (4, 4): 4, (7, 1): 3, (1, 1): 1, (9, 3): 3}
    assert {case: steps_when_late(*case) for case in cases} == cases


@given(
    st.floats(1e-9, 10.0),
    st.integers(1, 50),
    st.integers(0, 40),
    st.integers(0, 60),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.data(),
)
def test_learning_rates_are_the_formula(
    peak: float, rounds: int, warmup: int, decay: int, steps: list[int], data: st.DataObject
) -> None:
    round_ = data.draw(st.integers(1, rounds))
    count = data.draw(st.integers(0, 30))
    inner = {"lr": hex_float(peak), "warmup_steps": warmup, "decay_rounds": decay}
    settings: dict[str, Any] = config(
        run={"rounds": rounds},
        train={"steps": steps, "inner": inner},
        outer={"lr": hex_float(peak / 3)},
    )
    rates, outer = learning_rates(settings, round_, count)
    expected = []
    for s in range(count):
        rate = peak
        if warmup:
            rate = rate * (min((round_ - 1) * max(steps) + s + 1, warmup) / warmup)
        if decay:
            rate = rate * (min(rounds - round_ + 1, decay) / decay)
        expected.append(rate.hex())
    assert list(rates) == expected
    assert outer == (peak / 3).hex()
    settings["train"]["mode"] = "gradient"
    rate = peak / 3
    if warmup:
        rate = rate * (min(round_, warmup) / warmup)
    if decay:
        rate = rate * (min(rounds - round_ + 1, decay) / decay)
    assert learning_rates(settings, round_, count) == ((), rate.hex())


@pytest.mark.parametrize(("round_", "first", "last"), [(1, 0.02, 0.08), (3, 0.1 * (2 / 3), 0.1 * (2 / 3))])
def test_rates_rise_by_local_steps_and_fall_by_rounds(round_: int, first: float, last: float) -> None:
    rates, _ = learning_rates(config(), round_, 4)
    assert float.fromhex(rates[0]) == pytest.approx(first)
    assert float.fromhex(rates[-1]) == pytest.approx(last)
