"""Verdicts, their seals, and appeals: the digest that names a verdict, and what is on the wire."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

import pytest

from tests.verification.fake_disputes import BOTH_LIE, at, disputed
from tests.verification.fake_run import b3, key, sha
from verification.encoding import canonical_json
from verification.errors import FormatError
from verification.plans import plan_first_looks
from verification.records import Appeal, Deviation, FirstLooks, SealedLook, Verdict
from verification.sealing import open_record, parse_predicate, predicate, seal_record

VERDICT = Verdict(
    1, sha("run"), 2, 1, 3, 1, "a0", key("a0").public, "fail", ("payload",), b3("payload"), b3("state"),
    (sha("leaf"), "ab" * 32), None, 7, (Deviation(1, 2, sha("own"), 3, 4),), "exact/x",
)  # fmt: skip
SIGNER = key("signer")


def test_the_digest_of_a_verdict_is_that_of_its_predicate_under_a_name_of_its_own() -> None:
    # The domain, a zero byte and the canonical form, as section 2 has it.
    wire = canonical_json(cast("Any", predicate(VERDICT)))
    assert b'"class":"exact/x"' in wire
    assert VERDICT.digest == "sha256:" + sha256(b"barnraise/sealed-verdict/v1\0" + wire).hexdigest()
    assert VERDICT.digest == "sha256:09ee2bb07e898b71eb2ff33eaa5d0077f990932b122b3609d4fcb0d9a8b22de2"


OTHER: dict[str, Any] = {
    "protocol": 2, "run": sha("x"), "round": 3, "attempt": 0, "slot": 4, "look": 2, "auditor": "a1",
    "key": "k", "outcome": "pass", "differs": (), "payload": b3("x"), "next_state": b3("x"),
    "trace": (sha("leaf"), "cd" * 32), "loss_first": 0, "loss_last": 8, "deviations": (),
    "numerics_class": "y",
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Verdict)])
def test_every_field_of_a_verdict_is_in_its_digest(name: str) -> None:
    assert replace(VERDICT, **{name: OTHER[name]}).digest != VERDICT.digest
    assert replace(VERDICT, **{name: getattr(VERDICT, name)}).digest == VERDICT.digest


@pytest.mark.parametrize("look", [1, 2, 3, 4, 99])
def test_looks_are_counted_from_one_with_no_end(look: int) -> None:
    record = replace(VERDICT, look=look)
    assert open_record(Verdict, seal_record(record, SIGNER), SIGNER.public) == record
    for wrong in (0, -look, None, str(look), True):
        with pytest.raises(FormatError):
            parse_predicate(Verdict, {**predicate(record), "look": wrong})


def test_seals_are_by_slot_and_say_who_how_and_which() -> None:
    state, _ = at(FirstLooks)
    verdicts = [replace(VERDICT, slot=slot, auditor=f"a{slot}") for slot in (5, 3, 4)]
    record = plan_first_looks(state, verdicts)
    turn = state.open_turn.open
    assert (record.protocol, record.run, record.round, record.attempt) == (
        1,
        state.run,
        turn.round,
        turn.attempt,
    )
    assert record.looks == tuple(
        SealedLook(v.slot, v.auditor, "fail", v.digest) for v in (verdicts[i] for i in (1, 2, 0))
    )
    value = predicate(record)
    assert set(value) == {"protocol", "run", "round", "attempt", "looks"}
    assert value["looks"][0] == {"auditor": "a3", "outcome": "fail", "slot": 3, "verdict": verdicts[1].digest}  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "change", [{"outcome": "maybe"}, {"verdict": "x"}, {"slot": "0"}, {"auditor": 1}, {"more": 1}]
)
def test_a_seal_of_another_form_is_refused(change: dict[str, Any]) -> None:
    _, record = at(FirstLooks)
    value: Any = predicate(record)
    assert parse_predicate(FirstLooks, value) == record
    with pytest.raises(FormatError):
        parse_predicate(FirstLooks, {**value, "looks": [{**value["looks"][0], **change}]})


def test_an_appeal_names_two_verdicts_and_no_other_number() -> None:
    record = next(r for r in disputed(BOTH_LIE).records if isinstance(r, Appeal))
    value: Any = predicate(record)
    assert set(value) == {"protocol", "run", "round", "attempt", "slot", "member", "key", "verdicts"}
    assert parse_predicate(Appeal, value) == record
    one, two = record.verdicts
    for wrong in ([], [one], [one, two, one], [one, None], one, [one, two[7:]], [one, b3("x")]):
        with pytest.raises(FormatError):
            parse_predicate(Appeal, {**value, "verdicts": wrong})
