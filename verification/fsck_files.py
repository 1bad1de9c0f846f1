"""The files of a run folder beside the log (protocol, section 11).

Owns which files must lie there, which may, and that each has its digest. What checkpoints and payloads
hold is level 2's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from verification.errors import FormatError, StorageError
from verification.fsck_findings import Dropped, Progress, Record, Report, Turn
from verification.fsck_formats import MAX_ENTRY, digest_file, read_beginning, read_file
from verification.fsck_index import Index
from verification.fsck_json import parse_canonical, sha256_text
from verification.fsck_log import Tree, list_files
from verification.fsck_missing import File, Missing
from verification.fsck_rules import Story, payload_length
from verification.fsck_shapes import BLAKE3, CASE, CASE_FILES, OVERRULED, RERUN_FILES, tolerances_of
from verification.fsck_tolerance import rests_on_tolerance

_LONGEST_CASE = 1 << 20
_ON_VERDICTS = ("failed-audit", OVERRULED)
"""Reasons of cases that hold what was judged, and the verdicts."""
_TRACE = b"barnraise-trace-v1\n"
_MOST_LEAVES = MAX_ENTRY // 64
"""Verdicts list every leaf of what they judge, so none of more leaves can have failed."""
_HEX = re.compile(r"[0-9a-f]{64}")
_KINDS = ("safetensors", "outer")
_CHECKPOINT = re.compile(r"round-([0-9]{5,15})\.(safetensors|outer)")


class FileCheck:
    """One check of one folder: `turn` takes each turn as the log tells it, `end` what else lies there.

    What was expected is in the index, so a folder may hold more files than memory holds names.
    """

    def __init__(
        self,
        run: Path,
        manifest: Record,
        run_id: str,
        index: Index,
        report: Report,
        progress: Progress | None,
    ) -> None:
        self.run = run
        self.manifest = manifest
        self.run_id = run_id
        self.index = index
        self.payload_length = payload_length(manifest)
        self.dropped: Dropped | None = None
        """What is missing and may be; known at the end."""
        self.missing = Missing(run, manifest, index, report)
        self.tolerances = tolerances_of(manifest)
        self.report = report
        self.progress = progress

    def turn(self, turn: Turn) -> None:
        """The payloads, start states and evidence of a turn."""
        for slot in turn.reveal_close["revealed"] if turn.reveal_close is not None else ():
            if slot not in turn.reveals:
                continue
            opening, number = turn.reveals[slot]["opening"], turn.open["round"]
            what = f"the payload of {_label(turn, slot)}"
            self._addressed("payloads", opening["payload"], what, number, self.payload_length)
            if turn.open["snapshot"] and opening["start_state"] != self.manifest["zero_state"]:
                what = f"the start state of {_label(turn, slot)}"
                self._addressed("state", opening["start_state"], what, number)
        self.missing.told(turn)
        place = (turn.open["round"], turn.open["attempt"])
        lines = [] if turn.close is None else list(turn.close["rejected"])
        removed = [] if turn.settlement is None else turn.settlement["removed"]
        lines += [line for line in removed if (line["round"], line["attempt"]) == place]
        for line in [*lines, *_accepted_cases(turn, {line["slot"] for line in lines})]:
            if line["evidence"] is not None:
                for name in check_case(self, turn, line):
                    self.index.add("evidence", name.encode("utf-8", "surrogatepass"))

    def end(self, story: Story) -> None:
        """The other files, and that no more lie there.

        When the story breaks off, only what is known to belong there is checked.
        """
        self._data(story)
        for file in self.missing.end(story.rounds):
            self.digest(f"{file.folder}/{file.digest}", f"blake3:{file.digest}", file.what)
        self.dropped = self.missing.dropped()
        if story.whole:
            self._checkpoints(story)
        spare = sum(enrolment["role"] == "contributor" for enrolment in story.enrolments)
        for folder in ("payloads", "state"):
            self._rest(folder, spare, story)
        self._rest_of_evidence(story)

    # --- single files ---

    def digest(self, name: str, expected: str, what: str, length: int | None = None) -> bool:
        """Whether the file at `name` is there and has this BLAKE3 digest (and length in bytes)."""
        try:
            got, size = digest_file(f"{self.run}/{name}")
        except StorageError as error:
            self.report.add(f"{what} is missing or cannot be read", name, expected, error.got or error.what)
            return False
        same = self.report.equal(f"{what} has another digest", name, expected, got)
        if not same or length is None:
            return same
        return self.report.equal(f"{what} has the wrong length", name, length, size)

    def trace(self, name: str, opening: Record, what: str) -> None:
        """The leaf hashes at the beginning of an opened trace (section 7) give the opening's root."""
        leaves = min(opening["trace_leaves"], _MOST_LEAVES)
        begins = _TRACE + leaves.to_bytes(4, "little")
        try:
            data = read_beginning(self.run / name, len(begins) + 32 * leaves)
        except StorageError as error:
            self.report.add(f"{what} cannot be read", name, "a file", error.got or error.what)
            return
        if not data.startswith(begins) or len(data) != len(begins) + 32 * leaves:
            self.report.add(f"{what} is not an opened trace of {leaves} leaves", name, begins, data[:23])
            return
        tree = Tree()
        for at in range(len(begins), len(data), 32):
            tree.add(data[at : at + 32])
        root = f"sha256:{tree.root().hex()}"
        self.report.equal(f"{what} does not give the trace's root", name, opening["trace_root"], root)

    def _addressed(self, folder: str, digest: str, what: str, number: int, length: int | None = None) -> None:
        """A file named by its digest in round `number`; the same one is looked at once."""
        first = self.index.add(folder, bytes.fromhex(digest[7:]))
        if not self.missing.take(File(folder, digest[7:], what), number, first=first) and first:
            self.digest(f"{folder}/{digest[7:]}", digest, what, length)

    # --- whole folders ---

    def _unexpected(self, folder: str, story: Story, belongs: Callable[[str], bool]) -> None:
        """No file lies in `folder` but those that belong there."""
        path = self.run / folder
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            self.report.add(f"{folder}/ is not a folder", folder, "a folder", "something else")
            return
        if not path.exists() or not story.whole:
            return
        with closing(list_files(path)) as names:
            for name in names:
                if not belongs(name):
                    what = "an unexpected file lies in the run folder"
                    self.report.add(what, f"{folder}/{name}", "no such file", name)

    def _rest(self, folder: str, spare: int, story: Story) -> None:
        """No more in a folder of files named by their digests; `spare` more while a turn is in progress."""
        extra: list[str] = []

        def belongs(name: str) -> bool:
            if not _HEX.fullmatch(name):
                return False
            if self.index.has(folder, bytes.fromhex(name)):
                return True
            extra.append(name)
            if len(extra) > spare or not _open_ended(story):
                return False
            self.digest(f"{folder}/{name}", f"blake3:{name}", "a file of the turn in progress")
            return True

        self._unexpected(folder, story, belongs)

    def _data(self, story: Story) -> None:
        dataset = self.manifest["dataset"]
        expected = {"tokenizer.json": dataset["tokenizer"]}
        expected |= {
            shard["file"]: shard["digest"] for part in ("train", "validation") for shard in dataset[part]
        }
        for count, (name, digest) in enumerate(expected.items(), 1):
            self.digest(f"data/{name}", digest, f"data file {name}")
            if self.progress is not None:
                self.progress("data", count, len(expected))
        self._unexpected("data", story, lambda name: name in expected)

    def _checkpoints(self, story: Story) -> None:
        """Which checkpoints are there. An empty one cannot be right; more of their content is level 2's."""
        every, last = self.manifest["config"]["checkpoint"]["every"], story.rounds
        bases = {number - 1 for number, _ in story.waiting}
        due = (number for number in range(0, last, every) if not self.missing.may_be_thinned(number))
        wanted = {*due, last, *bases}
        for number in sorted(wanted):
            for kind in _KINDS:
                name = f"checkpoints/round-{number:05d}.{kind}"
                path = self.run / name
                try:
                    fine = not path.is_symlink() and path.is_file() and path.stat().st_size > 0
                except OSError:
                    fine = False
                if not fine:
                    self.report.add("a checkpoint is missing or empty", name, "a file", "none")

        # That of a turn that was just settled may still lie there, and that of the next round already.
        lowest = min(bases, default=last) - 1

        def belongs(name: str) -> bool:
            found, path = _CHECKPOINT.fullmatch(name), self.run / "checkpoints" / name
            if found is None or name != f"round-{int(found[1]):05d}.{found[2]}":
                return False
            number = int(found[1])
            if path.is_symlink() or not path.is_file():
                return number in wanted  # and was named above
            kept = number == last or (number < last and number % every == 0)
            return kept or (_open_ended(story) and lowest <= number <= last + 1)

        self._unexpected("checkpoints", story, belongs)

    def _rest_of_evidence(self, story: Story) -> None:
        number, attempt, last = story.rounds + 1, 0, story.last_turn
        if last is not None:
            if last.close is None:
                number, attempt = last.open["round"], last.open["attempt"]
            elif not last.close["accepted"]:
                attempt = last.open["attempt"] + 1
        open_ended = {(number, attempt), *story.waiting} if _open_ended(story) else ()
        prefixes = tuple(f"r{number:05d}-a{attempt}-s" for number, attempt in open_ended)

        def belongs(name: str) -> bool:
            known = self.index.has("evidence", name.encode("utf-8", "surrogatepass"))
            return known or name.startswith(prefixes)

        self._unexpected("evidence", story, belongs)


