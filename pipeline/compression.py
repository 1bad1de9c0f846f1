"""The codec: a flat update to payload bytes and back, and error feedback around it.

Owns sections 7 (error feedback) and 8 of docs/protocol.md. Does not own what payloads are combined into
(aggregation.py), nor digests. numpy only: integer operations, table look-ups and single IEEE 754 additions
and multiplications decide every bit, so any machine writes the same bytes for the same numbers.

Shapes: P elements of the flat vector, C chunks of a block, W elements of a chunk that are not padding,
K kept entries of a chunk, N kept entries of the whole payload, B bytes of a chunk, L low bits of an index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verification.errors import FormatError, UsageError, WorkError

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
_MANTISSA_DROP = 20  # f32 bits above this are exponent and the three mantissa bits of the scale byte
_BYTE_OF_BITS = (127 - 28) << 3  # exponent field 99 is e = 0: scale = 1.mmm * 2^(e - 28)

SCALES = np.array([0.0] + [math.ldexp(8 + (b & 7), (b >> 3) - 31) for b in range(1, 256)], dtype=np.float32)
"""Scale of each scale byte, f32 [256] (docs/protocol.md, section 8); every one is exact."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A decoded payload: flat positions in increasing order and their values, none of them zero.

    indices: int64 [N], values: f32 [N]. norm_terms: f64 [chunks], for every chunk of the vector
    `scale * scale * (n1 + 4 * n2)`, exact (docs/protocol.md, section 9.2).
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


