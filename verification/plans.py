"""What the coordinator must write next, derived from the state: opens, draws, closes.

Owns the pure functions from a state (and a head, a link, new digests) to the one record that may follow. The
state machine recomputes them, so a coordinator cannot write anything else by mistake. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from verification.beacon import Pulse
from verification.credits import Standing, TurnResult, after_turn
from verification.errors import ProtocolError
from verification.handout import Need, give_back, hand_out, learning_rates, next_steps, steps_when_late
from verification.judge import Outcome, bears_out, settle
from verification.looks import missed_auditors, overruled_auditors
from verification.lottery import (
    Auditor,
    Candidate,
    FirstLook,
    draw_audits,
    draw_second_looks,
    draw_seed,
    draw_segments,
)
from verification.notes import Cosigned
from verification.records import (
    PROTOCOL,
    Accepted,
    AuditorEntry,
    Base,
    Credit,
    Draw,
    DrawnSlot,
    FirstLooks,
    Rejected,
    Requeued,
    RosterEntry,
    RoundClose,
    RoundOpen,
    RunClose,
    SealedLook,
    SecondDraw,
    SlotAuditors,
    Verdict,
    WitnessLink,
)
from verification.segments import segment_count, steps_in
from verification.state import RunState, Turn
from verification.witnessing import check_named, checked_links, is_short, late_cosigners, parse_head

EVERY_TIME = 1_000_000


def plan_open(state: RunState, witnesses: Sequence[str] = ()) -> RoundOpen:
    """The next round-open: roster, windows, steps, learning rates, all from the log.

    `witnesses` are those that are to take part, in the manifest's order. ProtocolError when they are too few.
    """
    check_named(state.manifest, witnesses)
    config, auditing = state.config, state.config["audit"]
    contributors = [
        (slot, member)
        for slot, member in enumerate(state.by_role("contributor"))
        if state.takes_part(member.member)
    ]
    batch = config["train"]["batch"]
    needs = [Need(member.operator, state.pace[slot] * batch) for slot, member in contributors]
    given, _, _ = hand_out(state.queue, state.cursor, needs)
    boundary = (state.round - 1) % config["state"]["every"] == 0
    reset = boundary and config["state"]["policy"] == "reset"
    roster = []
    for (slot, member), positions in zip(contributors, given, strict=True):
        standing = state.standings[member.member]
        watched = standing.suspect or standing.accepted < auditing["probation_rounds"]
        start = None if reset else state.lineage.get(member.member)
        roster.append(
            RosterEntry(
                slot,
                member.member,
                member.key,
                member.operator,
                member.numerics_class,
                micro_batch_of(config, slot),
                state.pace[slot],
                positions,
                start or state.manifest.zero_state,
                EVERY_TIME if watched else auditing["rate_ppm"],
                _segments_to_audit(state, state.pace[slot], watched=watched),
            )
        )
    inner_lr, outer_lr = learning_rates(config, state.round, max((e.steps for e in roster), default=0))
    fixed = config["timing"]["mode"] == "fixed"
    return RoundOpen(
        PROTOCOL,
        state.run,
        state.round,
        state.attempt,
        state.turns,
        state.base,
        tuple(roster),
        tuple(
            AuditorEntry(m.member, m.key, m.operator, m.numerics_class)
            for m in state.by_role("auditor")
            if state.takes_part(m.member)
        ),
        inner_lr,
        outer_lr,
        0 if fixed else config["timing"]["deadline_ms"],
        boundary and config["state"]["policy"] == "snapshot",
        tuple(witnesses),
    )


def micro_batch_of(config: Mapping[str, Any], slot: int) -> int:
    """How many windows the contributor of a slot takes through the model at once; a newcomer the fewest."""
    train = config["train"]
    sizes = train["micro_batch"]
    if not sizes:
        return int(train["batch"])
    return int(sizes[slot] if slot < len(sizes) else min(sizes))


def _segments_to_audit(state: RunState, steps: int, *, watched: bool) -> int:
    """How many segments a draw looks into: all of a watched member's, and where the manifest says 0."""
    count = segment_count(steps, state.config["train"]["trace_every"])
    wanted: int = state.config["audit"]["segments"]
    return count if watched or wanted == 0 else min(wanted, count)


def place(turn: Turn) -> tuple[str, int, int]:
    """Run, round and attempt of a turn, as its records have them."""
    return turn.open.run, turn.open.round, turn.open.attempt


