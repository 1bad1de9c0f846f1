"""What ties a log to somebody outside: witness policies and receipts."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import (
    canon,
    cosignature,
    cosigned,
    envelope,
    note_of,
    public,
    tree_root,
    vkey,
    witness_vkey,
)
from tests.verification.test_fsck_writer import Writer
from verification.errors import UsageError
from verification.fsck import Findings, check_run
from verification.fsck_anchor import not_covered
from verification.fsck_policy import parse_policy
from verification.fsck_receipt import inclusion_root

W1, W2, W3 = THREE = ["w1.example", "w2.example", "w3.example"]
LINES = "".join(f"witness {name[:2]} {witness_vkey(name)}\n" for name in THREE)
TWO = f"{LINES}group g 2 w1 w2 w3\nquorum g\n"


def written(folder: Path, turns: int = 2, **over: Any) -> Writer:
    over = {"witnesses": THREE, "required": 1, "script": {}, "silent": {}, **over}
    writer = Writer(folder / "run", **over)
    writer.run(turns=turns).write()
    return writer


def cosign(writer: Writer, *names: str) -> None:
    note = cosigned(note_of(writer.entries), *names)
    (writer.folder / "log" / "checkpoint").write_text(note)


def asked(writer: Writer, policy: str = "", receipt: bytes = b"", **more: Any) -> Findings:
    place = writer.folder.parent
    (place / "policy").write_text(policy)
    (place / "the.receipt").write_bytes(receipt)
    if policy:
        more["witness_policy"] = place / "policy"
    if receipt:
        more["receipt"] = place / "the.receipt"
    return check_run(writer.folder, **more)


# --- witness policies ---


def test_a_policy_that_the_checkpoint_satisfies(tmp_path: Path) -> None:
    writer = written(tmp_path)
    cosign(writer, W1, W3)
    log = f"# of the organiser\n\nlog {vkey()} https://log.example\n"
    for policy in (TWO, log + TWO, f"{log}quorum none\n", f"{LINES}quorum w3\n", "\t" + TWO[:-1]):
        found = asked(writer, policy)
        assert (found.failures, found.anchored) == ((), "witness-policy")
    both = asked(writer, TWO, vkey=vkey())
    assert both.anchored == "vkey+witness-policy"


def test_a_policy_that_an_older_head_satisfies(tmp_path: Path) -> None:
    writer = written(tmp_path, away={(0, 2): [W3], (1, 1): [W2, W3], (1, 2): [W2, W3]})
    heads = [i for i, (kind, _, _) in enumerate(writer.records) if kind in ("draw", "second-draw")]
    assert len(heads) == 4
    for policy, at in ((TWO, heads[1]), (f"{LINES}quorum w3\n", heads[0]), (f"{LINES}quorum w1\n", heads[3])):
        found = asked(writer, policy)
        assert (found.failures, found.anchored) == ((), f"witness-policy up to entry {at - 1}")


def test_a_policy_that_no_head_satisfies(tmp_path: Path) -> None:
    writer = written(tmp_path, away={(turn, look): [W2, W3] for turn in (0, 1) for look in (1, 2)})
    found = asked(writer, TWO)
    assert (found.anchored, [f.what for f in found.failures]) == (
        None,
        ["no head of the log satisfies the witness policy"],
    )
    assert found.failures[0].expected == "at least 2 of 3 witnesses (g: 2 of w1, w2, w3)"
    assert found.failures[0].got.startswith("at most 1 of them, on the head of size ")
    alone = asked(writer, f"witness w {witness_vkey('eve')}\nquorum w\n")
    assert alone.failures[0].got == "none of them on any head"
    # A witness of the same key under another name is another witness.
    other = asked(writer, f"witness w1 {witness_vkey('w9.example', W1)}\nquorum w1\n")
    assert other.failures[0].got == "none of them on any head"


def test_a_policy_of_other_logs(tmp_path: Path) -> None:
    writer = written(tmp_path)
    cosign(writer, *THREE)
    for log in (vkey("ann"), vkey(origin="example.org/other")):
        found = asked(writer, f"log {log}\n{TWO}")
        assert (found.anchored, [f.what for f in found.failures]) == (
            None,
            ["the log is none of the witness policy's"],
        )
    assert asked(writer, f"log {vkey('ann')}\nlog {vkey()}\n{TWO}").anchored == "witness-policy"


def test_a_head_by_another_key_anchors_nothing(tmp_path: Path) -> None:
    writer = written(tmp_path, away={(turn, look): [W2, W3] for turn in (0, 1) for look in (1, 2)})
    note = cosigned(note_of(writer.entries, signer="ann"), *THREE)
    (writer.folder / "log" / "checkpoint").write_text(note)
    assert asked(writer, TWO).anchored is None
    longer = cosigned(note_of([*writer.entries, b"x"]), *THREE)
    (writer.folder / "log" / "checkpoint").write_text(longer)
    assert asked(writer, TWO).anchored is None
    other = cosigned(note_of([*writer.entries[:-1], b"x"]), *THREE)
    (writer.folder / "log" / "checkpoint").write_text(other)
    assert asked(writer, TWO).anchored is None
    cosign(writer, W1)
    forged = note_of(writer.entries)
    forged += "".join(cosignature(forged, name, signer="eve") for name in THREE)
    (writer.folder / "log" / "checkpoint").write_text(forged)
    assert asked(writer, TWO).anchored is None


@pytest.mark.parametrize("other", ["key", "root"])
def test_a_head_in_the_log_that_is_not_its_own_anchors_nothing(tmp_path: Path, other: str) -> None:
    def lie(kind: str, record: Any, writer: Writer) -> Any:
        if kind == "draw" and writer.turn == 1:
            entries = writer.entries if other == "key" else [*writer.entries[:-1], b"another"]
            note = note_of(entries, signer="ann" if other == "key" else "coordinator")
            record["head"] = cosigned(note, *THREE)
        return record

    away = {at: [W2, W3] for at in ((0, 1), (0, 2), (1, 2))}
    found = asked(written(tmp_path, away=away, lie=lie), TWO)
    assert found.anchored is None
    assert found.failures[0].what.startswith("head 2 ")


def test_groups() -> None:
    keys = [witness_vkey(f"w{i}") for i in range(6)]
    lines = "".join(f"witness w{i} {key}\n" for i, key in enumerate(keys))
    text = f"{lines}group x 2 w0 w1 w2\ngroup y any w3 w4\ngroup all all x y\nquorum all\n"
    policy = parse_policy(text.encode())
    signer = [(f"w{i}", public(f"w{i}")) for i in range(6)]
    for signers, enough in (((0, 1, 3), True), ((0, 1, 2), False), ((0, 3, 4), False), ((1, 2, 4, 5), True)):
        assert policy.satisfied({signer[i] for i in signers}) is enough
    assert (policy.least(), policy.known({signer[0], signer[5], ("z", b"")})) == (3, 2)
    assert parse_policy(f"{lines}group g all w0 w1\nquorum w5\n".encode()).satisfied({signer[5]})


W = f"witness w {witness_vkey(W1)}\n"
V = f"witness v {witness_vkey(W2)}\n"


@pytest.mark.parametrize(
    "text",
    [
        "", W, f"{W}quorum v\n", f"{W}quorum w\nquorum w\n", "quorum none\n", f"{W}quorum none\n",
        f"{W}{W}quorum w\n", f"{W}{W.replace('witness w', 'witness u')}quorum w\n", f"{W}quorum w w\n",
        f"log {vkey()}\nlog {vkey()}\nquorum none\n", f"log {witness_vkey(W1)}\nquorum none\n",
        f"witness w {vkey()}\nquorum w\n", f"witness none {witness_vkey(W1)}\nquorum none\n",
        f"{W}group w any w\nquorum w\n", f"{W}group g 0 w\nquorum g\n", f"{W}group g 2 w\nquorum g\n",
        f"{W}group g 01 w\nquorum g\n", f"{W}group g any\nquorum g\n", f"{W}group g any v\n{V}quorum g\n",
        f"{W}{V}group g any w w\nquorum g\n", f"{W}{V}group g any w\ngroup h any w v\nquorum h\n",
        f"{W}group g any none\nquorum g\n", f"{W}quorum w\r\n", f"{W}quorum w\x0b\n", f"{W}quorum w\x7f\n",
        f"{W}quorums w\n", "witness w\nquorum w\n", f"{W}x\nquorum w\n", "group g any g\nquorum g\n",
        f"witness w {witness_vkey(W1)[:-4]}AAAA\nquorum w\n", "witness w w+00000000+AQ==\nquorum w\n",
        f"witness w {witness_vkey(W1).replace('w1', 'w8')}\nquorum w\n", f"log {vkey()} a b\nquorum none\n",
    ],
)  # fmt: skip
def test_a_policy_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text.encode())


def nested(depth: int) -> bytes:
    """Groups that lie in one another."""
    groups = [f"group g{i} any {f'g{i - 1}' if i else 'w'}\n" for i in range(depth)]
    return f"{W}{''.join(groups)}quorum g{depth - 1}\n".encode()


def test_groups_within_groups_are_bounded(tmp_path: Path) -> None:
    policy = parse_policy(nested(256))
    assert policy.satisfied({(W1, public(W1))})
    assert not policy.satisfied({(W2, public(W2))})
    assert policy.least() == 1
    for depth in (257, 3000):
        with pytest.raises(UsageError, match="line 258: more than 256 groups"):
            asked(written(tmp_path / str(depth), 1), nested(depth).decode())


def test_a_policy_names_octets(tmp_path: Path) -> None:
    policy = parse_policy(f"# ☃\nwitness ☃ {witness_vkey(W1)} https://é\nquorum ☃\n".encode())
    assert policy.satisfied({(W1, public(W1))})
    key = bytes([6]) + bytes(1312)
    key_id = hashlib.sha256(b"pq\n" + key).digest()[:4].hex()
    text = f"{W}witness pq pq+{key_id}+{base64.b64encode(key).decode()}\ngroup g any w pq\nquorum g\n"
    assert parse_policy(text.encode()).satisfied({(W1, public(W1))})
    for name in ("none", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="the witness policy cannot be read"):
            check_run(tmp_path, witness_policy=tmp_path / name)


# --- receipts ---


def proof_of(leaves: list[bytes], index: int) -> list[bytes]:
    """RFC 6962, 2.1.1, by its recursive definition."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*proof_of(leaves[:k], index), tree_root(leaves[k:])]
    return [*proof_of(leaves[k:], index - k), tree_root(leaves[:k])]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_inclusion_proofs(size: int) -> None:
    leaves = [bytes([i]) for i in range(size)]
    for index in range(size):
        leaf, proof = hashlib.sha256(b"\0" + leaves[index]).digest(), proof_of(leaves, index)
        assert inclusion_root(leaf, index, size, tuple(proof)) == tree_root(leaves)
        assert inclusion_root(leaf, index, size, (*proof, bytes(32))) is None
        assert inclusion_root(leaf, size, size, tuple(proof)) is None
        if proof:
            assert inclusion_root(leaf, index, size, tuple(proof[1:])) != tree_root(leaves)


