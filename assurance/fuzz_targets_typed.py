"""Parsers of what organisers and members type or give as files of their own, for fuzz_targets.py.

Owns addresses, sources, drills, policies of a run, documents to train on, exported tokenizers. The options of
a command are tyro's to parse and have no target here. Does not own the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from assurance.fuzz_targets import TYPED, VKEY, Parser, target, text
from assurance.fuzz_targets_witness import WITNESS_VKEY


@target("listen address", longest=TYPED, small=0.2)
def _listen(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from pipeline.witness_server import parse_listen

    return [text(parse_listen)], [b"127.0.0.1:8787", b"[::1]:0", b"host.example:65535"]


@target("witness address", longest=TYPED, small=0.2)
def _connect(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from pipeline.witness_client import connect

    return [text(connect)], [b"http://127.0.0.1:8787/w", b"https://[::1]:1/", b"file:///srv/mail%20box"]


@target("data source", longest=TYPED, small=0.2)
def _source(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from data_prep.corpus import parse_source

    return [text(parse_source)], [b"python-stdlib", b"file:~/texts", b"hub:owner/name:config@main"]


@target("drills", longest=TYPED, small=0.2)
def _drills(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from pipeline.adversaries import ADVERSARIES
    from pipeline.roster import parse_drills

    kinds = sorted(ADVERSARIES)
    seeds = [f"{kind}=2\n{kinds[0]}".encode() for kind in kinds]
    return [text(lambda given: parse_drills(given.split("\n"), 8))], seeds


@target("policy of a run", small=0.2)
def _policy(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A witness policy as a run takes it, with the way to each witness."""
    del folder
    from pipeline.witnessing import Enlisted

    rules = f"log {VKEY}\nwitness w {WITNESS_VKEY} http://w.example:8787/prefix\ngroup g any w\nquorum g\n"
    return [Enlisted.by_policy], [rules.encode()]


@target("documents: text and rows", share=0.7, small=0.2)
def _documents(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A file to train on; its first byte says of which kind."""
    from data_prep.corpus import FileSource, documents

    files = [FileSource(folder / f"documents{suffix}") for suffix in (".txt", ".jsonl")]

    def read(data: bytes) -> None:
        source = files[(data[0] if data else 0) % len(files)]
        source.path.write_bytes(data[1:])
        list(documents(source))

    rows = b'\x01{"text":"the cat"}\n\n{"id":1,"text":null}\n{"text":"\\u00e9"}'
    return [read], [b"\x00the cat\nsat\n", rows]


@target("documents: parquet", share=0.3, small=0.1)
def _parquet(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_prep.corpus import FileSource, documents

    table = pa.table({"text": ["the cat", None, "é" * 20], "id": [1, 2, 3]})
    pq.write_table(table, folder / "seed", write_statistics=False)
    path = folder / "documents.parquet"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        list(documents(FileSource(path)))

    return [read], [(folder / "seed").read_bytes()]


@target("tokenizer to export", json=True, small=0.2)
def _exported(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """What an export takes over of the tokenizer of a run that others made."""
    del folder
    from model.config import PRESETS, ModelConfig
    from model.export import _tokenizer_config

    model = ModelConfig(**PRESETS[next(iter(PRESETS))])
    seed = json.dumps({"added_tokens": [{"content": "<end>", "id": 0}], "model": {"vocab": {"a": 1}}})
    return [lambda data: json.dumps(_tokenizer_config(model, data))], [seed.encode()]
