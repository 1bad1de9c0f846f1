"""A folder that the transformers library loads as LlamaForCausalLM.

Owns the names and values of that folder's files. Does not own the weights' bytes: `model.safetensors` is byte
for byte the checkpoint's layout (model/arrays.py), so its digest can be compared. No torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from model.arrays import check_arrays, safetensors_bytes, weight_specs
from model.config import ModelConfig
from model.init import array_specs
from verification.durable import fsync_folder, storage_error, write_atomic
from verification.errors import FormatError, UsageError

_END_OF_TEXT = 0  # id of the token between documents; begins and ends a text


def export_llama(
    model: ModelConfig,
    weights: Mapping[str, npt.NDArray[Any]],
    out: Path,
    tokenizer_json: bytes | None,
    card: str,
) -> None:
    """Write the folder `out`: config.json, model.safetensors, README.md (`card`) and the tokenizer if given.

    All or nothing: the folder appears under its name when it is complete. Raises UsageError when `out` exists
    and is not an empty folder, FormatError for weights or a tokenizer of another shape, StorageError.
    """
    check_arrays("the set of weights", weights, weight_specs(array_specs(model)))
    files = {
        "config.json": _json_bytes(llama_config(model)),
        "model.safetensors": safetensors_bytes(weights),
        "README.md": card.encode("utf-8"),
    }
    if tokenizer_json is not None:
        files["tokenizer.json"] = tokenizer_json
        files["tokenizer_config.json"] = _json_bytes(_tokenizer_config(model, tokenizer_json))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} is already there",
            expected="a new or empty folder",
            hint="Choose another --out, or remove it.",
        )
    staging = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, data in files.items():
            write_atomic(staging / name, data)
        os.replace(staging, out)  # noqa: PTH105 - one system call, named as POSIX names it
        fsync_folder(out.parent)
    except OSError as error:
        raise storage_error(out, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def llama_config(model: ModelConfig) -> dict[str, object]:
    """The fields of transformers' LlamaConfig for this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _END_OF_TEXT,
        "eos_token_id": _END_OF_TEXT,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "hidden_size": model.d_model,
        "initializer_range": model.init_std,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": model.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": model.n_heads,
        "num_hidden_layers": model.n_layers,
        "num_key_value_heads": model.n_kv_heads,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": model.vocab_size,
    }


def _tokenizer_config(model: ModelConfig, tokenizer_json: bytes) -> dict[str, object]:
    settings: dict[str, object] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    try:
        added = json.loads(tokenizer_json)["added_tokens"]
        special = [token["content"] for token in added if token["id"] == _END_OF_TEXT]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            "tokenizer.json is not a tokenizer", got=f"{type(error).__name__}: {error}"
        ) from None
    if special:
        settings |= {"bos_token": special[0], "eos_token": special[0]}
    return settings


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("utf-8")
