"""Runs with witnesses: who is asked for what, what a silent one brings about, receipts, kills at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder, member_folder
from pipeline.ledger import Ledger
from pipeline.run import create_run
from pipeline.witnessing import Enlisted
from tests.pipeline.crash_tools import (
    Site,
    killed_at,
    records,
    scratch,
    signed_twice,
    small_config,
)
from tests.tiny import WITNESSES, TinyWitnesses, make_run, quiet, run_to_end, tiny_config
from verification.errors import (
    BarnraiseError,
    FormatError,
    ProtocolError,
    SignatureError,
    StorageError,
    UsageError,
)
from verification.keys import PrivateKey
from verification.notes import parse_cosigned, parse_vkey, witness_vkey
from verification.policy import load_policy
from verification.records import Draw, Record, RoundClose, RoundOpen, SecondDraw, Verdict
from verification.rounds import replay
from verification.statements import verify_object
from verification.tlog_proof import check_receipt, check_receipt_by_policy, parse_proof, write_receipt

ONE, TWO, THREE = WITNESSES
NEVER = {"rate_ppm": 0, "probation_rounds": 0, "second_look_ppm": 0}


@dataclass
class Played:
    """A run that was started with three witnesses."""

    root: Path
    witnesses: TinyWitnesses

    def go(self, tell: Callable[[str], None] = quiet, **more: Any) -> Coordinator:
        return run_to_end(self.root / "run", self.root / "home", tell=tell, witnesses=self.witnesses, **more)

    def records(self) -> list[Record]:
        return records(Site(self.root))

    def receipts(self) -> dict[str, list[Path]]:
        manifest = RunFolder(self.root / "run").parsed_manifest()
        private = self.root / "home" / member_folder(manifest)
        found: dict[str, list[Path]] = {}
        for path in sorted(private.rglob("*.tlog-proof")):
            found.setdefault(path.parents[1].name, []).append(path)
        return found


def start(root: Path, **sections: Any) -> Played:
    witnesses = TinyWitnesses(root / "witnesses")
    make_run(root / "run", root / "home", tiny_config(**sections), witnesses=witnesses)
    return Played(root, witnesses)


def of(kind: type[Any], found: list[Record]) -> list[Any]:
    return [record for record in found if isinstance(record, kind)]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A run to its end with everybody there, and audits left to lot at a rate of nothing."""
    run = start(tmp_path_factory.mktemp("witnessed"), audit=NEVER)
    run.go()
    return run


# Everybody there


def test_every_draw_carries_all_cosignatures_and_links_and_nobody_is_drawn_for_it(honest: Played) -> None:
    found = honest.records()
    manifest: Any = found[0]
    assert manifest.witnessing.required == 2
    assert [record.witnesses for record in of(RoundOpen, found)] == [WITNESSES] * 3
    draws = [*of(Draw, found), *of(SecondDraw, found)]
    assert len(draws) == 6
    for draw in draws:
        cosigned = parse_cosigned(draw.head, manifest.log_vkey, manifest.witness_vkeys)
        assert cosigned.names == WITNESSES
        assert all(item.link and item.proof for item in draw.links)
    assert [draw.drawn for draw in of(Draw, found)] == [()] * 3
    assert len({item.link for draw in draws for item in draw.links}) == 18
    assert replay(manifest, found[1:]).finished


def test_no_link_is_asked_for_before_its_head_is_cosigned(honest: Played) -> None:
    asked = [what for _, what in honest.witnesses.asked]
    names = {"chain": "c", "checkpoint": "p", "add-checkpoint": "a", "link": "l"}
    text = "".join(names[what] for what in asked)
    turn = "ppp" + "aaalll" * 2 + "ppp" + "aaa"  # who is there; both draws; who is there; the close
    assert text == "ccc" + turn * 3 + "pppaaa"


def test_the_folder_ends_with_a_cosigned_head_over_everything(honest: Played) -> None:
    manifest = RunFolder(honest.root / "run").parsed_manifest()
    text = (honest.root / "run" / "log" / "checkpoint").read_text()
    cosigned = parse_cosigned(text, manifest.log_vkey, manifest.witness_vkeys)
    assert cosigned.names == WITNESSES
    assert cosigned.checkpoint.size == len(honest.records())


def test_everybody_has_a_receipt_of_every_turn_that_holds(honest: Played) -> None:
    manifest: Any = honest.records()[0]
    closes = of(RoundClose, honest.records())
    receipts = honest.receipts()
    assert {name: [p.name for p in paths] for name, paths in receipts.items()} == {
        f"c{i:02d}": [f"r{n:05d}-a0.tlog-proof" for n in (1, 2, 3)] for i in range(4)
    }
    for name, paths in receipts.items():
        for path, close in zip(paths, closes, strict=True):
            found = check_receipt(path.read_text(), manifest.log_vkey, manifest.witness_vkeys, 2)
            assert (found.member, found.round, found.accepted) == (name, close.round, True)
            assert found.earned == next(c.earned for c in close.credits if c.member == name)


