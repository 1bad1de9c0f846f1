"""The looks at a contribution: who is asked in each, who missed it, and who was overruled.

Owns whom a look asks, from the seals and verdicts so far, up to those that a dispute takes, and who may
appeal: section 6 of docs/protocol.md, "Disputes". Does not own what verdicts come to (judge.py, disputes.py),
or the lots behind looks 1 and 2 (lottery.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verification.disputes import overruled, takes_another
from verification.judge import TurnEvidence, reason_by_verdicts, verdicts_on
from verification.records import Missed, Overruled, Verdict


def may_appeal(turn: TurnEvidence, slot: int) -> bool:
    """Whether a contributor may appeal: by looks 1 and 2 its work is a fault."""
    verdicts = verdicts_on(turn, slot)
    return set(verdicts) == {1, 2} and reason_by_verdicts(turn, slot) == "failed-audit"


def overruled_auditors(turn: TurnEvidence, evidence: Mapping[int, str | None]) -> tuple[Overruled, ...]:
    """Whose verdicts others did not bear out, by slot and look; `evidence` are digests of cases by slot."""
    if turn.second is None:
        return ()
    return tuple(
        Overruled(verdict.slot, verdict.look, verdict.auditor, evidence.get(verdict.slot))
        for slot in sorted({slot for slot, _ in turn.verdicts})
        for verdict in overruled(list(verdicts_on(turn, slot).values()))
    )


@dataclass(frozen=True)
class Asked:
    """A look at a slot: who was to be asked, in order, and who answered, None where nobody has yet."""

    look: int
    auditors: tuple[str, ...]
    by: str | None

    @property
    def missed(self) -> tuple[str, ...]:
        """Those that were asked in vain, if no answer comes any more."""
        return self.auditors if self.by is None else self.auditors[: self.auditors.index(self.by)]


def asked_at(turn: TurnEvidence, slot: int) -> tuple[Asked, ...]:
    """The looks at a drawn and served slot so far, the last of them perhaps still without a verdict.

    Looks after the second are those that a dispute takes; one that nobody is left for is not among them.
    """
    drawn = next(item.auditors for item in turn.draw.drawn if item.slot == slot)
    verdicts = verdicts_on(turn, slot)
    sealed = {item.slot: item.auditor for item in turn.first_looks.looks} if turn.first_looks else {}
    first = sealed.get(slot)
    looks = [Asked(1, drawn[: drawn.index(first) + 1] if first else drawn, _by(verdicts, 1))]
    second = turn.second.looks if turn.second else ()
    again = next((item.auditors for item in second if item.slot == slot), ())
    if again:
        looks.append(Asked(2, again, _by(verdicts, 2)))
    given = [verdicts[look] for look in (1, 2) if look in verdicts]
    while len(given) == looks[-1].look >= 2 and takes_another(given, appealed=slot in turn.appeals):
        left = _left(turn, drawn, given, looks)
        if not left:
            break
        number = looks[-1].look + 1
        looks.append(Asked(number, left, _by(verdicts, number)))
        if number in verdicts:
            given.append(verdicts[number])
    return tuple(looks)


def further_look(turn: TurnEvidence, slot: int) -> Asked | None:
    """The look after the second that a slot waits for, None where it waits for none."""
    last = asked_at(turn, slot)[-1]
    return last if last.look > 2 and last.by is None else None


def _by(verdicts: Mapping[int, Verdict], look: int) -> str | None:
    return verdicts[look].auditor if look in verdicts else None


def _left(
    turn: TurnEvidence, drawn: Sequence[str], given: Sequence[Verdict], looks: Sequence[Asked]
) -> tuple[str, ...]:
    """Of the auditors drawn, those of operators that were not heard, and that missed no look."""
    operators = {auditor.member: auditor.operator for auditor in turn.open.auditors}
    heard = {operators[verdict.auditor] for verdict in given}
    missed = {name for look in looks for name in look.missed}
    return tuple(name for name in drawn if operators[name] not in heard and name not in missed)


def missed_auditors(turn: TurnEvidence) -> tuple[Missed, ...]:
    """Who was asked, in the drawn order, and gave no verdict; it follows from who did."""
    if turn.second is None:
        return ()
    slots = sorted(item.slot for item in turn.draw.drawn if _was_asked(turn, item.slot))
    return tuple(
        Missed(slot, look.look, name)
        for slot in slots
        for look in asked_at(turn, slot)
        for name in look.missed
    )


def _was_asked(turn: TurnEvidence, slot: int) -> bool:
    return slot in turn.committed and slot not in turn.refused and slot not in turn.unserved
