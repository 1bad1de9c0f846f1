"""The work: weights, hidden state and windows in; update, next hidden state and trace out.

Owns section 7 of docs/protocol.md up to the codec, and the evaluation. Does not own where windows come from,
error feedback (pipeline/compression.py) or which bits a machine computes (model/numerics.py). Contributor and
auditor call this one function.

Every operation on the flat vectors is rounded once (no fused multiply-add, no `alpha=`), and sums are taken
in blocks of fixed size, so that the bits do not depend on how threads share the elements.

Shape legend: S local steps, B windows a step, T context (window tensors hold T + 1 tokens), N windows,
P parameters of the flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.arrays import Arrays, ArraySpec, arrays_digest, check_arrays, flatten, unflatten
from model.config import ModelConfig
from model.hidden_state import Mode, state_specs
from model.init import array_specs
from model.transformer import loss
from verification.encoding import MAX_INTEGER, hash_object
from verification.errors import WorkError

_NORM_BLOCK = 4096


@dataclass(frozen=True)
class WorkSpec:
    """What the manifest fixes about the work; `max_grad_norm` 0 is off, and only `local` clips."""

    mode: Mode
    trace_every: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True)
class StepsResult:
    """What the local steps gave.

    `update` is f32[P], base - final weights or the mean gradient. `state` is the hidden state before error
    feedback is applied. `leaves` are the trace's digests, `losses` micronats by step.
    """

    update: npt.NDArray[np.float32]
    state: Arrays
    leaves: tuple[str, ...]
    losses: tuple[int, ...]


def local_steps(
    model: ModelConfig,
    spec: WorkSpec,
    weights: Mapping[str, npt.NDArray[Any]],
    state: Mapping[str, npt.NDArray[Any]],
    batches_SBT: npt.NDArray[np.int64],
    inner_lr: Sequence[float],
    *,
    device: str = "cpu",
) -> StepsResult:
    """Do S local steps on windows of T + 1 tokens. Pure: nothing given is changed, and it may be read-only.

    `inner_lr` holds at least S rates in `local` mode and is not read in `gradient` mode. Raises FormatError
    for arrays of other names, types or shapes, and WorkError for windows that do not fit or when the loss
    or the update is not finite.
    """
    specs = array_specs(model)
    _check_state(state, specs, spec.mode)
    _check_windows(model, batches_SBT)
    if spec.mode == "local" and len(inner_lr) < len(batches_SBT):
        raise WorkError("a local step has no learning rate", expected=len(batches_SBT), got=len(inner_lr))
    if spec.trace_every < 1:
        raise WorkError("trace_every is too small", expected="at least 1", got=spec.trace_every)
    base_P = flatten(weights, specs)
    work = _Work(model, spec, base_P, state, device)
    losses: list[int] = []
    leaves: list[str] = []
    traced = 0
    for s, tokens_BT in enumerate(batches_SBT):
        losses.append(work.compute_gradient(tokens_BT))
        if spec.mode == "local":
            work.adamw_step(inner_lr[s])
        else:
            work.gradient_sum_P.add_(work.gradient_P)
        if (s + 1) % spec.trace_every == 0 or s + 1 == len(batches_SBT):
            leaves.append(work.trace_leaf(s + 1, losses[traced:]))
            traced = s + 1
    update_P = work.update(base_P, len(batches_SBT))
    if not np.isfinite(update_P).all():
        raise WorkError("the update is not finite", hint="Lower the inner learning rate.")
    next_state = {name: np.array(array) for name, array in work.hidden_state().items()}
    return StepsResult(update_P, next_state, tuple(leaves), tuple(losses))


class _Work:
    """Tensors in flight, all private copies. `parameters` are views of `weights_P` by name."""

    def __init__(
        self,
        model: ModelConfig,
        spec: WorkSpec,
        base_P: npt.NDArray[np.float32],
        state: Mapping[str, npt.NDArray[Any]],
        device: str,
    ) -> None:
        self.model, self.spec, self.specs = model, spec, array_specs(model)
        self.error_feedback_P = np.array(state["error_feedback"])
        self.step = int(state["step"])
        self.weights_P = _own(base_P, device)
        self.parameters = _parameters(self.weights_P, self.specs)
        self.gradient_P = torch.zeros_like(self.weights_P)
        self.vectors: dict[str, Tensor] = {}
        if spec.mode == "local":
            self.vectors = {name: _own(state[name], device) for name in ("adam_m", "adam_v")}
        else:
            self.gradient_sum_P = torch.zeros_like(self.weights_P)

    def compute_gradient(self, tokens_BT: npt.NDArray[np.int64]) -> int:
        """Fill `gradient_P` with the gradient of one batch's mean loss; return the loss in micronats."""
        value = loss(self.model, self.parameters, _own(tokens_BT, self.weights_P.device))
        gradients = torch.autograd.grad(value, list(self.parameters.values()))
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self.gradient_P)
        self.step += 1
        return _micronats(value.item())

    def adamw_step(self, lr: float) -> None:
        """AdamW (Loshchilov and Hutter 2019); decoupled decay on arrays of two or more dimensions."""
        spec, gradient_P = self.spec, self.gradient_P
        m_P, v_P = self.vectors["adam_m"], self.vectors["adam_v"]
        if spec.max_grad_norm > 0:
            norm = _norm(gradient_P)
            if norm > spec.max_grad_norm:
                gradient_P.mul_(spec.max_grad_norm / norm)
        m_P.mul_(spec.beta1).add_(gradient_P * (1 - spec.beta1))
        v_P.mul_(spec.beta2).add_((gradient_P * gradient_P).mul_(1 - spec.beta2))
        root_P = (v_P / (1 - _power(spec.beta2, self.step))).sqrt_().add_(spec.eps)
        move_P = (m_P / (1 - _power(spec.beta1, self.step))).div_(root_P).mul_(lr)
        with torch.no_grad():
            if spec.weight_decay:
                for parameter in self.parameters.values():
                    if parameter.ndim >= 2:
                        parameter.mul_(1 - lr * spec.weight_decay)
            self.weights_P.sub_(move_P)

    def hidden_state(self) -> Arrays:
        """The hidden state so far, with the error feedback of the start; vectors may be views."""
        vectors = {name: vector.cpu().numpy() for name, vector in self.vectors.items()}
        return {"step": np.array(self.step, np.int64), "error_feedback": self.error_feedback_P, **vectors}

    def trace_leaf(self, step: int, losses: list[int]) -> str:
        """Digest of where the work stands after `step` steps of this round (docs/protocol.md, section 7)."""
        state = self.hidden_state()
        if self.spec.mode == "gradient":
            state["gradient_sum"] = self.gradient_sum_P.cpu().numpy()
        weights = unflatten(self.weights_P.cpu().numpy(), self.specs)
        leaf = {
            "losses": losses,
            "state": arrays_digest(state),
            "step": step,
            "weights": arrays_digest(weights),
        }
        return hash_object("barnraise/trace-leaf/v1", leaf)

    def update(self, base_P: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
        """f32[P]: base - final weights, or the mean gradient."""
        if self.spec.mode == "gradient":
            sum_P: npt.NDArray[np.float32] = self.gradient_sum_P.cpu().numpy()
            return np.divide(sum_P, np.float32(steps), dtype=np.float32)
        difference_P: npt.NDArray[np.float32] = base_P - self.weights_P.cpu().numpy()
        return difference_P


def evaluate(
    model: ModelConfig,
    weights: Mapping[str, npt.NDArray[Any]],
    windows_NT: npt.NDArray[np.int64],
    batch: int,
    *,
    device: str = "cpu",
) -> int:
    """Mean next-token loss over windows of T + 1 tokens, `batch` at a time, in micronats (floor).

    Raises FormatError for weights of another shape, WorkError for windows that do not fit or a loss that is
    not finite.
    """
    specs = array_specs(model)
    _check_windows(model, windows_NT[None])
    parameters = _parameters(_own(flatten(weights, specs), device), specs)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(windows_NT), batch):
            tokens_BT = _own(windows_NT[start : start + batch], device)
            total += loss(model, parameters, tokens_BT).item() * len(tokens_BT)
    return _micronats(total / len(windows_NT))


