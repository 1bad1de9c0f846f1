"""How far a served local step lies from the auditor's own, as integers that a record can hold.

Owns the arithmetic of docs/protocol.md, section 7, "Tolerance": f64, numpy only, block by block, so that no
f64 copy of a whole array is ever made. Does not own the work that is compared (model/local_steps.py),
thresholds or what follows from them (verification/tolerance.py).

Shape legend: E a block of one array's elements. Names end in 0 for the served start, 1 for the served end;
`own` is what the auditor got.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model.arrays import ArraySpec
from pipeline.trace import NOT_FINITE
from verification.tolerance import NO_BOUND, Deviation

if TYPE_CHECKING:
    from model.local_steps import Midpoint, WorkSpec

_BLOCK = 1 << 16
UNIT_ROUNDOFF = 2.0**-24  # of f32
CARRIERS = {"local": "adam_m", "gradient": "gradient_sum"}

Vector = npt.NDArray[np.float64]
Flat = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Step:
    """What of the manifest and the step the optimizer's arithmetic depends on."""

    spec: WorkSpec
    lr: float
    count: int


@dataclass(frozen=True)
class _Gradient:
    """Of a block: the own gradient g, how far the served one lies beyond rounding (x), that rounding (q)."""

    g_E: Vector
    x_E: Vector
    q_E: Vector


def not_finite_deviation() -> Deviation:
    """What is stated where the auditor's own result is not finite."""
    return Deviation(
        loss_ppm=NO_BOUND, norm_ppb=NO_BOUND, own=NOT_FINITE, peak_ppm=NO_BOUND, step_milli=NO_BOUND
    )


def step_deviation(
    spec: WorkSpec,
    specs: Sequence[ArraySpec],
    start: Midpoint,
    served: Midpoint,
    own: Midpoint,
    *,
    lr: float,
    losses: tuple[int, int],
    own_leaf: str,
) -> Deviation:
    """The deviation of the one local step from `start` to `served`, where the auditor got `own`.

    All three have the run's arrays, `specs` in the order of the flat vector; a start without `gradient_sum`
    has summed none. `served.state["step"]` is the count after the step, `losses` micronats (served, own),
    `lr` the step's rate, not read in `gradient` mode. `start` and `served` may hold any bits: what is not
    finite has no bound.
    """
    step = _Step(spec, lr, int(served.state["step"]))
    norm = peak = moved = 0
    stop = 0
    for array in specs:
        rows = slice(stop, stop := stop + array.size)
        flat = [_flat(point, array.name, rows, spec.mode) for point in (start, served, own)]
        decays = len(array.shape) >= 2
        with np.errstate(all="ignore"):  # what is not finite shows as such in the numbers
            array_norm, array_peak = _gradient_parts(spec, flat)
            norm, peak = max(norm, _count(1e9 * array_norm)), max(peak, _count(1e6 * array_peak))
            if spec.mode == "local":
                moved = max(moved, _count(1e3 * _optimizer_part(step, flat, decays=decays)))
    return Deviation(
        loss_ppm=_loss_ppm(*losses), norm_ppb=norm, own=own_leaf, peak_ppm=peak, step_milli=moved
    )


def _flat(point: Midpoint, name: str, rows: slice, mode: str) -> Flat:
    """What of a point belongs to one array, flat; views. A sum that there is none of yet is left out."""
    names = ("adam_m", "adam_v") if mode == "local" else ("gradient_sum",)
    vectors = {each: point.state[each][rows] for each in names if each in point.state}
    return {"weights": point.weights[name].reshape(-1), **vectors}


def _gradient_parts(spec: WorkSpec, flat: Sequence[Flat]) -> tuple[float, float]:
    """Of one array: the relative norm and the largest element of the gradient's deviation."""
    squares_g = squares_x = 0.0
    for block in _blocks(flat):
        parts = _gradient(spec, flat, block)
        squares_g += float(np.square(parts.g_E).sum())
        squares_x += float(np.square(parts.x_E).sum())
    size = max(1, len(flat[1]["weights"]))
    rms = math.sqrt(squares_g / size)
    peak = 0.0
    for block in _blocks(flat):
        parts = _gradient(spec, flat, block)
        peak = _most(peak, _ratio(parts.x_E, rms + np.abs(parts.g_E)))
    return _ratio(np.sqrt(np.array([squares_x / size])), np.array([rms])), peak


