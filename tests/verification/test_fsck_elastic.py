"""Members who come later, leave and return, at level 1: who may, when, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, key_text
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import lying, setter
from tests.verification.test_fsck_members import ALLOWED
from tests.verification.test_fsck_state import MEMBERS
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

Record = dict[str, Any]
OUT = ("revoke", "ann", "coordinator")
QUIET: dict[str, Any] = {"run__seed": 8, "script": {}, "silent": {}, "identity__newcomers": 2}
FAY = ("enrol", "fay", "contributor", "fjord", "c1")
GUS = ("enrol", "gus", "auditor", "gale", "c1")
COMING = {1: [FAY, GUS]}
LEAVING: dict[int, Any] = {
    2: [("leave", "ann", "member"), ("leave", "xia", "coordinator")],
    4: [("return", "xia"), ("return", "ann")],
}
GONE: dict[int, Any] = {2: LEAVING[2]}


def found(writer: Writer, turns: int = 3) -> list[str]:
    return [f.what for f in check_run(writer.run(turns=turns).write()).failures]


def records(writer: Writer, kind: str) -> list[Record]:
    return [r for k, r, _ in writer.records if k == kind]


def line_of(opened: Record, name: str) -> Record:
    return next(line for line in opened["roster"] if line["member"] == name)


def slots(opened: Record) -> list[int]:
    return [line["slot"] for line in opened["roster"]]


# --- honest runs ---


@pytest.mark.parametrize("mode", ["fixed", "measured"])
def test_a_newcomer_starts_like_everybody_else(tmp_path: Path, mode: str) -> None:
    sizes = [2, 1, 2, 2, 2]
    over = {**QUIET, "timing__mode": mode, "train__micro_batch": sizes, "between": COMING}
    writer = Writer(tmp_path / "run", **over)
    assert found(writer, 99) == []
    opens, closes = records(writer, "round-open"), records(writer, "round-close")
    assert [slots(opened) for opened in opens[:3]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    fay = [line_of(opened, "fay") for opened in opens[1:]]
    assert (fay[0]["steps"], fay[0]["micro_batch"]) == (2, 1)
    assert [line["audit_ppm"] for line in fay[:3]] == [1_000_000, 1_000_000, 400_000]
    assert [line["start_state"] == b3(b"zero") for line in fay] == [True] + [False] * 4
    assert {line["steps"] for line in fay} == ({2} if mode == "fixed" else {2, 4, 8})
    assert [a["member"] for a in opens[1]["auditors"]] == ["xia", "yan", "zoe", "wim", "vic", "gus"]
    assert "fay" not in [line["member"] for line in closes[0]["credits"]]
    credit = {line["member"]: line for line in closes[1]["credits"]}
    assert credit["fay"]["earned"] == 2 * 2 * 8
    assert credit["fay"]["vested"] == 0


@pytest.mark.parametrize("mode", ["fixed", "measured"])
def test_who_was_away_goes_on_as_it_was(tmp_path: Path, mode: str) -> None:
    over = {**QUIET, "timing__mode": mode, "between": LEAVING}
    writer = Writer(tmp_path / "run", **over)
    assert found(writer, 99) == []
    opens, closes = records(writer, "round-open"), records(writer, "round-close")
    assert [slots(opened)[0] for opened in opens] == [0, 0, 1, 1, 0, 0]
    assert [opened["auditors"][0]["member"] for opened in opens] == ["xia", "xia", "yan", "yan", "xia", "xia"]
    before, back = line_of(opens[1], "ann"), line_of(opens[4], "ann")
    ms = records(writer, "commit-close")[1]["ms"][0]
    paced = min(before["steps"] * 900 // ms, 2 * before["steps"], 9) // 2 * 2
    assert back["steps"] == (4 if mode == "fixed" else paced)
    assert (mode == "fixed") == (back["steps"] == opens[0]["roster"][0]["steps"])
    reveals = [r for r in records(writer, "reveal") if r["member"] == "ann"]
    assert back["start_state"] == reveals[1]["opening"]["next_state"]
    assert back["audit_ppm"] == 400_000
    credit = [next(line for line in close["credits"] if line["member"] == "ann") for close in closes]
    assert [line["earned"] == credit[1]["earned"] for line in credit] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert 0 == credit[2]["vested"] < credit[3]["vested"]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_people_come_and_go_as_they_like(tmp_path: Path, seed: int, *, named: bool) -> None:
    lag = seed % 3
    folder, over = tmp_path / "run", {"identity__newcomers": len(STRANGERS)}
    over["timing__mode"] = ("measured", "fixed")[seed % 2]
    over["train__micro_batch"] = [[], [2, 2, 1, 2, 2]][seed // 3]
    over["state__policy"] = ("snapshot", "reset")[seed // 4]
    if named:
        over["identity__allow"] = ALLOWED | {name: key_text(name) for _, name, *_ in STRANGERS}
    dice = Random(seed * 2 + named)
    script = {(dice.randrange(8), dice.randrange(7)): dice.choice(MISHAPS) for _ in range(14)}
    over |= {"run__max_void": 9, "script": script, "silent": {}, "credit__strikes": 3}
    writer = RestlessLate(folder, lag=lag, **over) if lag else Restless(folder, **over)
    writer.dice = dice
    assert found(writer, 9) == []
    told = [kind for kind, *_ in writer.records]
    assert {"enrol", "leave", "return"} <= set(told[told.index("round-open") :])


STRANGERS = [
    FAY,
    GUS,
    ("enrol", "hal", "contributor", "hill", "c2"),
    ("enrol", "ida", "auditor", "isle", "c2"),
]
MISHAPS = ["late", "cheat", "unrevealed", "mismatch", "noserve", "dispute", "malformed", "unmeasured"]


class Unsettled:
    """Between turns, whatever may stand there does: none of it depends on the run's script."""

    dice: Random

    def change_keys(self: Any) -> None:
        for _ in range(self.dice.randrange(1, 6) if self.turn else 0):
            here = set(self.info) - set(self.quarantined)
            may = [stranger for stranger in STRANGERS if stranger[1] not in self.info]
            may += [("return", name) for name in sorted(here & self.gone)] * 4
            may += [("leave", name, self.dice.choice(BY)) for name in sorted(here - self.gone)]
            may += [("rotate", name) for name in sorted(here)[:3]]
            may += [("revoke", name, self.dice.choice(BY)) for name in sorted(here & self.gone)[:1]]
            self.between = {self.turn: [self.dice.choice(may)]}
            super().change_keys()  # type: ignore[misc]


