"""Asking a public randomness beacon by drand's HTTP interface, and where a run keeps its address.

Owns `BASE/info` and `BASE/public/N`, which pulse a turn names, how long it is waited for, and that nothing is
taken for one before its signature held. Does not own that check (verification.beacon), nor what a draw
without a pulse is (verification.plans).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.http_client import Transport, http_address, http_transport
from verification.beacon import SCHEME, check_key, check_pulse
from verification.durable import write_atomic
from verification.encoding import Json
from verification.errors import (
    BarnraiseError,
    FormatError,
    ProtocolError,
    SignatureError,
    UsageError,
)
from verification.records import Beacon, Pulse

ADDRESS_FILE = "beacon"
LEAD_S = 5.0  # from naming a pulse to its coming: time enough for the witnesses to cosign
PATIENCE_S = 30.0  # beyond one period after a pulse should have come
MAX_PERIOD_S = 600  # a turn waits for one pulse
POLL_S = 1.0
_MAX_ADDRESS = 2000


class Pulses(Protocol):
    """Where a run's pulses come from."""

    def next_number(self) -> int | None:
        """The number of the pulse that a turn is to name now; None without a beacon."""
        ...

    def pulse(self, number: int) -> Pulse:
        """That pulse, waited for, and genuine. Raises one of the family when it cannot be had."""
        ...


class NoBeacon:
    """The beacon of a run that has none."""

    def next_number(self) -> int | None:  # noqa: D102
        return None

    def pulse(self, number: int) -> Pulse:  # noqa: D102
        raise ProtocolError("the run has no beacon", got=f"pulse {number}")


def read_beacon(url: str, clock: Callable[[], float] = time.time) -> Beacon:
    """What a beacon says it is, for the manifest.

    Its key says nothing of when pulses come, so a wrong genesis would have turns name pulses that are out
    already: a beacon that gives one before its time is refused. Who chose it has to be trusted in the rest.
    Raises UsageError for another address, scheme or pace and without py_ecc, SignatureError for an unusable
    key, StorageError or ProtocolError when it does not answer, FormatError when it says something else.
    """
    ask = _transport(url)
    found = _answer(ask, "/info")
    scheme = found.get("schemeID")
    if scheme != SCHEME:
        raise UsageError(
            f"the beacon {url} is of another scheme",
            expected=SCHEME,
            got=ascii(scheme)[:80],
            hint="drand's quicknet has this one.",
        )
    genesis, period, key = (found.get(name) for name in ("genesis_time", "period", "public_key"))
    if type(genesis) is not int or type(period) is not int or not isinstance(key, str):
        raise FormatError("the beacon does not say what it is", expected="genesis_time, period, public_key")
    beacon = Beacon(genesis, period, key, SCHEME)
    if period > MAX_PERIOD_S:
        raise UsageError("the beacon is too slow", expected=f"at most {MAX_PERIOD_S} s a pulse", got=period)
    check_key(beacon)
    now = math.ceil(clock())
    if genesis > now:
        raise UsageError("the beacon has not begun", expected=f"a genesis before {now}", got=genesis)
    due = beacon.first_from(now + 2 * period)
    if ask("GET", f"/public/{due}", b"")[0] == 200:
        raise UsageError(
            f"the beacon gives out pulse {due} before its time",
            expected=f"none before {beacon.published(due)}, by its own genesis and period",
            got=f"it at {now}",
            hint="Compare genesis, period and key with what its operators publish, and mind the clock here.",
        )
    return beacon


def check_wanted(url: str | None, *, witnessed: bool) -> None:
    """Raise UsageError for a beacon without witnesses, or an address that is none."""
    if url is None:
        return
    _transport(url)
    if not witnessed:
        raise UsageError(
            "a beacon needs witnesses: the times of their cosignatures show that a head precedes its pulse",
            hint="Add --witness-policy FILE.",
        )


def keep_address(secrets: Path, url: str) -> None:
    """Note a beacon's address in the coordinator's private folder."""
    write_atomic(secrets / ADDRESS_FILE, f"{url}\n".encode(), mode=0o600)


def kept_address(secrets: Path) -> str:
    """The address that a run was started with. Raises UsageError when it cannot be read."""
    path = secrets / ADDRESS_FILE
    try:
        with path.open("rb") as file:
            return file.read(_MAX_ADDRESS).decode("ascii", "replace").strip()
    except OSError as error:
        raise UsageError(
            "the address of the run's beacon is not known",
            expected=f"it in {path}",
            got=error.strerror or str(error),
            hint="Write the base URL of the beacon's API there, on one line.",
        ) from error


class BeaconClient:
    """The beacon of a run. `clock` gives seconds since 1970, `ticks` seconds that never run back."""

    def __init__(
        self,
        url: str,
        beacon: Beacon,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises UsageError for an address that is none. Nothing is sent yet."""
        self._ask = _transport(url)
        self._url = url
        self._beacon = beacon
        self._clock = clock
        self._ticks = ticks
        self._sleep = sleep

    def next_number(self) -> int:
        """The first pulse that comes LEAD_S from now or later, by the coordinator's clock."""
        return self._beacon.first_from(math.ceil(self._clock() + LEAD_S))

    def pulse(self, number: int) -> Pulse:
        """A genuine pulse, waited for until one period and PATIENCE_S after it should have come.

        A clock that was put back meanwhile makes the wait no longer than that from the naming of a pulse.
        Raises ProtocolError when the beacon gives no such pulse in time, SignatureError when it gives one
        that is not genuine, UsageError without py_ecc.
        """
        period = self._beacon.period
        until = min(max(0.0, self._beacon.published(number) - self._clock()), LEAD_S + period + 1)
        start, patience = self._ticks(), until + period + PATIENCE_S
        if until:
            self._sleep(until)
        while True:
            try:
                return self._checked(number, _answer(self._ask, f"/public/{number}"))
            except (SignatureError, UsageError):  # it will not become another
                raise
            except BarnraiseError as error:
                problem = error
            left = start + patience - self._ticks()
            if left <= 0:
                break
            self._sleep(min(POLL_S, left))
        raise ProtocolError(
            f"{self._url} did not give pulse {number}",
            expected=f"it within {patience:.0f} s",
            got=str(problem)[:300].removesuffix("."),
        )

    def _checked(self, number: int, found: dict[str, Json]) -> Pulse:
        signature = found.get("signature")
        if type(found.get("round")) is not int or found["round"] != number or not isinstance(signature, str):
            raise FormatError(
                f"{self._url} gives another thing than pulse {number}",
                expected="its round and signature",
                got=ascii(found)[:100],
            )
        pulse = Pulse(number, signature)
        check_pulse(self._beacon, pulse)
        return pulse


def _transport(url: str) -> Transport:
    address = http_address(url)
    if address is None or len(url) >= _MAX_ADDRESS:
        raise UsageError(
            "not a beacon's address", expected="http://HOST[:PORT][/PREFIX] or https://…", got=repr(url)[:200]
        )
    return http_transport("the beacon", address)


def _answer(ask: Transport, path: str) -> dict[str, Json]:
    status, data = ask("GET", path, b"")
    if status != 200:
        raise ProtocolError(f"the beacon has no {path}", expected="status 200", got=f"status {status}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f"the beacon's answer to {path} is not an object", got=repr(data)[:80])
    return found
