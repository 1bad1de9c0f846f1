"""Lies of a coordinator that rewrites a finished run and signs it again; `verify` names each.

The forger holds the coordinator's key and chain, in the last two parts a contributor's and an auditor's key
too. LIES is the table: what is lied about, the words `verify` finds for it, and whether nothing else is named.
"""

from __future__ import annotations

import hashlib
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
from tests.tiny import copy_run, run_to_end, tiny_config, tiny_run
from verification.encoding import canonical_json
from verification.errors import FormatError
from verification.judge import trace_root
from verification.keys import PrivateKey
from verification.plans import plan_draw
from verification.records import (
    Commitment,
    Draw,
    Refusal,
    Reveal,
    SecondDraw,
    Verdict,
    seal_record,
)

LAST = 2  # turns are counted from 0


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


# --- changes ---


def fields(kind: str, turn: int, **changes: Any) -> Callable[[Forger], None]:
    """Change fields of the coordinator's record of a kind; a callable is given the true record."""

    def change(entries: list[Entry], _: Forger) -> list[Entry]:
        record: Any = entries[0][0]
        values = {k: v(record) if callable(v) else v for k, v in changes.items()}
        return [(replace(record, **values), None)]

    return lambda forger: forger.lie(kind, turn, change)


def entries(kind: str, turn: int, change: Callable[[list[Entry]], list[Entry]]) -> Callable[[Forger], None]:
    return lambda forger: forger.lie(kind, turn, lambda found, _: change(found))


def all_of(*lies: Callable[[Forger], None]) -> Callable[[Forger], None]:
    def several(forger: Forger) -> None:
        for lie in lies:
            lie(forger)

    return several


def item(name: str, index: int, **changes: Any) -> Callable[[Any], Any]:
    """A tuple field of a record with one of its items changed."""

    def change(record: Any) -> Any:
        found = list(getattr(record, name))
        values = {k: v(getattr(found[index], k)) if callable(v) else v for k, v in changes.items()}
        found[index] = replace(found[index], **values)
        return tuple(found)

    return change


def without(name: str, index: int) -> Callable[[Any], Any]:
    return lambda record: tuple(x for i, x in enumerate(getattr(record, name)) if i != index)


def drop(*slots: int) -> Callable[[list[Entry]], list[Entry]]:
    return lambda found: [(r, d) for r, d in found if getattr(r, "slot", None) not in slots]


def settled(turn: int, slot: int, reason: str | None) -> Callable[[Forger], None]:
    return lambda forger: forger.settle(turn, slot, reason)


def plus(n: int) -> Callable[[int], int]:
    return lambda value: value + n


def resealed(change: Callable[[Any], Any]) -> Callable[[list[Entry]], list[Entry]]:
    """The first member record of the kind changed, and signed with the coordinator's key."""
    return lambda found: [(change(found[0][0]), None), *found[1:]]


def forgetful(forger: Forger) -> None:
    """A step that keeps slot 0 out of the aggregate although the close lists it."""
    forger.step = lambda f, before, work, open_: f.aggregator.step(before, work[1:], open_.outer_lr)


def heavier(forger: Forger) -> None:
    """A step that counts slot 2 double."""

    def step(f: Forger, before: Checkpoint, work: Any, open_: Any) -> Checkpoint:
        work = [replace(w, tokens=w.tokens * (2 if w.slot == 2 else 1)) for w in work]
        return f.aggregator.step(before, work, open_.outer_lr)

    forger.step = step


def other_momentum(forger: Forger) -> None:
    """A step from another outer state: the weights that it gives fit the outer state that it leaves."""

    def step(f: Forger, before: Checkpoint, work: Any, open_: Any) -> Checkpoint:
        outer = {name: array + np.float32(0.01) for name, array in before.outer.items()}
        return f.aggregator.step(Checkpoint(before.weights_P, outer), work, open_.outer_lr)

    forger.step = step


def own_weights(forger: Forger) -> None:
    """A step whose last weight is the forger's."""

    def step(f: Forger, before: Checkpoint, work: Any, open_: Any) -> Checkpoint:
        after = f.aggregator.step(before, work, open_.outer_lr)
        weights_P = after.weights_P.copy()
        weights_P[-1] = np.nextafter(weights_P[-1], np.float32(9))
        return Checkpoint(weights_P, after.outer)

    forger.step = step


def own_outer(forger: Forger) -> None:
    def step(f: Forger, before: Checkpoint, work: Any, open_: Any) -> Checkpoint:
        after = f.aggregator.step(before, work, open_.outer_lr)
        return Checkpoint(after.weights_P, {n: a + np.float32(1) for n, a in after.outer.items()})

    forger.step = step


