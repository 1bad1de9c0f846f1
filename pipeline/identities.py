"""What a person may want of a key in a run: another one, or none. Pending until the next round opens.

Owns where such a wish is noted: in the private folder of the member, or of the coordinator. Does not own the
signed records it leads to (member.py, coordinator.py) or when they may come (verification.membership). Runs
beside the run itself, so it adds files and changes none.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.folder import RunFolder, member_folder
from pipeline.ledger import read_entries
from pipeline.vault import NEXT_KEY, REVOKED
from verification.durable import write_atomic
from verification.errors import UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.records import Enrol

REVOCATIONS = "revoke"


def rotate(folder: RunFolder, home: Path, member: str) -> PrivateKey:
    """Make the key that a member is to go on with. Raises UsageError when one is waiting already."""
    private = _private(folder, home, member)
    if (private / NEXT_KEY).exists():
        raise UsageError(
            f"{member} has a new key already, which the log has not yet",
            got=PrivateKey.load(private / NEXT_KEY).public,
            hint="It takes over when the next round opens.",
        )
    key = PrivateKey.generate()
    key.save(private / NEXT_KEY)
    return key


def revoke(folder: RunFolder, home: Path, member: str) -> None:
    """Note in a member's own folder that it shall revoke its key."""
    write_atomic(_private(folder, home, member) / REVOKED, b"", mode=0o600)


def revoke_as_coordinator(folder: RunFolder, home: Path, member: str) -> None:
    """Note in the coordinator's folder that it shall revoke a member's key. UsageError for an unknown one."""
    private = _private(folder, home, "coordinator")
    manifest = folder.parsed_manifest()
    log = Log.open(folder.log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
    names = [record.member for record, _ in read_entries(log, manifest) if isinstance(record, Enrol)]
    if member not in names:
        raise UsageError(f"nobody called {member} is enrolled", expected=", ".join(names), got=member)
    write_atomic(private / REVOCATIONS / member, b"", mode=0o600)


def pending_revocations(secrets: Path) -> list[str]:
    """Members whose keys the organiser revokes, those in quarantine by now among them."""
    folder = secrets / REVOCATIONS
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if not path.name.endswith(".tmp"))


def _private(folder: RunFolder, home: Path, name: str) -> Path:
    private = home / member_folder(folder.parsed_manifest()) / name
    if not (private / "key").exists():
        raise UsageError(
            f"the private folder of {name} is not here",
            expected=str(private),
            hint="Say it where that folder lies, once the run has started; --home names another place.",
        )
    return private
