"""The product broken in one place on purpose: playing seeds finds each, by the invariant that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

import pipeline.auditing
import pipeline.auditor
import pipeline.coordinator
import pipeline.crew
import pipeline.ledger
import pipeline.lineage
import pipeline.vault
import verification.credits
import verification.disputes
import verification.envelope
import verification.intake
import verification.judge
import verification.looks
import verification.lottery
import verification.plans
import verification.records
import verification.rounds
import verification.sealing
import verification.settling
import verification.tolerance
from pipeline.trace import OpenedTrace, read_trace
from pipeline.work import Job
from tests.simulator.broken_membership import BROKEN_MEMBERSHIP
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
    patch.setattr(pipeline.auditing, "read_trace", lambda *_: None)


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
    patch.setattr(verification.disputes, "_kin", lambda verdict: (verdict.numerics_class, ()))


def sketches_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification.judge.Audit, "is_hollow", lambda *_: False)


def all_starts_at_once(patch: pytest.MonkeyPatch) -> None:
    for module in (pipeline.auditing, pipeline.auditor):
        patch.setattr(module, "waves", lambda segments: [tuple(segments)])


def nobody_overruled(patch: pytest.MonkeyPatch) -> None:
    for module in (verification.plans, verification.settling, pipeline.coordinator):
        patch.setattr(module, "overruled_auditors", lambda *_: ())


def whoever_differs_is_overruled(patch: pytest.MonkeyPatch) -> None:
    """As soon as two verdicts contradict one another, the second one is false."""

    def overruled(verdicts: Any) -> tuple[Any, ...]:
        first = verification.disputes.side_of(verdicts[0])
        return tuple(v for v in verdicts if verification.disputes.side_of(v) != first)

    patch.setattr(verification.looks, "overruled", overruled)


def first_verdicts_at_once(patch: pytest.MonkeyPatch) -> None:
    """They are logged before the second draw, as they used to be."""
    hearing = pipeline.auditing.Hearing
    real, expect = hearing.first_looks, verification.rounds._expect

    def first_looks(self: Any) -> None:
        real(self)
        turn = self._state.open_turn
        if turn.first_looks and not turn.verdicts and not turn.second:
            found = self._held_of(turn).first
            if found:
                self.desk.ledger.append([*found.values()])

    def second_looks(self: Any) -> None:
        turn = self._state.open_turn
        if turn.second and not any(look > 1 for _, look in turn.verdicts):
            orders = {item.slot: item.auditors for item in turn.second.looks}
            found = self._verdicts(turn, 2, orders)
            if found:
                self.desk.ledger.append([*found.values()])

    def believed(holds: bool, record: Any) -> None:
        expect(holds or record.kind == "verdict", record)

    patch.setattr(hearing, "first_looks", first_looks)
    patch.setattr(hearing, "second_looks", second_looks)
    patch.setattr(verification.rounds, "_expect", believed)


def seals_not_kept(patch: pytest.MonkeyPatch) -> None:
    """After a crash whatever the auditor then signs is logged as what it had sealed."""

    def unsealed(self: Any, turn: Any) -> list[Any]:
        held = self._held_of(turn)
        sealed = {look.slot: look for look in turn.first_looks.looks} if turn.first_looks else {}
        lost = {slot: (look.auditor,) for slot, look in sealed.items() if slot not in held.first}
        held.first |= self._verdicts(turn, 1, lost)
        return [entry for slot, entry in sorted(held.first.items()) if slot in sealed]

    expect = verification.rounds._expect
    patch.setattr(pipeline.auditing.Hearing, "_unsealed", unsealed)
    patch.setattr(
        verification.rounds,
        "_expect",
        lambda holds, record: expect(holds or getattr(record, "look", 0) == 1, record),
    )


def one_pass_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A contribution that somebody passed is accepted, whoever else failed it."""
    real = verification.judge.reason_by_verdicts

    def reason(turn: Any, slot: int) -> str | None:
        found = real(turn, slot)
        passed = any(v.outcome == "pass" for v in verification.judge.verdicts_on(turn, slot).values())
        return None if found == "disputed" and passed else found

    patch.setattr(verification.judge, "reason_by_verdicts", reason)


