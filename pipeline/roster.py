"""Who takes part, and how each member is made where it lives.

Owns names, operators and folders of a run's members, and the one factory that every pool calls. Does not own
the pools, and says nothing to coordinator or auditors about who is an adversary: that stays in the
member's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.adversaries import ADVERSARIES, adversary
from pipeline.auditor import Auditor
from pipeline.config import Config
from pipeline.contributor import Contributor
from pipeline.member import Member, Place
from verification.durable import write_atomic
from verification.errors import UsageError
from verification.keys import PrivateKey

Role = Literal["contributor", "auditor"]


@dataclass(frozen=True)
class MemberSpec:
    """What a machine must know to make a member. `home` may start with ~, which is that machine's.

    A member that `brings_key` has it there before the run, in the file keys/NAME. A `newcomer` joins a run
    that goes on already: it takes no part before it has read the log.
    """

    role: Role
    name: str
    operator: str
    manifest: bytes
    home: str
    folder: str
    adversary: str | None
    public: str
    brings_key: bool = False
    newcomer: bool = False


def make_member(spec: MemberSpec) -> Member:
    """The member, from its own folder on this machine; made anew after a crash it is the same member."""
    member = _member(spec)
    member.newcomer = spec.newcomer
    return member


def _member(spec: MemberSpec) -> Member:
    home = Path(spec.home).expanduser()
    place = Place(home / spec.folder / spec.name, home / spec.folder / "data")
    if spec.brings_key and not (place.vault / "key").exists():
        PrivateKey.load(home / "keys" / spec.name).save(place.vault / "key")
    if spec.role == "auditor":
        return Auditor(spec.name, spec.operator, spec.manifest, place)
    drill = place.vault / "drill"
    if spec.adversary and not drill.exists():
        put_drill(place.vault, spec.adversary)
    if drill.exists():
        kind = adversary(drill.read_text())
        return kind(spec.name, spec.operator, spec.manifest, place, Path(spec.public))
    return Contributor(spec.name, spec.operator, spec.manifest, place)


def put_drill(vault: Path, kind: str) -> None:
    """Tell a member, in its own folder, that it is an adversary of this kind. Raises StorageError."""
    write_atomic(vault / "drill", kind.encode(), mode=0o600)


@dataclass(frozen=True)
class Basis:
    """What the specifications of a run's members have in common. `drills`: who cheats, and how."""

    config: Config
    manifest: bytes
    home: Path
    folder: str
    public: Path
    drills: Mapping[str, str]

    def spec(self, name: str, role: Role, operator: str) -> MemberSpec:
        """A member's specification. A home under the user's is that user's home on whatever machine."""
        home, own = str(self.home), Path.home()
        if self.home.is_relative_to(own):
            home = str("~" / self.home.relative_to(own))
        return MemberSpec(
            role,
            name,
            operator,
            self.manifest,
            home,
            self.folder,
            self.drills.get(name),
            str(self.public),
            name in self.config.identity.allow,
        )


def first_members(config: Config) -> dict[str, Role]:
    """Names and roles of those that a run starts with, contributors first."""
    return {name: "contributor" if name in config.contributors else "auditor" for name in config.members}


def parse_drills(options: list[str], contributors: int) -> dict[str, str]:
    """`KIND=COUNT` options as contributor name to kind, taken from the last contributors backwards.

    Raises UsageError for an unknown kind or more adversaries than contributors.
    """
    drills: dict[str, str] = {}
    for option in options:
        kind, _, count = option.partition("=")
        if kind not in ADVERSARIES:
            raise UsageError(
                f"no adversary is called {kind!r}", expected=", ".join(sorted(ADVERSARIES)), got=kind
            )
        if not (count or "1").isdecimal() or int(count or "1") < 1:
            raise UsageError(f"--adversary {option} has no count", expected="KIND=COUNT, COUNT of 1 or more")
        for _ in range(int(count or "1")):
            slot = contributors - 1 - len(drills)
            if slot < 0:
                raise UsageError(
                    "more adversaries than contributors", expected=f"at most {contributors}", got=option
                )
            drills[f"c{slot:02d}"] = kind
    return dict(sorted(drills.items()))
