"""Chains and links of a witness, against section 13: golden bytes, who gets one, for which head."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path

import pytest

from tests.verification.witness_world import (
    FORK,
    LOG_KEY,
    ORIGIN,
    OTHER_KEY,
    PLACE,
    TEN,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    add,
    ask_chain,
    ask_link,
    link_request,
    make,
    note,
    post,
    sign_request,
    status,
)
from verification import witness as module
from verification.encoding import Json, canonical_json
from verification.notes import Checkpoint, sign_checkpoint, vkey
from verification.statements import sign_object, verify_object


def test_golden_chain(tmp_path: Path) -> None:
    witness = make(tmp_path)
    code, kind, body = ask_chain(witness, 5)
    assert (code, kind) == (200, "application/json")
    found = json.loads(body)
    assert canonical_json(found) == body
    assert set(found) == {"chain", "proof", "vkey"}
    file = (tmp_path / "logs" / PLACE / "chain").read_text()
    x = bytes.fromhex(file.split("\n")[1])
    for _ in range(5):
        x = hashlib.sha256(x).digest()
    assert found["chain"] == {"end": f"sha256:{x.hex()}", "length": 5}
    assert found["vkey"] == WITNESS_VKEY
    signed = {"end": found["chain"]["end"], "length": 5, "log_vkey": VKEY, "witness": WITNESS_VKEY}
    verify_object("barnraise/witness-chain/v1", signed, found["proof"], WITNESS_KEY.public)
    assert stat.S_IMODE((tmp_path / "logs" / PLACE / "chain").stat().st_mode) == 0o600
    assert ask_chain(witness, 5) == ask_chain(make(tmp_path), 5) == (code, kind, body)
    assert status(ask_chain(witness, 6)) == 409
    for length in (0, -1, module.MAX_LENGTH + 1):
        assert status(ask_chain(witness, length)) == 400


def test_links_lead_to_the_end_and_are_for_one_head(tmp_path: Path) -> None:
    witness = make(tmp_path)
    assert status(ask_link(witness, note(TEN, 4), 1)) == 404
    end = json.loads(ask_chain(witness, 8)[2])["chain"]["end"].removeprefix("sha256:")
    add(witness, TEN, 0, 4)
    code, kind, body = ask_link(witness, note(TEN, 4), 2)
    assert (code, kind) == (200, "application/json")
    found = json.loads(body)
    assert canonical_json(found) == body
    x = bytes.fromhex(found["link"])
    assert hashlib.sha256(hashlib.sha256(x).digest()).hexdigest() == end
    signed = {"link": found["link"], "log_vkey": VKEY, "number": 2, "root": TEN.root(4).hex(), "size": 4}
    verify_object(
        "barnraise/witness-link/v1", signed | {"witness": WITNESS_VKEY}, found["proof"], WITNESS_KEY.public
    )
    assert set(found) == {"link", "proof"}
    cosigned = witness.handle("GET", f"/{PLACE}/checkpoint", b"")[2].decode()
    again = make(tmp_path)
    assert ask_link(again, note(TEN, 4), 2) == ask_link(again, cosigned, 2) == (code, kind, body)
    for number in (1, 3):
        assert status(ask_link(again, note(TEN, 4), number)) == 409
    add(again, TEN, 4, 6)
    assert status(ask_link(again, note(TEN, 4), 2)) == 409
    assert status(ask_link(again, note(TEN, 6), 2)) == 409
    assert status(ask_link(again, note(TEN, 6), 1)) == 409
    later = json.loads(ask_link(again, note(TEN, 6), 5)[2])["link"]
    y = bytes.fromhex(later)
    for _ in range(3):
        y = hashlib.sha256(y).digest()
    assert y == x


def test_links_are_refused(tmp_path: Path) -> None:
    told: list[str] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(text))
    ask_chain(witness, 4)
    assert status(ask_link(witness, note(TEN, 4), 1)) == 409
    add(witness, TEN, 0, 6)
    assert status(ask_link(witness, note(TEN, 6, OTHER_KEY), 1)) == 403
    assert status(ask_link(witness, note(TEN, 6), 1, "example.org/shed")) == 404
    assert status(ask_link(witness, sign_checkpoint(Checkpoint("x", 6, TEN.root(6)), LOG_KEY), 1)) == 403
    assert status(ask_link(witness, note(TEN, 5), 1)) == 409
    assert status(ask_link(witness, note(TEN, 7), 1)) == 409
    assert not told
    assert status(ask_link(witness, note(FORK, 6), 1)) == 409
    assert len(told) == 1
    for number in (0, -1, 5):
        assert status(ask_link(witness, note(TEN, 6), number)) == 400
    assert not (tmp_path / "logs" / PLACE / "shown").exists()
    assert status(ask_link(witness, note(TEN, 6), 4)) == 200


def test_only_the_log_itself_gets_a_link(tmp_path: Path) -> None:
    """Heads are public: without the log's proof of this very request nothing is stored, shown or used up."""
    told: list[str] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(text))
    ask_chain(witness, 8)
    add(witness, TEN, 0, 6)
    good = link_request(note(TEN, 6), 8)
    asked = {"number": 8, "origin": ORIGIN, "root": TEN.root(6).hex(), "size": 6, "witness": WITNESS_VKEY}
    assert good["proof"] == sign_object("barnraise/witness-link-request/v1", asked, LOG_KEY)
    changes: list[dict[str, Json]] = [
        {"number": 7},
        {"origin": "x"},
        {"root": TEN.root(5).hex()},
        {"size": 5},
    ]
    others = [
        *(sign_request(asked | change) for change in [*changes, {"witness": "w2"}, {"more": 1}]),
        *("", "x", "AAAA", base64.b64encode(bytes(64)).decode(), note(TEN, 6).split()[-1]),
        sign_request(asked, OTHER_KEY),
        sign_request(asked, WITNESS_KEY),
        sign_object("barnraise/witness-link/v1", asked, LOG_KEY),
    ]
    before = sorted(tmp_path.rglob("*"))
    for proof in others:
        assert status(post(witness, "link", good | {"proof": proof})) == 403
        assert status(post(witness, "link", link_request(note(FORK, 6), 8) | {"proof": proof})) == 403
    bare = {key: value for key, value in good.items() if key != "proof"}
    assert status(post(witness, "link", bare)) == 403
    assert sorted(tmp_path.rglob("*")) == before
    assert not told
    assert status(ask_link(witness, note(TEN, 6), 1)) == 200
    assert status(post(witness, "link", good)) == 409


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("chain", {}),
        ("chain", []),
        ("chain", {"length": "8", "log_vkey": VKEY}),
        ("chain", {"length": True, "log_vkey": VKEY}),
        ("chain", {"length": 8, "log_vkey": "x"}),
        ("chain", {"length": 8, "log_vkey": WITNESS_VKEY}),
        ("chain", {"length": 8, "log_vkey": VKEY, "more": 1}),
        ("link", {"number": 1, "origin": ORIGIN}),
        ("link", {"checkpoint": "x", "number": 1, "origin": ORIGIN}),
        ("link", {"checkpoint": note(TEN), "number": "1", "origin": ORIGIN}),
        ("link", {"checkpoint": note(TEN), "number": 1, "origin": 1}),
        ("link", {"checkpoint": note(TEN), "number": 1, "origin": ORIGIN, "proof": 1}),
        ("link", link_request(note(TEN), 1) | {"more": 1}),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, what: str, value: object) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    assert status(post(witness, what, value)) == 400


def test_objects_are_canonical(tmp_path: Path) -> None:
    body = b'{"length": 8, "log_vkey": "%s"}' % VKEY.encode()
    assert status(make(tmp_path).handle("POST", "/barnraise/v1/chain", body)) == 400


def test_a_witness_of_certain_logs_takes_them_all_and_one_of_any_log_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOGS", 1)
    shed = vkey("example.org/shed", OTHER_KEY.public)
    both = make(tmp_path / "certain", logs=(VKEY, shed))
    assert [status(ask_chain(both, 8, log)) for log in (VKEY, shed)] == [200, 200]
    either = make(tmp_path / "any", logs=None)
    assert [status(ask_chain(either, 8, log)) for log in (VKEY, shed, VKEY)] == [200, 503, 200]


def test_a_witness_that_forgot_the_key_of_a_log_does_not_know_it(tmp_path: Path) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    add(witness, TEN, 0)
    (tmp_path / "logs" / PLACE / "vkey").unlink()
    forgetful = make(tmp_path, logs=())
    assert forgetful.newest(ORIGIN) is None
    assert status(forgetful.handle("GET", f"/{PLACE}/checkpoint", b"")) == 404
    assert status(ask_link(forgetful, note(TEN), 1)) == 404
