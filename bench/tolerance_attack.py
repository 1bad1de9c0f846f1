"""Forged steps for bench/tolerance.py: sparse poison, and the largest poison that thresholds let through.

Owns how a step is forged and what cosine and overlap see of it. The optimizer is repeated here in numpy,
because a forger that poisons a gradient needs one that takes it; honest steps are the shipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import local_steps, transformer
from model.arrays import flatten, unflatten
from model.local_steps import Midpoint
from pipeline.calibrate_points import Plan

Flat = npt.NDArray[np.float32]
SIGMAS, SHARE, KEPT = 3.0, 1e-4, 1 / 64
_shipped = transformer.loss


def gradient_of(plan: Plan, start: Midpoint, end: Midpoint) -> Flat:
    """The (clipped) gradient that an honest step took, from the moments before and after it."""
    beta = plan.spec.beta1
    difference = end.state["adam_m"].astype(np.float64) - beta * start.state["adam_m"].astype(np.float64)
    return (difference / (1 - beta)).astype(np.float32)


def adamw(plan: Plan, start: Midpoint, gradient_P: Flat, rate: float) -> Midpoint:
    """The manifest's optimizer on a gradient of one's choice, in f32 as the shipped step has it."""
    spec, one = plan.spec, np.float32
    count = int(start.state["step"]) + 1
    m = start.state["adam_m"] * one(spec.beta1) + gradient_P * one(1 - spec.beta1)
    v = start.state["adam_v"] * one(spec.beta2) + gradient_P * gradient_P * one(1 - spec.beta2)
    root = np.sqrt(v / one(1 - spec.beta2**count)) + one(spec.eps)
    move = unflatten(m / one(1 - spec.beta1**count) / root * one(rate), plan.specs)
    weights = {}
    for array in plan.specs:
        keep = one(1 - rate * spec.weight_decay) if len(array.shape) >= 2 else one(1)
        weights[array.name] = start.weights[array.name] * keep - move[array.name]
    state = {**start.state, "step": np.array(count, np.int64), "adam_m": m, "adam_v": v}
    return Midpoint(weights, state)


def poisoned(plan: Plan, start: Midpoint, end: Midpoint, rate: float, place: str, dice: Any) -> Midpoint:
    """An honest end with three standard deviations of the step's change on one coordinate in ten thousand.

    In `gradient` the optimizer is then run honestly; in `weights` and `adam_m` only that array is changed.
    """
    size = len(end.state["adam_m"])
    at = dice.choice(size, max(1, round(size * SHARE)), replace=False)
    signs = dice.choice(np.array([-1, 1], np.float32), len(at))
    if place == "gradient":
        gradient_P = gradient_of(plan, start, end)
        gradient_P[at] += signs * np.float32(SIGMAS * gradient_P.std())
        return adamw(plan, start, gradient_P, rate)
    if place == "adam_m":
        moment_P = end.state["adam_m"].copy()
        moment_P[at] += signs * np.float32(SIGMAS * (moment_P - start.state["adam_m"]).std())
        return Midpoint(end.weights, {**end.state, "adam_m": moment_P})
    weights_P, before_P = flatten(end.weights, plan.specs), flatten(start.weights, plan.specs)
    weights_P[at] += signs * np.float32(SIGMAS * (weights_P - before_P).std())
    return Midpoint(unflatten(weights_P, plan.specs), end.state)


def likeness(plan: Plan, start: Midpoint, served: Midpoint, own: Midpoint) -> tuple[float, float]:
    """Of two steps' updates: the cosine, and the share of the largest 1/64 of elements that is common."""
    base_P = flatten(start.weights, plan.specs).astype(np.float64)
    one_P, two_P = (base_P - flatten(point.weights, plan.specs) for point in (served, own))
    cosine = float(one_P @ two_P / np.sqrt((one_P @ one_P) * (two_P @ two_P)))
    kept = max(1, round(len(base_P) * KEPT))
    tops = [set(np.argpartition(-np.abs(each_P), kept)[:kept].tolist()) for each_P in (one_P, two_P)]
    return cosine, len(tops[0] & tops[1]) / kept


Tensors = Mapping[str, torch.Tensor]
Direction = Callable[[Tensors, Tensors], dict[str, torch.Tensor]]  # of weights and gradients


@contextmanager
def bent(direction: Direction | None, *, rough: bool = False) -> Iterator[None]:
    """Have the shipped local steps take the gradient plus a `direction`; `rough`: under bf16 autocast.

    A term linear in the weights is added to the loss and taken off again in value, so that only the gradient
    changes.
    """

    def loss(config: Any, weights: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rough):
            value = _shipped(config, weights, tokens_BT).float()
        if direction is None or not value.requires_grad:
            return value
        gradients = torch.autograd.grad(value, list(weights.values()), retain_graph=True)
        extra = direction(weights, dict(zip(weights, gradients, strict=True)))
        term = torch.stack([(extra[name] * weights[name]).sum() for name in weights]).sum()
        return value + (term - term.detach())

    local_steps.loss = loss  # type: ignore[attr-defined]
    try:
        yield
    finally:
        local_steps.loss = _shipped  # type: ignore[attr-defined]


def against_gradient(share: float) -> Direction:
    """Every gradient made smaller by `share` of itself: slower learning."""
    return lambda _, gradients: {name: -share * gradient for name, gradient in gradients.items()}


def towards(plan: Plan, tokens_BT: npt.NDArray[np.int64], share: float, peak: float) -> Direction:
    """Every array's gradient pulled to that of other windows: `share` of its norm, `peak` of an element."""
    windows_BT = torch.from_numpy(tokens_BT)

    def direction(weights: Tensors, gradients: Tensors) -> dict[str, torch.Tensor]:
        own = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
        value = _shipped(plan.config.model, own, windows_BT)
        aims = dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))
        found = {}
        for name, gradient in gradients.items():
            rms, aim = gradient.square().mean().sqrt(), aims[name]
            pull = aim / aim.square().mean().sqrt().clamp_min(1e-30) * rms * share
            most = peak * (rms + gradient.abs())
            found[name] = torch.minimum(torch.maximum(pull, -most), most)
        return found

    return direction
