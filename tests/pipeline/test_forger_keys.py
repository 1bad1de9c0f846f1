"""Lies of a coordinator that has a contributor's or an auditor's key too; level 3 is for most of them.

What it can do with its own key alone is in tests/pipeline/test_forger.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compression import Codec
from tests.pipeline.forger import Entry, Forger
from tests.pipeline.forger_stage import Stage, assert_named, check, last_close, names, stage
from tests.pipeline.lie_changes import LAST, entries, fields, item, plus
from tests.pipeline.lies import CLOSE, OPEN
from verification.errors import FormatError
from verification.judge import trace_root
from verification.records import (
    Commitment,
    Reveal,
    Verdict,
)
from verification.sealing import seal_record


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Everything is audited; c03 is lazy and found out in round 1."""
    return stage(tmp_path_factory.mktemp("true"))


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """After round 1 nothing is audited."""
    audit = {"probation_rounds": 1, "second_look_ppm": 0, "rate_ppm": 0}
    return stage(tmp_path_factory.mktemp("trusting"), audit=audit)


def noise(forger: Forger, slot: int) -> bytes:
    """A payload of the right form that no work stands behind."""
    compression = forger.manifest.config["compression"]
    codec = Codec(compression["chunk"], compression["k"], forger.aggregator.codec.length)
    return codec.encode(np.random.default_rng(slot).normal(size=codec.length).astype(np.float32))


def swapped(slot: int, sealed: Entry) -> Callable[[list[Entry]], list[Entry]]:
    return lambda found: [sealed if getattr(r, "slot", None) == slot else (r, d) for r, d in found]


def undone(stage: Stage, forger: Forger, slot: int, **opening: Any) -> Reveal:
    """Replace a slot's commitment and reveal of the last turn, with its contributor's key, by noise."""
    commitment, reveal = forger.signed_work(
        forger.turns[LAST].of(Reveal, slot=slot)[0][0],
        stage.keys[f"c{slot:02d}"],
        noise(forger, slot),
        **opening,
    )

    entries("commitment", LAST, swapped(slot, commitment))(forger)
    entries("reveal", LAST, swapped(slot, reveal))(forger)
    assert isinstance(reveal[0], Reveal)
    return reveal[0]


def test_undone_work_of_a_colluding_contributor(trusting: Stage, tmp_path: Path) -> None:
    """Nobody was drawn: the log and the aggregation hold, only the recomputation tells."""
    forger = trusting.forger(tmp_path / "told")
    undone(trusting, forger, 1, loss_last=1)
    told = forger.tell()
    assert check(told).ok
    answer = check(told, 3)
    where = "round 3, attempt 0, slot 1"
    assert_named(answer, "the payload of an accepted contribution was not computed", where)
    assert_named(answer, "the last loss of an accepted contribution was not computed", where)
    assert {f["where"] for f in answer.failures} == {where}


def test_a_malformed_payload_accepted(trusting: Stage, tmp_path: Path) -> None:
    """Its length and digest are right and contributor and coordinator agree: the codec refuses it."""
    forger = trusting.forger(tmp_path / "told")
    length = forger.aggregator.codec.payload_bytes
    bad = b"\xff" * length
    with pytest.raises(FormatError):
        forger.aggregator.codec.decode(bad)
    reveal = forger.turns[LAST].of(Reveal, slot=1)[0][0]
    assert isinstance(reveal, Reveal)
    commitment, opened = forger.signed_work(reveal, trusting.keys["c01"], bad)
    for kind, sealed in (("commitment", commitment), ("reveal", opened)):
        entries(kind, LAST, swapped(1, sealed))(forger)
    # There is no aggregate with it, so the forger's is without.
    forger.aggregated = lambda work: [item for item in work if item.payload != bad]
    answer = check(forger.tell())
    assert_named(answer, "an accepted payload is malformed", "round 3, attempt 0, slot 1")


@pytest.mark.parametrize(
    ("claim", "value", "what"),
    [
        ("next_state", "blake3:" + "3" * 64, "next state"),
        ("trace_root", "sha256:" + "3" * 64, "trace"),
        ("loss_first", 3, "first loss"),
    ],
)
def test_one_claim_of_a_colluding_contributor(
    trusting: Stage, tmp_path: Path, claim: str, value: object, what: str
) -> None:
    """Honest work, and one field of the opening that it did not give."""
    forger = trusting.forger(tmp_path / "told")
    true_reveal = forger.turns[LAST].of(Reveal, slot=1)[0][0]
    assert isinstance(true_reveal, Reveal)
    told = replace(true_reveal, opening=replace(true_reveal.opening, **{claim: value}))
    place = (told.protocol, told.run, told.round, told.attempt, told.slot, told.member, told.key)
    commitment, key = Commitment(*place, told.commitment), trusting.keys["c01"]
    for kind, record in (("commitment", commitment), ("reveal", told)):
        entries(kind, LAST, swapped(1, (record, seal_record(record, key))))(forger)
    run = forger.tell()
    assert check(run).ok
    assert_named(
        check(run, 3),
        f"the {what} of an accepted contribution was not computed",
        "round 3, attempt 0, slot 1",
        alone=True,
    )


