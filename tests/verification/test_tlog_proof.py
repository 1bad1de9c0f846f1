"""Receipts and the tlog-proof format: golden text, every part changed, hostile bytes."""

from __future__ import annotations

import base64
import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification import tlog_proof
from verification.encoding import Json, canonical_json
from verification.envelope import seal
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError, UsageError
from verification.keys import PrivateKey
from verification.merkle import Tree, leaf_hash
from verification.notes import Checkpoint, cosign, sign_checkpoint, vkey, witness_vkey
from verification.policy import parse_policy
from verification.tlog_proof import (
    Proof,
    Receipt,
    check_receipt,
    check_receipt_by_policy,
    parse_proof,
    receipt_origin,
    write_proof,
    write_receipt,
)

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(32))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, KEY.public)
WITNESSES = [PrivateKey.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
W = [witness_vkey(f"w{i}", key.public) for i, key in enumerate(WITNESSES)]
RUN = "ab" * 32
CLOSE: dict[str, Json] = {
    "protocol": 1,
    "run": f"sha256:{RUN}",
    "round": 3,
    "attempt": 1,
    "void": False,
    "accepted": [
        {"member": "ann", "payload": "blake3:" + "1" * 64, "slot": 0, "tokens": 640, "weight": 600},
        {"member": "bob", "payload": "blake3:" + "2" * 64, "slot": 1, "tokens": 320, "weight": 320},
    ],
    "rejected": [
        {
            "evidence": "sha256:" + "3" * 64,
            "fault": True,
            "member": "cid",
            "reason": "failed-audit",
            "slot": 2,
        }
    ],
    "missed": [],
    "overruled": [],
    "weights": "blake3:" + "4" * 64,
    "outer": "blake3:" + "5" * 64,
    "requeued": [],
    "cursor": 99,
    "credits": [
        {"earned": 1000, "forfeited": 0, "member": "ann", "vested": 360},
        {"earned": 2, "forfeited": 0, "member": "aud", "vested": 1},
        {"earned": 700, "forfeited": 0, "member": "bob", "vested": 300},
        {"earned": 50, "forfeited": 50, "member": "cid", "vested": 0},
    ],
    "quarantined": ["cid"],
    "train_loss": 1,
    "val_loss": None,
}
NOISE = [b"manifest", b"enrol", b"", b"more", b"last", b"five", b"six"]
INDEX = 3


def sealed(
    close: Json, key: PrivateKey = KEY, kind: str = "barnraise:round-close:v1", run: str = RUN
) -> bytes:
    return seal(kind, close, "run", run, key)


def receipt(
    entry: bytes,
    member: str = "ann",
    *,
    cosigners: tuple[int, ...] = (0, 1, 2),
    key: PrivateKey = KEY,
    extension: str = "",
) -> str:
    """A receipt for an entry in a small log, by hand."""
    entries = [*NOISE[:INDEX], entry, *NOISE[INDEX:]]
    tree = Tree(map(leaf_hash, entries))
    head = Checkpoint(ORIGIN, tree.size, tree.root())
    note = sign_checkpoint(head, key)
    if extension:
        text = head.text() + extension
        raw = base64.b64decode(note.split()[-1])[:4] + key.sign(text.encode())
        note = f"{text}\n— {ORIGIN} {base64.b64encode(raw).decode()}\n"
    note += "".join(cosign(head, f"w{i}", WITNESSES[i], 100 + i) for i in cosigners)
    return write_receipt(entry, member, INDEX, tree.inclusion_proof(INDEX), note)


GOOD = receipt(sealed(CLOSE))


def changed(**values: Json) -> Json:
    return CLOSE | values


def test_a_receipt_shows_what_the_close_says() -> None:
    found = check_receipt(GOOD.encode(), VKEY, W, 3)
    assert found == Receipt(
        member="ann", run=f"sha256:{RUN}", round=3, attempt=1, slot=0, accepted=True, tokens=640, weight=600,
        reason=None, fault=False, earned=1000, vested=360, forfeited=0, quarantined=False,
        weights="blake3:" + "4" * 64, index=INDEX, checkpoint=found.checkpoint, log_vkey=VKEY,
        cosigners=tuple(W), times=(100, 101, 102),
    )  # fmt: skip
    assert found.checkpoint.size == 8
    cid = check_receipt(receipt(sealed(CLOSE), "cid"), VKEY)
    assert (cid.accepted, cid.reason, cid.fault, cid.quarantined, cid.slot) == (
        False,
        "failed-audit",
        True,
        True,
        2,
    )
    assert (cid.tokens, cid.weight, cid.forfeited, cid.cosigners) == (None, None, 50, ())
    assert receipt_origin(GOOD) == ORIGIN


def test_golden_form() -> None:
    entry = sealed(CLOSE)
    lines = GOOD.split("\n")
    extra = b'{"entry":"%s","member":"ann"}' % base64.b64encode(entry)
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", f"extra {base64.b64encode(extra).decode()}", "index 3"]
    assert lines[6:9] == ["", ORIGIN, "8"]
    assert lines[10] == ""
    assert [line.split(" ")[1] for line in lines[11:15]] == [ORIGIN, "w0", "w1", "w2"]
    assert lines[15:] == [""]
    head = "example.com/log\n1\n" + base64.b64encode(leaf_hash(b"x")).decode()
    text = f"c2sp.org/tlog-proof@v1\nindex 0\n\n{head}\n\n— example.com/log AAAAAAAA\n"
    assert parse_proof(text) == Proof(b"", 0, (), text.split("\n\n", 1)[1])
    assert write_proof(b"", 0, (), text.split("\n\n", 1)[1]) == text


def test_the_quorum() -> None:
    two = receipt(sealed(CLOSE), cosigners=(2, 0))
    assert check_receipt(two, VKEY, W, 2).cosigners == (W[2], W[0])
    assert check_receipt(two, VKEY, W, 2).times == (102, 100)
    with pytest.raises(ProtocolError, match="too few"):
        check_receipt(two, VKEY, W, 3)
    with pytest.raises(ProtocolError, match="too few"):
        check_receipt(two, VKEY, [W[1]], 1)
    with pytest.raises(ProtocolError, match="too few"):
        check_receipt(GOOD, VKEY, (), 1)
    policy = f"witness a {W[0]}\nwitness b {W[1]}\ngroup g all a b\nquorum g\n"
    named = parse_policy(f"log {VKEY}\n{policy}".encode())
    assert check_receipt_by_policy(GOOD, named).cosigners == (W[0], W[1])
    with pytest.raises(ProtocolError, match="too few"):
        check_receipt_by_policy(two, named)
    nameless = parse_policy(policy.encode())
    assert check_receipt_by_policy(GOOD, nameless, VKEY).log_vkey == VKEY
    with pytest.raises(UsageError, match="which log"):
        check_receipt_by_policy(GOOD, nameless)
    stranger = vkey(ORIGIN, OTHER.public)
    with pytest.raises(UsageError, match="other logs"):
        check_receipt_by_policy(GOOD, named, stranger)
    assert check_receipt_by_policy(
        GOOD, parse_policy(f"log {stranger}\nlog {VKEY}\nquorum none\n".encode()), VKEY
    )
    for other in (f"log {stranger}\nquorum none\n", f"log {vkey('x', KEY.public)}\nquorum none\n"):
        with pytest.raises(SignatureError, match="no known key"):
            check_receipt_by_policy(GOOD, parse_policy(other.encode()))


def test_one_log_of_several_is_enough() -> None:
    shed = vkey("example.org/shed", OTHER.public)
    found = check_receipt_by_policy(GOOD, parse_policy(f"log {shed}\nlog {VKEY}\nquorum none\n".encode()))
    assert found.log_vkey == VKEY


def test_signatures_must_hold() -> None:
    entry = sealed(CLOSE)
    with pytest.raises(SignatureError, match="no known key"):
        check_receipt(receipt(entry, key=OTHER), VKEY)
    with pytest.raises(SignatureError, match="another key"):
        check_receipt(receipt(sealed(CLOSE, OTHER)), VKEY)
    forged = entry.replace(sealed(CLOSE)[-40:-10], sealed(changed(round=4))[-40:-10])
    with pytest.raises(SignatureError):
        check_receipt(receipt(forged), VKEY)
    head, _, tail = GOOD.rpartition("— w1 ")
    swapped = f"{head}— w1 {GOOD.rpartition('— w0 ')[2].split(chr(10))[0]}\n"
    assert check_receipt(swapped + tail.split("\n", 1)[1], VKEY, W[:1], 1).cosigners == (W[0],)
    broken = GOOD.replace("— w1 ", "— w1 ", 1).replace(tail[30:34], "AAAA")
    with pytest.raises(SignatureError):
        check_receipt(broken, VKEY, W)


def test_inclusion_must_hold() -> None:
    proof = parse_proof(GOOD)
    other = sealed(changed(cursor=100))
    for text in (
        write_receipt(other, "ann", INDEX, proof.hashes, proof.note),
        write_proof(proof.extra, 2, proof.hashes, proof.note),
        write_proof(proof.extra, INDEX, proof.hashes[:-1], proof.note),
        write_proof(proof.extra, INDEX, (*proof.hashes, bytes(32)), proof.note),
        write_proof(proof.extra, INDEX, proof.hashes[::-1], proof.note),
    ):
        with pytest.raises(ProtocolError, match="inclusion proof"):
            check_receipt(text, VKEY, W)
    for index in (8, 2**53 - 1):
        with pytest.raises(FormatError, match="no such leaf"):
            check_receipt(write_proof(proof.extra, index, proof.hashes, proof.note), VKEY, W)


def test_the_log_has_no_extension_lines() -> None:
    with pytest.raises(FormatError, match="extension"):
        check_receipt(receipt(sealed(CLOSE), cosigners=(), extension="more\n"), VKEY)


def without(key: str) -> Json:
    return {name: value for name, value in CLOSE.items() if name != key}


def rows(key: str, number: int, **values: Json) -> Json:
    found = copy.deepcopy(CLOSE[key])
    found[number] |= values
    return changed(**{key: found})


@pytest.mark.parametrize(
    ("close", "match"),
    [
        (without("void"), "wrong keys"),
        (changed(beacon=1), "wrong keys"),
        (changed(protocol=2), "another protocol version"),
        (changed(protocol=True), "another protocol version"),
        (changed(run="sha256:" + "c" * 64), "another run"),
        (changed(run=RUN), "another run"),
        (changed(round="3"), "round in a round-close is no count"),
        (changed(round=-1), "no count"),
        (changed(round=True), "no count"),
        (changed(attempt=None), "no count"),
        (changed(accepted={}), "no list"),
        (changed(credits=None), "no list"),
        (changed(rejected=[1]), "wrong keys"),
        (changed(accepted=[CLOSE["accepted"][1]]), "does not settle"),
        (changed(credits=CLOSE["credits"][1:]), "does not settle"),
        (changed(rejected=[CLOSE["rejected"][0] | {"member": "ann"}]), "does not settle"),
        (changed(accepted=[CLOSE["accepted"][0]] * 2), "twice"),
        (changed(credits=[CLOSE["credits"][0]] * 2), "twice"),
        (rows("accepted", 1, extra=1), "wrong keys"),
        (rows("accepted", 0, tokens="640"), "tokens in a round-close is no count"),
        (rows("accepted", 0, weight=-1), "weight in a round-close is no count"),
        (rows("accepted", 0, slot=None), "slot in a round-close is no count"),
        (rows("credits", 0, earned=1.0 and "1"), "earned in a round-close is no count"),
        (rows("credits", 0, vested=None), "vested in a round-close is no count"),
        (rows("credits", 0, forfeited=[]), "forfeited in a round-close is no count"),
        (changed(quarantined="ann"), "no list"),
        (changed(weights=7), "weights is no text"),
        (changed(weights="\x1b[31m"), "not a digest"),
    ],
)
def test_a_close_of_another_form_is_no_receipt(close: Json, match: str) -> None:
    with pytest.raises((FormatError, ProtocolError), match=match):
        check_receipt(receipt(sealed(close)), VKEY)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"reason": 1}, "reason is no text"),
        ({"reason": "\x1b[31m"}, "reason in a round-close is none"),
        ({"fault": 1}, "neither true nor false"),
    ],
)
def test_a_rejection_of_another_form_is_no_receipt(values: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        check_receipt(receipt(sealed(rows("rejected", 0, **values)), "cid"), VKEY)


def test_only_a_round_close_is_a_receipt() -> None:
    with pytest.raises(ProtocolError, match="no round-close"):
        check_receipt(receipt(sealed(CLOSE, kind="barnraise:run-close:v1")), VKEY)
    with pytest.raises(ProtocolError, match="does not settle"):
        check_receipt(receipt(sealed(CLOSE), "dan"), VKEY)
    with pytest.raises(ProtocolError, match="does not settle"):
        check_receipt(receipt(sealed(CLOSE), "aud"), VKEY)
    about_data = seal("barnraise:round-close:v1", CLOSE, "dataset", RUN, KEY)
    with pytest.raises(ProtocolError, match="another run"):
        check_receipt(receipt(about_data), VKEY)
    with pytest.raises(FormatError):
        check_receipt(receipt(sealed(CLOSE) + b"\n"), VKEY)


@pytest.mark.parametrize(
    "extra",
    [
        b"",
        b"{}",
        b'{"entry":"","member":"ann","more":1}',
        b'{"entry":"","member":1}',
        b'{"entry":1,"member":"ann"}',
        b'{"entry":"AA","member":"ann"}',
        b'{"member":"ann","entry":""}',
        b'["entry","member"]',
        canonical_json({"entry": base64.b64encode(sealed(CLOSE)).decode(), "member": ""}),
        canonical_json({"entry": base64.b64encode(sealed(CLOSE)).decode(), "member": "Ann"}),
        canonical_json({"entry": base64.b64encode(sealed(CLOSE)).decode(), "member": "a" * 65}),
        canonical_json({"entry": base64.b64encode(bytes(65_536)).decode(), "member": "ann"}),
    ],
)
def test_extra_data_of_another_form(extra: bytes) -> None:
    proof = parse_proof(GOOD)
    with pytest.raises(FormatError):
        check_receipt(write_proof(extra, INDEX, proof.hashes, proof.note), VKEY)


NOTE = "example.org/barn\n1\nAAAA\n\n— a AAAAAAAA\n"
HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"c2sp.org/tlog-proof@v2\nindex 0\n\n{NOTE}",
        f"\nc2sp.org/tlog-proof@v1\nindex 0\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\r\nindex 0\r\n\r\n{NOTE}",
        "c2sp.org/tlog-proof@v1\nindex 0\n",
        "c2sp.org/tlog-proof@v1\n\n",
        f"c2sp.org/tlog-proof@v1\n{HASH}\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 00\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 01\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex -1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex +1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 1 \n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex  1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex ٣\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex {2**53}\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex {10**16}\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nextra \nindex 1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nextra AB==\nindex 1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nextra AA\nindex 1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nextra AAAA\nextra AAAA\nindex 1\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 1\nextra AAAA\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 1\n{HASH[:-4]}\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 1\n{HASH[:-2]}B=\n\n{NOTE}",
        f"c2sp.org/tlog-proof@v1\nindex 1\n{HASH} \n\n{NOTE}",
        "c2sp.org/tlog-proof@v1\nindex 1\n" + f"{HASH}\n" * 64 + f"\n{NOTE}",
        b"c2sp.org/tlog-proof@v1\nindex 1\n\n\xff",
        "c2sp.org/tlog-proof@v1\nindex 1\n\n\ud800",
    ],
)
def test_proofs_have_one_form(text: str | bytes) -> None:
    with pytest.raises(FormatError):
        parse_proof(text)


