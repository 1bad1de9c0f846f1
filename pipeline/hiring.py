"""Which member lives on which machine, and newcomers for seats that are free.

Owns the placement and its file, in the coordinator's private folder: a member's key lies on its machine, so
it is looked for there after a restart too. Does not own what a machine offers or how members get there
(cluster).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from pipeline.roster import MemberSpec, Role, make_member
from verification.durable import present, write_atomic
from verification.errors import StorageError, UsageError
from verification.fields import NAME

ROLES: tuple[Role, ...] = ("contributor", "auditor")
LETTERS: Mapping[str, str] = {"contributor": "c", "auditor": "a"}


class Machine(Protocol):
    """A machine that offers seats, by role; cluster.pool has one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def seats(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def operator(self) -> str | None: ...  # noqa: D102


class Places(Protocol):
    """Where members can live."""

    def machines(self) -> Sequence[Machine]: ...  # noqa: D102


# Makes a member from its specification, on a machine or, when None, anywhere.
Settle = Callable[[str, Callable[[], object], str | None, Role], None]
SpecOf = Callable[[str, Role, str], MemberSpec]  # by name, role and operator


class Hiring:
    """Knows the members' machines. `file` is private and survives a crash of the coordinator."""

    def __init__(self, places: Places, settle: Settle, spec_of: SpecOf, file: Path) -> None:
        self._places = places
        self._settle = settle
        self._spec_of = spec_of
        self._file = file
        self._machine_of: dict[str, str] = _read(file) if present(file) else {}
        self._names: set[str] = set()

    def settle(self, members: Mapping[str, tuple[Role, str | None]]) -> dict[str, MemberSpec]:
        """Give each of `members` (role and, where it is known, operator) its machine; their specifications.

        Raises UsageError when machines offer seats and they are too few.
        """
        machines = self._machines()
        offered = bool(self._places.machines())
        if not offered and any(members[name][1] for name in self._machine_of if name in members):
            raise UsageError(
                "the members of this run live on machines of a cluster, and none is here that offers seats",
                expected=", ".join(sorted(set(self._machine_of.values()))),
                got="nowhere to look for them",
                hint="Go on with --address, as the run was started: `barnraise resume RUN --address auto`.",
            )
        # Newcomers that were on their way when a coordinator ended are hired anew. Who has not enrolled yet
        # has no key to look for, and need not wait for a machine that is gone.
        self._machine_of = {
            name: at
            for name, at in self._machine_of.items()
            if name in members and (members[name][1] or at in machines or not offered)
        }
        self._names = set(members)
        # Who enrolled without a machine goes on living anywhere, whatever machines have come since.
        new = [
            (name, role)
            for name, (role, operator) in members.items()
            if name not in self._machine_of and not operator
        ]
        if offered:
            for role in ROLES:
                self._seat_all([name for name, one in new if one == role], role)
            self._write()
        specs = {}
        for name, (role, operator) in members.items():
            machine = machines.get(self._machine_of.get(name, ""))
            specs[name] = self._add(name, role, operator or (machine.operator if machine else None))
        return specs

    def hire(self, room: int) -> dict[str, MemberSpec]:
        """At most `room` newcomers, for seats that nobody has; contributors first."""
        found: dict[str, MemberSpec] = {}
        for role in ROLES:
            for machine in islice(self._free(role), room - len(found)):
                name = self._next_name(role)
                self._names.add(name)
                self._machine_of[name] = machine.name
                self._write()
                found[name] = self._add(name, role, machine.operator, newcomer=True)
        return found

    def _machines(self) -> dict[str, Machine]:
        """The machines that members can live on: told apart by their names, and of a possible operator."""
        there = self._places.machines()
        often = Counter(machine.name for machine in there)
        return {
            machine.name: machine
            for machine in there
            if often[machine.name] == 1 and (machine.operator is None or NAME.match(machine.operator))
        }

    def _add(self, name: str, role: Role, operator: str | None, *, newcomer: bool = False) -> MemberSpec:
        spec = replace(self._spec_of(name, role, operator or f"op-{name}"), newcomer=newcomer)
        self._settle(name, partial(make_member, spec), self._machine_of.get(name), role)
        return spec

    def _free(self, role: Role) -> Iterator[Machine]:
        """A machine for each seat of a role that is free now, the emptiest machine first."""
        left = {}
        machines = self._machines()
        for name, machine in machines.items():
            taken = sum(
                at == name and member.startswith(LETTERS[role]) for member, at in self._machine_of.items()
            )
            left[name] = machine.seats.get(role, 0) - taken
        while (name := max(left, key=lambda one: (left[one], one), default="")) and left[name] > 0:
            left[name] -= 1
            yield machines[name]

    def _seat_all(self, names: Sequence[str], role: Role) -> None:
        free = list(islice(self._free(role), len(names)))
        if len(free) < len(names):
            raise UsageError(
                f"the cluster has too few seats for {role}s",
                expected=f"{len(names)} more",
                got=len(free),
                hint="Machines join with `ray start --resources`, or the configuration asks for fewer "
                "members. One with another's name, or whose operator is not 1 to 64 of [a-z0-9._-], "
                "does not count.",
            )
        self._machine_of |= {name: machine.name for name, machine in zip(names, free, strict=False)}

    def _next_name(self, role: Role) -> str:
        """The next name of a role: numbers go on where the members' end, and none is used twice."""
        letter = LETTERS[role]
        names = self._names | self._machine_of.keys()
        numbers = [int(name[1:]) for name in names if name[:1] == letter and name[1:].isdecimal()]
        return f"{letter}{max(numbers, default=-1) + 1:02d}"

    def _write(self) -> None:
        write_atomic(self._file, json.dumps(self._machine_of).encode(), mode=0o600)


def _read(file: Path) -> dict[str, str]:
    try:
        value = json.loads(file.read_bytes())
        if not isinstance(value, dict) or not all(type(at) is str for at in value.values()):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise StorageError(
            f"{file} was damaged", hint="Restore the coordinator's private folder from a copy."
        ) from None
    return value
