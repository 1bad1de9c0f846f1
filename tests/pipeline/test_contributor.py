"""A contributor says one thing a turn, to the right coordinator, and keeps only what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.contributor import Contributor
from pipeline.member import Place
from tests.pipeline.tiny_world import World, made, world
from verification.encoding import blake3_digest, canonical_json, sha256_digest
from verification.errors import BarnraiseError, ProtocolError, SignatureError, StorageError
from verification.intake import check_commitment, check_reveal
from verification.keys import PrivateKey
from verification.merkle import Inclusion
from verification.records import (
    Base,
    CommitClose,
    Reveal,
    RosterEntry,
    RoundOpen,
)
from verification.rounds import apply
from verification.sealing import open_record, predicate

OTHER = PrivateKey.from_seed(b"\x05" * 32)


@pytest.fixture
def here(tmp_path: Path) -> World:
    return world(tmp_path)


def opening_of(here: World, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> Reveal:
    envelope, _ = here.c0.reveal(turn, head, opened, committed)
    return open_record(Reveal, envelope, here.c0.key.public)


def test_the_same_open_gets_the_same_bytes_also_after_a_restart(here: World) -> None:
    open_ = here.sealed(here.open())
    first = here.c0.commit(open_, here.checkpoint)
    assert here.c0.commit(open_, here.checkpoint) == first
    again = Contributor(
        "c0", "op-c0", canonical_json(predicate(here.manifest)), Place(here.root / "c0", Path())
    )
    assert again.commit(open_, b"no checkpoint needed any more") == first
    assert again.enrol() == here.c0.enrol()


def test_what_it_says_passes_intake(here: World) -> None:
    record = here.open()
    state = apply(here.state, record)
    given = {e.slot: member for e, member in zip(record.roster, (here.c0, here.c1), strict=False)}
    commitments = {
        slot: member.commit(here.sealed(record), here.checkpoint) for slot, member in given.items()
    }
    for slot, envelope in commitments.items():
        state = apply(state, check_commitment(record, slot, envelope))
    state = apply(state, CommitClose(1, state.run, 1, 0, (0, 1), (2, 3), (5, 5)))
    head, tree = here.head(here.sealed(record), *commitments.values())
    proofs = [(index, tree.inclusion_proof(index)) for index in range(3)]
    for slot, member in given.items():
        envelope, payload = member.reveal(0, head, proofs[0], proofs[slot + 1])
        claim = check_reveal(state.open_turn, slot, envelope).opening
        assert blake3_digest(payload) == claim.payload
        assert len(payload) == member.job.codec.payload_bytes
        assert blake3_digest(member.serve_state(0)) == here.manifest.zero_state
        assert claim.tokens == record.entry(slot).steps * 2 * 16


def test_two_different_opens_of_a_turn_are_refused(here: World) -> None:
    here.c0.commit(here.sealed(here.open()), here.checkpoint)
    with pytest.raises(ProtocolError, match="two different opens of turn 0"):
        here.c0.commit(here.sealed(here.open(deadline_ms=1)), here.checkpoint)


def test_an_older_turn_is_refused(here: World) -> None:
    here.c0.commit(here.sealed(here.open(turn=3)), here.checkpoint)
    with pytest.raises(ProtocolError, match="older than a commitment"):
        here.c0.commit(here.sealed(here.open(turn=2)), here.checkpoint)


def test_an_open_by_another_key_or_of_another_run_is_refused(here: World) -> None:
    with pytest.raises(SignatureError):
        here.c0.commit(here.sealed(here.open(), OTHER), here.checkpoint)
    with pytest.raises(ProtocolError, match="another run"):
        here.c0.commit(here.sealed(here.open(run=sha256_digest(b"another"))), here.checkpoint)
    with pytest.raises(BarnraiseError):
        here.c0.commit(b"garbage", here.checkpoint)
    assert not list((here.root / "c0" / "turns").iterdir())


def test_an_open_without_it_is_refused(here: World) -> None:
    open_ = here.open()
    with pytest.raises(ProtocolError, match="not in the roster"):
        here.c0.commit(here.sealed(replace(open_, roster=open_.roster[1:])), here.checkpoint)


def test_another_checkpoint_than_the_opens_is_refused(here: World) -> None:
    wrong = Base("blake3:" + "0" * 64, here.open().base.outer)
    with pytest.raises(ProtocolError, match="base checkpoint"):
        here.c0.commit(here.sealed(here.open(base=wrong)), here.checkpoint)
    damaged = here.checkpoint[:-1] + bytes([here.checkpoint[-1] ^ 1])
    with pytest.raises(ProtocolError, match="base checkpoint"):
        here.c0.commit(here.sealed(here.open()), damaged)
    for garbage in (b"", here.checkpoint[:-4], b"\xff" * 64):
        with pytest.raises(BarnraiseError):
            here.c0.commit(here.sealed(here.open()), garbage)
    assert here.c0.vault.last_turn() == -1


def test_nothing_is_revealed_without_a_head_that_holds_the_open_and_the_commitment(here: World) -> None:
    open_ = here.sealed(here.open())
    mine = here.c0.commit(open_, here.checkpoint)
    right, tree = here.head(open_, mine, b"other")
    opened, committed = ((index, tree.inclusion_proof(index)) for index in (0, 1))
    foreign, _ = here.head(b"x", mine, b"other")
    forged, _ = here.head(open_, mine, b"other", key=OTHER)
    for head, first, second in (
        (foreign, opened, committed),
        (forged, opened, committed),
        ("no head", opened, committed),
        (right, committed, opened),
        (right, opened, opened),
        (right, committed, committed),
        (right, (2, opened[1]), committed),
        (right, opened, (2, committed[1])),
        (right, (0, []), committed),
        (right, opened, (1, [])),
        (right, opened, (1, [b"\0" * 32])),
    ):
        with pytest.raises(BarnraiseError):
            here.c0.reveal(0, head, first, second)
    assert opening_of(here, 0, right, opened, committed).opening.tokens == 3 * 2 * 16
    with pytest.raises(ProtocolError, match="committed to nothing in turn 1"):
        here.c0.reveal(1, right, opened, committed)
    with pytest.raises(ProtocolError, match="committed to nothing in turn 1"):
        here.c0.serve_state(1)


@pytest.mark.parametrize("sign", ["again", "by another"])
def test_a_head_that_proves_another_open_than_the_one_it_worked_for_gets_no_reveal(
    here: World, sign: str
) -> None:
    """What was computed for one open could only be found false by who looks at the one in the log."""
    mine = here.c0.commit(here.sealed(here.open()), here.checkpoint)
    logged = here.sealed(here.open(deadline_ms=1) if sign == "again" else here.open(), None)
    if sign == "by another":
        logged = here.sealed(here.open(), OTHER)
    head, tree = here.head(logged, mine)
    with pytest.raises(BarnraiseError, match=r"inclusion|proof"):
        here.c0.reveal(0, head, (0, tree.inclusion_proof(0)), (1, tree.inclusion_proof(1)))


def entry_from(open_: RoundOpen, state: str) -> tuple[RosterEntry, ...]:
    return tuple(replace(entry, start_state=state) for entry in open_.roster)


def commit_from(here: World, turn: int, start: str, round_: int = 1) -> str:
    """Commit in `turn` from a start state; the state after it."""
    open_ = here.open(turn=turn, round=round_)
    open_ = replace(open_, roster=entry_from(open_, start))
    envelope, _ = here.revealed(open_, here.c0.commit(here.sealed(open_), here.checkpoint))
    return open_record(Reveal, envelope, here.c0.key.public).opening.next_state


def files(here: World, kind: str) -> list[str]:
    return sorted(path.name for path in (here.root / "c0" / kind).iterdir())


def test_it_keeps_only_this_turns_answers_payload_and_states(here: World) -> None:
    zero = here.manifest.zero_state
    first = commit_from(here, 0, zero)
    assert files(here, "states") == [first.removeprefix("blake3:")]
    second = commit_from(here, 1, first)
    third = commit_from(here, 2, second)
    assert files(here, "states") == sorted(s.removeprefix("blake3:") for s in (second, third))
    assert files(here, "turns") == ["2.json"]
    assert len(files(here, "payloads")) == 1
    # Rejected in turn 2: the next turn starts from the same state again.
    commit_from(here, 3, second)
    with pytest.raises(StorageError, match="hidden state of this contributor is lost"):
        commit_from(here, 4, first)


def test_a_reset_round_that_was_rejected_leaves_the_state_before_it(tmp_path: Path) -> None:
    config = dict(world(tmp_path / "plain").manifest.config)
    here = world(tmp_path / "reset", config={**config, "state": {"policy": "reset", "every": 2}})
    zero = here.manifest.zero_state
    first = commit_from(here, 0, zero, round_=1)
    before = commit_from(here, 1, first, round_=2)
    commit_from(here, 2, zero, round_=3)
    commit_from(here, 3, zero, round_=3)
    after = commit_from(here, 4, before, round_=4)
    assert files(here, "states") == sorted(s.removeprefix("blake3:") for s in (before, after))


def test_a_lost_or_damaged_store_is_said_clearly(here: World) -> None:
    first = commit_from(here, 0, here.manifest.zero_state)
    path = here.root / "c0" / "states" / first.removeprefix("blake3:")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StorageError, match="was damaged"):
        commit_from(here, 1, first)
    path.unlink()
    with pytest.raises(StorageError, match="hidden state of this contributor is lost"):
        commit_from(here, 1, first)
    for payload in (here.root / "c0" / "payloads").iterdir():
        payload.unlink()
    stored = here.c0.vault.committed(0)
    assert stored
    with pytest.raises(StorageError, match="committed payload is gone"):
        here.revealed(here.c0.opened(stored.open), stored.commitment)


def test_other_source_than_the_manifests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="runs other source"):
        world(tmp_path, source=sha256_digest(b"other source"))


def test_data_files_are_taken_only_when_the_manifest_names_them(tmp_path: Path) -> None:
    here = world(tmp_path)
    data = canonical_json(predicate(here.manifest))
    fresh = Contributor("c0", "op-c0", data, Place(tmp_path / "v", tmp_path / "data"))
    names = fresh.missing_files()
    assert "tokenizer.json" in names
    run, _ = made()
    for name in names:
        with pytest.raises(ProtocolError, match="not the manifest's"):
            fresh.store_file(name, b"other")
        fresh.store_file(name, (run / "data" / name).read_bytes())
    assert fresh.missing_files() == []
    for name in ("../evil", "evil", ""):
        with pytest.raises(ProtocolError, match="not the manifest's"):
            fresh.store_file(name, b"x")
    assert fresh.data.train_windows > 0
