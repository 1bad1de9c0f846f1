"""Intake of appeals, and of verdicts of later looks: what was asked for, by whom it was asked of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fake_disputes import failed_alike
from tests.verification.fake_run import appeal, b3, key, verdict
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.intake import check_appeal, check_verdict
from verification.looks import further_look
from verification.records import Appeal
from verification.rounds import apply
from verification.sealing import seal_record
from verification.state import RunState


@cache
def accused() -> RunState:
    """Both looks at slots 0 and 1 failed alike."""
    return failed_alike()


def check(record: Any, slot: int = 0, signer: str = "c0") -> Appeal:
    return check_appeal(accused().open_turn, slot, seal_record(record, key(signer)))


RIGHT = appeal(accused(), 0)


def test_a_right_appeal_is_taken() -> None:
    assert check(RIGHT) == RIGHT
    other = appeal(accused(), 1)
    assert check(other, 1, "c1") == other
    assert apply(accused(), RIGHT).open_turn.appeals == {0: RIGHT}


def test_an_appeal_is_signed_by_its_slots_owner() -> None:
    for signer in ("c1", "a0", "coordinator", "nobody"):
        with pytest.raises(SignatureError):
            check(RIGHT, 0, signer)
    with pytest.raises(SignatureError):
        check(RIGHT, 1)
    with pytest.raises(FormatError, match="slot is not in the roster"):
        check(RIGHT, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "sha256:" + "0" * 64},
        {"round": 2},
        {"attempt": 1},
        {"slot": 1},
        {"member": "c1"},
        {"key": key("c1").public},
    ],
)
def test_an_appeal_is_of_this_turn_and_slot(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check(replace(RIGHT, **change))


def test_an_appeal_is_against_the_two_verdicts_in_their_order() -> None:
    one, two = RIGHT.verdicts
    other = appeal(accused(), 1).verdicts
    for wrong in ((two, one), (one, one), (two, two), other, (one, other[1]), (other[0], two)):
        with pytest.raises(ProtocolError, match="against other verdicts"):
            check(replace(RIGHT, verdicts=wrong))


def test_another_record_is_no_appeal() -> None:
    record = accused().open_turn.verdicts[0, 1]
    with pytest.raises(FormatError, match="another record"):
        check(record)


@given(st.binary(max_size=200) | st.integers(0, 2000))
def test_garbage_gives_only_the_family(junk: bytes | int) -> None:
    envelope = seal_record(RIGHT, key("c0"))
    data = junk if isinstance(junk, bytes) else envelope[: junk % len(envelope)]
    with pytest.raises(BarnraiseError):
        check_appeal(accused().open_turn, 0, data)
    with pytest.raises(BarnraiseError):
        check_appeal(accused().open_turn, 0, None)  # type: ignore[arg-type]


def test_a_verdict_of_a_third_look_is_of_that_look_and_sound() -> None:
    state = apply(accused(), RIGHT)
    due = further_look(state.open_turn.evidence, 0)
    assert due
    name, turn = due.auditors[0], state.open_turn
    for outcome in ("pass", "fail"):
        record = verdict(state, 0, 3, name, outcome)
        assert check_verdict(turn, 0, 3, name, seal_record(record, key(name))) == record
        for look in (1, 2, 4):
            with pytest.raises(ProtocolError, match="belongs elsewhere"):
                check_verdict(turn, 0, 3, name, seal_record(replace(record, look=look), key(name)))
    passed = verdict(state, 0, 3, name, "pass")
    with pytest.raises(ProtocolError, match="does not follow"):
        check_verdict(turn, 0, 3, name, seal_record(replace(passed, payload=b3("x")), key(name)))
