"""A gradient seen from a few sides, which is told before the gradient that it is compared with is served.

Owns the arithmetic of docs/protocol.md, section 7, "Sketches": sums of the gradient's elements with signs
that follow from the draw, in hundred-thousandths of its norm. It is a sketch of second moments (Alon, Matias
and Szegedy, 1996), which is a projection on random signs (Achlioptas, 2003): two gradients are near one
another when their sketches are. Does not own how near they have to be (verification/tolerance.py) or who is
shown what, when.

Shape legend: E a block of the flat gradient's elements, J the sketch's numbers, B the values of a byte.
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
from pipeline.deviation import CARRIERS, UNIT_ROUNDOFF
from verification.encoding import digest_hex, hash_object
from verification.judge import Audit
from verification.tolerance import MOST_SKETCH, NO_SKETCH, SKETCH_NUMBERS, SKETCH_UNIT, ServedStep, Sketch

if TYPE_CHECKING:
    from pipeline.config import TrainConfig
    from pipeline.trace import OpenedLeaf
    from pipeline.work import Job

_BLOCK = 1 << 16
# By a byte that was drawn, the signs that it gives an element: J's bit counts from the most significant.
_SIGNS_BJ = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


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
        return self.served(segment, before, after).sketch

    def served(self, segment: int, before: Arrays, after: Arrays) -> ServedStep:
        """The same, with how far it may be off by the rounding of what carries the gradient."""
        key = self._key(segment)
        sums_J, square, rounding = np.zeros(SKETCH_NUMBERS), 0.0, 0.0
        carrier = CARRIERS[self.train.mode]
        with np.errstate(all="ignore"):  # what is not finite has no norm
            for number, start in enumerate(range(0, after[carrier].size, _BLOCK)):
                g_E, q_E = self._gradient(before, after, carrier, slice(start, start + _BLOCK))
                drawn = hashlib.shake_256(key + struct.pack(">Q", number)).digest(len(g_E))
                by_byte = np.bincount(np.frombuffer(drawn, np.uint8), weights=g_E, minlength=256)
                sums_J += by_byte @ _SIGNS_BJ
                square += float(np.square(g_E).sum())
                rounding += float(np.square(q_E).sum())
        norm = math.sqrt(square)
        if not 0 < norm < math.inf or not np.isfinite(sums_J).all():
            return ServedStep(NO_SKETCH, 0)
        rounded = (round(SKETCH_UNIT * float(total) / norm) for total in sums_J)
        sketch = tuple(max(-MOST_SKETCH, min(number, MOST_SKETCH)) for number in rounded)
        share = math.sqrt(rounding) / norm
        # Hidden by rounding altogether, a gradient says nothing, and nobody is held to it.
        return ServedStep(sketch, 2 * MOST_SKETCH if share > 0.05 else math.ceil(10 * SKETCH_UNIT * share))

    def _gradient(
        self, before: Arrays, after: Arrays, carrier: str, block: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """A block of the gradient, and how far rounding may have put it off in two machines together."""
        after_E = after[carrier][block].astype(np.float64)
        # Of the sum of gradients there is none before the first step.
        before_E = before[carrier][block].astype(np.float64) if carrier in before else np.zeros_like(after_E)
        beta1 = self.train.inner.beta1 if self.train.mode == "local" else 1.0
        share = 1 - beta1 if self.train.mode == "local" else 1.0
        rounding_E = 4 * UNIT_ROUNDOFF * (beta1 * np.abs(before_E) + 2 * np.abs(after_E)) / share
        return (after_E - beta1 * before_E) / share, rounding_E

    def _key(self, segment: int) -> bytes:
        place = {"seed": self.seed, "segment": segment, "slot": self.slot}
        return bytes.fromhex(digest_hex(hash_object("barnraise/sketch/v1", place)))


def served_sketches(
    job: Job, audit: Audit, slot: int, start: Arrays, leaves: Mapping[int, OpenedLeaf]
) -> tuple[ServedStep, ...]:
    """Of the steps that an audit looks into, as they were served: from `start` over `leaves`, by index."""
    forms = midway_specs(job.specs, job.config.train.mode)
    states = {-1: start, **{i: arrays_from_bytes(leaf.state, forms) for i, leaf in leaves.items()}}
    sketcher = Sketcher(job.config.train, audit.seed, slot)
    return tuple(sketcher.served(segment, states[segment - 1], states[segment]) for segment in audit.segments)
