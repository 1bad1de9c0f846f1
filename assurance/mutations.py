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
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from assurance.figures import Figure, main
from assurance.mutants import Mutant, mutants

ROOT = Path(__file__).parents[1]
COMMAND = "python -m assurance.mutations --full"
SECONDS = 240
WORKERS = 2
IGNORED = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is imported already, to fork quickly
V, P = "tests/verification/", "tests/pipeline/"
FSCK = tuple(str(p.relative_to(ROOT)) for p in sorted((ROOT / V).glob("test_fsck_*.py")))

# What judges each module; the quickest to refuse first.
TESTS: dict[str, tuple[str, ...]] = {
    "verification.merkle": (V + "test_merkle.py",),
    "verification.keys": (V + "test_keys.py",),
    "verification.encoding": (V + "test_encoding.py",),
    "verification.envelope": (V + "test_envelope.py",),
    "verification.statements": (V + "test_statements.py",),
}


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

    Ends the program when the tests fail on an unchanged module already: then nothing would survive.
    """
    _warm_up()
    for module in sorted({mutant.module for mutant in todo}):
        pid = _start(Mutant(module, 0, "unchanged", _source(module)))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            sys.exit(f"the tests of {module} fail without any mutation: {' '.join(TESTS[module])}")
    running: dict[int, tuple[Mutant, float]] = {}
    waiting, survivors, done = list(reversed(todo)), [], 0
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant = waiting.pop()
            running[_start(mutant)] = (mutant, time.monotonic())
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


def _start(mutant: Mutant) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.meta_path.insert(0, _Mutated(mutant))
        code = _judge(TESTS[mutant.module])
    finally:
        os._exit(code)


def _judge(tests: Sequence[str]) -> int:
    import pytest
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
    os.chdir(ROOT)
    return int(
        pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", IGNORED, *tests])
    )


if __name__ == "__main__":
    main(measure)
