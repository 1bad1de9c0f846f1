"""Levels 1 to 3 on runs whose audits lag: what a settlement says is worked out again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import coordinator as coordinator_module
from pipeline import lineage as lineage_module
from pipeline import replay_work
from pipeline.aggregation import Contribution
from pipeline.lineage import Lineage
from tests.pipeline.adversary_runs import Story
from tests.pipeline.late_runs import LIAR, SLOT, late_story, records_of, removed, settlements
from tests.pipeline.verify_tools import check
from verification import rounds, settling
from verification.encoding import blake3_digest
from verification.records import Removed, Settlement
from verification.state import RunState

CAPPED = {"credit": {"vest_rounds": 2, "operator_cap_ppm": 300_000}}
Lie = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return late_story(tmp_path_factory.mktemp("caught"), 1, "lazy", run={"rounds": 3}, **CAPPED)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_run_with_removals_holds_at_every_level(caught: Story, level: int) -> None:
    answer = check(caught.folder, level)
    assert (answer.failures, answer.ok, answer.complete) == ([], True, True)
    assert answer.weights_digest == caught.coordinator.state.base.weights


@pytest.mark.parametrize("lag", [1, 2])
def test_an_honest_run_holds_too_also_where_it_stopped(tmp_path: Path, lag: int) -> None:
    story = late_story(tmp_path, lag, run={"rounds": 3}, credit={"vest_rounds": 3})
    answer = check(story.folder, 3)
    assert (answer.failures, answer.complete, answer.recomputed) == ([], True, 12)


def test_level_3_recomputes_on_the_base_that_was_opened(
    caught: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work of the second round started from weights with the lie in them, of the third without."""
    bases: dict[int, set[bytes]] = {}
    true_work = replay_work.do_work

    def noting(job: Any, data: Any, open_: Any, entry: Any, weights: Any, *rest: Any) -> Any:
        bases.setdefault(open_.round, set()).add(
            b"".join(weights[name].tobytes() for name in sorted(weights))
        )
        return true_work(job, data, open_, entry, weights, *rest)

    monkeypatch.setattr(replay_work, "do_work", noting)
    answer = check(caught.folder, 3)
    assert answer.failures == []
    assert {round_: len(found) for round_, found in bases.items()} == {1: 1, 2: 1, 3: 1}
    (first,) = settlements(records_of(caught))[:1]
    opens = [turn.open for turn in caught.turns]
    assert opens[1].base.weights == caught.turns[0].closed.weights != first.settled.weights
    assert opens[2].base.weights == first.weights != caught.turns[1].closed.weights


def test_what_was_taken_out_is_not_recomputed_as_accepted(caught: Story) -> None:
    """Of the liar's work the fault is borne out; what followed was nobody's fault and counts for nothing."""
    gone = removed(records_of(caught))
    assert [item.reason for item in gone] == ["failed-audit", "follows"]
    answer = check(caught.folder, 3)
    accepted = sum(len(turn.accepted) for turn in caught.turns) - len(gone)
    assert accepted <= answer.recomputed <= accepted + 1


# --- a coordinator that lies about a settlement, and writes everything else as it follows from the lie ---


def other_settlement(change: Callable[[Settlement], Settlement]) -> Lie:
    def tell(patch: pytest.MonkeyPatch) -> None:
        true = settling.plan_settlement

        def lying(state: RunState, *rest: Any) -> Settlement:
            record = true(state, *rest)
            return change(record) if record.removed else record

        for module in (coordinator_module, rounds):
            patch.setattr(module, "plan_settlement", lying)

    return tell


def wrong_settled(part: str) -> Lie:
    other = blake3_digest(b"another checkpoint")
    return other_settlement(lambda r: replace(r, settled=replace(r.settled, **{part: other})))


def not_excised(patch: pytest.MonkeyPatch) -> None:
    """The item is removed in the log, and stays in the weights."""
    patch.setattr(Lineage, "settled_after", lambda self, *_: self.as_settled())


def only_from_now_on(patch: pytest.MonkeyPatch) -> None:
    """The turn is settled without it, and what came after is on the weights with it."""
    true = Lineage.settled_after

    def half(self: Lineage, folder: Any, state: RunState, gone: Any) -> Lineage:
        after = true(self, folder, state, gone)
        return replace(after, waiting=self.waiting[1:]) if gone and after.waiting else after

    patch.setattr(Lineage, "settled_after", half)


