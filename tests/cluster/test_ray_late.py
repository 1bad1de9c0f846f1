"""A run whose audits lag on a Ray cluster: they run beside the next turn, and outlive their auditors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Answer
from cluster.ray_pool import RayPool
from pipeline.config import Config
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run
from pipeline.verify import VerifyOptions, verify
from tests.tiny import make_run, quiet, tiny_config, tiny_run
from verification.records import Settlement, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def config() -> Config:
    return tiny_config(
        run={"rounds": 3},
        train={"steps": [2, 1]},
        audit={"rate_ppm": 1_000_000, "second_look_ppm": 1_000_000, "lag": 1},
        credit={"vest_rounds": 2},
    )


def on_ray(root: Path) -> Coordinator:
    make_run(root / "run", root / "home", config())
    return continue_run(RunFolder(root / "run"), root / "home", View(quiet, lambda *_: None), pool="ray")


def test_the_weights_are_those_of_a_local_run_though_auditors_die_over_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tiny_run(tmp_path / "local", tmp_path / "local-home", config())
    killed: list[str] = []
    plain = RayPool.begin

    def begin(
        self: RayPool, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        import ray

        begun = []
        if calls and len(killed) < 2:
            victim = calls[0][0]
            pid = ray.get(self.actors[victim].pid.remote())
            begun = plain(self, method, calls)
            os.kill(pid, signal.SIGKILL)
            killed.append(victim)
            return begun
        return plain(self, method, calls)

    monkeypatch.setattr(RayPool, "begin", begin)
    coordinator = on_ray(tmp_path)
    records = list(coordinator.desk.ledger.records())
    settled = [record for record in records if isinstance(record, Settlement)]
    assert len(killed) == 2
    assert [record.removed for record in settled] == [()] * 3
    assert sum(isinstance(record, Verdict) for record in records) == 2 * 2 * 3
    assert coordinator.state.base == local.state.base
    answer = verify(VerifyOptions(tmp_path / "run", level=2), lambda what, done, total: None)
    assert (answer.failures, answer.complete) == ([], True)
