import itertools
import math
import random
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audit_arithmetic import (
    MILLION,
    RATE_STEP_PPM,
    Policy,
    Target,
    Workload,
    audit_cost,
    candidates,
    cheapest,
    detection,
    deterring_penalty,
    false_accusations,
    least_rate_ppm,
    least_steps,
    overhead,
    overhead_of_run,
    power,
    rounds_until,
    unvested_when_caught,
    vesting_for,
    vesting_needed,
    weakest_power,
    wrongful_fault,
)
from verification.credits import LateResult, Standing, TurnResult, after_settlement, after_turn
from verification.disputes import prevailing, takes_another
from verification.errors import UsageError
from verification.records import Claim, Verdict

SHARES = st.floats(min_value=1e-4, max_value=1.0)
PARTS = st.fractions(min_value=0, max_value=1, max_denominator=20)


@st.composite
def looks(draw: st.DrawFn, most: int = 40) -> tuple[int, int, int]:
    """(segments, drawn, false)."""
    count = draw(st.integers(1, most))
    return count, draw(st.integers(0, count)), draw(st.integers(0, count))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    steps = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    return Workload(
        tuple(steps),
        draw(st.integers(1, 4)),
        draw(PARTS),
        draw(st.sampled_from([Fraction(0), Fraction(1, 5)])),
    )


@given(looks(most=7), PARTS)
def test_power_is_what_enumeration_gives(look: tuple[int, int, int], tolerance: Fraction) -> None:
    count, looked, bad = look
    draws = list(itertools.combinations(range(count), looked))
    missed = sum((tolerance ** sum(segment < bad for segment in drawn) for drawn in draws), Fraction(0))
    assert power(count, looked, bad, tolerance) == 1 - missed / len(draws)


@given(looks(), PARTS)
def test_power_lies_between_none_and_all_and_rises(look: tuple[int, int, int], tolerance: Fraction) -> None:
    count, looked, bad = look
    found = power(count, looked, bad, tolerance)
    assert 0 <= found <= power(count, looked, bad) <= 1
    assert (found == 0) == (looked == 0 or bad == 0 or tolerance == 1)
    assert looked == count or power(count, looked + 1, bad, tolerance) >= found
    assert bad == count or power(count, looked, bad + 1, tolerance) >= found
    assert power(count, bad, looked, tolerance) == found


@pytest.mark.parametrize(
    ("count", "looked", "bad", "expected"),
    [
        (20, 1, 1, "1/20"),
        (20, 1, 20, "1"),
        (20, 20, 1, "1"),
        (10, 3, 2, "8/15"),
        (4, 2, 3, "1"),
        (4, 0, 4, "0"),
    ],
)
def test_powers_known_by_hand(count: int, looked: int, bad: int, expected: str) -> None:
    assert power(count, looked, bad) == Fraction(expected)


@given(workloads(), st.integers(0, 14), st.integers(1, 14))
def test_the_weakest_power_is_somebodys_and_nobodys_is_less(work: Workload, segments: int, bad: int) -> None:
    each = [
        power(n, n if segments == 0 else min(segments, n), min(bad, n), work.tolerance) for n in work.counts
    ]
    assert weakest_power(work, segments, bad) == min(each)
    assert weakest_power(work, 0, bad) >= weakest_power(work, segments, bad)


def test_what_follows_the_steps_is_always_looked_at() -> None:
    assert weakest_power(Workload((20,), 1), 1, None) == 1
    assert weakest_power(Workload((20,), 1, tolerance=Fraction(1, 4)), 1, None) == Fraction(3, 4)


@pytest.mark.parametrize(
    ("caught", "for_95", "for_99"), [(0.05, 59, 90), (0.1, 29, 44), (1.0, 1, 1), (0.99, 1, 1)]
)
def test_the_known_counts_of_rounds(caught: float, for_95: int, for_99: int) -> None:
    assert (rounds_until(caught, 0.95), rounds_until(caught, 0.99)) == (for_95, for_99)


def test_nothing_is_caught_without_audits() -> None:
    assert rounds_until(0.0, 0.95) is None
    assert vesting_needed(0.0, 1.0) is None
    assert math.isinf(deterring_penalty(0.0, 1.0))
    assert detection(0.0, 1000) == 0.0


