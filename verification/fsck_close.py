"""The round-close: who was accepted with what weight, and what is carried over.

Owns the checks of that one record (protocol, sections 4, 9 and 10), and of what a settlement has in
common with it: who missed, who was overruled, queue, credit, quarantine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from verification.fsck_audit import expected_missed, expected_overruled, settled
from verification.fsck_findings import Record
from verification.fsck_ledger import Outcome, weights_of
from verification.fsck_shapes import CASE_FILES
from verification.fsck_tolerance import capped, rests_on_tolerance
from verification.fsck_turn import Entry, Run, TurnState, check_ascending, place

_PAID = (("pass", None), ("fail", "failed-audit"))
"""Section 10, 1: the outcomes that agree with how their slot was settled."""


def check_round_close(run: Run, turn: TurnState, entry: Entry) -> None:
    """All of a round-close; the ledger goes on from what it says."""
    record, where = entry.record, place(entry)
    reasons = _check_settling(run, turn, record, where)
    accepted = [slot for slot, reason in reasons.items() if reason is None]
    _check_accepted(run, turn, record, accepted, where)
    _check_rejected(run, turn, record, where)
    # Who missed is told when the audits are over.
    check_missed(run, turn, record, set() if run.settings.lag else expected_missed(turn, turn.served), where)
    check_overruled(run, turn, record, {line["slot"]: line["evidence"] for line in record["rejected"]}, where)
    _check_result(run, turn, record, accepted, where)
    _carry_over(run, turn, record, reasons, where)
    turn.close = record
    turn.standing = set(accepted)
    turn.after = {key: record[key] for key in ("outer", "weights")}


def _check_settling(run: Run, turn: TurnState, record: Record, where: str) -> dict[int, str | None]:
    """How each slot settles: by the rules, and where the close says otherwise, as the close says."""
    said: dict[int, str | None] = {line["slot"]: line["reason"] for line in record["rejected"]}
    said |= {line["slot"]: None for line in record["accepted"]}
    times = Counter(line["slot"] for line in [*record["accepted"], *record["rejected"]])
    for slot, count in sorted(times.items()):
        if count > 1 or slot not in turn.roster:
            what = f"slot {slot} is settled {count} times in {turn.name}"
            run.report.add(what, where, "every slot of the roster once", sorted(times.elements()))
    reasons: dict[int, str | None] = {}
    for slot in turn.roster:
        reasons[slot] = settled(run, turn, slot)
        want = reasons[slot] or "accepted"
        if slot not in said:
            run.report.add(
                f"slot {slot} is neither accepted nor rejected in {turn.name}", where, want, "nothing"
            )
            continue
        got = said[slot] or "accepted"
        if want == got:
            continue
        what = f"slot {slot} is settled wrongly in {turn.name}"
        if got == "accepted" and want == "unaudited":
            what = f"slot {slot} is accepted in {turn.name} though its drawn audit was not done"
        run.report.add(what, where, want, got)
        if slot in turn.valid or said[slot] is not None:
            reasons[slot] = said[slot]
    return reasons


def _check_accepted(run: Run, turn: TurnState, record: Record, accepted: list[int], where: str) -> None:
    check_ascending(run, f"the accepted slots of {turn.name}", where, [a["slot"] for a in record["accepted"]])
    counts = [(turn.roster[slot]["operator"], turn.valid[slot]["tokens"]) for slot in accepted]
    own = weights_of(counts, run.settings.cap_ppm)
    auditors, tolerances = turn.auditors, run.settings.tolerances
    resting = [rests_on_tolerance(turn.roster[slot], auditors, tolerances) for slot in accepted]
    weights = dict(zip(accepted, capped(own, resting, run.settings.tolerance_cap_ppm), strict=True))
    if accepted and not any(weights.values()):
        what = f"{turn.name} is closed though nothing in it has weight"
        run.report.add(what, where, "no round-close", sorted(weights))
    for line in record["accepted"]:
        slot = line["slot"]
        if slot not in weights:
            continue
        opening = turn.valid[slot]
        expected = {
            "member": turn.roster[slot]["member"],
            "payload": opening["payload"],
            "tokens": opening["tokens"],
            "weight": weights[slot],
        }
        for key, want in expected.items():
            run.report.equal(f"the {key} of slot {slot} in {turn.name} is wrong", where, want, line[key])
    pieces = [(a, b) for slot in accepted for a, b in turn.roster[slot]["positions"]]
    for start, stop in run.ledger.accept_positions(pieces):
        run.report.add(
            f"positions accepted in {turn.name} were accepted before", where, "each once", [start, stop]
        )


def _check_rejected(run: Run, turn: TurnState, record: Record, where: str) -> None:
    check_ascending(run, f"the rejected slots of {turn.name}", where, [r["slot"] for r in record["rejected"]])
    for line in record["rejected"]:
        slot, reason = line["slot"], line["reason"]
        if slot not in turn.roster:
            continue
        of = f"of rejected slot {slot} in {turn.name}"
        run.report.equal(f"the member {of} is wrong", where, turn.roster[slot]["member"], line["member"])
        run.report.equal(f"the fault {of} is wrong", where, reason == "failed-audit", line["fault"])
        if reason in CASE_FILES and line["evidence"] is None:
            run.report.add(f"the evidence {of} is missing", where, "a digest of its case.json", "null")


def check_missed(
    run: Run, turn: TurnState, record: Record, expected: Iterable[tuple[str, int, int]], where: str
) -> None:
    """The `missed` of a record: (auditor, look, slot) as `expected`, each once."""
    listed, calls = [(m["auditor"], m["look"], m["slot"]) for m in record["missed"]], list(expected)
    got, want = Counter(listed), Counter(calls)
    for name, look, slot in sorted((want - got).elements()):
        what = f"{name} gave no verdict for look {look} of slot {slot} in {turn.name}"
        run.report.add(what, where, "a verdict, or to be listed as missed", "neither")
    for name, look, slot in sorted((got - want).elements()):
        what = f"{name} is listed as missed for look {look} of slot {slot} in {turn.name}"
        run.report.add(what, where, "only auditors that were called and gave no verdict, once", "")
    if got == want and listed != calls:
        what = f"those that missed a call in {turn.name} do not stand by slot, look and order"
        run.report.add(what, where, calls, listed)


def check_overruled(
    run: Run, turn: TurnState, record: Record, evidence: Mapping[int, str | None], where: str
) -> None:
    """The `overruled` of a record: whose verdict others did not bear out, and the case of its slot.

    `evidence` is what the record says of each slot of the turn that is not accepted.
    """
    report = run.report
    want = expected_overruled(turn)
    said = Counter((line["slot"], line["look"], line["auditor"]) for line in record["overruled"])
    keys = [(line["slot"], line["look"]) for line in record["overruled"]]
    what = f"who was overruled in {turn.name} is not in order, each once"
    report.equal(what, where, sorted(set(keys)), keys)
    due = {(slot, look, name) for (slot, look), (name, _) in want.items()}
    for slot, look, name in sorted(due - said.keys()):
        what = f"{name} is not listed as overruled for look {look} of slot {slot} in {turn.name}"
        report.add(what, where, "to be listed: others bear out another verdict", "not listed")
    for slot, look, name in sorted(said.keys() - due):
        what = f"{name} is listed as overruled for look {look} of slot {slot} in {turn.name}"
        report.add(what, where, "only auditors whose verdict others did not bear out", name)
    failed = {slot for (slot, _), (_, fails) in want.items() if fails}
    told: dict[int, str | None] = dict(evidence)
    for line in record["overruled"]:
        slot = line["slot"]
        of = f"of overruled {line['auditor']} at slot {slot} in {turn.name}"
        if slot in told:
            report.equal(f"the evidence {of} is not that of its slot", where, told[slot], line["evidence"])
        elif slot in failed and line["evidence"] is None:
            report.add(f"the evidence {of} is missing", where, "a digest of its case.json", "null")
        elif slot not in failed and line["evidence"] is not None:
            report.add(f"there is evidence {of}, who failed nobody", where, "null", line["evidence"])
        told.setdefault(slot, line["evidence"])


def overruled_members(turn: TurnState, record: Record) -> set[str]:
    """Auditors of the turn that a record lists as overruled."""
    present = {auditor["member"] for auditor in turn.auditors}
    return {line["auditor"] for line in record["overruled"]} & present


def _check_result(run: Run, turn: TurnState, record: Record, accepted: list[int], where: str) -> None:
    report = run.report
    report.equal(f"whether {turn.name} is void is told wrongly", where, not accepted, record["void"])
    if not accepted:
        for key in ("weights", "outer"):
            report.equal(
                f"the {key} changed in {turn.name}, which is void", where, turn.open["base"][key], record[key]
            )
    counts = [(turn.valid[slot]["tokens"], turn.valid[slot]["loss_last"]) for slot in accepted]
    tokens = sum(count for count, _ in counts)
    loss = sum(count * value for count, value in counts) // tokens if tokens else None
    report.equal(f"the train loss of {turn.name} is wrong", where, loss, record["train_loss"])
    config, number = run.manifest["config"], record["round"]
    rounds, every = config["run"]["rounds"], config["eval"]["every"]
    due = bool(accepted) and (number in (1, rounds) or number % every == 0)
    value = record["val_loss"]
    if due != (value is not None):
        how, *words = ("missing", "a number", "null") if due else ("there though none is due", "null", value)
        report.add(f"the validation loss of {turn.name} is {how}", where, *words)


def _outcome(run: Run, turn: TurnState, slot: int, reason: str | None) -> Outcome:
    line = turn.roster[slot]
    opening: Record = turn.valid[slot] if reason is None else {"tokens": 0, "next_state": ""}
    return Outcome(
        slot=slot,
        member=line["member"],
        operator=line["operator"],
        reason=reason,
        audited=slot in turn.drawn and not run.settings.lag,
        steps=line["steps"],
        ms=turn.ms.get(slot, 0),
        pieces=tuple((start, stop) for start, stop in line["positions"]),
        tokens=opening["tokens"],
        next_state=opening["next_state"],
    )


def _audited_tokens(run: Run, turn: TurnState, slot: int) -> int:
    """What a verdict earns: the tokens of the local steps in the segments that it looked into."""
    steps, every = turn.roster[slot]["steps"], run.settings.trace_every
    looked = sum(min((segment + 1) * every, steps) - segment * every for segment in turn.segments[slot])
    return int(turn.valid[slot]["tokens"] // steps * looked)


def _carry_over(
    run: Run, turn: TurnState, record: Record, reasons: dict[int, str | None], where: str
) -> None:
    """Queue, credit and quarantine after the turn; then take over what the close says, see `Ledger`."""
    ledger, report = run.ledger, run.report
    outcomes = [_outcome(run, turn, slot, reason) for slot, reason in reasons.items()]
    paid = paid_verdicts(run, turn, record, reasons)
    ledger.close(turn.open["turn"], outcomes, paid, overruled_members(turn, record))
    for slot, reason in reasons.items():
        if reason is None:
            run.index.add("accepted", bytes.fromhex(turn.valid[slot]["payload"][7:]))
    if turn.handed_out_right:
        check_queue(run, record, turn.name, where)
        report.equal(f"the cursor after {turn.name} is wrong", where, ledger.cursor, record["cursor"])
    ledger.cursor = record["cursor"]
    take_over(run, record, turn.name, where)


def paid_verdicts(
    run: Run, turn: TurnState, record: Record, reasons: Mapping[int, str | None]
) -> list[tuple[str, int]]:
    """(auditor, tokens that it looked into) of the verdicts that agree with how their slot was settled and
    that the record does not call overruled.

    `reasons` are those of slots that are not accepted.
    """
    overruled = {(line["slot"], line["look"], line["auditor"]) for line in record["overruled"]}
    return [
        (verdict["auditor"], _audited_tokens(run, turn, slot))
        for (look, slot), verdict in turn.verdicts.items()
        if (verdict["outcome"], reasons.get(slot)) in _PAID
        and (slot, look, verdict["auditor"]) not in overruled
    ]


def check_queue(run: Run, record: Record, after: str, where: str) -> None:
    """The queue that a record tells; `after` is what it comes after."""
    queue = [{"operator": o, "range": [start, stop]} for start, stop, o in run.ledger.queue]
    run.report.equal(f"the queue after {after} is wrong", where, queue, record["requeued"])


def take_over(run: Run, record: Record, after: str, where: str) -> None:
    """Credit and quarantine as a record tells them; then the ledger goes on from what it says."""
    ledger, report = run.ledger, run.report
    ledger.queue = [(q["range"][0], q["range"][1], q["operator"]) for q in record["requeued"]]
    lines = {line["member"]: line for line in record["credits"]}
    names = [line["member"] for line in record["credits"]]
    what = f"the credits after {after} do not list every member by name, once"
    report.equal(what, where, sorted(ledger.accounts), names)
    for name, account in sorted(ledger.accounts.items()):
        line = lines.get(name)
        if line is None:
            continue
        for key in ("earned", "vested", "forfeited"):
            what = f"the {key} credit of {name} after {after} is wrong"
            report.equal(what, where, getattr(account, key), line[key])
        account.earned, account.vested, account.forfeited = line["earned"], line["vested"], line["forfeited"]
    quarantined = sorted(ledger.quarantined)
    what = f"the members in quarantine after {after} are wrong"
    report.equal(what, where, quarantined, record["quarantined"])