def _blocks(flat: Sequence[Flat]) -> Iterator[slice]:
    size = len(flat[1]["weights"])
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


def _gradient(spec: WorkSpec, flat: Sequence[Flat], block: slice) -> _Gradient:
    decay = spec.beta1 if spec.mode == "local" else 1.0
    share = 1 - spec.beta1 if spec.mode == "local" else 1.0
    carrier = CARRIERS[spec.mode]
    own_E, served_E = _f64(flat[2][carrier][block]), _f64(flat[1][carrier][block])
    before_E = decay * _f64(flat[0][carrier][block]) if carrier in flat[0] else np.zeros_like(own_E)
    rounding_E = 4 * UNIT_ROUNDOFF * (np.abs(before_E) + np.abs(own_E) + np.abs(served_E)) / share
    beyond_E = np.abs(served_E - own_E) / share - rounding_E
    return _Gradient((own_E - before_E) / share, np.maximum(0.0, beyond_E), rounding_E)


def _optimizer_part(step: _Step, flat: Sequence[Flat], *, decays: bool) -> float:
    """Of one array: the largest distance from the manifest's optimizer, in units of what rounding allows."""
    most = 0.0
    for block in _blocks(flat):
        v0_E, v1_E = (_f64(point["adam_v"][block]) for point in flat[:2])
        if (v0_E < 0).any() or (v1_E < 0).any():
            return math.inf
        most = _most(most, _second_moment(step.spec, flat, block), _weights(step, flat, block, decays=decays))
    return most


def _second_moment(spec: WorkSpec, flat: Sequence[Flat], block: slice) -> float:
    v0_E, v1_E = (_f64(point["adam_v"][block]) for point in flat[:2])
    m0_E, m1_E = (_f64(point["adam_m"][block]) for point in flat[:2])
    h_E = (m1_E - spec.beta1 * m0_E) / (1 - spec.beta1)
    q_E = _gradient(spec, flat, block).q_E
    kept_E, added_E = spec.beta2 * v0_E, (1 - spec.beta2) * h_E**2
    from_h_E = (1 - spec.beta2) * (2 * np.abs(h_E) * q_E + q_E**2)
    bound_E = 4 * UNIT_ROUNDOFF * (kept_E + added_E + np.abs(v1_E)) + from_h_E + 2.0**-125
    return _ratio(np.abs(v1_E - (kept_E + added_E)), bound_E)


def _weights(step: _Step, flat: Sequence[Flat], block: slice, *, decays: bool) -> float:
    spec = step.spec
    w0_E, w1_E = (_f64(point["weights"][block]) for point in flat[:2])
    m1_E, v1_E = (_f64(flat[1][name][block]) for name in ("adam_m", "adam_v"))
    # numpy's power: a count that no honest step has must not raise.
    bias1, bias2 = (1 - np.power(beta, np.float64(step.count)) for beta in (spec.beta1, spec.beta2))
    move_E = step.lr * (m1_E / bias1) / (np.sqrt(v1_E / bias2) + spec.eps)
    kept = 1 - step.lr * spec.weight_decay if decays else 1.0
    bound_E = (
        4 * UNIT_ROUNDOFF * (np.abs(w0_E) + np.abs(w1_E)) + 16 * UNIT_ROUNDOFF * np.abs(move_E) + 2.0**-120
    )
    return _ratio(np.abs(w1_E - (w0_E * kept - move_E)), bound_E)


def _f64(array: npt.NDArray[np.float32]) -> Vector:
    return array.astype(np.float64)


def _ratio(part_E: Vector, whole_E: Vector) -> float:
    """The largest part/whole, 0/0 being 0; NaN when there is one."""
    quotient_E = np.where(part_E == 0, 0.0, part_E / whole_E)
    # NaN wins over any number, also where a whole that is not finite would hide its part.
    return float(np.max(np.where(np.isfinite(whole_E), quotient_E, np.nan), initial=0.0))


def _most(*numbers: float) -> float:
    """The largest; NaN when there is one."""
    return float(np.max(numbers))


def _count(number: float) -> int:
    """Rounded up; NO_BOUND for what is not finite or above what a record can hold."""
    return math.ceil(number) if number < NO_BOUND else NO_BOUND  # NaN is below nothing


def _loss_ppm(served: int, own: int) -> int:
    """By integers alone: micronats may be too large for the product in f64."""
    return min(NO_BOUND, -(-(10**6) * abs(served - own) // max(1, own)))
