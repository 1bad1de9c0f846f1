"""Who is drawn, by whom audited, and in what a verdict differs (protocol, section 6).

Pure functions of seeds and records; where the records came from is for others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from verification.fsck_cosign import WitnessKey
from verification.fsck_findings import Record
from verification.fsck_formats import MAX_ENTRY
from verification.fsck_json import hash_object
from verification.fsck_log import Tree, leaf_hash
from verification.fsck_shapes import DIFFERENCES, MILLION, Tolerances
from verification.fsck_tolerance import Limits, deviates, eligible


def uniform(seed: str, label: str, n: int) -> int:
    """A number in [0, n), n ≥ 1, drawn from a seed for one purpose."""
    limit = n * (2**64 // n)
    counter = 0
    while True:
        # The canonical JSON of three members that need no escapes; drawing is most of what a turn hashes.
        value = f'barnraise/uniform/v1\0{{"counter":{counter},"label":"{label}","seed":"{seed}"}}'
        x = int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big")
        if x < limit:
            return x % n
        counter += 1


def draw_seed(
    opened: Record,
    look: int,
    head_size: int,
    head_root: bytes,
    link: str,
    links: Sequence[Record],
    pulse: Record | None,
) -> str:
    """The seed of a draw (look 1) or second draw (look 2) of the turn that `opened` opens.

    `links` are the witnesses', as in the record; `pulse` is what `fsck_beacon` makes of the record's.
    """
    value = {
        "attempt": opened["attempt"],
        "beacon": pulse,
        "head_root": head_root.hex(),
        "head_size": head_size,
        "link": link,
        "look": look,
        "round": opened["round"],
        "run": opened["run"],
        "turn": opened["turn"],
        "witnesses": [[line["witness"], line["link"]] for line in links],
    }
    return hash_object("barnraise/draw/v1", value)


@dataclass
class Chain:
    """The hash chain of draws: the last link that held, and its number (the end is number 0)."""

    last: bytes
    length: int
    number: int = 0

    def holds(self, number: int, link: str) -> bool:
        """Whether `link` is the chain's link of that number; if so, later ones are compared with it."""
        if not self.number < number <= self.length:
            return False
        x = bytes.fromhex(link)
        value = x
        for _ in range(number - self.number):
            value = hashlib.sha256(value).digest()
        if value == self.last:
            self.last, self.number = x, number
            return True
        return False


@dataclass
class Witness:
    """A witness of the manifest: its key, and its chain as far as it was shown."""

    key: WitnessKey
    chain: Chain


def is_short(named: Iterable[str], links: Sequence[Record]) -> bool:
    """Whether a witness named in the open has given no link."""
    given = {line["witness"] for line in links if line["link"] is not None}
    return any(name not in given for name in named)


def twins(openings: Mapping[int, Record]) -> set[int]:
    """Slots whose payload another valid reveal of the same turn has too; `openings` are those reveals'."""
    times = Counter(opening["payload"] for opening in openings.values())
    return {slot for slot, opening in openings.items() if times[opening["payload"]] > 1}


def drawn_slots(
    seed: str,
    roster: Iterable[Record],
    auditors: Sequence[Record],
    tolerances: Tolerances,
    certain: Container[int] = (),
) -> dict[int, list[str]]:
    """Drawn slots, `certain` ones and by lot, and their auditors in the order in which they are asked."""
    drawn: dict[int, list[str]] = {}
    for entry in roster:
        slot = entry["slot"]
        if slot not in certain and uniform(seed, f"audit/{slot}", MILLION) >= entry["audit_ppm"]:
            continue
        order = [auditor["member"] for auditor in eligible(entry, auditors, tolerances)]
        for i in range(len(order) - 1, 0, -1):
            j = uniform(seed, f"auditors/{slot}/{i}", i + 1)
            order[i], order[j] = order[j], order[i]
        drawn[slot] = order
    return drawn


def drawn_segments(seed: str, slot: int, count: int, few: int) -> list[int]:
    """Which `few` of the `count` segments of a drawn slot are drawn, ascending.

    No more of them than no record has room for: numbers of steps are whatever somebody wrote down.
    """
    if few >= count:
        return list(range(min(count, MAX_ENTRY)))
    taken: list[int] = []
    for i in range(min(few, MAX_ENTRY)):
        at = uniform(seed, f"segments/{slot}/{i}", count - i)
        # Of what is left, taken[m] - m elements lie below the one taken that stands at m.
        low, high = 0, len(taken)
        while low < high:
            middle = (low + high) // 2
            if taken[middle] - middle <= at:
                low = middle + 1
            else:
                high = middle
        taken.insert(low, at + low)
    return taken


def looked_into(segments: Iterable[int], count: int) -> set[int]:
    """The leaves that a draw of these of `count` segments looks into (section 7): where each begins and ends,
    what the boundary starts from, and the boundary. They are the same ones where the slot rests on tolerance.
    """
    ends = set(segments)
    return {count - 1, count, *ends, *(end - 1 for end in ends if end)}


def second_looks(
    seed: str,
    drawn: Mapping[int, Sequence[str]],
    first: Mapping[int, Record],
    operators: Mapping[str, str],
    second_look_ppm: int,
    *,
    short: bool = False,
) -> dict[int, list[str]]:
    """Slots that get a second look, and its candidates in order. `first` holds first-looks by slot.

    In a `short` turn, one whose draw or second draw is, all get one for which there are candidates.
    """
    looks: dict[int, list[str]] = {}
    for slot, seal in sorted(first.items()):
        order = drawn[slot]
        after = order[order.index(seal["auditor"]) + 1 :]
        candidates = [name for name in after if operators[name] != operators[seal["auditor"]]]
        certain = short or seal["outcome"] == "fail"
        if candidates and (certain or uniform(seed, f"second/{slot}", MILLION) < second_look_ppm):
            looks[slot] = candidates
    return looks


def differences(opening: Record, verdict: Record, limits: Limits | None) -> list[str]:
    """In what an auditor's result differs from an opening, in the protocol's order.

    `limits` are the thresholds of its deviations, None where the slot does not rest on tolerance.
    """
    tree = Tree()
    for leaf in verdict["trace"]:
        digest = leaf.removeprefix("sha256:")
        tree.add(bytes.fromhex(leaf) if digest == leaf else leaf_hash(bytes.fromhex(digest)))
    root = f"sha256:{tree.root().hex()}"
    losses = [(verdict[key], opening[key]) for key in ("loss_first", "loss_last")]
    differs = {
        "trace": (root, tree.size) != (opening["trace_root"], opening["trace_leaves"]),
        "payload": verdict["payload"] != opening["payload"],
        "next_state": verdict["next_state"] != opening["next_state"],
        "loss": any(found is not None and found != told for found, told in losses),
        "deviation": deviates(verdict, limits),
    }
    return [name for name in DIFFERENCES if differs[name]]
