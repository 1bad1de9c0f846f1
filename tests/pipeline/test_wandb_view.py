"""What wandb is told and asked, with another in its place; and that its troubles stay its own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline import wandb_view as view
from pipeline.charts import CONTRIBUTIONS, TABLES, VERDICTS
from pipeline.monitor import Background, Fallible, MetricsFile, Monitor
from pipeline.wandb_view import TABLE_ROWS, Wandb, logged_in, wandb_id
from tests.pipeline.turn_rows import row
from tests.verification.fake_run import manifest

KEY = "a" * 40


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a wandb key."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def test_without_a_key_nobody_is_logged_in(
    nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not logged_in()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "nobody" / ".netrc").chmod(0o600)
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080/")
    assert not logged_in()
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert logged_in()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not logged_in()


class FakeRun:
    """What `Wandb` uses of a wandb run."""

    url = "https://wandb.example/run"

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.offline = mode == "offline"
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.finished = 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        del name, step_metric

    def log(self, values: dict[str, Any], step: int | None = None, *, commit: bool = True) -> None:
        assert commit
        assert (step is None) == (self.mode == "shared")
        assert all((step or 0) > before for before, _ in self.logged) or step is None
        self.logged.append((step or 0, values))

    def alert(self, title: str, text: str, level: str, wait_duration: int) -> None:
        assert wait_duration > 0
        self.alerts.append((title, text, level))

    def finish(self) -> None:
        self.finished += 1


class FakeModule(ModuleType):
    """In place of wandb: each call of `init` does what `on_init` says, with the mode."""

    def __init__(self, on_init: Callable[[str], FakeRun] = FakeRun) -> None:
        super().__init__("wandb")
        self.modes: list[str] = []
        self.runs: list[FakeRun] = []
        self._on_init = on_init
        self.Settings = SimpleNamespace
        self.torn_down = 0

    def setup(self, settings: Any) -> None:
        assert settings.silent

    def teardown(self) -> None:
        self.torn_down += 1

    def init(self, mode: str, **options: Any) -> FakeRun:
        assert (options["id"], options["resume"]) == (wandb_id(manifest()), "allow")
        self.modes.append(mode)
        assert hasattr(options["settings"], "x_primary") == (mode == "shared")
        self.runs.append(self._on_init(mode))
        return self.runs[-1]

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:  # noqa: N802
        return columns, data


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeModule], FakeModule]:
    def place(module: FakeModule) -> FakeModule:
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return place


def test_steps_follow_round_and_attempt_and_tables_are_bounded(
    nobody: None, put: Callable[[FakeModule], FakeModule], tmp_path: Path
) -> None:
    module = put(FakeModule())
    earlier = [{"round": "nonsense", "contributors": 3}, *map(row, range(1, TABLE_ROWS + 1))]
    sink = Wandb(tmp_path, manifest(), lambda text: None, earlier)
    alert = {"kind": "stall", "text": "nothing came"}
    sink.turn(row(5, accepted=[]))
    sink.turn(row(5, attempt=1, alerts=[alert, {**alert, "kind": "fault"}]))
    sink.turn(row(6))
    sink.close()
    sink.close()
    (run,) = module.runs
    attempts = manifest().config["run"]["max_void"] + 1
    steps = [2 * 5 * attempts, 2 * (5 * attempts + 1), 2 * 6 * attempts]
    assert [step for step, _ in run.logged] == [*steps, steps[-1] + 1]
    assert [name for name, _, _ in run.alerts] == ["stall: fake", "fault: fake"]
    assert [level for _, _, level in run.alerts] == ["ERROR", "WARN"]
    columns, data = run.logged[-1][1][CONTRIBUTIONS]
    assert (tuple(columns), len(data)) == (TABLES[CONTRIBUTIONS], TABLE_ROWS)
    assert data[-1][0] == 6
    assert run.finished == 1


def test_tables_are_logged_now_and_then_and_may_fail(
    nobody: None,
    put: Callable[[FakeModule], FakeModule],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    module = put(FakeModule())
    monkeypatch.setattr(view, "TABLE_EVERY", 2)
    sink = Wandb(tmp_path, manifest(), lambda text: None)
    for round_ in range(1, 5):
        sink.turn(row(round_))
    sink.close()
    assert [VERDICTS in values for _, values in module.runs[0].logged] == [False, False, True] * 2

    def unreachable(columns: list[str], data: list[list[Any]]) -> None:
        raise ConnectionError

    monkeypatch.setattr(module, "Table", unreachable)
    sink = Wandb(tmp_path, manifest(), lambda text: None)
    for round_ in range(5, 8):
        sink.turn(row(round_))
    sink.close()
    assert len(module.runs[1].logged) == 3
    assert module.runs[1].finished == 1


def test_who_is_logged_in_is_online_and_offline_when_that_fails(
    nobody: None,
    put: Callable[[FakeModule], FakeModule],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    told: list[str] = []
    module = put(FakeModule())
    sink = Wandb(tmp_path, manifest(), told.append)
    sink.turn(row(1))
    sink.close()
    assert (module.modes, told) == (["online"], ["wandb: https://wandb.example/run"])

    def unreachable(mode: str) -> FakeRun:
        if mode != "offline":
            raise ConnectionError("no route\nat all")
        return FakeRun(mode)

    module = put(FakeModule(unreachable))
    told.clear()
    sink = Wandb(tmp_path, manifest(), told.append)
    sink.turn(row(1))
    sink.close()
    assert (module.modes, module.torn_down) == (["online", "offline"], 1)
    assert told[0] == "wandb cannot be reached (no route); the run is written offline"
    assert len(module.runs[0].logged) == 2


def test_with_other_machines_a_run_is_shared_and_offline_it_is_as_ever(
    nobody: None,
    put: Callable[[FakeModule], FakeModule],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for key, mode in ((KEY, "shared"), ("", "offline")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        module = put(FakeModule())
        sink = Wandb(tmp_path, manifest(), lambda text: None, shared=True)
        sink.turn(row(1))
        sink.turn(row(2))
        sink.close()
        assert module.modes == [mode]
        assert len(module.runs[0].logged) == 3


def test_a_server_that_does_not_take_the_end_is_told_with_what_to_do(
    nobody: None, put: Callable[[FakeModule], FakeModule], tmp_path: Path
) -> None:
    class Stuck(FakeRun):
        def finish(self) -> None:
            raise TimeoutError("timed out")

    put(FakeModule(Stuck))
    told: list[str] = []
    sink = Wandb(tmp_path, manifest(), told.append)
    sink.turn(row(1))
    sink.close()
    (text,) = told
    assert text.endswith(f"wandb sync --include-online {tmp_path / 'wandb'}")


@pytest.mark.parametrize("trouble", ["hangs", "raises"])
def test_a_wandb_that_hangs_or_raises_ends_alone(
    nobody: None, put: Callable[[FakeModule], FakeModule], tmp_path: Path, trouble: str
) -> None:
    free, raised = threading.Event(), threading.Event()

    def on_init(mode: str) -> FakeRun:
        if trouble == "hangs":
            free.wait(60)
        raised.set()
        raise RuntimeError("broken")

    put(FakeModule(on_init))
    said: list[str] = []
    sink = Fallible(
        "wandb",
        lambda: Background(Wandb(tmp_path, manifest(), said.append), patience_s=0.2, finish_s=0.2),
        said.append,
    )
    began = time.monotonic()
    sink.turn(row(1))
    time.sleep(0.4)
    sink.turn(row(2))
    sink.close()
    assert time.monotonic() - began < 10
    why = "no answer for 0.2 s" if trouble == "hangs" else "broken"
    assert said == [f"wandb stops here ({why}); the run goes on without it"]
    free.set()
    assert raised.wait(30)


def test_a_run_that_shows_nothing_leaves_nothing(nobody: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitor = Monitor([MetricsFile(run), view.wandb_view(run, manifest(), lambda text: None)])
    monitor.close()
    assert not run.exists()
