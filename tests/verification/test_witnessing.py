"""Witnesses in the rules: the manifest's, those of a turn, cosigned heads, links, short draws."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_run import (
    CHAIN,
    GOOD,
    WITNESSES,
    FakeWitness,
    Play,
    can_open,
    cosigned,
    head,
    key,
    links,
    made_up_beacon,
    manifest,
    scripts,
    sha,
    started,
    witnessing,
)
from verification.errors import BarnraiseError, ProtocolError
from verification.keys import PrivateKey
from verification.lottery import HashChain, draw_seed
from verification.notes import vkey, witness_vkey
from verification.plans import link_number, plan_draw, plan_open, plan_second_draw
from verification.records import (
    Draw,
    DrawChain,
    Manifest,
    Record,
    RoundOpen,
    SecondDraw,
    Verdict,
    Witness,
    WitnessLink,
)
from verification.rounds import apply, begin
from verification.state import RunState
from verification.statements import sign_object
from verification.witness import CHAIN_DOMAIN
from verification.witnessing import ShownLink, fork_takes, verify_link

ONE, TWO, THREE = WITNESSES
RUN = started(witnesses=3, run={"rounds": 9})


def refuses(state: RunState, record: Record, match: str) -> None:
    before = copy.deepcopy(state)
    with pytest.raises(BarnraiseError, match=match):
        apply(state, record)
    assert state == before


# The manifest


def with_witnesses(base: Manifest, witnesses: tuple[Witness, ...], required: int = 2) -> Manifest:
    return replace(base, witnessing=replace(base.witnessing, witnesses=witnesses, required=required))


def test_a_manifest_names_each_witness_once_with_a_chain_that_is_its_own() -> None:
    good = manifest(3)
    one, two, three = good.witnessing.witnesses
    assert begin(good).links[TWO].number == 0
    short = replace(one, chain=DrawChain(one.chain.end, good.draw_chain.length - 1))
    own = FakeWitness(ONE)
    lies: dict[str, tuple[Witness, ...]] = {
        "twice": (one, two, one),
        "shorter": (short, two, three),
        "does not hold": (replace(one, proof=two.proof), two, three),
        "base64": (replace(one, proof=""), two, three),
    }
    for match, witnesses in lies.items():
        with pytest.raises(BarnraiseError, match=match):
            begin(with_witnesses(good, witnesses))
    with pytest.raises(BarnraiseError, match="does not hold"):
        begin(with_witnesses(good, (own.entry(vkey("other", key("coordinator").public)), two, three)))
    with pytest.raises(BarnraiseError, match="does not hold"):
        begin(with_witnesses(good, (replace(one, chain=replace(one.chain, end=sha("x"))), two, three)))
    with pytest.raises(ProtocolError, match="own witness"):
        begin(replace(good, coordinator=own.key.public))


def made(name: str, signer: PrivateKey, log_vkey: str) -> Witness:
    """A witness of any name with any key, whose chain is its own."""
    chain, own = FakeWitness(name).chain, witness_vkey(name, signer.public)
    claim: dict[str, Any] = {"end": chain.end, "length": chain.length, "log_vkey": log_vkey, "witness": own}
    return Witness(DrawChain(chain.end, chain.length), sign_object(CHAIN_DOMAIN, claim, signer), own)


def test_neither_a_name_nor_a_key_stands_twice() -> None:
    base = manifest(3)
    one, two, _ = base.witnessing.witnesses
    fine = made("another", key("another"), base.log_vkey)
    assert begin(with_witnesses(base, (one, two, fine))).links["another"].number == 0
    for twice in (
        made(ONE, key("another"), base.log_vkey),
        made("another", FakeWitness(ONE).key, base.log_vkey),
    ):
        with pytest.raises(ProtocolError, match="stands twice"):
            begin(with_witnesses(base, (one, two, twice)))


def test_a_run_with_a_beacon_has_witnesses() -> None:
    with pytest.raises(ProtocolError, match="no witnesses"):
        begin(manifest(0, made_up_beacon()))
    assert begin(manifest(1, made_up_beacon())).links[ONE].number == 0


@pytest.mark.parametrize(("count", "required"), [(3, 0), (3, 4), (1, 2), (0, 1), (2, -1)])
def test_the_required_number_lies_between_one_and_all(count: int, required: int) -> None:
    base = manifest(count)
    with pytest.raises(ProtocolError, match="impossible number"):
        begin(with_witnesses(base, base.witnessing.witnesses, required))


def test_any_possible_number_is_taken() -> None:
    base = manifest(3)
    for required in (1, 2, 3):
        assert begin(with_witnesses(base, base.witnessing.witnesses, required))
    assert begin(manifest(0)).links == {}
    assert witnessing(3, base.log_vkey) == base.witnessing


# The open


@pytest.mark.parametrize("names", [(), (TWO,), (TWO, ONE), (ONE, ONE), (ONE, "other"), (ONE, TWO, TWO)])
def test_an_open_names_enough_of_the_witnesses_in_order(names: tuple[str, ...]) -> None:
    record = replace(plan_open(RUN, WITNESSES), witnesses=names)
    refuses(RUN, record, "witnesses")
    with pytest.raises(ProtocolError, match="witnesses"):
        plan_open(RUN, names)


@pytest.mark.parametrize("names", [WITNESSES, (ONE, TWO), (ONE, THREE), (TWO, THREE)])
def test_which_of_them_is_the_coordinators_choice(names: tuple[str, ...]) -> None:
    assert apply(RUN, plan_open(RUN, names)).open_turn.open.witnesses == names


def test_too_few_that_answer_says_who_is_missing_and_what_to_do() -> None:
    with pytest.raises(ProtocolError, match=r"/one, w[.]example/three did not") as found:
        plan_open(RUN, [TWO])
    assert "resume" in str(found.value)


# The draw


def at_draw(names: tuple[str, ...] = WITNESSES, turns: int = 0, **sections: Mapping[str, Any]) -> RunState:
    """The state in which head 2 of a turn is to be drawn from; nobody is drawn by chance."""
    settings_: dict[str, Mapping[str, Any]] = {"audit": {"rate_ppm": 0, "probation_rounds": 0}, **sections}
    play = Play(started(witnesses=3, run={"rounds": 9}, **settings_))
    for _ in range(turns):
        play.turn({})
    play.absent = set(WITNESSES) - set(names)
    play.turn({})
    again = Play(started(witnesses=3, run={"rounds": 9}, **settings_))
    for record in play.records:
        if isinstance(record, Draw) and again.state.turns == turns + 1:
            break
        again.add(record)
    return again.state


HEAD, _ = head(12)


def drawn(state: RunState, signers: tuple[str, ...], shown: tuple[str, ...]) -> Draw:
    number = link_number(state)
    return plan_draw(state, cosigned(HEAD, signers), CHAIN.link(number), links(HEAD, number, shown))


def test_a_full_draw_leaves_the_lot_its_say_and_a_short_one_draws_everybody() -> None:
    state = at_draw()
    full = drawn(state, WITNESSES, WITNESSES)
    assert full.drawn == ()
    assert [item.witness for item in full.links] == list(WITNESSES)
    for signers, shown in (((ONE, TWO), (ONE, TWO)), (WITNESSES, (ONE, THREE)), (WITNESSES, ())):
        short = drawn(state, signers, shown)
        assert [item.slot for item in short.drawn] == [0, 1, 2, 3]
        assert [item.witness for item in short.links if item.link] == list(shown)
        assert all(item.proof is None for item in short.links if item.link is None)
        assert apply(state, short).open_turn.draw == short
        assert short.seed != full.seed
    assert drawn(at_draw((ONE, TWO)), (ONE, TWO), (ONE, TWO)).drawn == ()  # nobody named is missing


def test_a_draw_needs_enough_cosignatures_of_the_turns_witnesses() -> None:
    state = at_draw()
    good = drawn(state, WITNESSES, WITNESSES)
    for signers in ((), (TWO,)):
        with pytest.raises(ProtocolError, match="too few witnesses cosigned"):
            drawn(state, signers, signers)
        refuses(state, replace(good, head=cosigned(HEAD, signers)), "too few witnesses cosigned")
    refuses(state, replace(good, head=cosigned(HEAD, (TWO, ONE))), "no witness that may stand here")
    refuses(state, replace(good, head=cosigned(HEAD, (ONE, TWO, TWO))), "no witness that may stand here")
    other, _ = head(13)
    lines = cosigned(other, WITNESSES).split("\n\n")[1].split("\n", 1)[1]
    refuses(state, replace(good, head=cosigned(HEAD, ()) + lines), "does not hold")


def test_who_was_away_at_the_open_cosigns_all_the_same_and_shows_no_link() -> None:
    state = at_draw((ONE, THREE))
    for signers, shown, slots in (
        (WITNESSES, (ONE, THREE), []),
        ((ONE, TWO), (ONE,), [0, 1, 2, 3]),  # who was named has died, who was away is back
        ((TWO, THREE), (THREE,), [0, 1, 2, 3]),
    ):
        draw = drawn(state, signers, shown)
        assert [item.slot for item in draw.drawn] == slots
        assert [item.witness for item in draw.links] == [ONE, THREE]
        assert [item.witness for item in draw.links if item.link] == list(shown)
        assert apply(state, draw).open_turn.draw == draw
    with pytest.raises(ProtocolError, match="does not name"):
        drawn(state, WITNESSES, WITNESSES)
    good = drawn(state, WITNESSES, (ONE, THREE))
    link, proof = FakeWitness(TWO).link(HEAD, 1)
    extra = replace(good, links=(good.links[0], WitnessLink(link, proof, TWO), good.links[1]))
    refuses(state, extra, "does not name")


def test_no_draw_without_its_witnesses_can_be_appended() -> None:
    """The coordinator's own link and head are not enough, whatever it writes under links."""
    state = at_draw()
    good = drawn(state, WITNESSES, WITNESSES)
    for changed in (
        replace(good, head=cosigned(HEAD, ()), links=()),
        replace(good, head=cosigned(HEAD, ()), links=tuple(WitnessLink(None, None, n) for n in WITNESSES)),
        replace(good, links=()),
        replace(good, links=good.links[:2]),
        replace(good, links=good.links[::-1]),
        replace(good, links=tuple(WitnessLink(None, None, n) for n in WITNESSES)),
        replace(good, links=(replace(good.links[0], proof=None), *good.links[1:])),
        replace(good, links=(replace(good.links[0], link=None), *good.links[1:])),
        replace(good, links=(*good.links[:2], replace(good.links[2], witness="other"))),
    ):
        with pytest.raises(BarnraiseError):
            apply(state, changed)


