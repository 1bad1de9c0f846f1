"""A mutation run: every verification step disabled in turn, and whether some test then fails.

Owns which module is judged by which tests, and the processes. Does not own the tests, or what a step is
(mutants.py). Each mutant runs in a process of its own; the mutated code exists in that process's memory only.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from assurance.figures import Figure, main
from assurance.line_map import Tracer
from assurance.live_swap import swap
from assurance.mutants import Mutant, mutants

ROOT = Path(__file__).parents[1]
COMMAND = "python -m assurance.mutations --full"
SECONDS = 180
ENOUGH = 30.0  # seconds of tests that fire a line, and as many of those that run it otherwise
WORKERS = 2
_NOTICED = (1, 2)  # pytest's codes for a test that fails, and for a module that cannot be imported
_ANEW = 75  # a mutant that cannot be put into live functions
# Hypothesis is imported already, to fork quickly: pytest would warn of it.
_IGNORED = "ignore::pytest.PytestAssertRewriteWarning"
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", _IGNORED)
V, P = "tests/verification/", "tests/pipeline/"


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"{V}test_{name}.py" for name in names)


# All of the checker's, but for the flips, which take long and are the same tests for every module.
_FSCK = tuple(
    f"{V}{path.name}" for path in sorted((ROOT / V).glob("test_fsck*.py")) if path.stem != "test_fsck_flips"
)
_WITNESS = _files("witness", "witness_links", "witness_memory", "witness_forks")
_LATE = ("settling_order", "settling")
_LOOKS = ("disputes", "looks", "rounds_looks", "overruled")
_TURNS = _files(
    *("rounds_order", "rounds", "rounds_looks", "overruled", "looks", "judge", "lottery", "intake", "plans"),
    *("plans_tolerance", *_LATE, "membership", "witnessing", "records"),
)

# What judges each module; the quickest to refuse first.
TESTS: dict[str, tuple[str, ...]] = {
    "merkle": _files("merkle"),
    "keys": _files("keys"),
    "encoding": _files("encoding"),
    "envelope": _files("envelope", "records"),
    "statements": _files("statements"),
    "notes": (*_files("notes", "log"), *_WITNESS),
    "log": _files("log", "log_histories"),
    "lottery": _TURNS,
    "judge": _files("judge", "judge_tolerance", "intake_sketches", "rounds", "intake", "overruled", *_LATE),
    "disputes": _files(*_LOOKS),
    "looks": _files(*_LOOKS),
    "verdicts": _files("verdicts", "records", "intake_appeals", "rounds_looks"),
    "settling": _files(*_LATE, "overruled"),
    "tolerance": _files("tolerance", "judge_tolerance", "plans_tolerance", "intake_sketches"),
    "credits": _files("credits", "rounds", *_LATE, "overruled"),
    "state": _files("state", "rounds", *_LATE, "rounds_looks"),
    "beacon": _files("beacon"),
    "intake": _files(
        *("intake", "intake_verdicts", "intake_appeals", "intake_sketches", "membership", "intake_snapshot")
    ),
    "rounds": _TURNS,
    "plans": _TURNS,
    "records": _files("records", "intake"),
    "fields": _files("records", "intake", "membership"),
    "identity": _files("records", "membership", "intake"),
    "membership": _files("membership", "rounds", "intake", "settling_order"),
    "witnessing": _files("witnessing", "rounds"),
    "witness": (*_WITNESS, *_files("witness_machine")),
    "witness_store": (*_WITNESS, *_files("witness_machine")),
    "policy": _files("policy"),
    "tlog_proof": (*_files("tlog_proof"), P + "test_receipts.py"),
    "sealing": _files("records", "membership"),
    "handout": _files("handout", "rounds"),
    "retention": _files("retention"),
    "segments": _files("segments", "judge"),
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
    survivors, done = [], 0
    stderr = os.dup(2)  # a session's own streams lead nowhere

    def say(text: str) -> None:
        os.write(stderr, f"{text}\n".encode())

    for tests in dict.fromkeys(TESTS[mutant.module] for mutant in todo):
        judged = [mutant for mutant in todo if TESTS[mutant.module] == tests]
        survived, anew = _in_session(tests, judged, say)
        # What could not be changed in place is imported anew, in a process of its own.
        survived += _each(list(anew), partial(_import_anew, anew), say)
        survivors += sorted(survived, key=lambda mutant: (mutant.module, mutant.line))
        done += len(judged)
        say(f"{done} of {len(todo)} tried, {len(anew)} of them imported anew, {len(survivors)} survived")
    return len(todo), survivors


def _each(
    todo: Sequence[Mutant],
    start: Callable[[Mutant], int],
    say: Callable[[str], None],
    anew: list[Mutant] | None = None,
) -> list[Mutant]:
    """Run `start`, which gives a process id, for each mutant, a few at a time; those that nothing noticed.

    A runner that breaks, or finds no test to run, has noticed nothing. Those whose process gives `_ANEW` are
    added to `anew`.
    """
    running: dict[int, tuple[Mutant, float]] = {}
    waiting, survivors = list(reversed(todo)), []
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant = waiting.pop()
            running[start(mutant)] = (mutant, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for late in [p for p, (_, since) in running.items() if time.monotonic() - since > SECONDS]:
                os.killpg(late, signal.SIGKILL)  # a step that keeps a loop from ending is noticed
            time.sleep(0.005)
            continue
        mutant, since = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == _ANEW and anew is not None:
            anew.append(mutant)
        elif code not in _NOTICED and code >= 0:  # killed by a signal is noticed, too
            survivors.append(mutant)
            say(f"SURVIVED {mutant.name} ({time.monotonic() - since:.0f} s)")
    return survivors


def _in_session(
    tests: Sequence[str], todo: Sequence[Mutant], say: Callable[[str], None]
) -> tuple[list[Mutant], dict[Mutant, Sequence[str]]]:
    """The survivors, and what could not be judged here with the tests that are to judge it.

    One process imports the tests once; each mutant is a fork of it, in which live functions get other code.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        pid = _fork(lambda: _judge_all(tests, _Session(todo, answer, say)))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 or not answer.exists():
            sys.exit(f"the tests fail without any mutation: {' '.join(tests)}")
        survived, anew = pickle.loads(answer.read_bytes())
    return [todo[i] for i in survived], {todo[i]: names for i, names in anew.items()}


