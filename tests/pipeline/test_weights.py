"""`barnraise verify --weights`: an exported model is tied to a round of the log, or it is said why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from model.arrays import ArraySpec, arrays_digest, safetensors_bytes
from pipeline import cli
from pipeline.folder import RunFolder
from pipeline.report import read_story
from pipeline.weights import MOST_HEADER_BYTES, _Named, _named_weights, read_weights
from tests.pipeline.late_runs import late_story, records_of, settlements
from tests.pipeline.verify_tools import asked
from tests.tiny import copy_run
from verification.errors import BarnraiseError, FormatError
from verification.fsck import check_run
from verification.records import RoundClose

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
ABSENT = ("torch", "ray", "wandb", "tokenizers", "datasets", "transformers")
SPECS = [ArraySpec("a", (2, 3)), ArraySpec("b", (4,))]
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, dtype=np.float32)}


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last round of `run`, for transformers."""
    out = tmp_path_factory.mktemp("weights") / "model"
    assert cli.run(["export", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def found(capsys: Capture, run: Path, weights: Path, *more: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    return asked(capsys, str(run), "--level", "1", "--weights", str(weights), *more)


@pytest.mark.parametrize("level", ["1", "2", "3"])
def test_the_round_is_named(run: Path, exported: Path, capsys: Capture, level: str) -> None:
    code, answer = found(capsys, run, exported, "--level", level)
    assert (code, answer["failures"], answer["level"]) == (0, [], int(level))
    assert answer["weights"] == {
        "round": 3,
        "digest": answer["weights_digest"],
        "settled": True,
        "files": ["config.json", "model.safetensors", "tokenizer.json"],
        "other": ["README.md", "tokenizer_config.json"],
    }


def test_without_the_option_nothing_is_said(run: Path, capsys: Capture) -> None:
    assert asked(capsys, str(run), "--level", "1")[1]["weights"] is None


@pytest.mark.parametrize("round_", [0, 2])
def test_other_rounds_are_known_too(run: Path, tmp_path: Path, capsys: Capture, round_: int) -> None:
    assert cli.run(["export", str(run), "--out", str(tmp_path / "out"), "--round", str(round_)]) == 0
    code, answer = found(capsys, run, tmp_path / "out" / "model.safetensors")
    assert code == 0
    assert answer["weights"]["round"] == round_
    assert answer["weights"]["digest"] == read_story(RunFolder(run)).weights(round_)


def test_in_words(run: Path, exported: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["verify", str(run), "--weights", str(exported)]) == 0
    words = capsys.readouterr().out
    assert f"{exported} is the weights after round 3" in words
    assert "not compared: README.md" in words


def test_the_export_and_its_card_name_the_command(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert f"Next: barnraise verify {run} --weights {tmp_path / 'out'}" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("barnraise verify RUN --weights .")]
    command = (
        line.replace("RUN", str(run)).replace(" . ", f" {tmp_path / 'out'} ").replace("'", "").split()[1:]
    )
    assert cli.run(command) == 0


def test_one_bit_makes_them_nobodys(run: Path, changed: Path, capsys: Capture) -> None:
    path = changed / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    code, answer = found(capsys, run, changed)
    assert (code, answer["ok"]) == (1, False)
    assert answer["weights"]["round"] is None
    (failure,) = answer["failures"]
    assert failure["what"] == "no checkpoint in the log has these weights"
    assert failure["got"] == answer["weights"]["digest"] != answer["weights_digest"]


def test_the_levels_are_checked_all_the_same(
    run: Path, changed: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Weights that are nobody's do not hide what else is wrong."""
    damaged = copy_run(run, tmp_path / "run")
    (damaged / "contributions.parquet").unlink()
    (changed / "tokenizer.json").write_text("{}")
    code, answer = found(capsys, damaged, changed, "--level", "2")
    assert code == 1
    assert answer["weights"]["round"] == 3
    wheres = [failure["where"] for failure in answer["failures"]]
    assert wheres == ["contributions.parquet", str(changed / "tokenizer.json")]


def test_another_layout_of_the_same_numbers_holds(run: Path, changed: Path, capsys: Capture) -> None:
    """The digest is over names, shapes and numbers: who saves the model again does not break the tie."""
    path = changed / "model.safetensors"
    before = path.read_bytes()
    arrays = load_file(path)
    save_file(dict(reversed(arrays.items())), path, metadata={"saved": "again"})
    assert path.read_bytes() != before
    code, answer = found(capsys, run, changed)
    assert (code, answer["weights"]["round"]) == (0, 3)


def test_the_weights_of_another_run_are_refused(run: Path, changed: Path, capsys: Capture) -> None:
    (changed / "model.safetensors").write_bytes(safetensors_bytes(ARRAYS))
    code, answer = found(capsys, run, changed)
    assert (code, answer["weights"]) == (1, None)
    assert answer["failures"][0]["what"] == "the file holds other arrays than the run's model has"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("rope_theta", 500.0, "rope_theta = 10000.0"),
        ("num_key_value_heads", 2, "num_key_value_heads = 1"),
        ("tie_word_embeddings", 1, "tie_word_embeddings = True"),
        ("auto_map", {"AutoModelForCausalLM": "x.Y"}, "no auto_map"),
        ("rope_scaling", {"type": "linear"}, "no rope_scaling"),
        ("head_dim", None, "head_dim = 8"),
    ],
)
def test_a_config_that_changes_what_the_numbers_mean(
    run: Path, changed: Path, capsys: Capture, name: str, change: Any, expected: str
) -> None:
    path = changed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: change}))
    code, answer = found(capsys, run, changed)
    assert code == 1
    (failure,) = answer["failures"]
    assert failure["what"] == "config.json describes another model than the run's"
    assert failure["expected"] == expected


