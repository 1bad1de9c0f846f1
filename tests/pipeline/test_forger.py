"""Lies of a coordinator that rewrites a finished run and signs it again; `verify` names each.

The forger holds the coordinator's key and chain. With members' keys too: tests/pipeline/test_forger_keys.py.
The table of lies is in tests/pipeline/lies.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.run
from model.init import initial_weights
from pipeline.checkpoint import Checkpoint
from pipeline.folder import RunFolder
from tests.pipeline.forger import Forger
from tests.pipeline.forger_stage import Stage, assert_named, check, last_close, stage
from tests.pipeline.lie_changes import LAST, all_of, drop, entries, fields
from tests.pipeline.lies import LIES, STEP
from tests.tiny import copy_run, tiny_config, tiny_run
from verification.encoding import canonical_json
from verification.records import Commitment, Refusal


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Everything is audited; c03 is lazy and found out in round 1."""
    return stage(tmp_path_factory.mktemp("true"))


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """After round 1 nothing is audited."""
    audit = {"probation_rounds": 1, "second_look_ppm": 0, "rate_ppm": 0}
    return stage(tmp_path_factory.mktemp("trusting"), audit=audit)


def test_a_run_told_again_without_a_lie_is_the_same_run(true: Stage, tmp_path: Path) -> None:
    told = true.forger(tmp_path / "told").tell()
    for path in sorted(true.run.rglob("*")):
        if path.is_file():
            assert (told / path.relative_to(true.run)).read_bytes() == path.read_bytes(), path
    assert check(told, 3).ok


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named(true: Stage, tmp_path: Path, name: str) -> None:
    lie = LIES[name]
    forger = true.forger(tmp_path / "told")
    lie.tell(forger)
    answer = check(forger.tell(lie.turns, end=lie.end))
    assert_named(answer, lie.what, lie.where, alone=lie.alone)
    assert check(true.run).ok


# --- lies in files beside the log ---


def test_weights_changed_in_the_last_checkpoint_file(true: Stage, tmp_path: Path) -> None:
    told = RunFolder(copy_run(true.run, tmp_path / "told"))
    aggregator = true.forger(tmp_path / "unused").aggregator
    before = aggregator.load(told.checkpoint(3), told.outer_file(3).read_bytes())
    weights_P = before.weights_P * np.float32(1.01)
    told.put_checkpoint(3, aggregator.arrays(Checkpoint(weights_P, before.outer)), dict(before.outer))
    assert_named(
        check(told.path),
        "a checkpoint file is not what the payloads give",
        "checkpoints/round-00003.safetensors",
        alone=True,
    )
    assert check(told.path, 1).ok  # what a checkpoint holds is level 2's


def test_a_config_changed_in_manifest_json_only(true: Stage, tmp_path: Path) -> None:
    told = copy_run(true.run, tmp_path / "told")
    value = json.loads((told / "manifest.json").read_bytes())
    value["config"]["audit"]["rate_ppm"] = 0
    (told / "manifest.json").write_bytes(canonical_json(value))
    assert_named(check(told), "manifest.json is not the manifest of the log", "manifest.json", alone=True)


def test_the_manifest_of_another_run(true: Stage, trusting: Stage, tmp_path: Path) -> None:
    told = copy_run(true.run, tmp_path / "told")
    (told / "manifest.json").write_bytes((trusting.run / "manifest.json").read_bytes())
    assert_named(check(told), "manifest.json is not the manifest of the log", "manifest.json")


def test_a_second_manifest_beside_the_first(true: Stage, tmp_path: Path) -> None:
    """Only manifest.json says what the run is; its log's entry 0 has to agree, whatever lies beside it."""
    told = copy_run(true.run, tmp_path / "told")
    (told / "log" / "manifest.json").write_bytes((told / "manifest.json").read_bytes())
    assert_named(check(told), "an unexpected or stale file lies in the log", "log/manifest.json", alone=True)


def test_records_of_another_run(true: Stage, trusting: Stage, tmp_path: Path) -> None:
    other = trusting.forger(tmp_path / "unused").turns[LAST].of(Commitment)
    forger = true.forger(tmp_path / "told")
    forger.lie("commitment", LAST, lambda found, _: [other[0], *found[1:]])
    assert_named(check(forger.tell()), "the run id in the commitment is another", "commitment of round 3")


# --- lies told while the run goes on: members sign what they are shown ---


