"""What must hold of a folder in which a durable operation was failed or killed, for disk_faults.py.

Owns the checks: old or new, nothing acknowledged lost, nothing twice, and that doing it again leads to the
same. Does not own faults or operations.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from assurance import disk_faults_child as child
from model.arrays import arrays_to_bytes, safetensors_bytes
from pipeline.folder import RunFolder
from pipeline.vault import Vault
from verification.errors import BarnraiseError
from verification.fsck_findings import Report
from verification.fsck_log import read_log
from verification.keys import PrivateKey
from verification.log import Log
from verification.merkle import Tree, leaf_hash
from verification.notes import vkey


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on a disk in memory: a kill does not lose what the kernel has, so it need not be flushed."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="barnraise-disk-", dir=where) as name:
        yield Path(name)


def problems(operation: str, site: Path, outcome: str | None) -> list[str]:
    """What is wrong with a folder in which the operation ended so (None: killed), and with going on there."""
    try:
        return list(_CHECKS[operation](site, (outcome or "").startswith("done ")))
    except BarnraiseError as error:
        return [f"corrupt: {type(error).__name__}: {error}"]
    except Exception as error:
        return [f"family: {type(error).__name__}: {error} (taking it up again)"]


def _check_append(site: Path, acknowledged: bool) -> Iterator[str]:
    yield from _check_log(site, acknowledged, child.log_entries(), child.OLD)
    log = Log.open(site, child.ORIGIN, child.seed_key(0), _vkey())
    if log.size == child.OLD:
        log.append(child.log_entries()[child.OLD :])
    yield from _check_log(site, True, child.log_entries(), child.OLD)


def _check_recovery(site: Path, _: bool) -> Iterator[str]:
    yield from _check_log(site, False, child.log_entries()[: child.OLD], child.OLD)
    yield from _check_append(site, False)


def _check_log(site: Path, acknowledged: bool, wanted: list[bytes], old: int) -> Iterator[str]:
    """A reader finds the old log or the new one; so does a writer, after whom nothing is left to find."""
    key = child.seed_key(0)
    for who in (None, key, None):
        log = Log.open(site, child.ORIGIN, who, _vkey())
        entries = list(log.entries())
        if log.size not in (old, len(wanted)):
            yield f"between: {log.size} entries"
        if acknowledged and log.size < len(wanted):
            yield f"lost: {len(wanted) - log.size} entries"
        if len(set(entries)) != len(entries):
            yield "twice: an entry"
        if entries != wanted[: log.size]:
            yield "corrupt: other entries"
    yield from _check_independently(site, log.size)
    if len(wanted) == log.size and log.root != _root(wanted):
        yield "elsewhere: another root"


def _check_independently(folder: Path, size: int) -> Iterator[str]:
    report = Report()
    view = read_log(folder, report)
    for failure in report.failures:
        yield f"corrupt: {failure}"
    if not view.complete or len(view.entries) != size:
        yield f"corrupt: the independent checker reads {len(view.entries)} entries"


def _root(entries: list[bytes]) -> bytes:
    return Tree(leaf_hash(entry) for entry in entries).root()


def _check_checkpoint(site: Path, acknowledged: bool) -> Iterator[str]:
    folder = RunFolder(site)
    versions: list[int] = []
    for number, file in enumerate((folder.weights_file(child.ROUND), folder.outer_file(child.ROUND))):
        found = [v for v in (1, 2) if file.read_bytes() == _checkpoint_bytes(v)[number]]
        if not found:
            yield f"between: {file.name}"
        versions += found
    if acknowledged and versions != [2, 2]:
        yield f"lost: version 2, found {versions}"
    if versions == [1, 2]:
        yield "between: the outer state is newer than the weights"
    folder.remove_temporaries()
    child.put_checkpoint(site, 2)
    after = {path.name: path.read_bytes() for path in (site / "checkpoints").iterdir()}
    names = (folder.weights_file(child.ROUND).name, folder.outer_file(child.ROUND).name)
    if after != dict(zip(names, _checkpoint_bytes(2), strict=True)):
        yield f"elsewhere: {sorted(after)}"


def _checkpoint_bytes(version: int) -> tuple[bytes, bytes]:
    weights, outer = child.checkpoint_arrays(version)
    return safetensors_bytes(weights), arrays_to_bytes(outer)


def _check_ledger(site: Path, acknowledged: bool) -> Iterator[str]:
    """As the log's, but that the journal may complete what was not acknowledged."""
    before = read_log(site / "log", Report()).entries
    if len(before) not in (2, 4):
        yield f"between: {len(before)} entries"
    if acknowledged and len(before) != 4:
        yield f"lost: {4 - len(before)} entries"
    sealed = child.enrolments(site)
    ledger = child.open_ledger_at(site)
    if len(ledger.records()) == 2:
        ledger.append(sealed[1:])
    if len(ledger.state.members) != 3:
        yield f"elsewhere: the state has {len(ledger.state.members)} members"
    yield from _check_independently(site / "log", 4)
    if read_log(site / "log", Report()).entries != (before[0], *(data for _, data in sealed)):
        yield "elsewhere: other entries"


