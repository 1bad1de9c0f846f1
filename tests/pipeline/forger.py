"""A coordinator that rewrites a finished run with one lie in it and signs everything again.

It holds the coordinator's key and its chain of draws, and works with the writer's own planning, so that all
that follows from the lie is told as if it were true: heads, seeds, draws, misses, weights, queue, credit,
run-close, checkpoint files, table. Records of members are taken over as they were signed; without a member's
key none can be made. Used as `from tests.pipeline.forger import ...`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from model.arrays import unflatten
from model.local_steps import evaluate
from pipeline.aggregation import Contribution
from pipeline.checkpoint import Aggregator, Checkpoint
from pipeline.config import config_from_manifest
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.records_table import write_contributions
from pipeline.run import member_folder
from verification import plans
from verification.credits import Standing
from verification.encoding import blake3_digest
from verification.errors import BarnraiseError
from verification.fsck_shapes import RERUN_FILES
from verification.judge import Outcome, TurnEvidence, settle
from verification.keys import PrivateKey
from verification.log import Log
from verification.looks import further_look, may_appeal
from verification.lottery import HashChain
from verification.plans import (
    accepted_contributions,
    pace_after,
    plan_close,
    plan_draw,
    plan_first_looks,
    plan_open,
    plan_run_close,
    plan_second_draw,
    standings_after,
)
from verification.records import (
    PROTOCOL,
    Appeal,
    Base,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    FirstLooks,
    Manifest,
    Record,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Verdict,
)
from verification.rounds import apply, begin
from verification.sealing import seal_record
from verification.state import RunState, Turn

Entry = tuple[Record, bytes | None]  # a record with its member's envelope, or None: signed by the forger
Lie = Callable[[Any, "Forger"], Any]
Step = Callable[["Forger", Checkpoint, list[Contribution], RoundOpen], Checkpoint]


def keys_of(home: Path, folder: RunFolder) -> dict[str, PrivateKey]:
    """Everyone's keys, by name. A forger must be given no more of them than its test says."""
    secrets = home / member_folder(folder.parsed_manifest())
    return {path.parent.name: PrivateKey.load(path) for path in sorted(secrets.glob("*/key"))}


def chain_of(home: Path, folder: RunFolder) -> HashChain:
    """The coordinator's chain of draws."""
    return HashChain.load(home / member_folder(folder.parsed_manifest()) / "coordinator" / "chain")


@dataclass
class Taken:
    """The records of one turn of the true run."""

    open: RoundOpen
    entries: list[Entry] = field(default_factory=list)

    def of(self, kind: type, **fields: object) -> list[Entry]:
        """Entries of a kind whose fields have these values."""
        return [
            (record, data)
            for record, data in self.entries
            if isinstance(record, kind) and all(getattr(record, k) == v for k, v in fields.items())
        ]

    def one(self, kind: type) -> Any:
        """The one record of a kind."""
        return self.of(kind)[0][0]


