"""The pool on a real local Ray cluster: answers, lateness, deaths."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.ray_pool import RayPool
from verification.errors import ProtocolError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def refuse() -> None:
    raise ProtocolError("refused", expected=1, got=2)


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    # Everything in it is pickled by name, so that workers need no test module.
    plain = partial(
        SimpleNamespace,
        sleep=time.sleep,
        pid=os.getpid,
        divide=operator.truediv,
        leave=os._exit,
        length=len,
        variable=os.getenv,
        folder=os.getcwd,
    )
    made = RayPool(dict.fromkeys(("x", "y", "z"), plain), {"BARNRAISE_TEST": "set"})
    yield made
    made.close()


def test_answers_come_by_name_and_with_our_clock(pool: RayPool) -> None:
    answers = pool.call("divide", {"x": (6, 3), "y": (1, 4)})
    assert {name: answer.value for name, answer in answers.items()} == {"x": 2.0, "y": 0.25}
    assert all(answer.ok and answer.ms >= 0 for answer in answers.values())


def test_an_exception_is_one_members_error_and_nobody_elses(pool: RayPool) -> None:
    answers = pool.call("divide", {"x": (1, 0), "y": (1, 2)})
    assert not answers["x"].ok
    assert answers["x"].error == "ZeroDivisionError: division by zero"
    assert answers["y"].value == 0.5


def test_large_bytes_are_sent_whole(pool: RayPool) -> None:
    data = bytes(1 << 20)
    answers = pool.call("length", dict.fromkeys(("x", "y", "z"), (data,)))
    assert {answer.value for answer in answers.values()} == {1 << 20}


def test_who_is_late_is_late_and_the_others_are_not(pool: RayPool) -> None:
    answers = pool.call("sleep", {"x": (0.0,), "y": (3.0,)}, deadline_ms=1500)
    assert answers["x"].ok
    assert answers["y"].late
    assert not answers["y"].ok


def test_a_member_that_dies_comes_back_and_one_that_always_dies_is_given_up(pool: RayPool) -> None:
    before = pool.call("pid", {"z": ()})["z"].value
    gone = pool.call("leave", {"z": (1,)})["z"]
    assert not gone.ok
    assert "died" in (gone.error or "")
    after = pool.call("pid", {"z": ()})["z"]
    assert after.ok
    assert after.value != before


def test_begun_calls_run_while_others_are_made_and_are_waited_for_on_their_own(pool: RayPool) -> None:
    started = time.monotonic()
    waits = pool.begin("sleep", [("x", (1.0,)), ("y", (1.0,))])
    assert len(waits) == 2
    assert time.monotonic() - started < 0.9  # nothing is waited for
    assert pool.call("divide", {"z": (6, 3)})["z"].value == 2.0
    assert all(wait(60_000).ok for wait in waits)
    several = pool.begin("divide", [("x", (6, 3)), ("x", (1, 0)), ("x", (6, 2))])
    last, wrong, first = several[2](60_000), several[1](60_000), several[0](60_000)
    assert (first.value, last.value) == (2.0, 3.0)
    assert wrong.error == "ZeroDivisionError: division by zero"


def test_the_deadline_of_a_begun_call_counts_from_when_it_is_waited_for(pool: RayPool) -> None:
    (slow,) = pool.begin("sleep", [("x", (3.0,))])
    late = slow(300)
    assert late.late
    assert not late.ok
    assert slow(0).ok  # asked again with patience, it is there after all
    (done,) = pool.begin("sleep", [("x", (0.2,))])
    time.sleep(0.6)
    assert done(100).ok


def test_a_member_that_dies_in_a_begun_call_fails_it_and_answers_the_next(pool: RayPool) -> None:
    before = pool.call("pid", {"y": ()})["y"].value
    gone, other = pool.begin("leave", [("y", (1,))])[0], pool.begin("divide", [("z", (4, 2))])[0]
    answer = gone(60_000)
    assert not answer.ok
    assert "y died" in (answer.error or "")
    assert other(60_000).value == 2.0
    after = pool.call("pid", {"y": ()})["y"]
    assert after.ok
    assert after.value != before


def test_members_have_the_environment_and_an_empty_folder_first_on_their_path(pool: RayPool) -> None:
    assert pool.call("variable", {"x": ("BARNRAISE_TEST",)})["x"].value == "set"
    folder = pool.call("folder", {"x": ()})["x"].value
    assert folder != str(Path.cwd())


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (False, r"no Ray cluster could be reached at 10\.0\.0\.1:6379"),
        (True, r"the head at 10\.0\.0\.1:6379 is there, but does not let this process in"),
    ],
)
def test_a_cluster_that_is_not_there_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, answers: bool, words: str
) -> None:
    import ray

    def nobody(**options: object) -> None:
        raise ConnectionError("could not connect\nand " + 400 * "more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setattr("cluster.ray_pool._answers", lambda address: answers)
    with pytest.raises(UsageError, match=words) as error:
        RayPool({}, {}, address="10.0.0.1:6379")
    assert "could not connect and more" in str(error.value)
    assert len(str(error.value)) < 700
