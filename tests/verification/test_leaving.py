"""Leaves, returns and newcomers: when each may come, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_elastic import back, leave, newcomer
from tests.verification.fake_run import (
    AUDITORS,
    CHEAT,
    CONTRIBUTORS,
    GOOD,
    LATE,
    Fate,
    Play,
    b3,
    can_open,
    enrolments,
    key,
    manifest,
    played,
    revocation,
    rotation,
    started,
)
from tests.verification.late_play import LatePlay, late_start
from verification.credits import Standing
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.identity import Enrol, Leave, Return
from verification.intake import check_identity_change
from verification.membership import check_complete, signer
from verification.plans import plan_open
from verification.records import KeyRevocation, KeyRotation, Record
from verification.rounds import apply, begin, replay
from verification.sealing import open_record, seal_record
from verification.state import RunState

RARELY = {"rate_ppm": 0, "probation_rounds": 2}


def refuses(state: RunState, record: Record, match: str) -> None:
    before = copy.deepcopy(state)
    with pytest.raises(BarnraiseError, match=match):
        apply(state, record)
    assert state == before


def between(turns: int = 1, **sections: Any) -> RunState:
    """After some turns in which everybody was accepted."""
    play = Play(started(**{"audit": RARELY, "run": {"rounds": 9}, **sections}))
    for _ in range(turns):
        play.turn({})
    return play.state


def all_of(state: RunState, *records: Record) -> RunState:
    for record in records:
        state = apply(state, record)
    return state


def takers(state: RunState) -> str:
    """Who is in the open that is next."""
    open_ = plan_open(state)
    return " ".join(entry.member for entry in (*open_.roster, *open_.auditors))


# Leaves and returns


@pytest.mark.parametrize("by", ["member", "coordinator"])
def test_who_left_is_in_no_roster_and_comes_back_as_it_was(by: Any) -> None:
    state = between(2)
    gone = apply(state, leave(state, "c1", by))
    assert takers(gone) == "c0 c2 c3 a0 a1 a2"
    assert [entry.slot for entry in plan_open(gone).roster] == [0, 2, 3]
    play = Play(gone)
    play.turn({})
    play.turn({})
    assert play.state.lineage["c1"] == state.lineage["c1"]
    assert play.state.standings["c1"].earned == state.standings["c1"].earned
    assert play.state.standings["c1"].accepted == 2
    there = apply(play.state, back(play.state, "c1"))
    entry = plan_open(there).entry(1)
    assert (entry.member, entry.slot, entry.key) == ("c1", 1, key("c1").public)
    assert (entry.start_state, entry.audit_ppm) == (state.lineage["c1"], 0)
    play = Play(there)
    play.turn({})
    assert play.state.standings["c1"].accepted == 3


def test_what_had_not_vested_vests_while_its_member_is_away() -> None:
    state = between(1)
    before = state.standings["c1"]
    assert before.pending
    play = Play(apply(state, leave(state, "c1")))
    for _ in range(3):
        play.turn({})
    assert play.state.standings["c1"] == replace(before, vested=before.earned, unvested=())


def test_an_auditor_that_left_is_drawn_no_more() -> None:
    state = between(audit={"rate_ppm": 1_000_000, "probation_rounds": 1})
    play = Play(apply(state, leave(state, "a0")))
    play.turn({})
    named = {name for r in play.records if r.kind == "draw" for item in r.drawn for name in item.auditors}
    assert named == {"a1", "a2"}
    assert takers(apply(play.state, back(play.state, "a0"))) == "c0 c1 c2 c3 a0 a1 a2"


def test_a_leave_is_of_a_member_that_takes_part_by_its_present_key_and_of_now() -> None:
    state = between()
    refuses(state, replace(leave(state, "c1"), member="nobody"), "nobody")
    refuses(state, replace(leave(state, "c1"), key=key("c2").public), "present key")
    for turn in (0, 2):
        refuses(state, replace(leave(state, "c1"), turn=turn), "another time")
    refuses(state, replace(leave(state, "c1"), run="sha256:" + "1" * 64), "another run")
    gone = apply(state, leave(state, "c1"))
    refuses(gone, leave(gone, "c1"), "away already")
    refuses(gone, leave(gone, "c1", "member"), "away already")
    out = apply(state, revocation(state.run, "c1"))
    refuses(out, leave(out, "c1"), "quarantine already")
    old = leave(state, "c2", "member")
    rotated = apply(state, rotation(state.run, "c2", "c2", "c2 b"))
    refuses(rotated, old, "present key")
    assert apply(rotated, leave(rotated, "c2")).away == {"c2"}


def test_a_return_is_of_who_is_away_and_not_in_quarantine() -> None:
    state = between()
    refuses(state, back(state, "c1"), "not away")
    gone = apply(state, leave(state, "c1"))
    refuses(gone, replace(back(gone, "c1"), key=key("c2").public), "present key")
    refuses(gone, replace(back(gone, "c1"), turn=0), "another time")
    refuses(gone, replace(back(gone, "c1"), run="sha256:" + "1" * 64), "another run")
    refuses(gone, replace(back(gone, "c1"), member="nobody"), "nobody")
    out = apply(gone, revocation(state.run, "c1"))
    refuses(out, back(out, "c1"), "quarantine already")
    assert takers(out) == "c0 c2 c3 a0 a1 a2"
    there = apply(gone, back(gone, "c1"))
    refuses(there, back(there, "c1"), "not away")
    assert there == state


def test_no_leave_or_return_can_be_kept_for_a_later_turn() -> None:
    state = between()
    gone_now = apply(state, leave(state, "c1"))
    kept_leave, kept_return = leave(state, "c1", "member"), back(state, "c1")
    play = Play(gone_now)
    play.turn({})
    refuses(play.state, kept_return, "another time")
    there = apply(play.state, back(play.state, "c1"))
    refuses(there, kept_leave, "another time")


def test_a_rotation_while_away_is_of_the_key_it_comes_back_with() -> None:
    state = between()
    gone = all_of(state, leave(state, "c1"), rotation(state.run, "c1", "c1", "c1 b"))
    assert takers(gone) == "c0 c2 c3 a0 a1 a2"
    refuses(gone, replace(back(gone, "c1"), key=key("c1").public), "present key")
    there = apply(gone, back(gone, "c1"))
    assert plan_open(there).entry(1).key == key("c1 b").public
    assert plan_open(there).entry(1).start_state == b3("zero")


def test_whose_signature_a_leave_and_a_return_need() -> None:
    state = between()
    assert signer(state, leave(state, "c1", "member")) == key("c1").public
    assert signer(state, leave(state, "c1")) == key("coordinator").public
    gone = apply(state, leave(state, "c1"))
    assert signer(gone, back(gone, "c1")) == key("c1").public
    record = back(gone, "c1")
    for wrong in ("c2", "coordinator"):
        with pytest.raises(SignatureError):
            open_record(Return, seal_record(record, key(wrong)), signer(gone, record))
    with pytest.raises(ProtocolError, match="nobody"):
        signer(state, replace(leave(state, "c1", "member"), member="nobody"))


# What a member may say


def test_a_member_speaks_for_itself_alone() -> None:
    state = between()
    mine = seal_record(leave(state, "c1", "member"), key("c1"))
    assert check_identity_change(state, "c1", mine) == leave(state, "c1", "member")
    assert check_identity_change(state, "c1", seal_record(back(state, "c1"), key("c1"))) == back(state, "c1")
    with pytest.raises(SignatureError):
        check_identity_change(state, "c2", mine)
    for record in (leave(state, "c2", "member"), back(state, "c2")):
        with pytest.raises(ProtocolError, match="not the member's own"):
            check_identity_change(state, "c1", seal_record(record, key("c1")))
    with pytest.raises(ProtocolError, match="not the member's own"):
        check_identity_change(state, "c1", seal_record(leave(state, "c1"), key("c1")))
    with pytest.raises(FormatError, match="not a change of identity"):
        check_identity_change(state, "c1", seal_record(newcomer(state, "c1"), key("c1")))


# Newcomers


@pytest.mark.parametrize("role", ["contributor", "auditor"])
def test_a_newcomer_starts_like_everybody_else_from_the_next_open_on(role: Any) -> None:
    state = between(2, identity={"allow": {}, "newcomers": 1})
    after = apply(state, newcomer(state, "n0", role))
    assert after.newcomers == 1
    assert after.standings["n0"] == Standing()
    assert after.keys == state.keys | {key("n0").public}
    open_ = plan_open(after)
    if role == "auditor":
        assert [a.member for a in open_.auditors] == ["a0", "a1", "a2", "n0"]
        assert open_.roster == plan_open(state).roster
        return
    entry = open_.roster[-1]
    assert (entry.slot, entry.member, entry.operator) == (4, "n0", "op-n0")
    assert (entry.steps, entry.micro_batch) == (1, 1)  # the least there is
    assert (entry.start_state, entry.audit_ppm) == (b3("zero"), 1_000_000)
    play = Play(after)
    play.turn({})
    assert play.state.last_close
    assert play.state.last_close.accepted[-1].member == "n0"
    assert {c.member for c in play.state.last_close.credits} >= {"n0"}


def test_without_micro_batches_a_newcomers_is_the_batch() -> None:
    state = between(train={**manifest().config["train"], "micro_batch": []})
    assert plan_open(apply(state, newcomer(state, "n0"))).roster[-1].micro_batch == 2


def test_newcomers_come_between_turns_and_as_many_as_the_manifest_allows() -> None:
    state = between(identity={"allow": {}, "newcomers": 2})
    opened = apply(state, plan_open(state))
    refuses(opened, newcomer(opened, "n0"), "between two turns")
    two = all_of(state, newcomer(state, "n0"), newcomer(state, "n1", "auditor"))
    refuses(two, newcomer(two, "n2"), "identity.newcomers allows")
    gone = all_of(two, leave(two, "n0"), revocation(two.run, "n1"))
    refuses(gone, newcomer(gone, "n2"), "identity.newcomers allows")  # nobody's place is given away
    none = between(identity={"allow": {}, "newcomers": 0})
    refuses(none, newcomer(none, "n0"), "identity.newcomers allows")
    done = played([{}] * 4).state
    refuses(done, newcomer(done, "n0"), "run-close")


def test_a_newcomer_is_new_in_name_and_key() -> None:
    state = between()
    refuses(state, newcomer(state, "c1"), "twice")
    gone = apply(state, leave(state, "c1"))
    refuses(gone, replace(newcomer(gone, "c1"), key=key("fresh").public), "twice")
    for taken in ("c1", "a0", "coordinator"):
        refuses(gone, replace(newcomer(gone, "n0"), key=key(taken).public), "key")
    rotated = apply(state, rotation(state.run, "c1", "c1", "c1 b"))
    refuses(rotated, replace(newcomer(state, "n0"), key=key("c1").public), "not new")
    refuses(state, replace(newcomer(state, "n0"), run="sha256:" + "1" * 64), "another run")


def test_an_allow_list_may_name_who_comes_later_and_nobody_else_comes() -> None:
    names = [*CONTRIBUTORS, *AUDITORS, "n0", "n1"]
    allow = {name: key(name).public for name in names}
    state = between(identity={"allow": allow, "newcomers": 2})
    refuses(state, newcomer(state, "n2"), "identity.allow")
    refuses(state, replace(newcomer(state, "n0"), key=key("n1").public), "identity.allow")
    assert takers(apply(state, newcomer(state, "n1"))) == "c0 c1 c2 c3 n1 a0 a1 a2"


def test_before_the_first_open_no_more_may_be_missing_than_may_come_later() -> None:
    allow = {name: key(name).public for name in [*CONTRIBUTORS, *AUDITORS]}
    state = begin(manifest(identity={"allow": allow, "newcomers": 1}))
    everyone = enrolments(state.run)
    most = all_of(state, *everyone[:-2])
    with pytest.raises(ProtocolError, match="did not enrol"):
        check_complete(most)
    check_complete(apply(most, everyone[-2]))
    play = Play(apply(most, everyone[-2]))
    play.turn({})
    assert takers(apply(play.state, everyone[-1])) == "c0 c1 c2 c3 a0 a1 a2"
    few = all_of(state, *everyone[1:])
    with pytest.raises(ProtocolError, match=r"train\.steps"):
        check_complete(few)
    refuses(all_of(state, *everyone[:-1]), newcomer(state, "c4"), "identity.allow")
    anybody = begin(manifest())
    full = all_of(anybody, *enrolments(anybody.run)[:4])
    refuses(full, newcomer(full, "c4"), "more contributors enrol")


# When


def _rotate(state: RunState) -> Record:
    return rotation(state.run, "c1", "c1", "c1 b")


CHANGES: list[Callable[[RunState], Record]] = [
    lambda state: leave(state, "c1", "member"),
    lambda state: leave(state, "c1"),
    _rotate,
    lambda state: revocation(state.run, "c1"),
    lambda state: newcomer(state, "n0"),
]


@pytest.mark.parametrize("make", CHANGES[:2])
def test_members_leave_and_return_only_between_turns(make: Callable[[RunState], Record]) -> None:
    first = started()
    refuses(first, make(first), "between two turns")
    opened = apply(first, plan_open(first))
    refuses(opened, make(opened), "between two turns")
    gone = apply(between(), leave(between(), "c1"))
    opened = apply(gone, plan_open(gone))
    refuses(opened, back(opened, "c1"), "between two turns")
    done = played([{}] * 4).state
    refuses(done, make(done), "run-close")


@pytest.mark.parametrize("make", CHANGES)
def test_nothing_of_it_comes_before_a_settlement_that_is_due(make: Callable[[RunState], Record]) -> None:
    play = LatePlay(late_start(lag=1, run={"rounds": 3}))
    play.turn({})
    assert apply(play.state, make(play.state)).turns == 1
    play.turn({})
    assert play.state.due
    refuses(play.state, make(play.state), "between two turns")
    play.settle_due()
    assert apply(play.state, make(play.state)).turns == 2


def test_who_is_away_is_settled_as_ever() -> None:
    play = LatePlay(
        late_start(lag=1, run={"rounds": 5}, audit={"rate_ppm": 1_000_000, "probation_rounds": 0})
    )
    play.turn({1: CHEAT})
    play.add(leave(play.state, "c1", "member"))
    play.turn({})
    play.settle_due()
    standing = play.state.standings["c1"]
    assert standing.quarantined
    assert (standing.vested, standing.earned) == (0, standing.forfeited)
    refuses(play.state, back(play.state, "c1"), "quarantine already")


# Deserted


def test_a_run_is_deserted_when_all_that_could_contribute_are_away() -> None:
    state = between()
    assert not state.is_deserted
    for name in ("c0", "c1", "c2"):
        state = apply(state, leave(state, name))
        assert not state.is_deserted
    assert apply(state, leave(state, "c3")).is_deserted
    out = apply(state, revocation(state.run, "c3"))
    assert out.is_deserted
    for name in ("c0", "c1", "c2"):
        out = apply(out, revocation(state.run, name))
    assert not out.is_deserted  # nobody could come back


# Any order

NEW = ("n0", "n1", "n2")
WHAT = ("enrol", "leave", "asked to leave", "return", "rotate", "revoke", "expel")
steps = st.tuples(st.sampled_from([*CONTRIBUTORS, *AUDITORS, *NEW]), st.sampled_from(WHAT))
gaps = st.lists(
    st.tuples(
        st.lists(steps, max_size=8), st.dictionaries(st.integers(0, 6), st.sampled_from([GOOD, LATE, CHEAT]))
    ),
    min_size=1,
    max_size=5,
)


class Model:
    """What the protocol says, as sets."""

    def __init__(self) -> None:
        self.order = [*CONTRIBUTORS, *AUDITORS]
        self.keys = {name: name for name in self.order}
        self.had = set(self.order)
        self.away: set[str] = set()
        self.out: set[str] = set()

    def record(self, state: RunState, name: str, what: str) -> Record:
        present = self.keys.get(name, name)
        by: Any = "member" if what in ("leave", "revoke") else "coordinator"
        where = (1, state.run, name, key(present).public)
        if what == "enrol":
            return newcomer(state, name, "auditor" if name == "n1" else "contributor")
        if what in ("leave", "asked to leave"):
            return Leave(*where, state.turns, by)
        if what == "return":
            return Return(*where, state.turns)
        if what == "rotate":
            return KeyRotation.of(state.run, name, key(present), key(f"{present}+"))
        return KeyRevocation(*where, by)

    def may(self, name: str, what: str) -> bool:
        if what == "enrol":
            return name not in self.keys and len(self.keys) < len(CONTRIBUTORS) + len(AUDITORS) + 2
        if name not in self.keys or name in self.out:
            return False
        if what == "return":
            return name in self.away
        return name not in self.away if "leave" in what else True

    def do(self, name: str, what: str) -> None:
        match what:
            case "enrol":
                self.keys[name] = name
                self.order.append(name)
                self.had.add(name)
            case "leave" | "asked to leave":
                self.away.add(name)
            case "return":
                self.away.discard(name)
            case "rotate":
                self.keys[name] += "+"
                self.had.add(self.keys[name])
            case _:
                self.out.add(name)


@settings(max_examples=30, deadline=None)
@given(gaps, st.sampled_from([0, 1]))
def test_in_any_order_the_state_is_what_the_protocol_says(
    script: list[tuple[list[tuple[str, str]], dict[int, Fate]]], lag: int
) -> None:
    sections: dict[str, Any] = {
        "run": {"rounds": 9, "max_void": 9},
        "identity": {"allow": {}, "newcomers": 2},
    }
    play = LatePlay(late_start(1, **sections)) if lag else Play(started(**sections))
    model = Model()
    for changes, fates in script:
        play.turn(fates)
        if isinstance(play, LatePlay):
            play.settle_due()
        model.out |= {name for name, s in play.state.standings.items() if s.quarantined}
        for name, what in changes:
            record = model.record(play.state, name, what)
            if not model.may(name, what):
                refuses(play.state, record, ".")
                continue
            play.add(record)
            model.do(name, what)
        _agrees(play.state, model)
        if not can_open(play.state):
            break
    logged: list[Record] = [*enrolments(play.state.run), *play.records]
    assert replay(play.state.manifest, logged) == play.state


def _agrees(state: RunState, model: Model) -> None:
    assert [member.member for member in state.members] == model.order
    assert (state.away, state.keys) == (model.away, {key(name).public for name in model.had})
    assert state.newcomers == len(model.order) - len(CONTRIBUTORS) - len(AUDITORS)
    here = [name for name in model.order if name not in model.away | model.out]
    open_ = plan_open(state)
    assert [entry.member for entry in open_.auditors] == [n for n in here if n[0] == "a" or n == "n1"]
    contributors = [name for name in model.order if name[0] == "c" or name in ("n0", "n2")]
    assert [(e.slot, e.member) for e in open_.roster] == [
        (slot, name) for slot, name in enumerate(contributors) if name in here
    ]
    for entry in (*open_.roster, *open_.auditors):
        assert entry.key == key(model.keys[entry.member]).public
    for standing in state.standings.values():
        assert standing.earned == standing.vested + standing.forfeited + standing.pending


def test_an_enrolment_is_well_formed() -> None:
    for bad in ({"member": "C0"}, {"member": ""}, {"operator": "ACME"}, {"operator": "x" * 65}):
        with pytest.raises(BarnraiseError):
            replace(newcomer(between(), "n0"), **bad)  # type: ignore[arg-type]
    assert isinstance(newcomer(between(), "x" * 64, operator="y"), Enrol)
