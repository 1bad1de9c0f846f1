"""What must hold of every story, each as a function from the story to what is wrong with it.

Owns the table of invariants, and those that look beyond the records: at heads, secrets, the members' folders
and all that was seen on the network. Does not own how a story is played.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

from tests.simulator.accounts import credit_is_accepted_tokens
from tests.simulator.comings import members_come_and_go
from tests.simulator.conduct import (
    accepted_once,
    false_work_is_stopped,
    honest_keys_are_safe,
    no_unaudited_work,
)
from tests.simulator.disputes import (
    appeals_are_in_place,
    first_verdicts_are_sealed,
    looks_are_as_they_must,
)
from tests.simulator.draws import draws_follow_from_the_seed
from tests.simulator.settling import (
    everyone_starts_from_its_last_state,
    records_are_in_order,
    settlements_take_out_what_they_must,
    weights_are_of_what_is_accepted,
)
from tests.simulator.story import Story
from tests.simulator.tolerance import tolerance_keeps_its_place
from verification.errors import BarnraiseError
from verification.fsck import check_run
from verification.notes import parse_cosigned


def heads_are_prefixes(story: Story) -> list[str]:
    """Every head that was ever signed is of a prefix of the log as it is now, so no size has two."""
    roots = prefix_roots(story.entries)
    heads = [
        record.head
        for scene in story.scenes
        for record in (scene.reveal_close, scene.draw, scene.second)
        if record is not None
    ]
    found = []
    for text in dict.fromkeys([*story.notes, *heads]):
        try:
            head = parse_cosigned(text, story.manifest.log_vkey, story.manifest.witness_vkeys).checkpoint
        except BarnraiseError as error:
            found.append(f"something was shown that is no head: {error}")
            continue
        if head.size >= len(roots) or roots[head.size] != head.root:
            found.append(f"a head of size {head.size} was signed that the log does not begin with")
    return found


def prefix_roots(entries: list[bytes]) -> list[bytes]:
    """RFC 6962 roots of every prefix, by a stack of perfect subtrees."""
    stack: list[tuple[int, bytes]] = []
    roots = [hashlib.sha256(b"").digest()]
    for entry in entries:
        size, top = 1, hashlib.sha256(b"\0" + entry).digest()
        while stack and stack[-1][0] == size:
            size, top = size * 2, hashlib.sha256(b"\1" + stack.pop()[1] + top).digest()
        stack.append((size, top))
        root = stack[-1][1]
        for _, left in reversed(stack[:-1]):
            root = hashlib.sha256(b"\1" + left + root).digest()
        roots.append(root)
    return roots


def secrets_stay_private(story: Story) -> list[str]:
    """No key, no salt that was not revealed and no link that was not shown lies in the run folder."""
    parts = [path.read_bytes() for path in sorted(story.folder.rglob("*")) if path.is_file()]
    parts += [base64.b64decode(json.loads(entry)["payload"]) for entry in story.entries]
    text = b"\n".join(parts)
    shown = [r.link for s in story.scenes for r in (s.draw, s.second) if r is not None]
    links = [story.chain.link(t) for t in range(len(shown) + 1, story.chain.length + 1)]
    revealed = {reveal.salt for scene in story.scenes for reveal in scene.reveals.values()}
    held = {f"salt {i}": bytes.fromhex(s) for i, s in enumerate(story.salts) if s not in revealed}
    held |= {f"key {i}": secret for i, secret in enumerate(story.secrets)}
    held |= {f"link {i}": bytes.fromhex(link) for i, link in enumerate(links)}
    return [
        f"{what} lies in the run folder" for what, s in held.items() if s in text or s.hex().encode() in text
    ]


def nothing_is_said_twice(story: Story) -> list[str]:
    """One record for each place that the coordinator signs, one answer of an honest member to a question."""
    found = []
    places: dict[tuple[object, ...], set[bytes]] = {}
    for entry in story.written:
        envelope = json.loads(entry)
        if envelope["signatures"][0]["keyid"] == story.manifest.coordinator:
            statement = json.loads(base64.b64decode(envelope["payload"]))
            value = statement["predicate"]
            place = (statement["predicateType"], *map(value.get, ("round", "attempt", "member", "turn")))
            places.setdefault(place, set()).add(entry)
    found += [
        f"the coordinator signed {len(all_)} of {place}" for place, all_ in places.items() if len(all_) > 1
    ]
    kept = set(story.entries)
    found += ["an entry that was written is not in the log"] * sum(
        entry not in kept for entry in story.written
    )
    found += [f"{len(all_)} opens of turn {turn}" for turn, all_ in story.opens.items() if len(all_) > 1]
    found += [f"{len(all_)} answers of {place}" for place, all_ in story.said.items() if len(all_) > 1]
    return found + _vaults_agree(story)


def _vaults_agree(story: Story) -> list[str]:
    """What honest contributors hold as their word is what the log has of them."""
    found = []
    logged = {(scene.open.turn, c.member) for scene in story.scenes for c in scene.commitments.values()}
    kept = set(story.entries)
    for name, person in story.people.items():
        if person.kind is None and person.role == "contributor":
            for path in sorted((story.vaults / name / "turns").glob("*.json")):
                commitment = json.loads(path.read_bytes())["commitment"].encode()
                if (int(path.stem), name) in logged and commitment not in kept:
                    found.append(f"{name} holds another commitment of turn {path.stem} than the log")
    return found


def level_1_finds_nothing(story: Story) -> list[str]:
    """The independent checker accepts the folder, and says rightly whether the run is complete."""
    findings = check_run(story.folder)
    found = [f"level 1: {f.what} in {f.where}: expected {f.expected}, got {f.got}" for f in findings.failures]
    if findings.complete != story.finished:
        found.append(f"level 1 says complete: {findings.complete}")
    return found


def the_story_ends(story: Story) -> list[str]:
    """The coordinator closed its last round, or stopped because nobody's work was accepted in a row."""
    return list(story.trouble)


INVARIANTS: dict[str, Callable[[Story], list[str]]] = {
    "ends": the_story_ends,
    "unaudited work": no_unaudited_work,
    "honest keys": honest_keys_are_safe,
    "accepted once": accepted_once,
    "draws": draws_follow_from_the_seed,
    "heads": heads_are_prefixes,
    "credit": credit_is_accepted_tokens,
    "false work": false_work_is_stopped,
    "looks": looks_are_as_they_must,
    "seals": first_verdicts_are_sealed,
    "appeals": appeals_are_in_place,
    "tolerance": tolerance_keeps_its_place,
    "order": records_are_in_order,
    "removed": settlements_take_out_what_they_must,
    "weights": weights_are_of_what_is_accepted,
    "membership": members_come_and_go,
    "lineage": everyone_starts_from_its_last_state,
    "secrets": secrets_stay_private,
    "said twice": nothing_is_said_twice,
    "level 1": level_1_finds_nothing,
}


def violations(story: Story) -> list[str]:
    """Everything that does not hold."""
    return [f"[{name}] {text}" for name, check in INVARIANTS.items() for text in check(story)]
