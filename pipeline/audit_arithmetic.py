"""The arithmetic behind an audit policy: power, detection, deterrence, vesting, cost, the cheapest policy.

Owns the formulas as pure functions of plain numbers. Does not own the rules they speak about
(docs/protocol.md, sections 6, 7 and 10) or what a person is shown.

Symbols: p is the audit rate, the chance that a contribution is drawn; n its segments, k of which an audit
draws; b of them are false; d the power, the chance that an audit of a cheating contribution ends as a fault.
Draws are independent, so a cheat repeated over N rounds goes undetected with probability (1 - p d)^N.
Powers and costs are exact fractions; what is raised to a power of N is a float.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from verification.errors import UsageError
from verification.segments import segment_count

MILLION = 1_000_000
# Rates are searched in hundredths of a percent: finer ones change nothing that anybody could measure.
RATE_STEP_PPM = 100


@dataclass(frozen=True)
class Policy:
    """How often is looked, and how much of what is drawn; `segments` 0 is all of them."""

    rate_ppm: int
    segments: int
    second_look_ppm: int

    def __post_init__(self) -> None:
        for name in ("rate_ppm", "second_look_ppm"):
            value = getattr(self, name)
            if not 0 <= value <= MILLION:
                raise UsageError(f"{name} is out of range", expected="0 to 1000000", got=value)
        if self.segments < 0:
            raise UsageError("segments is out of range", expected="0 or more", got=self.segments)

    @property
    def rate(self) -> Fraction:
        """p, once probation is over."""
        return Fraction(self.rate_ppm, MILLION)

    @property
    def looks(self) -> Fraction:
        """Audits for each slot drawn when all are honest: 1 + s, with second looks s."""
        return 1 + Fraction(self.second_look_ppm, MILLION)


@dataclass(frozen=True)
class Workload:
    """A round's work by contributor, and what an audit sees of it.

    `boundary`: cost of what follows the last local step, in local steps. `tolerance`: the chance that a
    false place that is looked at passes; 0 where equal bits are asked for.
    """

    steps: tuple[int, ...]
    trace_every: int
    boundary: Fraction = Fraction(0)
    tolerance: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise UsageError("steps is out of range", expected="1 or more, for each", got=self.steps)
        if self.trace_every < 1:
            raise UsageError("trace_every is out of range", expected="1 or more", got=self.trace_every)
        if self.boundary < 0:
            raise UsageError("the boundary's cost is out of range", expected="0 or more", got=self.boundary)
        if not 0 <= self.tolerance <= 1:
            raise UsageError("tolerance is out of range", expected="0 to 1", got=self.tolerance)

    @property
    def counts(self) -> tuple[int, ...]:
        """n of each contributor."""
        return tuple(segment_count(steps, self.trace_every) for steps in self.steps)


def power(count: int, looked: int, bad: int, tolerance: Fraction = Fraction(0)) -> Fraction:
    """The chance that a look at `looked` of `count` segments, `bad` of them false, finds one.

    Hypergeometric: d = 1 - C(n-b, k) / C(n, k). With a tolerance t each false segment among those looked at
    passes with probability t on its own: d = 1 - E[t^X]. Both `looked` and `bad` are 0 to `count`.
    """
    ways = math.comb(count, looked)
    if not tolerance:
        return 1 - Fraction(math.comb(count - bad, looked), ways)
    t, whole = tolerance.as_integer_ratio()
    passing = sum(
        math.comb(bad, x) * math.comb(count - bad, looked - x) * t**x * whole ** (looked - x)
        for x in range(min(bad, looked) + 1)
    )
    return 1 - Fraction(passing, ways * whole**looked)


def weakest_power(work: Workload, segments: int, bad: int | None) -> Fraction:
    """d against a cheat by the contributor where an audit of `segments` (0: all) sees it worst.

    `bad` segments are false, or all that it has if those are fewer; None: something after the last step,
    the boundary, which every audit looks at.
    """
    if bad is None:
        return 1 - work.tolerance
    return min(
        power(n, min(segments, n) if segments else n, min(bad, n), work.tolerance) for n in set(work.counts)
    )


def detection(caught: float, rounds: int) -> float:
    """1 - (1 - pd)^N: the chance that a cheat of every one of N `rounds` is caught. `caught` is pd."""
    return 1.0 - (1.0 - caught) ** rounds


def rounds_until(caught: float, confidence: float) -> int | None:
    """The least rounds of cheating caught with probability `confidence`, below 1; None when it never is."""
    if caught <= 0:
        return None
    if caught >= 1:
        return 1
    guess = max(1, math.floor(math.log1p(-confidence) / math.log1p(-caught)))
    # The quotient of two logarithms may fall on either side of an integer: let the formula itself decide.
    while guess > 1 and detection(caught, guess - 1) >= confidence:
        guess -= 1
    while detection(caught, guess) < confidence:
        guess += 1
    return guess


def deterring_penalty(caught: float, gain: float) -> float:
    """gain (1 - pd) / (pd): the least loss on being caught that makes a cheat worth nothing on average.

    In the unit of `gain`; infinite when nothing is ever caught.
    """
    return gain * (1.0 - caught) / caught if caught > 0 else math.inf


def vesting_needed(caught: float, gain: float) -> int | None:
    """Rounds of credit that must be unvested when a cheat is caught; None when no number is enough.

    `gain` is in rounds of credit. Without a stake the penalty is the unvested credit.
    """
    penalty = deterring_penalty(caught, gain)
    if math.isinf(penalty):
        return None
    # 1e-9 of a round is rounding: 0.95 / 0.05 is 19 and a little.
    return max(0, math.ceil(penalty - 1e-9))


def unvested_when_caught(vest_rounds: int, lag: int) -> int:
    """How many rounds of credit a member that always worked has to lose when a cheat of turn u is found.

    Turn t vests at the close of turn t + vest_rounds, after that turn's faults: so all of the last
    vest_rounds without a lag. With one, the settlement of u comes after the close of u + lag, and of what was
    earned before u there is lag + 1 less; what was earned since is taken back, not forfeited.
    """
    return vest_rounds if lag == 0 else max(0, vest_rounds - lag - 1)


def vesting_for(unvested: int, lag: int) -> int:
    """The least credit.vest_rounds by which that many rounds are unvested when a cheat is caught."""
    return unvested if lag == 0 else unvested + lag + 1


def wrongful_fault(alarm: float, operators: int, second_look: float) -> float:
    """The chance that an audited honest contribution ends as a fault, when audits err independently.

    `alarm` is the chance that one audit of honest work fails; whoever is failed twice appeals, and looks go
    on until a side leads by two, or each of `operators` has judged (docs/protocol.md, section 6, "Disputes").
    """

    def on(fails: int, passes: int, *, appealed: bool) -> float:
        """From here on, `operators` - fails - passes being left to ask."""
        appealed = appealed or (fails, passes) == (2, 0)
        contested = appealed or (fails > 0 and passes > 0)
        lead = abs(fails - passes - appealed)
        over = fails + passes == operators
        if over or (fails + passes >= 2 and (not contested or lead >= 2)):
            return float(fails >= 2 and fails > passes)
        worse, better = on(fails + 1, passes, appealed=appealed), on(fails, passes + 1, appealed=appealed)
        return alarm * worse + (1 - alarm) * better

    if operators < 2:
        return 0.0
    after_pass = second_look * on(0, 1, appealed=False)
    return alarm * on(1, 0, appealed=False) + (1 - alarm) * after_pass


def false_accusations(
    rate: float, contributors: int, alarm: float, wrongful: float, rounds: int = 1000
) -> tuple[float, float]:
    """(least, most) honest contributions expected to end as a fault in `rounds`, all contributors together.

    `wrongful` is the chance of it when audits err independently; when what fools one audit fools them all it
    is `alarm`, the chance that one fails.
    """
    audits = rate * contributors * rounds
    return audits * min(wrongful, alarm), audits * alarm


def audit_cost(work: Workload, segments: int) -> Fraction:
    """Compute of one audit of `segments` (0: all), as a share of the contribution's, over all contributors.

    (H k/n + b) / (H + b) for H local steps and a boundary of b. The mean is exact even when the last segment
    is shorter: each segment is as likely to be drawn as any other.
    """
    boundary = work.boundary * len(work.steps)
    audited = sum(
        Fraction(steps * (min(segments, n) if segments else n), n)
        for steps, n in zip(work.steps, work.counts, strict=True)
    )
    return (audited + boundary) / (sum(work.steps) + boundary)


def overhead(policy: Policy, work: Workload) -> Fraction:
    """Audit compute as a share of the contributors', after probation, all honest: p (1 + s) of an audit's."""
    return policy.rate * policy.looks * audit_cost(work, policy.segments)


def overhead_of_run(policy: Policy, work: Workload, probation: int, rounds: int) -> Fraction:
    """The same over a run's first `rounds`: while on probation everybody is audited in full, every round."""
    first = min(probation, rounds)
    return (first * policy.looks + (rounds - first) * overhead(policy, work)) / rounds


