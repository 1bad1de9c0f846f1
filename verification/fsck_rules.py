"""The log as one story: manifest, enrolments, turn after turn, the end (protocol, sections 3 and 4).

Owns the order of records and the checks of manifest, enrolments and run-close; hands each record of a
turn to the module that knows it. Reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.fsck_audit import check_draw, check_second_draw, check_served, check_verdict
from verification.fsck_close import check_round_close
from verification.fsck_draws import Chain
from verification.fsck_findings import Progress, Record, Report, Turn
from verification.fsck_formats import (
    Envelope,
    VerifierKey,
    hash_object,
    make_verifier_key,
    parse_envelope,
    parse_key,
)
from verification.fsck_ledger import Ledger
from verification.fsck_shapes import RECORDS, Settings
from verification.fsck_turn import (
    Entry,
    Run,
    TurnState,
    check_commit_close,
    check_commitment,
    check_open,
    check_reveal,
    check_reveal_close,
    place,
)

_FOLLOWS = {
    "round-open": ("commitment", "commit-close"),
    "commit-close": ("reveal", "reveal-close"),
    "reveal-close": ("draw",),
    "draw": ("served",),
    "served": ("verdict", "second-draw"),
    "second-draw": ("verdict", "round-close"),
    "round-close": (),
}
"""After the record that began a phase: what may come, the last of them beginning the next phase."""

_CHECKS: dict[str, Callable[[Run, TurnState, Entry], None]] = {
    "commitment": check_commitment,
    "commit-close": check_commit_close,
    "reveal": check_reveal,
    "reveal-close": check_reveal_close,
    "draw": check_draw,
    "served": check_served,
    "verdict": check_verdict,
    "second-draw": check_second_draw,
    "round-close": check_round_close,
}
_SIGNED_BY_MEMBERS = ("enrol", "commitment", "reveal", "verdict")


@dataclass(frozen=True)
class Story:
    """What the log tells. `whole` is false when the replay had to stop before the log's end."""

    enrolments: tuple[Record, ...] = ()
    turns: tuple[Turn, ...] = ()
    run_close: Record | None = None
    rounds: int = 0
    weights_digest: str = ""
    whole: bool = False


# --- manifest ---


def check_manifest(manifest: Record, report: Report) -> VerifierKey | None:
    """Check a manifest's shape and whatever in it follows from the rest of it.

    Returns the log's verifier key, or None when nothing can be built on this manifest.
    """
    where = "log entry 0, manifest"
    try:
        RECORDS["manifest"](manifest, "manifest")
        public = parse_key(manifest["coordinator"])
        key = make_verifier_key(manifest["origin"], public)
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
    if not manifest["config"]["train"]["steps"]:
        report.add("the configuration has no contributor's steps", where, "one number per contributor", "[]")
        return None
    return key


# --- entries ---


def read_envelopes(
    entries: Sequence[bytes], report: Report, progress: Progress | None
) -> list[Envelope | None]:
    """Every entry's envelope; None where it is malformed, which is noted."""
    envelopes: list[Envelope | None] = []
    for index, entry in enumerate(entries):
        try:
            envelopes.append(parse_envelope(entry))
        except FormatError as error:
            report.add(
                f"entry {index} of the log is malformed: {error.what}",
                f"log entry {index}",
                error.expected,
                error.got,
            )
            envelopes.append(None)
        if progress is not None:
            progress("entries", index + 1, len(entries))
    return envelopes


