"""Single-bit flips of small runs are refused; and what would not be refused is counted."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from assurance import bit_flips
from assurance.bit_flips import JUDGED, SMALLEST, bits_of, figure, files, flip_group, plan, try_flips
from verification.errors import UsageError
from verification.fsck import check_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bit_flips.smallest_run(tmp_path_factory.mktemp("smallest") / "made")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bit_flips.judged_run(tmp_path_factory.mktemp("judged") / "made")


def test_every_file_is_in_one_group(run: Path, judged: Path) -> None:
    for folder, groups in ((run, SMALLEST), (judged, SMALLEST + JUDGED)):
        assert len(files(folder)) >= 12
        for name in files(folder):
            assert sum(fnmatchcase(name, group.pattern) for group in groups) == 1, name
        assert all(files(folder, group.pattern) for group in groups)
    assert check_run(run).log_size < 20


def test_which_bits_are_flipped() -> None:
    assert list(bits_of(3, 0)) == list(range(24))
    for step in (1, 5):
        bits = bits_of(64 * step, step)
        assert [bit // 8 for bit in bits] == list(range(0, 64 * step, step))
        assert {(bit // 8 % 8, bit % 8) for bit in bits} == {(at, bit) for at in range(8) for bit in range(8)}


def test_a_plan_has_every_flip_once(run: Path) -> None:
    group = next(group for group in SMALLEST if group.name == "the log")
    flips = [(name, bit) for name, bits in plan(run, group, full=True) for bit in bits]
    assert (
        len(set(flips)) == len(flips) == 8 * sum((run / name).stat().st_size for name in files(run, "log/*"))
    )
    sample = [(name, bit) for name, bits in plan(run, group, full=False) for bit in bits]
    assert len(sample) == group.sample
    assert set(sample) < set(flips)


@pytest.mark.slow
@pytest.mark.parametrize("group", SMALLEST, ids=lambda group: group.pattern)
def test_flips_of_the_smallest_run_are_refused(run: Path, group: bit_flips.Group) -> None:
    found = figure(run, group, full=False)
    assert found.holds, found.line()
    assert found.tried is not None
    # A flip of the table may change no value, and the quick sample is small.
    assert (
        found.tried > group.sample // 4 if group.pattern == bit_flips.TABLE else found.tried == group.sample
    )


@pytest.mark.parametrize("group", JUDGED, ids=lambda group: group.pattern)
def test_flips_of_states_and_evidence_are_refused(judged: Path, group: bit_flips.Group) -> None:
    found = figure(judged, replace(group, sample=30), full=False)
    assert (found.holds, found.tried) == (True, 30), found.line()


def test_flips_of_a_cosigned_checkpoint_are_refused(tmp_path: Path) -> None:
    run = bit_flips.witnessed_run(tmp_path / "made")
    assert (run / "log" / "checkpoint").read_text().count("— ") == 4
    [group] = bit_flips.WITNESSED
    found = figure(run, group, full=False)
    assert (found.holds, found.tried) == (True, group.sample), found.line()


@pytest.mark.slow
def test_all_flips_of_a_group_in_processes_of_their_own(run: Path) -> None:
    group = replace(next(group for group in SMALLEST if group.name == "payloads"), step=1)
    found = flip_group(run, group, full=True)
    [name] = files(run, group.pattern)
    assert found.tried == (run / name).stat().st_size
    assert found.accepted == found.raised == []


def test_stopping_at_the_first_failure_gives_the_same_answers(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bit_flips, "WHOLE", 1)  # each one both ways, and compared
    [bundle] = files(run, "log/tile/entries/*")
    for name, bits in (("log/checkpoint", range(0, 1300, 47)), (bundle, range(3, 150_000, 4999))):
        found = try_flips(run, name, bits, 1, hasty=True)
        assert (found.tried, found.accepted, found.raised) == (len(bits), [], [])
    monkeypatch.setattr(bit_flips, "_first_answer", lambda _: "accepted")
    found = try_flips(run, "manifest.json", [5], 1, hasty=True)
    assert found.raised == ["manifest.json bit 5: accepted at first, refused on the whole"]


def test_what_is_not_refused_is_counted(run: Path) -> None:
    view = run / "metrics.jsonl"
    view.write_text("{}")
    try:
        found = try_flips(run, view.name, range(16), 1)
        assert found.accepted == [f"metrics.jsonl bit {bit}" for bit in range(16)]
        assert try_flips(run, view.name, range(16), 1, hasty=True).accepted == found.accepted
        assert view.name not in files(run)
    finally:
        view.unlink()


def test_an_error_outside_the_family_is_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise KeyError("head")

    monkeypatch.setattr(bit_flips, "check_run", broken)
    before = (run / "manifest.json").read_bytes()
    found = try_flips(run, "manifest.json", [0, 1], 1)
    assert (found.tried, len(found.raised), found.accepted) == (2, 2, [])
    assert "KeyError" in found.raised[0]
    assert (run / "manifest.json").read_bytes() == before
    monkeypatch.setattr(bit_flips, "flip_group", lambda *_, **__: found)
    assert not figure(run, SMALLEST[1], full=False).holds


def test_a_run_that_does_not_hold_is_not_measured(run: Path) -> None:
    stranger = run / "payloads" / "stranger"
    stranger.write_text("x")
    try:
        with pytest.raises(UsageError, match="before any flip"):
            flip_group(run, SMALLEST[0], full=False)
    finally:
        stranger.unlink()
