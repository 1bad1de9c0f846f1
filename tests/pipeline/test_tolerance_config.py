"""What a configuration may say of tolerances, and of members in another profile than the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, config_from_manifest, load_config, manifest_config, parse_config
from pipeline.folder import RunFolder
from pipeline.member import Member, Place
from pipeline.run import View, continue_run
from pipeline.verify import VerifyOptions, verify
from tests.fresh import run_fresh
from tests.tiny import make_run, quiet, tiny_config
from verification.encoding import MAX_INTEGER, canonical_json
from verification.errors import UsageError
from verification.fsck_formats import MAX_ENTRY
from verification.keys import PrivateKey
from verification.records import Deviation, Verdict
from verification.sealing import predicate, seal_record

NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")
DIGEST = "sha256:" + "0a" * 32


def item(one: str = "class k", other: str = "class l", **numbers: Any) -> dict[str, Any]:
    return {"classes": [one, other], **dict.fromkeys(NUMBERS, 5), **numbers}


def with_tolerances(*items: dict[str, Any], trace_every: int = 1, **audit: Any) -> Config:
    return tiny_config(
        train={"steps": [3, 2, 1, 2], "trace_every": trace_every}, audit={"tolerance": [*items], **audit}
    )


def refused(*items: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        with_tolerances(*items, **changes)
    return str(caught.value)


# --- tolerances ---


def test_a_tolerance_is_of_single_steps() -> None:
    assert len(with_tolerances(item(), trace_every=1).audit.tolerance) == 1
    assert with_tolerances(trace_every=2).audit.tolerance == ()
    assert "audit.tolerance needs train.trace_every 1" in refused(item(), trace_every=2)


def test_a_tolerance_is_between_two_classes() -> None:
    assert "a tolerance needs two classes" in refused(item("class k", "class k"))
    assert "a tolerance needs two classes" in refused(item(), item("class l", "class l"))
    for classes in ([], ["class k"], ["class k", "class l", "class m"], "class k", [1, 2]):
        assert "audit.tolerance.0.classes" in refused({**item(), "classes": classes})


def test_two_classes_have_one_tolerance() -> None:
    for other in (item(), item("class l", "class k"), item(loss_ppm=6)):
        assert "two tolerances are between the same two classes" in refused(item(), other)
    three = with_tolerances(item(), item("class k", "class m"), item("class m", "class l"))
    assert len(three.audit.tolerance) == 3


@pytest.mark.parametrize("name", NUMBERS)
def test_a_threshold_is_a_whole_number_of_the_protocol(name: str) -> None:
    for number in (0, 1, MAX_INTEGER - 1):
        found = with_tolerances(item(**{name: number})).audit.tolerance[0]
        assert getattr(found, name) == number
    for wrong in (-1, MAX_INTEGER, 0.5, "much", None, [1]):
        assert f"audit.tolerance.0.{name}" in refused(item(**{name: wrong}))
    without = item()
    del without[name]
    assert f"audit.tolerance.0.{name}" in refused(without)
    assert "audit.tolerance.0.more" in refused(item(more=1))


def test_the_share_of_what_rests_on_tolerance() -> None:
    assert tiny_config().audit.tolerance_cap_ppm == 500_000
    for wrong in (0, -1, 1_000_001, 0.5):
        assert "audit.tolerance_cap_ppm" in refused(tolerance_cap_ppm=wrong)


def test_tolerances_survive_the_manifest_in_the_form_of_the_specification() -> None:
    config = with_tolerances(item(), item("class m", "class k", peak_ppm=7), tolerance_cap_ppm=1)
    values = manifest_config(config)
    audit = values["audit"]
    assert audit["tolerance"] == [item(), item("class m", "class k", peak_ppm=7)]
    assert json.loads(canonical_json(audit["tolerance"][0])) == item()
    assert config_from_manifest(values) == config
    plain = manifest_config(tiny_config())
    assert (plain["audit"]["tolerance"], plain["run"]["native"]) == ([], [])


def test_a_tolerance_is_read_from_a_file(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "configs" / "demo.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("trace_every")]
    lines.insert(lines.index("[train]") + 1, "trace_every = 1")
    numbers = "".join(f"{name} = 5\n" for name in NUMBERS)
    section = f'\n[[audit.tolerance]]\nclasses = ["class k", "class l"]\n{numbers}'
    path = tmp_path / "config.toml"
    path.write_text("\n".join(lines) + "\n" + section)
    (found,) = load_config(path).audit.tolerance
    assert found.classes == ("class k", "class l")


# --- what fits a log entry ---


def longest_verdict(config: Config) -> int:
    """The most bytes that a verdict of such a run can have."""
    count = config.most_segments
    deviation = Deviation(MAX_INTEGER, MAX_INTEGER, DIGEST, MAX_INTEGER, MAX_INTEGER, (-(10**7),) * 8)
    blake = "blake3:" + "0a" * 32
    key, most = PrivateKey.from_seed(b"\1" * 32), MAX_INTEGER
    record = Verdict(
        1, DIGEST, most, most, most, 2, "a" * 64, key.public, "fail",
        ("trace", "payload", "next_state", "loss", "deviation"), blake, blake, (DIGEST,) * (count + 1),
        most, most, (deviation,) * count if config.audit.tolerance else (), "k" * 200,
    )  # fmt: skip
    return len(seal_record(record, key))


def of_steps(steps: int, *items: dict[str, Any]) -> Config:
    sections = {"train": {"steps": [steps], "trace_every": 1}, "audit": {"tolerance": [*items]}}
    return tiny_config(**sections)


def test_a_verdict_of_the_longest_round_fits_a_log_entry() -> None:
    longest = max(steps for steps in range(100, 200) if _fits(steps, item()))
    assert not _fits(longest + 1, item())
    assert longest_verdict(of_steps(longest, item())) <= MAX_ENTRY
    # Deviations are counted: without a tolerance such a round may be longer, and with one it must not be.
    assert _fits(longest + 1)
    longer = max(steps for steps in range(400, 700) if _fits(steps))
    assert longest_verdict(of_steps(longer)) <= MAX_ENTRY
    assert "does not fit a log entry" in _sentence(longer, item())


def _sentence(steps: int, *items: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        of_steps(steps, *items)
    return str(caught.value)


def _fits(steps: int, *items: dict[str, Any]) -> bool:
    try:
        of_steps(steps, *items)
    except UsageError:
        return False
    return True


# --- members in the native profile ---


def test_members_in_the_native_profile_are_members() -> None:
    config = tiny_config(run={"native": ["c03", "a01"]})
    assert config.run.native == ("c03", "a01")
    assert config_from_manifest(manifest_config(config)) == config
    assert "run.native names a07, c17, who are no members" in _refused_natives(["c17", "c00", "a07"])


def _refused_natives(names: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        tiny_config(run={"native": names})
    return str(caught.value)


def test_who_computes_in_which_profile() -> None:
    config = tiny_config(run={"native": ["c03"]})
    assert [config.run.profile_of(name) for name in ("c00", "c03", "a00")] == ["exact", "native", "exact"]
    native = tiny_config(run={"profile": "native"})
    assert native.run.profile_of("c00") == "native"


def test_members_of_one_process_have_one_profile(tmp_path: Path) -> None:
    make_run(tmp_path / "run", tmp_path / "home", tiny_config(run={"native": ["c03"]}))
    with pytest.raises(UsageError, match="members in one process") as caught:
        continue_run(RunFolder(tmp_path / "run"), tmp_path / "home", View(quiet, lambda *_: None))
    assert "c03" in str(caught.value)
    assert "--pool ray" in str(caught.value)
    assert verify(VerifyOptions(tmp_path / "run", level=1), lambda *_: None).failures == []


def test_a_member_prepares_the_profile_that_the_manifest_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", tmp_path / "home", tiny_config(run={"native": ["c03"]}))
    asked: list[tuple[str, str]] = []

    def noting(self: Member, profile: Any) -> str:
        asked.append((self.name, profile))
        return f"{profile}/made up"

    monkeypatch.setattr(Member, "prepared", noting)
    folder = RunFolder(tmp_path / "run")
    manifest = canonical_json(predicate(folder.parsed_manifest()))
    for name in ("c00", "c03"):
        member = Member(name, f"op-{name}", manifest, Place(tmp_path / name, folder.data))
        assert member.numerics_class == f"{asked[-1][1]}/made up"
    assert asked == [("c00", "exact"), ("c03", "native")]


def test_configurations_are_parsed_from_plain_values() -> None:
    values = manifest_config(with_tolerances(item()))
    values["audit"]["tolerance"].append(item("class l", "class k"))
    with pytest.raises(UsageError, match="the same two classes"):
        parse_config(values, "a manifest")


def test_nothing_that_makes_a_member_imports_torch() -> None:
    """Else its profile, which it has to set up before, would come too late in an actor."""
    code = "import pipeline.roster, cluster.ray_pool, sys; print('torch' in sys.modules)"
    assert run_fresh(code) == "False"
