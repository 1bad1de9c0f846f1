"""From the draw to the last verdict of a turn (protocol, sections 4 and 6).

Owns the checks of draw, served, first-looks, second-draw, verdict and appeal, and how a slot settles, at once
or late. The arithmetic of the lottery is in `fsck_draws`, what verdicts come to in `fsck_disputes`.
"""

from __future__ import annotations

from collections.abc import Iterable

from verification.fsck_beacon import is_short_of_pulse, pulse_holds, pulse_in_seed
from verification.fsck_disputes import Dispute
from verification.fsck_draws import (
    differences,
    draw_seed,
    drawn_segments,
    drawn_slots,
    is_short,
    looked_into,
    second_looks,
    twins,
)
from verification.fsck_findings import Record
from verification.fsck_json import hash_object
from verification.fsck_tolerance import check_deviations, eligible, limits_of
from verification.fsck_turn import Entry, Run, TurnState, check_ascending, check_author, place
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


def check_first_looks(run: Run, turn: TurnState, entry: Entry) -> None:
    """Who looked first at what was served, by slot, and that it was an auditor of the draw."""
    record, where = entry.record, place(entry)
    slots = [line["slot"] for line in record["looks"]]
    check_ascending(run, f"the first looks of {turn.name}", where, slots)
    for line in record["looks"]:
        slot, name = line["slot"], line["auditor"]
        owed = slot in turn.served and (not run.settings.lag or slot in turn.standing)
        called = turn.drawn[slot] if owed else []
        if name in called:
            turn.seals.setdefault(slot, line)
        else:
            what = f"{name} was not to look first at slot {slot} in {turn.name}"
            run.report.add(what, where, called, name)
    turn.first_looks = record


def sealed(verdict: Record) -> str:
    """The digest of a verdict in first-looks and appeals."""
    return hash_object("barnraise/sealed-verdict/v1", verdict)


def check_verdict(run: Run, turn: TurnState, entry: Entry) -> None:
    """A verdict is by an auditor that was called, says what its digests say, and comes once, by slot."""
    record, where, report = entry.record, place(entry), run.report
    slot, look, name = record["slot"], record["look"], record["auditor"]
    of = f"look {look} of slot {slot} in {turn.name}"
    called = turn.disputes[slot].called(look) if slot in turn.disputes else []
    if name not in called or (look, slot) in turn.verdicts:
        report.add(f"{name} was not to give a verdict for {of}, or one was given before", where, called, name)
        return
    before = next(reversed(turn.verdicts), None)
    if before is not None and (look, slot) < before:
        what = f"the verdict of {of} does not stand by look and slot"
        report.add(what, where, "above look {} of slot {}".format(*before), f"look {look} of slot {slot}")
    if turn.appeals and look <= 2:
        report.add(f"the verdict of {of} stands after an appeal", where, "no appeal before it", "one")
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
    if look == 1:
        seal = turn.seals[slot]
        what = f"the verdict of {of} is not the one that first-looks tells"
        report.equal(what, where, seal["verdict"], sealed(record))
        what = f"first-looks tells another outcome than the verdict of {of}"
        report.equal(what, where, record["outcome"], seal["outcome"])
    turn.verdicts[look, slot] = record
    turn.disputes[slot].take(look, record)


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
    operators = {a["member"]: a["operator"] for a in turn.auditors}
    ppm = run.settings.second_look_ppm
    looks = second_looks(record["seed"], turn.drawn, turn.seals, operators, ppm, short=short)
    expected = [{"auditors": names, "slot": slot} for slot, names in looks.items()]
    what = f"the second looks of {turn.name} do not follow from first-looks and seed"
    run.report.equal(what, where, expected, record["looks"])
    turn.disputes = {
        slot: Dispute(turn.drawn[slot], operators, seal["auditor"], looks.get(slot))
        for slot, seal in turn.seals.items()
    }
    turn.second_draw = record


def check_appeal(run: Run, turn: TurnState, entry: Entry) -> None:
    """An appeal is by a roster entry that two verdicts failed alike, names them, and comes once, by slot."""
    record, where, report = entry.record, place(entry), run.report
    slot = record["slot"]
    if not check_author(run, turn, entry):
        return
    of = f"the appeal of slot {slot} in {turn.name}"
    if any(look > 2 for look, _ in turn.verdicts):
        report.add(f"{of} stands after a third look", where, "before all looks from 3 on", "after one")
        return
    dispute = turn.disputes.get(slot)
    if dispute is None or dispute.reason() != "failed-audit":
        what = f"{of} is not against two verdicts that failed it alike"
        verdicts = [turn.verdicts.get((look, slot)) for look in (1, 2)]
        told = ["none" if verdict is None else verdict["outcome"] for verdict in verdicts]
        report.add(what, where, "two that fail, of one side", " and ".join(told))
        return
    if turn.appeals and slot <= max(turn.appeals):
        report.add(f"{of} is out of order", where, f"a slot after {max(turn.appeals)}", slot)
    digests = [sealed(turn.verdicts[look, slot]) for look in (1, 2)]  # without both it had not failed
    report.equal(f"{of} names other verdicts than those of looks 1 and 2", where, digests, record["verdicts"])
    turn.appeals.setdefault(slot, record)
    dispute.appealed = True


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
    dispute = turn.disputes.get(slot)
    return "unaudited" if dispute is None else dispute.reason()


def expected_missed(turn: TurnState, slots: Iterable[int]) -> list[tuple[str, int, int]]:
    """(auditor, look, slot) of everyone that was called for one of these served slots and gave no verdict, in
    the order of slots, looks and calls.
    """
    missed: list[tuple[str, int, int]] = []
    for slot in sorted(slots):
        dispute = turn.disputes.get(slot)
        told = [(name, 1) for name in turn.drawn[slot]] if dispute is None else dispute.missed()
        missed += [(name, look, slot) for name, look in told]
    return missed


def expected_overruled(turn: TurnState) -> dict[tuple[int, int], tuple[str, bool]]:
    """By (slot, look): the auditor that is overruled, and whether it said that the contribution failed."""
    return {
        (slot, look): told
        for slot, dispute in sorted(turn.disputes.items())
        for look, told in dispute.overruled().items()
    }
