"""Segments of local steps: what follows from docs/protocol.md, section 7, tried for every small case."""

from __future__ import annotations

from itertools import combinations

import pytest

from verification.segments import (
    looked_into,
    opened_leaves,
    segment_count,
    segment_steps,
    steps_in,
    unbroken_runs,
    waves,
)


def every_choice(most: int) -> list[tuple[tuple[int, ...], int]]:
    """Every ascending choice of segments of up to so many, with how many there are."""
    return [
        (chosen, count)
        for count in range(1, most + 1)
        for size in range(1, count + 1)
        for chosen in combinations(range(count), size)
    ]


CHOICES = every_choice(7)


def test_a_wave_shows_no_end_before_it_was_told() -> None:
    """Each segment is told once, at the latest possible that its start allows, and as soon as that."""
    for chosen, _ in CHOICES:
        shown: set[int] = set()
        told: list[int] = []
        for wave in waves(chosen):
            assert list(wave) == sorted(wave)
            shown |= {segment - 1 for segment in wave}
            assert not shown & set(wave)
            assert all(segment - 1 not in chosen or segment - 1 in told for segment in wave)
            told += wave
        assert sorted(told) == list(chosen)
        assert len(waves(chosen)) == max(last - first + 1 for first, last in unbroken_runs(chosen))
    assert waves([0, 1, 2, 5, 7, 8]) == [(0, 5, 7), (1, 8), (2,)]
    assert waves([]) == []


def test_there_are_247_choices() -> None:
    assert len(CHOICES) == len(set(CHOICES)) == 247


@pytest.mark.parametrize("trace_every", [1, 2, 3, 7, 20])
def test_a_segment_ends_where_a_leaf_is_taken(trace_every: int) -> None:
    for steps in range(1, 25):
        leaves = [s for s in range(1, steps + 1) if s % trace_every == 0 or s == steps]
        count = segment_count(steps, trace_every)
        assert count == len(leaves)
        pieces = [segment_steps(i, steps, trace_every) for i in range(count)]
        assert pieces == list(zip([0, *leaves[:-1]], leaves, strict=True))


