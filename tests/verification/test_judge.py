"""Judging: what differs, and every rule of the settling order of section 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import pytest

from tests.verification.fake_run import GOOD, Play, done, looked_at, opening, reveal, sha, started, verdict
from verification.judge import (
    Audit,
    TurnEvidence,
    bears_out,
    differences,
    settle,
    trace_leaf_hash,
    trace_root,
    verdict_is_sound,
)
from verification.merkle import leaf_hash, root
from verification.plans import plan_open
from verification.records import (
    Draw,
    DrawnSlot,
    FirstLooks,
    SealedLook,
    SecondDraw,
    SlotAuditors,
    Verdict,
)
from verification.state import RunState

OPEN = plan_open(started())
SLOT = 0


# Of the contributor's operator, or of another class: neither may judge it.
UNFIT = (
    replace(OPEN.auditors[0], operator=OPEN.roster[SLOT].operator),
    replace(OPEN.auditors[1], numerics_class="another class"),
)


@dataclass(frozen=True)
class Case:
    """One slot's evidence. `first`, `second`: outcome of the look, or None when nobody answered.

    `further`: outcomes of the looks after these; `lost`: the first verdict was sealed and is not in the log.
    `ppm`: the chance of an audit that the open gave it. The open has no auditor that may judge it unless
    `eligible`.
    """

    committed: bool = True
    refused: str | None = None
    auditors: tuple[str, ...] | None = ("a0", "a1")
    served: bool = True
    first: str | None = "pass"
    looks: bool = False
    second: str | None = None
    ppm: int = 400_000
    eligible: bool = True
    lost: bool = False
    further: tuple[str, ...] = ()
    appealed: bool = False

    def evidence(self) -> TurnEvidence:
        drawn = () if self.auditors is None else (DrawnSlot(SLOT, self.auditors, (0, 1)),)
        given: dict[tuple[int, int], Verdict] = {}
        if self.first:
            given[SLOT, 1] = told(self.first, "a0", 1)
        sealed = [SealedLook(SLOT, v.auditor, v.outcome, v.digest) for v in given.values()]
        if self.lost:
            del given[SLOT, 1]
        if self.second:
            given[SLOT, 2] = told(self.second, "a1", 2)
        for look, outcome in enumerate(self.further, start=3):
            given[SLOT, look] = told(outcome, f"a{look - 1}", look)
        looks = (SlotAuditors(SLOT, ("a1",)),) if self.looks else ()
        place: tuple[Any, ...] = (1, OPEN.run, 1, 0, "head", "00" * 32, (), sha("seed"))
        return TurnEvidence(
            replace(
                OPEN,
                roster=(replace(OPEN.roster[SLOT], audit_ppm=self.ppm),),
                auditors=OPEN.auditors if self.eligible else UNFIT,
            ),
            (SLOT,) if self.committed else (),
            {SLOT: self.refused} if self.refused else {},
            Draw(*place, drawn),
            () if self.served else (SLOT,),
            given,
            FirstLooks(*place[:4], tuple(sealed)),
            SecondDraw(*place, looks),
            (SLOT,) if self.appealed else (),
        )


def told(outcome: str, auditor: str, look: int) -> Verdict:
    work = done(OPEN, OPEN.roster[SLOT], {"pass": "true", "fail": "other"}.get(outcome, f"by {auditor}"))
    differs = differences(opening(OPEN, OPEN.roster[SLOT]), work)
    if outcome in ("payload", "next_state", "trace"):  # like the other fail but for one value
        work = done(OPEN, OPEN.roster[SLOT], "other")
        odd = done(OPEN, OPEN.roster[SLOT], "odd")
        work = replace(work, **{outcome: getattr(odd, outcome)})
    values = (work.payload, work.next_state, work.trace, work.loss_first, work.loss_last, (), "class")
    word: Any = "fail" if differs else "pass"
    number: Any = look
    return Verdict(1, OPEN.run, 1, 0, SLOT, number, auditor, "key", word, differs, *values)


def audit(segments: tuple[int, ...]) -> Audit:
    """An audit to the bit."""
    return Audit(segments, "class")


TABLE: list[tuple[Case, str | None]] = [
    (Case(committed=False), "late"),
    *((Case(refused=reason), reason) for reason in ("unrevealed", "malformed-payload", "duplicate-payload")),
    (Case(refused="opening-mismatch"), "opening-mismatch"),
    (Case(refused="unserved"), "unserved"),
    (Case(auditors=None), None),  # not drawn: accepted
    (Case(auditors=(), eligible=False), "no-eligible-auditor"),
    # A class of one's own: what nobody can check has no weight, drawn or not.
    (Case(auditors=None, eligible=False), "no-eligible-auditor"),
    (Case(auditors=None, eligible=False, ppm=1), "no-eligible-auditor"),
    # Nobody is ever audited here; but a twin was drawn all the same.
    (Case(auditors=None, eligible=False, ppm=0), None),
    (Case(auditors=(), eligible=False, ppm=0), "no-eligible-auditor"),
    (Case(refused="unserved", auditors=(), eligible=False), "unserved"),
    (Case(committed=False, auditors=None, eligible=False), "late"),
    (Case(served=False, first=None), "unserved"),
    (Case(first=None), "unaudited"),
    (Case(), None),
    (Case(looks=True, second="pass"), None),
    (Case(looks=True), "unaudited"),
    (Case(looks=True, second="fail"), "disputed"),
    # One auditor only, or none of another operator: a fail that nobody can confirm.
    (Case(auditors=("a0",)), None),
    (Case(auditors=("a0",), first="fail"), "unconfirmed"),
    (Case(first="fail", looks=True), "unconfirmed"),
    (Case(first="fail", looks=True, second="pass"), "disputed"),
    (Case(first="fail", looks=True, second="fail"), "failed-audit"),
    # Auditors that lie together without agreeing on what the truth is.
    (Case(first="fail", looks=True, second="differ"), "disputed"),
    (Case(first="fail", looks=True, second="payload"), "disputed"),
    (Case(first="fail", looks=True, second="next_state"), "disputed"),
    (Case(first="fail", looks=True, second="trace"), "disputed"),
    # What was sealed and is not in the log is no verdict.
    (Case(lost=True), "unaudited"),
    *((Case(lost=True, first=first, looks=True, second="fail"), "unaudited") for first in ("pass", "fail")),
    # Looks after the second: the side with two voices or more, and more than any other.
    (Case(first="fail", looks=True, second="pass", further=("pass",)), None),
    (Case(first="fail", looks=True, second="pass", further=("fail",)), "failed-audit"),
    (Case(looks=True, second="fail", further=("pass",)), None),
    (Case(looks=True, second="fail", further=("fail",)), "failed-audit"),
    (Case(first="fail", looks=True, second="pass", further=("differ",)), "disputed"),
    (Case(first="fail", looks=True, second="differ", further=("fail",)), "failed-audit"),
    (Case(first="fail", looks=True, second="differ", further=("pass", "pass")), None),
    (Case(first="fail", looks=True, second="fail", appealed=True), "failed-audit"),  # it is not a voice
    (Case(first="fail", looks=True, second="fail", further=("pass",), appealed=True), "failed-audit"),
    (Case(first="fail", looks=True, second="fail", further=("pass", "pass"), appealed=True), "disputed"),
    (Case(first="fail", looks=True, second="fail", further=("pass",) * 3, appealed=True), None),
]


@pytest.mark.parametrize(("case", "reason"), TABLE)
def test_each_rule_of_settling(case: Case, reason: str | None) -> None:
    evidence = case.evidence()
    (outcome,) = settle(evidence)
    assert outcome.reason == reason
    assert outcome.fault == (reason == "failed-audit")
    assert outcome.drawn == (case.auditors is not None)
    # Before the second draw nothing is made of verdicts.
    (early,) = settle(replace(evidence, second=None))
    by_verdicts = ("unaudited", "unconfirmed", "disputed", "failed-audit")
    assert early.reason == (None if reason in by_verdicts else reason)


def second_version(case: Case) -> str | None:
    """The sentence of section 6, clause by clause."""
    clauses: list[tuple[bool, str | None]] = [
        (not case.committed, "late"),
        (case.refused is not None, case.refused),
        ((case.ppm > 0 or case.auditors is not None) and not case.eligible, "no-eligible-auditor"),
        (case.auditors is not None and not case.served, "unserved"),
        (case.auditors is not None and (case.first is None or case.lost), "unaudited"),
        (
            case.auditors is not None and case.first == "pass" and case.looks and case.second is None,
            "unaudited",
        ),
        (
            case.auditors is not None and case.first == "pass" and case.looks and case.second != "pass",
            "disputed",
        ),
        (case.auditors is not None and case.first == "fail" and case.second is None, "unconfirmed"),
        (case.auditors is not None and case.first == "fail" and case.second == "pass", "disputed"),
        (case.auditors is not None and case.first == "fail" and case.second != "fail", "disputed"),
        (case.auditors is not None and case.first == "fail", "failed-audit"),
    ]
    return next((reason for holds, reason in clauses if holds), None)


def test_the_first_rule_that_applies_wins_over_all_later_ones() -> None:
    seen = set()
    for committed, refused, auditors, served, first, looks, second, ppm, lost in product(
        (True, False),
        (None, "unrevealed", "duplicate-payload"),
        (None, (), ("a0", "a1")),
        (True, False),
        (None, "pass", "fail"),
        (True, False),
        (None, "pass", "fail", "differ"),
        (0, 1),
        (False, True),
    ):
        if (second is not None and not looks) or (first is None and (lost or looks)):
            continue
        for eligible in {auditors != (), bool(auditors)}:  # a drawn slot shows which of the two it is
            case = Case(committed, refused, auditors, served, first, looks, second, ppm, eligible, lost)
            (outcome,) = settle(case.evidence())
            assert outcome.reason == second_version(case), case
            seen.add(outcome.reason)
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("reason", "outcome", "agrees"),
    [
        (None, "pass", True),
        ("failed-audit", "fail", True),
        (None, "fail", False),
        ("failed-audit", "pass", False),
        *(
            (reason, outcome, False)
            for reason in ("unaudited", "unconfirmed", "disputed")
            for outcome in ("pass", "fail")
        ),
    ],
)
def test_a_verdict_is_borne_out_only_by_a_settling_that_agrees(
    reason: str | None, outcome: str, agrees: bool
) -> None:
    assert bears_out(reason, outcome) is agrees


def test_a_fail_over_the_loss_alone_is_no_fault_unless_two_find_it() -> None:
    evidence = Case(first="fail", looks=True, second="pass").evidence()
    passed = evidence.verdicts[SLOT, 2]
    first = replace(passed, look=1, auditor="a0", outcome="fail", differs=("loss",), loss_last=1)
    for second, reason in ((passed, "disputed"), (replace(first, look=2, auditor="a1"), "failed-audit")):
        (outcome,) = settle(replace(evidence, verdicts={(SLOT, 1): first, (SLOT, 2): second}))
        assert outcome.reason == reason


def test_settling_keeps_the_order_and_the_whole_roster() -> None:
    evidence = replace(Case(committed=False).evidence(), open=OPEN)
    assert [o.entry.slot for o in settle(evidence)] == [0, 1, 2, 3]
    assert {o.reason for o in settle(evidence)} == {"late"}


WORK = done(OPEN, OPEN.roster[SLOT])
CHANGES: Mapping[str, dict[str, Any]] = {
    "trace": {"trace": (sha("x"), *WORK.trace[1:])},
    "payload": {"payload": "blake3:" + "0" * 64},
    "next_state": {"next_state": "blake3:" + "0" * 64},
    "loss": {"loss_last": 1},
}


def test_differences_are_named_in_the_protocols_order() -> None:
    claim = opening(OPEN, OPEN.roster[SLOT])
    assert differences(claim, WORK) == ()
    for name, change in CHANGES.items():
        assert differences(claim, replace(WORK, **change)) == (name,)
    everything = {key: value for change in CHANGES.values() for key, value in change.items()}
    assert differences(claim, replace(WORK, **everything)) == ("trace", "payload", "next_state", "loss")
    assert differences(claim, replace(WORK, loss_first=1)) == ("loss",)


def test_no_first_loss_differs_from_nothing() -> None:
    claim = opening(OPEN, OPEN.roster[SLOT])
    assert differences(claim, replace(WORK, loss_first=None)) == ()
    assert differences(claim, replace(WORK, loss_first=None, loss_last=1)) == ("loss",)
    assert differences(claim, replace(WORK, loss_first=0)) == ("loss",)  # which is a loss
    assert differences(replace(claim, loss_first=0), replace(WORK, loss_first=0)) == ()


def test_a_trace_of_another_length_differs_even_with_the_root_claimed() -> None:
    claim = opening(OPEN, OPEN.roster[SLOT])
    assert differences(replace(claim, trace_leaves=claim.trace_leaves + 1), WORK) == ("trace",)


def test_the_trace_root_is_rfc_6962_over_the_digests() -> None:
    from hashlib import sha256

    leaves = [sha("a"), sha("b")]
    hashes = [sha256(b"\0" + bytes.fromhex(leaf[7:])).digest() for leaf in leaves]
    assert trace_root(leaves) == "sha256:" + sha256(b"\1" + hashes[0] + hashes[1]).hexdigest()
    assert trace_root([]) == "sha256:" + root([]).hex()
    assert [trace_leaf_hash(leaf) for leaf in leaves] == hashes


def test_bare_hex_in_a_trace_is_the_leaf_hash_itself() -> None:
    leaves = [sha(f"leaf {i}") for i in range(5)]
    hashes = [leaf_hash(bytes.fromhex(leaf[7:])) for leaf in leaves]
    assert [trace_leaf_hash(item.hex()) for item in hashes] == hashes
    for pattern in product((False, True), repeat=5):
        mixed = [h.hex() if bare else leaf for leaf, h, bare in zip(leaves, hashes, pattern, strict=True)]
        assert trace_root(mixed) == trace_root(leaves) == "sha256:" + root(hashes).hex()
        # A digest without its name is no digest: the root is another one.
        bare_digests = [leaf[7:] if bare else leaf for leaf, bare in zip(leaves, pattern, strict=True)]
        assert (trace_root(bare_digests) == trace_root(leaves)) is not any(pattern)


def judged() -> RunState:
    play = Play(started(audit={"second_look_ppm": 1_000_000}))
    play.turn({0: replace(GOOD, silent=1), 1: replace(GOOD, first="none"), 3: replace(GOOD, second="none")})
    close = play.records.pop()
    state = started(audit={"second_look_ppm": 1_000_000})
    again = Play(state)
    for record in play.records:
        again.add(record)
    assert close.kind == "round-close"
    return again.state


def test_a_verdict_must_follow_from_its_own_values() -> None:
    state = judged()
    open_ = state.open_turn.open
    claim = reveal(open_, open_.entry(0))
    for outcome in ("pass", "fail"):
        honest = verdict(state, 0, 1, "a0", outcome)
        assert verdict_is_sound(honest, claim, audit((0, 1)))
        turned: Any = "fail" if outcome == "pass" else "pass"
        assert not verdict_is_sound(replace(honest, outcome=turned), claim, audit((0, 1)))
        assert not verdict_is_sound(replace(honest, differs=("loss",)), claim, audit((0, 1)))
    fail = verdict(state, 0, 1, "a0", "fail")
    assert not verdict_is_sound(replace(fail, differs=fail.differs[::-1]), claim, audit((0, 1)))


LONG = plan_open(started(train={"steps": [9, 2, 3, 1]}))
COUNT = 5  # segments of slot 0
CHOICES = [chosen for size in range(1, COUNT + 1) for chosen in combinations(range(COUNT), size)]


def partial(segments: tuple[int, ...], flavour: str = "true") -> Verdict:
    """A verdict of who looked at some of the five segments of slot 0."""
    entry = LONG.roster[SLOT]
    work = looked_at(LONG, entry, audit(segments), flavour)
    differs = differences(opening(LONG, entry), work)
    values = (work.payload, work.next_state, work.trace, work.loss_first, work.loss_last, (), "class")
    outcome: Any = "fail" if differs else "pass"
    return Verdict(1, LONG.run, 1, 0, SLOT, 1, "a0", "key", outcome, differs, *values)


def into(segments: tuple[int, ...]) -> set[int]:
    """The leaves that section 7 has a draw of these segments look into."""
    before = {segment - 1 for segment in segments} - {-1}
    return before | set(segments) | {COUNT - 1, COUNT}


@pytest.mark.parametrize("flavour", ["true", "other"])
def test_a_verdict_on_some_segments_states_what_their_audit_looks_into(flavour: str) -> None:
    claim = reveal(LONG, LONG.roster[SLOT])
    for looked in CHOICES:
        record = partial(looked, flavour)
        assert record.outcome == ("pass" if flavour == "true" else "fail")
        assert {i for i, leaf in enumerate(record.trace) if leaf.startswith("sha256:")} == into(looked)
        for asked in CHOICES:
            fits = into(looked) == into(asked) and (0 in looked) == (0 in asked)
            assert verdict_is_sound(record, claim, audit(asked)) == fits
        assert not verdict_is_sound(record, claim, audit(()))


@pytest.mark.parametrize("segments", [(0,), (2,), (1, 3), (0, 1, 2, 3, 4)])
def test_a_verdict_in_another_form_is_not_sound_though_its_outcome_follows(segments: tuple[int, ...]) -> None:
    claim, honest = reveal(LONG, LONG.roster[SLOT]), partial(segments)
    true = done(LONG, LONG.roster[SLOT]).trace
    assert verdict_is_sound(honest, claim, audit(segments))
    for place, leaf in enumerate(honest.trace):
        # The same root either way; but a hash where a digest belongs can be copied, and a digest
        # where a hash belongs cannot be known.
        other = trace_leaf_hash(leaf).hex() if ":" in leaf else true[place]
        trace = (*honest.trace[:place], other, *honest.trace[place + 1 :])
        assert trace_root(trace) == claim.opening.trace_root
        assert not verdict_is_sound(replace(honest, trace=trace), claim, audit(segments))


@pytest.mark.parametrize("segments", [(0,), (2,), (0, 4), (0, 1, 2, 3, 4)])
def test_a_verdict_has_a_leaf_for_each_of_the_opening(segments: tuple[int, ...]) -> None:
    claim, honest = reveal(LONG, LONG.roster[SLOT]), partial(segments)
    hash_ = trace_leaf_hash(honest.trace[-1]).hex()
    for trace in (honest.trace[:-1], (*honest.trace, hash_), (*honest.trace, honest.trace[-1]), ()):
        record: Verdict = replace(honest, trace=trace, outcome="fail", differs=("trace",))
        assert not verdict_is_sound(record, claim, audit(segments))
    fail: Verdict = replace(partial(segments, "other"), trace=partial(segments).trace)
    assert not verdict_is_sound(fail, claim, audit(segments))  # it finds the trace right and says it differs
    assert verdict_is_sound(replace(fail, differs=("payload", "next_state")), claim, audit(segments))


def test_the_first_loss_is_stated_exactly_when_the_first_segment_is_drawn() -> None:
    claim = reveal(LONG, LONG.roster[SLOT])
    with_first, without = partial((0, 3)), partial((1, 3))
    assert (with_first.loss_first, without.loss_first) == (5_000_000, None)
    assert not verdict_is_sound(replace(with_first, loss_first=None), claim, audit((0, 3)))
    assert not verdict_is_sound(replace(without, loss_first=5_000_000), claim, audit((1, 3)))
    found: Verdict = replace(with_first, loss_first=0, outcome="fail", differs=("loss",))
    assert verdict_is_sound(found, claim, audit((0, 3)))
    last: Verdict = replace(without, loss_last=0, outcome="fail", differs=("loss",))
    assert verdict_is_sound(last, claim, audit((1, 3)))
