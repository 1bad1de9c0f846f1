"""Judging: a claim against its recomputation, and a turn's evidence into who is accepted.

Owns the comparison behind a verdict and the settling rules of docs/protocol.md, section 6. Does not
own arrays: a recomputation reaches it as digests and integers. Does not own credit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verification.encoding import digest_hex, hash_object
from verification.merkle import leaf_hash, root
from verification.records import (
    Claim,
    Draw,
    DrawnSlot,
    Missed,
    Opening,
    Reveal,
    RosterEntry,
    RoundOpen,
    SecondDraw,
    SlotAuditors,
    Verdict,
)
from verification.segments import looked_into

Look = tuple[int, int]  # (slot, 1 or 2)


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


def verdict_is_sound(verdict: Verdict, reveal: Reveal, segments: Sequence[int]) -> bool:
    """Whether a verdict states what an audit of `segments` looks into, and its outcome follows from that."""
    count = reveal.opening.trace_leaves - 1
    stated = {place for place, leaf in enumerate(verdict.trace) if ":" in leaf}
    if len(verdict.trace) != count + 1 or stated != looked_into(segments, count):
        return False
    if (verdict.loss_first is None) != (0 not in segments):
        return False
    done = Recomputed(
        verdict.payload, verdict.next_state, verdict.trace, verdict.loss_first, verdict.loss_last
    )
    differs = differences(reveal.opening, done)
    return verdict.differs == differs and (verdict.outcome == "pass") == (not differs)


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
    """Everything a turn's settling depends on."""

    open: RoundOpen
    committed: Sequence[int]
    refused: Mapping[int, str]
    draw: Draw
    unserved: Sequence[int]
    verdicts: Mapping[Look, Verdict]
    second: SecondDraw


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
    if (entry.audit_ppm > 0 or auditors is not None) and not _checkable(turn.open, entry):
        return "no-eligible-auditor"
    if auditors is None:
        return None
    if slot in turn.unserved:
        return "unserved"
    first, second = turn.verdicts.get((slot, 1)), turn.verdicts.get((slot, 2))
    if first is None:
        return "unaudited"
    if first.outcome == "pass":
        if slot not in {look.slot for look in turn.second.looks}:
            return None
        if second is None:
            return "unaudited"
        return None if second.outcome == "pass" else "disputed"
    if second is None:
        return "unconfirmed"
    same = (first.payload, first.next_state, first.trace) == (
        second.payload,
        second.next_state,
        second.trace,
    )
    return "failed-audit" if second.outcome == "fail" and same else "disputed"


def _checkable(open_: RoundOpen, entry: RosterEntry) -> bool:
    return any(
        auditor.operator != entry.operator and auditor.numerics_class == entry.numerics_class
        for auditor in open_.auditors
    )


def bears_out(reason: str | None, outcome: str) -> bool:
    """Whether a verdict agrees with how its slot was settled; only such a verdict earns credit."""
    return outcome == {None: "pass", "failed-audit": "fail"}.get(reason)


def missed_auditors(turn: TurnEvidence) -> tuple[Missed, ...]:
    """Who was asked, in the drawn order, and gave no verdict; it follows from who did."""
    asked = [item for item in turn.draw.drawn if _was_asked(turn, item.slot)]
    missed = [m for item in asked for m in _missed(item, 1, turn.verdicts)]
    missed += [m for item in turn.second.looks for m in _missed(item, 2, turn.verdicts)]
    return tuple(sorted(missed, key=lambda m: (m.slot, m.look)))


def _was_asked(turn: TurnEvidence, slot: int) -> bool:
    return slot in turn.committed and slot not in turn.refused and slot not in turn.unserved


def _missed(item: SlotAuditors | DrawnSlot, look: int, verdicts: Mapping[Look, Verdict]) -> list[Missed]:
    given = verdicts.get((item.slot, look))
    stop = item.auditors.index(given.auditor) if given else len(item.auditors)
    return [Missed(item.slot, 1 if look == 1 else 2, name) for name in item.auditors[:stop]]
