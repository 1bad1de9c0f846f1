"""The lineage after any closes and settlements against an aggregation of everything from the start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import ArraySpec
from pipeline.aggregation import AggregationConfig, Contribution
from pipeline.checkpoint import Aggregator, Checkpoint
from pipeline.compression import Codec
from pipeline.folder import RunFolder
from pipeline.lineage import Lineage, replayed, turn_work
from tests.verification.fake_run import LATE, Fate, Play, enrolments, played, started
from tests.verification.late_play import (
    ALL,
    DISPUTED,
    UNAUDITED,
    UNCONFIRMED,
    LatePlay,
    late_start,
)
from verification.errors import ProtocolError
from verification.plans import capped_weights
from verification.records import Record, RoundClose, RoundOpen, Settlement
from verification.rounds import apply
from verification.state import RunState

CODEC = Codec(32, 8, 104)
SPECS = (
    ArraySpec("embed.weight", (9, 7)),
    ArraySpec("norm.weight", (11,)),
    ArraySpec("up.weight", (2, 3, 5)),
)
KINDS = {
    "nesterov": AggregationConfig("nesterov", 0.9, 0.9, 0.95, 1e-8, 0.1),
    "adamw": AggregationConfig("adamw", 0.9, 0.9, 0.95, 1e-8, 0.1),
}


class Payloads:
    """A run folder's payloads by digest, made up on the spot, of many sizes."""

    def payload(self, digest: str) -> bytes:
        seed = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big")
        rng = np.random.default_rng(seed)
        values = rng.standard_t(3, size=CODEC.length) * 10.0 ** rng.integers(-3, 1)
        return CODEC.encode(values.astype(np.float32))


FOLDER = cast("RunFolder", Payloads())


def start(kind: str = "nesterov") -> Lineage:
    aggregator = Aggregator(SPECS, CODEC, KINDS[kind])
    rng = np.random.default_rng(3)
    weights = {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in SPECS}
    return Lineage(aggregator, aggregator.start(weights))


class Account:
    """What was accepted, turn after turn, and what was taken out; weighs and aggregates all of it anew."""

    def __init__(self, state: RunState, first: Lineage) -> None:
        self.config = state.config
        self.first = first
        self.turns: list[tuple[RoundOpen, RoundClose]] = []
        self.gone: set[tuple[int, int, int]] = set()
        self.settled = 0
        self._open: RoundOpen | None = None

    def add(self, record: Record) -> None:
        match record:
            case RoundOpen():
                self._open = record
            case RoundClose():
                assert self._open
                self.turns.append((self._open, record))
            case Settlement():
                self.gone |= {(item.round, item.attempt, item.slot) for item in record.removed}
                self.settled += 1

    def after(self, count: int) -> Checkpoint:
        """The checkpoint after the first `count` turns, as if what is gone had never been accepted."""
        at = self.first.settled
        for open_, close in self.turns[:count]:
            left = [a for a in close.accepted if (close.round, close.attempt, a.slot) not in self.gone]
            work = [(open_.entry(a.slot).operator, a.tokens) for a in left]
            weights = capped_weights(work, self.config["credit"]["operator_cap_ppm"])
            given_ = [
                Contribution(a.slot, w, FOLDER.payload(a.payload)) for a, w in zip(left, weights, strict=True)
            ]
            at = self.first.aggregator.step(at, given_, open_.outer_lr)
        return at

    def check(self, lineage: Lineage) -> None:
        digests = self.first.aggregator.digests
        assert digests(lineage.current) == digests(self.after(len(self.turns)))
        assert digests(lineage.settled) == digests(self.after(self.settled))
        assert len(lineage.waiting) == len(self.turns) - self.settled


def follow(records: Sequence[Record], state: RunState, first: Lineage) -> tuple[Lineage, Account]:
    """The lineage as a coordinator keeps it, compared after every close and settlement."""
    lineage, account = first, Account(state, first)
    for record in records:
        account.add(record)
        if isinstance(record, RoundClose):
            lineage = lineage.closed(
                turn_work(FOLDER, record.accepted, state.open_turn.open.outer_lr), lags=True
            )
        elif isinstance(record, Settlement):
            lineage = lineage.settled_after(FOLDER, state, record.removed)
        state = apply(state, record)
        if isinstance(record, (RoundClose, Settlement)):
            account.check(lineage)
    return lineage, account


