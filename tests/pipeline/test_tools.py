import json
import random
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from model.arrays import arrays_digest
from pipeline import cli, doctor
from pipeline.config import parse_config
from pipeline.folder import RunFolder
from pipeline.model_card import model_card
from pipeline.report import read_story
from pipeline.run import View, continue_run, create_run
from verification.fsck import check_run
from verification.keys import PrivateKey

Capture = pytest.CaptureFixture[str]
CONFIG: dict[str, dict[str, object]] = {
    "run": {"rounds": 3},
    "data": {"vocab_size": 300, "context": 16, "holdout_ppm": 200_000},
    "model": {
        "vocab_size": 300, "context": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
        "d_ff": 32, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
    },
    "train": {"steps": [2, 1], "batch": 2, "trace_every": 2},
    "checkpoint": {"every": 2},
}  # fmt: skip


def write_texts(folder: Path) -> Path:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(1, 6))) for _ in range(200)]
    folder.mkdir()
    for index in range(30):
        (folder / f"{index:02d}.txt").write_text(" ".join(dice.choices(words, k=300)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two contributors and three rounds."""
    place = tmp_path_factory.mktemp("tools")
    source = f"file:{write_texts(place / 'texts')}"
    config = parse_config(CONFIG | {"data": CONFIG["data"] | {"source": source}}, "test")
    create_run(config, RunFolder(place / "run"), place / "home", lambda _: None)
    continue_run(RunFolder(place / "run"), place / "home", View(lambda _: None, lambda *_: None))
    return place / "run"


@pytest.fixture
def barnraise(capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    """Run a command: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


Barnraise = Callable[..., tuple[int, str, str]]


def test_the_table_of_commands_needs_no_framework() -> None:
    check = "import pipeline.tools, sys; print([m for m in ('torch', 'ray', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_report_writes_the_page_and_says_where(run: Path, barnraise: Barnraise) -> None:
    code, out, _ = barnraise("report", run)
    assert code == 0
    assert str(run / "report.html") in out
    assert "Next: " in out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    code, out, _ = barnraise("report", run, "--json")
    answer = json.loads(out)
    findings = check_run(run)
    assert code == 0
    assert (answer["run_id"], answer["log_head"]) == (findings.run_id, findings.log_head)
    assert answer["rounds"] == 3


def test_report_of_no_run_is_wrong_use(tmp_path: Path, barnraise: Barnraise) -> None:
    code, out, err = barnraise("report", tmp_path)
    assert (code, out) == (2, "")
    assert "is not a run folder" in err
    assert err.count("\n") == 1


def test_export_gives_the_weights_that_the_log_names(run: Path, tmp_path: Path, barnraise: Barnraise) -> None:
    code, out, _ = barnraise("export", run, "--out", tmp_path / "out", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["weights_digest"] == check_run(run).weights_digest
    assert arrays_digest(load_file(tmp_path / "out" / "model.safetensors")) == answer["weights_digest"]
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (answer["weights_digest"], answer["run_id"], answer["log_head"][7:], "`c00`", "NOASSERTION"):
        assert fact in card
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "tokenizer.json"}


def test_export_of_an_earlier_round(run: Path, tmp_path: Path, barnraise: Barnraise) -> None:
    story = read_story(RunFolder(run))
    code, out, _ = barnraise("export", run, "--out", tmp_path / "two", "--round", 2)
    assert code == 0
    assert story.weights(2) in out
    assert story.weights(3) not in out
    assert "Next: " in out
    card = (tmp_path / "two" / "README.md").read_text()
    assert "after round 2 of 3" in card
    assert f"{story.turns[1].total:,}" in card
    assert story.tokens != story.turns[1].total


@pytest.mark.parametrize(("round_", "what"), [(1, "was not kept"), (4, "not closed"), (-1, "not closed")])
def test_export_of_a_round_that_is_not_there(
    run: Path, tmp_path: Path, barnraise: Barnraise, round_: int, what: str
) -> None:
    code, _, err = barnraise("export", run, "--out", tmp_path / "out", "--round", round_)
    assert code == 2
    assert what in err
    assert not (tmp_path / "out").exists()


def test_export_refuses_another_checkpoint(run: Path, tmp_path: Path, barnraise: Barnraise) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = RunFolder(copy).weights_file(3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    for command in (("export", copy, "--out", tmp_path / "out"), ("generate", copy, "a")):
        code, out, err = barnraise(*command)
        assert code == 1
        assert out == ""
        assert "not the checkpoint that the log names" in err
    assert not (tmp_path / "out").exists()


def test_export_refuses_another_tokenizer(run: Path, tmp_path: Path, barnraise: Barnraise) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "data" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    code, _, err = barnraise("export", copy, "--out", tmp_path / "out")
    assert code == 1
    assert "not the tokenizer of the run" in err


def test_the_card_keeps_manifest_text_in_its_place(run: Path) -> None:
    story = read_story(RunFolder(run))
    nasty = "x`|\n# <script>[a](b)\n---"
    config = story.manifest.config | {"data": {"source": nasty}}
    card = model_card(replace(story, manifest=replace(story.manifest, name=nasty, config=config)), run, 3)
    assert "<script>" not in card.replace("`x'/ # <script>[a](b) ---`", "")
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1
    assert card.splitlines().count("---") == 2


def test_generate_is_the_same_for_the_same_seed(run: Path, barnraise: Barnraise) -> None:
    asked = ("generate", run, "abc", "--tokens", 12, "--json", "--seed")
    texts = [json.loads(barnraise(*asked, seed)[1])["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    code, out, _ = barnraise("generate", run, "abc", "--tokens", 3)
    assert code == 0
    assert out.startswith("abc")
    assert "Next: " in out


@pytest.mark.parametrize(
    "wrong", [["", "--tokens", "3"], ["a", "--temperature", "-1"], ["a", "--tokens", "-3"]]
)
def test_generate_refuses_what_makes_no_sense(run: Path, barnraise: Barnraise, wrong: list[str]) -> None:
    code, out, err = barnraise("generate", run, *wrong)
    assert (code, out) == (2, "")
    assert err.startswith("barnraise generate: ")


def test_data_makes_what_a_run_with_these_settings_has(
    run: Path, tmp_path: Path, barnraise: Barnraise
) -> None:
    source = f"file:{run.parent / 'texts'}"
    settings = ("--vocab-size", 300, "--context", 16, "--holdout-ppm", 200_000)
    code, out, _ = barnraise("data", source, "--out", tmp_path / "a", *settings, "--json")
    answer = json.loads(out)
    dataset = RunFolder(run).parsed_manifest().dataset
    assert code == 0
    assert answer["root"] == dataset["root"]
    assert answer["train_windows"] == sum(shard["windows"] for shard in dataset["train"])
    assert answer["unigram"] == read_story(RunFolder(run)).unigram
    code, out, _ = barnraise("data", source, "--out", tmp_path / "b", *settings)
    assert code == 0
    assert dataset["root"] in out
    assert "--data.vocab-size 300" in out
    assert "--model.context 16" in out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["python-stdlib", "--vocab-size", "3"], "vocab_size"),
        (["file:/nowhere/at/all"], "/nowhere/at/all"),
        (["carrier-pigeon:x"], "carrier-pigeon"),
    ],
)
def test_data_says_what_is_wrong(
    tmp_path: Path, barnraise: Barnraise, arguments: list[str], what: str
) -> None:
    code, _, err = barnraise("data", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert what in err
    assert not (tmp_path / "out").exists()


def test_keys_are_made_once_and_never_shown(tmp_path: Path, barnraise: Barnraise) -> None:
    path = tmp_path / "new" / "key"
    code, out, _ = barnraise("keys", "new", path)
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().split()[1]
    shown = [out, *barnraise("keys", "show", path)[1:], *barnraise("keys", "show", path, "--json")[1:]]
    assert PrivateKey.load(path).public in shown[0]
    assert all(secret not in text for text in shown)
    assert json.loads(shown[3])["key"] == PrivateKey.load(path).public
    code, _, err = barnraise("keys", "new", path)
    assert code == 2
    assert "exists already" in err
    assert path.read_text().split()[1] == secret


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, barnraise: Barnraise) -> None:
    path = tmp_path / "key"
    barnraise("keys", "new", path)
    path.chmod(0o644)
    code, out, err = barnraise("keys", "show", path)
    assert (code, out) == (2, "")
    assert "0600" in err


def test_an_unknown_option_is_wrong_use(barnraise: Barnraise) -> None:
    code, out, err = barnraise("plan", "--nonsense")
    assert (code, out) == (2, "")
    assert "--nonsense" in err


def test_doctor_names_the_numerics(tmp_path: Path, barnraise: Barnraise) -> None:
    places = ("--home", tmp_path / "home", "--folder", tmp_path / "runs")
    code, out, _ = barnraise("doctor", "--numerics", "--json", *places)
    answer = json.loads(out)
    assert code == (0 if answer["ok"] else 1)
    assert answer["numerics_class"].startswith("exact-avx2.v2/x86-64/")
    assert answer["probe_digest"].startswith("sha256:")
    names = [check["name"] for check in answer["checks"]]
    assert names == ["python", "packages", "processor", "cores", "memory", "disk", "home"]
    assert not (tmp_path / "home").exists()
    assert "numerics_class" not in json.loads(barnraise("doctor", "--json", *places)[1])


def test_doctor_finds_a_key_that_others_can_read(run: Path, barnraise: Barnraise, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(run.parent / "home", home)
    assert doctor.home_check(home).status == "ok"
    key = next(home.rglob("key"))
    key.chmod(0o640)
    code, out, _ = barnraise("doctor", "--home", home, "--folder", tmp_path)
    assert code == 1
    assert str(key) in out
    assert "chmod 600" in out
    assert "Next: mend" in out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("numpy>=1.0,<99", None),
        ("numpy", None),
        ("numpy>=99", "needed is >=99"),
        ("numpy>=1,<1.5", "needed is"),
        ("no-such-package-here>=1", "is missing"),
        ("numpy !!", "is not understood"),
    ],
)
def test_packages_are_compared_with_their_range(line: str, problem: str | None) -> None:
    found = doctor.package_problem(line)
    assert found is None if problem is None else found is not None and problem in found


def test_the_requirements_are_those_of_the_project() -> None:
    names = {re.split(r"[<>=; ]", line)[0] for line in doctor.requirements()}
    assert {"torch", "ray", "cryptography", "numpy", "wandb"} <= names
    assert "pytest" not in names


def test_the_limits_of_a_machine() -> None:
    gib = doctor.GIB
    assert [doctor.memory_check(free).status for free in (gib // 2, 2 * gib, 8 * gib, None)] == [
        "wrong", "warning", "ok", "warning",
    ]  # fmt: skip
    assert [doctor.cores_check(cores).status for cores in (1, 2)] == ["warning", "ok"]
    assert [doctor.python_check(version).status for version in ((3, 10), (3, 11), (3, 14))] == [
        "wrong", "ok", "ok",
    ]  # fmt: skip
    assert doctor.packages_check([]).status == "wrong"


def test_a_place_under_a_file_cannot_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.disk_check(tmp_path / "file" / "runs").status == "wrong"
    assert doctor.home_check(tmp_path / "file" / "home").status == "wrong"
    assert doctor.disk_check(tmp_path / "new" / "runs").status != "wrong"
