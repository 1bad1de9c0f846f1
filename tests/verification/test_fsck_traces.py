"""The trace in a case: whether it must be there, and that it is the one whose root the opening has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verification import test_fsck_files as files
from tests.verification.test_fsck_bytes import b3, canon, opened_trace, sha, trace_root
from tests.verification.test_fsck_files import CASE, CLOSED, FOLDER, OF, PAYLOAD, RERUN, STATE, Folder, turn
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run
from verification.fsck_findings import Record
from verification.fsck_index import Index

LEAVES = [sha(bytes([i])) for i in range(4)]
TRACE = opened_trace(LEAVES, [1])
OPENING = {**files.OPENING, "trace_root": trace_root(LEAVES), "trace_leaves": len(LEAVES)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Index() as index:
        yield Folder(tmp_path / "run", index)


WRONG = [(f"{FOLDER}/case.json", f"the files in {OF} are wrong")]


def partly(*segments: int, slot: int = 1) -> Record:
    """A draw of some of the three segments of a slot."""
    other = {"auditors": [], "segments": [0], "slot": 0}
    return {"drawn": [other, {"auditors": [], "segments": list(segments), "slot": slot}]}


def failed(
    folder: Folder,
    *,
    trace: bytes | None = TRACE,
    draw: Record | None = None,
    reason: str = "failed-audit",
    **opening: Any,
) -> list[tuple[str, str]]:
    """What a turn says of a case against slot 1; by default only segment 2 of it was drawn."""
    files = {"payload": PAYLOAD, "start_state": STATE, **RERUN} | ({} if trace is None else {"trace": trace})
    case = canon({**CASE, "reason": reason, "files": {name: b3(data) for name, data in files.items()}})
    folder.put({f"{FOLDER}/{name}": data for name, data in {**files, "case.json": case}.items()})
    line = {"evidence": sha(case), "member": "ann", "reason": reason, "slot": 1}
    told = {"reveals": {1: {"opening": {**OPENING, **opening}}}, "draw": draw or partly(2)}
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, **told))
    return folder.said()


@pytest.mark.parametrize("segments", [(0,), (2,), (0, 1), (0, 2)])
def test_a_case_of_a_part_of_the_segments_has_the_trace(folder: Folder, segments: tuple[int, ...]) -> None:
    assert failed(folder, draw=partly(*segments)) == []
    assert failed(folder, draw=partly(*segments), trace=None) == WRONG


@pytest.mark.parametrize("draw", [partly(0, 1, 2), partly(2, slot=2)])
def test_a_case_of_all_segments_has_none(folder: Folder, draw: Record) -> None:
    assert failed(folder, draw=draw, trace=None) == []
    assert failed(folder, draw=draw) == WRONG


def test_what_is_no_failed_audit_has_no_trace(folder: Folder) -> None:
    """Whatever lies beside another case is only what the case says it is."""
    assert failed(folder, reason="disputed", trace=b"of any form") == []


TOO_LONG = opened_trace([LEAVES[0]] * 1024, [])


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (b"", "is not an opened trace of 4 leaves"),
        (b"x" + TRACE[1:], "is not an opened trace of 4 leaves"),
        (TRACE[: 23 + 127], "is not an opened trace of 4 leaves"),
        (opened_trace(LEAVES[:3], [1]), "is not an opened trace of 4 leaves"),
        (opened_trace([*LEAVES, LEAVES[0]], [1]), "is not an opened trace of 4 leaves"),
        (opened_trace(LEAVES[::-1], [1]), "does not give the trace's root"),
        (TRACE[:23] + bytes(32) + TRACE[55:], "does not give the trace's root"),
        (TRACE[: 23 + 96] + bytes(32), "does not give the trace's root"),
    ],
)
def test_a_trace_that_is_not_that_of_the_root(folder: Folder, trace: bytes, words: str) -> None:
    assert failed(folder, trace=trace) == [(f"{FOLDER}/trace", f"trace in {OF} {words}")]


def test_a_trace_is_as_long_as_verdicts_can_list_at_most(folder: Folder) -> None:
    root = trace_root([LEAVES[0]] * 1024)
    found = failed(folder, trace=TOO_LONG, trace_root=root, trace_leaves=1024)
    assert found == [(f"{FOLDER}/trace", f"trace in {OF} is not an opened trace of 1023 leaves")]
    folder.report.failures.clear()
    leaves = [LEAVES[0]] * 1023
    fits = {"trace_root": trace_root(leaves), "trace_leaves": 1023}
    assert failed(folder, trace=opened_trace(leaves, []), **fits) == []
    assert failed(folder, trace=opened_trace(leaves, []), trace_root=root, trace_leaves=2**53 - 1)


def test_a_trace_has_the_digest_that_the_case_names(folder: Folder) -> None:
    assert failed(folder) == []
    folder.put({f"{FOLDER}/trace": TRACE[:-1]})
    told = {"reveals": {1: {"opening": OPENING}}, "draw": partly(2)}
    data = (folder.run / FOLDER / "case.json").read_bytes()
    line = {"evidence": sha(data), "member": "ann", "reason": "failed-audit", "slot": 1}
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, **told))
    (folder.run / FOLDER / "trace").unlink()
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, **told))
    assert folder.said() == [
        (f"{FOLDER}/trace", f"trace in {OF} has another digest"),
        (f"{FOLDER}/trace", f"trace in {OF} is missing or cannot be read"),
    ]


def test_a_trace_that_goes_away_while_it_is_checked(folder: Folder) -> None:
    folder.check.trace("evidence/none", OPENING, "the trace")
    assert folder.said() == [("evidence/none", "the trace cannot be read")]


# --- in a run ---

PARTLY: dict[str, Any] = {
    "audit__rate_ppm": 1_000_000,
    "audit__second_look_ppm": 1_000_000,
    "audit__probation_rounds": 0,
}
CHEATS = {(0, slot): "cheat" for slot in (0, 2, 3)}


class Framing(Writer):
    """Writes cases with a trace that `change` makes of the one served, None where there is none."""

    change: Any = staticmethod(lambda trace: trace)

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        digest = super().evidence(line, reason, reveals)
        if digest is None:
            return None
        folder = f"evidence/r{self.round:05d}-a{self.attempt}-s{line['slot']}"
        case = json.loads(self.files[f"{folder}/case.json"])
        trace = self.change(self.files.pop(f"{folder}/trace", None))
        case["files"].pop("trace", None)
        if trace is not None:
            self.files[f"{folder}/trace"] = trace
            case["files"]["trace"] = b3(trace)
        self.files[f"{folder}/case.json"] = canon(case)
        return sha(canon(case))


def framed(path: Path, change: Any, segments: int = 1) -> tuple[set[int], list[str]]:
    """Slots whose audit failed, and what is said of them."""
    writer = Framing(path / "run", script=CHEATS, silent={}, audit__segments=segments, **PARTLY)
    writer.change = change
    writer.run(turns=1)
    rejected = next(r["rejected"] for k, r, _ in writer.records if k == "round-close")
    slots = {line["slot"] for line in rejected if line["reason"] == "failed-audit"}
    return slots, [f.what for f in check_run(writer.write()).failures]


def of(slot: int) -> str:
    return f"the evidence against slot {slot} in round 1"


def test_traces_in_the_cases_of_a_run(tmp_path: Path) -> None:
    slots, found = framed(tmp_path / "honest", lambda trace: trace)
    assert slots >= {2}, "a slot of one segment"
    assert len(slots) > 1, "and one of which a part is drawn"
    assert found == []
    partly = sorted(slots - {2})
    _, found = framed(tmp_path / "missing", lambda _: None)
    assert found == [f"the files in {of(slot)} are wrong" for slot in partly]
    _, found = framed(tmp_path / "extra", lambda _: TRACE, segments=0)
    assert found == [f"the files in {of(slot)} are wrong" for slot in sorted(slots)]
    _, found = framed(tmp_path / "short", lambda trace: trace and trace[:40])
    assert [what.rpartition(" is not an opened trace of ")[0] for what in found] == [
        f"trace in {of(slot)}" for slot in partly
    ]
    _, found = framed(tmp_path / "other", lambda trace: trace and trace[:23] + bytes(32) + trace[55:])
    assert found == [f"trace in {of(slot)} does not give the trace's root" for slot in partly]
