"""The numbers behind `barnraise plan`: by kind of cheat, by policy, and the cheapest policy for a target.

Owns which numbers are answered, as `plan --json` prints them. Does not own the formulas
(audit_arithmetic.py), the options (plan_options.py) or the words (plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from pipeline.audit_arithmetic import (
    MILLION,
    Policy,
    Workload,
    audit_cost,
    cheapest,
    detection,
    deterring_penalty,
    false_accusations,
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
from pipeline.plan_options import PlanOptions, Terms, terms_of

TABLE_STEPS = (5, 10, 20, 30, 50)
TABLE_SHARE = Fraction(1, 20)


@dataclass(frozen=True)
class Outlook:
    """What becomes of one kind of cheat; `segments` falsified, None: something after the last step."""

    cheat: str
    segments: int | None
    power: float
    power_exact: str
    caught: float
    detection: float
    rounds_for_95: int | None
    rounds_for_99: int | None
    penalty: float | None
    vest_rounds_needed: int | None
    deters: bool


@dataclass(frozen=True)
class PolicyPlan:
    """A policy, what it finds by kind of cheat, and its compute as shares of the contributors'."""

    rate_ppm: int
    segments: int
    outlooks: tuple[Outlook, ...]
    vest_rounds_needed: int | None
    deters: bool
    audit_cost: float
    overhead: float
    overhead_of_run: float
    auditor_load: float | None


@dataclass(frozen=True)
class CostRow:
    """One step of `steps` audited, everybody in every round: shares of the contributors' compute."""

    steps: int
    power_one_bad: float
    bare: float
    with_boundary: float
    with_second_looks: float


@dataclass(frozen=True)
class Plan:
    """What `plan --json` prints: shares of one, rounds of credit; None where no number is enough."""

    second_look_ppm: int
    steps: tuple[int, ...]
    trace_every: int
    segment_counts: tuple[int, ...]
    auditors: int
    tolerance: float
    boundary_cost: float
    gain: float
    within_rounds: int
    target_detection: float
    cheat_segments: int
    vest_rounds: int
    lag: int
    tolerance_cap: float | None
    probation_rounds: int
    rounds: int
    policy: PolicyPlan
    full: PolicyPlan
    deters_after_probation: bool
    false_alarm_rate: float
    false_accusations_if_independent: float
    false_accusations_if_same_cause: float
    cheapest: PolicyPlan | None
    steps_for_5_percent: int
    steps_for_5_percent_with_all: int
    cost_table: tuple[CostRow, ...]
    warnings: tuple[str, ...]


def plan(options: PlanOptions) -> Plan:
    """The numbers. Raises UsageError for an option out of range or a configuration that cannot be read."""
    terms = terms_of(options)
    work, target, policy = terms.work, terms.target, terms.policy
    planned = policy_plan(terms, policy)
    best = cheapest(work, target, policy.second_look_ppm)
    # A member that is just out of probation has earned no more than that.
    needed = planned.vest_rounds_needed
    at_first = needed is not None and min(terms.vest, vesting_for(terms.probation, terms.lag)) >= needed
    # Without two operators to look, no fault is confirmed, right or wrong.
    alarm = terms.alarm if terms.auditors > 1 else 0.0
    wrongful = wrongful_fault(alarm, terms.auditors, policy.second_look_ppm / MILLION)
    least, most = false_accusations(float(policy.rate), len(work.steps), alarm, wrongful)
    return Plan(
        second_look_ppm=policy.second_look_ppm,
        steps=work.steps,
        trace_every=work.trace_every,
        segment_counts=work.counts,
        auditors=terms.auditors,
        tolerance=float(work.tolerance),
        boundary_cost=float(work.boundary),
        gain=terms.gain,
        within_rounds=target.rounds,
        target_detection=target.confidence,
        cheat_segments=options.cheat_segments,
        vest_rounds=terms.vest,
        lag=terms.lag,
        tolerance_cap=terms.tolerance_cap,
        probation_rounds=terms.probation,
        rounds=terms.rounds,
        policy=planned,
        full=policy_plan(terms, Policy(policy.rate_ppm, 0, policy.second_look_ppm)),
        deters_after_probation=at_first,
        false_alarm_rate=terms.alarm,
        false_accusations_if_independent=least,
        false_accusations_if_same_cause=most,
        cheapest=policy_plan(terms, best) if best else None,
        steps_for_5_percent=least_steps(TABLE_SHARE, Fraction(0), Fraction(1)),
        steps_for_5_percent_with_all=least_steps(TABLE_SHARE, work.boundary, policy.looks),
        cost_table=tuple(_cost_row(steps, work.boundary, policy.looks) for steps in TABLE_STEPS),
        warnings=tuple(_warnings(terms, planned, at_first)),
    )


