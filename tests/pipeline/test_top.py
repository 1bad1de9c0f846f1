"""`barnraise top`: a run folder that grows, is torn, is not there, ends; and frames that fit."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline import cli
from pipeline.folder import RunFolder, member_folder
from pipeline.report import read_story
from pipeline.report_metrics import MOST_LINE_BYTES, parse_line
from pipeline.top import Follower
from pipeline.top_follow import LogFollower, MetricsFollower, read_entry
from pipeline.top_view import BARS, Frame, as_json, draw, sparkline
from pipeline.top_watch import Watch
from tests.tiny import copy_run
from verification.keys import PrivateKey
from verification.log import Log

Capture = pytest.CaptureFixture[str]
TIMES = {"open": 0.5, "commit": 3.0, "audit": 1.5}
NODES = {
    "barn": {"alive": True, "members": ["c00", "a00"]},
    "shed": {"alive": False, "members": ["c01"]},
}


def seen(frame: Frame, width: int = 100, height: int = 40) -> list[str]:
    """The lines of a frame, without colours."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(draw(frame, width, height))
    return capture.get().rstrip("\n").split("\n")


def times(round_: int, **more: Any) -> str:
    line = {
        "round": round_,
        "attempt": 0,
        "round_tokens": 100,
        "seconds": 5.0,
        "phases": TIMES,
        "nodes": NODES,
    }
    return json.dumps(line | more) + "\n"


@pytest.fixture
def growing(run: Path, home: Path, tmp_path: Path) -> tuple[Path, Log, list[bytes]]:
    """A run folder with an empty log, the log's writer, and the entries that it will get."""
    whole = RunFolder(run)
    manifest = whole.parsed_manifest()
    key = PrivateKey.load(home / member_folder(manifest) / "coordinator" / "key")
    entries = list(Log.open(whole.log, manifest.origin, None, manifest.log_vkey).entries())
    folder = RunFolder(tmp_path / "growing")
    folder.path.mkdir()
    folder.manifest_file.write_bytes(whole.manifest())
    return folder.path, Log.create(folder.log, manifest.origin, key), entries


def test_it_agrees_with_the_checked_story(run: Path) -> None:
    story = read_story(RunFolder(run))
    found = as_json(Follower(run).look())
    assert (found["state"], found["run_id"], found["rounds"]) == ("finished", story.run_id, 3)
    assert (found["rounds_closed"], found["tokens"]) == (3, story.tokens)
    assert found["val_loss"] == story.validation[-1][2]
    assert found["loss"] == story.training[-1][2]
    assert found["log_entries"] == story.head.size
    verdicts = [v for turn in story.turns for work in turn.work for v in work.verdicts]
    assert found["verdicts"] == len(verdicts)
    assert found["failed"] == sum(verdict.outcome == "fail" for verdict in verdicts)
    by_name = {member["name"]: member for member in found["members"]}
    for balance in story.balances:
        member = by_name.pop(balance.member.member)
        assert member["credit"] == balance.earned - balance.forfeited
        assert (member["standing"] == "quarantine") == balance.quarantined
    assert by_name == {}
    assert {"round": 1, "tone": "bad", "text": "c03 rejected: failed-audit"} in found["events"]
    assert found["unreadable_entries"] == 0


def test_every_step_of_a_growing_log_gives_a_frame(growing: tuple[Path, Log, list[bytes]]) -> None:
    folder, log, entries = growing
    follower = Follower(folder)
    phases = set()
    for index, entry in enumerate(entries):
        log.append([entry])
        frame = follower.look()
        assert frame.log_entries == index + 1
        assert frame.watch.unreadable == 0
        assert len(seen(frame, 80, 24)) <= 24
        phases.add(frame.watch.phase)
    assert {"3 of 4 committed", "2 of 4 revealed", "auditing 4 drawn", "closed", "finished"} <= phases
    assert as_json(follower.look()) | {"run": "", "idle_s": 0} == as_json(Follower(folder).look()) | {
        "run": "",
        "idle_s": 0,
    }


def test_a_log_that_grew_past_a_bundle(growing: tuple[Path, Log, list[bytes]]) -> None:
    folder, log, entries = growing
    follower = LogFollower(folder)
    sizes = (1, 200, 55, 1, 300)
    read = 0
    for count in sizes:
        log.append((entries * 20)[read : read + count])
        got = list(follower.new_entries())
        assert got == [read_entry(entry) for entry in (entries * 20)[read : read + count]]
        read += count
    assert follower.size == sum(sizes)


