"""A run's log as the facts of its report, and the file report.html.

Owns what the report counts and where it takes it from: the log alone, with every signature checked and every
record put through the state machine, and the data folder for the unigram reference. Does not own how the page
looks (report_page.py), what metrics.jsonl says of times (report_metrics.py), or whether the run holds:
`barnraise verify` checks more, and recomputes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.manifest import DatasetManifest
from data_prep.prepare import unigram_cross_entropy
from pipeline.checkpoint import Aggregator
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.replay_aggregation import checked_config
from pipeline.report_metrics import Metrics
from verification.durable import write_atomic
from verification.encoding import sha256_digest
from verification.errors import BarnraiseError, FormatError, UsageError
from verification.identity import IdentityChange
from verification.judge import Outcome, settle, verdicts_on
from verification.log import Log
from verification.looks import Asked, asked_at
from verification.notes import Checkpoint
from verification.records import (
    Enrol,
    Manifest,
    Overruled,
    Rejected,
    Removed,
    RosterEntry,
    RoundClose,
    Settlement,
    Verdict,
)
from verification.rounds import apply, begin
from verification.settling import FOLLOWS, final_outcomes, tokens_of
from verification.state import RunState, Turn

MICRO = 1e6
# Counting the tokens of a larger data set would take longer than everything else in the report.
MAX_COUNTED_TOKENS = 200_000_000


@dataclass(frozen=True)
class Work:
    """One roster entry of a closed turn. `reason` is None when it was accepted; loss in nats.

    `order` are the auditors drawn; `asked` the looks that are over, none before the verdicts are in the log.
    """

    entry: RosterEntry
    tokens: int
    loss: float | None
    reason: str | None
    drawn: bool
    order: tuple[str, ...]
    asked: tuple[Asked, ...]
    verdicts: tuple[Verdict, ...]
    overruled: tuple[Overruled, ...]
    rejection: Rejected | Removed | None
    evidence: str | None
    evidence_state: str


@dataclass(frozen=True)
class ClosedTurn:
    """One closed turn: `tokens` accepted in it, `total` accepted up to its end, losses in nats.

    `weights` is the array digest of the checkpoint after it, `entry` where in the log the close stands.
    """

    round: int
    attempt: int
    void: bool
    work: tuple[Work, ...]
    tokens: int
    total: int
    payloads: int
    train_loss: float | None
    val_loss: float | None
    seeds: tuple[str, str]
    weights: str
    entry: int


@dataclass(frozen=True)
class Change:
    """A member joined, left, came back, or changed its key, before `round`; `by` whose word it is."""

    round: int
    member: str
    role: str
    what: str
    by: str


@dataclass(frozen=True)
class Balance:
    """A member's credit in tokens: `earned` is the sum of `vested`, `unvested` and `forfeited`."""

    member: Enrol
    earned: int
    vested: int
    forfeited: int
    quarantined: bool

    @property
    def unvested(self) -> int:
        """Earned, and neither vested nor lost yet."""
        return self.earned - self.vested - self.forfeited


@dataclass(frozen=True)
class RunStory:
    """Everything the page shows. `status` says how far the run is; `payload_bytes` is one update's."""

    manifest: Manifest
    dataset: DatasetManifest
    run_id: str
    head: Checkpoint
    note: str
    finished: bool
    status: str
    turns: tuple[ClosedTurn, ...]
    balances: tuple[Balance, ...]
    changes: tuple[Change, ...]
    parameters: int
    payload_bytes: int
    unigram: float | None

    @property
    def rounds(self) -> int:
        """Rounds closed with something accepted."""
        return sum(not turn.void for turn in self.turns)

    def weights(self, round_: int) -> str:
        """Array digest of the weights after a round, 0 being the start. UsageError when it is not closed."""
        if round_ == 0:
            return self.manifest.initial.weights
        for turn in self.turns:
            if turn.round == round_ and not turn.void:
                return turn.weights
        raise UsageError("that round is not closed", expected=f"0 to {self.rounds}", got=round_)

    @property
    def tokens(self) -> int:
        """Accepted tokens."""
        return self.turns[-1].total if self.turns else 0

    @property
    def contributors(self) -> tuple[Enrol, ...]:
        """By slot."""
        return tuple(b.member for b in self.balances if b.member.role == "contributor")

    @property
    def validation(self) -> tuple[tuple[int, int, float], ...]:
        """(round, accepted tokens, nats) of every validation."""
        return tuple((t.round, t.total, t.val_loss) for t in self.turns if t.val_loss is not None)

    @property
    def training(self) -> tuple[tuple[int, int, float], ...]:
        """(round, accepted tokens, nats) of every round with accepted work."""
        return tuple((t.round, t.total, t.train_loss) for t in self.turns if t.train_loss is not None)


