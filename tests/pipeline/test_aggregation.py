"""Aggregation and the outer step against docs/protocol.md, section 9."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.aggregation import (
    AggregationConfig,
    Contribution,
    aggregate,
    clip_factors,
    initial_outer,
    outer_step,
)
from pipeline.compression import Codec
from verification.errors import FormatError, ProtocolError, UsageError, WorkError
from verification.plans import capped_weights

ROOT = Path(__file__).parents[2]
NESTEROV = AggregationConfig("nesterov", 0.9, 0.9, 0.95, 1e-8, 0.1)
ADAMW = replace(NESTEROV, optimizer="adamw")
SPECS = (("embed.weight", (9, 7)), ("norm.weight", (11,)), ("up.weight", (2, 3, 5)))
CODEC = Codec(32, 8, 104)


def noise(seed: int, length: int, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(3, size=length) * size).astype(np.float32)


def contribution(slot: int, size: float = 1.0, weight: int = 100) -> Contribution:
    payload = CODEC.encode(noise(slot, CODEC.length, size))
    return Contribution(slot, weight, payload)


def digest(weights: np.ndarray, outer: dict[str, np.ndarray]) -> str:
    state = hashlib.sha256(weights.tobytes())
    for name in sorted(outer):
        state.update(
            name.encode() + str((outer[name].dtype, outer[name].shape)).encode() + outer[name].tobytes()
        )
    return state.hexdigest()


# --- weights and clipping


def test_weights_by_hand() -> None:
    work = [("a", 700), ("b", 200), ("a", 101)]
    # T = 1001, T_a = 801, cap 500: 700 * 500 * 1001 div (1000 * 801) = 437, 101 * ... = 63.
    assert capped_weights(work, 500_000) == [437, 200, 63]
    assert capped_weights(work, 1_000_000) == [700, 200, 101]
    assert capped_weights(work[:1], 1_000_000) == [700]


def test_the_sum_uses_the_weights_that_it_is_given() -> None:
    """Payloads of equal norm, so that nothing is clipped: the weights show in g."""
    vectors = np.ones((3, CODEC.length), dtype=np.float32)
    vectors[[0, 1, 2], [20, 21, 22]] = 1.25  # kept by one each, beside the first seven of the chunk
    for weights in ([437, 200, 63], [700, 200, 101], [0, 2, 1]):
        given_ = [
            Contribution(slot, weight, CODEC.encode(vector))
            for slot, (weight, vector) in enumerate(zip(weights, vectors, strict=True))
        ]
        shares = [weight / sum(weights) for weight in weights]
        assert aggregate(CODEC, given_)[20:23].tolist() == shares


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2**40)), min_size=1, max_size=9),
    st.integers(1, 1_000_000),
)
def test_no_operator_has_more_than_its_cap(claims: list[tuple[str, int]], cap: int) -> None:
    weights = capped_weights(claims, cap)
    total = sum(tokens for _, tokens in claims)
    for name in "abc":
        share = sum(w for w, (operator, _) in zip(weights, claims, strict=True) if operator == name)
        own = sum(tokens for operator, tokens in claims if operator == name)
        assert share * 1_000_000 <= cap * total
        if own * 1_000_000 <= cap * total:
            assert share == own
        else:  # floors lose less than one token each
            assert share * 1_000_000 > cap * total - len(claims) * 1_000_000


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([3.0], (1.0,)),
        ([1.0, 4.0, 2.0], (1.0, 0.5, 1.0)),
        ([1.0, 2.0, 4.0, 8.0], (1.0, 1.0, 0.5, 0.25)),
        ([50.0, 1.0], (0.02, 1.0)),
        ([0.0, 0.0, 5.0], (1.0, 1.0, 0.0)),
        ([0.0, 0.0], (1.0, 1.0)),
    ],
)
def test_clip_factors_by_hand(norms: list[float], expected: tuple[float, ...]) -> None:
    assert clip_factors(norms) == expected


@given(st.lists(st.just(0.0) | st.floats(1e-9, 1e6), min_size=1, max_size=12))
def test_clipping_brings_every_norm_to_the_median(norms: list[float]) -> None:
    median = statistics.median_low(norms)
    for norm, clip in zip(norms, clip_factors(norms), strict=True):
        assert 0 <= clip <= 1
        assert norm * clip <= median * (1 + 1e-15)
        assert (clip == 1) == (norm <= median) or math.isclose(norm, median)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(0, 5), st.floats(2, 1e6))
def test_a_scaled_contribution_moves_the_sum_no_more_than_others_do(
    count: int, slot: int, factor: float
) -> None:
    """Sent `factor` times too large, one of three or more moves g by at most the largest honest share."""
    slot %= count
    given_ = [contribution(s, factor if s == slot else 1.0) for s in range(count)]
    sparse = [CODEC.decode(c.payload) for c in given_]
    clips = clip_factors([s.norm() for s in sparse])
    rest = np.zeros(CODEC.length)
    for other in range(count):
        if other != slot:
            rest += clips[other] / count * sparse[other].dense(CODEC.length).astype(np.float64)
    moved = aggregate(CODEC, given_) - rest
    largest = max(s.norm() for i, s in enumerate(sparse) if i != slot)
    assert 0 < math.sqrt(math.fsum(moved**2)) <= largest / count * (1 + 1e-12)


def test_fifty_times_too_large_is_held() -> None:
    honest = [contribution(s, 1e-3) for s in range(5)]
    loud = replace(honest[2], payload=CODEC.encode(noise(2, CODEC.length, 50e-3)))
    assert CODEC.decode(loud.payload).norm() > 40 * CODEC.decode(honest[2].payload).norm()
    plain = aggregate(CODEC, honest)
    attacked = aggregate(CODEC, [*honest[:2], loud, *honest[3:]])
    difference = math.sqrt(math.fsum((attacked - plain) ** 2))
    assert 0 < difference < math.sqrt(math.fsum(plain**2))


# --- the sum


@pytest.mark.parametrize("weight", range(7, 107, 10))
def test_sum_follows_slot_order_bit_for_bit(weight: int) -> None:
    """Each position is the sequential f64 sum over slots, and the order is visible in the bits."""
    given_ = [contribution(s, 10.0**-s, weight=weight + s) for s in range(5)]
    clips = clip_factors([CODEC.decode(c.payload).norm() for c in given_])
    total = sum(c.weight for c in given_)
    expected = [0.0] * CODEC.length
    for c, clip in zip(given_, clips, strict=True):
        factor = clip * (c.weight / total)
        sparse = CODEC.decode(c.payload)
        for index, value in zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True):
            expected[index] = expected[index] + factor * value
    found = aggregate(CODEC, given_)
    assert found.dtype == np.float64
    assert found.tolist() == expected
    turned = [replace(c, slot=4 - c.slot) for c in reversed(given_)]
    assert aggregate(CODEC, turned).tolist() != expected
    spread = [replace(c, slot=3 * c.slot + 1) for c in given_]
    assert aggregate(CODEC, spread).tolist() == expected


@pytest.mark.parametrize("slots", [(1, 0), (0, 0), (0, 2, 1)])
def test_slots_out_of_order_are_refused(slots: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="slot order"):
        aggregate(CODEC, [replace(contribution(0), slot=s) for s in slots])


def test_nothing_to_aggregate_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to aggregate"):
        aggregate(CODEC, [])
    for weights in ([0], [-1], [0, 0], [5, -1]):
        with pytest.raises(ProtocolError, match="weigh nothing"):
            aggregate(CODEC, [contribution(slot, weight=weight) for slot, weight in enumerate(weights)])


def test_a_bad_payload_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="wrong length"):
        aggregate(CODEC, [contribution(0), replace(contribution(1), payload=b"")])


class OnDisk(Sequence[Contribution]):
    """Contributions that exist only when asked for, as from a folder; counts how often they are."""

    def __init__(self, payloads: list[bytes], count: int) -> None:
        self.payloads, self.count, self.loads = payloads, count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if index >= self.count:
            raise IndexError(index)
        self.loads += 1
        return Contribution(index, 1, self.payloads[index % 2])


def test_memory_does_not_grow_with_contributions() -> None:
    length = 2**20
    codec = Codec(4096, 64, length)
    payloads = [codec.encode(noise(seed, length)) for seed in (0, 1)]
    weights, outer = noise(5, length), initial_outer(length, "nesterov")
    peaks = []
    for count in (2, 40):
        given_ = OnDisk(payloads, count)
        tracemalloc.start()
        try:
            outer_step(
                NESTEROV, codec, [("w", (1024, 1024))], weights, outer, contributions=given_, outer_lr=1.0
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert given_.loads == 2 * count
    assert peaks[1] < peaks[0] * 1.05
    assert peaks[0] < 24 * length  # g 8 P, weights 4 P, momentum 4 P, and blocks


# --- the outer step


def test_initial_outer() -> None:
    assert {n: (a.dtype.name, a.shape, a.sum()) for n, a in initial_outer(5, "nesterov").items()} == {
        "momentum": ("float32", (5,), 0.0)
    }
    assert {n: (a.dtype.name, a.shape, a.sum()) for n, a in initial_outer(5, "adamw").items()} == {
        "m": ("float32", (5,), 0.0),
        "v": ("float32", (5,), 0.0),
        "beta1_product": ("float64", (), 1.0),
        "beta2_product": ("float64", (), 1.0),
    }
    with pytest.raises(UsageError, match="unknown"):
        initial_outer(5, "sgd")  # type: ignore[arg-type]


def f32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def run_steps(config: AggregationConfig, rounds: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    weights, outer = noise(99, CODEC.length), initial_outer(CODEC.length, config.optimizer)
    for turn in range(rounds):
        given_ = [contribution(s + 3 * turn, weight=50 + s) for s in range(3)]
        weights, outer = outer_step(config, CODEC, SPECS, weights, outer, contributions=given_, outer_lr=0.7)
    return weights, outer


@pytest.mark.parametrize("config", [NESTEROV, ADAMW], ids=lambda c: c.optimizer)
def test_formula_of_one_element(config: AggregationConfig) -> None:
    """Section 9.4 in Python floats for every element, over three rounds."""
    weights = noise(99, CODEC.length).tolist()
    first, second, product1, product2 = [0.0] * 104, [0.0] * 104, 1.0, 1.0
    for turn in range(3):
        given_ = [contribution(s + 3 * turn, weight=50 + s) for s in range(3)]
        g = aggregate(CODEC, given_).tolist()
        product1, product2 = product1 * 0.9, product2 * 0.95
        for j in range(104):
            w = weights[j]
            if config.optimizer == "nesterov":
                first[j] = f32(0.9 * first[j] + g[j])
                d = g[j] + 0.9 * first[j]
            else:
                first[j] = f32(0.9 * first[j] + (1 - 0.9) * g[j])
                second[j] = f32(0.95 * second[j] + (1 - 0.95) * (g[j] * g[j]))
                decay = 0.0 if 63 <= j < 74 else 0.1
                d = (first[j] / (1 - product1)) / (math.sqrt(second[j] / (1 - product2)) + 1e-8) + decay * w
            weights[j] = f32(w - 0.7 * d)
    found, outer = run_steps(config, 3)
    assert found.tolist() == weights
    if config.optimizer == "nesterov":
        assert outer["momentum"].tolist() == first
    else:
        assert (outer["m"].tolist(), outer["v"].tolist()) == (first, second)
        assert (float(outer["beta1_product"]), float(outer["beta2_product"])) == (product1, product2)


@pytest.mark.parametrize("config", [NESTEROV, ADAMW], ids=lambda c: c.optimizer)
def test_inputs_are_left_alone_and_stretches_do_not_show(config, monkeypatch) -> None:
    weights, outer = run_steps(config, 1)
    for array in (weights, *outer.values()):
        array.setflags(write=False)
    before = digest(weights, outer)
    given_ = (contribution(7), contribution(8))
    after = outer_step(config, CODEC, SPECS, weights, outer, contributions=given_, outer_lr=0.1)
    assert digest(weights, outer) == before
    assert not any(np.shares_memory(a, b) for a in after[1].values() for b in (weights, *outer.values()))
    assert digest(*after) != before
    monkeypatch.setattr("pipeline.aggregation._STRETCH", 5)
    again = outer_step(config, CODEC, SPECS, weights, outer, contributions=given_, outer_lr=0.1)
    assert digest(*again) == digest(*after)


def test_forms_that_do_not_fit_are_refused() -> None:
    weights, good = noise(0, 104), initial_outer(104, "nesterov")
    bad_outers: list[dict[str, np.ndarray]] = [
        {},
        initial_outer(103, "nesterov"),
        initial_outer(104, "adamw"),
        {"momentum": np.zeros(104)},
        {**good, "more": np.zeros(1, np.float32)},
    ]
    cases: list[tuple[Any, Any, Any]] = [(SPECS, weights, outer) for outer in bad_outers]
    cases += [(SPECS[:2], weights, good), ((("a", (-104, -1)),), weights, good)]
    cases += [(SPECS, weights[:-1], good), (SPECS, weights.astype(np.float64), good)]
    for specs, vector, outer in cases:
        with pytest.raises(FormatError):
            outer_step(NESTEROV, CODEC, specs, vector, outer, contributions=[contribution(0)], outer_lr=1.0)


@pytest.mark.parametrize("config", [NESTEROV, ADAMW], ids=lambda c: c.optimizer)
def test_leaving_the_range_is_a_work_error(config: AggregationConfig) -> None:
    outer = initial_outer(104, config.optimizer)
    with pytest.raises(WorkError, match="left the range"):
        outer_step(
            config, CODEC, SPECS, noise(0, 104), outer, contributions=[contribution(0)], outer_lr=1e300
        )


# --- another set of vector instructions

CHILD = """
import hashlib, json, sys
import numpy as np
from numpy._core._multiarray_umath import __cpu_features__
from pipeline.aggregation import AggregationConfig, Contribution, initial_outer, outer_step
from pipeline.compression import Codec, accumulate, encode_with_residue