def other_rate(forger: Forger) -> None:
    """The open tells the manifest's outer rate; the step takes another."""
    forger.step = lambda f, before, work, open_: f.aggregator.step(before, work, (0.25).hex())


def redrawn(link: Callable[[Forger], str]) -> Callable[[Forger], None]:
    """The draw of the last turn by another link, its seed and its audits computed from that."""

    def change(found: list[Entry], forger: Forger) -> list[Entry]:
        return [(plan_draw(forger.state, forger.log.head, forger.log.checkpoint, link(forger)), None)]

    return lambda forger: forger.lie("draw", LAST, change)


def lucky(found: list[Entry], forger: Forger) -> list[Entry]:
    """A seed of the forger's choice: nobody that he likes is drawn."""
    draw = found[0][0]
    assert isinstance(draw, Draw)
    return [(replace(draw, seed="sha256:" + "7" * 64), None)]


def old_head(found: list[Entry], forger: Forger) -> list[Entry]:
    """Seeded with a head that was known before the reveals."""
    from verification.notes import parse_checkpoint

    draw = found[0][0]
    assert isinstance(draw, Draw)
    note = forger.turns[LAST - 1].one(SecondDraw).head
    head = parse_checkpoint(note, forger.manifest.log_vkey)
    return [(plan_draw(forger.state, head, note, draw.link), None)]


def as_it_was(kind: type, name: str) -> Callable[[Forger], None]:
    """Keep the coordinator's record of the last turn as it was shown, heads and seeds with it."""
    return lambda forger: forger.lie(name, LAST, lambda found, f: [(f.turns[LAST].one(kind), None)])


def reveals_first(forger: Forger) -> None:
    reveals = forger.turns[LAST].of(Reveal)
    forger.lie("commit-close", LAST, lambda found, _: [*reveals, *found])
    forger.lie("reveal", LAST, lambda found, _: [])


def without_turn(number: int) -> Callable[[Forger], None]:
    return lambda forger: forger.turns.pop(number) and None


def manifest_again(forger: Forger) -> None:
    forger.lie("round-open", 1, lambda found, f: [(f.manifest, None), *found])


def earlier(found: list[Entry], forger: Forger) -> list[Entry]:
    return [forger.turns[LAST - 1].of(Commitment)[0], *found[1:]]


def lifted(forger: Forger) -> None:
    """c03 failed its audit in round 1 and is in the roster of round 2."""
    credits_ = [c for c in forger.turns[0].entries if getattr(c[0], "kind", "") == "round-close"]
    assert credits_
    fields("round-close", 0, quarantined=())(forger)


@dataclass
class Lie:
    """How it is told, what names it, where; `alone`: nothing else is named."""

    tell: Callable[[Forger], None]
    what: str
    where: str = "round-close of round 3"
    alone: bool = False
    turns: int = 3
    end: bool = True


