"""First-looks, further looks, appeals and who is overruled: honest runs, and one lie at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import sha
from tests.verification.test_fsck_late_writer import LateWriter
from tests.verification.test_fsck_lies import dropper, lying, popper, setter
from tests.verification.test_fsck_tolerance import BOTH, FAY, TOLERANT
from tests.verification.test_fsck_writer import Writer
from verification.errors import FormatError
from verification.fsck import check_run
from verification.fsck_formats import MAX_ENTRY
from verification.fsck_shapes import RECORDS

Record = dict[str, Any]
STOPPED = " (the log's story is not followed from here on)"
CROWD: dict[str, Any] = {
    "more": [(name, "auditor", name[0], "c1") for name in ("uma", "tom", "sam", "ron")],
    "audit__rate_ppm": 1_000_000,
    "audit__second_look_ppm": 1_000_000,
    "audit__probation_rounds": 0,
    "audit__segments": 1,
    "script": {},
    "silent": {},
}
"""Everybody is audited twice; of class c1 there are auditors of six operators."""
CHEAT = {(0, 2): "cheat"}
TORN: dict[str, Any] = {"sees": {(0, 1, 2): "!"}}
"""The first who looks at slot 2 finds something else: it takes four looks to overrule it."""
LIARS: dict[str, Any] = {"sees": {(0, 1, 2): "!", (0, 2, 2): "!"}, "appeals": {(0, 2)}}
FRIEND: dict[str, Any] = {"script": CHEAT, "sees": {(0, 1, 2): "pass"}}
"""Slot 2 cheats, and who looks first says that it did not."""


def played(folder: Path, turns: int = 1, kind: type[Writer] = Writer, **over: Any) -> Writer:
    return kind(folder / "run", **{**CROWD, **over}).run(turns=turns)


def failures(folder: Path, turns: int = 1, kind: type[Writer] = Writer, **over: Any) -> list[str]:
    return [f.what for f in check_run(played(folder, turns, kind, **over).write()).failures]


def records(writer: Writer, kind: str) -> list[Record]:
    return [record for k, record, _ in writer.records if k == kind]


def told(writer: Writer, slot: int = 2) -> tuple[str, list[str]]:
    """How a slot is settled in the first turn, and the outcomes of its looks."""
    close = records(writer, "round-close")[0]
    removed = [line for r in records(writer, "settlement")[:1] for line in r["removed"] if line["round"] == 1]
    reasons = {line["slot"]: line["reason"] for line in [*close["rejected"], *removed]}
    outcomes = [r["outcome"] for r in records(writer, "verdict") if (r["round"], r["slot"]) == (1, slot)]
    return reasons.get(slot, "accepted"), outcomes


def overruled(writer: Writer) -> list[tuple[int, int, bool]]:
    """Slot, look and whether there is a case, of those overruled in the first turn."""
    ends = [*records(writer, "settlement"), *records(writer, "round-close")]
    return [(line["slot"], line["look"], line["evidence"] is not None) for line in ends[0]["overruled"]]


# --- honest runs ---

P, F = "pass", "fail"
HONEST: dict[str, tuple[dict[str, Any], tuple[str, list[str]], list[tuple[int, int, bool]]]] = {
    "nothing": ({}, ("accepted", [P, P]), []),
    "one wrong fail": (TORN, ("accepted", [F, P, P, P]), [(2, 1, True)]),
    "one wrong pass": (FRIEND, ("failed-audit", [P, F, F, F]), [(2, 1, True)]),
    "a second wrong pass": (
        {"script": CHEAT, "sees": {(0, 2, 2): "pass"}}, ("failed-audit", [F, P, F, F]), [(2, 2, True)],
    ),
    "an appeal in vain": (
        {"script": CHEAT, "appeals": {(0, 2)}}, ("failed-audit", [F, F, F]), [],
    ),
    "an appeal that is heard": (
        LIARS, ("accepted", [F, F, P, P, P]), [(2, 1, True), (2, 2, True)],
    ),
    "two of one mind, and no appeal": (
        {"sees": LIARS["sees"]}, ("failed-audit", [F, F]), [],
    ),
    "three of one mind": (
        {"sees": {(0, look, 2): "!" for look in (1, 3, 4)}}, ("failed-audit", [F, P, F, F]), [(2, 2, True)],
    ),
    "two that fail it in two ways": (
        {"sees": {(0, 1, 2): "!", (0, 2, 2): "?"}}, ("accepted", [F, F, P, P, P]),
        [(2, 1, True), (2, 2, True)],
    ),
    "no end": (
        {"sees": {(0, look, 2): "!" for look in (1, 3, 5)}}, ("disputed", [F, P] * 3), [],
    ),
    "nobody answers": (
        {**TORN, "silent": {(0, 3, 2): 9}}, ("disputed", [F, P]), [],
    ),
    "some are silent": (
        {**TORN, "silent": {(0, 1, 2): 1, (0, 2, 2): 1, (0, 3, 2): 1}}, ("disputed", [F, P, P]), [],
    ),
    "a first verdict that is lost": ({"lost": {(0, 2)}}, ("unaudited", [P]), []),
    "an appeal with few left": (
        {"script": CHEAT, "appeals": {(0, 2)}, "silent": {(0, 3, 2): 9}}, ("failed-audit", [F, F]), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("lag", [0, 2])
def test_an_honest_run_holds(tmp_path: Path, name: str, lag: int) -> None:
    over, settled, lines = HONEST[name]
    late: dict[str, Any] = {"kind": LateWriter, "lag": lag} if lag else {}
    writer = played(tmp_path, 4, **late, **over)
    if name == "some are silent":  # how many are left depends on whose auditors are silent
        assert told(writer)[1][:2] == settled[1][:2]
    else:
        assert told(writer) == settled
        assert overruled(writer) == lines
    found = check_run(writer.write())
    assert found.failures == ()
    assert found.turns[0].first_looks == records(writer, "first-looks")[0]
    assert dict(found.turns[0].appeals) == {r["slot"]: r for r in records(writer, "appeal")}


def test_all_slots_at_once(tmp_path: Path) -> None:
    """Looks 3 of all slots stand before all looks 4."""
    over = {"sees": {(0, 1, slot): "!" for slot in (0, 1, 2)}, "silent": {(0, 3, 1): 1}}
    writer = played(tmp_path, 2, **over)
    places = [(r["look"], r["slot"]) for r in records(writer, "verdict") if r["round"] == 1]
    assert places == sorted(places)
    assert {(3, 0), (3, 1), (3, 2), (4, 0), (4, 2)} <= set(places)
    assert check_run(writer.write()).failures == ()


def test_the_overruled_are_shut_out(tmp_path: Path) -> None:
    writer = played(tmp_path, 2, **TORN)
    close, then = records(writer, "round-close")[0], records(writer, "round-open")[1]
    [line] = close["overruled"]
    assert close["quarantined"] == [line["auditor"]]
    assert line["auditor"] not in [auditor["member"] for auditor in then["auditors"]]
    lines = {line["member"]: line for line in close["credits"]}
    assert lines[line["auditor"]]["forfeited"] == lines[line["auditor"]]["earned"] > 0
    assert check_run(writer.write()).failures == ()


class Unlike(Writer):
    """Auditors of one class find other deviations where `odd` says so."""

    odd: Callable[[int], bool] = staticmethod(lambda look: False)

    def ask(self, look: int, *rest: Any) -> Any:
        self.asking = look
        return super().ask(look, *rest)

    def deviation(self, line: Record, segment: int, auditor: str, what: Any) -> Record:
        found = super().deviation(line, segment, auditor, what)
        return {**found, "own": sha(found["own"].encode())} if type(self).odd(self.asking) else found


@pytest.mark.parametrize(("odd", "reason"), [((1,), "accepted"), ((1, 3), "accepted"), ((), "accepted")])
def test_other_deviations_of_one_class(tmp_path: Path, odd: tuple[int, ...], reason: str) -> None:
    """Two that agree in all but what they measured: whom the next of their class bears out is right."""
    kind = type("Odd", (Unlike,), {"odd": staticmethod(lambda look: look in odd)})
    more = [*TOLERANT["more"], *CROWD["more"]]
    over = {**TOLERANT, "more": more, "kind": kind}
    writer = played(tmp_path, **over)
    assert told(writer, FAY)[0] == reason
    assert [(look, case) for _, look, case in overruled(writer)] == {
        (): [], (1,): [(1, False)], (1, 3): [(2, False)],
    }[odd]  # fmt: skip
    assert check_run(writer.write()).failures == ()


def test_between_classes_nobody_is_overruled(tmp_path: Path) -> None:
    """Those of c2 have an item of their own, and fail what those of c1 pass."""

    class Torn(Writer):
        def deviation(self, line: Record, segment: int, auditor: str, what: Any) -> Record:
            what = "peak_ppm" if self.info[auditor][3] == "c2" else None
            return super().deviation(line, segment, auditor, what)

    seen = set()
    for seed in range(1, 9):
        more = [*TOLERANT["more"], *CROWD["more"]]
        over = {**TOLERANT, "audit__tolerance": BOTH, "more": more, "run__seed": seed}
        writer = played(tmp_path / str(seed), kind=Torn, **over)
        reason, outcomes = told(writer, FAY)
        seen.add((reason, tuple(sorted(outcomes))))
        assert overruled(writer) == []
        assert check_run(writer.write()).failures == ()
    assert ("accepted", (F, P, P, P)) in seen


# --- first-looks ---

NOT_TOLD = "{} was not to look first at slot {} in round 1"
NOT_IN_ORDER = "the first looks of round 1 are not in order, each once"
ANOTHER = "the verdict of look 1 of slot 2 in round 1 is not the one that first-looks tells"
NOT_CALLED = "{} was not to give a verdict for look {} of slot {} in round 1, or one was given before"


def name_at(writer: Writer, look: int, slot: int = 2) -> str:
    """Who gave a verdict in the first turn."""
    verdicts = [r for r in records(writer, "verdict") if r["round"] == 1]
    return next(str(r["auditor"]) for r in verdicts if (r["look"], r["slot"]) == (look, slot))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r, _: r["looks"].reverse(), NOT_IN_ORDER),
        (lambda r, _: r["looks"].insert(0, r["looks"][0]), NOT_IN_ORDER),
        (lambda r, _: r["looks"].append({**r["looks"][2], "slot": 9}), NOT_TOLD.format("{}", 9)),
        (setter("looks.2.verdict", sha(b"another")), ANOTHER),
    ],
)  # fmt: skip
def test_first_looks_told_wrongly(tmp_path: Path, change: Any, expected: str) -> None:
    name = name_at(played(tmp_path / "honest"), 1)
    assert failures(tmp_path, lie=lying("first-looks", change)) == [expected.format(name)]


def test_a_first_look_by_somebody_who_was_not_called(tmp_path: Path) -> None:
    found = failures(tmp_path, lie=lying("first-looks", setter("looks.2.auditor", "wim")))
    assert found[0] == NOT_TOLD.format("wim", 2)
    assert "slot 2 is settled wrongly in round 1" not in found
    assert any("though its drawn audit was not done" in what for what in found)


def test_a_first_look_at_what_was_not_served(tmp_path: Path) -> None:
    def more(record: Record, writer: Writer) -> None:
        line = {"auditor": "tom", "outcome": "pass", "slot": 2, "verdict": sha(b"none")}
        record["looks"].insert(2, line)

    over: Any = {"script": {(0, 2): "noserve"}}
    assert failures(tmp_path / "a", **over) == []
    found = failures(tmp_path / "b", lie=lying("first-looks", more), **over)
    assert found == [NOT_TOLD.format("tom", 2)]


def test_an_outcome_that_the_verdict_has_not(tmp_path: Path) -> None:
    """Second looks follow from what first-looks tells: with another outcome no look would be due."""
    over: Any = {**TORN, "audit__second_look_ppm": 0}
    found = failures(tmp_path, lie=lying("first-looks", setter("looks.2.outcome", "pass")), **over)
    assert found[0] == "the second looks of round 1 do not follow from first-looks and seed"
    assert "first-looks tells another outcome than the verdict of look 1 of slot 2 in round 1" in found


def test_second_looks_follow_from_first_looks(tmp_path: Path) -> None:
    """Also where the verdict itself cannot be had any more."""
    over: Any = {**TORN, "audit__second_look_ppm": 0, "lost": {(0, 2)}}
    writer = played(tmp_path / "a", **over)
    assert [line["slot"] for line in records(writer, "second-draw")[0]["looks"]] == [2]
    assert told(writer) == ("unaudited", [P])
    assert check_run(writer.write()).failures == ()
    found = failures(tmp_path / "b", lie=lying("second-draw", setter("looks", [])), **over)
    assert found == ["the second looks of round 1 do not follow from first-looks and seed"]


def test_a_first_look_that_is_left_out(tmp_path: Path) -> None:
    name = name_at(played(tmp_path / "honest"), 1)
    found = failures(tmp_path, lie=lying("first-looks", popper("looks", 2)))
    assert NOT_CALLED.format(name, 1, 2) in found
    assert f"{name} gave no verdict for look 1 of slot 2 in round 1" in found
    assert "slot 2 is accepted in round 1 though its drawn audit was not done" in found


def test_a_lost_verdict_is_missed(tmp_path: Path) -> None:
    over: Any = {"lost": {(0, 2)}}
    name = records(played(tmp_path / "honest", **over), "first-looks")[0]["looks"][2]["auditor"]
    found = failures(tmp_path, lie=lying("round-close", setter("missed", [])), **over)
    assert found == [f"{name} gave no verdict for look 1 of slot 2 in round 1"]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("change", [dropper, lambda r, _: [("first-looks", r, "coordinator")] * 2])
def test_first_looks_stand_once(tmp_path: Path, change: Any, lag: int) -> None:
    late: dict[str, Any] = {"kind": LateWriter, "lag": lag} if lag else {}
    found = failures(tmp_path, 2, lie=lying("first-looks", change), **late)
    assert "a record is out of order" in found[0]
    assert ("signed twice" in found[0]) is (change is not dropper)


def test_first_looks_are_signed_by_the_coordinator(tmp_path: Path) -> None:
    lie = lying("first-looks", lambda r, _: [("first-looks", r, "ann")])
    assert failures(tmp_path, lie=lie) == ["the first-looks is not signed by the coordinator"]


def test_what_was_removed_is_not_looked_at_again(tmp_path: Path) -> None:
    """A late turn's first-looks tell of what is still accepted only."""
    over: Any = {"kind": LateWriter, "lag": 1, "script": CHEAT}
    writer = played(tmp_path / "a", 3, **over)
    assert 2 not in [line["slot"] for line in records(writer, "first-looks")[1]["looks"]]
    assert check_run(writer.write()).failures == ()

    def more(record: Record, _: Writer) -> None:
        record["looks"].insert(2, {"auditor": "tom", "outcome": "pass", "slot": 2, "verdict": sha(b"none")})

    found = failures(tmp_path / "b", 3, lie=lying("first-looks", more, nth=1), **over)
    assert found == ["tom was not to look first at slot 2 in round 2"]


