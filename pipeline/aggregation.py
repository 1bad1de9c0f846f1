"""Accepted payloads to the next checkpoint: clipping, the weighted sum and the outer step.

Owns section 9 of docs/protocol.md, but for the weights, which records need too (verification/plans.py).
Does not own which contributions are accepted, what a payload's bytes mean (compression.py), or where
checkpoints lie. Pure: nothing passed in is changed. numpy only, and of it only element-wise + - * / sqrt in
f64, one rounding each, so that any machine replays it bit for bit; sums of floats are `math.fsum`.

Shapes: P elements of the flat vector, N kept entries of a payload, S elements of a stretch of the vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.compression import Codec
from verification.errors import FormatError, ProtocolError, UsageError, WorkError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Optimizer = Literal["nesterov", "adamw"]
Outer = dict[str, NDArray[np.float32] | NDArray[np.float64]]
State = Mapping[str, NDArray[np.float32] | NDArray[np.float64]]

Forms = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

_STRETCH = 2**16  # elements of the outer step handled at a time, so that temporaries stay in cache
_VECTORS: dict[Optimizer, tuple[str, ...]] = {"nesterov": ("momentum",), "adamw": ("m", "v")}
_SCALARS: dict[Optimizer, tuple[str, ...]] = {"nesterov": (), "adamw": ("beta1_product", "beta2_product")}


@dataclass(frozen=True)
class Contribution:
    """An accepted contribution: its slot, the weight its round-close gives it, and its payload's bytes."""

    slot: int
    weight: int
    payload: bytes


