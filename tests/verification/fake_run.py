"""A made-up run in memory: records of whole turns from keys made of seeds, no files, no training.

A `Fate` says what becomes of a slot in a turn. `Play.turn` writes the records that follow from it. There may
be witnesses, made of seeds too; `Play.absent` and `Play.mute` say which of them fail. With a beacon, a draw
shows a pulse of the right form that nobody signed; `Play.lead` and `Play.pulseless` make it short. Members
may be of several numerics classes; deviations are those of `fake_tolerance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from tests.verification.fake_fates import CHEAT as CHEAT  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import GOOD as GOOD  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import LATE as LATE  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import STRIKES as STRIKES  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import Fate as Fate  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import fates as fates  # noqa: PLC0414 - named here too
from tests.verification.fake_fates import scripts as scripts  # noqa: PLC0414 - named here too
from tests.verification.fake_tolerance import deviations
from verification.encoding import Json, blake3_digest, hex_float, sha256_digest
from verification.judge import Audit, Recomputed, judged, settle, trace_leaf_hash, trace_root
from verification.keys import PrivateKey
from verification.looks import further_look, may_appeal
from verification.lottery import HashChain
from verification.notes import Checkpoint, cosign, sign_checkpoint, vkey, witness_vkey
from verification.plans import (
    due_pulse,
    plan_close,
    plan_draw,
    plan_first_looks,
    plan_open,
    plan_run_close,
    plan_second_draw,
)
from verification.records import (
    Appeal,
    Base,
    Beacon,
    CommitClose,
    Commitment,
    DrawChain,
    Enrol,
    KeyRevocation,
    KeyRotation,
    Manifest,
    Opening,
    Pulse,
    Record,
    Refusal,
    Reveal,
    RevealClose,
    RosterEntry,
    RoundOpen,
    Served,
    Verdict,
    Witness,
    Witnessing,
)
from verification.rounds import apply, begin
from verification.state import RunState
from verification.statements import sign_object

ORIGIN = "example/fake"
NOON = 1_800_000_000  # a head of n entries is cosigned n seconds later
CHAIN = HashChain(b"\x07" * 32, 400)
CONTRIBUTORS = {"c0": "op-a", "c1": "op-a", "c2": "op-b", "c3": "op-c"}
AUDITORS = {"a0": "op-x", "a1": "op-y", "a2": "op-b"}


def sha(text: str) -> str:
    return sha256_digest(text.encode())


def b3(text: str) -> str:
    return blake3_digest(text.encode())


def key(name: str) -> PrivateKey:
    return PrivateKey.from_seed(hashlib.sha256(name.encode()).digest())


def config(**sections: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {
        "run": {"rounds": 4, "seed": 1, "max_void": 3},
        "train": {
            "mode": "local",
            "batch": 2,
            "micro_batch": [2, 1, 2, 2],
            "steps": [4, 2, 3, 1],
            "trace_every": 2,
            "inner": {"lr": hex_float(0.1), "warmup_steps": 5, "decay_rounds": 3},
        },
        "outer": {"lr": hex_float(0.7)},
        "audit": {
            "rate_ppm": 400_000,
            "second_look_ppm": 300_000,
            "probation_rounds": 1,
            "segments": 1,
            "lag": 0,
            "tolerance": [],
            "tolerance_cap_ppm": 500_000,
        },
        "credit": {"vest_rounds": 2, "strikes": 2, "operator_cap_ppm": 500_000},
        "state": {"policy": "snapshot", "every": 2},
        "identity": {"allow": {}, "newcomers": 2},
        "timing": {"mode": "fixed", "round_ms": 1000, "deadline_ms": 4000, "max_steps": 16},
    }
    for name, fields in sections.items():
        values[name] = {**values[name], **fields}
    return values


@dataclass(frozen=True)
class FakeWitness:
    """A witness that keeps nothing: it cosigns any head and shows any link it is asked for."""

    name: str

    @property
    def key(self) -> PrivateKey:
        return key(f"witness {self.name}")

    @property
    def vkey(self) -> str:
        return witness_vkey(self.name, self.key.public)

    @property
    def chain(self) -> HashChain:
        return HashChain(hashlib.sha256(f"chain {self.name}".encode()).digest(), CHAIN.length)

    def entry(self, log_vkey: str) -> Witness:
        chain = DrawChain(self.chain.end, self.chain.length)
        claim: Json = {"end": chain.end, "length": chain.length, "log_vkey": log_vkey, "witness": self.vkey}
        return Witness(chain, sign_object("barnraise/witness-chain/v1", claim, self.key), self.vkey)

    def line(self, head_: Checkpoint) -> str:
        return cosign(head_, self.name, self.key, NOON + head_.size)

    def link(self, head_: Checkpoint, number: int, /, **changes: Json) -> tuple[str, str]:
        link = self.chain.link(number)
        claim: dict[str, Json] = {
            "link": link,
            "log_vkey": vkey(ORIGIN, key("coordinator").public),
            "number": number,
            "root": head_.root.hex(),
            "size": head_.size,
            "witness": self.vkey,
        }
        return link, sign_object("barnraise/witness-link/v1", {**claim, **changes}, self.key)


WITNESSES = ("w.example/one", "w.example/two", "w.example/three")


def witnessing(count: int, log_vkey: str) -> Witnessing:
    """The first `count` witnesses, of which two thirds are required."""
    return Witnessing(-(-2 * count // 3), tuple(FakeWitness(n).entry(log_vkey) for n in WITNESSES[:count]))


@cache
def _witnessing(count: int) -> Witnessing:
    return witnessing(count, vkey(ORIGIN, key("coordinator").public))


def made_up_beacon(genesis: int = NOON - 1000, period: int = 3) -> Beacon:
    """A beacon of the right form whose key nobody looked at."""
    return Beacon(genesis, period, hashlib.sha384(b"beacon").hexdigest() * 2, "bls-unchained-g1-rfc9380")


def made_up_pulse(number: int) -> Pulse:
    """A pulse of the right form that no beacon ever signed."""
    return Pulse(number, hashlib.sha384(f"pulse {number}".encode()).hexdigest())


def manifest(witnesses: int = 0, beacon: Beacon | None = None, **sections: Mapping[str, Any]) -> Manifest:
    public = key("coordinator").public
    return Manifest(
        protocol=1,
        name="fake",
        origin=ORIGIN,
        log_vkey=vkey(ORIGIN, public),
        coordinator=public,
        draw_chain=DrawChain(CHAIN.end, CHAIN.length),
        versions={"python": "3"},
        source=sha("source"),
        dataset={"context": 4, "root": sha("dataset")},
        arrays=(("w", (2, 3)),),
        initial=Base(b3("weights 0"), b3("outer 0")),
        zero_state=b3("zero"),
        objective="next-token-v1",
        witnessing=_witnessing(witnesses),
        codec="topk8of32-eliasfano-2bit-e5m3-v1",
        aggregation="median-clip-weighted-mean-v1",
        config=config(**sections),
        beacon=beacon,
    )


def enrolments(
    run: str, auditors: Mapping[str, str] = AUDITORS, classes: Mapping[str, str] | None = None
) -> list[Enrol]:
    """Everybody; `classes` by member, where it is not "class"."""
    roles = [(n, "contributor", o) for n, o in CONTRIBUTORS.items()]
    roles += [(n, "auditor", o) for n, o in auditors.items()]
    return [Enrol(1, run, n, r, o, key(n).public, (classes or {}).get(n, "class")) for n, r, o in roles]  # type: ignore[arg-type]


def started(
    auditors: Mapping[str, str] = AUDITORS,
    witnesses: int = 0,
    beacon: Beacon | None = None,
    classes: Mapping[str, str] | None = None,
    **sections: Mapping[str, Any],
) -> RunState:
    """The state after all enrolments."""
    state = begin(manifest(witnesses, beacon, **sections))
    for record in enrolments(state.run, auditors, classes):
        state = apply(state, record)
    return state


def head(size: int) -> tuple[Checkpoint, str]:
    """A signed checkpoint of a made-up tree."""
    checkpoint = Checkpoint(ORIGIN, size, hashlib.sha256(str(size).encode()).digest())
    return checkpoint, sign_checkpoint(checkpoint, key("coordinator"))


def cosigned(head_: Checkpoint, names: Iterable[str]) -> str:
    """The note of a head with cosignatures."""
    return sign_checkpoint(head_, key("coordinator")) + "".join(FakeWitness(n).line(head_) for n in names)


def links(head_: Checkpoint, number: int, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What witnesses show for a draw."""
    return {name: FakeWitness(name).link(head_, number) for name in names}


