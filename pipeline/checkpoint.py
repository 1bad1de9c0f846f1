"""A checkpoint in memory: weights and outer state, its digests, and the step to the next one.

Owns the way from accepted payloads to the next checkpoint, for the coordinator and for level 2 alike; numpy
only. Does not own which payloads are accepted, or where files lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.arrays import (
    Arrays,
    ArraySpec,
    arrays_digest,
    arrays_from_bytes,
    arrays_from_safetensors,
    flatten,
    unflatten,
)
from pipeline.aggregation import AggregationConfig, Contribution, initial_outer, outer_step
from pipeline.compression import Codec
from verification.encoding import parse_hex_float
from verification.records import Base


@dataclass(frozen=True)
class Aggregator:
    """What of the manifest decides a checkpoint's successor."""

    specs: tuple[ArraySpec, ...]
    codec: Codec
    config: AggregationConfig

    @classmethod
    def of(cls, arrays: Iterable[tuple[str, Iterable[int]]], config: Mapping[str, Any]) -> Aggregator:
        """From the manifest's `arrays` and `config`, as plain JSON; needs no framework."""
        specs = tuple(ArraySpec(name, tuple(shape)) for name, shape in arrays)
        length = sum(int(np.prod(spec.shape)) for spec in specs)
        compression: Mapping[str, Any] = config["compression"]
        outer: Mapping[str, Any] = config["outer"]
        aggregation = AggregationConfig(
            optimizer=outer["optimizer"],
            momentum=parse_hex_float(outer["momentum"]),
            beta1=parse_hex_float(outer["beta1"]),
            beta2=parse_hex_float(outer["beta2"]),
            eps=parse_hex_float(outer["eps"]),
            weight_decay=parse_hex_float(outer["weight_decay"]),
        )
        return cls(specs, Codec(compression["chunk"], compression["k"], length), aggregation)

    def start(self, weights: Arrays) -> Checkpoint:
        """Checkpoint 0 from initial weights."""
        outer = initial_outer(self.codec.length, self.config.optimizer)
        return Checkpoint(flatten(weights, self.specs), outer)

    def step(self, before: Checkpoint, work: Sequence[Contribution], outer_lr: str) -> Checkpoint:
        """The checkpoint after aggregating `work`, in slot order; the same one when there is none."""
        if not work:
            return before
        specs = [(spec.name, spec.shape) for spec in self.specs]
        weights_P, outer = outer_step(
            self.config,
            self.codec,
            specs,
            before.weights_P,
            before.outer,
            contributions=work,
            outer_lr=parse_hex_float(outer_lr),
        )
        return Checkpoint(weights_P, outer)

    def arrays(self, checkpoint: Checkpoint) -> Arrays:
        """The weights by name."""
        return unflatten(checkpoint.weights_P, self.specs)

    def digests(self, checkpoint: Checkpoint) -> Base:
        """Array digests, as they stand in opens and closes."""
        return Base(arrays_digest(self.arrays(checkpoint)), arrays_digest(dict(checkpoint.outer)))

    def load(self, weights: bytes, outer: bytes) -> Checkpoint:
        """A checkpoint from its two files. Raises FormatError unless they are canonical."""
        return Checkpoint(flatten(self.read_weights(weights), self.specs), self.read_outer(outer))

    def read_weights(self, data: bytes) -> Arrays:
        """The weights in a checkpoint's safetensors file."""
        return arrays_from_safetensors(data, self.specs)

    def read_outer(self, data: bytes) -> Arrays:
        """The outer state in a checkpoint's other file."""
        start = initial_outer(self.codec.length, self.config.optimizer)
        return arrays_from_bytes(data, {name: (array.dtype, array.shape) for name, array in start.items()})


@dataclass(frozen=True)
class Checkpoint:
    """Flat weights f32 [P] and the outer optimizer's arrays."""

    weights_P: np.ndarray
    outer: Mapping[str, np.ndarray]
