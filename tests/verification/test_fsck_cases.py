"""Cases on verdicts, checked by themselves: on slots that are accepted, of more looks, with an appeal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, sha
from tests.verification.test_fsck_files import (
    CASE,
    CLOSED,
    FILES,
    FOLDER,
    OF,
    STRAY,
    VERDICTS,
    Folder,
    turn,
)
from tests.verification.test_fsck_traces import LEAVES, OPENING, TRACE, partly
from verification.fsck_findings import Record
from verification.fsck_index import Index

OPEN: Record = {
    "round": 3,
    "attempt": 0,
    "snapshot": True,
    "auditors": [],
    "roster": [
        {"slot": n, "member": name, "operator": "o", "class": "c"} for n, name in ((0, "bob"), (1, "ann"))
    ],
}
OVERRULED = {**CASE, "reason": "overruled"}
WRONG = [(f"{FOLDER}/case.json", f"the files in {OF} are wrong")]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Index() as index:
        yield Folder(tmp_path / "run", index)


def case_of(case: Record, files: dict[str, bytes]) -> Record:
    return {**case, "files": {name: b3(data) for name, data in files.items()}}


def on_accepted(
    folder: Folder, case: Record, files: dict[str, bytes] = FILES, *, late: bool = False, **over: Any
) -> list[tuple[str, str]]:
    """What a turn says in which two were overruled at slot 1, whose case this is."""
    data = canon(case_of(case, files))
    folder.put({f"{FOLDER}/{name}": content for name, content in {**files, "case.json": data}.items()})
    line = {"auditor": "x", "evidence": sha(data), "look": 1, "slot": 1}
    lines = [line, {**line, "auditor": "y", "look": 3}]
    lines.append({"auditor": "z", "evidence": None, "look": 1, "slot": 0})
    told = {"close": {**CLOSED, "overruled": lines}}
    if late:
        told = {"settlement": {"removed": [], "overruled": lines}}
    folder.check.turn(turn(**{"open": OPEN, **told, **over}))
    return folder.said()


@pytest.mark.parametrize("late", [False, True])
def test_a_case_on_an_accepted_slot(folder: Folder, late: bool) -> None:
    assert on_accepted(folder, OVERRULED, late=late) == []
    folder.put({f"{FOLDER}/more": b""})
    assert [said for said in folder.end() if said[0].startswith("evidence")] == [(f"{FOLDER}/more", STRAY)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", [{"reason": "failed-audit"}, {"member": "x"}, {"slot": 0}, {"round": 2}])
def test_a_case_on_an_accepted_slot_that_says_something_else(
    folder: Folder, change: Record, late: bool
) -> None:
    found = on_accepted(folder, {**OVERRULED, **change}, late=late)
    assert found == [(f"{FOLDER}/case.json", f"the {key} in {OF} is wrong") for key in change]


def test_a_case_of_a_rejected_slot_is_looked_at_for_what_it_was_rejected(folder: Folder) -> None:
    data = canon(CASE)
    folder.put({f"{FOLDER}/{name}": content for name, content in {**FILES, "case.json": data}.items()})
    line = {"evidence": sha(data), "member": "ann", "reason": "failed-audit", "slot": 1}
    lines = [{"auditor": "x", "evidence": sha(data), "look": 1, "slot": 1}]
    folder.check.turn(turn(open=OPEN, close={**CLOSED, "rejected": [line], "overruled": lines}))
    assert folder.said() == []
    place = {"round": 3, "attempt": 0}
    settled = {"removed": [{**line, **place}], "overruled": lines}
    folder.check.turn(turn(open=OPEN, settlement=settled))
    assert folder.said() == []
    # What follows an earlier turn's removal is another turn's line.
    folder.check.turn(turn(open=OPEN, settlement={**settled, "removed": [{**line, **place, "round": 4}]}))
    assert folder.said() == [(f"{FOLDER}/case.json", f"the reason in {OF} is wrong")]


def test_a_case_on_a_slot_of_nobody(folder: Folder) -> None:
    """That there is no such slot is for the close's check to say."""
    lines = [{"auditor": "x", "evidence": sha(b""), "look": 1, "slot": 9}]
    folder.check.turn(turn(open=OPEN, close={**CLOSED, "overruled": lines}))
    assert folder.said() == []


MORE = (*VERDICTS, {"slot": 1, "look": 3}, {"slot": 1, "look": 4})
LOOKS = {"verdict-3": b"three", "verdict-4": b"four"}


@pytest.mark.parametrize("reason", ["failed-audit", "overruled"])
def test_a_case_has_every_verdict_and_the_appeal(folder: Folder, reason: str) -> None:
    def said(files: dict[str, bytes], **over: Any) -> list[tuple[str, str]]:
        folder.report.failures.clear()
        if reason == "overruled":
            return on_accepted(folder, OVERRULED, files, **over)
        data = canon(case_of(CASE, files))
        folder.put({f"{FOLDER}/{name}": content for name, content in {**files, "case.json": data}.items()})
        line = {"evidence": sha(data), "member": "ann", "reason": reason, "slot": 1}
        folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, **over))
        return folder.said()

    assert said({**FILES, **LOOKS}, verdicts=MORE) == []
    assert said(FILES, verdicts=MORE) == WRONG
    assert said({**FILES, "verdict-3": b"three"}, verdicts=MORE) == WRONG
    assert said({**FILES, **LOOKS}) == WRONG
    assert said(FILES, verdicts=VERDICTS[:2]) == WRONG
    appealed = {**FILES, "appeal": b"appeal"}
    assert said(appealed, appeals={1: {}, 0: {}}) == []
    assert said(appealed) == WRONG
    assert said(appealed, appeals={0: {}}) == WRONG
    assert said(FILES, appeals={1: {}}) == WRONG


def test_a_malformed_payload_has_no_verdicts(folder: Folder) -> None:
    files = {name: FILES[name] for name in ("payload", "manifest", "open", "reveal")}
    data = canon(case_of({**CASE, "reason": "malformed-payload"}, files))
    folder.put({f"{FOLDER}/{name}": content for name, content in {**files, "case.json": data}.items()})
    line = {"evidence": sha(data), "member": "ann", "reason": "malformed-payload", "slot": 1}
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, appeals={1: {}}))
    assert folder.said() == []


def test_a_case_on_an_accepted_slot_has_the_trace_that_was_served(folder: Folder) -> None:
    told: Record = {"reveals": {1: {"opening": OPENING}}, "draw": partly(2)}
    assert on_accepted(folder, OVERRULED, {**FILES, "trace": TRACE}, **told) == []
    assert on_accepted(folder, OVERRULED, **told) == WRONG
    folder.report.failures.clear()
    other = TRACE[:23] + bytes(32) + TRACE[55:]
    found = on_accepted(folder, OVERRULED, {**FILES, "trace": other}, **told)
    assert found == [(f"{FOLDER}/trace", f"trace in {OF} does not give the trace's root")]
    assert len(LEAVES) == OPENING["trace_leaves"]
