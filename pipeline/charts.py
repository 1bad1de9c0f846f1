"""What is charted of a run: every name, what it is called, and how it is read from a row of a turn.

Owns the names and readings, and the lines of the tables of contributions and verdicts. What logs them
(wandb_view.py) and what draws them (dashboard.py) both go by these tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.monitor import Row

X_AXIS = "tokens"
PHASES = ("open", "commit", "reveal", "draw", "audit", "close")

Read = Callable[[Row], float | None]


@dataclass(frozen=True)
class Metric:
    """Something charted once a turn; `read` gives None where a row does not have it."""

    name: str
    title: str
    read: Read


@dataclass(frozen=True)
class Family:
    """Something charted for each of several: `name` has one `*` where the member or machine stands."""

    name: str
    title: str
    read: Callable[[Row], Mapping[str, float | None]]

    def key(self, of: str) -> str:
        """The metric's name for one of them. wandb cuts keys at dots, and host names have those."""
        return self.name.replace("*", re.sub(r"[^A-Za-z0-9_-]", "_", of))

    @property
    def pattern(self) -> str:
        """A regular expression of all its metrics' names."""
        return "^" + re.escape(self.name).replace(r"\*", "[A-Za-z0-9_-]+") + "$"


def _count(field: str) -> Read:
    return lambda row: len(row[field]) if field in row else None


def _phase(name: str) -> Read:
    return lambda row: (row.get("phases") or {}).get(name)


def _bytes_per_token(row: Row) -> float | None:
    return row["payload_bytes"] / row["round_tokens"] if row["round_tokens"] else None


def _alive(row: Row) -> float | None:
    nodes = row.get("nodes")
    return sum(bool(node.get("alive")) for node in nodes.values()) if nodes else None


def _of(field: str, part: str, scale: float = 1.0) -> Callable[[Row], Mapping[str, float | None]]:
    def read(row: Row) -> Mapping[str, float | None]:
        found: Mapping[str, Mapping[str, Any]] = row.get(field) or {}
        values = {name: item.get(part) for name, item in found.items()}
        return {name: None if value is None else value * scale for name, value in values.items()}

    return read


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("round", "rounds closed", lambda row: row["round"]),
        Metric("train/loss", "training loss, nats", lambda row: row["loss"]),
        Metric("validation/loss", "validation loss, nats", lambda row: row["val_loss"]),
        Metric("train/tokens_per_s", "accepted tokens a second", lambda row: row["tokens_per_s"]),
        Metric("train/round_seconds", "seconds a turn", lambda row: row["seconds"]),
        *(Metric(f"phase/{name}_seconds", f"{name}, seconds", _phase(name)) for name in PHASES),
        Metric("contributors/accepted", "accepted", _count("accepted")),
        Metric("contributors/rejected", "rejected", _count("rejected")),
        Metric("contributors/removed", "taken out again", _count("removed")),
        Metric("contributors/quarantined", "in quarantine", _count("quarantined")),
        Metric("members/joined", "joined before the turn", _count("joined")),
        Metric("members/left", "left before the turn", _count("left")),
        Metric("audits/verdicts", "verdicts", lambda row: row["audits"]),
        Metric("audits/passed", "verdicts that pass", lambda row: row["audits_passed"]),
        Metric("audits/overruled", "auditors overruled", _count("overruled")),
        Metric("payload/bytes", "payload bytes a turn", lambda row: row["payload_bytes"]),
        Metric("payload/bytes_per_token", "payload bytes an accepted token", _bytes_per_token),
        Metric("nodes/alive", "machines alive", _alive),
        Metric("alerts/count", "alerts", _count("alerts")),
    )
}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("contributor/*/loss", "loss of each one's last step, nats", _of("contributors", "loss")),
        Family("contributor/*/tokens", "tokens each one worked on", _of("contributors", "tokens")),
        Family(
            "contributor/*/work_seconds",
            "seconds from question to commitment",
            lambda row: {name: ms / 1000 for name, ms in (row.get("work_ms") or {}).items()},
        ),
        Family("credit/*", "credit, tokens", lambda row: row["credits"]),
        Family(
            "node/*/members",
            "members on each machine",
            lambda row: {
                name: len(node.get("members") or ()) for name, node in (row.get("nodes") or {}).items()
            },
        ),
        Family("node/*/memory_bytes", "memory of its members, bytes", _of("nodes", "memory_bytes")),
        Family("node/*/cpu_percent", "processor of its members, percent", _of("nodes", "cpu_percent")),
        Family("node/*/alive", "1 while the machine is there", _of("nodes", "alive", 1)),
    )
}

CONTRIBUTIONS = "tables/contributions"
VERDICTS = "tables/verdicts"
TABLES: Mapping[str, tuple[str, ...]] = {
    CONTRIBUTIONS: ("round", "attempt", "contributor", "outcome", "tokens", "loss", "told_in_round"),
    VERDICTS: ("round", "contributor", "auditor", "look", "outcome", "told_in_round"),
}


def values_of(row: Row) -> dict[str, float]:
    """Everything charted of a turn, by name; what the row does not have is left out."""
    values: dict[str, float | None] = {X_AXIS: row["tokens"]}
    values |= {metric.name: metric.read(row) for metric in METRICS.values()}
    for family in FAMILIES.values():
        values |= {family.key(of): value for of, value in family.read(row).items()}
    return {name: value for name, value in values.items() if value is not None}


def table_rows(row: Row) -> Iterator[tuple[str, list[Any]]]:
    """What a turn adds to the tables: (table, its columns). Work taken out again is a line of its own."""
    told = row["round"]
    for name, item in (row.get("contributors") or {}).items():
        line = [told, row["attempt"], name, item["outcome"], item["tokens"], item["loss"], told]
        yield CONTRIBUTIONS, line
    for item in row.get("removed") or ():
        outcome = f"taken out: {item['reason']}"
        yield CONTRIBUTIONS, [item["round"], None, item["contributor"], outcome, None, None, told]
    for item in row.get("verdicts") or ():
        line = [item["round"], item["contributor"], item["auditor"], item["look"], item["outcome"], told]
        yield VERDICTS, line
