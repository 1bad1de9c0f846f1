"""Lists and heads of a turn: one wrong thing in one of them is named alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import note_of
from tests.verification.test_fsck_lies import lying
from tests.verification.test_fsck_rules import Record, failures, listed_as
from tests.verification.test_fsck_writer import Writer

# --- heads, rosters, commit-closes: the one thing that is wrong, and how it is called ---


def head_of(entries: Any, signer: str = "coordinator") -> Any:
    """A reveal-close's head over what `entries` makes of the entries that it should sign."""

    def change(record: Record, writer: Writer) -> None:
        record["head"] = note_of(entries(writer.entries[: writer.heads[-1]]), signer)

    return change


UNSIGNED = "head 1 is not signed with the log's key"
OTHERS = "head 1 does not sign exactly the entries before it"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (head_of(lambda entries: entries[:-1]), [OTHERS]),
        (head_of(lambda entries: [*entries, b"more"]), [OTHERS]),
        (
            head_of(lambda entries: [*entries[:-1], b"another"]),
            [f"{OTHERS}: two heads of one size are signed"],
        ),
        (head_of(lambda entries: [*entries[:-1], b"another"], "ann"), [UNSIGNED, OTHERS]),
        (head_of(list, "ann"), [UNSIGNED]),
        (head_of(list), []),
    ],
)
def test_two_heads_of_one_size_take_two_signatures(tmp_path: Path, change: Any, expected: list[str]) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}, lie=lying("reveal-close", change)).run(turns=1)
    assert failures(writer) == expected


@pytest.mark.parametrize("slot", [5, 9, 2**53 - 1])
def test_a_roster_names_a_slot_that_nobody_has(tmp_path: Path, slot: int) -> None:
    def change(record: Record, _: Writer) -> None:
        record["roster"].append({**record["roster"][-1], "slot": slot})

    writer = Writer(tmp_path / "run", script={}, silent={}, lie=lying("round-open", change)).run(turns=1)
    what = failures(writer)
    assert len(what) == 1
    assert what[0].startswith("the roster of round 1 names slots that do not exist, twice or out of order")


def backwards(record: Record, _: Writer) -> None:
    record["committed"].reverse()
    record["ms"].reverse()


def one_left_out(record: Record, _: Writer) -> None:
    record["committed"].pop()
    record["ms"].pop()


def one_too_many(record: Record, _: Writer) -> None:
    record["committed"].append(9)
    record["ms"].append(100)


@pytest.mark.parametrize("change", [backwards, one_left_out, one_too_many])
def test_a_wrong_list_of_who_committed_is_all_that_is_wrong(tmp_path: Path, change: Any) -> None:
    over: dict[str, Any] = {"script": {}, "silent": {}, "timing__mode": "fixed"}
    writer = Writer(tmp_path / "run", lie=lying("commit-close", change), **over).run(turns=2)
    assert failures(writer) == ["the committed slots of round 1 are wrong"]


REFUSED = {(0, 1): "unrevealed", (0, 3): "mismatch"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r, _: r["revealed"].reverse(), "the revealed slots of round 1 are not in order, each once"),
        (lambda r, _: r["refused"].reverse(), "the refused slots of round 1 are not in order, each once"),
        (
            lambda r, _: r["refused"].append({"reason": "unrevealed", "slot": 9}),
            "revealed and refused of round 1 are not what committed",
        ),
        (lambda r, _: r["refused"].pop(0) and None, "revealed and refused of round 1 are not what committed"),
    ],
)
def test_a_wrong_list_in_a_reveal_close_is_all_that_is_wrong(
    tmp_path: Path, change: Any, expected: str
) -> None:
    writer = Writer(tmp_path / "run", script=REFUSED, silent={}, lie=lying("reveal-close", change))
    assert failures(writer.run(turns=1)) == [expected]


def test_what_was_not_revealed_is_not_taken_for_revealed(tmp_path: Path) -> None:
    lie = lying("reveal-close", listed_as(None, 1))
    what = failures(Writer(tmp_path / "run", script=REFUSED, silent={}, lie=lie).run(turns=1))
    assert what[0] == "slot 1 in round 1 is listed as revealed though no reveal is logged"


@pytest.mark.parametrize("turn", [0, 1])
def test_nobody_owes_a_state_at_the_start_or_without_a_snapshot(tmp_path: Path, turn: int) -> None:
    lie = lying("reveal-close", listed_as("unserved", 3), turn=turn)
    writer = Writer(tmp_path / "run", script={}, silent={}, lie=lie).run(turns=2)
    opened = next(r for k, r, _ in writer.records if k == "round-open" and r["turn"] == turn)
    zero = opened["roster"][3]["start_state"] == writer.manifest["zero_state"]
    assert (opened["snapshot"], zero) == ((True, True) if turn == 0 else (False, False))
    expected = f"slot 3 in round {turn + 1} is listed as unserved though it opens its commitment"
    assert failures(writer)[0] == f"{expected} and matches the open"
