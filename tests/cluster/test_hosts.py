"""The test bed of hosts is what it says, and a cluster on it does what docs/cluster.md promises.

The tests of the cluster share one, and the last of them take it apart.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import CLIENT, Hosts, HostsError, missing, processes
from tests.cluster.hosts_files import SOURCE
from tests.cluster.hosts_ray import HEAD, Cluster, Node, Run, tiny_toml, until

lacking = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(lacking is not None, reason=lacking or "")]

ONE_EACH = {"contributor": 1, "auditor": 1}
ROUNDS = 40
BED = """
import sys, time
from pathlib import Path
from tests.cluster.hosts import Hosts
with Hosts(Path(sys.argv[1])) as hosts:
    hosts.start("one")
    hosts.run("one", "nohup sleep 1000 > /dev/null 2>&1 &")
    running = hosts.popen("one", "sleep 1000")
    print("up", *(host.pid for host in hosts.hosts.values()), flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path / "hosts") as bed:
        yield bed


def test_hosts_are_apart_from_each_other_and_from_this_machine(hosts: Hosts, tmp_path: Path) -> None:
    links = subprocess.run(["ip", "link"], capture_output=True, check=True).stdout
    (tmp_path / "mine").touch()
    hosts.start("one", "two")
    hosts.run("one", "echo one > /tmp/file; echo one > ~/file; echo one > /dev/shm/file")
    seen = hosts.run(
        "two", f"hostname; ls /tmp/file ~/file /dev/shm/file {tmp_path}/mine; ps ax | wc -l"
    ).output
    assert seen.startswith("two\n")
    assert seen.count("No such file") == 4
    assert int(seen.split()[-1]) < 10
    assert hosts.run("two", f"touch {SOURCE}/file /etc/file", check=False).output.count("Read-only") == 2
    assert "pipeline" in hosts.run("two", "python -c 'import pipeline; print(pipeline.__name__)'").output
    assert hosts.run(CLIENT, "ssh one cat file; ssh two hostname").output == "one\ntwo\n"
    assert (
        hosts.run("one", "ssh -o BatchMode=yes two true", check=False).code == 255
    )  # only the client has a key
    reached = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert hosts.run("one", f'python -c "{reached}"', check=False).code == 1
    assert subprocess.run(["ip", "link"], capture_output=True, check=True).stdout == links


def test_a_host_dies_at_once_and_another_comes_later(hosts: Hosts) -> None:
    hosts.start("one", "two")
    space = hosts.hosts["one"].space
    listening = "nohup python -m http.server 8000 >/dev/null 2>&1 & sleep 1; pgrep -c python"
    assert hosts.run("one", listening).output == "1\n"
    assert len(hosts.processes("one", "http.server")) == 1
    running = hosts.popen("one", "sleep 1000")
    hosts.kill("one")
    assert list(processes(space)) == []
    assert hosts.run("two", "timeout 2 bash -c '</dev/tcp/one/8000'", check=False).code != 0
    assert running.poll() is None  # nobody told the other side
    hosts.start("three")
    assert hosts.run("three", "hostname; cat /etc/hosts | grep -c three").output == "three\n1\n"


def test_a_link_is_narrowed_both_ways_and_widened_again(hosts: Hosts) -> None:
    hosts.start("one")
    there, back = "head -c 1000000 /dev/zero | ssh one 'cat > /dev/null'", "ssh one head -c 1000000 /dev/zero"

    def seconds(command: str) -> float:
        begun = time.monotonic()
        hosts.run(CLIENT, f"{command} > /dev/null")
        return time.monotonic() - begun

    wide = max(seconds(there), seconds(back))
    hosts.shape("one", 4)  # 2 s a megabyte
    assert 1.7 < seconds(there) < 1.7 + 2 * (wide + 1)
    assert 1.7 < seconds(back) < 1.7 + 2 * (wide + 1)
    hosts.shape("one", None)
    assert seconds(there) < 1.7


def test_a_command_that_fails_or_hangs_is_told(hosts: Hosts) -> None:
    with pytest.raises(HostsError, match="ended with 3"):
        hosts.run(CLIENT, "exit 3")
    with pytest.raises(HostsError, match="took over"):
        hosts.run(CLIENT, "sleep 100", timeout_s=1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_bed_that_is_interrupted_or_killed(tmp_path: Path, how: signal.Signals) -> None:
    bed = subprocess.Popen(
        [sys.executable, "-c", BED, str(tmp_path / "hosts")], stdout=subprocess.PIPE, text=True, cwd=SOURCE
    )
    held: list[int] = []
    spaces: list[str] = []
    try:
        assert bed.stdout is not None
        word, *pids = bed.stdout.readline().split()
        assert word == "up"
        spaces = [str(Path(f"/proc/{pid}/ns/pid").readlink()) for pid in pids]
        held = [os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY) for pid in pids]
        assert len(list(processes(*spaces))) >= 3
        bed.send_signal(how)
        bed.wait(timeout=30)
        bed.stdout.close()
        stop = time.monotonic() + 10
        while list(processes(*spaces)) and time.monotonic() < stop:
            time.sleep(0.1)
        assert list(processes(*spaces)) == []
        assert bed.returncode == -how
    finally:
        bed.kill()
        for descriptor in held:
            os.close(descriptor)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Hosts(tmp_path_factory.mktemp("cluster") / "hosts") as bed:
        cluster = Cluster(bed, "w1", "w2", seats=ONE_EACH)
        cluster.prepare()
        cluster.up()
        yield cluster


