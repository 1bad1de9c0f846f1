"""A public beacon at level 1: its bytes, when a pulse makes a draw short, and honest runs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import beacon_key, pulse_signature
from tests.verification.test_fsck_state import TIME
from tests.verification.test_fsck_writer import Writer
from verification import fsck_beacon
from verification.errors import BarnraiseError, FormatError, SignatureError, UsageError
from verification.fsck import check_run
from verification.fsck_beacon import is_short_of_pulse, parse_beacon_key, pulse_holds, pulse_in_seed

Record = dict[str, Any]
THREE = ["w1.example", "w2.example/two", "w3.example"]
W1, W2, W3 = THREE
# The example of the protocol: drand's quicknet and its pulse 1000.
QUICKNET = (
    "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
    "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
)
PULSE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"
RANDOMNESS = "fe290beca10872ef2fb164d2aa4442de4566183ec51c56ff3cd603d930e54fdd"
MODULUS = int(
    "1a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab", 16
)
IDENTITY_G1, IDENTITY_G2 = "c0" + "00" * 47, "c0" + "00" * 95


def beacon(**other: Any) -> Record:
    found = {"genesis": TIME - 10, "period": 3, "public_key": beacon_key()}
    return {**found, "scheme": "bls-unchained-g1-rfc9380", **other}


def outside_g1() -> str:
    """A point of the curve that is not in the subgroup."""
    from py_ecc.bls.point_compression import decompress_G1

    for x in range(1, 99):
        try:
            decompress_G1(2**383 + x)  # type: ignore[arg-type]
        except ValueError:
            continue
        return f"{2**383 + x:096x}"
    raise AssertionError


def outside_g2() -> str:
    from py_ecc.bls.point_compression import decompress_G2

    for x in range(1, 99):
        try:
            decompress_G2((2**383, x))  # type: ignore[arg-type]
        except ValueError:
            continue
        return f"{2**383:096x}{x:096x}"
    raise AssertionError


def negated(point: str) -> str:
    return f"{int(point[:2], 16) ^ 0x20:02x}{point[2:]}"


def unreduced(point: str, at: int) -> str:
    """The field element of 96 digits at `at` written as itself and the modulus, if that has room."""
    number = int(point[at : at + 96], 16)
    if number % 2**381 + MODULUS >= 2**381:
        raise ValueError("no room")
    return f"{point[:at]}{number + MODULUS:096x}{point[at + 96 :]}"


def first_unreduced(make: Callable[[int], str], at: int = 0) -> str:
    for i in range(1, 99):
        try:
            return unreduced(make(i), at)
        except ValueError:
            continue
    raise AssertionError


# --- bytes ---


def test_a_pulse_of_quicknet() -> None:
    assert pulse_holds(QUICKNET, 1000, PULSE)
    assert not pulse_holds(QUICKNET, 1001, PULSE)
    assert not pulse_holds(QUICKNET, 1000, negated(PULSE))
    assert not pulse_holds(beacon_key(), 1000, PULSE)
    assert pulse_in_seed({"round": 1000, "signature": PULSE}) == {"randomness": RANDOMNESS, "round": 1000}
    assert pulse_in_seed(None) is None


def test_pulses_of_a_beacon_of_our_own() -> None:
    key = beacon_key()
    assert pulse_holds(key, 7, pulse_signature(7))
    assert pulse_holds(key, 2**53 - 1, pulse_signature(2**53 - 1))
    assert not pulse_holds(key, 7, pulse_signature(7, "another"))
    assert not pulse_holds(negated(key), 7, pulse_signature(7))
    assert pulse_holds(negated(key), 7, negated(pulse_signature(7)))


def test_signatures_that_are_no_points_of_the_group() -> None:
    key, good = beacon_key(), pulse_signature(7)
    uncompressed = f"{int(good, 16) % 2**383:096x}"
    for bad in (
        IDENTITY_G1,
        outside_g1(),
        uncompressed,
        "00" * 48,
        "ff" * 48,
        "e0" + "00" * 47,
        "80" + "00" * 47,
    ):
        assert not pulse_holds(key, 7, bad), bad
    # A right signature, but in another encoding of the same field element.
    number = next(n for n in range(1, 99) if int(pulse_signature(n), 16) % 2**381 + MODULUS < 2**381)
    assert pulse_holds(key, number, pulse_signature(number))
    assert not pulse_holds(key, number, unreduced(pulse_signature(number), 0))


def test_a_right_signature_and_a_point_outside_the_subgroup() -> None:
    """The pairing does not see what is added: only a look at the order of the sum does."""
    from py_ecc.bls.point_compression import compress_G1, decompress_G1
    from py_ecc.optimized_bls12_381 import add, curve_order, multiply

    key, right = beacon_key(), decompress_G1(int(pulse_signature(7), 16))  # type: ignore[arg-type]
    of_the_cofactor = multiply(decompress_G1(int(outside_g1(), 16)), curve_order)  # type: ignore[arg-type]
    assert pulse_holds(key, 7, f"{compress_G1(right):096x}")
    assert not pulse_holds(key, 7, f"{compress_G1(add(right, of_the_cofactor)):096x}")


def test_a_key_outside_the_subgroup() -> None:
    with pytest.raises(SignatureError):
        parse_beacon_key(outside_g2())


def test_keys_that_are_no_points_of_the_group() -> None:
    parse_beacon_key(beacon_key())
    with pytest.raises(SignatureError):
        parse_beacon_key(IDENTITY_G2)
    good = beacon_key()
    flagged = good[:96] + f"{int(good[96:], 16) + 2**383:096x}"
    others = [first_unreduced(lambda i: beacon_key(f"b{i}"), at) for at in (0, 96)]
    for bad in (flagged, *others, "00" * 96, "ff" * 96, "80" + "00" * 95, negated(IDENTITY_G2)):
        with pytest.raises(FormatError):
            parse_beacon_key(bad)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=96, max_size=96), flags=st.sampled_from([0x80, 0xA0, 0xC0]))
def test_other_bytes_are_refused_and_never_raise(data: bytes, flags: int) -> None:
    for at in (0, 48):
        text = bytes([flags | data[at] & 0x1F, *data[at + 1 : at + 48]]).hex()
        assert not pulse_holds(beacon_key(), 7, text)
    with pytest.raises(BarnraiseError):
        parse_beacon_key(bytes([flags | data[0] & 0x1F, *data[1:48], data[48] & 0x1F, *data[49:]]).hex())


def test_what_is_remembered_is_bounded() -> None:
    assert (parse_beacon_key.cache_info().maxsize, pulse_holds.cache_info().maxsize) == (16, 256)


def test_the_recursion_limit_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse_holds(QUICKNET, 1000, PULSE)
    monkeypatch.delitem(sys.modules, "py_ecc")
    pulse_holds.cache_clear()
    before = sys.getrecursionlimit()
    try:
        assert pulse_holds(QUICKNET, 1000, PULSE)
        assert sys.modules["py_ecc"].optimized_bls12_381 is not None
        assert sys.getrecursionlimit() == before < 100_000
    finally:
        sys.setrecursionlimit(before)


def test_without_the_library_nothing_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = Writer(tmp_path / "named", script={}, witnesses=THREE, beacon=beacon()).run(turns=1).write()
    plain = Writer(tmp_path / "plain", script={}, witnesses=THREE).run(turns=1).write()
    assert check_run(named).failures == ()
    for name in [name for name in sys.modules if name.split(".")[0] == "py_ecc"]:
        monkeypatch.setitem(sys.modules, name, None)
    fsck_beacon.parse_beacon_key.cache_clear()
    fsck_beacon.pulse_holds.cache_clear()
    with pytest.raises(UsageError, match=r"barnraise\[beacon\]"):
        check_run(named)
    assert check_run(plain).failures == ()


# --- short ---


PUBLISHED = TIME - 10 + 3 * 6
"""When pulse 7 is."""


@pytest.mark.parametrize(
    ("times", "short"),
    [
        ([PUBLISHED - 1], False),
        ([PUBLISHED], True),
        ([PUBLISHED + 1], True),
        ([1, PUBLISHED, 1], True),
        ([1, PUBLISHED - 1, 1], False),
        ([], False),
        ([2**53 - 1], True),
    ],
)
def test_a_pulse_published_by_the_time_of_a_cosignature_is_short(times: list[int], short: bool) -> None:
    pulse = {"round": 7, "signature": ""}
    assert is_short_of_pulse(beacon(), pulse, times) is short
    assert is_short_of_pulse(beacon(), None, times)
    assert not is_short_of_pulse(None, None, times)
    assert not is_short_of_pulse(None, pulse, times)


def test_the_first_pulse_is_published_at_genesis() -> None:
    named = beacon(genesis=500, period=2**53 - 1)
    assert [is_short_of_pulse(named, {"round": 1}, [time]) for time in (499, 500)] == [False, True]
    late = {"round": 2**53 - 1}
    assert not is_short_of_pulse(named, late, [2**53 - 1])


# --- runs ---

BY_LOT: dict[str, Any] = {
    "audit__rate_ppm": 100_000,
    "audit__probation_rounds": 0,
    "audit__second_look_ppm": 0,
}


def writer_of(folder: Path, kind: type[Writer] = Writer, **over: Any) -> Writer:
    base: dict[str, Any] = {"script": {}, "silent": {}, "witnesses": THREE, "required": 2, "beacon": beacon()}
    return kind(folder, **{**base, **over})


def failures(writer: Writer, turns: int = 2) -> list[str]:
    return [f.what for f in check_run(writer.run(turns=turns).write()).failures]


def of_kind(writer: Writer, kind: str) -> list[Record]:
    return [record for k, record, _ in writer.records if k == kind]


@pytest.mark.parametrize(
    ("over", "short"),
    [
        ({}, []),
        ({"dark": [1]}, [1]),
        ({"beacon": beacon(genesis=2**53 - 1, period=2**53 - 1), "pulses": {0: 1, 1: 1}}, []),
        ({"beacon": beacon(genesis=0, period=1), "pulses": {0: TIME + 2, 1: TIME + 1}}, [1]),
        ({"beacon": beacon(genesis=0, period=1), "pulses": {0: 1, 1: 2**53 - 1}}, [0]),
        ({"times": {(1, 1): {W2: TIME + 5}}}, [1]),
        ({"times": {(1, 1): {W2: TIME + 4}, (0, 2): {W2: TIME + 9999}}}, []),
        ({"times": {(0, 1): {W2: TIME + 2}}, "named": {0: [W1, W3]}}, [0]),
        ({"away": {(0, 1): [W1]}, "mute": {(1, 1): [W2], (1, 2): [W3]}}, [0, 1]),
    ],
)
def test_honest_runs_with_a_beacon_hold(tmp_path: Path, over: dict[str, Any], short: list[int]) -> None:
    class Everybody(Writer):
        def cosigners(self) -> list[str]:
            return self.witnesses

    writer = writer_of(tmp_path / "run", Everybody, **{**BY_LOT, **over})
    assert failures(writer) == []
    draws = of_kind(writer, "draw")
    assert [turn for turn, draw in enumerate(draws) if len(draw["drawn"]) == 5] == short
    assert [turn for turn, draw in enumerate(draws) if draw["beacon"] is None] == over.get("dark", [])
    assert all(record["pulse"] is not None for record in of_kind(writer, "reveal-close"))


def test_a_run_without_a_beacon_names_no_pulse(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "run", beacon=None)
    assert failures(writer) == []
    assert [record["pulse"] for record in of_kind(writer, "reveal-close")] == [None, None]
    assert [record["beacon"] for record in of_kind(writer, "draw")] == [None, None]


class Judging(Writer):
    """Takes every draw for short, or none."""

    short = False

    def is_short(self, chance: Record) -> bool:
        del chance
        return self.short


@pytest.mark.parametrize(
    ("over", "short"),
    [
        ({}, True),
        ({"beacon": None}, True),
        ({"times": {(0, 2): {W2: TIME + 9999}}}, True),
        ({"dark": [0]}, False),
        ({"times": {(0, 1): {W3: TIME + 2}}}, False),
        ({"times": {(0, 1): {W1: TIME + 2}}}, False),
    ],
)
def test_a_draw_taken_for_short_or_not(tmp_path: Path, over: dict[str, Any], short: bool) -> None:
    writer = writer_of(tmp_path / "run", Judging, **BY_LOT, **over)
    writer.short = short
    assert failures(writer, 1)[0] == "the drawn slots of round 1 do not follow from the seed"


@pytest.mark.parametrize("over", [{"dark": [0]}, {"times": {(0, 1): {W3: TIME + 2}}}])
def test_all_of_a_turn_without_a_fresh_pulse_is_looked_at_twice(tmp_path: Path, over: dict[str, Any]) -> None:
    def looks(writer: Writer) -> list[int]:
        return [len(record["looks"]) for record in of_kind(writer, "second-draw")]

    honest = writer_of(tmp_path / "run", audit__second_look_ppm=0, **over)
    assert failures(honest) == []
    assert looks(honest)[0] > 2
    assert looks(honest)[1] == 0
    judging = writer_of(tmp_path / "judging", Judging, audit__second_look_ppm=0, **over)
    what = failures(judging, 1)
    assert what[0] == "the second looks of round 1 do not follow from first-looks and seed"


# --- lies ---


def test_the_seed_depends_on_the_pulse(tmp_path: Path) -> None:
    class Unheard(Writer):
        def seed_pulse(self, pulse: Record | None) -> None:
            del pulse

    what = failures(writer_of(tmp_path / "run", Unheard), 1)
    assert what[0] == "the seed of draw in round 1 is wrong"


@pytest.mark.parametrize(
    "other", [{"round": 1}, {"randomness": hashlib.sha256(b"").hexdigest()}, {"signature": "00" * 48}]
)
def test_the_seed_has_the_number_and_the_randomness(tmp_path: Path, other: Record) -> None:
    class Bent(Writer):
        def seed_pulse(self, pulse: Record | None) -> Record | None:
            right = super().seed_pulse(pulse)
            return right and {**right, **other}

    what = failures(writer_of(tmp_path / "run", Bent), 1)
    assert what[0] == "the seed of draw in round 1 is wrong"


def test_the_seed_of_a_second_draw_has_no_pulse(tmp_path: Path) -> None:
    class Again(Writer):
        def seed_pulse(self, pulse: Record | None) -> Record | None:
            return super().seed_pulse(self.shown_pulse() if self.look == 2 else pulse)

    what = failures(writer_of(tmp_path / "run", Again), 1)
    assert what[0] == "the seed of second-draw in round 1 is wrong"