def test_more_trace_leaves_than_steps_give(trusting: Stage, tmp_path: Path) -> None:
    forger = trusting.forger(tmp_path / "told")
    undone(trusting, forger, 1, trace_leaves=7)
    assert_named(
        check(forger.tell(), 1),
        "slot 1 in round 3 is listed as revealed though its trace_leaves does not match",
        "reveal-close of round 3",
    )


def test_twins_of_a_colluding_contributor_left_undrawn(trusting: Stage, tmp_path: Path) -> None:
    """The lottery draws nobody, but who hands in another's payload is drawn, and so is the other."""
    forger = trusting.forger(tmp_path / "told")
    original = forger.turns[LAST].of(Reveal, slot=0)[0][0]
    assert isinstance(original, Reveal)
    twin = original.opening.payload
    reveal_of_1 = forger.turns[LAST].of(Reveal, slot=1)[0][0]
    assert isinstance(reveal_of_1, Reveal)
    commitment, reveal = forger.signed_work(reveal_of_1, trusting.keys["c01"], forger.folder.payload(twin))
    entries("commitment", LAST, swapped(1, commitment))(forger)
    entries("reveal", LAST, swapped(1, reveal))(forger)
    fields("draw", LAST, drawn=())(forger)
    answer = check(forger.tell())
    what = "the drawn slots of round 3 do not follow from the seed"
    assert_named(answer, what, "draw of round 3")
    [found] = [f for f in answer.failures if f["what"] == what]
    assert (found["expected"], found["got"]) == ("[0, 1]", "[]")


def test_a_window_used_twice_with_its_contributors_help(trusting: Stage, tmp_path: Path) -> None:
    """The roster hands out used windows and the contributor signs for them."""
    forger = trusting.forger(tmp_path / "told")
    fields("round-open", LAST, roster=item("roster", 0, positions=((0, 6),)))(forger)
    reveal = undone(trusting, forger, 0, positions=((0, 6),))
    assert reveal.opening.positions == ((0, 6),)
    answer = check(forger.tell())
    assert_named(answer, "the positions of slot 0 in the roster of round 3 is wrong", OPEN)
    assert_named(answer, "positions accepted in round 3 were accepted before", CLOSE)


def test_a_broken_lineage_with_its_contributors_help(trusting: Stage, tmp_path: Path) -> None:
    """The contributor starts from nothing again, and all agree on it."""
    forger = trusting.forger(tmp_path / "told")
    zero = forger.manifest.zero_state
    fields("round-open", LAST, roster=item("roster", 0, start_state=zero))(forger)
    undone(trusting, forger, 0, start_state=zero)
    assert_named(
        check(forger.tell()),
        "the start_state of slot 0 in the roster of round 3 is wrong",
        OPEN,
        alone=True,
    )


def test_a_rubber_stamped_verdict(true: Stage, tmp_path: Path) -> None:
    """Contributor and both auditors agree on work that was never done."""
    forger = true.forger(tmp_path / "told")
    leaves = ("sha256:" + "1" * 64, "sha256:" + "2" * 64)
    reveal = undone(true, forger, 1, trace_root=trace_root(leaves), trace_leaves=2)

    def stamp(found: list[Entry]) -> list[Entry]:
        stamped: list[Entry] = []
        for record, data in found:
            assert isinstance(record, Verdict)
            if record.slot != 1:
                stamped.append((record, data))
                continue
            claim = reveal.opening
            told = replace(
                record,
                payload=claim.payload,
                next_state=claim.next_state,
                trace=leaves,
                loss_first=claim.loss_first,
                loss_last=claim.loss_last,
            )
            stamped.append((told, seal_record(told, true.keys[told.auditor])))
        return stamped

    entries("verdict", LAST, stamp)(forger)
    told = forger.tell()
    assert check(told).ok
    answer = check(told, 3)
    where = "round 3, attempt 0, slot 1"
    assert_named(answer, "the payload of an accepted contribution was not computed", where)
    assert_named(answer, "the trace of an accepted contribution was not computed", where)
    assert_named(answer, r"the verdict of a0[01] was not computed", where + ", look 1")


