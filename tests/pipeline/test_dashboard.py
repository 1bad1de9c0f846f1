"""The workspace: it draws what is charted, and is saved or written."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.charts import FAMILIES, METRICS, TABLES, X_AXIS, values_of
from pipeline.dashboard import SECTIONS, Chart, DashboardOptions, as_json, charted, command, workspace
from tests.pipeline.turn_rows import row
from verification.errors import StorageError, UsageError

pages = pytest.importorskip("wandb_workspaces.workspaces")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a wandb key."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def test_every_panel_draws_something_that_is_charted_and_nothing_is_forgotten() -> None:
    known = {*METRICS, *FAMILIES, *TABLES}
    assert charted() <= known
    # The number of the round and a machine's own flag are there for whoever looks for them.
    assert known - charted() == {"round", "node/*/alive"}
    charts = [one for content in SECTIONS.values() for one in content if isinstance(one, Chart)]
    assert all(len(one.metrics) == 1 for one in charts if any(name in FAMILIES for name in one.metrics))
    assert len({one.title for one in charts}) == len(charts)


def drawn(page: dict[str, Any]) -> list[tuple[str, set[str]]]:
    """Of every line plot in the JSON: its x-axis, and which names of a full row it draws."""
    logged = set(values_of(row(1)))
    found = []
    for section in page["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            if panel["viewType"] == "Run History Line Plot":
                config = panel["config"]
                names = set(config["metrics"])
                if config.get("useMetricRegex"):
                    names |= {name for name in logged if re.search(config["metricRegex"], name)}
                found.append((config["xAxis"], names))
    return found


def test_the_json_names_metrics_that_a_run_logs() -> None:
    page = json.loads(as_json(workspace("someone", "barnraise")))
    lines = drawn(page)
    logged = set(values_of(row(1)))
    assert len(lines) == sum(isinstance(one, Chart) for content in SECTIONS.values() for one in content)
    assert all(axis == X_AXIS for axis, _ in lines)
    assert all(names and names <= logged for _, names in lines)
    sections = page["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections if section["panels"]] == list(SECTIONS)
    text = json.dumps(page)
    assert all(table in text for table in TABLES)


def test_the_json_is_read_back_as_the_same_workspace() -> None:
    from wandb_workspaces.workspaces import internal

    made = workspace("someone", "barnraise")
    text = as_json(made)
    view = internal.View.model_validate_json(text)
    again = pages.Workspace._from_model(view)
    assert (again.entity, again.project, again.name) == ("someone", "barnraise", "barnraise")
    assert [section.name for section in again.sections][: len(SECTIONS)] == list(SECTIONS)
    assert drawn(json.loads(as_json(again))) == drawn(json.loads(text))


def test_out_writes_the_file(tmp_path: Path) -> None:
    out = io.StringIO()
    path = tmp_path / "page.json"
    assert command(DashboardOptions("someone", out=path), Console(file=out, width=200)) == 0
    assert json.loads(path.read_text())["entity"] == "someone"
    assert str(path) in out.getvalue()
    with pytest.raises(StorageError):
        command(DashboardOptions("someone", out=path / "page.json"), Console(file=out))


def test_without_a_key_or_the_package_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="logged in") as refused:
        command(DashboardOptions("someone"), Console(file=io.StringIO()))
    assert "--out" in str(refused.value)
    assert cli.run(["dashboard", "--entity", "someone"]) == 2
    assert "wandb login" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UsageError, match="wandb-workspaces") as missing:
        command(DashboardOptions("someone", out=tmp_path / "page.json"), Console(file=io.StringIO()))
    assert missing.value.hint == "pip install 'barnraise[dashboard]'"
    assert not (tmp_path / "page.json").exists()


def test_who_is_logged_in_saves_it_and_hears_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    saved: list[Any] = []

    def save(self: Any) -> Any:
        saved.append(self)
        return self

    monkeypatch.setattr(pages.Workspace, "save", save)
    monkeypatch.setattr(pages.Workspace, "url", "https://wandb.example/me/barnraise?nw=1")
    out = io.StringIO()
    assert command(DashboardOptions("me", "other"), Console(file=out, width=200)) == 0
    assert [(one.entity, one.project) for one in saved] == [("me", "other")]
    assert "https://wandb.example/me/barnraise?nw=1" in out.getvalue()

    def refuse(self: Any) -> Any:
        raise ConnectionError("permission denied\nask somebody")

    monkeypatch.setattr(pages.Workspace, "save", refuse)
    with pytest.raises(UsageError, match="did not take") as refused:
        command(DashboardOptions("me", "other"), Console(file=out))
    assert "permission denied" in str(refused.value)
    assert "ask somebody" not in str(refused.value)
