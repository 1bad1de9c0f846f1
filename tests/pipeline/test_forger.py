"""Lies of a coordinator that rewrites a finished run and signs it again; `verify` names each.

The forger holds the coordinator's key and chain, in the last two parts a contributor's and an auditor's key
too. The table of lies is in tests/pipeline/lies.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.run
from model.init import initial_weights
from pipeline.checkpoint import Checkpoint
from pipeline.compression import Codec
from pipeline.folder import RunFolder
from pipeline.verify import Answer, VerifyOptions, verify
from tests.pipeline.forger import Entry, Forger, chain_of, keys_of
from tests.pipeline.lies import (
    CLOSE,
    LAST,
    LIES,
    OPEN,
    STEP,
    all_of,
    drop,
    entries,
    fields,
    item,
)
from tests.tiny import copy_run, tiny_config, tiny_run
from verification.encoding import canonical_json
from verification.errors import FormatError
from verification.judge import trace_root
from verification.keys import PrivateKey
from verification.records import (
    Commitment,
    Refusal,
    Reveal,
    Verdict,
)
from verification.sealing import seal_record


def check(folder: Path, level: Any = 2, **options: Any) -> Answer:
    return verify(VerifyOptions(folder, level=level, **options), lambda *_: None)


@dataclass
class Stage:
    """A finished run, and the ways to have it told again."""

    run: Path
    home: Path
    keys: dict[str, PrivateKey]

    def forger(self, target: Path) -> Forger:
        return Forger(self.run, target, self.keys["coordinator"], chain_of(self.home, RunFolder(self.run)))


def stage(folder: Path, **sections: Any) -> Stage:
    run, home = folder / "run", folder / "home"
    sections.setdefault("audit", {"probation_rounds": 1, "second_look_ppm": 0})
    sections.setdefault("outer", {"momentum": 0.9})
    tiny_run(run, home, tiny_config(**sections), drills={"c03": "lazy"})
    return Stage(run, home, keys_of(home, RunFolder(run)))


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Everything is audited; c03 is lazy and found out in round 1."""
    return stage(tmp_path_factory.mktemp("true"))


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """After round 1 nothing is audited."""
    audit = {"probation_rounds": 1, "second_look_ppm": 0, "rate_ppm": 0}
    return stage(tmp_path_factory.mktemp("trusting"), audit=audit)


def names(answer: Answer) -> list[str]:
    return [f"{f['what']} @ {f['where']}" for f in answer.failures]


def assert_named(answer: Answer, what: str, where: str, *, alone: bool = False) -> None:
    assert not answer.ok
    found = [f for f in answer.failures if re.search(what, f["what"]) and re.search(where, f["where"])]
    assert found, names(answer)
    assert all(f["expected"] or f["got"] for f in found)
    if alone:
        assert len(answer.failures) == 1, names(answer)


def test_a_run_told_again_without_a_lie_is_the_same_run(true: Stage, tmp_path: Path) -> None:
    told = true.forger(tmp_path / "told").tell()
    for path in sorted(true.run.rglob("*")):
        if path.is_file():
            assert (told / path.relative_to(true.run)).read_bytes() == path.read_bytes(), path
    assert check(told, 3).ok


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named(true: Stage, tmp_path: Path, name: str) -> None:
    lie = LIES[name]
    forger = true.forger(tmp_path / "told")
    lie.tell(forger)
    answer = check(forger.tell(lie.turns, end=lie.end))
    assert_named(answer, lie.what, lie.where, alone=lie.alone)
    assert check(true.run).ok


# --- lies in files beside the log ---


def test_weights_changed_in_the_last_checkpoint_file(true: Stage, tmp_path: Path) -> None:
    told = RunFolder(copy_run(true.run, tmp_path / "told"))
    aggregator = true.forger(tmp_path / "unused").aggregator
    before = aggregator.load(told.checkpoint(3), told.outer_file(3).read_bytes())
    weights_P = before.weights_P * np.float32(1.01)
    told.put_checkpoint(3, aggregator.arrays(Checkpoint(weights_P, before.outer)), dict(before.outer))
    assert_named(
        check(told.path),
        "a checkpoint file is not what the payloads give",
        "checkpoints/round-00003.safetensors",
        alone=True,
    )
    assert check(told.path, 1).ok  # what a checkpoint holds is level 2's


