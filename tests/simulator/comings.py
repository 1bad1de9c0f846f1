"""Who takes part in each turn, from the records alone, written from docs/protocol.md, sections 4 and 5.

Owns enrolments, leaves and returns: when and by whom each may be, what it means for rosters and lists of
auditors, and that nobody honest is sent away who could be heard, or kept away who is back. Shares nothing
with verification.membership or plans. Does not own credit (accounts.py), audits (draws.py) or start states
(settling.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from tests.simulator.story import Scene, Signed, Story
from verification.identity import IdentityChange
from verification.records import (
    Enrol,
    KeyRevocation,
    KeyRotation,
    Leave,
    Return,
    RoundClose,
    RoundOpen,
)


@dataclass
class Members:
    """Who they are at a point of the log, in its order, each with its present key."""

    enrolled: list[Enrol]
    keys: dict[str, str]
    used: set[str]
    turns: int = 0
    newcomers: int = 0
    away: set[str] = field(default_factory=set)
    out: set[str] = field(default_factory=set)  # in quarantine
    late: set[str] = field(default_factory=set)  # in the last turn
    began: set[str] = field(default_factory=set)  # were in a roster already

    @classmethod
    def of(cls, first: list[Enrol]) -> Members:
        keys = {record.member: record.key for record in first}
        return cls(list(first), keys, set(keys.values()))

    def present(self, role: str) -> list[tuple[int, Enrol]]:
        """Those of a role that are neither away nor in quarantine, with their place among all of it."""
        every = enumerate(record for record in self.enrolled if record.role == role)
        return [(at, one) for at, one in every if one.member not in self.away | self.out]


def members_come_and_go(story: Story) -> list[str]:
    """Rosters and lists name who is there and nobody else; who comes and goes does so as it may."""
    members = Members.of(story.first)
    found = list(_at_first(story))
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            found += [f"before {scene.label}: {text}" for text in _between(story, members, scene.before)]
            found += [f"{scene.label}: {text}" for text in _taking_part(story, members, record)]
            found += [f"{scene.label}: {text}" for text in _kept_out(story, members, scene)]
            members.turns += 1
        else:
            members.out = set(record.quarantined)
            if isinstance(record, RoundClose):
                members.late = {line.member for line in record.rejected if line.reason == "late"}
    return found + [f"at the end: {text}" for text in _between(story, members, story.after)]


def _at_first(story: Story) -> Iterator[str]:
    contributors = sum(record.role == "contributor" for record in story.first)
    if story.scenes and contributors != len(story.manifest.config["train"]["steps"]):
        yield f"{contributors} contributors enrolled before the first turn"


def _between(story: Story, members: Members, changes: Collection[Signed]) -> Iterator[str]:
    """What is wrong with the changes between two turns; `members` is as they leave it."""
    for record, signer in changes:
        text = f"{record.kind} of {record.member}"
        if isinstance(record, Enrol):
            yield from (f"{text}: {what}" for what in _newcomer(story, members, record, signer))
            continue
        name, key = record.member, members.keys.get(record.member)
        by_coordinator = isinstance(record, KeyRevocation | Leave) and record.by == "coordinator"
        if signer != (story.manifest.coordinator if by_coordinator else key):
            yield f"{text} is not signed by whom it says"
        if record.key != key or name in members.out:
            yield f"{text} is of one that is in quarantine, or of another key"
        yield from (f"{text} {what}" for what in _change(story, members, record))


def _newcomer(story: Story, members: Members, record: Enrol, signer: str) -> Iterator[str]:
    members.newcomers += 1
    if members.newcomers > story.manifest.config["identity"]["newcomers"]:
        yield "there is no room for it"
    if signer != record.key or record.key in members.used or record.member in members.keys:
        yield "name or key is not new, or the key did not sign"
    person = story.people.get(record.member)
    told = (record.role, record.operator)
    if person is None or not person.arrives or told != (person.role, person.operator):
        yield f"nobody let it in as {told}"
    if person and person.arrives > members.turns:
        yield "there is no seat for it yet"
    members.enrolled.append(record)
    members.keys[record.member] = record.key
    members.used.add(record.key)


def _change(story: Story, members: Members, record: IdentityChange) -> Iterator[str]:
    name, turn = record.member, members.turns
    honest = name in story.people and story.honest(name)
    if isinstance(record, Leave | Return) and record.turn != turn:
        yield f"is of turn {record.turn}, before turn {turn}"
    if isinstance(record, Leave):
        if name in members.away:
            yield "comes though it is away"
        members.away.add(name)
        if record.by == "member" and honest and (name, turn) not in story.leaving:
            yield "is not what its owner wants"
        if record.by == "coordinator":
            auditor = story.enrolled[name].role == "auditor"
            whys = {why for before, who, why in story.silent if (before, who) == (turn, name)}
            if auditor and story.lag:
                whys &= {"cut off"}  # it may be at work
            if honest and not (whys and (auditor or name in members.late)):
                yield "is the coordinator's, though the member was there"
    elif isinstance(record, Return):
        if name not in members.away:
            yield "comes though it is there"
        members.away.discard(name)
        if honest and (name, turn) not in story.staying:
            yield "is not what its owner wants"
    elif isinstance(record, KeyRotation):
        members.keys[name] = record.new_key
        members.used.add(record.new_key)
    else:
        members.out.add(name)


def _taking_part(story: Story, members: Members, open_: RoundOpen) -> Iterator[str]:
    keys, train = members.keys, story.manifest.config["train"]
    due = [
        (slot, e.member, keys[e.member], e.operator, e.numerics_class)
        for slot, e in members.present("contributor")
    ]
    told = [(e.slot, e.member, e.key, e.operator, e.numerics_class) for e in open_.roster]
    if told != due:
        yield f"in the roster are {told}, not {due}"
    judges = [(e.member, keys[e.member], e.operator, e.numerics_class) for _, e in members.present("auditor")]
    listed = [(e.member, e.key, e.operator, e.numerics_class) for e in open_.auditors]
    if listed != judges:
        yield f"the auditors are {listed}, not {judges}"
    able = {e.member for e in members.enrolled if e.role == "contributor"} - members.out
    if able and not open_.roster:
        yield f"it is opened for nobody, though {sorted(able)} may return"
    for entry in open_.roster:
        newcomer = entry.slot >= len(train["steps"])
        steps = min(train["steps"]) if newcomer else train["steps"][entry.slot]
        fixed = story.manifest.config["timing"]["mode"] == "fixed"
        first = entry.member not in members.began
        if (fixed or first) and entry.steps != steps:
            yield f"{entry.member} begins with {entry.steps} steps, not {steps}"
        if newcomer and first and entry.start_state != story.manifest.zero_state:
            yield f"newcomer {entry.member} does not start from zero"
        members.began.add(entry.member)


def _kept_out(story: Story, members: Members, scene: Scene) -> Iterator[str]:
    """Honest members that were heard before the turn, and are away, or there, against their owners' wish."""
    turn = members.turns
    if not turn:
        return
    for name in members.keys:
        if name not in story.people or not story.honest(name) or name in members.out:
            continue
        if (turn, "identity_changes", name) in story.unheard:
            continue
        wishes = (name, turn) in story.leaving, (name, turn) in story.staying
        newcomer = any(isinstance(r, Enrol) and r.member == name for r, _ in scene.before)
        if name in members.away and wishes == (False, True):
            yield f"honest {name} was heard, and is still away"
        if name not in members.away and wishes == (True, False) and not newcomer:
            yield f"honest {name} was heard, and could not leave"