BY = ["member", "coordinator"]


class Restless(Unsettled, Writer):
    pass


class RestlessLate(Unsettled, LateWriter):
    pass


class Last(Writer):
    """What is to stand before the next open stands before the run-close where there is no next one."""

    def add(self, kind: str, record: Record, signer: str = "coordinator") -> None:
        if kind == "run-close":
            self.change_keys()
        super().add(kind, record, signer)


def test_they_may_stand_before_the_run_close(tmp_path: Path) -> None:
    between = {6: [FAY, ("leave", "ann", "member"), ("return", "ann"), ("leave", "fay", "coordinator")]}
    writer = Last(tmp_path / "run", **{**QUIET, "between": between})
    assert found(writer, 99) == []
    assert [kind for kind, *_ in writer.records[-6:]] == [
        "round-close", "enrol", "leave", "return", "leave", "run-close"
    ]  # fmt: skip


def test_a_log_may_end_with_them(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", **{**QUIET, "between": {1: [FAY, ("leave", "ann", "member")]}})
    writer.run(turns=1).change_keys()
    found_there = check_run(writer.write())
    assert (found_there.failures, found_there.complete) == ((), False)
    assert [record["member"] for record in found_there.enrolments][-1] == "fay"


def test_a_turn_may_have_nobody_in_it(tmp_path: Path) -> None:
    everybody = [("leave", name, "coordinator") for name, *_ in MEMBERS]
    writer = Writer(tmp_path / "run", **{**QUIET, "between": {1: everybody, 2: [("return", "cid")]}})
    assert found(writer) == []
    assert [slots(opened) for opened in records(writer, "round-open")] == [[0, 1, 2, 3, 4], [], [2]]
    assert [close["void"] for close in records(writer, "round-close")] == [False, True, True]


def test_who_is_away_may_change_its_key_and_be_revoked(tmp_path: Path) -> None:
    between = {**LEAVING, 3: [("rotate", "ann"), ("revoke", "xia", "coordinator")], 4: [("return", "ann")]}
    writer = Writer(tmp_path / "run", **{**QUIET, "between": between})
    assert found(writer, 99) == []
    back = line_of(records(writer, "round-open")[4], "ann")
    assert (back["key"], back["start_state"], back["audit_ppm"]) == (key_text("ann'"), b3(b"zero"), 1_000_000)
    after = records(writer, "round-close")[3]
    assert after["quarantined"] == ["xia"]
    credit = {line["member"]: line for line in after["credits"]}
    assert credit["xia"]["forfeited"] > 0


def test_what_is_at_stake_is_settled_while_its_owner_is_away(tmp_path: Path) -> None:
    """ann's first contribution fails an audit that lags, bob's passes one; both are away by then."""
    between = {1: [("leave", "ann", "member"), ("leave", "bob", "member")], 2: [("return", "bob")]}
    over = {**QUIET, "between": between, "script": {(0, 0): "cheat"}, "audit__rate_ppm": 1_000_000}
    writer = LateWriter(tmp_path / "run", **over)
    assert found(writer, 99) == []
    first = records(writer, "settlement")[0]
    assert [(line["member"], line["reason"]) for line in first["removed"]] == [("ann", "failed-audit")]
    assert first["quarantined"] == ["ann"]
    assert slots(records(writer, "round-open")[2]) == [1, 2, 3, 4]
    between[2] = [("return", "ann")]
    what = found(LateWriter(tmp_path / "run", **{**over, "between": between}))
    assert what[0] == "the return of ann is of a member in quarantine"
    what = found(LateWriter(tmp_path / "run", **over, lie=lying("settlement", setter("removed", []))))
    assert what[0] == "slot 0 of round 1 is settled wrongly by the settlement of round 1"


# --- lies about what follows ---


def again(path: str, index: int) -> Any:
    """Put somebody into a list who is not in it any more, as it stood there in the turn before."""

    def change(record: Record, writer: Writer) -> None:
        before = next(r for k, r, _ in reversed(writer.records) if k == "round-open")
        record[path].insert(index, before[path][index])

    return change


def of_credit(name: str, key: str, value: int) -> Any:
    def change(record: Record, _: Writer) -> None:
        next(line for line in record["credits"] if line["member"] == name)[key] = value

    return change


def without_credit(name: str) -> Any:
    def change(record: Record, _: Writer) -> None:
        record["credits"] = [line for line in record["credits"] if line["member"] != name]

    return change


def renumbered(record: Record, _: Writer) -> None:
    for slot, line in enumerate(record["roster"]):
        line["slot"] = slot


SIZED = {"train__micro_batch": [2, 1, 2, 2, 2]}
EFFECTS: dict[str, tuple[str, Any, tuple[str, int], Any, Any]] = {
    "away in the roster": (
        "the roster of round 3 has the wrong slots",
        GONE,
        ("round-open", 2),
        again("roster", 0),
        {},
    ),
    "slots move up": ("the roster of round 3 has the wrong slots", GONE, ("round-open", 2), renumbered, {}),
    "away among the auditors": (
        "the auditors of round 3 are wrong",
        GONE,
        ("round-open", 2),
        again("auditors", 0),
        {},
    ),
    "not back in the roster": (
        "the roster of round 5 has the wrong slots",
        LEAVING,
        ("round-open", 4),
        lambda r, _: r["roster"].pop(0) and None,
        {},
    ),
    "not back among the auditors": (
        "the auditors of round 5 are wrong",
        LEAVING,
        ("round-open", 4),
        lambda r, _: r["auditors"].pop(0) and None,
        {},
    ),
    "back with its first steps": (
        "the steps of slot 0 in the roster of round 5 is wrong",
        LEAVING,
        ("round-open", 4),
        setter("roster.0.steps", 4),
        {},
    ),
    "back from zero": (
        "the start_state of slot 0 in the roster of round 5 is wrong",
        LEAVING,
        ("round-open", 4),
        setter("roster.0.start_state", b3(b"zero")),
        {},
    ),
    "back on probation": (
        "the audit_ppm of slot 0 in the roster of round 5 is wrong",
        LEAVING,
        ("round-open", 4),
        setter("roster.0.audit_ppm", 1_000_000),
        {},
    ),
    "credit gone with its owner": (
        "the credits after round 3 do not list every member by name, once",
        GONE,
        ("round-close", 2),
        without_credit("ann"),
        {},
    ),
    "credit vests while away": (
        "the vested credit of ann after round 4 is wrong",
        GONE,
        ("round-close", 3),
        of_credit("ann", "vested", 0),
        {},
    ),
    "credit forfeited while away": (
        "the forfeited credit of ann after round 4 is wrong",
        {**GONE, 3: [OUT]},
        ("round-close", 3),
        of_credit("ann", "forfeited", 0),
        {},
    ),
    "quarantine while away": (
        "the members in quarantine after round 4 are wrong",
        {**GONE, 3: [OUT]},
        ("round-close", 3),
        setter("quarantined", []),
        {},
    ),
    "away is no quarantine": (
        "the members in quarantine after round 3 are wrong",
        GONE,
        ("round-close", 2),
        setter("quarantined", ["ann"]),
        {},
    ),
    "newcomer left out": (
        "the roster of round 2 has the wrong slots",
        COMING,
        ("round-open", 1),
        lambda r, _: r["roster"].pop() and None,
        {},
    ),
    "new auditor left out": (
        "the auditors of round 2 are wrong",
        COMING,
        ("round-open", 1),
        lambda r, _: r["auditors"].pop() and None,
        {},
    ),
    "another's slot": (
        "the member of slot 0 in the roster of round 3 is wrong",
        {1: [FAY], 2: [("leave", "ann", "member")]},
        ("round-open", 2),
        lambda r, _: r["roster"].insert(0, {**r["roster"].pop(), "slot": 0}),
        {},
    ),
    "newcomer's steps": (
        "the steps of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.steps", 4),
        {"timing__mode": "fixed"},
    ),
    "newcomer's measured steps": (
        "the steps of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.steps", 8),
        {},
    ),
    "newcomer's micro-batch": (
        "the micro_batch of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.micro_batch", 2),
        SIZED,
    ),
    "newcomer's micro-batch without a list": (
        "the micro_batch of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.micro_batch", 1),
        {},
    ),
    "newcomer's lineage": (
        "the start_state of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.start_state", b3(b"brought along")),
        {},
    ),
    "newcomer's probation": (
        "the audit_ppm of slot 5 in the roster of round 3 is wrong",
        COMING,
        ("round-open", 2),
        setter("roster.5.audit_ppm", 400_000),
        {},
    ),
    "newcomer's key": (
        "the key of slot 5 in the roster of round 2 is wrong",
        COMING,
        ("round-open", 1),
        setter("roster.5.key", key_text("bob")),
        {},
    ),
    "newcomer without credit": (
        "the credits after round 2 do not list every member by name, once",
        COMING,
        ("round-close", 1),
        without_credit("fay"),
        {},
    ),
    "idle newcomer without credit": (
        "the credits after round 2 do not list every member by name, once",
        {1: [GUS, ("leave", "gus", "member")]},
        ("round-close", 1),
        without_credit("gus"),
        {},
    ),
    "newcomer's credit": (
        "the earned credit of fay after round 2 is wrong",
        COMING,
        ("round-close", 1),
        of_credit("fay", "earned", 0),
        {},
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_follows_is_checked(tmp_path: Path, name: str) -> None:
    expected, between, (kind, turn), change, over = EFFECTS[name]
    over = {**QUIET, "between": between, **over}
    assert found(Writer(tmp_path / "run", **over), turn + 1) == []
    what = found(Writer(tmp_path / "run", lie=lying(kind, change, turn=turn), **over), turn + 1)
    assert any(text.startswith(expected) for text in what), what


class Deaf(Writer):
    """Logs that members come, leave and return, and goes on as if they had not."""

    def leave(self, name: str, by: str) -> None:
        super().leave(name, by)
        self.gone.discard(name)


def test_a_leave_has_to_be_heeded(tmp_path: Path) -> None:
    for name, expected in (("ann", "the roster of round 2 has the wrong slots"), ("xia", "the auditors of")):
        what = found(Deaf(tmp_path / "run", between={1: [("leave", name, "member")]}, **QUIET), 2)
        assert what[0].startswith(expected)