def _check_cosign(site: Path, acknowledged: bool) -> Iterator[str]:
    """The head is the same one, with its cosignature or still without."""
    log = child.cosignable_log(site)
    if log.cosigned not in (log.checkpoint, child.cosigned_note(log)):
        yield "between: another note"
    if acknowledged and log.cosigned == log.checkpoint:
        yield "lost: the cosignature"
    log.put_cosigned(child.cosigned_note(log))
    if child.cosignable_log(site).cosigned != child.cosigned_note(log):
        yield "elsewhere: another note"
    yield from _check_independently(site, log.size)


def _check_witness(site: Path, acknowledged: bool) -> Iterator[str]:
    """A witness remembers what it cosigned; asked again, it cosigns the same head, and sees no fork."""
    newest = child.witness_at(site).newest(child.ORIGIN)
    size = newest.checkpoint.size if newest else 0
    if size not in (2, 3):
        yield f"between: size {size}"
    if acknowledged and size != 3:
        yield f"lost: the head of size 3, found {size}"
    status, _, body = child.witness_at(site).handle("POST", "add-checkpoint", child.add_request(size, 3))
    if status != 200:
        yield f"elsewhere: {status} {body.decode()}"
    if any(path.is_file() for path in (site / "forks").rglob("*")):
        yield "elsewhere: it sees a fork"


def _check_commit(site: Path, acknowledged: bool) -> Iterator[str]:
    vault = Vault(site)
    found = vault.committed(child.TURN)
    if found not in (None, child.committed()):
        yield "between: other answers"
    if acknowledged and found is None:
        yield "lost: the answers"
    vault.commit(child.TURN, child.committed())
    if vault.committed(child.TURN) != child.committed() or list(site.rglob(".*")):
        yield f"elsewhere: {[path.name for path in site.rglob('.*')]}"


def _check_key(site: Path, acknowledged: bool) -> Iterator[str]:
    path = site / "keys" / "secret"
    if acknowledged and not path.exists():
        yield "lost: the key"
    if not path.exists():
        child.seed_key(9).save(path)
    if PrivateKey.load(path).public != child.seed_key(9).public:
        yield "corrupt: another key"
    for other in path.parent.iterdir():
        if other.stat().st_mode & 0o077:
            yield f"corrupt: {other.name} may be read by others"


def _vkey() -> str:
    return vkey(child.ORIGIN, child.seed_key(0).public)


_CHECKS: dict[str, Callable[[Path, bool], Iterator[str]]] = {
    "append": _check_append,
    "recovery": _check_recovery,
    "checkpoint": _check_checkpoint,
    "ledger": _check_ledger,
    "cosign": _check_cosign,
    "witness": _check_witness,
    "commit": _check_commit,
    "key": _check_key,
}
