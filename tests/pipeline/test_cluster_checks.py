"""The judgement of a cluster: what is good is called good, and every rule finds what breaks it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli, doctor
from pipeline.cluster_checks import CLOCK_WARNING_S, CLOCK_WRONG_S, examine, judge, question, wandb_check
from pipeline.doctor import GIB, Check, DoctorOptions
from pipeline.source import source_digest
from tests.fresh import run_fresh
from verification.errors import UsageError

Node = dict[str, Any]
NAMES = ["nodes", "versions", "token", "secrets", "clocks", "addresses", "ports", "labels", "seats",
         "members", "homes", "shared", "threads", "numerics"]  # fmt: skip


def node(number: int, **changed: Any) -> Node:
    """A machine with which nothing is wrong."""
    name = f"host-{number}"
    return {
        "id": f"{number:02x}", "name": name, "host": name, "address": f"192.0.2.{number + 1}",
        "ports": [6380, 6381], "alive": True, "is_head": number == 0, "machine": name,
        "machine_is_label": True, "operator": f"op-{number}", "labels": ["barnraise-machine"],
        "seats": {"contributor": 2.0, "auditor": 1.0}, "resources": [], "cpus": 4.0, "store_bytes": GIB,
        "error": "", "clock": (0.1, 0.05), "unreached": {}, "answer": good_answer(name),
    } | changed  # fmt: skip


def good_answer(name: str) -> Node:
    return {
        "host": name, "python": "3.11.4", "source": "sha256:" + "a" * 64, "memory": 16 * GIB, "cores": 4,
        "versions": {"barnraise": "0.1.0", "ray": "2.60.0", "torch": "2.10", "numpy": "2.1"},
        "token": {"mode": "token", "in_environment": False, "path": "/t", "bits": 0o600},
        "home": {"path": "/h", "place": "/h", "writable": True, "free": 9 * GIB, "secrets": 3,
                 "open_files": [], "open_folders": []},
        "threads": None, "shared_memory": 4 * GIB, "store_folder": "/dev/shm", "errors": {},
        "numerics": {"class": "exact", "digest": "sha256:" + "b" * 64},
    }  # fmt: skip


def cluster(count: int = 3) -> Node:
    return {"driver": "00", "head": "00", "gcs": "192.0.2.1:6379", "nodes": [node(i) for i in range(count)]}


def bad(found: Mapping[str, Any]) -> list[Check]:
    return [check for check in judge(found) if check.status != "ok"]


@given(st.integers(1, 8))
def test_a_good_cluster_is_clean(count: int) -> None:
    checks = judge(cluster(count))
    if count == 1:  # its contributors and its auditors are of one operator
        assert [check.name for check in checks if check.status != "ok"] == ["numerics"]
        return
    assert [(check.name, check.status, check.node) for check in checks] == [(n, "ok", "") for n in NAMES]


def at(path: str, value: Any) -> Callable[[Node], None]:
    """Put a value at a place such as answer.home.free of a node."""

    def change(one: Node) -> None:
        *folders, last = path.split(".")
        for folder in folders:
            one = one[folder]
        one[last] = value

    return change


FAULTS: list[tuple[Callable[[Node], None], str, str, str]] = [
    (at("error", "no answer within 60 s"), "nodes", "wrong", "does not answer: no answer within 60 s"),
    (at("alive", False), "nodes", "warning", "is gone"),
    (at("answer.versions.torch", "2.11"), "versions", "wrong", "torch is 2.11, elsewhere 2.10"),
    (at("answer.versions.numpy", "2.0"), "versions", "wrong", "numpy is 2.0"),
    (at("answer.versions.barnraise", "0.2.0"), "versions", "wrong", "barnraise is 0.2.0"),
    (at("answer.versions", {"ray": "2.60.0"}), "versions", "wrong", "torch is missing, elsewhere 2.10"),
    (at("answer.python", "3.12.1"), "versions", "wrong", "python is 3.12, elsewhere 3.11"),
    (at("answer.source", "sha256:" + "c" * 64), "versions", "wrong", "source is cccccccccccccccc"),
    (lambda one: (at("answer.source", None)(one), at("answer.errors", {"source": "ImportError: x"})(one)),  # type: ignore[func-returns-value]
     "versions", "wrong", "cannot be imported (ImportError: x)"),
    (at("answer.token.mode", "disabled"), "token", "warning", "asks nobody for a token"),
    (at("answer.token.mode", ""), "token", "warning", "asks nobody for a token"),
    (at("answer.token.bits", 0o644), "token", "wrong", "/t has mode 0644"),
    (at("answer.token.bits", None), "token", "wrong", "/t is not there"),
    (at("answer.token", None), "token", "warning", "unknown"),
    (at("answer.home.open_files", [["/h/key", 0o640], ["/h/k2", 0o644]]), "secrets", "wrong",
     "/h/key has mode 0640, others may look into it, and 1 more"),
    (at("answer.home.open_folders", [["/h/run", 0o755]]), "secrets", "wrong", "/h/run has mode 0755"),
    (at("clock", (5.0, 0.5)), "clocks", "warning", "4 s or more ahead of"),
    (at("clock", (-90.0, 1.0)), "clocks", "wrong", "89 s or more behind"),
    (at("clock", None), "clocks", "warning", "could not be read"),
    (at("address", "127.0.0.1"), "addresses", "wrong", "127.0.0.1, which others cannot reach"),
    (at("unreached", {"192.0.2.1:6379": "timed out"}), "ports", "wrong",
     "cannot connect to the head at 192.0.2.1:6379: timed out"),
    (at("unreached", {"192.0.2.3:6380": "refused"}), "ports", "wrong", "connect to host-2 at 192.0.2.3:6380"),
    (at("machine", None), "labels", "wrong", "offers seats but has no name"),
    (at("machine_is_label", False), "labels", "wrong", "is no label"),
    (at("machine", "host-2"), "labels", "wrong", "2 nodes have this name (192.0.2.2, 192.0.2.3)"),
    (at("operator", "Alice & Co"), "labels", "wrong", "operator 'Alice & Co' is no name"),
    (at("labels", ["barnraise-operater"]), "labels", "warning", "barnraise-operater is not known"),
    (at("seats", {}), "seats", "warning", "has a name but offers no seats"),
    (at("seats.auditor", 0.5), "seats", "warning", "offers 0.5 seats for auditors"),
    (at("seats.contributor", 1.5), "seats", "warning", "offers 1.5 seats"),
    (at("seats.contributor", 1e9), "seats", "warning", "offers 1e+09 seats"),
    (at("resources", ["Contributors"]), "seats", "warning", "Contributors is no seat"),
    (at("answer.memory", GIB // 2), "members", "wrong", "0.5 GiB free"),
    (at("seats.contributor", 60.0), "members", "warning", "for 61 seats"),
    (at("answer.memory", None), "members", "warning", "unknown"),
    (at("answer.home.free", 1), "homes", "wrong", "0.0 GiB free at /h"),
    (at("answer.home.free", GIB), "homes", "warning", "1.0 GiB free at /h"),
    (at("answer.home.writable", False), "homes", "wrong", "/h cannot be written to"),
    (at("answer.home", None), "homes", "wrong", "cannot be looked at"),
    (at("answer.store_folder", "/tmp"), "shared", "warning", "lies in /tmp"),
    (at("answer.shared_memory", 64 << 20), "shared", "warning", "1.0 GiB for objects, /dev/shm has 0.1 GiB"),
    (at("answer.threads", "8"), "threads", "warning", "OMP_NUM_THREADS=8"),
    (at("cpus", 64.0), "threads", "warning", "Ray counts 64 CPUs"),
    (at("answer.numerics.digest", "sha256:" + "d" * 64), "numerics", "wrong", "their probes differ"),
    (at("answer.numerics.class", "native"), "numerics", "warning", "can audit host-1 to the bit (native)"),
    (at("answer.numerics", None), "numerics", "wrong", "could not be tried"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "name", "status", "text"), FAULTS)
def test_every_rule_bites_and_says_what_to_do(
    change: Callable[[Node], None], name: str, status: str, text: str
) -> None:
    found = cluster()
    change(found["nodes"][1])
    hits = [check for check in bad(found) if check.name == name]
    assert any(check.status == status and text in check.text and check.hint for check in hits), hits
    assert all("\n" not in check.text for check in hits)


@given(st.integers(0, 4), st.sampled_from(FAULTS))
def test_a_fault_is_laid_on_no_other_machine(index: int, fault: tuple[Any, ...]) -> None:
    found = cluster(5)
    change, name, *_ = fault
    mended = copy.deepcopy(found["nodes"])
    change(found["nodes"][index])
    named = {check.node for check in bad(found) if check.name == name}
    assert named <= {found["nodes"][index]["name"], "host-2", ""} | (
        # The head is the measure of all versions: where it is odd, all others are.
        {one["name"] for one in mended} if index == 0 and name == "versions" else set()
    )


@given(st.floats(-200, 200), st.floats(0, 100))
def test_a_clock_counts_only_beyond_what_the_round_trip_explains(ahead: float, unsure: float) -> None:
    found = cluster()
    found["nodes"][1]["clock"] = (ahead, unsure)
    least = abs(ahead) - unsure
    status = "wrong" if least > CLOCK_WRONG_S else "warning" if least > CLOCK_WARNING_S else "ok"
    assert {check.status for check in judge(found) if check.name == "clocks"} == {status}


def test_what_is_right_on_one_machine_may_be_wrong_on_several() -> None:
    found = cluster(2)
    for one in found["nodes"]:
        one |= {"address": "127.0.0.1"}
        one["answer"]["token"]["mode"] = "disabled"
    assert {check.name for check in bad(found)} == {"addresses", "token"}
    for one in found["nodes"]:
        one["host"] = "alone"
    assert bad(found) == []


def test_a_machine_that_came_back_is_not_missed() -> None:
    found = cluster()
    found["nodes"].append(node(1, id="ff", alive=False, answer=None))
    assert bad(found) == []
    found["nodes"].append(node(9, alive=False, answer=None))
    assert [(check.node, check.status) for check in bad(found)] == [("host-9", "warning")]


def test_a_token_from_a_secret_needs_no_file() -> None:
    found = cluster()
    found["nodes"][1]["answer"]["token"] |= {"bits": None, "in_environment": True}
    assert bad(found) == []


def test_seats_of_one_role_alone_make_no_run_and_none_leave_members_anywhere() -> None:
    found = cluster()
    for one in found["nodes"]:
        one["seats"] = {"contributor": 1.0}
        del one["answer"]["numerics"]
    assert [check.text for check in bad(found)] == ["there is no seat for auditors"]
    for one in found["nodes"]:
        one |= {"seats": {}, "machine": None}
    assert ["members go anywhere" in check.text for check in bad(found)] == [True]


MACHINES = st.tuples(st.sampled_from("xy"), st.sampled_from([None, "a", "b"]), st.booleans(), st.booleans())


@given(st.lists(MACHINES, min_size=1, max_size=6))
def test_who_can_audit_to_the_bit_is_of_the_same_arithmetic_and_of_another_operator(
    machines: list[tuple[str, str | None, bool, bool]],
) -> None:
    found = cluster(len(machines))
    for one, (kind, operator, works, audits) in zip(found["nodes"], machines, strict=True):
        one["operator"] = operator
        one["seats"] = {"contributor": 1.0} if works else {}
        one["seats"] |= {"auditor": 1.0} if audits else {}
        one["answer"]["numerics"] = {"class": kind, "digest": kind}
    # The operator of each member: its machine's, or its own.
    alone = set()
    for i, (kind, operator, works, _) in enumerate(machines):
        others = [(o or f"auditor-{j}") for j, (k, o, _, a) in enumerate(machines) if k == kind and a]
        if works and not set(others) - {operator or f"contributor-{i}"}:
            alone.add(f"host-{i}")
    told = " ".join(check.text for check in bad(found) if check.name == "numerics")
    assert {f"host-{i}" for i in range(len(machines)) if f"host-{i}" in told} == alone


def test_the_driver_belongs_on_the_head() -> None:
    found = cluster() | {"driver": "01"}
    assert [check.name for check in bad(found)] == ["nodes"]


def test_a_cluster_in_which_nobody_answers_is_judged() -> None:
    found = cluster()
    for one in found["nodes"]:
        one |= {"answer": None, "error": "gone", "clock": None}
    assert [(check.node, check.status) for check in bad(found)] == [(f"host-{i}", "wrong") for i in range(3)]


def test_what_a_node_says_cannot_steer_a_terminal() -> None:
    found = cluster()
    found["nodes"][1]["error"] = "\x1b[2Jgone\n"
    (check,) = bad(found)
    assert check.text.isprintable()


def test_wandb_is_no_fault_either_way() -> None:
    assert [wandb_check(logged_in=value).status for value in (True, False)] == ["ok", "ok"]


def test_a_head_that_cannot_be_reached_is_a_finding() -> None:
    def survey(address: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert (address, asked["probe"]) == ("192.0.2.1:6379", "")
        raise UsageError("no Ray cluster could be reached", got="refused", hint="Start one.")

    options = DoctorOptions(cluster=True, address="192.0.2.1:6379")
    (check,) = examine(survey, options)
    assert (check.name, check.status, check.text) == (
        "head",
        "wrong",
        "no Ray cluster could be reached (refused)",
    )


def test_what_nodes_are_asked_is_there(tmp_path: Path) -> None:
    asked = question(str(tmp_path), "exact")
    assert json.loads(json.dumps(asked)) == asked
    assert set(json.loads(run_fresh(asked["probe"]))) == {"class", "digest"}
    assert asked["calls"]["source"] == f"{source_digest.__module__}:{source_digest.__name__}"
    assert asked["calls"]["memory"] == f"{doctor.free_memory.__module__}:{doctor.free_memory.__name__}"


def test_the_command_shows_a_cluster_beside_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cluster()
    found["nodes"][1]["answer"]["home"]["open_files"] = [["/h/[red]key", 0o640]]
    monkeypatch.setattr("cluster.doctor.survey", lambda address, asked: found)
    arguments = ["doctor", "--cluster", "--home", str(tmp_path), "--folder", str(tmp_path)]
    assert cli.run(arguments) == 1
    out = capsys.readouterr().out
    assert "secrets    host-1: /h/[red]key has mode 0640" in out
    assert cli.run([*arguments, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [one["node"] for one in checks if "node" in one] == ["host-1"]
    assert {"processor", "versions", "wandb"} <= {one["name"] for one in checks}


def test_an_address_without_a_cluster_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--address", "auto"]) == 2
    assert "--cluster" in capsys.readouterr().err


def test_without_ray_a_cluster_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cluster.doctor", "cluster.ray_pool"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.run(["doctor", "--cluster"]) == 2
    assert "--cluster needs ray" in capsys.readouterr().err
