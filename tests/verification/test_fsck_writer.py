"""A small writer of run folders for the tests of level 1, and that honest ones pass.

Written from the protocol, like the checker, but sharing no code with it: the other half of each test.
Arrays, payloads and states are arbitrary bytes. `lie` is called before each record is signed and may
change it, drop it or put others in its place, so that every lie is signed by whoever would tell it.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import blake3
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from verification.errors import UsageError
from verification.fsck import check_run

ORIGIN = "example.org/barn"
STRIKING = {"unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved"}

# (turn, slot) -> what goes wrong. Turn 2 is void, so turn 3 is the second attempt at round 3.
SCRIPT = {
    (0, 0): "dispute",
    (1, 1): "late",
    (1, 2): "cheat",
    (2, 0): "late",
    (2, 1): "unrevealed",
    (2, 3): "late",
    (2, 4): "late",
    (3, 0): "mismatch",
    (3, 4): "noserve",
    (4, 1): "malformed",
    (4, 4): "duplicate",
    (5, 0): "unserved",
}
# (turn, look, slot, how many of those called stay silent)
SILENT = {(1, 1, 0): 1, (4, 1, 0): 9, (5, 2, 1): 1}

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


def canon(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def b3(data: bytes) -> str:
    return "blake3:" + blake3.blake3(data).hexdigest()


def dom(domain: str, value: Any) -> str:
    return sha(domain.encode() + b"\x00" + canon(value))


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"key of " + name.encode()).digest())


def public(name: str) -> bytes:
    return key_of(name).public_key().public_bytes_raw()


def key_text(name: str) -> str:
    return "ed25519:" + public(name).hex()


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, by its recursive definition."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_root(leaves[:k]) + tree_root(leaves[k:])).digest()


def note_of(entries: list[bytes], signer: str = "coordinator", origin: str = ORIGIN) -> str:
    text = f"{origin}\n{len(entries)}\n{base64.b64encode(tree_root(entries)).decode()}\n"
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public(signer)).digest()[:4]
    blob = base64.b64encode(key_id + key_of(signer).sign(text.encode())).decode()
    return f"{text}\n— {origin} {blob}\n"


def envelope(kind: str, record: dict[str, Any], signer: str, subject: tuple[str, str]) -> bytes:
    payload = canon(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "predicate": record,
            "predicateType": f"barnraise:{kind}:v1",
            "subject": [{"digest": {"sha256": subject[1]}, "name": subject[0]}],
        }
    )
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    return canon(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [
                {"keyid": key_text(signer), "sig": base64.b64encode(key_of(signer).sign(pae)).decode()}
            ],
        }
    )


def draw_number(seed: str, label: str, n: int) -> int:
    counter = 0
    while True:
        digest = dom("barnraise/uniform/v1", {"counter": counter, "label": label, "seed": seed})
        x = int(digest[7:23], 16)
        if x < n * (2**64 // n):
            return x % n
        counter += 1


def config(**over: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "run": {"rounds": 6, "seed": 7, "max_void": 2},
        "train": {
            "mode": "local",
            "batch": 2,
            "steps": [4, 6, 2, 8, 4],
            "trace_every": 2,
            "inner": {"lr": (2e-3).hex(), "warmup_steps": 20, "decay_rounds": 3, "beta1": (0.9).hex()},
        },
        "outer": {"lr": (0.7).hex(), "name": "nesterov", "momentum": (0.9).hex()},
        "compression": {"chunk": 32, "k": 8, "error_feedback": (0.95).hex()},
        "audit": {"rate_ppm": 400_000, "second_look_ppm": 500_000, "probation_rounds": 2},
        "credit": {"vest_rounds": 3, "strikes": 2, "operator_cap_ppm": 450_000},
        "state": {"policy": "snapshot", "every": 2},
        "timing": {"mode": "measured", "round_ms": 900, "deadline_ms": 5000, "max_steps": 9},
        "checkpoint": {"every": 2},
        "eval": {"every": 2},
        "model": {"n_layers": 1},
    }
    for path, value in over.items():
        part, name = path.split("__")
        tree[part][name] = value
    return tree


class Writer:
    """Runs a made-up run and writes its folder."""

    def __init__(self, folder: Path, *, script: Any = SCRIPT, silent: Any = SILENT, lie: Any = None, **over: Any):
        self.folder, self.script, self.silent, self.lie = folder, script, silent, lie
        self.entries: list[bytes] = []
        self.records: list[tuple[str, dict[str, Any], str]] = []
        self.heads: list[int] = []
        self.files: dict[str, bytes] = {}
        self.config = config(**over)
        chain = [hashlib.sha256(b"secret").digest()]
        for _ in range(60):
            chain.append(hashlib.sha256(chain[-1]).digest())
        self.chain = chain
        self.data = {"tokenizer.json": b"{}", "t0.arrow": b"shard 0", "t1.arrow": b"shard 1", "v.arrow": b"val"}
        self.manifest = self._manifest()
        self.run_id = sha(canon(self.manifest))
        self.run_subject = ("run", self.run_id[7:])
        self.contributors = [m for m in MEMBERS if m[1] == "contributor"]
        self.auditors = [m for m in MEMBERS if m[1] == "auditor"]
        self.info = {m[0]: m for m in MEMBERS}
        self.queue: list[list[Any]] = []
        self.cursor = 0
        self.steps = list(self.config["train"]["steps"])
        self.state = {m[0]: b"zero" for m in self.contributors}
        self.accepted = defaultdict(int)
        self.strikes = defaultdict(int)
        self.suspect: set[str] = set()
        self.quarantined: list[str] = []
        self.credit: dict[str, dict[str, int]] = {
            m[0]: {"earned": 0, "forfeited": 0, "member": m[0], "vested": 0} for m in MEMBERS
        }
        self.unvested: list[tuple[int, str, int]] = []
        self.base = self.manifest["initial"]
        self.round, self.attempt, self.turn = 1, 0, 0
        self.tokens = 0
        self.revealed_payloads: list[bytes] = []

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
            "codec": "topk8of32-eliasfano-2bit-e5m3-v1",
            "aggregation": "median-clip-weighted-mean-v1",
            "config": self.config,
        }

    # --- logging ---

    def add(self, kind: str, record: dict[str, Any], signer: str = "coordinator") -> None:
        told = [(kind, record, signer)]
        if self.lie is not None:
            answer = self.lie(kind, copy.deepcopy(record), self)
            told = [(kind, answer, signer)] if isinstance(answer, dict) else answer
        for k, r, s in told:
            self.records.append((k, r, s))
            self.entries.append(envelope(k, r, s, self.run_subject))

    def in_turn(self, **fields: Any) -> dict[str, Any]:
        return {"protocol": 1, "run": self.run_id, "round": self.round, "attempt": self.attempt, **fields}

    def head(self) -> str:
        self.heads.append(len(self.entries))
        return note_of(self.entries)

    def link_and_seed(self, look: int) -> dict[str, Any]:
        head = self.head()
        link = self.chain[-1 - (2 * self.turn + look)].hex()
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
                "beacon": None,
                "witnesses": [],
            },
        )
        return {"head": head, "link": link, "seed": seed}

    # --- the run ---

    def run(self, turns: int = 99) -> Writer:
        subject = ("dataset", self.manifest["dataset"]["root"][7:])
        manifest = self.lie("manifest", copy.deepcopy(self.manifest), self) if self.lie else self.manifest
        self.manifest, self.run_id = manifest, sha(canon(manifest))
        self.run_subject = ("run", self.run_id[7:])
        self.entries = [envelope("manifest", manifest, "coordinator", subject)]
        self.records = [("manifest", manifest, "coordinator")]
        for name, role, operator, numerics in MEMBERS:
            record = {"protocol": 1, "run": self.run_id, "member": name, "role": role, "operator": operator}
            self.add("enrol", {**record, "key": key_text(name), "class": numerics}, name)
        self.heads.append(len(self.entries))
        while self.round <= self.config["run"]["rounds"] and turns:
            self.one_turn()
            turns -= 1
        if turns:
            record = {"protocol": 1, "run": self.run_id, "rounds": self.round - 1, "tokens": self.tokens}
            self.add("run-close", {**record, **self.base})
        self.heads.append(len(self.entries))
        return self

    def roster(self) -> list[dict[str, Any]]:
        lines = []
        for slot, (name, _, operator, numerics) in enumerate(self.contributors):
            if name in self.quarantined:
                continue
            need, pieces, left = self.steps[slot] * self.config["train"]["batch"], [], []
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
            if self.config["state"]["policy"] == "reset" and (self.round - 1) % self.config["state"]["every"] == 0:
                start_state = b"zero"
            lines.append(
                {
                    "slot": slot,
                    "member": name,
                    "key": key_text(name),
                    "operator": operator,
                    "class": numerics,
                    "steps": self.steps[slot],
                    "positions": pieces,
                    "start_state": b3(start_state),
                    "audit_ppm": 1_000_000 if sure else self.config["audit"]["rate_ppm"],
                }
            )
            self.files["start of " + name] = start_state
        return lines

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
        leaves = -(-line["steps"] // self.config["train"]["trace_every"])
        return {
            "payload": (hashlib.sha512(tag).digest())[:21],
            "next_state": b"state " + tag,
            "trace": [sha(tag + bytes([i])) for i in range(leaves)],
            "loss_first": 7_000_000 - self.turn * 1000 - line["slot"],
            "loss_last": 6_000_000 - self.turn * 1000 - line["slot"],
        }

    def one_turn(self) -> None:  # noqa: C901
        todo = {slot: what for (turn, slot), what in self.script.items() if turn == self.turn}
        roster = self.roster()
        inner, outer = self.rates(roster)
        state = self.config["state"]
        snapshot = state["policy"] == "snapshot" and (self.round - 1) % state["every"] == 0
        measured = self.config["timing"]["mode"] == "measured"
        auditors = [
            {"member": n, "key": key_text(n), "operator": o, "class": c} for n, _, o, c in self.auditors
        ]
        self.add(
            "round-open",
            self.in_turn(
                turn=self.turn,
                base=self.base,
                roster=roster,
                auditors=auditors,
                inner_lr=inner,
                outer_lr=outer,
                deadline_ms=self.config["timing"]["deadline_ms"] if measured else 0,
                snapshot=snapshot,
            ),
        )
        fate: dict[int, str | None] = {line["slot"]: None for line in roster}
        reveals = self.commit_and_reveal(roster, todo, fate, snapshot)
        missed, audited, drawn = self.audit(roster, auditors, todo, fate, reveals)
        self.close_turn(roster, fate, reveals, missed, audited, drawn)

    def commit_and_reveal(self, roster: Any, todo: Any, fate: Any, snapshot: bool) -> dict[int, Any]:
        reveals: dict[int, Any] = {}
        for line in roster:
            slot, name = line["slot"], line["member"]
            if todo.get(slot) == "late":
                fate[slot] = "late"
                continue
            work = self.work(line)
            if todo.get(slot) == "cheat":
                work = {**work, "payload": work["payload"][::-1], "trace": work["trace"][::-1]}
            if todo.get(slot) == "duplicate":
                work["payload"] = self.revealed_payloads[0]
            opening = {
                "base": self.base,
                "positions": line["positions"],
                "class": line["class"],
                "tokens": 8 * sum(b - a for a, b in line["positions"]),
                "start_state": line["start_state"],
                "next_state": b3(work["next_state"]),
                "payload": b3(work["payload"]),
                "trace_root": "sha256:" + tree_root([bytes.fromhex(t[7:]) for t in work["trace"]]).hex(),
                "trace_leaves": len(work["trace"]),
                "loss_first": work["loss_first"],
                "loss_last": work["loss_last"],
            }
            salt = hashlib.sha256(f"salt {self.turn} {slot}".encode()).hexdigest()
            reveal = self.in_turn(slot=slot, member=name, key=key_text(name), salt=salt, opening=opening)
            hashed = {k: reveal[k] for k in ("attempt", "key", "opening", "round", "run", "salt", "slot")}
            commitment = dom("barnraise/commitment/v1", hashed)
            if todo.get(slot) == "mismatch":
                reveal["opening"] = {**opening, "loss_last": 1}
            reveals[slot] = (reveal, work)
            self.add(
                "commitment",
                self.in_turn(slot=slot, member=name, key=key_text(name), commitment=commitment),
                name,
            )
        committed = list(reveals)
        late = [line["slot"] for line in roster if line["slot"] not in reveals]
        self.ms = {slot: 100 + 150 * ((slot + self.turn) % 7) for slot in committed}
        self.add(
            "commit-close", self.in_turn(committed=committed, late=late, ms=[self.ms[s] for s in committed])
        )
        head = self.head()
        reasons = {
            "unrevealed": "unrevealed",
            "mismatch": "opening-mismatch",
            "malformed": "malformed-payload",
            "duplicate": "duplicate-payload",
            "unserved": "unserved",
        }
        for slot in committed:
            what = todo.get(slot)
            if what == "unserved" and not (snapshot and roster_line(roster, slot)["start_state"] != b3(b"zero")):
                what = None
            if what != "unrevealed":
                self.add("reveal", reveals[slot][0], reveals[slot][0]["member"])
            if what in reasons:
                fate[slot] = reasons[what]
            else:
                work, name = reveals[slot][1], reveals[slot][0]["member"]
                self.revealed_payloads.append(work["payload"])
                self.files[f"payloads/{b3(work['payload'])[7:]}"] = work["payload"]
                start = self.files["start of " + name]
                if snapshot and start != b"zero":
                    self.files[f"state/{b3(start)[7:]}"] = start
        revealed = [s for s in committed if fate[s] is None]
        refused = [{"reason": fate[s], "slot": s} for s in committed if fate[s] is not None]
        self.add("reveal-close", self.in_turn(head=head, revealed=revealed, refused=refused))
        return {s: reveals[s] for s in revealed}

    def audit(self, roster: Any, auditors: Any, todo: Any, fate: Any, reveals: Any) -> Any:
        chance = self.link_and_seed(1)
        drawn: dict[int, list[str]] = {}
        for line in roster:
            slot = line["slot"]
            if draw_number(chance["seed"], f"audit/{slot}", 10**6) < line["audit_ppm"]:
                names = [
                    a["member"]
                    for a in auditors
                    if a["class"] == line["class"] and a["operator"] != line["operator"]
                ]
                for i in reversed(range(1, len(names))):
                    j = draw_number(chance["seed"], f"auditors/{slot}/{i}", i + 1)
                    names[i], names[j] = names[j], names[i]
                drawn[slot] = names
        listed = [{"auditors": names, "slot": s} for s, names in drawn.items()]
        self.add("draw", self.in_turn(**chance, drawn=listed))
        due = [s for s in drawn if drawn[s] and s in reveals]
        unserved = [s for s in due if todo.get(s) == "noserve"]
        served = [s for s in due if s not in unserved]
        self.add("served", self.in_turn(served=served, unserved=unserved))
        missed: list[dict[str, Any]] = []
        audited: list[tuple[str, int]] = []
        first: dict[int, dict[str, Any]] = {}
        for slot in served:
            answer = self.ask(1, slot, drawn[slot], todo, reveals, missed, roster)
            if answer is not None:
                first[slot] = answer
                audited.append((answer["auditor"], slot))
        chance = self.link_and_seed(2)
        looks: dict[int, list[str]] = {}
        for slot, verdict in first.items():
            mine = self.info[verdict["auditor"]][2]
            silent = [m["auditor"] for m in missed if m["slot"] == slot]
            names = [n for n in drawn[slot] if self.info[n][2] != mine and n not in silent]
            second = draw_number(chance["seed"], f"second/{slot}", 10**6)
            if names and (verdict["outcome"] == "fail" or second < self.config["audit"]["second_look_ppm"]):
                looks[slot] = names
        listed = [{"auditors": names, "slot": s} for s, names in looks.items()]
        self.add("second-draw", self.in_turn(**chance, looks=listed))
        again: dict[int, dict[str, Any]] = {}
        for slot, names in looks.items():
            answer = self.ask(2, slot, names, todo, reveals, missed, roster)
            if answer is not None:
                again[slot] = answer
                audited.append((answer["auditor"], slot))
        for slot in drawn:
            if fate[slot] is None:
                fate[slot] = self.judge(slot, drawn, unserved, first, looks, again)
        return missed, audited, drawn

    def ask(
        self, look: int, slot: int, names: list[str], todo: Any, reveals: Any, missed: Any, roster: Any
    ) -> Any:
        quiet = self.silent.get((self.turn, look, slot), 0)
        missed += [{"auditor": n, "look": look, "slot": slot} for n in names[:quiet]]
        if quiet >= len(names):
            return None
        name, opening = names[quiet], reveals[slot][0]["opening"]
        work = self.work(roster_line(roster, slot))
        if todo.get(slot) == "dispute" and look == 1:
            work["loss_last"] += 1
        trace_root = "sha256:" + tree_root([bytes.fromhex(t[7:]) for t in work["trace"]]).hex()
        differs = []
        if trace_root != opening["trace_root"]:
            differs.append("trace")
        if b3(work["payload"]) != opening["payload"]:
            differs.append("payload")
        if b3(work["next_state"]) != opening["next_state"]:
            differs.append("next_state")
        if work["loss_last"] != opening["loss_last"]:
            differs.append("loss")
        verdict = self.in_turn(
            slot=slot,
            look=look,
            auditor=name,
            key=key_text(name),
            outcome="fail" if differs else "pass",
            differs=differs,
            payload=b3(work["payload"]),
            next_state=b3(work["next_state"]),
            trace=work["trace"],
            loss_first=work["loss_first"],
            loss_last=work["loss_last"],
        )
        verdict["class"] = self.info[name][3]
        self.add("verdict", verdict, name)
        return verdict

    @staticmethod
    def judge(slot: int, drawn: Any, unserved: Any, first: Any, looks: Any, again: Any) -> str | None:
        if not drawn[slot]:
            return "no-eligible-auditor"
        if slot in unserved:
            return "unserved"
        if slot not in first:
            return "unaudited"
        outcomes = [v[slot]["outcome"] for v in (first, again) if slot in v]
        if outcomes == ["pass"]:
            return "unaudited" if slot in looks else None
        if outcomes == ["pass", "pass"]:
            return None
        if outcomes == ["fail"]:
            return "unconfirmed"
        return "failed-audit" if outcomes == ["fail", "fail"] else "disputed"

    def close_turn(self, roster: Any, fate: Any, reveals: Any, missed: Any, audited: Any, drawn: Any) -> None:
        good = [line for line in roster if fate[line["slot"]] is None]
        tokens = {line["slot"]: reveals[line["slot"]][0]["opening"]["tokens"] for line in good}
        total, cap = sum(tokens.values()), self.config["credit"]["operator_cap_ppm"]
        accepted, fresh, lost = [], [], []
        for line in good:
            slot, name, n = line["slot"], line["member"], tokens[line["slot"]]
            group = sum(tokens[x["slot"]] for x in good if x["operator"] == line["operator"])
            weight = n if group * 10**6 <= cap * total else n * cap * total // (10**6 * group)
            payload = reveals[slot][0]["opening"]["payload"]
            accepted.append({"member": name, "payload": payload, "slot": slot, "tokens": n, "weight": weight})
            fresh.append((self.turn, name, n))
            self.accepted[name] += 1
            self.state[name] = reveals[slot][1]["next_state"]
            if slot in drawn:
                self.suspect.discard(name)
            t = self.config["timing"]
            if t["mode"] == "measured":
                every = self.config["train"]["trace_every"]
                q = line["steps"] * t["round_ms"] // max(1, self.ms[slot])
                q = min(q, 2 * line["steps"], t["max_steps"])
                self.steps[slot] = max(every, q - q % every)
        fresh += [(self.turn, name, reveals[slot][0]["opening"]["tokens"]) for name, slot in audited]
        rejected = []
        for line in roster:
            slot, name, reason = line["slot"], line["member"], fate[line["slot"]]
            if reason is None:
                continue
            evidence = self.evidence(line, reason, reveals)
            rejected.append(
                {
                    "evidence": evidence,
                    "fault": reason == "failed-audit",
                    "member": name,
                    "reason": reason,
                    "slot": slot,
                }
            )
            self.queue += [[a, b, line["operator"]] for a, b in line["positions"]]
            if reason in STRIKING:
                self.strikes[name] += 1
                self.suspect.add(name)
            if reason == "failed-audit" or self.strikes[name] >= self.config["credit"]["strikes"]:
                lost.append(name)
        self.queue.sort(key=lambda q: q[0])
        self.unvested += fresh
        for _, name, n in fresh:
            self.credit[name]["earned"] += n
        for entry in list(self.unvested):
            if entry[1] in lost:
                self.credit[entry[1]]["forfeited"] += entry[2]
                self.unvested.remove(entry)
        for entry in list(self.unvested):
            if entry[0] <= self.turn - self.config["credit"]["vest_rounds"]:
                self.credit[entry[1]]["vested"] += entry[2]
                self.unvested.remove(entry)
        self.quarantined = sorted({*self.quarantined, *lost})
        if good:
            self.base = {
                "outer": b3(b"outer %d" % self.round),
                "weights": b3(b"weights %d" % self.round),
            }
        losses = sum(
            tokens[line["slot"]] * reveals[line["slot"]][0]["opening"]["loss_last"] for line in good
        )
        self.add(
            "round-close",
            self.in_turn(
                void=not good,
                accepted=accepted,
                rejected=rejected,
                missed=missed,
                **self.base,
                requeued=[{"operator": o, "range": [a, b]} for a, b, o in self.queue],
                cursor=self.cursor,
                credits=[dict(self.credit[name]) for name in sorted(self.credit)],
                quarantined=list(self.quarantined),
                train_loss=losses // total if good else None,
                val_loss=5_000_000 if good and self.round % 2 == 0 else None,
            ),
        )
        self.heads.append(len(self.entries))
        self.tokens += total
        self.turn += 1
        self.round, self.attempt = (self.round + 1, 0) if good else (self.round, self.attempt + 1)

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        if reason not in {"failed-audit", "malformed-payload"}:
            return None
        files = {"payload": b"not a payload"}
        if reason == "failed-audit":
            payload = reveals[line["slot"]][1]["payload"]
            files = {"start_state": self.files["start of " + line["member"]], "payload": payload}
        case = canon(
            {
                "attempt": self.attempt,
                "files": {name: b3(data) for name, data in files.items()},
                "member": line["member"],
                "reason": reason,
                "round": self.round,
                "run": self.run_id,
                "slot": line["slot"],
            }
        )
        for name, data in {**files, "case.json": case}.items():
            self.files[f"evidence/r{self.round:05d}-a{self.attempt}-s{line['slot']}/{name}"] = data
        return sha(case)

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


def roster_line(roster: list[dict[str, Any]], slot: int) -> dict[str, Any]:
    return next(line for line in roster if line["slot"] == slot)


def vkey(name: str = "coordinator", origin: str = ORIGIN) -> str:
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public(name)).digest()[:4]
    return f"{origin}+{key_id.hex()}+{base64.b64encode(b'' + bytes([1]) + public(name)).decode()}"


def log_files(entries: list[bytes]) -> dict[str, bytes]:
    files = {"log/checkpoint": note_of(entries).encode()}
    level, hashes = 0, [hashlib.sha256(b"\x00" + e).digest() for e in entries]
    while hashes:
        for at in range(0, len(hashes), 256):
            part = hashes[at : at + 256]
            index = at // 256
            name = f"{index:03d}" if index < 1000 else f"x{index // 1000:03d}/{index % 1000:03d}"
            suffix = "" if len(part) == 256 else f".p/{len(part)}"
            files[f"log/tile/{level}/{name}{suffix}"] = b"".join(part)
            if level == 0:
                bundle = b"".join(len(e).to_bytes(2, "big") + e for e in entries[at : at + 256])
                files[f"log/tile/entries/{name}{suffix}"] = bundle
        full = [hashes[i : i + 256] for i in range(0, len(hashes) - 255, 256)]
        hashes = []
        for part in full:
            while len(part) > 1:
                part = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(part[::2], part[1::2], strict=True)]
            hashes.append(part[0])
        level += 1
    return files


VARIANTS: list[dict[str, Any]] = [
    {},
    {"timing__mode": "fixed", "state__policy": "reset"},
    {"train__mode": "gradient", "audit__rate_ppm": 1_000_000, "audit__second_look_ppm": 1_000_000},
    {"audit__rate_ppm": 0, "audit__probation_rounds": 0, "credit__operator_cap_ppm": 200_000},
]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_an_honest_run_holds(tmp_path: Path, variant: int) -> None:
    writer = Writer(tmp_path / "run", **VARIANTS[variant]).run()
    steps: list[str] = []
    found = check_run(writer.write(), progress=lambda what, done, of: steps.append(f"{what} {done}/{of}"))
    assert found.failures == ()
    assert found.complete
    assert found.ok
    assert found.anchored is None
    assert (found.rounds, found.run_id, found.log_vkey) == (6, writer.run_id, vkey())
    assert (found.log_size, found.log_head) == (len(writer.entries), "sha256:" + tree_root(writer.entries).hex())
    assert found.weights_digest == b3(b"weights 6")
    assert found.run_close is not None
    assert [e["member"] for e in found.enrolments] == [m[0] for m in MEMBERS]
    assert [t.open["turn"] for t in found.turns] == list(range(writer.turn))
    assert f"records {len(writer.entries)}/{len(writer.entries)}" in steps


def test_the_default_run_has_what_the_other_tests_need(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run()
    reasons = {r["reason"] for k, c, _ in writer.records if k == "round-close" for r in c["rejected"]}
    assert reasons >= {"late", "unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload"}
    assert reasons >= {"unserved", "unaudited", "disputed", "failed-audit"}
    closes = [c for k, c, _ in writer.records if k == "round-close"]
    assert any(c["void"] for c in closes)
    assert closes[-1]["quarantined"]
    assert any(line["forfeited"] for line in closes[-1]["credits"])
    assert any(line["vested"] for line in closes[-1]["credits"])
    assert any(a["weight"] != a["tokens"] for c in closes for a in c["accepted"])
    assert any(c["missed"] for c in closes)
    assert any(name.startswith("state/") for name in writer.files)


def test_a_run_killed_at_any_head_holds_and_is_not_complete(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run()
    young = Writer(tmp_path / "run")
    for size in writer.heads[:-1]:
        turns = sum(kind == "round-close" for kind, _, _ in writer.records[:size])
        if young.turn != turns or not young.entries:
            young = Writer(tmp_path / "run").run(turns=turns)
        young.entries, young.records = writer.entries, writer.records
        # The files of the turn in progress may be there or not, as far as the log does not name them yet.
        named = {
            f"payloads/{r['opening']['payload'][7:]}" for k, r, _ in writer.records[:size] if k == "reveal"
        }
        started = {r["opening"]["start_state"][7:] for k, r, _ in writer.records[:size] if k == "reveal"}
        young.files |= {n: d for n, d in writer.files.items() if n in named or n[6:] in started and n[:6] == "state/"}
        found = check_run(young.write(size))
        assert found.failures == (), size
        assert not found.complete
        assert found.log_size == size


def test_leftovers_of_a_turn_in_progress(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=2)
    run = writer.write()
    (run / "payloads" / b3(b"next")[7:]).write_bytes(b"next")
    (run / "checkpoints" / "round-00003.outer").write_bytes(b"early")
    (run / "checkpoints" / "round-00001.outer").write_bytes(b"old")
    (run / "evidence" / "r00003-a0-s1").mkdir(parents=True)
    (run / "evidence" / "r00003-a0-s1" / "payload").write_bytes(b"early")
    assert check_run(run).failures == ()
    (run / "payloads" / b3(b"wrong")[7:]).write_bytes(b"right")
    (run / "checkpoints" / "round-00005.outer").write_bytes(b"too early")
    (run / "evidence" / "r00007-a0-s1").write_bytes(b"too early")
    assert {f.where.split("/")[0] for f in check_run(run).failures} == {"payloads", "checkpoints", "evidence"}


def test_anchors(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run").run(turns=1)
    run = writer.write()
    head = f"14:{tree_root(writer.entries[:14]).hex()}"
    assert check_run(run, vkey=vkey()).anchored == "vkey"
    assert check_run(run, expect_head=head).anchored == "expect-head"
    both = check_run(run, vkey=vkey(), expect_head=head.replace(":", ":sha256:"))
    assert (both.anchored, both.failures) == ("vkey+expect-head", ())
    for bad in (check_run(run, vkey=vkey("ann")), check_run(run, expect_head="15" + head[2:])):
        assert bad.anchored is None
        assert len(bad.failures) == 1
    assert "only" in check_run(run, expect_head="999" + head[2:]).failures[0].got
    with pytest.raises(UsageError):
        check_run(run, expect_head="head")


def test_no_run_and_another_protocol(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        check_run(tmp_path / "none")
    with pytest.raises(UsageError, match="not a run folder"):
        check_run(tmp_path)
    writer = Writer(tmp_path / "run", lie=lambda k, r, w: {**r, "protocol": 2} if k == "manifest" else r)
    with pytest.raises(UsageError, match="another protocol version; expected 1, got 2"):
        check_run(writer.run(turns=1).write())
    honest = Writer(tmp_path / "run").run(turns=1)
    run = honest.write()
    (run / "manifest.json").write_bytes(canon({**honest.manifest, "protocol": 2}))
    assert any(f.where == "manifest.json" for f in check_run(run).failures)
    shutil.rmtree(run / "log")
    with pytest.raises(UsageError):
        check_run(run)


def test_a_log_of_more_than_one_tile(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", script={}, run__rounds=14).run()
    assert len(writer.entries) > 256
    run = writer.write()
    assert (run / "log/tile/1/000.p/1").exists()
    assert check_run(run).failures == ()
    (run / "log/tile/1/000.p/1").write_bytes(bytes(32))
    assert [f.where for f in check_run(run).failures] == ["log/tile/1/000.p/1"]
