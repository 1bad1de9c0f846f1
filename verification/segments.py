"""Segments of a contribution's local steps: how many there are, and what an audit of some looks into.

Owns the arithmetic of section 7 of docs/protocol.md under "Segments": counts, unbroken runs, which leaves
are opened. Does not own which segments are drawn (lottery.py) or what is computed in them (pipeline/work.py).

Of n segments, segment i ends with leaf i of the trace; leaf n is the boundary, from the last step to payload
and next state, which every audit takes.
"""

from __future__ import annotations

from collections.abc import Sequence


def segment_count(steps: int, trace_every: int) -> int:
    """How many segments `steps` local steps have."""
    return -(-steps // trace_every)


def segment_steps(segment: int, steps: int, trace_every: int) -> tuple[int, int]:
    """(first local step of a segment, the one after its last)."""
    return segment * trace_every, min((segment + 1) * trace_every, steps)


def steps_in(segments: Sequence[int], steps: int, trace_every: int) -> int:
    """How many local steps some segments have together."""
    spans = (segment_steps(segment, steps, trace_every) for segment in segments)
    return sum(stop - start for start, stop in spans)


def unbroken_runs(segments: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each unbroken run in an ascending list of segments."""
    found: list[tuple[int, int]] = []
    for segment in segments:
        if found and found[-1][1] == segment - 1:
            found[-1] = (found[-1][0], segment)
        else:
            found.append((segment, segment))
    return found


def waves(segments: Sequence[int]) -> list[tuple[int, ...]]:
    """An ascending list of segments in parts, none of which has two neighbours: the starts of a part's
    segments can be served without the end of any of them. The first of each unbroken run come first, then
    the second, and so on.
    """
    runs = unbroken_runs(segments)
    longest = max((last - first + 1 for first, last in runs), default=0)
    return [tuple(first + i for first, last in runs if first + i <= last) for i in range(longest)]


def opened_leaves(segments: Sequence[int], count: int, *, tolerant: bool = False) -> tuple[int, ...]:
    """The leaves that a contributor of `count` segments opens for an audit of `segments`, ascending.

    Where it rests on tolerance every drawn segment is judged by itself, between two opened leaves.
    """
    if tolerant:
        around = {leaf for segment in segments for leaf in (segment - 1, segment) if leaf >= 0}
        return tuple(sorted(around | {count - 1}))
    before = {first - 1 for first, _ in unbroken_runs(segments) if first > 0}
    last = set() if segments and segments[-1] == count - 1 else {count - 1}
    return tuple(sorted(before | last))


def looked_into(segments: Sequence[int], count: int, *, tolerant: bool = False) -> frozenset[int]:
    """The leaves whose digests an auditor of `segments` states."""
    return frozenset([*opened_leaves(segments, count, tolerant=tolerant), *segments, count])
