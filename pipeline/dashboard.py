"""`barnraise dashboard`: a workspace for wandb's pages, written as code.

Owns which of the charted metrics stand beside each other, and in what order. Does not own their names
(charts.py) or anything of how a page looks. It needs `wandb-workspaces`, which nothing else does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.charts import CONTRIBUTIONS, FAMILIES, METRICS, PHASES, VERDICTS, X_AXIS
from pipeline.wandb_view import PROJECT, logged_in
from verification.durable import write_atomic
from verification.errors import UsageError

NAME = "barnraise"


@dataclass(frozen=True)
class Chart:
    """A panel: lines of `metrics`, or of a whole family, over accepted tokens."""

    title: str
    metrics: tuple[str, ...]


def _chart(name: str) -> Chart:
    return Chart((METRICS.get(name) or FAMILIES[name]).title, (name,))


# Sections in order; a panel is a `Chart`, or the name of a table.
SECTIONS: Mapping[str, tuple[Chart | str, ...]] = {
    "Learning": (
        Chart("loss, nats", ("train/loss", "validation/loss")),
        _chart("train/tokens_per_s"),
        _chart("train/round_seconds"),
        Chart("a turn by phase, seconds", tuple(f"phase/{name}_seconds" for name in PHASES)),
        _chart("alerts/count"),
    ),
    "Contributors": (
        Chart(
            "contributions a turn",
            ("contributors/accepted", "contributors/rejected", "contributors/removed"),
        ),
        _chart("contributor/*/loss"),
        _chart("contributor/*/work_seconds"),
        _chart("contributor/*/tokens"),
        _chart("credit/*"),
        Chart("who came, who went", ("members/joined", "members/left", "contributors/quarantined")),
        CONTRIBUTIONS,
    ),
    "Audits": (
        Chart("verdicts a turn", ("audits/verdicts", "audits/passed")),
        _chart("audits/overruled"),
        VERDICTS,
    ),
    "Nodes": (
        _chart("nodes/alive"),
        _chart("node/*/members"),
        _chart("node/*/memory_bytes"),
        _chart("node/*/cpu_percent"),
    ),
    "Bytes": (_chart("payload/bytes"), _chart("payload/bytes_per_token")),
}


@dataclass(frozen=True)
class DashboardOptions:
    """Make a workspace in wandb that shows runs of this project: saved there, or written to a file."""

    entity: str
    """The wandb user or team."""
    project: str = PROJECT
    """The wandb project; runs are written to `barnraise`."""
    out: Path | None = None
    """Write the workspace's JSON to this file, and save nothing online."""


def workspace(entity: str, project: str) -> Any:
    """The workspace as `wandb_workspaces` has it. Raises UsageError where that package is missing."""
    try:
        import wandb_workspaces.reports.v2 as panels  # noqa: PLC0415 - an extra of its own
        import wandb_workspaces.workspaces as pages  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "a dashboard needs the package wandb-workspaces",
            got=str(error),
            hint="pip install 'barnraise[dashboard]'",
        ) from error

    kinds: Any = panels  # its names are made when it is imported

    def panel(what: Chart | str) -> Any:
        if isinstance(what, str):
            return kinds.WeavePanelSummaryTable(table_name=what)
        (first, *_) = what.metrics
        pattern = FAMILIES[first].pattern if first in FAMILIES else None
        lines = [] if pattern else list(what.metrics)
        return kinds.LinePlot(title=what.title, x=X_AXIS, y=lines, metric_regex=pattern)

    return pages.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            pages.Section(name=name, panels=[panel(one) for one in content], is_open=True)
            for name, content in SECTIONS.items()
        ],
        settings=pages.WorkspaceSettings(x_axis=X_AXIS),
    )


def as_json(made: Any) -> str:
    """A workspace as wandb keeps it: entity, project, name, and the whole page under `spec`."""
    view = made._to_model()  # noqa: SLF001 - the package has no public way but to save
    text: str = view.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text


def command(options: DashboardOptions, console: Console) -> int:
    """Run it. Raises UsageError when nobody is logged in and there is no `--out`, or wandb refuses.

    StorageError when the file cannot be written.
    """
    made = workspace(options.entity, options.project)
    if options.out is not None:
        write_atomic(options.out, as_json(made).encode())
        console.print(f"{escape(str(options.out))} has the workspace", highlight=False)
        return 0
    if not logged_in():
        raise UsageError(
            "nobody is logged in to wandb here",
            hint="`wandb login` does that; --out FILE writes the workspace to a file instead.",
        )
    logging.getLogger("wandb").setLevel(logging.ERROR)
    try:
        url = made.save().url
    except Exception as error:  # the package raises what its transport raises
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"wandb did not take the workspace for {options.entity}/{options.project}", got=why
        ) from error
    console.print(f"saved: {escape(str(url))}", highlight=False, soft_wrap=True)
    return 0


COMMANDS = {"dashboard": (DashboardOptions, command)}


def charted() -> set[str]:
    """Every name that a panel draws: metrics, families and tables."""
    return {
        name
        for content in SECTIONS.values()
        for one in content
        for name in (one.metrics if isinstance(one, Chart) else (one,))
    }
