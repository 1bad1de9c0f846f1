"""A finished run with everyone's keys, to be told again by tests.pipeline.forger, and what names a lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.folder import RunFolder
from pipeline.verify import Answer, VerifyOptions, verify
from tests.pipeline.forger import Forger, chain_of, keys_of
from tests.tiny import tiny_config, tiny_run
from verification.fsck import check_run
from verification.keys import PrivateKey


def check(folder: Path, level: Any = 2, **options: Any) -> Answer:
    return verify(VerifyOptions(folder, level=level, **options), lambda *_: None)


@dataclass
class Stage:
    """A finished run, and the ways to have it told again."""

    run: Path
    home: Path
    keys: dict[str, PrivateKey]

    def forger(self, target: Path) -> Forger:
        return Forger(self.run, target, self.keys["coordinator"], chain_of(self.home, RunFolder(self.run)))


def stage(folder: Path, kind: str = "lazy", **sections: Any) -> Stage:
    run, home = folder / "run", folder / "home"
    sections.setdefault("audit", {"probation_rounds": 1, "second_look_ppm": 0})
    sections.setdefault("outer", {"momentum": 0.9})
    tiny_run(run, home, tiny_config(**sections), drills={"c03": kind})
    return Stage(run, home, keys_of(home, RunFolder(run)))


def names(answer: Answer) -> list[str]:
    return [f"{f['what']} @ {f['where']}" for f in answer.failures]


def assert_named(answer: Answer, what: str, where: str, *, alone: bool = False) -> None:
    assert not answer.ok
    found = [f for f in answer.failures if re.search(what, f["what"]) and re.search(where, f["where"])]
    assert found, names(answer)
    assert all(f["expected"] or f["got"] for f in found)
    if alone:
        assert len(answer.failures) == 1, names(answer)


def last_close(told: Path) -> dict[str, Any]:
    """The last round-close of a run folder."""
    close = check_run(told).turns[-1].close
    assert close is not None
    return close