def test_weights_depend_on_no_witness(honest: Played, tmp_path: Path) -> None:
    make_run(tmp_path / "run", tmp_path / "home", tiny_config(audit=NEVER))
    alone = run_to_end(tmp_path / "run", tmp_path / "home")
    assert of(RoundClose, honest.records())[-1].weights == alone.state.base.weights
    assert set(Played(tmp_path, honest.witnesses).receipts()) == {"c00", "c01", "c02", "c03"}


def test_the_ledger_signs_link_requests_as_the_log(honest: Played) -> None:
    folder = RunFolder(honest.root / "run")
    manifest = folder.parsed_manifest()
    secrets = honest.root / "home" / member_folder(manifest) / "coordinator"
    key = PrivateKey.load(secrets / "key")
    ledger = Ledger.open(folder.log, key, folder.manifest(), secrets / "journal")
    request = {"number": 1, "origin": manifest.origin}
    proof = ledger.sign_link_request(request)
    _, log_key = parse_vkey(manifest.log_vkey)
    verify_object("barnraise/witness-link-request/v1", request, proof, log_key)
    with pytest.raises(SignatureError):
        verify_object("barnraise/witness-link/v1", request, proof, log_key)


# Somebody missing


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


class CutError(Exception):
    """Stands for a kill."""


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


def test_a_policy_in_another_order_or_with_other_witnesses_will_do_for_a_resume(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 2})
    stranger = TinyWitnesses(tmp_path / "strangers")  # of the same names, with other keys
    one, two, three = run.witnesses.enlisted.witnesses
    run.witnesses.enlisted = Enlisted(2, (three, two, one))

    def seen(close: RoundClose) -> None:
        del close
        raise CutError

    with pytest.raises(CutError):
        run.go(seen=seen)
    run.witnesses.enlisted = Enlisted(2, (three, stranger.enlisted.witnesses[1], one))
    notices: list[str] = []
    run.go(notices.append)
    assert [open_.witnesses for open_ in of(RoundOpen, run.records())] == [WITNESSES, (ONE, THREE)]
    assert stranger.asked == []
    assert sum(line.startswith(f"{TWO}: the policy does not say where") for line in notices) == 1
    assert sum("no witness of this run" in line for line in notices) == 1


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


# Receipts, as a member sees them


def test_a_member_takes_only_its_own_receipt_of_that_turn_and_keeps_the_first(
    honest: Played, tmp_path: Path
) -> None:
    from pipeline.contributor import Contributor
    from pipeline.member import Place

    manifest = RunFolder(honest.root / "run").parsed_manifest()
    data = (honest.root / "run" / "manifest.json").read_bytes()
    member = Contributor("c00", "op-c00", data, Place(tmp_path / "c00", honest.root / "run" / "data"))
    mine, later = (path.read_text() for path in honest.receipts()["c00"][:2])
    other = honest.receipts()["c01"][0].read_text()
    kept = tmp_path / "c00" / "receipts" / "r00001-a0.tlog-proof"
    for bad, match in (
        (other, "somebody else"),
        (mine.split("— w.example/two")[0], "too few"),
        (mine[:-40], None),
        (mine.replace("index ", "index 1"), None),
        ("", None),
    ):
        with pytest.raises(BarnraiseError, match=match):
            member.take_receipt(0, bad)
    assert not kept.exists()
    member.take_receipt(0, mine)
    assert kept.read_text() == mine
    assert kept.stat().st_mode & 0o077 == 0
    policy = load_policy(kept.with_name("policy.txt"))
    assert check_receipt_by_policy(kept.read_bytes(), policy).member == "c00"
    fewer = mine.replace(mine[mine.index("— w.example/three") :], "")
    member.take_receipt(0, fewer)
    assert kept.read_text() == mine
    member.take_receipt(1, later)
    assert manifest.run_id == member.run
    proof = parse_proof(mine)
    entry = b"another close"
    forged = write_receipt(entry, "c00", proof.index, proof.hashes, proof.note)
    with pytest.raises(ProtocolError, match="two different closes"):
        member.vault.put_receipt(1, 0, forged)
    assert kept.read_text() == mine


def test_a_receipt_of_another_turn_than_it_is_said_to_be_is_not_taken(honest: Played, tmp_path: Path) -> None:
    from pipeline.contributor import Contributor
    from pipeline.member import Place
    from pipeline.vault import Committed
    from verification.envelope import open_envelope
    from verification.log import Log

    manifest = RunFolder(honest.root / "run").parsed_manifest()
    log = Log.open(
        honest.root / "run" / "log", manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys
    )
    opens = [e for e in log.entries() if open_envelope(e).predicate_type == "barnraise:round-open:v1"]
    data = (honest.root / "run" / "manifest.json").read_bytes()
    member = Contributor("c00", "op-c00", data, Place(tmp_path / "c00", honest.root / "run" / "data"))
    member.vault.commit(1, Committed(opens[1], b"", b"", "", ""))
    first, second, _ = (path.read_text() for path in honest.receipts()["c00"])
    with pytest.raises(ProtocolError, match="another turn"):
        member.take_receipt(1, first)
    member.take_receipt(1, second)
    found = {path.name for path in (tmp_path / "c00" / "receipts").iterdir()}
    assert found == {"policy.txt", "r00002-a0.tlog-proof"}


