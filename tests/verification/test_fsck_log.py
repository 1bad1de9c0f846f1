"""The log on disk, read by itself: which files belong there, and what a bundle, a tile or a root may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verification.test_fsck_bytes import log_files, note_of, tree_root
from verification.errors import FormatError
from verification.fsck_findings import Report
from verification.fsck_log import _belongs, _split_bundle, _tile_name, list_files, read_log

ENTRIES = [b"%d" % i for i in range(600)]


def written(folder: Path, files: dict[str, bytes]) -> Path:
    """The `log/` of these files."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / "log"


def read(folder: Path, changed: dict[str, bytes | None], size: int = 600) -> tuple[int, bool, list[str]]:
    """Entries read, whether they are all, and each failure's place and words, of a log with changed files."""
    files = {**log_files(ENTRIES[:size]), **{f"log/{name}": data for name, data in changed.items()}}
    report = Report()
    found = read_log(written(folder, {n: d for n, d in files.items() if d is not None}), report)
    assert found.entries == tuple(ENTRIES[: len(found.entries)])
    said = [f"{f.where.removeprefix('log/')}: {f.what}" for f in report.failures]
    return len(found.entries), found.complete, said


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 513, 600])
def test_an_honest_log_of_any_size(tmp_path: Path, size: int) -> None:
    """Tiles that are not full are compared at the end only, when they are as long as they get."""
    assert read(tmp_path, {}, size) == (size, True, [])


def test_the_signed_root_is_that_of_the_entries(tmp_path: Path) -> None:
    assert tree_root(ENTRIES[:3]) != tree_root([b"other", *ENTRIES[1:3]])
    note = note_of([b"other", *ENTRIES[1:3]]).encode()
    said = ["checkpoint: the signed root is not that of the entries"]
    assert read(tmp_path, {"checkpoint": note}, 3) == (3, True, said)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("tile/0/001", bytes(32 * 256), "a hash tile does not fit entry 256"),
        ("tile/0/002.p/88", b"", "a hash tile does not fit entry 512"),
        ("tile/0/000", None, "a hash tile cannot be read"),
        ("tile/1/000.p/2", bytes(64), "a hash tile does not fit subtree 0 of level 1"),
        ("tile/1/000.p/1", bytes(32), "an unexpected or stale file lies in the log"),
        ("tile/0/002.p/87", b"", "an unexpected or stale file lies in the log"),
        ("tile/0/002", b"", "an unexpected or stale file lies in the log"),
        ("tile/0/003", b"", "an unexpected or stale file lies in the log"),
        ("tile/0/x000/000", b"", "an unexpected or stale file lies in the log"),
        ("more", b"", "an unexpected or stale file lies in the log"),
    ],
)
def test_one_wrong_file(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    assert read(tmp_path, {name: data}) == (600, True, [f"{name}: {words}"])


def test_a_bundle_that_cannot_be_read_ends_the_reading(tmp_path: Path) -> None:
    words = "an entry bundle holds another number of entries (entries from 256 on are not checked)"
    bundle = log_files(ENTRIES[256:511])["log/tile/entries/000.p/255"]
    name = "tile/entries/001"
    assert read(tmp_path, {name: bundle}) == (256, False, [f"{name}: {words}"])


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        (None, "checkpoint cannot be read"),
        (b"x", "not a checkpoint"),
        (b"\xff", "the checkpoint is not UTF-8"),
    ],
)
def test_without_a_checkpoint_nothing_is_read(tmp_path: Path, checkpoint: bytes | None, words: str) -> None:
    said = [f"checkpoint: {words} (nothing in the log was checked)"]
    assert read(tmp_path, {"checkpoint": checkpoint}, 3) == (0, False, said)


@pytest.mark.parametrize("tail", [b"\0", b"\1", b"\0\2x", b"\0\1"])
def test_a_bundle_that_is_cut_off(tail: bytes) -> None:
    assert _split_bundle(b"\0\1x", 1, 7) == [b"x"]
    with pytest.raises(FormatError, match="cut off; got entry 8 runs past the end"):
        _split_bundle(b"\0\1x" + tail, 2, 7)


def test_a_bundle_of_more_or_fewer_entries() -> None:
    assert _split_bundle(b"\0\0\0\1x", 2, 0) == [b"", b"x"]
    for width in (1, 3):
        with pytest.raises(FormatError, match=f"another number of entries; expected {width}, got 2"):
            _split_bundle(b"\0\0\0\1x", width, 0)


def test_which_names_belong() -> None:
    """For every size exactly the names that the writer of a log makes, and no other spelling of one."""
    for size in (0, 1, 256, 512, 600):
        made = {name.removeprefix("log/") for name in log_files(ENTRIES[:size])}
        names = {
            _tile_name(kind, index, width)
            for kind in ("entries", "0", "1", "2")
            for index in range(4)
            for width in (*range(4), 87, 88, 89, 255, 256)
        }
        assert {name for name in names | made if _belongs(name, size)} == made
    for name in ("tile/0/2.p/88", "tile/00/002.p/88", "tile/0/x000/002.p/88", "tile/0/002.p/088",
                 "tile/0/002/", "tile/-1/000", "tile/0/002.p/1000", "checkpoint/", ""):  # fmt: skip
        assert not _belongs(name, 600)
    assert _belongs("tile/0/x001/234", 1235 * 256)
    assert not _belongs("tile/0/234", 234 * 256)


def test_folders_are_listed_to_a_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    assert sorted(list_files(tmp_path, 1)) == ["a/b/", "a/c", "link"]
    assert sorted(list_files(tmp_path, 0)) == ["a/", "link"]
    assert list(list_files(tmp_path / "none")) == [""]
