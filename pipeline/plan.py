"""`barnraise plan`: what an audit rate detects, deters and costs, in words.

Owns options and words. Does not own the formulas: audit_arithmetic.py.
"""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
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


def command(options: PlanOptions, console: Console) -> int:
    """Print the plan; 0 whatever it says."""
    answer = plan(options)
    if options.json:
        print(jsonlib.dumps(answer))  # noqa: T201
        return 0
    show(answer, console)
    where = f" --config {options.config}" if options.config else ""
    console.print(
        f"Next: barnraise train{where} --audit.rate-ppm {round(_number(answer['rate']) * PPM)} "
        f"--credit.vest-rounds {answer['vest_rounds']} --dry-run",
        highlight=False,
        soft_wrap=True,
    )
    return 0


Answer = dict[str, float | int | bool | list[str] | None]


def plan(options: PlanOptions) -> Answer:
    """The numbers by name; None where no number is enough. Raises UsageError for one out of range."""
    if options.cheats < 1:
        raise UsageError("cheats is out of range", expected="1 or more", got=options.cheats)
    if not 0 < options.gain < float("inf"):
        raise UsageError("gain is out of range", expected="more than 0", got=options.gain)
    config = load_config(options.config) if options.config else None
    audit = config.audit if config else AuditConfig()
    credit = config.credit if config else CreditConfig()
    rounds = config.run.rounds if config else RunConfig().rounds
    terms = AuditTerms(
        rate=audit.rate_ppm / PPM if options.rate is None else options.rate,
        power=options.power,
        second_look=audit.second_look_ppm / PPM if options.second_look is None else options.second_look,
        probation_rounds=(
            audit.probation_rounds if options.probation_rounds is None else options.probation_rounds
        ),
        vest_rounds=credit.vest_rounds if options.vest_rounds is None else options.vest_rounds,
    )
    caught, gain = terms.caught, options.gain
    penalty = deterring_penalty(caught, gain)
    needed = vesting_needed(caught, gain)
    answer: Answer = {
        "rate": terms.rate,
        "power": terms.power,
        "caught": caught,
        "cheats": options.cheats,
        "detection": detection(caught, options.cheats),
        "cheats_for_95": cheats_until(caught, 0.95),
        "cheats_for_99": cheats_until(caught, 0.99),
        "gain": gain,
        "penalty": penalty if penalty < float("inf") else None,
        "vest_rounds": terms.vest_rounds,
        "vest_rounds_needed": needed,
        "deters": needed is not None and terms.vest_rounds >= needed,
        "probation_rounds": terms.probation_rounds,
        "deters_after_probation": needed is not None
        and min(terms.vest_rounds, terms.probation_rounds) >= needed,
        "rate_needed": rate_needed(terms.power, gain, terms.vest_rounds),
        "second_look": terms.second_look,
        "overhead": overhead(terms),
        "rounds": rounds,
        "overhead_of_run": overhead_of_run(terms, rounds),
    }
    answer["warnings"] = _warnings(answer, audit.auditors)
    return answer


def _warnings(answer: Answer, auditors: int) -> list[str]:
    found = []
    if auditors < 2:
        found.append(
            f"With {auditors} auditor{'' if auditors == 1 else 's'} no fault can be confirmed, which takes "
            "two operators: a failed audit costs the round's credit and nothing else."
        )
    if not answer["deters"]:
        found.append("A cheat pays on average: audit more, vest later, or make a cheat worth less.")
    elif not answer["deters_after_probation"]:
        found.append(
            f"A newcomer has {answer['probation_rounds']} rounds of credit to lose when probation ends, too "
            "few to deter its first cheat; the stake grows with every round."
        )
    return found


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise UsageError("not a number", got=value)
    return float(value)


def _or_never(value: object) -> str:
    return "never" if value is None else str(value)


def show(answer: Answer, console: Console) -> None:
    """The plan in words."""
    table = Table(show_header=False, box=None, pad_edge=False)
    rate, power = _number(answer["rate"]), _number(answer["power"])
    table.add_row("a cheat is caught with", f"{rate:g} x {power:g} = {_number(answer['caught']):.4g}")
    table.add_row(f"after {answer['cheats']} cheats, with", f"{_number(answer['detection']):.2%}")
    table.add_row(
        "cheats until 95 %, 99 %",
        f"{_or_never(answer['cheats_for_95'])}, {_or_never(answer['cheats_for_99'])}",
    )
    penalty = (
        "no penalty is enough" if answer["penalty"] is None else f"{_number(answer['penalty']):.3g} rounds"
    )
    table.add_row(
        "penalty that deters", f"{penalty} of credit, when a cheat gains {_number(answer['gain']):g}"
    )
    table.add_row(
        "credit vests after",
        f"{answer['vest_rounds']} rounds; needed: {_or_never(answer['vest_rounds_needed'])}",
    )
    least = "none" if answer["rate_needed"] is None else f"{_number(answer['rate_needed']):.4g}"
    table.add_row("least rate with that vesting", least)
    table.add_row(
        "recomputed work",
        f"{_number(answer['overhead']):.1%} in the long run, "
        f"{_number(answer['overhead_of_run']):.1%} over {answer['rounds']} rounds with probation",
    )
    console.print(table, highlight=False)
    warnings = answer["warnings"]
    for text in warnings if isinstance(warnings, list) else []:
        console.print(f"[yellow]note[/] {text}", highlight=False)
