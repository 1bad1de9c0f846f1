"""From a round-open to the reveal-close: what was handed out, committed and revealed (protocol, section 4).

Owns the state of one turn while its records are read, and the checks of its first five kinds of record.
The draws, the close and the late settlement are in `fsck_audit`, `fsck_close` and `fsck_settling`; the
order of records is in `fsck_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verification.errors import FormatError, ProtocolError
from verification.fsck_beacon import in_time
from verification.fsck_cosign import WitnessKey
from verification.fsck_disputes import Dispute
from verification.fsck_draws import Chain, Witness
from verification.fsck_envelope import Envelope
from verification.fsck_findings import Record, Report, Turn
from verification.fsck_formats import Checkpoint, VerifierKey, parse_checkpoint
from verification.fsck_index import Index
from verification.fsck_json import MAX_INTEGER, hash_object
from verification.fsck_ledger import Ledger
from verification.fsck_log import Tree
from verification.fsck_shapes import Settings


@dataclass(frozen=True)
class Entry:
    """A log entry whose envelope could be read; `leaf` is its hash in the tree."""

    index: int
    leaf: bytes
    envelope: Envelope
    record: Record

    @property
    def kind(self) -> str:
        """NAME of the predicate type."""
        return self.envelope.kind


@dataclass(frozen=True)
class Head:
    """A head that the log's key has signed and that is the log's, with the witnesses that cosigned it."""

    size: int
    root: bytes
    cosigners: tuple[WitnessKey, ...]


@dataclass
class Run:
    """What holds for the whole run while its log is replayed.

    `tree` holds the entries before the one that is looked at. `on_head` takes every cosignable head.
    """

    run_id: str
    manifest: Record
    settings: Settings
    tree: Tree
    log_key: VerifierKey
    ledger: Ledger
    chain: Chain
    witnesses: dict[str, Witness]
    """By name, in the order of the manifest."""
    index: Index
    """Among others, under `accepted`: payload digests of what was accepted in the turns before this one."""
    on_head: Callable[[Head], None]
    report: Report
    base: dict[str, str]
    """Digests of the checkpoint that the next turn starts from."""
    settled: dict[str, str]
    """Digests of the checkpoint after the last settled turn, as it is for good."""
    waiting: list[TurnState] = field(default_factory=list)
    """Closed turns that are not settled, the oldest first; none where audits do not lag."""
    draws: int = 0
    """Draws and second-draws so far."""
    opens: int = 0
    """Round-opens so far."""

    def payload_was_accepted(self, digest: str) -> bool:
        """Whether a contribution with this payload was accepted in an earlier turn."""
        return self.index.has("accepted", bytes.fromhex(digest[7:]))


@dataclass
class TurnState:
    """One turn as it is read. The `dict`s are by slot."""

    first_entry: int
    open: Record
    roster: dict[int, Record] = field(default_factory=dict)
    auditors: list[Record] = field(default_factory=list)
    """Those of the open, with the keys that they had then."""
    handed_out_right: bool = True
    commitments: dict[int, Record] = field(default_factory=dict)
    commit_close: Record | None = None
    committed_size: int = 0
    """Entries up to the commit-close, with it: what head 1 signs."""
    committed_root: bytes = b""
    ms: dict[int, int] = field(default_factory=dict)
    reveals: dict[int, Record] = field(default_factory=dict)
    reveal_close: Record | None = None
    valid: dict[int, Record] = field(default_factory=dict)
    """Openings of the valid reveals."""
    refused: dict[int, str] = field(default_factory=dict)
    pulse: int | None = None
    """Number of the beacon's pulse that the reveal-close names."""
    draw: Record | None = None
    short: bool = False
    """Whether the draw is short."""
    drawn: dict[int, list[str]] = field(default_factory=dict)
    segments: dict[int, list[int]] = field(default_factory=dict)
    """The segments drawn of each drawn slot, ascending."""
    served_record: Record | None = None
    served: set[int] = field(default_factory=set)
    unserved: set[int] = field(default_factory=set)
    first_looks: Record | None = None
    seals: dict[int, Record] = field(default_factory=dict)
    """What first-looks says of each slot."""
    verdicts: dict[tuple[int, int], Record] = field(default_factory=dict)
    """By (look, slot)."""
    second_draw: Record | None = None
    disputes: dict[int, Dispute] = field(default_factory=dict)
    """Of every slot in first-looks."""
    appeals: dict[int, Record] = field(default_factory=dict)
    close: Record | None = None
    standing: set[int] = field(default_factory=set)
    """Slots that the close accepted and no settlement removed."""
    after: dict[str, str] | None = None
    """Digests of the checkpoint after this turn, where what was removed since leaves them known."""
    settlement: Record | None = None
    removed: dict[int, bool] = field(default_factory=dict)
    """Slots that a settlement removed, and whether for a fault."""

    @property
    def name(self) -> str:
        """How failures call the turn."""
        attempt = f" attempt {self.open['attempt']}" if self.open["attempt"] else ""
        return f"round {self.open['round']}{attempt}"

    def as_turn(self) -> Turn:
        """The records, for those who check what level 1 cannot."""
        return Turn(
            self.first_entry,
            self.open,
            self.commitments,
            self.commit_close,
            self.reveals,
            self.reveal_close,
            self.draw,
            self.served_record,
            tuple(self.verdicts.values()),
            self.second_draw,
            self.close,
            self.settlement,
            self.removed,
            self.first_looks,
            self.appeals,
        )


