"""Appeals, and what a record says of those overruled: one lie at a time, alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import key_text, sha
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import dropper, lying, popper, setter
from tests.verification.test_fsck_looks import (
    CHEAT,
    CROWD,
    FRIEND,
    LIARS,
    TORN,
    Record,
    Unlike,
    failures,
    name_at,
    overruled,
    played,
    records,
    told,
)
from tests.verification.test_fsck_looks_writer import roster_line, sealed
from tests.verification.test_fsck_tolerance import FAY, TOLERANT
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

APPEAL: dict[str, Any] = {"script": CHEAT, "appeals": {(0, 2)}}
THE = "the appeal of slot 2 in round 1"
NOT_ALIKE = "is not against two verdicts that failed it alike"


# --- appeals ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r, _: [("appeal", r, "coordinator")], f"{THE} is not signed by cid"),
        (lambda r, _: [("appeal", r, "ann")], f"{THE} is not signed by cid"),
        (setter("member", "ann"), f"the member in {THE} is wrong"),
        (setter("key", key_text("ann")), f"the key in {THE} is wrong"),
        (lambda r, _: r["verdicts"].reverse(), f"{THE} names other verdicts than those of looks 1 and 2"),
        (setter("verdicts.1", sha(b"other")), f"{THE} names other verdicts than those of looks 1 and 2"),
        (lambda r, _: [("appeal", r, "cid")] * 2, f"{THE} is out of order"),
        (setter("round", 2), "the round in the appeal is not that of its round-open"),
        (setter("run", sha(b"other")), "the run id in the appeal is another"),
    ],
)
@pytest.mark.parametrize("lag", [0, 1])
def test_an_appeal_told_wrongly(tmp_path: Path, change: Any, expected: str, lag: int) -> None:
    late: dict[str, Any] = {"kind": LateWriter, "lag": lag} if lag else {}
    assert failures(tmp_path, 2, lie=lying("appeal", change), **late, **APPEAL) == [expected]
    assert failures(tmp_path, 2, **late, **APPEAL) == []


def test_an_appeal_of_a_slot_that_nobody_has(tmp_path: Path) -> None:
    found = failures(tmp_path, lie=lying("appeal", setter("slot", 9)), **APPEAL)
    assert found[0] == "slot 9 is not in the roster of round 1"


class Early(Writer):
    """Appeals for slot 2 before the record of a kind and a look."""

    at: tuple[str, int] = ("round-close", 0)
    done = False

    def add(self, kind: str, record: Record, signer: str = "coordinator") -> None:
        self.come(kind, 0)
        super().add(kind, record, signer)

    def log(self, told: list[Any]) -> None:
        for kind, record, _ in told:
            if kind == "verdict":
                self.come(kind, record["look"])
        super().log(told)

    def come(self, kind: str, look: int) -> None:
        if (kind, look) == type(self).at and not self.done:
            self.done = True
            line = roster_line(next(r for r in records(self, "round-open")[-1:])["roster"], 2)
            two = [sealed(self.given.get((n, 2), {})) for n in (1, 2)]
            fields = {"slot": 2, "member": line["member"], "key": line["key"], "verdicts": two}
            super().log([("appeal", self.in_turn(**fields), self.signer(line["member"]))])


def early(kind: str, look: int) -> type[Writer]:
    return type("Sooner", (Early,), {"at": (kind, look)})


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({}, "pass and pass"),
        ({"sees": {(0, 1, 2): "!"}, "silent": {(0, 3, 2): 9}}, "fail and pass"),
        ({"sees": {(0, 1, 2): "!", (0, 2, 2): "?"}, "silent": {(0, 3, 2): 9}}, "fail and fail"),
        ({"script": CHEAT, "silent": {(0, 2, 2): 9}}, "fail and none"),
        ({"script": CHEAT, "lost": {(0, 2)}}, "none and fail"),
        ({"script": {(0, 2): "noserve"}}, "none and none"),
        ({"script": {(0, 2): "late"}}, "none and none"),
    ],
)
def test_there_is_no_appeal_but_against_two_that_fail_alike(tmp_path: Path, over: Any, words: str) -> None:
    writer = played(tmp_path, kind=early("round-close", 0), **over)
    found = check_run(writer.write()).failures
    assert [(f.what, f.got) for f in found] == [(f"{THE} {NOT_ALIKE}", words)]


def test_an_appeal_stands_before_third_looks(tmp_path: Path) -> None:
    over: Any = {"script": CHEAT, "sees": {(0, 1, 0): "!"}}
    assert failures(tmp_path / "honest", **over) == []
    found = failures(tmp_path / "late", kind=early("verdict", 4), **over)
    assert found == [f"{THE} stands after a third look"]
    # Before them it is heard, and then somebody has to look.
    found = failures(tmp_path / "ignored", kind=early("verdict", 3), **over)
    assert found
    assert all("gave no verdict for look 3 of slot 2" in what for what in found[:-1])
    assert found[-1] == "the files in the evidence against slot 2 in round 1 are wrong"


def test_an_appeal_stands_after_second_looks(tmp_path: Path) -> None:
    """Slot 3 is looked at again when slot 2 has appealed already."""

    class Sooner(Writer):
        def log(self, told: list[Any]) -> None:
            super().log(told)
            if any(k == "verdict" and (r["look"], r["slot"]) == (2, 2) for k, r, _ in told) and not self.turn:
                super().appeal(roster_line(records(self, "round-open")[-1]["roster"], 2))

    found = failures(tmp_path, kind=Sooner, script=CHEAT)
    assert [what for what in found if "stands after an appeal" in what] == [
        f"the verdict of look 2 of slot {slot} in round 1 stands after an appeal" for slot in (3, 4)
    ]
    assert found[0] == "the verdict of look 2 of slot 3 in round 1 stands after an appeal"


def test_an_appeal_stands_after_the_second_draw(tmp_path: Path) -> None:
    [what] = failures(tmp_path, kind=early("second-draw", 0), script=CHEAT)
    assert what.startswith("a record is out of order")


def test_appeals_stand_by_slot(tmp_path: Path) -> None:
    held: list[Any] = []

    def swap(kind: str, record: Record, writer: Writer) -> Any:
        if kind != "appeal":
            return record
        held.append((kind, record, record["member"]))
        return [] if len(held) == 1 else held[::-1]

    over: Any = {"script": {(0, 0): "cheat", **CHEAT}, "appeals": {(0, 0), (0, 2)}}
    assert failures(tmp_path / "honest", **over) == []
    assert failures(tmp_path, lie=swap, **over) == ["the appeal of slot 0 in round 1 is out of order"]


def test_an_appeal_that_is_not_heard(tmp_path: Path) -> None:
    """The third look is due, and those who could do it are named."""
    writer = played(tmp_path / "honest", **APPEAL)
    third = name_at(writer, 3)
    assert told(writer)[0] == "failed-audit"

    def drop(kind: str, record: Record, _: Writer) -> Any:
        return [] if kind == "verdict" and record["look"] == 3 else record

    found = failures(tmp_path / "lie", lie=drop, **APPEAL)
    assert f"{third} gave no verdict for look 3 of slot 2 in round 1" in found


def test_an_appeal_that_the_coordinator_drops(tmp_path: Path) -> None:
    """Nobody can tell from the log; then it is no matter of a third look either."""
    third = name_at(played(tmp_path / "honest", **APPEAL), 3)
    found = failures(tmp_path / "lie", lie=lying("appeal", dropper), **APPEAL)
    assert found[0].startswith(f"{third} was not to give a verdict for look 3 of slot 2 in round 1")


# --- overruled ---


def of_record(lag: int) -> tuple[str, dict[str, Any]]:
    """What says who is overruled, the last record after `1 + lag` turns, and how it comes to that."""
    return ("settlement", {"kind": LateWriter, "lag": lag}) if lag else ("round-close", {})


EVIDENCE = "the evidence of overruled {0} at slot 2 in round 1"
NOT_OF_SLOT = f"{EVIDENCE} is not that of its slot"
ORDER = "who was overruled in round 1 is not in order, each once"
NOT_LISTED = "{0} is not listed as overruled for look 1 of slot 2 in round 1"


def named(record: Record, _: Writer) -> None:
    record["overruled"].append({"auditor": "tom", "evidence": None, "look": 1, "slot": 4})


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(
    ("over", "change", "expected"),
    [
        (TORN, popper("overruled"), NOT_LISTED),
        (
            TORN,
            setter("overruled.0.auditor", "ron"),
            NOT_LISTED,
        ),
        (
            TORN,
            setter("overruled.0.look", 2),
            NOT_LISTED,
        ),
        (TORN, setter("overruled.0.evidence", None), f"{EVIDENCE} is missing"),
        (FRIEND, setter("overruled.0.evidence", None), f"{EVIDENCE} is not that of its slot"),
        (FRIEND, setter("overruled.0.evidence", sha(b"x")), f"{EVIDENCE} is not that of its slot"),
        (LIARS, setter("overruled.1.evidence", sha(b"x")), NOT_OF_SLOT.replace("{0}", "{1}")),
        (LIARS, lambda r, _: r["overruled"].reverse(), ORDER),
        (TORN, lambda r, _: r["overruled"].append(r["overruled"][0]), ORDER),
        (TORN, named, "tom is listed as overruled for look 1 of slot 4 in round 1"),
        ({}, named, "tom is listed as overruled for look 1 of slot 4 in round 1"),
    ],
)  # fmt: skip
def test_overruled_told_wrongly(tmp_path: Path, over: Any, change: Any, expected: str, lag: int) -> None:
    kind, late = of_record(lag)
    honest = played(tmp_path / "honest", 1 + lag, **late, **over)
    names = [line["auditor"] for line in records(honest, kind)[0]["overruled"]]
    found = failures(tmp_path / "lie", 1 + lag, lie=lying(kind, change, turn=0), **late, **over)
    assert found[0] == expected.format(*names)
    rest = ("overruled", "quarantine", "credit of", "the auditors of", "evidence", "an unexpected file")
    assert all(any(word in what for word in rest) for what in found[1:])


@pytest.mark.parametrize("lag", [0, 1])
def test_the_overruled_are_in_quarantine_and_are_not_paid(tmp_path: Path, lag: int) -> None:
    kind, late = of_record(lag)
    name = name_at(played(tmp_path / "honest", 1 + lag, **late, **TORN), 1)
    found = failures(
        tmp_path / "a", 1 + lag, lie=lying(kind, setter("quarantined", []), turn=0), **late, **TORN
    )
    assert found == [f"the members in quarantine after {'the settlement of ' * bool(lag)}round 1 are wrong"]

    def pay(record: Record, _: Writer) -> None:
        next(line for line in record["credits"] if line["member"] == name)["forfeited"] += 8

    found = failures(tmp_path / "b", 1 + lag, lie=lying(kind, pay, turn=0), **late, **TORN)
    assert found == [
        f"the forfeited credit of {name} after {'the settlement of ' * bool(lag)}round 1 is wrong"
    ]


def test_a_verdict_of_the_side_that_prevails_may_be_overruled_and_is_not_paid(tmp_path: Path) -> None:
    """It says the outcome that the slot is settled with, and has other deviations than those of its class."""
    kind = type("Odd", (Unlike,), {"odd": staticmethod(lambda look: look == 1)})
    over = {**TOLERANT, "more": [*TOLERANT["more"], *CROWD["more"]], "kind": kind}
    writer = played(tmp_path / "honest", **over)
    name = name_at(writer, 1, FAY)
    mine = [r for r in records(writer, "verdict") if r["auditor"] == name]
    line = next(c for c in records(writer, "round-close")[0]["credits"] if c["member"] == name)
    paid = [writer.pay(records(writer, "round-open")[0]["roster"], r["slot"],
            writer.committed[r["slot"]][0]["opening"]) for r in mine if r["slot"] != FAY]  # fmt: skip
    assert mine[-1]["outcome"] == "pass"
    assert line["earned"] == sum(paid)
    assert overruled(writer) == [(FAY, 1, False)]

    def give(record: Record, _: Writer) -> None:
        credit = next(c for c in record["credits"] if c["member"] == name)
        credit["earned"] += 8

    found = failures(tmp_path / "lie", lie=lying("round-close", give), **over)
    assert found == [f"the earned credit of {name} after round 1 is wrong"]
    evidence = lying("round-close", setter("overruled.0.evidence", sha(b"x")))
    found = failures(tmp_path / "case", lie=evidence, **over)
    assert found[0] == f"there is evidence of overruled {name} at slot {FAY} in round 1, who failed nobody"


def test_nobody_is_overruled_in_a_provisional_close(tmp_path: Path) -> None:
    over: Any = {"kind": LateWriter, "lag": 1, **TORN}
    found = failures(tmp_path, 1, lie=lying("round-close", named), **over)
    assert found[0] == "tom is listed as overruled for look 1 of slot 4 in round 1"


def test_somebody_unknown_is_overruled(tmp_path: Path) -> None:
    lie = lying(
        "round-close", setter("overruled", [{"auditor": "x", "evidence": None, "look": 9, "slot": 77}])
    )
    assert failures(tmp_path, lie=lie) == ["x is listed as overruled for look 9 of slot 77 in round 1"]


# --- cases ---


@pytest.mark.parametrize("lag", [0, 1])
def test_the_case_on_a_slot_that_is_accepted(tmp_path: Path, lag: int) -> None:
    _, late = of_record(lag)
    writer = played(tmp_path, 2, **late, **LIARS)
    run, folder = writer.write(), "evidence/r00001-a0-s2"
    files = sorted(path.name for path in (run / folder).iterdir())
    assert [name for name in files if name.startswith(("verdict", "appeal"))] == [
        "appeal", *(f"verdict-{look}" for look in range(1, 6)),
    ]  # fmt: skip
    assert check_run(run).failures == ()
    (run / folder / "verdict-4").write_bytes(b"another")
    of = "the evidence against slot 2 in round 1"
    assert [f.what for f in check_run(run).failures] == [f"verdict-4 in {of} has another digest"]
    (run / folder / "verdict-4").unlink()
    assert [f.what for f in check_run(run).failures] == [f"verdict-4 in {of} is missing or cannot be read"]
    (run / folder / "case.json").unlink()
    assert f"{of} is missing or cannot be read" in [f.what for f in check_run(run).failures]


class Few(Writer):
    """Says in its cases that there were fewer looks, or no appeal."""

    hidden = ""

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        given, appealed = dict(self.given), set(self.appealed)
        if self.hidden == "appeal":
            self.appealed = set()
        else:
            self.given = {key: v for key, v in given.items() if f"verdict-{key[0]}" != self.hidden}
        found = super().evidence(line, reason, reveals)
        self.given, self.appealed = given, appealed
        return found


@pytest.mark.parametrize("hidden", ["appeal", "verdict-1", "verdict-3", "verdict-5"])
def test_a_case_has_all_verdicts_and_the_appeal(tmp_path: Path, hidden: str) -> None:
    kind = type("Hiding", (Few,), {"hidden": hidden})
    found = failures(tmp_path, kind=kind, **LIARS)
    assert found == ["the files in the evidence against slot 2 in round 1 are wrong"]
    assert failures(tmp_path, kind=Few, **LIARS) == []


def test_a_case_on_an_accepted_slot_says_so(tmp_path: Path) -> None:
    """Its reason is no settling's, and its member is the contributor's."""

    class Other(Writer):
        def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
            return super().evidence({**line, "member": "ann"}, "failed-audit", reveals)

    found = failures(tmp_path, kind=Other, **TORN)
    of = "the evidence against slot 2 in round 1"
    assert found[:2] == [f"the member in {of} is wrong", f"the reason in {of} is wrong"]