@dataclass(frozen=True)
class AggregationConfig:
    """`outer.*` of the manifest.

    nesterov reads momentum; adamw reads beta1, beta2, eps and weight_decay.
    """

    optimizer: Optimizer
    momentum: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def clip_factors(norms: Sequence[float]) -> tuple[float, ...]:
    """Factors that bring every norm down to the median, of an even number the smaller of the middle two.

    Section 9.2. So of two contributions the larger is held to the smaller. Raises UsageError for no norms.
    """
    if not norms:
        raise UsageError("there is nothing to aggregate", expected="at least one contribution")
    median = sorted(norms)[(len(norms) - 1) // 2]
    return tuple(1.0 if norm <= median else median / norm for norm in norms)


def initial_outer(length: int, optimizer: Optimizer) -> Outer:
    """Outer state of checkpoint 0: f32 [length] zeros, and f64 0-d products of 1 for adamw (section 9.4)."""
    _require_optimizer(optimizer)
    outer: Outer = {name: np.zeros(length, dtype=np.float32) for name in _VECTORS[optimizer]}
    outer.update({name: np.array(1.0, dtype=np.float64) for name in _SCALARS[optimizer]})
    return outer


def aggregate(codec: Codec, contributions: Sequence[Contribution]) -> F64:
    """The weighted, clipped mean g, f64 [P] (sections 9.2 and 9.3).

    Goes over `contributions` twice (norms, then the sum) and holds one decoded payload at a time, so a
    sequence that reads payloads from disk when asked keeps memory at O(P). Raises UsageError for none,
    FormatError when the codec refuses a payload and ProtocolError when slots are not in increasing order
    or all weights are 0.
    """
    slots: list[int] = []
    weights: list[int] = []
    norms: list[float] = []
    for contribution in contributions:
        slots.append(contribution.slot)
        weights.append(contribution.weight)
        norms.append(codec.decode(contribution.payload).norm())
    clips = clip_factors(norms)
    if any(later <= earlier for earlier, later in itertools.pairwise(slots)):
        raise ProtocolError(
            "contributions are not in slot order", expected="increasing slots", got=slots[:16]
        )
    total = sum(weights)
    if min(weights) < 0 or total <= 0:
        hint = "Check the tokens of the contributions, credit.operator_cap_ppm and audit.tolerance_cap_ppm."
        raise ProtocolError(
            "the contributions weigh nothing", expected="weights of 0 or more", got=weights, hint=hint
        )
    sum_P = np.zeros(codec.length, dtype=np.float64)
    for contribution, clip, weight in zip(contributions, clips, weights, strict=True):
        factor = clip * (weight / total)  # int / int is correctly rounded at any size
        sparse = codec.decode(contribution.payload)
        sum_P[sparse.indices] += factor * sparse.values.astype(np.float64)  # indices never repeat
    return sum_P


def outer_step(
    config: AggregationConfig,
    codec: Codec,
    specs: Sequence[tuple[str, tuple[int, ...]]],
    weights_P: F32,
    outer: State,
    contributions: Sequence[Contribution],
    outer_lr: float,
) -> tuple[F32, Outer]:
    """Weights f32 [P] and outer state after the accepted contributions, in slot order (section 9).

    `specs` are the manifest's arrays `(name, dims)`, whose elements add up to P. A void turn has no
    contributions and no outer step: calling this with none is a UsageError. Raises FormatError when weights
    or outer state do not have their form, WorkError when the step leaves the range of f32, and what
    `aggregate` raises.
    """
    _require_optimizer(config.optimizer)
    _require_forms(codec.length, specs, weights_P, outer, config.optimizer)
    sum_P = aggregate(codec, contributions)
    next_P = np.empty(codec.length, dtype=np.float32)
    state: Outer = {name: np.empty(codec.length, dtype=np.float32) for name in _VECTORS[config.optimizer]}
    if config.optimizer == "adamw":
        state["beta1_product"] = np.array(float(outer["beta1_product"]) * config.beta1, dtype=np.float64)
        state["beta2_product"] = np.array(float(outer["beta2_product"]) * config.beta2, dtype=np.float64)
    with np.errstate(all="ignore"):  # what leaves the range is found below, and nothing else is hidden
        for span, dims in _stretches(specs):
            sum_S, weights_S = sum_P[span], weights_P[span].astype(np.float64)
            old = {name: outer[name][span].astype(np.float64) for name in _VECTORS[config.optimizer]}
            if config.optimizer == "nesterov":
                state["momentum"][span], step_S = _nesterov(config, sum_S, old["momentum"])
            else:
                bias1, bias2 = 1 - float(state["beta1_product"]), 1 - float(state["beta2_product"])
                m_S, v_S = _moments(config, sum_S, old["m"], old["v"])
                state["m"][span], state["v"][span] = m_S, v_S
                mean_S, square_S = m_S.astype(np.float64) / bias1, v_S.astype(np.float64) / bias2
                # A decay of 0 is multiplied all the same: the sign of a zero follows the formula.
                decay = config.weight_decay if dims >= 2 else 0.0
                step_S = mean_S / (np.sqrt(square_S) + config.eps) + decay * weights_S
            next_P[span] = (weights_S - outer_lr * step_S).astype(np.float32)
    if not all(np.isfinite(array).all() for array in (next_P, *state.values())):
        raise WorkError(
            "the outer step left the range of f32",
            expected="finite weights and state",
            hint="Lower outer.lr, or look at the rounds before this one.",
        )
    return next_P, state


def _nesterov(config: AggregationConfig, sum_S: F64, momentum_S: F64) -> tuple[F32, F64]:
    """New momentum b, f32 [S], and direction d, f64 [S]."""
    next_S = (config.momentum * momentum_S + sum_S).astype(np.float32)
    return next_S, sum_S + config.momentum * next_S.astype(np.float64)


def _moments(config: AggregationConfig, sum_S: F64, m_S: F64, v_S: F64) -> tuple[F32, F32]:
    """New first and second moment of AdamW, f32 [S]."""
    next_m_S = config.beta1 * m_S + (1 - config.beta1) * sum_S
    next_v_S = config.beta2 * v_S + (1 - config.beta2) * (sum_S * sum_S)
    return next_m_S.astype(np.float32), next_v_S.astype(np.float32)


def _stretches(specs: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[slice, int]]:
    """Slices of the flat vector that lie within one array, with that array's number of dimensions."""
    start = 0
    for _, dims in specs:
        stop = start + math.prod(dims)
        for first in range(start, stop, _STRETCH):
            yield slice(first, min(first + _STRETCH, stop)), len(dims)
        start = stop


def _require_optimizer(optimizer: str) -> None:
    if optimizer not in _VECTORS:
        raise UsageError("outer.optimizer is unknown", expected=" or ".join(_VECTORS), got=optimizer)


def _require_forms(
    length: int,
    specs: Sequence[tuple[str, tuple[int, ...]]],
    weights_P: F32,
    outer: State,
    optimizer: Optimizer,
) -> None:
    elements = sum(math.prod(dims) for _, dims in specs)
    if elements != length or any(size < 0 for _, dims in specs for size in dims):
        raise FormatError(
            "the arrays do not make up the flat vector", expected=f"{length} elements", got=elements
        )
    if weights_P.dtype != np.float32 or weights_P.shape != (length,):
        got = _forms({"weights": (weights_P.dtype, weights_P.shape)})
        raise FormatError("the weights have the wrong form", expected=f"float32 [{length}]", got=got)
    expected: Forms = {name: (np.dtype(np.float32), (length,)) for name in _VECTORS[optimizer]}
    expected |= {name: (np.dtype(np.float64), ()) for name in _SCALARS[optimizer]}
    given: Forms = {name: (array.dtype, array.shape) for name, array in outer.items()}
    if given != expected:
        raise FormatError("the outer state has the wrong form", expected=_forms(expected), got=_forms(given))


def _forms(forms: Forms) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in sorted(forms.items()))
