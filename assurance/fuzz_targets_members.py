"""What a run's coordinator tells its members, with hostile content, for fuzz_targets.py.

Owns manifests, opens and audits as members take them, up to the work itself, which is left out: what it
costs is for the one who asks for it to say. Needs torch. Does not own the table, nor what members tell the
coordinator (fuzz_targets_rules.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from assurance.fuzz_targets import Parser, canon, target
from verification import encoding, sealing
from verification.errors import FormatError


@cache
def _world() -> Any:
    """A tiny run, created and not trained, with its members."""
    import tempfile

    from model.numerics import THREADS, prepare

    prepare("exact", THREADS)  # before anything imports torch
    from tests.pipeline.tiny_world import world

    return world(Path(tempfile.mkdtemp(prefix="barnraise-fuzz-world-")))


class ComputingError(Exception):
    """All was taken, and the work would begin."""


def _sealed_open(data: bytes) -> bytes:
    """An open of any content, signed by the run's coordinator."""
    from verification.envelope import seal

    value = encoding.parse_canonical(data)
    if not isinstance(value, dict):
        raise FormatError("not an object")
    run = value.get("run")
    digest = encoding.digest_hex(run) if isinstance(run, str) else "0" * 64
    return seal("barnraise:round-open:v1", value, "run", digest, _world().key)


def _begin_work(*_: Any) -> Any:
    """In the place of the work itself."""
    raise ComputingError


@target("told to a member: open", json=True, wrap=_sealed_open, share=0.9, small=0.03)
def _open(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """An open that a contributor is to work on, by the rightful coordinator."""
    del folder
    here = _world()
    contributor, checkpoint = here.c0, here.checkpoint
    contributor.compute = _begin_work

    def commit(data: bytes) -> None:
        try:
            contributor.commit(data, checkpoint)
        except ComputingError:
            return

    return [commit], [canon(sealing.predicate(here.open()))]


@target(
    "told to a member: manifest", json=True, share=0.1, small=0.01, why="a private folder is made for each"
)
def _manifest(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A manifest that a member is to begin a run by."""
    from pipeline.contributor import Contributor
    from pipeline.member import Place

    here = _world()
    count = iter(range(1 << 62))

    def begin(data: bytes) -> None:
        vault = folder / f"vault{next(count)}"
        try:
            member = Contributor("c0", "op-c0", data, Place(vault, here.folder.data))
            member.missing_files()
        finally:
            shutil.rmtree(vault, ignore_errors=True)

    return [begin], [canon(sealing.predicate(here.manifest))]


@target("told to a member: segments", json=True, share=0.2, small=0.03)
def _segments(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """Which leaves a contributor is to open, and which segments an auditor is to look into."""
    from tests.pipeline.segment_world import segment_world

    _world()
    here = segment_world(folder)
    open_, checkpoint = here.sealed(here.open()), here.checkpoint
    reveal, _ = here.revealed(here.open(), here.c0.commit(open_, checkpoint))
    state = here.c0.serve_state(0)
    asked: list[list[int]] = [[0, 2], [1], [3], [0, 1, 3]]
    traces = [here.c0.serve_trace(0, here.drawn(here.open(), segments), checkpoint) for segments in asked]
    here.c0.work = _begin_work  # type: ignore[method-assign, assignment]
    here.a0.compute = _begin_work  # type: ignore[method-assign, assignment]

    def tell(data: bytes) -> None:
        value = encoding.parse_canonical(data)
        if (
            not isinstance(value, dict)
            or set(value) != {"draw", "segments"}
            or type(value["draw"]) is not str
        ):
            raise FormatError("not a case of this target")
        here.c0.serve_trace(0, value["draw"].encode(), checkpoint)
        trace = traces[asked.index(value["segments"])] if value["segments"] in asked else traces[0]
        try:
            here.a0.audit(open_, 0, 1, value["draw"].encode(), reveal, checkpoint, state, trace)
        except ComputingError:
            return

    draws = [here.drawn(here.open(), segments).decode() for segments in asked]
    return [tell], [canon({"draw": draw, "segments": s}) for draw, s in zip(draws, asked, strict=True)]


@target("told to a member: verdicts", json=True, share=0.2, small=0.03)
def _verdicts(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """What a contributor is shown of two verdicts against its work, signed by an auditor of its open."""
    from dataclasses import replace

    from tests.pipeline.segment_world import segment_world
    from verification.envelope import seal
    from verification.judge import Recomputed
    from verification.records import Verdict

    _world()
    here = segment_world(folder)
    open_, checkpoint = here.sealed(here.open()), here.checkpoint
    reveal, _ = here.revealed(here.open(), here.c0.commit(open_, checkpoint))
    state, segments = here.c0.serve_state(0), [0, 1, 2, 3]
    nothing = "blake3:" + "7" * 64
    leaves = ("sha256:" + "7" * 64,) * 5
    here.a0.compute = lambda *_: Recomputed(nothing, nothing, leaves, 5, 5)  # type: ignore[method-assign, assignment]
    told = here.a0.audit(open_, 0, 1, here.drawn(here.open(), segments), reveal, checkpoint, state, None)
    first = sealing.open_record(Verdict, told, here.a0.key.public)
    both = [sealing.predicate(replace(first, look=look)) for look in (1, 2)]

    def tell(data: bytes) -> None:
        value = encoding.parse_canonical(data)
        if not isinstance(value, list):
            raise FormatError("not a case of this target")
        run = first.run.removeprefix("sha256:")
        shown = [
            seal("barnraise:verdict:v1", each, "run", run, here.a0.key) if isinstance(each, dict) else each
            for each in value
        ]
        here.c0.appeal(0, shown)

    return [tell], [canon(both)]
