"""Rules on what is refused, drawn, settled and paid: honest runs in which they decide, and lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, key_text, sha
from tests.verification.test_fsck_lies import lying, popper, setter
from tests.verification.test_fsck_state import State, config
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck import check_run
from verification.fsck_draws import twins
from verification.fsck_ledger import Ledger, Outcome
from verification.fsck_shapes import RECORDS, Settings

Record = dict[str, Any]
LONE = [("fay", "contributor", "f", "c3")]
LONE_STEPS = [4, 6, 2, 8, 4, 2]
BY_LOT = {"audit__rate_ppm": 300_000, "audit__probation_rounds": 0, "credit__strikes": 9}
NEVER_BY_LOT = {"audit__rate_ppm": 0, "audit__probation_rounds": 0}


def failures(writer: Writer) -> list[str]:
    return [f.what for f in check_run(writer.write()).failures]


def closes(writer: Writer) -> list[Record]:
    return [r for k, r, _ in writer.records if k == "round-close"]


def reason_of(close: Record, slot: int) -> str | None:
    return next((r["reason"] for r in close["rejected"] if r["slot"] == slot), None)


def listed_as(reason: str | None, slot: int) -> Any:
    """A change of a reveal-close: `slot` is refused for `reason`, or revealed when that is None."""

    def change(record: Record, _: Writer) -> None:
        record["revealed"] = [s for s in record["revealed"] if s != slot]
        record["refused"] = [r for r in record["refused"] if r["slot"] != slot]
        if reason is None:
            record["revealed"] = sorted([*record["revealed"], slot])
        else:
            record["refused"].append({"reason": reason, "slot": slot})
            record["refused"].sort(key=lambda r: r["slot"])

    return change


# --- classes ---


@pytest.mark.parametrize("numerics", ["", "é", "c\n", "\x7f", "c" * 201])
def test_other_classes_are_refused(tmp_path: Path, numerics: str) -> None:
    writer = Writer(tmp_path / "run", lie=lying("enrol", setter("class", numerics), nth=1)).run(turns=1)
    assert any(text.startswith("enrol.class does not fit") for text in failures(writer))


@pytest.mark.parametrize(
    ("kind", "path"),
    [("round-open", "roster.0.class"), ("round-open", "auditors.0.class"), ("verdict", "class")],
)
def test_classes_in_other_records(tmp_path: Path, kind: str, path: str) -> None:
    writer = Writer(tmp_path / "run", lie=lying(kind, setter(path, "é"), turn=0)).run(turns=1)
    assert any("class does not fit" in text for text in failures(writer))


def test_a_class_of_200_characters(tmp_path: Path) -> None:
    more = [("fay", "contributor", "f", ("x86 ~" * 40))]
    assert failures(Writer(tmp_path / "run", more=more, train__steps=LONE_STEPS).run()) == []


# --- pace ---


def next_steps(tmp_path: Path, reason: str | None, steps: int, ms: int, **over: Any) -> int:
    state = State(tmp_path, script={}, silent={}, timing__max_steps=20, **over)
    enrolments = [
        {"member": "ann", "role": "contributor", "operator": "north", "key": key_text("ann"), "class": "c1"}
    ]
    ledger = Ledger(Settings.of(state.manifest), "", enrolments)
    ledger.steps[0] = steps
    fields: Any = {
        "slot": 0,
        "member": "ann",
        "operator": "north",
        "pieces": (),
        "tokens": 1,
        "next_state": "",
    }
    ledger.close(0, [Outcome(reason=reason, audited=False, steps=steps, ms=ms, **fields)], [])
    return ledger.steps[0]


@pytest.mark.parametrize(
    ("reason", "steps", "ms", "expected"),
    [
        (None, 4, 600, 6),
        (None, 4, 1, 8),
        (None, 4, 0, 4),
        (None, 3, 0, 3),
        (None, 4, 9000, 2),
        ("late", 9, 0, 4),
        ("late", 14, 0, 6),
        ("late", 3, 0, 2),
        ("late", 1, 0, 2),
        ("unaudited", 9, 1, 9),
        ("unrevealed", 9, 1, 9),
    ],
)
def test_pace(tmp_path: Path, reason: str | None, steps: int, ms: int, expected: int) -> None:
    assert config()["timing"]["round_ms"] == 900
    assert config()["train"]["trace_every"] == 2
    assert next_steps(tmp_path, reason, steps, ms) == expected
    assert next_steps(tmp_path, reason, steps, ms, timing__mode="fixed") == steps


def test_turns_without_a_measure_and_late_ones(tmp_path: Path) -> None:
    script = {(0, 1): "unmeasured", (0, 3): "late"}
    writer = Writer(tmp_path / "run", script=script).run(turns=2)
    lines = [r["roster"] for k, r, _ in writer.records if k == "round-open"]
    assert [line["steps"] for line in lines[1]][1:4:2] == [6, 4]
    assert failures(writer) == []


# --- reveals and why they are refused ---


def test_reveals_out_of_order(tmp_path: Path) -> None:
    held: list[Any] = []

    def lie(kind: str, record: Record, writer: Writer) -> Any:
        if kind != "reveal" or writer.turn or len(held) > 1:
            return record
        held.insert(0, (kind, record, record["member"]))
        return held if len(held) == 2 else []

    writer = Writer(tmp_path / "run", lie=lie).run()
    assert failures(writer) == ["the reveal of slot 0 in round 1 is out of order"]


@pytest.mark.parametrize("reason", [None, "unrevealed", "malformed-payload", "unserved"])
def test_the_number_of_leaves_is_fixed(tmp_path: Path, reason: str | None) -> None:
    script = {(1, 3): "leaves"}
    assert failures(Writer(tmp_path / "run", script=script).run(turns=2)) == []
    lie = lying("reveal-close", listed_as(reason, 3), turn=1)
    what = failures(Writer(tmp_path / "run", script=script, lie=lie).run(turns=2))
    assert (
        f"slot 3 in round 2 is listed as {reason or 'revealed'} though its trace_leaves does not match"
        in what
    )


def test_a_genuine_reveal_whose_payload_did_not_come(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", script={(0, 1): "other bytes", (0, 3): "unrevealed"}).run(turns=2)
    assert [r["slot"] for k, r, _ in writer.records if k == "reveal" and r["round"] == 1] == [0, 1, 2, 4]
    assert [reason_of(closes(writer)[0], slot) for slot in (1, 3)] == ["unrevealed", "unrevealed"]
    assert failures(writer) == []


def test_only_accepted_payloads_are_duplicates(tmp_path: Path) -> None:
    script = {(0, 0): "dispute", (1, 3): "replay", (2, 4): "duplicate"}
    writer = Writer(tmp_path / "run", script=script).run(turns=3)
    assert reason_of(closes(writer)[0], 0) == "disputed"
    assert reason_of(closes(writer)[1], 3) == "unconfirmed"
    assert reason_of(closes(writer)[2], 4) == "duplicate-payload"
    assert failures(writer) == []
    lie = lying("reveal-close", listed_as("duplicate-payload", 3), turn=1)
    what = failures(Writer(tmp_path / "run", script=script, lie=lie).run(turns=2))
    assert any(
        text.startswith("slot 3 in round 2 is listed as duplicate-payload though it opens") for text in what
    )
    for reason in (None, "unserved"):
        lie = lying("reveal-close", listed_as(reason, 4), turn=2)
        what = failures(Writer(tmp_path / "run", script=script, lie=lie).run(turns=3))
        assert any("though its payload was accepted in an earlier turn" in text for text in what)


# --- evidence of malformed payloads ---


class Framing(Writer):
    """Writes a case of a malformed payload that says something else, its digest in the close to fit."""

    change: Any = staticmethod(lambda case: None)
    cut = 21

    def work(self, line: Record) -> Record:
        work = super().work(line)
        if self.script.get((self.turn, line["slot"])) == "malformed":
            work["payload"] = work["payload"][: self.cut]
        return work

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        digest = super().evidence(line, reason, reveals)
        if reason != "malformed-payload":
            return digest
        name = f"evidence/r{self.round:05d}-a{self.attempt}-s{line['slot']}/"
        case = json.loads(self.files[name + "case.json"])
        self.change(case)
        self.files[name + "case.json"] = canon(case)
        self.files[name + "other"] = b"other"
        if "other" not in case["files"]:
            del self.files[name + "other"]
        for file in ("payload", "manifest", "open", "reveal"):
            if file not in case["files"]:
                del self.files[name + file]
        return sha(canon(case))


def framed(tmp_path: Path, change: Any = Framing.change, cut: int = 21) -> list[str]:
    writer = Framing(tmp_path / "run", script={(1, 3): "malformed"})
    writer.change, writer.cut = change, cut
    return failures(writer.run(turns=2))


def test_the_case_of_a_malformed_payload(tmp_path: Path) -> None:
    of = "the evidence against slot 3 in round 2"
    assert framed(tmp_path) == []
    assert framed(tmp_path, lambda c: c.update(files={})) == [f"the files in {of} are wrong"]
    assert framed(tmp_path, lambda c: c["files"].update(other=b3(b"other"))) == [
        f"the files in {of} are wrong"
    ]
    assert f"the files in {of} are wrong" in framed(tmp_path, lambda c: c["files"].update(payload=b3(b"x")))
    assert framed(tmp_path, cut=20) == [f"payload in {of} has the wrong length"]


def test_a_malformed_payload_without_evidence(tmp_path: Path) -> None:
    lie = lying("round-close", setter("rejected.0.evidence", None), turn=1)
    what = failures(Writer(tmp_path / "run", script={(1, 3): "malformed"}, lie=lie).run(turns=2))
    assert "the evidence of rejected slot 3 in round 2 is missing" in what


# --- twins ---


def test_twins_are_always_drawn(tmp_path: Path) -> None:
    script = {(1, 3): "twin"}
    writer = Writer(tmp_path / "run", script=script, **NEVER_BY_LOT).run(turns=3)
    drawn = [[line["slot"] for line in r["drawn"]] for k, r, _ in writer.records if k == "draw"]
    assert drawn[:2] == [[], [0, 3]]
    assert [reason_of(closes(writer)[1], slot) for slot in (0, 3)] == [None, "unconfirmed"]
    assert failures(writer) == []
    lie = lying("draw", popper("drawn"), turn=1)
    what = failures(Writer(tmp_path / "run", script=script, lie=lie, **NEVER_BY_LOT).run(turns=2))
    assert "the drawn slots of round 2 do not follow from the seed" in what


def test_the_twin_of_a_refused_reveal_is_not_drawn(tmp_path: Path) -> None:
    script = {(1, 0): "other bytes", (1, 3): "twin"}
    writer = Writer(tmp_path / "run", script=script, **NEVER_BY_LOT).run(turns=2)
    assert [r["drawn"] for k, r, _ in writer.records if k == "draw"] == [[], []]
    assert failures(writer) == []


def test_twins_by_slot() -> None:
    assert twins({0: {"payload": "a"}, 1: {"payload": "b"}, 2: {"payload": "a"}, 5: {"payload": "c"}}) == {
        0,
        2,
    }
    assert twins({}) == set()


# --- a class that nobody can check ---


def test_a_class_nobody_can_check_has_no_weight(tmp_path: Path) -> None:
    script = {(1, 5): "late", (2, 5): "mismatch"}
    drawn_first = set()
    for seed in range(20):  # until it was drawn in the first turn, and was not
        over: Any = {"train__steps": LONE_STEPS, "run__seed": seed, **BY_LOT}
        writer = Writer(tmp_path / f"run {seed}", script=script, more=LONE, **over).run()
        reasons = [reason_of(close, 5) for close in closes(writer)]
        assert reasons[:4] == ["no-eligible-auditor", "late", "opening-mismatch", "no-eligible-auditor"]
        first = next(r for k, r, _ in writer.records if k == "draw")
        drawn_first.add(5 in [line["slot"] for line in first["drawn"]])
        assert failures(writer) == []
        if len(drawn_first) == 2:
            break
    assert drawn_first == {True, False}


def test_without_audits_such_a_class_is_accepted(tmp_path: Path) -> None:
    over: Any = {**NEVER_BY_LOT, "train__steps": LONE_STEPS}
    writer = Writer(tmp_path / "run", script={(1, 5): "twin"}, more=LONE, **over).run(turns=2)
    assert [reason_of(close, 5) for close in closes(writer)] == [None, "no-eligible-auditor"]
    assert failures(writer) == []


# --- credit of auditors ---


def test_verdicts_are_paid_when_they_agree_with_the_settling(tmp_path: Path) -> None:
    """In turn 0 a pass and a fail dispute slot 0; in turn 1 two fails settle slot 2."""
    writer = Writer(tmp_path / "run").run(turns=2)
    assert failures(writer) == []
    tokens = {(r["round"], r["slot"]): r["opening"]["tokens"] for k, r, _ in writer.records if k == "reveal"}
    verdicts = [r for k, r, _ in writer.records if k == "verdict"]
    earned: dict[str, int] = {}
    for v in verdicts:
        reason = reason_of(closes(writer)[v["round"] - 1], v["slot"])
        if (v["outcome"], reason) in (("pass", None), ("fail", "failed-audit")):
            earned[v["auditor"]] = earned.get(v["auditor"], 0) + tokens[v["round"], v["slot"]]
    said = {line["member"]: line["earned"] for line in closes(writer)[1]["credits"]}
    assert {name: said[name] for name in ("wim", "xia", "yan", "zoe", "vic")} == {
        name: earned.get(name, 0) for name in ("wim", "xia", "yan", "zoe", "vic")
    }
    disputed = [v for v in verdicts if (v["round"], v["slot"]) == (1, 0)]
    assert len(disputed) == 2
    for verdict in disputed:

        def pay(record: Record, _: Writer, name: str = verdict["auditor"]) -> None:
            next(c for c in record["credits"] if c["member"] == name)["earned"] += tokens[1, 0]

        what = failures(Writer(tmp_path / "run", lie=lying("round-close", pay, turn=0)).run(turns=1))
        assert what == [f"the earned credit of {verdict['auditor']} after round 1 is wrong"]


def test_shapes_take_any_class_in_an_opening(tmp_path: Path) -> None:
    """A reveal that tells another class is refused for it, so it stands in the log as it came."""
    writer = Writer(tmp_path / "run", script={}).run(turns=1)
    reveal = next(r for k, r, _ in writer.records if k == "reveal")
    RECORDS["reveal"]({**reveal, "opening": {**reveal["opening"], "class": "é"}}, "reveal")
    with pytest.raises(FormatError):
        RECORDS["reveal"]({**reveal, "opening": {**reveal["opening"], "class": 1}}, "reveal")


# --- the data set ---


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("t0.arrow", True),
        ("a" * 100, True),
        ("tokenizer.json.arrow", True),
        ("tokenizer.json", False),
        ("a" * 101, False),
        ("", False),
        ("../t0.arrow", False),
        ("a/t0.arrow", False),
        ("T0.arrow", False),
        (".arrow", False),
        ("t0.arrow\n", False),
    ],
)
def test_names_of_shards(tmp_path: Path, name: str, fits: bool) -> None:
    manifest = State(tmp_path, script={}, silent={}).manifest
    manifest["dataset"]["train"][0]["file"] = name
    if fits:
        RECORDS["manifest"](manifest, "manifest")
        return
    with pytest.raises(FormatError, match=r"manifest\.dataset\.train\[0\]\.file does not fit"):
        RECORDS["manifest"](manifest, "manifest")


@pytest.mark.parametrize("look", [1, 2])
def test_verdicts_of_a_look_stand_by_slot(tmp_path: Path, look: int) -> None:
    held: list[tuple[str, Record, str]] = []

    def second_first(kind: str, record: Record, writer: Writer) -> Any:
        """The first two verdicts of the look change places."""
        if kind != "verdict" or record["look"] != look or len(held) == 2:
            return record
        held.append((kind, record, writer.signer(record["auditor"])))
        return held[::-1] if len(held) == 2 else []

    over: dict[str, Any] = {"audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000}
    writer = Writer(tmp_path / "run", script={}, silent={}, lie=second_first, **over)
    failures = check_run(writer.run(turns=2).write()).failures
    slot = held[0][1]["slot"]
    assert [f.what for f in failures] == [
        f"the verdict of look {look} of slot {slot} in round 1 does not stand by look and slot"
    ]
    after = f"above look {look} of slot {held[1][1]['slot']}"
    assert (failures[0].expected, failures[0].got) == (after, f"look {look} of slot {slot}")
