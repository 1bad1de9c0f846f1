"""Who belongs to a run and by which key: as transitions of the state.

Owns when each may come and what it leaves behind. Does not own the records (identity.py) or whose signature
they carry, which whoever reads an envelope checks with the key of `signer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from verification.credits import Standing, revoked
from verification.errors import ProtocolError
from verification.identity import Enrol, IdentityChange, KeyRevocation, KeyRotation, Leave, Return
from verification.state import RunState
from verification.witnessing import witness_keys


def apply_enrol(state: RunState, record: Enrol) -> RunState:
    """A member joins: before the first open or, a newcomer, between turns."""
    newcomer = state.turns > 0
    if newcomer:
        _between_turns(state, record)
        _room_for_one(state)
    if record.member in {member.member for member in state.members}:
        raise ProtocolError("a member is enrolled twice", got=record.member)
    _fresh(state, record.member, record.key)
    allowed: Mapping[str, str] = state.config["identity"]["allow"]
    if allowed and allowed.get(record.member) != record.key:
        raise ProtocolError(
            f"{record.member} enrols with a key that identity.allow does not give it",
            expected=allowed.get(record.member, "nobody of that name"),
            got=record.key,
        )
    pace = dict(state.pace)
    if record.role == "contributor":
        slot, first = len(state.by_role("contributor")), state.config["train"]["steps"]
        if not newcomer and slot >= len(first):
            raise ProtocolError(
                "more contributors enrol than train.steps has", expected=len(first), got=record.member
            )
        pace.setdefault(slot, min(first))
    return replace(
        state,
        members=(*state.members, record),
        keys=state.keys | {record.key},
        standings={**state.standings, record.member: Standing()},
        pace=pace,
        newcomers=state.newcomers + newcomer,
    )


def _room_for_one(state: RunState) -> None:
    most = state.config["identity"]["newcomers"]
    if state.newcomers >= most:
        raise ProtocolError("more members join than identity.newcomers allows", expected=most)


def check_complete(state: RunState) -> None:
    """ProtocolError unless those have enrolled that the first open needs; newcomers may be missing."""
    if state.turns:
        return
    enrolled = len(state.by_role("contributor"))
    if enrolled != len(state.pace):
        raise ProtocolError("train.steps has another length", expected=len(state.pace), got=enrolled)
    identity = state.config["identity"]
    missing = set(identity["allow"]) - {member.member for member in state.members}
    if len(missing) > identity["newcomers"]:
        raise ProtocolError("identity.allow names members that did not enrol", got=", ".join(sorted(missing)))


def apply_rotation(state: RunState, record: KeyRotation) -> RunState:
    """A member goes on with another key: its state and its probation begin again."""
    _of_present_key(state, record)
    _fresh(state, record.member, record.new_key)
    record.verify_proof()
    member = state.member(record.member)
    return replace(
        state,
        members=tuple(replace(one, key=record.new_key) if one is member else one for one in state.members),
        keys=state.keys | {record.new_key},
        lineage={name: digest for name, digest in state.lineage.items() if name != record.member},
        standings={**state.standings, record.member: replace(state.standings[record.member], accepted=0)},
    )


def apply_leave(state: RunState, record: Leave) -> RunState:
    """A member is away: in no roster and no list of auditors until it returns."""
    _of_present_key(state, record)
    _of_now(state, record)
    if record.member in state.away:
        raise ProtocolError(f"{record.member} is away already", got=record.kind)
    return replace(state, away=state.away | {record.member})


def apply_return(state: RunState, record: Return) -> RunState:
    """A member that was away is back, as it was."""
    _of_present_key(state, record)
    _of_now(state, record)
    if record.member not in state.away:
        raise ProtocolError(f"{record.member} is not away", got=record.kind)
    return replace(state, away=state.away - {record.member})


def apply_revocation(state: RunState, record: KeyRevocation) -> RunState:
    """A member's key is worth nothing any more, and the member has no other: quarantine."""
    _of_present_key(state, record)
    return replace(
        state, standings={**state.standings, record.member: revoked(state.standings[record.member])}
    )


def signer(state: RunState, record: IdentityChange) -> str:
    """The key that must have signed a change of identity. ProtocolError when nobody has that name."""
    if isinstance(record, KeyRevocation | Leave) and record.by == "coordinator":
        return state.manifest.coordinator
    return state.member(record.member).key


def _between_turns(state: RunState, record: Enrol | IdentityChange) -> None:
    if not state.between_turns:
        raise ProtocolError(f"{record.kind} may not come at this point", expected="between two turns")


def _of_present_key(state: RunState, record: IdentityChange) -> None:
    _between_turns(state, record)
    member = state.member(record.member)
    if record.key != member.key:
        raise ProtocolError(
            f"a {record.kind} is not about the present key of {record.member}",
            expected=member.key,
            got=record.key,
        )
    if state.standings[record.member].quarantined:
        raise ProtocolError(f"{record.member} is in quarantine already", got=record.kind)


def _of_now(state: RunState, record: Leave | Return) -> None:
    if record.turn != state.turns:
        raise ProtocolError(f"a {record.kind} is of another time", expected=state.turns, got=record.turn)


def _fresh(state: RunState, member: str, key: str) -> None:
    if key in state.keys:
        raise ProtocolError("a key is not new: a member has or had it", got=member)
    if key == state.manifest.coordinator or key in witness_keys(state.manifest):
        raise ProtocolError("a member brings the key of the coordinator or of a witness", got=member)
