"""contributions.parquet: one row for every contribution and every verdict, rebuilt from the log.

Owns the table's columns. Does not own what they mean; a verifier builds the same table from the log and
compares, so nobody has to believe the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.folder import RunFolder
from verification.durable import write_atomic
from verification.errors import FormatError
from verification.judge import Outcome, bears_out, settle, verdicts_on
from verification.looks import overruled_auditors
from verification.plans import audited_tokens
from verification.records import Manifest, Record, RoundClose, Settlement
from verification.rounds import apply, begin
from verification.settling import final_outcomes
from verification.state import RunState

SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("attempt", pa.int64()),
        ("contributor", pa.string()),
        ("role", pa.string()),
        ("tokens", pa.int64()),
        ("audited", pa.bool_()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("payload_digest", pa.string()),
        ("payload_bytes", pa.int64()),
        ("loss_first", pa.float64()),
        ("loss_last", pa.float64()),
        ("seconds", pa.float64()),
        ("credit", pa.int64()),
    ]
)
Row = dict[str, Any]
MOST_BYTES = 1 << 30
GROUP_ROWS = 10_000


def contribution_rows(records: Iterable[Record], payload_bytes: int) -> list[Row]:
    """The table's rows in log order, each turn where it was settled.

    `records` are all of a log, the manifest first.
    """
    return list(_rows(records, payload_bytes))


def _rows(records: Iterable[Record], payload_bytes: int) -> Iterator[Row]:
    state: RunState | None = None
    for record in records:
        if isinstance(record, Manifest):
            state = begin(record)
            continue
        if state is None:
            raise FormatError("the log does not begin with a manifest")
        if isinstance(record, RoundClose) and not state.open_turn.lag:
            yield from _turn_rows(state, settle(state.open_turn.evidence), payload_bytes)
        if isinstance(record, Settlement):
            yield from _turn_rows(state, final_outcomes(state), payload_bytes)
        state = apply(state, record)


def _turn_rows(state: RunState, outcomes: Iterable[Outcome], payload_bytes: int) -> list[Row]:
    turn = state.open_turn
    batch, context = state.config["train"]["batch"], state.manifest.dataset["context"]
    clock = (
        dict(zip(turn.commit_close.committed, turn.commit_close.ms, strict=True)) if turn.commit_close else {}
    )
    rows = []
    tokens: dict[int, int] = {}
    reasons: dict[int, str | None] = {}
    for outcome in outcomes:
        entry, slot = outcome.entry, outcome.entry.slot
        tokens[slot], reasons[slot] = entry.steps * batch * context, outcome.reason
        reveal = turn.reveals.get(slot)
        opening = reveal.opening if reveal else None
        verdict = turn.verdicts.get((slot, len(verdicts_on(turn.evidence, slot))))
        rows.append(
            {
                "round": turn.open.round,
                "attempt": turn.open.attempt,
                "contributor": entry.member,
                "role": "contributor",
                "tokens": tokens[slot],
                "audited": (slot, 1) in turn.verdicts,
                "verdict": verdict.outcome if verdict else None,
                "reason": outcome.reason,
                "payload_digest": opening.payload if opening else None,
                "payload_bytes": payload_bytes if opening else None,
                "loss_first": opening.loss_first / 1e6 if opening else None,
                "loss_last": opening.loss_last / 1e6 if opening else None,
                "seconds": clock[slot] / 1000 if clock.get(slot) else None,
                "credit": tokens[slot] if outcome.reason is None else 0,
            }
        )
    gone = {(item.slot, item.look) for item in overruled_auditors(turn.evidence, {})}
    for (slot, look), verdict in sorted(turn.verdicts.items()):
        rows.append(
            {
                "round": turn.open.round,
                "attempt": turn.open.attempt,
                "contributor": verdict.auditor,
                "role": "auditor",
                "tokens": audited_tokens(state, turn, slot),
                "audited": False,
                "verdict": verdict.outcome,
                "reason": None,
                "payload_digest": verdict.payload,
                "payload_bytes": None,
                "loss_first": None if verdict.loss_first is None else verdict.loss_first / 1e6,
                "loss_last": verdict.loss_last / 1e6,
                "seconds": None,
                "credit": audited_tokens(state, turn, slot)
                if bears_out(reasons[slot], verdict.outcome) and (slot, look) not in gone
                else 0,
            }
        )
    return rows


def write_contributions(folder: RunFolder, records: Iterable[Record], payload_bytes: int) -> None:
    """Write contributions.parquet, whole or not at all; a log of any length, in groups of rows."""
    buffer = io.BytesIO()
    rows = _rows(records, payload_bytes)
    # A verifier compares values. Statistics say things about values that other readers believe, so none.
    with pq.ParquetWriter(buffer, SCHEMA, write_statistics=False) as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    write_atomic(folder.contributions_file, buffer.getvalue())


def read_contributions(path: Path, most_rows: int) -> list[Row]:
    """The rows of a file. Raises FormatError when it is not such a table, or longer than `most_rows`."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise FormatError(f"{path} is no file, or too long", expected=f"at most {MOST_BYTES} bytes")
        # On this thread alone: one of pyarrow's own would hold on to a Python object, and a process that ends
        # as it lets go of it is aborted.
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
        # Before anything is decoded: a short file can claim any number of rows.
        found = file.metadata.num_rows
        if found > most_rows:
            raise FormatError(f"{path} has too many rows", expected=f"at most {most_rows}", got=found)
        table = file.read(use_threads=False)
        if table.schema != SCHEMA:
            raise FormatError(f"{path} has other columns", expected=SCHEMA.names, got=table.schema.names)
        rows: list[Row] = table.to_pylist()  # where text that is not UTF-8 comes to light
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        got = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path} is not a readable parquet file", got=got) from None
    return rows
