"""The turns of a made-up run, for the tests of level 1.

`lie` is called before each record is signed and may change it, drop it or put others in its place, so that
every lie is signed by whoever would tell it.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

from tests.verification.test_fsck_bytes import (
    b3,
    canon,
    dom,
    draw_number,
    envelope,
    key_text,
    sha,
    trace_root,
)
from tests.verification.test_fsck_looks_writer import Looks, roster_line

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


class Writer(Looks):
    """Plays a made-up run by its script."""

    def __init__(
        self, folder: Path, *, script: Any = SCRIPT, silent: Any = SILENT, lie: Any = None, **over: Any
    ):
        super().__init__(folder, script=script, silent=silent, lie=lie, **over)

    def run(self, turns: int = 99) -> Writer:
        subject = ("dataset", self.manifest["dataset"]["root"][7:])
        manifest = self.lie("manifest", copy.deepcopy(self.manifest), self) if self.lie else self.manifest
        self.manifest, self.run_id = manifest, sha(canon(manifest))
        self.run_subject = ("run", self.run_id[7:])
        self.entries = [envelope("manifest", manifest, "coordinator", subject)]
        self.records = [("manifest", manifest, "coordinator")]
        for name, role, operator, numerics in self.members:
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

    def one_turn(self) -> None:
        self.change_keys()
        todo = {slot: what for (turn, slot), what in self.script.items() if turn == self.turn}
        roster = self.roster()
        inner, outer = self.rates(roster)
        state = self.config["state"]
        snapshot = state["policy"] == "snapshot" and (self.round - 1) % state["every"] == 0
        measured = self.config["timing"]["mode"] == "measured"
        auditors = [
            {"member": n, "key": self.key(n), "operator": o, "class": c}
            for n, _, o, c in self.auditors
            if n not in self.quarantined
        ]
        self.present = auditors
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
                witnesses=self.open_witnesses(),
            ),
        )
        fate: dict[int, str | None] = {line["slot"]: None for line in roster}
        reveals = self.commit_and_reveal(roster, todo, fate, snapshot)
        missed, drawn = self.audit(roster, auditors, todo, fate, reveals)
        self.close_turn(roster, fate, reveals, missed, drawn)

    def commit_and_reveal(self, roster: Any, todo: Any, fate: Any, snapshot: bool) -> dict[int, Any]:
        reveals: dict[int, Any] = {}
        for line in roster:
            slot, name = line["slot"], line["member"]
            if todo.get(slot) == "late":
                fate[slot] = "late"
                continue
            work = self.work(line)
            if str(todo.get(slot)).startswith("cheat"):
                work = {**work, "payload": work["payload"][::-1], "trace": work["trace"][::-1]}
            if todo.get(slot) == "duplicate":
                work["payload"] = self.accepted_payloads[0]
            if todo.get(slot) == "replay":
                work["payload"] = self.rejected_payloads[0]
            if todo.get(slot) == "twin":
                work["payload"] = next(iter(reveals.values()))[1]["payload"]
            opening = {
                "base": self.base,
                "positions": line["positions"],
                "class": line["class"],
                "tokens": 8 * sum(b - a for a, b in line["positions"]),
                "start_state": line["start_state"],
                "next_state": b3(work["next_state"]),
                "payload": b3(work["payload"]),
                "trace_root": trace_root(work["trace"]),
                "trace_leaves": len(work["trace"]),
                "loss_first": work["loss_first"],
                "loss_last": work["loss_last"],
            }
            if todo.get(slot) == "leaves":
                opening["trace_leaves"] += 1
            salt = hashlib.sha256(f"salt {self.turn} {slot}".encode()).hexdigest()
            reveal = self.in_turn(slot=slot, member=name, key=self.key(name), salt=salt, opening=opening)
            hashed = {k: reveal[k] for k in ("attempt", "key", "opening", "round", "run", "salt", "slot")}
            commitment = dom("barnraise/commitment/v1", hashed)
            if todo.get(slot) == "mismatch":
                reveal["opening"] = {**opening, "loss_last": 1}
            reveals[slot] = (reveal, work)
            self.add(
                "commitment",
                self.in_turn(slot=slot, member=name, key=self.key(name), commitment=commitment),
                self.signer(name),
            )
        committed = list(reveals)
        late = [line["slot"] for line in roster if line["slot"] not in reveals]
        self.ms = {slot: 100 + 150 * ((slot + self.turn) % 7) for slot in committed}
        self.ms |= {slot: 0 for slot in committed if todo.get(slot) == "unmeasured"}
        self.add(
            "commit-close", self.in_turn(committed=committed, late=late, ms=[self.ms[s] for s in committed])
        )
        head = self.head()
        reasons = {
            "unrevealed": "unrevealed",
            "other bytes": "unrevealed",
            "mismatch": "opening-mismatch",
            "leaves": "opening-mismatch",
            "malformed": "malformed-payload",
            "duplicate": "duplicate-payload",
            "unserved": "unserved",
        }
        for slot in committed:
            what = todo.get(slot)
            if what == "unserved" and not (
                snapshot and roster_line(roster, slot)["start_state"] != b3(b"zero")
            ):
                what = None
            if what != "unrevealed":
                self.add("reveal", reveals[slot][0], self.signer(reveals[slot][0]["member"]))
            if what in reasons:
                fate[slot] = reasons[what]
            else:
                work, name = reveals[slot][1], reveals[slot][0]["member"]
                self.files[f"payloads/{b3(work['payload'])[7:]}"] = work["payload"]
                start = self.files["start of " + name]
                if snapshot and start != b"zero":
                    self.files[f"state/{b3(start)[7:]}"] = start
        revealed = [s for s in committed if fate[s] is None]
        refused = [{"reason": fate[s], "slot": s} for s in committed if fate[s] is not None]
        close = self.in_turn(head=head, revealed=revealed, refused=refused, pulse=self.named_pulse())
        self.add("reveal-close", close)
        self.committed = reveals
        return {s: reveals[s] for s in revealed}

    def draw(self, roster: Any, auditors: Any, todo: Any, reveals: Any) -> Any:
        """Draw and served: who is drawn, serves, does not serve, nobody can audit; if the draw is short."""
        chance = self.link_and_seed(1)
        short = self.is_short(chance)
        drawn: dict[int, list[str]] = {}
        self.drawn_segments: dict[int, list[int]] = {}
        self.tolerant: set[int] = set()
        nobody = set()
        payloads = {slot: work["payload"] for slot, (_, work) in reveals.items()}
        for line in roster:
            slot = line["slot"]
            names = self.able(line, auditors)
            if self.rests(line, names):
                self.tolerant.add(slot)
            if not names and line["audit_ppm"]:
                nobody.add(slot)
            twin = any(other != slot and payloads.get(slot) == payloads[other] for other in payloads)
            if short or twin or draw_number(chance["seed"], f"audit/{slot}", 10**6) < line["audit_ppm"]:
                for i in reversed(range(1, len(names))):
                    j = draw_number(chance["seed"], f"auditors/{slot}/{i}", i + 1)
                    names[i], names[j] = names[j], names[i]
                drawn[slot] = names
                segments = self.draw_segments(line, chance["seed"], whole=short or twin)
                self.drawn_segments[slot] = segments
        segments_of = self.drawn_segments
        listed = [{"auditors": names, "segments": segments_of[s], "slot": s} for s, names in drawn.items()]
        self.add("draw", self.in_turn(**chance, drawn=listed))
        due = [s for s in drawn if drawn[s] and s in reveals]
        unserved = [s for s in due if todo.get(s) == "noserve"]
        served = [s for s in due if s not in unserved]
        self.add("served", self.in_turn(served=served, unserved=unserved))
        return drawn, served, unserved, nobody, short

    def audit(self, roster: Any, auditors: Any, todo: Any, fate: Any, reveals: Any) -> Any:
        drawn, served, unserved, nobody, short = self.draw(roster, auditors, todo, reveals)
        missed, looks = self.look_at_all(roster, todo, reveals, drawn, served, short)
        for slot in sorted(nobody | set(drawn)):
            if fate[slot] is None:
                nowhere = slot in nobody
                fate[slot] = "no-eligible-auditor" if nowhere else self.judge(slot, drawn, unserved, looks)
        return missed, drawn

    def close_turn(self, roster: Any, fate: Any, reveals: Any, missed: Any, drawn: Any) -> None:
        good = [line for line in roster if fate[line["slot"]] is None]
        tokens = {line["slot"]: reveals[line["slot"]][0]["opening"]["tokens"] for line in good}
        total, cap = sum(tokens.values()), self.config["credit"]["operator_cap_ppm"]
        weights = {}
        for line in good:
            group = sum(tokens[x["slot"]] for x in good if x["operator"] == line["operator"])
            n = tokens[line["slot"]]
            weights[line["slot"]] = n if group * 10**6 <= cap * total else n * cap * total // (10**6 * group)
        weights |= self.tolerant_cap(roster, weights)
        accepted, fresh, lost = [], [], []
        for line in good:
            slot, name, n = line["slot"], line["member"], tokens[line["slot"]]
            weight = weights[slot]
            payload = reveals[slot][0]["opening"]["payload"]
            accepted.append({"member": name, "payload": payload, "slot": slot, "tokens": n, "weight": weight})
            fresh.append((self.turn, name, n))
            self.accepted[name] += 1
            self.accepted_payloads.append(reveals[slot][1]["payload"])
            self.state[name] = reveals[slot][1]["next_state"]
            if slot in drawn:
                self.suspect.discard(name)
        self.pace(roster, fate)
        fresh += self.paid(roster, fate, reveals)
        rejected = []
        for line in roster:
            slot, name, reason = line["slot"], line["member"], fate[line["slot"]]
            if reason is None:
                continue
            evidence = self.evidence(line, reason, self.committed)
            if slot in reveals:
                self.rejected_payloads.append(reveals[slot][1]["payload"])
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
                self.struck[name] = self.turn
            if reason == "failed-audit" or self.strikes[name] >= self.config["credit"]["strikes"]:
                lost.append(name)
        overruled = self.overruled(roster, {line["slot"]: line["evidence"] for line in rejected})
        lost += [line["auditor"] for line in overruled]
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
        losses = sum(tokens[line["slot"]] * reveals[line["slot"]][0]["opening"]["loss_last"] for line in good)
        self.add(
            "round-close",
            self.in_turn(
                void=not good,
                accepted=accepted,
                rejected=rejected,
                missed=missed,
                overruled=overruled,
                **self.base,
                requeued=[{"operator": o, "range": [a, b]} for a, b, o in self.queue],
                cursor=self.cursor,
                credits=[dict(self.credit[name]) for name in sorted(self.credit)],
                quarantined=list(self.quarantined),
                train_loss=losses // total if good else None,
                val_loss=5_000_000
                if good and (self.round in (1, self.config["run"]["rounds"]) or self.round % 2 == 0)
                else None,
            ),
        )
        self.heads.append(len(self.entries))
        self.tokens += total
        self.turn += 1
        self.round, self.attempt = (self.round + 1, 0) if good else (self.round, self.attempt + 1)


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
