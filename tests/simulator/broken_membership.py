"""The product broken on purpose where members come and go.

Owns the breaks; that playing seeds finds each is test_broken_product.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import pipeline.muster
import verification.credits
import verification.membership
import verification.records
import verification.rounds
from tests.simulator.setting import Setting


def whoever_is_silent_is_sent_away(patch: pytest.MonkeyPatch) -> None:
    def let_go(self: Any, silent: Any, auditors: Any) -> None:
        del auditors
        for member in self._state.members:
            state = self._state
            if member.member in silent and state.takes_part(member.member):
                place = (verification.records.PROTOCOL, state.run, member.member, member.key, state.turns)
                self._append(verification.records.Leave(*place, "coordinator"))

    patch.setattr(pipeline.muster.Muster, "_let_go", let_go)


def nobody_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline.muster.Muster, "_wanting", lambda self: "")


def leaves_without_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification.rounds, "apply_leave", lambda state, record: state)


def leaving_forfeits(patch: pytest.MonkeyPatch) -> None:
    real = verification.membership.apply_leave

    def leave(state: Any, record: Any) -> Any:
        left = real(state, record)
        standing = verification.credits.revoked(left.standings[record.member])
        standings = {**left.standings, record.member: replace(standing, quarantined=False)}
        return replace(left, standings=standings)

    patch.setattr(verification.rounds, "apply_leave", leave)


def no_probation_for_newcomers(patch: pytest.MonkeyPatch) -> None:
    real = verification.membership.apply_enrol

    def enrol(state: Any, record: Any) -> Any:
        joined = real(state, record)
        trusted = replace(joined.standings[record.member], accepted=9)
        return replace(joined, standings={**joined.standings, record.member: trusted})

    patch.setattr(verification.rounds, "apply_enrol", enrol)


def restless(setting: Setting) -> bool:
    return setting.restless >= 0.3 and setting.config["credit"]["vest_rounds"] > 0


def soon_deserted(setting: Setting) -> bool:
    return setting.restless >= 0.3 and len(setting.of_role("contributor")) == 2


def growing(setting: Setting) -> bool:
    audit = setting.config["audit"]
    watched = audit["probation_rounds"] > 0 and audit["rate_ppm"] < 1_000_000
    return watched and any(
        p.kind is None and p.role == "contributor" and p.arrives == 1 for p in setting.people
    )


BROKEN_MEMBERSHIP: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Setting], bool], str]] = {
    "whoever is silent is sent away": (
        whoever_is_silent_is_sent_away,
        lambda s: bool(s.weather.partitions) and s.config["timing"]["mode"] == "measured",
        "membership",
    ),
    "nobody is waited for": (nobody_is_waited_for, soon_deserted, "membership"),
    "leaves have no effect": (leaves_without_effect, restless, "membership"),
    "who leaves forfeits": (leaving_forfeits, restless, "credit"),
    "newcomers are trusted": (no_probation_for_newcomers, growing, "draws"),
}
