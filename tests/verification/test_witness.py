"""A witness against C2SP tlog-witness and section 13: every status, what is durable, chains and links."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.log_model import Crash, failing, full_disk
from tests.verification.witness_world import (
    LOG_KEY,
    NAME,
    ORIGIN,
    OTHER_KEY,
    PLACE,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    Clock,
    add,
    add_body,
    ask_chain,
    ask_link,
    grown,
    head,
    link_request,
    make,
    note,
    post,
    sign_request,
)
from verification import witness as module
from verification.encoding import Json, canonical_json
from verification.errors import FormatError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.merkle import EMPTY_ROOT, Tree
from verification.notes import Checkpoint, cosign, open_note, parse_cosigned, sign_checkpoint, vkey
from verification.statements import sign_object, verify_object
from verification.witness import MAX_REQUEST_BYTES, Witness
from verification.witness_store import MAX_FORKS, WitnessStore

TEN = grown(10)
FORK = grown(10, branch=1, fork=4)


def status(answer: tuple[int, str, bytes]) -> int:
    return answer[0]


# add-checkpoint


def test_growth_is_cosigned(tmp_path: Path) -> None:
    clock = Clock()
    witness = make(tmp_path, clock)
    assert witness.vkey == WITNESS_VKEY
    for old, size in ((0, 3), (3, 3), (3, 8), (8, 10)):
        clock.now += 1
        code, kind, line = add(witness, TEN, old, size)
        assert (code, kind) == (200, "text/plain; charset=utf-8")
        assert line.decode() == cosign(head(TEN, size), NAME, WITNESS_KEY, clock.now)
        found = witness.handle("GET", f"/{PLACE}/checkpoint", b"")
        assert found == (200, "text/plain; charset=utf-8", note(TEN, size).encode() + line)
        assert parse_cosigned(found[2].decode(), VKEY, [WITNESS_VKEY]).times == (clock.now,)
        again = make(tmp_path, clock)
        assert again.handle("GET", f"/{PLACE}/checkpoint", b"") == found


def test_the_empty_tree(tmp_path: Path) -> None:
    witness = make(tmp_path)
    wrong = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)), LOG_KEY)
    assert status(witness.handle("POST", "/add-checkpoint", add_body(0, (), wrong))) == 422
    assert status(add(witness, grown(0), 0)) == 200
    assert status(witness.handle("POST", "/add-checkpoint", add_body(0, (), wrong))) == 422
    assert len(WitnessStore(tmp_path).forks()) == 1
    assert status(add(witness, TEN, 0)) == 200


def test_a_wrong_old_size_is_told_the_right_one(tmp_path: Path) -> None:
    witness = make(tmp_path)
    assert add(witness, TEN, 3) == (409, "text/x.tlog.size", b"0\n")
    assert status(add(witness, TEN, 0, 5)) == 200
    for old in (0, 3, 4, 6, 10):
        assert add(witness, TEN, old) == (409, "text/x.tlog.size", b"5\n")
    assert add(witness, TEN, 3, 4) == (409, "text/x.tlog.size", b"5\n")
    assert add(witness, TEN, 0, 0) == (409, "text/x.tlog.size", b"5\n")
    assert status(add(witness, TEN, 7, 6)) == 400
    assert status(add(witness, TEN, 5)) == 200


def test_who_signed(tmp_path: Path) -> None:
    witness = make(tmp_path)
    line = note(TEN).split("\n\n")[1]

    def send(text: str) -> int:
        return status(witness.handle("POST", "/add-checkpoint", add_body(0, (), text)))

    barn, shed = head(TEN), Checkpoint("example.org/shed", 10, TEN.root())
    assert send(sign_checkpoint(shed, LOG_KEY)) == 404
    assert send(sign_checkpoint(barn, OTHER_KEY)) == 403
    assert send(note(TEN, 9).split("\n\n")[0] + "\n\n" + line) == 403
    bad = base64.b64decode(line.split()[2])[:4] + bytes(64)
    assert send(note(TEN) + f"— {ORIGIN} {base64.b64encode(bad).decode()}\n") == 403
    assert send(f"{barn.text()}\n{cosign(barn, NAME, WITNESS_KEY, 5)}") == 403
    assert witness.newest(ORIGIN) is None
    unknown = sign_checkpoint(barn, OTHER_KEY).split("\n\n")[1]
    mldsa = f"— pq {base64.b64encode(bytes(2424)).decode()}\n"
    assert send(f"{barn.text()}\n{unknown}{mldsa}{line}{cosign(barn, 'w9', OTHER_KEY, 5)}") == 200
    kept = witness.handle("GET", f"/{PLACE}/checkpoint", b"")[2].decode()
    assert kept == note(TEN) + cosign(barn, NAME, WITNESS_KEY, 1_700_000_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 0\n\n",
        note(TEN).encode(),
        b"old 00\n\n" + note(TEN).encode(),
        b"old 01\n\n" + note(TEN).encode(),
        b"old -1\n\n" + note(TEN).encode(),
        b"old  0\n\n" + note(TEN).encode(),
        b"old 0 \n\n" + note(TEN).encode(),
        b"old\n\n" + note(TEN).encode(),
        b"OLD 0\n\n" + note(TEN).encode(),
        b"old 0\r\n\r\n" + note(TEN).encode(),
        b"size 0\n\n" + note(TEN).encode(),
        b"old %d\n\n" % 10**16 + note(TEN).encode(),
        b"old 0\nAAAA\n\n" + note(TEN).encode(),
        b"old 0\n" + base64.b64encode(bytes(32)) + b" \n\n" + note(TEN).encode(),
        b"old 0\n\xff\n\n" + note(TEN).encode(),
        b"old 0\n\n" + note(TEN).encode()[:-1],
        b"old 0\n\n" + note(TEN).encode() + b"\n",
        b"old 0\n\n" + note(TEN).encode() + b"junk\n",
        b"old 0\n\n" + note(TEN).replace("\n10\n", "\n010\n").encode(),
        add_body(0, [bytes(32)] * 64, note(TEN)),
    ],
)
def test_malformed_requests(tmp_path: Path, body: bytes) -> None:
    code, kind, text = make(tmp_path).handle("POST", "/add-checkpoint", body)
    assert (code, kind) == (400, "text/plain; charset=utf-8")
    assert text.endswith(b"\n")
    assert not (tmp_path / "logs" / PLACE / "checkpoint").exists()


def test_proofs_must_hold(tmp_path: Path) -> None:
    witness = make(tmp_path)

    def send(old: int, proof: list[bytes], tree: Tree = TEN) -> int:
        return status(witness.handle("POST", "/add-checkpoint", add_body(old, proof, note(tree))))

    assert send(0, [bytes(32)]) == 422
    assert send(0, [bytes(32)] * 63) == 422
    assert status(add(witness, TEN, 0, 6)) == 200
    good = TEN.consistency_proof(6)
    for proof in ([], good[:-1], [*good, bytes(32)], good[::-1], [bytes(32)] * 3):
        assert send(6, proof) == 422
    assert send(6, FORK.consistency_proof(6), FORK) == 422
    assert send(6, good) == 200
    assert send(10, [bytes(32)]) == 422
    assert send(10, [], FORK) == 422
    assert send(10, []) == 200


def test_two_roots_for_one_size_are_kept_as_proof(tmp_path: Path) -> None:
    told: list[tuple[Path, str]] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append((path, text)))
    assert status(add(witness, TEN, 0)) == 200
    assert add(witness, FORK, 0) == (409, "text/x.tlog.size", b"10\n")
    assert len(told) == 1
    assert status(witness.handle("POST", "/add-checkpoint", add_body(10, (), note(FORK)))) == 422
    assert len(told) == 1
    path, text = told[0]
    assert path.read_text() == text
    assert path.parent == tmp_path / "forks"
    for part in (note(TEN), note(FORK), VKEY, WITNESS_VKEY, "proof of misbehaviour by itself"):
        assert part in text
    assert "Not shown" not in text
    open_note(text.partition("refused:\n\n")[2].partition("\n---")[0], (VKEY,))
    assert witness.newest(ORIGIN).checkpoint == head(TEN)  # type: ignore[union-attr]


def test_a_proof_that_fails_is_kept_for_what_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(text))
    add(witness, TEN, 0, 6)
    proof = FORK.consistency_proof(6)
    witness.handle("POST", "/add-checkpoint", add_body(6, proof, note(FORK)))
    assert len(told) == 1
    assert "Not shown is that the log itself is forked" in told[0]
    assert "by itself, for anybody" not in told[0]
    for part in (note(TEN, 6), note(FORK), *(base64.b64encode(hashed).decode() for hashed in proof)):
        assert part in told[0]
    witness.handle("POST", "/add-checkpoint", add_body(6, [], note(FORK)))
    assert len(told) == 1


def test_evidence_is_bounded_for_each_log_and_kind(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path)

    def put(origin: str, name: str, *, proven: bool) -> bool:
        return store.put_fork(store.fork_file(origin, name, proven=proven), "text")

    for number in range(MAX_FORKS):
        assert put(ORIGIN, f"{number}", proven=False)
    assert not put(ORIGIN, "more", proven=False)
    for number in range(MAX_FORKS):
        assert put("example.org/shed", f"{number}", proven=True)
        assert put(ORIGIN, f"{number}", proven=True)
    assert not put(ORIGIN, "more", proven=True)
    assert put("example.org/shed", "0", proven=False)
    assert len(store.forks()) == 3 * MAX_FORKS + 1


def test_proof_is_never_crowded_out(tmp_path: Path) -> None:
    """What strangers send in the name of an honest log, and all other logs, take no place of a proof."""
    told: list[tuple[Path | None, str]] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append((path, text)))
    add(witness, TEN, 0, 4)
    for size in range(5, 5 + MAX_FORKS + 3):
        body = add_body(4, [bytes(32)], note(grown(size)))
        assert status(witness.handle("POST", "/add-checkpoint", body)) == 422
    assert len(told) == len(WitnessStore(tmp_path).forks()) == MAX_FORKS
    told.clear()
    for branch in range(1, MAX_FORKS + 3):
        add(witness, grown(4, branch=branch), 0)
    assert len(told) == MAX_FORKS + 2
    assert [path is None for path, _ in told] == [False] * MAX_FORKS + [True] * 2
    assert all("proof of misbehaviour by itself" in text for _, text in told)
    assert len(WitnessStore(tmp_path).forks()) == 2 * MAX_FORKS


def test_proof_is_told_when_the_disk_is_full(tmp_path: Path) -> None:
    told: list[Path | None] = []
    witness = make(tmp_path, on_fork=lambda path, text: told.append(path))
    add(witness, TEN, 0)
    with failing("write", 1, full_disk()):
        assert status(add(witness, FORK, 0)) == 503
    assert told == [None]
    add(witness, FORK, 0)
    assert told[1:] == list(WitnessStore(tmp_path).forks())


def test_each_larger_head_is_told_once(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    witness = make(tmp_path, on_cosigned=lambda origin, size: told.append((origin, size)))
    for old, size in ((0, 4), (4, 4), (0, 6), (4, 6), (6, 6)):
        add(witness, TEN, old, size)
    assert told == [(ORIGIN, 4), (ORIGIN, 6)]


def test_time_never_goes_back(tmp_path: Path) -> None:
    clock = Clock()
    witness = make(tmp_path, clock)
    times = []
    for now in (100, 50, 0, -5, 101):
        clock.now = now
        size = len(times) + 1
        line = add(witness, TEN, size - 1, size)[2].decode()
        times += parse_cosigned(note(TEN, size) + line, VKEY, [WITNESS_VKEY]).times
    assert times == [100, 100, 100, 100, 101]
    clock.now = -1
    other = make(tmp_path / "other", clock)
    assert open_note(note(TEN) + add(other, TEN, 0)[2].decode(), (VKEY,), (WITNESS_VKEY,)).times == (1,)


def test_extension_lines_are_cosigned_as_they_stand(tmp_path: Path) -> None:
    witness = make(tmp_path)
    text = head(TEN).text() + "extension\n"
    raw = base64.b64decode(note(TEN).split()[-1])[:4] + LOG_KEY.sign(text.encode())
    signed = f"{text}\n— {ORIGIN} {base64.b64encode(raw).decode()}\n"
    code, _, line = witness.handle("POST", "/add-checkpoint", add_body(0, (), signed))
    assert code == 200
    assert open_note(signed + line.decode(), (VKEY,), (WITNESS_VKEY,)).cosigners == (WITNESS_VKEY,)
    assert witness.newest(ORIGIN).extensions == ("extension",)  # type: ignore[union-attr]


def test_addresses_methods_and_sizes(tmp_path: Path) -> None:
    witness = make(tmp_path)
    for path in (
        *("", "/", "/add-checkpoint/", "/sign-subtree", "/barnraise/v2/link", "/../add-checkpoint"),
        *(f"/{PLACE.upper()}/checkpoint", f"/{PLACE}/checkpoint/", f"/x/{PLACE}/checkpoint", f"/{PLACE}"),
    ):
        assert status(witness.handle("GET", path, b"")) == 404
        assert status(witness.handle("POST", path, b"")) == 404
    assert status(witness.handle("GET", f"/{PLACE}/checkpoint", b"")) == 404
    for path in ("/add-checkpoint", "/barnraise/v1/link", "/barnraise/v1/chain"):
        assert status(witness.handle("GET", path, b"")) == 405
    assert status(witness.handle("POST", f"/{PLACE}/checkpoint", b"")) == 405
    assert status(witness.handle("POST", "/add-checkpoint", bytes(MAX_REQUEST_BYTES + 1))) == 413
    assert status(witness.handle("POST", "/add-checkpoint", bytes(MAX_REQUEST_BYTES))) == 400
    assert status(witness.handle("POST", "add-checkpoint", add_body(0, (), note(TEN)))) == 200


# What a witness remembers


def test_nothing_is_cosigned_when_the_disk_refuses(tmp_path: Path) -> None:
    witness = make(tmp_path)
    add(witness, TEN, 0, 5)
    for call in ("open", "write", "fsync", "replace"):
        with failing(call, 1, full_disk()):
            code, _, text = add(witness, TEN, 5)
        assert code == 503
        assert b"full" in text
    assert add(witness, TEN, 0) == (409, "text/x.tlog.size", b"5\n")


@pytest.mark.parametrize("name", ["checkpoint", "vkey", "chain", "shown"])
def test_a_damaged_memory_is_never_an_empty_one(tmp_path: Path, name: str) -> None:
    witness = make(tmp_path, logs=None)
    ask_chain(witness)
    add(witness, TEN, 0, 5)
    ask_link(witness, note(TEN, 5), 1)
    path = tmp_path / "logs" / PLACE / name
    good = path.read_bytes()
    for bad in (b"", b"\xff", good[:-2], good + b"x"):
        path.write_bytes(bad)
        if name in ("chain", "shown"):
            assert status(ask_link(witness, note(TEN, 5), 2)) == 503
        else:
            assert status(add(witness, TEN, 0, 9)) == status(add(witness, TEN, 5, 9)) == 503
    path.write_bytes(good)
    assert status(add(witness, TEN, 5, 9)) == 200


def test_a_chain_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    (tmp_path / "logs" / PLACE / "chain").chmod(0o644)
    assert status(ask_chain(witness)) == 503


def test_a_checkpoint_of_another_witness_is_no_memory(tmp_path: Path) -> None:
    witness = make(tmp_path)
    add(witness, TEN, 0, 5)
    path = tmp_path / "logs" / PLACE / "checkpoint"
    path.write_text(note(TEN, 5) + cosign(head(TEN, 5), NAME, OTHER_KEY, 7))
    with pytest.raises(StorageError, match="not one that this witness"):
        witness.newest(ORIGIN)
    assert status(witness.handle("GET", f"/{PLACE}/checkpoint", b"")) == 503


def test_logs_that_are_admitted(tmp_path: Path) -> None:
    shed = vkey("example.org/shed", LOG_KEY.public)
    chosen = make(tmp_path / "a", logs=[VKEY])
    assert status(ask_chain(chosen)) == 200
    assert status(ask_chain(chosen, log_vkey=shed)) == 404
    assert status(ask_chain(chosen, log_vkey=vkey(ORIGIN, OTHER_KEY.public))) == 404
    anyone = make(tmp_path / "b", logs=None)
    assert status(add(anyone, TEN, 0)) == 404
    assert status(ask_chain(anyone, log_vkey=shed)) == 200
    assert status(ask_chain(anyone, log_vkey=vkey("example.org/shed", OTHER_KEY.public))) == 404
    assert status(add(anyone, TEN, 0)) == 404
    assert status(ask_chain(anyone)) == 200
    assert status(add(anyone, TEN, 0)) == 200
    later = make(tmp_path / "b", logs=())
    assert status(add(later, TEN, 10)) == 200
    assert later.log_vkey("example.org/shed") == shed
    with pytest.raises(UsageError, match="another key"):
        make(tmp_path / "b", logs=[vkey(ORIGIN, OTHER_KEY.public)])
    with pytest.raises(UsageError, match="another key"):
        make(tmp_path / "c", logs=[VKEY, vkey(ORIGIN, OTHER_KEY.public)])
    with pytest.raises(FormatError):
        make(tmp_path / "c", logs=[WITNESS_VKEY])


def test_a_witness_of_any_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGS", 2)
    witness = make(tmp_path, logs=None)
    codes = [status(ask_chain(witness, log_vkey=vkey(f"log{i}", LOG_KEY.public))) for i in (1, 2, 3, 1)]
    assert codes == [200, 200, 503, 200]


# Chains and links


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


def test_a_link_is_remembered_before_it_is_shown(tmp_path: Path) -> None:
    witness = make(tmp_path)
    ask_chain(witness)
    add(witness, TEN, 0, 6)
    for call in ("open", "write", "fsync", "replace"):
        with failing(call, 1, full_disk()):
            assert status(ask_link(witness, note(TEN, 6), 3)) == 503
    assert not (tmp_path / "logs" / PLACE / "shown").exists()
    with failing("fsync", 2, Crash()), pytest.raises(Crash):
        ask_link(witness, note(TEN, 6), 3)
    assert status(ask_link(make(tmp_path), note(TEN, 6), 2)) == 409


def test_a_chain_is_durable_before_its_end_is_shown(tmp_path: Path) -> None:
    for at in range(1, 12):
        folder = tmp_path / str(at)
        witness = make(folder, logs=None)
        try:
            with failing("fsync", at, Crash()):
                body = ask_chain(witness)[2]
        except Crash:
            assert status(ask_chain(make(folder, logs=None))) == 200
        else:
            assert ask_chain(make(folder))[2] == body
            return
    pytest.fail("there are more writes than that")


# Races


@pytest.mark.parametrize("first", [0, 1])
def test_two_requests_at_a_time(tmp_path: Path, first: int) -> None:
    """The race of the specification: whichever comes second is refused, and nothing is rolled back."""
    held, go = threading.Event(), threading.Event()
    clock = Clock()

    class Slow(WitnessStore):
        def put_newest(self, origin: str, text: str) -> None:
            if not held.is_set():
                held.set()
                go.wait(5)
            super().put_newest(origin, text)

    store = WitnessStore(tmp_path)
    add(Witness(WITNESS_KEY, NAME, store, clock, [VKEY]), TEN, 0, 2)
    witness = Witness(WITNESS_KEY, NAME, Slow(tmp_path), clock, [VKEY])
    sizes = (5, 9) if first else (9, 5)
    answers: dict[int, tuple[int, str, bytes]] = {}

    def ask(size: int) -> None:
        answers[size] = add(witness, TEN, 2, size)

    threads = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    threads[0].start()
    assert held.wait(5)
    threads[1].start()
    threads[1].join(0.2)
    go.set()
    for thread in threads:
        thread.join(5)
    assert status(answers[sizes[0]]) == 200
    assert answers[sizes[1]] == (409, "text/x.tlog.size", b"%d\n" % sizes[0])
    assert witness.newest(ORIGIN).checkpoint == head(TEN, sizes[0])  # type: ignore[union-attr]


# Anything at all


@given(
    st.sampled_from(["GET", "POST", "PUT", ""]),
    st.sampled_from(["/add-checkpoint", "/barnraise/v1/chain", "/barnraise/v1/link", f"/{PLACE}/checkpoint"])
    | st.text(max_size=30),
    st.binary(max_size=200),
)
def test_any_request_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory, method: str, path: str, body: bytes
) -> None:
    code, kind, answer = _world(tmp_path_factory).handle(method, path, body)
    assert code in (200, 400, 403, 404, 405, 409, 413, 422)
    assert kind
    assert answer


@given(st.binary(max_size=30), st.integers(0, 400), st.integers(0, 30))
def test_only_what_the_log_signed_is_cosigned(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, cut: int
) -> None:
    witness = _world(tmp_path_factory)
    body = add_body(6, TEN.consistency_proof(6), note(TEN))
    witness.handle("POST", "/add-checkpoint", body[:at] + junk + body[at + cut :])
    found = witness.newest(ORIGIN)
    assert found is not None
    assert found.checkpoint in (head(TEN, 6), head(TEN))


_made: list[Witness] = []


def _world(factory: pytest.TempPathFactory) -> Witness:
    if not _made:
        _made.append(make(factory.mktemp("witness")))
        add(_made[0], TEN, 0, 6)
        ask_chain(_made[0])
    return _made[0]


def test_keys_of_logs_are_not_the_witness_own(tmp_path: Path) -> None:
    assert make(tmp_path).vkey != make(tmp_path / "x").log_vkey(ORIGIN)
    other = Witness(PrivateKey.generate(), "w2", WitnessStore(tmp_path / "y"), Clock(), [VKEY])
    line = add(other, TEN, 0)[2].decode()
    assert open_note(note(TEN) + line, (VKEY,), (WITNESS_VKEY,)).cosigners == ()
    assert open_note(note(TEN) + line, (VKEY,), (other.vkey,)).cosigners == (other.vkey,)
    assert grown(0).root() == EMPTY_ROOT
