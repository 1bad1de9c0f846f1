"""Folders that somebody hands over, whole, with hostile bytes in one of their files, for fuzz_targets.py.

Owns run folders at level 1 and 2 and as `barnraise report`, `receipt` and `witness --cosign` read them, and a
witness's own memory. Does not own the table. A folder lies where the caller says, best in memory; only the
file that an input changes is written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from assurance.fuzz_targets import KEY, ORIGIN, VKEY, Parser, canon, records, sealed, statement, target
from assurance.fuzz_targets_files import level2_manifest
from assurance.fuzz_targets_witness import TIME, WITNESS, WITNESS_NAME, WITNESS_VKEY, cosigned
from verification import encoding, notes
from verification.errors import FormatError


def one_file(folder: Path, names: Iterable[str], read: Callable[[], object]) -> tuple[Parser, list[bytes]]:
    """One file of a folder replaced: the first byte says which, the rest is its content; and sound inputs."""
    files = [folder / name for name in names]
    kept = [path.read_bytes() for path in files]

    def parse(data: bytes) -> None:
        number = (data[0] if data else 0) % len(files)
        files[number].write_bytes(data[1:])
        try:
            read()
        finally:
            files[number].write_bytes(kept[number])

    return parse, [bytes([number]) + data for number, data in enumerate(kept)]


def _names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


# --- a run folder at level 1 ---


def _small_run(folder: Path) -> Any:
    """A run of one round with a witness, two contributors, one of them caught cheating, and two auditors."""
    from tests.verification.test_fsck_writer import Writer

    class Small(Writer):
        def _manifest(self) -> dict[str, Any]:
            self.members = [m for m in self.members if m[0] in ("ann", "xia", "cid", "yan")]
            return super()._manifest()

    size: dict[str, Any] = {"run__rounds": 1, "train__steps": [4, 6]}
    writer = Small(folder, script={(0, 1): "cheat"}, silent={}, witnesses=["w.example"], **size).run()
    writer.write()
    return writer


def _checker(folder: Path) -> Callable[[], None]:
    """Level 1 of a folder. A signature that held once is not computed again for the very same bytes."""
    from verification import fsck_formats
    from verification.fsck import check_run

    plain = fsck_formats.crypto_sign_open
    known = lru_cache(maxsize=1000)(plain)

    def holds() -> None:
        fsck_formats.crypto_sign_open = known
        try:
            found = check_run(folder)
        finally:
            fsck_formats.crypto_sign_open = plain
        if found.failures:
            raise FormatError(found.failures[0].what)

    return holds


@target("run folder: a record", json=True, share=0.95, small=0.02, why="a whole run is read for each")
def _run_folder(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A whole folder at level 1 with one record replaced, all signed again by whoever would sign it."""
    from tests.verification.test_fsck_bytes import canon as plain
    from tests.verification.test_fsck_bytes import envelope as sign
    from tests.verification.test_fsck_bytes import log_files

    run = folder / "run"
    writer = _small_run(run)
    played = list(writer.records)
    subjects = [("dataset", writer.manifest["dataset"]["root"][7:]), *[writer.run_subject] * len(played)]
    manifest, holds = (run / "manifest.json").read_bytes(), _checker(run)

    def check(data: bytes) -> None:
        value = encoding.parse_canonical(data)
        if not isinstance(value, dict) or set(value) != {"at", "predicate"} or type(value["at"]) is not int:
            raise FormatError("not a case of this target")
        at = value["at"] % len(played)
        kind, _, signer = played[at]
        changed = sign(kind, value["predicate"], signer, subjects[at])
        if len(changed) > 65_535:
            raise FormatError("too long for the log")
        entries = [*writer.entries[:at], changed, *writer.entries[at + 1 :]]
        for name, content in log_files(entries).items():
            (run / name).write_bytes(content)
        if at == 0:
            (run / "manifest.json").write_bytes(plain(value["predicate"]))
        try:
            holds()
        finally:
            if at == 0:
                (run / "manifest.json").write_bytes(manifest)

    return [check], [plain({"at": at, "predicate": record}) for at, (_, record, _) in enumerate(played)]


