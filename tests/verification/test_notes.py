"""Checkpoints and verifier keys: golden text, one accepted form."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification import notes
from verification.errors import BarnraiseError, FormatError, SignatureError
from verification.keys import PrivateKey, verify
from verification.merkle import EMPTY_ROOT
from verification.notes import (
    Checkpoint,
    Cosigned,
    cosign,
    cosign_text,
    note_origin,
    open_note,
    parse_checkpoint,
    parse_cosigned,
    parse_vkey,
    parse_witness_vkey,
    plain_note,
    sign_checkpoint,
    vkey,
    witness_vkey,
)

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


# Cosignatures (C2SP tlog-cosignature)

GOLDEN_LINE = (
    "— witness.example/one 1YbcZgAAAABkGFDLxOHZzS5M7T7UdfE7dF7/5n64JPbtCF5YyZTH3F7ARlP/"
    "3W2Jah0i5h7t+sSiuB8zhH7zr8SyYVt9f1+zUGKzAg==\n"
)
GOLDEN_WITNESS = "witness.example/one+d586dc66+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
WITNESSES = [PrivateKey.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
NAMES = ("witness.example/one", "witness.example/two", "three")
WITNESS_VKEYS = [witness_vkey(name, key.public) for name, key in zip(NAMES, WITNESSES, strict=True)]
LINES = [cosign(HEAD, NAMES[i], WITNESSES[i], 1_700_000_000 + i) for i in range(3)]
MANY = NOTE + "".join(LINES)


def cosigned_line(
    text: str, name: str = NAMES[0], key: PrivateKey = WITNESSES[0], time: int = 5, kind: bytes = b"\x04"
) -> str:
    """A cosignature written here, from the specification, not by the module."""
    public = bytes.fromhex(key.public[8:])
    key_id = hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]
    signature = key.sign(b"cosignature/v1\ntime %d\n" % time + text.encode())
    return f"— {name} {base64.b64encode(key_id + time.to_bytes(8, 'big') + signature).decode()}\n"


def test_golden_cosignature_and_its_key() -> None:
    line = cosign(HEAD, NAMES[0], WITNESSES[0], 1679315147)
    assert line == cosigned_line(HEAD.text(), time=1679315147)
    assert line == GOLDEN_LINE
    assert WITNESS_VKEYS[0] == GOLDEN_WITNESS
    assert parse_witness_vkey(WITNESS_VKEYS[0]) == (NAMES[0], WITNESSES[0].public)


def test_the_two_types_of_key_are_not_each_other() -> None:
    with pytest.raises(FormatError, match="another type"):
        parse_witness_vkey(VKEY)
    with pytest.raises(FormatError, match="another type"):
        parse_vkey(WITNESS_VKEYS[0])


def test_the_example_of_the_specification_of_signed_notes_verifies() -> None:
    # c2sp.org/signed-note, "Example": the key is used as it stands there, on a text that is no checkpoint.
    text = "This is an example message.\n"
    origin, public = parse_vkey("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    raw = base64.b64decode(
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
    )
    assert origin == "example.com/foo"
    assert raw[:4].hex() == "530d903a"
    verify(public, text.encode(), raw[4:])
    note = f"{text}\n— {origin} {base64.b64encode(raw).decode()}\n"
    assert notes._split_note(note) == (text, [(origin, raw)])
    with pytest.raises(FormatError, match="not a checkpoint"):
        open_note(note, ("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",))


@pytest.mark.parametrize("time", [0, -1, 2**53, 2**63])
def test_impossible_times_are_not_signed(time: int) -> None:
    with pytest.raises(FormatError, match="time is out of range"):
        cosign(HEAD, NAMES[0], WITNESSES[0], time)


def test_names_that_no_witness_can_have() -> None:
    for name in ("", "a b", "a+b", "é", "x" * 129):
        with pytest.raises(FormatError):
            cosign(HEAD, name, WITNESSES[0], 1)
        with pytest.raises(FormatError):
            witness_vkey(name, WITNESSES[0].public)


def test_any_choice_of_witnesses_in_order_is_read() -> None:
    for chosen in range(8):
        picked = [i for i in range(3) if chosen >> i & 1]
        found = parse_cosigned(NOTE + "".join(LINES[i] for i in picked), VKEY, WITNESS_VKEYS)
        assert found == Cosigned(
            HEAD, tuple(WITNESS_VKEYS[i] for i in picked), tuple(1_700_000_000 + i for i in picked)
        )
        assert found.names == tuple(NAMES[i] for i in picked)
    assert plain_note(MANY) == NOTE


@pytest.mark.parametrize(
    "tail",
    [
        LINES[1] + LINES[0],
        LINES[0] + LINES[0],
        LINES[0] + cosigned_line(HEAD.text(), time=9),
        cosigned_line(HEAD.text(), "stranger"),
        cosigned_line(HEAD.text(), key=OTHER),
        cosigned_line(HEAD.text(), kind=b"\x01"),
        signed(HEAD.text(), NAMES[0], WITNESSES[0]).split("\n\n")[1],
        LINES[0][:-1],
        LINES[0] + "\n",
        "\n" + LINES[0],
        LINES[0].replace("—", "-"),
        LINES[0].replace("— ", "—  "),
        LINES[0].replace("\n", "\r\n"),
        LINES[0].replace("\n", " \n"),
        NOTE.split("\n\n")[1],
        "x\n",
        "\n",
    ],
)
def test_no_other_line_stands_in_a_run_folder(tail: str) -> None:
    with pytest.raises(FormatError):
        parse_cosigned(NOTE + tail, VKEY, WITNESS_VKEYS)


def test_a_cosignature_must_hold() -> None:
    for tail in (
        cosigned_line(HEAD.text().replace("1234", "1235")),
        cosigned_line(HEAD.text(), time=7).replace(
            cosigned_line(HEAD.text(), time=7)[22:40], cosigned_line(HEAD.text(), time=8)[22:40]
        ),
    ):
        with pytest.raises(BarnraiseError):
            parse_cosigned(NOTE + tail, VKEY, WITNESS_VKEYS)
        with pytest.raises(BarnraiseError):
            open_note(NOTE + tail, (VKEY,), WITNESS_VKEYS)
    for time in (0, 2**53, 2**63, 2**64 - 1):
        with pytest.raises(FormatError, match="time is out of range"):
            parse_cosigned(NOTE + cosigned_line(HEAD.text(), time=time), VKEY, WITNESS_VKEYS)
    for time in (0, 2**63, 2**64 - 1):
        with pytest.raises(FormatError, match="time is out of range"):
            open_note(NOTE + cosigned_line(HEAD.text(), time=time), (VKEY,), WITNESS_VKEYS)
    late = open_note(NOTE + cosigned_line(HEAD.text(), time=2**63 - 1), (VKEY,), WITNESS_VKEYS)
    assert late.times == (2**63 - 1,)


def test_every_flipped_bit_of_a_cosigned_note_is_refused() -> None:
    raw = MANY.encode()
    for bit in range(8 * len(NOTE.encode()), 8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BarnraiseError):
            parse_cosigned(changed.decode(errors="surrogateescape"), VKEY, WITNESS_VKEYS)
    for length in range(len(NOTE) + 1, len(MANY)):
        if MANY[length - 1] != "\n":
            with pytest.raises(FormatError):
                parse_cosigned(MANY[:length], VKEY, WITNESS_VKEYS)


# Notes of strangers (C2SP signed-note and tlog-checkpoint)


def test_unknown_lines_are_ignored_and_known_ones_must_hold() -> None:
    unknown = cosigned_line(HEAD.text(), "stranger", OTHER)
    namesake = cosigned_line(HEAD.text(), NAMES[0], OTHER)
    mldsa = f"— pq {base64.b64encode(bytes(2424)).decode()}\n"
    text, line = NOTE.split("\n\n")
    for note in (
        NOTE + unknown + mldsa + LINES[2] + namesake + LINES[0],
        f"{text}\n\n{LINES[2]}{unknown}{line}{LINES[0]}",
        NOTE + LINES[2] + LINES[2] + LINES[0] + cosigned_line(HEAD.text(), time=9) + line,
    ):
        found = open_note(note.encode(), (VKEY,), WITNESS_VKEYS)
        assert (found.checkpoint, found.extensions, found.log_vkey) == (HEAD, (), VKEY)
        assert found.cosigners == (WITNESS_VKEYS[2], WITNESS_VKEYS[0])
        assert found.times == (1_700_000_002, 1_700_000_000)
        assert found.note == NOTE
    assert open_note(MANY, (VKEY,)).cosigners == ()
    for bad in (
        cosigned_line(HEAD.text().replace("1234", "1235")),
        LINES[0] + cosigned_line(HEAD.text() + "x\n"),
        signed(HEAD.text() + "x\n").split("\n\n")[1],
    ):
        with pytest.raises(SignatureError, match="does not hold"):
            open_note(NOTE + bad, (VKEY,), WITNESS_VKEYS)
    public = bytes.fromhex(WITNESSES[0].public[8:])
    short = hashlib.sha256(NAMES[0].encode() + b"\n\x04" + public).digest()[:4] + bytes(71)
    with pytest.raises(SignatureError, match="wrong length"):
        open_note(f"{NOTE}— {NAMES[0]} {base64.b64encode(short).decode()}\n", (VKEY,), WITNESS_VKEYS)


def test_some_known_key_of_the_log_must_sign() -> None:
    other = vkey(ORIGIN, OTHER.public)
    assert open_note(NOTE, (other, VKEY)).log_vkey == VKEY
    both = NOTE + signed(HEAD.text(), key=OTHER).split("\n\n")[1]
    assert open_note(both, (other, VKEY)).log_vkey == VKEY
    for note, logs in (
        (NOTE, ()),
        (NOTE, (other,)),
        (NOTE, (vkey("example.org/shed", KEY.public),)),
        (signed(HEAD.text(), "example.org/shed"), (VKEY, vkey("example.org/shed", KEY.public))),
        (f"{HEAD.text()}\n{LINES[0]}", (VKEY,)),
    ):
        with pytest.raises(SignatureError, match="no known key of the log"):
            open_note(note, logs, WITNESS_VKEYS)


def test_extension_lines_are_part_of_what_is_signed() -> None:
    text = HEAD.text() + "an extension\nand one more\n"
    found = open_note(signed(text) + cosigned_line(text), (VKEY,), WITNESS_VKEYS)
    assert found.extensions == ("an extension", "and one more")
    assert (found.text, found.cosigners) == (text, (WITNESS_VKEYS[0],))
    with pytest.raises(SignatureError):
        open_note(signed(text) + LINES[0], (VKEY,), WITNESS_VKEYS)
    assert cosign_text(text, NAMES[0], WITNESSES[0], 5) == cosigned_line(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n01234\n{ROOT}\n",
        f"{ORIGIN}\n٣\n{ROOT}\n",
        f"{ORIGIN}\n{10**16}\n{ROOT}\n",
        f"{ORIGIN}\n{2**53}\n{ROOT}\n",
        f"{ORIGIN}\n1234\n{ROOT[:-4]}\n",
        f"{ORIGIN}\n1234\n",
        f"{ORIGIN}\n1234\n{ROOT}\n\n",
        f"{ORIGIN}\n1234\n{ROOT}\n\nextension\n",
        f"\n{ORIGIN}\n1234\n{ROOT}\n",
        f"{ORIGIN}\n1234\n{ROOT}\nan\textension\n",
        f"{ORIGIN}\n1234\n{ROOT}\nan\x00extension\n",
        f"{ORIGIN}\n1234\n{ROOT}\nan\rextension\n",
    ],
)
def test_a_stranger_signs_no_other_text(text: str) -> None:
    with pytest.raises(FormatError):
        open_note(signed(text), (VKEY,))


def test_the_text_ends_at_the_last_empty_line() -> None:
    text, line = NOTE.split("\n\n")
    with pytest.raises(FormatError, match="not a checkpoint"):
        open_note(f"{text}\n\n{line}\n{line}", (VKEY,))
    assert notes._split_note(f"a\n\n{line}\n{line}")[0] == f"a\n\n{line}"


@pytest.mark.parametrize(
    "line",
    ["x", "", "— a", "— a ", "— a AAAA", "— a AAAAA", "—  AAAAAAAA", "— a+b AAAAAAAA", "— a b AAAAAAAA",
     "— a\u00a0b AAAAAAAA", "— a\u2003 AAAAAAAA", "- a AAAAAAAA", "— a AAAAAAA=x", "— a AAAAAA=="],
)  # fmt: skip
def test_a_malformed_line_of_anybody_refuses_the_note(line: str) -> None:
    with pytest.raises(FormatError):
        open_note(f"{NOTE}{line}\n", (VKEY,))


def test_a_note_ends_with_a_newline() -> None:
    with pytest.raises(FormatError, match="not a signed note"):
        open_note(NOTE[:-1] + "x", (VKEY,))


def test_notes_are_bounded() -> None:
    line = cosigned_line(HEAD.text(), "stranger", OTHER)
    assert open_note(NOTE + line * 127, (VKEY,)).checkpoint == HEAD
    with pytest.raises(FormatError, match="too many signatures"):
        open_note(NOTE + line * 128, (VKEY,))
    long = f"— pq {base64.b64encode(bytes(notes.MAX_NOTE_BYTES)).decode()}\n"
    with pytest.raises(FormatError, match="too long"):
        open_note(NOTE + long, (VKEY,))
    for data in (b"\xff\n\n\xe2\x80\x94 a AAAAAAAA\n", "\ud800\n\n— a AAAAAAAA\n"):
        with pytest.raises(FormatError, match="UTF-8"):
            open_note(data, (VKEY,))
    assert note_origin(MANY) == ORIGIN
    for text in (NOTE[:-1], NOTE.split("\n\n")[0], "\n\n" + NOTE.split("\n\n")[1], "", "\n\n", "\n\n\n"):
        with pytest.raises(FormatError):
            note_origin(text)


@given(st.binary(max_size=200), st.integers(0, len(MANY.encode())), st.integers(0, 40))
def test_bad_bytes_of_strangers_stay_in_the_family(junk: bytes, at: int, cut: int) -> None:
    raw = MANY.encode()
    data = raw[:at] + junk + raw[at + cut :]
    found: list[Checkpoint] = []
    with suppress(BarnraiseError):
        found.append(open_note(data, (VKEY,), WITNESS_VKEYS).checkpoint)
    with suppress(BarnraiseError):
        found.append(parse_cosigned(data.decode(errors="surrogateescape"), VKEY, WITNESS_VKEYS).checkpoint)
    assert set(found) <= {HEAD}
    with pytest.raises(BarnraiseError):
        open_note(junk, (VKEY,), WITNESS_VKEYS)
