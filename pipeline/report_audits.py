"""Who was asked to audit, who answered, and who is said not to have.

Owns those counts. Does not own how they look (report_page.py) or who was to be asked (verification.lottery).
A coordinator that asks only the auditor it likes has to log the others as missed, which shows here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report import ClosedTurn, Work
from verification.records import Verdict

# These were settled before anybody was asked to audit.
_NOT_ASKED = (
    "late",
    "unrevealed",
    "opening-mismatch",
    "malformed-payload",
    "duplicate-payload",
    "unserved",
    "no-eligible-auditor",
)


@dataclass(frozen=True)
class Call:
    """An auditor that was asked, and its verdict, or None where the log says that none came."""

    auditor: str
    verdict: Verdict | None


@dataclass(frozen=True)
class AuditorCount:
    """Of one auditor: how often it stood first in the order drawn, answered, and is said to have missed."""

    auditor: str
    first: int
    looks: int
    failed: int
    missed: int


def calls(work: Work) -> Iterator[Call]:
    """Those that were asked to audit a piece of work, in order, over both looks."""
    given = {verdict.look: verdict for verdict in work.verdicts}
    for look, order in enumerate(work.asked, start=1):
        verdict = given.get(1 if look == 1 else 2)
        reached = order.index(verdict.auditor) if verdict else len(order)
        if work.reason not in _NOT_ASKED:
            yield from (Call(name, None) for name in order[:reached])
        if verdict:
            yield Call(verdict.auditor, verdict)


def auditor_counts(auditors: Sequence[str], turns: Iterable[ClosedTurn]) -> tuple[AuditorCount, ...]:
    """The counts of each auditor of a run, in the order given."""
    work = [item for turn in turns for item in turn.work]
    made = [call for item in work for call in calls(item)]
    firsts = [order[0] for item in work for order in item.asked if order]
    return tuple(
        AuditorCount(
            name,
            firsts.count(name),
            sum(call.auditor == name and call.verdict is not None for call in made),
            sum(
                call.auditor == name and call.verdict is not None and call.verdict.outcome == "fail"
                for call in made
            ),
            sum(call.auditor == name and call.verdict is None for call in made),
        )
        for name in auditors
    )
