"""The codec: a flat update to payload bytes and back, and error feedback around it.

Owns sections 7 (error feedback) and 8 of docs/protocol.md. Does not own what payloads are combined into
(aggregation.py), nor digests. numpy only: integer operations, table look-ups and single IEEE 754 additions
and multiplications decide every bit, so any machine writes the same bytes for the same numbers.

Shapes: P elements of the flat vector, C chunks of a block, W elements of a chunk that are not padding, K
indices of a chunk, M of them that are not padding, N values of the whole payload; B bytes of a chunk, L low
bits of an index, H bits of the high parts of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verification.errors import FormatError, NotFiniteError, UsageError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]

_MAX_CHUNK = 2**31
_BLOCK = 2**18  # elements handled at a time: a block and its copies stay in the second-level cache
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = 0x7F800000
_DROP = 20  # f32 bits above these are the exponent and the three mantissa bits of the scale byte
_HALF = np.int32(1 << (_DROP - 1))  # with it even the largest float stays below 2^31
_BYTE_OF_BITS = (127 - 28) << 3  # exponent field 99 is e = 0: scale = 1.mmm * 2^(e - 28)
_LAST_BYTE = 0xFF

SCALES = np.array([0.0] + [math.ldexp(8 + (b & 7), (b >> 3) - 31) for b in range(1, 256)], dtype=np.float32)
"""Scale of each scale byte, f32 [256] (docs/protocol.md, section 8); every one is exact."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A decoded payload: flat positions in increasing order and their values, none of them zero.

    indices: int64 [N], values: f32 [N]. norm_terms: f64 [chunks], for every chunk of the vector the sum of
    its squared values, `scale * scale * (n1 + 4 * n2)`, exact (docs/protocol.md, section 9.2).
    """

    indices: I64
    values: F32
    norm_terms: F64

    def norm(self) -> float:
        """L2 norm: the rounded root of the correctly rounded sum (docs/protocol.md, section 9.2)."""
        return math.sqrt(math.fsum(self.norm_terms.tolist()))

    def dense(self, length: int) -> F32:
        """The f32 vector [length] with zeros where nothing was kept. UsageError when length is too small."""
        if self.indices.size and int(self.indices[-1]) >= length:
            raise UsageError(
                "a payload does not fit", expected=f"more than {self.indices[-1]} elements", got=length
            )
        dense_P = np.zeros(length, dtype=np.float32)
        dense_P[self.indices] = self.values
        return dense_P


@dataclass(frozen=True)
class Codec:
    """Top k of every chunk of a flat vector of `length` (P) elements (docs/protocol.md, section 8).

    chunk and k are powers of two, 8 <= k <= chunk / 4, chunk at most 2^31; UsageError otherwise.
    """

    chunk: int
    k: int
    length: int

    def __post_init__(self) -> None:
        if any(type(value) is not int for value in (self.chunk, self.k, self.length)) or self.length < 1:
            raise UsageError("a codec needs whole numbers", expected="chunk, k, length >= 1", got=self)
        if not 0 < self.chunk <= _MAX_CHUNK or self.chunk & (self.chunk - 1):
            raise UsageError(
                "compression.chunk is not usable", expected="a power of two, at most 2^31", got=self.chunk
            )
        if not 8 <= self.k <= self.chunk // 4 or self.k & (self.k - 1):
            hint = "Choose k between 8 and a quarter of the chunk."
            raise UsageError("compression.k is not usable", expected="a power of two", got=self.k, hint=hint)

    @property
    def name(self) -> str:
        """The codec's name in the manifest."""
        return f"topk{self.k}of{self.chunk}-eliasfano-2bit-e5m3-v1"

    @property
    def low_bits(self) -> int:
        """L = log2(chunk / k), the bits of an index that are stored as they are."""
        return (self.chunk // self.k).bit_length() - 1

    @property
    def chunks(self) -> int:
        """Number of chunks, the last one padded."""
        return -(-self.length // self.chunk)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk."""
        return self.k * (self.low_bits + 4) // 8 + 1

    @property
    def payload_bytes(self) -> int:
        """Length of every payload of this codec."""
        return self.chunks * self.chunk_bytes

    @property
    def _step(self) -> int:
        """Chunks handled at a time."""
        return max(1, _BLOCK // self.chunk)

    def encode(self, vector_P: F32) -> bytes:
        """Payload of a vector, f32 [P]. Equal numbers give equal bytes (-0 counts as 0).

        Raises UsageError for another shape or type and NotFiniteError when an element is NaN or infinite.
        """
        vector_P = _flat_f32("the update", vector_P, self.length)
        payload = np.empty((self.chunks, self.chunk_bytes), dtype=np.uint8)
        whole = self.length // self.chunk
        shape = (min(self._step, self.chunks), min(self.chunk, self.length))
        # Every block writes the same arrays anew: fresh pages would cost as much as all the rest.
        scratch = np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.bool_)
        for first in range(0, whole, self._step):
            last = min(first + self._step, whole)
            rows_CW = vector_P[first * self.chunk : last * self.chunk].reshape(-1, self.chunk)
            payload[first:last] = self._encode_rows(rows_CW, scratch)
        if whole < self.chunks:
            payload[whole:] = self._encode_rows(vector_P[None, whole * self.chunk :], scratch)
        return payload.tobytes()

    def decode(self, payload: bytes) -> Sparse:
        """The values of a payload. Raises FormatError for all bytes that section 8 refuses.

        The length is checked before anything is read or reserved.
        """
        if len(payload) != self.payload_bytes:
            raise FormatError(
                "a payload has the wrong length",
                expected=f"{self.payload_bytes} bytes",
                got=f"{len(payload)} bytes",
            )
        rows_CB = np.frombuffer(payload, dtype=np.uint8).reshape(self.chunks, self.chunk_bytes)
        blocks = [
            self._decode_rows(rows_CB[first : first + self._step], first)
            for first in range(0, self.chunks, self._step)
        ]
        return Sparse(
            indices=np.concatenate([block.indices for block in blocks]),
            values=np.concatenate([block.values for block in blocks]),
            norm_terms=np.concatenate([block.norm_terms for block in blocks]),
        )

    def _encode_rows(self, rows_CW: F32, scratch: tuple[I32, I32, Bools]) -> U8:
        """Bytes [C, B] of chunks that have W elements before the padding."""
        chunks, width = rows_CW.shape
        kept = min(self.k, width)
        magnitude_CW, ordered_CW = scratch[0][:chunks, :width], scratch[1][:chunks, :width]
        np.bitwise_and(rows_CW.view(np.int32), _MAGNITUDE, out=magnitude_CW)  # floats order as their bits do
        np.copyto(ordered_CW, magnitude_CW)
        ordered_CW.partition(width - kept, axis=1)
        top_CM = ordered_CW[:, width - kept :]
        if int(top_CM.max()) >= _INFINITY:
            raise _not_finite(int(np.count_nonzero(magnitude_CW >= _INFINITY)))
        t_C = np.partition(top_CM, kept // 2, axis=1)[:, kept // 2]
        byte_C = np.clip(((t_C + _HALF) >> _DROP) - _BYTE_OF_BITS, 0, 255).astype(np.uint8)
        index_CM = _select(magnitude_CW, top_CM[:, 0], kept, scratch[2][:chunks, :width])
        kept_CM = np.take_along_axis(rows_CW, index_CM, axis=1)
        border_C = SCALES[byte_C] * np.float32(1.5)

        # What has no value, a chunk of scale 0 and the padding of a short one, keeps the first form.
        index_CK = np.tile(np.arange(self.k), (chunks, 1))
        code_CK2 = np.zeros((chunks, self.k, 2), dtype=np.bool_)
        valued_C1 = (byte_C > 0)[:, None]
        np.copyto(index_CK[:, :kept], index_CM, where=valued_C1)
        code_CK2[:, :kept, 0] = (kept_CM < 0) & valued_C1
        code_CK2[:, :kept, 1] = (np.abs(kept_CM) >= border_C[:, None]) & valued_C1
        return self._pack(byte_C, index_CK, code_CK2)

    def _pack(self, byte_C: U8, index_CK: I64, code_CK2: Bools) -> U8:
        """Bytes [C, B] from scale bytes, indices and codes (sign, magnitude): the layout of section 8."""
        chunks, k, low = len(byte_C), self.k, self.low_bits
        all_CK32 = np.unpackbits(index_CK.astype(">u4").view(np.uint8), axis=1).reshape(chunks, k, 32)
        high_CH = np.zeros((chunks, 2 * k), dtype=np.bool_)
        np.put_along_axis(high_CH, (index_CK >> low) + np.arange(k), 1, axis=1)
        bits = (all_CK32[:, :, 32 - low :].reshape(chunks, -1), high_CH, code_CK2.reshape(chunks, -1))
        return np.concatenate([byte_C[:, None], *(np.packbits(part, axis=1) for part in bits)], axis=1)

    def _decode_rows(self, rows_CB: U8, first: int) -> Sparse:
        """Values of the chunks [C, B] that start with chunk number `first`."""
        low_end = 1 + self.k * self.low_bits // 8
        high_end = low_end + self.k // 4
        byte_C = rows_CB[:, 0]
        index_CK = self._indices(rows_CB[:, 1:low_end], rows_CB[:, low_end:high_end], first)
        code_CK2 = np.unpackbits(rows_CB[:, high_end:], axis=1).view(np.bool_).reshape(-1, self.k, 2)
        negative_CK, big_CK = code_CK2[:, :, 0], code_CK2[:, :, 1]
        valued_CK = self._valued(byte_C, index_CK, negative_CK, big_CK, first)
        scale_C = SCALES[byte_C]
        value_CK = np.where(big_CK, 2 * scale_C[:, None], scale_C[:, None])
        np.negative(value_CK, out=value_CK, where=negative_CK)
        # Eight bits of significand squared times a small count: exact in f64, so no rounding to fix.
        weight_C = np.count_nonzero(valued_CK, axis=1) + 3 * np.count_nonzero(big_CK, axis=1)
        terms_C = scale_C.astype(np.float64) * scale_C.astype(np.float64) * weight_C.astype(np.float64)
        flat_CK = index_CK + np.arange(first, first + len(rows_CB))[:, None] * self.chunk
        return Sparse(flat_CK[valued_CK], value_CK[valued_CK], terms_C)

    def _valued(self, byte_C: U8, index_CK: I64, negative_CK: Bools, big_CK: Bools, first: int) -> Bools:
        """Which entries [C, K] have a value. FormatError unless this is the one form of these values."""
        last_C = index_CK[:, -1]
        real_C = np.minimum(self.length - np.arange(first, first + len(byte_C)) * self.chunk, self.chunk)
        empty_C = byte_C == 0
        valued_CK: Bools = (index_CK < real_C[:, None]) & ~empty_C[:, None]
        fixed_C = empty_C | (real_C < self.k)
        moved_C = fixed_C & (last_C >= self.k)  # indices increase: only 0 to k - 1 end at k - 1
        _refuse(moved_C, first, "does not have the first indices", f"0 to {self.k - 1}")
        padded_C = ~fixed_C & (last_C >= real_C)
        _refuse(padded_C, first, "has a value in the padding", f"indices below {real_C[-1]}")
        coded_C: Bools = np.any((negative_CK | big_CK) & ~valued_CK, axis=1)
        _refuse(coded_C, first, "has a code where it has no value", "codes 0")
        alias_C = ~empty_C & (byte_C < _LAST_BYTE) & (big_CK | ~valued_CK).all(axis=1)
        _refuse(alias_C, first, "has magnitude 1 for all values", "one of magnitude 0 or scale byte 255")
        return valued_CK

    def _indices(self, low_CB: U8, high_CB: U8, first: int) -> I64:
        """Indices [C, K] within their chunks, strictly increasing and below chunk; FormatError otherwise."""
        chunks, k, low = len(low_CB), self.k, self.low_bits
        high_CH = np.unpackbits(high_CB, axis=1)
        _refuse(np.count_nonzero(high_CH, axis=1) != k, first, "has a wrong number of indices", k)
        place_CK = np.flatnonzero(high_CH).reshape(chunks, k) - np.arange(0, chunks * 2 * k, 2 * k)[:, None]
        low_CKL = np.unpackbits(low_CB, axis=1).reshape(chunks, k, low)
        index_CK = ((place_CK - np.arange(k)) << low) + low_CKL @ (1 << np.arange(low)[::-1])
        wrong_C = (index_CK[:, 1:] <= index_CK[:, :-1]).any(axis=1) | (index_CK[:, -1] >= self.chunk)
        _refuse(wrong_C, first, "has wrong indices", f"strictly increasing, below {self.chunk}")
        return index_CK


def _select(magnitude_CW: I32, threshold_C: I32, kept: int, chosen_CW: Bools) -> I64:
    """Increasing indices [C, M] of the `kept` largest, ties to the lower.

    threshold_C is the smallest magnitude kept; chosen_CW is overwritten.
    """
    np.greater_equal(magnitude_CW, threshold_C[:, None], out=chosen_CW)
    flat = np.flatnonzero(chosen_CW)
    chunks, width = magnitude_CW.shape
    if flat.size != chunks * kept:
        tied = np.flatnonzero(np.count_nonzero(chosen_CW, axis=1) > kept)
        above = magnitude_CW[tied] > threshold_C[tied, None]
        equal = magnitude_CW[tied] == threshold_C[tied, None]
        room = kept - np.count_nonzero(above, axis=1)
        chosen_CW[tied] = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None]))
        flat = np.flatnonzero(chosen_CW)
    return flat.reshape(chunks, kept) - np.arange(0, chunks * width, width)[:, None]


