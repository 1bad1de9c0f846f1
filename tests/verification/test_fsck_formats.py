"""The strict readers of level 1: golden values and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.test_fsck_bytes import draw_number, key_of, key_text, note_of, tree_root, vkey
from verification.errors import FormatError, SignatureError, StorageError
from verification.fsck_draws import Chain, uniform
from verification.fsck_formats import (
    Checkpoint,
    digest_file,
    make_verifier_key,
    parse_base64,
    parse_checkpoint,
    parse_decimal,
    parse_hex_float,
    parse_key,
    proof_holds,
    read_beginning,
    read_file,
    signature_holds,
)
from verification.fsck_json import hash_object, parse_canonical, write_canonical
from verification.fsck_ledger import Ledger, weights_of
from verification.fsck_log import Tree, leaf_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("az AZ~!", max_size=4), inner, max_size=4)
    ),
)


@given(JSON)
def test_canonical_json_is_read_and_nothing_else(value: Any) -> None:
    data = write_canonical(value)
    assert parse_canonical(data) == value
    loose = json.dumps(value, indent=1).encode()
    if loose != data:
        with pytest.raises(FormatError):
            parse_canonical(loose)


def test_canonical_json_golden() -> None:
    value = {"b": [1, -2, True, None], "a": '\x00\x1f\n"\\/é🦬\x7f', "Z": {}}
    golden = '{"Z":{},"a":"\\u0000\\u001f\\n\\"\\\\/é🦬\x7f","b":[1,-2,true,null]}'
    assert write_canonical(value) == golden.encode()


@pytest.mark.parametrize(
    "data",
    [b"", b" 1", b"1.0", b"1e3", b"-0", b"01", b"NaN", b"Infinity", b"9007199254740992", b"9" * 5000,
     b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"\xc3\xa9":1}', b'{"\x7f":1}', b'"\\u0041"',
     b'"\\ud800"', b'"\\/"',
     b'"\\u001F"', b"\xff", b"\xef\xbb\xbf1", b"[" * 100000, b"[1,]", b"1\n", b'"\n"'],
)  # fmt: skip
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_canonical(data)


@pytest.mark.parametrize(
    ("left", "inner", "right"), [("[", "[]", "]"), ('{"a":', "0", "}"), ("[", '""', "]")]
)
def test_json_is_nested_32_levels_below_the_top_at_most(left: str, inner: str, right: str) -> None:
    def nested(levels: int) -> bytes:
        return (left * levels + inner + right * levels).encode()

    assert write_canonical(parse_canonical(nested(32))) == nested(32)
    for levels in (33, 500, 100_000):
        with pytest.raises(FormatError, match="nested too deeply"):
            parse_canonical(nested(levels))


def test_hash_object_golden() -> None:
    assert hash_object("d", {"a": 1}) == "sha256:" + hashlib.sha256(b'd\x00{"a":1}').hexdigest()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_hex_floats(x: float) -> None:
    assert parse_hex_float(x.hex()).hex() == x.hex()


@pytest.mark.parametrize("length", [0, 1, 5, 1 << 20, (1 << 20) + 3, (1 << 21) + 1, 1 << 40])
def test_the_beginning_of_a_file(tmp_path: Path, length: int) -> None:
    data = bytes(range(251)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert read_beginning(tmp_path / "file", length) == data[:length]
    (tmp_path / "link").symlink_to("file")
    for name in ("link", "none", "."):
        with pytest.raises(StorageError):
            read_beginning(tmp_path / name, length)


@pytest.mark.parametrize("text", ["nan", "inf", "0x1p3", " 0x1.0p+0", "0x1.8P+0", "1.5", "", "0x1.0p+99999"])
def test_other_hex_floats_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_hex_float(text)


@pytest.mark.parametrize("text", ["A", "AA", "AA=", "AB==", "AA==\n", "é", "A A=", "-_8=", "AA==AA=="])
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_base64(text)


P = 2**255 - 19
ORDER_EIGHT = [
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize(
    "y", [0, 1, P - 1, *(int.from_bytes(bytes.fromhex(h), "little") for h in ORDER_EIGHT)]
)
def test_small_order_keys_are_refused(y: int, sign: int) -> None:
    data = (y | sign << 255).to_bytes(32, "little").hex()
    with pytest.raises(SignatureError, match="small order"):
        parse_key(f"ed25519:{data}")


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:" + "AB" * 32, "x25519:" + "00" * 32, "ed25519:" + "00" * 33]
)
def test_other_keys_are_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        parse_key(text)


def test_keys_must_be_canonical() -> None:
    with pytest.raises(SignatureError, match="not canonical"):
        parse_key("ed25519:" + (P + 3).to_bytes(32, "little").hex())
    assert parse_key(key_text("ann")).hex() == key_text("ann")[8:]


def test_notes() -> None:
    note = note_of([b"a", b"b"])
    checkpoint = parse_checkpoint(note)
    key = make_verifier_key(checkpoint.origin, parse_key(key_text("coordinator")))
    assert (checkpoint.size, checkpoint.root) == (2, tree_root([b"a", b"b"]))
    assert str(key) == vkey()
    assert checkpoint.signed_by(key)
    assert not parse_checkpoint(note_of([b"a"], signer="ann")).signed_by(key)
    assert not parse_checkpoint(note_of([b"a"], origin="example.org/other")).signed_by(key)
    lines = note.split("\n")
    extended = "\n".join([*lines[:3], "extension", *lines[3:]])
    for bad in (note[:-1], note + "\n", note + lines[4] + "\n", note.replace("\n2\n", "\n02\n"), extended,
                note.replace("\n2\n", "\n9007199254740992\n"),
                note.replace("—", "-"), note.replace("\n", "\r\n"), note.replace("— ex", "— x")):  # fmt: skip
        with pytest.raises(FormatError):
            parse_checkpoint(bad)


NOTE = note_of([b"a", b"b"])
ROOT, LINE = NOTE.split("\n")[2], NOTE.split("\n")[4]
BLOB = LINE.split(" ")[2]


def longer(text: str) -> str:
    """The base64 of one byte more."""
    return base64.b64encode(base64.b64decode(text) + b"x").decode()


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (NOTE[:-1], "not a checkpoint"),
        (NOTE + "\n", "not a checkpoint"),
        (NOTE + "more", "not a checkpoint"),
        (NOTE.replace("\n\n", "\nextension\n"), "not a checkpoint"),
        (NOTE.replace("example.org/barn", ""), "a checkpoint's signature is by another name"),
        (NOTE.replace("— ex", "— x"), "a checkpoint's signature is by another name"),
        (NOTE.replace("— ex", "—  ex"), "a checkpoint's signature is by another name"),
        (NOTE.replace(LINE, BLOB), "a checkpoint's signature is by another name"),
        (NOTE.replace(ROOT, longer(ROOT)), "a checkpoint's root or signature has the wrong length"),
        (NOTE.replace(ROOT, ""), "a checkpoint's root or signature has the wrong length"),
        (NOTE.replace(BLOB, longer(BLOB)), "a checkpoint's root or signature has the wrong length"),
        (NOTE.replace(BLOB, ""), "a checkpoint's root or signature has the wrong length"),
        (NOTE.replace("\n2\n", "\n02\n"), "not a decimal number up to 2^53 - 1"),
        (NOTE.replace(BLOB, "A"), "not base64"),
    ],
)
def test_what_is_no_checkpoint_is_named(note: str, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_checkpoint(note)
    assert caught.value.what == words


def test_who_signed_a_checkpoint() -> None:
    """The name, the key's id and the signature all have to fit."""
    given = parse_checkpoint(NOTE)
    key = make_verifier_key(given.origin, parse_key(key_text("coordinator")))

    def signed(**other: Any) -> bool:
        return Checkpoint(**{**vars(given), **other}).signed_by(key)

    assert signed()
    assert not signed(size=3)
    assert not signed(root=bytes(32))
    assert not signed(key_id=b"1234")
    assert not signed(signature=bytes(64))
    assert not signed(signature=given.signature[:-1])
    renamed = Checkpoint("example.org/other", 2, given.root, given.key_id, b"")
    by_key = key_of("coordinator").sign(renamed.text.encode())
    assert not Checkpoint("example.org/other", 2, given.root, given.key_id, by_key).signed_by(key)