def test_a_bundle_that_is_gone_when_it_is_read_is_taken_up_later(
    growing: tuple[Path, Log, list[bytes]],
) -> None:
    folder, log, entries = growing
    log.append(entries[:5])
    follower = LogFollower(folder)
    bundle = next((folder / "log" / "tile" / "entries").rglob("000.p/5"))
    kept = bundle.read_bytes()
    bundle.unlink()
    assert list(follower.new_entries()) == []
    bundle.write_bytes(kept)
    assert len(list(follower.new_entries())) == 5


def test_before_and_after_there_is_a_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    follower = Follower(folder)
    assert follower.look().state == "waiting"
    assert "waits for a run" in "\n".join(seen(follower.look()))
    assert "Next: barnraise train" in "\n".join(seen(follower.look()))
    folder.mkdir()
    assert follower.look().state == "waiting"
    shutil.copytree(run, folder, dirs_exist_ok=True)
    assert follower.look().state == "finished"
    shutil.rmtree(folder)
    frame = follower.look()
    assert frame.state == "gone"
    assert "gone" in seen(frame)[0]
    assert frame.watch.closed == 3  # what was known is still shown


def test_another_run_in_its_place_is_followed_from_its_start(
    run: Path, growing: tuple[Path, Log, list[bytes]]
) -> None:
    folder, log, entries = growing
    log.append(entries)
    follower = Follower(folder)
    assert follower.look().state == "finished"
    shutil.rmtree(folder)
    copy_run(run, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"name": "other"}))
    assert follower.look().watch.verdicts == Follower(run).look().watch.verdicts


# --- metrics.jsonl ---


def test_times_machines_and_what_is_left(growing: tuple[Path, Log, list[bytes]]) -> None:
    folder, log, entries = growing
    closed = next(i for i, e in enumerate(entries) if (read_entry(e) or ("", {}))[0] == "round-close")
    log.append(entries[: closed + 1])
    (folder / "metrics.jsonl").write_text(times(1))
    follower = Follower(folder)
    found = as_json(follower.look())
    assert found["eta_s"] == 2 * 5.0
    assert found["tokens_per_s"] == 20.0
    assert found["phases"] == TIMES
    assert {m["name"]: m["machine"] for m in found["members"]}["c01"] == "shed"
    assert {"round": 1, "tone": "bad", "text": "machine shed is down"} in found["events"]
    lines = seen(follower.look(), 80, 24)
    assert any("machine" in line for line in lines)
    assert any(line.startswith("phases ") for line in lines)
    assert any("commit 60%" in line for line in lines)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(times(2, seconds=7.0)[:30])
        file.flush()
        assert as_json(follower.look())["eta_s"] == 10.0
        file.write(times(2, seconds=7.0)[30:])
        file.flush()
        assert as_json(follower.look())["eta_s"] == 12.0
        file.write("not a line\n" + times(3, nodes={**NODES, "shed": {"alive": True, "members": []}}))
    found = as_json(follower.look())
    assert found["metrics_bad_lines"] == 1
    assert {"round": 3, "tone": "note", "text": "machine shed is back"} in found["events"]


@given(cuts=st.lists(st.integers(0, 400), max_size=8), junk=st.binary(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_lines_arrive_they_are_the_same(tmp_path: Path, cuts: list[int], junk: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    data = times(1).encode() + junk + b"\n" + times(2).encode()
    path.write_bytes(b"")
    follower = MetricsFollower(tmp_path)
    found = []
    for cut in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:cut])
        found += follower.new_turns()
    lines = [line for line in data.split(b"\n") if line.strip()]
    assert found == [turn for turn in map(parse_line, lines) if turn]
    assert follower.bad_lines == sum(parse_line(line) is None for line in lines)


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(tmp_path)
    path.write_bytes(b"x" * (MOST_LINE_BYTES + 9))
    assert follower.new_turns() == []
    with path.open("ab") as file:
        file.write(b"x" * 99 + b"\n" + times(4).encode())
    assert [turn.round for turn in follower.new_turns()] == [4]
    assert follower.bad_lines == 1


# --- hostile folders ---


def envelope(kind: str, predicate: Any) -> bytes:
    statement = json.dumps({"predicateType": f"barnraise:{kind}:v1", "predicate": predicate})
    return json.dumps({"payload": base64.b64encode(statement.encode()).decode()}).encode()


KINDS = (
    "manifest", "enrol", "leave", "return", "key-rotation", "key-revocation", "round-open", "commitment",
    "commit-close", "reveal", "reveal-close", "draw", "second-draw", "verdict", "round-close", "settlement",
    "run-close", "what-is-this", "", "../x",
)  # fmt: skip
WORDS = (
    "run member role operator round attempt slot roster steps accepted rejected tokens credits earned "
    "forfeited quarantined void train_loss val_loss config overruled by outcome auditor name drawn looks "
    "committed ms removed"
)
NAMES = st.sampled_from(WORDS.split())
LEAVES = st.sampled_from(["c00", "\x1b[2J", "[red]x[/]", "pass", 10**400])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["c00", "\x1b[2J", "[red]x[/]", "pass", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(NAMES, VALUES, max_size=12)), max_size=12))
def test_no_entry_can_break_a_frame(entries: list[tuple[str, Any]]) -> None:
    watch = Watch()
    watch.entry(("enrol", {"member": "c00", "role": "contributor", "operator": "o", "run": "r"}))
    for kind, predicate in entries:
        watch.entry(read_entry(envelope(kind, predicate)))
    frame = Frame(Path("x"), "running", watch, 1.0, 0, len(entries))
    text = "\n".join(seen(frame, 80, 24))
    assert "\x1b" not in text
    json.dumps(as_json(frame))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"payload": 4}', b'{"payload": "!"}', b"\xff", b"[" * 60_000]
)
def test_bytes_that_are_no_entry(data: bytes) -> None:
    assert read_entry(data) is None
    watch = Watch()
    watch.entry(read_entry(data))
    assert watch.unreadable == 1


