"""A run's numbers through Ray's metrics port, and the Grafana page over them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster.metrics import EXPORTED, RUN, RayMetrics, samples
from pipeline.monitor import Background, Fallible
from tests.pipeline.turn_rows import row

PAGE = Path(cluster.__file__).parent / "grafana-dashboard.json"
NOW = 1_800_000_000.0


def values(line: dict[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for name, value, tags in samples(line, NOW):
        found[name, tags] = found.get((name, tags), 0) + value
    return found


def test_everything_exported_is_read_from_a_full_row_with_its_tags() -> None:
    alert = {"kind": "fault", "text": "-"}
    found = list(samples(row(2, alerts=[alert]), NOW))
    assert {name for name, _, _ in found} == set(EXPORTED)
    assert all(len(tags) == len(EXPORTED[name].tags) for name, _, tags in found)
    got = values(row(2, alerts=[alert, alert]))
    assert got["barnraise_round", ()] == 2
    assert got["barnraise_alerts_total", ("fault",)] == 2
    assert got["barnraise_contributions_total", ("c1", "failed-audit")] == 1
    assert got["barnraise_contributor_loss_nats", ("c0",)] == 4.5
    assert got["barnraise_work_seconds", ("c0",)] == 0.9
    assert got["barnraise_machine_up", ("host-2.example",)] == 0
    assert got["barnraise_machine_cpu_cores", ("host-1.example",)] == 0.5
    assert got["barnraise_verdicts_total", ("fail",)] == 1
    assert got["barnraise_turn_time_seconds", ()] == NOW
    assert ("barnraise_turns_total", ("void",)) in values(row(3, accepted=[]))


def test_a_row_without_the_new_fields_is_taken() -> None:
    plain = row(1, loss=None, val_loss=None)
    for name in ("phases", "work_ms", "nodes", "alerts", "contributors", "verdicts"):
        del plain[name]
    assert "barnraise_train_loss_nats" not in {name for name, _, _ in samples(plain, NOW)}


def test_names_are_as_prometheus_wants_them() -> None:
    units = ("_seconds", "_bytes", "_tokens", "_nats", "_members", "_cores")
    for name, one in EXPORTED.items():
        assert re.fullmatch(r"barnraise_[a-z_]+", name)
        assert name.endswith("_total") == (one.kind == "counter"), name
        assert RUN not in one.tags
        if one.kind == "gauge":
            assert name.endswith((*units, "_round", "_up")), name


def expressions(page: Any) -> list[str]:
    """Every query in a Grafana page: of panels, and of the variables they are filtered by."""
    if isinstance(page, dict):
        own = [page[key] for key in ("expr", "definition") if isinstance(page.get(key), str)]
        return own + [found for value in page.values() for found in expressions(value)]
    return [found for value in page for found in expressions(value)] if isinstance(page, list) else []


def test_the_page_draws_every_metric_and_no_other() -> None:
    text = PAGE.read_text()
    page = json.loads(text)
    drawn = {name for query in expressions(page) for name in re.findall(r"ray_[a-z_]+", query)}
    assert drawn == {one.prometheus_name for one in EXPORTED.values()}
    assert set(re.findall(r"ray_[a-z_]+", text)) == drawn
    for query in expressions(page):
        names = re.findall(r"ray_(barnraise_[a-z_]+)", query)
        tags = {tag for name in names for tag in EXPORTED[name].tags} | {RUN}
        assert set(re.findall(r"by \((\w+)\)", query)) <= tags
        assert set(re.findall(r"(\w+)=~?\"", query)) <= tags
    panels = [panel for panel in page["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    for panel in panels:
        labels = re.findall(r"{{(\w+)}}", " ".join(target["legendFormat"] for target in panel["targets"]))
        names = re.findall(r"ray_(barnraise_[a-z_]+)", json.dumps(panel["targets"]))
        assert set(labels) <= {RUN} | {tag for name in names for tag in EXPORTED[name].tags}


def test_the_page_is_what_rays_own_pages_are() -> None:
    """It is loaded as they are, and finds its data by the same variable."""
    page = json.loads(PAGE.read_text())
    (source,) = [item for item in page["templating"]["list"] if item["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    assert all(panel.get("datasource", "${datasource}") == "${datasource}" for panel in page["panels"])
    assert page["uid"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_value_is_read_from_the_metrics_port_of_the_drivers_node() -> None:
    from cluster.ray_pool import RayPool

    pool = RayPool({}, {})
    try:
        import ray

        said: list[str] = []
        sink = Fallible("prometheus", lambda: RayMetrics("a run", lambda: NOW), said.append)
        for number in (1, 2):
            sink.turn(row(number))
        sink.close()
        assert said == []
        (node,) = ray.nodes()
        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        wanted = {
            "ray_barnraise_tokens{": 20.0,
            "ray_barnraise_accepted_tokens_total{": 20.0,
            "ray_barnraise_contributor_loss_nats{": 4.5,
        }
        for _ in range(120):  # Ray exports every ten seconds
            with urllib.request.urlopen(where, timeout=30) as answer:
                text = answer.read().decode()
            lines = [line for line in text.splitlines() if line.startswith("ray_barnraise_")]
            if all(any(line.startswith(name) for line in lines) for name in wanted):
                break
            time.sleep(0.5)
        for name, value in wanted.items():
            (line,) = [line for line in lines if line.startswith(name)]
            assert 'run="a run"' in line
            assert float(line.rsplit(" ", 1)[1]) == value
        found = {re.match(r"ray_barnraise_\w+", line)[0] for line in lines}  # type: ignore[index]
        fed = {EXPORTED[name].prometheus_name for name, value, _ in samples(row(2), NOW) if value}
        assert fed <= found
    finally:
        pool.close()


def test_it_is_a_view_like_others() -> None:
    sink = RayMetrics("a run")
    sink.note("numbers only")
    view = Background(sink, patience_s=1, finish_s=5)
    view.close()
    assert sink._made == {}