def open_log(folder: RunFolder) -> tuple[Manifest, Log]:
    """The manifest and the log, for reading. Raises UsageError, FormatError, SignatureError, StorageError."""
    manifest = folder.parsed_manifest()
    keys = (manifest.log_vkey, manifest.witness_vkeys)
    return manifest, Log.open(folder.log, manifest.origin, None, *keys)


def read_story(folder: RunFolder) -> RunStory:
    """The facts of a run, complete or not, from its log.

    Raises what `open_log` raises, FormatError for a configuration that no run can have, and ProtocolError
    when a record does not follow from those before it.
    """
    manifest, log = open_log(folder)
    checked_config({"config": manifest.config})
    codec = Aggregator.of(manifest.arrays, manifest.config).codec
    state: RunState | None = None
    turns: list[ClosedTurn] = []
    changes: list[Change] = []
    for index, (record, _) in enumerate(read_entries(log, manifest)):
        if state is None:
            state = begin(manifest)
            continue
        before, state = state, apply(state, record)
        if isinstance(record, RoundClose):
            turns.append(_closed(folder, before, record, state.tokens, index))
        elif isinstance(record, Enrol | IdentityChange):
            changes += _change(before, state, record)
        elif isinstance(record, Settlement):
            turns = _resettled(folder, turns, before, record)
    if state is None:
        raise FormatError("the log is empty", expected="the manifest as entry 0")
    dataset = DatasetManifest.from_json(manifest.dataset)
    return RunStory(
        manifest=manifest,
        dataset=dataset,
        run_id=manifest.run_id,
        head=log.head,
        note=log.checkpoint,
        finished=state.finished,
        status=_status(state),
        turns=tuple(turns),
        balances=_balances(state),
        changes=tuple(changes),
        parameters=codec.length,
        payload_bytes=codec.payload_bytes,
        unigram=reference_loss(dataset, folder.data),
    )


def _balances(state: RunState) -> tuple[Balance, ...]:
    order = (*state.by_role("contributor"), *state.by_role("auditor"))
    found = [(member, state.standings[member.member]) for member in order]
    return tuple(Balance(m, s.earned, s.vested, s.forfeited, s.quarantined) for m, s in found)


def _change(before: RunState, state: RunState, record: Enrol | IdentityChange) -> list[Change]:
    """What a record between turns changed; nobody joins by enrolling before the first turn."""
    if not before.turns:
        return []
    what = {"enrol": "joined", "leave": "left", "return": "came back", "key-rotation": "changed its key"}
    role = state.member(record.member).role
    by = getattr(record, "by", "member")
    return [Change(state.round, record.member, role, what.get(record.kind, "lost its key"), by)]


def _status(state: RunState) -> str:
    rounds = f"{state.rounds_done} of {state.config['run']['rounds']} rounds"
    if state.finished:
        return f"finished, {rounds}"
    if state.turn is None:
        return f"not finished, {rounds} closed"
    again = f", attempt {state.attempt + 1}" if state.attempt else ""
    return f"not finished, {rounds} closed; round {state.round}{again} is open, {_phase(state.turn)}"


def _phase(turn: Turn) -> str:
    if turn.second:
        return "second looks and disputes are under way"
    if turn.served:
        return "audits are under way"
    if turn.draw:
        return "the audits are drawn"
    if turn.reveal_close:
        return "the reveals are closed"
    if turn.commit_close:
        return f"{len(turn.reveals)} of {len(turn.commitments)} revealed"
    return f"{len(turn.commitments)} of {len(turn.open.roster)} committed"


def _resettled(
    folder: RunFolder, turns: list[ClosedTurn], state: RunState, record: Settlement
) -> list[ClosedTurn]:
    """The closed turns after a settlement; `state` is that before it."""
    turn = state.open_turn
    rejections = {item.slot: item for item in record.removed if item.reason != FOLLOWS}
    work = {
        outcome.entry.slot: _work(
            folder, state, turn, rejections.get(outcome.entry.slot), outcome, record.overruled
        )
        for outcome in final_outcomes(state)
    }
    gone = sum(tokens_of(state, item) for item in record.removed)
    found = []
    for one in turns:
        if (one.round, one.attempt) == (record.round, record.attempt):
            # What the close refused keeps its case.
            whole = tuple(before if before.reason else work[before.entry.slot] for before in one.work)
            seeds = (one.seeds[0], turn.second.seed if turn.second else "")
            tokens = sum(item.tokens for item in whole if item.reason is None)
            one = replace(one, work=whole, seeds=seeds, tokens=tokens)  # noqa: PLW2901 - the same turn, settled
        found.append(one)
    if record.removed:
        found[-1] = replace(found[-1], weights=record.weights, total=found[-1].total - gone)
    return found


