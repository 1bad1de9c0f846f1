"""Where a simulated run meets the shipped coordinator: how it is made, and taken up from disk.

Owns the one place that knows how pipeline.run puts a coordinator together. Recovery (what a crash left,
the journal, the checks of the last checkpoint) is the shipped one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.manifest import DatasetManifest, ShardEntry
from model.arrays import Arrays, ArraySpec, arrays_digest
from model.hidden_state import zero_state
from pipeline import run
from pipeline.checkpoint import Aggregator
from pipeline.compression import Codec
from pipeline.config import Config, manifest_config, parse_config
from pipeline.coordinator import Coordinator
from pipeline.folder import PARTS, RunFolder
from pipeline.ledger import Ledger
from pipeline.muster import Hire
from pipeline.witnessing import Enlisted
from tests.simulator.setting import Setting
from verification.durable import write_atomic
from verification.encoding import blake3_digest, canonical_json, to_json
from verification.keys import PrivateKey
from verification.lottery import HashChain
from verification.notes import vkey
from verification.records import PROTOCOL, Base, DrawChain, Manifest, Witnessing

ORIGIN = "barnraise/simulated"
# The source is not hashed: a seed tells the same story whatever was changed since.
SOURCE = "sha256:" + "5" * 64
SPECS = (ArraySpec("norm", (8,)), ArraySpec("w", (8, 8)))
DATA = {
    "tokenizer.json": b"{}\n",
    "train-0.arrow": b"no shard, but its bytes are",
    "val-0.arrow": b"nor this",
}


@dataclass(frozen=True)
class Site:
    """Where a run lies. `home` is private."""

    root: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root / "run")

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def secrets(self) -> Path:
        return self.home / "coordinator"


@dataclass(frozen=True)
class Allowed:
    """What the organiser's list says of a name."""

    role: str
    operator: str


def fix_source(patch: pytest.MonkeyPatch, kept: int) -> None:
    """Let members find the manifest's source, and everybody do without a model; `kept` as in Setting."""
    patch.setattr("pipeline.member.source_digest", lambda: SOURCE)
    patch.setattr("pipeline.work.array_specs", lambda model: SPECS)
    patch.setattr("pipeline.contributor.KEPT_BYTES", kept)
    stand_in = SimpleNamespace(validation=lambda windows: windows, batches=no_windows)
    patch.setattr(run, "Dataset", lambda *_: stand_in)
    patch.setattr(run, "evaluate", lambda model, weights, windows, batch: validation_loss(weights))


def no_windows(seed: int, positions: Sequence[int], batch: int) -> npt.NDArray[np.int64]:
    """In the place of an assignment's windows, their positions."""
    del seed
    return np.array(positions, np.int64).reshape(-1, batch, 1)


def validation_loss(weights: Arrays) -> int:
    """Micronats, of a kind."""
    return int(arrays_digest(weights)[-6:], 16)


def create(
    site: Site, setting: Setting, key: PrivateKey, chain_secret: bytes, witnesses: Enlisted | None
) -> bytes:
    """A run folder with entry 0 and checkpoint 0, and the coordinator's secrets; the manifest's bytes."""
    config, folder = parse_config(setting.config, "the simulation"), site.folder
    for part in PARTS:
        (folder.path / part).mkdir(parents=True)
    for name, data in DATA.items():
        (folder.data / name).write_bytes(data)
    (site.secrets).mkdir(parents=True, mode=0o700)
    (site.home / "data").mkdir()
    settings = config.run
    chain = HashChain(chain_secret, 2 * settings.rounds * (settings.max_void + 1) + 2)
    watched = Witnessing(0, ())
    if witnesses:
        watched = witnesses.witnessing(vkey(ORIGIN, key.public), chain.length, lambda line: None)
    unsigned = _manifest(config, key, chain, Base("sha256:" + "0" * 64, "sha256:" + "0" * 64), watched)
    aggregator = Aggregator.of(unsigned.arrays, unsigned.config)
    dice = np.random.Generator(np.random.PCG64(setting.seed))
    weights = {spec.name: dice.standard_normal(spec.shape, np.float32) for spec in SPECS}
    start = aggregator.start(weights)
    manifest = _manifest(config, key, chain, aggregator.digests(start), watched)
    data = canonical_json(to_json(manifest))
    write_atomic(folder.manifest_file, data)
    key.save(site.secrets / "key")
    chain.save(site.secrets / "chain")
    folder.put_checkpoint(0, weights, dict(start.outer))
    Ledger.create(folder.log, key, manifest)
    return data


def _manifest(
    config: Config, key: PrivateKey, chain: HashChain, initial: Base, watched: Witnessing
) -> Manifest:
    def shard(name: str, windows: int) -> ShardEntry:
        return ShardEntry(blake3_digest(DATA[name]), name, windows)

    dataset = DatasetManifest.build(
        context=config.model.context,
        licence={},
        source={"url": "file:/nowhere"},
        tokenizer=blake3_digest(DATA["tokenizer.json"]),
        train=(shard("train-0.arrow", 500),),
        validation=(shard("val-0.arrow", 9),),
        vocab_size=config.model.vocab_size,
    )
    codec = Codec(config.compression.chunk, config.compression.k, sum(spec.size for spec in SPECS))
    return Manifest(
        protocol=PROTOCOL,
        name="simulated",
        origin=ORIGIN,
        log_vkey=vkey(ORIGIN, key.public),
        coordinator=key.public,
        draw_chain=DrawChain(chain.end, chain.length),
        versions={"python": "simulated"},
        source=SOURCE,
        dataset=dataset.to_json(),
        arrays=tuple((spec.name, spec.shape) for spec in SPECS),
        initial=initial,
        zero_state=arrays_digest(zero_state(SPECS, config.train.mode)),
        objective="next-token-v1",
        witnessing=watched,
        codec=codec.name,
        aggregation="median-clip-weighted-mean-v1",
        config=manifest_config(config),
    )


def take_up(
    site: Site,
    setting: Setting,
    members: Any,
    witnesses: Enlisted | None,
    tell: Callable[[str], None],
    first: Mapping[str, Allowed],
    hire: Callable[[Collection[str]], Hire],
) -> Coordinator:
    """The coordinator from what lies on disk, as pipeline.run.continue_run does it; everybody enrolled.

    `first` are those that the run starts with. `hire` is given the names of all that enrolled, and makes what
    hires others: who was on the way is hired anew.
    """
    folder = site.folder
    config = parse_config(setting.config, "the simulation")
    key = PrivateKey.load(site.secrets / "key")
    ledger = Ledger.open(folder.log, key, folder.manifest(), site.secrets / "journal")
    enrolled = bool(ledger.state.members)
    logged = {member.member: Allowed(member.role, member.operator) for member in ledger.state.members}
    allowed = logged or first
    coordinator = run._assemble(folder, config, ledger, site.secrets, members, witnesses, tell, hire(allowed))
    coordinator.desk.crew.send_files(
        allowed, lambda name: (folder.data / name).read_bytes(), enrolled=enrolled
    )
    coordinator.enrol(allowed)
    coordinator.publish()
    return coordinator


def chain_secret(seed: int) -> bytes:
    """The chain's secret of a seed."""
    return hashlib.sha256(f"{seed}/chain".encode()).digest()
