"""What audits by tolerance come to: settling, the cap on weights, the trace in a case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, sha
from tests.verification.test_fsck_tolerance import (
    BOTH,
    FAY,
    Record,
    failures,
    reason_of,
    records,
    verdicts_on,
    written,
)
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run

WRONGLY = f"slot {FAY} is settled wrongly in round 1"


# --- settling ---


class Alike(Writer):
    """As it should be, but fay is settled by `said`, if it says anything."""

    said: Any = ...

    def close_turn(self, roster: Any, fate: Any, *rest: Any) -> None:
        if self.said is not ...:
            fate[FAY] = self.said
        super().close_turn(roster, fate, *rest)


class Unlike(Alike):
    """Its auditors find other leaves each, also within a class."""

    def deviation(self, line: Record, segment: int, auditor: str, what: Any) -> Record:
        found = super().deviation(line, segment, auditor, what)
        return {**found, "own": sha(f"{auditor} {segment}".encode())}


def saying(kind: type[Writer], said: str | None) -> type[Writer]:
    return type("Saying", (kind,), {"said": said})


@pytest.mark.parametrize("what", [None, "peak_ppm"])
def test_two_of_one_class_with_other_deviations_are_a_dispute(tmp_path: Path, what: str | None) -> None:
    script = {(0, FAY): what}
    writer = written(tmp_path / "honest", kind=Unlike, script=script)
    first, second = verdicts_on(writer)
    assert first["class"] == second["class"]
    assert [v["outcome"] for v in (first, second)] == (["fail"] * 2 if what else ["pass"] * 2)
    assert reason_of(writer) == "disputed"
    assert check_run(writer.write()).failures == ()
    said = "failed-audit" if what else None
    assert failures(tmp_path / "lie", kind=saying(Unlike, said), script=script) == [WRONGLY]


@pytest.mark.parametrize("what", [None, "peak_ppm"])
def test_two_of_one_class_with_the_same_deviations_are_none(tmp_path: Path, what: str | None) -> None:
    found = failures(tmp_path, kind=saying(Alike, "disputed"), script={(0, FAY): what})
    assert found == [WRONGLY]


@pytest.mark.parametrize("what", [None, "peak_ppm"])
def test_two_classes_never_have_the_same_deviations(tmp_path: Path, what: str | None) -> None:
    """Neither does that dispute anything: their numbers are their own, and so are their thresholds."""
    classes: set[str] = set()
    for seed in range(1, 30):
        over = {"script": {(0, FAY): what}, "audit__tolerance": BOTH, "run__seed": seed}
        writer = written(tmp_path / str(seed), kind=Unlike, **over)
        first, second = verdicts_on(writer)[:2]  # of one class each, a third looks too
        if first["class"] != second["class"]:
            assert first["deviations"] != second["deviations"]
            assert reason_of(writer) == ("failed-audit" if what else None)
            assert check_run(writer.write()).failures == ()
            lie = saying(Unlike, "disputed")
            assert failures(tmp_path / "lie", kind=lie, **over) == [WRONGLY]
            return
        classes.add(first["class"])
    raise AssertionError(f"no two classes in {classes}")


def test_a_pass_and_a_fail_by_tolerance_are_a_dispute(tmp_path: Path) -> None:
    class Torn(Writer):
        def deviation(self, line: Record, segment: int, auditor: str, what: Any) -> Record:
            return super().deviation(line, segment, auditor, "peak_ppm" if auditor == "xia" else None)

    writer = written(tmp_path / "honest", kind=Torn)
    assert {v["outcome"] for v in verdicts_on(writer)} == {"pass", "fail"}
    assert reason_of(writer) == "disputed"
    assert check_run(writer.write()).failures == ()


# --- weights ---


def weights(writer: Writer) -> dict[int, tuple[int, int]]:
    """Tokens and weight of each accepted slot."""
    accepted = records(writer, "round-close")[0]["accepted"]
    return {line["slot"]: (line["tokens"], line["weight"]) for line in accepted}


class Uncapped(Writer):
    """Gives full weight to what rests on tolerance."""

    def tolerant_cap(self, roster: Any, tokens: Any) -> dict[int, int]:
        return {}


NOT_DRAWN = {"audit__rate_ppm": 0}


@pytest.mark.parametrize("drawn", [{}, NOT_DRAWN])
def test_the_weight_of_what_rests_on_tolerance(tmp_path: Path, drawn: Any) -> None:
    """Fay has 5 of 20 steps."""
    over = {**drawn, "audit__tolerance_cap_ppm": 200_000}
    writer = written(tmp_path / "honest", **over)
    assert weights(writer)[FAY] == (80, 60)  # the others have 240
    assert check_run(writer.write()).failures == ()
    wrong = f"the weight of slot {FAY} in round 1 is wrong"
    assert failures(tmp_path / "more", kind=Uncapped, **over) == [wrong]
    full = {**drawn, "audit__tolerance_cap_ppm": 250_000}
    assert failures(tmp_path / "full", kind=Uncapped, **full) == []


def test_the_lower_of_both_caps_holds(tmp_path: Path) -> None:
    """Gil is fay's operator's too and of a class with an auditor: only one of the two rests on tolerance."""
    more = [("fay", "contributor", "fern", "c3"), ("gil", "contributor", "fern", "c1")]
    over = {"more": more, "train__steps": [4, 3, 2, 4, 2, 5, 5], "credit__operator_cap_ppm": 200_000}
    writer = written(tmp_path / "one", audit__tolerance_cap_ppm=150_000, **over)
    assert (weights(writer)[FAY], weights(writer)[6]) == ((80, 40), (80, 40))
    assert check_run(writer.write()).failures == ()
    writer = written(tmp_path / "other", audit__tolerance_cap_ppm=50_000, **over)
    assert (weights(writer)[FAY], weights(writer)[6]) == ((80, 13), (80, 40))
    assert check_run(writer.write()).failures == ()


def test_where_nobody_could_audit_nothing_rests_on_tolerance(tmp_path: Path) -> None:
    """Audits at the rate 0 and nobody eligible: accepted, and no tolerance has a part in it."""
    over = {**NOT_DRAWN, "audit__tolerance": [], "audit__tolerance_cap_ppm": 1}
    writer = written(tmp_path, **over)
    assert weights(writer)[FAY] == (80, 80)
    assert check_run(writer.write()).failures == ()


def test_a_turn_without_weight_is_not_closed(tmp_path: Path) -> None:
    script = {(0, slot): "late" for slot in range(5)}
    found = failures(tmp_path, script=script, credit__operator_cap_ppm=0, run__rounds=1)
    assert found[:1] == ["round 1 is closed though nothing in it has weight"]
    # Beside nothing else what rests on tolerance has all its weight.
    assert failures(tmp_path, script=script, audit__tolerance_cap_ppm=1) == []


# --- cases ---


class Framing(Writer):
    """Leaves the trace out of its cases, or puts the bytes `put` in its place."""

    put: bytes | None = None

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        if super().evidence(line, reason, reveals) is None:
            return None
        folder = f"evidence/r{self.round:05d}-a{self.attempt}-s{line['slot']}"
        case = json.loads(self.files[f"{folder}/case.json"])
        del self.files[f"{folder}/trace"], case["files"]["trace"]
        if self.put is not None:
            self.files[f"{folder}/trace"] = self.put
            case["files"]["trace"] = b3(self.put)
        self.files[f"{folder}/case.json"] = canon(case)
        return sha(canon(case))


@pytest.mark.parametrize("segments", [0, 2])
def test_a_case_by_tolerance_has_the_trace(tmp_path: Path, segments: int) -> None:
    """Also where all segments are drawn: the trace was served."""
    over = {"script": {(0, FAY): "norm_ppb"}, "audit__segments": segments}
    writer = written(tmp_path / "honest", **over)
    assert reason_of(writer) == "failed-audit"
    assert f"evidence/r00001-a0-s{FAY}/trace" in writer.files
    assert check_run(writer.write()).failures == ()
    of = f"the evidence against slot {FAY} in round 1"
    assert failures(tmp_path / "without", kind=Framing, **over) == [f"the files in {of} are wrong"]
    kind = type("Other", (Framing,), {"put": b"another"})
    found = failures(tmp_path / "other", kind=kind, **over)
    assert found == [f"trace in {of} is not an opened trace of 6 leaves"]


def test_a_case_of_a_whole_audit_beside_one_by_tolerance_has_none(tmp_path: Path) -> None:
    over = {"script": {(0, 0): "cheat", (0, FAY): "norm_ppb"}, "audit__segments": 0}
    writer = written(tmp_path, **over)
    assert [reason_of(writer, slot) for slot in (0, FAY)] == ["failed-audit"] * 2
    assert "evidence/r00001-a0-s0/trace" not in writer.files
    assert check_run(writer.write()).failures == ()
