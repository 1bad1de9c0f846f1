"""Runs whose audits lag: honest ones train what they would have, and who lies is taken out of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import auditor
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.rerun import rerun
from tests.pipeline.adversary_runs import Story
from tests.pipeline.late_runs import (
    ALWAYS,
    LIAR,
    SLOT,
    aggregated,
    late_config,
    late_story,
    places,
    records_of,
    removed,
    settlements,
)
from tests.tiny import tiny_run
from verification.errors import ProtocolError, UsageError
from verification.records import RoundClose, RoundOpen, SecondDraw, Settlement, Verdict


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Story]:
    """Honest runs by lag."""
    return {lag: late_story(tmp_path_factory.mktemp(f"lag{lag}"), lag) for lag in (0, 1, 2)}


def test_when_nobody_cheats_the_weights_are_those_without_a_lag(told: Mapping[int, Story]) -> None:
    closes = {lag: [turn.closed for turn in story.turns] for lag, story in told.items()}
    weights = {lag: [(close.weights, close.outer) for close in found] for lag, found in closes.items()}
    assert weights[0] == weights[1] == weights[2]
    assert len(set(weights[0])) == 4
    payloads = {lag: [[a.payload for a in c.accepted] for c in found] for lag, found in closes.items()}
    assert payloads[0] == payloads[1] == payloads[2]
    ends = {lag: story.coordinator.state for lag, story in told.items()}
    assert len({(end.base, end.tokens, end.cursor, end.queue) for end in ends.values()}) == 1
    for lag, story in told.items():
        found = settlements(records_of(story))
        assert len(found) == (4 if lag else 0)
        assert all((record.removed, record.missed) == ((), ()) for record in found)
        assert all(
            record.settled.weights == close.weights for record, close in zip(found, closes[lag], strict=False)
        )


def test_credit_is_the_same_in_the_end_as_without_a_lag(told: Mapping[int, Story]) -> None:
    standings = [
        {name: (s.earned, s.forfeited) for name, s in story.coordinator.state.standings.items()}
        for story in told.values()
    ]
    contributors = [{n: s for n, s in found.items() if n.startswith("c")} for found in standings]
    assert contributors[0] == contributors[1] == contributors[2]
    audits = [sum(earned for n, (earned, _) in found.items() if n.startswith("a")) for found in standings]
    assert audits[0] == audits[1] == audits[2] > 0


@pytest.mark.parametrize("lag", [1, 2])
def test_an_audit_is_not_waited_for_before_the_next_turns_work(told: Mapping[int, Story], lag: int) -> None:
    records = records_of(told[lag])
    at = {type(r): i for i, r in reversed(list(enumerate(records)))}
    first_verdict = at[Verdict]
    assert sum(isinstance(r, RoundClose) for r in records[:first_verdict]) == lag + 1
    assert isinstance(records[at[Settlement] + 1], RoundOpen)
    assert at[SecondDraw] < at[Settlement]


def test_checkpoints_are_kept_while_their_turns_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, set[int], frozenset[int]]] = []
    keep = Coordinator._keep_checkpoints

    def kept(self: Coordinator) -> None:
        keep(self)
        names = (self.desk.folder.path / "checkpoints").glob("round-*")
        found = {int(path.name[6:11]) for path in names}
        seen.append((self.state.rounds_done, found, self.state.bases_in_use))

    monkeypatch.setattr(Coordinator, "_keep_checkpoints", kept)
    tiny_run(tmp_path / "run", tmp_path / "home", late_config(2, checkpoint={"every": 100}))
    assert len(seen) == 8
    for done, found, used in seen:
        assert found == {0, done} | set(used)
    assert seen[-1][1] == {0, 4}


# --- who cheats ---


@pytest.fixture(scope="module", params=[("lazy", 1), ("state-smuggler", 1), ("wrong-data", 2), ("lazy", 2)])
def caught(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, int, Story]:
    kind, lag = request.param
    return kind, lag, late_story(tmp_path_factory.mktemp(f"{kind}{lag}"), lag, kind)


def first_lie(kind: str) -> int:
    return 2 if kind == "state-smuggler" else 1


def test_who_cheats_is_taken_out_with_all_it_did_since(caught: tuple[str, int, Story]) -> None:
    kind, lag, story = caught
    gone = removed(records_of(story))
    lie = min(item.round for item in gone)
    assert {item.member for item in gone} == {LIAR}
    assert [item.reason for item in gone] == ["failed-audit"] + ["follows"] * (len(gone) - 1)
    assert len(gone) == min(lag + 1, 4 - lie + 1)
    assert gone[0].fault
    assert gone[0].evidence
    assert all((item.fault, item.evidence) == (False, None) for item in gone[1:])
    last = story.coordinator.state
    assert last.standings[LIAR].quarantined
    # It counted until it was found, and the others did all along.
    assert LIAR in story.turns[lie - 1].accepted
    assert all(turn.accepted[:3] == ("c00", "c01", "c02") for turn in story.turns)
    assert LIAR not in story.turns[-1].accepted or lie + lag >= 4
    assert lie >= first_lie(kind) - 1


def test_the_weights_in_the_end_are_those_without_what_was_taken_out(caught: tuple[str, int, Story]) -> None:
    _, _, story = caught
    folder, records = RunFolder(story.folder), records_of(story)
    state, gone = story.coordinator.state, places(removed(records))
    assert state.base == aggregated(folder, records, gone)
    assert state.base != aggregated(folder, records, set())
    last = settlements(records)[-1]
    assert (last.weights, last.outer) == (last.settled.weights, last.settled.outer)
    found = story.coordinator.desk.aggregator
    assert found.digests(found.load(folder.checkpoint(4), folder.outer_file(4).read_bytes())) == state.base
    tokens = sum(a.tokens for turn in story.turns for a in turn.closed.accepted)
    lost = [a.tokens for t in story.turns for a in t.closed.accepted if (t.open.round, 0, a.slot) in gone]
    assert state.tokens == tokens - sum(lost)


def test_the_next_open_is_on_the_weights_without_it(caught: tuple[str, int, Story]) -> None:
    _, _, story = caught
    records = records_of(story)
    for i, record in enumerate(records[:-1]):
        following = records[i + 1]
        if isinstance(record, Settlement) and isinstance(following, RoundOpen):
            assert (following.base.weights, following.base.outer) == (record.weights, record.outer)


def test_the_evidence_of_a_late_fault_can_be_rerun_alone(caught: tuple[str, int, Story]) -> None:
    _, _, story = caught
    (case,) = (story.folder / "evidence").iterdir()
    answer = rerun(case)
    assert (answer.member, answer.slot, answer.reason) == (LIAR, SLOT, "failed-audit")
    assert answer.borne_out is True
    assert [(said.outcome, said.same) for said in answer.verdicts] == [("fail", True), ("fail", True)]


def test_a_malformed_payload_and_a_silent_one_are_the_closes_business(tmp_path: Path) -> None:
    for kind, reason in (("nan", "malformed-payload"), ("silent", "unrevealed"), ("dodger", "unserved")):
        story = late_story(tmp_path / kind, 1, kind, run={"rounds": 2})
        assert story.turns[0].rejected[LIAR] == reason
        assert removed(records_of(story)) == []
        assert story.coordinator.state.finished


def test_nobody_judges_and_everything_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest run whose auditors are all away: nothing stands, and the first weights are the last."""

    def nothing(*_: Any) -> Any:
        raise ProtocolError("away")

    monkeypatch.setattr(Auditor, "audit", nothing)
    story = late_story(tmp_path, 1, run={"rounds": 2})
    records = records_of(story)
    assert {item.reason for item in removed(records)} == {"unaudited", "follows"}
    assert len(removed(records)) == 8
    assert story.coordinator.state.base == story.manifest.initial
    assert story.coordinator.state.tokens == 0
    assert len(settlements(records)[0].missed) == 8


