"""The product broken in one place on purpose: playing seeds finds each, by the invariant that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

import pipeline.auditor
import pipeline.coordinator
import pipeline.ledger
import pipeline.lineage
import pipeline.vault
import verification.credits
import verification.judge
import verification.lottery
import verification.plans
import verification.rounds
import verification.settling
import verification.tolerance
from pipeline.trace import OpenedTrace, read_trace
from pipeline.work import Job
from tests.simulator.setting import Setting, draw
from tests.simulator.tally import run_seed
from verification.records import Opening


def no_journal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline.ledger.Journal, "write", lambda *_: None)


def word_in_memory(patch: pytest.MonkeyPatch) -> None:
    def commit(vault: Any, turn: int, entry: Any) -> None:
        vault.__dict__.setdefault("words", {})[turn] = entry

    patch.setattr(pipeline.vault.Vault, "commit", commit)
    patch.setattr(
        pipeline.vault.Vault, "committed", lambda vault, turn: vault.__dict__.get("words", {}).get(turn)
    )


def settling(before: str, after: str | None) -> Callable[[pytest.MonkeyPatch], None]:
    def broken(patch: pytest.MonkeyPatch) -> None:
        real = verification.judge._reason

        def reason(*args: Any) -> str | None:
            found = real(*args)
            return after if found == before else found

        patch.setattr(verification.judge, "_reason", reason)

    return broken


def no_forfeit(patch: pytest.MonkeyPatch) -> None:
    real = verification.credits._vest
    patch.setattr(
        verification.credits, "_vest", lambda standing, due: real(replace(standing, quarantined=False), due)
    )


def first_segments(patch: pytest.MonkeyPatch) -> None:
    """Whoever knows the manifest knows which segments nobody looks into."""
    patch.setattr(
        verification.plans,
        "draw_segments",
        lambda seed, slot, wanted, count: tuple(range(min(wanted, count))),
    )


def traces_unchecked_by_the_coordinator(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline.coordinator, "read_trace", lambda *_: None)


def traces_unchecked(patch: pytest.MonkeyPatch) -> None:
    """Neither against the root nor against the leaf hashes: what can be read is believed."""
    traces_unchecked_by_the_coordinator(patch)

    def read(job: Job, opening: Opening, steps: int, segments: Any, data: bytes) -> OpenedTrace:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr("pipeline.trace.trace_root", lambda hashes: opening.trace_root)
            inner.setattr("pipeline.trace.trace_leaf_hash", _Any)
            return read_trace(job, opening, steps, segments, data)

    patch.setattr(pipeline.auditor, "read_trace", read)


class _Any:
    """A leaf hash that is any."""

    def __init__(self, leaf: str) -> None:
        del leaf

    def hex(self) -> Any:
        return mock.ANY


def any_class_is_eligible(patch: pytest.MonkeyPatch) -> None:
    def anyone(tolerances: Any, entry: Any, auditors: Any) -> tuple[Any, ...]:
        del tolerances
        return tuple(auditor for auditor in auditors if auditor.operator != entry.operator)

    for module in (verification.lottery, verification.judge, verification.tolerance):
        patch.setattr(module, "eligible", anyone)


def no_cap_on_tolerance(patch: pytest.MonkeyPatch) -> None:
    real = verification.plans.capped_weights
    patch.setattr(verification.plans, "capped_weights", lambda work, cap_ppm, *_: real(work, cap_ppm))


def deviations_never_too_far(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification.judge.Audit, "too_far", lambda *_: False)


def deviations_never_compared(patch: pytest.MonkeyPatch) -> None:
    real = verification.judge.alike
    patch.setattr(
        verification.judge,
        "alike",
        lambda first, second: real(first, replace(second, deviations=first.deviations)),
    )


def nothing_follows(patch: pytest.MonkeyPatch) -> None:
    """What was built on a state that nobody stands for stays."""
    real = verification.settling.removals

    def removals(state: Any, evidence: Any) -> tuple[Any, ...]:
        return tuple(item for item in real(state, evidence) if item.reason != verification.settling.FOLLOWS)

    for module in (verification.settling, pipeline.coordinator):
        patch.setattr(module, "removals", removals)


def lineage_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification.rounds, "lineage_settled", lambda state, removed: dict(state.lineage))


def removed_work_stays_paid(patch: pytest.MonkeyPatch) -> None:
    real = verification.settling.after_settlement
    patch.setattr(
        verification.settling,
        "after_settlement",
        lambda standings, result: real(standings, replace(result, removed=())),
    )


def removed_work_stays_in_the_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline.lineage, "still_accepted", lambda state, removed: state.waiting)


def weighed_once_for_all(patch: pytest.MonkeyPatch) -> None:
    """What is left keeps the weight that it had beside what was taken out."""

    def without(state: Any, waiting: Any, gone: Any) -> Any:
        del state
        place = (waiting.turn.open.round, waiting.turn.open.attempt)
        left = tuple(item for item in waiting.accepted if (*place, item.slot) not in gone)
        return replace(waiting, accepted=left)

    patch.setattr(verification.settling, "_without", without)


def late(setting: Setting) -> bool:
    audit = setting.config["audit"]
    liars = {"relapse", "launder", "false-payload", "false-state"}
    return bool(
        audit.get("lag")
        and not setting.witnesses
        and audit["rate_ppm"] >= 500_000
        and len(setting.of_role("auditor")) >= 2
        and liars & {person.kind for person in setting.people}
    )


def late_and_capped(setting: Setting) -> bool:
    return late(setting) and bool(setting.config["credit"]["operator_cap_ppm"] == 300_000)


def tolerant(setting: Setting) -> bool:
    audit, auditors = setting.config["audit"], setting.of_role("auditor")
    return "tolerance" in audit and audit["rate_ppm"] >= 500_000 and len(auditors) >= 2


def with_kinds(*kinds: str) -> Callable[[Setting], bool]:
    return lambda setting: tolerant(setting) and bool({p.kind for p in setting.people} & set(kinds))


def some_segments(setting: Setting) -> bool:
    audit = setting.config["audit"]
    return bool(audit["segments"] == 1 and audit["rate_ppm"] >= 500_000 and audit["probation_rounds"] < 2)


def opened_otherwise(setting: Setting) -> bool:
    kinds = {person.kind for person in setting.people}
    return some_segments(setting) and bool(kinds & {"other-leaves", "no-trace", "fickle-trace"})


def rich_enough(setting: Setting) -> bool:
    honest = [person for person in setting.of_role("auditor") if person.kind is None]
    return len(honest) == 3 and any(person.kind == "false-payload" for person in setting.people)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Setting], bool], str]] = {
    "no journal": (no_journal, lambda s: s.weather.coordinator_crash > 0.5, "said twice"),
    "a word kept in memory": (word_in_memory, lambda s: s.weather.member_crash > 0.2, "honest keys"),
    "unaudited work accepted": (
        settling("unaudited", None),
        lambda s: any(p.kind == "silent" for p in s.of_role("auditor")),
        "unaudited work",
    ),
    "one verdict convicts": (
        settling("unconfirmed", "failed-audit"),
        lambda s: any(p.kind == "accuse" for p in s.people),
        "honest keys",
    ),
    "a conviction is a pass": (
        settling("failed-audit", None),
        rich_enough,
        "false work",
    ),
    "segments not by the seed": (first_segments, some_segments, "draws"),
    "traces not checked by the coordinator": (
        traces_unchecked_by_the_coordinator,
        opened_otherwise,
        "honest keys",
    ),
    "traces not checked": (traces_unchecked, opened_otherwise, "false work"),
    "auditors of any class are eligible": (any_class_is_eligible, tolerant, "tolerance"),
    "weight on tolerance is not capped": (no_cap_on_tolerance, tolerant, "tolerance"),
    "deviations are not looked at": (deviations_never_too_far, with_kinds("false-step"), "false work"),
    "deviations are not compared": (deviations_never_compared, with_kinds("stamp"), "unaudited work"),
    "what follows stays accepted": (nothing_follows, late, "removed"),
    "the lineage is not rolled back": (lineage_stays, late, "lineage"),
    "removed work stays paid": (removed_work_stays_paid, late, "credit"),
    "removed work stays in the weights": (removed_work_stays_in_the_weights, late, "weights"),
    "what is left is not weighed anew": (weighed_once_for_all, late_and_capped, "weights"),
    "nothing is forfeited": (no_forfeit, lambda s: s.config["credit"]["strikes"] == 1, "credit"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_product_is_found(name: str) -> None:
    broken, promising, invariant = BROKEN[name]
    found: list[str] = []
    tried = 0
    for seed in (seed for seed in range(50_000, 60_000) if promising(draw(seed))):
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            found = run_seed(seed).violations
        tried += 1
        if any(text.startswith(f"[{invariant}]") for text in found) or tried == 60:
            break
    assert any(text.startswith(f"[{invariant}]") for text in found), tried
