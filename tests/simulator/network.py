"""A network with a virtual clock between the coordinator and the members.

Owns loss, repetition, delay, order, partitions, and that members die and come back; it is a `Members` of
pipeline.crew. It retries as a transport does, and remembers whom it could not reach, and all that honest
members said. A call that was begun is under way while others are made. Does not own what anybody does.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.pool import Answer
from tests.simulator.faults import Crash, Gate
from tests.simulator.judges import make
from tests.simulator.people import Street, Stubbed
from tests.simulator.setting import Person, Setting
from tests.simulator.shown import Shown
from verification.errors import BarnraiseError

TRIES = 5
JOINING = ("missing_files", "store_file", "catch_up", "enrol")
TIMEOUT_MS, REVIVAL_MS, DELAY_MS = 150, 400, 2_000_000
NEVER = 1 << 60
Place = tuple[str, str, int, Any]  # member, verb, turn, what tells its calls of a turn apart


class Network:
    """Calls members one by one, in an order of chance, and counts time as if all worked at once."""

    def __init__(self, setting: Setting, street: Street, gate: Gate) -> None:
        self.people: dict[str, Person] = {person.name: person for person in setting.people}
        self.weather, self.street, self.gate = setting.weather, street, gate
        self._first = {person.name for person in setting.first}
        self.off: set[str] = set()  # whose owners have turned their machines off
        self.healed = False  # while a run waits for somebody to return, partitions end
        self.dice = random.Random(f"network/{setting.seed}")
        self.objects: dict[str, Stubbed] = {}
        self.counts: Counter[str] = Counter()
        self.turn = -1
        self.now = 0
        # What the checks need: who could not be heard, what honest members said, what they would not do.
        self.unheard: dict[tuple[int, str, str], str] = {}
        self.silent: set[tuple[int, str, str]] = (
            set()
        )  # who was not heard before a turn, though it may have been later
        self.said: dict[Place, set[bytes]] = {}
        self.refusals: list[str] = []
        self.peeked: list[str] = []  # whom the public log could have told a first verdict too early
        self.ends: list[str] = []  # who was shown the end of a step that it had not told of
        self.steps = Shown()
        self.shown: dict[str, None] = {}
        self.opens: dict[int, set[bytes]] = {}
        self._old: list[tuple[str, str, tuple[Any, ...]]] = []
        self._opens: dict[bytes, tuple[int, int, int]] = {}  # turn, round and attempt of opens
        self._read = 0  # entries of the log that were looked at
        self._judged: set[tuple[int, int, int]] = set()  # slots with a verdict in the log
        self._busy: dict[str, int] = {}  # until when a member works at calls that were begun

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

    def begin(
        self, method: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Callable[[int], Answer]]:
        """As cluster.pool.Pool: each call is made now or when it is waited for, or never if nobody does."""
        return [self._begun(name, method, args) for name, args in calls]

    def _begun(self, name: str, method: str, args: tuple[Any, ...]) -> Callable[[int], Answer]:
        started = max(self.now, self._busy.get(name, 0))
        soon = self.dice.random() < 0.5
        found = [self._sent(name, method, args, revived=False)] if soon else []
        if found:
            self._busy[name] = started + found[0][1]

        def wait(deadline_ms: int) -> Answer:
            nonlocal started
            self.counts["lag: audits begun that were waited for"] += method not in JOINING
            if not found or found[0][2] == "cut off":  # the transport goes on trying
                found[:], started = [self._sent(name, method, args, revived=False)], self.now
            sent, ms, why = found[0]
            left = max(0, started + ms - self.now)
            answer = self._in_time((name, method, args), (sent, left, why), deadline_ms)
            self.now += answer.ms
            over = sent is None and why != "cut off" and not 0 < deadline_ms < left
            return Answer(error=why, ms=answer.ms) if over else answer

        return wait

    def close(self) -> None:
        """Forget every member's process; their folders stay."""
        self.objects.clear()

    def _one(self, name: str, method: str, args: tuple[Any, ...], deadline_ms: int) -> Answer:
        sent = self._sent(name, method, args)
        answer = self._in_time((name, method, args), sent, deadline_ms)
        # Of whom there is no way to, that is known; of all others only that they did not answer in time.
        return Answer(error="it cannot be reached", ms=answer.ms) if sent[2] == "cut off" else answer

    def _sent(
        self, name: str, method: str, args: tuple[Any, ...], *, revived: bool = True
    ) -> tuple[Answer | None, int, str]:
        """(what was heard, after how long, why nothing was). `revived`: whoever dies is asked again."""
        self._look(name, method, args)
        if self._cut_off(name, method):
            self.counts["fault: partitioned"] += 1
            return None, NEVER, "cut off"
        ms, weather = 0, self.weather
        if weather.stale and self.dice.random() < weather.stale and self._old:
            self.counts["fault: stale request"] += 1
            old = self.dice.choice(self._old)
            if old[0] not in self.off:
                self._invoke(*old, counts=False)
        sure = self._is_sure(name, method)
        for _ in range(TRIES * (4 if sure else 1)):
            ms += self.dice.randint(2, 40)
            if self._happens(weather.drop, "request dropped"):
                ms += TIMEOUT_MS
                continue
            answers = [self._invoke(name, method, args)]
            if self._happens(weather.duplicate, "request duplicated"):
                answers.append(self._invoke(name, method, args))
            if None in answers or self._dies(name):
                ms += REVIVAL_MS  # it ended, before or after it had written; it is made anew and asked again
                if revived:
                    continue
                what = "joining" if method in JOINING else "lag"
                self.counts[f"{what}: a member died at a call that was begun"] += 1
                return None, ms, "died"
            heard = [answer for answer in answers if answer]
            answer, _ = self.dice.choice(heard)
            ms += max(spent for _, spent in heard)
            if self._happens(weather.drop, "answer dropped"):
                ms += TIMEOUT_MS
                continue
            if self._happens(weather.delay, "answer delayed") and not sure:
                ms += DELAY_MS if self.dice.random() < 0.5 else self.dice.randint(500, 5000)
            if not sure:
                self._old = [*self._old[-20:], (name, method, args)]
            return answer, ms, ""
        return None, ms, "lost five times"

    def _in_time(
        self,
        call: tuple[str, str, tuple[Any, ...]],
        sent: tuple[Answer | None, int, str],
        deadline_ms: int,
    ) -> Answer:
        """What the caller has at its deadline; whom it did not hear is remembered."""
        (name, method, args), (answer, ms, why) = call, sent
        place = (self._turn_of(method, args), method, name)
        late = 0 < deadline_ms < ms
        if answer and late:
            self.counts["fault: after the deadline"] += 1
            why = "too slow"
        if answer is None or late:
            self.unheard[place] = why
            if method == "identity_changes":
                self.silent.add((self.turn, name, why))
            if deadline_ms:
                ms = min(deadline_ms, ms)
            return Answer(late=True, ms=0 if ms == NEVER else ms)
        self.unheard.pop(place, None)  # asked again after a crash, it was heard
        return Answer(answer.value, answer.error, ms=ms)

    def _happens(self, chance: float, what: str) -> bool:
        if not chance or self.dice.random() >= chance:
            return False
        self.counts[f"fault: {what}"] += 1
        return True

    def _is_sure(self, name: str, method: str) -> bool:
        """A run only starts when all that it starts with are there; it does without newcomers."""
        return method in JOINING and name in self._first

    def _cut_off(self, name: str, method: str) -> bool:
        if name in self.off:
            return True
        return not (self._is_sure(name, method) or self.healed) and any(
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
            # Asked for a verdict of a turn before its key was rotated, an honest auditor gives none.
            rotated = "with its present key" in str(error) and self._turn_of(method, args) < self.turn
            if rotated:
                self.counts["lag: an auditor's key rotated before it was asked"] += 1
            if method == "appeal" and "has another key since" in str(error):
                rotated = True
                self.counts["lag: a contributor's key rotated before it could appeal"] += 1
            again = method == "catch_up" and self._disturbs_reading
            if again:
                self.counts["joining: a log had to be read from the start again"] += honest
            excused = short or rotated or again
            if honest and not excused and (counts or not isinstance(error, BarnraiseError)):
                self.refusals.append(f"{name} {method} in turn {self.turn}: {type(error).__name__}: {error}")
            return Answer(error=f"{type(error).__name__}: {error}"), 0
        finally:
            self.gate.armed.pop(name, None)
        if honest and isinstance(value, bytes):
            self._remember(name, method, args, value)
        elif honest and isinstance(value, tuple):
            self._remember(name, method, args, b"\0".join(value))
        return Answer(value), member.spent - before

    @property
    def _disturbs_reading(self) -> bool:
        """Whether a request may come twice, to one that died meanwhile, or from a coordinator that did."""
        w = self.weather
        return any((w.drop, w.duplicate, w.stale, w.member_crash, w.coordinator_crash))

    def _remember(self, name: str, method: str, args: tuple[Any, ...], value: bytes) -> None:
        turn = -1 if method in JOINING else self._turn_of(method, args)
        parts: dict[str, object] = {"audit": args[1:3], "tell": (args[1], args[6]) if method == "tell" else 0}
        part = parts.get(method, 0)
        self.said.setdefault((name, method, turn, part), set()).add(value)

    def _turn_of(self, method: str, args: tuple[Any, ...]) -> int:
        """Which turn a call is about: where audits lag that need not be the one in progress."""
        if method in ("commit", "audit", "tell"):
            return self._place_of(args[0])[0]
        return args[0] if args and type(args[0]) is int else self.turn

    def _place_of(self, opened: bytes) -> tuple[int, int, int]:
        """Turn, round and attempt of an open."""
        if opened not in self._opens:
            told = _statement(opened)["predicate"]
            self._opens[opened] = (told["turn"], told["round"], told["attempt"])
        return self._opens[opened]

    def _look(self, name: str, method: str, args: tuple[Any, ...]) -> None:
        """What the coordinator shows: opens and heads, and verdicts that it has logged."""
        if method in ("commit", "audit", "tell"):
            turn = self._turn_of(method, args)
            self.opens.setdefault(turn, set()).add(args[0])
            if method == "tell":
                self.ends += self.steps.tell(name, turn, args)
            elif method == "audit":
                self.steps.audit(name, turn, args)
            if method == "audit" and self._shows(args[0], args[1]):
                self.peeked.append(f"{name}, slot {args[1]}, look {args[2]} of turn {turn}")
        elif method == "reveal":
            self.shown[args[1]] = None

    def _shows(self, opened: bytes, slot: int) -> bool:
        """Whether there is a verdict on a slot among all that was ever written into the log."""
        for entry in itertools.islice(self.gate.entries, self._read, None):
            self._read += 1
            statement = _statement(entry)
            if statement["predicateType"] == "barnraise:verdict:v1":
                told = statement["predicate"]
                self._judged.add((told["round"], told["attempt"], told["slot"]))
        return (*self._place_of(opened)[1:], slot) in self._judged


def _statement(envelope: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    return found