def weighed_as_before(patch: pytest.MonkeyPatch) -> None:
    """What is left keeps the weights that it had beside what was removed."""

    def lying(state: RunState, gone: Any) -> Any:
        left = settling.still_accepted(state, gone)
        for old, new in zip(state.waiting, left, strict=True):
            before = {item.slot: item.weight for item in old.accepted}
            yield replace(new, accepted=tuple(replace(i, weight=before[i.slot]) for i in new.accepted))

    patch.setattr(lineage_module, "still_accepted", lying)


def heavier_once(patch: pytest.MonkeyPatch) -> None:
    true = Lineage.excised

    def lying(self: Lineage, left: Any) -> Lineage:
        def more(work: list[Contribution]) -> list[Contribution]:
            return [replace(work[0], weight=work[0].weight + 1), *work[1:]] if work else work

        return true(self, [(more(work), rate) for work, rate in left])

    patch.setattr(Lineage, "excised", lying)


LEVEL_2: dict[str, Lie] = {
    "another settled checkpoint": wrong_settled("weights"),
    "another settled outer state": wrong_settled("outer"),
    "removed in the log alone": not_excised,
    "removed from one turn alone": only_from_now_on,
    "not weighed anew": weighed_as_before,
    "a weight too many": heavier_once,
}


@pytest.mark.parametrize("lie", LEVEL_2)
def test_level_2_finds_a_settlement_whose_weights_are_not_those_of_what_is_left(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        LEVEL_2[lie](patch)
        story = late_story(tmp_path, 1, "lazy", run={"rounds": 3}, **CAPPED)
    assert removed(records_of(story))
    assert check(story.folder, 1).failures == []
    answer = check(story.folder, 2)
    assert not answer.ok
    named = [f for f in answer.failures if f["where"].startswith("settlement of round 1, attempt 0")]
    assert named, answer.failures
    settled = {f["where"].endswith("settled") for f in named}
    assert settled == (
        {True} if lie.startswith("another") else {True, False} if "one turn" not in lie else {False}
    )


def fewer(found: tuple[Removed, ...]) -> tuple[Removed, ...]:
    return found[:-1]


def fault_forgiven(found: tuple[Removed, ...]) -> tuple[Removed, ...]:
    return found[1:]


def more(found: tuple[Removed, ...]) -> tuple[Removed, ...]:
    first = found[0]
    honest = replace(first, slot=1, member="c01", reason="unaudited", fault=False, evidence=None)
    return (honest, *found)


def later_more(found: tuple[Removed, ...]) -> tuple[Removed, ...]:
    return (found[0], replace(found[1], slot=1, member="c01"), *found[1:])


@pytest.mark.parametrize("change", [fewer, fault_forgiven, more, later_more], ids=lambda f: f.__name__)
def test_an_item_more_or_less_is_found_though_all_else_follows_from_it(
    change: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = settling.removals

    def lying(state: RunState, evidence: Any) -> tuple[Removed, ...]:
        found = true(state, evidence)
        return change(found) if len(found) > 1 else found

    with monkeypatch.context() as patch:
        for module in (settling, coordinator_module):
            patch.setattr(module, "removals", lying)
        story = late_story(tmp_path, 1, "lazy", run={"rounds": 3}, **CAPPED)
    answer = check(story.folder, 2)
    assert not answer.ok
    assert any("settlement of round 1" in f["where"] for f in answer.failures), answer.failures


# --- files ---


def test_a_checkpoint_with_what_was_taken_out_still_in_it_is_found(caught: Story, tmp_path: Path) -> None:
    """The checkpoint of the second round as its close named it, before the excision."""
    shutil.copytree(caught.folder, tmp_path / "run")
    shutil.copyfile(
        next((caught.folder / "checkpoints").glob("round-00003*.safetensors")),
        next((tmp_path / "run" / "checkpoints").glob("round-00002*.safetensors")),
    )
    answer = check(tmp_path / "run", 2)
    assert not answer.ok
    assert any("00002" in f["where"] or "round 2" in f["where"] for f in answer.failures)


def test_the_payload_of_removed_work_is_still_needed(caught: Story, tmp_path: Path) -> None:
    """Who works the run out again from its start aggregates it too, until it is taken out."""
    shutil.copytree(caught.folder, tmp_path / "run")
    digest = next(i.payload for i in caught.turns[0].closed.accepted if i.member == LIAR)
    (tmp_path / "run" / "payloads" / digest.removeprefix("blake3:")).unlink()
    answer = check(tmp_path / "run", 2)
    assert not answer.ok
    assert SLOT == 3
