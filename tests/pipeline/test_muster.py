"""Between two turns: who is let go, who is let in, and that nobody is waited for who has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pipeline import muster as module
from pipeline.crew import Crew, RollCall
from pipeline.log_reader import Entry
from pipeline.muster import LOOK_MS, Muster
from tests.pipeline.test_crew import Fakes, Memory, Spec, by_digest
from tests.verification.fake_elastic import back, leave, newcomer
from tests.verification.fake_run import CHEAT, LATE, Play, key, rotation, started
from tests.verification.late_play import LatePlay, late_start
from verification.errors import ProtocolError, StorageError
from verification.plans import plan_open
from verification.records import Record
from verification.sealing import seal_record


class FakeLedger:
    """Logs into a play."""

    def __init__(self, play: Play) -> None:
        self.play = play

    @property
    def state(self) -> Any:
        return self.play.state

    def append(self, entries: list[Entry]) -> None:
        for record, _ in entries:
            self.play.add(record)

    def sign(self, record: Record) -> Entry:
        return record, seal_record(record, key("coordinator"))


@dataclass
class Scene:
    """A muster whose members answer as `says` has it: bytes, None for nothing, or an exception."""

    play: Play
    says: dict[str, Any] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    hired: dict[str, Spec] = field(default_factory=dict)
    rooms: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = Fakes({"identity_changes": self._changes})
        crew = Crew(self.members, self.notices.append, by_digest, Memory())
        desk = SimpleNamespace(
            crew=crew, ledger=FakeLedger(self.play), revoked=lambda: self.revoked, notice=self.notices.append
        )
        self.muster = Muster(desk, self.members, self._hire)  # type: ignore[arg-type]

    def _changes(self, name: str, present_key: str, turn: int, away: bool) -> list[bytes]:
        member = self.play.state.member(name)
        assert (present_key, turn) == (member.key, self.play.state.turns)
        assert away == (name in self.play.state.away)
        found = self.says.get(name)
        if isinstance(found, Exception):
            raise found
        record = found() if callable(found) else None
        return [seal_record(record, key(name))] if record else []

    def _hire(self, room: int) -> Mapping[str, Spec]:
        self.rooms.append(room)
        found, self.hired = self.hired, {}
        return found

    def hold(self) -> list[str]:
        """Kinds and members of what was logged."""
        size = len(self.play.records)
        self.muster.hold()
        return [f"{r.kind} {getattr(r, 'member', '')}" for r in self.play.records[size:]]

    @property
    def here(self) -> str:
        open_ = plan_open(self.play.state)
        return " ".join(entry.member for entry in (*open_.roster, *open_.auditors))


def scene(script: Mapping[int, Any] | None = None, **sections: Any) -> Scene:
    play = Play(started(**{"run": {"rounds": 9}, **sections}))
    play.turn(script or {})
    return Scene(play)


LATELY, BROKEN = TimeoutError(), ZeroDivisionError()


def test_nothing_happens_before_the_first_open_or_within_a_turn() -> None:
    before = Scene(Play(started()))
    assert before.hold() == []
    within = scene()
    within.play.add(plan_open(within.play.state))
    assert within.hold() == []
    assert (before.members.asked, within.members.asked, within.rooms) == ([], [], [])


def test_what_members_want_is_logged_in_one_go() -> None:
    there = scene()
    state = there.play.state
    there.says = {
        "c0": lambda: leave(state, "c0", "member"),
        "c1": lambda: rotation(state.run, "c1", "c1", "c1 b"),
        "a0": lambda: leave(state, "a0", "member"),
    }
    there.revoked = ["c2", "stranger"]
    assert there.hold() == ["key-revocation c2", "leave c0", "key-rotation c1", "leave a0"]
    assert there.here == "c1 c3 a1 a2"
    assert (there.muster.joined, there.muster.left) == ([], ["a0", "c0", "c2"])
    assert ("identity_changes", "c2") not in there.members.asked  # it is in quarantine
    there.play.turn({})
    there.says = {"c0": lambda: back(there.play.state, "c0")}
    assert there.hold() == ["return c0"]
    assert (there.muster.joined, there.muster.left) == (["c0"], [])
    there.play.add(plan_open(there.play.state))
    assert there.hold() == []
    assert (there.muster.joined, there.muster.left) == ([], [])


@pytest.mark.parametrize("why", [LATELY, BROKEN])
def test_a_silent_auditor_goes_at_once_and_a_contributor_when_its_work_did_not_come_either(
    why: Exception,
) -> None:
    there = scene({2: LATE})
    there.says = dict.fromkeys(("c1", "c2", "a1"), why)
    assert there.hold() == ["leave c2", "leave a1"]
    for record in there.play.records[-2:]:
        assert record.by == "coordinator"  # type: ignore[union-attr]
    assert there.here == "c0 c1 c3 a0 a2"
    assert there.hold() == []  # those that are gone are not let go again
    there.play.turn({1: LATE})
    assert there.hold() == ["leave c1"]
    told = [line for line in there.notices if "takes no part until it returns" in line]
    assert len(told) == 3


def test_who_is_late_but_answers_stays() -> None:
    there = scene({1: LATE, 2: LATE})
    there.says = {"c2": lambda: None}
    assert there.hold() == []
    assert there.here == "c0 c1 c2 c3 a0 a1 a2"


def test_a_member_in_quarantine_is_neither_asked_nor_let_go() -> None:
    there = scene({1: CHEAT}, audit={"rate_ppm": 1_000_000, "probation_rounds": 0, "segments": 0})
    assert there.play.state.standings["c1"].quarantined
    there.says = {"c1": BROKEN}
    assert there.hold() == []
    assert ("identity_changes", "c1") not in there.members.asked


def test_where_audits_lag_an_auditor_that_is_busy_stays_and_one_that_is_gone_goes() -> None:
    play = LatePlay(late_start(lag=1, run={"rounds": 9}))
    play.turn({})
    there = Scene(play, says={"a0": LATELY, "a1": BROKEN})
    assert there.hold() == ["leave a1"]
    assert there.here == "c0 c1 c2 c3 a0 a2"


def test_no_muster_is_held_while_a_settlement_is_due() -> None:
    play = LatePlay(late_start(lag=1, run={"rounds": 9}))
    play.turn({})
    play.turn({})
    assert play.state.due
    assert Scene(play).hold() == []


@pytest.mark.parametrize("answer", [None, b"x", "x", 3, [None], ["x"], [[b"x"]], (b"x",), [b"{}"]])
def test_an_answer_that_is_no_change_changes_nothing(answer: Any) -> None:
    there = scene()
    there.members.verbs["identity_changes"] = lambda name, *_: answer if name == "c1" else []
    assert there.hold() == []
    assert sum(line.startswith("c1: a change of its key refused") for line in there.notices) == 1


def test_a_change_that_may_not_come_is_refused_and_the_others_come() -> None:
    there = scene()
    state = there.play.state
    there.says = {
        "c0": lambda: leave(state, "c1", "member"),
        "c1": lambda: back(state, "c1"),
        "c2": lambda: leave(state, "c2"),
        "c3": lambda: leave(state, "c3", "member"),
    }
    assert there.hold() == ["leave c3"]
    assert [line.split(":")[0] for line in there.notices] == ["c0", "c1", "c2"]


# Waiting


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens while the muster sleeps, one after the other; it sleeps no more often."""
    events: list[Callable[[], object]] = []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: events.pop(0)())
    return events