def with_link(state: RunState, name: str, link: tuple[str, str]) -> Draw:
    number = link_number(state)
    found = {**links(HEAD, number, WITNESSES), name: link}
    return plan_draw(state, cosigned(HEAD, WITNESSES), CHAIN.link(number), found)


def test_a_link_is_of_this_chain_this_number_this_head_and_this_log() -> None:
    state = at_draw()
    one, two = FakeWitness(ONE), FakeWitness(TWO)
    other, _ = head(13)
    assert with_link(state, ONE, one.link(HEAD, 1)).links[0].link == one.chain.link(1)
    for bad, match in (
        (two.link(HEAD, 1), "lead back"),
        (one.link(HEAD, 2), "lead back"),
        (one.link(other, 1), "does not hold"),
        (one.link(HEAD, 1, number=2), "does not hold"),
        (one.link(HEAD, 1, log_vkey="other"), "does not hold"),
        (one.link(HEAD, 1, witness=two.vkey), "does not hold"),
        ((one.chain.link(1), two.link(HEAD, 1)[1]), "does not hold"),
        ((one.chain.link(1).upper(), one.link(HEAD, 1)[1]), "64 hex digits"),
        ((one.chain.link(1), ""), "base64"),
    ):
        with pytest.raises(BarnraiseError, match=match):
            with_link(state, ONE, bad)
    stranger = HashChain(b"\x08" * 32, CHAIN.length).link(1)
    with pytest.raises(ProtocolError, match="lead back"):
        with_link(state, ONE, (stranger, one.link(HEAD, 1, link=stranger)[1]))


