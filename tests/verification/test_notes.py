"""Checkpoints and verifier keys: golden text, one accepted form."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.errors import BarnraiseError, FormatError, SignatureError
from verification.keys import PrivateKey
from verification.merkle import EMPTY_ROOT
from verification.notes import Checkpoint, parse_checkpoint, parse_vkey, sign_checkpoint, vkey

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(32))
ORIGIN = "example.org/barn"
VKEY = vkey(ORIGIN, KEY.public)
HEAD = Checkpoint(ORIGIN, 1234, bytes(range(100, 132)))
NOTE = sign_checkpoint(HEAD, KEY)


def signed(text: str, name: str = ORIGIN, key: PrivateKey = KEY) -> str:
    """A signed note around any text; written here, not by the module."""
    public = bytes.fromhex(key.public[8:])
    key_id = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    return f"{text}\n— {name} {base64.b64encode(key_id + key.sign(text.encode())).decode()}\n"


def test_golden_note_and_key() -> None:
    text = "example.org/barn\n1234\nZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM=\n"
    assert signed(text) == NOTE
    signature = "mqG4uMh1yxzw6JoSR2K5jSmkzVm2VlOg7pmC7B6IrYqIpk/Vv5bKcEkCy3I1JOzT8vKq5Tokaz4povd5TV9s0h/0pAU="
    assert f"{text}\n— example.org/barn {signature}\n" == NOTE
    assert VKEY == "example.org/barn+9aa1b8b8+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
    empty = sign_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT), KEY)
    assert empty == signed("example.org/barn\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")
    assert parse_checkpoint(empty, VKEY) == Checkpoint(ORIGIN, 0, EMPTY_ROOT)


def test_the_verifier_key_of_the_specification_of_signed_notes() -> None:
    # The Go checksum database's key, as published: name, key id and key belong together.
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    origin, public = parse_vkey(text)
    assert origin == "sum.golang.org"
    assert vkey(origin, public) == text


def test_parses_what_was_signed() -> None:
    assert parse_checkpoint(NOTE, VKEY) == HEAD
    assert parse_vkey(VKEY) == (ORIGIN, KEY.public)


@given(
    st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="+"), min_size=1, max_size=20
    ),
    st.integers(0, 2**53 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_any_checkpoint_round_trips(origin: str, size: int, root: bytes) -> None:
    head = Checkpoint(origin, size, root)
    assert parse_checkpoint(sign_checkpoint(head, KEY), vkey(origin, KEY.public)) == head
    assert parse_vkey(vkey(origin, KEY.public)) == (origin, KEY.public)


def test_every_flipped_bit_is_refused() -> None:
    for data, parse in ((NOTE, lambda text: parse_checkpoint(text, VKEY)), (VKEY, parse_vkey)):
        raw = data.encode()
        for bit in range(8 * len(raw)):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BarnraiseError):
                parse(changed.decode(errors="surrogateescape"))


def test_every_cut_or_longer_note_is_refused() -> None:
    for length in range(len(NOTE)):
        with pytest.raises(FormatError):
            parse_checkpoint(NOTE[:length], VKEY)
    for length in range(len(VKEY)):
        with pytest.raises(BarnraiseError):
            parse_vkey(VKEY[:length])
    for text in (NOTE + "\n", "\n" + NOTE, NOTE + NOTE, NOTE.replace("\n", "\r\n"), "\ufeff" + NOTE):
        with pytest.raises(FormatError):
            parse_checkpoint(text, VKEY)


ROOT = "ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM="


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n01234\n{ROOT}\n",
        f"{ORIGIN}\n00\n{ROOT}\n",
        f"{ORIGIN}\n+1234\n{ROOT}\n",
        f"{ORIGIN}\n-1\n{ROOT}\n",
        f"{ORIGIN}\n 1234\n{ROOT}\n",
        f"{ORIGIN}\n1_234\n{ROOT}\n",
        f"{ORIGIN}\n٣\n{ROOT}\n",
        f"{ORIGIN}\n\n{ROOT}\n",
        f"{ORIGIN}\n{2**53}\n{ROOT}\n",
        f"{ORIGIN}\n{10**30}\n{ROOT}\n",
        f"{ORIGIN}\n0x10\n{ROOT}\n",
        f"{ORIGIN}\n1234\n{ROOT}\nextension\n",
        f"{ORIGIN}\n1234\n{ROOT}\n\n",
        f"{ORIGIN}\n1234\n\n",
        f"{ORIGIN}\n1234\n",
        f"{ORIGIN}\n1234\n{ROOT[:-2]}N=\n",
        f"{ORIGIN}\n1234\n{ROOT.rstrip('=')}\n",
        f"{ORIGIN}\n1234\n{ROOT[:-4]}\n",
        f"{ORIGIN}\n1234\n{ROOT} \n",
        f"{ORIGIN}\n1234\n{ROOT.replace('+', '-')}\n",
        f"\n1234\n{ROOT}\n",
    ],
)
def test_a_signed_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_checkpoint(signed(text), VKEY)


def test_a_line_more_or_less_is_refused() -> None:
    text, line = NOTE.split("\n\n")
    second = signed(text + "\n", "witness.example", OTHER).split("\n\n")[1]
    for note in (
        f"{text}\n\n{line}{second}",
        f"{text}\n\n{second}{line}",
        f"{text}\n\n{line}{line}",
        f"{text}\n\n",
        f"{text}\n\n\n{line}",
        f"{text}\n\n{line}".replace("— ", "- "),
        f"{text}\n\n{line}".replace("— ", "—  "),
    ):
        with pytest.raises(FormatError):
            parse_checkpoint(note, VKEY)


def test_another_key_or_log_is_refused() -> None:
    text = HEAD.text()
    other = text.replace(ORIGIN, "example.org/shed")
    for note, verifier in (
        (NOTE, vkey(ORIGIN, OTHER.public)),
        (NOTE, vkey("example.org/shed", KEY.public)),
        (signed(text, key=OTHER), VKEY),
        (signed(text, "example.org/shed"), VKEY),
        (signed(other), VKEY),
        (signed(other, "example.org/shed"), VKEY),
    ):
        with pytest.raises(SignatureError):
            parse_checkpoint(note, verifier)


@pytest.mark.parametrize(
    "origin", ["", " ", "a b", "a+b", "a\n", "\n", "é", "a\x7f", "a\u00a0b", "a" * 129, "\ud800", "a\tb"]
)
def test_unusable_origins_are_refused(origin: str) -> None:
    with pytest.raises(FormatError):
        Checkpoint(origin, 0, EMPTY_ROOT)
    with pytest.raises(FormatError):
        vkey(origin, KEY.public)


def test_impossible_checkpoints_are_refused() -> None:
    for size, root in ((-1, EMPTY_ROOT), (2**53, EMPTY_ROOT), (0, b""), (0, bytes(33))):
        with pytest.raises(FormatError):
            Checkpoint(ORIGIN, size, root)


def test_verifier_keys_have_one_form() -> None:
    origin, key_id, key = VKEY.split("+", 2)
    public = bytes.fromhex(KEY.public[8:])

    def typed(kind: bytes, raw: bytes) -> str:
        identity = hashlib.sha256(ORIGIN.encode() + b"\n" + kind + raw).digest()[:4].hex()
        return f"{ORIGIN}+{identity}+{base64.b64encode(kind + raw).decode()}"

    assert typed(b"\x01", public) == VKEY
    identity_point = b"\x01" + bytes(31)
    for text in (
        f"{origin}+{key_id.upper()}+{key}",
        f"{origin}+{key_id[1:]}+{key}",
        f"{origin}+00000000+{key}",
        f"{origin}+{key_id}+{key}=",
        f"{origin}+{key_id}+{key}\n",
        f"shed+{key_id}+{key}",
        typed(b"\x02", public),
        typed(b"\x01", public[1:]),
        typed(b"\x01", public + b"\0"),
        typed(b"\x01", identity_point),
        "",
        "++",
    ):
        with pytest.raises((FormatError, SignatureError)):
            parse_vkey(text)
    with pytest.raises(SignatureError):
        vkey(ORIGIN, "ed25519:" + identity_point.hex())


@given(st.text(max_size=120))
def test_bad_text_stays_in_the_family(text: str) -> None:
    with pytest.raises(BarnraiseError):
        parse_checkpoint(text, VKEY)
    with pytest.raises(BarnraiseError):
        parse_checkpoint(NOTE, text)
