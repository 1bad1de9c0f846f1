"""Keys and types of every record (protocol, sections 4 and 5).

Owns the tables of what each predicate may hold, and `Settings`, the members of the configuration that
rules refer to. Whether the values are right is for the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verification.fsck_beacon import BEACON_SCHEME
from verification.fsck_formats import MAX_ENTRY, PROTOCOL, parse_hex_float
from verification.fsck_json import MAX_INTEGER
from verification.fsck_schema import (
    At,
    Shape,
    boolean,
    choice,
    exactly,
    hex_float,
    integer,
    list_of,
    members,
    nullable,
    pair,
    pattern,
    span,
    strings,
    text,
    wrong,
)

REFUSALS = ("unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved")
FOLLOWS = "follows"
"""Why a settlement removes what came after something that it removes."""
REASONS = (*REFUSALS, "late", "no-eligible-auditor", "unaudited", "unconfirmed", "disputed", "failed-audit")
OVERRULED = "overruled"
"""The reason of a case on a slot that is accepted."""
CASE_FILES = {
    "failed-audit": ("payload", "start_state"),
    OVERRULED: ("payload", "start_state"),
    "malformed-payload": ("payload",),
}
"""The reasons that always have a case, and its files; their digests are the opening's (section 11).

A case on verdicts for which a trace was served has the file `trace` too, and each has those of `RERUN_FILES`.
"""
_ON_VERDICTS = ("draw", "manifest", "open", "reveal", "weights", "windows")
RERUN_FILES = {
    "failed-audit": _ON_VERDICTS,
    OVERRULED: _ON_VERDICTS,
    "malformed-payload": ("manifest", "open", "reveal"),
}
"""What a rerun takes beside them and the verdicts and appeals; whoever reruns a case checks what they are."""
DIFFERENCES = ("trace", "payload", "next_state", "loss", "deviation")
MILLION = 1_000_000


def _keys_by_member(value: Any, at: At) -> None:
    if not isinstance(value, dict):
        raise wrong(at, "an object from member to key", value)
    for member, key in value.items():
        NAME(member, at)
        KEY(key, at)


_NUMBER = integer()
_LIMIT = integer(0, MAX_INTEGER - 1)
_PPM = integer(0, MILLION)
SHA256 = pattern("sha256:[0-9a-f]{64}", "a sha256 digest")
BLAKE3 = pattern("blake3:[0-9a-f]{64}", "a blake3 digest")
DIGEST = pattern("(sha256|blake3):[0-9a-f]{64}", "a digest")
KEY = pattern("ed25519:[0-9a-f]{64}", "a key")
HEX64 = pattern("[0-9a-f]{64}", "64 hex digits")
HEX96 = pattern("[0-9a-f]{96}", "96 hex digits")
HEX192 = pattern("[0-9a-f]{192}", "192 hex digits")
NAME = pattern("[a-z0-9._-]{1,64}", "1 to 64 of a-z 0-9 . _ -")
CLASS = pattern("[ -~]{1,200}", "1 to 200 printable ASCII characters")

_ARRAY = pair(text, list_of(integer(1)))
_SLOTS = list_of(_NUMBER)
_PAIR_OF_ARRAYS = members({"outer": BLAKE3, "weights": BLAKE3})
_FILE = pattern(r"(?!tokenizer\.json\Z)[a-z0-9][a-z0-9._-]{0,99}", "a file name of a shard")
_SHARD = members({"digest": BLAKE3, "file": _FILE, "windows": integer(1)})
_DATASET = members(
    {
        "context": integer(1),
        "licence": strings,
        "root": SHA256,
        "source": strings,
        "tokenizer": BLAKE3,
        "train": list_of(_SHARD, 1),
        "validation": list_of(_SHARD),
        "vocab_size": integer(1),
    }
)
_TOLERANCE = members(
    {
        "classes": pair(CLASS, CLASS),
        "loss_ppm": _LIMIT,
        "norm_ppb": _LIMIT,
        "peak_ppm": _LIMIT,
        "step_milli": _LIMIT,
    }
)
_CONFIG: dict[str, dict[str, Shape]] = {
    "run": {"rounds": integer(1), "seed": integer(-MAX_INTEGER), "max_void": integer(1)},
    "train": {
        "mode": choice("local", "gradient"),
        "batch": integer(1),
        "micro_batch": list_of(integer(1)),
        "steps": list_of(integer(1)),
        "trace_every": integer(1),
        "inner": members({"decay_rounds": _NUMBER, "lr": hex_float, "warmup_steps": _NUMBER}, others=True),
    },
    "outer": {"lr": hex_float},
    "compression": {"chunk": integer(32), "k": integer(8), "error_feedback": hex_float},
    "audit": {
        "rate_ppm": _PPM,
        "second_look_ppm": _PPM,
        "probation_rounds": _NUMBER,
        "segments": _NUMBER,
        "lag": _NUMBER,
        "tolerance": list_of(_TOLERANCE),
        "tolerance_cap_ppm": integer(1, 1_000_000),
    },
    "credit": {"vest_rounds": _NUMBER, "strikes": integer(1), "operator_cap_ppm": _PPM},
    "state": {"policy": choice("snapshot", "reset"), "every": integer(1)},
    "timing": {
        "mode": choice("fixed", "measured"),
        "round_ms": _NUMBER,
        "deadline_ms": _NUMBER,
        "max_steps": integer(1),
    },
    "checkpoint": {"every": integer(1)},
    "eval": {"every": integer(1)},
    "identity": {"allow": Shape(_keys_by_member), "newcomers": _NUMBER},
}
_CHAIN = members({"end": SHA256, "length": _NUMBER})
_WITNESS = members({"chain": _CHAIN, "proof": text, "vkey": text})
_BEACON = members(
    {"genesis": _NUMBER, "period": integer(1), "public_key": HEX192, "scheme": choice(BEACON_SCHEME)}
)
_MANIFEST: dict[str, Shape] = {
    "protocol": choice(PROTOCOL),
    "name": text,
    "origin": text,
    "log_vkey": text,
    "coordinator": KEY,
    "draw_chain": _CHAIN,
    "versions": strings,
    "source": DIGEST,
    "dataset": _DATASET,
    "arrays": list_of(_ARRAY, 1),
    "initial": _PAIR_OF_ARRAYS,
    "zero_state": BLAKE3,
    "objective": choice("next-token-v1"),
    "witnessing": members({"required": _NUMBER, "witnesses": list_of(_WITNESS)}),
    "beacon": nullable(_BEACON),
    "codec": text,
    "aggregation": choice("median-clip-weighted-mean-v1"),
    "config": members({k: members(v, others=True) for k, v in _CONFIG.items()}, others=True),
}

_POSITIONS = list_of(span)
_OPENING = members(
    {
        "base": _PAIR_OF_ARRAYS,
        "positions": _POSITIONS,
        # Any text: a class that is not the open's is a reason to refuse the reveal, which is logged.
        "class": text,
        "tokens": _NUMBER,
        "start_state": BLAKE3,
        "next_state": BLAKE3,
        "payload": BLAKE3,
        "trace_root": SHA256,
        "trace_leaves": _NUMBER,
        "loss_first": _NUMBER,
        "loss_last": _NUMBER,
    }
)
_ROSTER_ENTRY = members(
    {
        "slot": _NUMBER,
        "member": NAME,
        "key": KEY,
        "operator": NAME,
        "class": CLASS,
        "micro_batch": integer(1),
        "steps": integer(1),
        "positions": _POSITIONS,
        "start_state": BLAKE3,
        "audit_ppm": _PPM,
        "audit_segments": integer(1),
    }
)
_AUDITOR = members({"member": NAME, "key": KEY, "operator": NAME, "class": CLASS})
_DRAWN = list_of(members({"auditors": list_of(NAME), "segments": _SLOTS, "slot": _NUMBER}))
_LOOKS = list_of(members({"auditors": list_of(NAME), "slot": _NUMBER}))
_LEAF = pattern("(sha256:)?[0-9a-f]{64}", "a sha256 digest, or 64 hex digits")
"""In a verdict: a leaf's digest, or its hash in the tree."""
_DEVIATION = members(
    {
        "loss_ppm": _NUMBER,
        "norm_ppb": _NUMBER,
        "own": SHA256,
        "peak_ppm": _NUMBER,
        "sketch": exactly(8, integer(-10_000_000, 10_000_000)),
        "step_milli": _NUMBER,
    }
)
_ACCEPTED = members(
    {"member": NAME, "payload": BLAKE3, "slot": _NUMBER, "tokens": _NUMBER, "weight": _NUMBER}
)
_REJECTED = members(
    {
        "evidence": nullable(SHA256),
        "fault": boolean,
        "member": NAME,
        "reason": choice(*REASONS),
        "slot": _NUMBER,
    }
)
_REMOVED = members(
    {
        "attempt": _NUMBER,
        "evidence": nullable(SHA256),
        "fault": boolean,
        "member": NAME,
        "reason": choice(*REASONS, FOLLOWS),
        "round": integer(1),
        "slot": _NUMBER,
    }
)
_LOOK = integer(1, MAX_ENTRY)
"""Of every operator there is one look at most, and no open has room for so many."""
_MISSED = list_of(members({"auditor": NAME, "look": _LOOK, "slot": _NUMBER}))
_OVERRULED = list_of(members({"auditor": NAME, "evidence": nullable(SHA256), "look": _LOOK, "slot": _NUMBER}))
_SEALED = members({"auditor": NAME, "outcome": choice("pass", "fail"), "slot": _NUMBER, "verdict": SHA256})
_REQUEUED = list_of(members({"operator": NAME, "range": span}))
_CREDIT = members({"earned": _NUMBER, "forfeited": _NUMBER, "member": NAME, "vested": _NUMBER})

