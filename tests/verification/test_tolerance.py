"""Who rests on tolerance, what is allowed between two classes, and the numbers of a deviation."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.encoding import MAX_INTEGER
from verification.errors import FormatError
from verification.tolerance import (
    NO_BOUND,
    NO_SKETCH,
    Deviation,
    ServedStep,
    Thresholds,
    Tolerances,
    eligible,
    rests_on_tolerance,
    thresholds,
)

OWN = "sha256:" + "0a" * 32
NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
DEVIATION = Deviation(1, 2, OWN, 3, 4)
PAIRS = list(combinations("klm", 2))


@dataclass(frozen=True)
class Somebody:
    """A roster entry or an auditor."""

    name: str
    operator: str
    numerics_class: str


def item(one: str, other: str, *numbers: int) -> dict[str, Any]:
    """An item of `audit.tolerance`, as a manifest has it."""
    return {"classes": [one, other], **dict(zip(NUMBERS, numbers or (0, 0, 0, 0), strict=True))}


ENTRY = Somebody("c0", "mine", "k")


def names(tolerances: Tolerances, *auditors: tuple[str, str]) -> list[str]:
    """Who of auditors, told by operator and class and named in order, may audit ENTRY."""
    people = [Somebody(f"a{index}", *each) for index, each in enumerate(auditors)]
    return [auditor.name for auditor in eligible(tolerances, ENTRY, people)]


def test_who_is_of_the_same_class_goes_before_every_tolerance() -> None:
    both = [item("k", "l"), item("m", "k")]
    assert names(both, ("x", "l"), ("x", "k"), ("y", "m"), ("z", "k")) == ["a1", "a3"]
    assert names(both, ("x", "l"), ("x", "m"), ("y", "l")) == ["a0", "a1", "a2"]
    assert names(both[:1], ("x", "l"), ("x", "m"), ("y", "l")) == ["a0", "a2"]
    assert names(both[1:], ("x", "l"), ("x", "m"), ("y", "l")) == ["a1"]


def test_without_a_tolerance_only_the_same_class_is_eligible() -> None:
    assert names([], ("x", "l"), ("x", "k"), ("y", "m")) == ["a1"]
    assert names([], ("x", "l"), ("y", "m")) == []
    assert names([item("l", "m")], ("x", "l"), ("y", "m")) == []  # between others, not with k


def test_nobody_of_the_own_operator_is_eligible_in_either_way() -> None:
    tolerances = [item("k", "l")]
    assert names(tolerances, ("mine", "l"), ("mine", "k")) == []
    # Of the own class, but of the own operator: it neither may, nor does it keep the others from it.
    assert names(tolerances, ("mine", "k"), ("x", "l"), ("mine", "l")) == ["a1"]


def test_a_slot_rests_on_tolerance_just_when_only_a_tolerance_finds_it_an_auditor() -> None:
    tolerances = [item("l", "k")]
    cases: list[tuple[list[tuple[str, str]], bool]] = [
        ([("x", "l")], True),
        ([("x", "l"), ("y", "k")], False),
        ([("x", "l"), ("mine", "k")], True),
        ([("x", "m")], False),
        ([("mine", "l")], False),
        ([("x", "k")], False),
        ([], False),
    ]
    for auditors, rests in cases:
        people = [Somebody("a", *each) for each in auditors]
        assert rests_on_tolerance(tolerances, ENTRY, people) is rests, auditors
        assert not rests_on_tolerance([], ENTRY, people)


people = st.builds(
    Somebody, st.sampled_from(("a", "b")), st.sampled_from(("mine", "x", "y")), st.sampled_from("klm")
)
tolerance = st.lists(st.sampled_from(PAIRS), unique=True).flatmap(
    lambda pairs: st.tuples(*[st.permutations(pair).map(lambda two: item(*two)) for pair in pairs])
)


@given(tolerance, people, st.lists(people, max_size=6))
def test_eligibility_in_the_words_of_section_6(
    tolerances: Tolerances, entry: Somebody, auditors: list[Somebody]
) -> None:
    found = eligible(tolerances, entry, auditors)
    positions = [next(i for i, a in enumerate(auditors) if a is one) for one in found]
    assert positions == sorted(set(positions))  # in the order of the open
    strangers = [a for a in auditors if a.operator != entry.operator]
    alike = any(a.numerics_class == entry.numerics_class for a in strangers)
    covered = [set(one["classes"]) for one in tolerances]
    for auditor in auditors:
        fits = (
            auditor.numerics_class == entry.numerics_class
            if alike
            else {auditor.numerics_class, entry.numerics_class} in covered
        )
        assert any(one is auditor for one in found) == (fits and auditor.operator != entry.operator)
    assert rests_on_tolerance(tolerances, entry, auditors) == (bool(found) and not alike)


# --- thresholds ---


def test_the_thresholds_are_those_of_the_two_classes_in_either_order() -> None:
    tolerances = [item("k", "l", 1, 2, 3, 4), item("m", "k", 5, 6, 7, 8)]
    for one, other in permutations("kl"):
        assert thresholds(tolerances, one, other) == Thresholds(
            loss_ppm=1, norm_ppb=2, peak_ppm=3, step_milli=4
        )
    for one, other in permutations("km"):
        assert thresholds(tolerances, one, other) == Thresholds(
            loss_ppm=5, norm_ppb=6, peak_ppm=7, step_milli=8
        )
    for one, other in (("l", "m"), ("m", "l"), ("k", "k"), ("k", "kl"), ("", "k")):
        assert thresholds(tolerances, one, other) is None
    assert thresholds([], "k", "l") is None


@pytest.mark.parametrize("name", NUMBERS)
@given(st.integers(0, MAX_INTEGER), st.integers(0, MAX_INTEGER))
def test_each_number_alone_is_above_its_threshold_or_not(name: str, allowed: int, found: int) -> None:
    limits = replace(Thresholds(**dict.fromkeys(NUMBERS, 10)), **{name: allowed})
    deviation = replace(Deviation(10, 10, OWN, 10, 10), **{name: found})
    assert limits.exceeded_by(deviation) is (found > allowed)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_a_deviation_is_too_large_when_any_of_it_is(numbers: list[int]) -> None:
    limits, found = Thresholds(*numbers[:4]), Deviation(*numbers[4:6], OWN, *numbers[6:])
    above = [getattr(found, name) > getattr(limits, name) for name in NUMBERS]
    assert limits.exceeded_by(found) is any(above)


def test_what_has_no_bound_is_above_every_threshold_that_is_one() -> None:
    assert NO_BOUND == 2**53 - 1
    for name in NUMBERS:
        found = replace(Deviation(0, 0, OWN, 0, 0), **{name: NO_BOUND})
        assert Thresholds(*[NO_BOUND - 1] * 4).exceeded_by(found)


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**4),
    st.lists(st.integers(1, 10**7), min_size=8, max_size=8),
    st.integers(0, 7),
    st.integers(-2, 2),
)
def test_a_sketch_is_covered_up_to_eight_times_the_norm_and_what_rounding_does(
    norm: int, rounding: int, told: list[int], place: int, beyond: int
) -> None:
    """Sketches are in hundred-thousandths, the norm in billionths."""
    limits, most = Thresholds(0, norm, 0, 0), norm * 8 // 10_000 + 2 + rounding
    for sign in (-1, 1):
        served = list(told)
        served[place] += sign * (most + beyond)
        assert limits.covers(ServedStep(tuple(served), rounding), tuple(told)) is (beyond <= 0)
        assert limits.covers(ServedStep(tuple(told), rounding), tuple(served)) is (beyond <= 0)


def test_what_was_served_without_a_gradient_covers_nothing() -> None:
    limits = Thresholds(0, 10**9, 0, 0)
    assert not limits.covers(ServedStep(NO_SKETCH, 10**7), NO_SKETCH)
    assert limits.covers(ServedStep((1, *NO_SKETCH[1:]), 0), NO_SKETCH)


@pytest.mark.parametrize("numbers", [(), (0,) * 7, (0,) * 9])
def test_a_sketch_of_another_length_is_none(numbers: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="a sketch is not 8 numbers"):
        Deviation(1, 2, OWN, 3, 4, numbers)


@pytest.mark.parametrize("number", [10**7 + 1, -(10**7) - 1])
def test_a_sketch_stays_in_its_range(number: int) -> None:
    with pytest.raises(FormatError, match="beyond 10000000"):
        Deviation(1, 2, OWN, 3, 4, (*[0] * 7, number))
    assert Deviation(1, 2, OWN, 3, 4, (*[0] * 6, 10**7, -(10**7))).sketch[-1] == -(10**7)


# --- the record ---


def test_a_deviation_has_the_members_of_the_specification_in_its_order() -> None:
    assert [field.name for field in fields(Deviation)] == [
        "loss_ppm",
        "norm_ppb",
        "own",
        "peak_ppm",
        "step_milli",
        "sketch",
    ]
    assert [field.name for field in fields(Thresholds)] == list(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_negative_number_is_refused(name: str) -> None:
    assert getattr(replace(DEVIATION, **{name: 0}), name) == 0
    with pytest.raises(FormatError, match="negative"):
        replace(DEVIATION, **{name: -1})


@pytest.mark.parametrize(
    "own", ["", "0a" * 32, "blake3:" + "0a" * 32, "sha256:" + "0A" * 32, "sha256:" + "0a" * 31, OWN + "\n"]
)
def test_a_leaf_that_is_no_digest_is_refused(own: str) -> None:
    with pytest.raises(FormatError):
        replace(DEVIATION, own=own)
