"""Witnesses at level 1: the manifest's list, cosigned heads, links, short draws; honest runs, then lies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verification.test_fsck_bytes import (
    cosignature,
    cosigned,
    dom,
    key_text,
    note_of,
    sign_object,
    tree_root,
    vkey,
    witness_vkey,
)
from tests.verification.test_fsck_lies import lying, popper, setter
from tests.verification.test_fsck_state import State
from tests.verification.test_fsck_writer import Writer
from verification.errors import BarnraiseError, FormatError
from verification.fsck import check_run
from verification.fsck_cosign import parse_cosigned, parse_witness_key

Record = dict[str, Any]
THREE = ["w1.example", "w2.example/two", "w3.example"]
W1, W2, W3 = THREE
BASE: dict[str, Any] = {"witnesses": THREE, "required": 2, "script": {}, "silent": {}}
BY_LOT: dict[str, Any] = {"audit__rate_ppm": 100_000, "audit__probation_rounds": 0}


def failures(writer: Writer, turns: int = 2) -> list[str]:
    return [f.what for f in check_run(writer.run(turns=turns).write()).failures]


# --- honest runs ---


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"required": 3},
        {"named": {0: [W1, W3], 1: [W2, W3]}},
        {"away": {(0, 1): [W1], (1, 2): [W3]}, "mute": {(0, 1): [W2], (0, 2): THREE, (2, 1): [W3]}},
        {"mute": {(turn, look): [W1] for turn in range(2) for look in (1, 2)}, **BY_LOT},
    ],
)
def test_honest_runs_with_witnesses_hold(tmp_path: Path, over: dict[str, Any]) -> None:
    writer = Writer(tmp_path / "run", **{**BASE, **over})
    assert failures(writer, 3) == []


def test_whoever_holds_a_link_back_brings_about_more_audits(tmp_path: Path) -> None:
    over = {"mute": {(0, 1): [W2], (1, 1): [W2], (1, 2): [W2]}, **BY_LOT, "audit__second_look_ppm": 0}
    writer = Writer(tmp_path / "run", **{**BASE, **over})
    assert failures(writer, 3) == []
    draws = [r for k, r, _ in writer.records if k == "draw"]
    seconds = [r for k, r, _ in writer.records if k == "second-draw"]
    assert [len(r["drawn"]) for r in draws[:2]] == [5, 5]
    assert len(draws[2]["drawn"]) < 5
    assert [len(r["looks"]) > 2 for r in seconds] == [True, True, False]
    assert seconds[2]["looks"] == []


def test_a_short_draw_alone_is_looked_at_twice(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", **BASE, mute={(0, 1): [W2]}, audit__second_look_ppm=0)
    assert failures(writer) == []
    looks = [[d["slot"] for d in r["looks"]] for k, r, _ in writer.records if k == "second-draw"]
    first = [r for k, r, _ in writer.records if k == "verdict" and r["look"] == 1 and r["round"] == 1]
    operators = {name: operator for name, _, operator, _ in writer.members}
    drawn = next(r["drawn"] for k, r, _ in writer.records if k == "draw")
    asked = {d["slot"]: {operators[name] for name in d["auditors"]} for d in drawn}
    due = [v["slot"] for v in first if len(asked[v["slot"]]) > 1]
    assert looks == [due, []]
    assert len(due) > 2


def test_the_checkpoint_may_be_cosigned(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", **BASE).run(turns=1)
    run, note = writer.write(), note_of(writer.entries)

    def checked(text: str) -> list[tuple[str, str]]:
        (run / "log" / "checkpoint").write_text(text)
        return [(f.where, f.what) for f in check_run(run).failures]

    assert checked(cosigned(note, W1, W3)) == []
    where = "log/checkpoint"
    order = "the cosignatures on the checkpoint are not in the manifest's order, each once"
    assert checked(cosigned(note, W3, W1)) == [(where, order)]
    assert checked(cosigned(note, W1, W1)) == [(where, order)]
    stranger = "eve cosigned the checkpoint and is no witness of the manifest"
    assert (where, stranger) in checked(cosigned(note, "eve"))
    does_not_hold = f"the cosignature of {W1} on the checkpoint does not hold"
    assert checked(note + cosignature(note, W1, signer="eve")) == [(where, does_not_hold)]
    assert checked(note + cosignature(note_of(writer.entries[:-1]), W1)) == [(where, does_not_hold)]
    assert checked(note + cosignature(note, W1, time=0))[0][0] == where
    assert checked(note + cosignature(note, W1, time=2**53))[0][0] == where
    assert checked(note + cosignature(note, W1, time=2**53 - 1)) == []


# --- lies ---


def witnessing(change: Callable[[list[Record], Writer], None]) -> Any:
    """Another list of witnesses in the manifest."""

    def lie(kind: str, record: Record, writer: Writer) -> Record:
        if kind == "manifest":
            change(record["witnessing"]["witnesses"], writer)
        return record

    return lie


def replaced(at: int, name: str, signer: str = "") -> Any:
    return witnessing(lambda listed, w: listed.__setitem__(at, w.witness_entry(name, signer)))


def too_short(listed: list[Record], writer: Writer) -> None:
    chain = {**listed[0]["chain"], "length": 59}
    signed = {**chain, "log_vkey": vkey(), "witness": witness_vkey(W1)}
    listed[0].update(chain=chain, proof=sign_object(W1, "barnraise/witness-chain/v1", signed))


MANIFESTS: dict[str, tuple[str, Any]] = {
    "proof": (
        f"the proof of the chain of the witness {W1} does not hold",
        witnessing(lambda listed, _: listed[0].update(proof=listed[1]["proof"])),
    ),
    "proof of another length": (
        f"the proof of the chain of the witness {W2} does not hold",
        witnessing(lambda listed, _: listed[1]["chain"].update(length=71)),
    ),
    "no base64": (
        f"the proof of the chain of the witness {W3} does not hold",
        witnessing(lambda listed, _: listed[2].update(proof="?")),
    ),
    "short chain": (f"the chain of the witness {W1} is too short", witnessing(too_short)),
    "one name": ("two witnesses have one name", replaced(1, W1, "eve")),
    "one key": (f"the key of the witness {W2} is another's too", replaced(1, W2, W1)),
    "coordinator": (f"the key of the witness {W2} is another's too", replaced(1, W2, "coordinator")),
    "none required": (
        "the number of witnesses that are required does not fit",
        lying("manifest", setter("witnessing.required", 0)),
    ),
    "too many required": (
        "the number of witnesses that are required does not fit",
        lying("manifest", setter("witnessing.required", 4)),
    ),
    "log's vkey": (
        "the manifest is malformed",
        witnessing(lambda listed, _: listed[0].update(vkey=vkey())),
    ),
    "another member": (
        "the manifest is malformed",
        witnessing(lambda listed, _: listed[0].update(more=1)),
    ),
    "a witness enrols": (
        "the key of xia is another member's too, or the coordinator's or a witness's",
        lying("enrol", lambda r, _: [("enrol", {**r, "key": key_text(W1)}, W1)], nth=1),
    ),
    "the coordinator enrols": (
        "the key of xia is another member's too, or the coordinator's or a witness's",
        lying("enrol", lambda r, _: [("enrol", {**r, "key": key_text("coordinator")}, "coordinator")], nth=1),
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_wrong_list_of_witnesses_is_named(tmp_path: Path, name: str) -> None:
    expected, lie = MANIFESTS[name]
    what = failures(Writer(tmp_path / "run", lie=lie, **BASE), 1)
    assert any(re.search(re.escape(expected), text) for text in what), what


def test_a_requirement_without_witnesses(tmp_path: Path) -> None:
    lie = lying("manifest", setter("witnessing.required", 1))
    what = failures(Writer(tmp_path / "run", script={}, lie=lie), 1)
    assert "the number of witnesses that are required does not fit their list" in what


def head_by(*names: str) -> Any:
    """The head of the draw, cosigned by others."""
    return lambda record, writer: record.update(head=cosigned(note_of(writer.entries), *names))


def head_with(line: Callable[[str], str]) -> Any:
    return lambda record, writer: record.update(
        head=cosigned(note_of(writer.entries), W1, W2) + line(note_of(writer.entries))
    )


def proof_over(**other: Any) -> Any:
    """A proof of the first witness's right link, over something else."""

    def change(record: Record, writer: Writer) -> None:
        signed = {
            "link": record["links"][0]["link"],
            "log_vkey": vkey(),
            "number": 3,
            "root": tree_root(writer.entries).hex(),
            "size": len(writer.entries),
            "witness": witness_vkey(W1),
            **other,
        }
        record["links"][0]["proof"] = sign_object(W1, "barnraise/witness-link/v1", signed)

    return change


