"""Witness policies: which logs and witnesses somebody trusts, and how many cosignatures are enough.

Owns the C2SP tlog-policy file format, restricted to Ed25519 keys. Does not own the cosignatures themselves.
Names and addresses are opaque bytes in the file; here they are text in which bytes that are not UTF-8 are
lone surrogates, so that two names are equal exactly when their bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from verification.errors import BarnraiseError, FormatError, UsageError
from verification.notes import parse_vkey, parse_witness_vkey

MAX_POLICY_BYTES = 1 << 18
MAX_DEFINITIONS = 256  # of logs, of witnesses and of groups
NONE = "none"
_ALLOWED = re.compile(rb"[\x09\x0a\x20-\x7e\x80-\xff]*\Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,3}\Z")
_SPACE = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class PolicyLog:
    """A log that the policy accepts; `url` is None where the file has none."""

    vkey: str
    url: str | None


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """A witness; `name` is the policy's own word for it, `vkey` holds the name it signs with."""

    name: str
    vkey: str
    url: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """A group, which witnesses what at least `k` of its members witness."""

    name: str
    k: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy; witnesses and groups in the file's order, `quorum` the name of one of them or `none`."""

    logs: tuple[PolicyLog, ...]
    witnesses: tuple[PolicyWitness, ...]
    groups: tuple[Group, ...]
    quorum: str

    @property
    def log_vkeys(self) -> tuple[str, ...]:
        """Verifier keys of the logs."""
        return tuple(log.vkey for log in self.logs)

    @property
    def witness_vkeys(self) -> tuple[str, ...]:
        """Verifier keys of the witnesses."""
        return tuple(witness.vkey for witness in self.witnesses)

    def satisfied_by(self, cosigners: Collection[str]) -> bool:
        """Whether cosignatures that hold, by these verifier keys, are enough."""
        if self.quorum == NONE:
            return True
        seen = {witness.name for witness in self.witnesses if witness.vkey in cosigners}
        for group in self.groups:  # members are defined before they are named
            if sum(member in seen for member in group.members) >= group.k:
                seen.add(group.name)
        return self.quorum in seen

    def threshold(self) -> tuple[int, tuple[PolicyWitness, ...]]:
        """The policy as plain k of all its witnesses, (k, witnesses).

        Raises UsageError when it is another rule, such as one over groups of groups.
        """
        names = {witness.name for witness in self.witnesses}
        if self.quorum == NONE:
            return 0, self.witnesses
        if names == {self.quorum}:
            return 1, self.witnesses
        for group in self.groups:
            if group.name == self.quorum and set(group.members) == names:
                return group.k, self.witnesses
        raise UsageError(
            "a run takes a number out of all its witnesses, and this policy has another rule",
            expected="one group of all the witnesses, as the quorum",
            got=f"quorum {shown(self.quorum)}",
            hint=f"Write `group all-witnesses K {' '.join(map(shown, sorted(names))) or 'NAME…'}` and "
            "`quorum all-witnesses`, or leave out the witnesses that are not to count.",
        )


def shown(text: str) -> str:
    """A name or an address of a policy as text that can be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_policy(log_vkey: str, witness_vkeys: Sequence[str], required: int) -> str:
    """The policy of a run: its log, and `required` of its witnesses, which are called w1, w2 and so on."""
    names = [f"w{number}" for number in range(1, len(witness_vkeys) + 1)]
    lines = [f"log {log_vkey}"]
    lines += [f"witness {name} {vkey}" for name, vkey in zip(names, witness_vkeys, strict=True)]
    if required:
        lines += [f"group witnesses {required} {' '.join(names)}"]
    lines += [f"quorum {'witnesses' if required else 'none'}"]
    return "\n".join(lines) + "\n"


def load_policy(path: Path) -> Policy:
    """Read a policy file. Raises UsageError when it cannot be read, FormatError when it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the policy {path} cannot be read", got=error.strerror, hint="Is the path right?"
        ) from None
    return parse_policy(data)


def parse_policy(data: bytes) -> Policy:
    """The policy of a file's bytes. Raises FormatError with the number of the line that is wrong."""
    if len(data) > MAX_POLICY_BYTES:
        raise FormatError("a policy is too long", expected=f"at most {MAX_POLICY_BYTES} bytes", got=len(data))
    if data and not data.endswith(b"\n"):
        raise FormatError("the last line of the policy does not end", expected="a newline", got=data[-1:])
    reader = _Reader()
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        reader.number = number
        if not _ALLOWED.match(raw):
            reader.wrong("holds a control character", expected="none but tabs and newlines")
        items = _SPACE.split(raw.decode("utf-8", "surrogateescape").strip(" \t"))
        if items[0] and not items[0].startswith("#"):
            reader.read(items)
    return reader.policy()


