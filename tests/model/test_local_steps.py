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
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import arrays_digest, arrays_from_bytes, arrays_to_bytes, flatten, unflatten
from model.config import ModelConfig
from model.hidden_state import midway_specs, state_specs, zero_state
from model.init import array_specs, initial_weights
from model.local_steps import Midpoint, WorkSpec, evaluate, local_steps, trace_leaf, update_of
from model.transformer import loss
from verification.errors import FormatError, NotFiniteError, WorkError

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


def work(spec, weights, state, batches_SBT, rates, **options):
    return local_steps(CONFIG, spec, Midpoint(weights, state), batches_SBT, rates, **options)


def update(spec, result, weights=WEIGHTS):
    return update_of(spec, SPECS, weights, result.end, len(result.losses))


def copied(arrays):
    return {name: np.array(array) for name, array in arrays.items()}


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
    result = work(GRADIENT, weights, zero_state(SPECS, "gradient"), batch_BT[None], [])
    return update(GRADIENT, result, weights), result.losses[0]


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
    result = work(LOCAL, WEIGHTS, state, BATCHES_SBT, RATES)
    assert result.losses == tuple(losses)
    assert update(LOCAL, result).tobytes() == (flatten(WEIGHTS, SPECS) - w).tobytes()
    assert flatten(result.end.weights, SPECS).tobytes() == w.tobytes()
    assert result.end.state["adam_m"].tobytes() == m.tobytes()
    assert result.end.state["adam_v"].tobytes() == v.tobytes()
    assert int(result.end.state["step"]) == 12
    assert result.end.state["error_feedback"].tobytes() == state["error_feedback"].tobytes()
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
    got = update(spec, work(spec, WEIGHTS, zero_state(SPECS, "local"), BATCHES_SBT, RATES))
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_clipping_changes_the_work():
    state = zero_state(SPECS, "local")
    clipped = work(replace(LOCAL, max_grad_norm=0.05), WEIGHTS, state, BATCHES_SBT, RATES)
    assert np.linalg.norm(clipped.end.state["adam_m"]) <= 0.05
    assert np.linalg.norm(work(LOCAL, WEIGHTS, state, BATCHES_SBT, RATES).end.state["adam_m"]) > 0.05


def test_gradient_mode_gives_the_mean_gradient_and_traces_the_sum():
    state = started_state("gradient")
    result = work(GRADIENT, WEIGHTS, state, BATCHES_SBT, [])
    total, leaves = np.zeros(sum(spec.size for spec in SPECS), np.float32), []
    for s, batch_BT in enumerate(BATCHES_SBT):
        parameters = {
            name: torch.from_numpy(array.copy()).requires_grad_() for name, array in WEIGHTS.items()
        }
        value = loss(CONFIG, parameters, torch.from_numpy(batch_BT))
        value.backward()
        total += flatten({name: parameter.grad.numpy() for name, parameter in parameters.items()}, SPECS)
        so_far = {"step": np.array(8 + s), "error_feedback": state["error_feedback"], "gradient_sum": total}
        leaves.append(plain_leaf([math.floor(value.item() * 1e6)], so_far, s + 1, WEIGHTS))
    assert update(GRADIENT, result).tobytes() == (total / np.float32(5)).tobytes()
    assert result.end.state["gradient_sum"].tobytes() == total.tobytes()
    assert arrays_digest(result.end.weights) == arrays_digest(WEIGHTS)
    assert result.leaves == tuple(leaves)
    assert result.end.state.keys() == {"step", "error_feedback", "gradient_sum"}
    assert result.end.state["error_feedback"].tobytes() == state["error_feedback"].tobytes()
    assert int(result.end.state["step"]) == 12


