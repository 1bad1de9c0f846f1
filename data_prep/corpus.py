"""Documents from Python's own standard library, local files and the Hugging Face Hub.

Owns what a `data.source` means and reading it, one document at a time. Does not own which documents are
kept, held out or how they become tokens. A document is text; blank ones are skipped.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verification.errors import UsageError

TEXT_SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".hpp"),
    *(".go", ".java", ".js", ".rs", ".sh", ".ts"),
)
ROW_SUFFIXES = (".jsonl", ".parquet")
# Tests, IDLE and lib2to3 are two thirds of the library and mostly data; packages are not the library.
STDLIB_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)
_HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@\s]+))?(?:@(?P<revision>[\w./-]+))?\Z", re.ASCII
)
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class StdlibSource:
    """The .py files of the running Python's standard library."""

    def describe(self) -> dict[str, str]:
        """What of it goes into the manifest."""
        return {"kind": "python-stdlib", "python": platform.python_version()}


@dataclass(frozen=True)
class FileSource:
    """A file, or a folder of files, on this machine."""

    path: Path

    def describe(self) -> dict[str, str]:
        """Its name only: where it lies on this machine is nobody's business."""
        return {"kind": "file", "name": self.path.resolve().name}


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face Hub; `config` and `revision` empty for the default ones."""

    name: str
    config: str = ""
    revision: str = ""

    def describe(self) -> dict[str, str]:
        """What of it goes into the manifest."""
        return {"kind": "hub", "name": self.name, "config": self.config, "revision": self.revision}


Source = StdlibSource | FileSource | HubSource


def parse_source(text: str) -> Source:
    """The source that `data.source` names. Raises UsageError when it names none."""
    kind, _, rest = text.partition(":")
    if text == "python-stdlib":
        return StdlibSource()
    if kind == "file" and rest:
        try:
            return FileSource(Path(rest).expanduser())
        except (RuntimeError, ValueError):  # ~NAME of nobody here, or a name that no system could have
            raise UsageError(
                "data.source names no file", expected="file:PATH", got=repr(text)[:120]
            ) from None
    if kind == "hub" and (match := _HUB_NAME.match(rest)):
        if os.path.exists(match["name"]):  # noqa: PTH110 - false, too, for names too long to be files
            # `datasets` would read the local folder and the manifest would say it came from the Hub.
            raise UsageError(
                f"data.source {text} is hidden by a local folder of that name",
                hint=f"Use file:{match['name']}, or start from another folder.",
            )
        return HubSource(match["name"], match["config"] or "", match["revision"] or "")
    raise UsageError(
        "data.source names no source",
        expected="python-stdlib, file:PATH or hub:[OWNER/]NAME[:CONFIG][@REVISION]",
        got=repr(text)[:120],
    )


def documents(source: Source, *, text_field: str = "text", split: str = "train") -> Iterator[str]:
    """The documents of `source`, in an order that is the same each time; blank ones are skipped.

    `text_field` is used for rows (.jsonl, .parquet, Hub), `split` for the Hub. Raises UsageError, while
    iterating, for what is missing or cannot be read.
    """
    if isinstance(source, StdlibSource):
        found = _stdlib_documents()
    elif isinstance(source, FileSource):
        found = _file_documents(source.path, text_field)
    else:
        found = _hub_documents(source, text_field, split)
    return (text for text in found if text and not text.isspace())


def _stdlib_documents() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _walk(root, (".py",), STDLIB_LEFT_OUT):
        try:
            yield path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a few old modules are in other encodings; distributions leave dangling links


def _walk(root: Path, suffixes: tuple[str, ...], left_out: frozenset[str] = frozenset()) -> list[Path]:
    """Files under `root` by relative path, hidden names and the folders `left_out` skipped."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in suffixes and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _file_documents(path: Path, text_field: str) -> Iterator[str]:
    suffixes = TEXT_SUFFIXES + ROW_SUFFIXES
    if path.is_dir():
        paths = _walk(path, suffixes)
        if not paths:
            raise UsageError(f"{path} holds no file that can be read", expected=" ".join(suffixes))
    elif not path.is_file():
        raise UsageError(f"{path} is not there", expected="a file or a folder", hint="Check data.source.")
    elif path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path} is of an unknown kind", expected=" ".join(suffixes), got=path.suffix or "no suffix"
        )
    else:
        paths = [path]
    for each in paths:
        try:
            if each.suffix.lower() == ".jsonl":
                yield from _jsonl_documents(each, text_field)
            elif each.suffix.lower() == ".parquet":
                yield from _parquet_documents(each, text_field)
            else:
                yield _decode(each.read_bytes(), str(each))
        except OSError as error:
            raise UsageError(f"{each} cannot be read", got=error.strerror or str(error)) from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not text",
            expected="UTF-8",
            got=f"byte 0x{data[error.start]:02x} at offset {error.start}",
        ) from None


def _jsonl_documents(path: Path, text_field: str) -> Iterator[str]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if line.isspace():
                continue
            where = f"{path}, line {number},"
            text = _decode(line, where)
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"{where} is not JSON", expected="one object a line", got=str(error)[:120]
                ) from None
            if not isinstance(row, dict):
                raise UsageError(
                    f"{where} is not an object", expected=f'{{"{text_field}": "…"}}', got=text.strip()[:60]
                )
            yield _text_of(row, text_field, where)


def _text_of(row: Mapping[str, Any], text_field: str, where: str) -> str:
    """The text of a row, empty for null. Raises UsageError when there is none or it is not text."""
    if text_field not in row:
        raise _no_field(where, text_field, list(row))
    text = row[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UsageError(
            f"{where} has no text in {text_field!r}", expected="a string", got=type(text).__name__
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where} holds half a character", expected="no lone surrogates") from None
    return text


def _no_field(where: str, text_field: str, names: list[str]) -> UsageError:
    return UsageError(
        f"{where} has no field {text_field!r}",
        expected=f"the text in {text_field!r}",
        got=f"the fields {', '.join(map(str, names))[:200] or '(none)'}",
        hint="Name the right one with data.text_field.",
    )


def _parquet_documents(path: Path, text_field: str) -> Iterator[str]:
    # Here, as only preparing data needs it.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise _no_field(str(path), text_field, names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text_of(row, text_field, f"{path}, row {number},")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not a Parquet file that can be read", got=str(error).split("\n")[0][:200]
        ) from error


def _hub_documents(source: HubSource, text_field: str, split: str) -> Iterator[str]:
    try:
        import datasets  # noqa: PLC0415
    except ImportError:
        raise UsageError("hub: needs the package `datasets`", hint="pip install 'barnraise[train]'") from None

    try:
        rows = datasets.load_dataset(
            source.name,
            source.config or None,
            split=split,
            revision=source.revision or None,
            streaming=True,
        )
        for number, row in enumerate(rows, 1):
            yield _text_of(row, text_field, f"{source.name}, row {number} of {split},")
    except UsageError:
        raise
    # `datasets` lets through what its HTTP client, file systems and parsers raise: no common base but this.
    except Exception as error:
        raise UsageError(
            f"{source.name} could not be read from the Hub",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            hint="Check the name, the configuration, data.split and the network.",
        ) from error