fates = st.sampled_from((DISPUTED, UNAUDITED, UNCONFIRMED, LATE))
scripts = st.lists(st.dictionaries(st.integers(0, 3), fates, max_size=4), min_size=2, max_size=6)


def play_of(script: Sequence[Mapping[int, Fate]], state: RunState) -> LatePlay:
    play = LatePlay(state)
    for turn in script:
        play.settle_due()
        if play.state.rounds_done < state.config["run"]["rounds"] and play.state.attempt < 3:
            play.turn(turn)
    if play.state.rounds_done == state.config["run"]["rounds"]:
        play.finish()
    return play


@settings(max_examples=25, deadline=None)
@given(scripts, st.integers(1, 3), st.sampled_from(sorted(KINDS)))
def test_after_any_closes_and_settlements_it_is_the_aggregation_of_what_is_left(
    script: list[dict[int, Fate]], lag: int, kind: str
) -> None:
    audit = {**ALL, "second_look_ppm": 1_000_000}
    state = late_start(lag, audit=audit, run={"rounds": 4})
    play = play_of(script, state)
    lineage, _ = follow(play.records, state, start(kind))
    again = replayed(FOLDER, _with_manifest(play), start(kind))
    digests = lineage.aggregator.digests
    assert [digests(c) for c in (again.settled, *again.waiting)] == [
        digests(c) for c in (lineage.settled, *lineage.waiting)
    ]


def _with_manifest(play: Play) -> list[Any]:
    return [play.state.manifest, *enrolments(play.state.run), *play.records]


def test_a_removal_changes_the_weights_of_its_turn_and_of_all_later_ones() -> None:
    """Momentum and clipping carry it on: it cannot be subtracted afterwards."""
    state = late_start(2, audit={**ALL, "second_look_ppm": 1_000_000}, run={"rounds": 4})
    play = LatePlay(state)
    for turn in ({1: DISPUTED}, {}, {}):
        play.turn(turn)
    before, _ = follow(play.records, state, start())
    play.settle_due()
    after, account = follow(play.records, state, start())
    digests = after.aggregator.digests
    assert len(account.gone) == 3
    kept = [digests(c) for c in before.waiting]
    assert all(digests(c) not in kept for c in (after.settled, *after.waiting))


def test_a_settlement_that_removes_nothing_aggregates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = late_start(1, audit=ALL)
    play = LatePlay(state)
    play.turn({})
    play.turn({})
    lineage, _ = follow(play.records, state, start())
    monkeypatch.setattr(Aggregator, "step", None)
    settled = lineage.settled_after(FOLDER, play.state, ())
    assert settled.settled is lineage.waiting[0]
    assert settled.waiting == lineage.waiting[1:]
    assert settled.current is lineage.current


def test_a_turn_with_nothing_left_changes_nothing() -> None:
    state = late_start(1, audit={**ALL, "second_look_ppm": 1_000_000})
    play = LatePlay(state)
    play.turn(dict.fromkeys(range(4), DISPUTED))
    play.turn({})
    play.settle_due()
    assert len(play.state.waiting[0].accepted) == 0  # all of the second turn followed
    first = start()
    lineage, _ = follow(play.records, state, first)
    digests = lineage.aggregator.digests
    assert digests(lineage.settled) == digests(lineage.current) == digests(first.settled)


def test_without_a_lag_a_close_settles() -> None:
    play = played([{1: LATE}, {}], started())
    lineage = replayed(FOLDER, _with_manifest(play), start())
    assert lineage.waiting == ()
    assert lineage.current is lineage.settled
    digests = lineage.aggregator.digests
    assert digests(lineage.settled) != digests(start().settled)


def test_a_log_without_its_manifest_is_refused() -> None:
    play = played([{}], started())
    with pytest.raises(ProtocolError, match="does not begin with a manifest"):
        replayed(FOLDER, play.records, start())
