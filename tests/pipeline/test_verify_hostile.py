"""Manifests that were signed to do harm: `verify` answers, and allocates no more than the run is worth."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.verify_tools import asked, check, signed_manifest
from verification.encoding import blake3_digest, hash_object
from verification.errors import UsageError


def test_a_signed_manifest_alone_holds(run: Path, home: Path, tmp_path: Path) -> None:
    answer = check(signed_manifest(run, home, tmp_path / "run", lambda value: None), 3)
    assert (answer.ok, answer.rounds) == (True, 0), answer.failures


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every leaf."""
    if not isinstance(value, (dict, list)) or not value:
        return [at]
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, item in inside for place in places(item, (*at, key))]


HOSTILE: list[Any] = [
    None, True, 0, 1, -1, 7, 2**53 - 1, "", "x", "0x1.8p+1", "0x1.0p+1023", "-0x1.0p+0", "0x0.0p+0", [], {},
    [0], [2**53 - 1],
]  # fmt: skip


@pytest.mark.slow
def test_hostile_manifests_never_raise(run: Path, home: Path, tmp_path: Path) -> None:
    """Every leaf of the configuration and arrays in turn, signed: an answer or UsageError, nothing else."""
    true = json.loads((run / "manifest.json").read_bytes())
    dice = random.Random(11)
    paths = [p for p in places(true) if p[0] in ("config", "arrays", "initial", "zero_state", "codec")]
    told = tmp_path / "run"
    for path in paths:
        for value in dice.sample(HOSTILE, 1):
            changed = copy.deepcopy(true)
            here = changed
            for key in path[:-1]:
                here = here[key]
            if here[path[-1]] == value:
                continue
            here[path[-1]] = value
            shutil.rmtree(told, ignore_errors=True)

            def put(target: dict[str, Any], changed: dict[str, Any] = changed) -> None:
                target.clear()
                target.update(changed)

            try:
                answer = check(signed_manifest(run, home, told, put))
            except UsageError as error:
                pytest.fail(f"{path} = {value!r}: exit code 2 for a run of this protocol: {error}")
            assert all(f["what"] and f["where"] for f in answer.failures), (path, value)
            if path[:2] == ("config", "model") and path[2] not in ("rope_theta", "norm_eps"):
                assert not answer.ok, (path, value)


def test_a_configuration_that_is_none_is_a_failure(
    run: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(value: dict[str, Any]) -> None:
        value["config"]["model"]["n_heads"] = 0

    folder = signed_manifest(run, home, tmp_path / "run", spoil)
    code, answer = asked(capsys, str(folder))
    assert code == 1
    assert any("configuration" in f["what"] for f in answer["failures"]), answer["failures"]


def test_a_model_too_large_for_its_checkpoint_is_refused_before_it_is_drawn(
    run: Path, home: Path, tmp_path: Path
) -> None:
    """A manifest of a kilobyte must not make the verifier allocate gigabytes."""

    def huge(value: dict[str, Any]) -> None:
        size = 65536
        for part in ("model", "data"):
            value["config"][part]["vocab_size"] = size
        value["dataset"]["vocab_size"] = size
        rest = {name: item for name, item in value["dataset"].items() if name != "root"}
        value["dataset"]["root"] = hash_object("barnraise/dataset/v1", rest)
        value["arrays"][0][1][0] = size

    [failure] = check(signed_manifest(run, home, tmp_path / "run", huge)).failures
    assert failure["what"] == "checkpoint 0 is too small for the manifest's arrays"
    assert failure["where"] == "checkpoints/round-00000.safetensors"


def test_a_model_of_more_layers_than_arrays_is_refused_before_they_are_listed(
    run: Path, home: Path, tmp_path: Path
) -> None:
    def deep(value: dict[str, Any]) -> None:
        value["config"]["model"]["n_layers"] = 2**40

    answer = check(signed_manifest(run, home, tmp_path / "run", deep))
    assert not answer.ok


def test_shards_that_are_no_shards(run: Path, home: Path, tmp_path: Path) -> None:
    """Their digests are right: whoever made the run made them so."""
    junk = b"ARROW1\0\0" + b"not a table" * 99

    def spoil(value: dict[str, Any]) -> None:
        for part in ("train", "validation"):
            for shard in value["dataset"][part]:
                shard["digest"] = blake3_digest(junk)
        rest = {name: item for name, item in value["dataset"].items() if name != "root"}
        value["dataset"]["root"] = hash_object("barnraise/dataset/v1", rest)

    folder = signed_manifest(run, home, tmp_path / "run", spoil)
    for path in (folder / "data").glob("*.arrow"):
        path.write_bytes(junk)
    assert check(folder, 2).ok  # levels 1 and 2 read no window
    answer = check(folder, 3)
    assert not answer.ok
    assert answer.failures[0]["what"]