def place(entry: Entry) -> str:
    """Where an entry stands, for a failure."""
    record = entry.record
    turn = f" of round {record['round']} attempt {record['attempt']}" if "round" in record else ""
    return f"log entry {entry.index}, {entry.kind}{turn}"


def check_head(run: Run, number: int, entry: Entry, head: Checkpoint, size: int, root: bytes) -> bool:
    """Whether the head in a record is signed and is that of exactly the first `size` entries."""
    where = place(entry)
    signed = head.signed_by(run.log_key)
    if not signed:
        run.report.add(
            f"head {number} is not signed with the log's key", where, str(run.log_key), head.origin
        )
    want = f"size {size}, root {root.hex()}"
    got = f"size {head.size}, root {head.root.hex()}"
    what = f"head {number} does not sign exactly the entries before it"
    if signed and head.size == size:
        what += ": two heads of one size are signed"
    return run.report.equal(what, where, want, got) and signed


def _check_plain_head(run: Run, number: int, entry: Entry, size: int, root: bytes) -> None:
    """A head that nobody cosigns."""
    try:
        head = parse_checkpoint(entry.record["head"])
    except FormatError as error:
        what = f"head {number} is no checkpoint: {error.what}"
        run.report.add(what, place(entry), error.expected, error.got)
        return
    check_head(run, number, entry, head, size, root)


def check_ascending(run: Run, what: str, where: str, slots: list[int]) -> None:
    """Lists by slot are in order and name no slot twice."""
    if slots != sorted(set(slots)):
        run.report.add(f"{what} are not in order, each once", where, sorted(set(slots)), slots)


# --- round-open ---


def _rate(lr: float, warm: tuple[int, int], left: tuple[int, int]) -> str:
    """Section 9, learning rates: two factors `min(a, b) / b`, left to right; a factor with b = 0 is 1."""
    for a, b in (warm, left):
        lr = lr * (min(a, b) / b if b else 1.0)
    return lr.hex()


def _expected_rates(run: Run, round_number: int, count: int) -> tuple[list[str], str]:
    s = run.settings
    left = (s.rounds - round_number + 1, s.decay_rounds)
    longest = max(s.first_steps)
    if s.gradient:
        return [], _rate(s.outer_rate, (round_number, s.warmup_steps), left)
    warm = [((round_number - 1) * longest + i + 1, s.warmup_steps) for i in range(count)]
    return [_rate(s.inner_rate, w, left) for w in warm], s.outer_rate.hex()


def check_open(run: Run, turn: TurnState, entry: Entry) -> None:
    """Everything in a round-open but its numbers. Raises ProtocolError when no turn can follow from it."""
    record, report, where, s = entry.record, run.report, place(entry), run.settings
    number = record["round"]
    report.equal(f"{turn.name} does not start from the last checkpoint", where, run.base, record["base"])
    auditors = run.ledger.auditors()
    report.equal(f"the auditors of {turn.name} are wrong", where, auditors, record["auditors"])
    # A key may be rotated before the verdicts come.
    turn.auditors = [dict(auditor) for auditor in auditors]
    slots = [line["slot"] for line in record["roster"]]
    if slots != sorted(set(slots)) or any(slot >= len(run.ledger.contributors) for slot in slots):
        what = f"the roster of {turn.name} names slots that do not exist, twice or out of order"
        raise ProtocolError(what, expected=run.ledger.present(), got=slots)
    report.equal(f"the roster of {turn.name} has the wrong slots", where, run.ledger.present(), slots)
    for line in record["roster"]:
        _check_line(run, turn, line, where)
    known = [name for name in run.witnesses if name in record["witnesses"]]
    what = f"the witnesses of {turn.name} are not some of the manifest's, each once, in their order"
    report.equal(what, where, known, record["witnesses"])
    if len(record["witnesses"]) < s.required:
        what = f"{turn.name} names fewer witnesses than are required"
        report.add(what, where, f"at least {s.required}", len(record["witnesses"]))
    longest = max((line["steps"] for line in record["roster"]), default=0)
    count = 0 if s.gradient else longest
    report.equal(
        f"{turn.name} has the wrong number of inner learning rates", where, count, len(record["inner_lr"])
    )
    inner, outer = _expected_rates(run, number, min(count, len(record["inner_lr"])))
    for step, (want, got) in enumerate(zip(inner, record["inner_lr"], strict=False)):
        report.equal(f"the inner learning rate of step {step} in {turn.name} is wrong", where, want, got)
    report.equal(f"the outer learning rate of {turn.name} is wrong", where, outer, record["outer_lr"])
    deadline = s.deadline_ms if s.measured else 0
    report.equal(f"the deadline of {turn.name} is wrong", where, deadline, record["deadline_ms"])
    snapshot = s.snapshot and (number - 1) % s.state_every == 0
    report.equal(f"the snapshot flag of {turn.name} is wrong", where, snapshot, record["snapshot"])