def test_another_initial_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organiser starts from weights of its own instead of those of the seed."""
    monkeypatch.setattr(
        pipeline.run, "initial_weights", lambda config, seed: initial_weights(config, seed + 1)
    )
    run = tmp_path / "run"
    tiny_run(run, tmp_path / "home", tiny_config(run={"rounds": 1}))
    assert check(run, 1).ok
    answer = check(run)
    assert_named(answer, STEP, "manifest.json, initial")
    assert answer.failures[0]["where"] == "manifest.json, initial"


def test_an_outer_state_that_was_wrong_all_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From round 1 on: what follows is consistent with it, and signed by everyone."""
    run, home = tmp_path / "run", tmp_path / "home"
    from pipeline.checkpoint import Aggregator

    true_step = Aggregator.step

    def step(self: Aggregator, before: Checkpoint, work: Any, outer_lr: str) -> Checkpoint:
        after = true_step(self, before, work, outer_lr)
        outer = {name: array * np.float32(2) for name, array in after.outer.items()}
        return Checkpoint(after.weights_P, outer)

    with monkeypatch.context() as patch:
        patch.setattr(Aggregator, "step", step)
        tiny_run(run, home, tiny_config(run={"rounds": 2}, outer={"momentum": 0.9}))
    assert check(run, 1).ok
    answer = check(run)
    first = answer.failures[0]
    assert (first["what"], first["where"]) == (
        "the outer state are not what the payloads give",
        "round 1, attempt 0",
    )
    assert_named(answer, STEP, "round 2, attempt 0")


def test_a_codec_and_a_zero_state_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.run, "arrays_digest", lambda arrays: "blake3:" + "5" * 64)
    from pipeline.run import create_run
    from tests.tiny import quiet

    run = tmp_path / "run"
    create_run(tiny_config(), RunFolder(run), tmp_path / "home", quiet)
    assert_named(check(run), "the zero state is wrong", "manifest.json, zero_state", alone=True)


# --- what level 3 is for ---


def test_a_validation_loss_made_up(true: Stage, tmp_path: Path) -> None:
    forger = true.forger(tmp_path / "told")
    fields("round-close", LAST, val_loss=1)(forger)
    told = forger.tell()
    assert check(told).ok
    assert_named(check(told, 3), "the validation loss was not measured", "round 3", alone=True)


def test_a_validation_loss_made_up_early_on_is_found_by_any_sample(trusting: Stage, tmp_path: Path) -> None:
    forger = trusting.forger(tmp_path / "told")
    fields("round-close", 0, val_loss=1)(forger)
    told = forger.tell()
    assert check(told).ok
    elsewhere = 0
    for seed in range(5):
        answer = check(told, 3, sample=1, sample_seed=seed)
        assert_named(answer, "the validation loss was not measured", "round 1", alone=True)
        elsewhere += answer.recomputed > 1  # a sample of a later round recomputes the lineage to it
    assert elsewhere


def test_an_adversary_taken_back_by_a_rewritten_start(true: Stage, tmp_path: Path) -> None:
    """Round 1 told so that c03 never failed: without its auditors' keys its work stays unaudited."""
    forger = true.forger(tmp_path / "told")
    entries("verdict", 0, drop(3))(forger)
    told = forger.tell(1, end=False)
    answer = check(told)
    assert answer.ok
    assert not answer.complete
    close = last_close(told)
    assert 3 not in [line["slot"] for line in close["accepted"]]


# --- what a folder alone cannot show ---

SILENCED: dict[str, Callable[[Forger], None]] = {
    "late": entries("commitment", LAST, drop(0)),
    "unrevealed": all_of(
        entries("reveal", LAST, drop(0)),
        fields("reveal-close", LAST, revealed=(1, 2), refused=(Refusal(0, "unrevealed"),)),
    ),
    "unserved": fields("served", LAST, served=(1, 2), unserved=(0,)),
    "unaudited": entries("verdict", LAST, drop(0)),
}


@pytest.mark.parametrize("name", SILENCED)
def test_silence_holds_but_gets_nobody_in(true: Stage, tmp_path: Path, name: str) -> None:
    """A coordinator can leave out what a member sent and say that it never came: no folder can show that.

    It costs the member its round and lets nothing in. Who saw an earlier head catches it.
    """
    head = check(true.run)
    forger = true.forger(tmp_path / "told")
    reveals = all_of(entries("reveal", LAST, drop(0)), fields("reveal-close", LAST, revealed=(1, 2)))
    if name == "late":
        reveals(forger)
    SILENCED[name](forger)
    told = forger.tell()
    answer = check(told)
    assert answer.ok, answer.failures
    close = last_close(told)
    assert [line["slot"] for line in close["accepted"]] == [1, 2]
    assert (close["rejected"][0]["slot"], close["rejected"][0]["fault"]) == (0, False)
    seen = f"{head.log_size}:{head.log_head.removeprefix('sha256:')}"
    anchored = check(told, expect_head=seen)
    assert_named(anchored, f"the log does not contain the expected head of size {head.log_size}", "log")