def test_a_config_changed_in_manifest_json_only(true: Stage, tmp_path: Path) -> None:
    told = copy_run(true.run, tmp_path / "told")
    value = json.loads((told / "manifest.json").read_bytes())
    value["config"]["audit"]["rate_ppm"] = 0
    (told / "manifest.json").write_bytes(canonical_json(value))
    assert_named(check(told), "manifest.json is not the manifest of the log", "manifest.json", alone=True)


def test_the_manifest_of_another_run(true: Stage, trusting: Stage, tmp_path: Path) -> None:
    told = copy_run(true.run, tmp_path / "told")
    (told / "manifest.json").write_bytes((trusting.run / "manifest.json").read_bytes())
    assert_named(check(told), "manifest.json is not the manifest of the log", "manifest.json")


def test_a_second_manifest_beside_the_first(true: Stage, tmp_path: Path) -> None:
    """Only manifest.json says what the run is; its log's entry 0 has to agree, whatever lies beside it."""
    told = copy_run(true.run, tmp_path / "told")
    (told / "log" / "manifest.json").write_bytes((told / "manifest.json").read_bytes())
    assert_named(check(told), "an unexpected or stale file lies in the log", "log/manifest.json", alone=True)


def test_records_of_another_run(true: Stage, trusting: Stage, tmp_path: Path) -> None:
    other = trusting.forger(tmp_path / "unused").turns[LAST].of(Commitment)
    forger = true.forger(tmp_path / "told")
    forger.lie("commitment", LAST, lambda found, _: [other[0], *found[1:]])
    assert_named(check(forger.tell()), "the run id in the commitment is another", "commitment of round 3")


# --- lies told while the run goes on: members sign what they are shown ---


def test_another_initial_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organiser starts from weights of its own instead of those of the seed."""
    monkeypatch.setattr(
        pipeline.run, "initial_weights", lambda config, seed: initial_weights(config, seed + 1)
    )
    run = tmp_path / "run"
    tiny_run(run, tmp_path / "home", tiny_config(run={"rounds": 1}))
    assert check(run, 1).ok
    answer = check(run)
    assert_named(answer, STEP, "manifest.json, initial")
    assert answer.failures[0]["where"] == "manifest.json, initial"


def test_an_outer_state_that_was_wrong_all_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From round 1 on: what follows is consistent with it, and signed by everyone."""
    run, home = tmp_path / "run", tmp_path / "home"
    from pipeline.checkpoint import Aggregator

    true_step = Aggregator.step

    def step(self: Aggregator, before: Checkpoint, work: Any, outer_lr: str) -> Checkpoint:
        after = true_step(self, before, work, outer_lr)
        outer = {name: array * np.float32(2) for name, array in after.outer.items()}
        return Checkpoint(after.weights_P, outer)

    with monkeypatch.context() as patch:
        patch.setattr(Aggregator, "step", step)
        tiny_run(run, home, tiny_config(run={"rounds": 2}, outer={"momentum": 0.9}))
    assert check(run, 1).ok
    answer = check(run)
    first = answer.failures[0]
    assert (first["what"], first["where"]) == (
        "the outer state are not what the payloads give",
        "round 1, attempt 0",
    )
    assert_named(answer, STEP, "round 2, attempt 0")


def test_a_codec_and_a_zero_state_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.run, "arrays_digest", lambda arrays: "blake3:" + "5" * 64)
    from pipeline.run import create_run
    from tests.tiny import quiet

    run = tmp_path / "run"
    create_run(tiny_config(), RunFolder(run), tmp_path / "home", quiet)
    assert_named(check(run), "the zero state is wrong", "manifest.json, zero_state", alone=True)


# --- what level 3 is for ---


