"""What auditors are asked where a slot rests on tolerance: sketches first, wave by wave, then the verdict.

Members are functions here; audits to the bit are test_crew.py's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.panel import AuditCase, Panel, Wave
from pipeline.parties import PATIENCE_MS
from tests.pipeline.test_crew import Fakes, Memory, Reply
from tests.verification.fake_run import key
from tests.verification.test_intake_sketches import judged, verdict
from verification.encoding import canonical_json
from verification.records import Verdict
from verification.sealing import seal_record
from verification.segments import waves
from verification.tolerance import ServedStep, Sketch

TURN = judged().open_turn
ORDER = next(item.auditors for item in TURN.draw.drawn if item.slot == 3) if TURN.draw else ()
SEGMENTS = TURN.drawn_segments(3)
TRUE: dict[int, Sketch] = {segment: (segment + 1, *range(7)) for segment in SEGMENTS}
FALSE: dict[int, Sketch] = {segment: (10**6, *range(7)) for segment in SEGMENTS}
CASE = AuditCase(
    b"open",
    b"draw",
    b"reveal",
    b"checkpoint",
    b"state",
    b"all of it",
    tuple(Wave(part, str(part).encode()) for part in waves(SEGMENTS)),
    tuple(ServedStep(TRUE[segment], 0) for segment in SEGMENTS),
)


def signed(name: str, told: dict[int, Sketch], outcome: str = "pass") -> bytes:
    record: Verdict = verdict(judged(), 3, 1, name, outcome)
    pairs = zip(record.deviations, SEGMENTS, strict=True)
    deviations = tuple(replace(deviation, sketch=told[segment]) for deviation, segment in pairs)
    return seal_record(replace(record, deviations=deviations), key(name))


def teller(told: dict[int, Sketch]) -> Reply:
    def tell(name: str, *args: Any) -> bytes:
        return canonical_json([list(told[segment]) for segment in waves(SEGMENTS)[args[6]]])

    return tell


def panel(memory: Memory | None = None, **verbs: Reply) -> tuple[Panel, list[str], Fakes]:
    said: list[str] = []
    fakes = Fakes(verbs)
    return Panel(fakes, said.append, Memory() if memory is None else memory), said, fakes


def test_the_case_has_what_these_tests_are_about() -> None:
    assert len(ORDER) > 1
    assert len(SEGMENTS) == 2
    assert TURN.audit_of(3).tolerant


def test_sketches_are_told_wave_by_wave_before_the_verdict() -> None:
    asked: list[Any] = []

    def tell(name: str, *args: Any) -> bytes:
        assert args[:6] == (b"open", 3, b"draw", b"reveal", b"checkpoint", b"state")
        asked.append(("tell", args[6], args[7]))
        return teller(TRUE)(name, *args)

    def audit(name: str, *args: Any) -> bytes:
        assert args == (b"open", 3, 1, b"draw", b"reveal", b"checkpoint", b"state", b"all of it")
        asked.append("audit")
        return signed(name, TRUE)

    team, said, _ = panel(tell=tell, audit=audit)
    found = team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {})
    assert found[3][0].auditor == ORDER[0]
    assert said == []
    assert asked == [*(("tell", i, wave.trace) for i, wave in enumerate(CASE.waves)), "audit"]


@pytest.mark.parametrize(
    ("told", "stated", "why"),
    [
        (FALSE, FALSE, "has not seen"),  # a guess that it stands by
        (FALSE, TRUE, "other sketches than were told"),  # a guess, and then what it was shown
    ],
)
def test_who_passes_what_it_has_not_seen_gives_no_verdict(
    told: dict[int, Sketch], stated: dict[int, Sketch], why: str
) -> None:
    stamp, honest = ORDER[:2]
    team, said, fakes = panel(
        tell=lambda name, *args: teller(told if name == stamp else TRUE)(name, *args),
        audit=lambda name, *_: signed(name, stated if name == stamp else TRUE),
    )
    found = team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {})
    assert found[3][0].auditor == honest
    (line,) = said
    assert line.startswith(f"{stamp}: verdict on slot 3 refused")
    assert why in line
    assert [name for method, name in fakes.asked if method == "audit"] == [stamp, honest]


def test_an_accuser_may_tell_what_it_likes_and_has_to_stand_by_it() -> None:
    team, said, _ = panel(tell=teller(FALSE), audit=lambda name, *_: signed(name, FALSE, "fail"))
    assert team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {})[3][0].outcome == "fail"
    assert said == []


@pytest.mark.parametrize("answer", [TimeoutError, ZeroDivisionError, b"", b"[]", b"[[1]]", None, "text"])
def test_who_tells_nothing_is_not_asked_for_a_verdict(answer: Any) -> None:
    def tell(name: str, *args: Any) -> Any:
        if name != ORDER[0]:
            return teller(TRUE)(name, *args)
        if isinstance(answer, type):
            raise answer
        return answer

    team, said, fakes = panel(tell=tell, audit=lambda name, *_: signed(name, TRUE))
    found = team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {})
    assert found[3][0].auditor == ORDER[1]
    assert said[0].startswith(f"{ORDER[0]}: told no sketches of slot 3")
    assert ("audit", ORDER[0]) not in fakes.asked


def test_what_was_told_stands_though_the_coordinator_dies() -> None:
    """Who has seen the ends since is not asked again, whatever look it is asked at."""
    memory = Memory()
    killed = panel(memory, tell=teller(FALSE), audit=lambda *_: 1 // 0)[0]
    assert killed.verdicts(TURN, 1, {3: ORDER[:1]}, {3: CASE}, {}) == {}
    again, said, fakes = panel(memory, tell=teller(TRUE), audit=lambda name, *_: signed(name, TRUE))
    assert again.verdicts(TURN, 1, {3: ORDER[:1]}, {3: CASE}, {}) == {}
    assert fakes.asked == [("audit", ORDER[0])]
    assert "other sketches than were told" in said[0]
    assert {question.auditor for question in memory} == {ORDER[0]}
    another, _, later = panel(memory, tell=teller(TRUE), audit=lambda name, *_: signed(name, TRUE))
    another.verdicts(TURN, 2, {3: ORDER[:1]}, {3: CASE}, {})
    assert later.asked == [("audit", ORDER[0])]


def test_who_told_badly_may_be_asked_again_and_nothing_is_kept_of_it() -> None:
    memory = Memory()
    team = panel(memory, tell=lambda *_: b"[[1]]")[0]
    assert team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {}) == {}
    assert memory == {}


def test_all_the_questions_of_a_look_have_one_deadline() -> None:
    team, _, fakes = panel(tell=teller(TRUE), audit=lambda name, *_: signed(name, TRUE))
    team.verdicts(TURN, 1, {3: ORDER}, {3: CASE}, {})
    told = 5 * len(CASE.waves)  # each answer takes five milliseconds here
    assert fakes.deadlines == {"tell": PATIENCE_MS - told + 5, "audit": PATIENCE_MS - told}


def test_a_begun_verdict_that_is_refused_is_not_asked_for_again() -> None:
    """To the bit: the next auditor is."""
    state = judged()
    order = next(item.auditors for item in TURN.draw.drawn if item.slot == 0) if TURN.draw else ()
    case = replace(CASE, waves=(), sketches=())
    wrong = seal_record(verdict(state, 0, 1, order[0], "pass"), key("c0"))
    team, said, fakes = panel(
        audit=lambda name, *_: (
            wrong if name == order[0] else seal_record(verdict(state, 0, 1, name, "pass"), key(name))
        )
    )
    begun = team.begin_verdicts({0: order}, {0: case})
    found = team.verdicts(TURN, 1, {0: order}, {0: case}, begun)
    assert found[0][0].auditor == order[1]
    assert fakes.asked == [("audit", order[0]), ("audit", order[1])]
    assert len(said) == 1
