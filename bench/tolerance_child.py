"""A process like pipeline/calibrate_child.py, whose loss is computed in a way that no member has.

`micro-batch` takes the batch in halves and averages, so gradients are sums of two. `bf16` computes the
forward pass under autocast. The local steps around it are the shipped ones.
"""

from __future__ import annotations

import io
import json
import sys

import torch
from torch import Tensor

from model import local_steps, transformer
from model.config import ModelConfig
from pipeline import calibrate_child

_shipped = transformer.loss


def _halves(config: ModelConfig, weights: transformer.Weights, tokens_BT: Tensor) -> Tensor:
    parts = tokens_BT.split(max(1, len(tokens_BT) // 2))
    losses = [_shipped(config, weights, part) * (len(part) / len(tokens_BT)) for part in parts]
    return torch.stack(losses).sum()


def _autocast(config: ModelConfig, weights: transformer.Weights, tokens_BT: Tensor) -> Tensor:
    with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16):
        return _shipped(config, weights, tokens_BT).float()


def main() -> None:
    """As the shipped child, with the loss that the environment's name asks for."""
    first = sys.stdin.readline()
    name = json.loads(first)["name"]
    local_steps.loss = {"micro-batch": _halves, "bf16": _autocast}[name.partition(",")[0]]  # type: ignore[attr-defined]
    sys.stdin = _After(first, sys.stdin)  # type: ignore[assignment]
    calibrate_child.main()


class _After(io.TextIOBase):
    """A line that was read already, and then the rest."""

    def __init__(self, line: str, rest: io.TextIOBase) -> None:
        self._line, self._rest = line, rest

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        line, self._line = self._line, ""
        return line or self._rest.readline(size)

    def __next__(self) -> str:
        if line := self.readline():
            return line
        raise StopIteration


if __name__ == "__main__":
    main()
