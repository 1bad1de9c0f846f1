"""The files of a run folder beside the log (protocol, section 11).

Owns which files must lie there, which may, and that each has its digest. What checkpoints and payloads
hold is level 2's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from verification.errors import FormatError, StorageError
from verification.fsck_findings import Progress, Record, Report, Turn
from verification.fsck_formats import digest_file, parse_canonical, read_file, sha256_text
from verification.fsck_log import list_files
from verification.fsck_rules import Story, payload_length
from verification.fsck_shapes import BLAKE3, CASE, CASE_FILES

_LONGEST_CASE = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


class _Files:
    """One check of one folder.

    `whole`: it is known what to expect. `open_ended`: besides, a turn may be in progress.
    `payload_length`: bytes of every payload of the run.
    """

    def __init__(
        self, run: Path, story: Story, length: int, report: Report, progress: Progress | None
    ) -> None:
        self.run = run
        self.payload_length = length
        self.report = report
        self.whole = story.whole
        self.open_ended = story.whole and story.run_close is None
        self.progress = progress

    def digest(self, name: str, expected: str, what: str, length: int | None = None) -> None:
        """The file at `name` is there and has this BLAKE3 digest (and length in bytes)."""
        try:
            got, size = digest_file(self.run / name)
        except StorageError as error:
            self.report.add(f"{what} is missing or cannot be read", name, expected, error.got or error.what)
            return
        if self.report.equal(f"{what} has another digest", name, expected, got) and length is not None:
            self.report.equal(f"{what} has the wrong length", name, length, size)

    def unexpected(self, folder: str, known: set[str], may: Callable[[str], bool] = lambda _: False) -> None:
        """No file lies in `folder` but those known, and those that may while a turn is in progress."""
        path = self.run / folder
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            self.report.add(f"{folder}/ is not a folder", folder, "a folder", "something else")
            return
        if not path.exists() or not self.whole:
            return
        for name in list_files(path):
            if name not in known and not (self.open_ended and may(name)):
                self.report.add(
                    "an unexpected file lies in the run folder", f"{folder}/{name}", "no such file", name
                )

    def addressed(self, folder: str, expected: dict[str, str], spare: int, length: int | None = None) -> None:
        """A folder of files named by their digests; `expected` says what each is.

        While a turn is in progress `spare` more may lie there, if their names are right.
        """
        for count, (digest, what) in enumerate(expected.items(), 1):
            self.digest(f"{folder}/{digest.removeprefix('blake3:')}", digest, what, length)
            if self.progress is not None:
                self.progress(folder, count, len(expected))
        extra: list[str] = []

        def may(name: str) -> bool:
            extra.append(name)
            if len(extra) > spare or not _HEX.fullmatch(name):
                return False
            self.digest(f"{folder}/{name}", f"blake3:{name}", "a file of the turn in progress")
            return True

        self.unexpected(folder, {digest.removeprefix("blake3:") for digest in expected}, may)


def _valid_reveals(turns: tuple[Turn, ...]) -> list[tuple[Turn, int, Record]]:
    return [
        (turn, slot, turn.reveals[slot]["opening"])
        for turn in turns
        if turn.reveal_close is not None
        for slot in turn.reveal_close["revealed"]
        if slot in turn.reveals
    ]


def _label(turn: Turn, slot: int) -> str:
    attempt = f" attempt {turn.open['attempt']}" if turn.open["attempt"] else ""
    return f"slot {slot} in round {turn.open['round']}{attempt}"


def _check_data(files: _Files, manifest: Record) -> None:
    dataset = manifest["dataset"]
    expected = {"tokenizer.json": dataset["tokenizer"]}
    expected |= {
        shard["file"]: shard["digest"] for part in ("train", "validation") for shard in dataset[part]
    }
    for count, (name, digest) in enumerate(expected.items(), 1):
        files.digest(f"data/{name}", digest, f"data file {name}")
        if files.progress is not None:
            files.progress("data", count, len(expected))
    files.unexpected("data", set(expected))


def _check_checkpoints(files: _Files, story: Story, every: int) -> None:
    """Which checkpoints are there. An empty one cannot be right; the rest of their content is level 2's."""

    def names(number: int) -> set[str]:
        return {f"round-{number:05d}.{kind}" for kind in ("safetensors", "outer")}

    kept = {number for number in range(story.rounds + 1) if number % every == 0} | {story.rounds}
    known = {name for number in kept for name in names(number)}
    for name in sorted(known):
        path = files.run / "checkpoints" / name
        try:
            fine = not path.is_symlink() and path.is_file() and path.stat().st_size > 0
        except OSError:
            fine = False
        if not fine:
            files.report.add("a checkpoint is missing or empty", f"checkpoints/{name}", "a file", "none")
    near = names(story.rounds - 1) | names(story.rounds + 1)
    files.unexpected("checkpoints", known, lambda name: name in near)


