"""Runs with a beacon: a draw waits for the pulse that its turn named, and is short where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from tests.fake_beacon import FakeBeacon, beacon, pulse
from tests.pipeline.crash_tools import Site, records
from tests.tiny import WITNESSES, TinyWitnesses, make_run, run_to_end, tiny_config
from verification.errors import UsageError
from verification.notes import parse_cosigned
from verification.records import Draw, RevealClose, RoundOpen, SecondDraw
from verification.rounds import replay

ONE, TWO, THREE = WITNESSES
NEVER = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is enough for witnesses in this process, and a beacon that is away is not waited for."""
    monkeypatch.setattr("pipeline.beacon_client.LEAD_S", 1.0)
    monkeypatch.setattr("pipeline.beacon_client.PATIENCE_S", 1.0)
    monkeypatch.setattr("pipeline.beacon_client.POLL_S", 0.2)


class Stage:
    """A run with three witnesses and a fake beacon of one pulse a second. Their clocks are the true one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake = FakeBeacon(beacon(int(time.time()) - 100, 1))
        self.notices: list[str] = []
        self.witnesses = TinyWitnesses(root / "witnesses", clock=lambda: int(time.time()))

    def make(self, url: str, rounds: int = 1, **sections: Any) -> None:
        config = tiny_config(run={"rounds": rounds}, **sections)
        make_run(self.root / "run", self.root / "home", config, witnesses=self.witnesses, beacon=url)

    def go(self) -> Any:
        tell = self.notices.append
        return run_to_end(self.root / "run", self.root / "home", witnesses=self.witnesses, tell=tell).state

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in records(Site(self.root)) if isinstance(record, kind)]

    def level_1(self) -> Any:
        return Site(self.root).verified(1)

    def replays(self) -> bool:
        everything: list[Any] = records(Site(self.root))
        return replay(everything[0], everything[1:]).finished


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def url(stage: Stage) -> Iterator[str]:
    with stage.fake.serving() as address:
        yield address


def test_a_draw_waits_for_the_pulse_that_its_turn_named(stage: Stage, url: str) -> None:
    stage.make(url, 2, audit=NEVER)
    assert stage.fake.asked[0] == "/info"
    assert len(stage.fake.asked) == 2  # and a pulse that must not be out yet
    assert RunFolder(stage.root / "run").parsed_manifest().beacon == stage.fake.told
    stage.go()
    named = [record.pulse for record in stage.of(RevealClose)]
    draws = stage.of(Draw)
    assert [draw.beacon for draw in draws] == [pulse(number) for number in named]
    assert [draw.drawn for draw in draws] == [(), ()]
    manifest = RunFolder(stage.root / "run").parsed_manifest()
    for draw in draws:
        head = parse_cosigned(draw.head, manifest.log_vkey, manifest.witness_vkeys)
        assert max(head.times) < stage.fake.told.published(draw.beacon.round)
        assert len(head.times) == 3
    assert stage.replays()
    assert not [line for line in stage.notices if "beacon" in line or "all is audited" in line]
    answer = stage.level_1()
    assert (answer.ok, answer.complete, answer.failures) == (True, True, [])


WRONG: dict[str, tuple[int, dict[str, Any] | None, str]] = {
    "away": (503, None, "did not give pulse"),
    "another number": (200, {"round": 1, "signature": pulse(1).signature}, "another thing"),
    "another signature": (200, {"signature": pulse(1).signature}, "does not hold"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_run_goes_on_without_a_pulse_and_audits_all(stage: Stage, url: str, kind: str) -> None:
    status, change, reason = WRONG[kind]
    stage.make(url, 2, audit=NEVER)

    def wrong(path: str) -> tuple[int, bytes]:
        number = int(path.removeprefix("/public/"))
        return status, FakeBeacon.json(**{"round": number, **(change or {})})

    stage.fake.change = wrong
    assert stage.go().finished
    assert all(record.pulse for record in stage.of(RevealClose))
    assert [draw.beacon for draw in stage.of(Draw)] == [None, None]
    assert [[item.slot for item in draw.drawn] for draw in stage.of(Draw)] == [[0, 1, 2, 3]] * 2
    assert [len(second.looks) for second in stage.of(SecondDraw)] == [4, 4]
    told = [line for line in stage.notices if line.startswith("beacon: ")]
    assert len(told) == 2
    assert all(reason in line and line.endswith(": all is audited") for line in told)
    assert stage.replays()
    answer = stage.level_1()
    assert (answer.ok, answer.complete, answer.failures) == (True, True, [])


@pytest.mark.slow
def test_a_late_cosignature_makes_the_draw_short_and_its_witness_sits_out_a_turn(
    stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.make(url, 3, audit=NEVER)
    monkeypatch.setattr(stage.witnesses.witnesses[THREE], "_clock", lambda: int(time.time()) + 3600)
    stage.go()
    assert [open_.witnesses for open_ in stage.of(RoundOpen)] == [WITNESSES, (ONE, TWO), WITNESSES]
    draws = stage.of(Draw)
    assert all(draw.beacon for draw in draws)
    assert all(item.link for draw in draws for item in draw.links)
    assert [len(draw.drawn) for draw in draws] == [4, 0, 4]
    manifest = RunFolder(stage.root / "run").parsed_manifest()
    signers = [parse_cosigned(d.head, manifest.log_vkey, manifest.witness_vkeys).names for d in draws]
    assert signers == [WITNESSES, (ONE, TWO), WITNESSES]  # nobody waits for its word in the turn between
    assert [len(second.looks) for second in stage.of(SecondDraw)] == [4, 0, 4]
    assert f"{THREE}: cosigned late in the last turn: left out of the next" in stage.notices
    assert sum(line.startswith(f"{THREE}: cosigned the head of round") for line in stage.notices) == 2
    assert stage.replays()
    assert stage.level_1().failures == []


class CutError(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_resumed_coordinator_waits_for_the_pulse_that_is_in_the_log(
    stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.make(url, 1, audit=NEVER)
    real = Ledger.append

    def cut(self: Ledger, entries: Any) -> None:
        found = list(entries)
        if isinstance(found[-1][0], Draw):
            raise CutError
        real(self, found)

    monkeypatch.setattr(Ledger, "append", cut)
    with pytest.raises(CutError):
        stage.go()
    monkeypatch.setattr(Ledger, "append", real)
    (named,) = stage.of(RevealClose)
    assert stage.of(Draw) == []
    stage.go()
    assert stage.of(RevealClose) == [named]
    (draw,) = stage.of(Draw)
    assert draw.beacon == pulse(named.pulse)
    assert set(stage.fake.asked[2:]) == {f"/public/{named.pulse}"}
    # The witnesses cosigned the head once more, after the pulse; nobody has the first cosignatures.
    assert len(draw.drawn) == 4
    assert stage.replays()
    assert stage.level_1().failures == []


@pytest.mark.slow
def test_a_resumed_run_needs_the_address(stage: Stage, url: str) -> None:
    stage.make(url)
    (address,) = (stage.root / "home").rglob("beacon")
    address.unlink()
    with pytest.raises(UsageError, match="address of the run's beacon"):
        stage.go()
    address.write_text(f"{url}\n")
    assert stage.go().finished


def test_a_beacon_of_no_use_starts_no_run(stage: Stage, url: str) -> None:
    stage.fake.change = lambda path: (200, FakeBeacon.json(schemeID="pedersen-bls-chained"))
    with pytest.raises(UsageError, match="another scheme"):
        stage.make(url)
    assert not (stage.root / "run").exists()
    assert not (stage.root / "home").exists() or not list((stage.root / "home").rglob("key"))
