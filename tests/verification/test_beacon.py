"""Beacons: their form, when pulses come, what a genuine one is, and what a draw makes of it."""

from __future__ import annotations

import builtins
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_beacon import beacon, public_key, pulse, signature
from tests.verification.fake_run import (
    CHAIN,
    NOON,
    WITNESSES,
    Play,
    can_open,
    cosigned,
    head,
    links,
    made_up_beacon,
    made_up_pulse,
    manifest,
    scripts,
    sha,
    started,
)
from tests.verification.rich_run import rich_run
from verification.beacon import QUICKNET, Beacon, Pulse, _curve, check_key, check_pulse, described
from verification.encoding import MAX_INTEGER, from_json, to_json
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError, UsageError
from verification.lottery import draw_seed
from verification.plans import due_pulse, plan_draw, plan_second_draw
from verification.records import Draw, Manifest, Record, RevealClose, SecondDraw
from verification.rounds import apply, begin, replay
from verification.sealing import parse_predicate
from verification.state import RunState

# Source: the public beacon itself, drand's quicknet.
KEY = (
    "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
    "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
)
SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"
RANDOMNESS = "fe290beca10872ef2fb164d2aa4442de4566183ec51c56ff3cd603d930e54fdd"
FIELD = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
INFINITY = "c0" + "00" * 47
ONE, TWO, THREE = WITNESSES


# Genuine pulses


def test_a_pulse_of_quicknet_holds_and_no_other() -> None:
    before = sys.getrecursionlimit()
    check_key(QUICKNET)
    check_pulse(QUICKNET, Pulse(1000, SIGNATURE))
    assert Pulse(1000, SIGNATURE).randomness == RANDOMNESS
    for number in (1001, 999):
        with pytest.raises(SignatureError, match="does not hold"):
            check_pulse(QUICKNET, Pulse(number, SIGNATURE))
    with pytest.raises(SignatureError, match="does not hold"):
        check_pulse(replace(QUICKNET, public_key=public_key()), Pulse(1000, SIGNATURE))
    assert sys.getrecursionlimit() == before


def test_own_keys_sign_pulses() -> None:
    check_key(beacon())
    check_pulse(beacon(), pulse(7))
    with pytest.raises(SignatureError, match="does not hold"):
        check_pulse(beacon(), Pulse(7, signature(8)))


def negated(text: str) -> str:
    return f"{int(text[0], 16) ^ 2:x}{text[1:]}"  # the bit that says which of the two roots


def small_points() -> Iterator[tuple[int, bool]]:
    """Small x, and whether a point of G1's curve has it."""
    for x in range(1, 99):
        try:
            _curve().decompress_G1((1 << 383) + x)
        except ValueError:
            yield x, False
        else:
            yield x, True


def outside() -> str:
    """A point of the curve that is not of prime order: nearly every x gives one."""
    curve = _curve()
    text = f"{(1 << 383) + next(x for x, there in small_points() if there):096x}"
    assert not curve.is_inf(curve.multiply(curve.decompress_G1(int(text, 16)), curve.curve_order))
    return text


def off_the_curve() -> str:
    return f"{(1 << 383) + next(x for x, there in small_points() if not there):096x}"


def above_the_field() -> str:
    """The x of a point, and the field's prime added, which makes another number of 381 bits."""
    x = next(x for x, there in small_points() if there)
    assert not (x + FIELD) >> 381
    return f"{(1 << 383) + x + FIELD:096x}"


def bad_signatures() -> dict[str, str]:
    return {
        "does not hold": negated(SIGNATURE),
        "subgroup": outside(),
        "identity": INFINITY,
        "not a point": off_the_curve(),
        "field modulus": above_the_field(),
        "c_flag": f"{int(SIGNATURE[0], 16) ^ 8:x}{SIGNATURE[1:]}",
        "b_flag": f"{int(SIGNATURE[0], 16) ^ 4:x}{SIGNATURE[1:]}",
        "a_flag": "e0" + "00" * 47,
        "b_flag should be 0": "c0" + "00" * 46 + "01",
    }


@pytest.mark.parametrize("match", list(bad_signatures()))
def test_another_point_or_encoding_is_no_signature(match: str) -> None:
    with pytest.raises(SignatureError, match=match):
        check_pulse(QUICKNET, Pulse(1000, bad_signatures()[match]))


def test_a_second_encoding_is_none_where_the_curve_would_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same point, its x once more with the field's prime added: a library may well reduce it."""
    number = next(n for n in range(1, 99) if (int(signature(n), 16) % 2**381 + FIELD) < 2**381)
    curve = _curve()
    genuine = int(signature(number), 16)
    strict = curve.decompress_G1

    def lenient(given: int) -> Any:
        flags, x = divmod(given, 2**381)
        return strict(flags * 2**381 + x % FIELD)

    curve.decompress_G1 = lenient
    monkeypatch.setattr("verification.beacon._curve", lambda: curve)
    check_pulse(beacon(), Pulse(number, f"{genuine:096x}"))
    with pytest.raises(SignatureError, match="not in its one encoding"):
        check_pulse(beacon(), Pulse(number, f"{genuine + FIELD:096x}"))


