"""The state machine: every legal sequence is taken, everything else is refused and changes nothing."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.assignment import windows_at
from tests.verification.fake_run import (
    CHEAT,
    GOOD,
    LATE,
    Fate,
    Play,
    b3,
    can_open,
    enrolments,
    key,
    played,
    scripts,
    sha,
    started,
)
from tests.verification.rich_run import rich_run
from verification.errors import BarnraiseError, ProtocolError
from verification.plans import plan_open
from verification.records import (
    Base,
    CommitClose,
    Commitment,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Leave,
    Overruled,
    Record,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Verdict,
)
from verification.rounds import apply, begin, replay
from verification.sealing import KINDS
from verification.state import RunState

RICH = rich_run()


def refuses(state: RunState, record: Record) -> None:
    before = copy.deepcopy(state)
    with pytest.raises(ProtocolError):
        apply(state, record)
    assert state == before


def states(records: list[Record]) -> list[RunState]:
    """The state before each record of the rich run, and the one after the last."""
    found = [begin(RICH_MANIFEST)]
    for record in records:
        found.append(apply(found[-1], record))
    return found


RICH_MANIFEST = started(witnesses=3, audit={"probation_rounds": 9}).manifest
STATES = states(RICH)


def test_the_rich_run_has_everything_in_it() -> None:
    reasons = Counter(r.reason for close in RICH if isinstance(close, RoundClose) for r in close.rejected)
    assert set(reasons) == {"late", "disputed", "failed-audit", "unrevealed", "malformed-payload", "unserved"}
    assert [close.void for close in RICH if isinstance(close, RoundClose)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    kinds = {name.split(":")[1] for name in KINDS}
    assert {record.kind for record in RICH} == kinds - {"manifest", "appeal", "settlement"}
    assert STATES[-1].finished


def may_stand(i: int, j: int) -> bool:
    """Whether record j may also come where record i does: members' records of a phase may be missing."""
    here, there = RICH[i], RICH[j]
    if j <= i:
        return False
    if isinstance(there, (KeyRotation, KeyRevocation)):
        return STATES[i].between_turns
    if isinstance(there, Leave):  # not of an earlier time
        return STATES[i].between_turns and there.turn == STATES[i].turns
    if isinstance(there, RunClose):
        return isinstance(here, KeyRevocation) and i == j - 1
    if isinstance(here, Verdict):  # a sealed one may be lost, and a second one not given
        return isinstance(there, Verdict) and (here.round, here.attempt) == (there.round, there.attempt)
    return type(here) is type(there) and isinstance(here, (Enrol, Commitment, Reveal))


def test_every_record_out_of_its_place_is_refused() -> None:
    taken = 0
    for i, state in enumerate(STATES[:-1]):
        for j, record in enumerate(RICH):
            if i == j or may_stand(i, j):
                continue
            with pytest.raises(ProtocolError):
                apply(state, record)
            taken += 1
    assert taken > 1000
    assert states(RICH) == STATES


@pytest.mark.parametrize("i", range(len(RICH)))
def test_every_record_repeated_at_once_is_refused(i: int) -> None:
    refuses(STATES[i + 1], RICH[i])


# What a revocation after the last turn took away shows in no record that follows.
@pytest.mark.parametrize("i", [i for i in range(len(RICH) - 1) if i != len(RICH) - 2])
def test_a_run_with_a_record_missing_is_refused_at_some_point(i: int) -> None:
    with pytest.raises(ProtocolError):
        replay(RICH_MANIFEST, RICH[:i] + RICH[i + 1 :])


@pytest.mark.parametrize("i", range(len(RICH)))
def test_records_of_another_run_or_turn_are_refused(i: int) -> None:
    record: Any = RICH[i]
    refuses(STATES[i], replace(record, run=sha("another run")))
    if hasattr(record, "attempt"):
        refuses(STATES[i], replace(record, round=record.round + 1))
        refuses(STATES[i], replace(record, attempt=record.attempt + 1))


@pytest.mark.parametrize("i", [i for i, r in enumerate(RICH) if isinstance(r, (Commitment, Reveal, Verdict))])
def test_records_by_members_who_owe_none_are_refused(i: int) -> None:
    record: Any = RICH[i]
    refuses(STATES[i], replace(record, slot=99))
    if isinstance(record, Verdict):
        refuses(STATES[i], replace(record, auditor="nobody"))
        refuses(STATES[i], replace(record, auditor="c0"))
        refuses(STATES[i], replace(record, look=3 - record.look))
    else:
        refuses(STATES[i], replace(record, member="nobody"))
        refuses(STATES[i], replace(record, key=fake_key("nobody")))


