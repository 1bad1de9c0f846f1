"""The integers of a deviation, against a slow reading of docs/protocol.md, section 7, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import Arrays, ArraySpec, flatten
from model.config import ModelConfig
from model.hidden_state import Mode, midway_specs, zero_state
from model.init import array_specs, initial_weights
from model.local_steps import Midpoint, WorkSpec, local_steps
from pipeline.deviation import not_finite_deviation, step_deviation
from pipeline.trace import NOT_FINITE
from verification.tolerance import NO_BOUND, Deviation, Thresholds

LEAF = "sha256:" + "ab" * 32
LR = 2e-3
# A large array, one of a single dimension, and one that is tiny.
SPECS = (ArraySpec("a", (200, 100)), ArraySpec("b", (50,)), ArraySpec("c", (2, 1)))
MODEL = ModelConfig(
    vocab_size=61, context=9, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=24,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.05,
)  # fmt: skip
TIGHT = Thresholds(loss_ppm=0, norm_ppb=1_000, peak_ppm=100, step_milli=1_000)


def a_spec(mode: Mode = "local", weight_decay: float = 0.1) -> WorkSpec:
    return WorkSpec(mode, 1, 0.9, 0.95, 1e-8, weight_decay, 1.0)


# ---- the reference: every element a Python float, one after the other


def whole(number: float) -> int:
    return math.ceil(number) if math.isfinite(number) and number < NO_BOUND else NO_BOUND


def ratio(part: float, of: float) -> float:
    if math.isnan(part) or not math.isfinite(of):
        return math.nan
    if part == 0:
        return 0.0
    return part / of if of > 0 else math.inf


def largest(numbers: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, numbers)) else max(numbers, default=0.0)


def reference(
    spec: WorkSpec, specs: Sequence[ArraySpec], points: Sequence[Midpoint], losses: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(loss_ppm, norm_ppb, peak_ppm, step_milli), as the section has them."""
    u, local = 2.0**-24, spec.mode == "local"
    carrier = "adam_m" if local else "gradient_sum"
    keep, share = (spec.beta1, 1 - spec.beta1) if local else (1.0, 1.0)
    t = int(points[1].state["step"])
    norms, peaks, steps, position = [], [], [], 0
    for array in specs:
        places = range(position, position + array.size)
        position += array.size
        g, x, q = [], [], []
        for i in places:
            zero = float(points[0].state[carrier][i]) if carrier in points[0].state else 0.0
            one, own = float(points[1].state[carrier][i]), float(points[2].state[carrier][i])
            g.append((own - keep * zero) / share)
            q.append(4 * u * (keep * abs(zero) + abs(own) + abs(one)) / share)
            beyond = abs((one - own) / share) - q[-1]
            x.append(beyond if math.isnan(beyond) else max(0.0, beyond))
        rms = math.sqrt(math.fsum(each**2 for each in g) / len(g))
        x_rms = (
            math.sqrt(math.fsum(each**2 for each in x) / len(x)) if all(map(math.isfinite, x)) else math.nan
        )
        norms.append(ratio(x_rms, rms))
        peaks.append(largest([ratio(x[j], rms + abs(g[j])) for j in range(len(g))]))
        if local:
            steps += [optimizer(spec, array, points, i, j, q[j], t) for j, i in enumerate(places)]
    loss = -(-(10**6) * abs(losses[0] - losses[1]) // max(1, losses[1]))
    numbers = (1e9 * largest(norms), 1e6 * largest(peaks), 1e3 * largest(steps))
    return (min(NO_BOUND, loss), *map(whole, numbers))  # type: ignore[return-value]


def optimizer(
    spec: WorkSpec, array: ArraySpec, points: Sequence[Midpoint], i: int, j: int, q: float, t: int
) -> float:
    u = 2.0**-24
    m0, m1 = (float(point.state["adam_m"][i]) for point in points[:2])
    v0, v1 = (float(point.state["adam_v"][i]) for point in points[:2])
    w0, w1 = (float(point.weights[array.name].reshape(-1)[j]) for point in points[:2])
    if v0 < 0 or v1 < 0:
        return math.inf
    h = (m1 - spec.beta1 * m0) / (1 - spec.beta1)
    v = spec.beta2 * v0 + (1 - spec.beta2) * h**2
    b_v = 4 * u * (v + abs(v1)) + (1 - spec.beta2) * (2 * abs(h) * q + q**2) + 2.0**-125
    root = math.sqrt(v1 / (1 - spec.beta2**t))
    move = LR * (m1 / (1 - spec.beta1**t)) / (root + spec.eps)
    decay = spec.weight_decay if len(array.shape) >= 2 else 0.0
    b_w = 4 * u * (abs(w0) + abs(w1)) + 16 * u * abs(move) + 2.0**-120
    return largest([ratio(abs(v1 - v), b_v), ratio(abs(w1 - (w0 * (1 - LR * decay) - move)), b_w)])


# ---- steps by hand, in f32 as the work does them


def a_point(seed: int, specs: Sequence[ArraySpec] = SPECS, mode: Mode = "local", step: int = 3) -> Midpoint:
    dice = np.random.default_rng(seed)
    total = sum(array.size for array in specs)
    weights = {array.name: dice.normal(0, 0.02, array.shape).astype(np.float32) for array in specs}
    state: Arrays = {"step": np.array(step, np.int64), "error_feedback": np.zeros(total, np.float32)}
    if mode == "local":
        state["adam_m"] = dice.normal(0, 1e-3, total).astype(np.float32)
        state["adam_v"] = (dice.normal(0, 1e-3, total) ** 2).astype(np.float32)
    else:
        state["gradient_sum"] = dice.normal(0, 1e-3, total).astype(np.float32)
    return Midpoint(weights, state)


def a_gradient(seed: int, specs: Sequence[ArraySpec] = SPECS) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1e-3, sum(a.size for a in specs)).astype(np.float32)


