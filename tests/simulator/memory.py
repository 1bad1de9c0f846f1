"""Pure functions of bytes remembered for the length of a story, to make thousands of stories affordable.

Everyone in a run parses and verifies the same envelopes. Here each is parsed and verified once, by the
shipped code; what raised is never remembered. The level 1 checker shares nothing of it: it reads the folder
on its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import pipeline.ledger
import pipeline.log_reader
import pipeline.member
import pipeline.witness_client
import verification.envelope
import verification.intake
import verification.notes
import verification.sealing
import verification.witness

# Where each name is looked up when it is called.
_PLACES: dict[str, tuple[Any, ...]] = {
    "parse_canonical": (verification.envelope,),
    "verify": (verification.envelope, verification.notes),
    "open_note": (verification.witness, pipeline.witness_client),
    "open_envelope": (verification.sealing, verification.intake, pipeline.ledger, pipeline.log_reader),
    "verified_record": (verification.sealing, verification.intake, pipeline.log_reader),
    "parse_predicate": (pipeline.member,),
}


def remember(patch: pytest.MonkeyPatch) -> None:
    """Remember until `patch` is undone."""
    for name, modules in _PLACES.items():
        remembered = _remembered(getattr(modules[0], name))
        for module in modules:
            patch.setattr(module, name, remembered)


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        try:
            return known[args]
        except (KeyError, TypeError):
            pass
        value = function(*args)
        with contextlib.suppress(TypeError):  # an argument that cannot be a key
            known[args] = value
        return value

    return call
