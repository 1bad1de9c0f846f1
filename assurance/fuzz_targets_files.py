"""Parsers of files beside the log, and sound inputs of each, for fuzz_targets.py.

Owns private files, payloads and arrays, data, configurations and tables. Does not own the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from assurance.fuzz_targets import TYPED, Parser, canon, records, target, text
from verification import encoding
from verification.errors import FormatError
from verification.keys import PrivateKey

# --- private files ---


def _file(folder: Path, name: str, read: Callable[[Path], object], mode: int = 0o600) -> Parser:
    """A parser of a file as one of bytes."""
    path = folder / name
    path.touch(mode)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return parse


@target("chain file")
def _chain(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from verification.lottery import HashChain

    return [_file(folder, "chain", HashChain.load)], [b"barnraise-chain-v1\n" + b"0f" * 32 + b"\n123\n"]


@target("key file")
def _key_file(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    return [_file(folder, "key", PrivateKey.load)], [b"barnraise-ed25519-v1\n" + b"0f" * 32 + b"\n"]


@target("journal", json=True)
def _journal(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from pipeline.ledger import Journal

    class Kept:
        """A log in memory."""

        def __init__(self) -> None:
            self.entries = [b"manifest", b"enrol"]

        @property
        def size(self) -> int:
            return len(self.entries)

        def append(self, entries: Sequence[bytes]) -> None:
            self.entries += entries

        def entry(self, index: int) -> bytes:
            if not 0 <= index < self.size:
                raise FormatError("no such log entry")
            return self.entries[index]

    def finish(path: Path) -> None:
        log: Any = Kept()
        Journal(path).finish(log)

    Journal(folder / "seed").write(2, [b"one", b"two" * 50])
    Journal(folder / "done").write(1, [b"enrol"])
    seeds = [(folder / name).read_bytes() for name in ("seed", "done")]
    return [_file(folder, "journal", finish)], seeds


@target("committed turn", json=True)
def _committed(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from pipeline.vault import Committed, Vault

    vault = Vault(folder)
    vault.commit(4, Committed(b"open", b"commitment", b"reveal", "payload", "next"))
    return [_file(folder, "turns/4.json", lambda path: vault.committed(4))], [
        (folder / "turns/4.json").read_bytes()
    ]


# --- arrays and payloads ---


@target("opened trace")
def _trace(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """What a contributor opens for an audit, of one that committed to it, and of one that did to anything."""
    del folder
    import struct
    from dataclasses import replace
    from types import SimpleNamespace

    import numpy as np

    from model.arrays import ArraySpec, arrays_to_bytes
    from model.hidden_state import midway_specs
    from pipeline.trace import OpenedLeaf, open_trace, read_trace
    from verification.judge import Audit, trace_leaf_hash, trace_root
    from verification.records import Reveal
    from verification.sealing import parse_predicate

    specs = (ArraySpec("a.weight", (2, 3)), ArraySpec("b.weight", (5,)))
    train = SimpleNamespace(trace_every=2, mode="local")
    job: Any = SimpleNamespace(specs=specs, config=SimpleNamespace(train=train))
    weights = {spec.name: np.full(spec.shape, 0.5, np.float32) for spec in specs}
    state = {name: np.zeros(shape, dtype) for name, (dtype, shape) in midway_specs(specs, "local").items()}
    parts = arrays_to_bytes(weights), arrays_to_bytes(state)
    leaves = {1: OpenedLeaf((5_000_000, 4_000_000), *parts), 3: OpenedLeaf((3_000_000,), *parts)}
    steps, audit = 7, Audit((0, 2), "a class")
    digests = [
        leaves[i].digest(min(2 * i + 2, steps)) if i in leaves else f"sha256:{i:064x}" for i in range(5)
    ]
    record = next(record for kind, record in records() if kind == "reveal")
    opening = parse_predicate(Reveal, record).opening
    opening = replace(opening, trace_root=trace_root(digests), trace_leaves=5)
    seed = open_trace(digests, leaves, leaves.__getitem__)

    def read(data: bytes) -> None:
        read_trace(job, opening, steps, audit, data)

    def committed(data: bytes) -> None:
        """Its leaf hashes made those of whatever it opens."""
        hashes, at = bytearray(data[23:183]), 183
        for index, leaf in leaves.items() if len(data) == len(seed) else ():
            losses = struct.unpack_from(f"<{len(leaf.losses)}Q", data, at + 8)
            middle = at + 8 + 8 * len(losses) + 8
            last = middle + len(parts[0]) + 8
            told = OpenedLeaf(losses, data[middle : last - 8], data[last : last + len(parts[1])])
            digest = told.digest(min(2 * index + 2, steps))
            hashes[32 * index : 32 * index + 32] = trace_leaf_hash(digest)
            at = last + len(parts[1])
        root = trace_root([hashes[i : i + 32].hex() for i in range(0, len(hashes), 32)])
        read_trace(job, replace(opening, trace_root=root), steps, audit, data[:23] + hashes + data[183:])

    return [read, committed], [seed]


@target("payload")
def _payload(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    import numpy as np

    from pipeline.compression import Codec

    codecs = [Codec(32, 8, 7), Codec(32, 8, 100), Codec(64, 16, 64)]
    seeds = []
    for number, codec in enumerate(codecs):
        dice = np.random.default_rng(number)
        seeds.append(bytes([number]) + codec.encode(dice.standard_normal(codec.length).astype(np.float32)))
        seeds.append(bytes([number]) + codec.encode(np.zeros(codec.length, np.float32)))

    def decode(data: bytes) -> None:
        codec = codecs[(data[0] if data else 0) % len(codecs)]
        sparse = codec.decode(data[1:])
        sparse.norm()
        sparse.dense(codec.length)

    return [decode], seeds


@target("arrays")
def _arrays(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    import numpy as np

    from model.arrays import arrays_from_bytes, arrays_to_bytes

    arrays: dict[str, Any] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.full(1, 0.5),
        "i": np.full(1, 3, np.int64),
    }
    expected = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    return [lambda data: arrays_from_bytes(data, expected)], [arrays_to_bytes(arrays)]


@target("safetensors")
def _safetensors(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    import numpy as np

    from model.arrays import ArraySpec, arrays_from_safetensors, safetensors_bytes

    specs = [ArraySpec("w", (2, 3)), ArraySpec("b", (4,))]
    arrays = {spec.name: np.ones(spec.shape, np.float32) for spec in specs}
    return [lambda data: arrays_from_safetensors(data, specs)], [safetensors_bytes(arrays)]


# --- data, configuration, tables ---


def _with_root(data: bytes) -> bytes:
    """A data set's manifest with the root that fits the rest."""
    from data_prep.manifest import dataset_root

    value = encoding.parse_canonical(data)
    return canon({**value, "root": dataset_root(value)}) if isinstance(value, dict) else data


