"""The configuration: what ships loads, what is wrong is told in a sentence, floats survive the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, config_from_manifest, load_config, manifest_config, parse_config
from pipeline.options import override
from tests.tiny import tiny_config
from verification.encoding import canonical_json
from verification.errors import BarnraiseError, UsageError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.toml"))
DEMO = (Path(__file__).parents[2] / "configs" / "demo.toml").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_survives_the_manifest(path: Path) -> None:
    config = load_config(path)
    assert config_from_manifest(manifest_config(config)) == config


def test_there_are_shipped_configurations() -> None:
    assert "demo.toml" in {path.name for path in CONFIGS}


def told(tmp_path: Path, text: str | bytes) -> str:
    """The sentence for a configuration file that is refused."""
    path = tmp_path / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        load_config(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence


def with_line(section: str, line: str) -> str:
    """The demo with a line of a section replaced, or added."""
    field = line.split("=", maxsplit=1)[0].strip()
    kept, inside = [], False
    for old in DEMO.splitlines():
        if old.startswith("["):
            inside = old == f"[{section}]"
        if not (inside and old.split("=")[0].strip() == field):
            kept.append(old)
        if old == f"[{section}]":
            kept.append(line)
    if f"[{section}]" not in DEMO:
        kept += [f"[{section}]", line]
    return "\n".join(kept)


BAD: list[tuple[str, str, tuple[str, ...]]] = [
    ("run", "round = 3", ("run.round is not a known field",)),
    ("run", 'rounds = "many"', ("run.rounds", "valid integer", "'many'")),
    ("run", "rounds = 1.5", ("run.rounds", "integer", "1.5")),
    ("run", "rounds = 0", ("run.rounds", "greater than or equal to 1", "0")),
    ("run", "rounds = true", ("run.rounds", "valid integer", "True")),
    ("run", f"rounds = {1 << 20}", ("run.rounds must be below 2^20",)),
    ("run", f"seed = {1 << 53}", ("run.seed", "less than or equal to")),
    ("run", "seed = 1979-05-27", ("run.seed", "valid integer", "1979-05-27")),
    ("run", 'profile = "fast"', ("run.profile", "'exact' or 'native'", "'fast'")),
    ("train.inner", "lr = nan", ("train.inner.lr", "nan")),
    ("train.inner", "lr = inf", ("train.inner.lr", "finite", "inf")),
    ("train.inner", "lr = -1", ("train.inner.lr", "greater than 0", "-1")),
    ("train", "steps = []", ("train.steps", "at least 1 item")),
    ("train", "steps = [4, 0]", ("train.steps.1", "greater than or equal to 1", "0")),
    ("train", "micro_batch = [2]", ("train.micro_batch has 1 numbers for", "one for each")),
    ("train", "micro_batch = [0]", ("train.micro_batch.0", "greater than or equal to 1", "0")),
    ("train", "steps = 4", ("train.steps", "valid array", "4")),
    ("train", 'mode = "gradient"', ("train.mode gradient needs outer.optimizer adamw",)),
    ("compression", "k = 63", ("compression", "k must be a power of two")),
    ("compression", "k = 2048", ("compression", "k must lie between 8 and chunk / 4")),
    ("compression", "chunk = 4095", ("compression", "chunk must be a power of two")),
    ("data", "context = 64", ("data.context 64 and model.context 128 differ",)),
    ("data", "vocab_size = 512", ("data.vocab_size 512 and model.vocab_size 2048 differ",)),
    ("model", "n_heads = 3", ("n_heads",)),
    ("audit", "rate_ppm = 1_000_001", ("audit.rate_ppm", "1000001")),
    ("audit", "auditors = 0", ("audit.auditors 0 needs",)),
    ("credit", "strikes = 0", ("credit.strikes", "0")),
    ("nonsense", "a = 1", ("nonsense is not a known field",)),
]


@pytest.mark.parametrize(("section", "line", "words"), BAD, ids=[f"{s}.{line}" for s, line, _ in BAD])
def test_each_mistake_names_field_expected_and_got(
    tmp_path: Path, section: str, line: str, words: tuple[str, ...]
) -> None:
    sentence = told(tmp_path, with_line(section, line))
    for word in words:
        assert word in sentence


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert "model is missing" in told(tmp_path, "[run]\nrounds = 3\n")


@pytest.mark.parametrize("text", ["not toml", "[run\n", "a = ", b"\xff\xfe", "[run]\nrounds = 1\nrounds = 2"])
def test_what_is_not_toml_is_said(tmp_path: Path, text: str | bytes) -> None:
    sentence = told(tmp_path, text)
    assert "is not TOML" in sentence or "is not UTF-8" in sentence


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_config(path)


positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
share = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(positive, share, share, positive, st.floats(0, 1), st.floats(min_value=0, max_value=1e300))
def test_floats_survive_the_manifest_to_the_bit(
    lr: float, beta1: float, beta2: float, eps: float, feedback: float, decay: float
) -> None:
    inner = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": decay}
    config = tiny_config(
        train={"inner": inner}, outer={"lr": lr, "momentum": beta1}, compression={"error_feedback": feedback}
    )
    value = manifest_config(config)
    again = config_from_manifest(json.loads(canonical_json(value)))
    assert again == config
    assert again.train.inner.lr.hex() == float(lr).hex()
    assert value["train"]["inner"]["lr"] == float(lr).hex()


def test_a_manifest_of_another_shape_is_refused() -> None:
    value = manifest_config(tiny_config())
    for wrong in (
        {},
        {**value, "extra": {}},
        {**value, "run": {**value["run"], "rounds": "3"}},
        {**value, "outer": {**value["outer"], "lr": "0x1.80p+0"}},
        {**value, "outer": {**value["outer"], "lr": "1.5"}},
    ):
        with pytest.raises(BarnraiseError):
            config_from_manifest(wrong)


# --- overrides on the command line ---


def test_dotted_options_replace_single_fields() -> None:
    config = override(
        tiny_config(),
        ["--run.rounds", "7", "--train.steps", "5", "6", "--outer.lr=2", "--train.trace-every", "1"],
    )
    assert (config.run.rounds, config.train.steps, config.outer.lr, config.train.trace_every) == (
        7,
        (5, 6),
        2.0,
        1,
    )
    assert config.model == tiny_config().model
    assert override(config, ["--train.steps", "[1, 2]"]).train.steps == (1, 2)
    assert override(config, ["--train.steps", "4"]).train.steps == (4,)
    assert override(config, ["--data.text-field", "123"]).data.text_field == "123"
    assert override(config, []) == config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run.round", "3"], ("no option --run.round", "--run.rounds")),
        (["--run", "3"], ("no option --run",)),
        (["stray"], ("no option stray",)),
        (["--run.rounds"], ("--run.rounds takes one value", "none")),
        (["--run.rounds", "1", "2"], ("--run.rounds takes one value", "1 2")),
        (["--run.rounds", "x"], ("run.rounds", "valid integer", "'x'")),
        (["--run.rounds", "1\nseed = 2"], ("run.rounds", "valid integer")),
        (["--compression.k", "7"], ("compression", "power of two")),
        (["--outer.lr", "nan"], ("outer.lr", "nan")),
        (["--train.mode", "gradient"], ("needs outer.optimizer adamw",)),
    ],
)
def test_a_wrong_option_is_told_in_a_line(arguments: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        override(tiny_config(), arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_configuration_is_frozen() -> None:
    config = tiny_config()
    with pytest.raises(Exception, match="frozen"):
        config.run = config.run  # type: ignore[misc]
    values: dict[str, Any] = json.loads(config.model_dump_json())
    assert parse_config(values, "here") == config
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    "fields",
    [{"steps": [2] * 130}, {"steps": [1900], "trace_every": 10}, {"steps": [700], "trace_every": 1}],
)
def test_a_round_that_fits_no_log_entry_is_refused_before_it_starts(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="does not fit a log entry"):
        tiny_config(train=fields)
