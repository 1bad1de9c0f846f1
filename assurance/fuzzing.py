"""Hostile bytes for every parser in fuzz_targets.py: mutations, and coverage-guided ones (atheris).

Owns what must hold of each input: it is taken or refused with an error of the family, within `SLOWEST_S`
seconds and `MOST_BYTES` of memory. Does not own which parsers there are, nor how inputs are mutated.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from assurance import (  # noqa: F401 - the table
    fuzz_targets_files,
    fuzz_targets_folder,
    fuzz_targets_members,
    fuzz_targets_network,
    fuzz_targets_rules,
    fuzz_targets_typed,
    fuzz_targets_witness,
)
from assurance.figures import Figure, main
from assurance.fuzz_mutations import inputs
from assurance.fuzz_targets import TARGETS, Target, make
from verification.errors import BarnraiseError

SLOWEST_S = 2.0
MOST_BYTES = 32 << 20  # that one input may make a parser hold, above what was held before
MOST_GROWTH = 256 << 20  # of the process, over all inputs of a target
MOST_TEXT = 20_000  # characters of an error's message
TRACED_EVERY = 199
FULL = 100_000
GUIDED = 1_000  # how many more atheris makes, where it is installed
SMALL = 40
COMMAND = "python -m assurance.fuzzing --full"
KINDS = {
    "raised": "errors that are not of the project's family",
    "slow": f"inputs that took longer than {SLOWEST_S:g} s",
    "memory": f"inputs that took more than {MOST_BYTES >> 20} MiB",
    "message": "error messages that cannot be shown or are too long",
    "disagree": "inputs on which the two readers of one format disagree",
    "seed": "sound inputs that were refused",
}


# --- what must hold of each ---


@dataclass
class Outcome:
    """What a target did with its inputs. `wrong` holds at most `KEPT` examples, `counts` all by kind."""

    name: str
    tried: int = 0
    taken: int = 0
    guided: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    growth: int = 0
    longest_text: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    KEPT = 20

    def blame(self, kind: str, what: str, data: bytes) -> None:
        """Note that something does not hold."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.wrong) < self.KEPT and not any(what[:60] in line for line in self.wrong):
            shown = repr(data) if len(data) <= 400 else f"{data[:200]!r}… ({len(data)} bytes)"
            self.wrong.append(f"{self.name}: {kind}: {what} for {shown}")

    def merge(self, other: Outcome) -> None:
        """Add what another process found with the same target."""
        self.tried += other.tried
        self.taken += other.taken
        self.guided += other.guided
        self.seconds += other.seconds
        for name in ("slowest_s", "most_bytes", "growth", "longest_text"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.wrong += other.wrong


class TooSlowError(BaseException):
    """Raised inside a parser by the clock."""


@contextmanager
def alarm() -> Iterator[None]:
    """Within it, whoever sets the interval timer is stopped with `TooSlowError`; main thread only."""

    def ring(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Judge:
    """Gives inputs to a target's parsers and notes what does not hold; only while `alarm` is set."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.outcome = Outcome(target.name)

    def check(self, data: bytes, *, sound: bool = False, traced: bool = False) -> None:
        """One input; a `sound` one must be taken."""
        taken = [self._one(parse, data, traced) for parse in self.target.parsers]
        self.outcome.tried += 1
        self.outcome.taken += taken[0]
        if sound and not all(taken):
            self.outcome.blame("seed", f"refused by parser {taken.index(False)}", data)
        if self.target.agree and len(set(taken)) > 1:
            self.outcome.blame("disagree", f"taken: {taken}", data)

    def _one(self, parse: Callable[[bytes], object], data: bytes, traced: bool) -> bool:
        outcome = self.outcome
        if traced:
            tracemalloc.start()
        started = time.perf_counter()
        taken = False
        try:
            signal.setitimer(signal.ITIMER_REAL, SLOWEST_S)
            try:
                parse(data)
                taken = True
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except BarnraiseError as error:
            self._check_text(error, data)
        except TooSlowError:
            outcome.blame("slow", f"more than {SLOWEST_S:g} s", data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome.blame("raised", f"{type(error).__name__}: {str(error)[:200]}", data)
        outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - started)
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            outcome.most_bytes = max(outcome.most_bytes, peak)
            if peak > MOST_BYTES:
                outcome.blame("memory", f"{peak} bytes", data)
        return taken

    def _check_text(self, error: BarnraiseError, data: bytes) -> None:
        try:
            length = len(str(error))
        except Exception as wrong:
            self.outcome.blame("message", f"{type(wrong).__name__} in the words of an error", data)
            return
        self.outcome.longest_text = max(self.outcome.longest_text, length)
        if length > MOST_TEXT:
            self.outcome.blame("message", f"{error.what[:60]}: {length} characters", data)


def fuzz(target: Target, count: int, seed: int) -> Outcome:
    """Give a target its seeds and `count` mutations of them; the same ones for the same `seed`."""
    judge = Judge(target)
    with alarm():
        for data in target.seeds:
            judge.check(target.wrap(data) if target.wrap else data, sound=True, traced=not target.untraced)
        judge.outcome.tried = judge.outcome.taken = 0
        started = time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source = inputs(target, random.Random(f"{target.name} {seed}"))
        for number in range(count):
            traced = not target.untraced and (number < 20 or number % TRACED_EVERY == 0)
            judge.check(next(source), traced=traced)
    judge.outcome.seconds = time.process_time() - started
    judge.outcome.growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    return judge.outcome


# --- each target in a process of its own ---


def child(arguments: list[str]) -> None:
    """`NAME COUNT SEED RESULT [guided]`: fuzz one target and write what came of it to the file RESULT."""
    name, count, seed, result = arguments[0], int(arguments[1]), int(arguments[2]), Path(arguments[3])
    # Within the parent's, which it removes however this process ends.
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        if arguments[4:] == ["guided"]:
            _guided(make(name, Path(folder)), count, seed, result, Path(folder))
        else:
            result.write_text(json.dumps(asdict(fuzz(make(name, Path(folder)), count, seed))))


def _guided(target: Target, count: int, seed: int, result: Path, folder: Path) -> None:
    """Atheris ends the process itself, so what came of it is written as it comes."""
    atheris = import_module("atheris")  # installed by who wants it; never in CI

    judge = Judge(target)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
        if target.wrap:
            (corpus / f"{number}w").write_bytes(target.wrap(data))

    def one(data: bytes) -> None:
        if target.wrap and len(data) % 2:
            with suppress(BarnraiseError):
                data = target.wrap(data)
        judge.check(data, traced=not target.untraced and judge.outcome.tried % TRACED_EVERY == 0)
        judge.outcome.guided = judge.outcome.tried
        if judge.outcome.tried % 500 == 0 or judge.outcome.tried >= count:
            result.write_text(json.dumps(asdict(judge.outcome)))

    options = [f"-runs={count}", f"-seed={seed}", "-max_len=4096", "-verbosity=0", "-print_final_stats=0"]
    with alarm():
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, enable_python_coverage=True)
        atheris.Fuzz()


def in_child(name: str, count: int, seed: int, *, guided: bool) -> Outcome:
    """`fuzz` in another process, which may hang or die."""
    with scratch_folder() as folder:
        result = Path(folder) / "result"
        start = (
            "import atheris\nwith atheris.instrument_imports(include=['verification', 'pipeline', 'model', "
        )
        start += "'data_prep'], enable_loader_override=False):\n    import assurance.fuzzing as f\n"
        start = start if guided else "import assurance.fuzzing as f\n"
        arguments = [name, str(count), str(seed), str(result), *(["guided"] if guided else [])]
        order = [sys.executable, "-c", f"import sys\n{start}f.child(sys.argv[1:])", *arguments]
        try:
            ended = subprocess.run(order, capture_output=True, timeout=600 + count * 0.1, check=False)
            code, said = str(ended.returncode), ended.stderr.decode(errors="replace")[-600:]
        except subprocess.TimeoutExpired:
            code, said = "none", "it did not end"
        outcome = Outcome(name)
        if result.exists() and (text := result.read_text()):
            outcome = Outcome(**json.loads(text))
        if code != "0" or not outcome.tried:
            outcome.blame("raised", f"the process ended with {code}: {said}", b"")
        return outcome


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files that are written many times a second; in memory where there is such a disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="barnraise-fuzz-", dir=place)


def in_full(name: str) -> Outcome:
    """All inputs of one target: mutations, then coverage-guided ones where atheris is installed."""
    outcome = in_child(name, round(FULL * TARGETS[name].share), 1, guided=False)
    if has_atheris():
        outcome.merge(in_child(name, max(1, round(GUIDED * TARGETS[name].share)), 1, guided=True))
    return outcome


def in_full_all() -> Iterator[Outcome]:
    """Every target, two at a time, the slow ones first; a line to stderr as each ends."""
    started = time.monotonic()
    names = sorted(TARGETS, key=lambda name: not TARGETS[name].why)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(in_full, name) for name in names]
        for number, ended in enumerate(as_completed(waiting), 1):
            outcome = ended.result()
            rate = (outcome.tried - outcome.guided) / outcome.seconds if outcome.seconds else 0
            said = (
                f"{outcome.tried:,} inputs ({outcome.guided:,} guided), {outcome.taken:,} taken",
                f"{rate:,.0f}/s of one core",
                f"slowest {1000 * outcome.slowest_s:.0f} ms, most {outcome.most_bytes / 2**20:.1f} MiB",
                f"growth {outcome.growth >> 20} MiB, longest message {outcome.longest_text}",
                f"{outcome.counts or 'sound'}",
            )
            at = f"[{number}/{len(names)}, {time.monotonic() - started:.0f} s]"
            print(f"{at} {outcome.name}: {', '.join(said)}", file=sys.stderr, flush=True)
            for line in outcome.wrong:
                print(f"    {line[:1500]}", file=sys.stderr, flush=True)
            yield outcome


def has_atheris() -> bool:
    """Whether the coverage-guided fuzzer is installed."""
    return find_spec("atheris") is not None


# --- figures ---


def measure(*, full: bool) -> Iterator[Figure]:
    """Malformed and hostile bytes for every parser."""
    if full:
        outcomes = list(in_full_all())
    else:
        outcomes = []
        with scratch_folder() as folder:
            for name in TARGETS:
                place = Path(folder) / name
                place.mkdir()
                outcomes.append(fuzz(make(name, place), round(SMALL * TARGETS[name].small), 1))
                for line in outcomes[-1].wrong:
                    print(line[:1500], file=sys.stderr)
    yield from figures(outcomes)


def figures(outcomes: list[Outcome]) -> Iterator[Figure]:
    """What came of all targets together."""
    tried = sum(outcome.tried for outcome in outcomes)
    guided = sum(outcome.guided for outcome in outcomes)
    amounts: Counter[str] = Counter()
    for outcome in outcomes:
        amounts[outcome.name.split(":")[0]] += outcome.tried
    taken = sum(outcome.taken for outcome in outcomes)
    note = (
        f"{len(amounts)} parsers, {len(outcomes)} kinds of input; {taken:,} taken, {guided:,} coverage-guided"
    )
    for kind, what in KINDS.items():
        count = sum(outcome.counts.get(kind, 0) for outcome in outcomes)
        where = ", ".join(outcome.name for outcome in outcomes if kind in outcome.counts)
        full_note = f"{note}; {where}" if where else note
        yield Figure(what, count, "0", count == 0, COMMAND, tried=tried, note=full_note)
    short = [f"{name} {amount:,}" for name, amount in amounts.items() if amount < FULL]
    yield Figure(
        "fewest inputs that a parser was given",
        min(amounts.values()),
        f"at least {FULL:,}",
        not short,
        COMMAND,
        note=f"fewer: {', '.join(short)}" if short else f"{len(amounts)} parsers{_kinds(outcomes)}",
    )
    slow = max(outcomes, key=lambda outcome: outcome.slowest_s)
    yield Figure(
        "slowest input, s", round(slow.slowest_s, 3), f"{SLOWEST_S:g}", slow.slowest_s <= SLOWEST_S, COMMAND
    )
    large = max(outcomes, key=lambda outcome: outcome.most_bytes)
    mib = round(large.most_bytes / 2**20, 2)
    yield Figure("most memory for one input, MiB", mib, "32", mib <= 32, COMMAND, note=large.name)
    grown = max(outcomes, key=lambda outcome: outcome.growth)
    mib = round(grown.growth / 2**20, 1)
    holds = grown.growth <= MOST_GROWTH
    yield Figure(
        "most growth of a process, MiB", mib, f"{MOST_GROWTH >> 20}", holds, COMMAND, note=grown.name
    )


def _kinds(outcomes: list[Outcome]) -> str:
    """What the amounts of whole parsers do not say: which kinds of their inputs are few, and why."""
    why = {outcome.name: TARGETS[outcome.name].why for outcome in outcomes if outcome.name in TARGETS}
    few = [f"{o.name} {o.tried:,} ({why[o.name]})" for o in outcomes if why.get(o.name)]
    others = min((outcome.tried for outcome in outcomes if not why.get(outcome.name)), default=0)
    text = f"; the kinds of input of one parser share its amount, each at least {others:,}"
    return f"{text}, but for slow ones: {', '.join(few)}" if few else text


if __name__ == "__main__":
    main(measure)
