"""Named numpy arrays to canonical bytes, to safetensors and to the flat vector, and back.

Owns the array encoding and the flat vector of section 1 and the safetensors layout of section 11 of
docs/protocol.md. Does not own which arrays a model has (model/init.py) or where files lie. No torch: the
replay of aggregations reads checkpoints with this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from verification.errors import FormatError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Buffer = bytes | bytearray | memoryview

_MAGIC = b"barnraise-arrays-v1\n"
_DTYPES = (np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i8"))  # by their code in the format


@dataclass(frozen=True)
class ArraySpec:
    """Name and shape of one trainable f32 array, as in `manifest.arrays`."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def arrays_to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The canonical byte string of a set of arrays (docs/protocol.md, section 1).

    Raises FormatError for an element type other than f32, f64, i64 or a name that does not fit.
    """
    return b"".join(_pieces(arrays))


def arrays_digest(arrays: Mapping[str, Array]) -> str:
    """`blake3:` digest of `arrays_to_bytes(arrays)`, without making those bytes. Raises FormatError alike."""
    hasher = blake3()
    for piece in _pieces(arrays):
        hasher.update(piece)
    return "blake3:" + hasher.hexdigest()


def _pieces(arrays: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    yield _MAGIC + len(arrays).to_bytes(4, "little")
    for name in sorted(arrays, key=_encode_name):
        array = arrays[name]
        yield _entry_header(name, array.dtype, array.shape)
        yield _elements(array)


def _encode_name(name: str) -> bytes:
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("an array name holds a lone surrogate", got=ascii(name)) from None
    if len(encoded) > 0xFFFF:
        raise FormatError("an array name is too long", expected="at most 65535 bytes", got=len(encoded))
    return encoded


def _entry_header(name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> bytes:
    encoded = _encode_name(name)
    header = len(encoded).to_bytes(2, "little") + encoded + bytes([_dtype_code(name, dtype), len(shape)])
    return header + b"".join(int(dim).to_bytes(8, "little") for dim in shape)


def _dtype_code(name: str, dtype: npt.DTypeLike) -> int:
    little = np.dtype(dtype).newbyteorder("<")
    if little not in _DTYPES:
        raise FormatError(f"array {name} has no encoding", expected="f32, f64 or i64", got=np.dtype(dtype))
    return _DTYPES.index(little)


def _elements(array: Array) -> memoryview:
    """The elements as little-endian bytes in C order; copies only what does not lie so already."""
    ordered = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return ordered.reshape(-1).view(np.uint8).data


def arrays_length(expected: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> int:
    """How many canonical bytes the `expected` arrays take (name -> element type and shape)."""
    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in expected.values()]
    headers = [len(_entry_header(name, *form)) for name, form in expected.items()]
    return len(_MAGIC) + 4 + sum(headers) + sum(sizes)


def arrays_from_bytes(data: Buffer, expected: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> Arrays:
    """Decode the canonical bytes of exactly the `expected` arrays (name -> element type and shape).

    The length follows from `expected` and is compared before anything is allocated, so a peer's bytes
    cannot ask for memory. Every element pattern is allowed, NaN too. The arrays are fresh copies. Raises
    FormatError for any other bytes.
    """
    names = sorted(expected, key=_encode_name)
    headers = {name: _entry_header(name, *expected[name]) for name in names}
    preamble = _MAGIC + len(names).to_bytes(4, "little")
    sizes = {name: np.dtype(expected[name][0]).itemsize * math.prod(expected[name][1]) for name in names}
    _check_length("the array bytes", len(data), arrays_length(expected))
    view = memoryview(data).cast("B")
    _check_bytes("the array bytes do not start as arrays do", view[: len(preamble)], preamble)
    position = len(preamble)
    arrays: Arrays = {}
    for name in names:
        stop = position + len(headers[name])
        _check_bytes(f"the header of array {name} differs", view[position:stop], headers[name])
        position = stop + sizes[name]
        arrays[name] = _array_copy(view[stop:position], *expected[name])
    return arrays


def _check_length(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise FormatError(f"{what} have the wrong length", expected=f"{expected} bytes", got=f"{got} bytes")


def _check_bytes(what: str, got: memoryview, expected: bytes) -> None:
    if got != expected:
        raise FormatError(what, expected=expected[:160], got=bytes(got[:160]))


def _array_copy(view: memoryview, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    native = np.dtype(dtype).newbyteorder("=")
    return np.frombuffer(view, dtype=native.newbyteorder("<")).astype(native).reshape(shape)


def safetensors_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Weights as the one safetensors layout of docs/protocol.md, section 11; f32 only.

    Byte for byte what the safetensors library itself writes with metadata `{"format": "pt"}`. Raises
    FormatError for another element type.
    """
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise FormatError(f"weight {name} has the wrong element type", expected="f32", got=array.dtype)
    specs = [ArraySpec(name, arrays[name].shape) for name in sorted(arrays, key=_encode_name)]
    return b"".join([_safetensors_header(specs), *(_elements(arrays[spec.name]) for spec in specs)])