def test_a_proof_must_be_base64_of_a_signature() -> None:
    value = {"a": 1}
    signed = base64.b64encode(key_of("ann").sign(b"d\0" + write_canonical(value))).decode()
    public = parse_key(key_text("ann"))
    assert proof_holds(public, signed, "d", value)
    assert not proof_holds(public, signed, "e", value)
    assert not proof_holds(public, "A", "d", value)
    assert not signature_holds(public, b"", b"")
    assert not signature_holds(public, bytes(64), b"")


@pytest.mark.parametrize("text", ["", "00", "-1", "1.0", " 1", "1\n", "٣", "9007199254740992", "9" * 17])
def test_other_decimals_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a decimal number"):
        parse_decimal(text)
    assert parse_decimal("9007199254740991") == 2**53 - 1


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, folder, link = tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(pipe)
    folder.mkdir()
    (tmp_path / "file").write_bytes(b"12345")
    link.symlink_to(tmp_path / "file")
    for path in (pipe, folder):
        with pytest.raises(StorageError) as caught:
            digest_file(str(path))
        assert caught.value.what == f"{path.name} is not a regular file"
    for name in ("link", "none", "a\0b"):
        with pytest.raises(StorageError, match="cannot be read"):
            read_file(tmp_path / name, 5)
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(StorageError, match="file is too long; expected at most 4 bytes"):
        read_file(tmp_path / "file", 4)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a\u00a0b"])
