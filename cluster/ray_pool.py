"""The same pool on Ray: one actor for each member, anywhere in the cluster.

Owns everything this project says to Ray: starting or joining a cluster, actors, deadlines, restarts. The only
module that imports ray. Members stay plain objects inside a generic actor, which makes them anew from
their factory when Ray restarts it. A node of the cluster is inside the trust boundary
(docs/threat-model.md): Ray's own messages are pickles, so only nodes that the organiser trusts may join.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Ray turns token authentication on for a local cluster and writes a token into the home folder; a
# cluster that was started with a token names its mode itself.
if _unsaid := "RAY_AUTH_MODE" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayError

from cluster.pool import REVIVALS, Answer, Machine, Seat
from verification.errors import BarnraiseError, UsageError

BIG = 1 << 16
RETRY_PAUSE_S = 0.2
RESTART_S = 120.0
ANSWERS_S = 10.0  # within which a head takes a connection
ROLES = ("contributor", "auditor")
# Labels of a node: the machine's name, the same whenever it joins, and whose it is.
MACHINE, OPERATOR = "barnraise-machine", "barnraise-operator"
MOST_SEATS = 10_000  # that a machine is believed to have
# What Ray takes for the value of a label; in a label selector anything else may mean other machines.
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")


class Host:
    """The actor: holds one member, made when first called and again after a restart."""

    def __init__(self, factory: Callable[[], object]) -> None:
        self._factory = factory
        self._member: object | None = None
        self._asked = (time.monotonic(), time.process_time())

    def call(self, method: str, *args: Any) -> tuple[Any, str | None]:
        """(value, None), or (None, what went wrong) so that a peer's exception is never unpickled."""
        try:
            if self._member is None:
                self._member = self._factory()
            return getattr(self._member, method)(*args), None
        except BarnraiseError as error:
            return None, str(error)
        except Exception as error:  # an object's bug must not end the round
            return None, f"{type(error).__name__}: {error}"

    def pid(self) -> int:
        """The operating system's process id."""
        return os.getpid()

    def usage(self) -> tuple[str, int, float]:
        """(host name, bytes of memory, per cent of one core since last asked) of this process."""
        before, self._asked = self._asked, (time.monotonic(), time.process_time())
        wall, busy = (now - then for now, then in zip(self._asked, before, strict=True))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return socket.gethostname(), pages * os.sysconf("SC_PAGE_SIZE"), 100 * busy / max(wall, 1e-9)