def _safetensors_header(specs: Sequence[ArraySpec]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        stop = start + 4 * spec.size
        header[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def arrays_from_safetensors(data: Buffer, specs: Sequence[ArraySpec]) -> Arrays:
    """Read the weights `specs` from safetensors bytes; refuses everything but the one layout.

    Length is compared before anything is allocated; the arrays are fresh copies. Raises FormatError.
    """
    ordered = sorted(specs, key=lambda spec: _encode_name(spec.name))
    header = _safetensors_header(ordered)
    _check_length("the safetensors bytes", len(data), len(header) + sum(4 * spec.size for spec in ordered))
    view = memoryview(data).cast("B")
    _check_bytes("the safetensors header is not the one layout of these weights", view[: len(header)], header)
    position = len(header)
    arrays: Arrays = {}
    for spec in ordered:
        stop = position + 4 * spec.size
        arrays[spec.name] = _array_copy(view[position:stop], np.float32, spec.shape)
        position = stop
    return arrays


def check_arrays(
    what: str, arrays: Mapping[str, Array], expected: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]
) -> None:
    """Raise FormatError unless `arrays` has exactly the expected names, element types and shapes."""
    if arrays.keys() != expected.keys():
        raise FormatError(f"{what} holds the wrong arrays", expected=sorted(expected), got=sorted(arrays))
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise FormatError(
                f"{what}: array {name} differs",
                expected=f"{np.dtype(dtype)} {list(shape)}",
                got=f"{array.dtype} {list(array.shape)}",
            )


def weight_specs(specs: Sequence[ArraySpec]) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """The weights' element types and shapes in the form `arrays_from_bytes` takes."""
    return {spec.name: (np.float32, spec.shape) for spec in specs}


def flatten(arrays: Mapping[str, Array], specs: Sequence[ArraySpec]) -> npt.NDArray[np.float32]:
    """The flat vector f32[P]: the elements of `specs`' arrays in order, copied. Raises FormatError."""
    check_arrays("the set of weights", arrays, weight_specs(specs))
    vector = np.empty(sum(spec.size for spec in specs), dtype=np.float32)
    for name, part in unflatten(vector, specs).items():
        part[...] = arrays[name]
    return vector


def unflatten(vector: npt.NDArray[np.float32], specs: Sequence[ArraySpec]) -> Arrays:
    """The arrays of a flat vector f32[P], as views into it (no copy). Raises FormatError."""
    total = sum(spec.size for spec in specs)
    check_arrays("the flat vector", {"vector": vector}, {"vector": (np.float32, (total,))})
    arrays: Arrays = {}
    start = 0
    for spec in specs:
        arrays[spec.name] = vector[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    return arrays
