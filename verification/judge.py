"""Judging: a claim against its recomputation, and a turn's evidence into who is accepted.

Owns the comparison behind a verdict and the settling rules of docs/protocol.md, section 6. Does not
own arrays: a recomputation reaches it as digests and integers. Does not own credit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from verification.disputes import prevailing
from verification.encoding import digest_hex, hash_object
from verification.merkle import leaf_hash, root
from verification.records import (
    AuditorEntry,
    Claim,
    Deviation,
    Draw,
    FirstLooks,
    Opening,
    Reveal,
    RosterEntry,
    RoundOpen,
    SecondDraw,
    SlotAuditors,
    Verdict,
)
from verification.segments import looked_into, opened_leaves
from verification.tolerance import ServedStep, Tolerances, eligible, rests_on_tolerance, thresholds

Look = tuple[int, int]  # (slot, 1, 2, …)


@dataclass(frozen=True)
class Recomputed:
    """What a recomputation of a contribution, or of some segments of it, gave.

    `trace` holds the leaf digests, and the bare leaf hashes of what was not looked into; losses are
    micronats, the first None when its segment was not among them.
    """

    payload: str
    next_state: str
    trace: tuple[str, ...]
    loss_first: int | None
    loss_last: int
    deviations: tuple[Deviation, ...] = ()


def trace_root(leaves: Sequence[str]) -> str:
    """`sha256:` RFC 6962 root over the 32-byte leaf digests; what is bare hex is a leaf hash already."""
    return "sha256:" + root([trace_leaf_hash(leaf) for leaf in leaves]).hex()


def trace_leaf_digest(losses: Sequence[int], state: str, step: int, weights: str) -> str:
    """A leaf of the trace (docs/protocol.md, section 7), of the digests of weights and state there."""
    leaf = {"losses": list(losses), "state": state, "step": step, "weights": weights}
    return hash_object("barnraise/trace-leaf/v1", leaf)


def trace_leaf_hash(leaf: str) -> bytes:
    """The RFC 6962 leaf hash of a leaf of the trace; bare hex is one already."""
    if ":" in leaf:
        return leaf_hash(bytes.fromhex(digest_hex(leaf)))
    return bytes.fromhex(leaf)


@dataclass(frozen=True)
class Audit:
    """What an audit looks into: segments, of which class's work, and whether it is by tolerance.

    `seed` is the draw's, which sketches follow from; empty where there is no draw yet.
    """

    segments: tuple[int, ...]
    numerics_class: str
    tolerant: bool = False
    tolerances: Tolerances = ()
    seed: str = ""

    @classmethod
    def of(
        cls,
        tolerances: Tolerances,
        entry: RosterEntry,
        auditors: Sequence[AuditorEntry],
        segments: Sequence[int],
        seed: str = "",
    ) -> Audit:
        """The audit of `segments` of a roster entry, in a turn with these auditors."""
        tolerant = rests_on_tolerance(tolerances, entry, auditors)
        return cls(tuple(segments), entry.numerics_class, tolerant, tolerances, seed)

    def opened_leaves(self, count: int) -> tuple[int, ...]:
        """The leaves of a trace of `count` segments that the contributor opens, ascending."""
        return opened_leaves(self.segments, count, tolerant=self.tolerant)

    def opens_a_trace(self, count: int) -> bool:
        """Whether the contributor serves its trace beside its start state."""
        return self.tolerant or len(self.segments) < count

    def looked_into(self, count: int) -> frozenset[int]:
        """The leaves of a trace of `count` segments whose digests a verdict states."""
        return looked_into(self.segments, count, tolerant=self.tolerant)

    def is_hollow(self, verdict: Verdict, served: Sequence[ServedStep]) -> bool:
        """Whether a verdict passes steps whose gradients it cannot have seen: its sketches are of others.

        `served` are the sketches of the steps as they were served, by segment.
        """
        allowed = thresholds(self.tolerances, self.numerics_class, verdict.numerics_class)
        pairs = zip(served, verdict.deviations, strict=True)
        return (
            verdict.outcome == "pass"
            and allowed is not None
            and not all(allowed.covers(step, found.sketch) for step, found in pairs)
        )

    def too_far(self, numerics_class: str, deviations: Sequence[Deviation]) -> bool:
        """Whether an auditor of a class found a deviation that is above what is allowed between the two."""
        allowed = thresholds(self.tolerances, self.numerics_class, numerics_class)
        return bool(deviations) and (allowed is None or any(map(allowed.exceeded_by, deviations)))


def judged(audit: Audit, numerics_class: str, opening: Opening, done: Recomputed) -> tuple[Claim, ...]:
    """What an auditor of a class finds wrong with `opening`, in the protocol's order."""
    differs = differences(opening, done)
    return (*differs, "deviation") if audit.too_far(numerics_class, done.deviations) else differs