def test_a_proof_without_a_note_is_none() -> None:
    with pytest.raises(FormatError, match="not a tlog-proof"):
        parse_proof("c2sp.org/tlog-proof@v1\nindex 1")


def test_proofs_are_bounded() -> None:
    most = "c2sp.org/tlog-proof@v1\nindex 1\n" + f"{HASH}\n" * 63 + f"\n{NOTE}"
    assert len(parse_proof(most).hashes) == 63
    with pytest.raises(FormatError, match="too long"):
        parse_proof(most + "x" * tlog_proof.MAX_PROOF_BYTES)
    for index in (-1, 2**53):
        with pytest.raises(FormatError):
            write_proof(b"", index, (), NOTE)
    with pytest.raises(FormatError):
        write_proof(b"", 1, (bytes(31),), NOTE)


@given(
    st.binary(max_size=60),
    st.integers(0, 2**53 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.text(max_size=40).filter(lambda text: text.isprintable()),
)
def test_any_proof_round_trips(extra: bytes, index: int, hashes: list[bytes], note: str) -> None:
    assert parse_proof(write_proof(extra, index, hashes, note)) == Proof(extra, index, tuple(hashes), note)


@given(st.binary(max_size=40), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_bad_bytes_stay_in_the_family(junk: bytes, at: int, cut: int) -> None:
    raw = GOOD.encode()
    expected = check_receipt(raw, VKEY, W, 3)
    data = raw[:at] + junk + raw[at + cut :]
    with suppress(BarnraiseError):
        assert check_receipt(data, VKEY, W, 3) == expected
    with suppress(BarnraiseError):
        assert receipt_origin(data) is not None
    with pytest.raises(BarnraiseError):
        check_receipt(junk, VKEY)


@pytest.mark.slow
def test_flipped_bits_are_refused() -> None:
    raw = GOOD.encode()
    for bit in range(0, 8 * len(raw), 11):  # in the end each bit of a byte
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BarnraiseError):
            check_receipt(bytes(flipped), VKEY, W, 3)
