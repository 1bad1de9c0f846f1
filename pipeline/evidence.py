"""Evidence: everything that a decision against a contribution rests on, in one folder that travels alone.

Owns which files a case has, and reading them back with all that they say of themselves checked. Does not own
where folders lie (folder.py) or what a rerun makes of them (rerun.py).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.dataset import Windows
from model.arrays import arrays_from_bytes, arrays_to_bytes
from pipeline.ledger import Ledger
from pipeline.work import Job, positions_of
from verification.disputes import overruled, prevailing
from verification.encoding import blake3_digest, canonical_json, parse_canonical, sha256_digest, to_json
from verification.envelope import open_envelope
from verification.errors import FormatError, ProtocolError, UsageError
from verification.judge import Audit, verdict_is_sound
from verification.records import Appeal, Draw, DrawnSlot, Manifest, Reveal, RosterEntry, RoundOpen, Verdict
from verification.sealing import open_record, parse_predicate

CASE = "case.json"
# Records are log entries or shorter; arrays are bounded by what a machine holds, and by their own form later.
MOST_BYTES = {"manifest": 1 << 24, "open": 1 << 16, "reveal": 1 << 16, "draw": 1 << 16} | {
    "verdict": 1 << 16, "appeal": 1 << 16, "payload": 1 << 30, "start_state": 1 << 32, "trace": 1 << 40,
    "weights": 1 << 32, "windows": 1 << 30, CASE: 1 << 16,
}  # fmt: skip
_OF_A_LOOK = re.compile(r"verdict-([1-9][0-9]{0,3})\Z")


def rerun_files(ledger: Ledger, data: Windows, checkpoint: bytes, slot: int) -> dict[str, bytes]:
    """What a rerun of a slot of the turn in progress takes, beside what its contributor sent.

    `checkpoint` are the base weights. Deterministic: from the log, the shards and the checkpoint alone.
    """
    state = ledger.state
    turn = state.open_turn
    place = turn.open.round, turn.open.attempt
    files = {"manifest": canonical_json(to_json(ledger.manifest))}
    files["open"] = ledger.envelope("round-open", turn=place)[1]
    files["reveal"] = ledger.envelope("reveal", slot, turn=place)[1]
    if not any(verdict_slot == slot for verdict_slot, _ in turn.verdicts):
        return files
    config, entry = state.config, turn.open.entry(slot)
    batches_SBT = data.batches(config["run"]["seed"], positions_of(entry.positions), config["train"]["batch"])
    files |= {"draw": ledger.envelope("draw", turn=place)[1], "weights": checkpoint}
    files["windows"] = arrays_to_bytes({"windows": batches_SBT})
    for of, look in turn.verdicts:
        if of == slot:
            files[f"verdict-{look}"] = ledger.envelope("verdict", slot, look, place)[1]
    if slot in turn.appeals:
        files["appeal"] = ledger.envelope("appeal", slot, turn=place)[1]
    return files


@dataclass(frozen=True)
class Evidence:
    """A case, read and checked: who is judged, for what, and the records and bytes it rests on.

    `audit` is None where there is no verdict.
    """

    digest: str
    reason: str
    manifest: Manifest
    open: RoundOpen
    entry: RosterEntry
    reveal: Reveal
    audit: Audit | None
    verdicts: tuple[Verdict, ...]
    files: Mapping[str, bytes]


def read_evidence(folder: Path) -> Evidence:
    """Read a case. Raises UsageError where there is none, one of the family when its parts do not fit.

    Open, reveal, draw and verdicts are signed by those that they name, weights, state and payload are those
    of these records, and the reason is what the verdicts come to. Windows and the manifest's key are signed
    by nobody: that they are the run's is for whoever has the log, whose close names `digest`.
    """
    case_bytes = _read(folder, CASE)
    case = parse_canonical(case_bytes)
    try:
        listed, reason, place = (
            dict(case["files"]),
            case["reason"],
            (case["round"], case["attempt"], case["slot"]),
        )
        run = case["run"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{folder / CASE} is not a case", got=repr(case)[:200]) from None
    files = {name: _read(folder, name) for name in listed}
    for name, data in files.items():
        if blake3_digest(data) != listed[name]:
            raise ProtocolError(
                f"{folder / name} is not the case's", expected=listed[name], got=blake3_digest(data)
            )
    manifest = parse_predicate(Manifest, parse_canonical(_part(files, "manifest")))
    open_ = open_record(RoundOpen, _part(files, "open"), manifest.coordinator)
    if (manifest.run_id, open_.run, (open_.round, open_.attempt)) != (run, run, place[:2]):
        raise ProtocolError("a case is made of parts of other runs or rounds", expected=run, got=open_.run)
    entry = open_.entry(place[2])
    reveal = open_record(Reveal, _part(files, "reveal"), entry.key)
    _same_turn(open_, entry.slot, reveal)
    if "payload" in files and blake3_digest(files["payload"]) != reveal.opening.payload:
        raise ProtocolError(
            "the payload in a case is not the one that was revealed", expected=reveal.opening.payload
        )
    looks = sorted(int(found[1]) for name in files if (found := _OF_A_LOOK.match(name)))
    verdicts = tuple(_verdict(open_, entry.slot, look, files) for look in looks)
    audit = None
    if verdicts:
        seed, drawn = _drawn(manifest, open_, entry.slot, files)
        tolerances = manifest.config["audit"]["tolerance"]
        audit = Audit.of(tolerances, entry, open_.auditors, drawn.segments, seed)
        _check_verdicts(open_, reveal, drawn, audit, verdicts)
    if "appeal" in files:
        _check_appeal(open_, entry, verdicts, files["appeal"])
    if reason != _reason(verdicts):
        raise ProtocolError(
            "a case's reason is not what its verdicts come to", expected=_reason(verdicts), got=reason
        )
    return Evidence(sha256_digest(case_bytes), reason, manifest, open_, entry, reveal, audit, verdicts, files)


def _read(folder: Path, name: object) -> bytes:
    kind = "verdict" if type(name) is str and _OF_A_LOOK.match(name) else name
    if type(name) is not str or name == "verdict" or kind not in MOST_BYTES:
        raise FormatError(
            "a case names a file that no case has", expected=sorted(MOST_BYTES), got=repr(name)[:80]
        )
    path, most = folder / name, MOST_BYTES[str(kind)]
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{path} is no plain file")
        if found.st_size > most:
            raise FormatError(f"{path} is too long", expected=f"at most {most} bytes", got=found.st_size)
        return path.read_bytes()
    except MemoryError:
        raise FormatError(f"{path} is longer than this machine's memory") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", got=error.strerror, hint="Name a folder under a run's evidence/."
        ) from None


def _part(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise FormatError(f"a case has no {name}", expected=name, got=sorted(files))
    return files[name]


def _same_turn(open_: RoundOpen, slot: int, record: Reveal | Verdict | Appeal) -> None:
    expected, got = (
        (open_.run, open_.round, open_.attempt, slot),
        (record.run, record.round, record.attempt, record.slot),
    )
    if expected != got:
        raise ProtocolError(f"a {record.kind} in a case belongs elsewhere", expected=expected, got=got)


def _verdict(open_: RoundOpen, slot: int, look: int, files: Mapping[str, bytes]) -> Verdict:
    """A verdict of the case, signed by the auditor of the open whose name it bears."""
    data = files[f"verdict-{look}"]
    told = open_envelope(data).peek().get("auditor")
    key = next((auditor.key for auditor in open_.auditors if auditor.member == told), None)
    if key is None:
        raise ProtocolError("a verdict in a case is by no auditor of the open", got=told)
    verdict = open_record(Verdict, data, key)
    _same_turn(open_, slot, verdict)
    if verdict.look != look:
        raise ProtocolError("a verdict in a case is of another look", expected=look, got=verdict.look)
    return verdict


def _check_appeal(open_: RoundOpen, entry: RosterEntry, verdicts: Sequence[Verdict], data: bytes) -> None:
    """An appeal in a case is the contributor's, against the first two verdicts of it."""
    appeal = open_record(Appeal, data, entry.key)
    _same_turn(open_, entry.slot, appeal)
    against = tuple(verdict.digest for verdict in verdicts[:2])
    if (appeal.member, appeal.verdicts) != (entry.member, against):
        raise ProtocolError(
            "an appeal in a case is against other verdicts", expected=against, got=appeal.verdicts
        )


