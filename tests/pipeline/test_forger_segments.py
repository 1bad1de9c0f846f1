"""Lies of a coordinator about which segments were audited and what was opened of them; `verify` names each.

The forger holds the coordinator's key and chain; where a test says so, an auditor's key too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import config_from_manifest
from pipeline.folder import RunFolder
from tests.pipeline.forger import Entry, Forger
from tests.pipeline.forger_stage import Stage, assert_named, check, stage
from tests.pipeline.lie_changes import entries, fields, item
from tests.tiny import copy_run
from verification.fsck_shapes import RERUN_FILES
from verification.judge import differences, trace_leaf_hash
from verification.plans import plan_draw
from verification.records import Draw, Reveal, RoundClose, Verdict
from verification.sealing import seal_record

LIAR, FIRST, LAST = 3, 0, 1
TRACE = f"evidence/r00001-a0-s{LIAR}/trace"


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Two rounds, two segments of each contribution audited; c03 trains on other data, and is found out."""
    return stage(
        tmp_path_factory.mktemp("true"),
        "wrong-data",
        run={"rounds": 2},
        train={"steps": [6, 4, 5, 4], "trace_every": 1},
        audit={"probation_rounds": 0, "segments": 2, "second_look_ppm": 1_000_000},
    )


def test_a_run_told_again_without_a_lie_is_the_same_run(true: Stage, tmp_path: Path) -> None:
    forger = true.forger(tmp_path / "told")
    assert config_from_manifest(forger.manifest.config).audit.segments == 2
    told = forger.tell()
    for path in sorted(true.run.rglob("*")):
        if path.is_file():
            assert (told / path.relative_to(true.run)).read_bytes() == path.read_bytes(), path
    answer = check(told, 3)
    assert (answer.ok, answer.complete) == (True, True)


def other_segments(draw: Draw) -> tuple[int, ...]:
    """Two of six segments that are not those drawn of slot 0."""
    return tuple(s for s in range(6) if s not in draw.drawn[0].segments)[:2]