@pytest.mark.ray
def test_ray_up_starts_all_machines_with_their_seats_behind_a_token(cluster: Cluster) -> None:
    hosts = cluster.hosts
    assert cluster.nodes() == [Node(hosts.hosts[name].ip, name, ONE_EACH) for name in (HEAD, "w1", "w2")]
    for name in (HEAD, "w1", "w2"):
        assert hosts.run(name, "stat -c %a ~/.ray ~/.ray/auth_token").output == "700\n600\n"
    join = f"import ray; ray.init(address='{hosts.hosts[HEAD].ip}:6379', log_to_driver=False)"
    stranger = hosts.run("w1", f'RAY_AUTH_MODE=disabled timeout 60 python -c "{join}"', check=False)
    assert stranger.code != 0
    assert "token" in stranger.output


@pytest.mark.ray
def test_a_run_started_at_the_head_and_one_submitted_from_outside_are_equal(cluster: Cluster) -> None:
    hosts = cluster.hosts
    run = Run(hosts, "one", tiny_toml())
    assert run.end(150) == 0, run.said()
    places = {name: node["members"] for name, node in run.turns()[-1]["nodes"].items()}
    assert sorted(places) == [HEAD, "w1", "w2"]
    assert all([name[0] for name in sorted(members)] == ["a", "c"] for members in places.values())
    for name, members in places.items():  # nobody's key is anywhere but on its machine
        keys = hosts.run(name, "cd ~/.barnraise/runs/*/ && stat -c '%a %n' */key").output.splitlines()
        own = {*members, "coordinator"} if name == HEAD else set(members)
        assert set(keys) == {f"600 {member}/key" for member in own}
    cluster.tunnel()
    train = "cd && barnraise train --config tiny.toml --run runs/two --address auto --json"
    submit = f'ray job submit --address http://127.0.0.1:8265 -- bash -c "{train}"'
    refused = hosts.run(CLIENT, f"mv .ray away; {submit}; mv away .ray", check=False)
    assert "Missing authentication token" in refused.output
    job = hosts.run(CLIENT, f"RAY_AUTH_MODE=token {submit}", timeout_s=200)
    assert "succeeded" in job.output
    answers = [Run.verify_at(hosts, folder, "--level 3") for folder in ("runs/one", "runs/two")]
    assert all(answer["ok"] and answer["complete"] for answer in answers)
    assert answers[0]["weights_digest"] == answers[1]["weights_digest"]


@pytest.mark.ray
def test_a_run_goes_on_when_a_host_dies_a_link_is_narrow_and_a_machine_comes(cluster: Cluster) -> None:
    hosts = cluster.hosts
    run = Run(
        hosts,
        "long",
        tiny_toml(
            run={"rounds": ROUNDS},
            identity={"newcomers": 2},
            timing={"mode": "measured", "round_ms": 1000, "deadline_ms": 4000, "max_steps": 12},
        ),
    )
    third = run.until(lambda row: row["round"] >= 3, "third turn", 150)
    lost = sorted(third["nodes"]["w2"]["members"])
    assert [name[0] for name in lost] == ["a", "c"]
    hosts.kill("w2")
    hosts.shape("w1", 4)
    cluster.join("w3", ONE_EACH)
    run.until(lambda row: lost[1] in row["left"], "turn that its contributor left before", 90)
    come = run.until(lambda row: any(name[0] == "c" for name in row["joined"]), "newcomer", 120)
    new = [name for name in come["joined"] if name[0] == "c"]
    assert run.end(200) == 0, run.said()
    turns = run.turns()
    assert [row["round"] for row in turns] == list(range(1, ROUNDS + 1))  # nothing had to be repeated
    assert {name for row in turns for name in row["left"]} >= set(lost)
    after = [row for row in turns if row["round"] > come["round"]]
    assert any(new[0] in row["accepted"] for row in turns[come["round"] - 1 :])
    assert all(lost[1] not in row["accepted"] for row in after)
    assert {name: node["alive"] for name, node in after[-1]["nodes"].items()} == {
        HEAD: True,
        "w1": True,
        "w2": False,
        "w3": True,
    }
    assert not any(row["quarantined"] for row in turns)  # who is gone is none who cheated
    answer = run.verify("--level 3")
    assert (answer["ok"], answer["complete"]) == (True, True)


@pytest.mark.ray
def test_the_cluster_is_taken_down_and_no_process_is_left(cluster: Cluster) -> None:
    hosts = cluster.hosts
    assert any(hosts.processes(name, "raylet") for name in hosts.hosts)
    cluster.down()

    def left() -> list[str]:
        ours = ("ray", "barnraise", "gcs_server", "python")
        lines = [line for name in hosts.hosts if name != CLIENT for line in hosts.processes(name)]
        return [line for line in lines if any(word in line for word in ours)]

    until(lambda: not left(), f"end of all of Ray: {left()}", 30)
    assert left() == []
