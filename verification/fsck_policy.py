"""Witness policies (C2SP tlog-policy), as somebody outside a run brings them.

Owns reading the file and whether a set of witnesses satisfies its quorum. Everything malformed is the asker's
to mend, so it is a UsageError.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn

from verification.errors import FormatError, SignatureError, UsageError
from verification.fsck_formats import parse_base64, parse_key

_LONGEST = 1 << 20
_MOST_GROUPS = 256
"""C2SP asks for at least 32. Groups may lie in one another, and each costs the evaluation two calls."""
_LOG, _WITNESS = 1, 4
_LENGTHS = {_LOG: 32, _WITNESS: 32, 6: 1312}
"""Bytes of a key by the algorithm's number; 6 is ML-DSA-44, which is known and never counts here."""


Signer = tuple[str, bytes]
"""A witness's name, as octets decoded one to one, and its public key."""


@dataclass(frozen=True)
class NoteKey:
    """A verifier key of a signed note: name, number of the algorithm, public key."""

    name: str
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes before every signature of this key."""
        return hashlib.sha256(
            self.name.encode("latin-1") + b"\n" + bytes([self.algorithm]) + self.public
        ).digest()[:4]

    @property
    def signer(self) -> Signer:
        """Who cosigns."""
        return self.name, self.public


@dataclass(frozen=True)
class _Group:
    least: int
    members: tuple[str, ...]


@dataclass
class Policy:
    """Logs and witnesses that somebody trusts, and how many of the witnesses it takes.

    Names are octets, decoded one to one. `quorum` names a witness or a group, or is `none`.
    """

    logs: list[NoteKey] = field(default_factory=list)
    witnesses: dict[str, NoteKey] = field(default_factory=dict)
    groups: dict[str, _Group] = field(default_factory=dict)
    quorum: str = ""

    def satisfied(self, signers: Collection[Signer]) -> bool:
        """Whether these witnesses are enough."""
        return self._holds(self.quorum, signers)

    def _holds(self, name: str, signers: Collection[Signer]) -> bool:
        if name == "none":
            return True
        if name in self.witnesses:
            return self.witnesses[name].signer in signers
        group = self.groups[name]
        return sum(self._holds(member, signers) for member in group.members) >= group.least

    def known(self, signers: Collection[Signer]) -> int:
        """How many of these are witnesses of the policy."""
        return sum(key.signer in signers for key in self.witnesses.values())

    def least(self, name: str | None = None) -> int:
        """How many witnesses satisfy the quorum at best."""
        name = self.quorum if name is None else name
        if name == "none":
            return 0
        if name in self.witnesses:
            return 1
        group = self.groups[name]
        return sum(sorted(self.least(member) for member in group.members)[: group.least])

    def described(self) -> str:
        """The quorum in words."""
        group = self.groups.get(self.quorum)
        if group is None:
            return self.quorum
        return f"{self.quorum}: {group.least} of {', '.join(group.members)}"


def parse_note_key(text: str) -> NoteKey:
    """Any verifier key of a signed note that a policy may hold. Raises FormatError, SignatureError."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not parts[0] or not re.fullmatch("[0-9a-fA-F]{8}", parts[1]):
        raise FormatError("not a verifier key", expected="NAME+HEX+BASE64", got=ascii(text[:100]))
    data = parse_base64(parts[2])
    key = NoteKey(parts[0], data[0] if data else 0, data[1:])
    if _LENGTHS.get(key.algorithm) != len(key.public):
        raise FormatError("a verifier key of an unknown kind or length", got=ascii(text[:100]))
    if key.key_id.hex() != parts[1].lower():
        raise FormatError("a verifier key has another key id", expected=key.key_id.hex(), got=parts[1])
    if key.algorithm in (_LOG, _WITNESS):
        parse_key(f"ed25519:{key.public.hex()}")
    return key


