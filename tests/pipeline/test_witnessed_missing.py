"""Runs whose witnesses die, keep links back or lie: what that costs, and how the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger import Ledger
from tests.pipeline.witnessed import NEVER, ONE, THREE, TWO, CutError, Played, of, start
from tests.tiny import WITNESSES, TinyWitnesses, make_run
from verification.errors import ProtocolError, StorageError
from verification.notes import parse_cosigned
from verification.records import Draw, RoundClose, RoundOpen, SecondDraw, Verdict
from verification.rounds import replay


def test_one_that_dies_in_a_turn_brings_audits_for_all_and_is_left_out_of_the_next(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER)
    links = iter(range(1, 99))

    def before(name: str, what: str) -> None:
        if (name, what) == (THREE, "link") and next(links) == 3:  # the draw of the second turn
            run.witnesses.dead.add(THREE)

    run.witnesses.before = before
    notices: list[str] = []
    run.go(notices.append)
    found = run.records()
    assert [len(draw.drawn) for draw in of(Draw, found)] == [0, 4, 0]
    assert [len(draw.looks) for draw in of(SecondDraw, found)] == [0, 4, 0]
    assert len(of(Verdict, found)) == 8
    second = of(Draw, found)[1]
    assert [item.link is None for item in second.links] == [False, False, True]
    assert [open_.witnesses for open_ in of(RoundOpen, found)] == [WITNESSES, WITNESSES, (ONE, TWO)]
    assert any(THREE in line and "all is audited" in line for line in notices)
    assert all(len(paths) == 3 for paths in run.receipts().values())
    assert replay(found[0], found[1:]).finished  # type: ignore[arg-type]


def lose(run: Played, what: str, count: int) -> None:
    """Two witnesses die before the `count`-th request of a kind to the first of them."""
    seen = iter(range(1, 99))

    def before(name: str, asked: str) -> None:
        if (name, asked) == (TWO, what) and next(seen) == count:
            run.witnesses.dead |= {TWO, THREE}

    run.witnesses.before = before


@pytest.mark.parametrize(
    ("what", "count", "complaint"),
    [("checkpoint", 3, "answer"), ("add-checkpoint", 4, "cosigned"), ("add-checkpoint", 5, "cosigned")],
)
def test_too_few_stop_the_run_with_their_names_and_it_goes_on_from_there(
    honest: Played, tmp_path: Path, what: str, count: int, complaint: str
) -> None:
    run = start(tmp_path, audit=NEVER)
    lose(run, what, count)
    with pytest.raises(ProtocolError, match=f"too few witnesses {complaint}.*two, .*three did not") as error:
        run.go()
    assert "resume" in str(error.value)
    before = run.records()
    for _ in range(2):  # nothing happens as long as they are away
        with pytest.raises(ProtocolError, match="too few"):
            run.go()
    assert run.records() == before
    run.witnesses.before, run.witnesses.dead = (lambda name, asked: None), set()
    run.go()
    after = run.records()
    assert after[: len(before)] == before
    assert of(RoundClose, after)[-1].weights == of(RoundClose, honest.records())[-1].weights
    assert [len(draw.drawn) for draw in of(Draw, after)] == [0, 0, 0]
    assert not list((tmp_path / "witnesses").rglob("forks"))


def test_who_is_back_cosigns_for_one_that_was_named_and_died(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 2})
    run.witnesses.dead = {TWO}

    def before(name: str, what: str) -> None:
        if (name, what) == (THREE, "add-checkpoint"):
            run.witnesses.dead.add(THREE)

    run.witnesses.before = before
    with pytest.raises(ProtocolError, match="too few witnesses cosigned"):
        run.go()
    run.witnesses.dead = {THREE}
    run.go()
    found = run.records()
    assert [open_.witnesses for open_ in of(RoundOpen, found)] == [(ONE, THREE), (ONE, TWO)]
    manifest: Any = found[0]
    for draw in (of(Draw, found)[0], of(SecondDraw, found)[0]):
        cosigned = parse_cosigned(draw.head, manifest.log_vkey, manifest.witness_vkeys)
        assert cosigned.names == (ONE, TWO)
        assert [(item.witness, item.link is None) for item in draw.links] == [(ONE, False), (THREE, True)]
    assert [len(draw.drawn) for draw in of(Draw, found)] == [4, 0]
    assert [len(draw.looks) for draw in of(SecondDraw, found)] == [4, 0]
    assert replay(manifest, found[1:]).finished


@pytest.mark.parametrize("bad", [{THREE}, {TWO, THREE}])
def test_who_keeps_links_back_is_left_out_of_every_other_turn_where_others_are_enough(
    tmp_path: Path, bad: set[str]
) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 4})

    def before(name: str, what: str) -> None:
        if what == "link" and name in bad:
            raise StorageError("it keeps its link back")

    def seen(close: RoundClose) -> None:
        if close.round == 1:
            raise CutError

    run.witnesses.before = before
    with pytest.raises(CutError):
        run.go(seen=seen)
    run.go()
    found = run.records()
    named, drawn = ([WITNESSES, (ONE, TWO)], [4, 0]) if bad == {THREE} else ([WITNESSES] * 2, [4, 4])
    assert [open_.witnesses for open_ in of(RoundOpen, found)] == named * 2
    assert [len(draw.drawn) for draw in of(Draw, found)] == drawn * 2


def test_who_keeps_links_back_is_left_out_ever_longer(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 7})

    def before(name: str, what: str) -> None:
        if what == "link" and name == THREE:
            raise StorageError("it keeps its link back")

    run.witnesses.before = before
    run.go()
    opens = of(RoundOpen, run.records())
    assert [THREE in open_.witnesses for open_ in opens] == [True, False, True, False, False, True, False]


def test_a_draw_cut_off_after_its_links_were_shown_gets_the_same_links_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, audit=NEVER)
    shown: list[tuple[str, str]] = []
    append = Ledger.append

    def cut(self: Ledger, entries: Any) -> None:
        for record, _ in entries:
            if isinstance(record, Draw):
                shown.extend((item.witness, item.link or "") for item in record.links)
                raise CutError
        append(self, entries)

    monkeypatch.setattr(Ledger, "append", cut)
    with pytest.raises(CutError):
        run.go()
    monkeypatch.setattr(Ledger, "append", append)
    run.go()
    first = of(Draw, run.records())[0]
    assert [(item.witness, item.link) for item in first.links] == shown
    assert len(shown) == 3


def test_the_last_head_and_its_receipts_come_later_when_witnesses_do(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 1})
    lose(run, "add-checkpoint", 3)  # after both draws: the close
    notices: list[str] = []
    coordinator = run.go(notices.append)
    assert coordinator.state.finished
    assert any("too few witnesses cosigned the head" in line for line in notices)
    assert sum("receipt not taken" in line for line in notices) == 4
    assert run.receipts() == {}
    run.witnesses.before, run.witnesses.dead = (lambda name, asked: None), set()
    run.go()
    assert {name: len(paths) for name, paths in run.receipts().items()} == {f"c{i:02d}": 1 for i in range(4)}
    text = (tmp_path / "run" / "log" / "checkpoint").read_text()
    assert text.count("— w.example/") == 3


def test_a_witness_that_gives_no_chain_stops_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    witnesses = TinyWitnesses(tmp_path / "witnesses")
    witnesses.dead = {TWO}
    with pytest.raises(ProtocolError, match="chain"):
        make_run(tmp_path / "run", tmp_path / "home", witnesses=witnesses)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "home").exists()
    witnesses.dead = set()  # to those that did answer, the next start under that name is another log
    make_run(tmp_path / "run", tmp_path / "home", witnesses=witnesses)
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_lying_witness_costs_its_link_and_nothing_else(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 1})
    stranger = TinyWitnesses(tmp_path / "strangers")
    own = dict(run.witnesses.witnesses)

    def before(name: str, what: str) -> None:
        # A witness whose chain is another than the manifest's, though it has the same key.
        if what == "link":
            run.witnesses.witnesses[THREE] = stranger.witnesses[THREE]
        else:
            run.witnesses.witnesses[THREE] = own[THREE]

    run.witnesses.before = before
    run.go()
    (draw,) = of(Draw, run.records())
    assert [item.link is None for item in draw.links] == [False, False, True]
    assert len(draw.drawn) == 4
