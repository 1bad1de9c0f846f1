"""Whose signature each entry of a log needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.log_reader import LogReader, read_entries
from tests.pipeline.fake_log import log_of, sealed
from tests.verification.fake_elastic import back, leave, newcomer
from tests.verification.fake_run import ORIGIN, Play, enrolments, key, revocation, rotation, started
from tests.verification.late_play import LatePlay, late_start
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.log import Log
from verification.records import Record, Verdict
from verification.sealing import seal_record


def reader(play: Play, *more: Record) -> LogReader:
    """One that has read a play, and what comes after."""
    read = LogReader(play.state.manifest)
    for data in [*log_of(play), *sealed(more)]:
        read.read(data)
    return read


def once(turns: int = 1) -> Play:
    play = Play(started(run={"rounds": 9}))
    for _ in range(turns):
        play.turn({})
    return play


def test_the_records_of_a_log_come_back(tmp_path: Path) -> None:
    play = once()
    entries = log_of(play)
    log = Log.create(tmp_path / "log", ORIGIN, key("coordinator"), ())
    log.append(entries)
    manifest = play.state.manifest
    assert list(read_entries(log, manifest)) == list(
        zip([manifest, *enrolments(play.state.run), *play.records], entries, strict=True)
    )


def test_a_members_own_word_is_signed_by_it_and_the_coordinators_by_the_coordinator() -> None:
    play = once()
    cases = [
        (leave(play.state, "c1", "member"), "c1"),
        (leave(play.state, "c1"), "coordinator"),
        (back(play.state, "c1"), "c1"),
        (revocation(play.state.run, "c1"), "c1"),
        (revocation(play.state.run, "c1", "coordinator"), "coordinator"),
        (rotation(play.state.run, "c1", "c1", "c1 b"), "c1"),
        (newcomer(play.state, "n0"), "n0"),
    ]
    for record, right in cases:
        for signer in ("c1", "c2", "coordinator", "n0", "c1 b"):
            read, data = reader(play), seal_record(record, key(signer))
            if signer == right:
                assert read.read(data) == record
            else:
                with pytest.raises(SignatureError):
                    read.read(data)


def test_after_a_rotation_the_new_key_signs() -> None:
    play = once()
    turned = rotation(play.state.run, "c1", "c1", "c1 b")
    gone = replace(leave(play.state, "c1", "member"), key=key("c1 b").public)
    read = reader(play, turned)
    with pytest.raises(SignatureError):
        read.read(seal_record(gone, key("c1")))
    assert reader(play, turned).read(seal_record(gone, key("c1 b"))) == gone


def test_nobody_that_is_unknown_says_anything() -> None:
    play = once()
    for record in (back(play.state, "c1"), leave(play.state, "c1", "member")):
        stranger = replace(record, member="eve")
        with pytest.raises(BarnraiseError):
            reader(play).read(seal_record(stranger, key("eve")))


def test_a_late_verdict_is_signed_with_the_key_of_its_turns_open() -> None:
    play = LatePlay(late_start(lag=1, run={"rounds": 3}, audit={"rate_ppm": 1_000_000}))
    play.turn({})
    turned = [rotation(play.state.run, f"a{n}", f"a{n}", f"a{n} b") for n in range(3)]
    for record in turned:
        play.add(record)
    head = [record.kind for record in play.records]
    old = key(next(entry.member for entry in play.state.waiting[0].turn.open.auditors)).public
    play.turn({})
    play.settle_due()
    judged = [record for record in play.records if isinstance(record, Verdict)]
    assert judged
    assert head.count("key-rotation") == 3
    read = LogReader(play.state.manifest)
    for data in log_of(play):  # which seals verdicts with the first keys
        read.read(data)
    assert read.size == len(log_of(play))
    assert old in {verdict_.key for verdict_ in judged}
    again = judged[0]
    with pytest.raises(BarnraiseError):  # the turn is settled: nobody judges it any more
        read.read(seal_record(again, key(again.auditor)))


def test_a_log_begins_with_its_manifest_and_has_but_one() -> None:
    play = once()
    entries = log_of(play)
    with pytest.raises(FormatError, match="unknown kind"):
        LogReader(play.state.manifest).read(entries[1])
    with pytest.raises(FormatError, match="unknown kind"):
        reader(play).read(entries[0])
    with pytest.raises(ProtocolError, match="disagrees"):
        LogReader(replace(play.state.manifest, name="other")).read(entries[0])


def test_bytes_of_any_kind_stay_in_the_family() -> None:
    play = once()
    good = log_of(play)[-1]
    for data in (b"", b"{}", b"[]", good[:-1], good + b" ", good.replace(b"payload", b"Payload")):
        with pytest.raises(BarnraiseError):
            reader(play).read(data)
