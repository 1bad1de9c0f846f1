"""Draws: the coordinator's hash chain, seeds, who is audited, by whom, and who gets a second look.

Owns section 6 of docs/protocol.md up to "Second look". Does not own what follows from verdicts, and knows
no record: its inputs are the few fields that a draw depends on.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal, NoReturn

from verification.beacon import Pulse
from verification.durable import read_secret, write_secret
from verification.encoding import digest_hex, hash_object
from verification.errors import FormatError, ProtocolError, UsageError
from verification.notes import Checkpoint
from verification.tolerance import Tolerances, eligible

PPM = 1_000_000
MAX_CHAIN = 1 << 24
_LINK = re.compile(r"[0-9a-f]{64}\Z")
_FILE = re.compile(rb"barnraise-chain-v1\n([0-9a-f]{64})\n([1-9][0-9]{0,7})\n\Z")
_FILE_BYTES = 19 + 64 + 1 + 8 + 1


class HashChain:
    """A secret `x_0` and the links that are shown backwards: link t is `x_(length - t)`.

    Never shows its secret and cannot be pickled. The first link costs `length` hashes, each other one about
    the root of that, however long a run is.
    """

    __slots__ = ("_marks", "_secret", "_stride", "length")

    def __init__(self, secret: bytes, length: int) -> None:
        if len(secret) != 32:
            raise FormatError("a chain's secret has the wrong length", expected="32 bytes", got=len(secret))
        if not 1 <= length <= MAX_CHAIN:
            raise FormatError("a chain's length is out of range", expected=f"1 to {MAX_CHAIN}", got=length)
        self._secret = secret
        self._stride = isqrt(length) + 1
        self._marks: list[bytes] = []  # every _stride-th element, once one was asked for
        self.length = length

    @classmethod
    def generate(cls, length: int) -> HashChain:
        """A new chain from the operating system's randomness. Raises FormatError for a bad length."""
        return cls(secrets.token_bytes(32), length)

    @classmethod
    def load(cls, path: Path) -> HashChain:
        """Read a chain file. Raises UsageError as `read_secret` does, FormatError for other content."""
        found = _FILE.match(read_secret(path, _FILE_BYTES))
        if not found:
            raise FormatError(
                f"{path} is not a chain file", expected="barnraise-chain-v1, 64 hex digits, the length"
            )
        return cls(bytes.fromhex(found[1].decode()), int(found[2]))

    def save(self, path: Path) -> None:
        """Create a chain file, mode 0600. Raises UsageError when it exists, StorageError on a full disk."""
        write_secret(path, f"barnraise-chain-v1\n{self._secret.hex()}\n{self.length}\n".encode())

    @property
    def end(self) -> str:
        """`sha256:` text of `x_length`, for the manifest."""
        return "sha256:" + self._element(self.length).hex()

    def link(self, number: int) -> str:
        """Link `number`, from 1 to length, as 64 hex digits. Raises ProtocolError when there is none."""
        if not 1 <= number <= self.length:
            raise ProtocolError(
                "the hash chain has no such link",
                expected=f"1 to {self.length}",
                got=number,
                hint="A run uses two links a turn, void ones included.",
            )
        return self._element(self.length - number).hex()

    def _element(self, number: int) -> bytes:
        if not self._marks:
            marks = [self._secret]
            while len(marks) * self._stride <= self.length:
                marks.append(_hashed(marks[-1], self._stride))
            self._marks = marks
        return _hashed(self._marks[number // self._stride], number % self._stride)

    def __repr__(self) -> str:
        return f"HashChain(length={self.length})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            "a hash chain cannot be pickled or copied", hint="Pass the path of its file instead."
        )


def _hashed(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = hashlib.sha256(value).digest()
    return value


def verify_link(link_hex: str, previous: str) -> bool:
    """Whether SHA-256 of a link is the one before: its 64 hex digits, or for link 1 the manifest's `end`."""
    if not _LINK.match(link_hex):
        return False
    return hashlib.sha256(bytes.fromhex(link_hex)).hexdigest() == previous.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A roster entry, as far as a draw sees it. `audit_ppm` is its chance of an audit, in millionths."""

    slot: int
    operator: str
    numerics_class: str
    audit_ppm: int


@dataclass(frozen=True, slots=True)
class Auditor:
    """An auditor of the open."""

    member: str
    operator: str
    numerics_class: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn slot and the members to ask, in order, until one gives a verdict. May be nobody."""

    slot: int
    auditors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstLook:
    """A verdict of look 1: who gave it, who had been drawn for it, in order, and who of those missed it."""

    slot: int
    outcome: Literal["pass", "fail"]
    auditor: Auditor
    drawn: tuple[Auditor, ...]
    missed: Collection[str] = ()


def draw_seed(
    *,
    run: str,
    round_number: int,
    attempt: int,
    turn: int,
    look: Literal[1, 2],
    head: Checkpoint,
    link: str,
    witnesses: Sequence[tuple[str, str | None]] = (),
    beacon: Pulse | None = None,
) -> str:
    """The seed of a draw, as digest text. `head` is the head before the draw, `run` the run id as in records.

    `witnesses` are the names and links of the turn's witnesses, None where one gave none; `beacon` is the
    pulse that the draw shows, in look 1 only. Raises FormatError when `run` or a link is not of its form.
    """
    digest_hex(run)
    for text in (link, *(shown for _, shown in witnesses if shown is not None)):
        if not _LINK.match(text):
            raise FormatError("not a link of a hash chain", expected="64 hex digits", got=repr(text)[:80])
    return hash_object(
        "barnraise/draw/v1",
        {
            "attempt": attempt,
            "beacon": {"randomness": beacon.randomness, "round": beacon.round} if beacon else None,
            "head_root": head.root.hex(),
            "head_size": head.size,
            "link": link,
            "look": look,
            "round": round_number,
            "run": run,
            "turn": turn,
            "witnesses": [[name, shown] for name, shown in witnesses],
        },
    )


def uniform(seed: str, label: str, n: int) -> int:
    """A number below n, each equally likely, by rejection. Raises FormatError unless 1 <= n <= 2^64."""
    if not 1 <= n <= 1 << 64:
        raise FormatError("a draw has an impossible range", expected="1 to 2^64", got=n)
    limit = n * ((1 << 64) // n)
    counter = 0
    while True:
        digest = hash_object("barnraise/uniform/v1", {"counter": counter, "label": label, "seed": seed})
        number = int(digest_hex(digest)[:16], 16)
        if number < limit:
            return number % n
        counter += 1


def draw_audits(
    seed: str, roster: Iterable[Candidate], auditors: Sequence[Auditor], tolerances: Tolerances = ()
) -> tuple[Drawn, ...]:
    """Whom to audit and by whom: roster entries that win the draw, each with its eligible auditors shuffled.

    `auditors` is in the order of the open, which the result depends on.
    """
    return tuple(
        Drawn(entry.slot, _shuffled(seed, entry.slot, eligible(tolerances, entry, auditors)))
        for entry in roster
        if uniform(seed, f"audit/{entry.slot}", PPM) < entry.audit_ppm
    )


def draw_segments(seed: str, slot: int, wanted: int, count: int) -> tuple[int, ...]:
    """`wanted` of a slot's `count` segments, ascending, each set equally likely; all when that is as many."""
    left = list(range(count))
    if wanted >= count:
        return tuple(left)
    taken = [left.pop(uniform(seed, f"segments/{slot}/{i}", count - i)) for i in range(wanted)]
    return tuple(sorted(taken))


def _shuffled(seed: str, slot: int, auditors: Sequence[Auditor]) -> tuple[str, ...]:
    names = [auditor.member for auditor in auditors]
    for i in range(len(names) - 1, 0, -1):
        j = uniform(seed, f"auditors/{slot}/{i}", i + 1)
        names[i], names[j] = names[j], names[i]
    return tuple(names)


def draw_second_looks(seed: str, first_looks: Iterable[FirstLook], second_look_ppm: int) -> tuple[Drawn, ...]:
    """Which first looks get a second one, and by whom, by slot; `seed` is that of look 2.

    Always after a `fail`, by lot after a `pass`, never without an auditor of another operator than the
    first one's who has not missed look 1.
    """
    looks = []
    for first in sorted(first_looks, key=lambda first: first.slot):
        others = tuple(
            auditor.member
            for auditor in first.drawn
            if auditor.operator != first.auditor.operator and auditor.member not in first.missed
        )
        if others and (
            first.outcome == "fail" or uniform(seed, f"second/{first.slot}", PPM) < second_look_ppm
        ):
            looks.append(Drawn(first.slot, others))
    return tuple(looks)
