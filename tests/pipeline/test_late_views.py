"""What people see of late removals: the table, the lines of `train`, the page, the summary."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.monitor import Bars, turn_row
from pipeline.records_table import contribution_rows, read_contributions
from pipeline.report import read_story
from pipeline.report_page import page
from pipeline.run import View, continue_run
from pipeline.summary import show_rejections, show_summary
from tests.pipeline.adversary_runs import Story
from tests.pipeline.late_runs import LIAR, late_config, late_story, records_of, removed
from tests.tiny import make_run, quiet
from tests.verification.fake_run import LATE, enrolments
from tests.verification.late_play import ALL, DISPUTED, LatePlay, late_played, late_start
from verification.records import RoundClose, Settlement, Verdict
from verification.state import Turn


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return late_story(tmp_path_factory.mktemp("views"), 1, "lazy", run={"rounds": 3})


def test_the_table_has_each_contribution_once_as_it_was_settled() -> None:
    play = late_played([{1: DISPUTED, 3: LATE}, {}, {}, {}], late_start(1, audit=ALL))
    records = [play.state.manifest, *enrolments(play.state.run), *play.records]
    rows = contribution_rows(records, 100)
    work = {(r["round"], r["contributor"]): r for r in rows if r["role"] == "contributor"}
    assert len(work) == 4 * 4 == sum(r["role"] == "contributor" for r in rows)
    found = {place: row["reason"] for place, row in work.items() if row["reason"]}
    assert found == {(1, "c1"): "disputed", (2, "c1"): "follows", (1, "c3"): "late"}
    assert all((row["credit"] == 0) == bool(row["reason"]) for row in work.values())
    assert sum(row["credit"] for row in work.values()) == play.state.tokens
    audits = [(r["round"], r["contributor"], r["credit"]) for r in rows if r["role"] == "auditor"]
    assert len(audits) == sum(isinstance(r, Verdict) for r in play.records)
    earned = {name: s.earned for name, s in play.state.standings.items()}
    for name in ("a0", "a1", "a2"):
        assert sum(credit for _, who, credit in audits if who == name) == earned[name]
    rounds = [row["round"] for row in rows]
    assert rounds == sorted(rounds)


def test_turns_that_wait_are_not_in_the_table_yet() -> None:
    play = late_played([{}, {}], late_start(2, audit=ALL), to_the_end=False)
    records = [play.state.manifest, *enrolments(play.state.run), *play.records]
    assert contribution_rows(records, 100) == []


def test_a_turns_line_has_the_audits_and_removals_that_were_settled_in_it() -> None:
    play = LatePlay(late_start(1, audit=ALL))
    settled: list[tuple[Turn, Settlement]] = []
    for script in ({1: DISPUTED}, {}):
        play.turn(script)
    waiting = play.state.due
    assert waiting
    play.late_audit()
    due = play.state.due
    assert due
    play.settle()
    record = play.records[-1]
    assert isinstance(record, Settlement)
    settled.append((due.turn, record))
    super(LatePlay, play).turn({})
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    last = play.state.waiting[-1].turn
    row = turn_row(close, last, play.state, 100, 1.0, settled)
    assert row["removed"] == [
        {"contributor": "c1", "round": 1, "reason": "disputed"},
        {"contributor": "c1", "round": 2, "reason": "follows"},
    ]
    assert (row["audits"], row["audits_passed"]) == (len(due.turn.verdicts), len(due.turn.verdicts) - 1)
    assert row["tokens"] == play.state.tokens
    assert json.loads(json.dumps(row)) == row
    out = io.StringIO()
    bars = Bars(Console(file=out, width=120), 4, 0)
    bars.turn(row)
    bars.close()
    assert "c1 taken out of round 1: disputed" in out.getvalue()


def test_the_lines_of_a_run_have_every_audit_and_every_removal(tmp_path: Path) -> None:
    """Those too that are settled only when the last round is closed."""
    config = late_config(2, run={"rounds": 3})
    make_run(tmp_path / "run", tmp_path / "home", config)
    rows = []

    def turn(close: RoundClose, coordinator: object, seconds: float) -> None:
        assert coordinator.last_turn  # type: ignore[attr-defined]
        last, state, settled = coordinator.last_turn, coordinator.state, coordinator.settled  # type: ignore[attr-defined]
        rows.append(turn_row(close, last, state, 100, seconds, settled))

    ended = continue_run(
        RunFolder(tmp_path / "run"), tmp_path / "home", View(quiet, turn), drills={LIAR: "wrong-data"}
    )
    records = list(ended.desk.ledger.records())
    assert sum(row["audits"] for row in rows) == sum(isinstance(r, Verdict) for r in records)
    shown = Counter((i["contributor"], i["round"], i["reason"]) for row in rows for i in row["removed"])
    assert shown == Counter((i.member, i.round, i.reason) for i in removed(records))
    assert len(shown) == 3
    assert rows[-1]["tokens"] == ended.state.tokens


def test_the_page_shows_what_was_taken_out(caught: Story) -> None:
    story = read_story(RunFolder(caught.folder))
    gone = removed(records_of(caught))
    assert [item.reason for item in gone] == ["failed-audit", "follows"]
    shown = [
        (turn.round, work.entry.member, work.reason)
        for turn in story.turns
        for work in turn.work
        if work.reason
    ]
    assert shown == [(1, LIAR, "failed-audit"), (2, LIAR, "follows")]
    state = caught.coordinator.state
    assert story.tokens == state.tokens == sum(turn.tokens for turn in story.turns)
    assert story.turns[-1].weights == state.base.weights
    first = next(work for work in story.turns[0].work if work.entry.member == LIAR)
    assert first.evidence
    assert len(first.verdicts) == 2
    assert all(all(turn.seeds) for turn in story.turns)
    text = page(story)
    assert "failed-audit" in text
    assert "follows" in text
    assert all(seed in text for turn in story.turns for seed in turn.seeds)


def test_the_page_of_a_run_with_turns_that_wait(tmp_path: Path) -> None:
    """Stopped in mid-run: the last turns have no second draw and no verdicts; what they accepted stands."""
    real = Coordinator.open

    def stop(self: Coordinator) -> None:
        if self.state.rounds_done == 2 and self.state.turn is None:
            raise KeyboardInterrupt
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "open", stop)
        with pytest.raises(KeyboardInterrupt):
            late_story(tmp_path, 2, "lazy", run={"rounds": 3})
    story = read_story(RunFolder(tmp_path / "run"))
    assert [len(turn.work) for turn in story.turns] == [4, 4]
    assert all(work.reason is None and not work.verdicts for turn in story.turns for work in turn.work)
    assert [bool(seed) for turn in story.turns for seed in turn.seeds] == [True, False] * 2
    assert page(story)


def test_the_summary_counts_what_is_left_and_names_who_was_caught(caught: Story) -> None:
    console = Console(file=io.StringIO(), width=200)
    show_summary(console, RunFolder(caught.folder), caught.coordinator, {LIAR: "lazy"})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    accepted = sum(len(turn.accepted) for turn in caught.turns) - 2
    assert f"{accepted} contributions; 2 were taken out again" in text
    assert f"caught {LIAR} (drill: lazy): round 1: failed-audit, round 2: follows; in quarantine" in text
    assert "honest contributors rejected: none" in text


def test_nobody_is_called_caught_where_nobody_was() -> None:
    play = late_played([{}, {}, {}, {}], late_start(1, audit=ALL))
    console = Console(file=io.StringIO(), width=200)
    show_rejections(console, play.records, {})
    assert isinstance(console.file, io.StringIO)
    assert "nobody was rejected" in console.file.getvalue()


def test_the_tables_file_is_that_of_the_log(caught: Story) -> None:
    folder = RunFolder(caught.folder)
    codec = caught.coordinator.desk.aggregator.codec
    rows = contribution_rows(records_of(caught), codec.payload_bytes)
    assert read_contributions(folder.contributions_file, len(rows)) == rows
    reasons = {(row["round"], row["reason"]) for row in rows if row["reason"]}
    assert reasons == {(1, "failed-audit"), (2, "follows")}