OPEN, CLOSE, DRAW = "round-open of round 3", "round-close of round 3", "draw of round 3"
SEED = r"the seed of draw in round 3 is wrong"
STEP = "the weights are not what the payloads give"
LIES: dict[str, Lie] = {
    # what the aggregate is made of
    "a wrong weight told": Lie(
        fields("round-close", LAST, accepted=item("accepted", 0, weight=plus(1))),
        "the weight of slot 0 in round 3 is wrong",
        alone=True,
    ),
    "a wrong weight used": Lie(heavier, STEP, "round 3, attempt 0"),
    "an accepted payload left out of the close": Lie(
        fields("round-close", LAST, accepted=without("accepted", 0)),
        "slot 0 is neither accepted nor rejected in round 3",
    ),
    "an accepted payload rejected as disputed": Lie(
        settled(LAST, 0, "disputed"), "slot 0 is settled wrongly in round 3", alone=True
    ),
    "an accepted payload left out of the aggregate": Lie(forgetful, STEP, "round 3, attempt 0"),
    "another payload in its place": Lie(
        fields(
            "round-close",
            LAST,
            accepted=lambda r: item("accepted", 0, payload=r.accepted[1].payload)(r),
        ),
        "the payload of slot 0 in round 3 is wrong",
        alone=True,
    ),
    "tokens nobody trained on": Lie(
        fields("round-close", LAST, accepted=item("accepted", 0, tokens=plus(16))),
        "the tokens of slot 0 in round 3 is wrong",
    ),
    # verdicts
    "a verdict dropped, its slot accepted": Lie(
        all_of(entries("verdict", LAST, drop(0)), settled(LAST, 0, None)),
        "slot 0 is accepted in round 3 though its drawn audit was not done",
        alone=True,
    ),
    "a verdict dropped, its auditor not told as missed": Lie(
        all_of(
            entries("verdict", LAST, drop(0)),
            settled(LAST, 0, None),
            fields("round-close", LAST, missed=lambda r: tuple(m for m in r.missed if m.slot)),
        ),
        "a0[01] gave no verdict for look 1 of slot 0 in round 3",
    ),
    "a failed audit turned into a pass": Lie(
        settled(0, 3, None),
        "slot 3 is settled wrongly in round 1",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "the verdicts against an adversary dropped": Lie(
        all_of(entries("verdict", 0, drop(3)), settled(0, 3, None)),
        "slot 3 is accepted in round 1 though its drawn audit was not done",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "a verdict rewritten": Lie(
        entries("verdict", 0, lambda found: [*found[:3], (replace(found[3][0], differs=(), outcome="pass"), None)]),
        "the verdict of look 1 of slot 3 in round 1 is not signed by a0[01]",
        "verdict of round 1",
        turns=1,
        end=False,
    ),
    "a disputed slot of a second look forgotten": Lie(
        fields("second-draw", 0, looks=()),
        "the second looks of round 1 do not follow from verdicts and seed",
        "second-draw of round 1",
        turns=1,
        end=False,
    ),
    "the evidence withheld": Lie(
        fields("round-close", 0, rejected=item("rejected", 0, evidence=None)),
        "the evidence of rejected slot 3 in round 1 is missing",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    # the lottery
    "a drawn audit undone": Lie(
        fields("draw", LAST, drawn=without("drawn", 0)),
        "the drawn slots of round 3 do not follow from the seed",
        DRAW,
    ),
    "another auditor called first": Lie(
        fields(
            "draw",
            LAST,
            drawn=lambda r: item("drawn", 0, auditors=r.drawn[0].auditors[::-1])(r),
        ),
        "the auditors of slot 0 in round 3 do not follow from the seed",
        DRAW,
    ),
    "another link": Lie(
        redrawn(lambda _: hashlib.sha256(b"mine").hexdigest()),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
    ),
    "a link used before": Lie(
        redrawn(lambda f: f.chain.link(3)), "the link of draw in round 3 is not link 5 of the draw chain", DRAW
    ),
    "a later link": Lie(
        redrawn(lambda f: f.chain.link(6)), "the link of draw in round 3 is not link 5 of the draw chain", DRAW
    ),
    "another seed": Lie(lambda f: f.lie("draw", LAST, lucky), SEED, DRAW),
    "a draw from an earlier head": Lie(
        lambda f: f.lie("draw", LAST, old_head), "head 2 does not sign exactly the entries before it", DRAW
    ),
    "audited less than the rate": Lie(
        fields("round-open", LAST, roster=item("roster", 0, audit_ppm=0)),
        "the audit_ppm of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    # who works on what, from what
    "a broken lineage": Lie(
        fields(
            "round-open", LAST, roster=lambda r: item("roster", 0, start_state=r.roster[1].start_state)(r)
        ),
        "the start_state of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    "a window used twice": Lie(
        fields("round-open", LAST, roster=item("roster", 0, positions=((0, 6),))),
        "the positions of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    "a window that waits given to nobody": Lie(
        fields("round-close", LAST, cursor=lambda r: r.cursor + 2),
        "the cursor after round 3 is wrong",
        alone=True,
    ),
    "a contributor taken off the roster after the draw": Lie(
        fields("round-open", LAST, roster=without("roster", 1)),
        "the roster of round 3 has the wrong slots",
        OPEN,
    ),
    "a roster changed, the draw as it was shown": Lie(
        all_of(
            fields("round-open", LAST, roster=item("roster", 0, steps=4)), as_it_was(Draw, "draw")
        ),
        "head 2 does not sign exactly the entries before it",
        DRAW,
    ),
    "an auditor taken off the list": Lie(
        fields("round-open", LAST, auditors=without("auditors", 1)), "the auditors of round 3 are wrong", OPEN
    ),
    "a quarantine lifted": Lie(
        lifted,
        "the members in quarantine after round 1 are wrong",
        "round-close of round 1",
        turns=2,
        end=False,
    ),
    "another inner learning rate": Lie(
        fields("round-open", LAST, inner_lr=lambda r: ((0.5).hex(), *r.inner_lr[1:])),
        "the inner learning rate of step 0 in round 3 is wrong",
        OPEN,
        alone=True,
    ),
    "another outer learning rate": Lie(
        fields("round-open", LAST, outer_lr=(0.5).hex()),
        "the outer learning rate of round 3 is wrong",
        OPEN,
        alone=True,
    ),
    "another outer learning rate used": Lie(other_rate, STEP, "round 3, attempt 0"),
    "no snapshot where one is due": Lie(
        fields("round-open", LAST, snapshot=False), "the snapshot flag of round 3 is wrong", OPEN
    ),
    "a start from another checkpoint": Lie(
        fields(
            "round-open", LAST, base=lambda r: replace(r.base, weights="blake3:" + "0" * 64)
        ),
        "round 3 does not start from the last checkpoint",
        OPEN,
    ),
    # checkpoints
    "a wrong outer state, the weights following it": Lie(
        other_momentum, "the outer state are not what the payloads give", "round 3, attempt 0"
    ),
    "a wrong outer state left behind": Lie(
        own_outer, "the outer state are not what the payloads give", "round 3, attempt 0"
    ),
    "one weight of the last checkpoint moved by a bit": Lie(own_weights, STEP, "round 3, attempt 0"),
    # accounts
    "credit for nothing": Lie(
        fields("round-close", LAST, credits=lambda r: item("credits", 2, earned=plus(1000))(r)),
        "the earned credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "credit vested early": Lie(
        fields("round-close", LAST, credits=lambda r: item("credits", 2, vested=plus(96))(r)),
        "the vested credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "a forfeit forgiven": Lie(
        fields("round-close", 0, credits=lambda r: item("credits", 5, earned=64)(r)),
        "the earned credit of c03 after round 1 is wrong",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "a train loss made up": Lie(
        fields("round-close", LAST, train_loss=lambda r: r.train_loss - 1),
        "the train loss of round 3 is wrong",
        alone=True,
    ),
    "another total of tokens": Lie(
        fields("run-close", -1, tokens=lambda r: r.tokens + 1),
        "the tokens of the run-close are wrong",
        "run-close",
        alone=True,
    ),
    "another number of rounds": Lie(
        fields("run-close", -1, rounds=4), "the rounds of the run-close are wrong", "run-close", alone=True
    ),
    "other last weights": Lie(
        fields("run-close", -1, weights="blake3:" + "0" * 64),
        "the weights of the run-close are wrong",
        "run-close",
        alone=True,
    ),
    # the log as a whole
    "a second manifest": Lie(manifest_again, "a record is out of order", "log entry 27, manifest"),
    "a commitment replaced": Lie(
        entries("commitment", LAST, resealed(lambda c: replace(c, commitment="sha256:" + "1" * 64))),
        "the commitment of slot 0 in round 3 is not signed by c00",
        "commitment of round 3",
    ),
    "a reveal replaced": Lie(
        entries("reveal", LAST, resealed(lambda r: replace(r, salt="1" * 64))),
        "the reveal of slot 0 in round 3 is not signed by c00",
        "reveal of round 3",
    ),
    "a commitment of an earlier round": Lie(
        lambda f: f.lie("commitment", LAST, earlier),
        "the round in the commitment is not that of its round-open",
        "commitment of round 2",
    ),
    "commitments in another order": Lie(
        entries("commitment", LAST, lambda found: found[::-1]),
        "the commitment of slot 1 in round 3 is out of order",
        "commitment of round 3",
    ),
    "reveals before the commitments are closed": Lie(
        reveals_first, "a record is out of order", "reveal"
    ),
    "a turn deleted": Lie(
        without_turn(1), "the round in the commitment is not that of its round-open", "commitment of round 3"
    ),
    "the last turn deleted": Lie(
        without_turn(2), "the run is closed before its last round", "run-close", alone=True
    ),
    "the first turn told twice": Lie(
        lambda f: f.turns.insert(1, f.turns[0]),
        "the round in the commitment is not that of its round-open",
        "commitment of round 1",
    ),
}  # fmt: skip


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
    assert_named(
        check(told), "an unexpected or stale file lies in the log", "log/manifest.json", alone=True
    )


def test_records_of_another_run(true: Stage, trusting: Stage, tmp_path: Path) -> None:
    other = trusting.forger(tmp_path / "unused").turns[LAST].of(Commitment)
    forger = true.forger(tmp_path / "told")
    forger.lie("commitment", LAST, lambda found, _: [other[0], *found[1:]])
    assert_named(
        check(forger.tell()), "the run id in the commitment is another", "commitment of round 3"
    )


# --- lies told while the run goes on: members sign what they are shown ---


def test_another_initial_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organiser starts from weights of its own instead of those of the seed."""
    monkeypatch.setattr(pipeline.run, "initial_weights", lambda config, seed: initial_weights(config, seed + 1))
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
    """Replace a slot's commitment and reveal of the last turn, with its contributor's key; nothing computed."""
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
    forger.aggregated = lambda work: [item for item in work if item.slot != 1]
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
    "malformed": fields(
        "reveal-close", LAST, revealed=(1, 2), refused=(Refusal(0, "malformed-payload"),)
    ),
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
