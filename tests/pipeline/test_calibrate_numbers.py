"""Thresholds from honest deviations: what they cover, and what they are never below."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibrate_numbers import (
    LEAST_AUDITS,
    STEP_MILLI,
    fit,
    gumbel_factor,
    normal_factor,
    threshold,
)
from verification.errors import UsageError
from verification.tolerance import NO_BOUND, Deviation

OWN = "sha256:" + "0" * 64
PAIR = ("a", "b")


def deviations(*norms: int, step: int = 300) -> list[Deviation]:
    return [Deviation(loss_ppm=0, norm_ppb=norm, own=OWN, peak_ppm=2, step_milli=step) for norm in norms]


@pytest.mark.parametrize(
    ("count", "rate", "printed"),
    [(10, 0.05, 2.911), (50, 0.05, 2.065), (50, 0.01, 2.862), (100, 0.01, 2.684)],
)
def test_the_factor_is_that_of_the_printed_tables(count: int, rate: float, printed: float) -> None:
    """One-sided tolerance factors at 95 % confidence; Natrella's form comes within a few per cent."""
    assert normal_factor(count, rate) == pytest.approx(printed, rel=0.03)


def test_more_audits_and_a_higher_rate_need_less_room() -> None:
    assert normal_factor(20, 1e-6) > normal_factor(2000, 1e-6) > 4.75
    assert normal_factor(100, 1e-9) > normal_factor(100, 1e-6) > normal_factor(100, 1e-3)
    assert gumbel_factor(1e-9) > gumbel_factor(1e-6) > normal_factor(10**6, 1e-6)


def test_gumbels_factor_is_that_of_its_distribution() -> None:
    dice = np.random.default_rng(1)
    values = dice.gumbel(size=400_000)
    bound = values.mean() + gumbel_factor(0.01) * values.std()
    assert (values > bound).mean() == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("extreme", [False, True])
@given(
    values=st.lists(st.integers(0, NO_BOUND), min_size=LEAST_AUDITS, max_size=40),
    rate=st.floats(1e-9, 0.3),
)
def test_no_threshold_is_below_what_was_seen(extreme: bool, values: list[int], rate: float) -> None:
    found = threshold(values, rate, extreme=extreme)
    assert max(values) <= found <= NO_BOUND
    assert found >= threshold(values, min(0.4, rate * 10), extreme=extreme)
    assert threshold(values, rate, extreme=True) >= threshold(values, rate, extreme=False)


def test_equal_values_have_no_spread() -> None:
    assert threshold([0] * 10, 1e-6, extreme=True) == 0
    assert (
        7 <= threshold([7_000] * 10, 1e-6, extreme=True) - 6_993 <= 20
    )  # but for the rounding up to integers


def test_steps_that_agree_to_the_bit_do_not_widen_the_others() -> None:
    dice = np.random.default_rng(3)
    some = [round(each) for each in np.exp(dice.normal(10, 0.3, 40))]
    mixed = threshold([0] * 100 + some, 1e-6, extreme=False)
    assert mixed == threshold(some, 1e-6, extreme=False)
    assert mixed < 20 * max(some)


def test_a_spread_that_covers_everything_is_not_usable() -> None:
    numbers = [3**index for index in range(24)]
    wide = [Deviation(loss_ppm=0, norm_ppb=n, own=OWN, peak_ppm=n, step_milli=300) for n in numbers]
    assert not fit(PAIR, wide, 1e-6).usable


def test_a_few_units_are_given_room() -> None:
    """Of numbers rounded up, 0 or 1 each time, the next one may well be 2."""
    assert 2 <= threshold([0, 1] * 20, 1e-6, extreme=False) < 30


def test_the_fit_keeps_what_it_promises_of_what_it_assumes() -> None:
    """Of 300 calibrations of 50 audits, 95 % are to be right about one alarm in 100."""
    dice, right = np.random.default_rng(2), 0
    for _ in range(300):
        values = [math.ceil(each) for each in np.exp(dice.normal(8, 0.3, 50))]
        bound = threshold(values, 0.01, extreme=False)
        right += math.log(bound) >= 8 + 2.3263 * 0.3
    assert right >= 0.92 * 300


def test_a_fit_shares_the_rate_and_says_what_it_saw() -> None:
    found = fit(PAIR, deviations(*range(100, 140)), 3e-6)
    assert found.thresholds.norm_ppb == threshold(list(range(100, 140)), 1e-6, extreme=True)
    assert (found.norm_ppb.median, found.norm_ppb.largest) == (119.5, 139)
    assert (found.thresholds.loss_ppm, found.thresholds.step_milli) == (0, STEP_MILLI)
    assert found.rate_by_count == 3 / 40
    assert found.usable
    assert found.rounding_holds
    assert found.hidden_share == found.thresholds.norm_ppb / 1e9
    assert not any(found.thresholds.exceeded_by(each) for each in deviations(*range(100, 140)))


def test_a_step_beyond_rounding_is_said_and_not_made_a_fault() -> None:
    found = fit(PAIR, deviations(*range(100, 140), step=1700), 1e-6)
    assert not found.rounding_holds
    assert found.thresholds.step_milli == 1700


@pytest.mark.parametrize(("count", "rate"), [(LEAST_AUDITS - 1, 1e-6), (20, 0.0), (20, 1.0), (20, math.nan)])
def test_what_cannot_be_fitted(count: int, rate: float) -> None:
    with pytest.raises(UsageError):
        fit(PAIR, deviations(*range(count)), rate)