def test_with_all_contributors_away_it_goes_on_until_one_is_back(naps: list[Callable[[], object]]) -> None:
    there = scene(dict.fromkeys((1, 2, 3), LATE))
    state = there.play.state
    there.says = {"c0": lambda: leave(state, "c0", "member"), **dict.fromkeys(("c1", "c2", "c3"), BROKEN)}
    naps += [
        lambda: there.says.update(c0=None),
        lambda: there.says.update(c2=lambda: back(there.play.state, "c2")),
    ]
    assert there.hold() == ["leave c0", "leave c1", "leave c2", "leave c3", "return c2"]
    assert (there.muster.joined, there.muster.left) == ([], ["c0", "c1", "c3"])
    assert naps == []
    assert sum("waiting" in line for line in there.notices) == 1


@pytest.mark.parametrize(
    ("audit", "waits"),
    [
        ({"rate_ppm": 1, "probation_rounds": 0}, 1),
        ({"rate_ppm": 0, "probation_rounds": 2}, 1),
        ({"rate_ppm": 0, "probation_rounds": 1}, 0),
    ],
)
def test_with_all_auditors_away_it_waits_where_any_may_be_needed(
    audit: dict[str, int], waits: int, naps: list[Callable[[], object]]
) -> None:
    there = scene(audit=audit)
    there.says = dict.fromkeys(("a0", "a1", "a2"), BROKEN)
    naps += [lambda: there.says.update(a1=lambda: back(there.play.state, "a1"))]
    logged = there.hold()
    assert logged[:3] == ["leave a0", "leave a1", "leave a2"]
    assert logged[3:] == ["return a1"] * waits
    assert len(naps) == 1 - waits


