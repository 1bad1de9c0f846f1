"""What a seed decides before anything happens: who takes part, the rules, the weather, who lies.

Owns the distributions. Does not own how any of it is played.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

CHEATS = (
    "false-payload", "false-state", "false-trace", "false-loss", "wrong-field", "equivocate", "silent",
    "other-bytes", "no-state", "impersonate", "steal", "garbage", "bad-payload", "replay", "slow",
    "false-segment", "false-boundary", "planted-state", "other-leaves", "no-trace",
    "fickle-trace", "false-step", "relapse", "launder", "no-appeal", "odd-appeal",
)  # fmt: skip
# Found by some audits only, so there are more of them.
IN_SEGMENTS = ("false-segment", "false-segment", "false-segment", "false-trace", "planted-state")
BAD_JUDGES = (
    "rubber-stamp",
    "accuse",
    "copy",
    "garbage",
    "silent",
    "misplace",
    "stamp",
    "invent",
    "friend",
    "collude",
    "fickle",
)
# Only where audits may go by tolerance.
LAX_CHEATS, LAX_JUDGES = ("false-step",), ("stamp", "invent")
# Only where audits lag.
LATE_CHEATS, LATE_JUDGES = ("relapse", "launder"), ("friend",)
# Only of those that join later: who enrols as it should not.
NEWCOMERS = ("odd-enrolment", "never-ready")
# What disputes are made of.
COURT_CHEATS = ("no-appeal", "odd-appeal", "false-payload", "false-state")
COURT_JUDGES = ("rubber-stamp", "accuse", "copy", "fickle", "silent", "misplace")
BANDS = ("collude", "collude", "collude", "rubber-stamp")
BAD_WITNESSES = ("garbage", "no-link", "mute")
ELSEWHERE = LAX_CHEATS + LAX_JUDGES + LATE_CHEATS + LATE_JUDGES
CLASSES = ("sim-a", "sim-b", "sim-c")


@dataclass(frozen=True)
class Person:
    """A member: `kind` is None for an honest one. `speed` is milliseconds a local step.

    `arrives` is the turn before which there is a seat for it; 0 for those that a run starts with.
    """

    name: str
    role: str
    operator: str
    numerics: str
    kind: str | None
    speed: int
    arrives: int = 0


@dataclass(frozen=True)
class Partition:
    """Members that no call of `verb` (every verb when empty) reaches from turn `first` to `last`."""

    members: frozenset[str]
    first: int
    last: int
    verb: str


@dataclass(frozen=True)
class Weather:
    """Chances of each trouble of the network and of crashes."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    stale: float = 0.0
    member_crash: float = 0.0
    coordinator_crash: float = 0.0
    partitions: tuple[Partition, ...] = ()


@dataclass(frozen=True)
class Setting:
    """Everything that a seed decides. `lie`: the coordinator tells the story again with one lie in it."""

    seed: int
    people: tuple[Person, ...]
    weather: Weather
    config: dict[str, Any] = field(hash=False)
    lie: bool = False
    witnesses: tuple[str | None, ...] = ()  # kinds, None for honest ones
    required: int = 0
    unrest: float = 0.0  # how often an owner changes a key
    kept: int = 1 << 29  # bytes of a trace that a contributor has room for
    restless: float = 0.0  # how often an owner has a member leave, or takes it back

    @property
    def names(self) -> list[str]:
        """Everybody, contributors first."""
        return [person.name for person in self.people]

    @property
    def first(self) -> tuple[Person, ...]:
        """Those that the run starts with."""
        return tuple(person for person in self.people if not person.arrives)

    @property
    def later(self) -> tuple[Person, ...]:
        """Those that may join later."""
        return tuple(person for person in self.people if person.arrives)

    def of_role(self, role: str) -> list[Person]:
        """People of a role."""
        return [person for person in self.people if person.role == role]


def draw(seed: int) -> Setting:
    """The setting of a seed."""
    dice = random.Random(f"setting/{seed}")
    contributors, auditors = dice.randint(2, 6), dice.choice((0, 1, 2, 2, 2, 3, 3, 3))
    people = _people(dice, contributors, auditors)
    weather = _weather(dice, [person.name for person in people])
    config = _config(dice, [dice.randint(1, 6) for _ in range(contributors)], auditors)
    lax = random.Random(f"tolerance/{seed}")
    if lax.random() < 0.35:
        people = tuple(_of_some_class(lax, person) for person in people)
        _allow_tolerance(lax, config)
    late = random.Random(f"lag/{seed}")
    if late.random() < 0.25:
        people = tuple(_of_late_kind(late, person) for person in people)
        _let_audits_lag(late, config)
    court = random.Random(f"court/{seed}")
    if court.random() < 0.35:
        people = _with_a_court(court, people, config)
    lie = dice.random() < 0.3
    count = dice.choice((0, 0, 1, 2, 3))
    witnesses = tuple(dice.choice(BAD_WITNESSES) if dice.random() < 0.2 else None for _ in range(count))
    required = dice.randint(1, count) if count else 0
    unrest = dice.choice((0.0, 0.0, 0.1))
    kept = dice.choice((0, 2000, 1 << 29))
    coming = random.Random(f"coming/{seed}")
    restless = coming.choice((0.0, 0.0, 0.1, 0.3))
    if coming.random() < 0.35:
        people = _with_newcomers(coming, people, config)
        weather = _cutting_off_more(coming, weather, people)
    return Setting(seed, people, weather, config, lie, witnesses, required, unrest, kept, restless)