class Forger:
    """Tells the run in `source` again into `target`."""

    def __init__(self, source: Path, target: Path, key: PrivateKey, chain: HashChain) -> None:
        self.source, self.folder = RunFolder(source), RunFolder(target)
        shutil.copytree(source, target)
        shutil.rmtree(self.folder.log)
        self.key, self.chain = key, chain
        self.manifest = self.source.parsed_manifest()
        self.keys = (self.manifest.log_vkey, self.manifest.witness_vkeys)
        log = Log.open(self.source.log, self.manifest.origin, None, *self.keys)
        self.old = list(read_entries(log, self.manifest))
        self.turns: list[Taken] = []
        for record, data in self.old:
            if isinstance(record, RoundOpen):
                self.turns.append(Taken(record))
            elif self.turns:
                self.turns[-1].entries.append((record, data))
        self.state: RunState = begin(self.manifest)
        self.aggregator = Aggregator.of(self.manifest.arrays, self.manifest.config)
        self.checkpoint = self.aggregator.load(
            self.source.checkpoint(0), self.source.outer_file(0).read_bytes()
        )
        self.lies: dict[tuple[str, int], Lie] = {}
        self.step: Step | None = None
        self.aggregated: Callable[[list[Contribution]], list[Contribution]] = list
        self.settled: dict[tuple[int, int], str | None] = {}
        self.told = settle

    def settle(self, turn: int, slot: int, reason: str | None) -> None:
        """Settle a slot of a turn so, whatever the verdicts say; what follows is computed from it."""
        self.settled[turn, slot] = reason

    def lie(self, kind: str, turn: int, change: Lie) -> None:
        """When the record of a kind is due in a turn (counted from 0; -1 outside of turns), change it.

        `change` gets the true entries of the kind, a list for the kinds that members sign, and gives back
        what to log instead.
        """
        self.lies[kind, turn] = change

    # --- the log ---

    def tell(self, turns: int | None = None, *, end: bool = True) -> Path:
        """Write the run with its first `turns` turns (all), and close it when `end`; returns its folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)  # a forgery need not outlive a crash
            self._tell(turns, end=end)
        return self.folder.path

    def _tell(self, turns: int | None, *, end: bool) -> None:
        self.log = Log.create(self.folder.log, self.manifest.origin, self.key, self.manifest.witness_vkeys)
        self.log.append([seal_record(self.manifest, self.key)])
        enrolments: list[Entry] = [(r, d) for r, d in self.old if isinstance(r, Enrol)]
        self.add(self._changed("enrol", -1, enrolments))
        for number, taken in enumerate(self.turns[:turns]):
            self.told = lambda evidence, number=number: self._settle(number, evidence)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(plans, "settle", self.told)
                self._turn(number, taken)
        if end:
            self.add(self._changed("run-close", -1, [(plan_run_close(self.state), None)]))
        self._files()

    def add(self, entries: Iterable[Entry]) -> None:
        """Log entries and believe them."""
        entries = list(entries)
        self.log.append([data if data is not None else seal_record(r, self.key) for r, data in entries])
        for record, _ in entries:
            self.state = _believe(self.state, record, self.told)

    def _settle(self, turn: int, evidence: TurnEvidence) -> tuple[Outcome, ...]:
        outcomes = settle(evidence)
        return tuple(replace(o, reason=self.settled.get((turn, o.entry.slot), o.reason)) for o in outcomes)

    def _changed(self, kind: str, turn: int, entries: Sequence[Entry]) -> list[Entry]:
        change = self.lies.get((kind, turn))
        return list(entries) if change is None else list(change(list(entries), self))

    def _one(self, kind: str, turn: int, record: Record) -> None:
        self.add(self._changed(kind, turn, [(record, None)]))

    def _turn(self, number: int, taken: Taken) -> None:
        self._one("round-open", number, plan_open(self.state, ()))
        slots = {entry.slot for entry in self.state.open_turn.open.roster}
        commitments = [(r, d) for r, d in taken.of(Commitment) if getattr(r, "slot", None) in slots]
        self.add(self._changed("commitment", number, commitments))
        self._one("commit-close", number, self._commit_close(taken.one(CommitClose)))
        head = self.log.checkpoint
        self.add(self._changed("reveal", number, taken.of(Reveal)))
        self._one("reveal-close", number, replace(taken.one(RevealClose), head=head))
        link = self.chain.link(2 * number + 1)
        self._one("draw", number, plan_draw(self.state, self.log.checkpoint, link, {}))
        self._one("served", number, self._served(taken.one(Served)))
        first = self._changed("verdict", number, self._verdicts(taken, 1))
        seals = plan_first_looks(self.state, [r for r, _ in first if isinstance(r, Verdict)])
        self._one("first-looks", number, seals)
        link = self.chain.link(2 * number + 2)
        self._one("second-draw", number, plan_second_draw(self.state, self.log.checkpoint, link, {}))
        self.add(first)
        self.add(self._changed("verdict2", number, self._verdicts(taken, 2)))
        self._disputes(taken)
        self._close(number, taken)

    def _commit_close(self, old: CommitClose) -> CommitClose:
        turn = self.state.open_turn
        ms = dict(zip(old.committed, old.ms, strict=True))
        committed = tuple(turn.commitments)
        late = tuple(e.slot for e in turn.open.roster if e.slot not in committed)
        return replace(old, committed=committed, late=late, ms=tuple(ms.get(s, 9) for s in committed))

    def _served(self, old: Served) -> Served:
        turn = self.state.open_turn
        valid = turn.reveal_close.revealed if turn.reveal_close else ()
        owed = [d.slot for d in turn.draw.drawn if d.auditors and d.slot in valid] if turn.draw else []
        unserved = tuple(slot for slot in owed if slot in old.unserved)
        return replace(old, served=tuple(s for s in owed if s not in unserved), unserved=unserved)

    def _verdicts(self, taken: Taken, look: int) -> list[Entry]:
        """The auditors' own verdicts, as far as they are called under this draw."""
        turn = self.state.open_turn
        drawn = turn.draw.drawn if look == 1 and turn.draw else turn.second.looks if turn.second else ()
        served = turn.served.served if turn.served else ()
        called = {item.slot: item.auditors for item in drawn if item.slot in served}
        return [
            (record, data)
            for record, data in taken.of(Verdict, look=look)
            if isinstance(record, Verdict) and record.auditor in called.get(record.slot, ())
        ]

    def _disputes(self, taken: Taken) -> None:
        """Appeals and further looks, as far as what is told so far still brings them about."""
        for record, data in taken.of(Appeal):
            turn = self.state.open_turn
            if isinstance(record, Appeal) and may_appeal(turn.evidence, record.slot):
                against = tuple(turn.verdicts[record.slot, look].digest for look in (1, 2))
                self.add([(record, data)] if record.verdicts == against else [])
        further = [(r, d) for r, d in taken.of(Verdict) if isinstance(r, Verdict) and r.look > 2]
        for record, data in sorted(further, key=lambda entry: (entry[0].look, entry[0].slot)):
            due = {slot for slot, look in self.state.open_turn.verdicts if look == record.look - 1}
            if record.slot in due:
                asked = further_look(self.state.open_turn.evidence, record.slot)
                told = asked and asked.look == record.look and record.auditor in asked.auditors
                self.add([(record, data)] if told else [])

    def _close(self, number: int, taken: Taken) -> None:
        turn, old = self.state.open_turn, taken.one(RoundClose)
        work = self.aggregated(self.accepted_work(accepted_contributions(self.state)))
        after = self.aggregator.step(self.checkpoint, work, turn.open.outer_lr)
        if self.step and number + 1 == len(self.turns):
            after = self.step(self, self.checkpoint, work, turn.open)
        evidence = self._evidence(turn, old)
        base = self.aggregator.digests(after)
        loss = (
            self.val_loss(after) if old.val_loss is not None and base.weights != old.weights else old.val_loss
        )
        record = plan_close(self.state, base, evidence=evidence, val_loss=loss)
        [(told, _)] = changed = self._changed("round-close", number, [(record, None)])
        if isinstance(told, RoundClose) and told.accepted != record.accepted and told.weights == base.weights:
            # What the lie accepts is what the forger aggregates.
            after = self.aggregator.step(
                self.checkpoint, self.accepted_work(told.accepted), turn.open.outer_lr
            )
            base = self.aggregator.digests(after)
            loss = told.val_loss if told.val_loss is None else self.val_loss(after)
            changed = [(replace(told, weights=base.weights, outer=base.outer, val_loss=loss), None)]
        self.checkpoint = after
        self.add(changed)
        self.folder.put_checkpoint(self.state.rounds_done, self.aggregator.arrays(after), dict(after.outer))

    def _evidence(self, turn: Turn, old: RoundClose) -> dict[int, str | None]:
        """The true run's evidence where the reason is the same; made anew for a fault that is not in it."""
        before: dict[tuple[int, str], str | None] = {(i.slot, ""): i.evidence for i in old.overruled}
        before |= {(item.slot, item.reason): item.evidence for item in old.rejected}
        found: dict[int, str | None] = {}
        for outcome in self.told(turn.evidence):
            slot, reason = outcome.entry.slot, outcome.reason
            found[slot] = before.get((slot, reason or ""))
            if reason in ("failed-audit", "malformed-payload") and found[slot] is None:
                opening = turn.reveals[slot].opening
                looks = [f"verdict-{look}" for of, look in turn.verdicts if of == slot]
                files = dict.fromkeys((*RERUN_FILES[reason], *looks), b"made up")
                files["payload"] = self.folder.payload(opening.payload)
                if reason == "failed-audit":
                    files["start_state"] = self._start_state(turn, slot, opening.start_state)
                self.folder.drop_evidence(turn.open, slot)
                self.folder.put_evidence(turn.open, slot, files)
                found[slot] = self.folder.close_evidence(turn.open, slot, reason)
        return found

    def _start_state(self, turn: Turn, slot: int, digest: str) -> bytes:
        """From the folder of states, or from the case that the true run has on the slot."""
        kept = self.folder.state_file(digest)
        case = self.folder.evidence_folder(turn.open, slot) / "start_state"
        return (kept if kept.is_file() else case).read_bytes()

    def accepted_work(self, accepted: Iterable[Any]) -> list[Contribution]:
        """What the aggregator takes, of the close's accepted lines."""
        return [Contribution(a.slot, a.weight, self.folder.payload(a.payload)) for a in accepted]

    def val_loss(self, after: Checkpoint) -> int:
        """A true validation loss: the forger has the data."""
        from data_prep.dataset import Dataset
        from data_prep.manifest import DatasetManifest

        config = config_from_manifest(self.manifest.config)
        data = Dataset(self.folder.data, DatasetManifest.from_json(self.manifest.dataset))
        weights = unflatten(after.weights_P, self.aggregator.specs)
        return evaluate(config.model, weights, data.validation(config.eval.windows), config.train.batch)

    # --- the files beside the log ---

    def _files(self) -> None:
        """Remove what a run that went as it is told would not hold, and write the table again."""
        self.folder.keep_checkpoints(self.state.rounds_done, self.state.config["checkpoint"]["every"])
        self.folder.keep_only("payloads", self.state.payloads)
        log = Log.open(self.folder.log, self.manifest.origin, None, *self.keys)
        try:
            records = [record for record, _ in read_entries(log, self.manifest)]
            self._keep_states(records)
            self._keep_evidence(records)
            write_contributions(self.folder, records, self.aggregator.codec.payload_bytes)
        except BarnraiseError:
            pass  # the state machine does not follow the lie; neither will level 1

    def _keep_states(self, records: Sequence[Record]) -> None:
        """Start states of the valid reveals of snapshot rounds."""
        states: set[str] = set()
        opened: RoundOpen | None = None
        for record in records:
            if isinstance(record, RoundOpen):
                opened = record
            elif isinstance(record, RevealClose) and opened and opened.snapshot:
                states |= {opened.entry(slot).start_state for slot in record.revealed}
        self.folder.keep_only("state", states)

    def _keep_evidence(self, records: Sequence[Record]) -> None:
        named = {
            f"r{r.round:05d}-a{r.attempt}-s{line.slot}"
            for r in records
            if isinstance(r, RoundClose)
            for line in (*r.rejected, *r.overruled)
            if line.evidence
        }
        for path in (self.folder.path / "evidence").iterdir():
            if path.name not in named:
                shutil.rmtree(path)

    # --- what a colluding contributor can do: sign another commitment and reveal ---

    def signed_work(
        self, reveal: Reveal, key: PrivateKey, payload: bytes | None, **opening: Any
    ) -> list[Entry]:
        """[commitment, reveal] around another opening; `payload` is stored."""
        if payload is not None:
            self.folder.put_payload(payload)
            opening["payload"] = blake3_digest(payload)
        told = replace(reveal, opening=replace(reveal.opening, **opening))
        place = (told.run, told.round, told.attempt, told.slot, told.member, told.key)
        commitment = Commitment(PROTOCOL, *place, told.commitment)
        return [(commitment, seal_record(commitment, key)), (told, seal_record(told, key))]


