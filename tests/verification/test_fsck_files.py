"""The files beside the log, checked by themselves: made-up turns and stories, one wrong file at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, sha
from verification.fsck_files import FileCheck
from verification.fsck_findings import Record, Report, Turn
from verification.fsck_index import Index
from verification.fsck_rules import Story

RUN = sha(b"run")
PAYLOAD, STATE, ZERO = b"payload", b"state", b"zero"
MANIFEST: Record = {
    "arrays": [["a", [32]]],
    "config": {
        "audit": {"tolerance": []},
        "checkpoint": {"every": 2},
        "compression": {"chunk": 32, "k": 8},
    },
    "dataset": {
        "tokenizer": b3(b"{}"),
        "train": [{"file": "t.arrow", "digest": b3(b"train")}],
        "validation": [{"file": "v.arrow", "digest": b3(b"held out")}],
    },
    "zero_state": b3(ZERO),
}
DATA = {"data/tokenizer.json": b"{}", "data/t.arrow": b"train", "data/v.arrow": b"held out"}
STRAY = "an unexpected file lies in the run folder"
OPENING = {"payload": b3(PAYLOAD), "start_state": b3(STATE)}
# What a rerun takes; of its bytes the checker asks no more than that they are those of the case.
SHORT = {name: name.encode() for name in ("manifest", "open", "reveal")}
RERUN = SHORT | {name: name.encode() for name in ("draw", "verdict-1", "verdict-2", "weights", "windows")}
FILES = {"payload": PAYLOAD, "start_state": STATE, **RERUN}
CASE: Record = {
    "attempt": 0,
    "files": {name: b3(data) for name, data in FILES.items()},
    "member": "ann",
    "reason": "failed-audit",
    "round": 3,
    "run": RUN,
    "slot": 1,
}
OF = "the evidence against slot 1 in round 3"
FOLDER = "evidence/r00003-a0-s1"
CLOSED: Record = {"accepted": [{}], "rejected": [], "overruled": []}
VOID: Record = {**CLOSED, "accepted": []}
VERDICTS = ({"slot": 1, "look": 1}, {"slot": 0, "look": 3}, {"slot": 1, "look": 2})
ENROLMENTS = ({"role": "contributor"}, {"role": "auditor"}, {"role": "auditor"})


def named(data: bytes) -> str:
    """The name of a file that is named by its digest."""
    return b3(data)[7:]


def checkpoints(*rounds: int) -> dict[str, bytes]:
    return {f"checkpoints/round-{n:05d}.{kind}": b"x" for n in rounds for kind in ("safetensors", "outer")}


def turn(*, close: Record | None = CLOSED, **over: Any) -> Turn:
    told: Record = {
        "first_entry": 0,
        "open": {"round": 3, "attempt": 0, "snapshot": True, "roster": [], "auditors": []},
        "commitments": {},
        "commit_close": None,
        "reveals": {1: {"opening": OPENING}},
        "reveal_close": None,
        "draw": None,
        "served": None,
        "verdicts": VERDICTS,
        "second_draw": None,
        "close": close,
    }
    return Turn(**{**told, **over})


class Folder:
    """A run folder and one check of it."""

    def __init__(self, run: Path, index: Index) -> None:
        self.run, self.report, self.told = run, Report(), list[str]()
        self.check = FileCheck(
            run, MANIFEST, RUN, index, self.report, lambda *said: self.told.append("{} {}/{}".format(*said))
        )

    def put(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (self.run / name).parent.mkdir(parents=True, exist_ok=True)
            (self.run / name).write_bytes(data)

    def said(self) -> list[tuple[str, str]]:
        """Every failure up to now."""
        return [(failure.where, failure.what) for failure in self.report.failures]

    def end(self, **over: Any) -> list[tuple[str, str]]:
        """What the end of the check says of a folder whose story is in order; `over` changes the story."""
        story = {"enrolments": ENROLMENTS, "last_turn": turn(), "rounds": 3, "run_close": {}, "whole": True}
        self.check.end(Story(**{**story, **over}))
        return sorted(self.said())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Index() as index:
        made = Folder(tmp_path / "run", index)
        made.put({**DATA, **checkpoints(0, 2, 3)})
        yield made


def test_nothing_is_wrong_with_these(folder: Folder) -> None:
    assert folder.end() == []
    assert folder.told == ["data 1/3", "data 2/3", "data 3/3"]


def test_data_files(folder: Folder) -> None:
    folder.put({"data/t.arrow": b"other", "data/more": b""})
    (folder.run / "data" / "v.arrow").unlink()
    assert folder.end() == [
        ("data/more", STRAY),
        ("data/t.arrow", "data file t.arrow has another digest"),
        ("data/v.arrow", "data file v.arrow is missing or cannot be read"),
    ]


@pytest.mark.parametrize(
    ("name", "whole"),
    [("payloads", True), ("state", True), ("evidence", True), ("checkpoints", True), ("data", True),
     ("payloads", False), ("state", False), ("evidence", False), ("data", False)],
)  # fmt: skip
def test_a_folder_is_a_folder(folder: Folder, tmp_path: Path, name: str, whole: bool) -> None:
    """Neither a link to one nor a file, even where the story is not whole."""
    path, away = folder.run / name, tmp_path / "away"
    path.mkdir(exist_ok=True)
    path.rename(away)
    path.symlink_to(away)
    said = (name, f"{name}/ is not a folder")
    assert folder.end(whole=whole) == [said]
    path.unlink()
    path.write_bytes(b"")
    assert folder.end(whole=whole).count(said) == 2


# --- checkpoints ---


@pytest.mark.parametrize("name", ["round-00000.outer", "round-00002.safetensors", "round-00003.outer"])
def test_a_checkpoint_that_is_not_one(folder: Folder, tmp_path: Path, name: str) -> None:
    path = folder.run / "checkpoints" / name
    path.write_bytes(b"")
    said = [(f"checkpoints/{name}", "a checkpoint is missing or empty")]
    assert folder.end() == said
    path.unlink()
    (tmp_path / "away").write_bytes(b"x")
    path.symlink_to(tmp_path / "away")
    assert folder.end() == said * 2
    path.unlink()
    path.mkdir()
    assert folder.end() == said * 3


LATE = ((3, 0), (4, 0), (4, 1), (5, 0))


@pytest.mark.parametrize("name", ["round-00002.outer", "round-00003.safetensors", "round-00004.outer"])
def test_what_turns_that_wait_started_from_is_kept(folder: Folder, name: str) -> None:
    folder.put(checkpoints(1, 3, 4, 5, 6))
    over: Record = {"rounds": 5, "run_close": None, "waiting": LATE}
    assert folder.end(**over) == []
    (folder.run / "checkpoints" / name).unlink()
    assert folder.end(**over) == [(f"checkpoints/{name}", "a checkpoint is missing or empty")]


def test_checkpoints_from_before_the_turns_that_wait(folder: Folder) -> None:
    """That of a turn that was settled last may still lie there, one before that not."""
    folder.put(checkpoints(4, 5, 6, 7, 8))
    over: Record = {"rounds": 8, "run_close": None, "waiting": ((7, 0), (8, 0))}
    assert folder.end(**over) == [(name, STRAY) for name in sorted(checkpoints(3))]
    for file in checkpoints(3):
        (folder.run / file).unlink()
    folder.report.failures.clear()
    folder.put(checkpoints(9))
    assert folder.end(**over) == []
    folder.put(checkpoints(11))
    assert folder.end(**over) == [(name, STRAY) for name in sorted(checkpoints(11))]


@pytest.mark.parametrize(
    "name", ["round-00001.outer", "round-00004.outer", "round-00005.outer", "round-000002.outer",
             "round-00002.pt", "round-2.outer", "round-00002.outer.part", "x", "round-00006.safetensors"]
)  # fmt: skip
def test_other_checkpoints(folder: Folder, name: str) -> None:
    folder.put({f"checkpoints/{name}": b"x"})
    assert folder.end() == [(f"checkpoints/{name}", STRAY)]


@pytest.mark.parametrize("name", ["round-000002.outer", "round-00002.pt", "round-00001.outer", "x"])
def test_other_checkpoints_of_a_run_in_progress(folder: Folder, name: str) -> None:
    """The last round but one's may still lie there, and the next round's already; no others."""
    folder.put({**checkpoints(4, 5), "checkpoints/round-00003.outer": b"x"})
    assert folder.end(rounds=4, run_close=None) == []
    folder.put({f"checkpoints/{name}": b"x"})
    assert folder.end(rounds=4, run_close=None) == [(f"checkpoints/{name}", STRAY)]


def test_the_next_rounds_checkpoint_belongs_to_a_run_in_progress_only(folder: Folder) -> None:
    folder.put(checkpoints(4))
    stray = [(name, STRAY) for name in sorted(checkpoints(4))]
    assert folder.end(run_close=None) == []
    assert folder.end(run_close=None, whole=False) == []
    assert folder.end() == stray


# --- files named by their digests ---


@pytest.mark.parametrize("kind", ["payloads", "state"])
def test_files_that_no_record_names(folder: Folder, kind: str) -> None:
    """One for each contributor may lie there while a turn is in progress, and has its digest."""
    names = sorted([named(PAYLOAD), named(STATE)])
    folder.put({f"{kind}/{named(PAYLOAD)}": PAYLOAD})
    assert folder.end(run_close=None) == []
    assert folder.end() == [(f"{kind}/{named(PAYLOAD)}", STRAY)]
    folder.report.failures.clear()
    folder.put({f"{kind}/{named(STATE)}": STATE})
    found = folder.end(run_close=None)
    assert len(found) == 1
    assert found[0] in [(f"{kind}/{name}", STRAY) for name in names]
    assert folder.end(run_close=None, enrolments=ENROLMENTS[:1] * 2) == found


@pytest.mark.parametrize("name", ["x", "00" * 31, "00" * 33, "AB" * 32, "00" * 32 + "/x"])
def test_files_that_no_digest_names(folder: Folder, name: str) -> None:
    folder.put({f"payloads/{name}": b""})
    assert folder.end(run_close=None) == [(f"payloads/{name}", STRAY)]


def test_a_file_of_the_turn_in_progress_has_its_digest(folder: Folder) -> None:
    folder.put({"payloads/" + "00" * 32: PAYLOAD})
    said = [("payloads/" + "00" * 32, "a file of the turn in progress has another digest")]
    assert folder.end(run_close=None) == said


def test_what_a_turn_reveals(folder: Folder) -> None:
    told = turn(reveal_close={"revealed": [0, 1]})
    folder.check.turn(told)
    assert folder.said() == [
        (f"payloads/{named(PAYLOAD)}", "the payload of slot 1 in round 3 is missing or cannot be read"),
        (f"state/{named(STATE)}", "the start state of slot 1 in round 3 is missing or cannot be read"),
    ]
    folder.check.turn(told)
    assert len(folder.said()) == 2, "the same files are looked at once"
    folder.put({f"payloads/{named(PAYLOAD)}": PAYLOAD, f"state/{named(STATE)}": STATE})
    assert len(folder.end()) == 2, "they are known when the folder is listed"


@pytest.mark.parametrize(
    ("snapshot", "start", "states"), [(True, STATE, 1), (False, STATE, 0), (True, ZERO, 0)]
)
def test_start_states_of_snapshots_only(folder: Folder, snapshot: bool, start: bytes, states: int) -> None:
    opened = {"round": 3, "attempt": 2, "snapshot": snapshot}
    reveals = {1: {"opening": {**OPENING, "start_state": b3(start)}}}
    folder.check.turn(turn(open=opened, reveals=reveals, reveal_close={"revealed": [1]}))
    gone = "slot 1 in round 3 attempt 2 is missing or cannot be read"
    said = [f"the payload of {gone}", *[f"the start state of {gone}"] * states]
    assert [what for _, what in folder.said()] == said


def test_a_payload_has_its_digest_and_the_codecs_length(folder: Folder) -> None:
    name, of = f"payloads/{named(PAYLOAD)}", "the payload of slot 1 in round 3"
    opened = {"round": 3, "attempt": 0, "snapshot": False}
    folder.put({name: b"as long"})
    folder.check.turn(turn(open=opened, reveal_close={"revealed": [1]}))
    assert folder.said() == [(name, f"{of} has another digest")]
    folder.report.failures.clear()
    folder.put({f"payloads/{named(STATE)}": b"of another length"})
    reveals = {1: {"opening": {**OPENING, "payload": b3(STATE)}}}
    folder.check.turn(turn(open=opened, reveals=reveals, reveal_close={"revealed": [1]}))
    assert folder.said() == [(f"payloads/{named(STATE)}", f"{of} has another digest")], "and no more"
    long = b"eight..."
    folder.put({f"payloads/{named(long)}": long})
    folder.report.failures.clear()
    reveals = {1: {"opening": {**OPENING, "payload": b3(long)}}}
    folder.check.turn(turn(open=opened, reveals=reveals, reveal_close={"revealed": [1]}))
    assert folder.said() == [(f"payloads/{named(long)}", f"{of} has the wrong length")]


# --- evidence ---


def tried(
    folder: Folder, case: Any, *, reason: str = "failed-audit", told: Record | None = None
) -> list[tuple[str, str]]:
    """What a turn says whose close rejects slot 1 on the evidence of this case."""
    data = case if isinstance(case, bytes) else canon(case)
    folder.put({f"{FOLDER}/case.json": data})
    line = {"evidence": sha(data), "member": "ann", "reason": reason, "slot": 1}
    folder.check.turn(turn(close={**CLOSED, "rejected": [{**line, **(told or {})}]}))
    return folder.said()


def test_a_case_and_the_files_beside_it(folder: Folder) -> None:
    folder.put({f"{FOLDER}/{name}": data for name, data in FILES.items()})
    assert tried(folder, CASE) == []
    assert folder.end() == []
    folder.put({f"{FOLDER}/more": b""})
    assert folder.end() == [(f"{FOLDER}/more", STRAY)]


def test_a_rejection_without_evidence_has_no_case(folder: Folder) -> None:
    assert tried(folder, CASE, told={"evidence": None}) == []
    assert folder.end() == [(f"{FOLDER}/case.json", STRAY)]


def test_a_case_that_is_not_there(folder: Folder) -> None:
    line = {"evidence": sha(b""), "member": "ann", "reason": "failed-audit", "slot": 1}
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}))
    assert folder.said() == [(f"{FOLDER}/case.json", f"{OF} is missing or cannot be read")]


def test_a_case_is_the_one_that_the_close_names(folder: Folder) -> None:
    said = [(f"{FOLDER}/case.json", f"{OF} has another digest")]
    assert tried(folder, b"not JSON", told={"evidence": sha(b"other")}) == said
    assert folder.end() == said, "it lies there all the same"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (b"x", "not JSON"),
        ({**CASE, "more": 1}, "case does not fit"),
        ({**CASE, "files": {"payload": "x"}}, "case.files.payload does not fit"),
        *(
            ({**CASE, "files": {name: b3(b"")}}, "a case names a file that is not beside it")
            for name in ("", ".", "..", "case.json", "a/b", "/", "a\\b")
        ),
    ],
)
def test_a_case_that_is_malformed(folder: Folder, case: Any, words: str) -> None:
    ((where, what),) = tried(folder, case)
    assert where == f"{FOLDER}/case.json"
    assert what.startswith(f"{OF} is malformed: {words}")


@pytest.mark.parametrize("change", [
    {"attempt": 1}, {"member": "bob"}, {"reason": "malformed-payload"}, {"round": 4}, {"run": sha(b"")},
    {"slot": 2},
])  # fmt: skip
def test_a_case_of_something_else(folder: Folder, change: Record) -> None:
    folder.put({f"{FOLDER}/{name}": data for name, data in FILES.items()})
    said = [(f"{FOLDER}/case.json", f"the {key} in {OF} is wrong") for key in change]
    assert tried(folder, {**CASE, **change}) == said


def test_a_case_has_the_files_of_its_reason(folder: Folder) -> None:
    folder.put({f"{FOLDER}/{name}": data for name, data in FILES.items()})
    said = [(f"{FOLDER}/case.json", f"the files in {OF} are wrong")]
    assert tried(folder, {**CASE, "files": {"payload": b3(PAYLOAD)}}) == said
    folder.report.failures.clear()
    malformed = {**CASE, "reason": "malformed-payload"}
    assert tried(folder, malformed, reason="malformed-payload") == said
    folder.report.failures.clear()
    few = {name: b3(data) for name, data in {**SHORT, "payload": PAYLOAD}.items()}
    assert tried(folder, {**malformed, "files": few}, reason="malformed-payload") == []


@pytest.mark.parametrize("name", FILES)
def test_a_case_has_every_file_that_a_rerun_takes(folder: Folder, name: str) -> None:
    folder.put({f"{FOLDER}/{other}": data for other, data in FILES.items()})
    said = [(f"{FOLDER}/case.json", f"the files in {OF} are wrong")]
    fewer = {other: digest for other, digest in CASE["files"].items() if other != name}
    assert tried(folder, {**CASE, "files": fewer}) == said
    folder.report.failures.clear()
    folder.put({f"{FOLDER}/more": b""})
    assert tried(folder, {**CASE, "files": {**CASE["files"], "more": b3(b"")}}) == said


def test_a_case_for_another_reason_has_any_files_of_any_length(folder: Folder) -> None:
    """That there is one at all is for the close's check to say."""
    folder.put({f"{FOLDER}/payload": b"of another length"})
    case = {**CASE, "reason": "late", "files": {"payload": b3(b"of another length")}}
    assert tried(folder, case, reason="late") == []