def _open_ended(story: Story) -> bool:
    """Whether a turn may be in progress, so that files may lie there which the log does not name yet.

    Only whole stories are asked: of another no file is unexpected.
    """
    return story.run_close is None


def _label(turn: Turn, slot: int) -> str:
    attempt = f" attempt {turn.open['attempt']}" if turn.open["attempt"] else ""
    return f"slot {slot} in round {turn.open['round']}{attempt}"


def _plain_name(file: str) -> None:
    if file in {"", ".", "..", "case.json"} or "/" in file or "\\" in file:
        raise FormatError("a case names a file that is not beside it", got=file)


def check_case(files: FileCheck, turn: Turn, line: Record) -> set[str]:
    """One case and the files beside it; the names under evidence/ that it accounts for."""
    opened, slot = turn.open, line["slot"]
    folder = f"r{opened['round']:05d}-a{opened['attempt']}-s{slot}"
    name = f"evidence/{folder}/case.json"
    known = {f"{folder}/case.json"}
    of = f"the evidence against {_label(turn, slot)}"
    try:
        data = read_file(files.run / name, _LONGEST_CASE)
    except StorageError as error:
        files.report.add(
            f"{of} is missing or cannot be read", name, line["evidence"], error.got or error.what
        )
        return known
    if not files.report.equal(f"{of} has another digest", name, line["evidence"], sha256_text(data)):
        return known
    try:
        case = parse_canonical(data)
        CASE(case, "case")
        for file, digest in case["files"].items():
            BLAKE3(digest, f"case.files.{file}")
            _plain_name(file)
    except FormatError as error:
        files.report.add(f"{of} is malformed: {error.what}", name, error.expected, error.got)
        return known
    expected = {
        "attempt": opened["attempt"],
        "member": line["member"],
        "reason": line["reason"],
        "round": opened["round"],
        "run": files.run_id,
        "slot": slot,
    }
    for key, want in expected.items():
        files.report.equal(f"the {key} in {of} is wrong", name, want, case[key])
    opened_trace = _has_opened_trace(files, turn, line)
    if line["reason"] in CASE_FILES and slot in turn.reveals:
        opening = turn.reveals[slot]["opening"]
        want_files = {key: opening[key] for key in CASE_FILES[line["reason"]]}
        # Of these bytes the opening says nothing, of the trace's no more than their root.
        rerun = [*RERUN_FILES[line["reason"]], *_files_of_verdicts(turn, line)]
        for file in (*rerun, *(("trace",) if opened_trace else ())):
            want_files[file] = case["files"].get(file, f"the digest of {file}")
        files.report.equal(f"the files in {of} are wrong", name, want_files, case["files"])
    for file, digest in case["files"].items():
        # Bytes of another length than the codec's are `unrevealed`; only its decoder can find them malformed.
        length = files.payload_length if line["reason"] in CASE_FILES and file == "payload" else None
        holds = files.digest(f"evidence/{folder}/{file}", digest, f"{file} in {of}", length)
        if holds and opened_trace and file == "trace":
            files.trace(f"evidence/{folder}/trace", turn.reveals[slot]["opening"], f"trace in {of}")
        known.add(f"{folder}/{file}")
    return known


