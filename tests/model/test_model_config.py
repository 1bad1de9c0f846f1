"""Shapes: what is refused, and what the presets promise."""

import pytest
from pydantic import ValidationError

from model.config import PRESETS, ModelConfig, parameter_count
from model.init import array_specs

TINY = {
    "vocab_size": 32, "context": 8, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24,
    "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": 18}, "d_model (18) must be a multiple of n_heads (4)"),
        ({"d_model": 12}, "the head size d_model / n_heads (3) must be even"),
        ({"n_kv_heads": 3}, "n_heads (4) must be a multiple of n_kv_heads (3)"),
        ({"d_ff": 0}, "greater than or equal to 1"),
        ({"init_std": float("nan")}, "init_std"),
        ({"d_ff": "24"}, "valid integer"),
        ({"dropout": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_a_shape_that_cannot_work_is_refused_in_words(change, words):
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**(TINY | change))
    assert words in str(caught.value)


def test_a_config_cannot_be_changed():
    config = ModelConfig(**TINY)
    with pytest.raises(ValidationError):
        config.d_ff = 48


def test_every_field_is_described():
    assert all(field.description for field in ModelConfig.model_fields.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_about_the_parameters_it_names(name):
    config = ModelConfig(**PRESETS[name])
    number, unit = float(name[:-1]), name[-1]
    wanted = number * {"m": 1e6, "b": 1e9}[unit]
    assert abs(parameter_count(config) / wanted - 1) < 0.3


def test_the_count_is_the_sum_over_the_arrays():
    for shape in (TINY, PRESETS["5m"], PRESETS["1b"]):
        config = ModelConfig(**shape)
        assert parameter_count(config) == sum(spec.size for spec in array_specs(config))
