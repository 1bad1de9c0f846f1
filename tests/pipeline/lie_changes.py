"""Ways to change what tests.pipeline.forger tells: the words that tests.pipeline.lies is written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.checkpoint import Checkpoint
from tests.pipeline.forger import Entry, Forger
from verification.plans import plan_draw
from verification.records import (
    Commitment,
    Draw,
    Refusal,
    Reveal,
    RoundClose,
    SecondDraw,
)

LAST = 2  # turns are counted from 0


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
        work = [replace(w, weight=w.weight * (2 if w.slot == 2 else 1)) for w in work]
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
        return [(plan_draw(forger.state, forger.log.checkpoint, link(forger), {}), None)]

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
    return [(plan_draw(forger.state, note, draw.link, {}), None)]


def as_it_was(kind: type, name: str) -> Callable[[Forger], None]:
    """Keep the coordinator's record of the last turn as it was shown, heads and seeds with it."""
    return lambda forger: forger.lie(name, LAST, lambda found, f: [(f.turns[LAST].one(kind), None)])


def reveals_first(forger: Forger) -> None:
    reveals = forger.turns[LAST].of(Reveal)
    forger.lie("commit-close", LAST, lambda found, _: [*reveals, *found])
    forger.lie("reveal", LAST, lambda found, _: [])


def refused(reason: str) -> Callable[[Forger], None]:
    """The reveal of slot 0 of the last turn refused, for whatever reason the coordinator likes."""
    return fields("reveal-close", LAST, revealed=(1, 2), refused=(Refusal(0, reason),))


def paid(found: list[Entry], forger: Forger) -> list[Entry]:
    """Credit for the auditor of slot 3 (two steps of two windows of 16), whatever became of its verdict."""
    close = found[0][0]
    assert isinstance(close, RoundClose)
    name = forger.state.open_turn.verdicts[3, 1].auditor
    told = [replace(c, earned=c.earned + 2 * 2 * 16) if c.member == name else c for c in close.credits]
    return [(replace(close, credits=tuple(told)), None)]


def without_turn(number: int) -> Callable[[Forger], None]:
    return lambda forger: forger.turns.pop(number) and None


def manifest_again(forger: Forger) -> None:
    forger.lie("round-open", 1, lambda found, f: [(f.manifest, None), *found])


def earlier(found: list[Entry], forger: Forger) -> list[Entry]:
    return [forger.turns[LAST - 1].of(Commitment)[0], *found[1:]]
