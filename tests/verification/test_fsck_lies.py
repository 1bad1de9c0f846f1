"""Lies of a coordinator, properly signed: level 1 names each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, envelope, key_text, note_of, sha, vkey
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

Record = dict[str, Any]
Change = Callable[[Record, Writer], Any]


def lying(kind: str, change: Change, *, turn: int | None = None, nth: int = 0) -> Any:
    """A hook that changes the nth record of a kind (of a turn); `change` edits it or returns what to log."""
    seen = [0]

    def lie(k: str, record: Record, writer: Writer) -> Any:
        if k != kind or (turn is not None and writer.turn != turn):
            return record
        seen[0] += 1
        if seen[0] != nth + 1:
            return record
        answer = change(record, writer)
        return record if answer is None else answer

    return lie


def setter(path: str, value: Any) -> Change:
    """Set a member, e.g. `accepted.0.weight`; a callable is given the old value."""

    def change(record: Record, _: Writer) -> None:
        *folders, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        here: Any = record
        for folder in folders:
            here = here[folder]
        here[last] = value(here[last]) if callable(value) else value

    return change


def dropper(record: Record, _: Writer) -> list[Any]:
    return []


def popper(path: str, index: int = -1) -> Change:
    return lambda record, _: record[path].pop(index) and None


def plus(n: int) -> Callable[[int], int]:
    return lambda value: value + n


def twice(kind: str) -> Change:
    return lambda record, _: [(kind, record, "coordinator")] * 2


def forged(kind: str) -> Change:
    return lambda record, _: [(kind, record, "coordinator")]


def undone(record: Record, writer: Writer) -> None:
    """Accept a slot whose drawn audit nobody did."""
    line = record["rejected"].pop(0)
    reveal = next(r for k, r, _ in reversed(writer.records) if k == "reveal" and r["slot"] == line["slot"])
    opening = reveal["opening"]
    fields = {"payload": opening["payload"], "tokens": opening["tokens"], "weight": opening["tokens"]}
    record["accepted"].insert(0, {"member": line["member"], "slot": line["slot"], **fields})


def other_positions(record: Record, _: Writer) -> None:
    """Hand out in round 2 what was handed out, and accepted, in round 1."""
    record["roster"][2]["positions"] = [[20, 28]]


def stale_head(record: Record, writer: Writer) -> None:
    record["head"] = note_of(writer.entries[:-1])


def foreign_head(record: Record, writer: Writer) -> None:
    record["head"] = note_of(writer.entries, signer="ann")


def other_seed(record: Record, _: Writer) -> None:
    record["seed"] = sha(b"lucky")


B = b3(b"another")
LIES: dict[str, tuple[str, Any]] = {
    "weight": (
        "the weight of slot 3 in round 2 is wrong",
        lying("round-close", setter("accepted.1.weight", plus(1)), turn=1),
    ),
    "tokens": (
        "the tokens of slot 1 in round 1 is wrong",
        lying("round-close", setter("accepted.0.tokens", plus(1)), turn=0),
    ),
    "payload": (
        "the payload of slot 1 in round 1 is wrong",
        lying("round-close", setter("accepted.0.payload", B), turn=0),
    ),
    "member": (
        "the member of slot 1 in round 1 is wrong",
        lying("round-close", setter("accepted.0.member", "eve"), turn=0),
    ),
    "omitted": (
        "slot 4 is neither accepted nor rejected in round 2",
        lying("round-close", popper("accepted"), turn=1),
    ),
    "order": (
        "the accepted slots of round 1 are not in order",
        lying("round-close", lambda r, _: r["accepted"].reverse(), turn=0),
    ),
    "dropped verdict": (
        r"(xia|yan|zoe) gave no verdict for look 1 of slot \d in round 1",
        lying("verdict", dropper, turn=0),
    ),
    "missed not told": (
        "(xia|yan|zoe) gave no verdict for look 1 of slot 0 in round 2",
        lying("round-close", setter("missed", []), turn=1),
    ),
    "missed invented": (
        "zoe is listed as missed for look 2 of slot 4 in round 1",
        lying("round-close", setter("missed", [{"auditor": "zoe", "look": 2, "slot": 4}]), turn=0),
    ),
    "audit undone": (
        "slot 0 is accepted in round 4 though its drawn audit was not done",
        lying("round-close", undone, turn=4),
    ),
    "fault denied": (
        "the fault of rejected slot 2 in round 2 is wrong",
        lying("round-close", setter("rejected.1.fault", False), turn=1),
    ),
    "no evidence": (
        "the evidence of rejected slot 2 in round 2 is missing",
        lying("round-close", setter("rejected.1.evidence", None), turn=1),
    ),
    "reason": (
        "slot 2 is settled wrongly in round 2",
        lying("round-close", setter("rejected.1.reason", "disputed"), turn=1),
    ),
    "quarantine ignored": (
        "the members in quarantine after round 2 are wrong",
        lying("round-close", setter("quarantined", []), turn=1),
    ),
    "credit": (
        "the earned credit of ann after round 2 is wrong",
        lying("round-close", setter("credits.0.earned", plus(5)), turn=1),
    ),
    "vested": (
        "the vested credit of xia after round 1 is wrong",
        lying(
            "round-close",
            lambda r, _: next(c for c in r["credits"] if c["member"] == "xia").update(vested=1),
            turn=0,
        ),
    ),
    "credits": ("do not list every member", lying("round-close", popper("credits"), turn=1)),
    "cursor": ("the cursor after round 1 is wrong", lying("round-close", setter("cursor", plus(8)), turn=0)),
    "queue": ("the queue after round 1 is wrong", lying("round-close", setter("requeued", []), turn=0)),
    "void": ("whether round 3 is void is told wrongly", lying("round-close", setter("void", False), turn=2)),
    "void weights": (
        "the weights changed in round 3, which is void",
        lying("round-close", setter("weights", B), turn=2),
    ),
    "loss": (
        "the train loss of round 1 is wrong",
        lying("round-close", setter("train_loss", plus(-1)), turn=0),
    ),
    "base": (
        "round 2 does not start from the last checkpoint",
        lying("round-open", setter("base.weights", B), turn=1),
    ),
    "lineage": (
        "the start_state of slot 3 in the roster of round 2 is wrong",
        lying("round-open", setter("roster.3.start_state", B), turn=1),
    ),
    "zero lineage": (
        "the start_state of slot 3 in the roster of round 2 is wrong",
        lying("round-open", setter("roster.3.start_state", b3(b"zero")), turn=1),
    ),
    "used twice": (
        "positions accepted in round 2 were accepted before",
        lying("round-open", setter("roster.3.positions", [[20, 36]]), turn=1),
    ),
    "first cursor": (
        "the positions of slot 0 in the roster of round 1 is wrong",
        lying("round-open", setter("roster.0.positions", [[2, 10]]), turn=0),
    ),
    "audit rate": (
        "the audit_ppm of slot 4 in the roster of round 1 is wrong",
        lying("round-open", setter("roster.4.audit_ppm", 0), turn=0),
    ),
    "steps": (
        "the steps of slot 2 in the roster of round 1 is wrong",
        lying("round-open", setter("roster.2.steps", 4), turn=0),
    ),
    "operator": (
        "the operator of slot 2 in the roster of round 1 is wrong",
        lying("round-open", setter("roster.2.operator", "east"), turn=0),
    ),
    "key": (
        "the key of slot 2 in the roster of round 1 is wrong",
        lying("round-open", setter("roster.2.key", key_text("eve")), turn=0),
    ),
    "left out": ("the roster of round 1 has the wrong slots", lying("round-open", popper("roster"), turn=0)),
    "auditors": ("the auditors of round 1 are wrong", lying("round-open", popper("auditors"), turn=0)),
    "inner rate": (
        "the inner learning rate of step 3 in round 1 is wrong",
        lying("round-open", setter("inner_lr.3", (0.5).hex()), turn=0),
    ),
    "rates": ("the wrong number of inner learning rates", lying("round-open", popper("inner_lr"), turn=0)),
    "outer rate": (
        "the outer learning rate of round 4",
        lying("round-open", setter("outer_lr", (0.5).hex()), turn=4),
    ),
    "deadline": ("the deadline of round 1", lying("round-open", setter("deadline_ms", 0), turn=0)),
    "snapshot": ("the snapshot flag of round 2", lying("round-open", setter("snapshot", True), turn=1)),
    "round": ("the round of a round-open is wrong", lying("round-open", setter("round", 3), turn=1)),
    "attempt": ("the attempt of a round-open is wrong", lying("round-open", setter("attempt", 1), turn=1)),
    "turn": ("the turn of a round-open is wrong", lying("round-open", setter("turn", 0), turn=1)),
    "phase twice": (
        "out of order: the commit-close of one turn is signed twice",
        lying("commit-close", twice("commit-close"), turn=0),
    ),
    "opened twice": (
        "out of order: the round-open of one turn is signed twice",
        lying("round-open", twice("round-open"), turn=0),
    ),
    "no draw": ("a record is out of order", lying("draw", dropper, turn=1)),
    "late told": ("the late slots of round 2 are wrong", lying("commit-close", setter("late", []), turn=1)),
    "times": ("the times of round 2 do not match", lying("commit-close", popper("ms"), turn=1)),
    "commitment": (
        "slot 3 in round 1 is listed as revealed though its commitment",
        lying("commitment", setter("commitment", sha(b"x")), turn=0, nth=3),
    ),
    "commitment forged": (
        "the commitment of slot 3 in round 1 is not signed by dee",
        lying("commitment", forged("commitment"), turn=0, nth=3),
    ),
    "reveal forged": (
        "the reveal of slot 3 in round 1 is not signed by dee",
        lying("reveal", forged("reveal"), turn=0, nth=3),
    ),
    "verdict forged": (
        "the verdict of look 1 of slot 0 in round 1 is not signed by",
        lying("verdict", forged("verdict"), turn=0),
    ),
    "reveal dropped": (
        "slot 3 in round 1 is listed as revealed though no reveal",
        lying("reveal", dropper, turn=0, nth=3),
    ),
    "mismatch claimed": (
        "slot 0 in round 1 is listed as opening-mismatch though it opens",
        lying(
            "reveal-close",
            lambda r, _: (
                r["revealed"].remove(0),
                r["refused"].append({"reason": "opening-mismatch", "slot": 0}),
            )[0],
            turn=0,
        ),
    ),
    "duplicate claimed": (
        "slot 0 in round 1 is listed as duplicate-payload though it opens",
        lying(
            "reveal-close",
            lambda r, _: (
                r["revealed"].remove(0),
                r["refused"].append({"reason": "duplicate-payload", "slot": 0}),
            )[0],
            turn=0,
        ),
    ),
    "unserved claimed": (
        "slot 1 in round 4 is listed as unserved",
        lying("reveal-close", setter("refused.0.reason", "unserved"), turn=4),
    ),
    "duplicate taken": (
        "slot 4 in round 4 is listed as revealed though its payload was accepted",
        lying("reveal-close", lambda r, _: (r["refused"].pop(), r["revealed"].append(4))[1], turn=4),
    ),
    "head 1": ("head 1 does not sign exactly", lying("reveal-close", stale_head, turn=1)),
    "head 2": ("head 2 does not sign exactly", lying("draw", stale_head, turn=1)),
    "head 3": ("head 3 does not sign exactly", lying("second-draw", stale_head, turn=1)),
    "head by another": ("head 2 is not signed with the log's key", lying("draw", foreign_head, turn=1)),
    "no head": ("head 3 is no checkpoint", lying("second-draw", setter("head", "none"), turn=1)),
    "link": (
        "the link of draw in round 2 is not link 3 of the draw chain",
        lying("draw", setter("link", "00" * 32), turn=1),
    ),
    "link reused": (
        "the link of second-draw in round 2 is not link 4",
        lying("second-draw", lambda r, w: r.update(link=w.chain[-1 - 3].hex()), turn=1),
    ),
    "seed": ("the seed of draw in round 2 is wrong", lying("draw", other_seed, turn=1)),
    "second seed": ("the seed of second-draw in round 2 is wrong", lying("second-draw", other_seed, turn=1)),
    "drawn": (
        "the drawn slots of round 1 do not follow from the seed",
        lying("draw", popper("drawn"), turn=0),
    ),
    "auditor order": (
        "the auditors of slot 4 in round 1 do not follow from the seed",
        lying("draw", lambda r, _: r["drawn"][4]["auditors"].reverse(), turn=0),
    ),
    "served": (
        "the served and unserved slots of round 1 are not those due",
        lying("served", popper("served"), turn=0),
    ),
    "looks": ("the second looks of round 1 do not follow", lying("second-draw", setter("looks", []), turn=0)),
    "differs": (
        "what differs is told wrongly in the verdict of look 1 of slot 2 in round 2",
        lying("verdict", setter("differs", ["loss"]), turn=1, nth=1),
    ),
    "outcome": (
        "the outcome in the verdict of look 1 of slot 0 in round 1 is wrong",
        lying("verdict", setter("outcome", "pass"), turn=0),
    ),
    "class": (
        "the class in the verdict of look 1 of slot 0",
        lying("verdict", setter("class", "c9"), turn=0),
    ),
    "not called": (
        "was not to give a verdict for look 1 of slot 0 in round 1",
        lying("verdict", setter("auditor", "vic"), turn=0),
    ),
    "verdict twice": (
        "or one was given before",
        lying("verdict", lambda r, _: [("verdict", r, r["auditor"])] * 2, turn=0),
    ),
    "run id": ("the run id in the served is another", lying("served", setter("run", sha(b"other")), turn=1)),
    "other round": (
        "the round in the served is not that of its round-open",
        lying("served", setter("round", 9), turn=1),
    ),
    "not the coordinator": (
        "the served is not signed by the coordinator",
        lying("served", lambda r, _: [("served", r, "ann")], turn=1),
    ),
    "unknown key": ("served does not fit", lying("served", setter("extra", 1), turn=1)),
    "wrong type": ("round-close.void does not fit", lying("round-close", setter("void", 0), turn=1)),
    "enrolment": (
        "the enrolment of xia is not signed with its own key",
        lying("enrol", lambda r, _: [("enrol", r, "ann")], nth=1),
    ),
    "name taken": (
        "two members are called ann",
        lying("enrol", lambda r, _: [("enrol", {**r, "member": "ann"}, "xia")], nth=1),
    ),
    "key taken": (
        "the key of xia is another member's too",
        lying("enrol", lambda r, _: [("enrol", {**r, "key": key_text("ann")}, "ann")], nth=1),
    ),
    "small order": ("a key has small order", lying("enrol", setter("key", "ed25519:01" + "00" * 31), nth=1)),
    "out of order": (
        "a record is out of order",
        lying("served", lambda r, w: [("draw", r, "coordinator")], turn=1),
    ),
    "commitment twice": (
        "the commitment of slot 0 in round 1 is out of order",
        lying("commitment", lambda r, _: [("commitment", r, r["member"])] * 2, turn=0),
    ),
    "reveal twice": (
        "slot 0 revealed in round 1 without having committed, or twice",
        lying("reveal", lambda r, _: [("reveal", r, r["member"])] * 2, turn=0),
    ),
    "not in the roster": ("slot 9 is not in the roster", lying("commitment", setter("slot", 9), turn=0)),
    "roster order": (
        "twice or out of order",
        lying("round-open", lambda r, _: r["roster"].reverse(), turn=0),
    ),
    "settled twice": (
        "slot 0 is settled 2 times",
        lying("round-close", lambda r, _: r["rejected"].append(r["rejected"][0]), turn=0),
    ),
    "settled unasked": (
        "slot 9 is settled 1 times",
        lying("round-close", lambda r, _: r["rejected"].append({**r["rejected"][0], "slot": 9}), turn=0),
    ),
    "steps of too few": (
        "train.steps does not have one number per contributor",
        lying("manifest", setter("config.train.steps", [4, 4])),
    ),
    "no steps": (
        "the configuration has no contributor's steps",
        lying("manifest", setter("config.train.steps", [])),
    ),
    "sizes": ("the codec's sizes are not allowed", lying("manifest", setter("config.compression.k", 9))),
    "malformed manifest": ("the manifest is malformed", lying("manifest", setter("origin", "a b"))),
    "arrays": ("the arrays are not listed by name", lying("manifest", lambda r, _: r["arrays"].reverse())),
    "totals": ("the tokens of the run-close are wrong", lying("run-close", setter("tokens", plus(1)))),
    "last weights": ("the weights of the run-close are wrong", lying("run-close", setter("weights", B))),
    "rounds": ("the rounds of the run-close are wrong", lying("run-close", setter("rounds", plus(1)))),
    "after the end": ("the log goes on after run-close", lying("run-close", twice("run-close"))),
    "dataset root": ("the dataset's root is wrong", lying("manifest", setter("dataset.root", sha(b"x")))),
    "log key": ("log_vkey is not the coordinator's", lying("manifest", setter("log_vkey", vkey("ann")))),
    "codec": ("the codec's name does not fit", lying("manifest", setter("codec", "none"))),
}


# What follows from these is judged by what the log says, so each is the only failure.
ALONE = [
    "weight", "loss", "head 2", "run id", "order", "missed not told", "attempt", "turn",
    "fault denied", "commitment forged", "deadline", "quarantine ignored",
]  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named(tmp_path: Path, name: str) -> None:
    expected, lie = LIES[name]
    writer = Writer(tmp_path / "run", lie=lie).run()
    found = check_run(writer.write())
    what = [f.what for f in found.failures]
    assert any(re.search(expected, text) for text in what), what
    assert all(f.where for f in found.failures)
    if name in ALONE:
        assert len(what) == 1, what


def test_a_quarantined_member_stays_out(tmp_path: Path) -> None:
    """A coordinator that forgets a quarantine is named at the next open, even if its close told it."""

    class Lenient(Writer):
        def roster(self) -> list[dict[str, Any]]:
            forgotten, self.quarantined = self.quarantined, []
            lines = super().roster()
            self.quarantined = forgotten
            return lines

    writer = Lenient(tmp_path / "run").run(turns=3)
    what = [f.what for f in check_run(writer.write()).failures]
    assert what[0] == "the roster of round 3 has the wrong slots"


def test_a_roster_changed_after_the_draw(tmp_path: Path) -> None:
    """Entries replaced and the log signed again: the heads inside it tell."""
    writer = Writer(tmp_path / "run").run()
    at = next(i for i, (k, r, _) in enumerate(writer.records) if k == "round-open" and r["turn"] == 1)
    record = writer.records[at][1]
    record["roster"][3]["audit_ppm"] = 400_000
    writer.entries[at] = envelope("round-open", record, "coordinator", writer.run_subject)
    what = {f.what for f in check_run(writer.write()).failures}
    signed_twice = "does not sign exactly the entries before it: two heads of one size are signed"
    assert {f"head {n} {signed_twice}" for n in (1, 2, 3)} <= what


def test_too_many_void_turns(tmp_path: Path) -> None:
    late = {(turn, slot): "late" for turn in (0, 1) for slot in range(5)}
    writer = Writer(tmp_path / "run", script=late).run(turns=3)
    assert [f.what for f in check_run(writer.write()).failures] == [
        "the run goes on after too many void turns"
    ]


def test_a_round_after_the_last_and_an_early_end(tmp_path: Path) -> None:
    long = Writer(
        tmp_path / "run", lie=lying("manifest", setter("config.run.rounds", 5)), train__mode="gradient"
    )
    assert any(f.what == "a round is opened after the last" for f in check_run(long.run().write()).failures)
    short = Writer(
        tmp_path / "run", lie=lying("manifest", setter("config.run.rounds", 7)), train__mode="gradient"
    )
    assert any(
        f.what == "the run is closed before its last round" for f in check_run(short.run().write()).failures
    )


def test_a_manifest_by_another_or_of_another_kind(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=0)
    subject = ("dataset", writer.manifest["dataset"]["root"][7:])
    for kind, record, signer, what in (
        ("manifest", writer.manifest, "ann", "the manifest is not signed by the coordinator"),
        ("enrol", writer.manifest, "coordinator", "the log does not begin with a manifest"),
        ("manifest", [], "coordinator", "the log's manifest is no object"),
        ("manifest", {**writer.manifest, "dataset": []}, "coordinator", "the manifest is malformed"),
    ):
        writer.entries[0] = envelope(kind, record, signer, subject)  # type: ignore[arg-type]
        found = [f.what for f in check_run(writer.write()).failures]
        assert any(text.startswith(what) for text in found), found


def test_the_wrong_subject(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=0)
    kind, record, signer = writer.records[-1]
    writer.entries[-1] = envelope(kind, record, signer, ("run", "00" * 32))
    assert [f.what for f in check_run(writer.write()).failures] == [
        "the subject of the enrol is not this run"
    ]
