"""One contribution, computed: local steps, error feedback, payload, digests.

Owns the only path from an assignment to a payload, whole or segment by segment. Contributor, auditor and the
level 3 replay all call it; there is no second implementation to drift away. Does not own keys, files or
messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from data_prep.dataset import Windows
from model.arrays import (
    Arrays,
    ArraySpec,
    arrays_digest,
    arrays_from_bytes,
    arrays_from_safetensors,
    arrays_to_bytes,
)
from model.config import ModelConfig
from model.hidden_state import state_specs, zero_state
from model.init import array_specs
from pipeline.compression import Codec, accumulate, encode_with_residue
from pipeline.config import Config, config_from_manifest
from pipeline.trace import OpenedLeaf
from verification.encoding import blake3_digest, hash_object, parse_hex_float
from verification.errors import FormatError, ProtocolError
from verification.judge import Recomputed
from verification.records import (
    Manifest,
    Range,
    RosterEntry,
    RoundOpen,
)
from verification.segments import segment_count, segment_steps

if TYPE_CHECKING:
    from model.local_steps import Midpoint, StepsResult, WorkSpec


# Of a hidden state's count: so many that no round's steps lead out of the integers.
MOST_STEPS = 1 << 51


@dataclass(frozen=True)
class Job:
    """Everything of the manifest that a contribution depends on."""

    manifest: Manifest
    config: Config
    model: ModelConfig
    specs: tuple[ArraySpec, ...]
    codec: Codec

    @classmethod
    def of(cls, manifest: Manifest) -> Job:
        """The job a manifest describes. Raises UsageError when its configuration is not valid here."""
        config = config_from_manifest(manifest.config)
        specs = tuple(ArraySpec(name, shape) for name, shape in manifest.arrays)
        length = sum(int(np.prod(spec.shape)) for spec in specs)
        codec = Codec(config.compression.chunk, config.compression.k, length)
        return cls(manifest, config, config.model, specs, codec)

    @cached_property
    def spec(self) -> WorkSpec:
        """How a local step is taken. Imports torch, which nothing else of a job needs."""
        from model.local_steps import WorkSpec  # noqa: PLC0415 - imports torch

        inner = self.config.train.inner
        return WorkSpec(
            mode=self.config.train.mode,
            trace_every=self.config.train.trace_every,
            beta1=inner.beta1,
            beta2=inner.beta2,
            eps=inner.eps,
            weight_decay=inner.weight_decay,
            max_grad_norm=inner.max_grad_norm,
        )

    def weights(self, checkpoint: bytes, digest: str) -> Arrays:
        """Weights from checkpoint bytes, copied out and checked. ProtocolError when they are not `digest`."""
        arrays = arrays_from_safetensors(bytes(checkpoint), self.specs)
        _check("the base checkpoint", digest, arrays_digest(arrays))
        return arrays

    def state(self, data: bytes, digest: str) -> Arrays:
        """Hidden state from its canonical bytes.

        FormatError when they are none of this job, whose length is looked at before they are hashed;
        ProtocolError when they are not `digest`.
        """
        state = arrays_from_bytes(data, state_specs(self.specs, self.config.train.mode))
        _check("the hidden state", digest, blake3_digest(data))
        step = int(state["step"])
        if not 0 <= step <= MOST_STEPS:
            raise FormatError("a hidden state's step is out of range", expected="0 to 2^51", got=step)
        return state

    @cached_property
    def zero_state(self) -> bytes:
        """Canonical bytes of the hidden state that everyone starts from."""
        return arrays_to_bytes(zero_state(self.specs, self.config.train.mode))


def _check(what: str, expected: str, got: str) -> None:
    if expected != got:
        raise ProtocolError(f"{what} is not the one the round opened with", expected=expected, got=got)


def check_assignment(job: Job, entry: RosterEntry) -> None:
    """Raise ProtocolError unless an assignment can be trained: the model's arrays, steps, and their windows.

    A coordinator could otherwise have a member list positions until its memory is full.
    """
    config, layers = job.config, job.model.n_layers
    if layers > len(job.specs) or job.specs != array_specs(job.model):
        raise ProtocolError(
            "the manifest's arrays are not its model's",
            expected=f"those of {layers} layers",
            got=f"{len(job.specs)} arrays",
        )
    most = max([*config.train.steps, config.timing.max_steps])
    windows = sum(stop - start for start, stop in entry.positions)
    batch, micro = config.train.batch, entry.micro_batch
    if entry.steps > most or windows != entry.steps * batch or not 1 <= micro <= batch:
        raise ProtocolError(
            f"the assignment of {entry.member} is none of this run",
            expected=f"at most {most} steps of {batch} windows, up to {batch} at once",
            got=f"{entry.steps} steps and {windows} windows, {micro} at once",
        )


def positions_of(ranges: Sequence[Range]) -> list[int]:
    """The positions of a list of ranges, in order."""
    return [position for start, stop in ranges for position in range(start, stop)]


@dataclass(frozen=True)
class Work:
    """A contribution's bytes and what is claimed of them."""

    payload: bytes
    next_state: bytes
    claims: Recomputed


