"""Enrolments, leaves and returns at level 1: who may sign which, of whom, and where it may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import envelope, key_text
from tests.verification.test_fsck_elastic import COMING, FAY, GUS, QUIET, Record, found
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import forged, lying, setter
from tests.verification.test_fsck_members import ALLOWED
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

STOPPED = " (the log's story is not followed from here on)"
AWAY = ("leave", "ann", "member")
OUT = ("revoke", "ann", "coordinator")


# --- who may enrol ---


@pytest.mark.parametrize(
    ("newcomers", "more", "between", "expected"),
    [
        (0, [], {}, []),
        (1, [], {}, []),
        (1, [FAY], {}, []),
        (1, [FAY], COMING, ["gus is not enrolled as identity.allow says", "a newcomer more"]),
        (2, [FAY, GUS], COMING, []),
        (2, [FAY, GUS], {3: [GUS], 1: [FAY]}, []),
        (0, [FAY], {}, ["more of those that identity.allow names are missing than may be newcomers"]),
        (1, [FAY, GUS], {}, ["more of those that identity.allow names are missing than may be newcomers"]),
        (2, [], {1: [FAY]}, ["fay is not enrolled as identity.allow says"]),
        (2, [FAY], {0: [GUS]}, ["gus is not enrolled as identity.allow says"]),
    ],
)
def test_identity_allow_and_newcomers(
    tmp_path: Path, newcomers: int, more: Any, between: Any, expected: list[str]
) -> None:
    allow = ALLOWED | {name: key_text(name) for _, name, *_ in more}
    over = {**QUIET, "identity__newcomers": newcomers, "identity__allow": allow, "between": between}
    what = found(Writer(tmp_path / "run", **over), 4)
    assert len(what) == len(expected)
    for text, words in zip(what, expected, strict=True):
        assert words in text


@pytest.mark.parametrize("newcomers", [0, 1, 2, 3])
def test_newcomers_are_as_many_as_the_manifest_allows(tmp_path: Path, newcomers: int) -> None:
    """Whatever their role, and however far apart they come."""
    between = {1: [FAY], 2: [GUS], 3: [("enrol", "hal", "contributor", "hill", "c2")]}
    over = {**QUIET, "identity__newcomers": newcomers, "between": between}
    too_many = ["fay", "gus", "hal"][newcomers:]
    assert found(Writer(tmp_path / "run", **over), 4) == [
        f"{name} is a newcomer more than identity.newcomers allows" for name in too_many
    ]


def test_a_leave_makes_no_room_for_a_newcomer(tmp_path: Path) -> None:
    between = {1: [FAY], 2: [("leave", "fay", "member"), GUS]}
    what = found(Writer(tmp_path / "run", **{**QUIET, "identity__newcomers": 1, "between": between}))
    assert what == ["gus is a newcomer more than identity.newcomers allows"]


@pytest.mark.parametrize("newcomers", [-1, True, None, "1", 1.0])
def test_newcomers_are_a_number(tmp_path: Path, newcomers: Any) -> None:
    def change(manifest: Record, _: Writer) -> None:
        del manifest["config"]["identity"]["newcomers"]
        if newcomers is not None:
            manifest["config"]["identity"]["newcomers"] = str(newcomers) if newcomers == 1.0 else newcomers

    what = found(Writer(tmp_path / "run", lie=lying("manifest", change), **QUIET), 1)
    assert what[0].startswith("the manifest is malformed: manifest.config.identity")


STEPS = "train.steps does not have one number per contributor"


def test_newcomers_do_not_stand_in_for_whom_the_first_turn_lacks(tmp_path: Path) -> None:
    lie = lying("manifest", setter("config.train.steps", [4, 6, 2, 8, 4, 2]))
    assert found(Writer(tmp_path / "run", lie=lie, between={1: [FAY]}, **QUIET)) == [STEPS]


def test_before_the_first_open_nobody_is_a_newcomer(tmp_path: Path) -> None:
    over = {**QUIET, "identity__newcomers": 0}
    assert found(Writer(tmp_path / "a", **over, between={0: [GUS]}), 2) == []
    assert found(Writer(tmp_path / "b", **over, between={0: [FAY]}), 1) == [STEPS, STEPS + STOPPED]


def enrolled(signer: str | None = None, **fields: Any) -> Any:
    def change(record: Record, _: Writer) -> Any:
        return [("enrol", {**record, **fields}, signer or fields["of"])]

    return change


def with_key(name: str) -> Any:
    return enrolled(name, key=key_text(name))


TAKEN = "the key of fay is another member's too, or the coordinator's or a witness's"
ENROLS: dict[str, tuple[str, Any]] = {
    "forged": ("the enrolment of fay is not signed with its own key", forged("enrol")),
    "name": (f"two members are called bob{STOPPED}", enrolled("fay", member="bob")),
    "newcomer's name": (f"two members are called gus{STOPPED}", enrolled("fay", member="gus")),
    "bob's key": (TAKEN, with_key("bob")),
    "another newcomer's": (TAKEN, with_key("gus")),
    "an old key": (TAKEN, with_key("cid")),
    "coordinator's": (TAKEN, with_key("coordinator")),
    "witness's": (TAKEN, with_key("w.example")),
    "small order": (f"a key has small order{STOPPED}", setter("key", "ed25519:01" + "00" * 31)),
    "role": (f"enrol.role does not fit{STOPPED}", setter("role", "witness")),
    "run": ("the run id in the enrol is another", setter("run", "sha256:" + "0" * 64)),
}


@pytest.mark.parametrize("name", ENROLS)
def test_a_wrong_newcomer_is_named(tmp_path: Path, name: str) -> None:
    expected, change = ENROLS[name]
    between = {1: [("rotate", "cid"), GUS], 2: [FAY]}
    lie = lying("enrol", change, turn=2)
    what = found(Writer(tmp_path / "run", lie=lie, between=between, witnesses=["w.example"], **QUIET))
    assert expected in what


# --- leaves and returns ---

LEAVES: dict[str, tuple[str, Any]] = {
    "not by the member": ("the leave of ann is not signed by the member", forged("leave")),
    "not by the coordinator": (
        "the leave of ann is not signed by the coordinator",
        setter("by", "coordinator"),
    ),
    "by somebody else": (
        "the leave of ann is not signed by the member",
        lambda r, _: [("leave", r, "bob")],
    ),
    "key": ("the key in the leave of ann is not its present key", setter("key", key_text("bob"))),
    "stranger": (f"a leave is of somebody who never enrolled{STOPPED}", setter("member", "fay")),
    "by": (f"leave.by does not fit{STOPPED}", setter("by", "anyone")),
    "early": ("the turn in the leave of ann is wrong", setter("turn", 0)),
    "late": ("the turn in the leave of ann is wrong", setter("turn", 2)),
    "turn": (f"leave.turn does not fit{STOPPED}", setter("turn", -1)),
    "shape": (f"leave does not fit{STOPPED}", setter("until", 1)),
    "run": ("the run id in the leave is another", setter("run", "sha256:" + "0" * 64)),
}
RETURNS: dict[str, tuple[str, Any]] = {
    "forged": ("the return of ann is not signed with its present key", forged("return")),
    "key": ("the key in the return of ann is not its present key", setter("key", key_text("bob"))),
    "stranger": (f"a return is of somebody who never enrolled{STOPPED}", setter("member", "fay")),
    "early": ("the turn in the return of ann is wrong", setter("turn", 1)),
    "late": ("the turn in the return of ann is wrong", setter("turn", 3)),
    "turn": (f"return.turn does not fit{STOPPED}", setter("turn", -1)),
    "shape": (f"return does not fit{STOPPED}", setter("by", "member")),
    "run": ("the run id in the return is another", setter("run", "sha256:" + "0" * 64)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_wrong_leave_is_named(tmp_path: Path, name: str) -> None:
    expected, change = LEAVES[name]
    over = {"between": {1: [("leave", "ann", "member")]}, **QUIET}
    assert expected in found(Writer(tmp_path / "run", lie=lying("leave", change), **over), 2)


@pytest.mark.parametrize("name", RETURNS)
def test_a_wrong_return_is_named(tmp_path: Path, name: str) -> None:
    expected, change = RETURNS[name]
    over = {"between": {1: [("leave", "ann", "coordinator")], 2: [("return", "ann")]}, **QUIET}
    assert expected in found(Writer(tmp_path / "run", lie=lying("return", change), **over))


@pytest.mark.parametrize("kind", ["leave", "return"])
def test_the_present_key_signs(tmp_path: Path, kind: str) -> None:
    """Not one that the member gave up."""
    between = {1: [("rotate", "ann"), ("leave", "ann", "member")], 2: [("return", "ann")]}
    assert found(Writer(tmp_path / "run", between=between, **QUIET)) == []
    lie = lying(kind, lambda r, _: [(kind, r, "ann")])
    what = found(Writer(tmp_path / "run", between=between, lie=lie, **QUIET))
    signer = "by the member" if kind == "leave" else "with its present key"
    assert what == [f"the {kind} of ann is not signed {signer}"]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ([AWAY, AWAY], ["the leave of ann is of a member that is away already"]),
        ([AWAY, ("return", "ann"), AWAY], []),
        ([AWAY, ("return", "ann"), ("return", "ann")], ["the return of ann is of a member that is not away"]),
        ([("return", "ann")], ["the return of ann is of a member that is not away"]),
        ([AWAY, ("return", "bob")], ["the return of bob is of a member that is not away"]),
        ([OUT, AWAY], ["the leave of ann is of a member in quarantine"]),
        ([AWAY, OUT, ("return", "ann")], ["the return of ann is of a member in quarantine"]),
        ([("leave", "fay", "coordinator"), ("return", "fay")], []),
    ],
)
def test_who_may_leave_and_return(tmp_path: Path, between: Any, expected: list[str]) -> None:
    writer = Writer(tmp_path / "run", between={1: [FAY], 2: between}, **QUIET)
    assert found(writer) == expected


# --- where they may stand ---

KINDS = ["enrol", "leave", "return"]


def stray(writer: Writer, kind: str) -> Any:
    """A record that would be right between the turns: ann is away, bob is not."""
    name = {"enrol": "fay", "leave": "bob", "return": "ann"}[kind]
    opens = sum(k == "round-open" for k, *_ in writer.records)
    coming = {"role": "contributor", "operator": "fjord", "class": "c1"}
    fields: Record = {"enrol": coming, "leave": {"turn": opens, "by": "member"}, "return": {"turn": opens}}[
        kind
    ]
    return kind, writer.of(name, **fields), name


IN_TURN = ["round-open", "commit-close", "reveal-close", "draw", "served", "first-looks", "second-draw"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", IN_TURN)
def test_none_stands_in_a_turn(tmp_path: Path, after: str, kind: str) -> None:
    def change(record: Record, writer: Writer) -> Any:
        return [(after, record, "coordinator"), stray(writer, kind)]

    writer = Writer(tmp_path / "run", lie=lying(after, change, turn=1), between={1: [AWAY]}, **QUIET)
    assert f"a record is out of order{STOPPED}" in found(writer, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", [1, 5])
def test_none_stands_where_a_settlement_is_due(tmp_path: Path, kind: str, turn: int) -> None:
    def change(record: Record, writer: Writer) -> Any:
        return [("round-close", record, "coordinator"), stray(writer, kind)]

    writer = LateWriter(
        tmp_path / "run", lie=lying("round-close", change, turn=turn), between={1: [AWAY]}, **QUIET
    )
    assert found(writer, 99) == [f"a record is out of order{STOPPED}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("turn", "right"), [(3, False), (4, False), (5, True)])
def test_at_the_end_they_stand_after_the_last_settlement(
    tmp_path: Path, kind: str, turn: int, *, right: bool
) -> None:
    def change(record: Record, writer: Writer) -> Any:
        return [("settlement", record, "coordinator"), stray(writer, kind)]

    lie = lying("settlement", change, turn=turn)
    writer = LateWriter(tmp_path / "run", lag=2, lie=lie, between={1: [AWAY]}, **QUIET)
    assert found(writer, 99) == ([] if right else [f"a record is out of order{STOPPED}"])


@pytest.mark.parametrize("event", [AWAY, ("leave", "ann", "coordinator"), ("return", "ann")])
def test_nobody_leaves_or_returns_before_the_first_open(tmp_path: Path, event: Any) -> None:
    writer = Writer(tmp_path / "run", between={0: [event]}, **QUIET)
    assert found(writer, 1) == [f"a record is out of order{STOPPED}"]


@pytest.mark.parametrize("kind", KINDS)
def test_none_stands_after_the_run_close(tmp_path: Path, kind: str) -> None:
    writer = Writer(tmp_path / "run", between={1: [AWAY]}, **QUIET).run()
    name, record, signer = stray(writer, kind)
    writer.entries.append(envelope(name, record, signer, writer.run_subject))
    assert [f.what for f in check_run(writer.write()).failures] == [
        f"the log goes on after run-close{STOPPED}"
    ]
