"""`barnraise calibrate`: how far honest work differs between numerics classes, and what that allows.

Owns the options, the words and tables, and what to type next. Does not own the processes
(calibrate_workers.py), the points and their file (calibrate_points.py) or the fit (calibrate_numbers.py).
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.numerics import Profile
from pipeline.calibrate_numbers import LEAST_AUDITS, STEP_MILLI, Fit, Spread, fit
from pipeline.calibrate_points import MOST_STEPS, Plan, PointsFile, PointsWriter
from pipeline.calibrate_workers import Audit, Crew, Environment, audit_file, environments, walk
from pipeline.config import Config, load_config, parse_config
from verification.errors import UsageError, WorkError
from verification.tolerance import Deviation

BILLION = 1_000_000_000
# Of the demonstration's build, smaller; sizes that are no multiples of a vector's width.
_MODEL = {
    "vocab_size": 512, "context": 61, "d_model": 96, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2,
    "d_ff": 200, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class CalibrateOptions:
    """Measure how far honest work differs between numerics classes, and print the tolerance for a run."""

    config: Path | None = None
    """The run's configuration; without it, a small model. Peaks grow with the number of elements."""
    audits: int = 64
    """Honest audits of one local step between each two environments."""
    false_alarm_ppb: int = 1000
    """Rate of false alarms to fit for, in billionths of an audit."""
    out: Path | None = None
    """Keep the walk of one environment in this file, for another machine."""
    profile: Profile = "native"
    """Whose walk --out keeps."""
    against: Path | None = None
    """Repeat the walk in this file, which another machine kept, and compare with that."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class Measured:
    """What a calibration found, and for which environments there was nothing to find."""

    audits: int
    fits: tuple[Fit, ...]
    names: dict[str, str]
    of_members: frozenset[str]
    left_out: dict[str, str]

    @property
    def usable(self) -> tuple[Fit, ...]:
        """Between classes that members of a run are of, where thresholds say something."""
        return tuple(fit for fit in self._of_members if fit.usable)

    @property
    def hopeless(self) -> tuple[Fit, ...]:
        """Between such classes, too, but with a spread that no threshold can be put above."""
        return tuple(fit for fit in self._of_members if not fit.usable)

    @property
    def _of_members(self) -> tuple[Fit, ...]:
        return tuple(fit for fit in self.fits if self.of_members.issuperset(fit.classes))


def command(options: CalibrateOptions, console: Console) -> int:
    """Print what was measured; 1 when an optimizer step was further off than rounding can bring it."""
    _check(options)
    if not options.json:
        count = "the file's" if options.against else f"{options.audits:,}"
        console.print(f"Measuring {count} steps in every environment …", style="dim", highlight=False)
    measured = _against(options) if options.against else _here(options)
    holds = all(each.rounding_holds for each in measured.fits)
    if options.json:
        print(jsonlib.dumps(_json(measured, options)))  # noqa: T201
    else:
        show(measured, options, console)
    return 0 if holds else 1


def _check(options: CalibrateOptions) -> None:
    if options.against and (options.out or options.config):
        raise UsageError(
            "--against takes the walk and its configuration from the file", got="--out or --config"
        )
    if not LEAST_AUDITS <= options.audits <= MOST_STEPS:
        raise UsageError(
            "the number of audits is out of range",
            expected=f"{LEAST_AUDITS} to {MOST_STEPS}",
            got=options.audits,
        )
    if not 0 < options.false_alarm_ppb < BILLION:
        raise UsageError(
            "--false-alarm-ppb is out of range", expected=f"1 to {BILLION - 1}", got=options.false_alarm_ppb
        )


def default_config() -> Config:
    """A small model in the build of the demonstration's."""
    data = {"source": "python-stdlib", "vocab_size": _MODEL["vocab_size"], "context": _MODEL["context"]}
    return parse_config({"model": _MODEL, "data": data}, "calibrate")


def _here(options: CalibrateOptions, wanted: Sequence[Environment] | None = None) -> Measured:
    """The environments of this machine, among themselves."""
    config = load_config(options.config) if options.config else default_config()
    plan = Plan.of(config, options.audits)
    with Crew(environments() if wanted is None else wanted, plan) as crew:
        leader = _leader(crew, options.profile)
        name = crew.workers[leader].numerics_class
        writer = PointsWriter(options.out, name, plan) if options.out else None
        return _measured(crew, [audit for step in walk(crew, leader, writer) for audit in step], options)


def _leader(crew: Crew, profile: Profile) -> int:
    for index, worker in enumerate(crew.workers):
        if worker.environment.name == profile:
            return index
    reason = crew.left_out.get(profile, "it is not among the environments")
    raise WorkError(f"this machine has no {profile} profile to take steps in: {reason}")


def _against(options: CalibrateOptions, wanted: Sequence[Environment] | None = None) -> Measured:
    """The environments of this machine against the walk in a file."""
    assert options.against is not None  # noqa: S101 - narrows the type; the caller asked
    with PointsFile(options.against) as file:
        if len(file.losses) < LEAST_AUDITS:
            raise UsageError(
                "the walk in the file is too short", expected=f"{LEAST_AUDITS} steps", got=len(file.losses)
            )
        with Crew(environments() if wanted is None else wanted, file.plan) as crew:
            audits = [audit for step in audit_file(crew, file) for audit in step]
            measured = _measured(crew, audits, options)
    measured.names.setdefault(file.numerics_class, str(options.against))
    return Measured(
        measured.audits,
        measured.fits,
        measured.names,
        measured.of_members | {file.numerics_class},
        measured.left_out,
    )


