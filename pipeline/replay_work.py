"""Level 3: contributions recomputed from their windows, base and hidden state, by the work everyone does.

Owns which contributions must be recomputed to reach a sampled one (its lineage back to a known state), which
ones nobody can recompute any more, and the comparison with what was claimed. The work itself is `do_work`,
the same that contributor and auditor call. Writes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest
from model.arrays import Arrays, arrays_to_bytes, safetensors_bytes, unflatten
from model.local_steps import evaluate
from model.numerics import THREADS, numerics_class
from pipeline.evidence import read_evidence
from pipeline.folder import RunFolder
from pipeline.replay_aggregation import Step
from pipeline.segment_audit import Case, audit_segments
from pipeline.sketch import served_sketches
from pipeline.trace import OpenedLeaf, read_trace
from pipeline.work import Job, do_work, positions_of
from verification.encoding import blake3_digest
from verification.errors import BarnraiseError, NotFiniteError, UsageError
from verification.fsck import Failure, Findings, Turn
from verification.judge import Audit, Recomputed, trace_leaf_hash, trace_root
from verification.records import Manifest, Reveal, RoundOpen, Verdict
from verification.sealing import parse_predicate
from verification.tolerance import Tolerances, rests_on_tolerance

Fail = Callable[[Failure], None]
Progress = Callable[[str, int, int], None]
Place = tuple[int, int]  # (index of the turn among the closed ones, slot)


@dataclass(frozen=True)
class Plan:
    """What to recompute. `wanted` was sampled; `needed` adds the lineage that leads to it.

    `elsewhere` counts those of the population that no machine of this class can recompute, `unseen` those of
    them on which there is no verdict either; `dropped` those that nobody can, for want of what was dropped.
    """

    wanted: frozenset[Place]
    needed: frozenset[Place]
    population: int
    elsewhere: int = 0
    unseen: int = 0
    dropped: int = 0

    @cached_property
    def needed_by_turn(self) -> dict[int, list[int]]:
        """Slots of `needed`, by the index of the turn."""
        found: dict[int, list[int]] = {}
        for index, slot in sorted(self.needed):
            found.setdefault(index, []).append(slot)
        return found


def plan_sample(
    findings: Findings,
    sample: int | None,
    seed: int,
    here: str,
    is_there: Callable[[str], bool] = lambda digest: True,
) -> Plan:
    """Draw `sample` contributions (all when None) with the verifier's own seed, and their lineages.

    The population is every contribution that was accepted or judged by an auditor. Those that rest on
    tolerance and are of another class than `here` cannot be drawn, nor those of rounds whose payloads were
    dropped, nor what goes back to such a round; `is_there` says of a start state at a snapshot whether the
    folder has it. Raises UsageError for a sample below 1.
    """
    if sample is not None and sample < 1:
        raise UsageError("a sample needs a contribution", expected="--sample of 1 or more", got=sample)
    closed = [turn for turn in findings.turns if turn.close]
    population = [
        (index, slot)
        for index, turn in enumerate(closed)
        for slot in sorted({*_accepted(turn), *_judged(turn)})
    ]
    # Not for security: the seed is printed so that anyone can look at the same ones.
    dice = random.Random(seed)  # noqa: S311
    tolerances = findings.manifest["config"]["audit"]["tolerance"]
    first = findings.dropped.rounds if findings.dropped else 0
    roots = _Roots(closed, findings.manifest["zero_state"], first, is_there)
    whole = [place for place in population if roots.reach(place)]
    able = [place for place in whole if not _is_elsewhere(closed[place[0]], place[1], here, tolerances)]
    drawn = able if sample is None else dice.sample(able, min(sample, len(able)))
    needed = {at for place in drawn for at in roots.lineage(place)}
    left_out = set(whole) - set(able)
    unseen = sum(slot not in _judged(closed[index]) for index, slot in left_out)
    gone = len(population) - len(whole)
    return Plan(frozenset(drawn), frozenset(needed), len(population), len(left_out), unseen, gone)


def _is_elsewhere(turn: Turn, slot: int, here: str, tolerances: Tolerances) -> bool:
    if not tolerances:
        return False
    open_ = parse_predicate(RoundOpen, turn.open)
    entry = open_.entry(slot)
    return entry.numerics_class != here and rests_on_tolerance(tolerances, entry, open_.auditors)


def _accepted(turn: Turn) -> set[int]:
    return {item["slot"] for item in (turn.close or {})["accepted"]} - set(turn.removed)


def _faults(turn: Turn) -> set[int]:
    found = {item["slot"] for item in (turn.close or {})["rejected"] if item["fault"]}
    return found | {slot for slot, fault in turn.removed.items() if fault}


def _overruled(turn: Turn) -> dict[tuple[int, int], str | None]:
    """By (slot, look) the verdicts that the run itself did not bear out, with the slot's case."""
    records = [record for record in (turn.close, turn.settlement) if record]
    lines = [item for record in records for item in record["overruled"]]
    return {(item["slot"], item["look"]): item["evidence"] for item in lines}


