"""What a late settlement comes to: who is taken out, where members go on from, credit, and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import CHEAT, GOOD, LATE, Fate, revocation, rotation, scripts
from tests.verification.late_play import (
    ALL,
    DISPUTED,
    UNAUDITED,
    UNCONFIRMED,
    LatePlay,
    late_played,
    late_start,
)
from tests.verification.slow_settling import SlowRun
from verification.credits import LateResult, Standing, after_settlement
from verification.errors import ProtocolError
from verification.judge import settle
from verification.plans import plan_open
from verification.records import Draw, FirstLooks, Removed, RoundClose, RoundOpen, Settlement, Verdict
from verification.rounds import apply
from verification.settling import (
    due_turn,
    final_outcomes,
    late_outcomes,
    plan_settlement,
    removals,
)
from verification.state import RunState

TWICE = {**ALL, "second_look_ppm": 1_000_000}


def settlements(play: LatePlay) -> list[Settlement]:
    return [record for record in play.records if isinstance(record, Settlement)]


def taken_out(record: Settlement) -> list[tuple[int, str, str]]:
    return [(item.round, item.member, item.reason) for item in record.removed]


def at_due(script: list[dict[int, Fate]], lag: int = 1, **sections: Any) -> LatePlay:
    """A run up to where the settlement of turn 0 is due, before its audits."""
    play = LatePlay(late_start(lag, **{"audit": TWICE, "run": {"rounds": 6}, **sections}))
    for turn in script:
        play.turn(turn)
    assert due_turn(play.state).turn.open.turn == 0
    return play


# --- what is taken out ---


@pytest.mark.parametrize(
    ("fate", "reason", "fault"),
    [
        (CHEAT, "failed-audit", True),
        (DISPUTED, "disputed", False),
        (UNAUDITED, "unaudited", False),
        (UNCONFIRMED, "unconfirmed", False),
        (Fate(second="none"), "unaudited", False),
    ],
)
@pytest.mark.parametrize("lag", [1, 2])
def test_what_audits_do_not_bear_out_is_taken_out_with_all_that_follows(
    fate: Fate, reason: str, fault: bool, lag: int
) -> None:
    play = at_due([{2: fate}] + [{}] * lag, lag)
    assert [item.member for item in play.state.waiting[0].accepted] == ["c0", "c1", "c2", "c3"]
    play.settle_due()
    (record,) = settlements(play)
    assert record.removed == (
        Removed(1, 0, 2, "c2", reason, fault, None),
        *(Removed(2 + later, 0, 2, "c2", "follows", False, None) for later in range(lag)),
    )
    assert ("c2" in record.quarantined) == fault
    for waiting in play.state.waiting:
        assert [item.member for item in waiting.accepted] == ["c0", "c1", "c3"]


def test_honest_work_is_not_touched_and_a_settlement_of_it_changes_no_weight() -> None:
    play = at_due([{}, {}])
    before = play.state
    play.settle_due()
    (record,) = settlements(play)
    assert (record.removed, record.missed, record.quarantined) == ((), (), ())
    assert (play.state.base, play.state.lineage) == (before.base, before.lineage)
    assert play.state.tokens == before.tokens
    assert play.state.queue == before.queue


def test_only_later_turns_of_the_same_member_follow_and_only_closed_ones() -> None:
    play = at_due([{2: CHEAT}, {3: LATE}], 1)
    play.settle_due()
    assert taken_out(settlements(play)[0]) == [(1, "c2", "failed-audit"), (2, "c2", "follows")]
    # c2 is in quarantine; one that is not goes on, from the state before, and is not suspected of the next.
    play = at_due([{1: DISPUTED}, {}], 1)
    play.turn({})
    play.turn({})
    play.settle_due()
    assert [taken_out(record) for record in settlements(play)] == [
        [(1, "c1", "disputed"), (2, "c1", "follows")], [], [],
    ]  # fmt: skip
    assert {item.member for item in play.state.waiting[-1].accepted} == {"c0", "c1", "c2", "c3"}


def test_an_earlier_turn_of_the_same_member_stays() -> None:
    play = at_due([{}, {1: DISPUTED}], 1)
    play.turn({})
    play.settle_due()
    first, second = settlements(play)
    assert taken_out(first) == []
    assert taken_out(second) == [(2, "c1", "disputed"), (3, "c1", "follows")]


def test_nobody_is_asked_about_what_was_taken_out() -> None:
    """c1's second turn went with its first; its verdicts, had somebody given them, would not be taken."""
    play = at_due([{1: DISPUTED}, {}], 1)
    play.turn({})
    due = due_turn(play.state)
    assert due.turn.open.turn == 1
    assert due.slots == {0, 2, 3}
    assert due.turn.served
    assert 1 in due.turn.served.served
    honest = LatePlay(late_start(1, audit=TWICE, run={"rounds": 6}))
    for _ in range(3):
        honest.turn({})
    honest.late_audit()
    theirs = next(r for r in honest.records if isinstance(r, Verdict) and (r.round, r.slot) == (2, 1))
    with pytest.raises(ProtocolError, match="may not come"):
        play.add(replace(theirs, run=play.state.run))
    seals = next(r for r in honest.records if isinstance(r, FirstLooks) and r.round == 2)
    assert [look.slot for look in seals.looks] == [0, 1, 2, 3]
    for looks in (seals.looks, (seals.looks[1],)):
        with pytest.raises(ProtocolError, match="may not come"):
            play.add(replace(seals, run=play.state.run, looks=looks))
    others = tuple(look for look in seals.looks if look.slot != 1)
    assert apply(play.state, replace(seals, run=play.state.run, looks=others))
    play.settle_due()
    asked = {(r.round, r.slot) for r in play.records if isinstance(r, Verdict)}
    assert (2, 0) in asked
    assert (2, 1) not in asked
    assert all(m.slot != 1 for m in settlements(play)[1].missed)


