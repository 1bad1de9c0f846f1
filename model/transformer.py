"""The decoder, top to bottom: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Owns the forward pass as pure functions over a mapping from array name (model/init.py) to tensor, and the
loss. Does not own training (model/local_steps.py) or initial values. The same function as LlamaForCausalLM
of the transformers library, so a checkpoint can be used there as it is.

Shape legend: B windows in the batch, T query position, S key position, D d_model, F d_ff, H head size,
I half the head size, K key/value heads, G query heads per key/value head, R = G*T, V vocabulary.
`tokens_BT1` holds T + 1 tokens a window: inputs and, shifted by one, targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.config import ModelConfig

Weights = Mapping[str, Tensor]


def loss(config: ModelConfig, weights: Weights, tokens_BT1: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats over all B*T predicted positions, an f32 scalar."""
    logits_BTV = logits(config, weights, tokens_BT1[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT1[:, 1:].flatten())


def logits(config: ModelConfig, weights: Weights, tokens_BT: Tensor) -> Tensor:
    """Scores logits_BTV of every next token; T is at most `config.context`."""
    embedding_VD = weights["model.embed_tokens.weight"]
    x_BTD = F.embedding(tokens_BT, embedding_VD)
    for layer in range(config.n_layers):
        at = f"model.layers.{layer}"
        normed_BTD = _rms_norm(config, weights[f"{at}.input_layernorm.weight"], x_BTD)
        x_BTD = x_BTD + _attention(config, weights, f"{at}.self_attn", normed_BTD)
        normed_BTD = _rms_norm(config, weights[f"{at}.post_attention_layernorm.weight"], x_BTD)
        x_BTD = x_BTD + _swiglu(weights, f"{at}.mlp", normed_BTD)
    return F.linear(_rms_norm(config, weights["model.norm.weight"], x_BTD), embedding_VD)


def _rms_norm(config: ModelConfig, gain_D: Tensor, x_BTD: Tensor) -> Tensor:
    """Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019)."""
    return cast("Tensor", _RMSNorm.apply(x_BTD, gain_D, config.norm_eps))  # type: ignore[no-untyped-call]


def _swiglu(weights: Weights, at: str, x_BTD: Tensor) -> Tensor:
    """SiLU-gated feed-forward (Shazeer, "GLU Variants Improve Transformer", 2020)."""
    gate_BTF = F.linear(x_BTD, weights[f"{at}.gate_proj.weight"])
    up_BTF = F.linear(x_BTD, weights[f"{at}.up_proj.weight"])
    return F.linear(_silu(gate_BTF) * up_BTF, weights[f"{at}.down_proj.weight"])


def _attention(config: ModelConfig, weights: Weights, at: str, x_BTD: Tensor) -> Tensor:
    """Causal grouped-query attention (Ainslie et al. 2023), written out: products, mask, softmax.

    Query head h reads key/value head h div G, as Llama does. The G query heads of a group are stacked
    along the position, so each key head meets its queries in one product and is never repeated.
    """
    B, T, D = x_BTD.shape
    K, G, H = config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim
    q_BTD = F.linear(x_BTD, weights[f"{at}.q_proj.weight"])
    k_BTE = F.linear(x_BTD, weights[f"{at}.k_proj.weight"])
    v_BTE = F.linear(x_BTD, weights[f"{at}.v_proj.weight"])
    rotary = _rotary_table(config.context, H, config.rope_theta, x_BTD.device)
    q_BKGTH = _rotate(q_BTD.view(B, T, K, G, H).permute(0, 2, 3, 1, 4), rotary) * H**-0.5
    k_BKSH = _rotate(k_BTE.view(B, T, K, H).transpose(1, 2), rotary)
    v_BKSH = v_BTE.view(B, T, K, H).transpose(1, 2)
    scores_BKRS = q_BKGTH.reshape(B, K, G * T, H) @ k_BKSH.transpose(-2, -1)
    hidden_TS = _future_mask(config.context, x_BTD.device)[:T, :T]
    scores_BKGTS = scores_BKRS.view(B, K, G, T, T) + hidden_TS
    mix_BKRS = _softmax(scores_BKGTS).view(B, K, G * T, T)
    heads_BTKGH = (mix_BKRS @ v_BKSH).view(B, K, G, T, H).permute(0, 3, 1, 2, 4)
    return F.linear(heads_BTKGH.reshape(B, T, D), weights[f"{at}.o_proj.weight"])


def _rotate(x_TH: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + H/2) of every head by position times frequency (Su et al. 2021; Llama)."""
    T = x_TH.shape[-2]
    cos_TI, sin_TI = table[0][:T], table[1][:T]
    a_TI, b_TI = x_TH.chunk(2, dim=-1)
    return torch.cat((a_TI * cos_TI - b_TI * sin_TI, b_TI * cos_TI + a_TI * sin_TI), dim=-1)


@lru_cache(maxsize=8)
def _rotary_table(context: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines f32[T, I], with no libm: its powers and cosines go by the instruction set.

    One position's turn comes from decimals; the rest follow by f64 products, each rounded once, whose error
    (some T * 1e-16) the rounding to f32 hides.
    """
    with localcontext(prec=40):
        turns = [Decimal(theta) ** (Decimal(-i) / head_dim) for i in range(0, head_dim, 2)]
        cosine_I, sine_I = (np.array([float(_series(x, n)) for x in turns]) for n in (0, 1))
    cos_TI, sin_TI = np.ones((context, head_dim // 2)), np.zeros((context, head_dim // 2))
    for t in range(1, context):
        cos_TI[t] = cos_TI[t - 1] * cosine_I - sin_TI[t - 1] * sine_I
        sin_TI[t] = sin_TI[t - 1] * cosine_I + cos_TI[t - 1] * sine_I
    cos_TI, sin_TI = cos_TI.astype(np.float32), sin_TI.astype(np.float32)
    return torch.from_numpy(cos_TI).to(device), torch.from_numpy(sin_TI).to(device)


def _series(x: Decimal, first: int) -> Decimal:
    """Cosine (first 0) or sine (first 1) of 0 < x <= 1, by thirty terms of its Taylor series."""
    term, total = x**first, Decimal(0)
    for n in range(first, first + 60, 2):
        total += term
        term *= -x * x / ((n + 1) * (n + 2))
    return total


@lru_cache(maxsize=8)
def _future_mask(context: int, device: torch.device) -> Tensor:
    """f32[T, S]: 0 where position T may read S, -inf where S lies in its future."""
    return torch.full((context, context), -torch.inf, device=device).triu(1)


# Three operations are written out, with their gradients, because torch's own give other bits for another
# number of threads: the ends of each thread's share in SiLU go through a scalar exponential; the gradient of
# softmax rounds differently where a row is no multiple of the vector width; and a sum over rows depends on
# how the columns are split. `torch.expm1`, single-rounded operations and sums along a row do not. But exp,
# log, sqrt and erf are MKL's vector library, which takes another path on another vendor's processor.


class _Silu(torch.autograd.Function):
    """x * sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = torch.expm1(-x).add_(2).reciprocal_()
        ctx.save_for_backward(x, sigmoid)
        return x * sigmoid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, sigmoid = ctx.saved_tensors
        slope: Tensor = (1 - sigmoid).mul_(x).add_(1).mul_(sigmoid)
        return slope.mul_(gradients[0])


class _Softmax(torch.autograd.Function):
    """Softmax along the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.softmax(x, dim=-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        share: Tensor = gradients[0] * y
        return share.sub_(y * share.sum(-1, keepdim=True))


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x * x) + eps) * gain along the last dimension."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, gain_D: Tensor, eps: float) -> Tensor:
        inverse_BT1 = (x_BTD * x_BTD).mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed_BTD = x_BTD * inverse_BT1
        ctx.save_for_backward(normed_BTD, inverse_BT1, gain_D)
        return normed_BTD * gain_D

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        normed_BTD, inverse_BT1, gain_D = ctx.saved_tensors
        gain_share_BTD = gradients[0] * normed_BTD
        gradient_BTD = gradients[0] * gain_D
        mean_BT1 = (gradient_BTD * normed_BTD).mean(-1, keepdim=True)
        gradient_BTD.sub_(normed_BTD * mean_BT1).mul_(inverse_BT1)
        return gradient_BTD, gain_share_BTD.flatten(0, -2).t().contiguous().sum(-1), None


def _silu(x: Tensor) -> Tensor:
    return cast("Tensor", _Silu.apply(x))  # type: ignore[no-untyped-call]


def _softmax(x: Tensor) -> Tensor:
    return cast("Tensor", _Softmax.apply(x))  # type: ignore[no-untyped-call]
