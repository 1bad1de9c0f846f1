"""The crew believes nothing: whatever members answer, only checked records or nothing comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.pool import Answer, LocalPool, MemberDiedError
from pipeline.crew import Crew
from pipeline.panel import AuditCase
from pipeline.parties import BRIEF_MS, PATIENCE_MS
from pipeline.told import Question
from tests.verification.fake_run import (
    AUDITORS,
    CONTRIBUTORS,
    GOOD,
    LATE,
    Play,
    commitment,
    enrolments,
    key,
    rotation,
    started,
    verdict,
)
from verification.encoding import blake3_digest
from verification.errors import BarnraiseError, FormatError, ProtocolError
from verification.plans import plan_open
from verification.rounds import begin
from verification.sealing import seal_record
from verification.state import RunState

Reply = Callable[..., Any]


@dataclass
class Fakes:
    """Members whose verbs are functions (name, *arguments) -> value; what raises is an error."""

    verbs: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    deadlines: dict[str, int] = field(default_factory=dict)

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        answers = {}
        self.deadlines[method] = deadline_ms
        for name, args in arguments.items():
            self.asked.append((method, name))
            try:
                answers[name] = Answer(self.verbs[method](name, *args), ms=5)
            except TimeoutError:
                answers[name] = Answer(late=True)
            except ZeroDivisionError:
                answers[name] = Answer(error="it broke [/] [bold]")
        return answers

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        return [partial(self._waited_for, method, name, args) for name, args in calls]

    def _waited_for(self, method: str, name: str, args: tuple[Any, ...], deadline_ms: int) -> Answer:
        return self.call(method, {name: args}, deadline_ms=deadline_ms)[name]


class Memory(dict[Question, bytes]):
    """What auditors told, as long as this lives."""

    def put(self, question: Question, answer: bytes) -> None:
        self[question] = answer


@dataclass(frozen=True)
class Spec:
    """What the organiser allows a name to be."""

    role: str
    operator: str


ALLOWED = {name: Spec("contributor", operator) for name, operator in CONTRIBUTORS.items()} | {
    name: Spec("auditor", operator) for name, operator in AUDITORS.items()
}


def by_digest(data: bytes, digest: str) -> None:
    """Any bytes of that digest are a state here."""
    if blake3_digest(data) != digest:
        raise FormatError("not the state", expected=digest)


def crew(**verbs: Reply) -> tuple[Crew, list[str], Fakes]:
    said: list[str] = []
    fakes = Fakes(verbs)
    return Crew(fakes, said.append, by_digest, Memory()), said, fakes


def opened() -> RunState:
    play = Play(started())
    play.add(plan_open(play.state))
    return play.state


OPENED = opened()
NO_CASE = AuditCase(b"", b"", b"", b"", b"", None)
NAMES = [*CONTRIBUTORS, *AUDITORS]
garbage = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=9),
    st.binary(max_size=99),
    st.binary(max_size=9).map(bytearray),
    st.binary(max_size=9).map(memoryview),
    st.lists(st.one_of(st.none(), st.binary(max_size=9)), max_size=3),
    st.tuples(st.binary(max_size=9), st.one_of(st.none(), st.text(max_size=3), st.binary(max_size=9))),
    st.dictionaries(st.integers(), st.binary(max_size=3), max_size=2),
)


def honest(name: str, *_: Any) -> bytes:
    open_ = OPENED.open_turn.open
    entry = next(e for e in open_.roster if e.member == name)
    return seal_record(commitment(open_, entry), key(name))


def test_commitments_that_hold_are_taken_and_the_others_are_named() -> None:
    def reply(name: str, *args: Any) -> Any:
        if name == "c1":
            raise TimeoutError
        if name == "c2":
            raise ZeroDivisionError
        return honest("c0") if name == "c3" else honest(name, *args)

    team, said, _ = crew(commit=reply)
    done = team.commitments(OPENED.open_turn, b"open", b"checkpoint")
    assert (list(done.entries), done.ms) == ([0], {0: 5})
    assert [line.split(":")[0] for line in said] == ["c1", "c2", "c3"]
    assert "too late" in said[0]


def test_a_commitment_may_come_in_any_bytes_and_is_logged_as_bytes() -> None:
    team, _, _ = crew(commit=lambda name, *args: memoryview(bytearray(honest(name, *args))))
    done = team.commitments(OPENED.open_turn, b"open", b"checkpoint")
    assert {slot: type(envelope) for slot, (_, envelope) in done.entries.items()} == dict.fromkeys(
        range(4), bytes
    )


@given(garbage)
def test_garbage_for_commitments_reveals_states_and_verdicts_is_nothing(value: Any) -> None:
    team, _, _ = crew(
        commit=lambda *_: value, reveal=lambda *_: value, serve_state=lambda *_: value, audit=lambda *_: value
    )
    turn = OPENED.open_turn
    assert team.commitments(turn, b"open", b"checkpoint").entries == {}
    assert team.states(turn, [0, 1]) == {}
    for answer in team.reveals(OPENED, "head", (0, []), {0: (1, []), 2: (2, [])}).values():
        assert answer is None or (type(answer.envelope), type(answer.payload)) == (bytes, bytes)
    assert team.panel.verdicts(turn, 1, {0: ("a0", "a1")}, {0: NO_CASE}, {}) == {}


@given(garbage)
def test_garbage_at_joining_is_an_error_of_the_family(value: Any) -> None:
    team, _, _ = crew(missing_files=lambda *_: value, enrol=lambda *_: value, store_file=lambda *_: None)
    with pytest.raises(BarnraiseError):
        team.enrolments(begin(started().manifest), {"c0": ALLOWED["c0"]})
    if value != []:
        with pytest.raises(BarnraiseError):
            team.send_files(["c0"], lambda name: b"")
        # Once the members are in the log, it stops nobody.
        later, said, _ = crew(missing_files=lambda *_: value)
        later.send_files(["c0"], lambda name: b"", enrolled=True)
        assert len(said) == 1


def test_enrolments_come_in_the_order_of_those_allowed() -> None:
    state = begin(started().manifest)
    members = {record.member: seal_record(record, key(record.member)) for record in enrolments(state.run)}
    team, _, fakes = crew(enrol=lambda name: members[name])
    assert [entry[0] for entry in team.enrolments(state, ALLOWED)] == enrolments(state.run)
    backwards = {name: ALLOWED[name] for name in reversed(NAMES)}
    assert [record.member for record, _ in team.enrolments(state, backwards)] == NAMES[::-1]
    assert [name for _, name in fakes.asked] == NAMES + NAMES[::-1]


@pytest.mark.parametrize(
    "change",
    [
        {"member": "c1"},
        {"member": "eve"},
        {"role": "auditor"},
        # Another operator: half the weight cap for oneself, or the right to judge one's own work.
        {"operator": "op-c"},
        {"operator": "op-eve"},
    ],
)
def test_a_member_enrols_only_as_what_it_is_allowed_to_be(change: dict[str, str]) -> None:
    state = begin(started().manifest)
    right = enrolments(state.run)[0]
    wrong: Any = {"member": "c0", "role": "contributor", "operator": "op-a", **change}
    record = replace(right, **wrong)
    team, _, _ = crew(enrol=lambda name: seal_record(record, key("c0")))
    with pytest.raises(ProtocolError, match="not allowed to be"):
        team.enrolments(state, {"c0": ALLOWED["c0"]})
    allowed = {wrong["member"]: Spec(wrong["role"], wrong["operator"])}
    assert [entry[0] for entry in team.enrolments(state, allowed)] == [record]


def test_files_go_to_those_who_lack_them_and_nothing_else_can_be_had() -> None:
    stored: list[tuple[str, str, bytes]] = []
    wants = {"c0": ["tokenizer.json"], "c1": []}
    team, _, _ = crew(missing_files=lambda name: wants[name], store_file=lambda *args: stored.append(args))
    team.send_files(["c0", "c1"], lambda name: name.encode())
    assert stored == [("c0", "tokenizer.json", b"tokenizer.json")]
    read: list[str] = []
    for name in ("../manifest.json", "/etc/hostname", "a/b", "..", ".", ".key", "", "a\0", "a\n", 3, None):
        wants["c0"] = [name]  # type: ignore[list-item]
        with pytest.raises(ProtocolError, match="no data file"):
            team.send_files(["c0"], lambda file: read.append(file) or b"")  # type: ignore[func-returns-value]
    assert read == []

    def absent(file: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", file)

    wants["c0"] = ["train-99.arrow"]
    with pytest.raises(ProtocolError, match="asked for train-99"):
        team.send_files(["c0"], absent)


def test_a_file_asked_for_twice_is_sent_once() -> None:
    stored: list[str] = []
    team, _, _ = crew(
        missing_files=lambda name: ["a.arrow", "b.arrow"] * 500,
        store_file=lambda name, file, data: stored.append(file),
    )
    team.send_files(["c0"], lambda file: b"")
    assert stored == ["a.arrow", "b.arrow"]


def test_a_member_that_takes_no_files_stops_a_run_only_before_enrolment() -> None:
    def missing(name: str) -> Any:
        if name == "c0":
            raise ZeroDivisionError
        if name == "c1":
            raise TimeoutError
        return {"c2": "no list", "c3": ["../key"], "a0": ["gone.arrow"]}.get(name, ["tokenizer.json"])

    def store(name: str, file: str, data: bytes) -> None:
        if name == "a1":
            raise ZeroDivisionError
        stored.append((name, file, data))

    def read(file: str) -> bytes:
        if file == "gone.arrow":
            raise FileNotFoundError(2, "No such file or directory", file)
        return b"data"

    stored: list[tuple[str, str, bytes]] = []
    team, said, _ = crew(missing_files=missing, store_file=store)
    for name in ("c0", "c1", "c2", "c3", "a0", "a1"):
        with pytest.raises(ProtocolError, match=name):
            team.send_files([name], read)
    assert (stored, said) == ([], [])
    team.send_files(NAMES, read, enrolled=True)
    assert stored == [("a2", "tokenizer.json", b"data")]
    assert [line.split()[0] for line in said] == ["c0", "c1", "c2", "c3", "a0", "a1"]


@pytest.mark.parametrize(("mode", "patience"), [("fixed", PATIENCE_MS), ("measured", 4000)])
def test_nobody_is_waited_for_without_an_end(mode: str, patience: int) -> None:
    play = Play(started(timing={"mode": mode}))
    play.add(plan_open(play.state))
    turn = play.state.open_turn

    def late(*_: Any) -> None:
        raise TimeoutError

    team, _, fakes = crew(commit=late, reveal=late, serve_state=late, audit=late)
    team.commitments(turn, b"", b"")
    team.reveals(play.state, "head", (0, []), {0: (1, [])})
    team.states(turn, [0])
    team.panel.verdicts(turn, 1, {0: ("a0",)}, {0: NO_CASE}, {})
    assert fakes.deadlines == dict.fromkeys(("commit", "reveal", "serve_state", "audit"), patience)


def test_joining_has_a_deadline_too() -> None:
    state = begin(started().manifest)
    members = {record.member: seal_record(record, key(record.member)) for record in enrolments(state.run)}
    team, _, fakes = crew(
        missing_files=lambda name: ["a"], store_file=lambda *_: None, enrol=lambda name: members[name]
    )
    team.send_files(NAMES, lambda file: b"")
    team.enrolments(state, ALLOWED)
    assert fakes.deadlines == dict.fromkeys(("missing_files", "store_file", "enrol"), PATIENCE_MS)


def test_a_start_state_is_taken_only_when_it_is_the_right_one() -> None:
    play = Play(started())
    play.turn({})
    play.add(plan_open(play.state))
    turn = play.state.open_turn
    states = {slot: f"state 0 {slot} true".encode() for slot in range(4)}
    assert turn.open.entry(1).start_state == blake3_digest(states[1])
    held = {"c0": states[0], "c1": b"wrong", "c2": memoryview(states[2]), "c3": states[0]}
    team, said, _ = crew(serve_state=lambda name, number: held[name])
    assert team.states(turn, range(4)) == {0: states[0], 2: states[2]}
    assert [line.split(":")[0] for line in said] == ["c1", "c3"]


def served() -> RunState:
    play = Play(started())
    play.turn(dict.fromkeys((1, 2, 3), LATE) | {0: GOOD})
    again = Play(started())
    for record in play.records[: [r.kind for r in play.records].index("served") + 1]:
        again.add(record)
    return again.state


def test_auditors_are_asked_in_order_until_one_gives_a_sound_verdict() -> None:
    state = served()
    turn = state.open_turn
    assert turn.draw
    order = next(item.auditors for item in turn.draw.drawn if item.slot == 0)
    case = AuditCase(b"open", b"draw", b"reveal", b"checkpoint", b"state", b"trace")

    def reply(name: str, *args: Any) -> Any:
        assert args == (b"open", 0, 1, b"draw", b"reveal", b"checkpoint", b"state", b"trace")
        if name == order[0]:
            raise TimeoutError
        record = verdict(state, 0, 1, name, "pass")
        return seal_record(record, key("c0" if name == order[1] else name))

    team, said, fakes = crew(audit=reply)
    found = team.panel.verdicts(turn, 1, {0: order}, {0: case}, {})
    assert [name for _, name in fakes.asked] == list(order)
    assert found[0][0] == verdict(state, 0, 1, order[2], "pass")
    assert [line.split(":")[0] for line in said] == [order[0], order[1]]


def test_a_call_that_was_begun_is_waited_for_and_nobody_is_asked_beside_it() -> None:
    state = served()
    turn = state.open_turn
    assert turn.draw
    order = next(item.auditors for item in turn.draw.drawn if item.slot == 0)
    patient, said, fakes = crew(
        audit=lambda name, *_: seal_record(verdict(state, 0, 1, name, "pass"), key(name))
    )
    begun = patient.panel.begin_verdicts({0: order, 1: (), 2: order}, {0: NO_CASE})
    assert list(begun) == [0]  # who has no auditor, or no case, is not begun
    assert fakes.asked == []
    found = patient.panel.verdicts(turn, 1, {0: order}, {0: NO_CASE}, begun)
    assert found[0][0].auditor == order[0]
    assert fakes.asked == [("audit", order[0])]
    assert fakes.deadlines["audit"] == PATIENCE_MS
    assert said == []


@pytest.mark.parametrize("why", [TimeoutError, ZeroDivisionError])
def test_a_call_that_was_begun_and_came_to_nothing_is_made_again(why: type[Exception]) -> None:
    """Its auditor may have died meanwhile; it is asked once more before the next one is."""
    state = served()
    turn = state.open_turn
    assert turn.draw
    order = next(item.auditors for item in turn.draw.drawn if item.slot == 0)
    calls: list[str] = []

    def reply(name: str, *_: Any) -> bytes:
        calls.append(name)
        if len(calls) == 1:
            raise why
        return seal_record(verdict(state, 0, 1, name, "pass"), key(name))

    team, said, _ = crew(audit=reply)
    begun = team.panel.begin_verdicts({0: order}, {0: NO_CASE})
    found = team.panel.verdicts(turn, 1, {0: order}, {0: NO_CASE}, begun)
    assert calls == [order[0], order[0]]
    assert found[0][0].auditor == order[0]
    assert len(said) == 1


def test_a_call_that_was_begun_for_what_was_taken_out_since_is_not_waited_for() -> None:
    state = served()

    def never(*_: Any) -> None:
        raise AssertionError

    team, _, fakes = crew(audit=never)
    begun = team.panel.begin_verdicts({0: ("a0",)}, {0: NO_CASE})
    assert team.panel.verdicts(state.open_turn, 1, {}, {}, begun) == {}
    assert fakes.asked == []


class Mortal:
    """Dies at its first work, and is the same member when it is made anew."""

    deaths = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def commit(self, open_: bytes, checkpoint: bytes) -> bytes:
        del open_, checkpoint
        if self.name == "c1" and not Mortal.deaths:
            Mortal.deaths += 1
            raise MemberDiedError
        if self.name == "c2":
            raise RuntimeError("a bug of its own")
        return honest(self.name)


def test_a_member_that_dies_is_asked_again_and_one_that_fails_is_late() -> None:
    Mortal.deaths = 0
    said: list[str] = []
    team = Crew(
        LocalPool({name: lambda name=name: Mortal(name) for name in CONTRIBUTORS}),
        said.append,
        by_digest,
        Memory(),
    )
    done = team.commitments(OPENED.open_turn, b"open", b"checkpoint")
    assert sorted(done.entries) == [0, 1, 3]
    assert said == ["c2: commit: RuntimeError: a bug of its own"]


# Changes of keys, and receipts

SHORT = st.binary(max_size=30)
ODD_ANSWERS = st.one_of(st.none(), st.integers(), SHORT, st.lists(SHORT, min_size=1))


@given(ODD_ANSWERS)
def test_whatever_a_member_says_of_its_key_is_checked_or_told(answer: Any) -> None:
    play = Play(started())
    play.turn({})
    good = seal_record(rotation(play.state.run, "c1", "c1", "c1 b"), key("c1"))
    replies = {"c0": answer, "c1": [good, good], "c2": []}
    asked: dict[str, str] = {}

    def changes(name: str, present_key: str, turn: int, away: bool) -> Any:
        assert (turn, away) == (1, False)
        asked[name] = present_key
        return replies.get(name, [])

    fakes = Fakes({"identity_changes": changes})
    notices: list[str] = []
    found = Crew(fakes, notices.append, by_digest, Memory()).roll_call(play.state).changes
    assert [envelope for _, envelope in found] == [good]
    assert asked == {m.member: m.key for m in play.state.members}
    assert len(notices) == 1
    assert notices[0].startswith("c0: ")


def test_two_members_cannot_take_the_same_new_key_and_the_gone_are_not_asked() -> None:
    play = Play(started())
    play.turn({0: replace(GOOD, first="fail", second="fail")})
    assert play.state.standings["c0"].quarantined
    envelopes = {
        name: seal_record(rotation(play.state.run, name, name, "same"), key(name)) for name in CONTRIBUTORS
    }
    fakes = Fakes({"identity_changes": lambda name, *_: [envelopes[name]] if name in envelopes else []})
    notices: list[str] = []
    found = Crew(fakes, notices.append, by_digest, Memory()).roll_call(play.state).changes
    assert [record.member for record, _ in found] == ["c1"]
    assert [line.split(":")[0] for line in notices] == ["c2", "c3"]
    assert ("identity_changes", "c0") not in fakes.asked


def test_nobody_is_waited_for_long_without_work_and_a_failure_is_told() -> None:
    def late(name: str, *args: Any) -> Any:
        raise TimeoutError

    for timing, patience in (({}, BRIEF_MS), ({"mode": "measured", "deadline_ms": 4000}, 4000)):
        play = Play(started(timing=timing))
        play.turn({})
        fakes, notices = Fakes({"identity_changes": late, "take_receipt": late}), list[str]()
        crew = Crew(fakes, notices.append, by_digest, Memory())
        assert crew.roll_call(play.state).changes == []
        crew.give_receipts(play.state, 0, {"c1": "a receipt"})
        assert fakes.deadlines == {"identity_changes": patience, "take_receipt": patience}
        assert len(notices) == len(CONTRIBUTORS) + len(AUDITORS) + 1
        assert notices[-1] == "c1: receipt not taken: too late"