def stepped(
    spec: WorkSpec, start: Midpoint, gradient_P: np.ndarray, specs: Sequence[ArraySpec] = SPECS
) -> Midpoint:
    step = int(start.state["step"]) + 1
    state = {**start.state, "step": np.array(step, np.int64)}
    if spec.mode == "gradient":
        return Midpoint(start.weights, {**state, "gradient_sum": start.state["gradient_sum"] + gradient_P})
    one = np.float32
    m = start.state["adam_m"] * one(spec.beta1) + gradient_P * one(1 - spec.beta1)
    v = start.state["adam_v"] * one(spec.beta2) + gradient_P * gradient_P * one(1 - spec.beta2)
    root = np.sqrt(v / one(1 - spec.beta2**step)) + one(spec.eps)
    move = m / one(1 - spec.beta1**step) / root * one(LR)
    weights, position = {}, 0
    for array in specs:
        before = start.weights[array.name]
        if len(array.shape) >= 2:
            before = before * one(1 - LR * spec.weight_decay)
        weights[array.name] = before - move[position : position + array.size].reshape(array.shape)
        position += array.size
    return Midpoint(weights, {**state, "adam_m": m, "adam_v": v})


def changed(point: Midpoint, name: str, at: int, change: Callable[[Any], Any]) -> Midpoint:
    """A point with one element changed: of a weight array, or of an array of the state."""
    weights = {key: array.copy() for key, array in point.weights.items()}
    state = {key: np.array(array) for key, array in point.state.items()}
    flat = (weights if name in weights else state)[name].reshape(-1)
    flat[at] = change(flat[at])
    return Midpoint(weights, state)


def deviation(spec: WorkSpec, points: Sequence[Midpoint], losses: tuple[int, int] = (7, 7)) -> Deviation:
    return step_deviation(spec, SPECS, *points, lr=LR, losses=losses, own_leaf=LEAF)


def numbers(found: Deviation) -> tuple[int, int, int, int]:
    return found.loss_ppm, found.norm_ppb, found.peak_ppm, found.step_milli


def close(found: int, expected: int) -> bool:
    """Equal but for the last bits of f64, of which the numbers are rounded up."""
    return abs(found - expected) <= 1 + 1e-9 * expected


