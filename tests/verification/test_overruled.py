"""What disputes come to: who is accepted, who is quarantined, who is paid, in closes and in settlements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_disputes import (
    BOTH_LIE,
    FALSE_ALARM,
    IN_VAIN,
    LOST,
    MANY,
    STAMPED,
    at,
    disputed,
    drawn,
    many,
    two,
    until,
)
from tests.verification.fake_disputes import given as after
from tests.verification.fake_run import CHEAT, GOOD, Fate, Play, appeal, b3, started, verdict
from tests.verification.fake_tolerance import tolerance
from tests.verification.late_play import LatePlay
from verification.errors import ProtocolError
from verification.judge import settle
from verification.looks import further_look, may_appeal, overruled_auditors
from verification.plans import plan_close, plan_first_looks, plan_open, plan_second_draw
from verification.records import FirstLooks, RoundClose, SecondDraw, Settlement, Verdict
from verification.rounds import apply
from verification.settling import final_outcomes, plan_settlement
from verification.state import RunState

LAGS = pytest.mark.parametrize("lag", [0, 1, 2])
CASE, OTHER = "sha256:" + "7" * 64, "sha256:" + "8" * 64
TOKENS = 4 * 2 * 4  # of slot 0: steps, windows, positions


def last(play: Play) -> RoundClose | Settlement:
    """What settles the first turn."""
    kinds = (Settlement,) if isinstance(play, LatePlay) else (RoundClose,)
    return next(record for record in play.records if isinstance(record, kinds))


def fallen(play: Play) -> dict[int, str]:
    """Slots of the first turn that are not accepted for what auditors said."""
    record = last(play)
    if isinstance(record, Settlement):
        return {item.slot: item.reason for item in record.removed if item.round == 1}
    return {item.slot: item.reason for item in record.rejected if item.slot in (0, 1)}


def said(play: Play, slot: int = 0) -> dict[int, Verdict]:
    """The verdicts on a slot of the first turn by look."""
    found = (r for r in play.records if isinstance(r, Verdict) and (r.round, r.slot) == (1, slot))
    return {verdict.look: verdict for verdict in found}


@LAGS
@pytest.mark.parametrize(
    ("fate", "reason", "looks", "gone"),
    [
        (GOOD, None, 2, ()),
        (CHEAT, "failed-audit", 2, ()),
        (FALSE_ALARM, None, 4, (1,)),
        (replace(FALSE_ALARM, first="pass", second="fail"), None, 4, (2,)),
        (STAMPED, "failed-audit", 4, (1,)),
        (replace(STAMPED, first="fail", second="pass"), "failed-audit", 4, (2,)),
        (BOTH_LIE, None, 5, (1, 2)),
        (IN_VAIN, "failed-audit", 3, ()),
        (replace(IN_VAIN, further=("pass",)), "failed-audit", 3, (3,)),
        (replace(IN_VAIN, further=("pass", "pass")), "disputed", 4, ()),
        (replace(IN_VAIN, further=("pass", "pass", "fail")), "failed-audit", 5, (3, 4)),
        (Fate(first="fail", further=("pass",)), None, 3, (1,)),
        (Fate(first="fail", further=("differ",)), "disputed", 3, ()),
        (Fate(first="fail", second="differ", further=("fail",)), "failed-audit", 3, (2,)),
        (Fate(first="fail", second="differ", further=("pass", "pass", "pass")), None, 5, (1, 2)),
        (Fate(first="fail"), "disputed", 2, ()),
        (Fate(first="fail", further=("pass", "fail")), "disputed", 4, ()),
        (Fate(first="fail", further=("pass", "fail", "pass")), None, 5, (1, 4)),
    ],
)
def test_how_a_dispute_is_settled(
    fate: Fate, reason: str | None, looks: int, gone: tuple[int, ...], lag: int
) -> None:
    play = disputed(fate, lag=lag)
    record, verdicts = last(play), said(play)
    assert list(verdicts) == list(range(1, looks + 1))
    assert fallen(play) == ({0: reason} if reason else {})
    assert [(item.slot, item.look, item.auditor, item.evidence) for item in record.overruled] == [
        (0, look, verdicts[look].auditor, None) for look in gone
    ]
    names = {verdicts[look].auditor for look in gone} | ({"c0"} if reason == "failed-audit" else set())
    assert set(record.quarantined) == names
    assert {name for name, standing in play.state.standings.items() if standing.quarantined} == names
    # Who is borne out is paid, the same for pass and fail, and nobody else.
    word = {None: "pass", "failed-audit": "fail", "disputed": None}[reason]
    right = {v.auditor for look, v in verdicts.items() if v.outcome == word and look not in gone}
    other = {v.auditor for v in said(play, 1).values()}
    if lag != 0:  # later turns are not settled yet, or nothing else was judged
        assert all(play.state.standings[name].earned == 0 for name in set(MANY) - right - other)
    for name in MANY:
        due = TOKENS * (name in right) + TOKENS // 2 * (name in other)
        assert play.state.standings[name].earned == due, name
        assert play.state.standings[name].forfeited == (due if name in names else 0)


@pytest.mark.parametrize("lag", [0, 1])
def test_honest_work_that_one_auditor_accuses_stays_and_its_owner_loses_nothing(lag: int) -> None:
    play, honest = disputed(FALSE_ALARM, lag=lag), disputed(lag=lag)
    assert play.state.standings["c0"] == honest.state.standings["c0"]
    assert play.state.tokens == honest.state.tokens
    accuser = said(play)[1].auditor
    assert accuser not in {auditor.member for auditor in plan_open(play.state).auditors}
    assert {auditor.member for auditor in plan_open(play.state).auditors} == set(MANY) - {accuser}


@pytest.mark.parametrize("lag", [0, 1])
def test_a_lost_verdict_leaves_the_work_unaudited(lag: int) -> None:
    play = disputed(LOST, lag=lag)
    assert fallen(play) == {0: "unaudited"}
    assert list(said(play)) == [2]
    assert [(m.slot, m.look) for m in last(play).missed] == [(0, 1)]
    assert last(play).overruled == ()
    assert play.state.standings[said(play)[2].auditor].forfeited == 0


def test_who_was_overruled_forfeits_what_it_had_earned() -> None:
    play = Play(many())
    play.turn({})
    before = dict(play.state.standings)
    assert any(before[name].pending + before[name].vested for name in MANY)
    play = Play(started(MANY, audit=dict(many().config["audit"]), credit={"vest_rounds": 5}))
    play.turn({})
    earned = {name: play.state.standings[name].pending for name in MANY}
    play.turn(two(FALSE_ALARM))
    (gone,) = (item.auditor for item in play.records[-1].overruled)  # type: ignore[union-attr]
    standing = play.state.standings[gone]
    assert (standing.pending, standing.vested, standing.quarantined) == (0, 0, True)
    assert standing.forfeited == standing.earned >= earned[gone] > 0


# --- the digest of a case ---


def test_a_close_names_the_case_of_accepted_work_on_which_somebody_was_overruled() -> None:
    state, close = at(RoundClose, BOTH_LIE)
    base = state.base if close.void else type(state.base)(close.weights, close.outer)
    right = plan_close(state, base, evidence={0: CASE}, val_loss=None)
    assert [item.evidence for item in right.overruled] == [CASE, CASE]
    assert apply(state, right).last_close == right
    first, second = right.overruled
    for items in ((first, replace(second, evidence=OTHER)), (replace(first, evidence=None), second)):
        with pytest.raises(ProtocolError, match="does not follow"):
            apply(state, replace(right, overruled=items))


def test_the_case_of_rejected_work_is_that_of_those_overruled_on_it() -> None:
    state, close = at(RoundClose, STAMPED)
    base = type(state.base)(close.weights, close.outer)
    right = plan_close(state, base, evidence={0: CASE}, val_loss=None)
    assert {item.evidence for item in right.rejected if item.slot == 0} == {CASE}
    assert [item.evidence for item in right.overruled] == [CASE]
    assert apply(state, right)
    for evidence in (None, OTHER):
        with pytest.raises(ProtocolError, match="does not follow"):
            apply(state, replace(right, overruled=(replace(right.overruled[0], evidence=evidence),)))


@pytest.mark.parametrize("fate", [FALSE_ALARM, STAMPED])
def test_a_settlement_names_the_case_too(fate: Fate) -> None:
    state, plain = at(Settlement, fate, lag=1)
    bases = plain.settled, type(plain.settled)(plain.weights, plain.outer)
    right = plan_settlement(state, *bases, {0: CASE})
    assert [item.evidence for item in right.overruled] == [CASE]
    assert [item.evidence for item in right.removed if item.reason != "follows"] == [CASE] * (fate == STAMPED)
    assert apply(state, right)
    if fate == STAMPED:
        with pytest.raises(ProtocolError, match="does not follow"):
            apply(state, replace(right, overruled=(replace(right.overruled[0], evidence=OTHER),)))


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("change", [{"look": 2}, {"slot": 1}, {"auditor": "a9"}])
def test_a_record_that_overrules_somebody_else_is_refused(lag: int, change: dict[str, Any]) -> None:
    state, record = at(Settlement if lag else RoundClose, FALSE_ALARM, lag=lag)
    (item,) = record.overruled
    assert apply(state, record)
    for wrong in ((), (item, item), (replace(item, **change),)):
        with pytest.raises(ProtocolError, match="does not follow"):
            apply(state, replace(record, overruled=wrong))


# --- where audits lag ---


def test_a_provisional_close_overrules_nobody() -> None:
    play = disputed(FALSE_ALARM, STAMPED, lag=1)
    closes = [record for record in play.records if isinstance(record, RoundClose)]
    assert all(close.overruled == () for close in closes)
    assert [(item.slot, item.look) for item in last(play).overruled] == [(0, 1), (1, 1)]


def test_only_what_falls_is_removed_and_with_it_what_its_member_did_since() -> None:
    play = disputed(FALSE_ALARM, STAMPED, lag=2)
    record = last(play)
    assert isinstance(record, Settlement)
    assert [(item.round, item.member, item.reason) for item in record.removed] == [
        (1, "c1", "failed-audit"), (2, "c1", "follows"), (3, "c1", "follows"),
    ]  # fmt: skip
    accuser, stamp = (item.auditor for item in record.overruled)
    assert set(record.quarantined) == {"c1", accuser, stamp}


def test_nobody_is_asked_about_what_was_removed() -> None:
    """c1's second turn went with its first, with all its looks, though an auditor would have accused it."""
    play = LatePlay(many(1))
    play.turn(two(None, STAMPED))
    play.turn({0: FALSE_ALARM, 1: FALSE_ALARM})
    play.turn({})
    play.settle_due()
    second = [record for record in play.records if isinstance(record, Settlement)][1]
    looked = {(r.slot, r.look) for r in play.records if isinstance(r, Verdict) and r.round == 2}
    assert {slot for slot, _ in looked} == {0, 2, 3}
    assert (0, 4) in looked or (0, 3) in looked
    assert {item.slot for item in second.overruled} == {0}
    assert all(item.slot != 1 for item in second.missed)