def least_steps(share: Fraction, boundary: Fraction, looks: Fraction) -> int:
    """The least H at which one audited step of H, of everybody in every round, costs at most `share`.

    Solves looks (1 + b) / (H + b) <= share: one segment of one step, k = 1, p = 1. `share` is above 0.
    """
    return max(1, math.ceil(looks * (1 + boundary) / share - boundary))


@dataclass(frozen=True)
class Target:
    """A cheat of `bad` segments (None: the boundary) in each of `rounds` is found with `confidence`."""

    confidence: float
    rounds: int
    bad: int | None

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UsageError(
                "target_detection is out of range", expected="above 0, below 1", got=self.confidence
            )
        if self.rounds < 1:
            raise UsageError("within_rounds is out of range", expected="1 or more", got=self.rounds)
        if self.bad is not None and self.bad < 1:
            raise UsageError("cheat_segments is out of range", expected="1 or more", got=self.bad)

    def met(self, rate_ppm: int, found: Fraction) -> bool:
        """Whether a rate reaches it with audits of power `found`."""
        return detection(float(Fraction(rate_ppm, MILLION) * found), self.rounds) >= self.confidence


def least_rate_ppm(target: Target, found: Fraction) -> int | None:
    """The least rate on the grid that reaches the target with audits of power `found`; None if none does."""
    rates = range(RATE_STEP_PPM, MILLION + 1, RATE_STEP_PPM)
    index = bisect_left(rates, True, key=lambda rate: target.met(rate, found))
    return rates[index] if index < len(rates) else None


def candidates(work: Workload, target: Target, second_look_ppm: int) -> Sequence[Policy]:
    """For each number of segments that reaches the target, the policy with the least rate that does."""
    most = max(work.counts)
    found = ((k, least_rate_ppm(target, weakest_power(work, k, target.bad))) for k in range(1, most + 1))
    # All segments are written as 0: then nobody has to serve a trace.
    return [Policy(rate, k if k < most else 0, second_look_ppm) for k, rate in found if rate is not None]


def cheapest(work: Workload, target: Target, second_look_ppm: int) -> Policy | None:
    """The policy of least compute that reaches the target; of two as cheap the one that looks at more slots.

    A higher rate finds what happens after the last step sooner. None when no policy reaches the target. The
    cost rises with the rate, so that only each k's least rate needs to be looked at.
    """
    found = candidates(work, target, second_look_ppm)
    return min(found, key=lambda policy: (overhead(policy, work), -policy.rate_ppm), default=None)
