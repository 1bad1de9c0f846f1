"""What contributors and auditors have in common: a vault, the manifest, the data, enrolment.

Owns the verbs by which a member joins a run. Does not own the work or the verdicts, and knows nothing of
where it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from data_prep.dataset import Dataset
from data_prep.manifest import TOKENIZER_FILE, DatasetManifest
from model.numerics import THREADS, Profile, numerics_class, prepare
from pipeline.catching_up import LogSoFar
from pipeline.replay_aggregation import checked_config
from pipeline.source import source_digest
from pipeline.vault import Vault
from pipeline.work import Job
from verification.durable import write_atomic
from verification.encoding import blake3_digest, parse_canonical
from verification.errors import ProtocolError
from verification.policy import write_policy
from verification.records import (
    PROTOCOL,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Leave,
    Manifest,
    Return,
    RoundOpen,
)
from verification.sealing import open_record, parse_predicate, seal_record
from verification.tlog_proof import check_receipt


@dataclass(frozen=True)
class Place:
    """Where a member lives: its private folder, and a folder of data files it may share with others."""

    vault: Path
    data: Path


class Member:
    """A party to a run. Its verbs take and return bytes, so that any transport will do."""

    role: Literal["contributor", "auditor"]

    def __init__(self, name: str, operator: str, manifest: bytes, place: Place) -> None:
        self.name = name
        self.operator = operator
        self.vault = Vault(place.vault)
        self.manifest = parse_predicate(Manifest, parse_canonical(manifest))
        checked_config({"config": self.manifest.config})
        if self.manifest.source != source_digest():
            raise ProtocolError(
                f"{name} runs other source than the run was made with",
                expected=self.manifest.source,
                got=source_digest(),
                hint="Install the same release of barnraise on every node.",
            )
        self.run = self.manifest.run_id
        self.dataset = DatasetManifest.from_json(self.manifest.dataset)
        self.data_folder = place.data
        self.key = self.vault.key()
        run = self.manifest.config["run"]
        self.newcomer = False
        self._so_far: LogSoFar | None = None
        self.numerics_class = self.prepared("native" if name in run["native"] else run["profile"])

    def prepared(self, profile: Profile) -> str:
        """Put this process under the run's profile; the numerics class it then has. Imports torch."""
        prepare(profile, THREADS)
        return numerics_class(profile, THREADS)

    def missing_files(self) -> list[str]:
        """Names of the data files that this machine does not have yet."""
        return [name for name, digest in self._files().items() if not self._has(name, digest)]

    def store_file(self, name: str, data: bytes) -> None:
        """Take a data file; ProtocolError unless it is the one the manifest names."""
        expected = self._files().get(name)
        if expected and self._has(name, expected):
            return  # from a neighbour on this machine, or from before a crash
        if expected is None or blake3_digest(data) != expected:
            raise ProtocolError(
                f"data file {name} is not the manifest's", expected=expected, got=blake3_digest(data)
            )
        write_atomic(self.data_folder / name, data)

    def enrol(self) -> bytes:
        """The signed statement that this member takes part.

        Raises ProtocolError for a newcomer that has not read the log: it would believe where the run stands.
        """
        if self.newcomer and self._so_far is None:
            raise ProtocolError(f"{self.name} has not read the log yet", expected="the log, from its start")
        record = Enrol(
            PROTOCOL, self.run, self.name, self.role, self.operator, self.key.public, self.numerics_class
        )
        return seal_record(record, self.key)

    def catch_up(self, entries: list[bytes], note: str) -> int:
        """Read the log from where it was read last, up to the signed head `note`; how many entries it has.

        Raises one of the family when it does not hold; then it has to be read from the start.
        """
        so_far, self._so_far = self._so_far or LogSoFar(self.manifest), None
        so_far.take(entries, note)
        self._so_far = so_far
        return so_far.size

    def identity_changes(self, present_key: str, turn: int = 0, away: bool = False) -> list[bytes]:
        """The signed change that this member's owner wants: of its key, or of taking part.

        The same until the log has it. `present_key` is the member's in the log: an auditor that nobody drew
        since its rotation sees no open. `turn` counts the turns so far; `away`: the log says that it left.
        """
        self._follow_rotation(present_key)
        if away and not self.vault.is_revoked():
            if self.vault.is_leaving():
                return []
            return [seal_record(Return(PROTOCOL, self.run, self.name, self.key.public, turn), self.key)]
        if self.vault.is_revoked():
            revocation = KeyRevocation(PROTOCOL, self.run, self.name, self.key.public, "member")
            return [seal_record(revocation, self.key)]
        if self.vault.is_leaving():
            leave = Leave(PROTOCOL, self.run, self.name, self.key.public, turn, "member")
            return [seal_record(leave, self.key)]
        new = self.vault.next_key()
        return [seal_record(KeyRotation.of(self.run, self.name, self.key, new), self.key)] if new else []

    def take_receipt(self, turn: int, receipt: str) -> None:
        """Keep the proof of what the log says of this member in `turn`; asked again, keep the first.

        Raises one of the family unless it holds under the manifest's keys and is of this member and turn.
        """
        manifest = self.manifest
        required = manifest.witnessing.required
        found = check_receipt(receipt, manifest.log_vkey, manifest.witness_vkeys, required)
        if (found.run, found.member) != (self.run, self.name):
            raise ProtocolError("a receipt is somebody else's", expected=self.name, got=found.member)
        committed = self.vault.committed(turn)
        open_ = self.opened(committed.open) if committed else None
        if open_ and (open_.round, open_.attempt) != (found.round, found.attempt):
            raise ProtocolError("a receipt is of another turn", expected=f"turn {turn}", got=found.round)
        self.vault.put_receipt(found.round, found.attempt, receipt)
        self.vault.put_policy(write_policy(manifest.log_vkey, manifest.witness_vkeys, required))

    def opened(self, envelope: bytes) -> RoundOpen:
        """The open in an envelope. Raises one of the family unless it is by this run's coordinator."""
        open_ = open_record(RoundOpen, bytes(envelope), self.manifest.coordinator)
        if open_.run != self.run:
            raise ProtocolError("an open is of another run", expected=self.run, got=open_.run)
        self._so_far = self._so_far and self._so_far.before(open_)
        keys = {e.member: e.key for e in open_.roster} | {e.member: e.key for e in open_.auditors}
        self._follow_rotation(keys.get(self.name))
        return open_

    def _follow_rotation(self, present_key: str | None) -> None:
        # The old key goes only now: the new one is the present one only once the log has the rotation.
        new = self.vault.next_key()
        if new and present_key == new.public:
            self.key = self.vault.take_next_key()

    @cached_property
    def job(self) -> Job:
        """The work this run consists of."""
        return Job.of(self.manifest)

    @cached_property
    def data(self) -> Dataset:
        """The run's data, checked against the manifest once."""
        return Dataset(self.data_folder, self.dataset)

    def _files(self) -> dict[str, str]:
        shards = (*self.dataset.train, *self.dataset.validation)
        return {TOKENIZER_FILE: self.dataset.tokenizer, **{shard.file: shard.digest for shard in shards}}

    def _has(self, name: str, digest: str) -> bool:
        path = self.data_folder / name
        return path.is_file() and blake3_digest(path.read_bytes()) == digest