def test_a_case_against_what_was_not_revealed(folder: Folder) -> None:
    """That it was not is for the log's check to say."""
    folder.put({f"{FOLDER}/payload": PAYLOAD})
    data = canon({**CASE, "files": {"payload": b3(PAYLOAD)}})
    folder.put({f"{FOLDER}/case.json": data})
    line = {"evidence": sha(data), "member": "ann", "reason": "failed-audit", "slot": 1}
    for draw in (None, {"drawn": [{"auditors": [], "segments": [0], "slot": 1}]}):
        folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, reveals={}, draw=draw))
        assert folder.said() == []


def test_the_files_of_a_case_have_their_digests_and_the_payload_its_length(folder: Folder) -> None:
    folder.put({f"{FOLDER}/{name}": data for name, data in RERUN.items()})
    folder.put({f"{FOLDER}/payload": b"as long", f"{FOLDER}/start_state": b"of any length"})
    assert tried(folder, CASE) == [
        (f"{FOLDER}/payload", f"payload in {OF} has another digest"),
        (f"{FOLDER}/start_state", f"start_state in {OF} has another digest"),
    ]
    folder.report.failures.clear()
    long, state = b"eight...", b"of any length"
    opening = {"payload": b3(long), "start_state": b3(state)}
    case = canon({**CASE, "files": {**CASE["files"], **opening}})
    folder.put({f"{FOLDER}/payload": long, f"{FOLDER}/start_state": state, f"{FOLDER}/case.json": case})
    line = {"evidence": sha(case), "member": "ann", "reason": "failed-audit", "slot": 1}
    folder.check.turn(turn(close={**CLOSED, "rejected": [line]}, reveals={1: {"opening": opening}}))
    assert folder.said() == [(f"{FOLDER}/payload", f"payload in {OF} has the wrong length")]


