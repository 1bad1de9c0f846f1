"""The work of a simulated run: no training, but bytes that everyone who knows the assignment can compute.

Owns what an honest contribution is here, segment by segment (a function of base, start state, positions and
steps, nothing else), what an honest audit of some segments finds, and a memory of what was computed. Only the
boundary is the shipped code, error feedback and codec. Does not own who lies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from model.arrays import Arrays, arrays_digest, arrays_from_bytes, arrays_to_bytes, weight_specs
from model.hidden_state import midway_specs, state_specs
from pipeline.trace import OpenedLeaf, OpenedTrace
from pipeline.work import Job, Work, finish_work, positions_of
from verification.encoding import blake3_digest, hash_object
from verification.judge import Recomputed
from verification.records import Base, Manifest, RosterEntry

NO_DIGEST = "blake3:" + "0" * 64
NO_LEAF = hash_object("barnraise/trace-not-finite/v1", {})


def digest_of(kind: str, *parts: object) -> str:
    """A digest made of text, of the kind that a record wants."""
    text = "/".join(str(part) for part in parts)
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


def looked_into(segments: Sequence[int], count: int) -> set[int]:
    """The leaves that an audit of these of `count` segments states (section 7)."""
    starts = {segment - 1 for segment in segments if segment > 0}
    return {*starts, *segments, count - 1, count}


@dataclass(frozen=True)
class Falsehood:
    """Where a contribution is false: in what leads to a leaf, in a leaf as such, in what follows the last."""

    segments: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    boundary: bool = False

    def __bool__(self) -> bool:
        return bool(self.segments or self.leaves or self.boundary)

    def shows(self, segments: Sequence[int], count: int) -> bool:
        """Whether an audit of these of `count` segments comes upon it."""
        looked = looked_into(segments, count)
        return self.boundary or bool(self.segments & set(segments)) or bool(self.leaves & looked)


@dataclass(frozen=True)
class Traced(Work):
    """A contribution with the points that its trace's leaves are taken of, and where it is false."""

    points: tuple[OpenedLeaf, ...]
    false: Falsehood = Falsehood()


@dataclass(frozen=True)
class Point:
    """Where the work stands: weights by digest, as the stub reads nothing else of them, and the state."""

    weights: str
    state: Arrays
    finite: bool = True


