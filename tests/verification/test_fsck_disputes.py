"""Sides, voices, who prevails and who is overruled: by hand, and against their definition said plainly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.test_fsck_looks_writer import (
    alike,
    made_up,
    once_more,
    one_side,
    prevails_in,
    sides_of,
    voices_of,
)
from verification.fsck_disputes import Dispute, is_contested, lead, overruled, prevailing, view_of, voices

Record = dict[str, Any]
PASS, FAIL, OTHER = made_up("pass", "x"), made_up("fail", "y"), made_up("fail", "z")
VERDICTS = st.builds(
    made_up,
    st.sampled_from(["pass", "fail"]),
    st.just("x"),
    st.sampled_from(["c", "d"]),
    st.sampled_from(["", "1", "2"]),
) | st.builds(made_up, st.just("fail"), st.sampled_from(["y", "z"]), st.sampled_from(["c", "d"]))
"""One side that passes, as sound verdicts have it, and several that fail."""


@given(st.lists(VERDICTS, max_size=9))
def test_voices_of_sides(verdicts: list[Record]) -> None:
    found = {view.side: count for view, count in voices(map(view_of, verdicts)).items()}
    assert found == {view_of(side[0]).side: voices_of(side) for side in sides_of(verdicts)}


@given(st.lists(VERDICTS, max_size=9))
def test_who_prevails(verdicts: list[Record]) -> None:
    winner, side = prevailing(map(view_of, verdicts)), prevails_in(verdicts)
    assert (winner and winner.side) == (view_of(side[0]).side if side else None)
    assert (winner is not None and winner.fails) == (bool(side) and side[0]["outcome"] == "fail")


@given(st.lists(VERDICTS, max_size=9), st.booleans())
def test_when_there_is_one_look_more(verdicts: list[Record], appealed: bool) -> None:
    views = [view_of(verdict) for verdict in verdicts]
    found = is_contested(views, appealed=appealed) and lead(views, appealed=appealed) < 2
    assert found == once_more(verdicts, appealed=appealed)


@given(st.lists(VERDICTS, max_size=9))
def test_who_is_overruled(verdicts: list[Record]) -> None:
    side = prevails_in(verdicts)
    twice = [a for i, a in enumerate(side) for b in side[:i] if alike(a, b)]
    expected = [
        look
        for look, mine in enumerate(verdicts)
        if (rivals := [a for a in twice if a["class"] == mine["class"]])
        and not any(alike(a, mine) for a in rivals)
    ]
    assert overruled({look: view_of(verdict) for look, verdict in enumerate(verdicts)}) == expected


@pytest.mark.parametrize(
    ("verdicts", "appealed", "contested", "by"),
    [
        ([PASS], False, False, 1),
        ([PASS, PASS], False, False, 2),
        ([FAIL, FAIL], False, False, 2),
        ([FAIL, FAIL], True, True, 1),
        ([FAIL, FAIL, FAIL], True, True, 2),
        ([FAIL, FAIL, PASS], True, True, 0),
        ([PASS, FAIL], False, True, 0),
        ([PASS, FAIL, PASS], False, True, 1),
        ([PASS, FAIL, PASS, PASS], False, True, 2),
        ([FAIL, OTHER], False, True, 0),
        ([made_up("pass", "x", own="1"), made_up("pass", "x", own="2")], False, True, 1),
        ([made_up("pass", "x", own="1"), made_up("pass", "x", "d", own="2")], False, False, 2),
        ([made_up("pass", "x", own="1")] * 2 + [made_up("pass", "x", "d")], False, False, 3),
    ],
)
def test_contested_slots_by_hand(verdicts: list[Record], appealed: bool, contested: bool, by: int) -> None:
    views = [view_of(verdict) for verdict in verdicts]
    assert is_contested(views, appealed=appealed) is contested
    assert lead(views, appealed=appealed) == by


@pytest.mark.parametrize(
    "key", ["outcome", "payload", "next_state", "trace", "class", "deviations", "loss_last", "auditor"]
)
def test_what_makes_a_side_and_what_is_alike(key: str) -> None:
    other = {**PASS, key: {"outcome": "fail", "trace": ["y"], "deviations": ["y"]}.get(key, "y")}
    in_side = key not in ("outcome", "payload", "next_state", "trace", "loss_last")
    assert (view_of(other).side == view_of(PASS).side) is in_side is one_side(other, PASS)
    assert (view_of(other) == view_of(PASS)) is (key == "auditor") is alike(other, PASS)


def test_between_classes_nobody_is_overruled() -> None:
    one, two = made_up("pass", "x", own="1"), made_up("fail", "x", "d", own="2")
    assert overruled({1: view_of(two), 2: view_of(one), 3: view_of(one), 4: view_of(one)}) == []
    mine = {**two, "class": "c"}
    assert overruled({1: view_of(mine), 2: view_of(one), 3: view_of(one), 4: view_of(one)}) == [1]


def test_one_voice_overrules_nobody() -> None:
    """A side that prevails by voices of two classes has no two that are alike."""
    views = [view_of(v) for v in (FAIL, made_up("pass", "x"), made_up("pass", "x", "d"))]
    assert prevailing(views) is not None
    assert overruled(dict(enumerate(views, 1))) == []


# --- who is asked ---

OPERATORS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "d1": "d", "e1": "e"}
ORDER = ["b1", "a1", "c1", "a2", "d1", "e1"]


def dispute(first: str, second: list[str] | None, *told: tuple[str, Record]) -> Dispute:
    found = Dispute(ORDER, OPERATORS, first, second)
    for look, (name, verdict) in enumerate(told, 1):
        assert name in found.called(look)
        found.take(look, {**verdict, "auditor": name})
    return found


def test_candidates_of_further_looks() -> None:
    found = dispute("a1", ["c1", "d1", "e1"], ("a1", FAIL), ("d1", PASS))
    assert list(found.called(3)) == ["e1"], "b1 missed the first look, c1 the second, a2 is of operator a"
    assert found.called(4) == []
    assert sorted(found.missed()) == [("b1", 1), ("c1", 2), ("e1", 3)]
    assert found.reason() == "disputed"
    found.take(3, {**PASS, "auditor": "e1"})
    assert sorted(found.missed()) == [("b1", 1), ("c1", 2)], "for look 4 there is nobody"
    assert found.reason() is None
    assert found.overruled() == {1: ("a1", True)}


def test_no_look_before_the_one_before_it() -> None:
    found = dispute("b1", ["a1", "c1", "a2", "d1", "e1"], ("b1", FAIL))
    assert [list(found.called(look)) for look in (3, 4)] == [[], []]
    assert (found.reason(), found.missed()) == ("unconfirmed", [(n, 2) for n in ORDER[1:]])


def test_a_first_verdict_that_is_lost() -> None:
    found = Dispute(ORDER, OPERATORS, "a1", ["c1"])
    assert (found.reason(), found.missed()) == ("unaudited", [("b1", 1), ("a1", 1), ("c1", 2)])
    found.take(2, {**FAIL, "auditor": "c1"})
    assert (found.reason(), found.missed()) == ("unaudited", [("b1", 1), ("a1", 1)])
    assert found.called(3) == []


def test_an_appeal_brings_a_third_look() -> None:
    found = dispute("b1", ["c1", "d1", "e1"], ("b1", FAIL), ("c1", FAIL))
    assert found.reason() == "failed-audit"
    assert found.called(3) == []
    found.appealed = True
    assert list(found.called(3)) == ["a1", "a2", "d1", "e1"]
    assert found.reason() == "failed-audit", "it is no voice when the slot is settled"
    found.take(3, {**FAIL, "auditor": "a2"})
    assert found.called(4) == []
    assert found.missed() == [("a1", 3)]


@pytest.mark.parametrize(
    ("second", "told", "reason"),
    [
        (None, [PASS], None),
        (["c1"], [PASS], "unaudited"),
        (None, [FAIL], "unconfirmed"),
        (["c1"], [FAIL], "unconfirmed"),
        (["c1"], [PASS, PASS], None),
        (["c1"], [FAIL, FAIL], "failed-audit"),
        (["c1"], [FAIL, OTHER], "disputed"),
        (["c1"], [FAIL, PASS], "disputed"),
        (["c1"], [FAIL, PASS, PASS], None),
        (["c1"], [FAIL, PASS, FAIL], "failed-audit"),
        (["c1"], [FAIL, PASS, PASS, FAIL], "disputed"),
        (["c1"], [FAIL, OTHER, FAIL, OTHER], "disputed"),
    ],
)
def test_what_verdicts_come_to(second: Any, told: list[Record], reason: str | None) -> None:
    names = ["b1", "c1", "d1", "e1"]
    assert dispute("b1", second, *zip(names, told, strict=False)).reason() == reason


@given(st.lists(st.tuples(VERDICTS, st.integers(0, 2)), min_size=2, max_size=30), st.booleans())
def test_looks_go_on_while_they_are_due(told: list[tuple[Record, int]], appealed: bool) -> None:
    """Each asks those left in the draw's order: no operator twice, nobody who was silent before."""
    order = [f"{letter}{n}" for n in range(2) for letter in "abcdefghij"]
    found = Dispute(order, {name: name[0] for name in order}, order[0], order[1:10])
    found.appealed = appealed
    given, heard, missed = [told[0][0]], {"a"}, list[tuple[str, int]]()
    found.take(1, {**given[0], "auditor": order[0]})
    called = order[1:10]
    for look, (verdict, quiet) in enumerate(told[1:], 2):
        missed += [(name, look) for name in called[:quiet]]
        if quiet >= len(called):
            break
        found.take(look, {**verdict, "auditor": called[quiet]})
        given.append(verdict)
        heard.add(called[quiet][0])
        silent = {name for name, _ in missed}
        due = once_more(given, appealed=appealed)
        called = [n for n in order if n[0] not in heard and n not in silent] if due else []
        assert list(found.called(look + 1)) == called
    else:
        missed += [(name, len(told) + 1) for name in called]
    assert found.missed() == missed
