"""Level 2: from the seed and the accepted payloads to every checkpoint digest, bit for bit.

Where a run's retention let go of payloads, from the first checkpoint after which all are there. Owns the
replay of a run's checkpoints on the records that level 1 read. Shares with the writer only the pure decode,
aggregation, initial weights and array bytes; imports no torch and writes nothing.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.arrays import Arrays, arrays_digest
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from pipeline.aggregation import Contribution
from pipeline.checkpoint import Aggregator, Checkpoint
from pipeline.config import Config, config_from_manifest, manifest_config
from pipeline.folder import RunFolder
from pipeline.lineage import Lineage, TurnWork
from pipeline.records_table import contribution_rows, read_contributions
from verification.durable import storage_error
from verification.encoding import blake3_digest, to_json
from verification.errors import BarnraiseError, FormatError, UsageError
from verification.fsck import Failure, Findings, Turn
from verification.plans import capped_weights
from verification.records import RoundOpen
from verification.sealing import parse_predicate
from verification.tolerance import rests_on_tolerance

MOST_HEADER = 1 << 20  # bytes of names and shapes, which a manifest of 65,535 bytes has room for

Progress = Callable[[str, int, int], None]
Fail = Callable[[Failure], None]


@dataclass(frozen=True)
class Step:
    """A turn of the log with the checkpoint it started from and the one it led to.

    `index` is its number among the closed turns.
    """

    index: int
    turn: Turn
    before: Checkpoint
    after: Checkpoint


def replay_checkpoints(
    folder: RunFolder, findings: Findings, fail: Fail, progress: Progress
) -> Iterator[Step]:
    """Replay every closed turn in order; a digest that differs is a Failure, and the replay goes on.

    Turns of rounds whose payloads were dropped are passed over (`findings.dropped`). Raises of the error
    family when the folder cannot be replayed at all.
    """
    manifest = findings.manifest
    config = checked_config(manifest)
    if not _fits(folder, config, manifest, fail):
        return
    aggregator = Aggregator.of(manifest["arrays"], manifest["config"])
    lineage = Lineage(aggregator, _start(folder, config, aggregator, manifest, fail))
    lag, waiting = config.audit.lag, _Waiting(folder, manifest["config"], fail)
    closed = [turn for turn in findings.turns if turn.close]
    first = findings.dropped.rounds if findings.dropped else 0
    if first:
        found = _resumed(folder, aggregator, closed, first, fail)
        if found is None:
            return
        lineage = Lineage(aggregator, found)
    for index, turn in enumerate(closed):
        if turn.open["round"] <= first:
            _check_refusals(folder, aggregator, turn.close or {}, fail)
            continue
        progress("replaying the aggregation", index, len(closed))
        close: dict[str, Any] = turn.close or {}
        where = f"round {close['round']}, attempt {close['attempt']}"
        work = _accepted(folder, turn)
        before = lineage.current
        try:
            lineage = lineage.closed((work, turn.open["outer_lr"]), lags=lag > 0)
        except BarnraiseError as error:
            _name_malformed(aggregator, work, where, fail)
            fail(Failure(error.what, where, str(error.expected or ""), str(error.got or "")))
            return  # no checkpoint follows from here
        _compare(aggregator, lineage.current, close, where, fail)
        _check_refusals(folder, aggregator, close, fail)
        if not close["void"] and close["round"] > 1:
            # Of what it started from nothing is cut out any more.
            _check_files(folder, aggregator, before, close["round"] - 1, fail)
        yield Step(index, turn, before, lineage.current)
        if lag:
            waiting.turns.append(turn)
            over = close["round"] == config.run.rounds and not close["void"]
            lineage = waiting.settle(lineage, 0 if over else lag)
    progress("replaying the aggregation", len(closed), len(closed))
    last = max((turn.close["round"] for turn in closed if turn.close and not turn.close["void"]), default=0)
    _check_last(folder, last, lineage, None if findings.complete else waiting.mended, fail)


def _resumed(
    folder: RunFolder, aggregator: Aggregator, closed: list[Turn], first: int, fail: Fail
) -> Checkpoint | None:
    """The checkpoint of round `first`, which is firm, from its files; None where they are not the log's.

    Files of the checkpoints before it are held against the log too: nothing else can tell of them.
    """
    failures: list[Failure] = []
    end: dict[str, Any] = {}
    for turn in closed:
        close: dict[str, Any] = turn.close or {}
        if close["round"] > first:
            break
        if close["void"]:
            continue
        if close["round"] > 1:
            _check_logged(folder, aggregator, turn.open["base"], close["round"] - 1, fail)
        end = close
        if turn.settlement and close["round"] == first:
            settled = turn.settlement["settled"]
            where = f"settlement of round {close['round']}, attempt {close['attempt']}, settled"
            for part in ("weights", "outer"):
                if settled[part] != close[part]:
                    fail(
                        Failure(
                            f"the settled {part} are not the closed ones", where, close[part], settled[part]
                        )
                    )
    _check_logged(folder, aggregator, end, first, failures.append)
    for failure in failures:
        fail(failure)
    if failures:
        return None
    try:
        outer = folder.outer_file(first).read_bytes()
    except OSError as error:
        raise storage_error(folder.outer_file(first), error) from error
    return aggregator.load(folder.checkpoint(first), outer)


@dataclass
class _Waiting:
    """Closed turns that are not settled, the oldest first, and what settlements took out so far.

    `mended` is the checkpoint before the last settlement, where that took something out.
    """

    folder: RunFolder
    config: dict[str, Any]
    fail: Fail
    turns: list[Turn] = field(default_factory=list)
    mended: Checkpoint | None = None
    gone: set[tuple[int, int, int]] = field(default_factory=set)

    def settle(self, lineage: Lineage, most: int) -> Lineage:
        """The lineage after the settlements that leave at most `most` turns waiting; both ends compared."""
        while len(self.turns) > most and self.turns[0].settlement:
            record = self.turns[0].settlement
            self.mended = lineage.current if record["removed"] else None
            if record["removed"]:
                self.gone |= {(item["round"], item["attempt"], item["slot"]) for item in record["removed"]}
                lineage = lineage.excised([self._left(turn) for turn in self.turns])
            else:
                lineage = lineage.as_settled()
            where = f"settlement of round {record['round']}, attempt {record['attempt']}"
            _compare(lineage.aggregator, lineage.settled, record["settled"], f"{where}, settled", self.fail)
            _compare(lineage.aggregator, lineage.current, record, where, self.fail)
            self.turns.pop(0)
        return lineage

    def _left(self, turn: Turn) -> TurnWork:
        """What is left of a turn, with the weights that it has alone (protocol, section 9, step 1)."""
        close, audit = turn.close or {}, self.config["audit"]
        open_ = parse_predicate(RoundOpen, turn.open)
        place = close["round"], close["attempt"]
        left = [item for item in close["accepted"] if (*place, item["slot"]) not in self.gone]
        entries = [open_.entry(item["slot"]) for item in left]
        weights = capped_weights(
            [(entry.operator, item["tokens"]) for entry, item in zip(entries, left, strict=True)],
            self.config["credit"]["operator_cap_ppm"],
            [rests_on_tolerance(audit["tolerance"], entry, open_.auditors) for entry in entries],
            audit["tolerance_cap_ppm"],
        )
        work = [
            Contribution(item["slot"], weight, self.folder.payload(item["payload"]))
            for item, weight in zip(left, weights, strict=True)
        ]
        return work, turn.open["outer_lr"]


def _check_last(
    folder: RunFolder, last: int, lineage: Lineage, mended: Checkpoint | None, fail: Fail
) -> None:
    """The files of round `last`; a kill may have come between the last settlement and its file.

    `mended` is the checkpoint that it had before that.
    """
    wrong: list[Failure] = []
    if last:
        _check_files(folder, lineage.aggregator, lineage.current, last, wrong.append)
    if wrong and mended:
        before: list[Failure] = []
        _check_files(folder, lineage.aggregator, mended, last, before.append)
        wrong = [failure for failure in wrong if failure.where in {other.where for other in before}]
    for failure in wrong:
        fail(failure)


def checked_config(manifest: dict[str, Any]) -> Config:
    """The configuration of a manifest. FormatError when it is none: the run is at fault, not who asks."""
    try:
        config = config_from_manifest(manifest["config"])
    except UsageError as error:
        raise FormatError("the manifest's configuration is not valid", got=error.what) from None
    if manifest_config(config) != manifest["config"]:
        # A default filled in here would be one that nobody signed, and later readers would miss it.
        raise FormatError("the manifest's configuration is not whole", expected="every field, as it was run")
    return config


def _fits(folder: RunFolder, config: Config, manifest: dict[str, Any], fail: Fail) -> bool:
    """Whether the model can have the manifest's arrays and checkpoint 0 hold them.

    Looked at before any of it is allocated: a manifest of a kilobyte can describe a model of terabytes.
    """
    weights = folder.weights_file(0)
    found = weights.stat().st_size if weights.exists() else 0
    # A product of thousands of dimensions is a number too long to print.
    expected = min(4 * sum(math.prod(shape) for _, shape in manifest["arrays"]), 1 << 63)
    if found < expected:
        what = "checkpoint 0 is too small for the manifest's arrays"
        where = str(weights.relative_to(folder.path))
        fail(Failure(what, where, f"more than {expected} bytes", f"{found} bytes"))
        return False
    layers = config.model.n_layers
    if layers > len(manifest["arrays"]):
        what = "the manifest's arrays are not its model's"
        where = "manifest.json, arrays"
        fail(Failure(what, where, f"arrays of {layers} layers", f"{len(manifest['arrays'])} arrays"))
        return False
    return True


def _name_malformed(aggregator: Aggregator, work: list[Contribution], where: str, fail: Fail) -> None:
    for item in work:
        try:
            aggregator.codec.decode(item.payload)
        except BarnraiseError as error:
            what = "an accepted payload is malformed: " + error.what
            got = blake3_digest(item.payload) if error.got is None else str(error.got)
            fail(Failure(what, f"{where}, slot {item.slot}", str(error.expected or "canonical bytes"), got))


def _start(
    folder: RunFolder, config: Config, aggregator: Aggregator, manifest: dict[str, Any], fail: Fail
) -> Checkpoint:
    specs = array_specs(config.model)
    named = [[spec.name, list(spec.shape)] for spec in specs]
    if named != manifest["arrays"]:
        raise FormatError("the manifest's arrays are not its model's", expected=named, got=manifest["arrays"])
    zero = arrays_digest(zero_state(specs, config.train.mode))
    if zero != manifest["zero_state"]:
        fail(Failure("the zero state is wrong", "manifest.json, zero_state", zero, manifest["zero_state"]))
    if aggregator.codec.name != manifest["codec"]:
        fail(
            Failure(
                "the codec's name is wrong", "manifest.json, codec", aggregator.codec.name, manifest["codec"]
            )
        )
    start = aggregator.start(initial_weights(config.model, config.run.seed))
    _compare(aggregator, start, manifest["initial"], "manifest.json, initial", fail)
    _check_files(folder, aggregator, start, 0, fail)
    return start


def _accepted(folder: RunFolder, turn: Turn) -> list[Contribution]:
    return [
        Contribution(a["slot"], a["weight"], folder.payload(a["payload"]))
        for a in (turn.close or {})["accepted"]
    ]


def _check_refusals(folder: RunFolder, aggregator: Aggregator, close: dict[str, Any], fail: Fail) -> None:
    """What was refused as malformed lies in evidence, its digest checked at level 1; the codec must agree."""
    for item in close["rejected"]:
        if item["reason"] != "malformed-payload":
            continue
        case = folder.evidence_case(close["round"], close["attempt"], item["slot"])
        where = str((case / "payload").relative_to(folder.path))
        try:
            aggregator.codec.decode((case / "payload").read_bytes())
        except FormatError:
            continue
        except OSError as error:
            fail(Failure("evidence is missing", where, "a payload", str(error)))
            continue
        fail(
            Failure("a sound payload was refused as malformed", where, "bytes the codec refuses", "a payload")
        )


def _compare(
    aggregator: Aggregator, found: Checkpoint, claimed: dict[str, Any], where: str, fail: Fail
) -> None:
    digests = aggregator.digests(found)
    for part, digest in (("weights", digests.weights), ("outer", digests.outer)):
        if claimed[part] != digest:
            what = "weights" if part == "weights" else "outer state"
            fail(Failure(f"the {what} are not what the payloads give", where, digest, claimed[part]))


def _check_files(
    folder: RunFolder, aggregator: Aggregator, found: Checkpoint, round_: int, fail: Fail
) -> None:
    """The files of a checkpoint, where level 1 found them, hold exactly the replayed bytes."""
    _check_logged(folder, aggregator, to_json(aggregator.digests(found)), round_, fail)


def _check_logged(folder: RunFolder, aggregator: Aggregator, base: Any, round_: int, fail: Fail) -> None:
    """The same of a checkpoint of which only the digests are known: `base` has `weights` and `outer`."""
    weights, outer = folder.weights_file(round_), folder.outer_file(round_)
    if not weights.exists() or not outer.exists():
        return  # level 1 has named what is missing and should be there
    size = 4 * aggregator.codec.length
    _check_file(folder, weights, base["weights"], size, aggregator.read_weights, fail)
    _check_file(folder, outer, base["outer"], 2 * size, aggregator.read_outer, fail)


def _check_file(
    folder: RunFolder, path: Path, digest: str, size: int, read: Callable[[bytes], Arrays], fail: Fail
) -> None:
    where = str(path.relative_to(folder.path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FormatError("no regular file")
        with path.open("rb") as stream:
            data = stream.read(size + MOST_HEADER + 1)
        if len(data) > size + MOST_HEADER:
            raise FormatError("too long", expected=f"at most {size + MOST_HEADER} bytes")
        got = arrays_digest(read(data))
    except (BarnraiseError, OSError) as error:
        fail(Failure("a checkpoint file is damaged", where, digest, str(error)))
        return
    if got != digest:
        fail(Failure("a checkpoint file is not what the payloads give", where, digest, got))


def check_table(
    folder: RunFolder, findings: Findings, records: list[Any], payload_bytes: int, fail: Fail
) -> None:
    """contributions.parquet says what the log says. A run that has not ended may lack it."""
    path: Path = folder.contributions_file
    where = path.name
    if not path.exists():
        if findings.complete:
            fail(Failure("the table of contributions is missing", where, "a file", "none"))
        return
    rows = contribution_rows(records, payload_bytes)
    try:
        found = read_contributions(path, 2 * len(rows) + 1000)
    except BarnraiseError as error:
        fail(Failure("the table of contributions is damaged", where, "a table", str(error)))
        return
    if not findings.complete:
        rows = rows[: len(found)]
    for index, (row, got) in enumerate(zip(rows, found, strict=False)):
        if row != got:
            column = next(name for name in row if row[name] != got.get(name))
            fail(
                Failure(
                    f"column {column} is not what the log says",
                    f"{where}, row {index}",
                    str(row[column]),
                    str(got.get(column)),
                )
            )
            return
    if len(rows) != len(found):
        fail(
            Failure("the table of contributions has the wrong length", where, str(len(rows)), str(len(found)))
        )
