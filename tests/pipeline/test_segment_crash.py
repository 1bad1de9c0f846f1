"""A run killed in the middle of an audit of segments has the same log in the end as one that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import pool
from cluster.pool import MemberDiedError
from pipeline import contributor
from pipeline.contributor import Contributor
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.run import create_run
from pipeline.source import source_digest
from tests.pipeline.crash_tools import Site, in_child, kill, leftovers, records, scratch
from tests.pipeline.segment_runs import LIAR, SLOT, config
from tests.tiny import corpus, quiet
from verification.log import Log
from verification.records import Draw, RoundClose, RoundOpen, SecondDraw, Served, Verdict

Before = Callable[[Any], bool]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Made once, before any fork; and the source stays what it is now, whoever edits it meanwhile.
    corpus()
    source_digest()
    with scratch() as folder:
        yield folder


def held() -> None:
    """Fix what chance there is besides the draws, which follow from the log; only in a child."""
    pool._since = lambda _: 1
    contributor.secrets = SimpleNamespace(token_hex=lambda count: "5a" * count)  # type: ignore[assignment]


def finished(site: Site) -> None:
    held()
    site.finish()


def log_of(site: Site) -> list[bytes]:
    folder = RunFolder(site.folder)
    manifest = folder.parsed_manifest()
    return list(Log.open(folder.log, manifest.origin, None, manifest.log_vkey).entries())


@pytest.fixture(scope="module")
def fresh(place: Path) -> Site:
    """Everybody has enrolled and no round is open; the last contributor trains on other data."""
    site = Site(place / "fresh")
    drills = {LIAR: "wrong-data"}
    in_child(lambda: create_run(config(), RunFolder(site.folder), site.home, quiet, drills))
    killed_before(site, lambda record: isinstance(record, RoundOpen))
    return site


@pytest.fixture(scope="module")
def whole(place: Path, fresh: Site) -> Site:
    site = fresh.copy(place / "whole")
    assert not in_child(lambda: finished(site))[0]
    answer = site.verified(3)
    assert (answer.failures, answer.complete) == ([], True)
    return site


def killed_before(site: Site, before: Before) -> None:
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


POINTS: dict[str, Before] = {
    "the draw is not out": lambda r: isinstance(r, Draw),
    "the traces are here and not yet said to be": lambda r: isinstance(r, Served),
    "the first verdicts are in": lambda r: isinstance(r, Verdict) and r.look == 1,
    "the second draw": lambda r: isinstance(r, SecondDraw),
    "the second verdicts are in": lambda r: isinstance(r, Verdict) and r.look == 2,
    "the close of the first round": lambda r: isinstance(r, RoundClose),
    "the second round's verdicts": lambda r: isinstance(r, Verdict) and r.round == 2,
}


def files(site: Site) -> dict[str, bytes]:
    folder = site.folder / "evidence"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_in_an_audit_ends_with_the_same_log(
    fresh: Site, whole: Site, tmp_path: Path, point: str
) -> None:
    site = fresh.copy(tmp_path / "site")
    killed_before(site, POINTS[point])
    assert len(log_of(site)) < len(log_of(whole))
    assert not in_child(lambda: finished(site))[0]
    assert log_of(site) == log_of(whole)
    assert files(site) == files(whole)
    assert f"r00001-a0-s{SLOT}/trace" in files(site)
    assert leftovers(site) == []


def test_a_member_that_dies_as_it_opens_its_trace_opens_the_same_one(
    fresh: Site, whole: Site, tmp_path: Path
) -> None:
    """It is made anew, has nothing of its work in memory, and does it again."""

    def child() -> tuple[list[str], int]:
        died: list[str] = []
        worked = 0
        serve, compute = Contributor.serve_trace, Contributor.compute

        def mortal(self: Contributor, turn: int, draw: bytes, checkpoint: bytes) -> bytes:
            data = serve(self, turn, draw, checkpoint)
            if self.name not in died:
                died.append(self.name)
                raise MemberDiedError
            return data

        def counted(self: Contributor, *args: Any) -> Any:
            nonlocal worked
            worked += 1
            return compute(self, *args)

        Contributor.serve_trace = mortal  # type: ignore[method-assign]
        Contributor.compute = counted  # type: ignore[method-assign]
        finished(site)
        return died, worked

    site = fresh.copy(tmp_path / "site")
    _, (died, worked) = in_child(child)
    assert sorted(died) == ["c00", "c01", "c02", LIAR]
    assert worked == 2 * 3 + 3  # three honest ones in two rounds, and each once more
    assert log_of(site) == log_of(whole)
    assert files(site) == files(whole)


def test_a_member_that_opens_nothing_after_a_kill_leaves_its_slot_unaudited(
    fresh: Site, tmp_path: Path
) -> None:
    """The log says that it was served; asked again, it opens other states, which are not the commitment's."""

    def child() -> None:
        real = Contributor.serve_trace

        def other(self: Contributor, turn: int, draw: bytes, checkpoint: bytes) -> bytes:
            data = real(self, turn, draw, checkpoint)
            return data if self.name != "c00" or turn else data[:-1] + bytes([data[-1] ^ 1])

        Contributor.serve_trace = other  # type: ignore[method-assign]
        finished(site)

    site = fresh.copy(tmp_path / "site")
    killed_before(site, POINTS["the first verdicts are in"])
    in_child(child)
    answer = site.verified(3)
    assert (answer.failures, answer.complete) == ([], True)
    closes = [record for record in records(site) if isinstance(record, RoundClose)]
    first = {line.slot: line.reason for line in closes[0].rejected}
    assert first == {0: "unaudited", SLOT: "failed-audit"}
    assert {line.slot for line in closes[1].accepted} == {0, 1, 2}
