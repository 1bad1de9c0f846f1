"""`barnraise calibrate` on a tiny model: two environments, a file, and what is said about them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import calibrate, calibrate_workers, cli
from pipeline.calibrate import CalibrateOptions, Measured, command, following, toml
from pipeline.calibrate_points import Plan, PointsFile
from pipeline.calibrate_workers import EXACT, NATIVE, Crew, Environment, walk
from pipeline.config import ToleranceConfig
from tests.tiny import tiny_config
from verification.errors import WorkError
from verification.tolerance import Thresholds

AUDITS = 8


@pytest.fixture(scope="module")
def toml_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines: list[str] = []
    values = json.loads(tiny_config().model_dump_json())
    for name in ("model", "data"):
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values[name].items()]
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def options(toml_config: Path) -> CalibrateOptions:
    return CalibrateOptions(config=toml_config, audits=AUDITS, out=toml_config.with_name("walk"))


@pytest.fixture(scope="module")
def few_environments() -> Iterator[None]:
    """Two that are there, and one that is not."""
    strange = Environment("cuda", "native", device="cuda:99", experimental=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "environments", lambda: (EXACT, NATIVE, strange))
        yield


@pytest.fixture(scope="module")
def measured(options: CalibrateOptions, few_environments: None) -> Measured:
    return calibrate._here(options)


def test_honest_environments_differ_by_rounding(measured: Measured) -> None:
    (found,) = measured.fits
    assert found.audits == AUDITS
    assert found.classes == tuple(sorted(measured.names))
    assert 0 < found.norm_ppb.largest < 100_000
    assert found.rounding_holds
    assert found.step_milli.largest > 0
    assert list(measured.left_out) == ["cuda"]
    assert measured.usable == measured.fits


def test_the_section_is_one_that_a_configuration_takes(measured: Measured) -> None:
    (section,) = tomllib.loads(toml(measured.fits[0]))["audit"]["tolerance"]
    parsed = ToleranceConfig.model_validate_json(json.dumps(section))
    assert tuple(parsed.classes) == measured.fits[0].classes
    assert parsed.norm_ppb == measured.fits[0].thresholds.norm_ppb
    assert parsed.step_milli == 1000


def test_another_machine_repeats_the_walk(
    measured: Measured, options: CalibrateOptions, few_environments: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here it is the same machine: its own class is left alone, and the other shows what it showed before."""
    assert options.out is not None
    with PointsFile(options.out) as file:
        assert file.numerics_class.startswith("native")
        assert len(file.losses) == AUDITS
    assert command(CalibrateOptions(against=options.out, json=True), Console()) == 0
    (found,) = json.loads(capsys.readouterr().out)["fits"]
    assert tuple(found["classes"]) == measured.fits[0].classes
    assert found["norm_ppb"] == {
        "median": measured.fits[0].norm_ppb.median,
        "largest": measured.fits[0].norm_ppb.largest,
    }


def test_words_tell_the_spread_what_it_proves_and_what_is_next(
    measured: Measured, options: CalibrateOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate.show(measured, options, Console(width=200))
    text = capsys.readouterr().out
    assert "exact – native" in text
    assert "left out: cuda" in text
    assert f"a rate below {3 / AUDITS:.2g}" in text
    assert "1e-06 false alarms an audit" in text
    assert f"{measured.fits[0].hidden_share:.1e}: small beside" in text
    assert "[[audit.tolerance]]" in text
    assert text.rstrip().endswith("barnraise calibrate --against walk, on the other machine")
    assert "--dry-run" in following(measured, replace(options, out=None))
    wide = Thresholds(loss_ppm=0, norm_ppb=10**9, peak_ppm=10**6, step_milli=1000)
    hopeless = replace(measured, fits=(replace(measured.fits[0], thresholds=wide),))
    assert hopeless.usable == ()
    assert any("no section" in note for note in calibrate.notes(hopeless, options))
    nobody = replace(measured, of_members=frozenset())
    assert "--out FILE here" in following(nobody, replace(options, out=None))


@pytest.mark.slow
def test_a_walk_of_gradients_adds_them_up() -> None:
    plan = Plan.of(tiny_config(train={"mode": "gradient"}, outer={"optimizer": "adamw"}), 3)
    with Crew((EXACT, NATIVE, EXACT), plan) as crew:
        assert list(crew.left_out) == ["exact"]
        steps = list(walk(crew))
    assert len(steps) == 3
    for (audit,) in steps:
        assert audit.contributor == crew.workers[0].numerics_class
        assert audit.deviation.norm_ppb < 100_000
        assert audit.deviation.step_milli == 0


def test_a_process_that_ends_is_told() -> None:
    plan = Plan.of(tiny_config(), 1)
    gone = Environment("gone", "native", module="pipeline.there_is_none")
    strange = Environment("strange", "native", module="this")
    with Crew((gone, strange), plan) as crew:
        assert crew.workers == []
        assert "ended" in crew.left_out["gone"]
        assert "Zen" in crew.left_out["strange"]
    with pytest.raises(WorkError, match="no native profile"):
        calibrate._leader(crew, "native")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--audits", "7"],
        ["--audits", "10001"],
        ["--false-alarm-ppb", "0"],
        ["--false-alarm-ppb", "1000000000"],
        ["--against", "x", "--out", "y"],
        ["--against", "x", "--config", "y"],
        ["--config", "there-is-none.toml"],
    ],
)
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["calibrate", *arguments]) == 2
    assert capsys.readouterr().err.startswith("barnraise calibrate: ")


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"something else")
    assert cli.run(["calibrate", "--against", str(tmp_path / "x")]) == 1
    assert "calibration file" in capsys.readouterr().err


def test_members_are_in_the_environments_that_nobody_pinned() -> None:
    assert [where.name for where in calibrate_workers.environments() if where.of_members] == [
        "exact",
        "native",
    ]
