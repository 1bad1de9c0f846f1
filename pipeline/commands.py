"""The commands that run training: train, resume, and the summary they end with.

Owns options, what is shown and what to type next. Does not own the run itself (run.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.beacon_client import check_wanted
from pipeline.config import Config, config_from_manifest
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.monitor import Bars, Fallible, JsonLines, MetricsFile, Monitor, Sink, Wandb, turn_row
from pipeline.options import ResumeOptions, TrainOptions
from pipeline.roster import parse_drills
from pipeline.run import View, continue_run, create_run
from pipeline.witnessing import Enlisted, read_policy
from verification.errors import printable
from verification.records import RoundClose
from verification.witnessing import fork_takes


def train(options: TrainOptions, config: Config, console: Console) -> int:
    """`barnraise train`."""
    drills = parse_drills(list(options.adversary), len(config.train.steps))
    folder, home = RunFolder(options.folder), options.home.expanduser()
    witnesses = Enlisted.by_policy(read_policy(options.witness_policy)) if options.witness_policy else None
    check_wanted(options.beacon, witnessed=witnesses is not None)
    if options.dry_run:
        show_plan(console, config, drills, options.folder, witnesses, options.beacon)
        return 0
    tell: Callable[[str], None] = (lambda text: None) if options.json else _dim(console)
    create_run(config, folder, home, tell, drills, witnesses, options.beacon)
    return _go(console, folder, home, options, drills)


def resume(options: ResumeOptions, console: Console) -> int:
    """`barnraise resume`."""
    return _go(console, RunFolder(options.run), options.home.expanduser(), options, {})


def _dim(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]{escape(printable(text))}[/]", highlight=False)


def _warn(text: str) -> None:
    print(f"barnraise: {text}", file=sys.stderr)  # noqa: T201


def _go(
    console: Console,
    folder: RunFolder,
    home: Path,
    options: TrainOptions | ResumeOptions,
    drills: dict[str, str],
) -> int:
    manifest = folder.parsed_manifest()
    config = config_from_manifest(manifest.config)
    monitor: Monitor | None = None

    def seen(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        size = coordinator.desk.aggregator.codec.payload_bytes
        if coordinator.last_turn and monitor:
            last, settled = coordinator.last_turn, coordinator.settled
            monitor.turn(turn_row(close, last, coordinator.state, size, seconds, settled))

    def note(text: str) -> None:
        if monitor:
            monitor.note(text)

    sinks: list[Sink] = [
        Fallible("metrics.jsonl", lambda: MetricsFile(folder.path), _warn),
        Fallible("wandb", lambda: Wandb(folder.path, manifest), _warn),
    ]
    if options.json or not console.is_terminal:
        sinks.append(JsonLines(lambda line: print(line, flush=True)))  # noqa: T201
    else:
        sinks.append(Bars(console, config.run.rounds, folder.rounds_on_disk()))
    monitor = Monitor(sinks)
    try:
        coordinator = continue_run(
            folder, home, View(note, seen), pool=options.pool, address=options.address, drills=drills
        )
    finally:
        monitor.close()
    if not options.json:
        from pipeline.summary import show_summary  # noqa: PLC0415 - needs torch for the sample

        show_summary(console, folder, coordinator, drills)
    return 0


def show_plan(
    console: Console,
    config: Config,
    drills: dict[str, str],
    folder: Path,
    witnesses: Enlisted | None = None,
    beacon: str | None = None,
) -> None:
    """What `--dry-run` prints: sizes and costs that follow from the configuration."""
    from model.config import parameter_count  # noqa: PLC0415
    from pipeline.compression import Codec  # noqa: PLC0415

    parameters = parameter_count(config.model)
    codec = Codec(config.compression.chunk, config.compression.k, parameters)
    tokens = sum(config.train.steps) * config.train.batch * config.model.context
    table = Table(title=f"{folder}: nothing was started", show_header=False)
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("contributors, local steps", f"{len(config.train.steps)}: {list(config.train.steps)}")
    table.add_row("auditors, audit rate", f"{config.audit.auditors}, {config.audit.rate_ppm / 1e4:g} %")
    most, looked = config.most_segments, config.audit.segments or config.most_segments
    table.add_row("segments an audit looks into", f"{min(looked, most)} of up to {most}")
    table.add_row("tokens a round, in all", f"{tokens:,}, {tokens * config.run.rounds:,}")
    table.add_row(
        "payload",
        f"{codec.payload_bytes:,} bytes ({4 * parameters / codec.payload_bytes:.0f}x less than fp32)",
    )
    if witnesses:
        count, required = len(witnesses.witnesses), witnesses.required
        table.add_row("witnesses, required", f"{count}, {required}")
        table.add_row("two histories take", f"{fork_takes(required, count)} of them that lie")
    if beacon:
        table.add_row("beacon, waited for every turn", escape(beacon))
    if drills:
        table.add_row("fire drill", ", ".join(f"{name} is {kind}" for name, kind in drills.items()))
    console.print(table)
    console.print("Next: the same command without --dry-run.")
