"""The log on disk: layout against its definition, crashes at every step, every changed byte."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from verification import log as log_module
from verification.errors import BarnraiseError, FormatError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.merkle import leaf_hash, verify_consistency, verify_inclusion
from verification.notes import Checkpoint, parse_checkpoint, sign_checkpoint, vkey

KEY = PrivateKey.from_seed(bytes(range(32)))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, KEY.public)
CALLS = ["open", "write", "fsync", "replace", "unlink", "rmdir", "mkdir"]


class Crash(BaseException):
    """Stands for a lost process: no clean-up code for errors catches it."""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether bytes reached the platter, only when they were asked to."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@contextmanager
def failing(name: str, at: int, error: BaseException) -> Iterator[None]:
    """Let the call number `at` of `os.<name>` raise, and with a crash every later one too."""
    real: Callable[..., Any] = getattr(os, name)
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at or (count > at and isinstance(error, Crash)):
            raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, call)
        yield


def calls_in(name: str, action: Callable[[], Any]) -> int:
    """How often `action` calls `os.<name>`."""
    real: Callable[..., Any] = getattr(os, name)
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, lambda *args, **kwargs: (calls.append(name), real(*args, **kwargs))[1])
        action()
    return len(calls)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def entry(number: int) -> bytes:
    return b"" if number == 1 else b"entry %d" % number


def batch(start: int, count: int) -> list[bytes]:
    return [entry(number) for number in range(start, start + count)]


def mth(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaf hashes."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else hashlib.sha256().digest()
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(hashes[:k]) + mth(hashes[k:])).digest()


def expected_files(entries: list[bytes]) -> dict[str, bytes]:
    """C2SP tlog-tiles written down naively: every file of a log but its checkpoint."""
    files: dict[str, bytes] = {}

    def add(folder: str, items: list[bytes]) -> None:
        for number in range(0, len(items), 256):
            part = items[number : number + 256]
            name = f"{number // 256:03d}" + ("" if len(part) == 256 else f".p/{len(part)}")
            files[f"tile/{folder}/{name}"] = b"".join(part)

    add("entries", [len(item).to_bytes(2, "big") + item for item in entries])
    hashes = [hashlib.sha256(b"\x00" + item).digest() for item in entries]
    level = 0
    while hashes:
        add(str(level), hashes)
        hashes = [mth(hashes[i : i + 256]) for i in range(0, len(hashes) - 255, 256)]
        level += 1
    return files


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def empty_folders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]


def check_folder(folder: Path, entries: list[bytes]) -> None:
    """The folder holds exactly the log of these entries."""
    files = files_of(folder)
    head = parse_checkpoint(files.pop("checkpoint").decode(), VKEY)
    assert head == Checkpoint(ORIGIN, len(entries), mth([leaf_hash(item) for item in entries]))
    assert files == expected_files(entries)
    assert empty_folders(folder) == []


def writer(folder: Path) -> Log:
    return Log.open(folder, ORIGIN, KEY, VKEY)


def reader(folder: Path) -> Log:
    return Log.open(folder, ORIGIN, None, VKEY)


def make(folder: Path, size: int) -> Log:
    log = Log.create(folder, ORIGIN, KEY)
    log.append(batch(0, size))
    return log


# Layout and reading


@pytest.mark.parametrize(
    "steps", [[1], [5], [255, 1], [256], [257], [3, 250, 300], [512], [200, 56, 256, 1], []]
)
def test_files_are_those_of_the_layout(tmp_path: Path, steps: list[int]) -> None:
    log = Log.create(tmp_path / "log", ORIGIN, KEY)
    entries: list[bytes] = []
    check_folder(tmp_path / "log", entries)
    for step in steps:
        new = batch(len(entries), step)
        entries += new
        text = log.append(new)
        assert text == log.checkpoint == (tmp_path / "log" / "checkpoint").read_text()
        check_folder(tmp_path / "log", entries)
    for other in (log, writer(tmp_path / "log"), reader(tmp_path / "log")):
        assert list(other.entries()) == entries
        for index in range(0, len(entries), 51):
            assert other.entry(index) == entries[index]
        assert (other.size, other.root) == (other.head.size, other.head.root)
        assert other.checkpoint == log.checkpoint


def test_golden_log(tmp_path: Path) -> None:
    log = Log.create(tmp_path, ORIGIN, KEY)
    text = log.append([b"one", b"two", b"three"])
    root = "Wqx3HImawpLnS/Gv4ubjAvi1WIOy0b8Ze0amvqbavKk="
    assert text.startswith(f"example.org/barn\n3\n{root}\n\n— example.org/barn ")
    assert files_of(tmp_path)["tile/entries/000.p/3"] == b"\0\3one\0\3two\0\5three"
    assert set(files_of(tmp_path)) == {"checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3"}


def test_numbers_are_written_in_groups_of_three() -> None:
    path = log_module._path
    assert path(0, 0, 256) == "tile/0/000"
    assert path(1, 999, 256) == "tile/1/999"
    assert path(2, 1000, 7) == "tile/2/x001/000.p/7"
    assert path(-1, 1_234_067, 256) == "tile/entries/x001/x234/067"


def test_proofs_hold(tmp_path: Path) -> None:
    log = make(tmp_path, 300)
    for size in (1, 2, 255, 256, 257, 300):
        root = mth([leaf_hash(item) for item in batch(0, size)])
        for index in {0, size // 2, size - 1}:
            verify_inclusion(index, size, leaf_hash(entry(index)), log.inclusion_proof(index, size), root)
        verify_consistency(size, 300, log.consistency_proof(size), root, log.root)
        verify_consistency(1, size, log.consistency_proof(1, size), leaf_hash(entry(0)), root)
    verify_inclusion(7, 300, leaf_hash(entry(7)), log.inclusion_proof(7), log.root)


def test_impossible_reads_are_refused(tmp_path: Path) -> None:
    log = make(tmp_path, 3)
    for request in (lambda: log.entry(3), lambda: log.entry(-1), lambda: log.inclusion_proof(3)):
        with pytest.raises(FormatError):
            request()
    for proof in (lambda: log.inclusion_proof(0, 4), lambda: log.consistency_proof(4)):
        with pytest.raises(FormatError):
            proof()


def test_appending_costs_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(tmp_path, 3 * 256 + 5)
    reads: list[Path] = []
    real_read = log_module._read
    monkeypatch.setattr(
        log_module, "_read", lambda path, most: (reads.append(path), real_read(path, most))[1]
    )
    written: list[str] = []
    real_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        written.append(str(Path(target).relative_to(tmp_path)))
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    log.append([b"x"])
    assert written == ["tile/entries/003.p/6", "tile/0/003.p/6", "checkpoint"]
    assert reads == [tmp_path / "checkpoint"]


def test_an_entry_has_at_most_65535_bytes(tmp_path: Path) -> None:
    log = Log.create(tmp_path, ORIGIN, KEY)
    log.append([b"a" * 65_535])
    with pytest.raises(FormatError, match="too long"):
        log.append([b"fine", b"a" * 65_536])
    check_folder(tmp_path, [b"a" * 65_535])
    log.append([b"b"])
    assert list(writer(tmp_path).entries()) == [b"a" * 65_535, b"b"]


def test_appending_nothing_changes_nothing(tmp_path: Path) -> None:
    log = make(tmp_path, 3)
    before = files_of(tmp_path)
    assert log.append([]) == log.checkpoint
    assert files_of(tmp_path) == before


# Who may open what


def test_only_the_key_of_the_log_appends(tmp_path: Path) -> None:
    make(tmp_path, 2)
    with pytest.raises(UsageError, match="reading only"):
        reader(tmp_path).append([b"x"])
    other = PrivateKey.from_seed(bytes(32))
    with pytest.raises(UsageError, match="not this log's"):
        Log.open(tmp_path, ORIGIN, other, VKEY)
    with pytest.raises(BarnraiseError):
        Log.open(tmp_path, ORIGIN, other, vkey(ORIGIN, other.public))
    with pytest.raises(UsageError, match="origin"):
        Log.open(tmp_path, "shed", None, VKEY)
    check_folder(tmp_path, batch(0, 2))


def test_creating_needs_an_empty_folder(tmp_path: Path) -> None:
    make(tmp_path / "log", 1)
    with pytest.raises(UsageError, match="not empty"):
        Log.create(tmp_path / "log", ORIGIN, KEY)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Log.create(tmp_path / "file", ORIGIN, KEY)
    with pytest.raises(StorageError):
        reader(tmp_path / "nowhere")


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first = make(tmp_path, 2)
    second = writer(tmp_path)
    second.append([b"second"])
    with pytest.raises(StorageError, match="other writer"):
        first.append([b"first"])
    check_folder(tmp_path, [*batch(0, 2), b"second"])


def test_a_reader_opens_while_the_log_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make(tmp_path, 250)
    stale = [log.checkpoint]
    log.append(batch(250, 20))
    real = log_module._read_checkpoint
    monkeypatch.setattr(log_module, "_read_checkpoint", lambda f: stale.pop() if stale else real(f))
    assert list(reader(tmp_path).entries()) == batch(0, 270)
    assert stale == []


def test_a_reader_keeps_its_size_while_the_log_grows(tmp_path: Path) -> None:
    log = make(tmp_path, 250)
    old = reader(tmp_path)
    log.append(batch(250, 20))
    assert list(old.entries()) == batch(0, 250)
    assert old.size == 250
    check_folder(tmp_path, batch(0, 270))


# Damage


def damaged(folder: Path) -> None:
    for opening in (reader, writer):
        with pytest.raises(BarnraiseError):
            opening(folder)


def test_every_flipped_bit_of_a_small_log_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 2)
    files = files_of(tmp_path)
    assert len(files) == 3
    for name, data in files.items():
        for place in range(len(data)):
            # of the checkpoint one bit a byte; the tests of notes flip them all
            for bit in [place % 8] if name == "checkpoint" else range(8):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                (tmp_path / name).write_bytes(changed)
                with pytest.raises(BarnraiseError):
                    reader(tmp_path)
        (tmp_path / name).write_bytes(data)
    check_folder(tmp_path, list(reader(tmp_path).entries()))


def test_damage_in_a_log_of_several_tiles_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 258)
    files = files_of(tmp_path)
    assert len(files) == 6
    for name, data in files.items():
        for position in {*range(0, len(data), 61), len(data) - 1}:
            changed = bytearray(data)
            changed[position] ^= 1
            (tmp_path / name).write_bytes(changed)
            damaged(tmp_path)
        for other in (b"", data[:-1], data + b"\0", data + data):
            (tmp_path / name).write_bytes(other)
            damaged(tmp_path)
        (tmp_path / name).unlink()
        damaged(tmp_path)
        (tmp_path / name).write_bytes(data)
    check_folder(tmp_path, batch(0, 258))
    assert list(reader(tmp_path).entries()) == batch(0, 258)


def test_damage_after_opening_is_noticed(tmp_path: Path) -> None:
    log = make(tmp_path, 300)
    bundle = tmp_path / "tile" / "entries" / "000"
    bundle.write_bytes(bundle.read_bytes().replace(b"entry 9", b"entry X"))
    for index in (9, 90, 99):
        with pytest.raises(StorageError, match="changed"):
            log.entry(index)
    with pytest.raises(StorageError, match="changed"):
        list(log.entries())
    bundle.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(StorageError, match="changed"):
        log.entry(0)
    assert log.entry(256) == entry(256)


def test_a_signed_checkpoint_of_other_entries_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 3)
    for size in (2, 3, 4, 2**53 - 1):
        text = sign_checkpoint(Checkpoint(ORIGIN, size, bytes(32)), KEY)
        (tmp_path / "checkpoint").write_text(text)
        damaged(tmp_path)


def test_leftovers_are_removed_by_a_writer_only(tmp_path: Path) -> None:
    make(tmp_path, 258)
    leftovers = ["tile/0/000.p/7", "tile/0/001.p/3", "tile/0/002", "tile/entries/001", "tile/1/000.p/2"]
    leftovers += ["tile/entries/x001/004.p/1", "tile/2/000", ".checkpoint.tmp", "tile/0/.001.tmp"]
    leftovers += ["tile/0/001.p/.3.tmp", "tile/entries/000.p/255"]
    for name in leftovers:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"leftover")
    (tmp_path / "tile" / "7" / "x001").mkdir(parents=True)
    before = files_of(tmp_path)
    assert reader(tmp_path).size == 258
    assert files_of(tmp_path) == before
    assert writer(tmp_path).size == 258
    check_folder(tmp_path, batch(0, 258))


@pytest.mark.parametrize(
    "name", ["notes.txt", "tile/0/1", "tile/0/0000", "tile/x/000", "tile/0/000.p/0", "x/y"]
)
def test_a_file_that_does_not_belong_is_left_alone(tmp_path: Path, name: str) -> None:
    make(tmp_path, 2)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(StorageError, match="does not belong"):
        writer(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


# Crashes


def survive(folder: Path, name: str, at: int, error: BaseException, old: int, count: int) -> bool:
    """One append with a failure, then reopening. Returns whether the failure happened."""
    log = writer(folder)
    caught: BaseException | None = None
    try:
        with failing(name, at, error):
            text = log.append(batch(old, count))
    except (StorageError, Crash) as raised:
        caught = raised
    if caught is None:
        assert parse_checkpoint(text, VKEY).size == old + count
        return False
    assert isinstance(caught, Crash) or "disk is full" in str(caught)
    assert isinstance(caught, Crash) == isinstance(error, Crash)
    with pytest.raises(StorageError):
        log.append([b"not before it is opened again"])
    assert list(log.entries()) in (batch(0, old), batch(0, old + count))
    size = reader(folder).size
    assert size in (old, old + count)
    again = writer(folder)
    check_folder(folder, batch(0, size))
    again.append(batch(size, old + count + 1 - size))
    check_folder(folder, batch(0, old + count + 1))
    return True


@pytest.mark.parametrize("crash", [False, True], ids=["full-disk", "crash"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("old", "count"), [(0, 1), (3, 2), (250, 10), (255, 258), (256, 1)])
def test_a_failure_at_every_step_leaves_the_old_log_or_the_new(
    tmp_path: Path, old: int, count: int, name: str, crash: bool
) -> None:
    make(tmp_path / "base", old)
    shutil.copytree(tmp_path / "base", tmp_path / "0")
    log = writer(tmp_path / "0")
    steps = calls_in(name, lambda: log.append(batch(old, count)))
    assert steps > 0 or name in ("unlink", "rmdir", "mkdir")
    for at in range(1, steps + 2):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "base", folder)
        assert survive(folder, name, at, Crash() if crash else full_disk(), old, count) == (at <= steps)


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("crash", [False, True])
def test_a_failure_while_creating_can_be_repeated(tmp_path: Path, name: str, crash: bool) -> None:
    for at in range(1, 10):
        folder = tmp_path / str(at)
        try:
            with failing(name, at, Crash() if crash else full_disk()):
                Log.create(folder, ORIGIN, KEY)
        except (StorageError, Crash):
            log = writer(folder) if (folder / "checkpoint").exists() else Log.create(folder, ORIGIN, KEY)
            log.append([b"x"])
            check_folder(folder, [b"x"])
        else:
            break
    assert 1 < at < 9


def test_a_failure_while_cleaning_up_can_be_repeated(tmp_path: Path) -> None:
    for name in ("unlink", "rmdir", "fsync"):
        for at in range(1, 10):
            folder = tmp_path / f"{name}{at}"
            make(folder, 2)
            for leftover in ("tile/0/000.p/1", "tile/0/000", "tile/1/000.p/1"):
                (folder / leftover).parent.mkdir(parents=True, exist_ok=True)
                (folder / leftover).touch()
            try:
                with failing(name, at, full_disk()):
                    writer(folder)
            except StorageError:
                writer(folder)
                check_folder(folder, batch(0, 2))
            else:
                break
        assert 1 < at < 9


def test_the_checkpoint_is_written_last_and_stale_tiles_go_after_it(tmp_path: Path) -> None:
    log = make(tmp_path, 250)
    steps: list[str] = []

    def recording(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            target = args[-1] if name == "replace" else args[0]
            if name == "fsync":
                target = Path(f"/proc/self/fd/{target}").readlink()
            steps.append(f"{name} {Path(target).relative_to(tmp_path)}")
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, recording(name))
        log.append(batch(250, 7))
    commit = steps.index("replace checkpoint")
    assert steps[commit - 1 : commit + 2] == ["fsync .checkpoint.tmp", "replace checkpoint", "fsync ."]
    tiles = {name for name in expected_files(batch(0, 257)) if name not in expected_files(batch(0, 250))}
    assert {step.split()[1] for step in steps[:commit] if step.startswith("replace")} == tiles
    for place, step in enumerate(steps[:commit]):
        if step.startswith("replace"):
            target = Path(step.split()[1])
            assert steps[place - 1] == f"fsync {target.with_name(f'.{target.name}.tmp')}"
            assert steps[place + 1] == f"fsync {target.parent}"
    removed = [place for place, step in enumerate(steps) if step.startswith("unlink")]
    assert {steps[place] for place in removed} == {"unlink tile/0/000.p/250", "unlink tile/entries/000.p/250"}
    assert min(removed) > commit + 1


# Any history, against a list


class LogMachine(RuleBasedStateMachine):
    """A log and the list of entries that it should hold."""

    @initialize()
    def start(self) -> None:
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "log"
        self.log = Log.create(self.folder, ORIGIN, KEY)
        self.model: list[bytes] = []
        self.heads = [self.log.head]

    def settle(self, entries: list[bytes]) -> None:
        self.model = entries
        self.heads.append(self.log.head)

    @rule(entries=st.lists(st.binary(max_size=20), max_size=5))
    def append(self, entries: list[bytes]) -> None:
        self.log.append(entries)
        self.settle(self.model + entries)

    @precondition(lambda self: len(self.model) < 800)
    @rule(extra=st.integers(-2, 2))
    def fill_the_tile(self, extra: int) -> None:
        entries = batch(len(self.model), max(1, 256 - len(self.model) % 256 + extra))
        self.log.append(entries)
        self.settle(self.model + entries)

    @rule(
        entries=st.lists(st.binary(max_size=5), min_size=1, max_size=4),
        name=st.sampled_from(CALLS),
        at=st.integers(1, 15),
        crash=st.booleans(),
    )
    def fail_and_reopen(self, entries: list[bytes], name: str, at: int, crash: bool) -> None:
        try:
            with failing(name, at, Crash() if crash else full_disk()):
                self.log.append(entries)
        except (StorageError, Crash):
            self.log = writer(self.folder)
        assert self.log.size in (len(self.model), len(self.model) + len(entries))
        self.settle((self.model + entries)[: self.log.size])

    @rule()
    def reopen(self) -> None:
        self.log = writer(self.folder)

    @rule(data=st.data())
    def prove(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.heads))
        verify_consistency(
            old.size, self.log.size, self.log.consistency_proof(old.size), old.root, self.log.root
        )
        if self.model:
            index = data.draw(st.integers(0, len(self.model) - 1))
            leaf = leaf_hash(self.model[index])
            verify_inclusion(index, self.log.size, leaf, self.log.inclusion_proof(index), self.log.root)

    @invariant()
    def agrees(self) -> None:
        check_folder(self.folder, self.model)
        assert list(self.log.entries()) == self.model
        assert reader(self.folder).checkpoint == self.log.checkpoint

    def teardown(self) -> None:
        self.temporary.cleanup()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@pytest.mark.slow
def test_a_log_with_tiles_of_the_third_level(tmp_path: Path) -> None:
    log = make(tmp_path, 65_536 + 255)
    log.append(batch(log.size, 2))
    check_folder(tmp_path, batch(0, 65_793))
    assert "tile/2/000.p/1" in files_of(tmp_path)
    assert writer(tmp_path).root == log.root
