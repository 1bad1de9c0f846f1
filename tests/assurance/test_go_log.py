"""The Go project's transparency log reads ours and we read theirs; each refuses what is not right."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from assurance import go_log
from assurance.bit_flips import smallest_run
from verification.encoding import sha256_digest
from verification.envelope import seal
from verification.errors import BarnraiseError, UsageError
from verification.keys import PrivateKey, public_bytes
from verification.log import Log
from verification.notes import Checkpoint, parse_checkpoint, sign_checkpoint, vkey

ORIGIN = "example.com/ours"
KEY = PrivateKey.from_seed(bytes(range(32)))
VKEY = vkey(ORIGIN, KEY.public)
DIGEST = sha256_digest(b"run").removeprefix("sha256:")

pytestmark = pytest.mark.slow  # building takes ten seconds or more


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go_log.build(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest_run(tmp_path_factory.mktemp("smallest") / "made")


def ours(folder: Path, entries: list[bytes]) -> Path:
    """A log of our own making, in several appends."""
    log = Log.create(folder / "log", ORIGIN, KEY)
    for start in range(0, len(entries), 97):
        log.append(entries[start : start + 97])
    return folder / "log"


def numbered(count: int) -> list[bytes]:
    return [b"entry %d" % index for index in range(count)]


def sign_again(log: Path, size: int, root: bytes) -> None:
    (log / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, size, root), KEY))


def root_of(log: Path) -> bytes:
    return Log.open(log, ORIGIN, None, VKEY).root


def test_a_run_is_accepted(binary: Path, run: Path) -> None:
    log_vkey, witnesses = go_log.signers_of(run)
    verdict = go_log.verify(binary, run / "log", log_vkey, witnesses=witnesses)
    assert verdict["accepted"], verdict
    assert verdict["size"] == verdict["inclusions"] == verdict["consistencies"] >= 14
    assert (verdict["heads"], verdict["files"]) == (3, 3)


def test_no_flip_of_a_run_is_accepted(binary: Path, run: Path) -> None:
    log_vkey, witnesses = go_log.signers_of(run)
    found = go_log.flip(binary, run / "log", log_vkey, witnesses=witnesses, every=83, offset=7)
    assert found["accepted"] == []
    assert found["tried"] == sum(found["by_file"].values()) == sum(found["by_stage"].values()) > 1900
    assert len(found["by_file"]) == 3


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 700])
def test_logs_of_all_shapes_are_accepted(binary: Path, tmp_path: Path, count: int) -> None:
    log = ours(tmp_path, numbered(count))
    verdict = go_log.verify(binary, log, VKEY)
    assert verdict["accepted"], verdict
    assert (verdict["size"], verdict["inclusions"]) == (count, count)
    assert verdict["consistencies"] == (count if count <= 300 else 302)
    assert verdict["root"] == (log / "checkpoint").read_text().split("\n")[2]


def test_no_flip_of_a_log_of_several_tiles_is_accepted(binary: Path, tmp_path: Path) -> None:
    found = go_log.flip(binary, ours(tmp_path, numbered(600)), VKEY, every=2003)
    assert found["accepted"] == []
    assert len(found["by_file"]) >= 6  # of eight files, of which two are short


def test_only_the_unused_bits_of_base64_escape_the_library(binary: Path, tmp_path: Path) -> None:
    """Its decoder does not look at them; the program compares the note with the one it should be."""
    log = ours(tmp_path, numbered(2))
    text = (log / "checkpoint").read_bytes()
    strict = go_log.flip(binary, log, VKEY)
    assert strict["accepted"] == []
    assert strict["tried"] == 8 * sum(path.stat().st_size for path in log.rglob("*") if path.is_file())
    lenient = go_log.flip(binary, log, VKEY, lenient=True)
    last_digit = len(text) - len("=\n") - 1
    assert {(item["file"], item["bit"] // 8) for item in lenient["accepted"]} <= {("checkpoint", last_digit)}
    # Whether one flip gets from one such digit to another depends on the digit; all three are accepted.
    spellings = go_log.other_spellings(text.decode())
    assert len({*spellings, text.decode()}) == 4
    for spelling in spellings:
        (log / "checkpoint").write_text(spelling)
        assert go_log.verify(binary, log, VKEY, lenient=True)["accepted"]
        assert go_log.verify(binary, log, VKEY)["stage"] == "checkpoint"
        with pytest.raises(BarnraiseError):
            parse_checkpoint(spelling, VKEY)


def cosigned(log: Path, time: int, signer: PrivateKey, name: str) -> tuple[str, str]:
    """A witness's verifier key and its line under the log's checkpoint (C2SP tlog-cosignature, Ed25519)."""
    typed = b"\x04" + public_bytes(signer.public)
    key_id = hashlib.sha256(name.encode() + b"\n" + typed).digest()[:4]
    text = (log / "checkpoint").read_text().split("\n\n")[0] + "\n"
    signed = signer.sign(f"cosignature/v1\ntime {time}\n{text}".encode())
    line = base64.b64encode(key_id + time.to_bytes(8, "big") + signed).decode()
    return f"{name}+{key_id.hex()}+{base64.b64encode(typed).decode()}", f"— {name} {line}\n"


def test_cosigned_checkpoints(binary: Path, tmp_path: Path) -> None:
    log = ours(tmp_path, numbered(3))
    path = log / "checkpoint"
    text = path.read_text()
    (one, first), (two, second) = (
        cosigned(log, 1_700_000_000 + i, PrivateKey.from_seed(bytes([i] * 32)), f"witness-{i}")
        for i in (1, 2)
    )
    _, other = cosigned(log, 5, PrivateKey.from_seed(bytes([1] * 32)), "witness-2")
    _, timeless = cosigned(log, 0, PrivateKey.from_seed(bytes([1] * 32)), "witness-1")

    def accepted(lines: str, *, witnesses: Sequence[str] = (one, two)) -> bool:
        path.write_text(text + lines)
        return bool(go_log.verify(binary, log, VKEY, witnesses=witnesses)["accepted"])

    for lines in ("", first, second, first + second):
        assert accepted(lines)
    for lines in (second + first, first + first, other, timeless, first[:-1], first.replace("-1 ", "-2 ")):
        assert not accepted(lines)
    assert not accepted(first, witnesses=[])
    assert not accepted(first, witnesses=[two])
    path.write_text(text.replace("\n\n", f"\n\n{first}"))
    assert not go_log.verify(binary, log, VKEY, witnesses=[one, two])[
        "accepted"
    ]  # the log's line comes first

    path.write_text(text + first + second)
    found = go_log.flip(binary, log, VKEY, witnesses=[one, two])
    assert (found["accepted"], found["by_file"]["checkpoint"]) == ([], 8 * path.stat().st_size)
    with pytest.raises(UsageError, match="witness"):
        go_log.verify(binary, log, VKEY, witnesses=[VKEY])


def test_lies_are_refused_where_they_are(binary: Path, tmp_path: Path) -> None:
    log = ours(tmp_path, numbered(5))
    tile, bundle = log / "tile/0/000.p/5", log / "tile/entries/000.p/5"
    kept = {path: path.read_bytes() for path in (log / "checkpoint", tile, bundle)}
    root = root_of(log)

    def stage() -> Any:
        verdict = go_log.verify(binary, log, VKEY)
        assert not verdict["accepted"]
        for path, data in kept.items():
            path.write_bytes(data)
        return verdict["stage"]

    sign_again(log, 5, bytes(32))
    assert stage() == "tiles"
    sign_again(log, 4, root)
    assert stage() == "bundle"
    sign_again(log, 2**53 - 1, root)
    assert stage() == "bundle"
    (log / "checkpoint").write_bytes(kept[log / "checkpoint"].replace(b"\n5\n", b"\n05\n"))
    assert stage() == "checkpoint"
    (log / "checkpoint").write_bytes(kept[log / "checkpoint"] + kept[log / "checkpoint"].split(b"\n\n")[1])
    assert stage() == "checkpoint"  # the library takes a signature that stands there twice
    (log / "checkpoint").unlink()
    assert stage() == "checkpoint"
    bundle.write_bytes(kept[bundle].replace(b"entry 3", b"entry 4"))
    assert stage() == "inclusion"
    bundle.write_bytes(kept[bundle] + b"\0\0")
    assert stage() == "bundle"
    tile.write_bytes(kept[tile][32:] + kept[tile][:32])
    assert stage() == "tiles"
    tile.unlink()
    assert stage() == "tiles"
    (log / "tile/0/stale").write_bytes(b"")
    assert stage() == "files"
    (log / "tile/0/stale").unlink()
    assert go_log.verify(binary, log, VKEY)["accepted"]
    other = vkey(ORIGIN, PrivateKey.from_seed(bytes(32)).public)
    assert go_log.verify(binary, log, other)["stage"] == "checkpoint"


@pytest.mark.parametrize("lie", ["none", "forked", "future", "unsigned"])
def test_quoted_heads_are_checked(binary: Path, tmp_path: Path, lie: str) -> None:
    """An entry that quotes a checkpoint of the log's key which is not of this log."""
    entries = numbered(4)
    root = root_of(ours(tmp_path / "older", entries))
    size, quoted = (7, root) if lie == "future" else (4, bytes(32) if lie == "forked" else root)
    head = sign_checkpoint(Checkpoint(ORIGIN, size, quoted), KEY)
    if lie == "unsigned":
        head = head.replace("\n4\n", "\n3\n")
    entry = seal("barnraise:draw:v1", {"head": head}, "run", DIGEST, KEY)
    log = ours(tmp_path / "now", [*entries, entry, *numbered(4)])
    verdict = go_log.verify(binary, log, VKEY)
    assert verdict["accepted"] is (lie == "none"), verdict
    assert (verdict["stage"], verdict["heads"]) == (("", 1) if lie == "none" else ("heads", 0))


