"""The log as one story: manifest, enrolments, turn after turn, the end (protocol, sections 3 and 4).

Owns the order of records and the checks of manifest, enrolments and run-close; hands each record of a
turn to the module that knows it. Reads no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.fsck_audit import (
    check_appeal,
    check_draw,
    check_first_looks,
    check_second_draw,
    check_served,
    check_verdict,
)
from verification.fsck_beacon import check_beacon
from verification.fsck_close import check_round_close
from verification.fsck_draws import Chain, Witness
from verification.fsck_envelope import Envelope, parse_envelope
from verification.fsck_findings import Record, Report, Turn, TurnSink
from verification.fsck_formats import VerifierKey, make_verifier_key, parse_key
from verification.fsck_index import Index
from verification.fsck_json import hash_object
from verification.fsck_ledger import Ledger
from verification.fsck_log import Tree
from verification.fsck_members import Members
from verification.fsck_settling import check_settlement
from verification.fsck_shapes import RECORDS, Settings
from verification.fsck_tolerance import check_tolerance
from verification.fsck_turn import (
    Entry,
    Head,
    Run,
    TurnState,
    check_commit_close,
    check_commitment,
    check_open,
    check_reveal,
    check_reveal_close,
    place,
)
from verification.fsck_witness import read_witnesses

_FOLLOWS = {
    "round-open": ("commitment", "commit-close"),
    "commit-close": ("reveal", "reveal-close"),
    "reveal-close": ("draw",),
    "draw": ("served",),
    "served": ("first-looks",),
    "first-looks": ("second-draw",),
    "second-draw": ("verdict", "appeal", "round-close"),
    "round-close": (),
}
"""After the record that began a phase: what may come, the last of them beginning the next phase."""
_DUE = "settlement due"
_FOLLOWS_LATE = {
    **{phase: _FOLLOWS[phase] for phase in ("round-open", "commit-close", "reveal-close", "draw")},
    "served": ("round-close",),
    "round-close": (),
    _DUE: ("first-looks",),
    "first-looks": ("second-draw",),
    "second-draw": ("verdict", "appeal", "settlement"),
    "settlement": (),
}
"""The same where audits lag; no record begins the phase in which a settlement is due."""

_CHECKS: dict[str, Callable[[Run, TurnState, Entry], None]] = {
    "commitment": check_commitment,
    "commit-close": check_commit_close,
    "reveal": check_reveal,
    "reveal-close": check_reveal_close,
    "draw": check_draw,
    "served": check_served,
    "first-looks": check_first_looks,
    "verdict": check_verdict,
    "appeal": check_appeal,
    "second-draw": check_second_draw,
    "round-close": check_round_close,
    "settlement": check_settlement,
}
_OF_MEMBERS: dict[str, Callable[[Members, Entry], None]] = {
    "enrol": Members.enrol,
    "leave": Members.leave,
    "return": Members.come_back,
    "key-rotation": Members.rotate,
    "key-revocation": Members.revoke,
}
_SIGNED_BY_MEMBERS = (*_OF_MEMBERS, "commitment", "reveal", "verdict", "appeal")
"""The others are the coordinator's; `Members` knows of two that may be."""
_BETWEEN_TURNS = ("round-open", "run-close", *_OF_MEMBERS)


@dataclass(frozen=True)
class Story:
    """What the log tells, in short. `waiting`: (round, attempt) of closed turns that are not settled. `whole`
    is false when the replay had to stop before the log's end.
    """

    enrolments: tuple[Record, ...] = ()
    last_turn: Turn | None = None
    waiting: tuple[tuple[int, int], ...] = ()
    run_close: Record | None = None
    rounds: int = 0
    weights_digest: str = ""
    whole: bool = False


@dataclass(frozen=True)
class Ground:
    """What a manifest that passed gives the replay to stand on."""

    log_key: VerifierKey
    witnesses: dict[str, Witness]


# --- manifest ---


