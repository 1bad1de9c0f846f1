"""Runs with a member whose class no auditor has: audited by tolerance, capped, and found when it cheats."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import replay_work
from pipeline import rerun as rerun_module
from pipeline.auditor import Auditor
from pipeline.replay_work import plan_sample
from pipeline.rerun import Rerun, RerunOptions, command, rerun
from pipeline.trace import read_trace
from pipeline.verify import VerifyOptions, show
from pipeline.work import Job
from tests.pipeline.adversary_runs import Story
from tests.pipeline.segment_runs import LIAR, SLOT, TurnRecords, check, turns
from tests.pipeline.tolerance_runs import FAR, HERE, THIRD, arithmetic_of, item, tolerant_run
from verification.errors import BarnraiseError
from verification.fsck import check_run
from verification.judge import Audit
from verification.records import Draw, Opening
from verification.sealing import open_record

CAP = 100_000


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tolerant_run(tmp_path_factory.mktemp("lax"), audit={"tolerance_cap_ppm": CAP})


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Story:
    audit = {"tolerance": [item(), item(THIRD, FAR)]}
    return tolerant_run(tmp_path_factory.mktemp("caught"), "wrong-data", audit=audit)


def case_in(story: Story) -> Path:
    (found,) = (story.folder / "evidence").iterdir()
    return found


def deviations(turn: TurnRecords) -> list[Any]:
    return [verdict.deviations for verdict in turn.verdicts if verdict.slot == SLOT]


def test_honest_work_of_another_class_is_accepted_by_two_auditors(story: Story) -> None:
    found = turns(story)
    assert len(found) == 2
    for turn in found:
        assert turn.open.entry(SLOT).numerics_class == FAR
        assert turn.rejected == {}
        first, second = deviations(turn)
        assert first == second  # two of one class
        assert len(first) == len(turn.drawn[SLOT]) == 2
        for deviation in first:
            assert 0 < deviation.loss_ppm <= 20
            assert 1_000 < deviation.norm_ppb < 100_000
            assert 0 < deviation.peak_ppm < 1_000
            assert deviation.step_milli <= 1_000
        others = [verdict for verdict in turn.verdicts if verdict.slot != SLOT]
        assert all(verdict.deviations == () for verdict in others)
        assert {verdict.numerics_class for verdict in turn.verdicts} == {HERE}


def test_the_contributor_opens_what_a_tolerant_audit_looks_into(story: Story) -> None:
    asked = [
        (args[0], open_record(Draw, args[1], story.manifest.coordinator))
        for method, who in story.calls
        if method == "serve_trace"
        for name, args in who.items()
        if name == LIAR
    ]
    assert asked == [(turn.open.turn, turn.draw) for turn in turns(story)]
    served = {args[7] for method, who in story.calls if method == "audit" for args in who.values()}
    job = Job.of(story.manifest)
    for turn in turns(story):
        entry, opening = turn.open.entry(SLOT), turn.openings[SLOT]
        tolerances = story.manifest.config["audit"]["tolerance"]
        audit = Audit.of(tolerances, entry, turn.open.auditors, turn.drawn[SLOT])
        assert audit.tolerant
        # Read as a trace with other leaves, or of another contribution, it is an error.
        found = [trace for trace in served if trace and opens(job, opening, entry.steps, audit, trace)]
        assert len(found) == 1


def opens(job: Job, opening: Opening, steps: int, audit: Audit, trace: bytes) -> bool:
    try:
        read_trace(job, opening, steps, audit, trace)
    except BarnraiseError:
        return False
    return True


def test_its_weight_is_capped_and_nobody_elses(story: Story) -> None:
    for turn in turns(story):
        accepted = {item.slot: item for item in turn.close.accepted}
        own = accepted[SLOT]
        exact = sum(a.weight for slot, a in accepted.items() if slot != SLOT)
        # As much as makes it a tenth of all the weight there is.
        assert own.weight == CAP * exact // (10**6 - CAP) < own.tokens
        assert own.weight * 10**6 <= CAP * (own.weight + exact)
        assert all(a.weight == a.tokens for slot, a in accepted.items() if slot != SLOT)


def test_the_folder_holds_at_every_level_and_says_what_it_left_out(story: Story) -> None:
    for level in (1, 2, 3):
        answer = check(story.folder, level)
        assert answer.failures == []
        assert answer.ok
        assert answer.elsewhere == (2 if level == 3 else 0)
    assert (answer.recomputed, answer.population) == (6, 8)
    console = Console(file=io.StringIO(), width=400)
    show(answer, VerifyOptions(story.folder, level=3), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "6 contributions recomputed of 8" in text
    assert "2 of them rest on tolerance" in text


def test_what_is_elsewhere_is_never_drawn_into_a_sample(story: Story) -> None:
    findings = check_run(story.folder)
    for seed in range(30):
        plan = plan_sample(findings, 3, seed, HERE)
        assert (len(plan.wanted), plan.population, plan.elsewhere) == (3, 8, 2)
        assert all(slot != SLOT for _, slot in plan.needed)
    whole = plan_sample(findings, 99, 0, HERE)
    assert len(whole.wanted) == 6
    # A machine of that very class can do its work over; nothing is elsewhere that does not rest on tolerance.
    there = plan_sample(findings, None, 0, FAR)
    assert (len(there.wanted), there.elsewhere) == (8, 0)


def test_a_machine_of_that_class_recomputes_what_the_others_cannot(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.numerics.numerics_class", lambda *_: FAR)
    monkeypatch.setattr(replay_work, "numerics_class", lambda *_: FAR)
    with arithmetic_of(FAR):
        answer = check(story.folder)
    said = {(failure["what"], failure["where"]) for failure in answer.failures}
    # Of the two that rest on tolerance nothing is said: they were computed as claimed.
    assert not any(where.endswith(f"slot {SLOT}") for _, where in said)
    assert answer.elsewhere == 0
    answer = check(story.folder)  # the name alone, with another arithmetic
    where = {failure["where"] for failure in answer.failures if "was not computed" in failure["what"]}
    assert any(place.endswith(f"slot {SLOT}") for place in where)


def test_all_segments_are_audited_by_tolerance_too(tmp_path: Path) -> None:
    story = tolerant_run(tmp_path, run={"rounds": 1}, audit={"segments": 0})
    (turn,) = turns(story)
    assert turn.rejected == {}
    assert turn.drawn[SLOT] == (0, 1, 2, 3)
    assert [len(found) for found in deviations(turn)] == [4, 4]
    assert check(story.folder, 2).failures == []


def test_in_gradient_mode_too(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"train": {"mode": "gradient"}, "outer": {"optimizer": "adamw", "lr": 1e-3}}
    story = tolerant_run(tmp_path, run={"rounds": 1}, **sections)
    (turn,) = turns(story)
    assert turn.rejected == {}
    for deviation in deviations(turn)[0]:
        assert 1_000 < deviation.norm_ppb < 100_000
        assert deviation.step_milli == 0
    assert check(story.folder).failures == []


@pytest.mark.parametrize(("kind", "reason"), [("", None), ("wrong-data", "failed-audit")])
def test_auditors_of_two_classes_need_not_find_the_same(
    kind: str, reason: str | None, tmp_path: Path
) -> None:
    audit = {"auditors": 3, "tolerance": [item(), item(THIRD, FAR)]}
    story = tolerant_run(tmp_path, kind, THIRD, run={"rounds": 1}, audit=audit)
    (turn,) = turns(story)
    # Whoever is drawn: a01 for nobody but by tolerance.
    by_slot = {verdict.slot: verdict for verdict in turn.verdicts if verdict.auditor == "a01"}
    assert set(by_slot) <= {SLOT}
    assert turn.rejected == ({SLOT: reason} if reason else {})
    assert check(story.folder).failures == []


def test_two_classes_state_their_own_numbers_and_are_no_dispute(tmp_path: Path) -> None:
    """Of two auditors one is of another class: c00 to c02 have one of theirs, and no second look."""
    audit = {"tolerance": [item(), item(THIRD, FAR)]}
    story = tolerant_run(tmp_path, "wrong-data", THIRD, run={"rounds": 1}, audit=audit)
    (turn,) = turns(story)
    first, second = (verdict for verdict in turn.verdicts if verdict.slot == SLOT)
    assert {first.numerics_class, second.numerics_class} == {HERE, THIRD}
    assert first.deviations != second.deviations
    assert turn.rejected == {SLOT: "failed-audit"}
    answer = rerun(case_in(story))
    assert [said.same for said in answer.verdicts] == [True, True]
    assert answer.borne_out is True


# --- who cheats ---


def test_a_cheat_beyond_the_threshold_is_a_fault_that_two_auditors_confirm(caught: Story) -> None:
    turn = turns(caught)[0]
    assert turn.rejected == {SLOT: "failed-audit"}
    verdicts = [verdict for verdict in turn.verdicts if verdict.slot == SLOT]
    assert {verdict.auditor for verdict in verdicts} == {"a00", "a01"}
    assert {verdict.differs for verdict in verdicts} == {("deviation",)}
    assert all(d.norm_ppb > 10**7 for verdict in verdicts for d in verdict.deviations)
    assert LIAR in turn.close.quarantined
    assert {path.name for path in case_in(caught).iterdir()} >= {"trace", "verdict-1", "verdict-2"}
    assert check(caught.folder).failures == []


def test_a_threshold_of_nothing_fails_honest_work(tmp_path: Path) -> None:
    """So it is the thresholds that let it pass."""
    story = tolerant_run(tmp_path, run={"rounds": 1}, audit={"tolerance": [item(norm_ppb=1_000)]})
    (turn,) = turns(story)
    assert turn.rejected == {SLOT: "failed-audit"}
    assert check(story.folder, 2).failures == []


def test_without_a_tolerance_such_work_has_no_auditor(tmp_path: Path) -> None:
    story = tolerant_run(tmp_path, run={"rounds": 1}, audit={"tolerance": [item(THIRD, FAR)]})
    (turn,) = turns(story)
    assert turn.rejected == {SLOT: "no-eligible-auditor"}
    assert check(story.folder).failures == []


# --- the case ---


def as_class(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rerun_module, "numerics_class", lambda *_: name)


def words(folder: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = command(RerunOptions(folder), console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_case_is_borne_out_on_a_machine_of_the_auditors_class(caught: Story) -> None:
    answer = rerun(case_in(caught))
    assert (answer.member, answer.numerics_class, answer.here) == (LIAR, FAR, HERE)
    assert answer.tolerant
    assert answer.differs == ("deviation",)
    assert [said.same for said in answer.verdicts] == [True, True]
    assert answer.borne_out is True
    code, text = words(case_in(caught))
    assert code == 0
    assert "by tolerance: steps are repeated in another numerics class" in text
    assert "borne out: the contribution differs in deviation" in text


def test_a_class_of_another_tolerance_compares_all_but_the_deviations(
    caught: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_class(monkeypatch, THIRD)
    with arithmetic_of(FAR):  # whatever its own numbers are
        answer = rerun(case_in(caught))
    assert answer.borne_out is True
    assert [said.same for said in answer.verdicts] == [True, True]
    # On a machine that says it is of the auditors' class, the numbers have to be theirs.
    as_class(monkeypatch, HERE)
    with arithmetic_of(FAR):
        answer = rerun(case_in(caught))
    assert [said.same for said in answer.verdicts] == [False, False]
    assert answer.borne_out is False


def test_a_class_that_no_tolerance_covers_cannot_tell(caught: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    as_class(monkeypatch, "native/of-no-tolerance")
    answer = rerun(case_in(caught))
    assert answer.borne_out is answer.differs is None
    code, text = words(case_in(caught))
    assert code == 1
    assert "cannot tell here" in text
    assert "no tolerance between the contributor's numerics class and this machine's" in text


def test_auditors_that_make_deviations_up_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Auditor.compute

    def accusing(self: Auditor, *arguments: Any) -> Any:
        found = compute(self, *arguments)
        far = tuple(replace(deviation, norm_ppb=10**9) for deviation in found.deviations)
        return replace(found, deviations=far)

    monkeypatch.setattr(Auditor, "compute", accusing)
    story = tolerant_run(tmp_path, run={"rounds": 1})
    answer: Rerun = rerun(case_in(story))
    assert (answer.reason, answer.differs) == ("failed-audit", ())
    assert [said.same for said in answer.verdicts] == [False, False]
    assert answer.borne_out is False
    # So does the accused one's own machine, to the bit.
    as_class(monkeypatch, FAR)
    with arithmetic_of(FAR):
        own = rerun(case_in(story))
    assert (own.differs, own.borne_out) == ((), False)


def test_the_accused_can_repeat_its_case_on_its_own_machine(
    caught: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_class(monkeypatch, FAR)
    with arithmetic_of(FAR):
        own = rerun(case_in(caught))
    assert (own.here, own.differs, own.borne_out) == (FAR, ("deviation",), True)


def test_the_manifest_names_its_tolerances(story: Story) -> None:
    audit = json.loads((story.folder / "manifest.json").read_bytes())["config"]["audit"]
    assert audit["tolerance"] == [item()]
    assert audit["tolerance_cap_ppm"] == CAP