def _check_evidence(files: _Files, run_id: str, story: Story) -> None:
    known: set[str] = set()
    for turn in story.turns:
        for line in turn.close["rejected"] if turn.close is not None else ():
            if line["evidence"] is not None:
                known |= _check_case(files, run_id, turn, line)
    number, attempt = story.rounds + 1, 0
    if story.turns:
        last = story.turns[-1]
        if last.close is None:
            number, attempt = last.open["round"], last.open["attempt"]
        elif not last.close["accepted"]:
            attempt = last.open["attempt"] + 1
    prefix = f"r{number:05d}-a{attempt}-s"
    files.unexpected("evidence", known, lambda name: name.startswith(prefix))


def _plain_name(file: str) -> None:
    if file in {"", ".", "..", "case.json"} or "/" in file or "\\" in file:
        raise FormatError("a case names a file that is not beside it", got=file)


def _check_case(files: _Files, run_id: str, turn: Turn, line: Record) -> set[str]:
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
        "run": run_id,
        "slot": slot,
    }
    for key, want in expected.items():
        files.report.equal(f"the {key} in {of} is wrong", name, want, case[key])
    if line["reason"] in CASE_FILES and slot in turn.reveals:
        opening = turn.reveals[slot]["opening"]
        want_files = {key: opening[key] for key in CASE_FILES[line["reason"]]}
        files.report.equal(f"the files in {of} are wrong", name, want_files, case["files"])
    for file, digest in case["files"].items():
        # Bytes of another length than the codec's are `unrevealed`; only its decoder can find them malformed.
        length = files.payload_length if line["reason"] in CASE_FILES and file == "payload" else None
        files.digest(f"evidence/{folder}/{file}", digest, f"{file} in {of}", length)
        known.add(f"{folder}/{file}")
    return known


def check_files(
    run: Path, manifest: Record, run_id: str, story: Story, *, report: Report, progress: Progress | None
) -> None:
    """Check data/, payloads/, state/, checkpoints/ and evidence/ against manifest and log.

    When the story breaks off, only what is known to belong there is checked.
    """
    files = _Files(run, story, payload_length(manifest), report, progress)
    _check_data(files, manifest)
    reveals = _valid_reveals(story.turns)
    payloads = {o["payload"]: f"the payload of {_label(turn, slot)}" for turn, slot, o in reveals}
    states = {
        o["start_state"]: f"the start state of {_label(turn, slot)}"
        for turn, slot, o in reveals
        if turn.open["snapshot"] and o["start_state"] != manifest["zero_state"]
    }
    spare = sum(enrolment["role"] == "contributor" for enrolment in story.enrolments)
    files.addressed("payloads", payloads, spare, files.payload_length)
    files.addressed("state", states, spare)
    if story.whole:
        _check_checkpoints(files, story, manifest["config"]["checkpoint"]["every"])
    _check_evidence(files, run_id, story)
