"""Thresholds from honest deviations, and what they leave to a forger that knows them.

Owns the fit and its words about probability. Pure: no arrays, no processes. Does not own the deviations
(deviation.py) or how they are come by (calibrate_workers.py).

A threshold is for a rate of false alarms per audit, shared equally by the three numbers that are fitted. Each
is the largest of: the largest seen; a one-sided tolerance bound for the normal distribution of the logarithms
(Natrella, Experimental Statistics, 1963, section 2), which holds with 95 % confidence for this many audits;
and, for norm and peak, which are largest ones of arrays and elements, the same for Gumbel's distribution of
extremes (1958), by its moments: their tails are heavy, as now and then some array's gradient happens to be
small. `step_milli` is not fitted: rounding bounds it by 1000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, variance

from verification.errors import UsageError
from verification.tolerance import NO_BOUND, Deviation, Thresholds

_CONFIDENCE = 0.95
_FITTED = ("loss_ppm", "norm_ppb", "peak_ppm")
LEAST_AUDITS = 8  # fewer have no spread to speak of
STEP_MILLI = 1_000  # what rounding allows, by definition
MOST_HIDDEN = 0.5  # of a gradient; whoever may change more may as well replace it
_EULER = 0.5772156649015329


@dataclass(frozen=True)
class Spread:
    """One number over all audits of a pair."""

    median: float
    largest: int


@dataclass(frozen=True)
class Fit:
    """What a pair of classes showed, and the thresholds that follow."""

    classes: tuple[str, str]
    audits: int
    loss_ppm: Spread
    norm_ppb: Spread
    peak_ppm: Spread
    step_milli: Spread
    thresholds: Thresholds

    @property
    def rate_by_count(self) -> float:
        """No audit of so many being above a threshold, the rate of false alarms is below this, at 95 %."""
        return min(1.0, 3 / self.audits)

    @property
    def hidden_share(self) -> float:
        """How large a change of an array's gradient can stay unseen in one step, relative to its norm.

        Elements that are each at most p·(rms + |g|) have together a norm of at most 2p, by Minkowski.
        """
        return min(self.thresholds.norm_ppb / 1e9, 2 * self.thresholds.peak_ppm / 1e6)

    @property
    def usable(self) -> bool:
        """Whether the thresholds still say something: they leave less than half of a gradient unseen."""
        return self.hidden_share < MOST_HIDDEN

    @property
    def rounding_holds(self) -> bool:
        """Whether every optimizer step was within what rounding allows, as it must be."""
        return self.step_milli.largest <= STEP_MILLI


def fit(classes: tuple[str, str], deviations: Sequence[Deviation], false_alarm: float) -> Fit:
    """Thresholds between two classes for `false_alarm` per audit, from honest deviations.

    Raises UsageError for too few of them, and for a rate that is none.
    """
    if not 0 < false_alarm < 1:
        raise UsageError("the rate of false alarms is out of range", expected="0 to 1", got=false_alarm)
    if len(deviations) < LEAST_AUDITS:
        raise UsageError(
            "too few audits for a threshold", expected=f"at least {LEAST_AUDITS}", got=len(deviations)
        )
    numbers = {
        name: [getattr(deviation, name) for deviation in deviations] for name in (*_FITTED, "step_milli")
    }
    share = false_alarm / len(_FITTED)
    found = {name: threshold(numbers[name], share, extreme=name != "loss_ppm") for name in _FITTED}
    spreads = {name: Spread(median(values), max(values)) for name, values in numbers.items()}
    # Above 1000 is a fault in the bound or in the machine; honest work is not to be accused of it.
    found["step_milli"] = max(STEP_MILLI, spreads["step_milli"].largest)
    return Fit(classes, len(deviations), **spreads, thresholds=Thresholds(**found))


def threshold(values: Sequence[int], rate: float, *, extreme: bool) -> int:
    """The least whole number that honest values are above with a probability of at most `rate`, as fitted.

    Of the logarithms of value + 1, the numbers having been rounded up, whose error is part of the spread.
    Where some steps agree to the bit, the others are fitted alone: a mixture has no spread of its own, and
    leaving zeros out only makes the bound larger than it need be.
    """
    above = [value for value in values if value]
    told = above if len(above) >= LEAST_AUDITS else values
    logs = [math.log(value + 1) for value in told]
    rounding = fmean(1 / (12 * (value + 1) ** 2) for value in told) if above else 0.0
    middle, spread = fmean(logs), math.sqrt(variance(logs) + rounding)
    widths = [normal_factor(len(logs), rate)]
    if extreme:
        widths.append(gumbel_factor(rate) * widths[0] / NormalDist().inv_cdf(1 - rate))
    bound = math.expm1(min(middle + max(widths) * spread, math.log(NO_BOUND)))
    return min(NO_BOUND, max(math.ceil(bound), *values))


def normal_factor(count: int, rate: float) -> float:
    """Standard deviations above the mean of `count` values that cover all but `rate` with 95 % confidence."""
    z, c = NormalDist().inv_cdf(1 - rate), NormalDist().inv_cdf(_CONFIDENCE)
    a = 1 - c * c / (2 * (count - 1))
    b = z * z - c * c / count
    return (z + math.sqrt(max(0.0, z * z - a * b))) / a


def gumbel_factor(rate: float) -> float:
    """Standard deviations above the mean that an extreme of Gumbel's distribution exceeds with `rate`."""
    return (-math.log(-math.log1p(-rate)) - _EULER) * math.sqrt(6) / math.pi