@target("dataset manifest", json=True, wrap=_with_root)
def _dataset(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from data_prep.manifest import DATASET_FILE, read_manifest

    digest = "blake3:" + "1" * 64
    shards = [
        {"digest": digest, "file": f"{name}-00000.arrow", "windows": 5} for name in ("train", "validation")
    ]
    value = {
        "context": 16,
        "licence": {"spdx": "MIT"},
        "root": "",
        "source": {"uri": "file:x"},
        "tokenizer": digest,
    }
    value |= {"train": shards[:1], "validation": shards[1:], "vocab_size": 300}
    seed = _with_root(canon(value))
    return [_file(folder, DATASET_FILE, lambda path: read_manifest(path.parent))], [seed]


@target("shard")
def _shard(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    import numpy as np

    from data_prep.shards import WindowReader, write_shards

    seeds = []
    for vocab_size in (300, 1 << 17):
        made = write_shards([np.arange(40) % 300], folder, f"s{vocab_size}", context=3, vocab_size=vocab_size)
        seeds.append((folder / made[0].file).read_bytes())
    (folder / "shard").touch()
    count = iter(range(1 << 62))

    def read(data: bytes) -> None:
        # A mapped file must not change under its reader, so each has a name of its own.
        path = folder / f"shard{next(count)}"
        path.write_bytes(data)
        try:
            reader = WindowReader([path], 3, 300)
            reader.read(range(min(len(reader), 10)))
        finally:
            path.unlink()

    return [read], seeds


@target("tokenizer", json=True, small=0.3)
def _tokenizer(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from data_prep.tokenizer import load_tokenizer, tokenizer_bytes, train_tokenizer

    trained = train_tokenizer(["the cat sat on the mat " * 3], 262)
    seed = json.dumps(json.loads(tokenizer_bytes(trained)), ensure_ascii=False).encode()

    def read(path: Path) -> None:
        load_tokenizer(path).encode("the cat")

    return [_file(folder, "tokenizer.json", read)], [seed]


@target("configuration", longest=1 << 16)
def _configuration(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from pipeline.config import load_config

    own = b'[run]\nrounds = 3\n[model]\npreset = "tiny"\n[train]\nsteps = [3, 2]\n[train.inner]\nlr = 1e-3\n'
    configs = Path(__file__).parent.parent / "configs"
    seeds = [path.read_bytes() for path in sorted(configs.glob("*.toml"))]
    from model.config import PRESETS

    return [_file(folder, "config.toml", load_config)], [
        *seeds,
        own.replace(b"tiny", next(iter(PRESETS)).encode()),
    ]


@target("overrides", longest=TYPED)
def _overrides(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from model.config import PRESETS
    from pipeline.config import parse_config
    from pipeline.options import override

    config = parse_config({"model": {"preset": next(iter(PRESETS))}}, "here")
    seeds = (
        b"--run.rounds\n5",
        b"--train.steps\n3\n2\n--train.inner.lr=1e-3",
        b"--train.steps=[3, 2]",
        b"--run.profile=native",
    )
    return [text(lambda given: override(config, given.split("\n")))], seeds


@cache
def level2_manifest() -> Any:
    """A manifest whose configuration and arrays belong together, as level 2 asks."""
    from model.arrays import arrays_digest
    from model.config import PRESETS
    from model.hidden_state import zero_state
    from model.init import array_specs, initial_weights
    from pipeline.checkpoint import Aggregator
    from pipeline.config import manifest_config, parse_config

    shape = {**PRESETS[next(iter(PRESETS))], "vocab_size": 300, "context": 16, "d_model": 16, "n_layers": 1}
    shape |= {"n_heads": 2, "n_kv_heads": 1, "d_ff": 32}
    values = {
        "model": shape,
        "data": {"vocab_size": 300, "context": 16},
        "compression": {"chunk": 256, "k": 16},
    }
    config = parse_config(values, "here")
    specs = array_specs(config.model)
    value = dict(next(r for kind, r in records() if kind == "manifest"))
    value["config"] = manifest_config(config)
    value["arrays"] = [[spec.name, list(spec.shape)] for spec in specs]
    aggregator = Aggregator.of(value["arrays"], value["config"])
    start = aggregator.start(initial_weights(config.model, config.run.seed))
    digests = aggregator.digests(start)
    value["initial"] = {"weights": digests.weights, "outer": digests.outer}
    value["zero_state"] = arrays_digest(zero_state(specs, config.train.mode))
    value["codec"] = aggregator.codec.name
    return value


@target("table of contributions")
def _table(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.records_table import SCHEMA, read_contributions

    row = {"round": 1, "attempt": 0, "contributor": "c0", "role": "contributor", "tokens": 5, "audited": True}
    table = pa.Table.from_pylist([{**dict.fromkeys(SCHEMA.names), **row}] * 9, schema=SCHEMA)
    pq.write_table(table, folder / "seed", write_statistics=False)
    seed = (folder / "seed").read_bytes()
    return [_file(folder, "table", lambda path: read_contributions(path, 1000))], [seed]