@pytest.mark.parametrize("trace_every", [1, 2, 3, 7])
def test_segments_have_their_steps_together(trace_every: int) -> None:
    for steps in range(1, 8):
        for chosen, count in every_choice(segment_count(steps, trace_every)):
            if count == segment_count(steps, trace_every):
                within = [s for s in range(steps) if s // trace_every in chosen]
                assert steps_in(chosen, steps, trace_every) == len(within)
    assert steps_in((), 5, trace_every) == 0


def test_counts_in_numbers() -> None:
    assert [segment_count(steps, 4) for steps in (1, 3, 4, 5, 8, 9)] == [1, 1, 1, 2, 2, 3]
    assert segment_count(10**12 + 1, 10) == 10**11 + 1
    assert [segment_steps(i, 9, 4) for i in range(3)] == [(0, 4), (4, 8), (8, 9)]


def test_runs_are_as_long_as_they_can_be() -> None:
    assert unbroken_runs([]) == []
    for chosen, count in CHOICES:
        inside = set(chosen)
        expected = [
            (first, last)
            for first in range(count)
            for last in range(first, count)
            if inside.issuperset(range(first, last + 1)) and not inside & {first - 1, last + 1}
        ]
        assert unbroken_runs(chosen) == expected
        assert unbroken_runs(list(chosen)) == expected


def reached(chosen: tuple[int, ...], count: int, opened: set[int]) -> bool:
    """Whether all of a choice and the boundary can be computed from the start and some opened leaves.

    Leaf -1 stands for base and start state, leaf i for where segment i ended.
    """
    known = {-1} | opened
    for segment in chosen:
        if segment - 1 not in known:
            return False
        known.add(segment)
    return count - 1 in known


def test_the_opened_leaves_are_enough_and_none_can_be_spared() -> None:
    for chosen, count in CHOICES:
        opened = opened_leaves(chosen, count)
        assert list(opened) == sorted(set(opened))
        assert reached(chosen, count, set(opened))
        for leaf in opened:
            assert 0 <= leaf < count
            assert not reached(chosen, count, set(opened) - {leaf})


def test_what_is_to_be_computed_is_never_opened() -> None:
    for chosen, count in CHOICES:
        opened = opened_leaves(chosen, count)
        assert not set(opened) & {*chosen, count}
        # In words: the leaf before a run, and that of the last step when its segment is not drawn.
        expected = {
            leaf for leaf in range(count) if leaf not in chosen and (leaf + 1 in chosen or leaf == count - 1)
        }
        assert set(opened) == expected


def test_looked_into_are_the_opened_the_computed_and_the_boundary() -> None:
    for chosen, count in CHOICES:
        into = looked_into(chosen, count)
        assert len(into) == len(opened_leaves(chosen, count)) + len(chosen) + 1
        expected = {
            leaf for leaf in range(count + 1) if leaf >= count - 1 or leaf in chosen or leaf + 1 in chosen
        }
        assert into == expected


def test_by_tolerance_every_drawn_segment_has_both_its_ends_opened() -> None:
    """Section 7: for every drawn segment s, leaf s - 1 (where s > 0) and leaf s, and leaf n - 1."""
    for chosen, count in CHOICES:
        due = {count - 1}
        for segment in chosen:
            due |= {segment - 1, segment} if segment else {segment}
        opened = opened_leaves(chosen, count, tolerant=True)
        assert opened == tuple(sorted(due))
        assert opened_leaves(list(chosen), count, tolerant=True) == opened
        # Those and the boundary are looked into: the same ones as where it goes by digest.
        into = looked_into(chosen, count, tolerant=True)
        assert into == due | {count}
        assert into == looked_into(chosen, count)
        assert set(opened_leaves(chosen, count)) < set(opened)


def test_by_tolerance_no_leaf_can_be_spared() -> None:
    """A step is repeated from a served start and compared with a served end; the boundary needs the last."""
    for chosen, count in CHOICES:
        opened = set(opened_leaves(chosen, count, tolerant=True))

        def enough(known: set[int], chosen: tuple[int, ...] = chosen, count: int = count) -> bool:
            return {count - 1, *chosen, *(s - 1 for s in chosen)} <= known | {-1}

        assert enough(opened)
        assert not any(enough(opened - {leaf}) for leaf in opened)


@pytest.mark.parametrize(
    ("segments", "count", "opened"),
    [
        ((0,), 1, (0,)),
        ((0,), 3, (0, 2)),
        ((1,), 3, (0, 1, 2)),
        ((2,), 3, (1, 2)),
        ((0, 1, 2), 3, (0, 1, 2)),
        ((1, 2, 5), 8, (0, 1, 2, 4, 5, 7)),
        ((0, 7), 9, (0, 6, 7, 8)),
    ],
)
def test_examples_by_tolerance(segments: tuple[int, ...], count: int, opened: tuple[int, ...]) -> None:
    assert opened_leaves(segments, count, tolerant=True) == opened
    assert looked_into(segments, count, tolerant=True) == {*opened, count}


@pytest.mark.parametrize(
    ("segments", "count", "opened", "into"),
    [
        ((0,), 1, (), {0, 1}),
        ((0, 1, 2), 3, (), {0, 1, 2, 3}),
        ((0,), 3, (2,), {0, 2, 3}),
        ((1,), 3, (0, 2), {0, 1, 2, 3}),
        ((2,), 3, (1,), {1, 2, 3}),
        ((0, 1), 3, (2,), {0, 1, 2, 3}),
        ((0, 2), 3, (1,), {0, 1, 2, 3}),
        ((1, 2, 5), 8, (0, 4, 7), {0, 1, 2, 4, 5, 7, 8}),
        ((0, 7), 8, (6,), {0, 6, 7, 8}),
    ],
)
def test_examples(segments: tuple[int, ...], count: int, opened: tuple[int, ...], into: set[int]) -> None:
    assert opened_leaves(segments, count) == opened
    assert opened_leaves(list(segments), count) == opened
    assert looked_into(segments, count) == into
