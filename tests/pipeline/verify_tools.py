"""What the tests of `verify` share: the command, the function, manifests that were signed to do harm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.folder import RunFolder
from pipeline.verify import Answer, VerifyOptions, verify
from tests.pipeline.forger import keys_of
from verification.encoding import canonical_json
from verification.envelope import seal
from verification.log import Log


def check(folder: Path, level: Any = 2, **options: Any) -> Answer:
    return verify(VerifyOptions(folder, level=level, **options), lambda *_: None)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON answer of the command."""
    code = cli.run(["verify", *arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out.strip() else {}


def signed_manifest(run: Path, home: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder as after `create_run`, its manifest changed and signed by its own coordinator."""
    key = keys_of(home, RunFolder(run))["coordinator"]
    value = json.loads((run / "manifest.json").read_bytes())
    change(value)
    shutil.copytree(run, target, ignore=lambda folder, names: ["log"] if Path(folder) == run else [])
    for part in ("payloads", "state", "evidence"):
        shutil.rmtree(target / part)
    (target / "contributions.parquet").unlink()
    for path in (target / "checkpoints").glob("round-0000[1-9]*"):
        path.unlink()
    (target / "manifest.json").write_bytes(canonical_json(value))
    log = Log.create(target / "log", value["origin"], key)
    subject = value["dataset"]["root"].removeprefix("sha256:")
    log.append([seal("barnraise:manifest:v1", value, "dataset", subject, key)])
    return target
