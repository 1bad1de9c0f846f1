"""Intake: what members send is taken only when it is theirs, of this turn, and what the open fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import (
    GOOD,
    Play,
    b3,
    commitment,
    enrolments,
    key,
    opening,
    reveal,
    revocation,
    rotation,
    sha,
    started,
    verdict,
)
from verification.encoding import blake3_digest
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.fsck_shapes import RECORDS
from verification.intake import (
    RevealAnswer,
    as_bytes,
    check_commitment,
    check_enrolment,
    check_identity_change,
    check_reveal,
    check_verdict,
    judge_reveal,
    snapshot_due,
    tokens_of,
)
from verification.plans import plan_open
from verification.records import (
    Base,
    CommitClose,
    Opening,
    Record,
    Refusal,
    Reveal,
    RoundOpen,
)
from verification.rounds import apply
from verification.sealing import predicate, seal_record
from verification.state import RunState

SIZE = 20


def payload_of(slot: int) -> bytes:
    return f"payload of slot {slot}".encode().ljust(SIZE, b".")


def decode(data: bytes) -> object:
    assert len(data) == SIZE, "what has the wrong length must not get this far"
    if b"!" in data:
        raise FormatError("a payload of the wrong form", expected="no !", got=data)
    return data


def revealed(open_: RoundOpen, slot: int, **changes: Any) -> Reveal:
    """A reveal that fits `payload_of(slot)`."""
    record = reveal(open_, open_.entry(slot))
    return replace(
        record, opening=replace(record.opening, **{"payload": blake3_digest(payload_of(slot)), **changes})
    )


def committed(play: Play, make: Callable[[RoundOpen, int], Reveal] = revealed) -> RunState:
    """A turn in which everyone has committed to what `make` gives."""
    play.add(plan_open(play.state))
    open_ = play.state.open_turn.open
    slots = tuple(entry.slot for entry in open_.roster)
    for slot in slots:
        blank = commitment(open_, open_.entry(slot))
        play.add(replace(blank, commitment=make(open_, slot).commitment))
    play.add(CommitClose(*play.place, slots, (), (1,) * len(slots)))
    return play.state


STATE = committed(Play(started()))
OPEN = STATE.open_turn.open
SECOND = Play(started())
SECOND.turn({})
LATER = committed(SECOND)


def sealed(record: Record, signer: str = "c0") -> bytes:
    return seal_record(record, key(signer))


def answer(record: Reveal, payload: bytes | None = None, signer: str = "c0") -> RevealAnswer:
    return RevealAnswer(sealed(record, signer), payload_of(record.slot) if payload is None else payload, None)


def judge(state: RunState, slot: int, given: RevealAnswer | None) -> Any:
    return judge_reveal(state, slot, given, payload_bytes=SIZE, decode=decode)


# --- enrolments and commitments ---


def test_an_enrolment_is_signed_with_the_key_it_names() -> None:
    state = started()
    record = enrolments(state.run)[0]
    assert check_enrolment(state, sealed(record)) == record
    with pytest.raises(SignatureError, match="another key"):
        check_enrolment(state, sealed(record, "c1"))
    with pytest.raises(ProtocolError, match="another run"):
        check_enrolment(state, sealed(replace(record, run=sha("other"))))
    with pytest.raises(FormatError, match="another record"):
        check_enrolment(state, sealed(commitment(OPEN, OPEN.entry(0))))
    with pytest.raises(SignatureError, match="does not hold"):
        check_enrolment(state, tampered(sealed(record)))


def tampered(envelope: bytes) -> bytes:
    """The envelope with another, well-formed signature."""
    other = sealed(replace(enrolments(STATE.run)[0], operator="op-z"))
    return envelope.split(b'"sig":"')[0] + b'"sig":"' + other.split(b'"sig":"')[1]


def test_a_commitment_is_its_slots_of_this_turn() -> None:
    record = commitment(OPEN, OPEN.entry(0))
    assert check_commitment(OPEN, 0, sealed(record)) == record
    with pytest.raises(SignatureError):
        check_commitment(OPEN, 0, sealed(record, "c1"))
    with pytest.raises(SignatureError):
        check_commitment(OPEN, 1, sealed(record))
    for change in ({"slot": 1}, {"member": "c1"}, {"key": key("c1").public}, {"round": 2}, {"attempt": 1}):
        with pytest.raises(ProtocolError, match="belongs elsewhere"):
            check_commitment(OPEN, 0, sealed(replace(record, **change)))
    with pytest.raises(ProtocolError, match="belongs elsewhere"):
        check_commitment(OPEN, 0, sealed(replace(record, run=sha("other run"))))
    with pytest.raises(FormatError, match="slot is not in the roster"):
        check_commitment(OPEN, 9, sealed(record))


def test_a_commitment_of_an_earlier_turn_is_refused() -> None:
    old = sealed(commitment(OPEN, OPEN.entry(0)))
    with pytest.raises(ProtocolError, match="belongs elsewhere"):
        check_commitment(LATER.open_turn.open, 0, old)


# --- reveals ---


def test_a_right_reveal_is_taken() -> None:
    record = revealed(OPEN, 0)
    assert judge(STATE, 0, answer(record)) == (record, None)
    assert check_reveal(STATE.open_turn, 0, sealed(record)) == record


def test_no_reveal_is_unrevealed() -> None:
    assert judge(STATE, 0, None) == (None, Refusal(0, "unrevealed"))


def test_a_reveal_that_opens_another_commitment_is_logged_and_refused() -> None:
    record = revealed(OPEN, 0, loss_last=1)
    assert judge(STATE, 0, answer(record)) == (record, Refusal(0, "opening-mismatch"))
    salted = replace(revealed(OPEN, 0), salt="00" * 32)
    assert judge(STATE, 0, answer(salted)) == (salted, Refusal(0, "opening-mismatch"))


@pytest.mark.parametrize("signer", ["c1", "coordinator"])
def test_a_reveal_by_another_signer_is_not_logged(signer: str) -> None:
    assert judge(STATE, 0, answer(revealed(OPEN, 0), signer=signer)) == (None, Refusal(0, "opening-mismatch"))


def test_a_reveal_of_an_earlier_turn_is_not_logged() -> None:
    assert judge(LATER, 0, answer(revealed(OPEN, 0))) == (None, Refusal(0, "opening-mismatch"))


WRONG: list[tuple[str, Any]] = [
    ("base", Base(b3("other"), OPEN.base.outer)),
    ("positions", ((0, 7), (8, 9))),
    ("numerics_class", "another class"),
    ("start_state", b3("another state")),
    ("tokens", 33),
    # Four steps with a leaf every two, and the boundary: three leaves.
    *(("trace_leaves", count) for count in (0, 1, 2, 4, 5)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_each_field_that_the_open_fixed_must_be_as_it_fixed_it(name: str, value: Any) -> None:
    def make(open_: RoundOpen, slot: int) -> Reveal:
        return revealed(open_, slot, **{name: value})

    state = committed(Play(started()), make)
    record = make(state.open_turn.open, 0)
    assert record.commitment == state.open_turn.commitments[0].commitment
    assert judge(state, 0, answer(record)) == (record, Refusal(0, "opening-mismatch"))
    # Also where no right payload came with it.
    assert judge(state, 0, answer(record, b"")) == (record, Refusal(0, "opening-mismatch"))


def test_the_leaves_of_a_trace_are_its_segments_and_the_boundary() -> None:
    assert [(e.steps, revealed(OPEN, e.slot).opening.trace_leaves) for e in OPEN.roster] == [
        (4, 3),
        (2, 2),
        (3, 3),
        (1, 2),
    ]
    for slot in range(4):
        record = revealed(OPEN, slot)
        assert judge(STATE, slot, answer(record, signer=f"c{slot}")) == (record, None)


@pytest.mark.parametrize(
    "payload", [b"", payload_of(0)[:-1], payload_of(0) + b".", payload_of(1), b"\0" * 10_000_000]
)
def test_another_payload_than_committed_is_no_reveal_and_the_envelope_is_kept(payload: bytes) -> None:
    record = revealed(OPEN, 0)
    assert judge(STATE, 0, answer(record, payload)) == (record, Refusal(0, "unrevealed"))


def committed_to(payload: bytes, used: frozenset[str] = frozenset()) -> tuple[RunState, Reveal]:
    """A turn in which slot 0 has committed to these bytes, and its reveal."""

    def make(open_: RoundOpen, slot: int) -> Reveal:
        return revealed(open_, slot, payload=blake3_digest(payload))

    state = replace(committed(Play(started()), make), used=used)
    return state, make(state.open_turn.open, 0)


@pytest.mark.parametrize("payload", [b"", b"short", payload_of(0) + b"."])
def test_a_payload_of_another_length_is_no_reveal_though_committed(payload: bytes) -> None:
    state, record = committed_to(payload)
    assert judge(state, 0, answer(record, payload)) == (record, Refusal(0, "unrevealed"))


def test_a_payload_that_the_codec_refuses_is_malformed_though_committed() -> None:
    payload = b"!" * SIZE
    state, record = committed_to(payload)
    assert judge(state, 0, answer(record, payload)) == (record, Refusal(0, "malformed-payload"))
    # Only what was committed to can be malformed: other bytes are no reveal.
    assert judge(state, 0, answer(record, b"?!" * (SIZE // 2)))[1] == Refusal(0, "unrevealed")
    # And that goes before a duplicate.
    again = replace(state, used=frozenset({blake3_digest(payload)}))
    assert judge(again, 0, answer(record, payload))[1] == Refusal(0, "malformed-payload")


def test_a_payload_that_was_accepted_in_an_earlier_turn_is_a_duplicate() -> None:
    spent = frozenset({blake3_digest(payload_of(0))})
    state, record = committed_to(payload_of(0), used=spent)
    assert judge(state, 0, answer(record)) == (record, Refusal(0, "duplicate-payload"))
    assert judge(state, 0, answer(record, b"x"))[1] == Refusal(0, "unrevealed")
    # Handed in earlier and not accepted: no duplicate, for its owner may have been the one robbed.
    assert judge(replace(state, used=frozenset(), payloads=spent), 0, answer(record)) == (record, None)


def test_equal_payloads_within_a_turn_are_both_taken_for_the_audit_to_judge() -> None:
    def same(open_: RoundOpen, slot: int) -> Reveal:
        return revealed(open_, slot, payload=blake3_digest(payload_of(0)))

    state = committed(Play(started()), same)
    first, copy = same(state.open_turn.open, 0), same(state.open_turn.open, 1)
    assert judge(state, 0, answer(first)) == (first, None)
    state = replace(state, turn=replace(state.open_turn, reveals={0: first}))
    assert judge(state, 1, answer(copy, payload_of(0), signer="c1")) == (copy, None)


def test_a_snapshot_that_is_due_must_come_and_be_the_start_state() -> None:
    play = Play(started(state={"policy": "snapshot", "every": 1}))
    play.turn({})
    state = committed(play)
    assert snapshot_due(state, 0)
    assert not snapshot_due(STATE, 0)  # everyone starts from the zero state
    record = revealed(state.open_turn.open, 0)
    given_ = answer(record)
    assert judge(state, 0, given_) == (record, Refusal(0, "unserved"))
    assert judge(state, 0, replace(given_, snapshot=b"wrong")) == (record, Refusal(0, "unserved"))
    right = b"state 0 0 true"
    assert record.opening.start_state == blake3_digest(right)
    assert judge(state, 0, replace(given_, snapshot=right)) == (record, None)


def test_tokens_follow_from_steps_batch_and_context() -> None:
    assert [tokens_of(STATE, entry) for entry in OPEN.roster] == [32, 16, 24, 8]


# --- verdicts ---


def audited() -> RunState:
    play = Play(started())
    play.turn({0: replace(GOOD, first="none")})
    state = started()
    again = Play(state)
    for record in play.records[: [r.kind for r in play.records].index("second-draw")]:
        again.add(record)
    return again.state


AUDITED = audited()


def test_a_verdict_is_the_auditors_own_on_this_slot_and_look() -> None:
    turn = AUDITED.open_turn
    record = verdict(AUDITED, 0, 1, "a0", "fail")
    assert check_verdict(turn, 0, 1, "a0", sealed(record, "a0")) == record
    with pytest.raises(SignatureError):
        check_verdict(turn, 0, 1, "a0", sealed(record, "a1"))
    with pytest.raises(SignatureError):
        check_verdict(turn, 0, 1, "a1", sealed(record, "a0"))
    for args in ((1, 1, "a0"), (0, 2, "a0")):
        with pytest.raises(ProtocolError, match="belongs elsewhere"):
            check_verdict(turn, *args, sealed(record, "a0"))
    for change in ({"round": 2}, {"attempt": 1}, {"auditor": "a1"}, {"key": key("a1").public}):
        with pytest.raises(ProtocolError, match="belongs elsewhere"):
            check_verdict(turn, 0, 1, "a0", sealed(replace(record, **change), "a0"))
    with pytest.raises(ProtocolError, match="nobody"):
        check_verdict(turn, 0, 1, "c1", sealed(record, "c1"))
    with pytest.raises(ProtocolError, match="numerics class"):
        check_verdict(turn, 0, 1, "a0", sealed(replace(record, numerics_class="other"), "a0"))
    lie: Any = replace(record, outcome="pass")
    with pytest.raises(ProtocolError, match="does not follow"):
        check_verdict(turn, 0, 1, "a0", sealed(lie, "a0"))


# --- garbage ---

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=200),
    st.binary(max_size=50).map(bytearray),
    st.binary(max_size=50).map(memoryview),
    st.lists(st.integers(0, 9), max_size=3),
    st.tuples(st.binary(max_size=9), st.binary(max_size=9)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(anything)
def test_garbage_is_refused_within_the_family(garbage: Any) -> None:
    turn = AUDITED.open_turn
    for check in (
        lambda: check_enrolment(STATE, garbage),
        lambda: check_commitment(OPEN, 0, garbage),
        lambda: check_reveal(STATE.open_turn, 0, garbage),
        lambda: check_verdict(turn, 0, 1, "a0", garbage),
    ):
        with pytest.raises(BarnraiseError):
            check()
    assert judge(STATE, 0, RevealAnswer(garbage, b"", None)) == (None, Refusal(0, "opening-mismatch"))
    if type(garbage) is bytes:  # the crew takes nothing else for a payload
        record = revealed(OPEN, 0)
        assert judge(STATE, 0, RevealAnswer(sealed(record), garbage, None))[1] == Refusal(0, "unrevealed")


VALID = [
    (sealed(commitment(OPEN, OPEN.entry(0))), lambda data: check_commitment(OPEN, 0, data)),
    (sealed(revealed(OPEN, 0)), lambda data: check_reveal(STATE.open_turn, 0, data)),
]


@given(st.sampled_from(VALID), st.integers(0, 10**6), st.integers(0, 255))
def test_an_envelope_with_a_byte_changed_is_refused(case: Any, place: int, value: int) -> None:
    envelope, check = case
    place %= len(envelope)
    if envelope[place] == value:
        return
    with pytest.raises(BarnraiseError):
        check(envelope[:place] + bytes([value]) + envelope[place + 1 :])


def test_huge_answers_are_refused() -> None:
    for huge in (b"{" * (1 << 24), b"[" * 60_000):
        with pytest.raises(FormatError):
            check_commitment(OPEN, 0, huge)


def test_only_bytes_are_bytes_and_they_are_copied() -> None:
    source = bytearray(b"abc")
    taken = as_bytes(memoryview(source))
    source[0] = 0
    assert taken == b"abc"
    gone = memoryview(b"abc")
    gone.release()
    for wrong in (gone, "abc", 3, None, [97], type("Sly", (bytes,), {})(b"abc")):
        with pytest.raises(FormatError):
            as_bytes(wrong)


# --- what is taken must be what a checker of the log takes ---


@pytest.mark.parametrize("value", ["", "x", b3("blake"), "sha256:" + "0" * 63, "sha256:" + "A" * 64])
def test_a_commitment_that_would_spoil_the_log_is_refused(value: str) -> None:
    with pytest.raises(FormatError):
        replace(commitment(OPEN, OPEN.entry(0)), commitment=value)


@pytest.mark.parametrize(
    "change",
    [
        {"loss_first": -1},
        {"loss_last": -1},
        {"tokens": -1},
        {"trace_leaves": -1},
        {"next_state": sha("x")},
        {"payload": sha("x")},
        {"start_state": sha("x")},
        {"trace_root": b3("x")},
        {"base": Base(sha("x"), b3("x"))},
        {"positions": ((3, 3),)},
        {"positions": ((-1, 3),)},
    ],
)
def test_an_opening_that_would_spoil_the_log_is_refused(change: dict[str, Any]) -> None:
    claim: Opening = opening(OPEN, OPEN.entry(0))
    with pytest.raises(FormatError):
        replace(claim, **change)


@pytest.mark.parametrize(
    "change", [{"loss_first": -1}, {"payload": sha("x")}, {"next_state": sha("x")}, {"trace": (b3("x"),)}]
)
def test_a_verdict_that_would_spoil_the_log_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        replace(verdict(AUDITED, 0, 1, "a0", "fail"), **change)


def test_what_intake_takes_has_the_shape_that_level_1_asks_for() -> None:
    records: list[Record] = [
        enrolments(STATE.run)[0],
        commitment(OPEN, OPEN.entry(0)),
        revealed(OPEN, 0),
        verdict(AUDITED, 0, 1, "a0", "fail"),
    ]
    for record in records:
        RECORDS[record.kind](predicate(record), record.kind)
    with pytest.raises(FormatError):
        RECORDS["commitment"]({**predicate(records[1]), "commitment": "x"}, "commitment")


# Changes of identity


@cache
def changed_once() -> RunState:
    play = Play(started())
    play.turn({})
    return play.state


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.integers(0, 5000)))
def test_a_damaged_change_of_identity_is_told_and_nothing_else(junk: bytes | int) -> None:
    state = changed_once()
    good = seal_record(rotation(state.run, "c1", "c1", "c1 b"), key("c1"))
    assert check_identity_change(state, "c1", good) == rotation(state.run, "c1", "c1", "c1 b")
    if isinstance(junk, int):
        flipped = bytearray(good)
        flipped[junk % len(good)] ^= 1 << junk % 8
        junk = bytes(flipped)
    with pytest.raises(BarnraiseError):
        check_identity_change(state, "c1", junk)


def test_only_the_member_itself_changes_its_key_with_its_present_one() -> None:
    state = changed_once()
    mine = rotation(state.run, "c1", "c1", "c1 b")
    for member, signer in (("c1", "c2"), ("c2", "c1"), ("c1", "c1 b"), ("c1", "coordinator")):
        with pytest.raises(BarnraiseError):
            check_identity_change(state, member, seal_record(mine, key(signer)))
    own = revocation(state.run, "c1")
    assert check_identity_change(state, "c1", seal_record(own, key("c1"))) == own
    with pytest.raises(BarnraiseError, match="own"):
        check_identity_change(state, "c1", seal_record(replace(own, by="coordinator"), key("c1")))
    with pytest.raises(BarnraiseError, match="own"):
        check_identity_change(state, "c1", seal_record(rotation(state.run, "c2", "c2", "x"), key("c1")))
    enrolment = enrolments(state.run)[1]
    with pytest.raises(BarnraiseError, match="not a change"):
        check_identity_change(state, "c1", seal_record(enrolment, key("c1")))
    done = apply(state, mine)
    assert check_identity_change(done, "c1", seal_record(mine, key("c1"))) is None
