"""data_prep/manifest.py: the dataset object, its root, and files checked against it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.manifest import (
    DatasetManifest,
    ShardEntry,
    dataset_root,
    file_digest,
    read_manifest,
    write_manifest,
)
from verification.encoding import canonical_json
from verification.errors import FormatError, StorageError

DIGEST = "blake3:" + "ab" * 32


def make(**changes: Any) -> DatasetManifest:
    values: dict[str, Any] = {
        "context": 8,
        "licence": {"name": "PSF-2.0"},
        "source": {"kind": "python-stdlib"},
        "tokenizer": DIGEST,
        "train": (ShardEntry(DIGEST, "train-00000.arrow", 5), ShardEntry(DIGEST, "train-00001.arrow", 2)),
        "validation": (ShardEntry(DIGEST, "validation-00000.arrow", 1),),
        "vocab_size": 300,
    }
    return DatasetManifest.build(**(values | changes))


GOLDEN = (
    '{"context":8,"licence":{"name":"PSF-2.0"},"root":"ROOT","source":{"kind":"python-stdlib"},'
    f'"tokenizer":"{DIGEST}","train":[{{"digest":"{DIGEST}","file":"train-00000.arrow","windows":5}},'
    f'{{"digest":"{DIGEST}","file":"train-00001.arrow","windows":2}}],'
    f'"validation":[{{"digest":"{DIGEST}","file":"validation-00000.arrow","windows":1}}],"vocab_size":300}}'
)


def test_golden_bytes_and_root() -> None:
    without_root = GOLDEN.replace('"root":"ROOT",', "").encode()
    root = "sha256:" + hashlib.sha256(b"barnraise/dataset/v1\0" + without_root).hexdigest()
    manifest = make()
    assert canonical_json(manifest.to_json()) == GOLDEN.replace("ROOT", root).encode()
    assert manifest.root == root == dataset_root(manifest.to_json())
    assert root == "sha256:3b05c0d4cf82fe2761f5cd256e175deacf715121ca44becd2d1b8b6d71415cb2"


def test_counts() -> None:
    assert (make().train_windows, make().validation_windows) == (7, 1)


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("dataset.json", "tokenizer.json")
)
digests = st.binary(min_size=32, max_size=32).map(lambda b: "blake3:" + b.hex())
texts = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N"])), st.text('aé\n"', max_size=9)
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(names, digests, st.integers(1, 2**40)), min_size=2, max_size=6, unique_by=lambda e: e[0]
    ),
    st.integers(1, 2**16),
    st.integers(2, 2**32),
    texts,
    texts,
)
def test_round_trip(
    files: list[tuple[str, str, int]],
    context: int,
    vocab: int,
    licence: dict[str, str],
    source: dict[str, str],
) -> None:
    entries = tuple(ShardEntry(digest, file, windows) for file, digest, windows in files)
    manifest = make(
        train=entries[1:],
        validation=entries[:1],
        context=context,
        vocab_size=vocab,
        licence=licence,
        source=source,
    )
    again = DatasetManifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.root == manifest.root


def test_root_depends_on_every_field() -> None:
    roots = {
        manifest.root
        for manifest in (
            make(),
            make(context=9),
            make(vocab_size=301),
            make(licence={}),
            make(source={}),
            make(tokenizer="blake3:" + "00" * 32),
            make(train=make().train[:1]),
            make(train=make().train[::-1]),
            make(validation=(ShardEntry(DIGEST, "validation-00000.arrow", 2),)),
        )
    }
    assert len(roots) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": DIGEST}, r"root of a data set is wrong; expected sha256:[0-9a-f]{64}, got 'blake3:"),
        ({"context": 0}, r"context of a data set is not positive; expected at least 1, got 0\."),
        ({"context": "8"}, r"dataset\.context has the wrong type; expected int, got '8'\."),
        ({"context": True}, "wrong type"),
        ({"vocab_size": 1}, r"vocabulary size is out of range; expected 2 to 2\^32, got 1\."),
        ({"vocab_size": 2**33}, "out of range"),
        ({"tokenizer": "sha256:" + "ab" * 32}, r"tokenizer's digest is of the wrong kind; expected blake3:"),
        ({"tokenizer": "blake3:AB"}, "not a digest"),
        ({"train": []}, "lacks shards; expected at least one shard each .*, got 0 and 1"),
        ({"validation": []}, "lacks shards.* got 2 and 0"),
        (
            {"validation": [{"digest": DIGEST, "file": "train-00000.arrow", "windows": 1}]},
            "names a file twice",
        ),
        (
            {"train": [{"digest": DIGEST, "file": "a", "windows": 0}]},
            r"shard a is empty; expected at least 1",
        ),
        ({"train": [{"digest": DIGEST, "file": "a"}]}, r"dataset\.train\[0\] has the wrong keys"),
        (
            {"train": [{"digest": "sha256:" + "0" * 64, "file": "a", "windows": 1}]},
            "shard's digest is of the wrong",
        ),
        ({"licence": {"name": 1}}, r"dataset\.licence\.name has the wrong type"),
        ({"more": 1}, "dataset has the wrong keys"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        DatasetManifest.from_json(make().to_json() | change)


@pytest.mark.parametrize(
    "file", ["", "../a", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\n", "A", "é", "a" * 101, "dataset.json"]
)
def test_file_names_cannot_leave_the_folder(file: str) -> None:
    with pytest.raises(FormatError, match="file name is not allowed; expected 1 to 100 of a-z"):
        ShardEntry(DIGEST, file, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**54) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([*sorted(make().to_json()), ""]), json_values)
def test_any_value_anywhere_stays_in_the_family(key: str, value: object) -> None:
    changed = make().to_json() | {key: value} if key else value
    try:
        manifest = DatasetManifest.from_json(changed)
    except FormatError:
        return
    assert manifest == make()


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, DatasetManifest]:
    contents = {"tokenizer.json": b"{}", "train-0": b"abc", "train-1": b"", "validation-0": b"x" * 3_000_000}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    entries = [ShardEntry("blake3:" + blake3(contents[n]).hexdigest(), n, 1) for n in list(contents)[1:]]
    manifest = make(
        tokenizer="blake3:" + blake3(b"{}").hexdigest(), train=tuple(entries[:2]), validation=(entries[2],)
    )
    return tmp_path, manifest


def test_check_files(folder: tuple[Path, DatasetManifest]) -> None:
    path, manifest = folder
    manifest.check_files(path)
    assert file_digest(path / "validation-0") == manifest.validation[0].digest


@pytest.mark.parametrize("name", ["tokenizer.json", "train-0", "train-1", "validation-0"])
def test_check_files_names_the_wrong_one(folder: tuple[Path, DatasetManifest], name: str) -> None:
    path, manifest = folder
    with (path / name).open("ab") as handle:
        handle.write(b"!")
    message = rf"{name} is not the file that the manifest names; expected blake3:[0-9a-f]+, got blake3:"
    with pytest.raises(StorageError, match=message):
        manifest.check_files(path)
    (path / name).unlink()
    with pytest.raises(
        StorageError, match=rf"{name} could not be read; expected a file of the data set, got No such"
    ):
        manifest.check_files(path)


def test_dataset_json_round_trip_and_refusals(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"dataset\.json could not be read; expected a folder made by"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, make())
    assert (tmp_path / "dataset.json").read_bytes() == canonical_json(make().to_json())
    assert read_manifest(tmp_path) == make()
    (tmp_path / "dataset.json").write_bytes(canonical_json(make().to_json()) + b"\n")
    with pytest.raises(FormatError, match="not in canonical form"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").write_bytes(b"{")
    with pytest.raises(FormatError, match="not JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["assignment", "manifest", "shards", "dataset", "config", "corpus", "tokenizer", "prepare"]
)
def test_imports_without_the_train_extra(name: str) -> None:
    code = (
        "import sys\nfor m in ('torch', 'ray', 'wandb', 'datasets', 'tokenizers'): sys.modules[m] = None\n"
        f"import data_prep.{name}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
