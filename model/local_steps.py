"""The work: weights, hidden state and windows in; weights, next hidden state and trace out.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.arrays import Arrays, ArraySpec, arrays_digest, check_arrays, flatten, unflatten
from model.config import ModelConfig
from model.hidden_state import Mode, midway_specs, state_specs
from model.init import array_specs
from model.transformer import loss
from verification.encoding import MAX_INTEGER
from verification.errors import NotFiniteError, WorkError
from verification.judge import trace_leaf_digest

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
class Midpoint:
    """Where the work stands after some local steps of a round, all in host memory and nobody else's.

    `state` is the hidden state with the error feedback of the start and, in `gradient` mode, the
    `gradient_sum` so far: what a leaf of the trace hashes.
    """

    weights: Arrays
    state: Arrays


@dataclass(frozen=True)
class StepsResult:
    """What the local steps gave: where they ended, the trace's digests, and micronats by step."""

    end: Midpoint
    leaves: tuple[str, ...]
    losses: tuple[int, ...]


def local_steps(
    model: ModelConfig,
    spec: WorkSpec,
    start: Midpoint,
    batches_SBT: npt.NDArray[np.int64],
    inner_lr: Sequence[float],
    *,
    first: int = 0,
    micro_batch: int | None = None,
    keep: Callable[[Midpoint, tuple[int, ...]], None] | None = None,
    device: str = "cpu",
) -> StepsResult:
    """Do S local steps on windows of T + 1 tokens. Pure: nothing given is changed, and it may be read-only.

    `first` of the round's local steps lie behind `start`, a multiple of `trace_every`; the state of a `start`
    without any has no `gradient_sum`. `inner_lr` holds at least S rates in `local` mode and is not read in
    `gradient` mode. `micro_batch` windows go through the model at once, all B when None. `keep` is given each
    point that a leaf is taken of, as views, with the losses since the last one. Raises FormatError for arrays
    of other names, types or shapes, WorkError for windows that do not fit, and NotFiniteError when the loss
    or an array is not finite.
    """
    specs = array_specs(model)
    state = _whole_state(start.state, specs, spec.mode, fresh=first == 0)
    _check_windows(model, batches_SBT)
    if spec.mode == "local" and len(inner_lr) < len(batches_SBT):
        raise WorkError("a local step has no learning rate", expected=len(batches_SBT), got=len(inner_lr))
    if spec.trace_every < 1:
        raise WorkError("trace_every is too small", expected="at least 1", got=spec.trace_every)
    work = _Work(model, spec, flatten(start.weights, specs), state, device)
    losses: list[int] = []
    leaves: list[str] = []
    traced = 0
    for s, tokens_BT in enumerate(batches_SBT):
        losses.append(work.compute_gradient(tokens_BT, micro_batch or len(tokens_BT)))
        if spec.mode == "local":
            work.adamw_step(inner_lr[s])
        else:
            work.gradient_sum_P.add_(work.gradient_P)
        if (s + 1) % spec.trace_every == 0 or s + 1 == len(batches_SBT):
            since = tuple(losses[traced:])
            leaves.append(trace_leaf(work.here(), first + s + 1, since))
            if keep:
                keep(work.here(), since)
            traced = s + 1
    end = _copied(work.here())
    if not all(np.isfinite(array).all() for array in (*end.weights.values(), *end.state.values())):
        raise NotFiniteError("the weights or the state are not finite", hint="Lower the inner learning rate.")
    return StepsResult(end, tuple(leaves), tuple(losses))


def trace_leaf(point: Midpoint, step: int, losses: Sequence[int]) -> str:
    """Digest of where the work stands after `step` steps of its round (docs/protocol.md, section 7).

    `losses` are micronats of the steps since the last leaf.
    """
    return trace_leaf_digest(losses, arrays_digest(point.state), step, arrays_digest(point.weights))