def _believe(state: RunState, record: Record, told: Callable[[TurnEvidence], Any]) -> RunState:
    """The state after a record that is taken for true, whatever the rules say."""
    turn = state.turn
    match record:
        case Manifest():
            return state
        case Enrol():
            return apply(state, record)
        case RoundOpen():
            opened = Turn(record, tolerances=state.config["audit"]["tolerance"])
            return replace(state, turn=opened, turns=state.turns + 1)
        case RunClose():
            return replace(state, finished=True)
    assert turn is not None
    match record:
        case Commitment():
            turn = replace(turn, commitments={**turn.commitments, record.slot: record})
        case CommitClose():
            turn = replace(turn, commit_close=record)
        case Reveal():
            turn = replace(turn, reveals={**turn.reveals, record.slot: record})
        case RevealClose():
            turn = replace(turn, reveal_close=record)
            fresh = {turn.reveals[s].opening.payload for s in record.revealed if s in turn.reveals}
            state = replace(state, payloads=state.payloads | fresh)
        case Draw():
            turn = replace(turn, draw=record)
        case Served():
            turn = replace(turn, served=record)
        case Appeal():
            turn = replace(turn, appeals={**turn.appeals, record.slot: record})
        case FirstLooks():
            turn = replace(turn, first_looks=record)
        case Verdict():
            turn = replace(turn, verdicts={**turn.verdicts, (record.slot, record.look): record})
        case SecondDraw():
            turn = replace(turn, second=record)
        case RoundClose():
            return _believe_close(state, turn, record, told(turn.evidence))
    return replace(state, turn=turn)