def seed_without_links(record: Record, writer: Writer) -> None:
    names = ("run", "round", "attempt", "link")
    value = {**{name: record[name] for name in names}, "turn": 1, "look": 1, "beacon": None, "witnesses": []}
    value |= {"head_size": len(writer.entries), "head_root": tree_root(writer.entries).hex()}
    record["seed"] = dom("barnraise/draw/v1", value)


def link_of_another_number(record: Record, writer: Writer) -> None:
    record["links"][0]["link"] = writer.witness_chains[W1][-1 - 4].hex()


LIES: dict[str, tuple[str, str, Any]] = {
    "head 1 cosigned": (
        "head 1 is no checkpoint",
        "reveal-close",
        lambda r, w: r.update(head=cosigned(r["head"], W1)),
    ),
    "too few": ("head 2 is cosigned by fewer witnesses than are required", "draw", head_by(W2)),
    "too few again": (
        "head 3 is cosigned by fewer witnesses than are required",
        "second-draw",
        head_by(W2),
    ),
    "stranger": ("eve cosigned head 2 and is no witness of the manifest", "draw", head_by(W1, W2, "eve")),
    "order": ("the cosignatures on head 2 are not in the manifest's order", "draw", head_by(W2, W1)),
    "twice": ("the cosignatures on head 2 are not in the manifest's order", "draw", head_by(W1, W1, W2)),
    "forged": (
        f"the cosignature of {W3} on head 2 does not hold",
        "draw",
        head_with(lambda note: cosignature(note, W3, signer="eve")),
    ),
    "of another head": (
        f"the cosignature of {W3} on head 2 does not hold",
        "draw",
        head_with(lambda note: cosignature(note.replace("example.org", "example.net"), W3)),
    ),
    "time": (
        "head 2 is no checkpoint: not a cosignature",
        "draw",
        head_with(lambda n: cosignature(n, W3, 0)),
    ),
    "no line": ("head 2 is no checkpoint: not a cosignature line", "draw", head_with(lambda n: "\n")),
    "link": (
        f"the link of {W1} in the draw is not link 3 of its chain",
        "draw",
        setter("links.0.link", "00" * 32),
    ),
    "other number": (f"the link of {W1} in the draw is not link 3", "draw", link_of_another_number),
    "without cosignature": (
        f"{W3} has a link in the draw though it did not cosign the head",
        "draw",
        head_by(W1, W2),
    ),
    "half a link": (f"{W1} has a link without its proof", "draw", setter("links.0.proof", None)),
    "half a proof": (f"{W1} has a link without its proof", "draw", setter("links.0.link", None)),
    "proof of another root": ("does not hold for this head", "draw", proof_over(root="00" * 32)),
    "proof of another size": ("does not hold for this head", "draw", proof_over(size=7)),
    "proof of another number": ("does not hold for this head", "draw", proof_over(number=4)),
    "proof of another log": ("does not hold for this head", "draw", proof_over(log_vkey=vkey("ann"))),
    "proof of another witness": ("does not hold", "draw", proof_over(witness=witness_vkey(W2))),
    "links left out": (
        "the links of draw in round 2 are not those of the witnesses it names",
        "draw",
        popper("links"),
    ),
    "links in another order": (
        "the links of second-draw in round 2 are not those",
        "second-draw",
        lambda r, _: r["links"].reverse(),
    ),
    "seed": ("the seed of draw in round 2 is wrong", "draw", seed_without_links),
    "names too few": (
        "round 2 names fewer witnesses than are required",
        "round-open",
        setter("witnesses", [W2]),
    ),
    "names strangers": (
        "the witnesses of round 2 are not some of the manifest's",
        "round-open",
        setter("witnesses", [W1, W2, "eve"]),
    ),
    "names out of order": (
        "the witnesses of round 2 are not some of the manifest's",
        "round-open",
        setter("witnesses", [W3, W1]),
    ),
    "names twice": (
        "the witnesses of round 2 are not some of the manifest's",
        "round-open",
        setter("witnesses", [W1, W1, W2]),
    ),
}
ALONE = ["head 1 cosigned", "proof of another root", "proof of another log"]


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_witnesses_is_named(tmp_path: Path, name: str) -> None:
    expected, kind, change = LIES[name]
    what = failures(Writer(tmp_path / "run", lie=lying(kind, change, turn=1), **BASE))
    assert any(expected in text for text in what), what
    if name in ALONE:
        assert len(what) == 1, what


