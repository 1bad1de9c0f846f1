"""Disputes: what several verdicts on one contribution come to, and whether another auditor has to look.

Owns "Disputes" in section 6 of docs/protocol.md, as functions of the verdicts on one slot: sides, voices,
which side prevails, who is overruled. Does not own which verdicts there are (judge.py) or what it costs to be
overruled (credits.py).

Nothing is searched for by bisection: a verdict states the digest of every leaf it looked into, so two of them
show the first segment in which they differ at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from verification.tolerance import Deviation
from verification.verdicts import Verdict

ENOUGH = 2  # verdicts, of different operators, that any penalty takes; and the lead that ends a dispute

Side = tuple[str, str, str, tuple[str, ...], int | None, int]
Kin = tuple[str, tuple[Deviation, ...]]  # what makes verdicts of one side alike: class and deviations


def side_of(verdict: Verdict) -> Side:
    """What verdicts of one side have in common."""
    v = verdict
    return v.outcome, v.payload, v.next_state, v.trace, v.loss_first, v.loss_last


def prevailing(verdicts: Sequence[Verdict]) -> Side | None:
    """The side that has two voices or more, and more than any other; None where none does."""
    ranked = _ranked(verdicts)
    if not ranked or ranked[0][1] < ENOUGH or (len(ranked) > 1 and ranked[1][1] == ranked[0][1]):
        return None
    return ranked[0][0]


def is_contested(verdicts: Sequence[Verdict], *, appealed: bool) -> bool:
    """Whether auditors contradict one another, or the contributor both of them."""
    sides = {side_of(verdict) for verdict in verdicts}
    kin = {(side_of(verdict), _kin(verdict)) for verdict in verdicts}
    classes = {(side_of(verdict), verdict.numerics_class) for verdict in verdicts}
    return appealed or len(sides) > 1 or len(kin) > len(classes)


def takes_another(verdicts: Sequence[Verdict], *, appealed: bool) -> bool:
    """Whether there is to be one look more, if anybody is left to ask."""
    if not is_contested(verdicts, appealed=appealed):
        return False
    voices = dict(_ranked(verdicts))
    passing = next((side for side in voices if side[0] == "pass"), None)
    counts = [count + (appealed and side == passing) for side, count in voices.items()]
    if appealed and passing is None:
        counts.append(1)
    first, second = sorted((*counts, 0), reverse=True)[:2]
    return first - second < ENOUGH


def overruled(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Verdicts that the prevailing side does not bear out: two alike of their own class say otherwise."""
    side = prevailing(verdicts)
    if side is None:
        return ()
    sound = {kin for kin, count in _alike(verdicts, side).items() if count >= ENOUGH}
    classes = {numerics_class for numerics_class, _ in sound}
    return tuple(
        verdict
        for verdict in verdicts
        if verdict.numerics_class in classes and not (side_of(verdict) == side and _kin(verdict) in sound)
    )


def first_difference(one: Verdict, other: Verdict) -> int | None:
    """The first leaf that two verdicts state differently; None where they differ in none."""
    pairs = zip(one.trace, other.trace, strict=False)
    return next((at for at, (first, second) in enumerate(pairs) if first != second), None)


def _kin(verdict: Verdict) -> Kin:
    return verdict.numerics_class, verdict.deviations


def _alike(verdicts: Sequence[Verdict], side: Side) -> dict[Kin, int]:
    """How many verdicts of a side are alike, by what they have in common."""
    found: dict[Kin, int] = {}
    for verdict in verdicts:
        if side_of(verdict) == side:
            found[_kin(verdict)] = found.get(_kin(verdict), 0) + 1
    return found


def _ranked(verdicts: Sequence[Verdict]) -> list[tuple[Side, int]]:
    """Every side with its voices, most first."""
    found: dict[Side, int] = {}
    for side in dict.fromkeys(map(side_of, verdicts)):
        most: dict[str, int] = {}
        for (numerics_class, _), count in _alike(verdicts, side).items():
            most[numerics_class] = max(count, most.get(numerics_class, 0))
        found[side] = sum(most.values())
    return sorted(found.items(), key=lambda item: -item[1])