def update_of(
    spec: WorkSpec, specs: Sequence[ArraySpec], base: Arrays, end: Midpoint, steps: int
) -> npt.NDArray[np.float32]:
    """f32[P]: base - final weights, or the mean gradient over all `steps` of a round."""
    if spec.mode == "gradient":
        return np.divide(end.state["gradient_sum"], np.float32(steps), dtype=np.float32)
    difference_P: npt.NDArray[np.float32] = flatten(base, specs) - flatten(end.weights, specs)
    return difference_P


def _copied(point: Midpoint) -> Midpoint:
    own = [{name: np.array(array) for name, array in part.items()} for part in (point.weights, point.state)]
    return Midpoint(*own)


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
            self.gradient_sum_P = _own(state["gradient_sum"], device)

    def compute_gradient(self, tokens_BT: npt.NDArray[np.int64], micro_batch: int) -> int:
        """Fill `gradient_P` with the gradient of one batch's mean loss; return the loss in micronats.

        It is the sum over the micro-batches, in order, of their mean gradients times their shares.
        """
        whole, total = len(tokens_BT), 0.0
        for start in range(0, whole, micro_batch):
            part_BT = tokens_BT[start : start + micro_batch]
            share = len(part_BT) / whole
            value = loss(self.model, self.parameters, _own(part_BT, self.weights_P.device))
            gradients = torch.autograd.grad(value, list(self.parameters.values()))
            flat = [gradient.reshape(-1) for gradient in gradients]
            if start == 0:
                torch.cat(flat, out=self.gradient_P)
                self.gradient_P.mul_(share)
            else:
                self.gradient_P.add_(torch.cat(flat).mul_(share))
            total += value.item() * share
        self.step += 1
        return _micronats(total)

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
        root_P = _root(v_P / (1 - _power(spec.beta2, self.step))).add_(spec.eps)
        move_P = (m_P / (1 - _power(spec.beta1, self.step))).div_(root_P).mul_(lr)
        with torch.no_grad():
            if spec.weight_decay:
                for parameter in self.parameters.values():
                    if parameter.ndim >= 2:
                        parameter.mul_(1 - lr * spec.weight_decay)
            self.weights_P.sub_(move_P)

    def here(self) -> Midpoint:
        """Where the work stands, with the error feedback of the start; arrays may be views."""
        vectors = {name: vector.cpu().numpy() for name, vector in self.vectors.items()}
        if self.spec.mode == "gradient":
            vectors["gradient_sum"] = self.gradient_sum_P.cpu().numpy()
        state = {"step": np.array(self.step, np.int64), "error_feedback": self.error_feedback_P, **vectors}
        return Midpoint(unflatten(self.weights_P.cpu().numpy(), self.specs), state)


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


def _whole_state(
    state: Mapping[str, npt.NDArray[Any]], specs: Sequence[ArraySpec], mode: Mode, *, fresh: bool
) -> Mapping[str, npt.NDArray[Any]]:
    """The state as within a round, checked; at its start no gradient has been summed yet."""
    forms = midway_specs(specs, mode)
    if fresh:
        check_arrays("the hidden state", state, state_specs(specs, mode))
        missing = forms.keys() - state.keys()
        state = {**state, **{name: np.zeros(forms[name][1], forms[name][0]) for name in missing}}
    check_arrays("the hidden state", state, forms)
    step = int(state["step"])
    if not 0 <= step <= MAX_INTEGER // 2:
        raise WorkError("the hidden state's step is out of range", expected="0 to 2^52", got=step)
    return state


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
    if not math.isfinite(nats) or nats * 1e6 > MAX_INTEGER:
        raise NotFiniteError("the loss is not finite", got=nats, hint="Lower the inner learning rate.")
    return math.floor(nats * 1e6)


def _root(square_P: Tensor) -> Tensor:
    """Square roots in place, correctly rounded: on the CPU torch's are MKL's, other bits by vendor."""
    if square_P.device.type != "cpu":
        return square_P.sqrt_()
    array_P = square_P.numpy()
    with np.errstate(invalid="ignore"):  # what is not finite is found at the end
        np.sqrt(array_P, out=array_P)
    return square_P


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
