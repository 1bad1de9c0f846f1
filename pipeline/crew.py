"""Asking the members, and believing nothing of it until it is checked.

Owns the way from a question to checked records: who is asked what, what is thrown away and why. Does not own
the order of a turn (coordinator.py), what auditors are asked (panel.py) or where members live (cluster). Its
answers are what the log may hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.log_reader import Entry
from pipeline.panel import Memory, Panel
from pipeline.parties import PATIENCE_MS, Answer, Members, brief, deadline
from verification.errors import BarnraiseError, FormatError, ProtocolError
from verification.intake import (
    RevealAnswer,
    as_bytes,
    check_appeal,
    check_commitment,
    check_enrolment,
    check_identity_change,
    snapshot_due,
)
from verification.merkle import Inclusion
from verification.rounds import apply
from verification.state import RunState, Turn

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True)
class Commitments:
    """Checked commitments by slot, and the milliseconds each took."""

    entries: dict[int, Entry]
    ms: dict[int, int]


@dataclass(frozen=True)
class RollCall:
    """What members have to say between two turns, checked, and who could not be heard.

    `gone`: those of the silent that gave an error: they are not just busy.
    """

    changes: list[Entry]
    silent: frozenset[str]
    gone: frozenset[str]


class Allowed(Protocol):
    """What the organiser allows a member to be."""

    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def operator(self) -> str: ...  # noqa: D102


class Crew:
    """The members as the coordinator sees them. `notice` takes one line for people.

    `read_state` is given bytes and digest, and raises one of the family when they are no hidden state of that
    digest: a member may have claimed the digest of anything at all, and an auditor could not start from it.
    """

    def __init__(
        self,
        members: Members,
        notice: Callable[[str], None],
        read_state: Callable[[bytes, str], object],
        memory: Memory,
    ) -> None:
        self.panel = Panel(members, notice, memory)
        self._members = members
        self._notice = notice
        self._read_state = read_state

    def send_files(
        self, names: Iterable[str], read: Callable[[str], bytes], *, enrolled: bool = False
    ) -> None:
        """Give every member those of the data files that it lacks.

        Before enrolment a member that cannot take them is a ProtocolError; afterwards it is only absent, for
        one member must not be able to stop a run of others.
        """
        asked = self._members.call("missing_files", dict.fromkeys(names, ()), deadline_ms=PATIENCE_MS)
        for member, answer in asked.items():
            try:
                for file in file_names(member, _need(member, answer)):
                    arguments = {member: (file, read_file(member, file, read))}
                    stored = self._members.call("store_file", arguments, deadline_ms=PATIENCE_MS)
                    _need(member, stored[member])
            except ProtocolError as error:
                if not enrolled:
                    raise
                self._notice(str(error))

    def enrolments(self, state: RunState, allowed: Mapping[str, Allowed]) -> list[Entry]:
        """Everyone's signed enrolment, in the order of `allowed`, with the role and operator it has there."""
        answers = self._members.call("enrol", dict.fromkeys(allowed, ()), deadline_ms=PATIENCE_MS)
        return [
            self.enrolment(state, name, allowed[name], _need(name, answer))
            for name, answer in answers.items()
        ]

    @staticmethod
    def enrolment(state: RunState, name: str, allowed: Allowed, value: object) -> Entry:
        """An enrolment that came, checked against who may enrol. Raises one of the family."""
        envelope = as_bytes(value)
        record = check_enrolment(state, envelope)
        expected = (name, allowed.role, allowed.operator)
        got = (record.member, record.role, record.operator)
        if got != expected:
            raise ProtocolError(
                f"{name} enrolled as somebody it is not allowed to be", expected=expected, got=got
            )
        return record, envelope

    def roll_call(self, state: RunState) -> RollCall:
        """Who answers, and what changes of keys and of taking part they have, one a member.

        Each is fit to follow the last. Those that are away are asked whether they are back.
        """
        asked = {
            m.member: (m.key, state.turns, m.member in state.away)
            for m in state.members
            if not state.standings[m.member].quarantined
        }
        answers = self._members.call("identity_changes", asked, deadline_ms=brief(state))
        found: list[Entry] = []
        silent = frozenset(name for name, answer in answers.items() if not answer.ok)
        gone = frozenset(name for name in silent if answers[name].error)
        for name, answer in answers.items():
            if not answer.ok and name not in state.away:
                self._notice(f"{name}: identity_changes: {answer.error or 'too late'}")
            if not answer.ok or (type(answer.value) is list and not answer.value):
                continue
            try:
                envelope = as_bytes(_first(answer.value))
                if record := check_identity_change(state, name, envelope):
                    state = apply(state, record)
                    found.append((record, envelope))
            except BarnraiseError as error:
                self._notice(f"{name}: a change of its key refused: {error}")
        return RollCall(found, silent, gone)

    def give_receipts(self, state: RunState, turn: int, receipts: Mapping[str, str]) -> None:
        """Hand members their receipts of a closed turn; whoever takes none goes without."""
        arguments = {name: (turn, receipt) for name, receipt in receipts.items()}
        answers = self._members.call("take_receipt", arguments, deadline_ms=brief(state))
        for name, answer in answers.items():
            if not answer.ok:
                self._notice(f"{name}: receipt not taken: {answer.error or 'too late'}")

    def commitments(self, turn: Turn, open_envelope: bytes, checkpoint: bytes) -> Commitments:
        """Hand out the work and wait for the commitments, or for the deadline."""
        asked = {entry.slot: (open_envelope, checkpoint) for entry in turn.open.roster}
        done = Commitments({}, {})
        for slot, answer in self._ask(turn, "commit", asked).items():
            if answer is None:
                continue
            try:
                envelope = as_bytes(answer.value)
                done.entries[slot] = (check_commitment(turn.open, slot, envelope), envelope)
                done.ms[slot] = answer.ms
            except BarnraiseError as error:
                self._say(turn, slot, f"commitment refused: {error}")
        return done

    def reveals(
        self, state: RunState, head: str, opened: Inclusion, committed: Mapping[int, Inclusion]
    ) -> dict[int, RevealAnswer | None]:
        """Show head 1 with the (index, inclusion proof) of the open and of each one's commitment.

        What came back, by slot, unchecked.
        """
        turn = state.open_turn
        asked = {slot: (turn.open.turn, head, opened, proof) for slot, proof in committed.items()}
        answers = self._ask(turn, "reveal", asked)
        snapshots = self.states(turn, [slot for slot in asked if snapshot_due(state, slot)])
        found: dict[int, RevealAnswer | None] = {}
        for slot, answer in answers.items():
            pair = _byte_pair(answer.value) if answer else None
            found[slot] = RevealAnswer(*pair, snapshots.get(slot)) if pair else None
        return found

    def states(self, turn: Turn, slots: Iterable[int]) -> dict[int, bytes]:
        """Start states that were served and are the right ones, by slot."""
        found: dict[int, bytes] = {}
        for slot, answer in self._ask(turn, "serve_state", dict.fromkeys(slots, (turn.open.turn,))).items():
            try:
                data = as_bytes(answer.value) if answer else b""
                self._read_state(data, turn.open.entry(slot).start_state)
                found[slot] = data
            except BarnraiseError as error:
                self._say(turn, slot, f"did not serve its start state: {error}")
        return found

    def traces(
        self,
        turn: Turn,
        slots: Iterable[int],
        draw_envelope: bytes,
        checkpoint: bytes,
        check: Callable[[int, bytes], object],
    ) -> dict[int, bytes]:
        """Traces that were opened as the draw asks and that `check` takes, by slot.

        `check` is given slot and bytes, and raises one of the family when they are not the commitment's.
        """
        found: dict[int, bytes] = {}
        asked = dict.fromkeys(slots, (turn.open.turn, draw_envelope, checkpoint))
        for slot, answer in self._ask(turn, "serve_trace", asked).items():
            if answer is None:
                continue
            try:
                data = as_bytes(answer.value)
                check(slot, data)
                found[slot] = data
            except BarnraiseError as error:
                self._say(turn, slot, f"did not open its trace: {error}")
        return found

    def appeals(self, state: RunState, shown: Mapping[int, Sequence[bytes]]) -> dict[int, Entry]:
        """Show contributors the two verdicts against them; the appeals of those that stand by their work."""
        turn = state.open_turn
        asked = {slot: (turn.open.turn, list(envelopes)) for slot, envelopes in shown.items()}
        found: dict[int, Entry] = {}
        for slot, answer in self._ask(turn, "appeal", asked, deadline_ms=brief(state)).items():
            if answer is None:
                continue
            try:
                envelope = as_bytes(answer.value)
                found[slot] = check_appeal(turn, slot, envelope), envelope
            except BarnraiseError as error:
                self._say(turn, slot, f"appeal refused: {error}")
        return dict(sorted(found.items()))

    def _ask(
        self, turn: Turn, method: str, asked: Mapping[int, tuple[Any, ...]], *, deadline_ms: int | None = None
    ) -> dict[int, Answer | None]:
        names = {slot: turn.open.entry(slot).member for slot in asked}
        arguments = {names[slot]: args for slot, args in asked.items()}
        patience = deadline(turn) if deadline_ms is None else deadline_ms
        answers = self._members.call(method, arguments, deadline_ms=patience)
        found: dict[int, Answer | None] = {}
        for slot, name in names.items():
            answer = answers[name]
            found[slot] = answer if answer.ok else None
            if not answer.ok:
                self._say(turn, slot, f"{method}: {answer.error or 'too late'}")
        return found

    def _say(self, turn: Turn, slot: int, what: str) -> None:
        self._notice(f"{turn.open.entry(slot).member}: {what}")