def test_the_whole_outcome_of_a_turn_names_what_followed_an_earlier_one() -> None:
    play = at_due([{1: DISPUTED}, {3: LATE, 2: UNAUDITED}], 1)
    play.turn({})
    play.late_audit()
    assert {o.entry.slot: o.reason for o in late_outcomes(play.state)} == {0: None, 2: "unaudited"}
    found = {o.entry.slot: o.reason for o in final_outcomes(play.state)}
    assert found == {0: None, 1: "follows", 2: "unaudited", 3: "late"}


def test_nothing_is_settled_before_it_is_due_or_before_its_second_draw() -> None:
    play = LatePlay(late_start(1))
    for state in (play.state, late_played([{}], late_start(1), to_the_end=False).state):
        with pytest.raises(ProtocolError, match="no settlement is due"):
            due_turn(state)
    play = at_due([{}, {}])
    with pytest.raises(ProtocolError, match="cannot be settled yet"):
        late_outcomes(play.state)
    with pytest.raises(ProtocolError, match="cannot be settled yet"):
        plan_settlement(play.state, play.state.base, play.state.base, {})


def test_evidence_stands_with_the_due_turns_items_and_not_with_what_follows() -> None:
    play = at_due([{1: DISPUTED}, {}])
    play.late_audit()
    digest = "sha256:" + "7" * 64
    own, follows = removals(play.state, {1: digest})
    assert (own.evidence, follows.evidence) == (digest, None)


def test_a_close_is_provisional_and_accepts_what_its_audits_might_not() -> None:
    play = at_due([{0: CHEAT, 1: replace(GOOD, serves=False), 3: LATE}, {}])
    close = next(r for r in play.records if isinstance(r, RoundClose))
    assert [item.member for item in close.accepted] == ["c0", "c2"]
    assert [(item.member, item.reason) for item in close.rejected] == [("c1", "unserved"), ("c3", "late")]
    assert close.missed == ()


def test_auditors_that_did_not_answer_are_named_in_the_settlement() -> None:
    play = at_due([{0: replace(GOOD, silent=1)}, {}])
    play.settle_due()
    (record,) = settlements(play)
    draw = next(r for r in play.records if isinstance(r, Draw))
    first = next(item.auditors[0] for item in draw.drawn if item.slot == 0)
    assert [(m.slot, m.look, m.auditor) for m in record.missed if m.look == 1] == [(0, 1, first)]


def test_weights_are_capped_anew_over_what_is_left() -> None:
    """op-a has two contributors: without one its share is smaller, and the other counts for more."""
    play = at_due([{1: DISPUTED}, {}], credit={"vest_rounds": 2, "operator_cap_ppm": 300_000})
    before = {item.member: item for item in play.state.waiting[1].accepted}
    play.settle_due()
    after = {item.member: item for item in play.state.waiting[0].accepted}
    assert before["c0"].weight < before["c0"].tokens
    assert "c1" not in after
    assert after["c0"].weight > before["c0"].weight
    assert after["c0"].tokens == before["c0"].tokens


# --- where members go on from ---


def start_of(state: RunState, member: str) -> str:
    return next(e.start_state for e in plan_open(state).roster if e.member == member)


