"""Records: every kind round-trips through its envelope, and nothing but the right keys and types is taken."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fake_disputes import BOTH_LIE, disputed
from tests.verification.fake_run import key, manifest, sha
from tests.verification.late_play import late_rich_run
from tests.verification.rich_run import rich_run
from verification.encoding import Json, canonical_json, from_json, to_json
from verification.envelope import open_envelope, seal
from verification.errors import BarnraiseError, FormatError, SignatureError
from verification.records import (
    Appeal,
    Draw,
    DrawnSlot,
    Enrol,
    Manifest,
    Record,
    RoundOpen,
    Settlement,
    Verdict,
)
from verification.sealing import KINDS, open_record, parse_predicate, predicate, seal_record

SIGNER = key("signer")
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
SHA, BLAKE = HEX.map("sha256:{}".format), HEX.map("blake3:{}".format)
COUNT = st.integers(0, 2**53 - 1)
NAMES = st.text("abcz019._-", min_size=1, max_size=64)
RANGES = st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda pair: (pair[0], pair[0] + pair[1]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(float.hex)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "protocol": st.just(1),
    "run": SHA,
    "member": NAMES,
    "operator": NAMES,
    "numerics_class": st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200
    ),
    "salt": HEX,
    "commitment": SHA,
    "positions": st.lists(RANGES, max_size=3).map(tuple),
    "trace_root": SHA,
    "end": SHA,
    "own": SHA,
    "sketch": st.lists(st.integers(-(10**7), 10**7), min_size=8, max_size=8).map(tuple),
    "round": st.integers(1, 2**53 - 1),  # of a pulse too
    "pulse": st.none() | st.integers(1, 2**53 - 1),
    "period": st.integers(1, 2**53 - 1),
    "public_key": st.text("0123456789abcdef", min_size=192, max_size=192),
    "signature": st.text("0123456789abcdef", min_size=96, max_size=96),
    "look": st.integers(1, 2**53 - 1),
    "verdict": SHA,
    "verdicts": st.tuples(SHA, SHA),
    "trace": st.lists(SHA | HEX, max_size=3).map(tuple),
    "outer_lr": FLOATS,
    "inner_lr": st.lists(FLOATS, max_size=3).map(tuple),
    "dataset": st.builds(lambda root, n: {"root": root, "context": n}, SHA, COUNT),
    "config": st.dictionaries(st.text("ab", max_size=3), st.one_of(COUNT, st.text(max_size=3)), max_size=3),
} | dict.fromkeys(("weights", "outer", "payload", "start_state", "next_state", "zero_state"), BLAKE)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return records(kind)
    if kind is int:
        return COUNT
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arg is type(None) else values(arg) for arg in args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(arg) for arg in args))
    return st.dictionaries(st.text("abc", max_size=3), values(args[1]), max_size=2)


def records(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return st.builds(kind, **{n: BY_NAME[n] if n in BY_NAME else values(hints[n]) for n in names})


any_record = st.one_of(*(records(kind) for kind in KINDS.values()))
RICH_MANIFEST = manifest(3, audit={"probation_rounds": 9})
EXAMPLES: dict[str, Record] = {record.kind: record for record in reversed([RICH_MANIFEST, *rich_run()])}
_late = next(r for r in late_rich_run(1) if isinstance(r, Settlement) and len(r.removed) > 1)
EXAMPLES["settlement"] = dataclasses.replace(_late, run=RICH_MANIFEST.run_id)
_appeal = next(r for r in disputed(BOTH_LIE).records if isinstance(r, Appeal))
EXAMPLES["appeal"] = dataclasses.replace(_appeal, run=RICH_MANIFEST.run_id)


def name_of(kind: type) -> str:
    return str(kind.kind)  # type: ignore[attr-defined]


@settings(max_examples=200, deadline=None)
@given(any_record)
def test_every_record_comes_back_from_its_envelope(record: Record) -> None:
    envelope = seal_record(record, SIGNER)
    assert open_record(type(record), envelope, SIGNER.public) == record
    assert seal_record(record, SIGNER) == envelope
    sealed = open_envelope(envelope)
    assert sealed.predicate_type == f"barnraise:{record.kind}:v1"
    named = ("dataset", record.dataset["root"]) if isinstance(record, Manifest) else ("run", record.run)
    assert (sealed.subject_name, "sha256:" + sealed.subject_sha256) == named


def test_there_is_an_example_of_every_kind() -> None:
    assert {f"barnraise:{name}:v1" for name in EXAMPLES} == set(KINDS)
    assert list(KINDS) == [f"barnraise:{name_of(kind)}:v1" for kind in KINDS.values()]


GOLDEN = {
    "appeal": "d9b1ee56f941bb73d2f228314224d3da",
    "commit-close": "6530ae46fcac3c194d8a245ef82af5bd",
    "commitment": "22c60bf92efb5dafc330996c658b1bb2",
    "draw": "6c4c28c566c06633ee7f50c3721535c1",
    "enrol": "d25c4ae8f0a5035651353c4f69bad744",
    "first-looks": "70769c1ff15f3c00d54b222dc268e2e5",
    "key-revocation": "1b6b5af4382392b24175f29ba53123e3",
    "key-rotation": "9e857bb94dcca3efe7487802f07fe242",
    "leave": "38d1ade7a2e57665e7601e7079e22cca",
    "manifest": "c790402c518a0010730acfe1ca77c0f6",
    "return": "6e6dd72837610c912a4f0dc706570c76",
    "reveal": "a5825dc37d4e985562210bc8626a584f",
    "reveal-close": "4c5e7fb4ff3b3ae64ab4d8b31a8c0023",
    "round-close": "b19a4dc6722cdc98a364cc9738da790f",
    "round-open": "8040ef500a912c3f6aecb472688b7c6c",
    "run-close": "2d8f5bd83efb4896c329a7b6111aa964",
    "second-draw": "1135c9b529985c1321ab2e6b965b14ca",
    "served": "ea1714c99391ff02646f7ede9e57ea28",
    "settlement": "7a04a1ba15bcbbc76a07547f1072e579",
    "verdict": "2890ec98dd4140b0eb20e16fb85c6e54",
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_golden_bytes(name: str) -> None:
    assert sha256(seal_record(EXAMPLES[name], SIGNER)).hexdigest()[:32] == GOLDEN[name]


def test_a_golden_enrolment_in_full() -> None:
    record = Enrol(1, sha("run"), "c0", "contributor", "op-a", key("c0").public, "exact/x")
    assert canonical_json(predicate(record)) == (
        b'{"class":"exact/x","key":"' + key("c0").public.encode() + b'","member":"c0","operator":"op-a",'
        b'"protocol":1,"role":"contributor","run":"' + sha("run").encode() + b'"}'
    )


NO_LOSS: list[Json] = [False, "", 0.5, [], -1]
NO_LEAF: list[Json] = [
    *(None, 7, "", "sha256:", "ab" * 31, "ab" * 33, "AB" * 32, "ab" * 32 + "\n", " " + "ab" * 32),
    *("blake3:" + "ab" * 32, "SHA256:" + "ab" * 32),
]


def test_a_golden_verdict_on_some_segments_in_full() -> None:
    record = EXAMPLES["verdict"]
    assert isinstance(record, Verdict)
    trace = (sha("leaf 0"), "ab" * 32, sha("leaf 2"))
    partial = dataclasses.replace(record, trace=trace, loss_first=None)
    text = json.dumps(trace).replace(" ", "")
    assert canonical_json(predicate(partial)).endswith(
        f'"look":1,"loss_first":null,"loss_last":4000000,"next_state":"{record.next_state}","outcome":"pass",'
        f'"payload":"{record.payload}","protocol":1,"round":1,"run":"{record.run}","slot":0,"trace":{text}}}'.encode()
    )
    assert open_record(Verdict, seal_record(partial, SIGNER), SIGNER.public) == partial
    value = predicate(partial)
    assert (value["loss_first"], value["trace"]) == (None, [*trace])
    for wrong in NO_LOSS:
        with pytest.raises(FormatError):
            parse_predicate(Verdict, {**value, "loss_first": wrong})
    for wrong in NO_LEAF:
        for beside in (sha("x"), "ab" * 32):
            with pytest.raises(FormatError):
                parse_predicate(Verdict, {**value, "trace": [beside, wrong]})


def test_the_golden_segments_of_a_draw_and_a_roster() -> None:
    draw, open_ = EXAMPLES["draw"], EXAMPLES["round-open"]
    assert isinstance(draw, Draw)
    assert isinstance(open_, RoundOpen)
    made = dataclasses.replace(draw, drawn=(DrawnSlot(3, ("a0", "a1"), (0, 2)),))
    wire = b'"drawn":[{"auditors":["a0","a1"],"segments":[0,2],"slot":3}]'
    assert wire in canonical_json(predicate(made))
    assert open_record(Draw, seal_record(made, SIGNER), SIGNER.public) == made
    assert canonical_json(predicate(open_)).count(b'"audit_ppm":1000000,"audit_segments":') == 4
    assert [entry.audit_segments for entry in open_.roster] == [2, 1, 2, 1]


def signed(name: str, value: Any) -> bytes:
    """An envelope around any predicate, properly signed."""
    root = EXAMPLES["manifest"].dataset["root"] if name == "manifest" else EXAMPLES["enrol"].run  # type: ignore[union-attr]
    subject = "dataset" if name == "manifest" else "run"
    return seal(f"barnraise:{name}:v1", value, subject, root.removeprefix("sha256:"), SIGNER)


def kind_of(name: str) -> type[Any]:
    return KINDS[f"barnraise:{name}:v1"]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_unknown_missing_and_mistyped_keys_are_refused(name: str) -> None:
    right = predicate(EXAMPLES[name])
    assert open_record(kind_of(name), signed(name, right), SIGNER.public) == EXAMPLES[name]
    with pytest.raises(FormatError, match="wrong keys"):
        open_record(kind_of(name), signed(name, {**right, "extra": 1}), SIGNER.public)
    for field in right:
        less = {k: v for k, v in right.items() if k != field}
        with pytest.raises(FormatError):
            open_record(kind_of(name), signed(name, less), SIGNER.public)
        for wrong in ("\x00wrong", True, [[]], {"a": 1}, 7):
            if type(wrong) is type(right[field]) or (field.endswith(("_loss", "pulse")) and wrong == 7):
                continue
            with pytest.raises(BarnraiseError):
                open_record(kind_of(name), signed(name, {**right, field: wrong}), SIGNER.public)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@pytest.mark.parametrize("version", [0, 2, True, "1", None])
def test_another_protocol_version_is_refused(name: str, version: Any) -> None:
    value = {**predicate(EXAMPLES[name]), "protocol": version}
    with pytest.raises(FormatError):
        open_record(kind_of(name), signed(name, value), SIGNER.public)


@pytest.mark.parametrize("name", ["enrol", "round-open", "reveal", "verdict"])
def test_the_field_is_called_class_on_the_wire_and_nothing_else(name: str) -> None:
    text = json.dumps(predicate(EXAMPLES[name]))
    assert '"class"' in text
    assert "numerics_class" not in text
    value = json.loads(text.replace('"class"', '"numerics_class"'))
    with pytest.raises(FormatError):
        open_record(kind_of(name), signed(name, value), SIGNER.public)
    if name in ("enrol", "verdict"):
        both = {**predicate(EXAMPLES[name]), "numerics_class": "x"}
        with pytest.raises(FormatError):
            open_record(kind_of(name), signed(name, both), SIGNER.public)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_envelope_of_another_kind_signer_or_subject_is_refused(name: str) -> None:
    record = EXAMPLES[name]
    other = "enrol" if name != "enrol" else "served"
    with pytest.raises(FormatError, match="another record"):
        open_record(kind_of(other), seal_record(record, SIGNER), SIGNER.public)
    with pytest.raises(SignatureError):
        open_record(kind_of(name), seal_record(record, SIGNER), key("other").public)
    moved = seal(f"barnraise:{name}:v1", predicate(record), "run", "ab" * 32, SIGNER)
    with pytest.raises(FormatError, match="subject"):
        open_record(kind_of(name), moved, SIGNER.public)


@given(st.sampled_from(sorted(EXAMPLES)), st.binary(max_size=300))
def test_hostile_bytes_give_only_the_family(name: str, data: bytes) -> None:
    with pytest.raises(BarnraiseError):
        open_record(kind_of(name), data, SIGNER.public)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text("ab:0", max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("ab", max_size=2), inner)),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_hostile_values_in_a_signed_record_give_only_the_family(name: str, data: st.DataObject) -> None:
    right = predicate(EXAMPLES[name])
    field = data.draw(st.sampled_from(sorted(right)))
    value = {**right, field: data.draw(json_values)}
    try:
        envelope = signed(name, value)
        record = open_record(kind_of(name), envelope, SIGNER.public)
    except BarnraiseError:
        return
    assert predicate(record) == value


@given(json_values)
def test_a_predicate_that_is_no_object_is_refused(value: Any) -> None:
    for kind in KINDS.values():
        with pytest.raises(FormatError):
            parse_predicate(kind, value)


@pytest.mark.parametrize("value", [None, [], 7, "x"])
def test_a_predicate_of_another_type_has_no_version(value: Any) -> None:
    with pytest.raises(FormatError, match="another protocol version"):
        parse_predicate(Enrol, value)


@pytest.mark.parametrize("number", ["0.5", "0x1p-1", "nan", "0x1.80p+0", "inf", ""])
def test_learning_rates_must_be_canonical_hex(number: str) -> None:
    open_ = EXAMPLES["round-open"]
    assert isinstance(open_, RoundOpen)
    with pytest.raises(FormatError):
        dataclasses.replace(open_, outer_lr=number)
    with pytest.raises(FormatError):
        dataclasses.replace(open_, inner_lr=(number,))


@pytest.mark.parametrize("name", ["", "A", "a b", "a" * 65, "ä", "a\n"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(FormatError):
        Enrol(1, sha("run"), name, "auditor", "op", key("x").public, "c")
    with pytest.raises(FormatError):
        Enrol(1, sha("run"), "a", "auditor", name, key("x").public, "c")


@pytest.mark.parametrize("text", ["", "c" * 201, "a\n", "a\tb", "\x7f", "ä", "\x00"])
def test_a_class_is_printable_ascii_of_at_most_200(text: str) -> None:
    for fine in ("c", "c" * 200, "exact/x86 ~"):
        assert Enrol(1, sha("run"), "a", "auditor", "op", key("x").public, fine).numerics_class == fine
    with pytest.raises(FormatError, match="printable ASCII"):
        Enrol(1, sha("run"), "a", "auditor", "op", key("x").public, text)


def test_the_run_id_is_the_hash_of_the_manifest_file() -> None:
    record = manifest()
    data = canonical_json(to_json(record))
    assert record.run_id == "sha256:" + sha256(data).hexdigest()
    assert from_json(Manifest, json.loads(data)) == record


def test_a_slot_that_is_not_in_the_roster_is_named() -> None:
    open_ = EXAMPLES["round-open"]
    assert isinstance(open_, RoundOpen)
    assert open_.entry(2).member == "c2"
    with pytest.raises(FormatError, match="slot is not in the roster"):
        open_.entry(4)


MALFORMED: list[tuple[Any, dict[str, Any], str]] = [
    (RICH_MANIFEST.initial, {"weights": "x"}, "not a digest"),
    (RICH_MANIFEST.initial, {"outer": "x"}, "not a digest"),
    (RICH_MANIFEST.draw_chain, {"end": "x"}, "not a digest"),
    (RICH_MANIFEST.draw_chain, {"end": "blake3:" + "0" * 64}, "wrong kind"),
    (RICH_MANIFEST, {"zero_state": "x"}, "not a digest"),
    (EXAMPLES["reveal"], {"salt": "x"}, "salt"),
    (EXAMPLES["verdict"], {"look": 0}, "counted from 1"),
    (EXAMPLES["verdict"], {"payload": "x"}, "not a digest"),
    (EXAMPLES["verdict"], {"next_state": "x"}, "not a digest"),
    (EXAMPLES["verdict"], {"next_state": sha("x")}, "wrong kind"),
    (EXAMPLES["verdict"], {"trace": ("x",)}, "not a digest"),
    (EXAMPLES["verdict"], {"loss_first": -1}, "negative"),
    (EXAMPLES["verdict"], {"loss_last": -1}, "negative"),
    (EXAMPLES["first-looks"].looks[0], {"verdict": "x"}, "not a digest"),  # type: ignore[union-attr]
    (EXAMPLES["first-looks"].looks[0], {"verdict": "blake3:" + "0" * 64}, "wrong kind"),  # type: ignore[union-attr]
    (EXAMPLES["appeal"], {"verdicts": ("x", sha("x"))}, "not a digest"),
    (EXAMPLES["appeal"], {"verdicts": (sha("x"), "x")}, "not a digest"),
    (EXAMPLES["reveal-close"], {"pulse": 0}, "pulse"),
    (EXAMPLES["reveal-close"], {"pulse": 2**53}, "pulse"),
]


@pytest.mark.parametrize(("record", "change", "words"), MALFORMED)
def test_a_malformed_field_is_refused_by_the_record_itself(
    record: Any, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        dataclasses.replace(record, **change)
