"""What a draw draws and what its verdicts then state: segments by hand, and one wrong thing at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import draw_number, hash_of, sha, trace_root
from tests.verification.test_fsck_lies import lying, setter
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck import check_run
from verification.fsck_draws import differences, drawn_segments, looked_into
from verification.fsck_formats import MAX_ENTRY
from verification.fsck_shapes import RECORDS

Record = dict[str, Any]
SEED = sha(b"seed")
PARTLY: dict[str, Any] = {
    "audit__rate_ppm": 1_000_000,
    "audit__second_look_ppm": 1_000_000,
    "audit__probation_rounds": 0,
    "audit__segments": 1,
    "train__steps": [8, 6, 2, 8, 7],
}
"""Everybody is audited, nobody whole but slot 2: there are 4, 3, 1, 4 and 4 segments."""
OTHERS = "the verdict of {} states the digests of other leaves than the draw looks into"


def failures(folder: Path, **over: Any) -> list[str]:
    writer = Writer(folder / "run", **{"script": {}, "silent": {}, **PARTLY, **over}).run(turns=1)
    return [f.what for f in check_run(writer.write()).failures]


def name_of(verdict: Record) -> str:
    return f"look {verdict['look']} of slot {verdict['slot']} in round 1"


def split(verdict: Record) -> str:
    """What is said when one of two verdicts states another trace, so that they are of two sides."""
    return f"slot {verdict['slot']} is settled wrongly in round 1"


# --- pieces ---


@given(st.binary(max_size=4), st.integers(0, 20), st.integers(1, 60), st.integers(1, 70))
def test_segments_are_taken_out_of_a_list(secret: bytes, slot: int, count: int, few: int) -> None:
    seed, left = sha(secret), list(range(count))
    taken = [left.pop(draw_number(seed, f"segments/{slot}/{i}", count - i)) for i in range(min(few, count))]
    assert drawn_segments(seed, slot, count, few) == sorted(taken)


def test_segments_golden() -> None:
    assert [drawn_segments(SEED, slot, 9, 3) for slot in range(3)] == [[0, 4, 8], [0, 3, 7], [0, 3, 6]]


@pytest.mark.parametrize("few", [2**53 - 1, 2**53 - 2])
def test_no_more_segments_than_a_record_has_room_for(few: int) -> None:
    assert len(drawn_segments(SEED, 0, 2**53 - 1, few)) == MAX_ENTRY


def test_a_few_of_very_many_segments() -> None:
    found = drawn_segments(SEED, 0, 2**53 - 1, 3)
    assert found == sorted(set(found))
    assert len(found) == 3
    assert 0 <= found[0] < found[-1] < 2**53 - 1


@pytest.mark.parametrize(
    ("segments", "count", "leaves"),
    [
        ([0], 1, {0, 1}),
        ([0], 2, {0, 1, 2}),
        ([0], 6, {0, 5, 6}),
        ([1], 6, {0, 1, 5, 6}),
        ([3], 6, {2, 3, 5, 6}),
        ([3, 4], 6, {2, 3, 4, 5, 6}),
        ([5], 6, {4, 5, 6}),
        ([0, 3], 7, {0, 2, 3, 6, 7}),
        (range(6), 6, {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_the_leaves_that_are_looked_into(segments: Any, count: int, leaves: set[int]) -> None:
    assert looked_into(segments, count) == leaves


LEAVES = [sha(bytes([i])) for i in range(4)]
HASHES = [hash_of(leaf).hex() for leaf in LEAVES]
TOLD = {"payload": "p", "next_state": "n", "loss_first": 1, "loss_last": 2}
OPENING = {**TOLD, "trace_root": trace_root(LEAVES), "trace_leaves": 4}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"trace": HASHES}, []),
        ({"trace": [HASHES[0], *LEAVES[1:3], HASHES[3]]}, []),
        ({"trace": [*LEAVES[:3], LEAVES[0]]}, ["trace"]),
        ({"trace": [*LEAVES[:3], HASHES[0]]}, ["trace"]),
        ({"trace": [*LEAVES[:3], LEAVES[3][7:]]}, ["trace"]),
        ({"trace": [*LEAVES[:3], "sha256:" + HASHES[3]]}, ["trace"]),
        ({"trace": LEAVES[:3]}, ["trace"]),
        ({"loss_first": None}, []),
        ({"loss_first": 0}, ["loss"]),
        ({"loss_first": None, "loss_last": 0}, ["loss"]),
        ({"payload": "q", "next_state": "q"}, ["payload", "next_state"]),
    ],
)
def test_in_what_a_verdict_differs(change: Record, expected: list[str]) -> None:
    assert differences(OPENING, {**TOLD, "trace": LEAVES, **change}, None) == expected


def test_as_many_leaves_as_the_opening_says() -> None:
    verdict = {**TOLD, "trace": LEAVES}
    assert differences({**OPENING, "trace_leaves": 5}, verdict, None) == ["trace"]


# --- shapes ---


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return Writer(tmp_path_factory.mktemp("draws") / "run", script={}, silent={}, **PARTLY).run(turns=1)


@pytest.mark.parametrize(
    ("kind", "path", "value", "fits"),
    [
        ("verdict", "trace.0", LEAVES[0], True),
        ("verdict", "trace.0", HASHES[0], True),
        ("verdict", "trace.0", "blake3:" + HASHES[0], False),
        ("verdict", "trace.0", HASHES[0][1:], False),
        ("verdict", "trace.0", HASHES[0] + "0", False),
        ("verdict", "trace.0", "AB" * 32, False),
        ("verdict", "trace.0", None, False),
        ("verdict", "loss_first", None, True),
        ("verdict", "loss_first", 0, True),
        ("verdict", "loss_first", -1, False),
        ("verdict", "loss_last", None, False),
        ("draw", "drawn.0.segments", [], True),
        ("draw", "drawn.0.segments", None, False),
        ("draw", "drawn.0.segments", [-1], False),
        ("draw", "drawn.0.more", [], False),
        ("second-draw", "looks.0.segments", [0], False),
        ("round-open", "roster.0.audit_segments", 1, True),
        ("round-open", "roster.0.audit_segments", 0, False),
        ("manifest", "config.audit.segments", 0, True),
        ("manifest", "config.audit.segments", -1, False),
    ],
)
def test_shapes(written: Writer, kind: str, path: str, value: Any, fits: bool) -> None:
    record = copy.deepcopy(next(r for k, r, _ in written.records if k == kind))
    setter(path, value)(record, written)
    if fits:
        RECORDS[kind](record, kind)
        return
    with pytest.raises(FormatError, match="does not fit"):
        RECORDS[kind](record, kind)


@pytest.mark.parametrize(
    ("kind", "path"),
    [("draw", "drawn.0"), ("round-open", "roster.0"), ("manifest", "config.audit")],
)
def test_what_must_be_there(written: Writer, kind: str, path: str) -> None:
    key = "audit_segments" if kind == "round-open" else "segments"
    record = copy.deepcopy(next(r for k, r, _ in written.records if k == kind))
    setter(path, lambda old: {k: v for k, v in old.items() if k != key})(record, written)
    with pytest.raises(FormatError, match="does not fit"):
        RECORDS[kind](record, kind)


# --- the open ---


def opens(folder: Path, turns: int, **over: Any) -> list[list[int]]:
    """What the opens of an honest run that holds say under `audit_segments`."""
    writer = Writer(folder / "run", **{"silent": {}, **over}).run(turns=turns)
    assert [f.what for f in check_run(writer.write()).failures] == []
    return [[e["audit_segments"] for e in r["roster"]] for k, r, _ in writer.records if k == "round-open"]


FIXED = {"timing__mode": "fixed", "train__steps": PARTLY["train__steps"]}


@pytest.mark.parametrize(
    ("over", "script", "expected"),
    [
        ({"audit__segments": 0}, {}, [[4, 3, 1, 4, 4]] * 2),
        ({"audit__segments": 1}, {}, [[1, 1, 1, 1, 1]] * 2),
        ({"audit__segments": 3, "audit__rate_ppm": 1_000_000}, {}, [[3, 3, 1, 3, 3]] * 2),
        ({"audit__segments": 99}, {}, [[4, 3, 1, 4, 4]] * 2),
        ({"audit__segments": 1, "audit__probation_rounds": 1}, {}, [[4, 3, 1, 4, 4], [1, 1, 1, 1, 1]]),
        ({"audit__segments": 1}, {(0, 3): "unrevealed"}, [[1, 1, 1, 1, 1], [1, 1, 1, 4, 1]]),
    ],
)
def test_how_many_segments_an_audit_has(tmp_path: Path, over: Any, script: Any, expected: Any) -> None:
    over = {"audit__probation_rounds": 0, **FIXED, **over}
    assert opens(tmp_path, 2, script=script, **over) == expected


@pytest.mark.parametrize(("slot", "value"), [(0, 2), (0, 4), (2, 2), (3, 2**53 - 1)])
def test_the_number_of_segments_follows_from_the_ledger(tmp_path: Path, slot: int, value: int) -> None:
    lie = lying("round-open", setter(f"roster.{slot}.audit_segments", value))
    found = failures(tmp_path, lie=lie)
    assert found[0] == f"the audit_segments of slot {slot} in the roster of round 1 is wrong"
    assert not any("audit_segments" in what for what in found[1:])


MICRO = [1, 2, 2, 1, 1]


@pytest.mark.parametrize(("sizes", "slot", "value"), [(MICRO, 0, 2), (MICRO, 1, 1), ([], 0, 1), ([], 3, 3)])
def test_the_micro_batch_follows_from_the_manifest(
    tmp_path: Path, sizes: list[int], slot: int, value: int
) -> None:
    assert failures(tmp_path / "true", train__micro_batch=sizes) == []
    lie = lying("round-open", setter(f"roster.{slot}.micro_batch", value))
    found = failures(tmp_path / "lie", lie=lie, train__micro_batch=sizes)
    assert found == [f"the micro_batch of slot {slot} in the roster of round 1 is wrong"]


def test_fewer_segments_of_somebody_on_probation(tmp_path: Path) -> None:
    lie = lying("round-open", setter("roster.3.audit_segments", 1))
    found = failures(tmp_path, lie=lie, audit__probation_rounds=1)
    assert found[0] == "the audit_segments of slot 3 in the roster of round 1 is wrong"


# --- the draw ---


def test_all_that_is_partly_drawn_holds(tmp_path: Path, written: Writer) -> None:
    assert failures(tmp_path) == []
    drawn = next(r["drawn"] for k, r, _ in written.records if k == "draw")
    assert [len(line["segments"]) for line in drawn] == [1, 1, 1, 1, 1]
    firsts = [r["loss_first"] for k, r, _ in written.records if k == "verdict"]
    assert {first is None for first in firsts} == {True, False}


@pytest.mark.parametrize(
    "change",
    [
        lambda old: [(old[0] + 1) % 4],
        lambda old: [*old, *old],
        lambda _: [0, 1, 2, 3],
        lambda _: [],
        lambda old: [*old, 2**53 - 1],
    ],
)
def test_other_segments_than_the_seed_gives(tmp_path: Path, change: Any) -> None:
    found = failures(tmp_path, lie=lying("draw", setter("drawn.0.segments", change)))
    assert found == ["the segments of slot 0 in round 1 do not follow from the seed"]


def test_segments_are_listed_in_order(tmp_path: Path) -> None:
    lie = lying("draw", setter("drawn.3.segments", lambda old: old[::-1]))
    found = failures(tmp_path, lie=lie, audit__segments=2)
    assert found == ["the segments of slot 3 in round 1 do not follow from the seed"]


def drawn_of(writer: Writer) -> dict[int, list[int]]:
    draw = next(r for k, r, _ in writer.records if k == "draw")
    return {line["slot"]: line["segments"] for line in draw["drawn"]}


WHOLE: list[tuple[dict[str, Any], list[int]]] = [
    ({"script": {(0, 3): "twin"}}, [0, 3]),
    ({"witnesses": ["w1.example"], "mute": {(0, 1): ["w1.example"]}}, [0, 1, 3, 4]),
]


@pytest.mark.parametrize("which", [0, 1])
def test_twins_and_short_draws_are_looked_at_whole(tmp_path: Path, which: int) -> None:
    over, whole = WHOLE[which]
    writer = Writer(tmp_path / "run", **{"script": {}, "silent": {}, **PARTLY, **over}).run(turns=1)
    assert check_run(writer.write()).failures == ()
    segments = drawn_of(writer)
    assert [slot for slot in segments if len(segments[slot]) > 1] == whole
    assert segments[3] == [0, 1, 2, 3]


class Sparing(Writer):
    """Draws as many segments of twins and in a short draw as otherwise, and audits no more."""

    def draw_segments(self, line: Record, seed: str, *, whole: bool) -> list[int]:
        return super().draw_segments(line, seed, whole=False)


@pytest.mark.parametrize("which", [0, 1])
def test_twins_and_short_draws_with_a_part_of_the_segments(tmp_path: Path, which: int) -> None:
    over, whole = WHOLE[which]
    writer = Sparing(tmp_path / "run", **{"script": {}, "silent": {}, **PARTLY, **over}).run(turns=1)
    found = [f.what for f in check_run(writer.write()).failures]
    of_segments = [what for what in found if what.startswith("the segments of slot")]
    assert of_segments == [f"the segments of slot {s} in round 1 do not follow from the seed" for s in whole]
    assert sum(what.startswith("the verdict of look 1") for what in found) >= len(whole)


# --- verdicts ---


def one_verdict(fits: Callable[[Record], bool], change: Callable[[Record], None], told: list[Record]) -> Any:
    """A lie that changes the first verdict that fits."""

    def lie(kind: str, record: Record, _: Writer) -> Any:
        if kind == "verdict" and not told and fits(record):
            told.append(record)
            change(record)
        return record

    return lie


def has_hashes(record: Record) -> bool:
    return any(len(leaf) == 64 for leaf in record["trace"])


def state_more(record: Record) -> None:
    """State a digest that was not computed: of the hash's own bytes, as the leaf itself is not known."""
    at = next(i for i, leaf in enumerate(record["trace"]) if len(leaf) == 64)
    record["trace"][at] = "sha256:" + record["trace"][at]


