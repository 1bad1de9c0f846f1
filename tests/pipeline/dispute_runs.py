"""Whole tiny runs with auditors that lie: alone, of one mind, or for a friend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.auditing import Hearing
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.segment_audit import Case
from pipeline.work import Work
from tests.pipeline.adversary_runs import Story, tell
from tests.tiny import tiny_config
from verification.judge import Audit, Recomputed
from verification.records import Overruled, RoundClose, Settlement

TWICE = {"probation_rounds": 0, "rate_ppm": 1_000_000, "second_look_ppm": 1_000_000}
Lie = Callable[[Case, Audit, Recomputed], Recomputed]


def accuse(case: Case, audit: Audit, found: Recomputed) -> Recomputed:
    """Whoever accuses so says the same as anybody else who does."""
    del case, audit
    return replace(found, payload="blake3:" + "ab" * 32)


@contextmanager
def liars(lies: Mapping[str, Lie], told: dict[tuple[int, int], Recomputed] | None = None) -> Iterator[None]:
    """While it lasts, auditors of these names state what their lie makes of the truth.

    `told` is filled with what contributors claim, by turn and slot, as a friend would be told it.
    """
    audits, works = Auditor.compute, Contributor.compute
    claims = {} if told is None else told

    def auditing(self: Auditor, case: Case, audit: Audit, opened: Any) -> Recomputed:
        found = audits(self, case, audit, opened)
        return lies[self.name](case, audit, found) if self.name in lies else found

    def working(self: Contributor, open_: Any, entry: Any, *rest: Any) -> Work:
        work = works(self, open_, entry, *rest)
        c = work.claims
        claims[open_.turn, entry.slot] = Recomputed(
            c.payload, c.next_state, c.trace, c.loss_first, c.loss_last
        )
        return work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Auditor, "compute", auditing)
        patch.setattr(Contributor, "compute", working)
        yield


@contextmanager
def first_accuse(slot: int, many: int) -> Iterator[None]:
    """While it lasts, the first `many` in the drawn order accuse the contributor of a slot, whoever they are.

    Else it would be for the lot whether liars meet.
    """
    audits, looks = Auditor.compute, Hearing.first_looks
    drawn: dict[int, tuple[str, ...]] = {}

    def looking(self: Hearing) -> None:
        draw = self.desk.ledger.state.open_turn.draw
        drawn.update({item.slot: item.auditors for item in (draw.drawn if draw else ())})
        looks(self)

    def auditing(self: Auditor, case: Case, audit: Audit, opened: Any) -> Recomputed:
        found = audits(self, case, audit, opened)
        lies = case.entry.slot == slot and self.name in drawn[slot][:many]
        return accuse(case, audit, found) if lies else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Auditor, "compute", auditing)
        patch.setattr(Hearing, "first_looks", looking)
        yield


def stamp_for(members: Collection[str], told: dict[tuple[int, int], Recomputed]) -> Lie:
    """Passes the work of its friends as they claim it; they told it what it must state."""

    def lie(case: Case, audit: Audit, found: Recomputed) -> Recomputed:
        del audit
        friend = case.entry.member in members
        return told[case.open.turn, case.entry.slot] if friend else found

    return lie


def disputed_run(
    folder: Path,
    lies: Mapping[str, Lie],
    drills: Mapping[str, str] | None = None,
    *,
    auditors: int = 3,
    told: dict[tuple[int, int], Recomputed] | None = None,
    **sections: Any,
) -> Story:
    """Two rounds in which everybody is looked at twice."""
    audit = {**TWICE, "auditors": auditors, **sections.pop("audit", {})}
    with liars(lies, told):
        config = tiny_config(**{"run": {"rounds": 2}, "audit": audit, **sections})
        return tell(folder, config, drills or {})


def overruled(story: Story) -> list[Overruled]:
    """Everybody that was, in the order of the log."""
    records = story.coordinator.desk.ledger.records()
    closing = [record for record in records if isinstance(record, RoundClose | Settlement)]
    return [item for record in closing for item in record.overruled]
