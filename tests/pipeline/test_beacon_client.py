"""Asking a beacon: what it may say, how long it is waited for, where its address is kept."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.beacon_client import (
    LEAD_S,
    PATIENCE_S,
    BeaconClient,
    NoBeacon,
    check_wanted,
    keep_address,
    kept_address,
    read_beacon,
)
from pipeline.commands import show_plan, train
from pipeline.http_client import MAX_ANSWER_BYTES
from pipeline.options import TrainOptions, parse_options
from tests.fake_beacon import FakeBeacon, beacon, pulse, signature
from tests.tiny import make_run, tiny_config
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError, UsageError
from verification.keys import PrivateKey
from verification.notes import witness_vkey


class Sleeper:
    """A clock that goes on only when somebody sleeps."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def client(url: str, clock: Sleeper) -> BeaconClient:
    return BeaconClient(url, beacon(), clock=clock, ticks=clock, sleep=clock.sleep)


def test_a_beacon_says_what_it_is() -> None:
    with FakeBeacon(beacon()).serving() as url:
        assert read_beacon(url) == read_beacon(url + "/") == beacon()
    with FakeBeacon(beacon(period=600)).serving() as url:
        assert read_beacon(url).period == 600


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"schemeID": "pedersen-bls-chained"}, UsageError, "another scheme"),
        ({"schemeID": None}, UsageError, "another scheme"),
        ({"period": "3"}, FormatError, "what it is"),
        ({"period": True}, FormatError, "what it is"),
        ({"genesis_time": 1.5}, FormatError, "what it is"),
        ({"public_key": None}, FormatError, "what it is"),
        ({"public_key": "00" * 96}, SignatureError, "c_flag"),
        ({"public_key": "00"}, FormatError, "192 hex digits"),
        ({"period": 0}, FormatError, "period"),
        ({"period": 601}, UsageError, "too slow"),
    ],
)
def test_a_beacon_of_another_kind_is_refused(
    change: dict[str, Any], error: type[BarnraiseError], match: str
) -> None:
    fake = FakeBeacon(beacon())
    good = json.loads(fake.answer("/info")[1])
    fake.change = lambda path: (200, json.dumps({**good, **change}).encode())
    with fake.serving() as url, pytest.raises(error, match=match):
        read_beacon(url)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"", FormatError),
        (200, b"[]", FormatError),
        (200, b"\xff", FormatError),
        (200, b"[" * 50_000, FormatError),
        (200, b'{"a":' + b"9" * 5000 + b"}", FormatError),
        (200, b'"' + b"x" * MAX_ANSWER_BYTES + b'"', FormatError),
        (404, b"{}", ProtocolError),
        (302, b"{}", ProtocolError),
    ],
)
def test_whatever_comes_back_is_of_the_family(status: int, body: bytes, error: type[BarnraiseError]) -> None:
    fake = FakeBeacon(beacon())
    fake.change = lambda path: (status, body)
    with fake.serving() as url, pytest.raises(error):
        read_beacon(url)


def test_the_next_pulse_leaves_the_witnesses_time_to_cosign() -> None:
    for late in (0, 0.25, 1, 2, 2.9, 3):
        clock = Sleeper(beacon().published(1000) + late)
        number = client("http://localhost:1", clock).next_number()
        assert beacon().published(number) >= clock.now + LEAD_S
        assert beacon().published(number - 1) < clock.now + LEAD_S
    assert client("http://localhost:1", Sleeper(0)).next_number() == 1


def test_a_pulse_is_waited_for_and_checked() -> None:
    clock = Sleeper(beacon().published(5) - 2.5)
    fake = FakeBeacon(beacon(), clock)
    with fake.serving() as url:
        assert client(url, clock).pulse(5) == pulse(5)
        assert clock.slept == [2.5]
        fake.clock = lambda: clock.now - 1.5  # a beacon that is late
        assert client(url, clock).pulse(5) == pulse(5)
        assert clock.slept == [2.5, 1, 1]
        assert client(url, clock).pulse(4) == pulse(4)
    assert set(fake.asked) == {"/public/4", "/public/5"}
    assert len(clock.slept) == 3


def test_patience_ends_and_so_does_a_wait_by_a_clock_that_was_put_back() -> None:
    clock = Sleeper(beacon().published(5) - 2)
    fake = FakeBeacon(beacon(), lambda: 0)
    with fake.serving() as url, pytest.raises(ProtocolError, match=r"did not give pulse 5.*status 425"):
        client(url, clock).pulse(5)
    assert sum(clock.slept) == pytest.approx(2 + 3 + PATIENCE_S)
    clock = Sleeper(0)
    with pytest.raises(ProtocolError, match="does not answer"):
        client("http://127.0.0.1:1", clock).pulse(5)
    assert sum(clock.slept) == pytest.approx(LEAD_S + 3 + 1 + 3 + PATIENCE_S)


