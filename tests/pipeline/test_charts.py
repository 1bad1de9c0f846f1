"""What is charted of a turn, and the lines of the tables."""

from __future__ import annotations

import re

from pipeline.charts import (
    CONTRIBUTIONS,
    FAMILIES,
    METRICS,
    TABLES,
    VERDICTS,
    X_AXIS,
    table_rows,
    values_of,
)
from tests.pipeline.turn_rows import row


def test_everything_in_the_table_of_names_is_read_from_a_full_row() -> None:
    values = values_of(row(1))
    assert set(METRICS) | {X_AXIS} <= set(values)
    for family in FAMILIES.values():
        assert any(re.search(family.pattern, name) for name in values), family.name
    known = [re.compile(family.pattern) for family in FAMILIES.values()]
    assert all(name in METRICS or name == X_AXIS or any(p.search(name) for p in known) for name in values)
    assert values["contributor/c0/loss"] == 4.5
    assert "contributor/c1/loss" not in values
    assert values["contributor/c0/work_seconds"] == 0.9
    assert values["node/host-1_example/memory_bytes"] == 5
    assert (values["node/host-2_example/alive"], values["nodes/alive"]) == (0, 1)
    assert (values["credit/a0"], values["contributors/rejected"]) == (3, 1)


def test_what_a_row_lacks_is_left_out() -> None:
    full = row(1)
    for name in ("phases", "work_ms", "joined", "left", "nodes", "alerts", "contributors", "verdicts"):
        del full[name]
    values = values_of({**full, "round_tokens": 0, "loss": None, "val_loss": None})
    gone = ("phase/", "contributor/", "node/", "nodes/", "members/", "alerts/", "train/loss", "validation/")
    assert not [name for name in values if name.startswith(gone)]
    assert "payload/bytes_per_token" not in values
    assert list(table_rows({**full, "removed": []})) == []


def test_the_tables_have_contributions_removals_and_verdicts() -> None:
    lines = list(table_rows(row(7, removed=[{"contributor": "c1", "round": 5, "reason": "follows"}])))
    assert all(len(line) == len(TABLES[name]) for name, line in lines)
    assert [line for name, line in lines if name == CONTRIBUTIONS] == [
        [7, 0, "c0", "accepted", 10, 4.5, 7],
        [7, 0, "c1", "failed-audit", None, None, 7],
        [5, None, "c1", "taken out: follows", None, None, 7],
    ]
    assert [line[:5] for name, line in lines if name == VERDICTS] == [
        [7, "c0", "a0", 1, "pass"],
        [7, "c1", "a0", 1, "fail"],
    ]
