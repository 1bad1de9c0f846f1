"""data_prep/shards.py: packing, the file format, and reading it back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.manifest import ShardEntry, file_digest
from data_prep.shards import SHARD_WINDOWS, WindowReader, write_shards
from verification.errors import BarnraiseError, FormatError, ProtocolError


def stream(count: int, vocab: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count)


def write(folder: Path, tokens: np.ndarray, context: int = 8, vocab: int = 300, **options: int) -> list[Path]:
    entries = write_shards([tokens], folder, "t", context=context, vocab_size=vocab, **options)
    return [folder / entry.file for entry in entries]


@settings(max_examples=50, deadline=None)
@given(
    pieces=st.lists(st.integers(0, 12), max_size=10),
    context=st.integers(1, 7),
    shard_windows=st.integers(1, 9),
    vocab=st.sampled_from([300, 65536, 65537, 10**6]),
)
def test_windows_are_the_stream_cut_without_overlap(
    pieces: list[int], context: int, shard_windows: int, vocab: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    tokens = stream(sum(pieces), vocab)
    entries = write_shards(
        np.split(tokens, np.cumsum(pieces)),
        folder,
        "t",
        context=context,
        vocab_size=vocab,
        shard_windows=shard_windows,
    )
    width = context + 1
    whole = tokens.size // width
    assert [e.windows for e in entries] == [
        min(shard_windows, whole - start) for start in range(0, whole, shard_windows)
    ]
    assert [e.file for e in entries] == [f"t-{i:05d}.arrow" for i in range(len(entries))]
    assert all(e.digest == file_digest(folder / e.file) for e in entries)
    reader = WindowReader([folder / e.file for e in entries], context, vocab)
    assert len(reader) == whole
    assert reader.shard_windows == [e.windows for e in entries]
    got = reader.read(range(whole))
    assert got.dtype == np.int64
    assert got.shape == (whole, width)
    assert (got == tokens[: whole * width].reshape(whole, width)).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=60))
def test_read_gives_rows_in_the_order_asked(reader: WindowReader, ids: list[int]) -> None:
    whole = stream(900, 300).reshape(100, 9)
    for asked in (ids, np.array(ids, dtype=np.int64), tuple(ids)):
        assert (reader.read(asked) == whole[np.array(ids, dtype=int)]).all()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> WindowReader:
    return WindowReader(write(tmp_path_factory.mktemp("r"), stream(900, 300), shard_windows=7), 8, 300)


def test_read_is_a_copy_of_the_callers_own(reader: WindowReader) -> None:
    first = reader.read([0])
    first += 1
    assert (reader.read([0]) == first - 1).all()


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    (path,) = write(tmp_path, np.arange(9 * 5000) % 300)
    with pa.ipc.open_file(path) as file:
        assert file.schema.names == ["tokens"]
        assert file.schema.types == [pa.list_(pa.uint16(), 9)]
        assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [4096, 904]
        assert file.get_batch(0).column(0)[1].as_py() == list(range(9, 18))
    (wide,) = write(tmp_path, np.arange(18) + 70_000, vocab=100_000)
    with pa.ipc.open_file(wide) as file:
        assert file.schema.types == [pa.list_(pa.uint32(), 9)]


def test_golden_body(tmp_path: Path) -> None:
    """The tokens lie in the file as little-endian numbers, one window after another."""
    (path,) = write(tmp_path, np.array([1, 2, 258, 3, 4, 5]), context=2)
    assert bytes.fromhex("010002000201030004000500") in path.read_bytes()


def test_shards_are_bounded_by_default(tmp_path: Path) -> None:
    entries = write_shards(
        (np.zeros(2000, dtype=np.int64) for _ in range(70)), tmp_path, "t", context=1, vocab_size=257
    )
    assert [e.windows for e in entries] == [SHARD_WINDOWS, 70_000 - SHARD_WINDOWS]


def test_not_one_window_writes_nothing(tmp_path: Path) -> None:
    assert write(tmp_path, stream(8, 300)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [300, -1, 2**40])
def test_writing_an_id_outside_the_vocabulary(tmp_path: Path, bad: int) -> None:
    with pytest.raises(FormatError, match=rf"outside the vocabulary; expected 0 to 299, got {bad}\."):
        write(tmp_path, np.array([5, bad, 5]))


def test_reading_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    tokens = np.zeros(90, dtype=np.int64)
    tokens[9 * 4 + 2] = 200
    small = WindowReader(write(tmp_path, tokens), 8, 200)
    assert (small.read([0, 3, 5]) == 0).all()
    message = r"window 4 holds a token id outside the vocabulary; expected 0 to 199, got 200\."
    with pytest.raises(FormatError, match=message):
        small.read([3, 4])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([100], r"no such window; expected 0 to 99, got 100\."),
        ([3, -1], r"no such window; expected 0 to 99, got -1\."),
        ([2**63], r"no such window; expected 0 to 99, got 9223372036854775808\."),
        ([2**70], "not a list of integers"),
        ([0.0], r"not a list of integers; expected 0 to 99, got \[0\.0\]\."),
        ([True], "not a list of integers"),
        (["a"], "not a list of integers"),
        ([[1]], "not a list of integers"),
        ([[1], 2], "not a list of integers"),
        (5, "not a list of integers"),
    ],
)
def test_reading_outside(reader: WindowReader, ids: object, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        reader.read(ids)  # type: ignore[arg-type]


def ipc(path: Path, columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def fixed(values: list[list[int] | None], kind: pa.DataType, width: int = 2) -> pa.Array:
    return pa.array(values, pa.list_(kind, width))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "not a readable shard; expected an Arrow IPC file"),
        (lambda p: p.write_bytes(b"ARROW1\0\0 nothing"), "not a readable shard"),
        (lambda p: None, "not a readable shard; expected an Arrow IPC file, got .*No such file"),
        (
            lambda p: ipc(p, {"tokens": fixed([[1, 2]], pa.int32())}),
            r"wrong columns; expected tokens: fixed_size_list<uint16 or uint32>\[2\], got tokens: .*int32",
        ),
        (lambda p: ipc(p, {"tokens": fixed([[1, 2, 3]], pa.uint16(), 3)}), r"wrong columns.*\[3\]"),
        (lambda p: ipc(p, {"ids": fixed([[1, 2]], pa.uint16())}), "wrong columns.*got ids"),
        (lambda p: ipc(p, {"tokens": pa.array([1, 2], pa.uint16())}), "wrong columns"),
        (lambda p: ipc(p, {}), "wrong columns.*got none"),
        (
            lambda p: ipc(p, {"tokens": fixed([[1, 2]], pa.uint16()), "b": pa.array([1])}),
            "wrong columns.*got tokens: .*, b: int64",
        ),
        (
            lambda p: ipc(p, {"tokens": fixed([[1, 2], None], pa.uint16())}),
            "empty places; expected no nulls, got 1",
        ),
        (
            lambda p: ipc(p, {"tokens": fixed([[1, None]], pa.uint16())}),
            "empty places; expected no nulls, got 1",
        ),
    ],
)
def test_malformed_shards(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "bad.arrow"
    make(path)
    with pytest.raises(FormatError, match=message):
        WindowReader([path], 1, 300)


def test_shards_of_other_writers(tmp_path: Path) -> None:
    """Another inner field name, a sliced first row, an empty shard: all are the same column."""
    kind = pa.list_(pa.field("element", pa.uint16(), nullable=False), 2)
    table = pa.table({"tokens": pa.array([[9, 9], [1, 2], [3, 4]], kind)}).slice(1)
    with pa.ipc.new_file(tmp_path / "a", table.schema) as writer:
        writer.write_table(table)
    ipc(tmp_path / "b", {"tokens": fixed([], pa.uint32())})
    both = WindowReader([tmp_path / "b", tmp_path / "a", tmp_path / "b"], 1, 300)
    assert both.shard_windows == [0, 2, 0]
    assert both.read([1, 0]).tolist() == [[3, 4], [1, 2]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_broken_bytes_stay_in_the_family(
    seed: int, raw_shard: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.arrow"
    rng = random.Random(seed)
    data = bytearray(raw_shard)
    # Most of the file is tokens; aim at the ends, where the structure is.
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(300) if rng.random() < 0.5 else -1 - rng.randrange(400)
        data[place] = rng.randrange(256)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data))]
    path.write_bytes(data)
    try:
        got = WindowReader([path], 8, 300)
        rows = got.read(range(min(len(got), 1000)))
    except BarnraiseError:
        return
    assert rows.shape[1:] == (9,)
    assert not rows.size or (rows.min() >= 0 and rows.max() < 300)


@pytest.fixture(scope="module")
def raw_shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    (path,) = write(tmp_path_factory.mktemp("raw"), stream(9 * 40, 300))
    return path.read_bytes()


def test_a_column_name_that_is_no_text(tmp_path: Path, raw_shard: bytes) -> None:
    (tmp_path / "x").write_bytes(raw_shard.replace(b"tokens", b"tok\xffns"))
    with pytest.raises(FormatError, match=r"not a readable shard.*utf-8"):
        WindowReader([tmp_path / "x"], 8, 300)


def test_entries_of_write_are_valid(tmp_path: Path) -> None:
    (entry,) = write_shards([stream(20, 300)], tmp_path, "validation", context=8, vocab_size=300)
    assert entry == ShardEntry(file_digest(tmp_path / entry.file), "validation-00000.arrow", 2)
