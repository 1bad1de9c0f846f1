"""A run that is killed anywhere ends, when taken up again, with the weights of one that never was."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import MemberDiedError
from pipeline.adversaries import ADVERSARIES
from pipeline.auditing import Hearing
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.ledger import Ledger
from pipeline.source import source_digest
from tests.pipeline.crash_tools import (
    Site,
    drill,
    in_child,
    in_parallel,
    in_progress_only,
    kill,
    killed_at,
    leftovers,
    records,
    scratch,
    signed_twice,
    small_config,
    states_of,
    watched,
    wrong_at_the_end,
)
from tests.tiny import corpus
from verification.errors import ProtocolError, StorageError
from verification.records import FirstLooks, RevealClose, RoundClose

# A commit of the second round: state, payload, answers, and what is forgotten after them.
LONGEST_CALL = 8


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Made once, before any fork; and the source stays what it is now, whoever edits it meanwhile.
    corpus()
    source_digest()
    with scratch() as folder:
        yield folder


class Undisturbed:
    """A run folder as create_run leaves it, and what becomes of it when nothing happens."""

    def __init__(self, place: Path, kind: str | None) -> None:
        self.fresh = Site(place / f"{kind}-fresh")
        in_child(lambda: self.fresh.create(small_config(), kind))
        self.whole = self.fresh.copy(place / f"{kind}-whole")
        self.steps = killed_at(self.whole, None, self.whole.finish) or []
        answer = self.whole.verified(2)
        assert answer.ok
        assert answer.complete
        self.digest = answer.weights_digest


@pytest.fixture(scope="module")
def lazy(place: Path) -> Undisturbed:
    return Undisturbed(place, "lazy")


def resumed(site: Site, digest: str, *, here: bool = False) -> list[str]:
    """What is wrong with a killed run, as it lies there and once it was taken up again."""
    found = in_progress_only(site.verified(1))
    if here:
        watched(site, lambda _: None, site.finish)
    else:
        killed_at(site, None, site.finish)
    return found + wrong_at_the_end(site, digest)


def halves(work: Callable[[list[Any]], list[str]], points: list[Any]) -> list[str]:
    return in_parallel([partial(work, points[0::2]), partial(work, points[1::2])])


def sample(steps: list[str], every: int, seed: int) -> list[int]:
    """Every `every`-th step from a drawn one on, the last two, and a rename of each kind of public file."""
    kinds: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.startswith("replace /run/"):
            kinds[re.sub(r"[0-9a-f]{64}|\d+", "N", step)] = number
    chosen = range(random.Random(seed).randrange(every), len(steps), every)
    return sorted({*chosen, *kinds.values(), len(steps) - 2, len(steps) - 1})


def test_a_driver_killed_between_its_writes(lazy: Undisturbed) -> None:
    """A sample; the slow test below takes every step."""
    points = sample(lazy.steps, 47, 1)
    assert len(points) > 15

    def work(some: list[int]) -> list[str]:
        found = []
        for point in some:
            site = lazy.fresh.copy(root / str(point))
            assert killed_at(site, point, site.finish) is None
            found += [f"before step {point}, {lazy.steps[point]}: {x}" for x in resumed(site, lazy.digest)]
        return found

    with scratch() as root:
        assert halves(work, points) == []


def test_what_was_signed_before_a_kill_is_what_is_signed_after_it(lazy: Undisturbed) -> None:
    """Killed with a signed checkpoint written and not yet in place: clocks and members may then differ."""
    points = [n for n, step in enumerate(lazy.steps) if step == "replace /run/log/.checkpoint.tmp"]

    def work(some: list[int]) -> list[str]:
        found = []
        for point in some:
            site = lazy.fresh.copy(root / str(point))
            killed_at(site, point, site.finish)
            killed_at(site, None, site.finish)
            found += [f"before step {point}: {line}" for line in signed_twice(site)]
        return found

    with scratch() as root:
        assert len(points) > 15
        assert halves(work, points[:10]) == []


@pytest.mark.slow
def test_a_driver_killed_between_any_two_writes(lazy: Undisturbed) -> None:
    """What a kill leaves before each step, run-close and contributions.parquet included."""

    def work(some: list[Site]) -> list[str]:
        found = []
        for site in some:
            wrong = resumed(site, lazy.digest, here=True)
            found += [f"before step {site.root.name}: {line}" for line in wrong]
            shutil.rmtree(site.root)
        return found

    with scratch() as root:
        site = lazy.fresh.copy(root / "site")
        states = states_of(site, root, site.finish)
        assert len(states) > 300
        # A few in one process, which keeps its torch warm: a lock in a private folder is held to its end.
        few = [states[start : start + 16] for start in range(0, len(states), 16)]
        assert in_parallel([partial(work, some) for some in few]) == []


def test_a_driver_killed_again_while_it_resumes(lazy: Undisturbed) -> None:
    dice = random.Random(2)
    steps = len(lazy.steps)
    points = [(dice.randrange(steps), dice.randrange(40), dice.randrange(60)) for _ in range(6)]

    def work(some: list[tuple[int, int, int]]) -> list[str]:
        found = []
        for number, point in enumerate(some):
            site = lazy.fresh.copy(root / f"{number}-{point[0]}-{os.getpid()}")
            for step in point:
                killed_at(site, step, site.finish)
                found += in_progress_only(site.verified(1))
            found += [f"killed before steps {point}: {line}" for line in resumed(site, lazy.digest)]
        return found

    with scratch() as root:
        assert halves(work, points) == []


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_start_that_is_killed_leaves_a_run_or_nothing(lazy: Undisturbed, every: int) -> None:
    def start(site: Site) -> None:
        site.create(small_config(), "lazy")

    def work(some: list[int]) -> list[str]:
        found = []
        for point in some:
            site = Site(root / str(point))
            killed_at(site, point, partial(start, site))
            if not site.folder.exists():
                killed_at(site, None, partial(start, site))
            if len(list((site.home / "runs").iterdir())) != 1:
                found.append(f"{point}: secrets of a run that never was")
            if any(site.root.glob(".*")):
                found.append(f"{point}: an unfinished folder is left")
            found += [f"start killed before step {point}: {x}" for x in resumed(site, lazy.digest)]
        return found

    with scratch() as root:
        whole = Site(root / "whole")
        steps = len(killed_at(whole, None, partial(start, whole)) or [])
        assert steps > 30
        points = sorted({*range(random.Random(every).randrange(every), steps, every), steps - 2, steps - 1})
        assert halves(work, points) == []


@pytest.mark.parametrize("kind", ["silent", "dodger", "state-smuggler", "stale"])
def test_an_adversary_is_the_same_one_after_a_kill(place: Path, kind: str) -> None:
    run = Undisturbed(place, kind)
    caught = [r.rejected for r in records(run.whole) if isinstance(r, RoundClose)]
    assert any(caught)
    dice = random.Random(kind)

    def work(some: list[int]) -> list[str]:
        found = []
        for point in some:
            site = run.fresh.copy(root / str(point))
            killed_at(site, point, site.finish)
            found += [f"before step {point}: {line}" for line in resumed(site, run.digest)]
            told = [path.read_text() for path in site.home.glob("runs/*/*/drill")]
            closes = [r.rejected for r in records(site) if isinstance(r, RoundClose)]
            reasons = [[(r.slot, r.reason) for r in rejected] for rejected in closes]
            if told != [kind] or reasons != [[(r.slot, r.reason) for r in rejected] for rejected in caught]:
                found.append(f"before step {point}: told {told}, {reasons}")
        return found

    with scratch() as root:
        # The first one before any member was made: who cheats is known all the same.
        points = [1, *(dice.randrange(20, len(run.steps)) for _ in range(4))]
        assert halves(work, points) == []


def dying(site: Site, at: int | None) -> int:
    """Run to the end while each member dies at step `at` of every call, or as it answers; how many deaths."""
    deaths = 0
    inside: list[int] = []
    seen: set[Any] = set()

    def before(number: int) -> None:
        nonlocal deaths
        if inside and at is not None:
            inside[0] -= 1
            if inside[0] < 0:
                inside.clear()
                deaths += 1
                raise MemberDiedError

    def mortal(kind: type, name: str) -> None:
        real = getattr(kind, name)

        def verb(self: Any, *args: Any) -> Any:
            nonlocal deaths
            call = (self.name, name, repr(args))
            first = call not in seen
            seen.add(call)
            inside[:] = [at or 0] if first else []
            try:
                answer = real(self, *args)
            finally:
                inside.clear()
            if first and at is None:
                deaths += 1
                raise MemberDiedError
            return answer

        setattr(kind, name, verb)

    verbs = ("missing_files", "store_file", "enrol")
    for kind, names in (
        (Contributor, (*verbs, "commit", "reveal", "serve_state", "serve_trace")),
        (Auditor, (*verbs, "audit")),
    ):
        for name in names:
            mortal(kind, name)
    watched(site, before, site.finish)
    return deaths


def test_members_that_die_between_their_writes(lazy: Undisturbed) -> None:
    """At the n-th step of each call of every member, for each n there is; and with the answer ready."""

    def work(some: list[int | None]) -> list[str]:
        found = []
        for at in some:
            site = lazy.fresh.copy(root / str(at))
            _, deaths = in_child(partial(dying, site, at))
            if not deaths:
                found.append(f"nobody died at step {at}")
            found += [f"dead at step {at} of each call: {x}" for x in wrong_at_the_end(site, lazy.digest)]
        return found

    with scratch() as root:
        assert halves(work, [None, *range(LONGEST_CALL)]) == []
        # Nobody takes more steps than that in one call.
        site = lazy.fresh.copy(root / "longest")
        assert in_child(partial(dying, site, LONGEST_CALL))[1] == 0


@pytest.mark.parametrize("when", range(4))
def test_members_that_are_made_anew_while_they_are_made(lazy: Undisturbed, when: int) -> None:
    """Deaths in the factory: vault, key and lock."""

    def child() -> int:
        from pipeline import hiring

        deaths: dict[str, int] = {}
        active: list[str] = []
        real = hiring.make_member

        def factory(spec: Any) -> Any:
            active[:] = [spec.name]
            try:
                return real(spec)
            finally:
                active.clear()

        def before(number: int) -> None:
            if active and deaths.get(active[0], 0) < 2:
                count[active[0]] = count.get(active[0], -1) + 1
                if count[active[0]] == when * 2:
                    deaths[active[0]] = deaths.get(active[0], 0) + 1
                    count.pop(active[0])
                    raise MemberDiedError

        count: dict[str, int] = {}
        hiring.make_member = factory  # type: ignore[assignment]
        watched(site, before, site.finish)
        return sum(deaths.values())

    with scratch() as root:
        site = lazy.fresh.copy(root / "site")
        assert in_child(child)[1] >= 5
        assert wrong_at_the_end(site, lazy.digest) == []


def killed_before(record: type, round_: int, site: Site, disturb: Callable[[], None]) -> None:
    """Kill the driver as it is about to log a record of a kind in a round, with members disturbed."""

    def child() -> None:
        real = Ledger.append

        def append(self: Ledger, entries: Any) -> None:
            if any(isinstance(r, record) and r.round == round_ for r, _ in entries):  # type: ignore[attr-defined]
                kill()
            real(self, entries)

        Ledger.append = append  # type: ignore[method-assign]
        disturb()
        site.finish()

    assert in_child(child)[0]


def mute(kind: type, verb: str) -> None:
    def nothing(*_: Any) -> Any:
        raise ProtocolError("no answer")

    setattr(kind, verb, nothing)


def test_nobody_is_asked_again_for_what_is_settled(lazy: Undisturbed) -> None:
    """No auditor answers look 1; after the second draw it is too late, also for a resumed driver."""

    def child() -> None:
        mute(Auditor, "audit")
        Hearing.second_looks = lambda self: kill()  # type: ignore[method-assign]
        site.finish()

    with scratch() as root:
        site = lazy.fresh.copy(root / "site")
        assert in_child(child)[0]
        killed_at(site, None, site.finish)
        answer = site.verified(2)
        assert (answer.ok, answer.complete, answer.rounds) == (True, True, 2)
        assert [r.attempt for r in records(site) if isinstance(r, RoundClose)] == [0, 1, 0]


def test_what_was_found_before_a_kill_and_not_after_it_leaves_nothing(lazy: Undisturbed) -> None:
    """Evidence of verdicts that nobody repeats, and start states of a contributor that falls silent."""

    def misjudge() -> None:
        from dataclasses import replace

        from pipeline import auditor

        real = auditor.recompute

        def other(*args: Any) -> Any:
            found = real(*args)
            return replace(found, loss_last=found.loss_last + 1)

        auditor.recompute = other

    with scratch() as root:
        site = lazy.fresh.copy(root / "evidence")
        killed_before(FirstLooks, 1, site, misjudge)
        assert len(list((site.folder / "evidence").iterdir())) == 3
        assert resumed(site, lazy.digest) == []

        site = lazy.fresh.copy(root / "state")
        killed_before(RevealClose, 2, site, lambda: None)
        assert len(list((site.folder / "state").iterdir())) == 2

        def silent() -> None:
            mute(Contributor, "reveal")
            site.finish()

        with pytest.raises(AssertionError, match="was void 3 times"):
            in_child(silent)
        assert site.verified(1).failures == []
        assert list((site.folder / "state").iterdir()) == []
        assert leftovers(site) == []


def test_an_older_copy_of_the_folder_is_not_signed_again(lazy: Undisturbed) -> None:
    with scratch() as root:
        site = lazy.fresh.copy(root / "site")
        killed_at(site, len(lazy.steps) // 3, site.finish)
        shutil.copytree(site.folder, root / "older")
        killed_at(site, None, site.finish)
        shutil.rmtree(site.folder)
        shutil.copytree(root / "older", site.folder)

        def again() -> str:
            with pytest.raises(StorageError, match="not the one this coordinator last wrote") as caught:
                site.finish()
            return str(caught.value)

        assert "Restore the newest copy" in in_child(again)[1]


def test_the_drill_is_told_to_nobody_else(lazy: Undisturbed) -> None:
    ((name, kind),) = drill("lazy").items()
    assert kind in ADVERSARIES
    (path,) = lazy.whole.home.glob("runs/*/*/drill")
    assert path.parent.name == name
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not any(b"lazy" in file.read_bytes() for file in lazy.whole.folder.rglob("*") if file.is_file())


def test_the_steps_counted_are_the_writes_of_the_run(lazy: Undisturbed) -> None:
    """The harness sees what it should: else the tests above would pass on nothing."""
    kinds = {step.split()[0] for step in lazy.steps}
    assert kinds >= {"write", "replace", "link", "unlink", "mkdir"}
    parts = ("log/.checkpoint", "coordinator/.journal", "payloads/", "state/", "contributions.parquet")
    assert [part for part in parts if not any(part in step for step in lazy.steps)] == []
