"""Whole runs on Ray, killed: members and drivers die, the weights are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Answer
from cluster.ray_pool import RayPool
from pipeline.config import Config
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run
from pipeline.verify import VerifyOptions, verify
from tests.tiny import make_run, quiet, tiny_config, tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROUNDS = 5
# (method, how many times it was called): who is killed just before the call goes out.
MEMBER_KILLS = {
    ("commit", 1): "c00",
    ("reveal", 2): "c01",
    ("serve_state", 2): "c00",
    ("audit", 3): "a00",
    ("commit", 4): "c01",
    ("audit", 6): "a01",
}


def config() -> Config:
    return tiny_config(run={"rounds": ROUNDS}, train={"steps": [2, 1]}, audit={"second_look_ppm": 500_000})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    return tiny_run(folder / "run", folder / "home", config()).state.base.weights


def checked(run: Path) -> str:
    answer = verify(VerifyOptions(run, level=2), lambda what, done, total: None)
    assert (answer.failures, answer.complete) == ([], True)
    return answer.weights_digest


def test_ray_and_local_pools_give_equal_weights_though_members_are_killed(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}
    killed: list[str] = []
    plain = RayPool.call

    def call(
        self: RayPool, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        if arguments:
            asked[method] = asked.get(method, 0) + 1
        victim = MEMBER_KILLS.get((method, asked.get(method, 0))) if arguments else None
        if victim:
            # Which auditor is drawn is by lot: kill one that is asked.
            victim = victim if victim in arguments else next(iter(arguments))
            import ray

            os.kill(ray.get(self.actors[victim].pid.remote()), signal.SIGKILL)
            killed.append(f"{method} {victim}")
        return plain(self, method, arguments, deadline_ms=deadline_ms)

    monkeypatch.setattr(RayPool, "call", call)
    make_run(tmp_path / "run", tmp_path / "home", config())
    rejected: list[object] = []
    continue_run(
        RunFolder(tmp_path / "run"),
        tmp_path / "home",
        View(quiet, lambda close, coordinator, seconds: rejected.extend(close.rejected)),
        pool="ray",
    )
    assert len(killed) >= 6
    assert rejected == []
    answer = verify(VerifyOptions(tmp_path / "run", level=1), lambda what, done, total: None)
    assert (answer.failures, answer.complete) == ([], True)
    assert answer.weights_digest == undisturbed


def test_a_driver_killed_three_times_ends_with_the_same_weights(tmp_path: Path, undisturbed: str) -> None:
    make_run(tmp_path / "run", tmp_path / "home", config())
    dice = random.Random(11)
    done: list[int] = []
    for kill in range(3):
        driver = start_driver(tmp_path)
        assert driver.stdout is not None
        line = driver.stdout.readline()
        done.append(json.loads(line)["round"])
        time.sleep(dice.uniform(0.0, 0.25))
        driver.kill()
        driver.wait(timeout=30)
        assert driver.returncode == -signal.SIGKILL, kill
        driver.stdout.close()
    assert done == sorted(set(done))
    assert done[-1] < ROUNDS
    last = start_driver(tmp_path)
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output
    assert checked(tmp_path / "run") == undisturbed


def start_driver(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", "resume", str(folder / "run"), "--json"]
    return subprocess.Popen(
        [*command, "--pool", "ray", "--home", str(folder / "home")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
