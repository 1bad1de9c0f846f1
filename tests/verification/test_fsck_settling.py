"""Settlements: each rule alone, told wrongly by a coordinator that signs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, sha
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import lying, popper, setter
from verification.fsck import Failure, check_run

Record = dict[str, Any]
ALL: dict[str, Any] = {"audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000, "silent": {}}
# Slot 2 cheats in the first turn; with a lag of 2 what it has accepted in the next two follows.
CHEAT: dict[str, Any] = {"script": {(0, 2): "cheat"}, "lag": 2, **ALL}
BY = "by the settlement of round 1"
OF = "of the settlement of round 1"
OTHER = {"outer": b3(b"other outer"), "weights": b3(b"other weights")}


def found_in(folder: Path, turns: int = 3, kind: type[LateWriter] = LateWriter, **over: Any) -> list[Failure]:
    writer = kind(folder / "run", **{**CHEAT, **over}).run(turns=turns)
    return list(check_run(writer.write()).failures)


def failures(folder: Path, turns: int = 3, **over: Any) -> list[str]:
    return [f.what for f in found_in(folder, turns, **over)]


def told(change: Any, turn: int = 0) -> dict[str, Any]:
    return {"lie": lying("settlement", change, turn=turn)}


def test_the_cheat_is_removed_and_what_follows(tmp_path: Path) -> None:
    writer = LateWriter(tmp_path / "run", **CHEAT).run(turns=3)
    assert writer.removed == [(0, 2, "failed-audit"), (1, 2, "follows"), (2, 2, "follows")]
    found = check_run(writer.write())
    assert found.failures == ()
    assert [dict(t.removed) for t in found.turns] == [{2: True}, {2: False}, {2: False}]


# --- what is removed ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r, _: r["removed"].reverse(), [f"what is removed {BY} is not in order, each once"]),
        (
            lambda r, _: r["removed"].insert(0, r["removed"][0]),
            [f"what is removed {BY} is not in order, each once"],
        ),
        (
            lambda r, _: r["removed"].append({**r["removed"][2], "round": 9}),
            [f"slot 2 of round 9 attempt 0 is removed {BY} though it is not accepted"],
        ),
        (
            lambda r, _: r["removed"].append({**r["removed"][2], "slot": 9}),
            [f"slot 9 of round 3 attempt 0 is removed {BY} though it is not accepted"],
        ),
        (
            setter("removed.0.member", "ann"),
            [
                "the member of removed slot 2 of round 1 is wrong",
                "the member in the evidence against slot 2 in round 1 is wrong",
            ],
        ),
        (setter("removed.1.member", "ann"), ["the member of removed slot 2 of round 2 is wrong"]),
        (setter("removed.0.fault", False), ["the fault of removed slot 2 of round 1 is wrong"]),
        (setter("removed.1.fault", True), ["the fault of removed slot 2 of round 2 is wrong"]),
        (setter("removed.2.reason", "unaudited"), [f"slot 2 of round 3 is settled wrongly {BY}"]),
        (
            setter("removed.1.evidence", sha(b"")),
            ["there is evidence of removed slot 2 of round 2, which only follows"],
        ),
    ],
)
def test_what_is_removed_is_told_wrongly(tmp_path: Path, change: Any, expected: list[str]) -> None:
    assert failures(tmp_path, **told(change)) == expected


def test_a_failed_audit_has_evidence(tmp_path: Path) -> None:
    found = failures(tmp_path, **told(setter("removed.0.evidence", None)))
    assert found[0] == "the evidence of removed slot 2 of round 1 is missing"
    assert set(found[1:]) == {"an unexpected file lies in the run folder"}


def test_evidence_of_a_settlement_is_looked_at(tmp_path: Path) -> None:
    writer = LateWriter(tmp_path / "run", **CHEAT).run(turns=3)
    run = writer.write()
    case = "evidence/r00001-a0-s2"
    (run / case / "payload").write_bytes(b"other")
    said = [("payload in the evidence against slot 2 in round 1 has another digest", f"{case}/payload")]
    assert [(f.what, f.where) for f in check_run(run).failures] == said
    (run / case / "more").write_bytes(b"other")
    said.append(("an unexpected file lies in the run folder", f"{case}/more"))
    assert [(f.what, f.where) for f in check_run(run).failures] == said


@pytest.mark.parametrize(
    ("at", "turn", "want"), [(0, 1, "failed-audit"), (1, 2, "follows"), (2, 3, "follows")]
)
def test_nothing_that_is_due_is_left_out(tmp_path: Path, at: int, turn: int, want: str) -> None:
    """And the rest of the settlement is judged by what it says is removed."""
    found = found_in(tmp_path, **told(popper("removed", at)))
    assert (found[0].what, found[0].expected, found[0].got) == (
        f"slot 2 of round {turn} is settled wrongly {BY}", want, "accepted",
    )  # fmt: skip
    assert any("queue" in f.what for f in found)


def test_what_is_removed_of_a_later_turn_alone_takes_nothing_with_it(tmp_path: Path) -> None:
    def more(record: Record, _: Any) -> None:
        record["removed"].insert(2, {**record["removed"][1], "slot": 3, "member": "dee"})

    found = failures(tmp_path, **told(more))
    assert [what for what in found if "is settled" in what] == [f"slot 3 of round 2 is settled wrongly {BY}"]


@pytest.mark.parametrize("said", [None, "disputed", "unconfirmed"])
def test_what_comes_after_is_judged_by_what_the_settlement_says(tmp_path: Path, said: str | None) -> None:
    found = found_in(tmp_path, 5, settle_as={(0, 2): said})
    assert [(f.what, f.expected, f.got) for f in found] == [
        (f"slot 2 of round 1 is settled wrongly {BY}", "failed-audit", said or "accepted")
    ]


def test_what_is_removed_without_a_reason_is_removed(tmp_path: Path) -> None:
    found = failures(tmp_path, 5, script={}, settle_as={(0, 1): "unaudited"})
    assert found == [f"slot 1 of round 1 is settled wrongly {BY}"]


@pytest.mark.parametrize("reason", ["unaudited", "unconfirmed", "disputed", "failed-audit"])
def test_each_reason_of_a_settlement(tmp_path: Path, reason: str) -> None:
    script = {(0, 2): {"disputed": "dispute", "unaudited": ""}.get(reason, "cheat")}
    silent = {
        "unaudited": {(0, 1, 2): 9},
        "unconfirmed": {(0, 2, 2): 9},
    }.get(reason, {})
    writer = LateWriter(tmp_path / "run", **{**CHEAT, "script": script, "silent": silent}).run(turns=3)
    assert writer.removed[0] == (0, 2, reason)
    assert check_run(writer.write()).failures == ()


# --- missed ---


def test_who_missed_is_told_in_the_settlement(tmp_path: Path) -> None:
    silent = {(0, 1, 0): 1, (0, 2, 1): 1}
    assert failures(tmp_path, silent=silent) == []
    found = failures(tmp_path, silent=silent, **told(lambda r, _: r["missed"].clear()))
    assert sorted(what.partition(" ")[2] for what in found) == [
        "gave no verdict for look 1 of slot 0 in round 1",
        "gave no verdict for look 2 of slot 1 in round 1",
    ]
    invented = {"auditor": "zoe", "look": 1, "slot": 0}
    found = failures(tmp_path, **told(setter("missed", [invented])))
    assert found == ["zoe is listed as missed for look 1 of slot 0 in round 1"]


def test_nobody_missed_anything_in_a_provisional_close(tmp_path: Path) -> None:
    missed = [{"auditor": "zoe", "look": 1, "slot": 0}]
    found = failures(tmp_path, 1, lie=lying("round-close", setter("missed", missed)))
    assert found == ["zoe is listed as missed for look 1 of slot 0 in round 1"]


def test_nobody_is_called_for_what_was_removed_before(tmp_path: Path) -> None:
    missed = [{"auditor": "zoe", "look": 1, "slot": 2}]
    found = failures(tmp_path, 4, **told(setter("missed", missed), 1))
    assert found == ["zoe is listed as missed for look 1 of slot 2 in round 2"]


class Judging(LateWriter):
    """Asks for a verdict on what the settlement before removed."""

    def settle(self, one: Any) -> None:
        if one.now["turn"] == 1:
            one.standing.append(2)
        super().settle(one)


def test_nobody_may_judge_what_was_removed_before(tmp_path: Path) -> None:
    found = [f.what for f in found_in(tmp_path, 4, Judging)]
    assert found[0].endswith("was not to look first at slot 2 in round 2")
    what = "was not to give a verdict for look 1 of slot 2 in round 2, or one was given before"
    assert any(text.endswith(what) for text in found)


# --- what a provisional close says ---


def test_a_provisional_close_does_not_judge(tmp_path: Path) -> None:
    class Early(LateWriter):
        def close_turn(self, roster: Any, fate: Any, *rest: Any) -> None:
            if self.turn == 0:
                fate[2] = "unaudited"
                self.waiting[-1].standing.remove(2)
            super().close_turn(roster, fate, *rest)

    found = [f.what for f in found_in(tmp_path, 5, Early)]
    assert found == ["slot 2 is settled wrongly in round 1"]


def test_unserved_is_told_in_the_close(tmp_path: Path) -> None:
    writer = LateWriter(tmp_path / "run", **{**CHEAT, "script": {(0, 2): "noserve"}}).run(turns=3)
    close = next(r for k, r, _ in writer.records if k == "round-close")
    assert [(line["slot"], line["reason"]) for line in close["rejected"]] == [(2, "unserved")]
    assert check_run(writer.write()).failures == ()


# --- what is carried over ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (popper("requeued"), "the queue after the settlement of round 1 is wrong"),
        (
            popper("credits"),
            "the credits after the settlement of round 1 do not list every member by name, once",
        ),
        (
            setter("credits.0.earned", lambda n: n + 1),
            "the earned credit of ann after the settlement of round 1 is wrong",
        ),
        (
            setter("credits.0.vested", lambda n: n + 1),
            "the vested credit of ann after the settlement of round 1 is wrong",
        ),
        (
            setter("credits.2.forfeited", lambda n: n + 1),
            "the forfeited credit of cid after the settlement of round 1 is wrong",
        ),
        (setter("quarantined", []), "the members in quarantine after the settlement of round 1 are wrong"),
    ],
)
def test_what_is_left_is_told_wrongly(tmp_path: Path, change: Any, expected: str) -> None:
    assert failures(tmp_path, **told(change)) == [expected]


class Wrong(LateWriter):
    """Goes on as if one thing in the standing of a member were different after the first settlement."""

    spoil: Any = None

    def settle(self, one: Any) -> None:
        super().settle(one)
        if one.now["turn"] == 0:
            type(self).spoil(self)


def _state(writer: LateWriter) -> None:
    writer.state["cid"] = b"another"


def _accepted(writer: LateWriter) -> None:
    writer.accepted["cid"] = 9


def _suspect(writer: LateWriter) -> None:
    writer.suspect ^= {"dee"}


@pytest.mark.parametrize(
    ("spoil", "over", "expected"),
    [
        (
            _state,
            {"script": {(0, 2): "dispute"}},
            "the start_state of slot 2 in the roster of round 4 is wrong",
        ),
        (
            _accepted,
            {"script": {(0, 2): "dispute"}, "audit__rate_ppm": 999_999, "audit__probation_rounds": 1},
            "the audit_ppm of slot 2 in the roster of round 4 is wrong",
        ),
        (
            _suspect,
            {"script": {}, "audit__rate_ppm": 999_999, "audit__probation_rounds": 0},
            "the audit_ppm of slot 3 in the roster of round 4 is wrong",
        ),
    ],
)
def test_lineage_and_standing_after_a_settlement(
    tmp_path: Path, spoil: Any, over: Any, expected: str
) -> None:
    kind = type("Spoilt", (Wrong,), {"spoil": staticmethod(spoil)})
    found = [f.what for f in found_in(tmp_path, 4, kind, **over)]
    assert expected in found
    assert [f.what for f in found_in(tmp_path / "honest", 4, **over)] == []


def test_a_suspect_is_cleared_by_its_settlement_only(tmp_path: Path) -> None:
    """Of the second turn, whose settlement comes after the close of the third with a lag of one."""
    over: Any = {"script": {(0, 3): "unrevealed"}, "audit__rate_ppm": 999_999, "audit__probation_rounds": 0}
    writer = LateWriter(tmp_path / "run", **{**CHEAT, **over, "lag": 1}).run(turns=4)
    opens = [r for k, r, _ in writer.records if k == "round-open"]
    ppm = [next(line["audit_ppm"] for line in r["roster"] if line["slot"] == 3) for r in opens]
    assert ppm == [999_999, 1_000_000, 1_000_000, 999_999]
    assert check_run(writer.write()).failures == ()


def test_tokens_of_what_was_removed_do_not_count(tmp_path: Path) -> None:
    over: Any = {"run__rounds": 4, "turns": 9}
    assert failures(tmp_path, **over) == []

    def count(record: Record, writer: LateWriter) -> None:
        closes = [r for k, r, _ in writer.records if k == "round-close"]
        record["tokens"] = sum(line["tokens"] for r in closes for line in r["accepted"])

    assert failures(tmp_path, lie=lying("run-close", count), **over) == [
        "the tokens of the run-close are wrong"
    ]


# --- checkpoints ---

SETTLED = f"the settled checkpoint {OF} is not the one after that turn"
LAST = f"the checkpoint {OF}, which removes nothing, is another"


def test_a_settlement_that_removes_nothing_changes_nothing(tmp_path: Path) -> None:
    assert failures(tmp_path, script={}, **told(setter("settled", OTHER))) == [SETTLED]
    for key in ("weights", "outer"):
        found = failures(tmp_path, 3, script={}, **told(setter(key, OTHER[key])))
        assert found == [LAST]
        found = failures(tmp_path, 3, script={}, **told(setter(f"settled.{key}", OTHER[key])))
        assert found == [SETTLED]


def test_after_a_removal_checkpoints_are_another_levels_matter(tmp_path: Path) -> None:
    """Until what is known of later closes tells them again."""
    assert failures(tmp_path, **told(setter("settled", OTHER))) == []
    assert failures(tmp_path, 4, **told(setter("settled", OTHER), 1)) == []
    second = "the settled checkpoint of the settlement of round 3 is not the one after that turn"
    assert failures(tmp_path, 5, **told(setter("settled", OTHER), 2)) == [second]
    third = "the settled checkpoint of the settlement of round 4 is not the one after that turn"
    assert failures(tmp_path, 6, run__rounds=9, **told(setter("settled", OTHER), 3)) == [third]


def test_the_next_open_starts_from_the_settlement(tmp_path: Path) -> None:
    def before(record: Record, writer: LateWriter) -> None:
        close = [r for k, r, _ in writer.records if k == "round-close"][-1]
        record["base"] = {"outer": close["outer"], "weights": close["weights"]}

    found = failures(tmp_path, 4, lie=lying("round-open", before, turn=3))
    assert found[0] == "round 4 does not start from the last checkpoint"


EMPTY: dict[str, Any] = {"script": {(0, slot): "dispute" for slot in range(5)}}
KEPT = f"the settled checkpoint {OF} is not the one before, though nothing of the turn is accepted"


def test_a_turn_of_which_nothing_is_left_settles_nothing(tmp_path: Path) -> None:
    assert failures(tmp_path, **EMPTY) == []
    assert KEPT in failures(tmp_path, **EMPTY, **told(setter("settled", OTHER)))
    void: Any = {"script": {(1, slot): "late" for slot in range(5)}}
    found = failures(tmp_path, 4, **void, **told(setter("settled", OTHER), 1))
    assert found == [KEPT.replace("of round 1", "of round 2")]


def test_the_last_settlement_has_one_checkpoint(tmp_path: Path) -> None:
    over: Any = {"run__rounds": 3, "script": {(2, 2): "dispute"}, "turns": 9}
    assert failures(tmp_path, **over) == []
    what = "the last checkpoint of the settlement of round 3 is not the settled one though nothing after it"
    assert failures(tmp_path, **over, **told(setter("settled", OTHER), 2)) == [f"{what} is accepted"]
    assert (
        found_in(tmp_path, **over, **told(setter("weights", OTHER["weights"]), 2))[0].what
        == f"{what} is accepted"
    )
