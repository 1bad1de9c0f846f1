"""The state machine, rule by rule, from the seals of the first verdicts to the last look at a dispute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.verification.fake_disputes import (
    BOTH_LIE,
    FALSE_ALARM,
    MANY,
    STAMPED,
    at,
    disputed,
    drawn,
    given,
    heard,
    many,
    sealed,
    seals_of,
)
from tests.verification.fake_run import Fate, appeal, b3, key, verdict
from verification.errors import ProtocolError
from verification.looks import further_look
from verification.plans import plan_second_draw
from verification.records import Appeal, FirstLooks, Record, SecondDraw, Served, Verdict
from verification.rounds import apply
from verification.state import RunState
from verification.witnessing import given_links

LAGS = pytest.mark.parametrize("lag", [0, 1])


def refuses(state: RunState, record: Record) -> None:
    with pytest.raises(ProtocolError, match="may not come"):
        apply(state, record)


def takes(state: RunState, record: Any) -> RunState:
    after = apply(state, record)
    assert after != state
    return after


# --- seals ---


@LAGS
def test_seals_stand_once_and_before_the_second_draw(lag: int) -> None:
    state, looks = sealed(lag)
    seals = seals_of(state, *looks.values())
    assert [look.slot for look in seals.looks] == [0, 1]
    after = takes(state, seals)
    assert after.open_turn.first_looks == seals
    refuses(after, seals)
    refuses(after, replace(seals, looks=()))
    before, second = at(SecondDraw, lag=lag)
    refuses(takes(before, second), seals)
    early = replace(state, **_with(state, first_looks=None))
    refuses(early, second)


def _with(state: RunState, **changes: Any) -> dict[str, Any]:
    """The fields of a state whose turn is changed."""
    turn = replace(state.open_turn, **changes)
    if state.turn:
        return {"turn": turn}
    return {"waiting": (replace(state.waiting[0], turn=turn), *state.waiting[1:])}


def test_no_second_draw_without_seals() -> None:
    state, second = at(SecondDraw)
    assert takes(state, second)
    bare, _ = sealed()
    planned = plan_second_draw(bare, second.head, second.link, given_links(second.links))
    assert planned.looks == ()
    refuses(bare, planned)
    assert takes(takes(bare, seals_of(bare)), planned)


def test_no_seals_before_it_is_told_who_served() -> None:
    state, served = at(Served)
    refuses(state, seals_of(state))
    assert takes(takes(state, served), seals_of(state))


@LAGS
def test_seals_stand_by_slot_and_each_once(lag: int) -> None:
    state, looks = sealed(lag)
    seals = seals_of(state, *looks.values())
    first, second = seals.looks
    for wrong in ((second, first), (first, first), (first, first, second), (first, second, second)):
        refuses(state, replace(seals, looks=wrong))
    for fine in ((), (first,), (second,), (first, second)):
        assert takes(state, replace(seals, looks=fine)).open_turn.first_looks


@LAGS
def test_a_seal_is_of_an_auditor_that_the_draw_named_and_a_slot_that_was_served(lag: int) -> None:
    state, looks = sealed(lag)
    seals = seals_of(state, *looks.values())
    for name in ("c0", "nobody"):
        refuses(state, replace(seals, looks=(replace(seals.looks[0], auditor=name),)))
    for slot in (2, 3, 9):
        refuses(state, replace(seals, looks=(replace(seals.looks[0], slot=slot),)))
    for name in MANY:  # who came before it did not answer
        assert takes(state, replace(seals, looks=(replace(seals.looks[0], auditor=name),)))


@LAGS
def test_there_is_no_seal_of_a_slot_that_was_not_served(lag: int) -> None:
    state, seals = at(FirstLooks, Fate(serves=False), lag=lag)
    assert [look.slot for look in seals.looks] == [1]
    refuses(state, replace(seals, looks=(replace(seals.looks[0], slot=0), *seals.looks)))
    assert takes(state, seals)


def test_where_audits_lag_there_are_seals_only_when_the_turn_is_due() -> None:
    state, seals = at(FirstLooks, lag=1)
    assert state.turn is None
    early, _ = at(Served, lag=1, number=1)
    for record in (seals, replace(seals, round=2)):
        with pytest.raises(ProtocolError):
            apply(early, record)
    _, served = at(Served, lag=1)
    mid, _ = at(Served, lag=1)
    mid = takes(mid, served)
    assert mid.turn
    refuses(mid, replace(seals, looks=()))


# --- first verdicts, when they are opened ---


@LAGS
def test_a_first_verdict_is_logged_after_the_second_draw_only(lag: int) -> None:
    state, second = at(SecondDraw, lag=lag)
    _, first = at(Verdict, lag=lag)
    assert first.look == 1
    refuses(state, first)
    assert takes(takes(state, second), first).open_turn.verdicts == {(first.slot, 1): first}
    bare, _ = sealed(lag)
    refuses(bare, first)


@LAGS
def test_a_first_verdict_is_the_one_that_was_sealed(lag: int) -> None:
    state, first = at(Verdict, lag=lag)
    other: list[dict[str, Any]] = [
        {"payload": b3("x")}, {"loss_last": 1}, {"differs": ("loss",)}, {"key": key("x").public},
        {"auditor": drawn(state)[0][1]}, {"outcome": "fail"}, {"slot": 1},
    ]  # fmt: skip
    for change in other:
        refuses(state, replace(first, **change))
    assert takes(state, first)


@pytest.mark.parametrize(
    ("field", "value"), [("outcome", "fail"), ("auditor", "a"), ("verdict", "sha256:" + "7" * 64)]
)
def test_a_seal_says_the_same_as_its_verdict_of_auditor_and_outcome(field: str, value: str) -> None:
    state, first = at(Verdict)
    seals = state.open_turn.first_looks
    assert seals
    look = seals.looks[0]
    value = next(name for name in MANY if name != look.auditor) if field == "auditor" else value
    turn = replace(
        state.open_turn, first_looks=replace(seals, looks=(replace(look, **{field: value}), *seals.looks[1:]))
    )
    refuses(replace(state, turn=turn), first)
    assert takes(state, first)


def test_nothing_is_a_first_verdict_where_nothing_was_sealed() -> None:
    state, second = at(Verdict, Fate(first="none"))
    assert (second.slot, second.look) == (1, 1)
    for name in drawn(state)[0]:
        refuses(state, verdict(state, 0, 1, name, "pass"))


def test_verdicts_stand_by_look_and_then_by_slot() -> None:
    state, first = at(Verdict)
    _, second = at(Verdict, number=1)
    _, third = at(Verdict, number=2)
    _, fourth = at(Verdict, number=3)
    looks = [first, second, third, fourth]
    assert [(v.look, v.slot) for v in looks] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for place, late in enumerate(looks):
        for earlier in looks[: place + 1]:
            refuses(given(state, *looks[:place], late), earlier)
    assert len(given(state, *looks).open_turn.verdicts) == 4
    assert len(given(state, first, third).open_turn.verdicts) == 2


def test_a_second_verdict_is_by_whom_the_second_draw_names() -> None:
    state, third = at(Verdict, number=2)
    assert third.look == 2
    (again,) = [item.auditors for item in state.open_turn.second.looks if item.slot == 0]  # type: ignore[union-attr]
    outside = [name for name in MANY if name not in again]
    assert outside
    for name in (*outside, "c1", "nobody"):
        refuses(state, replace(third, auditor=name))
    for name in again:
        assert takes(state, verdict(state, 0, 2, name, "fail"))
    rare, _ = at(SecondDraw, second_look_ppm=0)
    plain = takes(rare, at(SecondDraw, second_look_ppm=0)[1])
    refuses(plain, verdict(plain, 0, 2, again[0], "pass"))


# --- appeals ---


def failed(lag: int = 0, slots: tuple[int, ...] = (0,)) -> RunState:
    """Both looks at these slots failed alike."""
    return heard("fail", "fail", lag, slots)


@LAGS
def test_an_appeal_is_by_the_owner_of_the_work_and_against_both_verdicts(lag: int) -> None:
    state = failed(lag)
    right = appeal(state, 0)
    one, two = right.verdicts
    other: list[dict[str, Any]] = [
        *({"verdicts": pair} for pair in ((two, one), (one, one), (two, two))),
        *({"slot": slot} for slot in (1, 2, 9)),
        *({"slot": slot, "member": "c1", "key": key("c1").public} for slot in (0, 1)),
        {"member": "c1"},
        {"key": key("c1").public},
    ]
    for change in other:
        refuses(state, replace(right, **change))
    after = takes(state, right)
    assert after.open_turn.appeals == {0: right}
    refuses(after, right)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pass", "pass"),
        ("fail", "pass"),
        ("pass", "fail"),
        ("fail", "differ"),
        ("fail", "none"),
        ("pass", "none"),
    ],
)
def test_there_is_no_appeal_against_less_than_two_that_failed_alike(first: str, second: str) -> None:
    state = heard(first, second)
    turn = state.open_turn
    digests = [turn.verdicts[look].digest for look in ((0, 1), (0, 2)) if look in turn.verdicts]
    against = (digests[0], digests[-1])
    entry = turn.open.entry(0)
    record = Appeal(1, state.run, 1, 0, 0, entry.member, entry.key, against)
    refuses(state, record)
    assert takes(failed(), replace(record, run=failed().run, verdicts=appeal(failed(), 0).verdicts))


def test_no_appeal_comes_before_both_verdicts_are_in_the_log() -> None:
    final, state = failed(), at(Verdict, Fate(first="fail", second="fail"))[0]
    record = appeal(final, 0)
    refuses(at(SecondDraw, Fate(first="fail", second="fail"))[0], record)
    for look in ((0, 1), (1, 1), (0, 2)):
        refuses(state, record)
        state = takes(state, final.open_turn.verdicts[look])
    takes(state, record)
    state = takes(state, final.open_turn.verdicts[1, 2])
    assert state == final
    takes(state, record)


def test_an_appeal_ends_the_second_looks_and_a_third_look_the_appeals() -> None:
    final = failed(slots=(0, 1))
    state, _ = at(Verdict, *[Fate(first="fail", second="fail")] * 2)
    looks = [final.open_turn.verdicts[look] for look in ((0, 1), (1, 1), (0, 2), (1, 2))]
    some = given(state, *looks[:3])
    refuses(given(some, appeal(some, 0)), looks[3])
    both = given(some, looks[3])
    zero, one = appeal(both, 0), appeal(both, 1)
    refuses(given(both, one), zero)  # by slot, ascending
    assert set(given(both, zero, one).open_turn.appeals) == {0, 1}
    after = given(both, zero)
    third = next_verdict(after, 0)
    refuses(given(after, third), one)
    # At a slot that nobody appealed for there is no third look.
    with pytest.raises(AssertionError):
        next_verdict(after, 1)


# --- further looks ---


def next_verdict(state: RunState, slot: int, outcome: str = "pass", place: int = 0) -> Verdict:
    """By one of those whom the look that is due asks."""
    due = further_look(state.open_turn.evidence, slot)
    assert due
    return verdict(state, slot, due.look, due.auditors[place], outcome)


@LAGS
def test_a_third_look_is_at_what_is_contested_and_by_one_who_was_not_heard(lag: int) -> None:
    state = heard(lag=lag)
    right = next_verdict(state, 0)
    assert right.look == 3
    old = {v.auditor for (slot, _), v in state.open_turn.verdicts.items() if slot == 0}
    fresh = {name for name in MANY if MANY[name] not in {MANY[other] for other in old}}
    for name in MANY:
        record = verdict(state, 0, 3, name, "fail")
        if name in fresh:
            takes(state, record)
        else:
            refuses(state, record)
    for slot in (1, 2, 9):
        refuses(state, replace(right, slot=slot))
    for change in ({"look": 4}, {"look": 2}, {"look": 1}, {"auditor": "c0"}):
        refuses(state, replace(right, **change))  # type: ignore[arg-type]
    refuses(takes(state, right), right)


@pytest.mark.parametrize(
    ("first", "second"), [("pass", "pass"), ("fail", "fail"), ("fail", "none"), ("pass", "none")]
)
def test_no_third_look_comes_where_nobody_contradicts(first: str, second: str) -> None:
    state = heard(first, second)
    for name in MANY:
        for outcome in ("pass", "fail"):
            refuses(state, verdict(state, 0, 3, name, outcome))
    torn = heard()
    assert takes(torn, next_verdict(torn, 0))


def test_looks_go_on_until_one_side_leads_by_two() -> None:
    state = heard()  # 1:1
    state = takes(state, next_verdict(state, 0))  # 2:1
    assert further_look(state.open_turn.evidence, 0)
    state = takes(state, next_verdict(state, 0))  # 3:1
    assert further_look(state.open_turn.evidence, 0) is None
    for name in MANY:
        refuses(state, verdict(state, 0, 5, name, "pass"))


def test_all_third_looks_come_before_all_fourth_ones() -> None:
    state = heard(slots=(0, 1))
    zero, one = next_verdict(state, 0), next_verdict(state, 1)
    refuses(takes(state, one), zero)
    early = takes(state, zero)
    fourth = next_verdict(early, 0)
    assert fourth.look == 4
    both = takes(takes(state, zero), one)
    takes(both, fourth)
    refuses(takes(early, fourth), one)  # nobody answered that: it is over


def test_after_an_appeal_there_is_a_third_look() -> None:
    state = failed()
    assert further_look(state.open_turn.evidence, 0) is None
    after = given(state, appeal(state, 0))
    two_to_two = given(after, next_verdict(after, 0))
    two_to_two = given(two_to_two, next_verdict(two_to_two, 0))
    outcomes = [v.outcome for (slot, _), v in two_to_two.open_turn.verdicts.items() if slot == 0]
    assert sorted(outcomes) == ["fail", "fail", "pass", "pass"]
    last = next_verdict(two_to_two, 0)
    assert last.look == 5
    takes(two_to_two, last)


def test_no_further_look_comes_before_the_second_draw() -> None:
    state, _ = sealed()
    for look in (2, 3):
        refuses(state, verdict(state, 0, look, drawn(state)[0][0], "fail"))
    torn = heard()
    third = next_verdict(torn, 0)
    refuses(replace(torn, turn=replace(torn.open_turn, second=None)), third)


@pytest.mark.parametrize("fate", [FALSE_ALARM, STAMPED, BOTH_LIE])
def test_records_of_a_dispute_stand_nowhere_else(fate: Fate) -> None:
    start, play = many(), disputed(fate)
    states = [start]
    for record in play.records:
        states.append(apply(states[-1], record))
    looked = [
        record for record in play.records if isinstance(record, (FirstLooks, SecondDraw, Verdict, Appeal))
    ]
    tried = 0
    for i, state in enumerate(states[:-1]):
        for record in looked:
            here = play.records[i]
            # A verdict may be missing, and the next of its kind or an appeal come in its stead.
            if record is here or (isinstance(here, Verdict) and isinstance(record, (Verdict, Appeal))):
                continue
            with pytest.raises(ProtocolError):
                apply(state, record)
            tried += 1
    assert tried > 100
    for i in range(len(states) - 1):
        with pytest.raises(ProtocolError):
            apply(states[i + 1], play.records[i])
