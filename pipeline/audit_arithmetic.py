"""The arithmetic behind an audit rate: detection, deterrence, vesting, cost.

Owns the formulas as pure functions of plain numbers. Does not own the rules they speak about
(docs/protocol.md, sections 6 and 10) or what a person is shown.

Symbols: p is the audit rate, the chance that a contribution is drawn; d the power, the chance that an audit
of a cheating contribution ends as a fault; n a number of cheats. Draws are independent, so n cheats go
undetected with probability (1 - p d)^n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from verification.errors import UsageError


@dataclass(frozen=True)
class AuditTerms:
    """What of a configuration decides whether cheating pays; rates and power as shares of one."""

    rate: float
    power: float
    second_look: float
    probation_rounds: int
    vest_rounds: int

    def __post_init__(self) -> None:
        for name in ("rate", "power", "second_look"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is out of range", expected="0 to 1", got=value)
        for name in ("probation_rounds", "vest_rounds"):
            value = getattr(self, name)
            if value < 0:
                raise UsageError(f"{name} is out of range", expected="0 or more", got=value)

    @property
    def caught(self) -> float:
        """p d: the chance that one cheat becomes a confirmed fault."""
        return self.rate * self.power


def detection(caught: float, cheats: int) -> float:
    """1 - (1 - pd)^n: the chance that at least one of `cheats` is caught. `caught` is pd."""
    return 1.0 - (1.0 - caught) ** cheats


def cheats_until(caught: float, confidence: float) -> int | None:
    """The least number of cheats caught with probability `confidence`, below 1; None when it never is."""
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

    `gain` is in rounds of credit. Without a stake the penalty is the unvested credit, and a member that
    always worked has `credit.vest_rounds` rounds of it: what was earned in turn t is still unvested when turn
    t + vest_rounds is settled.
    """
    penalty = deterring_penalty(caught, gain)
    if math.isinf(penalty):
        return None
    # 1e-9 of a round is rounding: 0.95 / 0.05 is 19 and a little.
    return max(0, math.ceil(penalty - 1e-9))


def rate_needed(power: float, gain: float, unvested_rounds: float) -> float | None:
    """The least audit rate at which losing `unvested_rounds` of credit outweighs `gain`; None when none is.

    Solves unvested = gain (1 - pd) / (pd) for p.
    """
    if gain <= 0:
        return 0.0
    caught = gain / (gain + unvested_rounds)
    return caught / power if 0 < caught <= power else None


def overhead(terms: AuditTerms) -> float:
    """Recomputed work per accepted work in the long run, all honest: p (1 + s) with second looks s."""
    return terms.rate * (1.0 + terms.second_look)


def overhead_of_run(terms: AuditTerms, rounds: int) -> float:
    """The same over a run's first `rounds`: while on probation everybody is audited every round."""
    probation = min(terms.probation_rounds, rounds)
    audited = probation + (rounds - probation) * terms.rate
    return audited / rounds * (1.0 + terms.second_look)
