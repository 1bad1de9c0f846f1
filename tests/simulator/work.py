"""The work of a simulated run: no training, but bytes that everyone who knows the assignment can compute.

Owns what an honest contribution is here (a function of base, start state, positions and steps, nothing
else), and a memory of what was computed, so that auditors and checks cost nothing. Does not own who lies.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from model.arrays import arrays_to_bytes
from model.hidden_state import state_specs
from pipeline.work import Job, Work
from verification.encoding import blake3_digest
from verification.judge import Recomputed
from verification.records import Base, Manifest, RosterEntry

# (base weights, start state, positions, steps)
Assignment = tuple[str, str, tuple[tuple[int, int], ...], int]


def digest_of(kind: str, *parts: object) -> str:
    """A digest made of text, of the kind that a record wants."""
    text = "/".join(str(part) for part in parts)
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


class Workshop:
    """Computes contributions and remembers them; `told` holds what false work claims, by payload and slot."""

    def __init__(self) -> None:
        self._done: dict[Assignment, Work] = {}
        self._jobs: dict[str, Job] = {}
        self.told: dict[tuple[int, int], Recomputed] = {}

    def job(self, run: str, manifest: Manifest) -> Job:
        """The job of a run, read once for all members."""
        if run not in self._jobs:
            self._jobs[run] = Job.of(manifest)
        return self._jobs[run]

    def honest(self, job: Job, base: Base, entry: RosterEntry) -> Work:
        """The one true contribution of an assignment."""
        key = (base.weights, entry.start_state, entry.positions, entry.steps)
        if key not in self._done:
            self._done[key] = _compute(job, key)
        return self._done[key]


def _compute(job: Job, key: Assignment) -> Work:
    steps = key[3]
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest(), "big")
    dice = np.random.Generator(np.random.PCG64(seed))
    length = job.codec.length
    payload = job.codec.encode(dice.standard_normal(length, np.float32))
    state = {}
    for name, (dtype, shape) in state_specs(job.specs, job.config.train.mode).items():
        value = dice.standard_normal(shape) if shape else np.array(steps)
        state[name] = np.asarray(value, dtype)
    leaves = -(-steps // job.config.train.trace_every)
    trace = tuple(digest_of("sha256", seed, "leaf", number) for number in range(leaves))
    following = arrays_to_bytes(state)
    claims = Recomputed(
        blake3_digest(payload), blake3_digest(following), trace, seed % 7_000_000, seed % 5_000_000
    )
    return Work(payload, following, claims)


def with_payload(work: Work, payload: bytes) -> Work:
    """The same claims around other payload bytes."""
    return replace(work, payload=payload, claims=replace(work.claims, payload=blake3_digest(payload)))


def other_payload(job: Job, label: str) -> bytes:
    """A well-formed payload that has nothing to do with any assignment."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest(), "big")
    dice = np.random.Generator(np.random.PCG64(seed))
    return job.codec.encode(dice.standard_normal(job.codec.length, np.float32))
