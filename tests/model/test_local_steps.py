"""The work: its arithmetic and its trace worked out again in numpy, purity, restarts, errors."""

import hashlib
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from blake3 import blake3

from model.arrays import arrays_digest, arrays_from_bytes, arrays_to_bytes, flatten, unflatten
from model.config import ModelConfig
from model.hidden_state import state_specs, zero_state
from model.init import array_specs, initial_weights
from model.local_steps import WorkSpec, evaluate, local_steps
from model.transformer import loss
from verification.errors import FormatError, WorkError

CONFIG = ModelConfig(
    vocab_size=32, context=12, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=20,
    rope_theta=10000.0, norm_eps=1e-5, init_std=0.1,
)  # fmt: skip
SPECS = array_specs(CONFIG)
LOCAL = WorkSpec("local", 2, 0.9, 0.95, 1e-8, 0.1, 0.0)
GRADIENT = replace(LOCAL, mode="gradient", trace_every=1)
WEIGHTS = initial_weights(CONFIG, 1)
BATCHES_SBT = np.random.default_rng(2).integers(0, 32, (5, 3, 13))
RATES = [0.01, 0.02, 0.015, 0.005, 0.001]


def started_state(mode="local"):
    """A hidden state with some history, so that carrying it over matters."""
    state = zero_state(SPECS, mode)
    state["step"] += 7
    dice = np.random.default_rng(4)
    for name in state.keys() - {"step"}:
        state[name] = np.square(dice.normal(0, 0.03, state[name].shape)).astype(np.float32)
    return state


def plain_digest(arrays):
    """Array digest written from the specification."""
    hasher = blake3(b"barnraise-arrays-v1\n" + struct.pack("<I", len(arrays)))
    for name in sorted(arrays, key=str.encode):
        array = arrays[name]
        code = {"float32": 0, "float64": 1, "int64": 2}[array.dtype.name]
        hasher.update(struct.pack("<H", len(name)) + name.encode() + bytes([code, array.ndim]))
        hasher.update(struct.pack(f"<{array.ndim}Q", *array.shape) + array.tobytes())
    return "blake3:" + hasher.hexdigest()


def plain_leaf(losses, state, step, weights):
    value = {"losses": losses, "state": plain_digest(state), "step": step, "weights": plain_digest(weights)}
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return "sha256:" + hashlib.sha256(b"barnraise/trace-leaf/v1\0" + text).hexdigest()


def gradient_of(weights, batch_BT):
    """One batch's gradient and loss, through the gradient mode."""
    result = local_steps(CONFIG, GRADIENT, weights, zero_state(SPECS, "gradient"), batch_BT[None], [])
    return result.update, result.losses[0]


def test_adamw_and_its_trace_are_these_numpy_operations():
    state = started_state()
    m, v, w = state["adam_m"].copy(), state["adam_v"].copy(), flatten(WEIGHTS, SPECS)
    decays = np.concatenate([np.full(spec.size, len(spec.shape) >= 2) for spec in SPECS])
    f32, losses, leaves = np.float32, [], []
    for s, batch_BT in enumerate(BATCHES_SBT):
        g, micronats = gradient_of(unflatten(w, SPECS), batch_BT)
        losses.append(micronats)
        m = m * f32(0.9) + g * f32(1 - 0.9)
        v = v * f32(0.95) + (g * g) * f32(1 - 0.95)
        t = 7 + s + 1
        root = np.sqrt(v / f32(1 - 0.95**t)) + f32(1e-8)
        move = m / f32(1 - 0.9**t) / root * f32(RATES[s])
        w = np.where(decays, w * f32(1 - RATES[s] * 0.1), w) - move
        if s in {1, 3, 4}:
            so_far = {
                "step": np.array(t),
                "error_feedback": state["error_feedback"],
                "adam_m": m,
                "adam_v": v,
            }
            leaves.append(plain_leaf(losses[{1: 0, 3: 2, 4: 4}[s] :], so_far, s + 1, unflatten(w, SPECS)))
    result = local_steps(CONFIG, LOCAL, WEIGHTS, state, BATCHES_SBT, RATES)
    assert result.losses == tuple(losses)
    assert result.update.tobytes() == (flatten(WEIGHTS, SPECS) - w).tobytes()
    assert result.state["adam_m"].tobytes() == m.tobytes()
    assert result.state["adam_v"].tobytes() == v.tobytes()
    assert int(result.state["step"]) == 12
    assert result.state["error_feedback"].tobytes() == state["error_feedback"].tobytes()
    assert result.leaves == tuple(leaves)