def test_the_whole_outcome_of_a_settled_turn_has_its_disputes_in_it() -> None:
    state, _ = at(Settlement, FALSE_ALARM, STAMPED, lag=1)
    found = {outcome.entry.slot: outcome.reason for outcome in final_outcomes(state)}
    assert found == {0: None, 1: "failed-audit", 2: "late", 3: "late"}


def test_a_settlement_that_only_overrules_changes_no_weight() -> None:
    state, record = at(Settlement, FALSE_ALARM, lag=1)
    assert record.removed == ()
    assert record.quarantined
    with pytest.raises(ProtocolError, match="changes the weights"):
        apply(state, replace(record, weights=b3("x")))


# --- where work rests on tolerance ---

LAX = {"c0": "rare", "a0": "far", "a1": "far"}


def argued(outcome: Mapping[str, str], number: int, *, unlike: bool = False) -> RunState:
    """The state when all have looked whom the dispute takes: each finds what is its class's outcome."""
    start = many(
        classes=LAX, tolerance=[tolerance(name, "rare") for name in ("class", "far")], segments=number
    )
    play = Play(start)
    play.turn(two())
    state, _ = until(play, start, FirstLooks)

    def says(state: RunState, look: int, name: str, slot: int = 0) -> Verdict:
        return verdict(state, slot, look, name, outcome[state.member(name).numerics_class], unlike=unlike)

    first = says(state, 1, drawn(state)[0][0])
    state = after(state, plan_first_looks(state, [first]))
    _, second = until(play, start, SecondDraw)
    state = after(state, plan_second_draw(state, second.head, second.link, {}), first)
    asked = state.open_turn.second.looks[0].auditors  # type: ignore[union-attr]
    state = after(state, says(state, 2, asked[0]))
    if may_appeal(state.open_turn.evidence, 0):
        state = after(state, appeal(state, 0))
    while due := further_look(state.open_turn.evidence, 0):
        state = after(state, says(state, due.look, due.auditors[0]))
    return state