Links = Mapping[str, tuple[str, str]]  # of witnesses, by name: link and proof
Shown = tuple[WitnessLink, ...]


def link_number(state: RunState) -> int:
    """The number of the links that the next draw or second-draw shows (section 6)."""
    return state.draws + 1


def due_pulse(state: RunState) -> int | None:
    """The number of the pulse that the turn's draw waits for; None without a beacon or a reveal-close yet."""
    closed = state.open_turn.reveal_close
    return closed.pulse if closed else None


def plan_draw(state: RunState, head: str, link: str, links: Links, beacon: Pulse | None = None) -> Draw:
    """The audit draw over the roster of the open, seeded by head 2, all links, and the beacon's pulse.

    `head` is the note of head 2 with its cosignatures. `beacon` is the pulse that is due, None where it could
    not be had. Its number is checked here; its signature, which takes half a second, is checked by who
    fetches the pulse and by the level 1 checker. Raises one of the family when cosignatures or links do not
    hold or are too few, or the pulse is another.
    """
    turn = state.open_turn
    cosigned, shown = _attested(state, head, links)
    if beacon and beacon.round != due_pulse(state):
        raise ProtocolError(
            "a draw shows another pulse than its reveal-close names",
            expected=due_pulse(state) or "none",
            got=beacon.round,
        )
    seed = _seed(state, 1, cosigned, link, shown, beacon)
    short = is_short(shown) or _without_pulse(state, cosigned, beacon)
    certain = {entry.slot for entry in turn.open.roster} if short else _twins(turn)
    roster = [
        Candidate(e.slot, e.operator, e.numerics_class, EVERY_TIME if e.slot in certain else e.audit_ppm)
        for e in turn.open.roster
    ]
    drawn = draw_audits(seed, roster, _auditors(turn), turn.tolerances)
    slots = tuple(
        DrawnSlot(item.slot, item.auditors, _segments(state, seed, item.slot, whole=item.slot in certain))
        for item in drawn
    )
    return Draw(PROTOCOL, state.run, state.round, state.attempt, head, link, shown, seed, slots, beacon)


def _segments(state: RunState, seed: str, slot: int, *, whole: bool) -> tuple[int, ...]:
    """Which segments of a drawn slot are looked into (section 6)."""
    entry = state.open_turn.open.entry(slot)
    count = segment_count(entry.steps, state.config["train"]["trace_every"])
    return draw_segments(seed, slot, count if whole else entry.audit_segments, count)


def _without_pulse(state: RunState, head: Cosigned, shown: Pulse | None) -> bool:
    """Whether a draw is short for its pulse: none is shown, or it was out before the head was cosigned."""
    beacon = state.manifest.beacon
    if beacon is None:
        return False
    return shown is None or bool(late_cosigners(beacon, shown.round, head))


def _was_short(state: RunState, draw: Draw) -> bool:
    """Whether a draw of the log is short."""
    if is_short(draw.links):
        return True
    if state.manifest.beacon is None:
        return False  # the cosignatures need not be read again
    return _without_pulse(state, parse_head(state.manifest, draw.head), draw.beacon)


def plan_first_looks(state: RunState, verdicts: Iterable[Verdict]) -> FirstLooks:
    """The seals of the first verdicts, which are not shown before the second ones are given."""
    looks = (SealedLook(v.slot, v.auditor, v.outcome, v.digest) for v in verdicts)
    turn = state.open_turn
    return FirstLooks(PROTOCOL, *place(turn), tuple(sorted(looks, key=lambda look: look.slot)))


def plan_second_draw(state: RunState, head: str, link: str, links: Links) -> SecondDraw:
    """Who is looked at twice, seeded by head 3, which covers the first seals; raises as `plan_draw`."""
    turn = state.open_turn
    cosigned, shown = _attested(state, head, links)
    seed = _seed(state, 2, cosigned, link, shown)
    auditors = {auditor.member: auditor for auditor in _auditors(turn)}
    orders = {item.slot: item.auditors for item in turn.draw.drawn} if turn.draw else {}
    looks = []
    for first in turn.first_looks.looks if turn.first_looks else ():
        names = orders[first.slot]
        order = tuple(auditors[name] for name in names)
        missed = names[: names.index(first.auditor)]
        looks.append(FirstLook(first.slot, first.outcome, auditors[first.auditor], order, missed))
    # Either short draw leaves a choice: of the auditors of look 1, or of who is looked at twice.
    short = is_short(shown) or (turn.draw is not None and _was_short(state, turn.draw))
    rate = EVERY_TIME if short else state.config["audit"]["second_look_ppm"]
    drawn = draw_second_looks(seed, looks, rate)
    slots = tuple(SlotAuditors(item.slot, item.auditors) for item in drawn)
    return SecondDraw(PROTOCOL, *place(turn), head, link, shown, seed, slots)