Keep = Callable[[int, OpenedLeaf], None]


def do_work(
    job: Job,
    data: Windows,
    open_: RoundOpen,
    entry: RosterEntry,
    weights: Arrays,
    start: Arrays,
    keep: Keep | None = None,
) -> Work:
    """Compute the contribution of `entry`, from base weights and start state to payload and next state.

    `keep` is given every leaf of the trace but the boundary, by index, with the point that it is taken of.
    Raises ProtocolError as `check_assignment` does, WorkError when training gives something not finite.
    """
    from model.local_steps import Midpoint, update_of  # noqa: PLC0415 - imports torch

    segments = range(segment_count(entry.steps, job.config.train.trace_every))
    begin = Midpoint(weights, start)
    done = run_segments(job, data, open_, entry, begin, (segments[0], segments[-1]), keep)
    update_P = update_of(job.spec, job.specs, weights, done.end, entry.steps)
    return finish_work(job, update_P, done.end.state, done.leaves, done.losses)


def run_segments(
    job: Job,
    data: Windows,
    open_: RoundOpen,
    entry: RosterEntry,
    start: Midpoint,
    run: tuple[int, int],
    keep: Keep | None = None,
) -> StepsResult:
    """The local steps of an unbroken run (first, last) of segments, from where the first one starts."""
    check_assignment(job, entry)
    from model.local_steps import local_steps  # noqa: PLC0415 - imports torch

    batch, every = job.config.train.batch, job.config.train.trace_every
    begin, stop = segment_steps(run[0], entry.steps, every)[0], segment_steps(run[1], entry.steps, every)[1]
    positions = positions_of(entry.positions)[begin * batch : stop * batch]
    batches_SBT = data.batches(job.config.run.seed, positions, batch)
    rates = [parse_hex_float(text) for text in open_.inner_lr[begin:stop]]
    index = itertools.count(run[0])

    def kept(point: Midpoint, losses: tuple[int, ...]) -> None:
        if keep:
            keep(next(index), OpenedLeaf.of(point, losses))

    return local_steps(
        job.model,
        job.spec,
        start,
        batches_SBT,
        rates,
        first=begin,
        micro_batch=entry.micro_batch,
        keep=kept if keep else None,
    )


def boundary_leaf(accumulated_P: np.ndarray) -> str:
    """The last leaf of a trace, over what error feedback and update add up to."""
    digest = arrays_digest({"accumulated": accumulated_P})
    return hash_object("barnraise/trace-boundary/v1", {"accumulated": digest})


def finish_work(
    job: Job, update_P: np.ndarray, state: Arrays, leaves: tuple[str, ...], losses: tuple[int, ...]
) -> Work:
    """Compress an update with error feedback and state what the contribution claims.

    `leaves` are those of the local steps; the boundary is added here.
    """
    beta = job.config.compression.error_feedback
    accumulated_P = accumulate(job.codec, update_P, state["error_feedback"], beta)
    payload, error_P = encode_with_residue(job.codec, accumulated_P)
    forms = state_specs(job.specs, job.config.train.mode)
    following = {name: state[name] for name in forms} | {"error_feedback": error_P}
    trace = (*leaves, boundary_leaf(accumulated_P))
    claims = Recomputed(blake3_digest(payload), arrays_digest(following), trace, losses[0], losses[-1])
    return Work(payload, arrays_to_bytes(following), claims)