def receipt_of(
    entries: list[bytes], index: int, member: str = "ann", note: str = "", extra: Any = None
) -> bytes:
    value = {"entry": base64.b64encode(entries[index]).decode(), "member": member} if extra is None else extra
    lines = ["c2sp.org/tlog-proof@v1", f"extra {base64.b64encode(canon(value)).decode()}", f"index {index}"]
    lines += [base64.b64encode(value).decode() for value in proof_of(entries, index)]
    return ("\n".join(lines) + "\n\n" + (note or note_of(entries))).encode()


def closes(writer: Writer) -> list[int]:
    return [i for i, (kind, _, _) in enumerate(writer.records) if kind == "round-close"]


def test_receipts_of_this_log(tmp_path: Path) -> None:
    writer = written(tmp_path)
    first, last = closes(writer)
    early = writer.entries[: first + 1]
    unknown = cosigned(note_of(early), "eve") + "— other AAAAAAAA\n"
    for receipt in (receipt_of(writer.entries, last), receipt_of(writer.entries, first)):
        found = asked(writer, receipt=receipt)
        assert (found.failures, found.anchored) == ((), "receipt")
    for receipt in (receipt_of(early, first, "bob"), receipt_of(early, first, note=unknown)):
        found = asked(writer, receipt=receipt)
        assert (found.failures, found.anchored) == ((), f"receipt up to entry {first}")
    policy = asked(writer, TWO, receipt_of(early, first, note=cosigned(note_of(early), W1, "eve", W3)))
    assert policy.failures == ()
    assert policy.anchored is not None
    assert policy.anchored.startswith("witness-policy up to entry ")
    assert policy.anchored.endswith(f"+receipt up to entry {first}")


