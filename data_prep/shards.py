"""Windows of tokens on disk: Arrow IPC files, written in one pass and read memory-mapped.

Owns packing a stream of tokens into windows, the shard format (docs/protocol.md, section 5), and reading
windows by number. Does not own which window is whose, nor what a token means.

Shape suffixes: N windows asked for or written together, W = context + 1 tokens in a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from data_prep.manifest import ShardEntry, file_digest
from verification.errors import FormatError, ProtocolError

Tokens = NDArray[np.int64]

MAX_CHUNK = 4096  # windows in a record batch: the measured best for random rows from a memory map
BATCH_TOKENS = 1 << 22  # and fewer where windows are long, so that memory stays bounded
SHARD_WINDOWS = 1 << 16
COLUMN = "tokens"


def write_shards(
    tokens: Iterable[Tokens],
    folder: Path,
    stem: str,
    *,
    context: int,
    vocab_size: int,
    shard_windows: int = SHARD_WINDOWS,
) -> tuple[ShardEntry, ...]:
    """Pack a stream of token ids into windows of context + 1 that do not overlap; write and fsync shards.

    `tokens` are one-dimensional pieces of one stream; what does not fill a last window is left out. Files
    are `{stem}-00000.arrow` and so on, each of at most `shard_windows` windows; none when there is not one
    whole window. Raises FormatError for an id that is not below `vocab_size`, OSError as the disk gives it.
    """
    width = context + 1
    rows = max(1, min(MAX_CHUNK, shard_windows, BATCH_TOKENS // width))
    dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
    batches = _pack(tokens, width, rows, vocab_size, dtype)
    entries: list[ShardEntry] = []
    while (first := next(batches, None)) is not None:
        path = folder / f"{stem}-{len(entries):05d}.arrow"
        windows = _write_shard(path, chain([first], islice(batches, shard_windows // rows - 1)))
        entries.append(ShardEntry(file_digest(path), path.name, windows))
    return tuple(entries)


def _pack(
    tokens: Iterable[Tokens], width: int, rows: int, vocab_size: int, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Arrays of `rows` windows [N, W] from a stream; the last may have fewer rows."""
    need = rows * width
    pending: list[NDArray[Any]] = []
    held = 0
    for piece in tokens:
        outside = piece[(piece < 0) | (piece >= vocab_size)]
        if outside.size:
            raise FormatError(
                "a token id is outside the vocabulary",
                expected=f"0 to {vocab_size - 1}",
                got=int(outside[0]),
            )
        pending.append(piece.astype(dtype))
        held += piece.size
        if held >= need:
            flat = np.concatenate(pending)
            whole = held - held % need
            yield from flat[:whole].reshape(-1, rows, width)
            pending, held = [flat[whole:].copy()], held - whole
    last = held // width
    if last:
        yield np.concatenate(pending)[: last * width].reshape(last, width)


def _write_shard(path: Path, batches_NW: Iterable[NDArray[Any]]) -> int:
    """Write one IPC file durably; the number of windows in it."""
    batches_NW = iter(batches_NW)
    first_NW = next(batches_NW)
    column_type = pa.list_(pa.from_numpy_dtype(first_NW.dtype), first_NW.shape[1])
    schema = pa.schema([pa.field(COLUMN, column_type)])
    windows = 0
    with path.open("wb") as handle:
        with pa.ipc.new_file(handle, schema) as writer:
            for batch_NW in chain([first_NW], batches_NW):
                column = pa.FixedSizeListArray.from_arrays(pa.array(batch_NW.reshape(-1)), type=column_type)
                writer.write_batch(pa.record_batch([column], schema=schema))
                windows += len(batch_NW)
        handle.flush()
        os.fsync(handle.fileno())
    return windows


