"""Made-up runs whose audits lag: as fake_run, and each turn is settled where docs/protocol.md says.

`LatePlay` keeps the fates of a turn until its settlement. Digests of checkpoints are names; what they come to
is pipeline/lineage.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tests.verification.fake_run import (
    CHAIN,
    CHEAT,
    GOOD,
    LATE,
    WITNESSES,
    Fate,
    Play,
    b3,
    can_open,
    enrolments,
    head,
    made_up_pulse,
    revocation,
    rotation,
    started,
)
from verification.notes import Checkpoint
from verification.plans import due_pulse, link_number, plan_draw
from verification.records import Base, Record, Served
from verification.rounds import begin
from verification.settling import due_turn, plan_settlement, removals
from verification.state import RunState

UNAUDITED = Fate(first="none")
UNCONFIRMED = Fate(first="fail", second="none")
DISPUTED = Fate(first="fail", second="pass")
ALL = {"rate_ppm": 1_000_000, "probation_rounds": 0, "segments": 0}


def late_start(lag: int = 1, witnesses: int = 0, **sections: Mapping[str, object]) -> RunState:
    """The state after all enrolments of a run whose audits lag."""
    given: dict[str, Mapping[str, object]] = {"credit": {"vest_rounds": lag + 1}, **sections}
    given["audit"] = {**given.get("audit", {}), "lag": lag}
    return started(witnesses=witnesses, **given)


class LatePlay(Play):
    """Writes records and applies each; settlements as soon as they are due."""

    def __init__(self, state: RunState) -> None:
        super().__init__(state)
        self.fates: dict[int, Mapping[int, Fate]] = {}

    def turn(self, script: Mapping[int, Fate], good: Fate = GOOD) -> None:
        self.settle_due()
        super().turn(script, good)

    def settle_due(self) -> None:
        while self.state.due:
            self.late_audit()
            self.settle()

    def late_audit(self) -> None:
        """Both looks at what is still accepted of the turn that is due."""
        due = due_turn(self.state)
        turn, script = due.turn, self.fates[due.turn.open.turn]
        assert turn.draw
        assert turn.served
        asked = set(turn.served.served) & due.slots
        orders = {d.slot: d.auditors for d in turn.draw.drawn if d.slot in asked}
        self._looks(orders, script, link_number(self.state))

    def settle(self) -> None:
        state = self.state
        name = str(due_turn(state).turn.open.turn)
        settled = Base(b3(f"settled {name}"), b3(f"outer settled {name}"))
        last = Base(b3(f"weights after {name}"), b3(f"outer after {name}"))
        self.add(plan_settlement(state, settled, last if removals(state, {}) else state.base, {}))

    def finish(self) -> None:
        self.settle_due()
        super().finish()

    def _audit(self, script: Mapping[int, Fate]) -> None:
        self.fates[self.state.open_turn.open.turn] = script
        due = due_pulse(self.state)
        pulse = made_up_pulse(due) if due and not self.pulseless else None
        self.add(plan_draw(self.state, *self._attested(2, link_number(self.state)), pulse))
        turn = self.state.open_turn
        assert turn.draw
        assert turn.reveal_close
        owed = [d.slot for d in turn.draw.drawn if d.auditors and d.slot in turn.reveal_close.revealed]
        served = tuple(slot for slot in owed if script[slot].serves)
        self.add(Served(*self.place, served, tuple(slot for slot in owed if not script[slot].serves)))

    def _head(self, number: int) -> tuple[Checkpoint, str]:
        return head(10 * self.state.draws + number)


def late_played(
    script: Sequence[Mapping[int, Fate]], state: RunState | None = None, *, to_the_end: bool = True
) -> LatePlay:
    """A run through a script, as far as the rules let it go; closed when its last round is done."""
    play = LatePlay(state or late_start())
    for turn in script:
        play.settle_due()
        if can_open(play.state):
            play.turn(turn)
    if to_the_end and play.state.rounds_done == play.state.config["run"]["rounds"]:
        play.finish()
    return play


def late_rich_run(lag: int) -> list[Record]:
    """A whole run, enrolments included, with every late reason in it; its third turn is void."""
    audit = {"probation_rounds": 9, "second_look_ppm": 1_000_000}
    state = late_start(lag, 3, audit=audit, run={"rounds": 6})
    play = LatePlay(begin(state.manifest))
    for record in enrolments(state.run):
        play.add(record)
    script: list[dict[int, Fate]] = [
        {1: LATE},
        {0: DISPUTED, 3: UNCONFIRMED},
        dict.fromkeys(range(4), LATE),
        {1: UNAUDITED, 2: replace(GOOD, silent=1)},
        {2: CHEAT, 3: replace(GOOD, refused="unrevealed")},
        {},
        {1: DISPUTED},
    ]
    for number, turn in enumerate(script):
        play.mute = {WITNESSES[0]} if number == 3 else set()
        play.settle_due()
        if number == 5:
            play.add(rotation(state.run, "c1", "c1", "c1 again"))
            play.add(revocation(state.run, "c0"))
        play.turn(turn)
    play.settle_due()
    play.add(rotation(state.run, "a2", "a2", "a2 again"))
    play.finish()
    return play.records


def links_shown(records: Sequence[Record]) -> list[str]:
    """The coordinator's links in the order of the log."""
    return [record.link for record in records if record.kind in ("draw", "second-draw")]  # type: ignore[union-attr]


def chain_links(count: int) -> list[str]:
    """The first `count` links of the chain."""
    return [CHAIN.link(number) for number in range(1, count + 1)]