def test_a_link_is_shown_once() -> None:
    one = FakeWitness(ONE)
    shown = ShownLink(2, one.chain.link(2))
    verify_link(RUN.manifest, ONE, shown, 3, HEAD, *one.link(HEAD, 3))
    for number in (1, 2):
        with pytest.raises(ProtocolError, match="out of turn"):
            verify_link(RUN.manifest, ONE, shown, number, HEAD, *one.link(HEAD, 2, number=number))


def test_who_did_not_cosign_shows_no_link() -> None:
    state = at_draw()
    with pytest.raises(ProtocolError, match="did not cosign"):
        drawn(state, (ONE, TWO), WITNESSES)


def test_links_are_hashed_back_over_the_turns_that_a_witness_missed() -> None:
    play = Play(RUN)
    play.turn({})
    assert play.state.links[THREE].number == 2
    play.absent = {THREE}
    play.turn({})
    play.absent, play.mute = set(), {THREE}
    play.turn({})
    assert [play.state.links[name].number for name in WITNESSES] == [6, 6, 2]
    play.mute = set()
    play.turn({})
    assert [play.state.links[name].number for name in WITNESSES] == [8, 8, 8]
    assert play.state.links[THREE].link == FakeWitness(THREE).chain.link(8)


def test_a_short_second_draw_gives_every_pass_a_second_look() -> None:
    for mute, looks in ((set(), 0), ({THREE}, 4)):
        play = Play(started(witnesses=3, audit={"second_look_ppm": 0, "rate_ppm": 1_000_000}))
        play.mute = mute
        play.turn({}, replace(GOOD))
        second = next(record for record in play.records if isinstance(record, SecondDraw))
        assert len(second.looks) == looks
        found = [record for record in play.records if isinstance(record, Verdict)]
        assert len(found) == 4 + looks


