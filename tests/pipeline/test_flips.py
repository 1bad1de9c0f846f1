"""Any byte of a run folder changed, any file gone, cut, longer, swapped or added: `verify` says so.

One real run, its bytes damaged and put back. Only the views (VIEWS), which no digest covers, may change;
and in contributions.parquet bytes that change no value, because it is compared by its values.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.records_table import read_contributions
from pipeline.verify import VerifyOptions, command
from tests.tiny import tiny_config, tiny_run
from verification.errors import FormatError

FLIPS = 42
CLASSES = {
    "checkpoint of the log": "log/checkpoint",
    "tiles": "log/tile/0/**/*",
    "entry bundles": "log/tile/entries/**/*",
    "payloads": "payloads/*",
    "weights": "checkpoints/*.safetensors",
    "outer states": "checkpoints/*.outer",
    "snapshots": "state/*",
    "manifest": "manifest.json",
    "shards": "data/*.arrow",
    "tokenizer": "data/tokenizer.json",
    "evidence": "evidence/**/*",
    "table": "contributions.parquet",
}
VIEWS = ("metrics.jsonl", "report.html", "wandb/offline-run-1/run-1.wandb")
MOST_ROWS = 1000
COVERED = ("log", "log/tile", "log/tile/entries", "payloads", "checkpoints", "state", "data", "evidence")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, three contributors of whom one is lazy, snapshots in round 2; views beside it."""
    folder = tmp_path_factory.mktemp("flips")
    config = tiny_config(
        run={"rounds": 2},
        train={"steps": [2, 1, 2]},
        audit={"second_look_ppm": 0},
        state={"every": 1},
        eval={"every": 5},
    )
    tiny_run(folder / "run", folder / "home", config, drills={"c02": "lazy"})
    for name in VIEWS:
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a view")
    return folder / "run"


