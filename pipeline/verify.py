"""`barnraise verify`: the three levels in order, the answer for people and for programs.

Owns options, the JSON answer and the words. Does not own any check: level 1 is verification.fsck, level 2
replay_aggregation, level 3 replay_work. Levels 1 and 2 need neither torch nor ray.
"""

from __future__ import annotations

import gc
import json as jsonlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.checkpoint import Aggregator
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.replay_aggregation import Step, check_table, checked_config, replay_checkpoints
from pipeline.source import source_digest
from pipeline.weights import Tied, check_weights, show_weights
from verification.beacon import Beacon, described
from verification.encoding import from_json
from verification.errors import BarnraiseError, FormatError, UsageError, printable
from verification.fsck import Failure, Findings, Turn, check_run
from verification.fsck_anchor import not_covered
from verification.log import Log

UNANCHORED = "self-consistent, tied to nobody you named"


@dataclass(frozen=True)
class VerifyOptions:
    """Check a run folder, offline: 1 the log, 2 and the aggregation, 3 and the work."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    level: Literal[1, 2, 3] = 2
    """How deep. Level 3 recomputes contributions and needs the extra `train`."""
    sample: int | None = None
    """Level 3: recompute this many contributions, drawn at random, instead of all."""
    sample_seed: int | None = None
    """Level 3: look at the same sample as an earlier check, whose seed was printed."""
    vkey: str | None = None
    """The log's verifier key, from somewhere other than the folder."""
    expect_head: str | None = None
    """SIZE:HEX of a head you saw earlier; the log must contain it."""
    witness_policy: Path | None = None
    """A C2SP tlog-policy file: the witnesses, and how many of them, that you trust to have seen the log."""
    receipt: Path | None = None
    """A receipt that you were given; the log must be the one it is from."""
    weights: Path | None = None
    """A folder that `barnraise export` made: which round of the log its weights are after."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass
class Answer:
    """What `verify --json` prints. Fields may be added, none renamed.

    `anchored` is null or text, as in `Findings`: not every text says that the whole log is anchored.
    `dropped` is null unless payloads are missing, as the run's retention allows: so many `payloads`, of
    rounds 1 to `rounds`, from whose checkpoint on the aggregation was replayed; `contributions` are those
    that level 3 found nobody can recompute.
    """

    ok: bool
    complete: bool
    anchored: str | None
    level: int
    run_id: str
    log_size: int
    log_head: str
    log_vkey: str
    rounds: int
    weights_digest: str
    recomputed: int
    sample_seed: int | None
    population: int
    elsewhere: int
    unseen: int
    waiting: int
    other_source: bool
    beacon: str | None
    dropped: dict[str, int] | None
    weights: Tied | None
    failures: list[dict[str, str]]


Bar = Any


def command(options: VerifyOptions, console: Console) -> int:
    """Run the checks; 0 when the run holds, 1 when it does not."""
    # Reading a log makes many short-lived objects and no cycles; looking for cycles often would cost a fifth.
    gc.set_threshold(50_000, 20, 20)
    with _bars(console, quiet=options.json or not console.is_terminal) as progress:
        answer = verify(options, progress)
    if options.json:
        print(jsonlib.dumps(asdict(answer)))  # noqa: T201
    else:
        show(answer, options, console)
    return 0 if answer.ok else 1


def verify(options: VerifyOptions, progress: Any) -> Answer:
    """The answer for a run folder. Raises UsageError when there is nothing to check."""
    unsettled = _Unsettled()
    findings = check_run(
        options.run,
        vkey=options.vkey,
        expect_head=options.expect_head,
        witness_policy=options.witness_policy,
        receipt=options.receipt,
        progress=progress,
        # Only the other levels need the turns; without them a log of any length fits.
        turns=unsettled.see if options.level == 1 else None,
    )
    failures = list(findings.failures)
    seed = options.sample_seed
    untied: list[Failure] = []
    tied = check_weights(options.weights, options.run, findings, untied) if options.weights else None
    recomputed = population = elsewhere = unseen = gone = 0
    # A folder that fails level 1 has no records to replay: what is wrong has been named.
    if not failures and options.level > 1:
        if options.level == 3 and options.sample is not None and seed is None:
            seed = secrets.randbelow(1 << 32)
        try:
            recomputed, population, elsewhere, unseen, gone = _replay(
                options, findings, failures, seed or 0, progress
            )
        except UsageError:
            raise
        except BarnraiseError as error:
            failures.append(
                Failure(error.what, str(options.run), str(error.expected or ""), str(error.got or ""))
            )
    failures += untied
    return Answer(
        ok=not failures,
        complete=findings.complete,
        anchored=findings.anchored,
        level=options.level,
        run_id=findings.run_id,
        log_size=findings.log_size,
        log_head=findings.log_head,
        log_vkey=findings.log_vkey,
        rounds=findings.rounds,
        weights_digest=findings.weights_digest,
        recomputed=recomputed,
        sample_seed=seed,
        population=population,
        elsewhere=elsewhere,
        unseen=unseen,
        waiting=unsettled.of(findings),
        other_source=findings.manifest.get("source") != source_digest(),
        beacon=_beacon(findings.manifest),
        dropped={**asdict(findings.dropped), "contributions": gone} if findings.dropped else None,
        weights=tied,
        failures=[{key: printable(text) for key, text in asdict(failure).items()} for failure in failures],
    )


def _beacon(manifest: Mapping[str, Any]) -> str | None:
    """The public beacon of a run, in words; None without one, or where the manifest is no manifest."""
    try:
        return described(from_json(Beacon, manifest["beacon"]))
    except (FormatError, KeyError):
        return None


@dataclass
class _Unsettled:
    """How many closed turns have no settlement; turns are seen and forgotten."""

    turns: int = 0

    def see(self, turn: Turn) -> None:
        self.turns += bool(turn.close and not turn.settlement)

    def of(self, findings: Findings) -> int:
        """How many turns of a log that was read wait for their audits; none where audits do not lag."""
        for turn in findings.turns:
            self.see(turn)
        lags = findings.manifest.get("config", {}).get("audit", {}).get("lag", 0)
        return self.turns if lags else 0


def _replay(
    options: VerifyOptions, findings: Findings, failures: list[Failure], seed: int, progress: Any
) -> tuple[int, int, int, int, int]:
    folder = RunFolder(options.run)
    checked_config(findings.manifest)
    work = None
    if options.level == 3:
        work = _work_replay(folder, options, findings, failures, seed, progress)
    for step in _steps(folder, findings, failures, progress):
        if work:
            work.step(step)
    manifest = folder.parsed_manifest()
    log = Log.open(folder.log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
    records = [record for record, _ in read_entries(log, manifest)]
    codec = Aggregator.of(manifest.arrays, manifest.config).codec
    check_table(folder, findings, records, codec.payload_bytes, failures.append)
    if work is None:
        return 0, 0, 0, 0, 0
    plan = work.plan
    return work.recomputed, plan.population, plan.elsewhere, plan.unseen, plan.dropped


def _steps(folder: RunFolder, findings: Findings, failures: list[Failure], progress: Any) -> Iterator[Step]:
    return replay_checkpoints(folder, findings, failures.append, progress)


def _work_replay(
    folder: RunFolder,
    options: VerifyOptions,
    findings: Findings,
    failures: list[Failure],
    seed: int,
    progress: Any,
) -> Any:
    from model.numerics import THREADS, numerics_class, prepare  # noqa: PLC0415 - before torch is imported

    try:
        profile = findings.manifest["config"]["run"]["profile"]
        prepare(profile, THREADS)
        from pipeline.replay_work import WorkReplay, plan_sample  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "level 3 recomputes training and needs torch",
            got=f"no module {error.name}",
            hint="Install barnraise[train], or check --level 2.",
        ) from None
    here = numerics_class(profile, THREADS)
    plan = plan_sample(findings, options.sample, seed, here, lambda state: folder.state_file(state).exists())
    return WorkReplay(folder, findings, plan, failures.append, progress)


def show(answer: Answer, options: VerifyOptions, console: Console) -> None:
    """The answer in words."""
    for failure in answer.failures[:20]:
        console.print(f"[red]wrong[/] [bold]{escape(failure['what'])}[/]", highlight=False, soft_wrap=True)
        console.print(f"      where    {failure['where']}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"      expected {failure['expected']}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"      got      {failure['got']}", highlight=False, markup=False, soft_wrap=True)
    if len(answer.failures) > 20:
        console.print(f"… and {len(answer.failures) - 20} more; --json lists all")
    head = f"{answer.rounds} rounds, {answer.log_size} log entries, head {answer.log_head}"
    if not answer.ok:
        if answer.level == 3 and answer.other_source:
            console.print(
                "[yellow]note[/] the run was made with other source than is installed here: "
                "if level 2 holds, install the release that made it and check again"
            )
        console.print(
            f"[red bold]does not hold[/] at level {answer.level}: {head}", highlight=False, soft_wrap=True
        )
        console.print("Next: check another copy of the folder; --json lists all that is wrong")
        return
    console.print(f"[green bold]holds[/] at level {answer.level}: {head}", highlight=False, soft_wrap=True)
    if answer.dropped:
        _show_dropped(answer.level, answer.dropped, console)
    if answer.level == 3:
        _show_recomputed(answer, console)
    console.print(f"      weights  {answer.weights_digest}", highlight=False, soft_wrap=True)
    console.print(f"      anchored {answer.anchored or UNANCHORED}", highlight=False, soft_wrap=True)
    if answer.weights:
        show_weights(answer.weights, options.weights, console)
    if answer.beacon:
        console.print(f"      beacon   {answer.beacon}", highlight=False, markup=False, soft_wrap=True)
    rest = not_covered(answer.anchored, answer.log_size)
    if rest:
        console.print(f"      [yellow]note[/]     {rest}", highlight=False, soft_wrap=True)
    if not answer.complete:
        console.print("      [yellow]incomplete[/]: the log does not end with a run-close entry")
    if answer.waiting:
        console.print(
            f"      [yellow]waiting[/]: {answer.waiting} turns wait for their audits, and the weights hold "
            "what nobody has judged yet",
            highlight=False,
            soft_wrap=True,
        )
    if answer.level < 3:
        console.print(
            f"Next: barnraise verify {options.run} --level 3 --sample 5", highlight=False, soft_wrap=True
        )
    elif not answer.anchored:
        head = f"{answer.log_size}:{answer.log_head.removeprefix('sha256:')}"
        console.print(
            f"Next: keep this head, and whenever you check again add --expect-head {head}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(f"Next: barnraise report {options.run}", highlight=False, soft_wrap=True)


def _show_dropped(level: int, dropped: Mapping[str, int], console: Console) -> None:
    """What this check cannot speak of."""
    which = f"rounds 1 to {dropped['rounds']}: payloads dropped by the run's retention policy"
    rests = "; their aggregation rests on what was verified before" if level > 1 else ""
    console.print(f"      [yellow]dropped[/]  {which}{rests}", highlight=False, soft_wrap=True)
    if level == 3:
        console.print(
            f"      [yellow]{dropped['contributions']}[/] contributions cannot be recomputed any more for it",
            highlight=False,
            soft_wrap=True,
        )


def _show_recomputed(answer: Answer, console: Console) -> None:
    """How much of the work was recomputed, and what could not be here."""
    sampled = f", sample seed {answer.sample_seed}" if answer.sample_seed is not None else ""
    console.print(
        f"      {answer.recomputed} contributions recomputed of {answer.population}{sampled}",
        highlight=False,
    )
    if answer.elsewhere:
        seen = answer.elsewhere - answer.unseen
        console.print(
            f"      [yellow]{answer.elsewhere}[/] of them rest on tolerance, being of other numerics "
            f"classes than this machine's: auditors looked into {seen}, within the limits, and "
            f"nobody into {answer.unseen}",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def _bars(console: Console, *, quiet: bool) -> Iterator[Any]:
    if quiet:
        yield lambda what, done, total: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield progress
