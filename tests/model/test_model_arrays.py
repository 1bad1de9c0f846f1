"""Canonical array bytes, the safetensors layout, the flat vector."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.arrays import (
    ArraySpec,
    arrays_digest,
    arrays_from_bytes,
    arrays_from_safetensors,
    arrays_length,
    arrays_to_bytes,
    flatten,
    safetensors_bytes,
    unflatten,
)
from verification.errors import FormatError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAY = st.sampled_from(["<f4", "<f8", "<i8"]).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
ARRAYS = st.dictionaries(st.text("ab.é1", max_size=6), ARRAY, max_size=4)
WEIGHT = hnp.arrays("<f4", hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
WEIGHTS = st.dictionaries(st.text("ab.10", min_size=1, max_size=6), WEIGHT, max_size=4)


def kinds(arrays):
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def specs_of(arrays):
    return [ArraySpec(name, arrays[name].shape) for name in sorted(arrays)]


@st.composite
def mutated(draw, valid):
    """Valid bytes with a byte changed, a piece cut out, or a piece put in."""
    data = bytearray(valid)
    at = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["change", "cut", "insert"])):
        case "change" if at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        case "cut":
            del data[at : at + draw(st.integers(1, 40))]
        case _:
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
    return bytes(data)


def test_golden_bytes():
    arrays = {"b": np.array(-2, np.int64), "a": np.array([[1.0, 0.5]], np.float32)}
    wanted = (
        b"barnraise-arrays-v1\n" + struct.pack("<I", 2)
        + struct.pack("<H", 1) + b"a" + bytes([0, 2]) + struct.pack("<QQff", 1, 2, 1.0, 0.5)
        + struct.pack("<H", 1) + b"b" + bytes([2, 0]) + struct.pack("<q", -2)
    )  # fmt: skip
    assert arrays_to_bytes(arrays) == wanted


@given(ARRAYS)
def test_bytes_round_trip_to_the_bit(arrays):
    data = arrays_to_bytes(arrays)
    again = arrays_from_bytes(data, kinds(arrays))
    assert kinds(again) == kinds(arrays)
    assert all(again[name].tobytes() == arrays[name].tobytes() for name in arrays)
    assert arrays_digest(arrays) == "blake3:" + blake3(data).hexdigest()


@given(ARRAYS)
def test_the_length_is_known_before_the_bytes_are(arrays):
    assert arrays_length(kinds(arrays)) == len(arrays_to_bytes(arrays))


def test_lengths_in_numbers():
    assert arrays_length({}) == 24
    # Length of the name, name, type, rank, and eight bytes a dimension; then the elements.
    assert arrays_length({"a": (np.float32, (1 << 20, 3))}) == 24 + 2 + 1 + 1 + 1 + 16 + 12 * (1 << 20)
    assert arrays_length({"é": (np.int64, ()), "b": ("f8", (0,))}) == 24 + (2 + 2 + 2 + 8) + (2 + 1 + 2 + 8)


@given(ARRAYS, st.data())
def test_other_bytes_are_refused_or_are_other_elements(arrays, data):
    hostile = data.draw(mutated(arrays_to_bytes(arrays)))
    with suppress(FormatError):
        assert arrays_to_bytes(arrays_from_bytes(hostile, kinds(arrays))) == hostile


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_raise_only_the_family(junk):
    with pytest.raises(FormatError):
        arrays_from_bytes(junk, {"a": (np.float32, (1 << 40,))})


def test_decoded_arrays_are_writable_copies():
    source = {"a": np.arange(3, dtype=np.float32)}
    data = bytearray(arrays_to_bytes(source))
    read = arrays_from_bytes(data, kinds(source))
    data[-4:] = b"\xff" * 4
    read["a"][0] = 7
    assert read["a"].tolist() == [7, 1, 2]


def test_memory_order_and_byte_order_do_not_matter():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for same in (
        np.asfortranarray(array),
        array.astype(">f4"),
        np.arange(24, dtype=np.float32)[::2].reshape(3, 4) / 2,
    ):
        assert arrays_to_bytes({"a": same}) == arrays_to_bytes({"a": array})
        assert arrays_digest({"a": same}) == arrays_digest({"a": array})


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.float16), np.zeros(2, np.int32), np.zeros(2, bool), np.array(["x"])]
)
def test_other_element_types_have_no_bytes(array):
    with pytest.raises(FormatError, match="f32, f64 or i64"):
        arrays_to_bytes({"a": array})


@pytest.mark.parametrize("name", ["\ud800", "a" * 65536])
def test_a_name_that_does_not_fit_is_refused(name):
    with pytest.raises(FormatError, match="name"):
        arrays_digest({name: np.zeros(1)})


@given(WEIGHTS)
def test_safetensors_bytes_are_those_of_the_library(weights):
    data = safetensors_bytes(weights)
    if weights:
        assert data == safetensors.numpy.save(weights, metadata={"format": "pt"})
    read = arrays_from_safetensors(data, specs_of(weights))
    assert all(read[name].tobytes() == weights[name].tobytes() for name in weights)
    assert kinds(read) == kinds(weights)


@given(WEIGHTS, st.data())
def test_other_safetensors_bytes_are_refused_or_are_other_elements(weights, data):
    hostile = data.draw(mutated(safetensors_bytes(weights)))
    with suppress(FormatError):
        assert safetensors_bytes(arrays_from_safetensors(hostile, specs_of(weights))) == hostile


def test_a_valid_safetensors_file_of_another_layout_is_refused():
    data = safetensors_bytes({"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    swapped = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode().ljust(length)
    other = data[:8] + swapped + data[8 + length :]
    assert safetensors.numpy.load(other).keys() == {"a", "b"}
    with pytest.raises(FormatError, match="the one layout"):
        arrays_from_safetensors(other, [ArraySpec("a", (1,)), ArraySpec("b", (1,))])


def test_safetensors_hold_f32_only():
    with pytest.raises(FormatError, match="f32"):
        safetensors_bytes({"a": np.zeros(1)})


@given(WEIGHTS)
def test_the_flat_vector_goes_there_and_back(weights):
    specs = specs_of(weights)
    vector = flatten(weights, specs)
    joined = np.concatenate([np.zeros(0, np.float32), *(weights[spec.name].ravel() for spec in specs)])
    assert vector.tobytes() == joined.tobytes()
    again = unflatten(vector, specs)
    assert all(again[name].tobytes() == weights[name].tobytes() for name in weights)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"a": np.zeros(3, np.float32)},
        {"a": np.zeros(2)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
    ],
)
def test_flatten_wants_exactly_the_specified_arrays(weights):
    with pytest.raises(FormatError):
        flatten(weights, [ArraySpec("a", (2,))])


def test_unflatten_wants_exactly_the_length():
    with pytest.raises(FormatError, match="flat vector"):
        unflatten(np.zeros(3, np.float32), [ArraySpec("a", (2,))])
