"""A run from outside: make its folder, put the people together, turn after turn, take it up again.

Owns assembly and the private home of the coordinator's secrets. With cli.py the only module of pipeline
that knows cluster. Does not own the turn (coordinator.py) or what people see (monitor.py).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cluster.metrics import RayMetrics as RayMetrics  # noqa: PLC0414 - for commands
from cluster.pool import LocalPool, Pool, Seat
from cluster.wandb_nodes import NodeRecorders as NodeRecorders  # noqa: PLC0414 - for commands
from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest
from data_prep.prepare import prepare as prepare_data
from model.arrays import Arrays, arrays_digest
from model.hidden_state import zero_state
from model.init import array_specs, initial_weights
from model.local_steps import evaluate
from model.numerics import THREADS, environment
from model.numerics import prepare as prepare_numerics
from pipeline.beacon_client import BeaconClient, check_wanted, keep_address, kept_address, read_beacon
from pipeline.checkpoint import Aggregator
from pipeline.compression import Codec
from pipeline.config import Config, config_from_manifest, manifest_config
from pipeline.coordinator import Coordinator
from pipeline.crew import Crew
from pipeline.desk import Desk
from pipeline.folder import PARTS, RunFolder, member_folder
from pipeline.hiring import Hiring
from pipeline.identities import pending_revocations
from pipeline.ledger import Ledger
from pipeline.lineage import Lineage, replayed
from pipeline.muster import Hire, Muster
from pipeline.records_table import write_contributions
from pipeline.roster import Basis, MemberSpec, Role, first_members, put_drill
from pipeline.shelf import Shelf
from pipeline.source import software_versions, source_digest
from pipeline.told import ToldFiles
from pipeline.witnessing import Enlisted, Notary, NoWitnesses, Witnesses, check_draw_fits
from pipeline.work import Job
from verification.beacon import check_key
from verification.durable import disk_is_full, fsync_folder, make_folder, storage_error, write_atomic
from verification.encoding import canonical_json, digest_hex, sha256_digest, to_json
from verification.errors import BarnraiseError, StorageError, UsageError
from verification.folder_lock import lock_folder
from verification.keys import PrivateKey
from verification.lottery import HashChain
from verification.notes import vkey
from verification.records import (
    PROTOCOL,
    Base,
    DrawChain,
    Manifest,
    RoundClose,
    Witnessing,
)
from verification.sealing import parse_predicate
from verification.state import RunState
from verification.witnessing import check_witnessing

Tell = Callable[[str], None]
Usage = Mapping[str, Mapping[str, object]]
COORDINATOR_WAIT_S = 5.0


def create_run(
    config: Config,
    folder: RunFolder,
    home: Path,
    tell: Tell,
    drills: Mapping[str, str] | None = None,
    witnesses: Enlisted | None = None,
    beacon: str | None = None,
) -> Manifest:
    """Make a run folder with data, checkpoint 0, manifest and log entry 0: all of it, or nothing.

    Each of `witnesses` is asked for its chain first, and `beacon`, an address, what it is. `drills` says
    which contributors cheat, and how; each is told in its own folder here. A kill can leave a folder
    `.NAME.partial` and secrets of a run that never was; the next start of the same name removes both.
    Raises UsageError when the folder is there already, the data do not fit the configuration, the disk cannot
    hold it, or the beacon cannot be used, ProtocolError when a witness gives no chain.
    """
    check_wanted(beacon, witnessed=witnesses is not None)
    if folder.path.exists() and not (folder.path.is_dir() and not any(folder.path.iterdir())):
        raise UsageError(
            f"{folder.path} exists already",
            hint=f"`barnraise resume {folder.path}` goes on with it; --run names another folder.",
        )
    partial_folder = RunFolder(folder.path.with_name(f".{folder.path.name}.partial"))
    _discard(partial_folder, home)
    try:
        for part in PARTS[:-2]:
            (partial_folder.path / part).mkdir(parents=True)
        (partial_folder.path / "evidence").mkdir()
        start = _Start(config, folder.name, home, drills or {}, witnesses, beacon)
        manifest = _fill(start, partial_folder, tell)
        if folder.path.exists():
            folder.path.rmdir()
        partial_folder.path.rename(folder.path)
        try:
            fsync_folder(folder.path.parent)
        except OSError:
            folder.path.rename(partial_folder.path)
            raise
    except BaseException as error:
        _discard(partial_folder, home)
        if isinstance(error, OSError):
            error = storage_error(Path(error.filename or folder.path), error)
        if isinstance(error, StorageError):
            hint = "Make room, then start it again." if disk_is_full(error) else None
            raise UsageError(
                f"the run could not be started: {error.what}; nothing was kept", got=error.got, hint=hint
            ) from error
        raise
    return manifest


def _discard(partial_folder: RunFolder, home: Path) -> None:
    """Remove an unfinished run folder, and first the secrets that belong to its manifest."""
    if partial_folder.manifest_file.is_file():
        with contextlib.suppress(BarnraiseError):
            private = home / member_folder(partial_folder.parsed_manifest())
            shutil.rmtree(private, ignore_errors=True)
            with contextlib.suppress(OSError):  # it may hold other runs
                private.parent.rmdir()
    shutil.rmtree(partial_folder.path, ignore_errors=True)


@dataclass(frozen=True)
class _Start:
    """What a run is made from."""

    config: Config
    name: str
    home: Path
    drills: Mapping[str, str]
    witnesses: Enlisted | None
    beacon: str | None


def _fill(start: _Start, folder: RunFolder, tell: Tell) -> Manifest:
    config = start.config
    key = PrivateKey.generate()
    chain = HashChain.generate(2 * config.run.rounds * (config.run.max_void + 1) + 2)
    # A witness knows one key by an origin: another start under the same name needs another.
    origin = f"barnraise/{_origin_name(start.name)}/{digest_hex(sha256_digest(key.public.encode()))[:16]}"
    newcomers = config.identity.newcomers
    auditors = tuple(f"a{index:02d}" for index in range(config.audit.auditors + newcomers))
    names = start.witnesses.names if start.witnesses else ()
    slots = len(config.contributors) + newcomers
    segments, pulse = config.most_segments, start.beacon is not None
    check_draw_fits(origin, key, slots, auditors, names, segments=segments, beacon=pulse)
    witnessing = Witnessing(0, ())
    if start.witnesses:
        witnessing = start.witnesses.witnessing(vkey(origin, key.public), chain.length, tell)
    beacon = read_beacon(start.beacon) if start.beacon is not None else None
    dataset = prepare_data(config.data, folder.data, tell)
    (folder.data / "dataset.json").unlink()  # the manifest holds it
    needed = sum(config.train.steps) * config.train.batch
    if dataset.train_windows < needed:
        raise UsageError(
            "the data are too small for one round",
            expected=f"at least {needed} training windows",
            got=dataset.train_windows,
            hint="Use more text, a smaller context, or fewer local steps.",
        )
    tell("initial weights")
    specs = array_specs(config.model)
    weights = initial_weights(config.model, config.run.seed)
    codec = Codec(config.compression.chunk, config.compression.k, sum(spec.size for spec in specs))
    unsigned = Manifest(
        protocol=PROTOCOL,
        name=start.name,
        origin=origin,
        log_vkey=vkey(origin, key.public),
        coordinator=key.public,
        draw_chain=DrawChain(chain.end, chain.length),
        versions=software_versions(),
        source=source_digest(),
        dataset=dataset.to_json(),
        arrays=tuple((spec.name, spec.shape) for spec in specs),
        initial=Base("sha256:" + "0" * 64, "sha256:" + "0" * 64),
        zero_state=arrays_digest(zero_state(specs, config.train.mode)),
        objective="next-token-v1",
        witnessing=witnessing,
        codec=codec.name,
        aggregation="median-clip-weighted-mean-v1",
        config=manifest_config(config),
        beacon=beacon,
    )
    aggregator = Aggregator.of(unsigned.arrays, unsigned.config)
    first = aggregator.start(weights)
    manifest = parse_predicate(Manifest, {**to_json(unsigned), "initial": to_json(aggregator.digests(first))})
    check_witnessing(manifest)
    # The manifest first: by it, what a kill leaves in the private home is found and removed.
    write_atomic(folder.manifest_file, canonical_json(to_json(manifest)))
    _keep_secrets(start.home / member_folder(manifest), key, chain, start)
    folder.put_checkpoint(0, weights, dict(first.outer))
    Ledger.create(folder.log, key, manifest)
    return manifest


def _keep_secrets(private: Path, key: PrivateKey, chain: HashChain, start: _Start) -> None:
    """The coordinator's own things; and who cheats, in each one's own folder, before anything starts."""
    make_folder(private)
    for name in ("coordinator", *start.drills):
        (private / name).mkdir(mode=0o700)
    key.save(private / "coordinator" / "key")
    chain.save(private / "coordinator" / "chain")
    if start.witnesses:
        start.witnesses.keep(private / "coordinator")
    if start.beacon is not None:
        keep_address(private / "coordinator", start.beacon)
    for name, kind in start.drills.items():
        put_drill(private / name, kind)
    fsync_folder(private)


def _origin_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:80] or "run"


@dataclass(frozen=True)
class View:
    """What a run tells as it goes. `turn` gets the close and the seconds the turn took.

    `usage` gets what members use, by machine, before each of these.
    """

    tell: Tell
    turn: Callable[[RoundClose, Coordinator, float], None]
    usage: Callable[[Usage], None] = lambda usage: None


def continue_run(
    folder: RunFolder,
    home: Path,
    view: View,
    *,
    pool: Literal["local", "ray"] = "local",
    address: str | None = None,
    drills: Mapping[str, str] | None = None,
    witnesses: Enlisted | None = None,
) -> Coordinator:
    """Run turns until the log ends with run-close; where the log is in mid-turn, from there.

    `witnesses` replaces those that the run was started with, as far as the way to them goes. Raises
    UsageError when the run is another version's or its secrets are not here, ProtocolError when too many
    turns were void or too few witnesses take part.
    """
    manifest_bytes = folder.manifest()
    manifest = folder.parsed_manifest()
    config = config_from_manifest(manifest.config)
    secrets = home / member_folder(manifest) / "coordinator"
    if not secrets.is_dir():
        raise UsageError(
            f"the secrets of {folder.path} are not under {home}",
            expected=str(secrets),
            hint="Only who started a run can go on with it; --home names another place.",
        )
    try:
        lock_folder(secrets, wait_s=COORDINATOR_WAIT_S)
    except OSError as error:
        raise storage_error(secrets, error) from error
    prepare_numerics(config.run.profile, THREADS)
    ledger = Ledger.open(folder.log, PrivateKey.load(secrets / "key"), manifest_bytes, secrets / "journal")
    members = _make_pool(config, pool, address)
    try:
        basis = Basis(config, manifest_bytes, home, member_folder(manifest), folder.path, drills or {})
        hiring = Hiring(members, partial(_settle, members), basis.spec, secrets / "machines.json")
        specs = hiring.settle(_people(config, ledger.state))
        coordinator = _assemble(folder, config, ledger, secrets, members, witnesses, view.tell, hiring.hire)
        enrolled = bool(coordinator.state.members)
        coordinator.desk.crew.send_files(
            specs, lambda name: (folder.data / name).read_bytes(), enrolled=enrolled
        )
        coordinator.enrol(specs)
        coordinator.publish()
        while coordinator.state.rounds_done < config.run.rounds:
            started = time.monotonic()
            close = coordinator.run_turn()
            view.usage(members.usage())
            view.turn(close, coordinator, time.monotonic() - started)
        coordinator.finish()
        payload_bytes = coordinator.desk.aggregator.codec.payload_bytes
        write_contributions(folder, ledger.each_record(), payload_bytes)
    finally:
        members.close()
    return coordinator


def _make_pool(config: Config, kind: Literal["local", "ray"], address: str | None) -> Pool:
    if kind == "local":
        if config.run.native:
            raise UsageError(
                "members in one process cannot have profiles of their own",
                got=list(config.run.native),
                hint="Leave run.native empty, or use --pool ray.",
            )
        return LocalPool({})
    from cluster.ray_pool import RayPool  # noqa: PLC0415 - a run in one process needs no Ray

    return RayPool({}, environment(config.run.profile), address=address)


def _settle(members: Pool, name: str, factory: Callable[[], object], machine: str | None, role: Role) -> None:
    members.add(name, factory, Seat(machine, role) if machine else None)


def _people(config: Config, state: RunState) -> dict[str, tuple[Role, str | None]]:
    """Everybody who enrolled, or is to: roles, and operators as far as the log has them."""
    if not state.members:
        return {name: (role, None) for name, role in first_members(config).items()}
    return {member.member: (member.role, member.operator) for member in state.members}


def _nobody(room: int) -> Mapping[str, MemberSpec]:
    """No newcomers."""
    del room
    return {}


def _assemble(
    folder: RunFolder,
    config: Config,
    ledger: Ledger,
    secrets: Path,
    members: Pool,
    witnesses: Enlisted | None,
    tell: Tell,
    hire: Hire = _nobody,
) -> Coordinator:
    Shelf(folder, ledger, tell).clean_up()
    aggregator = Aggregator.of(ledger.manifest.arrays, ledger.manifest.config)
    lineage = _lineage(folder, ledger, aggregator)
    dataset = Dataset(folder.data, DatasetManifest.from_json(ledger.manifest.dataset))
    windows = dataset.validation(config.eval.windows)

    def validate(weights: Arrays) -> int:
        return evaluate(config.model, weights, windows, config.train.batch)

    enlisted = witnesses or Enlisted.kept(secrets)
    client: Witnesses = NoWitnesses()
    if enlisted:
        client = enlisted.of_run(ledger.manifest, tell).client(ledger.manifest.log_vkey, tell)
    beacon = ledger.manifest.beacon
    if beacon:
        check_key(beacon)  # and that what checks its pulses is installed
    told = ToldFiles(secrets / "told")
    desk = Desk(
        config,
        folder,
        ledger,
        HashChain.load(secrets / "chain"),
        Crew(members, tell, Job.of(ledger.manifest).state, told),
        Notary(ledger, client, tell, BeaconClient(kept_address(secrets), beacon) if beacon else None),
        partial(pending_revocations, secrets),
        told,
        aggregator,
        dataset,
        validate,
        tell,
    )
    return Coordinator(desk, lineage, Muster(desk, members, hire))


def _lineage(folder: RunFolder, ledger: Ledger, aggregator: Aggregator) -> Lineage:
    """Where the checkpoints stand; StorageError when what is on disk is not what the log says.

    Where audits lag it is worked out from the last firm checkpoint and the payloads after it: of turns that
    wait, and that lost something since, no file holds the checkpoint; and a kill may have come between a
    settlement and its file.
    """
    state = ledger.state
    done = state.rounds_done
    lags = bool(state.config["audit"]["lag"])
    first = ledger.retention.firm if lags else done
    lineage = Lineage(
        aggregator, aggregator.load(folder.checkpoint(first), folder.outer_file(first).read_bytes())
    )
    if lags:
        lineage = replayed(folder, ledger.each_record(), lineage, first)
    found = aggregator.digests(lineage.current)
    if found != state.base:
        raise StorageError(f"checkpoint {done} is not the one in the log", expected=state.base, got=found)
    if lags:
        folder.put_checkpoint(done, aggregator.arrays(lineage.current), dict(lineage.current.outer))
    return lineage
