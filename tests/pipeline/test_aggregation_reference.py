"""Codec, aggregation and outer step, bit for bit, against the reference aggregator in plain Python."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.aggregation import AggregationConfig, Contribution, initial_outer, outer_step
from pipeline.compression import Codec
from verification.errors import FormatError
from verification.plans import capped_weights

ROOT = Path(__file__).parents[2]
SPECS = (("embed.weight", (9, 7)), ("norm.weight", (11,)), ("up.weight", (2, 3, 5)))
SHORT = (*SPECS[:2], ("up.weight", (2, 3, 4)))  # its last chunk has 2 entries, fewer than k


def noise(seed: int, length: int, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(3, size=length) * size).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = ROOT / "tests" / "reference_aggregator.py"
    spec = importlib.util.spec_from_file_location("reference_aggregator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest_config(config: AggregationConfig, codec: Codec, caps: tuple[int, int]) -> dict[str, Any]:
    """The members of manifest.config that section 9 refers to, floats as hex."""
    names = ("momentum", "beta1", "beta2", "eps", "weight_decay")
    return {
        "audit": {"tolerance_cap_ppm": caps[1]},
        "compression": {"chunk": codec.chunk, "k": codec.k},
        "credit": {"operator_cap_ppm": caps[0]},
        "outer": {"optimizer": config.optimizer} | {name: getattr(config, name).hex() for name in names},
    }


def bits(values: Any) -> list[str]:
    return [float(value).hex() for value in values]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_equal_to_the_reference_bit_for_bit(reference: ModuleType, data: st.DataObject) -> None:
    config = AggregationConfig(
        data.draw(st.sampled_from(["nesterov", "adamw"])),
        data.draw(st.sampled_from([0.0, 0.7, 0.9])),
        data.draw(st.sampled_from([0.0, 0.9])),
        data.draw(st.sampled_from([0.95, 0.999])),
        data.draw(st.sampled_from([1e-8, 1e-10])),
        data.draw(st.sampled_from([0.0, 0.1])),
    )
    some = st.sampled_from([250_000, 500_000, 1_000_000])
    caps = data.draw(some), data.draw(some)
    specs = data.draw(st.sampled_from([SPECS, SHORT]))
    codec = Codec(32, 8, sum(math.prod(dims) for _, dims in specs))
    seed, lr = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([1.0, 0.3, 1.5]))
    weights, outer = noise(seed, codec.length), initial_outer(codec.length, config.optimizer)
    weights[::7] = -0.0
    slow_weights: Any = weights.tolist()
    slow_outer: Any = {name: array.tolist() for name, array in outer.items()}
    for turn in range(2):
        accepted: list[dict[str, Any]] = []
        for slot in range(data.draw(st.integers(1, 5))):
            vector = noise(
                seed + 10 * turn + slot, codec.length, data.draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0]))
            )
            vector[
                np.random.default_rng(slot).random(codec.length) < data.draw(st.sampled_from([0.0, 0.9]))
            ] = 0
            tokens, operator = data.draw(st.integers(100, 10**6)), data.draw(st.sampled_from("abc"))
            payload, tolerated = codec.encode(vector), data.draw(st.booleans())
            accepted.append(
                {"operator": operator, "payload": payload, "rests_on_tolerance": tolerated, "tokens": tokens}
            )
            sparse = codec.decode(payload)
            slow = [(i, v) for i, v in reference.decode(payload, 32, 8, codec.length) if v]
            assert [i for i, _ in slow] == sparse.indices.tolist()
            assert bits(v for _, v in slow) == bits(sparse.values)
        work = [(one["operator"], one["tokens"]) for one in accepted]
        shares = capped_weights(work, caps[0], [one["rests_on_tolerance"] for one in accepted], caps[1])
        assert shares == reference.weights_of(accepted, *caps)
        given_ = [Contribution(i, shares[i], one["payload"]) for i, one in enumerate(accepted)]
        weights, outer = outer_step(config, codec, specs, weights, outer, contributions=given_, outer_lr=lr)
        arrays = [[name, list(dims)] for name, dims in specs]
        slow_weights, slow_outer = reference.outer_step(
            manifest_config(config, codec, caps), arrays, slow_weights, slow_outer, accepted, lr
        )
        assert bits(slow_weights) == bits(weights)
        assert set(slow_outer) == set(outer)
        for name, array in outer.items():
            assert bits(np.ravel(slow_outer[name])) == bits(array.ravel())


def decoded(reference: ModuleType, codec: Codec, payload: bytes) -> list[int] | None:
    """Indices of the values, the same from both decoders; None where both refuse the bytes."""
    try:
        expected = codec.decode(payload)
    except FormatError:
        with pytest.raises(ValueError, match=r"\w"):
            reference.decode(payload, codec.chunk, codec.k, codec.length)
        return None
    slow = reference.decode(payload, codec.chunk, codec.k, codec.length)
    assert [i for i, _ in slow] == expected.indices.tolist()
    assert bits(v for _, v in slow) == bits(expected.values)
    assert reference.norm(payload, codec.chunk, codec.k, codec.length) == expected.norm()
    return [i for i, _ in slow]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(65, 104))
def test_reference_refuses_the_same_payloads(
    reference: ModuleType, seed: int, changes: int, length: int
) -> None:
    rng = np.random.default_rng(seed)
    codec = Codec(32, 8, length)
    payload = bytearray(codec.encode(noise(seed, length)))
    assert decoded(reference, codec, bytes(payload)) is not None
    for _ in range(changes):
        payload[rng.integers(len(payload))] ^= 1 << int(rng.integers(8))
    decoded(reference, codec, bytes(payload))


@pytest.mark.parametrize("real", range(1, 33))
@pytest.mark.parametrize("scale_byte", [0, 1, 200, 254, 255])
def test_reference_agrees_on_every_code_of_a_last_chunk(
    reference: ModuleType, real: int, scale_byte: int
) -> None:
    """All values of magnitude 1, and every single code, with first indices and with others."""
    codec = Codec(32, 8, real)
    first = bytes([scale_byte, 0x1B, 0x1B, 0b11110111, 0b10000000])
    spread = bytes([scale_byte, 0x1B, 0x1B, 0b11110111, 0b00001000])
    codes = [1 << bit for bit in range(16)] + [int("01" * 8, 2) >> bit for bit in range(16)]
    codes += [int("01" * n + "00" * (8 - n), 2) for n in range(9)]
    taken = 0
    for start in (first, spread):
        for code in codes:
            taken += decoded(reference, codec, start + code.to_bytes(2, "big")) is not None
    assert taken >= 1
