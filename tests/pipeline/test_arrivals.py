"""The way of one newcomer into a run: step by step, and never one that others wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.pool import Answer
from pipeline.arrivals import TRIES, Arrival
from tests.pipeline.fake_log import log_of, note
from tests.pipeline.test_crew import Spec
from tests.verification.fake_elastic import leave, newcomer
from tests.verification.fake_run import Play, key, started
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.notes import Checkpoint, parse_checkpoint
from verification.sealing import seal_record

FILES = {"tokenizer.json": b"words", "train-00.arrow": b"windows"}


@dataclass
class FakeLedger:
    """A play's log; what is added to the play is logged."""

    play: Play

    @property
    def state(self) -> Any:
        return self.play.state

    @property
    def head(self) -> str:
        return note(log_of(self.play))

    @property
    def checkpoint(self) -> Checkpoint:
        return parse_checkpoint(self.head, self.play.state.manifest.log_vkey)

    def entries_from(self, index: int) -> list[bytes]:
        return log_of(self.play)[index:]


@dataclass
class FakeMember:
    """Answers at once, unless its verb stands in `waits` (not yet done), `fails` (that often) or `lies`."""

    play: Play
    lacks: list[Any] = field(default_factory=lambda: list(FILES))
    waits: set[str] = field(default_factory=set)
    fails: dict[str, int] = field(default_factory=dict)
    lies: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    read: int = 0
    looks: list[int] = field(default_factory=list)
    before: Callable[[str], None] = lambda verb: None

    def call(self, method: str, arguments: Any, *, deadline_ms: int = 0) -> Any:
        raise AssertionError(f"{method} would hold up a turn")

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        (_, arguments) = calls[0]
        assert len(calls) == 1
        self.before(method)
        self.asked.append(method)
        return [lambda deadline_ms: self._answer(method, arguments, deadline_ms)]

    def _answer(self, method: str, arguments: tuple[Any, ...], deadline_ms: int) -> Answer:
        assert deadline_ms > 0  # 0 would wait without an end
        self.looks.append(deadline_ms)
        if method in self.waits:
            return Answer(late=True)
        if self.fails.get(method, 0):
            self.fails[method] -= 1
            return Answer(error="it broke")
        return Answer(self.lies[method] if method in self.lies else getattr(self, method)(*arguments))

    def missing_files(self) -> list[Any]:
        return self.lacks

    def store_file(self, name: str, data: bytes) -> None:
        self.stored[name] = data

    def catch_up(self, entries: list[bytes], head: str) -> int:
        whole = log_of(self.play)
        start = self.read if entries[0] != whole[0] else 0
        assert entries == whole[start:]
        assert head == note(whole)
        self.read = len(whole)
        return self.read

    def enrol(self) -> bytes:
        return seal_record(newcomer(self.play.state, "n0"), key("n0"))


def on_its_way(**changes: Any) -> tuple[Arrival, FakeMember]:
    play = Play(started(run={"rounds": 9}))
    play.turn({})
    member = FakeMember(play, **changes)
    allowed = Spec("contributor", "op-n0")
    return Arrival("n0", allowed, member, FakeLedger(play), FILES.__getitem__), member  # type: ignore[arg-type]


def test_a_newcomer_gets_the_files_reads_the_log_and_enrols() -> None:
    arrival, member = on_its_way()
    entry = arrival.advance(1000)
    assert entry
    assert entry == (newcomer(member.play.state, "n0"), member.enrol())
    assert member.asked == ["missing_files", "store_file", "store_file", "catch_up", "enrol"]
    assert member.stored == FILES
    member.play.add(entry[0])


@pytest.mark.parametrize("verb", ["missing_files", "store_file", "catch_up", "enrol"])
def test_what_is_not_done_is_looked_at_again_and_not_begun_twice(verb: str) -> None:
    arrival, member = on_its_way(waits={verb})
    for _ in range(5):
        assert arrival.advance(1) is None
    assert member.asked.count(verb) == 1
    member.waits.clear()
    assert arrival.advance(1)
    assert member.asked.count(verb) == (2 if verb == "store_file" else 1)


def test_it_is_waited_for_no_longer_than_is_said() -> None:
    arrival, member = on_its_way()
    arrival.advance(700)
    assert max(member.looks) <= 700
    assert min(member.looks) >= 1
    late, slow = on_its_way()

    def dawdle(verb: str) -> None:
        time.sleep(0.01)

    slow.before = dawdle
    late.advance(20)
    assert slow.looks[-1] == 1  # what is done is taken, and nothing is waited for any more


def test_the_log_that_grew_while_it_read_or_signed_is_read_too() -> None:
    arrival, member = on_its_way()
    grown: list[str] = []

    def grow(verb: str) -> None:
        if verb == "enrol" and not grown:
            grown.append(verb)
            member.play.turn({})

    member.before = grow
    member.waits = {"catch_up"}
    assert arrival.advance(1) is None
    member.play.add(leave(member.play.state, "c1"))
    member.waits.clear()
    with pytest.raises(AssertionError):
        arrival.advance(1)  # this one was shown less than there is by now
    arrival, member = on_its_way()
    member.before = grow
    assert arrival.advance(1)
    assert member.asked[3:] == ["catch_up", "enrol", "catch_up"]
    assert member.read == len(log_of(member.play))


@pytest.mark.parametrize("verb", ["missing_files", "store_file", "catch_up", "enrol"])
def test_who_fails_begins_again_between_the_next_two_turns_and_not_for_ever(verb: str) -> None:
    arrival, member = on_its_way(fails={verb: TRIES - 1})
    for _ in range(TRIES - 1):
        assert arrival.advance(1) is None
    assert arrival.advance(1)
    assert member.asked.count("missing_files") == TRIES
    hopeless, _ = on_its_way(fails={verb: TRIES})
    for _ in range(TRIES - 1):
        assert hopeless.advance(1) is None
    with pytest.raises(ProtocolError, match="n0 could not join the run; got it broke"):
        hopeless.advance(1)


@pytest.mark.parametrize(
    ("verb", "lie"),
    [
        ("missing_files", None),
        ("missing_files", "tokenizer.json"),
        ("missing_files", ["../key"]),
        ("missing_files", [3]),
        ("enrol", None),
        ("enrol", b"x"),
        ("enrol", "x"),
        ("enrol", seal_record(newcomer(started(), "n0"), key("n1"))),
        ("enrol", seal_record(newcomer(started(run={"rounds": 9}), "n1"), key("n1"))),
        ("enrol", seal_record(newcomer(started(run={"rounds": 9}), "n0", "auditor"), key("n0"))),
        ("enrol", seal_record(newcomer(started(run={"rounds": 9}), "n0", operator="op-a"), key("n0"))),
        ("enrol", seal_record(newcomer(started(run={"rounds": 9}), "n0"), key("eve"))),
    ],
)
def test_who_lies_is_not_had(verb: str, lie: Any) -> None:
    arrival, member = on_its_way(lies={verb: lie})
    with pytest.raises(BarnraiseError) as error:
        arrival.advance(1)
    assert isinstance(error.value, ProtocolError | FormatError | SignatureError)
    assert member.stored in ({}, FILES)


def test_a_file_that_is_not_there_is_not_sent() -> None:
    def absent(name: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", name)

    play = Play(started())
    play.turn({})
    arrival = Arrival("n0", Spec("contributor", "op"), FakeMember(play), FakeLedger(play), absent)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="n0 asked for tokenizer"):
        arrival.advance(1)
