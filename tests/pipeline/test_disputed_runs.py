"""Disputes in whole runs: who lies is overruled and gone, who is honest keeps its round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.adversaries import Adversary
from pipeline.auditing import Hearing
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.evidence import read_evidence
from pipeline.folder import RunFolder
from pipeline.records_table import contribution_rows
from pipeline.report import read_story
from pipeline.report_audits import auditor_counts
from pipeline.report_page import page
from pipeline.rerun import _words, rerun
from pipeline.summary import show_rejections
from pipeline.verify import VerifyOptions, verify
from tests.pipeline.adversary_runs import Story, turns_of
from tests.pipeline.dispute_runs import TWICE, accuse, disputed_run, first_accuse, overruled, stamp_for
from tests.tiny import make_run, run_to_end, tiny_config
from verification.errors import BarnraiseError, ProtocolError
from verification.judge import Recomputed
from verification.records import Appeal, FirstLooks, RoundClose, SecondDraw, Settlement, Verdict


def records_of(story: Story) -> list[Any]:
    return story.coordinator.desk.ledger.records()


def check(story: Story, level: Any = 3) -> Any:
    return verify(VerifyOptions(story.folder, level=level), lambda *_: None)


def quarantined(story: Story) -> set[str]:
    return {name for name, one in story.coordinator.state.standings.items() if one.quarantined}


@pytest.fixture(scope="module")
def accused(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """a00 accuses everybody."""
    return disputed_run(tmp_path_factory.mktemp("accused"), {"a00": accuse})


def test_an_accuser_is_overruled_by_a_third_and_the_accused_keep_their_round(accused: Story) -> None:
    first, second = accused.turns
    assert first.rejected == second.rejected == {}
    assert len(first.accepted) == len(second.accepted) == 4
    lines = overruled(accused)
    assert {line.auditor for line in lines} == {"a00"}
    assert quarantined(accused) == {"a00"}
    assert [entry.member for entry in second.open.auditors] == ["a01", "a02"]
    thirds = [verdict for verdict in first.verdicts if verdict.look == 3]
    assert len(thirds) == len(lines) > 0
    standing = accused.coordinator.state.standings["a00"]
    assert (standing.vested, standing.pending) == (0, 0)


def test_first_verdicts_are_shown_when_the_second_ones_are_given(accused: Story) -> None:
    kinds = [type(record) for record in records_of(accused)]
    first = kinds.index(Verdict)
    assert kinds.index(FirstLooks) < kinds.index(SecondDraw) < first
    looks = next(record for record in records_of(accused) if isinstance(record, FirstLooks)).looks
    verdicts = {v.slot: v for v in accused.turns[0].verdicts if v.look == 1}
    assert {look.slot: look.verdict for look in looks} == {s: v.digest for s, v in verdicts.items()}


def test_the_run_holds_and_the_case_shows_who_lied(accused: Story) -> None:
    answer = check(accused)
    assert (answer.ok, answer.failures) == (True, [])
    cases = sorted((accused.folder / "evidence").iterdir())
    assert len(cases) == len(overruled(accused))
    for case in cases:
        told = rerun(case)
        assert (told.reason, told.differs, told.borne_out) == ("overruled", (), True)
        assert {said.auditor: said.same for said in told.verdicts} == {
            "a00": False, "a01": True, "a02": True,
        }  # fmt: skip
        words = "\n".join(_words(told))
        assert "accepted, an auditor overruled" in words
        assert "a00: fail, differs in payload: NOT what this machine finds" in words


def test_a_case_of_an_overruled_auditor_without_its_third_verdict_is_none(
    accused: Story, tmp_path: Path
) -> None:
    source = min((accused.folder / "evidence").iterdir())
    case = Path(shutil.copytree(source, tmp_path / "case"))
    value = json.loads((case / "case.json").read_bytes())
    del value["files"]["verdict-3"]
    (case / "case.json").write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
    with pytest.raises(ProtocolError, match="reason is not what its verdicts come to"):
        read_evidence(case)


def test_people_see_who_was_overruled(accused: Story) -> None:
    console = Console(record=True, width=200)
    show_rejections(console, records_of(accused), {})
    assert "overruled a00: round 1" in console.export_text()
    html = page(read_story(RunFolder(accused.folder)))
    assert ">a00</td>" in html
    assert "differs in payload or state" in html
    rows = contribution_rows(records_of(accused), 1)
    earned = {row["contributor"]: row["credit"] for row in rows if row["role"] == "auditor"}
    assert earned["a00"] == 0
    assert min(earned["a01"], earned["a02"]) > 0


def test_a_stamp_and_the_cheat_that_it_passes_both_fall(tmp_path: Path) -> None:
    told: dict[tuple[int, int], Recomputed] = {}
    story = disputed_run(
        tmp_path, {"a01": stamp_for(["c03"], told)}, {"c03": "lazy"}, told=told, audit={"segments": 0}
    )
    found = {turn.open.round: turn.rejected for turn in story.turns}
    assert {"c03": "failed-audit"} in found.values()
    assert quarantined(story) >= {"c03"}
    stamped = [
        v
        for turn in story.turns
        for v in turn.verdicts
        if (v.auditor, v.outcome, v.slot) == ("a01", "pass", 3)
    ]
    if stamped:  # the lot decides whether it is asked in the turn in which the cheat is found
        assert [(line.auditor, line.slot) for line in overruled(story)] == [("a01", 3)]
        assert "a01" in quarantined(story)
    assert check(story).ok


@pytest.mark.parametrize(
    ("auditors", "liars", "outcomes", "decided"),
    [
        (2, 2, "ff", "failed-audit"),  # nobody is left to ask
        (3, 2, "ffp", "failed-audit"),
        (4, 2, "ffpp", "disputed"),
        (5, 2, "ffppp", None),
        (5, 3, "fff", "failed-audit"),
    ],
)
def test_against_two_of_one_mind_a_contributor_appeals(
    tmp_path: Path, auditors: int, liars: int, outcomes: str, decided: str | None
) -> None:
    with first_accuse(2, liars):
        story = disputed_run(tmp_path, {}, auditors=auditors, run={"rounds": 1})
    (turn,) = story.turns
    appeals = [record for record in records_of(story) if isinstance(record, Appeal)]
    assert [record.slot for record in appeals] == ([2] if auditors > 2 else [])
    looks = sorted((v.look, v.outcome[0], v.auditor) for v in turn.verdicts if v.slot == 2)
    assert "".join(outcome for _, outcome, _ in looks) == outcomes
    assert turn.rejected == ({"c02": decided} if decided else {})
    false = {"failed-audit": {name for _, outcome, name in looks if outcome == "p"}, "disputed": set()}
    wrong = {None: {name for _, outcome, name in looks if outcome == "f"}, **false}[decided]
    assert {line.auditor for line in overruled(story)} == wrong
    assert quarantined(story) == wrong | ({"c02"} if decided == "failed-audit" else set())
    # Where liars are the majority nothing in the run can know it; whoever recomputes does.
    lied = {f"the verdict of {name} was not computed" for _, outcome, name in looks if outcome == "f"}
    honest = {f"the verdict of {name} was overruled although it was computed" for name in wrong}
    convicted = "a contribution was rejected as a fault although it was computed as claimed"
    known = {None: set(), "disputed": lied, "failed-audit": {convicted} | lied | honest}[decided]
    assert {failure["what"] for failure in check(story).failures} == known


def test_late_audits_overrule_too(tmp_path: Path) -> None:
    story = disputed_run(
        tmp_path, {"a00": accuse}, audit={"lag": 1}, credit={"vest_rounds": 2}, run={"rounds": 3}
    )
    settled = [record for record in records_of(story) if isinstance(record, Settlement)]
    assert all(record.removed == () for record in settled)
    assert {line.auditor for line in overruled(story)} == {"a00"}
    assert all(r.overruled == () for r in records_of(story) if isinstance(r, RoundClose))
    assert quarantined(story) == {"a00"}
    answer = check(story)
    assert (answer.ok, answer.failures) == (True, [])


def test_who_is_asked_late_finds_no_verdict_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a second auditor nor a third one has anything to copy."""
    seen: list[tuple[int, int]] = []
    asks = Hearing._verdicts

    def asked(self: Hearing, turn: Any, look: int, orders: Any, *rest: Any) -> Any:
        logged = [r for r in self.desk.ledger.records() if isinstance(r, Verdict)]
        seen.extend((look, len(logged)) for _ in orders)
        return asks(self, turn, look, orders, *rest)

    monkeypatch.setattr(Hearing, "_verdicts", asked)
    disputed_run(tmp_path, {"a00": accuse}, run={"rounds": 1})
    assert {look for look, _ in seen} == {1, 2, 3}
    assert {logged for _, logged in seen} == {0}


