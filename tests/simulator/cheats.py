"""The kinds of contributors that cheat, each in one way.

Owns how each cheats; what is honest in them is the shipped code (people.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.simulator.garbage import garbage
from tests.simulator.odd_members import ODD_MEMBERS
from tests.simulator.people import Cheat, Street
from tests.simulator.setting import Person
from tests.simulator.trace_cheats import TRACE_CHEATS
from tests.simulator.work import Falsehood, Traced, digest_of, other_payload, with_payload
from verification.encoding import blake3_digest
from verification.errors import FormatError, ProtocolError
from verification.keys import PrivateKey
from verification.merkle import Inclusion
from verification.records import Appeal, Commitment, Reveal, RosterEntry, RoundOpen
from verification.sealing import open_record, seal_record


class FalsePayload(Cheat):
    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        return with_payload(work, other_payload(self.job, f"{self.street.seed}/{self.name}/{open_.turn}"))


class FalseState(Cheat):
    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        poisoned = bytearray(work.next_state)
        poisoned[-1] ^= 1
        state = bytes(poisoned)
        claims = replace(work.claims, next_state=blake3_digest(state))
        return replace(work, next_state=state, claims=claims, false=Falsehood(boundary=True))


class Relapse(FalsePayload):
    """Honest in the turn after its false one, which starts from the state that it then claimed."""

    def cheats(self, turn: int) -> bool:
        return (turn + self.dice("first").randrange(2)) % 2 == 0


class Launderer(FalseState):
    """The same with its state alone: what follows is honest work from a false start."""

    def cheats(self, turn: int) -> bool:
        return (turn + self.dice("first").randrange(2)) % 2 == 0


class Impersonator(Cheat):
    """Hands in the whole work of another slot of the same turn: whoever knows the start state can."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        others = [other for other in open_.roster if other.slot != entry.slot]
        if not others:
            return work
        theirs = self.street.shop.honest(self.job, open_.base, self.dice(open_.turn).choice(others))
        if self.dice(1, open_.turn).random() < 0.5:
            return with_payload(work, theirs.payload)
        return replace(theirs, false=Falsehood(segments=frozenset(range(len(theirs.points)))))


