"""A slow aggregator in plain Python, written from sections 8 and 9 of the protocol and from nothing else.

Python's floats are IEEE 754 doubles and its operators round once each, so the loops below are the
protocol's sentences. Faster implementations are compared with it bit for bit. It shares no code with them.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import blake3

Arrays = Sequence[tuple[str, Sequence[int]]]
"""Names and dimensions of the trainable arrays, in the order of the flat vector."""


def f32(x: float) -> float:
    """x rounded to single precision, to nearest even; overflow gives an infinity."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def _number(value: Any) -> float:
    """A configuration's float: a HEXFLOAT or a number."""
    return float.fromhex(value) if isinstance(value, str) else float(value)


def _bits(data: bytes) -> list[int]:
    """Bits, most significant of each byte first."""
    return [byte >> (7 - i) & 1 for byte in data for i in range(8)]


def scale_of(byte: int) -> float:
    """The value of a chunk's scale byte."""
    return 0.0 if byte == 0 else (8 + (byte & 7)) * 2.0 ** ((byte >> 3) - 31)


def _decode_chunk(data: bytes, chunk: int, k: int, real: int) -> tuple[float, list[int], list[int]]:
    """Scale, indices and two-bit codes of the values of one chunk, whose first `real` indices lie below P.

    Raises ValueError on bytes that section 8 refuses.
    """
    low_bits = (chunk // k).bit_length() - 1
    low_end = 1 + k * low_bits // 8
    high_end = low_end + 2 * k // 8
    lows = _bits(data[1:low_end])
    marks = [place for place, bit in enumerate(_bits(data[low_end:high_end])) if bit]
    code_bits = _bits(data[high_end:])
    if len(marks) != k:
        raise ValueError(f"{len(marks)} high parts for {k} indices")
    indices, codes = [], []
    for i, place in enumerate(marks):
        low = 0
        for bit in lows[i * low_bits : (i + 1) * low_bits]:
            low = 2 * low + bit
        indices.append(((place - i) << low_bits) + low)
        codes.append(2 * code_bits[2 * i] + code_bits[2 * i + 1])
    if any(a >= b for a, b in itertools.pairwise(indices)) or indices[-1] >= chunk:
        raise ValueError("indices do not increase below the chunk")
    if data[0] == 0:
        if indices != list(range(k)) or any(codes):
            raise ValueError("a chunk of scale 0 is not in its one form")
        return 0.0, [], []
    if real < k:
        if indices != list(range(k)) or any(codes[real:]):
            raise ValueError("a chunk with fewer than k entries is not in its one form")
        indices, codes = indices[:real], codes[:real]
    elif indices[-1] >= real:
        raise ValueError("a value lies in the padding")
    if data[0] != 0xFF and all(code & 1 for code in codes):
        raise ValueError("magnitude 1 for all: the same values have another form")
    return scale_of(data[0]), indices, codes


def _chunks(payload: bytes, chunk: int, k: int, length: int) -> list[tuple[float, list[int], list[int]]]:
    low_bits = (chunk // k).bit_length() - 1
    size = k * (low_bits + 4) // 8 + 1
    count = -(-length // chunk)
    if len(payload) != count * size:
        raise ValueError(f"{len(payload)} bytes where {count * size} are due")
    chunks = []
    for i in range(count):
        real = min(chunk, length - i * chunk)
        chunks.append(_decode_chunk(payload[i * size : (i + 1) * size], chunk, k, real))
    return chunks


def decode(payload: bytes, chunk: int, k: int, length: int) -> list[tuple[int, float]]:
    """Flat indices and values of a payload for a flat vector of `length`; chunks of scale 0 have none.

    Raises ValueError on every byte string that is not a payload.
    """
    values: list[tuple[int, float]] = []
    for number, (scale, indices, codes) in enumerate(_chunks(payload, chunk, k, length)):
        for index, code in zip(indices, codes, strict=True):
            size = 2 * scale if code & 1 else scale
            values.append((number * chunk + index, -size if code & 2 else size))
    return values


def norm(payload: bytes, chunk: int, k: int, length: int) -> float:
    """The norm of section 9, 2: n1 and n2 count the values of a chunk, so no padding."""
    terms = []
    for scale, _, codes in _chunks(payload, chunk, k, length):
        large = sum(code & 1 for code in codes)
        terms.append((scale * scale) * (len(codes) - large + 4 * large))
    return math.sqrt(math.fsum(terms))


def weights_of(accepted: Sequence[Mapping[str, Any]], cap_ppm: int, tolerance_ppm: int) -> list[int]:
    """Section 9, 1."""
    total = 0
    per_operator: dict[str, int] = {}
    for one in accepted:
        total += one["tokens"]
        per_operator[one["operator"]] = per_operator.get(one["operator"], 0) + one["tokens"]
    weights = []
    for one in accepted:
        of_operator = per_operator[one["operator"]]
        if of_operator * 10**6 <= cap_ppm * total:
            weights.append(one["tokens"])
        else:
            weights.append(one["tokens"] * cap_ppm * total // (10**6 * of_operator))
    resting = other = 0
    for place, one in enumerate(accepted):
        if one["rests_on_tolerance"]:
            resting += weights[place]
        else:
            other += weights[place]
    if other > 0 and resting * (10**6 - tolerance_ppm) > tolerance_ppm * other:
        for place, one in enumerate(accepted):
            if one["rests_on_tolerance"]:
                weights[place] = weights[place] * tolerance_ppm * other // ((10**6 - tolerance_ppm) * resting)
    return weights


def aggregate(config: Mapping[str, Any], length: int, accepted: Sequence[Mapping[str, Any]]) -> list[float]:
    """Section 9, 1 to 3: the clipped weighted mean, f64 [length]."""
    chunk, k = config["compression"]["chunk"], config["compression"]["k"]
    caps = config["credit"]["operator_cap_ppm"], config["audit"]["tolerance_cap_ppm"]
    weights = weights_of(accepted, *caps)
    all_weights = sum(weights)
    norms = [norm(one["payload"], chunk, k, length) for one in accepted]
    ordered = sorted(norms)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else ordered[half - 1]
    g = [0.0] * length
    for one, weight, size in zip(accepted, weights, norms, strict=True):
        clip = 1.0 if size <= median else median / size
        c = clip * (weight / all_weights)
        for j, v in decode(one["payload"], chunk, k, length):
            g[j] = g[j] + c * v
    return g


def outer_step(
    config: Mapping[str, Any],
    arrays: Arrays,
    weights: Sequence[float],
    outer: Mapping[str, Any],
    accepted: Sequence[Mapping[str, Any]],
    outer_lr: float,
) -> tuple[list[float], dict[str, Any]]:
    """Section 9, 1 to 4: the weights and the outer state after a round.

    `config` is the manifest's; `weights` and the outer vectors are flat, in f32 values; `accepted` are, in
    slot order, `tokens`, `operator`, `rests_on_tolerance` and `payload` bytes. The optimizer is the one whose
    state `outer` is. A void turn (nothing accepted) changes nothing.
    """
    if not accepted:
        return list(weights), dict(outer)
    g = aggregate(config, len(weights), accepted)
    if "momentum" in outer:
        return _nesterov(config["outer"], weights, outer["momentum"], g, outer_lr)
    return _adamw(config["outer"], arrays, weights, outer, g, outer_lr)


def _nesterov(
    settings: Mapping[str, Any],
    weights: Sequence[float],
    momentum: Sequence[float],
    g: Sequence[float],
    lr: float,
) -> tuple[list[float], dict[str, Any]]:
    mu = _number(settings["momentum"])
    new_weights, new_momentum = [], []
    for w, old, gradient in zip(weights, momentum, g, strict=True):
        b = f32(mu * old + gradient)
        d = gradient + mu * b
        new_weights.append(f32(w - lr * d))
        new_momentum.append(b)
    return new_weights, {"momentum": new_momentum}


def _adamw(
    settings: Mapping[str, Any],
    arrays: Arrays,
    weights: Sequence[float],
    outer: Mapping[str, Any],
    g: Sequence[float],
    lr: float,
) -> tuple[list[float], dict[str, Any]]:
    beta1, beta2, eps = (_number(settings[name]) for name in ("beta1", "beta2", "eps"))
    decay: list[float] = []
    for _, dims in arrays:
        decay += [_number(settings["weight_decay"]) if len(dims) >= 2 else 0.0] * math.prod(dims)
    product1 = outer["beta1_product"] * beta1
    product2 = outer["beta2_product"] * beta2
    new_weights, new_m, new_v = [], [], []
    for w, m, v, gradient, lam in zip(weights, outer["m"], outer["v"], g, decay, strict=True):
        m1 = f32(beta1 * m + (1 - beta1) * gradient)
        v1 = f32(beta2 * v + (1 - beta2) * (gradient * gradient))
        d = (m1 / (1 - product1)) / (math.sqrt(v1 / (1 - product2)) + eps) + lam * w
        new_weights.append(f32(w - lr * d))
        new_m.append(m1)
        new_v.append(v1)
    return new_weights, {"m": new_m, "v": new_v, "beta1_product": product1, "beta2_product": product2}


def initial_weights(arrays: Arrays, seed: int, init_std: float, n_layers: int) -> list[float]:
    """Section 9, initial weights: the flat vector, f32 values."""
    flat: list[float] = []
    for name, dims in arrays:
        n = math.prod(dims)
        if len(dims) == 1:
            flat += [1.0] * n
            continue
        a = init_std * 1.7320508075688772
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            a = a * (1 / math.sqrt(2 * n_layers))
        stream = blake3.blake3(f"barnraise/init/v1\0{seed}\0{name}".encode()).digest(length=4 * n)
        for (u,) in struct.iter_unpack("<I", stream):
            flat.append(f32((float(u >> 8) - 8388608.0) / 8388608.0 * a))
    return flat