def _check_line(run: Run, turn: TurnState, line: Record, where: str) -> None:
    """One roster entry; what the turn goes on with is the enrolment's identity and the line's work."""
    ledger, slot = run.ledger, line["slot"]
    known = ledger.contributors[slot]
    identity = {key: known[key] for key in ("member", "key", "operator", "class")}
    pieces = ledger.hand_out(known["operator"], line["steps"] * run.settings.batch)
    expected: dict[str, Any] = {
        **identity,
        "micro_batch": run.settings.micro_batch(slot),
        "steps": ledger.steps[slot],
        "positions": pieces,
        "start_state": ledger.start_state(turn.open["round"], known["member"]),
        "audit_ppm": ledger.audit_ppm(known["member"]),
        "audit_segments": ledger.audit_segments(known["member"], line["steps"]),
    }
    for key, want in expected.items():
        what = f"the {key} of slot {slot} in the roster of {turn.name} is wrong"
        if not run.report.equal(what, where, want, line[key]) and key == "positions":
            turn.handed_out_right = False
    turn.roster[slot] = {**line, **identity}


# --- commitments ---


def check_commitment(run: Run, turn: TurnState, entry: Entry) -> None:
    """A commitment is by a roster entry, in slot order, once."""
    record, slot = entry.record, entry.record["slot"]
    where = place(entry)
    if not check_author(run, turn, entry):
        return
    if turn.commitments and slot <= max(turn.commitments):
        run.report.add(
            f"the commitment of slot {slot} in {turn.name} is out of order",
            where,
            f"a slot after {max(turn.commitments)}",
            slot,
        )
    if slot in turn.commitments:
        return
    turn.commitments[slot] = record


def check_author(run: Run, turn: TurnState, entry: Entry) -> bool:
    """Whether a contributor's record is by a slot of the roster; its signature is checked too."""
    slot = entry.record["slot"]
    line = turn.roster.get(slot)
    if line is None:
        run.report.add(
            f"slot {slot} is not in the roster of {turn.name}", place(entry), sorted(turn.roster), slot
        )
        return False
    if not entry.envelope.signed_by(line["key"]):
        what = f"the {entry.kind} of slot {slot} in {turn.name} is not signed by {line['member']}"
        run.report.add(what, place(entry), line["key"], entry.envelope.keyid)
    if entry.kind != "reveal":
        for key in ("member", "key"):
            what = f"the {key} in the {entry.kind} of slot {slot} in {turn.name} is wrong"
            run.report.equal(what, place(entry), line[key], entry.record[key])
    return True


def check_commit_close(run: Run, turn: TurnState, entry: Entry) -> None:
    """Who committed, who was late, and one time for each commitment."""
    record, where = entry.record, place(entry)
    committed = sorted(turn.commitments)
    late = sorted(set(turn.roster) - set(committed))
    run.report.equal(f"the committed slots of {turn.name} are wrong", where, committed, record["committed"])
    run.report.equal(f"the late slots of {turn.name} are wrong", where, late, record["late"])
    times = (len(record["committed"]), len(record["ms"]))
    run.report.equal(f"the times of {turn.name} do not match its commitments", where, *times)
    turn.ms = dict(zip(record["committed"], record["ms"], strict=False))
    turn.commit_close = record
    turn.committed_size = entry.index + 1
    turn.committed_root = run.tree.root_after(entry.leaf)


# --- reveals ---