def test_a_key_is_a_point_of_the_subgroup_too() -> None:
    curve = _curve()
    for x in range(1, 99):  # most points of the twist are of another order
        try:
            curve.decompress_G2(((1 << 383) + x, 0))
        except ValueError:
            continue
        stray = f"{(1 << 383) + x:096x}{0:096x}"
        break
    bad = {
        "subgroup": stray,
        "identity": INFINITY + "00" * 48,
        "c_flag": "0" + KEY[1:],
        "field modulus": KEY[:96] + f"{int(KEY[96:], 16) + FIELD:096x}",
    }
    for match, key in bad.items():
        with pytest.raises(SignatureError, match=match):
            check_key(replace(QUICKNET, public_key=key))
    with pytest.raises(SignatureError, match="does not hold"):
        check_pulse(replace(QUICKNET, public_key=negated(KEY)), Pulse(1000, SIGNATURE))


@settings(max_examples=30, deadline=None)
@given(data=st.binary(min_size=48, max_size=48), flags=st.sampled_from([0x80, 0xA0, 0xC0, 0xE0, 0x00]))
def test_other_bytes_are_refused_by_the_family(data: bytes, flags: int) -> None:
    text = bytes([flags | data[0] & 0x1F, *data[1:]]).hex()
    with pytest.raises(SignatureError):
        check_pulse(QUICKNET, Pulse(1000, text))
    with pytest.raises(SignatureError):
        check_key(replace(QUICKNET, public_key=text + data.hex()))


def test_without_py_ecc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("py_ecc"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"barnraise\[beacon\]"):
        check_pulse(QUICKNET, Pulse(1000, SIGNATURE))


# Form


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, SIGNATURE),
        (-1, SIGNATURE),
        (2**53, SIGNATURE),
        (1, SIGNATURE.upper()),
        (1, SIGNATURE[:-1]),
        (1, SIGNATURE + "\n"),
        (1, ""),
    ],
)
def test_a_pulse_has_a_number_and_96_hex_digits(number: int, text: str) -> None:
    assert Pulse(2**53 - 1, SIGNATURE).round == 2**53 - 1
    with pytest.raises(FormatError):
        Pulse(number, text)
    with pytest.raises(FormatError):
        from_json(Pulse, {"round": number, "signature": text})


@pytest.mark.parametrize("number", [0, -1, 2**53])
def test_a_named_pulse_is_in_range(number: int) -> None:
    with pytest.raises(FormatError, match="pulse's number"):
        replace(record_of(RevealClose, rich_run(made_up_beacon())), pulse=number)


@pytest.mark.parametrize(
    "change",
    [
        {"genesis": -1},
        {"genesis": 2**53},
        {"period": 0},
        {"period": 2**53},
        {"public_key": KEY.upper()},
        {"public_key": KEY[2:]},
        {"public_key": KEY + "\n"},
        {"scheme": "pedersen-bls-chained"},
        {"genesis": None},
        {"genesis": True},
        {"more": 1},
    ],
)
def test_a_beacon_has_one_form(change: dict[str, Any]) -> None:
    good = to_json(manifest(3, QUICKNET))
    assert parse_predicate(Manifest, good).beacon == QUICKNET
    assert to_json(manifest(3))["beacon"] is None
    with pytest.raises(FormatError):
        parse_predicate(Manifest, {**good, "beacon": {**good["beacon"], **change}})
    with pytest.raises(FormatError):
        parse_predicate(Manifest, {key: value for key, value in good.items() if key != "beacon"})


# When


def test_when_pulses_come() -> None:
    made = replace(QUICKNET, genesis=100, period=3)
    assert [made.published(number) for number in (1, 2, 3)] == [100, 103, 106]
    found = {time: made.first_from(time) for time in (-5, 0, 99, 100, 101, 103, 104, 106)}
    assert found == {-5: 1, 0: 1, 99: 1, 100: 1, 101: 2, 103: 2, 104: 3, 106: 3}


