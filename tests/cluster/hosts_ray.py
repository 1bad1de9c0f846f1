"""A Ray cluster on hosts of the test bed, from the shipped cluster file, as docs/cluster.md tells it.

Owns the steps that a person takes: token, wheel, the file filled in, `ray up`, waiting, another machine,
taking it down, and a run small enough for such hosts. Knows no host's insides (hosts.py) and nothing of what
a run must hold (test_hosts.py).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.cluster.hosts import CLIENT, Hosts, HostsError
from tests.cluster.hosts_files import SOURCE

HEAD = "head"
TEMPLATE = SOURCE / "cluster" / "local.yaml"
UP_S = 240.0  # a minute, where nothing else runs
CHECKOUT, FILE = "~/barnraise", "cluster/local.yaml"
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(json.dumps([[n["NodeManagerAddress"], n["Labels"], n["Resources"]] for n in ray.nodes() if n["Alive"]]))
"""


@dataclass(frozen=True)
class Node:
    """A live node as Ray's head sees it. `seats` are the resources named contributor and auditor."""

    ip: str
    machine: str | None
    seats: Mapping[str, float]


class Cluster:
    """Head and workers on `hosts`, all started from the client with `ray up`."""

    def __init__(
        self,
        hosts: Hosts,
        *workers: str,
        seats: Mapping[str, int],
        run: Callable[..., object] | None = None,
    ) -> None:
        """`run` is told what a person would type: host, command, timeout_s."""
        self.hosts = hosts
        self._run = run or hosts.run
        self.workers = workers
        self.seats = dict(seats)

    def prepare(self) -> None:
        """Hosts; on the client a checkout, token and wheel; the shipped file filled in."""
        self.hosts.start(HEAD, *self.workers)
        for name in (HEAD, *self.workers):
            self.hosts.put(name, "~/.barnraise/seats.json", json.dumps(self.seats))
        self.hosts.run(CLIENT, f"cp -r {SOURCE} {CHECKOUT}")
        config = yaml.safe_load(TEMPLATE.read_text())
        config["provider"]["head_ip"] = self.hosts.hosts[HEAD].ip
        config["provider"]["worker_ips"] = [self.hosts.hosts[name].ip for name in self.workers]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
        self.hosts.put(CLIENT, f"{CHECKOUT}/{FILE}", yaml.safe_dump(config, sort_keys=False))
        self.type(CLIENT, "(umask 077 && ray get-auth-token --generate > /dev/null)")
        self.type(CLIENT, "pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .")

    def type(self, host: str, command: str) -> None:
        """Run what a person would type, at the client in the checkout. Raises HostsError."""
        self._run(host, f"cd {CHECKOUT} && {command}" if host == CLIENT else command, timeout_s=UP_S)

    def up(self) -> float:
        """`ray up`, until every worker is there; seconds that it took. Raises HostsError."""
        begun = time.monotonic()
        self.type(CLIENT, f"ray up -y {FILE}")
        self.wait_for(1 + len(self.workers), UP_S)
        return time.monotonic() - begun

    def nodes(self) -> list[Node]:
        """Who is alive, by name of machine."""
        answer = self.hosts.run(HEAD, f"python - <<'END'\n{NODES}\nEND")
        nodes = [
            Node(
                ip,
                labels.get("barnraise-machine"),
                {name: seats for name, seats in resources.items() if name in {"contributor", "auditor"}},
            )
            for ip, labels, resources in json.loads(answer.output.splitlines()[-1])
        ]
        return sorted(nodes, key=lambda node: str(node.machine))

    def wait_for(self, count: int, limit_s: float) -> None:
        """Until so many nodes are alive. Raises HostsError."""
        until(lambda: len(self.nodes()) == count, f"{count} nodes", limit_s)

    def join(self, name: str, seats: Mapping[str, int]) -> None:
        """A machine that is in no file comes to the cluster, as docs/cluster.md has it."""
        self.hosts.start(name)
        self.type(CLIENT, f"ssh {name} mkdir -m 700 .ray && scp -qp ~/.ray/auth_token {name}:.ray/")
        self.type(
            name,
            f"RAY_AUTH_MODE=token ray start --address={self.hosts.hosts[HEAD].ip}:6379 "
            "--object-store-memory=1073741824 "
            f"--labels \"barnraise-machine=$(uname -n)\" --resources '{json.dumps(dict(seats))}'",
        )

    def tunnel(self) -> None:
        """From the client's port 8265 to the head's, where jobs are taken; it stays until the client ends."""
        self.hosts.run(CLIENT, f"ssh -f -N -L 8265:127.0.0.1:8265 {HEAD} > /dev/null 2>&1")

    def down(self) -> None:
        """`ray down` for the head, `ray stop` on each worker: the local provider leaves those alone."""
        self.type(CLIENT, f"ray down -y {FILE}")
        for name in self.hosts.hosts:
            if name not in {CLIENT, HEAD}:
                self.type(CLIENT, f"ssh {name} \"bash -lic 'ray stop'\"")