NEXT = {"round": 4, "attempt": 1, "snapshot": False}


@pytest.mark.parametrize(
    ("last", "prefix"),
    [
        (None, "r00004-a0-s"),
        (turn(), "r00004-a0-s"),
        (turn(open=NEXT, close=VOID), "r00004-a2-s"),
        (turn(open=NEXT, close=None), "r00004-a1-s"),
    ],
)
def test_evidence_in_the_turn_in_progress(folder: Folder, last: Turn | None, prefix: str) -> None:
    """A case may lie there before the close that names it does; none of another turn, or of a closed run."""
    folder.put({f"evidence/{prefix}0/case.json": b"", f"evidence/{prefix}1/payload": b""})
    assert folder.end(last_turn=last, run_close=None) == []
    folder.put({"evidence/r00004-a3-s0/x": b"", "evidence/r00005-a0-s0/x": b"", "evidence/x": b""})
    stray = ["evidence/r00004-a3-s0/x", "evidence/r00005-a0-s0/x", "evidence/x"]
    assert folder.end(last_turn=last, run_close=None) == [(name, STRAY) for name in stray]
    folder.report.failures.clear()
    stray += [f"evidence/{prefix}0/case.json", f"evidence/{prefix}1/payload"]
    assert folder.end(last_turn=last) == sorted((name, STRAY) for name in stray)


