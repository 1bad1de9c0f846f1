"""What the rules ask of witnesses: their chains in the manifest, their cosignatures and links at a draw.

Owns the checks of docs/protocol.md on witnesses (sections 3 and 6) that the state machine and the coordinator
share. Does not own what a witness does (witness.py), how it is reached, or what follows from a draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verification.beacon import Beacon
from verification.encoding import Json
from verification.errors import FormatError, ProtocolError
from verification.fields import HEX32
from verification.notes import Checkpoint, Cosigned, parse_cosigned, parse_witness_vkey
from verification.records import Manifest, Witness, WitnessLink
from verification.statements import verify_object

_CHAIN = "barnraise/witness-chain/v1"
_LINK = "barnraise/witness-link/v1"


@dataclass(frozen=True)
class ShownLink:
    """The last link of a witness that is in the log, and its number; the chain's end has number 0."""

    number: int
    link: str


def witness_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of the manifest's witnesses, in its order."""
    return tuple(parse_witness_vkey(vkey)[0] for vkey in manifest.witness_vkeys)


def witness_keys(manifest: Manifest) -> frozenset[str]:
    """The public keys of the manifest's witnesses."""
    return frozenset(parse_witness_vkey(vkey)[1] for vkey in manifest.witness_vkeys)


def fork_takes(required: int, count: int) -> int:
    """How many of `count` witnesses have to sign twice before `required` of them can cosign two histories.

    Two quorums have at least this many in common. With 2 of 3 it is one, with 3 of 4 two.
    """
    return max(0, 2 * required - count)


def check_witnessing(manifest: Manifest) -> None:
    """Raise one of the family unless the manifest's witnesses are well-formed and stand by their chains.

    A beacon needs some: the times of their cosignatures say that a head was fixed before its pulse.
    """
    witnesses, required = manifest.witnessing.witnesses, manifest.witnessing.required
    names, keys = witness_names(manifest), witness_keys(manifest)
    if len({*names}) != len(witnesses) or len(keys) != len(witnesses):
        raise ProtocolError("a witness or its key stands twice in the manifest", got=", ".join(names))
    if manifest.coordinator in keys:
        raise ProtocolError("the coordinator is its own witness", got=manifest.coordinator)
    if not min(1, len(witnesses)) <= required <= len(witnesses):
        raise ProtocolError(
            "an impossible number of witnesses is required",
            expected=f"{min(1, len(witnesses))} to {len(witnesses)}",
            got=required,
        )
    if manifest.beacon and not required:
        raise ProtocolError("a run with a beacon has no witnesses", expected="at least 1 required", got=0)
    for witness in witnesses:
        if witness.chain.length < manifest.draw_chain.length:
            raise ProtocolError(
                "a witness's chain is shorter than the coordinator's",
                expected=manifest.draw_chain.length,
                got=witness.chain.length,
            )
        verify_chain(witness, manifest.log_vkey)


def verify_chain(witness: Witness, log_vkey: str) -> None:
    """Raise SignatureError or FormatError unless a witness bound its chain to this log."""
    claim: Json = {
        "end": witness.chain.end,
        "length": witness.chain.length,
        "log_vkey": log_vkey,
        "witness": witness.vkey,
    }
    verify_object(_CHAIN, claim, witness.proof, parse_witness_vkey(witness.vkey)[1])


def first_links(manifest: Manifest) -> dict[str, ShownLink]:
    """What stands for the last link of each witness before any was shown: the end of its chain."""
    chains = (witness.chain for witness in manifest.witnessing.witnesses)
    pairs = zip(witness_names(manifest), chains, strict=True)
    return {name: ShownLink(0, chain.end.removeprefix("sha256:")) for name, chain in pairs}


def check_named(manifest: Manifest, names: Sequence[str]) -> None:
    """ProtocolError unless these witnesses, in the manifest's order, can carry a turn."""
    known = witness_names(manifest)
    if tuple(names) != tuple(name for name in known if name in names):
        raise ProtocolError(
            "a turn's witnesses are not the manifest's, in its order", expected=known, got=tuple(names)
        )
    _enough(manifest, known, names, "answer")