def all_hashes(record: Record) -> None:
    record["trace"] = [hash_of(leaf).hex() for leaf in record["trace"]]


def hash_at(at: int) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        record["trace"][at] = hash_of(record["trace"][at]).hex()

    return change


@pytest.mark.parametrize("change", [all_hashes, hash_at(-1), hash_at(-2)])
@pytest.mark.parametrize("look", [1, 2])
def test_hashes_where_digests_belong(tmp_path: Path, change: Any, look: int) -> None:
    told: list[Record] = []
    lie = one_verdict(lambda r: r["look"] == look and has_hashes(r), change, told)
    assert failures(tmp_path, lie=lie) == [OTHERS.format(name_of(told[0])), split(told[0])]


@pytest.mark.parametrize("look", [1, 2])
def test_hashes_where_all_segments_are_drawn(tmp_path: Path, look: int) -> None:
    told: list[Record] = []
    lie = one_verdict(lambda r: r["look"] == look and len(r["trace"]) > 2, hash_at(1), told)
    found = failures(tmp_path, lie=lie, audit__segments=0)
    assert found == [OTHERS.format(name_of(told[0])), split(told[0])]


def test_digests_where_nobody_looked(tmp_path: Path) -> None:
    told: list[Record] = []
    found = failures(tmp_path, lie=one_verdict(has_hashes, state_more, told))
    assert found[0] == OTHERS.format(name_of(told[0]))
    assert found[1].startswith("what differs is told wrongly")