def test_an_expected_head_anchors_what_it_holds(tmp_path: Path) -> None:
    entries = (writer := written(tmp_path)).entries
    size = len(entries)
    for at in (1, 7, size - 1):
        found = asked(writer, expect_head=f"{at}:{tree_root(entries[:at]).hex()}")
        assert (found.failures, found.anchored) == ((), f"expect-head up to entry {at - 1}")
    whole = asked(writer, expect_head=f"{size}:{tree_root(entries).hex()}", vkey=vkey())
    assert (whole.failures, whole.anchored) == ((), "vkey+expect-head")
    nothing = hashlib.sha256(b"").hexdigest()
    for head in (f"0:{nothing}", f"0:sha256:{nothing}", f"00:{nothing}"):
        with pytest.raises(UsageError, match="not a log head"):
            asked(writer, expect_head=head)


@pytest.mark.parametrize(
    ("anchored", "words"),
    [
        (None, ""),
        ("vkey", ""),
        ("expect-head", ""),
        ("vkey+receipt", ""),
        ("witness-policy up to entry 7+receipt", ""),
        ("receipt up to entry 7", "entries 8 to 19 are tied to nobody outside"),
        ("expect-head up to entry 18", "entry 19 is tied to nobody outside"),
        ("expect-head up to entry 9+receipt up to entry 7", "entries 10 to 19 are tied to nobody outside"),
        ("vkey+receipt up to entry 7", "entries 8 to 19 are tied to the log's own key alone"),
    ],
)
def test_what_is_not_covered_is_said_in_words(anchored: str | None, words: str) -> None:
    assert not_covered(anchored, 20) == words


