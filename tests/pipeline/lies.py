"""Lies for tests.pipeline.forger: how each is told, the words that name it, and where.

LIES is the table of what a coordinator with nothing but its own key may try on a finished run of three
rounds in which c03 (slot 3) failed its audit in round 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.checkpoint import Checkpoint
from tests.pipeline.forger import Entry, Forger
from verification.notes import parse_checkpoint
from verification.plans import plan_draw
from verification.records import (
    Commitment,
    Draw,
    Reveal,
    SecondDraw,
)

LAST = 2  # turns are counted from 0


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
        entries(
            "verdict", 0, lambda found: [*found[:3], (replace(found[3][0], differs=(), outcome="pass"), None)]
        ),
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
        redrawn(lambda f: f.chain.link(3)),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
    ),
    "a later link": Lie(
        redrawn(lambda f: f.chain.link(6)),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
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
        all_of(fields("round-open", LAST, roster=item("roster", 0, steps=4)), as_it_was(Draw, "draw")),
        "head 2 does not sign exactly the entries before it",
        DRAW,
    ),
    "an auditor taken off the list": Lie(
        fields("round-open", LAST, auditors=without("auditors", 1)), "the auditors of round 3 are wrong", OPEN
    ),
    "a quarantine lifted": Lie(
        # c03 failed its audit in round 1 and is in the roster of round 2
        fields("round-close", 0, quarantined=()),
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
        fields("round-open", LAST, base=lambda r: replace(r.base, weights="blake3:" + "0" * 64)),
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
        fields("round-close", LAST, credits=item("credits", 2, earned=plus(1000))),
        "the earned credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "credit vested early": Lie(
        fields("round-close", LAST, credits=item("credits", 2, vested=plus(96))),
        "the vested credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "a forfeit forgiven": Lie(
        fields("round-close", 0, credits=item("credits", 5, earned=64)),
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
    "reveals before the commitments are closed": Lie(reveals_first, "a record is out of order", "reveal"),
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
}
