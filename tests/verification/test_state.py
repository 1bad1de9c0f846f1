"""Questions to a turn: which segments are drawn of a slot, and how many it has."""

from __future__ import annotations

from dataclasses import replace

from tests.verification.fake_run import Play, started
from verification.records import Draw, RoundOpen
from verification.state import Turn


def drawn_turn() -> Turn:
    """A turn in which each slot is drawn, of the longer ones only some segments."""
    play = Play(
        started(
            train={"steps": [9, 2, 5, 1]}, audit={"rate_ppm": 1_000_000, "probation_rounds": 0, "segments": 2}
        )
    )
    start = play.state
    play.turn({})
    again = Play(start)
    for record in play.records[: [record.kind for record in play.records].index("served")]:
        again.add(record)
    return again.state.open_turn


def test_drawn_segments_are_those_of_the_draw() -> None:
    turn = drawn_turn()
    assert isinstance(turn.draw, Draw)
    assert {item.slot: turn.drawn_segments(item.slot) for item in turn.draw.drawn} == {
        item.slot: item.segments for item in turn.draw.drawn
    }
    assert [len(turn.drawn_segments(slot)) for slot in range(4)] == [2, 1, 2, 1]
    assert turn.drawn_segments(4) == ()


def test_of_a_slot_that_is_not_drawn_no_segments_are() -> None:
    turn = drawn_turn()
    assert turn.draw
    some = replace(turn, draw=replace(turn.draw, drawn=(turn.draw.drawn[0], turn.draw.drawn[2])))
    assert [len(some.drawn_segments(slot)) for slot in range(5)] == [2, 0, 2, 0, 0]


def test_nothing_is_drawn_before_the_draw() -> None:
    open_ = drawn_turn().open
    assert isinstance(open_, RoundOpen)
    assert Turn(open_).drawn_segments(0) == ()


def test_a_contribution_has_a_leaf_more_than_segments() -> None:
    turn = drawn_turn()
    assert [turn.segments(slot) for slot in range(4)] == [5, 1, 3, 1]
    assert [turn.reveals[slot].opening.trace_leaves for slot in range(4)] == [6, 2, 4, 2]
