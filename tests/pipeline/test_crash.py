"""A run that is killed anywhere ends, when taken up again, with the weights of one that never was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.pipeline.crash_tools import (
    Site,
    in_child,
    in_parallel,
    in_progress_only,
    killed_at,
    scratch,
    small_config,
    steps_of,
    wrong_at_the_end,
)
from tests.tiny import corpus

EVERY_POINT = 1
SOME_POINTS = 23


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    corpus()  # made once, before any fork
    with scratch() as folder:
        yield folder


def made(place: Path, kind: str | None) -> tuple[Site, str, int]:
    """A run folder as create_run leaves it, the digest it ends with undisturbed, and how many steps that is."""
    name = kind or "honest"
    fresh = Site(place / f"{name}-fresh")
    if not fresh.root.exists():
        in_child(lambda: fresh.create(small_config(), kind))
    whole = fresh.copy(place / f"{name}-whole-{random.getrandbits(40):x}")
    steps = steps_of(whole, whole.finish)
    answer = whole.verified(2)
    assert answer.ok
    assert answer.complete
    return fresh, answer.weights_digest, steps


def kill_and_resume(root: Path, fresh: Site, digest: str, points: list[int], again: list[int]) -> list[str]:
    """Kill at each point, and `again` steps into each resume; then resume to the end."""
    found = []
    for point in points:
        site = fresh.copy(root / str(point))
        at = f"killed before step {point}"
        if killed_at(site, point, site.finish) is not None:
            found.append(f"{at}: was not killed")
        for more in again:
            found += [f"{at}: {line}" for line in in_progress_only(site.verified(1))]
            at += f" and {more} of the resume"
            killed_at(site, more, site.finish)
        found += [f"{at}: {line}" for line in in_progress_only(site.verified(1))]
        _, weights = in_child(site.finish)
        if weights != digest:
            found.append(f"{at}: weights {weights}, undisturbed {digest}")
        found += [f"{at}: {line}" for line in wrong_at_the_end(site, digest)]
    return found


def halves(work: Callable[[list[int]], list[str]], points: list[int]) -> list[str]:
    return in_parallel([partial(work, points[0::2]), partial(work, points[1::2])])


@pytest.mark.parametrize("every", [SOME_POINTS, pytest.param(EVERY_POINT, marks=pytest.mark.slow)])
def test_a_driver_killed_at_any_step_of_the_rounds(place: Path, tmp_path: Path, every: int) -> None:
    fresh, digest, steps = made(place, "lazy")
    points = list(range(random.Random(every).randrange(every), steps, every))
    assert len(points) > 10
    with scratch() as root:
        assert halves(lambda some: kill_and_resume(root, fresh, digest, some, []), points) == []