def test_evidence_in_turns_that_wait(folder: Folder) -> None:
    """A case may lie there before the settlement that names it does."""
    named = {f"evidence/{turn}-s1/payload": b"" for turn in ("r00002-a1", "r00003-a0", "r00004-a0")}
    folder.put({**named, "evidence/r00002-a0-s1/payload": b"", **checkpoints(1)})
    stray = [("evidence/r00002-a0-s1/payload", STRAY)]
    assert folder.end(waiting=((2, 1), (3, 0)), run_close=None) == stray
    folder.report.failures.clear()
    for name in checkpoints(1):
        (folder.run / name).unlink()
    assert folder.end() == sorted([*stray, *((name, STRAY) for name in named)])


def test_a_case_that_a_settlement_names(folder: Folder) -> None:
    folder.put({f"{FOLDER}/{name}": data for name, data in FILES.items()})
    folder.put({f"{FOLDER}/case.json": canon(CASE)})
    line = {"attempt": 0, "evidence": sha(canon(CASE)), "member": "ann", "reason": "failed-audit", "round": 3}
    lines = [{**line, "slot": 1}, {**line, "round": 4, "slot": 2}, {**line, "attempt": 1, "slot": 2}]
    lines.append({**line, "evidence": None, "slot": 3})
    folder.check.turn(turn(settlement={"removed": lines, "overruled": []}))
    assert folder.end() == []
    (folder.run / FOLDER / "case.json").unlink()
    folder.check.turn(turn(close=None, settlement={"removed": lines, "overruled": []}))
    assert folder.said() == [(f"{FOLDER}/case.json", f"{OF} is missing or cannot be read")]


def test_a_story_that_breaks_off_leaves_the_rest_unsaid(folder: Folder) -> None:
    folder.put({f"{kind}/x": b"" for kind in ("payloads", "state", "evidence", "data", "checkpoints")})
    (folder.run / "checkpoints" / "round-00000.outer").unlink()
    assert folder.end(whole=False) == []