@given(st.integers(0, 2**53 - 1), st.integers(1, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_the_first_pulse_from_a_time(genesis: int, period: int, time: int) -> None:
    made = Beacon(genesis, period, KEY, "bls-unchained-g1-rfc9380")
    number = made.first_from(time)
    assert made.published(number) >= time
    assert number == 1 or made.published(number - 1) < time


# In a run


def record_of(kind: type[Any], records: list[Record], index: int = 0) -> Any:
    return [record for record in records if isinstance(record, kind)][index]


def state_at(kind: type[Any], records: list[Record], state: RunState, index: int = 0) -> RunState:
    """The state in which the `index`-th record of a kind is to come."""
    for record in records:
        if isinstance(record, kind):
            if not index:
                return state
            index -= 1
        state = apply(state, record)
    raise AssertionError


def test_a_beacon_needs_witnesses() -> None:
    with pytest.raises(ProtocolError, match="no witnesses"):
        begin(manifest(0, QUICKNET))
    assert begin(manifest(1, QUICKNET)).manifest.beacon == QUICKNET


def test_a_rich_run_with_a_beacon_replays_and_shows_its_pulses() -> None:
    records = rich_run(made_up_beacon())
    first = manifest(3, made_up_beacon(), audit={"probation_rounds": 9})
    assert replay(first, records).finished
    named = [record.pulse for record in records if isinstance(record, RevealClose)]
    draws = [record for record in records if isinstance(record, Draw)]
    assert [draw.beacon for draw in draws] == [
        None if i == 2 else made_up_pulse(number or 0) for i, number in enumerate(named)
    ]
    assert not any("beacon" in to_json(record) for record in records if isinstance(record, SecondDraw))
    # Of another run, with a beacon and without, they say nothing.
    plain = rich_run()
    assert all(r.beacon is None for r in plain if isinstance(r, Draw))
    assert all(r.pulse is None for r in plain if isinstance(r, RevealClose))


@settings(max_examples=20, deadline=None)
@given(scripts, st.lists(st.tuples(st.integers(-7, 7), st.booleans()), min_size=9, max_size=9))
def test_runs_with_a_beacon_go_on_whatever_becomes_of_the_pulse(
    script: list[Any], ways: list[tuple[int, bool]]
) -> None:
    state = started(witnesses=3, beacon=made_up_beacon(period=1), audit={"rate_ppm": 0})
    play = Play(state)
    for turn, (lead, pulseless) in zip(script, ways, strict=False):
        if not can_open(play.state):
            break
        play.lead, play.pulseless = lead, pulseless
        before = len(play.records)
        play.turn(turn)
        draw = record_of(Draw, play.records[before:])
        if pulseless or lead <= 0:
            assert [item.slot for item in draw.drawn] == [
                entry.slot
                for entry in play.records[before].roster  # type: ignore[union-attr]
            ]
    assert replay(state.manifest, [*state.members, *play.records]) == play.state


def test_a_reveal_close_names_a_pulse_exactly_in_a_run_with_a_beacon() -> None:
    for made in (None, made_up_beacon()):
        state = started(witnesses=3, beacon=made)
        play = Play(state)
        play.turn({})
        before = state_at(RevealClose, play.records, state)
        closed = record_of(RevealClose, play.records)
        assert (closed.pulse is None) == (made is None)
        with pytest.raises(ProtocolError):
            apply(before, replace(closed, pulse=5 if made is None else None))
        if made:  # which one is the coordinator's choice: one that is out already makes the draw short
            assert apply(before, replace(closed, pulse=1)).open_turn.reveal_close == replace(closed, pulse=1)


def test_a_beacon_is_named_only_where_all_three_of_its_numbers_are_its_own() -> None:
    assert Beacon(1692803367, 3, KEY, "bls-unchained-g1-rfc9380") == QUICKNET
    assert described(QUICKNET) == "drand's quicknet"
    for other in (replace(QUICKNET, genesis=QUICKNET.genesis + 3600), replace(QUICKNET, period=30)):
        text = described(other)
        assert text.startswith(f"one with genesis {other.genesis}, period {other.period} s and key 83cf0f28")
        assert "compare all three" in text


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_pulse_comes_while_clocks_can_say_so(beyond: int) -> None:
    state = started(witnesses=3, beacon=made_up_beacon(MAX_INTEGER - 3 + beyond, 3))
    play = Play(state)
    play.turn({})
    before, closed = state_at(RevealClose, play.records, state), record_of(RevealClose, play.records)
    named = replace(closed, pulse=2)
    if beyond:
        with pytest.raises(ProtocolError):
            apply(before, named)
    else:
        assert apply(before, named).open_turn.reveal_close == named


NEVER = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}
HEAD, _ = head(2)  # head 2 of the first turn, cosigned two seconds after noon


def at_draw(made: Beacon | None, lead: int = 5) -> RunState:
    """The state in which the first turn is to be drawn; nobody is drawn by chance."""
    state = started(witnesses=3, beacon=made, audit=NEVER)
    play = Play(state)
    play.lead = lead
    play.turn({})
    return state_at(Draw, play.records, state)


def drawn(state: RunState, shown: Pulse | None, signers: tuple[str, ...] = WITNESSES) -> Draw:
    note, found = cosigned(HEAD, signers), links(HEAD, 1, signers)
    return plan_draw(state, note, CHAIN.link(1), found, shown)


def test_a_draw_shows_the_pulse_that_its_turn_named_or_none() -> None:
    state = at_draw(made_up_beacon())
    due = due_pulse(state)
    assert due
    for other in (due - 1, due + 1, 1, 2**53 - 1):
        with pytest.raises(ProtocolError, match="another pulse") as found:
            drawn(state, made_up_pulse(other))
        assert str(due) in str(found.value)
    full, without = drawn(state, made_up_pulse(due)), drawn(state, None)
    assert full.drawn == ()
    assert [item.slot for item in without.drawn] == [0, 1, 2, 3]
    assert full.seed != without.seed
    for draw in (full, without):
        assert apply(state, draw).open_turn.draw == draw
    for changed in (
        replace(full, beacon=None),
        replace(full, beacon=Pulse(due, SIGNATURE)),  # the seed is of another pulse
        replace(full, beacon=None, drawn=without.drawn),
        replace(without, drawn=()),
        replace(without, beacon=made_up_pulse(due)),
    ):
        with pytest.raises(BarnraiseError):
            apply(state, changed)


def test_without_a_beacon_there_is_no_pulse() -> None:
    state = at_draw(None)
    assert due_pulse(state) is None
    with pytest.raises(ProtocolError, match="expected none, got 5"):
        drawn(state, made_up_pulse(5))
    assert drawn(state, None).drawn == ()


@pytest.mark.parametrize(("lead", "slots"), [(-1, 4), (0, 4), (1, 0), (2, 0)])
def test_a_draw_is_short_when_its_head_was_cosigned_as_late_as_its_pulse(lead: int, slots: int) -> None:
    made = made_up_beacon(period=1)
    state = at_draw(made, lead)
    due = due_pulse(state)
    assert due
    assert made.published(due) == NOON + HEAD.size + lead
    draw = drawn(state, made_up_pulse(due))
    assert draw.beacon == made_up_pulse(due)  # it stands in the seed all the same
    assert len(draw.drawn) == slots
    assert apply(state, draw).open_turn.draw == draw


def test_any_late_cosignature_makes_a_draw_short(monkeypatch: pytest.MonkeyPatch) -> None:
    state = at_draw(made_up_beacon(period=1))
    due = due_pulse(state)
    assert due
    lines = {name: cosigned(HEAD, (name,)).splitlines(keepends=True)[-1] for name in WITNESSES}
    monkeypatch.setattr("tests.verification.fake_run.NOON", NOON + 5)
    late = cosigned(HEAD, (THREE,)).splitlines(keepends=True)[-1]
    plain = cosigned(HEAD, ())
    # Three is named by the open and gave its link; the last of three times counts.
    for last, slots in ((lines[THREE], 0), (late, 4)):
        note = plain + lines[ONE] + lines[TWO] + last
        draw = plan_draw(state, note, CHAIN.link(1), links(HEAD, 1, WITNESSES), made_up_pulse(due))
        assert len(draw.drawn) == slots
        assert apply(state, draw).open_turn.draw == draw


@pytest.mark.parametrize(
    ("lead", "pulseless", "looks"), [(5, False, 0), (5, True, 4), (0, False, 4), (0, True, 4)]
)
def test_a_draw_that_is_short_of_its_pulse_gives_every_pass_a_second_look(
    lead: int, pulseless: bool, looks: int
) -> None:
    state = started(witnesses=3, beacon=made_up_beacon(period=1), audit={**NEVER, "rate_ppm": 1_000_000})
    play = Play(state)
    play.lead, play.pulseless = lead, pulseless
    play.turn({})
    second = record_of(SecondDraw, play.records)
    assert len(second.looks) == looks
    # The pulse has no part in the second draw itself.
    before = state_at(SecondDraw, play.records, state)
    other, _ = head(3)
    found = links(other, 2, WITNESSES)
    assert plan_second_draw(before, cosigned(other, WITNESSES), CHAIN.link(2), found) == second


def test_golden_seed_with_a_pulse() -> None:
    point, _ = head(12)
    given_: dict[str, Any] = {"run": sha("run"), "round_number": 1, "attempt": 0, "turn": 0, "look": 1}
    seed = draw_seed(**given_, head=point, link="ab" * 32, beacon=Pulse(1000, SIGNATURE))
    text = (
        f'{{"attempt":0,"beacon":{{"randomness":"{RANDOMNESS}","round":1000}},'
        f'"head_root":"{point.root.hex()}","head_size":12,"link":"{"ab" * 32}",'
        f'"look":1,"round":1,"run":"{sha("run")}","turn":0,"witnesses":[]}}'
    )
    assert seed == "sha256:" + hashlib.sha256(b"barnraise/draw/v1\x00" + text.encode()).hexdigest()
