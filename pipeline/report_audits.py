"""Who was asked to audit, who answered, who is said not to have, and whom others contradicted.

Owns those counts. Does not own how they look (report_page.py) or who was to be asked (verification.lottery).
A coordinator that asks only the auditor it likes has to log the others as missed, which shows here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report import ClosedTurn, Work
from verification.records import Verdict


@dataclass(frozen=True)
class Call:
    """An auditor that was asked, and its verdict, or None where the log says that none came."""

    auditor: str
    verdict: Verdict | None


@dataclass(frozen=True)
class AuditorCount:
    """Of one auditor: how often it stood first in the order drawn, answered, and is said to have missed.

    `compared` are verdicts of its on work that others judged too, `overruled` those that they did not bear
    out: of somebody who passes without looking, the share of false work among what is compared.
    """

    auditor: str
    first: int
    looks: int
    failed: int
    missed: int
    compared: int
    overruled: int


def calls(work: Work) -> Iterator[Call]:
    """Those that were asked to audit a piece of work, in order, over all looks."""
    given = {verdict.look: verdict for verdict in work.verdicts}
    for asked in work.asked:
        yield from (Call(name, None) for name in asked.missed)
        if verdict := given.get(asked.look):
            yield Call(verdict.auditor, verdict)


def auditor_counts(auditors: Sequence[str], turns: Iterable[ClosedTurn]) -> tuple[AuditorCount, ...]:
    """The counts of each auditor of a run, in the order given."""
    work = [item for turn in turns for item in turn.work]
    made = [call for item in work for call in calls(item)]
    second = [asked.auditors for item in work for asked in item.asked if asked.look == 2]
    firsts = Counter(order[0] for order in (*(item.order for item in work), *second) if order)
    given = [call.verdict for call in made if call.verdict]
    looks = Counter(verdict.auditor for verdict in given)
    failed = Counter(verdict.auditor for verdict in given if verdict.outcome == "fail")
    missed = Counter(call.auditor for call in made if call.verdict is None)
    compared = Counter(v.auditor for item in work if len(item.verdicts) > 1 for v in item.verdicts)
    overruled = Counter(line.auditor for item in work for line in item.overruled)
    counts = (firsts, looks, failed, missed, compared, overruled)
    return tuple(AuditorCount(name, *(count[name] for count in counts)) for name in auditors)