# --- further looks ---


def verdict_at(look: int, change: Any, slot: int = 2) -> Any:
    """A lie about the verdict of one look in the first turn."""

    def lie(kind: str, record: Record, writer: Writer) -> Any:
        if kind != "verdict" or (writer.turn, record["look"], record["slot"]) != (0, look, slot):
            return record
        answer = change(record, writer)
        return record if answer is None else answer

    return lie


def test_a_further_look_that_is_left_out(tmp_path: Path) -> None:
    """Who would have looked is named, and the slot is settled by what there is."""
    writer = played(tmp_path / "honest", **TORN)
    names = [name_at(writer, look) for look in (3, 4)]
    found = failures(tmp_path, lie=verdict_at(4, dropper), **TORN)
    assert f"{names[1]} gave no verdict for look 4 of slot 2 in round 1" in found
    found = failures(tmp_path, lie=verdict_at(3, dropper), **TORN)
    assert f"{names[0]} gave no verdict for look 3 of slot 2 in round 1" in found
    assert NOT_CALLED.format(names[1], 4, 2) in found
    assert "slot 2 is settled wrongly in round 1" in found


def test_nobody_missed_a_look_that_ended(tmp_path: Path) -> None:
    over: Any = {**TORN, "silent": {(0, 3, 2): 9}}
    missed = records(played(tmp_path / "honest", **over), "round-close")[0]["missed"]
    assert {line["look"] for line in missed} == {3}
    assert len(missed) > 2
    backwards = lying("round-close", lambda r, _: r["missed"].reverse())
    found = failures(tmp_path, lie=backwards, **over)
    assert found == ["those that missed a call in round 1 do not stand by slot, look and order"]
    found = failures(tmp_path, lie=lying("round-close", popper("missed")), **over)
    assert found == [f"{missed[-1]['auditor']} gave no verdict for look 3 of slot 2 in round 1"]
    name = missed[0]["auditor"]
    lie = lying("round-close", lambda r, _: r["missed"].append({**missed[0], "look": 4}))
    assert failures(tmp_path, lie=lie, **over) == [
        f"{name} is listed as missed for look 4 of slot 2 in round 1"
    ]