class _Reader:
    """What the lines so far defined."""

    def __init__(self) -> None:
        self.number = 0
        self._logs: dict[str, PolicyLog] = {}  # by public key
        self._witnesses: dict[str, PolicyWitness] = {}
        self._groups: list[Group] = []
        self._names: set[str] = set()
        self._members: set[str] = set()
        self._quorum: str | None = None

    def read(self, items: list[str]) -> None:
        """One line that is neither empty nor a comment."""
        words: dict[str, Callable[[list[str]], None]] = {
            "log": self._log,
            "witness": self._witness,
            "group": self._group,
            "quorum": self._set_quorum,
        }
        if items[0] not in words:
            self.wrong("starts with an unknown word", expected=", ".join(words), got=shown(items[0])[:80])
        words[items[0]](items[1:])

    def policy(self) -> Policy:
        """The whole, after the last line."""
        if self._quorum is None:
            raise FormatError(
                "a policy has no quorum line", expected="one", hint="`quorum none` asks for no cosignature."
            )
        return Policy(
            tuple(self._logs.values()), tuple(self._witnesses.values()), tuple(self._groups), self._quorum
        )

    def wrong(self, what: str, *, expected: object = None, got: object = None) -> NoReturn:
        """Raise FormatError about the present line."""
        raise FormatError(f"line {self.number} of the policy {what}", expected=expected, got=got)

    def _log(self, items: list[str]) -> None:
        if len(items) not in (1, 2):
            self.wrong("does not define a log", expected="log VKEY [URL]", got=f"{len(items)} items")
        key = self._key(parse_vkey, items[0])
        if key in self._logs:
            self.wrong("names the key of another log line", expected="each log once", got=key)
        self._count(self._logs)
        self._logs[key] = PolicyLog(items[0], items[1] if len(items) == 2 else None)

    def _witness(self, items: list[str]) -> None:
        if len(items) not in (2, 3):
            self.wrong(
                "does not define a witness", expected="witness NAME VKEY [URL]", got=f"{len(items)} items"
            )
        self._check_new(items[0])
        key = self._key(parse_witness_vkey, items[1])
        if key in self._witnesses:
            self.wrong("names the key of another witness line", expected="each witness once", got=key)
        self._count(self._witnesses)
        self._names.add(items[0])
        self._witnesses[key] = PolicyWitness(items[0], items[1], items[2] if len(items) == 3 else None)

    def _group(self, items: list[str]) -> None:
        if len(items) < 3:
            self.wrong(
                "does not define a group", expected="group NAME any|all|K NAME…", got=f"{len(items)} items"
            )
        name, size, *members = items
        self._check_new(name)
        for member in members:
            self._check_defined(member)
            if member in self._members:
                self.wrong("names a member again", expected="each name in one group, once", got=shown(member))
            self._members.add(member)
        self._count(self._groups)
        k = {"any": 1, "all": len(members)}.get(size) or (int(size) if _NUMBER.match(size) else 0)
        if not 1 <= k <= len(members):
            self.wrong(
                "has an impossible threshold",
                expected=f"any, all or a number from 1 to {len(members)}",
                got=shown(size)[:80],
            )
        self._names.add(name)
        self._groups.append(Group(name, k, tuple(members)))

    def _set_quorum(self, items: list[str]) -> None:
        if len(items) != 1:
            self.wrong("does not define the quorum", expected="quorum NAME", got=f"{len(items)} items")
        if self._quorum is not None:
            self.wrong("is a second quorum", expected="exactly one quorum line")
        if items[0] != NONE:
            self._check_defined(items[0])
        self._quorum = items[0]

    def _key(self, parse: Callable[[str], tuple[str, str]], text: str) -> str:
        try:
            return parse(text)[1]
        except BarnraiseError as error:
            self.wrong(f"holds an unusable key ({error.what})", expected=error.expected, got=error.got)

    def _check_new(self, name: str) -> None:
        if name == NONE or name in self._names:
            self.wrong("defines a name that is taken", expected="a new name, not none", got=shown(name)[:80])

    def _check_defined(self, name: str) -> None:
        if name not in self._names:
            self.wrong("uses a name that no line before defines", got=shown(name)[:80])

    def _count(self, defined: Collection[object]) -> None:
        if len(defined) >= MAX_DEFINITIONS:
            self.wrong("is one definition too many", expected=f"at most {MAX_DEFINITIONS} of a kind")
