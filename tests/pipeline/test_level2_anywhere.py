"""Level 2 on a machine with less: without the training libraries, without vector units, in plain Python.

Every round is replayed three times: by the numpy code, by the same in a process whose numpy may use nothing
beyond its baseline, and by the reference aggregator, which was written from the protocol alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.arrays import arrays_digest, unflatten
from model.init import array_specs
from pipeline.config import config_from_manifest
from pipeline.folder import RunFolder
from pipeline.verify import VerifyOptions, verify
from tests import reference_aggregator as reference
from tests.tiny import tiny_config, tiny_run
from verification.fsck import check_run

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "ray", "wandb", "datasets", "tokenizers")
BASELINE = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
SITE = f"""
import atexit, importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())

def tell():
    from numpy._core._multiarray_umath import __cpu_features__ as features
    loaded = sorted({{name.partition(".")[0] for name in sys.modules}} & set({BLOCKED!r}))
    told = {{"features": {{name: bool(features[name]) for name in features}}, "loaded": loaded}}
    print(json.dumps(told), file=sys.stderr)

atexit.register(tell)
"""
MODES: dict[str, dict[str, Any]] = {
    "local, nesterov": {"outer": {"momentum": 0.9, "lr": 0.7}},
    "gradient, adamw": {
        "train": {"mode": "gradient"},
        "outer": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    },
}


@pytest.fixture(scope="module", params=MODES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds in a mode, a lazy contributor in the first, one operator above the cap."""
    folder = tmp_path_factory.mktemp("anywhere")
    sections = {**MODES[request.param], "credit": {"operator_cap_ppm": 400_000, "vest_rounds": 1}}
    tiny_run(folder / "run", folder / "home", tiny_config(**sections), drills={"c03": "lazy"})
    return folder / "run"


def child(
    run: Path, tmp_path: Path, *options: str, **environment: str
) -> tuple[int, dict[str, Any], Any, str]:
    """Exit code, answer, what the blocker saw, stderr of `verify` in a process of its own."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "verify", str(run), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer = json.loads(done.stdout) if done.stdout.strip() else {}
    return done.returncode, answer, json.loads(done.stderr.splitlines()[-1]), done.stderr


def here(run: Path) -> dict[str, Any]:
    answer = verify(VerifyOptions(run), lambda *_: None)
    assert answer.ok
    return {name: getattr(answer, name) for name in ("weights_digest", "log_head", "run_id", "rounds")}


def test_level_2_without_the_training_libraries(run: Path, tmp_path: Path) -> None:
    code, answer, seen, said = child(run, tmp_path, "--level", "2", "--json")
    assert code == 0, said
    assert seen["loaded"] == []
    assert answer["ok"]
    assert {name: answer[name] for name in here(run)} == here(run)


def test_level_3_without_them_says_so(run: Path, tmp_path: Path) -> None:
    """Also the proof that the blocker blocks."""
    code, answer, _, said = child(run, tmp_path, "--level", "3", "--json")
    assert (code, answer) == (2, {})
    assert "barnraise[train]" in said


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86 features")
def test_level_2_without_vector_units(run: Path, tmp_path: Path) -> None:
    code, answer, seen, said = child(
        run, tmp_path, "--level", "2", "--json", NPY_DISABLE_CPU_FEATURES=BASELINE
    )
    assert code == 0, said
    assert seen["features"]["X86_V3"] is False, "the child's numpy kept its vector units"
    assert {name: answer[name] for name in here(run)} == here(run)


def test_the_reference_aggregator_gives_every_digest_of_the_log(run: Path) -> None:
    """Weights and outer state of every round, in plain Python loops, against the log's closes."""
    findings = check_run(run)
    manifest, folder = findings.manifest, RunFolder(run)
    config, arrays = manifest["config"], manifest["arrays"]
    model = config_from_manifest(config).model
    weights = reference.initial_weights(arrays, config["run"]["seed"], model.init_std, model.n_layers)
    outer = first_outer(config["outer"]["optimizer"], len(weights))
    assert digests(run, weights, outer) == manifest["initial"]
    assert len(findings.turns) == 3
    for turn in findings.turns:
        assert turn.close is not None
        operators = {line["slot"]: line["operator"] for line in turn.open["roster"]}
        accepted = [
            {
                "operator": operators[line["slot"]],
                "payload": folder.payload(line["payload"]),
                "rests_on_tolerance": False,
                "tokens": line["tokens"],
            }
            for line in turn.close["accepted"]
        ]
        caps = config["credit"]["operator_cap_ppm"], config["audit"]["tolerance_cap_ppm"]
        capped = reference.weights_of(accepted, *caps)
        assert capped == [line["weight"] for line in turn.close["accepted"]]
        assert capped != [line["tokens"] for line in turn.close["accepted"]]
        rate = float.fromhex(turn.open["outer_lr"])
        weights, outer = reference.outer_step(config, arrays, weights, outer, accepted, rate)
        claimed = {name: turn.close[name] for name in ("outer", "weights")}
        assert digests(run, weights, outer) == claimed, f"round {turn.close['round']}"
    assert findings.run_close is not None
    assert digests(run, weights, outer) == {name: findings.run_close[name] for name in ("outer", "weights")}


def first_outer(optimizer: str, length: int) -> dict[str, Any]:
    """The outer state of checkpoint 0 (section 9, 4)."""
    if optimizer == "nesterov":
        return {"momentum": [0.0] * length}
    return {"m": [0.0] * length, "v": [0.0] * length, "beta1_product": 1.0, "beta2_product": 1.0}


def digests(run: Path, weights: list[float], outer: dict[str, Any]) -> dict[str, str]:
    """Array digests of plain lists: vectors are f32, scalars f64."""
    config = config_from_manifest(json.loads((run / "manifest.json").read_bytes())["config"])
    named = unflatten(np.array(weights, dtype=np.float32), array_specs(config.model))
    state = {
        name: np.array(value, dtype=np.float32 if isinstance(value, list) else np.float64)
        for name, value in outer.items()
    }
    return {"outer": arrays_digest(state), "weights": arrays_digest(named)}
