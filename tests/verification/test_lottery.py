"""Hash chain, seeds and draws: golden values, rules of section 6, evenness."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.errors import FormatError, ProtocolError, UsageError
from verification.lottery import (
    PPM,
    Auditor,
    Candidate,
    Drawn,
    FirstLook,
    HashChain,
    draw_audits,
    draw_second_looks,
    draw_seed,
    draw_segments,
    uniform,
    verify_link,
)
from verification.notes import Checkpoint

SEED = "sha256:" + "5e" * 32
RUN = "sha256:" + "ab" * 32
HEAD = Checkpoint("barn", 17, bytes(range(32)))
LINK = "0c" * 32


def seed_of(**changes: Any) -> str:
    values = {"run": RUN, "round_number": 3, "attempt": 1, "turn": 4, "look": 1, "head": HEAD, "link": LINK}
    return draw_seed(**{**values, **changes})


def by_hand(seed: str, label: str, n: int) -> int:
    """`uniform`, written from the specification without the module's helpers."""
    counter = 0
    while True:
        text = json.dumps({"counter": counter, "label": label, "seed": seed}, separators=(",", ":"))
        raw = hashlib.sha256(b"barnraise/uniform/v1\x00" + text.encode()).digest()
        x = int.from_bytes(raw[:8], "big")
        if x < n * (2**64 // n):
            return x % n
        counter += 1


# Hash chain


def test_a_chain_is_shown_backwards() -> None:
    chain = HashChain(bytes(32), 5)
    elements = [bytes(32)]
    for _ in range(5):
        elements.append(hashlib.sha256(elements[-1]).digest())
    assert chain.end == "sha256:" + elements[5].hex()
    assert [chain.link(t) for t in range(1, 6)] == [elements[5 - t].hex() for t in range(1, 6)]
    shown = [chain.end, *(chain.link(t) for t in range(1, 6))]
    assert all(verify_link(link, before) for before, link in pairwise(shown))
    for number in (0, -1, 6):
        with pytest.raises(ProtocolError):
            chain.link(number)


def test_only_the_next_link_is_accepted() -> None:
    chain = HashChain(b"s" * 32, 10)
    assert verify_link(chain.link(1), chain.end)
    assert not verify_link(chain.link(2), chain.end)
    assert not verify_link(chain.link(2), chain.link(3))
    assert not verify_link(chain.link(2), chain.link(2))
    good, before = chain.link(2), chain.link(1)
    for bit in range(256):
        assert not verify_link(f"{int(good, 16) ^ 1 << bit:064x}", before)
    for bad in ("", good.upper(), good[:-1], good + "0", good + "\n", "sha256:" + good, " " + good, "é" * 64):
        assert not verify_link(bad, before)
    for bad in ("", before.upper(), before + "\n", "blake3:" + before, "sha256:sha256:" + before):
        assert not verify_link(good, bad)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 15, 16, 17, 24, 25, 26, 99])
def test_links_of_chains_of_any_length(length: int) -> None:
    elements = [b"\x05" * 32]
    for _ in range(length):
        elements.append(hashlib.sha256(elements[-1]).digest())
    for numbers in (range(1, length + 1), range(length, 0, -1)):
        chain = HashChain(elements[0], length)
        assert [chain.link(t) for t in numbers] == [elements[length - t].hex() for t in numbers]
        assert chain.end == "sha256:" + elements[length].hex()