def refused(writer: Writer, receipt: bytes, policy: str = "") -> str:
    found = asked(writer, policy, receipt)
    assert found.anchored is None or "receipt" not in found.anchored
    assert [f.where for f in found.failures] == ["the.receipt"]
    return found.failures[0].what


def test_a_fork_shows_both_heads(tmp_path: Path) -> None:
    writer = written(tmp_path)
    at = closes(writer)[0]
    other = [*writer.entries[:2], b"another history", *writer.entries[3:]]
    found = asked(writer, receipt=receipt_of(other, at))
    [failure] = found.failures
    assert failure.what == f"a fork: the log's key has signed two heads of size {len(other)}"
    assert tree_root(writer.entries).hex() in failure.expected
    assert failure.got == f"{len(other)}:{tree_root(other).hex()}"
    assert found.anchored is None


def test_receipts_that_do_not_hold(tmp_path: Path) -> None:
    writer = written(tmp_path)
    first, last = closes(writer)
    entries = writer.entries
    holds_not = "the receipt does not hold: "
    longer = [*entries, b"more"]
    assert refused(writer, receipt_of(longer, first)) == "the log ends before the receipt's head"
    foreign = receipt_of(entries, first, note=note_of(entries, signer="ann"))
    assert refused(writer, foreign) == f"{holds_not}the receipt's checkpoint is not signed with the log's key"
    other = receipt_of(entries, first, note=note_of(entries, origin="example.org/other"))
    assert refused(writer, other) == f"{holds_not}the receipt's checkpoint is not signed with the log's key"
    body, line = note_of(entries).rsplit("\n\n", 1)
    stale = f"{body}\n\n{note_of(entries[:-1]).rsplit(chr(10) * 2, 1)[1]}"
    assert "does not hold" in refused(writer, receipt_of(entries, first, note=stale))
    assert "not of a round-close" in refused(writer, receipt_of(entries, 1))
    assert "does not settle its member" in refused(writer, receipt_of(entries, first, "xia"))
    wrong = receipt_of(entries, first).replace(b"index %d\n" % first, b"index %d\n" % (first + 1))
    assert "does not lead to its head" in refused(writer, wrong)
    swapped = {"entry": base64.b64encode(entries[last]).decode(), "member": "ann"}
    assert "does not lead to its head" in refused(writer, receipt_of(entries, first, extra=swapped))
    assert line