# ---- honest steps


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_the_same_step_does_not_deviate(mode: Mode) -> None:
    spec, start = a_spec(mode), a_point(1, mode=mode)
    end = stepped(spec, start, a_gradient(2))
    found = deviation(spec, (start, end, end))
    assert found == Deviation(0, 0, LEAF, 0, found.step_milli)
    assert found.step_milli <= 1_000  # the f32 step is the f64 one within what rounding allows
    assert (found.step_milli > 0) == (mode == "local")


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_the_shipped_step_is_within_its_own_rounding(mode: Mode) -> None:
    spec, specs = a_spec(mode), array_specs(MODEL)
    dice = np.random.default_rng(3)
    batches_SBT = dice.integers(0, MODEL.vocab_size, (12, 2, MODEL.context + 1))
    kept: list[tuple[Midpoint, int]] = []

    def keep(point: Midpoint, losses: tuple[int, ...]) -> None:
        parts = (
            {name: np.array(array) for name, array in part.items()} for part in (point.weights, point.state)
        )
        kept.append((Midpoint(*parts), losses[0]))

    begin = Midpoint(initial_weights(MODEL, 0), zero_state(specs, mode))
    local_steps(MODEL, spec, begin, batches_SBT, [LR] * 12, keep=keep)
    before = begin
    for index, (point, loss) in enumerate(kept):
        done = local_steps(MODEL, spec, before, batches_SBT[index : index + 1], [LR], first=index)
        found = step_deviation(
            spec,
            specs,
            before,
            point,
            done.end,
            lr=LR,
            losses=(loss, done.losses[0]),
            own_leaf=done.leaves[0],
        )
        assert numbers(found)[:3] == (0, 0, 0)
        assert found.own == done.leaves[0]
        assert found.step_milli <= (1_000 if mode == "local" else 0)
        before = point


def test_a_start_without_a_sum_has_summed_nothing() -> None:
    spec, start = a_spec("gradient"), a_point(1, mode="gradient", step=0)
    zero = Midpoint(start.weights, {**start.state, "gradient_sum": np.zeros(len(a_gradient(2)), np.float32)})
    none = Midpoint(start.weights, {n: a for n, a in start.state.items() if n != "gradient_sum"})
    served, own = stepped(spec, zero, a_gradient(2)), stepped(spec, zero, a_gradient(4))
    assert deviation(spec, (none, served, own)) == deviation(spec, (zero, served, own))
    assert deviation(spec, (none, served, own)).norm_ppb > 10**8


def test_rounding_of_the_carrier_is_no_deviation_of_the_gradient() -> None:
    """A last bit of a large adam_m says nothing about a small gradient."""
    spec, start = a_spec(), a_point(1)
    start = Midpoint(start.weights, {**start.state, "adam_m": start.state["adam_m"] * np.float32(1000)})
    own = stepped(spec, start, a_gradient(2))
    off = replace(own, state={**own.state, "adam_m": np.nextafter(own.state["adam_m"], np.float32(9))})
    assert numbers(deviation(spec, (start, off, own)))[1:3] == (0, 0)


# ---- dishonest ones


@pytest.mark.parametrize("mode", ["local", "gradient"])
@given(at=st.integers(0, 20_051), sign=st.sampled_from([-1, 1]))
@settings(max_examples=15, deadline=None)
def test_one_poisoned_element_is_found_by_its_peak(mode: Mode, at: int, sign: int) -> None:
    spec, start, gradient_P = a_spec(mode), a_point(1, mode=mode), a_gradient(2)
    poisoned_P = gradient_P.copy()
    poisoned_P[at] += np.float32(sign * 1e-4)  # a tenth of the gradient's deviation
    points = (start, stepped(spec, start, poisoned_P), stepped(spec, start, gradient_P))
    found = deviation(spec, points)
    assert found.peak_ppm > 10_000
    assert TIGHT.exceeded_by(found)
    assert found.step_milli <= 1_000  # the optimizer was run honestly on a false gradient


def test_a_poisoned_tiny_array_is_not_drowned_in_a_large_one() -> None:
    spec, start, gradient_P = a_spec(), a_point(1), a_gradient(2)
    poisoned_P = gradient_P.copy()
    poisoned_P[-2:] *= np.float32(1.5)
    found = deviation(spec, (start, stepped(spec, start, poisoned_P), stepped(spec, start, gradient_P)))
    assert abs(found.norm_ppb - 500_000_000) < 500_000  # less what rounding explains
    whole_vector = np.linalg.norm(poisoned_P - gradient_P) / np.linalg.norm(gradient_P)
    assert whole_vector < 0.01