class _Reader:
    """Takes a policy line by line."""

    def __init__(self) -> None:
        self.policy = Policy()
        self.line = 0
        self._grouped: set[str] = set()

    def refuse(self, what: str, got: str = "") -> NoReturn:
        raise UsageError(
            f"the witness policy, line {self.line}: {what}", got=ascii(got[:100]) if got else None
        )

    def take(self, line: str) -> None:
        self.line += 1
        words = [word for word in re.split("[ \t]+", line) if word]
        if not words or words[0].startswith("#"):
            return
        keyword, *rest = words
        if keyword == "log" and len(rest) in (1, 2):
            self._log(rest[0])
        elif keyword == "witness" and len(rest) in (2, 3):
            self._witness(rest[0], rest[1])
        elif keyword == "group" and len(rest) >= 3:
            self._group(rest[0], rest[1], rest[2:])
        elif keyword == "quorum" and len(rest) == 1:
            self._quorum(rest[0])
        else:
            self.refuse("not a log, witness, group or quorum", line)

    def _key(self, text: str, *algorithms: int) -> NoteKey:
        try:
            key = parse_note_key(text)
        except (FormatError, SignatureError) as error:
            self.refuse(error.what, text)
        if key.algorithm not in algorithms:
            self.refuse("a key of another use", text)
        return key

    def _log(self, text: str) -> None:
        key = self._key(text, _LOG)
        if any(key.public == other.public for other in self.policy.logs):
            self.refuse("a log stands twice", text)
        self.policy.logs.append(key)

    def _new_name(self, name: str) -> None:
        if name == "none" or name in self.policy.witnesses or name in self.policy.groups:
            self.refuse("a name is taken", name)

    def _known(self, name: str) -> None:
        if name not in self.policy.witnesses and name not in self.policy.groups:
            self.refuse("a name is not defined before it is used", name)

    def _witness(self, name: str, text: str) -> None:
        self._new_name(name)
        key = self._key(text, _WITNESS, 6)
        if any(key.public == other.public for other in self.policy.witnesses.values()):
            self.refuse("a witness stands twice", text)
        self.policy.witnesses[name] = key

    def _group(self, name: str, threshold: str, members: list[str]) -> None:
        self._new_name(name)
        if len(self.policy.groups) == _MOST_GROUPS:
            self.refuse(f"more than {_MOST_GROUPS} groups", name)
        for member in members:
            self._known(member)
            if member in self._grouped:
                self.refuse("a name is in two groups, or twice in one", member)
            self._grouped.add(member)
        count = {"any": 1, "all": len(members)}.get(threshold, 0)
        if re.fullmatch("[1-9][0-9]{0,8}", threshold):
            count = int(threshold)
        if not 1 <= count <= len(members):
            self.refuse(f"a group's threshold is not any, all or 1 to {len(members)}", threshold)
        self.policy.groups[name] = _Group(count, tuple(members))

    def _quorum(self, name: str) -> None:
        if self.policy.quorum:
            self.refuse("a second quorum")
        if name != "none":
            self._known(name)
        self.policy.quorum = name


def parse_policy(data: bytes) -> Policy:
    """A policy from its file's bytes. Raises UsageError."""
    if len(data) > _LONGEST:
        raise UsageError("the witness policy is too long", expected=f"at most {_LONGEST} bytes")
    reader = _Reader()
    for line in data.decode("latin-1").split("\n"):
        if re.search("[^\t\x20-\x7e\x80-\xff]", line):
            reader.line += 1
            reader.refuse("a control character", line)
        reader.take(line)
    policy = reader.policy
    if not policy.quorum:
        raise UsageError("the witness policy has no quorum line", hint="`quorum none` asks for no witness.")
    if policy.quorum == "none" and not policy.logs:
        raise UsageError(
            "the witness policy names neither a log nor a witness that has to sign",
            hint="With `quorum none`, give the log a `log` line.",
        )
    return policy