class Asking(Writer):
    """Has somebody give one verdict more on slot 2 before the close, or who it likes as candidates."""

    more: Any = staticmethod(lambda writer, order: None)

    def look_at_all(self, roster: Any, todo: Any, reveals: Any, drawn: Any, *rest: Any) -> Any:
        found = super().look_at_all(roster, todo, reveals, drawn, *rest)
        asked = type(self).more(self, drawn[2])
        if asked is not None:
            given = dict(self.given)
            self.log(self.ask(asked[0], 2, [asked[1]], todo, reveals, [], roster))
            self.given = given
        return found


def asking(more: Any) -> type[Writer]:
    return type("More", (Asking,), {"more": staticmethod(more)})


def operator(writer: Writer, name: str) -> str:
    return str(writer.info[name][2])


def unheard(writer: Writer, order: list[str]) -> str:
    heard = {operator(writer, r["auditor"]) for r in records(writer, "verdict") if r["slot"] == 2}
    return next(name for name in order if operator(writer, name) not in heard)


@pytest.mark.parametrize(
    ("over", "look"),
    [({}, 3), (TORN, 5), ({"script": CHEAT}, 3), ({"script": CHEAT, "appeals": {(0, 2)}}, 4)],
)  # fmt: skip
def test_no_look_more_than_are_due(tmp_path: Path, over: Any, look: int) -> None:
    names: list[str] = []

    def more(writer: Writer, order: list[str]) -> tuple[int, str]:
        names.append(unheard(writer, order))
        return look, names[-1]

    assert failures(tmp_path, kind=asking(more), **over) == [NOT_CALLED.format(names[0], look, 2)]


