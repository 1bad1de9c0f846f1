"""A network with a virtual clock between the coordinator and the members.

Owns loss, repetition, delay, order, partitions, and that members die and come back; it is a `Members` of
pipeline.crew. It retries as a transport does, and remembers whom it could not reach, and all that honest
members said. Does not own what anybody does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cluster.pool import Answer
from tests.simulator.faults import Crash, Gate
from tests.simulator.judges import make
from tests.simulator.people import Street, Stubbed
from tests.simulator.setting import Person, Setting
from verification.errors import BarnraiseError

TRIES = 5
JOINING = ("missing_files", "store_file", "enrol")
TIMEOUT_MS, REVIVAL_MS, DELAY_MS = 150, 400, 2_000_000
Place = tuple[str, str, int, Any]  # member, verb, turn, what tells its calls of a turn apart


class Network:
    """Calls members one by one, in an order of chance, and counts time as if all worked at once."""

    def __init__(self, setting: Setting, street: Street, gate: Gate) -> None:
        self.people: dict[str, Person] = {person.name: person for person in setting.people}
        self.weather, self.street, self.gate = setting.weather, street, gate
        self.dice = random.Random(f"network/{setting.seed}")
        self.objects: dict[str, Stubbed] = {}
        self.counts: Counter[str] = Counter()
        self.turn = -1
        self.now = 0
        # What the checks need: who could not be heard, what honest members said, what they would not do.
        self.unheard: dict[tuple[int, str, str], str] = {}
        self.said: dict[Place, set[bytes]] = {}
        self.refusals: list[str] = []
        self.shown: dict[str, None] = {}
        self.opens: dict[int, set[bytes]] = {}
        self._old: list[tuple[str, str, tuple[Any, ...]]] = []

    def call(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], *, deadline_ms: int = 0
    ) -> dict[str, Answer]:
        """As cluster.pool.Pool; the answers stand in the order of `arguments`."""
        names = list(arguments)
        self.dice.shuffle(names)
        if names != list(arguments):
            self.counts["fault: reordered"] += 1
        found = {name: self._one(name, method, arguments[name], deadline_ms) for name in names}
        self.now += max((answer.ms for answer in found.values()), default=0)
        return {name: found[name] for name in arguments}

    def close(self) -> None:
        """Forget every member's process; their folders stay."""
        self.objects.clear()

    def _one(self, name: str, method: str, args: tuple[Any, ...], deadline_ms: int) -> Answer:
        self._look(method, args)
        if self._cut_off(name, method):
            self.counts["fault: partitioned"] += 1
            return self._lost(name, method, deadline_ms, "cut off")
        ms, weather = 0, self.weather
        if weather.stale and self.dice.random() < weather.stale and self._old:
            self.counts["fault: stale request"] += 1
            self._invoke(*self.dice.choice(self._old), counts=False)
        for _ in range(TRIES * (4 if method in JOINING else 1)):
            ms += self.dice.randint(2, 40)
            if self._happens(weather.drop, "request dropped"):
                ms += TIMEOUT_MS
                continue
            answers = [self._invoke(name, method, args)]
            if self._happens(weather.duplicate, "request duplicated"):
                answers.append(self._invoke(name, method, args))
            if None in answers or self._dies(name):
                ms += REVIVAL_MS  # it ended, before or after it had written; it is made anew and asked again
                continue
            heard = [answer for answer in answers if answer]
            answer, _ = self.dice.choice(heard)
            ms += max(spent for _, spent in heard)
            if self._happens(weather.drop, "answer dropped"):
                ms += TIMEOUT_MS
                continue
            if self._happens(weather.delay, "answer delayed") and method not in JOINING:
                ms += DELAY_MS if self.dice.random() < 0.5 else self.dice.randint(500, 5000)
            if method not in JOINING:
                self._old = [*self._old[-20:], (name, method, args)]
            if 0 < deadline_ms < ms:
                self.counts["fault: after the deadline"] += 1
                return self._lost(name, method, deadline_ms, "too slow")
            self.unheard.pop((self.turn, method, name), None)  # asked again after a crash, it was heard
            return Answer(answer.value, answer.error, ms=ms)
        return self._lost(name, method, min(deadline_ms, ms) if deadline_ms else ms, "lost five times")

    def _lost(self, name: str, method: str, ms: int, why: str) -> Answer:
        self.unheard[self.turn, method, name] = why
        return Answer(late=True, ms=ms)

    def _happens(self, chance: float, what: str) -> bool:
        if not chance or self.dice.random() >= chance:
            return False
        self.counts[f"fault: {what}"] += 1
        return True

    def _cut_off(self, name: str, method: str) -> bool:
        return method not in JOINING and any(
            name in part.members and part.first <= self.turn <= part.last and part.verb in ("", method)
            for part in self.weather.partitions
        )

    def _dies(self, name: str) -> bool:
        if not self._happens(self.weather.member_crash / 4, "member restarted before its answer left"):
            return False
        self.objects.pop(name, None)
        return True

    def _invoke(
        self, name: str, method: str, args: tuple[Any, ...], *, counts: bool = True
    ) -> tuple[Answer, int] | None:
        """(what it answered, how long it worked); None when its process ended."""
        if self.dice.random() < self.weather.member_crash:
            self.gate.armed[name] = self.dice.randrange(25)
        honest = self.people[name].kind is None
        try:
            with self.gate.as_actor(name):
                if name not in self.objects:
                    self.objects[name] = make(self.people[name], self.street)
                member = self.objects[name]
                before = member.spent
                value = getattr(member, method)(*args)
        except Crash:
            self.counts["fault: member crashed"] += 1
            self.objects.pop(name, None)
            return None
        except Exception as error:  # whatever a member does, the others go on
            short = method == "take_receipt" and "too few known witnesses" in str(error)
            if honest and not short and (counts or not isinstance(error, BarnraiseError)):
                self.refusals.append(f"{name} {method} in turn {self.turn}: {type(error).__name__}: {error}")
            return Answer(error=f"{type(error).__name__}: {error}"), 0
        finally:
            self.gate.armed.pop(name, None)
        if honest and isinstance(value, bytes):
            self._remember(name, method, args, value)
        elif honest and isinstance(value, tuple):
            self._remember(name, method, args, b"\0".join(value))
        return Answer(value), member.spent - before

    def _remember(self, name: str, method: str, args: tuple[Any, ...], value: bytes) -> None:
        turn: int
        part: object = 0
        if method in JOINING:
            turn = -1
        elif method == "commit":
            turn = self._turn_of[args[0]]
        elif method == "audit":
            turn, part = self._turn_of[args[0]], args[1:3]
        else:
            turn = args[0]
        self.said.setdefault((name, method, turn, part), set()).add(value)

    @property
    def _turn_of(self) -> dict[bytes, int]:
        return {data: turn for turn, opens in self.opens.items() for data in opens}

    def _look(self, method: str, args: tuple[Any, ...]) -> None:
        """What the coordinator shows: opens and heads."""
        if method in ("commit", "audit"):
            self.opens.setdefault(self.turn, set()).add(args[0])
        elif method == "reveal":
            self.shown[args[1]] = None
