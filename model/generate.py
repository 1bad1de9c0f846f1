"""Continue a text with a trained model.

Owns sampling. Does not own tokens' texts (data_prep/tokenizer.py). No cache of keys and values: the last
`context` tokens are read anew for every token, which is short code and fast enough to try a checkpoint.

Shape legend: T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.arrays import check_arrays, weight_specs
from model.config import ModelConfig
from model.init import array_specs
from model.transformer import logits
from verification.errors import UsageError


def generate(
    model: ModelConfig,
    weights: Mapping[str, npt.NDArray[Any]],
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> list[int]:
    """The `max_new_tokens` ids that follow the prompt (without the prompt).

    `temperature` 0 takes the likeliest token each time; `top_k` 0 samples from the whole vocabulary. The same
    seed gives the same ids on the same machine. Raises UsageError for a prompt or setting that makes no
    sense, FormatError for weights of another shape.
    """
    _check_request(model, prompt_ids, max_new_tokens, temperature, top_k)
    check_arrays("the set of weights", weights, weight_specs(array_specs(model)))
    parameters = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    dice = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            tokens_1T = torch.tensor([ids[-model.context :]], dtype=torch.int64)
            ids.append(_pick(logits(model, parameters, tokens_1T)[0, -1], temperature, top_k, dice))
    return ids[len(prompt_ids) :]


def _pick(scores_V: Tensor, temperature: float, top_k: int, dice: torch.Generator) -> int:
    if temperature == 0:
        return int(scores_V.argmax())
    kept = scores_V.topk(min(top_k, len(scores_V)) if top_k else len(scores_V))
    chances = torch.softmax(kept.values / temperature, dim=-1)
    return int(kept.indices[torch.multinomial(chances, 1, generator=dice)])


def _check_request(
    model: ModelConfig, prompt_ids: Sequence[int], max_new_tokens: int, temperature: float, top_k: int
) -> None:
    if not prompt_ids:
        raise UsageError("the prompt is empty", expected="at least one token")
    if min(prompt_ids) < 0 or max(prompt_ids) >= model.vocab_size:
        raise UsageError(
            "a prompt token is not in the vocabulary",
            expected=f"0 to {model.vocab_size - 1}",
            got=[min(prompt_ids), max(prompt_ids)],
        )
    if max_new_tokens < 0 or top_k < 0 or not 0 <= temperature < float("inf"):
        raise UsageError(
            "a sampling setting is out of range",
            expected="max_new_tokens, temperature and top_k of at least 0",
            got=[max_new_tokens, temperature, top_k],
        )