def _people(dice: random.Random, contributors: int, auditors: int) -> tuple[Person, ...]:
    crooked = dice.choice((0.0, 0.4, 0.7))
    bent = dice.choice((0.0, 0.0, 0.5))
    mixed = dice.random() < 0.15
    few = dice.random() < 0.3
    people = []
    for index in range(contributors + auditors):
        judge = index >= contributors
        name = f"a{index - contributors:02d}" if judge else f"c{index:02d}"
        operator = f"op{dice.randrange(3)}" if few else f"op-{name}"
        numerics = CLASSES[dice.random() < 0.4] if mixed else CLASSES[0]
        kind = None
        if dice.random() < (bent if judge else crooked):
            kinds = BAD_JUDGES if judge else (*CHEATS, *IN_SEGMENTS)
            kind = dice.choice([kind for kind in kinds if kind not in ELSEWHERE])
        role = "auditor" if judge else "contributor"
        people.append(Person(name, role, operator, numerics, kind, dice.randint(20, 400)))
    return tuple(people)


def _of_some_class(dice: random.Random, person: Person) -> Person:
    """The person in a run with tolerances: most auditors are of one class."""
    judge = person.role == "auditor"
    numerics = CLASSES[0] if dice.random() < (0.7 if judge else 0.4) else dice.choice(CLASSES)
    kind, kinds = person.kind, LAX_JUDGES if judge else LAX_CHEATS
    if dice.random() < (0.6 if kind else 0.1):
        kind = dice.choice(kinds)
    return replace(person, numerics=numerics, kind=kind)


def _allow_tolerance(dice: random.Random, config: dict[str, Any]) -> None:
    pairs = [pair for pair in itertools.combinations(CLASSES, 2) if dice.random() < 0.75]
    config["train"]["trace_every"] = 1
    config["audit"]["tolerance"] = [
        {
            "classes": dice.sample(pair, 2),
            "loss_ppm": dice.choice((0, 40, 1000)),
            "norm_ppb": dice.choice((10, 5000)),
            "peak_ppm": dice.choice((0, 5, 800)),
            "step_milli": dice.choice((0, 1000, 2500)),
        }
        for pair in pairs or [CLASSES[:2]]
    ]
    config["audit"]["tolerance_cap_ppm"] = dice.choice((1, 100_000, 300_000, 500_000, 500_000, 1_000_000))


def _of_late_kind(dice: random.Random, person: Person) -> Person:
    """The person in a run whose audits lag."""
    kinds = LATE_JUDGES if person.role == "auditor" else LATE_CHEATS
    kind = dice.choice(kinds) if dice.random() < (0.4 if person.kind else 0.1) else person.kind
    return replace(person, kind=kind)


def _let_audits_lag(dice: random.Random, config: dict[str, Any]) -> None:
    config["audit"]["lag"] = dice.randint(1, 3)
    config["credit"]["vest_rounds"] = config["audit"]["lag"] + dice.randint(1, 2)
    config["run"]["rounds"] = dice.randint(2, 6)


def _with_a_court(
    dice: random.Random, people: tuple[Person, ...], config: dict[str, Any]
) -> tuple[Person, ...]:
    """The same with four to six auditors, each by itself, of whom some are of one mind, and much to judge."""
    found = []
    for person in people:
        kind = dice.choice(COURT_CHEATS) if dice.random() < 0.25 else person.kind
        found.append(replace(person, kind=kind) if person.role == "contributor" else person)
    contributors = [person for person in found if person.role == "contributor"]
    judges = [person for person in found if person.role == "auditor"]
    for at in range(len(judges), dice.randint(4, 6)):
        numerics = CLASSES["tolerance" in config["audit"] and dice.random() < 0.3]
        judges.append(Person(f"a{at:02d}", "auditor", "", numerics, None, dice.randint(20, 400)))
    judges = [replace(judge, operator=f"op-{judge.name}") for judge in judges]
    judges = [replace(j, kind=dice.choice(COURT_JUDGES)) if dice.random() < 0.15 else j for j in judges]
    band = dice.choice(BANDS)
    for at in dice.sample(range(len(judges)), dice.choice((0, 2, 2, 2, 3))):
        judges[at] = replace(judges[at], kind=band)
    rate, second = dice.choice((500_000, 1_000_000, 1_000_000)), dice.choice((200_000, 1_000_000))
    config["audit"] |= {"auditors": len(judges), "rate_ppm": rate, "second_look_ppm": second}
    return (*contributors, *judges)