@pytest.mark.parametrize(("name", "at"), [("a", 17), ("b", 3), ("c", 1)])
def test_weights_may_be_off_by_rounding_and_by_no_more(name: str, at: int) -> None:
    spec, start = a_spec(), a_point(1)
    own = stepped(spec, start, a_gradient(2))
    few = changed(own, name, at, lambda w: w + 3 * np.spacing(w))
    many = changed(own, name, at, lambda w: w + 300 * np.spacing(w))
    assert deviation(spec, (start, few, own)).step_milli <= 1_000
    assert deviation(spec, (start, many, own)).step_milli > 10_000
    assert numbers(deviation(spec, (start, many, own)))[:3] == (0, 0, 0)


def test_moments_must_follow_from_what_was_served() -> None:
    spec, start = a_spec(), a_point(1)
    own = stepped(spec, start, a_gradient(2))
    small = changed(own, "adam_v", 5, lambda v: v / 2)  # a larger step than the gradient's
    assert deviation(spec, (start, small, own)).step_milli > 1_000_000
    nothing = changed(own, "adam_v", 20_001, lambda v: v * 0)
    assert deviation(spec, (start, nothing, own)).step_milli > 1_000_000


@pytest.mark.parametrize("which", [0, 1])
def test_a_negative_second_moment_has_no_bound(which: int) -> None:
    spec, start = a_spec(), a_point(1)
    points = [start, stepped(spec, start, a_gradient(2)), stepped(spec, start, a_gradient(2))]
    points[which] = changed(points[which], "adam_v", 5, lambda v: -1 - v)
    assert deviation(spec, points).step_milli == NO_BOUND


def test_negative_zero_is_zero() -> None:
    spec = a_spec()
    start = Midpoint(a_point(1).weights, {**zero_state(SPECS, "local"), "step": np.array(3, np.int64)})
    start = changed(start, "adam_v", 5, lambda v: -v)
    assert np.signbit(start.state["adam_v"][5])
    end = stepped(spec, start, np.zeros(20_052, np.float32))
    assert numbers(deviation(spec, (start, end, end)))[:3] == (0, 0, 0)
    assert deviation(spec, (start, end, end)).step_milli <= 1_000


def test_an_array_without_a_gradient_must_have_none() -> None:
    spec, gradient_P = a_spec(), a_gradient(2)
    start = Midpoint(a_point(1).weights, {**zero_state(SPECS, "local"), "step": np.array(3, np.int64)})
    gradient_P[20_000:20_050] = 0
    own = stepped(spec, start, gradient_P)
    assert numbers(deviation(spec, (start, own, own)))[:3] == (0, 0, 0)
    gradient_P[20_010] = np.float32(1e-12)
    found = deviation(spec, (start, stepped(spec, start, gradient_P), own))
    assert (found.norm_ppb, found.peak_ppm) == (NO_BOUND, NO_BOUND)


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["adam_m", "adam_v", "b"])
def test_what_is_not_finite_has_no_bound(name: str, which: int, what: float) -> None:
    spec, start = a_spec(), a_point(1)
    points = [start, stepped(spec, start, a_gradient(2)), stepped(spec, start, a_gradient(2))]
    points[which] = changed(points[which], name, 7, lambda old: what)
    found = deviation(spec, points)
    assert NO_BOUND in numbers(found)
    if name == "adam_m" and which == 1:
        assert numbers(found)[1:] == (NO_BOUND, NO_BOUND, NO_BOUND)


@pytest.mark.parametrize("huge", [3e38, -3e38])
def test_the_largest_floats_are_far_above_any_threshold(huge: float) -> None:
    spec, start = a_spec(), a_point(1)
    own = stepped(spec, start, a_gradient(2))
    found = deviation(spec, (start, changed(own, "adam_m", 7, lambda old: huge), own))
    assert (found.norm_ppb, found.peak_ppm) == (NO_BOUND, NO_BOUND)
    assert found.step_milli > 10**9  # in units of what rounding allows it cannot be more than about 1/16u


