"""Sketches of gradients: the numbers of the specification, who comes near them, and who does not."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import Arrays
from pipeline.config import TrainConfig
from pipeline.sketch import Sketcher
from verification.tolerance import NO_SKETCH, SKETCH_NUMBERS, Thresholds

SEED = "sha256:" + "12" * 32


def sketcher(mode: str = "local", slot: int = 3) -> Sketcher:
    return Sketcher(TrainConfig(mode=mode, steps=(4,)), SEED, slot)  # type: ignore[arg-type]


def reference(mode: str, slot: int, segment: int, before: Arrays, after: Arrays) -> list[float]:
    """Element by element, as section 7 of docs/protocol.md has it; not rounded."""
    told = json.dumps({"seed": SEED, "segment": segment, "slot": slot}, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(b"barnraise/sketch/v1\0" + told.encode()).digest()
    carrier = "adam_m" if mode == "local" else "gradient_sum"
    drawn = b""
    for block in range(-(-len(after[carrier]) // 65536)):
        drawn += hashlib.shake_256(key + struct.pack(">Q", block)).digest(65536)
    g = []
    for i, end in enumerate(after[carrier]):
        start = float(before[carrier][i]) if carrier in before else 0.0
        g.append((float(end) - 0.9 * start) / (1 - 0.9) if mode == "local" else float(end) - start)
    norm = math.sqrt(math.fsum(x * x for x in g))
    signs = [[-1 if drawn[i] >> (7 - j) & 1 else 1 for i in range(len(g))] for j in range(SKETCH_NUMBERS)]
    return [1e5 * math.fsum(s * x for s, x in zip(row, g, strict=True)) / norm for row in signs]


def state(seed: int, size: int, mode: str = "local") -> Arrays:
    rng = np.random.default_rng(seed)
    name = "adam_m" if mode == "local" else "gradient_sum"
    return {name: rng.standard_normal(size).astype(np.float32)}


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize("size", [1, 7, 65536, 65536 + 11])
def test_the_numbers_are_those_of_the_specification(mode: str, size: int) -> None:
    before, after = state(1, size, mode), state(2, size, mode)
    found = sketcher(mode).of(5, before, after)
    assert len(found) == SKETCH_NUMBERS
    expected = [max(-1e7, min(number, 1e7)) for number in reference(mode, 3, 5, before, after)]
    assert all(abs(one - other) <= 0.6 for one, other in zip(found, expected, strict=True))


def test_a_sum_of_which_there_is_none_yet_is_nothing() -> None:
    after = state(2, 50, "gradient")
    zero = {"gradient_sum": np.zeros(50, np.float32)}
    assert sketcher("gradient").of(0, {}, after) == sketcher("gradient").of(0, zero, after)


def test_a_golden() -> None:
    before = {"adam_m": np.arange(9, dtype=np.float32)}
    after = {"adam_m": np.arange(9, 0, -1).astype(np.float32)}
    assert sketcher().of(2, before, after) == GOLDEN


GOLDEN = (-101928, -207777, 77099, -33976, 65339, -9147, 65339, -108462)


def test_slot_segment_and_seed_are_in_the_signs() -> None:
    before, after = state(1, 400), state(2, 400)
    one = sketcher().of(5, before, after)
    others = [
        sketcher().of(6, before, after),
        sketcher(slot=4).of(5, before, after),
        Sketcher(sketcher().train, "sha256:" + "13" * 32, 3).of(5, before, after),
    ]
    assert len({one, *others}) == 4


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_or_is_nothing_has_no_sketch(odd: float) -> None:
    before, after = state(1, 400), state(2, 400)
    after["adam_m"][7] = odd
    assert sketcher().of(0, before, after) == NO_SKETCH
    nothing = {"adam_m": np.zeros(400, np.float32)}
    assert sketcher().of(0, nothing, nothing) == NO_SKETCH
    huge = {"adam_m": np.full(400, 3e38, np.float32)}
    assert len(sketcher().of(0, before, huge)) == SKETCH_NUMBERS


def gradient_pair(seed: int, norm: float, size: int = 5_000) -> tuple[Arrays, Arrays, Arrays]:
    """(start, served end, own end) of a step whose gradients differ by `norm` of their norm."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal(size)
    d = rng.standard_normal(size)
    d *= norm * np.linalg.norm(g) / np.linalg.norm(d)
    start = rng.standard_normal(size) * 0.3
    ends = [(0.9 * start + 0.1 * each).astype(np.float32) for each in (g, g + d)]
    return {"adam_m": start.astype(np.float32)}, {"adam_m": ends[0]}, {"adam_m": ends[1]}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 0.3]))
def test_a_gradient_within_the_threshold_is_always_covered(seed: int, norm: float) -> None:
    start, served, own = gradient_pair(seed, norm)
    limits = Thresholds(loss_ppm=0, norm_ppb=math.ceil(norm * 1e9), peak_ppm=0, step_milli=0)
    assert limits.covers(sketcher().served(0, start, served), sketcher().of(0, start, own))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["nothing", "moment", "far", "other", "near"]))
def test_who_has_not_seen_the_gradient_is_not_covered(seed: int, kind: str) -> None:
    """With the thresholds between two fp32 classes (docs/benchmarks/tolerance.md)."""
    limits = Thresholds(loss_ppm=0, norm_ppb=24_000, peak_ppm=0, step_milli=0)
    start, served, own = gradient_pair(seed, {"near": 0.1, "far": 1.0}.get(kind, 0.0))
    rng = np.random.default_rng(seed)
    guesses: dict[str, Any] = {
        "nothing": NO_SKETCH,
        "moment": sketcher().of(0, {"adam_m": np.zeros(5_000, np.float32)}, start),
        "other": tuple(round(1e5 * x) for x in rng.standard_normal(SKETCH_NUMBERS)),
    }
    told = guesses.get(kind) or sketcher().of(0, start, own)
    assert not limits.covers(sketcher().served(0, start, served), told)
