"""What can be typed after `barnraise plan`, and what it means together with a configuration.

Owns the options and their checks. Does not own the numbers (plan_numbers.py) or the words (plan.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipeline.audit_arithmetic import MILLION, Policy, Target, Workload
from pipeline.config import (
    ENTRY_BYTES,
    LEAF_BYTES,
    AuditConfig,
    CreditConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from verification.errors import UsageError

# A verdict, with the round's trace and its boundary, must fit a log entry.
MOST_SEGMENTS = ENTRY_BYTES // LEAF_BYTES - 1


@dataclass(frozen=True)
class PlanOptions:
    """What an audit policy detects, deters and costs, and the cheapest policy for a target."""

    config: Path | None = None
    """Take what is not given from this configuration; without it, from the defaults."""
    rate: float | None = None
    """Audit rate after probation, 0 to 1."""
    segments: int | None = None
    """Segments that an audit draws after probation; 0: all of them, a full replay."""
    second_look: float | None = None
    """Share of passed audits that a second auditor repeats, 0 to 1."""
    steps: tuple[int, ...] | None = None
    """Local steps of each contributor, and so how many there are."""
    trace_every: int | None = None
    """Local steps of one segment."""
    auditors: int | None = None
    """How many auditors share the work."""
    vest_rounds: int | None = None
    """Turns until earned credit vests."""
    lag: int | None = None
    """Turns by which a turn's audits may end later than it closes."""
    probation_rounds: int | None = None
    """Accepted contributions that are all audited in full, at first."""
    gain: float = 1.0
    """What one undetected cheat is worth, in rounds of a contributor's credit."""
    cheat_segments: int = 1
    """Segments that the cheat in question falsifies, each round."""
    within_rounds: int = 20
    """Rounds in which it is to be found."""
    target_detection: float = 0.95
    """With which probability it is to be found, for the cheapest policy."""
    tolerance: float = 0.0
    """Chance that a false segment that is looked at passes: 0 where audits ask for equal bits."""
    false_alarm_rate: float = 0.0
    """Chance that one audit of honest work fails, or a bound on it: 3/N after N clean audits."""
    boundary_cost: float = 0.12
    """Cost of what follows the last local step, in local steps: assumed, see the printed note."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class Terms:
    """Options and configuration, put together and checked."""

    policy: Policy
    work: Workload
    target: Target
    auditors: int
    vest: int
    lag: int
    tolerance_cap: float | None
    probation: int
    rounds: int
    gain: float
    alarm: float
    measured_time: bool


def terms_of(options: PlanOptions) -> Terms:
    """What is planned for. Raises UsageError for an option out of range or an unreadable configuration."""
    config = load_config(options.config) if options.config else None
    audit = config.audit if config else AuditConfig()
    train = config.train if config else TrainConfig()
    policy = Policy(
        rate_ppm=_ppm("rate", options.rate, audit.rate_ppm),
        segments=_or(options.segments, audit.segments),
        second_look_ppm=_ppm("second_look", options.second_look, audit.second_look_ppm),
    )
    work = Workload(
        steps=train.steps if options.steps is None else options.steps,
        trace_every=_or(options.trace_every, train.trace_every),
        boundary=_fraction("boundary_cost", options.boundary_cost, math.inf),
        tolerance=_fraction("tolerance", options.tolerance, 1),
    )
    if max(work.counts) > MOST_SEGMENTS:
        raise UsageError(
            "too many segments a round", expected=f"at most {MOST_SEGMENTS}", got=max(work.counts)
        )
    if not 0 < options.gain < math.inf:
        raise UsageError("gain is out of range", expected="more than 0", got=options.gain)
    vest = (config.credit if config else CreditConfig()).vest_rounds
    return Terms(
        policy=policy,
        work=work,
        target=Target(options.target_detection, options.within_rounds, options.cheat_segments),
        auditors=_count("auditors", options.auditors, audit.auditors),
        vest=_count("vest_rounds", options.vest_rounds, vest),
        lag=_count("lag", options.lag, audit.lag),
        tolerance_cap=audit.tolerance_cap_ppm / MILLION if audit.tolerance else None,
        probation=_count("probation_rounds", options.probation_rounds, audit.probation_rounds),
        rounds=(config.run if config else RunConfig()).rounds,
        gain=options.gain,
        alarm=float(_fraction("false_alarm_rate", options.false_alarm_rate, 1)),
        measured_time=config is not None and config.timing.mode == "measured" and options.steps is None,
    )


def _or(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _count(name: str, given: int | None, otherwise: int) -> int:
    value = _or(given, otherwise)
    if value < 0:
        raise UsageError(f"{name} is out of range", expected="0 or more", got=value)
    return value


def _fraction(name: str, value: float, most: float) -> Fraction:
    """The number as it was typed, exactly: 0.1 is a tenth."""
    if not 0 <= value <= most or math.isinf(value):
        span = f"0 to {most:g}" if most < math.inf else "0 or more"
        raise UsageError(f"{name} is out of range", expected=span, got=value)
    return Fraction(repr(value))


def _ppm(name: str, share: float | None, otherwise: int) -> int:
    return otherwise if share is None else round(_fraction(name, share, 1) * MILLION)
