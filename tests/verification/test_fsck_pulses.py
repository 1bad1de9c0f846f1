"""Lies about a public beacon and its pulses: level 1 names each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_beacon import (
    BY_LOT,
    IDENTITY_G1,
    IDENTITY_G2,
    RANDOMNESS,
    W1,
    Record,
    beacon,
    failures,
    negated,
    of_kind,
    outside_g1,
    writer_of,
)
from tests.verification.test_fsck_bytes import envelope, log_files, pulse_signature
from tests.verification.test_fsck_lies import lying, setter
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run
from verification.fsck_json import MAX_INTEGER


class Liar(Writer):
    """Shows in turn 1 another pulse than is named; the seed is what the record makes it."""

    other: Callable[[Record], Record | None]

    def shown_pulse(self) -> Record | None:
        right = super().shown_pulse()
        return type(self).other(right) if self.turn == 1 and right is not None else right


def numbered(number: int) -> Record:
    return {"round": number, "signature": pulse_signature(number)}


NOT_NAMED = "the pulse in the draw of round 2 is not the one that its reveal-close names"
NO_SIGNATURE = "the signature of pulse {} in the draw of round 2 does not hold"
PULSES: dict[str, tuple[list[str], Callable[[Record], Record | None]]] = {
    "the one before": ([NOT_NAMED], lambda right: numbered(right["round"] - 1)),
    "the one after": ([NOT_NAMED], lambda right: numbered(right["round"] + 1)),
    "far ahead": ([NOT_NAMED], lambda _: numbered(2**53 - 1)),
    "another's signature": (
        [NO_SIGNATURE.format(6)],
        lambda right: {**right, "signature": pulse_signature(right["round"], "another")},
    ),
    "signature of the one before": (
        [NO_SIGNATURE.format(6)],
        lambda right: {**right, "signature": pulse_signature(right["round"] - 1)},
    ),
    "the other root": (
        [NO_SIGNATURE.format(6)],
        lambda right: {**right, "signature": negated(right["signature"])},
    ),
    "identity": ([NO_SIGNATURE.format(6)], lambda right: {**right, "signature": IDENTITY_G1}),
    "no point": ([NO_SIGNATURE.format(6)], lambda right: {**right, "signature": "ff" * 48}),
    "outside the subgroup": ([NO_SIGNATURE.format(6)], lambda right: {**right, "signature": outside_g1()}),
    "both": ([NOT_NAMED, NO_SIGNATURE.format(1)], lambda _: {"round": 1, "signature": pulse_signature(2)}),
}


@pytest.mark.parametrize("name", PULSES)
def test_another_pulse_is_named(tmp_path: Path, name: str) -> None:
    expected, other = PULSES[name]
    writer = writer_of(tmp_path / "run", type("Other", (Liar,), {"other": staticmethod(other)}))
    found = check_run(writer.run(turns=2).write()).failures
    assert [f.what for f in found] == expected
    assert all(f.where.endswith("draw of round 2 attempt 0") and f.expected and f.got for f in found)


class Eager(Writer):
    """Shows pulse 5, whatever was named, and takes no draw for short."""

    def shown_pulse(self) -> Record:
        return numbered(5)

    def is_short(self, chance: Record) -> bool:
        del chance
        return False


def of_round_1(text: str) -> str:
    return text.replace("round 2", "round 1")


TOO_MUCH = "the reveal-close of round 1 has the wrong pulse: the run does not name a beacon"
TOO_LITTLE = "the reveal-close of round 1 has the wrong pulse: the run names a beacon"


@pytest.mark.parametrize(
    ("kind", "named", "number", "expected"),
    [
        (Writer, None, 5, [TOO_MUCH]),
        (Eager, None, 5, [TOO_MUCH]),
        (Eager, None, None, [of_round_1(NOT_NAMED)]),
        (Eager, None, 4, [TOO_MUCH, of_round_1(NOT_NAMED)]),
        (Eager, beacon(), None, [TOO_LITTLE, of_round_1(NOT_NAMED)]),
        (Eager, beacon(), 4, [of_round_1(NOT_NAMED)]),
        (Eager, beacon(), 5, []),
    ],
)
def test_a_pulse_is_named_exactly_where_there_is_a_beacon(
    tmp_path: Path, kind: type[Writer], named: Record | None, number: int | None, expected: list[str]
) -> None:
    lie = lying("reveal-close", setter("pulse", number))
    assert failures(writer_of(tmp_path / "run", kind, beacon=named, lie=lie), 1) == expected


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_pulse_comes_while_clocks_can_say_so(tmp_path: Path, beyond: int) -> None:
    named = beacon(genesis=MAX_INTEGER - 3 + beyond, period=3)
    writer = writer_of(
        tmp_path / "run", beacon=named, dark=[0], lie=lying("reveal-close", setter("pulse", 2))
    )
    what = "the reveal-close of round 1 names a pulse that comes too late for any clock"
    assert failures(writer, 1) == [what] * beyond


def test_a_turn_that_names_no_pulse_and_shows_none_is_short(tmp_path: Path) -> None:
    lie = lying("reveal-close", setter("pulse", None))
    writer = writer_of(tmp_path / "run", dark=[0], lie=lie, **BY_LOT)
    assert failures(writer, 1) == [TOO_LITTLE]
    assert len(of_kind(writer, "draw")[0]["drawn"]) == 5


SHAPES: dict[str, tuple[str, str, Any]] = {
    "no beacon": ("the manifest is malformed", "manifest", lambda r, _: r.pop("beacon") and None),
    "scheme": ("manifest.beacon.scheme does not fit", "manifest", setter("beacon.scheme", "bls-chained")),
    "period": ("manifest.beacon.period does not fit", "manifest", setter("beacon.period", 0)),
    "genesis": ("manifest.beacon.genesis does not fit", "manifest", setter("beacon.genesis", "0")),
    "early": ("manifest.beacon.genesis does not fit", "manifest", setter("beacon.genesis", -1)),
    "upper case": ("beacon.public_key does not fit", "manifest", setter("beacon.public_key", str.upper)),
    "short": ("beacon.public_key does not fit", "manifest", setter("beacon.public_key", "80" * 95)),
    "more": ("manifest.beacon does not fit", "manifest", setter("beacon.more", 1)),
    "identity": ("a beacon's key is not of the group", "manifest", setter("beacon.public_key", IDENTITY_G2)),
    "no point": ("a beacon's key is no point", "manifest", setter("beacon.public_key", "ff" * 96)),
    "no pulse": ("reveal-close does not fit", "reveal-close", lambda r, _: r.pop("pulse") and None),
    "named 0": ("reveal-close.pulse does not fit", "reveal-close", setter("pulse", 0)),
    "named true": ("reveal-close.pulse does not fit", "reveal-close", setter("pulse", True)),
    "no key in draw": ("draw does not fit", "draw", lambda r, _: r.pop("beacon") and None),
    "pulse 0": ("draw.beacon.round does not fit", "draw", setter("beacon.round", 0)),
    "pulse true": ("draw.beacon.round does not fit", "draw", setter("beacon.round", True)),
    "signature": ("draw.beacon.signature does not fit", "draw", setter("beacon.signature", "8" * 95)),
    "case of signature": (
        "draw.beacon.signature does not fit",
        "draw",
        setter("beacon.signature", str.upper),
    ),
    "randomness": ("draw.beacon does not fit", "draw", setter("beacon.randomness", RANDOMNESS)),
    "second": ("second-draw does not fit", "second-draw", setter("beacon", None)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_shape_is_named(tmp_path: Path, name: str) -> None:
    expected, kind, change = SHAPES[name]
    what = failures(writer_of(tmp_path / "run", lie=lying(kind, change)), 1)
    assert len(what) == 1
    assert expected in what[0]


def test_a_beacon_needs_witnesses(tmp_path: Path) -> None:
    what = failures(writer_of(tmp_path / "run", witnesses=[], required=0), 0)
    assert what == ["a beacon is named and no witness is required"]
    assert failures(writer_of(tmp_path / "one", witnesses=[W1], required=1), 0) == []


HOSTILE: list[Any] = [None, True, 0, -1, 2**53 - 1, "", "0" * 96, "8" * 96, "0" * 192, "ü", [], {}, [{}]]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["manifest", "reveal-close", "draw"])
@pytest.mark.parametrize("key", [None, "genesis", "period", "public_key", "scheme", "round", "signature"])
def test_hostile_beacons_never_raise(tmp_path: Path, place: str, key: str | None) -> None:
    writer = writer_of(tmp_path / "run").run(turns=1)
    writer.write()
    at = next(i for i, (k, _, _) in enumerate(writer.records) if k == place)
    right = writer.records[at][1]
    name = "pulse" if place == "reveal-close" else "beacon"
    subject = writer.run_subject if at else ("dataset", writer.manifest["dataset"]["root"][7:])
    for value in HOSTILE:
        bad = value if key is None else {**(right[name] if name == "beacon" else {}), key: value}
        entries = list(writer.entries)
        entries[at] = envelope(place, {**right, name: bad}, "coordinator", subject)
        for path, content in log_files(entries).items():
            (writer.folder / path).write_bytes(content)
        assert check_run(writer.folder).failures, value