def fake_key(name: str) -> str:
    return key(name).public


COORDINATORS = (RoundOpen, CommitClose, RevealClose, Served, SecondDraw, RoundClose, RunClose)
CHANGES: dict[str, Any] = {
    "turn": 77,
    "base": None,
    "roster": (),
    "auditors": (),
    "inner_lr": (),
    "outer_lr": "0x1.8p+1",
    "deadline_ms": 5,
    "snapshot": None,
    "committed": (7,),
    "late": (0, 1, 2, 3),
    "ms": (1, 2, 3, 4, 5, 6),
    "revealed": (0, 1, 2, 3, 4, 5),
    "refused": None,
    "pulse": 5,
    "served": (9,),
    "unserved": (9,),
    "looks": None,
    "seed": sha("seed"),
    "link": "ab" * 32,
    "void": None,
    "accepted": None,
    "rejected": None,
    "missed": None,
    "overruled": (Overruled(0, 1, "a0", None),),
    "requeued": None,
    "cursor": 99_999,
    "credits": (),
    "quarantined": ("c0", "c1"),
    "train_loss": 3,
    "rounds": 9,
    "tokens": 9,
}


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return replace(value, weights=b3("other")) if isinstance(value, Base) else value[:-1]


@pytest.mark.parametrize("i", [i for i, r in enumerate(RICH) if isinstance(r, COORDINATORS)])
def test_a_coordinators_record_follows_from_the_log_field_by_field(i: int) -> None:
    record: Any = RICH[i]
    tried = 0
    for name in record.__dataclass_fields__:
        if name not in CHANGES:
            continue
        before = getattr(record, name)
        new = CHANGES[name] if CHANGES[name] is not None else changed(before)
        if before == new:
            continue
        with pytest.raises(BarnraiseError):
            apply(STATES[i], replace(record, **{name: new}))
        tried += 1
    assert tried


def test_a_void_turn_leaves_the_checkpoint_as_it_was() -> None:
    i = next(i for i, r in enumerate(RICH) if isinstance(r, RoundClose) and r.void)
    refuses(STATES[i], replace(RICH[i], weights=b3("other")))  # type: ignore[arg-type]
    assert STATES[i + 1].base == STATES[i].base
    assert (STATES[i + 1].round, STATES[i + 1].attempt) == (STATES[i].round, 1)


def test_nothing_follows_run_close() -> None:
    for record in RICH:
        with pytest.raises(ProtocolError, match="run-close"):
            apply(STATES[-1], record)


def test_enrolment_ends_with_the_first_open_and_needs_everyone() -> None:
    state = begin(started().manifest)
    members = enrolments(state.run)
    for record in members[1:]:
        state = apply(state, record)
    with pytest.raises(ProtocolError, match=r"train\.steps"):
        apply(state, plan_open(started()))
    full = started()
    refuses(full, Enrol(1, full.run, "c9", "contributor", "op-z", fake_key("c9"), "class"))
    refuses(full, replace(members[4], key=fake_key("fresh")))
    refuses(full, replace(members[4], member="fresh"))
    late = apply(full, plan_open(full))
    refuses(late, Enrol(1, full.run, "a9", "auditor", "op-z", fake_key("a9"), "class"))


def test_a_manifest_stands_only_at_the_start() -> None:
    refuses(started(), started().manifest)


def test_a_payload_that_was_accepted_cannot_be_revealed_again() -> None:
    i = next(i for i, r in enumerate(RICH) if isinstance(r, RevealClose))
    state = STATES[i]
    spent = frozenset({state.open_turn.reveals[0].opening.payload})
    refuses(replace(state, used=spent), RICH[i])
    # One that was handed in and not accepted is nobody's: its owner may have computed it.
    assert apply(replace(state, payloads=spent), RICH[i]).open_turn.reveal_close == RICH[i]


def test_only_accepted_payloads_count_as_used() -> None:
    closes = [record for record in RICH if isinstance(record, RoundClose)]
    accepted = {item.payload for close in closes for item in close.accepted}
    assert STATES[-1].used == accepted
    assert STATES[-1].used < STATES[-1].payloads


