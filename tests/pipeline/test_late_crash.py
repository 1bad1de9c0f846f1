"""A run whose audits lag, killed anywhere, ends with the log and the weights of one that never was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import pool
from pipeline import contributor
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.source import source_digest
from tests.pipeline.crash_tools import (
    Site,
    in_child,
    in_parallel,
    in_progress_only,
    kill,
    killed_at,
    leftovers,
    records,
    scratch,
    small_config,
    wrong_at_the_end,
)
from tests.tiny import corpus
from verification.errors import ProtocolError
from verification.log import Log
from verification.records import RoundClose, RoundOpen, Settlement, Verdict

LIAR = "c02"  # of crash_tools.drill


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Made once, before any fork; and the source stays what it is now, whoever edits it meanwhile.
    corpus()
    source_digest()
    with scratch() as folder:
        yield folder


def held() -> None:
    """Fix the clock and what chance there is besides the draws, which follow from the log. In a child."""
    pool._since = lambda _: 1
    contributor.secrets = SimpleNamespace(token_hex=lambda count: "5a" * count)  # type: ignore[assignment]
    real = Coordinator.__init__

    def made(self: Coordinator, *args: Any) -> None:
        real(self, *args)
        self._taken_up = (
            None  # a turn that was taken up again is timed like any other, by a clock that stands
        )

    Coordinator.__init__ = made  # type: ignore[method-assign]


def finished(site: Site) -> str:
    held()
    return site.finish()


def log_of(site: Site) -> list[bytes]:
    folder = RunFolder(site.folder)
    manifest = folder.parsed_manifest()
    return list(Log.open(folder.log, manifest.origin, None, manifest.log_vkey).entries())


def files(site: Site, part: str) -> dict[str, bytes]:
    folder = site.folder / part
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Late:
    """A run with everybody enrolled and no round open, its end when nothing happens, and its appends."""

    def __init__(self, place: Path, lag: int) -> None:
        self.fresh = Site(place / f"fresh{lag}")
        audit = {"probation_rounds": 1, "second_look_ppm": 1_000_000, "lag": lag, "segments": 1}
        config = small_config(
            run={"rounds": 3}, audit=audit, credit={"vest_rounds": lag + 1}, checkpoint={"every": 9},
            train={"steps": [4, 3, 4]},
        )  # fmt: skip
        in_child(lambda: self.fresh.create(config, "wrong-data"))
        killed_before(self.fresh, lambda r: isinstance(r, RoundOpen))
        self.whole = self.fresh.copy(place / f"whole{lag}")
        _, (self.appends, self.weights) = in_child(lambda: self.counted(self.whole))
        self.log = log_of(self.whole)
        self.parts = {part: files(self.whole, part) for part in ("checkpoints", "evidence", "payloads")}

    @staticmethod
    def counted(site: Site) -> tuple[list[str], str]:
        kinds: list[str] = []
        real = Ledger.append

        def append(self: Ledger, entries: Any) -> None:
            kinds.append(entries[-1][0].kind)
            real(self, entries)

        Ledger.append = append  # type: ignore[method-assign]
        weights = finished(site)
        return kinds, weights

    def other_than_whole(self, site: Site, what: str) -> list[str]:
        """What differs from the run that was not killed."""
        found = [] if log_of(site) == self.log else [f"{what}: another log"]
        found += [f"{what}: other {part}" for part in self.parts if files(site, part) != self.parts[part]]
        return found + [f"{what}: left over {path}" for path in leftovers(site)]


@pytest.fixture(scope="module", params=[1, 2])
def late(request: pytest.FixtureRequest, place: Path) -> Late:
    return Late(place, request.param)


def killed_at_append(site: Site, number: int, *, after: bool) -> bool:
    """Kill the driver before its append of this number, or right after it."""

    def child() -> None:
        real = Ledger.append
        done = -1

        def append(self: Ledger, entries: Any) -> None:
            nonlocal done
            done += 1
            if done == number and not after:
                kill()
            real(self, entries)
            if done == number:
                kill()

        Ledger.append = append  # type: ignore[method-assign]
        finished(site)

    return in_child(child)[0]


def test_the_undisturbed_run_has_removals_in_it(late: Late) -> None:
    found = records(late.whole)
    gone = [item for r in found if isinstance(r, Settlement) for item in r.removed]
    assert gone[0].reason == "failed-audit"
    assert "follows" in {item.reason for item in gone}
    assert late.appends.count("settlement") == late.appends.count("round-close") == 3
    assert len(late.parts["evidence"]) > 5
    answer = late.whole.verified(3)
    assert (answer.failures, answer.complete) == ([], True)
    assert answer.weights_digest == late.weights


def resumed_at(late: Late, root: Path, points: list[tuple[int, bool]]) -> list[str]:
    found = []
    for number, after in points:
        what = f"killed {'after' if after else 'before'} append {number}, {late.appends[number]}"
        site = late.fresh.copy(root / f"{number}-{after}")
        if not killed_at_append(site, number, after=after):
            found.append(f"{what}: it did not die")
        found += [f"{what}: {line}" for line in in_progress_only(site.verified(1))]
        in_child(lambda site=site: finished(site))
        found += late.other_than_whole(site, what)
    return found


def test_a_kill_at_a_settlement_changes_nothing(late: Late) -> None:
    """Before and after it is logged, and the audits before it; in between come checkpoints and evidence."""
    first = late.appends.index("settlement")
    last = len(late.appends) - 1 - late.appends[::-1].index("settlement")
    points = [(first - 2, False), (first, False), (first, True), (last, False), (last, True)]
    points += [(late.appends.index("round-close"), False), (first + 1, False)]
    with scratch() as root:
        halves = [points[0::2], points[1::2]]
        assert in_parallel([partial(resumed_at, late, root, half) for half in halves]) == []


@pytest.mark.slow
def test_a_kill_at_any_append_changes_nothing(late: Late) -> None:
    """Every fifth: each takes a run to its end, and what append it is, changes from run to run."""
    points = [(n, after) for n in range(len(late.appends)) for after in (False, True)][::5]
    with scratch() as root:
        quarters = [points[n::4] for n in range(4)]
        assert in_parallel([partial(resumed_at, late, root, some) for some in quarters]) == []


@pytest.mark.slow
@pytest.mark.parametrize("every", [61])
def test_a_kill_between_any_two_writes_signs_nothing_twice(late: Late, every: int) -> None:
    """Clocks differ from start to start here, so that what is said again must have been kept."""

    def work(points: list[int]) -> list[str]:
        found = []
        for point in points:
            site = late.fresh.copy(root / str(point))
            assert killed_at(site, point, site.finish) is None
            wrong = in_progress_only(site.verified(1))
            killed_at(site, None, site.finish)
            wrong += wrong_at_the_end(site, late.weights)
            found += [f"before step {point}, {steps[point]}: {line}" for line in wrong]
        return found

    with scratch() as root:
        whole = late.fresh.copy(root / "whole")
        steps = killed_at(whole, None, whole.finish) or []
        checkpoints = [n for n, step in enumerate(steps) if step.startswith("replace /run/checkpoints/")]
        points = sorted({*range(every // 2, len(steps), every), *checkpoints[1::3], len(steps) - 1})
        assert len(points) > 7
        assert in_parallel([partial(work, points[0::2]), partial(work, points[1::2])]) == []


def killed_before(site: Site, before: Callable[[Any], bool]) -> None:
    """Kill the driver as it is about to log the first record that `before` is true of."""

    def child() -> None:
        real = Ledger.append

        def append(self: Ledger, entries: Any) -> None:
            if any(before(record) for record, _ in entries):
                kill()
            real(self, entries)

        Ledger.append = append  # type: ignore[method-assign]
        finished(site)

    assert in_child(child)[0]


def test_a_contributor_that_serves_nothing_any_more_after_a_kill_is_taken_out(
    late: Late, place: Path
) -> None:
    """The log says it was served; nobody else has it; so nobody can judge the contribution."""

    def child() -> None:
        real = Contributor.serve_state

        def other(self: Contributor, turn: int) -> bytes:
            if self.name == "c00" and turn == 0:
                raise ProtocolError("not again")
            return real(self, turn)

        Contributor.serve_state = other  # type: ignore[method-assign]
        finished(site)

    with scratch() as root:
        site = late.fresh.copy(root / "site")
        lag = late.appends[: late.appends.index("settlement")].count("round-close") - 1
        killed_before(site, lambda r: isinstance(r, Verdict))
        in_child(child)
        gone = [item for r in records(site) if isinstance(r, Settlement) for item in r.removed]
        theirs = [(item.round, item.reason) for item in gone if item.member == "c00"]
        assert theirs == [(1, "unaudited"), *((2 + n, "follows") for n in range(lag))]
        assert {item.reason for item in gone if item.member == LIAR} == {"failed-audit", "follows"}
        answer = site.verified(3)
        assert (answer.failures, answer.complete) == ([], True)


def test_a_contributor_serves_an_older_turn_again_after_a_kill(late: Late) -> None:
    """Killed with audits begun and turns closed since: states of that older turn are asked for again."""
    asked: list[tuple[str, int]] = []

    def child() -> list[tuple[str, int]]:
        for verb in ("serve_state", "serve_trace"):
            real = getattr(Contributor, verb)

            def noted(self: Any, turn: int, *rest: Any, real: Any = real, verb: str = verb) -> Any:
                asked.append((verb, turn))
                return real(self, turn, *rest)

            setattr(Contributor, verb, noted)
        finished(site)
        return asked

    with scratch() as root:
        site = late.fresh.copy(root / "site")
        killed_before(site, lambda r: isinstance(r, Verdict))
        _, found = in_child(child)
        # Probation: everything of the first round is looked into, so no trace is needed of it. What the first
        # look had failed on was kept, so two are asked.
        assert found[:3].count(("serve_state", 0)) == 2
        assert late.other_than_whole(site, "served again") == []


def test_verdicts_that_nobody_repeats_after_a_kill_leave_no_evidence(late: Late) -> None:
    """Killed with a first look's evidence kept and its verdict not logged; then no auditor is there."""

    def silent() -> None:
        def nothing(*_: Any) -> Any:
            raise ProtocolError("no answer")

        Auditor.audit = nothing  # type: ignore[method-assign]
        finished(site)

    with scratch() as root:
        site = late.fresh.copy(root / "site")
        killed_before(site, lambda r: isinstance(r, Verdict) and r.outcome == "fail")
        assert len(list((site.folder / "evidence").iterdir())) == 1
        in_child(silent)
        assert list((site.folder / "evidence").iterdir()) == []
        reasons = {item.reason for r in records(site) if isinstance(r, Settlement) for item in r.removed}
        assert reasons == {"unaudited", "follows"}
        answer = site.verified(2)
        assert (answer.failures, answer.complete) == ([], True)


