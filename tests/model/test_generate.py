"""Sampling: greedy, by seed, beyond the context, and wrong use."""

import numpy as np
import pytest

from model.config import ModelConfig
from model.generate import generate
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from model.local_steps import Midpoint, WorkSpec, local_steps
from verification.errors import FormatError, UsageError

CONFIG = ModelConfig(
    vocab_size=16, context=8, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=20,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.1,
)  # fmt: skip
FRESH = initial_weights(CONFIG, 1)
SAMPLING = {"max_new_tokens": 30, "temperature": 1.0, "top_k": 0, "seed": 0}
GREEDY = SAMPLING | {"temperature": 0.0}


@pytest.fixture(scope="module")
def counting():
    """Weights that learned to count modulo 16."""
    specs = array_specs(CONFIG)
    batches = ((np.arange(240)[:, None] * 5 + np.arange(9)) % 16).reshape(60, 4, 9)
    spec = WorkSpec("local", 60, 0.9, 0.95, 1e-8, 0.0, 0.0)
    start = Midpoint(FRESH, zero_state(specs, "local"))
    return local_steps(CONFIG, spec, start, batches, [0.02] * 60).end.weights


def test_greedy_goes_on_counting_past_the_context(counting):
    assert generate(CONFIG, counting, [3, 4, 5], **GREEDY) == [i % 16 for i in range(6, 36)]


def test_top_1_is_greedy():
    assert generate(CONFIG, FRESH, [3], **SAMPLING | {"top_k": 1}) == generate(CONFIG, FRESH, [3], **GREEDY)


def test_the_seed_decides():
    assert generate(CONFIG, FRESH, [3], **SAMPLING) == generate(CONFIG, FRESH, [3], **SAMPLING)
    assert generate(CONFIG, FRESH, [3], **SAMPLING) != generate(CONFIG, FRESH, [3], **SAMPLING | {"seed": 1})


def test_top_k_keeps_the_likeliest():
    drawn = {
        generate(CONFIG, FRESH, [3], **SAMPLING | {"seed": s, "max_new_tokens": 1, "top_k": 2})[0]
        for s in range(40)
    }
    assert len(drawn) == 2
    assert generate(CONFIG, FRESH, [3], **GREEDY)[0] in drawn


def test_only_the_last_context_tokens_count():
    long = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert generate(CONFIG, FRESH, long, **SAMPLING) == generate(CONFIG, FRESH, long[-8:], **SAMPLING)


@pytest.mark.parametrize(
    ("prompt", "change"),
    [
        ([], {}),
        ([16], {}),
        ([-1], {}),
        ([1], {"temperature": -1.0}),
        ([1], {"temperature": float("nan")}),
        ([1], {"top_k": -1}),
    ],
)
def test_a_request_without_sense_is_refused(prompt, change):
    with pytest.raises(UsageError):
        generate(CONFIG, FRESH, prompt, **SAMPLING | change)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(FormatError):
        generate(CONFIG, {}, [1], **SAMPLING)
