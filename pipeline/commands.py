"""The commands that run training: train, resume, and the summary they end with.

Owns options, what is shown and what to type next. Does not own the run itself (run.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.beacon_client import check_wanted
from pipeline.config import Config, config_from_manifest
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.monitor import (
    Bars,
    Fallible,
    JsonLines,
    MetricsFile,
    Monitor,
    Sink,
    earlier_rows,
    turn_row,
)
from pipeline.options import ResumeOptions, TrainOptions
from pipeline.roster import parse_drills
from pipeline.run import NodeRecorders, RayMetrics, Usage, View, continue_run, create_run
from pipeline.wandb_view import PROJECT, logged_in, wandb_id, wandb_view
from pipeline.witnessing import Enlisted, read_policy
from verification.errors import printable
from verification.records import Manifest, RoundClose
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


def _remark(text: str) -> None:
    """A line for people where standard output is for a program."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


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

    nodes: dict[str, Mapping[str, object]] = {}

    def used(usage: Usage) -> None:
        nodes.clear()
        nodes.update(usage)

    def seen(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        size = coordinator.desk.aggregator.codec.payload_bytes
        if coordinator.last_turn and monitor:
            last, settled = coordinator.last_turn, coordinator.settled
            row = turn_row(close, last, coordinator.state, size, seconds, settled)
            monitor.turn(row | clock_row(coordinator) | {"nodes": dict(nodes)})

    def note(text: str) -> None:
        if monitor:
            monitor.note(text)

    earlier = earlier_rows(folder.path)
    tell: Callable[[str], None] = (lambda text: None) if options.json else _dim(console)
    on_ray = options.pool == "ray"
    sinks: list[Sink] = [
        Fallible("metrics.jsonl", lambda: MetricsFile(folder.path), _warn),
        Fallible("wandb", lambda: wandb_view(folder.path, manifest, tell, earlier, shared=on_ray), _warn),
        *(_cluster_views(manifest) if on_ray else ()),
    ]
    if options.json or not console.is_terminal:
        lines = JsonLines(lambda line: print(line, flush=True), _remark)  # noqa: T201
        sinks.append(Fallible("standard output", lambda: lines, _warn))
    else:
        sinks.append(Bars(console, config.run.rounds, folder.rounds_on_disk()))
    monitor = Monitor(sinks, earlier)
    try:
        coordinator = continue_run(
            folder, home, View(note, seen, used), pool=options.pool, address=options.address, drills=drills
        )
    finally:
        monitor.close()
    if not options.json:
        from pipeline.summary import show_summary  # noqa: PLC0415 - needs torch for the sample

        show_summary(console, folder, coordinator, drills)
    return 0


def _cluster_views(manifest: Manifest) -> Iterator[Sink]:
    """What else is seen of a run on Ray: Prometheus and, where wandb is online, all machines' own numbers."""
    yield Fallible("Prometheus", lambda: RayMetrics(manifest.name), _warn)
    if logged_in():
        recorders = NodeRecorders(wandb_id(manifest), PROJECT, logged_in)
        yield Fallible("wandb on other machines", lambda: recorders, _warn)


def clock_row(coordinator: Coordinator) -> dict[str, object]:
    """What a turn's line has besides what the log says: the coordinator's clock, and who came and went."""
    turn, muster = coordinator.last_turn, coordinator.muster
    closed = turn.commit_close if turn else None
    if turn is None or closed is None:
        return {}
    names = {entry.slot: entry.member for entry in turn.open.roster}
    return {
        "phases": {name: round(seconds, 3) for name, seconds in coordinator.laps.seconds.items()},
        "work_ms": {names[slot]: ms for slot, ms in zip(closed.committed, closed.ms, strict=True)},
        "late": [names[slot] for slot in closed.late],
        "joined": list(muster.joined),
        "left": list(muster.left),
    }


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