def _attested(state: RunState, head: str, links: Links) -> tuple[Cosigned, Shown]:
    """The head of a draw, and the links as its record has them, both checked."""
    manifest, turn = state.manifest, state.open_turn
    names = turn.open.witnesses
    cosigned = parse_head(manifest, head)
    number = link_number(state)
    return cosigned, checked_links(manifest, state.links, number, names, cosigned, links)


def _twins(turn: Turn) -> set[int]:
    """Slots whose payload another valid reveal of the turn has too: one of them did not compute it."""
    slots = turn.reveal_close.revealed if turn.reveal_close else ()
    payloads = [turn.reveals[slot].opening.payload for slot in slots]
    return {slot for slot, payload in zip(slots, payloads, strict=True) if payloads.count(payload) > 1}


def _seed(
    state: RunState,
    look: Literal[1, 2],
    head: Cosigned,
    link: str,
    shown: Shown,
    beacon: Pulse | None = None,
) -> str:
    return draw_seed(
        run=state.run,
        round_number=state.open_turn.open.round,
        attempt=state.open_turn.open.attempt,
        turn=state.open_turn.open.turn,
        look=look,
        head=head.checkpoint,
        link=link,
        witnesses=[(item.witness, item.link) for item in shown],
        beacon=beacon,
    )


def _auditors(turn: Turn) -> list[Auditor]:
    return [Auditor(a.member, a.operator, a.numerics_class) for a in turn.open.auditors]


def plan_close(
    state: RunState, base: Base, *, evidence: Mapping[int, str | None], val_loss: int | None
) -> RoundClose:
    """The round-close that follows from the turn's records and the new checkpoint's digests.

    `base` are the digests after the outer step, or the old ones when nothing was accepted.
    """
    turn = state.open_turn
    outcomes = settle(turn.evidence)
    accepted = accepted_contributions(state)
    standings = standings_after(state, turn, outcomes)
    left, cursor = _left_over(state, turn)
    failed = [(o.entry.operator, o.entry.positions) for o in outcomes if o.reason is not None]
    tokens = sum(item.tokens for item in accepted)
    losses = sum(item.tokens * turn.reveals[item.slot].opening.loss_last for item in accepted)
    return RoundClose(
        PROTOCOL,
        state.run,
        state.round,
        state.attempt,
        not accepted,
        accepted,
        tuple(
            Rejected(o.entry.slot, o.entry.member, o.reason, o.fault, evidence.get(o.entry.slot))
            for o in outcomes
            if o.reason is not None
        ),
        missed_auditors(turn.evidence),
        overruled_auditors(turn.evidence, evidence),
        base.weights,
        base.outer,
        give_back(left, failed),
        cursor,
        tuple(Credit(name, s.earned, s.vested, s.forfeited) for name, s in sorted(standings.items())),
        tuple(sorted(name for name, s in standings.items() if s.quarantined)),
        losses // tokens if tokens else None,
        val_loss,
    )


def plan_run_close(state: RunState) -> RunClose:
    """The last entry."""
    return RunClose(
        PROTOCOL, state.run, state.rounds_done, state.base.weights, state.base.outer, state.tokens
    )


def accepted_contributions(state: RunState) -> tuple[Accepted, ...]:
    """What enters the aggregate of the turn in progress, in slot order, with capped weights."""
    turn = state.open_turn
    return weighed(state, turn, [o.entry for o in settle(turn.evidence) if o.reason is None])


def weighed(state: RunState, turn: Turn, entries: Sequence[RosterEntry]) -> tuple[Accepted, ...]:
    """Contributions of a turn with the weights that they have when these are all (section 9, step 1)."""
    openings = {e.slot: turn.reveals[e.slot].opening for e in entries}
    tokens = [openings[e.slot].tokens for e in entries]
    weights = capped_weights(
        [(e.operator, t) for e, t in zip(entries, tokens, strict=True)],
        state.config["credit"]["operator_cap_ppm"],
        [turn.rests_on_tolerance(e.slot) for e in entries],
        state.config["audit"]["tolerance_cap_ppm"],
    )
    return tuple(
        Accepted(e.slot, e.member, t, w, openings[e.slot].payload)
        for e, t, w in zip(entries, tokens, weights, strict=True)
    )