def test_a_copy_in_the_same_turn_costs_the_copier_and_nobody_else() -> None:
    for thief, victim in ((0, 3), (3, 0)):
        play = Play(started(audit={"rate_ppm": 0, "probation_rounds": 0}))
        play.turn({thief: Fate(copies=victim)})
        close = last_turn(play.records)[1]
        assert [(item.slot, item.reason) for item in close.rejected] == [(thief, "failed-audit")]
        assert [item.slot for item in close.accepted] == sorted({0, 1, 2, 3} - {thief})
        standing = play.state.standings[f"c{victim}"]
        assert (standing.strikes, standing.suspect, standing.accepted) == (0, False, 1)
        assert play.state.standings[f"c{thief}"].quarantined


def before(kind: type) -> int:
    return next(i for i, record in enumerate(RICH) if isinstance(record, kind))


def test_reveals_stand_by_slot_ascending() -> None:
    i = before(Reveal)
    first, second = RICH[i : i + 2]
    assert isinstance(first, Reveal)
    assert isinstance(second, Reveal)
    refuses(apply(STATES[i], second), first)
    assert set(apply(apply(STATES[i], first), second).open_turn.reveals) == {first.slot, second.slot}


def test_an_unrevealed_slot_may_have_its_envelope_in_the_log_and_others_must() -> None:
    plain, with_envelope = Play(started()), Play(started())
    plain.turn({1: Fate(refused="unrevealed")})
    with_envelope.turn({1: Fate(refused="unrevealed", logged=True)})
    assert len(with_envelope.records) == len(plain.records) + 1
    i = next(i for i, r in enumerate(plain.records) if isinstance(r, RevealClose))
    again = Play(started())
    for record in plain.records[:i]:
        again.add(record)
    closing: Any = plain.records[i]
    for reason in ("malformed-payload", "duplicate-payload", "unserved"):
        refuses(again.state, replace(closing, refused=(replace(closing.refused[0], reason=reason),)))
    for reason in ("unrevealed", "opening-mismatch"):
        taken = apply(again.state, replace(closing, refused=(replace(closing.refused[0], reason=reason),)))
        assert taken.open_turn.reveal_close


@settings(max_examples=60, deadline=None)
@given(scripts)
def test_every_legal_sequence_is_taken_and_replays_to_the_same_state(script: list[dict[int, Fate]]) -> None:
    play = played(script)
    start = begin(play.state.manifest)
    members = enrolments(start.run)
    assert replay(start.manifest, [*members, *play.records]) == play.state
    step = start
    for record in [*members, *play.records]:
        step = apply(step, record)
    assert step == play.state


