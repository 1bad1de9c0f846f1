"""How the errors read, and that they survive a process boundary."""

from __future__ import annotations

import pickle

import pytest

from verification import errors
from verification.errors import BarnraiseError, FormatError, StorageError, printable

FAMILY = [
    errors.UsageError,
    errors.FormatError,
    errors.SignatureError,
    errors.ProtocolError,
    errors.StorageError,
    errors.WorkError,
]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FormatError("bad"), "bad."),
        (FormatError("bad", expected=1), "bad; expected 1."),
        (FormatError("bad", got=0), "bad; got 0."),
        (FormatError("bad", expected=1, got=0), "bad; expected 1, got 0."),
        (StorageError("bad", got="x", hint="Do it."), "bad; got x. Do it."),
    ],
)
def test_an_error_says_what_was_expected_and_found(error: BarnraiseError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("kind", FAMILY)
def test_errors_cross_a_process_boundary_whole(kind: type[BarnraiseError]) -> None:
    error = kind("what", expected=[1], got={"a": 2}, hint="Hint.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.what, back.expected, back.got, back.hint) == ("what", [1], {"a": 2}, "Hint.")
    assert str(back) == str(error)
    assert isinstance(back, BarnraiseError)


def test_the_kinds_are_told_apart() -> None:
    for kind in FAMILY:
        with pytest.raises(kind) as caught:
            raise kind("x")
        assert not any(isinstance(caught.value, other) for other in FAMILY if other is not kind)


def test_what_is_not_finite_is_a_kind_of_work_error() -> None:
    error = errors.NotFiniteError("what", expected=1, got="nan", hint="Hint.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is errors.NotFiniteError
    assert isinstance(back, errors.WorkError)
    assert str(back) == str(error)
    assert not isinstance(errors.WorkError("x"), errors.NotFiniteError)


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        ("\ud800", "\\ud800"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\x1bE\nb\rc", "a\\x1bE\nb\\rc"),
        ("\u202eabc", "\\u202eabc"),
        ("é — µ 漢", "é — µ 漢"),
    ],
)
def test_what_a_peer_said_cannot_steer_a_terminal(got: str, shown: str) -> None:
    text = str(FormatError("bad", got=got))
    assert text == f"bad; got {shown}."
    assert text.encode("utf-8")
    assert text.replace("\n", "").isprintable()
    assert printable("a\nb") == "a\\nb"
