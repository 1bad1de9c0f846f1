"""Scripted cheats for fire drills: contributors that lie in one way each.

Owns how each kind cheats. Nobody but the process of the adversary itself knows of it. Every kind commits,
reveals and signs as an honest contributor does, with what it would have others believe. Asked again after a
crash, it tells the same lie.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.arrays import Arrays, arrays_digest, arrays_from_bytes, arrays_to_bytes
from model.hidden_state import state_specs
from pipeline.contributor import Contributor
from pipeline.member import Place
from pipeline.trace import OpenedLeaf
from pipeline.work import Work, do_work, finish_work, positions_of
from verification.durable import write_atomic
from verification.encoding import blake3_digest, digest_hex, parse_hex_float
from verification.errors import ProtocolError, UsageError
from verification.merkle import Inclusion
from verification.records import RosterEntry, RoundOpen
from verification.segments import segment_count, segment_steps

if TYPE_CHECKING:
    from model.local_steps import Midpoint


class Adversary(Contributor):
    """A contributor that lies. `public` is the run folder, which anyone may read."""

    def __init__(self, name: str, operator: str, manifest: bytes, place: Place, public: Path) -> None:
        super().__init__(name, operator, manifest, place)
        self.public = public

    def honest(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        """What an honest contributor would hand in."""
        return super().work(open_, entry, checkpoint)

    def loaded(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> tuple[Arrays, Arrays]:
        """(base weights, start state)."""
        weights = self.job.weights(checkpoint, open_.base.weights)
        return weights, self.job.state(self._state_bytes(entry.start_state), entry.start_state)

    def with_payload(self, work: Work, payload: bytes) -> Work:
        """The same claims around other payload bytes."""
        return replace(work, payload=payload, claims=replace(work.claims, payload=blake3_digest(payload)))


class Lazy(Adversary):
    """Does half of its local steps and claims all of them; of a single step it hands in an empty update.

    Its trace holds together: a step that it left out has changed nothing, says it, but the count of steps.
    """

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        return self.skipping(open_, entry, checkpoint, entry.steps // 2 if entry.steps > 1 else 0)

    def skipping(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes, done: int) -> Work:
        """The first `done` local steps, and a trace and an update that claim all of them."""
        # Members choose their profile before torch is imported, so nothing that makes one may import it.
        from model.local_steps import Midpoint, local_steps, trace_leaf, update_of  # noqa: PLC0415

        weights, start = self.loaded(open_, entry, checkpoint)
        job, every = self.job, self.job.config.train.trace_every
        positions = positions_of(entry.positions)[: max(1, done) * job.config.train.batch]
        batches = self.data.batches(job.config.run.seed, positions, job.config.train.batch)
        rates = [parse_hex_float(text) for text in open_.inner_lr[: max(1, done)]]
        base, micro = Midpoint(weights, start), entry.micro_batch
        worked = local_steps(job.model, job.spec, base, batches, rates, micro_batch=micro, keep=self._at)
        end = worked.end if done else Midpoint(weights, self._unmoved(worked.end, start))
        losses = (*worked.losses, *worked.losses[-1:] * entry.steps)
        trace = list(worked.leaves)
        for index in range(done // every, segment_count(entry.steps, every)):
            begin, stop = segment_steps(index, entry.steps, every)
            step = np.array(int(start["step"]) + stop, np.int64)
            point = Midpoint(end.weights, {**end.state, "step": step})
            trace[index:] = [trace_leaf(point, stop, losses[begin:stop])]
            self._keep(index, OpenedLeaf.of(point, losses[begin:stop]))
        update = update_of(job.spec, job.specs, weights, end, max(1, done))
        return finish_work(job, update, point.state, tuple(trace), losses[: entry.steps])

    def _at(self, point: Midpoint, losses: tuple[int, ...]) -> None:
        self._keep(len(self._points), OpenedLeaf.of(point, losses))

    @staticmethod
    def _unmoved(end: Midpoint, start: Arrays) -> Arrays:
        return {name: start.get(name, np.zeros_like(array)) for name, array in end.state.items()}


class Random(Adversary):
    """Hands in noise of exactly the norm that an honest update has."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        codec = self.job.codec
        noise_P = codec.decode(honest.payload).dense(codec.length)
        dice = np.random.default_rng(open_.turn)
        for first in range(0, codec.length, codec.chunk):
            # Within a chunk, so that each keeps its scale and the codec drops nothing.
            dice.shuffle(noise_P[first : first + codec.chunk])
        return self.with_payload(honest, codec.encode(noise_P))