def _judged(turn: Turn) -> set[int]:
    return {verdict["slot"] for verdict in turn.verdicts}


class _Roots:
    """From what each contribution can be recomputed: those of the same slot before it, back to a known state.

    Known are the zero state and those that are kept at snapshots; rounds up to `first` are not replayed.
    """

    def __init__(
        self, closed: list[Turn], zero_state: str, first: int, is_there: Callable[[str], bool]
    ) -> None:
        self._closed = closed
        self._zero_state = zero_state
        self._is_there = is_there
        self._before: dict[Place, int | None] = {}  # the last turn before one in which the slot was accepted
        self._whole: set[Place] = set()
        last: dict[int, int] = {}
        for index, turn in enumerate(closed):
            for slot in turn.reveals:
                before = self._before[index, slot] = last.get(slot)
                from_before = not first if before is None else (before, slot) in self._whole
                if turn.open["round"] > first and (from_before or self._is_known(index, slot)):
                    self._whole.add((index, slot))
            last |= dict.fromkeys(_accepted(turn), index)

    def lineage(self, place: Place) -> list[Place]:
        """`place` and what has to be recomputed before it, the last first."""
        found = [place]
        while not self._is_known(*found[-1]):
            before = self._before[found[-1]]
            if before is None:
                break
            found.append((before, place[1]))
        return found

    def reach(self, place: Place) -> bool:
        """Whether nothing of its lineage lies in rounds that are not replayed or starts from what is gone."""
        return place in self._whole

    def _is_known(self, index: int, slot: int) -> bool:
        turn = self._closed[index]
        start = turn.reveals[slot]["opening"]["start_state"]
        return start == self._zero_state or (bool(turn.open["snapshot"]) and self._is_there(start))