def _measured(crew: Crew, audits: Sequence[Audit], options: CalibrateOptions) -> Measured:
    pairs: dict[tuple[str, str], list[Deviation]] = {}
    for audit in audits:
        one, other = sorted((audit.contributor, audit.auditor))
        pairs.setdefault((one, other), []).append(audit.deviation)
    fits = [fit(pair, found, options.false_alarm_ppb / BILLION) for pair, found in pairs.items()]
    names = {worker.numerics_class: worker.environment.name for worker in crew.workers}
    members = frozenset(w.numerics_class for w in crew.workers if w.environment.of_members)
    return Measured(len(crew.plan.rates), tuple(fits), names, members, crew.left_out)


def _json(measured: Measured, options: CalibrateOptions) -> dict[str, object]:
    return {
        "audits": measured.audits,
        "false_alarm_ppb": options.false_alarm_ppb,
        "fits": [{**asdict(each), "rate_by_count": each.rate_by_count} for each in measured.fits],
        "left_out": measured.left_out,
        "tolerance": [_section(each) for each in measured.usable],
    }


def _section(found: Fit) -> dict[str, object]:
    """A ToleranceConfig's fields."""
    return {"classes": list(found.classes), **asdict(found.thresholds)}


def show(measured: Measured, options: CalibrateOptions, console: Console) -> None:
    """The measurement in tables and words."""
    _show_table(measured, console)
    for name, reason in measured.left_out.items():
        console.print(f"[dim]left out: {escape(name)}: {escape(reason)}[/]", highlight=False, soft_wrap=True)
    for text in notes(measured, options):
        console.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)
    if measured.usable:
        console.print("\nFor the run's configuration:\n", highlight=False)
        for each in measured.usable:
            console.print(toml(each), highlight=False, markup=False, soft_wrap=True)
    console.print(escape(f"Next: {following(measured, options)}"), highlight=False, soft_wrap=True)


def _show_table(measured: Measured, console: Console) -> None:
    title = f"Honest local steps, {measured.audits:,} audits a pair: median, largest, threshold"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("classes")
    for name in ("norm, ppb", "peak, ppm", "loss, ppm", "step", "hidden"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in measured.fits:
        limits = each.thresholds
        cells = (
            _cell(each.norm_ppb, limits.norm_ppb),
            _cell(each.peak_ppm, limits.peak_ppm),
            _cell(each.loss_ppm, limits.loss_ppm),
            f"{each.step_milli.largest:,}",
            f"{each.hidden_share:.1e}",
        )
        names = " – ".join(measured.names.get(name, name) for name in each.classes)
        table.add_row(escape(names), *cells)
    console.print(table, highlight=False)


def _cell(spread: Spread, threshold: int) -> str:
    return f"{spread.median:,.0f} {spread.largest:,} {threshold:,}"


def notes(measured: Measured, options: CalibrateOptions) -> Iterator[str]:
    """What the numbers mean and what they rest on."""
    rate, count = options.false_alarm_ppb / BILLION, measured.audits
    yield (
        f"The thresholds are fitted for {rate:.2g} false alarms an audit. That rests on the fit. The count "
        f"alone, no audit of {count:,} being above them, proves no more than a rate below "
        f"{min(1.0, 3 / count):.2g} (95 %), and these audits are one walk's, so not quite independent."
    )
    largest = max((each.step_milli.largest for each in measured.fits), default=0)
    yield (
        f"Step: the largest seen, in thousandths of what rounding allows the optimizer. It is {largest:,} "
        f"at most; the threshold is {STEP_MILLI:,}."
    )
    if measured.usable:
        hidden = max(each.hidden_share for each in measured.usable)
        yield (
            "Hidden: who knows the thresholds can change every array's gradient by this share of its "
            "norm in each step and stay below norm and peak at once. "
            f"Here at most {hidden:.1e}: {_in_words(hidden)}."
        )
    for each in measured.hopeless:
        yield (
            f"Between {' and '.join(each.classes)} honest steps differ so unevenly that thresholds would let "
            "more than half of a gradient be changed unseen: there is no section for them."
        )
    if options.config is None and options.against is None:
        yield "Norms and peaks depend on the model: measure with the run's own --config first."
    if not all(each.rounding_holds for each in measured.fits):
        yield (
            f"An optimizer step was further from the manifest's than rounding can bring it ({STEP_MILLI}). "
            "This machine or its torch computes something else; do not rely on these thresholds."
        )


def _in_words(share: float) -> str:
    if share < 1e-4:
        return "about what rounding does anyway, too little to steer with"
    if share < 1e-2:
        return "small beside the noise of a batch, but the same way in every step it adds up"
    return "enough to steer with over many steps; let little work rest on it (audit.tolerance_cap_ppm)"


def toml(found: Fit) -> str:
    """The section of a run's configuration."""
    limits = found.thresholds
    classes = ", ".join(jsonlib.dumps(name) for name in found.classes)
    lines = [f"{name} = {value:_}" for name, value in sorted(asdict(limits).items())]
    return "\n".join(["[[audit.tolerance]]", f"classes = [{classes}]", *lines, ""])


def following(measured: Measured, options: CalibrateOptions) -> str:
    """What to type next."""
    if options.out:
        return f"barnraise calibrate --against {options.out.name}, on the other machine"
    if not measured.usable:
        return "barnraise calibrate --out FILE here, and --against FILE on a machine of another class"
    config = options.config or "CONFIG"
    return f"put that into {config} with train.trace_every = 1; barnraise train --config {config} --dry-run"


COMMANDS: dict[str, tuple[type[CalibrateOptions], Callable[[CalibrateOptions, Console], int]]] = {
    "calibrate": (CalibrateOptions, command)
}