def differences(opening: Opening, done: Recomputed) -> tuple[Claim, ...]:
    """In which claims `opening` and the recomputation differ, in the protocol's order."""
    differs: list[Claim] = []
    if (opening.trace_root, opening.trace_leaves) != (trace_root(done.trace), len(done.trace)):
        differs.append("trace")
    if opening.payload != done.payload:
        differs.append("payload")
    if opening.next_state != done.next_state:
        differs.append("next_state")
    first = opening.loss_first if done.loss_first is None else done.loss_first
    if (opening.loss_first, opening.loss_last) != (first, done.loss_last):
        differs.append("loss")
    return tuple(differs)


def verdict_is_sound(verdict: Verdict, reveal: Reveal, audit: Audit) -> bool:
    """Whether a verdict states what `audit` looks into, and its outcome follows from that."""
    count = reveal.opening.trace_leaves - 1
    stated = {place for place, leaf in enumerate(verdict.trace) if ":" in leaf}
    if len(verdict.trace) != count + 1 or stated != audit.looked_into(count):
        return False
    if (verdict.loss_first is None) != (0 not in audit.segments):
        return False
    if len(verdict.deviations) != (len(audit.segments) if audit.tolerant else 0):
        return False
    differs = judged(audit, verdict.numerics_class, reveal.opening, stated_by(verdict))
    return verdict.differs == differs and (verdict.outcome == "pass") == (not differs)


def stated_by(verdict: Verdict) -> Recomputed:
    """What a verdict says was found."""
    v = verdict
    return Recomputed(v.payload, v.next_state, v.trace, v.loss_first, v.loss_last, v.deviations)


@dataclass(frozen=True)
class Outcome:
    """A roster entry's result: `reason` is None when accepted."""

    entry: RosterEntry
    reason: str | None
    drawn: bool

    @property
    def fault(self) -> bool:
        """Confirmed by two auditors of different operators."""
        return self.reason == "failed-audit"


@dataclass(frozen=True)
class TurnEvidence:
    """Everything a turn's settling depends on; without a second draw it is only provisional."""

    open: RoundOpen
    committed: Sequence[int]
    refused: Mapping[int, str]
    draw: Draw
    unserved: Sequence[int]
    verdicts: Mapping[Look, Verdict]
    first_looks: FirstLooks | None
    second: SecondDraw | None
    appeals: Collection[int] = ()
    tolerances: Tolerances = ()


def settle(turn: TurnEvidence) -> tuple[Outcome, ...]:
    """The outcome of every roster entry, by slot: the first rule of section 6 that applies."""
    drawn = {item.slot: item.auditors for item in turn.draw.drawn}
    return tuple(
        Outcome(entry, _reason(turn, entry, drawn.get(entry.slot)), entry.slot in drawn)
        for entry in turn.open.roster
    )


def _reason(turn: TurnEvidence, entry: RosterEntry, auditors: tuple[str, ...] | None) -> str | None:
    slot = entry.slot
    if slot not in turn.committed:
        return "late"
    if slot in turn.refused:
        return turn.refused[slot]
    # Work that nobody could check has no weight, drawn or not: else a class of one's own would be safe.
    if (entry.audit_ppm > 0 or auditors is not None) and not eligible(
        turn.tolerances, entry, turn.open.auditors
    ):
        return "no-eligible-auditor"
    if auditors is None:
        return None
    if slot in turn.unserved:
        return "unserved"
    return None if turn.second is None else reason_by_verdicts(turn, slot)


def reason_by_verdicts(turn: TurnEvidence, slot: int) -> str | None:
    """Why the verdicts on a served slot reject it; None where they accept it."""
    verdicts = verdicts_on(turn, slot)
    if 1 not in verdicts:
        return "unaudited"
    if 2 not in verdicts:
        if verdicts[1].outcome == "fail":
            return "unconfirmed"
        return "unaudited" if slot in _slots(turn.second.looks if turn.second else ()) else None
    side = prevailing(list(verdicts.values()))
    if side is None:
        return "disputed"
    return None if side[0] == "pass" else "failed-audit"


def verdicts_on(turn: TurnEvidence, slot: int) -> dict[int, Verdict]:
    """The verdicts on a slot by look, in the order of looks."""
    return {look: verdict for (of, look), verdict in sorted(turn.verdicts.items()) if of == slot}


def _slots(items: Sequence[SlotAuditors]) -> set[int]:
    return {item.slot for item in items}


def bears_out(reason: str | None, outcome: str) -> bool:
    """Whether a verdict agrees with how its slot was settled; only such a verdict earns credit."""
    return outcome == {None: "pass", "failed-audit": "fail"}.get(reason)