def files(run: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(path for path in run.glob(pattern) if path.is_file())


def covered(run: Path) -> list[Path]:
    return [path for path in files(run) if str(path.relative_to(run)) not in VIEWS]


@contextmanager
def kept(*paths: Path) -> Iterator[list[bytes]]:
    """The bytes of files, put back afterwards."""
    before = [path.read_bytes() for path in paths]
    try:
        yield before
    finally:
        for path, data in zip(paths, before, strict=True):
            path.write_bytes(data)


class Verifier:
    """`verify --json` with its exit code, in this process."""

    def __init__(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.capsys = run, capsys

    def __call__(self) -> tuple[int, dict[str, Any]]:
        code = command(VerifyOptions(self.run, json=True), Console())
        return code, json.loads(self.capsys.readouterr().out)

    def names(self, path: Path, what: str) -> None:
        """Assert that the check fails, with exit code 1, and names the file with what it found there."""
        name = str(path.relative_to(self.run))
        code, answer = self()
        assert (code, answer["ok"]) == (1, False), f"{what} of {name} went unnoticed"
        failures = answer["failures"]
        assert all(f["what"] and f["where"] for f in failures)
        # An entry of the log is named by its number, and one that is gone by what is missing after it.
        place = "log" if name.startswith("log/") else name
        here = [f for f in failures if f["where"].startswith(place)]
        assert here, (what, name, failures)
        assert any(f["expected"] and f["got"] for f in here), (what, name, here)


@pytest.fixture
def verifier(run: Path, capsys: pytest.CaptureFixture[str]) -> Verifier:
    return Verifier(run, capsys)


def test_the_classes_are_all_files_of_the_run(run: Path) -> None:
    by_class = {name: files(run, pattern) for name, pattern in CLASSES.items()}
    assert all(by_class.values()), by_class
    assert sorted(path for found in by_class.values() for path in found) == covered(run)


def test_the_run_holds(verifier: Verifier) -> None:
    code, answer = verifier()
    assert (code, answer["failures"]) == (0, [])
    assert answer["complete"]


@pytest.mark.parametrize("name", [n for n in CLASSES if n != "table"])
def test_a_changed_byte_is_named(run: Path, verifier: Verifier, name: str) -> None:
    dice = random.Random(name)
    paths = files(run, CLASSES[name])
    for count in range(FLIPS):
        path = paths[count % len(paths)]
        with kept(path) as [data]:
            at, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            verifier.names(path, f"bit {bit} of byte {at}")
    assert verifier()[0] == 0


def test_a_changed_value_of_the_table_is_named(run: Path, verifier: Verifier) -> None:
    """Bytes of the file that change no value may differ, as they do between releases of its writer."""
    dice = random.Random("table")
    path = run / CLASSES["table"]
    rows = read_contributions(path, MOST_ROWS)
    tolerated = 0
    for _ in range(FLIPS):
        with kept(path) as [data]:
            at, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                same = read_contributions(path, MOST_ROWS) == rows
            except FormatError:
                same = False
            if same:
                tolerated += 1
                assert tolerated % 4 or verifier()[0] == 0
            else:
                verifier.names(path, f"bit {bit} of byte {at}")
    assert FLIPS - tolerated > FLIPS // 2  # most of it is values


def test_no_damage_to_the_table_raises(run: Path) -> None:
    path = run / CLASSES["table"]
    dice = random.Random(5)
    unreadable = 0
    with kept(path) as [data]:
        for _ in range(500):
            at = dice.randrange(len(data))
            path.write_bytes(data[:at] + dice.randbytes(dice.randint(1, 4)) + data[at + 1 :])
            try:
                read_contributions(path, MOST_ROWS)
            except FormatError:
                unreadable += 1
    assert unreadable > 50


def test_a_missing_file_is_named(run: Path, verifier: Verifier) -> None:
    for path in covered(run):
        with kept(path):
            path.unlink()
            verifier.names(path, "removal")


def test_a_file_cut_or_longer_is_named(run: Path, verifier: Verifier) -> None:
    dice = random.Random(3)
    for pattern in CLASSES.values():
        path = dice.choice(files(run, pattern))
        with kept(path) as [data]:
            for what, bad in (
                ("cut", data[: dice.randrange(1, len(data))]),
                ("cut by a byte", data[:-1]),
                ("emptied", b""),
                ("a byte more", data + b"\n"),
                ("twice", data + data),
            ):
                path.write_bytes(bad)
                if pattern == CLASSES["table"] and _same_rows(path, data):
                    continue  # written twice, a parquet file is read from its end
                verifier.names(path, what)


def _same_rows(path: Path, data: bytes) -> bool:
    try:
        found = read_contributions(path, MOST_ROWS)
    except FormatError:
        return False
    path.with_suffix(".true").write_bytes(data)
    try:
        return found == read_contributions(path.with_suffix(".true"), MOST_ROWS)
    finally:
        path.with_suffix(".true").unlink()


def test_a_folder_in_place_of_a_file_is_named(run: Path, verifier: Verifier) -> None:
    for pattern in CLASSES.values():
        path = files(run, pattern)[0]
        with kept(path):
            path.unlink()
            path.mkdir()
            try:
                verifier.names(path, "folder")
            finally:
                path.rmdir()


def test_swapped_files_are_named(run: Path, verifier: Verifier) -> None:
    for name, pattern in CLASSES.items():
        found = [path for path in files(run, pattern) if not path.name.endswith("case.json")]
        if len(found) < 2:
            continue
        pairs = [(a, b) for a in found for b in found if a < b and a.read_bytes() != b.read_bytes()]
        first, second = random.Random(name).choice(pairs)
        with kept(first, second) as [one, two]:
            first.write_bytes(two)
            second.write_bytes(one)
            verifier.names(first, "a swap")


@pytest.mark.parametrize("folder", COVERED)
def test_an_unexpected_file_is_named(run: Path, verifier: Verifier, folder: str) -> None:
    for name in ("stranger.txt", ".hidden", "0" * 64, "deep/er/file"):
        path = run / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nobody asked for this")
        try:
            verifier.names(path, "an unexpected file")
        finally:
            path.unlink()
            shutil.rmtree(run / folder / "deep", ignore_errors=True)
    assert verifier()[0] == 0


def test_the_views_may_change(run: Path, verifier: Verifier) -> None:
    for name in VIEWS:
        path = run / name
        with kept(path):
            path.write_bytes(b"another view")
            assert verifier()[0] == 0
            path.unlink()
            assert verifier()[0] == 0


@pytest.mark.parametrize("name", CLASSES)
def test_the_command_exits_with_1(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = files(run, CLASSES[name])[0]
    with kept(path) as [data]:
        path.write_bytes(data[: len(data) // 2])
        assert cli.run(["verify", str(run)]) == 1
        words = capsys.readouterr().out
    assert "does not hold" in words
    assert "wrong" in words
    assert cli.run(["verify", str(run)]) == 0
    assert "holds at level 2" in capsys.readouterr().out
