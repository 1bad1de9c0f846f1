"""Who gets which positions of the data order, how many local steps, and at which learning rate.

Owns the handing-out, pace and learning-rate rules of docs/protocol.md (sections 5 and 9): integer and
IEEE arithmetic on the manifest and the log, nothing else. Does not own which window a position is
(data_prep.assignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verification.encoding import hex_float, parse_hex_float
from verification.records import Range, Requeued


@dataclass(frozen=True)
class Need:
    """A roster entry's demand: `positions` windows for a contributor of `operator`."""

    operator: str
    positions: int


def hand_out(
    queue: Sequence[Requeued], cursor: int, needs: Sequence[Need]
) -> tuple[tuple[tuple[Range, ...], ...], tuple[Requeued, ...], int]:
    """Ranges for each need in order, the queue that is left, and the cursor after it.

    Returned work goes to another operator first, in position order; the rest is fresh.
    """
    left = list(queue)
    given: list[tuple[Range, ...]] = []
    for need in needs:
        missing = need.positions
        pieces: list[Range] = []
        kept: list[Requeued] = []
        for item in left:
            start, stop = item.range
            if missing == 0 or item.operator == need.operator:
                kept.append(item)
                continue
            cut = min(stop, start + missing)
            pieces.append((start, cut))
            missing -= cut - start
            if cut < stop:
                kept.append(Requeued((cut, stop), item.operator))
        if missing:
            pieces.append((cursor, cursor + missing))
            cursor += missing
        left = kept
        given.append(tuple(pieces))
    return tuple(given), tuple(left), cursor


def give_back(
    queue: Sequence[Requeued], failed: Sequence[tuple[str, Sequence[Range]]]
) -> tuple[Requeued, ...]:
    """The queue after the ranges of failed work (operator, ranges) came back, sorted by start."""
    returned = [Requeued(piece, operator) for operator, pieces in failed for piece in pieces]
    return tuple(sorted([*queue, *returned], key=lambda item: item.range))


def next_steps(steps: int, ms: int, timing: Mapping[str, Any], trace_every: int) -> int:
    """Local steps after an accepted turn of `steps` that took `ms` by the coordinator's clock.

    `ms` is 0 where nobody measured: then they stay.
    """
    if ms == 0:
        return steps
    wanted = steps * int(timing["round_ms"]) // ms
    wanted = min(wanted, 2 * steps, int(timing["max_steps"]))
    return max(trace_every, wanted - wanted % trace_every)


def steps_when_late(steps: int, trace_every: int) -> int:
    """Local steps after a turn whose deadline passed: half."""
    return max(trace_every, steps // 2 - steps // 2 % trace_every)


def learning_rates(config: Mapping[str, Any], round_: int, most_steps: int) -> tuple[tuple[str, ...], str]:
    """(inner learning rate per local step, outer learning rate) of a round, as hex floats."""
    train, inner, outer = config["train"], config["train"]["inner"], config["outer"]
    rounds, nominal = config["run"]["rounds"], max(train["steps"])

    def scheduled(peak: str, done: int) -> str:
        warmup, decay = inner["warmup_steps"], inner["decay_rounds"]
        rise = min(done + 1, warmup) / warmup if warmup else 1.0
        fall = min(rounds - round_ + 1, decay) / decay if decay else 1.0
        return hex_float(parse_hex_float(peak) * rise * fall)

    if train["mode"] == "gradient":
        return (), scheduled(outer["lr"], round_ - 1)
    done = (round_ - 1) * nominal
    return tuple(scheduled(inner["lr"], done + step) for step in range(most_steps)), outer["lr"]
