"""Audits across numerics classes: who rests on tolerance, and when a deviation is too large.

Owns section 6 of docs/protocol.md where it speaks of tolerance: eligibility, thresholds, and the integers of
a deviation. Does not own how deviations are computed (pipeline/deviation.py), which needs arrays, nor how
thresholds are found (`barnraise calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from verification.encoding import MAX_INTEGER
from verification.fields import require_counts, require_digests

NO_BOUND = MAX_INTEGER  # how a number is stated that has no bound, or is above what a record can hold


@dataclass(frozen=True)
class Deviation:
    """How far a served local step is from the auditor's own, from the same served start (section 7).

    `norm_ppb` and `peak_ppm` are of the gradient, by array: its norm, and its largest element. `step_milli`
    is of the optimizer, in thousandths of what rounding allows. `loss_ppm` is of the loss. `own` is the
    digest of the leaf that the auditor got.
    """

    loss_ppm: int
    norm_ppb: int
    own: str
    peak_ppm: int
    step_milli: int

    def __post_init__(self) -> None:
        require_digests("sha256", self.own)
        require_counts(self.loss_ppm, self.norm_ppb, self.peak_ppm, self.step_milli)


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
