"""data_prep/dataset.py: opening a folder and reading batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.assignment import window_at
from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest, ShardEntry
from data_prep.shards import write_shards
from verification.errors import FormatError, ProtocolError, StorageError

CONTEXT, VOCAB = 4, 300
TRAIN = np.random.default_rng(1).integers(0, VOCAB, 5 * 50).reshape(50, 5)
VALIDATION = np.random.default_rng(2).integers(0, VOCAB, 5 * 11).reshape(11, 5)


def build(folder: Path, **changes: object) -> DatasetManifest:
    (folder / "tokenizer.json").write_bytes(b"{}")
    values = {
        "context": CONTEXT,
        "licence": {},
        "source": {},
        "tokenizer": "blake3:" + blake3(b"{}").hexdigest(),
        "vocab_size": VOCAB,
    }
    for stem, data in (("train", TRAIN), ("validation", VALIDATION)):
        values[stem] = write_shards(
            [data.reshape(-1)], folder, stem, context=CONTEXT, vocab_size=VOCAB, shard_windows=20
        )
    return DatasetManifest.build(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    folder = tmp_path_factory.mktemp("made")
    return folder, build(folder)


@pytest.fixture(scope="module")
def dataset(made: tuple[Path, DatasetManifest]) -> Dataset:
    return Dataset(*made)


def test_counts_and_rows(dataset: Dataset) -> None:
    assert (dataset.train_windows, dataset.validation_windows) == (50, 11)
    got = dataset.train([49, 0, 49])
    assert got.dtype == np.int64
    assert (got == TRAIN[[49, 0, 49]]).all()
    assert dataset.train([]).shape == (0, 5)


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (11, 11), (1000, 11)])
def test_validation_takes_the_first(dataset: Dataset, limit: int, rows: int) -> None:
    assert (dataset.validation(limit) == VALIDATION[:rows]).all()
    assert dataset.validation(limit).shape == (rows, 5)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**40), start=st.integers(0, 500), steps=st.integers(0, 6), batch=st.integers(1, 5)
)
def test_batches_follow_the_assignment(
    dataset: Dataset, seed: int, start: int, steps: int, batch: int
) -> None:
    positions = range(start, start + steps * batch)
    got = dataset.batches(seed, positions, batch)
    assert got.shape == (steps, batch, 5)
    assert got.dtype == np.int64
    for s in range(steps):
        for b in range(batch):
            position = start + s * batch + b
            window = window_at(seed=seed, dataset_root=dataset.manifest.root, position=position, windows=50)
            assert (got[s, b] == TRAIN[window]).all()


def test_an_epoch_visits_every_window_once(dataset: Dataset) -> None:
    epoch = dataset.batches(9, range(50, 100), 10).reshape(50, 5)
    assert sorted(epoch.tolist()) == sorted(TRAIN.tolist())
    assert epoch.tolist() != dataset.batches(9, range(50), 10).reshape(50, 5).tolist()


def test_refusals(dataset: Dataset) -> None:
    with pytest.raises(ProtocolError, match=r"no such window; expected 0 to 49, got 50\."):
        dataset.train([0, 50])
    with pytest.raises(ProtocolError, match=r"no such window; expected 0 to 49, got -1\."):
        dataset.train([-1])
    with pytest.raises(
        ProtocolError, match=r"whole local steps; expected a multiple of 4, got 6 positions\."
    ):
        dataset.batches(1, range(6), 4)
    with pytest.raises(ProtocolError, match="whole local steps"):
        dataset.batches(1, [], 0)
    with pytest.raises(ProtocolError, match="a position is negative"):
        dataset.batches(1, [-1], 1)
    with pytest.raises(ProtocolError, match=r"validation needs a window; expected at least 1, got 0\."):
        dataset.validation(0)


def test_opening_checks_digests_unless_told_not_to(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    path = tmp_path / "train-00001.arrow"
    data = bytearray(path.read_bytes())
    where = data.index(TRAIN[20].astype("<u2").tobytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"train-00001\.arrow is not the file that the manifest names"):
        Dataset(tmp_path, manifest)
    assert (Dataset(tmp_path, manifest, verify=False).train([20]) != TRAIN[20]).sum() == 1
    path.unlink()
    with pytest.raises(StorageError, match=r"train-00001\.arrow could not be read"):
        Dataset(tmp_path, manifest)


def test_opening_checks_the_number_of_windows(tmp_path: Path) -> None:
    first, *rest = build(tmp_path).train
    lying = build(tmp_path, train=(ShardEntry(first.digest, first.file, 19), *rest))
    message = r"train-00000\.arrow has the wrong number of windows; expected 19, got 20\."
    with pytest.raises(FormatError, match=message):
        Dataset(tmp_path, lying)


def test_opening_checks_the_context(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"wrong columns; expected tokens: fixed_size_list<.*>\[4\], got"):
        Dataset(tmp_path, build(tmp_path, context=3))


def test_an_id_beyond_the_vocabulary_is_seen_on_reading(tmp_path: Path) -> None:
    top = int(TRAIN.max())
    small = Dataset(tmp_path, build(tmp_path, vocab_size=top))
    row = int(np.argwhere(np.equal(TRAIN, top))[0, 0])
    with pytest.raises(FormatError, match=rf"window {row} holds a token id outside the vocabulary"):
        small.train([row])
