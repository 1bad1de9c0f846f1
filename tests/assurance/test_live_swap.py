"""A mutant's code in functions that are alive: all of them get it, or it is said that they cannot."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assurance.live_swap import swap
from assurance.mutants import mutants


def test_a_mutant_is_put_into_live_functions(tmp_path: Path) -> None:
    source = (
        "from functools import cache\n\n"
        "def adds(most):\n"
        "    def inner(value):\n"
        "        if value > most or value < 0:\n"
        "            raise ValueError(value)\n"
        "        return value\n"
        "    return inner\n\n\n"
        "@cache\n"
        "def kept(value):\n"
        "    if value > 9:\n"
        "        raise ValueError('kept', value)\n"
        "    return value\n"
    )
    file = tmp_path / "alive.py"
    file.write_text(source)
    outcomes = {}
    for mutant in mutants("alive", source):
        space: dict[str, Any] = {}
        exec(compile(source, str(file), "exec"), space)
        inner, kept = space["adds"](3), space["kept"]
        swapped = swap(str(file), source, mutant.source)
        outcomes[mutant.what] = swapped, [_answer(inner, 5), _answer(inner, -1), _answer(kept, 10)]
        del space, inner, kept  # or the next swap would find these too
        gc.collect()
    refused = "refused"
    assert outcomes == {
        # Without `value > most` the inner function has another surrounding: it cannot be swapped.
        "or: value > most": (False, [refused, refused, refused]),
        "or: value < 0": (True, [refused, -1, refused]),
        "ValueError(value)": (True, [5, -1, refused]),
        "ValueError('kept', value)": (True, [refused, refused, 10]),
    }


def _answer(function: Callable[[int], int], value: int) -> object:
    try:
        return function(value)
    except ValueError:
        return "refused"
