"""`barnraise receipt` and `verify-receipt`: from a run folder to a file, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.options import parse_options
from pipeline.receipts import COMMANDS, find_close, manifest_witnesses
from verification.encoding import Json, canonical_json
from verification.envelope import seal
from verification.errors import FormatError, SignatureError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import cosign, vkey, witness_vkey
from verification.tlog_proof import MAX_PROOF_BYTES, check_receipt

KEY = PrivateKey.from_seed(bytes(range(32)))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, KEY.public)
WITNESSES = [PrivateKey.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
W = [witness_vkey(f"w{i}", key.public) for i, key in enumerate(WITNESSES)]
RUN = "ab" * 32
POLICY = f"log {VKEY}\nwitness one {W[0]}\nwitness two {W[1]}\ngroup both all one two\nquorum both\n"
Run = Callable[..., tuple[int, str]]


def close(round_: int, attempt: int = 0, accepted: str = "ann", rejected: str = "bob") -> bytes:
    value: Json = {
        "protocol": 1, "run": f"sha256:{RUN}", "round": round_, "attempt": attempt, "void": False,
        "accepted": [{"member": accepted, "payload": "", "slot": 0, "tokens": 64 * round_, "weight": 60}],
        "rejected": [
            {"evidence": None, "fault": rejected == "cid", "member": rejected, "reason": "late", "slot": 1}
        ],
        "missed": [], "overruled": [],
        "weights": f"blake3:{round_:064x}", "outer": "", "requeued": [], "cursor": 9,
        "credits": [
            {"earned": 100, "forfeited": 7, "member": name, "vested": 36} for name in (accepted, rejected)
        ],
        "quarantined": ["cid"], "train_loss": 1, "val_loss": None,
    }  # fmt: skip
    return seal("barnraise:round-close:v1", value, "run", RUN, KEY)


def other(kind: str) -> bytes:
    return seal(f"barnraise:{kind}:v1", {"protocol": 1}, "run", RUN, KEY)


ENTRIES = [
    other("enrol"), close(1), other("round-open"), close(2, 0), close(2, 1), close(3, 0, "ann", "cid"),
    close(4, 0, "dan", "cid"), other("run-close"),
]  # fmt: skip


def make_run(folder: Path, cosigners: tuple[int, ...] = (0, 1), *, witnesses: int = 3) -> Path:
    log = Log.create(folder / "log", ORIGIN, KEY, W[:witnesses])
    log.append(ENTRIES)
    if cosigners:
        lines = [cosign(log.head, f"w{i}", WITNESSES[i], 1_700_000_000 + i) for i in cosigners]
        log.put_cosigned(log.checkpoint + "".join(lines))
    manifest: dict[str, Json] = {"log_vkey": VKEY, "origin": ORIGIN}
    manifest["witnessing"] = {"required": 2, "witnesses": [{"vkey": key} for key in W[:witnesses]]}
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    return folder


@pytest.fixture
def barnraise(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(name: str, *arguments: object) -> tuple[int, str]:
        kind, command = COMMANDS[name]
        code = command(parse_options(kind, name, [str(item) for item in arguments]), Console(width=300))
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy").write_text(POLICY)
    return tmp_path / "policy"


def test_from_run_to_receipt_to_words(tmp_path: Path, barnraise: Run, policy: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "ann.tlog-proof"
    code, said = barnraise("receipt", run, "--member", "ann", "--out", out)
    assert code == 0
    assert f"{out}: ann was accepted in round 3 with 192 tokens, weight 60" in said
    assert "cosigned by 2 of 3 witnesses of the run" in said
    assert f"Next: barnraise verify-receipt {out} --vkey '{VKEY}'" in said
    assert check_receipt(out.read_bytes(), VKEY, W, 2).index == 5
    code, said = barnraise("verify-receipt", out, "--policy", policy)
    assert code == 0
    for part in (
        "holds ann was accepted in round 3 with 192 tokens, weight 60",
        f"run      sha256:{RUN}",
        "credit   100 tokens earned, 36 vested, 7 forfeited\n",
        f"entry    5 of the log {ORIGIN}, size 8",
        f"signed   {VKEY}",
        "cosigned by 2 of 2 witnesses of the policy",
        "one (w0) at 2023-11-14 22:13:20 UTC",
        "two (w1) at 2023-11-14 22:13:21 UTC",
        "shown      that the coordinator logged this",
        "shown      that those witnesses saw this head",
        "not shown  that the work was right",
    ):
        assert part in said
    assert "others see the same log" not in said
    code, said = barnraise("verify-receipt", out, "--vkey", VKEY)
    assert code == 0
    assert "cosigned by nobody that you named" in said
    assert "not shown  that others see the same log" in said
    assert "those witnesses" not in said


def test_json(tmp_path: Path, barnraise: Run, policy: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "cid"
    code, said = barnraise("receipt", run, "--member", "cid", "--out", out, "--json")
    made = json.loads(said)
    assert (code, made["out"], made["round"], made["reason"]) == (0, str(out), 4, "late")
    code, said = barnraise("verify-receipt", out, "--policy", policy, "--json")
    found = json.loads(said)
    assert code == 0
    root = check_receipt(out.read_bytes(), VKEY).checkpoint.root.hex()
    assert found == {
        "ok": True, "member": "cid", "run": f"sha256:{RUN}", "round": 4, "attempt": 0, "slot": 1,
        "accepted": False, "tokens": None, "weight": None, "reason": "late", "fault": True, "earned": 100,
        "vested": 36, "forfeited": 7, "quarantined": True, "weights": f"blake3:{4:064x}", "index": 6,
        "checkpoint": {"origin": ORIGIN, "size": 8, "root": root}, "log_vkey": VKEY, "witnesses_known": 2,
        "cosigners": [{"vkey": W[0], "time": 1_700_000_000}, {"vkey": W[1], "time": 1_700_000_001}],
    }  # fmt: skip
    code, said = barnraise("verify-receipt", out, "--vkey", VKEY)
    assert "cid was rejected in round 4: late, a fault that two auditors agreed on" in said
    assert "7 forfeited, in quarantine" in said


def test_which_round(tmp_path: Path, barnraise: Run) -> None:
    run = make_run(tmp_path / "run", ())
    log = Log.open(run / "log", ORIGIN, None, VKEY, W)
    assert find_close(log, "ann", None) == 5
    assert find_close(log, "ann", 1) == 1
    assert find_close(log, "ann", 2) == 4
    assert find_close(log, "bob", None) == 4
    assert find_close(log, "dan", None) == 6
    with pytest.raises(UsageError, match="ann is not in round 4") as caught:
        find_close(log, "ann", 4)
    assert caught.value.expected == "one of 1, 2, 3"
    with pytest.raises(UsageError, match="settles a contributor 'eve'") as caught:
        find_close(log, "eve", None)
    assert caught.value.expected == "ann, bob, cid, dan"
    out = tmp_path / "r"
    assert barnraise("receipt", run, "--member", "bob", "--round", 2, "--out", out)[0] == 0
    assert (
        "bob was rejected in round 2 attempt 1: late\n" in barnraise("verify-receipt", out, "--vkey", VKEY)[1]
    )


def test_a_default_name(tmp_path: Path, barnraise: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", (), witnesses=0)
    code, said = barnraise("receipt", "run", "--member", "ann", "--round", 1)
    assert code == 0
    assert check_receipt((tmp_path / "ann-00001.tlog-proof").read_bytes(), VKEY).round == 1
    assert "--policy" not in said


def test_receipts_that_do_not_hold(tmp_path: Path, barnraise: Run, policy: Path) -> None:
    out = tmp_path / "r"
    barnraise("receipt", make_run(tmp_path / "run", (0,)), "--member", "ann", "--out", out)
    code, said = barnraise("verify-receipt", out, "--policy", policy)
    assert code == 1
    assert "does not hold" in said
    assert "too few known witnesses" in said
    code, said = barnraise("verify-receipt", out, "--policy", policy, "--json")
    assert code == 1
    assert json.loads(said)["ok"] is False
    assert json.loads(said)["error"]["what"].startswith("too few")
    assert barnraise("verify-receipt", out, "--vkey", vkey(ORIGIN, WITNESSES[0].public))[0] == 1
    for data in (b"", b"\xff" * 100, out.read_bytes()[:-5], bytes(MAX_PROOF_BYTES + 5), b"\x1b[31m" * 9):
        (tmp_path / "bad").write_bytes(data)
        code, said = barnraise("verify-receipt", tmp_path / "bad", "--vkey", VKEY)
        assert code == 1
        assert "\x1b" not in said


def test_wrong_use(tmp_path: Path, barnraise: Run, policy: Path) -> None:
    out = tmp_path / "r"
    barnraise("receipt", make_run(tmp_path / "run"), "--member", "ann", "--out", out)
    for arguments, match in (
        ((out,), "whom to trust"),
        ((tmp_path / "none", "--vkey", VKEY), "cannot be read"),
        ((out, "--policy", tmp_path / "none"), "cannot be read"),
        ((out, "--policy", policy, "--vkey", vkey("x", KEY.public)), "other logs"),
    ):
        with pytest.raises(UsageError, match=match):
            barnraise("verify-receipt", *arguments)
    policy.write_text("quorum none\n")
    with pytest.raises(UsageError, match="which log"):
        barnraise("verify-receipt", out, "--policy", policy)
    assert barnraise("verify-receipt", out, "--policy", policy, "--vkey", VKEY)[0] == 0
    with pytest.raises(UsageError, match="not a run folder"):
        barnraise("receipt", tmp_path, "--member", "ann")


def test_a_damaged_run_gives_no_receipt(tmp_path: Path, barnraise: Run) -> None:
    run = make_run(tmp_path / "run")
    manifest = run / "manifest.json"
    good = manifest.read_bytes()
    for value in ([], {"origin": ORIGIN}, {"log_vkey": VKEY}, {"log_vkey": 1, "origin": ORIGIN},
                  {"log_vkey": VKEY, "origin": ORIGIN, "witnessing": {"witnesses": [1]}}):  # fmt: skip
        manifest.write_bytes(canonical_json(value))
        with pytest.raises(FormatError):
            barnraise("receipt", run, "--member", "ann")
    manifest.write_bytes(good.replace(VKEY.encode(), vkey(ORIGIN, WITNESSES[0].public).encode()))
    with pytest.raises(SignatureError):
        barnraise("receipt", run, "--member", "ann")
    manifest.write_bytes(good)
    (run / "log" / "tile" / "entries" / "000.p" / "8").write_bytes(b"")
    with pytest.raises(StorageError):
        barnraise("receipt", run, "--member", "ann")


@pytest.mark.parametrize(
    "change", [{"accepted": None}, {"rejected": [1]}, {"round": "x"}, {"accepted": [{}]}]
)
def test_a_close_that_is_none(tmp_path: Path, change: dict[str, Json]) -> None:
    value: Json = {"accepted": [], "rejected": [], "round": 1} | change
    log = Log.create(tmp_path, ORIGIN, KEY)
    log.append([seal("barnraise:round-close:v1", value, "run", RUN, KEY)])
    with pytest.raises(FormatError, match="entry 0 of the log"):
        find_close(log, "ann", None)


def test_witnesses_of_a_manifest() -> None:
    assert manifest_witnesses({}) == ()
    assert manifest_witnesses({"witnessing": {"required": 0, "witnesses": []}}) == ()
    assert manifest_witnesses({"witnessing": {"witnesses": [{"vkey": W[0]}]}}) == (W[0],)
