"""The records of who belongs to a run, and by which key: enrolment, rotation, revocation, leave, return.

Owns their fields and the proof inside a rotation. Does not own when one may come or what it does to a
member's standing (membership.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from verification.encoding import Json
from verification.fields import CLASS, NAME, PROTOCOL, require
from verification.keys import PrivateKey
from verification.statements import sign_object, verify_object

_ROTATION = "barnraise/key-rotation/v1"


@dataclass(frozen=True)
class Enrol:
    """A member's own statement that it takes part; signing it proves that it holds the key."""

    kind: ClassVar[str] = "enrol"
    protocol: int
    run: str
    member: str
    role: Literal["contributor", "auditor"]
    operator: str
    key: str
    numerics_class: str

    def __post_init__(self) -> None:
        require(bool(NAME.match(self.member)), "a member's name must be 1 to 64 of [a-z0-9._-]", self.member)
        require(bool(NAME.match(self.operator)), "an operator must be 1 to 64 of [a-z0-9._-]", self.operator)
        require(
            bool(CLASS.match(self.numerics_class)),
            "a numerics class must be 1 to 200 printable ASCII characters",
            self.numerics_class[:80],
        )


@dataclass(frozen=True)
class KeyRotation:
    """A member takes a new key, as the old one says and, by `proof`, the new one too."""

    kind: ClassVar[str] = "key-rotation"
    protocol: int
    run: str
    member: str
    key: str
    new_key: str
    proof: str

    @classmethod
    def of(cls, run: str, member: str, old: PrivateKey, new: PrivateKey) -> KeyRotation:
        """The rotation from `old` to `new`, to be sealed with `old`; the same record every time."""
        claim = _claim(run, member, old.public, new.public)
        return cls(PROTOCOL, run, member, old.public, new.public, sign_object(_ROTATION, claim, new))

    def verify_proof(self) -> None:
        """Raise SignatureError unless the new key signed for itself, FormatError for no signature."""
        claim = _claim(self.run, self.member, self.key, self.new_key)
        verify_object(_ROTATION, claim, self.proof, self.new_key)


def _claim(run: str, member: str, key: str, new_key: str) -> Json:
    return {"key": key, "member": member, "new_key": new_key, "run": run}


@dataclass(frozen=True)
class KeyRevocation:
    """A key is no longer to be trusted: its member is in quarantine from here on."""

    kind: ClassVar[str] = "key-revocation"
    protocol: int
    run: str
    member: str
    key: str
    by: Literal["coordinator", "member"]


@dataclass(frozen=True)
class Leave:
    """A member takes no part from here on, until it returns: it says so, or nobody can reach it.

    `turn` counts the round-opens before it.
    """

    kind: ClassVar[str] = "leave"
    protocol: int
    run: str
    member: str
    key: str
    turn: int
    by: Literal["coordinator", "member"]


@dataclass(frozen=True)
class Return:
    """A member that was away is there again; `turn` as in a leave."""

    kind: ClassVar[str] = "return"
    protocol: int
    run: str
    member: str
    key: str
    turn: int


IdentityChange = KeyRotation | KeyRevocation | Leave | Return