def test_what_transformers_adds_changes_no_number(run: Path, changed: Path, capsys: Capture) -> None:
    path = changed / "config.json"
    config = json.loads(path.read_text()) | {
        "transformers_version": "5.0",
        "use_cache": False,
        "dtype": "float32",
    }
    path.write_text(json.dumps(config | {"rope_theta": 10000}))
    assert found(capsys, run, changed)[0] == 0


def test_another_tokenizer_is_told(run: Path, changed: Path, capsys: Capture) -> None:
    path = changed / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    code, answer = found(capsys, run, changed)
    assert code == 1
    assert answer["failures"][0]["what"] == "the tokenizer is not that of the run"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "empty", "junk"])
def test_files_that_are_none(run: Path, changed: Path, capsys: Capture, name: str, kind: str) -> None:
    path = changed / name
    path.unlink()
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to("nowhere"),
        "empty": lambda: path.write_bytes(b""),
        "junk": lambda: path.write_bytes(b"\xff\x00[" * 40),
    }
    make[kind]()
    code, answer = found(capsys, run, changed)
    assert code == 1
    assert len(answer["failures"]) == 1


def test_no_folder_is_wrong_use(run: Path, tmp_path: Path, capsys: Capture) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        assert cli.run(["verify", str(run), "--weights", str(place)]) == 2
        assert "is not there" in capsys.readouterr().err


def test_a_run_that_does_not_hold_ties_nothing(
    run: Path, exported: Path, tmp_path: Path, capsys: Capture
) -> None:
    damaged = copy_run(run, tmp_path / "run")
    bundle = next((damaged / "log" / "tile" / "entries").rglob("[0-9]*.p/*"))
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(bytes(data))
    code, answer = found(capsys, damaged, exported)
    assert (code, answer["weights"]) == (1, None)


def test_a_plain_install_is_enough(run: Path, exported: Path) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pipeline import cli\n"
        f"sys.exit(cli.run(['verify', {str(run)!r}, '--weights', {str(exported)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is the weights after round 3" in done.stdout


@pytest.mark.slow
def test_where_audits_lag_only_what_is_settled_is_said_to_be(tmp_path: Path, capsys: Capture) -> None:
    story = late_story(tmp_path / "late", 2)
    file = RunFolder(story.folder).weights_file(4)
    code, answer = found(capsys, story.folder, file)
    assert (code, answer["weights"]["round"], answer["weights"]["settled"]) == (0, 4, True)
    named = _named_weights(story.folder, RunFolder(story.folder).parsed_manifest(), check_run(story.folder))
    assert (sorted(named.now), named.settled, named.replaced) == ([0, 1, 2, 3, 4], {0, 1, 2, 3, 4}, {})


@pytest.mark.slow
def test_weights_that_a_settlement_changed_are_of_no_round_any_more(tmp_path: Path) -> None:
    story = late_story(tmp_path / "late", 1, "lazy")
    folder, records = RunFolder(story.folder), records_of(story)
    named = _named_weights(story.folder, folder.parsed_manifest(), check_run(story.folder))
    closes = {record.round: record for record in records if isinstance(record, RoundClose)}
    final = {record.round: record.settled.weights for record in settlements(records)}
    assert {round_: digest for round_, digest in named.now.items() if round_} == final
    changed = {close.weights: round_ for round_, close in closes.items() if close.weights != final[round_]}
    assert changed
    assert changed.items() <= named.replaced.items()
    assert not named.replaced.keys() & set(named.now.values())


def test_what_was_replaced_is_said(run: Path, exported: Path, capsys: Capture, monkeypatch: Patch) -> None:
    digest = found(capsys, run, exported)[1]["weights"]["digest"]
    monkeypatch.setattr("pipeline.weights._named_weights", lambda *_: _Named({0: "x"}, {0}, {digest: 2}))
    code, answer = found(capsys, run, exported)
    assert (code, answer["weights"]["round"]) == (1, None)
    assert answer["failures"][0]["what"].startswith("a settlement took contributions out")