@dataclass
class WorkReplay:
    """Recomputes as the checkpoints go by; hand it every step of `replay_checkpoints` in order."""

    folder: RunFolder
    findings: Findings
    plan: Plan
    fail: Fail
    progress: Progress
    recomputed: int = 0
    _states: dict[int, bytes] = field(default_factory=dict)
    _broken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.manifest = parse_predicate(Manifest, self.findings.manifest)
        self.job = Job.of(self.manifest)
        dataset = DatasetManifest.from_json(self.manifest.dataset)
        self.data = Dataset(self.folder.data, dataset)
        self.numerics_class = numerics_class(self.job.config.run.profile, THREADS)

    def step(self, step: Step) -> None:
        """Recompute what is needed of one turn, and its validation loss where it has one."""
        turn = step.turn
        places = self.plan.needed_by_turn.get(step.index, [])
        if places:
            open_ = parse_predicate(RoundOpen, turn.open)
            weights = unflatten(step.before.weights_P, self.job.specs)
            for slot in places:
                if slot in self._broken:
                    continue  # what follows from a lineage that broke says nothing new
                self.progress("recomputing contributions", self.recomputed, len(self.plan.needed))
                self._recompute(turn, open_, slot, weights)
                self.recomputed += 1
        if (turn.close or {})["val_loss"] is not None:
            self._validate(step)

    def _recompute(self, turn: Turn, open_: RoundOpen, slot: int, weights: Arrays) -> None:
        where = f"round {open_.round}, attempt {open_.attempt}, slot {slot}"
        entry = open_.entry(slot)
        if entry.numerics_class != self.numerics_class:
            self.fail(
                Failure(
                    "this machine cannot recompute that numerics class",
                    where,
                    entry.numerics_class,
                    self.numerics_class,
                )
            )
            return
        try:
            start = self.job.state(self._start_bytes(entry.start_state, slot), entry.start_state)
            case = Case(self.job, self.data, open_, entry, weights, start)
            audit = self._audit(turn, case)
            done = _recomputed(case, audit.opened_leaves(case.count) if audit.tolerant else ())
        except (BarnraiseError, OSError) as error:
            self._broken.add(slot)
            self.fail(
                Failure("a contribution cannot be recomputed", where, "start state and windows", str(error))
            )
            return
        differs = _differences(turn.reveals[slot]["opening"], done.found)
        if slot in _accepted(turn):
            self._states[slot] = done.next_state
            if differs:
                self._broken.add(slot)
            waits = self.job.config.audit.lag and not turn.settlement
            kind = "a contribution that still waits for its audit" if waits else "an accepted contribution"
            for name, (claimed, got) in differs.items():
                self.fail(Failure(f"the {name} of {kind} was not computed", where, got, claimed))
        elif slot in _faults(turn) and not differs:
            self.fail(
                Failure(
                    "a contribution was rejected as a fault although it was computed as claimed",
                    where,
                    "a difference from the recomputation",
                    "none",
                )
            )
        if slot in _faults(turn) or any(of == slot and case_ for (of, _), case_ in _overruled(turn).items()):
            self._check_case(case, where)
        for verdict in turn.verdicts:
            if verdict["slot"] == slot:
                self._check_verdict(turn, verdict, case, audit, done, where)

    def _check_case(self, case: Case, where: str) -> None:
        """A case can be rerun, and is of this very turn: its open, windows and weights are the run's."""
        folder = self.folder.evidence_folder(case.open, case.entry.slot)
        try:
            found = read_evidence(folder)
        except BarnraiseError as error:
            self.fail(Failure("a case cannot be rerun", where, "a whole case", str(error)))
            return
        if (found.open, found.manifest) != (case.open, self.manifest):
            what = "a case is of another open or manifest than the log's"
            self.fail(Failure(what, where, self.manifest.run_id, found.open.run))
        folder, entry, config = (
            self.folder.evidence_folder(case.open, case.entry.slot),
            case.entry,
            self.job.config,
        )
        batches_SBT = self.data.batches(config.run.seed, positions_of(entry.positions), config.train.batch)
        wanted = {
            "windows": arrays_to_bytes({"windows": batches_SBT}),
            "weights": safetensors_bytes(case.weights),
        }
        for name, data in wanted.items():
            path = folder / name
            got = blake3_digest(path.read_bytes()) if path.is_file() else "no such file"
            if got != blake3_digest(data):
                what = f"the {name} in the evidence are not the run's"
                self.fail(Failure(what, where, blake3_digest(data), got))

    def _audit(self, turn: Turn, case: Case) -> Audit:
        """The audit of a slot; of no segments where it was not drawn."""
        draw, slot = turn.draw or {"drawn": [], "seed": ""}, case.entry.slot
        drawn = next((item["segments"] for item in draw["drawn"] if item["slot"] == slot), ())
        tolerances = self.manifest.config["audit"]["tolerance"]
        return Audit.of(tolerances, case.entry, case.open.auditors, drawn, draw["seed"])

    def _check_verdict(
        self, turn: Turn, verdict: dict[str, Any], case: Case, audit: Audit, done: _Done, where: str
    ) -> None:
        """A verdict is a claim of its auditor's: that it did this very work and found these values."""
        if audit.tolerant:
            self._check_sketches(turn, verdict, case, audit, done, where)
            return  # the rest is of another class than this machine, which has the contributor's
        try:
            found = self._audited(turn, case, audit, done.found)
        except (BarnraiseError, OSError) as error:
            self.fail(
                Failure("the evidence of a verdict cannot be used", where, "an opened trace", str(error))
            )
            return
        if found is None:
            return
        claimed = [verdict[name] for name in ("payload", "next_state", "trace", "loss_first", "loss_last")]
        got = [found.payload, found.next_state, list(found.trace), found.loss_first, found.loss_last]
        gone = (verdict["slot"], verdict["look"]) in _overruled(turn)
        if (claimed != got) != gone:
            how = "was overruled although it was computed" if gone else "was not computed"
            what = f"the verdict of {verdict['auditor']} {how}"
            self.fail(Failure(what, f"{where}, look {verdict['look']}", str(got[0]), str(claimed[0])))

    def _check_sketches(
        self, turn: Turn, verdict: dict[str, Any], case: Case, audit: Audit, done: _Done, where: str
    ) -> None:
        """Who passed true work by tolerance has seen its gradients: sketches of them are in its verdict."""
        slot = case.entry.slot
        gone = (slot, verdict["look"]) in _overruled(turn)
        if gone or _differences(turn.reveals[slot]["opening"], done.found):
            return
        true = served_sketches(self.job, audit, slot, case.start, done.points)
        stated = parse_predicate(Verdict, verdict)
        if audit.is_hollow(stated, true):
            what = f"the verdict of {stated.auditor} passes steps whose gradients it has not seen"
            got = str([deviation.sketch for deviation in stated.deviations])
            self.fail(Failure(what, f"{where}, look {stated.look}", str([step.sketch for step in true]), got))

    def _audited(self, turn: Turn, case: Case, audit: Audit, done: Recomputed) -> Recomputed | None:
        """What an audit of the drawn segments finds; None where only the contributor could have said it.

        Of work that was done as claimed that follows from its recomputation. Of false work it depends on the
        false states that were opened, which are kept where a verdict found them out.
        """
        if not audit.opens_a_trace(case.count):
            return done
        opening = parse_predicate(Reveal, turn.reveals[case.entry.slot]).opening
        if not _differences(turn.reveals[case.entry.slot]["opening"], done):
            places = audit.looked_into(case.count)
            trace = tuple(
                leaf if place in places else trace_leaf_hash(leaf).hex()
                for place, leaf in enumerate(done.trace)
            )
            return replace(done, trace=trace, loss_first=done.loss_first if 0 in audit.segments else None)
        kept = self.folder.evidence_folder(case.open, case.entry.slot) / "trace"
        if not kept.is_file():
            return None
        opened = read_trace(self.job, opening, case.entry.steps, audit, kept.read_bytes())
        return audit_segments(case, audit.segments, opened)

    def _start_bytes(self, digest: str, slot: int) -> bytes:
        if digest == self.manifest.zero_state:
            return self.job.zero_state
        path = self.folder.state_file(digest)
        if path.exists():
            return path.read_bytes()
        return self._states.get(slot, b"")

    def _validate(self, step: Step) -> None:
        close = step.turn.close or {}
        config = self.job.config
        windows = self.data.validation(config.eval.windows)
        after = unflatten(step.after.weights_P, self.job.specs)
        got = evaluate(config.model, after, windows, config.train.batch)
        if got != close["val_loss"]:
            where = f"round {close['round']}"
            self.fail(
                Failure("the validation loss was not measured", where, str(got), str(close["val_loss"]))
            )


