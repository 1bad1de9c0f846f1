"""From the draw to the last verdict of a turn (protocol, sections 4 and 6).

Owns the checks of draw, served, verdict and second-draw, and how a slot settles, at once or late.
The arithmetic of the lottery is in `fsck_draws`.
"""

from __future__ import annotations

from collections.abc import Iterable

from verification.fsck_beacon import is_short_of_pulse, pulse_holds, pulse_in_seed
from verification.fsck_draws import (
    differences,
    draw_seed,
    drawn_segments,
    drawn_slots,
    is_short,
    judged,
    looked_into,
    missed_calls,
    second_looks,
    twins,
)
from verification.fsck_tolerance import check_deviations, eligible, limits_of
from verification.fsck_turn import Entry, Run, TurnState, check_ascending, place
from verification.fsck_witness import check_cosigned_head, check_links


def _check_pulse(run: Run, turn: TurnState, entry: Entry) -> None:
    """The pulse that a draw shows, if any, is the one that the reveal-close names, and the beacon's."""
    beacon, pulse, where = run.manifest["beacon"], entry.record["beacon"], place(entry)
    if pulse is None:
        return
    number, signature = pulse["round"], pulse["signature"]
    if number != turn.pulse:
        what = f"the pulse in the draw of {turn.name} is not the one that its reveal-close names"
        run.report.add(what, where, turn.pulse or "null", number)
    if beacon is not None and not pulse_holds(beacon["public_key"], number, signature):
        what = f"the signature of pulse {number} in the draw of {turn.name} does not hold"
        run.report.add(what, where, f"a signature by {beacon['public_key']}", signature)


def _check_link_and_seed(run: Run, turn: TurnState, entry: Entry, look: int) -> bool:
    """Head, links and seed of a draw; whether the draw is short."""
    record, where = entry.record, place(entry)
    root = run.tree.root()
    # Where audits lag, the second draw of a turn comes after the first ones of later turns.
    run.draws += 1
    number = run.draws
    cosigners, times = check_cosigned_head(run, look + 1, entry, root)
    check_links(run, turn, entry, number, root, cosigners)
    if not run.chain.holds(number, record["link"]):
        what = f"the link of {entry.kind} in {turn.name} is not link {number} of the draw chain"
        run.report.add(what, where, f"what hashes to link {run.chain.number}", record["link"])
    opened = {**turn.open, "run": run.run_id}
    pulse = pulse_in_seed(record["beacon"]) if look == 1 else None
    seed = draw_seed(opened, look, entry.index, root, record["link"], record["links"], pulse)
    run.report.equal(f"the seed of {entry.kind} in {turn.name} is wrong", where, seed, record["seed"])
    short = is_short(turn.open["witnesses"], record["links"])
    return short or (look == 1 and is_short_of_pulse(run.manifest["beacon"], record["beacon"], times))


def check_draw(run: Run, turn: TurnState, entry: Entry) -> None:
    """Head 2, links 2u + 1, pulse, seed, and what is drawn: by it, for having another's payload, or all."""
    record, where = entry.record, place(entry)
    _check_pulse(run, turn, entry)
    turn.short = _check_link_and_seed(run, turn, entry, 1)
    certain = set(turn.roster) if turn.short else twins(turn.valid)
    turn.drawn = drawn_slots(
        record["seed"], turn.roster.values(), turn.auditors, run.settings.tolerances, certain
    )
    for slot in turn.drawn:
        count = run.settings.segments(turn.roster[slot]["steps"])
        few = count if slot in certain else turn.roster[slot]["audit_segments"]
        turn.segments[slot] = drawn_segments(record["seed"], slot, count, few)
    got = [line["slot"] for line in record["drawn"]]
    what = f"the drawn slots of {turn.name} do not follow from the seed"
    if run.report.equal(what, where, list(turn.drawn), got):
        for line in record["drawn"]:
            slot = line["slot"]
            for key, mine in (("auditors", turn.drawn[slot]), ("segments", turn.segments[slot])):
                what = f"the {key} of slot {slot} in {turn.name} do not follow from the seed"
                run.report.equal(what, where, mine, line[key])
    turn.draw = record


def check_served(run: Run, turn: TurnState, entry: Entry) -> None:
    """Every drawn slot with a valid reveal and an auditor either served its state or did not."""
    record, where = entry.record, place(entry)
    due = [slot for slot, names in turn.drawn.items() if names and slot in turn.valid]
    listed = [*record["served"], *record["unserved"]]
    run.report.equal(
        f"the served and unserved slots of {turn.name} are not those due", where, due, sorted(listed)
    )
    check_ascending(run, f"the served slots of {turn.name}", where, record["served"])
    check_ascending(run, f"the unserved slots of {turn.name}", where, record["unserved"])
    turn.unserved = set(record["unserved"]) & set(due)
    turn.served = set(record["served"]) & set(due) - turn.unserved
    turn.served_record = record


