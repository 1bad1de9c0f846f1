"""Whole tiny runs in which an auditor passes by tolerance what it did not look at, in several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.panel
from model.local_steps import _Work
from pipeline import replay_work, step_audit
from pipeline.auditor import Auditor
from pipeline.sketch import Sketcher
from pipeline.step_audit import repeat_steps
from pipeline.work import run_segments
from tests.pipeline.adversary_runs import Story
from tests.pipeline.segment_runs import SLOT, check, turns
from tests.pipeline.tolerance_runs import FAR, arithmetic_of, tolerant_run
from verification.tolerance import NO_SKETCH, Sketch

STAMP = "a01"
Teller = Callable[..., Sequence[Sketch]]


def nothing(self: Auditor, case: Any, audit: Any, segments: Sequence[int], opened: Any) -> Sequence[Sketch]:
    del self, case, audit, opened
    return [NO_SKETCH] * len(segments)


def moment(self: Auditor, case: Any, audit: Any, segments: Sequence[int], opened: Any) -> Sequence[Sketch]:
    """Takes the gradient for its running mean, which is served."""
    found = []
    for segment in segments:
        start = step_audit.start_of(case, segment, step_audit.opened_points(case, segments, opened))
        zero = {"adam_m": np.zeros_like(start.state["adam_m"])}
        sketcher = Sketcher(case.job.config.train, audit.seed, case.entry.slot)
        found.append(sketcher.of(segment, zero, start.state))
    return found


def half_a_batch(
    self: Auditor, case: Any, audit: Any, segments: Sequence[int], opened: Any
) -> Sequence[Sketch]:
    """Takes the gradient of the first windows of the batch for that of all."""
    del self

    class Half:
        def batches(self, *arguments: Any) -> Any:
            batches_SBT = case.data.batches(*arguments)
            batches_SBT[:, batches_SBT.shape[1] // 2 :] = batches_SBT[:, : batches_SBT.shape[1] // 2]
            return batches_SBT

    return [step.sketch for step in repeat_steps(replace(case, data=Half()), audit, segments, opened)]


TELLERS: dict[str, Teller] = {"nothing": nothing, "moment": moment, "half a batch": half_a_batch}


def stamping(patch: pytest.MonkeyPatch, tell: Teller | None) -> None:
    """a01 passes by tolerance whatever there is; `tell` None: it tells and states what the step came to."""
    tells, computes = Auditor.sketches, Auditor.compute

    def telling(self: Auditor, *arguments: Any) -> Sequence[Sketch]:
        if self.name != STAMP or tell is None:
            return tells(self, *arguments)
        self.told = getattr(self, "told", {})  # type: ignore[attr-defined]
        found = tell(self, *arguments)
        self.told |= dict(zip(arguments[2], found, strict=True))  # type: ignore[attr-defined]
        return found

    def stating(self: Auditor, case: Any, audit: Any, opened: Any) -> Any:
        found = computes(self, case, audit, opened)
        if self.name != STAMP or tell is None or not audit.tolerant:
            return found
        invented = [
            replace(deviation, loss_ppm=1, norm_ppb=2_000, peak_ppm=3, step_milli=200, sketch=self.told[s])  # type: ignore[attr-defined]
            for s, deviation in zip(audit.segments, found.deviations, strict=True)
        ]
        return replace(found, deviations=tuple(invented))

    patch.setattr(Auditor, "sketches", telling)
    patch.setattr(Auditor, "compute", stating)


def told_run(folder: Path, tell: Teller | None, **sections: Any) -> Story:
    with pytest.MonkeyPatch.context() as patch:
        stamping(patch, tell)
        return tolerant_run(folder, run={"rounds": 1}, **sections)


def who_judged(story: Story) -> set[str]:
    (turn,) = turns(story)
    return {verdict.auditor for verdict in turn.verdicts if verdict.slot == SLOT}


@pytest.mark.parametrize("kind", TELLERS)
@pytest.mark.parametrize("segments", [1, 0])
def test_a_stamp_by_tolerance_never_reaches_the_log(kind: str, segments: int, tmp_path: Path) -> None:
    """Of one step as of all; there only the first of each unbroken run starts where nothing was shown."""
    story = told_run(tmp_path, TELLERS[kind], audit={"segments": segments})
    assert STAMP not in who_judged(story)
    (turn,) = turns(story)
    assert STAMP in {item.auditor for item in turn.close.missed if item.slot == SLOT}
    assert check(story.folder, 2).failures == []


def test_an_honest_one_in_its_place_does(tmp_path: Path) -> None:
    assert STAMP in who_judged(told_run(tmp_path, None))


@pytest.fixture(scope="module")
def friendly(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A run whose coordinator takes a stamp's verdicts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.panel, "check_sketches", lambda *_: None)
        return told_run(tmp_path_factory.mktemp("friend"), half_a_batch)


def test_level_3_finds_a_stamp_that_the_coordinator_let_through(
    friendly: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STAMP in who_judged(friendly)
    assert check(friendly.folder, 2).failures == []
    monkeypatch.setattr("model.numerics.numerics_class", lambda *_: FAR)
    monkeypatch.setattr(replay_work, "numerics_class", lambda *_: FAR)
    with arithmetic_of(FAR):
        answer = check(friendly.folder)
    told = [failure["what"] for failure in answer.failures if failure["where"].find(f"slot {SLOT}") > 0]
    assert told == [f"the verdict of {STAMP} passes steps whose gradients it has not seen"]


def test_steps_that_were_told_of_are_not_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []

    def counted(*arguments: Any) -> Any:
        taken.append(arguments[-1])
        return run_segments(*arguments)

    monkeypatch.setattr(step_audit, "run_segments", counted)
    (turn,) = turns(tolerant_run(tmp_path, run={"rounds": 1}))
    assert len([v for v in turn.verdicts if v.slot == SLOT]) == 2
    assert len(taken) == 2 * len(turn.drawn[SLOT])
    monkeypatch.setattr("pipeline.auditor.KEPT_BYTES", 0)
    taken.clear()
    (turn,) = turns(tolerant_run(tmp_path / "again", run={"rounds": 1}))
    assert len(taken) == 4 * len(turn.drawn[SLOT])  # where there is no room for what they came to, they are
    assert turn.rejected == {}


@pytest.mark.parametrize("kind", ["nothing", "half a batch"])
def test_nor_where_audits_lag(kind: str, tmp_path: Path) -> None:
    """First looks by tolerance are over before the next round; nobody who was refused is asked again."""
    with pytest.MonkeyPatch.context() as patch:
        stamping(patch, TELLERS[kind])
        story = tolerant_run(tmp_path, audit={"lag": 1}, credit={"vest_rounds": 3})
    for turn in turns(story):
        assert STAMP not in {verdict.auditor for verdict in turn.verdicts if verdict.slot == SLOT}
    assert any(record.kind == "settlement" for record in story.coordinator.desk.ledger.records())
    assert check(story.folder, 2).failures == []


def test_work_without_a_gradient_is_passed_by_nobody(tmp_path: Path) -> None:
    """Where a lazy contributor's zeros are, a lazy auditor's zeros are too."""
    compute = _Work.compute_gradient

    def idle(self: _Work, tokens_BT: Any, micro_batch: int) -> int:
        loss = compute(self, tokens_BT, micro_batch)
        self.gradient_P.zero_()
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Work, "compute_gradient", idle)
        story = tolerant_run(tmp_path, run={"rounds": 1})
    (turn,) = turns(story)
    assert [verdict for verdict in turn.verdicts if verdict.slot == SLOT] == []
    assert turn.rejected[SLOT] == "unaudited"