def test_a_void_turns_settlement_names_no_weights_of_its_own() -> None:
    """Its `settled` is the checkpoint before it, which stays that round's."""
    named = _Named({0: "start"}, {0})
    for round_, digest in ((1, "one"), (2, "two")):
        named.put(round_, digest)
    named.put(2, "two")
    named.outdate(1, 2)
    assert (named.now, named.replaced) == ({0: "start", 2: "two"}, {"one": 1})


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_type_that_would_change_the_numbers_is_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: Capture, key: str
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    for value, code in (("float32", 0), ("float16", 1)):
        (copy / "config.json").write_text(json.dumps(config | {key: value}))
        assert found(capsys, run, copy)[0] == code


def test_an_adapter_beside_the_weights_is_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "adapter_config.json").write_text("{}")
    code, answer = found(capsys, run, copy)
    assert code == 1
    assert "adapter" in answer["failures"][0]["what"]


# --- the format ---


def header(**items: Any) -> bytes:
    text = json.dumps(items).encode()
    return len(text).to_bytes(8, "little") + text


def item(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


DATA = bytes(40)
A, B = item(0, 24, [2, 3]), item(24, 40, [4])


def test_the_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(safetensors_bytes(ARRAYS))
    read = read_weights(path, SPECS)
    assert arrays_digest(read) == arrays_digest(ARRAYS)
    path.write_bytes(header(b=item(0, 16, [4]), a=item(16, 40, [2, 3])) + DATA)
    assert set(read_weights(path, SPECS)) == {"a", "b"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        (1).to_bytes(8, "little") + b"{",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (MOST_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 64,
        header() + DATA,
        header(a=A) + DATA,
        header(a=A, b=B, c=item(40, 40, [0])) + DATA,
        header(a=A, b=B) + DATA[:-1],
        header(a=A, b=B) + DATA + b"x",
        header(a=A, b=item(24, 40, [4], "BF16")) + DATA,
        header(a=A, b=item(24, 40, [2, 2])) + DATA,
        header(a=A, b=item(24, 40, [True])) + DATA,
        header(a=A, b=item(0, 16, [4])) + DATA,
        header(a=A, b=item(28, 44, [4])) + DATA,
        header(a=A, b=item(24, 41, [4])) + DATA,
        header(a=A, b=item(-16, 0, [4])) + DATA,
        header(a=A, b={"dtype": "F32", "shape": [4]}) + DATA,
        header(a=A, b={"dtype": "F32", "shape": [4], "data_offsets": [24.0, 40.0]}) + DATA,
        header(a=A, b={"dtype": "F32", "shape": [4], "data_offsets": [24, "40"]}) + DATA,
        header(a=A, b=[]) + DATA,
        header(a=A, b=None) + DATA,
        (2).to_bytes(8, "little") + b"[]" + DATA,
        (15).to_bytes(8, "little") + b'{"a":1,"a":[1]}' + DATA,
        (100_000).to_bytes(8, "little") + b"[" * 100_000 + DATA,
        (6000).to_bytes(8, "little") + b'{"a": ' + b"9" * 5993 + b"}" + DATA,
    ],
)
def test_bytes_that_are_no_weights_are_of_the_family(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        read_weights(path, SPECS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 250), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, at: int, data: bytes) -> None:
    good = safetensors_bytes(ARRAYS)
    path = tmp_path / "w"
    path.write_bytes(good[:at] + data + good[at + len(data) :])
    try:
        read = read_weights(path, SPECS)
    except BarnraiseError:
        return
    assert {name: array.shape for name, array in read.items()} == {"a": (2, 3), "b": (4,)}


# --- in transformers ---


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_transformers_computes_the_same_logits(run: Path, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from model import transformer
    from pipeline.config import config_from_manifest

    story = read_story(RunFolder(run))
    config = config_from_manifest(story.manifest.config).model
    weights = {name: torch.from_numpy(a) for name, a in load_file(exported / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(config.vocab_size, (3, config.context), generator=generator)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(exported)).eval()
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits
        ours = transformer.logits(config, weights, tokens)
    assert ours.shape == theirs.shape == (3, config.context, config.vocab_size)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert ours.std() > 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(exported))
    assert tokenizer.decode(tokenizer.encode("abc def")) == "abc def"
    # And a model that was saved again there is still the run's.
    model.save_pretrained(str(exported.with_name("again")))
    again = read_weights(exported.with_name("again") / "model.safetensors", [
        ArraySpec(name, shape) for name, shape in story.manifest.arrays
    ])  # fmt: skip
    assert arrays_digest(again) == story.weights(story.rounds)
