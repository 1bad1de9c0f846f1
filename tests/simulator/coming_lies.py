"""A coordinator that tells a finished story again with a lie about who comes and goes.

Owns which lies there are. One record is dropped, changed or put in, signed anew where the coordinator can,
and nothing that follows is told anew. Level 1 must name the lie itself, not only that heads do not fit.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.simulator.story import Scene, Story, key_of
from tests.simulator.world import Played
from verification.envelope import open_envelope
from verification.fsck import check_run
from verification.identity import IdentityChange
from verification.keys import PrivateKey
from verification.log import Log
from verification.records import PROTOCOL, AuditorEntry, Enrol, Leave, Return, RosterEntry
from verification.sealing import seal_record

NOBODY = PrivateKey.from_seed(b"\x0b" * 32)


@dataclass(frozen=True)
class ComingLie:
    """What is told, the entries that are logged instead, and what level 1 says of it."""

    name: str
    tell: Callable[[], list[bytes]]
    named: str


def lie_about_coming(story: Story, played: Played, target: Path) -> tuple[str, list[str]] | None:
    """(the lie that was told, what the checker missed of it); None where nobody came or went."""
    dice = random.Random(f"coming lie/{played.setting.seed}")
    possible = list(_possible(story, played))
    if not possible:
        return None
    name = dice.choice(sorted({lie.name for lie in possible}))
    lie = dice.choice([lie for lie in possible if lie.name == name])
    shutil.copytree(story.folder, target)
    shutil.rmtree(target / "log")
    manifest = story.manifest
    log = Log.create(target / "log", manifest.origin, key_of(played), manifest.witness_vkeys)
    log.append(lie.tell())
    failures = [f"{f.what} in {f.where}" for f in check_run(target).failures]
    if any(re.search(lie.named, text) for text in failures):
        return name, []
    return name, [f"[lie] {name} is not named, but for {lie.named!r}: {failures[:4]}"]


def _possible(story: Story, played: Played) -> Iterator[ComingLie]:
    at = len(story.first) + 1  # of the next scene's first change, or its open
    away: set[str] = set()
    for scene in story.scenes:
        for offset, (record, _) in enumerate(scene.before):
            yield from _about_change(story, played, scene, record, at + offset)
            if isinstance(record, Leave):
                away.add(record.member)
            elif isinstance(record, Return):
                away.discard(record.member)
        at += len(scene.before)
        yield from _about_open(story, played, scene, away, at)
        at = _after(story, at)


def _after(story: Story, opened: int) -> int:
    """The index of the first change, or of the open, that follows the turn with its open at this index."""
    kinds = ("key-rotation", "key-revocation", "leave", "return", "enrol", "round-open")
    marks = [f"barnraise:{kind}:v1" for kind in kinds]
    return next(
        (n for n in range(opened + 1, len(story.entries)) if _kind(story.entries[n]) in marks),
        len(story.entries),
    )


def _kind(entry: bytes) -> str:
    return open_envelope(entry).predicate_type


def _with(story: Story, at: int, *told: bytes, drop: bool = True) -> Callable[[], list[bytes]]:
    """The log with these entries in the place of the one at `at`, or before it."""
    return lambda: [*story.entries[:at], *told, *story.entries[at + drop :]]


def _where(scene: Scene) -> str:
    """The turn as level 1 calls it."""
    attempt = f" attempt {scene.open.attempt}" if scene.open.attempt else ""
    return re.escape(f"round {scene.open.round}{attempt}")


def _takes_part_otherwise(story: Story, scene: Scene, name: str) -> str:
    if story.enrolled[name].role == "auditor":
        return f"the auditors of {_where(scene)} are wrong"
    return f"the roster of {_where(scene)} (has the wrong|names) slots"


def _last_of(scene: Scene, record: Enrol | IdentityChange) -> bool:
    """Whether nothing else is said of the member before the turn."""
    return [change for change, _ in scene.before if change.member == record.member][-1] is record


def _about_change(
    story: Story, played: Played, scene: Scene, record: Enrol | IdentityChange, at: int
) -> Iterator[ComingLie]:
    name = record.member
    if isinstance(record, Enrol | Leave | Return) and _last_of(scene, record):
        what = {"enrol": "a newcomer's enrolment"}.get(record.kind, f"a {record.kind}")
        yield ComingLie(f"{what} dropped", _with(story, at), _takes_part_otherwise(story, scene, name))
    if not isinstance(record, Leave | Return):
        return
    once_more = {"leave": "is away already", "return": "is not away"}[record.kind]
    again = _with(story, at, story.entries[at], story.entries[at])
    yield ComingLie(
        f"a {record.kind} told twice", again, f"the {record.kind} of {name} is of a member that {once_more}"
    )
    changed: dict[str, Any] = {"turn": record.turn + 1}
    signer = NOBODY
    if isinstance(record, Leave):
        signer = key_of(played)
        forged = seal_record(replace(record, by="coordinator"), NOBODY)
        named = f"the leave of {name} is not signed by the coordinator"
        yield ComingLie("a leave signed by nobody", _with(story, at, forged), named)
        if record.by == "member":
            mine = seal_record(record, key_of(played))
            named = f"the leave of {name} is not signed by the member"
            yield ComingLie("a member's leave signed by the coordinator", _with(story, at, mine), named)
        changed["by"] = "coordinator"
    else:
        mine = seal_record(record, key_of(played))
        named = f"the return of {name} is not signed with its present key"
        yield ComingLie("a return signed by the coordinator", _with(story, at, mine), named)
    kept = seal_record(replace(record, **changed), signer)
    named = f"the turn in the {record.kind} of {name} is wrong"
    yield ComingLie(f"a {record.kind} of another turn", _with(story, at, kept), named)


def _about_open(story: Story, played: Played, scene: Scene, away: set[str], at: int) -> Iterator[ComingLie]:
    """The open stands at `at`."""
    open_, key = scene.open, key_of(played)
    for name in sorted(away):
        member = story.enrolled[name]
        if member.role == "auditor":
            line = AuditorEntry(name, member.key, member.operator, member.numerics_class)
            auditors = sorted(
                (*open_.auditors, line), key=lambda auditor: list(story.enrolled).index(auditor.member)
            )
            told = seal_record(replace(open_, auditors=tuple(auditors)), key)
        else:
            line_before = _last_entry(story, scene, name)
            if line_before is None:
                continue
            roster = sorted((*open_.roster, line_before), key=lambda entry: entry.slot)
            told = seal_record(replace(open_, roster=tuple(roster)), key)
        named = _takes_part_otherwise(story, scene, name)
        yield ComingLie(f"an away {member.role} takes part", _with(story, at, told), named)
    if not open_.turn:
        return
    for name in [e.member for e in (*open_.roster, *open_.auditors)][:1]:
        place = (PROTOCOL, story.manifest.run_id, name, _key(scene, name), open_.turn)
        leave = seal_record(Leave(*place, "coordinator"), key)
        named = _takes_part_otherwise(story, scene, name)
        yield ComingLie("who left takes part", _with(story, at, leave, drop=False), named)
    record = Enrol(PROTOCOL, story.manifest.run_id, "c99", "contributor", "op-c99", NOBODY.public, "sim-a")
    joined = sum(isinstance(r, Enrol) for s in story.scenes[: open_.turn + 1] for r, _ in s.before)
    room = joined < int(story.manifest.config["identity"]["newcomers"])
    named = f"the roster of {_where(scene)} has the wrong slots" if room else "c99 is a newcomer more than"
    name = "a newcomer left off the roster" if room else "a newcomer too many"
    yield ComingLie(name, _with(story, at, seal_record(record, NOBODY), drop=False), named)


def _key(scene: Scene, name: str) -> str:
    return next(e.key for e in (*scene.open.roster, *scene.open.auditors) if e.member == name)


def _last_entry(story: Story, scene: Scene, name: str) -> RosterEntry | None:
    before = story.scenes[: story.scenes.index(scene)]
    found = [entry for other in before for entry in other.open.roster if entry.member == name]
    return found[-1] if found else None
