"""The looks at a contribution: who is asked, who missed it, when one more is due, and who may appeal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification import slow_disputes as slow
from tests.verification.fake_disputes import (
    BOTH_LIE,
    FALSE_ALARM,
    LOST,
    MANY,
    at,
    disputed,
    drawn,
    heard,
    many,
    two,
)
from tests.verification.fake_disputes import given as after
from tests.verification.fake_run import GOOD, LATE, Fate, Play, appeal, started, verdict
from verification.judge import settle
from verification.looks import (
    Asked,
    asked_at,
    further_look,
    may_appeal,
    missed_auditors,
    overruled_auditors,
)
from verification.plans import plan_close
from verification.records import Missed, RoundClose, SecondDraw, Settlement, Verdict
from verification.rounds import apply
from verification.state import RunState


def closing(fate: Fate, slot_1: Fate = GOOD, **audit: Any) -> RunState:
    """The state before the round-close."""
    return at(RoundClose, fate, slot_1, **audit)[0]


def asked(state: RunState, slot: int = 0) -> tuple[Asked, ...]:
    return asked_at(state.open_turn.evidence, slot)


def again(state: RunState, slot: int = 0) -> tuple[str, ...]:
    second = state.open_turn.second
    assert second
    return next(item.auditors for item in second.looks if item.slot == slot)


# --- the first two looks ---


def test_the_first_look_asks_as_far_as_the_one_who_sealed_a_verdict() -> None:
    for silent in (0, 1, 3):
        state = closing(replace(GOOD, silent=silent))
        order = drawn(state)[0]
        first, second = asked(state)
        assert first == Asked(1, order[: silent + 1], order[silent])
        assert first.missed == order[:silent]
        assert second == Asked(2, again(state), again(state)[0])
        assert second.missed == ()
        assert not set(order[: silent + 1]) & set(again(state))


def test_where_nothing_was_sealed_everybody_missed_the_look() -> None:
    state = closing(Fate(first="none"))
    (only,) = asked(state)
    assert only == Asked(1, drawn(state)[0], None)
    assert only.missed == drawn(state)[0]


def test_without_seals_everybody_drawn_is_asked() -> None:
    evidence = replace(closing(GOOD).open_turn.evidence, first_looks=None, second=None, verdicts={})
    assert asked_at(evidence, 0) == (Asked(1, drawn(closing(GOOD))[0], None),)


def test_who_sealed_a_verdict_that_is_lost_missed_the_look_too() -> None:
    state = closing(replace(LOST, silent=1))
    order = drawn(state)[0]
    first, second = asked(state)
    assert first == Asked(1, order[:2], None)
    assert second.by == again(state)[0]
    assert [item for item in missed_auditors(state.open_turn.evidence) if item.slot == 0] == [
        Missed(0, 1, name) for name in order[:2]
    ]
    assert {o.entry.slot: o.reason for o in settle(state.open_turn.evidence)}[0] == "unaudited"


def test_a_second_look_that_nobody_gives_was_missed_by_all_who_were_asked() -> None:
    state = closing(Fate(second="none"))
    assert asked(state)[1] == Asked(2, again(state), None)
    assert asked(state)[1].missed == again(state)
    assert missed_auditors(state.open_turn.evidence) == tuple(Missed(0, 2, name) for name in again(state))


def test_without_a_second_draw_for_a_slot_there_is_one_look() -> None:
    state = closing(GOOD, second_look_ppm=0)
    assert [look.look for look in asked(state)] == [1]


# --- further looks ---


def test_who_is_asked_next_was_not_heard_and_missed_nothing() -> None:
    state = heard(silent=1)
    order = drawn(state)[0]
    one, other = (state.open_turn.verdicts[0, look].auditor for look in (1, 2))
    operators = {MANY[one], MANY[other]}
    expected = tuple(name for name in order[1:] if MANY[name] not in operators)
    due = further_look(state.open_turn.evidence, 0)
    assert due == Asked(3, expected, None)
    assert due == asked(state)[-1]
    assert order[0] not in due.auditors
    # The second of them answers: the first missed it, and is not asked again; nor is who answered.
    later = after(state, verdict(state, 0, 3, expected[1], "pass"))
    third = asked(later)[2]
    assert third == Asked(3, expected, expected[1])
    assert third.missed == expected[:1]
    fourth = further_look(later.open_turn.evidence, 0)
    left = tuple(name for name in expected[2:] if MANY[name] != MANY[expected[1]])
    assert (fourth.auditors if fourth else ()) == left


def test_an_operator_is_heard_once() -> None:
    """a4 and a5 are of one: whichever is asked first speaks for both."""
    seen = set()
    for slot in (0, 1):
        state = heard(slots=(0, 1))
        while due := further_look(state.open_turn.evidence, slot):
            outcome = "pass" if due.look % 2 else "fail"
            state = after(state, verdict(state, slot, due.look, due.auditors[0], outcome))
        said = [v.auditor for (of, _), v in state.open_turn.verdicts.items() if of == slot]
        operators = [MANY[name] for name in said]
        assert len(operators) == len(set(operators)) == 5
        assert len({"a4", "a5"} & set(said)) == 1
        seen.add(len(said))
        assert asked(state, slot)[-1].look == 5  # nobody is left for a sixth
    assert seen == {5}


def test_no_look_is_due_after_one_that_nobody_answered() -> None:
    state = heard()
    due = further_look(state.open_turn.evidence, 0)
    assert due
    assert [m.auditor for m in missed_auditors(state.open_turn.evidence) if m.look == 3] == [*due.auditors]
    assert [look.look for look in asked(state)] == [1, 2, 3]


@pytest.mark.parametrize(
    "fate", [GOOD, Fate(first="none"), Fate(second="none"), LOST, Fate(first="fail", second="none")]
)
def test_no_further_look_is_due_where_there_are_no_two_verdicts_that_differ(fate: Fate) -> None:
    state = closing(fate)
    assert further_look(state.open_turn.evidence, 0) is None
    assert all(look.look <= 2 for look in asked(state))
    # Nor does an appeal bring one, if two verdicts are not there.
    appealed = replace(state.open_turn.evidence, appeals=(0,))
    assert further_look(appealed, 0) is None


def test_a_slot_waits_for_no_third_look_while_the_second_is_due() -> None:
    state, _ = at(Verdict, FALSE_ALARM)
    for look in (1, 2):
        assert further_look(state.open_turn.evidence, 0) is None
        state = after(state, heard().open_turn.verdicts[0, look])
    due = further_look(state.open_turn.evidence, 0)
    assert due
    assert due.look == 3


def test_a_lead_of_two_ends_it() -> None:
    state = closing(FALSE_ALARM)
    assert [look.look for look in asked(state)] == [1, 2, 3, 4]
    assert all(look.by for look in asked(state))
    state = closing(BOTH_LIE)
    assert [look.look for look in asked(state)] == [1, 2, 3, 4, 5]
    assert further_look(state.open_turn.evidence, 0) is None


def test_an_appeal_brings_a_third_look_and_is_of_one_slot() -> None:
    state = heard("fail", "fail", slots=(0, 1))
    assert [further_look(state.open_turn.evidence, slot) for slot in (0, 1)] == [None, None]
    state = after(state, appeal(state, 1))
    assert further_look(state.open_turn.evidence, 0) is None
    due = further_look(state.open_turn.evidence, 1)
    assert due
    assert due.look == 3


# --- who may appeal ---


@pytest.mark.parametrize(
    ("first", "second", "may"),
    [
        ("fail", "fail", True), ("fail", "pass", False), ("pass", "fail", False), ("pass", "pass", False),
        ("fail", "differ", False), ("fail", "none", False), ("none", "none", False), ("pass", "none", False),
    ],
)  # fmt: skip
def test_an_appeal_is_for_work_that_two_failed_alike(first: str, second: str, may: bool) -> None:
    state = closing(Fate(first=first, second=second))
    assert may_appeal(state.open_turn.evidence, 0) is may
    assert may_appeal(state.open_turn.evidence, 1) is False


def test_an_appeal_is_not_for_what_later_looks_say() -> None:
    for fate in (
        Fate(first="fail", further=("fail",)),
        BOTH_LIE,
        Fate(first="fail", second="fail", lost=True),
    ):
        assert not may_appeal(closing(fate).open_turn.evidence, 0)


# --- missed, and overruled ---


def test_nobody_missed_a_look_that_was_not_asked_for() -> None:
    for fate in (LATE, Fate(refused="unrevealed"), Fate(serves=False)):
        state = closing(fate)
        assert not [m for m in missed_auditors(state.open_turn.evidence) if m.slot == 0]
        evidence = state.open_turn.evidence
        assert [item.slot for item in evidence.draw.drawn] == [0, 1, 2, 3]
    silent = Fate(first="none")
    state = closing(silent, silent)
    expected = [Missed(slot, 1, name) for slot, order in sorted(drawn(state).items()) for name in order]
    assert list(missed_auditors(state.open_turn.evidence)) == expected
    draw = state.open_turn.evidence.draw
    turned = replace(state.open_turn.evidence, draw=replace(draw, drawn=draw.drawn[::-1]))
    assert list(missed_auditors(turned)) == expected


def test_before_the_second_draw_nobody_missed_anything_and_nobody_is_overruled() -> None:
    state = closing(replace(FALSE_ALARM, silent=1))
    evidence = state.open_turn.evidence
    assert missed_auditors(evidence)
    assert overruled_auditors(evidence, {})
    early = replace(evidence, second=None)
    assert missed_auditors(early) == ()
    assert overruled_auditors(early, {}) == ()


def test_overruled_stand_by_slot_and_look_with_their_slots_case() -> None:
    state = closing(BOTH_LIE, FALSE_ALARM)
    verdicts = state.open_turn.verdicts
    found = overruled_auditors(state.open_turn.evidence, {1: "case 1", 2: "case 2"})
    assert [(item.slot, item.look, item.evidence) for item in found] == [
        (0, 1, None),
        (0, 2, None),
        (1, 1, "case 1"),
    ]
    assert all(item.auditor == verdicts[item.slot, item.look].auditor for item in found)
    turned = replace(state.open_turn.evidence, verdicts=dict(reversed(verdicts.items())))
    assert overruled_auditors(turned, {1: "case 1"}) == found


def test_missed_are_those_asked_before_the_one_who_answered() -> None:
    start = started(audit={"second_look_ppm": 1_000_000})
    play = Play(start)
    play.turn({0: replace(GOOD, silent=1), 1: replace(GOOD, first="none"), 3: replace(GOOD, second="none")})
    state = start
    for record in play.records[:-1]:
        state = apply(state, record)
    turn = state.open_turn
    assert turn.draw
    assert turn.second
    order = {item.slot: item.auditors for item in turn.draw.drawn}
    second = {item.slot: item.auditors for item in turn.second.looks}
    expected = [Missed(0, 1, order[0][0])]
    expected += [Missed(1, 1, name) for name in order[1]]
    expected += [Missed(3, 2, name) for name in second[3]]
    assert list(missed_auditors(turn.evidence)) == expected


@pytest.mark.parametrize("lag", [0, 1])
def test_the_close_or_the_settlement_names_who_missed_any_look(lag: int) -> None:
    kind = Settlement if lag else RoundClose
    state, record = at(kind, replace(FALSE_ALARM, silent=2, further=("pass",)), lag=lag)
    evidence = state.open_turn.evidence
    assert record.missed == missed_auditors(evidence)
    assert {m.look for m in record.missed} >= {1}
    play = disputed(lag=lag)
    assert not [r for r in play.records if isinstance(r, kind) and r.missed]


# --- any history, against the words of the specification ---

steps = st.tuples(st.integers(0, 5), st.sampled_from(("pass", "pass", "fail", "differ", "none")))
CLASSES = {"c0": "rare", "a0": "far", "a1": "far"}
TOLERANCE = [
    {"classes": [one, "rare"], "loss_ppm": 50, "norm_ppb": 900_000, "peak_ppm": 7_000, "step_milli": 4_000}
    for one in ("class", "far")
]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("pass", "fail")),
    st.sampled_from(("pass", "fail", "differ")),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.lists(steps, max_size=5),
)
def test_the_looks_are_those_that_the_words_say(
    first: str, second: str, silent: int, appeals: bool, lax: bool, further: list[tuple[int, str]]
) -> None:
    start = many(classes=CLASSES if lax else None, tolerance=TOLERANCE if lax else [])
    play = Play(start)
    play.turn(two(Fate(first=first, second=second, silent=silent, appeals=appeals)))
    state = start
    for record in play.records[:-1]:
        state = apply(state, record)
    order = drawn(state)[0]
    verdicts = [state.open_turn.verdicts[0, look] for look in (1, 2)]
    appealed = 0 in state.open_turn.appeals
    missed = [Missed(0, 1, name) for name in order[:silent]]
    look, left = 3, list(further)
    while slow.one_more(verdicts, appealed):
        known = {item.auditor for item in missed} | {v.auditor for v in verdicts}
        operators = {MANY[v.auditor] for v in verdicts}
        candidates = [name for name in order if MANY[name] not in operators and name not in known]
        due = further_look(state.open_turn.evidence, 0)
        assert (list(due.auditors) if due else []) == candidates
        place, outcome = left.pop(0) if left else (0, "none")
        by = candidates[place % len(candidates)] if candidates and outcome != "none" else None
        missed += [
            Missed(0, look, name) for name in candidates[: candidates.index(by) if by else len(candidates)]
        ]
        if by is None:
            break
        verdicts.append(verdict(state, 0, look, by, outcome))
        state = apply(state, verdicts[-1])
        look += 1
    else:
        assert further_look(state.open_turn.evidence, 0) is None
    evidence = state.open_turn.evidence
    assert [item for item in missed_auditors(evidence) if item.slot == 0] == missed
    gone = [(item.look, item.auditor) for item in overruled_auditors(evidence, {})]
    assert gone == [(v.look, v.auditor) for v in slow.put_down(verdicts)]
    side = slow.winner(verdicts)
    reason = "disputed" if side is None else {"pass": None, "fail": "failed-audit"}[side[0].outcome]
    assert {o.entry.slot: o.reason for o in settle(evidence)}[0] == reason
    check_close(state, reason, gone)


def check_close(state: RunState, reason: str | None, gone: list[tuple[int, str]]) -> None:
    close = plan_close(state, state.base, evidence={}, val_loss=None)
    assert {item.slot: item.reason for item in close.rejected}.get(0) == reason
    assert [(item.look, item.auditor) for item in close.overruled] == gone
    assert {name for _, name in gone} == {name for name in close.quarantined if name.startswith("a")}


def test_the_made_up_disputes_have_looks_of_their_own() -> None:
    records: Mapping[str, Any] = {r.kind: r for r in disputed(BOTH_LIE, FALSE_ALARM).records}
    assert {"first-looks", "second-draw", "appeal", "verdict", "round-close"} <= set(records)
    state, second = at(SecondDraw, BOTH_LIE)
    assert isinstance(second, SecondDraw)
    assert state.open_turn.first_looks
