"""Members and their keys: enrolments, key-rotations, key-revocations (protocol, section 4).

Owns the checks of these three records and which keys were ever anybody's. What they do to credit and lineage
is the ledger's.
"""

from __future__ import annotations

from verification.errors import ProtocolError, SignatureError
from verification.fsck_findings import Record
from verification.fsck_formats import parse_key, proof_holds
from verification.fsck_ledger import Ledger
from verification.fsck_turn import Entry, Run, place


class Members:
    """The members of a run as its log brings them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.enrolments: list[Record] = []
        self._names: set[str] = set()
        witnesses = (witness.key.key for witness in run.witnesses.values())
        self._keys = {run.manifest["coordinator"], *witnesses}
        """Every key that somebody has or had."""

    # --- before the first turn ---

    def enrol(self, entry: Entry) -> None:
        """A new member. Raises of the error family when the log cannot be followed with it."""
        record, report, where = entry.record, self.run.report, place(entry)
        name, key, allow = record["member"], record["key"], self.run.settings.allow
        parse_key(key)
        if not entry.envelope.signed_by(key):
            what = f"the enrolment of {name} is not signed with its own key"
            report.add(what, where, key, entry.envelope.keyid)
        if name in self._names:
            raise ProtocolError(f"two members are called {name}", expected="unique names")
        if key in self._keys:
            what = f"the key of {name} is another member's too, or the coordinator's or a witness's"
            report.add(what, where, "unique keys", key)
        if allow:
            what = f"{name} is not enrolled as identity.allow says"
            report.equal(what, where, allow.get(name, "no such member"), key)
        self._names.add(name)
        self._keys.add(key)
        self.enrolments.append(record)

    def complete(self, where: str) -> None:
        """The last enrolment is over: everybody is there, and the ledger can begin."""
        run = self.run
        if run.settings.allow:
            what = "the members that identity.allow names did not all enrol"
            run.report.equal(what, where, sorted(run.settings.allow.keys() - self._names), [])
        run.ledger = Ledger(run.settings, run.manifest["zero_state"], self.enrolments)
        contributors, steps = len(run.ledger.contributors), len(run.settings.first_steps)
        what = "train.steps does not have one number per contributor"
        run.report.equal(what, where, contributors, steps)
        if contributors > steps:
            raise ProtocolError(what, expected=contributors, got=steps)

    # --- between turns ---

    def _present(self, entry: Entry) -> str:
        """The present key of the member that a record is about; ProtocolError when there is none such."""
        record, report, where = entry.record, self.run.report, place(entry)
        name = record["member"]
        identity = self.run.ledger.identities.get(name)
        if identity is None:
            raise ProtocolError(f"a {entry.kind} is of somebody who never enrolled", got=name)
        key: str = identity["key"]
        what = f"the key in the {entry.kind} of {name} is not its present key"
        report.equal(what, where, key, record["key"])
        if name in self.run.ledger.quarantined:
            what = f"the {entry.kind} of {name} is of a member in quarantine"
            report.add(what, where, "somebody not in quarantine", name)
        return key

    def rotate(self, entry: Entry) -> None:
        """A key-rotation: signed with the present key, proven with the new one, which nobody ever had."""
        record, report, where = entry.record, self.run.report, place(entry)
        name, new_key = record["member"], record["new_key"]
        present = self._present(entry)
        if not entry.envelope.signed_by(present):
            what = f"the key-rotation of {name} is not signed with its present key"
            report.add(what, where, present, entry.envelope.keyid)
        try:
            public = parse_key(new_key)
        except SignatureError as error:
            raise ProtocolError(f"the new key of {name}: {error.what}", got=new_key) from None
        signed = {"key": record["key"], "member": name, "new_key": new_key, "run": self.run.run_id}
        if not proof_holds(public, record["proof"], "barnraise/key-rotation/v1", signed):
            what = f"the proof in the key-rotation of {name} does not hold"
            report.add(what, where, f"a signature by {new_key}", record["proof"])
        if new_key in self._keys:
            what = f"the new key of {name} is or was somebody's"
            report.add(what, where, "a key that nobody ever had", new_key)
        self._keys.add(new_key)
        self.run.ledger.rotate(name, new_key)

    def revoke(self, entry: Entry) -> None:
        """A key-revocation: signed by whom it says."""
        record = entry.record
        present = self._present(entry)
        signer = present if record["by"] == "member" else self.run.manifest["coordinator"]
        if not entry.envelope.signed_by(signer):
            what = f"the key-revocation of {record['member']} is not signed by the {record['by']}"
            self.run.report.add(what, place(entry), signer, entry.envelope.keyid)
        self.run.ledger.revoke(record["member"])