def test_a_receipt_of_a_round_close_by_another(tmp_path: Path) -> None:
    """In a log whose key signed it, an entry that the coordinator did not."""

    def lie(kind: str, record: Any, _: Writer) -> Any:
        return [(kind, record, "ann")] if kind == "round-close" else record

    writer = Writer(tmp_path / "run", script={}, silent={}, lie=lie).run(turns=1)
    writer.write()
    found = asked(writer, receipt=receipt_of(writer.entries, closes(writer)[0]))
    what = "the receipt does not hold: the receipt's entry is not signed by the coordinator"
    assert what in [f.what for f in found.failures]


def test_a_receipt_of_a_log_whose_manifest_gives_no_key(tmp_path: Path) -> None:
    """There is nothing to hold it against; that the manifest is malformed is what is said."""
    receipt = receipt_of((writer := written(tmp_path, 1)).entries, closes(writer)[0])
    nameless = {**writer.manifest, "origin": "a b"}
    writer.manifest, writer.files = nameless, {}
    subject = ("dataset", nameless["dataset"]["root"][7:])
    writer.entries = [envelope("manifest", nameless, "coordinator", subject)]
    writer.write()
    found = asked(writer, receipt=receipt)
    what = "the manifest is malformed: an origin must be printable, without spaces and plus signs"
    assert ([f.what for f in found.failures], found.anchored) == ([what], None)


def test_a_receipt_and_a_policy(tmp_path: Path) -> None:
    writer = written(tmp_path)
    cosign(writer, W1, W2)
    at = closes(writer)[0]
    note = note_of(writer.entries)
    few = asked(writer, TWO, receipt_of(writer.entries, at, note=cosigned(note, W1)))
    assert few.anchored == "witness-policy"
    assert few.failures[0].what.endswith("its checkpoint does not satisfy the witness policy")
    assert few.failures[0].got == "1 of them"
    forged = cosigned(note, W1, W2) + cosignature(note_of(writer.entries[:-1]), W3)
    bad = asked(writer, TWO, receipt_of(writer.entries, at, note=forged))
    assert "a cosignature on the receipt's checkpoint does not hold" in bad.failures[0].what
    twice = asked(writer, TWO, receipt_of(writer.entries, at, note=cosigned(note, W1, W1)))
    assert twice.failures[0].got == "1 of them"


def test_malformed_receipts(tmp_path: Path) -> None:
    writer = written(tmp_path, 1)
    good = receipt_of(writer.entries, closes(writer)[0])
    lines = good.split(b"\n")
    bad = [b"", b"x", b"\xff" + good, good[:-1], good + b"\n", good.replace(b"@v1", b"@v2", 1)]
    bad += [good.replace(b"index ", b"index 0", 1), good.replace(b"extra ", b"extra  ", 1)]
    bad += [b"\n".join([lines[0], *lines[2:]]), b"\n".join([*lines[:3], b"AAAA", *lines[3:]])]
    bad += [receipt_of(writer.entries, 1, extra={"entry": "AA==", "member": "ann", "more": 1})]
    bad += [receipt_of(writer.entries, 1, extra={"entry": 1, "member": "ann"})]
    bad += [good.replace("— ".encode(), b"- "), b"\n".join([*lines[:-3], b"extension", *lines[-3:]])]
    for receipt in bad[1:]:
        assert refused(writer, receipt).startswith(
            ("the receipt is malformed: ", "the receipt does not hold")
        )
    with pytest.raises(UsageError, match="the receipt cannot be read"):
        check_run(writer.folder, receipt=tmp_path / "none")
