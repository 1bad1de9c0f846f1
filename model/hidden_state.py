"""The form of a contributor's hidden state: which arrays, and all of them zero at the start.

Owns names, types and shapes (docs/protocol.md, section 7); numpy only, so that level 2 can check the zero
state. Does not own what the local steps do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.arrays import Arrays, ArraySpec

Mode = Literal["local", "gradient"]


def state_specs(specs: Sequence[ArraySpec], mode: Mode) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """Names, element types and shapes of a hidden state, as `arrays_from_bytes` takes them."""
    total = sum(spec.size for spec in specs)
    vectors = ("error_feedback", "adam_m", "adam_v") if mode == "local" else ("error_feedback",)
    return {"step": (np.int64, ()), **dict.fromkeys(vectors, (np.float32, (total,)))}


def midway_specs(specs: Sequence[ArraySpec], mode: Mode) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """The same of the state within a round, as a leaf of the trace hashes it (section 7)."""
    found = state_specs(specs, mode)
    if mode == "gradient":
        found["gradient_sum"] = (np.float32, (sum(spec.size for spec in specs),))
    return found


def zero_state(specs: Sequence[ArraySpec], mode: Mode) -> Arrays:
    """The hidden state of a member without history."""
    return {name: np.zeros(shape, dtype) for name, (dtype, shape) in state_specs(specs, mode).items()}
