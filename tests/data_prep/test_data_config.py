"""data_prep/config.py: strict, frozen, from TOML by way of JSON."""

from __future__ import annotations

import json
import tomllib

import pytest
from pydantic import ValidationError

from data_prep.config import DataConfig
from verification.encoding import canonical_json

FULL = """
source = "hub:owner/name:config@v1"
split = "train"
text_field = "content"
licence = "CC-BY-4.0"
vocab_size = 4096
tokenizer = "tokenizer.json"
context = 256
holdout_ppm = 10000
holdout_key = "k"
max_bytes = 1000000
"""


def from_toml(text: str) -> DataConfig:
    return DataConfig.model_validate_json(json.dumps(tomllib.loads(text)))


def test_full_config_from_toml_sets_every_field() -> None:
    config = from_toml(FULL)
    assert config.model_dump() == tomllib.loads(FULL)
    assert set(config.model_dump()) == set(DataConfig.model_fields)


def test_defaults_are_the_demo() -> None:
    config = from_toml("")
    assert (config.source, config.vocab_size, config.context) == ("python-stdlib", 2048, 128)


def test_every_field_is_described() -> None:
    assert all(field.description for field in DataConfig.model_fields.values())


def test_dump_has_canonical_json_so_no_floats() -> None:
    assert canonical_json(DataConfig().model_dump()).startswith(b'{"context":128,')
    assert not any(field.annotation is float for field in DataConfig.model_fields.values())


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DataConfig().context = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contexts = 3", "Extra inputs"),
        ("context = 128.0", "valid integer"),
        ('context = "128"', "valid integer"),
        ("context = true", "valid integer"),
        ("context = 0", "greater than or equal to 1"),
        ("vocab_size = 256", "greater than or equal to 257"),
        ("holdout_ppm = 0", "greater than or equal to 1"),
        ("holdout_ppm = 1000000", "less than or equal to 999999"),
        ("max_bytes = -1", "greater than or equal to 0"),
        ('source = ""', "at least 1 character"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        from_toml(text)
