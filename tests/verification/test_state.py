"""Questions to a turn and to a run: what they answer, and that they refuse what has no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.verification.fake_run import Play, rotation, started
from verification.errors import ProtocolError
from verification.membership import signer
from verification.records import Draw, RoundOpen
from verification.rounds import apply
from verification.state import Turn


def turn_before(kind: str) -> Turn:
    """A turn in which each slot is drawn, of the longer ones only some segments; up to a kind of record."""
    play = Play(
        started(
            train={"steps": [9, 2, 5, 1]}, audit={"rate_ppm": 1_000_000, "probation_rounds": 0, "segments": 2}
        )
    )
    start = play.state
    play.turn({})
    again = Play(start)
    for record in play.records[: [record.kind for record in play.records].index(kind)]:
        again.add(record)
    return again.state.open_turn


def drawn_turn() -> Turn:
    return turn_before("served")


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


@pytest.mark.parametrize("missing", ["commit_close", "reveal_close", "draw", "served", "second"])
def test_a_turn_that_lacks_a_record_has_no_evidence(missing: str) -> None:
    whole = turn_before("round-close")
    assert whole.evidence.committed == (0, 1, 2, 3)
    with pytest.raises(ProtocolError, match="cannot be settled yet"):
        _ = replace(whole, **{missing: None}).evidence


def test_nobody_answers_to_a_name_that_did_not_enrol() -> None:
    play = Play(started())
    play.turn({})
    assert play.state.member("c1").member == "c1"
    change = rotation(play.state.run, "stranger", "stranger", "stranger again")
    for ask in (lambda: play.state.member("stranger"), lambda: signer(play.state, change)):
        with pytest.raises(ProtocolError, match=r"nobody of that name is enrolled.*stranger"):
            ask()
    with pytest.raises(ProtocolError, match="nobody of that name is enrolled"):
        apply(play.state, change)


def test_between_turns_there_is_no_turn_to_ask() -> None:
    play = Play(started())
    with pytest.raises(ProtocolError, match="no turn is open"):
        _ = play.state.open_turn
    play.turn({})
    with pytest.raises(ProtocolError, match="no turn is open"):
        _ = play.state.open_turn
