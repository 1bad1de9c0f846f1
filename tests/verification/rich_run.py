"""A made-up run in which most things happen, for tests that want one record of everything."""

from __future__ import annotations

from dataclasses import replace

from tests.verification.fake_elastic import back, leave, newcomer
from tests.verification.fake_run import (
    CHEAT,
    GOOD,
    LATE,
    WITNESSES,
    Fate,
    Play,
    enrolments,
    revocation,
    rotation,
    started,
)
from verification.beacon import Beacon
from verification.records import Record
from verification.rounds import begin


def rich_run(beacon: Beacon | None = None) -> list[Record]:
    """A whole run, enrolments included, in which most things happen; its third turn is void."""
    state = started(witnesses=3, beacon=beacon, audit={"probation_rounds": 9})
    play = Play(begin(state.manifest))
    for record in enrolments(state.run):
        play.add(record)
    script: list[dict[int, Fate]] = [
        {1: LATE},
        {0: replace(GOOD, first="fail", second="pass"), 2: CHEAT},
        {0: LATE, 1: replace(GOOD, refused="unrevealed"), 3: LATE, 4: LATE},
        {3: replace(GOOD, refused="malformed-payload")},
        {3: replace(GOOD, serves=False), 1: replace(GOOD, silent=1)},
    ]
    for number, turn in enumerate(script):
        play.absent, play.mute = ({WITNESSES[2]}, set()) if number == 1 else (set(), set())
        play.mute = {WITNESSES[0]} if number == 3 else set()
        play.pulseless, play.lead = number == 2, -5 if number == 1 else 5
        if number == 1:
            play.add(newcomer(play.state, "c9"))
        if number == 3:
            play.add(leave(play.state, "a1", "member"))
        if number == 4:
            play.add(back(play.state, "a1"))
            play.add(leave(play.state, "c9"))
            play.add(rotation(state.run, "c1", "c1", "c1 again"))
            play.add(rotation(state.run, "a0", "a0", "a0 again"))
            play.add(revocation(state.run, "c0"))
        play.turn(turn)
    play.add(revocation(state.run, "a2", "coordinator"))
    play.finish()
    return play.records
