"""A byte-level BPE: training one, loading one, documents to tokens.

Owns the tokenizer's kind and the end-of-document token. Does not own which documents it sees. Only here is
`tokenizers` imported, and only inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.shards import Tokens
from verification.errors import FormatError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_TOKEN = "<|endoftext|>"  # noqa: S105 - a token of text
END_ID = 0
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1 << 10
PART_CHARACTERS = 1 << 18
_CUT = re.compile(r"(?<=\S)(?=[ \t\r\n])")


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with `END_TOKEN` as id 0, then the 256 bytes, then merges seen at least twice.

    The same documents give the same tokenizer. Raises UsageError when the documents do not hold enough
    merges for `vocab_size`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    parts = (text for document in documents for text, _ in _parts(document))
    tokenizer.train_from_iterator(parts, trainer)
    got = tokenizer.get_vocab_size()
    if got != vocab_size:
        raise UsageError(
            "the vocabulary is larger than the training documents support",
            expected=f"vocab_size up to {got}",
            got=vocab_size,
            hint="Lower data.vocab_size or take more text.",
        )
    return _ready(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json.

    Raises UsageError when the file cannot be read, FormatError when it is not such a tokenizer.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", expected="a tokenizer.json", got=error.strerror or str(error)
        ) from error
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not a tokenizer", expected="JSON in UTF-8") from None
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:  # the library raises plain Exception, and its own panics beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{path} is not a tokenizer", got=str(error)[:200]) from None
    end = tokenizer.token_to_id(END_TOKEN)
    if end != END_ID:
        raise FormatError(
            f"{path} has no end-of-document token where it belongs",
            expected=f"{END_TOKEN} as id {END_ID}",
            got="no such token" if end is None else f"id {end}",
        )
    return _ready(tokenizer)


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    """Settings that must not come from a file, or that a file does not keep."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # A document that spells out the end token holds the text of it, not the end of a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    """The content of tokenizer.json."""
    return tokenizer.to_str(pretty=True).encode("utf-8")


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> Iterator[Tokens]:
    """The token stream: each document's ids and then the end token, as int64 [length] pieces.

    On all cores and in bounded memory: a piece is a document, or a part of a long one.
    """
    for batch in _batches(documents):
        encodings = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
        for (_, last), encoding in zip(batch, encodings, strict=True):
            yield np.array([*encoding.ids, END_ID] if last else encoding.ids, dtype=np.int64)


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Lists of (text, whether the document ends with it)."""
    batch: list[tuple[str, bool]] = []
    characters = 0
    for document in documents:
        for text, last in _parts(document):
            batch.append((text, last))
            characters += len(text)
            if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _parts(document: str) -> Iterator[tuple[str, bool]]:
    """A document in parts that give the same tokens; the library takes some hundred bytes a character.

    No merge spans the place before white space, as text is split there before merging.
    """
    start = 0
    while match := _CUT.search(document, start + PART_CHARACTERS):
        yield document[start : match.end()], False
        start = match.end()
    yield document[start:], True