class Cosigned(Writer):
    """In every turn witnesses cosign that need not be those that the open names."""

    by: list[str] = THREE

    def cosigners(self) -> list[str]:
        return self.by


@pytest.mark.parametrize(
    ("named", "by", "required"), [([W1, W2], THREE, 2), ([W1, W2], [W1, W3], 2), ([W2], [W1, W3], 1)]
)
def test_witnesses_that_the_open_does_not_name_cosign(
    tmp_path: Path, named: list[str], by: list[str], required: int
) -> None:
    gone = [name for name in named if name not in by]
    mute = {(turn, look): gone for turn in range(2) for look in (1, 2)}
    over = {**BASE, "required": required, "named": {0: named, 1: named}, "mute": mute}
    writer = Cosigned(tmp_path / "run", **over)
    writer.by = by
    assert failures(writer) == []


def test_a_named_witness_that_did_not_cosign_shows_no_link(tmp_path: Path) -> None:
    writer = Cosigned(tmp_path / "run", **BASE, named={0: [W1, W2]})
    writer.by = [W1, W3]
    assert set(failures(writer, 1)) == {
        f"{W2} has a link in the {kind} though it did not cosign the head" for kind in ("draw", "second-draw")
    }


def test_a_witness_that_was_not_named_shows_no_link(tmp_path: Path) -> None:
    def change(record: Record, writer: Writer) -> None:
        record["links"].append({"link": None, "proof": None, "witness": W3})

    lie = lying("draw", change, turn=1)
    what = failures(Writer(tmp_path / "run", lie=lie, **BASE, named={1: [W1, W2]}))
    assert "the links of draw in round 2 are not those of the witnesses it names" in what