@pytest.mark.parametrize("wrong", ["class", "far"])
@pytest.mark.parametrize("word", ["far", "fail"])
def test_nobody_is_overruled_by_another_class(wrong: str, word: str) -> None:
    """Near a threshold honest auditors of two classes come to two outcomes."""
    torn = []
    for number in range(5):
        state = argued({"class": "pass", "far": "pass", wrong: word}, number)
        close = plan_close(state, state.base, evidence={}, val_loss=None)
        assert close.overruled == ()
        assert [name for name in close.quarantined if name in MANY] == []
        verdicts = [v for (slot, _), v in state.open_turn.verdicts.items() if slot == 0]
        torn += [len(verdicts)] * (len({v.outcome for v in verdicts}) == 2)
    assert torn
    assert min(torn) > 2


@pytest.mark.parametrize("number", range(3))
def test_auditors_of_a_class_that_find_no_two_alike_decide_nothing(number: int) -> None:
    state = argued({"class": "pass", "far": "pass"}, number, unlike=True)
    alike = argued({"class": "pass", "far": "pass"}, number)
    looks = [sum(slot == 0 for slot, _ in one.open_turn.verdicts) for one in (alike, state)]
    assert looks[0] == 2
    kinds = [v.numerics_class for (slot, _), v in state.open_turn.verdicts.items() if slot == 0]
    reason = {o.entry.slot: o.reason for o in settle(state.open_turn.evidence)}[0]
    # A voice for each class and no more: of one class there is none that prevails.
    assert reason == ("disputed" if len(set(kinds)) == 1 else None)
    assert looks[1] > 2 or len(set(kinds[:2])) == 2
    assert overruled_auditors(state.open_turn.evidence, {}) == ()


