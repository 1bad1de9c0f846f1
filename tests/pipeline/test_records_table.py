"""contributions.parquet: one row for each contribution and verdict, rebuilt from the log."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.folder import RunFolder
from pipeline.records_table import (
    MOST_BYTES,
    SCHEMA,
    contribution_rows,
    read_contributions,
    write_contributions,
)
from tests.verification.fake_run import started
from tests.verification.rich_run import rich_run
from verification.errors import BarnraiseError, FormatError
from verification.records import (
    Record,
    Reveal,
    RoundClose,
    Verdict,
)

RECORDS: list[Record] = [started(witnesses=3, audit={"probation_rounds": 9}).manifest, *rich_run()]
ROWS = contribution_rows(RECORDS, 100)
DOCUMENTED = (
    "round", "contributor", "role", "tokens", "audited", "verdict", "reason", "payload_digest",
    "payload_bytes", "loss_first", "loss_last", "seconds", "credit",
)  # fmt: skip


def test_the_documented_columns_are_there() -> None:
    assert set(DOCUMENTED) <= set(SCHEMA.names)
    assert all(list(row) == SCHEMA.names for row in ROWS)


def test_every_roster_entry_and_every_verdict_has_a_row() -> None:
    closes = [record for record in RECORDS if isinstance(record, RoundClose)]
    verdicts = [record for record in RECORDS if isinstance(record, Verdict)]
    work = [row for row in ROWS if row["role"] == "contributor"]
    audits = [row for row in ROWS if row["role"] == "auditor"]
    assert len(work) == sum(len(close.accepted) + len(close.rejected) for close in closes)
    told = [(row["round"], row["contributor"], row["verdict"], row["payload_digest"]) for row in audits]
    assert sorted(told) == sorted((v.round, v.auditor, v.outcome, v.payload) for v in verdicts)


def test_rows_agree_with_the_closes() -> None:
    for close in (record for record in RECORDS if isinstance(record, RoundClose)):
        rows = {
            row["contributor"]: row
            for row in ROWS
            if (row["round"], row["attempt"], row["role"]) == (close.round, close.attempt, "contributor")
        }
        for item in close.accepted:
            row = rows[item.member]
            assert (row["reason"], row["tokens"], row["credit"]) == (None, item.tokens, item.tokens)
            assert (row["payload_digest"], row["payload_bytes"], row["seconds"]) == (item.payload, 100, 0.7)
        for refused in close.rejected:
            row = rows[refused.member]
            assert (row["reason"], row["credit"]) == (refused.reason, 0)
            if refused.reason == "late":
                assert (row["seconds"], row["payload_digest"], row["loss_last"]) == (None, None, None)
        assert len(rows) == len(close.accepted) + len(close.rejected)


def test_credit_adds_up_to_what_the_last_close_says() -> None:
    last = [record for record in RECORDS if isinstance(record, RoundClose)][-1]
    for credit in last.credits:
        assert credit.earned == sum(row["credit"] for row in ROWS if row["contributor"] == credit.member)


def test_losses_are_nats_as_revealed() -> None:
    reveal = next(record for record in RECORDS if isinstance(record, Reveal))
    row = next(row for row in ROWS if row["payload_digest"] == reveal.opening.payload)
    assert (row["loss_first"], row["loss_last"]) == (5.0, 4.0)


def test_the_file_comes_back_and_another_file_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_contributions(folder, RECORDS, 100)
    assert read_contributions(folder.contributions_file, len(ROWS)) == ROWS
    first = folder.contributions_file.read_bytes()
    write_contributions(folder, RECORDS, 100)
    assert folder.contributions_file.read_bytes() == first
    for wrong in (b"", b"PAR1", first[: len(first) // 2], first[:40] + b"\xff" * 30 + first[70:]):
        folder.contributions_file.write_bytes(wrong)
        with pytest.raises(FormatError):
            read_contributions(folder.contributions_file, 1000)
    pq.write_table(pa.table({"round": [1]}), folder.contributions_file)
    with pytest.raises(FormatError, match="other columns"):
        read_contributions(folder.contributions_file, 1000)
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(FormatError, match="is no file"):
            read_contributions(place, 1000)


def test_a_table_with_more_rows_than_the_log_accounts_for_is_refused_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    write_contributions(folder, RECORDS, 100)
    with pytest.raises(FormatError, match="too many rows"):
        read_contributions(folder.contributions_file, len(ROWS) - 1)
    # Ten million equal rows are a short file, and other columns besides: the count is looked at first.
    pq.write_table(pa.table({"round": pa.repeat(1, 10_000_000)}), folder.contributions_file)
    assert folder.contributions_file.stat().st_size < 1 << 20
    with pytest.raises(FormatError, match="too many rows"):
        read_contributions(folder.contributions_file, 1000)


def test_a_file_too_long_to_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.touch()
    os.truncate(path, MOST_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(FormatError, match="too long"):
        read_contributions(path, 1000)


def test_a_verdict_that_the_settling_did_not_bear_out_has_no_credit() -> None:
    audits = [row for row in ROWS if row["role"] == "auditor"]
    disputed = next(row for row in ROWS if row["reason"] == "disputed")
    there = [row for row in audits if row["round"] == disputed["round"]]
    unpaid = [row["verdict"] for row in there if row["credit"] == 0]
    assert sorted(unpaid) == ["fail", "pass"]
    assert {row["verdict"] for row in there if row["credit"]} == {"pass", "fail"}  # the confirmed fault


def test_a_log_without_a_manifest_is_refused() -> None:
    with pytest.raises(BarnraiseError, match="manifest"):
        contribution_rows(RECORDS[1:], 100)
