"""The audits of a made-up run's turns: first-looks, verdicts, appeals, further looks.

Written from the protocol's section 6 and as plainly as it is: no code of the checker's is used.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.verification.test_fsck_bytes import (
    b3,
    canon,
    dom,
    draw_number,
    hash_of,
    opened_trace,
    sha,
    trace_root,
)
from tests.verification.test_fsck_state import State

Record = dict[str, Any]


def roster_line(roster: list[dict[str, Any]], slot: int) -> dict[str, Any]:
    return next(line for line in roster if line["slot"] == slot)


def sealed(verdict: Record) -> str:
    return dom("barnraise/sealed-verdict/v1", verdict)


def one_side(a: Record, b: Record) -> bool:
    parts = ("outcome", "payload", "next_state", "trace", "loss_first", "loss_last")
    return all(a[key] == b[key] for key in parts)


def alike(a: Record, b: Record) -> bool:
    return one_side(a, b) and all(a[key] == b[key] for key in ("class", "deviations"))


def sides_of(verdicts: list[Record]) -> list[list[Record]]:
    sides: list[list[Record]] = []
    for verdict in verdicts:
        mine = next((side for side in sides if one_side(side[0], verdict)), None)
        if mine is None:
            sides.append([verdict])
        else:
            mine.append(verdict)
    return sides


def voices_of(side: list[Record]) -> int:
    classes = {verdict["class"] for verdict in side}
    return sum(
        max(sum(alike(v, w) for w in side) for v in side if v["class"] == numerics) for numerics in classes
    )


def prevails_in(verdicts: list[Record]) -> list[Record]:
    """The side that prevails; empty where none does."""
    for side in sides_of(verdicts):
        others = [voices_of(other) for other in sides_of(verdicts) if other[0] is not side[0]]
        if voices_of(side) >= 2 and all(voices_of(side) > n for n in others):
            return side
    return []


def once_more(verdicts: list[Record], *, appealed: bool) -> bool:
    """Whether a slot is contested, and nobody leads by two."""
    split = any(
        not one_side(a, b) or (a["class"] == b["class"] and not alike(a, b))
        for a in verdicts
        for b in verdicts
    )
    counts = {side[0]["outcome"] + str(n): voices_of(side) for n, side in enumerate(sides_of(verdicts))}
    if appealed:
        passing = next((name for name in counts if name.startswith("pass")), "pass of nobody")
        counts[passing] = counts.get(passing, 0) + 1
    ranked = [*sorted(counts.values(), reverse=True), 0, 0]
    return (split or appealed) and ranked[0] - ranked[1] < 2


class Looks(State):
    """Audits a turn. Attributes of a turn in progress are set when its audit begins."""

    def __init__(self, folder: Path, **over: Any):
        # (turn, look, slot) -> what its auditor finds: "pass" what was revealed, any other tag something else
        self.sees: dict[tuple[int, int, int], str] = over.pop("sees", {})
        # (turn, slot) that appeal; whose first verdict is lost after it was sealed
        self.appeals: set[tuple[int, int]] = over.pop("appeals", set())
        self.lost: set[tuple[int, int]] = over.pop("lost", set())
        super().__init__(folder, **over)
        self.given: dict[tuple[int, int], Record] = {}
        self.appealed: set[int] = set()

    def look_at_all(self, roster: Any, todo: Any, reveals: Any, drawn: Any, served: Any, short: Any) -> Any:
        """From first-looks to the last verdict: who missed what, and who was called for a second look."""
        self.given, self.appealed, missed = {}, set(), list[Record]()
        held, seals = self.look_first(roster, todo, reveals, drawn, served, missed)
        self.add("first-looks", self.in_turn(looks=seals))
        looks = self.draw_again(drawn, short)
        for slot, told in held.items():
            self.log(told)
            if (1, slot) not in self.given:
                missed.append({"auditor": self.first[slot][0], "look": 1, "slot": slot})
        for slot, names in looks.items():
            self.log(self.ask(2, slot, names, todo, reveals, missed, roster))
        for slot in served:
            if (self.turn, slot) in self.appeals:
                self.appeal(roster_line(roster, slot))
        number = 3
        while due := [slot for slot in served if self.is_due(number, slot)]:
            for slot in due:
                names = self.candidates(slot, drawn[slot], missed)
                self.log(self.ask(number, slot, names, todo, reveals, missed, roster))
            number += 1
        missed.sort(key=lambda line: (line["slot"], line["look"]))
        return missed, looks

    def look_first(
        self, roster: Any, todo: Any, reveals: Any, drawn: Any, served: Any, missed: Any
    ) -> tuple[dict[int, Any], list[Record]]:
        """First verdicts as they will be logged, by slot, and what first-looks says of them."""
        self.first: dict[int, tuple[str, str]] = {}
        held: dict[int, Any] = {}
        seals = []
        for slot in served:
            told = self.ask(1, slot, drawn[slot], todo, reveals, missed, roster)
            mine = self.given.get((1, slot))
            if mine is None:
                continue
            self.first[slot] = (mine["auditor"], mine["outcome"])
            shown = next((r for k, r, _ in told if k == "verdict" and r.get("slot") == slot), mine)
            seal = {"auditor": shown.get("auditor"), "outcome": shown.get("outcome"), "slot": slot}
            seals.append({**seal, "verdict": sealed(shown)})
            held[slot] = told
            if (self.turn, slot) in self.lost:
                held[slot] = []
                del self.given[1, slot]
        return held, seals

    def draw_again(self, drawn: Any, short: bool) -> dict[int, list[str]]:
        chance = self.link_and_seed(2)
        short = short or self.is_short(chance)
        looks: dict[int, list[str]] = {}
        for slot, (name, outcome) in self.first.items():
            mine = self.info[name][2]
            silent = drawn[slot][: drawn[slot].index(name)]
            names = [n for n in drawn[slot] if self.info[n][2] != mine and n not in silent]
            second = draw_number(chance["seed"], f"second/{slot}", 10**6)
            certain = short or outcome == "fail"
            if names and (certain or second < self.config["audit"]["second_look_ppm"]):
                looks[slot] = names
        listed = [{"auditors": names, "slot": s} for s, names in looks.items()]
        self.add("second-draw", self.in_turn(**chance, looks=listed))
        return looks

    def appeal(self, line: Any, **over: Any) -> None:
        slot, name = line["slot"], line["member"]
        two = [next(r for k, r, _ in reversed(self.records) if self.is_of(k, r, n, slot)) for n in (1, 2)]
        fields = {"slot": slot, "member": name, "key": line["key"], "verdicts": [sealed(v) for v in two]}
        self.appealed.add(slot)
        self.add("appeal", self.in_turn(**{**fields, **over}), self.signer(name))

    def is_of(self, kind: str, record: Record, look: int, slot: int) -> bool:
        here = {"round": self.round, "attempt": self.attempt, "slot": slot, "look": look}
        return kind == "verdict" and all(record.get(key) == value for key, value in here.items())

    def on(self, slot: int) -> dict[int, Record]:
        """The verdicts on a slot by look."""
        return {look: verdict for (look, at), verdict in sorted(self.given.items()) if at == slot}

    def is_due(self, look: int, slot: int) -> bool:
        verdicts = self.on(slot)
        return look - 1 in verdicts and once_more([*verdicts.values()], appealed=slot in self.appealed)

    def candidates(self, slot: int, order: list[str], missed: list[Record]) -> list[str]:
        heard = [self.info[verdict["auditor"]][2] for verdict in self.on(slot).values()]
        silent = [line["auditor"] for line in missed if line["slot"] == slot]
        return [name for name in order if self.info[name][2] not in heard and name not in silent]

    def ask(
        self, look: int, slot: int, names: list[str], todo: Any, reveals: Any, missed: Any, roster: Any
    ) -> list[Any]:
        """A verdict of the first who does not stay silent, as it is to be logged."""
        quiet = self.silent.get((self.turn, look, slot), 0)
        missed += [{"auditor": n, "look": look, "slot": slot} for n in names[:quiet]]
        if quiet >= len(names):
            return []
        name, opening = names[quiet], reveals[slot][0]["opening"]
        line, what = roster_line(roster, slot), todo.get(slot)
        work = self.seen(look, slot, line, what, reveals)
        served, segments = reveals[slot][1]["trace"], self.drawn_segments[slot]
        opened, looked = self.opened(slot, len(served) - 1)
        trace = [hash_of(leaf).hex() for leaf in served]
        for i in looked:
            trace[i] = served[i] if i in opened else work["trace"][i]
        first = work["loss_first"] if 0 in segments else None
        differs = []
        if trace_root(trace) != opening["trace_root"]:
            differs.append("trace")
        if b3(work["payload"]) != opening["payload"]:
            differs.append("payload")
        if b3(work["next_state"]) != opening["next_state"]:
            differs.append("next_state")
        if work["loss_last"] != opening["loss_last"] or first not in (None, opening["loss_first"]):
            differs.append("loss")
        deviations = []
        if self.rests(line, names):
            deviations = [self.deviation(line, segment, name, what) for segment in segments]
        if self.too_far(line, name, deviations):
            differs.append("deviation")
        verdict = self.in_turn(
            slot=slot,
            look=look,
            auditor=name,
            key=self.key(name),
            outcome="fail" if differs else "pass",
            differs=differs,
            payload=b3(work["payload"]),
            next_state=b3(work["next_state"]),
            trace=trace,
            loss_first=first,
            loss_last=work["loss_last"],
            deviations=deviations,
        )
        verdict["class"] = self.info[name][3]
        self.given[look, slot] = verdict
        return self.told("verdict", verdict, self.signer(name))

    def seen(self, look: int, slot: int, line: Any, what: Any, reveals: Any) -> Any:
        """What an auditor computes: the work as it is, or as the script has it see it."""
        work, tag = self.work(line), self.sees.get((self.turn, look, slot), "")
        if (what, look) in {("dispute", 1), ("dispute later", 2), ("cheat, seen differently", 2)}:
            tag = "!"
        if tag == "pass":
            return dict(reveals[slot][1])
        if tag:
            work["loss_last"] += 1
            work["next_state"] += tag.encode()
        return work

    def opened(self, slot: int, count: int) -> tuple[list[int], set[int]]:
        """Of a drawn slot of `count` segments: the leaves that are opened, and all that are looked into."""
        segments, opened = self.drawn_segments[slot], set()
        tolerant = slot in self.tolerant
        for segment in segments:
            if tolerant:
                opened.add(segment)
            if segment > 0 and (tolerant or segment - 1 not in segments):
                opened.add(segment - 1)
        if tolerant or count - 1 not in segments:
            opened.add(count - 1)
        return sorted(opened), {*opened, *segments, count}

    # --- what the looks come to ---

    def judge(self, slot: int, drawn: Any, unserved: Any, looks: Any) -> str | None:
        verdicts = self.on(slot)
        if not drawn[slot]:
            return "no-eligible-auditor"
        if slot in unserved:
            return "unserved"
        if 1 not in verdicts:
            return "unaudited"
        if len(verdicts) == 1:
            if verdicts[1]["outcome"] == "fail":
                return "unconfirmed"
            return "unaudited" if slot in looks else None
        side = prevails_in([*verdicts.values()])
        if not side:
            return "disputed"
        return "failed-audit" if side[0]["outcome"] == "fail" else None

    def against(self, slot: int) -> list[int]:
        """The looks at a slot whose auditors are overruled."""
        verdicts = self.on(slot)
        side = prevails_in([*verdicts.values()])
        found = []
        for look, verdict in verdicts.items():
            pairs = [(v, w) for v in side for w in side if v is not w and alike(v, w)]
            rivals = [v for v, _ in pairs if v["class"] == verdict["class"]]
            if rivals and not any(alike(v, verdict) for v in rivals):
                found.append(look)
        return found

    def overruled(self, roster: Any, rejected: dict[int, str | None]) -> list[Record]:
        """Who is overruled, with the cases of slots: `rejected` are those of slots that are not accepted."""
        lines = []
        for slot in sorted({at for _, at in self.given}):
            looks, verdicts = self.against(slot), self.on(slot)
            evidence = rejected.get(slot)
            if slot not in rejected and any(verdicts[look]["outcome"] == "fail" for look in looks):
                evidence = self.evidence(roster_line(roster, slot), "overruled", self.committed)
            lines += [
                {"auditor": verdicts[look]["auditor"], "evidence": evidence, "look": look, "slot": slot}
                for look in looks
            ]
        return lines

    def paid(self, roster: Any, reasons: Any, reveals: Any) -> list[tuple[int, str, int]]:
        """What verdicts earn that are borne out: turn, auditor and tokens."""
        return [
            (self.turn, verdict["auditor"], self.pay(roster, slot, reveals[slot][0]["opening"]))
            for (look, slot), verdict in self.given.items()
            if reasons[slot] == {"pass": None, "fail": "failed-audit"}[verdict["outcome"]]
            and look not in self.against(slot)
        ]

    def pay(self, roster: Any, slot: int, opening: Any) -> int:
        """Tokens of those local steps, counted one by one, that lie in the drawn segments."""
        steps, every = roster_line(roster, slot)["steps"], self.config["train"]["trace_every"]
        repeated = [step for step in range(steps) if step // every in self.drawn_segments[slot]]
        return int(opening["tokens"]) * len(repeated) // int(steps)

    def evidence(self, line: Any, reason: str, reveals: Any) -> str | None:
        if reason not in {"failed-audit", "malformed-payload", "overruled"}:
            return None
        slot = line["slot"]
        files = {name: name.encode() for name in ("manifest", "open", "reveal")}
        files["payload"] = reveals[slot][1]["payload"]
        if reason != "malformed-payload":
            names = ["draw", "weights", "windows", *(f"verdict-{look}" for look in self.on(slot))]
            names += ["appeal"] * (slot in self.appealed)
            files |= {name: name.encode() for name in names}
            files["start_state"] = self.files["start of " + line["member"]]
            trace = reveals[slot][1]["trace"]
            if slot in self.tolerant or len(self.drawn_segments[slot]) < len(trace) - 1:
                files["trace"] = opened_trace(trace, self.opened(slot, len(trace) - 1)[0])
        case = canon(
            {
                "attempt": self.attempt,
                "files": {name: b3(data) for name, data in files.items()},
                "member": line["member"],
                "reason": reason,
                "round": self.round,
                "run": self.run_id,
                "slot": slot,
            }
        )
        for name, data in {**files, "case.json": case}.items():
            self.files[f"evidence/r{self.round:05d}-a{self.attempt}-s{slot}/{name}"] = data
        return sha(case)


def made_up(outcome: str, what: str, numerics: str = "c", own: str = "") -> Record:
    said = {"outcome": outcome, "payload": what, "next_state": what, "trace": [what]}
    said |= {"loss_first": None, "loss_last": 7}
    return {**said, "class": numerics, "deviations": [own] if own else []}


def test_sides_by_hand() -> None:
    a, b, c = made_up("pass", "x"), made_up("fail", "y"), made_up("fail", "y", "d")
    assert [len(side) for side in sides_of([a, b, a, c])] == [2, 2]
    assert [voices_of([a, a]), voices_of([b, c]), voices_of([b, made_up("fail", "y", own="1")])] == [2, 2, 1]
    assert prevails_in([a, b]) == []
    assert prevails_in([a, b, b]) == [b, b]
    steps = [once_more([b] * n, appealed=True) for n in (2, 3)]
    assert steps == [True, False]
    assert all(first != second for first, second in pairwise([once_more([a], appealed=False), True, False]))
