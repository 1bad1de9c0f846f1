"""Receipts: a C2SP tlog-proof of a round-close (protocol, section 12).

Owns their bytes and what one shows by itself. What a log has to say to it is `fsck_anchor`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from verification.errors import FormatError
from verification.fsck_cosign import WitnessKey, parse_cosignature
from verification.fsck_envelope import parse_envelope
from verification.fsck_findings import Record
from verification.fsck_formats import (
    Checkpoint,
    VerifierKey,
    parse_base64,
    parse_decimal,
)
from verification.fsck_json import parse_canonical
from verification.fsck_log import node_hash
from verification.fsck_policy import Policy, Signer
from verification.fsck_schema import members, text
from verification.fsck_shapes import NAME, RECORDS

_FIRST = "c2sp.org/tlog-proof@v1"
_EXTRA = members({"entry": text, "member": NAME})


@dataclass(frozen=True)
class Receipt:
    """A receipt as it was read; nothing in it is believed yet.

    `signatures` are the note's lines as (name, decoded bytes).
    """

    index: int
    hashes: tuple[bytes, ...]
    entry: bytes
    member: str
    size: int
    root: bytes
    origin: str
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def head(self) -> str:
        """The head it is for, as SIZE:HEX."""
        return f"{self.size}:{self.root.hex()}"


def _signature_lines(lines: list[str]) -> tuple[tuple[str, bytes], ...]:
    found: list[tuple[str, bytes]] = []
    for line in lines:
        mark, _, rest = line.partition(" ")
        name, _, blob = rest.partition(" ")
        if mark != "—" or not name:
            raise FormatError("not a signature line", expected="— NAME BASE64", got=line[:80])
        data = parse_base64(blob)
        if len(data) < 5:
            raise FormatError("a signature line is too short", got=line[:80])
        found.append((name, data))
    return tuple(found)


def parse_receipt(data: bytes) -> Receipt:
    """A receipt from its file's bytes. Raises FormatError."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise FormatError("a receipt is not UTF-8") from None
    if lines[0] != _FIRST or lines[-1]:
        raise FormatError("not a receipt", expected=_FIRST, got=lines[0][:80])
    if not lines[1].startswith("extra ") or not lines[2].startswith("index "):
        raise FormatError("not a receipt", expected="extra, then index", got=" / ".join(lines[1:3])[:80])
    extra = parse_canonical(parse_base64(lines[1].removeprefix("extra ")))
    _EXTRA(extra, "extra")
    index = lines[2].removeprefix("index ")
    end = lines.index("", 3)
    hashes = tuple(parse_base64(line) for line in lines[3:end])
    note = lines[end + 1 :]
    if any(len(value) != 32 for value in hashes):
        raise FormatError("a receipt's proof is malformed")
    if len(note) < 6 or note[3] or not note[0]:
        raise FormatError(
            "a receipt holds no checkpoint", expected="origin, size, root, empty line, signatures"
        )
    root = parse_base64(note[2])
    if len(root) != 32:
        raise FormatError("a checkpoint's root has the wrong length")
    signatures = _signature_lines(note[4:-1])
    entry = parse_base64(extra["entry"])
    return Receipt(
        parse_decimal(index),
        hashes,
        entry,
        extra["member"],
        parse_decimal(note[1]),
        root,
        note[0],
        signatures,
    )


def inclusion_root(leaf: bytes, index: int, size: int, hashes: tuple[bytes, ...]) -> bytes | None:
    """The root that an RFC 6962 inclusion proof leads to, None when it has not the right number of hashes."""
    if index >= size:
        return None
    node, last, rest = leaf, size - 1, list(hashes)
    while last:
        if index & 1 or index < last:
            if not rest:
                return None
            other = rest.pop(0)
            node = node_hash(other, node) if index & 1 else node_hash(node, other)
        index >>= 1
        last >>= 1
    return None if rest else node


def signers_of(receipt: Receipt, key: VerifierKey, policy: Policy | None) -> list[Signer]:
    """The policy's witnesses that cosigned a receipt's checkpoint.

    Raises FormatError when the log's signature is missing, or a signature by a known key does not hold;
    lines of unknown keys are passed over.
    """
    signed = False
    found: list[Signer] = []
    known = {(k.name, k.key_id): k for k in policy.witnesses.values() if k.algorithm == 4} if policy else {}
    for name, blob in receipt.signatures:
        head = Checkpoint(receipt.origin, receipt.size, receipt.root, blob[:4], blob[4:])
        if (name, blob[:4]) == (key.origin, key.key_id):
            if not head.signed_by(key):
                raise FormatError("the log's signature on the receipt's checkpoint does not hold")
            signed = True
        witness = known.get((name.encode().decode("latin-1"), blob[:4]))
        if witness is not None:
            if not parse_cosignature(name, blob).holds(WitnessKey(name, witness.public), head):
                raise FormatError("a cosignature on the receipt's checkpoint does not hold", got=name)
            found.append(witness.signer)
    if not signed:
        raise FormatError("the receipt's checkpoint is not signed with the log's key", expected=str(key))
    return found


def round_close_of(receipt: Receipt, coordinator: str) -> Record:
    """The round-close that a receipt is of. FormatError when it is of none, or not of its member."""
    envelope = parse_envelope(receipt.entry)
    if envelope.kind != "round-close":
        raise FormatError("the receipt is not of a round-close", got=envelope.kind)
    RECORDS["round-close"](envelope.predicate, "round-close")
    if not envelope.signed_by(coordinator):
        raise FormatError("the receipt's entry is not signed by the coordinator", expected=coordinator)
    close: Record = envelope.predicate
    if receipt.member not in {line["member"] for line in [*close["accepted"], *close["rejected"]]}:
        raise FormatError("the receipt's round-close does not settle its member", got=receipt.member)
    return close
