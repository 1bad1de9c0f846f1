"""The state machine, rule by rule: records that would be taken but for one rule about place or order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.verification.fake_run import (
    CHAIN,
    GOOD,
    Fate,
    Play,
    head,
    key,
    made_up_beacon,
    made_up_pulse,
    started,
)
from verification.errors import BarnraiseError, ProtocolError
from verification.notes import sign_checkpoint
from verification.plans import pace_after, plan_draw, plan_open
from verification.records import (
    CommitClose,
    Draw,
    Pulse,
    Record,
    RevealClose,
    SecondDraw,
    Served,
)
from verification.rounds import apply
from verification.state import RunState
from verification.witnessing import given_links

UNREVEALED = Fate(refused="unrevealed")
EVERYBODY = {"probation_rounds": 9}
NEVER = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}


def turn(
    fates: dict[int, Fate], kind: type, *, lead: int = 5, pulseless: bool = False, **options: Any
) -> tuple[RunState, Any]:
    """The first record of that kind in a turn, in which everybody is audited, and the state before it."""
    start = started(**{"audit": EVERYBODY, **options})
    play = Play(start)
    play.lead, play.pulseless = lead, pulseless
    play.turn(fates)
    state = start
    for record in play.records:
        if isinstance(record, kind):
            return state, record
        state = apply(state, record)
    raise AssertionError(kind)


def refuses(state: RunState, record: Record, words: str = "may not come") -> None:
    with pytest.raises(ProtocolError, match=words):
        apply(state, record)


def test_a_turn_opens_only_when_the_one_before_is_closed() -> None:
    opened = apply(started(), plan_open(started()))
    refuses(opened, plan_open(opened))  # which is the right one but for this


def test_the_coordinators_clock_does_not_run_backwards() -> None:
    state, closing = turn({}, CommitClose)
    assert apply(state, replace(closing, ms=(0, 0, 0, 0))).open_turn.commit_close
    refuses(state, replace(closing, ms=(0, 0, 0, -1)))


def test_a_reveal_close_names_slots_in_order() -> None:
    state, closing = turn({0: UNREVEALED, 2: UNREVEALED}, RevealClose)
    assert (len(closing.revealed), len(closing.refused)) == (2, 2)
    assert apply(state, closing).open_turn.reveal_close == closing
    refuses(state, replace(closing, revealed=closing.revealed[::-1]))
    refuses(state, replace(closing, refused=closing.refused[::-1]))


def test_a_reveal_close_names_a_pulse_exactly_when_there_is_a_beacon() -> None:
    with_one, closing = turn({}, RevealClose, witnesses=3, beacon=made_up_beacon())
    assert apply(with_one, closing).open_turn.reveal_close == closing
    refuses(with_one, replace(closing, pulse=None))
    without, closing = turn({}, RevealClose)
    assert closing.pulse is None
    refuses(without, replace(closing, pulse=7))


def test_a_reveal_close_shows_a_head_that_the_log_signed() -> None:
    state, closing = turn({}, RevealClose)
    for note in ("", sign_checkpoint(head(3)[0], key("somebody"))):
        with pytest.raises(BarnraiseError):
            apply(state, replace(closing, head=note))
    assert apply(state, replace(closing, head=head(3)[1])).open_turn.reveal_close


def test_a_draw_shows_the_next_link_of_the_chain() -> None:
    state, draw = turn({}, Draw)
    assert plan_draw(state, draw.head, draw.link, {}) == draw
    for link in (CHAIN.link(2), "ab" * 32):
        refuses(state, plan_draw(state, draw.head, link, {}), "not the next of the hash chain")


def test_a_draw_names_the_segments_that_its_seed_gives_and_no_others() -> None:
    audit = {**NEVER, "rate_ppm": 1_000_000, "segments": 1}
    state, draw = turn({}, Draw, audit=audit, train={"steps": [9, 2, 5, 1]})
    assert apply(state, draw).open_turn.draw == draw
    assert [len(item.segments) for item in draw.drawn] == [1, 1, 1, 1]
    (right,) = draw.drawn[0].segments
    for segments in ((), *((n,) for n in range(6) if n != right), (0, 1, 2, 3, 4)):
        other = replace(draw.drawn[0], segments=segments)
        refuses(state, replace(draw, drawn=(other, *draw.drawn[1:])))


def test_an_open_names_how_many_segments_are_audited() -> None:
    state = started(audit={"probation_rounds": 0})
    open_ = plan_open(state)
    for number in (0, 2, 3):
        entry = replace(open_.roster[0], audit_segments=number)
        with pytest.raises(ProtocolError):
            apply(state, replace(open_, roster=(entry, *open_.roster[1:])))
    assert apply(state, open_).open_turn.open == open_


WATCHED: dict[str, Any] = {"witnesses": 3, "beacon": made_up_beacon(period=1)}


def test_a_draw_without_the_pulse_that_is_due_draws_everybody() -> None:
    state, draw = turn({}, Draw, audit=NEVER, **WATCHED)

    def drawn(pulse: Pulse | None) -> list[int]:
        planned = plan_draw(state, draw.head, draw.link, given_links(draw.links), pulse)
        return [item.slot for item in planned.drawn]

    assert drawn(draw.beacon) == []
    assert drawn(None) == [0, 1, 2, 3]
    with pytest.raises(ProtocolError, match="another pulse"):
        drawn(made_up_pulse(draw.beacon.round + 1))


def test_a_draw_cosigned_after_its_pulse_draws_everybody() -> None:
    for lead, slots in ((5, []), (-5, [0, 1, 2, 3])):
        _, draw = turn({}, Draw, lead=lead, audit=NEVER, **WATCHED)
        assert [item.slot for item in draw.drawn] == slots
    _, draw = turn({}, Draw, audit=NEVER)  # without a beacon there is none to wait for
    assert draw.drawn == ()


def test_a_draw_short_of_its_pulse_is_looked_at_twice() -> None:
    audit = {**NEVER, "rate_ppm": 1_000_000}
    for pulseless, looks in ((False, 0), (True, 4)):
        _, second = turn({}, SecondDraw, pulseless=pulseless, audit=audit, **WATCHED)
        assert len(second.looks) == looks
    _, second = turn({}, SecondDraw, audit=audit)
    assert second.looks == ()


def test_served_names_slots_in_order() -> None:
    refused = replace(GOOD, serves=False)
    state, served = turn({1: refused, 2: refused}, Served)
    assert (len(served.served), len(served.unserved)) == (2, 2)
    assert apply(state, served).open_turn.served == served
    refuses(state, replace(served, served=served.served[::-1]))
    refuses(state, replace(served, unserved=served.unserved[::-1]))


def test_before_the_commitments_are_closed_no_pace_changes() -> None:
    state, _ = turn({}, CommitClose, timing={"mode": "measured"})
    assert pace_after(state, state.open_turn, set()) == state.pace