def accumulate(codec: Codec, update_P: F32, error_P: F32, beta: float) -> F32:
    """`e' = beta * e + update`, f32 [P]: what is to be sent (docs/protocol.md, section 7).

    beta is first rounded to f32, then one multiplication and one addition, each rounded, never fused. Neither
    input is changed. Raises UsageError for another shape or type.
    """
    update_P = _flat_f32("the update", update_P, codec.length)
    error_P = _flat_f32("the error feedback", error_P, codec.length)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # encode refuses what is not finite
        accumulated_P = np.multiply(error_P, np.float32(beta), dtype=np.float32)
        np.add(accumulated_P, update_P, out=accumulated_P)
    return accumulated_P


def encode_with_residue(codec: Codec, accumulated_P: F32) -> tuple[bytes, F32]:
    """Payload of what accumulated, and what it leaves unsent: e' - decode(payload), one f32 subtraction.

    Raises NotFiniteError when e' is not finite.
    """
    payload = codec.encode(accumulated_P)
    sparse = codec.decode(payload)
    residue_P = accumulated_P.copy()
    residue_P[sparse.indices] -= sparse.values
    return payload, residue_P


def _flat_f32(what: str, vector_P: F32, length: int) -> F32:
    if not isinstance(vector_P, np.ndarray) or vector_P.dtype != np.float32 or vector_P.shape != (length,):
        got = (
            f"{vector_P.dtype} {list(vector_P.shape)}"
            if isinstance(vector_P, np.ndarray)
            else type(vector_P).__name__
        )
        raise UsageError(f"{what} has the wrong form", expected=f"float32 [{length}]", got=got)
    return np.ascontiguousarray(vector_P)


def _not_finite(count: int) -> NotFiniteError:
    hint = "Training diverged: lower the learning rate, or look at the data of this round."
    return NotFiniteError(
        "the update is not finite", expected="no NaN or infinity", got=f"at least {count}", hint=hint
    )


def _refuse(bad_C: Bools, first: int, what: str, expected: object) -> None:
    """Raise FormatError for the first chunk that is marked; `first` is the number of chunk 0 of bad_C."""
    if bad_C.any():
        raise FormatError(f"chunk {first + int(bad_C.argmax())} {what}", expected=expected)