def check_reveal(run: Run, turn: TurnState, entry: Entry) -> None:
    """A reveal is by a slot that committed, in slot order, once. Whether it opens anything: see the close."""
    slot = entry.record["slot"]
    if not check_author(run, turn, entry):
        return
    if slot not in turn.commitments or slot in turn.reveals:
        what = f"slot {slot} revealed in {turn.name} without having committed, or twice"
        run.report.add(what, place(entry), "one reveal for each commitment")
        return
    if turn.reveals and slot < max(turn.reveals):
        what = f"the reveal of slot {slot} in {turn.name} is out of order"
        run.report.add(what, place(entry), f"a slot after {max(turn.reveals)}", slot)
    turn.reveals[slot] = entry.record


def _mismatch(run: Run, turn: TurnState, slot: int) -> str | None:
    """In what a logged reveal differs from its commitment or the open, or None."""
    reveal, line = turn.reveals[slot], turn.roster[slot]
    opening = reveal["opening"]
    committed = {key: reveal[key] for key in ("attempt", "key", "opening", "round", "run", "salt", "slot")}
    if hash_object("barnraise/commitment/v1", committed) != turn.commitments[slot]["commitment"]:
        return "commitment"
    windows = sum(stop - start for start, stop in line["positions"])
    fixed = {
        "base": turn.open["base"],
        "positions": line["positions"],
        "class": line["class"],
        "tokens": windows * run.settings.context,
        "start_state": line["start_state"],
        "trace_leaves": run.settings.segments(line["steps"]) + 1,
    }
    wrong = [key for key, want in fixed.items() if opening[key] != want]
    wrong += [key for key in ("member", "key") if reveal[key] != line[key]]
    return wrong[0] if wrong else None


def _possible(run: Run, turn: TurnState, slot: int) -> tuple[set[str], str]:
    """What a reveal-close may say of a committed slot, and why."""
    if slot not in turn.reveals:
        return {"unrevealed", "opening-mismatch"}, "no reveal is logged"
    mismatch = _mismatch(run, turn, slot)
    if mismatch is not None:
        return {"opening-mismatch"}, f"its {mismatch} does not match"
    opening, line = turn.reveals[slot]["opening"], turn.roster[slot]
    # The envelope says nothing of whether its payload came, or what the codec made of it.
    possible = {"unrevealed", "malformed-payload"}
    if run.payload_was_accepted(opening["payload"]):
        return possible | {"duplicate-payload"}, "its payload was accepted in an earlier turn"
    if turn.open["snapshot"] and line["start_state"] != run.manifest["zero_state"]:
        possible.add("unserved")
    return possible | {"revealed"}, "it opens its commitment and matches the open"


def check_reveal_close(run: Run, turn: TurnState, entry: Entry) -> None:
    """Which reveals are valid, and why the others are not; for which pulse the draw waits."""
    record, where = entry.record, place(entry)
    # Head 1 is signed before the first reveal, so that no reveal can have shaped it.
    _check_plain_head(run, 1, entry, turn.committed_size, turn.committed_root)
    refused = {line["slot"]: line["reason"] for line in record["refused"]}
    check_ascending(run, f"the revealed slots of {turn.name}", where, record["revealed"])
    check_ascending(run, f"the refused slots of {turn.name}", where, [r["slot"] for r in record["refused"]])
    both = sorted([*record["revealed"], *refused])
    run.report.equal(
        f"revealed and refused of {turn.name} are not what committed", where, sorted(turn.commitments), both
    )
    unrevealed = [slot for slot in turn.commitments if slot not in turn.reveals]
    for slot in [*turn.reveals, *unrevealed]:
        said = refused.get(slot, "revealed" if slot in record["revealed"] else "unrevealed")
        possible, why = _possible(run, turn, slot)
        if said not in possible:
            what = f"slot {slot} in {turn.name} is listed as {said} though {why}"
            run.report.add(what, where, " or ".join(sorted(possible)), said)
        if said == "revealed" and slot in turn.reveals:
            turn.valid[slot] = turn.reveals[slot]["opening"]
        else:
            turn.refused[slot] = "unrevealed" if said == "revealed" else said
    if (record["pulse"] is None) != (run.manifest["beacon"] is None):
        named = "the run names" if record["pulse"] is None else "the run does not name"
        what = f"the reveal-close of {turn.name} has the wrong pulse: {named} a beacon"
        expected = "the number of a pulse" if record["pulse"] is None else "null"
        run.report.add(what, where, expected, "null" if record["pulse"] is None else record["pulse"])
    elif record["pulse"] is not None and not in_time(run.manifest["beacon"], record["pulse"]):
        what = f"the reveal-close of {turn.name} names a pulse that comes too late for any clock"
        run.report.add(what, where, f"a time up to {MAX_INTEGER}", record["pulse"])
    turn.pulse = record["pulse"]
    turn.reveal_close = record