@pytest.mark.parametrize("lag", [1, 3])
def test_a_member_goes_on_from_before_the_first_thing_that_was_taken_out(lag: int) -> None:
    play = at_due([{1: DISPUTED}] + [{}] * lag, lag)
    play.settle_due()
    assert start_of(play.state, "c1") == play.state.manifest.zero_state
    play = LatePlay(late_start(lag, audit=TWICE, run={"rounds": 9}))
    play.turn({})
    play.turn({1: DISPUTED})
    before = {e.member: e.start_state for e in play.state.waiting[-1].turn.open.roster}
    for _ in range(lag):
        play.turn({})
    play.settle_due()
    assert settlements(play)[-1].removed
    assert start_of(play.state, "c1") == before["c1"] != play.state.manifest.zero_state
    last = play.state.waiting[-1].turn
    assert start_of(play.state, "c0") == last.reveals[0].opening.next_state


def test_a_member_whose_key_was_rotated_since_goes_on_from_zero() -> None:
    play = LatePlay(late_start(1, audit=TWICE, run={"rounds": 9}))
    play.turn({})
    play.turn({1: DISPUTED})
    play.settle_due()
    play.add(rotation(play.state.run, "c1", "c1", "c1 again"))
    play.add(rotation(play.state.run, "c2", "c2", "c2 again"))
    play.turn({})
    play.settle_due()
    assert taken_out(settlements(play)[-1]) == [(2, "c1", "disputed"), (3, "c1", "follows")]
    zero = play.state.manifest.zero_state
    assert start_of(play.state, "c1") == zero
    assert start_of(play.state, "c2") != zero


# --- credit ---


def test_tokens_leave_and_what_auditors_earn_counts_from_the_audited_turn() -> None:
    play = at_due([{1: DISPUTED}, {}], audit={**TWICE, "second_look_ppm": 0})
    before = play.state.standings
    assert all(before[name].earned == 0 for name in ("a0", "a1", "a2"))
    tokens = 2 * 2 * 4  # two steps of two windows of four
    assert before["c1"].unvested == ((0, tokens), (1, tokens))
    play.settle_due()
    after = play.state.standings
    assert (after["c1"].earned, after["c1"].unvested, after["c1"].accepted) == (0, (), 0)
    assert not after["c1"].quarantined
    assert after["c0"] == before["c0"]
    paid = [entry for name in ("a0", "a1", "a2") for entry in after[name].unvested]
    assert {turn for turn, _ in paid} == {0}
    # Each of the three that were borne out once; nobody for a verdict that was disputed.
    assert sorted(tokens for _, tokens in paid) == sorted([4 * 8, 3 * 8, 1 * 8])


def test_what_was_earned_for_an_audit_vests_by_the_turn_that_was_audited() -> None:
    play = at_due([{}, {}], audit={**TWICE, "second_look_ppm": 0}, credit={"vest_rounds": 2})
    play.settle_due()
    earned = {name: play.state.standings[name].earned for name in ("a0", "a1", "a2")}
    assert sum(earned.values()) == 10 * 8
    super(LatePlay, play).turn({})  # the close of turn 2: what counts from turn 0 vests
    assert {name: play.state.standings[name].vested for name in earned} == earned


def test_a_fault_found_late_forfeits_all_that_has_not_vested() -> None:
    play = at_due([{2: CHEAT}, {}])
    play.settle_due()
    standing = play.state.standings["c2"]
    assert (standing.quarantined, standing.earned, standing.pending, standing.forfeited) == (True, 0, 0, 0)
    assert settlements(play)[0].quarantined == ("c2",)
    assert [entry.member for entry in plan_open(play.state).roster] == ["c0", "c1", "c3"]
    play = LatePlay(late_start(1, audit=TWICE, run={"rounds": 9}, credit={"vest_rounds": 5}))
    play.turn({})
    play.turn({2: CHEAT})
    play.turn({})
    play.settle_due()
    standing = play.state.standings["c2"]
    assert (standing.earned, standing.forfeited, standing.vested) == (3 * 8, 3 * 8, 0)


def test_one_in_quarantine_since_loses_what_it_forfeited_and_no_more() -> None:
    play = LatePlay(late_start(1, audit=TWICE, run={"rounds": 9}))
    play.turn({1: DISPUTED})
    play.add(revocation(play.state.run, "c1"))
    assert play.state.standings["c1"].forfeited == 16
    play.turn({})
    play.settle_due()
    standing = play.state.standings["c1"]
    assert (standing.earned, standing.vested, standing.forfeited, standing.pending) == (0, 0, 0, 0)