def test_a_further_look_by_the_same_operator(tmp_path: Path) -> None:
    """Yan and zoe are of one operator, which is heard once."""

    class Same(Writer):
        def candidates(self, slot: int, order: list[str], missed: list[Record]) -> list[str]:
            if slot != 2:
                return super().candidates(slot, order, missed)
            heard = [v["auditor"] for v in self.on(slot).values()]
            operators = {operator(self, name) for name in heard}
            again = [n for n in order if n not in heard and operator(self, n) in operators]
            return again or super().candidates(slot, order, missed)

    for seed in range(1, 30):
        writer = played(tmp_path / str(seed), kind=Same, run__seed=seed, **TORN)
        third = name_at(writer, 3)
        heard = {operator(writer, name_at(writer, look)) for look in (1, 2)}
        if operator(writer, third) in heard:
            found = [f.what for f in check_run(writer.write()).failures]
            assert found[0] == NOT_CALLED.format(third, 3, 2)
            return
    raise AssertionError("neither yan nor zoe looked")


def test_a_further_look_by_who_missed_one(tmp_path: Path) -> None:
    over: Any = {**TORN, "silent": {(0, 1, 2): 1}}

    class Again(Writer):
        def candidates(self, slot: int, order: list[str], missed: list[Record]) -> list[str]:
            return super().candidates(slot, order, [line for line in missed if line["slot"] != 2])

    found = failures(tmp_path, kind=Again, **over)
    assert any("was not to give a verdict for look" in what for what in found)
    assert failures(tmp_path / "honest", **over) == []


