"""Level 1: whether a run folder is what its log says, and whether its log keeps the rules.

Owns the order of the checks and the answer. Written from `docs/protocol.md` alone; it shares formats
with what writes runs, no code. It needs no arrays: what payloads decode to and checkpoints hold is
level 2, whether the work was done is level 3. It never raises on what lies in the folder, but for
`UsageError` when that is no run of this protocol at all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from verification.errors import FormatError, StorageError, UsageError
from verification.fsck_files import check_files
from verification.fsck_findings import Failure, Findings, Progress, Record, Report, Turn
from verification.fsck_formats import (
    MAX_ENTRY,
    PROTOCOL,
    Envelope,
    VerifierKey,
    parse_canonical,
    read_file,
    sha256_text,
    write_canonical,
)
from verification.fsck_log import LogView, read_log
from verification.fsck_rules import Story, check_manifest, read_envelopes, replay

__all__ = ["Failure", "Findings", "Progress", "Turn", "check_run"]

_HEAD = re.compile(r"(0|[1-9][0-9]{0,15}):(?:sha256:)?([0-9a-f]{64})")


def check_run(
    run: Path,
    *,
    vkey: str | None = None,
    expect_head: str | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Check the run folder `run` at level 1.

    `vkey` is the log's verifier key as known from elsewhere, `expect_head` a head seen elsewhere,
    `SIZE:HEX` with the root's 64 hex digits; each anchors the log to something outside the folder.
    Raises UsageError when there is no run, a run of another protocol, or `expect_head` is not a head.
    """
    head = None if expect_head is None else _HEAD.fullmatch(expect_head)
    if expect_head is not None and head is None:
        raise UsageError("not a log head", expected="SIZE:HEX with 64 hex digits", got=expect_head)
    if not run.is_dir():
        raise UsageError(f"there is no folder {run}", hint="Give the folder of a run.")
    if not any((run / name).exists() for name in ("manifest.json", "log")):
        raise UsageError(f"{run} is not a run folder", expected="manifest.json and log/", got="neither")
    report = Report()
    written, written_id = _read_manifest_file(run, report)
    log = read_log(run / "log", report)
    envelopes = read_envelopes(log.entries, report, progress)
    logged = _logged_manifest(envelopes)
    _refuse_other_protocols(run, written, logged)
    manifest, run_id = _settle_manifest(written, written_id, logged, log, report)
    key = check_manifest(manifest, report) if manifest else None
    story = Story()
    if key is not None:
        story = replay(manifest, run_id, key, envelopes, roots=log.roots, report=report, progress=progress)
        check_files(run, manifest, run_id, story, report=report, progress=progress)
    signed_by = key if _check_signature(log, key, report) else None
    anchored = _anchor(log, key, signed_by, report, vkey=vkey, head=head)
    return Findings(
        failures=tuple(report.failures),
        complete=log.complete and bool(envelopes) and _kind(envelopes[-1]) == "run-close",
        run_id=run_id,
        log_size=log.checkpoint.size if log.checkpoint else 0,
        log_head=f"sha256:{log.checkpoint.root.hex()}" if log.checkpoint else "",
        log_vkey=str(key) if key else "",
        rounds=story.rounds,
        weights_digest=story.weights_digest,
        anchored=anchored,
        manifest=manifest,
        enrolments=story.enrolments,
        turns=story.turns,
        run_close=story.run_close,
    )


def _kind(envelope: Envelope | None) -> str:
    return envelope.kind if envelope is not None else ""


def _read_manifest_file(run: Path, report: Report) -> tuple[Any, str]:
    """The value of manifest.json and the run id it gives; None and "" when it cannot be read."""
    try:
        data = read_file(run / "manifest.json", MAX_ENTRY)
        return parse_canonical(data), sha256_text(data)
    except (FormatError, StorageError) as error:
        expected, got = error.expected or "canonical JSON", error.got or "something else"
        report.add(f"manifest.json: {error.what}", "manifest.json", expected, got)
        return None, ""


def _logged_manifest(envelopes: list[Envelope | None]) -> Any:
    first = envelopes[0] if envelopes else None
    return first.predicate if first is not None and first.kind == "manifest" else None


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


def _settle_manifest(
    written: Any, written_id: str, logged: Any, log: LogView, report: Report
) -> tuple[Record, str]:
    """The manifest to go on with, the log's where there is one, and the run id."""
    if logged is None:
        if log.entries:
            report.add("the log does not begin with a manifest", "log entry 0", "a manifest")
        elif log.checkpoint is not None:
            report.add("the log holds no entry", "log", "a manifest")
        return (written, written_id) if isinstance(written, dict) else ({}, "")
    if not isinstance(logged, dict):
        report.add("the log's manifest is no object", "log entry 0, manifest", "an object")
        return {}, ""
    run_id = sha256_text(write_canonical(logged))
    if written_id:
        report.equal("manifest.json is not the manifest of the log", "manifest.json", run_id, written_id)
    return logged, run_id


def _check_signature(log: LogView, key: VerifierKey | None, report: Report) -> bool:
    if log.checkpoint is None or key is None:
        return False
    if log.checkpoint.signed_by(key):
        return True
    what = "the checkpoint is not signed with the log's key"
    report.add(what, "log/checkpoint", str(key), log.checkpoint.origin)
    return False


def _anchor(
    log: LogView,
    key: VerifierKey | None,
    signed_by: VerifierKey | None,
    report: Report,
    *,
    vkey: str | None,
    head: re.Match[str] | None,
) -> str | None:
    """Compare the log with what is known from elsewhere; by what it is anchored."""
    by: list[str] = []
    if vkey is not None:
        same = report.equal(
            "the log's key is not the one expected", "manifest.json", vkey, str(key) if key else ""
        )
        if same and signed_by is not None:
            by.append("vkey")
    if head is not None:
        size, root = int(head.group(1)), head.group(2)
        got = log.roots[size].hex() if size < len(log.roots) else f"only {max(0, len(log.roots) - 1)} entries"
        what = f"the log does not contain the expected head of size {size}"
        if report.equal(what, "log", root, got):
            by.append("expect-head")
    return "+".join(by) or None