def test_a_validation_loss_made_up(true: Stage, tmp_path: Path) -> None:
    forger = true.forger(tmp_path / "told")
    fields("round-close", LAST, val_loss=1)(forger)
    told = forger.tell()
    assert check(told).ok
    assert_named(check(told, 3), "the validation loss was not measured", "round 3", alone=True)


def test_an_adversary_taken_back_by_a_rewritten_start(true: Stage, tmp_path: Path) -> None:
    """Round 1 told so that c03 never failed: without its auditors' keys its work stays unaudited."""
    forger = true.forger(tmp_path / "told")
    entries("verdict", 0, drop(3))(forger)
    told = forger.tell(1, end=False)
    answer = check(told)
    assert answer.ok
    assert not answer.complete
    close = json.loads(canonical_json_of_close(told))
    assert 3 not in [line["slot"] for line in close["accepted"]]


def canonical_json_of_close(told: Path) -> bytes:
    from verification.fsck import check_run

    return canonical_json(check_run(told).turns[-1].close)


def noise(forger: Forger, slot: int) -> bytes:
    """A payload of the right form that no work stands behind."""
    compression = forger.manifest.config["compression"]
    codec = Codec(compression["chunk"], compression["k"], forger.aggregator.codec.length)
    return codec.encode(np.random.default_rng(slot).normal(size=codec.length).astype(np.float32))


def swapped(slot: int, sealed: Entry) -> Callable[[list[Entry]], list[Entry]]:
    return lambda found: [sealed if getattr(r, "slot", None) == slot else (r, d) for r, d in found]


def undone(stage: Stage, forger: Forger, slot: int, **opening: Any) -> Reveal:
    """Replace a slot's commitment and reveal of the last turn, with its contributor's key, by noise."""
    commitment, reveal = forger.signed_work(
        forger.turns[LAST].of(Reveal, slot=slot)[0][0],
        stage.keys[f"c{slot:02d}"],
        noise(forger, slot),
        **opening,
    )

    entries("commitment", LAST, swapped(slot, commitment))(forger)
    entries("reveal", LAST, swapped(slot, reveal))(forger)
    assert isinstance(reveal[0], Reveal)
    return reveal[0]


def test_undone_work_of_a_colluding_contributor(trusting: Stage, tmp_path: Path) -> None:
    """Nobody was drawn: the log and the aggregation hold, only the recomputation tells."""
    forger = trusting.forger(tmp_path / "told")
    undone(trusting, forger, 1, loss_last=1)
    told = forger.tell()
    assert check(told).ok
    answer = check(told, 3)
    where = "round 3, attempt 0, slot 1"
    assert_named(answer, "the payload of an accepted contribution was not computed", where)
    assert_named(answer, "the last loss of an accepted contribution was not computed", where)
    assert {f["where"] for f in answer.failures} == {where}


def test_a_malformed_payload_accepted(trusting: Stage, tmp_path: Path) -> None:
    """Its length and digest are right and contributor and coordinator agree: the codec refuses it."""
    forger = trusting.forger(tmp_path / "told")
    length = forger.aggregator.codec.payload_bytes
    bad = b"\xff" * length
    with pytest.raises(FormatError):
        forger.aggregator.codec.decode(bad)
    reveal = forger.turns[LAST].of(Reveal, slot=1)[0][0]
    assert isinstance(reveal, Reveal)
    commitment, opened = forger.signed_work(reveal, trusting.keys["c01"], bad)
    for kind, sealed in (("commitment", commitment), ("reveal", opened)):
        entries(kind, LAST, swapped(1, sealed))(forger)
    # There is no aggregate with it, so the forger's is without.
    forger.aggregated = lambda work: [item for item in work if item.payload != bad]
    answer = check(forger.tell())
    assert_named(answer, "an accepted payload is malformed", "round 3, attempt 0, slot 1")