class _Replay:
    """Goes through the log once. `_step` raises a BarnraiseError where nothing can follow any more."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.enrolments: list[Record] = []
        self.turns: list[TurnState] = []
        self.run_close: Record | None = None
        self.rounds = 0
        self.attempt = 0
        self.tokens = 0
        self.base: dict[str, str] = run.manifest["initial"]
        self.turn: TurnState | None = None
        self.phase = "enrol"
        self._members: set[str] = set()
        self._keys: set[str] = set()

    def step(self, index: int, envelope: Envelope) -> None:
        """Take the next entry."""
        if self.run_close is not None:
            raise ProtocolError("the log goes on after run-close", got=envelope.kind)
        allowed = self._allowed()
        if envelope.kind not in allowed:
            raise ProtocolError("a record is out of order", expected=" or ".join(allowed), got=envelope.kind)
        RECORDS[envelope.kind](envelope.predicate, envelope.kind)
        entry = Entry(index, envelope, envelope.predicate)
        self._check_frame(entry)
        if entry.kind == "enrol":
            self._enrol(entry)
        elif entry.kind == "round-open":
            self._open(entry)
        elif entry.kind == "run-close":
            self._close_run(entry)
        elif self.turn is not None:
            self._turn_record(self.turn, entry)

    def _allowed(self) -> tuple[str, ...]:
        if self.phase == "enrol":
            return ("enrol", "round-open", "run-close")
        return _FOLLOWS[self.phase] or ("round-open", "run-close")

    def _check_frame(self, entry: Entry) -> None:
        """Run id and subject, and the coordinator's signature where it is due."""
        run, where = self.run, place(entry)
        run.report.equal(f"the run id in the {entry.kind} is another", where, run.run_id, entry.record["run"])
        subject = ("run", run.run_id.removeprefix("sha256:"))
        run.report.equal(
            f"the subject of the {entry.kind} is not this run", where, subject, entry.envelope.subject
        )
        coordinator = run.manifest["coordinator"]
        if entry.kind not in _SIGNED_BY_MEMBERS and not entry.envelope.signed_by(coordinator):
            what = f"the {entry.kind} is not signed by the coordinator"
            run.report.add(what, where, coordinator, entry.envelope.keyid)

    def _enrol(self, entry: Entry) -> None:
        record, report, where = entry.record, self.run.report, place(entry)
        name = record["member"]
        parse_key(record["key"])
        if not entry.envelope.signed_by(record["key"]):
            what = f"the enrolment of {name} is not signed with its own key"
            report.add(what, where, record["key"], entry.envelope.keyid)
        if name in self._members:
            raise ProtocolError(f"two members are called {name}", expected="unique names")
        if record["key"] in self._keys:
            report.add(f"the key of {name} is another member's too", where, "unique keys", record["key"])
        self._members.add(name)
        self._keys.add(record["key"])
        self.enrolments.append(record)

    def _end_of_enrolments(self, where: str) -> None:
        run = self.run
        run.ledger = Ledger(run.settings, run.manifest["zero_state"], self.enrolments)
        contributors, steps = len(run.ledger.contributors), len(run.settings.first_steps)
        what = "train.steps does not have one number per contributor"
        run.report.equal(what, where, contributors, steps)
        if contributors > steps:
            raise ProtocolError(what, expected=contributors, got=steps)

    def _open(self, entry: Entry) -> None:
        record, report, where = entry.record, self.run.report, place(entry)
        if self.phase == "enrol":
            self._end_of_enrolments(where)
        numbers = {"round": self.rounds + 1, "attempt": self.attempt, "turn": len(self.turns)}
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
        self.turn = TurnState(entry.index, {**record, **numbers})
        self.turns.append(self.turn)
        self.phase = entry.kind
        check_open(self.run, self.turn, entry, self.base)

    def _turn_record(self, turn: TurnState, entry: Entry) -> None:
        for key in ("round", "attempt"):
            what = f"the {key} in the {entry.kind} is not that of its round-open"
            self.run.report.equal(what, place(entry), turn.open[key], entry.record[key])
        _CHECKS[entry.kind](self.run, turn, entry)
        if entry.kind == _FOLLOWS[self.phase][-1]:
            self.phase = entry.kind
        if turn.close is None:
            return
        void = not turn.close["accepted"]
        self.attempt = self.attempt + 1 if void else 0
        if not void:
            self.rounds += 1
            self.base = {key: turn.close[key] for key in ("outer", "weights")}
            self.tokens += sum(line["tokens"] for line in turn.close["accepted"])

    def _close_run(self, entry: Entry) -> None:
        record = entry.record
        expected = {"rounds": self.rounds, **self.base, "tokens": self.tokens}
        for key, want in expected.items():
            self.run.report.equal(f"the {key} of the run-close are wrong", place(entry), want, record[key])
        what = "the run is closed before its last round"
        self.run.report.equal(what, place(entry), self.run.settings.rounds, self.rounds)
        self.run_close = record

    def story(self, *, whole: bool) -> Story:
        """What was read so far."""
        return Story(
            tuple(self.enrolments),
            tuple(turn.as_turn() for turn in self.turns),
            self.run_close,
            self.rounds,
            self.base["weights"],
            whole,
        )


def replay(
    manifest: Record,
    run_id: str,
    log_key: VerifierKey,
    envelopes: Sequence[Envelope | None],
    *,
    roots: tuple[bytes, ...],
    report: Report,
    progress: Progress | None,
) -> Story:
    """Check the records of a log against the rules; `manifest` has passed `check_manifest`."""
    settings = Settings.of(manifest)
    first = envelopes[0] if envelopes else None
    if first is not None:
        subject = ("dataset", manifest["dataset"]["root"].removeprefix("sha256:"))
        where = "log entry 0, manifest"
        report.equal("the manifest's subject is not its dataset", where, subject, first.subject)
        if not first.signed_by(manifest["coordinator"]):
            report.add(
                "the manifest is not signed by the coordinator", where, manifest["coordinator"], first.keyid
            )
    chain = Chain(bytes.fromhex(manifest["draw_chain"]["end"][7:]), manifest["draw_chain"]["length"])
    ledger = Ledger(settings, manifest["zero_state"], [])
    steps = _Replay(Run(run_id, manifest, settings, roots, log_key, ledger, chain, report))
    for index, envelope in enumerate(envelopes[1:], 1):
        try:
            if envelope is None:
                raise ProtocolError(f"entry {index} could not be read")
            steps.step(index, envelope)
        except BarnraiseError as error:
            kind = f", {envelope.kind}" if envelope is not None else ""
            report.add(
                f"{error.what} (the log's story is not followed from here on)",
                f"log entry {index}{kind}",
                error.expected or "",
                error.got or "",
            )
            return steps.story(whole=False)
        if progress is not None:
            progress("records", index + 1, len(envelopes))
    return steps.story(whole=bool(envelopes))


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
