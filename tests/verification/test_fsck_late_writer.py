"""A made-up run whose audits lag, for the tests of level 1: those of a turn come after later closes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.verification.test_fsck_bytes import b3
from tests.verification.test_fsck_state import State
from tests.verification.test_fsck_writer import Writer, roster_line
from verification.fsck import check_run


@dataclass
class Waiting:
    """A closed turn, and what its settlement needs of it."""

    now: dict[str, Any]
    roster: Any = None
    todo: Any = None
    reveals: Any = None
    drawn: Any = None
    served: Any = None
    short: bool = False
    starts: dict[str, bytes] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)
    standing: list[int] = field(default_factory=list)


class LateWriter(Writer):
    """Plays a run with `audit.lag` above 0; `settle_as` says of a slot what its settlement makes of it."""

    NOW = ("turn", "round", "attempt", "drawn_segments", "tolerant", "committed", "key_names")

    def __init__(self, folder: Path, *, lag: int = 1, settle_as: Any = None, **over: Any):
        over = {"credit__vest_rounds": lag + 2, **over}
        super().__init__(folder, audit__lag=lag, **over)
        self.lag = lag
        self.settle_as: dict[tuple[int, int], str | None] = settle_as or {}
        self.waiting: list[Waiting] = []
        self.draws = 0
        self.final = self.base
        self.removed: list[tuple[int, int, str]] = []

    def number(self, look: int) -> int:
        return self.draws + 1

    def link_and_seed(self, look: int) -> dict[str, Any]:
        chance = super().link_and_seed(look)
        self.draws += 1
        return chance

    def audit(self, roster: Any, auditors: Any, todo: Any, fate: Any, reveals: Any) -> Any:
        drawn, served, unserved, nobody, short = self.draw(roster, auditors, todo, reveals)
        for slot in nobody | set(unserved) | {s for s in drawn if not drawn[s]}:
            fate[slot] = fate[slot] or ("unserved" if slot in unserved else "no-eligible-auditor")
        now = {name: getattr(self, name) for name in self.NOW}
        one = Waiting({**now, "key_names": dict(self.key_names)}, roster, todo, reveals, drawn, served, short)
        one.starts = {line["member"]: self.files["start of " + line["member"]] for line in roster}
        one.before = dict(self.state)
        one.standing = [line["slot"] for line in roster if fate[line["slot"]] is None]
        self.waiting.append(one)
        self.given = {}
        return [], {}

    def one_turn(self) -> None:
        super().one_turn()
        while self.waiting and (len(self.waiting) > self.lag or self.round > self.config["run"]["rounds"]):
            self.settle(self.waiting[0])

    def settle(self, one: Waiting) -> None:
        later = {name: getattr(self, name) for name in self.NOW}
        self.__dict__.update(one.now)
        self.files |= {f"start of {name}": start for name, start in one.starts.items()}
        served = [slot for slot in one.served if slot in one.standing]
        missed, looks = self.look_at_all(one.roster, one.todo, one.reveals, one.drawn, served, one.short)
        reasons: dict[int, str | None] = dict.fromkeys(one.standing)
        for slot in set(one.standing) & set(one.drawn):
            reasons[slot] = self.judge(slot, one.drawn, [], looks)
        reasons |= {s: why for (turn, s), why in self.settle_as.items() if turn == self.turn and s in reasons}
        removed = self.take_out(one, reasons, later["key_names"])
        for entry in self.paid(one.roster, reasons, one.reveals):
            self.unvested.append(entry)
            self.credit[entry[1]]["earned"] += entry[2]
        here = (self.round, self.attempt)
        cases = {r["slot"]: r["evidence"] for r in removed if (r["round"], r["attempt"]) == here}
        overruled = self.overruled(one.roster, cases)
        at_fault = [line["member"] for line in removed if line["fault"]]
        at_fault += [line["auditor"] for line in overruled]
        self.quarantined = sorted({*self.quarantined, *at_fault})
        for entry in [entry for entry in self.unvested if entry[1] in self.quarantined]:
            self.credit[entry[1]]["forfeited"] += entry[2]
            self.unvested.remove(entry)
        for slot in set(one.standing) & set(one.drawn):
            name = roster_line(one.roster, slot)["member"]
            if self.struck[name] < self.turn:
                self.suspect.discard(name)
        self.excise(one, bool(removed))
        self.add(
            "settlement",
            self.in_turn(
                removed=removed,
                missed=missed,
                overruled=overruled,
                settled=self.final,
                **self.base,
                requeued=[{"operator": o, "range": [a, b]} for a, b, o in self.queue],
                credits=[dict(self.credit[name]) for name in sorted(self.credit)],
                quarantined=list(self.quarantined),
            ),
        )
        self.waiting.remove(one)
        self.__dict__.update(later)
        self.heads.append(len(self.entries))

    def take_out(self, one: Waiting, reasons: Any, key_names: Any) -> list[dict[str, Any]]:
        removed, fallen = [], set()
        for waiting in self.waiting:
            for slot in list(waiting.standing):
                line = roster_line(waiting.roster, slot)
                name = line["member"]
                reason = reasons[slot] if waiting is one else ("follows" if name in fallen else None)
                if reason is None:
                    continue
                evidence = self.evidence(line, reason, waiting.reveals) if waiting is one else None
                if waiting is one:
                    fallen.add(name)
                    same = key_names.get(name) == waiting.now["key_names"].get(name)
                    self.state[name] = waiting.before[name] if same else b"zero"
                waiting.standing.remove(slot)
                self.removed.append((waiting.now["turn"], slot, reason))
                place = {"round": waiting.now["round"], "attempt": waiting.now["attempt"], "slot": slot}
                fault = reason == "failed-audit"
                removed.append(
                    {**place, "evidence": evidence, "fault": fault, "member": name, "reason": reason}
                )
                self.give_back(waiting, line)
        self.queue.sort(key=lambda q: q[0])
        return removed

    def give_back(self, waiting: Waiting, line: Any) -> None:
        name, tokens = line["member"], waiting.reveals[line["slot"]][0]["opening"]["tokens"]
        self.queue += [[a, b, line["operator"]] for a, b in line["positions"]]
        self.tokens -= tokens
        self.accepted[name] -= self.accepted[name] > 0
        self.credit[name]["earned"] -= tokens
        entry = (waiting.now["turn"], name, tokens)
        if entry in self.unvested:
            self.unvested.remove(entry)
        else:
            self.credit[name]["forfeited"] -= tokens

    def excise(self, one: Waiting, removes: bool) -> None:
        """Made-up checkpoints: those of turns after which nothing was removed stay as they are."""
        afters = [self.final]
        for waiting in self.waiting:
            if removes:
                tag = f"{waiting.now['turn']} without {len(self.removed)}".encode()
                new = {"outer": b3(b"outer " + tag), "weights": b3(b"weights " + tag)}
                waiting.now["after"] = new if waiting.standing else afters[-1]
            afters.append(waiting.now["after"])
        self.final, self.base = afters[1], afters[-1]

    def close_turn(self, *args: Any) -> None:
        super().close_turn(*args)
        self.waiting[-1].now["after"] = self.base

    def write(self, size: int | None = None) -> Path:
        """As the first, with the checkpoints that turns which wait started from."""
        folder = super().write(size)
        told = self.records[:size]
        closes = [r for k, r, _ in told if k == "round-close"]
        ended = told[-1][0] == "run-close"
        for record in [] if ended else closes[sum(k == "settlement" for k, _, _ in told) :]:
            for kind in ("safetensors", "outer"):
                name = folder / "checkpoints" / f"round-{record['round'] - 1:05d}.{kind}"
                name.parent.mkdir(exist_ok=True)
                name.write_bytes(b"kept")
        return folder


def test_the_late_run_has_what_the_other_tests_need(tmp_path: Path) -> None:
    writer = LateWriter(tmp_path / "run", lag=2, audit__rate_ppm=1_000_000).run()
    assert {reason for _, _, reason in writer.removed} >= {"failed-audit", "follows", "unaudited", "disputed"}
    kinds = [kind for kind, _, _ in writer.records]
    assert kinds.count("settlement") == kinds.count("round-close") == writer.turn
    assert isinstance(writer, State)
    assert check_run(writer.write()).failures == ()
