"""What from outside the folder a log is held against: key, head, witness policy, receipt.

Owns those comparisons and the words for what they tie the log to.
"""

from __future__ import annotations

import re
from pathlib import Path

from verification.errors import BarnraiseError, FormatError, StorageError, UsageError
from verification.fsck_findings import Report
from verification.fsck_formats import VerifierKey, read_file
from verification.fsck_log import Tree, leaf_hash
from verification.fsck_policy import Policy, Signer, parse_policy
from verification.fsck_receipt import Receipt, inclusion_root, parse_receipt, round_close_of, signers_of
from verification.fsck_turn import Head

_HEAD = re.compile(r"([1-9][0-9]{0,15}):(?:sha256:)?([0-9a-f]{64})")
_UP_TO = re.compile(r" up to entry ([0-9]+)")
_LONGEST = 1 << 20


def _read(path: Path, what: str) -> bytes:
    try:
        return read_file(path, _LONGEST)
    except StorageError as error:
        raise UsageError(
            f"the {what} cannot be read", expected="a file", got=error.got or error.what
        ) from None


class Anchors:
    """What somebody brought, and what of the log it has to be compared with.

    Raises UsageError for a head that is none, a file that cannot be read and a policy that is none.
    """

    def __init__(
        self, *, vkey: str | None, expect_head: str | None, witness_policy: Path | None, receipt: Path | None
    ) -> None:
        self.vkey = vkey
        self.head = None if expect_head is None else _HEAD.fullmatch(expect_head)
        if expect_head is not None and self.head is None:
            expected = "SIZE:HEX with 64 hex digits and a size of at least 1"
            raise UsageError("not a log head", expected=expected, got=expect_head)
        self.policy: Policy | None = None
        if witness_policy is not None:
            self.policy = parse_policy(_read(witness_policy, "witness policy"))
        self.receipt_name = "" if receipt is None else receipt.name
        self.receipt: Receipt | None = None
        self.not_a_receipt: FormatError | None = None
        if receipt is not None:
            try:
                self.receipt = parse_receipt(_read(receipt, "receipt"))
            except FormatError as error:
                self.not_a_receipt = error
        self._sizes = {int(self.head[1])} if self.head else set()
        if self.receipt is not None:
            self._sizes.add(self.receipt.size)
        self._roots: dict[int, bytes] = {}
        self._covered: int | None = None
        self._most: tuple[int, int] = (0, 0)

    # --- while the log is read ---

    def see(self, tree: Tree) -> None:
        """The tree before each entry and at the end of the log."""
        if tree.size in self._sizes:
            self._roots[tree.size] = tree.root()

    def see_head(self, head: Head) -> None:
        """A head of this log, signed by its key; heads come in the order of their sizes."""
        if self.policy is None:
            return
        signers = {(key.name, key.public) for key in head.cosigners}
        if self.policy.satisfied(signers):
            self._covered = head.size
        self._most = max(self._most, (self.policy.known(signers), head.size))

    # --- afterwards ---

    def answer(self, key: VerifierKey | None, size: int, *, signed: bool, report: Report) -> str | None:
        """By what the log is anchored, as in Findings; what does not fit is noted.

        `signed`: log/checkpoint is, by `key`.
        """
        by: list[str] = []
        if self.vkey is not None:
            got = str(key) if key else ""
            same = report.equal("the log's key is not the one expected", "manifest.json", self.vkey, got)
            if same and signed:
                by.append("vkey")
        if self.head is not None and self._check_head(int(self.head[1]), self.head[2], size, report):
            by.append(_tied("expect-head", int(self.head[1]), size))
        if self.policy is not None and self._check_policy(self.policy, key, report):
            by.append(_tied("witness-policy", size if self._covered is None else self._covered, size))
        if self.not_a_receipt is not None:
            error = self.not_a_receipt
            report.add(
                f"the receipt is malformed: {error.what}", self.receipt_name, error.expected, error.got
            )
        if (
            self.receipt is not None
            and key is not None
            and self._check_receipt(self.receipt, key, size, report)
        ):
            by.append(_tied("receipt", self.receipt.size, size))
        return "+".join(by) or None

    def _check_head(self, at: int, root: str, size: int, report: Report) -> bool:
        got = self._roots[at].hex() if at in self._roots else f"only {size} entries"
        return report.equal(f"the log does not contain the expected head of size {at}", "log", root, got)

    def _check_policy(self, policy: Policy, key: VerifierKey | None, report: Report) -> bool:
        if policy.logs and not _names(policy, key):
            report.add(
                "the log is none of the witness policy's", "manifest.json", "one of its logs", str(key)
            )
            return False
        if self._covered is None:
            known, size = self._most
            report.add(
                "no head of the log satisfies the witness policy",
                "log",
                f"at least {policy.least()} of {len(policy.witnesses)} witnesses ({policy.described()})",
                f"at most {known} of them, on the head of size {size}"
                if known
                else "none of them on any head",
            )
        return self._covered is not None

    def _check_receipt(self, receipt: Receipt, key: VerifierKey, size: int, report: Report) -> bool:
        where = self.receipt_name
        try:
            signers = signers_of(receipt, key, self.policy)
            self._check_quorum(signers)
            round_close_of(receipt, f"ed25519:{key.public.hex()}")
            led_to = inclusion_root(leaf_hash(receipt.entry), receipt.index, receipt.size, receipt.hashes)
            if led_to != receipt.root:
                raise FormatError("the receipt's proof does not lead to its head", expected=receipt.head)
        except BarnraiseError as error:
            report.add(f"the receipt does not hold: {error.what}", where, error.expected, error.got)
            return False
        mine = self._roots.get(receipt.size)
        if mine is None:
            what = "the log ends before the receipt's head"
            report.add(what, where, f"at least {receipt.size} entries", f"only {size}")
        elif mine != receipt.root:
            what = f"a fork: the log's key has signed two heads of size {receipt.size}"
            report.add(what, where, f"{receipt.size}:{mine.hex()}, which the folder gives", receipt.head)
        # Where the roots are one, the proof has shown that the entry is the log's at its index.
        return mine == receipt.root

    def _check_quorum(self, signers: list[Signer]) -> None:
        if self.policy is not None and not self.policy.satisfied(signers):
            raise FormatError(
                "its checkpoint does not satisfy the witness policy",
                expected=f"at least {self.policy.least()} known witnesses ({self.policy.described()})",
                got=f"{self.policy.known(signers)} of them",
            )


def _tied(by: str, covered: int, size: int) -> str:
    """The plain word only where the head that was brought is that of the whole log."""
    return by if covered >= size else f"{by} up to entry {covered - 1}"


def not_covered(anchored: str | None, size: int) -> str:
    """In words, what of a log of `size` entries its anchors leave open; empty where that is nothing.

    `anchored` is the answer of `Anchors`; of a log that nothing anchors its null says it already.
    """
    by = (anchored or "").split("+")
    heads = [word for word in by if word != "vkey"]
    ends = [int(found[1]) for word in heads if (found := _UP_TO.search(word))]
    if not ends or len(ends) < len(heads):
        return ""
    first, last = max(ends) + 1, size - 1
    which = f"entry {first} is" if first == last else f"entries {first} to {last} are"
    whom = "the log's own key alone" if "vkey" in by else "nobody outside"
    return f"{which} tied to {whom}"


def _names(policy: Policy, key: VerifierKey | None) -> bool:
    if key is None:
        return False
    mine = key.origin.encode().decode("latin-1"), key.public
    return any(log.signer == mine for log in policy.logs)
