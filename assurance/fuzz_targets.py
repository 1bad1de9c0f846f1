"""Every parser of bytes that a peer, a log, a run folder or a file could supply, and sound inputs of each.

Owns the table `TARGETS` and the formats of what is signed: encodings, envelopes, records, the log. More is in
the modules fuzz_targets_*.py beside this one.
A parser takes bytes and either returns or raises one of the error family. Does not own how hostile bytes are
made. To add one: a function with `@target`, which takes a scratch folder.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from verification import (
    encoding,
    envelope,
    fsck_envelope,
    fsck_formats,
    fsck_json,
    fsck_shapes,
    notes,
    sealing,
)
from verification.errors import FormatError, SignatureError
from verification.fsck_findings import Report
from verification.keys import PrivateKey, check_public_key

Parser = Callable[[bytes], object]
ORIGIN = "example.org/fuzzing"
KEY = PrivateKey.from_seed(b"\x01" * 32)
VKEY = notes.vkey(ORIGIN, KEY.public)
RUN = "sha256:" + "5" * 64
TYPED = 4000  # bytes that somebody may type in a command


@dataclass(frozen=True)
class Target:
    """Parsers of one format. `json`: the seeds are JSON; `agree`: all parsers must take the same inputs.

    `wrap` makes of a mutated seed what the parsers get, such as a signed envelope, so that mutations reach
    what lies behind a signature or a digest. Inputs are cut to `longest` bytes. Memory is measured of one
    input in so many, not of a target that is `untraced`: measuring makes arithmetic several times slower.
    """

    name: str
    parsers: tuple[Parser, ...]
    seeds: tuple[bytes, ...]
    json: bool = False
    agree: bool = False
    wrap: Callable[[bytes], bytes] | None = None
    longest: int = 1 << 30
    untraced: bool = False


@dataclass(frozen=True)
class Maker:
    """How a target is made in a scratch folder, and what part of the usual amount of inputs it gets.

    Several targets of one parser, `PARSER: PART`, share the amount. `small` is the part where every second
    counts, of a smaller amount. `why` says of a slow part why it gets no more; those start first.
    """

    make: Callable[[Path], Target]
    share: float
    small: float
    why: str


TARGETS: dict[str, Maker] = {}


def make(name: str, folder: Path) -> Target:
    """The target of a name, with files in `folder` if it needs any."""
    return TARGETS[name].make(folder)


def target(
    name: str,
    *,
    share: float = 1.0,
    small: float | None = None,
    why: str = "",
    json: bool = False,
    agree: bool = False,
    wrap: Callable[[bytes], bytes] | None = None,
    longest: int = 1 << 30,
    untraced: bool = False,
) -> Callable[[Callable[[Path], tuple[Iterable[Parser], Iterable[bytes]]]], None]:
    """Put a function that gives parsers and seeds into the table."""

    def put(build: Callable[[Path], tuple[Iterable[Parser], Iterable[bytes]]]) -> None:
        def made(folder: Path) -> Target:
            parsers, seeds = build(folder)
            return Target(name, tuple(parsers), tuple(seeds), json, agree, wrap, longest, untraced)

        TARGETS[name] = Maker(made, share, share if small is None else small, why)

    return put


def text(parse: Callable[[str], object]) -> Parser:
    """A parser of text as one of bytes; what is not UTF-8 becomes lone surrogates, the worst of texts."""
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def canon(value: Any) -> bytes:
    """Canonical JSON."""
    return encoding.canonical_json(value)


# --- encodings ---


@target("canonical JSON", json=True, agree=True)
def _canonical(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    seeds = (canon(record) for _, record in records())
    odd = canon(
        {
            "a": [
                "é\u2028\x7f\U0001f600",
                -(2**53) + 1,
                2**53 - 1,
                None,
                True,
                [],
                {},
                '\b\t\n\f\r\x00\x1f"\\/',
            ]
        }
    )
    return (encoding.parse_canonical, fsck_json.parse_canonical), (odd, *seeds)


@target("base64", agree=True)
def _base64(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    seeds = [base64.b64encode(bytes(range(length))) for length in (0, 1, 2, 3, 32, 64, 68)]
    return (text(encoding.parse_base64), text(fsck_formats.parse_base64)), seeds


@target("hex float", agree=True)
def _hex_float(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    seeds = [value.hex().encode() for value in (0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 2e-3, -1.5)]
    return (text(encoding.parse_hex_float), text(fsck_formats.parse_hex_float)), seeds


@target("digest", agree=True)
def _digest(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    shape = fsck_shapes.DIGEST
    seeds = (b"sha256:" + b"0a" * 32, b"blake3:" + b"f9" * 32)
    return (text(encoding.digest_hex), text(lambda digest: shape(digest, "here"))), seeds


@target("public key")
def _public_key(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    seeds = [PrivateKey.from_seed(bytes([n]) * 32).public.encode() for n in range(4)]
    return (text(check_public_key), text(fsck_formats.parse_key)), seeds


@target("verifier key")
def _verifier_key(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    return [text(notes.parse_vkey)], [VKEY.encode()]


@target("origin")
def _origin(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    independent = text(lambda origin: fsck_formats.make_verifier_key(origin, b"\x01" * 32))
    return (text(notes.check_origin), independent), [ORIGIN.encode(), b"x"]


def signed_note(body: bytes) -> bytes:
    """A note whose text and name are hostile and whose signature holds."""
    origin = body.split(b"\n")[0]
    public = bytes.fromhex(KEY.public.removeprefix("ed25519:"))
    key_id = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + public).digest()[:4]
    return body + b"\n\xe2\x80\x94 " + origin + b" " + base64.b64encode(key_id + KEY.sign(body)) + b"\n"


@target("checkpoint note", agree=True, wrap=signed_note)
def _note(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    public = bytes.fromhex(KEY.public.removeprefix("ed25519:"))
    own = fsck_formats.make_verifier_key(ORIGIN, public)

    def independent(note: str) -> None:
        parsed = fsck_formats.parse_checkpoint(note)
        # That it has more entries than there can be, level 1 says when it finds none of them.
        if not parsed.signed_by(own) or parsed.size > fsck_json.MAX_INTEGER:
            raise SignatureError("another signature")

    seeds = [
        notes.Checkpoint(ORIGIN, size, bytes([size % 256]) * 32).text().encode()
        for size in (0, 1, 300, 2**53 - 1)
    ]
    return (text(lambda note: notes.parse_checkpoint(note, VKEY)), text(independent)), seeds


@target("expected head", longest=TYPED)
def _head(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    from verification.errors import UsageError
    from verification.fsck import check_run

    def head(given: str) -> None:
        try:
            check_run(folder / "none", expect_head=given)
        except UsageError as error:
            if error.what == "not a log head":
                raise  # and that there is no such folder is said after the head was taken

    return [text(head)], (b"1:" + b"a" * 64, b"123:sha256:" + b"0" * 64)


# --- envelopes and records ---


@cache
def records() -> tuple[tuple[str, Any], ...]:
    """(kind, predicate) of each kind of record, from made-up runs in which much happens."""
    from tests.verification.fake_disputes import BOTH_LIE, disputed
    from tests.verification.late_play import late_rich_run
    from tests.verification.rich_run import rich_run
    from tests.verification.test_fsck_writer import Writer

    found: dict[str, list[Any]] = {}
    for kind, record, _ in Writer(Path("/nowhere")).run().records:
        found.setdefault(kind, []).append(record)
    for other in (*rich_run(), *late_rich_run(1), *disputed(BOTH_LIE).records):
        if other.kind not in found:
            found[other.kind] = [sealing.predicate(other)]
    # Short ones are quick, and a change is likelier to meet each of their fields.
    return tuple(
        (kind, record)
        for kind, many in found.items()
        for record in (min(many, key=lambda record: len(str(record))), many[-1])
    )


def sealed(statement: bytes) -> bytes:
    """An envelope around any payload, signed as it must be."""
    head = f"DSSEv1 28 application/vnd.in-toto+json {len(statement)} ".encode()
    signature = {"keyid": KEY.public, "sig": base64.b64encode(KEY.sign(head + statement)).decode()}
    payload = base64.b64encode(statement).decode()
    return canon(
        {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": [signature]}
    )


def statement(kind: str, predicate: Any, subject: tuple[str, str] = ("run", RUN)) -> bytes:
    """The in-toto statement of a predicate."""
    return canon(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "predicate": predicate,
            "predicateType": f"barnraise:{kind}:v1",
            "subject": [{"digest": {"sha256": subject[1].removeprefix("sha256:")}, "name": subject[0]}],
        }
    )


def _statements() -> list[bytes]:
    return [
        statement(kind, r, ("dataset", r["dataset"]["root"]) if kind == "manifest" else ("run", r["run"]))
        for kind, r in records()
    ]


@target("envelope: statement", json=True, wrap=sealed, share=0.5, small=0.4)
def _envelope(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder

    def own(data: bytes) -> None:
        envelope.open_envelope(data).verified(KEY.public)

    def independent(data: bytes) -> None:
        fsck_envelope.parse_envelope(data).signed_by(KEY.public)

    return (own, independent), _statements()


@target("envelope: sealed record", json=True, wrap=sealed, share=0.4)
def _sealed_record(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder

    def opened(data: bytes) -> None:
        found = envelope.open_envelope(data)
        kind = sealing.KINDS.get(found.predicate_type)
        if kind is None:
            raise FormatError("no such kind")
        record: Any = sealing.open_record(kind, data, KEY.public)
        for name in ("run_id", "commitment"):
            getattr(record, name, None)

    return [opened], _statements()


def _record_target(kind: str) -> None:
    record = sealing.KINDS[f"barnraise:{kind}:v1"]

    @target(f"record: {kind}", json=True, share=0.3, small=0.2)
    def _(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
        del folder

        def own(data: bytes) -> None:
            parsed: Any = sealing.parse_predicate(record, encoding.parse_canonical(data))
            for name in ("run_id", "commitment"):
                getattr(parsed, name, None)

        def independent(data: bytes) -> None:
            fsck_shapes.RECORDS[kind](fsck_json.parse_canonical(data), kind)

        seeds = [canon(value) for name, value in records() if name == kind]
        if not seeds:
            raise LookupError(f"no made-up run has a {kind}: let rich_run or late_rich_run have one")
        return (own, independent), seeds


for _kind in sealing.KINDS:
    _record_target(_kind.split(":")[1])


@target("evidence case", json=True)
def _case(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    files = {"payload": encoding.blake3_digest(b"payload"), "start_state": encoding.blake3_digest(b"")}
    files |= dict.fromkeys(("verdict-1", "verdict-2", "verdict-3", "appeal"), files["payload"])
    case = {"attempt": 0, "files": files, "member": "c2", "reason": "failed-audit", "round": 1, "run": RUN}

    def read(data: bytes) -> None:
        fsck_shapes.CASE(fsck_json.parse_canonical(data), "case")

    return [read], [canon({**case, "slot": 2, "reason": why}) for why in ("failed-audit", "overruled")]


# --- the log ---


@target("log folder")
def _log_folder(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """One file of a log replaced: the first byte says which, the rest is its content."""
    from verification.fsck_log import read_log
    from verification.log import Log

    place = folder / "log"
    Log.create(place, ORIGIN, KEY).append([b"entry", b"", b"x" * 300])
    files = sorted(path for path in place.rglob("*") if path.is_file())
    kept = [path.read_bytes() for path in files]

    def replaced(read: Callable[[], object]) -> Parser:
        def parse(data: bytes) -> None:
            number = (data[0] if data else 0) % len(files)
            files[number].write_bytes(data[1:])
            try:
                read()
            finally:
                files[number].write_bytes(kept[number])

        return parse

    def own() -> None:
        list(Log.open(place, ORIGIN, None, VKEY).entries())

    def independent() -> None:
        report = Report()
        view = read_log(place, report)
        if report.failures or view.checkpoint is None:
            raise FormatError("not this log")

    return (replaced(own), replaced(independent)), [bytes([n]) + data for n, data in enumerate(kept)]


def _numbers(data: bytes) -> tuple[int, int, list[bytes]]:
    """Two numbers of eight bytes and hashes, of which the last may be short."""
    pieces = [data[i : i + 32] for i in range(16, len(data), 32)]
    return int.from_bytes(data[:8], "big"), int.from_bytes(data[8:16], "big"), pieces


@target("inclusion proof")
def _inclusion(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from verification.merkle import Tree, leaf_hash, verify_inclusion

    def verify(data: bytes) -> None:
        index, size, hashes = _numbers(data)
        leaf, root, *proof = [*hashes, b"", b""][: max(2, len(hashes))]
        verify_inclusion(index, size, leaf, proof, root)

    tree = Tree(leaf_hash(bytes([n])) for n in range(13))
    seeds = []
    for index, size in ((0, 1), (3, 8), (12, 13), (5, 11)):
        proof = [leaf_hash(bytes([index])), tree.root(size), *tree.inclusion_proof(index, size)]
        seeds.append(index.to_bytes(8, "big") + size.to_bytes(8, "big") + b"".join(proof))
    return [verify], seeds


@target("consistency proof")
def _consistency(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    del folder
    from verification.merkle import Tree, leaf_hash, verify_consistency

    def verify(data: bytes) -> None:
        old, new, hashes = _numbers(data)
        old_root, new_root, *proof = [*hashes, b"", b""][: max(2, len(hashes))]
        verify_consistency(old, new, proof, old_root, new_root)

    tree = Tree(leaf_hash(bytes([n])) for n in range(13))
    seeds = []
    for old, new in ((0, 5), (1, 2), (6, 13), (8, 9), (13, 13)):
        proof = [tree.root(old), tree.root(new), *tree.consistency_proof(old, new)]
        seeds.append(old.to_bytes(8, "big") + new.to_bytes(8, "big") + b"".join(proof))
    return [verify], seeds
