"""`barnraise rerun`: a decision against a contribution, made again from its evidence alone.

Owns the comparison of what was claimed, what auditors stated and what this machine finds, and the words for
it. The arithmetic is the audit's own (segment_audit.py). Does not own what lies in a case (evidence.py).
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from model.numerics import THREADS, numerics_class, prepare
from pipeline.evidence import CaseWindows, Evidence, read_evidence
from pipeline.segment_audit import Case
from pipeline.step_audit import recompute
from pipeline.trace import read_trace
from pipeline.work import Job, check_assignment
from verification.disputes import overruled, prevailing, side_of
from verification.errors import BarnraiseError, FormatError, UsageError
from verification.judge import Audit, Recomputed, differences, judged, stated_by
from verification.records import Claim, Opening, Verdict
from verification.tolerance import thresholds

# What a contribution is at fault for; with any other reason its verdicts did not agree, or were too few.
FAULTS = ("failed-audit", "malformed-payload")


@dataclass(frozen=True)
class RerunOptions:
    """Do again what an auditor did, from a folder of a run's evidence, and compare.

    Exit code 0: what was decided is borne out. 1: it is not, or this machine cannot tell, and says why.
    """

    evidence: Annotated[Path, tyro.conf.Positional]
    """A folder under a run's evidence/, or a copy of one."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class Said:
    """An auditor's verdict, and whether this machine finds exactly what it states."""

    auditor: str
    look: int
    outcome: str
    differs: tuple[str, ...]
    same: bool | None


@dataclass(frozen=True)
class Rerun:
    """What came of it. `borne_out` is None where this machine cannot tell, for which `why` is the reason."""

    case: str
    run: str
    coordinator: str
    member: str
    round: int
    attempt: int
    slot: int
    reason: str
    segments: tuple[int, ...]
    tolerant: bool
    numerics_class: str
    here: str
    differs: tuple[str, ...] | None
    verdicts: tuple[Said, ...]
    borne_out: bool | None
    why: str | None


def command(options: RerunOptions, console: Console) -> int:
    """Rerun a case and say what came of it. Raises UsageError where the packages of training are missing."""
    try:
        answer = rerun(options.evidence)
    except ImportError as error:
        raise UsageError(
            "to rerun work takes packages that are not here",
            got=f"no module {error.name}",
            hint="pip install 'barnraise[train]'",
        ) from None
    if options.json:
        print(jsonlib.dumps(asdict(answer)))  # noqa: T201
    else:
        for line in _words(answer):
            console.print(escape(line), highlight=False, soft_wrap=True)
    return 0 if answer.borne_out else 1


def rerun(folder: Path) -> Rerun:
    """Rerun the case in `folder`. Raises one of the family when it is no case, or its parts do not fit."""
    evidence = read_evidence(folder)
    job = Job.of(evidence.manifest)
    audit = evidence.audit
    if audit is None:
        return _undecodable(evidence, job)
    # By tolerance this machine takes the auditor's place, else the contributor's, whose bits are to come out.
    place = evidence.verdicts[0].auditor if audit.tolerant else evidence.entry.member
    profile = job.config.run.profile_of(place)
    prepare(profile, THREADS)
    here = numerics_class(profile, THREADS)
    if why := _cannot_tell(audit, here):
        return _answer(evidence, here, None, None, why)
    found = _audit(evidence, job, audit)
    return _answer(evidence, here, found, _differs(audit, here, evidence.reveal.opening, found), None)


def _cannot_tell(audit: Audit, here: str) -> str | None:
    """Why a machine of class `here` cannot make the audit; None where it can."""
    if here == audit.numerics_class:
        return None
    if not audit.tolerant:
        return "bits are equal only within a numerics class, and this machine is of another"
    if thresholds(audit.tolerances, audit.numerics_class, here):
        return None
    return "the run has no tolerance between the contributor's numerics class and this machine's"


def _differs(audit: Audit, here: str, opening: Opening, found: Recomputed) -> tuple[Claim, ...]:
    """What is found wrong; of a step by tolerance, on a machine of the contributor's class, to the bit."""
    if not audit.tolerant or here != audit.numerics_class:
        return judged(audit, here, opening, found)
    differs = differences(opening, found)
    steps = zip(audit.segments, found.deviations, strict=True)
    same = all(deviation.own == found.trace[segment] for segment, deviation in steps)
    return differs if same else (*differs, "deviation")


def _audit(evidence: Evidence, job: Job, audit: Audit) -> Recomputed:
    files, opening, entry = evidence.files, evidence.reveal.opening, evidence.entry
    for name in ("weights", "start_state", "payload"):
        if name not in files:
            raise FormatError(f"a case has no {name}", expected=name, got=sorted(files))
    check_assignment(job, entry)
    weights = job.weights(files["weights"], evidence.open.base.weights)
    start = job.state(files["start_state"], entry.start_state)
    case = Case(job, CaseWindows(evidence, job), evidence.open, entry, weights, start)
    case.checked(audit.segments)
    opened = None
    if audit.opens_a_trace(case.count):
        if "trace" not in files:
            raise FormatError(
                "a case of some segments has no opened trace", expected="trace", got=sorted(files)
            )
        opened = read_trace(job, opening, entry.steps, audit, files["trace"])
    return recompute(case, audit, opened, {})


