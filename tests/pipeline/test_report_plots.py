"""The pure parts of the report's plots: ticks, labels, thinning, numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report_plots import short_number, spread, thinned, ticks


@given(st.lists(st.floats(-100, 100), max_size=2000), st.integers(1, 400))
def test_thinned_points_are_few_and_lie_among_the_others(values: list[float], most: int) -> None:
    points = [(float(index), value) for index, value in enumerate(values)]
    found = thinned(points, most)
    assert len(found) <= most
    assert (found == points) or len(points) > most
    if values:
        assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in found)
        assert [x for x, _ in found] == sorted(x for x, _ in found)


@given(
    st.floats(min_value=-1e6, max_value=1e6),
    st.floats(min_value=1e-3, max_value=1e9),
    st.integers(min_value=1, max_value=12),
)
def test_ticks_lie_in_the_range_evenly(low: float, extent: float, most: int) -> None:
    found = ticks(low, low + extent, most)
    assert len(found) <= most + 1
    slack = 1e-6 * (abs(low) + extent)
    assert all(low - slack <= value <= low + extent + slack for value in found)
    steps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=slack) and step > 0 for step in steps)


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=5))
def test_labels_keep_their_distance(heights: list[float]) -> None:
    found = spread([(at, "kind", "words") for at in heights], 16, 200)
    assert len(found) == len(heights)
    assert all(later[0] - earlier[0] >= 16 - 1e-9 for earlier, later in itertools.pairwise(found))
    assert found[-1][0] <= 200


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (88_832, "88.8k"), (1.2e7, "12M")])
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
