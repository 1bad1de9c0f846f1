"""Plans by tolerance: who is asked, what it weighs, and whole turns in which a slot rests on tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import GOOD, LATE, Fate, Play, key, started, verdict
from tests.verification.fake_tolerance import tolerance
from verification.errors import ProtocolError
from verification.intake import check_verdict
from verification.plans import accepted_contributions, capped_weights, plan_open
from verification.records import Draw, FirstLooks, RoundClose, Verdict
from verification.rounds import apply
from verification.sealing import seal_record

MILLION = 10**6

# --- weights ---


def test_the_cap_of_what_rests_on_tolerance_in_numbers() -> None:
    work = [("a", 600), ("b", 100), ("c", 300)]
    # c has 300 beside 700; a quarter of these is a fifth of all.
    assert capped_weights(work, MILLION, [False, False, True], 200_000) == [600, 100, 175]
    # b and c have 400 beside 600: a share of 200 in 1000 is 150 beside 600, which they have 1 to 3.
    assert capped_weights(work, MILLION, [False, True, True], 200_000) == [600, 37, 112]
    assert capped_weights(work, MILLION, [False, True, True], 400_000) == [600, 100, 300]  # just so much
    assert capped_weights(work, MILLION, [False, True, True], 399_999) == [600, 99, 299]
    assert capped_weights(work, MILLION, [False, True, True], 1) == [600, 0, 0]
    assert capped_weights(work, MILLION, [True] * 3, 1) == [600, 100, 300]  # there is nothing else
    assert capped_weights(work, MILLION, [False] * 3, 1) == [600, 100, 300]


def test_the_second_cap_is_of_what_the_first_left() -> None:
    # a has 900 of 1000: by its operator 600 becomes 333 and 300 becomes 166.
    work = [("a", 600), ("b", 100), ("a", 300)]
    assert capped_weights(work, 500_000, [False, False, True], 300_000) == [333, 100, 166]
    assert capped_weights(work, 500_000, [False, False, True], 100_000) == [333, 100, 48]
    assert capped_weights(work, 500_000, [True, False, True], 500_000) == [66, 100, 33]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2**40), st.booleans()), max_size=9),
    st.integers(0, MILLION),
    st.integers(1, MILLION),
)
def test_what_rests_on_tolerance_has_no_more_than_its_share(
    claims: list[tuple[str, int, bool]], cap: int, tolerance_cap: int
) -> None:
    work, lax = [(operator, tokens) for operator, tokens, _ in claims], [marked for *_, marked in claims]
    weights, before = capped_weights(work, cap, lax, tolerance_cap), capped_weights(work, cap)
    share = sum(weight for weight, marked in zip(weights, lax, strict=True) if marked)
    resting = sum(weight for weight, marked in zip(before, lax, strict=True) if marked)
    rest = sum(weights) - share
    assert rest == sum(before) - resting
    if rest:
        assert share * MILLION <= tolerance_cap * (share + rest)
    for weight, first, marked in zip(weights, before, lax, strict=True):
        assert 0 <= weight <= first
        if not marked or not rest or resting * MILLION <= tolerance_cap * (resting + rest):
            assert weight == first
    # Floors lose less than a token each of what the cap leaves.
    if rest and resting * MILLION > tolerance_cap * (resting + rest):
        assert (share + len(work)) * (MILLION - tolerance_cap) >= tolerance_cap * rest


# --- turns ---

ALL = {"rate_ppm": MILLION, "second_look_ppm": MILLION, "probation_rounds": 0, "segments": 2}
CLASSES = {"c2": "rare", "a0": "far"}  # c2 is of op-b; a1 is of the class of the others, as a2 of op-b is
STEPS = {"steps": [4, 2, 3, 1], "trace_every": 1}


def lax(*items: dict[str, Any], classes: dict[str, str] | None = None, **audit: Any) -> Play:
    """A run in which c2, slot 2, is of a class that no auditor has."""
    tolerances = items or (tolerance("class", "rare"), tolerance("rare", "far"))
    return Play(
        started(
            classes=classes or CLASSES,
            train=STEPS,
            audit={**ALL, "tolerance": tolerances, **audit},
            credit={"operator_cap_ppm": MILLION},
        )
    )


def drawn(play: Play) -> dict[int, set[str]]:
    (draw,) = (record for record in play.records if isinstance(record, Draw))
    return {item.slot: set(item.auditors) for item in draw.drawn}


def closed(play: Play) -> RoundClose:
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    return close


def rejected(play: Play) -> dict[int, str]:
    return {item.slot: item.reason for item in closed(play).rejected}


def test_who_is_drawn_where_a_slot_rests_on_tolerance() -> None:
    play = lax()
    play.turn({})
    # a2 is of the contributor's own operator; a0's class does not judge those that have their own.
    assert drawn(play) == {0: {"a1", "a2"}, 1: {"a1", "a2"}, 2: {"a0", "a1"}, 3: {"a1", "a2"}}
    assert rejected(play) == {}
    found = {v.slot: v for v in play.records if isinstance(v, Verdict) and v.look == 1}
    assert {slot: len(v.deviations) for slot, v in found.items()} == {0: 0, 1: 0, 2: 2, 3: 0}
    verdicts = [v for v in play.records if isinstance(v, Verdict) and v.slot == 2]
    assert {v.numerics_class for v in verdicts} == {"class", "far"}


@pytest.mark.parametrize(
    ("items", "asked"),
    [
        ((tolerance("class", "rare"),), {"a1"}),
        ((tolerance("far", "rare"),), {"a0"}),
        ((tolerance("class", "far"),), set[str]()),
    ],
)
def test_only_classes_that_are_covered_are_drawn(items: tuple[dict[str, Any], ...], asked: set[str]) -> None:
    play = lax(*items)
    play.turn({})
    assert drawn(play)[2] == asked
    assert rejected(play) == ({} if asked else {2: "no-eligible-auditor"})


def test_one_auditor_of_the_same_class_keeps_all_others_out() -> None:
    play = lax(classes={**CLASSES, "a1": "rare"})
    play.turn({})
    assert drawn(play)[2] == {"a1"}
    verdicts = [v for v in play.records if isinstance(v, Verdict) and v.slot == 2]
    assert [v.deviations for v in verdicts] == [()]
    # The own operator's auditor is of the class: it does not count.
    play = lax(classes={**CLASSES, "a2": "rare"})
    play.turn({})
    assert drawn(play)[2] == {"a0", "a1"}


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        (GOOD, None),
        (Fate(first="far", second="far"), "failed-audit"),
        (Fate(first="far", second="pass"), "disputed"),
        (Fate(first="pass", second="far"), "disputed"),
        (Fate(first="far", second="none"), "unconfirmed"),
        (Fate(first="pass", second="none"), "unaudited"),
        (Fate(first="fail", second="fail"), "failed-audit"),
        (Fate(serves=False), "unserved"),
        (LATE, "late"),
    ],
)
def test_how_a_slot_that_rests_on_tolerance_is_settled(fate: Fate, reason: str | None) -> None:
    play = lax()
    play.turn({2: fate})
    assert rejected(play) == ({2: reason} if reason else {})
    assert [item.fault for item in closed(play).rejected] == ([reason == "failed-audit"] if reason else [])
    assert (play.state.standings["c2"].quarantined) is (reason == "failed-audit")
    # The next turn goes on with or without it.
    play.turn({})
    assert (2 in {item.slot for item in closed(play).accepted}) is (reason != "failed-audit")


@pytest.mark.parametrize(("unlike", "reason"), [(False, None), (True, "disputed")])
def test_two_of_one_class_that_find_something_else_are_disputed(unlike: bool, reason: str | None) -> None:
    play = lax(tolerance("class", "rare"), classes={"c2": "rare"})
    play.turn({2: replace(GOOD, unlike=unlike)})
    assert rejected(play) == ({2: reason} if reason else {})
    # Of two classes they never find the same.
    play = lax()
    play.turn({2: replace(GOOD, unlike=unlike)})
    assert rejected(play) == {}


@pytest.mark.parametrize("rate_ppm", [0, 1, MILLION])
def test_the_weight_of_what_rests_on_tolerance_is_capped_drawn_or_not(rate_ppm: int) -> None:
    # 16, 8, 12 and 4 steps' tokens: a slot's are 8 a step.
    tokens = [32, 16, 24, 8]
    # The others weigh 56: of all, a share c of it is at most 56 c/(1 - c).
    for cap, weight in ((500_000, 24), (300_000, 24), (200_000, 14), (100_000, 6), (1, 0)):
        play = lax(tolerance_cap_ppm=cap, rate_ppm=rate_ppm)
        play.turn({})
        assert (2 in drawn(play)) is (rate_ppm == MILLION)
        assert [a.tokens for a in closed(play).accepted] == tokens
        assert [a.weight for a in closed(play).accepted] == [32, 16, weight, 8]
    # Another class makes no difference where an auditor has it too.
    play = lax(tolerance_cap_ppm=1, rate_ppm=rate_ppm, classes={**CLASSES, "a1": "rare"})
    play.turn({})
    assert [a.weight for a in closed(play).accepted if a.slot == 2] == [24]


def test_the_cap_is_of_accepted_weight() -> None:
    play = lax(tolerance_cap_ppm=200_000)
    play.turn({0: LATE})
    # 16, 24 and 8 are accepted: a quarter of 24 is 6, and a fifth of it all.
    assert [(a.slot, a.weight) for a in closed(play).accepted] == [(1, 16), (2, 6), (3, 8)]
    play = lax(tolerance_cap_ppm=200_000)
    play.turn({0: LATE, 1: LATE, 3: LATE})
    assert [(a.slot, a.weight) for a in closed(play).accepted] == [(2, 24)]  # there is nothing else


def judged() -> Play:
    """A turn up to where the first verdicts are due."""
    play, again = lax(), lax()
    play.turn({})
    first = next(i for i, record in enumerate(play.records) if isinstance(record, FirstLooks))
    for record in play.records[:first]:
        again.add(record)
    return again


def test_a_turn_knows_what_rests_on_tolerance_and_what_its_audit_opens() -> None:
    turn = judged().state.open_turn
    assert [turn.rests_on_tolerance(slot) for slot in range(4)] == [False, False, True, False]
    for slot in range(4):
        audit = turn.audit_of(slot)
        assert audit.segments == turn.drawn_segments(slot)
        assert audit.tolerant is (slot == 2)
        assert audit.numerics_class == turn.open.entry(slot).numerics_class
    # One segment of one: nothing is opened to the bit, but its trace is by tolerance.
    assert not turn.audit_of(3).opens_a_trace(1)
    assert replace(turn.audit_of(2), segments=(0,)).opens_a_trace(1)


def test_a_verdict_is_taken_in_the_class_of_its_auditor_and_no_other() -> None:
    state = judged().state
    turn = state.open_turn
    for auditor, other in (("a0", "class"), ("a1", "far")):
        record = verdict(state, 2, 1, auditor, "pass")
        assert record.numerics_class == state.member(auditor).numerics_class
        assert check_verdict(turn, 2, 1, auditor, seal_record(record, key(auditor))) == record
        for numerics_class in (other, "rare"):
            lied = seal_record(replace(record, numerics_class=numerics_class), key(auditor))
            with pytest.raises(ProtocolError, match="another numerics class"):
                check_verdict(turn, 2, 1, auditor, lied)


def test_a_verdict_without_its_deviations_is_refused() -> None:
    state = judged().state
    for auditor in ("a0", "a1"):
        record = verdict(state, 2, 1, auditor, "pass")
        for found in ((), record.deviations[:1], (*record.deviations, record.deviations[0])):
            data = seal_record(replace(record, deviations=found), key(auditor))
            with pytest.raises(ProtocolError, match="does not follow from its values"):
                check_verdict(state.open_turn, 2, 1, auditor, data)
    exact = verdict(state, 0, 1, "a1", "pass")
    told = replace(exact, deviations=verdict(state, 2, 1, "a1", "pass").deviations)
    assert len(told.deviations) == len(state.open_turn.drawn_segments(0)) == 2
    with pytest.raises(ProtocolError, match="does not follow from its values"):
        check_verdict(state.open_turn, 0, 1, "a1", seal_record(told, key("a1")))


def test_the_state_takes_the_planned_open_and_its_weights_only() -> None:
    play = judged()
    with pytest.raises(ProtocolError, match="cannot be settled"):
        accepted_contributions(play.state)
    whole = lax(tolerance_cap_ppm=200_000)
    whole.turn({})
    records = whole.records
    state = lax(tolerance_cap_ppm=200_000).state
    for record in records[:-1]:
        state = apply(state, record)
    close = closed(whole)
    heavy = tuple(replace(a, weight=a.tokens) for a in close.accepted)
    assert heavy != close.accepted
    with pytest.raises(ProtocolError):
        apply(state, replace(close, accepted=heavy))
    assert plan_open(apply(state, close)).turn == 1