def _accepted_cases(turn: Turn, rejected: set[int]) -> list[Record]:
    """A line for each slot that is accepted and has a case, as if it were rejected for it."""
    told = [line for record in (turn.close, turn.settlement) if record for line in record["overruled"]]
    cases = {line["slot"]: line["evidence"] for line in reversed(told) if line["evidence"] is not None}
    return [
        {
            "evidence": cases[entry["slot"]],
            "member": entry["member"],
            "reason": OVERRULED,
            "slot": entry["slot"],
        }
        for entry in (turn.open["roster"] if cases else ())
        if entry["slot"] in cases.keys() - rejected
    ]


def _files_of_verdicts(turn: Turn, line: Record) -> list[str]:
    """The files of a case that hold verdicts on its slot, and an appeal."""
    if line["reason"] not in _ON_VERDICTS:
        return []
    looks = [verdict["look"] for verdict in turn.verdicts if verdict["slot"] == line["slot"]]
    return [f"verdict-{look}" for look in looks] + ["appeal"] * (line["slot"] in turn.appeals)


def _has_opened_trace(files: FileCheck, turn: Turn, line: Record) -> bool:
    """Whether a case has the trace that was served: it is on verdicts of an audit of which not all
    segments were drawn, or that rests on tolerance.
    """
    slot = line["slot"]
    reveal = turn.reveals.get(slot)
    if line["reason"] not in _ON_VERDICTS or reveal is None or turn.draw is None:
        return False
    entries = [entry for entry in turn.open["roster"] if entry["slot"] == slot]
    if any(rests_on_tolerance(entry, turn.open["auditors"], files.tolerances) for entry in entries):
        return True
    segments = [len(drawn["segments"]) for drawn in turn.draw["drawn"] if drawn["slot"] == slot]
    return bool(segments) and segments[0] + 1 < reveal["opening"]["trace_leaves"]