@target("run folder: a file", share=0.05, small=0.01, why="a whole run is read for each")
def _run_file(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The same folder with any one of its files replaced, as whoever copies it could do."""
    run = folder / "run"
    _small_run(run)
    alike = ("data/t", "payloads/", "checkpoints/")  # only their digests and places are looked at
    names = [name for name in _names(run) if not name.startswith(alike)]
    names += [next(name for name in _names(run) if name.startswith(kind)) for kind in alike]
    parse, seeds = one_file(run, names, _checker(run))
    return [parse], seeds


# --- at level 2 ---


@target("level 2: manifest", json=True, small=0.3)
def _level2(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A manifest that level 1 let through, as level 2 meets it before the first turn."""
    from pipeline.folder import RunFolder
    from pipeline.replay_aggregation import replay_checkpoints
    from verification import fsck_shapes

    (folder / "checkpoints").mkdir()
    with (folder / "checkpoints" / "round-00000.safetensors").open("wb") as file:
        file.truncate(1 << 20)

    def replay(data: bytes) -> None:
        manifest = encoding.parse_canonical(data)
        fsck_shapes.RECORDS["manifest"](manifest, "manifest")
        findings: Any = SimpleNamespace(manifest=manifest, turns=(), complete=True, dropped=None)
        failures: list[Any] = []
        list(replay_checkpoints(RunFolder(folder), findings, failures.append, lambda *_: None))
        if [failure for failure in failures if "initial" in failure.where or "arrays" in failure.where]:
            raise FormatError("does not hold")

    return [replay], [canon(level2_manifest())]


@target("level 2: payload and checkpoints", share=0.05, small=0.02, why="a whole turn is replayed for each")
def _level2_files(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """One turn replayed with another accepted payload, which the log names, or another checkpoint file."""
    import numpy as np

    from model.init import initial_weights
    from pipeline.aggregation import Contribution
    from pipeline.checkpoint import Aggregator
    from pipeline.config import config_from_manifest
    from pipeline.folder import RunFolder
    from pipeline.replay_aggregation import replay_checkpoints

    manifest, run = level2_manifest(), RunFolder(folder)
    for name in ("checkpoints", "payloads"):
        (folder / name).mkdir()
    aggregator = Aggregator.of(manifest["arrays"], manifest["config"])
    config = config_from_manifest(manifest["config"])
    start = aggregator.start(initial_weights(config.model, config.run.seed))
    dice = np.random.default_rng(1)
    payload = aggregator.codec.encode(dice.standard_normal(aggregator.codec.length).astype(np.float32))
    rate = (0.7).hex()
    after = aggregator.step(start, [Contribution(0, 5, payload)], rate)
    for number, checkpoint in enumerate((start, after)):
        run.put_checkpoint(number, aggregator.arrays(checkpoint), dict(checkpoint.outer))
    digests = aggregator.digests(after)
    accepted: dict[str, Any] = {"slot": 0, "tokens": 5, "weight": 5}
    close = {"round": 1, "attempt": 0, "void": False, "accepted": [accepted], "rejected": []}
    close |= {"weights": digests.weights, "outer": digests.outer}
    roster = [{"slot": 0, "operator": "north"}]
    turn = SimpleNamespace(open={"round": 1, "roster": roster, "outer_lr": rate}, close=close)
    findings: Any = SimpleNamespace(manifest=manifest, turns=(turn,), complete=True, dropped=None)
    files = [run.weights_file(0), run.outer_file(0), run.weights_file(1), run.outer_file(1)]
    kept = [path.read_bytes() for path in files]

    def replay(data: bytes) -> None:
        number = (data[0] if data else 0) % (len(files) + 1)
        given = payload if number < len(files) else data[1:]
        accepted["payload"] = encoding.blake3_digest(given)
        path = run.payload_file(accepted["payload"])
        path.write_bytes(given)
        if number < len(files):
            files[number].write_bytes(data[1:])
        failures: list[Any] = []
        try:
            list(replay_checkpoints(run, findings, failures.append, lambda *_: None))
        finally:
            path.unlink()
            if number < len(files):
                files[number].write_bytes(kept[number])
        if failures:
            raise FormatError(failures[0].what)

    return [replay], [bytes([n]) + data for n, data in enumerate([*kept, payload])]


# --- as other commands read them ---


@target("manifest.json: report", json=True, share=0.05, small=0.04, why="a log is opened for each")
def _story(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A run of which only the manifest is logged, rightly signed, as `barnraise report` opens it."""
    from pipeline.folder import RunFolder
    from pipeline.report import read_story
    from tests.verification import test_fsck_bytes as made_up

    (folder / "data").mkdir()
    value = {**level2_manifest(), "log_vkey": made_up.vkey(), "origin": made_up.ORIGIN}
    value["coordinator"] = made_up.key_text("coordinator")
    for name in made_up.log_files([b"entry"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)

    def story(data: bytes) -> None:
        manifest = encoding.parse_canonical(data)
        dataset = manifest.get("dataset") if isinstance(manifest, dict) else None
        root = dataset.get("root") if isinstance(dataset, dict) else None
        if not isinstance(root, str):
            raise FormatError("nothing that a statement can be about")
        (folder / "manifest.json").write_bytes(data)
        entry = made_up.envelope("manifest", manifest, "coordinator", ("dataset", root[7:]))
        for name, content in made_up.log_files([entry]).items():
            (folder / name).write_bytes(content)
        read_story(RunFolder(folder))

    return [story], [canon(value)]


@target("manifest.json: receipt", json=True, share=0.95, small=0.1)
def _manifest(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The few members of a manifest that `barnraise receipt` needs."""
    from pipeline.receipts import manifest_witnesses, read_manifest

    def read(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        manifest_witnesses(read_manifest(folder))

    manifest = next(record for kind, record in records() if kind == "manifest")
    witnesses = {"required": 1, "witnesses": [{"vkey": WITNESS_VKEY}]}
    return [read], [canon(manifest), canon({"witnessing": witnesses})]


@target("round-close for a receipt", json=True, wrap=sealed, small=0.1)
def _find_close(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A log's last entry, as `barnraise receipt` looks for a member in it."""
    del folder
    from pipeline.receipts import find_close

    closes = [record for kind, record in records() if kind == "round-close"]
    members = {row["member"] for close in closes for row in [*close["accepted"], *close["rejected"]]}

    def find(data: bytes) -> None:
        log: Any = SimpleNamespace(size=1, entry=lambda index: data)
        for member in (*sorted(members), "nobody"):
            try:
                find_close(log, member, None)
            except FormatError:
                raise
            except Exception as error:
                if member == "nobody" or type(error).__name__ != "UsageError":
                    raise
            else:
                return

    return [find], [statement("round-close", record, ("run", record["run"])) for record in closes]


@target("folder to cosign", small=0.1)
def _cosign(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A run folder that a witness is to cosign, with one file replaced."""
    from pipeline.witness_service import cosign_folder
    from verification.log import Log
    from verification.witness import Witness
    from verification.witness_store import WitnessStore

    run, store = folder / "run", WitnessStore(folder / "memory")
    Log.create(run / "log", ORIGIN, KEY).append([b"entry", b"", b"x" * 300])
    (run / "manifest.json").write_bytes(canon({"log_vkey": VKEY, "witnessing": {"witnesses": []}}))
    witness = Witness(WITNESS, WITNESS_NAME, store, lambda: TIME, (VKEY,))
    parse, seeds = one_file(run, _names(run), lambda: cosign_folder(witness, store, run))
    return [parse], seeds


@target("memory of a witness", small=0.1)
def _memory(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The files that a witness reads at its start and while it answers, with one of them replaced."""
    from pipeline.witness_service import own_identity
    from verification.witness import Witness
    from verification.witness_store import Shown, WitnessStore, origin_hash

    store = WitnessStore(folder)
    (folder / "name").write_text(f"{WITNESS_NAME}\n")
    WITNESS.save(folder / "key")
    store.pin(ORIGIN, VKEY)
    store.make_chain(ORIGIN, 8)
    store.put_shown(ORIGIN, Shown(1, 1, "0" * 64))
    store.put_newest(ORIGIN, cosigned(notes.Checkpoint(ORIGIN, 1, bytes(32)).text().encode()).decode())
    witness = Witness(WITNESS, WITNESS_NAME, store, lambda: TIME, None)
    assert witness.vkey == WITNESS_VKEY

    def read() -> None:
        own_identity(folder, None)
        store.vkeys()
        store.shown(ORIGIN)
        store.chain(ORIGIN)
        witness.newest(ORIGIN)
        status, _, body = witness.handle("GET", f"{origin_hash(ORIGIN)}/checkpoint", b"")
        if status != 200:
            raise FormatError(f"status {status}: {body[:80]!r}")

    parse, seeds = one_file(folder, _names(folder), read)
    return [parse], seeds