class Thief(Cheat):
    """Takes a payload that lies in the run folder, accepted or not."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        found = sorted((self.street.public / "payloads").glob("[0-9a-f]*"))
        return with_payload(work, self.dice(open_.turn).choice(found).read_bytes()) if found else work


class BadPayload(Cheat):
    """Right length, right digest, and the codec has no such bytes."""

    def falsified(self, work: Traced, open_: RoundOpen, entry: RosterEntry) -> Traced:
        payload = bytearray(work.payload)
        dice = self.dice(open_.turn)
        while True:
            payload[dice.randrange(len(payload))] ^= 1 << dice.randrange(8)
            try:
                self.job.codec.decode(bytes(payload))
            except FormatError:
                return with_payload(work, bytes(payload))


class WrongField(Cheat):
    """Opens its commitment, which says of the assignment what the open does not."""

    def commit(self, open_envelope: bytes, checkpoint: bytes) -> bytes:
        commitment = super().commit(open_envelope, checkpoint)
        open_ = self.opened(open_envelope)
        if not self.cheats(open_.turn):
            return commitment
        before, reveal = self.stored(open_.turn)
        opening = reveal.opening
        start, stop = opening.positions[0]
        changes: list[dict[str, Any]] = [
            {"tokens": opening.tokens + 16},
            {"positions": ((start, stop + 1), *opening.positions[1:])},
            {"start_state": digest_of("blake3", "elsewhere")},
            {"base": replace(opening.base, weights=digest_of("blake3", "other"))},
            {"numerics_class": "sim-z"},
            {"trace_leaves": opening.trace_leaves + 1},
        ]
        change = self.dice("field", open_.turn).choice(changes)
        told = replace(reveal, opening=replace(opening, **change))
        place = (told.protocol, told.run, told.round, told.attempt, told.slot, told.member, told.key)
        sealed = seal_record(Commitment(*place, told.commitment), self.key)
        if told.opening != opening and before.commitment == commitment:
            after = replace(before, commitment=sealed, reveal=seal_record(told, self.key))
            self.vault.commit(open_.turn, after)
        return self._stored(open_.turn).commitment


class Equivocator(Cheat):
    """Forgets what it said, and says something else each time it is asked."""

    def commit(self, open_envelope: bytes, checkpoint: bytes) -> bytes:
        open_ = self.opened(open_envelope)
        if self.cheats(open_.turn):
            self.vault._turn(open_.turn).unlink(missing_ok=True)
        return super().commit(open_envelope, checkpoint)

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        return self.reveals(turn)


class Silent(Cheat):
    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        if self.cheats(turn):
            raise ProtocolError("no")
        return super().reveal(turn, head, opened, committed)


class OtherBytes(Cheat):
    """Reveals, and sends bytes that are not the ones it committed to."""

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        envelope, payload = super().reveal(turn, head, opened, committed)
        if not self.cheats(turn):
            return envelope, payload
        flipped = bytes([payload[0] ^ 1]) + payload[1:]
        told = (flipped, payload + b"\0", payload[:-1], b"", payload * 3, other_payload(self.job, self.name))
        return envelope, self.dice("bytes", turn).choice(told)


class NoState(Cheat):
    def serve_state(self, turn: int) -> bytes:
        if not self.cheats(turn):
            return super().serve_state(turn)
        if self.dice("serve", turn).random() < 0.5:
            raise ProtocolError("no")
        return b"barnraise-arrays-v1\n" + self.dice("state", turn).randbytes(40)


class Garbled(Cheat):
    """Sends anything at all, from any verb."""

    def commit(self, open_envelope: bytes, checkpoint: bytes) -> Any:
        true = super().commit(open_envelope, checkpoint)
        turn = self.opened(open_envelope).turn
        return garbage(self.dice("commit", turn), true, self.key) if self._now("commit", turn) else true

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> Any:
        envelope, payload = super().reveal(turn, head, opened, committed)
        if not self._now("reveal", turn):
            return envelope, payload
        dice = self.dice("reveal", turn)
        bad = garbage(dice, envelope, self.key)
        return dice.choice([(bad, payload), (envelope, bad), bad, (bad,), [bad, payload, bad], (bad, bad)])

    def serve_state(self, turn: int) -> Any:
        true = super().serve_state(turn)
        return garbage(self.dice("serve", turn), true, self.key) if self._now("serve", turn) else true

    def serve_trace(self, turn: int, draw_envelope: bytes, checkpoint: bytes) -> Any:
        true = super().serve_trace(turn, draw_envelope, checkpoint)
        return garbage(self.dice("trace", turn), true, self.key) if self._now("trace", turn) else true

    def _now(self, verb: str, turn: int) -> bool:
        return self.dice("now", verb, turn).random() < 0.4


class Replayer(Cheat):
    """Says what was said before, elsewhere, or by others."""

    said: dict[str, list[bytes]]

    def __init__(self, person: Person, street: Street) -> None:
        super().__init__(person, street)
        self.said = {}

    def commit(self, open_envelope: bytes, checkpoint: bytes) -> bytes:
        true = super().commit(open_envelope, checkpoint)
        turn = self.opened(open_envelope).turn
        return self._again(Commitment, true, turn)

    def reveal(self, turn: int, head: str, opened: Inclusion, committed: Inclusion) -> tuple[bytes, bytes]:
        envelope, payload = self.reveals(turn)
        return self._again(Reveal, envelope, turn), payload

    def _again(self, kind: type[Any], true: bytes, turn: int) -> bytes:
        said = self.said.setdefault(kind.kind, [])
        dice = self.dice(kind.kind, turn)
        record = open_record(kind, true, self.key.public)
        told = [
            *said,
            seal_record(replace(record, run=digest_of("sha256", "another run")), self.key),
            seal_record(replace(record, round=record.round + 1), self.key),
            seal_record(replace(record, attempt=record.attempt + 1), self.key),
            seal_record(replace(record, slot=record.slot + 1), self.key),
            seal_record(replace(record, member="c99"), self.key),
            seal_record(record, PrivateKey.from_seed(dice.randbytes(32))),
            self._stored(turn).commitment if kind is Reveal else self._stored(turn).reveal,
        ]
        said.append(true)
        return dice.choice(told) if dice.random() < 0.5 else true


class Slow(Cheat):
    """Takes a minute a step."""

    def made(self, open_: RoundOpen, entry: RosterEntry) -> Traced:
        work = super().made(open_, entry)
        self.spent += 60_000 if self.cheats(open_.turn) else 0
        return work


class Meek(FalsePayload):
    """Does not appeal, whatever it did."""

    def appeal(self, turn: int, verdicts: list[bytes]) -> bytes:
        raise ProtocolError("no")


class OddAppellant(FalsePayload):
    """Appeals with anything but an appeal of its own against the two verdicts that it is shown."""

    def appeal(self, turn: int, verdicts: list[bytes]) -> Any:
        true = super().appeal(turn, verdicts)
        record = open_record(Appeal, true, self.key.public)
        dice = self.dice("appeal", turn)
        first, second = record.verdicts
        changes: list[dict[str, Any]] = [
            {"slot": record.slot + 1},
            {"round": record.round + 1},
            {"attempt": record.attempt + 1},
            {"member": "c99"},
            {"run": digest_of("sha256", "another run")},
            {"verdicts": (second, first)},
            {"verdicts": (first, first)},
            {"verdicts": (first, digest_of("sha256", turn))},
        ]
        told: list[Any] = [seal_record(replace(record, **change), self.key) for change in changes]
        told += [
            seal_record(record, PrivateKey.from_seed(dice.randbytes(32))),
            self._stored(turn).reveal,
            verdicts[0],
        ]
        kind = dice.random()
        if kind < 0.2:
            return true
        return garbage(dice, true, self.key) if kind < 0.4 else dice.choice(told)


CHEATS: dict[str, type[Cheat]] = {
    "false-payload": FalsePayload, "false-state": FalseState, "wrong-field": WrongField,
    "equivocate": Equivocator, "silent": Silent, "other-bytes": OtherBytes, "no-state": NoState,
    "impersonate": Impersonator, "steal": Thief, "garbage": Garbled, "bad-payload": BadPayload,
    "replay": Replayer, "slow": Slow, "relapse": Relapse, "launder": Launderer,
    "no-appeal": Meek, "odd-appeal": OddAppellant, **TRACE_CHEATS, **ODD_MEMBERS,
}  # fmt: skip
