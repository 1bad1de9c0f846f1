"""Policy files and verifier keys at level 1, each rule with a file that only it refuses."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.verification.test_fsck_bytes import public, vkey, witness_vkey
from verification.errors import FormatError, SignatureError, UsageError
from verification.fsck_policy import NoteKey, parse_note_key, parse_policy

W = [witness_vkey(f"w{i}.example") for i in range(1, 4)]
THREE = "".join(f"witness w{i} {key}\n" for i, key in enumerate(W, 1))


def note_key(name: str, algorithm: int, key: bytes) -> str:
    """A verifier key whose key id is right, whatever else is not."""
    data = bytes([algorithm]) + key
    key_id = hashlib.sha256(name.encode() + b"\n" + data).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(data).decode()}"


def test_verifier_keys() -> None:
    for text, algorithm in ((vkey(), 1), (W[0], 4)):
        key = parse_note_key(text)
        assert (key.name, key.algorithm) == (text.split("+")[0], algorithm)
        assert key.key_id.hex() == text.split("+")[1]
    assert parse_note_key(W[0]).public == public("w1.example")
    name, key_id, data = W[0].split("+", 2)
    assert parse_note_key(f"{name}+{key_id.upper()}+{data}") == parse_note_key(W[0])
    assert parse_note_key(note_key("m", 6, bytes(1312))) == NoteKey("m", 6, bytes(1312))


NAME, KEY_ID, DATA = W[0].split("+", 2)
NOT_A_KEY = "not a verifier key"
OTHER_KIND = "a verifier key of an unknown kind or length"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (NAME, NOT_A_KEY),
        (f"{NAME}+{KEY_ID}", NOT_A_KEY),
        (note_key("", 4, public("w1.example")), NOT_A_KEY),
        (f"{NAME}+{KEY_ID[:7]}+{DATA}", NOT_A_KEY),
        (f"{NAME}+{KEY_ID}0+{DATA}", NOT_A_KEY),
        (f"{NAME}+{KEY_ID[:7]}g+{DATA}", NOT_A_KEY),
        (f"{NAME}+{KEY_ID}+", OTHER_KIND),
        (note_key("w", 2, bytes(32)), OTHER_KIND),
        (note_key("w", 4, public("w1.example")[:31]), OTHER_KIND),
        (note_key("w", 1, public("w1.example") + b"\0"), OTHER_KIND),
        (note_key("w", 6, bytes(32)), OTHER_KIND),
        (f"{NAME}+00000000+{DATA}", "a verifier key has another key id"),
        (f"{NAME}+{KEY_ID}+A", "not base64"),
    ],
)
def test_what_is_no_verifier_key(text: str, what: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_note_key(text)
    assert caught.value.what == what


@pytest.mark.parametrize("algorithm", [1, 4])
def test_a_verifier_key_of_small_order(algorithm: int) -> None:
    with pytest.raises(SignatureError, match="a key has small order"):
        parse_note_key(note_key("w", algorithm, b"\x01" + bytes(31)))


def refused(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy(text.encode("latin-1"))
    assert caught.value.what == what


NOT_A_LINE = "not a log, witness, group or quorum"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("band g 1 w1", NOT_A_LINE),
        ("group", NOT_A_LINE),
        ("group g", NOT_A_LINE),
        ("group g 1", NOT_A_LINE),
        ("log", NOT_A_LINE),
        (f"log {vkey()} https://log.example more", NOT_A_LINE),
        (f"logs {vkey()}", NOT_A_LINE),
        ("witness w", NOT_A_LINE),
        (f"witness w {witness_vkey('w')} https://w.example more", NOT_A_LINE),
        (f"watcher w {witness_vkey('w')}", NOT_A_LINE),
        ("quorum", NOT_A_LINE),
        ("quorum w1 w2", NOT_A_LINE),
        ("Quorum w1", NOT_A_LINE),
        (f"witness none {witness_vkey('w')}", "a name is taken"),
        (f"witness w1 {witness_vkey('w')}", "a name is taken"),
        ("group none 1 w1", "a name is taken"),
        ("group w1 1 w2", "a name is taken"),
        ("group g 1 w4", "a name is not defined before it is used"),
        ("group g 1 none", "a name is not defined before it is used"),
        ("quorum g", "a name is not defined before it is used"),
        ("group g 1 w1 w1", "a name is in two groups, or twice in one"),
        (f"witness w {W[1]}", "a witness stands twice"),
        (f"witness w {vkey()}", "a key of another use"),
        (f"log {witness_vkey('w')}", "a key of another use"),
        ("log key", NOT_A_KEY),
        (f"log {note_key('w', 1, bytes(32))}", "a key has small order"),
        ("group g 0 w1", "a group's threshold is not any, all or 1 to 1"),
        ("group g 3 w1 w2", "a group's threshold is not any, all or 1 to 2"),
        ("group g 01 w1", "a group's threshold is not any, all or 1 to 1"),
        ("group g most w1", "a group's threshold is not any, all or 1 to 1"),
        ("group g 1111111111 w1", "a group's threshold is not any, all or 1 to 1"),
        ("quorum w1\r", "a control character"),
        ("# \x7f", "a control character"),
    ],
)
def test_a_line_that_is_refused(line: str, what: str) -> None:
    refused(f"{THREE}{line}\n", f"the witness policy, line 4: {what}")


def test_names_that_groups_take() -> None:
    group = f"{THREE}group g any w1\n"
    refused(f"{group}witness g {witness_vkey('w')}\n", "the witness policy, line 5: a name is taken")
    refused(f"{group}group g any w2\n", "the witness policy, line 5: a name is taken")
    refused(
        f"{group}group h any w1\n", "the witness policy, line 5: a name is in two groups, or twice in one"
    )
    assert parse_policy(f"{group}quorum g\n".encode()).groups["g"].members == ("w1",)


def test_second_lines() -> None:
    refused(f"log {vkey()}\nlog {vkey()}\n", "the witness policy, line 2: a log stands twice")
    refused(f"{THREE}quorum w1\nquorum w1\n", "the witness policy, line 5: a second quorum")
    refused(f"{THREE}quorum none\nquorum w1\n", "the witness policy, line 5: a second quorum")


def test_a_policy_as_a_whole() -> None:
    refused(THREE, "the witness policy has no quorum line")
    nobody = "the witness policy names neither a log nor a witness that has to sign"
    refused(f"{THREE}quorum none\n", nobody)
    assert parse_policy(f"log {vkey()}\nquorum none\n".encode()).least() == 0
    end = f"{THREE}quorum w1\n#"
    longest = end + "x" * ((1 << 20) - len(end))
    assert parse_policy(longest.encode()).quorum == "w1"
    refused(f"{longest}x", "the witness policy is too long")


@pytest.mark.parametrize(("threshold", "least"), [("any", 1), ("all", 3), ("1", 1), ("2", 2), ("3", 3)])
def test_thresholds(threshold: str, least: int) -> None:
    policy = parse_policy(f"{THREE}group g {threshold} w1 w2 w3\nquorum g\n".encode())
    signers = [policy.witnesses[f"w{i}"].signer for i in (1, 2, 3)]
    assert policy.least() == least
    assert [policy.satisfied(signers[:n]) for n in range(4)] == [n >= least for n in range(4)]
    assert policy.known([*signers[1:], ("w1", public("eve"))]) == 2
    assert policy.described() == f"g: {least} of w1, w2, w3"


def test_groups_are_bounded() -> None:
    groups = ["group g0 1 w1"] + [f"group g{i} 1 g{i - 1}" for i in range(1, 257)]
    assert parse_policy(f"{THREE}{chr(10).join(groups[:256])}\nquorum g255\n".encode()).least() == 1
    refused(THREE + "\n".join(groups), "the witness policy, line 260: more than 256 groups")
