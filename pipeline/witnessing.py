"""The coordinator's side of witnesses and beacon: what it asks of them, what it makes of their answers.

Owns the order in which a head is cosigned and links are asked for, that a bad answer counts as none, and
where a resumed run finds its witnesses. Does not own how a witness or a beacon is reached (witness_client.py,
beacon_client.py), what a witness keeps (verification.witness), or what a draw needs
(verification.witnessing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pipeline.beacon_client import NoBeacon, Pulses
from pipeline.http_client import Transport
from pipeline.ledger import Ledger
from pipeline.witness_client import WitnessClient, connect
from verification.durable import write_atomic
from verification.encoding import MAX_INTEGER, Json, sha256_digest
from verification.errors import BarnraiseError, FormatError, StorageError, UsageError
from verification.keys import PrivateKey
from verification.notes import (
    Checkpoint,
    Cosigned,
    cosign,
    parse_cosigned,
    parse_witness_vkey,
    plain_note,
    sign_checkpoint,
)
from verification.plans import due_pulse, link_number
from verification.policy import MAX_POLICY_BYTES, parse_policy, shown
from verification.records import (
    PROTOCOL,
    Draw,
    DrawChain,
    DrawnSlot,
    Manifest,
    Pulse,
    RevealClose,
    SecondDraw,
    Witness,
    Witnessing,
    WitnessLink,
)
from verification.sealing import open_record, seal_record
from verification.statements import sign_object
from verification.witnessing import given_links, late_cosigners, parse_head, verify_link, witness_names

Consistency = Callable[[int], list[bytes]]
Sign = Callable[[Json], str]
Notice = Callable[[str], None]
POLICY_FILE = "witness-policy"
MOST_TURNS_OUT = 10  # as a power of two
MAX_WITNESSES = 16  # what they say in a draw must fit a log entry


class Witnesses(Protocol):
    """A run's witnesses, wherever they are. Names are those of the manifest, in its order."""

    def present(self) -> tuple[str, ...]:
        """Who answers now."""
        ...

    def cosign(self, note: str, consistency: Consistency, names: Sequence[str]) -> str:
        """The note with the cosignature lines that came; `consistency` proves it from an older size."""
        ...

    def links(
        self, note: str, number: int, names: Sequence[str], sign: Sign
    ) -> Mapping[str, tuple[str, str]]:
        """(link, proof) of those that showed link `number` for this cosigned head; `sign` signs requests."""
        ...


class NoWitnesses:
    """The witnesses of a run that has none."""

    def present(self) -> tuple[str, ...]:  # noqa: D102
        return ()

    def cosign(self, note: str, consistency: Consistency, names: Sequence[str]) -> str:  # noqa: D102
        del consistency, names
        return note

    def links(  # noqa: D102
        self, note: str, number: int, names: Sequence[str], sign: Sign
    ) -> Mapping[str, tuple[str, str]]:
        del note, number, names, sign
        return {}


@dataclass(frozen=True)
class Enlisted:
    """The witnesses of a run, and how many must cosign; `policy` is what a resumed run reads them from."""

    required: int
    witnesses: tuple[tuple[str, Transport], ...]
    policy: bytes = b""

    @classmethod
    def by_policy(cls, policy: bytes) -> Enlisted:
        """Those of a C2SP tlog-policy file, each with its address; its `log` lines are for verifiers.

        Raises FormatError when it is no policy, UsageError when it is not k of n, k is half of n or less, or
        a witness has no address.
        """
        required, found = parse_policy(policy).threshold()
        if not found or not required or len(found) > MAX_WITNESSES:
            raise UsageError(
                "a run with a witness policy needs witnesses, and a quorum of them",
                expected=f"1 to {MAX_WITNESSES} witness lines and a quorum other than none",
                got=f"{len(found)} witnesses, {required} required",
            )
        if 2 * required <= len(found):
            raise UsageError(
                "the policy asks for too few of its witnesses",
                expected=f"a quorum of more than half: at least {len(found) // 2 + 1} of {len(found)}",
                got=required,
                hint="With half of them or fewer, two halves could each be shown another history of the run.",
            )
        for witness in found:
            if witness.url is None:
                raise UsageError(
                    f"the policy does not say where witness {shown(witness.name)} is",
                    expected="witness NAME VKEY URL",
                )
        return cls(required, tuple((w.vkey, connect(w.url or "")) for w in found), policy)

    @classmethod
    def kept(cls, secrets: Path) -> Enlisted | None:
        """Those that a run was started with, by the policy that was kept; None without one."""
        path = secrets / POLICY_FILE
        return cls.by_policy(path.read_bytes()) if path.exists() else None

    def keep(self, secrets: Path) -> None:
        """Note them in the coordinator's private folder."""
        write_atomic(secrets / POLICY_FILE, self.policy, mode=0o600)

    def of_run(self, manifest: Manifest, notice: Notice) -> Enlisted:
        """Those of the manifest, in its order, found by their keys; `notice` is told of all others."""
        ways = dict(self.witnesses)
        for name, vkey in zip(witness_names(manifest), manifest.witness_vkeys, strict=True):
            if vkey not in ways:
                notice(f"{name}: the policy does not say where this witness of the run is: it takes no part")
        for vkey in ways.keys() - {*manifest.witness_vkeys}:
            notice(f"{shown(vkey)}: in the policy, but no witness of this run: it is not asked")
        known = tuple((vkey, ways[vkey]) for vkey in manifest.witness_vkeys if vkey in ways)
        return replace(self, witnesses=known)

    def client(self, log_vkey: str, notice: Notice) -> WitnessClient:
        """The way to them, for one log."""
        return WitnessClient(self.witnesses, log_vkey, notice)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(parse_witness_vkey(vkey)[0] for vkey, _ in self.witnesses)

    def witnessing(self, log_vkey: str, length: int, notice: Notice) -> Witnessing:
        """What the manifest says of them. Raises ProtocolError when one gives no chain of `length`."""
        found = self.client(log_vkey, notice).chains(length)
        entries = (Witness(DrawChain(end, size), proof, vkey) for vkey, end, size, proof in found)
        return Witnessing(self.required, tuple(entries))