def policy_plan(terms: Terms, policy: Policy) -> PolicyPlan:
    """What becomes of every kind of cheat under a policy, and what it costs."""
    work, bad, most = terms.work, terms.target.bad or 1, max(terms.work.counts)
    some = "one false segment" if bad == 1 else f"{bad} false segments"
    kinds: list[tuple[str, int | None]] = [("every segment false", most)]
    kinds += [(some, bad)] if bad < most else []
    kinds += [("false after the last step", None)]
    outlooks = tuple(_outlook(terms, policy, cheat, segments) for cheat, segments in kinds)
    needed = [outlook.vest_rounds_needed for outlook in outlooks]
    compute = overhead(policy, work)
    return PolicyPlan(
        rate_ppm=policy.rate_ppm,
        segments=policy.segments,
        outlooks=outlooks,
        vest_rounds_needed=None if None in needed else max(value for value in needed if value is not None),
        deters=all(outlook.deters for outlook in outlooks),
        audit_cost=float(audit_cost(work, policy.segments)),
        overhead=float(compute),
        overhead_of_run=float(overhead_of_run(policy, work, terms.probation, terms.rounds)),
        auditor_load=float(compute * len(work.steps) / terms.auditors) if terms.auditors else None,
    )


def _outlook(terms: Terms, policy: Policy, cheat: str, segments: int | None) -> Outlook:
    found = weakest_power(terms.work, policy.segments, segments)
    caught = float(policy.rate * found)
    penalty = deterring_penalty(caught, terms.gain)
    unvested = vesting_needed(caught, terms.gain)
    needed = None if unvested is None else vesting_for(unvested, terms.lag)
    return Outlook(
        cheat=cheat,
        segments=segments,
        power=float(found),
        power_exact=str(found),
        caught=caught,
        detection=detection(caught, terms.target.rounds),
        rounds_for_95=rounds_until(caught, 0.95),
        rounds_for_99=rounds_until(caught, 0.99),
        penalty=None if math.isinf(penalty) else penalty,
        vest_rounds_needed=needed,
        deters=unvested is not None and unvested_when_caught(terms.vest, terms.lag) >= unvested,
    )


def _cost_row(steps: int, boundary: Fraction, looks: Fraction) -> CostRow:
    bare, whole = Workload((steps,), 1), Workload((steps,), 1, boundary)
    return CostRow(
        steps=steps,
        power_one_bad=float(power(steps, 1, 1)),
        bare=float(audit_cost(bare, 1)),
        with_boundary=float(audit_cost(whole, 1)),
        with_second_looks=float(looks * audit_cost(whole, 1)),
    )


def _warnings(terms: Terms, planned: PolicyPlan, at_first: bool) -> Iterator[str]:
    if terms.auditors < 2:
        several = "" if terms.auditors == 1 else "s"
        yield (
            f"{terms.auditors} auditor{several} cannot confirm a fault, which takes two operators: a failed "
            "audit costs the round's credit and nothing else."
        )
    elif terms.auditors == 2:
        yield (
            "Of two auditors that contradict one another neither prevails: the contributor loses the round, "
            "whoever lied. A third, of another operator, lets disputes be settled."
        )
    if not planned.deters:
        yield "A cheat pays on average: audit more, or vest later."
    elif not at_first:
        yield (
            f"A newcomer has {terms.probation} rounds of credit to lose when probation ends, too few to "
            "deter its first cheat; the stake grows with every round."
        )
    if terms.lag and terms.vest <= terms.lag:
        yield f"credit.vest_rounds has to be above audit.lag, {terms.lag}: what has vested is not taken back."
    if terms.measured_time:
        yield "The coordinator's clock sets the local steps of this run: these are the ones it starts from."
