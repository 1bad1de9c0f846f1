"""Late settling from the records alone, written from docs/protocol.md, sections 3, 4, 6, 9 and 10.

Owns what a settlement takes out, the checkpoints of closes and settlements by the slow reference aggregator,
where everybody starts from, and the order of records. Shares nothing with verification.settling, plans or
rounds, nor with pipeline.lineage. Does not own credit (accounts.py), nor who is honest (conduct.py).
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from model.arrays import arrays_from_safetensors
from tests import reference_aggregator
from tests.simulator.assembly import SPECS
from tests.simulator.disputes import reason
from tests.simulator.story import Scene, Story
from tests.simulator.tolerance import is_lax
from verification.encoding import blake3_digest
from verification.records import Base, RoundClose, RoundOpen, Settlement

Line = tuple[int, int, int, str, str, bool]  # of what is removed: round, attempt, slot, member, reason, fault


def settlements_take_out_what_they_must(story: Story) -> list[str]:
    """Whatever is not borne out goes, with all that its member had accepted later; nobody else is touched."""
    found: list[str] = []
    gone: set[tuple[int, int, int]] = set()
    closed: list[Scene] = []
    for scene, record in story.course():
        if isinstance(record, RoundClose):
            closed.append(scene)
            if story.lag and (record.missed or record.overruled):
                found.append(f"{scene.label}: somebody missed an audit, or lost one, before there was one")
        if not isinstance(record, Settlement):
            continue
        due = _due(scene, closed, gone)
        told = [(i.round, i.attempt, i.slot, i.member, i.reason, i.fault) for i in record.removed]
        if told != due:
            found.append(f"{scene.label}: to be removed are {due}, the settlement tells {told}")
        place = (scene.open.round, scene.open.attempt)
        before = {slot for *at, slot in gone if tuple(at) == place}
        if asked := before & {verdict.slot for verdict in scene.verdicts}:
            found.append(f"{scene.label}: verdicts on slots {asked}, which are removed")
        if asked := before & {item.slot for item in record.missed}:
            found.append(f"{scene.label}: somebody missed slots {asked}, which are removed")
        cases = [item.slot for item in record.removed if item.reason == "failed-audit" and not item.evidence]
        if cases or any(item.evidence for item in record.removed if item.reason == "follows"):
            found.append(f"{scene.label}: evidence is missing or too much")
        gone |= {(item.round, item.attempt, item.slot) for item in record.removed}
    return found


def _due(scene: Scene, closed: list[Scene], gone: Collection[tuple[int, int, int]]) -> list[Line]:
    """What the settlement of a turn removes, when these are closed and `gone` is removed already."""
    due: list[Line] = []
    fallen: set[str] = set()
    for later in closed[closed.index(scene) :]:
        place = (later.open.round, later.open.attempt)
        for item in later.close.accepted if later.close else ():
            if (*place, item.slot) in gone:
                continue
            why = "follows" if item.member in fallen else None
            if later is scene:
                why = reason(scene, item.slot)
            if why:
                due.append((*place, item.slot, item.member, why, why == "failed-audit"))
        if later is scene:
            fallen = {line[3] for line in due}
    return due


# --- weights ---


@dataclass
class _Checkpoint:
    weights: list[float]
    outer: dict[str, Any]


def weights_are_of_what_is_accepted(story: Story) -> list[str]:
    """Every close and settlement names the weights of all that is still accepted, to the bit.

    `settled` names those up to the settled turn.
    """
    if not story.lag:
        return []
    found: list[str] = []
    start = _start(story)
    if _digests(start) != story.manifest.initial:
        found.append("checkpoint 0 is not the manifest's")
    known: dict[tuple[object, ...], _Checkpoint] = {}
    waiting: list[Scene] = []
    over: list[Scene] = []
    gone: set[tuple[int, int, int]] = set()
    base = story.manifest.initial
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            if record.base != base:
                found.append(f"{scene.label}: the base is not the checkpoint before it")
            continue
        if isinstance(record, RoundClose):
            waiting.append(scene)
        else:
            gone |= {(item.round, item.attempt, item.slot) for item in record.removed}
            over.append(waiting.pop(0))
            settled = _after(story, over, gone, start, known)
            if record.settled != _digests(settled):
                found.append(f"{scene.label}: `settled` is not what is accepted up to there gives")
        base = Base(record.weights, record.outer)
        if base != _digests(_after(story, [*over, *waiting], gone, start, known)):
            found.append(f"{scene.label}: the weights of its {record.kind} are not of what is accepted")
    return found


def _start(story: Story) -> _Checkpoint:
    weights = arrays_from_safetensors(
        (story.folder / "checkpoints" / "round-00000.safetensors").read_bytes(), SPECS
    )
    flat = [float(x) for name, _ in story.manifest.arrays for x in weights[name].ravel()]
    zeros = [0.0] * len(flat)
    if story.manifest.config["outer"]["optimizer"] == "nesterov":
        return _Checkpoint(flat, {"momentum": zeros})
    return _Checkpoint(flat, {"m": zeros, "v": zeros, "beta1_product": 1.0, "beta2_product": 1.0})


def _after(
    story: Story,
    scenes: list[Scene],
    gone: Collection[tuple[int, int, int]],
    start: _Checkpoint,
    known: dict[tuple[object, ...], _Checkpoint],
) -> _Checkpoint:
    """The checkpoint after these turns, when they were closed with what is not `gone` alone."""
    at, key = start, tuple[object, ...]()
    for scene in scenes:
        place = (scene.open.round, scene.open.attempt)
        assert scene.close is not None
        left = [item for item in scene.close.accepted if (*place, item.slot) not in gone]
        key = (*key, (place, tuple(item.slot for item in left)))
        if key not in known:
            accepted = [
                {
                    "operator": scene.open.entry(item.slot).operator,
                    "payload": (story.folder / "payloads" / item.payload[7:]).read_bytes(),
                    "rests_on_tolerance": is_lax(story, scene, item.slot),
                    "tokens": item.tokens,
                }
                for item in left
            ]
            rate = float.fromhex(scene.open.outer_lr)
            manifest = story.manifest
            known[key] = _Checkpoint(
                *reference_aggregator.outer_step(
                    manifest.config, manifest.arrays, at.weights, at.outer, accepted, rate
                )
            )
        at = known[key]
    return at


def _digests(at: _Checkpoint) -> Base:
    weights: dict[str, tuple[str, tuple[int, ...], list[float]]] = {}
    rest = list(at.weights)
    for spec in SPECS:
        count = math.prod(spec.shape)
        weights[spec.name] = ("f", spec.shape, rest[:count])
        rest = rest[count:]
    outer = {
        name: ("f", (len(value),), value) if isinstance(value, list) else ("d", (), [value])
        for name, value in at.outer.items()
    }
    return Base(_digest(weights), _digest(outer))


def _digest(arrays: dict[str, tuple[str, tuple[int, ...], list[float]]]) -> str:
    """Section 1, arrays."""
    parts = [b"barnraise-arrays-v1\n", struct.pack("<I", len(arrays))]
    for name, (kind, shape, values) in sorted(arrays.items()):
        parts.append(struct.pack("<H", len(name)) + name.encode())
        parts.append(struct.pack(f"<BB{len(shape)}Q", "fd".index(kind), len(shape), *shape))
        parts.append(struct.pack(f"<{len(values)}{kind}", *values))
    return blake3_digest(b"".join(parts))


# --- lineage ---


def everyone_starts_from_its_last_state(story: Story) -> list[str]:
    """That of its last contribution that is still accepted, under its present key; zero if it has none."""
    found: list[str] = []
    zero, state = story.manifest.zero_state, story.manifest.config["state"]
    states: dict[str, list[tuple[tuple[int, int], str]]] = {}
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            for name in scene.rotated:
                states.pop(name, None)
            resets = state["policy"] == "reset" and (record.round - 1) % state["every"] == 0
            for entry in record.roster:
                held = states.get(entry.member)
                due = held[-1][1] if held and not resets else zero
                if entry.start_state != due:
                    found.append(f"{scene.label}: {entry.member} starts from a state that is not its last")
        elif isinstance(record, RoundClose):
            for item in record.accepted:
                opening = scene.reveals[item.slot].opening
                place = (scene.open.round, scene.open.attempt)
                states.setdefault(item.member, []).append((place, opening.next_state))
        else:
            for gone in record.removed:
                place = (gone.round, gone.attempt)
                states[gone.member] = [s for s in states.get(gone.member, []) if s[0] != place]
    return found


# --- the order of records ---

TURN = ("round-open", "commitment*", "commit-close", "reveal*", "reveal-close", "draw", "served")
AUDIT = (
    *("first-looks", "second-draw", "verdict 1*", "verdict 2*", "appeal*"),
    *(f"verdict {look}*" for look in range(3, 9)),
)
BETWEEN = ("key-rotation", "key-revocation", "leave", "return", "newcomer")
NEXT = ("round-open", "run-close")


def records_are_in_order(story: Story) -> list[str]:
    """Section 3: a turn is settled right after the close of the turn `lag` later; no audit comes before."""
    told = [_told(entry) for entry in story.entries]
    first = next((at for at, (kind, *_) in enumerate(told) if kind == "round-open"), len(told))
    told[first:] = [("newcomer" if kind == "enrol" else kind, *rest) for kind, *rest in told[first:]]
    due = _grammar(story)
    stack = [name for name in told if name[0] not in ("manifest", "enrol", *BETWEEN)]
    found: list[str] = []
    at = 0
    for kind, place in due:
        many = kind.endswith("*")
        while at < len(stack) and stack[at][:2] == (kind.rstrip("*"), place):
            at += 1
            if not many:
                break
        else:
            if many:
                continue
            if at < len(stack):
                found.append(f"{stack[at][:2]} stands where {kind} of {place} is due")
            break
    if not found and at < len(stack):
        found.append(f"{stack[at][:2]} stands where nothing is due")
    links = [(kind, link) for kind, _, link in told if link]
    for number, (kind, link) in enumerate(links, 1):
        if story.chain.link(number) != link:
            found.append(f"the {kind} with number {number} shows another link")
    found += _out_of_turn(story.entries)
    return found + _identities_are_between_turns(story, [kind for kind, *_ in told])


def _told(entry: bytes) -> tuple[str, tuple[int, int] | None, str | None]:
    """(kind, (round, attempt), link) of an entry."""
    statement = json.loads(base64.b64decode(json.loads(entry)["payload"]))
    value = statement["predicate"]
    place = (value["round"], value["attempt"]) if "attempt" in value else None
    kind = statement["predicateType"].split(":")[1]
    return f"verdict {value['look']}" if kind == "verdict" else kind, place, value.get("link")


def _out_of_turn(entries: list[bytes]) -> list[str]:
    """Verdicts of a look, and appeals, that do not stand by slot."""
    found: list[str] = []
    last: dict[tuple[str, tuple[int, int] | None], int] = {}
    for entry in entries:
        kind, place, _ = _told(entry)
        if kind.startswith("verdict") or kind == "appeal":
            slot = json.loads(base64.b64decode(json.loads(entry)["payload"]))["predicate"]["slot"]
            if slot <= last.get((kind, place), -1):
                found.append(f"the {kind} of slot {slot} stands after that of slot {last[kind, place]}")
            last[kind, place] = slot
    return found


def _grammar(story: Story) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Which records are due, by the turns there are; the log may break off anywhere."""
    places = [(scene.open.round, scene.open.attempt) for scene in story.scenes]
    audit = [*AUDIT, "settlement" if story.lag else "round-close"]
    waiting: list[tuple[int, int]] = []
    for number, place in enumerate(places):
        for kind in (*TURN, *(audit if not story.lag else ["round-close"])):
            yield kind, place
        if story.lag:
            waiting.append(place)
            last = story.ran_out and number + 1 == len(places)
            while len(waiting) > story.lag or (last and waiting):
                first = waiting.pop(0)
                for kind in audit:
                    yield kind, first
    if story.end is not None:
        yield "run-close", None


def _identities_are_between_turns(story: Story, kinds: list[str]) -> list[str]:
    ends = ("settlement", "round-close") if story.lag else ("round-close",)
    late = [k for k in kinds if k not in BETWEEN]
    found, at = [], 0
    for kind in kinds:
        if kind not in BETWEEN:
            at += 1
        elif at == 0 or late[at - 1] not in ends or (at < len(late) and late[at] not in NEXT):
            found.append(f"a {kind} stands after a {late[at - 1]}")
    return found
