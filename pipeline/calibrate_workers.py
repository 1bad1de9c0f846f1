"""Numerics environments of this machine, a process each, that repeat each other's local steps.

Owns which environments there are, the processes, and the walk: at every step all of them start from the same
point, one of them leads, and each pair of ends is one honest audit. Does not own the steps
(calibrate_child.py) or what follows from the deviations (calibrate_numbers.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from model.arrays import arrays_to_bytes
from model.numerics import THREADS, Profile, environment
from pipeline.calibrate_points import Plan, PointsFile, PointsWriter
from pipeline.config import manifest_config
from pipeline.deviation import step_deviation
from verification.encoding import hex_float
from verification.errors import WorkError
from verification.tolerance import Deviation

_ROOT = Path(__file__).resolve().parent.parent
_GONE_SECONDS = 10  # until a process whose input has ended is killed


@dataclass(frozen=True)
class Environment:
    """One way for this machine to compute. `variables` are set before torch is imported.

    Where `experimental` is, no member of a run can be of it, so no configuration can name it. `module` is
    what the process runs.
    """

    name: str
    profile: Profile
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    experimental: bool = False
    module: str = "pipeline.calibrate_child"

    @property
    def of_members(self) -> bool:
        """Whether a member of a run on this machine is in it, when nobody sets anything."""
        return self.threads == THREADS and not self.variables and not self.experimental


EXACT = Environment("exact", "exact")
NATIVE = Environment("native", "native")


def environments() -> tuple[Environment, ...]:
    """Those that a machine may have, the members' own first. One that it lacks is refused as it starts."""
    pinned: dict[str, dict[str, str]] = {
        "native, AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
        "native, no vectors": {"ATEN_CPU_CAPABILITY": "default"},
        "native, MKL AVX2": {"MKL_CBWR": "AVX2"},
        "native, MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    }
    more = tuple(Environment(name, "native", variables=variables) for name, variables in pinned.items())
    two = Environment("native, 2 threads", "native", threads=2)
    return (EXACT, NATIVE, two, *more, Environment("cuda", "native", device="cuda", experimental=True))


@dataclass(frozen=True)
class End:
    """What one environment made of a step."""

    point: bytes
    leaf: str
    loss: int


class Worker:
    """A process in an environment. `numerics_class` names what it computes in."""

    def __init__(self, where: Environment, plan: Plan, folder: Path) -> None:
        self.environment, self._end = where, folder / f"end-{id(self)}"
        kept = {name: value for name, value in os.environ.items() if name not in environment("exact")}
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
            [sys.executable, "-m", where.module],
            env={**kept, "PYTHONPATH": path, **environment(where.profile), **where.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        order = {"profile": where.profile, "threads": where.threads, "device": where.device}
        self.ask({**order, "name": where.name, "config": manifest_config(plan.config)})
        self.numerics_class = ""

    def begin(self) -> None:
        """Wait until the process is there. Raises WorkError when it cannot be what it should."""
        name = str(self.answer()["class"])
        where = self.environment
        self.numerics_class = f"experimental/{where.name}" if where.experimental else name

    def ask(self, order: Mapping[str, Any]) -> None:
        """Send a line. A process that is gone shows in its answer."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()

    def answer(self) -> Mapping[str, Any]:
        """The next line. Raises WorkError for a refusal, and when the process has ended."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        try:
            found: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        except ValueError:
            found = {"error": f"its process said {line!r}"}
        if "error" in found:
            reason = str(found["error"]).rstrip(".")
            raise WorkError(f"environment {self.environment.name} cannot take part: {reason}")
        return found

    def ask_step(self, order: Mapping[str, str]) -> None:
        """Have a step done; `end` fetches it."""
        self.ask({**order, "end": str(self._end)})

    def end(self) -> End:
        """Where the step that was asked for ended. Raises WorkError."""
        found = self.answer()
        return End(self._end.read_bytes(), str(found["leaf"]), int(found["loss"]))

    def close(self) -> None:
        """End the process, which ends with its input."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(_GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


class Crew:
    """Workers of unlike classes. `left_out` says of each environment that has none why."""

    def __init__(self, wanted: Sequence[Environment], plan: Plan) -> None:
        self.plan = plan
        self.workers: list[Worker] = []
        self.left_out: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="barnraise-calibrate-")
        self.folder = Path(self._folder.name)
        started = [Worker(where, plan, self.folder) for where in wanted]
        for worker in started:
            try:
                worker.begin()
                known = {each.numerics_class: each.environment.name for each in self.workers}
                if worker.numerics_class in known:
                    raise WorkError(f"it is of the class of {known[worker.numerics_class]}")
            except WorkError as error:
                self.left_out[worker.environment.name] = error.what
                worker.close()
            else:
                self.workers.append(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()
        self._folder.cleanup()

    def step(self, start: bytes, index: int) -> list[End]:
        """Step `index` of the plan, from `start`, by every worker at once."""
        plan = self.plan
        names = {"start": self.folder / "start", "windows": self.folder / "windows"}
        names["start"].write_bytes(start)
        names["windows"].write_bytes(arrays_to_bytes({"windows": plan.windows_SBT[index : index + 1]}))
        order = {name: str(path) for name, path in names.items()}
        for worker in self.workers:
            worker.ask_step({**order, "first": str(index), "rate": hex_float(plan.rates[index])})
        return [worker.end() for worker in self.workers]

    def deviation(self, start: bytes, served: End, own: End, index: int) -> Deviation:
        """How far `served` lies from `own` after step `index` from `start`."""
        plan = self.plan
        return step_deviation(
            plan.spec, plan.specs, *map(plan.point, (start, served.point, own.point)),
            lr=plan.rates[index], losses=(served.loss, own.loss), own_leaf=own.leaf,
        )  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """One honest audit: a step served from one class and repeated in another."""

    contributor: str
    auditor: str
    deviation: Deviation


def walk(crew: Crew, leader: int = 0, writer: PointsWriter | None = None) -> Iterator[list[Audit]]:
    """Every step of the plan: the audits of all pairs with a worker that a member can be. The leader walks.

    `writer` is given the leader's points.
    """
    start = crew.plan.beginning()
    losses = []
    if writer:
        writer.add(start)
    for index in range(len(crew.plan.rates)):
        ends = crew.step(start, index)
        names = [worker.numerics_class for worker in crew.workers]
        members = {i for i, worker in enumerate(crew.workers) if worker.environment.of_members}
        pairs = [
            sorted(pair, key=lambda i: i != leader)
            for pair in itertools.combinations(range(len(ends)), 2)
            if members & {*pair}
        ]
        yield [
            Audit(names[one], names[two], crew.deviation(start, ends[one], ends[two], index))
            for one, two in pairs
        ]
        start = ends[leader].point
        losses.append(ends[leader].loss)
        if writer:
            writer.add(start)
    if writer:
        writer.finish(losses)


def audit_file(crew: Crew, file: PointsFile) -> Iterator[list[Audit]]:
    """Every step of a file's walk, repeated by each worker that is not of the file's class."""
    for index in range(len(crew.plan.rates)):
        start = file.point(index)
        served = End(file.point(index + 1), "", file.losses[index])
        yield [
            Audit(file.numerics_class, worker.numerics_class, crew.deviation(start, served, own, index))
            for worker, own in zip(crew.workers, crew.step(start, index), strict=True)
            if worker.numerics_class != file.numerics_class
        ]
