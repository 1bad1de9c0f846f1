"""Disputes once more, sentence by sentence from section 6 of docs/protocol.md, to compare disputes.py with.

Everything is found by looking at pairs and subsets; nothing is shared with the code that it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from verification.verdicts import Verdict

Verdicts = Sequence[Verdict]


def of_one_side(one: Verdict, other: Verdict) -> bool:
    return (
        one.outcome == other.outcome
        and one.payload == other.payload
        and one.next_state == other.next_state
        and one.trace == other.trace
        and (one.loss_first, one.loss_last) == (other.loss_first, other.loss_last)
    )


def are_alike(one: Verdict, other: Verdict) -> bool:
    same = one.numerics_class == other.numerics_class and one.deviations == other.deviations
    return of_one_side(one, other) and same


def sides(verdicts: Verdicts) -> list[list[Verdict]]:
    found: list[list[Verdict]] = []
    for verdict in verdicts:
        mine = next((side for side in found if of_one_side(side[0], verdict)), None)
        if mine is None:
            found.append([verdict])
        else:
            mine.append(verdict)
    return found


def voices(side: Verdicts) -> int:
    """Added up over the classes: verdicts in the largest set of that class that are alike."""
    total = 0
    for numerics_class in {verdict.numerics_class for verdict in side}:
        of_class = [verdict for verdict in side if verdict.numerics_class == numerics_class]
        total += max(
            size
            for size in range(1, len(of_class) + 1)
            for chosen in combinations(of_class, size)
            if all(are_alike(one, other) for one, other in combinations(chosen, 2))
        )
    return total


def winner(verdicts: Verdicts) -> list[Verdict] | None:
    """The side with two voices or more, and more than any other."""
    everyone = sides(verdicts)
    for side in everyone:
        others = [other for other in everyone if other is not side]
        if voices(side) >= 2 and all(voices(side) > voices(other) for other in others):
            return side
    return None


def contested(verdicts: Verdicts, appealed: bool) -> bool:
    unlike = any(
        of_one_side(one, other) and one.numerics_class == other.numerics_class and not are_alike(one, other)
        for one, other in combinations(verdicts, 2)
    )
    return len(sides(verdicts)) > 1 or unlike or appealed


def lead(verdicts: Verdicts, appealed: bool) -> int:
    """Voices of the side that has most, less those of the next; an appeal is one more for `pass`."""
    counts = [voices(side) for side in sides(verdicts) if side[0].outcome == "fail"]
    passing = [voices(side) for side in sides(verdicts) if side[0].outcome == "pass"]
    assert len(passing) <= 1
    if passing or appealed:
        counts.append(sum(passing) + appealed)
    ordered = [*sorted(counts), 0, 0] if not counts else [0, *sorted(counts)]
    return ordered[-1] - ordered[-2]


def one_more(verdicts: Verdicts, appealed: bool) -> bool:
    return contested(verdicts, appealed) and lead(verdicts, appealed) < 2


def put_down(verdicts: Verdicts) -> list[Verdict]:
    """Those overruled: two winners of their class are alike, and they are not alike with any winner."""
    side = winner(verdicts)
    if side is None:
        return []
    pairs = [(one, other) for one, other in combinations(side, 2) if are_alike(one, other)]
    classes = {one.numerics_class for one, _ in pairs}
    borne_out = {id(verdict) for pair in pairs for verdict in pair}
    return [v for v in verdicts if v.numerics_class in classes and id(v) not in borne_out]
