import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit_arithmetic import (
    AuditTerms,
    cheats_until,
    detection,
    deterring_penalty,
    overhead,
    overhead_of_run,
    rate_needed,
    vesting_needed,
)
from verification.credits import Standing, TurnResult, after_turn
from verification.errors import UsageError

SHARES = st.floats(min_value=1e-4, max_value=1.0)


@pytest.mark.parametrize(
    ("caught", "for_95", "for_99"), [(0.05, 59, 90), (0.1, 29, 44), (1.0, 1, 1), (0.99, 1, 1)]
)
def test_the_known_counts_of_cheats(caught: float, for_95: int, for_99: int) -> None:
    assert (cheats_until(caught, 0.95), cheats_until(caught, 0.99)) == (for_95, for_99)


def test_nothing_is_caught_without_audits() -> None:
    assert cheats_until(0.0, 0.95) is None
    assert vesting_needed(0.0, 1.0) is None
    assert math.isinf(deterring_penalty(0.0, 1.0))
    assert detection(0.0, 1000) == 0.0


@given(SHARES, st.sampled_from([0.5, 0.95, 0.99]))
def test_cheats_until_is_the_least_number(caught: float, confidence: float) -> None:
    cheats = cheats_until(caught, confidence)
    assert cheats is not None
    assert detection(caught, cheats) >= confidence
    assert cheats == 1 or detection(caught, cheats - 1) < confidence


@given(SHARES, st.floats(min_value=0.01, max_value=100.0))
def test_the_deterring_penalty_makes_a_cheat_worth_nothing(caught: float, gain: float) -> None:
    penalty = deterring_penalty(caught, gain)
    assert (1 - caught) * gain - caught * penalty == pytest.approx(0.0, abs=1e-9 * gain)


def test_vesting_of_the_measured_example() -> None:
    assert vesting_needed(0.05, 1.0) == 19
    assert vesting_needed(0.05, 2.0) == 38
    assert vesting_needed(1.0, 1.0) == 0


@given(SHARES, st.floats(min_value=0.1, max_value=10.0))
def test_rate_and_vesting_answer_the_same_question(power: float, gain: float) -> None:
    unvested = 25
    rate = rate_needed(power, gain, unvested)
    if rate is None:
        needed = vesting_needed(power, gain)
        assert needed is not None
        assert needed > unvested
    else:
        assert rate <= 1
        assert deterring_penalty(rate * power, gain) == pytest.approx(unvested)


def test_the_stake_is_what_credits_really_forfeit() -> None:
    vest = 7
    standings = {"c00": Standing()}
    for turn in range(30):
        result = TurnResult(turn, [("c00", 1)], {"c00": False})
        standings = after_turn(standings, result, vest_rounds=vest, strikes=2)
    caught = after_turn(
        standings, TurnResult(30, rejected={"c00": "failed-audit"}), vest_rounds=vest, strikes=2
    )
    assert caught["c00"].forfeited == vest


def test_detection_agrees_with_a_simulation() -> None:
    dice = random.Random(1)
    trials = 20_000
    found = sum(any(dice.random() < 0.2 * 0.5 for _ in range(6)) for _ in range(trials))
    assert found / trials == pytest.approx(detection(0.2 * 0.5, 6), abs=0.012)


def test_overhead_counts_second_looks_and_probation() -> None:
    terms = AuditTerms(rate=0.1, power=1.0, second_look=0.5, probation_rounds=10, vest_rounds=5)
    assert overhead(terms) == pytest.approx(0.15)
    assert overhead_of_run(terms, 10) == pytest.approx(1.5)
    assert overhead_of_run(terms, 20) == pytest.approx((10 + 1) / 20 * 1.5)
    assert overhead_of_run(terms, 4) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "wrong", [{"rate": 1.1}, {"rate": -0.1}, {"power": 2.0}, {"second_look": math.nan}, {"vest_rounds": -1}]
)
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    fields = {"rate": 0.1, "power": 1.0, "second_look": 0.1, "probation_rounds": 3, "vest_rounds": 10}
    with pytest.raises(UsageError, match=next(iter(wrong))):
        AuditTerms(**{**fields, **wrong})  # type: ignore[arg-type]
