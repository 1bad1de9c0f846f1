"""A witness asked for cosignatures, against C2SP tlog-witness: every status, who signed, proofs, times."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.witness_world import (
    FORK,
    LOG_KEY,
    NAME,
    ORIGIN,
    OTHER_KEY,
    PLACE,
    TEN,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    Clock,
    add,
    add_body,
    ask_chain,
    grown,
    head,
    make,
    note,
    status,
)
from verification.keys import PrivateKey
from verification.merkle import EMPTY_ROOT, Tree
from verification.notes import Checkpoint, cosign, open_note, parse_cosigned, sign_checkpoint
from verification.witness import MAX_REQUEST_BYTES, Witness
from verification.witness_store import WitnessStore


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


def test_a_request_without_its_empty_line_is_none(tmp_path: Path) -> None:
    answer = make(tmp_path).handle(
        "POST", "/add-checkpoint", b"old 0\n" + note(TEN).encode().split(b"\n\n")[0]
    )
    assert b"not an add-checkpoint request" in answer[2]


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


def test_keys_of_logs_are_not_the_witness_own(tmp_path: Path) -> None:
    assert make(tmp_path).vkey != make(tmp_path / "x").log_vkey(ORIGIN)
    other = Witness(PrivateKey.generate(), "w2", WitnessStore(tmp_path / "y"), Clock(), [VKEY])
    line = add(other, TEN, 0)[2].decode()
    assert open_note(note(TEN) + line, (VKEY,), (WITNESS_VKEY,)).cosigners == ()
    assert open_note(note(TEN) + line, (VKEY,), (other.vkey,)).cosigners == (other.vkey,)
    assert grown(0).root() == EMPTY_ROOT


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