def check_draw_fits(
    origin: str,
    key: PrivateKey,
    slots: int,
    auditors: Sequence[str],
    witnesses: Sequence[str],
    *,
    segments: int,
    beacon: bool = False,
) -> None:
    """UsageError unless a draw of every slot for every auditor, with all that witnesses say, fits an entry.

    `auditors` and `witnesses` are their names, `segments` the most that a contribution has. The record is
    made up, as long as any draw of the run can be.
    """
    head = Checkpoint(origin, MAX_INTEGER, bytes(32))
    note = sign_checkpoint(head, key) + "".join(cosign(head, name, key, MAX_INTEGER) for name in witnesses)
    link, digest, proof = "0" * 64, sha256_digest(b""), sign_object("length", 0, key)
    record = Draw(
        PROTOCOL,
        digest,
        MAX_INTEGER,
        MAX_INTEGER,
        note,
        link,
        tuple(WitnessLink(link, proof, name) for name in witnesses),
        digest,
        tuple(DrawnSlot(slot, tuple(auditors), tuple(range(segments))) for slot in range(slots)),
        Pulse(MAX_INTEGER, "0" * 96) if beacon else None,
    )
    try:
        seal_record(record, key)
    except FormatError as error:
        raise UsageError(
            f"a draw of {slots} slots of {segments} segments by {len(auditors)} auditors with "
            f"{len(witnesses)} witnesses does not fit a log entry",
            expected=error.expected,
            got=error.got,
            hint="Use fewer contributors, auditors or witnesses, witnesses with shorter names, or a larger "
            "train.trace_every.",
        ) from None


