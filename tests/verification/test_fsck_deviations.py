"""Verdicts by tolerance: deviations, thresholds and the leaves looked into, one wrong thing at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import dom, hash_of, sha
from tests.verification.test_fsck_lies import setter
from tests.verification.test_fsck_tolerance import (
    FAY,
    LIMITS,
    NUMBERS,
    Record,
    failures,
    reason_of,
    verdicts_on,
    written,
)
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck import check_run
from verification.fsck_findings import Report
from verification.fsck_shapes import RECORDS
from verification.fsck_tolerance import check_deviations

MOST = 2**53 - 1

NOT_FINITE = dom("barnraise/trace-not-finite/v1", {})
ONE_LOOK = {(0, 2, FAY): 9}


def told_so(change: Callable[[Record], None], *, slot: int = FAY, look: int = 1) -> Any:
    """A lie that changes a verdict."""

    def lie(kind: str, record: Record, _: Writer) -> Any:
        if kind == "verdict" and (record["slot"], record["look"]) == (slot, look):
            change(record)
        return record

    return lie


def of(slot: int = FAY, look: int = 1) -> str:
    return f"look {look} of slot {slot} in round 1"


def told_wrongly(slot: int = FAY, look: int = 1) -> list[str]:
    return [
        f"what differs is told wrongly in the verdict of {of(slot, look)}",
        f"the outcome in the verdict of {of(slot, look)} is wrong",
    ]


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("look", [1, 2])
def test_above_a_threshold_told_as_a_pass(tmp_path: Path, what: str, look: int) -> None:
    lie = told_so(lambda r: r.update(differs=[], outcome="pass"), look=look)
    found = failures(tmp_path, script={(0, FAY): what}, lie=lie)
    assert found[:2] == told_wrongly(look=look)


@pytest.mark.parametrize("look", [1, 2])
def test_at_the_thresholds_told_as_a_fail(tmp_path: Path, look: int) -> None:
    lie = told_so(lambda r: r.update(differs=["deviation"], outcome="fail"), look=look)
    assert failures(tmp_path, lie=lie)[:2] == told_wrongly(look=look)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("what", NUMBERS)
def test_each_threshold_holds_for_each_segment(tmp_path: Path, what: str, at: int) -> None:
    lie = told_so(lambda r: r["deviations"][at].update({what: LIMITS[what] + 1}))
    assert failures(tmp_path, lie=lie, audit__second_look_ppm=0) == told_wrongly()


NUMBER = f"the verdict of {of()} has another number of deviations than are due"


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["deviations"].pop(),
        lambda r: r["deviations"].clear(),
        lambda r: r["deviations"].append(r["deviations"][0]),
    ],
)
def test_one_deviation_for_each_segment(tmp_path: Path, change: Any, look: int) -> None:
    ppm = 1_000_000 if look == 2 else 0
    found = failures(tmp_path, lie=told_so(change, look=look), audit__second_look_ppm=ppm)
    assert found[0] == NUMBER.replace(of(), of(look=look))
    assert found[1:] == ([f"slot {FAY} is settled wrongly in round 1"] if look == 2 else [])


def test_deviations_where_none_are_due(tmp_path: Path) -> None:
    """Whatever their numbers, they say nothing of a slot that does not rest on tolerance."""
    for number in (0, MOST):
        deviation = {**dict.fromkeys(NUMBERS, number), "own": sha(b"own"), "sketch": [0] * 8}
        lie = told_so(lambda r, d=deviation: r["deviations"].append(d), slot=0)  # type: ignore[misc]
        found = failures(tmp_path, lie=lie, audit__second_look_ppm=0)
        assert found == [NUMBER.replace(of(), of(0))]


def test_an_exact_slot_does_not_fail_for_deviations(tmp_path: Path) -> None:
    deviation = {**dict.fromkeys(NUMBERS, MOST), "own": sha(b"own"), "sketch": [0] * 8}

    def change(record: Record) -> None:
        record.update(deviations=[deviation], differs=["deviation"], outcome="fail")

    found = failures(tmp_path, lie=told_so(change, slot=0))
    assert found[:3] == [NUMBER.replace(of(), of(0)), *told_wrongly(0)]


def test_differences_come_in_one_order(tmp_path: Path) -> None:
    script = {(0, FAY): "loss_ppm"}

    def change(record: Record) -> None:
        record.update(loss_last=0, differs=["deviation", "loss"])

    found = failures(tmp_path, script=script, lie=told_so(change), audit__second_look_ppm=0)
    # With another loss it is of a side of its own, and no fault; the log says otherwise.
    alone = "slot 5 is settled wrongly in round 1"
    assert found == [told_wrongly()[0], alone]
    lie = told_so(lambda r: r.update(loss_last=0, differs=["loss", "deviation"]))
    assert failures(tmp_path, script=script, lie=lie, audit__second_look_ppm=0) == [alone]


def test_a_case_of_a_lone_fail_has_no_evidence(tmp_path: Path) -> None:
    writer = written(tmp_path, script={(0, FAY): "loss_ppm"}, silent={(0, 2, FAY): 9})
    assert reason_of(writer) == "unconfirmed"
    assert check_run(writer.write()).failures == ()


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize("own", [sha(b"own"), NOT_FINITE])
def test_numbers_are_only_held_against_thresholds(tmp_path: Path, own: str, mode: str) -> None:
    """Whoever states others than it should must not be able to spoil a log that nobody else refused."""
    lie = told_so(lambda r: r["deviations"][1].update(own=own, step_milli=LIMITS["step_milli"]))
    assert failures(tmp_path, lie=lie, silent=ONE_LOOK, audit__second_look_ppm=0, train__mode=mode) == []


def test_the_number_of_deviations_with_words() -> None:
    deviations = [{**LIMITS, "own": sha(b"own")}] * 2
    report = Report()
    check_deviations({"deviations": deviations}, LIMITS, 1, of="it", where="here", report=report)
    assert [(f.where, f.expected, f.got) for f in report.failures] == [("here", "1", "2")]


@pytest.mark.parametrize("at", ["first", "last", "boundary"])
def test_leaves_looked_into_by_tolerance(tmp_path: Path, at: str) -> None:
    """What a drawn segment begins with, leaf n - 1 and the boundary are stated too."""

    def change(record: Record) -> None:
        stated = [i for i, leaf in enumerate(record["trace"]) if leaf.startswith("sha256:")]
        place = {"first": stated[0], "last": 4, "boundary": 5}[at]
        record["trace"][place] = hash_of(record["trace"][place]).hex()

    found = failures(tmp_path, lie=told_so(change), audit__second_look_ppm=0)
    assert found == [f"the verdict of {of()} states the digests of other leaves than the draw looks into"]


def test_a_leaf_that_nobody_asked_for(tmp_path: Path) -> None:
    def lie(kind: str, record: Record, writer: Writer) -> Any:
        if kind == "verdict" and record["slot"] == FAY:
            record["trace"] = writer.committed[FAY][1]["trace"]
        return record

    found = failures(tmp_path, lie=lie, audit__second_look_ppm=0, audit__segments=1)
    assert found == [f"the verdict of {of()} states the digests of other leaves than the draw looks into"]


@pytest.mark.parametrize(
    ("path", "value", "fits"),
    [
        ("deviations", [], True),
        ("deviations", None, False),
        ("deviations.0", {}, False),
        ("deviations.0.more", 0, False),
        ("deviations.0.own", "blake3:" + "0" * 64, False),
        ("deviations.0.own", "0" * 64, False),
        ("deviations.0.own", None, False),
        ("deviations.0.sketch", [-(10**7)] * 4 + [10**7] * 4, True),
        *(("deviations.0.sketch", [0] * count, False) for count in (0, 7, 9)),
        *(
            ("deviations.0.sketch", [0] * 7 + [odd], False)
            for odd in (True, "0", None, 10**7 + 1, -(10**7) - 1)
        ),
        ("deviations.0.sketch", None, False),
        *((f"deviations.0.{key}", MOST, True) for key in NUMBERS),
        *((f"deviations.0.{key}", value, False) for key in NUMBERS for value in (-1, MOST + 1, "0", None)),
        ("differs", ["trace", "payload", "next_state", "loss", "deviation"], True),
        ("differs", ["deviations"], False),
    ],
)
def test_shapes_in_a_verdict(verdict: Record, path: str, value: Any, *, fits: bool) -> None:
    record = copy.deepcopy(verdict)
    setter(path, value)(record, None)  # type: ignore[arg-type]
    if fits:
        RECORDS["verdict"](record, "verdict")
        return
    with pytest.raises(FormatError, match=r"verdict\..* does not fit"):
        RECORDS["verdict"](record, "verdict")


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return verdicts_on(written(tmp_path_factory.mktemp("shapes")))[0]
