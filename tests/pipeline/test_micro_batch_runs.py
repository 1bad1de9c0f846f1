"""Runs in which contributors take fewer windows at once: auditors take as many, whatever they would else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.contributor import Contributor
from tests.pipeline.adversary_runs import Story, tell
from tests.pipeline.segment_runs import LIAR, SLOT, check, config, turns
from verification.records import RosterEntry

SIZES = [2, 1, 2, 1]


def told(folder: Path) -> Story:
    return tell(folder, config(run={"rounds": 1}, train={"micro_batch": SIZES}), {})


def test_each_ones_parts_stand_in_the_open_and_its_auditors_find_the_same_bits(tmp_path: Path) -> None:
    story = told(tmp_path)
    (turn,) = turns(story)
    assert [entry.micro_batch for entry in turn.open.roster] == SIZES
    assert turn.rejected == {}
    assert {verdict.outcome for verdict in turn.verdicts} == {"pass"}
    assert check(story.folder, 3).failures == []


def test_who_takes_other_parts_than_the_open_says_has_other_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Contributor.compute

    def at_once(self: Contributor, open_: Any, entry: RosterEntry, *rest: Any) -> Any:
        other = replace(entry, micro_batch=2) if self.name == LIAR else entry
        return compute(self, open_, other, *rest)

    monkeypatch.setattr(Contributor, "compute", at_once)
    story = told(tmp_path)
    (turn,) = turns(story)
    assert turn.rejected == {SLOT: "failed-audit"}
