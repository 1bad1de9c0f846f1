"""What a person may want of a member: another key, none, that it leaves or returns.

Such a wish is pending until the next open. Owns where it is noted: in the private folder of the member, or
of the coordinator. Does not own the signed records it leads to (member.py, muster.py) or when they may come
(verification.membership). Runs beside the run itself: what it adds and removes are files of its own.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.folder import RunFolder, member_folder
from pipeline.log_reader import read_entries
from pipeline.vault import LEAVING, NEXT_KEY, REVOKED
from verification.durable import write_atomic
from verification.errors import UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.records import Enrol

REVOCATIONS = "revoke"


def leave(folder: RunFolder, home: Path, member: str | None) -> None:
    """Note in a member's own folder that it shall take no part from the next round on."""
    write_atomic(_private(folder, home, member) / LEAVING, b"", mode=0o600)


def come_back(folder: RunFolder, home: Path, member: str | None) -> None:
    """Take that back. Raises UsageError when the member was not told to leave."""
    note = _private(folder, home, member) / LEAVING
    if not note.exists():
        raise UsageError(
            f"{member or folder.path.name} was not told to leave",
            hint="A member that nobody could reach returns by itself.",
        )
    note.unlink()


def rotate(folder: RunFolder, home: Path, member: str | None) -> PrivateKey:
    """Make the key that a member is to go on with. Raises UsageError when one is waiting already."""
    private = _private(folder, home, member)
    if (private / NEXT_KEY).exists():
        raise UsageError(
            f"{member or private.name} has a new key already, which the log has not yet",
            got=PrivateKey.load(private / NEXT_KEY).public,
            hint="It takes over when the next round opens.",
        )
    key = PrivateKey.generate()
    key.save(private / NEXT_KEY)
    return key


def revoke(folder: RunFolder, home: Path, member: str | None) -> None:
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


def _private(folder: RunFolder, home: Path, name: str | None) -> Path:
    if name is None:  # on a machine without the run folder it is the member's own that is named
        if not (folder.path / "key").exists() or not (folder.path / "turns").is_dir():
            raise UsageError(
                f"{folder.path} is no member's private folder",
                expected="a folder such as ~/.barnraise/runs/0123456789abcdef/c03",
                hint="With the run folder here, name the member too: RUN MEMBER.",
            )
        return folder.path
    private = home / member_folder(folder.parsed_manifest()) / name
    if not (private / "key").exists():
        raise UsageError(
            f"the private folder of {name} is not here",
            expected=str(private),
            hint="Say it where that folder lies, once the run has started; --home names another place.",
        )
    return private
