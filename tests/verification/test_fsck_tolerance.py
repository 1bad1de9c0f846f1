"""Audits by tolerance: the pieces, the manifest, honest runs, and who audits whom."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import sha
from tests.verification.test_fsck_lies import setter
from tests.verification.test_fsck_state import State
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck import check_run
from verification.fsck_findings import Report
from verification.fsck_rules import check_manifest
from verification.fsck_shapes import RECORDS, tolerances_of
from verification.fsck_tolerance import (
    capped,
    deviates,
    eligible,
    limits_of,
    rests_on_tolerance,
)

Record = dict[str, Any]
NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
LIMITS: Record = {"loss_ppm": 50, "norm_ppb": 900_000, "peak_ppm": 7_000, "step_milli": 4_000}
MOST = 2**53 - 2


def between(one: str, other: str, **limits: int) -> Record:
    return {"classes": [one, other], **LIMITS, **limits}


FAY = 5
TOLERANT: dict[str, Any] = {
    "more": [("fay", "contributor", "fern", "c3")],
    "audit__rate_ppm": 1_000_000,
    "audit__second_look_ppm": 1_000_000,
    "audit__probation_rounds": 0,
    "audit__tolerance": [between("c3", "c1")],
    "train__steps": [4, 3, 2, 4, 2, 5],
    "train__trace_every": 1,
    "timing__mode": "fixed",
}
"""Everybody is audited twice, two segments of each. Fay's class has no auditor; a tolerance covers c1's."""
BOTH = [between("c1", "c3"), between("c3", "c2", loss_ppm=60, norm_ppb=1, peak_ppm=9_000, step_milli=0)]


def written(folder: Path, turns: int = 1, kind: type[Writer] = Writer, **over: Any) -> Writer:
    return kind(folder / "run", **{"script": {}, "silent": {}, **TOLERANT, **over}).run(turns=turns)


def failures(folder: Path, turns: int = 1, kind: type[Writer] = Writer, **over: Any) -> list[str]:
    return [f.what for f in check_run(written(folder, turns, kind, **over).write()).failures]


def records(writer: Writer, kind: str) -> list[Record]:
    return [record for k, record, _ in writer.records if k == kind]


def verdicts_on(writer: Writer, slot: int = FAY) -> list[Record]:
    return [record for record in records(writer, "verdict") if record["slot"] == slot]


def reason_of(writer: Writer, slot: int = FAY, turn: int = 0) -> str | None:
    close = records(writer, "round-close")[turn]
    return {line["slot"]: line["reason"] for line in close["rejected"]}.get(slot)


# --- pieces ---

LINE = {"operator": "o", "class": "a"}


def auditors(*told: str) -> list[Record]:
    """`ob` is an auditor of operator o and class b."""
    return [{"member": name, "operator": name[0], "class": name[1]} for name in told]


TOLERANCES = {frozenset("ab"): between("a", "b"), frozenset("ca"): between("c", "a")}


@pytest.mark.parametrize(
    ("told", "names", "rests"),
    [
        ((), [], False),
        (("pa",), ["pa"], False),
        (("pa", "qb", "ra"), ["pa", "ra"], False),
        (("pb",), ["pb"], True),
        (("pc", "qb", "rd"), ["pc", "qb"], True),
        (("oa", "pb"), ["pb"], True),
        (("oa", "ob"), [], False),
        (("pd",), [], False),
        (("oa", "qa", "pb"), ["qa"], False),
    ],
)
def test_who_may_audit(told: tuple[str, ...], names: list[str], *, rests: bool) -> None:
    present = auditors(*told)
    assert [auditor["member"] for auditor in eligible(LINE, present, TOLERANCES)] == names
    assert rests_on_tolerance(LINE, present, TOLERANCES) is rests
    assert [auditor["member"] for auditor in eligible(LINE, present, {})] == [
        name for name in names if not rests
    ]


def test_thresholds_are_those_of_the_two_classes() -> None:
    same, other = auditors("pa", "pc")
    assert limits_of(LINE, same, {**TOLERANCES, frozenset("a"): LIMITS}) is None
    assert limits_of(LINE, other, TOLERANCES) == between("c", "a")


def test_tolerances_by_their_classes() -> None:
    first, second = between("a", "b", loss_ppm=1), between("b", "a", loss_ppm=2)
    manifest = {"config": {"audit": {"tolerance": [first, second, between("b", "c")]}}}
    assert tolerances_of(manifest) == {frozenset("ab"): first, frozenset("bc"): between("b", "c")}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_deviation_above_a_threshold(key: str) -> None:
    at: Record = {**LIMITS, "own": sha(b"own")}
    above = {**at, key: LIMITS[key] + 1}
    assert not deviates({"deviations": [at, {**at, key: 0}]}, LIMITS)
    assert deviates({"deviations": [at, above]}, LIMITS)
    assert not deviates({"deviations": [above]}, None)
    assert not deviates({"deviations": []}, LIMITS)


@given(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=6),
    st.integers(1, 1_000_000),
)
def test_the_cap_on_what_rests_on_tolerance(slots: list[tuple[int, bool]], cap_ppm: int) -> None:
    weights, resting = [weight for weight, _ in slots], [rests for _, rests in slots]
    exact = sum(weight for weight, rests in slots if not rests)
    shared = sum(weight for weight, rests in slots if rests)
    share = Fraction(cap_ppm, 10**6)
    over = exact > 0 and shared > share * (shared + exact)
    expected = [
        int(Fraction(weight, shared) * exact * share / (1 - share)) if rests and over else weight
        for weight, rests in slots
    ]
    assert capped(weights, resting, cap_ppm) == expected


def test_the_cap_golden() -> None:
    # Beside 40 a half of all is 40.
    assert capped([30, 30, 40], [True, True, False], 500_000) == [20, 20, 40]
    assert capped([30, 20, 40], [True, True, False], 500_000) == [24, 16, 40]
    assert capped([30, 30, 40], [True, True, False], 600_000) == [30, 30, 40]
    assert capped([30, 30, 40], [True, True, False], 599_999) == [29, 29, 40]
    assert capped([7, 3], [True, False], 1) == [0, 3]
    assert capped([7], [True], 1) == [7]
    assert capped([], [], 1) == []


# --- the manifest ---


def manifest_failures(folder: Path, items: list[Record], **over: Any) -> list[str]:
    report = Report()
    over = {**TOLERANT, **over, "audit__tolerance": items}
    check_manifest(State(folder, script={}, silent={}, **over).manifest, report)
    return [failure.what for failure in report.failures]


ONE_CLASS = "audit.tolerance has an item of one class"
SAME_TWO = "audit.tolerance has two items of the same two classes"
STEPS = "audit.tolerance is of single steps, train.trace_every is not"


@pytest.mark.parametrize(
    ("items", "every", "expected"),
    [
        ([], 1, []),
        ([], 2, []),
        (BOTH, 1, []),
        ([between("a", "b"), between("b", "c"), between("c", "a")], 1, []),
        ([between("a", "b")], 2, [STEPS]),
        ([between("a", "a")], 1, [ONE_CLASS]),
        ([between("a", "b"), between("a", "b")], 1, [SAME_TWO]),
        ([between("a", "b"), between("c", "b"), between("b", "a")], 1, [SAME_TWO]),
        (
            [between("b", "b"), between("a", "b"), between("b", "b")],
            3,
            [STEPS, ONE_CLASS, ONE_CLASS, SAME_TWO],
        ),
    ],
)
def test_tolerances_in_a_manifest(
    tmp_path: Path, items: list[Record], every: int, expected: list[str]
) -> None:
    assert manifest_failures(tmp_path, items, train__trace_every=every) == expected


@pytest.mark.parametrize(
    ("items", "over"),
    [([between("c1", "c3")], {"train__trace_every": 2}), ([between("c1", "c3"), between("c1", "c1")], {})],
)
def test_a_run_under_a_wrong_tolerance(tmp_path: Path, items: list[Record], over: Any) -> None:
    [what] = failures(tmp_path, audit__tolerance=items, **over)
    assert what == (STEPS if over else ONE_CLASS)


@pytest.mark.parametrize(
    ("path", "value", "fits"),
    [
        ("tolerance", [], True),
        ("tolerance", {}, False),
        ("tolerance", None, False),
        ("tolerance_cap_ppm", 0, False),
        ("tolerance_cap_ppm", 1, True),
        ("tolerance_cap_ppm", 1_000_000, True),
        ("tolerance_cap_ppm", 1_000_001, False),
        ("tolerance_cap_ppm", -1, False),
        ("tolerance_cap_ppm", None, False),
        *((f"tolerance.0.{key}", 0, True) for key in NUMBERS),
        *((f"tolerance.0.{key}", MOST, True) for key in NUMBERS),
        *(
            (f"tolerance.0.{key}", value, False)
            for key in NUMBERS
            for value in (-1, MOST + 1, "1", None, True)
        ),
        ("tolerance.0.classes", ["a" * 200, " ~"], True),
        *(("tolerance.0.classes", v, False) for v in (["a"], ["a", "b", "c"], "ab", ["a", ""], ["é", "a"])),
        ("tolerance.0.classes.1", "a" * 201, False),
        ("tolerance.0.classes.0", 1, False),
        ("tolerance.0.more", 1, False),
        ("tolerance.0", None, False),
    ],
)
def test_shapes_in_a_manifest(tmp_path: Path, path: str, value: Any, *, fits: bool) -> None:
    manifest = State(tmp_path, script={}, silent={}, **TOLERANT).manifest
    manifest["config"] = copy.deepcopy(manifest["config"])
    setter(f"config.audit.{path}", value)(manifest, None)  # type: ignore[arg-type]
    if fits:
        RECORDS["manifest"](manifest, "manifest")
        return
    with pytest.raises(FormatError, match=r"manifest\.config\.audit.* does not fit"):
        RECORDS["manifest"](manifest, "manifest")


@pytest.mark.parametrize("path", ["tolerance", "tolerance_cap_ppm", *(f"tolerance.0.{n}" for n in NUMBERS)])
def test_what_must_be_there(tmp_path: Path, path: str) -> None:
    manifest = copy.deepcopy(State(tmp_path, script={}, silent={}, **TOLERANT).manifest)
    at, _, key = f"config.audit.{path}".rpartition(".")
    setter(at, lambda old: {k: v for k, v in old.items() if k != key})(manifest, None)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="does not fit"):
        RECORDS["manifest"](manifest, "manifest")


# --- honest runs ---


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"audit__tolerance": BOTH},
        {"audit__tolerance": BOTH, "audit__segments": 0},
        {"audit__segments": 1, "audit__second_look_ppm": 0},
        {"train__mode": "gradient"},
        {"audit__probation_rounds": 1, "audit__rate_ppm": 300_000, "timing__mode": "measured"},
        {"audit__tolerance_cap_ppm": 100_000},
        {"audit__rate_ppm": 0, "audit__tolerance_cap_ppm": 1},
        {"script": {(turn, FAY): "not finite" for turn in range(6)}},
        {"script": {(1, FAY): "cheat", (2, FAY): "noserve", (3, FAY): "dispute", (4, FAY): "twin"}},
    ],
)
def test_an_honest_run_by_tolerance_holds(tmp_path: Path, over: Any) -> None:
    writer = written(tmp_path, 99, **over)
    found = check_run(writer.write())
    assert (found.failures, found.complete) == ((), True)
    drawn = [line for r in records(writer, "draw") for line in r["drawn"] if line["slot"] == FAY]
    assert {len(line["auditors"]) for line in drawn} <= {3, 5}
    assert all(verdict["class"] != "c3" and verdict["deviations"] for verdict in verdicts_on(writer))
    assert not any(v["deviations"] for slot in range(5) for v in verdicts_on(writer, slot))
    assert drawn or over.get("audit__rate_ppm") == 0


@pytest.mark.parametrize("what", [*NUMBERS, "not finite"])
@pytest.mark.parametrize("tolerance", [TOLERANT["audit__tolerance"], BOTH])
def test_a_step_too_far_away_fails(tmp_path: Path, what: str, tolerance: Any) -> None:
    writer = written(tmp_path, script={(0, FAY): what}, audit__tolerance=tolerance)
    first, second = verdicts_on(writer)
    assert first["differs"] == second["differs"] == ["deviation"]
    assert reason_of(writer) == "failed-audit"
    assert [len(v["deviations"]) for v in (first, second)] == [2, 2]
    assert check_run(writer.write()).failures == ()


def test_where_its_own_class_is_there_a_slot_does_not_rest(tmp_path: Path) -> None:
    more = [*TOLERANT["more"], ("una", "auditor", "upper", "c3")]
    writer = written(tmp_path, more=more, audit__second_look_ppm=0)
    assert [(v["auditor"], v["deviations"]) for v in verdicts_on(writer)] == [("una", [])]
    assert check_run(writer.write()).failures == ()


def test_an_auditor_of_the_same_operator_does_not_count(tmp_path: Path) -> None:
    more = [*TOLERANT["more"], ("una", "auditor", "fern", "c3")]
    writer = written(tmp_path, more=more)
    assert len(verdicts_on(writer)) == 2
    assert all(verdict["class"] == "c1" for verdict in verdicts_on(writer))
    assert check_run(writer.write()).failures == ()


def test_without_a_tolerance_nobody_is_eligible(tmp_path: Path) -> None:
    writer = written(tmp_path, audit__tolerance=[between("c1", "c2")])
    assert reason_of(writer) == "no-eligible-auditor"
    assert check_run(writer.write()).failures == ()


# --- by whom ---


class Choosing(Writer):
    """Has fay audited by whom it likes."""

    chosen: Callable[[list[Record]], list[str]]

    def able(self, line: Record, auditors: list[Record]) -> list[str]:
        return type(self).chosen(auditors) if line["slot"] == FAY else super().able(line, auditors)


def choosing(chosen: Callable[[list[Record]], list[str]]) -> type[Choosing]:
    return type("Chosen", (Choosing,), {"chosen": staticmethod(chosen)})


OTHER_AUDITORS = f"the auditors of slot {FAY} in round 1 do not follow from the seed"


@pytest.mark.parametrize(
    "chosen",
    [
        lambda present: [a["member"] for a in present],
        lambda present: [a["member"] for a in present if a["class"] == "c1"][:2],
        lambda present: [],
    ],
)
def test_other_auditors_than_a_tolerance_gives(tmp_path: Path, chosen: Any) -> None:
    over = {"audit__second_look_ppm": 0, "silent": {(0, 1, FAY): 9}}
    assert failures(tmp_path, kind=choosing(chosen), **over)[0] == OTHER_AUDITORS


def test_by_tolerance_though_its_own_class_is_there(tmp_path: Path) -> None:
    more = [*TOLERANT["more"], ("una", "auditor", "upper", "c3")]
    kind = choosing(lambda present: [a["member"] for a in present if a["class"] == "c1"])
    assert failures(tmp_path, kind=kind, more=more)[0] == OTHER_AUDITORS


def test_called_unaudited_for_want_of_an_auditor(tmp_path: Path) -> None:
    """A coordinator that does not hold with tolerances may not say that nobody was there to ask."""
    found = failures(tmp_path, kind=choosing(lambda present: []))
    assert found[0] == OTHER_AUDITORS
    assert f"slot {FAY} is settled wrongly in round 1" in found