def test_a_short_draw_gives_every_pass_a_second_look_though_the_second_draw_is_full() -> None:
    other, _ = head(13)
    for shown, looks in ((WITNESSES, []), ((ONE, TWO), [0, 1, 2, 3])):
        play = Play(started(witnesses=3, audit={"second_look_ppm": 0, "rate_ppm": 1_000_000}))
        play.mute = set(WITNESSES) - set(shown)
        play.turn({})
        state = started(witnesses=3, audit={"second_look_ppm": 0, "rate_ppm": 1_000_000})
        for record in play.records:
            if isinstance(record, SecondDraw):
                break
            state = apply(state, record)
        full = plan_second_draw(state, cosigned(other, WITNESSES), CHAIN.link(2), links(other, 2, WITNESSES))
        assert all(item.link for item in full.links)
        assert [item.slot for item in full.looks] == looks
        assert apply(state, full).open_turn.second == full


def test_the_second_draws_links_have_the_next_number() -> None:
    play = Play(RUN)
    play.turn({})
    i = next(i for i, record in enumerate(play.records) if isinstance(record, SecondDraw))
    state = RUN
    for record in play.records[:i]:
        state = apply(state, record)
    note = cosigned(HEAD, WITNESSES)
    assert plan_second_draw(state, note, CHAIN.link(2), links(HEAD, 2, WITNESSES))
    for number in (1, 3):
        with pytest.raises(ProtocolError, match="lead back"):
            plan_second_draw(state, note, CHAIN.link(2), links(HEAD, number, WITNESSES))
    good: Any = play.records[i]
    refuses(state, replace(good, head=cosigned(HEAD, (ONE,))), "too few witnesses cosigned")


def test_golden_seed_with_witnesses() -> None:
    given_: dict[str, Any] = {"run": sha("run"), "round_number": 1, "attempt": 0, "turn": 0, "look": 1}
    seed = draw_seed(**given_, head=HEAD, link="ab" * 32, witnesses=[(ONE, "cd" * 32), (TWO, None)])
    text = (
        f'{{"attempt":0,"beacon":null,"head_root":"{HEAD.root.hex()}","head_size":12,"link":"{"ab" * 32}",'
        f'"look":1,"round":1,"run":"{sha("run")}","turn":0,'
        f'"witnesses":[["{ONE}","{"cd" * 32}"],["{TWO}",null]]}}'
    )
    assert seed == "sha256:" + hashlib.sha256(b"barnraise/draw/v1\x00" + text.encode()).hexdigest()
    assert seed != draw_seed(**given_, head=HEAD, link="ab" * 32, witnesses=[(ONE, "cd" * 32)])
    with pytest.raises(BarnraiseError, match="64 hex digits"):
        draw_seed(**given_, head=HEAD, link="ab" * 32, witnesses=[(ONE, "cd")])


troubles = st.lists(
    st.tuples(st.sampled_from([None, *WITNESSES]), st.sampled_from([None, *WITNESSES])), max_size=9
)


@settings(max_examples=30, deadline=None)
@given(scripts, troubles)
def test_whatever_witnesses_fail_a_short_draw_audits_all_and_the_run_replays(
    script: list[dict[int, Any]], trouble: list[tuple[str | None, str | None]]
) -> None:
    play = Play(started(witnesses=3, run={"rounds": 9}))
    first = play.state
    for number, turn in enumerate(script):
        absent, mute = trouble[number] if number < len(trouble) else (None, None)
        play.absent = {absent} if absent else set()
        play.mute = {mute} if mute and not absent else set()
        if not can_open(play.state):
            break
        before = len(play.records)
        play.turn(turn)
        here = play.records[before:]
        open_ = next(record for record in here if isinstance(record, RoundOpen))
        draw = next(record for record in here if isinstance(record, Draw))
        assert set(open_.witnesses) == set(WITNESSES) - play.absent
        if play.mute:
            assert [item.slot for item in draw.drawn] == [entry.slot for entry in open_.roster]
        for name in set(open_.witnesses) - play.mute:
            assert play.state.links[name].number == 2 * open_.turn + 2
    state = first
    for record in play.records:
        state = apply(state, record)
    assert state == play.state


@pytest.mark.parametrize(("required", "count"), [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), (5, 5)])
def test_how_many_must_lie_before_two_quorums_cosign_two_histories(required: int, count: int) -> None:
    quorums = [set(one) for one in itertools.combinations(range(count), required)]
    common = min(len(one & two) for one in quorums for two in quorums)
    assert fork_takes(required, count) == common