def _with_newcomers(
    dice: random.Random, people: tuple[Person, ...], config: dict[str, Any]
) -> tuple[Person, ...]:
    """The same, and up to four more that come later; there need not be room for all of them."""
    found = list(people)
    few = any(not person.operator.startswith("op-") for person in people)
    lax, lag = "tolerance" in config["audit"], "lag" in config["audit"]
    for _ in range(dice.randint(1, 4)):
        judge = dice.random() < 0.4
        role, letter = ("auditor", "a") if judge else ("contributor", "c")
        name = f"{letter}{sum(person.role == role for person in found):02d}"
        operator = f"op{dice.randrange(3)}" if few else f"op-{name}"
        numerics = dice.choice(people).numerics
        kind = None
        if dice.random() < 0.4:
            kinds: tuple[str, ...] = BAD_JUDGES if judge else (*CHEATS, *NEWCOMERS, *NEWCOMERS)
            unfit = (() if lax else LAX_CHEATS + LAX_JUDGES) + (() if lag else LATE_CHEATS + LATE_JUDGES)
            kind = dice.choice([kind for kind in kinds if kind not in unfit])
        arrives = dice.choice((1, 1, 1, 2, 3))
        found.append(Person(name, role, operator, numerics, kind, dice.randint(20, 400), arrives))
    config["identity"] = {"newcomers": dice.choice((1, 2, 3, 3, 4))}
    return tuple(found)


def _cutting_off_more(dice: random.Random, weather: Weather, people: tuple[Person, ...]) -> Weather:
    """The same, where at times somebody cannot be reached at all for two turns: long enough to be let go."""
    if dice.random() < 0.5:
        return weather
    first, names = dice.randrange(3), [person.name for person in people]
    gone = Partition(
        frozenset(dice.sample(names, dice.randint(1, 2))), first, first + 1 + dice.randrange(2), ""
    )
    return replace(weather, partitions=(*weather.partitions, gone))


def _weather(dice: random.Random, names: list[str]) -> Weather:
    if dice.random() < 0.15:
        return Weather()
    partitions = []
    for _ in range(dice.choice((0, 0, 1, 2))):
        first = dice.randrange(4)
        members = frozenset(dice.sample(names, dice.randint(1, max(1, len(names) // 2))))
        verb = dice.choice(("", "", "commit", "reveal", "serve_state", "serve_trace", "audit"))
        partitions.append(Partition(members, first, first + dice.randrange(2), verb))
    return Weather(
        dice.choice((0.0, 0.05, 0.25)),
        dice.choice((0.0, 0.1, 0.4)),
        dice.choice((0.0, 0.02, 0.1)),
        dice.choice((0.0, 0.1)),
        dice.choice((0.0, 0.1, 0.3)),
        dice.choice((0.0, 0.2, 0.6)),
        tuple(partitions),
    )


def _config(dice: random.Random, steps: list[int], auditors: int) -> dict[str, Any]:
    rate, probation = dice.choice((1, 100_000, 500_000, 1_000_000, 1_000_000)), dice.choice((0, 0, 0, 1, 2))
    if auditors == 0:
        rate, probation = 0, 0
    mode = dice.choice(("local", "local", "gradient"))
    return {
        "run": {"rounds": dice.randint(2, 4), "seed": dice.randrange(1000), "max_void": dice.randint(1, 3)},
        "data": {"source": "file:/nowhere", "vocab_size": 300, "context": 16},
        "model": {
            "vocab_size": 300, "context": 16, "d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
            "d_ff": 16, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
        },
        "train": {
            "mode": mode,
            "steps": steps,
            "batch": (batch := dice.randint(1, 3)),
            "micro_batch": random.Random(repr(steps)).choice(([], [1] * len(steps), [batch] * len(steps))),
            "trace_every": dice.choice((1, 1, 1, 2, 3)),
        },
        "compression": {"chunk": 64, "k": 8},
        "outer": {
            "optimizer": "adamw" if mode == "gradient" else dice.choice(("nesterov", "adamw")),
            "momentum": 0.5,
            "lr": 0.1,
        },
        "audit": {
            "auditors": auditors,
            "rate_ppm": rate,
            "segments": dice.choice((0, 1, 1, 2)),
            "second_look_ppm": dice.choice((0, 200_000, 1_000_000)),
            "probation_rounds": probation,
        },
        "credit": {
            "vest_rounds": dice.randint(0, 3),
            "strikes": dice.randint(1, 3),
            "operator_cap_ppm": dice.choice((300_000, 500_000, 1_000_000)),
        },
        "state": {"policy": dice.choice(("snapshot", "snapshot", "reset")), "every": dice.randint(1, 3)},
        "timing": {
            "mode": dice.choice(("fixed", "measured")),
            "round_ms": 1000,
            "deadline_ms": dice.choice((1500, 4000)),
            "max_steps": 8,
        },
        "checkpoint": {"every": dice.randint(1, 3)},
        "eval": {"every": 2, "windows": 1},
    }  # fmt: skip