@dataclass(frozen=True)
class Task:
    """One assignment, cut into segments."""

    job: Job
    base: str
    start: Arrays
    positions: tuple[tuple[int, int], ...]
    steps: int
    numerics: str  # whose bits come of it

    @property
    def every(self) -> int:
        return self.job.config.train.trace_every

    @property
    def count(self) -> int:
        """How many segments it has."""
        return -(-self.steps // self.every)

    def steps_at(self, leaf: int) -> int:
        """Local steps of the round up to a leaf."""
        return min((leaf + 1) * self.every, self.steps)

    @cached_property
    def first(self) -> Point:
        """Where segment 0 starts."""
        state = dict(self.start)
        for name, (dtype, shape) in self._forms.items():
            state.setdefault(name, np.zeros(shape, dtype))
        return Point(self.base, state)

    @property
    def _forms(self) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
        return midway_specs(self.job.specs, self.job.config.train.mode)

    def believed(self, index: int, leaf: OpenedLeaf) -> Point:
        """An opened leaf as a start: of its state, `step` and `error_feedback` are the log's."""
        weights = arrays_from_bytes(leaf.weights, weight_specs(self.job.specs))
        state = arrays_from_bytes(leaf.state, self._forms)
        state["step"] = np.array(int(self.start["step"]) + self.steps_at(index), np.int64)
        state["error_feedback"] = self.start["error_feedback"]
        finite = all(bool(np.isfinite(array).all()) for array in weights.values())
        return Point(blake3_digest(leaf.weights), state, finite)

    def leaf(self, index: int, point: Point, losses: tuple[int, ...]) -> str:
        """The leaf of the trace (section 7)."""
        told = {
            "losses": list(losses),
            "state": arrays_digest(point.state),
            "step": self.steps_at(index),
            "weights": point.weights,
        }
        return hash_object("barnraise/trace-leaf/v1", told)

    def advance(self, point: Point, segment: int, numerics: str = "") -> OpenedLeaf | None:
        """The point at the end of a segment that starts at `point`; None where nothing finite comes of it.

        In another numerics class than the contributor's, where `numerics` names one, it has other bits, and
        nearly the same numbers.
        """
        if not point.finite:
            return None
        begin, stop = segment * self.every, self.steps_at(segment)
        batch = self.job.config.train.batch
        windows = positions_of(self.positions)[begin * batch : stop * batch]
        told = (point.weights, arrays_digest(point.state), windows, stop - begin)
        dice, shade = _dice(*told), _shade(numerics or self.numerics)
        state = {
            name: np.asarray(dice.standard_normal(shape), np.float32) * shade
            for name, (_, shape) in self._forms.items()
            if shape
        }
        state["error_feedback"] = self.start["error_feedback"]
        state["step"] = np.array(int(self.start["step"]) + stop, np.int64)
        weights: Arrays = {
            spec.name: dice.standard_normal(spec.shape, np.float32) * shade for spec in self.job.specs
        }
        losses = tuple(int(loss) for loss in dice.integers(7_000_000, size=stop - begin))
        return OpenedLeaf(losses, arrays_to_bytes(weights), arrays_to_bytes(state))

    def boundary(self, end: Point, leaves: tuple[str, ...], losses: tuple[int, ...], twist: str = "") -> Work:
        """From where the local steps ended to payload and next state; `twist` makes it a false one."""
        dice = _dice(self.base, end.weights, arrays_digest(end.state), twist)
        update = dice.standard_normal(self.job.codec.length, np.float32)
        return finish_work(self.job, update, end.state, leaves, losses)

    def whole(
        self,
        at: Collection[int] = (),
        change: Callable[[OpenedLeaf], OpenedLeaf] | None = None,
        twist: str = "",
    ) -> Traced:
        """All of it. What `change` makes of a leaf in `at` is gone on from as if true, where it can be."""
        point, leaves, points = self.first, [], []
        losses: tuple[int, ...] = ()
        for segment in range(self.count):
            leaf = self.advance(point, segment)
            assert leaf is not None
            point = self.believed(segment, leaf)
            told = leaf
            if segment in at and change:
                told = change(leaf)
                believed = self.believed(segment, told)
                point = believed if believed.finite else point
            leaves.append(told.digest(self.steps_at(segment)))
            points.append(told)
            losses += told.losses
        done = self.boundary(point, tuple(leaves), losses, twist)
        return Traced(done.payload, done.next_state, done.claims, tuple(points))

    def audited(self, segments: Sequence[int], opened: OpenedTrace | None, numerics: str) -> Recomputed:
        """What an audit of these segments finds; `opened` is the trace as it was served, None for all.

        By digest, in the bits of the auditor's class, which is to be the contributor's.
        """
        trace = list(opened.hashes) if opened else [NO_LEAF] * (self.count + 1)
        losses: dict[int, int] = {}  # the first and last of a segment's, by leaf
        first = 0 if 0 in segments else None
        points: dict[int, Point] = {-1: self.first}
        for index, leaf in (opened.leaves if opened else {}).items():
            points[index] = self.believed(index, leaf)
            trace[index] = self.leaf(index, points[index], leaf.losses)
            losses[index] = leaf.losses[-1]
        for segment in segments:
            before = points.get(segment - 1)
            found = self.advance(before, segment, numerics) if before else None
            trace[segment] = found.digest(self.steps_at(segment)) if found else NO_LEAF
            if found:
                points[segment], losses[segment] = self.believed(segment, found), found.losses[-1]
                first = found.losses[0] if segment == 0 else first
            else:
                points.pop(segment, None)
        return self.ended(points.get(self.count - 1), trace, first, losses.get(self.count - 1, 0))

    def ended(self, end: Point | None, trace: list[str], first: int | None, last: int) -> Recomputed:
        """What an audit finds, from where the local steps ended: every machine's boundary is the same."""
        payload, next_state, trace[-1] = NO_DIGEST, NO_DIGEST, NO_LEAF
        if end and end.finite:
            claims = self.boundary(end, (), (0,)).claims
            payload, next_state, trace[-1] = claims.payload, claims.next_state, claims.trace[-1]
        return Recomputed(payload, next_state, tuple(trace), first, last)


class Workshop:
    """Computes contributions and remembers them.

    By turn and slot, `made` holds what cheats made, `told` what it claims, `false` where it is false; `shut`
    who in which turn opens no trace as it committed to it;
    `asked` how often a fickle auditor was for a verdict.
    """

    def __init__(self) -> None:
        self._done: dict[object, Traced] = {}
        self._jobs: dict[str, Job] = {}
        self._states: dict[str, bytes] = {}
        self.made: dict[tuple[int, int], Traced] = {}
        self.told: dict[tuple[int, int], Recomputed] = {}
        self.false: dict[tuple[int, int], Falsehood] = {}
        self.shut: set[tuple[int, str]] = set()
        self.asked: Counter[object] = Counter()

    def job(self, run: str, manifest: Manifest) -> Job:
        """The job of a run, read once for all members."""
        if run not in self._jobs:
            self._jobs[run] = Job.of(manifest)
            self.learn(self._jobs[run].zero_state)
        return self._jobs[run]

    def learn(self, state: bytes) -> None:
        """A hidden state that somebody may start from."""
        self._states[blake3_digest(state)] = state

    def task(self, job: Job, base: Base, entry: RosterEntry) -> Task:
        """What an entry is to do."""
        forms = state_specs(job.specs, job.config.train.mode)
        start = arrays_from_bytes(self._states[entry.start_state], forms)
        return Task(job, base.weights, start, entry.positions, entry.steps, entry.numerics_class)

    def honest(self, job: Job, base: Base, entry: RosterEntry) -> Traced:
        """The one true contribution of an assignment."""
        key = (base.weights, entry.start_state, entry.positions, entry.steps, entry.numerics_class)
        if key not in self._done:
            self._done[key] = self.task(job, base, entry).whole()
            self.learn(self._done[key].next_state)
        return self._done[key]


def _shade(numerics: str) -> np.float32:
    """By how much a class's numbers are off: by a millionth or two."""
    return np.float32(1 + sum(numerics.encode()) % 7 * 2.0**-22)


def _dice(*parts: object) -> np.random.Generator:
    seed = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest(), "big")
    return np.random.Generator(np.random.PCG64(seed))


def with_payload(work: Traced, payload: bytes) -> Traced:
    """The same claims around other payload bytes."""
    claims = replace(work.claims, payload=blake3_digest(payload))
    return replace(work, payload=payload, claims=claims, false=Falsehood(boundary=True))


def other_payload(job: Job, label: str) -> bytes:
    """A well-formed payload that has nothing to do with any assignment."""
    return job.codec.encode(_dice(label).standard_normal(job.codec.length, np.float32))
