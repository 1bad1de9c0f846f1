"""What a run shows while it goes on."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.monitor import Bars, JsonLines, MetricsFile, Monitor, Wandb, logged_in, turn_row
from tests.verification.fake_run import CHEAT, LATE, Play, manifest, started
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


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a wandb key."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def test_without_a_key_nobody_is_logged_in(
    nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not logged_in()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "nobody" / ".netrc").chmod(0o600)
    assert logged_in()
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wandb_run_is_written_offline_over_tokens(nobody: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    sink = Wandb(folder, manifest())
    assert not list(folder.iterdir())
    for row in ROWS:
        sink.turn(row)
    sink.close()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    # wandb's own process writes the file; on a busy machine it can still be at it when `finish` returns.
    for _ in range(200):
        history, metrics, config = read_wandb(file)
        if len(history) == len(ROWS):
            break
        time.sleep(0.1)
    assert [row["tokens"] for row in history] == [row["tokens"] for row in ROWS]
    assert history[0]["train/loss"] == ROWS[0]["loss"]
    assert history[0]["validation/loss"] == 2.5
    assert history[0]["credits/c0"] == 32
    assert "train/loss" not in history[2]
    assert {"name": "tokens", "step": None} in metrics
    assert {"name": "*", "step": "tokens"} in metrics
    assert config["run_id"] == manifest().run_id


def log_records(data: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format: blocks of 32 KiB, pieces of checksum, length, type, data."""
    found, part, place = [], b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(part)
            part = b""
    return found


def read_wandb(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """History rows, metric definitions and configuration of an offline run."""
    from wandb.proto import wandb_internal_pb2

    history, metrics, config = [], [], {}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(
                {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            )
        elif kind == "metric":
            step = record.metric.step_metric or None
            metrics.append({"name": record.metric.name or record.metric.glob_name, "step": step})
        elif kind == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return history, metrics, config


def test_a_run_that_shows_nothing_leaves_nothing(nobody: None, tmp_path: Path) -> None:
    monitor = Monitor([MetricsFile(tmp_path / "run"), Wandb(tmp_path / "run", manifest())])
    monitor.close()
    assert not (tmp_path / "run").exists()