def test_origins(origin: str) -> None:
    with pytest.raises(FormatError):
        make_verifier_key(origin, bytes(32))


@given(st.lists(st.binary(max_size=3), max_size=40))
def test_merkle_roots(entries: list[bytes]) -> None:
    tree = Tree()
    for entry in entries:
        tree.add(leaf_hash(entry))
    assert tree.root() == tree_root(entries)


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 2**40))
def test_uniform(seed: str, n: int) -> None:
    value = uniform(f"sha256:{seed}", "audit/0", n)
    assert 0 <= value < n
    assert value == draw_number(f"sha256:{seed}", "audit/0", n)


def test_a_chain_goes_on_after_a_wrong_link() -> None:
    links = [hashlib.sha256(b"0").digest()]
    for _ in range(5):
        links.insert(0, hashlib.sha256(links[0]).digest())
    chain = Chain(links[0], 5)
    assert chain.holds(1, links[1].hex())
    assert not chain.holds(2, links[1].hex())
    assert chain.holds(3, links[3].hex())
    assert not chain.holds(3, links[3].hex())
    assert not chain.holds(6, "00" * 32)


def test_weights_with_the_operators_cap() -> None:
    assert weights_of([("a", 100), ("b", 50), ("a", 50)], 500_000) == [66, 50, 33]
    assert weights_of([("a", 100), ("b", 100)], 500_000) == [100, 100]
    assert weights_of([("a", 7)], 0) == [0]
    assert weights_of([], 1) == []


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from("abc")), max_size=6),
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from("abc")), max_size=6),
)
def test_handing_out_gives_each_position_once(
    queued: list[tuple[int, str]], needs: list[tuple[int, str]]
) -> None:
    ledger = Ledger.__new__(Ledger)
    ledger.queue, ledger.cursor = [], 0
    owner: dict[int, str] = {}
    for size, operator in queued:
        ledger.queue.append((ledger.cursor, ledger.cursor + size, operator))
        owner |= dict.fromkeys(range(ledger.cursor, ledger.cursor + size), operator)
        ledger.cursor += size
    given_out: list[int] = []
    for need, operator in needs:
        mine = [p for start, stop in ledger.hand_out(operator, need) for p in range(start, stop)]
        assert len(mine) == need
        assert all(owner.get(p) != operator for p in mine)
        given_out += mine
    left = [p for start, stop, _ in ledger.queue for p in range(start, stop)]
    assert sorted(given_out + left) == list(range(ledger.cursor))
