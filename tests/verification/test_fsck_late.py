"""Honest runs whose audits lag hold at level 1, whole or killed; what of them is handed on."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import sha
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_manifest import manifest_failures
from verification.fsck import Turn, check_run
from verification.fsck_ledger import Ledger

ALL: dict[str, Any] = {"audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000}
CHANGES = {
    2: [("rotate", "cid"), ("rotate", "xia"), ("revoke", "bob", "coordinator")],
    3: [("rotate", "yan"), ("revoke", "zoe", "member")],
}
VARIANTS: list[dict[str, Any]] = [
    {"lag": 1},
    {"lag": 2, **ALL},
    {"lag": 3, "audit__rate_ppm": 700_000, "audit__probation_rounds": 0, "credit__strikes": 1},
    {"lag": 40, **ALL},
    {"lag": 2, "state__policy": "reset", "timing__mode": "fixed", "train__mode": "gradient"},
    {"lag": 1, "between": CHANGES, **ALL},
    {"lag": 2, "between": CHANGES, **ALL},
    {"lag": 2, "script": {(0, s): "cheat, seen differently" for s in range(5)}, "silent": {}, **ALL},
    {"lag": 2, "script": {(1, s): "cheat" for s in range(5)}, "silent": {(2, 1, 0): 9, (0, 2, 1): 9}, **ALL},
    {"lag": 1, "witnesses": ["w1", "w2"], "mute": {(1, 1): ["w1"], (2, 2): ["w2"]}, "script": {}},
    {"lag": 2, "script": {(0, 2): "cheat", (1, 2): "late", (2, 2): "unrevealed"}, "silent": {}, **ALL},
]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_an_honest_late_run_holds(tmp_path: Path, variant: int) -> None:
    writer = LateWriter(tmp_path / "run", **VARIANTS[variant]).run()
    found = check_run(writer.write())
    assert found.failures == ()
    assert found.complete
    assert found.weights_digest == writer.base["weights"]
    assert [t.open["turn"] for t in found.turns] == list(range(writer.turn))
    assert [t.settlement for t in found.turns] == [r for k, r, _ in writer.records if k == "settlement"]
    removed = {(t.open["turn"], slot): fault for t in found.turns for slot, fault in t.removed.items()}
    assert removed == {(turn, slot): reason == "failed-audit" for turn, slot, reason in writer.removed}


def test_the_variants_differ(tmp_path: Path) -> None:
    """Contributions are removed after a key was changed, of members in quarantine, and of whole turns."""
    rotated = LateWriter(tmp_path / "a", **VARIANTS[6]).run()
    assert any(reason == "follows" for _, _, reason in rotated.removed)
    emptied = LateWriter(tmp_path / "b", **VARIANTS[8]).run()
    closes = [r for k, r, _ in emptied.records if k == "round-close"]
    gone = [slot for turn, slot, _ in emptied.removed if turn == 1]
    assert sorted(gone) == [line["slot"] for line in closes[1]["accepted"]]


def test_a_late_run_killed_at_any_head_holds(tmp_path: Path) -> None:
    over = {"lag": 2, "run__rounds": 4, **ALL}
    writer = LateWriter(tmp_path / "run", **over).run()
    for size in [at for at in writer.heads[:-1] if at]:
        kinds = [kind for kind, _, _ in writer.records[:size]]
        young = LateWriter(tmp_path / "run", **over)
        young.entries, young.records, told = writer.entries, writer.records, writer.records[:size]
        named = {f"payloads/{r['opening']['payload'][7:]}" for k, r, _ in told if k == "reveal"}
        started = {f"state/{r['opening']['start_state'][7:]}" for k, r, _ in told if k == "reveal"}
        cases = [r["removed"] for k, r, _ in told if k == "settlement"]
        cases += [r["rejected"] for k, r, _ in told if k == "round-close"]
        named |= {
            n
            for n, d in writer.files.items()
            if any(line["evidence"] in _cases(writer, n) for lines in cases for line in lines)
        }
        young.files = {n: d for n, d in writer.files.items() if n in named | started}
        turns: list[Turn] = []
        found = check_run(young.write(size), turns=turns.append)
        assert found.failures == (), (size, kinds[-1])
        assert not found.complete
        assert [t.open["turn"] for t in turns] == list(range(kinds.count("round-open")))
        assert sum(t.settlement is not None for t in turns) == kinds.count("settlement")


def _cases(writer: LateWriter, name: str) -> set[str]:
    """The digest of the case that a file belongs to."""
    case = name.rpartition("/")[0] + "/case.json"
    return {sha(writer.files[case])} if name.startswith("evidence/") else set()


def test_turns_are_handed_over_when_they_are_settled(tmp_path: Path) -> None:
    writer = LateWriter(tmp_path / "run", lag=2, run__rounds=9, **ALL).run(turns=5)
    turns: list[Turn] = []
    run = writer.write()
    assert check_run(run, turns=turns.append).failures == ()
    assert [(t.open["turn"], t.settlement is None) for t in turns] == [
        (0, False), (1, False), (2, False), (3, True), (4, True),
    ]  # fmt: skip
    assert all(t.close is not None for t in turns)
    assert check_run(run).turns == tuple(turns)


def test_memory_does_not_grow_with_a_late_log(tmp_path: Path) -> None:
    peaks: list[int] = []
    sizes: list[int] = []
    for turns in (14, 29):
        over: dict[str, Any] = {"script": {}, "silent": {}, "run__rounds": 29}
        run = LateWriter(tmp_path / str(turns), **over).run(turns=turns).write()
        check_run(run, turns=lambda turn: None)
        tracemalloc.start()
        found = check_run(run, turns=lambda turn: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.failures == ()
        sizes.append(sum(p.stat().st_size for p in (run / "log/tile/entries").rglob("*") if p.is_file()))
    assert sizes[1] - sizes[0] > 300_000
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 2


@pytest.mark.parametrize(
    ("lag", "vesting", "fine"), [(0, 0, True), (1, 1, False), (1, 2, True), (3, 2, False)]
)
def test_credit_vests_after_the_audits(tmp_path: Path, lag: int, vesting: int, *, fine: bool) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["config"]["audit"]["lag"] = lag
        manifest["config"]["credit"]["vest_rounds"] = vesting

    found = manifest_failures(tmp_path, change)
    assert found == ([] if fine else ["credit vests before the audits that lag are over"])


@pytest.mark.parametrize("value", [-1, None, True, "1"])
def test_a_lag_is_a_number(tmp_path: Path, value: Any) -> None:
    found = manifest_failures(tmp_path, lambda m: m["config"]["audit"].update(lag=value))
    assert found == ["the manifest is malformed: manifest.config.audit.lag does not fit"]


@pytest.mark.parametrize(
    ("taken", "released", "left"),
    [
        ([(0, 10)], (0, 10), []),
        ([(0, 10)], (0, 4), [(4, 10)]),
        ([(0, 10)], (6, 10), [(0, 6)]),
        ([(0, 10)], (3, 6), [(0, 3), (6, 10)]),
        ([(0, 4), (6, 10), (20, 30)], (2, 22), [(0, 2), (22, 30)]),
        ([(0, 4), (6, 10)], (4, 6), [(0, 4), (6, 10)]),
        ([(4, 6)], (0, 4), [(4, 6)]),
    ],
)
def test_positions_are_released(taken: Any, released: Any, left: Any) -> None:
    ledger = Ledger.__new__(Ledger)
    ledger._taken = list(taken)
    ledger.release_positions([released])
    assert ledger._taken == left