def _need(name: str, answer: Answer) -> Any:
    if not answer.ok:
        raise ProtocolError(f"{name} could not join the run", got=answer.error or "no answer in time")
    return answer.value


def _first(value: Any) -> Any:
    if type(value) is not list:
        raise FormatError("a member's changes of identity are no list", got=type(value).__name__)
    return value[0]


def file_names(member: str, value: Any) -> list[str]:
    """The data files that a member asks for. ProtocolError when that is no list of file names."""
    # The answer becomes a path of ours: a name that leaves the data folder would fetch anything from us.
    if type(value) is not list or not all(type(name) is str and _FILE_NAME.match(name) for name in value):
        raise ProtocolError(f"{member} asked for something that is no data file", got=repr(value)[:80])
    return list(dict.fromkeys(value))


def read_file(member: str, file: str, read: Callable[[str], bytes]) -> bytes:
    """A data file for a member. ProtocolError when there is none of that name."""
    try:
        return read(file)
    except OSError as error:
        raise ProtocolError(f"{member} asked for {file}", got=error.strerror) from None


def _byte_pair(value: Any) -> tuple[bytes, bytes] | None:
    if type(value) not in (tuple, list) or len(value) != 2:
        return None
    try:
        return as_bytes(value[0]), as_bytes(value[1])
    except FormatError:
        return None
