"""What several verdicts on one contribution come to, written from docs/protocol.md, section 6, "Disputes".

Owns sides, voices, which side prevails, and who is overruled, as functions of verdicts. Shares nothing with
verification.disputes. Does not own which verdicts there are (disputes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from verification.records import Verdict

Side = tuple[str, str, str, tuple[str, ...], int | None, int]
NO_PASS: Side = ("pass", "", "", (), None, 0)  # where nobody passed it and its contributor appeals


def side_of(verdict: Verdict) -> Side:
    """What two verdicts of one side agree in."""
    v = verdict
    return v.outcome, v.payload, v.next_state, v.trace, v.loss_first, v.loss_last


def voices(verdicts: Sequence[Verdict]) -> Counter[Side]:
    """How many speak for each side: of every class only those who found the same to the digit."""
    of_one_mind = Counter((side_of(v), v.numerics_class, v.deviations) for v in verdicts)
    of_a_class: dict[tuple[Side, str], int] = {}
    for (side, numerics, _), count in of_one_mind.items():
        of_a_class[side, numerics] = max(count, of_a_class.get((side, numerics), 0))
    found: Counter[Side] = Counter()
    for (side, _), count in of_a_class.items():
        found[side] += count
    return found


def prevailing(verdicts: Sequence[Verdict]) -> Side | None:
    """The side with two voices or more and more than any other."""
    counted = voices(verdicts)
    most = max(counted.values(), default=0)
    best = [side for side, count in counted.items() if count == most]
    return best[0] if most >= 2 and len(best) == 1 else None


def contested(verdicts: Sequence[Verdict], *, appealed: bool) -> bool:
    """Whether any two contradict one another, or the contributor both."""
    return appealed or any(
        side_of(one) != side_of(other)
        or (one.numerics_class == other.numerics_class and one.deviations != other.deviations)
        for one, other in combinations(verdicts, 2)
    )


def lead(verdicts: Sequence[Verdict], *, appealed: bool) -> int:
    """By how many voices the strongest side leads; an appeal speaks for the side that passes."""
    counted = voices(verdicts)
    if appealed:
        counted[next((side for side in counted if side[0] == "pass"), NO_PASS)] += 1
    ranked = sorted((*counted.values(), 0, 0), reverse=True)
    return ranked[0] - ranked[1]


def overruled(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those against whom two of their own class, who found the same, speak for the side that prevails."""
    side = prevailing(verdicts)
    on_it = Counter((v.numerics_class, v.deviations) for v in verdicts if side and side_of(v) == side)
    sound = {kin for kin, count in on_it.items() if count >= 2}
    judged = {numerics for numerics, _ in sound}
    return [
        v
        for v in sorted(verdicts, key=lambda verdict: verdict.look)
        if v.numerics_class in judged
        and not (side_of(v) == side and (v.numerics_class, v.deviations) in sound)
    ]
