"""Whole tiny runs whose audits lag, and what their weights should be, worked out from the log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.aggregation import Contribution
from pipeline.checkpoint import Aggregator
from pipeline.config import Config
from pipeline.folder import RunFolder
from tests.pipeline.adversary_runs import Story, tell
from tests.tiny import tiny_config
from verification.plans import capped_weights
from verification.records import Base, Record, Removed, RoundClose, RoundOpen, Settlement

LIAR, SLOT = "c03", 3
# Everybody is drawn in every turn and looked at twice: whoever cheats is found the first time.
ALWAYS = {"rate_ppm": 1_000_000, "probation_rounds": 0, "second_look_ppm": 1_000_000}


def late_config(lag: int, **sections: Any) -> Config:
    """Four rounds, or as told."""
    fields: dict[str, Any] = {
        "run": {"rounds": 4},
        "audit": {**ALWAYS, "lag": lag},
        "credit": {"vest_rounds": lag + 1},
    }
    for name, values in sections.items():
        fields[name] = {**fields.get(name, {}), **values}
    return tiny_config(**fields)


def late_story(folder: Path, lag: int, kind: str = "", **sections: Any) -> Story:
    """A run to its end; the last contributor cheats if a kind is given."""
    return tell(folder, late_config(lag, **sections), {LIAR: kind} if kind else {})


def records_of(story: Story) -> list[Record]:
    return list(story.coordinator.desk.ledger.records())


def settlements(records: list[Record]) -> list[Settlement]:
    return [record for record in records if isinstance(record, Settlement)]


def removed(records: list[Record]) -> list[Removed]:
    return [item for record in settlements(records) for item in record.removed]


def aggregated(folder: RunFolder, records: list[Record], but: set[tuple[int, int, int]]) -> Base:
    """The digests of the last checkpoint had `but` (round, attempt, slot) never been accepted."""
    manifest = folder.parsed_manifest()
    aggregator = Aggregator.of(manifest.arrays, manifest.config)
    at = aggregator.load(folder.checkpoint(0), folder.outer_file(0).read_bytes())
    opens = {(r.round, r.attempt): r for r in records if isinstance(r, RoundOpen)}
    for close in records:
        if not isinstance(close, RoundClose):
            continue
        open_ = opens[close.round, close.attempt]
        left = [item for item in close.accepted if (close.round, close.attempt, item.slot) not in but]
        work = [(open_.entry(item.slot).operator, item.tokens) for item in left]
        weights = capped_weights(work, manifest.config["credit"]["operator_cap_ppm"])
        given = [
            Contribution(item.slot, weight, folder.payload(item.payload))
            for item, weight in zip(left, weights, strict=True)
        ]
        at = aggregator.step(at, given, open_.outer_lr)
    return aggregator.digests(at)


def places(items: list[Removed]) -> set[tuple[int, int, int]]:
    return {(item.round, item.attempt, item.slot) for item in items}
