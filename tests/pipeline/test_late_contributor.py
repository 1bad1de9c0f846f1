"""Where audits lag, a contributor keeps what they may still ask for, and no longer than that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.contributor import Contributor
from pipeline.member import Place
from tests.pipeline.segment_world import segmented
from tests.pipeline.tiny_world import World, world
from verification.encoding import canonical_json
from verification.errors import ProtocolError, StorageError
from verification.records import Reveal, RoundOpen
from verification.sealing import open_record, predicate


def late_world(root: Path, lag: int, **sections: Any) -> World:
    """Members of a run whose audits lag, two segments of each contribution looked into."""
    config = segmented()
    for name, fields in {"audit": {"lag": lag}, "credit": {"vest_rounds": lag + 1}, **sections}.items():
        config[name] = {**config[name], **fields}
    return world(root, config=config)


def opened(here: World, turn: int, start: str, round_: int) -> RoundOpen:
    open_ = here.open(turn=turn, round=round_)
    return replace(open_, roster=tuple(replace(entry, start_state=start) for entry in open_.roster))


def commit(here: World, turn: int, start: str, round_: int | None = None) -> str:
    """c0 commits in `turn` from a start state; the state after it."""
    open_ = opened(here, turn, start, round_ or turn + 1)
    envelope, _ = here.revealed(open_, here.c0.commit(here.sealed(open_), here.checkpoint))
    return open_record(Reveal, envelope, here.c0.key.public).opening.next_state


def states(here: World) -> set[str]:
    return {"blake3:" + path.name for path in (here.root / "c0" / "states").iterdir()}


def turns(here: World) -> list[int]:
    return sorted(int(path.stem) for path in (here.root / "c0" / "turns").iterdir())


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_turns_and_their_start_states_are_kept_as_long_as_they_wait_and_no_longer(
    tmp_path: Path, lag: int
) -> None:
    here = late_world(tmp_path, lag)
    starts = [here.manifest.zero_state]
    for turn in range(6):
        starts.append(commit(here, turn, starts[-1]))
        first = max(0, turn - lag)
        assert turns(here) == list(range(first, turn + 1))
        assert states(here) == {*starts[first:]} - {here.manifest.zero_state}
        assert len(list((here.root / "c0" / "payloads").iterdir())) == 1
    for turn in range(6 - lag - 1, 6):
        assert here.c0.serve_state(turn)
    with pytest.raises(ProtocolError, match="committed to nothing"):
        here.c0.serve_state(6 - lag - 2)


@pytest.mark.parametrize("restarted", [False, True])
def test_state_and_trace_of_a_turn_that_waits_are_served_as_they_were(
    tmp_path: Path, *, restarted: bool
) -> None:
    """Nothing is asked for again unless the coordinator was killed; then the same bytes come."""
    here = late_world(tmp_path, 2)
    start = here.manifest.zero_state
    served = []
    for turn in range(3):
        open_ = opened(here, turn, start, turn + 1)
        start = commit(here, turn, start)
        draw = here.drawn(open_, [turn])
        served.append((draw, here.c0.serve_state(turn), here.c0.serve_trace(turn, draw, here.checkpoint)))
    member = here.c0
    if restarted:
        data = canonical_json(predicate(here.manifest))
        member = Contributor("c0", "op-c0", data, Place(here.root / "c0", here.folder.data))
    for turn in (0, 2, 1):
        draw, state, trace = served[turn]
        assert member.serve_state(turn) == state
        assert member.serve_trace(turn, draw, here.checkpoint) == trace
    for turn in range(3):
        with pytest.raises(ProtocolError, match="another turn"):
            member.serve_trace(turn, served[(turn + 1) % 3][0], here.checkpoint)


@pytest.mark.parametrize("lag", [1, 2])
def test_after_an_excision_it_goes_on_from_before_the_first_that_was_taken_out(
    tmp_path: Path, lag: int
) -> None:
    here = late_world(tmp_path, lag)
    starts = [here.manifest.zero_state]
    for turn in range(3 + lag):
        starts.append(commit(here, turn, starts[-1]))
    # Turn 2 and all since are taken out: the next one starts as turn 2 did.
    assert commit(here, 3 + lag, starts[2]) == starts[3]
    # A settlement of turn 1 would have come before: where that one began is of no use any more.
    with pytest.raises(StorageError, match="hidden state of this contributor is lost"):
        commit(here, 4 + lag, starts[1])


def test_turns_that_it_had_no_part_in_do_not_count(tmp_path: Path) -> None:
    """The lag is in turns of the run: what is older is settled, whether or not this member was there."""
    here = late_world(tmp_path, 1)
    first = commit(here, 0, here.manifest.zero_state)
    second = commit(here, 5, first)
    assert turns(here) == [5]
    assert states(here) == {first, second}


def test_a_reset_round_that_is_taken_out_leaves_the_state_before_it(tmp_path: Path) -> None:
    here = late_world(tmp_path, 1, state={"policy": "reset", "every": 2})
    zero = here.manifest.zero_state
    first = commit(here, 0, zero, 1)
    before = commit(here, 1, first, 2)
    reset = commit(here, 2, zero, 3)
    commit(here, 3, reset, 4)
    # Turn 2 is taken out, turn 3 follows; the round after goes on from what was before the reset.
    assert commit(here, 4, before, 4)


def test_an_older_turn_gets_the_answer_that_it_got(tmp_path: Path) -> None:
    """Asked again for its commitment of a turn that waits, it says the same; and nothing to another open."""
    here = late_world(tmp_path, 2)
    open_ = opened(here, 0, here.manifest.zero_state, 1)
    mine = here.c0.commit(here.sealed(open_), here.checkpoint)
    start = commit(here, 1, here.manifest.zero_state)
    assert here.c0.commit(here.sealed(open_), here.checkpoint) == mine
    with pytest.raises(ProtocolError, match="two different opens of turn 0"):
        here.c0.commit(here.sealed(replace(open_, deadline_ms=1)), here.checkpoint)
    commit(here, 3, start)
    with pytest.raises(ProtocolError, match="older than a commitment"):
        here.c0.commit(here.sealed(opened(here, 2, start, 3)), here.checkpoint)
