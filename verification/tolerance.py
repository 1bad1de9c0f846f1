"""Audits across numerics classes: who rests on tolerance, and when a deviation is too large.

Owns section 6 of docs/protocol.md where it speaks of tolerance: eligibility, thresholds, the integers of
a deviation, and whether a sketch can be of the step that it is said to be of. Does not own how deviations and
sketches are computed (pipeline/deviation.py, pipeline/sketch.py), which needs arrays, nor how thresholds are
found (`barnraise calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from verification.encoding import MAX_INTEGER
from verification.fields import require, require_counts, require_digests

NO_BOUND = MAX_INTEGER  # how a number is stated that has no bound, or is above what a record can hold
SKETCH_NUMBERS = 8
Sketch = tuple[int, ...]
"""A gradient seen from SKETCH_NUMBERS sides, in units of 1/SKETCH_UNIT of its norm (section 7)."""
SKETCH_UNIT = 10**5
MOST_SKETCH = 10**7  # larger numbers are stated as this
NO_SKETCH: Sketch = (0,) * SKETCH_NUMBERS


def check_sketch(sketch: Sketch) -> None:
    """Raise FormatError for one of another length, or with a number out of range."""
    require(len(sketch) == SKETCH_NUMBERS, f"a sketch is not {SKETCH_NUMBERS} numbers", sketch)
    most = max(map(abs, sketch))
    require(most <= MOST_SKETCH, f"a sketch has a number beyond {MOST_SKETCH}", most)


@dataclass(frozen=True)
class Deviation:
    """How far a served local step is from the auditor's own, from the same served start (section 7).

    `norm_ppb` and `peak_ppm` are of the gradient, by array: its norm, and its largest element. `step_milli`
    is of the optimizer, in thousandths of what rounding allows. `loss_ppm` is of the loss. `own` is the
    digest of the leaf that the auditor got, `sketch` is of its gradient: it was told before the end of the
    step was served, and cannot be told without doing the step. NO_SKETCH where nothing finite came of it.
    """

    loss_ppm: int
    norm_ppb: int
    own: str
    peak_ppm: int
    step_milli: int
    sketch: Sketch = NO_SKETCH

    def __post_init__(self) -> None:
        require_digests("sha256", self.own)
        require_counts(self.loss_ppm, self.norm_ppb, self.peak_ppm, self.step_milli)
        check_sketch(self.sketch)


@dataclass(frozen=True)
class ServedStep:
    """The sketch of a step as it was served, and by how much rounding alone may put another one off."""

    sketch: Sketch
    rounding: int


@dataclass(frozen=True)
class Thresholds:
    """The most of each that an honest step shows between two classes."""

    loss_ppm: int
    norm_ppb: int
    peak_ppm: int
    step_milli: int

    def exceeded_by(self, deviation: Deviation) -> bool:
        """Whether any part of a deviation is above its threshold."""
        return (
            deviation.loss_ppm > self.loss_ppm
            or deviation.norm_ppb > self.norm_ppb
            or deviation.peak_ppm > self.peak_ppm
            or deviation.step_milli > self.step_milli
        )

    def covers(self, served: ServedStep, told: Sketch) -> bool:
        """Whether a sketch can be of a gradient that is as near to the served one as `norm_ppb` allows.

        Eight times the norm: of a difference that is not chosen by who knows the signs, a sum with random
        signs is larger with a chance below 3e-14 (Hoeffding's inequality). Of a served gradient without
        a norm none is: nobody passes such a step.
        """
        most = 8 * self.norm_ppb // 10_000 + 2 + served.rounding
        pairs = zip(served.sketch, told, strict=True)
        return served.sketch != NO_SKETCH and all(abs(one - other) <= most for one, other in pairs)


class Party(Protocol):
    """A roster entry or an auditor, as far as eligibility goes."""

    @property
    def operator(self) -> str:
        """Whose machine it is."""

    @property
    def numerics_class(self) -> str:
        """What its bits depend on."""


P = TypeVar("P", bound=Party)


Tolerances = Sequence[Mapping[str, Any]]  # `audit.tolerance` of the manifest's configuration


def thresholds(tolerances: Tolerances, one: str, other: str) -> Thresholds | None:
    """What `tolerances` allow between two classes; None when they have nothing on them."""
    for item in tolerances:
        if sorted(item["classes"]) == sorted((one, other)):
            return Thresholds(item["loss_ppm"], item["norm_ppb"], item["peak_ppm"], item["step_milli"])
    return None


def eligible(tolerances: Tolerances, entry: Party, auditors: Sequence[P]) -> tuple[P, ...]:
    """Who may audit `entry`, in order: those of its class, or else those that a tolerance covers."""
    others = [auditor for auditor in auditors if auditor.operator != entry.operator]
    same = tuple(auditor for auditor in others if auditor.numerics_class == entry.numerics_class)
    if same:
        return same
    return tuple(a for a in others if thresholds(tolerances, entry.numerics_class, a.numerics_class))


def rests_on_tolerance(tolerances: Tolerances, entry: Party, auditors: Sequence[Party]) -> bool:
    """Whether nobody can audit `entry` to the bit, but somebody can within a tolerance."""
    able = eligible(tolerances, entry, auditors)
    return bool(able) and able[0].numerics_class != entry.numerics_class
