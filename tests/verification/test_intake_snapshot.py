"""When a contributor must hand in its start state with its reveal."""

from __future__ import annotations

from tests.verification.fake_run import Play, started
from verification.intake import snapshot_due
from verification.plans import plan_open


def due(turns: int) -> list[bool]:
    """Of each slot, after so many turns in which everybody was accepted; every second one asks for it."""
    play = Play(started())
    for _ in range(turns):
        play.turn({})
    play.add(plan_open(play.state))
    return [snapshot_due(play.state, entry.slot) for entry in play.state.open_turn.open.roster]


def test_a_start_state_is_due_when_the_open_asks_for_it_and_there_is_one() -> None:
    assert due(0) == [False] * 4  # asked for, but everybody starts from zero
    assert due(1) == [False] * 4  # there is one, but the open does not ask
    assert due(2) == [True] * 4