codec = Codec(4096, 64, 50_000)
digests = []
for optimizer in ("nesterov", "adamw"):
    config = AggregationConfig(optimizer, 0.9, 0.9, 0.95, 1e-8, 0.1)
    weights = np.random.default_rng(1).random(50_000, dtype=np.float32)
    outer, error = initial_outer(50_000, optimizer), np.zeros(50_000, np.float32)
    for turn in range(3):
        given = []
        for slot in range(3):
            update = np.random.default_rng(10 * turn + slot).random(50_000, dtype=np.float32)
            update -= np.float32(0.5)
            update *= update * update
            payload, error = encode_with_residue(codec, accumulate(codec, update, error, 0.95))
            sparse = codec.decode(payload)
            arrays = (error, sparse.indices, sparse.values, sparse.norm_terms)
            parts = [payload, *(array.tobytes() for array in arrays), sparse.norm().hex().encode()]
            digests += [hashlib.sha256(part).hexdigest() for part in parts]
            given.append(Contribution(slot, 100 + slot, payload))
        specs = [("a", (200, 200)), ("b", (10_000,))]
        weights, outer = outer_step(config, codec, specs, weights, outer, contributions=given, outer_lr=0.7)
        digests += [hashlib.sha256(a.tobytes()).hexdigest() for a in (weights, *outer.values())]
print(json.dumps({"features": __cpu_features__, "digests": digests}))
"""


def child(features: str | None) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "NPY_DISABLE_CPU_FEATURES"}
    if features:
        environment["NPY_DISABLE_CPU_FEATURES"] = features
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_same_bits_without_wide_vector_instructions() -> None:
    native = child(None)
    wanted = ("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR")
    present = [name for name in wanted if native["features"].get(name)]
    if "X86_V3" not in present:
        pytest.skip("this machine has no X86_V3 instructions to switch off")
    plain = child(" ".join(present))
    assert [plain["features"][name] for name in present] == [False] * len(present)
    assert len(native["digests"]) == 2 * 3 * 3 * 6 + 3 * (2 + 5)
    assert plain["digests"] == native["digests"]
