"""metrics.jsonl as the report reads it: torn, hostile, told twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report_html import duration, size
from pipeline.report_metrics import MOST_LINE_BYTES, PHASES, TurnTimes, parse_line, read_metrics
from pipeline.report_time import where_time_went

GOOD = {
    "round": 3, "attempt": 1, "tokens": 900, "round_tokens": 300, "seconds": 2.5,
    "phases": {"open": 0.5, "commit": 1.0}, "work_ms": {"c00": 40}, "late": ["c01"],
    "nodes": {"barn": {"alive": True, "members": ["c00"], "memory_bytes": 7, "cpu_percent": 1.5}},
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_good_line_is_read_whole() -> None:
    turn = parse_line(line())
    assert turn
    assert (turn.round, turn.attempt, turn.seconds, turn.tokens_per_s) == (3, 1, 2.5, 120.0)
    assert turn.phases == {"open": 0.5, "commit": 1.0}
    assert turn.work_ms == {"c00": 40.0}
    assert turn.late == ("c01",)
    assert turn.nodes["barn"].members == ("c00",)


def test_an_old_line_without_times_is_a_turn_too() -> None:
    turn = parse_line(b'{"round": 1, "loss": 3.5}')
    assert turn == TurnTimes(1, 0, None, None, None)


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'"round"', b'{"round": 0}', b'{"round": "1"}',
        b'{"round": true}', b'{"round": -1}', b'{"round": 1.5}', b'{"round": 1, "attempt": "x"}',
        b"[" * 100_000, b'{"round": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_turn_is_left_out(bad: bytes) -> None:
    assert parse_line(bad) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", math.inf), ("seconds", math.nan), ("seconds", -1), ("seconds", True), ("seconds", "4"),
        ("seconds", 10**400), ("phases", [1]), ("phases", {"open": math.nan}), ("phases", {"lunch": 4.0}),
        ("phases", {"open": {"open": 1}}), ("work_ms", {"\x1b[2J": 4}), ("work_ms", {"c" * 65: 4}),
        ("work_ms", {"": 4}), ("late", "c01"), ("late", [4, None, {}]), ("nodes", {"barn": 7}), ("nodes", []),
    ],
)  # fmt: skip
def test_a_field_that_is_none_is_left_out_and_the_line_kept(name: str, value: Any) -> None:
    turn = parse_line(line(**{name: value}))
    assert turn
    assert not getattr(turn, name)


@given(
    st.dictionaries(st.sampled_from(sorted(GOOD)), JSON),
    st.sampled_from(("phases", "work_ms", "nodes")),
    JSON,
)
def test_no_line_can_do_more_than_be_left_out(changes: dict[str, Any], name: str, value: Any) -> None:
    turn = parse_line(line(**changes, **({} if name in changes else {name: {"open": value, "c00": value}})))
    if turn is None:
        return
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in turn.phases.values())
    assert set(turn.phases) <= set(PHASES)
    assert all(name.isprintable() for name in (*turn.late, *turn.work_ms, *turn.nodes))


@given(st.lists(st.binary(max_size=60) | st.sampled_from([line(), line(round=4)[:50], line(round=9)])))
def test_any_file_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read_metrics(path)
    assert found is not None
    written = [one for one in b"\n".join(lines).split(b"\n") if one.strip()]
    good = [turn for turn in map(parse_line, written) if turn]
    assert found.bad_lines == len(written) - len(good)
    assert {turn.round for turn in found.turns} == {turn.round for turn in good}
    where_time_went(found)


def test_a_torn_end_and_a_turn_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(seconds=9.0) + b"\n" + line(seconds=4.0) + b"\n\n" + line(round=4)[:40])
    found = read_metrics(path)
    assert found
    assert [(turn.round, turn.seconds) for turn in found.turns] == [(3, 4.0)]
    assert found.bad_lines == 1


def test_a_line_that_is_too_long_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line() + b"\n" + b"x" * (3 * MOST_LINE_BYTES + 5) + b"\n" + line(round=4) + b"\n")
    found = read_metrics(path)
    assert found
    assert ([turn.round for turn in found.turns], found.bad_lines) == ([3, 4], 1)


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") is None
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_metrics(tmp_path / "metrics.jsonl") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0124, "12 ms"), (1.5, "1.5 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3599.6, "59 min 59 s"),
        (3 * 3600 + 60, "3 h 1 min"), (100 * 3600, "4 d 4 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (15_795, "15.8 kB"), (3e6, "3 MB"), (2.5e9, "2.5 GB")]
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert size(count) == text
