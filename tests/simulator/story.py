"""A story as the checks read it: the log's records by turn, and what was seen outside of the log.

Owns reading the run folder back. Does not own what must hold of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.ledger import read_entries
from pipeline.work import Job
from tests.simulator.network import Place
from tests.simulator.setting import Person
from tests.simulator.work import Falsehood, Workshop
from tests.simulator.world import Played
from verification.encoding import parse_canonical
from verification.judge import Recomputed, differences
from verification.keys import PrivateKey
from verification.log import Log
from verification.lottery import HashChain
from verification.records import (
    CommitClose,
    Commitment,
    Draw,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Manifest,
    Record,
    Reveal,
    RevealClose,
    RoundClose,
    RoundOpen,
    RunClose,
    SecondDraw,
    Served,
    Verdict,
)
from verification.sealing import parse_predicate


@dataclass
class Scene:
    """The records of one turn; `revoked` and `rotated` are members whose keys were since the one before."""

    open: RoundOpen
    revoked: tuple[str, ...] = ()
    rotated: tuple[str, ...] = ()
    commitments: dict[int, Commitment] = field(default_factory=dict)
    commit_close: CommitClose | None = None
    reveals: dict[int, Reveal] = field(default_factory=dict)
    reveal_close: RevealClose | None = None
    draw: Draw | None = None
    served: Served | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    second: SecondDraw | None = None
    close: RoundClose | None = None

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
    refusals: list[str]
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
    rotations = 0
    for record, _ in entries:
        if isinstance(record, Enrol):
            enrolled[record.member] = record
        elif isinstance(record, RunClose):
            end = record
        elif isinstance(record, RoundOpen):
            scenes.append(Scene(record, tuple(revoked), tuple(rotated)))
            revoked.clear()
            rotated.clear()
        elif isinstance(record, KeyRevocation):
            revoked.append(record.member)
        elif isinstance(record, KeyRotation):
            rotations += 1
            rotated.append(record.member)
        elif not isinstance(record, Manifest):
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
        refusals=network.refusals,
        trouble=played.trouble,
        folder=site.folder.path,
        vaults=site.home / "members",
        secrets=list(played.chance.secrets),
        salts=list(played.chance.salts),
        chain=HashChain.load(site.secrets / "chain"),
        shop=played.shop,
        finished=played.finished,
        rotations=rotations,
    )


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
        case Verdict():
            scene.verdicts.append(record)
        case SecondDraw():
            scene.second = record
        case RoundClose():
            scene.close = record


def key_of(played: Played) -> PrivateKey:
    """The coordinator's key."""
    return PrivateKey.load(played.site.secrets / "key")