def check_manifest(manifest: Record, report: Report) -> Ground | None:
    """Check a manifest's shape and whatever in it follows from the rest of it.

    Returns None when nothing can be built on this manifest. Raises UsageError when it names a beacon and what
    checks a beacon is not installed.
    """
    where = "log entry 0, manifest"
    try:
        RECORDS["manifest"](manifest, "manifest")
        public = parse_key(manifest["coordinator"])
        key = make_verifier_key(manifest["origin"], public)
        witnesses = read_witnesses(manifest, report)
        check_beacon(manifest, report)
    except (FormatError, SignatureError) as error:
        report.add(f"the manifest is malformed: {error.what}", where, error.expected, error.got)
        return None
    report.equal("log_vkey is not the coordinator's for this origin", where, str(key), manifest["log_vkey"])
    dataset = {name: value for name, value in manifest["dataset"].items() if name != "root"}
    root = hash_object("barnraise/dataset/v1", dataset)
    report.equal("the dataset's root is wrong", where, root, manifest["dataset"]["root"])
    names = [name for name, _ in manifest["arrays"]]
    report.equal(
        "the arrays are not listed by name, each once", where, sorted(set(names), key=str.encode), names
    )
    files = [shard["file"] for part in ("train", "validation") for shard in manifest["dataset"][part]]
    distinct = {str(PurePosixPath(name)) for name in [*files, "tokenizer.json"]}
    report.equal("the dataset names a file twice", where, len(files) + 1, len(distinct))
    compression = manifest["config"]["compression"]
    codec = f"topk{compression['k']}of{compression['chunk']}-eliasfano-2bit-e5m3-v1"
    report.equal("the codec's name does not fit the configuration", where, codec, manifest["codec"])
    chunk, k = compression["chunk"], compression["k"]
    if chunk & (chunk - 1) or k & (k - 1) or not 8 <= k <= chunk // 4:
        report.add(
            "the codec's sizes are not allowed",
            where,
            "powers of two, 8 <= k <= chunk / 4",
            f"{k} of {chunk}",
        )
    check_tolerance(manifest, where, report)
    lag, vesting = manifest["config"]["audit"]["lag"], manifest["config"]["credit"]["vest_rounds"]
    if lag and vesting <= lag:
        what = "credit vests before the audits that lag are over"
        report.add(what, where, f"credit.vest_rounds above {lag}", vesting)
    train = manifest["config"]["train"]
    micro, count = train["micro_batch"], len(train["steps"])
    if micro and (len(micro) != count or max(micro) > train["batch"]):
        expected = f"none, or {count} numbers up to {train['batch']}"
        report.add("the micro-batches are not allowed", where, expected, micro)
        return None
    if not train["steps"]:
        report.add("the configuration has no contributor's steps", where, "one number per contributor", "[]")
        return None
    return Ground(key, witnesses)


# --- entries ---


def read_envelope(index: int, entry: bytes, report: Report) -> Envelope | None:
    """An entry's envelope; None where it is malformed, which is noted."""
    try:
        return parse_envelope(entry)
    except FormatError as error:
        what = f"entry {index} of the log is malformed: {error.what}"
        report.add(what, f"log entry {index}", error.expected, error.got)
        return None


