"""What a run looks like now, folded from the entries of its log and the lines of metrics.jsonl.

Owns the numbers of `barnraise top`. Nothing here was checked: an entry that does not have the form of its
kind is counted and passed over. Does not own reading (top_follow.py) or looks (top_view.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipeline.report_metrics import PHASES, TurnTimes
from verification.encoding import MAX_INTEGER
from verification.errors import printable

MICRO = 1e6
RECENT = 20
MOST_EVENTS = 200

Predicate = Mapping[str, Any]


def _count(value: object) -> int:
    """A whole number that a record may hold. Raises ValueError."""
    if type(value) is not int or abs(value) > MAX_INTEGER:
        raise ValueError
    return value


@dataclass
class Member:
    """A member as the log has it so far. `credit` in tokens; `verdict` as (mark, words)."""

    name: str
    role: str
    operator: str
    away: bool = False
    quarantined: bool = False
    accepted: int = 0
    steps: int | None = None
    work_ms: int | None = None
    credit: int = 0
    verdict: tuple[str, str] | None = None


@dataclass
class Watch:
    """Fold entries with `entry`, lines with `times`. Losses as (round, nats)."""

    name: str = ""
    run_id: str = ""
    rounds: int = 0
    closed: int = 0
    round: int = 0
    attempt: int = 0
    phase: str = ""
    finished: bool = False
    tokens: int = 0
    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    machines: dict[str, str] = field(default_factory=dict)
    verdicts: int = 0
    failed: int = 0
    overruled: int = 0
    rejected: int = 0
    unreadable: int = 0
    events: deque[tuple[int, str, str]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    recent: deque[TurnTimes] = field(default_factory=lambda: deque(maxlen=RECENT))
    probation: int = 0
    _roster: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    _turns: int = 0
    _down: set[str] = field(default_factory=set)
    _counts: dict[str, int] = field(default_factory=dict)

    def entry(self, found: tuple[str, Predicate] | None) -> None:
        """Take the next entry of the log."""
        if found is None:
            self.unreadable += 1
            return
        kind, record = found
        take = getattr(self, "_take_" + kind.replace("-", "_"), None)
        try:
            if take:
                take(record)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
            self.unreadable += 1

    def times(self, turn: TurnTimes) -> None:
        """Take a line of metrics.jsonl: the coordinator's word."""
        if self.recent and (turn.round, turn.attempt) <= (self.recent[-1].round, self.recent[-1].attempt):
            self.recent.clear()  # told again after a restart
        self.recent.append(turn)
        if turn.nodes:
            self.machines = {name: machine for machine, node in turn.nodes.items() for name in node.members}
            down = {machine for machine, node in turn.nodes.items() if not node.alive}
            for machine in sorted(down - self._down):
                self._event(turn.round, "bad", f"machine {machine} is down")
            for machine in sorted(self._down & turn.nodes.keys() - down):
                self._event(turn.round, "note", f"machine {machine} is back")
            self._down = down

    @property
    def tokens_per_s(self) -> float | None:
        """Accepted tokens a second over the recent turns."""
        known = [turn for turn in self.recent if turn.seconds and turn.round_tokens is not None]
        seconds = sum(turn.seconds or 0.0 for turn in known)
        return sum(turn.round_tokens or 0 for turn in known) / seconds if seconds else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, if the rounds that are left take as long as the recent ones did."""
        took = [turn.seconds for turn in self.recent if turn.seconds]
        if not took or self.finished or not self.rounds:
            return None
        return max(0, self.rounds - self.closed) * median(took)

    @property
    def phases(self) -> dict[str, float]:
        """Mean seconds of each phase over the recent turns; empty when nothing is known."""
        known = [turn.phases for turn in self.recent if turn.phases]
        means = {name: sum(one.get(name, 0.0) for one in known) / max(1, len(known)) for name in PHASES}
        return {name: seconds for name, seconds in means.items() if seconds > 0}

    def standing(self, member: Member) -> str:
        """In a word."""
        if member.quarantined:
            return "quarantine"
        if member.away:
            return "away"
        early = member.role == "contributor" and member.accepted < self.probation
        return "probation" if early else "good"

    # --- one method a kind of entry ---

    def _event(self, round_: int, tone: str, text: str) -> None:
        event = (round_, tone, printable(text))
        if event not in self.events:
            self.events.append(event)

    def _take_manifest(self, record: Predicate) -> None:
        config = record["config"]
        self.name = printable(str(record["name"]))
        self.rounds = _count(config["run"]["rounds"])
        self.probation = _count(config["audit"]["probation_rounds"])

    def _take_enrol(self, record: Predicate) -> None:
        name = printable(record["member"])
        self.run_id = printable(str(record["run"]))
        self.members[name] = Member(name, printable(record["role"]), printable(record["operator"]))
        if self._turns:
            self._event(self.round + 1, "note", f"{name} joined")
        else:
            self.phase = f"{len(self.members)} members are there"

    def _take_leave(self, record: Predicate) -> None:
        self.members[record["member"]].away = True
        words = "cannot be reached" if record["by"] == "coordinator" else "left"
        self._event(self.round, "bad", f"{record['member']} {words}")

    def _take_return(self, record: Predicate) -> None:
        self.members[record["member"]].away = False
        self._event(self.round, "note", f"{record['member']} came back")

    def _take_key_rotation(self, record: Predicate) -> None:
        self.members[record["member"]].accepted = 0
        self._event(self.round, "note", f"{record['member']} changed its key")

    def _take_key_revocation(self, record: Predicate) -> None:
        self.members[record["member"]].quarantined = True
        self._event(self.round, "bad", f"the key of {record['member']} was revoked")

    def _take_round_open(self, record: Predicate) -> None:
        self.round, self.attempt = _count(record["round"]), _count(record["attempt"])
        self._turns += 1
        roster = {_count(entry["slot"]): str(entry["member"]) for entry in record["roster"]}
        self._roster[self.round, self.attempt] = roster
        while len(self._roster) > 200:  # more than audits may lag
            del self._roster[next(iter(self._roster))]
        for entry in record["roster"]:
            self.members[entry["member"]].steps = _count(entry["steps"])
        self._counts = {"roster": len(roster), "commitment": 0, "reveal": 0, "verdict": 0}
        self.phase = f"0 of {len(roster)} committed"

    def _take_commitment(self, record: Predicate) -> None:
        del record
        self._counts["commitment"] += 1
        self.phase = f"{self._counts['commitment']} of {self._counts['roster']} committed"

    def _take_commit_close(self, record: Predicate) -> None:
        roster = self._roster[record["round"], record["attempt"]]
        for slot, ms in zip(record["committed"], record["ms"], strict=True):
            self.members[roster[slot]].work_ms = _count(ms)
        self.phase = f"0 of {len(record['committed'])} revealed"
        self._counts["committed"] = len(record["committed"])

    def _take_reveal(self, record: Predicate) -> None:
        del record
        self._counts["reveal"] += 1
        self.phase = f"{self._counts['reveal']} of {self._counts['committed']} revealed"

    def _take_reveal_close(self, record: Predicate) -> None:
        del record
        self.phase = "drawing the audits"

    def _take_draw(self, record: Predicate) -> None:
        self.phase = f"auditing {len(record['drawn'])} drawn" if record["drawn"] else "nobody is drawn"

    def _take_second_draw(self, record: Predicate) -> None:
        again = len(record["looks"])
        self.phase = f"looking again at {again}" if again else "closing"

    def _take_verdict(self, record: Predicate) -> None:
        passed = record["outcome"] == "pass"
        who = self._roster[record["round"], record["attempt"]][record["slot"]]
        auditor = record["auditor"]
        judge = self.members[auditor]  # before anything is made of the name: nobody checked it
        self.verdicts += 1
        self.failed += not passed
        mark = "pass" if passed else "fail"
        self.members[who].verdict = (mark, f"r{record['round']} {auditor}")
        judge.verdict = (mark, f"r{record['round']} {who}")

    def _take_round_close(self, record: Predicate) -> None:
        self._outcome(record)
        round_ = _count(record["round"])
        if record["void"]:
            self._event(round_, "bad", f"attempt {record['attempt'] + 1} was void")
        else:
            self.closed = round_
        for item in record["accepted"]:
            self.members[item["member"]].accepted += 1
            self.tokens += _count(item["tokens"])
        for item in record["rejected"]:
            self.rejected += 1
            self._event(round_, "bad", f"{item['member']} rejected: {item['reason']}")
        for key, series in (("train_loss", self.training), ("val_loss", self.validation)):
            if record[key] is not None:
                series.append((round_, _count(record[key]) / MICRO))
        self.phase = "closed"

    def _take_settlement(self, record: Predicate) -> None:
        self._outcome(record)
        for item in record["removed"]:
            self.rejected += 1
            words = f"{item['member']} taken out of round {item['round']}: {item['reason']}"
            self._event(self.round, "bad", words)
        self.phase = "settled what was audited late"

    def _outcome(self, record: Predicate) -> None:
        """What closes and settlements have in common."""
        for item in record["overruled"]:
            self.overruled += 1
            self._event(_count(record["round"]), "bad", f"{item['auditor']} overruled by other auditors")
        for item in record["credits"]:
            self.members[item["member"]].credit = _count(item["earned"]) - _count(item["forfeited"])
        for name in record["quarantined"]:
            if not self.members[name].quarantined:
                self.members[name].quarantined = True
                self._event(_count(record["round"]), "bad", f"{name} in quarantine")

    def _take_run_close(self, record: Predicate) -> None:
        self.finished, self.tokens, self.phase = True, _count(record["tokens"]), "finished"
