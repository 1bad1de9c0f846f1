"""The doctor's survey of real nodes, and how a head that does not answer or does not know us is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_pool import ANSWERS_S, start
from pipeline import cluster_checks
from pipeline.source import source_digest
from tests.fresh import ROOT
from verification.errors import UsageError

HEAD_SAYS = """
import sys
from ray.cluster_utils import Cluster
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(nodes.address, flush=True)
sys.stdin.read()
nodes.shutdown()
"""
JOINS = """
import sys
from cluster.ray_pool import join_by_token, start
from verification.errors import UsageError
join_by_token(sys.argv[1])
try:
    start(sys.argv[1], {})
except UsageError as error:
    print(error)
else:
    print("joined")
"""

MODES = """
import os
from cluster.ray_pool import join_by_token
for address in (None, "192.0.2.1:6379"):
    join_by_token(address)
    print(os.environ["RAY_AUTH_MODE"])
"""


def test_a_head_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(UsageError, match=f"no Ray cluster could be reached at {address}.*refused"):
            start(address, {})
    assert time.monotonic() - begun < ANSWERS_S + 5


@pytest.mark.parametrize("address", ["nowhere", "host:port", "[::1"])
def test_what_is_no_address_is_wrong_use(address: str) -> None:
    with pytest.raises(UsageError, match="no Ray cluster could be reached at"):
        start(address, {})


@pytest.fixture(scope="module")
def odd_barnraise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another barnraise: its source has another digest, and it knows nothing of memory."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").touch()
    (folder / "pipeline" / "source.py").write_text("def source_digest(): return 'sha256:' + 'f' * 64\n")
    (folder / "cluster").mkdir()
    (folder / "cluster" / "__init__.py").write_text("raise ImportError('an older cluster')\n")
    return folder


@pytest.fixture(scope="module")
def survey(odd_barnraise: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Of two nodes on this machine; the second has another barnraise, and odd seats and threads."""
    import ray
    from ray.cluster_utils import Cluster

    from cluster import doctor

    home = tmp_path_factory.mktemp("home")
    seats = {"num_cpus": 1, "resources": {"contributor": 2, "auditor": 1}, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=seats | {"labels": {"barnraise-machine": "one"}})
    try:
        nodes.add_node(
            num_cpus=1,
            resources={"contributor": 1},
            labels={"barnraise-machine": "two", "barnraise-operator": "alice"},
            env_vars={"PYTHONPATH": str(odd_barnraise), "OMP_NUM_THREADS": "7"},
        )
        found = doctor.survey(nodes.address, cluster_checks.question(str(home), "exact"))
        assert not ray.is_initialized()
        yield found
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_every_node_answers_also_one_with_another_barnraise(survey: dict[str, Any]) -> None:
    one, two = sorted(survey["nodes"], key=lambda node: node["name"])
    assert (one["error"], two["error"]) == ("", "")
    assert (one["is_head"], two["is_head"]) == (True, False)
    assert one["id"] == survey["head"]
    assert (one["seats"], two["seats"]) == ({"contributor": 2, "auditor": 1}, {"contributor": 1})
    assert (one["operator"], two["operator"]) == (None, "alice")
    assert one["answer"]["source"] == source_digest()
    assert two["answer"]["source"] == "sha256:" + "f" * 64
    assert two["answer"]["memory"] is None
    assert "memory" in two["answer"]["errors"]
    assert one["answer"]["errors"] == {}
    assert one["answer"]["numerics"]["class"].startswith("exact-")
    assert "pipeline.probe" in two["answer"]["errors"]["numerics"]
    assert one["answer"]["threads"] != "7"
    assert two["answer"]["threads"] == "7"
    assert one["answer"]["store_folder"] is not None
    assert one["store_bytes"] > 0
    assert len(one["ports"]) == 2
    for node in (one, two):
        ahead, unsure = node["clock"]
        assert abs(ahead) <= unsure + 0.05  # one clock: the round trip explains all
        assert node["unreached"] == {}
    assert {"contributor", "auditor"}.isdisjoint(one["resources"])


@pytest.mark.slow
@pytest.mark.ray
def test_what_nodes_say_is_judged(survey: dict[str, Any]) -> None:
    checks = cluster_checks.judge(survey)
    (versions,) = [check for check in checks if check.name == "versions"]
    assert (versions.node, versions.status) == ("two", "wrong")
    assert "source is ffffffffffffffff" in versions.text
    assert any(check.name == "threads" and "OMP_NUM_THREADS=7" in check.text for check in checks)
    assert {check.name for check in checks if check.status == "wrong"} == {"versions", "numerics"}


@pytest.mark.slow
@pytest.mark.parametrize(("said", "joining"), [(None, "token"), ("disabled", "disabled")])
def test_a_token_is_for_joining_and_only_where_nobody_says_how(
    tmp_path: Path, said: str | None, joining: str
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path)} | ({"RAY_AUTH_MODE": said} if said else {})
    done = subprocess.run([sys.executable, "-c", MODES], env=environment, cwd=ROOT, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["disabled", joining]


@pytest.mark.slow
@pytest.mark.ray
def test_a_token_that_lies_here_is_used_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    homes = {}
    for name, token in (("right", "a" * 64), ("wrong", "b" * 64), ("none", "")):
        homes[name] = tmp_path / name
        (homes[name] / ".ray").mkdir(parents=True)
        if token:
            (homes[name] / ".ray" / "auth_token").write_text(token)
    as_head = environment | {"HOME": str(homes["right"]), "RAY_AUTH_MODE": "token"}
    head = subprocess.Popen([sys.executable, "-c", HEAD_SAYS], env=as_head, cwd=ROOT, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert head.stdout
        address = head.stdout.readline().strip()
        assert address
        said = {}
        for name, home in homes.items():
            command = [sys.executable, "-c", JOINS, address]
            done = subprocess.run(command, env=environment | {"HOME": str(home)}, cwd=ROOT,
                                  capture_output=True, text=True, check=True, timeout=120)  # fmt: skip
            said[name] = done.stdout.strip()
    finally:
        head.communicate("", timeout=60)
    assert said["right"] == "joined"
    assert "is there, but does not let this process in" in said["wrong"]
    assert "RAY_AUTH_MODE=token" in said["wrong"]
    assert "is there, but does not let this process in" in said["none"]
    assert "RAY_AUTH_MODE=disabled" in said["none"]
