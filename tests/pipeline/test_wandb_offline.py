"""What wandb itself wrote offline: read back, taken up again after a kill, sent later."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.charts import VERDICTS
from pipeline.wandb_view import HEADER_BYTES, Wandb
from tests.pipeline.turn_rows import row
from tests.verification.fake_run import manifest

pytestmark = pytest.mark.slow
KEY = "a" * 40


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a wandb key."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def leet(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What `wandb leet inspect` reads in a folder: its records, or with --summary one object."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    text = done.stdout
    return [json.loads(text)] if "--summary" in options else [json.loads(line) for line in text.splitlines()]


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_is_written_offline_over_tokens_and_read_back(nobody: None, tmp_path: Path) -> None:
    folder, told = tmp_path / "a run", list[str]()
    folder.mkdir()
    sink = Wandb(folder, manifest(), told.append)
    assert not list(folder.iterdir())
    alert = {"kind": "fault", "text": "round 1: c1 rejected"}
    for line in (row(1, alerts=[alert]), row(2, loss=None)):
        sink.turn(line)
    sink.close()
    where = shlex.quote(str(folder / "wandb"))
    assert told == [
        f"charts in the terminal: wandb leet {where}",
        f"to send them to wandb's servers: wandb sync {where}",
    ]
    (file,) = pieces(folder)
    # wandb's own process writes the file; on a busy machine it can still be at it when `finish` returns.
    for _ in range(50):
        (summary,) = leet(folder / "wandb", "--summary")
        if summary["state"] == "finished":
            break
        time.sleep(0.2)
    assert (summary["state"], summary["run_id"], summary["name"]) == ("finished", file.stem[4:], "fake")
    assert summary["config"]["run_id"] == manifest().run_id
    assert summary["summary"]["train/loss"] == 5.0
    assert summary["summary"]["credit/c0"] == 20
    assert summary["summary"][VERDICTS]["nrows"] == 4
    records = leet(file)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [line["tokens"] for line in history] == [10, 20, 20]  # the last one has the tables
    assert [line.get("train/loss") for line in history] == [5.0, None, None]
    found = [record["metric"] for record in records if record["type"] == "metric"]
    assert [(item.get("name"), item.get("glob_name"), item.get("step_metric")) for item in found] == [
        ("tokens", None, None),
        (None, "*", "tokens"),
    ]
    (sent,) = [record["alert"] for record in records if record["type"] == "alert"]
    assert (sent["title"], sent["text"]) == ("fault: fake", alert["text"])


CHILD = """
import os, sys, time
from pathlib import Path
from pipeline.wandb_view import Wandb
from tests.pipeline.turn_rows import row
from tests.verification.fake_run import manifest

folder, first, last, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
folder.mkdir(exist_ok=True)
sink = Wandb(folder, manifest(), lambda text: None)
for number in range(first, last + 1):
    sink.turn(row(number))
if end == "close":
    sink.close()
time.sleep({"close": 0, "at once": 0, "later": 4}[end])
os._exit(0)
"""


def alone() -> dict[str, str]:
    """The environment without the way to a wandb that this process may have started."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def play(folder: Path, first: int, last: int, end: str) -> None:
    """Rounds of a run in a process of their own, which ends well or is killed `at once` or `later`."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", CHILD, str(folder), str(first), str(last), end]
    environment = {**alone(), "PYTHONPATH": str(root)}
    subprocess.run(command, env=environment, timeout=120, check=True, cwd=folder.parent)
    time.sleep(1.1)  # the names of pieces count seconds


class Server(ThreadingHTTPServer):
    """As much of wandb's server as `wandb sync` needs; it keeps the lines of history that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.lines: list[tuple[int, int]] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "barnraise", "entity": {"id": "e", "name": "me"}}
        name = variables.get("name")
        if "RunResumeStatus" in query:
            bucket: dict[str, Any] | None = None
            if self.lines:
                empty = dict.fromkeys(("summaryMetrics", "config", "wandbConfig"), "{}")
                tail = json.dumps([json.dumps({"_step": self.lines[-1][1]})])
                counts = {"historyLineCount": len(self.lines), "logLineCount": 0, "eventsLineCount": 0}
                tails = {"historyTail": tail, "eventsTail": "[]"}
                bucket = {"id": "b", "name": name, "displayName": "", "tags": [], **empty, **counts, **tails}
            return {"data": {"model": {**project, "bucket": bucket}}}
        if "mutation UpsertBucket" in query:
            made = {"id": "b", "name": name, "displayName": "", "description": "", "config": "{}"}
            made |= {"sweepName": None, "project": project, "historyLineCount": len(self.lines)}
            return {"data": {"upsertBucket": {"bucket": made, "inserted": not self.lines}}}
        return {"errors": [{"message": "not here"}]}


class Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        del args

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        value = json.loads(body)
        if self.path.endswith("/graphql"):
            answer = self.server.answer(value["query"], value.get("variables") or {})
        else:
            answer = {"limits": {}}
            sent = (value.get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            for place, line in enumerate(sent["content"], sent["offset"]):
                self.server.lines.append((place, json.loads(line)["_step"]))
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def sync(folder: Path, server: Server) -> str:
    host, port = server.server_address[:2]
    login = {"WANDB_BASE_URL": f"http://{host!s}:{port}", "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "wandb", "sync", str(folder / "wandb")]
    done = subprocess.run(
        command, env={**alone(), **login}, capture_output=True, text=True, timeout=240, check=False
    )
    return done.stdout + done.stderr


def test_the_pieces_of_a_run_that_was_killed_are_sent_as_one(
    nobody: None, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    play(folder, 1, 2, "at once")
    (empty,) = pieces(folder)
    with empty.open("r+b") as file:  # the machine went too, before anything was written
        file.truncate(HEADER_BYTES)
    assert "Failed to read" in sync(folder, server)
    play(folder, 3, 4, "later")
    play(folder, 5, 6, "close")
    found = pieces(folder)
    assert len(found) == 2
    assert len({path.name for path in found}) == 1
    assert empty not in found
    said = sync(folder, server)
    attempts = manifest().config["run"]["max_void"] + 1
    rounds = [2 * attempts * number for number in range(3, 7)]
    assert server.lines == list(enumerate([*rounds, rounds[-1] + 1])), said
    assert all(path.with_suffix(".wandb.synced").exists() for path in found)