def test_a_run_that_has_no_auditors_waits_for_none() -> None:
    play = Play(started({}, audit={"rate_ppm": 0, "probation_rounds": 0}))
    play.turn({})
    assert Scene(play).hold() == []


# Newcomers


class FakeArrival:
    """Stands for the way of a newcomer: what `advance` does next, by name."""

    does: ClassVar[dict[str, Callable[[], Entry | None]]] = {}
    looks: ClassVar[list[int]] = []

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def advance(self, look_ms: int) -> Entry | None:
        self.looks.append(look_ms)
        return self.does[self.name]()


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> type[FakeArrival]:
    kind: type[FakeArrival] = type("Arriving", (FakeArrival,), {"does": {}, "looks": []})
    monkeypatch.setattr(module, "Arrival", kind)
    return kind


def entered(there: Scene, name: str, **fields: Any) -> Callable[[], Entry | None]:
    def enters() -> Entry:
        record = newcomer(there.play.state, name, **fields)
        return record, seal_record(record, key(name))

    return enters


def test_newcomers_are_let_in_when_they_are_there(arriving: type[FakeArrival]) -> None:
    there = scene()
    there.hired = {"n0": Spec("contributor", "op-n0"), "n1": Spec("auditor", "op-n1")}
    arriving.does = {"n0": lambda: None, "n1": entered(there, "n1", role="auditor")}
    assert there.hold() == ["enrol n1"]
    assert there.rooms == [2]
    assert there.muster.joined == ["n1"]
    arriving.does = {"n0": entered(there, "n0")}
    assert there.hold() == ["enrol n0"]
    assert there.rooms == [2]  # nobody is hired where nobody more may come
    assert there.here == "c0 c1 c2 c3 n0 a0 a1 a2 n1"


def test_a_newcomer_that_may_not_enrol_is_named_and_forgotten(arriving: type[FakeArrival]) -> None:
    there = scene()
    there.hired = dict.fromkeys(("n0", "n1"), Spec("contributor", "op"))

    def refuses() -> Entry | None:
        raise ProtocolError("it broke")

    def stolen() -> Entry:
        record = newcomer(there.play.state, "c1")
        return record, seal_record(record, key("c1"))

    arriving.does = {"n0": refuses, "n1": stolen}
    assert there.hold() == []
    assert [line.split(":")[0] for line in there.notices if "not let in" in line] == ["n0", "n1"]
    arriving.does = {}
    assert there.hold() == []
    assert there.rooms == [2, 2]


def test_a_full_disk_is_not_the_newcomers_fault(arriving: type[FakeArrival]) -> None:
    there = scene()
    there.hired = {"n0": Spec("contributor", "op")}

    def full() -> Entry | None:
        raise StorageError("no room")

    arriving.does = {"n0": full}
    with pytest.raises(StorageError):
        there.hold()


def test_many_that_hang_on_their_way_hold_up_a_turn_no_longer_than_one(arriving: type[FakeArrival]) -> None:
    there = scene(identity={"allow": {}, "newcomers": 5000})
    names = [f"n{number}" for number in range(4000)]
    there.hired = dict.fromkeys(names, Spec("contributor", "op"))
    arriving.does = dict.fromkeys(names, lambda: None)
    there.hold()
    assert len(arriving.looks) == len(names)
    assert sum(arriving.looks) <= LOOK_MS
    assert there.rooms == [5000]
    there.hold()
    assert there.rooms == [5000, 1000]


def test_a_roll_call_says_who_is_gone_and_who_only_silent() -> None:
    there = scene()
    there.says = {"c0": LATELY, "c1": BROKEN}
    desk: Any = there.muster._desk
    call = desk.crew.roll_call(there.play.state)
    assert call == RollCall([], frozenset({"c0", "c1"}), frozenset({"c1"}))
