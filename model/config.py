"""The shape of the network.

Owns `ModelConfig`, its presets and how many parameters a shape has. Does not own the arrays' names
(model/init.py) or the computation (model/transformer.py).
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    vocab_size: int = Field(ge=2, description="tokens in the vocabulary; ids run from 0 to vocab_size - 1")
    context: int = Field(ge=1, description="positions predicted in one window; a window holds one token more")
    d_model: int = Field(ge=2, description="width of the residual stream")
    n_layers: int = Field(ge=1, description="decoder layers")
    n_heads: int = Field(ge=1, description="query heads; d_model / n_heads is the head size and must be even")
    n_kv_heads: int = Field(ge=1, description="key and value heads; divides n_heads")
    d_ff: int = Field(ge=1, description="hidden width of the SwiGLU block")
    rope_theta: float = Field(gt=0, allow_inf_nan=False, description="base of the rotary wavelengths")
    norm_eps: float = Field(gt=0, allow_inf_nan=False, description="added to the mean square in RMSNorm")
    init_std: float = Field(
        gt=0, allow_inf_nan=False, description="standard deviation of the initial weights"
    )

    @model_validator(mode="after")
    def _check_divisibility(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        if self.head_dim % 2:
            raise ValueError(
                f"the head size d_model / n_heads ({self.head_dim}) must be even: rotary positions turn pairs"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim


def parameter_count(config: ModelConfig) -> int:
    """Trainable numbers of a shape; the tied embedding counts once."""
    attention = 2 * config.d_model * (config.d_model + config.kv_dim)
    feed_forward = 3 * config.d_model * config.d_ff
    layer = attention + feed_forward + 2 * config.d_model
    return config.vocab_size * config.d_model + config.n_layers * layer + config.d_model


def _shape(
    vocab_size: int, context: int, d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int
) -> dict[str, int | float]:
    return {
        "vocab_size": vocab_size,
        "context": context,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "init_std": 0.02,
    }


#: Fields of `ModelConfig` by rough number of parameters; override what the data wants otherwise.
PRESETS: dict[str, dict[str, int | float]] = {
    "1m": _shape(4096, 128, 128, 4, 4, 2, 352),
    "5m": _shape(8192, 256, 256, 4, 8, 4, 704),
    "30m": _shape(16384, 512, 512, 7, 8, 4, 1408),
    "125m": _shape(32768, 1024, 768, 16, 12, 4, 2048),
    "350m": _shape(32768, 1024, 1024, 28, 16, 4, 2816),
    "1b": _shape(32768, 2048, 2048, 21, 32, 8, 5632),
}
