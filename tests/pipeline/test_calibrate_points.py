"""A calibration's points, and the file that takes them to another machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.calibrate_points import MOST_STEPS, Plan, PointsFile, PointsWriter, library_tokens
from tests.tiny import tiny_config
from verification.errors import FormatError, StorageError, UsageError

NAME = "exact-avx2.v2/x86-64/torch-0"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.of(tiny_config(), 2)


@pytest.fixture(scope="module")
def written(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("points") / "walk"
    write(plan, path)
    return path.read_bytes()


def write(plan: Plan, path: Path) -> None:
    writer = PointsWriter(path, NAME, plan)
    for index in range(3):
        writer.add(shifted(plan, index))
    writer.finish([5, 6])


def shifted(plan: Plan, by: int) -> bytes:
    point = plan.point(plan.beginning())
    for array in point.weights.values():
        np.add(array, np.float32(by), out=array)
    return plan.to_bytes(point)


def test_a_file_gives_back_what_was_written(plan: Plan, tmp_path: Path) -> None:
    write(plan, tmp_path / "walk")
    with PointsFile(tmp_path / "walk") as file:
        assert (file.numerics_class, file.losses) == (NAME, (5, 6))
        assert (file.plan.config, file.plan.rates) == (plan.config, plan.rates)
        assert np.array_equal(file.plan.windows_SBT, plan.windows_SBT)
        assert [file.point(index) for index in (2, 0, 1)] == [shifted(plan, index) for index in (2, 0, 1)]


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_a_point_is_all_that_a_step_needs(mode: str) -> None:
    outer = {"optimizer": "adamw" if mode == "gradient" else "nesterov"}
    plan = Plan.of(tiny_config(train={"mode": mode}, outer=outer), 1)
    point = plan.point(plan.beginning())
    assert plan.to_bytes(point) == plan.beginning()
    assert len(plan.beginning()) == plan.point_bytes
    assert ("gradient_sum" in point.state) == (mode == "gradient")
    assert not point.state["error_feedback"].any()


def test_windows_are_text_folded_into_the_vocabulary() -> None:
    tokens = library_tokens((4, 2, 17), 300)
    assert tokens.shape == (4, 2, 17)
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() <= tokens.max() < 300
    counts = np.sort(np.bincount(library_tokens((100, 2, 17), 300).reshape(-1), minlength=300))[::-1]
    assert counts[:30].sum() > 0.3 * counts.sum()  # uneven, as text is


@given(at=st.integers(0, 1 << 30), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_byte_raises_anything_else(tmp_path: Path, written: bytes, at: int, value: int) -> None:
    data = bytearray(written)
    data[at % min(len(data), 8000)] = value
    (tmp_path / "walk").write_bytes(data)
    try:
        with PointsFile(tmp_path / "walk") as file:
            file.plan.point(file.point(0))
    except FormatError:
        assert bytes(data) != written
    else:
        assert len(data) == len(written)


@pytest.mark.parametrize("keep", [0, 10, 26, 400, -1])
def test_a_shortened_file_is_refused(tmp_path: Path, written: bytes, keep: int) -> None:
    (tmp_path / "walk").write_bytes(written[:keep])
    with pytest.raises(FormatError):
        PointsFile(tmp_path / "walk")


def test_a_longer_file_is_refused(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "walk").write_bytes(written + b"\0")
    with pytest.raises(FormatError, match="wrong length"):
        PointsFile(tmp_path / "walk")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"steps":2}', b'"steps":0}', "number of steps"),
        (b'"steps":2}', b'"steps":3}', "length"),
        (b'"class":"exact', b'"clasz":"exact', "header"),
        (b'"n_layers":1', b'"n_layers":9', "length"),
        (b'"n_layers":1', b'"n_layers":0', "not valid"),
    ],
)
def test_a_header_must_fit(tmp_path: Path, written: bytes, old: bytes, new: bytes, match: str) -> None:
    assert written.count(old) == 1
    (tmp_path / "walk").write_bytes(written.replace(old, new))
    with pytest.raises(FormatError, match=match):
        PointsFile(tmp_path / "walk")


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path, plan: Plan) -> None:
    write(Plan(plan.config, plan.rates, plan.windows_SBT + 300), tmp_path / "walk")
    with pytest.raises(FormatError, match="vocabulary"):
        PointsFile(tmp_path / "walk")


@pytest.mark.parametrize("steps", [0, MOST_STEPS + 1])
def test_a_walk_has_a_number_of_steps_that_a_file_can_hold(steps: int) -> None:
    with pytest.raises(UsageError):
        Plan.of(tiny_config(), steps)


def test_files_that_cannot_be_had(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(StorageError):
        PointsFile(tmp_path / "none")
    with pytest.raises(StorageError):
        PointsWriter(tmp_path / "no folder" / "walk", NAME, plan)