@given(SHARES, st.sampled_from([0.5, 0.95, 0.99]))
def test_rounds_until_is_the_least_number(caught: float, confidence: float) -> None:
    rounds = rounds_until(caught, confidence)
    assert rounds is not None
    assert detection(caught, rounds) >= confidence
    assert rounds == 1 or detection(caught, rounds - 1) < confidence


@given(SHARES, st.floats(min_value=0.01, max_value=100.0))
def test_the_deterring_penalty_makes_a_cheat_worth_nothing(caught: float, gain: float) -> None:
    penalty = deterring_penalty(caught, gain)
    assert (1 - caught) * gain - caught * penalty == pytest.approx(0.0, abs=1e-9 * gain)


@given(SHARES, st.floats(min_value=0.1, max_value=10.0))
def test_the_vesting_needed_is_the_least_that_deters(caught: float, gain: float) -> None:
    needed = vesting_needed(caught, gain)
    assert needed is not None
    assert caught * needed >= (1 - caught) * gain - 1e-6
    assert needed == 0 or caught * (needed - 1) < (1 - caught) * gain


def test_vesting_of_the_measured_example() -> None:
    assert vesting_needed(0.05, 1.0) == 19
    assert vesting_needed(0.05, 2.0) == 38
    assert vesting_needed(1.0, 1.0) == 0


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
    trials, rate, count, looked, bad = 20_000, 0.4, 10, 2, 3
    found = sum(
        any(dice.random() < rate and min(dice.sample(range(count), looked)) < bad for _ in range(6))
        for _ in range(trials)
    )
    assert found / trials == pytest.approx(detection(rate * float(power(count, looked, bad)), 6), abs=0.012)


@pytest.mark.parametrize(("vest", "lag"), [(5, 1), (5, 2), (5, 3), (2, 1), (4, 3)])
def test_what_is_unvested_when_a_lagging_audit_finds_a_cheat(vest: int, lag: int) -> None:
    """Of a member that always worked, and cheated in turn 10: from the rules of credit themselves."""
    standings = {"c00": Standing()}
    for turn in range(10 + lag + 1):
        result = TurnResult(turn, [("c00", 1)], {"c00": True})
        standings = after_turn(standings, result, vest_rounds=vest, strikes=2)
    removed = [("c00", turn, 1) for turn in range(10, 10 + lag + 1)]
    caught = after_settlement(standings, LateResult(10, removed, faults={"c00"}))["c00"]
    assert caught.forfeited == unvested_when_caught(vest, lag)
    assert unvested_when_caught(vesting_for(caught.forfeited, lag), lag) == caught.forfeited
    assert vesting_for(caught.forfeited, lag) <= vest


def test_without_a_lag_all_that_vests_later_is_at_stake() -> None:
    assert (unvested_when_caught(7, 0), vesting_for(7, 0)) == (7, 7)


def said(operator: int, outcome: Literal["pass", "fail"]) -> Verdict:
    """A verdict; all that fail find the same."""
    found = "blake3:" + ("00" if outcome == "pass" else "11") * 32
    differs: tuple[Claim, ...] = () if outcome == "pass" else ("payload",)
    place = (1, "sha256:" + "00" * 32, 1, 0, 0, operator + 1, f"a{operator}", "")
    return Verdict(*place, outcome, differs, found, "blake3:" + "00" * 32, (), None, 0, (), "class")


def faults(errs: tuple[bool, ...], *, looked_twice: bool) -> bool:
    """Whether honest work ends as a fault, by the rules of disputes themselves: who errs, in their order."""
    outcomes: list[Literal["pass", "fail"]] = ["fail" if err else "pass" for err in errs]
    if outcomes[0] == "pass" and not looked_twice:
        return False
    verdicts = [said(i, outcome) for i, outcome in enumerate(outcomes[:2])]
    failed = prevailing(verdicts)
    appealed = failed is not None and failed[0] == "fail"
    while len(verdicts) < len(outcomes) and takes_another(verdicts, appealed=appealed):
        verdicts.append(said(len(verdicts), outcomes[len(verdicts)]))
    side = prevailing(verdicts)
    return side is not None and side[0] == "fail"