def test_a_checkpoint_that_an_excision_left_behind_is_worked_out_again(late: Late) -> None:
    """After the settlement is logged and before its checkpoint is there, the file holds the old weights."""
    settled = next(r for r in records(late.whole) if isinstance(r, Settlement) and r.removed)
    number = late.appends.index("settlement")
    with scratch() as root:
        site = late.fresh.copy(root / "site")
        assert killed_at_append(site, number, after=True)
        found = records(site)
        assert found[-1] == settled
        rounds = max(r.round for r in found if isinstance(r, RoundClose))
        path = next((site.folder / "checkpoints").glob(f"round-{rounds:05d}*"))
        stale = path.read_bytes() if path.is_file() else None

        def opened() -> bytes:
            real = Coordinator.open

            def stop(self: Coordinator) -> None:
                raise KeyboardInterrupt

            Coordinator.open = stop  # type: ignore[method-assign]
            try:
                finished(site)
            except KeyboardInterrupt:
                Coordinator.open = real  # type: ignore[method-assign]
            return RunFolder(site.folder).checkpoint(rounds)

        _, mended = in_child(opened)
        assert mended != stale
        in_child(lambda: finished(site))
        opens = [r for r in records(site) if isinstance(r, RoundOpen)]
        assert opens[-1].round == 3
        assert late.other_than_whole(site, "after the settlement") == []