def said(**change: Any) -> Callable[[str], tuple[int, bytes]]:
    good = {"round": 5, "signature": signature(5)}
    return lambda path: (200, json.dumps({**good, **change}).encode())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"round": 6}, "another thing"),
        ({"round": 5.0}, "another thing"),
        ({"round": 6, "signature": signature(6)}, "another thing"),
        ({"signature": signature(6)}, "does not hold"),
        ({"signature": None}, "another thing"),
        ({"signature": signature(5).upper()}, "96 hex digits"),
        ({"signature": "c0" + "00" * 47}, "identity"),
    ],
)
def test_what_is_not_the_pulse_is_not_taken(change: dict[str, Any], match: str) -> None:
    clock = Sleeper(beacon().published(9))
    fake = FakeBeacon(beacon(), clock)
    fake.change = said(**change)
    with fake.serving() as url, pytest.raises((SignatureError, ProtocolError), match=match) as caught:
        client(url, clock).pulse(5)
    # A busy server may still come to its senses; a signature that does not hold never will.
    assert len(fake.asked) == (1 if caught.type is SignatureError else 1 + PATIENCE_S + beacon().period)


def test_an_answer_that_is_no_pulse_may_be_followed_by_one() -> None:
    clock = Sleeper(beacon().published(9))
    fake = FakeBeacon(beacon(), clock)
    fake.change = lambda path: (200, b"<html>busy</html>") if len(fake.asked) < 3 else None
    with fake.serving() as url:
        assert client(url, clock).pulse(5) == pulse(5)
    assert len(fake.asked) == 3


def test_a_beacon_whose_words_do_not_fit_its_pulses_is_refused() -> None:
    now = int(time.time())
    with FakeBeacon(beacon(now - 1000)).serving() as url:
        assert read_beacon(url).genesis == now - 1000
    ahead = FakeBeacon(beacon(now - 1000), lambda: time.time() + 3600)  # its true genesis is an hour before
    with ahead.serving() as url, pytest.raises(UsageError, match="before its time"):
        read_beacon(url)
    with FakeBeacon(beacon(now + 1000)).serving() as url, pytest.raises(UsageError, match="has not begun"):
        read_beacon(url)


@pytest.mark.parametrize(
    "answer", [{"signature": "\ud800" * 48}, {"signature": "\x1b]0;title\x07" * 8}, {"round": "\x1b[2J"}]
)
def test_what_a_beacon_says_can_be_printed(answer: dict[str, Any]) -> None:
    clock = Sleeper(beacon().published(9))
    fake = FakeBeacon(beacon(), clock)
    fake.change = said(**answer)
    with fake.serving() as url, pytest.raises(ProtocolError) as caught:
        client(url, clock).pulse(5)
    assert str(caught.value).isprintable()
    assert str(caught.value).encode("utf-8")


def test_no_beacon_names_no_pulse() -> None:
    assert NoBeacon().next_number() is None
    with pytest.raises(ProtocolError, match="no beacon"):
        NoBeacon().pulse(1)


@pytest.mark.parametrize("url", ["", "file:///tmp", "http://", "http://a b", "ftp://x", "http://x/?q", "x"])
def test_an_address_is_of_http(url: str) -> None:
    with pytest.raises(UsageError, match="not a beacon's address"):
        check_wanted(url, witnessed=True)


def test_a_beacon_without_witnesses_is_refused_before_anything(tmp_path: Path) -> None:
    check_wanted(None, witnessed=False)
    check_wanted("http://localhost:1", witnessed=True)
    with pytest.raises(UsageError, match=r"needs witnesses.*--witness-policy"):
        make_run(tmp_path / "run", tmp_path / "home", beacon="http://localhost:1")
    options = TrainOptions(folder=tmp_path / "run", beacon="http://localhost:1", dry_run=True)
    with pytest.raises(UsageError, match="needs witnesses"):
        train(options, tiny_config(), Console())
    assert not list(tmp_path.iterdir())


def test_train_hands_the_address_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vkey = witness_vkey("w.example/one", PrivateKey.generate().public)
    (tmp_path / "policy").write_text(f"witness w1 {vkey} http://localhost:1\nquorum w1\n")
    made: list[Any] = []
    monkeypatch.setattr("pipeline.commands.create_run", lambda *args: made.append(args[-1]))
    monkeypatch.setattr("pipeline.commands._go", lambda *args: 0)
    for url in (None, "http://localhost:1"):
        options = TrainOptions(folder=tmp_path / "run", witness_policy=tmp_path / "policy", beacon=url)
        assert train(options, tiny_config(), Console()) == 0
    assert made == [None, "http://localhost:1"]
    found = parse_options(TrainOptions, "train", ["--beacon", "http://x"])
    assert found.beacon == "http://x"


def test_a_dry_run_shows_it(tmp_path: Path) -> None:
    for url in (None, "http://beacon.example/[chain]"):
        said_ = io.StringIO()
        show_plan(Console(file=said_, width=120), tiny_config(), {}, tmp_path / "run", None, url)
        assert ("http://beacon.example/[chain]" in said_.getvalue()) == (url is not None)
        assert ("beacon" in said_.getvalue()) == (url is not None)


def test_its_address_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not known") as found:
        kept_address(tmp_path)
    assert str(tmp_path / "beacon") in str(found.value)
    keep_address(tmp_path, "http://example/x")
    assert kept_address(tmp_path) == "http://example/x"
    assert (tmp_path / "beacon").stat().st_mode & 0o077 == 0
