"""The kinds of contributors that cheat with their trace: false in one place of it, or opened otherwise.

Owns how each cheats, and what it admits of it to the checks: where an audit would come upon it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from model.arrays import arrays_from_bytes, arrays_to_bytes, weight_specs
from model.hidden_state import midway_specs
from pipeline.trace import OpenedLeaf, OpenedTrace
from pipeline.work import Job
from tests.simulator.people import Cheat
from tests.simulator.work import Falsehood, Traced, digest_of
from verification.errors import ProtocolError
from verification.judge import trace_leaf_hash
from verification.records import RosterEntry, RoundOpen

Change = Callable[[OpenedLeaf], OpenedLeaf]


class FalseTrace(Cheat):
    """One leaf of the trace is a digest of nothing."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        trace, last = list(work.claims.trace), len(work.points)
        at = self.dice("where", open_.turn).choice((last, self.dice(open_.turn).randrange(last)))
        trace[at] = digest_of("sha256", self.street.seed, self.name, open_.turn)
        false = Falsehood(boundary=True) if at == last else Falsehood(leaves=frozenset({at}))
        return replace(work, claims=replace(work.claims, trace=tuple(trace)), false=false)


class FalseLoss(Cheat):
    """The first loss, which only an audit of segment 0 looks at, or the last."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        claims = work.claims
        assert claims.loss_first is not None
        if self.dice("which", open_.turn).random() < 0.5:
            false = Falsehood(segments=frozenset({0}))
            return replace(work, claims=replace(claims, loss_first=claims.loss_first + 5), false=false)
        false = Falsehood(boundary=True)
        return replace(work, claims=replace(claims, loss_last=claims.loss_last + 5), false=false)


class FalseSegment(Cheat):
    """Does one segment otherwise, and goes on from it as if it were true."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        dice = self.dice(open_.turn)
        task = self.street.shop.task(self.job, open_.base, entry)
        at = dice.randrange(task.count)
        how = dice.choice(("weights", "state", "losses", "not finite"))
        found = task.whole({at}, lambda leaf: _falsified(self.job, leaf, how, dice))
        # From what is not finite nothing follows, so what is claimed to follow is false as well.
        further = how == "not finite"
        segments = frozenset({at, at + 1} if further and at + 1 < task.count else {at})
        return replace(found, false=Falsehood(segments, boundary=further and at + 1 == task.count))


class FalseStep(Cheat):
    """Does some steps otherwise, so that another numerics class is no excuse, and goes on from each."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        dice = self.dice(open_.turn)
        task = self.street.shop.task(self.job, open_.base, entry)
        at = frozenset(dice.sample(range(task.count), dice.randint(1, min(2, task.count))))
        how = dice.choice(("weights", "state", "state", "losses"))
        found = task.whole(at, lambda leaf: _falsified(self.job, leaf, how, dice))
        return replace(found, false=Falsehood(segments=at))


class PlantedState(Cheat):
    """One leaf has another `error_feedback` or `step` than the start state: who opens it must see it."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        dice = self.dice(open_.turn)
        task = self.street.shop.task(self.job, open_.base, entry)
        at = dice.randrange(task.count)
        how = dice.choice(("error_feedback", "step"))
        found = task.whole({at}, lambda leaf: _falsified(self.job, leaf, how, dice))
        return replace(found, false=Falsehood(leaves=frozenset({at})))


