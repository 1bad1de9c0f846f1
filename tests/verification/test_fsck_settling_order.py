"""Settlements: where they may stand, their shape, and what changes of keys between mean for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import envelope, sha
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import dropper, lying, setter
from tests.verification.test_fsck_settling import CHEAT, Record, failures, found_in, told
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

STOPPED = " (the log's story is not followed from here on)"


def out_of_order(folder: Path, lie: Any, turns: int = 3, **over: Any) -> str:
    found = [f.what for f in found_in(folder, turns, lie=lie, **over)]
    assert [what for what in found if "out of order" in what]
    return next(what for what in found if "out of order" in what).removesuffix(STOPPED)


def test_nothing_else_stands_while_a_settlement_is_due(tmp_path: Path) -> None:
    for kind in ("second-draw", "settlement"):
        assert out_of_order(tmp_path, lying(kind, dropper), 4) == "a record is out of order"
    writer = LateWriter(tmp_path / "run", **CHEAT).run(turns=3)
    at = max(i for i, (kind, _, _) in enumerate(writer.records) if kind == "round-close")
    for kind in ("round-open", "run-close", "key-rotation", "key-revocation", "settlement"):
        writer.entries = [*writer.entries[: at + 1], envelope(kind, {}, "coordinator", writer.run_subject)]
        writer.records = [*writer.records[: at + 1], (kind, {}, "coordinator")]
        found = [f.what.removesuffix(STOPPED) for f in check_run(writer.write()).failures]
        assert any(what.startswith("a record is out of order") for what in found), kind


def test_no_settlement_stands_when_none_is_due(tmp_path: Path) -> None:
    for turns, lag in ((1, 2), (2, 2), (3, 2), (4, 1)):
        writer = LateWriter(tmp_path / "run", **{**CHEAT, "lag": lag}).run(turns=turns)
        for kind in ("second-draw", "settlement", "verdict"):
            entries = [*writer.entries, envelope(kind, {}, "coordinator", writer.run_subject)]
            late = LateWriter(tmp_path / "run", **{**CHEAT, "lag": lag})
            late.entries, late.records, late.files = entries, writer.records, writer.files
            found = [f.what for f in check_run(late.write()).failures]
            assert found == [f"a record is out of order{STOPPED}"], (turns, kind)


def test_without_a_lag_there_are_no_settlements(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", script={}, silent={}).run(turns=1)
    writer.entries.append(envelope("settlement", {}, "coordinator", writer.run_subject))
    found = [f.what for f in check_run(writer.write()).failures]
    assert found == [f"a record is out of order{STOPPED}"]


def test_a_settlement_is_of_the_turn_that_is_due(tmp_path: Path) -> None:
    for key, value in (("round", 2), ("attempt", 1)):
        found = failures(tmp_path, 3, **told(setter(key, value)))
        assert found == [f"the {key} in the settlement is not that of its round-open"]


def test_what_is_signed_twice_in_a_settlement(tmp_path: Path) -> None:
    twice = lambda kind: lambda record, _: [(kind, record, "coordinator")] * 2  # noqa: E731
    what = "a record is out of order: the second-draw of one turn is signed twice"
    assert out_of_order(tmp_path, lying("second-draw", twice("second-draw"))) == what
    what = "a record is out of order: the served of one turn is signed twice"
    assert out_of_order(tmp_path, lying("served", twice("served"))) == what
    what = "a record is out of order: the round-close of one turn is signed twice"
    for turn in (0, 2):
        assert out_of_order(tmp_path, lying("round-close", twice("round-close"), turn=turn)) == what


def test_a_settlement_is_signed_by_the_coordinator(tmp_path: Path) -> None:
    lie = lying("settlement", lambda record, _: [("settlement", record, "ann")])
    assert failures(tmp_path, lie=lie) == ["the settlement is not signed by the coordinator"]


def test_links_are_numbered_by_draws(tmp_path: Path) -> None:
    class ByTurn(LateWriter):
        def number(self, look: int) -> int:
            return 2 * self.turn + look

    found = [f.what for f in found_in(tmp_path, 3, ByTurn, script={}, lag=1)]
    assert "the link of draw in round 2 is not link 2 of the draw chain" in found


# --- shapes ---


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("removed", None),
        ("removed.0.reason", "none"),
        ("removed.0.round", 0),
        ("removed.0.attempt", -1),
        ("removed.0.slot", -1),
        ("removed.0.fault", 1),
        ("removed.0.evidence", "0"),
        ("removed.0.member", ""),
        ("missed", {}),
        ("settled", {}),
        ("settled.weights", sha(b"")),
        ("weights", sha(b"")),
        ("outer", None),
        ("requeued", None),
        ("requeued.0.range", [1, 1]),
        ("credits", None),
        ("quarantined", [1]),
        ("more", 1),
    ],
)
def test_the_shape_of_a_settlement(tmp_path: Path, path: str, value: Any) -> None:
    found = failures(tmp_path, **told(setter(path, value)))
    assert len(found) >= 1
    assert "does not fit" in found[0] or "settlement does not fit" in found[0]


# --- keys ---


def test_a_late_verdict_is_signed_with_the_key_of_the_open(tmp_path: Path) -> None:
    """A rotation in between changes nothing; a verdict with the new key is not the open's auditor's."""
    changes = {1: [("rotate", name) for name in ("xia", "yan", "zoe")]}
    over: Any = {"lag": 1, "script": {}, "between": changes}
    assert failures(tmp_path, 2, **over) == []

    def lie(kind: str, record: Record, writer: LateWriter) -> Any:
        if kind != "verdict" or writer.turn or record["auditor"] != "xia":
            return record
        return [(kind, record, "xia'")]

    found = failures(tmp_path, 2, lie=lie, **over)
    assert found
    assert all(what.endswith("is not signed by xia") for what in found)


def test_what_was_removed_after_a_rotation_leaves_the_zero_state(tmp_path: Path) -> None:
    over: Any = {"lag": 2, "script": {(1, 2): "dispute"}, "between": {2: [("rotate", "cid")]}}
    writer = LateWriter(tmp_path / "run", **{**CHEAT, **over}).run(turns=5)
    opens = [r for k, r, _ in writer.records if k == "round-open"]
    assert opens[4]["roster"][2]["start_state"] == writer.manifest["zero_state"]
    assert opens[3]["roster"][2]["start_state"] != writer.manifest["zero_state"]
    assert check_run(writer.write()).failures == ()


def test_who_was_revoked_has_forfeited_what_is_removed(tmp_path: Path) -> None:
    over: Any = {"lag": 2, "script": {(0, 2): "dispute"}, "between": {2: [("revoke", "cid", "member")]}}
    writer = LateWriter(tmp_path / "run", **{**CHEAT, **over}).run(turns=3)
    assert writer.credit["cid"] == {"earned": 0, "forfeited": 0, "member": "cid", "vested": 0}
    assert check_run(writer.write()).failures == ()


def test_an_auditor_that_was_revoked_forfeits_what_it_earns_late(tmp_path: Path) -> None:
    over: Any = {"lag": 1, "script": {}, "between": {1: [("revoke", "yan", "coordinator")]}}
    writer = LateWriter(tmp_path / "run", **{**CHEAT, **over}).run(turns=2)
    assert writer.credit["yan"]["forfeited"] == writer.credit["yan"]["earned"] > 0
    assert check_run(writer.write()).failures == ()
