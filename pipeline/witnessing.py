"""The coordinator's side of witnesses: what it asks of them, and what it makes of their answers.

Owns the order in which a head is cosigned and links are asked for, that a bad answer counts as none, and
where a resumed run finds its witnesses. Does not own how a witness is reached (witness_client.py), what it
keeps (verification.witness), or what a draw needs (verification.witnessing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.ledger import Ledger
from pipeline.witness_client import Transport, WitnessClient, connect
from verification.durable import write_atomic
from verification.errors import BarnraiseError, StorageError, UsageError
from verification.notes import parse_cosigned
from verification.plans import link_number
from verification.policy import MAX_POLICY_BYTES, parse_policy, shown
from verification.records import DrawChain, Witness, Witnessing
from verification.witnessing import parse_head, verify_link, witness_names

Consistency = Callable[[int], list[bytes]]
Notice = Callable[[str], None]
POLICY_FILE = "witness-policy"
MAX_WITNESSES = 16  # what they say in a draw must fit a log entry


class Witnesses(Protocol):
    """A run's witnesses, wherever they are. Names are those of the manifest, in its order."""

    def present(self) -> tuple[str, ...]:
        """Who answers now."""
        ...

    def cosign(self, note: str, consistency: Consistency, names: Sequence[str]) -> str:
        """The note with the cosignature lines that came; `consistency` proves it from an older size."""
        ...

    def links(self, note: str, number: int, names: Sequence[str]) -> Mapping[str, tuple[str, str]]:
        """(link, proof) of those that showed link `number` for this cosigned head."""
        ...


class NoWitnesses:
    """The witnesses of a run that has none."""

    def present(self) -> tuple[str, ...]:  # noqa: D102
        return ()

    def cosign(self, note: str, consistency: Consistency, names: Sequence[str]) -> str:  # noqa: D102
        del consistency, names
        return note

    def links(self, note: str, number: int, names: Sequence[str]) -> Mapping[str, tuple[str, str]]:  # noqa: D102
        del note, number, names
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

        Raises FormatError when it is no policy, UsageError when it is not k of n or a witness has no address.
        """
        required, found = parse_policy(policy).threshold()
        if not found or not required or len(found) > MAX_WITNESSES:
            raise UsageError(
                "a run with a witness policy needs witnesses, and a quorum of them",
                expected=f"1 to {MAX_WITNESSES} witness lines and a quorum other than none",
                got=f"{len(found)} witnesses, {required} required",
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

    def client(self, log_vkey: str, notice: Notice) -> WitnessClient:
        """The way to them, for one log."""
        return WitnessClient(self.witnesses, log_vkey, notice)

    def witnessing(self, log_vkey: str, length: int, notice: Notice) -> Witnessing:
        """What the manifest says of them. Raises ProtocolError when one gives no chain of `length`."""
        found = self.client(log_vkey, notice).chains(length)
        entries = (Witness(DrawChain(end, size), proof, vkey) for vkey, end, size, proof in found)
        return Witnessing(self.required, tuple(entries))


def read_policy(path: Path) -> bytes:
    """The bytes of a policy file. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the policy {path} cannot be read", got=error.strerror) from None


class Notary:
    """A ledger's heads and its witnesses. `notice` takes one line for people."""

    def __init__(self, ledger: Ledger, witnesses: Witnesses, notice: Notice) -> None:
        self._ledger = ledger
        self._witnesses = witnesses
        self._notice = notice

    def present(self) -> tuple[str, ...]:
        """Witnesses of the manifest that answer now, in its order."""
        answered = set(self._witnesses.present())
        return tuple(name for name in witness_names(self._ledger.manifest) if name in answered)

    def attest(self, kind: str) -> tuple[str, dict[str, tuple[str, str]]]:
        """The durable head before a draw of `kind` with its cosignatures, and the links shown for it.

        No link is asked for before enough witnesses of the turn cosigned: until then none may be known.
        Raises ProtocolError saying who is missing.
        """
        ledger, manifest = self._ledger, self._ledger.manifest
        turn = ledger.state.open_turn
        names, number = turn.open.witnesses, link_number(turn, kind)
        note = self._witnesses.cosign(ledger.head, ledger.consistency, names)
        head = parse_head(manifest, note, names)
        links: dict[str, tuple[str, str]] = {}
        for name, (link, proof) in self._witnesses.links(note, number, head.names).items():
            try:
                verify_link(manifest, name, ledger.state.links[name], number, head.checkpoint, link, proof)
                links[name] = (link, proof)
            except BarnraiseError as error:
                self._notice(f"{name}: link {number} refused: {error}")
        for name in names:
            if name not in links:
                self._notice(f"{name}: no link for the {kind} of round {turn.open.round}: all is audited")
        return note, links

    def publish(self) -> str:
        """Put cosignatures to the newest head, as far as they come; the head's note as it then lies there."""
        ledger, required = self._ledger, self._ledger.manifest.witnessing.required
        if len(self._cosigners()) >= required:
            return ledger.cosigned
        try:
            ledger.put_cosigned(self._witnesses.cosign(ledger.head, ledger.consistency, self.present()))
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
