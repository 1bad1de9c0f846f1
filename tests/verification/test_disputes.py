"""Disputes: sides, voices, who prevails, when one more has to look, and who is overruled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import b3, key, sha
from tests.verification.slow_disputes import (
    contested,
    of_one_side,
    one_more,
    put_down,
    sides,
    voices,
    winner,
)
from verification.disputes import (
    ENOUGH,
    first_difference,
    is_contested,
    overruled,
    prevailing,
    side_of,
    takes_another,
)
from verification.records import Deviation, Verdict

TRACE = tuple(sha(f"leaf {i}") for i in range(4))


def told(outcome: str = "pass", by: str = "a0", **changes: Any) -> Verdict:
    """A verdict: `pass`, or a `fail` of one side; `changes` are of its fields."""
    word: Any = outcome
    mark = "" if outcome == "pass" else " other"
    place: tuple[Any, ...] = (1, sha("run"), 1, 0, 0, 1, by, key(by).public, word, ())
    values = (b3("payload" + mark), b3("state" + mark), TRACE, 5, 4, (), "class")
    return replace(Verdict(*place, *values), **changes)


def found(by: str) -> tuple[Deviation, ...]:
    return (Deviation(1, 2, sha(by), 3, 4),)


P, F = told(), told("fail")
G = told("fail", payload=b3("another"))  # a fail of another side
NEAR = {"numerics_class": "near"}
FAR = {"numerics_class": "far"}


def near(outcome: str, by: str) -> Verdict:
    return told(outcome, **NEAR, deviations=found(by))


def far(outcome: str, by: str) -> Verdict:
    return told(outcome, **FAR, deviations=found(by))


# --- sides ---


@pytest.mark.parametrize("name", ["outcome", "payload", "next_state", "trace", "loss_first", "loss_last"])
def test_a_side_is_what_verdicts_say_of_the_work(name: str) -> None:
    changed = {"outcome": "fail", "payload": b3("x"), "next_state": b3("x"), "trace": TRACE[:-1]}
    changed |= {"loss_first": 7, "loss_last": 9}
    assert side_of(replace(P, **{name: changed[name]})) != side_of(P)
    assert prevailing([P, replace(P, **{name: changed[name]})]) is None


def test_who_says_it_of_what_class_and_how_far_off_makes_no_other_side() -> None:
    other: list[dict[str, Any]] = [
        {"auditor": "a1", "key": key("a1").public}, {"look": 7}, NEAR, {"deviations": found("x")},
        {"differs": ("loss",)},
    ]  # fmt: skip
    assert {side_of(replace(P, **change)) for change in other} == {side_of(P)}


@pytest.mark.parametrize(
    ("verdicts", "side"),
    [
        ([], None),
        ([P], None),
        ([F], None),
        ([P, P], P),
        ([F, F], F),
        ([P, F], None),
        ([P, P, F], P),
        ([F, P, F], F),
        ([P, P, F, F], None),
        ([F, F, P, P, P], P),
        ([F, G], None),
        ([F, G, P], None),
        ([F, G, P, P], P),
        ([F, G, G], G),
        ([F, F, G, G, P], None),
        ([near("pass", "x"), far("pass", "y")], near("pass", "x")),
        ([near("pass", "x"), near("pass", "y")], None),  # unlike: one voice
        ([near("pass", "x"), near("pass", "y"), near("pass", "y")], near("pass", "x")),
        ([near("pass", "x"), near("pass", "y"), far("pass", "x")], near("pass", "x")),
        ([near("pass", "x"), near("pass", "y"), far("fail", "x")], None),
        ([near("pass", "x"), near("pass", "y"), near("pass", "z"), far("fail", "x"), near("fail", "x")],
         near("fail", "x")),
    ],
)  # fmt: skip
def test_a_side_prevails_with_two_voices_and_more_than_any_other(
    verdicts: list[Verdict], side: Verdict | None
) -> None:
    for order in (verdicts, verdicts[::-1]):
        assert prevailing(order) == (side_of(side) if side else None)


@pytest.mark.parametrize(
    ("verdicts", "alone", "appealed"),
    [
        ([P], False, True),
        ([P, P], False, True),
        ([F, F], False, True),
        ([P, F], True, True),
        ([F, G], True, True),
        ([near("pass", "x"), far("pass", "y")], False, True),
        ([near("pass", "x"), near("pass", "y")], True, True),
        ([near("pass", "x"), far("pass", "x"), near("pass", "y")], True, True),
    ],
)
def test_what_is_contested(verdicts: list[Verdict], alone: bool, appealed: bool) -> None:
    assert is_contested(verdicts, appealed=False) is alone
    assert is_contested(verdicts, appealed=True) is appealed


@pytest.mark.parametrize(
    ("verdicts", "appealed", "more"),
    [
        ([P], False, False),
        ([P, P], False, False),
        ([F, F], False, False),
        ([P, F], False, True),
        ([P, F, P], False, True),  # 2:1
        ([P, F, F], False, True),
        ([P, F, P, P], False, False),  # 3:1
        ([P, F, P, F], False, True),
        ([F, F], True, True),  # 2:1
        ([F, F, F], True, False),  # 3:1
        ([F, F, P], True, True),  # 2:2
        ([F, F, P, P], True, True),  # 2:3
        ([F, F, P, P, P], True, False),  # 2:4
        ([F, F, P, F], True, True),  # 3:2
        ([F, F, F, P, F], True, False),  # 4:2
        ([F, F, G], True, True),
        ([F, G], False, True),
        ([F, G, F], False, True),
        ([F, G, F, F], False, False),
        ([F, G, P, P, P], False, False),  # 3:1:1
        ([near("pass", "x"), near("pass", "y")], False, True),
        ([near("pass", "x"), near("pass", "y"), near("pass", "x")], False, False),
        ([near("pass", "x"), near("pass", "y"), far("pass", "x")], False, False),
        ([near("pass", "x"), far("pass", "x")], False, False),
        ([near("fail", "x"), far("fail", "x")], True, True),
    ],
)
def test_whether_one_more_has_to_look(verdicts: list[Verdict], appealed: bool, more: bool) -> None:
    for order in (verdicts, verdicts[::-1]):
        assert takes_another(order, appealed=appealed) is more


# --- overruled ---


def by_name(names: str) -> list[Verdict]:
    """Verdicts of one class by letter: p, f and g; the place in the word is the auditor."""
    kinds = {"p": P, "f": F, "g": G}
    return [replace(kinds[name], auditor=f"a{at}") for at, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "gone"),
    [
        ("", ""), ("p", ""), ("pf", ""), ("fg", ""), ("pp", ""), ("ff", ""), ("ppff", ""),
        ("fpp", "0"), ("pff", "0"), ("pfp", "1"), ("fgpp", "01"), ("ffppp", "01"), ("pfff", "0"),
        ("fgg", "0"), ("ffggp", ""),
    ],
)  # fmt: skip
def test_who_is_overruled_within_a_class(names: str, gone: str) -> None:
    assert [v.auditor for v in overruled(by_name(names))] == [f"a{at}" for at in gone]


def test_two_alike_of_ones_own_class_overrule_and_nobody_else_does() -> None:
    alone = far("fail", "x")
    for others in ([near("pass", "x")] * 2, [near("pass", "x")] * 4, [near("pass", "x"), told()]):
        assert prevailing([alone, *others]) == side_of(others[0])
        assert overruled([alone, *others]) == ()
    # One of its own class beside them is one, and two of it are not alike.
    assert overruled([alone, near("pass", "x"), near("pass", "x"), far("pass", "x")]) == ()
    unlike = [far("pass", "x"), far("pass", "y")]
    assert overruled([alone, near("pass", "x"), near("pass", "x"), *unlike]) == ()
    assert overruled([alone, far("pass", "x"), far("pass", "x")]) == (alone,)
    # The side that prevails may have others of the class than those that overrule.
    both = [far("pass", "x"), far("pass", "x")]
    assert overruled([alone, near("fail", "y"), near("pass", "x"), *both]) == (alone,)


def test_another_deviation_than_two_of_ones_class_is_overruled_though_it_passes() -> None:
    odd = near("pass", "made up")
    assert overruled([odd, near("pass", "x")]) == ()
    assert overruled([odd, near("pass", "x"), near("pass", "x")]) == (odd,)
    assert overruled([odd, near("pass", "x"), far("pass", "x")]) == ()
    # Two against two, and either pair bears itself out.
    assert overruled([odd, odd, near("pass", "x"), near("pass", "x")]) == ()
    assert overruled([odd, odd, near("pass", "x"), near("pass", "x"), near("pass", "z")])[
        0
    ].deviations == found("z")


def test_the_same_deviation_on_the_other_side_is_not_borne_out() -> None:
    assert overruled([near("fail", "x"), near("pass", "x"), near("pass", "x")]) == (near("fail", "x"),)


# --- against the words of the specification ---


def verdicts_of(classes: Sequence[str], marks: Sequence[str]) -> st.SearchStrategy[list[Verdict]]:
    one = st.builds(
        lambda kind, numerics_class, mark: replace(
            {"p": P, "f": F, "g": G, "t": replace(F, trace=TRACE[:1]), "n": replace(F, next_state=b3("n"))}[
                kind
            ],
            numerics_class=numerics_class,
            deviations=found(mark) if mark else (),
        ),
        st.sampled_from("ppffgtn"),
        st.sampled_from(classes),
        st.sampled_from(marks),
    )
    return st.lists(one, max_size=7).map(
        lambda items: [replace(item, auditor=f"a{at}") for at, item in enumerate(items)]
    )


many = st.one_of(verdicts_of(["near"], [""]), verdicts_of(["near", "far"], ["x", "x", "y"]))


@given(many, st.booleans())
def test_every_answer_is_what_the_words_say(verdicts: list[Verdict], appealed: bool) -> None:
    side = winner(verdicts)
    assert prevailing(verdicts) == (side_of(side[0]) if side else None)
    assert len({side_of(verdict) for verdict in verdicts}) == len(sides(verdicts))
    assert is_contested(verdicts, appealed=appealed) is contested(verdicts, appealed)
    assert takes_another(verdicts, appealed=appealed) is one_more(verdicts, appealed)
    assert list(overruled(verdicts)) == put_down(verdicts)


@given(many)
def test_nobody_is_overruled_but_by_two_of_its_own_class(verdicts: list[Verdict]) -> None:
    for gone in overruled(verdicts):
        others = [v for v in verdicts if v.numerics_class == gone.numerics_class and v is not gone]
        kinds = [(side_of(v), v.deviations) for v in others if side_of(v) == prevailing(verdicts)]
        assert any(kinds.count(kind) >= ENOUGH for kind in kinds)
        assert (side_of(gone), gone.deviations) not in kinds


@given(
    st.lists(st.sampled_from(["near", "far"]), min_size=1, max_size=6),
    st.sampled_from(["pass", "fail"]),
    verdicts_of(["near", "far"], ["x", "y"]).filter(lambda items: len(items) >= 1),
)
def test_one_liar_overrules_nobody(honest: list[str], truth: str, lies: list[Verdict]) -> None:
    """Honest auditors of a class find the same; a single other one never takes any of them down."""
    found_ = [told(truth, numerics_class=name, deviations=found(name)) for name in honest]
    lie = replace(lies[0], auditor="liar")
    assert all(verdict.auditor == "liar" for verdict in overruled([lie, *found_]))
    if len(honest) > 1 and not of_one_side(lie, found_[0]):
        assert prevailing([lie, *found_]) == side_of(found_[0])
        assert voices([lie]) == 1


# --- where two of them first differ ---


def test_the_first_difference_is_a_place_in_the_trace() -> None:
    assert first_difference(P, F) is None
    for at in range(4):
        other = replace(P, trace=(*TRACE[:at], *(sha("x") for _ in TRACE[at:])))
        assert first_difference(P, other) == first_difference(other, P) == at
    assert first_difference(P, replace(P, trace=TRACE[:2])) is None
    assert first_difference(P, replace(P, trace=(*TRACE[:1], sha("x")))) == 1
