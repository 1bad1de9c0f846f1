"""Which member lives where: the placement and its file, and seats for newcomers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.pool import Machine
from pipeline.hiring import Hiring
from pipeline.roster import Basis, MemberSpec, Role
from tests.tiny import tiny_config
from verification.errors import StorageError, UsageError

FOUR: dict[str, tuple[Role, str | None]] = {
    "c00": ("contributor", None),
    "c01": ("contributor", None),
    "a00": ("auditor", None),
    "a01": ("auditor", None),
}


@dataclass
class Places:
    there: list[Machine] = field(default_factory=list)
    settled: dict[str, str | None] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)

    def machines(self) -> list[Machine]:
        return self.there

    def settle(self, name: str, factory: Callable[[], object], machine: str | None, role: Role) -> None:
        assert name not in self.settled  # nobody is put in another's place
        self.settled[name], self.roles[name] = machine, role

    def hiring(self, file: Path) -> Hiring:
        self.settled.clear()
        basis = Basis(tiny_config(), b"manifest", Path("/home/x"), "run", Path("/run"), {})
        return Hiring(self, self.settle, basis.spec, file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "machines.json"


def operators(specs: dict[str, MemberSpec]) -> dict[str, str]:
    return {name: spec.operator for name, spec in specs.items()}


def test_members_get_seats_on_the_emptiest_machines(file: Path) -> None:
    places = Places(
        [Machine("m1", {"contributor": 1, "auditor": 2}), Machine("m2", {"contributor": 2}, "acme")]
    )
    specs = places.hiring(file).settle(FOUR)
    assert places.settled == {"c00": "m2", "c01": "m2", "a00": "m1", "a01": "m1"}
    assert places.roles == {name: role for name, (role, _) in FOUR.items()}
    assert operators(specs) == {"c00": "acme", "c01": "acme", "a00": "op-a00", "a01": "op-a01"}
    assert json.loads(file.read_bytes()) == places.settled
    assert file.stat().st_mode & 0o777 == 0o600


def test_where_no_machine_has_seats_members_live_anywhere(file: Path) -> None:
    places = Places()
    specs = places.hiring(file).settle(FOUR)
    assert set(places.settled.values()) == {None}
    assert operators(specs)["c01"] == "op-c01"
    assert not file.exists()


def test_enrolled_members_stay_where_their_keys_are_though_the_machine_is_gone(file: Path) -> None:
    places = Places([Machine("m1", {"contributor": 2, "auditor": 2}, "acme")])
    places.hiring(file).settle(FOUR)
    enrolled = {name: (role, "acme") for name, (role, _) in FOUR.items()}
    places.there = [Machine("m2", {"contributor": 9, "auditor": 9}, "zeta")]
    specs = places.hiring(file).settle(enrolled)
    assert set(places.settled.values()) == {"m1"}
    assert set(operators(specs).values()) == {"acme"}
    places.there = []  # as where a run of a cluster is taken up outside of it
    with pytest.raises(UsageError, match="--address"):
        places.hiring(file).settle(enrolled)


def test_who_has_not_enrolled_goes_where_there_is_a_machine(file: Path) -> None:
    places = Places([Machine("m1", {"contributor": 2, "auditor": 2}, "acme")])
    places.hiring(file).settle(FOUR)
    places.there = []
    places.hiring(file).settle(FOUR)
    assert set(places.settled.values()) == {"m1"}  # it may be back in a moment
    places.there = [Machine("m2", {"contributor": 9, "auditor": 9}, "zeta")]
    specs = places.hiring(file).settle(FOUR)
    assert set(places.settled.values()) == {"m2"}
    assert set(operators(specs).values()) == {"zeta"}


@pytest.mark.parametrize(
    "there",
    [
        [Machine("m1", {"contributor": 1, "auditor": 2})],
        [Machine("m1", {"contributor": 2, "auditor": 1})],
        [Machine("m1", {"auditor": 2})],
        # Seats of machines that cannot be told apart, or of nobody that could enrol, are none.
        [Machine("m1", {"contributor": 2, "auditor": 2}), Machine("m1", {"contributor": 2, "auditor": 2})],
        [Machine("m1", {"contributor": 2, "auditor": 2}, "ACME")],
        [Machine("m1", {"contributor": 2, "auditor": 2}, "x" * 65)],
        [Machine("m1", {"contributor": 2, "auditor": 2}, "two words")],
    ],
)
def test_too_few_seats_are_an_error(file: Path, there: list[Machine]) -> None:
    places = Places(there)
    with pytest.raises(UsageError, match="too few seats"):
        places.hiring(file).settle(FOUR)
    assert not file.exists()


def test_newcomers_take_free_seats_contributors_first(file: Path) -> None:
    places = Places([Machine("m1", {"contributor": 2, "auditor": 2})])
    hiring = places.hiring(file)
    hiring.settle(FOUR)
    assert hiring.hire(5) == {}
    places.there.append(Machine("m2", {"contributor": 1, "auditor": 3}, "acme"))
    assert operators(hiring.hire(2)) == {"c02": "acme", "a02": "acme"}
    assert operators(hiring.hire(0)) == {}
    assert operators(hiring.hire(9)) == {"a03": "acme", "a04": "acme"}
    assert hiring.hire(9) == {}
    assert {places.settled[name] for name in ("c02", "a02", "a03", "a04")} == {"m2"}
    assert json.loads(file.read_bytes()) == places.settled


def test_a_machine_that_lies_about_its_seats_costs_no_more_than_there_is_room(file: Path) -> None:
    places = Places(
        [Machine("m1", {"contributor": 2, "auditor": 2}), Machine("m2", {"contributor": 1 << 62})]
    )
    hiring = places.hiring(file)
    hiring.settle(FOUR)
    assert list(hiring.hire(3)) == ["c02", "c03", "c04"]


def test_no_newcomer_comes_from_a_machine_that_is_not_its_own(file: Path) -> None:
    places = Places([Machine("m1", {"contributor": 2, "auditor": 2})])
    hiring = places.hiring(file)
    hiring.settle(FOUR)
    places.there = [
        *places.there,
        Machine("m2", {"contributor": 1}),
        Machine("m2", {"contributor": 1}, "acme"),
    ]
    places.there += [Machine("m3", {"contributor": 1}, "A")]
    assert hiring.hire(9) == {}


def test_newcomers_names_go_on_where_the_members_end_wherever_these_live(file: Path) -> None:
    places = Places()
    hiring = places.hiring(file)
    many: dict[str, tuple[Role, str | None]] = {f"c{n:02d}": ("contributor", "op") for n in range(100)}
    hiring.settle(
        {**many, "a00": ("auditor", "op"), "cat": ("contributor", "op"), "c": ("contributor", "op")}
    )
    places.there = [Machine("m1", {"contributor": 2, "auditor": 1})]
    assert list(hiring.hire(9)) == ["c100", "c101", "a01"]
    enrolled = {**many, "c100": ("contributor", "op"), "c101": ("contributor", "op")}
    again = places.hiring(file)
    again.settle(enrolled)  # type: ignore[arg-type]
    places.there = [Machine("m2", {"contributor": 1})]
    assert list(again.hire(9)) == ["c102"]


def test_newcomers_that_were_on_their_way_are_hired_anew(file: Path) -> None:
    places = Places([Machine("m1", {"contributor": 2, "auditor": 2})])
    hiring = places.hiring(file)
    hiring.settle(FOUR)
    places.there.append(Machine("m2", {"contributor": 1}))
    assert list(hiring.hire(1)) == ["c02"]
    again = places.hiring(file)
    again.settle({name: (role, f"op-{name}") for name, (role, _) in FOUR.items()})
    assert "c02" not in json.loads(file.read_bytes())
    assert list(again.hire(1)) == ["c02"]
    assert places.settled["c02"] == "m2"


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b'{"c00":3}', b'{"c00":null}', b"[" * 99999, b"\xff"])
def test_a_damaged_placement_is_no_reason_to_move_anybody(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        Places().hiring(file)


seats = st.dictionaries(st.sampled_from(["contributor", "auditor", "other"]), st.integers(-1, 3))


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["m1", "m2", "m3", "m4"]), seats), max_size=4), max_size=5),
    st.integers(0, 4),
)
def test_no_seat_is_given_twice(offers: list[list[tuple[str, Any]]], room: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        places = Places([Machine("m0", {"contributor": 2, "auditor": 2})])
        hiring = places.hiring(Path(folder) / "machines.json")
        hiring.settle(FOUR)
        for offer in offers:
            places.there = [Machine("m0", {"contributor": 2, "auditor": 2})]
            places.there += [Machine(name, seats_) for name, seats_ in offer]
            before = dict(places.settled)
            found = hiring.hire(room)
            assert len(found) <= room
            assert places.settled.keys() == before.keys() | found.keys()
            for machine in places.there:
                for role in ("contributor", "auditor"):
                    mine = [
                        n for n, at in places.settled.items() if (at, places.roles[n]) == (machine.name, role)
                    ]
                    new = [name for name in mine if name in found]
                    assert not new or len(mine) <= machine.seats.get(role, 0)