@settings(max_examples=60, deadline=None)
@given(scripts)
def test_each_position_is_accepted_once_and_returned_work_goes_to_others(
    script: list[dict[int, Fate]],
) -> None:
    windows, accepted, used, epochs = 13, [], [], Counter[tuple[int, int]]()
    state = started(run={"rounds": 9, "seed": 1, "max_void": 3})
    play = Play(state)
    for turn in script:
        if not can_open(play.state):
            break
        queue = play.state.queue
        play.turn(turn)
        open_, close = last_turn(play.records)
        handed = {e.slot: [p for a, b in e.positions for p in range(a, b)] for e in open_.roster}
        for entry in open_.roster:
            own = {p for item in queue if item.operator == entry.operator for p in range(*item.range)}
            assert not own & set(handed[entry.slot])
            assert len(handed[entry.slot]) == entry.steps * 2
        everything = [p for positions in handed.values() for p in positions]
        assert len(everything) == len(set(everything))
        accepted += [p for item in close.accepted for p in handed[item.slot]]
        used = sorted([*accepted, *(p for item in close.requeued for p in range(*item.range))])
        assert used == list(range(close.cursor))
    assert len(accepted) == len(set(accepted))
    for position in accepted:
        (window,) = windows_at(seed=1, dataset_root=sha("dataset"), positions=[position], windows=windows)
        epochs[position // windows, window] += 1
    assert set(epochs.values()) <= {1}


def last_turn(records: list[Record]) -> tuple[RoundOpen, RoundClose]:
    close = records[-1]
    open_ = next(r for r in reversed(records) if isinstance(r, RoundOpen))
    assert isinstance(close, RoundClose)
    return open_, close


@settings(max_examples=60, deadline=None)
@given(scripts)
def test_tokens_are_conserved_and_quarantine_is_for_good(script: list[dict[int, Fate]]) -> None:
    play = Play(started(run={"rounds": 9, "seed": 1, "max_void": 3}))
    gone: set[str] = set()
    for turn in script:
        if not can_open(play.state):
            break
        play.turn(turn)
        open_, close = last_turn(play.records)
        for standing in play.state.standings.values():
            assert standing.earned == standing.vested + standing.forfeited + standing.pending
        assert not gone & {entry.member for entry in open_.roster}
        assert gone <= set(close.quarantined)
        gone = set(close.quarantined)
        confirmed = {item.member for item in close.rejected if item.reason == "failed-audit"}
        assert confirmed == {item.member for item in close.rejected if item.fault}
        assert confirmed <= gone


@settings(max_examples=60, deadline=None)
@given(scripts, st.sampled_from(["snapshot", "reset"]), st.integers(1, 3))
def test_start_states_follow_the_last_accepted_contribution(
    script: list[dict[int, Fate]], policy: str, every: int
) -> None:
    play = Play(
        started(state={"policy": policy, "every": every}, run={"rounds": 9, "seed": 1, "max_void": 3})
    )
    last: dict[str, str] = {}
    for turn in script:
        if not can_open(play.state):
            break
        play.turn(turn)
        open_, close = last_turn(play.records)
        boundary = (open_.round - 1) % every == 0
        assert open_.snapshot == (boundary and policy == "snapshot")
        for entry in open_.roster:
            fresh = boundary and policy == "reset"
            assert entry.start_state == (b3("zero") if fresh else last.get(entry.member, b3("zero")))
        for item in close.accepted:
            last[item.member] = b3(f"state {open_.turn} {item.slot} true")


def test_void_turns_use_links_of_their_own_and_end_the_run() -> None:
    play = Play(started())
    void = dict.fromkeys(range(4), LATE)
    seen = [play.state.link]
    for attempt in range(3):
        assert play.state.attempt == attempt
        play.turn(void)
        seen.append(play.state.link)
    assert len(set(seen)) == 4
    assert play.state.round == 1
    assert play.state.queue[-1].range[1] == play.state.cursor
    refuses(play.state, plan_open(play.state))
    with pytest.raises(ProtocolError, match="void 3 times"):
        apply(play.state, plan_open(play.state))


def test_an_accepted_turn_ends_the_count_of_void_ones() -> None:
    void = dict.fromkeys(range(4), LATE)
    play = played([void, void, {}, void, void, {}])
    assert (play.state.round, play.state.attempt, play.state.turns) == (3, 0, 6)


def test_the_run_closes_after_its_last_round_and_not_before() -> None:
    play = played([{}, {}, {}])
    with pytest.raises(ProtocolError):
        play.finish()
    play.turn({})
    refuses(play.state, plan_open(play.state))
    play.finish()
    assert play.state.finished
    assert play.state.tokens == 4 * (4 + 2 + 3 + 1) * 2 * 4


def test_measured_steps_come_from_the_logged_milliseconds_of_accepted_turns() -> None:
    timing = {"mode": "measured"}
    play = Play(started(timing=timing))
    script: Mapping[int, Fate] = {
        0: replace(GOOD, ms=1),  # fast: doubled
        1: replace(GOOD, ms=2000),  # 2 * 1000 / 2000 = 1, up to one trace leaf
        2: replace(CHEAT, ms=1),  # rejected: unchanged
        3: replace(GOOD, ms=400),  # 1 * 1000 / 400 = 2
    }
    play.turn(script)
    assert play.state.pace == {0: 8, 1: 2, 2: 3, 3: 2}
    assert last_turn(play.records)[0].deadline_ms == 4000
    play.turn({0: replace(GOOD, ms=1), 1: replace(GOOD, ms=0), 3: LATE})
    assert play.state.pace == {0: 16, 1: 2, 2: 3, 3: 2}  # 3: half is less than a trace leaf
    play.turn({0: replace(GOOD, ms=1), 3: replace(GOOD, ms=1)})
    assert (play.state.pace[0], play.state.pace[3]) == (16, 4)  # 0: timing.max_steps
    play.turn({0: LATE, 1: replace(GOOD, ms=0), 3: replace(GOOD, ms=0)})
    assert play.state.pace == {0: 8, 1: 2, 2: 3, 3: 4}  # not measured: as before
    fixed = Play(started())
    fixed.turn(script)
    assert fixed.state.pace == {0: 4, 1: 2, 2: 3, 3: 1}
    assert last_turn(fixed.records)[0].deadline_ms == 0
