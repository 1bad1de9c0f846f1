"""A story as the checks read it: the log's records by turn, and what was seen outside of the log.

Owns reading the run folder back. Does not own what must hold of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.log_reader import read_entries
from pipeline.work import Job
from tests.simulator.network import Place
from tests.simulator.setting import Person
from tests.simulator.work import Falsehood, Traced, Workshop
from tests.simulator.world import Played
from verification.encoding import parse_canonical
from verification.identity import IdentityChange
from verification.judge import Recomputed, differences
from verification.keys import PrivateKey
from verification.log import Log
from verification.lottery import HashChain
from verification.records import (
    Accepted,
    Appeal,
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    FirstLooks,
    KeyRevocation,
    KeyRotation,
    Leave,
    Manifest,
    Overruled,
    Record,
    Rejected,
    Removed,
    Return,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Settlement,
    Verdict,
)
from verification.sealing import parse_predicate

OfAudits = FirstLooks | SecondDraw | Verdict | Appeal | Settlement  # which may come turns later


Signed = tuple[Enrol | IdentityChange, str]  # and the key that signed it


@dataclass
class Scene:
    """The records of one turn.

    `before`: enrolments of newcomers and changes of identity since the turn before, each with the key that
    signed it; `revoked`, `rotated`: the members whose keys were. `digests` are those of the verdicts as they
    were logged, by slot and look.
    """

    open: RoundOpen
    revoked: tuple[str, ...] = ()
    rotated: tuple[str, ...] = ()
    before: tuple[Signed, ...] = ()
    commitments: dict[int, Commitment] = field(default_factory=dict)
    commit_close: CommitClose | None = None
    reveals: dict[int, Reveal] = field(default_factory=dict)
    reveal_close: RevealClose | None = None
    draw: Draw | None = None
    served: Served | None = None
    first_looks: FirstLooks | None = None
    second: SecondDraw | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    digests: dict[tuple[int, int], str] = field(default_factory=dict)
    appeals: dict[int, Appeal] = field(default_factory=dict)
    close: RoundClose | None = None
    settlement: Settlement | None = None

    @property
    def drawn(self) -> dict[int, tuple[str, ...]]:
        """The auditors to ask, by drawn slot."""
        return {item.slot: item.auditors for item in self.draw.drawn} if self.draw else {}

    def of(self, slot: int) -> list[Verdict]:
        """The verdicts on a slot."""
        return [verdict for verdict in self.verdicts if verdict.slot == slot]

    @property
    def segments(self) -> dict[int, tuple[int, ...]]:
        """The segments to look into, by drawn slot."""
        return {item.slot: item.segments for item in self.draw.drawn} if self.draw else {}

    @property
    def label(self) -> str:
        return f"turn {self.open.turn}"


@dataclass
class Story:
    """All that the checks look at; a test may doctor any of it."""

    people: dict[str, Person]
    manifest: Manifest
    entries: list[bytes]
    enrolled: dict[str, Enrol]
    scenes: list[Scene]
    end: RunClose | None
    # seen outside of the log
    notes: list[str]
    written: list[bytes]
    said: dict[Place, set[bytes]]
    opens: dict[int, set[bytes]]
    unheard: dict[tuple[int, str, str], str]
    silent: set[tuple[int, str, str]]  # whom at least one muster before a turn did not hear, and why
    refusals: list[str]
    peeked: list[str]
    ends: list[str]
    told: dict[tuple[str, int, int], set[int]]
    trouble: list[str]
    # on disk
    folder: Path
    vaults: Path
    secrets: list[bytes]
    salts: list[str]
    chain: HashChain
    shop: Workshop
    finished: bool
    rotations: int
    after: tuple[Signed, ...]  # changes of identity that no turn follows
    leaving: set[tuple[str, int]]  # whose owners wanted them away before which turns, at least for a while
    staying: set[tuple[str, int]]  # or there

    @property
    def lag(self) -> int:
        """Turns by which audits lag."""
        return int(self.manifest.config["audit"]["lag"])

    @property
    def ran_out(self) -> bool:
        """Whether the last round is closed: then what waits is settled at once."""
        rounds = sum(not scene.close.void for scene in self.scenes if scene.close)
        return rounds == self.manifest.config["run"]["rounds"]

    @property
    def first(self) -> list[Enrol]:
        """Those that enrolled before the first turn; all others are newcomers."""
        later = {
            record.member for scene in self.scenes for record, _ in scene.before if isinstance(record, Enrol)
        }
        later |= {record.member for record, _ in self.after if isinstance(record, Enrol)}
        return [record for name, record in self.enrolled.items() if name not in later]

    def course(self) -> Iterator[tuple[Scene, RoundOpen | RoundClose | Settlement]]:
        """What changes everybody's standing, with the turn that it is of, in the order due in the log."""
        for number, scene in enumerate(self.scenes):
            yield scene, scene.open
            if scene.close is None:
                continue
            yield scene, scene.close
            last = self.ran_out and scene is self.scenes[-1]
            stop = number + 1 if last else number - self.lag + 1
            due = self.scenes[max(0, number - self.lag) : max(0, stop)]
            for settled in due if self.lag else ():
                if settled.settlement:
                    yield settled, settled.settlement

    def at(self, round_: int, attempt: int) -> Scene:
        """The turn with these numbers."""
        return next(s for s in self.scenes if (s.open.round, s.open.attempt) == (round_, attempt))

    def removed(self, scene: Scene) -> list[Removed]:
        """What any settlement takes out of a turn."""
        place = (scene.open.round, scene.open.attempt)
        told = [item for other in self.scenes if other.settlement for item in other.settlement.removed]
        return [item for item in told if (item.round, item.attempt) == place]

    def accepted(self, scene: Scene) -> list[Accepted]:
        """What is accepted of a turn, as far as the log goes."""
        gone = {item.slot for item in self.removed(scene)}
        return [item for item in scene.close.accepted if item.slot not in gone] if scene.close else []

    def rejected(self, scene: Scene) -> list[Rejected | Removed]:
        """What is not, at the close or later."""
        return [*(scene.close.rejected if scene.close else ()), *self.removed(scene)]

    def over(self, scene: Scene) -> bool:
        """Whether the audits of a turn are settled."""
        return (scene.settlement if self.lag else scene.close) is not None

    def missed(self, scene: Scene) -> set[tuple[int, int, str]]:
        """(slot, look, auditor) of whom was asked and gave no verdict."""
        told = [record for record in (scene.close, scene.settlement) if record]
        return {(item.slot, item.look, item.auditor) for record in told for item in record.missed}

    def overruled(self, scene: Scene) -> list[Overruled]:
        """Auditors of a turn that others did not bear out."""
        return [item for record in (scene.close, scene.settlement) if record for item in record.overruled]

    def honest(self, name: str) -> bool:
        """Whether a member is."""
        return self.people[name].kind is None

    @cached_property
    def job(self) -> Job:
        """What the work of this run is."""
        return self.shop.job(self.manifest.run_id, self.manifest)

    def truth(self, scene: Scene, slot: int) -> Recomputed:
        """What an honest member computes of a slot's assignment."""
        return self.shop.honest(self.job, scene.open.base, scene.open.entry(slot)).claims

    def made(self, scene: Scene, slot: int) -> Traced:
        """What was handed in for a slot."""
        true = self.shop.honest(self.job, scene.open.base, scene.open.entry(slot))
        return self.shop.made.get((scene.open.turn, slot), true)

    def lies(self, scene: Scene, slot: int) -> bool:
        """Whether a revealed opening claims anything but the truth."""
        opening, true = scene.reveals[slot].opening, self.truth(scene, slot)
        return bool(differences(opening, true))

    def segments_of(self, scene: Scene, slot: int) -> int:
        """How many segments an assignment has."""
        return -(-scene.open.entry(slot).steps // int(self.manifest.config["train"]["trace_every"]))

    def admitted(self, scene: Scene, slot: int) -> Falsehood:
        """Where the work of a slot is false, as whoever made it says."""
        return self.shop.false.get((scene.open.turn, slot), Falsehood())

    def shows(self, scene: Scene, slot: int) -> bool:
        """Whether an audit of the segments that were drawn comes upon something false."""
        drawn, count = scene.segments.get(slot, ()), self.segments_of(scene, slot)
        if len(drawn) == count:
            return self.lies(scene, slot)
        return bool(drawn) and self.admitted(scene, slot).shows(drawn, count)


def read(played: Played) -> Story:
    """The story of a seed that was played."""
    site, network, gate = played.site, played.network, played.gate
    manifest = parse_predicate(Manifest, parse_canonical(site.folder.manifest()))
    log = Log.open(site.folder.log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
    entries = list(read_entries(log, manifest))
    enrolled: dict[str, Enrol] = {}
    scenes: list[Scene] = []
    end: RunClose | None = None
    revoked: list[str] = []
    rotated: list[str] = []
    before: list[Signed] = []
    rotations = 0
    for record, data in entries:
        if isinstance(record, Enrol | IdentityChange) and scenes:
            before.append((record, json.loads(data)["signatures"][0]["keyid"]))
        if isinstance(record, Enrol):
            enrolled[record.member] = record
        elif isinstance(record, RunClose):
            end = record
        elif isinstance(record, RoundOpen):
            scenes.append(Scene(record, tuple(revoked), tuple(rotated), tuple(before)))
            before.clear()
            revoked.clear()
            rotated.clear()
        elif isinstance(record, KeyRevocation):
            revoked.append(record.member)
        elif isinstance(record, KeyRotation):
            rotations += 1
            rotated.append(record.member)
        elif isinstance(record, OfAudits):
            scene = _of(scenes, record)
            _place(scene, record)
            if isinstance(record, Verdict):
                scene.digests[record.slot, record.look] = sealed_digest(data)
        elif not isinstance(record, Manifest | Leave | Return):
            _place(scenes[-1], record)
    return Story(
        people=network.people,
        manifest=manifest,
        entries=[data for _, data in entries],
        enrolled=enrolled,
        scenes=scenes,
        end=end,
        notes=[*gate.notes, *network.shown, *played.watch.shown],
        written=list(gate.entries),
        said=network.said,
        opens=network.opens,
        unheard=network.unheard,
        silent=network.silent,
        refusals=network.refusals,
        peeked=network.peeked,
        ends=network.ends,
        told=network.steps.told,
        trouble=played.trouble,
        folder=site.folder.path,
        vaults=site.home / "members",
        secrets=list(played.chance.secrets),
        salts=list(played.chance.salts),
        chain=HashChain.load(site.secrets / "chain"),
        shop=played.shop,
        finished=played.finished,
        rotations=rotations,
        after=tuple(before),
        leaving=played.owners.leaving,
        staying=played.owners.staying,
    )


def sealed_digest(entry: bytes) -> str:
    """What a verdict's seal says of it (section 4, first-looks)."""
    predicate = json.loads(base64.b64decode(json.loads(entry)["payload"]))["predicate"]
    text = json.dumps(predicate, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(b"barnraise/sealed-verdict/v1\0" + text.encode()).hexdigest()


def _of(scenes: list[Scene], record: OfAudits) -> Scene:
    place = (record.round, record.attempt)
    return next(scene for scene in scenes if (scene.open.round, scene.open.attempt) == place)


def _place(scene: Scene, record: Record) -> None:
    match record:
        case Commitment():
            scene.commitments[record.slot] = record
        case CommitClose():
            scene.commit_close = record
        case Reveal():
            scene.reveals[record.slot] = record
        case RevealClose():
            scene.reveal_close = record
        case Draw():
            scene.draw = record
        case Served():
            scene.served = record
        case FirstLooks():
            scene.first_looks = record
        case Verdict():
            scene.verdicts.append(record)
        case SecondDraw():
            scene.second = record
        case Appeal():
            scene.appeals[record.slot] = record
        case RoundClose():
            scene.close = record
        case Settlement():
            scene.settlement = record


def key_of(played: Played) -> PrivateKey:
    """The coordinator's key."""
    return PrivateKey.load(played.site.secrets / "key")