@dataclass(frozen=True)
class _Done:
    """A contribution recomputed whole; `next_state` is empty where it has none that is finite.

    `points` are those of its trace that were asked for.
    """

    found: Recomputed
    next_state: bytes
    points: Mapping[int, OpenedLeaf]


def _recomputed(case: Case, points: Collection[int]) -> _Done:
    kept: dict[int, OpenedLeaf] = {}

    def keep(index: int, leaf: OpenedLeaf) -> None:
        if index in points:
            kept[index] = leaf

    try:
        work = do_work(
            case.job, case.data, case.open, case.entry, case.weights, case.start, keep if points else None
        )
    except NotFiniteError:
        return _Done(audit_segments(case, range(case.count), None), b"", kept)
    return _Done(work.claims, work.next_state, kept)


def _differences(opening: dict[str, Any], claims: Recomputed) -> dict[str, tuple[str, str]]:
    pairs = {
        "trace": (opening["trace_root"], trace_root(claims.trace)),
        "number of trace leaves": (str(opening["trace_leaves"]), str(len(claims.trace))),
        "payload": (opening["payload"], claims.payload),
        "next state": (opening["next_state"], claims.next_state),
        "first loss": (str(opening["loss_first"]), str(claims.loss_first)),
        "last loss": (str(opening["loss_last"]), str(claims.loss_last)),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
