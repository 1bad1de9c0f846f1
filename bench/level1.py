"""Level 1 of `barnraise verify` on long logs: entries a second on one core, and memory.

The logs are made up by the writer of the checker's own tests, from the specification: properly signed records
of whole turns, payload files beside them. Each size is checked in a process of its own.

    python -m bench.level1 [--entries 2000 10000 50000] [--json] [--profile] [--write]

`--write` keeps the rows in docs/benchmarks/level1.json and puts them as the table into level1.md.
"""

from __future__ import annotations

import argparse
import base64
import cProfile
import gc
import hashlib
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair

from assurance.__main__ import machine
from tests.verification import test_fsck_bytes as made
from tests.verification.test_fsck_state import State
from tests.verification.test_fsck_writer import Writer
from verification.fsck import check_run
from verification.fsck_log import Tree, leaf_hash

SIZES = (2_000, 10_000, 50_000)
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "level1.md"
TABLE_HEAD = (
    "| entries | seconds of CPU | wall seconds | entries a second of CPU | one signature, µs "
    "| entry / signature | peak memory, MiB |\n|---|---|---|---|---|---|---|\n"
)
SMALLEST = 100
"""Entries of the log whose memory is subtracted: interpreter, libraries, one bundle."""


class Long(Writer):
    """A made-up run of any length: chains long enough, a tree that grows instead of being built anew."""

    def __init__(self, folder: Path, entries: int, **over: Any) -> None:
        self.tree = Tree()
        self.wanted = entries
        rounds = entries // 10
        super().__init__(folder, script={}, silent={}, run__rounds=rounds, **over)
        self.chain = lengthened(hashlib.sha256(b"secret").digest(), 2 * rounds + 10)
        self.manifest["draw_chain"] = {"end": "sha256:" + self.chain[-1].hex(), "length": len(self.chain) - 1}

    def root(self) -> bytes:
        while self.tree.size < len(self.entries):
            self.tree.add(leaf_hash(self.entries[self.tree.size]))
        return self.tree.root()

    def head(self, *cosigners: str) -> str:
        assert not cosigners
        text = f"{made.ORIGIN}\n{len(self.entries)}\n{base64.b64encode(self.root()).decode()}\n"
        key_id = hashlib.sha256(made.ORIGIN.encode() + b"\n\x01" + made.public("coordinator")).digest()[:4]
        blob = base64.b64encode(key_id + made.key_of("coordinator").sign(text.encode())).decode()
        return f"{text}\n— {made.ORIGIN} {blob}\n"

    def link_and_seed(self, look: int) -> dict[str, Any]:
        head, root = self.head(), self.root()
        link = self.chain[-1 - (2 * self.turn + look)].hex()
        value = {
            "run": self.run_id, "round": self.round, "attempt": self.attempt, "turn": self.turn, "look": look,
            "head_size": len(self.entries), "head_root": root.hex(), "link": link, "beacon": None,
            "witnesses": [],
        }  # fmt: skip
        shown = {"beacon": None} if look == 1 else {}
        seed = made.dom("barnraise/draw/v1", value)
        return {"head": head, "link": link, "links": [], "seed": seed, **shown}

    def fill(self) -> Path:
        """Whole turns until there are enough entries; the log is not complete, as of a run that goes on."""
        self.run(turns=0)
        while len(self.entries) < self.wanted:
            self.one_turn()
        return self.write_log()

    def write_log(self) -> Path:
        note, entries = self.head(), self.entries
        self.entries = entries[:1]
        folder = State.write(self)  # everything but the log
        self.entries = entries
        shutil.rmtree(folder / "log")
        for name, data in made.log_files(entries, note).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def lengthened(secret: bytes, length: int) -> list[bytes]:
    chain = [secret]
    for _ in range(length):
        chain.append(hashlib.sha256(chain[-1]).digest())
    return chain


def peak_rss_mib() -> float:
    """Of this process alone; what getrusage says begins with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)


def measured(folder: Path, *, profile: bool = False) -> dict[str, Any]:
    """One check in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    gc.set_threshold(50_000, 20, 20)  # as the command does
    profiler = cProfile.Profile()
    wall, cpu = time.perf_counter(), time.process_time()
    if profile:
        profiler.enable()
    found = check_run(folder, turns=lambda turn: None)
    profiler.disable()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert found.failures == (), found.failures[:3]
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    signature_us = one_signature_us()
    return {
        "entries": found.log_size,
        "cpu_s": round(cpu, 3),
        "wall_s": round(wall, 3),
        "entries_per_cpu_s": round(found.log_size / cpu),
        "signature_us": round(signature_us, 1),
        "signatures_per_entry_cost": round(cpu / found.log_size * 1e6 / signature_us, 2),
        "peak_rss_mib": peak_rss_mib(),
    }


def one_signature_us() -> float:
    """CPU time of one check of a signature by libsodium alone, over a message as long as an entry."""
    public, secret = crypto_sign_seed_keypair(bytes(32))
    signed = crypto_sign(bytes(1_100), secret)
    started = time.process_time()
    for _ in range(2_000):
        crypto_sign_open(signed, public)
    return (time.process_time() - started) / 2_000 * 1e6


def in_a_process(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.level1", "--check", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--entries", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        print(json.dumps(measured(given.check)))
        return
    rows = []
    for size in (SMALLEST, *given.entries):
        with tempfile.TemporaryDirectory(prefix="barnraise-level1-") as place:
            folder = Long(Path(place) / "run", size).fill()
            if given.profile and size != SMALLEST:
                measured(folder, profile=True)
            rows.append(in_a_process(folder))
            bundles = folder.glob("log/tile/entries/**/*")
            total = sum(path.stat().st_size for path in bundles if path.is_file())
            rows[-1]["bytes_per_entry"] = round(total / rows[-1]["entries"])
        if not given.json:
            print(rows[-1], flush=True)
    if given.write:
        keep(rows)
    if given.json:
        print(json.dumps({"one_core": True, "rows": rows}, indent=1))


def keep(rows: list[dict[str, Any]]) -> None:
    """The rows as JSON beside the page, and as its table."""
    result = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": rows}
    PAGE.with_suffix(".json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    keys = ("entries", "cpu_s", "wall_s", "entries_per_cpu_s", "signature_us", "signatures_per_entry_cost")
    lines = ["| " + " | ".join(f"{row[key]:,}" for key in (*keys, "peak_rss_mib")) + " |\n" for row in rows]
    before, _, after = PAGE.read_text().partition(TABLE_HEAD)
    while after.startswith("|"):
        after = after.partition("\n")[2]
    PAGE.write_text(before + TABLE_HEAD + "".join(lines) + after)


if __name__ == "__main__":
    main()