@pytest.mark.parametrize(("size", "proofs"), [(1, 1), (2, 2), (7, 7), (256, 256), (600, 200)])
def test_their_log_is_accepted_here(binary: Path, tmp_path: Path, size: int, proofs: int) -> None:
    answer = go_log.make(binary, tmp_path / "log", "example.com/theirs", size)
    assert go_log.accept_theirs(tmp_path / "log", "example.com/theirs", answer) == 2 * proofs
    assert go_log.verify(binary, tmp_path / "log", answer["vkey"])["accepted"]


@pytest.mark.parametrize("what", ["root", "inclusion", "consistent", "checkpoint", "entries"])
def test_their_log_with_a_lie_is_refused_here(binary: Path, tmp_path: Path, what: str) -> None:
    answer = go_log.make(binary, tmp_path / "log", "example.com/theirs", 6)
    if what == "checkpoint":
        path = tmp_path / "log" / "checkpoint"
        path.write_text(path.read_text().replace("\n6\n", "\n5\n"))
    elif what == "entries":
        path = tmp_path / "log" / "tile/entries/000.p/6"
        path.write_bytes(path.read_bytes().replace(b"entry 2", b"entry 3"))
    elif what == "root":
        answer["consistent"][3]["root"] = answer["consistent"][2]["root"]
    else:
        answer[what][2]["hashes"] = answer[what][1]["hashes"]
    with pytest.raises(BarnraiseError):
        go_log.accept_theirs(tmp_path / "log", "example.com/theirs", answer)


def test_questions_that_cannot_be_asked(binary: Path, tmp_path: Path) -> None:
    log = ours(tmp_path, numbered(1))
    with pytest.raises(UsageError, match="could not be asked"):
        go_log.verify(binary, log, VKEY.replace("+", "-"))
    with pytest.raises(UsageError, match="could not be asked"):
        go_log.verify(binary, tmp_path / "nowhere", VKEY)
    (log / "checkpoint").unlink()
    with pytest.raises(UsageError, match="does not hold before any flip"):
        go_log.flip(binary, log, VKEY)


def test_a_machine_without_go_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    assert go_log.go_command().is_file()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert go_log.go_command().is_file()  # from the package
    monkeypatch.setattr(metadata, "files", absent)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no Go compiler"):
        go_log.build(tmp_path / "build")
    with pytest.raises(UsageError, match="carries no transparency log"):
        go_log.library_release(tmp_path)


def test_no_source_of_the_library_lies_here() -> None:
    found = sorted(path.name for path in go_log.SOURCES.rglob("*"))
    assert found == ["check.go", "flips.go", "made.go", "main.go", "notes.go"]