def test_a_suspect_is_cleared_by_a_settlement_and_not_by_a_close() -> None:
    unserved = replace(GOOD, serves=False)
    play = LatePlay(late_start(1, audit=TWICE, run={"rounds": 9}, credit={"strikes": 5, "vest_rounds": 2}))
    play.turn({1: unserved, 3: unserved})
    play.turn({3: DISPUTED})
    assert play.state.standings["c1"].suspect
    play.settle_due()
    assert play.state.standings["c1"].suspect  # of turn 0, in which it was the one that failed
    play.turn({})
    assert play.state.standings["c1"].suspect
    play.settle_due()
    assert not play.state.standings["c1"].suspect
    assert play.state.standings["c3"].suspect


def test_who_was_not_drawn_stays_suspect() -> None:
    play = LatePlay(late_start(1, audit={**ALL, "rate_ppm": 0}, run={"rounds": 9}))
    play.turn({1: replace(GOOD, refused="unrevealed")})
    quiet = play.state.standings["c1"]
    assert quiet.suspect
    play.turn({})
    play.turn({})
    play.settle_due()
    assert not play.state.standings["c1"].suspect  # a suspect is drawn
    result = LateResult(0, cleared=())
    assert after_settlement({"c1": quiet}, result)["c1"].suspect
    assert not after_settlement({"c1": quiet}, LateResult(0, cleared={"c1"}))["c1"].suspect


def test_the_count_of_accepted_contributions_does_not_fall_below_nothing() -> None:
    before = {"c": Standing(earned=8, unvested=((3, 8),), accepted=0)}
    after = after_settlement(before, LateResult(3, removed=[("c", 3, 8)]))
    assert after == {"c": Standing()}


def test_of_two_unvested_entries_the_one_of_the_removed_turn_goes() -> None:
    before = {"c": Standing(earned=24, unvested=((3, 8), (4, 8), (5, 8)), accepted=3)}
    after = after_settlement(before, LateResult(3, removed=[("c", 4, 8)]))
    assert after == {"c": Standing(earned=16, unvested=((3, 8), (5, 8)), accepted=2)}


# --- everything at once, against a slow account of the log ---


fate_turns = st.dictionaries(
    st.integers(0, 3), st.sampled_from((DISPUTED, UNAUDITED, UNCONFIRMED, CHEAT, LATE)), max_size=2
)
late_scripts = st.one_of(scripts, st.lists(fate_turns, min_size=2, max_size=9))


@settings(max_examples=60, deadline=None)
@given(
    late_scripts,
    st.integers(1, 3),
    st.sampled_from((TWICE, {**TWICE, "rate_ppm": 300_000}, {**ALL, "second_look_ppm": 200_000})),
    st.sets(st.tuples(st.integers(1, 6), st.sampled_from(("c1", "c2", "a0"))), max_size=3),
)
def test_the_state_is_what_a_slow_account_of_the_log_says(
    script: list[Mapping[int, Fate]], lag: int, audit: dict[str, int], rotations: set[tuple[int, str]]
) -> None:
    play = LatePlay(late_start(lag, audit=audit, run={"rounds": 6}))
    slow = SlowRun(play.state.manifest.zero_state)
    seen = 0
    keys = {"c1": "c1", "c2": "c2", "a0": "a0"}
    for number, turn in enumerate(script):
        play.settle_due()
        for name in sorted(name for at, name in rotations if at == number and number):
            if not play.state.standings[name].quarantined and play.state.turns:
                play.add(rotation(play.state.run, name, keys[name], f"{keys[name]}+"))
                keys[name] += "+"
        if play.state.rounds_done == 6 or play.state.attempt == 3:
            break
        play.turn(turn)
    if play.state.rounds_done == 6:
        play.finish()
    state = late_start(lag, audit=audit, run={"rounds": 6})
    replayed = LatePlay(state)
    for record in play.records:
        expected = slow.expected_removals(replayed.state, record) if isinstance(record, Settlement) else None
        replayed.add(record)
        slow.add(record)
        if isinstance(record, Settlement):
            assert {(i.round, i.attempt, i.slot, i.reason) for i in record.removed} == expected
        slow.check(replayed.state)
        seen += isinstance(record, (RoundOpen, RoundClose, Settlement))
    assert seen >= 2


def test_the_slow_account_sees_a_reason_that_is_not_the_logs() -> None:
    play = at_due([{1: DISPUTED}, {}])
    play.late_audit()
    slow = SlowRun(play.state.manifest.zero_state)
    for record in play.records:
        slow.add(record)
    honest = plan_settlement(play.state, play.state.base, play.state.base, {})
    assert slow.expected_removals(play.state, honest) == {(1, 0, 1, "disputed"), (2, 0, 1, "follows")}
    assert settle(due_turn(play.state).turn.evidence)[1].reason == "disputed"
