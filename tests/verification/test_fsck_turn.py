"""From a round-open to the reveal-close at level 1: one thing wrong at a time, and all that is then said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import ORIGIN, b3, envelope, key_text, note_of, public, sha, tree_root
from tests.verification.test_fsck_lies import lying, plus, popper, setter
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run
from verification.fsck_envelope import parse_envelope
from verification.fsck_findings import Report
from verification.fsck_formats import VerifierKey, parse_checkpoint
from verification.fsck_log import Tree
from verification.fsck_turn import Entry, Run, TurnState, check_ascending, check_head, place

Record = dict[str, Any]
NONE: Any = None
B = b3(b"another")


def a_run() -> Run:
    """A run of which nothing but the log's key and the report matters."""
    key = VerifierKey(ORIGIN, public("coordinator"))
    return Run("", {}, NONE, Tree(), key, NONE, NONE, {}, NONE, NONE, Report(), {}, {})


def an_entry(record: Record, kind: str = "draw") -> Entry:
    return Entry(7, b"", parse_envelope(envelope(kind, record, "coordinator", ("run", "00" * 32))), record)


# --- pieces ---


def test_where_an_entry_stands() -> None:
    assert place(an_entry({"round": 3, "attempt": 1})) == "log entry 7, draw of round 3 attempt 1"
    assert place(an_entry({}, "enrol")) == "log entry 7, enrol"
    assert TurnState(0, {"round": 2, "attempt": 0}).name == "round 2"
    assert TurnState(0, {"round": 2, "attempt": 3}).name == "round 2 attempt 3"


@pytest.mark.parametrize(
    ("slots", "fine"), [([], True), ([4], True), ([0, 2], True), ([2, 0], False), ([1, 1], False)]
)
def test_slots_in_order(slots: list[int], fine: bool) -> None:
    run = a_run()
    check_ascending(run, "the slots", "there", slots)
    assert [(f.what, f.where) for f in run.report.failures] == (
        [] if fine else [("the slots are not in order, each once", "there")]
    )


UNSIGNED = "head 2 is not signed with the log's key"
OTHERS = "head 2 does not sign exactly the entries before it"
SIGNED_TWICE = f"{OTHERS}: two heads of one size are signed"


@pytest.mark.parametrize(
    ("signed", "signer", "expected"),
    [
        ([b"a", b"b"], "coordinator", []),
        ([b"a", b"b"], "ann", [UNSIGNED]),
        ([b"a", b"c"], "coordinator", [SIGNED_TWICE]),
        ([b"a", b"c"], "ann", [UNSIGNED, OTHERS]),
        ([b"a"], "coordinator", [OTHERS]),
        ([b"a", b"b", b"c"], "coordinator", [OTHERS]),
        ([b"a"], "ann", [UNSIGNED, OTHERS]),
    ],
)
def test_a_head(signed: list[bytes], signer: str, expected: list[str]) -> None:
    run, entry = a_run(), an_entry({"round": 1, "attempt": 0})
    head = parse_checkpoint(note_of(signed, signer))
    holds = check_head(run, 2, entry, head, 2, tree_root([b"a", b"b"]))
    assert [f.what for f in run.report.failures] == expected
    assert holds == (expected == [])


# --- records ---


def failures(folder: Path, lie: Any, turns: int = 1, **over: Any) -> list[str]:
    writer = Writer(folder / "run", **{"script": {}, "silent": {}, "lie": lie, **over}).run(turns=turns)
    return [f.what for f in check_run(writer.write()).failures]


