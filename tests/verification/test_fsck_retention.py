"""Level 1 on files that are missing: those that the manifest's retention lets go, and all others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3
from tests.verification.test_fsck_files import (
    CLOSED,
    DATA,
    ENROLMENTS,
    MANIFEST,
    RUN,
    VOID,
    checkpoints,
    named,
    turn,
)
from verification.fsck_files import FileCheck
from verification.fsck_findings import Dropped, Record, Report
from verification.fsck_index import Index
from verification.fsck_rules import Story

POLICY: Record = {"payload_rounds": 4, "checkpoint_every": 0}
NOT_ALLOWED = "the manifest's retention is not allowed"
GONE = "a checkpoint is missing or empty"


def payload(number: int, slot: int = 1) -> bytes:
    return f"payload of {slot} in {number:04d}"[:7].encode() + bytes([number, slot])


def manifest(lag: int = 0, **policy: Any) -> Record:
    config = {
        **MANIFEST["config"],
        "audit": {"tolerance": [], "lag": lag},
        "credit": {"vest_rounds": 1 + lag},
        "state": {"every": 2},
        "retention": {**POLICY, **policy},
    }
    return {**MANIFEST, "config": config}


class Run:
    """A folder with rounds 1 to `rounds`, each with a payload and a start state of slot 1."""

    def __init__(self, path: Path, index: Index, told: Record, rounds: int = 9) -> None:
        self.path, self.index, self.manifest, self.rounds = path, index, told, rounds
        self.removes: set[int] = set()
        self.names: dict[int, bytes] = {number: payload(number) for number in range(1, rounds + 1)}
        self.put({**DATA, **checkpoints(0, *range(2, rounds, 2), rounds)})
        for number in self.names:
            self.put({self.file(number): self.names[number], self.state(number): self.start(number)})

    def start(self, number: int) -> bytes:
        return f"start {number}".encode()

    def file(self, number: int) -> str:
        return f"payloads/{named(self.names[number])}"

    def state(self, number: int) -> str:
        return f"state/{named(self.start(number))}"

    def put(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)

    def drop(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink()

    def said(self, void: frozenset[int] = frozenset(), *after: Record | None) -> list[tuple[str, str]]:
        """What level 1 says of the folder; a void turn comes before each round of `void` is closed.

        `after` are closes of turns of the next round.
        """
        report = Report()
        lag = self.manifest["config"]["audit"].get("lag", 0)
        with Index() as index:
            check = FileCheck(self.path, self.manifest, RUN, index, report, None)
            check.payload_length = 9  # of what `payload` makes
            for number, attempt in itertools.product(range(1, self.rounds + 1), (0, 1)):
                if attempt == 0 and number not in void:
                    continue
                told = {"round": number, "attempt": attempt, "snapshot": True, "roster": [], "auditors": []}
                opening = {"payload": b3(self.names[number]), "start_state": b3(self.start(number))}
                removed = [{"round": number, "attempt": attempt, "evidence": None, "slot": 9}]
                settlement = {"removed": removed if number in self.removes else [], "overruled": []}
                check.turn(
                    turn(
                        open=told,
                        reveals={1: {"opening": opening}},
                        reveal_close={"revealed": [1] if attempt else []},
                        close=CLOSED if attempt else VOID,
                        settlement=settlement if lag else None,
                    )
                )
            for attempt, close in enumerate(after):
                told = {"round": self.rounds + 1, "attempt": attempt, "roster": [], "auditors": []}
                check.turn(turn(open={**told, "snapshot": False}, reveals={}, close=close))
            check.end(Story(ENROLMENTS, turn(), rounds=self.rounds, run_close={}, whole=True))
            self.dropped = check.dropped
        return sorted((failure.where, failure.what) for failure in report.failures)

    def missing(self, number: int) -> list[tuple[str, str]]:
        of = f"slot 1 in round {number} attempt 1 is missing or cannot be read"
        return sorted(
            [(self.file(number), f"the payload of {of}"), (self.state(number), f"the start state of {of}")]
        )


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as made:
        yield made


@pytest.fixture
def run(tmp_path: Path, index: Index) -> Run:
    return Run(tmp_path / "run", index, manifest())


def test_a_whole_folder_is_fine_and_nothing_is_dropped(run: Run) -> None:
    assert run.said() == []
    assert run.dropped is None


def test_what_the_policy_lets_go_may_be_missing(run: Run) -> None:
    """Nine rounds, the last four kept: five may go, of which four lie up to a checkpoint."""
    for number in (1, 2, 3, 4):
        run.drop(run.file(number), run.state(number))
    assert run.said() == []
    assert run.dropped == Dropped(rounds=4, payloads=4)


@pytest.mark.parametrize("number", [5, 6, 9])
def test_what_it_does_not_let_go_may_not(run: Run, number: int) -> None:
    run.drop(run.file(number), run.state(number), run.file(1))
    assert run.said() == run.missing(number)


def test_it_is_a_question_of_closed_rounds(tmp_path: Path, index: Index) -> None:
    """Not of void turns."""
    for rounds, may in ((8, True), (7, False)):
        run = Run(tmp_path / str(rounds), index, manifest(), rounds)
        run.drop(run.file(4), run.state(4))
        void = frozenset(range(1, rounds + 1))
        assert run.said() == run.said(void) == ([] if may else run.missing(4))
        assert run.said(frozenset(), VOID, VOID, None) == run.said()


def test_a_later_round_that_names_it_too_keeps_it(run: Run) -> None:
    run.drop(run.file(2), run.state(2), run.file(7))
    run.names[7] = run.names[2]
    assert run.said() == [run.missing(7)[0]]
    run.put({run.file(7): run.names[7]})
    assert run.said() == []


def test_what_is_there_and_named_twice_is_not_missing(run: Run) -> None:
    run.drop(run.file(1), run.file(4))
    run.names[4] = run.names[3]
    assert run.said() == []
    assert run.dropped == Dropped(rounds=2, payloads=1)


def test_an_archive_is_fine_if_its_digests_are_right(run: Run) -> None:
    for number in (1, 2, 3, 4):
        run.drop(run.file(number), run.state(number))
    run.put({run.file(4): run.names[4], run.file(3): run.names[3]})
    assert run.said() == []
    assert run.dropped == Dropped(rounds=2, payloads=2)
    run.put({run.file(4): b"something"})
    assert run.said() == [(run.file(4), "the payload of slot 1 in round 4 attempt 1 has another digest")]


def test_only_states_missing_is_nothing_that_a_replay_lacks(run: Run) -> None:
    run.drop(run.state(1), run.state(4))
    assert run.said() == []
    assert run.dropped is None


def test_a_dangling_link_is_not_missing(run: Run) -> None:
    run.drop(run.file(1))
    (run.path / run.file(1)).symlink_to(run.path / "nowhere")
    assert run.said() == [run.missing(1)[0]]


def test_without_a_policy_everything_is_there(run: Run) -> None:
    run.drop(run.file(1), run.state(1))
    assert run.said() == []
    run.manifest = manifest(payload_rounds=0)
    assert run.said() == run.missing(1)
    del run.manifest["config"]["retention"]
    assert run.said() == run.missing(1)


def test_checkpoints_below_may_be_thinned_and_no_others(run: Run) -> None:
    run.drop(*checkpoints(2))
    assert run.said() == [(name, GONE) for name in sorted(checkpoints(2))]
    run.manifest = manifest(checkpoint_every=6)
    assert run.said() == []
    run.put(checkpoints(2))
    assert run.said() == [], "an archive"
    run.drop(*checkpoints(0, 2, 4))
    gone = [(name, GONE) for name in sorted(checkpoints(0, 4))]
    assert run.said() == gone, "not the one from which the oldest round that is kept starts"


def test_a_checkpoint_that_may_be_missing_is_a_file_where_it_is_there(run: Run) -> None:
    """Level 2 reads whatever lies there, and a pipe would hold it up for ever."""
    run.manifest = manifest(checkpoint_every=6)
    run.drop(*checkpoints(2))
    name = min(checkpoints(2))
    os.mkfifo(run.path / name)
    assert run.said() == [(name, "an unexpected file lies in the run folder")]


def test_thinned_checkpoints_keep_a_schedule_of_their_own(tmp_path: Path, index: Index) -> None:
    run = Run(tmp_path / "run", index, manifest(checkpoint_every=4), 15)
    run.drop(*checkpoints(2, 6))
    assert run.said() == []
    run.drop(*checkpoints(4))
    assert run.said() == [(name, GONE) for name in sorted(checkpoints(4))]


def test_a_replay_does_not_begin_at_a_checkpoint_that_was_thinned(run: Run) -> None:
    run.manifest = manifest(checkpoint_every=6)
    run.drop(run.file(1), *checkpoints(2))
    assert run.said() == []
    assert run.dropped == Dropped(rounds=4, payloads=1)


@pytest.mark.parametrize(
    ("removes", "lost", "floor"),
    [(set(), 4, 4), ({4}, 2, 2), ({3}, 2, 2), ({5}, 4, 4), ({2, 4}, 0, 0), ({9}, 4, 4)],
)
def test_where_audits_lag_only_firm_rounds_count(
    tmp_path: Path, index: Index, removes: set[int], lost: int, floor: int
) -> None:
    run = Run(tmp_path / "run", index, manifest(lag=1, payload_rounds=5))
    run.removes = removes
    for number in range(1, lost + 1):
        run.drop(run.file(number), run.state(number))
    assert run.said() == []
    assert run.dropped == (Dropped(rounds=floor, payloads=lost) if lost else None)
    run.drop(run.file(lost + 1), run.state(lost + 1))
    assert run.said() == run.missing(lost + 1)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"payload_rounds": 2}, "payload_rounds 0, or 3 and more"),
        ({"payload_rounds": -1}, "an integer in [0, 9007199254740991]"),
        ({"payload_rounds": True}, "an integer in [0, 9007199254740991]"),
        ({"payload_rounds": None}, "an integer in [0, 9007199254740991]"),
        (
            {"checkpoint_every": 3},
            "checkpoint_every 0, or with payload_rounds a multiple of checkpoint.every",
        ),
        (
            {"payload_rounds": 0, "checkpoint_every": 4},
            "checkpoint_every 0, or with payload_rounds a multiple of checkpoint.every",
        ),
    ],
)
def test_policies_that_are_not_allowed_let_nothing_go(run: Run, policy: Record, expected: str) -> None:
    run.manifest = manifest(**policy)
    run.drop(run.file(1))
    assert run.said() == [("log entry 0, manifest", NOT_ALLOWED), run.missing(1)[0]]
    report = Report()
    FileCheck(run.path, run.manifest, RUN, run.index, report, None)
    assert [failure.expected for failure in report.failures] == [expected]


def test_a_policy_that_is_no_object(run: Run) -> None:
    run.manifest["config"]["retention"] = [4]
    assert run.said() == [("log entry 0, manifest", NOT_ALLOWED)]


def test_the_index_gives_names_in_order_from_a_start(index: Index) -> None:
    for name in (b"b", b"a", b"\xff", b"ab"):
        index.add("kind", name)
        index.add("other", name + b"!")
    assert list(index.names("kind")) == [b"a", b"ab", b"b", b"\xff"]
    assert list(index.names("kind", b"ab")) == [b"ab", b"b", b"\xff"]
    assert list(index.names("none")) == []
