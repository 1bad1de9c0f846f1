"""The smallest run that has every part, for tests: a third of a second a round or less.

Used as `from tests.tiny import ...`. Prepared data are made once per process and copied.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import Config, parse_config
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from pipeline.http_client import Transport
from pipeline.run import View, continue_run, create_run
from pipeline.witness_client import in_process
from pipeline.witnessing import Enlisted
from verification.errors import StorageError
from verification.keys import PrivateKey
from verification.records import RoundClose
from verification.witness import Witness
from verification.witness_store import WitnessStore


@cache
def corpus() -> Path:
    """Forty small documents of a made-up language, the same in every process."""
    folder = Path(tempfile.mkdtemp(prefix="barnraise-corpus-"))
    dice = random.Random(7)
    words = ["".join(dice.choice("abcdefghij") for _ in range(dice.randint(2, 6))) for _ in range(60)]
    for index in range(40):
        text = " ".join(dice.choice(words) for _ in range(300))
        (folder / f"doc{index:02d}.txt").write_text(text)
    return folder


def tiny_config(**sections: Mapping[str, Any]) -> Config:
    """Four contributors, two auditors, three rounds; sections given replace fields one by one."""
    values: dict[str, dict[str, Any]] = {
        "run": {"rounds": 3, "seed": 1},
        "data": {
            "source": f"file:{corpus()}",
            "vocab_size": 300,
            "context": 16,
            "holdout_ppm": 200_000,
        },
        "model": {
            "vocab_size": 300,
            "context": 16,
            "d_model": 16,
            "n_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "d_ff": 32,
            "rope_theta": 10000.0,
            "norm_eps": 1e-5,
            "init_std": 0.02,
        },
        "train": {"steps": [3, 2, 1, 2], "batch": 2, "trace_every": 2},
        "compression": {"chunk": 1024, "k": 64},
        "state": {"every": 2},
        "checkpoint": {"every": 2},
        "eval": {"every": 2, "windows": 4},
        "audit": {"auditors": 2, "probation_rounds": 1},
        "credit": {"vest_rounds": 1},
    }
    for name, fields in sections.items():
        inner = {**values.get(name, {}).get("inner", {}), **fields.get("inner", {})}
        values[name] = {**values.get(name, {}), **fields, **({"inner": inner} if inner else {})}
    return parse_config(values, "the test's configuration")


def quiet(text: str) -> None:
    """A place for notices that a test does not look at."""
    del text


WITNESSES = ("w.example/one", "w.example/two", "w.example/three")


class TinyWitnesses:
    """Three witnesses in this process, two of them required, each with its files under `folder`.

    Those in `dead` do not answer; `asked` notes who was asked for what, and `before` is called with it first.
    """

    def __init__(
        self, folder: Path, required: int = 2, clock: Callable[[], int] = lambda: 1_800_000_000
    ) -> None:
        self._clock = clock
        self.dead: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda name, what: None
        self.witnesses = {name: self._make(folder, name) for name in WITNESSES}
        self.enlisted = Enlisted(
            required, tuple((w.vkey, self._transport(name)) for name, w in self.witnesses.items())
        )

    def _make(self, folder: Path, name: str) -> Witness:
        place = folder / name.rsplit("/", 1)[1]
        if not (place / "key").exists():
            PrivateKey.generate().save(place / "key")
        key = PrivateKey.load(place / "key")
        return Witness(key, name, WitnessStore(place / "store"), self._clock, None)

    def _transport(self, name: str) -> Transport:
        def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            self.asked.append((name, path.rsplit("/", 1)[1]))
            self.before(*self.asked[-1])
            if name in self.dead:
                raise StorageError(f"{name} does not answer")
            return in_process(self.witnesses[name])(method, path, body)

        return ask


def run_to_end(
    folder: Path,
    home: Path,
    *,
    drills: Mapping[str, str] | None = None,
    seen: Callable[[RoundClose], None] | None = None,
    tell: Callable[[str], None] = quiet,
    witnesses: TinyWitnesses | None = None,
) -> Coordinator:
    """Continue a run on LocalPool until it ends."""

    def turn(close: RoundClose, coordinator: Coordinator, seconds: float) -> None:
        del coordinator, seconds
        if seen:
            seen(close)

    enlisted = witnesses.enlisted if witnesses else None
    return continue_run(RunFolder(folder), home, View(tell, turn), drills=drills, witnesses=enlisted)


def make_run(
    folder: Path,
    home: Path,
    config: Config | None = None,
    *,
    witnesses: TinyWitnesses | None = None,
    beacon: str | None = None,
) -> None:
    """Create a run folder, without training."""
    enlisted = witnesses.enlisted if witnesses else None
    create_run(config or tiny_config(), RunFolder(folder), home, quiet, None, enlisted, beacon)


def tiny_run(
    folder: Path, home: Path, config: Config | None = None, *, drills: Mapping[str, str] | None = None
) -> Coordinator:
    """Create a run and train it to its end."""
    make_run(folder, home, config)
    return run_to_end(folder, home, drills=drills)


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a run folder that a test may damage."""
    shutil.copytree(source, target)
    return target
