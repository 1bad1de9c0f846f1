"""Every node of a Ray cluster, asked one question.

Owns how nodes are found and asked, and for how long they are waited for. Does not own what a node looks at
(node_facts.py) nor what the answers mean (pipeline/cluster_checks.py). Changes nothing in the cluster.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from cluster import node_facts
from cluster.ray_pool import LABEL, MACHINE, OPERATOR, ROLES, join_by_token, start

ANSWER_S, PROBED_S, BRIEF_S = 60.0, 150.0, 15.0
CLOCK_ROUNDS = 3
SYSTEM = frozenset({"CPU", "GPU", "memory", "object_store_memory", *ROLES})


def survey(address: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """All that can be found out about the cluster at `address`: {"driver", "head", "gcs", "nodes"}.

    `driver` and `head` are ids of nodes. A node is a dict of plain values: what Ray says of it (`id`, `name`,
    `host`, `address`, `alive`, `machine`, `operator`, `seats`, `resources`, `store_bytes`, …), `answer`, that
    of `node_facts.look` or None, `error`, why there is none, `clock`, (its clock less ours, half the round
    trip) in seconds or None, and `unreached`, what it cannot connect to. Raises UsageError where there is no
    such cluster.
    """
    # Not at the top: ray_pool.py says what of Ray's settings holds, before Ray is imported.
    import ray  # noqa: PLC0415

    owns = not ray.is_initialized()
    # An empty folder, as members have it: what lies beside the driver is not to be found instead of what is
    # installed there.
    with tempfile.TemporaryDirectory(prefix="barnraise-", ignore_cleanup_errors=True) as folder:
        if owns:
            join_by_token(address)
            start(address, {"working_dir": folder})
        try:
            return _ask_all(ray, question)
        finally:
            if owns:
                ray.shutdown()


def _ask_all(ray: ModuleType, question: Mapping[str, Any]) -> dict[str, Any]:
    # Else a function is sent as its name, and a node runs what it has under that name.
    ray.cloudpickle.register_pickle_by_value(node_facts)
    nodes = [_described(node) for node in ray.nodes()]
    there = {node["id"]: node for node in nodes if node["alive"]}
    seconds = PROBED_S if question["probe"] else ANSWER_S
    for name, (value, error) in _ask(ray, there, node_facts.look, (question,), seconds).items():
        there[name] |= {"answer": value, "error": error}
    awake = [name for name, node in there.items() if node["answer"] is not None]
    gcs = ray.get_runtime_context().gcs_address
    host, _, port = gcs.rpartition(":")
    places = [(host.strip("[]"), int(port))]
    places += [(node["address"], number) for node in there.values() for number in node["ports"]]
    reached = _ask(ray, awake, node_facts.reach, (places,), BRIEF_S + node_facts.CONNECT_S * len(places) / 32)
    for name, (value, error) in reached.items():
        there[name] |= {"unreached": value, "error": error}
    for name in awake:
        there[name]["clock"] = _clock(ray, name)
    head = next((node["id"] for node in there.values() if node["is_head"]), "")
    return {"driver": ray.get_runtime_context().get_node_id(), "head": head, "gcs": gcs, "nodes": nodes}


def _described(node: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray says of a node, as plain values, with room for what the node says itself."""
    labels, resources = node.get("Labels") or {}, node.get("Resources") or {}
    machine = labels.get(MACHINE)
    return {
        "id": node["NodeID"],
        "name": machine or node["NodeManagerHostname"],
        "host": node["NodeManagerHostname"],
        "address": node["NodeManagerAddress"],
        "ports": [port for port in (node["NodeManagerPort"], node["ObjectManagerPort"]) if port],
        "alive": bool(node["Alive"]),
        "is_head": "node:__internal_head__" in resources,
        "machine": machine,
        "machine_is_label": bool(LABEL.match(machine or "")),
        "operator": labels.get(OPERATOR) or None,
        "labels": sorted(name for name in labels if not name.startswith("ray.io/")),
        "seats": {role: float(resources[role]) for role in ROLES if role in resources},
        "resources": sorted(name for name in resources if ":" not in name and name not in SYSTEM),
        "cpus": float(resources.get("CPU", 0)),
        "store_bytes": int(resources.get("object_store_memory", 0)),
        "answer": None,
        "error": "",
        "clock": None,
        "unreached": {},
    }


def _ask(
    ray: ModuleType,
    nodes: Sequence[str] | Mapping[str, Any],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    seconds: float,
) -> dict[str, tuple[Any, str]]:
    """What the function returns on each node, or (None, why it did not) when `seconds` have passed."""
    task = ray.remote(function)
    waiting = {}
    for name in nodes:
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(name, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
        waiting[task.options(**options).remote(*arguments)] = name
    if waiting:
        ray.wait(list(waiting), num_returns=len(waiting), timeout=seconds)
    found = {}
    for reference, name in waiting.items():
        done, _ = ray.wait([reference], timeout=0)
        if not done:
            ray.cancel(reference, force=True)
            found[name] = None, f"no answer within {seconds:.0f} s"
            continue
        try:
            found[name] = ray.get(reference), ""
        except Exception as error:  # what a node throws is its own, and may not even be unpickled here
            lines = str(error).strip().splitlines()
            found[name] = None, f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
    return found


def _clock(ray: ModuleType, name: str) -> tuple[float, float] | None:
    """(the node's clock less ours, at most so far from the truth), seconds, by the quickest of some rounds.

    Halves of a round trip may be unequal, but the truth is never off by more than half of it (RFC 5905, 8).
    """
    best: tuple[float, float] | None = None
    for _ in range(CLOCK_ROUNDS):
        before, begun = time.time(), time.monotonic()
        value, error = _ask(ray, [name], node_facts.clock, (), BRIEF_S)[name]
        half = (time.monotonic() - begun) / 2
        if error:
            return best
        if best is None or half < best[1]:
            best = value - (before + half), half
    return best
