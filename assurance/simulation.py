"""The protocol under seeded faults and lies: how many of thousands of made-up runs break a rule of it.

Owns how many seeds run, and the words for a person. The simulator is tests/simulator: the shipped
coordinator, members and checker on a virtual network, the training replaced by bytes that follow from the
assignment. `python -m assurance.simulation --seed N` tells the story of one seed, turn by turn.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from assurance.figures import Figure, main
from tests.simulator.setting import BAD_JUDGES, BAD_WITNESSES, CHEATS
from tests.simulator.tally import COMINGS, Result, run_seed, run_seeds

SMALL, FULL = 200, 10_000
CHUNK = 25
COMMAND = "python -m assurance.simulation"

TROUBLES = (
    "request dropped", "answer dropped", "request duplicated", "answer delayed", "after the deadline",
    "reordered", "partitioned", "stale request", "member crashed", "member restarted before its answer left",
    "crash of coordinator at write", "crash of coordinator at replace", "crash of coordinator at unlink",
    "crash of member at write", "crash of member at replace", "crash of member at mkdir",
    "crash of member at unlink", "witness crashed", "a witness's request dropped",
    "a witness's answer dropped",
)  # fmt: skip
REASONS = (
    "late", "unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved",
    "no-eligible-auditor", "unaudited", "unconfirmed", "disputed", "failed-audit",
)  # fmt: skip
OVERRULED = ("collude", "accuse", "rubber-stamp", "honest")
DECIDED = ("accepted", "disputed", "failed-audit")
LATE_REASONS = ("unaudited", "unconfirmed", "disputed", "failed-audit", "follows")
EXPECTED = (
    *COMINGS,
    *(f"fault: {what}" for what in TROUBLES),
    *(f"outcome: {reason}" for reason in ("accepted", *REASONS)),
    *(f"contributor: {kind}" for kind in CHEATS),
    *(f"auditor: {kind}" for kind in BAD_JUDGES),
    "run: finished", "run: stopped, void turns", "run: void turns", "run: taken up after a crash",
    *(f"witness: {kind}" for kind in BAD_WITNESSES),
    "identity: key rotated", "identity: key revoked",
    "segments: some drawn", "segments: a trace or state unserved", "segments: pass on some",
    "segments: boundary found", "segments: one found",
    "outcome: false work accepted, the false segment not drawn",
    "verdict: missed", "verdict: pass, look 1", "verdict: pass, look 2", "verdict: fail, look 1",
    "verdict: fail, look 2", "quarantine: cheat",
    *(f"verdict: {outcome}, look {look}" for outcome in ("pass", "fail") for look in (3, 4, 5)),
    *(f"dispute: appeal logged, {which} work" for which in ("true", "false")),
    *(f"dispute: auditor overruled, {kind}" for kind in OVERRULED),
    *(f"dispute: {which} work looked at again, {how}" for which in ("true", "false") for how in DECIDED),
    "dispute: honest work accepted in spite of an accuser", "dispute: false work failed in spite of a stamp",
    "dispute: sealed verdict lost", "dispute: nobody left to decide",
    *(f"lag: runs with audits {turns} turns late" for turns in (1, 2, 3)),
    *(f"lag: removed, {reason}" for reason in LATE_REASONS),
    "lag: turns settled", "lag: turns of which nothing is left", "lag: true work that fell with false",
    "lag: false work that nobody judged taken out", "lag: audits begun that were waited for",
    "lag: a member died at a call that was begun", "lag: an auditor's key rotated before it was asked",
    "lag: taken up after a crash before a settlement",
    "tolerance: pass, look 2", "tolerance: a false step found, failed-audit",
    "tolerance: deviations that contradict one another", "tolerance: turns with the cap in force",
)  # fmt: skip


def simulate(seeds: range, *, processes: int = 2, progress: bool = False) -> list[Result]:
    """Play and check these seeds, in chunks, in processes of their own; results by seed."""
    chunks = [range(first, min(first + CHUNK, seeds.stop)) for first in range(seeds.start, seeds.stop, CHUNK)]
    found: list[Result] = []
    started = time.monotonic()
    # Fresh interpreters: the simulator replaces system calls while it plays, and forks would share locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(run_seeds, chunk.start, chunk.stop) for chunk in chunks]
        for done in as_completed(waiting):
            found += done.result()
            if progress:
                for result in done.result():
                    for text in result.violations:
                        print(f"seed {result.seed}: {text}", file=sys.stderr, flush=True)
                bad = sum(bool(result.violations) for result in found)
                seconds = time.monotonic() - started
                text = f"{len(found):,} of {len(seeds):,} seeds, {bad} with a violation, {seconds:.0f} s"
                print(text, file=sys.stderr, flush=True)
    return sorted(found, key=lambda result: result.seed)


def totals(results: list[Result]) -> Counter[str]:
    """How often everything occurred."""
    return sum((result.counts for result in results), Counter())


def measure(*, full: bool) -> Iterator[Figure]:
    """Seeded runs of the protocol under faults and lies."""
    seeds = range(FULL if full else SMALL)
    started = time.monotonic()
    results = simulate(seeds, progress=True)
    seconds = time.monotonic() - started
    counts = totals(results)
    for what, count in sorted(counts.items()):
        print(f"{count:>9,}  {what}", file=sys.stderr)
    command = COMMAND + (" --full" if full else "")
    bad = [result.seed for result in results if result.violations]
    note = f"{counts['run: turns']:,} turns, {seconds:.0f} s in two processes"
    if bad:
        note = f"seeds {', '.join(map(str, bad[:10]))}"
    yield Figure("simulated runs that break an invariant", len(bad), "0", not bad, command, len(seeds), note)
    lies = sum(count for what, count in counts.items() if what.startswith("lie: "))
    missed = sum(any(text.startswith("[lie]") for text in result.violations) for result in results)
    kinds = sum(what.startswith("lie: ") for what in counts)
    what = "lies of the coordinator that level 1 does not name"
    yield Figure(what, missed, "0", missed == 0, command, lies, f"{kinds} kinds of lie")
    absent = [what for what in EXPECTED if not counts[what]]
    note = f"absent: {', '.join(absent)}" if absent else ""
    what = "kinds of fault, cheat, verdict and outcome that never occurred"
    yield Figure(what, len(absent), "0", not absent, command, len(EXPECTED), note)


def tell(seed: int) -> int:
    """Print the story of one seed; 1 when it breaks a rule, else 0."""
    result = run_seed(seed, lambda line: print(printable(line), flush=True))
    print(f"log {result.log}")
    return 1 if result.violations else 0


def printable(line: str) -> str:
    """A line that no member's bytes can use to reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)[:400]


if __name__ == "__main__":
    if "--seed" in sys.argv:
        sys.exit(tell(int(sys.argv[sys.argv.index("--seed") + 1])))
    main(measure)
