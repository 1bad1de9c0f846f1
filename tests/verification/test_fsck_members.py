"""Members' keys at level 1: who may enrol, key-rotations, key-revocations and what follows from them.

Who comes later, leaves and returns: `test_fsck_elastic`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, key_text, sign_object
from tests.verification.test_fsck_lies import forged, lying, setter
from tests.verification.test_fsck_state import MEMBERS
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

Record = dict[str, Any]
QUIET: dict[str, Any] = {"run__seed": 8, "script": {}, "silent": {}}
ROTATED = {1: [("rotate", "ann"), ("rotate", "yan")], 2: [("rotate", "ann")]}
REVOKED = {
    1: [("revoke", "ann", "member"), ("revoke", "yan", "coordinator")],
    2: [("revoke", "bob", "coordinator")],
}


def failures(writer: Writer, turns: int = 3) -> list[str]:
    return [f.what for f in check_run(writer.run(turns=turns).write()).failures]


def records(writer: Writer, kind: str) -> list[Record]:
    return [r for k, r, _ in writer.records if k == kind]


# --- honest runs ---


def test_members_change_their_keys(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", between={**ROTATED, 5: [("rotate", "eve"), ("rotate", "wim")]}, **QUIET)
    assert failures(writer, 99) == []
    opens = records(writer, "round-open")
    assert [o["roster"][0]["key"] for o in opens[:3]] == [
        key_text("ann"),
        key_text("ann'"),
        key_text("ann''"),
    ]
    assert [o["roster"][0]["audit_ppm"] for o in opens[2:5]] == [1_000_000, 1_000_000, 400_000]
    assert opens[2]["roster"][1]["audit_ppm"] == 400_000
    assert opens[2]["roster"][0]["start_state"] == b3(b"zero") != opens[2]["roster"][1]["start_state"]
    assert {a["member"]: a["key"] for a in opens[1]["auditors"]}["yan"] == key_text("yan'")


def test_members_are_revoked(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", between=REVOKED, **QUIET)
    assert failures(writer, 99) == []
    opens, closes = records(writer, "round-open"), records(writer, "round-close")
    assert [o["roster"][0]["member"] for o in opens[:3]] == ["ann", "bob", "cid"]
    assert [a["member"] for a in opens[1]["auditors"]] == ["xia", "zoe", "wim", "vic"]
    assert closes[1]["quarantined"] == ["ann", "yan"]
    credit = {line["member"]: line for line in closes[-1]["credits"]}
    assert credit["ann"]["forfeited"] == credit["ann"]["earned"] > 0
    assert credit["yan"]["forfeited"] > 0


def test_a_log_may_end_with_a_change_of_key(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", between={1: [("rotate", "ann"), ("revoke", "bob", "member")]}, **QUIET)
    writer.run(turns=1).change_keys()
    found = check_run(writer.write())
    assert (found.failures, found.complete) == ((), False)


# --- lies in the records ---


def taken(new: str) -> Any:
    """A rotation to a key that somebody has, properly proven."""

    def change(record: Record, _: Writer) -> None:
        signed = {name: record[name] for name in ("key", "member", "run")} | {"new_key": key_text(new)}
        proof = sign_object(new, "barnraise/key-rotation/v1", signed)
        record.update(new_key=key_text(new), proof=proof)

    return change


ROTATIONS: dict[str, tuple[str, Any]] = {
    "forged": ("the key-rotation of ann is not signed with its present key", forged("key-rotation")),
    "by the new key": (
        "the key-rotation of ann is not signed with its present key",
        lambda r, _: [("key-rotation", r, "ann'")],
    ),
    "proof": ("the proof in the key-rotation of ann does not hold", setter("proof", "AAAA")),
    "proof of another": (
        "the proof in the key-rotation of ann does not hold",
        lambda r, _: r.update(proof=sign_object("ann'", "barnraise/key-rotation/v1", {**r})),
    ),
    "key": ("the key in the key-rotation of ann is not its present key", setter("key", key_text("bob"))),
    "taken": ("the new key of ann is or was somebody's", taken("bob")),
    "own": ("the new key of ann is or was somebody's", taken("ann")),
    "coordinator's": ("the new key of ann is or was somebody's", taken("coordinator")),
    "witness's": ("the new key of ann is or was somebody's", taken("w.example")),
    "small order": (
        "the new key of ann: a key has small order",
        setter("new_key", "ed25519:01" + "00" * 31),
    ),
    "stranger": ("a key-rotation is of somebody who never enrolled", setter("member", "mallory")),
    "shape": ("key-rotation does not fit", setter("more", 1)),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_wrong_rotation_is_named(tmp_path: Path, name: str) -> None:
    expected, change = ROTATIONS[name]
    lie = lying("key-rotation", change)
    over = {"between": {1: [("rotate", "ann")]}, "witnesses": ["w.example"], **QUIET}
    what = failures(Writer(tmp_path / "run", lie=lie, **over), 2)
    assert any(text.startswith(expected) for text in what), what


def test_no_key_ever_comes_back(tmp_path: Path) -> None:
    """Neither the own old key nor one that another member gave up, or has."""
    for member, key in (("ann", "ann"), ("bob", "ann"), ("bob", "ann'")):
        between = {1: [("rotate", "ann")], 2: [("rotate", member)]}
        lie = lying("key-rotation", taken(key), turn=2)
        what = failures(Writer(tmp_path / "run", lie=lie, between=between, **QUIET))
        assert f"the new key of {member} is or was somebody's" in what


REVOCATIONS: dict[str, tuple[str, Any]] = {
    "not by the member": (
        "the key-revocation of ann is not signed by the member",
        setter("by", "member"),
    ),
    "not by the coordinator": (
        "the key-revocation of ann is not signed by the coordinator",
        lambda r, _: [("key-revocation", r, "ann")],
    ),
    "key": ("the key in the key-revocation of ann is not its present key", setter("key", key_text("bob"))),
    "stranger": ("a key-revocation is of somebody who never enrolled", setter("member", "mallory")),
    "by": ("key-revocation.by does not fit", setter("by", "anyone")),
}


@pytest.mark.parametrize("name", REVOCATIONS)
def test_a_wrong_revocation_is_named(tmp_path: Path, name: str) -> None:
    expected, change = REVOCATIONS[name]
    over = {"between": {1: [("revoke", "ann", "coordinator")]}, **QUIET}
    what = failures(Writer(tmp_path / "run", lie=lying("key-revocation", change), **over), 2)
    assert any(text.startswith(expected) for text in what), what


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (
            {1: [("revoke", "ann", "coordinator"), ("rotate", "ann")]},
            "the key-rotation of ann is of a member in quarantine",
        ),
        (
            {1: [("revoke", "ann", "member"), ("revoke", "ann", "coordinator")]},
            "the key-revocation of ann is of a member in quarantine",
        ),
        ({0: [("rotate", "ann")]}, "a record is out of order"),
        ({0: [("revoke", "ann", "coordinator")]}, "a record is out of order"),
    ],
)
def test_records_that_may_not_stand_where_they_do(tmp_path: Path, between: Any, expected: str) -> None:
    what = failures(Writer(tmp_path / "run", between=between, **QUIET), 2)
    assert what[0].startswith(expected), what


@pytest.mark.parametrize("kind", ["commit-close", "draw", "second-draw"])
def test_no_key_changes_within_a_turn(tmp_path: Path, kind: str) -> None:
    def change(record: Record, writer: Writer) -> Any:
        revocation = {"protocol": 1, "run": writer.run_id, "member": "ann", "key": key_text("ann")}
        return [(kind, record, "coordinator"), ("key-revocation", {**revocation, "by": "member"}, "ann")]

    what = failures(Writer(tmp_path / "run", lie=lying(kind, change, turn=1), **QUIET), 2)
    assert "a record is out of order (the log's story is not followed from here on)" in what


# --- lies about what follows ---


def auditor_again(record: Record, _: Writer) -> None:
    line = {"member": "yan", "key": key_text("yan"), "operator": "yard", "class": "c1"}
    record["auditors"].insert(1, line)


def unforfeited(record: Record, _: Writer) -> None:
    for line in record["credits"]:
        line["forfeited"] = 0


EFFECTS: dict[str, tuple[str, Any, str, Any]] = {
    "old key": (
        "the key of slot 0 in the roster of round 2 is wrong",
        ROTATED,
        "round-open",
        setter("roster.0.key", key_text("ann")),
    ),
    "old lineage": (
        "the start_state of slot 0 in the roster of round 2 is wrong",
        ROTATED,
        "round-open",
        lambda r, w: r["roster"][0].update(start_state=b3(w.work_of_first)),
    ),
    "old auditor's key": (
        "the auditors of round 2 are wrong",
        ROTATED,
        "round-open",
        setter("auditors.1.key", key_text("yan")),
    ),
    "commitment by the old key": (
        "the commitment of slot 0 in round 2 is not signed by ann",
        ROTATED,
        "commitment",
        forged("commitment"),
    ),
    "revoked auditor": ("the auditors of round 2 are wrong", REVOKED, "round-open", auditor_again),
    "quarantine": (
        "the members in quarantine after round 2 are wrong",
        REVOKED,
        "round-close",
        setter("quarantined", []),
    ),
    "forfeited": ("the forfeited credit of ann after round 2 is wrong", REVOKED, "round-close", unforfeited),
    "forfeited too": (
        "the forfeited credit of yan after round 2 is wrong",
        REVOKED,
        "round-close",
        unforfeited,
    ),
}


class Remembering(Writer):
    @property
    def work_of_first(self) -> bytes:
        return b"state " + f"{self.run_id} 0 0".encode()


@pytest.mark.parametrize("name", EFFECTS)
def test_what_follows_from_keys_is_checked(tmp_path: Path, name: str) -> None:
    expected, between, kind, change = EFFECTS[name]
    writer = Remembering(tmp_path / "run", lie=lying(kind, change, turn=1), between=between, **QUIET)
    what = failures(writer, 2)
    assert any(text.startswith(expected) for text in what), what


class Stubborn(Writer):
    """Commits and reveals with the first key in it, as the commitment says."""

    stubborn = False

    def key(self, name: str) -> str:
        return key_text(name) if self.stubborn else super().key(name)

    def commit_and_reveal(self, roster: Any, todo: Any, fate: Any, snapshot: bool) -> Any:
        self.stubborn = True
        reveals = super().commit_and_reveal(roster, todo, fate, snapshot)
        self.stubborn = False
        return reveals


def test_a_contribution_names_the_present_key(tmp_path: Path) -> None:
    what = failures(Stubborn(tmp_path / "run", between={1: [("rotate", "ann")]}, **QUIET), 2)
    assert what == [
        "the key in the commitment of slot 0 in round 2 is wrong",
        "slot 0 in round 2 is listed as revealed though its key does not match",
    ]


class Forgetful(Writer):
    """Does as if there had been no rotation, or no revocation, but for the record itself."""

    def change_keys(self) -> None:
        before = dict(self.accepted), dict(self.state), self.quarantined
        super().change_keys()
        self.accepted.update(before[0])
        self.quarantined = before[2]


def test_probation_begins_again(tmp_path: Path) -> None:
    writer = Forgetful(tmp_path / "run", between={3: [("rotate", "ann")]}, **QUIET)
    what = failures(writer, 4)
    assert what[0] == "the audit_ppm of slot 0 in the roster of round 4 is wrong"


def test_a_revoked_contributor_stays_out(tmp_path: Path) -> None:
    writer = Forgetful(tmp_path / "run", between={1: [("revoke", "ann", "coordinator")]}, **QUIET)
    assert failures(writer, 2)[0] == "the roster of round 2 has the wrong slots"


# --- who may enrol ---

ALLOWED = {name: key_text(name) for name, *_ in MEMBERS}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"bob": key_text("eve")}, "bob is not enrolled as identity.allow says"),
        (
            {"mallory": key_text("mallory")},
            "more of those that identity.allow names are missing than may be newcomers",
        ),
        ({"bob": None}, "bob is not enrolled as identity.allow says"),
    ],
)
def test_identity_allow(tmp_path: Path, change: dict[str, str | None], expected: str | None) -> None:
    allow = {name: key for name, key in {**ALLOWED, **change}.items() if key is not None}
    writer = Writer(tmp_path / "run", identity__allow=allow, **QUIET)
    assert failures(writer, 1) == ([] if expected is None else [expected])


@pytest.mark.parametrize("allow", [{"Bob": key_text("bob")}, {"bob": "key"}, []])
def test_identity_allow_is_from_member_to_key(tmp_path: Path, allow: Any) -> None:
    lie = lying("manifest", setter("config.identity.allow", allow))
    assert failures(Writer(tmp_path / "run", lie=lie, **QUIET), 1)[0].startswith("the manifest is malformed")


def test_allowed_members_may_change_their_keys(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", identity__allow=ALLOWED, between=ROTATED, **QUIET)
    assert failures(writer) == []


STEPS = "train.steps does not have one number per contributor"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([4, 6, 2, 8, 4], []),
        ([4, 6, 2, 8, 4, 2], [STEPS]),
        ([4, 6, 2, 8], [STEPS, f"{STEPS} (the log's story is not followed from here on)"]),
    ],
)
def test_there_are_steps_for_each_contributor(tmp_path: Path, steps: list[int], expected: list[str]) -> None:
    lie = lying("manifest", setter("config.train.steps", steps))
    assert failures(Writer(tmp_path / "run", lie=lie, **QUIET), 1) == expected
