"""A run on Ray whose members really are of two numerics classes, audited by tolerance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.numerics import THREADS, numerics_class
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.replay_work import plan_sample
from pipeline.run import View, continue_run
from pipeline.verify import VerifyOptions, verify
from tests.fresh import run_fresh
from tests.tiny import make_run, quiet, tiny_config
from verification.fsck import check_run
from verification.log import Log
from verification.records import Enrol, RoundClose, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NATIVE = "from model.numerics import *; prepare('native', THREADS); print(numerics_class('native', THREADS))"


def test_members_of_the_native_profile_are_audited_by_those_of_the_exact_one(tmp_path: Path) -> None:
    here, there = numerics_class("exact", THREADS), run_fresh(NATIVE)
    assert here != there
    limits = {"loss_ppm": 100, "norm_ppb": 200_000, "peak_ppm": 10_000, "step_milli": 1_000}
    config = tiny_config(
        run={"rounds": 2, "native": ["c00", "c02"]},
        train={"steps": [3, 2, 3], "trace_every": 1},
        audit={"second_look_ppm": 1_000_000, "tolerance": [{"classes": [here, there], **limits}]},
    )
    run, home = tmp_path / "run", tmp_path / "home"
    drills = {"c02": "lazy"}
    make_run(run, home, config)
    continue_run(RunFolder(run), home, View(quiet, lambda *_: None), pool="ray", drills=drills)

    folder = RunFolder(run)
    manifest = folder.parsed_manifest()
    log = Log.open(folder.log, manifest.origin, None, manifest.log_vkey, ())
    records = [record for record, _ in read_entries(log, manifest)]
    classes = {record.member: record.numerics_class for record in records if isinstance(record, Enrol)}
    assert classes == {"c00": there, "c01": here, "c02": there, "a00": here, "a01": here}
    closes = [record for record in records if isinstance(record, RoundClose)]
    assert [[item.member for item in close.accepted] for close in closes] == [["c00", "c01"]] * 2
    assert [(item.member, item.reason) for item in closes[0].rejected] == [("c02", "failed-audit")]
    verdicts = [record for record in records if isinstance(record, Verdict)]
    assert {bool(record.deviations) for record in verdicts if record.slot == 0} == {True}
    # Another machine's bits, or this test shows nothing.
    honest = [found for record in verdicts if record.slot == 0 for found in record.deviations]
    assert any(found.norm_ppb for found in honest), json.dumps([found.norm_ppb for found in honest])

    answer = verify(VerifyOptions(run, level=3), lambda *_: None)
    assert answer.failures == []
    assert (answer.population, answer.elsewhere, answer.recomputed) == (5, 3, 2)
    assert plan_sample(check_run(run), None, 0, there).elsewhere == 0
