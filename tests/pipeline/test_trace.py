"""An opened trace is taken when it is, to the byte, the one that was committed to; else refused in words."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrays import arrays_from_bytes, arrays_to_bytes
from model.hidden_state import midway_specs
from model.local_steps import Midpoint
from pipeline import trace as trace_module
from pipeline.trace import NOT_FINITE, OpenedLeaf, OpenedTrace, open_trace, read_trace
from tests.pipeline.segment_world import STEPS, Told, honest, moved, tell, with_state
from verification.encoding import MAX_INTEGER, blake3_digest, hash_object
from verification.errors import BarnraiseError, FormatError, ProtocolError
from verification.judge import trace_leaf_hash, trace_root
from verification.segments import opened_leaves

COUNT = 4
SEGMENTS = (0, 2)  # opens leaves 1 and 3, the second of a single step
HEAD = len(b"barnraise-trace-v1\n") + 4


def read(told: Told, data: bytes, segments: tuple[int, ...] = SEGMENTS, **opening: Any) -> OpenedTrace:
    audit = told.audit(segments)
    return read_trace(told.case.job, replace(told.opening, **opening), STEPS, audit, data)


def with_leaves(told: Told, leaves: dict[int, OpenedLeaf]) -> bytes:
    """A trace with these leaves opened, whatever is due, and the hashes of the true one."""
    hashes = tuple(trace_leaf_hash(leaf).hex() for leaf in told.claims.trace)
    return OpenedTrace(hashes, leaves).to_bytes()


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(("local", "gradient")),
    st.integers(1, STEPS),
    st.sampled_from((1, 2, 3)),
    st.data(),
)
def test_what_was_opened_is_read_again(mode: str, steps: int, every: int, data: st.DataObject) -> None:
    told = honest(mode, steps, every)
    count = told.case.count
    segments = tuple(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    tolerant = data.draw(st.booleans())
    served = told.opened(segments, tolerant=tolerant)
    found = read_trace(told.case.job, told.opening, steps, told.audit(segments, tolerant=tolerant), served)
    due = opened_leaves(segments, count, tolerant=tolerant)
    assert found.leaves == {index: told.leaves[index] for index in due}
    assert found.hashes == tuple(trace_leaf_hash(leaf).hex() for leaf in told.claims.trace)
    assert found.to_bytes() == served


def test_the_bytes_are_those_of_the_specification() -> None:
    told = honest()
    parts = [b"barnraise-trace-v1\n", (COUNT + 1).to_bytes(4, "little")]
    parts += [trace_leaf_hash(digest) for digest in told.claims.trace]
    for index, steps in ((1, 2), (3, 1)):
        leaf = told.leaves[index]
        assert len(leaf.losses) == steps
        parts += [index.to_bytes(4, "little"), steps.to_bytes(4, "little")]
        parts += [loss.to_bytes(8, "little") for loss in leaf.losses]
        for part in (leaf.weights, leaf.state):
            parts += [len(part).to_bytes(8, "little"), part]
    assert told.opened(SEGMENTS) == b"".join(parts)
    assert hash_object("barnraise/trace-not-finite/v1", {}) == NOT_FINITE


def test_a_leaf_hashes_what_it_holds() -> None:
    told = honest()
    for index, leaf in told.leaves.items():
        said = {
            "losses": list(leaf.losses),
            "state": blake3_digest(leaf.state),
            "step": told.case.steps_at(index),
            "weights": blake3_digest(leaf.weights),
        }
        assert leaf.digest(told.case.steps_at(index)) == told.claims.trace[index]
        assert hash_object("barnraise/trace-leaf/v1", said) == told.claims.trace[index]


def test_in_gradient_mode_the_sum_is_opened_too() -> None:
    told = honest("gradient")
    forms = midway_specs(told.case.job.specs, "gradient")
    state = arrays_from_bytes(read(told, told.opened(SEGMENTS)).leaves[1].state, forms)
    assert set(state) == {"step", "error_feedback", "gradient_sum"}
    assert np.count_nonzero(state["gradient_sum"]) > 0


# --- what is refused ---


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 255))
def test_no_byte_can_be_changed(data: st.DataObject, flip: int) -> None:
    told = honest()
    served = bytearray(told.opened(SEGMENTS))
    served[data.draw(st.integers(0, len(served) - 1))] ^= flip
    with pytest.raises(BarnraiseError):
        read(told, bytes(served))


def test_no_byte_of_what_is_not_an_array_can_be_changed() -> None:
    """All of them: the beginning, the hashes, and the beginning of each leaf."""
    told = honest()
    served = told.opened(SEGMENTS)
    leaves = HEAD + 32 * (COUNT + 1)
    second = len(with_leaves(told, {1: told.leaves[1]}))
    for at in [*range(leaves + 8 + 16 + 8 + 40), *range(second, second + 8 + 8 + 8 + 40)]:
        for flip in (1, 128):
            changed = served[:at] + bytes([served[at] ^ flip]) + served[at + 1 :]
            with pytest.raises(BarnraiseError):
                read(told, changed)
    assert read(told, served).leaves.keys() == {1, 3}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.data())
def test_bytes_put_in_or_taken_out_are_refused_by_their_length(more: bytes, data: st.DataObject) -> None:
    told = honest()
    served = told.opened(SEGMENTS)
    at = data.draw(st.integers(0, len(served)))
    out = data.draw(st.integers(0, 40))
    other = served[:at] + more + served[at + out :]
    if len(other) != len(served):
        with pytest.raises(FormatError, match="wrong length"):
            read(told, other)
    elif other != served:
        with pytest.raises(BarnraiseError):
            read(told, other)


def test_a_wrong_length_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = honest()
    served = told.opened(SEGMENTS)

    class Untouched(bytes):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("it was read")

    monkeypatch.setattr(trace_module, "trace_root", lambda *_: pytest.fail("it was hashed"))
    for data in (served[:-1], served + b"\0", b"", served + served):
        with pytest.raises(FormatError, match="wrong length"):
            read(told, Untouched(data))


@pytest.mark.parametrize("data", [b"", b"barnraise-trace-v1\n" + b"\xff" * 4, b"\xff" * 1000])
def test_no_number_in_a_trace_asks_for_memory(data: bytes) -> None:
    told = honest()
    served = told.opened(SEGMENTS)
    tracemalloc.start()
    try:
        for changed in (
            data,
            data + served[len(data) :],
            served[: HEAD + 160] + b"\xff" * (len(served) - HEAD - 160),
        ):
            if changed != served:
                with pytest.raises(BarnraiseError):
                    read(told, changed)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(served)
    finally:
        tracemalloc.stop()


def test_other_leaves_than_those_due_are_refused() -> None:
    told = honest()
    one, other, true = told.leaves[1], told.leaves[0], told.leaves[3]
    for leaves in (
        {1: one},
        {3: true},
        {0: other, 3: true},
        {1: one, 2: told.leaves[2]},
        dict(told.leaves),
        {},
    ):
        with pytest.raises(FormatError):
            read(told, with_leaves(told, leaves))
    # Another leaf under the number of the one that is due.
    for leaf in (other, told.leaves[2]):
        with pytest.raises(ProtocolError, match="leaf 1 is not of the trace"):
            read(told, with_leaves(told, {1: leaf, 3: true}))
    for segments in ((0, 1), (1, 2), (2, 3), (3,)):
        with pytest.raises(BarnraiseError):
            read(told, told.opened(SEGMENTS), segments)


def test_an_order_of_leaves_that_is_not_ascending_is_refused() -> None:
    told = honest()
    alone = [with_leaves(told, {index: told.leaves[index]}) for index in (3, 1)]
    start = HEAD + 32 * (COUNT + 1)
    swapped = alone[0][:start] + alone[0][start:] + alone[1][start:]
    assert len(swapped) == len(told.opened(SEGMENTS))
    with pytest.raises(FormatError, match="not built as it must be"):
        read(told, swapped)


def shifted(told: Told, **parts: Any) -> bytes:
    leaf = replace(told.leaves[1], **{k: v(getattr(told.leaves[1], k)) for k, v in parts.items()})
    return with_leaves(told, {1: leaf, 3: told.leaves[3]})


@pytest.mark.parametrize(
    "parts",
    [
        {"losses": lambda losses: (losses[0] + 1, losses[1])},
        {"losses": lambda losses: losses[::-1]},
        {"weights": lambda data: data[:-1] + bytes([data[-1] ^ 1])},
        {"state": lambda data: data[:-1] + bytes([data[-1] ^ 128])},
    ],
)
def test_a_leaf_that_was_changed_is_not_the_one_committed_to(parts: dict[str, Any]) -> None:
    told = honest()
    assert told.leaves[1].losses[0] != told.leaves[1].losses[1]
    with pytest.raises(ProtocolError, match="leaf 1 is not of the trace that was committed to"):
        read(told, shifted(told, **parts))


@pytest.mark.parametrize("loss", [MAX_INTEGER + 1, 2**64 - 1])
def test_a_loss_that_no_integer_of_the_protocol_is(loss: int) -> None:
    told = honest()
    with pytest.raises(FormatError, match="a loss is too large"):
        read(told, shifted(told, losses=lambda losses: (losses[0], loss)))


def test_arrays_of_another_form_are_refused_though_they_were_committed_to() -> None:
    """A contributor may commit to anything; as long as it must be, and of other names."""

    def renamed(point: Midpoint) -> Midpoint:
        state = {("adam_n" if name == "adam_m" else name): array for name, array in point.state.items()}
        return replace(point, state=state)

    told = tell(honest().case, {1: renamed}, for_good=False)
    assert len(told.opened(SEGMENTS)) == len(honest().opened(SEGMENTS))
    with pytest.raises(FormatError):
        read(told, told.opened(SEGMENTS))
    retyped = tell(honest().case, {1: with_state(step=lambda step: step.view(np.float64))}, for_good=False)
    with pytest.raises(FormatError):
        read(retyped, retyped.opened(SEGMENTS))


def test_the_trace_of_other_work_is_refused() -> None:
    told, other = honest(), tell(honest().case, {0: moved})
    for data in (other.opened(SEGMENTS), honest("gradient").opened(SEGMENTS)):
        with pytest.raises(BarnraiseError):
            read(told, data)
    hashes = [trace_leaf_hash(digest).hex() for digest in other.claims.trace]
    assert trace_root(hashes) == other.opening.trace_root != told.opening.trace_root
    with pytest.raises(ProtocolError, match="leaf hashes are not of the trace"):
        read(told, OpenedTrace(tuple(hashes), {i: other.leaves[i] for i in (1, 3)}).to_bytes())


def test_an_opening_of_another_length_is_refused() -> None:
    told = honest()
    for leaves in (0, 2, 4, 6, 2**32, MAX_INTEGER):
        with pytest.raises(ProtocolError, match="too long or short"):
            read(told, told.opened(SEGMENTS), trace_leaves=leaves)


def test_what_holds_together_is_read_whatever_its_numbers_are() -> None:
    """They are for the audit to judge; the format has room for all of them."""
    for value in (np.nan, np.inf, -1.0):
        told = tell(honest().case, {1: with_state(adam_v=value)}, for_good=False)
        found = read(told, told.opened(SEGMENTS))
        forms = midway_specs(told.case.job.specs, "local")
        state = arrays_from_bytes(found.leaves[1].state, forms)
        assert np.array_equal(state["adam_v"], np.full_like(state["adam_v"], value), equal_nan=True)
        assert arrays_to_bytes(state) == found.leaves[1].state


def test_a_trace_of_a_single_leaf_hash_packs_numbers_little_endian() -> None:
    data = open_trace(["sha256:" + "a" * 64], [0], lambda index: OpenedLeaf((index + 258,), b"w", b"st"))
    leaf = struct.pack("<IIQ", 0, 1, 258) + struct.pack("<Q", 1) + b"w" + struct.pack("<Q", 2) + b"st"
    assert data.endswith(leaf)
    assert len(data) == HEAD + 32 + len(leaf)
