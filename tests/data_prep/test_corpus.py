"""data_prep/corpus.py: what a source names, reading it, and what is said when it cannot be read."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus import (
    STDLIB_LEFT_OUT,
    FileSource,
    HubSource,
    StdlibSource,
    _walk,
    documents,
    parse_source,
)
from verification.errors import UsageError


def read(path: Path, **options: str) -> list[str]:
    return list(documents(FileSource(path), **options))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("python-stdlib", StdlibSource()),
        ("file:a/b.txt", FileSource(Path("a/b.txt"))),
        ("file:/a b:c", FileSource(Path("/a b:c"))),
        ("hub:wikitext", HubSource("wikitext")),
        ("hub:owner/name", HubSource("owner/name")),
        (
            "hub:owner/na.me-2:20231101.en@refs/convert",
            HubSource("owner/na.me-2", "20231101.en", "refs/convert"),
        ),
        ("hub:owner/name@abc123", HubSource("owner/name", "", "abc123")),
    ],
)
def test_parse_source(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    ["", "stdlib", "python-stdlib:x", "file:", "hub:", "hub:/etc", "hub:a/b/c", "hub:a b", "hub:a:", "s3:a"],
)
def test_parse_source_refuses(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"names no source; expected python-stdlib, file:PATH or hub:"
    ) as caught:
        parse_source(text)
    assert repr(text) in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_parse_source_never_raises_outside_the_family(text: str) -> None:
    try:
        source = parse_source("hub:" + text)
    except UsageError:
        return
    assert isinstance(source, HubSource)
    assert text.startswith(source.name)


def test_a_local_folder_does_not_pass_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"hidden by a local folder of that name\. Use file:owner/name"):
        parse_source("hub:owner/name")


def test_describe_names_no_path_of_this_machine(tmp_path: Path) -> None:
    assert FileSource(tmp_path / "books").describe() == {"kind": "file", "name": "books"}
    assert HubSource("a/b", "c", "d").describe() == {
        "kind": "hub",
        "name": "a/b",
        "config": "c",
        "revision": "d",
    }
    assert StdlibSource().describe()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_stdlib_is_sorted_and_same_each_time() -> None:
    first = list(itertools.islice(documents(StdlibSource()), 40))
    assert first == list(itertools.islice(documents(StdlibSource()), 40))
    assert len(first) == 40
    assert any("_Feature" in text for text in first[:3])  # __future__.py comes first
    assert all(text.strip() for text in first)


def test_walk_leaves_out_folders_and_hidden_names_and_sorts(tmp_path: Path) -> None:
    names = [
        "b/z.py",
        "a.py",
        "b/a.py",
        "a/x.py",
        "test/t.py",
        "b/test/t.py",
        "site-packages/s.py",
        ".git/c.py",
    ]
    for name in [*names, "b/.h.py", "c.txt", "idlelib/i.py", "lib2to3/l.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in _walk(tmp_path, (".py",), STDLIB_LEFT_OUT)]
    assert found == ["a.py", "a/x.py", "b/a.py", "b/z.py"]


def test_stdlib_skips_what_it_cannot_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "b.py").write_bytes(b"x = 1\n")
    (tmp_path / "c.py").write_bytes(b"")
    (tmp_path / "d.py").symlink_to(tmp_path / "gone.py")
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    assert list(documents(StdlibSource())) == ["x = 1\n"]


def test_text_file_is_one_document_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_bytes("é\r\nx\0\n".encode())
    assert read(tmp_path / "a.TXT") == ["é\r\nx\0\n"]


def test_folder_mixes_kinds_in_path_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("third")
    (tmp_path / "a.jsonl").write_text('{"text":"first"}\n\n{"text":"second","n":1}')
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "blank.txt").write_text(" \n")
    pq.write_table(pa.table({"text": ["fourth", None, "fifth"]}), tmp_path / "t.parquet")
    assert read(tmp_path) == ["first", "second", "third", "fourth", "fifth"]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_rows_round_trip(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    pq.write_table(
        pa.table({"body": pa.array(texts, pa.string()), "n": range(len(texts))}), folder / "b.parquet"
    )
    kept = [t for t in texts if t and not t.isspace()]
    assert read(folder / "a.jsonl", text_field="body") == kept
    assert read(folder / "b.parquet", text_field="body") == kept


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"text":"a"}\n{"text":', r"a\.jsonl, line 2, is not JSON; expected one object a line, got "),
        (b'\n\n["a"]\n', r"line 3, is not an object; expected \{\"text\": \"…\"\}, got \[\"a\"\]\."),
        (
            b'{"body":"a"}\n',
            r"line 1, has no field 'text'; .* got the fields body\. Name the right one with data.text_",
        ),
        (b"{}\n", r"line 1, has no field 'text'; .* got the fields \(none\)"),
        (b'{"text":7}\n', r"line 1, has no text in 'text'; expected a string, got int\."),
        (b'{"text":"\\ud800"}\n', r"line 1, holds half a character"),
        (
            b'{"text":"a"}\n{"text":"\xff"}\n',
            r"line 2, is not text; expected UTF-8, got byte 0xff at offset 9\.",
        ),
        (b"[" * 200_000, r"line 1, is not JSON"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path: Path, lines: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "a.jsonl")


def corrupt_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1 not at all PAR1")


def no_column(path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)


def number_column(path: Path) -> None:
    pq.write_table(pa.table({"text": [1]}), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (corrupt_parquet, r"t\.parquet (is not a Parquet file|cannot be read)"),
        (no_column, r"has no field 'text'; expected the text in 'text', got the fields body, n"),
        (number_column, r"row 1, has no text in 'text'; expected a string, got int"),
    ],
)
def test_bad_parquet(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "t.parquet")


def test_missing_unknown_empty_and_undecodable(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"gone is not there; expected a file or a folder\. Check data.source"
    ):
        read(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"holds no file that can be read; expected .*\.txt .*\.parquet"):
        read(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"a")
    with pytest.raises(UsageError, match=r"a\.bin is of an unknown kind; expected \.txt .*, got \.bin\."):
        read(tmp_path / "a.bin")
    (tmp_path / "plain").write_bytes(b"a")
    with pytest.raises(UsageError, match=r"got no suffix"):
        read(tmp_path / "plain")
    (tmp_path / "a.txt").write_bytes(b"ab\xe9")
    with pytest.raises(UsageError, match=r"a\.txt is not text; expected UTF-8, got byte 0xe9 at offset 2\."):
        read(tmp_path / "a.txt")


def test_jsonl_is_read_lazily(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"a"}\nbroken')
    found = documents(FileSource(tmp_path / "a.jsonl"))
    assert next(found) == "a"
    with pytest.raises(UsageError, match="line 2"):
        next(found)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as the Hub lays it out, which `datasets` reads from disk by the same call."""
    folder = tmp_path_factory.mktemp("hub")
    for split, texts in (("train", ["one", " ", None, "two"]), ("test", ["three"])):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({"text": t, "id": 1}) + "\n" for t in texts)
        )
    return folder


def test_hub_streams_a_split(hub_folder: Path) -> None:
    source = HubSource(str(hub_folder))
    assert list(documents(source)) == ["one", "two"]
    assert list(documents(source, split="test")) == ["three"]
    assert next(documents(source)) == "one"


def test_hub_errors(hub_folder: Path) -> None:
    source = HubSource(str(hub_folder))
    with pytest.raises(UsageError, match=r"row 1 of train, has no field 'body'; .* got the fields text, id"):
        next(documents(source, text_field="body"))
    with pytest.raises(UsageError, match=r"could not be read from the Hub; got .*[Ss]plit.*Check the name"):
        next(documents(source, split="nope"))
    with pytest.raises(UsageError, match=r"could not be read from the Hub"):
        next(documents(HubSource(str(hub_folder), "no-such-config")))
    with pytest.raises(UsageError, match=r"could not be read from the Hub"):
        next(documents(HubSource(str(hub_folder / "gone"))))


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs the package `datasets`\. pip install 'barnraise\[train\]'"):
        next(documents(HubSource("a/b")))
