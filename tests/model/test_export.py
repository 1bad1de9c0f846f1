"""The exported folder: its files, its bytes, all or nothing."""

import json

import pytest
import safetensors.numpy

from model import export
from model.arrays import safetensors_bytes
from model.config import ModelConfig
from model.export import export_llama
from model.init import initial_weights
from verification.errors import FormatError, StorageError, UsageError

CONFIG = ModelConfig(
    vocab_size=16, context=8, d_model=16, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=20,
    rope_theta=500.0, norm_eps=1e-6, init_std=0.1,
)  # fmt: skip
WEIGHTS = initial_weights(CONFIG, 1)
TOKENIZER = json.dumps({"added_tokens": [{"id": 0, "content": "<|end|>"}], "model": {}}).encode()


def test_the_folder_holds_what_transformers_reads(tmp_path):
    out = tmp_path / "deep" / "model"
    export_llama(CONFIG, WEIGHTS, out, TOKENIZER, "# A card\n")
    names = {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    assert (out / "model.safetensors").read_bytes() == safetensors_bytes(WEIGHTS)
    assert safetensors.numpy.load_file(out / "model.safetensors").keys() == WEIGHTS.keys()
    assert (out / "README.md").read_text() == "# A card\n"
    assert (out / "tokenizer.json").read_bytes() == TOKENIZER
    config = json.loads((out / "config.json").read_text())
    wanted = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True,
        "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8, "rope_theta": 500.0,
        "rms_norm_eps": 1e-6, "vocab_size": 16, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
    }  # fmt: skip
    assert config.items() >= wanted.items()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["model_max_length"]) == ("<|end|>", 8)


def test_without_a_tokenizer_there_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    export_llama(CONFIG, WEIGHTS, tmp_path / "empty", None, "card")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already there"):
        export_llama(CONFIG, WEIGHTS, tmp_path, None, "card")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(path, data):
        if path.name == "README.md":
            raise StorageError("the disk is full")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(export, "write_atomic", full_disk)
    with pytest.raises(StorageError):
        export_llama(CONFIG, WEIGHTS, tmp_path / "out", None, "card")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("junk", [b"", b"{}", b"[1]", b'{"added_tokens": [1]}', b"\xff"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, junk):
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        export_llama(CONFIG, WEIGHTS, tmp_path / "out", junk, "card")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_shape_are_refused(tmp_path):
    with pytest.raises(FormatError):
        export_llama(CONFIG.model_copy(update={"d_ff": 21}), WEIGHTS, tmp_path / "out", None, "card")