def _closed(folder: RunFolder, state: RunState, close: RoundClose, total: int, entry: int) -> ClosedTurn:
    turn = state.open_turn
    if turn.draw is None or turn.reveal_close is None:
        raise FormatError("a turn was closed without its draws")
    rejections = {item.slot: item for item in close.rejected}
    return ClosedTurn(
        round=close.round,
        attempt=close.attempt,
        void=close.void,
        work=tuple(
            _work(folder, state, turn, rejections.get(outcome.entry.slot), outcome, close.overruled)
            for outcome in settle(turn.evidence)
        ),
        tokens=sum(item.tokens for item in close.accepted),
        total=total,
        payloads=len(turn.reveal_close.revealed),
        train_loss=_nats(close.train_loss),
        val_loss=_nats(close.val_loss),
        seeds=(turn.draw.seed, turn.second.seed if turn.second else ""),
        weights=close.weights,
        entry=entry,
    )


def _work(
    folder: RunFolder,
    state: RunState,
    turn: Turn,
    rejection: Rejected | Removed | None,
    outcome: Outcome,
    overruled: Sequence[Overruled],
) -> Work:
    slot = outcome.entry.slot
    order = next((d.auditors for d in turn.draw.drawn if d.slot == slot), ()) if turn.draw else ()
    served = turn.served.served if turn.served else ()
    # What fell with earlier work of its member before its own audits were over was not asked about.
    judged = turn.second is not None and slot in served and outcome.reason != FOLLOWS
    reveal = turn.reveals.get(slot)
    path, found = None, ""
    mine = tuple(item for item in overruled if item.slot == slot)
    if digest := next((item.evidence for item in (rejection, *mine) if item and item.evidence), None):
        case = folder.evidence_folder(turn.open, slot) / "case.json"
        path, found = str(case.relative_to(folder.path)), _evidence_state(case, digest)
    return Work(
        entry=outcome.entry,
        tokens=outcome.entry.steps * state.config["train"]["batch"] * state.manifest.dataset["context"],
        loss=_nats(reveal.opening.loss_last) if reveal else None,
        reason=outcome.reason,
        drawn=outcome.drawn,
        order=order,
        asked=asked_at(turn.evidence, slot) if judged else (),
        verdicts=tuple(verdicts_on(turn.evidence, slot).values()),
        overruled=mine,
        rejection=rejection,
        evidence=path,
        evidence_state=found,
    )


def _evidence_state(case: Path, digest: str) -> str:
    try:
        return "" if sha256_digest(case.read_bytes()) == digest else "differs from the log"
    except OSError:
        return "missing"


def _nats(micronats: int | None) -> float | None:
    return None if micronats is None else micronats / MICRO


def reference_loss(dataset: DatasetManifest, data: Path) -> float | None:
    """The unigram cross-entropy in nats; None when the data are missing, other, or too many to count."""
    if dataset.train_windows * (dataset.context + 1) > MAX_COUNTED_TOKENS:
        return None
    try:
        dataset.check_files(data)
        return unigram_cross_entropy(dataset, data)
    except BarnraiseError:
        return None


def write_report(folder: RunFolder, story: RunStory, metrics: Metrics | None = None) -> Path:
    """Write report.html into the run folder, whole or not at all; its path. Raises StorageError."""
    from pipeline.report_page import page  # noqa: PLC0415 - the page imports the facts' types from here

    path = folder.path / "report.html"
    write_atomic(path, page(story, metrics).encode("utf-8"))
    return path


def answer(path: Path, story: RunStory, metrics: Metrics | None = None) -> Mapping[str, object]:
    """What `barnraise report --json` prints. `metrics_bad_lines` is null without metrics.jsonl."""
    last = story.validation[-1] if story.validation else None
    return {
        "report": str(path),
        "complete": story.finished,
        "run_id": story.run_id,
        "log_size": story.head.size,
        "log_head": "sha256:" + story.head.root.hex(),
        "log_vkey": story.manifest.log_vkey,
        "rounds": story.rounds,
        "tokens": story.tokens,
        "val_loss": last[2] if last else None,
        "unigram": story.unigram,
        "bytes": sum(turn.payloads for turn in story.turns) * story.payload_bytes,
        "weights_digest": story.weights(story.rounds),
        "metrics_bad_lines": metrics.bad_lines if metrics else None,
    }