@pytest.mark.parametrize("operators", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("second_look", [0.0, 0.3, 1.0])
def test_a_wrongful_fault_is_as_likely_as_the_rules_of_disputes_make_it(
    operators: int, second_look: float
) -> None:
    alarm, expected = 0.2, 0.0
    for errs in itertools.product((False, True), repeat=operators):
        chance = math.prod(alarm if err else 1 - alarm for err in errs)
        twice = second_look * faults(errs, looked_twice=True) + (1 - second_look) * faults(
            errs, looked_twice=False
        )
        expected += chance * (faults(errs, looked_twice=False) if errs[0] else twice)
    assert wrongful_fault(alarm, operators, second_look) == pytest.approx(expected, rel=1e-12)


def test_one_operator_cannot_bring_about_a_fault() -> None:
    assert wrongful_fault(1.0, 1, 1.0) == 0.0
    assert wrongful_fault(1.0, 2, 0.0) == 1.0


def test_false_accusations_are_bounded_from_both_sides() -> None:
    assert false_accusations(0.1, 8, 0.0, 0.0) == (0.0, 0.0)
    assert false_accusations(0.1, 8, 0.001, 0.000001) == pytest.approx((0.0008, 0.8))
    assert false_accusations(1.0, 1, 1.0, 1.0, rounds=7) == (7.0, 7.0)
    assert false_accusations(1.0, 1, 0.1, 0.2, rounds=10) == pytest.approx((1.0, 1.0))


@given(workloads(), st.integers(1, 12))
def test_the_cost_of_an_audit_is_the_mean_over_all_draws(work: Workload, segments: int) -> None:
    total = Fraction(0)
    for steps, count in zip(work.steps, work.counts, strict=True):
        sizes = [min(work.trace_every, steps - work.trace_every * i) for i in range(count)]
        draws = list(itertools.combinations(sizes, min(segments, count)))
        total += Fraction(sum(map(sum, draws)), len(draws)) + work.boundary
    assert audit_cost(work, segments) == total / (sum(work.steps) + work.boundary * len(work.steps))
    assert audit_cost(work, segments) <= audit_cost(work, segments + 1) <= audit_cost(work, 0) == 1


def test_overhead_counts_second_looks_and_probation() -> None:
    policy, work = Policy(100_000, 0, 500_000), Workload((8, 4), 4, Fraction(1, 2))
    assert overhead(policy, work) == Fraction(15, 100)
    assert overhead_of_run(policy, work, 10, 10) == Fraction(3, 2)
    assert overhead_of_run(policy, work, 10, 20) == Fraction(11, 20) * Fraction(3, 2)
    assert overhead_of_run(policy, work, 10, 4) == Fraction(3, 2)
    some = Policy(100_000, 1, 500_000)
    assert overhead(some, work) == Fraction(15, 100) * Fraction(4 + 4 + 1, 8 + 4 + 1)
    assert overhead_of_run(some, work, 10, 20) == (10 * Fraction(3, 2) + 10 * overhead(some, work)) / 20


@given(
    st.fractions(min_value=Fraction(1, 100), max_value=1, max_denominator=100),
    st.fractions(min_value=0, max_value=5, max_denominator=20),
    st.fractions(min_value=1, max_value=2, max_denominator=20),
)
def test_least_steps_is_the_least_number(share: Fraction, boundary: Fraction, looked: Fraction) -> None:
    def cost(steps: int) -> Fraction:
        return looked * audit_cost(Workload((steps,), 1, boundary), 1)

    steps = least_steps(share, boundary, looked)
    if looked > share:
        assert cost(steps) <= share
    assert steps == 1 or cost(steps - 1) > share


def test_five_percent_takes_twenty_segments() -> None:
    assert least_steps(Fraction(1, 20), Fraction(0), Fraction(1)) == 20
    assert [float(audit_cost(Workload((steps,), 1), 1)) for steps in (20, 50)] == [0.05, 0.02]


TARGETS = st.builds(
    Target, st.floats(0.05, 0.999), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 5))
)


