"""Ways to be drawn and not to be judged: none of them is free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.adversaries import ADVERSARIES, Adversary
from pipeline.auditing import Hearing
from pipeline.work import Work
from tests.pipeline.adversary_runs import tell
from tests.pipeline.segment_runs import LIAR, config
from verification import plans
from verification.encoding import blake3_digest
from verification.errors import ProtocolError
from verification.records import RosterEntry, RoundOpen

JUNK = b"no state at all"


class Stateless(Adversary):
    """Claims a next state in its first turn that is none, and serves just those bytes ever after."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        if open_.turn:
            entry = replace(entry, start_state=self.manifest.zero_state)
        honest = self.honest(open_, entry, checkpoint)
        claims = replace(honest.claims, next_state=blake3_digest(JUNK))
        return replace(honest, next_state=JUNK, claims=claims)


def test_a_start_state_that_is_no_state_was_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks in the first turn. After that no auditor could ever start from what it claimed."""
    monkeypatch.setitem(ADVERSARIES, "stateless", Stateless)
    seeds: list[str] = []
    real = plans.draw_audits

    def blind_at_first(seed: str, *rest: Any) -> Any:
        seeds.append(seed)
        return () if seed == seeds[0] else real(seed, *rest)

    monkeypatch.setattr(plans, "draw_audits", blind_at_first)
    story = tell(tmp_path, config(run={"rounds": 3}), {LIAR: "stateless"})
    assert LIAR in story.turns[0].accepted
    assert [turn.rejected for turn in story.turns[1:]] == [{LIAR: "unserved"}] * 2
    assert story.coordinator.state.standings[LIAR].quarantined, "two strikes"


class Shy(ADVERSARIES["lazy"]):  # type: ignore[misc]
    """A lazy one that serves what is asked of it once, and never again."""

    def serve_state(self, turn: int) -> bytes:
        if turn in self.__dict__.setdefault("served", set()):
            raise ProtocolError("not again")
        self.__dict__["served"].add(turn)
        return super().serve_state(turn)


def test_after_a_crash_a_second_look_needs_nothing_of_whom_the_first_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADVERSARIES, "shy", Shy)
    real = Hearing.second_looks

    def taken_up(self: Hearing) -> None:
        self._held.clear()  # all that a coordinator loses that is killed here
        real(self)

    monkeypatch.setattr(Hearing, "second_looks", taken_up)
    story = tell(tmp_path, config(run={"rounds": 1}, audit={"segments": 3}), {LIAR: "shy"})
    assert story.turns[0].rejected == {LIAR: "failed-audit"}