@pytest.mark.parametrize("count", [0, -1, -(10**9), 2**62, -(2**63)])
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_a_strange_count_raises_nothing(count: int, beta1: float) -> None:
    spec, start = replace(a_spec(), beta1=beta1), a_point(1)
    own = stepped(spec, start, a_gradient(2))
    served = Midpoint(own.weights, {**own.state, "step": np.array(count, np.int64)})
    assert deviation(spec, (start, served, own)).step_milli > 1_000


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((5, 5), 0),
        ((1_000_001, 1_000_000), 1),
        ((999_999, 1_000_000), 1),
        ((1_000_003, 2_000_006), 500_000),
        ((0, 0), 0),
        ((3, 0), 3_000_000),
        ((NO_BOUND, 1), NO_BOUND),
        ((9_007_199_254, 1), 9_007_199_253_000_000),
        ((9_007_199_256, 1), NO_BOUND),
    ],
)
def test_losses_are_compared_by_integers(losses: tuple[int, int], expected: int) -> None:
    spec, start = a_spec(), a_point(1)
    end = stepped(spec, start, a_gradient(2))
    assert deviation(spec, (start, end, end), losses).loss_ppm == expected


def test_an_own_result_that_is_not_finite_states_no_numbers() -> None:
    found = not_finite_deviation()
    assert set(numbers(found)) == {NO_BOUND}
    assert found.own == NOT_FINITE


# ---- against the reference

SMALL = (ArraySpec("a", (3, 2)), ArraySpec("b", (4,)), ArraySpec("c", (1,)))
ELEMENTS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-2, max_value=2),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1e-3, -1e-3, 1e-38, 1e-45, 3e38, math.inf, math.nan]),
)


@st.composite
def points_of(draw: st.DrawFn, mode: Mode) -> tuple[Midpoint, ...]:
    """An honest step of SMALL with a few elements of the served points replaced by anything."""
    spec = a_spec(mode)
    start = a_point(draw(st.integers(0, 50)), SMALL, mode, draw(st.integers(0, 9)))
    gradient_P = a_gradient(draw(st.integers(0, 50)), SMALL)
    own = stepped(spec, start, gradient_P, SMALL)
    points = [start, stepped(spec, start, gradient_P * np.float32(draw(st.sampled_from([1, 1.001]))), SMALL)]
    names = ["adam_m", "adam_v", "a", "b", "c"] if mode == "local" else ["gradient_sum"]
    for _ in range(draw(st.integers(0, 3))):
        which, name = draw(st.sampled_from([0, 1, 1])), draw(st.sampled_from(names))
        at, value = draw(st.integers(0, 99)), draw(ELEMENTS)
        size = {"a": 6, "b": 4, "c": 1}.get(name, 11)
        points[which] = changed(points[which], name, at % size, lambda old, value=value: value)
    return *points, own


@pytest.mark.parametrize("mode", ["local", "gradient"])
@given(data=st.data(), losses=st.tuples(st.integers(0, NO_BOUND), st.integers(0, NO_BOUND)))
@settings(max_examples=150, deadline=None)
def test_the_numbers_are_those_of_the_protocol(
    mode: Mode, data: st.DataObject, losses: tuple[int, int]
) -> None:
    points = data.draw(points_of(mode))
    spec = a_spec(mode)
    found = step_deviation(spec, SMALL, *points, lr=LR, losses=losses, own_leaf=LEAF)
    expected = reference(spec, SMALL, points, losses)
    assert all(map(close, numbers(found), expected)), (found, expected)


def test_blocks_do_not_show_in_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, start = a_spec(), a_point(1)
    points = (
        start,
        stepped(spec, start, a_gradient(2) * np.float32(1.01)),
        stepped(spec, start, a_gradient(2)),
    )
    at_once = deviation(spec, points)
    monkeypatch.setattr("pipeline.deviation._BLOCK", 1009)
    assert all(map(close, numbers(deviation(spec, points)), numbers(at_once)))
    assert close(at_once.norm_ppb, reference(spec, SPECS, points, (7, 7))[1])


def test_points_have_the_form_of_the_run() -> None:
    """What the tests make up is what the work gives."""
    for mode in ("local", "gradient"):
        point = a_point(1, mode=mode)
        forms = midway_specs(SPECS, mode)
        assert {n: (a.dtype, a.shape) for n, a in point.state.items()} == forms
        assert flatten(point.weights, SPECS).shape == point.state["error_feedback"].shape
