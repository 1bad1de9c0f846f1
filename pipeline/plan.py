"""`barnraise plan`: what an audit rate detects, deters and costs, in words.

Owns options and words. Does not own the formulas: audit_arithmetic.py.
"""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

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
from pipeline.config import AuditConfig, CreditConfig, RunConfig, load_config
from verification.errors import UsageError

PPM = 1e6


@dataclass(frozen=True)
class PlanOptions:
    """What an audit rate detects, deters and costs."""

    config: Path | None = None
    """Take what is not given from this configuration; without it, from the defaults."""
    rate: float | None = None
    """Audit rate after probation, 0 to 1."""
    power: float = 1.0
    """Chance that an audit of a cheating contribution ends as a confirmed fault, 0 to 1."""
    cheats: int = 1
    """How often a contributor cheats."""
    gain: float = 1.0
    """What one undetected cheat is worth, in rounds of a contributor's credit."""
    second_look: float | None = None
    """Share of passed audits that a second auditor repeats, 0 to 1."""
    vest_rounds: int | None = None
    """Turns until earned credit vests."""
    probation_rounds: int | None = None
    """Accepted contributions that are all audited, at first."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class Plan:
    """What `plan --json` prints: shares of one, rounds of credit; None where no number is enough."""

    rate: float
    power: float
    caught: float
    cheats: int
    detection: float
    cheats_for_95: int | None
    cheats_for_99: int | None
    gain: float
    penalty: float | None
    vest_rounds: int
    vest_rounds_needed: int | None
    deters: bool
    probation_rounds: int
    deters_after_probation: bool
    rate_needed: float | None
    second_look: float
    overhead: float
    rounds: int
    overhead_of_run: float
    warnings: tuple[str, ...]


def command(options: PlanOptions, console: Console) -> int:
    """Print the plan; 0 whatever it says."""
    answer = plan(options)
    if options.json:
        print(jsonlib.dumps(asdict(answer)))  # noqa: T201
        return 0
    show(answer, console)
    console.print(f"Next: {following(answer, options.config)}", highlight=False, soft_wrap=True)
    return 0


def plan(options: PlanOptions) -> Plan:
    """The numbers. Raises UsageError for an option out of range or a configuration that cannot be read."""
    if options.cheats < 1:
        raise UsageError("cheats is out of range", expected="1 or more", got=options.cheats)
    if not 0 < options.gain < math.inf:
        raise UsageError("gain is out of range", expected="more than 0", got=options.gain)
    config = load_config(options.config) if options.config else None
    audit = config.audit if config else AuditConfig()
    credit = config.credit if config else CreditConfig()
    rounds = config.run.rounds if config else RunConfig().rounds
    probation = options.probation_rounds
    terms = AuditTerms(
        rate=audit.rate_ppm / PPM if options.rate is None else options.rate,
        power=options.power,
        second_look=audit.second_look_ppm / PPM if options.second_look is None else options.second_look,
        probation_rounds=audit.probation_rounds if probation is None else probation,
        vest_rounds=credit.vest_rounds if options.vest_rounds is None else options.vest_rounds,
    )
    penalty = deterring_penalty(terms.caught, options.gain)
    needed = vesting_needed(terms.caught, options.gain)
    deters = needed is not None and terms.vest_rounds >= needed
    # A member that is just out of probation has earned no more than that.
    at_first = needed is not None and min(terms.vest_rounds, terms.probation_rounds) >= needed
    return Plan(
        rate=terms.rate,
        power=terms.power,
        caught=terms.caught,
        cheats=options.cheats,
        detection=detection(terms.caught, options.cheats),
        cheats_for_95=cheats_until(terms.caught, 0.95),
        cheats_for_99=cheats_until(terms.caught, 0.99),
        gain=options.gain,
        penalty=None if math.isinf(penalty) else penalty,
        vest_rounds=terms.vest_rounds,
        vest_rounds_needed=needed,
        deters=deters,
        probation_rounds=terms.probation_rounds,
        deters_after_probation=at_first,
        rate_needed=rate_needed(terms.power, options.gain, terms.vest_rounds),
        second_look=terms.second_look,
        overhead=overhead(terms),
        rounds=rounds,
        overhead_of_run=overhead_of_run(terms, rounds),
        warnings=tuple(_warnings(audit.auditors, terms.probation_rounds, deters, at_first)),
    )


def _warnings(auditors: int, probation: int, deters: bool, at_first: bool) -> Iterator[str]:
    if auditors < 2:
        yield (
            f"{auditors} auditor{'' if auditors == 1 else 's'} cannot confirm a fault, which takes two "
            "operators: a failed audit costs the round's credit and nothing else."
        )
    if not deters:
        yield "A cheat pays on average: audit more, or vest later."
    elif not at_first:
        yield (
            f"A newcomer has {probation} rounds of credit to lose when probation ends, too few to deter its "
            "first cheat; the stake grows with every round."
        )


def following(answer: Plan, config: Path | None) -> str:
    """What to type next: these terms when they deter, else with the vesting that does."""
    if answer.vest_rounds_needed is None:
        return "barnraise plan with a rate and a power above 0"
    vest = answer.vest_rounds if answer.deters else answer.vest_rounds_needed
    where = f" --config {config}" if config else ""
    rate = round(answer.rate * PPM)
    return f"barnraise train{where} --audit.rate-ppm {rate} --credit.vest-rounds {vest} --dry-run"


def show(answer: Plan, console: Console) -> None:
    """The plan in words."""
    penalty = "none is enough" if answer.penalty is None else f"{answer.penalty:.3g} rounds of credit"
    least = "none is enough" if answer.rate_needed is None else f"{answer.rate_needed:.4g}"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("one cheat is caught with", f"{answer.rate:g} x {answer.power:g} = {answer.caught:.4g}")
    if answer.cheats > 1:
        table.add_row(f"one of {answer.cheats} cheats is caught with", f"{answer.detection:.2%}")
    table.add_row(
        "cheats until 95 %, 99 %", f"{_or_never(answer.cheats_for_95)}, {_or_never(answer.cheats_for_99)}"
    )
    table.add_row(f"penalty that deters a gain of {answer.gain:g}", penalty)
    table.add_row(
        "credit vests after", f"{answer.vest_rounds} rounds; needed: {_or_never(answer.vest_rounds_needed)}"
    )
    table.add_row("least rate with that vesting", least)
    table.add_row("recomputed work in the long run", f"{answer.overhead:.1%}")
    table.add_row(f"over {answer.rounds} rounds, with probation", f"{answer.overhead_of_run:.1%}")
    console.print(table, highlight=False)
    for text in answer.warnings:
        console.print(f"[yellow]note[/] {text}", highlight=False, soft_wrap=True)


def _or_never(value: int | None) -> str:
    return "never" if value is None else str(value)
