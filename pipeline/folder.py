"""The run folder: what lies where, written atomically, and what may be removed.

Owns the paths of docs/protocol.md, section 11, except the log's. Does not own what the files mean.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from model.arrays import Arrays, arrays_to_bytes, safetensors_bytes
from verification.durable import fsync_folder, write_atomic
from verification.encoding import (
    Json,
    blake3_digest,
    canonical_json,
    digest_hex,
    parse_canonical,
    sha256_digest,
)
from verification.errors import StorageError, UsageError
from verification.records import PROTOCOL, Manifest, RoundOpen
from verification.retention import is_scheduled
from verification.sealing import parse_predicate

PARTS = ("payloads", "checkpoints", "state", "data", "evidence")


def member_folder(manifest: Manifest) -> str:
    """The part of a private home that belongs to a run, with a folder for each member and the coordinator."""
    return f"runs/{digest_hex(manifest.run_id)[:16]}"


class RunFolder:
    """Paths and durable writes of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.resolve().name

    @property
    def log(self) -> Path:
        """The transparency log."""
        return self.path / "log"

    @property
    def data(self) -> Path:
        """Shards and tokenizer."""
        return self.path / "data"

    @property
    def manifest_file(self) -> Path:
        """Entry 0 as a file."""
        return self.path / "manifest.json"

    @property
    def contributions_file(self) -> Path:
        """One row a contribution, for people with notebooks."""
        return self.path / "contributions.parquet"

    def rounds_on_disk(self) -> int:
        """The last round that has a checkpoint; for progress bars only, the log knows better."""
        return max((int(p.stem[6:]) for p in (self.path / "checkpoints").glob("round-*.outer")), default=0)

    def manifest(self) -> bytes:
        """The bytes of manifest.json. Raises UsageError when this is no run folder."""
        try:
            return self.manifest_file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{self.path} is not a run folder",
                expected="a folder with manifest.json",
                got=error.strerror,
                hint="`barnraise train` makes one.",
            ) from None

    def parsed_manifest(self) -> Manifest:
        """manifest.json as a record. UsageError when it is another version's, FormatError when damaged."""
        value = parse_canonical(self.manifest())
        found = value.get("protocol") if isinstance(value, dict) else None
        if found != PROTOCOL:
            raise UsageError(
                f"{self.path} is of another protocol version",
                expected=PROTOCOL,
                got=found,
                hint="Use the release of barnraise that made it.",
            )
        return parse_predicate(Manifest, value)

    def put_payload(self, data: bytes) -> None:
        """Store a payload under its digest."""
        write_atomic(self.payload_file(blake3_digest(data)), data)

    def payload(self, digest: str) -> bytes:
        """A stored payload, checked."""
        return self._checked(self.payload_file(digest), digest)

    def payload_file(self, digest: str) -> Path:
        """Where a payload lies."""
        return self.path / "payloads" / digest_hex(digest)

    def put_state(self, data: bytes) -> None:
        """Store a hidden state under its digest."""
        write_atomic(self.state_file(blake3_digest(data)), data)

    def state_file(self, digest: str) -> Path:
        """Where a snapshot lies."""
        return self.path / "state" / digest_hex(digest)

    def weights_file(self, round_: int) -> Path:
        """The weights after a round; 0 is the start."""
        return self.path / "checkpoints" / f"round-{round_:05d}.safetensors"

    def outer_file(self, round_: int) -> Path:
        """The outer state after a round."""
        return self.path / "checkpoints" / f"round-{round_:05d}.outer"

    def put_checkpoint(self, round_: int, weights: Arrays, outer: Arrays) -> None:
        """Store a checkpoint: weights, then outer state."""
        write_atomic(self.weights_file(round_), safetensors_bytes(weights))
        write_atomic(self.outer_file(round_), arrays_to_bytes(outer))

    def checkpoint(self, round_: int) -> bytes:
        """The weights file of a round. StorageError when it is missing."""
        path = self.weights_file(round_)
        try:
            return path.read_bytes()
        except OSError as error:
            raise StorageError(f"checkpoint {path} cannot be read", got=error.strerror) from None

    def keep_checkpoints(
        self, last: int, every: int, needed: Collection[int] = (), *, floor: int = 0, sparse: int = 0
    ) -> None:
        """Remove checkpoints but the start, every `every`-th, the last closed one and those `needed`.

        Of those below `floor` only every `sparse`-th is kept, unless that is 0.
        """
        for path in sorted((self.path / "checkpoints").glob("round-*")):
            number = path.name[6:].split(".")[0]
            if not number.isdecimal():
                continue  # somebody else's; level 1 names it
            round_ = int(number)
            scheduled = is_scheduled(round_, every=every, floor=floor, sparse=sparse)
            if round_ > last or not (scheduled or round_ == last or round_ in needed):
                path.unlink()

    def drop_checkpoint(self, round_: int) -> None:
        """Remove the checkpoint of a round, if it is there."""
        for path in (self.weights_file(round_), self.outer_file(round_)):
            path.unlink(missing_ok=True)

    def keep_only(self, part: str, digests: Iterable[str]) -> None:
        """Remove files of a content-addressed part that the log does not name (left by a crash) or need."""
        wanted = {digest_hex(digest) for digest in digests}
        for path in sorted((self.path / part).iterdir()):
            if path.name not in wanted:
                path.unlink()
        fsync_folder(self.path / part)

    def remove_temporaries(self) -> None:
        """Remove files that a crash left half-written."""
        for part in PARTS:
            for path in (self.path / part).rglob(".*.tmp"):
                path.unlink()

    def keep_evidence(self, open_: RoundOpen, slots: Collection[int]) -> None:
        """Of the turn in progress, remove evidence on slots for which the log shows no reason yet.

        A crash left it; asked again, members may give no cause for it, and then nothing would name it.
        """
        for entry in open_.roster:
            if entry.slot not in slots:
                self.drop_evidence(open_, entry.slot)

    def drop_evidence(self, open_: RoundOpen, slot: int) -> None:
        """Remove what was stored of a slot, if anything was."""
        shutil.rmtree(self.evidence_folder(open_, slot), ignore_errors=True)

    def put_evidence(self, open_: RoundOpen, slot: int, files: Mapping[str, bytes]) -> None:
        """Store what a contributor needs to rerun a decision against it."""
        for name, data in files.items():
            write_atomic(self.evidence_folder(open_, slot) / name, data)

    def has_evidence(self, open_: RoundOpen, slot: int) -> bool:
        """Whether anything was stored of a slot."""
        return self.evidence_folder(open_, slot).is_dir()

    def close_evidence(self, open_: RoundOpen, slot: int, reason: str | None) -> str | None:
        """Write the case file over what `put_evidence` stored; its digest, or None when nothing was."""
        folder = self.evidence_folder(open_, slot)
        if not folder.is_dir():
            return None
        files = {path.name: path for path in sorted(folder.iterdir()) if path.name != "case.json"}
        case: Json = {
            "attempt": open_.attempt,
            "files": {name: blake3_digest(path.read_bytes()) for name, path in files.items()},
            "member": open_.entry(slot).member,
            "reason": reason,
            "round": open_.round,
            "run": open_.run,
            "slot": slot,
        }
        data = canonical_json(case)
        write_atomic(folder / "case.json", data)
        return sha256_digest(data)

    def evidence_case(self, round_: int, attempt: int, slot: int) -> Path:
        """The folder of one rejection, by its place."""
        return self.path / "evidence" / f"r{round_:05d}-a{attempt}-s{slot}"

    def evidence_folder(self, open_: RoundOpen, slot: int) -> Path:
        """The folder of a rejection in the turn that `open_` opened."""
        return self.evidence_case(open_.round, open_.attempt, slot)

    def _checked(self, path: Path, digest: str) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read", got=error.strerror) from None
        if blake3_digest(data) != digest:
            raise StorageError(f"{path} was changed", expected=digest, got=blake3_digest(data))
        return data