class Judging(Writer):
    """Takes every draw for short, or none."""

    short = False

    def is_short(self, chance: Record) -> bool:
        del chance
        return self.short


@pytest.mark.parametrize("short", [True, False])
def test_short_draws_are_those_that_lack_a_link(tmp_path: Path, short: bool) -> None:
    over = {} if short else {"mute": {(turn, look): [W3] for turn in range(2) for look in (1, 2)}}
    writer = Judging(tmp_path / "run", **{**BASE, **BY_LOT, **over, "audit__second_look_ppm": 0})
    writer.short = short
    what = failures(writer)
    assert "the drawn slots of round 1 do not follow from the seed" in what


@pytest.mark.parametrize(("short", "look"), [(True, 0), (False, 1), (False, 2)])
def test_second_looks_in_a_short_turn(tmp_path: Path, short: bool, look: int) -> None:
    over: Any = {} if short else {"mute": {(0, look): [W3]}}
    writer = Judging(tmp_path / "run", **{**BASE, **over, "audit__second_look_ppm": 0})
    writer.short = short
    what = failures(writer, 1)
    assert what[0] == "the second looks of round 1 do not follow from first-looks and seed"


# --- bytes ---


def test_witness_keys() -> None:
    key = parse_witness_key(witness_vkey(W2))
    assert (key.name, str(key), key.key) == (W2, witness_vkey(W2), key_text(W2))
    good = witness_vkey(W1)
    name, key_id, data = good.split("+", 2)
    small = "BAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    for bad in ("", "w", vkey(), f"{name}+00000000+{data}", f"{name}+{key_id.upper()}+{data}",
                f"a b+{key_id}+{data}", f"{'n' * 129}+{key_id}+{data}", f"{name}+{key_id}+{data[:-4]}",
                f"é+{key_id}+{data}", f"+{key_id}+{data}", f"{name}+{key_id}+{small}"):  # fmt: skip
        with pytest.raises(BarnraiseError):
            parse_witness_key(bad)
    assert parse_witness_key(witness_vkey("n" * 128)).name == "n" * 128


def test_cosigned_notes(tmp_path: Path) -> None:
    entries = [b"a", b"b"]
    note = cosigned(note_of(entries), W1, W2)
    head, lines = parse_cosigned(note)
    assert (head.size, [line.name for line in lines], lines[0].time) == (2, [W1, W2], 1_700_000_000)
    assert all(line.holds(parse_witness_key(witness_vkey(line.name)), head) for line in lines)
    assert not lines[0].holds(parse_witness_key(witness_vkey(W2)), head)
    for bad in (note[:-1], note + "\n", note.replace(f"— {W1}", f"- {W1}"), note + "— a b c\n",
                note + "— a \n", note + "— a " + "AAAA" * 30 + "\n"):  # fmt: skip
        with pytest.raises(FormatError):
            parse_cosigned(bad)
    assert State(tmp_path, script={}, silent={}).manifest["witnessing"] == {"required": 0, "witnesses": []}
