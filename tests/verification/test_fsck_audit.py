"""From the draw to the last verdict: each rule alone, in runs of one turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_lies import lying
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

Record = dict[str, Any]
THREE = ["w1.example", "w2.example", "w3.example"]


def failures(folder: Path, **over: Any) -> list[str]:
    writer = Writer(folder / "run", **{"script": {}, "silent": {}, **over}).run(turns=1)
    return [f.what for f in check_run(writer.write()).failures]


@pytest.mark.parametrize(
    ("what", "script"), [("served", {}), ("unserved", {(0, 1): "noserve", (0, 3): "noserve"})]
)
def test_who_served_is_listed_by_slot(tmp_path: Path, what: str, script: Any) -> None:
    def backwards(record: Record, _: Writer) -> None:
        record[what].reverse()

    found = failures(tmp_path, script=script, lie=lying("served", backwards))
    assert found == [f"the {what} slots of round 1 are not in order, each once"]


@pytest.mark.parametrize("look", [1, 2])
def test_a_link_held_back_makes_a_draw_short(tmp_path: Path, look: int) -> None:
    lots = {"audit__rate_ppm": 0, "audit__probation_rounds": 0, "audit__second_look_ppm": 0}
    if look == 2:
        del lots["audit__rate_ppm"], lots["audit__probation_rounds"]
    drawn: list[int] = []

    def count(record: Record, _: Writer) -> None:
        drawn.append(len(record["drawn" if look == 1 else "looks"]))

    lie = lying("draw" if look == 1 else "second-draw", count)
    assert failures(tmp_path, witnesses=THREE, mute={(0, look): [THREE[1]]}, lie=lie, **lots) == []
    assert drawn[0] > 2


def give(writer: Writer, look: int, slot: int) -> str:
    """Log the verdict of the first who may look at a slot; who that is."""
    last = {kind: record for kind, record, _ in writer.records}
    names = next(line["auditors"] for line in last["draw"]["drawn"] if line["slot"] == slot)
    writer.silent = {}
    roster = last["round-open"]["roster"]
    writer.log(writer.ask(look, slot, names, {}, writer.committed, [], roster))
    return str(names[0])


@pytest.mark.parametrize("look", [1, 2, 3, 9])
def test_a_verdict_of_a_look_that_is_not_due(tmp_path: Path, look: int) -> None:
    """Neither a first one that first-looks does not tell, nor any other that nobody was called for."""
    by: list[str] = []

    def change(_: Record, writer: Writer) -> None:
        by.append(give(writer, look, 4))

    silent = {(0, 1, 4): 9} if look == 1 else {}
    found = failures(tmp_path, silent=silent, lie=lying("round-close", change), audit__second_look_ppm=0)
    of = f"look {look} of slot 4 in round 1"
    assert found == [f"{by[0]} was not to give a verdict for {of}, or one was given before"]


@pytest.mark.parametrize("kind", ["first-looks", "second-draw"])
def test_no_verdict_stands_before_the_second_draw(tmp_path: Path, kind: str) -> None:
    """Nobody may read what others found before it is known who is to look again."""

    def early(record: Record, writer: Writer) -> Any:
        verdict = writer.given[1, 0]
        return [("verdict", verdict, writer.signer(verdict["auditor"])), (kind, record, "coordinator")]

    [what] = failures(tmp_path, lie=lying(kind, early))
    assert what.startswith("a record is out of order")


def test_a_verdict_of_a_slot_that_was_not_served(tmp_path: Path) -> None:
    by: list[str] = []

    def change(_: Record, writer: Writer) -> None:
        by.append(give(writer, 1, 4))

    lie = lying("round-close", change)
    found = failures(tmp_path, script={(0, 4): "noserve"}, lie=lie, audit__second_look_ppm=0)
    of = "look 1 of slot 4 in round 1"
    assert found == [f"{by[0]} was not to give a verdict for {of}, or one was given before"]


@pytest.mark.parametrize("look", [1, 2])
def test_a_verdict_comes_once(tmp_path: Path, look: int) -> None:
    by: list[str] = []

    def twice(kind: str, record: Record, _: Writer) -> Any:
        if kind != "verdict" or record["look"] != look or record["slot"] != 2:
            return record
        by.append(record["auditor"])
        return [(kind, record, record["auditor"])] * 2

    found = failures(tmp_path, lie=twice, audit__second_look_ppm=1_000_000)
    of = f"look {look} of slot 2 in round 1"
    assert found == [f"{by[0]} was not to give a verdict for {of}, or one was given before"]


def test_a_class_nobody_can_check_is_accepted_where_no_audits_are(tmp_path: Path) -> None:
    """With an `audit_ppm` of 0, and not drawn."""
    seen: list[Record] = []
    lie = lying("round-close", lambda record, _: seen.append(record))
    over: Any = {"more": [("fay", "contributor", "f", "c3")], "train__steps": [4, 6, 2, 8, 4, 2]}
    rates: Any = {"audit__rate_ppm": 0, "audit__probation_rounds": 0}
    assert failures(tmp_path / "none", lie=lie, **over, **rates) == []
    assert 5 in [line["slot"] for line in seen[0]["accepted"]]
    lie = lying("round-close", lambda record, _: seen.append(record))
    assert failures(tmp_path / "some", lie=lie, **over, **{**rates, "audit__rate_ppm": 1}) == []
    assert 5 not in [line["slot"] for line in seen[1]["accepted"]]
