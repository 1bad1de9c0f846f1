"""Plans: weights under the operator cap, opens, draws and closes that follow from the state."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import (
    AUDITORS,
    CHAIN,
    CHEAT,
    GOOD,
    LATE,
    WITNESSES,
    Fate,
    Play,
    b3,
    head,
    made_up_beacon,
    played,
    started,
)
from verification.errors import ProtocolError
from verification.lottery import draw_segments
from verification.notes import parse_checkpoint
from verification.plans import (
    accepted_contributions,
    audited_tokens,
    capped_weights,
    plan_close,
    plan_open,
    plan_run_close,
)
from verification.records import Base, Draw, RoundClose, RoundOpen, SecondDraw, Verdict

work = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 10**6)), max_size=8)


@given(work, st.integers(0, 10**6))
def test_an_operators_weight_is_capped_in_whole_tokens(pairs: list[tuple[str, int]], cap: int) -> None:
    weights = capped_weights(pairs, cap)
    total = sum(tokens for _, tokens in pairs)
    held: Counter[str] = Counter()
    for operator, tokens in pairs:
        held[operator] += tokens
    for (operator, tokens), weight in zip(pairs, weights, strict=True):
        over = held[operator] * 10**6 > cap * total
        assert weight == ((tokens * cap * total) // (10**6 * held[operator]) if over else tokens)
    for operator in held:
        share = sum(w for (o, _), w in zip(pairs, weights, strict=True) if o == operator)
        assert share * 10**6 <= max(cap * total, 0)


def test_the_cap_in_numbers() -> None:
    # a has 900 of 1000 tokens; half of all is 500, shared in proportion.
    assert capped_weights([("a", 600), ("b", 100), ("a", 300)], 500_000) == [333, 100, 166]
    assert capped_weights([("a", 600), ("b", 100), ("a", 300)], 1_000_000) == [600, 100, 300]
    assert capped_weights([], 500_000) == []


def test_the_first_open_hands_out_the_data_order_by_slot() -> None:
    open_ = plan_open(started())
    assert [entry.positions for entry in open_.roster] == [((0, 8),), ((8, 12),), ((12, 18),), ((18, 20),)]
    assert {entry.audit_ppm for entry in open_.roster} == {1_000_000}
    assert [entry.slot for entry in open_.roster] == [0, 1, 2, 3]
    assert len(open_.inner_lr) == 4
    assert (open_.turn, open_.round, open_.attempt, open_.deadline_ms, open_.snapshot) == (0, 1, 0, 0, True)
    assert [auditor.member for auditor in open_.auditors] == ["a0", "a1", "a2"]


def test_probation_suspicion_and_quarantine_show_in_the_roster() -> None:
    play = played([{1: replace(GOOD, refused="unrevealed"), 2: CHEAT}])
    open_ = plan_open(play.state)
    assert {entry.slot: entry.audit_ppm for entry in open_.roster} == {0: 400_000, 1: 1_000_000, 3: 400_000}
    # c1's contribution is drawn and accepted: no longer suspect, and out of probation.
    play.turn({})
    assert plan_open(play.state).entry(1).audit_ppm == 400_000


def test_returned_work_goes_to_another_operator_first() -> None:
    play = played([{0: LATE}])
    queued = play.state.queue
    assert [(item.range, item.operator) for item in queued] == [((0, 8), "op-a")]
    open_ = plan_open(play.state)
    assert [entry.positions for entry in open_.roster] == [
        ((20, 28),),  # op-a may not have its own back
        ((28, 32),),  # nor may its other member
        ((0, 6),),
        ((6, 8),),
    ]


def test_a_close_cannot_be_planned_before_the_second_draw() -> None:
    play = Play(started())
    with pytest.raises(ProtocolError, match="no turn is open"):
        plan_close(play.state, play.state.base, evidence={}, val_loss=None)
    play.add(plan_open(play.state))
    with pytest.raises(ProtocolError, match="cannot be settled"):
        accepted_contributions(play.state)


def test_the_close_in_numbers() -> None:
    play = played([{3: replace(GOOD, first="none")}])
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    assert [(a.slot, a.tokens, a.weight) for a in close.accepted] == [(0, 32, 24), (1, 16, 12), (2, 24, 24)]
    assert [(r.slot, r.reason, r.fault) for r in close.rejected] == [(3, "unaudited", False)]
    assert {m.slot for m in close.missed} == {3}
    assert {m.auditor for m in close.missed} == {"a0", "a1", "a2"}
    assert close.train_loss == (32 * 4_000_000 + 16 * 4_000_001 + 24 * 4_000_002) // 72
    assert close.cursor == 20
    assert [(q.range, q.operator) for q in close.requeued] == [((18, 20), "op-c")]
    assert [c.member for c in close.credits] == sorted(["c0", "c1", "c2", "c3", "a0", "a1", "a2"])


def test_an_auditor_of_the_contributors_operator_is_never_drawn() -> None:
    play = played([{}])
    draws = [r for r in play.records if r.kind == "draw"]
    (draw,) = draws
    by_slot = {item.slot: set(item.auditors) for item in draw.drawn}  # type: ignore[union-attr]
    assert by_slot[2] == {"a0", "a1"}  # a2 is of op-b, as c2 is
    assert by_slot[0] == {"a0", "a1", "a2"}


def drawn(play: Play) -> dict[int, tuple[str, ...]]:
    draw = next(record for record in play.records if isinstance(record, Draw))
    return {item.slot: item.auditors for item in draw.drawn}


NEVER = {"rate_ppm": 0, "probation_rounds": 0}


def test_slots_with_equal_payloads_are_always_drawn() -> None:
    plain, copied = (Play(started(audit=NEVER)) for _ in range(2))
    plain.turn({})
    assert drawn(plain) == {}
    copied.turn({1: Fate(copies=2), 3: GOOD})
    assert set(drawn(copied)) == {1, 2}
    # A copy of what was not revealed, or not validly, is no twin of anything in the log.
    for fate in (LATE, Fate(refused="unrevealed"), Fate(refused="unserved")):
        alone = Play(started(audit=NEVER))
        alone.turn({1: Fate(copies=2), 2: fate})
        assert drawn(alone) == {}


def reasons(play: Play) -> dict[int, str]:
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    return {item.slot: item.reason for item in close.rejected}


def test_what_no_auditor_of_the_open_may_judge_has_no_weight_drawn_or_not() -> None:
    # a2 is of op-b, as c2 is.
    rarely = Play(started({"a2": "op-b"}, audit={"rate_ppm": 1, "probation_rounds": 0}))
    rarely.turn({})
    assert drawn(rarely) == {}
    assert reasons(rarely) == {2: "no-eligible-auditor"}
    never = Play(started({"a2": "op-b"}, audit=NEVER))
    never.turn({})
    assert reasons(never) == {}
    twins = Play(started({"a2": "op-b"}, audit=NEVER))
    twins.turn({0: Fate(copies=2)})
    assert drawn(twins) == {0: ("a2",), 2: ()}
    assert reasons(twins) == {0: "unconfirmed", 2: "no-eligible-auditor"}


@pytest.mark.parametrize(
    ("fate", "paid"),
    [
        (Fate(), {1, 2}),
        (CHEAT, {1, 2}),
        (Fate(first="pass", second="fail"), set()),  # disputed
        (Fate(first="fail", second="pass"), set()),  # disputed
        (Fate(first="fail", second="differ"), set()),  # disputed
        (Fate(first="fail", second="none"), set()),  # unconfirmed
        (Fate(first="pass", second="none"), set()),  # unaudited
    ],
)
def test_auditors_are_paid_for_verdicts_that_the_settling_bears_out(fate: Fate, paid: set[int]) -> None:
    play = Play(started(audit={"second_look_ppm": 1_000_000}))
    play.turn(dict.fromkeys((1, 2, 3), LATE) | {0: fate})
    verdicts = {record.look: record.auditor for record in play.records if isinstance(record, Verdict)}
    assert set(verdicts) == {1} | ({2} if fate.second != "none" else set())
    earned = {name: play.state.standings[name].earned for name in AUDITORS}
    # 32 tokens, the same for pass and fail.
    assert earned == {name: 32 if name in {verdicts[look] for look in paid} else 0 for name in AUDITORS}


def test_heads_and_links_decide_the_draws() -> None:
    play = Play(started())
    play.turn({})
    first = [r for r in play.records if r.kind in ("draw", "second-draw")]
    assert [r.link for r in first] == [CHAIN.link(1), CHAIN.link(2)]  # type: ignore[union-attr]
    assert len({r.seed for r in first}) == 2  # type: ignore[union-attr]
    assert parse_checkpoint(head(5)[1], play.state.manifest.log_vkey).size == 5


def test_run_close_sums_up() -> None:
    play = played([{}, {0: LATE}, {}, {}])
    close = plan_run_close(replace(play.state, finished=False))
    accepted = [a.tokens for r in play.records if isinstance(r, RoundClose) for a in r.accepted]
    assert (close.rounds, close.tokens) == (4, sum(accepted))
    assert Base(close.weights, close.outer) == Base(b3("weights 3"), b3("outer 3"))
    assert sum(isinstance(r, RoundOpen) for r in play.records) == 4


# Segments: steps of 9, 2, 5 and 1 with a leaf every two have 5, 1, 3 and 1 of them.

STEPS = {"steps": [9, 2, 5, 1]}
ALWAYS = {"rate_ppm": 1_000_000, "probation_rounds": 0, "second_look_ppm": 1_000_000}


def asked(**audit: int) -> list[int]:
    return [entry.audit_segments for entry in plan_open(started(train=STEPS, audit=audit)).roster]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [(0, [5, 1, 3, 1]), (1, [1, 1, 1, 1]), (3, [3, 1, 3, 1]), (4, [4, 1, 3, 1]), (99, [5, 1, 3, 1])],
)
def test_an_audit_is_of_as_many_segments_as_the_manifest_says(segments: int, expected: list[int]) -> None:
    assert asked(segments=segments, probation_rounds=0) == expected
    # Though everybody is drawn, nobody is on probation or suspect.
    assert asked(segments=segments, probation_rounds=0, rate_ppm=1_000_000) == expected
    assert asked(segments=segments, probation_rounds=1) == [5, 1, 3, 1]


def test_who_is_watched_is_audited_whole() -> None:
    play = Play(started(train=STEPS, audit={"probation_rounds": 1, "segments": 2}))
    play.turn({2: LATE})
    open_ = plan_open(play.state)  # 2 stays on probation
    assert [entry.audit_segments for entry in open_.roster] == [2, 1, 3, 1]
    play = Play(started(train=STEPS, audit={"probation_rounds": 0, "segments": 2}))
    play.turn({0: Fate(refused="unrevealed")})
    open_ = plan_open(play.state)  # 0 is suspect
    assert [entry.audit_segments for entry in open_.roster] == [5, 1, 2, 1]


def test_segments_follow_the_steps_of_the_turn() -> None:
    timing = {"mode": "measured"}
    play = Play(started(train=STEPS, timing=timing, audit={"probation_rounds": 0, "segments": 0}))
    play.turn({2: replace(GOOD, ms=100)})
    entry = plan_open(play.state).entry(2)
    assert (entry.steps, entry.audit_segments) == (10, 5)


def first_draw(play: Play) -> Draw:
    return next(record for record in play.records if isinstance(record, Draw))


def segments_of(play: Play) -> dict[int, tuple[int, ...]]:
    return {item.slot: item.segments for item in first_draw(play).drawn}


WHOLE = {0: (0, 1, 2, 3, 4), 1: (0,), 2: (0, 1, 2), 3: (0,)}


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_the_draw_names_the_segments_that_its_seed_gives(segments: int) -> None:
    play = Play(started(train=STEPS, audit={**ALWAYS, "segments": segments}))
    play.turn({})
    seed = first_draw(play).seed
    counts = {0: 5, 1: 1, 2: 3, 3: 1}
    expected = {slot: draw_segments(seed, slot, segments, count) for slot, count in counts.items()}
    assert segments_of(play) == expected
    assert [len(expected[slot]) for slot in range(4)] == [segments, 1, min(segments, 3), 1]


def test_of_a_watched_slot_all_segments_are_drawn() -> None:
    play = Play(started(train=STEPS, audit={"segments": 1, "probation_rounds": 1}))
    play.turn({})
    assert segments_of(play) == WHOLE


def test_of_twins_all_segments_are_drawn_and_of_nobody_else() -> None:
    play = Play(started(train=STEPS, audit={**ALWAYS, "segments": 1}))
    play.turn({1: Fate(copies=2)})
    found = segments_of(play)
    assert (found[1], found[2]) == (WHOLE[1], WHOLE[2])
    assert (len(found[0]), len(found[3])) == (1, 1)
    # A copy of what is not valid is no twin.
    alone = Play(started(train=STEPS, audit={**ALWAYS, "segments": 1}))
    alone.turn({1: Fate(copies=2), 2: Fate(refused="unserved")})
    assert len(segments_of(alone)[2]) == 1


def test_in_a_short_draw_all_segments_are_drawn() -> None:
    audit = {**ALWAYS, "segments": 1}
    for mute in (set[str](), {WITNESSES[0]}):
        play = Play(started(train=STEPS, audit=audit, witnesses=3))
        play.mute = mute
        play.turn({})
        assert (segments_of(play) == WHOLE) == bool(mute)
    for pulseless, lead in ((False, 5), (True, 5), (False, -5)):
        play = Play(started(train=STEPS, audit=audit, witnesses=3, beacon=made_up_beacon(period=1)))
        play.pulseless, play.lead = pulseless, lead
        play.turn({})
        assert (segments_of(play) == WHOLE) == (pulseless or lead < 0)


def test_a_second_look_is_at_the_same_segments() -> None:
    play = Play(started(train=STEPS, audit={**ALWAYS, "segments": 2}))
    play.turn({})
    (second,) = (record for record in play.records if isinstance(record, SecondDraw))
    assert [item.slot for item in second.looks] == [0, 1, 2, 3]
    verdicts = [record for record in play.records if isinstance(record, Verdict)]
    by_look = {(v.slot, v.look): v.trace for v in verdicts}
    assert len(by_look) == 8
    assert all(by_look[slot, 1] == by_look[slot, 2] for slot in range(4))
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    assert [item.slot for item in close.accepted] == [0, 1, 2, 3]


@pytest.mark.parametrize("fate", [GOOD, CHEAT])
def test_auditors_are_paid_for_the_segments_that_they_looked_into(fate: Fate) -> None:
    play = Play(started(train=STEPS, audit={**ALWAYS, "segments": 2}))
    play.turn(dict.fromkeys((1, 2, 3), LATE) | {0: fate})
    drawn = segments_of(play)[0]
    assert len(drawn) == 2
    # Two windows of four positions a step, two steps a segment but for the fifth of nine steps.
    due = sum(8 * (1 if segment == 4 else 2) for segment in drawn)
    verdicts = [record for record in play.records if isinstance(record, Verdict)]
    assert [record.look for record in verdicts] == [1, 2]
    earned = {name: play.state.standings[name].earned for name in AUDITORS}
    assert earned == {**dict.fromkeys(AUDITORS, 0), **{record.auditor: due for record in verdicts}}
    assert play.state.standings["c0"].earned == (72 if fate == GOOD else 0)


def test_audited_tokens_follow_from_the_draw() -> None:
    play = Play(started(train=STEPS, audit={**ALWAYS, "segments": 2}))
    state = play.state
    play.turn({})
    again = Play(state)
    for record in play.records[:-1]:
        again.add(record)
    turn = again.state.open_turn
    assert turn.draw
    for segments, tokens in (((0,), 16), ((4,), 8), ((1, 4), 24), ((0, 1, 2, 3, 4), 72)):
        drawn = (replace(turn.draw.drawn[0], segments=segments), *turn.draw.drawn[1:])
        other = replace(turn, draw=replace(turn.draw, drawn=drawn))
        assert audited_tokens(again.state, other, 0) == tokens
