"""A mutation run: every verification step disabled in turn, and whether some test then fails.

Owns which module is judged by which tests, and the processes. Does not own the tests, or what a step is
(mutants.py). Each mutant runs in a process of its own, forked before anything of ours is imported; the
mutated source exists in that process's memory only.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from assurance.figures import Figure, main
from assurance.line_map import Tracer, traced
from assurance.mutants import Mutant, mutants

ROOT = Path(__file__).parents[1]
COMMAND = "python -m assurance.mutations --full"
SECONDS = 180
ENOUGH = 30.0  # seconds of tests that run a line without firing it
WORKERS = 2
# Hypothesis is imported already, to fork quickly: pytest would warn of it.
_IGNORED = "ignore::pytest.PytestAssertRewriteWarning"
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", _IGNORED)
V, P = "tests/verification/", "tests/pipeline/"


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"{V}test_{name}.py" for name in names)


_FSCK = _files(
    *("fsck_rules", "fsck_lies", "fsck_formats", "fsck_witness", "fsck_members", "fsck_anchor"),
    *("fsck_folders", "fsck_state", "fsck_json", "fsck_stream", "fsck_honest"),
)
_TURNS = _files("rounds", "judge", "lottery", "intake", "plans", "membership", "witnessing", "records")

# What judges each module; the quickest to refuse first.
TESTS: dict[str, tuple[str, ...]] = {
    "merkle": _files("merkle"),
    "keys": _files("keys"),
    "encoding": _files("encoding"),
    "envelope": _files("envelope", "records"),
    "statements": _files("statements"),
    "notes": _files("notes", "log", "witness"),
    "log": _files("log", "log_histories"),
    "lottery": _TURNS,
    "judge": _files("judge", *("rounds", "intake")),
    "intake": _files("intake", "membership"),
    "rounds": _TURNS,
    "plans": _TURNS,
    "records": _files("records", "intake"),
    "fields": _files("records", "intake", "membership"),
    "identity": _files("records", "membership", "intake"),
    "membership": _files("membership", "rounds", "intake"),
    "witnessing": _files("witnessing", "rounds"),
    "witness": _files("witness", "witness_machine"),
    "witness_store": _files("witness", "witness_machine"),
    "policy": _files("policy"),
    "tlog_proof": (*_files("tlog_proof"), P + "test_receipts.py"),
    "sealing": _files("records", "membership"),
    "handout": _files("handout", "rounds"),
    **{
        path.stem: _FSCK
        for path in sorted((ROOT / "verification").glob("fsck*.py"))
        if path.stem not in ("fsck_findings", "fsck_index")
    },
}
TESTS = {f"verification.{name}": tests for name, tests in TESTS.items()}


def measure(*, full: bool) -> Iterator[Figure]:
    """Disable each verification step in turn; count those that no test misses."""
    chosen = list(TESTS) if full else ["verification.merkle", "verification.statements"]
    tried, survivors = run([m for name in chosen for m in mutants_of(name)])
    yield Figure(
        "verification steps whose removal no test notices",
        len(survivors),
        "0",
        not survivors,
        COMMAND,
        tried,
        "; ".join(m.name for m in survivors[:20]),
    )


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module."""
    return list(mutants(module, _source(module)))


def _source(module: str) -> str:
    return (ROOT / (module.replace(".", "/") + ".py")).read_text()


def run(todo: Sequence[Mutant]) -> tuple[int, list[Mutant]]:
    """(how many were tried, those that survived). Prints each survivor to stderr as it is found.

    Ends the program when a test fails without any mutation: then nothing would survive.
    """
    _warm_up()
    maps = {tests: _map(tests) for tests in {TESTS[mutant.module] for mutant in todo}}
    running: dict[int, tuple[Mutant, float]] = {}
    waiting, survivors, done = list(reversed(todo)), [], 0
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant = waiting.pop()
            file = mutant.module.rpartition(".")[2] + ".py"
            tests = maps[TESTS[mutant.module]].judges(file, mutant.line, mutant.last, ENOUGH)
            running[_start(mutant, tests)] = (mutant, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for late in [p for p, (_, since) in running.items() if time.monotonic() - since > SECONDS]:
                os.killpg(late, signal.SIGKILL)  # a step that keeps a loop from ending is noticed
            time.sleep(0.02)
            continue
        mutant, since = running.pop(pid)
        done += 1
        if os.waitstatus_to_exitcode(status) == 0:
            survivors.append(mutant)
            print(f"SURVIVED {mutant.name} ({time.monotonic() - since:.0f} s)", file=sys.stderr, flush=True)
        if done % 25 == 0:
            print(f"{done} of {len(todo)}, {len(survivors)} survived", file=sys.stderr, flush=True)
    return len(todo), survivors


def _map(tests: Sequence[str]) -> Tracer:
    """What each test runs, found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "map"
        pid = _fork(lambda: _trace(tests, file))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            sys.exit(f"the tests fail without any mutation: {' '.join(tests)}")
        tracer: Tracer = pickle.loads(file.read_bytes())
        return tracer


def _trace(tests: Sequence[str], file: Path) -> int:
    _settle_hypothesis()
    file.write_bytes(pickle.dumps(traced(ROOT / "verification", tests, FLAGS)))
    return 0


def _warm_up() -> None:
    """Import others' code once, so that every child has it; nothing of ours."""
    for name in ("cryptography.hazmat.primitives.asymmetric.ed25519", "hypothesis", "numpy", "pytest"):
        importlib.import_module(name)
    ours = {"verification", "pipeline", "model", "data_prep", "cluster"}
    early = [name for name in sys.modules if name.split(".")[0] in ours]
    assert not early, f"imported too early: {early}"


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.path = ROOT / (mutant.module.replace(".", "/") + ".py")

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)  # type: ignore[arg-type]

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source, str(self.path), "exec"), module.__dict__)


def _start(mutant: Mutant, tests: Sequence[str]) -> int:
    def judge() -> int:
        if not tests:
            return 0  # no test runs that line at all
        sys.meta_path.insert(0, _Mutated(mutant))
        _settle_hypothesis()
        import pytest

        return int(pytest.main([*FLAGS, *tests]))

    return _fork(judge)


def _fork(work: Callable[[], int]) -> int:
    """Do `work` in a child that says nothing; its process id. The exit code is what `work` gives."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.chdir(ROOT)
        code = work()
    finally:
        os._exit(code)


def _settle_hypothesis() -> None:
    """The same examples every time, and no shrinking: only whether a test fails is asked."""
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutation",
        phases=(Phase.explicit, Phase.generate),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutation")


if __name__ == "__main__":
    main(measure)
