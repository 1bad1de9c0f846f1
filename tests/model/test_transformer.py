"""The forward pass against a slow reference, its hand-written gradients against torch's, causality."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from model import transformer
from model.config import ModelConfig
from model.init import array_specs, initial_weights
from model.transformer import logits, loss

CONFIG = ModelConfig(
    vocab_size=40, context=12, d_model=24, n_layers=2, n_heads=6, n_kv_heads=2, d_ff=20,
    rope_theta=100.0, norm_eps=1e-5, init_std=0.3,
)  # fmt: skip
RANDOM = np.random.default_rng(5)
TOKENS_BT1 = RANDOM.integers(0, 40, (3, 13))


@pytest.fixture
def weights():
    arrays = initial_weights(CONFIG, 3)
    for name, array in arrays.items():
        if array.ndim == 1:  # gains of 1 would hide a missing one
            arrays[name] = array + RANDOM.normal(0, 0.3, array.shape).astype(np.float32)
    return arrays


def tensors(arrays):
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def reference_norm(x, gain):
    return x / np.sqrt((x * x).mean() + CONFIG.norm_eps) * gain


def reference_rotate(x, position):
    """Llama's rotate_half: x * cos + concat(-x[half:], x[:half]) * sin."""
    half = len(x) // 2
    frequency = np.array([CONFIG.rope_theta ** (-2 * i / len(x)) for i in range(half)] * 2)
    turned = np.concatenate([-x[half:], x[:half]])
    return x * np.cos(position * frequency) + turned * np.sin(position * frequency)


def reference_attention(w, at, x):
    size, group = CONFIG.head_dim, CONFIG.n_heads // CONFIG.n_kv_heads
    out = np.zeros_like(x)
    for t in range(len(x)):
        heads = []
        for h in range(CONFIG.n_heads):
            rows, kv_rows = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
            q = reference_rotate(w[f"{at}.q_proj.weight"][rows] @ x[t], t)
            keys = [reference_rotate(w[f"{at}.k_proj.weight"][kv_rows] @ x[s], s) for s in range(t + 1)]
            scores = np.exp([q @ k / math.sqrt(size) for k in keys])
            values = [w[f"{at}.v_proj.weight"][kv_rows] @ x[s] for s in range(t + 1)]
            heads.append(sum(p * v for p, v in zip(scores / scores.sum(), values, strict=True)))
        out[t] = w[f"{at}.o_proj.weight"] @ np.concatenate(heads)
    return out


def reference_logits(arrays, tokens):
    """Llama for one window in f64, one position at a time."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(CONFIG.n_layers):
        at = f"model.layers.{layer}"
        normed = np.stack([reference_norm(row, w[f"{at}.input_layernorm.weight"]) for row in x])
        x = x + reference_attention(w, f"{at}.self_attn", normed)
        for t in range(len(x)):
            normed_row = reference_norm(x[t], w[f"{at}.post_attention_layernorm.weight"])
            gate = w[f"{at}.mlp.gate_proj.weight"] @ normed_row
            up = w[f"{at}.mlp.up_proj.weight"] @ normed_row
            x[t] = x[t] + w[f"{at}.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    x = np.stack([reference_norm(row, w["model.norm.weight"]) for row in x])
    return x @ w["model.embed_tokens.weight"].T


def test_logits_and_loss_equal_the_slow_reference(weights):
    wanted_BTV = np.stack([reference_logits(weights, row) for row in TOKENS_BT1[:, :-1]])
    got_BTV = logits(CONFIG, tensors(weights), torch.from_numpy(TOKENS_BT1[:, :-1]))
    assert got_BTV.shape == (3, 12, 40)
    np.testing.assert_allclose(got_BTV.numpy(), wanted_BTV, rtol=2e-4, atol=2e-4)
    chances = np.exp(wanted_BTV) / np.exp(wanted_BTV).sum(-1, keepdims=True)
    picked = np.take_along_axis(chances, TOKENS_BT1[:, 1:, None], -1)
    got = loss(CONFIG, tensors(weights), torch.from_numpy(TOKENS_BT1))
    assert abs(got.item() + np.log(picked).mean()) < 1e-4


def test_a_position_does_not_see_its_future(weights):
    changed = TOKENS_BT1.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 40
    before = logits(CONFIG, tensors(weights), torch.from_numpy(TOKENS_BT1[:, :-1]))
    after = logits(CONFIG, tensors(weights), torch.from_numpy(changed[:, :-1]))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_a_shorter_input_gives_the_same_scores(weights):
    tokens = torch.from_numpy(TOKENS_BT1[:, :-1])
    whole, part = (logits(CONFIG, tensors(weights), t) for t in (tokens, tokens[:, :5]))
    torch.testing.assert_close(part, whole[:, :5])


def test_every_weight_has_a_gradient(weights):
    parameters = {name: tensor.requires_grad_() for name, tensor in tensors(weights).items()}
    assert list(parameters) == [spec.name for spec in array_specs(CONFIG)]
    gradients = torch.autograd.grad(
        loss(CONFIG, parameters, torch.from_numpy(TOKENS_BT1)), list(parameters.values())
    )
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def rms_norm(x, gain):
    return transformer._RMSNorm.apply(x, gain, 1e-5)


@pytest.mark.parametrize(
    ("ours", "torchs", "inputs"),
    [
        (transformer._silu, F.silu, [(4, 3, 7)]),
        (transformer._softmax, lambda x: torch.softmax(x, -1), [(2, 3, 5)]),
        (rms_norm, lambda x, gain: F.rms_norm(x, (6,), gain, 1e-5), [(2, 3, 6), (6,)]),
    ],
)
def test_hand_written_gradients(ours, torchs, inputs):
    dice = torch.Generator().manual_seed(0)
    given = [3 * torch.randn(shape, dtype=torch.float64, generator=dice) for shape in inputs]
    torch.testing.assert_close(ours(*given), torchs(*given))
    assert torch.autograd.gradcheck(ours, [tensor.requires_grad_() for tensor in given])


def test_silu_is_finite_far_out():
    x = torch.tensor([-1000.0, -100.0, 0.0, 100.0, 1000.0], requires_grad=True)
    y = transformer._silu(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [0, 0, 0, 100, 1000]
    assert slope.tolist() == [0, 0, 0.5, 1, 1]