def test_an_auditor_cannot_stamp_what_it_did_not_compute(true: Stage, tmp_path: Path) -> None:
    """A pass needs the trace behind the contributor's root; no record of the contributor holds it."""
    forger = true.forger(tmp_path / "told")

    def stamp(found: list[Entry]) -> list[Entry]:
        stamped: list[Entry] = []
        for record, data in found:
            assert isinstance(record, Verdict)
            if record.slot == 3:
                claim = forger.turns[0].of(Reveal, slot=3)[0][0]
                assert isinstance(claim, Reveal)
                told = replace(
                    record,
                    outcome="pass",
                    differs=(),
                    payload=claim.opening.payload,
                    next_state=claim.opening.next_state,
                    loss_first=claim.opening.loss_first,
                    loss_last=claim.opening.loss_last,
                )
                stamped.append((told, seal_record(told, true.keys[told.auditor])))
            else:
                stamped.append((record, data))
        return stamped

    entries("verdict", 0, stamp)(forger)
    assert_named(
        check(forger.tell(1, end=False)),
        "the outcome in the verdict of look 1 of slot 3 in round 1 is wrong",
        "verdict of round 1",
    )


def accused(stage: Stage, found: list[Entry]) -> list[Entry]:
    """First verdicts, that of slot 1 a made-up fail signed with its auditor's key."""
    told: list[Entry] = []
    for record, data in found:
        assert isinstance(record, Verdict)
        fail = replace(record, outcome="fail", differs=("payload",), payload="blake3:" + "4" * 64)
        sealed = (fail, seal_record(fail, stage.keys[fail.auditor]))
        told.append(sealed if record.slot == 1 else (record, data))
    return told


def second_look(stage: Stage, slot: int, **changes: Any) -> Callable[..., list[Entry]]:
    """A second verdict on a slot: the first one with these changes, by who is called, with its key."""

    def verdict(found: list[Entry], f: Forger) -> list[Entry]:
        turn = f.state.open_turn
        assert turn.second
        [name] = next(look.auditors for look in turn.second.looks if look.slot == slot)
        told = replace(turn.verdicts[slot, 1], look=2, auditor=name, key=stage.keys[name].public, **changes)
        return [*found, (told, seal_record(told, stage.keys[name]))]

    return verdict


def test_an_honest_contributor_framed_by_two_auditors(true: Stage, tmp_path: Path) -> None:
    """Both auditors sign the same wrong result: a fault with evidence at level 2, cleared at level 3."""
    forger = true.forger(tmp_path / "told")
    entries("verdict", LAST, lambda found: accused(true, found))(forger)
    forger.lie("verdict2", LAST, second_look(true, 1))
    told = forger.tell()
    assert check(told).ok, names(check(told))
    answer = check(told, 3)
    where = "round 3, attempt 0, slot 1"
    assert_named(answer, "a contribution was rejected as a fault although it was computed as claimed", where)
    for look in (1, 2):
        assert_named(answer, r"the verdict of a0[01] was not computed", f"{where}, look {look}")
    assert_named(answer, "a case cannot be rerun", where)  # the forger made the rest of it up
    assert len(answer.failures) == 4, names(answer)


def disputed(stage: Stage, target: Path) -> tuple[Forger, str]:
    """Slot 1 of the last turn accused by its first auditor, cleared by the second; the name of the first."""
    forger = stage.forger(target)
    honest = forger.turns[LAST].of(Verdict, slot=1)[0][0]
    assert isinstance(honest, Verdict)
    entries("verdict", LAST, lambda found: accused(stage, found))(forger)
    cleared = second_look(stage, 1, outcome="pass", differs=(), payload=honest.payload)
    forger.lie("verdict2", LAST, cleared)
    return forger, honest.auditor


def test_an_honest_contributor_disputed_by_one_auditor(true: Stage, tmp_path: Path) -> None:
    """The second auditor clears it, so nobody is at fault and the log holds. Level 3 names who lied."""
    forger, liar = disputed(true, tmp_path / "told")
    told = forger.tell()
    assert [(line["slot"], line["reason"]) for line in last_close(told)["rejected"]] == [(1, "disputed")]
    assert check(told).ok, names(check(told))
    what = f"the verdict of {liar} was not computed"
    assert_named(check(told, 3), what, "round 3, attempt 0, slot 1, look 1", alone=True)


@pytest.mark.parametrize("index", [0, 1])
def test_an_auditor_paid_for_a_disputed_verdict(true: Stage, tmp_path: Path, index: int) -> None:
    """The settling bears out neither of the two, so neither earns: the liar nor who told the truth."""
    forger, _ = disputed(true, tmp_path / "told")
    # Two steps of two windows of 16 tokens; the auditors were enrolled first.
    fields("round-close", LAST, credits=item("credits", index, earned=plus(64)))(forger)
    what = f"the earned credit of a0{index} after round 3 is wrong"
    assert_named(check(forger.tell()), what, CLOSE, alone=True)