def test_digests_of_leaves_that_nobody_can_know(tmp_path: Path) -> None:
    """Even true ones: the draw did not ask for them."""
    told: list[Record] = []

    def lie(kind: str, record: Record, writer: Writer) -> Any:
        if kind == "verdict" and not told and has_hashes(record):
            told.append(record)
            record["trace"] = writer.committed[record["slot"]][1]["trace"]
        return record

    assert failures(tmp_path, lie=lie) == [OTHERS.format(name_of(told[0])), split(told[0])]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["trace"].pop(0),
        lambda r: r["trace"].append(HASHES[0]),
        lambda r: r["trace"].clear(),
        lambda r: r["trace"].extend(LEAVES * 99),
    ],
)
def test_a_trace_in_a_verdict_is_as_long_as_the_trace(tmp_path: Path, change: Any) -> None:
    told: list[Record] = []
    found = failures(tmp_path, lie=one_verdict(has_hashes, change, told))
    of = name_of(told[0])
    assert found[0] == f"the trace in the verdict of {of} is not as long as the trace"
    assert found[1] == f"what differs is told wrongly in the verdict of {of}"
    assert OTHERS.format(of) not in found


def test_a_first_loss_that_nobody_computed(tmp_path: Path) -> None:
    for first in (0, 7_000_000):
        told: list[Record] = []
        lie = one_verdict(
            lambda r: r["loss_first"] is None,
            lambda r, first=first: r.update(loss_first=first),  # type: ignore[misc]
            told,
        )
        found = failures(tmp_path, lie=lie)
        of = name_of(told[0])
        assert found[0] == f"the verdict of {of} has a first loss though segment 0 is not drawn"


def test_a_first_loss_that_is_missing(tmp_path: Path) -> None:
    told: list[Record] = []
    lie = one_verdict(lambda r: r["loss_first"] is not None, lambda r: r.update(loss_first=None), told)
    found = failures(tmp_path, lie=lie)
    missing = f"the verdict of {name_of(told[0])} has no first loss though segment 0 is drawn"
    # It is of a side of its own then, so nobody confirms what another found.
    assert found == [missing, f"slot {told[0]['slot']} is settled wrongly in round 1"]