def read_policy(path: Path) -> bytes:
    """The bytes of a policy file. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the policy {path} cannot be read", got=error.strerror) from None


class Notary:
    """A ledger's heads, its witnesses and its beacon. `notice` takes one line for people."""

    def __init__(
        self, ledger: Ledger, witnesses: Witnesses, notice: Notice, beacon: Pulses | None = None
    ) -> None:
        self._beacon = beacon or NoBeacon()
        self._ledger = ledger
        self._witnesses = witnesses
        self._notice = notice
        self._in_a_row: dict[str, int] = {}  # how often a witness made its last turns' draws short
        self._sits_out: dict[str, int] = {}  # turns for which it is left out

    def present(self) -> tuple[str, ...]:
        """Witnesses of the manifest that are to take part in the next turn, in its order.

        Those that answer now. One that made a draw of its last turn short is left out of the next, then of
        two, four and so on, where there are enough others: else one bad witness could bring about audits for
        all in every turn. The counts begin again when the coordinator does.
        """
        manifest = self._ledger.manifest
        answered = set(self._witnesses.present())
        names = tuple(name for name in witness_names(manifest) if name in answered)
        blamed = self._count_last_turn()
        without = tuple(name for name in names if not self._sits_out.get(name))
        if len(without) < manifest.witnessing.required:
            return names
        for name in names:
            if name in blamed:
                turns = self._sits_out[name]
                until = f"the next {turns} turns" if turns > 1 else "the next"
                self._notice(f"{name}: {blamed[name]} in the last turn: left out of {until}")
        self._sits_out = {name: turns - 1 for name, turns in self._sits_out.items() if turns > 1}
        return without

    def _count_last_turn(self) -> dict[str, str]:
        """Who was named in one of the last two draws of the log and made it short, and by what.

        Where audits lag, the second of them is of an earlier turn than the first.
        """
        ledger = self._ledger
        found: dict[str, str] = {}
        if ledger.state.turns and ledger.state.links:
            key = ledger.manifest.coordinator
            draw = open_record(Draw, ledger.envelope(Draw.kind)[1], key)
            shown = [draw.links]
            if ledger.state.turns > ledger.state.config["audit"]["lag"]:  # some turn has had its second draw
                shown.append(open_record(SecondDraw, ledger.envelope(SecondDraw.kind)[1], key).links)
            closed = open_record(RevealClose, ledger.envelope(RevealClose.kind)[1], key)
            late = self._late(parse_head(ledger.manifest, draw.head), closed.pulse)
            found |= {item.witness: "cosigned late" for item in draw.links if item.witness in late}
            for links in shown:
                silent = {item.witness for item in links} - given_links(links).keys()
                found |= dict.fromkeys(silent, "gave no link")
            for name in dict.fromkeys(item.witness for links in shown for item in links):
                self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if name in found else 0
                if name in found:
                    self._sits_out[name] = 1 << min(self._in_a_row[name] - 1, MOST_TURNS_OUT)
        return found

    def _late(self, head: Cosigned, pulse: int | None) -> tuple[str, ...]:
        beacon = self._ledger.manifest.beacon
        return late_cosigners(beacon, pulse, head) if beacon and pulse else ()

    def attest(self, kind: str) -> tuple[str, dict[str, tuple[str, str]]]:
        """The durable head before a draw of `kind` with its cosignatures, and the links shown for it.

        All witnesses of the manifest are asked to cosign, those of the turn that did for their links. No link
        is asked for before enough cosigned: until then none may be known. A cosignature later than the pulse
        that is due makes the draw short; it is left out where the open does not name its witness and there
        are enough others. Raises ProtocolError saying who is missing.
        """
        ledger, manifest = self._ledger, self._ledger.manifest
        turn = ledger.state.open_turn
        names, number = turn.open.witnesses, link_number(ledger.state)
        note = self._witnesses.cosign(ledger.head, ledger.consistency, witness_names(manifest))
        if kind == Draw.kind:
            note = self._without_late(note)
        head = parse_head(manifest, note)
        asked = [name for name in names if name in head.names]
        links: dict[str, tuple[str, str]] = {}
        answers = self._witnesses.links(note, number, asked, ledger.sign_link_request)
        for name, (link, proof) in answers.items():
            try:
                verify_link(manifest, name, ledger.state.links[name], number, head.checkpoint, link, proof)
                links[name] = (link, proof)
            except BarnraiseError as error:
                self._notice(f"{name}: link {number} refused: {error}")
        for name in names:
            if name not in links:
                self._notice(f"{name}: no link for the {kind} of round {turn.open.round}: all is audited")
        return note, links

    def _without_late(self, note: str) -> str:
        """The cosigned head of a draw without late cosignatures that can be left out."""
        manifest, turn = self._ledger.manifest, self._ledger.state.open_turn
        head = parse_head(manifest, note)
        late = self._late(head, due_pulse(self._ledger.state))
        if not late:
            return note
        spare = {name for name in late if name not in turn.open.witnesses}
        if len(head.names) - len(spare) < manifest.witnessing.required:
            spare = set()
        if late == head.names:
            self._notice("every witness cosigned after the pulse, by its clock: is the clock here slow?")
        for name in late:
            if name not in spare:
                late_by = f"cosigned the head of round {turn.open.round} after its pulse, by its clock"
                self._notice(f"{name}: {late_by}: all is audited")
        plain = plain_note(note)
        lines = zip(head.names, note[len(plain) :].splitlines(keepends=True), strict=True)
        return plain + "".join(line for name, line in lines if name not in spare)

    def next_pulse(self) -> int | None:
        """The number of the pulse that the turn's draw is to wait for; None without a beacon."""
        return self._beacon.next_number()

    def pulse(self) -> Pulse | None:
        """The pulse that the turn's draw waits for; None, with a notice, where it cannot be had."""
        number = due_pulse(self._ledger.state)
        if number is None:
            return None
        try:
            return self._beacon.pulse(number)
        except UsageError:  # something to be mended here, such as a missing package
            raise
        except BarnraiseError as error:
            self._notice(f"beacon: {str(error).removesuffix('.')}: all is audited")
            return None

    def publish(self) -> str:
        """Put cosignatures to the newest head, as far as they come; the head's note as it then lies there."""
        ledger, required = self._ledger, self._ledger.manifest.witnessing.required
        if len(self._cosigners()) >= required:
            return ledger.cosigned
        try:
            names = self._witnesses.present()
            ledger.put_cosigned(self._witnesses.cosign(ledger.head, ledger.consistency, names))
        except StorageError:
            raise
        except BarnraiseError as error:
            self._notice(f"the newest head is not cosigned: {error}")
        if len(cosigners := self._cosigners()) < required:
            who = ", ".join(cosigners) or "nobody"
            self._notice(
                f"too few witnesses cosigned the head of {ledger.checkpoint.size} entries: {who}; "
                f"{required} are required"
            )
        return ledger.cosigned

    def _cosigners(self) -> tuple[str, ...]:
        manifest = self._ledger.manifest
        return parse_cosigned(self._ledger.cosigned, manifest.log_vkey, manifest.witness_vkeys).names
