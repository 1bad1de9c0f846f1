"""Names and initial values: golden, and worked out again in plain Python."""

import struct

import numpy as np
from blake3 import blake3

from model import init
from model.arrays import arrays_digest
from model.config import ModelConfig
from model.init import array_specs, initial_weights

CONFIG = ModelConfig(
    vocab_size=48, context=8, d_model=16, n_layers=12, n_heads=4, n_kv_heads=2, d_ff=24,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.02,
)  # fmt: skip


def test_names_are_in_byte_order():
    names = [spec.name for spec in array_specs(CONFIG)]
    assert names == sorted(names, key=str.encode)
    assert names.index("model.layers.10.mlp.up_proj.weight") < names.index(
        "model.layers.2.mlp.up_proj.weight"
    )
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.norm.weight"
    assert len(names) == 2 + 9 * 12


def test_golden_digest():
    assert arrays_digest(initial_weights(CONFIG, 7)) == GOLDEN


def test_every_weight_follows_from_the_specification():
    weights = initial_weights(CONFIG, 7)
    for name, array in weights.items():
        if array.ndim == 1:
            assert (array == 1).all()
            continue
        scale = 0.02 * 1.7320508075688772
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale *= 1 / (2 * 12) ** 0.5
        stream = blake3(b"barnraise/init/v1\0" + b"7" + b"\0" + name.encode()).digest(length=4 * array.size)
        drawn = struct.unpack(f"<{array.size}I", stream)
        wanted = struct.pack(f"<{array.size}f", *(((u >> 8) - 8388608.0) / 8388608 * scale for u in drawn))
        assert array.tobytes() == wanted


def test_blocks_do_not_change_the_values(monkeypatch):
    whole = arrays_digest(initial_weights(CONFIG, 7))
    monkeypatch.setattr(init, "_BLOCK", 100)
    assert arrays_digest(initial_weights(CONFIG, 7)) == whole


def test_the_spread_is_init_std_and_seeds_differ():
    embedding = initial_weights(CONFIG, 7)["model.embed_tokens.weight"]
    assert abs(float(embedding.std()) / 0.02 - 1) < 0.1
    assert not np.array_equal(embedding, initial_weights(CONFIG, 8)["model.embed_tokens.weight"])


GOLDEN = "blake3:ddfc09272828711e941c00c91a5a7a69cccec76391b3c60f8664798e567431e9"
