"""The data set as the run's manifest names it: files, digests, lineage, root.

Owns `manifest.dataset` of docs/protocol.md, section 5, and checking files against it. Does not own what
is inside a shard. Imports neither torch, datasets nor tokenizers, so an auditor's plain install has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from verification.durable import write_atomic
from verification.encoding import (
    Json,
    canonical_json,
    digest_hex,
    from_json,
    hash_object,
    parse_canonical,
    to_json,
)
from verification.errors import FormatError, StorageError

DATASET_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.json"
MAX_MANIFEST_BYTES = 64 << 20
# A name and nothing else: a manifest from a stranger must not reach outside its folder.
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\Z")
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `digest` is BLAKE3 of the file, `file` its name in the data folder, `windows` its rows."""

    digest: str
    file: str
    windows: int

    def __post_init__(self) -> None:
        _check_blake3("a shard's digest", self.digest)
        if not _FILE_NAME.match(self.file) or self.file in (DATASET_FILE, TOKENIZER_FILE):
            raise FormatError(
                "a shard's file name is not allowed",
                expected="1 to 100 of a-z 0-9 . _ -, not starting with a mark",
                got=ascii(self.file),
            )
        if self.windows < 1:
            raise FormatError(f"shard {self.file} is empty", expected="at least 1 window", got=self.windows)


@dataclass(frozen=True)
class DatasetManifest:
    """`manifest.dataset`. Raises FormatError when made of values that do not belong together.

    `context` is in tokens (a window holds one more), `licence` and `source` are objects of strings,
    `tokenizer` is BLAKE3 of tokenizer.json, `root` is `dataset_root` of the rest.
    """

    context: int
    licence: Mapping[str, str]
    root: str
    source: Mapping[str, str]
    tokenizer: str
    train: tuple[ShardEntry, ...]
    validation: tuple[ShardEntry, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        if self.context < 1:
            raise FormatError(
                "the context of a data set is not positive", expected="at least 1", got=self.context
            )
        if not 2 <= self.vocab_size <= 1 << 32:
            raise FormatError(
                "the vocabulary size is out of range", expected="2 to 2^32", got=self.vocab_size
            )
        _check_blake3("the tokenizer's digest", self.tokenizer)
        if not self.train or not self.validation:
            raise FormatError(
                "a data set lacks shards",
                expected="at least one shard each to train and to validate on",
                got=f"{len(self.train)} and {len(self.validation)}",
            )
        names = [entry.file for entry in (*self.train, *self.validation)]
        if len(set(names)) != len(names):
            raise FormatError("a data set names a file twice", got=sorted(names)[:8])
        expected = dataset_root(to_json(self))
        if self.root != expected:
            raise FormatError("the root of a data set is wrong", expected=expected, got=ascii(self.root))

    @classmethod
    def build(
        cls,
        *,
        context: int,
        licence: Mapping[str, str],
        source: Mapping[str, str],
        tokenizer: str,
        train: tuple[ShardEntry, ...],
        validation: tuple[ShardEntry, ...],
        vocab_size: int,
    ) -> DatasetManifest:
        """A manifest with its root computed."""
        root = dataset_root(
            {
                "context": context,
                "licence": dict(licence),
                "source": dict(source),
                "tokenizer": tokenizer,
                "train": to_json(train),
                "validation": to_json(validation),
                "vocab_size": vocab_size,
            }
        )
        return cls(context, licence, root, source, tokenizer, train, validation, vocab_size)

    @classmethod
    def from_json(cls, value: Json) -> DatasetManifest:
        """The manifest behind JSON values. Raises FormatError for anything but exactly such an object."""
        return from_json(cls, value, "dataset")

    def to_json(self) -> Json:
        """Plain JSON values, as they stand in the run's manifest."""
        return to_json(self)

    @property
    def train_windows(self) -> int:
        """N of the protocol: windows that can be assigned."""
        return sum(entry.windows for entry in self.train)

    @property
    def validation_windows(self) -> int:
        """Windows that are never assigned."""
        return sum(entry.windows for entry in self.validation)

    def check_files(self, folder: Path) -> None:
        """Check that `folder` holds the tokenizer and every shard, byte for byte.

        Raises StorageError naming the first file that is missing or differs.
        """
        files = [(TOKENIZER_FILE, self.tokenizer)]
        files += [(entry.file, entry.digest) for entry in (*self.train, *self.validation)]
        for name, expected in files:
            got = file_digest(folder / name)
            if got != expected:
                raise StorageError(
                    f"{folder / name} is not the file that the manifest names",
                    expected=expected,
                    got=got,
                    hint="Fetch the file again: a shard is never rebuilt, since tokens differ by machine.",
                )


def dataset_root(dataset: Mapping[str, Json]) -> str:
    """hash_object of the dataset object without its `root` (docs/protocol.md, section 5)."""
    return hash_object(
        "barnraise/dataset/v1", {key: value for key, value in dataset.items() if key != "root"}
    )


def file_digest(path: Path) -> str:
    """BLAKE3 of a file of any size, in bounded memory. Raises StorageError when it cannot be read."""
    hasher = blake3()
    try:
        with path.open("rb") as handle:
            while block := handle.read(_READ_BYTES):
                hasher.update(block)
    except OSError as error:
        raise StorageError(
            f"{path} could not be read", expected="a file of the data set", got=error.strerror or str(error)
        ) from error
    return "blake3:" + hasher.hexdigest()


def write_manifest(folder: Path, manifest: DatasetManifest) -> None:
    """Write `dataset.json`, canonical JSON, durably. Raises StorageError."""
    write_atomic(folder / DATASET_FILE, canonical_json(manifest.to_json()))


def read_manifest(folder: Path) -> DatasetManifest:
    """Read `dataset.json` back. Raises StorageError when it is missing, FormatError when it is malformed."""
    path = folder / DATASET_FILE
    try:
        # Asked for first: reading so many bytes would reserve them, however short the file is.
        length = path.stat().st_size
        data = path.read_bytes() if length <= MAX_MANIFEST_BYTES else b""
    except OSError as error:
        raise StorageError(
            f"{path} could not be read",
            expected="a folder made by `barnraise data`",
            got=error.strerror or str(error),
        ) from error
    if length > MAX_MANIFEST_BYTES:
        raise FormatError(f"{path} is too long", expected=f"at most {MAX_MANIFEST_BYTES} bytes", got=length)
    return DatasetManifest.from_json(parse_canonical(data, max_bytes=MAX_MANIFEST_BYTES))


def _check_blake3(what: str, digest: str) -> None:
    digest_hex(digest)
    if not digest.startswith("blake3:"):
        raise FormatError(f"{what} is of the wrong kind", expected="blake3:", got=digest)