# Policies


def policy(count: int, quorum: str, url: str = " http://localhost:1") -> bytes:
    keys = [PrivateKey.generate().public for _ in range(count)]
    lines = [f"witness w{i} {witness_vkey(f'w.example/{i}', key)}{url}" for i, key in enumerate(keys)]
    names = " ".join(f"w{i}" for i in range(count))
    return "\n".join([*lines, f"group all-of-them {quorum} {names}", "quorum all-of-them", ""]).encode()


def test_witnesses_of_a_policy_are_kept_for_a_resume(tmp_path: Path) -> None:
    text = policy(3, "2")
    enlisted = Enlisted.by_policy(text)
    assert (enlisted.required, len(enlisted.witnesses)) == (2, 3)
    assert Enlisted.kept(tmp_path) is None
    enlisted.keep(tmp_path)
    again = Enlisted.kept(tmp_path)
    assert again
    assert [vkey for vkey, _ in again.witnesses] == [vkey for vkey, _ in enlisted.witnesses]
    assert (tmp_path / "witness-policy").read_bytes() == text


@pytest.mark.parametrize(
    "text",
    [
        policy(2, "all", ""),
        policy(17, "9"),
        policy(2, "1"),
        policy(4, "2"),
        policy(3, "any"),
        b"quorum none\n",
        policy(1, "1").replace(b"quorum a", b"quorum b"),
    ],
)
def test_a_policy_that_no_run_can_use_is_refused(text: bytes) -> None:
    with pytest.raises((UsageError, FormatError)):
        Enlisted.by_policy(text)


def test_a_policy_asks_for_more_than_half_and_says_why() -> None:
    for count, enough in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (16, 9)):
        assert Enlisted.by_policy(policy(count, str(enough))).required == enough
        if enough > 1:
            with pytest.raises(UsageError, match=f"at least {enough} of {count}.*another history"):
                Enlisted.by_policy(policy(count, str(enough - 1)))


def test_a_run_whose_fullest_draw_fits_no_entry_is_not_made(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        del method, body
        asked.append(path)
        raise StorageError("away")

    keys = [PrivateKey.generate().public for _ in range(16)]
    ways = [(witness_vkey(f"{i:x}" * 128, key), ask) for i, key in enumerate(keys)]
    config = tiny_config(train={"steps": [1] * 57}, audit={"auditors": 115})
    for count, error in ((16, UsageError), (1, ProtocolError)):  # one witness fits, and is asked
        with pytest.raises(error, match="does not fit a log entry" if count > 1 else "chain"):
            create_run(
                config,
                RunFolder(tmp_path / "run"),
                tmp_path / "home",
                quiet,
                None,
                Enlisted(count, tuple(ways[:count])),
            )
        assert len(asked) == (0 if count > 1 else 1)
        assert not (tmp_path / "run").exists()


# Kills


@dataclass(frozen=True)
class Watched(Site):
    """A site with its witnesses, which are killed with it."""

    def make(self) -> None:
        witnesses = TinyWitnesses(self.root / "w")
        folder = RunFolder(self.folder)
        create_run(small_config(), folder, self.home, quiet, None, witnesses.enlisted)

    def finish(self) -> str:
        witnesses = TinyWitnesses(self.root / "w")
        return run_to_end(self.folder, self.home, witnesses=witnesses).state.base.weights


def survives(steps: Callable[[list[str]], list[int]]) -> int:
    """Kill at chosen steps of a run with witnesses; what is left goes on to the same weights each time."""
    with scratch() as root:
        made = Watched(root / "made")
        made.make()
        clean = Watched(made.copy(root / "clean").root)
        names = killed_at(clean, None, clean.finish)
        assert names
        weights = of(RoundClose, records(clean))[-1].weights
        chosen = steps(names)
        for step in chosen:
            site = Watched(made.copy(root / f"at-{step}").root)
            assert killed_at(site, step, site.finish) is None, names[step]
            assert killed_at(site, None, site.finish)
            found = records(site)
            assert of(RoundClose, found)[-1].weights == weights, names[step]
            assert replay(found[0], found[1:]).finished  # type: ignore[arg-type]
            assert signed_twice(site) == [], names[step]
            assert not list((site.root / "w").rglob("forks")), names[step]
        return len(chosen)


def test_a_kill_around_a_cosigned_draw_changes_nothing() -> None:
    def steps(names: list[str]) -> list[int]:
        own = [i for i, name in enumerate(names) if name.startswith("replace /w/")]
        assert len(own) >= 15
        return [own[i] for i in (3, 5, 8)]

    assert survives(steps) == 3


@pytest.mark.slow
def test_a_kill_at_any_step_of_witnesses_log_journal_and_receipts_changes_nothing() -> None:
    def steps(names: list[str]) -> list[int]:
        places = ("/w/", "/run/log/.checkpoint", "/journal", "/receipts")
        return [i for i, name in enumerate(names) if any(place in name for place in places)][::5]

    assert survives(steps) > 20