class WindowReader:
    """Random access to the windows of some shards, numbered from 0 through them in order.

    Maps the files into memory and keeps one numpy view a record batch, so that a read copies only the rows
    asked for. Raises FormatError for a file that is not such a shard.
    """

    def __init__(self, paths: Sequence[Path], context: int, vocab_size: int) -> None:
        self.context = context
        self.vocab_size = vocab_size
        self.shard_windows: list[int] = []
        self._views: list[NDArray[Any]] = []
        for path in paths:
            views = _open_shard(path, context + 1)
            self._views += views
            self.shard_windows.append(sum(map(len, views)))
        self._starts = np.cumsum([0] + [len(view) for view in self._views], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, ids: ArrayLike | Sequence[int] | range) -> Tokens:
        """Windows by number, in the order asked: int64 [n, context + 1], an array of the caller's own.

        Raises ProtocolError for a number outside 0 … len - 1, FormatError when a window holds a token id
        that is not below `vocab_size`.
        """
        wanted_N = _window_numbers(ids, len(self))
        out_NW = np.empty((wanted_N.size, self.context + 1), dtype=np.int64)
        batch_N = np.searchsorted(self._starts, wanted_N, side="right") - 1
        order_N = np.argsort(batch_N, kind="stable")
        edges = np.flatnonzero(np.diff(batch_N[order_N])) + 1
        for places in np.split(order_N, edges) if wanted_N.size else []:
            batch = int(batch_N[places[0]])
            out_NW[places] = self._views[batch][wanted_N[places] - self._starts[batch]]
        if wanted_N.size and out_NW.max() >= self.vocab_size:
            row = int(np.flatnonzero((out_NW >= self.vocab_size).any(axis=1))[0])
            raise FormatError(
                f"window {wanted_N[row]} holds a token id outside the vocabulary",
                expected=f"0 to {self.vocab_size - 1}",
                got=int(out_NW[row].max()),
            )
        return out_NW


def _window_numbers(ids: ArrayLike | Sequence[int] | range, count: int) -> Tokens:
    """Window numbers as int64 [N], each in range."""
    try:
        wanted = np.asarray(ids)
        whole = wanted.ndim == 1 and (wanted.size == 0 or wanted.dtype.kind in "iu")
    except (ValueError, OverflowError):
        whole = False
    if not whole:
        raise ProtocolError(
            "window numbers are not a list of integers", expected=f"0 to {count - 1}", got=repr(ids)[:80]
        )
    outside = (wanted < 0) | (wanted >= count)
    if outside.any():
        raise ProtocolError(
            "there is no such window",
            expected=f"0 to {count - 1}",
            got=int(wanted[np.flatnonzero(outside)[0]]),
        )
    return wanted.astype(np.int64)


def _open_shard(path: Path, width: int) -> list[NDArray[Any]]:
    """A read-only numpy view [rows, W] of each record batch of a shard, over the mapped file."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            _check_schema(path, reader.schema, width)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)
            return [_view(path, batch.column(0), width) for batch in batches]
    # Arrow's own errors are no family: some are OSError, some ValueError, a bad name UnicodeDecodeError.
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise FormatError(
            f"{path} is not a readable shard",
            expected="an Arrow IPC file",
            got=str(error).split("\n")[0][:200],
        ) from error


def _check_schema(path: Path, schema: pa.Schema, width: int) -> None:
    kinds = [pa.list_(kind, width) for kind in (pa.uint16(), pa.uint32())]
    if schema.names != [COLUMN] or not any(_same_list(schema.types[0], kind) for kind in kinds):
        got = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise FormatError(
            f"{path} has the wrong columns",
            expected=f"{COLUMN}: fixed_size_list<uint16 or uint32>[{width}]",
            got=got[:200] or "none",
        )


def _same_list(got: pa.DataType, kind: pa.DataType) -> bool:
    """Equal but for the name of the list's inner field, which other writers choose differently."""
    return bool(
        pa.types.is_fixed_size_list(got)
        and got.list_size == kind.list_size
        and got.value_type == kind.value_type
    )


def _view(path: Path, column: pa.Array, width: int) -> NDArray[Any]:
    values = column.flatten()
    if column.null_count or values.null_count:
        raise FormatError(
            f"{path} holds empty places", expected="no nulls", got=column.null_count or values.null_count
        )
    if len(values) == 0:
        return np.empty((0, width), dtype=np.uint16)
    view: NDArray[Any] = values.to_numpy(zero_copy_only=True).reshape(-1, width)
    return view
