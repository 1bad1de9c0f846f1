"""Asking the auditors, and believing nothing of it until it is checked.

Owns who is asked next for which slot, and the conversation of an audit by tolerance: where a step ends is
served when its auditor has told a sketch of what it got. Does not own what is audited (auditing.py) or what
an answer must be like (verification/intake.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.parties import Answer, Begun, Members, deadline
from verification.errors import BarnraiseError, ProtocolError
from verification.intake import as_bytes, check_sketches, check_told, check_verdict
from verification.records import Verdict
from verification.state import Turn
from verification.tolerance import Sketch

Judged = tuple[Verdict, bytes]  # a checked verdict and its envelope


@dataclass(frozen=True)
class Wave:
    """Steps of an audit by tolerance whose starts are served together; `trace` opens these and no more."""

    segments: tuple[int, ...]
    trace: bytes


@dataclass(frozen=True)
class AuditCase:
    """What an auditor needs to judge one slot: the same bytes for every auditor.

    `waves` are empty unless the slot rests on tolerance; `sketches` are then those of the steps as they were
    served, by segment, which no auditor is shown.
    """

    open: bytes
    segments: tuple[int, ...]
    reveal: bytes
    checkpoint: bytes
    state: bytes
    seed: str
    trace: bytes | None
    waves: tuple[Wave, ...] = ()
    sketches: tuple[Sketch, ...] = ()

    @property
    def _first(self) -> tuple[Any, ...]:
        return list(self.segments), self.reveal, self.checkpoint, self.state, self.seed

    def audit_arguments(self, slot: int, look: int) -> tuple[Any, ...]:
        """Of `Auditor.audit`."""
        return (self.open, slot, look, *self._first, self.trace)

    def tell_arguments(self, slot: int, wave: int) -> tuple[Any, ...]:
        """Of `Auditor.tell`."""
        return (self.open, slot, *self._first, wave, self.waves[wave].trace)


class Panel:
    """The auditors as the coordinator sees them. `notice` takes one line for people."""

    def __init__(self, members: Members, notice: Callable[[str], None]) -> None:
        self._members = members
        self._notice = notice

    def verdicts(
        self,
        turn: Turn,
        look: int,
        orders: Mapping[int, tuple[str, ...]],
        cases: Mapping[int, AuditCase],
        begun: Mapping[int, Begun],
    ) -> dict[int, Judged]:
        """Ask auditors in the given order until each slot has a verdict or nobody is left to ask; by slot.

        `begun` are the first calls by slot, to the first of its auditors, that were begun earlier.
        """
        left = dict(orders)
        found: dict[int, Judged] = {}
        for slot in sorted(left.keys() & begun.keys()):
            entry = self._heard(turn, look, {left[slot][0]: slot}, cases, begun).get(slot)
            if entry:
                found[slot], left[slot] = entry, ()
        while any(left.values()):
            # One slot an auditor at a time: a slow auditor holds up only its own slots.
            batch: dict[str, int] = {}
            for slot, order in sorted(left.items()):
                if order:
                    batch.setdefault(order[0], slot)
            heard = self._heard(turn, look, batch, cases, {})
            for slot in batch.values():
                left[slot] = () if slot in heard else left[slot][1:]
            found |= heard
        return found

    def begin_verdicts(
        self, orders: Mapping[int, tuple[str, ...]], cases: Mapping[int, AuditCase]
    ) -> dict[int, Begun]:
        """Have the first auditor of each slot begin its first look; nothing is waited for."""
        able = [slot for slot, names in orders.items() if names and slot in cases]
        lax = [slot for slot in able if cases[slot].waves]
        strict = [slot for slot in able if not cases[slot].waves]
        told = [(orders[slot][0], cases[slot].tell_arguments(slot, 0)) for slot in lax]
        judged = [(orders[slot][0], cases[slot].audit_arguments(slot, 1)) for slot in strict]
        return {
            **dict(zip(lax, self._members.begin("tell", told), strict=True)),
            **dict(zip(strict, self._members.begin("audit", judged), strict=True)),
        }

    def _heard(
        self,
        turn: Turn,
        look: int,
        batch: Mapping[str, int],
        cases: Mapping[int, AuditCase],
        begun: Mapping[int, Begun],
    ) -> dict[int, Judged]:
        """The verdicts of auditors, each on one slot of `batch`, by slot; by tolerance they tell first."""
        told = self._told(turn, batch, cases, begun)
        asked = {name: cases[s].audit_arguments(s, look) for name, s in batch.items() if s in told}
        ready = {name: begun[s] for name, s in batch.items() if s in begun and not cases[s].waves}
        found: dict[int, Judged] = {}
        for name, answer in self._ask(turn, "audit", asked, ready).items():
            slot = batch[name]
            if not answer.ok:
                self._notice(f"{name}: no verdict on slot {slot}: {answer.error or 'too late'}")
                continue
            try:
                envelope = as_bytes(answer.value)
                verdict = check_verdict(turn, slot, look, name, envelope)
                check_sketches(turn, verdict, told[slot], cases[slot].sketches)
                found[slot] = verdict, envelope
            except BarnraiseError as error:
                self._notice(f"{name}: verdict on slot {slot} refused: {error}")
        return found

    def _told(
        self,
        turn: Turn,
        batch: Mapping[str, int],
        cases: Mapping[int, AuditCase],
        begun: Mapping[int, Begun],
    ) -> dict[int, list[Sketch]]:
        """The sketches that auditors tell of their slots' steps, by slot, and there by segment.

        A slot whose auditor told none, or no sketches, is not in it; one that is judged to the bit has none.
        """
        told: dict[int, dict[int, Sketch]] = {slot: {} for slot in batch.values()}
        for number in range(max((len(cases[slot].waves) for slot in batch.values()), default=0)):
            due = {n: slot for n, slot in batch.items() if slot in told and number < len(cases[slot].waves)}
            asked = {name: cases[slot].tell_arguments(slot, number) for name, slot in due.items()}
            ready = {name: begun[slot] for name, slot in due.items() if number == 0 and slot in begun}
            for name, answer in self._ask(turn, "tell", asked, ready).items():
                slot, segments = due[name], cases[due[name]].waves[number].segments
                try:
                    if not answer.ok:
                        raise ProtocolError("no answer", got=answer.error or "too late")
                    told[slot] |= zip(segments, check_told(answer.value, len(segments)), strict=True)
                except BarnraiseError as error:
                    self._notice(f"{name}: told no sketches of slot {slot}: {error}")
                    del told[slot]
        return {slot: [of[segment] for segment in sorted(of)] for slot, of in told.items()}

    def _ask(
        self, turn: Turn, method: str, asked: Mapping[str, tuple[Any, ...]], ready: Mapping[str, Begun]
    ) -> dict[str, Answer]:
        """Everyone's answer, by name; for calls that are `ready`, having been begun, it is only waited."""
        left = {name: arguments for name, arguments in asked.items() if name not in ready}
        answers = dict(self._members.call(method, left, deadline_ms=deadline(turn)) if left else {})
        return {**answers, **{name: ready[name](deadline(turn)) for name in asked if name in ready}}
