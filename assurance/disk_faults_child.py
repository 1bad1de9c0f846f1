"""The durable operations that disk_faults.py disturbs, and the process in which strace disturbs them.

Owns what each operation starts from, what it does and what it says when it is done. Does not own faults, nor
what must hold afterwards. `python -S disk_faults_child.py OPERATION FOLDER PATH…`: PATH… becomes sys.path.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a process that is to be traced imports only what its operation needs
    from numpy.typing import NDArray

    from pipeline.ledger import Ledger
    from pipeline.vault import Committed
    from verification.keys import PrivateKey
    from verification.log import Log
    from verification.merkle import Tree
    from verification.records import Record
    from verification.witness import Witness

BEGIN, END = "/barnraise/begin", "/barnraise/end"  # asked for by access(2), so that a trace shows them
ORIGIN = "example.org/disk-faults"
OLD, GROWTH = 254, 3  # entries before and with the append: it fills a bundle and starts the next
ROUND, TURN = 7, 3

Operation = Callable[[], str]
"""Does it once; returns what it acknowledges."""


def main() -> None:
    """Open, warm up on a twin, then do the operation between two marks, and say how it ended."""
    operation, folder = sys.argv[1], Path(sys.argv[2])
    sys.path[:] = sys.argv[3:]
    from verification.errors import BarnraiseError

    OPERATIONS[operation][1](folder / "twin")()
    do = OPERATIONS[operation][1](folder / "site")
    gc.collect()
    gc.disable()
    os.access(BEGIN, os.F_OK)
    try:
        said = f"done {do()}"
    except BarnraiseError as error:
        said = f"refused {type(error).__name__}"
    except BaseException as error:
        said = f"wrong {type(error).__name__}: {error}"
    os.access(END, os.F_OK)
    os.write(1, said.encode())


# --- one append to the log ---


def log_entries() -> list[bytes]:
    """Every entry of the log when all went well."""
    return [b"entry %d " % number + b"x" * (number % 97) for number in range(OLD + GROWTH)]


def prepare_log(folder: Path) -> None:
    """A log of `OLD` entries."""
    from verification.log import Log

    Log.create(folder, ORIGIN, seed_key(0)).append(log_entries()[:OLD])


def open_log(folder: Path) -> Operation:
    """Append the last entries in one step."""
    from verification.log import Log
    from verification.notes import vkey

    log = Log.open(folder, ORIGIN, seed_key(0), vkey(ORIGIN, seed_key(0).public))

    def append() -> str:
        log.append(log_entries()[OLD:])
        return log.root.hex()

    return append


# --- a writer's opening of a log in which an append was cut off ---


def prepare_leftovers(folder: Path) -> None:
    """A log of `OLD` entries with all the bundles and tiles of an append whose checkpoint never came."""
    prepare_log(folder)
    spare = folder.with_name(f"{folder.name}-old")
    shutil.copytree(folder, spare)
    open_log(folder)()
    shutil.copytree(spare, folder, dirs_exist_ok=True)
    shutil.rmtree(spare)
    (folder / ".checkpoint.tmp").write_bytes(b"half of a che")


def open_leftovers(folder: Path) -> Operation:
    """Open it as the writer does, which removes them."""
    from verification.log import Log
    from verification.notes import vkey

    key = seed_key(0)
    name = vkey(ORIGIN, key.public)

    def reopen() -> str:
        return Log.open(folder, ORIGIN, key, name).root.hex()

    return reopen


# --- a training checkpoint ---


def checkpoint_arrays(version: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Weights and outer state, of which no two versions have a byte of numbers in common."""
    import numpy as np

    weights: dict[str, NDArray[Any]] = {
        "a": np.full((40, 50), version, np.float32),
        "b": np.arange(7, dtype=np.float32) + version,
    }
    return weights, {"momentum": np.full(2007, version + 0.5, np.float32)}


def prepare_checkpoint(folder: Path) -> None:
    """A run folder that holds version 1 of the round's checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    put_checkpoint(folder, 1)


def open_checkpoint(folder: Path) -> Operation:
    """Put version 2 in its place."""
    checkpoint_arrays(2)
    return lambda: put_checkpoint(folder, 2)


def put_checkpoint(folder: Path, version: int) -> str:
    """Store one version; returns its name."""
    from pipeline.folder import RunFolder

    weights, outer = checkpoint_arrays(version)
    RunFolder(folder).put_checkpoint(ROUND, weights, outer)
    return f"version {version}"


# --- one append of the coordinator, with its journal ---


def open_ledger_at(folder: Path) -> Ledger:
    """The ledger of a folder with `log/` and the private `journal`."""
    from pipeline.ledger import Ledger

    manifest = (folder / "manifest.json").read_bytes()
    return Ledger.open(folder / "log", coordinator_key(), manifest, folder / "journal")


def coordinator_key() -> PrivateKey:
    """The key that signs the ledger's log: that of tests.verification.fake_run."""
    from hashlib import sha256

    from verification.keys import PrivateKey

    return PrivateKey.from_seed(sha256(b"coordinator").digest())


def enrolments(folder: Path) -> list[tuple[Record, bytes]]:
    """Three members' enrolments, sealed; the first of them is in the ledger from the start."""
    from verification.envelope import open_envelope
    from verification.records import Enrol
    from verification.sealing import verified_record

    found: list[tuple[Record, bytes]] = []
    for number in range(3):
        data = (folder / f"enrolment{number}").read_bytes()
        sealed = open_envelope(data)
        found.append((verified_record(Enrol, sealed, sealed.keyid), data))
    return found


