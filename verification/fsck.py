"""Level 1: whether a run folder is what its log says, and whether its log keeps the rules.

Owns the order of the checks and the answer. Written from `docs/protocol.md` alone; it shares formats
with what writes runs, no code. It needs no arrays: what payloads decode to and checkpoints hold is
level 2, whether the work was done is level 3. It never raises on what lies in the folder, but for
`UsageError` when that is no run of this protocol at all, or one that cannot be checked here. The log is
gone through once, and of what it tells only what later entries are held against is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verification.errors import FormatError, StorageError, UsageError
from verification.fsck_anchor import Anchors
from verification.fsck_envelope import Envelope
from verification.fsck_files import FileCheck
from verification.fsck_findings import Failure, Findings, Progress, Record, Report, Turn, TurnSink
from verification.fsck_formats import MAX_ENTRY, PROTOCOL, read_file
from verification.fsck_index import Index
from verification.fsck_json import parse_canonical, sha256_text, write_canonical
from verification.fsck_log import LogReader
from verification.fsck_rules import Ground, Replay, Story, check_manifest, read_envelope
from verification.fsck_turn import Head
from verification.fsck_witness import check_cosignatures

__all__ = ["Failure", "Findings", "Progress", "Turn", "TurnSink", "check_run"]

_PROGRESS_EVERY = 256


def check_run(
    run: Path,
    *,
    vkey: str | None = None,
    expect_head: str | None = None,
    witness_policy: Path | None = None,
    receipt: Path | None = None,
    progress: Progress | None = None,
    turns: TurnSink | None = None,
) -> Findings:
    """Check the run folder `run` at level 1.

    Each of these ties the log to something outside the folder: `vkey`, the log's verifier key as known from
    elsewhere; `expect_head`, a head seen elsewhere, `SIZE:HEX` with the root's 64 hex digits;
    `witness_policy`, a C2SP tlog-policy file; `receipt`, a receipt file (section 12).

    `turns` is given each turn when the log has told all of it, right or wrong, its settlement included where
    audits lag; without it they are gathered in the answer, and memory grows with the log. Raises UsageError
    when there is no run, a run of another protocol, or one of the above is none of what it must be, or when
    the run names a beacon and the package that checks one is not installed; StorageError when the machine has
    no room.
    """
    anchors = Anchors(vkey=vkey, expect_head=expect_head, witness_policy=witness_policy, receipt=receipt)
    if not run.is_dir():
        raise UsageError(f"there is no folder {run}", hint="Give the folder of a run.")
    if not any((run / name).exists() for name in ("manifest.json", "log")):
        raise UsageError(f"{run} is not a run folder", expected="manifest.json and log/", got="neither")
    gathered: list[Turn] = []
    with Index() as index:
        check = _Check(run, anchors, index, progress, gathered.append if turns is None else turns)
        return check.findings(gathered)


class _Check:
    """One check of one folder, in the order in which its parts need each other."""

    def __init__(
        self, run: Path, anchors: Anchors, index: Index, progress: Progress | None, turns: TurnSink
    ) -> None:
        self.run = run
        self.anchors = anchors
        self.index = index
        self.progress = progress
        self.turns = turns
        self.report = Report()
        self.log: LogReader
        self.manifest: Record = {}
        self.run_id = ""
        self.ground: Ground | None = None
        self.replay: Replay | None = None
        self.files: FileCheck | None = None
        self.last: Envelope | None = None
        self.written, self.written_id = _read_manifest_file(run, self.report)
        self.log = LogReader(run / "log", self.report)

    def findings(self, gathered: list[Turn]) -> Findings:
        """Everything, once."""
        self._read()
        story = self.replay.end() if self.replay is not None else Story()
        if self.files is not None:
            self.files.end(story)
        key = self.ground.log_key if self.ground is not None else None
        signed = self._check_checkpoint()
        checkpoint = self.log.checkpoint
        anchored = self.anchors.answer(key, self.log.tree.size, signed=signed, report=self.report)
        return Findings(
            failures=tuple(self.report.failures),
            complete=self.log.complete and self.last is not None and self.last.kind == "run-close",
            run_id=self.run_id,
            log_size=checkpoint.size if checkpoint else 0,
            log_head=f"sha256:{checkpoint.root.hex()}" if checkpoint else "",
            log_vkey=str(key) if key else "",
            rounds=story.rounds,
            weights_digest=story.weights_digest,
            anchored=anchored,
            manifest=self.manifest,
            enrolments=story.enrolments,
            turns=tuple(gathered),
            run_close=story.run_close,
            dropped=self.files.dropped if self.files is not None else None,
        )

    def _read(self) -> None:
        """Go through the log, entry by entry."""
        size = self.log.checkpoint.size if self.log.checkpoint else 0
        started = False
        for index, entry, leaf in self.log.entries():
            self.anchors.see(self.log.tree)
            envelope = read_envelope(index, entry, self.report)
            self.last = envelope
            if not started:
                started = True
                self._begin(envelope)
            elif self.replay is not None:
                self.replay.take(index, envelope, leaf)
            if self.progress is not None and ((index + 1) % _PROGRESS_EVERY == 0 or index + 1 == size):
                self.progress("records", index + 1, size)
        self.anchors.see(self.log.tree)
        if not started:
            self._begin(None)

    def _begin(self, first: Envelope | None) -> None:
        """Settle on a manifest; what follows is checked only when something can be built on it."""
        logged = first.predicate if first is not None and first.kind == "manifest" else None
        _refuse_other_protocols(self.run, self.written, logged)
        self.manifest, self.run_id = self._settle_manifest(
            logged, empty=first is None and not self.log.tree.size
        )
        self.ground = check_manifest(self.manifest, self.report) if self.manifest else None
        if self.ground is None:
            return
        self.files = FileCheck(self.run, self.manifest, self.run_id, self.index, self.report, self.progress)
        self.replay = Replay(
            self.manifest,
            self.run_id,
            self.ground,
            tree=self.log.tree,
            index=self.index,
            on_head=self.anchors.see_head,
            finished=self._finished,
            report=self.report,
        )
        if first is not None:
            self.replay.first(first)

    def _finished(self, turn: Turn) -> None:
        if self.files is not None:
            self.files.turn(turn)
        self.turns(turn)

    def _settle_manifest(self, logged: Any, *, empty: bool) -> tuple[Record, str]:
        """The manifest to go on with, the log's where there is one, and the run id."""
        report = self.report
        if logged is None:
            if not empty:
                report.add("the log does not begin with a manifest", "log entry 0", "a manifest")
            elif self.log.checkpoint is not None:
                report.add("the log holds no entry", "log", "a manifest")
            return (self.written, self.written_id) if isinstance(self.written, dict) else ({}, "")
        if not isinstance(logged, dict):
            report.add("the log's manifest is no object", "log entry 0, manifest", "an object")
            return {}, ""
        run_id = sha256_text(write_canonical(logged))
        if self.written_id:
            what = "manifest.json is not the manifest of the log"
            report.equal(what, "manifest.json", run_id, self.written_id)
        return logged, run_id

    def _check_checkpoint(self) -> bool:
        """Whether log/checkpoint is signed with the log's key; its cosignatures are checked too."""
        checkpoint, ground, where = self.log.checkpoint, self.ground, "log/checkpoint"
        if checkpoint is None or ground is None:
            return False
        signed = checkpoint.signed_by(ground.log_key)
        if not signed:
            what = "the checkpoint is not signed with the log's key"
            self.report.add(what, where, str(ground.log_key), checkpoint.origin)
        cosigners = check_cosignatures(
            ground.witnesses,
            checkpoint,
            self.log.cosignatures,
            what="the checkpoint",
            where=where,
            report=self.report,
        )
        if signed and self.log.complete and self.log.tree.root() == checkpoint.root:
            self.anchors.see_head(Head(checkpoint.size, checkpoint.root, tuple(cosigners)))
        return signed


def _read_manifest_file(run: Path, report: Report) -> tuple[Any, str]:
    """The value of manifest.json and the run id it gives; None and "" when it cannot be read."""
    try:
        data = read_file(run / "manifest.json", MAX_ENTRY)
        return parse_canonical(data), sha256_text(data)
    except (FormatError, StorageError) as error:
        expected, got = error.expected or "canonical JSON", error.got or "something else"
        report.add(f"manifest.json: {error.what}", "manifest.json", expected, got)
        return None, ""


def _refuse_other_protocols(run: Path, written: Any, logged: Any) -> None:
    """A run of another version is not broken. One whose manifest and log disagree is, and goes on."""
    versions = [m.get("protocol") if isinstance(m, dict) else None for m in (written, logged)]
    known = [version for version in versions if type(version) is int]
    if known and all(version != PROTOCOL for version in known):
        raise UsageError(
            f"{run} is a run of another protocol version",
            expected=PROTOCOL,
            got=known[0],
            hint="Check it with the release that made it.",
        )
