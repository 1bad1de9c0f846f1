"""Rows of turns in, alerts out."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts import DIVERGED_NATS, MEDIAN_FROM, STALLED_TURNS, Alert, Watch


def row(round_: int = 1, **fields: Any) -> dict[str, Any]:
    usual = {
        "loss": 3.0,
        "val_loss": None,
        "seconds": 10.0,
        "accepted": ["c0"],
        "rejected": [],
        "removed": [],
        "overruled": [],
        "quarantined": [],
    }
    return {"round": round_, **usual, **fields}


def seen(rows: list[dict[str, Any]], earlier: list[dict[str, Any]] | None = None) -> list[list[Alert]]:
    watch = Watch(earlier or [])
    return [watch.see(item) for item in rows]


def kinds(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[alert.kind for alert in found] for found in seen(rows)]


def rejected(who: str, reason: str) -> list[dict[str, Any]]:
    return [{"contributor": who, "reason": reason}]


def test_a_turn_in_which_nothing_happened_tells_nothing() -> None:
    assert kinds([row(i) for i in range(1, 40)]) == [[]] * 39
    assert kinds([{}]) == [[]]


def test_a_fault_is_told_once_and_lateness_is_none() -> None:
    rows = [
        row(1, rejected=rejected("c1", "late")),
        row(2, rejected=rejected("c2", "failed-audit"), quarantined=["c2"]),
        row(3, rejected=rejected("c3", "unserved")),
        row(4, rejected=rejected("c3", "unserved"), quarantined=["c2", "c3"]),
        row(5, quarantined=["c2", "c3"]),
        row(6, quarantined=["a0", "c2", "c3"]),
    ]
    assert seen(rows) == [
        [],
        [Alert("fault", "round 2: c2 rejected, failed-audit; it is in quarantine")],
        [],
        [Alert("fault", "round 4: c3 rejected, unserved; it is in quarantine")],
        [],
        [Alert("fault", "round 6: a0 is in quarantine")],
    ]


def test_work_taken_out_and_overruled_auditors_are_told_with_their_rounds() -> None:
    removed = [
        {"contributor": "c1", "round": 7, "reason": "failed-audit"},
        {"contributor": "c1", "round": 8, "reason": "follows"},
    ]
    (found,) = seen(
        [
            row(
                9,
                removed=removed,
                overruled=[{"auditor": "a1", "round": 7}],
                quarantined=["a1", "c1"],
            )
        ]
    )
    assert found == [
        Alert("cut", "round 9: work was taken out again: c1 (round 7, failed-audit), c1 (round 8, follows)"),
        Alert("overruled", "round 9: a1 overruled by other auditors on work of round 7"),
    ]


def test_void_turns_are_told_at_the_first_and_when_they_do_not_end() -> None:
    void = [row(3, accepted=[], loss=None)] * (STALLED_TURNS + 2)
    expected = [["void"], *[[]] * (STALLED_TURNS - 2), ["stall"], [], []]
    assert kinds([*void, row(3), *void]) == [*expected, [], *expected]


def test_a_slow_turn_is_told_with_its_phase_once() -> None:
    usual = [row(i) for i in range(MEDIAN_FROM)]
    slow = row(50, seconds=60.0, phases={"open": 1.0, "audit": 50.0, "commit": 9.0})
    assert kinds([*usual[1:], slow])[-1] == []
    found = seen([*usual, slow, slow, row(52), slow])[MEDIAN_FROM:]
    told = [Alert("slow", "round 50 took 60 s; 10 s is usual, most of it in its audit phase")]
    assert found == [told, [], [], told]
    tenths = [row(i, seconds=0.1) for i in range(MEDIAN_FROM)]
    assert kinds([*tenths, row(9, seconds=2.0)])[-1] == []


def test_divergence_is_told_of_either_loss_and_again_after_it_ended() -> None:
    high = 2.0 + DIVERGED_NATS + 0.001
    losses = [3.0, 2.0, high, high, 2.9, high, math.inf]
    found = [[alert.text for alert in told] for told in seen([row(i, loss=x) for i, x in enumerate(losses)])]
    text = "the training loss is 3.001 nats; the best was 2.000"
    assert found == [[], [], [f"round 2: {text}"], [], [], [f"round 5: {text}"], []]
    for bad in (math.nan, math.inf):
        assert kinds([row(loss=bad)]) == [["diverged"]]
        assert kinds([row(val_loss=bad, loss=None)]) == [["diverged"]]
    assert kinds([row(loss=2.0, val_loss=4.0), row(loss=2.5, val_loss=4.5)]) == [[], []]


def test_a_machine_that_is_gone_is_told_once_with_who_was_on_it() -> None:
    here = {"n1": {"alive": True, "members": ["c0"]}, "n2": {"alive": True, "members": []}}
    gone = {**here, "n1": {"alive": False, "members": ["c0", "c1"]}}
    rows = [
        row(1, nodes=here),
        row(2, nodes=gone),
        row(3, nodes=gone),
        row(4, nodes=here),
        row(5, nodes=gone),
    ]
    told = "n1 is gone, and with it c0, c1"
    assert [[a.text for a in found] for found in seen(rows)] == [
        [],
        [f"round 2: {told}"],
        [],
        [],
        [f"round 5: {told}"],
    ]


NAMES = st.sampled_from(["c0", "c1", "a0"])
LOSSES = st.none() | st.floats(0, 9) | st.sampled_from([math.inf, math.nan])
ROWS = st.builds(
    row,
    st.integers(1, 9),
    loss=LOSSES,
    val_loss=LOSSES,
    seconds=st.floats(0, 100),
    accepted=st.lists(NAMES, max_size=2),
    rejected=st.lists(
        st.fixed_dictionaries(
            {"contributor": NAMES, "reason": st.sampled_from(["late", "failed-audit", "unserved"])}
        ),
        max_size=2,
    ),
    removed=st.lists(
        st.fixed_dictionaries({"contributor": NAMES, "round": st.just(1), "reason": st.just("follows")}),
        max_size=2,
    ),
    overruled=st.lists(st.fixed_dictionaries({"auditor": NAMES, "round": st.just(1)}), max_size=1),
    quarantined=st.lists(NAMES, unique=True),
    nodes=st.dictionaries(NAMES, st.fixed_dictionaries({"alive": st.booleans()})),
)


@given(st.lists(ROWS, max_size=30), st.integers(0, 30))
def test_a_restart_tells_the_rest_and_nothing_again(rows: list[dict[str, Any]], at: int) -> None:
    whole = seen(rows)
    assert seen(rows[at:], earlier=rows[:at]) == whole[at:]
    assert all(
        alert.text.startswith("round ") and "\n" not in alert.text for found in whole for alert in found
    )


def test_what_only_looks_like_a_row_is_passed_over() -> None:
    strange = [{"seconds": "long"}, {"rejected": [1]}, {"nodes": [2]}, {"quarantined": 5}, {"loss": "low"}]
    assert seen([row(4, loss=9.0)], earlier=[row(1), *strange]) == seen([row(4, loss=9.0)], earlier=[row(1)])