_LINKS = list_of(members({"link": nullable(HEX64), "proof": nullable(text), "witness": text}))
_PULSE = members({"round": integer(1), "signature": HEX96})

_OF_RUN: dict[str, Shape] = {"protocol": choice(PROTOCOL), "run": SHA256}
_OF_MEMBER: dict[str, Shape] = {**_OF_RUN, "member": NAME, "key": KEY}
_BY = choice("coordinator", "member")
_OF_TURN: dict[str, Shape] = {**_OF_RUN, "round": integer(1), "attempt": _NUMBER}
_BY_SLOT: dict[str, Shape] = {**_OF_TURN, "slot": _NUMBER, "member": NAME, "key": KEY}
_DRAW: dict[str, Shape] = {"head": text, "link": HEX64, "links": _LINKS, "seed": SHA256}

RECORDS: dict[str, Shape] = {
    "manifest": members(_MANIFEST),
    "enrol": members(
        {
            **_OF_RUN,
            "member": NAME,
            "role": choice("contributor", "auditor"),
            "operator": NAME,
            "key": KEY,
            "class": CLASS,
        }
    ),
    "leave": members({**_OF_MEMBER, "turn": _NUMBER, "by": _BY}),
    "return": members({**_OF_MEMBER, "turn": _NUMBER}),
    "key-rotation": members({**_OF_MEMBER, "new_key": KEY, "proof": text}),
    "key-revocation": members({**_OF_MEMBER, "by": _BY}),
    "round-open": members(
        {
            **_OF_TURN,
            "turn": _NUMBER,
            "base": _PAIR_OF_ARRAYS,
            "roster": list_of(_ROSTER_ENTRY),
            "auditors": list_of(_AUDITOR),
            "inner_lr": list_of(hex_float),
            "outer_lr": hex_float,
            "deadline_ms": _NUMBER,
            "snapshot": boolean,
            "witnesses": list_of(text),
        }
    ),
    "commitment": members({**_BY_SLOT, "commitment": SHA256}),
    "commit-close": members({**_OF_TURN, "committed": _SLOTS, "late": _SLOTS, "ms": list_of(_NUMBER)}),
    "reveal": members({**_BY_SLOT, "salt": HEX64, "opening": _OPENING}),
    "reveal-close": members(
        {
            **_OF_TURN,
            "head": text,
            "revealed": _SLOTS,
            "refused": list_of(members({"reason": choice(*REFUSALS), "slot": _NUMBER})),
            "pulse": nullable(integer(1)),
        }
    ),
    "draw": members({**_OF_TURN, **_DRAW, "beacon": nullable(_PULSE), "drawn": _DRAWN}),
    "served": members({**_OF_TURN, "served": _SLOTS, "unserved": _SLOTS}),
    "verdict": members(
        {
            **_OF_TURN,
            "slot": _NUMBER,
            "look": _LOOK,
            "auditor": NAME,
            "key": KEY,
            "outcome": choice("pass", "fail"),
            "differs": list_of(choice(*DIFFERENCES)),
            "payload": BLAKE3,
            "next_state": BLAKE3,
            "trace": list_of(_LEAF),
            "loss_first": nullable(_NUMBER),
            "loss_last": _NUMBER,
            "deviations": list_of(_DEVIATION),
            "class": CLASS,
        }
    ),
    "first-looks": members({**_OF_TURN, "looks": list_of(_SEALED)}),
    "appeal": members({**_BY_SLOT, "verdicts": exactly(2, SHA256)}),
    "second-draw": members({**_OF_TURN, **_DRAW, "looks": _LOOKS}),
    "round-close": members(
        {
            **_OF_TURN,
            "void": boolean,
            "accepted": list_of(_ACCEPTED),
            "rejected": list_of(_REJECTED),
            "missed": _MISSED,
            "overruled": _OVERRULED,
            "weights": BLAKE3,
            "outer": BLAKE3,
            "requeued": _REQUEUED,
            "cursor": _NUMBER,
            "credits": list_of(_CREDIT),
            "quarantined": list_of(NAME),
            "train_loss": nullable(_NUMBER),
            "val_loss": nullable(_NUMBER),
        }
    ),
    "settlement": members(
        {
            **_OF_TURN,
            "removed": list_of(_REMOVED),
            "missed": _MISSED,
            "overruled": _OVERRULED,
            "settled": _PAIR_OF_ARRAYS,
            "weights": BLAKE3,
            "outer": BLAKE3,
            "requeued": _REQUEUED,
            "credits": list_of(_CREDIT),
            "quarantined": list_of(NAME),
        }
    ),
    "run-close": members(
        {**_OF_RUN, "rounds": _NUMBER, "weights": BLAKE3, "outer": BLAKE3, "tokens": _NUMBER}
    ),
}

