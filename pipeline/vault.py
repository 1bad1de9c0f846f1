"""A member's own folder: keys, data files, hidden states, receipts, and what it has committed to.

Owns what must survive a crash of the member, and its permissions. Nothing here is ever sent except through
the member's verbs. Does not own the run folder, which is the coordinator's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from verification.durable import fsync_folder, present, write_atomic
from verification.encoding import blake3_digest, digest_hex
from verification.errors import ProtocolError, StorageError
from verification.folder_lock import lock_folder
from verification.keys import PrivateKey
from verification.tlog_proof import parse_proof

LOCK_WAIT_S = 60.0
MOST_BYTES = 1 << 20  # of a turn's file: three envelopes of 65,535 bytes and two digests
NEXT_KEY = "key.next"
REVOKED = "revoke"
LEAVING = "leave"


@dataclass(frozen=True, repr=False)
class Committed:
    """A turn's answers, stored before the first of them leaves the member."""

    open: bytes
    commitment: bytes
    reveal: bytes
    payload: str
    next_state: str


class Vault:
    """Private files of one member under `folder` (mode 0700)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("states", "turns", "payloads", "receipts"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        # A member that was restarted may find its old process still ending; see verification.folder_lock.
        lock_folder(folder, wait_s=LOCK_WAIT_S)
        for stale in folder.rglob(".*.tmp"):
            stale.unlink()

    def key(self) -> PrivateKey:
        """The member's key, made at the first call."""
        path = self.folder / "key"
        if not present(path):
            PrivateKey.generate().save(path)
        return PrivateKey.load(path)

    def next_key(self) -> PrivateKey | None:
        """The key that the owner wants to go on with, made by `barnraise keys rotate`; None without one."""
        path = self.folder / NEXT_KEY
        return PrivateKey.load(path) if present(path) else None

    def take_next_key(self) -> PrivateKey:
        """Put the next key in the place of the old one, in one step, and return it."""
        (self.folder / NEXT_KEY).replace(self.folder / "key")
        fsync_folder(self.folder)
        return self.key()

    def is_leaving(self) -> bool:
        """Whether the owner wants this member to take no part for now, by `barnraise keys leave`."""
        return present(self.folder / LEAVING)

    def is_revoked(self) -> bool:
        """Whether the owner wants the key revoked, by `barnraise keys revoke`."""
        return present(self.folder / REVOKED)

    def put_receipt(self, round_: int, attempt: int, receipt: str) -> None:
        """Keep the receipt of a closed turn; one that is there already stays.

        Raises ProtocolError when that one shows another close of the same turn.
        """
        path = self.folder / "receipts" / f"r{round_:05d}-a{attempt}.tlog-proof"
        if not present(path):
            write_atomic(path, receipt.encode(), mode=0o600)
        elif parse_proof(path.read_bytes()).extra != parse_proof(receipt).extra:
            raise ProtocolError(
                f"two different closes of round {round_}, attempt {attempt}",
                hint=f"Both are signed by the coordinator: keep {path}, and what the log shows now.",
            )

    def put_policy(self, policy: str) -> None:
        """Keep beside the receipts what `barnraise verify-receipt --policy` needs to check them."""
        path = self.folder / "receipts" / "policy.txt"
        if not present(path):
            write_atomic(path, policy.encode(), mode=0o600)

    def put(self, kind: str, data: bytes) -> str:
        """Store bytes by content under `states` or `payloads`; returns their BLAKE3 digest."""
        digest = blake3_digest(data)
        path = self.folder / kind / digest_hex(digest)
        if not present(path):
            write_atomic(path, data, mode=0o600)
        return digest

    def get(self, kind: str, digest: str) -> bytes | None:
        """The stored bytes of `digest`, or None. StorageError when the disk changed them."""
        path = self.folder / kind / digest_hex(digest)
        if not present(path):
            return None
        data = path.read_bytes()
        if blake3_digest(data) != digest:
            raise StorageError(f"{path} was damaged", expected=digest, got=blake3_digest(data))
        return data

    def keep(self, kind: str, digests: Iterable[str]) -> None:
        """Forget everything of `kind` but these."""
        wanted = {digest_hex(digest) for digest in digests}
        for path in (self.folder / kind).iterdir():
            if path.name not in wanted:
                path.unlink()

    def commit(self, turn: int, entry: Committed) -> None:
        """Make a turn's answers durable. From here on the member can say nothing else for this turn."""
        value = {
            "open": entry.open.decode(),
            "commitment": entry.commitment.decode(),
            "reveal": entry.reveal.decode(),
            "payload": entry.payload,
            "next_state": entry.next_state,
        }
        write_atomic(self._turn(turn), json.dumps(value).encode(), mode=0o600)

    def committed(self, turn: int) -> Committed | None:
        """What was committed in `turn`, or None."""
        path = self._turn(turn)
        if not present(path):
            return None
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError
            value = json.loads(path.read_bytes())
            return Committed(
                value["open"].encode(),
                value["commitment"].encode(),
                value["reveal"].encode(),
                value["payload"],
                value["next_state"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # The cause is not shown: it may quote the file, which holds a salt.
            raise StorageError(f"{path} was damaged") from None

    def turns(self) -> list[int]:
        """The turns that were committed to and are not forgotten."""
        return sorted(int(path.stem) for path in (self.folder / "turns").glob("*.json"))

    def last_turn(self) -> int:
        """The highest turn that was committed to; -1 before the first."""
        return max(self.turns(), default=-1)

    def forget_turns_before(self, turn: int) -> None:
        """Drop the answers of turns that are over."""
        for path in (self.folder / "turns").glob("*.json"):
            if int(path.stem) < turn:
                path.unlink()
        fsync_folder(self.folder / "turns")

    def _turn(self, turn: int) -> Path:
        return self.folder / "turns" / f"{turn}.json"
