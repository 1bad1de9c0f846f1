"""Runs in which some segments of a contribution are audited: honest ones hold, and who lies is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.adversaries import ADVERSARIES
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.segment_audit import Case
from pipeline.trace import OpenedTrace, read_trace
from pipeline.work import Job
from tests.pipeline.adversary_runs import Story, tell
from tests.pipeline.segment_runs import LIAR, SLOT, UNSERVED, check, config, turns
from verification.fsck_shapes import RERUN_FILES
from verification.judge import Audit, Recomputed, trace_leaf_hash
from verification.records import Draw
from verification.sealing import open_record
from verification.segments import looked_into


def asked(story: Story) -> list[tuple[str, int, list[int]]]:
    """Who was shown a draw that looks into which segments, in order."""
    calls = [who for method, who in story.calls if method == "serve_trace"]
    return [
        (name, turn, drawn_of(story, name, draw)) for who in calls for name, (turn, draw, _) in who.items()
    ]


def drawn_of(story: Story, name: str, envelope: bytes) -> list[int]:
    draw = open_record(Draw, envelope, story.manifest.coordinator)
    slots = story.turns[0].names
    return next(list(item.segments) for item in draw.drawn if slots[item.slot] == name)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tell(tmp_path_factory.mktemp("honest"), config(), {})


def test_an_honest_run_is_accepted_and_holds_at_every_level(honest: Story) -> None:
    found = turns(honest)
    assert len(found) == 2
    for turn in found:
        assert [item.slot for item in turn.close.accepted] == [0, 1, 2, 3]
        assert {slot: len(segments) for slot, segments in turn.drawn.items()} == dict.fromkeys(range(4), 2)
        assert turn.served.served == (0, 1, 2, 3)
        assert len(turn.verdicts) == 8
        assert {verdict.outcome for verdict in turn.verdicts} == {"pass"}
    answer = check(honest.folder)
    assert answer.failures == []
    assert (answer.ok, answer.complete, answer.recomputed) == (True, True, 8)


def test_verdicts_state_what_was_looked_into_and_the_draws_that_were_shown_are_the_logs(
    honest: Story,
) -> None:
    due = []
    for number, turn in enumerate(turns(honest)):
        for slot, segments in turn.drawn.items():
            due.append((turn.open.entry(slot).member, number, list(segments)))
        for verdict in turn.verdicts:
            segments, count = turn.drawn[verdict.slot], turn.count(verdict.slot, 1)
            stated = {place for place, leaf in enumerate(verdict.trace) if leaf.startswith("sha256:")}
            assert stated == looked_into(segments, count)
            assert (verdict.loss_first is None) == (0 not in segments)
            opening = turn.openings[verdict.slot]
            assert len(verdict.trace) == opening.trace_leaves == count + 1
            assert verdict.loss_last == opening.loss_last
    assert asked(honest) == due
    sent = [args for method, who in honest.calls if method == "audit" for args in who.values()]
    assert {len(args) for args in sent} == {8}
    assert {args[3] for args in sent} <= set(honest.log())  # the draws that it was shown
    assert all(type(args[7]) is bytes for args in sent)


def test_how_much_is_audited_changes_no_weight(honest: Story, tmp_path: Path) -> None:
    whole = tell(tmp_path, config(audit={"segments": 0}), {})
    assert asked(whole) == []
    assert [t.close.weights for t in turns(whole)] == [t.close.weights for t in turns(honest)]
    assert [t.openings[1].trace_root for t in turns(whole)] == [
        t.openings[1].trace_root for t in turns(honest)
    ]


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"steps": [7, 5, 3, 4], "trace_every": 2}, "audit": {"segments": 1}},
        {"train": {"mode": "gradient", "steps": [5, 4, 3, 6]}, "outer": {"optimizer": "adamw"}},
        {"audit": {"probation_rounds": 1}},
        {"audit": {"segments": 5}},
    ],
    ids=["every-2", "gradient", "probation", "more-than-most"],
)
def test_other_runs_hold_too(tmp_path: Path, sections: dict[str, Any]) -> None:
    chosen = config(**sections)
    story = tell(tmp_path, chosen, {})
    for number, turn in enumerate(turns(story)):
        assert not turn.close.rejected
        whole = number < chosen.audit.probation_rounds
        for slot, segments in turn.drawn.items():
            count = turn.count(slot, chosen.train.trace_every)
            assert len(segments) == (count if whole else min(chosen.audit.segments, count))
            entry = turn.open.entry(slot)
            opened = [item for item in asked(story) if item[:2] == (entry.member, number)]
            assert len(opened) == (len(segments) < count)
    assert check(story.folder).failures == []


# --- who lies ---

REASONS = {  # the reason, and the first turn that can lie
    "copycat": ("duplicate-payload", 1),
    "dodger": ("unserved", 0),
    "lazy": ("failed-audit", 0),
    "nan": ("malformed-payload", 0),
    "random": ("failed-audit", 0),
    "scaled": ("failed-audit", 0),
    "silent": ("unrevealed", 0),
    "stale": ("duplicate-payload", 1),
    "state-smuggler": ("failed-audit", 0),
    "wrong-data": ("failed-audit", 0),
}
SKIPPED = {2, 3}  # the second half of four steps


def test_every_kind_has_its_rule() -> None:
    assert set(REASONS) == set(ADVERSARIES)


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_an_adversary_is_rejected_when_it_is_looked_at(tmp_path: Path, kind: str) -> None:
    story = tell(tmp_path, config(), {LIAR: kind})
    reason, first = REASONS[kind]
    found = turns(story)
    turn = found[first]
    assert all(not t.rejected for t in found[:first])
    caught = kind != "lazy" or bool(SKIPPED & set(turn.drawn[SLOT]))
    assert turn.rejected == ({SLOT: reason} if caught else {})
    folder = story.folder / "evidence" / f"r{first + 1:05d}-a0-s{SLOT}"
    kept = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if reason == "failed-audit" and caught:
        sent = {"payload", "start_state", "trace"}
        assert kept == {"case.json", *sent, *RERUN_FILES["failed-audit"], "verdict-1", "verdict-2"}
        against = [v for v in turn.verdicts if v.slot == SLOT]
        assert [v.outcome for v in against] == ["fail", "fail"]
        data = (folder / "trace").read_bytes()
        job, opening = Job.of(story.manifest), turn.openings[SLOT]
        audit = Audit(turn.drawn[SLOT], turn.open.entry(SLOT).numerics_class)
        assert read_trace(job, opening, 4, audit, data).to_bytes() == data
    answer = check(story.folder)
    # What nobody looked into the recomputation finds, and nothing else.
    assert {f["where"] for f in answer.failures} == (set() if caught else {"round 1, attempt 0, slot 3"})


def test_a_lazy_one_is_caught_just_when_a_step_that_it_left_out_is_drawn(tmp_path: Path) -> None:
    """One segment of four is drawn, again and again until it is one of those."""
    story = tell(tmp_path, config(run={"rounds": 6}, audit={"segments": 1}), {LIAR: "lazy"})
    for turn in turns(story):
        if SLOT not in turn.drawn:
            assert LIAR in turn.close.quarantined
            continue
        caught = set(turn.drawn[SLOT]) <= SKIPPED
        assert turn.rejected == ({SLOT: "failed-audit"} if caught else {})
        assert (LIAR in turn.close.quarantined) == caught
    assert check(story.folder, 2).failures == []


@pytest.mark.parametrize("kind", sorted(UNSERVED))
def test_who_does_not_open_what_is_due_is_unserved(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADVERSARIES, kind, UNSERVED[kind])
    story = tell(tmp_path, config(run={"rounds": 1}), {LIAR: kind})
    (turn,) = turns(story)
    assert (turn.served.served, turn.served.unserved) == ((0, 1, 2), (SLOT,))
    assert turn.rejected == {SLOT: "unserved"}
    assert all(verdict.slot != SLOT for verdict in turn.verdicts)
    assert [item.slot for item in turn.close.accepted] == [0, 1, 2]
    assert check(story.folder).failures == []


# --- who judges falsely ---


def stamping(monkeypatch: pytest.MonkeyPatch, *stamps: str) -> None:
    """Auditors of these names say what the contributor tells them to, and have not looked."""
    told: dict[tuple[int, int], Recomputed] = {}
    remember, compute = Contributor._remember, Auditor.compute

    def telling(self: Contributor, open_: Any, envelope: bytes, entry: Any, work: Any) -> bytes:
        told[open_.turn, entry.slot] = work.claims
        return remember(self, open_, envelope, entry, work)

    def stamp(self: Auditor, case: Case, audit: Audit, opened: OpenedTrace | None) -> Recomputed:
        if self.name not in stamps:
            return compute(self, case, audit, opened)
        claims = told[case.open.turn, case.entry.slot]
        places = audit.looked_into(case.count)
        trace = tuple(
            leaf if place in places else trace_leaf_hash(leaf).hex()
            for place, leaf in enumerate(claims.trace)
        )
        first = claims.loss_first if 0 in audit.segments else None
        return Recomputed(claims.payload, claims.next_state, trace, first, claims.loss_last)

    monkeypatch.setattr(Contributor, "_remember", telling)
    monkeypatch.setattr(Auditor, "compute", stamp)


def test_work_that_all_auditors_stamp_is_found_by_level_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamping(monkeypatch, "a00", "a01")
    story = tell(tmp_path, config(run={"rounds": 1}), {LIAR: "wrong-data"})
    (turn,) = turns(story)
    assert turn.rejected == {}
    assert check(story.folder, 2).failures == []
    answer = check(story.folder)
    assert not answer.ok
    said = {(f["what"], f["where"]) for f in answer.failures}
    assert ("the payload of an accepted contribution was not computed", "round 1, attempt 0, slot 3") in said
    assert {where.removesuffix(", look 1").removesuffix(", look 2") for _, where in said} == {
        "round 1, attempt 0, slot 3"
    }


def test_one_stamp_among_two_gets_false_work_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamping(monkeypatch, "a00")
    story = tell(tmp_path, config(run={"rounds": 1}), {LIAR: "wrong-data"})
    (turn,) = turns(story)
    assert turn.rejected == {SLOT: "disputed"}
    assert {v.auditor: v.outcome for v in turn.verdicts if v.slot == SLOT} == {"a00": "pass", "a01": "fail"}
    assert check(story.folder, 2).failures == []
    # The evidence of the one that failed it convicts the other.
    look = next(v.look for v in turn.verdicts if (v.slot, v.auditor) == (SLOT, "a00"))
    (failure,) = check(story.folder).failures
    assert failure["what"] == "the verdict of a00 was not computed"
    assert failure["where"] == f"round 1, attempt 0, slot 3, look {look}"