def _check_verdicts(
    open_: RoundOpen, reveal: Reveal, drawn: DrawnSlot, audit: Audit, verdicts: Sequence[Verdict]
) -> None:
    """The verdicts are sound, in the order of looks, and by auditors of the draw, of unlike operators."""
    operators = {auditor.member: auditor.operator for auditor in open_.auditors}
    classes = {auditor.member: auditor.numerics_class for auditor in open_.auditors}
    for verdict in verdicts:
        if verdict.auditor not in drawn.auditors:
            raise ProtocolError("a verdict in a case is by nobody that was drawn", got=verdict.auditor)
        if verdict.numerics_class != classes[verdict.auditor]:
            raise ProtocolError(
                "a verdict in a case is of another class than its auditor's",
                expected=classes[verdict.auditor],
                got=verdict.numerics_class,
            )
        if not verdict_is_sound(verdict, reveal, audit):
            raise ProtocolError(
                "a verdict in a case does not follow from its own values", got=verdict.auditor
            )
    looks = [verdict.look for verdict in verdicts]
    heard = {operators[verdict.auditor] for verdict in verdicts}
    if looks != list(range(1, len(looks) + 1)) or len(heard) != len(looks):
        raise ProtocolError("the verdicts in a case are not of looks 1, 2 and so on, each another operator's")