def _judge_all(tests: Sequence[str], session: _Session) -> int:
    _settle_hypothesis()
    import pytest

    return int(pytest.main([*FLAGS, *tests], plugins=[session]))


class _Session:
    """A pytest plugin: instead of running the tests once, runs those of each mutant in a fork."""

    def __init__(self, todo: Sequence[Mutant], answer: Path, say: Callable[[str], None]) -> None:
        self.todo, self.answer, self.say = todo, answer, say

    def pytest_runtestloop(self, session: Any) -> bool:
        """Called by pytest when everything is collected."""
        tracer = self._trace(session)
        chosen = {
            mutant: tracer.judges(mutant.module.rpartition(".")[2] + ".py", mutant.line, mutant.last, ENOUGH)
            for mutant in self.todo
        }
        anew: list[Mutant] = []
        path = {mutant.module: str(ROOT / (mutant.module.replace(".", "/") + ".py")) for mutant in self.todo}
        source = {module: Path(file).read_text() for module, file in path.items()}

        def judge(mutant: Mutant) -> int:
            if not chosen[mutant]:
                return 0  # no test runs that line at all
            if not swap(path[mutant.module], source[mutant.module], mutant.source):
                return _ANEW
            return _failures(session, chosen[mutant])

        survived = _each(self.todo, lambda mutant: _fork(lambda: judge(mutant)), self.say, anew)
        given = (
            [self.todo.index(mutant) for mutant in survived],
            {self.todo.index(mutant): chosen[mutant] for mutant in anew},
        )
        self.answer.write_bytes(pickle.dumps(given))
        return True

    @staticmethod
    def _trace(session: Any) -> Tracer:
        """What each test runs, found in a fork. RuntimeError when one fails with nothing changed."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "map"

            def trace() -> int:
                tracer = Tracer(ROOT / "verification")
                session.config.pluginmanager.register(tracer)
                failed = _failures(session, None)
                file.write_bytes(pickle.dumps(tracer))
                return failed

            if os.waitstatus_to_exitcode(os.waitpid(_fork(trace), 0)[1]) != 0:
                raise RuntimeError("a test fails without any mutation")
            tracer: Tracer = pickle.loads(file.read_bytes())
            return tracer


def _failures(session: Any, names: Iterable[str] | None) -> int:
    """Run the session's tests of these names in this order, or all, until one fails; 1 when one did."""
    by_name = {item.nodeid: item for item in session.items}
    items = [by_name[name] for name in (by_name if names is None else names)]
    for number, item in enumerate(items):
        following = items[number + 1] if number + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
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


def _import_anew(tests: Mapping[Mutant, Sequence[str]], mutant: Mutant) -> int:
    def judge() -> int:
        sys.meta_path.insert(0, _Mutated(mutant))
        _settle_hypothesis()
        import pytest

        return int(pytest.main([*FLAGS, *tests[mutant]]))

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
