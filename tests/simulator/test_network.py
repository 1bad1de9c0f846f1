"""Calls that were begun: the time they take passes meanwhile, and whoever dies at one is not asked again."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.faults import Crash, Gate
from tests.simulator.network import Network
from tests.simulator.people import Street
from tests.simulator.setting import Weather, draw
from tests.simulator.work import Workshop

WORK_MS = 700


class Worker:
    """Works for a while, or dies at it."""

    def __init__(self, dies: bool) -> None:
        self.spent, self.asked, self.dies = 0, 0, dies

    def serve_state(self, turn: int) -> bytes:
        self.asked += 1
        if self.dies:
            raise Crash("a00")
        self.spent += WORK_MS
        return b"state %d" % turn


class Fixed(random.Random):
    """Every call that is begun is made at once (0.0), or when it is waited for (0.9)."""

    def __init__(self, value: float) -> None:
        super().__init__(7)
        self.value = value

    def random(self) -> float:
        return self.value


def network(tmp_path: Path, value: float, dies: bool = False) -> tuple[Network, Any]:
    setting = replace(draw(0), weather=Weather())
    found = Network(setting, Street(0, Workshop(), tmp_path, b"", tmp_path), Gate())
    worker: Any = Worker(dies)
    name = setting.of_role("contributor")[0].name
    found.objects[name], found.turn = worker, 3
    found.dice = Fixed(value)
    found.people = {name: setting.of_role("contributor")[0]}
    return found, worker


def test_what_was_begun_goes_on_while_the_clock_runs(tmp_path: Path) -> None:
    found, worker = network(tmp_path, 0.0)
    name = next(iter(found.people))
    first, second = found.begin("serve_state", [(name, (1,)), (name, (2,))])
    assert worker.asked == 2
    found.now += WORK_MS // 2
    one = first(0)
    assert one.value == b"state 1"
    assert 0 < one.ms < WORK_MS
    two = second(0)  # the same member, so one after the other
    assert WORK_MS <= two.ms < 2 * WORK_MS
    assert found.now == WORK_MS // 2 + one.ms + two.ms


@pytest.mark.parametrize("value", [0.0, 0.9])
def test_the_deadline_counts_from_when_somebody_waits(tmp_path: Path, value: float) -> None:
    found, _ = network(tmp_path, value)
    name = next(iter(found.people))
    (wait,) = found.begin("serve_state", [(name, (1,))])
    found.now += 10 * WORK_MS
    answer = wait(WORK_MS // 2)
    assert answer.ok == (value == 0.0)
    assert found.unheard == ({} if answer.ok else {(1, "serve_state", name): "too slow"})


def test_whoever_dies_is_not_asked_again(tmp_path: Path) -> None:
    found, worker = network(tmp_path, 0.9, dies=True)
    name = next(iter(found.people))
    (wait,) = found.begin("serve_state", [(name, (1,))])
    assert worker.asked == 0
    assert not wait(0).ok
    assert worker.asked == 1
    assert found.unheard == {(1, "serve_state", name): "died"}


def test_what_nobody_waits_for_costs_no_time(tmp_path: Path) -> None:
    found, _ = network(tmp_path, 0.0)
    found.begin("serve_state", [(next(iter(found.people)), (1,))])
    assert found.now == 0
