"""Honest runs hold at level 1, whole, killed at any head, and anchored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import b3, canon, tree_root, vkey
from tests.verification.test_fsck_state import MEMBERS
from tests.verification.test_fsck_writer import Writer
from verification.errors import UsageError
from verification.fsck import check_run

VARIANTS: list[dict[str, Any]] = [
    {},
    {"timing__mode": "fixed", "state__policy": "reset"},
    {"train__mode": "gradient", "audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000},
    {"audit__rate_ppm": 0, "audit__probation_rounds": 0, "credit__operator_cap_ppm": 200_000},
    {"audit__rate_ppm": 1_000_000, "audit__probation_rounds": 0, "audit__segments": 1, "credit__strikes": 1},
    {"audit__segments": 0},
]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_an_honest_run_holds(tmp_path: Path, variant: int) -> None:
    writer = Writer(tmp_path / "run", **VARIANTS[variant]).run()
    steps: list[str] = []
    found = check_run(writer.write(), progress=lambda what, done, of: steps.append(f"{what} {done}/{of}"))
    assert found.failures == ()
    assert found.complete
    assert found.ok
    assert found.anchored is None
    assert (found.rounds, found.run_id, found.log_vkey) == (6, writer.run_id, vkey())
    assert (found.log_size, found.log_head) == (
        len(writer.entries),
        "sha256:" + tree_root(writer.entries).hex(),
    )
    assert found.weights_digest == b3(b"weights 6")
    assert found.run_close is not None
    assert [e["member"] for e in found.enrolments] == [m[0] for m in MEMBERS]
    assert [t.open["turn"] for t in found.turns] == list(range(writer.turn))
    assert f"records {len(writer.entries)}/{len(writer.entries)}" in steps


def reasons_of(writer: Writer) -> list[dict[int, str]]:
    closes = [r for k, r, _ in writer.records if k == "round-close"]
    return [{line["slot"]: line["reason"] for line in close["rejected"]} for close in closes]


def test_every_way_to_settle(tmp_path: Path) -> None:
    """What the default script does not have: second looks that disagree or are missing, nobody to ask."""
    script = {
        **{(0, slot): "cheat, seen differently" for slot in range(5)},
        **{(2, slot): "dispute later" for slot in range(5)},
        **{(5, slot): "cheat" for slot in range(5)},
    }
    silent = {(3, 2, slot): 9 for slot in range(5)} | {(5, 2, slot): 9 for slot in range(5)}
    over = {"audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000}
    writer = Writer(tmp_path / "run", script=script, silent=silent, more=[("fay", "contributor", "f", "c3")],
                    train__steps=[4, 6, 2, 8, 4, 2], **over).run()  # fmt: skip
    reasons = reasons_of(writer)
    assert "disputed" in reasons[0].values()
    assert "disputed" in reasons[2].values()
    assert "unaudited" in reasons[3].values()
    assert "unconfirmed" in reasons[5].values()
    assert all(r[5] == "no-eligible-auditor" for r in reasons)
    assert check_run(writer.write()).failures == ()


def test_a_run_killed_at_any_head_holds_and_is_not_complete(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run()
    young = Writer(tmp_path / "run")
    for size in writer.heads[:-1]:
        turns = sum(kind == "round-close" for kind, _, _ in writer.records[:size])
        if young.turn != turns or not young.entries:
            young = Writer(tmp_path / "run").run(turns=turns)
        young.entries, young.records = writer.entries, writer.records
        # The files of the turn in progress may be there or not, as far as the log does not name them yet.
        named = {
            f"payloads/{r['opening']['payload'][7:]}" for k, r, _ in writer.records[:size] if k == "reveal"
        }
        started = {r["opening"]["start_state"][7:] for k, r, _ in writer.records[:size] if k == "reveal"}
        young.files |= {
            n: d for n, d in writer.files.items() if n in named or (n[6:] in started and n[:6] == "state/")
        }
        found = check_run(young.write(size))
        assert found.failures == (), size
        assert not found.complete
        assert found.log_size == size


def test_leftovers_of_a_turn_in_progress(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=2)
    run = writer.write()
    (run / "payloads" / b3(b"next")[7:]).write_bytes(b"next")
    (run / "checkpoints" / "round-00003.outer").write_bytes(b"early")
    (run / "checkpoints" / "round-00001.outer").write_bytes(b"old")
    (run / "evidence" / "r00003-a0-s1").mkdir(parents=True)
    (run / "evidence" / "r00003-a0-s1" / "payload").write_bytes(b"early")
    assert check_run(run).failures == ()
    (run / "payloads" / b3(b"wrong")[7:]).write_bytes(b"right")
    (run / "checkpoints" / "round-00005.outer").write_bytes(b"too early")
    (run / "evidence" / "r00007-a0-s1").write_bytes(b"too early")
    assert {f.where.split("/")[0] for f in check_run(run).failures} == {"payloads", "checkpoints", "evidence"}


def test_anchors(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=1)
    run = writer.write()
    head = f"14:{tree_root(writer.entries[:14]).hex()}"
    assert check_run(run, vkey=vkey()).anchored == "vkey"
    assert check_run(run, expect_head=head).anchored == "expect-head up to entry 13"
    both = check_run(run, vkey=vkey(), expect_head=head.replace(":", ":sha256:"))
    assert (both.anchored, both.failures) == ("vkey+expect-head up to entry 13", ())
    for bad in (check_run(run, vkey=vkey("ann")), check_run(run, expect_head="15" + head[2:])):
        assert bad.anchored is None
        assert len(bad.failures) == 1
    assert "only" in check_run(run, expect_head="999" + head[2:]).failures[0].got
    with pytest.raises(UsageError):
        check_run(run, expect_head="head")


def test_no_run_and_another_protocol(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        check_run(tmp_path / "none")
    with pytest.raises(UsageError, match="not a run folder"):
        check_run(tmp_path)
    writer = Writer(tmp_path / "run", lie=lambda k, r, w: {**r, "protocol": 2} if k == "manifest" else r)
    with pytest.raises(UsageError, match="another protocol version; expected 1, got 2"):
        check_run(writer.run(turns=1).write())
    honest = Writer(tmp_path / "run").run(turns=1)
    run = honest.write()
    (run / "manifest.json").write_bytes(canon({**honest.manifest, "protocol": 2}))
    assert any(f.where == "manifest.json" for f in check_run(run).failures)
    shutil.rmtree(run / "log")
    with pytest.raises(UsageError):
        check_run(run)


def test_a_log_of_more_than_one_tile(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", script={}, run__rounds=14).run()
    assert len(writer.entries) > 256
    run = writer.write()
    assert (run / "log/tile/1/000.p/1").exists()
    assert check_run(run).failures == ()
    (run / "log/tile/1/000.p/1").write_bytes(bytes(32))
    assert [f.where for f in check_run(run).failures] == ["log/tile/1/000.p/1"]
