"""`barnraise plan`: what an audit policy detects, deters and costs, and the cheapest one for a target.

Owns the words and tables, and what to type next. Does not own the options (plan_options.py) or the numbers
(plan_numbers.py).
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from dataclasses import asdict, fields

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.audit_arithmetic import MILLION
from pipeline.plan_numbers import Outlook, Plan, PolicyPlan, plan
from pipeline.plan_options import PlanOptions


def command(options: PlanOptions, console: Console) -> int:
    """Print the plan; 0 whatever it says."""
    answer = plan(options)
    if options.json:
        print(jsonlib.dumps(asdict(answer)))  # noqa: T201
        return 0
    show(answer, options, console)
    return 0


def show(answer: Plan, options: PlanOptions, console: Console) -> None:
    """The plan in words and tables."""
    _show_found(answer, console)
    _show_cost(answer, console)
    _show_cheapest(answer, options, console)
    for text in (*notes(answer), *answer.warnings):
        console.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)
    console.print(escape(f"Next: {following(answer, options)}"), highlight=False, soft_wrap=True)


def _show_found(answer: Plan, console: Console) -> None:
    policy, counts = answer.policy, answer.segment_counts
    table = Table(title=_heading(answer), title_justify="left", box=None, pad_edge=False)
    table.add_column("cheat of every round")
    table.add_column("one audit finds it")
    for name in (f"in {answer.within_rounds} rounds", "95 % in", "99 % in", "deterred by vesting of"):
        table.add_column(name, justify="right")
    table.add_row(f"[bold]{_drawn(policy.segments, max(counts))}[/]")
    for outlook in policy.outlooks:
        table.add_row(*_cells(outlook, answer))
    if _partial(policy, counts):
        table.add_row("[bold]if all segments were drawn[/]")
        for outlook in answer.full.outlooks:
            table.add_row(*_cells(outlook, answer))
    console.print(table, highlight=False)
    gain = f"{answer.gain:g} round{'' if answer.gain == 1 else 's'}"
    least = policy.vest_rounds_needed
    if least is None:
        verdict = "nothing deters it"
    else:
        verdict = f"this {'deters' if policy.deters else 'does not deter'}; it takes {_rounds(least)}"
    late = f", audits may end {_rounds(answer.lag)} late" if answer.lag else ""
    text = (
        f"Credit vests after {_rounds(answer.vest_rounds)}{late}. "
        f"Where a cheat gains {gain} of credit {verdict}.\n"
    )
    console.print(text, highlight=False, soft_wrap=True)


def _heading(answer: Plan) -> str:
    few, many = min(answer.segment_counts), max(answer.segment_counts)
    count = f"{many}" if few == many else f"{few} to {many}"
    return (
        f"{len(answer.steps)} contributors of {count} segments a round, each looked at with rate "
        f"{_rate(answer.policy.rate_ppm)} after probation"
    )


def _drawn(segments: int, most: int) -> str:
    if not segments or segments >= most:
        return "an audit draws all segments"
    return f"an audit draws {segments} segment{'' if segments == 1 else 's'}"


def _partial(policy: PolicyPlan, counts: tuple[int, ...]) -> bool:
    return 0 < policy.segments < max(counts)


def _cells(outlook: Outlook, answer: Plan) -> tuple[str, ...]:
    exact = outlook.power_exact
    power = _share(outlook.power)
    vest = "no vesting" if outlook.vest_rounds_needed is None else _rounds(outlook.vest_rounds_needed)
    return (
        f"  {outlook.cheat}",
        f"{exact} = {power}" if "/" in exact and len(exact) < 10 else power,
        _share(outlook.detection),
        _or_never(outlook.rounds_for_95),
        _or_never(outlook.rounds_for_99),
        vest,
    )


def _show_cost(answer: Plan, console: Console) -> None:
    policy, full = answer.policy, answer.full
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("one audit recomputes", f"{_share(policy.audit_cost)} of a contribution")
    table.add_row("audits in the long run", f"{_share(policy.overhead)} of the contributors' compute")
    if _partial(policy, answer.segment_counts):
        table.add_row("  if all segments were drawn", _share(full.overhead))
    span = f"over {answer.rounds} rounds, the first {answer.probation_rounds} on probation"
    table.add_row(span, _share(policy.overhead_of_run))
    if policy.auditor_load is not None:
        table.add_row(
            f"each of {answer.auditors} auditors", f"{policy.auditor_load:.3g} times a contributor's compute"
        )
    table.add_row("false accusations in 1,000 rounds", _accusations(answer))
    console.print(table, highlight=False)
    console.print()
    _show_table(answer, console)


def _accusations(answer: Plan) -> str:
    if answer.false_alarm_rate == 0:
        return "not known" if answer.tolerance else "0, equal bits being equal"
    least, most = answer.false_accusations_if_independent, answer.false_accusations_if_same_cause
    return f"{least:.3g} if two audits err apart, {most:.3g} if from one cause"


def _show_table(answer: Plan, console: Console) -> None:
    looks = f"{answer.second_look_ppm / MILLION:.0%} second looks"
    table = Table(
        title="Everybody looked at in every round (rate 1), one segment of one local step:",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("local steps", "finds one false step", "compute", "with boundary", f"and {looks}"):
        table.add_column(name, justify="right")
    for row in answer.cost_table:
        shares = (row.power_one_bad, row.bare, row.with_boundary, row.with_second_looks)
        table.add_row(str(row.steps), *map(_share, shares))
    console.print(table, highlight=False)
    console.print(
        f"5 % of the compute takes {answer.steps_for_5_percent} or more segments of one step, so "
        f"{answer.steps_for_5_percent} or more local steps (trace_every 1); with boundary and second looks "
        f"{answer.steps_for_5_percent_with_all}.\n",
        highlight=False,
        soft_wrap=True,
    )


def _show_cheapest(answer: Plan, options: PlanOptions, console: Console) -> None:
    bad = answer.cheat_segments
    wanted = (
        f"{_share(answer.target_detection)} within {_rounds(answer.within_rounds)} of "
        f"{bad} false segment{'' if bad == 1 else 's'} in each"
    )
    best = answer.cheapest
    if best is None:
        text = f"No policy finds {wanted}: allow more rounds, or a lower tolerance.\n"
        console.print(text, highlight=False, soft_wrap=True)
        return
    vest = "none is enough" if best.vest_rounds_needed is None else _rounds(best.vest_rounds_needed)
    rate, segments = f"rate_ppm = {best.rate_ppm:_}", f"segments = {best.segments}"
    console.print(
        f"Cheapest policy that finds {wanted}: {_share(best.overhead)} of the contributors' compute; "
        f"vesting that deters: {vest}.",
        highlight=False,
        soft_wrap=True,
    )
    note = "   # 0: all of them" if best.segments == 0 else ""
    console.print(escape(f"  [audit]\n  {rate}\n  {segments}{note}"), highlight=False)
    seen = f"barnraise plan --rate {best.rate_ppm / MILLION:g} --segments {best.segments}{_others(options)}"
    console.print(escape(f"Seen in full: {seen}\n"), highlight=False, soft_wrap=True)


def notes(answer: Plan) -> Iterator[str]:
    """What the numbers rest on, a sentence or two each."""
    yield (
        f"Assumed: what follows the last step costs {answer.boundary_cost:g} of a local step, in every audit "
        "(--boundary-cost). 0.12 is one measurement, of the demo model on one busy core; traffic, and the "
        "contributor's own hashing of leaves, are not counted."
    )
    if _partial(answer.policy, answer.segment_counts):
        yield "One false segment is enough to bring any change into the weights: plan for that line."
    if len(set(answer.segment_counts)) > 1:
        yield "Contributors differ in segments: each power is that for the one in whom an audit sees least."
    if answer.tolerance:
        yield (
            f"Each false place that is looked at passes with {_share(answer.tolerance)}. Honest work may "
            "fail under a tolerance, too: measure how often, and give --false-alarm-rate."
        )
    if answer.tolerance_cap is not None:
        yield (
            "This configuration has limits between numerics classes. Where no auditor is of a contributor's "
            "class its work rests on them; all such work together has at most "
            f"{_share(answer.tolerance_cap)} of the weight. What hides below the limits, and how often an "
            "honest step goes beyond them, barnraise calibrate says: --tolerance and --false-alarm-rate."
        )
    if answer.lag:
        yield (
            f"A cheat is found up to {_rounds(answer.lag)} later, and taken out of the weights again with "
            "all that its member did since; what others did meanwhile was trained on weights that had it."
        )
    if not answer.tolerance and answer.false_alarm_rate == 0:
        yield (
            "Audits ask for equal bits of one numerics class, in which honest work never fails, by "
            "definition. Clean audits alone prove no more than a bound, 3/N: after 3,000 of them "
            "--false-alarm-rate 0.001."
        )


def following(answer: Plan, options: PlanOptions) -> str:
    """What to type next: these terms when they deter, else with the vesting that does."""
    policy = answer.policy
    if policy.vest_rounds_needed is None:
        return "barnraise plan with a rate above 0 and a tolerance below 1"
    vest = answer.vest_rounds if policy.deters else policy.vest_rounds_needed
    where = f" --config {options.config}" if options.config else ""
    fields_of_train = {
        "train.steps": options.steps and " ".join(map(str, options.steps)),
        "train.trace-every": options.trace_every,
        "audit.auditors": options.auditors,
        "audit.rate-ppm": policy.rate_ppm,
        "audit.segments": options.segments,
        "audit.second-look-ppm": None if options.second_look is None else answer.second_look_ppm,
        "audit.probation-rounds": options.probation_rounds,
        "audit.lag": options.lag,
        "credit.vest-rounds": vest,
    }
    typed = "".join(f" --{name} {value}" for name, value in fields_of_train.items() if value is not None)
    return f"barnraise train{where}{typed} --dry-run"


def _others(options: PlanOptions) -> str:
    """What was typed beside the policy, to be typed again."""
    typed = ""
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in ("rate", "segments", "json"):
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            typed += f" --{field.name.replace('_', '-')} {text}"
    return typed


def _rate(ppm: int) -> str:
    return f"{ppm / MILLION:g}"


def _share(share: float) -> str:
    """A share as a percentage of four digits; 100 % and 0 % only when it is that."""
    text = f"{100 * share:.4g}"
    if text == "100" and share < 1:
        return "over 99.99 %"
    return f"{text} %"


def _or_never(value: int | None) -> str:
    return "never" if value is None else _rounds(value)


def _rounds(value: int) -> str:
    return f"{value} round{'' if value == 1 else 's'}"
