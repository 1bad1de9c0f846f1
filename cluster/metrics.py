"""A run's numbers for Prometheus, through Ray: they come out of the metrics port of the driver's node.

Owns the names, units and tags, and what is read from a row of the monitor for each. Does not own the rows
(pipeline/monitor.py), nor Prometheus or Grafana: `grafana-dashboard.json` beside this file draws these names.
Ray puts `ray_` before a name and adds labels of its own; a counter's name ends in `_total`. Names and units
are as Prometheus asks for (https://prometheus.io/docs/practices/naming/).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

RUN, MEMBER, MACHINE, OUTCOME, PHASE, KIND = "run", "member", "machine", "outcome", "phase", "kind"


@dataclass(frozen=True)
class Exported:
    """A metric. Tags beside `run` are in the order in which a `Sample` has their values."""

    name: str
    kind: Literal["gauge", "counter"]
    what: str
    tags: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name that Prometheus sees."""
        return f"ray_{self.name}"


EXPORTED: Mapping[str, Exported] = {
    one.name: one
    for one in (
        Exported("barnraise_round", "gauge", "The last closed round."),
        Exported("barnraise_turn_time_seconds", "gauge", "Unix time at which the last turn was closed."),
        Exported("barnraise_turn_seconds", "gauge", "How long the last turn took."),
        Exported("barnraise_phase_seconds", "gauge", "How long a phase of the last turn took.", (PHASE,)),
        Exported("barnraise_train_loss_nats", "gauge", "Training loss of the last turn with one."),
        Exported("barnraise_validation_loss_nats", "gauge", "The last validation loss."),
        Exported("barnraise_tokens", "gauge", "Accepted tokens since the start of the run."),
        Exported("barnraise_accepted_tokens_total", "counter", "Accepted tokens since the driver started."),
        Exported("barnraise_payload_bytes_total", "counter", "Accepted payload bytes since then."),
        Exported("barnraise_turns_total", "counter", "Closed turns since then.", (OUTCOME,)),
        Exported("barnraise_contributions_total", "counter", "Contributions since then.", (MEMBER, OUTCOME)),
        Exported("barnraise_verdicts_total", "counter", "Auditors' verdicts since then.", (OUTCOME,)),
        Exported("barnraise_alerts_total", "counter", "Alerts since then.", (KIND,)),
        Exported("barnraise_quarantined_members", "gauge", "Members in quarantine."),
        Exported("barnraise_contributor_loss_nats", "gauge", "Loss of a contributor's last step.", (MEMBER,)),
        Exported("barnraise_work_seconds", "gauge", "From question to commitment, last turn.", (MEMBER,)),
        Exported("barnraise_credit_tokens", "gauge", "A member's credit.", (MEMBER,)),
        Exported("barnraise_machine_up", "gauge", "1 while a machine is there.", (MACHINE,)),
        Exported("barnraise_machine_members", "gauge", "Members on a machine.", (MACHINE,)),
        Exported(
            "barnraise_machine_memory_bytes", "gauge", "Memory of the members on a machine.", (MACHINE,)
        ),
        Exported("barnraise_machine_cpu_cores", "gauge", "Cores that these members keep busy.", (MACHINE,)),
    )
}

Sample = tuple[str, float, tuple[str, ...]]


def samples(row: Mapping[str, Any], now: float) -> Iterator[Sample]:
    """(name, value, values of its tags) for everything a row of the monitor has; `now` in Unix seconds."""
    plain: dict[str, float | None] = {
        "barnraise_round": row["round"],
        "barnraise_turn_time_seconds": now,
        "barnraise_turn_seconds": row["seconds"],
        "barnraise_train_loss_nats": row["loss"],
        "barnraise_validation_loss_nats": row["val_loss"],
        "barnraise_tokens": row["tokens"],
        "barnraise_accepted_tokens_total": row["round_tokens"],
        "barnraise_payload_bytes_total": row["payload_bytes"],
        "barnraise_quarantined_members": len(row["quarantined"]),
    }
    yield from ((name, value, ()) for name, value in plain.items() if value is not None)
    yield "barnraise_turns_total", 1, ("closed" if row["accepted"] else "void",)
    yield "barnraise_verdicts_total", row["audits_passed"], ("pass",)
    yield "barnraise_verdicts_total", row["audits"] - row["audits_passed"], ("fail",)
    for name, seconds in (row.get("phases") or {}).items():
        yield "barnraise_phase_seconds", seconds, (name,)
    for name, work in (row.get("contributors") or {}).items():
        yield "barnraise_contributions_total", 1, (name, work["outcome"])
        if work["loss"] is not None:
            yield "barnraise_contributor_loss_nats", work["loss"], (name,)
    for item in row["removed"]:
        yield "barnraise_contributions_total", 1, (item["contributor"], "taken out")
    for name, ms in (row.get("work_ms") or {}).items():
        yield "barnraise_work_seconds", ms / 1000, (name,)
    for name, tokens in row["credits"].items():
        yield "barnraise_credit_tokens", tokens, (name,)
    for alert in row.get("alerts") or ():
        yield "barnraise_alerts_total", 1, (alert["kind"],)
    for name, node in (row.get("nodes") or {}).items():
        yield "barnraise_machine_up", float(bool(node.get("alive"))), (name,)
        yield "barnraise_machine_members", len(node.get("members") or ()), (name,)
        if node.get("memory_bytes") is not None:
            yield "barnraise_machine_memory_bytes", node["memory_bytes"], (name,)
        if node.get("cpu_percent") is not None:
            yield "barnraise_machine_cpu_cores", node["cpu_percent"] / 100, (name,)


class RayMetrics:
    """A view of a run, as the sinks of pipeline/monitor.py are: fed rows in the driver, once Ray is up."""

    def __init__(self, run: str, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._clock = clock
        self._made: dict[str, Any] = {}

    def turn(self, row: Mapping[str, Any]) -> None:
        """A turn was closed."""
        for name, value, tags in samples(row, self._clock()):
            self._record(EXPORTED[name], value, tags)

    def note(self, text: str) -> None:
        """Numbers only."""
        del text

    def close(self) -> None:
        """Ray takes a process's metrics away with the process."""

    def _record(self, what: Exported, value: float, values: tuple[str, ...]) -> None:
        # Not at the top: ray_pool.py says what of Ray's settings holds, before Ray is imported.
        from ray.util import metrics  # noqa: PLC0415

        if what.name not in self._made:
            kind = metrics.Gauge if what.kind == "gauge" else metrics.Counter
            self._made[what.name] = kind(what.name, description=what.what, tag_keys=(RUN, *what.tags))
        tags = {RUN: self._run, **dict(zip(what.tags, values, strict=True))}
        if what.kind == "gauge":
            self._made[what.name].set(value, tags=tags)
        elif value > 0 and math.isfinite(value):  # Ray refuses to add nothing
            self._made[what.name].inc(value, tags=tags)