def _believe_close(
    state: RunState, turn: Turn, record: RoundClose, outcomes: tuple[Outcome, ...]
) -> RunState:
    accepted = {item.slot for item in record.accepted}
    told = {credit.member: credit for credit in record.credits}
    standings = {
        name: _told(standing, told.get(name), name in record.quarantined)
        for name, standing in standings_after(state, turn, outcomes).items()
    }
    lineage = {turn.open.entry(s).member: turn.reveals[s].opening.next_state for s in accepted}
    return replace(
        state,
        turn=None,
        round=state.round + (not record.void),
        attempt=state.attempt + 1 if record.void else 0,
        base=Base(record.weights, record.outer),
        lineage={**state.lineage, **lineage},
        standings=standings,
        pace=pace_after(state, turn, accepted),
        cursor=record.cursor,
        queue=record.requeued,
        used=state.used | {item.payload for item in record.accepted},
        tokens=state.tokens + sum(item.tokens for item in record.accepted),
        last_close=record,
    )


def _told(standing: Standing, told: Any, quarantined: bool) -> Standing:
    if told is None:
        return replace(standing, quarantined=quarantined)
    return replace(
        standing,
        earned=told.earned,
        vested=told.vested,
        forfeited=told.forfeited,
        quarantined=quarantined,
    )
