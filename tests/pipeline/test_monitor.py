"""What a run shows while it goes on."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.monitor import (
    TAIL_BYTES,
    Background,
    Bars,
    Fallible,
    JsonLines,
    MetricsFile,
    Monitor,
    earlier_rows,
    turn_row,
)
from tests.verification.fake_run import CHEAT, LATE, Play, started
from verification.records import RoundClose
from verification.state import Turn

FIELDS = (
    "round",
    "tokens",
    "loss",
    "val_loss",
    "tokens_per_s",
    "payload_bytes",
    "accepted",
    "rejected",
    "removed",
    "audits",
)


def rows() -> list[dict[str, Any]]:
    """Lines of three turns: one rejection, all well, void."""
    play, found = Play(started(audit={"probation_rounds": 9})), []
    for script in ({1: LATE, 2: CHEAT}, {}, dict.fromkeys(range(4), LATE)):
        shown: list[Turn] = []
        before = len(play.records)
        play.turn(script)
        close = play.records[-1]
        assert isinstance(close, RoundClose)
        again = Play(started(audit={"probation_rounds": 9}))
        for record in play.records[:-1]:
            again.add(record)
        shown.append(again.state.open_turn)
        assert before < len(play.records)
        found.append(turn_row(replace(close, val_loss=2_500_000), shown[0], play.state, 100, 2.0))
    return found


ROWS = rows()


def test_a_line_has_the_documented_fields() -> None:
    first = ROWS[0]
    assert set(FIELDS) <= set(first)
    assert first["round"] == 1
    assert first["tokens"] == first["round_tokens"] == (4 + 1) * 8
    assert first["loss"] == pytest.approx((32 * 4.0 + 8 * 4.000003) / 40, abs=2e-6)
    assert first["val_loss"] == 2.5
    assert first["tokens_per_s"] == 20.0
    assert first["payload_bytes"] == 200
    assert first["accepted"] == ["c0", "c3"]
    assert first["rejected"] == [
        {"contributor": "c1", "reason": "late"},
        {"contributor": "c2", "reason": "failed-audit"},
    ]
    assert first["audits"] >= 4
    assert first["quarantined"] == ["c2"]
    assert ROWS[1]["tokens"] > ROWS[1]["round_tokens"]


def test_a_line_says_what_each_one_gave_and_what_each_auditor_found() -> None:
    first = ROWS[0]
    outcomes = {name: item["outcome"] for name, item in first["contributors"].items()}
    assert outcomes == {"c0": "accepted", "c1": "late", "c2": "failed-audit", "c3": "accepted"}
    assert first["contributors"]["c0"] == {"tokens": 32, "loss": 4.0, "outcome": "accepted"}
    assert first["contributors"]["c1"] == {"tokens": None, "loss": None, "outcome": "late"}
    assert len(first["verdicts"]) == first["audits"]
    of_cheat = [item for item in first["verdicts"] if item["contributor"] == "c2"]
    assert [(item["round"], item["look"], item["outcome"]) for item in of_cheat] == [
        (1, 1, "fail"),
        (1, 2, "fail"),
    ]
    assert len({item["auditor"] for item in of_cheat}) == 2


def test_a_void_turn_has_no_loss_and_the_line_is_json() -> None:
    void = ROWS[2]
    assert (void["loss"], void["accepted"], void["payload_bytes"]) == (None, [], 0)
    lines: list[str] = []
    sink = JsonLines(lines.append)
    sink.note("not for programs")
    for row in ROWS:
        sink.turn(row)
    sink.close()
    assert [json.loads(line) for line in lines] == ROWS
    assert all("\n" not in line for line in lines)


def test_a_turn_that_took_no_time_has_no_rate() -> None:
    play = Play(started())
    play.turn({})
    close = play.records[-1]
    assert isinstance(close, RoundClose)
    again = Play(started())
    for record in play.records[:-1]:
        again.add(record)
    assert turn_row(close, again.state.open_turn, play.state, 1, 0.0)["tokens_per_s"] is None


def test_the_metrics_file_grows_by_lines_and_is_not_there_before(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path)
    assert not list(tmp_path.iterdir())
    sink.turn(ROWS[0])
    sink.close()
    MetricsFile(tmp_path).turn(ROWS[1])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[:2]


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_show_rejections_and_take_any_note(terminal: bool) -> None:
    out = io.StringIO()
    bars = Bars(Console(file=out, force_terminal=terminal, width=120), 4, 0)
    for row in ROWS:
        bars.turn(row)
    for note in ("plain", "c1: it broke [/] [/bold] [nonsense", "expected ['a', 'b']"):
        bars.note(note)
    bars.close()
    text = out.getvalue()
    assert "failed-audit" in text
    assert "it broke [/] [/bold] [nonsense" in text
    assert "quarantined" in text


def test_every_sink_sees_everything() -> None:
    seen: list[tuple[str, Any]] = []

    class Seen:
        def turn(self, row: dict[str, Any]) -> None:
            seen.append(("turn", row["round"]))

        def note(self, text: str) -> None:
            seen.append(("note", text))

        def close(self) -> None:
            seen.append(("close", None))

    monitor = Monitor([Seen(), Seen()])
    monitor.turn(ROWS[0])
    monitor.note("x")
    monitor.close()
    assert seen == [("turn", 1)] * 2 + [("note", "x")] * 2 + [("close", None)] * 2


class Kept:
    """A sink that keeps what it gets, and does at each turn what it is told to."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self._act = act

    def turn(self, row: dict[str, Any]) -> None:
        self._act()
        self.rows.append(row)

    def note(self, text: str) -> None:
        del text

    def close(self) -> None:
        self.closed.set()