def test_a_disputed_contribution_goes_and_its_member_goes_on_from_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An auditor sees what is not there in one contribution of c01's; the next starts where that did."""
    real = auditor.recompute
    audits = Auditor.audit
    now: list[tuple[str, int, int]] = []

    def audit(self: Auditor, open_envelope: bytes, slot: int, *rest: Any) -> bytes:
        now[:] = [(self.name, self.opened(open_envelope).round, slot)]
        return audits(self, open_envelope, slot, *rest)

    def wrong(*args: Any) -> Any:
        found = real(*args)
        lies = now == [("a00", 2, 1)]
        return replace(found, loss_last=found.loss_last + 1) if lies else found

    monkeypatch.setattr(Auditor, "audit", audit)
    monkeypatch.setattr(auditor, "recompute", wrong)
    story = late_story(tmp_path, 1)
    gone = removed(records_of(story))
    assert [(i.round, i.member, i.reason) for i in gone] == [(2, "c01", "disputed"), (3, "c01", "follows")]
    starts = [turn.entry("c01").start_state for turn in story.turns]
    assert starts[3] == starts[1]
    assert len(set(starts[:3])) == 3
    assert story.turns[3].accepted == ("c00", "c01", "c02", "c03")
    folder, records = RunFolder(story.folder), records_of(story)
    assert story.coordinator.state.base == aggregated(folder, records, places(gone))


def test_what_was_begun_of_a_turns_audits_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int, int]] = []
    audits = Auditor.audit

    def audit(self: Auditor, open_envelope: bytes, slot: int, look: int, *rest: Any) -> bytes:
        asked.append((self.name, self.opened(open_envelope).round, slot, look))
        return audits(self, open_envelope, slot, look, *rest)

    monkeypatch.setattr(Auditor, "audit", audit)
    late_story(tmp_path, 1, run={"rounds": 3}, audit={**ALWAYS, "lag": 1, "segments": 1})
    assert len(asked) == len(set(asked)) == 2 * 4 * 3


def test_states_and_traces_are_served_in_the_turn_and_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int]] = []
    for verb in ("serve_state", "serve_trace"):
        real = getattr(Contributor, verb)

        def noted(self: Any, turn: int, *rest: Any, real: Any = real, verb: str = verb) -> Any:
            asked.append((verb, self.name, turn))
            return real(self, turn, *rest)

        monkeypatch.setattr(Contributor, verb, noted)
    late_story(
        tmp_path, 2, run={"rounds": 3}, state={"policy": "reset", "every": 2},
        train={"steps": [4, 4, 4, 4]}, audit={**ALWAYS, "lag": 2, "segments": 1},
    )  # fmt: skip
    assert len(asked) == len(set(asked)) == 2 * 4 * 3


def test_a_lag_above_what_vests_is_no_configuration() -> None:
    with pytest.raises(UsageError, match=r"vest_rounds must be above audit\.lag"):
        late_config(2, credit={"vest_rounds": 2})
    assert late_config(2, credit={"vest_rounds": 3}).audit.lag == 2
