"""Between two turns: who is there, by which key, who left, who is back, and who is new.

Owns the order in which that is found out and logged. Does not own what may be logged
(verification.membership), what members answer (crew.py) or the way of a newcomer (arrivals.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pipeline.arrivals import Arrival
from pipeline.crew import Allowed
from pipeline.desk import Desk
from pipeline.log_reader import Entry
from pipeline.parties import Members
from verification.errors import BarnraiseError, StorageError
from verification.records import PROTOCOL, KeyRevocation, Leave, Record
from verification.rounds import apply
from verification.state import RunState

# Makes members for seats that are free, at most as many as it is told; who they are, by name.
Hire = Callable[[int], Mapping[str, Allowed]]
LOOK_MS = 1_000  # for how long a turn waits for what all newcomers together may have done already
DESERTED_S = 5.0


class Muster:
    """Held before every open."""

    def __init__(self, desk: Desk, members: Members, hire: Hire) -> None:
        self._desk = desk
        self._members = members
        self._hire = hire
        self._coming: dict[str, Arrival] = {}
        # Of the last muster, for people: who is new or back, and who takes no part any more.
        self.joined: list[str] = []
        self.left: list[str] = []

    @property
    def _state(self) -> RunState:
        return self._desk.ledger.state

    def hold(self) -> None:
        """Log what changed since the last turn; nothing where members may not change.

        Where all contributors are away it goes on until one is back or joins, and so where audits are due and
        all auditors are away: such turns are void, and a run can have but few of these.
        """
        self.joined, self.left = [], []
        if not self._state.between_turns:
            return
        before, told = self._present(), ""
        self._ask()
        while who := self._wanting():
            if who != told:
                self._desk.notice(f"all {who}s are away: waiting for one to return or to join")
            told = who
            time.sleep(DESERTED_S)
            self._ask()
        after = self._present()
        self.joined, self.left = sorted(after - before), sorted(before - after)

    def _wanting(self) -> str:
        """The role without which a turn would be void, and whose members are all away; empty when none."""
        state, audit = self._state, self._state.config["audit"]
        if state.is_deserted:
            return "contributor"
        probation = audit["probation_rounds"]
        standings = [
            state.standings[m.member] for m in state.by_role("contributor") if m.member not in state.away
        ]
        watched = any(s.suspect or s.accepted < probation for s in standings if not s.quarantined)
        able = [m.member for m in state.by_role("auditor") if not state.standings[m.member].quarantined]
        due = bool(able) and (watched or audit["rate_ppm"])
        return "auditor" if due and state.away.issuperset(able) else ""

    def _ask(self) -> None:
        self._revoke()
        call = self._desk.crew.roll_call(self._state)
        if call.changes:
            self._desk.ledger.append(call.changes)
        # Where audits lag an auditor may be at one: it is silent until that is over, and no less there.
        self._let_go(call.silent, call.gone if self._state.config["audit"]["lag"] else call.silent)
        self._admit()

    def _present(self) -> set[str]:
        return {member.member for member in self._state.members if self._state.takes_part(member.member)}

    def _revoke(self) -> None:
        """Members whose keys the organiser revokes."""
        state = self._state
        keys = {m.member: m.key for m in state.members if not state.standings[m.member].quarantined}
        for name in sorted(keys.keys() & set(self._desk.revoked())):
            self._append(KeyRevocation(PROTOCOL, state.run, name, keys[name], "coordinator"))

    def _let_go(self, silent: frozenset[str], auditors: frozenset[str]) -> None:
        """Members that cannot be reached take no part until they return.

        Of the auditors those in `auditors`, at once. A contributor only when its last work did not come
        either: where nobody is late (`timing.mode` fixed) silence between two turns decides nothing.
        """
        state = self._state
        closed = state.last_close.rejected if state.last_close else ()
        late = {item.member for item in closed if item.reason == "late"}
        for member in state.members:
            gone = member.member in (auditors if member.role == "auditor" else silent & late)
            if gone and state.takes_part(member.member):
                self._append(
                    Leave(PROTOCOL, state.run, member.member, member.key, state.turns, "coordinator")
                )
                self._desk.notice(f"{member.member} cannot be reached: it takes no part until it returns")

    def _admit(self) -> None:
        """Bring newcomers a step nearer, and log the enrolments that are there."""
        state, desk = self._state, self._desk
        room = state.config["identity"]["newcomers"] - state.newcomers - len(self._coming)
        for name, allowed in (self._hire(room) if room > 0 else {}).items():
            desk.notice(f"{name} is on its way into the run")
            self._coming[name] = Arrival(name, allowed, self._members, desk.ledger, self._file)
        look_ms = LOOK_MS // max(1, len(self._coming))
        for name in list(self._coming):
            if entry := self._enrolment(name, look_ms):
                desk.ledger.append([entry])

    def _enrolment(self, name: str, look_ms: int) -> Entry | None:
        """A newcomer's enrolment that may be logged now; one who cannot be had is forgotten."""
        try:
            entry = self._coming[name].advance(look_ms)
            if entry:
                apply(self._state, entry[0])
        except StorageError:
            raise
        except BarnraiseError as error:
            self._desk.notice(f"{name}: not let in: {error}")
            entry = None
        else:
            if not entry:
                return None
        del self._coming[name]
        return entry

    def _file(self, name: str) -> bytes:
        return (self._desk.folder.data / name).read_bytes()

    def _append(self, record: Record) -> None:
        self._desk.ledger.append([self._desk.ledger.sign(record)])