@pytest.mark.parametrize("max_norm", [0.0, 0.05])
def test_local_steps_follow_torchs_adamw(max_norm):
    parameters = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in WEIGHTS.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    for rate, batch_BT in zip(RATES, BATCHES_SBT, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss(CONFIG, parameters, torch.from_numpy(batch_BT)).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        optimizer.step()
    wanted = flatten(WEIGHTS, SPECS) - flatten({n: p.detach().numpy() for n, p in parameters.items()}, SPECS)
    spec = replace(LOCAL, max_grad_norm=max_norm)
    got = local_steps(CONFIG, spec, WEIGHTS, zero_state(SPECS, "local"), BATCHES_SBT, RATES).update
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_clipping_changes_the_work():
    state = zero_state(SPECS, "local")
    clipped = local_steps(CONFIG, replace(LOCAL, max_grad_norm=0.05), WEIGHTS, state, BATCHES_SBT, RATES)
    assert np.linalg.norm(clipped.state["adam_m"]) <= 0.05
    assert (
        np.linalg.norm(local_steps(CONFIG, LOCAL, WEIGHTS, state, BATCHES_SBT, RATES).state["adam_m"]) > 0.05
    )


def test_gradient_mode_gives_the_mean_gradient_and_traces_the_sum():
    state = started_state("gradient")
    result = local_steps(CONFIG, GRADIENT, WEIGHTS, state, BATCHES_SBT, [])
    total, leaves = np.zeros_like(result.update), []
    for s, batch_BT in enumerate(BATCHES_SBT):
        parameters = {
            name: torch.from_numpy(array.copy()).requires_grad_() for name, array in WEIGHTS.items()
        }
        value = loss(CONFIG, parameters, torch.from_numpy(batch_BT))
        value.backward()
        total += flatten({name: parameter.grad.numpy() for name, parameter in parameters.items()}, SPECS)
        so_far = {"step": np.array(8 + s), "error_feedback": state["error_feedback"], "gradient_sum": total}
        leaves.append(plain_leaf([math.floor(value.item() * 1e6)], so_far, s + 1, WEIGHTS))
    assert result.update.tobytes() == (total / np.float32(5)).tobytes()
    assert result.leaves == tuple(leaves)
    assert result.state.keys() == {"step", "error_feedback"}
    assert int(result.state["step"]) == 12


@pytest.mark.parametrize(("trace_every", "leaves"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_leaves_come_every_so_often_and_at_the_end(trace_every, leaves):
    spec = replace(LOCAL, trace_every=trace_every)
    whole = local_steps(CONFIG, spec, WEIGHTS, started_state(), BATCHES_SBT, RATES)
    assert len(whole.leaves) == leaves
    every = local_steps(CONFIG, replace(LOCAL, trace_every=1), WEIGHTS, started_state(), BATCHES_SBT, RATES)
    covers_one_step = 5 % trace_every == 1 or trace_every == 1
    assert (whole.leaves[-1] == every.leaves[-1]) == covers_one_step
    assert whole.update.tobytes() == every.update.tobytes()


@pytest.mark.parametrize("spec", [LOCAL, GRADIENT])
def test_the_work_is_pure_also_on_read_only_views(spec):
    weights_bytes, state = arrays_to_bytes(WEIGHTS), started_state(spec.mode)
    state_bytes, batches_bytes = arrays_to_bytes(state), BATCHES_SBT.tobytes()
    weights = unflatten(np.frombuffer(flatten(WEIGHTS, SPECS).tobytes(), np.float32), SPECS)
    frozen = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in state.items()}
    batches = np.frombuffer(batches_bytes, np.int64).reshape(BATCHES_SBT.shape)
    first = local_steps(CONFIG, spec, weights, frozen, batches, RATES)
    again = local_steps(CONFIG, spec, WEIGHTS, state, BATCHES_SBT, RATES)
    assert (first.leaves, first.losses) == (again.leaves, again.losses)
    assert first.update.tobytes() == again.update.tobytes()
    assert arrays_digest(first.state) == arrays_digest(again.state)
    assert arrays_to_bytes(weights) == arrays_to_bytes(WEIGHTS) == weights_bytes
    assert arrays_to_bytes(frozen) == arrays_to_bytes(state) == state_bytes
    assert batches.tobytes() == BATCHES_SBT.tobytes() == batches_bytes


def test_the_result_shares_no_memory_with_the_input():
    state = started_state()
    result = local_steps(CONFIG, LOCAL, WEIGHTS, state, BATCHES_SBT, RATES)
    assert not any(np.shares_memory(result.state[name], state[name]) for name in state)


def test_a_restart_from_the_state_in_between_goes_on_as_if_nothing_had_been():
    still = [0.0] * 5  # weights stay put, so only the hidden state carries the history
    spec = replace(LOCAL, weight_decay=0.0)
    whole = local_steps(CONFIG, spec, WEIGHTS, started_state(), BATCHES_SBT, still)
    half = local_steps(CONFIG, spec, WEIGHTS, started_state(), BATCHES_SBT[:2], still)
    stored = arrays_from_bytes(arrays_to_bytes(half.state), state_specs(SPECS, "local"))
    rest = local_steps(CONFIG, spec, WEIGHTS, stored, BATCHES_SBT[2:], still)
    assert arrays_digest(rest.state) == arrays_digest(whole.state)
    assert half.losses + rest.losses == whole.losses
    assert not whole.update.any()


def test_the_work_learns_and_evaluate_sees_it():
    windows_NT = (np.arange(80)[:, None] * 5 + np.arange(13)) % 32
    batches_SBT = windows_NT.reshape(20, 4, 13)
    weights, state = WEIGHTS, zero_state(SPECS, "local")
    before = evaluate(CONFIG, weights, windows_NT, 7)
    for _ in range(4):
        result = local_steps(CONFIG, LOCAL, weights, state, batches_SBT, [0.01] * 20)
        weights, state = unflatten(flatten(weights, SPECS) - result.update, SPECS), result.state
    after = evaluate(CONFIG, weights, windows_NT, 7)
    assert before > 3_000_000
    assert after < 500_000
    assert abs(before - math.log(32) * 1e6) < 300_000


def test_evaluate_is_the_mean_over_windows():
    windows_NT = BATCHES_SBT[:3].reshape(9, 13)
    each = [evaluate(CONFIG, WEIGHTS, windows_NT[i : i + 1], 1) for i in range(9)]
    assert evaluate(CONFIG, WEIGHTS, windows_NT, 4) == evaluate(CONFIG, WEIGHTS, windows_NT, 4)
    for batch in (1, 4, 100):
        assert abs(evaluate(CONFIG, WEIGHTS, windows_NT, batch) - sum(each) / 9) < 3


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_what_is_not_finite_is_an_error(name):
    poisoned = WEIGHTS | {"model.norm.weight": np.full(16, float(name), np.float32)}
    with pytest.raises(WorkError, match="loss is not finite"):
        local_steps(CONFIG, LOCAL, poisoned, started_state(), BATCHES_SBT, RATES)
    with pytest.raises(WorkError, match="loss is not finite"):
        evaluate(CONFIG, poisoned, BATCHES_SBT[0], 4)
    state = started_state() | {"adam_v": np.full_like(started_state()["adam_v"], -1)}
    with pytest.raises(WorkError, match="update is not finite"):
        local_steps(CONFIG, LOCAL, WEIGHTS, state, BATCHES_SBT[:1], RATES)


@pytest.mark.parametrize(
    "batches_SBT",
    [
        BATCHES_SBT[0],
        BATCHES_SBT[:0],
        BATCHES_SBT[:, :0],
        BATCHES_SBT[:, :, :-1],
        BATCHES_SBT.astype(np.int32),
        BATCHES_SBT - 1 - BATCHES_SBT.min(),
        BATCHES_SBT + 32,
    ],
)
def test_windows_that_do_not_fit_are_refused(batches_SBT):
    with pytest.raises(WorkError):
        local_steps(CONFIG, LOCAL, WEIGHTS, started_state(), batches_SBT, RATES)


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(FormatError, match="hidden state"):
        local_steps(CONFIG, LOCAL, WEIGHTS, started_state("gradient"), BATCHES_SBT, RATES)
    with pytest.raises(FormatError, match="weights"):
        local_steps(CONFIG, LOCAL, {}, started_state(), BATCHES_SBT, RATES)
    with pytest.raises(WorkError, match="learning rate"):
        local_steps(CONFIG, LOCAL, WEIGHTS, started_state(), BATCHES_SBT, RATES[:4])
    with pytest.raises(WorkError, match="trace_every"):
        local_steps(CONFIG, replace(LOCAL, trace_every=0), WEIGHTS, started_state(), BATCHES_SBT, RATES)


@pytest.mark.parametrize("step", [-1, 2**62])
def test_a_hostile_step_counter_is_refused(step):
    with pytest.raises(WorkError, match="step is out of range"):
        local_steps(CONFIG, LOCAL, WEIGHTS, started_state() | {"step": np.array(step)}, BATCHES_SBT, RATES)