def test_looks_stand_in_order(tmp_path: Path) -> None:
    held: list[Any] = []

    def late(kind: str, record: Record, writer: Writer) -> Any:
        """Look 3 of slot 0 changes places with look 3 of slot 2."""
        if kind != "verdict" or record["look"] != 3 or writer.turn:
            return record
        held.append((kind, record, writer.signer(record["auditor"])))
        return [] if len(held) == 1 else held[::-1]

    found = failures(tmp_path, lie=late, sees={(0, 1, 0): "!", (0, 1, 2): "!"})
    assert found == ["the verdict of look 3 of slot 0 in round 1 does not stand by look and slot"]


@pytest.mark.parametrize("change", [
    (lambda r, _: r.update(outcome="fail"), "the outcome in the verdict of {} is wrong"),
    (lambda r, _: r.update(differs=["loss"]), "what differs is told wrongly in the verdict of {}"),
    (lambda r, _: [("verdict", r, "coordinator")], "the verdict of {} is not signed by"),
])  # fmt: skip
def test_a_further_verdict_is_as_sound_as_others(tmp_path: Path, change: Any) -> None:
    found = failures(tmp_path, lie=verdict_at(3, change[0]), **TORN)
    assert found[0].startswith(change[1].format("look 3 of slot 2 in round 1"))


