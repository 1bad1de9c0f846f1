"""Checkpoints of a run whose audits lag: the settled one, and those of the turns that still wait.

Owns section 9 of docs/protocol.md, "Excision": what the weights become when contributions are taken out of
turns that are closed. Does not own which ones (verification/settling.py), nor where files lie. Writer and
level 2 use it alike; memory is one checkpoint for every turn that waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.aggregation import Contribution
from pipeline.checkpoint import Aggregator, Checkpoint
from pipeline.folder import RunFolder
from verification.errors import ProtocolError
from verification.records import Accepted, Manifest, Record, Removed, RoundClose, Settlement
from verification.rounds import apply, begin
from verification.settling import still_accepted
from verification.state import RunState

TurnWork = tuple[Sequence[Contribution], str]  # what a turn aggregates, in slot order, and its outer rate


def turn_work(folder: RunFolder, accepted: Sequence[Accepted], outer_lr: str) -> TurnWork:
    """What a turn aggregates, its payloads read from the run folder. Raises StorageError for other bytes."""
    return [Contribution(a.slot, a.weight, folder.payload(a.payload)) for a in accepted], outer_lr


def replayed(folder: RunFolder, records: Iterable[Record], start: Lineage, first: int = 0) -> Lineage:
    """The lineage after a whole log, from the payloads in the folder of rounds above `first`.

    `start` is settled at the checkpoint of that round, which is firm (docs/protocol.md, section 11) or 0: so
    settlements of turns up to it change nothing of what comes after it.
    """
    state: RunState | None = None
    lineage = start
    for record in records:
        if isinstance(record, Manifest):
            state = begin(record)
            continue
        if state is None:
            raise ProtocolError("a log does not begin with a manifest", got=record.kind)
        if isinstance(record, RoundClose | Settlement) and record.round <= first:
            pass
        elif isinstance(record, RoundClose):
            turn = state.open_turn
            work = turn_work(folder, record.accepted, turn.open.outer_lr)
            lineage = lineage.closed(work, lags=bool(turn.lag))
        elif isinstance(record, Settlement):
            lineage = lineage.settled_after(folder, state, record.removed)
        state = apply(state, record)
    return lineage


@dataclass(frozen=True)
class Lineage:
    """`settled` is the checkpoint before the turns that wait, `waiting` those after each of them."""

    aggregator: Aggregator
    settled: Checkpoint
    waiting: tuple[Checkpoint, ...] = ()

    @property
    def current(self) -> Checkpoint:
        """The checkpoint after the last closed turn."""
        return self.waiting[-1] if self.waiting else self.settled

    def closed(self, work: TurnWork, *, lags: bool) -> Lineage:
        """After a turn's close; where its audits do not lag, it is settled at once."""
        after = self.aggregator.step(self.current, *work)
        return replace(self, waiting=(*self.waiting, after)) if lags else replace(self, settled=after)

    def settled_after(self, folder: RunFolder, state: RunState, removed: Sequence[Removed]) -> Lineage:
        """After a settlement that takes `removed` out; `state` is that before it."""
        if not removed:
            return self.as_settled()
        left = still_accepted(state, removed)
        return self.excised([turn_work(folder, w.accepted, w.turn.open.outer_lr) for w in left])

    def as_settled(self) -> Lineage:
        """After a settlement that took nothing out."""
        return replace(self, settled=self.waiting[0], waiting=self.waiting[1:])

    def excised(self, left: Sequence[TurnWork]) -> Lineage:
        """After one that did: `left` is what is left of each turn that waited, the settled one first."""
        found, at = [], self.settled
        for work in left:
            at = self.aggregator.step(at, *work)
            found.append(at)
        return replace(self, settled=found[0], waiting=tuple(found[1:]))