def operators_asked_again(patch: pytest.MonkeyPatch) -> None:
    """Who gave a verdict is asked again, before anybody else."""

    def left(turn: Any, drawn: Any, given: Any, looks: Any) -> tuple[str, ...]:
        del turn, looks
        names = [verdict.auditor for verdict in given]
        return (*names[:1], *(name for name in drawn if name not in names))

    patch.setattr(verification.looks, "_left", left)


def two_looks_are_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification.looks, "takes_another", lambda *_, **__: False)


def ties_go_to_the_first(patch: pytest.MonkeyPatch) -> None:
    """Of two sides with as many voices, the one that spoke first prevails."""

    def prevailing(verdicts: Any) -> Any:
        ranked = verification.disputes._ranked(verdicts)
        return ranked[0][0] if ranked and ranked[0][1] >= 2 else None

    for module in (verification.disputes, verification.judge):
        patch.setattr(module, "prevailing", prevailing)


def nobody_may_appeal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline.auditing.Hearing, "_appeals", lambda *_: [])


def any_appeal_will_do(patch: pytest.MonkeyPatch) -> None:
    """What somebody sends in the place of an appeal is logged as long as it is one."""

    def check(turn: Any, slot: int, data: bytes) -> Any:
        del slot
        sealed = verification.envelope.open_envelope(verification.intake.as_bytes(data))
        return verification.sealing.open_record(verification.records.Appeal, data, sealed.keyid)

    expect = verification.rounds._expect
    patch.setattr(pipeline.crew, "check_appeal", check)
    patch.setattr(
        verification.rounds,
        "_expect",
        lambda holds, record: expect(holds or record.kind == "appeal", record),
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


def tolerant_whole(setting: Setting) -> bool:
    return tolerant(setting) and setting.config["audit"]["segments"] == 0


def with_kinds(*kinds: str) -> Callable[[Setting], bool]:
    return lambda setting: tolerant(setting) and bool({p.kind for p in setting.people} & set(kinds))


def contested(setting: Setting) -> bool:
    """Two of one mind, and enough others to decide between them and a contributor."""
    audit, judges = setting.config["audit"], setting.of_role("auditor")
    return (
        len(judges) >= 4
        and audit["rate_ppm"] >= 500_000
        and audit["second_look_ppm"] == 1_000_000
        and sum(person.kind == "collude" for person in judges) >= 2
        and sum(person.kind is None for person in judges) >= 2
    )


def contested_and_disturbed(setting: Setting) -> bool:
    kinds = [person.kind for person in setting.of_role("auditor")]
    return "fickle" in kinds and setting.weather.coordinator_crash > 0.5


def contested_by(kind: str) -> Callable[[Setting], bool]:
    return lambda setting: (
        len(setting.of_role("auditor")) >= 4 and any(p.kind == kind for p in setting.people)
    )


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
    "deviations are not compared": (deviations_never_compared, with_kinds("invent"), "unaudited work"),
    "sketches are not compared": (sketches_not_compared, with_kinds("stamp"), "tolerance"),
    "all starts are served at once": (all_starts_at_once, tolerant_whole, "tolerance"),
    "what follows stays accepted": (nothing_follows, late, "removed"),
    "the lineage is not rolled back": (lineage_stays, late, "lineage"),
    "removed work stays paid": (removed_work_stays_paid, late, "credit"),
    "removed work stays in the weights": (removed_work_stays_in_the_weights, late, "weights"),
    "what is left is not weighed anew": (weighed_once_for_all, late_and_capped, "weights"),
    "nobody is overruled": (nobody_overruled, contested, "looks"),
    "whoever contradicts is overruled": (whoever_differs_is_overruled, contested, "honest keys"),
    "first verdicts are logged at once": (first_verdicts_at_once, contested, "seals"),
    "seals are not kept": (seals_not_kept, contested_and_disturbed, "seals"),
    "one pass is enough": (one_pass_is_enough, contested, "unaudited work"),
    "an operator is asked twice": (operators_asked_again, contested, "looks"),
    "two looks are enough": (two_looks_are_enough, contested, "looks"),
    "a tie is no tie": (ties_go_to_the_first, contested, "looks"),
    "nobody may appeal": (nobody_may_appeal, contested, "appeals"),
    "any appeal will do": (any_appeal_will_do, contested_by("odd-appeal"), "appeals"),
    **BROKEN_MEMBERSHIP,
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
