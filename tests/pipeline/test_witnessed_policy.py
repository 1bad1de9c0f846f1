"""Policies that a run starts with and goes on with: which will do, which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.folder import RunFolder
from pipeline.run import create_run
from pipeline.witnessing import Enlisted
from tests.pipeline.witnessed import NEVER, ONE, THREE, TWO, CutError, of, start
from tests.tiny import WITNESSES, TinyWitnesses, quiet, tiny_config
from verification.errors import FormatError, ProtocolError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.notes import witness_vkey
from verification.records import RoundClose, RoundOpen


def policy(count: int, quorum: str, url: str = " http://localhost:1") -> bytes:
    keys = [PrivateKey.generate().public for _ in range(count)]
    lines = [f"witness w{i} {witness_vkey(f'w.example/{i}', key)}{url}" for i, key in enumerate(keys)]
    names = " ".join(f"w{i}" for i in range(count))
    return "\n".join([*lines, f"group all-of-them {quorum} {names}", "quorum all-of-them", ""]).encode()


def test_witnesses_of_a_policy_are_kept_for_a_resume(tmp_path: Path) -> None:
    text = policy(3, "2")
    enlisted = Enlisted.by_policy(text)
    assert (enlisted.required, len(enlisted.witnesses)) == (2, 3)
    assert Enlisted.kept(tmp_path) is None
    enlisted.keep(tmp_path)
    again = Enlisted.kept(tmp_path)
    assert again
    assert [vkey for vkey, _ in again.witnesses] == [vkey for vkey, _ in enlisted.witnesses]
    assert (tmp_path / "witness-policy").read_bytes() == text


@pytest.mark.parametrize(
    "text",
    [
        policy(2, "all", ""),
        policy(17, "9"),
        policy(2, "1"),
        policy(4, "2"),
        policy(3, "any"),
        b"quorum none\n",
        policy(1, "1").replace(b"quorum a", b"quorum b"),
    ],
)
def test_a_policy_that_no_run_can_use_is_refused(text: bytes) -> None:
    with pytest.raises((UsageError, FormatError)):
        Enlisted.by_policy(text)


def test_a_policy_asks_for_more_than_half_and_says_why() -> None:
    for count, enough in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (16, 9)):
        assert Enlisted.by_policy(policy(count, str(enough))).required == enough
        if enough > 1:
            with pytest.raises(UsageError, match=f"at least {enough} of {count}.*another history"):
                Enlisted.by_policy(policy(count, str(enough - 1)))


def test_a_policy_in_another_order_or_with_other_witnesses_will_do_for_a_resume(tmp_path: Path) -> None:
    run = start(tmp_path, audit=NEVER, run={"rounds": 2})
    stranger = TinyWitnesses(tmp_path / "strangers")  # of the same names, with other keys
    one, two, three = run.witnesses.enlisted.witnesses
    run.witnesses.enlisted = Enlisted(2, (three, two, one))

    def seen(close: RoundClose) -> None:
        del close
        raise CutError

    with pytest.raises(CutError):
        run.go(seen=seen)
    run.witnesses.enlisted = Enlisted(2, (three, stranger.enlisted.witnesses[1], one))
    notices: list[str] = []
    run.go(notices.append)
    assert [open_.witnesses for open_ in of(RoundOpen, run.records())] == [WITNESSES, (ONE, THREE)]
    assert stranger.asked == []
    assert sum(line.startswith(f"{TWO}: the policy does not say where") for line in notices) == 1
    assert sum("no witness of this run" in line for line in notices) == 1


def test_a_run_whose_fullest_draw_fits_no_entry_is_not_made(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        del method, body
        asked.append(path)
        raise StorageError("away")

    keys = [PrivateKey.generate().public for _ in range(20)]
    ways = [(witness_vkey(f"{i:02x}" * 64, key), ask) for i, key in enumerate(keys)]
    config = tiny_config(train={"steps": [1] * 53}, audit={"auditors": 116})
    for count, error in ((20, UsageError), (1, ProtocolError)):  # one witness fits, and is asked
        with pytest.raises(error, match="does not fit a log entry" if count > 1 else "chain"):
            create_run(
                config,
                RunFolder(tmp_path / "run"),
                tmp_path / "home",
                quiet,
                None,
                Enlisted(count, tuple(ways[:count])),
            )
        assert len(asked) == (0 if count > 1 else 1)
        assert not (tmp_path / "run").exists()
