"""Machines join the driver's wandb run, where they may, and nobody waits for them."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cluster.wandb_nodes import MACHINE, NodeRecorders, Recorder


def yes() -> bool:
    return True


def no() -> bool:
    return False


class FakeModule(ModuleType):
    """In place of wandb: keeps what a run was begun with."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.Settings = SimpleNamespace

    def setup(self, settings: Any) -> None:
        assert settings.silent

    def init(self, **options: Any) -> None:
        self.begun.append(options)


def test_a_machine_joins_as_a_second_writer_that_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule()
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert not Recorder("id", "project", "host-1", no).begin()
    assert module.begun == []
    assert Recorder("id", "project", "host-1", yes).begin()
    (options,) = module.begun
    assert (options["id"], options["project"], options["mode"]) == ("id", "project", "shared")
    settings = options["settings"]
    assert settings.x_label == "host-1"
    assert not settings.x_primary
    assert not settings.x_update_finish_state


@pytest.mark.slow
@pytest.mark.ray
def test_each_node_but_the_drivers_own_has_one_and_a_new_node_gets_one() -> None:
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        view = NodeRecorders("id", "project", no)
        view.turn({})
        assert view.actors == {}
        added = nodes.add_node(num_cpus=1, labels={MACHINE: "host-1"})
        view.turn({})
        assert list(view.actors) == [added.node_id]
        (actor,) = view.actors.values()
        assert ray.get(actor.begin.remote(), timeout=120) is False
        view.turn({})
        assert list(view.actors.values()) == [actor]
        nodes.remove_node(added, allow_graceful=False)
        for _ in range(120):
            view.turn({})
            if not view.actors:
                break
            time.sleep(0.5)
        assert view.actors == {}
        view.close()
    finally:
        ray.shutdown()
        nodes.shutdown()
