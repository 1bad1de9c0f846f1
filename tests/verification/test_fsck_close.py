"""The round-close: each rule alone, in runs of a turn or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_lies import lying, popper, setter, undone
from tests.verification.test_fsck_writer import Writer
from verification.fsck import Failure, check_run

Record = dict[str, Any]
NOT_DONE = {(0, 1, 0): 9}


def found_in(writer: Writer, turns: int = 1) -> list[Failure]:
    return list(check_run(writer.run(turns=turns).write()).failures)


def failures(folder: Path, turns: int = 1, kind: type[Writer] = Writer, **over: Any) -> list[str]:
    writer = kind(folder / "run", **{"script": {}, "silent": {}, **over})
    return [f.what for f in found_in(writer, turns)]


# --- settling ---


def test_a_slot_is_settled_once(tmp_path: Path) -> None:
    lie = lying("round-close", lambda r, _: r["rejected"].append(r["rejected"][0]))
    assert failures(tmp_path, script={(0, 0): "late"}, lie=lie) == [
        "slot 0 is settled 2 times in round 1",
        "the rejected slots of round 1 are not in order, each once",
    ]


def test_a_slot_of_nobody_is_not_settled(tmp_path: Path) -> None:
    lie = lying("round-close", lambda r, _: r["accepted"].append({**r["accepted"][0], "slot": 9}))
    assert failures(tmp_path, lie=lie) == ["slot 9 is settled 1 times in round 1"]


def test_every_slot_of_the_roster_is_settled(tmp_path: Path) -> None:
    lie = lying("round-close", popper("rejected"))
    found = failures(tmp_path, script={(0, 0): "late"}, lie=lie)
    assert found == ["slot 0 is neither accepted nor rejected in round 1"]


def test_only_an_audit_that_was_not_done_is_called_so(tmp_path: Path) -> None:
    wrongly = "slot 0 is settled wrongly in round 1"
    accepted = "slot 0 is accepted in round 1 though its drawn audit was not done"
    over: Any = {"lie": lying("round-close", undone)}
    assert failures(tmp_path / "not done", silent=NOT_DONE, **over)[0] == accepted
    over = {"lie": lying("round-close", undone)}
    assert failures(tmp_path / "dispute", script={(0, 0): "dispute"}, **over)[0] == wrongly
    over = {"lie": lying("round-close", setter("rejected.0.reason", "disputed"))}
    assert failures(tmp_path / "rejected", silent=NOT_DONE, **over) == [wrongly]


class Settling(Writer):
    """Settles slot 0 of its first turn by `said`, whatever the rules say, and goes on from that."""

    said: str | None = None

    def close_turn(self, roster: Any, fate: Any, *rest: Any) -> None:
        if self.turn == 0:
            fate[0] = self.said
        super().close_turn(roster, fate, *rest)


@pytest.mark.parametrize(
    ("script", "said"),
    [("dispute", None), ("dispute", "unaudited"), ("late", "unrevealed"), ("unrevealed", "late")],
)
def test_what_follows_is_judged_by_what_the_close_says(tmp_path: Path, script: str, said: str | None) -> None:
    kind = type("Other", (Settling,), {"said": said})
    found = failures(tmp_path, 2, kind, script={(0, 0): script})
    assert found == ["slot 0 is settled wrongly in round 1"]


def test_what_was_never_revealed_counts_as_rejected(tmp_path: Path) -> None:
    def accept(record: Record, _: Writer) -> None:
        record["rejected"].pop(0)
        record["accepted"].insert(0, {**record["accepted"][0], "slot": 0})

    found = failures(tmp_path, 2, script={(0, 0): "late"}, lie=lying("round-close", accept))
    assert found == ["slot 0 is settled wrongly in round 1"]


# --- rejected ---


def test_rejected_slots_are_listed_in_order(tmp_path: Path) -> None:
    lie = lying("round-close", lambda r, _: r["rejected"].reverse())
    found = failures(tmp_path, script={(0, 0): "late", (0, 3): "late"}, lie=lie)
    assert found == ["the rejected slots of round 1 are not in order, each once"]


def test_a_rejected_slot_is_its_member_s(tmp_path: Path) -> None:
    lie = lying("round-close", setter("rejected.0.member", "bob"))
    found = failures(tmp_path, script={(0, 0): "late"}, lie=lie)
    assert found == ["the member of rejected slot 0 in round 1 is wrong"]


# --- the validation loss ---

ALL_LATE = {(0, slot): "late" for slot in range(5)}
NOT_DUE = "the validation loss of round {} is there though none is due"


@pytest.mark.parametrize(
    ("turn", "script", "value", "expected"),
    [
        (0, {}, None, ("the validation loss of round 1 is missing", "a number", "null")),
        (0, ALL_LATE, 0, (NOT_DUE.format(1), "null", "0")),
        (0, ALL_LATE, 7, (NOT_DUE.format(1), "null", "7")),
        (1, {}, 0, (NOT_DUE.format(2), "null", "0")),
    ],
)
def test_when_a_validation_loss_is_due(
    tmp_path: Path, turn: int, script: Any, value: int | None, expected: tuple[str, str, str]
) -> None:
    lie = lying("round-close", setter("val_loss", value), turn=turn)
    writer = Writer(tmp_path / "run", script=script, silent={}, lie=lie, eval__every=turn + 2)
    assert [(f.what, f.expected, f.got) for f in found_in(writer, turn + 1)] == [expected]
