"""The command `verify`: exit codes, the JSON answer, anchors, samples, incomplete runs, hostile manifests."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, replay_work
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.run import View, continue_run
from pipeline.verify import Answer, VerifyOptions, verify
from tests.pipeline.forger import keys_of
from tests.tiny import TinyWitnesses, copy_run, make_run, quiet, run_to_end, tiny_config, tiny_run
from tests.verification.test_fsck_bytes import witness_vkey
from verification.encoding import blake3_digest, canonical_json, hash_object, sha256_digest
from verification.envelope import seal
from verification.errors import UsageError
from verification.fsck import check_run
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import parse_checkpoint, vkey
from verification.records import RoundClose

FIELDS = {
    "ok",
    "complete",
    "anchored",
    "level",
    "run_id",
    "log_size",
    "log_head",
    "log_vkey",
    "rounds",
    "weights_digest",
    "recomputed",
    "failures",
}


STRANGER = witness_vkey("stranger.example")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify-home")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Three rounds, c03 found lazy in the first."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    tiny_run(folder, home, tiny_config(), drills={"c03": "lazy"})
    return folder


def check(folder: Path, level: Any = 2, **options: Any) -> Answer:
    return verify(VerifyOptions(folder, level=level, **options), lambda *_: None)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON answer of the command."""
    code = cli.run(["verify", *arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out.strip() else {}


# --- the answer ---


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_json_answer_has_the_documented_fields(
    run: Path, capsys: pytest.CaptureFixture[str], level: int
) -> None:
    code, answer = asked(capsys, str(run), "--level", str(level))
    assert code == 0
    assert set(answer) >= FIELDS
    manifest = (run / "manifest.json").read_bytes()
    assert answer["run_id"] == sha256_digest(manifest)
    assert answer["log_vkey"] == json.loads(manifest)["log_vkey"]
    assert (answer["ok"], answer["complete"], answer["anchored"]) == (True, True, None)
    assert (answer["level"], answer["rounds"], answer["failures"]) == (level, 3, [])
    size, root = (run / "log" / "checkpoint").read_text().splitlines()[1:3]
    assert answer["log_size"] == int(size)
    assert answer["log_head"] == "sha256:" + base64.b64decode(root).hex()
    assert answer["weights_digest"].startswith("blake3:")
    # 4 + 3 + 3 contributions, the lazy one among them: it must be rejected for a reason.
    assert answer["recomputed"] == (10 if level == 3 else 0)


def test_a_failure_has_four_words(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = copy_run(run, tmp_path / "damaged")
    payload = min((damaged / "payloads").iterdir())
    payload.write_bytes(payload.read_bytes()[:-1])
    code, answer = asked(capsys, str(damaged))
    assert (code, answer["ok"]) == (1, False)
    assert set(answer) >= FIELDS
    [failure] = answer["failures"]
    assert set(failure) == {"what", "where", "expected", "got"}
    assert failure["where"] == f"payloads/{payload.name}"
    assert failure["expected"] == f"blake3:{payload.name}"
    assert failure["got"].startswith("blake3:")


def test_the_answer_in_words(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.run(["verify", str(run)]) == 0
    words = capsys.readouterr().out
    assert "holds at level 2: 3 rounds" in words
    assert "self-consistent, tied to nobody you named" in words
    assert f"Next: barnraise verify {run} --level 3" in words
    answer = check(run)
    assert cli.run(["verify", str(run), "--level", "3", "--vkey", answer.log_vkey]) == 0
    words = capsys.readouterr().out
    assert "10 contributions recomputed of 10" in words
    assert "anchored vkey" in words


# --- anchors ---


def test_the_right_and_a_wrong_vkey(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = check(run).log_vkey
    code, answer = asked(capsys, str(run), "--vkey", right)
    assert (code, answer["anchored"]) == (0, "vkey")
    wrong = vkey(right.split("+", maxsplit=1)[0], PrivateKey.generate().public)
    code, answer = asked(capsys, str(run), "--vkey", wrong)
    assert (code, answer["anchored"]) == (1, None)
    [failure] = answer["failures"]
    assert failure["what"] == "the log's key is not the one expected"
    assert (failure["expected"], failure["got"]) == (wrong, right)


def test_heads_seen_before(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = RunFolder(run).parsed_manifest()
    log = Log.open(run / "log", manifest.origin, None, manifest.log_vkey)
    answer = check(run)
    code, found = asked(capsys, str(run), "--expect-head", f"{log.size}:{log.root.hex()}")
    assert (code, found["anchored"]) == (0, "expect-head")
    # as the answer prints it
    code, _ = asked(capsys, str(run), "--expect-head", f"{answer.log_size}:{answer.log_head}")
    assert code == 0
    # an earlier head, as it is embedded in the log
    turn = check_run(run).turns[1]
    assert turn.draw
    early = parse_checkpoint(turn.draw["head"], answer.log_vkey)
    seen = f"{early.size}:{early.root.hex()}"
    code, found = asked(capsys, str(run), "--expect-head", seen)
    assert (code, found["anchored"]) == (0, f"expect-head up to entry {early.size - 1}")
    rest = f"entries {early.size} to {log.size - 1} are tied to"
    for more, whom in (((), "nobody outside"), (("--vkey", answer.log_vkey), "the log's own key alone")):
        assert cli.run(["verify", str(run), "--expect-head", seen, *more]) == 0
        assert f"{rest} {whom}" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["verify", str(run), "--expect-head", f"{log.size}:{log.root.hex()}"]) == 0
    assert "tied to" not in capsys.readouterr().out
    both = asked(capsys, str(run), "--vkey", answer.log_vkey, "--expect-head", f"{log.size}:{log.root.hex()}")
    assert (both[0], both[1]["anchored"]) == (0, "vkey+expect-head")
    code, found = asked(capsys, str(run), "--expect-head", f"{log.size}:{'0' * 64}")
    assert (code, found["anchored"]) == (1, None)
    assert found["failures"][0]["what"] == f"the log does not contain the expected head of size {log.size}"
    assert (found["failures"][0]["expected"], found["failures"][0]["got"]) == ("0" * 64, log.root.hex())
    code, found = asked(capsys, str(run), "--expect-head", f"{log.size + 1}:{log.root.hex()}")
    assert (code, found["failures"][0]["got"]) == (1, f"only {log.size} entries")


@pytest.mark.parametrize(
    "head",
    ["", "7", "7:", f"x:{'0' * 64}", f"07:{'0' * 64}", f"7:{'0' * 63}", f"-1:{'0' * 64}", f"0:{'0' * 64}"],
)
def test_a_malformed_head_is_wrong_use(run: Path, capsys: pytest.CaptureFixture[str], head: str) -> None:
    assert cli.run(["verify", str(run), f"--expect-head={head}"]) == 2
    said = capsys.readouterr().err
    assert "not a log head" in said
    assert "SIZE:HEX" in said


def test_a_witness_policy_and_a_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, witnesses = tmp_path / "run", TinyWitnesses(tmp_path / "witnesses")
    make_run(run, tmp_path / "home", tiny_config(run={"rounds": 2}), witnesses=witnesses)
    run_to_end(run, tmp_path / "home", witnesses=witnesses)
    keys = [
        item["vkey"] for item in json.loads((run / "manifest.json").read_text())["witnessing"]["witnesses"]
    ]
    lines = "".join(f"witness w{i} {key}\n" for i, key in enumerate(keys))
    policy, receipt = tmp_path / "policy", tmp_path / "receipt"
    policy.write_text(f"{lines}group g 2 w0 w1 w2\nquorum g\n")
    assert cli.run(["receipt", str(run), "--member", "c00", "--round", "1", "--out", str(receipt)]) == 0
    capsys.readouterr()
    given = ("--witness-policy", str(policy), "--receipt", str(receipt))
    for level in (1, 2):
        code, answer = asked(capsys, str(run), "--level", str(level), *given)
        assert (code, answer["anchored"], answer["failures"]) == (0, "witness-policy+receipt", [])
    policy.write_text(f"{lines}witness w3 {STRANGER}\nquorum w3\n")
    code, answer = asked(capsys, str(run), *given[:2])
    assert (code, answer["anchored"]) == (1, None)
    assert answer["failures"][0]["what"] == "no head of the log satisfies the witness policy"
    policy.write_text("quorum none\n")
    assert cli.run(["verify", str(run), *given[:2]]) == 2


def test_level_1_keeps_no_turns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def checked(*arguments: Any, **options: Any) -> Any:
        findings = check_run(*arguments, **options)
        found.append(len(findings.turns))
        return findings

    monkeypatch.setattr("pipeline.verify.check_run", checked)
    assert check(run, 1).ok
    assert check(run, 2).ok
    assert found == [0, 3]


# --- wrong use ---


def test_what_is_no_run_is_wrong_use(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", run / "manifest.json"):
        assert cli.run(["verify", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_a_run_of_another_protocol_is_wrong_use(
    run: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def newer(value: dict[str, Any]) -> None:
        value["protocol"] = 2

    folder = signed_manifest(run, home, tmp_path / "newer", newer)
    for level in ("1", "2", "3"):
        assert cli.run(["verify", str(folder), "--level", level]) == 2
        said = capsys.readouterr().err
        assert "another protocol version" in said
        assert "the release that made it" in said


def test_a_manifest_that_disagrees_about_the_protocol_is_a_failure(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """manifest.json says 2, the log 1: no other version's run, a damaged one."""
    folder = copy_run(run, tmp_path / "run")
    value = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(canonical_json({**value, "protocol": 2}))
    code, answer = asked(capsys, str(folder))
    assert code == 1
    assert answer["failures"][0]["what"] == "manifest.json is not the manifest of the log"


def test_a_sample_of_nothing_is_wrong_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", str(run), "--level", "3", "--sample", "0"]) == 2
    assert "--sample of 1 or more" in capsys.readouterr().err


def test_level_3_without_torch_says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    true_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pipeline.replay_work":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    code = cli.run(["verify", str(run), "--level", "3"])
    monkeypatch.undo()
    assert code == 2
    assert "barnraise[train]" in capsys.readouterr().err


# --- level 3 ---


def recomputed_by(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[Answer, list[str]]:
    """The answer, and the contributions that were recomputed."""
    done: list[str] = []
    true_work = replay_work.do_work

    def noting(job: Any, data: Any, open_: Any, entry: Any, *rest: Any) -> Any:
        done.append(f"{open_.round}/{entry.slot}")
        return true_work(job, data, open_, entry, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(replay_work, "do_work", noting)
        folder, options = arguments
        answer = check(folder, 3, **options)
    return answer, done


def test_a_sample_can_be_drawn_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, done = recomputed_by(monkeypatch, run, {"sample": 3})
    assert first.ok
    assert first.sample_seed is not None
    assert first.population == 10
    # the sampled ones and what leads to them from a known state
    assert 3 <= first.recomputed == len(done) <= 10
    again, same = recomputed_by(monkeypatch, run, {"sample": 3, "sample_seed": first.sample_seed})
    assert (again.sample_seed, same) == (first.sample_seed, done)
    others = {
        tuple(recomputed_by(monkeypatch, run, {"sample": 3, "sample_seed": seed})[1]) for seed in range(4)
    }
    assert len(others) > 1


def test_a_sample_larger_than_the_run_is_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(capsys, str(run), "--level", "3", "--sample", "99", "--sample-seed", "5")
    assert (code, answer["recomputed"], answer["population"], answer["sample_seed"]) == (0, 10, 10, 5)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_reading_the_table_leaves_no_thread_behind(run: Path) -> None:
    """A thread of pyarrow's that still holds a Python object as the process ends aborts it."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.records_table import read_contributions\n"
        "before = os.listdir('/proc/self/task')\n"
        "assert read_contributions(Path(sys.argv[1]), 1000)\n"
        "assert os.listdir('/proc/self/task') == before\n"
    )
    command = [sys.executable, "-c", code, str(run / "contributions.parquet")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_sample_no_seed_is_drawn(run: Path) -> None:
    assert check(run, 3).sample_seed is None


def test_another_numerics_class_cannot_recompute(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_work, "numerics_class", lambda profile, threads: "another-machine")
    code, answer = asked(capsys, str(run), "--level", "3")
    assert code == 1
    said = {f["what"] for f in answer["failures"] if f["got"] == "another-machine"}
    assert said == {"this machine cannot recompute that numerics class"}
    assert all(re.match(r"round \d, attempt 0, slot \d", f["where"]) for f in answer["failures"])
    assert check(run, 2).ok


# --- runs that have not ended ---


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_run_stopped_between_turns(tmp_path: Path, turns: int) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, tiny_config())
    copies: list[Path] = [copy_run(run, tmp_path / "after-0")]

    def seen(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        copies.append(copy_run(run, tmp_path / f"after-{close.round}"))

    if turns:
        continue_run(RunFolder(run), home, View(quiet, seen))
    for level in (1, 2, 3):
        answer = check(copies[turns], level)
        assert (answer.ok, answer.complete, answer.rounds) == (True, False, turns), answer.failures


class KilledError(Exception):
    """The coordinator's process is gone."""


@pytest.mark.parametrize(
    "step",
    [
        "collect_commitments",
        "collect_reveals",
        "draw",
        "collect_states",
        "draw_second_looks",
        "close",
    ],
)
def test_a_run_killed_within_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """KilledError in round 2 before a step: an incomplete run that holds, at every level."""
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, tiny_config(run={"rounds": 2}))
    true_step = getattr(Coordinator, step)

    def dies(self: Coordinator) -> Any:
        if self.state.round == 2:
            raise KilledError
        return true_step(self)

    monkeypatch.setattr(Coordinator, step, dies)
    with pytest.raises(KilledError):
        continue_run(RunFolder(run), home, View(quiet, lambda *_: None))
    for level in (1, 2, 3):
        answer = check(run, level)
        assert (answer.ok, answer.complete, answer.rounds) == (True, False, 1), answer.failures
    (run / "payloads" / ("0" * 64)).write_bytes(b"not of this turn")
    assert not check(run).ok


def test_an_ended_run_needs_its_table(run: Path, tmp_path: Path) -> None:
    folder = copy_run(run, tmp_path / "run")
    (folder / "contributions.parquet").unlink()
    [failure] = check(folder).failures
    assert (failure["what"], failure["where"]) == (
        "the table of contributions is missing",
        "contributions.parquet",
    )


# --- manifests that were signed to do harm ---


def signed_manifest(run: Path, home: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder as after `create_run`, its manifest changed and signed by its own coordinator."""
    key = keys_of(home, RunFolder(run))["coordinator"]
    value = json.loads((run / "manifest.json").read_bytes())
    change(value)
    shutil.copytree(run, target, ignore=lambda folder, names: ["log"] if Path(folder) == run else [])
    for part in ("payloads", "state", "evidence"):
        shutil.rmtree(target / part)
    (target / "contributions.parquet").unlink()
    for path in (target / "checkpoints").glob("round-0000[1-9]*"):
        path.unlink()
    (target / "manifest.json").write_bytes(canonical_json(value))
    log = Log.create(target / "log", value["origin"], key)
    subject = value["dataset"]["root"].removeprefix("sha256:")
    log.append([seal("barnraise:manifest:v1", value, "dataset", subject, key)])
    return target


def test_a_signed_manifest_alone_holds(run: Path, home: Path, tmp_path: Path) -> None:
    answer = check(signed_manifest(run, home, tmp_path / "run", lambda value: None), 3)
    assert (answer.ok, answer.rounds) == (True, 0), answer.failures


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every leaf."""
    if not isinstance(value, (dict, list)) or not value:
        return [at]
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, item in inside for place in places(item, (*at, key))]


HOSTILE: list[Any] = [
    None, True, 0, 1, -1, 7, 2**53 - 1, "", "x", "0x1.8p+1", "0x1.0p+1023", "-0x1.0p+0", "0x0.0p+0", [], {},
    [0], [2**53 - 1],
]  # fmt: skip


@pytest.mark.slow
def test_hostile_manifests_never_raise(run: Path, home: Path, tmp_path: Path) -> None:
    """Every leaf of the configuration and arrays in turn, signed: an answer or UsageError, nothing else."""
    true = json.loads((run / "manifest.json").read_bytes())
    dice = random.Random(11)
    paths = [p for p in places(true) if p[0] in ("config", "arrays", "initial", "zero_state", "codec")]
    told = tmp_path / "run"
    for path in paths:
        for value in dice.sample(HOSTILE, 1):
            changed = copy.deepcopy(true)
            here = changed
            for key in path[:-1]:
                here = here[key]
            if here[path[-1]] == value:
                continue
            here[path[-1]] = value
            shutil.rmtree(told, ignore_errors=True)

            def put(target: dict[str, Any], changed: dict[str, Any] = changed) -> None:
                target.clear()
                target.update(changed)

            try:
                answer = check(signed_manifest(run, home, told, put))
            except UsageError as error:
                pytest.fail(f"{path} = {value!r}: exit code 2 for a run of this protocol: {error}")
            assert all(f["what"] and f["where"] for f in answer.failures), (path, value)
            if path[:2] == ("config", "model") and path[2] not in ("rope_theta", "norm_eps"):
                assert not answer.ok, (path, value)


def test_a_configuration_that_is_none_is_a_failure(
    run: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(value: dict[str, Any]) -> None:
        value["config"]["model"]["n_heads"] = 0

    folder = signed_manifest(run, home, tmp_path / "run", spoil)
    code, answer = asked(capsys, str(folder))
    assert code == 1
    assert any("configuration" in f["what"] for f in answer["failures"]), answer["failures"]


def test_a_model_too_large_for_its_checkpoint_is_refused_before_it_is_drawn(
    run: Path, home: Path, tmp_path: Path
) -> None:
    """A manifest of a kilobyte must not make the verifier allocate gigabytes."""

    def huge(value: dict[str, Any]) -> None:
        size = 65536
        for part in ("model", "data"):
            value["config"][part]["vocab_size"] = size
        value["dataset"]["vocab_size"] = size
        rest = {name: item for name, item in value["dataset"].items() if name != "root"}
        value["dataset"]["root"] = hash_object("barnraise/dataset/v1", rest)
        value["arrays"][0][1][0] = size

    [failure] = check(signed_manifest(run, home, tmp_path / "run", huge)).failures
    assert failure["what"] == "checkpoint 0 is too small for the manifest's arrays"
    assert failure["where"] == "checkpoints/round-00000.safetensors"


def test_a_model_of_more_layers_than_arrays_is_refused_before_they_are_listed(
    run: Path, home: Path, tmp_path: Path
) -> None:
    def deep(value: dict[str, Any]) -> None:
        value["config"]["model"]["n_layers"] = 2**40

    answer = check(signed_manifest(run, home, tmp_path / "run", deep))
    assert not answer.ok


def test_shards_that_are_no_shards(run: Path, home: Path, tmp_path: Path) -> None:
    """Their digests are right: whoever made the run made them so."""
    junk = b"ARROW1\0\0" + b"not a table" * 99

    def spoil(value: dict[str, Any]) -> None:
        for part in ("train", "validation"):
            for shard in value["dataset"][part]:
                shard["digest"] = blake3_digest(junk)
        rest = {name: item for name, item in value["dataset"].items() if name != "root"}
        value["dataset"]["root"] = hash_object("barnraise/dataset/v1", rest)

    folder = signed_manifest(run, home, tmp_path / "run", spoil)
    for path in (folder / "data").glob("*.arrow"):
        path.write_bytes(junk)
    assert check(folder, 2).ok  # levels 1 and 2 read no window
    answer = check(folder, 3)
    assert not answer.ok
    assert answer.failures[0]["what"]