def parse_head(manifest: Manifest, note: str) -> Cosigned:
    """The head of a draw, cosigned by enough of the manifest's witnesses, of this turn or not.

    Raises FormatError or SignatureError for a note that does not hold, ProtocolError saying who is missing.
    """
    cosigned = parse_cosigned(note, manifest.log_vkey, manifest.witness_vkeys)
    _enough(manifest, witness_names(manifest), cosigned.names, "cosigned the head of this draw")
    return cosigned


def _enough(manifest: Manifest, asked: Sequence[str], came: Sequence[str], did: str) -> None:
    required = manifest.witnessing.required
    if len(came) < required:
        missing = ", ".join(name for name in asked if name not in came)
        raise ProtocolError(
            f"too few witnesses {did}: {missing} did not",
            expected=f"at least {required} of {len(witness_names(manifest))}",
            got=len(came),
            hint="Nothing is lost: when they are back, `barnraise resume` goes on from here.",
        )


def verify_link(
    manifest: Manifest, name: str, shown: ShownLink, number: int, head: Checkpoint, link: str, proof: str
) -> None:
    """Raise one of the family unless this is a witness's link `number` for this very head.

    `shown` is its last link before; the numbers between were never asked for.
    """
    if not HEX32.match(link):
        raise FormatError("not a link of a hash chain", expected="64 hex digits", got=repr(link)[:80])
    if number <= shown.number:
        raise ProtocolError("a link comes out of turn", expected=f"above {shown.number}", got=number)
    value = bytes.fromhex(link)
    for _ in range(number - shown.number):
        value = hashlib.sha256(value).digest()
    if value.hex() != shown.link:
        raise ProtocolError(f"{name}'s link does not lead back to its last one", expected=shown.link)
    vkey = manifest.witness_vkeys[witness_names(manifest).index(name)]
    claim: Json = {
        "link": link,
        "log_vkey": manifest.log_vkey,
        "number": number,
        "root": head.root.hex(),
        "size": head.size,
        "witness": vkey,
    }
    verify_object(_LINK, claim, proof, parse_witness_vkey(vkey)[1])


def checked_links(
    manifest: Manifest,
    shown: Mapping[str, ShownLink],
    number: int,
    names: Sequence[str],
    head: Cosigned,
    links: Mapping[str, tuple[str, str]],
) -> tuple[WitnessLink, ...]:
    """The links of a draw as they stand in its record, null for who gave none; raises as `verify_link`."""
    for name, (link, proof) in links.items():
        if name not in names:
            raise ProtocolError("a link comes from a witness that the open does not name", got=name)
        if name not in head.names:
            raise ProtocolError("a link comes from a witness that did not cosign the head", got=name)
        verify_link(manifest, name, shown[name], number, head.checkpoint, link, proof)
    nothing = (None, None)
    pairs = ((name, links.get(name, nothing)) for name in names)
    return tuple(WitnessLink(link, proof, name) for name, (link, proof) in pairs)


def given_links(links: Sequence[WitnessLink]) -> dict[str, tuple[str, str]]:
    """The links that a draw's record holds, by witness."""
    return {i.witness: (i.link, i.proof) for i in links if i.link is not None and i.proof is not None}


def links_after(
    shown: Mapping[str, ShownLink], number: int, links: Sequence[WitnessLink]
) -> dict[str, ShownLink]:
    """The last links once those of a draw are in the log."""
    return {**shown, **{name: ShownLink(number, link) for name, (link, _) in given_links(links).items()}}


def is_short(links: Sequence[WitnessLink]) -> bool:
    """Whether a named witness gave no link: then everything is drawn."""
    return any(item.link is None for item in links)


def late_cosigners(beacon: Beacon, number: int, head: Cosigned) -> tuple[str, ...]:
    """Who cosigned a head when, by its own clock, pulse `number` was out already.

    Such a pulse may have been known while the head could still be chosen: the draw is short.
    """
    published = beacon.published(number)
    return tuple(name for name, time in zip(head.names, head.times, strict=True) if time >= published)
