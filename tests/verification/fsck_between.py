"""What stands between the turns of a made-up run, for the tests of level 1: keys change, members come and go.

Written from the protocol's section 4 and as plainly as it is: no code of the checker's is used.
"""

from __future__ import annotations

from typing import Any

from tests.verification.test_fsck_bytes import key_text, sign_object


class Between:
    """Logs what is to stand before each open, and does to the run what it means."""

    # turn -> what stands before its open: ("enrol", member, role, operator, class),
    # ("leave", member, by whom), ("return", member), ("rotate", member), ("revoke", member, by whom)
    between: dict[int, list[Any]]
    config: dict[str, Any]
    run_id: str
    turn: int
    contributors: list[Any]
    info: dict[str, Any]
    key_names: dict[str, str]
    gone: set[str]
    quarantined: list[str]
    steps: list[int]
    micro_batches: list[int]
    state: dict[str, bytes]
    accepted: dict[str, int]
    credit: dict[str, dict[str, int]]
    unvested: list[tuple[int, str, int]]

    def add(self, kind: str, record: dict[str, Any], signer: str = "coordinator") -> None:
        raise NotImplementedError

    def signer(self, name: str) -> str:
        """Of what a member's present key is made."""
        return self.key_names.get(name, name)

    def key(self, name: str) -> str:
        return key_text(self.signer(name))

    def change_keys(self) -> None:
        """What stands in the log before the next open."""
        does = {"enrol": self.come, "leave": self.leave, "return": self.come_back}
        does |= {"rotate": self.rotate, "revoke": self.revoke}
        for what, *told in self.between.get(self.turn, []):
            does[what](*told)

    def of(self, name: str, **fields: Any) -> dict[str, Any]:
        """A record about a member."""
        return {"protocol": 1, "run": self.run_id, "member": name, "key": self.key(name), **fields}

    def come(self, name: str, role: str, operator: str, numerics: str) -> None:
        self.add("enrol", self.of(name, role=role, operator=operator, **{"class": numerics}), name)
        self.info[name] = (name, role, operator, numerics)
        self.credit[name] = {"earned": 0, "forfeited": 0, "member": name, "vested": 0}
        if role == "contributor":
            self.contributors.append(self.info[name])
            self.state[name] = b"zero"
            train = self.config["train"]
            self.steps.append(min(train["steps"]))
            self.micro_batches.append(min(train["micro_batch"]) if train["micro_batch"] else train["batch"])

    def leave(self, name: str, by: str) -> None:
        signer = self.signer(name) if by == "member" else "coordinator"
        self.add("leave", self.of(name, turn=self.turn, by=by), signer)
        self.gone.add(name)

    def come_back(self, name: str) -> None:
        self.add("return", self.of(name, turn=self.turn), self.signer(name))
        self.gone.discard(name)

    def rotate(self, name: str) -> None:
        new = f"{self.signer(name)}'"
        signed = {"key": self.key(name), "member": name, "new_key": key_text(new), "run": self.run_id}
        proof = sign_object(new, "barnraise/key-rotation/v1", signed)
        self.add("key-rotation", self.of(name, new_key=key_text(new), proof=proof), self.signer(name))
        self.key_names[name] = new
        self.accepted[name] = 0
        self.state[name] = b"zero"

    def revoke(self, name: str, by: str) -> None:
        self.add(
            "key-revocation", self.of(name, by=by), self.signer(name) if by == "member" else "coordinator"
        )
        self.quarantined = sorted({*self.quarantined, name})
        for entry in [entry for entry in self.unvested if entry[1] == name]:
            self.credit[name]["forfeited"] += entry[2]
            self.unvested.remove(entry)
