"""Anchors of `verify`: the log's key, heads seen before, a witness policy, a receipt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.folder import RunFolder
from tests.pipeline.verify_tools import asked, check
from tests.tiny import TinyWitnesses, make_run, run_to_end, tiny_config
from tests.verification.test_fsck_bytes import witness_vkey
from verification.fsck import check_run
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import parse_checkpoint, vkey

STRANGER = witness_vkey("stranger.example")


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
