"""data_prep/prepare.py: the whole way from text to a folder, and that errors leave nothing behind."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from data_prep.config import DataConfig
from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest, read_manifest
from data_prep.prepare import is_held_out, prepare, unigram_cross_entropy
from data_prep.tokenizer import END_ID, load_tokenizer
from verification.errors import FormatError, StorageError, UsageError

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run"),
    *("over", "hills", "in", "rain", "while", "birds", "sang", "of", "spring"),
)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i}: " + " ".join(rng.choices(WORDS, k=30)) for i in range(count)]


def write_jsonl(folder: Path, texts: list[str]) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"file:{path}"


def config(source: str, **changes: Any) -> DataConfig:
    values = {"source": source, "vocab_size": 300, "context": 16, "holdout_ppm": 200_000}
    return DataConfig(**(values | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetManifest, Path, list[str]]:
    folder = tmp_path_factory.mktemp("made")
    texts = sentences(200)
    source = write_jsonl(folder, [*texts, *texts[:17], texts[0]])
    said: list[str] = []
    manifest = prepare(config(source), folder / "sub" / "data", said.append)
    return manifest, folder / "sub" / "data", said


def held(text: str, key: str = "barnraise", ppm: int = 200_000) -> bool:
    return is_held_out("blake3:" + blake3(text.encode()).hexdigest(), key, ppm)


def streams(manifest: DatasetManifest, folder: Path) -> dict[str, list[int]]:
    dataset = Dataset(folder, manifest)
    return {
        "train": dataset.train(range(dataset.train_windows)).reshape(-1).tolist(),
        "validation": dataset.validation(10**9).reshape(-1).tolist(),
    }


def test_the_folder_is_what_the_manifest_says(made: tuple[DatasetManifest, Path, list[str]]) -> None:
    manifest, folder, _ = made
    assert read_manifest(folder) == manifest
    manifest.check_files(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("dataset.json", "tokenizer.json", "train-00000.arrow", "validation-00000.arrow"),
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["data"]
    assert folder.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_lineage(made: tuple[DatasetManifest, Path, list[str]]) -> None:
    manifest, _, _ = made
    texts = sentences(200)
    content = blake3(b"".join(blake3(t.encode()).digest() for t in texts)).hexdigest()
    assert manifest.source == {
        "kind": "file",
        "name": "corpus.jsonl",
        "text_field": "text",
        "split": "train",
        "bytes": str(sum(len(t.encode()) for t in texts)),
        "content": "blake3:" + content,
        "duplicates": "18",
        "holdout_key": "barnraise",
        "holdout_ppm": "200000",
        "max_bytes": "0",
        "train_documents": str(sum(not held(t) for t in texts)),
        "validation_documents": str(sum(held(t) for t in texts)),
    }
    assert manifest.licence == {"name": "NOASSERTION"}
    assert (manifest.context, manifest.vocab_size) == (16, 300)


def test_documents_are_whole_distinct_and_on_their_own_side(
    made: tuple[DatasetManifest, Path, list[str]],
) -> None:
    manifest, folder, _ = made
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    texts = sentences(200)
    for name, tokens in streams(manifest, folder).items():
        expected = [t for t in texts if held(t) == (name == "validation")]
        joined = "<|endoftext|>".join(expected) + "<|endoftext|>"
        got = tokenizer.decode(tokens, skip_special_tokens=False)
        assert joined.startswith(got)
        assert tokens.count(END_ID) >= len(expected) - 1
        assert len(joined) - len(got) < 17 * 40  # only the tail of less than one window is left out


def test_the_tokenizer_sees_training_documents_only(tmp_path: Path) -> None:
    texts = sentences(60)
    marked = [t + " zqxj" * 20 if held(t + " zqxj" * 20) else t for t in texts]
    assert any("zqxj" in t for t in marked)
    prepare(config(write_jsonl(tmp_path, marked)), tmp_path / "out")
    vocabulary = load_tokenizer(tmp_path / "out" / "tokenizer.json").get_vocab()
    assert not any("zq" in token or "xj" in token for token in vocabulary)


def test_progress_is_told(made: tuple[DatasetManifest, Path, list[str]]) -> None:
    manifest, _, said = made
    assert said[0].startswith("reading file:")
    assert "18 duplicates left out" in said[1]
    assert said[2:4] == ["training a tokenizer of 300", "packing windows"]
    assert (
        said[4]
        == f"{manifest.train_windows} windows to train on, {manifest.validation_windows} to validate on"
    )


def test_same_input_same_root(made: tuple[DatasetManifest, Path, list[str]], tmp_path: Path) -> None:
    again = prepare(config(write_jsonl(tmp_path, [*sentences(200), *sentences(18)])), tmp_path / "out")
    assert again == made[0]


def test_holdout_choice_depends_on_key_and_document_only() -> None:
    texts = sentences(2000)
    chosen = {t for t in texts if held(t)}
    assert 320 < len(chosen) < 480
    assert {t for t in texts if held(t, ppm=300_000)} > chosen
    assert {t for t in texts if held(t, key="other")} != chosen
    assert is_held_out("blake3:" + "00" * 32, "barnraise", 999_999)
    assert [i for i in range(40) if is_held_out(f"blake3:{i:064x}", "k", 100_000)] == [9, 12, 18]


def test_max_bytes_stops_before_a_document(tmp_path: Path) -> None:
    texts = sentences(300)
    limit = sum(len(t) for t in texts[:100])
    source = write_jsonl(tmp_path, [texts[0], *texts])
    exact = prepare(config(source, max_bytes=limit), tmp_path / "a")
    less = prepare(config(source, max_bytes=limit - 1), tmp_path / "b")
    assert exact.source["bytes"] == str(limit)
    assert less.source["bytes"] == str(sum(len(t) for t in texts[:99]))


def test_standard_library(tmp_path: Path) -> None:
    small = DataConfig(vocab_size=400, context=32, max_bytes=400_000, holdout_ppm=200_000)
    manifest = prepare(small, tmp_path / "out")
    assert manifest.source["kind"] == "python-stdlib"
    assert manifest.licence == {"name": "PSF-2.0"}
    assert 200_000 < int(manifest.source["bytes"]) <= 400_000
    bound = unigram_cross_entropy(manifest, tmp_path / "out")
    assert 3 < bound < math.log(400)


def test_a_tokenizer_of_an_earlier_set(made: tuple[DatasetManifest, Path, list[str]], tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, sentences(100, seed=5))
    path = str(made[1] / "tokenizer.json")
    manifest = prepare(config(source, tokenizer=path, licence="CC0-1.0"), tmp_path / "out")
    assert manifest.tokenizer == made[0].tokenizer
    assert manifest.licence == {"name": "CC0-1.0"}
    message = r"tokenizer\.json is of another size than data\.vocab_size; expected 300, got 301\. Set data"
    with pytest.raises(UsageError, match=message):
        prepare(config(source, tokenizer=path, vocab_size=301), tmp_path / "other")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FormatError, match="is not a tokenizer"):
        prepare(config(source, tokenizer=str(tmp_path / "bad.json")), tmp_path / "other")


def test_unigram_cross_entropy_by_hand(made: tuple[DatasetManifest, Path, list[str]]) -> None:
    manifest, folder, _ = made
    tokens = streams(manifest, folder)
    counts = Counter(tokens["train"])
    total = len(tokens["train"]) + 300
    predicted = [t for i, t in enumerate(tokens["validation"]) if i % 17]
    expected = -math.fsum(math.log((counts[t] + 1) / total) for t in predicted) / len(predicted)
    assert unigram_cross_entropy(manifest, folder) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (
            [],
            {},
            r"corpus is empty; expected at least one document with text, got none\. Check data.source",
        ),
        ([" ", ""], {}, "corpus is empty"),
        (sentences(9), {"max_bytes": 5}, "corpus is empty; expected .* of at most 5 bytes, got none"),
        (
            sentences(1),
            {},
            (
                r"no document is left to hold out; expected some of each with data\.holdout_ppm = 200000, "
                r"got 1 distinct documents in all\. Take more documents"
            ),
        ),
        (sentences(3), {"holdout_ppm": 999_999}, "no document is left to train on"),
        (
            sentences(60),
            {"context": 30_000},
            (
                r"training documents are shorter than one window; expected at least context \+ 1 = 30001 "
                r"tokens, "
                r"got \d+ tokens\. Take more text, lower data\.context or data\.holdout_ppm\."
            ),
        ),
        (
            sentences(60),
            {"context": 1200},
            (
                r"documents held out are shorter than one window; expected at least context \+ 1 = 1201 "
                r"tokens, "
                r"got \d+ tokens\. .*, or raise data\.holdout_ppm\."
            ),
        ),
        (
            sentences(60),
            {"vocab_size": 60_000},
            r"vocabulary is larger than the training .* support; expected vocab_size up to \d+, got 60000\.",
        ),
        (sentences(60), {"text_field": "body"}, r"line 1, has no field 'body'"),
        (
            sentences(60),
            {"tokenizer": "/nowhere/tokenizer.json"},
            r"cannot be read; expected a tokenizer\.json",
        ),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path, texts: list[str], changes: dict[str, Any], message: str
) -> None:
    source = write_jsonl(tmp_path, texts)
    with pytest.raises(UsageError, match=message):
        prepare(config(source, **changes), tmp_path / "out" / "data")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_source_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no source"):
        prepare(config("nothing"), tmp_path / "out" / "data")
    assert list(tmp_path.iterdir()) == []


def test_never_over_what_is_there(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, sentences(60))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(
            UsageError, match=rf"{name} is there already; expected a folder that is new or empty"
        ):
            prepare(config(source), tmp_path / name)
    assert (tmp_path / "full" / "note").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert prepare(config(source), tmp_path / "empty") == read_manifest(tmp_path / "empty")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes: a disk that is full, for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# 30 kB of digits take 43 kB of shards, a tokenizer takes 7 kB: the limits stop each kind of file in turn.
@pytest.mark.parametrize(("count", "size"), [(150, 1), (150, 15_000), (35, 7_200), (150, 30_500)])
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, count: int, size: int) -> None:
    rng = random.Random(1)
    source = write_jsonl(tmp_path, ["".join(rng.choices("0123456789abcdef", k=200)) for _ in range(count)])
    with (
        largest_file(size),
        pytest.raises(StorageError, match=r"could not be written; got File too large\."),
    ):
        prepare(config(source), tmp_path / "out" / "data")
    assert list((tmp_path / "out").iterdir()) == []


SYNCS = 7  # tokenizer.json and dataset.json with their folder, two shards, the place of it all


@pytest.mark.parametrize("call", range(SYNCS))
def test_a_disk_that_fills_up_at_any_sync_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    source = write_jsonl(tmp_path, sentences(150))
    syncs = 0

    def full(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs > call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full: .* could not be written"):
        prepare(config(source), tmp_path / "out" / "data")
    assert list((tmp_path / "out").iterdir()) == []


def test_all_syncs_are_counted_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    prepare(config(write_jsonl(tmp_path, sentences(150))), tmp_path / "out")
    assert len(synced) == SYNCS


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = write_jsonl(tmp_path, sentences(60))
    with pytest.raises(StorageError, match=r"data could not be written; got (Not a directory|File exists)"):
        prepare(config(source), tmp_path / "file" / "data")


def test_interrupting_leaves_nothing(tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if text == "packing windows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(write_jsonl(tmp_path, sentences(60))), tmp_path / "out" / "data", stop)
    assert list((tmp_path / "out").iterdir()) == []
