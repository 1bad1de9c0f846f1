"""A gradient seen from a few sides, which is told before the gradient that it is compared with is served.

Owns the arithmetic of docs/protocol.md, section 7, "Sketches": sums of the gradient's elements with signs
that follow from the draw, in ten-thousandths of its norm. It is a sketch of second moments (Alon, Matias and
Szegedy, 1996), which is a projection on random signs (Achlioptas, 2003): two gradients are near one another
when their sketches are. Does not own how near they have to be (verification/tolerance.py) or who is shown
what, when.

Shape legend: E a block of the flat gradient's elements, J the sketch's numbers.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.arrays import Arrays, arrays_from_bytes
from model.hidden_state import midway_specs
from pipeline.deviation import CARRIERS
from verification.encoding import digest_hex, hash_object
from verification.judge import Audit
from verification.tolerance import MOST_SKETCH, NO_SKETCH, SKETCH_NUMBERS, Sketch

if TYPE_CHECKING:
    from pipeline.config import TrainConfig
    from pipeline.trace import OpenedLeaf
    from pipeline.work import Job

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Sketcher:
    """Sketches of single steps of one slot's work; `seed` is the draw's."""

    train: TrainConfig
    seed: str
    slot: int

    def of(self, segment: int, before: Arrays, after: Arrays) -> Sketch:
        """Of the gradient of the one step that led from one state to another; NO_SKETCH when it has no norm.

        Both are states midway, of the run's arrays. In what was served any bits may stand.
        """
        key = self._key(segment)
        sums_J, square = np.zeros(SKETCH_NUMBERS), 0.0
        carrier = CARRIERS[self.train.mode]
        size = after[carrier].size
        with np.errstate(all="ignore"):  # what is not finite has no norm
            for number, start in enumerate(range(0, size, _BLOCK)):
                g_E = self._gradient(before, after, carrier, slice(start, start + _BLOCK))
                drawn_E = hashlib.shake_256(key + struct.pack(">Q", number)).digest(len(g_E))
                bits_EJ = np.unpackbits(np.frombuffer(drawn_E, np.uint8)[:, None], axis=1)
                sums_J += g_E @ (1.0 - 2.0 * bits_EJ)
                square += float(np.square(g_E).sum())
        norm = math.sqrt(square)
        if not 0 < norm < math.inf or not np.isfinite(sums_J).all():
            return NO_SKETCH
        rounded = (round(1e4 * float(total) / norm) for total in sums_J)
        return tuple(max(-MOST_SKETCH, min(number, MOST_SKETCH)) for number in rounded)

    def _gradient(self, before: Arrays, after: Arrays, carrier: str, block: slice) -> np.ndarray:
        after_E = after[carrier][block].astype(np.float64)
        # Of the sum of gradients there is none before the first step.
        before_E = before[carrier][block].astype(np.float64) if carrier in before else 0.0
        if self.train.mode == "gradient":
            return np.asarray(after_E - before_E)
        beta1 = self.train.inner.beta1
        return np.asarray((after_E - beta1 * before_E) / (1 - beta1))

    def _key(self, segment: int) -> bytes:
        place = {"seed": self.seed, "segment": segment, "slot": self.slot}
        return bytes.fromhex(digest_hex(hash_object("barnraise/sketch/v1", place)))


def served_sketches(
    job: Job, audit: Audit, slot: int, start: Arrays, leaves: Mapping[int, OpenedLeaf]
) -> tuple[Sketch, ...]:
    """Of the steps that an audit looks into, as they were served: from `start` over `leaves`, by index."""
    forms = midway_specs(job.specs, job.config.train.mode)
    states = {-1: start, **{i: arrays_from_bytes(leaf.state, forms) for i, leaf in leaves.items()}}
    sketcher = Sketcher(job.config.train, audit.seed, slot)
    return tuple(sketcher.of(segment, states[segment - 1], states[segment]) for segment in audit.segments)