def _undecodable(evidence: Evidence, job: Job) -> Rerun:
    """A case without a verdict is of a payload that the codec refuses, which any machine can repeat."""
    payload = evidence.files.get("payload")
    if payload is None:
        raise UsageError("a case holds neither a verdict nor a payload", got=sorted(evidence.files))
    if len(payload) != job.codec.payload_bytes:
        raise FormatError(
            "a payload of another length is not looked at, so no case is of one",
            expected=job.codec.payload_bytes,
            got=len(payload),
        )
    try:
        job.codec.decode(payload)
    except BarnraiseError as error:
        return _answer(evidence, "any", None, ("payload",), f"the codec refuses the payload: {error}")
    return _answer(evidence, "any", None, (), "the codec takes the payload")


def _answer(
    evidence: Evidence, here: str, found: Recomputed | None, differs: tuple[str, ...] | None, why: str | None
) -> Rerun:
    said = tuple(
        Said(v.auditor, v.look, v.outcome, v.differs, _states(v, here, found, differs) if found else None)
        for v in evidence.verdicts
    )
    borne_out = None if differs is None else _held(evidence, here, bool(differs), said)
    open_, audit = evidence.open, evidence.audit
    return Rerun(
        evidence.digest, open_.run, evidence.manifest.coordinator, evidence.entry.member, open_.round,
        open_.attempt, evidence.entry.slot, evidence.reason, audit.segments if audit else (),
        bool(audit and audit.tolerant),
        evidence.entry.numerics_class, here, differs, said, borne_out, why,
    )  # fmt: skip


def _held(evidence: Evidence, here: str, differs: bool, said: Sequence[Said]) -> bool:
    """Whether what was decided is what this machine would have decided.

    Where a side prevailed, its verdicts are to be what is found here, and those of who was overruled are not.
    Of verdicts that disagree, or of one alone, nothing follows but that; which of them is true is shown.
    """
    if evidence.reason not in (*FAULTS, "overruled"):
        return True
    side = prevailing(evidence.verdicts)
    gone = {verdict.look for verdict in overruled(evidence.verdicts)}
    holding = {verdict.look for verdict in evidence.verdicts if side_of(verdict) == side} - gone
    sound = [one.same for one in said if one.look in holding]
    # A deviation that was made up in another class than this machine's cannot be told from a true one here.
    odd = {v.look for v in evidence.verdicts if v.numerics_class != here and side_of(v) == side}
    false = [one.same for one in said if one.look in gone - odd]
    return differs == (evidence.reason != "overruled") and all(sound) and not any(false)


def _states(verdict: Verdict, here: str, found: Recomputed, differs: tuple[str, ...] | None) -> bool:
    """Whether a verdict states what was found; of another class it need only come to the same."""
    stated = stated_by(verdict)
    if verdict.numerics_class == here or not verdict.deviations:
        return stated == found
    return replace(stated, deviations=found.deviations) == found and verdict.differs == differs


def _words(answer: Rerun) -> list[str]:
    where = f"round {answer.round}" + (f", attempt {answer.attempt}" if answer.attempt else "")
    was = "accepted, an auditor overruled" if answer.reason == "overruled" else f"rejected as {answer.reason}"
    lines = [f"{answer.member} in {where}, slot {answer.slot}: {was}"]
    lines.append(f"      run      {answer.run}, coordinator {answer.coordinator}")
    lines.append(f"      case     {answer.case}: the run's if the round-close of that turn names it")
    if answer.segments:
        lines.append(f"      segments {', '.join(map(str, answer.segments))}, and the last boundary")
    if answer.tolerant:
        lines.append(
            "      by tolerance: steps are repeated in another numerics class, and compared within limits"
        )
    for said in answer.verdicts:
        same = {True: "what this machine finds", False: "NOT what this machine finds", None: "not compared"}
        found = f"differs in {', '.join(said.differs)}" if said.differs else "no difference"
        lines.append(f"      look {said.look}   {said.auditor}: {said.outcome}, {found}: {same[said.same]}")
    if answer.differs is None:
        lines.append(f"cannot tell here: {answer.why}")
        lines.append(f"      the work is of class {answer.numerics_class}")
        lines.append(f"      this machine is of   {answer.here}")
        return [*lines, "Next: rerun it on a machine of that class; barnraise doctor --numerics names it"]
    if answer.why:
        lines.append(answer.why)
    here = f"differs in {', '.join(answer.differs)}" if answer.differs else "is as it was claimed"
    held = "borne out" if answer.borne_out else "NOT borne out"
    decided = held if answer.reason in (*FAULTS, "overruled") else "not decided in the run"
    lines.append(f"{decided}: the contribution {here}")
    following = "barnraise verify RUN --level 3   recomputes more of the run this case is from"
    return [*lines, f"Next: {following}"]


COMMANDS = {"rerun": (RerunOptions, command)}