class FalseBoundary(Cheat):
    """Honest steps, and another update than they give: payload, next state and last leaf fit one another."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        task = self.street.shop.task(self.job, open_.base, entry)
        return replace(task.whole(twist=self.name), false=Falsehood(boundary=True))


def _falsified(job: Job, leaf: OpenedLeaf, how: str, dice: random.Random) -> OpenedLeaf:
    """The same leaf, false in one thing."""
    weights = arrays_from_bytes(leaf.weights, weight_specs(job.specs))
    state = arrays_from_bytes(leaf.state, midway_specs(job.specs, job.config.train.mode))
    if how == "losses":
        losses = list(leaf.losses)
        losses[dice.randrange(len(losses))] += 3
        return replace(leaf, losses=tuple(losses))
    if how in ("weights", "not finite"):
        name = dice.choice(sorted(weights))
        changed = np.array(weights[name])
        changed.flat[dice.randrange(changed.size)] += np.float32(np.nan if how == "not finite" else 1.0)
        return replace(leaf, weights=arrays_to_bytes({**weights, name: changed}))
    if how == "state":
        how = dice.choice(sorted(state.keys() - {"step", "error_feedback"}))
    return replace(leaf, state=arrays_to_bytes({**state, how: np.asarray(state[how] + 1, state[how].dtype)}))


class OtherLeaves(Cheat):
    """Honest work, and a trace that is opened otherwise than it was committed to."""

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        true = super().serve_trace(turn, draw_envelope, checkpoint)
        if not self.cheats(turn):
            return true
        self.street.shop.shut.add((turn, self.name))
        return self.opened_otherwise(turn, draw_envelope, self.dice("opens", turn))

    def opened_otherwise(self, turn: int, draw_envelope: bytes, dice: random.Random) -> bytes:
        """Never what the trace's root or the draw asks for."""
        stored = self._stored(turn)
        open_, entry = self.opened(stored.open), self._entry_of(stored)
        due = self._due_leaves(open_, entry, draw_envelope)
        hashes = [trace_leaf_hash(leaf).hex() for leaf in self._trace[1]]
        leaves = {index: self._points[index] for index in due}
        at = dice.choice(due)
        way = dice.choice(("weights", "state", "losses", "hash", "hashes", "moved", "fewer", "more"))
        if way in ("weights", "state", "losses"):
            leaves[at] = _falsified(self.job, leaves[at], way, dice)
        elif way == "hash":
            hashes[dice.randrange(len(hashes))] = dice.randbytes(32).hex()
        elif way == "hashes":  # a whole other trace, which its own leaves fit
            leaves[at] = _falsified(self.job, leaves[at], "weights", dice)
            step = min((at + 1) * self.job.config.train.trace_every, entry.steps)
            hashes[at] = trace_leaf_hash(leaves[at].digest(step)).hex()
        elif way == "moved":
            leaves = {(index + 1) % len(hashes): leaf for index, leaf in leaves.items()}
        elif way == "fewer":
            del leaves[at]
        else:
            leaves[len(hashes) - 1] = leaves[at]
        return OpenedTrace(tuple(hashes), leaves).to_bytes()


class NoTrace(Cheat):
    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        true = super().serve_trace(turn, draw_envelope, checkpoint)
        if not self.cheats(turn):
            return true
        self.street.shop.shut.add((turn, self.name))
        dice = self.dice("no", turn)
        if dice.random() < 0.3:
            raise ProtocolError("no")
        at = dice.randrange(len(true))
        flipped = true[:at] + bytes([true[at] ^ 1]) + true[at + 1 :]
        return dice.choice((b"", true[:at], true + b"\0", true * 2, dice.randbytes(len(true)), flipped))


class FickleTrace(OtherLeaves):
    """Opens another trace each time it is asked, and now and then the true one."""

    asked = 0

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> bytes:
        true = Cheat.serve_trace(self, turn, draw_envelope, checkpoint)
        self.asked += 1
        dice = self.dice("fickle", turn, self.asked)
        return true if dice.random() < 0.4 else self.opened_otherwise(turn, draw_envelope, dice)


TRACE_CHEATS: dict[str, type[Cheat]] = {
    "false-trace": FalseTrace, "false-loss": FalseLoss, "false-segment": FalseSegment,
    "false-boundary": FalseBoundary, "planted-state": PlantedState, "other-leaves": OtherLeaves,
    "no-trace": NoTrace, "fickle-trace": FickleTrace, "false-step": FalseStep,
}  # fmt: skip
