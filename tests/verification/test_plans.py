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
    Fate,
    Play,
    b3,
    head,
    played,
    started,
)
from verification.errors import ProtocolError
from verification.notes import parse_checkpoint
from verification.plans import accepted_contributions, capped_weights, plan_close, plan_open, plan_run_close
from verification.records import Base, Draw, RoundClose, RoundOpen, Verdict

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