@pytest.mark.parametrize(
    "note", [b"", b"x", b"x\n\n", b"x\n-4\n", b"x\n" + b"9" * 90, b"\xff\n\xb2\n", b"x\n40\ny"]
)
def test_a_checkpoint_that_is_none(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "checkpoint").write_bytes(note)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    frame = Follower(tmp_path).look()
    assert (frame.log_entries, frame.state) == (0, "running")
    assert seen(frame)


# --- frames ---


def crowd(count: int) -> Watch:
    watch = Watch(
        name="a-run-with-quite-a-long-name-that-goes-on-and-on-and-on-and-on", rounds=500, closed=250
    )
    for index in range(count):
        name = f"member-with-a-name-{index:03d}"
        watch.entry(("enrol", {"member": name, "role": "contributor", "operator": "o", "run": "r"}))
        watch.entry(("leave", {"member": name, "by": "coordinator"}) if index % 7 == 3 else ("none", {}))
    watch.training = [(index, 7 - index / 100) for index in range(250)]
    watch.validation = [(index, 7 - index / 100) for index in range(0, 250, 5)]
    for round_ in range(240, 250):
        turn = parse_line(times(round_).encode())
        assert turn
        watch.times(turn)
    return watch


@pytest.mark.parametrize("count", [0, 1, 8, 50, 300])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60), (40, 20)])
def test_a_frame_fits_its_terminal(count: int, width: int, height: int) -> None:
    frame = Frame(Path("/a/rather/long/path/to/some/run/folder"), "running", crowd(count), 42.0, 1, 9)
    lines = seen(frame, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "q leaves" in lines[-1]
    rows = [line for line in lines if line.startswith("member-wi")]
    assert len(rows) >= min(count, 3)
    if count > height:
        assert any(line.startswith(f"and {count - len(rows)} more") for line in lines)


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(0, 100))
def test_a_sparkline_has_its_extremes(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= set(BARS)
    if line and 1 < len(values) <= width and max(values) - min(values) > 1e-3:
        assert line[values.index(min(values))] == BARS[0]
        assert line[values.index(max(values))] == BARS[-1]


# --- the command ---


def test_once_and_json(run: Path, capsys: Capture) -> None:
    assert cli.run(["top", str(run), "--once"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 rounds closed" in out
    assert f"Next: barnraise report {run}"[:40] in out
    assert cli.run(["top", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], len(found["members"])) == ("finished", 6)
    assert cli.run(["top", str(run / "nothing"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "waiting"


def test_it_changes_nothing(run: Path, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path / "run")

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*"))

    before = state()
    follower = Follower(folder)
    follower.look()
    follower.look()
    assert state() == before


@pytest.fixture
def terminal(run: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`barnraise top` in a terminal of its own: the other end, and the process."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-m", "pipeline.cli", "top", str(run)]
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    yield ours, child
    child.kill()
    child.wait()
    os.close(ours)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    data, end = b"", time.monotonic() + 60
    while wanted not in data and time.monotonic() < end:
        if select.select([descriptor], [], [], 1)[0]:
            data += os.read(descriptor, 65536)
    return data


@pytest.mark.slow
@pytest.mark.parametrize("key", ["q", "Q", "ctrl-c"])
def test_q_and_ctrl_c_leave(terminal: tuple[int, subprocess.Popen[bytes]], key: str) -> None:
    descriptor, child = terminal
    assert b"q leaves" in read_until(descriptor, b"q leaves")
    if key == "ctrl-c":
        child.send_signal(2)
    else:
        os.write(descriptor, key.encode())
    assert child.wait(30) == 0
    # The screen that was there before comes back, and the cursor with it.
    rest = read_until(descriptor, b"\x1b[?25h")
    assert b"\x1b[?1049l" in rest
    assert b"Traceback" not in rest