class Replay:
    """Goes through the log once, entry by entry; `manifest` has passed `check_manifest`.

    `finished` takes every turn when all of it is told. Where nothing can follow any more, the rest of the log
    is not looked at.
    """

    def __init__(
        self,
        manifest: Record,
        run_id: str,
        ground: Ground,
        *,
        tree: Tree,
        index: Index,
        on_head: Callable[[Head], None],
        finished: TurnSink,
        report: Report,
    ) -> None:
        settings = Settings.of(manifest)
        chain = Chain(bytes.fromhex(manifest["draw_chain"]["end"][7:]), manifest["draw_chain"]["length"])
        ledger = Ledger(settings, manifest["zero_state"], [])
        self.run = Run(
            run_id, manifest, settings, tree, ground.log_key, ledger, chain, ground.witnesses, index,
            on_head, report, manifest["initial"], manifest["initial"],
        )  # fmt: skip
        self.members = Members(self.run)
        self.run_close: Record | None = None
        self.rounds = 0
        self.attempt = 0
        self.tokens = 0
        self.turn: TurnState | None = None
        """The turn that records are of: the one in progress, or the one whose settlement is due."""
        self.last: TurnState | None = None
        """The last turn that was opened."""
        self.follows = _FOLLOWS_LATE if settings.lag else _FOLLOWS
        self.phase = "enrol"
        self.broken = False
        self._finished = finished

    def first(self, envelope: Envelope) -> None:
        """The manifest's own entry: its subject and signature."""
        run, where = self.run, "log entry 0, manifest"
        subject = ("dataset", run.manifest["dataset"]["root"].removeprefix("sha256:"))
        run.report.equal("the manifest's subject is not its dataset", where, subject, envelope.subject)
        coordinator = run.manifest["coordinator"]
        if not envelope.signed_by(coordinator):
            what = "the manifest is not signed by the coordinator"
            run.report.add(what, where, coordinator, envelope.keyid)

    def take(self, index: int, envelope: Envelope | None, leaf: bytes) -> None:
        """The next entry; None when it could not be read."""
        if self.broken:
            return
        try:
            if envelope is None:
                raise ProtocolError(f"entry {index} could not be read")
            self._step(index, envelope, leaf)
        except BarnraiseError as error:
            kind = f", {envelope.kind}" if envelope is not None else ""
            self.run.report.add(
                f"{error.what} (the log's story is not followed from here on)",
                f"log entry {index}{kind}",
                error.expected or "",
                error.got or "",
            )
            self.broken = True

    def _step(self, index: int, envelope: Envelope, leaf: bytes) -> None:
        """Raises a BarnraiseError where nothing can follow any more."""
        kind = envelope.kind
        if self.run_close is not None:
            raise ProtocolError("the log goes on after run-close", got=kind)
        allowed = self._allowed()
        if kind not in allowed:
            what = "a record is out of order"
            if self._has_signed(kind):
                what += f": the {kind} of one turn is signed twice"
            raise ProtocolError(what, expected=" or ".join(allowed), got=kind)
        if not envelope.fits:
            RECORDS[kind](envelope.predicate, kind)
        entry = Entry(index, leaf, envelope, envelope.predicate)
        self._check_frame(entry)
        if kind in _OF_MEMBERS:
            _OF_MEMBERS[kind](self.members, entry)
        elif kind == "round-open":
            self._open(entry)
        elif kind == "run-close":
            self._close_run(entry)
        elif self.turn is not None:
            self._turn_record(self.turn, entry)

    def _allowed(self) -> tuple[str, ...]:
        if self.phase == "enrol":
            return ("enrol", "round-open", "run-close")
        return self.follows[self.phase] or _BETWEEN_TURNS

    def _has_signed(self, kind: str) -> bool:
        """Whether a record of the coordinator's of this kind stands in this turn already."""
        kinds = [*self.follows]
        if kind not in kinds or self.phase not in kinds:
            return False
        at, now = kinds.index(kind), kinds.index(self.phase)
        late = now > kinds.index("round-close")
        # Here it may be another turn's: the open of the next, or a settlement that is not due.
        if late and (kind == "round-open" or (self.phase == "settlement" and at > kinds.index(_DUE))):
            return False
        return at <= now

    def _check_frame(self, entry: Entry) -> None:
        """Run id and subject, and the coordinator's signature where it is due."""
        run, kind = self.run, entry.kind
        if entry.record["run"] != run.run_id:
            what = f"the run id in the {kind} is another"
            run.report.add(what, place(entry), run.run_id, entry.record["run"])
        subject = ("run", run.run_id.removeprefix("sha256:"))
        if entry.envelope.subject != subject:
            what = f"the subject of the {kind} is not this run"
            run.report.add(what, place(entry), subject, entry.envelope.subject)
        coordinator = run.manifest["coordinator"]
        if kind not in _SIGNED_BY_MEMBERS and not entry.envelope.signed_by(coordinator):
            what = f"the {kind} is not signed by the coordinator"
            run.report.add(what, place(entry), coordinator, entry.envelope.keyid)

    def _open(self, entry: Entry) -> None:
        record, report, where = entry.record, self.run.report, place(entry)
        if self.phase == "enrol":
            self.members.complete(where)
        numbers = {"round": self.rounds + 1, "attempt": self.attempt, "turn": self.run.opens}
        for key, want in numbers.items():
            report.equal(f"the {key} of a round-open is wrong", where, want, record[key])
        if self.rounds >= self.run.settings.rounds:
            report.add(
                "a round is opened after the last",
                where,
                f"{self.run.settings.rounds} rounds",
                record["round"],
            )
        if self.attempt >= self.run.settings.max_void:
            report.add(
                "the run goes on after too many void turns",
                where,
                f"at most {self.run.settings.max_void}",
                self.attempt,
            )
        # What follows is judged by the numbers that are due, so that one wrong number is named once.
        self.turn = self.last = TurnState(entry.index, {**record, **numbers})
        self.run.opens += 1
        self.phase = entry.kind
        check_open(self.run, self.turn, entry)

    def _turn_record(self, turn: TurnState, entry: Entry) -> None:
        for key in ("round", "attempt"):
            if turn.open[key] != entry.record[key]:
                what = f"the {key} in the {entry.kind} is not that of its round-open"
                self.run.report.add(what, place(entry), turn.open[key], entry.record[key])
        _CHECKS[entry.kind](self.run, turn, entry)
        if entry.kind == self.follows[self.phase][-1]:
            self.phase = entry.kind
        if entry.kind == "round-close":
            self._closed(turn, entry.record)
        elif entry.kind == "settlement":
            self.run.waiting.pop(0)
            self._over(turn)
        waiting, settings = self.run.waiting, self.run.settings
        due = len(waiting) > settings.lag or (waiting and self.rounds >= settings.rounds)
        if due and self.phase in ("round-close", "settlement"):
            self.phase, self.turn = _DUE, waiting[0]

    def _closed(self, turn: TurnState, close: Record) -> None:
        void = not close["accepted"]
        self.attempt = self.attempt + 1 if void else 0
        if not void:
            self.rounds += 1
            self.run.base = {key: close[key] for key in ("outer", "weights")}
        if self.run.settings.lag:
            self.run.waiting.append(turn)
        else:
            self._over(turn)

    def _over(self, turn: TurnState) -> None:
        """All of a turn is told."""
        accepted: list[Record] = turn.close["accepted"] if turn.close is not None else []
        self.tokens += sum(line["tokens"] for line in accepted if line["slot"] not in turn.removed)
        self._finished(turn.as_turn())

    def _close_run(self, entry: Entry) -> None:
        record = entry.record
        expected = {"rounds": self.rounds, **self.run.base, "tokens": self.tokens}
        for key, want in expected.items():
            self.run.report.equal(f"the {key} of the run-close are wrong", place(entry), want, record[key])
        what = "the run is closed before its last round"
        self.run.report.equal(what, place(entry), self.run.settings.rounds, self.rounds)
        self.run_close = record

    def end(self) -> Story:
        """What was read. Turns that wait, and one that the log breaks off in, are handed over as they are."""
        waiting = self.run.waiting
        for turn in waiting:
            self._finished(turn.as_turn())
        last = self.last.as_turn() if self.last is not None else None
        if last is not None and last.close is None:
            self._finished(last)
        return Story(
            tuple(self.members.enrolments),
            last,
            tuple((turn.open["round"], turn.open["attempt"]) for turn in waiting),
            self.run_close,
            self.rounds,
            self.run.base["weights"],
            whole=not self.broken,
        )


def payload_length(manifest: Record) -> int:
    """Bytes of every payload of a run (section 8)."""
    chunk: int = manifest["config"]["compression"]["chunk"]
    k: int = manifest["config"]["compression"]["k"]
    length: int = 0
    for _, dims in manifest["arrays"]:
        elements = 1
        for dim in dims:
            elements *= dim
        length += elements
    low_bits = (chunk // k).bit_length() - 1
    return -(-length // chunk) * (k * (low_bits + 4) // 8 + 1)
