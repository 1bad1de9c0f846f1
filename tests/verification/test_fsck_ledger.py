"""What the checker carries from turn to turn, asked alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_state import State
from verification.fsck_ledger import Ledger, Outcome
from verification.fsck_shapes import Settings


def ledger(folder: Path, **over: Any) -> Ledger:
    """Of a run in which ann and bob, contributors, have enrolled."""
    manifest = State(folder / "run", script={}, silent={}, **over).manifest
    names = ("ann", "bob")
    enrolments = [
        {"member": name, "key": name, "operator": name, "class": "c1", "role": "contributor"}
        for name in names
    ]
    return Ledger(Settings.of(manifest), "zero", enrolments)


def accept(book: Ledger, turn: int, **states: str) -> None:
    """Close a turn in which these members' contributions, which end in these states, are accepted."""
    one = Outcome(0, "", "", None, False, 4, 0, (), 1, "")
    book.close(turn, [replace(one, member=name, next_state=state) for name, state in states.items()], [])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_where_the_policy_is_reset_everybody_starts_from_zero_every_so_often(
    tmp_path: Path, every: int
) -> None:
    book = ledger(tmp_path, state__policy="reset", state__every=every)
    accept(book, 0, ann="after ann")
    for round_number in range(1, 8):
        fresh = round_number in (1, 1 + every, 1 + 2 * every, 1 + 3 * every) or every == 1
        assert book.start_state(round_number, "ann") == ("zero" if fresh else "after ann")
        assert book.start_state(round_number, "bob") == "zero"


def test_where_it_is_snapshot_a_member_goes_on_from_where_it_was(tmp_path: Path) -> None:
    book = ledger(tmp_path, state__policy="snapshot", state__every=1)
    assert book.start_state(1, "ann") == "zero"
    accept(book, 0, ann="ann 0", bob="bob 0")
    accept(book, 1, ann="ann 1")
    assert (book.start_state(3, "ann"), book.start_state(3, "bob")) == ("ann 1", "bob 0")
    book.rotate("ann", "another key")
    assert (book.start_state(4, "ann"), book.start_state(4, "bob")) == ("zero", "bob 0")
