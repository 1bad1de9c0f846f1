"""The coordinator's turn on a real run: what it measures, and what it does about wrong bytes and thieves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Answer, LocalPool
from pipeline.adversaries import ADVERSARIES, Adversary
from pipeline.coordinator import Coordinator
from pipeline.member import Member
from pipeline.work import Work, do_work
from tests.tiny import make_run, run_to_end, tiny_config
from verification.encoding import blake3_digest, parse_canonical
from verification.errors import ProtocolError
from verification.merkle import Inclusion
from verification.records import CommitClose, Draw, Record, Reveal, RosterEntry, RoundClose, RoundOpen

RARELY = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}


class FrontRunner(Adversary):
    """Does a later slot's work on that slot's windows and hands it in as its own, in the same turn."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        weights, start = self.loaded(open_, entry, checkpoint)
        return do_work(self.job, self.data, open_, open_.entry(3), weights, start)


class Swapper(Adversary):
    """Reveals what it committed to, with other bytes of the right length for a payload."""

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        envelope, payload = super().reveal(turn, head, opened, committed)
        return envelope, bytes(len(payload))


class Mangler(Adversary):
    """Commits to bytes of the right length that are no payload."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        honest = self.honest(open_, entry, checkpoint)
        return self.with_payload(honest, b"\xff" * len(honest.payload))


class Padder(Adversary):
    """Commits to a payload that is longer than the codec has them."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        honest = self.honest(open_, entry, checkpoint)
        return self.with_payload(honest, honest.payload + b"\0" * 5_000_000)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (FrontRunner, Swapper, Mangler, Padder):
        monkeypatch.setitem(ADVERSARIES, kind.__name__.lower(), kind)


def play(root: Path, drills: Mapping[str, str], **sections: Any) -> tuple[Coordinator, list[Record]]:
    """A run of one round, and the records of its log."""
    make_run(root / "run", root / "home", tiny_config(run={"rounds": 1}, **sections))
    coordinator = run_to_end(root / "run", root / "home", drills=drills)
    return coordinator, list(coordinator.desk.ledger.records())


def last(records: list[Record], kind: type[Any]) -> Any:
    return [record for record in records if isinstance(record, kind)][-1]


def test_who_hands_in_anothers_payload_in_the_same_turn_is_found_and_the_owner_is_not_harmed(
    tmp_path: Path,
) -> None:
    coordinator, records = play(tmp_path, {"c01": "frontrunner"}, audit=RARELY)
    payloads = {r.slot: r.opening.payload for r in records if isinstance(r, Reveal)}
    assert payloads[1] == payloads[3]
    assert [item.slot for item in last(records, Draw).drawn] == [1, 3]
    close = last(records, RoundClose)
    assert [(item.member, item.reason) for item in close.rejected] == [("c01", "failed-audit")]
    assert [item.member for item in close.accepted] == ["c00", "c02", "c03"]
    owner = coordinator.state.standings["c03"]
    assert (owner.strikes, owner.suspect, owner.quarantined, owner.accepted) == (0, False, False, 1)


@pytest.mark.parametrize("kind", ["swapper", "padder"])
def test_other_bytes_than_committed_or_of_another_length_are_no_reveal_and_are_not_kept(
    tmp_path: Path, kind: str
) -> None:
    coordinator, records = play(tmp_path, {"c02": kind})
    close = last(records, RoundClose)
    assert [(item.member, item.reason, item.evidence) for item in close.rejected] == [
        ("c02", "unrevealed", None)
    ]
    # Its envelope is genuine, and in the log.
    assert {record.slot for record in records if isinstance(record, Reveal)} == {0, 1, 2, 3}
    folder = coordinator.desk.folder.path
    assert len(list((folder / "payloads").iterdir())) == 3
    assert not list((folder / "evidence").iterdir())


def test_a_malformed_payload_is_kept_as_evidence_under_the_digest_that_was_opened(tmp_path: Path) -> None:
    coordinator, records = play(tmp_path, {"c02": "mangler"})
    (refused,) = last(records, RoundClose).rejected
    assert (refused.member, refused.reason) == ("c02", "malformed-payload")
    (case,) = (coordinator.desk.folder.path / "evidence").iterdir()
    told: Any = parse_canonical((case / "case.json").read_bytes())
    opened = next(r.opening.payload for r in records if isinstance(r, Reveal) and r.slot == 2)
    assert told["files"].keys() == {"manifest", "open", "payload", "reveal"}
    assert told["files"]["payload"] == opened
    assert blake3_digest((case / "payload").read_bytes()) == opened
    assert refused.evidence is not None


def test_a_turn_taken_up_again_measures_nothing_and_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(
        tmp_path / "run",
        tmp_path / "home",
        tiny_config(run={"rounds": 2}, timing={"mode": "measured", "deadline_ms": 600_000}),
    )

    class KilledError(Exception):
        pass

    def killed(self: Coordinator) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "collect_commitments", killed)
        with pytest.raises(KilledError):
            run_to_end(tmp_path / "run", tmp_path / "home")
    coordinator = run_to_end(tmp_path / "run", tmp_path / "home")
    records = list(coordinator.desk.ledger.records())
    first, second = (record.ms for record in records if isinstance(record, CommitClose))
    assert first == (0, 0, 0, 0)
    assert min(second) >= 1
    opens = [record for record in records if isinstance(record, RoundOpen)]
    assert [entry.steps for entry in opens[1].roster] == [entry.steps for entry in opens[0].roster]


def test_an_answer_within_the_millisecond_counts_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Instant(LocalPool):
        def call(self, method: str, arguments: Any, *, deadline_ms: int = 0) -> dict[str, Answer]:
            answers = super().call(method, arguments, deadline_ms=deadline_ms)
            return {name: Answer(a.value, a.error, a.late, 0) for name, a in answers.items()}

    monkeypatch.setattr("pipeline.run.LocalPool", Instant)
    _, records = play(tmp_path, {})
    assert last(records, CommitClose).ms == (1, 1, 1, 1)


def test_a_member_that_takes_no_files_after_enrolment_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Member.missing_files

    def no_files(self: Member) -> list[str]:
        if self.name == "c01":
            raise ProtocolError("no room")
        return honest(self)

    make_run(tmp_path / "run", tmp_path / "home", tiny_config(run={"rounds": 1}))
    with monkeypatch.context() as patch:
        patch.setattr(Member, "missing_files", no_files)
        with pytest.raises(ProtocolError, match="c01 could not join"):
            run_to_end(tmp_path / "run", tmp_path / "home")
        with patch.context() as before:
            before.setattr(Member, "missing_files", honest)
            before.setattr(Coordinator, "open", no_open)
            with pytest.raises(KeyboardInterrupt):
                run_to_end(tmp_path / "run", tmp_path / "home")
        said: list[str] = []
        coordinator = run_to_end(tmp_path / "run", tmp_path / "home", tell=said.append)
    assert coordinator.state.finished
    assert [line for line in said if line.startswith("c01 could not join")]


def no_open(self: Coordinator) -> None:
    """Stopped by its user, with everyone enrolled and no turn open."""
    raise KeyboardInterrupt
