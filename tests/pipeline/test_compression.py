"""The codec against docs/protocol.md, section 8, and against a slow packer written from it."""

from __future__ import annotations

import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression import SCALES, Codec, Sparse, accumulate, encode_with_residue
from verification.errors import FormatError, UsageError, WorkError

SMALL = Codec(32, 8, 32)
# Indices 0 to 7: low bits 0 1 2 3 0 1 2 3, high parts 0 0 0 0 1 1 1 1.
EMPTY = bytes([0, 0x1B, 0x1B, 0b11110111, 0b10000000, 0, 0])


def with_error_feedback(codec: Codec, update: np.ndarray, error: np.ndarray, beta: float) -> tuple:
    return encode_with_residue(codec, accumulate(codec, update, error, beta))


def slow_pack(codec: Codec, chunks: list[tuple[int, list[tuple[int, int, int]]]]) -> bytes:
    """Bytes of chunks (scale byte, [(index, sign bit, magnitude bit)]), one text bit at a time."""
    low = int(math.log2(codec.chunk // codec.k))
    payload = b""
    for scale_byte, kept in chunks:
        entries = kept if scale_byte else [(index, 0, 0) for index in range(codec.k)]
        high = ["0"] * (2 * codec.k)
        for rank, (index, _, _) in enumerate(entries):
            high[(index >> low) + rank] = "1"
        lows = "".join(format(index % (1 << low), f"0{low}b") for index, _, _ in entries)
        codes = "".join(f"{sign}{magnitude}" for _, sign, magnitude in entries)
        bits = format(scale_byte, "08b") + lows + "".join(high) + codes
        payload += int(bits, 2).to_bytes(len(bits) // 8, "big")
    return payload


def slow_scale(scale_byte: int) -> float:
    return math.ldexp(8 + scale_byte % 8, scale_byte // 8 - 31) if scale_byte else 0.0


def slow_encode(codec: Codec, vector: np.ndarray) -> bytes:
    """Section 8, "Encoding", read literally with Python numbers."""
    numbers = [float(x) for x in vector]
    chunks = []
    for start in range(0, len(numbers), codec.chunk):
        real = numbers[start : start + codec.chunk]
        kept = sorted(sorted(range(len(real)), key=lambda i: (-abs(real[i]), i))[: codec.k])
        t = sorted(abs(real[i]) for i in kept)[len(kept) // 2]
        u = int.from_bytes(struct.pack(">f", t), "big")
        scale_byte = min(max(((u + 2**19) >> 20) - 792, 0), 255)
        border = 1.5 * slow_scale(scale_byte)
        entries = [(i, int(real[i] < 0), int(abs(real[i]) >= border)) for i in kept]
        chunks.append((scale_byte, entries + [(i, 0, 0) for i in range(len(real), codec.k)]))
    return slow_pack(codec, chunks)


def repack(codec: Codec, sparse: Sparse) -> bytes:
    """The one payload that has these values: no chunk with values has another form."""
    chunks = []
    for chunk in range(codec.chunks):
        inside = sparse.indices // codec.chunk == chunk
        index = [int(i) % codec.chunk for i in sparse.indices[inside]]
        value = [float(v) for v in sparse.values[inside]]
        real = min(codec.chunk, codec.length - chunk * codec.chunk)
        assert len(index) in (0, min(codec.k, real))
        scale = min((abs(v) for v in value), default=0.0)
        if scale == 2 * slow_scale(255):
            scale = slow_scale(255)
        assert all(abs(v) in (scale, 2 * scale) for v in value)
        scale_byte = next(b for b in range(256) if slow_scale(b) == scale)
        entries = [(i, int(v < 0), int(abs(v) > scale)) for i, v in zip(index, value, strict=True)]
        chunks.append((scale_byte, entries + [(i, 0, 0) for i in range(len(entries), codec.k)]))
    return slow_pack(codec, chunks)


def heavy_tailed(seed: int, length: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(3, size=length) * 1e-3).astype(np.float32)


@st.composite
def codecs(draw: st.DrawFn) -> Codec:
    k = draw(st.sampled_from([8, 16, 32]))
    chunk = k << draw(st.integers(2, 9))
    short_tail = st.tuples(st.integers(0, 2), st.integers(1, k)).map(lambda t: t[0] * chunk + t[1])
    return Codec(chunk, k, draw(st.integers(1, 3 * chunk) | short_tail))


@st.composite
def vectors(draw: st.DrawFn) -> tuple[Codec, np.ndarray]:
    """Codec and vector: dense, sparse, with few distinct magnitudes (ties), at any scale, with -0."""
    codec = draw(codecs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vector = rng.standard_t(2, size=codec.length)
    if draw(st.booleans()):
        vector = np.round(vector)
    vector *= 2.0 ** draw(st.integers(-140, 100))
    vector[rng.random(codec.length) < draw(st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]))] = -0.0
    with np.errstate(under="ignore"):
        return codec, vector.astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(vectors())
def test_encode_is_the_protocol_and_decodes_canonically(case: tuple[Codec, np.ndarray]) -> None:
    codec, vector = case
    payload = codec.encode(vector)
    assert payload == slow_encode(codec, vector)
    sparse = codec.decode(payload)
    assert repack(codec, sparse) == payload
    assert len(payload) == codec.payload_bytes
    assert sparse.indices.dtype == np.int64
    assert sparse.values.dtype == np.float32
    assert (np.diff(sparse.indices) > 0).all()
    dense = sparse.dense(codec.length)
    assert dense.dtype == np.float32
    assert np.array_equal(np.flatnonzero(dense), sparse.indices)
    assert sparse.norm() == math.sqrt(math.fsum(float(v) ** 2 for v in sparse.values))


def accepted_or_refused(codec: Codec, payload: bytes) -> None:
    try:
        sparse = codec.decode(payload)
    except FormatError:
        return
    assert repack(codec, sparse) == payload
    assert sparse.indices.size == 0 or sparse.indices[-1] < codec.length


@settings(deadline=None, max_examples=300)
@given(vectors(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_mutated_payloads_are_refused_or_canonical(case, changes) -> None:
    codec, vector = case
    payload = bytearray(codec.encode(vector))
    for place, change in changes:
        payload[place % len(payload)] ^= change
    accepted_or_refused(codec, bytes(payload))


@settings(deadline=None, max_examples=300)
@given(codecs(), st.randoms(use_true_random=False), st.booleans())
def test_arbitrary_payloads_are_refused_or_canonical(codec, random, right_popcount) -> None:
    rows = []
    low_end = 1 + codec.k * codec.low_bits // 8
    for _ in range(codec.chunks):
        row = bytearray(random.randbytes(codec.chunk_bytes))
        if right_popcount:  # else nearly everything stops at the first check
            ones = set(random.sample(range(2 * codec.k), codec.k))
            high = int("".join("01"[i in ones] for i in range(2 * codec.k)), 2)
            row[low_end : low_end + codec.k // 4] = high.to_bytes(codec.k // 4, "big")
        rows.append(bytes(row))
    accepted_or_refused(codec, b"".join(rows))


def test_random_bits_are_sometimes_accepted_with_the_right_shape() -> None:
    """The test above would be empty if nothing got through: these do, by construction."""
    codec = Codec(64, 8, 128)
    rng = np.random.default_rng(0)
    for _ in range(50):
        chunks = []
        for _ in range(2):
            kept = np.sort(rng.choice(64, 8, replace=False))
            small = rng.integers(8)  # at least one value is of magnitude 0
            codes = [
                (int(i), int(rng.integers(2)), int(rng.integers(2) * (n != small)))
                for n, i in enumerate(kept)
            ]
            chunks.append((int(rng.integers(1, 256)), codes))
        payload = slow_pack(codec, chunks)
        assert repack(codec, codec.decode(payload)) == payload


@pytest.mark.parametrize("change", [-81, -1, 1, 81])
def test_wrong_length_is_refused_first(change: int) -> None:
    codec = Codec(4096, 64, 10_000)
    with pytest.raises(FormatError, match="wrong length; expected 243 bytes"):
        codec.decode(b"\xff" * (codec.payload_bytes + change))


def test_a_huge_codec_refuses_short_bytes_without_reserving_memory() -> None:
    codec = Codec(4096, 64, 2**50)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="wrong length"):
            codec.decode(b"\0" * 100)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


ENTRIES = [(4 * i + 3, i % 2, i // 4) for i in range(8)]


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (slow_pack(SMALL, [(200, ENTRIES)])[:3] + b"\xfe\x01\x00\x00", "wrong indices"),  # low bits all 3
        (slow_pack(SMALL, [(200, ENTRIES)])[:3] + b"\xff\x80\x00\x00", "wrong number of indices"),
        (slow_pack(SMALL, [(200, ENTRIES)])[:3] + b"\xfc\x01\x00\x00", "wrong number of indices"),
        (slow_pack(SMALL, [(200, [(3, 0, 0)] * 2 + ENTRIES[2:])]), "wrong indices"),
        (slow_pack(SMALL, [(200, [(3, 0, 0), (2, 0, 0), *ENTRIES[2:]])]), "wrong indices"),
        (
            slow_pack(SMALL, [(200, [*ENTRIES[:7], (32, 0, 0)])]),
            "wrong indices; expected strictly increasing, below 32",
        ),
        (
            b"\x00" + slow_pack(SMALL, [(200, ENTRIES)])[1:],
            "does not have the first indices; expected 0 to 7",
        ),
        (EMPTY[:-1] + b"\x01", "a code where it has no value"),
        (EMPTY[:-1] + b"\x02", "a code where it has no value"),
    ],
)
def test_each_rule_of_the_decoder(payload: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        SMALL.decode(payload)


def test_golden_bytes() -> None:
    """By hand: chunk 32, k 8, so l = 2; see the comments for each field."""
    vector = np.zeros(32, dtype=np.float32)
    vector[[0, 5, 6, 12, 17, 22, 27, 31]] = [1.0, -1.0, 1.0, 1.9, -2.0, 1.5, -1.49, 100.0]
    # Magnitudes in order 1 1 1 1.49 1.5 1.9 2 100: rank 4 is 1.5 = 12 * 2^-3, so e = 28, m = 4: 0xe4.
    # Border 2.25, so only 100 has magnitude bit 1. Low bits 0 1 2 0 1 2 3 3, high parts 0 1 1 3 4 5 6 7.
    expected = bytes(
        [
            0b11100_100,
            0b00_01_10_00,
            0b01_10_11_11,
            0b10110010,  # bits 0, 2, 3, 6
            0b10101010,  # bits 8, 10, 12, 14
            0b00_10_00_00,
            0b10_00_10_01,
        ]
    )
    payload = SMALL.encode(vector)
    assert payload.hex() == expected.hex()
    sparse = SMALL.decode(payload)
    assert sparse.values.tolist() == [1.5, -1.5, 1.5, 1.5, -1.5, 1.5, -1.5, 3.0]
    assert sparse.norm_terms.tolist() == [1.5 * 1.5 * (7 + 4)]


def test_an_index_beyond_its_chunk_is_refused_where_a_chunk_follows() -> None:
    codec = Codec(32, 8, 64)
    payload = slow_pack(codec, [(200, [*ENTRIES[:7], (32, 0, 0)]), (200, ENTRIES)])
    with pytest.raises(FormatError, match="chunk 0 has wrong indices"):
        codec.decode(payload)


def test_names_and_lengths() -> None:
    codec = Codec(4096, 64, 10**9)
    assert codec.name == "topk64of4096-eliasfano-2bit-e5m3-v1"
    assert codec.chunk_bytes == 81
    assert codec.payload_bytes == 81 * 244_141
    assert SMALL.encode(np.zeros(32, dtype=np.float32)) == EMPTY


def test_every_scale_is_the_nearest_halves_away_from_zero() -> None:
    """At each representable scale, at and around the middle to the next, and at the border of magnitude 1."""
    for scale_byte in range(1, 256):
        scale = np.float32(slow_scale(scale_byte))
        assert SCALES[scale_byte] == scale
        ulp = math.ldexp(1, scale_byte // 8 - 31)
        middle = np.float32(scale + ulp / 2)
        below = np.nextafter(middle, np.float32(0))
        for size, expected in ((scale, scale_byte), (below, scale_byte), (middle, min(scale_byte + 1, 255))):
            assert SMALL.encode(np.full(32, size, dtype=np.float32))[0] == expected
            assert SMALL.encode(np.full(32, -size, dtype=np.float32))[0] == expected
        vector = np.full(32, scale, dtype=np.float32)
        vector[1] = scale * np.float32(1.5)
        vector[2] = np.nextafter(vector[1], np.float32(0))
        assert SMALL.decode(SMALL.encode(vector)).values[:3].tolist() == [scale, 2 * scale, scale]


def test_tiny_and_huge_values() -> None:
    """Scale 0 below the f32 whose bits are 793 * 2^20 - 2^19, and the last byte with magnitude 1 for all."""
    first = np.frombuffer(struct.pack("<I", (793 << 20) - (1 << 19)), dtype="<f4")[0].astype(np.float32)
    assert SMALL.encode(np.full(32, first, dtype=np.float32))[0] == 1
    for tiny in (np.nextafter(first, np.float32(0)), np.float32(1e-45)):
        assert SMALL.encode(np.full(32, tiny, dtype=np.float32)) == EMPTY
    huge = np.full(32, np.finfo(np.float32).max, dtype=np.float32)
    assert SMALL.encode(huge)[0] == 255
    assert SMALL.decode(SMALL.encode(-huge)).values.tolist() == [-30.0] * 8


@pytest.mark.parametrize("scale_byte", range(1, 256))
@pytest.mark.parametrize("length", [32, 35, 39])
def test_magnitude_one_for_all_values_is_refused(scale_byte: int, length: int) -> None:
    """The alias of a payload: with it the same values could be sent under a second digest."""
    codec = Codec(32, 8, length)
    real = length % 32 or 8
    whole = slow_pack(SMALL, [(200, ENTRIES)]) if length > 32 else b""
    alias = [(i, i % 2, 1) if i < real else (i, 0, 0) for i in range(8)]
    payload = whole + slow_pack(SMALL, [(scale_byte, alias)])
    if scale_byte == 255:
        assert np.abs(codec.decode(payload).values[-real:]).tolist() == [30.0] * real
    else:
        with pytest.raises(FormatError, match=f"chunk {length // 33} has magnitude 1 for all values"):
            codec.decode(payload)


@settings(deadline=None, max_examples=200)
@given(vectors(), st.integers(0, 2**32))
def test_the_encoder_never_writes_an_alias(case: tuple[Codec, np.ndarray], seed: int) -> None:
    """Nor for magnitudes that lie close together anywhere between two scales."""
    codec, vector = case
    rng = np.random.default_rng(seed)
    close = rng.uniform(1, 1.6, size=codec.length) * 2.0 ** rng.integers(-32, 8)
    for numbers in (vector, close.astype(np.float32)):
        payload = codec.encode(numbers)
        sparse = codec.decode(payload)
        for chunk, scale_byte in enumerate(payload[:: codec.chunk_bytes]):
            sizes = np.abs(sparse.values[sparse.indices // codec.chunk == chunk])
            assert scale_byte in {0, 255} or sizes.min() == slow_scale(scale_byte)


def test_ties_go_to_the_lower_index() -> None:
    vector = np.ones(64, dtype=np.float32)
    vector[40:44] = -2.0
    sparse = Codec(64, 8, 64).decode(Codec(64, 8, 64).encode(vector))
    assert sparse.indices.tolist() == [0, 1, 2, 3, 40, 41, 42, 43]


def test_negative_zero_counts_as_zero() -> None:
    vector = np.zeros(32, dtype=np.float32)
    vector[10:15] = 1.0  # five of eight: the median is 1, three zeros are kept
    negative = np.where(vector == 0, np.float32(-0.0), vector)
    assert SMALL.encode(negative) == SMALL.encode(vector)
    assert SMALL.decode(SMALL.encode(negative)).indices.tolist() == [0, 1, 2, 10, 11, 12, 13, 14]


@pytest.mark.parametrize("rest", [1, 7, 8, 9, 31])
def test_padding_is_never_kept(rest: int) -> None:
    codec = Codec(32, 8, 32 + rest)
    vector = np.ones(codec.length, dtype=np.float32)
    sparse = codec.decode(codec.encode(vector))
    assert sparse.indices.tolist() == [*range(8), *range(32, 32 + min(rest, 8))]
    assert sparse.norm() == math.sqrt(8 + min(rest, 8))


def test_golden_bytes_of_a_short_chunk() -> None:
    """By hand: three real entries of eight; t is the element of rank 1 of 0.5 1.45 3."""
    vector = np.array([-3.0, 0.5, 1.45], dtype=np.float32)
    # 1.45 lies between 11 and 12 eighths, nearer to 12: 12 * 2^-3 is e = 28, m = 4. Border 2.25.
    expected = bytes([0b11100_100, 0x1B, 0x1B, 0b11110111, 0b10000000, 0b11_00_00_00, 0])
    codec = Codec(32, 8, 3)
    assert codec.encode(vector).hex() == expected.hex()
    sparse = codec.decode(expected)
    assert (sparse.indices.tolist(), sparse.values.tolist()) == ([0, 1, 2], [-3.0, 1.5, 1.5])
    assert sparse.norm_terms.tolist() == [1.5 * 1.5 * (2 + 4)]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(0, 2), st.integers(0, 2**32))
def test_every_parameter_of_a_short_chunk_is_sent(real: int, whole: int, seed: int) -> None:
    """With r < k the tail is no dead corner: each round has all of it, and what is held back stays small."""
    codec = Codec(32, 8, 32 * whole + real)
    rng = np.random.default_rng(seed)
    update = (rng.uniform(1, 2, codec.length) * rng.choice([-1e-3, 1e-3], codec.length)).astype(np.float32)
    error, sent = np.zeros_like(update), np.zeros(codec.length)
    tail = slice(32 * whole, None)
    for rounds in range(1, 101):
        payload, error = with_error_feedback(codec, update, error, 1.0)
        sparse = codec.decode(payload)
        assert sparse.indices[-real:].tolist() == list(range(codec.length))[tail]
        sent += sparse.dense(codec.length)
        assert np.abs(sent[tail] - rounds * update[tail].astype(np.float64)).max() < 6e-3


def test_a_value_in_the_padding_is_refused() -> None:
    payload = slow_pack(Codec(32, 8, 45), [(200, ENTRIES), (200, [(i + 4, 0, 0) for i in range(8)])])
    assert Codec(32, 8, 44).decode(payload).indices[-1] == 43
    for length in (43, 40):
        with pytest.raises(
            FormatError, match=f"1 has a value in the padding; expected indices below {length - 32}"
        ):
            Codec(32, 8, length).decode(payload)
    with pytest.raises(FormatError, match="chunk 1 does not have the first indices; expected 0 to 7"):
        Codec(32, 8, 39).decode(payload)


@pytest.mark.parametrize("real", range(1, 8))
def test_a_code_in_the_padding_is_refused(real: int) -> None:
    codec = Codec(32, 8, 32 + real)
    entries = [(i, 0, 0) for i in range(8)]
    whole = slow_pack(SMALL, [(200, ENTRIES)])
    kept = codec.decode(whole + slow_pack(SMALL, [(200, entries)]))
    assert kept.indices.tolist() == [4 * i + 3 for i in range(8)] + list(range(32, 32 + real))
    for place in range(real, 8):
        for code in ((0, 1), (1, 0), (1, 1)):
            changed = [*entries[:place], (place, *code), *entries[place + 1 :]]
            with pytest.raises(FormatError, match="chunk 1 has a code where it has no value"):
                codec.decode(whole + slow_pack(SMALL, [(200, changed)]))
    assert codec.decode(whole + EMPTY).indices.size == 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 4000, 4100])
def test_what_is_not_finite_is_refused(value: float, place: int) -> None:
    codec = Codec(4096, 64, 4101)  # the last chunk has fewer than k entries
    vector = heavy_tailed(0, 4101)
    vector[place] = value
    with pytest.raises(WorkError, match="not finite"):
        codec.encode(vector)
    with pytest.raises(WorkError, match="not finite"):
        with_error_feedback(codec, vector, np.zeros_like(vector), 0.95)


def test_overflow_of_the_feedback_is_a_work_error() -> None:
    huge = np.full(32, np.finfo(np.float32).max, dtype=np.float32)
    with pytest.raises(WorkError, match="not finite"):
        with_error_feedback(SMALL, huge, huge, 1.0)


@pytest.mark.parametrize(
    "vector",
    [np.zeros(31, np.float32), np.zeros((1, 32), np.float32), np.zeros(32), np.zeros(32, ">f4"), [0.0] * 32],
)
def test_another_form_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected float32 \[32\]"):
        SMALL.encode(vector)
    with pytest.raises(UsageError, match=r"error feedback has the wrong form"):
        with_error_feedback(SMALL, np.zeros(32, np.float32), vector, 1.0)


@pytest.mark.parametrize(
    ("chunk", "k", "length"),
    [(4095, 64, 1), (0, 8, 1), (4096, 4, 1), (4096, 65, 1), (4096, 2048, 1), (2**32, 64, 1), (4096, 64, 0)],
)
def test_parameters_outside_the_protocol_are_refused(chunk: int, k: int, length: int) -> None:
    with pytest.raises(UsageError):
        Codec(chunk, k, length)


def test_dense_refuses_a_length_that_is_too_small() -> None:
    sparse = SMALL.decode(SMALL.encode(np.ones(32, dtype=np.float32)))
    assert sparse.dense(8).tolist() == [1.0] * 8
    with pytest.raises(UsageError, match="does not fit"):
        sparse.dense(7)


@settings(deadline=None, max_examples=50)
@given(vectors(), st.sampled_from([0.0, 0.95, 1.0]), st.integers(0, 2**32))
def test_error_feedback_conserves(case: tuple[Codec, np.ndarray], beta: float, seed: int) -> None:
    codec, update = case
    error = heavy_tailed(seed, codec.length)
    before = update.copy(), error.copy()
    payload, following = with_error_feedback(codec, update, error, beta)
    assert all(np.array_equal(*pair) for pair in zip(before, (update, error), strict=True))
    # The f32 of an f64 product and of an f64 sum of two f32 are the f32 operations, rounded once.
    product = (np.float64(np.float32(beta)) * error.astype(np.float64)).astype(np.float32)
    total = np.array([math.fsum(pair) for pair in zip(product, update, strict=True)]).astype(np.float32)
    assert payload == codec.encode(total)
    decoded = codec.decode(payload).dense(codec.length)
    assert following.dtype == np.float32
    assert np.array_equal(following, total - decoded)
    untouched = decoded == 0
    assert np.array_equal(following[untouched], total[untouched])


def test_repeated_rounds_send_what_was_held_back() -> None:
    """With beta 1 the sum of what was sent plus what is held is what came in, up to f32 rounding."""
    codec = Codec(256, 8, 1000)
    error, sent, came = np.zeros(1000, np.float32), np.zeros(1000), np.zeros(1000)
    for seed in range(40):
        update = heavy_tailed(seed, 1000)
        payload, error = with_error_feedback(codec, update, error, 1.0)
        sent += codec.decode(payload).dense(1000)
        came += update
    assert np.abs(came - sent - error).max() < 1e-6
    assert np.count_nonzero(sent) > 500


def test_memory_of_encoding_is_bounded() -> None:
    """Far less than a second vector, whatever the length; decode reserves for what was kept only."""
    codec = Codec(4096, 64, 2**23)
    vector = heavy_tailed(0, 2**23)
    tracemalloc.start()
    try:
        payload = codec.encode(vector)
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
        tracemalloc.reset_peak()
        codec.decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(64, 8, 64 * 50 + 20)
    vector = heavy_tailed(3, codec.length)
    values = codec.decode(payload := codec.encode(vector)).values
    monkeypatch.setattr("pipeline.compression._BLOCK", 192)
    assert codec.encode(vector) == payload
    assert np.array_equal(codec.decode(payload).values, values)