@pytest.mark.parametrize(
    ("claim", "value", "what"),
    [
        ("next_state", "blake3:" + "3" * 64, "next state"),
        ("trace_root", "sha256:" + "3" * 64, "trace"),
        ("trace_leaves", 7, "number of trace leaves"),
        ("loss_first", 3, "first loss"),
    ],
)
def test_one_claim_of_a_colluding_contributor(
    trusting: Stage, tmp_path: Path, claim: str, value: object, what: str
) -> None:
    """Honest work, and one field of the opening that it did not give."""
    forger = trusting.forger(tmp_path / "told")
    true_reveal = forger.turns[LAST].of(Reveal, slot=1)[0][0]
    assert isinstance(true_reveal, Reveal)
    told = replace(true_reveal, opening=replace(true_reveal.opening, **{claim: value}))
    place = (told.protocol, told.run, told.round, told.attempt, told.slot, told.member, told.key)
    commitment, key = Commitment(*place, told.commitment), trusting.keys["c01"]
    for kind, record in (("commitment", commitment), ("reveal", told)):
        entries(kind, LAST, swapped(1, (record, seal_record(record, key))))(forger)
    run = forger.tell()
    assert check(run).ok
    assert_named(
        check(run, 3),
        f"the {what} of an accepted contribution was not computed",
        "round 3, attempt 0, slot 1",
        alone=True,
    )


def test_a_window_used_twice_with_its_contributors_help(trusting: Stage, tmp_path: Path) -> None:
    """The roster hands out used windows and the contributor signs for them."""
    forger = trusting.forger(tmp_path / "told")
    fields("round-open", LAST, roster=item("roster", 0, positions=((0, 6),)))(forger)
    reveal = undone(trusting, forger, 0, positions=((0, 6),))
    assert reveal.opening.positions == ((0, 6),)
    answer = check(forger.tell())
    assert_named(answer, "the positions of slot 0 in the roster of round 3 is wrong", OPEN)
    assert_named(answer, "positions accepted in round 3 were accepted before", CLOSE)


def test_a_broken_lineage_with_its_contributors_help(trusting: Stage, tmp_path: Path) -> None:
    """The contributor starts from nothing again, and all agree on it."""
    forger = trusting.forger(tmp_path / "told")
    zero = forger.manifest.zero_state
    fields("round-open", LAST, roster=item("roster", 0, start_state=zero))(forger)
    undone(trusting, forger, 0, start_state=zero)
    assert_named(
        check(forger.tell()),
        "the start_state of slot 0 in the roster of round 3 is wrong",
        OPEN,
        alone=True,
    )


def test_a_rubber_stamped_verdict(true: Stage, tmp_path: Path) -> None:
    """Contributor and both auditors agree on work that was never done."""
    forger = true.forger(tmp_path / "told")
    leaves = ("sha256:" + "1" * 64,)
    reveal = undone(true, forger, 1, trace_root=trace_root(leaves), trace_leaves=1)

    def stamp(found: list[Entry]) -> list[Entry]:
        stamped: list[Entry] = []
        for record, data in found:
            assert isinstance(record, Verdict)
            if record.slot != 1:
                stamped.append((record, data))
                continue
            claim = reveal.opening
            told = replace(
                record,
                payload=claim.payload,
                next_state=claim.next_state,
                trace=leaves,
                loss_first=claim.loss_first,
                loss_last=claim.loss_last,
            )
            stamped.append((told, seal_record(told, true.keys[told.auditor])))
        return stamped

    entries("verdict", LAST, stamp)(forger)
    told = forger.tell()
    assert check(told).ok
    answer = check(told, 3)
    where = "round 3, attempt 0, slot 1"
    assert_named(answer, "the payload of an accepted contribution was not computed", where)
    assert_named(answer, "the trace of an accepted contribution was not computed", where)