NO_ROSTER = (
    "the roster of round 1 names slots that do not exist, twice or out of order"
    " (the log's story is not followed from here on)"
)
OPENS: dict[str, tuple[Any, list[str]]] = {
    "honest": (setter("deadline_ms", 5000), []),
    "base": (
        setter("base.outer", B),
        [
            "round 1 does not start from the last checkpoint",
            *(
                f"slot {slot} in round 1 is listed as revealed though its base does not match"
                for slot in range(5)
            ),
        ],
    ),
    "auditors": (setter("auditors.0.operator", "north"), ["the auditors of round 1 are wrong"]),
    "order": (lambda r, _: r["roster"].reverse(), [NO_ROSTER]),
    "twice": (lambda r, _: r["roster"].insert(0, r["roster"][0]), [NO_ROSTER]),
    "nobody": (setter("roster.4.slot", 5), [NO_ROSTER]),
    "operator": (
        setter("roster.1.operator", "east"),
        ["the operator of slot 1 in the roster of round 1 is wrong"],
    ),
    "member": (setter("roster.1.member", "eve"), ["the member of slot 1 in the roster of round 1 is wrong"]),
    "key": (setter("roster.1.key", key_text("eve")), ["the key of slot 1 in the roster of round 1 is wrong"]),
    "class": (setter("roster.1.class", "c2"), ["the class of slot 1 in the roster of round 1 is wrong"]),
    "strange witness": (
        setter("witnesses", ["w"]),
        [
            "the witnesses of round 1 are not some of the manifest's, each once, in their order",
            "the links of draw in round 1 are not those of the witnesses it names",
            "the links of second-draw in round 1 are not those of the witnesses it names",
        ],
    ),
    "rates": (popper("inner_lr"), ["round 1 has the wrong number of inner learning rates"]),
    "more rates": (
        lambda r, _: r["inner_lr"].append((0.5).hex()),
        ["round 1 has the wrong number of inner learning rates"],
    ),
    "rate": (
        setter("inner_lr.7", (0.5).hex()),
        ["the inner learning rate of step 7 in round 1 is wrong"],
    ),
    "outer rate": (setter("outer_lr", (0.5).hex()), ["the outer learning rate of round 1 is wrong"]),
    "deadline": (setter("deadline_ms", 4999), ["the deadline of round 1 is wrong"]),
    "snapshot": (setter("snapshot", False), ["the snapshot flag of round 1 is wrong"]),
}


@pytest.mark.parametrize("name", OPENS)
def test_an_open_with_one_thing_wrong(tmp_path: Path, name: str) -> None:
    change, expected = OPENS[name]
    found = failures(tmp_path, lying("round-open", change), audit__second_look_ppm=1_000_000)
    assert found == expected


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("roster.0.class", "c2", "the class of slot 0 in the roster of round 1 is wrong"),
        ("roster.1.member", "eve", "the member of slot 1 in the roster of round 1 is wrong"),
    ],
)
def test_only_other_positions_excuse_another_queue(tmp_path: Path, path: str, value: Any, what: str) -> None:
    opened = lying("round-open", setter(path, value))
    closed = lying("round-close", setter("cursor", plus(8)))
    found = failures(tmp_path, lambda *given: closed(given[0], opened(*given), given[2]))
    assert found == [what, "the cursor after round 1 is wrong"]


def test_a_wrong_line_of_positions_is_named_once(tmp_path: Path) -> None:
    """What the close says of the queue follows from the positions, and is not held against it again."""

    def change(record: Record, _: Writer) -> None:
        record["roster"][4]["positions"] = [[50, 58]]

    found = failures(tmp_path, lying("round-open", change))
    assert found[0] == "the positions of slot 4 in the roster of round 1 is wrong"
    assert not any("cursor" in what or "queue" in what for what in found)


def twice(kind: str) -> Any:
    return lambda record, _: [(kind, record, record["member"])] * 2


def by_another(kind: str) -> Any:
    return lambda record, _: [(kind, record, "eve")]


def with_stranger(kind: str) -> Any:
    return lambda record, _: [(kind, record, record["member"]), (kind, {**record, "slot": 9}, "ann")]


def strange_commitment(record: Record, _: Writer) -> None:
    record["committed"].append(9)
    record["ms"].append(1)


