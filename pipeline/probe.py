"""A small fixed contribution whose digest says which arithmetic this process has.

Owns the probe that `barnraise doctor --numerics` prints: the shipped local steps, error feedback and codec on
a made-up model, windows and state. Does not own profiles or the names of classes (model/numerics.py).
"""

from __future__ import annotations

import numpy as np

from model.arrays import arrays_digest
from model.config import ModelConfig
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from model.local_steps import Midpoint, WorkSpec, local_steps, update_of
from pipeline.compression import Codec, accumulate, encode_with_residue
from verification.encoding import blake3_digest, hash_object

# Sizes that are no multiples of a vector's width, so that the ends of rows are tried too.
MODEL = ModelConfig(
    vocab_size=512, context=61, d_model=96, n_layers=2, n_heads=6, n_kv_heads=2, d_ff=200,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.05,
)  # fmt: skip
SPEC = WorkSpec("local", 2, 0.9, 0.95, 1e-8, 0.1, 1.0)
STEPS, BATCH = 4, 5


def probe_digest() -> str:
    """Digest of the trace, payload and residue of the probe under the present settings.

    Machines that name the same class but differ here do not share their bits; finding that out before a run
    is cheaper than in a verdict. Takes well under a second.
    """
    specs = array_specs(MODEL)
    positions_SBT = np.arange(STEPS * BATCH * (MODEL.context + 1), dtype=np.int64).reshape(STEPS, BATCH, -1)
    batches_SBT = (positions_SBT * 7919 + positions_SBT**2 * 31) % MODEL.vocab_size
    start = Midpoint(initial_weights(MODEL, 0), zero_state(specs, "local"))
    done = local_steps(MODEL, SPEC, start, batches_SBT, [0.01] * STEPS)
    update_P = update_of(SPEC, specs, start.weights, done.end, STEPS)
    codec = Codec(1024, 64, len(update_P))
    # The update stands in for the error feedback of a round before, so that no term is zero.
    payload, residue_P = encode_with_residue(codec, accumulate(codec, update_P, update_P, 0.95))
    return hash_object(
        "barnraise/probe/v2",
        {
            "leaves": list(done.leaves),
            "losses": list(done.losses),
            "payload": blake3_digest(payload),
            "residue": arrays_digest({"residue": residue_P}),
        },
    )
