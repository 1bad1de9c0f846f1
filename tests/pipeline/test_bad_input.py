"""Wrong use of the command line: code 2, one clear line, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS, run
from tests.pipeline.tiny_world import made
from tests.tiny import corpus, tiny_config
from verification.encoding import canonical_json


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small configuration as a file."""
    return write_config(tmp_path)


def write_config(folder: Path, **changes: object) -> Path:
    values = json.loads(tiny_config().model_dump_json())
    for name, value in changes.items():
        section, field = name.split("__")
        values[section][field] = value
    lines: list[str] = []

    def table(prefix: str, fields: dict[str, object]) -> None:
        lines.append(f"[{prefix}]")
        inner = {k: v for k, v in fields.items() if isinstance(v, dict)}
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in fields.items() if k not in inner)
        for key, value in inner.items():
            table(f"{prefix}.{key}", value)

    for name, fields in values.items():
        table(name, fields)
    path = folder / "config.toml"
    path.write_text("\n".join(lines))
    return path


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with code 2."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("barnraise ")
    assert "Traceback" not in shown.err + shown.out
    return shown.err


def train(tmp_path: Path, config: Path, *more: object) -> tuple[object, ...]:
    places = ("--run", tmp_path / "runs" / "x", "--home", tmp_path / "home", "--pool", "local", "--json")
    return ("train", "--config", config, *places, *more)


def nothing_left(tmp_path: Path) -> bool:
    """Neither run folder nor private home nor a hidden partial folder."""
    left = tree(tmp_path) - {"config.toml", "runs"}
    return not {name for name in left if not name.startswith("corpus")}


def test_a_missing_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refused(capsys, *train(tmp_path, tmp_path / "none.toml"))
    assert nothing_left(tmp_path)


def test_a_typo_in_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, run__roundz=3)
    assert "run.roundz is not a known field" in refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run.roundz", "3"), "no option --run.roundz"),
        (("--run.rounds", "many"), "run.rounds"),
        (("--poll", "local"), "no option --poll"),
        (("--pool", "cloud"), "'cloud'"),
        (("--train.mode", "gradient"), "outer.optimizer adamw"),
        (("--data.context", "8"), "differ"),
        (("--adversary", "gremlin=1"), "no adversary is called 'gremlin'"),
        (("--adversary", "lazy=5"), "more adversaries than contributors"),
        (("--adversary", "lazy=2", "--adversary", "nan=3"), "more adversaries than contributors"),
        (("--adversary", "lazy=none"), "no count"),
        (("--adversary", "lazy=0"), "no count"),
    ],
)
def test_a_typo_in_an_option(
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert words in refused(capsys, *train(tmp_path, config, *arguments))
    assert nothing_left(tmp_path)


def test_an_empty_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    path = write_config(tmp_path, data__source=f"file:{tmp_path / 'corpus'}")
    assert str(tmp_path / "corpus") in refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)
    (tmp_path / "corpus" / "empty.txt").write_text("")
    refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)


def test_a_corpus_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, data__source=f"file:{tmp_path / 'gone'}")
    assert "gone" in refused(capsys, *train(tmp_path, path))
    path = write_config(tmp_path, data__source="carrier-pigeon:x")
    assert "carrier-pigeon" in refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)


def test_a_window_longer_than_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, data__context=1 << 16, model__context=1 << 16)
    assert "window" in refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)


def test_too_few_windows_for_a_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, train__batch=100_000)
    assert "too small for one round" in refused(capsys, *train(tmp_path, path))
    assert nothing_left(tmp_path)


def test_a_vocabulary_larger_than_the_data_support(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, data__vocab_size=50_000, model__vocab_size=50_000)
    assert "50000" in refused(capsys, *train(tmp_path, path)).replace(",", "").replace("_", "")
    assert nothing_left(tmp_path)


def test_a_run_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "precious").write_text("mine")
    path = write_config(tmp_path)
    before = tree(tmp_path)
    assert "exists already" in refused(capsys, *train(tmp_path, path))
    assert tree(tmp_path) == before
    assert (folder / "precious").read_text() == "mine"


def test_a_file_where_the_run_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_text("mine")
    path = write_config(tmp_path)
    assert "exists already" in refused(capsys, *train(tmp_path, path))
    assert tree(tmp_path) == {"runs", "runs/x", "config.toml"}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    source, _ = made()
    return Path(shutil.copytree(source, tmp_path / "run"))


def test_resuming_without_the_secrets(
    tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tmp_path)
    command = ("resume", run_folder, "--home", tmp_path / "home", "--pool", "local", "--json")
    assert "the secrets of" in refused(capsys, *command)
    assert tree(tmp_path) == before


def test_a_run_folder_of_another_version(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_bytes())
    (run_folder / "manifest.json").write_bytes(canonical_json({**manifest, "protocol": 2}))
    before = tree(run_folder)
    assert "another protocol version" in refused(capsys, "resume", run_folder)
    assert tree(run_folder) == before


@pytest.mark.parametrize("command", ["resume", "verify", "report", "generate"])
def test_what_is_not_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    more = ("a prompt",) if command == "generate" else ()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file", "none"):
        assert str(tmp_path / name) in refused(capsys, command, tmp_path / name, *more)
    assert tree(tmp_path) == {"empty", "file"}


def test_a_manifest_without_a_configuration_is_no_traceback(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_bytes())
    (run_folder / "manifest.json").write_bytes(canonical_json({**manifest, "config": {}}))
    assert "model is missing" in refused(capsys, "resume", run_folder)


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no command 'trian'" in refused(capsys, "trian")


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("train", "plan", "calibrate", "doctor", "keys")]
)
def test_a_command_without_what_it_needs(capsys: pytest.CaptureFixture[str], command: str) -> None:
    sentence = refused(capsys, command)
    assert command in sentence
    assert "---" not in sentence


@pytest.mark.parametrize("command", list(COMMANDS))
def test_an_unknown_option_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    needs = {
        "export": ("x", "--out", "y"),
        "generate": ("x", "y"),
        "data": ("x", "--out", "y"),
        "keys": ("new", "x"),
        "receipt": ("x", "--member", "y"),
        "dashboard": ("--entity", "x", "--project", "y"),
    }
    plain = ("resume", "top", "verify", "report", "verify-receipt", "rerun")
    given = needs.get(command, ("x",) if command in plain else ())
    sentence = refused(capsys, command, *given, "--frobnicate")
    assert "--frobnicate" in sentence
    assert "---" not in sentence.replace("--frobnicate", "")


def test_no_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_a_dry_run_writes_nothing(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(argument) for argument in train(tmp_path, config, "--dry-run")]) == 0
    assert nothing_left(tmp_path)
    assert corpus().is_dir()
    assert "nothing was started" in capsys.readouterr().out
