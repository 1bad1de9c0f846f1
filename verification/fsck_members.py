"""Members and their keys: enrolments, leaves, returns, key-rotations and -revocations (protocol, section 4).

Owns the checks of these five records and which keys were ever anybody's. What they do to rosters, credit and
lineage is the ledger's; where they may stand is the rules'.
"""

from __future__ import annotations

from verification.errors import ProtocolError, SignatureError
from verification.fsck_findings import Record
from verification.fsck_formats import parse_key, proof_holds
from verification.fsck_turn import Entry, Run, place


class Members:
    """The members of a run as its log brings them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.enrolments: list[Record] = []
        self._newcomers = 0
        witnesses = (witness.key.key for witness in run.witnesses.values())
        self._keys = {run.manifest["coordinator"], *witnesses}
        """Every key that somebody has or had."""

    # --- enrolments ---

    def enrol(self, entry: Entry) -> None:
        """A new member. Raises of the error family when the log cannot be followed with it."""
        record, report, where = entry.record, self.run.report, place(entry)
        name, key, settings = record["member"], record["key"], self.run.settings
        parse_key(key)
        if not entry.envelope.signed_by(key):
            what = f"the enrolment of {name} is not signed with its own key"
            report.add(what, where, key, entry.envelope.keyid)
        if name in self.run.ledger.identities:
            raise ProtocolError(f"two members are called {name}", expected="unique names")
        if key in self._keys:
            what = f"the key of {name} is another member's too, or the coordinator's or a witness's"
            report.add(what, where, "unique keys", key)
        if settings.allow:
            what = f"{name} is not enrolled as identity.allow says"
            report.equal(what, where, settings.allow.get(name, "no such member"), key)
        self._newcomers += self.run.opens > 0
        if self._newcomers > settings.newcomers:
            what = f"{name} is a newcomer more than identity.newcomers allows"
            report.add(what, where, f"at most {settings.newcomers}", self._newcomers)
        self._keys.add(key)
        self.enrolments.append(record)
        self.run.ledger.enrol(record)

    def complete(self, where: str) -> None:
        """The first turn begins: whoever is not there yet can only be a newcomer."""
        run = self.run
        missing = sorted(run.settings.allow.keys() - run.ledger.identities.keys())
        if len(missing) > run.settings.newcomers:
            what = "more of those that identity.allow names are missing than may be newcomers"
            run.report.add(what, where, f"at most {run.settings.newcomers}", missing)
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

    def _signed_by_member(self, entry: Entry, present: str) -> None:
        if not entry.envelope.signed_by(present):
            what = f"the {entry.kind} of {entry.record['member']} is not signed with its present key"
            self.run.report.add(what, place(entry), present, entry.envelope.keyid)

    def _signed_as_it_says(self, entry: Entry, present: str) -> None:
        by = entry.record["by"]
        signer = present if by == "member" else self.run.manifest["coordinator"]
        if not entry.envelope.signed_by(signer):
            what = f"the {entry.kind} of {entry.record['member']} is not signed by the {by}"
            self.run.report.add(what, place(entry), signer, entry.envelope.keyid)

    def _for_now(self, entry: Entry) -> None:
        """The record is for just before the next open, so that none can be kept for later."""
        what = f"the turn in the {entry.kind} of {entry.record['member']} is wrong"
        self.run.report.equal(what, place(entry), self.run.opens, entry.record["turn"])

    def leave(self, entry: Entry) -> None:
        """A leave: of somebody who is not away yet, signed by whom it says."""
        name = entry.record["member"]
        self._signed_as_it_says(entry, self._present(entry))
        self._for_now(entry)
        if name in self.run.ledger.away:
            what = f"the leave of {name} is of a member that is away already"
            self.run.report.add(what, place(entry), "somebody who is not away", name)
        self.run.ledger.leave(name)

    def come_back(self, entry: Entry) -> None:
        """A return: of somebody who is away, signed with its present key."""
        name = entry.record["member"]
        self._signed_by_member(entry, self._present(entry))
        self._for_now(entry)
        if name not in self.run.ledger.away:
            what = f"the return of {name} is of a member that is not away"
            self.run.report.add(what, place(entry), "somebody who is away", name)
        self.run.ledger.come_back(name)

    def rotate(self, entry: Entry) -> None:
        """A key-rotation: signed with the present key, proven with the new one, which nobody ever had."""
        record, report, where = entry.record, self.run.report, place(entry)
        name, new_key = record["member"], record["new_key"]
        self._signed_by_member(entry, self._present(entry))
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
        self._signed_as_it_says(entry, self._present(entry))
        self.run.ledger.revoke(entry.record["member"])