RECORDS: dict[str, tuple[str, Any, list[str]]] = {
    "committed twice": (
        "commitment",
        twice("commitment"),
        ["the commitment of slot 0 in round 1 is out of order"],
    ),
    "not in the roster": (
        "commitment",
        with_stranger("commitment"),
        ["slot 9 is not in the roster of round 1"],
    ),
    "commitment by another": (
        "commitment",
        by_another("commitment"),
        ["the commitment of slot 0 in round 1 is not signed by ann"],
    ),
    "member": (
        "commitment",
        setter("member", "eve"),
        ["the member in the commitment of slot 0 in round 1 is wrong"],
    ),
    "key": (
        "commitment",
        setter("key", key_text("eve")),
        ["the key in the commitment of slot 0 in round 1 is wrong"],
    ),
    "committed": (
        "commit-close",
        strange_commitment,
        ["the committed slots of round 1 are wrong"],
    ),
    "late": ("commit-close", setter("late", [9]), ["the late slots of round 1 are wrong"]),
    "times": (
        "commit-close",
        lambda r, _: r["ms"].append(1),
        ["the times of round 1 do not match its commitments"],
    ),
    "revealed twice": (
        "reveal",
        twice("reveal"),
        ["slot 0 revealed in round 1 without having committed, or twice"],
    ),
    "reveal of nobody": ("reveal", with_stranger("reveal"), ["slot 9 is not in the roster of round 1"]),
    "reveal by another": (
        "reveal",
        by_another("reveal"),
        ["the reveal of slot 0 in round 1 is not signed by ann"],
    ),
    "no head": (
        "reveal-close",
        setter("head", "none"),
        ["head 1 is no checkpoint: not a checkpoint"],
    ),
    "older head": (
        "reveal-close",
        lambda r, w: r.update(head=note_of(w.entries[: w.heads[-1] - 1])),
        ["head 1 does not sign exactly the entries before it"],
    ),
    "revealed": (
        "reveal-close",
        lambda r, _: r["revealed"].reverse(),
        ["the revealed slots of round 1 are not in order, each once"],
    ),
    "nobody revealed": (
        "reveal-close",
        lambda r, _: r["revealed"].append(9),
        ["revealed and refused of round 1 are not what committed"],
    ),
    "nobody refused": (
        "reveal-close",
        lambda r, _: r["refused"].append({"reason": "unrevealed", "slot": 9}),
        ["revealed and refused of round 1 are not what committed"],
    ),
    "pulse": (
        "reveal-close",
        setter("pulse", 5),
        ["the reveal-close of round 1 has the wrong pulse: the run does not name a beacon"],
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_one_thing_wrong(tmp_path: Path, name: str) -> None:
    kind, change, expected = RECORDS[name]
    assert failures(tmp_path, lying(kind, change)) == expected


def test_whoever_was_late_reveals_nothing(tmp_path: Path) -> None:
    def change(record: Record, _: Writer) -> Any:
        other = {**record, "slot": 1, "member": "bob", "key": key_text("bob")}
        return [("reveal", record, "ann"), ("reveal", other, "bob")]

    found = failures(tmp_path, lying("reveal", change), script={(0, 1): "late"})
    assert found == ["slot 1 revealed in round 1 without having committed, or twice"]


@pytest.mark.parametrize("kind", ["commitment", "reveal"])
def test_records_by_slot_change_places(tmp_path: Path, kind: str) -> None:
    held: list[Any] = []

    def second_first(k: str, record: Record, _: Writer) -> Any:
        if k != kind or len(held) == 2:
            return record
        held.append((k, record, record["member"]))
        return held[::-1] if len(held) == 2 else []

    assert failures(tmp_path, second_first) == [f"the {kind} of slot 0 in round 1 is out of order"]


REVEALS: dict[str, tuple[Any, str]] = {
    "salt": (setter("salt", "00" * 32), "commitment"),
    "member": (setter("member", "eve"), "member"),
}


@pytest.mark.parametrize("name", REVEALS)
def test_a_reveal_that_does_not_match_is_not_taken(tmp_path: Path, name: str) -> None:
    change, key = REVEALS[name]
    what = f"slot 0 in round 1 is listed as revealed though its {key} does not match"
    assert failures(tmp_path, lying("reveal", change)) == [what]


def test_another_commitment(tmp_path: Path) -> None:
    lie = lying("commitment", setter("commitment", sha(b"another")))
    expected = "slot 0 in round 1 is listed as revealed though its commitment does not match"
    assert failures(tmp_path, lie) == [expected]


@pytest.mark.parametrize(
    ("change", "over", "what"),
    [
        (popper("roster"), {}, "the roster of round 1 has the wrong slots"),
        (setter("witnesses", []), {"witnesses": ["w"]}, "round 1 names fewer witnesses than are required"),
    ],
)
def test_an_open_that_lacks_something(tmp_path: Path, change: Any, over: Any, what: str) -> None:
    assert failures(tmp_path, lying("round-open", change), **over)[0] == what


@pytest.mark.parametrize(
    ("turn", "script", "owed"),
    [(0, {}, False), (1, {}, False), (2, {}, True), (2, {(0, 3): "late", (1, 3): "late"}, False)],
)
def test_who_owes_its_start_state(tmp_path: Path, turn: int, script: Any, *, owed: bool) -> None:
    """In a turn with a snapshot, whoever does not start from the zero state; nobody else."""

    def refuse(record: Record, _: Writer) -> None:
        record["revealed"].remove(3)
        record["refused"] = [{"reason": "unserved", "slot": 3}]

    lie = lying("reveal-close", refuse, turn=turn)
    writer = Writer(tmp_path / "run", script=script, silent={}, lie=lie).run(turns=turn + 1)
    what = [f.what for f in check_run(writer.write()).failures]
    said = f"slot 3 in round {turn + 1} is listed as unserved though it opens its commitment"
    assert (f"{said} and matches the open" in what) is not owed