class RayPool:
    """Members as Ray actors. Joins the cluster at `address`, or starts one on this machine when None."""

    def __init__(
        self,
        factories: Mapping[str, Callable[[], object]],
        environment: Mapping[str, str],
        *,
        address: str | None = None,
    ) -> None:
        # Ray puts the driver's folder on its workers' import path, where a user's model.py would
        # shadow ours: workers get an empty one.
        self._folder = tempfile.TemporaryDirectory(prefix="barnraise-", ignore_cleanup_errors=True)
        join_by_token(address)
        self._variables = {
            **environment,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"],
        }
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                start(address, {"working_dir": self._folder.name, "env_vars": self._variables})
            except UsageError:
                self._folder.cleanup()
                raise
        self.actors: dict[str, Any] = {}
        self._seats: dict[str, Seat] = {}
        self._down: dict[str, float] = {}  # since when a member could not be reached
        self._usage: dict[Any, str] = {}  # calls under way, and what was answered last
        self._used: dict[str, tuple[str, int, float]] = {}
        self._pings: dict[str, Any] = {}  # calls that such members answer once they are back
        for name, factory in factories.items():
            self.add(name, factory)

    def machines(self) -> tuple[Machine, ...]:
        """As `Pool.machines`: nodes with a `barnraise-machine` label and resources named as the roles."""
        found = []
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            labels, resources = node.get("Labels") or {}, node.get("Resources") or {}
            seats = {
                role: int(min(resources[role], MOST_SEATS)) for role in ROLES if resources.get(role, 0) >= 1
            }
            if node["Alive"] and LABEL.match(labels.get(MACHINE, "")) and seats:
                found.append(Machine(labels[MACHINE], seats, labels.get(OPERATOR) or None))
        return tuple(sorted(found, key=lambda machine: machine.name))

    def add(self, name: str, factory: Callable[[], object], seat: Seat | None = None) -> None:
        """As `Pool.add`. In a seat an actor waits until its machine is there, and for no other."""
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": self._variables},
        }
        if seat:
            self._seats[name] = seat
            options |= {"resources": {seat.role: 1}, "label_selector": {MACHINE: seat.machine}}
        self.actors[name] = ray.remote(Host).options(**options).remote(factory)

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        """As `Pool.call`. Bytes that several members get are stored once and shared.

        Who dies is asked again when it is back; who is not back within `RESTART_S` is given up, and at once
        the next time. Where there is less time than that, so is whoever's machine is not there to begin with.
        """
        started = time.monotonic()
        stop = started + deadline_ms / 1000 if deadline_ms else float("inf")
        shared: dict[int, Any] = {}
        asked = {name: self._share(args, shared) for name, args in arguments.items()}
        answers: dict[str, Answer] = {}
        tries = dict.fromkeys(asked, REVIVALS)
        there = self._there()
        away = {name for name in asked if not self._may_answer(name, there)}
        waiting = {self._send(name, method, args): name for name, args in asked.items() if name not in away}
        while (waiting or away) and time.monotonic() < stop:
            there = self._there() if away else there
            for name in sorted(away):
                if self._is_back(name, there):
                    away.discard(name)
                    waiting[self._send(name, method, asked[name])] = name
                elif self._is_hopeless(name, there, stop - started):
                    away.discard(name)
                    answers[name] = Answer(error=f"{name} cannot be reached", ms=_since(started))
            for reference in self._ready(waiting, stop, brief=bool(away)):
                name = waiting.pop(reference)
                answer = self._answer(reference, started)
                tries[name] -= answer is None
                if answer is not None or not tries[name]:
                    self._down.pop(name, None)
                    answers[name] = answer or Answer(
                        error=f"{name} died {REVIVALS} times", ms=_since(started)
                    )
                else:
                    away.add(name)
        for name in (*waiting.values(), *away):
            answers[name] = Answer(late=True, ms=_since(started))
        return {name: answers[name] for name in arguments}

    @staticmethod
    def _ready(waiting: Mapping[Any, str], stop: float, *, brief: bool) -> list[Any]:
        """Calls that are over, if any; no longer than `RETRY_PAUSE_S` where somebody may come back."""
        left = max(0.0, stop - time.monotonic())
        left = min(left, RETRY_PAUSE_S) if brief else left
        if not waiting:
            time.sleep(left if brief else 0.0)
            return []
        ray.wait(list(waiting), num_returns=1, timeout=None if left == float("inf") else left)
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        return list(done)

    def usage(self) -> dict[str, dict[str, Any]]:
        """As `Pool.usage`, as it was when last asked: who is busy now answers in time for the next call."""
        there = self._there()
        found: dict[str, dict[str, Any]] = {}
        calls = list(self._usage)
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        for reference in done:
            name = self._usage.pop(reference)
            with contextlib.suppress(RayError):
                self._used[name] = ray.get(reference)
        idle = self.actors.keys() - set(self._usage.values())
        self._usage |= {self.actors[n].usage.remote(): n for n in idle if self._may_answer(n, there)}
        for name in self.actors:
            used = self._used.get(name) if self._may_answer(name, there) else None
            seat = self._seats.get(name)
            if seat is None and used is None:
                continue
            machine = seat.machine if seat else used[0] if used else ""
            alive = seat is None or machine in there
            row = found.setdefault(
                machine, {"alive": alive, "members": [], "memory_bytes": 0, "cpu_percent": 0.0}
            )
            row["members"].append(name)
            if used:
                row["memory_bytes"] += used[1]
                row["cpu_percent"] = round(row["cpu_percent"] + used[2], 1)
        return found

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        """As `Pool.begin`: an actor takes its calls one after the other, beside those that come later."""
        shared: dict[int, Any] = {}
        there = self._there()
        found: list[Callable[[int], Answer]] = []
        for name, args in calls:
            if not self._may_answer(name, there):
                found.append(partial(_unreachable, name))
            else:
                reference = self._send(name, method, self._share(args, shared))
                found.append(partial(self._wait, name, reference))
        return found

    def _wait(self, name: str, reference: Any, deadline_ms: int) -> Answer:
        started = time.monotonic()
        done, _ = ray.wait([reference], num_returns=1, timeout=deadline_ms / 1000 if deadline_ms else None)
        if not done:
            return Answer(late=True, ms=_since(started))
        answer = self._answer(reference, started)
        return answer or Answer(error=f"{name} died in the middle of it", ms=_since(started))

    def close(self) -> None:
        """End the actors, and the cluster when this pool started or joined it."""
        for actor in self.actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)
        if self._owns:
            ray.shutdown()
        self._folder.cleanup()

    def _there(self) -> set[str]:
        """Names of the machines that are there, where members have seats."""
        return {machine.name for machine in self.machines()} if self._seats else set()

    def _may_answer(self, name: str, there: set[str]) -> bool:
        """Whether a member's machine is among those that are there, or it has none."""
        return name not in self._seats or self._seats[name].machine in there

    def _is_hopeless(self, name: str, there: set[str], patience_s: float) -> bool:
        """Whether a member that could not be reached is given up."""
        if patience_s < RESTART_S and not self._may_answer(name, there):
            return True
        return time.monotonic() - self._down[name] > RESTART_S

    def _is_back(self, name: str, there: set[str]) -> bool:
        """Whether a member that could not be reached answers again. Waits for nothing: others' time runs."""
        self._down.setdefault(name, time.monotonic())
        if not self._may_answer(name, there):
            return False
        if name not in self._pings:
            self._pings[name] = self.actors[name].pid.remote()
        done, _ = ray.wait([self._pings[name]], num_returns=1, timeout=0)
        if not done:
            return False
        try:
            ray.get(self._pings.pop(name))
        except RayError:
            return False
        return True

    def _send(self, name: str, method: str, args: tuple[Any, ...]) -> Any:
        return self.actors[name].call.remote(method, *args)

    @staticmethod
    def _share(args: tuple[Any, ...], shared: dict[int, Any]) -> tuple[Any, ...]:
        def one(value: Any) -> Any:
            if not isinstance(value, bytes) or len(value) < BIG:
                return value
            if id(value) not in shared:
                shared[id(value)] = ray.put(value)
            return shared[id(value)]

        return tuple(one(value) for value in args)

    @staticmethod
    def _answer(reference: Any, started: float) -> Answer | None:
        """The answer, or None when the actor died and is being restarted."""
        try:
            value, error = ray.get(reference)
        except RayActorError:
            return None
        except (GetTimeoutError, RayError) as failure:
            return Answer(error=f"{type(failure).__name__}", ms=_since(started))
        return Answer(value=value, error=error, ms=_since(started))