# --- any history ---

outcomes = st.sampled_from(("pass", "fail", "differ", "none"))
fates = st.builds(
    Fate,
    first=outcomes,
    second=outcomes,
    silent=st.integers(0, 2),
    lost=st.sampled_from((False, False, True)),
    appeals=st.booleans(),
    further=st.lists(outcomes, max_size=4).map(tuple),
)


@settings(max_examples=30, deadline=None)
@given(fates, fates, st.integers(0, 2))
def test_every_penalty_takes_two_others_that_agree(one: Fate, other: Fate, lag: int) -> None:
    play = disputed(one, other, lag=lag)
    record = last(play)
    for item in record.overruled:
        mine = said(play, item.slot)[item.look]
        others = [v for v in said(play, item.slot).values() if v != mine]
        kinds = [(v.outcome, v.payload, v.next_state) for v in others]
        assert any(kinds.count(kind) >= 2 for kind in kinds)
        assert len({MANY[v.auditor] for v in (mine, *others)}) == len(others) + 1
        assert item.auditor in record.quarantined
    for slot, reason in fallen(play).items():
        fails = [v for v in said(play, slot).values() if v.outcome == "fail"]
        assert reason != "failed-audit" or len(fails) >= 2
    blamed = {item.auditor for item in record.overruled}
    assert {name for name in record.quarantined if name in MANY} == blamed
    for name, standing in play.state.standings.items():
        assert standing.earned == standing.vested + standing.forfeited + standing.pending, name
        assert not (standing.quarantined and standing.pending)
