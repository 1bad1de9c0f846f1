"""A made-up run's members, state and folder, for the tests of level 1. `test_fsck_writer` plays its turns."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.verification.fsck_between import Between
from tests.verification.test_fsck_bytes import (
    ORIGIN,
    b3,
    canon,
    cosignature,
    dom,
    draw_number,
    envelope,
    key_text,
    log_files,
    note_of,
    pulse_signature,
    sha,
    sign_object,
    tree_root,
    vkey,
    witness_vkey,
)

MEMBERS = [
    ("ann", "contributor", "north", "c1"),
    ("xia", "auditor", "xray", "c1"),
    ("bob", "contributor", "north", "c1"),
    ("cid", "contributor", "south", "c1"),
    ("dee", "contributor", "xray", "c1"),
    ("yan", "auditor", "yard", "c1"),
    ("eve", "contributor", "east", "c2"),
    ("zoe", "auditor", "yard", "c1"),
    ("wim", "auditor", "wind", "c2"),
    ("vic", "auditor", "vale", "c2"),
]

TIME = 1_700_000_000
"""When witnesses cosign."""


def links_of(name: str) -> list[bytes]:
    """A chain of a witness: the secret first, the end last."""
    links = [hashlib.sha256(b"secret of " + name.encode()).digest()]
    for _ in range(70):
        links.append(hashlib.sha256(links[-1]).digest())
    return links


def config(**over: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "run": {"rounds": 6, "seed": 7, "max_void": 2},
        "train": {
            "mode": "local",
            "batch": 2,
            "micro_batch": [],
            "steps": [4, 6, 2, 8, 4],
            "trace_every": 2,
            "inner": {"lr": (2e-3).hex(), "warmup_steps": 20, "decay_rounds": 3, "beta1": (0.9).hex()},
        },
        "outer": {"lr": (0.7).hex(), "name": "nesterov", "momentum": (0.9).hex()},
        "compression": {"chunk": 32, "k": 8, "error_feedback": (0.95).hex()},
        "audit": {
            "rate_ppm": 400_000,
            "second_look_ppm": 500_000,
            "probation_rounds": 2,
            "segments": 2,
            "lag": 0,
            "tolerance": [],
            "tolerance_cap_ppm": 500_000,
        },
        "credit": {"vest_rounds": 3, "strikes": 2, "operator_cap_ppm": 450_000},
        "state": {"policy": "snapshot", "every": 2},
        "timing": {"mode": "measured", "round_ms": 900, "deadline_ms": 5000, "max_steps": 9},
        "checkpoint": {"every": 2},
        "eval": {"every": 2},
        "model": {"n_layers": 1},
        "identity": {"allow": {}, "newcomers": 0},
    }
    for path, value in over.items():
        part, name = path.split("__")
        tree[part][name] = value
    return tree


class State(Between):
    """What a run carries from turn to turn, how it logs, and how its folder is written."""

    def __init__(self, folder: Path, *, script: Any, silent: Any, lie: Any = None, **over: Any):
        self.folder, self.script, self.silent, self.lie = folder, script, silent, lie
        self.members = [*MEMBERS, *(over.pop("more", None) or [])]
        self.witnesses: list[str] = over.pop("witnesses", [])
        self.required: int = over.pop("required", min(1, len(self.witnesses)))
        self.beacon: dict[str, Any] | None = over.pop("beacon", None)
        # turn -> pulse that its draw waits for, where it is not 5 and the turn; turns that do without it
        self.pulses: dict[int, int] = over.pop("pulses", {})
        self.dark: list[int] = over.pop("dark", [])
        # (turn, look) -> witness -> time of its cosignature, where it is another than all others'
        self.times: dict[tuple[int, int], dict[str, int]] = over.pop("times", {})
        # turn -> witnesses that the open names; all, where a turn is not there
        self.named: dict[int, list[str]] = over.pop("named", {})
        # (turn, look) -> witnesses that do not cosign, and that cosign and give no link
        self.away: dict[tuple[int, int], list[str]] = over.pop("away", {})
        self.mute: dict[tuple[int, int], list[str]] = over.pop("mute", {})
        self.between: dict[int, list[Any]] = over.pop("between", {})
        self.key_names: dict[str, str] = {}
        self.gone: set[str] = set()
        self.entries: list[bytes] = []
        self.records: list[tuple[str, dict[str, Any], str]] = []
        self.heads: list[int] = []
        self.files: dict[str, bytes] = {}
        self.config = config(**over)
        chain = [hashlib.sha256(b"secret").digest()]
        for _ in range(60):
            chain.append(hashlib.sha256(chain[-1]).digest())
        self.chain = chain
        self.witness_chains = {name: links_of(name) for name in self.witnesses}
        self.data = {
            "tokenizer.json": b"{}",
            "t0.arrow": b"shard 0",
            "t1.arrow": b"shard 1",
            "v.arrow": b"val",
        }
        self.manifest = self._manifest()
        self.run_id = sha(canon(self.manifest))
        self.run_subject = ("run", self.run_id[7:])
        self.contributors = [m for m in self.members if m[1] == "contributor"]
        self.info = {m[0]: m for m in self.members}
        self.queue: list[list[Any]] = []
        self.cursor = 0
        train = self.config["train"]
        self.steps = list(train["steps"])
        self.micro_batches = list(train["micro_batch"]) or [train["batch"]] * len(self.contributors)
        self.state = {m[0]: b"zero" for m in self.contributors}
        self.accepted = defaultdict(int)
        self.strikes = defaultdict(int)
        self.suspect: set[str] = set()
        self.struck: dict[str, int] = defaultdict(lambda: -1)
        self.quarantined: list[str] = []
        self.credit: dict[str, dict[str, int]] = {
            m[0]: {"earned": 0, "forfeited": 0, "member": m[0], "vested": 0} for m in self.members
        }
        self.unvested: list[tuple[int, str, int]] = []
        self.base = self.manifest["initial"]
        self.round, self.attempt, self.turn = 1, 0, 0
        self.look = 0
        self.present: list[dict[str, Any]] = []  # the auditors of the open
        self.tokens = 0
        self.accepted_payloads: list[bytes] = []
        self.rejected_payloads: list[bytes] = []

    @property
    def auditors(self) -> list[Any]:
        """Those who are not away."""
        return [m for m in self.info.values() if m[1] == "auditor" and m[0] not in self.gone]

    def _manifest(self) -> dict[str, Any]:
        shard = lambda name, n: {"digest": b3(self.data[name]), "file": name, "windows": n}  # noqa: E731
        dataset = {
            "context": 8,
            "licence": {"all": "CC0"},
            "source": {"what": "made up"},
            "tokenizer": b3(self.data["tokenizer.json"]),
            "train": [shard("t0.arrow", 30), shard("t1.arrow", 40)],
            "validation": [shard("v.arrow", 3)],
            "vocab_size": 64,
        }
        dataset["root"] = dom("barnraise/dataset/v1", dataset)
        return {
            "protocol": 1,
            "name": "barn ☃",
            "origin": ORIGIN,
            "log_vkey": vkey(),
            "coordinator": key_text("coordinator"),
            "draw_chain": {"end": "sha256:" + self.chain[-1].hex(), "length": len(self.chain) - 1},
            "versions": {"python": "3.11"},
            "source": b3(b"source"),
            "dataset": dataset,
            "arrays": [["a", [8, 8]], ["b", [4]]],
            "initial": {"outer": b3(b"outer 0"), "weights": b3(b"weights 0")},
            "zero_state": b3(b"zero"),
            "objective": "next-token-v1",
            "witnessing": {
                "required": self.required,
                "witnesses": [self.witness_entry(name) for name in self.witnesses],
            },
            "beacon": self.beacon,
            "codec": "topk8of32-eliasfano-2bit-e5m3-v1",
            "aggregation": "median-clip-weighted-mean-v1",
            "config": self.config,
        }

    def witness_entry(self, name: str, signer: str = "") -> dict[str, Any]:
        links = self.witness_chains.get(name) or links_of(name)
        chain = {"end": "sha256:" + links[-1].hex(), "length": len(links) - 1}
        signed = {**chain, "log_vkey": vkey(), "witness": witness_vkey(name, signer)}
        proof = sign_object(signer or name, "barnraise/witness-chain/v1", signed)
        return {"chain": chain, "proof": proof, "vkey": witness_vkey(name, signer)}

    def signer(self, name: str) -> str:
        """Of what a member's present key is made."""
        return self.key_names.get(name, name)

    def key(self, name: str) -> str:
        return key_text(self.signer(name))

    # --- logging ---

    def add(self, kind: str, record: dict[str, Any], signer: str = "coordinator") -> None:
        self.log(self.told(kind, record, signer))

    def told(self, kind: str, record: dict[str, Any], signer: str) -> list[Any]:
        """What is signed of a record: itself, or what the lie makes of it."""
        answer = record if self.lie is None else self.lie(kind, copy.deepcopy(record), self)
        return [(kind, answer, signer)] if isinstance(answer, dict) else list(answer)

    def log(self, told: list[Any]) -> None:
        for k, r, s in told:
            self.records.append((k, r, s))
            self.entries.append(envelope(k, r, s, self.run_subject))

    def in_turn(self, **fields: Any) -> dict[str, Any]:
        return {"protocol": 1, "run": self.run_id, "round": self.round, "attempt": self.attempt, **fields}

    def head(self, *cosigners: str) -> str:
        self.heads.append(len(self.entries))
        note, times = note_of(self.entries), self.times.get((self.turn, self.look), {})
        return note + "".join(cosignature(note, name, times.get(name, TIME)) for name in cosigners)

    def open_witnesses(self) -> list[str]:
        return self.named.get(self.turn, self.witnesses)

    def cosigners(self) -> list[str]:
        """Whoever cosigns heads 2 and 3 of this turn: anybody of the manifest may."""
        return self.open_witnesses()

    def number(self, look: int) -> int:
        """Of the links of a draw."""
        return 2 * self.turn + look

    def links(self, look: int) -> list[dict[str, Any]]:
        """What the witnesses named in the open show at a draw."""
        number, lines = self.number(look), []
        silent = {*self.away.get((self.turn, look), []), *self.mute.get((self.turn, look), [])}
        for name in self.open_witnesses():
            link = self.witness_chains[name][-1 - number].hex()
            signed = {
                "link": link,
                "log_vkey": vkey(),
                "number": number,
                "root": tree_root(self.entries).hex(),
                "size": len(self.entries),
                "witness": witness_vkey(name),
            }
            proof = sign_object(name, "barnraise/witness-link/v1", signed)
            gone = name in silent
            lines.append({"link": None if gone else link, "proof": None if gone else proof, "witness": name})
        return lines

    def named_pulse(self) -> int | None:
        """What the reveal-close says."""
        return None if self.beacon is None else self.pulses.get(self.turn, 5 + self.turn)

    def shown_pulse(self) -> dict[str, Any] | None:
        """What the draw shows."""
        number = self.named_pulse()
        if number is None or self.turn in self.dark:
            return None
        return {"round": number, "signature": pulse_signature(number)}

    def seed_pulse(self, pulse: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the seed takes of it."""
        if pulse is None:
            return None
        randomness = hashlib.sha256(bytes.fromhex(pulse["signature"])).hexdigest()
        return {"randomness": randomness, "round": pulse["round"]}

    def link_and_seed(self, look: int) -> dict[str, Any]:
        self.look = look
        shown = {"beacon": self.shown_pulse()} if look == 1 else {}
        away = self.away.get((self.turn, look), [])
        head = self.head(*(name for name in self.cosigners() if name not in away))
        links = self.links(look)
        link = self.chain[-1 - self.number(look)].hex()
        seed = dom(
            "barnraise/draw/v1",
            {
                "run": self.run_id,
                "round": self.round,
                "attempt": self.attempt,
                "turn": self.turn,
                "look": look,
                "head_size": len(self.entries),
                "head_root": tree_root(self.entries).hex(),
                "link": link,
                "beacon": self.seed_pulse(shown.get("beacon")),
                "witnesses": [[line["witness"], line["link"]] for line in links],
            },
        )
        return {"head": head, "link": link, "links": links, "seed": seed, **shown}

    def is_short(self, chance: dict[str, Any]) -> bool:
        if any(line["link"] is None for line in chance["links"]):
            return True
        if self.beacon is None or "beacon" not in chance:
            return False
        if chance["beacon"] is None:
            return True
        earlier = self.beacon["period"] * (chance["beacon"]["round"] - 1)
        away, times = self.away.get((self.turn, 1), []), self.times.get((self.turn, 1), {})
        last = max(times.get(name, TIME) for name in self.cosigners() if name not in away)
        return not last < self.beacon["genesis"] + earlier

    def roster(self) -> list[dict[str, Any]]:
        lines, batch = [], self.config["train"]["batch"]
        for slot, (name, _, operator, numerics) in enumerate(self.contributors):
            if name in self.quarantined or name in self.gone:
                continue
            need, pieces, left = self.steps[slot] * batch, [], []
            for start, stop, owner in self.queue:
                if owner == operator or need == 0:
                    left.append([start, stop, owner])
                    continue
                n = min(need, stop - start)
                need -= n
                pieces.append([start, start + n])
                if start + n != stop:
                    left.append([start + n, stop, owner])
            self.queue = left
            if need:
                pieces.append([self.cursor, self.cursor + need])
                self.cursor += need
            sure = self.accepted[name] < self.config["audit"]["probation_rounds"] or name in self.suspect
            start_state = self.state[name]
            if (
                self.config["state"]["policy"] == "reset"
                and (self.round - 1) % self.config["state"]["every"] == 0
            ):
                start_state = b"zero"
            lines.append(
                {
                    "slot": slot,
                    "member": name,
                    "key": self.key(name),
                    "operator": operator,
                    "class": numerics,
                    "micro_batch": self.micro_batches[slot],
                    "steps": self.steps[slot],
                    "positions": pieces,
                    "start_state": b3(start_state),
                    "audit_ppm": 1_000_000 if sure else self.config["audit"]["rate_ppm"],
                    "audit_segments": self.audit_segments(self.steps[slot], sure=sure),
                }
            )
            self.files["start of " + name] = start_state
        return lines

    def pace(self, roster: Any, fate: Any) -> None:
        t, every = self.config["timing"], self.config["train"]["trace_every"]
        for line in roster if t["mode"] == "measured" else ():
            slot, s = line["slot"], line["steps"]
            if fate[slot] == "late":
                self.steps[slot] = max(every, s // 2 - s // 2 % every)
            elif fate[slot] is None and self.ms[slot] > 0:
                q = min(s * t["round_ms"] // self.ms[slot], 2 * s, t["max_steps"])
                self.steps[slot] = max(every, q - q % every)

    def segments(self, steps: int) -> int:
        """In how many segments so many steps are."""
        return -(-steps // self.config["train"]["trace_every"])

    def audit_segments(self, steps: int, *, sure: bool) -> int:
        few, count = self.config["audit"]["segments"], self.segments(steps)
        return count if sure or few == 0 or few > count else few

    def draw_segments(self, line: dict[str, Any], seed: str, *, whole: bool) -> list[int]:
        """Section 6, which segments: one after the other taken out of a list of them."""
        left, slot = list(range(self.segments(line["steps"]))), line["slot"]
        if whole:
            return left
        count, few = len(left), line["audit_segments"]
        return sorted(left.pop(draw_number(seed, f"segments/{slot}/{i}", count - i)) for i in range(few))

    def rates(self, roster: list[dict[str, Any]]) -> tuple[list[str], str]:
        inner, r, total = self.config["train"]["inner"], self.round, self.config["run"]["rounds"]
        w, d, h = inner["warmup_steps"], inner["decay_rounds"], max(self.config["train"]["steps"])
        decay = min(total - r + 1, d) / d if d else 1.0
        lr, outer = float.fromhex(inner["lr"]), float.fromhex(self.config["outer"]["lr"])
        if self.config["train"]["mode"] == "gradient":
            return [], (outer * (min(r, w) / w if w else 1.0) * decay).hex()
        count = max([line["steps"] for line in roster], default=0)
        warm = [min((r - 1) * h + s + 1, w) / w if w else 1.0 for s in range(count)]
        return [(lr * x * decay).hex() for x in warm], outer.hex()

    def work(self, line: dict[str, Any]) -> dict[str, Any]:
        """What an honest machine computes."""
        tag = f"{self.run_id} {self.turn} {line['slot']}".encode()
        leaves = self.segments(line["steps"]) + 1
        return {
            "payload": (hashlib.sha512(tag).digest())[:21],
            "next_state": b"state " + tag,
            "trace": [sha(tag + bytes([i])) for i in range(leaves)],
            "loss_first": 7_000_000 - self.turn * 1000 - line["slot"],
            "loss_last": 6_000_000 - self.turn * 1000 - line["slot"],
        }

    # --- tolerance ---

    def item(self, one: str, other: str) -> dict[str, Any] | None:
        """The manifest's tolerance between two classes."""
        items = self.config["audit"]["tolerance"]
        return next((i for i in items if i["classes"] in ([one, other], [other, one])), None)

    def able(self, line: dict[str, Any], auditors: list[dict[str, Any]]) -> list[str]:
        """Section 6, by whom: the names of those that may audit a roster entry."""
        strangers = [a for a in auditors if a["operator"] != line["operator"]]
        kin = [a["member"] for a in strangers if a["class"] == line["class"]]
        return kin or [a["member"] for a in strangers if self.item(a["class"], line["class"])]

    def rests(self, line: dict[str, Any], names: list[str]) -> bool:
        """Whether a roster entry that these may audit rests on tolerance."""
        return bool(names) and self.info[names[0]][3] != line["class"]

    def deviation(self, line: dict[str, Any], segment: int, auditor: str, what: Any) -> dict[str, Any]:
        """What an auditor finds of one step, the same in its class: at the thresholds, or above `what`."""
        numerics = self.info[auditor][3]
        item = self.item(numerics, line["class"])
        assert item
        own = sha(f"{self.run_id} {self.turn} {line['slot']} {segment} {numerics}".encode())
        found = {key: value for key, value in item.items() if key != "classes"}
        if what == "not finite":
            own = dom("barnraise/trace-not-finite/v1", {})
            return {**dict.fromkeys(found, 2**53 - 1), "own": own, "sketch": [0] * 8}
        found |= {what: found[what] + 1} if what in found else {}
        if self.config["train"]["mode"] == "gradient":
            found["step_milli"] = 0
        return {**found, "own": own, "sketch": [segment - j * 10**5 for j in range(8)]}

    def too_far(self, line: dict[str, Any], auditor: str, deviations: list[dict[str, Any]]) -> bool:
        """Whether one of an auditor's deviations is above its threshold."""
        item = self.item(self.info[auditor][3], line["class"]) or {}
        return any(found[key] > item[key] for found in deviations for key in item if key != "classes")

    def tolerant_cap(self, roster: list[dict[str, Any]], weights: dict[int, int]) -> dict[int, int]:
        """Section 9, 1: the weights of accepted slots that rest on tolerance, where they are too many."""
        lines = {line["slot"]: line for line in roster}
        shared = [slot for slot in weights if self.rests(lines[slot], self.able(lines[slot], self.present))]
        cap, some = self.config["audit"]["tolerance_cap_ppm"], sum(weights[slot] for slot in shared)
        rest = sum(weights.values()) - some
        if not rest or not some * (10**6 - cap) > cap * rest:
            return {}
        return {slot: weights[slot] * cap * rest // ((10**6 - cap) * some) for slot in shared}

    # --- the folder ---

    def write(self, size: int | None = None) -> Path:
        """Write everything; with `size`, the log as it was when that many entries were signed."""
        entries = self.entries[:size]
        files = {name: data for name, data in self.files.items() if "/" in name}
        files |= {f"data/{name}": data for name, data in self.data.items()}
        files["manifest.json"] = canon(self.manifest)
        files |= log_files(entries)
        closed = [r for k, r, _ in self.records[:size] if k == "round-close" and not r["void"]]
        every = self.config["checkpoint"]["every"]
        for n in range(len(closed) + 1):
            if n % every == 0 or n == len(closed):
                files[f"checkpoints/round-{n:05d}.safetensors"] = b"weights %d" % n
                files[f"checkpoints/round-{n:05d}.outer"] = b"outer %d" % n
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.folder


def test_members_are_as_the_scripts_need_them() -> None:
    assert [m[0] for m in MEMBERS if m[1] == "contributor"] == ["ann", "bob", "cid", "dee", "eve"]
    assert len({m[0] for m in MEMBERS}) == len(MEMBERS)