def start(address: str | None, runtime_env: Mapping[str, Any]) -> None:
    """Join the cluster at `address` ("auto" for the one of this machine) or start a small one here.

    Raises UsageError when there is no cluster at the address, within `ANSWERS_S`, or it does not let us in,
    within half a minute. Who joins calls `join_by_token` before.
    """
    options: dict[str, Any] = {
        "runtime_env": dict(runtime_env),
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is None:
        # A cluster of its own, also where another one runs on this machine.
        cores = max(1, os.cpu_count() or 1)
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    else:
        options |= {"address": address}
    answers = False
    try:
        answers = address is not None and _answers(address)
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        got = " ".join(str(error).split())[:300] or type(error).__name__
        if answers and isinstance(error, (ConnectionError, AuthenticationError)):
            raise UsageError(
                f"the head at {address} is there, but does not let this process in",
                got=f"{got} (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']})",
                hint="Put the head's ~/.ray/auth_token (mode 0600) on this machine; with TLS, "
                "`. ~/.barnraise/tls/env` first.",
            ) from None
        raise UsageError(
            f"no Ray cluster could be reached at {address or 'this machine'}",
            got=got,
            hint="Start one with `ray up CLUSTER.yaml` or leave --address out.",
        ) from None


def join_by_token(address: str | None) -> None:
    """Let the token that lies on this machine be used to join a cluster, where nobody said how."""
    tokens = AuthenticationTokenLoader.instance()
    joins = address is not None and not ray.is_initialized()
    if joins and _unsaid and tokens.has_token(ignore_auth_mode=True):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray read the mode when it was imported


def _answers(address: str) -> bool:
    """Whether anything listens at the address; False for one that only Ray understands.

    Raises OSError when nothing does, ValueError for what is no address.
    """
    if "://" in address or address == "local":
        return False
    host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
    return True


def _unreachable(name: str, deadline_ms: int) -> Answer:
    del deadline_ms
    return Answer(error=f"{name} cannot be reached")


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