class Copycat(Adversary):
    """Signs as its own a payload of another contributor from the run folder; honest while none lies there."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        mine = {digest_hex(d) for d in self.handed_in()}
        folder = self.public / "payloads"
        others = sorted(p for p in folder.glob("*") if p.name not in mine) if folder.is_dir() else []
        self.remember(honest.claims.payload)
        return self.with_payload(honest, others[-1].read_bytes()) if others else honest

    def handed_in(self) -> list[str]:
        """Digests of its own earlier payloads."""
        path = self.vault.folder / "mine"
        return path.read_text().split() if path.exists() else []

    def remember(self, digest: str) -> None:
        """Note a payload of its own."""
        write_atomic(self.vault.folder / "mine", " ".join([*self.handed_in(), digest]).encode(), mode=0o600)


class Stale(Adversary):
    """Hands in the payload of its own first turn again, turn after turn."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        path = self.vault.folder / "old"
        if path.exists():
            return self.with_payload(honest, path.read_bytes())
        write_atomic(path, honest.payload, mode=0o600)
        return honest


class WrongData(Adversary):
    """Trains on the same few windows of its own choice, turn after turn, instead of the assigned ones."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        weights, start = self.loaded(open_, entry, checkpoint)
        wanted = len(positions_of(entry.positions))
        # From the end, each slot its own: another's windows would soon give another's payload.
        first = max(0, self.data.train_windows - (entry.slot + 1) * wanted)
        if positions_of(entry.positions) == [*range(first, first + wanted)]:
            first += wanted
        favourite = replace(entry, positions=((first, first + wanted),))
        return do_work(self.job, self.data, open_, favourite, weights, start, self._keep)


class Scaled(Adversary):
    """The true direction, some fifty times as long, to drown the others."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        codec = self.job.codec
        true = codec.decode(honest.payload).dense(codec.length)
        return self.with_payload(honest, codec.encode(true * np.float32(50)))


class Nan(Adversary):
    """Hands in the bytes of floating-point NaNs where the payload should be."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        count = -(-len(honest.payload) // 4)
        nans = np.full(count, np.nan, dtype=np.float32).tobytes()[: len(honest.payload)]
        return self.with_payload(honest, nans)


class StateSmuggler(Adversary):
    """Honest steps and an honest payload, but a poisoned error feedback that would come out next round."""

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:  # noqa: D102
        honest = self.honest(open_, entry, checkpoint)
        forms = state_specs(self.job.specs, self.job.spec.mode)
        state = arrays_from_bytes(honest.next_state, forms)
        poisoned = {**state, "error_feedback": state["error_feedback"] + np.float32(0.01)}
        claims = replace(honest.claims, next_state=arrays_digest(poisoned))
        return replace(honest, next_state=arrays_to_bytes(poisoned), claims=claims)


class Silent(Adversary):
    """Commits and never reveals."""

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:  # noqa: D102
        del head, opened, committed
        raise ProtocolError(f"{self.name} does not reveal turn {turn}")


class Dodger(Random):
    """Hands in noise, and serves no start state when asked, so that nobody can recompute it."""

    def serve_state(self, turn: int) -> bytes:  # noqa: D102
        raise ProtocolError(f"{self.name} does not serve its state of turn {turn}")


ADVERSARIES: dict[str, type[Adversary]] = {
    "copycat": Copycat,
    "dodger": Dodger,
    "lazy": Lazy,
    "nan": Nan,
    "random": Random,
    "scaled": Scaled,
    "silent": Silent,
    "stale": Stale,
    "state-smuggler": StateSmuggler,
    "wrong-data": WrongData,
}


def adversary(kind: str) -> type[Adversary]:
    """The class of a kind. Raises UsageError for an unknown one."""
    if kind not in ADVERSARIES:
        raise UsageError(f"no adversary is called {kind!r}", expected=", ".join(sorted(ADVERSARIES)))
    return ADVERSARIES[kind]