def test_alerts_are_part_of_the_row_and_of_the_file_and_on_the_terminal(tmp_path: Path) -> None:
    kept, out = Kept(), io.StringIO()
    bars = Bars(Console(file=out, width=120), 4, 0)
    monitor = Monitor([kept, MetricsFile(tmp_path), bars])
    for row in ROWS:
        monitor.turn(row)
    monitor.close()
    fault = {"kind": "fault", "text": "round 1: c2 rejected, failed-audit; it is in quarantine"}
    assert [[alert["kind"] for alert in row["alerts"]] for row in kept.rows] == [["fault"], [], ["void"]]
    assert kept.rows[0]["alerts"] == [fault]
    assert earlier_rows(tmp_path) == kept.rows
    text = out.getvalue()
    assert "nothing was accepted" in text
    assert text.count("c2") == 1  # a fault has its line already
    assert "alerts" not in ROWS[0]


def test_what_was_told_before_a_restart_is_not_told_again(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    Monitor([file]).turn(ROWS[0])
    kept = Kept()
    monitor = Monitor([kept], earlier_rows(tmp_path))
    monitor.turn({**ROWS[1], "quarantined": ["c2"]})
    assert kept.rows[0]["alerts"] == []


def test_earlier_rows_are_the_end_of_the_file_and_bear_anything_in_it(tmp_path: Path) -> None:
    assert earlier_rows(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n[1]\n\xff\xfe\n' + b"[" * 9999 + b'\n{"round": 2}\n{"round"')
    assert earlier_rows(tmp_path) == [{"round": 1}, {"round": 2}]
    lines = [json.dumps({"round": i, "fill": "x" * 1000}) for i in range(2 * TAIL_BYTES // 1000)]
    path.write_text("\n".join(lines) + "\n")
    rows = earlier_rows(tmp_path)
    assert rows[-1]["round"] == len(lines) - 1
    assert 0.9 * TAIL_BYTES / 1020 < len(rows) < TAIL_BYTES / 1000


def test_a_view_in_the_background_gets_all_in_order_and_ends() -> None:
    kept = Kept()
    sink = Background(kept, patience_s=30, finish_s=30)
    for row in ROWS:
        sink.turn(row)
    sink.close()
    assert kept.rows == ROWS
    assert kept.closed.is_set()


def test_a_view_that_hangs_holds_nobody_up_and_is_left() -> None:
    free = threading.Event()
    kept = Kept(lambda: free.wait(60) and None)
    said: list[str] = []
    sink = Fallible("a view", lambda: Background(kept, patience_s=0.2, finish_s=0.2), said.append)
    began = time.monotonic()
    sink.turn(ROWS[0])
    time.sleep(0.3)
    sink.turn(ROWS[1])
    sink.turn(ROWS[2])
    sink.close()
    assert said == ["a view stops here (no answer for 0.2 s); the run goes on without it"]
    assert time.monotonic() - began < 10
    free.set()
    assert kept.closed.wait(30)
    assert kept.rows == [ROWS[0]]


def test_a_view_that_does_not_end_is_left() -> None:
    free = threading.Event()
    kept = Kept(lambda: free.wait(60) and None)
    said: list[str] = []
    sink = Fallible("a view", lambda: Background(kept, patience_s=30, finish_s=0.2), said.append)
    sink.turn(ROWS[0])
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 10
    assert said == ["a view stops here (it was not done 0.2 s after the end); the run goes on without it"]
    free.set()
    assert kept.closed.wait(30)


def test_a_view_that_raises_in_the_background_is_told_once() -> None:
    def fail() -> None:
        raise ConnectionError("no route\nto anywhere")

    kept, said = Kept(fail), list[str]()
    sink = Fallible("a view", lambda: Background(kept, patience_s=30, finish_s=30), said.append)
    sink.turn(ROWS[0])
    assert kept.closed.wait(30)
    sink.turn(ROWS[1])
    sink.close()
    assert said == ["a view stops here (no route); the run goes on without it"]
