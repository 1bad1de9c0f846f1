"""LocalPool: answers, errors, lateness, deaths."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster.pool import REVIVALS, Answer, LocalPool, MemberDiedError, Seat
from verification.errors import ProtocolError


class Thing:
    """Answers, fails or dies as told; `lives` counts how often one was made."""

    lives = 0

    def __init__(self) -> None:
        type(self).lives += 1
        self.calls = 0

    def echo(self, *values: Any) -> tuple[Any, ...]:
        self.calls += 1
        return values

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def refuse(self) -> None:
        raise ProtocolError("this is refused", expected=1, got=2)

    def bug(self) -> None:
        raise KeyError("oops")

    def slow(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def die(self) -> None:
        raise MemberDiedError

    def die_once(self) -> int:
        if type(self).lives < 2:
            raise MemberDiedError
        return type(self).lives


@pytest.fixture
def pool() -> LocalPool:
    Thing.lives = 0
    return LocalPool({"a": Thing, "b": Thing})


def test_each_object_is_made_once_and_gets_its_own_arguments(pool: LocalPool) -> None:
    answers = pool.call("echo", {"a": (1, 2), "b": ()})
    assert {name: answer.value for name, answer in answers.items()} == {"a": (1, 2), "b": ()}
    assert list(answers) == ["a", "b"]
    assert pool.call("count", {"a": ()})["a"].value == 2
    assert Thing.lives == 2


def test_errors_are_answers(pool: LocalPool) -> None:
    refused = pool.call("refuse", {"a": ()})["a"]
    assert not refused.ok
    assert refused.error == "this is refused; expected 1, got 2."
    assert pool.call("bug", {"a": ()})["a"].error == "KeyError: 'oops'"
    assert not pool.call("no_such_method", {"a": ()})["a"].ok
    assert not pool.call("echo", {"nobody": ()})["nobody"].ok
    assert pool.call("echo", {"a": (3,)})["a"].value == (3,)


def test_an_answer_after_the_deadline_is_late_and_its_value_is_gone(pool: LocalPool) -> None:
    late = pool.call("slow", {"a": (0.05,)}, deadline_ms=10)["a"]
    assert (late.ok, late.late, late.value) == (False, True, None)
    assert late.ms >= 40
    in_time = pool.call("slow", {"a": (0.0,)}, deadline_ms=5000)["a"]
    assert in_time.ok
    assert pool.call("slow", {"a": (0.02,)})["a"].ok  # 0 is no deadline


def test_one_late_object_does_not_make_the_others_late(pool: LocalPool) -> None:
    answers = pool.call("slow", {"a": (0.05,), "b": (0.0,)}, deadline_ms=20)
    assert {name: answer.late for name, answer in answers.items()} == {"a": True, "b": False}


def test_a_dead_object_is_made_anew_and_asked_again(pool: LocalPool) -> None:
    assert pool.call("die_once", {"a": ()})["a"].value == 2


def test_an_object_that_keeps_dying_is_given_up_for_this_call(pool: LocalPool) -> None:
    answer = pool.call("die", {"a": ()})["a"]
    assert answer.error == f"a died {REVIVALS} times"
    assert Thing.lives == REVIVALS
    assert pool.call("echo", {"a": (1,)})["a"].ok


def test_an_object_that_cannot_be_made_is_an_error() -> None:
    def broken() -> object:
        raise OSError("no disk")

    assert LocalPool({"a": broken}).call("echo", {"a": ()})["a"].error == "OSError: no disk"


def test_closing_forgets_the_objects(pool: LocalPool) -> None:
    pool.call("count", {"a": ()})
    pool.close()
    assert pool.call("count", {"a": ()})["a"].value == 1
    assert Answer(value=None).ok


def test_begun_calls_are_each_waited_for_on_their_own(pool: LocalPool) -> None:
    """In any order, two of one object too; what is late or wrong is one call's own."""
    waits = pool.begin("echo", [("a", (1,)), ("b", (2,)), ("a", (3,))])
    assert [waits[n](0).value for n in (2, 0, 1)] == [(3,), (1,), (2,)]
    (refused,) = pool.begin("refuse", [("a", ())])
    assert refused(0).error == "this is refused; expected 1, got 2."
    slow, quick = pool.begin("slow", [("a", (0.05,)), ("a", (0.0,))])
    late = slow(10)
    assert (late.ok, late.late, late.value) == (False, True, None)
    assert quick(5000).ok
    assert pool.begin("echo", []) == []


def test_a_begun_call_that_nobody_waits_for_is_not_made(pool: LocalPool) -> None:
    """One thread does all: what a settlement makes needless costs nothing."""
    pool.begin("echo", [("a", (1,))])
    assert Thing.lives == 0


def test_one_that_died_before_its_begun_call_is_made_anew(pool: LocalPool) -> None:
    (wait,) = pool.begin("die_once", [("a", ())])
    assert wait(0).value == 2


def test_here_everybody_lives_anywhere_and_one_more_may_come(pool: LocalPool) -> None:
    assert pool.machines() == ()
    assert pool.usage() == {}
    pool.add("c", Thing, Seat("m1", "contributor"))
    pool.add("d", Thing)
    answers = pool.call("echo", {"c": (1,), "a": (2,), "d": (3,)})
    assert [answer.value for answer in answers.values()] == [(1,), (2,), (3,)]
    (begun,) = pool.begin("count", [("c", ())])
    assert begun(0).value == 2


def test_one_that_cannot_be_made_yet_is_asked_again_at_the_next_call() -> None:
    there: list[int] = []

    def made() -> Thing:
        if not there:
            raise OSError("not yet")
        return Thing()

    pool = LocalPool({})
    pool.add("late", made, Seat("m1", "auditor"))
    assert pool.call("echo", {"late": ()})["late"].error == "OSError: not yet"
    there.append(1)
    assert pool.call("echo", {"late": ()})["late"].ok


def test_a_begun_call_that_was_late_is_there_at_the_next_look(pool: LocalPool) -> None:
    """Whoever looks briefly at something again and again does not make it again, or lose it."""
    (begun,) = pool.begin("slow", [("a", (0.05,))])
    assert begun(1).late
    assert begun(1).value == "done"
