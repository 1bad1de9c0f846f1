"""What one turn leaves to the next: queue, steps, lineage, probation, keys, credit, quarantine.

Owns the state of sections 5 and 10, what enrolments, leaves, returns, key-rotations and -revocations do to
it, and what it makes the next round-open say. Compares nothing; the callers hold the log's records against
it. Where the log is found to lie, the callers put the log's own value in here, so that one lie is named once
and later turns are judged by what they follow from.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from verification.fsck_findings import Record
from verification.fsck_shapes import MILLION, REFUSALS, Settings

Piece = tuple[int, int]
_IDENTITY = ("member", "key", "operator", "class")


@dataclass
class Account:
    """A member's tokens; `unvested` are (turn, tokens)."""

    earned: int = 0
    vested: int = 0
    forfeited: int = 0
    unvested: list[Piece] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How one roster entry fared in a turn; `reason` is None when it was accepted.

    `ms` is the measured time in milliseconds, 0 when it was not measured; `audited`: it was drawn,
    and the audit is over.
    """

    slot: int
    member: str
    operator: str
    reason: str | None
    audited: bool
    steps: int
    ms: int
    pieces: tuple[Piece, ...]
    tokens: int
    next_state: str


@dataclass(frozen=True)
class Removal:
    """An accepted contribution of `turn` that a settlement takes out again."""

    turn: int
    member: str
    operator: str
    pieces: tuple[Piece, ...]
    tokens: int


class Ledger:
    """The carried state of a run, from the enrolments on."""

    def __init__(self, settings: Settings, zero_state: str, enrolments: Sequence[Record]) -> None:
        self.settings = settings
        self.contributors: list[dict[str, str]] = []
        """By slot, whoever is away or in quarantine too."""
        self.identities: dict[str, dict[str, str]] = {}
        """By member, with the present key."""
        self._auditors: list[dict[str, str]] = []
        self.queue: list[tuple[int, int, str]] = []
        self.cursor = 0
        self.steps: list[int] = []
        """By slot: what it is given next."""
        self.quarantined: set[str] = set()
        self.away: set[str] = set()
        self.accounts: dict[str, Account] = {}
        self._zero_state = zero_state
        self._states: dict[str, list[tuple[int, str]]] = {}
        """By member: (turn, next state) of what no settlement removed, as far back as one may yet do so."""
        self._accepted: Counter[str] = Counter()
        self._strikes: Counter[str] = Counter()
        self._suspect: dict[str, int] = {}  # by member, the turn of its last strike
        self._taken: list[Piece] = []
        for enrolment in enrolments:
            self.enrol(enrolment)

    # --- what the next round-open must say ---

    def present(self) -> list[int]:
        """Slots that belong into the roster."""
        return [slot for slot, line in enumerate(self.contributors) if self._takes_part(line)]

    def auditors(self) -> list[dict[str, str]]:
        """The auditors of the open, in log order."""
        return [line for line in self._auditors if self._takes_part(line)]

    def _takes_part(self, line: dict[str, str]) -> bool:
        return line["member"] not in self.quarantined and line["member"] not in self.away

    def start_state(self, round_number: int, member: str) -> str:
        """Section 10, lineage."""
        reset = not self.settings.snapshot and (round_number - 1) % self.settings.state_every == 0
        states = self._states.get(member)
        return self._zero_state if reset or not states else states[-1][1]

    def audit_ppm(self, member: str) -> int:
        """Section 6, whom."""
        return MILLION if self._watched(member) else self.settings.audit_ppm

    def audit_segments(self, member: str, steps: int) -> int:
        """Section 6, which segments: how many of so many steps' are drawn where not all have to be."""
        count, few = self.settings.segments(steps), self.settings.audit_segments
        return count if self._watched(member) or not few else min(few, count)

    def _watched(self, member: str) -> bool:
        """Whether a member is on probation or suspect, so that it is audited for certain and whole."""
        return self._accepted[member] < self.settings.probation or member in self._suspect

    def hand_out(self, operator: str, need: int) -> list[list[int]]:
        """Take `need` positions for a member of `operator` from queue and cursor."""
        pieces: list[list[int]] = []
        rest: list[tuple[int, int, str]] = []
        for start, stop, owner in self.queue:
            take = 0 if owner == operator else min(need, stop - start)
            need -= take
            if take:
                pieces.append([start, start + take])
            if start + take < stop:
                rest.append((start + take, stop, owner))
        if need:
            pieces.append([self.cursor, self.cursor + need])
            self.cursor += need
        self.queue = rest
        return pieces

    # --- what happens between turns ---

    def enrol(self, enrolment: Record) -> None:
        """A new member; a contributor takes the next slot."""
        line: dict[str, str] = {key: enrolment[key] for key in _IDENTITY}
        self.identities[line["member"]] = line
        self.accounts[line["member"]] = Account()
        if enrolment["role"] == "auditor":
            self._auditors.append(line)
        else:
            self.steps.append(self.settings.steps(len(self.contributors)))
            self.contributors.append(line)

    def leave(self, member: str) -> None:
        """A leave: the member keeps all that it has, slot and steps among it."""
        self.away.add(member)

    def come_back(self, member: str) -> None:
        """A return."""
        self.away.discard(member)

    def rotate(self, member: str, new_key: str) -> None:
        """A key-rotation: lineage and probation begin again."""
        self._states.pop(member, None)
        self._accepted[member] = 0
        self.identities[member]["key"] = new_key

    def revoke(self, member: str) -> None:
        """A key-revocation: quarantine, and what is not vested is forfeited."""
        self.quarantined.add(member)
        self._forfeit(member)

    # --- what a round-close does ---

    def close(
        self,
        turn: int,
        outcomes: Iterable[Outcome],
        verdicts: Iterable[tuple[str, int]],
        overruled: Iterable[str] = (),
    ) -> None:
        """Apply a turn; `verdicts` are the paid ones: (auditor, tokens it looked into)."""
        new = set(overruled)
        earned: list[tuple[str, int]] = list(verdicts)
        for outcome in outcomes:
            if outcome.reason is None:
                earned.append((outcome.member, outcome.tokens))
                self._accept(turn, outcome)
                continue
            self.queue += [(start, stop, outcome.operator) for start, stop in outcome.pieces]
            if outcome.reason == "late":
                self._pace(outcome.slot, outcome.steps // 2)
            if outcome.reason in REFUSALS:
                self._strikes[outcome.member] += 1
                self._suspect[outcome.member] = turn
            struck_out = self._strikes[outcome.member] >= self.settings.strikes
            if outcome.reason == "failed-audit" or (outcome.reason in REFUSALS and struck_out):
                new.add(outcome.member)
        self.queue.sort()
        self.quarantined |= new
        self._credit(turn, earned, new)

    def _accept(self, turn: int, outcome: Outcome) -> None:
        self._accepted[outcome.member] += 1
        before = self._states.get(outcome.member, []) if self.settings.lag else []
        self._states[outcome.member] = [*before, (turn, outcome.next_state)]
        if outcome.audited:
            self._suspect.pop(outcome.member, None)
        if outcome.ms:
            q = outcome.steps * self.settings.round_ms // outcome.ms
            self._pace(outcome.slot, min(q, 2 * outcome.steps, self.settings.max_steps))

    def _pace(self, slot: int, steps: int) -> None:
        """Section 5, steps: what a slot is given next, in whole intervals between leaves."""
        if self.settings.measured:
            every = self.settings.trace_every
            self.steps[slot] = max(steps // every * every, every)

    def settle(
        self,
        turn: int,
        removals: Iterable[Removal],
        verdicts: Iterable[tuple[str, int]],
        *,
        at_fault: set[str],
        cleared: set[str],
    ) -> None:
        """Apply the settlement of a turn (section 10). `verdicts` as in `close`; `at_fault` and `cleared`
        are members whose contribution of this turn failed its audit or whose verdict was overruled, and whose
        contribution was drawn and is accepted.
        """
        for removal in removals:
            self._take_back(removal)
        self.queue.sort()
        self._earn(turn, verdicts)
        self.quarantined |= at_fault
        # An auditor may be in quarantine since its verdict was asked for.
        for member in self.quarantined:
            self._forfeit(member)
        # Work from before a strike clears nobody of it.
        self._suspect = {m: at for m, at in self._suspect.items() if m not in cleared or at > turn}
        for member, states in self._states.items():
            later = sum(when > turn for when, _ in states)
            self._states[member] = states[-later - 1 :]

    def _take_back(self, removal: Removal) -> None:
        member, account = removal.member, self.accounts[removal.member]
        account.earned -= removal.tokens
        entry = (removal.turn, removal.tokens)
        if entry in account.unvested:
            account.unvested.remove(entry)
        else:
            account.forfeited -= removal.tokens  # in quarantine since
        self._accepted[member] = max(0, self._accepted[member] - 1)
        states = self._states.get(member, [])
        self._states[member] = [state for state in states if state[0] != removal.turn]
        self.queue += [(start, stop, removal.operator) for start, stop in removal.pieces]
        self.release_positions(removal.pieces)

    def _credit(self, turn: int, earned: list[tuple[str, int]], forfeiting: set[str]) -> None:
        self._earn(turn, earned)
        for member in forfeiting:
            self._forfeit(member)
        ripe = turn - self.settings.vest_rounds
        for account in self.accounts.values():
            account.vested += sum(tokens for when, tokens in account.unvested if when <= ripe)
            account.unvested = [entry for entry in account.unvested if entry[0] > ripe]

    def _earn(self, turn: int, earned: Iterable[tuple[str, int]]) -> None:
        for member, tokens in earned:
            account = self.accounts[member]
            account.earned += tokens
            same_turn = bool(account.unvested) and account.unvested[-1][0] == turn
            before = account.unvested.pop()[1] if same_turn else 0
            account.unvested.append((turn, before + tokens))

    def _forfeit(self, member: str) -> None:
        account = self.accounts[member]
        account.forfeited += sum(tokens for _, tokens in account.unvested)
        account.unvested.clear()

    def accept_positions(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Mark positions as accepted; those that were accepted before.

        Neighbours are kept as one range, so there are no more of these than gaps between them: the queue.
        """
        twice: list[Piece] = []
        for start, stop in sorted(pieces):
            at = bisect.bisect_left(self._taken, start, key=lambda piece: piece[1])
            low, high = start, stop
            upto = at
            while upto < len(self._taken) and self._taken[upto][0] <= stop:
                other = self._taken[upto]
                if max(start, other[0]) < min(stop, other[1]):
                    twice.append((max(start, other[0]), min(stop, other[1])))
                low, high = min(low, other[0]), max(high, other[1])
                upto += 1
            self._taken[at:upto] = [(low, high)]
        return twice

    def release_positions(self, pieces: Iterable[Piece]) -> None:
        """Positions of what was removed may be accepted again."""
        for start, stop in pieces:
            at = bisect.bisect_right(self._taken, start, key=lambda piece: piece[1])
            upto, rest = at, list[Piece]()
            while upto < len(self._taken) and self._taken[upto][0] < stop:
                low, high = self._taken[upto]
                rest += [(a, b) for a, b in ((low, start), (stop, high)) if a < b]
                upto += 1
            self._taken[at:upto] = rest


def weights_of(tokens: Sequence[tuple[str, int]], cap_ppm: int) -> list[int]:
    """Section 9, 1: the weights of accepted (operator, tokens), with the operators' cap."""
    total = sum(count for _, count in tokens)
    by_operator: Counter[str] = Counter()
    for operator, count in tokens:
        by_operator[operator] += count
    weights: list[int] = []
    for operator, count in tokens:
        share = by_operator[operator] * MILLION
        weights.append(count if share <= cap_ppm * total else count * cap_ppm * total // share)
    return weights