def until(done: Callable[[], object], what: str, limit_s: float, pause_s: float = 1.0) -> Any:
    """What `done` gives once it is true. Raises HostsError after `limit_s`."""
    stop = time.monotonic() + limit_s
    while not (found := done()):
        if time.monotonic() > stop:
            raise HostsError(f"no {what} after {limit_s} s")
        time.sleep(pause_s)
    return found


def corpus() -> str:
    """One document a line, of a made-up language, as JSON lines."""
    dice = random.Random(7)
    words = ["".join(dice.choice("abcdefghij") for _ in range(dice.randint(2, 6))) for _ in range(60)]
    return "".join(
        json.dumps({"text": " ".join(dice.choice(words) for _ in range(300))}) + "\n" for _ in range(40)
    )


def tiny_toml(**sections: Mapping[str, Any]) -> str:
    """Three contributors, three auditors; sections given replace fields one by one."""
    values: dict[str, dict[str, Any]] = {
        "run": {"rounds": 3, "seed": 1},
        "data": {"source": "file:corpus", "vocab_size": 300, "context": 16, "holdout_ppm": 200_000},
        "model": {
            "vocab_size": 300,
            "context": 16,
            "d_model": 16,
            "n_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "d_ff": 32,
            "rope_theta": 10000.0,
            "norm_eps": 1e-5,
            "init_std": 0.02,
        },
        "train": {"steps": [3, 2, 2], "batch": 2, "trace_every": 2},
        "compression": {"chunk": 1024, "k": 64},
        "state": {"every": 2},
        "checkpoint": {"every": 2},
        "eval": {"every": 2, "windows": 4},
        "audit": {"auditors": 3, "probation_rounds": 1},
        "credit": {"vest_rounds": 1},
    }
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    lines: list[str] = []
    for name, fields in values.items():
        lines += [f"[{name}]", *(f"{field} = {json.dumps(value)}" for field, value in fields.items()), ""]
    return "\n".join(lines)


class Run:
    """A run that goes on at the head while a test looks at it, as one in a terminal that was left alone."""

    def __init__(
        self, hosts: Hosts, name: str, toml: str, start: Callable[..., object] | None = None
    ) -> None:
        """`start` is told what a person would type: host and command."""
        self._hosts = hosts
        self._name = name
        self.folder = f"runs/{name}"
        put_run_files(hosts, HEAD, toml)
        train = f"barnraise train --address auto --config tiny.toml --run {self.folder} --json"
        (start or hosts.run)(
            HEAD, f"({train} > {name}.txt 2>&1 < /dev/null; echo $? > {name}.code) > /dev/null 2>&1 &"
        )

    def turns(self) -> list[dict[str, Any]]:
        """What the monitor noted of each turn that ended so far."""
        rows = self._hosts.run(HEAD, f"cat {self.folder}/metrics.jsonl", check=False)
        return [json.loads(line) for line in rows.output.splitlines() if line[:1] == "{" and line[-1:] == "}"]

    def until(self, seen: Callable[[dict[str, Any]], object], what: str, limit_s: float) -> dict[str, Any]:
        """The first turn in which something is seen. Raises HostsError with the end of the run's output."""

        def look() -> dict[str, Any] | None:
            return next((row for row in self.turns() if seen(row)), None)

        try:
            until(lambda: look() or self.code() is not None, what, limit_s)
        except HostsError as error:
            raise HostsError(error.what, got=self.said()) from None
        if row := look():
            return row
        raise HostsError(f"the run ended without {what}", got=self.said())

    def said(self) -> str:
        """The end of what the run put out."""
        return self._hosts.run(HEAD, f"tail -c 3000 {self._name}.txt", check=False).output

    def code(self) -> int | None:
        """What it ended with, or None."""
        ended = self._hosts.run(HEAD, f"cat {self._name}.code 2> /dev/null", check=False).output
        return int(ended) if ended.strip() else None

    def end(self, limit_s: float) -> int:
        """Wait until it is over. Raises HostsError."""
        try:
            until(lambda: self.code() is not None, "end of the run", limit_s)
        except HostsError as error:
            raise HostsError(error.what, got=self.said()) from None
        return self.code() or 0

    def verify(self, *options: str) -> dict[str, Any]:
        """What `barnraise verify` says of it, at the head."""
        return self.verify_at(self._hosts, self.folder, *options)

    @staticmethod
    def verify_at(hosts: Hosts, folder: str, *options: str) -> dict[str, Any]:
        """The same of a run that something else started."""
        command = f"barnraise verify {folder} --json {' '.join(options)}"
        lines = hosts.run(HEAD, command, timeout_s=200).output.splitlines()
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer


def put_run_files(hosts: Hosts, name: str, toml: str) -> None:
    """The configuration `tiny.toml` and the folder `corpus` into a host's home."""
    hosts.put(name, "tiny.toml", toml)
    hosts.put(name, "corpus/documents.jsonl", corpus())