CASE = members(
    {
        "attempt": _NUMBER,
        "files": members({}, others=True),
        "member": NAME,
        "reason": choice(*REASONS, OVERRULED),
        "round": integer(1),
        "run": SHA256,
        "slot": _NUMBER,
    }
)
"""`evidence/…/case.json`."""


Tolerances = Mapping[frozenset[str], Mapping[str, Any]]
"""By two classes: the first item of `audit.tolerance` for them."""


def tolerances_of(manifest: Mapping[str, Any]) -> Tolerances:
    """The tolerances of a manifest that has passed its shape."""
    return {frozenset(item["classes"]): item for item in reversed(manifest["config"]["audit"]["tolerance"])}


@dataclass(frozen=True)
class Settings:
    """The configuration's members that level 1 rules refer to; units as in the protocol."""

    rounds: int
    max_void: int
    gradient: bool
    batch: int
    context: int
    micro_batches: tuple[int, ...]
    first_steps: tuple[int, ...]
    trace_every: int
    inner_rate: float
    outer_rate: float
    warmup_steps: int
    decay_rounds: int
    audit_ppm: int
    second_look_ppm: int
    probation: int
    audit_segments: int
    lag: int
    tolerances: Tolerances
    tolerance_cap_ppm: int
    vest_rounds: int
    strikes: int
    cap_ppm: int
    snapshot: bool
    state_every: int
    measured: bool
    round_ms: int
    deadline_ms: int
    max_steps: int
    checkpoint_every: int
    required: int
    allow: Mapping[str, str]
    newcomers: int

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Settings:
        """Settings of a manifest that has passed its shape."""
        config = manifest["config"]
        run, train, audit, credit = config["run"], config["train"], config["audit"], config["credit"]
        state, timing = config["state"], config["timing"]
        return cls(
            rounds=run["rounds"],
            max_void=run["max_void"],
            gradient=train["mode"] == "gradient",
            batch=train["batch"],
            context=manifest["dataset"]["context"],
            micro_batches=tuple(train["micro_batch"]),
            first_steps=tuple(train["steps"]),
            trace_every=train["trace_every"],
            inner_rate=parse_hex_float(train["inner"]["lr"]),
            outer_rate=parse_hex_float(config["outer"]["lr"]),
            warmup_steps=train["inner"]["warmup_steps"],
            decay_rounds=train["inner"]["decay_rounds"],
            audit_ppm=audit["rate_ppm"],
            second_look_ppm=audit["second_look_ppm"],
            probation=audit["probation_rounds"],
            audit_segments=audit["segments"],
            lag=audit["lag"],
            tolerances=tolerances_of(manifest),
            tolerance_cap_ppm=audit["tolerance_cap_ppm"],
            vest_rounds=credit["vest_rounds"],
            strikes=credit["strikes"],
            cap_ppm=credit["operator_cap_ppm"],
            snapshot=state["policy"] == "snapshot",
            state_every=state["every"],
            measured=timing["mode"] == "measured",
            round_ms=timing["round_ms"],
            deadline_ms=timing["deadline_ms"],
            max_steps=timing["max_steps"],
            checkpoint_every=config["checkpoint"]["every"],
            required=manifest["witnessing"]["required"],
            allow=config["identity"]["allow"],
            newcomers=config["identity"]["newcomers"],
        )

    def micro_batch(self, slot: int) -> int:
        """How many windows a contributor takes through the model at once (section 7)."""
        return _of_slot(self.micro_batches, slot) if self.micro_batches else self.batch

    def steps(self, slot: int) -> int:
        """With how many local steps a contributor begins (section 5, steps)."""
        return _of_slot(self.first_steps, slot)

    def segments(self, steps: int) -> int:
        """Into how many segments so many local steps are cut (section 7)."""
        return -(-steps // self.trace_every)


def _of_slot(numbers: Sequence[int], slot: int) -> int:
    """A slot's number; newcomers, whose slots come after those of the list, have the least."""
    return numbers[slot] if slot < len(numbers) else min(numbers)
