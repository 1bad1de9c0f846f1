"""A witness that is shown two histories: what it keeps as evidence, of what, and how much."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.verification.log_model import failing, full_disk
from tests.verification.witness_world import (
    FORK,
    ORIGIN,
    TEN,
    VKEY,
    WITNESS_VKEY,
    add,
    add_body,
    grown,
    head,
    make,
    note,
    status,
)
from verification.notes import open_note
from verification.witness_store import MAX_FORKS, WitnessStore


def test_two_roots_for_one_size_are_kept_as_proof(tmp_path: Path) -> None:
    told: list[tuple[Path, str]] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append((path, text)))
    assert status(add(witness, TEN, 0)) == 200
    assert add(witness, FORK, 0) == (409, "text/x.tlog.size", b"10\n")
    assert len(told) == 1
    assert status(witness.handle("POST", "/add-checkpoint", add_body(10, (), note(FORK)))) == 422
    assert len(told) == 1
    path, text = told[0]
    assert path.read_text() == text
    assert path.parent == tmp_path / "forks"
    for part in (note(TEN), note(FORK), VKEY, WITNESS_VKEY, "proof of misbehaviour by itself"):
        assert part in text
    assert "Not shown" not in text
    open_note(text.partition("refused:\n\n")[2].partition("\n---")[0], (VKEY,))
    assert witness.newest(ORIGIN).checkpoint == head(TEN)  # type: ignore[union-attr]


def test_a_proof_that_fails_is_kept_for_what_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(text))
    add(witness, TEN, 0, 6)
    proof = FORK.consistency_proof(6)
    witness.handle("POST", "/add-checkpoint", add_body(6, proof, note(FORK)))
    assert len(told) == 1
    assert "Not shown is that the log itself is forked" in told[0]
    assert "by itself, for anybody" not in told[0]
    for part in (note(TEN, 6), note(FORK), *(base64.b64encode(hashed).decode() for hashed in proof)):
        assert part in told[0]
    witness.handle("POST", "/add-checkpoint", add_body(6, [], note(FORK)))
    assert len(told) == 1


def test_evidence_is_bounded_for_each_log_and_kind(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path)

    def put(origin: str, name: str, *, proven: bool) -> bool:
        return store.put_fork(store.fork_file(origin, name, proven=proven), "text")

    for number in range(MAX_FORKS):
        assert put(ORIGIN, f"{number}", proven=False)
    assert not put(ORIGIN, "more", proven=False)
    for number in range(MAX_FORKS):
        assert put("example.org/shed", f"{number}", proven=True)
        assert put(ORIGIN, f"{number}", proven=True)
    assert not put(ORIGIN, "more", proven=True)
    assert put("example.org/shed", "0", proven=False)
    assert len(store.forks()) == 3 * MAX_FORKS + 1


def test_proof_is_never_crowded_out(tmp_path: Path) -> None:
    """What strangers send in the name of an honest log, and all other logs, take no place of a proof."""
    told: list[tuple[Path | None, str]] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append((path, text)))
    add(witness, TEN, 0, 4)
    for size in range(5, 5 + MAX_FORKS + 3):
        body = add_body(4, [bytes(32)], note(grown(size)))
        assert status(witness.handle("POST", "/add-checkpoint", body)) == 422
    assert len(told) == len(WitnessStore(tmp_path).forks()) == MAX_FORKS
    told.clear()
    for branch in range(1, MAX_FORKS + 3):
        add(witness, grown(4, branch=branch), 0)
    assert len(told) == MAX_FORKS + 2
    assert [path is None for path, _ in told] == [False] * MAX_FORKS + [True] * 2
    assert all("proof of misbehaviour by itself" in text for _, text in told)
    assert len(WitnessStore(tmp_path).forks()) == 2 * MAX_FORKS


def test_proof_is_told_when_the_disk_is_full(tmp_path: Path) -> None:
    told: list[Path | None] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(path))
    add(witness, TEN, 0)
    with failing("write", 1, full_disk()):
        assert status(add(witness, FORK, 0)) == 503
    assert told == [None]
    add(witness, FORK, 0)
    assert told[1:] == list(WitnessStore(tmp_path).forks())