def _check_state(state: Mapping[str, npt.NDArray[Any]], specs: Sequence[ArraySpec], mode: Mode) -> None:
    check_arrays("the hidden state", state, state_specs(specs, mode))
    step = int(state["step"])
    if not 0 <= step <= MAX_INTEGER // 2:
        raise WorkError("the hidden state's step is out of range", expected="0 to 2^52", got=step)


def _check_windows(model: ModelConfig, batches_SBT: npt.NDArray[np.int64]) -> None:
    shape = batches_SBT.shape
    if batches_SBT.ndim != 3 or 0 in shape or shape[2] != model.context + 1 or batches_SBT.dtype != np.int64:
        expected = f"int64 [steps, windows, {model.context + 1}], none of them 0"
        raise WorkError("the windows do not fit", expected=expected, got=f"{batches_SBT.dtype} {list(shape)}")
    low, high = int(batches_SBT.min()), int(batches_SBT.max())
    if low < 0 or high >= model.vocab_size:
        raise WorkError(
            "a token is not in the vocabulary", expected=f"0 to {model.vocab_size - 1}", got=[low, high]
        )


def _own(array: npt.NDArray[Any], device: str | torch.device) -> Tensor:
    """A tensor on `device` that shares no memory with `array`, which may lie in shared memory."""
    return torch.from_numpy(np.array(array)).to(device)


def _parameters(weights_P: Tensor, specs: Sequence[ArraySpec]) -> dict[str, Tensor]:
    """Leaf tensors by name, views of the flat vector."""
    parameters: dict[str, Tensor] = {}
    start = 0
    for spec in specs:
        part = weights_P[start : start + spec.size].view(spec.shape)
        parameters[spec.name] = part.detach().requires_grad_()
        start += spec.size
    return parameters


def _micronats(nats: float) -> int:
    if not math.isfinite(nats):
        raise WorkError("the loss is not finite", got=nats, hint="Lower the inner learning rate.")
    return math.floor(nats * 1e6)


def _norm(vector_P: Tensor) -> float:
    """Euclidean norm: f64 sums over blocks of fixed size, then the correctly rounded sum of those."""
    whole = vector_P.numel() - vector_P.numel() % _NORM_BLOCK
    blocks = vector_P[:whole].view(-1, _NORM_BLOCK).square().sum(1, dtype=torch.float64)
    rest = vector_P[whole:].square().sum(dtype=torch.float64)
    return math.sqrt(math.fsum([*blocks.tolist(), rest.item()]))


def _power(base: float, exponent: int) -> float:
    """base ** exponent by squaring: multiplications only, so no libm has a say in it."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
