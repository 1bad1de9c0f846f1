"""Members that come and go, for fake runs: signed newcomers, leaves and returns."""

from __future__ import annotations

from typing import Literal

from tests.verification.fake_run import key
from verification.identity import Enrol, Leave, Return
from verification.state import RunState


def newcomer(
    state: RunState, name: str, role: Literal["contributor", "auditor"] = "contributor", operator: str = ""
) -> Enrol:
    """The enrolment of somebody new, an operator of its own unless said otherwise."""
    return Enrol(1, state.run, name, role, operator or f"op-{name}", key(name).public, "class")


def leave(state: RunState, name: str, by: Literal["coordinator", "member"] = "coordinator") -> Leave:
    """A member leaves, by its present key."""
    return Leave(1, state.run, name, state.member(name).key, state.turns, by)


def back(state: RunState, name: str) -> Return:
    """A member returns now."""
    return Return(1, state.run, name, state.member(name).key, state.turns)
