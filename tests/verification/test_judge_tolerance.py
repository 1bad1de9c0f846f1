"""Judging by tolerance: what a verdict has to state, what follows from it, and when two of them agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_run import done, looked_at, opening, reveal, sha, started
from verification.disputes import side_of
from verification.judge import Audit, TurnEvidence, judged, settle, stated_by, verdict_is_sound
from verification.plans import plan_open
from verification.records import Deviation, Draw, DrawnSlot, SecondDraw, SlotAuditors, Verdict
from verification.tolerance import NO_BOUND, NO_SKETCH, ServedStep

SLOT = 0
NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
LIMITS = dict(zip(NUMBERS, (10, 20, 30, 40), strict=True))
WIDE = dict.fromkeys(NUMBERS, 1000)
MINE, NEAR, FAR, OTHER = "class", "near", "far", "neither"
# From the contributor's class to `near` and `far`, and between two others, which is nobody's business here.
TOLERANCES = [
    {"classes": [NEAR, MINE], **LIMITS},
    {"classes": [MINE, FAR], **WIDE},
    {"classes": [NEAR, OTHER], **WIDE},
]
OPEN = replace(
    plan_open(started(train={"steps": [9, 2, 3, 1]})),
    auditors=tuple(
        replace(auditor, numerics_class=kind)
        for auditor, kind in zip(plan_open(started()).auditors, (NEAR, NEAR, FAR), strict=True)
    ),
)
ENTRY, COUNT = OPEN.roster[SLOT], 5
CLAIM = reveal(OPEN, ENTRY)
SEGMENTS = (1, 3)
AUDIT = Audit.of(TOLERANCES, ENTRY, OPEN.auditors, SEGMENTS)
EXACT = Audit(SEGMENTS, MINE, tolerances=TOLERANCES)


def deviation(**numbers: int) -> Deviation:
    return Deviation(**{**dict.fromkeys(NUMBERS, 0), **numbers}, own=sha("own leaf"))


def verdict(
    *deviations: Deviation,
    kind: str = NEAR,
    flavour: str = "true",
    audit: Audit = AUDIT,
    auditor: str = "a0",
    look: int = 1,
) -> Verdict:
    """A verdict whose outcome follows from its values."""
    found = replace(looked_at(OPEN, ENTRY, audit, flavour), deviations=deviations)
    differs = judged(audit, kind, opening(OPEN, ENTRY), found)
    values = (found.payload, found.next_state, found.trace, found.loss_first, found.loss_last)
    outcome: Any = "fail" if differs else "pass"
    number: Any = look
    return Verdict(
        1, OPEN.run, 1, 0, SLOT, number, auditor, "key", outcome, differs, *values, deviations, kind
    )


FINE = (deviation(), deviation(**LIMITS))


def test_an_audit_of_a_slot_that_rests_on_tolerance_is_by_tolerance() -> None:
    assert Audit(SEGMENTS, MINE, tolerant=True, tolerances=TOLERANCES) == AUDIT
    same = (*OPEN.auditors, replace(OPEN.auditors[0], numerics_class=MINE))
    assert Audit.of(TOLERANCES, ENTRY, same, [1, 3]) == EXACT
    assert Audit.of((), ENTRY, OPEN.auditors, SEGMENTS) == Audit(SEGMENTS, MINE)


def test_by_tolerance_a_trace_is_opened_whatever_is_drawn() -> None:
    assert AUDIT.opens_a_trace(COUNT)
    assert EXACT.opens_a_trace(COUNT)
    whole = tuple(range(COUNT))
    assert replace(AUDIT, segments=whole).opens_a_trace(COUNT)
    assert not replace(EXACT, segments=whole).opens_a_trace(COUNT)
    assert AUDIT.opened_leaves(COUNT) == (0, 1, 2, 3, 4)
    assert EXACT.opened_leaves(COUNT) == (0, 2, 4)
    assert AUDIT.looked_into(COUNT) == EXACT.looked_into(COUNT) == {0, 1, 2, 3, 4, 5}


# --- soundness ---


def test_a_verdict_has_a_deviation_for_each_drawn_segment() -> None:
    assert verdict_is_sound(verdict(*FINE), CLAIM, AUDIT)
    for number in (0, 1, 3, 4, 5):
        record = verdict(*[deviation()] * number)
        assert not verdict_is_sound(record, CLAIM, AUDIT), number
    for segments in ((0,), (0, 2), (0, 1, 2, 3, 4)):
        audit = replace(AUDIT, segments=segments)
        for number in range(6):
            record = verdict(*[deviation()] * number, audit=audit)
            assert verdict_is_sound(record, CLAIM, audit) is (number == len(segments))


def test_a_verdict_to_the_bit_has_no_deviations() -> None:
    assert verdict_is_sound(verdict(kind=MINE, audit=EXACT), CLAIM, EXACT)
    for kind in (MINE, NEAR):
        for number in (1, 2):
            record = verdict(*[deviation()] * number, kind=kind, audit=EXACT)
            for outcome, differs in (("pass", ()), ("fail", ("deviation",))):
                told = replace(record, outcome=outcome, differs=differs)
                assert not verdict_is_sound(told, CLAIM, EXACT)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_deviation_above_its_threshold_is_a_fail_and_one_at_it_is_none(name: str, place: int) -> None:
    at, above = (deviation(**{name: LIMITS[name] + more}) for more in (0, 1))
    within, beyond = [deviation(), deviation()], [deviation(), deviation()]
    within[place], beyond[place] = at, above
    passed, failed = verdict(*within), verdict(*beyond)
    assert (passed.outcome, passed.differs) == ("pass", ())
    assert (failed.outcome, failed.differs) == ("fail", ("deviation",))
    assert verdict_is_sound(passed, CLAIM, AUDIT)
    assert verdict_is_sound(failed, CLAIM, AUDIT)
    # Told the other way round, in the outcome, in what differs, or in both.
    told_off: list[dict[str, Any]] = [
        {"outcome": "pass", "differs": ()},
        {"outcome": "pass"},
        {"differs": ()},
        {"differs": ("loss",)},
    ]
    assert not any(verdict_is_sound(replace(failed, **told), CLAIM, AUDIT) for told in told_off)
    told_off = [
        {"outcome": "fail", "differs": ("deviation",)},
        {"outcome": "fail"},
        {"differs": ("deviation",)},
    ]
    assert not any(verdict_is_sound(replace(passed, **told), CLAIM, AUDIT) for told in told_off)


def test_the_thresholds_are_those_of_the_auditors_class_and_no_others() -> None:
    middling = (deviation(), deviation(norm_ppb=500))
    assert verdict(*middling, kind=NEAR).differs == ("deviation",)
    assert verdict(*middling, kind=FAR).differs == ()
    near, far = verdict(*middling, kind=NEAR), verdict(*middling, kind=FAR)
    assert not verdict_is_sound(replace(near, numerics_class=FAR), CLAIM, AUDIT)
    assert not verdict_is_sound(replace(far, numerics_class=NEAR), CLAIM, AUDIT)
    # Of a class that nothing covers no deviation is within anything, however small.
    for kind in (OTHER, MINE):
        assert verdict(*FINE, kind=kind).differs == ("deviation",)


@given(
    st.lists(st.fixed_dictionaries({name: st.integers(0, 60) for name in NUMBERS}), min_size=2, max_size=2)
)
def test_a_verdict_fails_just_when_some_number_of_some_step_is_above(steps: list[dict[str, int]]) -> None:
    record = verdict(*(deviation(**numbers) for numbers in steps))
    above = any(numbers[name] > LIMITS[name] for numbers in steps for name in NUMBERS)
    assert record.differs == (("deviation",) if above else ())
    assert verdict_is_sound(record, CLAIM, AUDIT)


def test_a_deviation_is_named_last_beside_what_else_differs() -> None:
    record = verdict(deviation(), deviation(loss_ppm=NO_BOUND), flavour="other")
    assert record.differs == ("trace", "payload", "next_state", "deviation")
    assert verdict_is_sound(record, CLAIM, AUDIT)
    for differs in (record.differs[:-1], ("deviation", *record.differs[:-1]), ("deviation",)):
        assert not verdict_is_sound(replace(record, differs=differs), CLAIM, AUDIT)


def test_what_a_verdict_states_is_what_was_found() -> None:
    found = replace(looked_at(OPEN, ENTRY, AUDIT), deviations=FINE)
    assert stated_by(verdict(*FINE)) == found


# --- settling ---


def settled(*verdicts: Verdict, tolerances: Sequence[Any] = TOLERANCES, **changes: Any) -> str | None:
    """How the slot is settled; the second look, where there is one, was drawn."""
    place: tuple[Any, ...] = (1, OPEN.run, 1, 0, "head", "00" * 32, (), sha("seed"))
    looks = (SlotAuditors(SLOT, ("a1", "a2")),) if len(verdicts) > 1 else ()
    drawn = (DrawnSlot(SLOT, ("a0", "a1", "a2"), SEGMENTS),)
    evidence = TurnEvidence(
        replace(OPEN, roster=(ENTRY,), **changes),
        (SLOT,),
        {},
        Draw(*place, drawn if verdicts else ()),
        (),
        {(SLOT, record.look): record for record in verdicts},
        None,
        SecondDraw(*place, looks),
        tolerances=tolerances,
    )
    (outcome,) = settle(evidence)
    return outcome.reason


BAD = (deviation(), deviation(norm_ppb=2000))
ODD = (deviation(), deviation(norm_ppb=2001))  # as bad, but another number
CLOSE = (deviation(), deviation(loss_ppm=1))  # as good as FINE, but another number


@pytest.mark.parametrize(
    ("first", "second", "kind", "reason"),
    [
        (FINE, FINE, NEAR, None),
        (FINE, CLOSE, NEAR, "disputed"),
        (FINE, CLOSE, FAR, None),
        (BAD, BAD, NEAR, "failed-audit"),
        (BAD, ODD, NEAR, "disputed"),
        (BAD, ODD, FAR, "failed-audit"),
        (FINE, BAD, NEAR, "disputed"),
        (BAD, FINE, FAR, "disputed"),
    ],
)
def test_two_verdicts_of_one_class_have_to_state_the_same_deviations(
    first: tuple[Deviation, ...], second: tuple[Deviation, ...], kind: str, reason: str | None
) -> None:
    one = verdict(*first)
    two = verdict(*second, kind=kind, auditor="a1", look=2)
    assert verdict_is_sound(one, CLAIM, AUDIT)
    assert verdict_is_sound(two, CLAIM, AUDIT)
    assert settled(one, two) == reason


def test_the_leaf_that_the_auditor_got_is_a_deviations_too() -> None:
    """It is what cannot be stated without doing the work: two of a class get the same one."""
    copied = (FINE[0], replace(FINE[1], own=sha("made up")))
    one = verdict(*FINE)
    assert settled(one, verdict(*copied, auditor="a1", look=2)) == "disputed"
    assert settled(one, verdict(*copied, auditor="a2", look=2, kind=FAR)) is None


@pytest.mark.parametrize("kind", [NEAR, FAR])
@pytest.mark.parametrize("name", ["payload", "next_state", "trace"])
def test_verdicts_that_disagree_on_the_boundary_are_disputed_of_whatever_class(name: str, kind: str) -> None:
    """The boundary is the same to the bit on any machine."""
    one, two = (verdict(*BAD, flavour=flavour) for flavour in ("other", "odd"))
    second = verdict(*BAD, flavour="other", kind=kind, auditor="a1", look=2)
    assert settled(one, second) == "failed-audit"
    second = replace(second, **{name: getattr(two, name)})
    assert side_of(one) != side_of(second)
    assert settled(one, second) == "disputed"


def test_what_a_tolerance_covers_is_not_without_an_auditor() -> None:
    drawn = verdict(*FINE)
    assert settled() is settled(drawn) is None  # drawn or not
    reason = "no-eligible-auditor"
    assert settled(tolerances=()) == settled(drawn, tolerances=()) == reason
    assert settled(tolerances=TOLERANCES[2:]) == reason  # it covers nobody's class that is here
    strangers = tuple(replace(auditor, numerics_class=OTHER) for auditor in OPEN.auditors)
    assert settled(auditors=strangers) == reason
    own = tuple(replace(auditor, operator=ENTRY.operator) for auditor in OPEN.auditors)
    assert settled(auditors=own) == reason


def test_the_whole_of_such_work_has_as_many_leaves_as_the_opening() -> None:
    assert len(done(OPEN, ENTRY).trace) == COUNT + 1
    record = verdict(*FINE)
    assert not verdict_is_sound(replace(record, trace=record.trace[:-1]), CLAIM, AUDIT)


def test_nothing_is_hollow_where_the_manifest_has_no_limits() -> None:
    """Between two such classes there are no sketches to compare; the verdict is unsound otherwise."""
    found = replace(verdict(deviation(), deviation()), outcome="pass", numerics_class=OTHER)
    assert not AUDIT.is_hollow(found, [ServedStep(NO_SKETCH, 1), ServedStep(NO_SKETCH, 1)])
