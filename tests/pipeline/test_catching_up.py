"""A newcomer reads the log itself: what is forged, torn, of another run or not its head's is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catching_up import LogSoFar
from tests.pipeline.fake_log import log_of, note, sealed
from tests.pipeline.tiny_world import world
from tests.verification.fake_elastic import back, leave, newcomer
from tests.verification.fake_run import CHEAT, Play, b3, key, manifest, rotation, started
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.plans import plan_open
from verification.records import Base
from verification.sealing import seal_record


@cache
def elastic() -> tuple[Play, list[bytes]]:
    """Three turns with everything that may stand between them, and the log of it."""
    play = Play(started(run={"rounds": 9}, audit={"rate_ppm": 300_000}))
    play.turn({2: CHEAT})
    for record in (leave(play.state, "c1", "member"), leave(play.state, "a2"), newcomer(play.state, "n0")):
        play.add(record)
    play.turn({})
    play.add(back(play.state, "c1"))
    play.add(newcomer(play.state, "n1", "auditor"))
    play.turn({})
    return play, log_of(play)


def caught_up(entries: list[bytes]) -> LogSoFar:
    so_far = LogSoFar(elastic()[0].state.manifest)
    so_far.take(entries, note(entries))
    return so_far


def test_a_log_is_read_whole_or_in_pieces_each_under_its_head() -> None:
    _, entries = elastic()
    assert caught_up(entries).size == len(entries)
    so_far = LogSoFar(elastic()[0].state.manifest)
    for start in range(0, len(entries), 9):
        so_far.take(entries[start : start + 9], note(entries[: start + 9]))
    assert so_far.size == len(entries)
    so_far.take([], note(entries))
    assert so_far.size == len(entries)


def refused(
    entries: list[bytes], head: str, kind: type[Exception] = BarnraiseError, match: str = "."
) -> None:
    with pytest.raises(kind, match=match):
        LogSoFar(elastic()[0].state.manifest).take(entries, head)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_torn_log_is_refused(data: st.DataObject) -> None:
    """An entry left out, doubled, exchanged with another, or bytes of it changed, under a head of its own."""
    _, entries = elastic()
    torn = list(entries)
    at = data.draw(st.integers(0, len(entries) - 2))
    match data.draw(st.sampled_from(["drop", "double", "swap", "flip", "cut"])):
        case "drop":
            del torn[at]
        case "double":
            torn.insert(at, entries[at])
        case "swap":
            torn[at], torn[at + 1] = torn[at + 1], torn[at]
        case "flip":
            byte = data.draw(st.integers(0, len(entries[at]) - 1))
            torn[at] = entries[at][:byte] + bytes([entries[at][byte] ^ 1]) + entries[at][byte + 1 :]
        case _:
            torn[at] = entries[at][:-1]
    refused(torn, note(entries))
    if torn[: at + 1] != entries[: at + 1] and torn[at] not in entries:
        refused(torn, note(torn))  # no head makes good what nobody signed


def test_a_head_that_is_not_of_these_entries_is_refused() -> None:
    _, entries = elastic()
    refused(entries[:-1], note(entries), ProtocolError, "not its signed head's")
    refused(entries, note(entries[:-1]), ProtocolError, "not its signed head's")
    refused([], note([]), ProtocolError, "begins with its manifest")
    other = [*entries[:-1], entries[-1] + b" "]
    refused(entries, note(other), ProtocolError, "not its signed head's")
    refused(entries, note(entries, key("eve")), SignatureError)
    refused(entries, note(entries, origin="example/other"), SignatureError)


@pytest.mark.parametrize("head", ["", "x", b"x", None, 3, [], "a\n1\nb\n\nc\n"])
def test_a_head_that_is_none_is_refused(head: Any) -> None:
    refused(elastic()[1], head)


@pytest.mark.parametrize("entries", [None, b"x", "x", 3, [None], ["x"], [3], [b""], [b"{}"], (), [[b"x"]]])
def test_entries_that_are_none_are_refused(entries: Any) -> None:
    refused(entries, note(elastic()[1]))


def test_a_log_of_another_run_is_refused() -> None:
    other = Play(started(run={"rounds": 9, "seed": 2}))
    other.turn({})
    entries = log_of(other)
    refused(entries, note(entries), ProtocolError, "disagrees with log entry 0")
    mixed = [elastic()[1][0], *entries[1:]]
    refused(mixed, note(mixed), ProtocolError, "another run")


FORGED: list[Callable[[Play], tuple[Any, str]]] = [
    # Who says it is not who may, though the signature is somebody's.
    lambda play: (leave(play.state, "c1", "member"), "coordinator"),
    lambda play: (leave(play.state, "c1", "member"), "c2"),
    lambda play: (leave(play.state, "c1"), "c1"),
    lambda play: (newcomer(play.state, "n0"), "coordinator"),
    lambda play: (rotation(play.state.run, "c1", "c1", "c1 b"), "c1 b"),
    lambda play: (plan_open(play.state), "c1"),
    # What is said does not follow.
    lambda play: (replace(plan_open(play.state), base=Base(b3("x"), b3("y"))), "coordinator"),
    lambda play: (replace(leave(play.state, "c1"), turn=0), "coordinator"),
    lambda play: (back(play.state, "c1"), "c1"),
    lambda play: (newcomer(play.state, "c1"), "c1"),
]


@pytest.mark.parametrize("forge", FORGED)
def test_what_the_wrong_one_signed_or_what_does_not_follow_is_refused(
    forge: Callable[[Play], tuple[Any, str]],
) -> None:
    play = Play(started())
    play.turn({})
    record, signer = forge(play)
    entries = [*log_of(play), seal_record(record, key(signer))]
    with pytest.raises(BarnraiseError):
        LogSoFar(play.state.manifest).take(entries, note(entries))
    LogSoFar(play.state.manifest).take(entries[:-1], note(entries[:-1]))


def test_an_enrolment_that_its_own_key_did_not_sign_is_refused() -> None:
    """Nobody is entered under a key that it was not shown to hold."""
    play = Play(started())
    stolen = replace(newcomer(play.state, "c0"), operator="op-a")
    entries = [*sealed([play.state.manifest]), seal_record(stolen, key("eve"))]
    with pytest.raises(SignatureError):
        LogSoFar(play.state.manifest).take(entries, note(entries))


def test_the_open_that_comes_next_stands_on_what_was_read() -> None:
    play, entries = elastic()
    so_far = caught_up(entries)
    open_ = plan_open(play.state)
    assert so_far.before(open_) is so_far
    forged = [
        replace(open_, base=Base(b3("x"), open_.base.outer)),
        replace(open_, base=Base(open_.base.weights, b3("x"))),
        replace(open_, round=open_.round + 1),
        replace(open_, attempt=open_.attempt + 1),
    ]
    for wrong in forged:
        with pytest.raises(ProtocolError, match="does not follow"):
            so_far.before(wrong)
    # What was read has served its purpose when another turn opens.
    assert so_far.before(replace(open_, turn=open_.turn + 1)) is None
    assert LogSoFar(play.state.manifest).before(open_) is None


def test_another_manifest_is_another_run() -> None:
    with pytest.raises(BarnraiseError):
        LogSoFar(manifest(run={"seed": 9})).take(elastic()[1], note(elastic()[1]))
    with pytest.raises(FormatError, match="list of entries"):
        LogSoFar(manifest()).take(tuple(elastic()[1]), note([]))  # type: ignore[arg-type]


def test_a_member_reads_on_where_it_was_and_from_the_start_after_anything_wrong(tmp_path: Path) -> None:
    there = world(tmp_path)
    entries = [seal_record(there.manifest, there.key), there.c0.enrol(), there.c1.enrol()]
    reader, heads = there.a0, [there.head(*entries[:size])[0] for size in (1, 2, 3)]
    assert reader.catch_up(entries[:2], heads[1]) == 2
    assert reader.catch_up(entries[2:], heads[2]) == 3
    with pytest.raises(BarnraiseError):
        reader.catch_up([there.a0.enrol()], heads[2])
    with pytest.raises(BarnraiseError):
        reader.catch_up(entries[2:], heads[2])
    assert reader.catch_up(entries, heads[2]) == 3


def test_a_member_that_read_the_log_works_on_no_open_that_does_not_follow(tmp_path: Path) -> None:
    there = world(tmp_path)
    entries = [seal_record(there.manifest, there.key), there.c0.enrol()]
    there.c0.catch_up(entries, there.head(*entries)[0])
    forged = there.open(base=Base(b3("x"), b3("y")))
    for _ in range(2):
        with pytest.raises(ProtocolError, match="does not follow from the log"):
            there.c0.opened(there.sealed(forged))
    assert there.c0.opened(there.sealed(there.open())) == there.open()