def capped_weights(
    work: Sequence[tuple[str, int]],
    cap_ppm: int,
    tolerated: Sequence[bool] = (),
    tolerance_cap_ppm: int = EVERY_TIME,
) -> list[int]:
    """Aggregation weights of (operator, tokens), an operator's share capped (section 9, step 1).

    So is the share of all that rests on tolerance, which `tolerated` marks, where there is anything else.
    """
    total = sum(tokens for _, tokens in work)
    by_operator: dict[str, int] = {}
    for operator, tokens in work:
        by_operator[operator] = by_operator.get(operator, 0) + tokens
    weights = [
        tokens
        if by_operator[operator] * EVERY_TIME <= cap_ppm * total
        else tokens * cap_ppm * total // (EVERY_TIME * by_operator[operator])
        for operator, tokens in work
    ]
    lax = [index for index, tolerant in enumerate(tolerated) if tolerant]
    on_tolerance = sum(weights[index] for index in lax)
    exact, rest = sum(weights) - on_tolerance, EVERY_TIME - tolerance_cap_ppm
    if exact and on_tolerance * rest > tolerance_cap_ppm * exact:
        for index in lax:
            weights[index] = weights[index] * tolerance_cap_ppm * exact // (rest * on_tolerance)
    return weights


def _left_over(state: RunState, turn: Turn) -> tuple[tuple[Requeued, ...], int]:
    batch = state.config["train"]["batch"]
    needs = [Need(entry.operator, entry.steps * batch) for entry in turn.open.roster]
    _, left, cursor = hand_out(state.queue, state.cursor, needs)
    return left, cursor


def audited_tokens(state: RunState, turn: Turn, slot: int) -> int:
    """Predicted positions in the segments of a slot that the draw looks into: what an audit of it earns."""
    train, context = state.config["train"], state.manifest.dataset["context"]
    steps = steps_in(turn.drawn_segments(slot), turn.open.entry(slot).steps, train["trace_every"])
    return int(steps * train["batch"] * context)


def earned_by_audits(state: RunState, turn: Turn, reasons: Mapping[int, str | None]) -> list[tuple[str, int]]:
    """(auditor, tokens) of the verdicts that settling bore out; `reasons` are the slots'.

    The same pay for pass and fail.
    """
    gone = {(item.slot, item.look) for item in overruled_auditors(turn.evidence, {})}
    return [
        (verdict.auditor, audited_tokens(state, turn, slot))
        for (slot, look), verdict in sorted(turn.verdicts.items())
        if bears_out(reasons[slot], verdict.outcome) and (slot, look) not in gone
    ]


def standings_after(state: RunState, turn: Turn, outcomes: tuple[Outcome, ...]) -> dict[str, Standing]:
    """Everyone's standing after the turn (section 10)."""
    batch, context = state.config["train"]["batch"], state.manifest.dataset["context"]
    tokens = {o.entry.slot: o.entry.steps * batch * context for o in outcomes}
    earned = [(o.entry.member, tokens[o.entry.slot]) for o in outcomes if o.reason is None]
    earned += earned_by_audits(state, turn, {o.entry.slot: o.reason for o in outcomes})
    result = TurnResult(
        turn.open.turn,
        earned,
        # A provisional close clears nobody: whether the audit was passed is known at the settlement.
        {o.entry.member: o.drawn and not turn.lag for o in outcomes if o.reason is None},
        {o.entry.member: o.reason for o in outcomes if o.reason is not None},
        {item.auditor for item in overruled_auditors(turn.evidence, {})},
    )
    credit = state.config["credit"]
    return after_turn(state.standings, result, vest_rounds=credit["vest_rounds"], strikes=credit["strikes"])


def pace_after(state: RunState, turn: Turn, accepted: set[int]) -> dict[int, int]:
    """Local steps of every slot's next turn (section 5)."""
    pace = dict(state.pace)
    timing = state.config["timing"]
    if timing["mode"] != "measured" or turn.commit_close is None:
        return pace
    clock = dict(zip(turn.commit_close.committed, turn.commit_close.ms, strict=True))
    every = state.config["train"]["trace_every"]
    for slot in accepted:
        pace[slot] = next_steps(turn.open.entry(slot).steps, clock[slot], timing, every)
    for slot in turn.commit_close.late:
        pace[slot] = steps_when_late(turn.open.entry(slot).steps, every)
    return pace