def rotation(run: str, member: str, old: str, new: str) -> KeyRotation:
    """From the key of the name `old` to that of `new`."""
    return KeyRotation.of(run, member, key(old), key(new))


def revocation(run: str, member: str, by: Literal["coordinator", "member"] = "member") -> KeyRevocation:
    return KeyRevocation(1, run, member, key(member).public, by)


def done(open_: RoundOpen, entry: RosterEntry, flavour: str = "true", every: int = 2) -> Recomputed:
    """What an honest recomputation gives with this `train.trace_every`; another flavour, another result."""
    name = f"{open_.turn} {entry.slot} {flavour}"
    leaves = tuple(sha(f"{name} leaf {i}") for i in range(-(-entry.steps // every) + 1))
    return Recomputed(b3(f"payload {name}"), b3(f"state {name}"), leaves, 5_000_000, 4_000_000 + entry.slot)


def looked_at(
    open_: RoundOpen, entry: RosterEntry, audit: Audit | Sequence[int], flavour: str = "true", every: int = 2
) -> Recomputed:
    """What a recomputation of some segments gives, where the contributor serves the true trace."""
    work, served = done(open_, entry, flavour, every), done(open_, entry, every=every).trace
    count = len(served) - 1
    audit = audit if isinstance(audit, Audit) else Audit(tuple(audit), entry.numerics_class)
    trace = [trace_leaf_hash(leaf).hex() for leaf in served]
    for place in audit.looked_into(count):
        trace[place] = served[place] if place in audit.opened_leaves(count) else work.trace[place]
    return replace(work, trace=tuple(trace), loss_first=work.loss_first if 0 in audit.segments else None)


def opening(open_: RoundOpen, entry: RosterEntry, every: int = 2) -> Opening:
    work = done(open_, entry, every=every)
    return Opening(
        open_.base,
        entry.positions,
        entry.numerics_class,
        entry.steps * 2 * 4,
        entry.start_state,
        work.next_state,
        work.payload,
        trace_root(work.trace),
        len(work.trace),
        5_000_000,
        work.loss_last,
    )


def reveal(open_: RoundOpen, entry: RosterEntry, copies: int | None = None, every: int = 2) -> Reveal:
    salt = hashlib.sha256(f"salt {open_.turn} {entry.slot}".encode()).hexdigest()
    place = (1, open_.run, open_.round, open_.attempt, entry.slot, entry.member, entry.key)
    claim = opening(open_, entry, every)
    victim = next((other for other in open_.roster if other.slot == copies), entry)
    return Reveal(*place, salt, replace(claim, payload=done(open_, victim).payload))


def commitment(open_: RoundOpen, entry: RosterEntry, copies: int | None = None, every: int = 2) -> Commitment:
    place = (1, open_.run, open_.round, open_.attempt, entry.slot, entry.member, entry.key)
    return Commitment(*place, reveal(open_, entry, copies, every).commitment)


def verdict(
    state: RunState, slot: int, look: int, auditor: str, outcome: str, *, unlike: bool = False
) -> Verdict:
    turn = state.open_turn
    entry, audit = turn.open.entry(slot), turn.audit_of(slot)
    numerics_class = state.member(auditor).numerics_class
    flavour = {"pass": "true", "far": "true", "fail": "other"}.get(outcome, f"other by {auditor}")
    work = looked_at(turn.open, entry, audit, flavour, state.config["train"]["trace_every"])
    found = deviations(audit, numerics_class, far=outcome == "far", by=auditor if unlike else "")
    work = replace(work, deviations=found)
    differs = judged(audit, numerics_class, turn.reveals[slot].opening, work)
    return Verdict(
        1,
        state.run,
        turn.open.round,
        turn.open.attempt,
        slot,
        look,
        auditor,
        next(entry.key for entry in turn.open.auditors if entry.member == auditor),
        "fail" if differs else "pass",
        differs,
        work.payload,
        work.next_state,
        work.trace,
        work.loss_first,
        work.loss_last,
        work.deviations,
        numerics_class,
    )


def appeal(state: RunState, slot: int) -> Appeal:
    """The appeal of a slot's contributor against the two verdicts that failed it."""
    turn = state.open_turn
    entry = turn.open.entry(slot)
    against = (turn.verdicts[slot, 1].digest, turn.verdicts[slot, 2].digest)
    place = (1, state.run, turn.open.round, turn.open.attempt)
    return Appeal(*place, slot, entry.member, entry.key, against)


class Play:
    """Writes records and applies each, as a coordinator would."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.records: list[Record] = []
        self.every: int = state.config["train"]["trace_every"]
        self.absent: set[str] = set()
        self.mute: set[str] = set()
        self.lead = 5  # seconds from the cosignatures of head 2 to the pulse that is named, or a little more
        self.pulseless = False

    def add(self, record: Record) -> None:
        self.state = apply(self.state, record)
        self.records.append(record)

    def turn(self, script: Mapping[int, Fate], good: Fate = GOOD) -> None:
        names = [n for n in WITNESSES[: len(self.state.links)] if n not in self.absent]
        self.add(plan_open(self.state, names))
        roster = self.state.open_turn.open.roster
        self._commit({entry.slot: script.get(entry.slot, good) for entry in roster})
        self._reveal({entry.slot: script.get(entry.slot, good) for entry in roster})
        self._audit({entry.slot: script.get(entry.slot, good) for entry in roster})
        state = self.state
        void = not any(r is None for r in self.reasons().values())
        name = f"{state.open_turn.open.turn}"
        base = state.base if void else Base(b3(f"weights {name}"), b3(f"outer {name}"))
        self.add(plan_close(state, base, evidence={}, val_loss=None))

    def reasons(self) -> dict[int, str | None]:
        return {o.entry.slot: o.reason for o in settle(self.state.open_turn.evidence)}

    @property
    def place(self) -> tuple[int, str, int, int]:
        return 1, self.state.run, self.state.round, self.state.attempt

    def _commit(self, script: Mapping[int, Fate]) -> None:
        open_ = self.state.open_turn.open
        for slot, fate in script.items():
            if fate.commit:
                self.add(commitment(open_, open_.entry(slot), fate.copies, self.every))
        committed = tuple(slot for slot, fate in script.items() if fate.commit)
        late = tuple(slot for slot, fate in script.items() if not fate.commit)
        self.add(CommitClose(*self.place, committed, late, tuple(script[slot].ms for slot in committed)))

    def _reveal(self, script: Mapping[int, Fate]) -> None:
        open_ = self.state.open_turn.open
        came = [slot for slot, fate in script.items() if fate.commit]
        for slot in came:
            if script[slot].refused != "unrevealed" or script[slot].logged:
                self.add(reveal(open_, open_.entry(slot), script[slot].copies, self.every))
        refused = tuple(Refusal(slot, script[slot].refused) for slot in came if script[slot].refused)  # type: ignore[arg-type]
        revealed = tuple(slot for slot in came if not script[slot].refused)
        beacon = self.state.manifest.beacon
        number = beacon.first_from(NOON + self._head(2)[0].size + self.lead) if beacon else None
        self.add(RevealClose(*self.place, self._head(1)[1], revealed, refused, number))

    def _audit(self, script: Mapping[int, Fate]) -> None:
        number = self.state.open_turn.open.turn
        due = due_pulse(self.state)
        pulse = made_up_pulse(due) if due and not self.pulseless else None
        self.add(plan_draw(self.state, *self._attested(2, 2 * number + 1), pulse))
        turn = self.state.open_turn
        assert turn.draw
        assert turn.reveal_close
        owed = [d.slot for d in turn.draw.drawn if d.auditors and d.slot in turn.reveal_close.revealed]
        served = tuple(slot for slot in owed if script[slot].serves)
        self.add(Served(*self.place, served, tuple(slot for slot in owed if not script[slot].serves)))
        self._looks({d.slot: d.auditors for d in turn.draw.drawn if d.slot in served}, script, 2 * number + 2)

    def _looks(self, orders: Mapping[int, tuple[str, ...]], script: Mapping[int, Fate], link: int) -> None:
        """All the looks that slots with these auditors get, from the seals on."""
        sealed = self._look(1, orders, script)
        self.add(plan_first_looks(self.state, sealed))
        self.add(plan_second_draw(self.state, *self._attested(3, link)))
        second = self.state.open_turn.second
        assert second
        again = self._look(2, {d.slot: d.auditors for d in second.looks}, script)
        for record in [*(one for one in sealed if not script[one.slot].lost), *again]:
            self.add(record)
        for slot in sorted(orders):
            if script[slot].appeals and may_appeal(self.state.open_turn.evidence, slot):
                self.add(appeal(self.state, slot))
        for look in range(3, 3 + max((len(fate.further) for fate in script.values()), default=0)):
            due = {slot: further_look(self.state.open_turn.evidence, slot) for slot in sorted(orders)}
            asked = {slot: item.auditors for slot, item in due.items() if item and item.look == look}
            for record in self._look(look, asked, script):
                self.add(record)

    def _look(
        self, look: int, orders: Mapping[int, tuple[str, ...]], script: Mapping[int, Fate]
    ) -> list[Verdict]:
        found = []
        for slot, order in orders.items():
            fate = script[slot]
            outcome = dict(enumerate((fate.first, fate.second, *fate.further), start=1)).get(look, "none")
            asked = order[fate.silent if look == 1 else 0 :]
            if outcome != "none" and asked:
                found.append(verdict(self.state, slot, look, asked[0], outcome, unlike=fate.unlike))
        return found

    def _head(self, number: int) -> tuple[Checkpoint, str]:
        return head(10 * self.state.open_turn.open.turn + number)

    def _attested(self, head_: int, number: int) -> tuple[str, str, dict[str, tuple[str, str]]]:
        checkpoint, _ = self._head(head_)
        names = [name for name in self.state.open_turn.open.witnesses if name not in self.mute]
        return cosigned(checkpoint, names), CHAIN.link(number), links(checkpoint, number, names)

    def finish(self) -> None:
        self.add(plan_run_close(self.state))


def can_open(state: RunState) -> bool:
    """Whether another turn may be opened."""
    run = state.config["run"]
    return state.rounds_done < run["rounds"] and state.attempt < run["max_void"]


def played(script: list[dict[int, Fate]], state: RunState | None = None, good: Fate = GOOD) -> Play:
    """A run through a script, as far as the rules let it go; closed when its last round is done."""
    play = Play(state or started())
    for turn in script:
        if can_open(play.state):
            play.turn(turn, good)
    if play.state.rounds_done == play.state.config["run"]["rounds"]:
        play.finish()
    return play
