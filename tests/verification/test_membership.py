"""Enrolment, rotation and revocation: when each may come, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import (
    AUDITORS,
    CONTRIBUTORS,
    LATE,
    FakeWitness,
    Play,
    b3,
    enrolments,
    key,
    manifest,
    played,
    revocation,
    rotation,
    started,
)
from verification.credits import Standing
from verification.errors import BarnraiseError, ProtocolError, SignatureError
from verification.membership import signer
from verification.plans import plan_open
from verification.records import KeyRevocation, Record
from verification.rounds import apply, begin
from verification.sealing import open_record, seal_record
from verification.state import RunState


def refuses(state: RunState, record: Record, match: str) -> None:
    before = copy.deepcopy(state)
    with pytest.raises(BarnraiseError, match=match):
        apply(state, record)
    assert state == before


def between(turns: int = 1) -> RunState:
    """After some turns in which everybody was accepted."""
    play = Play(started(audit={"rate_ppm": 0, "probation_rounds": 2}))
    for _ in range(turns):
        play.turn({})
    return play.state


# Enrolment


def test_nobody_enrols_a_key_that_another_party_has() -> None:
    state = begin(manifest(3))
    first, second, *_ = enrolments(state.run)
    state = apply(state, first)
    refuses(state, replace(second, key=first.key), "not new")
    refuses(state, replace(second, key=key("coordinator").public), "coordinator or of a witness")
    refuses(
        state, replace(second, key=FakeWitness("w.example/two").key.public), "coordinator or of a witness"
    )
    refuses(state, first, "twice")
    assert apply(state, second).keys == {first.key, second.key}


ALLOW = {name: key(name).public for name in (*CONTRIBUTORS, *AUDITORS)}


def test_an_allow_list_fixes_who_enrols_and_by_which_key() -> None:
    assert started(identity={"allow": ALLOW, "newcomers": 0}).by_role("auditor")
    state = begin(manifest(identity={"allow": ALLOW, "newcomers": 0}))
    first, *others = enrolments(state.run)
    refuses(state, replace(first, key=key("fresh").public), "identity.allow")
    refuses(state, replace(first, member="c9", key=key("c9").public), "identity.allow")
    for record in (first, *others[:-1]):
        state = apply(state, record)
    with pytest.raises(ProtocolError, match="did not enrol"):
        apply(state, plan_open(state))
    assert apply(state, others[-1])


# Rotation


def test_a_rotation_gives_the_member_a_new_key_zero_state_and_probation() -> None:
    state = between(2)
    assert state.lineage["c1"]
    after = apply(state, rotation(state.run, "c1", "c1", "c1 b"))
    assert after.member("c1").key == key("c1 b").public
    assert "c1" not in after.lineage
    assert replace(state.standings["c1"], accepted=0) == after.standings["c1"]
    entries = {entry.member: entry for entry in plan_open(after).roster}
    assert entries["c1"].key == key("c1 b").public
    assert entries["c1"].start_state == b3("zero")
    assert (entries["c1"].audit_ppm, entries["c0"].audit_ppm) == (1_000_000, 0)
    assert entries["c0"].start_state == state.lineage["c0"]
    play = Play(after)
    play.turn({})
    assert play.state.lineage["c1"]
    assert play.state.standings["c1"].accepted == 1


def test_an_auditors_rotation_changes_its_entry_alone() -> None:
    state = between()
    after = apply(state, rotation(state.run, "a1", "a1", "a1 b"))
    open_ = plan_open(after)
    assert [a.key == key(a.member).public for a in open_.auditors] == [True, False, True]
    assert replace(open_, auditors=()) == replace(plan_open(state), auditors=())


def test_a_rotation_is_of_the_present_key_to_one_that_nobody_had() -> None:
    state = between()
    refuses(state, rotation(state.run, "c1", "c2", "c1 b"), "present key")
    refuses(state, rotation(state.run, "nobody", "c1", "c1 b"), "nobody")
    for taken in ("c1", "c2", "a0"):
        refuses(state, rotation(state.run, "c1", "c1", taken), "not new")
    refuses(state, rotation(state.run, "c1", "c1", "coordinator"), "coordinator or of a witness")
    once = apply(state, rotation(state.run, "c1", "c1", "c1 b"))
    refuses(once, rotation(state.run, "c1", "c1", "c1 c"), "present key")
    refuses(once, rotation(state.run, "c1", "c1 b", "c1"), "not new")
    refuses(once, rotation(state.run, "c2", "c2", "c1"), "not new")
    assert apply(once, rotation(state.run, "c1", "c1 b", "c1 c")).member("c1").key == key("c1 c").public
    watched = played([{}], started(witnesses=3)).state
    refuses(watched, rotation(watched.run, "c1", "c1", "witness w.example/two"), "of a witness")


def test_a_rotation_carries_the_new_keys_own_proof() -> None:
    state = between()
    good = rotation(state.run, "c1", "c1", "c1 b")
    other = rotation(state.run, "c2", "c1", "c1 b")
    refuses(state, replace(good, proof=other.proof), "does not hold")
    refuses(state, replace(good, proof="x"), "base64")
    refuses(state, replace(good, new_key=key("c1 c").public), "does not hold")
    refuses(state, replace(good, new_key="ed25519:" + "01" + "00" * 31), "small order")


CHANGES: list[Callable[[str], Record]] = [
    lambda run: rotation(run, "c1", "c1", "c1 b"),
    lambda run: revocation(run, "c1"),
]


@pytest.mark.parametrize("make", CHANGES)
def test_identities_change_only_between_turns(make: Callable[[str], Record]) -> None:
    first = started()
    refuses(first, make(first.run), "between two turns")
    opened = apply(first, plan_open(first))
    refuses(opened, make(first.run), "between two turns")
    done = played([{}] * 4).state
    assert done.finished
    refuses(done, make(first.run), "run-close")
    last = between(4)
    assert apply(last, make(last.run)).rounds_done == 4


# Revocation


@pytest.mark.parametrize("by", ["member", "coordinator"])
def test_a_revocation_is_quarantine_and_forfeits_what_had_not_vested(by: str) -> None:
    state = played([{}] * 3, started(run={"rounds": 9})).state
    before = state.standings["c1"]
    assert before.vested
    assert before.pending
    after = apply(state, revocation(state.run, "c1", by))  # type: ignore[arg-type]
    standing = after.standings["c1"]
    assert standing == replace(
        before, quarantined=True, unvested=(), forfeited=before.forfeited + before.pending
    )
    assert standing.earned == standing.vested + standing.forfeited
    assert [entry.member for entry in plan_open(after).roster] == ["c0", "c2", "c3"]
    play = Play(after)
    play.turn({})
    assert play.state.last_close
    assert play.state.last_close.quarantined == ("c1",)
    assert {c.member: (c.vested, c.forfeited) for c in play.state.last_close.credits}["c1"] == (
        standing.vested,
        standing.forfeited,
    )


def test_a_revoked_auditor_is_asked_no_more() -> None:
    after = between()
    after = apply(after, revocation(after.run, "a0", "coordinator"))
    assert [a.member for a in plan_open(after).auditors] == ["a1", "a2"]
    play = Play(after)
    play.turn({})
    assert {v.auditor for v in play.records if hasattr(v, "auditor")} <= {"a1", "a2"}


def test_quarantine_is_the_end_of_a_members_keys() -> None:
    state = between()
    after = apply(state, revocation(state.run, "c1"))
    refuses(after, revocation(state.run, "c1"), "quarantine already")
    refuses(after, revocation(state.run, "c1", "coordinator"), "quarantine already")
    refuses(after, rotation(state.run, "c1", "c1", "c1 b"), "quarantine already")
    refuses(after, rotation(state.run, "c2", "c2", "c1"), "not new")


def test_a_revocation_is_of_the_present_key() -> None:
    state = between()
    rotated = apply(state, rotation(state.run, "c1", "c1", "c1 b"))
    refuses(rotated, revocation(state.run, "c1"), "present key")
    refuses(state, revocation(state.run, "nobody"), "nobody")
    fresh = replace(revocation(state.run, "c1"), key=key("c1 b").public)
    assert apply(rotated, fresh).standings["c1"].quarantined


def test_whose_signature_a_change_needs() -> None:
    state = between()
    assert signer(state, rotation(state.run, "c1", "c1", "c1 b")) == key("c1").public
    assert signer(state, revocation(state.run, "c1")) == key("c1").public
    assert signer(state, revocation(state.run, "c1", "coordinator")) == key("coordinator").public
    record = revocation(state.run, "c1")
    with pytest.raises(SignatureError):
        open_record(KeyRevocation, seal_record(record, key("c2")), signer(state, record))


changes = st.lists(
    st.tuples(st.sampled_from([*CONTRIBUTORS, *AUDITORS]), st.sampled_from(["rotate", "revoke"])), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(st.lists(changes, min_size=1, max_size=4))
def test_through_any_changes_keys_stay_unique_and_the_gone_stay_gone(
    script: list[list[tuple[str, str]]],
) -> None:
    play = Play(started(run={"rounds": 9}))
    had: list[str] = [member.key for member in play.state.members]
    present = {member.member: member.member for member in play.state.members}
    gone: set[str] = set()
    for number, wishes in enumerate(script):
        play.turn({} if number else {2: LATE})
        for name, what in wishes:
            if name in gone or len(gone) > 4:
                continue
            if what == "rotate":
                new = f"{present[name]}+"
                play.add(rotation(play.state.run, name, present[name], new))
                present[name] = new
                had.append(key(new).public)
            else:
                record = replace(revocation(play.state.run, name), key=key(present[name]).public)
                play.add(record)
                gone.add(name)
        open_ = plan_open(play.state)
        assert {entry.member for entry in (*open_.roster, *open_.auditors)} == set(present) - gone
        for entry in (*open_.roster, *open_.auditors):
            assert entry.key == key(present[entry.member]).public
        for standing in play.state.standings.values():
            assert isinstance(standing, Standing)
            assert standing.earned == standing.vested + standing.forfeited + standing.pending
    assert len(set(had)) == len(had)
    assert play.state.keys == set(had)
