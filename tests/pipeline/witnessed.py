"""A run with three witnesses in this process, for tests that let them die, lie and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder, member_folder
from tests.pipeline.crash_tools import Site, records
from tests.tiny import WITNESSES, TinyWitnesses, make_run, quiet, run_to_end, tiny_config
from verification.records import Record

ONE, TWO, THREE = WITNESSES
NEVER = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}


@dataclass
class Played:
    """A run that was started with three witnesses."""

    root: Path
    witnesses: TinyWitnesses

    def go(self, tell: Callable[[str], None] = quiet, **more: Any) -> Coordinator:
        return run_to_end(self.root / "run", self.root / "home", tell=tell, witnesses=self.witnesses, **more)

    def records(self) -> list[Record]:
        return records(Site(self.root))

    def receipts(self) -> dict[str, list[Path]]:
        manifest = RunFolder(self.root / "run").parsed_manifest()
        private = self.root / "home" / member_folder(manifest)
        found: dict[str, list[Path]] = {}
        for path in sorted(private.rglob("*.tlog-proof")):
            found.setdefault(path.parents[1].name, []).append(path)
        return found


def start(root: Path, **sections: Any) -> Played:
    witnesses = TinyWitnesses(root / "witnesses")
    make_run(root / "run", root / "home", tiny_config(**sections), witnesses=witnesses)
    return Played(root, witnesses)


def of(kind: type[Any], found: list[Record]) -> list[Any]:
    return [record for record in found if isinstance(record, kind)]


class CutError(Exception):
    """Stands for a kill."""
