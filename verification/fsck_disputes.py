"""What the verdicts on one slot come to: sides and voices, who looks once more, who is overruled.

Owns these rules of the protocol (section 6, settling and disputes) and what of a slot's verdicts they need.
Whether a verdict is sound, and where it stands, is for `fsck_audit`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from verification.fsck_findings import Record
from verification.fsck_json import sha256_text, write_canonical

_ENOUGH = 2
"""Voices with which a side may prevail, and the lead with which nobody looks again."""


class View(NamedTuple):
    """What of a verdict is held against others: digests of what makes a side, and of what is alike in it."""

    fails: bool
    side: str
    numerics: str
    deviations: str


def view_of(verdict: Record) -> View:
    """What a verdict says, in a few digests."""
    parts = ("outcome", "payload", "next_state", "trace", "loss_first", "loss_last")
    side = [verdict[key] for key in parts]
    return View(
        verdict["outcome"] == "fail",
        sha256_text(write_canonical(side)),
        verdict["class"],
        sha256_text(write_canonical(verdict["deviations"])),
    )


def voices(views: Iterable[View]) -> dict[View, int]:
    """How many voices each side has, the side by one of its views."""
    sides: dict[str, View] = {}
    largest: Counter[tuple[str, str]] = Counter()
    for view, count in Counter(views).items():
        sides.setdefault(view.side, view)
        key = (view.side, view.numerics)
        largest[key] = max(largest[key], count)
    return {
        view: sum(count for (side, _), count in largest.items() if side == name)
        for name, view in sides.items()
    }


def prevailing(views: Iterable[View]) -> View | None:
    """A view of the side that prevails; None where none does."""
    ranked = sorted(((count, view) for view, count in voices(views).items()), reverse=True)
    if not ranked or ranked[0][0] < _ENOUGH or (len(ranked) > 1 and ranked[1][0] == ranked[0][0]):
        return None
    return ranked[0][1]


def lead(views: Iterable[View], *, appealed: bool) -> int:
    """By how many voices the first side is before the next, an appeal being one for the side that passes."""
    counts = voices(views)
    passing = max((count for view, count in counts.items() if not view.fails), default=0)
    ranked = sorted(counts.values(), reverse=True)
    if appealed:
        # Sound verdicts that pass are all of one side; where there is none the appeal is a side of its own.
        if passing:
            ranked.remove(passing)
        ranked = sorted([*ranked, passing + 1], reverse=True)
    return sum(ranked[:1]) - sum(ranked[1:2])


def is_contested(views: Iterable[View], *, appealed: bool) -> bool:
    """Whether verdicts disagree on a slot, or its contributor does."""
    distinct = set(views)
    classes = {(view.side, view.numerics) for view in distinct}
    return appealed or len({view.side for view in distinct}) > 1 or len(classes) < len(distinct)


def overruled(views: Mapping[int, View]) -> list[int]:
    """The looks whose auditors are overruled: two or more of their class, alike, of the side that prevails,
    say something else, and theirs is not one of two or more either.
    """
    winner = prevailing(views.values())
    if winner is None:
        return []
    mine = Counter(view for view in views.values() if view.side == winner.side)
    agreed = {view for view, count in mine.items() if count > 1}
    classes = {view.numerics for view in agreed}
    return [look for look, view in sorted(views.items()) if view.numerics in classes and view not in agreed]


class Dispute:
    """One slot that somebody looked at, verdict by verdict.

    `order` is the draw's list, `first` whom first-looks names, `second` the second draw's candidates, None
    where it has no look for the slot.
    """

    def __init__(
        self, order: Sequence[str], operators: Mapping[str, str], first: str, second: Sequence[str] | None
    ) -> None:
        self.appealed = False
        self._order = order
        self._operators = operators
        self._called: list[Sequence[str] | None] = [order, second]
        """Who is asked, by look, as far as is known."""
        self._first = first
        self._views: dict[int, View] = {}
        self._authors: dict[int, str] = {}
        self._silent: set[str] = set()
        """Who missed a look up to that of the number `_told`."""
        self._told = 0

    def called(self, look: int) -> Sequence[str]:
        """Who may give the verdict of a look after the verdicts so far: nobody where there is none."""
        self._catch_up()
        if look == 1:
            return [self._first]
        return (self._called[look - 1] if look <= len(self._called) else None) or []

    def take(self, look: int, verdict: Record) -> None:
        """A verdict by one of those called, the first of this look."""
        self._views[look] = view_of(verdict)
        self._authors[look] = verdict["auditor"]

    def _catch_up(self) -> None:
        """Looks from 3 on, as far as the verdicts make them due."""
        while True:
            look = len(self._called) + 1
            before = [view for number, view in self._views.items() if number < look]
            due = look - 1 in self._views and is_contested(before, appealed=self.appealed)
            if not due or lead(before, appealed=self.appealed) >= _ENOUGH:
                return
            heard = {self._operators[name] for name in self._authors.values()}
            for number in range(self._told + 1, look):
                self._silent.update(self._missed(number))
            self._told = look - 1
            self._called.append(
                [n for n in self._order if self._operators[n] not in heard and n not in self._silent]
            )

    def _missed(self, look: int) -> list[str]:
        """Those known to have missed a look."""
        names = self._called[look - 1] or []
        author = self._first if look == 1 else self._authors.get(look)
        before = list(itertools.takewhile(lambda name: name != author, names))
        return [*before, self._first] if look == 1 and 1 not in self._views else before

    def missed(self) -> list[tuple[str, int]]:
        """(auditor, look) of those that missed a look, when no verdict comes any more."""
        self._catch_up()
        return [(name, look) for look in range(1, len(self._called) + 1) for name in self._missed(look)]

    def reason(self) -> str | None:
        """What the verdicts make of the contribution: a reason to reject it, or None."""
        if 1 not in self._views:
            return "unaudited"
        if 2 not in self._views:
            if self._views[1].fails:
                return "unconfirmed"
            return None if self._called[1] is None else "unaudited"
        winner = prevailing(self._views.values())
        if winner is None:
            return "disputed"
        return "failed-audit" if winner.fails else None

    def overruled(self) -> dict[int, tuple[str, bool]]:
        """By look: who is overruled, and whether it said that the contribution failed."""
        return {look: (self._authors[look], self._views[look].fails) for look in overruled(self._views)}