def test_a_link_of_a_long_chain_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would spend the more on each draw, the more rounds it is to have."""
    chain, counted = HashChain(bytes(32), 40_000), [0]
    first, sha256 = chain.link(1), hashlib.sha256

    def counting(data: bytes) -> Any:
        counted[0] += 1
        return sha256(data)

    monkeypatch.setattr("verification.lottery.hashlib.sha256", counting)
    assert chain.link(1) == first
    assert chain.link(20_000) != first
    assert counted[0] <= 2 * 201


def test_chain_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "secret" / "chain"
    HashChain(bytes(range(32)), 1200).save(path)
    assert path.read_text() == f"barnraise-chain-v1\n{bytes(range(32)).hex()}\n1200\n"
    assert path.stat().st_mode & 0o777 == 0o600
    back = HashChain.load(path)
    assert (back.length, back.end) == (1200, HashChain(bytes(range(32)), 1200).end)
    with pytest.raises(UsageError, match="exists already"):
        back.save(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others than its owner"):
        HashChain.load(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        f"barnraise-chain-v1\n{'ab' * 32}\n",
        f"barnraise-chain-v1\n{'ab' * 32}\n0\n",
        f"barnraise-chain-v1\n{'ab' * 32}\n012\n",
        f"barnraise-chain-v1\n{'ab' * 32}\n99999999\n",
        f"barnraise-chain-v1\n{'AB' * 32}\n12\n",
        f"barnraise-chain-v1\n{'ab' * 32}\n12",
        "x" * 200,
        f"barnraise-chain-v1\n{'ab' * 32}\n12\n\n",
        f"barnraise-ed25519-v1\n{'ab' * 32}\n",
    ],
)
def test_a_chain_file_has_one_form(tmp_path: Path, content: str) -> None:
    path = tmp_path / "chain"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(FormatError) as caught:
        HashChain.load(path)
    assert "abab" not in str(caught.value)


def test_a_chain_keeps_its_secret() -> None:
    chain = HashChain(bytes(range(32)), 3)
    assert repr(chain) == "HashChain(length=3)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError):
            leak(chain)
    assert HashChain.generate(3).end != HashChain.generate(3).end
    for secret, length in ((bytes(31), 3), (bytes(33), 3), (bytes(32), 0), (bytes(32), 1 << 25)):
        with pytest.raises(FormatError):
            HashChain(secret, length)


# Seeds and uniform


def test_golden_seed() -> None:
    text = (
        '{"attempt":1,"beacon":null,"head_root":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",'
        f'"head_size":17,"link":"{LINK}","look":1,"round":3,"run":"{RUN}","turn":4,"witnesses":[]}}'
    )
    assert seed_of() == "sha256:" + hashlib.sha256(b"barnraise/draw/v1\x00" + text.encode()).hexdigest()
    assert seed_of() == "sha256:6222e5bd440ce7f09f63a5870d597d6204d2b3a0b5fbc48d1a1a296772440fa7"


def test_every_part_of_the_seed_matters() -> None:
    seeds = [
        seed_of(),
        seed_of(run="sha256:" + "ac" * 32),
        seed_of(round_number=4),
        seed_of(attempt=2),
        seed_of(turn=5),
        seed_of(look=2),
        seed_of(head=replace(HEAD, size=18)),
        seed_of(head=replace(HEAD, root=bytes(32))),
        seed_of(link="0d" * 32),
    ]
    assert len(set(seeds)) == len(seeds)
    for change in ({"run": "ab" * 32}, {"link": "0c"}, {"link": "sha256:" + LINK}, {"link": LINK.upper()}):
        with pytest.raises(FormatError):
            seed_of(**change)


def test_golden_uniform() -> None:
    assert [uniform(SEED, f"audit/{slot}", PPM) for slot in range(4)] == [475293, 6821, 806171, 486484]
    assert uniform(SEED, "x", 1) == 0
    assert uniform(SEED, "x", 2**64) == by_hand(SEED, "x", 2**64)


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\')),
    st.integers(1, 2**64),
)
def test_uniform_is_as_specified(label: str, n: int) -> None:
    assert uniform(SEED, label, n) == by_hand(SEED, label, n) < n


def test_uniform_draws_again_above_the_last_whole_multiple() -> None:
    n = 2**63 + 1  # nearly half of all draws lie above n and must be drawn again
    again = 0
    for i in range(64):
        text = json.dumps({"counter": 0, "label": f"{i}", "seed": SEED}, separators=(",", ":"))
        first = hashlib.sha256(b"barnraise/uniform/v1\x00" + text.encode()).digest()
        again += int.from_bytes(first[:8], "big") >= n
        assert uniform(SEED, f"{i}", n) == by_hand(SEED, f"{i}", n) < n
    assert 16 < again < 48
    for bad in (0, -1, 2**64 + 1):
        with pytest.raises(FormatError):
            uniform(SEED, "x", bad)


@pytest.mark.parametrize("n", [2, 6, 10])
def test_uniform_is_even(n: int) -> None:
    counts = [0] * n
    for i in range(600 * n):
        counts[uniform(SEED, f"even/{i}", n)] += 1
    chi_square = sum((count - 600) ** 2 / 600 for count in counts)
    assert chi_square < {2: 10.8, 6: 20.5, 10: 27.9}[n]  # exceeded by chance once in a thousand seeds


# Draws


def roster(*rates: int, operator: str = "op{}", numerics_class: str = "k") -> list[Candidate]:
    return [Candidate(slot, operator.format(slot), numerics_class, rate) for slot, rate in enumerate(rates)]


AUDITORS = [Auditor(f"aud{i}", f"house{i}", "k") for i in range(4)]


def test_who_is_drawn() -> None:
    rates = [0, PPM, 500_000, 250_000, 1] * 8
    drawn = {item.slot for item in draw_audits(SEED, roster(*rates), AUDITORS)}
    assert drawn == {slot for slot, rate in enumerate(rates) if by_hand(SEED, f"audit/{slot}", PPM) < rate}
    assert all((slot in drawn) == (rates[slot] == PPM) for slot in range(40) if rates[slot] in (0, PPM))


def test_slots_keep_their_own_draw_when_others_leave() -> None:
    everyone = roster(*[300_000] * 30)
    drawn = draw_audits(SEED, everyone, AUDITORS)
    odd = draw_audits(SEED, everyone[1::2], AUDITORS)
    assert 0 < len(odd) < 15
    assert odd == tuple(item for item in drawn if item.slot % 2)


def test_the_order_of_auditors_is_the_shuffle_of_the_specification() -> None:
    auditors = [Auditor(f"aud{i}", f"house{i}", "k") for i in range(9)]
    for item in draw_audits(SEED, roster(*[PPM] * 5), auditors):
        expected = [auditor.member for auditor in auditors]
        for i in range(8, 0, -1):
            j = by_hand(SEED, f"auditors/{item.slot}/{i}", i + 1)
            expected[i], expected[j] = expected[j], expected[i]
        assert item.auditors == tuple(expected)


def test_golden_draw() -> None:
    assert draw_audits(SEED, roster(PPM, 500_000, 500_000), AUDITORS) == (
        Drawn(slot=0, auditors=("aud1", "aud0", "aud3", "aud2")),
        Drawn(slot=1, auditors=("aud2", "aud1", "aud3", "aud0")),
    )


def test_nobody_audits_their_own_operator_or_another_class() -> None:
    auditors = [Auditor("a", "op0", "k"), Auditor("b", "x", "k"), Auditor("c", "y", "other")]
    (own,) = draw_audits(SEED, roster(PPM), auditors)
    assert own == Drawn(0, ("b",))
    (nobody,) = draw_audits(SEED, roster(PPM, numerics_class="rare"), auditors)
    assert nobody == Drawn(0, ())
    (own_only,) = draw_audits(SEED, roster(PPM, operator="x"), [auditors[1]])
    assert own_only == Drawn(0, ())


def tolerated(one: str, other: str) -> dict[str, Any]:
    numbers = dict.fromkeys(("loss_ppm", "norm_ppb", "peak_ppm", "step_milli"), 0)
    return {"classes": [one, other], **numbers}


def test_by_tolerance_another_class_is_drawn_where_none_of_the_same_is_left() -> None:
    auditors = [
        Auditor("own", "op0", "rare"),
        Auditor("far", "w", "other"),
        *(Auditor(f"aud{i}", f"house{i}", "k") for i in range(5)),
        Auditor("kin", "op1", "rare"),
    ]
    tolerances = [tolerated("k", "rare")]
    # Each has one of its class and of another operator: the covered ones are not asked, nor are the own.
    drawn = draw_audits(SEED, roster(PPM, PPM, numerics_class="rare"), auditors, tolerances)
    assert drawn == (Drawn(0, ("kin",)), Drawn(1, ("own",)))
    # Where neither is left, those that are covered are asked, in the order of the same shuffle.
    (item,) = draw_audits(SEED, roster(PPM, numerics_class="rare"), auditors[:-1], tolerances)
    expected = [f"aud{i}" for i in range(5)]
    for i in range(4, 0, -1):
        j = by_hand(SEED, f"auditors/0/{i}", i + 1)
        expected[i], expected[j] = expected[j], expected[i]
    assert item.auditors == tuple(expected)
    for others in ([], [tolerated("k", "other")], [tolerated("other", "far")]):
        assert draw_audits(SEED, roster(PPM, numerics_class="rare"), auditors[:-1], others)[0].auditors == ()


def test_a_tolerance_does_not_change_who_is_drawn() -> None:
    rates = [0, PPM, 500_000, 250_000, 1] * 8
    tolerances = [tolerated("rare", "k")]
    plain = draw_audits(SEED, roster(*rates, numerics_class="rare"), AUDITORS)
    lax = draw_audits(SEED, roster(*rates, numerics_class="rare"), AUDITORS, tolerances)
    assert [item.slot for item in lax] == [item.slot for item in plain]
    assert all(not item.auditors for item in plain)
    assert all(set(item.auditors) == {f"aud{i}" for i in range(4)} for item in lax)
    assert draw_audits(SEED, roster(*rates), AUDITORS, tolerances) == draw_audits(
        SEED, roster(*rates), AUDITORS
    )


def test_the_first_auditor_is_each_one_equally_often() -> None:
    counts = dict.fromkeys((auditor.member for auditor in AUDITORS), 0)
    for i in range(800):
        (item,) = draw_audits(f"sha256:{i:064x}", roster(PPM), AUDITORS)
        assert sorted(item.auditors) == sorted(counts)
        counts[item.auditors[0]] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 16.3  # once in a thousand


def first(
    slot: int, outcome: Literal["pass", "fail"], missed: tuple[str, ...] = (), who: int = 1
) -> FirstLook:
    return FirstLook(slot, outcome, AUDITORS[who], tuple(AUDITORS), missed)


def test_a_fail_always_gets_a_second_look_and_a_pass_by_lot() -> None:
    others = ("aud0", "aud2", "aud3")
    looks = [first(slot, "fail" if slot % 2 else "pass") for slot in range(40)]
    assert draw_second_looks(SEED, looks, 0) == tuple(Drawn(slot, others) for slot in range(1, 40, 2))
    assert draw_second_looks(SEED, looks, PPM) == tuple(Drawn(slot, others) for slot in range(40))
    some = {item.slot for item in draw_second_looks(SEED, looks, 400_000)}
    lucky = {slot for slot in range(0, 40, 2) if by_hand(SEED, f"second/{slot}", PPM) < 400_000}
    assert 0 < len(lucky) < 20
    assert some == set(range(1, 40, 2)) | lucky


def test_second_looks_keep_the_order_of_the_draw_and_come_by_slot() -> None:
    drawn = (AUDITORS[3], AUDITORS[0], AUDITORS[2])
    looks = [FirstLook(5, "fail", AUDITORS[0], drawn), FirstLook(2, "fail", AUDITORS[3], drawn, {"aud0"})]
    assert draw_second_looks(SEED, looks, 0) == (Drawn(2, ("aud2",)), Drawn(5, ("aud3", "aud2")))


def test_no_second_look_by_the_same_operator_or_one_who_missed() -> None:
    twin = Auditor("twin", AUDITORS[1].operator, "k")
    look = FirstLook(0, "fail", AUDITORS[1], (AUDITORS[0], twin, AUDITORS[1]), ("aud0",))
    assert draw_second_looks(SEED, [look], PPM) == ()
    assert draw_second_looks(SEED, [replace(look, missed=())], PPM) == (Drawn(0, ("aud0",)),)


# Segments


def segments_by_hand(seed: str, slot: int, wanted: int, count: int) -> tuple[int, ...]:
    """Section 6, "Which segments", word for word."""
    left, taken = list(range(count)), []
    for i in range(wanted):
        index = by_hand(seed, f"segments/{slot}/{i}", count - i)
        taken.append(left[index])
        left = left[:index] + left[index + 1 :]
    return tuple(sorted(taken))


def test_golden_segments() -> None:
    # Of ten, the elements at 5, of what is left that at 7, then at 1 and at 4: 5, 8, 1 and 6.
    assert [by_hand(SEED, f"segments/5/{i}", 10 - i) for i in range(4)] == [5, 7, 1, 4]
    assert segments_by_hand(SEED, 5, 4, 10) == draw_segments(SEED, 5, 4, 10) == (1, 5, 6, 8)
    assert draw_segments(SEED, 5, 1, 10) == (5,)
    assert draw_segments(SEED, 5, 0, 10) == ()


@given(st.integers(0, 50), st.integers(0, 12), st.integers(1, 12), st.integers(0, 2**256 - 1))
def test_segments_are_drawn_as_specified(slot: int, wanted: int, count: int, number: int) -> None:
    seed = f"sha256:{number:064x}"
    drawn = draw_segments(seed, slot, wanted, count)
    assert drawn == segments_by_hand(seed, slot, min(wanted, count), count)
    assert len(set(drawn)) == len(drawn) == min(wanted, count)
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(range(count))


@pytest.mark.parametrize(("wanted", "count"), [(1, 1), (3, 3), (4, 3), (10**9, 5)])
def test_all_segments_are_drawn_when_as_many_are_wanted(wanted: int, count: int) -> None:
    assert draw_segments(SEED, 0, wanted, count) == tuple(range(count))


def test_all_segments_need_no_lot() -> None:
    no_seed = "\ud800"  # of which nothing can be drawn
    assert draw_segments(no_seed, 0, 3, 3) == (0, 1, 2)
    with pytest.raises(FormatError):
        draw_segments(no_seed, 0, 2, 3)


def test_each_set_of_segments_is_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = dict.fromkeys(combinations(range(4), 2), 0)
    for i in range(1200):
        counts[draw_segments(f"sha256:{i:064x}", 1, 2, 4)] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 20.5  # once in a thousand


def test_another_slot_has_other_segments() -> None:
    drawn = {draw_segments(SEED, slot, 3, 12) for slot in range(20)}
    assert len(drawn) > 15
