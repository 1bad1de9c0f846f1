"""The mutation run's own parts: each kind of step is found, and taken out alone."""

from __future__ import annotations

import os

import pytest

from assurance.line_map import Tracer
from assurance.mutants import Mutant, mutants
from assurance.mutations import ROOT, TESTS, _each

SOURCE = """
def check(value, report):
    verify(value)
    if value < 0 or value > 9:
        raise ValueError("range")
    report.add("seen")
    names.add(value)
    if not report.equal(1, value):
        return False
    return True
"""


class Report:
    def __init__(self) -> None:
        self.said: list[str] = []

    def add(self, what: str) -> None:
        self.said.append(what)

    def equal(self, first: int, second: int) -> bool:
        return first == second


def outcome(source: str, value: int) -> object:
    verified: list[int] = []
    report = Report()
    space: dict[str, object] = {"verify": verified.append, "names": set()}
    exec(source, space)
    try:
        answer = space["check"](value, report)  # type: ignore[operator]
    except ValueError:
        answer = "refused"
    return answer, verified, report.said


def test_each_step_is_taken_out_once_and_alone() -> None:
    found = {mutant.what: mutant for mutant in mutants("m", SOURCE)}
    assert set(found) == {
        "verify(value)",
        "or: value < 0",
        "or: value > 9",
        "ValueError('range')",
        "report.add('seen')",
        "return False",
    }
    assert outcome(found["verify(value)"].source, 1) == (True, [], ["seen"])
    assert outcome(found["or: value < 0"].source, -1) == (False, [-1], ["seen"])
    assert outcome(found["or: value < 0"].source, 10) == ("refused", [10], [])
    assert outcome(found["or: value > 9"].source, 10) == (False, [10], ["seen"])
    assert outcome(found["ValueError('range')"].source, 10) == (False, [10], ["seen"])
    assert outcome(found["report.add('seen')"].source, 1) == (True, [1], [])
    assert outcome(found["return False"].source, 2) == (True, [2], ["seen"])


def test_tests_that_fire_a_line_judge_first() -> None:
    tracer = Tracer(ROOT)
    tracer.ran[("a.py", 3)] |= {"slow", "quick", "fires"}
    tracer.fired[("a.py", 3)].add("fires")
    tracer.seconds |= {"slow": 50.0, "quick": 1.0, "fires": 20.0}
    assert tracer.judges("a.py", 2, 4, 30.0) == ["fires", "quick"]
    assert tracer.judges("a.py", 4, 9, 30.0) == []
    tracer.ran[("b.py", 7)] |= {"t/test_c.py::quick", "t/test_b.py::own", "t/test_b.py::more"}
    tracer.seconds |= {"t/test_c.py::quick": 0.1, "t/test_b.py::own": 2.0, "t/test_b.py::more": 1.0}
    assert tracer.judges("b.py", 7, 7, 3.0) == ["t/test_b.py::more", "t/test_b.py::own"]


def test_the_files_that_judge_are_there() -> None:
    missing = [file for tests in TESTS.values() for file in tests if not (ROOT / file).exists()]
    assert missing == []
    modules = {ROOT / (name.replace(".", "/") + ".py") for name in TESTS}
    assert [str(path) for path in modules if not path.exists()] == []


@pytest.mark.parametrize(
    ("code", "survives"), [(0, True), (1, False), (2, False), (4, True), (5, True), (70, True)]
)
def test_only_a_test_that_fails_notices(code: int, survives: bool) -> None:
    (mutant,) = list(mutants("m", "def f(x):\n    if x:\n        raise ValueError\n"))[:1]
    said: list[str] = []

    def start(_: Mutant) -> int:
        pid = os.fork()
        if not pid:
            os._exit(code)
        return pid

    assert _each([mutant], start, said.append) == [mutant] * survives
    assert len(said) == survives