@pytest.mark.parametrize("step", ["second_looks", "disputes"])
def test_after_a_crash_nobody_needs_what_a_cheat_served_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It refuses now, but what the auditors failed on was kept, though no verdict had reached the log."""
    folders = {"folder": tmp_path / "run", "home": tmp_path / "home"}
    audit = {**TWICE, "auditors": 3}
    make_run(folders["folder"], folders["home"], tiny_config(run={"rounds": 1}, audit=audit))
    with monkeypatch.context() as here:

        def dies(self: Hearing) -> None:
            raise StoppedError

        here.setattr(Hearing, step, dies)
        with pytest.raises(StoppedError):
            run_to_end(**folders, drills={"c03": "lazy"})

    def refuses(self: Contributor, *_: Any) -> bytes:
        raise ProtocolError("not any more")

    serves = Contributor.serve_state
    monkeypatch.setattr(Adversary, "serve_state", refuses)
    monkeypatch.setattr(
        Contributor, "serve_state", lambda self, turn: (refuses if self.name == "c03" else serves)(self, turn)
    )
    coordinator = run_to_end(**folders, drills={"c03": "lazy"})
    (turn,) = turns_of(coordinator.desk.ledger.records())
    assert turn.rejected == {"c03": "failed-audit"}
    assert turn.closed.missed == ()


def test_of_work_that_fell_with_earlier_work_nobody_missed_a_call(tmp_path: Path) -> None:
    story = disputed_run(
        tmp_path, {}, {"c03": "lazy"}, audit={"lag": 1}, credit={"vest_rounds": 2}, run={"rounds": 3}
    )
    told = [record for record in records_of(story) if isinstance(record, RoundClose | Settlement)]
    counts = auditor_counts(("a00", "a01", "a02"), read_story(RunFolder(story.folder)).turns)
    assert any(item.reason == "follows" for r in told if isinstance(r, Settlement) for item in r.removed)
    assert sum(count.missed for count in counts) == sum(len(record.missed) for record in told) == 0


class StoppedError(Exception):
    pass


def stopped_after_the_seals(root: Path, patch: pytest.MonkeyPatch) -> Mapping[str, Path]:
    """A run whose coordinator dies with the first verdicts under seal."""
    audit = {"probation_rounds": 0, "rate_ppm": 1_000_000, "second_look_ppm": 0}
    folders = {"folder": root / "run", "home": root / "home"}
    make_run(folders["folder"], folders["home"], tiny_config(run={"rounds": 1}, audit=audit))
    with patch.context() as here:

        def dies(self: Hearing) -> None:
            raise StoppedError

        here.setattr(Hearing, "second_looks", dies)
        with pytest.raises(StoppedError):
            run_to_end(**folders)
    return folders


def test_sealed_verdicts_are_asked_for_again_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = stopped_after_the_seals(tmp_path, monkeypatch)
    coordinator = run_to_end(**folders)
    records = coordinator.desk.ledger.records()
    (seals,) = [record for record in records if isinstance(record, FirstLooks)]
    (turn,) = turns_of(records)
    assert {look.verdict for look in seals.looks} == {verdict.digest for verdict in turn.verdicts}
    assert len(seals.looks) == 4
    assert (turn.rejected, turn.closed.missed) == ({}, ())


@pytest.mark.parametrize("how", ["gone", "other"])
def test_a_sealed_verdict_that_cannot_be_had_again_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folders = stopped_after_the_seals(tmp_path, monkeypatch)
    audits = Auditor.audit

    def again(self: Auditor, open_envelope: bytes, slot: int, *rest: Any) -> bytes:
        if slot == 2 and how == "gone":
            raise ProtocolError("no answer")
        return audits(self, open_envelope, slot, *rest)

    def computed(self: Auditor, case: Any, audit: Any, opened: Any) -> Recomputed:
        found = computes(self, case, audit, opened)
        return accuse(case, audit, found) if (case.entry.slot, how) == (2, "other") else found

    computes = Auditor.compute
    monkeypatch.setattr(Auditor, "audit", again)
    monkeypatch.setattr(Auditor, "compute", computed)
    coordinator = run_to_end(**folders)
    records = coordinator.desk.ledger.records()
    (seals,) = [record for record in records if isinstance(record, FirstLooks)]
    (turn,) = turns_of(records)
    (sealed,) = [look for look in seals.looks if look.slot == 2]
    assert turn.rejected == {"c02": "unaudited"}
    assert (sealed.auditor, 1, 2) in {(m.auditor, m.look, m.slot) for m in turn.closed.missed}
    assert list((folders["folder"] / "evidence").glob("*")) == []
    answer = verify(VerifyOptions(folders["folder"], level=3), lambda *_: None)
    assert (answer.ok, answer.failures) == (True, [])


def test_a_contributor_appeals_against_nothing_but_two_failed_verdicts_on_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is shown comes from the coordinator, which may show anything."""
    seen: list[tuple[Contributor, int, list[bytes]]] = []
    appeals = Contributor.appeal

    def appealing(self: Contributor, turn: int, verdicts: list[bytes]) -> bytes:
        seen.append((self, turn, verdicts))
        one, two = verdicts
        for odd in ([], [one], [two, one], [one, one], [one, two, two], None, b"", [one, b"x"], [1, 2]):
            with pytest.raises(BarnraiseError):
                appeals(self, turn, odd)  # type: ignore[arg-type]
        with pytest.raises(BarnraiseError):
            appeals(self, turn + 1, verdicts)
        return appeals(self, turn, verdicts)

    monkeypatch.setattr(Contributor, "appeal", appealing)
    with first_accuse(2, 2):
        story = disputed_run(tmp_path, {}, auditors=3, run={"rounds": 1})
    assert len(seen) == sum(isinstance(record, Appeal) for record in records_of(story)) == 1
