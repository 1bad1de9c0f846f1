"""Who lies in bench.whole_runs: contributors that leave steps out, an accuser, a stamp and its friends.

Owns the lies. Each keeps its trace consistent and signs like everybody else; nobody but its own class knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.adversaries import ADVERSARIES, Adversary, Lazy, StateSmuggler
from pipeline.auditor import Auditor
from pipeline.segment_audit import Case
from pipeline.work import Work
from verification.judge import Audit, Recomputed
from verification.records import RosterEntry, RoundOpen

LIAR = "a00"
FRIEND = "friend"


def skipping(left_out: int) -> type[Adversary]:
    """A contributor that leaves out the last `left_out` of its local steps and claims them all.

    One that leaves out all of them hands in noise: the same empty update again and again would be refused
    as a duplicate before anybody looks.
    """

    class Skipping(Lazy):
        def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
            work = self.skipping(open_, entry, checkpoint, entry.steps - left_out)
            if left_out < entry.steps:
                return work
            codec = self.job.codec
            noise_P = np.random.default_rng(open_.turn).standard_normal(codec.length).astype(np.float32)
            return self.with_payload(work, codec.encode(noise_P * np.float32(1e-3)))

    return Skipping


@contextmanager
def known(kinds: dict[str, type[Adversary]]) -> Iterator[None]:
    """While it lasts, a drill may be of these kinds too."""
    with patch.dict(ADVERSARIES, kinds):
        yield


class Accuser(Auditor):
    """Fails whatever it is asked to look at, always by the same false payload."""

    def compute(self, case: Case, audit: Audit, opened: Any) -> Recomputed:
        return replace(super().compute(case, audit, opened), payload="blake3:" + "ab" * 32)


def stamp_and_friend() -> tuple[type[Auditor], type[Adversary]]:
    """A rubber stamp, and the smuggler it is a friend of; the friend tells it what to state.

    It stamps first looks alone. A later one is asked for after another's verdict, which it would only
    contradict: there it says the truth.
    """
    told: dict[tuple[int, int], Recomputed] = {}

    class Friend(StateSmuggler):
        def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
            work = super().work(open_, entry, checkpoint)
            told[open_.turn, entry.slot] = work.claims
            return work

    class Stamp(Auditor):
        look = 0

        def audit(self, open_envelope: bytes, slot: int, look: int, *rest: Any) -> bytes:
            self.look = look
            return super().audit(open_envelope, slot, look, *rest)

        def compute(self, case: Case, audit: Audit, opened: Any) -> Recomputed:
            claimed = told.get((case.open.turn, case.entry.slot))
            return claimed if claimed and self.look == 1 else super().compute(case, audit, opened)

    return Stamp, Friend


@contextmanager
def lying(liar: type[Auditor]) -> Iterator[None]:
    """While it lasts, the auditor LIAR is made as one of this kind."""

    def made(name: str, *others: Any) -> Auditor:
        make: Callable[..., Auditor] = liar if name == LIAR else Auditor
        return make(name, *others)

    with patch("pipeline.roster.Auditor", made):
        yield