def _reason(verdicts: Sequence[Verdict]) -> str:
    """What verdicts come to (section 6 of docs/protocol.md, settling); a case without any is of a payload."""
    if not verdicts:
        return "malformed-payload"
    if [verdict.outcome for verdict in verdicts] == ["fail"]:
        return "unconfirmed"
    if not any(verdict.outcome == "fail" for verdict in verdicts):
        raise ProtocolError("a case holds no verdict against its contribution")
    side = prevailing(verdicts)
    if side is None:
        return "disputed"
    if side[0] == "fail":
        return "failed-audit"
    if not any(verdict.outcome == "fail" for verdict in overruled(verdicts)):
        raise ProtocolError("a case is of work that was accepted, and nobody who failed it was overruled")
    return "overruled"


def _drawn(
    manifest: Manifest, open_: RoundOpen, slot: int, files: Mapping[str, bytes]
) -> tuple[str, DrawnSlot]:
    """The draw's seed, and what it says of a slot."""
    draw = open_record(Draw, _part(files, "draw"), manifest.coordinator)
    place = (draw.run, draw.round, draw.attempt)
    if place != (open_.run, open_.round, open_.attempt):
        raise ProtocolError("a draw in a case belongs elsewhere", expected=open_.run, got=place)
    for item in draw.drawn:
        if item.slot == slot:
            return draw.seed, item
    raise ProtocolError(
        "a case is of a slot that was not drawn", expected=slot, got=[d.slot for d in draw.drawn]
    )


class CaseWindows:
    """The windows of a case in the place of a data set: those of the assigned positions and no others."""

    def __init__(self, evidence: Evidence, job: Job) -> None:
        config = job.config
        shape = (evidence.entry.steps, config.train.batch, config.model.context + 1)
        data = _part(evidence.files, "windows")
        # Before the positions are listed: there may be as many as a forged open says.
        self._batches_SBT = arrays_from_bytes(data, {"windows": (np.int64, shape)})["windows"]
        self._positions = positions_of(evidence.entry.positions)

    def batches(self, seed: int, positions: Sequence[int], batch: int) -> npt.NDArray[np.int64]:
        """The batches of an unbroken part of the assignment, as `Dataset.batches` gives them."""
        del seed
        first = self._positions.index(positions[0])
        if self._positions[first : first + len(positions)] != list(positions) or first % batch:
            raise ProtocolError("a case has no windows of these positions", got=positions[:3])
        return self._batches_SBT[first // batch : (first + len(positions)) // batch]
