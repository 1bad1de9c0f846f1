"""Credit, strikes, suspicion, quarantine: section 10 step by step, and against a second version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.credits import (
    STRIKE_REASONS,
    LateResult,
    Standing,
    TurnResult,
    after_settlement,
    after_turn,
)

HARMLESS = ("late", "unaudited", "no-eligible-auditor", "unconfirmed", "disputed")
NAMES = ("m", "n", "aud")


def step(
    standings: dict[str, Standing], result: TurnResult, vest: int = 2, strikes: int = 2
) -> dict[str, Standing]:
    return after_turn(standings, result, vest_rounds=vest, strikes=strikes)


def fresh() -> dict[str, Standing]:
    return {name: Standing() for name in NAMES}


def test_accepted_work_and_verdicts_earn_and_vest_late() -> None:
    after = step(fresh(), TurnResult(0, [("m", 30), ("aud", 30)], {"m": True}))
    assert after["m"] == Standing(earned=30, unvested=((0, 30),), accepted=1)
    assert after["aud"] == Standing(earned=30, unvested=((0, 30),))
    after = step(after, TurnResult(1, [("m", 5)], {"m": False}))
    assert after["m"].vested == 0
    after = step(after, TurnResult(2))
    assert (after["m"].vested, after["m"].unvested) == (30, ((1, 5),))
    assert step(after, TurnResult(3))["m"] == Standing(earned=35, vested=35, accepted=2)


def test_with_no_waiting_tokens_vest_at_once() -> None:
    after = step(fresh(), TurnResult(4, [("m", 7)], {"m": False}), vest=0)
    assert (after["m"].vested, after["m"].pending) == (7, 0)


def test_a_confirmed_fault_forfeits_what_has_not_vested_even_when_it_would_now() -> None:
    before = fresh()
    before["m"] = Standing(earned=60, vested=10, unvested=((0, 20), (1, 30)), accepted=3)
    after = step(before, TurnResult(2, rejected={"m": "failed-audit"}))
    assert after["m"] == Standing(earned=60, vested=10, forfeited=50, accepted=3, quarantined=True)
    assert after["n"] == before["n"]


@pytest.mark.parametrize("reason", sorted(STRIKE_REASONS))
def test_strikes_make_suspect_and_then_quarantine(reason: str) -> None:
    once = step(fresh(), TurnResult(0, rejected={"m": reason}))
    assert once["m"] == Standing(strikes=1, struck=0, suspect=True)
    earned = step(once, TurnResult(1, [("m", 4)], {"m": True}))
    assert not earned["m"].suspect
    assert earned["m"].strikes == 1
    twice = step(earned, TurnResult(2, rejected={"m": reason}))
    assert twice["m"] == Standing(
        earned=4, forfeited=4, accepted=1, strikes=2, struck=2, suspect=True, quarantined=True
    )


def test_one_strike_may_be_enough() -> None:
    assert step(fresh(), TurnResult(0, rejected={"m": "unserved"}), strikes=1)["m"].quarantined


@pytest.mark.parametrize("reason", HARMLESS)
def test_other_reasons_cost_only_the_round(reason: str) -> None:
    assert step(fresh(), TurnResult(0, rejected={"m": reason}))["m"] == Standing()


def test_suspicion_ends_only_with_a_drawn_and_accepted_contribution() -> None:
    suspect = {**fresh(), "m": Standing(strikes=1, suspect=True)}
    assert step(suspect, TurnResult(1, [("m", 1)], {"m": False}))["m"].suspect
    assert not step(suspect, TurnResult(1, [("m", 1)], {"m": True}))["m"].suspect
    assert step(suspect, TurnResult(1, rejected={"m": "disputed"}))["m"].suspect


def test_the_standings_given_are_left_as_they_were() -> None:
    before = fresh()
    step(before, TurnResult(0, [("m", 3)], {"m": True}, {"n": "failed-audit"}))
    assert before == fresh()


events = st.lists(
    st.dictionaries(
        st.sampled_from(("m", "n")),
        st.one_of(
            st.tuples(st.just("ok"), st.booleans(), st.integers(1, 99)),
            st.sampled_from((*sorted(STRIKE_REASONS), *HARMLESS, "failed-audit")),
        ),
    ),
    max_size=12,
)


@given(events, st.integers(0, 4), st.integers(1, 3))
def test_any_history_agrees_with_a_plain_ledger(
    history: list[dict[str, object]], vest: int, limit: int
) -> None:
    standings = fresh()
    earned: dict[str, list[tuple[int, int]]] = {"m": [], "n": []}
    strikes = dict.fromkeys(earned, 0)
    ended: dict[str, int] = {}
    for turn, happened in enumerate(history):
        tokens, accepted, rejected = [], {}, {}
        for name, what in happened.items():
            if name in ended:
                continue
            if isinstance(what, tuple):
                tokens.append((name, what[2]))
                accepted[name] = what[1]
                earned[name].append((turn, what[2]))
            else:
                rejected[name] = str(what)
                strikes[name] += what in STRIKE_REASONS
                if what == "failed-audit" or strikes[name] >= limit:
                    ended[name] = turn
        standings = step(standings, TurnResult(turn, tokens, accepted, rejected), vest, limit)
        for name, entries in earned.items():
            # The close of the quarantining turn takes everything that no earlier close had vested.
            due = (ended[name] - 1 if name in ended else turn) - vest
            vested = sum(n for t, n in entries if t <= due)
            whole = sum(n for _, n in entries)
            found = standings[name]
            assert (found.earned, found.vested) == (whole, vested)
            assert found.forfeited == (whole - vested if name in ended else 0)
            assert found.pending == whole - vested - found.forfeited
            assert found.quarantined == (name in ended)
            assert (found.accepted, found.strikes) == (len(entries), strikes[name])


def test_who_is_overruled_is_quarantined_and_forfeits_what_has_not_vested() -> None:
    before = {**fresh(), "aud": Standing(earned=60, vested=10, unvested=((0, 20), (1, 30)))}
    after = step(before, TurnResult(2, [("m", 4)], {"m": True}, overruled=["aud"]))
    assert after["aud"] == Standing(earned=60, vested=10, forfeited=50, quarantined=True)
    assert after["m"] == Standing(earned=4, unvested=((2, 4),), accepted=1)
    # Without a waiting time too, and what it earned in the same turn for something else.
    after = step(before, TurnResult(2, [("aud", 4)], overruled={"aud"}), vest=0)
    assert (after["aud"].vested, after["aud"].forfeited) == (10, 54)
    assert not step(before, TurnResult(2))["aud"].quarantined


def test_late_audits_clear_nobody_of_a_strike_that_came_after_the_work() -> None:
    struck = step(fresh(), TurnResult(3, rejected={"m": "unserved"}))
    for turn, suspect in ((2, True), (3, False), (4, False)):
        after = after_settlement(struck, LateResult(turn, cleared={"m"}))
        assert after["m"].suspect is suspect, turn
