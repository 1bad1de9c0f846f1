"""Who is audited, by whom and in which segments, from the records alone, written from docs/protocol.md.

Owns sections 6 ("Whom", "Which segments", "By whom") and 7 ("Segments") as the log must show them. Shares
nothing with verification.lottery, plans or segments. That a draw's seed is right is level 1's to check.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.simulator.accounts import STRIKES
from tests.simulator.story import Scene, Story
from tests.simulator.tolerance import eligible
from tests.simulator.work import looked_into
from verification.records import Accepted, RoundClose, RoundOpen, Settlement

MILLION = 1_000_000


@dataclass
class Watched:
    """Whose every contribution is audited whole: beginners, and whoever was struck since the last audit."""

    probation: int
    accepted: Counter[str] = field(default_factory=Counter)
    suspect: dict[str, int] = field(default_factory=dict)  # to the turn of the last strike

    def __contains__(self, name: str) -> bool:
        return name in self.suspect or self.accepted[name] < self.probation

    def learn(self, story: Story, scene: Scene, record: RoundClose | Settlement) -> None:
        """What a close or settlement means for them."""
        if isinstance(record, Settlement):
            for gone in record.removed:  # what was accepted under an older key is not counted any more
                self.accepted[gone.member] = max(0, self.accepted[gone.member] - 1)
            self._clear(scene, story.accepted(scene))
            return
        for item in record.accepted:
            self.accepted[item.member] += 1
        if not story.lag:
            self._clear(scene, record.accepted)
        for line in record.rejected:
            if line.reason in STRIKES:
                self.suspect[line.member] = scene.open.turn

    def _clear(self, scene: Scene, accepted: Iterable[Accepted]) -> None:
        for item in accepted:
            if item.slot in scene.drawn and self.suspect.get(item.member, scene.open.turn) < scene.open.turn:
                del self.suspect[item.member]


def draws_follow_from_the_seed(story: Story) -> list[str]:
    """Roster, draws and verdicts name those slots, auditors, segments and leaves that they must."""
    audit, train = story.manifest.config["audit"], story.manifest.config["train"]
    watched = Watched(audit["probation_rounds"])
    found: list[str] = []
    for scene, record in story.course():
        if not isinstance(record, RoundOpen):
            watched.learn(story, scene, record)
            continue
        for name in scene.rotated:
            watched.accepted[name] = 0  # a new key begins anew
        for entry in scene.open.roster:
            count, few = story.segments_of(scene, entry.slot), audit["segments"]
            known = entry.member in watched
            right = (MILLION, count) if known else (audit["rate_ppm"], min(few or count, count))
            if (entry.audit_ppm, entry.audit_segments) != right:
                found.append(f"{scene.label}: {entry.member} is to be audited {right}")
            sizes = train["micro_batch"] or [train["batch"]]
            micro = dict(enumerate(train["micro_batch"])).get(entry.slot, min(sizes))
            if entry.micro_batch != micro:
                found.append(f"{scene.label}: {entry.member} is to take {micro} windows at once")
        if scene.draw:
            told = [(item.slot, item.auditors, item.segments) for item in scene.draw.drawn]
            if told != _drawn(story, scene):
                found.append(f"{scene.label}: drawn are {_drawn(story, scene)}, the log tells {told}")
        found += _verdicts_state_what_was_drawn(story, scene)
    return found


def _drawn(story: Story, scene: Scene) -> list[tuple[int, tuple[str, ...], tuple[int, ...]]]:
    assert scene.draw is not None
    valid = scene.reveal_close.revealed if scene.reveal_close else ()
    payloads = Counter(scene.reveals[slot].opening.payload for slot in valid)
    short = any(line.link is None for line in scene.draw.links)
    drawn = []
    for entry in scene.open.roster:
        slot, count = entry.slot, story.segments_of(scene, entry.slot)
        whole = short or (slot in valid and payloads[scene.reveals[slot].opening.payload] > 1)
        if not whole and uniform(scene.draw.seed, f"audit/{slot}", MILLION) >= entry.audit_ppm:
            continue
        order = eligible(story, scene, slot)
        for i in reversed(range(1, len(order))):
            j = uniform(scene.draw.seed, f"auditors/{slot}/{i}", i + 1)
            order[i], order[j] = order[j], order[i]
        left, wanted = list(range(count)), count if whole else min(entry.audit_segments, count)
        indices = [uniform(scene.draw.seed, f"segments/{slot}/{i}", count - i) for i in range(wanted)]
        drawn.append((slot, tuple(order), tuple(sorted(left.pop(index) for index in indices))))
    return drawn


def _verdicts_state_what_was_drawn(story: Story, scene: Scene) -> list[str]:
    found = []
    for verdict in scene.verdicts:
        segments, count = scene.segments[verdict.slot], story.segments_of(scene, verdict.slot)
        stated = {at for at, leaf in enumerate(verdict.trace) if leaf.startswith("sha256:")}
        whole = len(verdict.trace) == count + 1 and stated == looked_into(segments, count)
        if not whole or (verdict.loss_first is None) != (0 not in segments):
            found.append(f"{scene.label}: {verdict.auditor} states other leaves of slot {verdict.slot}")
    return found


def uniform(seed: str, label: str, n: int) -> int:
    """Section 6, `uniform`."""
    counter = 0
    while True:
        value = {"counter": counter, "label": label, "seed": seed}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(b"barnraise/uniform/v1\0" + text.encode()).digest()
        number = int.from_bytes(digest[:8], "big")
        if number < n * ((1 << 64) // n):
            return number % n
        counter += 1
