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
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

# Ray turns token authentication on for a local cluster and writes a token into the home folder; a
# cluster that was started with a token names its mode itself.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from cluster.pool import REVIVALS, Answer
from verification.errors import BarnraiseError, UsageError

BIG = 1 << 16
RETRY_PAUSE_S = 0.2
RESTART_S = 120.0


class Host:
    """The actor: holds one member, made when first called and again after a restart."""

    def __init__(self, factory: Callable[[], object]) -> None:
        self._factory = factory
        self._member: object | None = None

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
        variables = {**environment, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"]}
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                start(address, {"working_dir": self._folder.name, "env_vars": variables})
            except UsageError:
                self._folder.cleanup()
                raise
        actor = ray.remote(Host)
        self.actors: dict[str, Any] = {
            name: actor.options(
                num_cpus=0, max_restarts=-1, max_task_retries=0, runtime_env={"env_vars": variables}
            ).remote(factory)
            for name, factory in factories.items()
        }

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        """As `Pool.call`. Bytes that several members get are stored once and shared."""
        started = time.monotonic()
        stop = started + deadline_ms / 1000 if deadline_ms else None
        shared: dict[int, Any] = {}
        asked = {name: self._share(args, shared) for name, args in arguments.items()}
        answers: dict[str, Answer] = {}
        tries = dict.fromkeys(asked, REVIVALS)
        waiting = {self._send(name, method, args): name for name, args in asked.items()}
        while waiting:
            left = None if stop is None else max(0.0, stop - time.monotonic())
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
            if not done:
                break
            name = waiting.pop(done[0])
            answer = self._answer(done[0], started)
            if answer is None and tries[name] > 1 and self._is_back(name, stop):
                tries[name] -= 1
                waiting[self._send(name, method, asked[name])] = name
            else:
                answers[name] = answer or Answer(error=f"{name} died {REVIVALS} times", ms=_since(started))
        for name in waiting.values():
            answers[name] = Answer(late=True, ms=_since(started))
        return {name: answers[name] for name in arguments}

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        """As `Pool.begin`: an actor takes its calls one after the other, beside those that come later."""
        shared: dict[int, Any] = {}
        sent = [(name, self._send(name, method, self._share(args, shared))) for name, args in calls]
        return [partial(self._wait, name, reference) for name, reference in sent]

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

    def _is_back(self, name: str, stop: float | None) -> bool:
        """Wait until a member that died was restarted, at most `RESTART_S` and not past the deadline."""
        limit = time.monotonic() + RESTART_S
        limit = limit if stop is None else min(limit, stop)
        while time.monotonic() < limit:
            try:
                ray.get(self.actors[name].pid.remote(), timeout=max(0.1, limit - time.monotonic()))
            except (RayActorError, GetTimeoutError):
                time.sleep(RETRY_PAUSE_S)
            else:
                return True
        return False

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

    Raises UsageError when there is no cluster at the address.
    """
    options: dict[str, Any] = {
        "runtime_env": dict(runtime_env),
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is None:
        options |= {"num_cpus": max(1, os.cpu_count() or 1), "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster could be reached at {address or 'this machine'}",
            got=str(error).splitlines()[0][:200],
            hint="Start one with `ray up CLUSTER.yaml` or leave --address out.",
        ) from None


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
