"""Asking the auditors, and believing nothing of it until it is checked.

Owns who is asked next for which slot, and the conversation of an audit by tolerance: where a step ends is
served when its auditor has told a sketch of what it got. Does not own what is audited (auditing.py) or what
an answer must be like (verification/intake.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.parties import Answer, Begun, Members, deadline
from pipeline.told import Question
from verification.errors import BarnraiseError, ProtocolError
from verification.intake import as_bytes, check_sketches, check_told, check_verdict
from verification.records import Verdict
from verification.state import Turn
from verification.tolerance import ServedStep, Sketch

Judged = tuple[Verdict, bytes]  # a checked verdict and its envelope


@dataclass(frozen=True)
class Wave:
    """Steps of an audit by tolerance whose starts are served together; `trace` opens these and no more."""

    segments: tuple[int, ...]
    trace: bytes


@dataclass(frozen=True)
class AuditCase:
    """What an auditor needs to judge one slot: the same bytes for every auditor.

    `draw` is the signed one; `waves` are empty unless the slot rests on tolerance; `sketches` are then those
    of the steps as they were served, by segment, which no auditor is shown.
    """

    open: bytes
    draw: bytes
    reveal: bytes
    checkpoint: bytes
    state: bytes
    trace: bytes | None
    waves: tuple[Wave, ...] = ()
    sketches: tuple[ServedStep, ...] = ()

    def audit_arguments(self, slot: int, look: int) -> tuple[Any, ...]:
        """Of `Auditor.audit`."""
        return (self.open, slot, look, self.draw, self.reveal, self.checkpoint, self.state, self.trace)

    def tell_arguments(self, slot: int, wave: int) -> tuple[Any, ...]:
        """Of `Auditor.tell`."""
        of_wave = wave, self.waves[wave].trace
        return (self.open, slot, self.draw, self.reveal, self.checkpoint, self.state, *of_wave)


class Memory(Protocol):
    """What auditors told, beyond a crash."""

    def get(self, question: Question) -> bytes | None: ...  # noqa: D102
    def put(self, question: Question, answer: bytes) -> None: ...  # noqa: D102


class Panel:
    """The auditors as the coordinator sees them. `notice` takes one line for people."""

    def __init__(self, members: Members, notice: Callable[[str], None], memory: Memory) -> None:
        self._members = members
        self._notice = notice
        self._memory = memory

    def verdicts(
        self,
        turn: Turn,
        look: int,
        orders: Mapping[int, tuple[str, ...]],
        cases: Mapping[int, AuditCase],
        begun: Mapping[int, Begun],
    ) -> dict[int, Judged]:
        """Ask auditors in the given order until each slot has a verdict or nobody is left to ask; by slot.

        `begun` are calls by slot, to the first of its auditors, that were begun earlier.
        """
        left = dict(orders)
        found: dict[int, Judged] = {}
        for slot in sorted(left.keys() & begun.keys()):
            answer, name = begun[slot](deadline(turn)), left[slot][0]
            entry = self._judged(turn, look, name, slot, answer, (), cases[slot])
            if entry:
                found[slot], left[slot] = entry, ()
            elif answer.ok:  # else it may have died, and is asked once more
                left[slot] = left[slot][1:]
        while any(left.values()):
            # One slot an auditor at a time, so that a slow auditor holds up few of them.
            batch: dict[str, int] = {}
            for slot, order in sorted(left.items()):
                if order:
                    batch.setdefault(order[0], slot)
            heard = self._heard(turn, look, batch, cases)
            for slot in batch.values():
                left[slot] = () if slot in heard else left[slot][1:]
            found |= heard
        return found

    def begin_verdicts(
        self, orders: Mapping[int, tuple[str, ...]], cases: Mapping[int, AuditCase]
    ) -> dict[int, Begun]:
        """Have the first auditor of each slot begin its first look, to the bit; nothing is waited for."""
        slots = [slot for slot, names in orders.items() if names and slot in cases]
        calls = [(orders[slot][0], cases[slot].audit_arguments(slot, 1)) for slot in slots]
        return dict(zip(slots, self._members.begin("audit", calls), strict=True))

    def _heard(
        self, turn: Turn, look: int, batch: Mapping[str, int], cases: Mapping[int, AuditCase]
    ) -> dict[int, Judged]:
        """The verdicts of auditors, each on one slot of `batch`, by slot; by tolerance they tell first."""
        told, spent = self._told(turn, batch, cases)
        asked = {name: cases[s].audit_arguments(s, look) for name, s in batch.items() if s in told}
        found: dict[int, Judged] = {}
        for name, answer in self._ask(turn, "audit", asked, spent).items():
            slot = batch[name]
            entry = self._judged(turn, look, name, slot, answer, told[slot], cases[slot])
            if entry:
                found[slot] = entry
        return found

    def _judged(
        self,
        turn: Turn,
        look: int,
        auditor: str,
        slot: int,
        answer: Answer,
        told: Sequence[Sketch],
        case: AuditCase,
    ) -> Judged | None:
        if not answer.ok:
            self._notice(f"{auditor}: no verdict on slot {slot}: {answer.error or 'too late'}")
            return None
        try:
            envelope = as_bytes(answer.value)
            verdict = check_verdict(turn, slot, look, auditor, envelope)
            check_sketches(turn, verdict, told, case.sketches)
        except BarnraiseError as error:
            self._notice(f"{auditor}: verdict on slot {slot} refused: {error}")
            return None
        return verdict, envelope

    def _told(
        self, turn: Turn, batch: Mapping[str, int], cases: Mapping[int, AuditCase]
    ) -> tuple[dict[int, list[Sketch]], int]:
        """The sketches that auditors tell of their slots' steps, by slot, and there by segment; and how long
        it took, in milliseconds.

        A slot whose auditor told none, or no sketches, is not in it; one that is judged to the bit has none.
        What was told is kept before the next points are served, and stands: it is not asked for again, at
        another look neither, for by then the auditor may have been shown where the steps end.
        """
        told: dict[int, dict[int, Sketch]] = {slot: {} for slot in batch.values()}
        spent = 0
        for number in range(max((len(cases[slot].waves) for slot in batch.values()), default=0)):
            due = {n: slot for n, slot in batch.items() if slot in told and number < len(cases[slot].waves)}
            questions = {n: Question(turn.open.turn, slot, n, number) for n, slot in due.items()}
            known = {name: self._memory.get(question) for name, question in questions.items()}
            asked = {n: cases[s].tell_arguments(s, number) for n, s in due.items() if known[n] is None}
            answers = self._ask(turn, "tell", asked, spent)
            spent += max((answer.ms for answer in answers.values()), default=0)
            for name, slot in due.items():
                segments, data = cases[slot].waves[number].segments, known[name]
                try:
                    answer = _bytes_of(answers[name]) if data is None else data
                    told[slot] |= zip(segments, check_told(answer, len(segments)), strict=True)
                except BarnraiseError as error:
                    self._notice(f"{name}: told no sketches of slot {slot}: {error}")
                    del told[slot]
                    continue
                if data is None:
                    self._memory.put(questions[name], answer)
        return {slot: [of[segment] for segment in sorted(of)] for slot, of in told.items()}, spent

    def _ask(
        self, turn: Turn, method: str, asked: Mapping[str, tuple[Any, ...]], spent: int
    ) -> Mapping[str, Answer]:
        """Everyone's answer, by name; of the deadline for a look, `spent` milliseconds are gone."""
        left = max(1, deadline(turn) - spent)
        return self._members.call(method, asked, deadline_ms=left) if asked else {}


def _bytes_of(answer: Answer) -> bytes:
    if not answer.ok:
        raise ProtocolError("no answer", got=answer.error or "too late")
    return as_bytes(answer.value)
