"""Text to a data folder, all or nothing.

Owns the order of the steps (duplicates out, documents held out, tokenizer trained, windows packed) and the
lineage in the manifest. Does not own reading documents, the
tokenizer's kind or the shard format.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from data_prep.config import DataConfig
from data_prep.corpus import Source, StdlibSource, documents, parse_source
from data_prep.manifest import TOKENIZER_FILE, DatasetManifest, ShardEntry, write_manifest
from data_prep.shards import MAX_CHUNK, Tokens, WindowReader, write_shards
from data_prep.tokenizer import encode_documents, load_tokenizer, tokenizer_bytes, train_tokenizer
from verification.durable import fsync_folder, storage_error, write_atomic
from verification.encoding import blake3_digest, digest_hex, hash_object
from verification.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LENGTH = struct.Struct("<Q")
Progress = Callable[[str], None]


@dataclass
class _Corpus:
    """Distinct documents on disk, in two files, so that memory stays bounded and a source is read once."""

    train: Path
    validation: Path
    train_documents: int = 0
    validation_documents: int = 0
    duplicates: int = 0
    bytes: int = 0
    content: str = ""


def prepare(config: DataConfig, out: Path, progress: Progress | None = None) -> DatasetManifest:
    """Make the data folder `out` and return its manifest, also written there as dataset.json.

    `progress` is told in words what is done. Everything is built in a folder beside `out` and renamed at the
    end: after any error, a full disk among them, `out` is as it was. Raises UsageError when the source cannot
    be read, is empty, or is too small for the context, the vocabulary or a validation set; StorageError.
    """
    source = parse_source(config.source)
    tell = progress or _silent
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"{out} is there already",
            expected="a folder that is new or empty",
            hint="Name another folder, or remove it.",
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise storage_error(out, error) from error
    try:
        # A folder inside, as the temporary one is closed to everyone else.
        build = work / "data"
        build.mkdir()
        manifest = _build(config, source, work, build, tell)
        build.rename(out)
        try:
            fsync_folder(out.parent)
        except OSError:
            out.rename(build)
            raise
    except OSError as error:
        raise storage_error(out, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _silent(_text: str) -> None:
    """Nobody listens."""


def _build(config: DataConfig, source: Source, work: Path, build: Path, tell: Progress) -> DatasetManifest:
    tell(f"reading {config.source}")
    corpus = _collect(config, source, work)
    tell(
        f"{corpus.train_documents} documents to train on, {corpus.validation_documents} held out, "
        f"{corpus.duplicates} duplicates left out, {corpus.bytes / 1e6:.1f} MB"
    )
    tell("loading the tokenizer" if config.tokenizer else f"training a tokenizer of {config.vocab_size}")
    data = tokenizer_bytes(tokenizer := _tokenizer(config, corpus))
    write_atomic(build / TOKENIZER_FILE, data)
    tell("packing windows")
    train = _pack(config, tokenizer, corpus.train, build, "train")
    validation = _pack(config, tokenizer, corpus.validation, build, "validation")
    manifest = DatasetManifest.build(
        context=config.context,
        licence={"name": _licence(config, source)},
        source=_lineage(config, source, corpus),
        tokenizer=blake3_digest(data),
        train=train,
        validation=validation,
        vocab_size=config.vocab_size,
    )
    write_manifest(build, manifest)
    tell(f"{manifest.train_windows} windows to train on, {manifest.validation_windows} to validate on")
    return manifest


def _collect(config: DataConfig, source: Source, work: Path) -> _Corpus:
    """Read the source once: drop exact duplicates, stop at `max_bytes`, hold out whole documents."""
    corpus = _Corpus(work / "train.documents", work / "validation.documents")
    seen: set[bytes] = set()
    content = blake3()
    found = documents(source, text_field=config.text_field, split=config.split)
    with corpus.train.open("wb") as train, corpus.validation.open("wb") as validation:
        for text in found:
            data = text.encode("utf-8")
            digest = blake3(data).digest()
            if digest in seen:
                corpus.duplicates += 1
                continue
            if config.max_bytes and corpus.bytes + len(data) > config.max_bytes:
                break
            seen.add(digest)
            content.update(digest)
            corpus.bytes += len(data)
            held = is_held_out("blake3:" + digest.hex(), config.holdout_key, config.holdout_ppm)
            corpus.validation_documents += held
            corpus.train_documents += not held
            (validation if held else train).write(_LENGTH.pack(len(data)) + data)
    if not seen:
        raise UsageError(
            "the corpus is empty",
            expected="at least one document with text"
            + (f" of at most {config.max_bytes} bytes" if config.max_bytes else ""),
            got="none",
            hint=f"Check data.source ({config.source}) and data.max_bytes.",
        )
    for name, count in (("train on", corpus.train_documents), ("hold out", corpus.validation_documents)):
        if not count:
            raise _too_few_documents(name, len(seen), config)
    corpus.content = "blake3:" + content.hexdigest()
    return corpus


def is_held_out(digest: str, key: str, holdout_ppm: int) -> bool:
    """Whether the document with the BLAKE3 `digest` is for validation only.

    The first 8 bytes of hash_object("barnraise/holdout/v1", {"document", "key"}), big-endian, modulo a
    million, are below `holdout_ppm`: a choice that depends on nothing but the document and the key.
    """
    value = digest_hex(hash_object("barnraise/holdout/v1", {"document": digest, "key": key}))
    return int(value[:16], 16) % 1_000_000 < holdout_ppm


def _too_few_documents(what: str, count: int, config: DataConfig) -> UsageError:
    return UsageError(
        f"no document is left to {what}",
        expected=f"some of each with data.holdout_ppm = {config.holdout_ppm}",
        got=f"{count} distinct documents in all",
        hint="Take more documents (a text file is one), or change data.holdout_ppm or data.holdout_key.",
    )


def _stored(path: Path) -> Iterator[str]:
    """The documents of a file that `_collect` wrote."""
    with path.open("rb") as handle:
        while head := handle.read(_LENGTH.size):
            yield handle.read(_LENGTH.unpack(head)[0]).decode("utf-8")


def _tokenizer(config: DataConfig, corpus: _Corpus) -> Tokenizer:
    if not config.tokenizer:
        return train_tokenizer(_stored(corpus.train), config.vocab_size)
    tokenizer = load_tokenizer(Path(config.tokenizer))
    got = max(tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values()) + 1)
    if got != config.vocab_size:
        raise UsageError(
            f"{config.tokenizer} is of another size than data.vocab_size",
            expected=got,
            got=config.vocab_size,
            hint=f"Set data.vocab_size = {got}.",
        )
    return tokenizer


def _pack(
    config: DataConfig, tokenizer: Tokenizer, stored: Path, build: Path, stem: str
) -> tuple[ShardEntry, ...]:
    """Shards of the documents in `stored`. Raises UsageError when they do not fill one window."""
    tokens = 0

    def counted(pieces: Iterable[Tokens]) -> Iterator[Tokens]:
        nonlocal tokens
        for piece in pieces:
            tokens += piece.size
            yield piece

    stream = counted(encode_documents(tokenizer, _stored(stored)))
    entries = write_shards(stream, build, stem, context=config.context, vocab_size=config.vocab_size)
    if entries:
        return entries
    what = "training documents are" if stem == "train" else "documents held out are"
    raise UsageError(
        f"the {what} shorter than one window",
        expected=f"at least context + 1 = {config.context + 1} tokens",
        got=f"{tokens} tokens",
        hint="Take more text, lower data.context"
        + (" or data.holdout_ppm." if stem == "train" else ", or raise data.holdout_ppm."),
    )


def _licence(config: DataConfig, source: Source) -> str:
    return config.licence or ("PSF-2.0" if isinstance(source, StdlibSource) else "NOASSERTION")


def _lineage(config: DataConfig, source: Source, corpus: _Corpus) -> dict[str, str]:
    """`source` of the manifest: where the documents came from and how they were chosen, as text.

    `content` is BLAKE3 over the BLAKE3 digests of the distinct documents in order.
    """
    rows = (
        {} if isinstance(source, StdlibSource) else {"text_field": config.text_field, "split": config.split}
    )
    return {
        **source.describe(),
        **rows,
        "bytes": str(corpus.bytes),
        "content": corpus.content,
        "duplicates": str(corpus.duplicates),
        "holdout_key": config.holdout_key,
        "holdout_ppm": str(config.holdout_ppm),
        "max_bytes": str(config.max_bytes),
        "train_documents": str(corpus.train_documents),
        "validation_documents": str(corpus.validation_documents),
    }


def unigram_cross_entropy(manifest: DatasetManifest, folder: Path) -> float:
    """Mean cross-entropy in nats of validation tokens under the training tokens' frequencies.

    Add-one smoothing over the vocabulary; the first token of a window is not predicted, as in training. What
    a model must get below to have learned anything from context.
    """
    counts = np.ones(manifest.vocab_size, dtype=np.int64)
    for windows_NW in _windows(manifest, folder, manifest.train):
        counts += np.bincount(windows_NW.reshape(-1), minlength=manifest.vocab_size)
    nats = math.log(int(counts.sum())) - np.log(counts.astype(np.float64))
    total, predicted = 0.0, 0
    for windows_NW in _windows(manifest, folder, manifest.validation):
        total += float(nats[windows_NW[:, 1:]].sum())
        predicted += windows_NW[:, 1:].size
    return total / predicted


def _windows(manifest: DatasetManifest, folder: Path, entries: tuple[ShardEntry, ...]) -> Iterator[Tokens]:
    reader = WindowReader([folder / entry.file for entry in entries], manifest.context, manifest.vocab_size)
    for start in range(0, len(reader), MAX_CHUNK):
        yield reader.read(range(start, min(start + MAX_CHUNK, len(reader))))
