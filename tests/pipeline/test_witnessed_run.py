"""Runs with witnesses that are all there: who is asked for what, what the folder ends with, receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.folder import RunFolder, member_folder
from pipeline.ledger import Ledger
from tests.pipeline.witnessed import NEVER, Played, of
from tests.tiny import WITNESSES, make_run, run_to_end, tiny_config
from verification.errors import BarnraiseError, ProtocolError, SignatureError
from verification.keys import PrivateKey
from verification.notes import parse_cosigned, parse_vkey
from verification.policy import load_policy
from verification.records import Draw, RoundClose, RoundOpen, SecondDraw
from verification.rounds import replay
from verification.statements import verify_object
from verification.tlog_proof import check_receipt, check_receipt_by_policy, parse_proof, write_receipt


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