@dataclass(frozen=True, eq=False)
class _Scratch:
    """Arrays [C, W] that every block of an encoder writes anew: fresh pages cost more than the work."""

    magnitude: I32
    sorted: I32
    chosen: Bools

    @classmethod
    def of(cls, chunks: int, width: int) -> _Scratch:
        shape = (chunks, width)
        return cls(np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.bool_))

    def rows(self, chunks: int) -> _Scratch:
        return _Scratch(self.magnitude[:chunks], self.sorted[:chunks], self.chosen[:chunks])


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

    def encode(self, vector_P: F32) -> bytes:
        """Payload of a vector, f32 [P]. Equal numbers give equal bytes (-0 counts as 0).

        Raises UsageError for another shape or type and WorkError when an element is NaN or infinite.
        """
        vector_P = _flat_f32("the update", vector_P, self.length)
        payload = np.empty((self.chunks, self.chunk_bytes), dtype=np.uint8)
        whole = self.length // self.chunk
        step = max(1, _BLOCK // self.chunk)
        scratch = _Scratch.of(min(step, whole), self.chunk)
        for first in range(0, whole, step):
            last = min(first + step, whole)
            rows_CW = vector_P[first * self.chunk : last * self.chunk].reshape(-1, self.chunk)
            payload[first:last] = self._encode_rows(rows_CW, scratch.rows(last - first))
        tail_W = vector_P[whole * self.chunk :]
        if tail_W.size >= self.k:
            payload[whole] = self._encode_rows(tail_W[None, :], _Scratch.of(1, tail_W.size))[0]
        elif tail_W.size:
            _require_finite(tail_W.view(np.int32) & _MAGNITUDE)
            payload[whole] = self._empty_chunk()
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
        step = max(1, _BLOCK // self.chunk)
        blocks = [
            self._decode_rows(rows_CB[first : first + step], first) for first in range(0, self.chunks, step)
        ]
        return Sparse(
            indices=np.concatenate([block.indices for block in blocks]),
            values=np.concatenate([block.values for block in blocks]),
            norm_terms=np.concatenate([block.norm_terms for block in blocks]),
        )

    def _empty_chunk(self) -> U8:
        """The one form of a chunk of scale 0: indices 0 to k - 1, codes 0."""
        index_CK = np.arange(self.k, dtype=np.int64)[None, :]
        nothing_CK = np.zeros((1, self.k), dtype=np.bool_)
        row_B: U8 = self._pack(np.zeros(1, dtype=np.uint8), index_CK, nothing_CK, nothing_CK)[0]
        return row_B

    def _encode_rows(self, rows_CW: F32, scratch: _Scratch) -> U8:
        """Bytes [C, B] of chunks whose first W elements are real, W >= k."""
        magnitude_CW, sorted_CW, width = scratch.magnitude, scratch.sorted, rows_CW.shape[1]
        np.bitwise_and(rows_CW.view(np.int32), _MAGNITUDE, out=magnitude_CW)  # floats order as their bits do
        np.copyto(sorted_CW, magnitude_CW)
        sorted_CW.partition(width - self.k, axis=1)
        top_CK = sorted_CW[:, width - self.k :]
        if int(top_CK.max()) >= _INFINITY:
            _require_finite(magnitude_CW)
        median_C = np.partition(top_CK, self.k // 2, axis=1)[:, self.k // 2]
        byte_C = np.clip((median_C >> _MANTISSA_DROP) - _BYTE_OF_BITS, 0, 255).astype(np.uint8)
        index_CK = self._select(scratch, top_CK[:, 0])
        kept_CK = np.take_along_axis(rows_CW, index_CK, axis=1)
        big_CK = np.abs(kept_CK) >= (SCALES[byte_C] * np.float32(1.5))[:, None]
        negative_CK = kept_CK < 0
        empty_C = byte_C == 0
        index_CK[empty_C] = np.arange(self.k)
        big_CK[empty_C] = False
        negative_CK[empty_C] = False
        return self._pack(byte_C, index_CK, negative_CK, big_CK)

    def _select(self, scratch: _Scratch, threshold_C: I32) -> I64:
        """Increasing indices [C, K] of the k largest, ties to the lower; threshold_C is the k-th largest."""
        magnitude_CW, chosen_CW = scratch.magnitude, scratch.chosen
        np.greater_equal(magnitude_CW, threshold_C[:, None], out=chosen_CW)
        flat = np.flatnonzero(chosen_CW)
        count = len(threshold_C) * self.k
        if flat.size != count:
            tied = np.flatnonzero(np.count_nonzero(chosen_CW, axis=1) > self.k)
            above = magnitude_CW[tied] > threshold_C[tied, None]
            equal = magnitude_CW[tied] == threshold_C[tied, None]
            room = self.k - np.count_nonzero(above, axis=1)
            chosen_CW[tied] = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None]))
            flat = np.flatnonzero(chosen_CW)
        width = magnitude_CW.shape[1]
        return flat.reshape(-1, self.k) - np.arange(0, flat.size // self.k * width, width)[:, None]

    def _pack(self, byte_C: U8, index_CK: I64, negative_CK: Bools, big_CK: Bools) -> U8:
        """Bytes [C, B] from scale bytes, indices and codes: the layout of section 8."""
        chunks, k, low = len(byte_C), self.k, self.low_bits
        width = -(-low // 8)
        raw = (index_CK & ((1 << low) - 1)).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]
        low_bits = np.unpackbits(np.ascontiguousarray(raw), axis=1)[:, 8 * width - low :]
        high_bits = np.zeros((chunks, 2 * k), dtype=np.uint8)
        np.put_along_axis(high_bits, (index_CK >> low) + np.arange(k), 1, axis=1)
        codes = np.stack([negative_CK, big_CK], axis=2)
        return np.concatenate(
            [
                byte_C[:, None],
                np.packbits(low_bits.reshape(chunks, k * low), axis=1),
                np.packbits(high_bits, axis=1),
                np.packbits(codes.reshape(chunks, 2 * k), axis=1),
            ],
            axis=1,
        )

    def _decode_rows(self, rows_CB: U8, first: int) -> Sparse:
        """Values of the chunks [C, B] that start with chunk number `first`."""
        low_end = 1 + self.k * self.low_bits // 8
        high_end = low_end + self.k // 4
        empty_C = rows_CB[:, 0] == 0
        if empty_C.any() and (rows_CB[empty_C] != self._empty_chunk()).any():
            raise FormatError(
                "a chunk of scale 0 holds something", expected=f"indices 0 to {self.k - 1}, codes 0"
            )
        index_CK = self._indices(rows_CB[:, 1:low_end], rows_CB[:, low_end:high_end], first)
        start_C = (np.arange(first, first + len(rows_CB)) * self.chunk)[:, None]
        flat_CK = index_CK + start_C
        beyond = flat_CK[~empty_C, -1] >= self.length
        if beyond.any():
            raise FormatError(
                "a payload has a value in the padding",
                expected=f"positions below {self.length}",
                got=int(flat_CK.max()),
            )
        codes_CK = np.unpackbits(rows_CB[:, high_end:], axis=1).reshape(-1, self.k, 2)
        big_CK = codes_CK[:, :, 1]
        scale_C = SCALES[rows_CB[:, 0]]
        value_CK = np.where(big_CK, 2 * scale_C[:, None], scale_C[:, None])
        np.negative(value_CK, out=value_CK, where=codes_CK[:, :, 0] == 1)
        # Eight bits of significand squared times a small count: exact in f64, so no rounding to fix.
        weight_C = self.k + 3 * np.count_nonzero(big_CK, axis=1)
        terms_C = scale_C.astype(np.float64) * scale_C.astype(np.float64) * weight_C.astype(np.float64)
        if empty_C.any():
            flat_CK, value_CK = flat_CK[~empty_C], value_CK[~empty_C]
        return Sparse(indices=flat_CK.reshape(-1), values=value_CK.reshape(-1), norm_terms=terms_C)

    def _indices(self, low_CB: U8, high_CB: U8, first: int) -> I64:
        """Indices [C, K] within their chunks from low and high parts; FormatError unless canonical."""
        chunks, k, low = len(low_CB), self.k, self.low_bits
        high_bits = np.unpackbits(high_CB, axis=1)
        count_C = np.count_nonzero(high_bits, axis=1)
        if (count_C != k).any():
            bad = int(np.flatnonzero(count_C != k)[0])
            raise FormatError(
                f"chunk {first + bad} has a wrong number of indices", expected=k, got=int(count_C[bad])
            )
        place_CK = np.flatnonzero(high_bits).reshape(chunks, k) - np.arange(0, chunks * 2 * k, 2 * k)[:, None]
        width = -(-low // 8)
        bits = np.zeros((chunks * k, 8 * width), dtype=np.uint8)
        bits[:, 8 * width - low :] = np.unpackbits(low_CB, axis=1).reshape(-1, low)
        raw = np.packbits(bits.reshape(-1)).reshape(-1, width)
        low_CK = raw[:, 0].astype(np.int64)
        for column in range(1, width):
            low_CK = (low_CK << 8) | raw[:, column]
        index_CK = ((place_CK - np.arange(k)) << low) | low_CK.reshape(chunks, k)
        bad_C = (index_CK[:, 1:] <= index_CK[:, :-1]).any(axis=1) | (index_CK[:, -1] >= self.chunk)
        if bad_C.any():
            bad = first + int(np.flatnonzero(bad_C)[0])
            raise FormatError(
                f"chunk {bad} has wrong indices", expected=f"strictly increasing, below {self.chunk}"
            )
        return index_CK


def with_error_feedback(codec: Codec, update_P: F32, error_P: F32, beta: float) -> tuple[bytes, F32]:
    """Payload of an update and the next error feedback, f32 [P] (docs/protocol.md, section 7).

    `e' = beta * e + update` in f32: beta is first rounded to f32, then one multiplication and one addition,
    each rounded, never fused. The next error is e' - decode(payload), one f32 subtraction. Neither input is
    changed. Raises UsageError for another shape or type and WorkError when e' is not finite.
    """
    update_P = _flat_f32("the update", update_P, codec.length)
    error_P = _flat_f32("the error feedback", error_P, codec.length)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # encode refuses what is not finite
        next_P = np.multiply(error_P, np.float32(beta), dtype=np.float32)
        np.add(next_P, update_P, out=next_P)
    payload = codec.encode(next_P)
    sparse = codec.decode(payload)
    next_P[sparse.indices] -= sparse.values
    return payload, next_P


def _flat_f32(what: str, vector_P: F32, length: int) -> F32:
    if not isinstance(vector_P, np.ndarray) or vector_P.dtype != np.float32 or vector_P.shape != (length,):
        got = (
            f"{vector_P.dtype} {list(vector_P.shape)}"
            if isinstance(vector_P, np.ndarray)
            else type(vector_P).__name__
        )
        raise UsageError(f"{what} has the wrong form", expected=f"float32 [{length}]", got=got)
    return np.ascontiguousarray(vector_P)


def _require_finite(magnitude: I32) -> None:
    bad = np.flatnonzero(magnitude >= _INFINITY)
    if bad.size:
        hint = "Training diverged: lower the learning rate, or look at the data of this round."
        raise WorkError(
            "the update is not finite", expected="no NaN or infinity", got=f"at least {bad.size}", hint=hint
        )
