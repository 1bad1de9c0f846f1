"""A full disk: at the start nothing is kept, later `barnraise resume` goes on once there is room.

Needs to mount a small disk in memory, which only root may.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.config import Config
from pipeline.monitor import Fallible, MetricsFile
from pipeline.source import source_digest
from tests.pipeline.crash_tools import Site, in_child, leftovers, scratch, small_config
from tests.tiny import corpus
from verification.durable import write_atomic
from verification.errors import StorageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import vkey


@contextlib.contextmanager
def disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A disk of `kib` KiB at `folder`; what it gives makes it larger."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield lambda size: mount(["-o", f"remount,size={size}k", str(folder)])
    finally:
        # Lazily: wandb's own process may still be on its way out.
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(options: list[str]) -> None:
    subprocess.run(["mount", *options], check=True)


@dataclass
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str
    lines: list[str] = field(default_factory=list)


def barnraise(said: Path, *arguments: str) -> Outcome:
    """The command in a child of its own."""

    def child() -> int:
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(said.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(os.fdopen(1, "w", closefd=False))
            err = stack.enter_context(os.fdopen(2, "w", closefd=False))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            return cli.run(list(arguments))

    killed, code = in_child(child)
    assert not killed
    out, err = (said.with_suffix(f".{name}").read_text() for name in ("out", "err"))
    assert "Traceback" not in out + err
    return Outcome(code, out, err, err.splitlines())


def toml(config: Config, path: Path) -> str:
    lines: list[str] = []

    def table(name: str, values: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(v)}" for key, v in values.items() if not isinstance(v, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                table(f"{name}.{key}", value)

    for key, value in config.model_dump(mode="json").items():
        table(key, value)
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """The weights that the configuration leads to."""
    corpus()
    source_digest()
    with scratch() as root:
        site = Site(root)
        in_child(lambda: site.create(small_config(), "lazy"))
        _, digest = in_child(site.finish)
    return str(digest)


class Scene:
    """A run folder and a home, on whichever disks, and the commands on them."""

    def __init__(self, root: Path, folder: Path, home: Path) -> None:
        self.config = toml(small_config(), root / "config.toml")
        self.said = root / "said"
        self.folder, self.home = folder, home
        self.places = ["--home", str(home), "--pool", "local", "--json"]

    def train(self) -> Outcome:
        target = ["--config", self.config, "--run", str(self.folder), "--adversary", "lazy=1"]
        return barnraise(self.said, "train", *target, *self.places)

    def resume(self) -> Outcome:
        return barnraise(self.said, "resume", str(self.folder), *self.places)

    def verify(self, level: int) -> dict[str, Any]:
        done = barnraise(self.said, "verify", str(self.folder), "--level", str(level), "--json")
        answer: dict[str, Any] = json.loads(done.out)
        assert (done.code, answer["failures"]) == (0, [])
        return answer


@pytest.mark.parametrize("kib", [4, 20, 40, 64, 76, 100, 120, 136])
def test_a_disk_too_small_to_start_keeps_nothing(tmp_path: Path, undisturbed: str, kib: int) -> None:
    assert undisturbed
    with disk(tmp_path / "disk", kib):
        scene = Scene(tmp_path, tmp_path / "disk" / "run", tmp_path / "home")
        done = scene.train()
        assert done.code == 2
        assert len(done.lines) == 1
        assert "the run could not be started: the disk is full" in done.err
        assert "nothing was kept" in done.err
        assert list((tmp_path / "disk").iterdir()) == []
        assert not [path for path in scene.home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kib", [4, 8])
def test_a_private_disk_too_small_to_start_keeps_nothing(tmp_path: Path, undisturbed: str, kib: int) -> None:
    assert undisturbed
    with disk(tmp_path / "disk", kib):
        full = tmp_path / "disk" / "ballast"
        with contextlib.suppress(OSError):
            full.write_bytes(bytes(1024 * kib))
        scene = Scene(tmp_path, tmp_path / "run", tmp_path / "disk" / "home")
        done = scene.train()
        assert (done.code, len(done.lines)) == (2, 1)
        assert "the run could not be started: the disk is full" in done.err
        assert not scene.folder.exists()
        assert list(tmp_path.glob(".*")) == []
        assert not [path for path in scene.home.rglob("*") if path.is_file()]


def stopped_and_resumed(scene: Scene, grow: Callable[[int], None], weights: str) -> None:
    """The run stops in words, holds as it lies there, and ends well once there is room."""
    done = scene.train()
    assert done.code == 1, done.err
    assert "the disk is full" in done.lines[-1]
    assert "`barnraise resume` goes on" in done.lines[-1]
    assert all("stops here (No space left on device)" in line for line in done.lines[:-1])
    assert scene.verify(1)["complete"] is False
    assert leftovers(Site(scene.folder)) == []

    done = scene.resume()
    assert done.code == 1, "there is no more room than before"
    assert "the disk is full" in done.lines[-1]
    assert scene.verify(1)["complete"] is False

    grow(65536)
    done = scene.resume()
    assert (done.code, done.err) == (0, "")
    answer = scene.verify(2)
    assert answer["complete"] is True
    assert answer["weights_digest"] == weights
    assert leftovers(Site(scene.folder)) == leftovers(Site(scene.home)) == []
    for line in (scene.folder / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["round"] > 0


@pytest.mark.parametrize(
    "kib", [152, 180, *(pytest.param(size, marks=pytest.mark.slow) for size in range(170, 260, 30))]
)
def test_a_disk_that_fills_during_the_run(tmp_path: Path, undisturbed: str, kib: int) -> None:
    with disk(tmp_path / "disk", kib) as grow:
        scene = Scene(tmp_path, tmp_path / "disk" / "run", tmp_path / "home")
        stopped_and_resumed(scene, grow, undisturbed)


@pytest.mark.parametrize(
    "kib", [60, 180, *(pytest.param(size, marks=pytest.mark.slow) for size in range(30, 240, 60))]
)
def test_a_private_disk_that_fills_during_the_run(tmp_path: Path, undisturbed: str, kib: int) -> None:
    with disk(tmp_path / "disk", kib) as grow:
        scene = Scene(tmp_path, tmp_path / "run", tmp_path / "disk" / "home")
        stopped_and_resumed(scene, grow, undisturbed)


def test_metrics_are_whole_lines_or_none(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 8):
        path = tmp_path / "disk" / "metrics.jsonl"
        said: list[str] = []
        sink = Fallible("metrics.jsonl", lambda: MetricsFile(path.parent), said.append)
        for number in range(400):
            sink.turn({"round": number, "text": "x" * 90})
        sink.close()
        assert said == ["metrics.jsonl stops here (No space left on device); the run goes on without it"]
        rounds = [json.loads(line)["round"] for line in path.read_text().splitlines()]
        assert rounds == list(range(len(rounds)))
        assert len(rounds) > 50


def test_a_view_that_fails_at_any_point_ends_in_words() -> None:
    class Broken:
        def __init__(self, at: str) -> None:
            self.at = at

        def fail(self, at: str) -> None:
            if at == self.at:
                raise RuntimeError("first line\nsecond line")

        def turn(self, row: dict[str, Any]) -> None:
            self.fail("turn")

        def note(self, text: str) -> None:
            self.fail("note")

        def close(self) -> None:
            self.fail("close")

    def unmade() -> Broken:
        raise RuntimeError

    for at in ("turn", "note", "close", "make", "never"):
        said: list[str] = []
        sink = Fallible("a view", (lambda at=at: Broken(at)) if at != "make" else unmade, said.append)
        for _ in range(2):
            sink.note("")
            sink.turn({})
        sink.close()
        what = "RuntimeError" if at == "make" else "first line"
        assert said == ([] if at == "never" else [f"a view stops here ({what}); the run goes on without it"])


def test_a_log_that_met_a_full_disk_reads_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever file it meets it, no tile beyond the checkpoint is left."""
    key = PrivateKey.from_seed(bytes(32))
    name = vkey("example.org/log", key.public)
    for size, count in ((0, 3), (254, 5), (255, 1), (256, 1)):
        for at in range(12):
            folder = tmp_path / f"{size}-{at}"
            log = Log.create(folder, "example.org/log", key)
            if size:
                log.append([b"x"] * size)
            before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            left = [at]

            def full(path: Path, data: bytes, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise StorageError("the disk is full") from OSError(errno.ENOSPC, "full")
                write_atomic(path, data)

            with monkeypatch.context() as patch:
                patch.setattr("verification.log.write_atomic", full)
                try:
                    log.append([b"y"] * count)
                except StorageError:
                    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
                    assert after == before
                    assert not [p for p in folder.rglob("*.p") if not any(p.iterdir())]
                    assert Log.open(folder, "example.org/log", None, name).size == size
                else:
                    assert log.size == size + count
                    break
        else:
            pytest.fail("no append went through")