def test_an_auditor_cannot_stamp_what_it_did_not_compute(true: Stage, tmp_path: Path) -> None:
    """A pass needs the trace behind the contributor's root; no record of the contributor holds it."""
    forger = true.forger(tmp_path / "told")

    def stamp(found: list[Entry]) -> list[Entry]:
        stamped: list[Entry] = []
        for record, data in found:
            assert isinstance(record, Verdict)
            if record.slot == 3:
                claim = forger.turns[0].of(Reveal, slot=3)[0][0]
                assert isinstance(claim, Reveal)
                told = replace(
                    record,
                    outcome="pass",
                    differs=(),
                    payload=claim.opening.payload,
                    next_state=claim.opening.next_state,
                    loss_first=claim.opening.loss_first,
                    loss_last=claim.opening.loss_last,
                )
                stamped.append((told, seal_record(told, true.keys[told.auditor])))
            else:
                stamped.append((record, data))
        return stamped

    entries("verdict", 0, stamp)(forger)
    assert_named(
        check(forger.tell(1, end=False)),
        "the outcome in the verdict of look 1 of slot 3 in round 1 is wrong",
        "verdict of round 1",
    )


def test_an_honest_contributor_framed_by_two_auditors(true: Stage, tmp_path: Path) -> None:
    """Both auditors sign the same wrong result: a fault with evidence at level 2, cleared at level 3."""
    forger = true.forger(tmp_path / "told")

    def frame(found: list[Entry]) -> list[Entry]:
        framed: list[Entry] = []
        for record, data in found:
            assert isinstance(record, Verdict)
            if record.slot != 1:
                framed.append((record, data))
                continue
            told = replace(record, outcome="fail", differs=("payload",), payload="blake3:" + "4" * 64)
            framed.append((told, seal_record(told, true.keys[told.auditor])))
        return framed

    def again(found: list[Entry], f: Forger) -> list[Entry]:
        turn = f.state.open_turn
        assert turn.second
        [name] = next(look.auditors for look in turn.second.looks if look.slot == 1)
        told = replace(turn.verdicts[1, 1], look=2, auditor=name, key=true.keys[name].public)
        return [*found, (told, seal_record(told, true.keys[name]))]

    entries("verdict", LAST, frame)(forger)
    forger.lie("verdict2", LAST, again)
    told = forger.tell()
    assert check(told).ok, names(check(told))
    assert_named(
        check(told, 3),
        "a contribution was rejected as a fault although it was computed as claimed",
        "round 3, attempt 0, slot 1",
        alone=True,
    )


# --- what a folder alone cannot show ---

SILENCED: dict[str, Callable[[Forger], None]] = {
    "late": entries("commitment", LAST, drop(0)),
    "unrevealed": all_of(
        entries("reveal", LAST, drop(0)),
        fields("reveal-close", LAST, revealed=(1, 2), refused=(Refusal(0, "unrevealed"),)),
    ),
    "malformed": fields("reveal-close", LAST, revealed=(1, 2), refused=(Refusal(0, "malformed-payload"),)),
    "unserved": fields("served", LAST, served=(1, 2), unserved=(0,)),
    "unaudited": entries("verdict", LAST, drop(0)),
}


@pytest.mark.parametrize("name", SILENCED)
def test_silence_holds_but_gets_nobody_in(true: Stage, tmp_path: Path, name: str) -> None:
    """A coordinator can leave out what a member sent and say that it never came: no folder can show that.

    It costs the member its round and lets nothing in. Who saw an earlier head catches it.
    """
    head = check(true.run)
    forger = true.forger(tmp_path / "told")
    reveals = all_of(entries("reveal", LAST, drop(0)), fields("reveal-close", LAST, revealed=(1, 2)))
    if name == "late":
        reveals(forger)
    SILENCED[name](forger)
    told = forger.tell()
    answer = check(told)
    assert answer.ok, answer.failures
    close = json.loads(canonical_json_of_close(told))
    assert [line["slot"] for line in close["accepted"]] == [1, 2]
    assert (close["rejected"][0]["slot"], close["rejected"][0]["fault"]) == (0, False)
    seen = f"{head.log_size}:{head.log_head.removeprefix('sha256:')}"
    anchored = check(told, expect_head=seen)
    assert_named(anchored, f"the log does not contain the expected head of size {head.log_size}", "log")