@pytest.mark.parametrize(("trace_every", "leaves"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_leaves_come_every_so_often_and_at_the_end(trace_every, leaves):
    spec = replace(LOCAL, trace_every=trace_every)
    whole = work(spec, WEIGHTS, started_state(), BATCHES_SBT, RATES)
    assert len(whole.leaves) == leaves
    every = work(replace(LOCAL, trace_every=1), WEIGHTS, started_state(), BATCHES_SBT, RATES)
    covers_one_step = 5 % trace_every == 1 or trace_every == 1
    assert (whole.leaves[-1] == every.leaves[-1]) == covers_one_step
    assert update(spec, whole).tobytes() == update(spec, every).tobytes()


@pytest.mark.parametrize("spec", [LOCAL, GRADIENT])
def test_the_work_is_pure_also_on_read_only_views(spec):
    weights_bytes, state = arrays_to_bytes(WEIGHTS), started_state(spec.mode)
    state_bytes, batches_bytes = arrays_to_bytes(state), BATCHES_SBT.tobytes()
    weights = unflatten(np.frombuffer(flatten(WEIGHTS, SPECS).tobytes(), np.float32), SPECS)
    frozen = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in state.items()}
    batches = np.frombuffer(batches_bytes, np.int64).reshape(BATCHES_SBT.shape)
    first = work(spec, weights, frozen, batches, RATES)
    again = work(spec, WEIGHTS, state, BATCHES_SBT, RATES)
    assert (first.leaves, first.losses) == (again.leaves, again.losses)
    assert arrays_digest(first.end.weights) == arrays_digest(again.end.weights)
    assert arrays_digest(first.end.state) == arrays_digest(again.end.state)
    assert arrays_to_bytes(weights) == arrays_to_bytes(WEIGHTS) == weights_bytes
    assert arrays_to_bytes(frozen) == arrays_to_bytes(state) == state_bytes
    assert batches.tobytes() == BATCHES_SBT.tobytes() == batches_bytes


def test_the_result_shares_no_memory_with_the_input():
    state = started_state()
    result = work(LOCAL, WEIGHTS, state, BATCHES_SBT, RATES)
    assert not any(np.shares_memory(result.end.state[name], state[name]) for name in state)
    assert not any(np.shares_memory(result.end.weights[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_restart_from_the_state_in_between_goes_on_as_if_nothing_had_been():
    still = [0.0] * 5  # weights stay put, so only the hidden state carries the history
    spec = replace(LOCAL, weight_decay=0.0)
    whole = work(spec, WEIGHTS, started_state(), BATCHES_SBT, still)
    half = work(spec, WEIGHTS, started_state(), BATCHES_SBT[:2], still)
    stored = arrays_from_bytes(arrays_to_bytes(half.end.state), state_specs(SPECS, "local"))
    rest = work(spec, WEIGHTS, stored, BATCHES_SBT[2:], still)
    assert arrays_digest(rest.end.state) == arrays_digest(whole.end.state)
    assert half.losses + rest.losses == whole.losses
    assert not update(spec, whole).any()


def test_the_work_learns_and_evaluate_sees_it():
    windows_NT = (np.arange(80)[:, None] * 5 + np.arange(13)) % 32
    batches_SBT = windows_NT.reshape(20, 4, 13)
    weights, state = WEIGHTS, zero_state(SPECS, "local")
    before = evaluate(CONFIG, weights, windows_NT, 7)
    for _ in range(4):
        result = work(LOCAL, weights, state, batches_SBT, [0.01] * 20)
        weights, state = result.end.weights, result.end.state
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
    with pytest.raises(NotFiniteError, match="loss is not finite"):
        work(LOCAL, poisoned, started_state(), BATCHES_SBT, RATES)
    with pytest.raises(NotFiniteError, match="loss is not finite"):
        evaluate(CONFIG, poisoned, BATCHES_SBT[0], 4)
    negative = started_state() | {"adam_v": np.full_like(started_state()["adam_v"], -1)}
    with pytest.raises(NotFiniteError, match="weights or the state are not finite"):
        work(LOCAL, WEIGHTS, negative, BATCHES_SBT[:1], RATES)
    for spec in (LOCAL, GRADIENT):  # which no step reads
        state = started_state(spec.mode)
        state["error_feedback"][-1] = float(name)
        with pytest.raises(NotFiniteError, match="weights or the state are not finite"):
            work(spec, WEIGHTS, state, BATCHES_SBT[:1], RATES)
    summed = started_state("gradient") | {"gradient_sum": np.full(state["error_feedback"].size, name, "f4")}
    with pytest.raises(NotFiniteError, match="weights or the state are not finite"):
        work(GRADIENT, WEIGHTS, summed, BATCHES_SBT[:1], [], first=1)


def test_weights_that_are_not_finite_after_the_last_step_are_an_error():
    with pytest.raises(NotFiniteError, match="weights or the state are not finite"):
        work(LOCAL, WEIGHTS, zero_state(SPECS, "local"), BATCHES_SBT[:1], [1e308])


def test_a_loss_that_no_integer_of_a_record_holds_is_not_finite():
    def steep(factor):
        norm = np.full(16, factor, np.float32)
        return WEIGHTS | {"model.norm.weight": norm}

    state, batch_SBT = zero_state(SPECS, "gradient"), BATCHES_SBT[:1]
    # Far out the loss grows as the last norm's weight does.
    slope = work(GRADIENT, steep(1e6), state, batch_SBT, []).losses[0] / 1e12
    limit = (2**53 - 1) / 1e6 / slope
    (large,) = work(GRADIENT, steep(0.99 * limit), state, batch_SBT, []).losses
    assert 0.98 * 2**53 < large < 2**53
    with pytest.raises(NotFiniteError, match="loss is not finite"):
        work(GRADIENT, steep(1.01 * limit), state, batch_SBT, [])
    assert evaluate(CONFIG, steep(0.99 * limit), batch_SBT[0], 3) <= 2**53 - 1
    with pytest.raises(NotFiniteError, match="loss is not finite"):
        evaluate(CONFIG, steep(1.01 * limit), batch_SBT[0], 3)


def test_leaves_before_a_failure_are_given_all_the_same():
    seen = []

    def keep(point, losses):
        seen.append((int(point.state["step"]), len(losses)))

    spec = replace(LOCAL, trace_every=1)
    with pytest.raises(NotFiniteError):
        work(spec, WEIGHTS, started_state(), BATCHES_SBT, [0.01, 1e308, 0.01, 0.01, 0.01], keep=keep)
    assert seen == [(8, 1), (9, 1)]


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
        work(LOCAL, WEIGHTS, started_state(), batches_SBT, RATES)


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(FormatError, match="hidden state"):
        work(LOCAL, WEIGHTS, started_state("gradient"), BATCHES_SBT, RATES)
    with pytest.raises(FormatError, match="weights"):
        work(LOCAL, {}, started_state(), BATCHES_SBT, RATES)
    with pytest.raises(WorkError, match="learning rate"):
        work(LOCAL, WEIGHTS, started_state(), BATCHES_SBT, RATES[:4])
    with pytest.raises(WorkError, match="trace_every"):
        work(replace(LOCAL, trace_every=0), WEIGHTS, started_state(), BATCHES_SBT, RATES)


@pytest.mark.parametrize("step", [-1, 2**62])
def test_a_hostile_step_counter_is_refused(step):
    with pytest.raises(WorkError, match="step is out of range"):
        work(LOCAL, WEIGHTS, started_state() | {"step": np.array(step)}, BATCHES_SBT, RATES)


# Points within a round


def test_a_leaf_is_what_the_specification_says():
    for mode in ("local", "gradient"):
        state = started_state(mode)
        if mode == "gradient":
            state["gradient_sum"] = np.square(state["error_feedback"])
        leaf = trace_leaf(Midpoint(WEIGHTS, state), 3, (5, 0))
        assert leaf == plain_leaf([5, 0], state, 3, WEIGHTS)
        others = [
            trace_leaf(Midpoint(WEIGHTS, state), 4, (5, 0)),
            trace_leaf(Midpoint(WEIGHTS, state), 3, (0, 5)),
            trace_leaf(Midpoint(WEIGHTS, state | {"step": np.array(8)}), 3, (5, 0)),
            trace_leaf(Midpoint(initial_weights(CONFIG, 2), state), 3, (5, 0)),
        ]
        assert len({leaf, *others}) == 5


modes = st.sampled_from(["local", "gradient"])


@st.composite
def splits(draw):
    """A round's mode, trace_every and steps, and after how many of them it is taken up again."""
    trace_every = draw(st.integers(1, 3))
    steps = draw(st.integers(trace_every + 1, 5 if trace_every < 3 else 6))
    split = trace_every * draw(st.integers(1, (steps - 1) // trace_every))
    spec = replace(LOCAL, mode=draw(modes), trace_every=trace_every)
    return replace(spec, max_grad_norm=draw(st.sampled_from([0.0, 0.05]))), steps, split


@settings(max_examples=40, deadline=None)
@given(splits(), st.integers(0, 2**32 - 1))
def test_work_taken_up_at_a_leaf_goes_on_to_the_same_bits(case, seed):
    spec, steps, split = case
    batches_SBT = np.random.default_rng(seed).integers(0, 32, (steps, 2, 13))
    rates = [0.01 * 0.7**s for s in range(steps)]
    whole = work(spec, WEIGHTS, started_state(spec.mode), batches_SBT, rates)
    half = work(spec, WEIGHTS, started_state(spec.mode), batches_SBT[:split], rates)
    stored = arrays_from_bytes(arrays_to_bytes(half.end.state), midway_specs(SPECS, spec.mode))
    rest = work(spec, half.end.weights, stored, batches_SBT[split:], rates[split:], first=split)
    assert half.leaves + rest.leaves == whole.leaves
    assert half.losses + rest.losses == whole.losses
    assert arrays_to_bytes(rest.end.weights) == arrays_to_bytes(whole.end.weights)
    assert arrays_to_bytes(rest.end.state) == arrays_to_bytes(whole.end.state)
    assert len(whole.leaves) == -(-steps // spec.trace_every)
    wrong = work(spec, half.end.weights, stored, batches_SBT[split:], rates[split:], first=split + 1)
    assert not set(wrong.leaves) & set(whole.leaves)  # though only the step's number differs
    assert arrays_to_bytes(wrong.end.state) == arrays_to_bytes(whole.end.state)


@settings(max_examples=20, deadline=None)
@given(modes, st.integers(1, 6), st.integers(1, 3), st.integers(0, 2))
def test_kept_points_are_what_the_leaves_hash(mode, trace_every, steps, before):
    kept = []

    def keep(point, losses):
        kept.append((copied(point.weights), copied(point.state), losses))

    spec = replace(LOCAL, mode=mode, trace_every=trace_every)
    state, first = started_state(mode), before * trace_every
    if first and mode == "gradient":
        state["gradient_sum"] = np.square(state["error_feedback"])
    untouched = arrays_to_bytes(state)
    result = work(spec, WEIGHTS, state, BATCHES_SBT[:steps], RATES, first=first, keep=keep)
    ends = [s for s in range(1, steps + 1) if s % trace_every == 0 or s == steps]
    leaves = [
        plain_leaf(list(losses), state, first + end, weights)
        for (weights, state, losses), end in zip(kept, ends, strict=True)
    ]
    assert tuple(leaves) == result.leaves
    assert tuple(micronats for _, _, losses in kept for micronats in losses) == result.losses
    assert all(type(losses) is tuple for _, _, losses in kept)
    assert [int(state["step"]) for _, state, _ in kept] == [7 + end for end in ends]
    assert arrays_to_bytes(kept[-1][0]) == arrays_to_bytes(result.end.weights)
    assert arrays_to_bytes(kept[-1][1]) == arrays_to_bytes(result.end.state)
    assert arrays_to_bytes(state) == untouched
    assert work(spec, WEIGHTS, state, BATCHES_SBT[:steps], RATES, first=first).leaves == result.leaves


def test_the_end_is_nobody_elses():
    views = []
    for spec in (LOCAL, GRADIENT):
        result = work(
            spec,
            WEIGHTS,
            started_state(spec.mode),
            BATCHES_SBT[:2],
            RATES,
            keep=lambda point, losses: views.append(point),
        )
        for name, array in {**result.end.weights, **result.end.state}.items():
            assert array.flags.owndata
            assert array.flags.writeable
            for point in views:
                other = {**point.weights, **point.state}.get(name)
                assert other is None or not np.shares_memory(array, other)


def test_the_update_is_the_way_from_the_base_or_the_mean_over_the_whole_round():
    weights, state = initial_weights(CONFIG, 9), started_state("gradient")
    state["gradient_sum"] = np.sqrt(state["error_feedback"])
    end = Midpoint(weights, state)
    moved = update_of(LOCAL, SPECS, WEIGHTS, end, 3)
    assert moved.dtype == np.float32
    assert moved.tobytes() == (flatten(WEIGHTS, SPECS) - flatten(weights, SPECS)).tobytes()
    for steps in (1, 3, 7):
        mean = update_of(GRADIENT, SPECS, WEIGHTS, end, steps)
        assert mean.dtype == np.float32
        assert mean.tobytes() == (state["gradient_sum"] / np.float32(steps)).tobytes()


def test_a_sum_of_gradients_is_missing_at_the_start_and_due_later():
    start = started_state("gradient")
    summed = start | {"gradient_sum": np.zeros_like(start["error_feedback"])}
    batches_SBT = BATCHES_SBT[:1]
    fresh = work(GRADIENT, WEIGHTS, start, batches_SBT, [])
    later = work(GRADIENT, WEIGHTS, summed, batches_SBT, [], first=1)
    assert arrays_to_bytes(fresh.end.state) == arrays_to_bytes(later.end.state)
    with pytest.raises(FormatError, match="hidden state"):
        work(GRADIENT, WEIGHTS, start, batches_SBT, [], first=1)
    with pytest.raises(FormatError, match="hidden state"):
        work(GRADIENT, WEIGHTS, summed, batches_SBT, [])
    with pytest.raises(FormatError, match="hidden state"):
        work(
            LOCAL,
            WEIGHTS,
            started_state() | {"gradient_sum": summed["gradient_sum"]},
            batches_SBT,
            RATES,
            first=2,
        )