def assert_none_is_cheaper(work: Workload, target: Target, policy: Policy) -> None:
    best = cheapest(work, target, policy.second_look_ppm)
    if target.met(policy.rate_ppm, weakest_power(work, policy.segments, target.bad)):
        assert best is not None
        key, least = ((overhead(one, work), -one.rate_ppm) for one in (policy, best))
        assert least <= key
    if best is not None:
        assert target.met(best.rate_ppm, weakest_power(work, best.segments, target.bad))


@settings(deadline=None)
@given(workloads(), TARGETS, st.integers(1, MILLION // RATE_STEP_PPM), st.integers(0, 12), st.just(100_000))
def test_no_policy_is_cheaper(work: Workload, target: Target, steps: int, segments: int, second: int) -> None:
    assert_none_is_cheaper(work, target, Policy(steps * RATE_STEP_PPM, segments, second))


@pytest.mark.parametrize("bad", [1, 2, 4, None])
@pytest.mark.parametrize("boundary", [Fraction(0), Fraction(1, 3)])
def test_the_cheapest_policy_is_the_cheapest_of_all(bad: int | None, boundary: Fraction) -> None:
    work, target = Workload((8, 4), 2, boundary), Target(0.9, 5, bad)
    best = cheapest(work, target, 0)
    reached: list[tuple[Fraction, int]] = []
    for segments in range(1, 5):
        found, cost = weakest_power(work, segments, bad), audit_cost(work, segments)
        reached += [
            (rate * cost, -rate)
            for rate in range(RATE_STEP_PPM, MILLION + 1, RATE_STEP_PPM)
            if 1 - (1 - rate / MILLION * float(found)) ** 5 >= 0.9
        ]
    assert best is not None
    assert (overhead(best, work) * MILLION, -best.rate_ppm) == min(reached)


@settings(deadline=None)
@given(workloads(), TARGETS)
def test_no_candidate_can_do_with_a_lower_rate(work: Workload, target: Target) -> None:
    for policy in candidates(work, target, 0):
        found = weakest_power(work, policy.segments, target.bad)
        assert target.met(policy.rate_ppm, found)
        assert not target.met(policy.rate_ppm - RATE_STEP_PPM, found)


@given(SHARES, TARGETS, st.integers(0, MILLION), st.integers(0, MILLION))
def test_detection_rises_with_the_rate(found: float, target: Target, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert target.met(low, Fraction(found)) <= target.met(high, Fraction(found))


def test_cheapest_policies_known_by_hand() -> None:
    work = Workload((20,), 1, Fraction(1, 10))
    # One false segment: what is drawn costs what it finds, and each audit a boundary: rather few, full ones.
    assert cheapest(work, Target(0.95, 20, 1), 0) == Policy(139_200, 0, 0)
    # With every segment false one is enough; so it is for what follows the steps.
    assert cheapest(work, Target(0.95, 20, 20), 0) == Policy(139_200, 1, 0)
    assert cheapest(work, Target(0.95, 20, None), 0) == Policy(139_200, 1, 0)
    # A boundary that costs nothing: of policies as cheap the one that looks at most slots.
    assert cheapest(Workload((4,), 1), Target(0.5, 1, 2), 0) == Policy(1_000_000, 1, 0)


def test_what_no_policy_reaches_is_none() -> None:
    work = Workload((4,), 1, tolerance=Fraction(1, 2))
    assert least_rate_ppm(Target(0.9, 1, 1), Fraction(1, 2)) is None
    assert cheapest(work, Target(0.9, 1, 1), 0) is None


@pytest.mark.parametrize("wrong", [(1_000_001, 0, 0), (-1, 0, 0), (0, 0, 1_000_001), (0, -1, 0)])
def test_policies_out_of_range_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Policy(*wrong)


@pytest.mark.parametrize(
    "wrong",
    [((), 1), ((4, 0), 1), ((4,), 0), ((4,), 1, Fraction(-1)), ((4,), 1, Fraction(0), Fraction(2))],
)
def test_workloads_out_of_range_are_refused(wrong: tuple[tuple[int, ...], int]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Workload(*wrong)


@pytest.mark.parametrize("wrong", [(0.0, 1, 1), (1.0, 1, 1), (math.nan, 1, 1), (0.5, 0, 1), (0.5, 1, 0)])
def test_targets_out_of_range_are_refused(wrong: tuple[float, int, int]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Target(*wrong)