def prepare_ledger(folder: Path) -> None:
    """A ledger of the manifest and one enrolment, with its journal."""
    from pipeline.ledger import Ledger
    from tests.verification import fake_run
    from verification.encoding import canonical_json
    from verification.sealing import predicate, seal_record

    folder.mkdir(parents=True)
    manifest = fake_run.manifest()
    (folder / "manifest.json").write_bytes(canonical_json(predicate(manifest)))
    for number, record in enumerate(fake_run.enrolments(manifest.run_id)[:3]):
        (folder / f"enrolment{number}").write_bytes(seal_record(record, fake_run.key(record.member)))
    Ledger.create(folder / "log", coordinator_key(), manifest)
    open_ledger_at(folder).append(enrolments(folder)[:1])


def open_ledger(folder: Path) -> Operation:
    """Append two enrolments as one step."""
    ledger = open_ledger_at(folder)
    entries = enrolments(folder)[1:]

    def append() -> str:
        ledger.append(entries)
        return str(ledger.checkpoint.root.hex())

    return append


# --- a cosignature put to the head, and a witness that gives one ---

WITNESS = "example.org/witness"


def log_tree(size: int) -> Tree:
    """The tree of the first entries of the witnessed log."""
    from verification.merkle import Tree, leaf_hash

    return Tree(leaf_hash(b"%d" % number) for number in range(size))


def cosignable_log(folder: Path) -> Log:
    """A log of three entries and one witness, open for writing."""
    from verification.log import Log
    from verification.notes import vkey, witness_vkey

    names = (witness_vkey(WITNESS, seed_key(5).public),)
    return Log.open(folder, ORIGIN, seed_key(0), vkey(ORIGIN, seed_key(0).public), names)


def cosigned_note(log: Log) -> str:
    """The log's head with the witness's line."""
    from verification.notes import cosign

    return log.checkpoint + cosign(log.head, WITNESS, seed_key(5), 1_700_000_000)


def prepare_cosign(folder: Path) -> None:
    """A log whose head nobody cosigned."""
    from verification.log import Log
    from verification.notes import witness_vkey

    names = (witness_vkey(WITNESS, seed_key(5).public),)
    Log.create(folder, ORIGIN, seed_key(0), names).append([b"%d" % number for number in range(3)])


def open_cosign(folder: Path) -> Operation:
    """Put the cosignature to it."""
    log = cosignable_log(folder)
    note = cosigned_note(log)

    def put() -> str:
        log.put_cosigned(note)
        return "cosigned"

    return put


def witness_at(folder: Path) -> Witness:
    """A witness of the log, from what its folder holds."""
    from verification.notes import vkey
    from verification.witness import Witness
    from verification.witness_store import WitnessStore

    logs = [vkey(ORIGIN, seed_key(0).public)]
    return Witness(seed_key(5), WITNESS, WitnessStore(folder), lambda: 1_700_000_000, logs)


def add_request(old: int, size: int) -> bytes:
    """An add-checkpoint request for the witnessed log."""
    from base64 import b64encode

    from verification.notes import Checkpoint, sign_checkpoint

    tree = log_tree(size)
    note = sign_checkpoint(Checkpoint(ORIGIN, size, tree.root()), seed_key(0))
    proof = [b64encode(hashed).decode() for hashed in tree.consistency_proof(old)]
    return "\n".join([f"old {old}", *proof, "", note]).encode()


def prepare_witness(folder: Path) -> None:
    """A witness that cosigned the head of size 2."""
    folder.mkdir(parents=True)
    witness_at(folder).handle("POST", "add-checkpoint", add_request(0, 2))


def open_witness(folder: Path) -> Operation:
    """Cosign the head of size 3."""
    from verification.errors import StorageError

    witness, request = witness_at(folder), add_request(2, 3)

    def add() -> str:
        status, _, body = witness.handle("POST", "add-checkpoint", request)
        if status != 200:
            raise StorageError(f"{status} {body.decode()}")
        return "cosigned"

    return add


# --- a contributor's commit ---


def committed() -> Committed:
    """What a contributor commits to."""
    from pipeline.vault import Committed

    return Committed(b"open", b"commitment" * 50, b"reveal" * 50, "payload", "next state")


def prepare_vault(folder: Path) -> None:
    """A member's folder in which nothing was committed yet."""
    from pipeline.vault import Vault

    Vault(folder)


def open_vault(folder: Path) -> Operation:
    """Make a turn's answers durable."""
    from pipeline.vault import Vault

    vault = Vault(folder)

    def commit() -> str:
        vault.commit(TURN, committed())
        return "committed"

    return commit


# --- a key file ---


def prepare_key(folder: Path) -> None:
    """A home with a place for keys."""
    (folder / "keys").mkdir(parents=True)


def open_key(folder: Path) -> Operation:
    """Create a key file."""
    key = seed_key(9)

    def save() -> str:
        key.save(folder / "keys" / "secret")
        return "saved"

    return save


def seed_key(number: int) -> PrivateKey:
    """A key that is the same every time."""
    from verification.keys import PrivateKey

    return PrivateKey.from_seed(bytes([number]) * 32)


OPERATIONS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Operation]]] = {
    "append": (prepare_log, open_log),
    "recovery": (prepare_leftovers, open_leftovers),
    "checkpoint": (prepare_checkpoint, open_checkpoint),
    "ledger": (prepare_ledger, open_ledger),
    "cosign": (prepare_cosign, open_cosign),
    "witness": (prepare_witness, open_witness),
    "commit": (prepare_vault, open_vault),
    "key": (prepare_key, open_key),
}
"""By name: what lies there before, and the operation, ready to be done."""

if __name__ == "__main__":
    main()
