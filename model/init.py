"""Names, shapes and initial values of the weights.

Owns `array_specs` and the rule of docs/protocol.md, section 9, "Initial weights". Names and shapes are those
of Llama in the transformers library, so that an export renames nothing. No torch, no libm.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from model.arrays import Arrays, ArraySpec
from model.config import ModelConfig

_BLOCK = 1 << 20  # elements drawn at a time, so that the f64 values in between stay small


def array_specs(config: ModelConfig) -> tuple[ArraySpec, ...]:
    """Every trainable array, sorted by name in byte order ("layers.10" comes before "layers.2")."""
    d_model, d_ff, kv_dim = config.d_model, config.d_ff, config.kv_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, d_model),
        "model.norm.weight": (d_model,),
    }
    for layer in range(config.n_layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (d_model,),
            f"{at}.self_attn.q_proj.weight": (d_model, d_model),
            f"{at}.self_attn.k_proj.weight": (kv_dim, d_model),
            f"{at}.self_attn.v_proj.weight": (kv_dim, d_model),
            f"{at}.self_attn.o_proj.weight": (d_model, d_model),
            f"{at}.post_attention_layernorm.weight": (d_model,),
            f"{at}.mlp.gate_proj.weight": (d_ff, d_model),
            f"{at}.mlp.up_proj.weight": (d_ff, d_model),
            f"{at}.mlp.down_proj.weight": (d_model, d_ff),
        }
    return tuple(ArraySpec(name, shapes[name]) for name in sorted(shapes))


def initial_weights(config: ModelConfig, seed: int) -> Arrays:
    """The weights of checkpoint 0: uniform with standard deviation `init_std`, norms 1.

    Integers and IEEE operations only, so the bits are the same on every machine.
    """
    scale = config.init_std * 1.7320508075688772
    residual_scale = scale * (1 / math.sqrt(2 * config.n_layers))
    weights: Arrays = {}
    for spec in array_specs(config):
        if len(spec.shape) == 1:
            weights[spec.name] = np.ones(spec.shape, dtype=np.float32)
        else:
            is_residual = spec.name.endswith(("o_proj.weight", "down_proj.weight"))
            drawn = _uniform(seed, spec, residual_scale if is_residual else scale)
            weights[spec.name] = drawn.reshape(spec.shape)
    return weights


def _uniform(seed: int, spec: ArraySpec, scale: float) -> npt.NDArray[np.float32]:
    """`spec.size` values in [-scale, scale) from the extended output of BLAKE3."""
    stream = blake3(b"barnraise/init/v1\0" + str(seed).encode("ascii") + b"\0" + spec.name.encode("utf-8"))
    values = np.empty(spec.size, dtype=np.float32)
    for start in range(0, spec.size, _BLOCK):
        stop = min(start + _BLOCK, spec.size)
        drawn = np.frombuffer(stream.digest(length=4 * (stop - start), seek=4 * start), dtype="<u4")
        values[start:stop] = ((drawn >> 8).astype(np.float64) - 8388608) / 8388608 * scale
    return values
