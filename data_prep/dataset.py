"""The windows of a data set, as training and auditing read them.

Owns opening a data folder against its manifest and turning positions into batches. Does not own who gets
which positions, nor how the folder was made. Imports neither torch, datasets nor tokenizers.

Shape suffixes: S local steps, B windows a step, N windows, W = context + 1 tokens in a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_prep.assignment import windows_at
from data_prep.manifest import DatasetManifest, ShardEntry
from data_prep.shards import Tokens, WindowReader
from verification.errors import FormatError, ProtocolError


class Windows(Protocol):
    """Where the windows of an assignment come from: a data set, or a case of evidence that holds them."""

    def batches(self, seed: int, positions: Sequence[int], batch: int) -> Tokens: ...  # noqa: D102


class Dataset:
    """The data folder `folder`, checked once on opening to be what `manifest` names.

    With `verify` off the digests are not computed again; the shards' columns and numbers of windows
    always are checked. Raises StorageError for a missing or different file, FormatError for one that is no
    shard.
    """

    def __init__(self, folder: Path, manifest: DatasetManifest, *, verify: bool = True) -> None:
        if verify:
            manifest.check_files(folder)
        self.manifest = manifest
        self._train = _open(folder, manifest, manifest.train)
        self._validation = _open(folder, manifest, manifest.validation)

    @property
    def train_windows(self) -> int:
        """N of the protocol."""
        return len(self._train)

    @property
    def validation_windows(self) -> int:
        """Windows to validate on."""
        return len(self._validation)

    def train(self, ids: Sequence[int]) -> Tokens:
        """Training windows by number: int64 [n, context + 1].

        Raises ProtocolError for a number outside the training set.
        """
        return self._train.read(ids)

    def validation(self, limit: int) -> Tokens:
        """The first `limit` validation windows, or all where there are fewer: int64 [m, context + 1]."""
        if limit < 1:
            raise ProtocolError("a validation needs a window", expected="at least 1", got=limit)
        return self._validation.read(range(min(limit, len(self._validation))))

    def batches(self, seed: int, positions: Sequence[int], batch: int) -> Tokens:
        """The windows of `positions`, cut into local steps: int64 [steps, batch, context + 1].

        Step s uses positions s·batch … s·batch + batch - 1 of the list (docs/protocol.md, section 5). Raises
        ProtocolError when the positions do not make whole steps.
        """
        if batch < 1 or len(positions) % batch:
            raise ProtocolError(
                "positions do not make whole local steps",
                expected=f"a multiple of {batch}",
                got=f"{len(positions)} positions",
            )
        ids_N = windows_at(
            seed=seed, dataset_root=self.manifest.root, positions=positions, windows=self.train_windows
        )
        windows_NW = self._train.read(ids_N)
        return windows_NW.reshape(-1, batch, windows_NW.shape[1])


def _open(folder: Path, manifest: DatasetManifest, entries: tuple[ShardEntry, ...]) -> WindowReader:
    reader = WindowReader([folder / entry.file for entry in entries], manifest.context, manifest.vocab_size)
    for entry, windows in zip(entries, reader.shard_windows, strict=True):
        if windows != entry.windows:
            raise FormatError(
                f"{folder / entry.file} has the wrong number of windows", expected=entry.windows, got=windows
            )
    return reader