# --- shapes ---


@pytest.mark.parametrize(
    ("kind", "path", "value", "fits"),
    [
        *(("verdict", "look", value, True) for value in (1, 3, MAX_ENTRY)),
        *(("verdict", "look", value, False) for value in (0, MAX_ENTRY + 1, None)),
        *(("round-close", "overruled.0.look", value, value == 7) for value in (0, 7, MAX_ENTRY + 1, "1")),
        ("round-close", "overruled", None, False),
        ("round-close", "overruled.0.more", 1, False),
        ("round-close", "overruled.0.evidence", None, True),
        ("round-close", "overruled.0.evidence", "blake3:" + "0" * 64, False),
        ("round-close", "overruled.0.auditor", "", False),
        ("round-close", "missed", [{"auditor": "a", "look": 5, "slot": 0}], True),
        ("round-close", "missed", [{"auditor": "a", "look": 0, "slot": 0}], False),
        ("first-looks", "looks", [], True),
        ("first-looks", "looks.0.outcome", "maybe", False),
        ("first-looks", "looks.0.verdict", "0" * 64, False),
        ("first-looks", "looks.0.slot", -1, False),
        ("first-looks", "looks.0.auditor", None, False),
        ("first-looks", "looks.0.look", 1, False),
        ("appeal", "verdicts", [], False),
        ("appeal", "verdicts.0", "0" * 64, False),
        ("appeal", "verdicts", [sha(b"1"), sha(b"2"), sha(b"3")], False),
        ("appeal", "verdicts", None, False),
        ("appeal", "key", "k", False),
        ("appeal", "more", 1, False),
    ],
)  # fmt: skip
def test_shapes(heard: Writer, kind: str, path: str, value: Any, fits: bool) -> None:
    record = copy.deepcopy(records(heard, kind)[0])
    setter(path, value)(record, heard)
    if fits:
        RECORDS[kind](record, kind)
        return
    with pytest.raises(FormatError, match="does not fit"):
        RECORDS[kind](record, kind)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return played(tmp_path_factory.mktemp("looks"), **LIARS)
