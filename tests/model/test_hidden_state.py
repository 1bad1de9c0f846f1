"""Which arrays the hidden state holds, between rounds and within one."""

import numpy as np
import pytest

from model.arrays import ArraySpec
from model.hidden_state import midway_specs, state_specs, zero_state

SPECS = [ArraySpec("a", (2, 3)), ArraySpec("b", (5,))]
VECTOR = (np.float32, (11,))
STEP = {"step": (np.int64, ())}


def test_the_state_between_rounds():
    local = STEP | dict.fromkeys(("error_feedback", "adam_m", "adam_v"), VECTOR)
    assert state_specs(SPECS, "local") == local
    assert state_specs(SPECS, "gradient") == STEP | {"error_feedback": VECTOR}


def test_within_a_round_gradient_mode_holds_the_sum_too():
    assert midway_specs(SPECS, "local") == state_specs(SPECS, "local")
    assert midway_specs(SPECS, "gradient") == STEP | {"error_feedback": VECTOR, "gradient_sum": VECTOR}
    assert "gradient_sum" not in state_specs(SPECS, "gradient")


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_without_history_everything_is_zero(mode):
    state = zero_state(SPECS, mode)
    assert {name: (array.dtype.type, array.shape) for name, array in state.items()} == state_specs(
        SPECS, mode
    )
    assert not any(array.any() for array in state.values())