def check_verdict(run: Run, turn: TurnState, entry: Entry) -> None:
    """A verdict is by an auditor that was called, says what its digests say, and comes once, by slot."""
    record, where, report = entry.record, place(entry), run.report
    slot, look, name = record["slot"], record["look"], record["auditor"]
    of = f"look {look} of slot {slot} in {turn.name}"
    owed = slot in turn.served and (not run.settings.lag or slot in turn.standing)
    first = turn.drawn[slot] if owed else []
    called = turn.looks.get(slot, []) if look == 2 else first
    if look != (1 if turn.second_draw is None else 2) or name not in called or (look, slot) in turn.verdicts:
        report.add(f"{name} was not to give a verdict for {of}, or one was given before", where, called, name)
        return
    before = next(reversed(turn.verdicts), None)
    if before is not None and (look, slot) < before:
        what = f"the verdict of {of} does not stand by slot"
        report.add(what, where, f"a slot above {before[1]}", slot)
    auditor = next(a for a in turn.auditors if a["member"] == name)
    if not entry.envelope.signed_by(auditor["key"]):
        report.add(
            f"the verdict of {of} is not signed by {name}", where, auditor["key"], entry.envelope.keyid
        )
    for key in ("key", "class"):
        report.equal(f"the {key} in the verdict of {of} is not {name}'s", where, auditor[key], record[key])
    _check_what_was_looked_into(run, turn, entry, of)
    limits = limits_of(turn.roster[slot], auditor, run.settings.tolerances)
    check_deviations(record, limits, len(turn.segments[slot]), of=of, where=where, report=report)
    differs = differences(turn.valid[slot], record, limits)
    report.equal(f"what differs is told wrongly in the verdict of {of}", where, differs, record["differs"])
    outcome = "fail" if differs else "pass"
    report.equal(f"the outcome in the verdict of {of} is wrong", where, outcome, record["outcome"])
    turn.verdicts[look, slot] = record


def _check_what_was_looked_into(run: Run, turn: TurnState, entry: Entry, of: str) -> None:
    """A verdict states what the draw looks into and no more: its leaves, the first loss with segment 0."""
    record, where = entry.record, place(entry)
    slot, trace, loss = record["slot"], record["trace"], record["loss_first"]
    count, segments = run.settings.segments(turn.roster[slot]["steps"]), turn.segments[slot]
    what = f"the trace in the verdict of {of} is not as long as the trace"
    if run.report.equal(what, where, count + 1, len(trace)):
        stated = [i for i, leaf in enumerate(trace) if leaf.startswith("sha256:")]
        what = f"the verdict of {of} states the digests of other leaves than the draw looks into"
        run.report.equal(what, where, sorted(looked_into(segments, count)), stated)
    if 0 in segments and loss is None:
        what = f"the verdict of {of} has no first loss though segment 0 is drawn"
        run.report.add(what, where, "a number", "null")
    if 0 not in segments and loss is not None:
        what = f"the verdict of {of} has a first loss though segment 0 is not drawn"
        run.report.add(what, where, "null", loss)


def check_second_draw(run: Run, turn: TurnState, entry: Entry) -> None:
    """Head 3, links 2u + 2, the seed, and who looks again."""
    record, where = entry.record, place(entry)
    short = _check_link_and_seed(run, turn, entry, 2) or turn.short
    first = {slot: verdict for (_, slot), verdict in turn.verdicts.items()}
    operators = {a["member"]: a["operator"] for a in turn.auditors}
    ppm = run.settings.second_look_ppm
    turn.looks = second_looks(record["seed"], turn.drawn, first, operators, ppm, short=short)
    expected = [{"auditors": names, "slot": slot} for slot, names in turn.looks.items()]
    what = f"the second looks of {turn.name} do not follow from verdicts and seed"
    run.report.equal(what, where, expected, record["looks"])
    turn.second_draw = record


def settled(run: Run, turn: TurnState, slot: int) -> str | None:
    """Section 6, settling: why a close rejects a roster entry, or None when it accepts it."""
    if slot not in turn.commitments:
        return "late"
    if slot not in turn.valid:
        return turn.refused[slot]
    line = turn.roster[slot]
    # Whether anybody could check it counts before the lot does, so that a lone class earns nothing by luck.
    able = eligible(line, turn.auditors, run.settings.tolerances)
    if (line["audit_ppm"] or slot in turn.drawn) and not able:
        return "no-eligible-auditor"
    if slot in turn.unserved:
        return "unserved"
    return None if run.settings.lag else settled_by_verdicts(turn, slot)


def settled_by_verdicts(turn: TurnState, slot: int) -> str | None:
    """The rest of that: the rules after `unserved`, which late settling applies."""
    if slot not in turn.drawn:
        return None
    first = turn.verdicts.get((1, slot))
    if first is None:
        return "unaudited"
    return judged(first, turn.verdicts.get((2, slot)), second_was_drawn=slot in turn.looks)


def expected_missed(turn: TurnState, slots: Iterable[int]) -> set[tuple[str, int, int]]:
    """(auditor, look, slot) of everyone that was called for one of these served slots and gave no verdict."""
    called = {slot: turn.drawn[slot] for slot in slots}
    return missed_calls(called, turn.verdicts, 1) | missed_calls(turn.looks, turn.verdicts, 2)