LIES: dict[str, tuple[Callable[[Forger], None], str, str]] = {
    "other segments": (
        fields("draw", LAST, drawn=lambda r: item("drawn", 0, segments=other_segments(r))(r)),
        "the segments of slot 0 in round 2 do not follow from the seed",
        "draw of round 2",
    ),
    "fewer segments": (
        fields("draw", LAST, drawn=item("drawn", 0, segments=lambda segments: segments[:1])),
        "the segments of slot 0 in round 2 do not follow from the seed",
        "draw of round 2",
    ),
    "all segments": (
        fields("draw", LAST, drawn=item("drawn", 0, segments=(0, 1, 2, 3, 4, 5))),
        "the segments of slot 0 in round 2 do not follow from the seed",
        "draw of round 2",
    ),
    "no segments": (
        fields("draw", LAST, drawn=item("drawn", 0, segments=())),
        "segments",
        "draw of round 2",
    ),
    "the same segment twice": (
        fields("draw", LAST, drawn=item("drawn", 0, segments=lambda s: (s[0], s[0]))),
        "segments",
        "draw of round 2",
    ),
    "a roster that owes fewer segments": (
        fields("round-open", LAST, roster=item("roster", 0, audit_segments=1)),
        "audit_segments",
        "round-open of round 2",
    ),
    "a roster that owes more segments": (
        fields("round-open", LAST, roster=item("roster", 0, audit_segments=6)),
        "audit_segments",
        "round-open of round 2",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_segments_is_named(true: Stage, tmp_path: Path, name: str) -> None:
    tell, what, where = LIES[name]
    forger = true.forger(tmp_path / "told")
    tell(forger)
    assert_named(check(forger.tell()), what, where)
    assert check(true.run).ok


def test_a_seed_that_was_chosen_for_its_segments(true: Stage, tmp_path: Path) -> None:
    """The draw follows from a seed, which does not follow from the log."""

    def change(found: list[Entry], forger: Forger) -> list[Entry]:
        draw = found[0][0]
        assert isinstance(draw, Draw)
        for link in (forger.chain.link(1), forger.chain.link(2), forger.chain.link(4)):
            other = plan_draw(forger.state, forger.log.checkpoint, link, {})
            if other.drawn[0].segments != draw.drawn[0].segments:
                return [(other, None)]
        return [(replace(draw, seed="sha256:" + "7" * 64), None)]

    forger = true.forger(tmp_path / "told")
    forger.lie("draw", LAST, change)
    assert_named(check(forger.tell()), "of draw in round 2", "draw of round 2")


# --- the opened trace in the evidence ---


def damaged(true: Stage, target: Path, change: Callable[[bytes], bytes]) -> Path:
    told = copy_run(true.run, target)
    (told / TRACE).write_bytes(change((told / TRACE).read_bytes()))
    return told


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-1], lambda data: data + b"\0"],
)
def test_an_opened_trace_changed_in_the_folder(
    true: Stage, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    answer = check(damaged(true, tmp_path / "told", change), 1)
    assert_named(answer, "trace in .* has another digest", TRACE, alone=True)


def test_an_opened_trace_that_is_gone(true: Stage, tmp_path: Path) -> None:
    told = copy_run(true.run, tmp_path / "told")
    (told / TRACE).unlink()
    assert_named(check(told, 1), "trace in", TRACE)


def retold(true: Stage, target: Path, change: Callable[[bytes], bytes] | None) -> Path:
    """The first round with another trace in the evidence, or none, case and close told accordingly."""
    forger = true.forger(target)
    open_ = forger.turns[FIRST].open
    folder = forger.folder.evidence_folder(open_, LIAR)
    if change:
        data = change((folder / "trace").read_bytes())
        (folder / "trace").write_bytes(data)
    else:
        (folder / "trace").unlink()
    evidence = forger.folder.close_evidence(open_, LIAR, "failed-audit")
    close = forger.turns[FIRST].one(RoundClose)
    assert close.rejected[0].slot == LIAR
    assert close.rejected[0].evidence != evidence
    fields("round-close", FIRST, rejected=item("rejected", 0, evidence=evidence))(forger)
    return forger.tell(1, end=False)  # the next draw would be another, and no auditor has answered it


def test_an_opened_trace_of_other_states_swapped_in_the_evidence(true: Stage, tmp_path: Path) -> None:
    """Its leaf hashes are those that were committed to; what they are hashes of is level 3's."""
    told = retold(true, tmp_path / "told", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert check(told, 2).ok
    answer = check(told, 3)
    assert_named(answer, "the evidence of a verdict cannot be used", "round 1, attempt 0, slot 3")
    assert {f["where"].split(", look")[0] for f in answer.failures} == {"round 1, attempt 0, slot 3"}


def test_an_opened_trace_of_other_hashes_swapped_in_the_evidence(true: Stage, tmp_path: Path) -> None:
    def change(data: bytes) -> bytes:
        at = len(b"barnraise-trace-v1\n") + 4
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    answer = check(retold(true, tmp_path / "told", change), 1)
    assert_named(answer, "does not give the trace's root", TRACE, alone=True)


@pytest.mark.parametrize("change", [None, lambda data: b"", lambda data: data[:50], lambda data: b"x" * 9999])
def test_an_opened_trace_that_is_none_in_the_evidence(
    true: Stage, tmp_path: Path, change: Callable[[bytes], bytes] | None
) -> None:
    answer = check(retold(true, tmp_path / "told", change), 1)
    assert not answer.ok
    assert all("trace" in f["what"] or "files" in f["what"] for f in answer.failures)


def test_the_case_names_the_opened_trace(true: Stage) -> None:
    folder = RunFolder(true.run).evidence_case(1, 0, LIAR)
    files = set(json.loads((folder / "case.json").read_bytes())["files"])
    sent = {"payload", "start_state", "trace"}
    assert files == {*sent, *RERUN_FILES["failed-audit"], "verdict-1", "verdict-2"}


# --- with an auditor's key ---


def judged(stage_: Stage, change: Callable[[Verdict, Reveal], dict[str, Any]]) -> Callable[[Forger], None]:
    """Slot 0's first verdict of the last turn changed, and signed by its auditor."""

    def lie(forger: Forger) -> None:
        reveal = forger.turns[LAST].of(Reveal, slot=0)[0][0]
        assert isinstance(reveal, Reveal)

        def told(found: list[Entry]) -> list[Entry]:
            first = found[0][0]
            assert isinstance(first, Verdict)
            record = replace(first, **change(first, reveal))
            differs = differences(reveal.opening, record)  # type: ignore[arg-type]
            record = replace(record, differs=differs, outcome="fail" if differs else "pass")
            return [(record, seal_record(record, stage_.keys[record.auditor])), *found[1:]]

        entries("verdict", LAST, told)(forger)

    return lie


def looked_at_less(verdict: Verdict, reveal: Reveal) -> dict[str, Any]:
    """A leaf hash where a digest was due: it did not recompute that leaf, and the root holds all the same."""
    del reveal
    place = next(i for i, leaf in enumerate(verdict.trace) if ":" in leaf)
    trace = list(verdict.trace)
    trace[place] = trace_leaf_hash(trace[place]).hex()
    return {"trace": tuple(trace)}


def test_a_verdict_that_has_not_looked_into_all_that_was_drawn(true: Stage, tmp_path: Path) -> None:
    forger = true.forger(tmp_path / "told")
    judged(true, looked_at_less)(forger)
    answer = check(forger.tell(), 1)
    assert_named(
        answer, "of slot 0 in round 2 states the digests of other leaves than the draw looks into", "round 2"
    )


def test_a_verdict_on_true_work_that_says_it_found_another_leaf(true: Stage, tmp_path: Path) -> None:
    """A false fail on a segment holds as a log; the recomputation tells who lied."""

    def change(verdict: Verdict, reveal: Reveal) -> dict[str, Any]:
        del reveal
        place = next(i for i, leaf in enumerate(verdict.trace) if ":" in leaf)
        trace = [*verdict.trace]
        trace[place] = "sha256:" + "9" * 64
        return {"trace": tuple(trace)}

    forger = true.forger(tmp_path / "told")
    judged(true, change)(forger)
    told = forger.tell()
    assert check(told).ok
    (auditor,) = {
        v.auditor for v, _ in forger.turns[LAST].of(Verdict, slot=0, look=1) if isinstance(v, Verdict)
    }
    answer = check(told, 3)
    where = "round 2, attempt 0, slot 0, look 1"
    assert_named(answer, f"the verdict of {auditor} was not computed", where, alone=True)
