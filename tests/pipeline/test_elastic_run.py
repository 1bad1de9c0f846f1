"""Whole runs in which members leave, fall silent, return and join, and in which the coordinator is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Machine
from pipeline.coordinator import Coordinator
from pipeline.muster import Muster
from tests.pipeline.elastic_runs import Run, Village, of, rosters
from tests.pipeline.test_identities import CutError, cut_once
from verification.errors import ProtocolError, UsageError
from verification.keys import PrivateKey
from verification.records import Enrol, Leave, Return, RoundClose

FIRST = Machine("m1", {"contributor": 4, "auditor": 2})


@pytest.fixture
def village(monkeypatch: pytest.MonkeyPatch) -> Village:
    there = Village([FIRST])
    there.move_in(monkeypatch)
    return there


def test_members_leave_return_fall_silent_and_join_though_the_coordinator_is_killed(
    tmp_path: Path, village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, run={"rounds": 7}, identity={"newcomers": 2})

    def after_three() -> None:
        (run.private("c01") / "leave").unlink()
        village.machines.append(Machine("m2", {"contributor": 1}, "acme"))

    wishes: dict[int, Callable[[], object]] = {
        1: (run.private("c01") / "leave").touch,
        2: lambda: village.silence("c02"),
        3: after_three,
        5: lambda: village.silent.discard("c02"),
    }

    def hired(self: Muster) -> bool:
        return "c04" in self._coming

    with monkeypatch.context() as patch:
        cut_once(patch, Muster, "_enrolment", hired)  # the placement is there, the enrolment is not
        with pytest.raises(CutError):
            run.go(wishes)
    kept = json.loads((run.private("coordinator") / "machines.json").read_bytes())
    assert kept["c04"] == "m2"
    with monkeypatch.context() as patch:
        cut_once(patch, Coordinator, "collect_reveals", lambda self: self.state.turns == 5)
        with pytest.raises(CutError):
            run.go(wishes)
    coordinator = run.go(wishes)
    found = run.records()
    all_ = "c00 c01 c02 c03 a00 a01"
    assert rosters(found) == [
        all_,
        "c00 c02 c03 a00 a01",
        "c00 c02 c03 a00 a01",
        "c00 c01 c03 c04 a00 a01",
        "c00 c01 c03 c04 a00 a01",
        "c00 c01 c02 c03 c04 a00 a01",
        "c00 c01 c02 c03 c04 a00 a01",
    ]
    assert [(r.member, r.by, r.turn) for r in of(Leave, found)] == [
        ("c01", "member", 1),
        ("c02", "coordinator", 3),
    ]
    assert [(r.member, r.turn) for r in of(Return, found)] == [("c01", 3), ("c02", 5)]
    assert [(r.member, r.operator) for r in of(Enrol, found)][-1] == ("c04", "acme")
    rejected = [(c.round, r.member, r.reason) for c in of(RoundClose, found) for r in c.rejected]
    assert rejected == [(3, "c02", "late")]
    assert coordinator.state.standings["c04"].accepted == 4
    assert village.seats["c04"]
    assert village.seats["c04"].machine == "m2"
    assert run.verified(3) == []


def test_a_run_whose_contributors_are_all_gone_waits_and_opens_no_turn_of_nobodys(
    tmp_path: Path, village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, run={"rounds": 3}, train={"steps": [2, 1]})
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            village.machines.append(FIRST)

    monkeypatch.setattr("pipeline.muster.time.sleep", sleep)
    run.go({1: village.machines.clear})
    found = run.records()
    assert len(waits) == 3
    # Nobody was in time for the second turn; the third has them all.
    assert [len(close.accepted) for close in of(RoundClose, found)] == [2, 0, 2, 2]
    assert rosters(found) == ["c00 c01 a00 a01", "c00 c01", "c00 c01 a00 a01", "c00 c01 a00 a01"]
    assert [line for line in run.notices if "all contributors are away" in line] == [
        "all contributors are away: waiting for one to return or to join"
    ]
    assert run.verified(2) == []


def test_where_audits_are_due_a_run_waits_for_an_auditor_too(
    tmp_path: Path, village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = {"rate_ppm": 100_000, "probation_rounds": 1, "second_look_ppm": 0}
    run = Run(tmp_path, run={"rounds": 3, "max_void": 1}, train={"steps": [2, 1]}, audit=audit)
    monkeypatch.setattr("pipeline.muster.time.sleep", lambda seconds: village.silent.discard("a01"))

    def gone() -> None:
        village.silence("a00")
        village.silence("a01")

    run.go({1: gone})
    found = run.records()
    assert rosters(found) == ["c00 c01 a00 a01", "c00 c01 a01", "c00 c01 a01"]
    assert [line for line in run.notices if "waiting" in line] == [
        "all auditors are away: waiting for one to return or to join"
    ]
    assert [(r.member, r.turn) for r in of(Return, found)] == [("a01", 1)]


def test_who_waits_with_all_contributors_away_may_be_killed(
    tmp_path: Path, village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}
    run = Run(tmp_path, run={"rounds": 2}, train={"steps": [2, 1]}, identity={"newcomers": 1}, audit=audit)

    def killed(seconds: float) -> None:
        del seconds
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.muster.time.sleep", killed)
        with pytest.raises(CutError):
            run.go({1: village.machines.clear})
    village.machines.append(Machine("m3", {"contributor": 1}))  # where none of them lives
    run.go()
    found = run.records()
    assert rosters(found) == ["c00 c01 a00 a01", "c00 c01", "c02"]
    assert run.verified(2) == []


def test_newcomers_come_only_as_far_as_the_manifest_has_room(tmp_path: Path, village: Village) -> None:
    run = Run(tmp_path, run={"rounds": 4}, train={"steps": [2, 1]}, identity={"newcomers": 3})
    village.machines[:] = [Machine("m1", {"contributor": 2, "auditor": 2})]
    more = [Machine(f"n{index}", {"contributor": 1 << 60, "auditor": 1}) for index in range(2)]
    run.go({1: lambda: village.machines.extend(more)})
    found = run.records()
    assert rosters(found) == ["c00 c01 a00 a01"] + ["c00 c01 c02 c03 c04 a00 a01"] * 3
    # Nobody said whose the machines are: each of their members is on its own.
    assert [r.operator for r in of(Enrol, found)][4:] == ["op-c02", "op-c03", "op-c04"]
    assert {village.seats[name].machine for name in ("c02", "c03", "c04")} == {"n0", "n1"}  # type: ignore[union-attr]
    assert run.verified(2) == []


def test_newcomers_of_either_role_with_lagging_audits(tmp_path: Path, village: Village) -> None:
    run = Run(
        tmp_path,
        run={"rounds": 5},
        train={"steps": [2, 1]},
        identity={"newcomers": 2},
        audit={"rate_ppm": 1_000_000, "second_look_ppm": 500_000, "lag": 2, "auditors": 1},
        credit={"vest_rounds": 3},
    )
    village.machines[:] = [Machine("m1", {"contributor": 2, "auditor": 1})]

    def join() -> None:
        village.machines.append(Machine("m2", {"contributor": 1, "auditor": 1}, "acme"))

    run.go({2: join, 3: (run.private("c00") / "leave").touch})
    found = run.records()
    assert rosters(found) == [
        "c00 c01 a00",
        "c00 c01 a00",
        "c00 c01 c02 a00 a01",
        "c01 c02 a00 a01",
        "c01 c02 a00 a01",
    ]
    assert run.verified(3) == []


def test_a_newcomer_that_cannot_be_had_is_forgotten_and_nobody_waits_for_it(
    tmp_path: Path, village: Village
) -> None:
    run = Run(tmp_path, run={"rounds": 6}, train={"steps": [1]}, identity={"newcomers": 1})

    def join() -> None:
        village.silent.add("c01")
        village.machines.append(Machine("m2", {"contributor": 1}))

    village.machines[:] = [Machine("m1", {"contributor": 1, "auditor": 2})]
    run.go({1: join})
    found = run.records()
    assert rosters(found) == ["c00 a00 a01"] * 6
    assert [line for line in run.notices if "c01" in line] == [
        "c01 is on its way into the run",
        "c01: not let in: c01 could not join the run; got OSError: nobody is there.",
    ]


def test_a_machine_that_is_gone_for_a_while_still_gets_its_newcomer_in(
    tmp_path: Path, village: Village
) -> None:
    run = Run(tmp_path, run={"rounds": 4}, train={"steps": [1]}, identity={"newcomers": 1})

    def join() -> None:
        village.silent.add("c01")
        village.machines.append(Machine("m2", {"contributor": 1}))

    village.machines[:] = [Machine("m1", {"contributor": 1, "auditor": 2})]
    run.go({1: join, 2: village.silent.clear})
    # It began again at the third muster.
    assert rosters(run.records()) == ["c00 a00 a01"] * 2 + ["c00 c01 a00 a01"] * 2


def test_where_nobody_named_machines_a_newcomer_has_a_name_of_its_own(
    tmp_path: Path, village: Village
) -> None:
    """A run that began without machines with seats: those who live anywhere keep their names."""
    village.machines.clear()
    run = Run(tmp_path, run={"rounds": 3}, train={"steps": [2, 1]}, identity={"newcomers": 2})
    run.go({1: lambda: village.machines.append(Machine("m1", {"contributor": 1, "auditor": 1}))})
    found = run.records()
    assert rosters(found) == ["c00 c01 a00 a01"] + ["c00 c01 c02 a00 a01 a02"] * 2
    assert all(len(close.accepted) == len(close.credits) - 2 for close in of(RoundClose, found)[:1])
    assert run.verified(2) == []


def test_on_an_allow_list_only_who_is_named_joins(tmp_path: Path, village: Village) -> None:
    home, names = tmp_path / "home", ["c00", "a00", "c01"]
    mine = {name: PrivateKey.generate() for name in names}
    for name, key in mine.items():
        key.save(home / "keys" / name)
    allow = {name: key.public for name, key in mine.items()}
    run = Run(
        tmp_path,
        run={"rounds": 3},
        train={"steps": [1]},
        audit={"auditors": 1, "rate_ppm": 0, "probation_rounds": 1, "second_look_ppm": 0},
        identity={"newcomers": 2, "allow": allow},
    )
    village.machines[:] = [Machine("m1", {"contributor": 1, "auditor": 1})]
    run.go({1: lambda: village.machines.append(Machine("m2", {"contributor": 2}))})
    found = run.records()
    assert rosters(found) == ["c00 a00"] + ["c00 c01 a00"] * 2
    assert {r.member: r.key for r in of(Enrol, found)} == allow
    assert any(line.startswith("c02: not let in: c02 enrols with a key") for line in run.notices)


def test_a_start_needs_seats_for_all(tmp_path: Path, village: Village) -> None:
    village.machines[:] = [Machine("m1", {"contributor": 3, "auditor": 2})]
    run = Run(tmp_path)
    with pytest.raises(UsageError, match="too few seats for contributors"):
        run.go()
    village.machines.append(Machine("m2", {"contributor": 1}, "Not a name"))
    with pytest.raises(UsageError, match="too few seats for contributors"):
        run.go()


def test_a_start_that_failed_does_not_wait_for_a_machine_that_is_gone(
    tmp_path: Path, village: Village
) -> None:
    run = Run(tmp_path, run={"rounds": 1})
    village.silent.add("c03")
    with pytest.raises(ProtocolError, match="c03 could not join"):
        run.go()
    village.silent.clear()
    village.machines[:] = [Machine("m8", {"contributor": 4}, "acme"), Machine("m9", {"auditor": 2}, "zeta")]
    run.go()
    found = run.records()
    assert [r.operator for r in of(Enrol, found)] == ["acme"] * 4 + ["zeta"] * 2
    assert {(seat.machine, seat.role) for seat in village.seats.values() if seat} == {
        ("m8", "contributor"),
        ("m9", "auditor"),
    }


@pytest.mark.parametrize("method", ["roll_call", "_let_go", "_admit"])
def test_a_run_killed_in_a_muster_holds_it_again(
    tmp_path: Path, village: Village, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = Run(tmp_path, run={"rounds": 3}, train={"steps": [2, 1, 1]}, identity={"newcomers": 1})
    village.machines[:] = [Machine("m1", {"contributor": 3, "auditor": 2})]
    seen: list[int] = []

    def third(self: Any) -> bool:
        seen.append(1)
        return len(seen) == 2

    def wish() -> None:
        (run.private("c00") / "leave").touch()
        village.silence("a01")
        village.machines.append(Machine("m2", {"contributor": 1}))

    from pipeline.crew import Crew

    with monkeypatch.context() as patch:
        cut_once(patch, Crew if method == "roll_call" else Muster, method, third)
        with pytest.raises(CutError):
            run.go({1: wish})
    run.go({1: wish})
    found = run.records()
    assert rosters(found)[-1] == "c01 c02 c03 a00"
    assert [r.member for r in of(Leave, found)] == ["c00", "a01"]
    assert [r.member for r in of(Enrol, found)][5:] == ["c03"]
    assert run.verified(2) == []
