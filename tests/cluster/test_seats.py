"""Members in seats of machines, on a Ray cluster of several nodes: where they land, what goes with a node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import ray_pool
from cluster.pool import Machine, Seat
from cluster.ray_pool import MACHINE, MOST_SEATS, OPERATOR, RayPool

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STORE = 80 << 20
# A worker's parent is its node's raylet. Everything is pickled by name: workers need no test module.
plain = partial(SimpleNamespace, where=os.getppid, sleep=time.sleep, leave=os._exit)


class Machines:
    """A cluster whose nodes have names."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_system_config": {**quick, "health_check_failure_threshold": 3},
            },
        )
        self.nodes: dict[str, Any] = {}

    def join(self, name: str, operator: str | None = None, **seats: int) -> None:
        labels = {MACHINE: name, **({OPERATOR: operator} if operator else {})}
        self.nodes[name] = self.cluster.add_node(
            num_cpus=1, object_store_memory=STORE, resources=seats, labels=labels
        )

    def lose(self, name: str) -> None:
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def raylet(self, name: str) -> int:
        (process,) = self.nodes[name].all_processes["raylet"]
        return int(process.process.pid)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    made.join("m1", contributor=2, auditor=1)
    made.join("m2", "acme", contributor=1)
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def pool(machines: Machines) -> Iterator[RayPool]:
    made = RayPool({"anywhere": plain}, {}, address=machines.cluster.address)
    until(lambda: len(made.machines()) == 2)
    yield made
    made.close()


def until(done: Callable[[], object], limit_s: float = 30.0) -> None:
    stop = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < stop
        time.sleep(0.1)


def test_machines_offer_their_seats_and_members_land_there_and_only_there(
    machines: Machines, pool: RayPool
) -> None:
    assert pool.machines() == (
        Machine("m1", {"contributor": 2, "auditor": 1}),
        Machine("m2", {"contributor": 1}, "acme"),
    )
    home = {"c0": "m1", "c1": "m1", "a0": "m1", "c2": "m2"}
    for name, machine in home.items():
        pool.add(name, plain, Seat(machine, "auditor" if name[0] == "a" else "contributor"))
    found = pool.call("where", dict.fromkeys(home, ()), deadline_ms=60_000)
    assert {name: answer.value for name, answer in found.items()} == {
        name: machines.raylet(machine) for name, machine in home.items()
    }
    # A seat that is taken is waited for, and nobody waits with it; a machine that is not there is not.
    pool.add("c3", plain, Seat("m2", "contributor"))
    pool.add("c9", plain, Seat("m9", "contributor"))
    answers = pool.call("where", dict.fromkeys(("c3", "c9", "c0", "anywhere"), ()), deadline_ms=5_000)
    assert {name for name, answer in answers.items() if answer.late} == {"c3"}
    assert answers["c9"].error == "c9 cannot be reached"
    assert answers["c0"].ms < 4_000
    (gone,) = pool.begin("where", [("c9", ())])
    assert gone(0).error == "c9 cannot be reached"


def test_a_node_that_is_killed_takes_its_members_and_no_others_and_brings_them_back(
    machines: Machines, pool: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    ray.kill(pool.actors.pop("c3"))
    pool._seats.pop("c3")
    machines.lose("m2")
    answers = pool.call("sleep", {"c0": (0.5,), "c2": (20.0,)}, deadline_ms=8_000)
    assert not answers["c2"].ok
    assert answers["c0"].ok
    assert answers["c0"].ms < 4_000
    until(lambda: [machine.name for machine in pool.machines()] == ["m1"])
    # Given up after a while, and from then on at once.
    with monkeypatch.context() as patch:
        patch.setattr(ray_pool, "RESTART_S", 0.0)
        started = time.monotonic()
        gone = pool.call("where", {"c2": (), "c1": ()})
        assert gone["c2"].error == "c2 cannot be reached"
        assert gone["c1"].value == machines.raylet("m1")
        assert time.monotonic() - started < 4
        # When nobody is left to wait for, the deadline is not waited for either.
        assert pool.call("where", {"c2": ()}, deadline_ms=300_000)["c2"].ms < 4_000
    pool.usage()
    until(lambda: "m1" in pool.usage() and pool.usage()["m1"]["memory_bytes"])
    used = pool.usage()
    assert (used["m2"]["alive"], used["m2"]["members"]) == (False, ["c2"])
    assert (used["m1"]["alive"], sorted(used["m1"]["members"])) == (True, ["a0", "c0", "c1"])
    assert used["m1"]["memory_bytes"] > used["m2"]["memory_bytes"] == 0
    assert used["m9"] == {"alive": False, "members": ["c9"], "memory_bytes": 0, "cpu_percent": 0.0}
    machines.join("m2", "acme", contributor=1)
    back = pool.call("where", {"c2": (), "c0": ()}, deadline_ms=60_000)
    assert back["c2"].value == machines.raylet("m2")
    assert back["c0"].ms < 4_000


def test_a_member_that_dies_over_and_over_makes_nobody_else_late(machines: Machines, pool: RayPool) -> None:
    answers = pool.call("leave", {"c1": (1,)}, deadline_ms=60_000)
    assert "died" in (answers["c1"].error or "")
    both = [("leave", "c1", (1,)), ("sleep", "c0", (1.0,))]
    begun = [pool.begin(method, [(name, args)])[0] for method, name, args in both]
    answers = pool.call("sleep", {"c1": (0.0,), "a0": (1.0,)}, deadline_ms=60_000)
    assert all(answer.ok for answer in answers.values())
    assert answers["a0"].ms < 4_000
    assert begun[1](60_000).ok
    assert not begun[0](60_000).ok


def test_a_machine_that_joins_is_seen_and_offers_its_seats(machines: Machines, pool: RayPool) -> None:
    machines.join("m9", "zeta", contributor=1, auditor=2)
    until(lambda: len(pool.machines()) == 3)
    assert pool.machines()[2] == Machine("m9", {"contributor": 1, "auditor": 2}, "zeta")
    # One that was told to live there before it came is there now.
    assert pool.call("where", {"c9": ()}, deadline_ms=60_000)["c9"].value == machines.raylet("m9")


def node(labels: dict[str, str], resources: dict[str, float], *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Labels": labels, "Resources": resources}


def test_what_a_node_says_of_itself_is_taken_with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    seats = {"contributor": 1.0}
    there = [
        node({MACHINE: "b", OPERATOR: ""}, {"contributor": 1e300, "auditor": 0.5, "CPU": 4.0}),
        node({MACHINE: "a.b_c-D"}, {"auditor": float("inf")}),
        node({MACHINE: "gone"}, seats, alive=False),
        node({MACHINE: "none"}, {"CPU": 8.0}),
        *(node({MACHINE: name}, seats) for name in ("", "in(a,b)", "!a", "a b", "a\n", "-a", "x" * 64)),
        node({}, seats),
        {"Alive": True},
    ]
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: there)
    assert RayPool.machines(RayPool.__new__(RayPool)) == (
        Machine("a.b_c-D", {"auditor": MOST_SEATS}),
        Machine("b", {"contributor": MOST_SEATS}),
    )
